//! What the commit policies promise, and what happens when the disk refuses.

use std::sync::Arc;

use super::*;
use crate::disk::sim::{Action, Effect, Trigger};
use crate::storage::testing::numbered_payload;
use crate::sync::lock;

/// Syncs of any file or directory.
fn sync_count(rig: &Rig) -> u64 {
    let is_sync =
        |action: &Action| matches!(action, Action::SyncData | Action::SyncAll | Action::SyncDir);
    let journal = rig.disk.journal();
    journal.iter().filter(|done| is_sync(&done.action)).count() as u64
}

fn log_sync_count(rig: &Rig) -> usize {
    rig.disk
        .journal()
        .iter()
        .filter(|operation| {
            operation.action == Action::SyncData && operation.path.starts_with("log")
        })
        .count()
}

#[test]
fn always_confirms_after_a_sync() {
    let rig = Rig::new(with_policy(FsyncPolicy::Always));
    let (store, _) = rig.open();
    let receipt = store.create_queue(1);
    let before = store.storage.stats().sync_count;
    assert!(store.storage.confirm_lsn() < receipt.end);
    store.commit().unwrap();
    assert_eq!(store.storage.confirm_lsn(), receipt.end);
    assert_eq!(store.storage.synced_lsn(), receipt.end);
    assert_eq!(store.storage.stats().sync_count, before + 1);
    assert_eq!(*store.heard.committed.lock().unwrap(), [receipt.end]);
}

/// Commits batches of as many messages, spread over so many of a thousand queues; syncs of any file, bytes written,
/// bytes of the log.
fn cost_of_batches(queues: u64) -> (u64, u64, u64) {
    const BATCHES: u64 = 5;
    const MESSAGES: u64 = 2000;
    let rig = Rig::new(Options {
        segment_size_bytes: 4 << 20,
        ..with_policy(FsyncPolicy::Always)
    });
    let (store, _) = rig.open();
    for queue in 1..=1000 {
        store.create_queue(queue);
    }
    store.commit().unwrap();
    let (before, begin) = (store.storage.stats(), store.storage.synced_lsn());
    let syncs_before = sync_count(&rig);
    for _ in 0..BATCHES {
        for message in 0..MESSAGES {
            let queue = 1 + message % queues;
            store.publish(&[queue], &numbered_payload(message, 100), 0);
        }
        store.commit().unwrap();
    }
    let (after, end) = (store.storage.stats(), store.storage.synced_lsn());
    assert_eq!(after.commit_count - before.commit_count, BATCHES);
    assert_eq!(begin.segment(), end.segment());
    (
        sync_count(&rig) - syncs_before,
        after.written_bytes - before.written_bytes,
        end.0 - begin.0,
    )
}

#[test]
fn i38_syncs_and_bytes_of_a_batch_do_not_depend_on_the_number_of_queues() {
    let of_one = cost_of_batches(1);
    for queues in [10, 100, 1000] {
        assert_eq!(cost_of_batches(queues), of_one, "{queues} queues");
    }
    let (syncs, written_bytes, log_bytes) = of_one;
    assert_eq!(syncs, 5, "one a commit");
    // Each commit writes whole blocks: one at its end, and the one that the batch before it has begun.
    let block_bytes = 4096;
    assert!(written_bytes <= log_bytes + syncs * 2 * block_bytes);
}

#[test]
fn interval_syncs_once_per_interval_and_confirms_wait_for_it() {
    let rig = Rig::new(with_policy(FsyncPolicy::Interval { ms: 10 }));
    let (store, _) = rig.open();
    store.create_queue(1);
    let before = log_sync_count(&rig);
    for ms in 0..100 {
        store.publish(&[1], &numbered_payload(ms, 10), 0);
        store.commit().unwrap();
        assert!(store.storage.confirm_lsn() <= store.storage.synced_lsn());
        rig.clock.advance_ms(1);
    }
    assert_eq!(log_sync_count(&rig) - before, 9);
}

#[test]
fn never_confirms_after_the_write_and_checkpoints_sync_all_the_same() {
    let rig = Rig::new(with_policy(FsyncPolicy::Never));
    let (store, _) = rig.open();
    let receipt = store.create_queue(1);
    let synced = store.storage.synced_lsn();
    store.commit().unwrap();
    assert_eq!(store.storage.confirm_lsn(), receipt.end);
    assert_eq!(store.storage.synced_lsn(), synced);
    store.storage.checkpoint(&store).unwrap();
    assert_eq!(store.storage.synced_lsn(), receipt.end);
}

/// Proves I20.
#[test]
fn lazy_traffic_is_written_after_5_ms_and_synced_within_its_limit() {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    store.create_queue(1);
    store.commit().unwrap();
    let (commits, syncs) = (
        store.storage.stats().commit_count,
        store.storage.stats().sync_count,
    );
    let counts = || {
        store.commit().unwrap();
        let stats = store.storage.stats();
        (stats.commit_count - commits, stats.sync_count - syncs)
    };
    store.settle(1, 1, 1);
    assert_eq!(counts(), (0, 0));
    rig.clock.advance_ms(5);
    assert_eq!(counts(), (1, 0));
    rig.clock.advance_ms(44);
    assert_eq!(counts(), (1, 0));
    rig.clock.advance_ms(1);
    assert_eq!(counts(), (1, 1));
}

#[test]
fn idle_log_is_marked_once() {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    store.create_queue(1);
    store.commit().unwrap();
    let batches = store.storage.stats().batch_count;
    for _ in 0..5 {
        rig.clock.advance_ms(1_000);
        store.commit().unwrap();
    }
    assert_eq!(store.storage.stats().batch_count, batches + 1);
    assert_eq!(store.storage.stats().undurable_bytes, 0);
}

#[test]
fn idle_log_gives_the_memory_of_its_batches_back() {
    let rig = Rig::new(Options {
        segment_size_bytes: 8 << 20,
        ..options()
    });
    let (store, _) = rig.open();
    store.create_queue(1);
    let capacity = || lock(&store.storage.inner.shared.append).capacity();
    for number in 0..200 {
        store.publish(&[1], &numbered_payload(number, 1000), 0);
    }
    store.commit().unwrap();
    assert!(capacity() >= 200_000, "room is used again");
    rig.clock.advance_ms(999);
    store.commit().unwrap();
    assert!(capacity() >= 200_000);
    rig.clock.advance_ms(1);
    store.commit().unwrap();
    assert_eq!(capacity(), 0);
    store.publish(&[1], &numbered_payload(1, 1000), 0);
    store.commit().unwrap();
    assert_eq!(store.images()[0].entries.len(), 201);
}

#[test]
fn a_log_that_waits_for_the_disk_takes_few_large_pages() {
    let rig = Rig::new(Options {
        segment_size_bytes: 64 << 20,
        ..options()
    });
    let (store, _) = rig.open();
    store.create_queue(1);
    for number in 0..12_000 {
        store.publish(&[1], &numbered_payload(number, 1000), 0);
    }
    let page_count = lock(&store.storage.inner.shared.append).page_count();
    assert!((2..=6).contains(&page_count), "{page_count}");
    store.commit().unwrap();
    assert_eq!(store.images()[0].entries.len(), 12_000);
}

/// Proves I40.
#[test]
fn full_buffer_refuses_and_tells_when_there_is_room() {
    let rig = Rig::new(Options {
        undurable_max_bytes: 1000,
        ..options()
    });
    let (store, _) = rig.open();
    store.create_queue(1);
    assert!(store.storage.has_room());
    store.publish(&[1], &numbered_payload(1, 1000), 0);
    assert!(!store.storage.has_room());
    store.commit().unwrap();
    assert!(store.storage.has_room());
    assert_eq!(*store.heard.room_again_count.lock().unwrap(), 1);
    store.commit().unwrap();
    assert_eq!(*store.heard.room_again_count.lock().unwrap(), 1);
}

#[test]
fn full_buffer_of_lazy_traffic_is_committed_at_once() {
    let rig = Rig::new(Options {
        undurable_max_bytes: 100,
        ..options()
    });
    let (store, _) = rig.open();
    store.create_queue(1);
    store.commit().unwrap();
    for _ in 0..10 {
        store.settle(1, 1, 1);
    }
    store.commit().unwrap();
    assert_eq!(store.storage.stats().undurable_bytes, 0);
}

/// Proves I12, I13.
#[test]
fn failed_sync_is_the_end_and_nothing_is_confirmed_after_it() {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    store.create_queue(1);
    store.commit().unwrap();
    let confirmed = store.storage.confirm_lsn();
    rig.disk.inject(Trigger::Sync, 1, Effect::Eio);
    store.publish(&[1], &numbered_payload(1, 10), 0);
    assert!(store.commit().is_err());
    assert_eq!(store.heard.failures.lock().unwrap().len(), 1);
    let syncs = log_sync_count(&rig);
    store.publish(&[1], &numbered_payload(2, 10), 0);
    assert!(matches!(store.commit(), Err(StorageError::Stopped { .. })));
    assert!(matches!(
        store.storage.checkpoint(&store),
        Err(StorageError::Stopped { .. })
    ));
    assert!(matches!(
        store.storage.close(&store),
        Err(StorageError::Stopped { .. })
    ));
    assert_eq!(store.storage.confirm_lsn(), confirmed);
    assert_eq!(
        log_sync_count(&rig),
        syncs,
        "a failed sync is never repeated"
    );
}

#[test]
fn failed_write_is_tried_once_more() {
    for effect in [Effect::Eio, Effect::Short { written_bytes: 700 }] {
        let rig = Rig::new(options());
        let (store, _) = rig.open();
        store.create_queue(1);
        rig.disk.inject(Trigger::Write, 1, effect);
        let receipt = store.publish(&[1], &numbered_payload(1, 3000), 0).0;
        store.commit().unwrap();
        assert_eq!(store.storage.confirm_lsn(), receipt.end);
        let (again, _) = rig.after_power_loss().open();
        again.check_payloads(&store.payloads());

        rig.disk.inject(Trigger::Write, 1, effect);
        rig.disk.inject(Trigger::Write, 2, effect);
        store.publish(&[1], &numbered_payload(2, 3000), 0);
        assert!(store.commit().is_err());
        assert_eq!(store.storage.confirm_lsn(), receipt.end);
    }
}

/// The device may carry out later what it has called a failure: nothing is written there again.
#[test]
fn failed_write_past_the_cache_is_the_end() {
    for effect in [Effect::Eio, Effect::Short { written_bytes: 700 }] {
        let rig = Rig::new(options());
        rig.disk.set_bypass_supported(true);
        let (store, _) = rig.open();
        store.create_queue(1);
        let receipt = store.publish(&[1], &numbered_payload(1, 3000), 0).0;
        store.commit().unwrap();
        rig.disk.inject(Trigger::Write, 1, effect);
        store.publish(&[1], &numbered_payload(2, 3000), 0);
        assert!(store.commit().is_err());
        assert_eq!(store.storage.confirm_lsn(), receipt.end);
    }
}

#[test]
fn commit_thread_tells_the_listener_when_a_sync_fails() {
    let disk = SimDisk::new(1);
    let clock = SimClock::new(1);
    let (store, _) = LiveStore::open(Arc::new(disk.clone()), Arc::new(clock), options()).unwrap();
    let receipt = store.create_queue(1);
    store.storage.wake();
    while store.storage.confirm_lsn() < receipt.end {
        std::thread::yield_now();
    }
    disk.inject(Trigger::Sync, 1, Effect::Eio);
    store.publish(&[1], &numbered_payload(1, 10), 0);
    store.storage.wake();
    while store.heard.failures.lock().unwrap().is_empty() {
        std::thread::yield_now();
    }
    assert_eq!(store.storage.confirm_lsn(), receipt.end);
    assert!(store.storage.close(&store).is_err());
}

#[test]
fn commits_of_many_threads_all_arrive() {
    let disk = SimDisk::new(1);
    let (store, _) = LiveStore::open(
        Arc::new(disk.clone()),
        Arc::new(SimClock::new(1)),
        options(),
    )
    .unwrap();
    store.create_queue(1);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for number in 0..50 {
                    let receipt = store
                        .publish(&[1], &numbered_payload(thread * 1000 + number, 600), 0)
                        .0;
                    store.storage.wake();
                    while store.storage.confirm_lsn() < receipt.end {
                        std::thread::yield_now();
                    }
                }
            });
        }
    });
    assert_eq!(store.storage.stats().message_count, 200);
    store.check_payloads(&store.payloads());
}

#[test]
fn lazy_traffic_behind_a_commit_is_written_in_time_though_it_wakes_nobody() {
    let clock = Arc::new(SimClock::new(1));
    let disk = SimDisk::new(1);
    let (store, _) = LiveStore::open(Arc::new(disk), clock.clone(), options()).unwrap();
    store.create_queue(1);
    // It dozes after a commit, for time stands still.
    let receipt = store.publish(&[1], &numbered_payload(1, 600), 0).0;
    store.storage.wake();
    let wait_until = |is_done: &dyn Fn() -> bool| {
        for _ in 0..20_000 {
            if is_done() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        panic!("it sleeps on");
    };
    wait_until(&|| store.storage.confirm_lsn() >= receipt.end);
    let commit_count = store.storage.stats().commit_count;
    store.settle(1, 1, 1);
    store.storage.wake();
    // What it finds at the end of its doze has been there for as long as it may have been, and time stands still again.
    clock.advance_ms(5);
    wait_until(&|| store.storage.stats().commit_count > commit_count);
}

#[test]
fn segment_is_synced_before_the_next_one_gets_its_first_batch() {
    let rig = Rig::new(with_policy(FsyncPolicy::Never));
    let (store, _) = rig.open();
    store.create_queue(1);
    for number in 0..100 {
        store.publish(&[1], &numbered_payload(number, 1500), 0);
        store.commit().unwrap();
    }
    // Without any sync by policy, what precedes a segment is durable all the same.
    let (_, recovered) = rig.after_power_loss().open();
    assert!(
        recovered.report.message_count >= 40,
        "{:?}",
        recovered.report
    );
}

#[test]
fn batch_of_large_bodies_is_longer_than_one_of_copies() {
    let rig = Rig::new(Options {
        commit_max_bytes: 20 << 10,
        segment_size_bytes: 4 << 20,
        ..options()
    });
    let (store, _) = rig.open();
    store.create_queue(1);
    store.commit().unwrap();
    let batches_of = |count: u64, len: usize| {
        let before = store.storage.stats().batch_count;
        for number in 0..count {
            store.publish(&[1], &numbered_payload(number, len), 0);
        }
        store.commit().unwrap();
        store.storage.stats().batch_count - before
    };
    // Closed with what makes it longer than the cap: two of 10 KiB. Of 64 KiB, longer than four caps.
    assert_eq!(batches_of(160, 1000), 160_u64.div_ceil(20));
    assert_eq!(batches_of(16, 10 << 10), 8);
    assert_eq!(batches_of(16, 64 << 10), 8);
    let (again, _) = rig.after_power_loss().open();
    again.check_payloads(&store.payloads());
}

#[test]
fn atomic_group_is_never_split() {
    let rig = Rig::new(Options {
        commit_max_bytes: 200,
        ..options()
    });
    let (store, _) = rig.open();
    store.create_queue(1);
    store.create_queue(2);
    for number in 0..60 {
        let payload = numbered_payload(number, 900);
        store.publish(&[1], &payload, 0);
        store.move_message(1, number + 1, 2, &payload);
    }
    // Crash after every operation of the commit: a moved message is in exactly one of both queues.
    let begun = rig.disk.operation_count();
    store.commit().unwrap();
    assert!(rig.disk.operation_count() - begun > 60);
    let choices = [CrashChoice::keep_nothing(), CrashChoice::keep_everything()];
    for choice in choices {
        let (_, recovered) = rig.after_crash(&choice).open();
        let counts: Vec<usize> = recovered
            .queues
            .iter()
            .map(|queue| queue.entries.len())
            .collect();
        assert_eq!(counts, [0, 60]);
    }
}

#[test]
fn lazy_traffic_longer_than_a_batch_is_written_within_its_time_as_a_whole() {
    let rig = Rig::new(Options {
        commit_max_bytes: 1024,
        ..options()
    });
    let (store, _) = rig.open();
    store.create_queue(1);
    for number in 0..100 {
        store.publish(&[1], &numbered_payload(number, 10), 0);
    }
    store.commit().unwrap();
    let acks: Vec<_> = (1..=100).map(|seq| store.settle(1, seq, seq)).collect();
    store.commit().unwrap();
    assert_eq!(
        store.storage.stats().undurable_bytes,
        100 * 48,
        "nothing is due yet"
    );
    rig.clock.advance_ms(options().ack_fsync_ms);
    store.commit().unwrap();
    assert_eq!(
        Some(store.storage.synced_lsn()),
        acks.last().map(|receipt| receipt.end)
    );
}
