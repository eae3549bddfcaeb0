//! Torn tails and damage: cut or refused, never wrong data, never a panic.

use std::path::Path;

use super::*;
use crate::disk::Disk;
use crate::storage::format::{SUPERBLOCK_FILES, segment_path};
use crate::storage::testing::{as_recovered, numbered_payload};
use crate::storage::types::{Lsn, SegmentId};
use crate::storage::{Found, QueueImage};

/// A store with some history in one segment: the images after each commit, and where each ended.
struct History {
    rig: Rig,
    segment: SegmentId,
    /// Images as a recovery would leave them, with the end of the log they belong to.
    states: Vec<(Lsn, Vec<QueueImage>)>,
}

fn history(commit_count: u64) -> History {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    let mut states = vec![(store.storage.confirm_lsn(), Vec::new())];
    store.create_queue(1);
    for number in 0..commit_count {
        store.publish(
            &[1],
            &numbered_payload(number, 20 + usize::try_from(number).unwrap() * 9),
            0,
        );
        store.commit().unwrap();
        states.push((store.storage.confirm_lsn(), as_recovered(store.images())));
    }
    let segment = store.storage.confirm_lsn().segment();
    History {
        rig,
        segment,
        states,
    }
}

#[test]
fn torn_tail_at_every_byte_of_the_last_batch_is_cut() {
    let History {
        rig,
        segment,
        states,
    } = history(4);
    let [.., (start, before), (end, after)] = &states[..] else {
        panic!("there are states")
    };
    let path = segment_path(segment);
    let whole = rig.disk.contents(&path).unwrap();
    for cut in start.offset()..=end.offset() {
        let torn = rig.after_power_loss();
        let zeros = vec![0; whole.len() - cut as usize];
        torn.disk
            .write_durably(&path, u64::from(cut), &zeros)
            .unwrap();
        let (store, recovered) = torn.open();
        let is_whole = whole[cut as usize..end.offset() as usize]
            .iter()
            .all(|byte| *byte == 0);
        let expected = if is_whole { after } else { before };
        assert_eq!(
            &as_recovered(recovered.queues.clone()),
            expected,
            "cut at {cut}"
        );
        let remains = whole[start.offset() as usize..cut as usize]
            .iter()
            .any(|byte| *byte != 0);
        match &recovered.report.found {
            Found::TornTail(torn_tail) => {
                assert!(remains && !is_whole);
                assert_eq!(torn_tail.cut_at, *start);
                let kept = torn
                    .disk
                    .contents(Path::new(&torn_tail.kept_in[0]))
                    .unwrap();
                let len = usize::try_from(torn_tail.discarded_bytes).unwrap();
                assert_eq!(
                    kept,
                    whole[start.offset() as usize..start.offset() as usize + len]
                );
            }
            _ => assert!(is_whole || !remains, "cut at {cut}: {:?}", recovered.report),
        }
        // Life goes on behind the cut, and the next restart finds all of it.
        store.publish(&[1], &numbered_payload(77, 30), 0);
        store.commit().unwrap();
        let (_, again) = torn.after_power_loss().open();
        assert_eq!(as_recovered(again.queues), as_recovered(store.images()));
    }
}

/// Opens what is left after one bit was flipped; whatever opens must be a state that existed.
#[track_caller]
fn check_flip(history: &History, path: &Path, offset: u64, bit: u8) -> bool {
    let rig = history.rig.after_power_loss();
    rig.disk.flip_bit(path, offset, bit).unwrap();
    let before: Vec<_> = rig.disk.files();
    match rig.try_open() {
        Ok((store, recovered)) => {
            let state = as_recovered(recovered.queues.clone());
            let known = history
                .states
                .iter()
                .position(|(_, images)| *images == state);
            let known = known
                .unwrap_or_else(|| panic!("invented state after a flip at {offset}: {state:?}"));
            // Only the last batch is not covered by a later watermark.
            assert!(
                known + 2 >= history.states.len(),
                "silently lost a proven batch: flip at {offset}"
            );
            store.check_payloads(&std::collections::BTreeMap::new());
            true
        }
        Err(StorageError::Damaged { .. } | StorageError::NewerFormat { .. }) => {
            let mut after = rig.disk.files();
            after.retain(|path| path != Path::new("LOCK"));
            let mut before = before;
            before.retain(|path| path != Path::new("LOCK"));
            assert_eq!(after, before, "a refused directory is left as it was");
            false
        }
        Err(error) => panic!("flip at {offset}: {error}"),
    }
}

#[test]
fn flipped_bit_anywhere_in_a_log_is_damage_or_a_torn_tail() {
    let history = history(5);
    let path = segment_path(history.segment);
    let len = u64::from(history.states.last().unwrap().0.offset());
    let mut refused = 0;
    for offset in 0..len {
        let bit = u8::try_from(offset % 8).unwrap();
        refused += u64::from(!check_flip(&history, &path, offset, bit));
    }
    assert!(refused > 500, "only {refused} flips were noticed");
}

#[test]
fn flipped_bit_in_a_superblock_falls_back_to_the_other_copy() {
    let history = history(3);
    for name in SUPERBLOCK_FILES {
        for offset in 0..128 {
            assert!(
                check_flip(&history, Path::new(name), offset, 3),
                "{name} {offset}"
            );
        }
    }
    let rig = history.rig.after_power_loss();
    for name in SUPERBLOCK_FILES {
        rig.disk.flip_bit(Path::new(name), 60, 1).unwrap();
    }
    assert!(matches!(rig.try_open(), Err(StorageError::Damaged { .. })));
}

#[test]
fn flipped_bit_in_the_checkpoint_is_damage() {
    let mut history = history(3);
    let (store, _) = history.rig.after_power_loss().open();
    drop(store);
    let rig = Rig {
        disk: history
            .rig
            .disk
            .power_cycle(&CrashChoice::keep_everything()),
        clock: history.rig.clock.clone(),
        options: options(),
    };
    let (store, _) = rig.open();
    store.storage.close(&store).unwrap();
    let path = rig.disk.list(Path::new("checkpoint")).unwrap().remove(0);
    let path = Path::new("checkpoint").join(path);
    let len = rig.disk.contents(&path).unwrap().len() as u64;
    history.states = vec![(Lsn(0), Vec::new()), (Lsn(0), as_recovered(store.images()))];
    history.rig = rig;
    for offset in 0..len {
        assert!(
            !check_flip(&history, &path, offset, u8::try_from(offset % 8).unwrap()),
            "offset {offset}"
        );
    }
}

#[test]
fn flipped_bit_in_a_sealed_segment_of_the_replayed_log_is_damage() {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    store.create_queue(1);
    for number in 0..120 {
        store.publish(&[1], &numbered_payload(number, 1500), 0);
    }
    store.commit().unwrap();
    for offset in [0, 100, 4096, 4100, 4200, 5000, 30_000, 60_000] {
        let bad = rig.after_power_loss();
        bad.disk
            .flip_bit(&segment_path(SegmentId(2)), offset, 5)
            .unwrap();
        // The rest of a segment's header block, and zeros behind its end, mean nothing.
        let is_used = !(80..4096).contains(&offset);
        assert_eq!(
            matches!(bad.try_open(), Err(StorageError::Damaged { .. })),
            is_used,
            "offset {offset}"
        );
    }
}

#[test]
fn missing_segment_is_damage() {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    store.create_queue(1);
    for number in 0..150 {
        store.publish(&[1], &numbered_payload(number, 1500), 0);
    }
    store.commit().unwrap();
    for with_checkpoint in [false, true] {
        if with_checkpoint {
            store.storage.checkpoint(&store).unwrap();
        }
        for segment in 1..=3 {
            let bad = rig.after_power_loss();
            bad.disk.remove(&segment_path(SegmentId(segment))).unwrap();
            assert!(
                matches!(bad.try_open(), Err(StorageError::Damaged { .. })),
                "{segment} {with_checkpoint}"
            );
        }
    }
}

#[test]
fn rotten_message_in_a_sealed_segment_is_reported_and_no_other_is_hurt() {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    store.create_queue(1);
    for number in 0..120 {
        store.publish(&[1], &numbered_payload(number, 1500), 0);
    }
    store.storage.checkpoint(&store).unwrap();
    rig.disk
        .flip_bit(&segment_path(SegmentId(1)), 20_000, 0)
        .unwrap();
    let (again, _) = rig.after_power_loss().open();
    let mut damaged = 0;
    for image in again.images() {
        for entry in image.entries.iter() {
            match again.storage.read(image.id, entry.seq, entry.position) {
                Ok(payload) => assert_eq!(payload, store.payloads()[&(image.id, entry.seq)]),
                Err(crate::storage::ReadError::Damaged { .. }) => damaged += 1,
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert_eq!(damaged, 1);
}

#[test]
fn later_format_is_refused_by_name() {
    let history = history(1);
    let rig = history.rig.after_power_loss();
    for name in SUPERBLOCK_FILES {
        use crate::storage::format::superblock as at;
        let mut bytes = rig.disk.contents(Path::new(name)).unwrap();
        at::MIN_READER.put(&mut bytes, 9u32);
        let crc = crc32fast::hash(&bytes[..at::CRC.offset]);
        at::CRC.put(&mut bytes, crc);
        rig.disk.write_durably(Path::new(name), 0, &bytes).unwrap();
    }
    assert!(matches!(
        rig.try_open(),
        Err(StorageError::NewerFormat { found: 9, .. })
    ));
}

#[test]
fn refs_of_a_segment_that_was_void_never_come_back() {
    // t1 a batch is written and not synced, t2 crash: it survives torn, t3 restart cuts it, t4 crash, t5 restart
    let History {
        rig,
        segment,
        states,
    } = history(3);
    let [.., (start, before), _] = &states[..] else {
        panic!("there are states")
    };
    let torn = rig.after_power_loss();
    let path = segment_path(segment);
    let original = torn.disk.contents(&path).unwrap();
    torn.disk
        .flip_bit(&path, u64::from(start.offset()) + 100, 0)
        .unwrap();
    drop(torn.open());
    // Even when the bytes behind the cut become whole again, they stay void.
    torn.disk.write_durably(&path, 0, &original).unwrap();
    let (_, recovered) = torn.after_power_loss().open();
    assert_eq!(&as_recovered(recovered.queues), before);
}
