//! Direct reply-to: answers go from the responder's connection straight into the requester's outbox, through no queue.
//!
//! ```text
//!   requester  consume(amq.rabbitmq.reply-to, no-ack)   -> registered under a name nobody can guess
//!              publish(reply_to = amq.rabbitmq.reply-to) -> the property becomes that name
//!   responder  publish("", routing key = the name)       -> outbox of the requester, or nowhere
//! ```
//! 1. A name is a capability: whoever was given it may answer, from any vhost, and nobody else can.
//! 2. Nothing is stored and nothing is waited for: an answer for somebody who is gone is dropped, and still counts as
//!    routed (PB-7). It is confirmed at once (DR-10).
//! 3. An outbox takes answers beyond its limit for deliveries, since nobody keeps them until there is room; up to
//!    [`REPLIES_MAX_BYTES`], beyond which they are dropped.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::command::{Consume, ConsumerId, Reply, ReplyBody};
use super::connection::Connection;
use super::effects::Effects;
use super::error::BrokerError;
use super::message::Message;
use super::outbox::{Outbox, OutboxItem};
use super::refusal::{no_queue, precondition_failed};
use crate::amqp::properties::Properties;
use crate::amqp::short_string::ShortString;
use crate::sync::{read, write};

/// The name that requesters consume from and put into `reply_to`.
pub(super) const REPLY_TO: &str = "amq.rabbitmq.reply-to";
/// Names of requesters begin so.
const NAME_PREFIX: &str = "amq.rabbitmq.reply-to.";
/// Random bytes in such a name.
const SECRET_BYTES: usize = 16;
/// Answers that a requester has not read: protects from one that does not read at all.
const REPLIES_MAX_BYTES: usize = 32 << 20;

/// A requester.
#[derive(Debug)]
struct ReplyConsumer {
    outbox: Arc<Outbox>,
    channel: u16,
    consumer: ConsumerId,
}

/// Everybody who waits for answers, by name.
#[derive(Debug, Default)]
pub(crate) struct ReplyConsumers {
    by_name: RwLock<HashMap<ShortString, ReplyConsumer>>,
}

/// What a channel knows of its own registration.
#[derive(Debug)]
pub(super) struct Registered {
    consumer: ConsumerId,
    name: ShortString,
}

impl ReplyConsumers {
    fn register(&self, requester: ReplyConsumer) -> ShortString {
        let mut secret = [0; SECRET_BYTES];
        getrandom::fill(&mut secret).expect("the operating system provides randomness");
        let number = STANDARD.encode(requester.consumer.0.to_be_bytes());
        let secret = STANDARD.encode(secret);
        let name = ShortString::from_text_cut(&format!("{NAME_PREFIX}{number}.{secret}"));
        write(&self.by_name).insert(name.clone(), requester);
        name
    }

    fn forget(&self, name: &ShortString) {
        write(&self.by_name).remove(name);
    }

    fn is_there(&self, name: &ShortString) -> bool {
        read(&self.by_name).contains_key(name)
    }

    fn deliver(&self, name: &ShortString, message: &Arc<Message>, effects: &mut Effects) {
        let requesters = read(&self.by_name);
        let Some(requester) = requesters.get(name) else {
            return;
        };
        if requester.outbox.size_bytes() >= REPLIES_MAX_BYTES {
            tracing::warn!("a requester does not read its direct replies; one is dropped");
            return;
        }
        let is_first = requester.outbox.push(OutboxItem::Reply {
            channel: requester.channel,
            consumer: requester.consumer,
            message: Arc::clone(message),
        });
        if is_first {
            effects.wakes.push(Arc::clone(&requester.outbox));
        }
    }
}

/// True for the name that all requesters use, and for their own names.
pub(super) fn is_reply_name(name: &ShortString) -> bool {
    name.as_str() == REPLY_TO || is_requester_name(name)
}

/// True for a name that one requester was given.
pub(super) fn is_requester_name(name: &ShortString) -> bool {
    name.as_bytes().starts_with(NAME_PREFIX.as_bytes())
}

impl Connection {
    /// `basic.consume` on the pseudo queue (DR-1). No permission is asked for, and there is nothing to be exclusive on.
    pub(super) fn consume_replies(
        &mut self,
        channel: u16,
        consume: &Consume,
    ) -> Result<Reply, BrokerError> {
        if !consume.is_no_ack {
            return Err(precondition_failed("reply consumer cannot acknowledge"));
        }
        if self.channel_mut(channel).replies.is_some() {
            return Err(precondition_failed("reply consumer already set"));
        }
        let consumer = self.shared.issue_consumer_id();
        let name = self.shared.reply_consumers.register(ReplyConsumer {
            outbox: Arc::clone(self.outbox()),
            channel,
            consumer,
        });
        self.channel_mut(channel).replies = Some(Registered { consumer, name });
        Ok(Reply {
            body: ReplyBody::Consuming {
                consumer,
                timeout_ms: None,
            },
            durable_at: None,
        })
    }

    /// The channel's requester goes, if it is that consumer; `None` is any. What is underway to it is dropped.
    pub(super) fn cancel_replies(&mut self, channel: u16, consumer: Option<ConsumerId>) -> bool {
        let replies = &mut self.channel_mut(channel).replies;
        let is_it = |own: &mut Registered| consumer.is_none_or(|consumer| consumer == own.consumer);
        match replies.take_if(is_it) {
            Some(registered) => {
                self.shared.reply_consumers.forget(&registered.name);
                true
            }
            None => false,
        }
    }

    /// What `reply_to` of a message becomes (DR-3); `None` when it is an ordinary one.
    ///
    /// # Errors
    /// DR-2: there is nobody on the channel to answer to.
    pub(super) fn reply_name(
        &mut self,
        channel: u16,
        properties: &Properties,
    ) -> Result<Option<ShortString>, BrokerError> {
        if properties.reply_to() != Some(REPLY_TO.as_bytes()) {
            return Ok(None);
        }
        match &self.channel_mut(channel).replies {
            Some(registered) => Ok(Some(registered.name.clone())),
            None => Err(precondition_failed("fast reply consumer does not exist")),
        }
    }

    /// `queue.declare` of such a name asks whether the requester lives (DR-6).
    pub(super) fn declare_reply_name(&self, name: &ShortString) -> Result<Reply, BrokerError> {
        if name.as_str() != REPLY_TO && !self.shared.reply_consumers.is_there(name) {
            return Err(no_queue(name, self.vhost.name()));
        }
        Ok(Reply {
            body: ReplyBody::QueueDeclared {
                queue: name.clone(),
                messages: 0,
                consumers: 1,
            },
            durable_at: None,
        })
    }

    /// Hands a message to the requesters of these names, as far as they are there.
    pub(super) fn deliver_replies(
        &self,
        names: &[ShortString],
        message: &Arc<Message>,
        effects: &mut Effects,
    ) {
        for name in names {
            self.shared.reply_consumers.deliver(name, message, effects);
        }
    }
}
