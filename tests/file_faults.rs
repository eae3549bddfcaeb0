//! Files of a stopped broker's directory that somebody lost, cut, copied, exchanged or locked away: the next start says so
//! in one clear line and exits with 3, or works; no message comes back changed, and none is missed without a word.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use support::TestBroker;
use support::raw::{Client, Message, durable, now};
use support::status::Status;

const CHANNEL: u16 = 1;
const MESSAGES: u64 = 34;
/// Nothing takes longer unless it hangs.
const HANG: Duration = Duration::from_secs(30);

/// Oldest segments, closed long before the last checkpoint.
const FIRST: &str = "log/000000000001.segment";
const SECOND: &str = "log/000000000002.segment";
const INDEX_1: &str = "index/0000000000000001.index";
const INDEX_2: &str = "index/0000000000000002.index";

fn body(number: u64) -> String {
    format!("<message {number}>").repeat(100_000 / 12)
}

/// Two queues with a backlog, in several segments and two index files; stopped. Also the first segment as it was when
/// half of the messages were there.
fn stopped(directory: &Path) -> Vec<u8> {
    let mut broker = TestBroker::builder()
        .data_dir(directory)
        .arg("--segment-size=1MiB")
        .arg("--queue-index-min-messages=0")
        .start();
    let mut client = Client::connect(broker.address());
    client.open_channel(CHANNEL);
    client.confirm_select(CHANNEL);
    for queue in ["q", "r"] {
        client.queue_declare(CHANNEL, queue, durable());
    }
    let mut earlier = Vec::new();
    for number in 0..MESSAGES {
        let queue = if number % 2 == 0 { "q" } else { "r" };
        client.publish(CHANNEL, "", queue, &Message::persistent(body(number)));
        if number == 4 {
            client.wait_confirms_upto(CHANNEL, 5);
            earlier = std::fs::read(directory.join(FIRST)).expect("it is being filled");
        }
    }
    client.wait_confirms_upto(CHANNEL, MESSAGES);
    client.close();
    assert!(broker.terminate().success());
    earlier
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(from).expect("listed") {
        let path = entry.expect("listed").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy_dir(&path, &target);
        } else if path.is_file() {
            std::fs::copy(&path, target).expect("copied");
        }
    }
}

/// The file of a kind with the highest number.
fn newest(directory: &Path, kind: &str, extension: &str) -> PathBuf {
    let entries = std::fs::read_dir(directory.join(kind)).expect("listed");
    let paths = entries.map(|entry| entry.expect("listed").path());
    let of_kind = paths.filter(|path| path.extension().is_some_and(|found| found == extension));
    of_kind.max().expect("there is one")
}

fn cut(path: &Path) {
    std::fs::write(path, "").expect("written");
}

fn remove(path: &Path) {
    std::fs::remove_file(path).expect("removed");
}

fn append(path: &Path) {
    let mut bytes = std::fs::read(path).expect("read");
    bytes.extend((0..5_000_u32).map(|at| u8::try_from(at % 251).expect("small") | 1));
    std::fs::write(path, bytes).expect("written");
}

fn swap(left: &Path, right: &Path) {
    let bytes = [left, right].map(|path| std::fs::read(path).expect("read"));
    std::fs::write(left, &bytes[1]).expect("written");
    std::fs::write(right, &bytes[0]).expect("written");
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).expect("read");
    bytes[at] ^= 4;
    std::fs::write(path, bytes).expect("written");
}

fn make_directory(path: &Path) {
    remove(path);
    std::fs::create_dir(path).expect("made");
}

/// Nobody may read the file. False where that stops nobody, as with root.
fn lock_away(path: &Path) -> bool {
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o000)).expect("it is ours");
    std::fs::read(path).is_err()
}

/// A start that ended in one line with all these words.
#[track_caller]
fn check_refusal(output: &std::process::Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{words:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said:?}");
    }
    assert!(output.stdout.is_empty());
}

/// One directory, copied for each case.
struct Store {
    original: tempfile::TempDir,
    earlier: Vec<u8>,
}

impl Store {
    fn new() -> Self {
        let original = tempfile::tempdir().expect("a temporary directory");
        let earlier = stopped(original.path());
        Self { original, earlier }
    }

    fn copy(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().expect("a temporary directory");
        copy_dir(self.original.path(), copy.path());
        copy
    }

    /// The start is refused in one line with all these words.
    #[track_caller]
    fn refuses(&self, words: &[&str], change: impl FnOnce(&Path)) {
        let copy = self.copy();
        change(copy.path());
        let output = TestBroker::builder().data_dir(copy.path()).run_to_end();
        check_refusal(&output, words);
    }

    /// The broker starts and delivers what was published; messages that it lacks are quarantined. Their number.
    #[track_caller]
    fn delivers(&self, change: impl FnOnce(&Path)) -> u64 {
        let copy = self.copy();
        change(copy.path());
        let mut broker = TestBroker::builder().data_dir(copy.path()).start();
        let taken: u64 = ["q", "r"].iter().map(|queue| take(&broker, queue)).sum();
        let end = now() + HANG;
        let quarantined = loop {
            let count = Status::of(&broker).counter("/messages/quarantined");
            if taken + count == MESSAGES {
                break count;
            }
            assert!(now() < end, "{taken} taken, {count} quarantined");
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(broker.terminate().success());
        quarantined
    }
}

/// Takes all messages of a queue; each says what it said.
#[track_caller]
fn take(broker: &TestBroker, queue: &str) -> u64 {
    let mut client = Client::connect(broker.address());
    client.open_channel(CHANNEL);
    let mut numbers = Vec::new();
    while let Some(got) = client.get(CHANNEL, queue) {
        let text = got.message.body_text();
        let number = text.split(['>', ' ']).nth(1).expect("a number");
        let number: u64 = number.parse().expect("a number");
        assert!(text == body(number), "message {number} has changed");
        numbers.push(number);
    }
    client.close();
    assert!(numbers.is_sorted());
    numbers.len() as u64
}

#[test]
fn a_missing_file_is_named_or_not_missed() {
    let store = Store::new();
    store.refuses(&[FIRST, "missing"], |dir| remove(&dir.join(FIRST)));
    store.refuses(&[".segment", "missing"], |dir| {
        remove(&newest(dir, "log", "segment"));
    });
    store.refuses(&[".checkpoint", "missing"], |dir| {
        remove(&newest(dir, "checkpoint", "checkpoint"));
    });
    store.refuses(&["superblock.0", "superblock"], |dir| {
        remove(&dir.join("superblock.0"));
        remove(&dir.join("superblock.1"));
    });
    for name in ["superblock.0", "superblock.1", "reserve", "LOCK", INDEX_1] {
        assert_eq!(store.delivers(|dir| remove(&dir.join(name))), 0, "{name}");
    }
}

#[test]
fn a_file_cut_to_nothing_is_named_or_not_missed() {
    let store = Store::new();
    store.refuses(&[".segment"], |dir| cut(&newest(dir, "log", "segment")));
    store.refuses(&[".checkpoint"], |dir| {
        cut(&newest(dir, "checkpoint", "checkpoint"));
    });
    for name in ["superblock.0", "superblock.1", "reserve", "LOCK", INDEX_2] {
        assert_eq!(store.delivers(|dir| cut(&dir.join(name))), 0, "{name}");
    }
    // The messages that were in it, and no others.
    let lost = store.delivers(|dir| cut(&dir.join(FIRST)));
    assert!((5..12).contains(&lost), "{lost}");
}

#[test]
fn both_superblocks_damaged_is_refused() {
    let store = Store::new();
    store.refuses(&["superblock.0", "neither copy"], |dir| {
        flip(&dir.join("superblock.0"), 40);
        flip(&dir.join("superblock.1"), 90);
    });
    // Behind it nothing counts.
    assert_eq!(
        store.delivers(|dir| {
            flip(&dir.join("superblock.0"), 40);
            flip(&dir.join("superblock.1"), 200);
        }),
        0
    );
}

#[test]
fn a_longer_file_is_named_or_the_rest_means_nothing() {
    let store = Store::new();
    store.refuses(&[".checkpoint"], |dir| {
        append(&newest(dir, "checkpoint", "checkpoint"));
    });
    for name in ["superblock.1", "reserve", FIRST, INDEX_1] {
        assert_eq!(store.delivers(|dir| append(&dir.join(name))), 0, "{name}");
    }
    // It passes for the remains of a write that the power cut.
    assert_eq!(
        store.delivers(|dir| append(&newest(dir, "log", "segment"))),
        0
    );
}

#[test]
fn exchanged_files_are_found_out() {
    let store = Store::new();
    store.refuses(&[".segment"], |dir| {
        swap(&dir.join(FIRST), &newest(dir, "log", "segment"));
    });
    assert_eq!(
        store.delivers(|dir| swap(&dir.join("superblock.0"), &dir.join("superblock.1"))),
        0
    );
    assert_eq!(
        store.delivers(|dir| swap(&dir.join(INDEX_1), &dir.join(INDEX_2))),
        0
    );
    let lost = store.delivers(|dir| swap(&dir.join(FIRST), &dir.join(SECOND)));
    assert!((10..24).contains(&lost), "{lost}");
}

#[test]
fn an_older_segment_of_the_same_number_costs_what_it_lacks() {
    let store = Store::new();
    let lost = store.delivers(|dir| {
        std::fs::write(dir.join(FIRST), &store.earlier).expect("written");
    });
    assert!((1..12).contains(&lost), "{lost}");
}

#[test]
fn a_copied_segment_is_no_other_segment() {
    let store = Store::new();
    for name in [
        "log/000000000099.segment",
        "log/000200000001.cold",
        "log/000000000001 (copy).segment",
        "log/000000000098.spare",
        "index/0000000000000077.index",
    ] {
        let lost = store.delivers(|dir| {
            std::fs::copy(dir.join(FIRST), dir.join(name)).expect("copied");
        });
        assert_eq!(lost, 0, "{name}");
    }
}

#[test]
fn a_directory_in_place_of_a_file_is_named() {
    let store = Store::new();
    store.refuses(&[".segment"], |dir| {
        make_directory(&newest(dir, "log", "segment"))
    });
    store.refuses(&[".checkpoint"], |dir| {
        make_directory(&newest(dir, "checkpoint", "checkpoint"));
    });
    for name in ["superblock.0", "superblock.1", "reserve", "LOCK"] {
        store.refuses(&[name], |dir| make_directory(&dir.join(name)));
    }
}

#[test]
fn a_directory_in_place_of_an_index_file_is_named() {
    let store = Store::new();
    store.refuses(&[INDEX_1], |dir| make_directory(&dir.join(INDEX_1)));
}

/// Nobody reads it before its messages are wanted.
#[test]
fn a_directory_in_place_of_an_old_segment_costs_what_was_in_it() {
    let store = Store::new();
    let lost = store.delivers(|dir| make_directory(&dir.join(FIRST)));
    assert!((5..12).contains(&lost), "{lost}");
}

#[test]
fn a_file_of_another_store_is_no_file_of_this_one() {
    let store = Store::new();
    let other = Store::new();
    let place = |dir: &Path, name: &str| {
        std::fs::copy(other.original.path().join(name), dir.join(name)).expect("copied");
    };
    let place_newest = |dir: &Path, kind: &str, extension: &str| {
        let theirs = newest(other.original.path(), kind, extension);
        std::fs::copy(theirs, newest(dir, kind, extension)).expect("copied");
    };
    store.refuses(&[".segment"], |dir| place_newest(dir, "log", "segment"));
    store.refuses(&[".checkpoint"], |dir| {
        place_newest(dir, "checkpoint", "checkpoint");
    });
    for name in ["superblock.0", "superblock.1"] {
        store.refuses(&["superblock.0", "different stores"], |dir| {
            place(dir, name);
        });
    }
    // Theirs names a checkpoint that is not there, or is ours.
    store.refuses(&[".checkpoint"], |dir| {
        place(dir, "superblock.0");
        place(dir, "superblock.1");
    });
    for name in ["reserve", "LOCK", INDEX_1] {
        assert_eq!(store.delivers(|dir| place(dir, name)), 0, "{name}");
    }
    // The messages that were in it are lost; none of theirs passes for one of ours.
    let lost = store.delivers(|dir| {
        place(dir, FIRST);
        let verified = std::process::Command::new(env!("CARGO_BIN_EXE_strata-dump"))
            .arg("verify")
            .arg(dir)
            .output()
            .expect("it can be run");
        let said = String::from_utf8_lossy(&verified.stdout);
        assert!(!verified.status.success() && said.contains(FIRST), "{said}");
    });
    assert!((5..12).contains(&lost), "{lost}");
}

/// Nobody, who is not root.
const NOBODY: u32 = 65_534;

/// Gives a directory and all in it to somebody.
fn give(path: &Path, user: u32) {
    std::os::unix::fs::chown(path, Some(user), Some(user)).expect("root may do that");
    if path.is_dir() {
        for entry in std::fs::read_dir(path).expect("listed") {
            give(&entry.expect("listed").path(), user);
        }
    }
}

/// Words that have a command run by somebody who is not root; `None` when there is no way to.
#[expect(
    clippy::print_stdout,
    reason = "a test that proves nothing must say so"
)]
fn as_nobody() -> Option<Vec<String>> {
    let words = [
        "setpriv".to_owned(),
        format!("--reuid={NOBODY}"),
        format!("--regid={NOBODY}"),
        "--clear-groups".to_owned(),
        "--".to_owned(),
    ];
    let tried = std::process::Command::new(&words[0])
        .args(&words[1..])
        .arg(support::broker_binary())
        .arg("--version")
        .output();
    match tried {
        Ok(output) if output.status.success() => Some(words.into()),
        refused => {
            println!("SKIPPED: root may read everything, and nobody cannot run it: {refused:?}");
            None
        }
    }
}

#[test]
fn a_file_that_may_not_be_read_is_named() {
    let probe = tempfile::NamedTempFile::new().expect("a temporary file");
    let is_root = !lock_away(probe.path());
    let wrapper = if is_root {
        let Some(words) = as_nobody() else { return };
        words
    } else {
        Vec::new()
    };
    let store = Store::new();
    let start = |name: &dyn Fn(&Path) -> Option<PathBuf>| {
        let copy = store.copy();
        if is_root {
            give(copy.path(), NOBODY);
        }
        if let Some(path) = name(copy.path()) {
            lock_away(&path);
        }
        (copy, TestBroker::builder().wrapper(&wrapper))
    };
    // With all of it readable, he who reads is no obstacle.
    let (copy, builder) = start(&|_| None);
    let mut broker = builder.data_dir(copy.path()).start();
    assert_eq!(take(&broker, "q") + take(&broker, "r"), MESSAGES);
    assert!(broker.terminate().success());
    let refuses = |words: &[&str], name: &dyn Fn(&Path) -> PathBuf| {
        let (copy, builder) = start(&|dir| Some(name(dir)));
        let output = builder.data_dir(copy.path()).run_to_end();
        check_refusal(&output, words);
    };
    for name in ["superblock.0", "superblock.1", "reserve", INDEX_1] {
        refuses(&[name, "ermission"], &|dir| dir.join(name));
    }
    refuses(&[".checkpoint", "ermission"], &|dir| {
        newest(dir, "checkpoint", "checkpoint")
    });
    refuses(&[".segment", "ermission"], &|dir| {
        newest(dir, "log", "segment")
    });
}
