//! A publisher's and a consumer's session, and the broker between them, on one thread.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use stratamq::amqp::content::{Content, Lane, encode_content};
use stratamq::amqp::field_table::FieldTable;
use stratamq::amqp::limits::FRAME_MAX_DEFAULT;
use stratamq::amqp::method::{Method, basic, channel, confirm, connection, exchange, queue};
use stratamq::amqp::properties::PropertiesBuilder;
use stratamq::amqp::protocol_header;
use stratamq::amqp::short_string::ShortString;
use stratamq::broker::command::{Publish, PublishedRun};
use stratamq::broker::effects::{AfterDurable, Effects};
use stratamq::broker::journal::Journal;
use stratamq::broker::message::PayloadDecoder;
use stratamq::broker::outbox::{Outbox, OutboxItems, OutboxPlace, Wake};
use stratamq::broker::queue::decode_body;
use stratamq::broker::{Broker, BrokerOptions, Connection, User};
use stratamq::disk::{Clock, Disk, RealClock, RealDisk};
use stratamq::server::StorageJournal;
use stratamq::session::{Event, Proof, Session, SessionOptions};
use stratamq::storage::format::StoreId;
use stratamq::storage::testing::Heard;
use stratamq::storage::{CommitListener, Options, ReadBuffer, ReadPages, Storage};
use tempfile::TempDir;

/// Milliseconds since 1970; nothing here depends on the real time.
const NOW_MS: u64 = 1_700_000_000_000;
const EXCHANGE: &str = "fan";

/// What goes through.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    body_bytes: usize,
    is_durable: bool,
    queues: usize,
    spread: Spread,
    batch: usize,
    backlog: Backlog,
}

/// How messages go to several queues.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spread {
    /// Each to all of them.
    Fanout,
    /// Each to one, the next to the next queue, and acknowledged by itself.
    InTurn,
}

/// Whether there is somebody who takes the messages.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Backlog {
    /// Always.
    None,
    /// Nobody.
    Kept,
    /// Once all of them are there.
    Drained,
}

/// Messages before those that are counted: more than stay in memory of a queue that nobody takes from.
const BACKLOG_BEFORE: usize = 17_000;

impl Load {
    /// No confirms, no acknowledgements.
    pub(crate) fn transient(body_bytes: usize) -> Self {
        Self {
            body_bytes,
            is_durable: false,
            queues: 1,
            spread: Spread::Fanout,
            batch: 64,
            backlog: Backlog::None,
        }
    }

    /// Confirmed, and acknowledged once a batch.
    pub(crate) fn durable(body_bytes: usize) -> Self {
        Self {
            is_durable: true,
            ..Self::transient(body_bytes)
        }
    }

    /// Nobody takes them.
    pub(crate) fn as_backlog(self) -> Self {
        let backlog = Backlog::Kept;
        Self { backlog, ..self }
    }

    /// Taken when all are there: read from the log.
    pub(crate) fn drained(self) -> Self {
        let backlog = Backlog::Drained;
        Self { backlog, ..self }
    }

    pub(crate) fn to_queues(self, queues: usize) -> Self {
        Self { queues, ..self }
    }

    /// Each message to one of them.
    pub(crate) fn in_turn_to(self, queues: usize) -> Self {
        let spread = Spread::InTurn;
        Self {
            queues,
            spread,
            ..self
        }
    }

    /// Deliveries of one message.
    fn copies(self) -> usize {
        match self.spread {
            Spread::Fanout => self.queues,
            Spread::InTurn => 1,
        }
    }

    /// Batches until the queues come in the same order again.
    fn batches_in_turn(self) -> usize {
        match self.spread {
            Spread::Fanout => 1,
            Spread::InTurn => self.queues.div_ceil(self.batch),
        }
    }

    pub(crate) fn in_batches_of(self, batch: usize) -> Self {
        Self { batch, ..self }
    }

    fn queue_name(queue: usize) -> ShortString {
        ShortString::from_text_cut(&format!("queue-{queue}"))
    }
}

#[derive(Debug)]
struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

/// What a connection's task has, without its socket.
struct Peer {
    session: Session,
    outbox: Arc<Outbox>,
    user: Option<User>,
    domain: Option<Connection>,
    input: BytesMut,
    items: OutboxItems,
    batch: Vec<Publish>,
    published: Vec<PublishedRun>,
    delivered_count: u64,
}

/// See the module.
pub(crate) struct Pipe {
    load: Load,
    storage: Storage,
    broker: Broker,
    effects: Effects,
    buffer: ReadBuffer,
    publisher: Peer,
    consumer: Peer,
    /// Batches of messages, which are given in turn.
    streams: Vec<BytesMut>,
    _directory: TempDir,
}

impl Pipe {
    pub(crate) fn new(load: Load) -> Self {
        let directory = directory();
        let disk = RealDisk::new(directory.path().to_owned()).expect("it is there");
        let disk: Arc<dyn Disk> = Arc::new(disk);
        let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
        let listener: Arc<dyn CommitListener> = Arc::new(Heard::default());
        let store = StoreId([7; 16]);
        let opened = Storage::open_by_hand(disk, clock, Options::default(), listener, store);
        let (storage, _) = opened.expect("a fresh directory opens");
        let journal: Arc<dyn Journal> = Arc::new(StorageJournal(storage.clone()));
        let mut pipe = Self {
            streams: (0..load.batches_in_turn())
                .map(|batch| messages(load, batch * load.batch))
                .collect(),
            load,
            storage,
            broker: Broker::new(journal, BrokerOptions::default()),
            effects: Effects::default(),
            buffer: ReadBuffer::with_pages(ReadPages::within(u64::MAX)),
            publisher: Peer::new(),
            consumer: Peer::new(),
            _directory: directory,
        };
        pipe.open();
        pipe
    }

    /// Both connections, the queues and the consumers.
    fn open(&mut self) {
        let greeting = BytesMut::from(&protocol_header::AMQP_0_9_1[..]);
        for is_consumer in [false, true] {
            self.give(is_consumer, &greeting);
            for (channel, method) in handshake() {
                self.tell(is_consumer, channel, method);
            }
        }
        let declare = exchange::Declare {
            exchange: ShortString::from_static(EXCHANGE),
            kind: ShortString::from_static("fanout"),
            durable: self.load.is_durable,
            ..exchange::Declare::default()
        };
        self.tell(true, 1, declare.into());
        for queue in 0..self.load.queues {
            let queue = Load::queue_name(queue);
            let declare = queue::Declare {
                queue: queue.clone(),
                durable: self.load.is_durable,
                ..queue::Declare::default()
            };
            self.tell(true, 1, declare.into());
            let bind = queue::Bind {
                queue: queue.clone(),
                exchange: ShortString::from_static(EXCHANGE),
                ..queue::Bind::default()
            };
            self.tell(true, 1, bind.into());
            if self.load.backlog == Backlog::None {
                self.consume(queue);
            }
        }
        if self.load.is_durable {
            self.tell(false, 1, confirm::Select::default().into());
        }
    }

    fn consume(&mut self, queue: ShortString) {
        let consume = basic::Consume {
            queue,
            no_ack: !self.load.is_durable,
            ..basic::Consume::default()
        };
        self.tell(true, 1, consume.into());
    }

    /// Publishes about `count` messages to a queue without a consumer; then takes all of them, if that is wanted.
    pub(crate) fn pile_up(&mut self, count: usize) {
        let rounds = (BACKLOG_BEFORE + count).div_ceil(self.load.batch);
        let streams = self.streams.clone();
        for stream in streams.iter().cycle().take(rounds) {
            self.give(false, stream);
        }
        if self.load.backlog == Backlog::Kept {
            return;
        }
        self.consume(Load::queue_name(0));
        let mut acked_count = 0;
        while acked_count < (rounds * self.load.batch) as u64 {
            let delivery_tag = self.consumer.delivered_count;
            if delivery_tag == acked_count {
                // What was read is taken now.
                self.give(true, &[]);
                assert!(self.consumer.delivered_count > acked_count, "it goes on");
                continue;
            }
            acked_count = delivery_tag;
            let multiple = true;
            let ack = basic::Ack {
                delivery_tag,
                multiple,
            };
            self.tell(true, 1, ack.into());
        }
    }

    /// Publishes about `count` messages, and sees that all of them were delivered.
    pub(crate) fn carry(&mut self, count: usize) {
        let rounds = count.div_ceil(self.load.batch);
        let streams = self.streams.clone();
        for stream in streams.iter().cycle().take(rounds) {
            let before = self.consumer.delivered_count;
            self.give(false, stream);
            let delivered = self.consumer.delivered_count - before;
            assert_eq!(delivered, (self.load.batch * self.load.copies()) as u64);
            if self.load.is_durable {
                self.acknowledge(before);
            }
        }
    }

    /// Acknowledges all deliveries behind those that are acknowledged.
    fn acknowledge(&mut self, acked_count: u64) {
        let last = self.consumer.delivered_count;
        let (tags, multiple) = match self.load.spread {
            Spread::Fanout => (last..=last, true),
            Spread::InTurn => (acked_count + 1..=last, false),
        };
        let mut bytes = BytesMut::new();
        for delivery_tag in tags {
            let ack = basic::Ack {
                delivery_tag,
                multiple,
            };
            Method::from(ack).encode(&mut bytes, 1);
        }
        self.give(true, &bytes);
    }

    fn tell(&mut self, is_consumer: bool, channel: u16, method: Method) {
        let mut bytes = BytesMut::new();
        method.encode(&mut bytes, channel);
        self.give(is_consumer, &bytes);
    }

    /// Bytes that a client sends, and all that they bring.
    fn give(&mut self, to_consumer: bool, bytes: &[u8]) {
        let Self {
            storage,
            broker,
            effects,
            buffer,
            publisher,
            consumer,
            ..
        } = self;
        let peer = if to_consumer {
            &mut *consumer
        } else {
            &mut *publisher
        };
        peer.input.extend_from_slice(bytes);
        peer.session.receive(&mut peer.input, NOW_MS);
        peer.handle_events(broker, effects);
        carry_out(storage, broker, buffer, effects);
        for peer in [publisher, consumer] {
            peer.take_outbox(broker, effects);
            peer.session.handle_durable(storage.confirm_lsn());
            peer.handle_events(broker, effects);
            carry_out(storage, broker, buffer, effects);
            let output = peer.session.output();
            output.advance(output.remaining());
        }
    }
}

/// What the server's threads do: here at once, and on this thread.
fn carry_out(storage: &Storage, broker: &Broker, buffer: &mut ReadBuffer, effects: &mut Effects) {
    effects.wakes.clear();
    effects.wakes_commit = false;
    effects.timers.clear();
    read_bodies(storage, broker, buffer, effects);
    while storage.step().expect("the disk works") {}
    while let Some((lsn, after)) = effects.after_durable.pop() {
        assert!(lsn <= storage.confirm_lsn(), "all of it is committed");
        match after {
            AfterDurable::Redispatch(queue) => broker.redispatch(&queue, NOW_MS, effects),
            AfterDurable::Reveal(queue) => broker.reveal(&queue, NOW_MS, effects),
        }
        while storage.step().expect("the disk works") {}
    }
    effects.wakes.clear();
}

/// What the reader threads do.
fn read_bodies(storage: &Storage, broker: &Broker, buffer: &mut ReadBuffer, effects: &mut Effects) {
    while let Some(fetch) = effects.fetches.pop() {
        let mut messages = Vec::with_capacity(fetch.wanted.len());
        let mut decoder = PayloadDecoder::default();
        storage.read_each(fetch.queue.id(), &fetch.wanted, buffer, |index, result| {
            let payload = result.expect("it is there");
            messages.push((fetch.wanted[index].0, decode_body(&mut decoder, payload)));
        });
        broker.fetched(&fetch.queue, messages, NOW_MS, effects);
    }
}

impl Peer {
    fn new() -> Self {
        Self {
            session: Session::new(SessionOptions::default(), NOW_MS),
            outbox: Arc::new(Outbox::new(Box::new(NoWake))),
            user: None,
            domain: None,
            input: BytesMut::new(),
            items: OutboxItems::default(),
            batch: Vec::new(),
            published: Vec::new(),
            delivered_count: 0,
        }
    }

    fn take_outbox(&mut self, broker: &Broker, effects: &mut Effects) {
        let Some(domain) = &mut self.domain else {
            return;
        };
        if self.outbox.drain(&mut self.items) {
            broker.outbox_drained(domain, NOW_MS, effects);
            self.outbox.drain(&mut self.items);
        }
        let done = &mut OutboxPlace::default();
        self.delivered_count += self.session.handle_items(&self.items, done, usize::MAX);
        self.items.clear();
    }

    fn handle_events(&mut self, broker: &Broker, effects: &mut Effects) {
        loop {
            self.session.poll_publishes(&mut self.batch, usize::MAX);
            let Some(event) = self.session.poll_event() else {
                break;
            };
            match event {
                Event::Login(login) => {
                    let Proof::Password(password) = &login.proof else {
                        panic!("the client sends a password");
                    };
                    let user = broker.login(&login.user, password, true);
                    self.user = Some(user.expect("guest may log in"));
                    self.session.login_result(Ok(()));
                }
                Event::Open { vhost } => {
                    let user = self.user.take().expect("it has logged in");
                    let outbox = Arc::clone(&self.outbox);
                    let domain = broker.connect(&user, vhost.as_str(), outbox);
                    self.domain = Some(domain.expect("the vhost is there"));
                    self.session.open_result(Ok(()));
                }
                Event::Command { channel, command } => {
                    let domain = self.domain.as_mut().expect("it is open");
                    let mut command = command;
                    let result = domain.execute(channel, &mut command, NOW_MS, effects);
                    self.session.command_result(channel, result);
                }
                other => panic!("nobody asked for {other:?}"),
            }
        }
        self.publish(effects);
    }

    fn publish(&mut self, effects: &mut Effects) {
        if self.batch.is_empty() {
            return;
        }
        let domain = self.domain.as_mut().expect("it is open");
        self.published.clear();
        let result = domain.publish(&mut self.batch, NOW_MS, effects, &mut self.published);
        result.expect("nothing is refused");
        assert!(self.batch.is_empty(), "the log has room");
        self.session.publish_results(&self.published);
    }
}

/// A directory on a real disk.
pub(crate) fn directory() -> TempDir {
    let place = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let mut builder = tempfile::Builder::new();
    let directory = builder.prefix("stratamq-instructions-").tempdir_in(place);
    directory.expect("a directory on a real disk")
}

fn handshake() -> Vec<(u16, Method)> {
    let start_ok = connection::StartOk {
        client_properties: FieldTable::default(),
        mechanism: ShortString::from_static("PLAIN"),
        response: Bytes::from_static(b"\0guest\0guest"),
        locale: ShortString::from_static("en_US"),
    };
    let tune_ok = connection::TuneOk {
        channel_max: 2047,
        frame_max: FRAME_MAX_DEFAULT,
        heartbeat: 0,
    };
    let open = connection::Open {
        virtual_host: ShortString::from_static("/"),
        ..connection::Open::default()
    };
    vec![
        (0, start_ok.into()),
        (0, tune_ok.into()),
        (0, open.into()),
        (1, channel::Open::default().into()),
    ]
}

/// A batch of messages as a publisher sends them; the first one is the message `first` of all.
fn messages(load: Load, first: usize) -> BytesMut {
    let publish = |index: usize| match (load.spread, load.queues) {
        (Spread::InTurn, _) | (_, 1) => basic::Publish {
            routing_key: Load::queue_name(index % load.queues),
            ..basic::Publish::default()
        },
        _ => basic::Publish {
            exchange: ShortString::from_static(EXCHANGE),
            ..basic::Publish::default()
        },
    };
    let mode = if load.is_durable { 2 } else { 1 };
    let properties = PropertiesBuilder::new()
        .set_delivery_mode(Some(mode))
        .build();
    let body = [Bytes::from(vec![b'x'; load.body_bytes])];
    let content = Content {
        properties: &properties,
        body: &body,
    };
    let mut out = BytesMut::new();
    for index in first..first + load.batch {
        Method::from(publish(index)).encode(&mut out, 1);
        encode_content(&mut out, Lane::new(1, FRAME_MAX_DEFAULT), &content);
    }
    out
}
