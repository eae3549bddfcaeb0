//! What a restart leaves and what a confirm waits for: the rows of the persistence reference, on the real binary.
//!
//! The crash suite (tests/crash_kill.rs, tests/crash_sync.rs) shows the same under load and against the order of system calls; here
//! each row has the smallest case that shows it.

mod support;

use std::time::Duration;

use stratamq::amqp::field_table::{FieldTable, FieldValue};
use stratamq::amqp::method::{basic, exchange, queue};
use support::TestBroker;
use support::raw::{
    Client, Message, Trouble, auto_delete, durable, exclusive, passive, text, transient,
};
use support::status::Status;

/// Syncs that have other reasons than confirms: the mark of an idle second, a checkpoint.
const OTHER_SYNCS_MAX: u64 = 4;

/// Takes everything that is ready and keeps it unacknowledged: bodies, with a star on what is redelivered.
fn ready(client: &mut Client, queue: &str) -> Vec<String> {
    std::iter::from_fn(|| client.get(1, queue))
        .map(|got| {
            let star = if got.is_redelivered { "*" } else { "" };
            got.message.body_text() + star
        })
        .collect()
}

/// The code with which a passive declare is refused; `None` if the queue is there.
fn refusal(broker: &TestBroker, queue: &str) -> Option<u16> {
    let mut client = broker.client(1);
    match client.try_queue_declare(1, queue, passive()) {
        Ok(_) => None,
        Err(Trouble::ChannelClosed(close)) => Some(close.reply_code),
        Err(other) => panic!("{other}"),
    }
}

fn exchange_refusal(broker: &TestBroker, name: &str) -> Option<u16> {
    let declare = exchange::Declare {
        exchange: text(name),
        passive: true,
        ..exchange::Declare::default()
    };
    match broker.client(1).try_call::<exchange::DeclareOk>(1, declare) {
        Ok(_) => None,
        Err(Trouble::ChannelClosed(close)) => Some(close.reply_code),
        Err(other) => panic!("{other}"),
    }
}

/// A broker with some of everything that may survive or may not; the client that holds the unacked messages.
fn furnish(broker: &TestBroker) -> Client {
    let mut c = broker.client(1);
    c.exchange_declare(1, "durable", "fanout", true);
    c.exchange_declare(1, "transient", "fanout", false);
    c.queue_declare(1, "work", durable());
    c.queue_declare(1, "passing", transient());
    c.queue_declare(
        1,
        "mine",
        queue::Declare {
            durable: true,
            ..exclusive()
        },
    );
    c.queue_declare(
        1,
        "leaving",
        queue::Declare {
            durable: true,
            ..auto_delete()
        },
    );
    let lease = FieldTable::new().with("x-expires", FieldValue::Long(600_000));
    c.queue_declare(
        1,
        "leased",
        queue::Declare {
            arguments: lease,
            ..durable()
        },
    );
    c.bind(1, "work", "durable", "");
    c.bind(1, "work", "transient", "");
    c.confirm_select(1);
    c.push_publish(1, "durable", "", &Message::persistent("p0"));
    c.push_publish(1, "", "work", &Message::persistent("p1"));
    c.push_publish(1, "", "work", &Message::plain("no mode"));
    let mode_1 = Message::with("mode 1", |properties| {
        properties.set_delivery_mode(Some(1));
    });
    c.push_publish(1, "", "work", &mode_1);
    c.push_publish(1, "", "work", &Message::persistent("p2"));
    c.push_publish(
        1,
        "",
        "passing",
        &Message::persistent("gone with its queue"),
    );
    c.push_publish(1, "", "work", &Message::persistent(vec![b'3'; 9000]));
    c.push_publish(1, "transient", "", &Message::persistent("p4"));
    c.push_publish(1, "", "work", &Message::persistent("p5"));
    c.flush().expect("the broker reads");
    c.wait_confirms_upto(1, 9);
    c
}

/// Everything that does not depend on how the broker ended.
fn check_topology(broker: &TestBroker) {
    for there in ["work", "leaving", "leased"] {
        assert_eq!(refusal(broker, there), None, "{there}");
    }
    for gone in ["passing", "mine"] {
        assert_eq!(refusal(broker, gone), Some(404), "{gone}");
    }
    assert_eq!(exchange_refusal(broker, "durable"), None);
    assert_eq!(exchange_refusal(broker, "transient"), Some(404));
    // Bindings come and go with what they bind.
    let mut c = broker.client(1);
    c.exchange_declare(1, "transient", "fanout", false);
    c.confirm_select(1);
    c.publish(1, "transient", "", &Message::persistent("nowhere"));
    c.publish(1, "durable", "", &Message::persistent("after"));
    c.wait_confirms_upto(1, 2);
}

fn bodies(of: &[&str]) -> Vec<String> {
    let long = "3".repeat(9000);
    of.iter().map(|body| body.replace("p3", &long)).collect()
}

/// PS-1, PS-2, PS-5, PS-6, AD-2, VD-15, QU-23: a clean stop. What is durable and persistent is there, in order; what was
/// acknowledged is not; only what was unacked is redelivered. We remove transient exchanges, as RabbitMQ 3 did. An exclusive queue
/// that was declared durable is not.
#[test]
fn after_a_clean_stop_what_is_durable_is_there_in_order() {
    let mut broker = TestBroker::start();
    let mut c = furnish(&broker);
    let held: Vec<u64> = (0..3)
        .map(|_| c.get(1, "work").expect("ready").tag)
        .collect();
    // p0 and p1 stay unacked, "no mode" is acknowledged; then p2 is taken and acknowledged.
    c.ack(1, held[2]);
    let mode_1 = c.get(1, "work").expect("mode 1");
    let p2 = c.get(1, "work").expect("p2");
    assert_eq!(p2.message.body_text(), "p2");
    c.ack(1, mode_1.tag);
    c.ack(1, p2.tag);
    c.try_qos(1, 0).expect("acks are taken before the answer");
    assert!(broker.terminate().success(), "{}", broker.log());
    broker.restart();
    check_topology(&broker);
    let left = ready(&mut broker.client(1), "work");
    assert_eq!(left, bodies(&["p0*", "p1*", "p3", "p4", "p5", "after"]));
}

/// PS-1, PS-2, PS-6, TD-1, VD-15: a kill. Nothing that was confirmed is missing, transient messages are gone, the order holds; what
/// may have been delivered says so.
#[test]
fn after_a_kill_what_was_confirmed_is_there_in_order() {
    let mut broker = TestBroker::start();
    let mut c = furnish(&broker);
    c.get(1, "work").expect("p0");
    broker.kill();
    broker.restart();
    check_topology(&broker);
    let left = ready(&mut broker.client(1), "work");
    assert!(left[0].ends_with('*'), "{}", left[0]);
    let plain: Vec<String> = left
        .iter()
        .map(|body| body.trim_end_matches('*').to_owned())
        .collect();
    assert_eq!(
        plain,
        bodies(&["p0", "p1", "p2", "p3", "p4", "p5", "after"])
    );
    assert_eq!(
        left.last().map(String::as_str),
        Some("after"),
        "published since"
    );
}

/// PS-5: a durable auto-delete queue forgets that it ever had a consumer: it goes with the next one.
#[test]
fn a_durable_auto_delete_queue_waits_for_its_next_consumer() {
    let mut broker = TestBroker::start();
    let mut c = broker.client(1);
    c.queue_declare(
        1,
        "leaving",
        queue::Declare {
            durable: true,
            ..auto_delete()
        },
    );
    c.confirm_select(1);
    c.publish(1, "", "leaving", &Message::persistent("m"));
    c.wait_confirm(1);
    c.consume(1, "leaving", "t");
    c.next_delivery(1);
    broker.kill();
    broker.restart();
    assert_eq!(refusal(&broker, "leaving"), None);
    let mut c = broker.client(1);
    c.consume(1, "leaving", "t");
    assert!(c.next_delivery(1).is_redelivered);
    c.try_cancel(1, "t").expect("cancel-ok");
    assert_eq!(refusal(&broker, "leaving"), Some(404));
}

/// PS-3: nothing is promised of what was not confirmed. What is there all the same is a beginning of what was sent, whole.
#[test]
fn what_was_not_confirmed_may_be_missing_but_never_in_the_middle() {
    let mut broker = TestBroker::start();
    let mut c = broker.client(1);
    c.queue_declare(1, "q", durable());
    for number in 0..2000 {
        c.push_publish(
            1,
            "",
            "q",
            &Message::persistent(format!("message {number}")),
        );
    }
    c.flush().expect("the broker reads");
    broker.kill();
    broker.restart();
    let left = ready(&mut broker.client(1), "q");
    let sent: Vec<String> = (0..left.len())
        .map(|number| format!("message {number}"))
        .collect();
    let plain: Vec<&str> = left.iter().map(|body| body.trim_end_matches('*')).collect();
    assert_eq!(plain, sent);
}

/// PS-4, CF-7, CT-2 to CT-5: a confirm waits for the disk only if the message is persistent and a queue of it durable.
#[test]
fn only_persistent_messages_in_durable_queues_wait_for_the_disk() {
    const COUNT: u64 = 30;
    let broker = TestBroker::start();
    let mut c = broker.client(1);
    c.queue_declare(1, "durable", durable());
    c.queue_declare(1, "transient", transient());
    c.confirm_select(1);
    let mut confirmed = 0;
    let mut syncs_of = |queue: &str, message: &Message| {
        let before = Status::of(&broker).syncs();
        for _ in 0..COUNT {
            c.publish(1, "", queue, message);
            c.wait_confirm(1);
            confirmed += 1;
        }
        Status::of(&broker).syncs() - before
    };
    assert!(syncs_of("durable", &Message::plain("m")) <= OTHER_SYNCS_MAX);
    assert!(syncs_of("transient", &Message::persistent("m")) <= OTHER_SYNCS_MAX);
    assert!(syncs_of("durable", &Message::persistent("m")) >= COUNT);
    assert!(syncs_of("durable", &Message::persistent(vec![7; 20_000])) >= COUNT);
    assert_eq!(confirmed, 4 * COUNT);
}

/// CF-8, CT-11: a quorum queue is on disk before it confirms, whatever the delivery mode; we are a majority of one.
#[test]
fn quorum_queues_confirm_nothing_that_is_not_on_disk() {
    const COUNT: u64 = 30;
    let mut broker = TestBroker::start();
    let mut c = broker.client(1);
    let quorum = FieldTable::new().with("x-queue-type", "quorum");
    c.queue_declare(
        1,
        "quorum",
        queue::Declare {
            arguments: quorum,
            ..durable()
        },
    );
    c.confirm_select(1);
    let before = Status::of(&broker).syncs();
    for number in 0..COUNT {
        c.publish(1, "", "quorum", &Message::plain(number.to_string()));
        c.wait_confirm(1);
    }
    assert!(Status::of(&broker).syncs() - before >= COUNT);
    broker.kill();
    broker.restart();
    let left = ready(&mut broker.client(1), "quorum");
    let plain: Vec<&str> = left.iter().map(|body| body.trim_end_matches('*')).collect();
    let sent: Vec<String> = (0..COUNT).map(|number| number.to_string()).collect();
    assert_eq!(plain, sent);
}

/// CF-11, CT-13, PS-8: a publish on an idle broker is synced at once; publishes in flight share their syncs. The publisher sees
/// no difference but the time it takes.
#[test]
fn publishes_in_flight_share_their_syncs() {
    const COUNT: u64 = 2000;
    let broker = TestBroker::start();
    let mut c = broker.client(1);
    c.queue_declare(1, "q", durable());
    c.confirm_select(1);
    let before = Status::of(&broker).syncs();
    for _ in 0..COUNT {
        c.push_publish(1, "", "q", &Message::persistent("m"));
    }
    c.flush().expect("the broker reads");
    c.wait_confirms_upto(1, COUNT);
    let syncs = Status::of(&broker).syncs() - before;
    assert!(syncs < COUNT / 4, "{syncs} syncs");
}

/// CT-7, CT-8: given to a consumer at once and settled before the disk has it, a message is confirmed all the same, once.
#[test]
fn what_is_consumed_before_it_is_on_disk_is_confirmed() {
    const COUNT: u64 = 200;
    let broker = TestBroker::start();
    let mut publisher = broker.client(1);
    for name in ["acked", "no ack"] {
        publisher.queue_declare(1, name, durable());
    }
    publisher.confirm_select(1);
    let mut consumer = broker.client(1);
    consumer.consume(1, "acked", "acked");
    let no_ack = basic::Consume {
        queue: text("no ack"),
        consumer_tag: text("no ack"),
        no_ack: true,
        ..basic::Consume::default()
    };
    consumer.call::<basic::ConsumeOk>(1, no_ack);
    for _ in 0..COUNT / 2 {
        publisher.push_publish(1, "", "acked", &Message::persistent("m"));
        publisher.push_publish(1, "", "no ack", &Message::persistent("m"));
    }
    publisher.flush().expect("the broker reads");
    for _ in 0..COUNT {
        let delivered = consumer.next_delivery(1);
        if delivered.consumer_tag == "acked" {
            consumer.ack(1, delivered.tag);
        }
    }
    publisher.wait_confirms_upto(1, COUNT);
    let more = publisher.try_next_within(1, Duration::from_millis(100));
    assert!(matches!(more, Err(Trouble::Silent)), "{more:?}");
    consumer
        .try_qos(1, 0)
        .expect("acks are taken before the answer");
    assert_eq!(ready(&mut broker.client(1), "acked"), [""; 0]);
}

/// TD-1, TD-2: commit-ok waits for the disk as a confirm does, and what the transaction acknowledged stays acknowledged.
#[test]
fn commit_ok_means_on_disk() {
    let mut broker = TestBroker::start();
    let mut c = broker.client(1);
    c.queue_declare(1, "q", durable());
    c.confirm_select(1);
    c.publish(1, "", "q", &Message::persistent("consumed"));
    c.wait_confirm(1);
    c.open_channel(2);
    c.tx_select(2);
    let taken = c.get(2, "q").expect("it is there");
    let before = Status::of(&broker).syncs();
    for body in ["a", "b"] {
        c.publish(2, "", "q", &Message::persistent(body));
    }
    c.ack(2, taken.tag);
    c.tx_commit(2);
    assert!(Status::of(&broker).syncs() > before);
    c.publish(2, "", "q", &Message::persistent("not committed"));
    broker.kill();
    broker.restart();
    let left = ready(&mut broker.client(1), "q");
    let plain: Vec<&str> = left.iter().map(|body| body.trim_end_matches('*')).collect();
    assert_eq!(plain, ["a", "b"]);
}

/// TX-13: nothing but the end of the channel may follow a commit before its answer. Seen with a disk on which it takes a second.
#[test]
fn a_command_behind_a_pending_commit_is_unexpected() {
    let slow = "strace -f -qq --seccomp-bpf -o /dev/null -e trace=fdatasync -e inject=fdatasync:delay_exit=1000000";
    let words: Vec<&str> = slow.split(' ').collect();
    let broker = TestBroker::builder().wrapper(&words).start();
    let mut c = broker.client(1);
    c.queue_declare(1, "q", durable());
    c.tx_select(1);
    c.publish(1, "", "q", &Message::persistent("m"));
    c.push(1, stratamq::amqp::method::tx::Commit {});
    c.push(1, basic::Qos::default());
    c.flush().expect("the broker reads");
    let close = c.wait_connection_close();
    let told = (close.reply_code, close.reply_text.as_str());
    let expected = "CHANNEL_ERROR - unexpected command while processing 'tx.commit'";
    assert_eq!(told, (504, expected));
    assert_eq!((close.class_id, close.method_id), (60, 10));
}
