//! The directories under `tests/fixtures`: how they were made, and what the engine makes of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use stratamq::disk::sim::SimClock;
use stratamq::storage::format::segment_path;
use stratamq::storage::types::{Position, QueueId};
use stratamq::storage::{Found, QueueImage, Recovered, StorageError};

use crate::command::copy_of;
use crate::filed;
use crate::moved;
use crate::ruled;
use crate::script::{End, tell};
use crate::scripted::Scripted;

/// The fixtures, and how the story of each ends.
const NAMES: [(&str, End); 4] = [
    ("clean", End::Stopped),
    ("torn", End::Killed),
    ("damaged", End::Killed),
    ("rotten", End::Killed),
];

/// Tells a story into an empty directory.
type Teller = fn(&Path);

/// With STRATAMQ_MAKE_FIXTURES=DIR makes the directories in DIR, which must not have them yet. It was run once for
/// each version of the format; what it made is committed and never made again.
#[test]
fn fixtures_are_made_only_on_demand_and_never_twice() {
    let Some(target) = std::env::var_os("STRATAMQ_MAKE_FIXTURES").map(PathBuf::from) else {
        return;
    };
    for (name, end) in NAMES {
        let root = target.join(name);
        assert!(
            !root.exists(),
            "{} exists: a fixture is never made again",
            root.display()
        );
        make(&root, name, end);
    }
    let filed: [(&str, Teller); 4] = [
        ("filed", |root| filed::tell(root, 0)),
        ("moved", moved::tell),
        ("short", filed::tell_of_full_runs),
        ("ruled", ruled::tell),
    ];
    for (name, tell) in filed {
        let root = target.join(name);
        assert!(
            !root.exists(),
            "{} exists: a fixture is never made again",
            root.display()
        );
        tell(&root);
        std::fs::write(root.join("LOCK"), "").expect("written");
    }
}

fn make(root: &Path, name: &str, end: End) {
    let told = tell(root, end);
    match name {
        // The second half of the last batch never reached the disk.
        "torn" => change(root, told.last_message, 700, |rest| rest.fill(0)),
        // A bit of what was proven durable, and is replayed, has changed.
        "damaged" => change(root, told.synced_message, 700, flip),
        // A bit of an old message that only waits to be delivered has changed.
        "rotten" => change(root, told.old_message, 700, flip),
        _ => {}
    }
    // The lock file names the process that made it.
    std::fs::write(root.join("LOCK"), "").expect("written");
}

fn flip(bytes: &mut [u8]) {
    bytes[0] ^= 0x10;
}

/// Changes bytes of a record from `skip` bytes behind its start up to its end.
fn change(root: &Path, record: Position, skip: usize, change: impl FnOnce(&mut [u8])) {
    let path = root.join(segment_path(record.lsn.segment()));
    let mut bytes = std::fs::read(&path).expect("read");
    let start = usize::try_from(record.lsn.offset()).expect("small");
    let end = start + usize::try_from(record.len_bytes).expect("small");
    change(&mut bytes[start + skip..end]);
    std::fs::write(&path, bytes).expect("written");
}

fn open(root: &Path) -> Result<(Scripted, Recovered), StorageError> {
    Scripted::by_hand(root, Arc::new(SimClock::new(1_800_000_000_000)))
}

/// id, next seq, reserved, unsettled, redelivered.
fn summary(queue: &QueueImage) -> (u64, u64, u64, usize, usize) {
    let redelivered = queue
        .entries
        .iter()
        .filter(|entry| entry.is_redelivered)
        .count();
    (
        queue.id.0,
        queue.next_seq.0,
        queue.reserved_upto.0,
        queue.entries.len(),
        redelivered,
    )
}

/// Opens a copy of a fixture: its queues are these, and every message in them can be read.
#[track_caller]
fn check_opens(
    name: &str,
    is_found: impl Fn(&Found) -> bool,
    expected: &[(u64, u64, u64, usize, usize)],
) {
    let copy = copy_of(name);
    let (store, recovered) = open(copy.path()).expect("it opens");
    assert!(
        is_found(&recovered.report.found),
        "{:?}",
        recovered.report.found
    );
    let found: Vec<_> = recovered.queues.iter().map(summary).collect();
    assert_eq!(found, expected);
    for queue in &recovered.queues {
        for entry in queue.entries.iter() {
            store
                .storage
                .read(queue.id, entry.seq, entry.position)
                .expect("every message is whole");
        }
    }
    assert_eq!(store.queues(), recovered.queues);
}

#[test]
fn clean_fixture_opens_with_its_state() {
    let expected = [
        (1, 77, 50, 40, 2),
        (2, 21, 16, 10, 0),
        (3, 7, 0, 4, 0),
        (5, 6, 0, 4, 0),
    ];
    check_opens("clean", |found| *found == Found::Clean, &expected);
}

#[test]
fn fixture_with_index_files_opens_with_its_state() {
    let expected = [(1, 716, 520, 482, 4), (2, 56, 0, 54, 0), (3, 1, 0, 0, 0)];
    check_opens("filed", |found| *found == Found::Replayed, &expected);
    let copy = copy_of("filed");
    let (_, whole) = open(copy.path()).expect("it opens");
    assert_eq!(
        (whole.report.filed_run_count, whole.report.rebuilt_run_count),
        (4, 0)
    );
    let copy = copy_of("filed");
    std::fs::remove_dir_all(copy.path().join("index")).expect("removed");
    let (_, rebuilt) = open(copy.path()).expect("it opens");
    assert_eq!(rebuilt.report.rebuilt_run_count, 4);
    assert_eq!(rebuilt.queues, whole.queues);
}

#[test]
fn fixture_whose_files_were_used_again_opens_with_its_state() {
    let expected = [(1, 547, 0, 543, 1), (2, 15, 2, 14, 0), (3, 71, 0, 0, 0)];
    check_opens("moved", |found| *found == Found::Replayed, &expected);
    let copy = copy_of("moved");
    let (_, recovered) = open(copy.path()).expect("it opens");
    let is_cold = |queue: &QueueImage| {
        let entries = queue.entries.iter();
        entries
            .filter(|entry| entry.position.lsn.segment().is_cold())
            .count()
    };
    assert!(is_cold(&recovered.queues[1]) > 4);
}

#[test]
fn fixture_with_full_runs_opens_with_its_state() {
    let copy = copy_of("short");
    let (_, whole) = open(copy.path()).expect("it opens");
    let work = &whole.queues[0];
    assert_eq!((work.message_count(), work.next_seq.0), (1499, 1611));
    assert_eq!(
        (whole.report.filed_run_count, whole.report.rebuilt_run_count),
        (6, 0)
    );
    let copy = copy_of("short");
    std::fs::remove_dir_all(copy.path().join("index")).expect("removed");
    let (_, rebuilt) = open(copy.path()).expect("it opens");
    assert_eq!(rebuilt.report.rebuilt_run_count, 6);
    assert_eq!(rebuilt.queues, whole.queues);
}

#[test]
fn fixture_with_rules_and_levels_opens_with_its_state() {
    let copy = copy_of("ruled");
    let (store, recovered) = open(copy.path()).expect("it opens");
    let levels: Vec<u16> = recovered.queues[0]
        .entries
        .iter()
        .map(|entry| entry.seq.rank())
        .collect();
    assert!(
        levels.is_sorted(),
        "ascending seqs are the order of delivery"
    );
    let count = |rank| levels.iter().filter(|found| **found == rank).count();
    assert_eq!([1, 2, 3, 4].map(count), [13, 15, 15, 10]);
    let topology = store.topology();
    let policies: Vec<&str> = topology
        .policies
        .values()
        .map(|policy| policy.definition.as_str())
        .collect();
    assert_eq!(
        policies,
        [r#"{"max-length":2000}"#, r#"{"max-length-bytes":1000000}"#]
    );
    assert_eq!(topology.limits.len(), 1);
    assert_eq!(topology.topic_permissions.len(), 1);
    let expected = [(1, 61, 9, 53, 1), (2, 7, 0, 6, 0)];
    check_opens("ruled", |found| *found == Found::Replayed, &expected);
}

#[test]
fn torn_fixture_opens_without_its_last_batch() {
    let expected = [
        (1, 76, 50, 39, 2),
        (2, 21, 16, 10, 0),
        (3, 7, 0, 4, 0),
        (5, 6, 0, 4, 0),
    ];
    check_opens(
        "torn",
        |found| matches!(found, Found::TornTail(_)),
        &expected,
    );
}

#[test]
fn damaged_fixture_is_refused_and_left_as_it_is() {
    let copy = copy_of("damaged");
    let before = files_of(copy.path());
    let error = open(copy.path()).err().expect("it is damaged");
    assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
    let mut after = files_of(copy.path());
    // The process that holds the lock writes its id.
    after.retain(|(path, _)| !path.ends_with("LOCK"));
    assert!(
        before
            .iter()
            .filter(|(path, _)| !path.ends_with("LOCK"))
            .eq(after.iter())
    );
}

#[test]
fn rotten_message_hurts_only_itself() {
    let copy = copy_of("rotten");
    let (store, recovered) = open(copy.path()).expect("what is replayed is whole");
    let work = recovered
        .queues
        .iter()
        .find(|queue| queue.id == QueueId(1))
        .expect("the queue");
    let read = |entry: &stratamq::storage::types::ImageEntry| {
        store.storage.read(work.id, entry.seq, entry.position)
    };
    let broken: Vec<u64> = work
        .entries
        .iter()
        .filter(|entry| read(entry).is_err())
        .map(|entry| entry.seq.0)
        .collect();
    assert_eq!(broken, [8]);
}

/// All files below a directory with their content.
pub(crate) fn files_of(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).expect("listed") {
            let path = entry.expect("listed").path();
            if path.is_dir() {
                directories.push(path);
            } else {
                let content = std::fs::read(&path).expect("read");
                files.push((path, content));
            }
        }
    }
    files.sort();
    files
}
