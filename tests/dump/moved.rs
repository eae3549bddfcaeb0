//! A directory in which files were used for more than one thing: messages moved to a cold segment, segments in files that
//! were other segments before, and files that wait to become one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use stratamq::disk::sim::SimClock;
use stratamq::storage::Options;
use stratamq::storage::format::{SPARE_EXTENSION, segment_flag, segment_header};
use stratamq::storage::types::SettleCause;

use crate::command::{fixture, in_repository};
use crate::fixtures::files_of;
use crate::scripted::{Scripted, message, options};

/// 2026-11-01T00:00:00Z.
const START_MS: u64 = 1_793_491_200_000;

/// Queue `work` has an index file, `rare` a message now and then that nobody takes, and `bulk` what comes and goes.
///
/// ```text
/// epoch 1  bulk fills segments, of which rare keeps one message each; these move, the segments are freed; work fills
///          two runs, in files used again; more bulk comes and goes, so that files are spare; killed
/// epoch 2  replays, takes a spare file, goes on, and is killed
/// ```
pub(crate) fn tell(root: &Path) {
    let options = Options {
        segment_size_bytes: Options::SEGMENT_SIZE_MIN_BYTES,
        index_min_messages: 100,
        spare_count_max: 3,
        ..options()
    };
    let clock = Arc::new(SimClock::new(START_MS));
    let open = || {
        let clock = Arc::<SimClock>::clone(&clock);
        let opened = Scripted::by_hand_with(root, clock, &options);
        opened.expect("the store opens").0
    };
    let store = open();
    store.declare(&["work", "rare", "bulk"]);
    for number in 1..=8 {
        publish(&store, &[2, 3], number, 200);
        for filler in 1..=3 {
            publish(&store, &[3], filler, 4_000);
            store.commit();
        }
    }
    settle_bulk(&store, &clock, 32);
    let moved = store.storage.compact(&store, false, u64::MAX);
    assert!(moved.expect("the disk works").moved_count > 4);
    store.storage.checkpoint(&store).expect("a checkpoint");
    for number in 1..=540 {
        publish(&store, &[1], number, 20);
        if number % 30 == 0 {
            publish(&store, &[3], number, 3_000);
            store.commit();
        }
    }
    for number in 1..=20 {
        publish(&store, &[3], number, 3_000);
        store.commit();
    }
    store.requeue(1, 30, 2);
    settle_bulk(&store, &clock, 70);
    drop(store);
    let store = open();
    for number in 541..=546 {
        publish(&store, &[1, 2], number, 300);
        store.commit();
    }
    store.settle(1, SettleCause::Acked, &[(1, 3)]);
    store.reserve(2, 2);
    store.commit();
}

fn publish(store: &Scripted, queues: &[u64], number: u64, len: usize) {
    let body = format!("{number:06} ").into_bytes().into_iter().cycle();
    let order = message("", "work", body.take(len).collect::<Vec<u8>>());
    let targets: Vec<(u64, u64)> = queues.iter().map(|queue| (*queue, 0)).collect();
    store.publish(&order, &targets, 0, START_MS + number);
}

/// Ends all of `bulk` up to a seq, and has the segments freed that it leaves empty.
fn settle_bulk(store: &Scripted, clock: &SimClock, last: u64) {
    store.settle(3, SettleCause::Acked, &[(1, last)]);
    clock.advance_ms(60);
    store.commit();
    store.storage.checkpoint(store).expect("a checkpoint");
}

/// Files of the fixture whose name ends so.
fn named(extension: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = files_of(&in_repository(&fixture("moved")));
    files.retain(|(path, _)| path.extension().is_some_and(|found| found == extension));
    files
}

#[test]
fn fixture_holds_what_it_is_there_for() {
    assert_eq!(named("cold").len(), 1);
    assert!(!named(SPARE_EXTENSION).is_empty());
    let is_used_again = |bytes: &[u8]| {
        let flags = segment_header::FLAGS.get(bytes);
        // Other bytes go on behind the last block that was written.
        let is_full = bytes.iter().rev().take(4096).any(|byte| *byte != 0);
        flags & u64::from(segment_flag::RECYCLED) != 0 && is_full
    };
    let segments = named("segment");
    assert!(segments.iter().any(|(_, bytes)| is_used_again(bytes)));
}
