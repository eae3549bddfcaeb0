//! A disk without a free byte: what goes on, what waits, and that waiting ends by itself.

use std::path::Path;

use super::*;
use crate::disk::Disk;
use crate::disk::sim::{Effect, Trigger};
use crate::storage::testing::numbered_payload;

/// A store whose log rolled, with ten messages in queue 1; its reserve is the large one.
fn busy(rig: &Rig) -> LiveStore {
    let (store, _) = rig.open();
    store.create_queue(1);
    for number in 0..10 {
        store.publish(&[1], &numbered_payload(number, 12_000), 0);
        store.commit().unwrap();
    }
    assert_eq!(
        store.storage.stats().reserve_bytes,
        2 * rig.options.segment_size_bytes
    );
    store
}

/// Publishes until the reserve is used up; the last message waits.
fn exhaust(store: &LiveStore) {
    for number in 0..100 {
        store.publish(&[1], &numbered_payload(number, 12_000), 0);
        store.commit().unwrap();
        if store.storage.is_stalled() {
            return;
        }
    }
    panic!("the reserve has no end");
}

#[test]
fn an_idle_store_puts_little_aside() {
    let rig = Rig::new(Options::default());
    let (store, _) = rig.open();
    let reserve_bytes = store.storage.stats().reserve_bytes;
    assert!((1..=256 << 10).contains(&reserve_bytes), "{reserve_bytes}");
}

#[test]
fn at_zero_bytes_free_acks_and_checkpoints_go_on_and_the_owner_is_told() {
    let rig = Rig::new(options());
    let store = busy(&rig);
    rig.leave(0);
    for seq in 1..=9 {
        store.settle(1, seq, seq);
        rig.clock.advance_ms(60);
        store.commit().unwrap();
    }
    let end = store.storage.checkpoint(&store).unwrap();
    assert!(!store.storage.is_stalled());
    assert!(store.storage.is_short_of_space());
    assert!(!end.freed.is_empty(), "what was acked is freed: {end:?}");
    assert!(store.storage.stats().reserve_bytes < 2 * rig.options.segment_size_bytes);
    let (again, recovered) = rig.after_power_loss().open();
    assert_eq!(recovered.queues[0].entries.len(), 1);
    again.check_payloads(&store.payloads());
}

#[test]
fn a_commit_that_finds_no_room_tells_the_owner_waits_and_goes_on_by_itself() {
    let rig = Rig::new(options());
    let store = busy(&rig);
    rig.leave(0);
    exhaust(&store);
    assert!(*store.heard.short_count.lock().unwrap() > 0);
    assert!(store.heard.failures.lock().unwrap().is_empty());
    let confirmed = store.storage.confirm_lsn();
    // However long it takes; what waits can be read, and more may come.
    for number in 0..5 {
        rig.clock.advance_ms(1_000);
        store.publish(&[1], &numbered_payload(number, 100), 0);
        store.commit().unwrap();
        assert!(store.storage.is_stalled());
        assert_eq!(store.storage.confirm_lsn(), confirmed);
    }
    store.check_payloads(&store.payloads());
    // Nothing that was confirmed is lost when it dies now.
    // Not even the start fails: that part of the reserve is kept for it.
    let (_, recovered) = rig.after_power_loss().open();
    assert!(recovered.report.replayed_to >= confirmed);
    rig.leave(PLENTY / 2);
    rig.clock.advance_ms(60);
    store.commit().unwrap();
    assert!(!store.storage.is_stalled());
    assert!(store.storage.confirm_lsn() > confirmed);
    assert!(!store.storage.is_short_of_space());
    let (again, _) = rig.after_power_loss().open();
    again.check_payloads(&store.payloads());
    assert_eq!(
        crate::storage::testing::as_recovered(again.images()),
        crate::storage::testing::as_recovered(store.images())
    );
}

#[test]
fn a_store_starts_acks_purges_and_deletes_at_zero_bytes_free() {
    let rig = Rig::new(options());
    let store = busy(&rig);
    store.create_queue(2);
    store.publish(&[1, 2], &numbered_payload(7, 100), 0);
    store.commit().unwrap();
    let dead = rig.after_power_loss();
    dead.leave(0);
    let (store, recovered) = dead.open();
    assert_eq!(recovered.report.message_count, 12);
    store.settle(1, 1, 11);
    store.delete_queue(2);
    store.commit().unwrap();
    store.storage.checkpoint(&store).unwrap();
    let again = dead.after_power_loss();
    let (_, recovered) = again.open();
    assert_eq!(recovered.report.message_count, 0);
    assert_eq!(recovered.report.queue_count, 1);
}

#[test]
fn closing_does_not_wait_for_room_and_fails_nobody() {
    let rig = Rig::new(options());
    let store = busy(&rig);
    rig.leave(0);
    exhaust(&store);
    let confirmed = store.storage.confirm_lsn();
    let closed = store.storage.close(&store);
    assert!(
        matches!(closed, Err(StorageError::ClosedFull { .. })),
        "{closed:?}"
    );
    assert!(store.heard.failures.lock().unwrap().is_empty());
    // With the disk as full as it was, once and once more.
    for _ in 0..2 {
        let (again, recovered) = rig.open();
        assert!(recovered.report.replayed_to >= confirmed);
        again.check_payloads(&store.payloads());
    }
}

/// Looks until it is so.
fn wait_until(is_so: impl Fn() -> bool) {
    while !is_so() {
        std::thread::yield_now();
    }
}

/// ```text
/// t1 a commit syncs, t2 more is pushed, t3 a checkpoint waits for that, t4 the disk fills up, t5 the commit goes on
/// ```
#[test]
fn a_checkpoint_that_waits_for_room_ends_with_the_engine() {
    let rig = Rig::new(options());
    rig.disk.set_capacity(Some(PLENTY));
    let (store, _) = LiveStore::open(
        Arc::new(rig.disk.clone()),
        Arc::new(rig.clock.clone()),
        rig.options.clone(),
    )
    .unwrap();
    store.create_queue(1);
    rig.disk.hold_syncs();
    store.storage.wake();
    rig.disk.wait_for_held_sync();
    for number in 0..40 {
        store.publish(&[1], &numbered_payload(number, 12_000), 0);
    }
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| store.storage.checkpoint(&store));
        wait_until(|| store.storage.shared().is_forced());
        let available_bytes = rig.disk.free_space().unwrap().available_bytes;
        rig.disk.set_capacity(Some(PLENTY - available_bytes));
        rig.disk.release_syncs();
        wait_until(|| store.storage.is_stalled());
        store.storage.stop_waiting_for_room();
        let ended = waiting.join().unwrap();
        assert!(
            matches!(ended, Err(StorageError::ClosedFull { .. })),
            "{ended:?}"
        );
    });
    let closed = store.storage.close(&store);
    assert!(
        matches!(closed, Err(StorageError::ClosedFull { .. })),
        "{closed:?}"
    );
    assert!(store.heard.failures.lock().unwrap().is_empty());
    let said = closed.unwrap_err().to_string();
    assert!(said.contains("what was confirmed is kept"), "{said}");
}

#[test]
fn publishers_go_on_only_when_there_is_plenty() {
    let rig = Rig::new(options());
    let store = busy(&rig);
    rig.leave(0);
    exhaust(&store);
    let reserve_bytes = 2 * rig.options.segment_size_bytes;
    rig.leave(reserve_bytes);
    store.storage.tend_space(false).unwrap();
    assert!(store.storage.is_short_of_space());
    rig.leave(3 * reserve_bytes);
    store.storage.tend_space(false).unwrap();
    assert!(!store.storage.is_short_of_space());
    assert_eq!(store.storage.stats().reserve_bytes, reserve_bytes);
}

#[test]
fn a_reserve_that_cannot_be_made_whole_takes_no_more_than_it_had() {
    for (trigger, is_supported) in [(Trigger::Sync, true), (Trigger::Write, false)] {
        let rig = Rig::new(options());
        let store = busy(&rig);
        rig.leave(0);
        exhaust(&store);
        let before = store.storage.stats().reserve_bytes;
        rig.leave(PLENTY / 2);
        rig.disk.set_allocate_supported(is_supported);
        let written_bytes = 4096;
        rig.disk.inject(trigger, 1, Effect::Short { written_bytes });
        store.storage.tend_space(false).unwrap();
        assert!(store.storage.is_short_of_space());
        let file = rig.disk.contents(Path::new("reserve")).unwrap();
        assert_eq!(file.len() as u64, before);
        assert_eq!(store.storage.stats().reserve_bytes, before);
    }
}

#[test]
fn a_full_disk_at_a_sync_is_still_the_end() {
    let rig = Rig::new(options());
    let store = busy(&rig);
    rig.disk.inject(Trigger::Sync, 1, Effect::NoSpace);
    store.publish(&[1], &numbered_payload(1, 10), 0);
    assert!(store.commit().is_err());
    assert_eq!(store.heard.failures.lock().unwrap().len(), 1);
}

#[test]
fn spares_are_given_before_the_reserve() {
    let rig = Rig::new(options());
    let store = busy(&rig);
    store.settle(1, 1, 10);
    store.commit().unwrap();
    rig.clock.advance_ms(60);
    store.storage.checkpoint(&store).unwrap();
    let before = store.storage.stats();
    assert!(before.spare_count > 0);
    rig.leave(0);
    store.storage.checkpoint(&store).unwrap();
    let after = store.storage.stats();
    assert!(after.spare_count < before.spare_count);
    assert_eq!(after.reserve_bytes, before.reserve_bytes);
}

#[test]
fn without_allocation_the_reserve_is_written() {
    let rig = Rig::new(options());
    rig.disk.set_allocate_supported(false);
    let store = busy(&rig);
    rig.disk.set_allocate_supported(true);
    rig.leave(0);
    store.settle(1, 1, 10);
    rig.clock.advance_ms(60);
    store.commit().unwrap();
    store.storage.checkpoint(&store).unwrap();
    assert!(!store.storage.is_stalled());
}

#[test]
fn a_disk_that_does_not_say_its_size_may_get_full_and_have_room_again() {
    let rig = Rig::new(options());
    rig.disk.set_size_unknown(true);
    let store = busy(&rig);
    assert!(!store.storage.is_short_of_space());
    rig.disk.set_size_unknown(false);
    rig.leave(0);
    rig.disk.set_size_unknown(true);
    exhaust(&store);
    assert!(store.storage.is_short_of_space());
    rig.disk.set_capacity(None);
    store.commit().unwrap();
    store.storage.tend_space(false).unwrap();
    store.commit().unwrap();
    assert!(!store.storage.is_short_of_space());
    let stats = store.storage.stats();
    assert_eq!(stats.reserve_bytes, 2 * rig.options.segment_size_bytes);
    let again = rig.after_power_loss();
    again.open().0.check_payloads(&store.payloads());
}

/// Nothing that is given up on the disk makes a file descriptor: what was put aside stays, and the commit waits.
#[test]
fn a_commit_without_a_descriptor_waits_and_gives_nothing_away() {
    let rig = Rig::new(options());
    let store = busy(&rig);
    let before = store.storage.stats();
    rig.disk.inject(Trigger::Create, 1, Effect::NoDescriptor);
    rig.disk.inject(Trigger::Create, 2, Effect::NoDescriptor);
    let mut has_stalled = false;
    for number in 0..20 {
        store.publish(&[1], &numbered_payload(number, 12_000), 0);
        store.commit().unwrap();
        has_stalled |= store.storage.is_stalled();
        rig.clock.advance_ms(60);
        assert!(!store.storage.is_short_of_space());
        assert_eq!(store.storage.stats().reserve_bytes, before.reserve_bytes);
    }
    assert!(has_stalled, "no segment was made meanwhile");
    store.commit().unwrap();
    assert!(!store.storage.is_stalled());
    let (again, _) = rig.after_power_loss().open();
    again.check_payloads(&store.payloads());
}
