//! Work that goes on while there is not a free byte: dead-lettering, expiry, deletion, compaction, transient messages.
//!
//! All of it is on a small tmpfs of its own, see [`SmallDisk`]. What is written then comes out of the reserve.

mod support;

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use stratamq::amqp::field_table::FieldTable;
use stratamq::amqp::method::queue;
use support::TestBroker;
use support::files::log_bytes;
use support::numbered::{self, number_of};
use support::raw::{Client, Message, durable, transient};
use support::small_disk::SmallDisk;
use support::status::Status;
use support::wait::wait_until;

const CHANNEL: u16 = 1;
/// Length of all bodies.
const BODY_LEN: usize = 10_000;

/// A durable queue whose dead letters go to another one.
fn with_dead_letters_to(target: &str) -> queue::Declare {
    queue::Declare {
        arguments: FieldTable::new()
            .with("x-dead-letter-exchange", "")
            .with("x-dead-letter-routing-key", target),
        ..durable()
    }
}

fn push(client: &mut Client, queue: &str, numbers: Range<usize>) {
    numbered::push(client, CHANNEL, queue, numbers, BODY_LEN);
}

/// Publishes messages 0 to `count` and waits for their confirms.
fn publish(broker: &TestBroker, queue: &str, count: usize) {
    let client = &mut broker.client(CHANNEL);
    numbered::publish(client, CHANNEL, queue, count, BODY_LEN);
}

/// Somebody publishes until he is stopped: the broker knows now that the disk is full. How many he had confirmed.
fn publish_until_stopped(broker: &TestBroker, queue: &str) -> u64 {
    let mut client = broker.client(CHANNEL);
    client.queue_declare(CHANNEL, queue, durable());
    client.confirm_select(CHANNEL);
    let mut next = 0;
    wait_until("the publisher is stopped", || {
        push(&mut client, queue, next..next + 20);
        next += 20;
        Status::has_alarm(broker)
    });
    let mut confirmed = 0;
    while let Ok(ack) = client.try_next_confirm_within(CHANNEL, Duration::from_secs(1)) {
        confirmed = ack.delivery_tag;
    }
    confirmed
}

/// How often each message is in the queue; it is empty then.
fn drain(broker: &TestBroker, queue: &str) -> BTreeMap<usize, usize> {
    let mut client = broker.client(CHANNEL);
    let mut found = BTreeMap::new();
    while let Some(got) = client.get(CHANNEL, queue) {
        assert_eq!(got.message.body.len(), BODY_LEN);
        *found.entry(number_of(&got.message.body)).or_default() += 1;
        client.ack(CHANNEL, got.tag);
    }
    found
}

/// Each of messages 0 to `count` is in exactly one of the queues, once.
#[track_caller]
fn check_each_once(broker: &TestBroker, queues: &[&str], count: usize) {
    let mut found: BTreeMap<usize, usize> = BTreeMap::new();
    for queue in queues {
        for (number, times) in drain(broker, queue) {
            *found.entry(number).or_default() += times;
        }
    }
    let expected = (0..count).map(|number| (number, 1));
    assert_eq!(found, expected.collect());
}

#[test]
fn rejected_messages_become_dead_letters_at_zero_bytes_free() {
    let Some(disk) = SmallDisk::mount("64m") else {
        return;
    };
    let mut broker = disk.start_broker();
    let mut client = broker.client(CHANNEL);
    client.queue_declare(CHANNEL, "dead", durable());
    client.queue_declare(CHANNEL, "work", with_dead_letters_to("dead"));
    publish(&broker, "work", 200);
    disk.fill();
    client.consume(CHANNEL, "work", "c");
    for number in 0..200 {
        let delivered = client.next_delivery(CHANNEL);
        assert_eq!(number_of(&delivered.message.body), number);
        if number < 100 {
            client.nack(CHANNEL, delivered.tag, false);
        }
    }
    let mut other = broker.client(CHANNEL);
    wait_until("they are dead letters", || {
        other.message_count(CHANNEL, "dead") == 100
    });
    // In whatever state that is on disk: no message is lost, and none is in both.
    broker.kill();
    broker.restart();
    disk.fill();
    check_each_once(&broker, &["work", "dead"], 200);
}

#[test]
fn messages_expire_at_zero_bytes_free() {
    let Some(disk) = SmallDisk::mount("64m") else {
        return;
    };
    let mut broker = disk.start_broker();
    let mut client = broker.client(CHANNEL);
    let brief = |options: queue::Declare| queue::Declare {
        arguments: options.arguments.with("x-message-ttl", 3_000),
        ..options
    };
    client.queue_declare(CHANNEL, "dead", durable());
    client.queue_declare(CHANNEL, "kept", brief(with_dead_letters_to("dead")));
    client.queue_declare(CHANNEL, "gone", brief(durable()));
    publish(&broker, "kept", 100);
    publish(&broker, "gone", 100);
    disk.fill();
    wait_until("they are dead letters", || {
        client.message_count(CHANNEL, "dead") == 100
    });
    wait_until("the others are gone", || {
        client.message_count(CHANNEL, "gone") == 0
    });
    broker.kill();
    broker.restart();
    disk.fill();
    // Those whose end was not committed expire again.
    let mut client = broker.client(CHANNEL);
    wait_until("they are dead letters again", || {
        client.message_count(CHANNEL, "dead") == 100
    });
    check_each_once(&broker, &["kept", "dead"], 100);
    assert!(drain(&broker, "gone").is_empty());
}

#[test]
fn a_deleted_queue_gives_the_disk_back_and_publishers_go_on() {
    let Some(disk) = SmallDisk::mount("64m") else {
        return;
    };
    let broker = disk.start_broker();
    let mut client = broker.client(CHANNEL);
    client.queue_declare(CHANNEL, "big", durable());
    publish(&broker, "big", 1_500);
    disk.fill();
    let confirmed = publish_until_stopped(&broker, "small");
    assert_eq!(client.queue_delete(CHANNEL, "big"), 1_500);
    wait_until("there is room again", || !Status::has_alarm(&broker));
    let found = drain(&broker, "small");
    assert!(found.len() as u64 >= confirmed, "{found:?}");
    client.queue_declare(CHANNEL, "after", durable());
    publish(&broker, "after", 10);
    check_each_once(&broker, &["after"], 10);
}

/// A message of a long-lived queue is left in each segment, so that none is freed: room comes from moving them, and what
/// that takes comes from the reserve.
#[test]
fn compaction_gives_a_full_disk_back() {
    let Some(disk) = SmallDisk::mount("64m") else {
        return;
    };
    let mut broker = disk.start_broker();
    let mut client = broker.client(CHANNEL);
    client.queue_declare(CHANNEL, "stragglers", durable());
    client.queue_declare(CHANNEL, "crowd", durable());
    client.confirm_select(CHANNEL);
    let mut last = 0;
    for round in 0..30 {
        push(&mut client, "stragglers", round..round + 1);
        push(&mut client, "crowd", 0..99);
        last += 100;
        client.wait_confirms_upto_from(CHANNEL, last - 100, last);
    }
    disk.fill();
    let confirmed = publish_until_stopped(&broker, "late");
    let before = Status::of(&broker);
    assert_eq!(before.counter("/log/compacted_bytes"), 0, "{before:?}");
    assert!(log_bytes(broker.data_dir()) > 28 << 20);
    assert_eq!(client.try_purge(CHANNEL, "crowd").expect("purged"), 2_970);
    wait_until("there is room again", || !Status::has_alarm(&broker));
    let after = Status::of(&broker);
    assert!(after.counter("/log/compacted_bytes") > 0, "{after:?}");
    wait_until("the disk is given back", || {
        log_bytes(broker.data_dir()) < 16 << 20
    });
    broker.kill();
    broker.restart();
    check_each_once(&broker, &["stragglers"], 30);
    assert!(drain(&broker, "late").len() as u64 >= confirmed);
}

#[test]
fn transient_messages_need_no_disk() {
    let Some(disk) = SmallDisk::mount("48m") else {
        return;
    };
    let broker = disk.start_broker();
    let mut client = broker.client(CHANNEL);
    client.queue_declare(CHANNEL, "t", transient());
    disk.fill();
    client.confirm_select(CHANNEL);
    for number in 0..200 {
        client.push_publish(
            CHANNEL,
            "",
            "t",
            &Message::plain(numbered::body(number, BODY_LEN)),
        );
    }
    client.flush().expect("the broker reads");
    client.wait_confirms_upto(CHANNEL, 200);
    check_each_once(&broker, &["t"], 200);
    assert!(!Status::has_alarm(&broker));
}
