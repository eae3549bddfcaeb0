//! The domain's side of one client connection: what it owns, and its commands; what it may do is in `access`.
//!
//! Owned by the connection's task, so nothing here is shared. Exclusive queues and consumers hang on it
//! and go with it; deliveries that were not settled have been requeued by `CloseChannel` before.

mod access;

use std::collections::HashMap;
use std::sync::Arc;

use super::access::{Operation, Permissions, TopicPermissionsByExchange, User};
use super::arguments::QueueKind;
use super::command::{Command, Consume, ConsumerId, Published, Reply, ReplyBody};
use super::command::{SettleOutcome, Unacked};
use super::consumer::{ChannelCredit, ConsumerSpec};
use super::effects::Effects;
use super::error::BrokerError;
use super::exchange::History;
use super::facade::Shared;
use super::journal::Admitted;
use super::outbox::Outbox;
use super::publish::remember;
use super::queue::{
    self, Aftermath, ConnectionId, ConsumeRefusal, DeleteCondition, DeleteRefusal, GetOutcome,
    QueueHandle, RoutedPublish,
};
use super::refusal::{
    exclusive_use, get_beside_active, no_conditional_delete, no_global_prefetch, no_queue,
    precondition_failed, vhost_deleted,
};
use super::reply_to::{REPLY_TO, Registered, is_reply_name};
use super::route_cache::RouteCache;
use super::vhost::Vhost;
use crate::amqp::field_table::{FieldTable, FieldValue};
use crate::amqp::reply_code::ConnectionReplyCode;
use crate::amqp::short_string::ShortString;
use crate::storage::types::{Lsn, Pusher};

/// Consumers and exclusive queues are swept of deleted ones from this many on.
const SWEEP_MIN_COUNT: usize = 64;
/// Arguments of a consumer that other queue types know and this one refuses.
const STREAM_CONSUMER_ARGUMENTS: [&str; 3] = [
    "x-stream-offset",
    "x-stream-filter",
    "x-stream-match-unfiltered",
];
const FOREIGN_CONSUMER_ARGUMENTS: [&str; 4] = [
    "x-stream-offset",
    "x-stream-filter",
    "x-stream-match-unfiltered",
    "x-consumer-timeout",
];

/// What belongs to one channel.
#[derive(Debug, Default)]
pub(super) struct Channel {
    /// The prefetch limit its consumers share.
    credit: Arc<ChannelCredit>,
    /// Queue of the `basic.get` that waits for a body, if one may.
    pending_get: Option<QueueHandle>,
    /// Publishes of its open transaction.
    pub(super) transaction: Vec<RoutedPublish>,
    /// It was opened, and counts among the channels of the user.
    is_open: bool,
    /// Direct replies among those: index of the publish, and whom it answers.
    pub(super) transaction_replies: Vec<(usize, Box<[ShortString]>)>,
    /// Exchanges that remember some of them once they are committed, by the index of the publish.
    pub(super) transaction_histories: Vec<(usize, Vec<Arc<History>>)>,
    /// Its requester for direct reply-to, if it has one.
    pub(super) replies: Option<Registered>,
}

/// See the module.
pub struct Connection {
    pub(super) shared: Arc<Shared>,
    pub(super) id: ConnectionId,
    pub(super) user: User,
    pub(super) vhost: Arc<Vhost>,
    permissions: Arc<Permissions>,
    /// Read at the same time.
    pub(super) topic_permissions: TopicPermissionsByExchange,
    /// Version of users and permissions that `permissions` was read under.
    permissions_version: u64,
    outbox: Arc<Outbox>,
    /// In boxes: the table has more places than channels.
    channels: HashMap<u16, Box<Channel>>,
    consumers: HashMap<ConsumerId, (u16, QueueHandle)>,
    /// Queues that go with the connection.
    exclusive_queues: Vec<QueueHandle>,
    pub(super) routes: RouteCache,
    /// Queues that got messages from a commit of this connection, and when those are durable.
    committed: Vec<(Lsn, QueueHandle)>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.id)
            .field("user", &self.user.name())
            .field("vhost", &self.vhost.name())
            .finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) fn new(
        shared: Arc<Shared>,
        id: ConnectionId,
        user: User,
        vhost: Arc<Vhost>,
        permissions: Arc<Permissions>,
        outbox: Arc<Outbox>,
    ) -> Self {
        Self {
            shared,
            id,
            user,
            vhost,
            permissions,
            topic_permissions: TopicPermissionsByExchange::new(),
            // Below every version: the first check reads again, so a change since the open is seen.
            permissions_version: u64::MAX,
            outbox,
            channels: HashMap::new(),
            consumers: HashMap::new(),
            exclusive_queues: Vec::new(),
            routes: RouteCache::default(),
            committed: Vec::new(),
        }
    }

    /// The connection's number, unique in the process.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// Name of the vhost.
    #[must_use]
    pub fn vhost_name(&self) -> &str {
        self.vhost.name()
    }

    /// Executes one command of a channel.
    ///
    /// # Errors
    /// The refusal, which closes the channel or the connection.
    pub fn execute(
        &mut self,
        channel: u16,
        command: &mut Command,
        now_ms: u64,
        effects: &mut Effects,
    ) -> Result<Reply, BrokerError> {
        match command {
            Command::ExchangeDeclare(declare) => self.declare_exchange(declare, now_ms, effects),
            Command::ExchangeDelete {
                exchange,
                if_unused,
            } => self.delete_exchange(exchange, *if_unused, now_ms, effects),
            Command::Bind(bind) => self.bind(bind, now_ms, effects),
            Command::Unbind(bind) => self.unbind(bind, now_ms, effects),
            Command::QueueDeclare(declare) => self.declare_queue(declare, now_ms, effects),
            Command::QueueDelete {
                queue,
                if_unused,
                if_empty,
            } => {
                let condition = DeleteCondition {
                    if_unused: *if_unused,
                    if_empty: *if_empty,
                };
                self.delete_queue(queue, condition, now_ms, effects)
            }
            Command::QueuePurge { queue } => self.purge_queue(queue, now_ms, effects),
            Command::Consume(consume) => self.consume(channel, consume, now_ms, effects),
            Command::Cancel { consumer } => Ok(self.cancel(channel, *consumer, now_ms, effects)),
            Command::Get { queue, is_no_ack } => {
                self.get(channel, queue, *is_no_ack, now_ms, effects)
            }
            Command::Settle { items, outcome } => {
                queue::settle(&mut self.shared.turn(now_ms, effects), items, *outcome);
                Ok(done(None))
            }
            Command::ChannelPrefetch { count } => {
                let credit = Arc::clone(&self.channels.entry(channel).or_default().credit);
                let turn = &mut self.shared.turn(now_ms, effects);
                queue::set_channel_prefetch(turn, &credit, *count);
                Ok(done(None))
            }
            Command::TxCommit {
                publish_count,
                settlements,
            } => {
                let channel = self.channel_mut(channel);
                let routed = std::mem::take(&mut channel.transaction);
                let replies = std::mem::take(&mut channel.transaction_replies);
                let histories = std::mem::take(&mut channel.transaction_histories);
                debug_assert_eq!(routed.len(), *publish_count, "the session counts them too");
                let reply = self.commit(&routed, &replies, settlements, now_ms, effects)?;
                for (index, histories) in histories {
                    if let Some(routed) = routed.get(index) {
                        remember(&histories, &routed.message);
                    }
                }
                Ok(reply)
            }
            Command::TxRollback => {
                let channel = self.channel_mut(channel);
                channel.transaction.clear();
                channel.transaction_replies.clear();
                channel.transaction_histories.clear();
                Ok(done(None))
            }
            Command::OpenChannel => self.open_channel(channel),
            Command::CloseChannel { unacked } => {
                self.close_channel(channel, unacked, now_ms, effects);
                Ok(done(None))
            }
        }
    }

    /// Asks for the room that the channel's transaction takes in the log: to be held while it is committed. `None` when it
    /// has to wait.
    #[must_use]
    pub fn admit_commit(&self, channel: u16) -> Option<Admitted> {
        let bytes = self.channels.get(&channel).map_or(0, |channel| {
            queue::commit_bytes(
                &channel.transaction,
                self.shared.queues.journal().group_max_bytes(),
            )
        });
        self.shared.queues.admit(bytes, Pusher::Publisher)
    }

    /// Ends the connection: its consumers are gone, its exclusive queues deleted, and what was only kept
    /// for them. Unsettled deliveries were requeued by `CloseChannel` before; for those that were not, see
    /// [`Connection::requeue`].
    pub fn close(&mut self, now_ms: u64, effects: &mut Effects) {
        let channels: Vec<u16> = self.channels.keys().copied().collect();
        for channel in channels {
            self.close_channel(channel, &mut [], now_ms, effects);
        }
        for queue in std::mem::take(&mut self.exclusive_queues) {
            // Deleted before is as good.
            let condition = DeleteCondition::default();
            let _ = self.shared.delete_queue(&queue, condition, now_ms, effects);
        }
        self.shared.unregister(self.id);
    }

    /// After [`Connection::close`]: deliveries that it held and no channel gave back, because it ended by a fault. Those
    /// of them that are settled are left alone.
    pub fn requeue(&self, held: &mut [Unacked], now_ms: u64, effects: &mut Effects) {
        queue::settle(
            &mut self.shared.turn(now_ms, effects),
            held,
            SettleOutcome::Requeue,
        );
    }

    pub(super) fn channel_mut(&mut self, channel: u16) -> &mut Channel {
        self.channels.entry(channel).or_default()
    }

    /// Where its deliveries are handed over.
    pub(super) fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    /// Remembers a queue that goes with the connection.
    pub(super) fn own(&mut self, queue: QueueHandle) {
        let owned = &mut self.exclusive_queues;
        if owned.len() >= SWEEP_MIN_COUNT && owned.len() == owned.capacity() {
            owned.retain(|queue| !queue.is_deleted());
        }
        owned.push(queue);
    }

    /// The queue of that name, if this connection may use it.
    pub(super) fn find_queue(&self, name: &ShortString) -> Result<QueueHandle, BrokerError> {
        let topology = self.vhost.read();
        if topology.is_deleted {
            return Err(vhost_deleted(self.vhost.name()));
        }
        let queue = topology.queue(name).cloned();
        drop(topology);
        let queue = queue.ok_or_else(|| no_queue(name, self.vhost.name()))?;
        self.check_owner(&queue)?;
        Ok(queue)
    }

    fn delete_queue(
        &mut self,
        name: &ShortString,
        condition: DeleteCondition,
        now_ms: u64,
        effects: &mut Effects,
    ) -> Result<Reply, BrokerError> {
        let name = &without_line_breaks(name);
        let nothing = Reply {
            body: ReplyBody::Removed { messages: 0 },
            durable_at: None,
        };
        if is_reply_name(name) {
            return Ok(nothing);
        }
        self.check_queue_access(Operation::Configure, name)?;
        let Some(queue) = self.vhost.read().queue(name).cloned() else {
            return Ok(nothing);
        };
        self.check_owner(&queue)?;
        let vhost = self.vhost.name();
        if queue.is_quorum() {
            let flags = [
                (condition.if_unused, "if-unused"),
                (condition.if_empty, "if-empty"),
            ];
            if let Some((_, flag)) = flags.into_iter().find(|(is_set, _)| *is_set) {
                return Err(no_conditional_delete(name, vhost, flag));
            }
        }
        match self.shared.delete_queue(&queue, condition, now_ms, effects) {
            Ok((messages, durable_at)) => Ok(Reply {
                body: ReplyBody::Removed { messages },
                durable_at,
            }),
            Err(DeleteRefusal::AlreadyDeleted) => Ok(nothing),
            Err(DeleteRefusal::NotEmpty) => Err(precondition_failed(format!(
                "queue '{name}' in vhost '{vhost}' not empty"
            ))),
            Err(DeleteRefusal::InUse) => Err(precondition_failed(format!(
                "queue '{name}' in vhost '{vhost}' in use"
            ))),
        }
    }

    fn purge_queue(
        &mut self,
        name: &ShortString,
        now_ms: u64,
        effects: &mut Effects,
    ) -> Result<Reply, BrokerError> {
        self.check_queue_access(Operation::Read, name)?;
        let queue = self.find_queue(name)?;
        let purged = queue::purge(&mut self.shared.turn(now_ms, effects), &queue);
        Ok(Reply {
            body: ReplyBody::Removed {
                messages: purged.message_count,
            },
            durable_at: self.shared.unless_durable(purged.durable_at),
        })
    }

    fn consume(
        &mut self,
        channel: u16,
        consume: &Consume,
        now_ms: u64,
        effects: &mut Effects,
    ) -> Result<Reply, BrokerError> {
        if consume.queue.as_str() == REPLY_TO {
            return self.consume_replies(channel, consume);
        }
        self.check_queue_access(Operation::Read, &consume.queue)?;
        let queue = self.find_queue(&consume.queue)?;
        let priority = self.consumer_priority(consume, &queue)?;
        // The argument of a consumer goes before that of its queue (AK-20).
        let timeout_ms = self.consumer_number(consume, "x-consumer-timeout")?;
        let own_timeout_ms = timeout_ms.map(|timeout_ms| u64::try_from(timeout_ms).unwrap_or(0));
        let timeout_ms = own_timeout_ms.or_else(|| queue.settings().consumer_timeout_ms);
        let id = self.shared.issue_consumer_id();
        let channel_credit = Arc::clone(&self.channels.entry(channel).or_default().credit);
        let spec = ConsumerSpec {
            id,
            channel,
            outbox: Arc::clone(&self.outbox),
            is_no_ack: consume.is_no_ack,
            is_exclusive: consume.is_exclusive,
            prefetch: consume.prefetch,
            priority,
            channel_credit,
        };
        let name = &consume.queue;
        queue::consume(&mut self.shared.turn(now_ms, effects), &queue, spec).map_err(
            |refusal| match refusal {
                ConsumeRefusal::Deleted => no_queue(name, self.vhost.name()),
                ConsumeRefusal::ExclusiveUse => exclusive_use(name, self.vhost.name()),
                ConsumeRefusal::ChannelLimit => no_global_prefetch(name, self.vhost.name()),
            },
        )?;
        if self.consumers.len() >= SWEEP_MIN_COUNT
            && self.consumers.len() == self.consumers.capacity()
        {
            self.consumers.retain(|_, (_, queue)| !queue.is_deleted());
        }
        self.consumers
            .insert(id, (channel, QueueHandle::clone(&queue)));
        Ok(Reply {
            body: ReplyBody::Consuming {
                consumer: id,
                timeout_ms,
            },
            durable_at: None,
        })
    }

    fn consumer_priority(
        &self,
        consume: &Consume,
        queue: &QueueHandle,
    ) -> Result<i64, BrokerError> {
        let refuse = |argument: &str, reason: &str| {
            let (queue, vhost) = (&consume.queue, self.vhost.name());
            precondition_failed(format!(
                "invalid arg '{argument}' for queue '{queue}' in vhost '{vhost}'{reason}"
            ))
        };
        let kind = queue.kind();
        let foreign = match kind {
            QueueKind::Classic => &FOREIGN_CONSUMER_ARGUMENTS[..],
            QueueKind::Quorum => &STREAM_CONSUMER_ARGUMENTS[..],
        };
        for argument in foreign {
            if consume.arguments.get(argument).is_some() {
                return Err(refuse(
                    argument,
                    &format!(" of queue type {}", kind.module()),
                ));
            }
        }
        Ok(self.consumer_number(consume, "x-priority")?.unwrap_or(0))
    }

    fn consumer_number(&self, consume: &Consume, name: &str) -> Result<Option<i64>, BrokerError> {
        let Some(value) = consume.arguments.get(name) else {
            return Ok(None);
        };
        value.as_integer().map(Some).ok_or_else(|| {
            let (queue, vhost, found) = (&consume.queue, self.vhost.name(), value.type_name());
            precondition_failed(format!(
                "invalid arg '{name}' for queue '{queue}' in vhost '{vhost}': \"expected integer, got {found}\""
            ))
        })
    }

    fn cancel(
        &mut self,
        channel: u16,
        consumer: ConsumerId,
        now_ms: u64,
        effects: &mut Effects,
    ) -> Reply {
        if self.cancel_replies(channel, Some(consumer)) {
            return done(None);
        }
        if let Some((_, queue)) = self.consumers.remove(&consumer) {
            let aftermath = queue::cancel(&mut self.shared.turn(now_ms, effects), &queue, consumer);
            self.shared
                .settle_aftermath(&queue, aftermath, now_ms, effects);
        }
        done(None)
    }

    fn get(
        &mut self,
        channel: u16,
        name: &ShortString,
        is_no_ack: bool,
        now_ms: u64,
        effects: &mut Effects,
    ) -> Result<Reply, BrokerError> {
        self.check_queue_access(Operation::Read, name)?;
        let queue = self.find_queue(name)?;
        if queue.is_quorum() && queue.is_single_active() {
            return Err(get_beside_active(name, self.vhost.name()));
        }
        let turn = &mut self.shared.turn(now_ms, effects);
        let body = match queue::get(turn, &queue, channel, &self.outbox, is_no_ack) {
            GetOutcome::Got(delivery, remaining) => ReplyBody::Got {
                delivery,
                remaining,
            },
            GetOutcome::Empty => ReplyBody::GotNothing,
            GetOutcome::Pending => {
                self.channels.entry(channel).or_default().pending_get = Some(queue);
                ReplyBody::GetPending
            }
            GetOutcome::Deleted => return Err(no_queue(name, self.vhost.name())),
        };
        Ok(Reply {
            body,
            durable_at: None,
        })
    }

    fn commit(
        &mut self,
        routed: &[RoutedPublish],
        replies: &[(usize, Box<[ShortString]>)],
        settlements: &[(SettleOutcome, Vec<Unacked>)],
        now_ms: u64,
        effects: &mut Effects,
    ) -> Result<Reply, BrokerError> {
        let turn = &mut self.shared.turn(now_ms, effects);
        let committed = queue::commit(turn, routed, settlements).map_err(|too_large| {
            let (size, max) = (too_large.size_bytes, too_large.max_bytes);
            precondition_failed(format!(
                "transaction size {size} is larger than max size {max}"
            ))
        })?;
        let visible_at = committed.durable_at.unwrap_or_default();
        let mut queues: Vec<&QueueHandle> = routed.iter().flat_map(|one| &one.targets).collect();
        queues.sort_unstable_by_key(|queue| queue.id());
        queues.dedup_by_key(|queue| queue.id());
        let waiting = queues
            .into_iter()
            .map(|queue| (visible_at, Arc::clone(queue)));
        self.committed.extend(waiting);
        let durable_at = self.shared.unless_durable(committed.durable_at);
        self.reveal_committed(now_ms, effects);
        let outcomes = committed.published.into_iter().zip(routed);
        let published = outcomes.map(|(confirm, routed)| Published {
            confirm,
            is_unroutable: routed.targets.is_empty(),
        });
        let mut published: Vec<Published> = published.collect();
        for (index, names) in replies {
            if let (Some(routed), Some(published)) = (routed.get(*index), published.get_mut(*index))
            {
                self.deliver_replies(names, &routed.message, effects);
                published.is_unroutable = false;
            }
        }
        Ok(Reply {
            body: ReplyBody::Committed { published },
            durable_at,
        })
    }

    /// Shows the messages of commits that have become durable. Called before `tx.commit-ok` is sent, so
    /// that whoever has read it finds them (BS-4); `Broker::reveal` shows those of connections that are
    /// gone by then.
    pub fn reveal_committed(&mut self, now_ms: u64, effects: &mut Effects) {
        let confirm_lsn = self.shared.confirm_lsn();
        let durable = self
            .committed
            .extract_if(.., |(lsn, _)| *lsn <= confirm_lsn);
        for (_, queue) in durable {
            queue::reveal(&mut self.shared.turn(now_ms, effects), &queue);
        }
    }

    /// Counts the channel among those of its user, if he may have another.
    fn open_channel(&mut self, channel: u16) -> Result<Reply, BrokerError> {
        let user = self.user.shared_name();
        self.shared.open_channel(user).map_err(|max_count| {
            let text = format!(
                "number of channels opened for user '{user}' has reached the maximum allowed user \
                 limit of {max_count}"
            );
            BrokerError::connection(ConnectionReplyCode::NotAllowed, text)
        })?;
        self.channel_mut(channel).is_open = true;
        Ok(done(None))
    }

    /// Cancels the channel's consumers, requeues what it holds, then deletes queues that lost their last
    /// consumer: in this order, so that nothing comes back to a consumer that is going.
    fn close_channel(
        &mut self,
        channel: u16,
        unacked: &mut [Unacked],
        now_ms: u64,
        effects: &mut Effects,
    ) {
        let gone = self.consumers.extract_if(|_, (of, _)| *of == channel);
        let gone: Vec<(ConsumerId, (u16, QueueHandle))> = gone.collect();
        let mut unused = Vec::new();
        for (consumer, (_, queue)) in gone {
            let aftermath = queue::cancel(&mut self.shared.turn(now_ms, effects), &queue, consumer);
            if aftermath != Aftermath::Stays {
                unused.push(queue);
            }
        }
        self.cancel_replies(channel, None);
        let state = self.channels.remove(&channel).unwrap_or_default();
        if state.is_open {
            self.shared.close_channel(self.user.name());
        }
        if let Some(queue) = state.pending_get {
            queue::abandon_get(&queue, channel, &self.outbox);
        }
        if !unacked.is_empty() {
            let turn = &mut self.shared.turn(now_ms, effects);
            queue::settle(turn, unacked, SettleOutcome::Requeue);
        }
        for queue in unused {
            let aftermath = Aftermath::Unused;
            self.shared
                .settle_aftermath(&queue, aftermath, now_ms, effects);
        }
    }
}

/// The plain answer.
pub(super) fn done(durable_at: Option<Lsn>) -> Reply {
    Reply {
        body: ReplyBody::Done,
        durable_at,
    }
}

/// Names in declare, delete, bind and unbind lose their CR and LF (EX-6). The copy is independent of the
/// frame the name came in, so it may be kept.
pub(super) fn without_line_breaks(name: &ShortString) -> ShortString {
    let is_kept = |character: &char| !matches!(character, '\r' | '\n');
    let text: String = name.as_str().chars().filter(is_kept).collect();
    ShortString::from_text(&text).unwrap_or_default()
}

/// An argument that must be text when it is there (`x-dead-letter-exchange`, `alternate-exchange`).
pub(super) fn exchange_argument(
    arguments: &FieldTable,
    name: &str,
    thing: &str,
) -> Result<Option<ShortString>, BrokerError> {
    let invalid = |value: &FieldValue| {
        let kind = value.type_name();
        precondition_failed(format!("invalid type '{kind}' for arg '{name}' in {thing}"))
    };
    let Some(value) = arguments.get(name) else {
        return Ok(None);
    };
    let FieldValue::LongString(text) = value else {
        return Err(invalid(value));
    };
    let text = ShortString::new(text.clone()).ok_or_else(|| invalid(value))?;
    Ok(Some(without_line_breaks(&text)))
}
