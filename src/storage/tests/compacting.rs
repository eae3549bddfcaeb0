//! Nearly empty segments give way: their last messages move.

use super::*;
use crate::disk::{Disk, OpenMode};
use crate::storage::format::{StoreId, segment_path};
use crate::storage::scan::SegmentScan;
use crate::storage::segment::{self, FIRST_BATCH_OFFSET};
use crate::storage::testing::{as_recovered, numbered_payload};
use crate::storage::types::{QueueId, SegmentId};
use crate::storage::{CheckpointSource, Compacted};

/// A body of which five fill a segment of the tests.
const BODY_LEN: usize = 12_000;

/// A store with some segments that each hold one message of queue 2, and nothing else that is alive.
fn stragglers(rig: &Rig) -> LiveStore {
    let (store, _) = rig.open();
    store.create_queue(1);
    store.create_queue(2);
    for round in 0..12 {
        store.publish(&[2], &numbered_payload(round, 500), 0);
        for number in 0..5 {
            store.publish(&[1], &numbered_payload(number, BODY_LEN), 0);
            store.commit().unwrap();
        }
    }
    store.settle(1, 1, 60);
    rig.clock.advance_ms(60);
    store.commit().unwrap();
    let report = store.storage.checkpoint(&store).unwrap();
    assert!(report.freed.is_empty(), "{report:?}");
    store
}

/// Proves I29.
#[test]
fn one_straggler_in_each_segment_does_not_hold_the_disk() {
    let rig = Rig::new(options());
    let store = stragglers(&rig);
    let before = store.storage.stats();
    assert!(before.segment_count > 11, "{before:?}");
    let done = store.storage.compact(&store, false, u64::MAX).unwrap();
    assert!(done.moved_count >= 10, "{done:?}");
    store.check_payloads(&store.payloads());
    rig.clock.advance_ms(3_000);
    assert!(store.storage.checkpoint_due());
    let report = store.storage.checkpoint(&store).unwrap();
    assert!(report.freed.len() >= 10, "{report:?}");
    let after = store.storage.stats();
    assert!(after.segment_count <= 4, "{after:?}");
    assert_eq!(after.cold_segment_count, 1);
    store.check_payloads(&store.payloads());
    let (again, recovered) = rig.after_power_loss().open();
    assert_eq!(recovered.report.message_count, 12);
    again.check_payloads(&store.payloads());
    assert_eq!(as_recovered(again.images()), as_recovered(store.images()));
    again.storage.checkpoint(&again).unwrap();
    again.check_payloads(&store.payloads());
}

/// Proves I28.
#[test]
fn a_crash_before_the_checkpoint_goes_back_to_the_old_places() {
    let rig = Rig::new(options());
    let store = stragglers(&rig);
    store.storage.compact(&store, false, u64::MAX).unwrap();
    let dead = rig.after_power_loss();
    let (again, recovered) = dead.open();
    assert_eq!(recovered.report.message_count, 12);
    let is_cold =
        |entry: &crate::storage::types::ImageEntry| entry.position.lsn.segment().is_cold();
    assert!(!recovered.queues[1].entries.iter().any(is_cold));
    again.check_payloads(&store.payloads());
    // The copies are garbage.
    let report = again.storage.checkpoint(&again).unwrap();
    assert!(report.freed.contains(&SegmentId::FIRST_COLD));
}

#[test]
fn a_message_in_many_queues_is_copied_once() {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    for queue in 1..=4 {
        store.create_queue(queue);
    }
    store.publish(&[2, 3, 4], &numbered_payload(7, 500), 0);
    for number in 0..10 {
        store.publish(&[1], &numbered_payload(number, BODY_LEN), 0);
        store.commit().unwrap();
    }
    store.settle(1, 1, 10);
    store.commit().unwrap();
    store.storage.checkpoint(&store).unwrap();
    let done = store.storage.compact(&store, false, u64::MAX).unwrap();
    assert_eq!(done.moved_count, 3);
    assert!(done.copied_bytes < 700, "{done:?}");
    store.storage.checkpoint(&store).unwrap();
    let places: Vec<_> = store.images()[1..]
        .iter()
        .map(|image| image.entries.iter().next().unwrap().position)
        .collect();
    assert!(places[0].lsn.segment().is_cold());
    assert!(places.iter().all(|place| *place == places[0]));
    rig.after_power_loss()
        .open()
        .0
        .check_payloads(&store.payloads());
}

#[test]
fn a_damaged_message_is_not_copied_and_keeps_its_segment() {
    let rig = Rig::new(options());
    let store = stragglers(&rig);
    let victim = store.images()[1].entries.iter().nth(3).unwrap().position;
    let path = crate::storage::format::segment_path(victim.lsn.segment());
    rig.disk
        .flip_bit(&path, u64::from(victim.lsn.offset()) + 100, 3)
        .unwrap();
    let done = store.storage.compact(&store, false, u64::MAX).unwrap();
    assert_eq!(done.damaged_count, 1);
    let report = store.storage.checkpoint(&store).unwrap();
    assert!(report.freed.len() >= 9, "{report:?}");
    assert!(!report.freed.contains(&victim.lsn.segment()));
    let entry = *store.images()[1].entries.iter().nth(3).unwrap();
    assert_eq!(entry.position, victim);
}

#[test]
fn a_pass_copies_about_what_it_may() {
    let rig = Rig::new(options());
    let store = stragglers(&rig);
    let mut passes = 0;
    loop {
        let done = store.storage.compact(&store, false, 1_200).unwrap();
        if done.segment_count == 0 {
            break;
        }
        passes += 1;
        assert!(done.copied_bytes <= 1_200, "{done:?}");
    }
    assert!(passes >= 5, "{passes}");
    assert!(store.storage.checkpoint(&store).unwrap().freed.len() >= 10);
    // They went on in one segment, and its batches follow each other as those of the log do.
    assert_eq!(store.storage.stats().cold_segment_count, 1);
    let dead = rig.after_power_loss();
    let file = dead
        .disk
        .open(&segment_path(SegmentId::FIRST_COLD), OpenMode::Read);
    let file = file.unwrap();
    let header = segment::read_header(&*file, StoreId([0x5a; 16]), SegmentId::FIRST_COLD);
    let header = header.unwrap().unwrap();
    let mut scan = SegmentScan::new(file, header, FIRST_BATCH_OFFSET).unwrap();
    let (mut batch_count, mut last_crc) = (0, 0);
    while let Ok(batch) = scan.next_batch().unwrap() {
        assert_eq!(batch.header.previous_crc, last_crc, "batch {batch_count}");
        last_crc = batch.header.crc;
        batch_count += 1;
    }
    assert_eq!(batch_count, passes);
    dead.open().0.check_payloads(&store.payloads());
}

#[test]
fn what_replay_would_read_is_not_moved() {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    store.create_queue(1);
    for number in 0..4 {
        store.publish(&[1], &numbered_payload(number, BODY_LEN), 0);
    }
    store.publish(&[1], &numbered_payload(4, 500), 0);
    store.settle(1, 1, 4);
    store.commit().unwrap();
    store.storage.checkpoint(&store).unwrap();
    // Nearly empty, but more is being written to it.
    assert_eq!(store.storage.stats().segment_count, 1);
    let done = store.storage.compact(&store, true, u64::MAX).unwrap();
    assert_eq!(done, Compacted::default());
}

#[test]
fn the_cold_segment_being_filled_stays_when_it_is_empty() {
    let rig = Rig::new(options());
    let store = stragglers(&rig);
    store.storage.compact(&store, false, u64::MAX).unwrap();
    store.settle(2, 1, 12);
    store.publish(&[2], &numbered_payload(13, 500), 0);
    for number in 0..10 {
        store.publish(&[1], &numbered_payload(number, BODY_LEN), 0);
    }
    store.settle(1, 61, 70);
    rig.clock.advance_ms(60);
    store.commit().unwrap();
    let report = store.storage.checkpoint(&store).unwrap();
    assert!(!report.freed.contains(&SegmentId::FIRST_COLD), "{report:?}");
    let done = store.storage.compact(&store, false, u64::MAX).unwrap();
    assert_eq!(done.moved_count, 1, "{done:?}");
    store.storage.checkpoint(&store).unwrap();
    let place = store.images()[1].entries.iter().next().unwrap().position;
    assert_eq!(place.lsn.segment(), SegmentId::FIRST_COLD);
    let (again, recovered) = rig.after_power_loss().open();
    assert_eq!(recovered.report.message_count, 1);
    again.check_payloads(&store.payloads());
}

/// Proves I28, I29.
#[test]
fn stragglers_that_are_filed_move_with_their_run() {
    let rig = Rig::new(Options {
        index_min_messages: 0,
        ..options()
    });
    let store = stragglers(&rig);
    let runs = |store: &LiveStore| store.queue(QueueId(2)).unwrap().runs;
    let before = runs(&store);
    assert!(before[0].segments.len() > 10 && before[0].content_bytes > 0);
    let done = store.storage.compact(&store, false, u64::MAX).unwrap();
    assert!(done.moved_count >= 10, "{done:?}");
    let after = runs(&store);
    assert!(after[0].segments.len() <= 2, "{after:?}");
    assert_eq!(after[0].live, before[0].live);
    assert_eq!(after[0].content_bytes, before[0].content_bytes);
    store.check_filed();
    // Until the checkpoint the old block is the one that counts, and is not touched.
    for is_durable in [false, true] {
        if is_durable {
            let report = store.storage.checkpoint(&store).unwrap();
            assert!(report.freed.len() >= 10, "{report:?}");
        }
        let (again, recovered) = rig.after_power_loss().open();
        assert_eq!(recovered.report.message_count, 12);
        assert_eq!(recovered.report.rebuilt_run_count, 0);
        again.check_filed();
        again.check_payloads(&store.payloads());
        assert_eq!(again.storage.stats().rebuilt_run_count, 0);
    }
}

/// Proves I26, I28.
#[test]
fn cold_segments_are_compacted_and_freed_like_others() {
    let rig = Rig::new(options());
    let store = stragglers(&rig);
    store.storage.compact(&store, false, u64::MAX).unwrap();
    store.storage.checkpoint(&store).unwrap();
    // Another incarnation begins another cold segment.
    let rig = rig.after_power_loss();
    let (store, _) = rig.open();
    store.settle(2, 2, 12);
    rig.clock.advance_ms(60);
    store.commit().unwrap();
    store.storage.checkpoint(&store).unwrap();
    let done = store.storage.compact(&store, false, u64::MAX).unwrap();
    assert_eq!(done.moved_count, 1, "{done:?}");
    let report = store.storage.checkpoint(&store).unwrap();
    assert!(report.freed.contains(&SegmentId::FIRST_COLD), "{report:?}");
    let place = store.images()[1].entries.iter().next().unwrap().position;
    assert_eq!(place.lsn.segment(), SegmentId(SegmentId::FIRST_COLD.0 + 1));
    let again = rig.after_power_loss();
    assert_eq!(again.open().1.report.message_count, 1);
}

/// Queues that hold each straggler.
const FAN_OUT: u64 = 20;

/// Twelve segments; queues 2 to 21 hold `straggler_count` messages of each, and nothing else is alive.
fn fanned_out(rig: &Rig, straggler_count: u64) -> LiveStore {
    let (store, _) = rig.open();
    let queues: Vec<u64> = (2..2 + FAN_OUT).collect();
    for queue in 1..2 + FAN_OUT {
        store.create_queue(queue);
    }
    for _ in 0..12 {
        for number in 0..straggler_count {
            store.publish(&queues, &numbered_payload(number, 4_000), 0);
        }
        for number in straggler_count..14 {
            store.publish(&[1], &numbered_payload(number, 4_000), 0);
        }
        store.commit().unwrap();
    }
    store.settle(1, 1, 200);
    rig.clock.advance_ms(60);
    store.commit().unwrap();
    store.storage.checkpoint(&store).unwrap();
    store
}

/// Bytes of live records, each counted once however many queues have it.
fn unique_bytes(store: &LiveStore) -> u64 {
    let images = store.images();
    let entries = images.iter().flat_map(|image| image.entries.iter());
    let records: std::collections::BTreeMap<_, _> = entries
        .map(|entry| (entry.position.lsn, u64::from(entry.position.len_bytes)))
        .collect();
    records.values().sum()
}

/// Proves I29.
#[test]
fn a_message_in_twenty_queues_holds_no_more_disk_than_one() {
    let rig = Rig::new(options());
    let store = fanned_out(&rig, 1);
    let unique = unique_bytes(&store);
    let segment_bytes = rig.options.segment_size_bytes;
    // By refs every segment is more than a quarter alive.
    let before = store.storage.stats();
    assert!(before.live_bytes > before.segment_bytes, "{before:?}");
    assert!(
        before.segment_bytes > 4 * unique + 4 * segment_bytes,
        "{before:?}, {unique}"
    );
    let done = store.storage.compact(&store, false, u64::MAX).unwrap();
    assert!(done.moved_count >= 10 * FAN_OUT, "{done:?}");
    assert!(done.copied_bytes <= unique, "{done:?}");
    store.storage.checkpoint(&store).unwrap();
    let after = store.storage.stats();
    assert_eq!(unique_bytes(&store), unique);
    assert!(
        after.segment_bytes <= 4 * unique + 4 * segment_bytes,
        "{after:?}, {unique}"
    );
    store.check_payloads(&store.payloads());
    let (again, recovered) = rig.after_power_loss().open();
    assert_eq!(recovered.report.message_count, 12 * FAN_OUT);
    again.check_payloads(&store.payloads());
}

/// Proves I29.
#[test]
fn while_the_disk_is_low_the_log_takes_twice_what_is_alive() {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    store.create_queue(1);
    // Fifteen messages fill a segment, and six of them stay, which otherwise is enough.
    for number in 0..15 * 60 {
        store.publish(&[1], &numbered_payload(number % 200, 4_000), 0);
        store.commit().unwrap();
    }
    for first in (1..).step_by(15).take(60) {
        store.settle(1, first + 6, first + 14);
    }
    let checkpoint = || {
        rig.clock.advance_ms(60);
        store.commit().unwrap();
        store.storage.checkpoint(&store).unwrap();
    };
    checkpoint();
    let unique = unique_bytes(&store);
    let constant = 4 * rig.options.segment_size_bytes;
    let used_bytes = || {
        let stats = store.storage.stats();
        stats.segment_bytes + stats.spare_count * rig.options.segment_size_bytes
    };
    let plenty = store.storage.compact(&store, false, u64::MAX).unwrap();
    assert_eq!(plenty.moved_count, 0, "{plenty:?}");
    assert!(used_bytes() <= 4 * unique + constant);
    assert!(used_bytes() > 2 * unique + constant, "{unique}");
    store.storage.tend_space(true).unwrap();
    let low = store.storage.compact(&store, true, u64::MAX).unwrap();
    assert!(low.moved_count > 0, "{low:?}");
    checkpoint();
    assert_eq!(unique_bytes(&store), unique);
    assert!(
        used_bytes() <= 2 * unique + constant,
        "{} of {unique}",
        used_bytes()
    );
    store.check_payloads(&store.payloads());
    rig.after_power_loss()
        .open()
        .0
        .check_payloads(&store.payloads());
}

#[test]
fn what_is_full_of_messages_of_many_queues_stays_and_is_counted_when_that_may_change() {
    let rig = Rig::new(options());
    let store = fanned_out(&rig, 8);
    let pass = |is_low| store.storage.compact(&store, is_low, u64::MAX).unwrap();
    // One queue alone fills them so far that nothing needs counting.
    assert_eq!(pass(false), Compacted::default());
    // Each queue keeps other messages: more than a quarter is alive, less than that by any one queue.
    for queue in 2..2 + FAN_OUT {
        let kept = [[2, 4, 6], [1, 3, 5]][usize::from(queue % 2 == 1)];
        for seq in (1..=96).filter(|seq| !kept.contains(&(seq % 8))) {
            store.settle(queue, seq, seq);
        }
    }
    let checkpoint = || {
        rig.clock.advance_ms(60);
        store.commit().unwrap();
        store.storage.checkpoint(&store).unwrap()
    };
    checkpoint();
    let first = pass(false);
    assert!(first.counted_count > 10, "{first:?}");
    assert_eq!(
        (first.segment_count, first.moved_count),
        (0, 0),
        "{first:?}"
    );
    // Counted is counted, also after a checkpoint, as long as nothing goes.
    assert_eq!(pass(false), Compacted::default());
    checkpoint();
    assert_eq!(pass(false), Compacted::default());
    // While the disk is low half a segment is worth moving.
    let low = pass(true);
    assert!(low.moved_count > 0, "{low:?}");
    assert_eq!(low.counted_count, 0, "{low:?}");
    store.check_payloads(&store.payloads());
}
