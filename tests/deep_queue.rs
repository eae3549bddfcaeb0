//! A queue deeper than what the broker keeps in memory, over the wire and over restarts.

mod support;

use stratamq::amqp::field_table::FieldTable;
use stratamq::amqp::method::{basic, queue};
use support::TestBroker;
use support::raw::{Client, Message, durable, passive, text};
use support::status::Status;
use support::wait::wait_until;

const CHANNEL: u16 = 1;
const QUEUE: &str = "deep";
/// Messages of the backlog.
const COUNT: u64 = 100_000;
/// What they may cost in memory after a start.
const RSS_MAX_BYTES: u64 = 3 << 20;
/// Published before the confirms are read.
const BURST: u64 = 5_000;
/// Taken and acknowledged before the broker is killed.
const TAKEN: u64 = 30_000;

/// Publishes `0`, `1`, .. and waits for all confirms.
fn fill(broker: &TestBroker, count: u64) {
    let mut client = broker.client(CHANNEL);
    client.queue_declare(CHANNEL, QUEUE, durable());
    client.confirm_select(CHANNEL);
    for first in (0..count).step_by(usize::try_from(BURST).expect("small")) {
        let last = (first + BURST).min(count);
        for at in first..last {
            client.push_publish(CHANNEL, "", QUEUE, &Message::persistent(at.to_string()));
        }
        client.flush().expect("the broker reads");
        client.wait_confirms_upto_from(CHANNEL, first, last);
    }
    client.close();
}

/// The number in the next message, and its tag.
fn take(client: &mut Client) -> (u64, u64) {
    let delivered = client.next_delivery(CHANNEL);
    let number = delivered.message.body_text().parse();
    (number.expect("what was published"), delivered.tag)
}

fn drain(client: &mut Client, from: u64, upto: u64) {
    for at in from..upto {
        let (number, tag) = take(client);
        assert_eq!(number, at);
        if at % 1000 == 999 || at + 1 == upto {
            client.ack_upto(CHANNEL, tag);
        }
    }
}

/// Proves I37.
#[test]
fn deep_queue_is_drained_in_order_over_restarts_and_its_entries_are_on_disk() {
    let mut broker = TestBroker::start();
    let empty_bytes = Status::of(&broker).counter("/memory/rss_bytes");
    fill(&broker, COUNT);
    broker.terminate();
    broker.restart();
    let status = Status::of(&broker);
    // What the process takes for all of it, the code that it had not touched before included: less than 40 bytes a
    // message, which an entry in memory takes without its content.
    let more_bytes = status
        .counter("/memory/rss_bytes")
        .saturating_sub(empty_bytes);
    assert!(
        more_bytes <= RSS_MAX_BYTES,
        "{more_bytes} bytes for {COUNT} messages"
    );
    assert!(
        status.counter("/index/filed_runs") >= COUNT / 256 - 1,
        "{status:?}"
    );
    assert!(status.counter("/index/filed_bytes") >= (COUNT / 256 - 1) * 4096);
    assert!(
        status.counter("/index/memory_bytes") <= 2 * 256 * 40,
        "{status:?}"
    );
    assert_eq!(status.counter("/queues/0/ready"), COUNT);

    let mut client = broker.client(CHANNEL);
    client.try_qos(CHANNEL, 2000).expect("qos");
    client.consume(CHANNEL, QUEUE, "c");
    drain(&mut client, 0, TAKEN);
    broker.kill();
    broker.restart();
    let mut client = broker.client(CHANNEL);
    client.try_qos(CHANNEL, 2000).expect("qos");
    client.consume(CHANNEL, QUEUE, "c");
    // The last acknowledgements may not have reached the disk; nothing behind them is missing.
    let (first, _) = take(&mut client);
    assert!(
        first <= TAKEN,
        "{first} is the first, {TAKEN} were acknowledged"
    );
    drain(&mut client, first + 1, COUNT);
    client.close();
    let mut client = broker.client(CHANNEL);
    let left = client
        .queue_declare(CHANNEL, QUEUE, durable())
        .message_count;
    assert_eq!(left, 0);
    let status = Status::of(&broker);
    assert_eq!(status.counter("/index/filed_runs"), 0);
    assert_eq!(status.counter("/messages/quarantined"), 0);
}

#[test]
fn every_durable_queue_has_a_file_when_the_threshold_is_0_and_purge_takes_filed_messages() {
    let mut broker = TestBroker::builder()
        .arg("--queue-index-min-messages=0")
        .start();
    fill(&broker, 700);
    broker.terminate();
    broker.restart();
    assert_eq!(Status::of(&broker).counter("/index/filed_runs"), 3);
    let mut client = broker.client(CHANNEL);
    let got = client.get(CHANNEL, QUEUE).expect("the first");
    assert_eq!(got.message.body_text(), "0");
    assert_eq!(client.try_purge(CHANNEL, QUEUE).expect("purged"), 699);
    client.nack(CHANNEL, got.tag, true);
    let got = client.get(CHANNEL, QUEUE).expect("the first again");
    assert_eq!(got.message.body_text(), "0");
    assert!(client.get(CHANNEL, QUEUE).is_none());
}

/// What was unacked at the crash is ready after it, and too much: the oldest go before anybody sees them, also those
/// that only the index file knows.
#[test]
fn length_limit_holds_from_the_first_moment_after_a_restart() {
    const MOST: u64 = 1000;
    const HELD: u64 = 20_000;
    let mut broker = TestBroker::builder()
        .arg("--queue-index-min-messages=0")
        .arg("--segment-size=1MiB")
        .start();
    let mut client = broker.client(CHANNEL);
    let declare = queue::Declare {
        arguments: FieldTable::new().with("x-max-length", i64::try_from(MOST).expect("small")),
        ..durable()
    };
    client.queue_declare(CHANNEL, QUEUE, declare.clone());
    let mut hoarder = broker.client(CHANNEL);
    hoarder.consume(CHANNEL, QUEUE, "hoarder");
    // A log long enough for checkpoints, so that runs are filed.
    client.confirm_select(CHANNEL);
    for first in (0..HELD).step_by(1000) {
        for at in first..first + 1000 {
            let body = format!("{at:01000}");
            client.push_publish(CHANNEL, "", QUEUE, &Message::persistent(body));
        }
        client.flush().expect("the broker reads");
        client.wait_confirms_upto_from(CHANNEL, first, first + 1000);
        (0..1000).for_each(|_| drop(hoarder.next_delivery(CHANNEL)));
    }
    // Checkpoints come when they are due, not when a client is done.
    Status::wait_for(&broker, "runs are filed", |status| {
        status.counter("/index/runs_written") >= 10
    });
    broker.kill();
    broker.restart();
    let mut client = broker.client(CHANNEL);
    let found = client.queue_declare(CHANNEL, QUEUE, declare).message_count;
    assert_eq!(u64::from(found), MOST);
    let first = client.get(CHANNEL, QUEUE).expect("the first that stays");
    assert_eq!(first.message.body_text().parse(), Ok(HELD - MOST));
}

fn policy(broker: &TestBroker, kind: &str, most_bytes: u64) {
    let definition = format!(r#"{{"max-length-bytes":{most_bytes}}}"#);
    let output = std::process::Command::new(broker.binary())
        .args([kind, "set", "most", QUEUE, &definition])
        .env("STRATAMQ_DATA_DIR", broker.data_dir())
        .output()
        .expect("the broker's binary can be executed");
    assert!(output.status.success(), "{output:?}");
}

/// LL-1, PO-9: a limit in bytes that a policy sets counts messages that nobody has read since the start, whether they are in
/// memory or in the index file; and it counts them after the next start.
#[test]
fn a_policy_counts_the_bytes_of_messages_that_were_not_read() {
    const BODY: &str = "a body of a few bytes";
    const HELD: u64 = 3000;
    for flag in [
        "--queue-index-min-messages=0",
        "--queue-index-min-messages=1000000",
    ] {
        let mut broker = TestBroker::builder().arg(flag).start();
        let mut client = broker.client(CHANNEL);
        client.queue_declare(CHANNEL, QUEUE, durable());
        client.confirm_select(CHANNEL);
        for _ in 0..HELD {
            client.push_publish(CHANNEL, "", QUEUE, &Message::persistent(BODY));
        }
        client.flush().expect("the broker reads");
        client.wait_confirms_upto(CHANNEL, HELD);
        broker.terminate();
        broker.restart();
        let is_filed = Status::of(&broker).counter("/index/filed_runs") > 0;
        assert_eq!(is_filed, flag.ends_with("=0"));
        let mut client = broker.client(CHANNEL);
        let mut wait_for = |count: u64| {
            let mut found = || {
                client
                    .queue_declare(CHANNEL, QUEUE, passive())
                    .message_count
            };
            wait_until("what is too much has gone", || u64::from(found()) <= count);
            assert_eq!(u64::from(found()), count);
        };
        let of = |count: u64| count * BODY.len() as u64;
        policy(&broker, "policy", of(2000));
        wait_for(2000);
        policy(&broker, "operator-policy", of(1500));
        wait_for(1500);
        broker.kill();
        broker.restart();
        client = broker.client(CHANNEL);
        client.confirm_select(CHANNEL);
        client.publish(CHANNEL, "", QUEUE, &Message::persistent(BODY));
        client.wait_confirm(CHANNEL);
        let mut found = || {
            client
                .queue_declare(CHANNEL, QUEUE, passive())
                .message_count
        };
        wait_until("the oldest has gone", || found() == 1500);
    }
}

/// The size of a body stands in no index; a record is longer than that, by its properties.
#[test]
fn length_limit_in_bytes_holds_after_a_restart() {
    const COUNT: u64 = 100;
    const BODY: &str = "a body of a few bytes";
    let mut broker = TestBroker::start();
    let mut client = broker.client(CHANNEL);
    let limit = i64::try_from(BODY.len()).expect("small") * 100;
    for (queue, overflow) in [("drops", "drop-head"), ("refuses", "reject-publish")] {
        let declare = queue::Declare {
            arguments: FieldTable::new()
                .with("x-max-length-bytes", limit)
                .with("x-overflow", overflow),
            ..durable()
        };
        client.queue_declare(CHANNEL, queue, declare);
    }
    client.confirm_select(CHANNEL);
    for queue in ["drops", "refuses"] {
        for _ in 0..COUNT {
            let message = Message::with(BODY, |properties| {
                properties.set_delivery_mode(Some(2));
                properties.set_message_id(Some(text("as long as the body")));
            });
            client.push_publish(CHANNEL, "", queue, &message);
        }
    }
    client.flush().expect("the broker reads");
    client.wait_confirms_upto(CHANNEL, 2 * COUNT);
    for is_kill in [true, false] {
        if is_kill {
            broker.kill();
        } else {
            broker.terminate();
        }
        broker.restart();
        let mut client = broker.client(CHANNEL);
        client.confirm_select(CHANNEL);
        client.publish(CHANNEL, "", "drops", &Message::persistent(BODY));
        client.wait_confirm(CHANNEL);
        client.publish(CHANNEL, "", "refuses", &Message::persistent("x"));
        let nack: basic::Nack = client.expect(CHANNEL);
        assert_eq!(nack.delivery_tag, 2);
        for queue in ["drops", "refuses"] {
            let found = client.queue_declare(CHANNEL, queue, passive());
            assert_eq!(u64::from(found.message_count), COUNT, "{queue}");
        }
    }
}

#[test]
fn deleted_index_files_are_built_again_and_the_log_says_so() {
    let mut broker = TestBroker::start();
    fill(&broker, 20_000);
    broker.terminate();
    let index = broker.data_dir().join("index");
    assert_eq!(std::fs::read_dir(&index).expect("it is there").count(), 1);
    std::fs::remove_dir_all(&index).expect("removed");
    broker.restart();
    let rebuilt = Status::of(&broker).counter("/index/runs_rebuilt");
    assert!(rebuilt >= 20_000 / 256 - 1, "{rebuilt}");
    let log = broker.log();
    for expected in [
        "index blocks are missing: building them again from the log",
        "segments_done=1 segment_count=1",
        "seconds_left=0",
        &format!("built {rebuilt} of {rebuilt} index blocks again from the log"),
    ] {
        assert!(log.contains(expected), "{expected} is not in {log}");
    }
    let mut client = broker.client(CHANNEL);
    client.try_qos(CHANNEL, 2000).expect("qos");
    client.consume(CHANNEL, QUEUE, "c");
    drain(&mut client, 0, 20_000);
    // Each of them was looked up once, at the start.
    let status = Status::of(&broker);
    assert_eq!(status.counter("/index/runs_rebuilt"), rebuilt);
}

#[test]
fn a_short_queue_has_no_file() {
    let mut broker = TestBroker::builder()
        .arg("--queue-index-min-messages=701")
        .start();
    fill(&broker, 700);
    broker.terminate();
    broker.restart();
    let status = Status::of(&broker);
    assert_eq!(status.counter("/index/filed_runs"), 0);
    assert!(
        status.counter("/index/memory_bytes") >= 600 * 32,
        "{status:?}"
    );
    let mut client = broker.client(CHANNEL);
    assert_eq!(client.try_purge(CHANNEL, QUEUE).expect("purged"), 700);
}
