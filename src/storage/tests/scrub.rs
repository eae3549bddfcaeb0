//! The scrubber finds every flipped bit of a sealed segment that means something, and nothing in a healthy store.

use std::path::Path;

use super::*;
use crate::disk::Disk;
use crate::storage::ReadError;
use crate::storage::format::{SUPERBLOCK_FILES, segment_path};
use crate::storage::scrub::Rot;
use crate::storage::testing::numbered_payload;
use crate::storage::types::SegmentId;

/// A round in small steps.
fn scrub(store: &LiveStore) -> (Vec<Rot>, u64) {
    let mut scrubber = store.storage.scrubber();
    let (mut found, mut read_bytes) = (Vec::new(), 0);
    loop {
        let step = scrubber.step(1000).unwrap();
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
