//! Directories with index files: rows are the same wherever places come from.

use std::path::Path;
use std::process::Output;
use std::sync::Arc;

use stratamq::disk::sim::SimClock;
use stratamq::storage::Options;
use stratamq::storage::types::SettleCause;

use crate::command::{copy_dir, strata_dump};
use crate::scripted::{Scripted, message, options};

/// 2026-07-01T00:00:00Z.
const START_MS: u64 = 1_782_864_000_000;

/// A long queue with holes, expiries, priorities and redeliveries, one that shares messages with it, and an empty one;
/// a checkpoint, changes of what it filed, more messages, and a kill.
pub(crate) fn tell(root: &Path, index_min_messages: u64) {
    let options = Options {
        index_min_messages,
        ..options()
    };
    let clock = Arc::new(SimClock::new(START_MS));
    let (store, _) = Scripted::by_hand_with(root, clock, &options).expect("the store opens");
    store.declare(&["work", "audit", "idle"]);
    publish(&store, 1..=700);
    store.settle(1, SettleCause::Acked, &[(1, 100), (300, 310)]);
    store.requeue(1, 150, 1);
    store.requeue(1, 400, 2);
    store.reserve(1, 450);
    store.commit();
    store.storage.checkpoint(&store).expect("a checkpoint");
    store.settle(1, SettleCause::Acked, &[(101, 200), (512, 522)]);
    store.settle(1, SettleCause::Expired, &[(615, 620), (630, 634)]);
    store.settle(2, SettleCause::Purged, &[(7, 7)]);
    store.requeue(1, 500, 7);
    store.requeue(1, 400, 3);
    store.reserve(1, 520);
    publish(&store, 701..=715);
    // The last one comes after the reservation: nothing lazy is left behind.
    store.requeue(1, 710, 1);
    store.requeue(1, 215, 1);
    store.commit();
}

/// A long queue whose runs are full, shared between segments, settled in part and delivered; a checkpoint, a change of
/// a full one, and a kill.
pub(crate) fn tell_of_full_runs(root: &Path) {
    let clock = Arc::new(SimClock::new(START_MS));
    let (store, _) = Scripted::by_hand_with(root, clock, &options()).expect("the store opens");
    store.declare(&["work", "audit"]);
    publish(&store, 1..=1600);
    store.settle(1, SettleCause::Acked, &[(1, 100)]);
    store.requeue(1, 900, 1);
    store.reserve(1, 120);
    store.commit();
    store.storage.checkpoint(&store).expect("a checkpoint");
    store.settle(1, SettleCause::Acked, &[(101, 110), (600, 600)]);
    publish(&store, 1601..=1610);
    store.commit();
}

fn publish(store: &Scripted, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        let order = message("", "work", format!("order {number:06}"));
        let expires_at_ms = match number % 10 {
            0 => START_MS + 86_400_000 + number,
            _ => 0,
        };
        // Every 13th one is for the auditors too.
        let targets = [(1, expires_at_ms), (2, 0)];
        let targets = targets
            .get(..1 + usize::from(number % 13 == 0))
            .expect("two");
        let priority = u8::try_from(number % 3).expect("small");
        store.publish(&order, targets, priority, START_MS + number);
        if number % 50 == 0 {
            store.commit();
        }
    }
}

fn dump(words: &[&str], root: &Path, more: &[&str]) -> Output {
    let root = root.to_str().expect("a plain path");
    strata_dump(&[words, &[root], more].concat())
}

#[test]
fn index_rows_are_the_same_from_file_packed_form_and_rebuild() {
    let dirs = tempfile::tempdir().expect("a temporary directory can be made");
    let [filed, packed, rebuilt, damaged] =
        ["filed", "packed", "rebuilt", "damaged"].map(|name| dirs.path().join(name));
    tell(&filed, 0);
    tell(&packed, u64::MAX);
    copy_dir(&filed, &rebuilt);
    std::fs::remove_file(rebuilt.join("index/0000000000000001.index")).expect("removed");
    copy_dir(&filed, &damaged);
    let block = damaged.join("index/0000000000000001.index");
    let mut bytes = std::fs::read(&block).expect("read");
    bytes[4096 + 100] ^= 1;
    std::fs::write(&block, bytes).expect("written");
    assert!(!packed.join("index").exists());
    for queue in ["work", "audit", "idle"] {
        for more in [&[][..], &["--json"]] {
            let rows = |root| dump(&["index", queue], root, more);
            let expected = rows(&filed);
            assert_eq!(expected.status.code(), Some(0));
            assert!(
                expected.stderr.is_empty(),
                "nothing was looked up in the log"
            );
            assert_eq!(expected.stdout.len() > 1000, queue != "idle");
            for other in [&packed, &rebuilt, &damaged] {
                let found = rows(other);
                assert!(
                    found.stdout == expected.stdout,
                    "{queue} in {}",
                    other.display()
                );
            }
        }
    }
    let note = dump(&["index", "work"], &rebuilt, &[]).stderr;
    let note = String::from_utf8_lossy(&note);
    assert!(
        note.contains("3 of 3 blocks of index/0000000000000001.index"),
        "{note}"
    );
    for command in ["queues", "segments"] {
        let [expected, found] =
            [&filed, &packed].map(|root| dump(&[command], root, &["--json"]).stdout);
        assert!(found == expected, "{command}");
    }
}

#[test]
fn verify_finds_what_is_wrong_with_index_files() {
    let dirs = tempfile::tempdir().expect("a temporary directory can be made");
    let root = dirs.path().join("store");
    tell(&root, 0);
    let verify = || {
        let output = dump(&["verify"], &root, &[]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), said)
    };
    let (code, said) = verify();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("4 blocks of index files whole"), "{said}");
    let path = root.join("index/0000000000000001.index");
    let whole = std::fs::read(&path).expect("read");
    // Every byte of every block that is named counts.
    for place in [0, 4095, 4096, 3 * 4096 - 1] {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x40;
        std::fs::write(&path, bytes).expect("written");
        let (code, said) = verify();
        assert_eq!(code, Some(3), "{said}");
        let expected = format!("0000000000000001.index at offset {}: ", place / 4096 * 4096);
        assert!(said.contains(&expected), "{said}");
    }
    std::fs::write(&path, &whole[..4096]).expect("written");
    let (code, said) = verify();
    assert_eq!(code, Some(3), "{said}");
    assert!(
        said.contains("the file ends 0 bytes into the block"),
        "{said}"
    );
    std::fs::remove_file(&path).expect("removed");
    std::fs::write(root.join("index/notes.txt"), "mine").expect("written");
    std::fs::write(root.join("index/00000000000000ff.index"), "").expect("written");
    let (code, said) = verify();
    assert_eq!(code, Some(0), "derived: {said}");
    for expected in [
        "is missing, with 3 blocks",
        "notes.txt: no file of the broker's",
        "00000000000000ff.index: the index of a queue that is gone",
    ] {
        assert!(said.contains(expected), "{said}");
    }
}
