//! Nearly empty segments give way: their last messages move.

use super::*;
use crate::storage::testing::{as_recovered, numbered_payload};
use crate::storage::types::SegmentId;

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
