//! The one broker of this test binary, and what the sections say all the time.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use stratamq::amqp::field_table::{FieldTable, FieldValue};
use stratamq::amqp::method::{Method, MethodId, basic, channel, exchange, queue};

use super::elsewhere::other_broker;
use crate::support::TestBroker;
use crate::support::raw::{Client, Delivered, Message, Trouble, text};

/// Long enough that what must not come would have come; only spent where silence is the claim.
pub(crate) const SILENCE: Duration = Duration::from_millis(150);

/// The broker, and the process that ends it after the tests: statics are never dropped.
struct Stage {
    broker: TestBroker,
    /// Waits for the end of this process, which closes its input.
    _reaper: Child,
}

/// What a broker can do, and a client that says all of it.
pub(crate) const CAPABILITIES: [&str; 9] = [
    "publisher_confirms",
    "exchange_exchange_bindings",
    "basic.nack",
    "consumer_cancel_notify",
    "connection.blocked",
    "consumer_priorities",
    "authentication_failure_close",
    "per_consumer_qos",
    "direct_reply_to",
];

/// The broker of all tests, when it is ours: see [`skipped_elsewhere`](super::elsewhere::skipped_elsewhere).
pub(crate) fn broker() -> &'static TestBroker {
    assert!(other_broker().is_none(), "the other broker is not ours");
    static STAGE: OnceLock<Stage> = OnceLock::new();
    let stage = STAGE.get_or_init(|| {
        let broker = TestBroker::builder().arg("--ack-fsync-ms").arg("5").start();
        let top = broker.data_dir().parent().expect("the data has a parent");
        let reaper = Command::new("sh")
            .args(["-c", "cat; kill -9 \"$1\"; rm -rf \"$2\"", "reaper"])
            .arg(broker.pid().to_string())
            .arg(top)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell can be started");
        Stage {
            broker,
            _reaper: reaper,
        }
    });
    &stage.broker
}

/// Where the broker listens, ours or another one.
pub(crate) fn address() -> SocketAddr {
    other_broker().unwrap_or_else(|| broker().address())
}

/// A connection with channel 1 open.
#[track_caller]
pub(crate) fn client() -> Client {
    let mut client = Client::connect(address());
    client.open_channel(1);
    client
}

/// Runs `stratamq WORDS` on the running broker.
#[track_caller]
pub(crate) fn cli(words: &[&str]) -> String {
    let output = Command::new(crate::support::broker_binary())
        .args(words)
        .env("STRATAMQ_DATA_DIR", broker().data_dir())
        .env("STRATAMQ_USER_PASSWORD", "secret")
        .stdin(Stdio::null())
        .output()
        .expect("the broker's binary can be executed");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {said}{complained}");
    said
}

// ---- methods, with the fields that matter ----

pub(crate) fn table<const COUNT: usize>(entries: [(&str, FieldValue); COUNT]) -> FieldTable {
    let mut table = FieldTable::new();
    for (name, value) in entries {
        table.set(name, value);
    }
    table
}

/// `signedint`.
pub(crate) fn int(value: i32) -> FieldValue {
    FieldValue::SignedInt(value)
}

/// `longstr`.
pub(crate) fn string(value: &str) -> FieldValue {
    FieldValue::text(value)
}

/// A transient queue to declare.
pub(crate) fn q(name: &str) -> queue::Declare {
    queue::Declare {
        queue: text(name),
        ..queue::Declare::default()
    }
}

/// A transient queue with arguments to declare.
pub(crate) fn q_with<const COUNT: usize>(
    name: &str,
    arguments: [(&str, FieldValue); COUNT],
) -> queue::Declare {
    queue::Declare {
        arguments: table(arguments),
        ..q(name)
    }
}

/// A transient exchange to declare.
pub(crate) fn x(name: &str, kind: &str) -> exchange::Declare {
    exchange::Declare {
        exchange: text(name),
        kind: text(kind),
        ..exchange::Declare::default()
    }
}

pub(crate) fn bind(queue: &str, exchange: &str, key: &str) -> queue::Bind {
    queue::Bind {
        queue: text(queue),
        exchange: text(exchange),
        routing_key: text(key),
        ..queue::Bind::default()
    }
}

pub(crate) fn unbind(queue: &str, exchange: &str, key: &str) -> queue::Unbind {
    queue::Unbind {
        queue: text(queue),
        exchange: text(exchange),
        routing_key: text(key),
        ..queue::Unbind::default()
    }
}

pub(crate) fn x_bind(destination: &str, source: &str, key: &str) -> exchange::Bind {
    exchange::Bind {
        destination: text(destination),
        source: text(source),
        routing_key: text(key),
        ..exchange::Bind::default()
    }
}

pub(crate) fn x_unbind(destination: &str, source: &str, key: &str) -> exchange::Unbind {
    exchange::Unbind {
        destination: text(destination),
        source: text(source),
        routing_key: text(key),
        ..exchange::Unbind::default()
    }
}

pub(crate) fn x_delete(name: &str) -> exchange::Delete {
    exchange::Delete {
        exchange: text(name),
        ..exchange::Delete::default()
    }
}

pub(crate) fn q_delete(name: &str) -> queue::Delete {
    queue::Delete {
        queue: text(name),
        ..queue::Delete::default()
    }
}

pub(crate) fn consume(queue: &str, tag: &str) -> basic::Consume {
    basic::Consume {
        queue: text(queue),
        consumer_tag: text(tag),
        ..basic::Consume::default()
    }
}

pub(crate) fn get(queue: &str) -> basic::Get {
    basic::Get {
        queue: text(queue),
        ..basic::Get::default()
    }
}

pub(crate) fn publish(exchange: &str, key: &str) -> basic::Publish {
    basic::Publish {
        exchange: text(exchange),
        routing_key: text(key),
        ..basic::Publish::default()
    }
}

pub(crate) fn mandatory(exchange: &str, key: &str) -> basic::Publish {
    basic::Publish {
        mandatory: true,
        ..publish(exchange, key)
    }
}

/// Sends a publish with its content.
#[track_caller]
pub(crate) fn send(client: &mut Client, channel: u16, publish: basic::Publish, message: &Message) {
    client.push(channel, publish);
    client.push_content(channel, message);
    client.flush().expect("the broker reads");
}

/// Publishes texts to a queue through the default exchange and waits until it has them.
#[track_caller]
pub(crate) fn fill(client: &mut Client, queue: &str, bodies: &[&str]) {
    for body in bodies {
        client.push_publish(1, "", queue, &Message::plain(body.as_bytes().to_vec()));
    }
    client.flush().expect("the broker reads");
    settle(client, 1);
}

/// A round trip on the channel: everything sent before has been dealt with.
#[track_caller]
pub(crate) fn settle(client: &mut Client, channel: u16) {
    client.call::<channel::FlowOk>(channel, channel::Flow { active: true });
}

/// Ready messages and consumers, by a passive declare.
#[track_caller]
pub(crate) fn counts(client: &mut Client, queue: &str) -> (u32, u32) {
    let declared = client.queue_declare(1, queue, crate::support::raw::passive());
    (declared.message_count, declared.consumer_count)
}

/// Takes everything that is ready, without acknowledgement: the bodies.
#[track_caller]
pub(crate) fn drain(client: &mut Client, queue: &str) -> Vec<String> {
    drain_all(client, queue)
        .iter()
        .map(|delivered| delivered.message.body_text())
        .collect()
}

/// Takes everything that is ready and acknowledges it.
#[track_caller]
pub(crate) fn drain_all(client: &mut Client, queue: &str) -> Vec<Delivered> {
    let mut taken = Vec::new();
    while let Some(delivered) = client.get(1, queue) {
        client.ack(1, delivered.tag);
        taken.push(delivered);
    }
    taken
}

/// Waits until `queue` has so many ready messages; for what happens by itself, such as expiry.
#[track_caller]
pub(crate) fn wait_ready(client: &mut Client, queue: &str, count: u32) {
    let deadline = crate::support::raw::now() + Duration::from_secs(20);
    loop {
        let (ready, _) = counts(client, queue);
        if ready == count {
            return;
        }
        let is_late = crate::support::raw::now() > deadline;
        assert!(!is_late, "{queue} has {ready} messages instead of {count}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Nothing comes on the channel.
#[track_caller]
pub(crate) fn silent(client: &mut Client, channel: u16) {
    match client.try_next_within(channel, SILENCE) {
        Err(Trouble::Silent) => {}
        other => panic!("channel {channel} should be silent: {other:?}"),
    }
}

// ---- refusals ----

/// The channel that refusals are provoked on.
const SCRATCH: u16 = 900;

/// The method, sent on a fresh channel, is answered by `channel.close` with this code and text, and blamed.
#[track_caller]
pub(crate) fn refused(client: &mut Client, method: impl Into<Method>, code: u16, reply_text: &str) {
    let method = method.into();
    let id = method.id();
    client.open_channel(SCRATCH);
    client.send(SCRATCH, method);
    channel_closed(client, SCRATCH, code, reply_text, id);
}

/// The same for a publish of that message.
#[track_caller]
pub(crate) fn publish_refused(
    client: &mut Client,
    publish: basic::Publish,
    message: &Message,
    code: u16,
    reply_text: &str,
) {
    client.open_channel(SCRATCH);
    send(client, SCRATCH, publish, message);
    channel_closed(client, SCRATCH, code, reply_text, basic::Publish::ID);
}

/// The channel is closed like that.
#[track_caller]
pub(crate) fn channel_closed(
    client: &mut Client,
    channel: u16,
    code: u16,
    reply_text: &str,
    id: MethodId,
) {
    let close = match client.try_next(channel) {
        Err(Trouble::ChannelClosed(close)) => close,
        other => panic!("channel {channel} should be closed with {code} {reply_text}: {other:?}"),
    };
    let blamed = (close.class_id, close.method_id);
    let told = (close.reply_code, close.reply_text.as_str(), blamed);
    assert_eq!(told, (code, reply_text, (id.class_id, id.method_id)));
}

/// The method, sent on channel 1 of a fresh connection, ends the connection with this code and text, and is blamed.
#[track_caller]
pub(crate) fn fatal(method: impl Into<Method>, code: u16, reply_text: &str) {
    let method = method.into();
    let id = method.id();
    let mut client = client();
    client.send(1, method);
    connection_closed(&mut client, code, reply_text, id);
}

/// The connection is closed like that.
#[track_caller]
pub(crate) fn connection_closed(client: &mut Client, code: u16, reply_text: &str, id: MethodId) {
    let close = client.wait_connection_close();
    let blamed = (close.class_id, close.method_id);
    let told = (close.reply_code, close.reply_text.as_str(), blamed);
    assert_eq!(told, (code, reply_text, (id.class_id, id.method_id)));
}
