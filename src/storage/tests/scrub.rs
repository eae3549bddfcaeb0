//! The scrubber finds every flipped bit of a sealed segment that means something, and nothing in a healthy store.

use std::path::Path;

use super::*;
use crate::disk::Disk;
use crate::storage::format::{SUPERBLOCK_FILES, index_path, segment_path};
use crate::storage::index::BLOCK_LEN;
use crate::storage::scrub::Rot;
use crate::storage::testing::numbered_payload;
use crate::storage::types::{QueueId, SegmentId};
use crate::storage::{CheckpointSource, ReadError};

/// A round in small steps.
pub(super) fn scrub(store: &LiveStore) -> (Vec<Rot>, u64) {
    let mut scrubber = store.storage.scrubber();
    let (mut found, mut read_bytes) = (Vec::new(), 0);
    loop {
        let step = scrubber.step(store, 1000).unwrap();
        found.extend(step.found);
        read_bytes += step.read_bytes;
        if step.is_round_over {
            return (found, read_bytes);
        }
    }
}

/// A running store with three sealed segments of two incarnations, the first of which has lost its successor.
fn store() -> (Rig, LiveStore) {
    let rig = Rig::new(Options {
        segment_size_bytes: Options::SEGMENT_SIZE_MIN_BYTES,
        ..options()
    });
    for round in 0..2_u64 {
        let (store, _) = rig.open();
        if round == 0 {
            store.create_queue(1);
        }
        for number in 0..30_u64 {
            store.publish(&[1], &numbered_payload(100 * round + number, 700), 0);
            store.commit().unwrap();
        }
        if round == 0 {
            drop(store);
            continue;
        }
        // All of the second and third segment leave: they are freed, and the first one stands alone.
        store.settle(1, 16, 40);
        store.commit().unwrap();
        store.storage.checkpoint(&store).unwrap();
        return (rig, store);
    }
    unreachable!("the second round returns")
}

#[test]
fn a_healthy_store_has_no_findings() {
    let (rig, store) = store();
    let (found, read_bytes) = scrub(&store);
    assert_eq!(found, []);
    let segments = rig.disk.list(Path::new("log")).unwrap().len() as u64;
    assert!(read_bytes > (segments - 1) * 8000, "{read_bytes}");
}

#[test]
fn every_flip_in_a_sealed_segment_is_found_where_it_is() {
    let (rig, store) = store();
    let mut found_count = 0;
    for segment in crate::storage::segment::list(&rig.disk).unwrap() {
        let path = segment_path(segment);
        if segment == store.storage.confirm_lsn().segment() {
            continue;
        }
        let bytes = rig.disk.contents(&path).unwrap();
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64;
        for at in (0..=used).filter(|at| at % 41 == 0) {
            // The rest of the header's block is void.
            let is_void = (80..4096).contains(&at);
            rig.disk.flip_bit(&path, at, 2).unwrap();
            let (found, _) = scrub(&store);
            rig.disk.flip_bit(&path, at, 2).unwrap();
            if is_void {
                assert_eq!(found, [], "{segment} byte {at}");
                continue;
            }
            // Without a successor, only what comes later can say that the last batch is one.
            let is_last = used - at < 1100;
            let [rot] = &found[..] else {
                assert!(
                    is_last && found.is_empty(),
                    "{segment} byte {at}: {found:?}"
                );
                continue;
            };
            assert!(rot.path.ends_with(&path.display().to_string()), "{rot:?}");
            assert!(
                rot.offset <= at && at - rot.offset < 900,
                "byte {at}: {rot:?}"
            );
            let (from, upto) = rot.range.expect("it is in the log");
            assert_eq!(from.segment(), segment);
            assert!(
                at < 80 || at < u64::from(upto.offset()),
                "byte {at}: {rot:?}"
            );
            found_count += 1;
        }
    }
    assert!(found_count > 300, "{found_count}");
}

/// A store whose index files have blocks, some of messages that are in a cold segment now.
fn filed_store() -> (Rig, LiveStore) {
    let rig = Rig::new(Options {
        index_min_messages: 0,
        segment_size_bytes: Options::SEGMENT_SIZE_MIN_BYTES,
        ..options()
    });
    let (store, _) = rig.open();
    store.create_queue(1);
    store.create_queue(2);
    for number in 0..600_u64 {
        store.publish(&[1], &numbered_payload(number, 100), 0);
        if number % 20 == 0 {
            store.publish(&[2], &numbered_payload(number, 100), 0);
        }
    }
    store.commit().unwrap();
    store.storage.checkpoint(&store).unwrap();
    store.settle(1, 1, 500);
    rig.clock.advance_ms(60);
    store.commit().unwrap();
    store.storage.checkpoint(&store).unwrap();
    let moved = store.storage.compact(&store, false, u64::MAX).unwrap();
    assert!(moved.moved_count > 10, "{moved:?}");
    store.storage.checkpoint(&store).unwrap();
    (rig, store)
}

#[test]
fn every_flip_in_a_block_that_counts_is_found_and_made_good() {
    let (rig, store) = filed_store();
    assert_eq!(scrub(&store).0, []);
    let mut found_count = 0;
    for queue in [1, 2] {
        let path = index_path(QueueId(queue));
        let len = rig.disk.contents(&path).unwrap().len();
        let runs = store.queue(QueueId(queue)).unwrap().runs;
        for at in (0..len as u64).step_by(211) {
            let named = runs
                .iter()
                .find(|run| u64::from(run.block) == at / BLOCK_LEN as u64);
            rig.disk.flip_bit(&path, at, 2).unwrap();
            let (found, _) = scrub(&store);
            rig.disk.flip_bit(&path, at, 2).unwrap();
            let Some(run) = named else {
                assert_eq!(found, [], "a block that no queue relies on, byte {at}");
                continue;
            };
            let [rot] = &found[..] else {
                panic!("byte {at}: {found:?}");
            };
            assert!(rot.path.ends_with(&path.display().to_string()), "{rot:?}");
            assert_eq!(rot.offset, at / BLOCK_LEN as u64 * BLOCK_LEN as u64);
            assert_eq!(rot.run, Some((QueueId(queue), run.number)));
            found_count += 1;
        }
    }
    assert!(found_count > 30, "{found_count}");
    // What is whole stays; what is not is written again, and the next checkpoint names the new one.
    let run = store.queue(QueueId(2)).unwrap().runs[0].clone();
    let rewrite = || store.storage.rewrite_run(&store, QueueId(2), run.number);
    assert!(!rewrite().unwrap());
    let path = index_path(QueueId(2));
    let place = u64::from(run.block) * BLOCK_LEN as u64 + 17;
    rig.disk.flip_bit(&path, place, 2).unwrap();
    assert!(rewrite().unwrap());
    store.storage.checkpoint(&store).unwrap();
    assert_eq!(scrub(&store).0, []);
    let (again, recovered) = rig.after_power_loss().open();
    assert_eq!(recovered.report.rebuilt_run_count, 0);
    again.check_payloads(&store.payloads());
}

#[test]
fn a_cold_segment_is_read_once_nobody_fills_it() {
    let (rig, store) = filed_store();
    let path = segment_path(SegmentId::FIRST_COLD);
    rig.disk.flip_bit(&path, 4096 + 300, 2).unwrap();
    assert_eq!(scrub(&store).0, [], "it may be being filled");
    let rig = rig.after_power_loss();
    let (store, _) = rig.open();
    let (found, _) = scrub(&store);
    let [rot] = &found[..] else {
        panic!("{found:?}");
    };
    assert!(rot.path.ends_with(&path.display().to_string()), "{rot:?}");
    assert!((4096..4096 + 300).contains(&rot.offset), "{rot:?}");
}

#[test]
fn the_medium_is_read_not_the_cache() {
    let (rig, store) = store();
    let images = store.images();
    let entry = images[0].entries.iter().next().unwrap();
    // It is in the cache now.
    store
        .storage
        .read(images[0].id, entry.seq, entry.position)
        .unwrap();
    let path = segment_path(entry.position.lsn.segment());
    let at = u64::from(entry.position.lsn.offset()) + 100;
    rig.disk.flip_bit(&path, at, 2).unwrap();
    let (found, _) = scrub(&store);
    assert_eq!(found.len(), 1);
    assert!(matches!(
        store.storage.read(images[0].id, entry.seq, entry.position),
        Err(ReadError::Damaged { .. })
    ));
}

#[test]
fn checkpoint_and_superblocks_are_looked_at_too() {
    let (rig, store) = store();
    let name = rig.disk.list(Path::new("checkpoint")).unwrap().remove(0);
    let path = Path::new("checkpoint").join(name);
    let len = rig.disk.contents(&path).unwrap().len() as u64;
    for at in 0..len {
        rig.disk.flip_bit(&path, at, 1).unwrap();
        assert_eq!(scrub(&store).0.len(), 1, "byte {at}");
        rig.disk.flip_bit(&path, at, 1).unwrap();
    }
    for name in SUPERBLOCK_FILES {
        for at in 0..128 {
            rig.disk.flip_bit(Path::new(name), at, 1).unwrap();
            assert_eq!(scrub(&store).0.len(), 1, "{name} byte {at}");
            rig.disk.flip_bit(Path::new(name), at, 1).unwrap();
        }
    }
}

#[test]
fn a_segment_that_is_being_written_is_left_alone() {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    store.create_queue(1);
    store.commit().unwrap();
    let open = store.storage.confirm_lsn().segment();
    assert_eq!(open, SegmentId(1));
    rig.disk.flip_bit(&segment_path(open), 4100, 2).unwrap();
    assert_eq!(scrub(&store), (Vec::new(), 0));
}
