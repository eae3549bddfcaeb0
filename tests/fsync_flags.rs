//! What the commit flags do, seen in the counters of `stratamq status`.
//!
//! Bounds hold on a slow machine: a slow one syncs less often and confirms later, never the other way round.

mod support;

use std::time::Duration;

use support::raw::{Client, Message, READ_LIMIT, Trouble, durable, now};
use support::status::Status;
use support::{Builder, TestBroker};

const CHANNEL: u16 = 1;
const QUEUE: &str = "flags";
/// Syncs that have other reasons than confirms: the mark of an idle second, a checkpoint.
const OTHER_SYNCS_MAX: u64 = 4;

fn start(arguments: &[&str]) -> (TestBroker, Client) {
    let builder = arguments.iter().fold(TestBroker::builder(), Builder::arg);
    let broker = builder.start();
    let mut client = Client::connect(broker.address());
    client.open_channel(CHANNEL);
    client.queue_declare(CHANNEL, QUEUE, durable());
    client.confirm_select(CHANNEL);
    (broker, client)
}

/// Publishes and waits for the confirm, one after the other.
fn publish_each(client: &mut Client, count: usize, body: &[u8]) {
    for _ in 0..count {
        client.publish(CHANNEL, "", QUEUE, &Message::persistent(body.to_vec()));
        client.wait_confirm(CHANNEL);
    }
}

/// Publishes at once; the confirms are still to come.
fn push_many(client: &mut Client, count: usize, length: usize) {
    for _ in 0..count {
        client.push_publish(CHANNEL, "", QUEUE, &Message::persistent(vec![7; length]));
    }
    client.flush().expect("the broker reads");
}

/// CF-11: an idle queue does not wait for company.
#[test]
fn always_syncs_for_every_confirm_that_is_waited_for() {
    let (broker, mut client) = start(&["--fsync=always"]);
    let before = Status::of(&broker);
    publish_each(&mut client, 20, b"m");
    let after = Status::of(&broker);
    assert!(after.syncs() - before.syncs() >= 20, "{before:?} {after:?}");
    assert!(
        after.commits() - before.commits() >= 20,
        "{before:?} {after:?}"
    );
}

#[test]
fn interval_syncs_at_most_so_often_under_load() {
    const LOAD: Duration = Duration::from_millis(1500);
    let (broker, mut client) = start(&["--fsync=interval", "--fsync-interval-ms=50"]);
    let began = now();
    let before = Status::of(&broker);
    let mut confirmed = 0_u64;
    while now() - began < LOAD {
        push_many(&mut client, 20, 100);
        confirmed += 20;
        client.wait_confirms_upto_from(CHANNEL, confirmed - 20, confirmed);
    }
    let after = Status::of(&broker);
    let syncs = after.syncs() - before.syncs();
    // 20 a second by the flag; the promise is 25. Time is taken around both looks at the counter.
    let millis = u64::try_from((now() - began).as_millis()).expect("a short test");
    let allowed = millis * 25 / 1000 + OTHER_SYNCS_MAX;
    assert!(
        syncs <= allowed,
        "{syncs} syncs in {millis} ms, {allowed} allowed"
    );
    assert!(syncs >= 1, "confirms came, so something was synced");
}

#[test]
fn never_confirms_without_a_sync() {
    let (broker, mut client) = start(&["--fsync=never"]);
    let before = Status::of(&broker);
    publish_each(&mut client, 50, b"m");
    let after = Status::of(&broker);
    assert!(
        after.syncs() - before.syncs() <= OTHER_SYNCS_MAX,
        "{before:?} {after:?}"
    );
    assert!(
        after.commits() - before.commits() >= 50,
        "{before:?} {after:?}"
    );
}

#[test]
fn commit_delay_holds_commits_open() {
    const DELAY: Duration = Duration::from_millis(300);
    let (broker, mut client) = start(&["--commit-delay-us=300000"]);
    let began = now();
    publish_each(&mut client, 1, b"m");
    assert!(now() - began >= DELAY, "held open for {DELAY:?}");
    // What arrives meanwhile goes into the same commit: ten writes by ten connections, one commit or two.
    let before = Status::of(&broker);
    let mut clients: Vec<Client> = (0..10)
        .map(|_| {
            let mut client = Client::connect(broker.address());
            client.open_channel(CHANNEL);
            client.confirm_select(CHANNEL);
            client
        })
        .collect();
    let began = now();
    for client in &mut clients {
        client.publish(CHANNEL, "", QUEUE, &Message::persistent("m"));
    }
    let took = now() - began;
    for client in &mut clients {
        client.wait_confirm(CHANNEL);
    }
    let after = Status::of(&broker);
    // On a machine so slow that publishing takes longer than the delay more commits are right.
    let delays = u64::try_from(took.as_millis() / DELAY.as_millis()).expect("a short test");
    let commits = after.commits() - before.commits();
    assert!(
        commits <= 2 + delays + OTHER_SYNCS_MAX,
        "{commits} commits for ten messages at once"
    );
}

#[test]
fn commit_max_bytes_ends_a_held_commit() {
    const MESSAGES: usize = 64;
    const BODY_BYTES: usize = 3000;
    // Without the cap all would be one commit, a second later.
    let arguments = ["--commit-delay-us=1000000", "--commit-max-bytes=16KiB"];
    let (broker, mut client) = start(&arguments);
    let before = Status::of(&broker);
    push_many(&mut client, MESSAGES, BODY_BYTES);
    client.wait_confirms_upto(CHANNEL, 64);
    let after = Status::of(&broker);
    let commits = after.commits() - before.commits();
    // Soft: what one socket read brought is pushed as a whole. One commit for all would ignore the cap.
    assert!(
        commits >= 3,
        "{commits} commits for {} bytes",
        MESSAGES * BODY_BYTES
    );
}

/// Leaves some messages unacknowledged in the client's hands, and the broker idle; their delivery tags.
fn hold_messages(client: &mut Client, count: usize) -> Vec<u64> {
    publish_each(client, count, b"m");
    client.consume(CHANNEL, QUEUE, "c");
    (0..count)
        .map(|_| client.next_delivery(CHANNEL).tag)
        .collect()
}

/// AD-1: nobody waits for an ack; it is written with what comes next, or by itself within `--ack-fsync-ms`.
#[test]
fn acks_alone_are_synced_late_or_soon_as_ack_fsync_ms_says() {
    // Late: far beyond the end of the test.
    let (broker, mut client) = start(&["--ack-fsync-ms=60000"]);
    let tags = hold_messages(&mut client, 20);
    let before = Status::of(&broker);
    for tag in &tags {
        client.ack(CHANNEL, *tag);
        client.try_qos(CHANNEL, 0).expect("the broker answers");
    }
    let after = Status::of(&broker);
    let syncs = after.syncs() - before.syncs();
    assert!(syncs <= OTHER_SYNCS_MAX, "{syncs} syncs for acks alone");
    // Something that is waited for takes the acks along.
    publish_each(&mut client, 1, b"m");
    assert!(Status::of(&broker).syncs() > before.syncs());

    // Soon: nobody waits, and yet it is synced.
    let (broker, mut client) = start(&["--ack-fsync-ms=10"]);
    for tag in hold_messages(&mut client, 5) {
        let before = Status::of(&broker).syncs();
        client.ack(CHANNEL, tag);
        let deadline = now() + READ_LIMIT;
        while Status::of(&broker).syncs() == before {
            assert!(now() < deadline, "an ack alone was not synced");
        }
    }
}

#[test]
fn segment_size_says_when_the_next_segment_begins() {
    let segments = |arguments: &[&str]| {
        let (broker, mut client) = start(arguments);
        for _ in 0..6 {
            push_many(&mut client, 10, 100_000);
        }
        client.wait_confirms_upto(CHANNEL, 60);
        let counted = Status::of(&broker).counter("/log/segments");
        let log = std::fs::read_dir(broker.data_dir().join("log")).expect("the log is a directory");
        (counted, log.count())
    };
    let (counted, files) = segments(&["--segment-size=1MiB"]);
    assert!(
        counted >= 5 && files >= 5,
        "6 MB in {counted} segments, {files} files"
    );
    let (counted, files) = segments(&[]);
    assert!(
        counted <= 2 && files <= 2,
        "6 MB in {counted} segments, {files} files"
    );
}

#[test]
fn confirms_wait_for_the_interval() {
    // The queue's declaration was just synced, so the next sync is due in five seconds. Only a machine that takes that long for two
    // requests sees a confirm in the first 0.3 s; it cannot prove anything then.
    let began = now();
    let (_broker, mut client) = start(&["--fsync=interval", "--fsync-interval-ms=5000"]);
    if now() - began > Duration::from_secs(4) {
        return;
    }
    client.publish(CHANNEL, "", QUEUE, &Message::persistent("m"));
    match client.try_next_confirm_within(CHANNEL, Duration::from_millis(300)) {
        Err(Trouble::Silent) => {}
        other => panic!("a confirm long before the interval is over: {other:?}"),
    }
}
