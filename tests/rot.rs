//! A medium that gives back other bytes than were written, as an operator and a client see it.

mod support;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use support::TestBroker;
use support::raw::{Message, durable};
use support::status::Status;

const CHANNEL: u16 = 1;
const MESSAGES: u64 = 60;

/// Bodies of 100 KB that begin with their number: a few segments of the smallest size.
fn body(number: u64) -> String {
    format!("<message {number}>").repeat(100_000 / 12)
}

/// A queue `q` with a backlog, its broker stopped.
fn backlog(directory: &Path) {
    backlog_with(directory, &[]);
}

/// The same, left behind by a broker with these flags.
fn backlog_with(directory: &Path, flags: &[&str]) {
    let builder = TestBroker::builder()
        .data_dir(directory)
        .arg("--segment-size=1MiB");
    let mut broker = flags
        .iter()
        .fold(builder, |builder, flag| builder.arg(flag))
        .start();
    let mut client = broker.client(CHANNEL);
    client.queue_declare(CHANNEL, "q", durable());
    client.confirm_select(CHANNEL);
    for number in 0..MESSAGES {
        client.publish(CHANNEL, "", "q", &Message::persistent(body(number)));
    }
    client.wait_confirms_upto(CHANNEL, MESSAGES);
    client.close();
    assert!(broker.terminate().success());
}

/// Flips a bit in the middle of the body of a message; the segment it lies in.
fn damage(directory: &Path, number: u64) -> PathBuf {
    let needle = format!("<message {number}>").repeat(3);
    let mut segments: Vec<PathBuf> = std::fs::read_dir(directory.join("log"))
        .expect("there is a log")
        .map(|entry| entry.expect("it can be listed").path())
        .collect();
    // One that will be used again may have it too.
    segments.retain(|path| path.extension().is_none_or(|kind| kind != "spare"));
    segments.sort();
    for path in segments {
        let bytes = std::fs::read(&path).expect("it can be read");
        let found = bytes
            .windows(needle.len())
            .position(|window| window == needle.as_bytes());
        if let Some(at) = found {
            // In place: the file may be in use.
            let file = std::fs::OpenOptions::new().write(true).open(&path);
            let file = file.expect("it can be opened");
            let byte = [bytes[at + 50_000] ^ 1];
            file.write_all_at(&byte, at as u64 + 50_000)
                .expect("it can be written");
            return path;
        }
    }
    panic!("message {number} is nowhere");
}

/// Everything that can be had from `q`, not acked.
fn take_all(broker: &TestBroker) -> Vec<String> {
    let mut client = broker.client(CHANNEL);
    let mut bodies = Vec::new();
    while let Some(got) = client.get(CHANNEL, "q") {
        bodies.push(got.message.body_text());
    }
    client.close();
    bodies
}

fn expected_without(missing: u64) -> Vec<String> {
    let readable = (0..MESSAGES).filter(|number| *number != missing);
    readable.map(body).collect()
}

/// Waits until a counter has this value, which it never passes.
#[track_caller]
fn wait_for_counter(broker: &TestBroker, path: &str, wanted: u64) -> Status {
    let status = Status::wait_for(broker, path, |status| status.counter(path) >= wanted);
    assert_eq!(status.counter(path), wanted, "{path}");
    status
}

/// Proves I14, I15.
#[test]
fn the_scrubber_keeps_exactly_the_damaged_message_aside_before_anybody_asks() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    backlog(directory.path());
    let path = damage(directory.path(), 11);
    let start = || {
        TestBroker::builder()
            .data_dir(directory.path())
            .arg("--scrub-rate=1GiB")
            .start()
    };
    let mut broker = start();
    let status = wait_for_counter(&broker, "/log/scrub_found", 1);
    assert!(status.counter("/log/scrubbed_bytes") > 5_000_000);
    assert_eq!(status.counter("/messages/quarantined"), 1);
    assert_eq!(status.counter("/queues/0/quarantined"), 1);
    assert_eq!(status.counter("/queues/0/ready"), MESSAGES - 1);
    let line = broker.wait_for_line("the scrubber found damaged data");
    let name = path.file_name().expect("a name").to_string_lossy();
    assert!(line.contains(&*name) && line.contains("offset="), "{line}");
    assert!(take_all(&broker) == expected_without(11), "wrong messages");
    // It is not settled by a restart, and found again.
    assert!(broker.terminate().success());
    let broker = start();
    wait_for_counter(&broker, "/queues/0/quarantined", 1);
    // Purging takes it away.
    let mut client = broker.client(CHANNEL);
    let purged = client.try_purge(CHANNEL, "q").expect("it can be purged");
    assert_eq!(u64::from(purged), MESSAGES);
    assert_eq!(Status::of(&broker).counter("/queues/0/quarantined"), 0);
}

/// What `strata-dump quarantine` lists: queue and seq of messages, as JSON lines.
fn listed(directory: &Path) -> Vec<(String, u64)> {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_strata-dump"))
        .args(["quarantine", "--json"])
        .arg(directory)
        .output()
        .expect("it can be run");
    let lines = String::from_utf8(output.stdout).expect("JSON is text");
    let rows = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a JSON line"));
    rows.filter(|row| row["kind"] == "message")
        .map(|row| {
            let queue = row["queue"].as_str().expect("a name").to_owned();
            (queue, row["seq"].as_u64().expect("a number"))
        })
        .collect()
}

/// The runs of a backlog are in the index file and not in memory when the scrubber meets the damage. Proves I14, I15.
#[test]
fn the_scrubber_keeps_messages_aside_that_are_in_an_index_file() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    backlog_with(directory.path(), &["--queue-index-min-messages=0"]);
    assert!(listed(directory.path()).is_empty());
    for number in [11, 12] {
        damage(directory.path(), number);
    }
    let mut broker = TestBroker::builder()
        .data_dir(directory.path())
        .arg("--queue-index-min-messages=0")
        .arg("--scrub-rate=1GiB")
        .start();
    let status = wait_for_counter(&broker, "/messages/quarantined", 2);
    assert_eq!(status.counter("/queues/0/quarantined"), 2);
    assert_eq!(status.counter("/queues/0/ready"), MESSAGES - 2);
    let line = broker.wait_for_line("the scrubber found damaged data");
    assert!(
        line.contains(".segment") && line.contains("offset="),
        "{line}"
    );
    let expected = [("q".to_owned(), 12), ("q".to_owned(), 13)];
    assert_eq!(listed(directory.path()), expected);
    let readable = (0..MESSAGES).filter(|number| ![11, 12].contains(number));
    assert!(
        take_all(&broker) == readable.map(body).collect::<Vec<_>>(),
        "wrong messages"
    );
    assert!(broker.terminate().success());
    assert_eq!(listed(directory.path()), expected);
}

#[test]
fn the_scrubber_has_a_damaged_index_block_written_again() {
    const COUNT: u64 = 700;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let start = |rate: &str| {
        TestBroker::builder()
            .data_dir(directory.path())
            .arg("--queue-index-min-messages=0")
            .arg(format!("--scrub-rate={rate}"))
            .start()
    };
    let mut broker = start("0");
    let mut client = broker.client(CHANNEL);
    client.queue_declare(CHANNEL, "q", durable());
    client.confirm_select(CHANNEL);
    for number in 0..COUNT {
        client.publish(CHANNEL, "", "q", &Message::persistent(number.to_string()));
    }
    client.wait_confirms_upto(CHANNEL, COUNT);
    client.close();
    assert!(broker.terminate().success());
    // Not the block with the highest number: a start looks at that one.
    let path = directory.path().join("index/0000000000000001.index");
    let mut bytes = std::fs::read(&path).expect("it was filed");
    bytes[300] ^= 1;
    std::fs::write(&path, bytes).expect("it can be written");
    let mut broker = start("1GiB");
    let line = broker.wait_for_line("wrote a damaged index block again");
    assert!(
        line.contains("0000000000000001.index") && line.contains("offset=0"),
        "{line}"
    );
    assert_eq!(Status::of(&broker).counter("/log/scrub_found"), 1);
    assert!(broker.terminate().success());
    // The old one is named by nothing any more.
    let mut broker = start("1GiB");
    let taken = take_all(&broker);
    assert!(
        taken
            == (0..COUNT)
                .map(|number| number.to_string())
                .collect::<Vec<_>>()
    );
    assert_eq!(Status::of(&broker).counter("/log/scrub_found"), 0);
    assert!(broker.terminate().success());
}

/// Proves I14, I15.
#[test]
fn damage_found_at_delivery_costs_one_message_each_time() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    backlog(directory.path());
    let path = damage(directory.path(), 20);
    for _ in 0..2 {
        let mut broker = TestBroker::builder()
            .data_dir(directory.path())
            .arg("--scrub-rate=0")
            .start();
        assert!(take_all(&broker) == expected_without(20), "wrong messages");
        let status = Status::of(&broker);
        assert_eq!(status.counter("/queues/0/quarantined"), 1);
        assert_eq!(status.counter("/log/scrubbed_bytes"), 0);
        let line = broker.wait_for_line("message cannot be read and is quarantined");
        let name = path.file_name().expect("a name").to_string_lossy();
        assert!(line.contains(&*name) && line.contains("offset"), "{line}");
        assert!(broker.terminate().success());
    }
}

#[test]
fn a_damaged_checkpoint_refuses_with_instructions_or_is_done_without() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    backlog(directory.path());
    let checkpoints = std::fs::read_dir(directory.path().join("checkpoint")).expect("it is there");
    let path = checkpoints
        .map(|entry| entry.expect("it can be listed").path())
        .next()
        .expect("a clean stop leaves one");
    let mut bytes = std::fs::read(&path).expect("it can be read");
    bytes[300] ^= 1;
    std::fs::write(&path, bytes).expect("it can be written");
    let refused = TestBroker::builder()
        .data_dir(directory.path())
        .run_to_end();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(3), "{said}");
    for word in [
        "checkpoint/",
        "at offset",
        "strata-dump verify",
        "strata-dump export",
        "--on-corruption quarantine",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let mut broker = TestBroker::builder()
        .data_dir(directory.path())
        .arg("--on-corruption=quarantine")
        .start();
    let line = broker.wait_for_line("started from a damaged data directory");
    assert!(line.contains("checkpoint is lost"), "{line}");
    // Everything is in the log still, topology too.
    assert!(take_all(&broker) == (0..MESSAGES).map(body).collect::<Vec<_>>());
    assert!(broker.terminate().success());
    // The damage is behind us.
    let broker = TestBroker::builder().data_dir(directory.path()).start();
    assert_eq!(Status::of(&broker).counter("/queues/0/ready"), MESSAGES);
}

#[test]
fn messages_of_a_queue_whose_declaration_is_lost_can_be_fetched() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    backlog(directory.path());
    // The checkpoint, and the first segment's beginning, in which everything was declared.
    for entry in std::fs::read_dir(directory.path().join("checkpoint")).expect("it is there") {
        std::fs::remove_file(entry.expect("it can be listed").path()).expect("removed");
    }
    let first = directory.path().join("log/000000000001.segment");
    let mut bytes = std::fs::read(&first).expect("it can be read");
    bytes[4096..6000].fill(0x55);
    std::fs::write(&first, bytes).expect("it can be written");
    let broker = TestBroker::builder()
        .data_dir(directory.path())
        .arg("--on-corruption=quarantine")
        .start();
    let status = Status::of(&broker);
    let ready = status.counter("/queues/0/ready");
    // The batch with which the first message came is lost, whatever else was in it.
    assert!(ready > MESSAGES / 2, "{ready}");
    let mut client = broker.client(CHANNEL);
    let got = client
        .get(CHANNEL, "recovered.1")
        .expect("it has its name from its id");
    assert!(got.message.body_text().starts_with("<message "));
}

/// A record that compaction moved into a cold segment rots: found while the broker runs, at a start, and from outside.
/// Proves I14, I15.
#[test]
fn a_damaged_record_of_a_cold_segment_costs_that_message_and_no_other() {
    /// In the cold segment, one damaged while the broker runs and one at the start.
    const DAMAGED: [u64; 2] = [3, 7];
    const STRAGGLERS: u64 = 10;
    const BULK: u64 = 8;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let start = |rate: &str| {
        TestBroker::builder()
            .data_dir(directory.path())
            .arg("--segment-size=1MiB")
            .arg(format!("--scrub-rate={rate}"))
            .start()
    };
    let mut broker = start("0");
    let mut client = broker.client(CHANNEL);
    for queue in ["q", "bulk"] {
        client.queue_declare(CHANNEL, queue, durable());
    }
    client.confirm_select(CHANNEL);
    for number in 0..STRAGGLERS {
        client.publish(CHANNEL, "", "q", &Message::persistent(body(number)));
        for _ in 0..BULK {
            client.publish(CHANNEL, "", "bulk", &Message::persistent(body(1000)));
        }
    }
    let mut confirmed = STRAGGLERS * (BULK + 1);
    client.wait_confirms_upto(CHANNEL, confirmed);
    client.try_purge(CHANNEL, "bulk").expect("it can be purged");
    // Segments of which little is alive are emptied, and go once a checkpoint says so: it comes by what is logged.
    let log = directory.path().join("log");
    let is_gone = |number: u64| !log.join(format!("{number:012}.segment")).exists();
    support::wait::wait_until("stragglers move", || {
        client.publish(CHANNEL, "", "bulk", &Message::persistent(body(1000)));
        client.wait_confirms_upto_from(CHANNEL, confirmed, confirmed + 1);
        confirmed += 1;
        client.try_purge(CHANNEL, "bulk").expect("it can be purged");
        (1..7).all(is_gone)
    });
    client.close();
    assert!(broker.terminate().success());
    let expected = |missing: &[u64]| -> Vec<String> {
        let left = (0..STRAGGLERS).filter(|number| !missing.contains(number));
        left.map(body).collect()
    };
    let seqs = |numbers: &[u64]| -> Vec<(String, u64)> {
        let seq = |number: &u64| ("q".to_owned(), number + 1);
        numbers.iter().map(seq).collect()
    };
    let path = damage(directory.path(), DAMAGED[0]);
    assert!(path.extension().is_some_and(|kind| kind == "cold"));
    let name = path.file_name().expect("a name").to_string_lossy();
    assert_eq!(listed(directory.path()), seqs(&DAMAGED[..1]));
    let verified = std::process::Command::new(env!("CARGO_BIN_EXE_strata-dump"))
        .arg("verify")
        .arg(directory.path())
        .output()
        .expect("it can be run");
    let said = String::from_utf8_lossy(&verified.stdout);
    assert!(!verified.status.success(), "{said}");
    assert!(said.contains(&*name), "{said}");
    // The other one while the broker runs, which has not read it yet.
    let mut broker = start("0");
    assert_eq!(damage(directory.path(), DAMAGED[1]), path);
    assert!(take_all(&broker) == expected(&DAMAGED), "wrong messages");
    wait_for_counter(&broker, "/messages/quarantined", 2);
    let line = broker.wait_for_line("message cannot be read and is quarantined");
    assert!(line.contains(&*name), "{line}");
    assert!(broker.terminate().success());
    assert_eq!(listed(directory.path()), seqs(&DAMAGED));
    // The scrubber finds them before anybody asks.
    let mut broker = start("1GiB");
    wait_for_counter(&broker, "/messages/quarantined", 2);
    let line = broker.wait_for_line("the scrubber found damaged data");
    assert!(line.contains(&*name), "{line}");
    assert!(take_all(&broker) == expected(&DAMAGED), "wrong messages");
    assert!(broker.terminate().success());
    assert_eq!(listed(directory.path()), seqs(&DAMAGED));
}
