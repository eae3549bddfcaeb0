//! What exchanges keep over a crash: delayed messages with their time, hashes, and which of them are gone with the process.

mod support;

use stratamq::amqp::field_table::{FieldTable, FieldValue};
use stratamq::amqp::method::{basic, exchange};
use support::TestBroker;
use support::raw::{Client, Message, Trouble, durable, passive, text};

fn table<const COUNT: usize>(entries: [(&str, FieldValue); COUNT]) -> FieldTable {
    let mut table = FieldTable::new();
    for (name, value) in entries {
        table.set(name, value);
    }
    table
}

fn declare(name: &str, kind: &str, is_durable: bool) -> exchange::Declare {
    exchange::Declare {
        exchange: text(name),
        kind: text(kind),
        durable: is_durable,
        arguments: table([("x-delayed-type", FieldValue::text("direct"))]),
        ..exchange::Declare::default()
    }
}

fn client(broker: &TestBroker) -> Client {
    let mut client = Client::connect(broker.address());
    client.open_channel(1);
    client
}

fn later(body: &str, delay_ms: i32, mode: u8) -> Message {
    Message::with(body.to_owned(), |properties| {
        properties
            .set_header("x-delay", delay_ms)
            .set_delivery_mode(Some(mode));
    })
}

/// Queue `q` behind the delayed exchange `later`, and so many confirmed messages that wait in it as long, each its number.
fn delay_many(broker: &TestBroker, count: usize, delay_ms: i32) {
    let mut c = client(broker);
    c.call::<exchange::DeclareOk>(1, declare("later", "x-delayed-message", true));
    c.queue_declare(1, "q", durable());
    c.bind(1, "q", "later", "k");
    c.confirm_select(1);
    for number in 0..count {
        c.push_publish(1, "later", "k", &later(&number.to_string(), delay_ms, 2));
    }
    c.flush().expect("the broker reads");
    c.wait_confirms_upto(1, count as u64);
}

/// The bodies of the next messages of a consumer.
fn bodies(client: &mut Client, count: usize) -> Vec<String> {
    let next = std::iter::repeat_with(|| {
        let delivered = client.next_delivery(1);
        client.ack(1, delivered.tag);
        delivered.message.body_text()
    });
    next.take(count).collect()
}

/// No policy drops what waits, neither at once nor after a restart. XP-7.
#[test]
fn policies_of_all_queues_leave_delayed_messages_alone() {
    const COUNT: usize = 20;
    let mut broker = TestBroker::start();
    let definition = r#"{"max-length":1,"message-ttl":50,"expires":400}"#;
    let output = std::process::Command::new(broker.binary())
        .arg("--data-dir")
        .arg(broker.data_dir())
        .args(["policy", "set", "all", "^amq", definition])
        .output()
        .expect("the broker's binary can be executed");
    assert!(output.status.success(), "{output:?}");
    delay_many(&broker, COUNT, 2_500);
    broker.kill();
    broker.restart();
    std::thread::sleep(std::time::Duration::from_millis(800));
    let mut c = client(&broker);
    c.consume(1, "q", "c");
    let expected: Vec<String> = (0..COUNT).map(|number| number.to_string()).collect();
    assert_eq!(bodies(&mut c, COUNT), expected);
}

/// XP-7: confirmed delayed messages outlive a kill, each comes once, in the order of time: those whose time came while the
/// broker was down first. Transient ones and those of a transient exchange are gone.
#[test]
fn delayed_messages_outlive_a_kill_with_their_time() {
    let mut broker = TestBroker::start();
    let mut c = client(&broker);
    c.call::<exchange::DeclareOk>(1, declare("later", "x-delayed-message", true));
    c.call::<exchange::DeclareOk>(1, declare("brief", "x-delayed-message", false));
    c.queue_declare(1, "q", durable());
    c.bind(1, "q", "later", "k");
    c.bind(1, "q", "brief", "k");
    c.confirm_select(1);
    for (body, delay_ms) in [
        ("hour", 3_600_000),
        ("third", 4_000),
        ("second", 200),
        ("first", 100),
    ] {
        c.push_publish(1, "later", "k", &later(body, delay_ms, 2));
    }
    c.push_publish(1, "later", "k", &later("transient", 100, 1));
    c.push_publish(1, "brief", "k", &later("brief", 100, 2));
    c.flush().expect("the broker reads");
    c.wait_confirms_upto(1, 6);
    broker.kill();
    std::thread::sleep(std::time::Duration::from_millis(300));
    broker.restart();
    let mut c = client(&broker);
    c.consume(1, "q", "c");
    assert_eq!(bodies(&mut c, 3), ["first", "second", "third"]);
    c.try_qos(1, 0).expect("acks are taken before the answer");
    // Over a clean stop as well, and a checkpoint.
    assert!(broker.terminate().success());
    broker.restart();
    let mut c = client(&broker);
    c.consume(1, "q", "c");
    c.publish(1, "later", "k", &later("new", 50, 2));
    assert_eq!(bodies(&mut c, 1), ["new"]);
    // The hour is not over; deleting its exchange ends it, also over a kill.
    let delete = exchange::Delete {
        exchange: text("later"),
        ..exchange::Delete::default()
    };
    c.call::<exchange::DeleteOk>(1, delete);
    broker.kill();
    broker.restart();
    let mut c = client(&broker);
    assert_eq!(c.message_count(1, "q"), 0);
    c.call::<exchange::DeclareOk>(1, declare("later", "x-delayed-message", true));
}

/// XP-7: many that are due at once, more than one group holds, come all and in order.
#[test]
fn a_crowd_that_is_due_at_once_comes_whole_after_a_kill() {
    const COUNT: usize = 10_000;
    let mut broker = TestBroker::start();
    delay_many(&broker, COUNT, 2_000);
    broker.kill();
    broker.restart();
    let mut c = client(&broker);
    c.consume(1, "q", "c");
    let came = bodies(&mut c, COUNT);
    let expected = (0..COUNT).map(|number| number.to_string());
    assert!(came.into_iter().eq(expected), "each once, in order");
}

/// XP-1, EX-17, BI-10: durable exchanges and bindings between durable ends stay, and keys go where they went before; transient
/// exchanges go with all their bindings, also those of durable queues.
#[test]
fn hashes_and_durable_bindings_stay_and_the_rest_goes() {
    let mut broker = TestBroker::start();
    let mut c = client(&broker);
    let hash = |is_durable| exchange::Declare {
        arguments: FieldTable::new(),
        ..declare("hash", "x-consistent-hash", is_durable)
    };
    c.call::<exchange::DeclareOk>(1, hash(true));
    c.call::<exchange::DeclareOk>(1, declare("brief", "direct", false));
    for (queue, weight) in [("q1", "1"), ("q2", "3"), ("q3", "2")] {
        c.queue_declare(1, queue, durable());
        c.bind(1, queue, "hash", weight);
        c.bind(1, queue, "brief", "k");
    }
    // A second weight for a queue that has one does not count, before a restart or after it.
    c.bind(1, "q2", "hash", "20");
    let spread = |c: &mut Client| -> Vec<Vec<String>> {
        for number in 0..200 {
            let key = format!("key {number}");
            c.push_publish(1, "hash", &key, &Message::plain("m"));
        }
        c.flush().expect("the broker reads");
        // A round trip behind the publishes.
        c.try_qos(1, 0).expect("it is answered");
        let queues = ["q1", "q2", "q3"].into_iter();
        let keys = queues.map(|queue| {
            let all = std::iter::from_fn(|| c.get(1, queue));
            all.map(|delivered| delivered.routing_key).collect()
        });
        keys.collect()
    };
    let before = spread(&mut c);
    assert!(before.iter().all(|keys| keys.len() > 10));
    broker.kill();
    broker.restart();
    let mut c = client(&broker);
    // What was not acknowledged is transient, and gone.
    assert_eq!(spread(&mut c), before);
    // The same from a checkpoint as from the log.
    c.close();
    assert!(broker.terminate().success());
    broker.restart();
    let mut c = client(&broker);
    assert_eq!(spread(&mut c), before);
    c.call::<exchange::DeclareOk>(1, declare("brief", "fanout", false));
    c.publish(1, "brief", "k", &Message::plain("m"));
    c.try_qos(1, 0).expect("it is answered");
    assert!(c.get(1, "q1").is_none(), "its bindings went with it");
}

/// DR-12: a request waits in its queue like any message, and the name it wants its answer under is gone with the requester.
#[test]
fn a_reply_name_does_not_outlive_a_restart() {
    let mut broker = TestBroker::start();
    let mut c = client(&broker);
    c.queue_declare(1, "requests", durable());
    c.confirm_select(1);
    let replies = basic::Consume {
        queue: text("amq.rabbitmq.reply-to"),
        no_ack: true,
        ..basic::Consume::default()
    };
    c.call::<basic::ConsumeOk>(1, replies);
    let request = Message::with("request", |properties| {
        properties
            .set_reply_to(Some(text("amq.rabbitmq.reply-to")))
            .set_delivery_mode(Some(2));
    });
    c.publish(1, "", "requests", &request);
    c.wait_confirms_upto(1, 1);
    broker.kill();
    broker.restart();
    let mut c = client(&broker);
    let request = c.get(1, "requests").expect("it is durable");
    let name = request.message.properties.reply_to().expect("it has one");
    let name = String::from_utf8_lossy(name).into_owned();
    match c.try_queue_declare(1, &name, passive()) {
        Err(Trouble::ChannelClosed(close)) => assert_eq!(close.reply_code, 404),
        other => panic!("{other:?}"),
    }
    let mut c = client(&broker);
    c.publish(1, "", &name, &Message::plain("dropped"));
    c.try_qos(1, 0).expect("nothing is wrong with that");
}
