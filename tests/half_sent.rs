//! A client stops reading while much is on its way to it: what it never sees goes back, once, and in order.
//!
//! ```text
//!   queue  [ 0 .. read ][ .. in the socket, the output and the outbox .. ][ .. waits .. 19,999 ]
//!            deliveries    end here: cut | channel.close | basic.cancel
//! ```
//! The broker hands deliveries over in runs, and writes as much of one as the socket takes: it stops anywhere within a run.

mod support;

use support::raw::{Client, durable};
use support::wait::wait_until;
use support::{TestBroker, numbered};

const CHANNEL: u16 = 1;
const QUEUE: &str = "half";
/// More than the socket's buffers take.
const COUNT: usize = 20_000;
const BODY_LEN: usize = 1_000;

fn waiting(watcher: &mut Client) -> usize {
    let count = watcher.message_count(CHANNEL, QUEUE);
    usize::try_from(count).expect("a count")
}

/// A broker with the messages, a client that has read `read_count` of them and stopped while others are on their way, and one that
/// looks at the queue.
#[track_caller]
fn scene(read_count: usize) -> (TestBroker, Client, Client) {
    let broker = TestBroker::start();
    let mut watcher = broker.client(CHANNEL);
    watcher.queue_declare(CHANNEL, QUEUE, durable());
    numbered::publish(&mut watcher, CHANNEL, QUEUE, COUNT, BODY_LEN);
    let mut reader = broker.client(CHANNEL);
    reader.consume(CHANNEL, QUEUE, "c");
    assert_eq!(
        read(&mut reader, read_count),
        (0..read_count).collect::<Vec<_>>()
    );
    let mut before = COUNT;
    wait_until("no more goes to a client that does not read", || {
        let now = waiting(&mut watcher);
        let is_still = now == std::mem::replace(&mut before, now);
        is_still && now < COUNT
    });
    assert!(
        before > 0,
        "all of it fits between the broker and the client"
    );
    (broker, reader, watcher)
}

/// Numbers of the next deliveries.
#[track_caller]
fn read(client: &mut Client, count: usize) -> Vec<usize> {
    let mut deliveries = (0..count).map(|_| client.next_delivery(CHANNEL));
    let numbers = deliveries.by_ref();
    numbers
        .map(|one| numbered::number_of(&one.message.body))
        .collect()
}

/// All messages are there, in their order, each once.
#[track_caller]
fn check_all_are_back(broker: &TestBroker, watcher: &mut Client) {
    wait_until("all of it is back", || waiting(watcher) == COUNT);
    let mut client = broker.client(CHANNEL);
    client.consume(CHANNEL, QUEUE, "again");
    assert!(read(&mut client, COUNT).into_iter().eq(0..COUNT));
    client.ack_upto(CHANNEL, COUNT as u64);
    client.close_channel(CHANNEL);
    assert_eq!(waiting(watcher), 0);
}

#[test]
fn all_is_back_when_the_connection_is_cut() {
    for read_count in [0, 1_000] {
        let (broker, reader, mut watcher) = scene(read_count);
        drop(reader);
        check_all_are_back(&broker, &mut watcher);
    }
}

#[test]
fn all_is_back_when_the_channel_is_closed() {
    let (broker, mut reader, mut watcher) = scene(1_000);
    reader.close_channel(CHANNEL);
    check_all_are_back(&broker, &mut watcher);
}

#[test]
fn what_was_not_sent_is_back_when_the_consumer_is_cancelled() {
    let (broker, mut reader, mut watcher) = scene(1_000);
    reader.try_cancel(CHANNEL, "c").expect("cancelled");
    let not_sent = waiting(&mut watcher);
    let sent = COUNT - not_sent;
    assert!(read(&mut reader, sent - 1_000).into_iter().eq(1_000..sent));
    let mut other = broker.client(CHANNEL);
    other.consume(CHANNEL, QUEUE, "other");
    assert!(read(&mut other, not_sent).into_iter().eq(sent..COUNT));
    drop(other);
    reader.close_channel(CHANNEL);
    check_all_are_back(&broker, &mut watcher);
}
