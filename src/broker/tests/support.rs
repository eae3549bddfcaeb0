//! A log in memory and a broker on it, for the tests of this room.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::amqp::field_table::FieldTable;
use crate::amqp::properties::Properties;
use crate::amqp::short_string::ShortString;
use crate::broker::command::{
    Bind, Command, Consume, ExchangeDeclare, Publish, Published, QueueDeclare,
};
use crate::broker::command::{Reply, ReplyBody};
use crate::broker::effects::Effects;
use crate::broker::error::BrokerError;
use crate::broker::facade::{Broker, BrokerOptions};
use crate::broker::journal::Journal;
use crate::broker::message::Message;
use crate::broker::outbox::{Outbox, OutboxItems, Wake};
use crate::broker::{Connection, RestoreError};
use crate::storage::QueueImage;
use crate::storage::types::{
    ImageEntry, Lsn, MetaEffect, Position, Pusher, QueueId, Receipt, Request, Urgency,
};
use crate::sync::lock;

/// A log that keeps what it was told, as the engine would after a restart. Nothing is durable before
/// [`FakeJournal::commit`].
#[derive(Debug, Default)]
pub(crate) struct FakeJournal {
    state: Mutex<Logged>,
}

/// What a restart would find.
#[derive(Clone, Debug, Default)]
pub(crate) struct Logged {
    next_lsn: u64,
    confirm_lsn: Lsn,
    is_full: bool,
    pub(crate) pushes_count: usize,
    pub(crate) metas: Vec<(u16, u16, Vec<u8>)>,
    pub(crate) images: BTreeMap<QueueId, QueueImage>,
}

impl FakeJournal {
    /// Makes everything pushed so far durable.
    pub(crate) fn commit(&self) {
        let mut state = lock(&self.state);
        state.confirm_lsn = Lsn(state.next_lsn);
    }

    /// Whether there is room for what asks for some.
    pub(crate) fn set_full(&self, is_full: bool) {
        lock(&self.state).is_full = is_full;
    }

    /// What a restart would find.
    pub(crate) fn logged(&self) -> Logged {
        lock(&self.state).clone()
    }
}

impl Logged {
    fn apply(&mut self, request: &Request<'_>, positions: &mut Vec<Position>) {
        let start = Lsn(self.next_lsn);
        let len_bytes = 64;
        self.next_lsn += u64::from(len_bytes);
        let end = Lsn(self.next_lsn);
        match request {
            Request::Publish { refs, priority, .. } => {
                let lsn = start;
                let position = Position { lsn, len_bytes };
                positions.push(position);
                for target in *refs {
                    let entry = ImageEntry::published(target, position, *priority);
                    self.image(target.queue).apply_publish(entry, start, end);
                }
            }
            Request::Settle { queue, ranges, .. } => {
                let ranges = ranges.iter().copied();
                self.image(*queue).apply_settle(ranges, start, end);
            }
            Request::Requeue {
                queue,
                seq,
                delivery_count,
            } => self
                .image(*queue)
                .apply_requeue(*seq, *delivery_count, start, end),
            Request::Reserve { queue, upto } => self.image(*queue).apply_reserve(*upto, start, end),
            Request::Meta {
                kind,
                version,
                effect,
                body,
            } => {
                self.metas.push((*kind, *version, body.to_vec()));
                match effect {
                    MetaEffect::None => {}
                    MetaEffect::QueueCreated(id) => {
                        self.images.insert(*id, QueueImage::new(*id, end));
                    }
                    MetaEffect::QueueDeleted(id) => {
                        self.images.remove(id);
                    }
                }
            }
        }
    }

    fn image(&mut self, id: QueueId) -> &mut QueueImage {
        self.images
            .get_mut(&id)
            .expect("a record names a queue that exists")
    }
}

impl Journal for FakeJournal {
    fn push(
        &self,
        requests: &[Request<'_>],
        _is_atomic: bool,
        _urgency: Urgency,
        positions: &mut Vec<Position>,
    ) -> Receipt {
        let mut state = lock(&self.state);
        state.pushes_count += 1;
        for request in requests {
            state.apply(request, positions);
        }
        let end = Lsn(state.next_lsn);
        Receipt { end }
    }

    fn admit(&self, _bytes: u64, _pusher: Pusher) -> bool {
        !lock(&self.state).is_full
    }

    fn release(&self, _bytes: u64) {}

    fn confirm_lsn(&self) -> Lsn {
        lock(&self.state).confirm_lsn
    }

    fn group_max_bytes(&self) -> u64 {
        1 << 24
    }
}

/// Nobody is there to be woken.
#[derive(Debug)]
struct Deaf;

impl Wake for Deaf {
    fn wake(&self) {}
}

/// A short string in a test.
pub(crate) fn short(text: &str) -> ShortString {
    ShortString::from_text(text).expect("names in tests are short")
}

/// A broker on a [`FakeJournal`].
pub(crate) struct TestBroker {
    pub(crate) journal: Arc<FakeJournal>,
    pub(crate) broker: Broker,
    pub(crate) effects: Effects,
}

impl TestBroker {
    /// A blank one.
    pub(crate) fn new() -> Self {
        let journal = Arc::new(FakeJournal::default());
        let broker = Broker::new(Arc::clone(&journal) as _, BrokerOptions::default());
        journal.commit();
        Self {
            journal,
            broker,
            effects: Effects::default(),
        }
    }

    /// The one that starts on what this one has logged.
    pub(crate) fn restart(&self) -> Self {
        self.try_restart(None).expect("restores")
    }

    /// As `restart`, from a snapshot of everything but the messages.
    pub(crate) fn try_restart(&self, snapshot: Option<&[u8]>) -> Result<Self, RestoreError> {
        let logged = self.journal.logged();
        let records: Vec<(u16, u16, &[u8])> = match snapshot {
            Some(_) => Vec::new(),
            None => {
                let metas = logged.metas.iter();
                metas
                    .map(|(kind, version, body)| (*kind, *version, &body[..]))
                    .collect()
            }
        };
        let images: Vec<QueueImage> = logged.images.values().cloned().collect();
        let mut effects = Effects::default();
        let broker = Broker::restore(
            Arc::clone(&self.journal) as _,
            BrokerOptions::default(),
            snapshot,
            &records,
            images,
            0,
            &mut effects,
        )?;
        Ok(Self {
            journal: Arc::clone(&self.journal),
            broker,
            effects,
        })
    }

    /// A connection of `guest` to `/`.
    pub(crate) fn connect(&self) -> TestConnection {
        self.connect_as("guest", "/").expect("guest may")
    }

    /// A connection; the password is the name.
    pub(crate) fn connect_as(
        &self,
        user: &str,
        vhost: &str,
    ) -> Result<TestConnection, BrokerError> {
        let logged_in = self.broker.login(user, user.as_bytes(), true);
        let user = logged_in.expect("the password of a test user is its name");
        let outbox = Arc::new(Outbox::new(Box::new(Deaf)));
        let connection = self.broker.connect(&user, vhost, Arc::clone(&outbox))?;
        Ok(TestConnection {
            connection,
            outbox,
            journal: Arc::clone(&self.journal),
            effects: Effects::default(),
        })
    }
}

/// A connection whose commands read like the protocol. Everything is durable at once.
pub(crate) struct TestConnection {
    pub(crate) connection: Connection,
    pub(crate) outbox: Arc<Outbox>,
    journal: Arc<FakeJournal>,
    pub(crate) effects: Effects,
}

/// Answer or the text of the refusal, as on the wire.
pub(crate) type Outcome = Result<ReplyBody, String>;

impl TestConnection {
    /// Runs a command on channel 1.
    pub(crate) fn execute(&mut self, mut command: Command) -> Result<Reply, BrokerError> {
        self.connection
            .execute(1, &mut command, 0, &mut self.effects)
    }

    /// Runs a command and commits the log.
    pub(crate) fn run(&mut self, command: Command) -> Outcome {
        let reply = self.execute(command);
        self.journal.commit();
        reply.map(|reply| reply.body).map_err(|error| match error {
            BrokerError::Channel { code, text } => format!("{} {code} - {text}", code.code()),
            BrokerError::Connection { code, text } => format!("{} {code} - {text}", code.code()),
        })
    }

    pub(crate) fn close(mut self) {
        self.connection
            .execute(
                1,
                &mut Command::CloseChannel { unacked: vec![] },
                0,
                &mut self.effects,
            )
            .expect("closing a channel is not refused");
        self.connection.close(0, &mut self.effects);
        self.journal.commit();
    }

    /// Declares a durable queue.
    pub(crate) fn queue(&mut self, name: &str) {
        self.run(Command::QueueDeclare(queue(name)))
            .expect("declares");
    }

    /// Declares a durable exchange.
    pub(crate) fn exchange(&mut self, name: &str, kind: &str) {
        self.run(Command::ExchangeDeclare(exchange(name, kind)))
            .expect("declares");
    }

    /// Binds a queue.
    pub(crate) fn bind(&mut self, queue: &str, source: &str, key: &str) {
        let bound = self.run(Command::Bind(bind(queue, source, key)));
        bound.expect("binds");
    }

    /// Publishes a persistent message.
    pub(crate) fn publish(&mut self, exchange: &str, key: &str) -> Result<Published, String> {
        self.publish_with(exchange, key, &persistent())
    }

    /// Publishes a message with these properties.
    pub(crate) fn publish_with(
        &mut self,
        exchange: &str,
        key: &str,
        properties: &Properties,
    ) -> Result<Published, String> {
        let mut batch = vec![message(exchange, key, properties)];
        let mut out = Vec::new();
        let done = self
            .connection
            .publish(&mut batch, 0, &mut self.effects, &mut out);
        self.journal.commit();
        match done {
            Ok(()) => Ok(Published {
                confirm: out[0].confirm,
                is_unroutable: !out[0].returned.is_empty(),
            }),
            Err((_, BrokerError::Channel { code, text })) => {
                Err(format!("{} {code} - {text}", code.code()))
            }
            Err((_, error)) => Err(error.to_string()),
        }
    }

    /// Starts a consumer without acknowledgement.
    pub(crate) fn consume(&mut self, queue: &str) -> Outcome {
        self.run(Command::Consume(Consume {
            queue: short(queue),
            tag: short("tag"),
            is_no_ack: true,
            is_exclusive: false,
            prefetch: 0,
            arguments: FieldTable::new(),
        }))
    }

    /// Ready messages of a queue.
    pub(crate) fn ready_count(&mut self, name: &str) -> u32 {
        let mut declare = queue(name);
        declare.is_passive = true;
        match self.run(Command::QueueDeclare(declare)) {
            Ok(ReplyBody::QueueDeclared { messages, .. }) => messages,
            other => panic!("{other:?}"),
        }
    }

    /// Whether a queue is there.
    pub(crate) fn has_queue(&mut self, name: &str) -> bool {
        let mut declare = queue(name);
        declare.is_passive = true;
        self.run(Command::QueueDeclare(declare)).is_ok()
    }

    /// Whether an exchange is there.
    pub(crate) fn has_exchange(&mut self, name: &str) -> bool {
        let mut declare = exchange(name, "");
        declare.is_passive = true;
        self.run(Command::ExchangeDeclare(declare)).is_ok()
    }

    /// What arrived in the outbox since the last call.
    pub(crate) fn arrived(&self) -> OutboxItems {
        crate::broker::testing::drain(&self.outbox)
    }
}

/// A durable queue to declare.
pub(crate) fn queue(name: &str) -> QueueDeclare {
    QueueDeclare {
        queue: short(name),
        is_passive: false,
        is_durable: true,
        is_exclusive: false,
        is_auto_delete: false,
        arguments: FieldTable::new(),
    }
}

/// A durable exchange to declare.
pub(crate) fn exchange(name: &str, kind: &str) -> ExchangeDeclare {
    ExchangeDeclare {
        exchange: short(name),
        kind: short(kind),
        is_passive: false,
        is_durable: true,
        is_auto_delete: false,
        is_internal: false,
        arguments: FieldTable::new(),
    }
}

/// A binding of a queue.
pub(crate) fn bind(queue: &str, source: &str, key: &str) -> Bind {
    Bind {
        destination: short(queue),
        is_to_queue: true,
        source: short(source),
        routing_key: short(key),
        arguments: FieldTable::new(),
    }
}

/// A binding of an exchange.
pub(crate) fn bind_exchange(destination: &str, source: &str, key: &str) -> Bind {
    Bind {
        is_to_queue: false,
        ..bind(destination, source, key)
    }
}

/// The properties of a persistent message.
pub(crate) fn persistent() -> Properties {
    Properties::decode(Bytes::from_static(&[0x10, 0, 2])).expect("delivery mode 2")
}

/// A message to publish.
pub(crate) fn message(exchange: &str, key: &str, properties: &Properties) -> Publish {
    let body = vec![Bytes::from_static(b"body")];
    let message = Message::new(short(exchange), short(key), properties.clone(), body);
    Publish {
        channel: 1,
        is_mandatory: true,
        message: Arc::new(message),
    }
}
