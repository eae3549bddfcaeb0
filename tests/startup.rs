//! Starts that must not happen, and stops that must: one clear line, the right exit code, and nothing changed on disk.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;

use support::raw::{Client, Message, durable};
use support::{Builder, TestBroker};

const CHANNEL: u16 = 1;

/// Every file below a directory with its bytes; sockets and the like by name only.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let Ok(entries) = std::fs::read_dir(directory) else {
        return found;
    };
    for entry in entries {
        let entry = entry.expect("the directory can be read");
        let path = entry.path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            // The lock file names the process that tried last.
            let is_data = path.is_file() && path.file_name().is_some_and(|name| name != "LOCK");
            let bytes = if is_data {
                std::fs::read(&path).expect("a file can be read")
            } else {
                Vec::new()
            };
            found.insert(path, bytes);
        }
    }
    found
}

/// The broker refuses: exit code, one line on standard error that contains all these words, nothing on standard output.
#[track_caller]
fn check_refusal(output: &Output, code: i32, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert_eq!(said.lines().count(), 1, "not one line:\n{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said:?}");
    }
    assert!(
        output.stdout.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

/// The same, on a directory that must stay as it is.
#[track_caller]
fn check_refusal_changes_nothing(builder: Builder, directory: &Path, code: i32, words: &[&str]) {
    let before = contents(directory);
    check_refusal(&builder.data_dir(directory).run_to_end(), code, words);
    let after = contents(directory);
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&after), names(&before), "files came or went");
    assert!(after == before, "bytes have changed");
}

/// A data directory with some messages, its broker stopped.
fn stopped_directory(directory: &Path) {
    let mut broker = TestBroker::builder().data_dir(directory).start();
    publish_some(&broker, 20);
    assert!(broker.terminate().success());
}

fn publish_some(broker: &TestBroker, count: u64) {
    let mut client = Client::connect(broker.address());
    client.open_channel(CHANNEL);
    client.queue_declare(CHANNEL, "q", durable());
    client.confirm_select(CHANNEL);
    for number in 0..count {
        client.publish(
            CHANNEL,
            "",
            "q",
            &Message::persistent(format!("message {number}")),
        );
    }
    client.wait_confirms_upto(CHANNEL, count);
    client.close();
}

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory can be made")
}

/// Changes the bytes of a file.
#[track_caller]
fn patch(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).expect("the file can be read");
    change(&mut bytes);
    std::fs::write(path, bytes).expect("the file can be written");
}

/// The segments, oldest first.
fn segments(data_dir: &Path) -> Vec<PathBuf> {
    contents(&data_dir.join("log")).into_keys().collect()
}

/// Proves I34.
#[test]
fn a_second_broker_on_the_same_directory_is_refused() {
    let broker = TestBroker::start();
    let output = TestBroker::builder()
        .data_dir(broker.data_dir())
        .run_to_end();
    check_refusal(&output, 1, &["is locked by another broker"]);
    // The first one has not noticed.
    publish_some(&broker, 1);
}

#[test]
fn a_taken_port_is_refused() {
    let broker = TestBroker::start();
    let place = temporary();
    let port = broker.address().port();
    let builder = TestBroker::builder()
        .data_dir(place.path().join("data"))
        .port(port);
    check_refusal(
        &builder.run_to_end(),
        1,
        &["cannot listen on", &port.to_string(), "in use"],
    );
}

#[test]
fn a_foreign_directory_is_refused() {
    let place = temporary();
    std::fs::write(place.path().join("letter.txt"), "dear reader").expect("a file can be written");
    let words = ["is not a data directory and not empty", "letter.txt"];
    check_refusal_changes_nothing(TestBroker::builder(), place.path(), 1, &words);
}

#[test]
fn a_file_in_place_of_the_directory_is_refused() {
    let place = temporary();
    let path = place.path().join("data");
    std::fs::write(&path, "a file").expect("a file can be written");
    let output = TestBroker::builder().data_dir(&path).run_to_end();
    check_refusal(&output, 1, &["data"]);
    assert_eq!(std::fs::read(&path).expect("the file is there"), b"a file");
}

#[test]
fn a_newer_format_is_refused() {
    let place = temporary();
    let data = place.path().join("data");
    stopped_directory(&data);
    for name in ["superblock.0", "superblock.1"] {
        patch(&data.join(name), |bytes| {
            // Version and oldest reader, then the checksum: storage-format.md, superblock.
            bytes[8..12].copy_from_slice(&9999_u32.to_le_bytes());
            bytes[12..16].copy_from_slice(&9999_u32.to_le_bytes());
            let sum = crc32fast::hash(&bytes[..124]);
            bytes[124..128].copy_from_slice(&sum.to_le_bytes());
        });
    }
    let words = ["needs a reader of format version 9999 or later"];
    check_refusal_changes_nothing(TestBroker::builder(), &data, 1, &words);
}

#[test]
fn one_damaged_superblock_is_survived_and_two_are_refused() {
    let place = temporary();
    let data = place.path().join("data");
    stopped_directory(&data);
    patch(&data.join("superblock.0"), |bytes| bytes[50] ^= 1);
    let mut broker = TestBroker::builder().data_dir(&data).start();
    assert!(broker.terminate().success());
    for name in ["superblock.0", "superblock.1"] {
        patch(&data.join(name), |bytes| bytes[50] ^= 1);
    }
    check_refusal_changes_nothing(TestBroker::builder(), &data, 3, &["damaged", "superblock"]);
}

#[test]
fn damage_in_the_log_is_refused_with_the_place_and_the_tool() {
    let place = temporary();
    let data = place.path().join("data");
    // Killed, so that the log and not a checkpoint is the truth; the second commit proves the first one durable.
    let mut broker = TestBroker::builder().data_dir(&data).start();
    publish_some(&broker, 20);
    publish_some(&broker, 20);
    broker.kill();
    let segment = segments(&data)
        .into_iter()
        .next_back()
        .expect("there is a segment");
    patch(&segment, |bytes| {
        // In the first message's body.
        let wanted = b"message 0";
        let at = bytes
            .windows(wanted.len())
            .position(|window| window == wanted)
            .expect("it is in the log");
        // The header of its batch holds lengths and checksums: a flip a little before the record cannot be taken for a torn end.
        bytes[at] ^= 1;
        let batch = bytes[..at]
            .windows(4)
            .rposition(|window| window == b"SMQb")
            .expect("a batch holds it");
        bytes[batch + 8] ^= 1;
    });
    let name = segment
        .file_name()
        .expect("segments have names")
        .to_string_lossy()
        .into_owned();
    let words = ["damaged", &name, "offset", "strata-dump verify"];
    check_refusal_changes_nothing(TestBroker::builder(), &data, 3, &words);
}

#[test]
fn a_torn_tail_is_no_damage() {
    let place = temporary();
    let data = place.path().join("data");
    let mut broker = TestBroker::builder().data_dir(&data).start();
    publish_some(&broker, 20);
    broker.kill();
    let segment = segments(&data)
        .into_iter()
        .next_back()
        .expect("there is a segment");
    patch(&segment, |bytes| {
        bytes.extend_from_slice(b"SMQb and then the power failed")
    });
    let broker = TestBroker::builder().data_dir(&data).start();
    let mut client = Client::connect(broker.address());
    client.open_channel(CHANNEL);
    assert_eq!(
        client.queue_declare(CHANNEL, "q", durable()).message_count,
        20
    );
}

#[test]
fn bad_flags_are_usage_errors() {
    for (argument, words) in [
        (
            "--fsync=sometimes",
            &["--fsync", "always, interval, never"][..],
        ),
        ("--commit-delay-us=soon", &["--commit-delay-us", "soon"]),
        ("--segment-size=3", &["--segment-size", "1MiB to 1GiB"]),
        ("--bind=nowhere", &["--bind"]),
        ("--nonsense", &["--nonsense"]),
        ("--log=a=b=c", &["log"]),
    ] {
        let place = temporary();
        let data = place.path().join("data");
        let output = TestBroker::builder()
            .arg(argument)
            .data_dir(&data)
            .run_to_end();
        check_refusal(&output, 2, words);
        assert!(!data.exists(), "{argument}: a directory was made");
    }
}

#[test]
fn sigterm_closes_connections_and_ends_with_0_in_time() {
    // Nobody is waited for who does not answer: else it would be for as long as this, and the test does not wait that long.
    let mut broker = TestBroker::builder()
        .arg("--close-timeout-ms=600000")
        .arg("--handshake-timeout-ms=600000")
        .start();
    publish_some(&broker, 20);
    let mut consumer = Client::connect(broker.address());
    consumer.open_channel(CHANNEL);
    consumer.consume(CHANNEL, "q", "c");
    let tags: Vec<u64> = (0..10)
        .map(|_| consumer.next_delivery(CHANNEL).tag)
        .collect();
    // Acknowledged, and nobody has waited for it to be durable.
    consumer.ack_upto(CHANNEL, tags[4]);
    consumer.try_qos(CHANNEL, 0).expect("the broker answers");
    // Connected, and says nothing; this one does not answer the close.
    let mute = Client::connect(broker.address());
    let half_open = Client::connect_tcp(broker.address());
    let reader = std::thread::spawn(move || consumer.wait_connection_close());
    let status = broker.terminate();
    let close = reader.join().expect("the consumer was closed");
    assert_eq!(close.reply_code, 320);
    assert!(
        close.reply_text.as_str().starts_with("CONNECTION_FORCED"),
        "{}",
        close.reply_text
    );
    assert_eq!(status.code(), Some(0), "{}", broker.log());
    drop((mute, half_open));

    broker.restart();
    let mut client = Client::connect(broker.address());
    client.open_channel(CHANNEL);
    let left: Vec<String> = std::iter::from_fn(|| client.get(CHANNEL, "q"))
        .map(|delivered| delivered.message.body_text())
        .collect();
    let expected: Vec<String> = (5..20).map(|number| format!("message {number}")).collect();
    assert_eq!(left, expected);
}

#[test]
fn after_a_clean_stop_only_what_was_delivered_is_redelivered() {
    let mut broker = TestBroker::start();
    publish_some(&broker, 3);
    let mut consumer = Client::connect(broker.address());
    consumer.open_channel(CHANNEL);
    assert!(consumer.get(CHANNEL, "q").is_some());
    assert!(broker.terminate().success());
    broker.restart();
    let mut client = Client::connect(broker.address());
    client.open_channel(CHANNEL);
    let flags: Vec<bool> = std::iter::from_fn(|| client.get(CHANNEL, "q"))
        .map(|delivered| delivered.is_redelivered)
        .collect();
    assert_eq!(flags, [true, false, false]);
}

/// Threads of the broker that serve sockets.
fn net_threads(broker: &TestBroker) -> usize {
    let tasks = format!("/proc/{}/task", broker.pid());
    let tasks = std::fs::read_dir(tasks).expect("the broker runs");
    let names =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.trim() == "stratamq-net").count()
}

#[test]
fn as_many_threads_serve_sockets_as_are_asked_for() {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    for (count, expected) in [("auto", (processors / 2).max(1)), ("1", 1), ("3", 3)] {
        let broker = TestBroker::builder()
            .arg("--net-threads")
            .arg(count)
            .start();
        assert_eq!(net_threads(&broker), expected, "{count}");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let flagged = TestBroker::builder().data_dir(directory.path());
    let output = flagged.arg("--net-threads").arg("0").run_to_end();
    check_refusal(
        &output,
        2,
        &["'0'", "--net-threads", "expected 1 to 1024, or auto"],
    );
}
