//! Many messages read at once: the same bytes as one by one, in few reads, and damage stays where it is.

use super::*;
use crate::disk::sim::{Effect, Trigger};
use crate::disk::{Disk, OpenMode};
use crate::storage::format::{StoreId, segment_path};
use crate::storage::segment;
use crate::storage::testing::numbered_payload;
use crate::storage::types::{Position, QueueId, Seq};
use crate::storage::{ReadBuffer, ReadError, ReadPages};

const QUEUE: QueueId = QueueId(1);

/// A store with messages of these sizes in one queue, committed.
fn store_with(rig: &Rig, sizes: &[usize]) -> LiveStore {
    let (store, _) = rig.open();
    store.create_queue(QUEUE.0);
    for (number, &size) in sizes.iter().enumerate() {
        store.publish(&[QUEUE.0], &numbered_payload(number as u64, size), 0);
    }
    store.commit().unwrap();
    store
}

fn wanted(store: &LiveStore) -> Vec<(Seq, Position)> {
    let image = store.images().remove(0);
    let entries = image.entries.iter();
    entries.map(|entry| (entry.seq, entry.position)).collect()
}

fn large_segments() -> Rig {
    Rig::new(Options {
        segment_size_bytes: 4 << 20,
        ..Options::default()
    })
}

#[track_caller]
fn check_all(store: &LiveStore, wanted: &[(Seq, Position)]) {
    let payloads = store.payloads();
    let mut buffer = ReadBuffer::default();
    let results = store.storage.read_many(QUEUE, wanted, &mut buffer);
    assert_eq!(results.len(), wanted.len());
    for ((seq, _), result) in wanted.iter().zip(results) {
        assert_eq!(result.unwrap(), payloads[&(QUEUE, *seq)], "{seq:?}");
    }
}

#[test]
fn many_messages_are_read_as_one_by_one_whatever_their_size_and_order() {
    let rig = large_segments();
    let sizes: Vec<usize> = (0..200)
        .map(|n| [0, 1, 7, 1000, 5000, 70_000, 200_000][n * 13 % 7])
        .collect();
    let store = store_with(&rig, &sizes);
    let mut wanted = wanted(&store);
    check_all(&store, &wanted);
    wanted.reverse();
    check_all(&store, &wanted);
    wanted.sort_by_key(|(seq, _)| seq.0 * 7919 % 200);
    check_all(&store, &wanted);
    wanted.retain(|(seq, _)| seq.0 % 17 == 0);
    check_all(&store, &wanted);
    check_all(&store, &[]);
}

#[test]
fn messages_that_are_not_in_a_file_yet_are_found_with_the_others() {
    let rig = large_segments();
    let store = store_with(&rig, &[100; 20]);
    for number in 20..40 {
        store.publish(&[QUEUE.0], &numbered_payload(number, 100), 0);
    }
    check_all(&store, &wanted(&store));
}

#[test]
fn a_flipped_bit_fails_the_one_message_it_hits() {
    let rig = large_segments();
    let store = store_with(&rig, &[500; 30]);
    let wanted = wanted(&store);
    for hit in [0, 11, 29] {
        let (_, position) = wanted[hit];
        let path = segment_path(position.lsn.segment());
        let offset = u64::from(position.lsn.offset()) + 300;
        rig.disk.flip_bit(&path, offset, 3).unwrap();
        let mut buffer = ReadBuffer::default();
        let results = store.storage.read_many(QUEUE, &wanted, &mut buffer);
        for (at, result) in results.iter().enumerate() {
            let is_damaged = matches!(result, Err(ReadError::Damaged { .. }));
            assert_eq!(is_damaged, at == hit, "message {at}: {result:?}");
        }
        rig.disk.flip_bit(&path, offset, 3).unwrap();
    }
}

#[test]
fn a_wrong_place_or_queue_is_never_answered_with_other_bytes() {
    let rig = large_segments();
    let store = store_with(&rig, &[500; 3]);
    let all = wanted(&store);
    let swapped = [(all[0].0, all[1].1), (all[1].0, all[0].1), all[2]];
    let mut buffer = ReadBuffer::default();
    let results = store.storage.read_many(QUEUE, &swapped, &mut buffer);
    let is_ok: Vec<bool> = results.iter().map(Result::is_ok).collect();
    assert_eq!(is_ok, [false, false, true]);
    let results = store.storage.read_many(QueueId(2), &all, &mut buffer);
    assert!(results.iter().all(Result::is_err));
}

/// The same header but for what `change` does to it, over the file of the first of `wanted`.
fn change_header(
    rig: &Rig,
    wanted: &[(Seq, Position)],
    change: impl FnOnce(&mut segment::SegmentHeader),
) {
    let segment = wanted[0].1.lsn.segment();
    let path = segment_path(segment);
    let file = rig.disk.open(&path, OpenMode::Read).unwrap();
    let header = segment::read_header(&*file, StoreId([0x5a; 16]), segment).unwrap();
    let mut header = header.unwrap();
    change(&mut header);
    rig.disk.write_durably(&path, 0, &header.encode()).unwrap();
}

/// What lies behind the header would pass every other check.
#[test]
fn a_file_of_another_store_or_number_in_place_of_a_segment_is_damage() {
    let changes: [fn(&mut segment::SegmentHeader); 2] = [
        |header| header.store = StoreId([0x11; 16]),
        |header| header.segment.0 += 1,
    ];
    for change in changes {
        let rig = large_segments();
        let store = store_with(&rig, &[500; 3]);
        let wanted = wanted(&store);
        change_header(&rig, &wanted, change);
        let mut results = store
            .storage
            .read_many(QUEUE, &wanted, &mut ReadBuffer::default());
        let (seq, position) = wanted[0];
        results.push(store.storage.read(QUEUE, seq, position));
        for result in results {
            let Err(ReadError::Damaged { path, detail, .. }) = result else {
                panic!("read from a foreign file: {result:?}");
            };
            assert!(path.contains("log/") && detail.contains("belongs to another file"));
        }
    }
}

#[test]
fn records_that_verify_are_read_from_a_file_whose_header_rotted() {
    let rig = large_segments();
    let store = store_with(&rig, &[500; 3]);
    let wanted = wanted(&store);
    let path = segment_path(wanted[0].1.lsn.segment());
    rig.disk.flip_bit(&path, 20, 1).unwrap();
    check_all(&store, &wanted);
}

#[test]
fn a_failed_large_read_is_repeated_record_by_record() {
    let rig = large_segments();
    let store = store_with(&rig, &[500; 10]);
    let wanted = wanted(&store);
    rig.disk.inject(Trigger::Read, 1, Effect::Eio);
    check_all(&store, &wanted);
    // The large one and the fourth small one.
    rig.disk.inject(Trigger::Read, 1, Effect::Eio);
    rig.disk.inject(Trigger::Read, 5, Effect::Eio);
    let mut buffer = ReadBuffer::default();
    let results = store.storage.read_many(QUEUE, &wanted, &mut buffer);
    let failed: Vec<usize> = (0..10).filter(|&at| results[at].is_err()).collect();
    assert_eq!(failed, [3]);
    assert!(matches!(results[3], Err(ReadError::Io { .. })));
}

/// Messages of 1 KiB, every `shared`th of them also in another queue, in segments of which only the last one is written.
fn backlog(can_bypass: bool, shared: u64) -> (Rig, LiveStore, Vec<(Seq, Position)>) {
    let rig = Rig::new(Options {
        segment_size_bytes: 256 * 1024,
        ..Options::default()
    });
    rig.disk.set_bypass_supported(can_bypass);
    let (store, _) = rig.open();
    let queues = [QUEUE.0, 2];
    for queue in queues {
        store.create_queue(queue);
    }
    for number in 0..1000 {
        let names = if number % shared == 0 { 2 } else { 1 };
        store.publish(&queues[..names], &numbered_payload(number, 1024), 0);
        if number % 50 == 0 {
            store.commit().unwrap();
        }
    }
    store.commit().unwrap();
    let wanted = wanted(&store);
    (rig, store, wanted)
}

#[test]
fn long_reads_past_the_cache_bring_the_same_as_others() {
    for (can_bypass, shared) in [(false, 9), (true, 1), (true, 2), (true, 9), (true, 5000)] {
        let (_rig, store, mut wanted) = backlog(can_bypass, shared);
        for _ in 0..2 {
            check_all(&store, &wanted);
        }
        for from in [1, 37, 500] {
            check_all(&store, &wanted[from..from + 200]);
        }
        wanted.sort_by_key(|(seq, _)| seq.0 * 7919 % 1000);
        check_all(&store, &wanted);
    }
}

/// Messages that are slices of what was read, and those for which no page is left, are the same as copies.
#[test]
fn messages_of_a_long_read_keep_its_page_while_there_is_one() {
    for can_bypass in [false, true] {
        let rig = large_segments();
        rig.disk.set_bypass_supported(can_bypass);
        let store = store_with(&rig, &[1000; 3000]);
        let wanted = wanted(&store);
        let payloads = store.payloads();
        // Two pages.
        let pages = ReadPages::within(256 << 20);
        let mut buffer = ReadBuffer::with_pages(pages.clone());
        let mut kept = Vec::new();
        for at in [2, 1, 0] {
            let results = store.storage.read_many(QUEUE, &wanted[..1000], &mut buffer);
            for ((seq, _), result) in wanted.iter().zip(&results) {
                assert_eq!(result.as_ref().unwrap(), &payloads[&(QUEUE, *seq)]);
            }
            // One of them stays.
            let result = results.into_iter().nth(at);
            kept.push((wanted[at].0, result.unwrap().unwrap()));
        }
        assert!(pages.take().is_none(), "two of those that stay keep a page");
        for (seq, payload) in kept.split_off(1) {
            assert_eq!(payload, payloads[&(QUEUE, seq)], "{seq:?} was overwritten");
        }
        drop(kept);
        assert!(pages.take().is_some());
        buffer.rest();
        // Half of the bytes in between: each message for itself.
        let half: Vec<_> = wanted.iter().step_by(2).copied().collect();
        let results = store.storage.read_many(QUEUE, &half, &mut buffer);
        assert!(results.iter().all(Result::is_ok));
        let left = [pages.take(), pages.take()];
        assert!(left.iter().all(Option::is_some));
    }
}

#[test]
fn a_long_read_past_the_cache_that_fails_is_made_through_it() {
    let (rig, store, wanted) = backlog(true, 5000);
    for read in 1..6 {
        rig.disk.inject(Trigger::Read, read, Effect::Eio);
        check_all(&store, &wanted);
    }
}

#[test]
fn a_flipped_bit_fails_one_message_past_the_cache_too() {
    let (rig, store, wanted) = backlog(true, 5000);
    let (_, position) = wanted[100];
    let path = segment_path(position.lsn.segment());
    let offset = u64::from(position.lsn.offset()) + 300;
    rig.disk.flip_bit(&path, offset, 3).unwrap();
    let results = store
        .storage
        .read_many(QUEUE, &wanted, &mut ReadBuffer::default());
    for (at, result) in results.iter().enumerate() {
        let is_damaged = matches!(result, Err(ReadError::Damaged { .. }));
        assert_eq!(is_damaged, at == 100, "message {at}: {result:?}");
    }
}
