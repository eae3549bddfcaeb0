//! Space on a real file system: a disk without a free byte, and messages that must not hold more of it than they need.

mod support;

use std::ops::Range;
use std::time::Duration;

use stratamq::amqp::method::connection;
use support::TestBroker;
use support::files::{log_bytes, verify};
use support::numbered::{self, body, number_of};
use support::raw::{Client, Message, Trouble, durable};
use support::small_disk::SmallDisk;
use support::status::Status;
use support::wait::wait_until;

const CHANNEL: u16 = 1;
const PAUSE: Duration = Duration::from_millis(200);

/// Length of bodies, unless it is said otherwise.
const BODY_LEN: usize = 10_000;
/// Length of messages that stay while others go.
const STRAGGLER_LEN: usize = 40_000;

fn push(client: &mut Client, queue: &str, numbers: Range<usize>) {
    numbered::push(client, CHANNEL, queue, numbers, BODY_LEN);
}

/// MD-4: consumers go on, which is how an alarm ends.
#[test]
fn at_zero_bytes_free_the_broker_starts_delivers_and_takes_acks() {
    let Some(disk) = SmallDisk::mount("64m") else {
        return;
    };
    let mut broker = disk.start_broker();
    let mut client = broker.client(CHANNEL);
    for queue in ["kept", "purged", "deleted"] {
        client.queue_declare(CHANNEL, queue, durable());
    }
    client.confirm_select(CHANNEL);
    push(&mut client, "kept", 0..600);
    push(&mut client, "purged", 0..100);
    push(&mut client, "deleted", 0..100);
    client.wait_confirms_upto(CHANNEL, 800);
    disk.fill();
    // Somebody does not stop publishing. What is confirmed must stay.
    push(&mut client, "kept", 600..800);
    let mut confirmed = 800;
    while let Ok(ack) = client.try_next_confirm_within(CHANNEL, Duration::from_secs(2)) {
        confirmed = ack.delivery_tag;
    }
    println!("confirmed on the reserve: {}", confirmed - 800);
    drop(client);
    broker.kill();
    broker.restart();
    disk.fill();

    let mut client = broker.client(CHANNEL);
    client.consume(CHANNEL, "kept", "c");
    let certain = 600 + usize::try_from(confirmed - 800).expect("a count");
    let mut found = Vec::new();
    for _ in 0..certain {
        let delivered = client.next_delivery(CHANNEL);
        found.push(number_of(&delivered.message.body));
        client.ack(CHANNEL, delivered.tag);
    }
    assert!(found.into_iter().eq(0..certain), "each once, in order");
    assert_eq!(client.try_purge(CHANNEL, "purged").expect("purged"), 100);
    assert_eq!(client.queue_delete(CHANNEL, "deleted"), 100);
    drop(client);
    // Once more, with what is left.
    broker.kill();
    broker.restart();
    disk.give_back();
    wait_until("the alarm ends", || !Status::has_alarm(&broker));
    let mut client = broker.client(CHANNEL);
    client.confirm_select(CHANNEL);
    push(&mut client, "kept", 0..1);
    client.wait_confirms_upto(CHANNEL, 1);
    assert!(client.get(CHANNEL, "purged").is_none());
}

/// MD-3, AL-2: blocked when it publishes, and nothing of what it sent is lost.
#[test]
fn a_full_disk_blocks_publishers_with_a_reason_and_they_go_on_by_themselves() {
    let Some(disk) = SmallDisk::mount("48m") else {
        return;
    };
    let broker = disk.start_broker();
    let mut client = broker.client(CHANNEL);
    client.queue_declare(CHANNEL, "q", durable());
    client.confirm_select(CHANNEL);
    push(&mut client, "q", 0..300);
    client.wait_confirms_upto(CHANNEL, 300);
    disk.fill();
    let mut sent = 300;
    wait_until("the publisher is blocked", || {
        push(&mut client, "q", sent..sent + 20);
        sent += 20;
        Status::has_alarm(&broker)
    });
    // Whoever publishes now is told.
    push(&mut client, "q", sent..sent + 1);
    sent += 1;
    let blocked: connection::Blocked = client.expect(0);
    assert_eq!(blocked.reason.as_str(), "low on disk");
    disk.give_back();
    let _: connection::Unblocked = client.expect(0);
    wait_until("the alarm ends", || !Status::has_alarm(&broker));
    // Those that waited are confirmed without being sent again.
    client.wait_confirms_upto_from(CHANNEL, 300, u64::try_from(sent).expect("a count"));
    match client.try_next_confirm_within(CHANNEL, PAUSE) {
        Err(Trouble::Silent) => {}
        other => panic!("more confirms than messages: {other:?}"),
    }
}

#[test]
fn one_unacked_message_in_each_segment_does_not_hold_the_disk() {
    hold_one_message_in_each_segment("--queue-index-min-messages=1024");
}

/// The positions of the messages are in index files only.
#[test]
fn one_filed_message_in_each_segment_does_not_hold_the_disk() {
    hold_one_message_in_each_segment("--queue-index-min-messages=0");
}

/// Publishes one message that stays, and a segment full of those that do not; so many times.
fn leave_stragglers(client: &mut Client, mut publish: impl FnMut(&mut Client, usize)) {
    client.confirm_select(CHANNEL);
    for round in 0..40 {
        publish(client, round);
        push(client, "crowd", 0..100);
        let confirmed = 101 * round as u64;
        client.wait_confirms_upto_from(CHANNEL, confirmed, confirmed + 101);
        client.try_purge(CHANNEL, "crowd").expect("purged");
    }
}

/// Queues that hold each message: by refs, four fifths of a segment are alive.
const FAN_OUT: usize = 20;

#[test]
fn one_message_of_twenty_queues_in_each_segment_does_not_hold_the_disk() {
    let broker = TestBroker::builder().arg("--segment-size=1MiB").start();
    let mut client = broker.client(CHANNEL);
    client.exchange_declare(CHANNEL, "all", "fanout", true);
    client.queue_declare(CHANNEL, "crowd", durable());
    for number in 0..FAN_OUT {
        let queue = format!("q{number}");
        client.queue_declare(CHANNEL, &queue, durable());
        client.bind(CHANNEL, &queue, "all", "");
    }
    leave_stragglers(&mut client, |client, round| {
        let straggler = Message::persistent(body(round, STRAGGLER_LEN));
        client.publish(CHANNEL, "all", "", &straggler);
    });
    // 1.6 MB are alive: four times that, and the constant of the other tests.
    wait_until("the disk is given back", || {
        push(&mut client, "crowd", 0..1);
        log_bytes(broker.data_dir()) <= (16 << 20) + 4 * 1_600_000
    });
    for number in [0, FAN_OUT - 1] {
        let mut consumer = broker.client(CHANNEL);
        consumer.consume(CHANNEL, &format!("q{number}"), "c");
        for round in 0..40 {
            let delivered = consumer.next_delivery(CHANNEL);
            assert_eq!(delivered.message.body, body(round, STRAGGLER_LEN));
        }
    }
}

#[track_caller]
fn hold_one_message_in_each_segment(index_flag: &str) {
    let mut broker = TestBroker::builder()
        .arg("--segment-size=1MiB")
        .arg(index_flag)
        .start();
    let mut client = broker.client(CHANNEL);
    client.queue_declare(CHANNEL, "stragglers", durable());
    client.queue_declare(CHANNEL, "crowd", durable());
    leave_stragglers(&mut client, |client, round| {
        numbered::push(client, CHANNEL, "stragglers", round..round + 1, 500);
    });
    // 20 KiB are alive. Spare, prepared and open segments, and the cold one, are the constant.
    wait_until("the disk is given back", || {
        push(&mut client, "crowd", 0..1);
        log_bytes(broker.data_dir()) <= 16 << 20
    });
    let status = Status::of(&broker);
    assert!(status.counter("/log/compacted_bytes") > 0, "{status:?}");
    broker.kill();
    verify(broker.data_dir());
    broker.restart();
    let mut consumer = broker.client(CHANNEL);
    consumer.consume(CHANNEL, "stragglers", "c");
    for round in 0..40 {
        let delivered = consumer.next_delivery(CHANNEL);
        assert_eq!(number_of(&delivered.message.body), round);
    }
}
