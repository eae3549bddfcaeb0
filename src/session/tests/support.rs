//! A client that speaks frames and a broker that answers as it is told, joined by a session.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};

use crate::amqp::content::{Content, ContentHeader, Lane, encode_content};
use crate::amqp::frame::{self, Frame, FrameKind};
use crate::amqp::method::{Method, MethodId, channel, connection};
use crate::amqp::properties::Properties;
use crate::amqp::protocol_header::AMQP_0_9_1;
use crate::amqp::short_string::ShortString;
use crate::broker::arguments::QueueArguments;
use crate::broker::command::{
    Command, ConfirmAt, ConsumerId, Delivery, Lsn, Publish, Published, PublishedRun, Reply,
    ReplyBody, Seq, Unacked,
};
use crate::broker::error::BrokerError;
use crate::broker::message::Message;
use crate::broker::outbox::{OutboxItems, OutboxPlace};
use crate::broker::queue::{Queue, QueueHandle, QueueSpec};
use crate::session::{Event, Proof, Session, SessionOptions};
use crate::storage::types::QueueId;

/// A text as a short string.
pub(super) fn short(text: &str) -> ShortString {
    ShortString::from_text(text).expect("short")
}

/// A client, its session, and the server's loop around it.
pub(super) struct Peer {
    pub(super) session: Session,
    pub(super) input: BytesMut,
    pub(super) now_ms: u64,
    /// Events polled, as `Debug` text without the boring parts.
    pub(super) log: Vec<String>,
    /// The answer to the next publishes; `Now` when empty.
    pub(super) outcomes: Vec<Published>,
    /// Answers to the next commands, before the usual ones.
    pub(super) answers: Vec<Result<Reply, BrokerError>>,
    /// Unacked deliveries given back by CloseChannel and Settle, by outcome.
    pub(super) settled: Vec<(String, Vec<u64>)>,
    pub(super) publish_refusal: Option<BrokerError>,
    consumer_count: u64,
}

/// A queue that only serves as a name.
pub(in crate::session) fn queue() -> QueueHandle {
    let spec = QueueSpec {
        id: QueueId(1),
        vhost: "/".into(),
        name: short("q"),
        is_durable: false,
        exclusive_owner: None,
        is_auto_delete: false,
        arguments: Default::default(),
    };
    Queue::new(spec, QueueArguments::default().shared(), Lsn(0), 0)
}

pub(super) fn message(body: &[u8]) -> Arc<Message> {
    let properties = Properties::decode(Bytes::from_static(&[0, 0])).expect("empty properties");
    let body = Bytes::copy_from_slice(body);
    Arc::new(Message::new(
        short("x"),
        short("key"),
        properties,
        vec![body],
    ))
}

/// Message `seq` on its way to `consumer`.
pub(super) fn delivery(channel: u16, consumer: Option<u64>, seq: u64) -> Delivery {
    Delivery {
        channel,
        consumer: consumer.map(ConsumerId),
        queue: queue(),
        seq: Seq(seq),
        is_redelivered: false,
        is_settled: false,
        message: message(b"hello"),
    }
}

pub(super) fn reply(body: ReplyBody, durable_at: Option<u64>) -> Result<Reply, BrokerError> {
    let durable_at = durable_at.map(Lsn);
    Ok(Reply { body, durable_at })
}

pub(super) fn published(confirm: ConfirmAt) -> Published {
    Published {
        confirm,
        is_unroutable: false,
    }
}

impl Peer {
    pub(super) fn new(options: SessionOptions) -> Self {
        Self {
            session: Session::new(options, 0),
            input: BytesMut::new(),
            now_ms: 0,
            log: Vec::new(),
            outcomes: Vec::new(),
            answers: Vec::new(),
            settled: Vec::new(),
            publish_refusal: None,
            consumer_count: 0,
        }
    }

    /// A client with these capabilities that has opened the virtual host.
    pub(super) fn connected_with(options: SessionOptions, capabilities: &[&str]) -> Self {
        let mut peer = Self::new(options);
        peer.bytes(&AMQP_0_9_1);
        peer.method(0, start_ok(capabilities));
        peer.method(0, tune_ok());
        peer.method(
            0,
            connection::Open {
                virtual_host: short("/"),
                ..Default::default()
            },
        );
        peer.serve();
        assert!(peer.session.is_running(), "the handshake failed");
        peer.frames();
        peer.log.clear();
        peer
    }

    /// A client with all capabilities on an open connection.
    pub(super) fn connected() -> Self {
        let all = [
            "authentication_failure_close",
            "consumer_cancel_notify",
            "connection.blocked",
        ];
        Self::connected_with(SessionOptions::default(), &all)
    }

    /// The same with channel 1 open.
    pub(super) fn with_channel() -> Self {
        let mut peer = Self::connected();
        peer.open(1);
        peer
    }

    pub(super) fn open(&mut self, id: u16) {
        self.method(id, channel::Open::default());
        self.serve();
        self.expect(id, channel::OpenOk::default());
    }

    /// The client sends bytes; they stay in the input until the next [`serve`](Self::serve).
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.input.extend_from_slice(bytes);
        self
    }

    pub(super) fn method(&mut self, id: u16, method: impl Into<Method>) -> &mut Self {
        method.into().encode(&mut self.input, id);
        self
    }

    pub(super) fn frame(&mut self, kind: u8, id: u16, payload: &[u8]) -> &mut Self {
        let size = u32::try_from(payload.len()).expect("small");
        self.bytes(&[kind])
            .bytes(&id.to_be_bytes())
            .bytes(&size.to_be_bytes());
        self.bytes(payload).bytes(&[frame::FRAME_END])
    }

    pub(super) fn header(&mut self, id: u16, class: u16, body_size: u64) -> &mut Self {
        let mut payload = class.to_be_bytes().to_vec();
        payload.extend_from_slice(&[0, 0]);
        payload.extend_from_slice(&body_size.to_be_bytes());
        payload.extend_from_slice(&[0, 0]);
        self.frame(FrameKind::Header.octet(), id, &payload)
    }

    pub(super) fn publish(&mut self, id: u16, mandatory: bool, body: &[u8]) -> &mut Self {
        self.publish_to_key("key", id, mandatory, body)
    }

    pub(super) fn publish_to_key(
        &mut self,
        key: &str,
        id: u16,
        mandatory: bool,
        body: &[u8],
    ) -> &mut Self {
        self.method(
            id,
            crate::amqp::method::basic::Publish {
                exchange: short("x"),
                routing_key: short(key),
                mandatory,
                ..Default::default()
            },
        );
        let properties = Properties::default();
        let body = [Bytes::copy_from_slice(body)];
        let content = Content {
            properties: &properties,
            body: &body,
        };
        encode_content(&mut self.input, Lane::new(id, 131_072), &content);
        self
    }

    /// The server's loop until nothing moves.
    pub(super) fn serve(&mut self) -> &mut Self {
        loop {
            self.session.receive(&mut self.input, self.now_ms);
            while let Some(event) = self.session.poll_event() {
                self.answer(event);
            }
            if !self.session.has_stalled_input() {
                return self;
            }
        }
    }

    fn answer(&mut self, event: Event) {
        match event {
            Event::Login(login) => {
                self.log
                    .push(format!("login {} {}", login.mechanism.name(), login.user));
                let is_right = match &login.proof {
                    Proof::Password(password) => &password[..] == b"guest",
                    Proof::Vouched => true,
                };
                let result = is_right.then_some(()).ok_or(crate::session::LoginRefused);
                self.session.login_result(result);
            }
            Event::Open { vhost } => {
                self.log.push(format!("open {vhost}"));
                let result = self
                    .answers
                    .pop()
                    .map_or(Ok(()), |answer| answer.map(|_| ()));
                self.session.open_result(result);
            }
            // Every test has some; it is neither scripted nor worth a line.
            Event::Command {
                channel,
                command: Command::OpenChannel,
            } => {
                let body = ReplyBody::Done;
                let durable_at = None;
                self.session
                    .command_result(channel, Ok(Reply { body, durable_at }));
            }
            Event::Command { channel, command } => {
                self.log.push(format!("{channel} {}", summary(&command)));
                self.note_settled(&command);
                let usual = self.usual_answer(&command);
                let is_scripted = !matches!(
                    command,
                    Command::CloseChannel { .. } | Command::Settle { .. }
                );
                let scripted = if is_scripted {
                    self.answers.pop()
                } else {
                    None
                };
                self.session
                    .command_result(channel, scripted.unwrap_or(usual));
            }
            Event::Publish(publish) => self.answer_publish(publish),
            Event::TxPublish(publish) => {
                self.log.push(format!("{} check", publish.channel));
                if let Some(error) = self.publish_refusal.take() {
                    self.session.publish_refused(publish.channel, error);
                }
            }
            Event::Ended => {
                self.log.push("ended".into());
                self.session.ended();
            }
        }
    }

    fn answer_publish(&mut self, publish: Publish) {
        let body: Vec<u8> = publish.message.body().concat();
        let text = String::from_utf8_lossy(&body).into_owned();
        self.log.push(format!("{} publish {text}", publish.channel));
        if let Some(error) = self.publish_refusal.take() {
            return self.session.publish_refused(publish.channel, error);
        }
        let outcome = self.outcomes.pop().unwrap_or(published(ConfirmAt::Now));
        let is_returned = outcome.is_unroutable && publish.is_mandatory;
        self.session.publish_results(&[PublishedRun {
            channel: publish.channel,
            count: 1,
            confirm: outcome.confirm,
            returned: is_returned.then_some(publish.message).into_iter().collect(),
        }]);
    }

    fn note_settled(&mut self, command: &Command) {
        let seqs = |items: &[Unacked]| {
            let ranges = items.iter().map(|item| item.seqs);
            ranges.flat_map(|seqs| seqs.first.0..=seqs.last.0).collect()
        };
        match command {
            Command::Settle { items, outcome } => {
                self.settled.push((format!("{outcome:?}"), seqs(items)));
            }
            Command::CloseChannel { unacked } => self.settled.push(("Close".into(), seqs(unacked))),
            Command::TxCommit { settlements, .. } => {
                for (outcome, items) in settlements {
                    self.settled.push((format!("Tx{outcome:?}"), seqs(items)));
                }
            }
            _ => {}
        }
    }

    fn usual_answer(&mut self, command: &Command) -> Result<Reply, BrokerError> {
        let body = match command {
            Command::QueueDeclare(declare) => ReplyBody::QueueDeclared {
                queue: match declare.queue.is_empty() {
                    true => short("amq.gen-1"),
                    false => declare.queue.clone(),
                },
                messages: 0,
                consumers: 0,
            },
            Command::QueueDelete { .. } | Command::QueuePurge { .. } => {
                ReplyBody::Removed { messages: 3 }
            }
            Command::Get { .. } => ReplyBody::GotNothing,
            Command::Consume(_) => {
                self.consumer_count += 1;
                ReplyBody::Consuming {
                    consumer: ConsumerId(self.consumer_count),
                    timeout_ms: None,
                }
            }
            Command::TxCommit { publish_count, .. } => ReplyBody::Committed {
                published: vec![published(ConfirmAt::Now); *publish_count],
            },
            _ => ReplyBody::Done,
        };
        reply(body, None)
    }

    pub(super) fn deliver(&mut self, delivery: Delivery) -> &mut Self {
        self.hand(&OutboxItems::of_deliveries([delivery]))
    }

    /// What lies in the outbox.
    pub(super) fn hand(&mut self, items: &OutboxItems) -> &mut Self {
        let done = &mut OutboxPlace::default();
        self.session.handle_items(items, done, usize::MAX);
        assert_eq!(done.item, items.list().len());
        self
    }

    /// The events since the last call.
    #[track_caller]
    pub(super) fn expect_log(&mut self, expected: &[&str]) {
        assert_eq!(std::mem::take(&mut self.log), expected);
    }

    /// Everything the server has sent since the last call.
    pub(super) fn output_bytes(&mut self) -> Bytes {
        let output = self.session.output();
        let mut bytes = BytesMut::new();
        while output.has_remaining() {
            let count = output.chunk().len();
            bytes.extend_from_slice(output.chunk());
            output.advance(count);
        }
        bytes.freeze()
    }

    pub(super) fn frames(&mut self) -> Vec<Frame> {
        let mut bytes = BytesMut::from(&self.output_bytes()[..]);
        let decode = || frame::decode(&mut bytes, 0).expect("a frame of the server");
        let frames = std::iter::from_fn(decode).collect();
        assert!(bytes.is_empty(), "half a frame");
        frames
    }

    /// What was sent is exactly this method.
    #[track_caller]
    pub(super) fn expect(&mut self, id: u16, method: impl Into<Method>) {
        self.expect_all(&[(id, method.into())]);
    }

    #[track_caller]
    pub(super) fn expect_all(&mut self, expected: &[(u16, Method)]) {
        let frames = self.frames();
        assert_eq!(methods(&frames), expected);
    }

    #[track_caller]
    pub(super) fn expect_nothing(&mut self) {
        self.expect_all(&[]);
    }

    /// What was sent is this method and its content.
    #[track_caller]
    pub(super) fn expect_content(&mut self, id: u16, method: impl Into<Method>, body: &[u8]) {
        let frames = self.frames();
        let [first, header, bodies @ ..] = &frames[..] else {
            panic!("no content: {frames:?}");
        };
        assert_eq!(methods(std::slice::from_ref(first)), [(id, method.into())]);
        assert_eq!((header.kind, header.channel), (FrameKind::Header, id));
        let header = ContentHeader::decode(&header.payload).expect("a content header");
        let sent: Vec<u8> = bodies
            .iter()
            .flat_map(|frame| frame.payload.to_vec())
            .collect();
        assert_eq!(header.body_size_bytes, body.len() as u64);
        assert_eq!(sent, body);
    }

    /// The server closes the connection like this, and waits for close-ok.
    #[track_caller]
    pub(super) fn expect_connection_close(&mut self, code: u16, text: &str, method: (u16, u16)) {
        self.expect(
            0,
            connection::Close {
                reply_code: code,
                reply_text: short(text),
                class_id: method.0,
                method_id: method.1,
            },
        );
        assert!(!self.session.is_running() && !self.session.is_finished());
    }

    /// The server closes the channel like this.
    #[track_caller]
    pub(super) fn expect_channel_close(
        &mut self,
        id: u16,
        code: u16,
        text: &str,
        method: MethodId,
    ) {
        self.expect(id, channel_close(code, text, method));
        assert!(self.session.is_running());
    }

    pub(super) fn at(&mut self, now_ms: u64) -> &mut Self {
        self.now_ms = now_ms;
        self.session.handle_timeout(now_ms);
        self
    }
}

pub(super) fn channel_close(code: u16, text: &str, method: MethodId) -> channel::Close {
    channel::Close {
        reply_code: code,
        reply_text: short(text),
        class_id: method.class_id,
        method_id: method.method_id,
    }
}

pub(super) fn methods(frames: &[Frame]) -> Vec<(u16, Method)> {
    let decode = |frame: &Frame| {
        assert_eq!(frame.kind, FrameKind::Method, "{frame:?}");
        (
            frame.channel,
            Method::decode(&frame.payload).expect("a method of the server"),
        )
    };
    frames.iter().map(decode).collect()
}

pub(super) fn start_ok(capabilities: &[&str]) -> connection::StartOk {
    use crate::amqp::field_table::FieldTable;
    let table = capabilities
        .iter()
        .fold(FieldTable::new(), |table, name| table.with(name, true));
    connection::StartOk {
        client_properties: FieldTable::new()
            .with("capabilities", table)
            .with("connection_name", "tests")
            .with("product", "pika"),
        mechanism: short("PLAIN"),
        response: Bytes::from_static(b"\0guest\0guest"),
        locale: short("en_US"),
    }
}

pub(super) fn tune_ok() -> connection::TuneOk {
    connection::TuneOk {
        channel_max: 2047,
        frame_max: 131_072,
        heartbeat: 60,
    }
}

fn summary(command: &Command) -> String {
    match command {
        Command::QueueDeclare(declare) => format!("queue.declare '{}'", declare.queue),
        Command::Bind(bind) => format!(
            "bind '{}' '{}' '{}'",
            bind.destination, bind.source, bind.routing_key
        ),
        Command::Unbind(bind) => format!(
            "unbind '{}' '{}' '{}'",
            bind.destination, bind.source, bind.routing_key
        ),
        Command::QueueDelete { queue, .. } => format!("queue.delete '{queue}'"),
        Command::QueuePurge { queue } => format!("queue.purge '{queue}'"),
        Command::Get { queue, is_no_ack } => format!("get '{queue}' {is_no_ack}"),
        Command::Consume(consume) => {
            format!(
                "consume '{}' '{}' prefetch {}",
                consume.queue, consume.tag, consume.prefetch
            )
        }
        Command::Cancel { consumer } => format!("cancel {}", consumer.0),
        Command::ChannelPrefetch { count } => format!("prefetch {count}"),
        Command::Settle { items, outcome } => format!("settle {} {outcome:?}", items.len()),
        Command::TxCommit {
            publish_count,
            settlements,
        } => {
            format!(
                "commit {publish_count} publishes, {} settlements",
                settlements.len()
            )
        }
        Command::TxRollback => "rollback".into(),
        Command::OpenChannel => "open".into(),
        Command::CloseChannel { unacked } => format!("close, {} unacked", unacked.len()),
        Command::ExchangeDeclare(declare) => format!("exchange.declare '{}'", declare.exchange),
        Command::ExchangeDelete { exchange, .. } => format!("exchange.delete '{exchange}'"),
    }
}

/// Ends a chain of things sent where a closure must return nothing.
pub(super) fn sent(_peer: &mut Peer) {}
