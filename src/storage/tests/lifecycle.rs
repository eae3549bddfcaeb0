//! Opening, closing, restarting, rolling over segments, checkpoints and the space they free.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::disk::sim::{Effect, Trigger};
use crate::disk::{Disk, RealClock, RealDisk};
use crate::storage::testing::{as_recovered, numbered_payload};
use crate::storage::types::{MetaEffect, SegmentId};
use crate::storage::{CheckpointSource, Found, ReadError};

#[track_caller]
fn check_same_state(recovered: &Recovered, live: &LiveStore) {
    assert_eq!(
        as_recovered(recovered.queues.clone()),
        as_recovered(live.images())
    );
}

#[test]
fn blank_directory_becomes_a_small_store() {
    let rig = Rig::new(options());
    let (store, recovered) = rig.open();
    assert_eq!(recovered.report.found, Found::Fresh);
    assert_eq!(
        (recovered.report.epoch, recovered.report.queue_count),
        (1, 0)
    );
    store.commit().unwrap();
    let bytes: usize = rig
        .disk
        .files()
        .iter()
        .map(|path| rig.disk.contents(path).unwrap().len())
        .sum();
    assert!(bytes < 1 << 20, "a fresh idle directory has {bytes} bytes");
    drop(store);
    let (_, again) = rig.after_power_loss().open();
    assert_eq!(again.report.found, Found::Clean);
    assert_eq!(again.report.epoch, 2);
}

#[test]
fn confirmed_state_survives_power_loss() {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    store.create_queue(1);
    store.create_queue(2);
    for number in 0..20 {
        store.publish(&[1, 2], &numbered_payload(number, 100), 0);
    }
    store.publish(&[2], &numbered_payload(99, 10), 12_345);
    store.settle(1, 3, 7);
    store.requeue(1, 9, 2);
    let last = store.reserve(2, 15);
    // Lazy traffic rides with what is waited for.
    let waited = store.publish(&[1], &numbered_payload(100, 5000), 0).0;
    assert!(waited.end > last.end);
    store.commit().unwrap();
    assert!(store.storage.confirm_lsn() >= waited.end);
    let (again, recovered) = rig.after_power_loss().open();
    check_same_state(&recovered, &store);
    assert_eq!(recovered.report.found, Found::Replayed);
    assert_eq!(recovered.report.message_count, 16 + 21);
    again.check_payloads(&store.payloads());
    assert_eq!(again.metas(), store.metas());
}

#[test]
fn unwritten_and_unsynced_records_are_readable_at_once() {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    store.create_queue(1);
    for (number, len) in [0, 1, 7, 8, 4096, 5000, 9000].into_iter().enumerate() {
        store.publish(&[1], &numbered_payload(number as u64, len), 0);
        store.check_payloads(&store.payloads());
    }
    let parts = [
        numbered_payload(1, 3),
        numbered_payload(2, 5000),
        numbered_payload(3, 1),
        numbered_payload(4, 6001),
    ];
    store.publish_parts(&[1], &parts, 0);
    store.check_payloads(&store.payloads());
    store.commit().unwrap();
    store.check_payloads(&store.payloads());
}

#[test]
fn wrong_position_is_never_another_message() {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    store.create_queue(1);
    store.publish(&[1], &numbered_payload(1, 100), 0);
    store.publish(&[1], &numbered_payload(2, 100), 0);
    store.commit().unwrap();
    let image = &store.images()[0];
    let [first, second] = [0, 1].map(|index| *image.entries.iter().nth(index).unwrap());
    let read = |seq, position| store.storage.read(image.id, seq, position);
    assert!(matches!(
        read(first.seq, second.position),
        Err(ReadError::Damaged { .. })
    ));
    let shifted = crate::storage::types::Position {
        len_bytes: first.position.len_bytes + 8,
        ..first.position
    };
    assert!(matches!(
        read(first.seq, shifted),
        Err(ReadError::Damaged { .. })
    ));
    let ahead = crate::storage::types::Position {
        lsn: store.storage.confirm_lsn(),
        ..first.position
    };
    assert!(matches!(
        read(first.seq, ahead),
        Err(ReadError::NotYetWritten { .. })
    ));
    assert!(read(second.seq, second.position).is_ok());
}

#[test]
fn log_rolls_over_many_segments() {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    store.create_queue(1);
    for number in 0..600 {
        store.publish(&[1], &numbered_payload(number, 1500), 0);
        if number % 7 == 0 {
            store.commit().unwrap();
        }
    }
    store.commit().unwrap();
    assert!(store.storage.stats().segment_count > 12);
    store.check_payloads(&store.payloads());
    let (again, recovered) = rig.after_power_loss().open();
    check_same_state(&recovered, &store);
    again.check_payloads(&store.payloads());
}

#[test]
fn group_larger_than_a_small_segment_gets_a_longer_one() {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    store.create_queue(1);
    store.publish(&[1], &numbered_payload(1, 100), 0);
    store.publish(&[1], &numbered_payload(2, 100_000), 0);
    store.publish(&[1], &numbered_payload(3, 100), 0);
    store.commit().unwrap();
    let (again, recovered) = rig.after_power_loss().open();
    check_same_state(&recovered, &store);
    again.check_payloads(&store.payloads());
}

#[test]
fn checkpoint_shortens_replay_and_frees_segments() {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    store.create_queue(1);
    store.create_queue(2);
    store.publish(&[2], &numbered_payload(1_000_000, 300), 0);
    for number in 0..300 {
        store.publish(&[1], &numbered_payload(number, 1500), 0);
    }
    store.settle(1, 1, 290);
    let report = store.storage.checkpoint(&store).unwrap();
    assert!(report.freed.len() >= 5, "{report:?}");
    assert_eq!((report.queue_count, report.message_count), (2, 11));
    // The straggler in the second queue keeps the first segment.
    assert!(!report.freed.contains(&SegmentId(1)));
    store.settle(2, 1, 1);
    store.publish(&[1], &numbered_payload(400, 10), 0);
    store.commit().unwrap();
    let rig = rig.after_power_loss();
    let (again, recovered) = rig.open();
    check_same_state(&recovered, &store);
    assert_eq!(recovered.report.replayed_record_count, 2);
    assert_eq!(again.metas(), store.metas());
    again.check_payloads(&store.payloads());
    let report = again.storage.checkpoint(&again).unwrap();
    assert!(report.freed.contains(&SegmentId(1)));
    let checkpoints = rig.disk.list(Path::new("checkpoint")).unwrap();
    assert_eq!(
        checkpoints.len(),
        1,
        "older checkpoints are removed: {checkpoints:?}"
    );
}

#[test]
fn zero_live_refs_now_do_not_free_a_segment_of_the_checkpoint() {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    store.create_queue(1);
    for number in 0..100 {
        store.publish(&[1], &numbered_payload(number, 1500), 0);
    }
    store.storage.checkpoint(&store).unwrap();
    let segments = store.storage.stats().segment_count;
    store.settle(1, 1, 100);
    store.commit().unwrap();
    assert_eq!(store.storage.stats().segment_count, segments);
    let report = store.storage.checkpoint(&store).unwrap();
    assert!(!report.freed.is_empty());
}

#[test]
fn clean_stop_replays_nothing_and_keeps_everything() {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    store.create_queue(1);
    store.publish(&[1], &numbered_payload(1, 10), 77);
    store.requeue(1, 1, 4);
    store.storage.close(&store).unwrap();
    let (again, recovered) = rig.after_power_loss().open();
    assert_eq!(recovered.report.found, Found::Clean);
    assert_eq!(recovered.report.replayed_record_count, 0);
    check_same_state(&recovered, &store);
    assert_eq!(again.metas(), store.metas());
}

#[test]
fn deleted_queue_is_gone_and_its_refs_are_dead_not_damage() {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    store.create_queue(1);
    store.create_queue(2);
    let payload = numbered_payload(1, 10);
    store.publish(&[1, 2], &payload, 0);
    store.delete_queue(1);
    store.commit().unwrap();
    let (again, recovered) = rig.after_power_loss().open();
    check_same_state(&recovered, &store);
    assert_eq!(recovered.report.queue_count, 1);
    again.storage.checkpoint(&again).unwrap();
}

/// Proves I34.
#[test]
fn second_opener_is_refused_and_a_closed_store_is_free() {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    assert!(matches!(rig.try_open(), Err(StorageError::Locked { .. })));
    store.storage.close(&store).unwrap();
    let (second, _) = rig.open();
    drop(second);
    rig.open();
}

#[test]
fn foreign_directory_is_refused_and_not_touched() {
    let rig = Rig::new(options());
    drop(
        rig.disk
            .open(Path::new("thesis.txt"), crate::disk::OpenMode::CreateNew)
            .unwrap(),
    );
    let before = rig.disk.operation_count();
    assert!(matches!(
        rig.try_open(),
        Err(StorageError::NotADataDirectory { .. })
    ));
    let writes = rig
        .disk
        .journal()
        .split_off(usize::try_from(before).unwrap());
    assert_eq!(rig.disk.files(), [Path::new("thesis.txt")], "{writes:?}");
}

#[test]
fn half_initialised_directory_is_initialised_again() {
    for crash_at in 0..40 {
        let rig = Rig::new(options());
        rig.disk.crash_at(crash_at);
        let _ = rig.try_open();
        for choice in [CrashChoice::keep_nothing(), CrashChoice::keep_everything()] {
            let (store, _) = rig.after_crash(&choice).open();
            store.create_queue(1);
            store.commit().unwrap();
        }
    }
}

#[test]
fn checkpoint_that_fails_leaves_the_old_one_in_force() {
    for (trigger, nth) in [
        (Trigger::Create, 1),
        (Trigger::Write, 1),
        (Trigger::Sync, 2),
        (Trigger::Rename, 1),
        (Trigger::SyncDir, 1),
        (Trigger::Sync, 3),
        (Trigger::Sync, 4),
    ] {
        let rig = Rig::new(options());
        let (store, _) = rig.open();
        store.create_queue(1);
        store.publish(&[1], &numbered_payload(1, 10), 0);
        store.storage.checkpoint(&store).unwrap();
        store.publish(&[1], &numbered_payload(2, 10), 0);
        rig.disk.inject(trigger, nth, Effect::Eio);
        let result = store.storage.checkpoint(&store);
        assert!(result.is_err(), "{trigger:?} {nth}");
        rig.disk.clear_faults();
        if store.heard.failures.lock().unwrap().is_empty() {
            store.commit().unwrap();
            let (again, recovered) = rig.after_power_loss().open();
            check_same_state(&recovered, &store);
            again.storage.checkpoint(&again).unwrap();
        }
    }
}

#[test]
fn failed_checkpoints_do_not_fill_the_disk() {
    // Each attempt has a number of its own, so each would leave a file of its own.
    for (trigger, nth) in [
        (Trigger::Write, 1),
        (Trigger::Sync, 1),
        (Trigger::Rename, 1),
        (Trigger::SyncDir, 1),
    ] {
        let rig = Rig::new(options());
        let (store, _) = rig.open();
        store.create_queue(1);
        store.storage.checkpoint(&store).unwrap();
        for _ in 0..3 {
            store.publish(&[1], &numbered_payload(1, 10), 0);
            store.commit().unwrap();
            rig.disk.inject(trigger, nth, Effect::Eio);
            store.storage.checkpoint(&store).unwrap_err();
            rig.disk.clear_faults();
            if !store.heard.failures.lock().unwrap().is_empty() {
                break;
            }
        }
        let files = rig.disk.list(Path::new("checkpoint")).unwrap();
        assert_eq!(files.len(), 1, "{trigger:?}: {files:?}");
    }
}

#[test]
fn checkpoint_after_a_failed_one_may_crash_anywhere() {
    // t1 a checkpoint fails after copy 0 of the superblock named it, t2 the next one is written, t3 crash in it
    for crash_after in 0..24 {
        let rig = Rig::new(options());
        let (store, _) = rig.open();
        store.create_queue(1);
        rig.disk.inject(Trigger::Sync, 4, Effect::Eio);
        store.storage.checkpoint(&store).unwrap_err();
        store.publish(&[1], &numbered_payload(1, 10), 0);
        store.commit().unwrap();
        rig.disk.crash_at(rig.disk.operation_count() + crash_after);
        let _ = store.storage.checkpoint(&store);
        for choice in [CrashChoice::keep_nothing(), CrashChoice::keep_everything()] {
            let (again, recovered) = rig.after_crash(&choice).open();
            check_same_state(&recovered, &store);
            again.check_payloads(&store.payloads());
        }
    }
}

#[test]
fn what_a_restart_replayed_counts_towards_the_next_checkpoint() {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    store.create_queue(1);
    store.commit().unwrap();
    let rig = rig.after_power_loss();
    let (again, _) = rig.open();
    assert!(!again.storage.checkpoint_due());
    rig.clock.advance_ms(30_000);
    assert!(again.storage.checkpoint_due());
    again.storage.checkpoint(&again).unwrap();
    rig.clock.advance_ms(60_000);
    assert!(!again.storage.checkpoint_due(), "nothing changed since");
}

#[test]
fn store_with_a_thread_on_real_files_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let disk = || Arc::new(RealDisk::new(directory.path().join("data")).unwrap());
    let open = || LiveStore::open(disk(), Arc::new(RealClock::new()), options()).unwrap();
    let (store, recovered) = open();
    assert_eq!(recovered.report.found, Found::Fresh);
    store.create_queue(1);
    let mut last = store.create_queue(2);
    for number in 0..300 {
        last = store.publish(&[1, 2], &numbered_payload(number, 700), 0).0;
        store.storage.wake();
    }
    while store.storage.confirm_lsn() < last.end {
        std::thread::yield_now();
    }
    store.check_payloads(&store.payloads());
    let (images, payloads) = (store.images(), store.payloads());
    drop(store);
    let (again, recovered) = open();
    assert_eq!(as_recovered(recovered.queues), as_recovered(images));
    again.check_payloads(&payloads);
    again.settle(1, 1, 250);
    again.storage.close(&again).unwrap();
    let (third, recovered) = open();
    assert_eq!(recovered.report.found, Found::Clean);
    assert_eq!(as_recovered(recovered.queues), as_recovered(again.images()));
    third.check_payloads(&payloads);
}

/// One step of the owner of a store.
#[derive(Clone, Debug)]
enum Step {
    Create(u64),
    Delete(u64),
    Publish(Vec<u64>, usize, u64),
    Settle(u64, u64, u64),
    Requeue(u64, u64),
    Reserve(u64, u64),
    Move(u64, u64, u64),
    Commit,
    Checkpoint,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let queue = 0u64..4;
    let seq = 1u64..40;
    prop_oneof![
        1 => queue.clone().prop_map(Step::Create),
        1 => queue.clone().prop_map(Step::Delete),
        12 => (prop::collection::btree_set(queue.clone(), 1..4), 0usize..6000, 0u64..2)
            .prop_map(|(queues, len, expiry)| Step::Publish(queues.into_iter().collect(), len, expiry * 5_000)),
        4 => (queue.clone(), seq.clone(), 0u64..10).prop_map(|(queue, first, width)| Step::Settle(queue, first, first + width)),
        1 => (queue.clone(), seq.clone()).prop_map(|(queue, seq)| Step::Requeue(queue, seq)),
        1 => (queue.clone(), seq.clone()).prop_map(|(queue, upto)| Step::Reserve(queue, upto)),
        1 => (queue.clone(), seq, queue).prop_map(|(from, seq, to)| Step::Move(from, seq, to)),
        2 => Just(Step::Commit),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Restart),
    ]
}

/// Runs steps; a slot names the queue that was created in it last. Queue ids are never used twice.
fn run(steps: Vec<Step>) {
    let mut rig = Rig::new(options());
    let (mut store, _) = rig.open();
    let mut slots: [Option<u64>; 4] = [None; 4];
    let mut next_id = 1;
    let mut payloads = std::collections::BTreeMap::new();
    for (number, step) in steps.into_iter().enumerate() {
        let at = |slot: u64| slots[usize::try_from(slot).unwrap()];
        match step {
            Step::Create(slot) => {
                if at(slot).is_none() {
                    store.create_queue(next_id);
                    slots[usize::try_from(slot).unwrap()] = Some(next_id);
                    next_id += 1;
                }
            }
            Step::Delete(slot) => {
                if let Some(id) = at(slot) {
                    store.delete_queue(id);
                    slots[usize::try_from(slot).unwrap()] = None;
                }
            }
            Step::Publish(queues, len, expires_at_ms) => {
                let mut ids: Vec<u64> = queues.into_iter().filter_map(at).collect();
                ids.sort_unstable();
                if !ids.is_empty() {
                    store.publish(&ids, &numbered_payload(number as u64, len), expires_at_ms);
                }
            }
            Step::Settle(slot, first, last) => {
                at(slot).map(|id| store.settle(id, first, last));
            }
            Step::Requeue(slot, seq) => {
                at(slot).map(|id| store.requeue(id, seq, 1));
            }
            Step::Reserve(slot, upto) => {
                at(slot).map(|id| store.reserve(id, upto));
            }
            Step::Move(from, seq, to) => {
                if let (Some(from), Some(to)) = (at(from), at(to)) {
                    store.move_message(from, seq, to, &numbered_payload(number as u64, 50));
                }
            }
            Step::Commit => store.commit().unwrap(),
            Step::Checkpoint => {
                store.storage.checkpoint(&store).unwrap();
            }
            Step::Restart => {
                // Lazy traffic that nobody waited for is synced by time.
                rig.clock.advance_ms(5);
                store.commit().unwrap();
                rig.clock.advance_ms(60);
                store.commit().unwrap();
                payloads.append(&mut store.payloads());
                rig = rig.after_power_loss();
                let (again, recovered) = rig.open();
                check_same_state(&recovered, &store);
                assert_eq!(again.metas(), store.metas());
                again.check_payloads(&payloads);
                store = again;
            }
        }
    }
    store.meta(b"end", MetaEffect::None);
    store.commit().unwrap();
    let (_, recovered) = rig.after_power_loss().open();
    check_same_state(&recovered, &store);
    assert_eq!(store.queue_ids().len(), recovered.queues.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn replay_gives_the_live_state(steps in prop::collection::vec(step(), 1..120)) {
        run(steps);
    }
}
