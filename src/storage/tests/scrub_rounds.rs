//! How the scrubber goes about a round: what it leaves out, where it goes on, what it counts, and what it takes for
//! damage of a file that is gone meanwhile.

use std::io::IoSlice;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::scrub::scrub;
use super::*;
use crate::disk::sim::{Effect, Trigger};
use crate::disk::{Disk, OpenMode};
use crate::storage::CheckpointSource;
use crate::storage::format::{INDEX_DIR, SUPERBLOCK_FILES, index_path, segment_path};
use crate::storage::index::BLOCK_LEN;
use crate::storage::scrub::{Rot, Scrubber};
use crate::storage::testing::numbered_payload;
use crate::storage::types::{ImageEntry, QueueId, SegmentId};

/// Nothing here has more to read.
const STEPS_MAX: usize = 10_000;

/// Goes on to the end of the round, with as little as possible at a time; also how many steps failed.
fn finish(store: &LiveStore, scrubber: &mut Scrubber) -> (Vec<Rot>, usize) {
    let (mut found, mut failed_count) = (Vec::new(), 0);
    for _ in 0..STEPS_MAX {
        match scrubber.step(store, 1) {
            Ok(step) => {
                found.extend(step.found);
                if step.is_round_over {
                    return (found, failed_count);
                }
            }
            Err(_) => failed_count += 1,
        }
    }
    panic!("the round does not end");
}

/// Goes on to the first finding.
fn find_first(store: &LiveStore, scrubber: &mut Scrubber) -> Rot {
    for _ in 0..STEPS_MAX {
        let step = scrubber.step(store, 1).unwrap();
        assert!(step.found.len() < 2 && !step.is_round_over, "{step:?}");
        if let Some(rot) = step.found.into_iter().next() {
            return rot;
        }
    }
    panic!("nothing was found");
}

fn entries(store: &LiveStore, queue: u64) -> Vec<ImageEntry> {
    let images = store.images();
    let image = images.iter().find(|image| image.id == QueueId(queue));
    image.unwrap().entries.iter().copied().collect()
}

fn place(entry: &ImageEntry) -> (PathBuf, u64) {
    let lsn = entry.position.lsn;
    (segment_path(lsn.segment()), u64::from(lsn.offset()))
}

fn span(entry: &ImageEntry) -> Range<u64> {
    let start = entry.position.lsn.0;
    start..start + u64::from(entry.position.len_bytes)
}

/// A store with sealed segments, a checkpoint and blocks that count, all messages in one queue.
fn whole_store(segment_size_bytes: u64, count: u64) -> (Rig, LiveStore) {
    let rig = Rig::new(Options {
        index_min_messages: 0,
        segment_size_bytes,
        ..options()
    });
    let (store, _) = rig.open();
    store.create_queue(1);
    for number in 0..count {
        store.publish(&[1], &numbered_payload(number, 700), 0);
        if number % 4 == 3 {
            store.commit().unwrap();
        }
    }
    store.commit().unwrap();
    store.storage.checkpoint(&store).unwrap();
    (rig, store)
}

fn checkpoint_of(rig: &Rig) -> PathBuf {
    let name = rig.disk.list(Path::new("checkpoint")).unwrap().remove(0);
    Path::new("checkpoint").join(name)
}

/// Damages a byte of the medium, while the cache goes on to show what was there.
fn rot_under_the_cache(rig: &Rig, path: &Path, at: u64) {
    let whole = rig.disk.contents(path).unwrap();
    let byte = [whole[usize::try_from(at).unwrap()]];
    rig.disk.flip_bit(path, at, 2).unwrap();
    let file = rig.disk.open(path, OpenMode::ReadWrite).unwrap();
    file.write_at(&[IoSlice::new(&byte)], at).unwrap();
    rig.disk.inject(Trigger::Sync, 1, Effect::Eio);
    file.sync_data().unwrap_err();
    assert_eq!(rig.disk.contents(path).unwrap(), whole);
}

#[test]
fn every_kind_of_file_is_read_from_the_medium() {
    let (rig, store) = whole_store(Options::SEGMENT_SIZE_MIN_BYTES, 600);
    let (segment, at) = place(&entries(&store, 1)[5]);
    let run = &store.queue(QueueId(1)).unwrap().runs[0];
    let places = [
        (segment, at + 100),
        (checkpoint_of(&rig), 70),
        (
            index_path(QueueId(1)),
            u64::from(run.block) * BLOCK_LEN as u64 + 1000,
        ),
        (SUPERBLOCK_FILES[0].into(), 20),
        (SUPERBLOCK_FILES[1].into(), 20),
    ];
    assert_eq!(scrub(&store).0, []);
    for (number, (path, at)) in places.iter().enumerate() {
        rot_under_the_cache(&rig, path, *at);
        let found = scrub(&store).0;
        assert_eq!(found.len(), number + 1, "{path:?}: {found:?}");
        let is_named = |rot: &Rot| rot.path.ends_with(&*path.to_string_lossy());
        assert!(found.iter().any(is_named), "{path:?}: {found:?}");
    }
}

#[test]
fn a_superblock_that_is_missing_is_a_finding() {
    for name in SUPERBLOCK_FILES {
        let (rig, store) = whole_store(64 * 1024, 10);
        rig.disk.remove(Path::new(name)).unwrap();
        let (found, _) = scrub(&store);
        let [rot] = &found[..] else {
            panic!("{found:?}");
        };
        assert!(rot.path.ends_with(name), "{rot:?}");
    }
}

/// One read fails, whichever it is: the round goes on behind that file, and begins nothing again.
#[test]
fn a_file_that_cannot_be_read_is_passed_over() {
    let (rig, store) = whole_store(Options::SEGMENT_SIZE_MIN_BYTES, 60);
    rig.disk.remove(Path::new(SUPERBLOCK_FILES[0])).unwrap();
    let bad = entries(&store, 1)[30];
    let (segment, at) = place(&bad);
    rig.disk.flip_bit(&segment, at + 100, 2).unwrap();
    let of = |found: &[Rot], name: &str| {
        let named = found.iter().filter(|rot| rot.path.ends_with(name));
        named.count()
    };
    let segment = segment.to_string_lossy();
    let (mut nth, mut missed) = (1, 0);
    loop {
        rig.disk.inject(Trigger::Read, nth, Effect::Eio);
        let (found, failed_count) = finish(&store, &mut store.storage.scrubber());
        rig.disk.clear_faults();
        if failed_count == 0 {
            break;
        }
        assert_eq!(failed_count, 1, "read {nth}");
        // The first one is that of the other copy. What was found before another one failed is not forgotten.
        let expected = usize::from(nth > 1);
        assert_eq!(of(&found, SUPERBLOCK_FILES[0]), expected, "read {nth}");
        missed += 1 - of(&found, &segment);
        assert!(found.len() < 3, "read {nth}: {found:?}");
        nth += 1;
    }
    assert!(nth > 8, "{nth} reads");
    // Those of that segment, and of the beginning of the next one.
    assert!((1..5).contains(&missed), "{missed}");
}

#[test]
fn a_step_reads_what_it_may_and_counts_what_it_reads() {
    let (rig, store) = whole_store(Options::SEGMENT_SIZE_MIN_BYTES, 600);
    let checkpoint_bytes = rig.disk.contents(&checkpoint_of(&rig)).unwrap().len() as u64;
    let unit_bytes = checkpoint_bytes.max(Options::SEGMENT_SIZE_MIN_BYTES);
    let mut scrubber = store.storage.scrubber();
    let (mut read_bytes, mut step_count) = (0, 0);
    loop {
        let step = scrubber.step(&store, 5000).unwrap();
        assert!(step.read_bytes < 5000 + unit_bytes, "{step:?}");
        read_bytes += step.read_bytes;
        step_count += 1;
        if step.is_round_over {
            break;
        }
        assert!(step.read_bytes >= 5000, "it stops before it must");
    }
    assert!(step_count > 10, "{step_count} steps");
    // The next round reads the same, and may do so at once.
    let step = scrubber.step(&store, u64::MAX).unwrap();
    assert!(step.is_round_over);
    assert_eq!(step.read_bytes, read_bytes);
    let open = store.storage.confirm_lsn().segment();
    let sealed_bytes: u64 = (1..open.0)
        .map(|number| rig.disk.contents(&segment_path(SegmentId(number))))
        .map(|contents| contents.unwrap().len() as u64 - 4096)
        .sum();
    let block_bytes = (store.queue(QueueId(1)).unwrap().runs.len() * BLOCK_LEN) as u64;
    assert!(block_bytes > 0);
    assert_eq!(read_bytes, checkpoint_bytes + sealed_bytes + block_bytes);
}

#[test]
fn a_record_is_named_by_its_own_place_and_hides_nothing_behind_it() {
    let (rig, store) = whole_store(Options::SEGMENT_SIZE_MIN_BYTES, 60);
    let all = entries(&store, 1);
    // In neighbouring batches, none the first of its batch.
    let bad = [all[1], all[6], all[9]];
    assert_eq!(bad.map(|entry| entry.position.lsn.segment().0), [1; 3]);
    for entry in &bad {
        let (path, at) = place(entry);
        rig.disk.flip_bit(&path, at + 100, 2).unwrap();
    }
    let (found, _) = scrub(&store);
    assert_eq!(found.len(), 3, "{found:?}");
    let batch_of = |entry: &ImageEntry| (entry.seq.0 - 1) / 4;
    for (rot, entry) in found.iter().zip(&bad) {
        assert_eq!(rot.offset, place(entry).1, "{rot:?}");
        let (from, upto) = rot.range.unwrap();
        assert_eq!(from, entry.position.lsn);
        // What can be told apart from it is not counted as hit: the batches around it.
        for other in &all {
            let is_inside = from.0 < span(other).end && span(other).start < upto.0;
            let is_hit = batch_of(other) == batch_of(entry) && other.seq >= entry.seq;
            assert_eq!(is_inside, is_hit, "{:?} {rot:?}", other.seq);
        }
    }
}

#[test]
fn a_damaged_batch_header_hides_nothing_behind_it() {
    let (rig, store) = whole_store(Options::SEGMENT_SIZE_MIN_BYTES, 60);
    let all = entries(&store, 1);
    let (path, first) = place(&all[4]);
    // In front of the first record of the batch.
    rig.disk.flip_bit(&path, first - 50, 2).unwrap();
    let (other, at) = place(&all[13]);
    assert_eq!(path, other);
    rig.disk.flip_bit(&path, at + 100, 2).unwrap();
    let (found, _) = scrub(&store);
    let [header, record] = &found[..] else {
        panic!("{found:?}");
    };
    assert!(first - header.offset < 100, "{header:?}");
    let (from, upto) = header.range.unwrap();
    assert!(from.0 < span(&all[4]).start && span(&all[7]).end <= upto.0);
    assert!(upto.0 <= span(&all[8]).start, "the next batch is whole");
    assert_eq!(record.offset, at, "{record:?}");
}

/// A segment that lost its successor: of its last batch, whose header is damaged, nothing but its messages speak.
#[test]
fn live_messages_tell_of_a_last_batch_whether_they_are_filed_or_not() {
    for index_min_messages in [0, 1_000_000] {
        let rig = Rig::new(Options {
            index_min_messages,
            segment_size_bytes: Options::SEGMENT_SIZE_MIN_BYTES,
            ..options()
        });
        let (store, _) = rig.open();
        store.create_queue(1);
        for number in 0..60 {
            store.publish(&[1], &numbered_payload(number, 700), 0);
            store.commit().unwrap();
        }
        let all = entries(&store, 1);
        let of_first = |entry: &&ImageEntry| entry.position.lsn.segment() == SegmentId(1);
        let last = *all.iter().rfind(of_first).unwrap();
        // All of the next segments leave, which are freed.
        store.settle(1, last.seq.0 + 1, 59);
        store.commit().unwrap();
        store.storage.checkpoint(&store).unwrap();
        store.storage.checkpoint(&store).unwrap();
        let is_filed = !store.queue(QueueId(1)).unwrap().runs.is_empty();
        assert_eq!(is_filed, index_min_messages == 0);
        assert_eq!(scrub(&store).0, []);
        let (path, at) = place(&last);
        rig.disk.flip_bit(&path, at - 50, 2).unwrap();
        let (found, _) = scrub(&store);
        let [rot] = &found[..] else {
            panic!("filed {is_filed}: {found:?}");
        };
        let (from, upto) = rot.range.unwrap();
        assert!(from.0 < span(&last).start && span(&last).end <= upto.0);
        assert!(at - rot.offset < 100, "{rot:?}");
        // Nobody misses what is settled.
        store.settle(1, last.seq.0, last.seq.0);
        store.commit().unwrap();
        assert_eq!(scrub(&store).0, [], "filed {is_filed}");
    }
}

#[test]
fn a_segment_that_is_freed_while_it_is_read_has_no_findings() {
    let (rig, store) = whole_store(1 << 20, 2000);
    let all = entries(&store, 1);
    // Far enough from each other that they are not read at once.
    let bad = [all[4], all[1000]].map(|entry| place(&entry));
    assert_eq!(bad[0].0, bad[1].0);
    assert!(bad[1].1 - bad[0].1 > 600_000);
    for (path, at) in &bad {
        rig.disk.flip_bit(path, at + 100, 2).unwrap();
    }
    for is_freed in [false, true] {
        let mut scrubber = store.storage.scrubber();
        assert_eq!(find_first(&store, &mut scrubber).offset, bad[0].1);
        if is_freed {
            store.settle(1, 1, 2000);
            store.commit().unwrap();
            store.storage.checkpoint(&store).unwrap();
        }
        let (found, _) = finish(&store, &mut scrubber);
        assert_eq!(found.len(), usize::from(!is_freed), "{found:?}");
    }
}

#[test]
fn a_block_that_is_not_relied_on_any_more_is_no_finding() {
    let (rig, store) = whole_store(64 * 1024, 1000);
    let runs = store.queue(QueueId(1)).unwrap().runs;
    assert_eq!(runs.len(), 4);
    for run in &runs {
        let at = u64::from(run.block) * BLOCK_LEN as u64;
        rig.disk.flip_bit(&index_path(QueueId(1)), at, 2).unwrap();
    }
    for is_settled in [false, true] {
        let mut scrubber = store.storage.scrubber();
        let first = find_first(&store, &mut scrubber);
        assert!(first.path.contains(INDEX_DIR), "{first:?}");
        if is_settled {
            store.settle(1, 1, 1000);
            store.commit().unwrap();
        }
        let (found, _) = finish(&store, &mut scrubber);
        assert_eq!(found.len(), if is_settled { 0 } else { 3 }, "{found:?}");
    }
}

/// Only the newest one may be being filled.
#[test]
fn a_cold_segment_that_is_full_is_read() {
    let rig = Rig::new(Options {
        segment_size_bytes: Options::SEGMENT_SIZE_MIN_BYTES,
        ..options()
    });
    let (store, _) = rig.open();
    for queue in 1..=2 {
        store.create_queue(queue);
    }
    for number in 0..12 {
        store.publish(&[1], &numbered_payload(number, 3_000), 0);
        for filler in 0..4 {
            store.publish(&[2], &numbered_payload(filler, 3_000), 0);
            store.commit().unwrap();
        }
    }
    store.settle(2, 1, 48);
    rig.clock.advance_ms(60);
    store.commit().unwrap();
    store.storage.checkpoint(&store).unwrap();
    while store
        .storage
        .compact(&store, false, 4000)
        .unwrap()
        .moved_count
        > 0
    {
        store.storage.checkpoint(&store).unwrap();
    }
    let all = entries(&store, 1);
    let newest = all.iter().map(|entry| entry.position.lsn.segment()).max();
    let full = all.iter().find(|entry| {
        let segment = entry.position.lsn.segment();
        segment.is_cold() && Some(segment) != newest
    });
    let (path, at) = place(full.expect("there are two cold segments"));
    assert_eq!(scrub(&store).0, []);
    rig.disk.flip_bit(&path, at + 100, 2).unwrap();
    let (found, _) = scrub(&store);
    let [rot] = &found[..] else {
        panic!("{found:?}");
    };
    assert_eq!(rot.offset, at, "{rot:?}");
}
