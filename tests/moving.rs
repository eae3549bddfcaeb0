//! Records that compaction moves under a queue that is in use: held, in memory and in the index file alike.
//!
//! ```text
//!   round  1     2     3   ..                  each round is a segment: a few messages that stay, a crowd that goes
//!   kept   [k..] [k..] [k..]   held | in memory | filed        --compaction--> cold segments
//!   crowd  [xxx] [xxx] [xxx]   purged
//! ```
//! Meanwhile messages are acked, requeued, taken and published. Then the broker is killed: before the checkpoint that
//! names the new places, or after it.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use support::TestBroker;
use support::files::verify;
use support::raw::{Client, Message, durable, now, passive};
use support::status::Status;

const CHANNEL: u16 = 1;
const KEPT: &str = "kept";
const CROWD: &str = "crowd";
const ROUNDS: u32 = 24;
/// Messages of a round that stay.
const KEPT_COUNT: u64 = 60;
/// Messages of a round that go, a segment full.
const CROWD_COUNT: u64 = 100;
/// Held by a consumer all the time.
const HELD: u16 = 40;
/// Checkpoints that come by time come every 30 seconds, or 50 times as long as the last one took.
const PATIENCE: Duration = Duration::from_secs(300);

fn body(number: u64) -> Vec<u8> {
    let mut body = format!("{number:08} ").into_bytes();
    body.resize(200, b'.');
    body
}

fn number_of(body: &[u8]) -> u64 {
    let text = body
        .get(..8)
        .and_then(|head| std::str::from_utf8(head).ok());
    let number = text.and_then(|text| text.parse().ok());
    let number = number.unwrap_or_else(|| panic!("not a body: {body:?}"));
    assert_eq!(body, self::body(number), "message {number} is altered");
    number
}

/// Publishes with confirms.
struct Publisher {
    client: Client,
    confirmed: u64,
    next: u64,
}

impl Publisher {
    fn new(broker: &TestBroker) -> Self {
        let mut client = broker.client(CHANNEL);
        client.queue_declare(CHANNEL, KEPT, durable());
        client.queue_declare(CHANNEL, CROWD, durable());
        client.confirm_select(CHANNEL);
        Self {
            client,
            confirmed: 0,
            next: 0,
        }
    }

    fn publish(&mut self, queue: &str, bodies: impl Iterator<Item = Vec<u8>>) {
        let before = self.confirmed;
        for body in bodies {
            let message = Message::persistent(body);
            self.client.push_publish(CHANNEL, "", queue, &message);
            self.confirmed += 1;
        }
        self.client.flush().expect("the broker reads");
        self.client
            .wait_confirms_upto_from(CHANNEL, before, self.confirmed);
    }

    fn keep(&mut self, count: u64) {
        let first = self.next;
        self.next += count;
        self.publish(KEPT, (first..first + count).map(body));
    }

    /// One segment.
    fn round(&mut self) {
        self.keep(KEPT_COUNT);
        let crowd = (0..CROWD_COUNT).map(|_| vec![b'x'; 10_000]);
        self.publish(CROWD, crowd);
        self.client.try_purge(CHANNEL, CROWD).expect("purged");
    }
}

/// What the kill finds.
#[derive(Clone, Copy, PartialEq)]
enum Moment {
    /// Records were copied and the queue was told; no checkpoint names the copies, most likely.
    Copied,
    /// The segments that the records came from are gone.
    Freed,
}

fn has_come(broker: &TestBroker, moment: Moment) -> bool {
    let status = Status::of(broker);
    let is_copied = status.counter("/log/compacted_bytes") > 0;
    match moment {
        Moment::Copied => is_copied,
        Moment::Freed => is_copied && status.counter("/log/segments") <= u64::from(ROUNDS) / 3,
    }
}

/// Acks reach the disk within the limit that `--ack-fsync-ms` sets; then nothing is on its way.
fn wait_for_acks(broker: &TestBroker) {
    Status::wait_for(broker, "acks are durable", |status| {
        status.counter("/log/undurable_bytes") == 0
    });
}

/// Takes all there is, in order, and acks nothing.
#[track_caller]
fn look(broker: &TestBroker, expected: &BTreeSet<u64>) {
    let mut client = broker.client(CHANNEL);
    client.consume(CHANNEL, KEPT, "look");
    for number in expected {
        let delivered = client.next_delivery(CHANNEL);
        assert_eq!(number_of(&delivered.message.body), *number);
    }
    let left = client.queue_declare(CHANNEL, KEPT, passive());
    assert_eq!(left.message_count, 0, "more than was published");
    client.close();
}

/// Moves records under a queue in use until the moment comes, kills the broker, and compares.
#[track_caller]
fn check(moment: Moment, index_flag: &str) {
    let mut broker = TestBroker::builder()
        .arg("--segment-size=1MiB")
        .arg(index_flag)
        .start();
    let mut publisher = Publisher::new(&broker);
    publisher.keep(u64::from(HELD));
    let mut holder = broker.client(CHANNEL);
    holder.try_qos(CHANNEL, HELD).expect("a prefetch");
    holder.consume(CHANNEL, KEPT, "holder");
    let mut held: Vec<(u64, u64)> = (0..HELD)
        .map(|_| {
            let delivered = holder.next_delivery(CHANNEL);
            (number_of(&delivered.message.body), delivered.tag)
        })
        .collect();
    (0..ROUNDS).for_each(|_| publisher.round());
    let mut gone = BTreeSet::new();
    let mut taker = broker.client(CHANNEL);
    let begun = now();
    while !has_come(&broker, moment) {
        assert!(begun.elapsed() < PATIENCE, "compaction does not come");
        publisher.keep(3);
        // One goes back to its place, one goes for good, from the head and from what is held.
        let first = taker.get(CHANNEL, KEPT).expect("there are more");
        taker.nack(CHANNEL, first.tag, true);
        let again = taker.get(CHANNEL, KEPT).expect("it is back");
        assert_eq!(again.message.body, first.message.body);
        taker.ack(CHANNEL, again.tag);
        gone.insert(number_of(&again.message.body));
        if held.len() > 4 {
            let (number, tag) = held.swap_remove(held.len() / 2);
            holder.ack(CHANNEL, tag);
            gone.insert(number);
            let delivered = holder.next_delivery(CHANNEL);
            held.push((number_of(&delivered.message.body), delivered.tag));
        }
    }
    // Half of what is held goes back before the kill, the rest by the kill.
    for (_, tag) in held.split_off(held.len() / 2) {
        holder.nack(CHANNEL, tag, true);
    }
    let expected: BTreeSet<u64> = (0..publisher.next).filter(|n| !gone.contains(n)).collect();
    // The broker has read them all.
    for client in [&mut holder, &mut taker] {
        client.message_count(CHANNEL, KEPT);
    }
    wait_for_acks(&broker);
    broker.kill();
    verify(broker.data_dir());
    broker.restart();
    look(&broker, &expected);
    // What a clean stop writes says the same.
    assert!(broker.terminate().success());
    verify(broker.data_dir());
    broker.restart();
    look(&broker, &expected);
    let status = Status::of(&broker);
    assert_eq!(status.counter("/messages/quarantined"), 0);
}

/// Proves I28.
#[test]
fn messages_that_move_are_there_once_when_the_checkpoint_does_not_name_them() {
    check(Moment::Copied, "--queue-index-min-messages=1024");
    check(Moment::Copied, "--queue-index-min-messages=0");
}

/// Proves I26, I28.
#[test]
fn messages_that_move_are_there_once_when_their_old_segments_are_gone() {
    check(Moment::Freed, "--queue-index-min-messages=1024");
    check(Moment::Freed, "--queue-index-min-messages=0");
}
