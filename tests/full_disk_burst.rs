//! Publishers who send far more at once than was put aside, before anybody has heard that the disk is full: what they sent
//! waits, and nothing else does.
//!
//! On a small tmpfs of its own, see [`SmallDisk`]; its reserve is 2 MiB.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use stratamq::amqp::field_table::FieldTable;
use stratamq::amqp::method::{Method, queue, tx};
use support::TestBroker;
use support::numbered::{self, number_of};
use support::raw::{Client, Message, Trouble, durable};
use support::small_disk::SmallDisk;
use support::status::Status;
use support::wait::wait_until;

const CHANNEL: u16 = 1;
/// Length of bodies, unless it is said otherwise.
const BODY_LEN: usize = 10_000;
/// Queues that a message is copied to.
const FAN_OUT: usize = 100;
/// Said when a commit finds no room, which no publisher can bring about.
const STALLED: &str = "commits wait for room";

fn body(number: usize) -> Vec<u8> {
    numbered::body(number, BODY_LEN)
}

fn publish_confirmed(client: &mut Client, queue: &str, count: usize) {
    numbered::publish(client, CHANNEL, queue, count, BODY_LEN);
}

/// One who sends much at once.
struct Publisher {
    client: Client,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    LargeBodies,
    ManyCopies,
    Transactions,
}

impl Publisher {
    const KINDS: [Kind; 3] = [Kind::LargeBodies, Kind::ManyCopies, Kind::Transactions];
    const LARGE_COUNT: usize = 200;
    const COPIED_COUNT: usize = 2_000;
    const COMMIT_COUNT: usize = 20;
    /// How long the broker may leave what was sent where it is before the publisher gives up sending the rest.
    const SEND_LIMIT: Duration = Duration::from_secs(3);
    /// How long nothing comes from the broker before it is asked why.
    const HEARD_LIMIT: Duration = Duration::from_secs(3);

    fn start(broker: &TestBroker, kind: Kind) -> Self {
        let mut client = broker.client(CHANNEL);
        match kind {
            Kind::LargeBodies => {
                client.confirm_select(CHANNEL);
                for number in 0..Self::LARGE_COUNT {
                    let message = Message::persistent(body(number));
                    client.push_publish(CHANNEL, "", "late", &message);
                }
            }
            Kind::ManyCopies => {
                client.confirm_select(CHANNEL);
                for _ in 0..Self::COPIED_COUNT {
                    client.push_publish(CHANNEL, "amq.fanout", "", &Message::persistent("f"));
                }
            }
            Kind::Transactions => {
                client.tx_select(CHANNEL);
                for _ in 0..Self::COMMIT_COUNT {
                    for number in 0..20 {
                        let message = Message::persistent(body(number));
                        client.push_publish(CHANNEL, "", "late", &message);
                    }
                    client.push(CHANNEL, tx::Commit {});
                }
            }
        }
        client
            .stream()
            .set_write_timeout(Some(Self::SEND_LIMIT))
            .expect("a socket");
        // The broker may stop reading in the middle.
        let _ = client.flush();
        Self { client, kind }
    }

    /// The broker says that the disk is full: at once to whom it makes wait, and to whom it has done everything for, which
    /// depends on the segments that it had spare, with the next message. Answers how many are confirmed for certain.
    #[track_caller]
    fn expect_blocked(&mut self) -> usize {
        let mut confirmed = 0;
        let blocked = match self.client.try_next_within(0, Self::HEARD_LIMIT) {
            Err(Trouble::Silent) => {
                confirmed = self.expect_all_done();
                let message = Message::persistent("one more");
                self.client.publish(CHANNEL, "", "late", &message);
                self.client.next(0)
            }
            heard => heard.expect("connection.blocked"),
        };
        let Method::ConnectionBlocked(blocked) = blocked.method else {
            panic!("not blocked but {blocked:?}");
        };
        assert_eq!(blocked.reason.as_str(), "low on disk");
        confirmed
    }

    /// Nothing that was sent waits; answers how many of them are confirmed.
    #[track_caller]
    fn expect_all_done(&mut self) -> usize {
        let count = match self.kind {
            Kind::LargeBodies => Self::LARGE_COUNT,
            Kind::ManyCopies => Self::COPIED_COUNT,
            Kind::Transactions => {
                for _ in 0..Self::COMMIT_COUNT {
                    let _: tx::CommitOk = self.client.expect(CHANNEL);
                }
                return 0;
            }
        };
        self.client.wait_confirms_upto(CHANNEL, count as u64);
        count
    }
}

/// Six connections, and none of them waits for the others: large bodies, copies for very many queues, transactions.
fn burst(broker: &TestBroker) -> Vec<Publisher> {
    let kinds = Publisher::KINDS.into_iter().cycle().take(6);
    kinds.map(|kind| Publisher::start(broker, kind)).collect()
}

fn numbers_in(client: &mut Client, queue: &str) -> Vec<usize> {
    let mut found = Vec::new();
    while let Some(got) = client.get(CHANNEL, queue) {
        found.push(number_of(&got.message.body));
        client.ack(CHANNEL, got.tag);
    }
    found
}

/// MD-3, MD-4.
#[test]
fn acks_purges_and_deletes_do_not_wait_behind_a_burst_of_publishes() {
    let Some(disk) = SmallDisk::mount("64m") else {
        return;
    };
    let mut broker = disk.start_broker();
    let mut client = broker.client(CHANNEL);
    for queue in ["kept", "purged", "deleted"] {
        client.queue_declare(CHANNEL, queue, durable());
        publish_confirmed(&mut broker.client(CHANNEL), queue, 300);
    }
    client.queue_declare(CHANNEL, "late", durable());
    for number in 0..FAN_OUT {
        let queue = format!("fan {number}");
        client.queue_declare(CHANNEL, &queue, durable());
        client.bind(CHANNEL, &queue, "amq.fanout", "");
    }
    client.consume(CHANNEL, "kept", "c");
    let tags: Vec<u64> = (0..300)
        .map(|_| client.next_delivery(CHANNEL).tag)
        .collect();
    disk.fill();
    let mut publishers = burst(&broker);
    wait_until("publishers are blocked", || Status::has_alarm(&broker));
    // Those too who had sent everything before.
    let confirmed: Vec<usize> = publishers
        .iter_mut()
        .map(Publisher::expect_blocked)
        .collect();
    for tag in tags.iter().take(200) {
        client.ack(CHANNEL, *tag);
    }
    // Both answers come when they are durable, and the acks are before them in the log.
    assert_eq!(client.try_purge(CHANNEL, "purged").expect("purged"), 300);
    assert_eq!(client.queue_delete(CHANNEL, "deleted"), 300);
    client.queue_declare(CHANNEL, "new", durable());
    assert!(!broker.log().contains(STALLED), "{}", broker.log());
    // Whoever was confirmed meanwhile finds his messages after the kill.
    let mut confirmed = confirmed[0] as u64;
    let first = &mut publishers.first_mut().expect("there are six").client;
    while let Ok(ack) = first.try_next_confirm_within(CHANNEL, Duration::from_millis(200)) {
        confirmed = ack.delivery_tag;
    }
    broker.kill();
    broker.restart();
    disk.fill();
    let mut client = broker.client(CHANNEL);
    assert_eq!(client.message_count(CHANNEL, "kept"), 100);
    assert_eq!(client.message_count(CHANNEL, "purged"), 0);
    assert_eq!(client.message_count(CHANNEL, "new"), 0);
    assert!(u64::from(client.message_count(CHANNEL, "late")) >= confirmed);
    assert_eq!(
        numbers_in(&mut client, "kept"),
        (200..300).collect::<Vec<_>>()
    );
}

#[test]
fn what_waits_for_room_is_published_when_there_is_some() {
    let Some(disk) = SmallDisk::mount("64m") else {
        return;
    };
    let broker = disk.start_broker();
    let mut client = broker.client(CHANNEL);
    client.queue_declare(CHANNEL, "late", durable());
    client.queue_declare(CHANNEL, "big", durable());
    publish_confirmed(&mut broker.client(CHANNEL), "big", 1_000);
    disk.fill();
    let mut publisher = broker.client(CHANNEL);
    publisher.confirm_select(CHANNEL);
    for number in 0..400 {
        let message = Message::persistent(body(number));
        publisher.push_publish(CHANNEL, "", "late", &message);
    }
    // The broker may stop reading in the middle, for as long as there is no room.
    publisher
        .stream()
        .set_write_timeout(None)
        .expect("a socket");
    let sending = std::thread::spawn(move || {
        publisher.flush().expect("the broker reads in the end");
        publisher
    });
    wait_until("the publisher is blocked", || Status::has_alarm(&broker));
    assert_eq!(client.queue_delete(CHANNEL, "big"), 1_000);
    let mut publisher = sending.join().expect("all of it is sent");
    publisher.wait_confirms_upto(CHANNEL, 400);
    let found = numbers_in(&mut client, "late");
    assert_eq!(found, (0..400).collect::<Vec<_>>(), "each once, in order");
    assert!(!broker.log().contains(STALLED), "{}", broker.log());
}

/// Far more dead letters than the reserve holds: they wait, each still in its queue, and what frees space does not.
#[test]
fn dead_letters_wait_for_room_and_acks_do_not() {
    const COUNT: usize = 1_500;
    let Some(disk) = SmallDisk::mount("64m") else {
        return;
    };
    let mut broker = disk.start_broker();
    let mut client = broker.client(CHANNEL);
    let with_dead_letters = queue::Declare {
        arguments: FieldTable::new()
            .with("x-dead-letter-exchange", "")
            .with("x-dead-letter-routing-key", "dead"),
        ..durable()
    };
    client.queue_declare(CHANNEL, "dead", durable());
    client.queue_declare(CHANNEL, "work", with_dead_letters);
    client.queue_declare(CHANNEL, "acked", durable());
    publish_confirmed(&mut broker.client(CHANNEL), "work", COUNT);
    publish_confirmed(&mut broker.client(CHANNEL), "acked", 300);
    disk.fill();
    client.consume(CHANNEL, "work", "c");
    for _ in 0..COUNT {
        let tag = client.next_delivery(CHANNEL).tag;
        client.nack(CHANNEL, tag, false);
    }
    let mut other = broker.client(CHANNEL);
    other.consume(CHANNEL, "acked", "c");
    for _ in 0..300 {
        let tag = other.next_delivery(CHANNEL).tag;
        other.ack(CHANNEL, tag);
    }
    // Behind the acks in the log.
    other.queue_declare(CHANNEL, "marker", durable());
    assert!(!broker.log().contains(STALLED), "{}", broker.log());
    broker.kill();
    broker.restart();
    disk.fill();
    let mut client = broker.client(CHANNEL);
    assert_eq!(client.message_count(CHANNEL, "acked"), 0);
    let mut found = numbers_in(&mut client, "work");
    found.extend(numbers_in(&mut client, "dead"));
    let distinct: BTreeSet<usize> = found.iter().copied().collect();
    assert_eq!(distinct.len(), COUNT);
    assert_eq!(found.len(), COUNT, "each once");
}

#[test]
fn a_broker_with_waiting_publishers_can_be_stopped_and_started_on_a_full_disk() {
    let Some(disk) = SmallDisk::mount("48m") else {
        return;
    };
    let mut broker = disk.start_broker();
    let mut client = broker.client(CHANNEL);
    client.queue_declare(CHANNEL, "late", durable());
    client.bind(CHANNEL, "late", "amq.fanout", "");
    publish_confirmed(&mut broker.client(CHANNEL), "late", 300);
    disk.fill();
    let publishers = burst(&broker);
    wait_until("publishers are blocked", || Status::has_alarm(&broker));
    // Again and again, on the disk as it is.
    for _ in 0..3 {
        let status = broker.terminate();
        assert_eq!(status.code(), Some(0), "{}", broker.log());
        broker.restart();
        let mut client = broker.client(CHANNEL);
        assert!(client.message_count(CHANNEL, "late") >= 300);
    }
    drop(publishers);
    disk.give_back();
    let mut client = broker.client(CHANNEL);
    wait_until("the alarm ends", || !Status::has_alarm(&broker));
    let found = numbers_in_order(&mut client, 300);
    assert_eq!(found, (0..300).collect::<Vec<_>>());
}

/// The first messages of `late`.
fn numbers_in_order(client: &mut Client, count: usize) -> Vec<usize> {
    let next = (0..count).map(|_| client.get(CHANNEL, "late").expect("it is there"));
    next.map(|got| number_of(&got.message.body)).collect()
}
