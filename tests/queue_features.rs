//! What queues promise over a kill -9: the order of priorities, counts of failed deliveries, leases.

mod support;

use stratamq::amqp::field_table::{FieldTable, FieldValue};
use stratamq::amqp::method::{basic, queue};

use support::TestBroker;
use support::raw::{Client, Message, durable};

fn client(broker: &TestBroker) -> Client {
    let mut client = Client::connect(broker.address());
    client.open_channel(1);
    client
}

fn with<const COUNT: usize>(arguments: [(&str, FieldValue); COUNT]) -> queue::Declare {
    let mut table = FieldTable::new();
    for (name, value) in arguments {
        table.set(name, value);
    }
    queue::Declare {
        arguments: table,
        ..durable()
    }
}

/// A persistent message that says its priority.
fn urgent(body: &str, priority: u8) -> Message {
    Message::with(body.as_bytes().to_vec(), |properties| {
        properties.set_delivery_mode(Some(2));
        properties.set_priority(Some(priority));
    })
}

/// Publishes and waits for all confirms.
fn confirmed(client: &mut Client, queue: &str, messages: &[Message]) {
    client.open_channel(2);
    client.confirm_select(2);
    for message in messages {
        client.push_publish(2, "", queue, message);
    }
    client.flush().expect("the broker reads");
    client.wait_confirms_upto(2, messages.len() as u64);
    client.close_channel(2);
}

fn drain(client: &mut Client, queue: &str) -> Vec<String> {
    let mut bodies = Vec::new();
    while let Some(delivered) = client.get(1, queue) {
        client.ack(1, delivered.tag);
        bodies.push(delivered.message.body_text());
    }
    bodies
}

/// PR-3, PR-5: the order of priorities survives kill -9, for what comes afterwards as well.
#[test]
fn priorities_survive_a_killed_broker() {
    let mut broker = TestBroker::builder().arg("--ack-fsync-ms").arg("5").start();
    let mut c = client(&broker);
    let declare = || with([("x-max-priority", FieldValue::SignedInt(5))]);
    c.queue_declare(1, "q", declare());
    let first = [
        urgent("1a", 1),
        urgent("4a", 4),
        urgent("1b", 1),
        urgent("5", 5),
    ];
    confirmed(&mut c, "q", &first);
    for round in 0..2 {
        broker.kill();
        broker.restart();
        c = client(&broker);
        c.queue_declare(1, "q", declare());
        if round == 0 {
            confirmed(
                &mut c,
                "q",
                &[urgent("4b", 4), urgent("0", 0), urgent("1c", 1)],
            );
        }
    }
    assert_eq!(drain(&mut c, "q"), ["5", "4a", "4b", "1a", "1b", "1c", "0"]);
}

/// PR-3: and for a backlog that the index file holds.
#[test]
fn filed_levels_survive_a_killed_broker() {
    let mut broker = TestBroker::builder()
        .arg("--queue-index-min-messages")
        .arg("0")
        .arg("--segment-size")
        .arg("1MiB")
        .start();
    let mut c = client(&broker);
    let declare = || with([("x-max-priority", FieldValue::SignedInt(3))]);
    c.queue_declare(1, "q", declare());
    let body = |level: u8, number: u32| format!("{level}:{number:04}");
    let messages: Vec<Message> = (0..1500)
        .flat_map(|number| [0u8, 3, 1].map(|level| urgent(&body(level, number), level)))
        .collect();
    confirmed(&mut c, "q", &messages);
    std::thread::sleep(std::time::Duration::from_millis(400));
    broker.kill();
    broker.restart();
    c = client(&broker);
    let late = [
        urgent("2:late", 2),
        urgent("0:late", 0),
        urgent("3:late", 3),
    ];
    confirmed(&mut c, "q", &late);
    let level = |level: u8| (0..1500).map(move |number| body(level, number));
    let mut expected: Vec<String> = level(3).collect();
    expected.extend(["3:late".to_owned(), "2:late".to_owned()]);
    expected.extend(level(1));
    expected.extend(level(0));
    expected.push("0:late".to_owned());
    assert_eq!(drain(&mut c, "q"), expected);
}

/// QQ-1, QQ-2, QQ-3: a quorum queue keeps transient messages, and how often they failed.
#[test]
fn counts_of_failures_survive_a_killed_broker() {
    let mut broker = TestBroker::builder().arg("--ack-fsync-ms").arg("5").start();
    let mut c = client(&broker);
    let declare = || {
        with([
            ("x-queue-type", FieldValue::text("quorum")),
            ("x-delivery-limit", FieldValue::SignedInt(2)),
        ])
    };
    c.queue_declare(1, "q", declare());
    c.queue_declare(1, "other", durable());
    confirmed(&mut c, "q", &[Message::plain("transient")]);
    for failed in 0..=2 {
        let got = c.get(1, "q").expect("it is there");
        let count = got.message.properties.header("x-delivery-count");
        assert_eq!(count, (failed > 0).then_some(FieldValue::Long(failed)));
        c.send(
            1,
            basic::Reject {
                delivery_tag: got.tag,
                requeue: true,
            },
        );
        // On stable storage before the broker is killed: a confirm comes behind it.
        confirmed(&mut c, "other", &[Message::persistent("m")]);
        broker.kill();
        broker.restart();
        c = client(&broker);
        c.queue_declare(1, "q", declare());
        c.queue_declare(1, "other", durable());
    }
    assert!(c.get(1, "q").is_none(), "it failed once too often");
}
