//! What queues promise over a kill -9: the order of priorities, counts of failed deliveries, leases.

mod support;

use std::time::Duration;

use stratamq::amqp::field_table::{FieldTable, FieldValue};
use stratamq::amqp::method::{basic, queue};

use support::TestBroker;
use support::raw::{Client, Message, durable};
use support::wait::{Pace, at_some_pace, wait_until};

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

/// AK-12: a clean stop flags what was unacked and nothing else, on queues with and without priorities. After a crash what
/// may have been delivered is flagged, and what certainly was not is not: that is a deviation.
#[test]
fn only_what_may_have_been_delivered_is_flagged_after_a_restart() {
    let mut broker = TestBroker::start();
    let mut c = client(&broker);
    for (queue, levels) in [("plain", None), ("levels", Some(5))] {
        let declare = || match levels {
            Some(levels) => with([("x-max-priority", FieldValue::SignedInt(levels))]),
            None => durable(),
        };
        c.queue_declare(1, queue, declare());
        let messages = [
            urgent("a", 0),
            urgent("b", 3),
            urgent("c", 0),
            urgent("d", 3),
        ];
        confirmed(&mut c, queue, &messages);
        let first = c.get(1, queue).expect("four are there");
        c.ack(1, first.tag);
        let held = c.get(1, queue).expect("three are there");
        let held = held.message.body_text();
        broker.terminate();
        broker.restart();
        c = client(&broker);
        c.queue_declare(1, queue, declare());
        let mut flagged = Vec::new();
        while let Some(got) = c.get(1, queue) {
            c.ack(1, got.tag);
            if got.is_redelivered {
                flagged.push(got.message.body_text());
            }
        }
        assert_eq!(flagged, [held], "{queue}");
    }
}

/// TT-10: the time a message has left goes on while the broker is down, and comes with it over a kill -9.
#[test]
fn expiry_survives_a_killed_broker() {
    let mut broker = TestBroker::start();
    let mut c = client(&broker);
    c.queue_declare(1, "q", durable());
    let expiring = |body: &str, expiration: &str| {
        Message::with(body.as_bytes().to_vec(), |properties| {
            properties.set_delivery_mode(Some(2));
            properties.set_expiration(Some(support::raw::text(expiration)));
        })
    };
    let messages = [
        expiring("short", "200"),
        expiring("long", "600000"),
        Message::persistent("for ever"),
    ];
    confirmed(&mut c, "q", &messages);
    broker.kill();
    std::thread::sleep(Duration::from_millis(250));
    broker.restart();
    c = client(&broker);
    assert_eq!(drain(&mut c, "q"), ["long", "for ever"]);
}

/// TT-17: the lease of a durable queue begins anew with the broker.
#[test]
fn leases_begin_anew_with_the_broker() {
    let mut broker = TestBroker::start();
    at_some_pace(Duration::from_millis(1500), |lease| {
        let lease_ms = i32::try_from(lease.as_millis()).expect("some seconds");
        let mut c = client(&broker);
        c.queue_declare(
            1,
            "q",
            with([("x-expires", FieldValue::SignedInt(lease_ms))]),
        );
        broker.kill();
        std::thread::sleep(lease + Duration::from_millis(100));
        let begun = support::raw::now();
        broker.restart();
        c = client(&broker);
        let found = c.try_queue_declare(1, "q", support::raw::passive());
        if found.is_err() {
            assert!(begun.elapsed() >= lease, "it has only just begun");
            return Pace::TooSlow;
        }
        drop(c);
        wait_until("the queue goes, since nobody uses it", || {
            // To look whether it is there is to use it: not before it may have gone.
            std::thread::sleep(lease + Duration::from_millis(300));
            let looked = client(&broker).try_queue_declare(1, "q", support::raw::passive());
            looked.is_err()
        });
        Pace::Quick
    });
}

/// AK-19, AK-21, VD-7: off unless it is asked for; then it closes the channel of a classic queue, and what was held goes
/// back.
#[test]
fn an_overdue_acknowledgement_closes_the_channel() {
    let broker = TestBroker::builder()
        .arg("--consumer-timeout-ms")
        .arg("200")
        .start();
    let mut c = client(&broker);
    c.queue_declare(1, "q", durable());
    confirmed(&mut c, "q", &[Message::persistent("m")]);
    c.open_channel(3);
    c.consume(3, "q", "t");
    c.next_delivery(3);
    let close = match c.try_next(3) {
        Err(support::raw::Trouble::ChannelClosed(close)) => close,
        other => panic!("the channel should be closed: {other:?}"),
    };
    assert_eq!(
        (close.reply_code, close.class_id, close.method_id),
        (406, 0, 0)
    );
    assert_eq!(
        close.reply_text.as_str(),
        "PRECONDITION_FAILED - delivery acknowledgement on channel 3 timed out. Timeout value used: 200 ms. This timeout value can be configured, see consumers doc guide to learn more"
    );
    assert!(c.get(1, "q").expect("it went back").is_redelivered);
}

/// AK-20: a consumer of a quorum queue is cancelled, by its own timeout or that of the queue; the channel goes on, the
/// message goes back without a failure, and a late acknowledgement does no harm.
#[test]
fn an_overdue_consumer_of_a_quorum_queue_is_cancelled() {
    let broker = TestBroker::start();
    let mut c = client(&broker);
    let quorum = ("x-queue-type", FieldValue::text("quorum"));
    let timeout = |timeout_ms| ("x-consumer-timeout", FieldValue::SignedInt(timeout_ms));
    c.queue_declare(1, "by-queue", with([quorum.clone(), timeout(200)]));
    c.queue_declare(1, "by-consumer", with([quorum, timeout(600_000)]));
    for queue in ["by-queue", "by-consumer"] {
        confirmed(&mut c, queue, &[Message::persistent("m")]);
        let mut consume = basic::Consume {
            queue: support::raw::text(queue),
            consumer_tag: support::raw::text(queue),
            ..basic::Consume::default()
        };
        if queue == "by-consumer" {
            consume.arguments.set("x-consumer-timeout", 200);
        }
        c.call::<basic::ConsumeOk>(1, consume);
        let held = c.next_delivery(1);
        let cancel = c.expect::<basic::Cancel>(1);
        assert_eq!((cancel.consumer_tag.as_str(), cancel.nowait), (queue, true));
        c.ack(1, held.tag);
        let again = c.get(1, queue).expect("it went back");
        assert!(again.is_redelivered);
        assert_eq!(again.message.properties.header("x-delivery-count"), None);
        c.ack(1, again.tag);
    }
}

/// AK-3, AK-20: a multiple acknowledgement up to a delivery that went back by itself settles the others that it names,
/// and only a second one is a mistake.
#[test]
fn a_multiple_acknowledgement_may_end_with_what_went_back() {
    let broker = TestBroker::start();
    let mut c = client(&broker);
    let quorum = ("x-queue-type", FieldValue::text("quorum"));
    let timeout = ("x-consumer-timeout", FieldValue::SignedInt(200));
    c.queue_declare(1, "patient", with([quorum.clone()]));
    c.queue_declare(1, "strict", with([quorum, timeout]));
    let mut last = 0;
    for queue in ["patient", "strict"] {
        confirmed(&mut c, queue, &[Message::persistent(queue)]);
        c.consume(1, queue, queue);
        last = c.next_delivery(1).tag;
    }
    assert_eq!(last, 2);
    c.expect::<basic::Cancel>(1);
    c.ack_upto(1, last);
    c.ack_upto(1, last);
    c.expect_channel_close(1, 406, "PRECONDITION_FAILED - unknown delivery tag 2");
    c.open_channel(3);
    assert!(c.get(3, "patient").is_none(), "it was acknowledged");
    assert!(c.get(3, "strict").is_some(), "it went back");
}

/// QS-8: no limit of prefetch unless one is configured.
#[test]
fn the_default_of_prefetch_can_be_configured() {
    for (words, expected) in [(&[][..], 3), (&["--default-prefetch", "2"][..], 2)] {
        let builder = words
            .iter()
            .fold(TestBroker::builder(), |builder, word| builder.arg(word));
        let broker = builder.start();
        let mut c = client(&broker);
        c.queue_declare(1, "q", durable());
        c.consume(1, "q", "t");
        let messages = ["a", "b", "c"].map(Message::persistent);
        confirmed(&mut c, "q", &messages);
        for _ in 0..expected {
            c.next_delivery(1);
        }
        let declared = c.queue_declare(1, "q", support::raw::passive());
        assert_eq!(declared.message_count, 3 - expected);
    }
}
