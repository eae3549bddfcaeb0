//! Admission: what was admitted finds room on a full disk, and so do the settles behind it.

use super::*;
use crate::storage::reserve::Need;
use crate::storage::testing::numbered_payload;
use crate::storage::types::Pusher;

/// A store whose reserve is the large one, eight segments of 16 KiB in all, with ten messages in queue 1.
fn busy(rig: &Rig) -> LiveStore {
    rig.disk.set_capacity(Some(PLENTY));
    let (store, _) = rig.open();
    store.create_queue(1);
    for number in 0..10 {
        store.publish(&[1], &numbered_payload(number, 12_000), 0);
        store.commit().unwrap();
    }
    store
}

fn admit(store: &LiveStore, bytes: u64, pusher: Pusher) -> bool {
    store.storage.admit(bytes, pusher)
}

/// Pushes records of about 1,000 bytes for as long as they are admitted; how many.
fn push_admitted(store: &LiveStore, pusher: Pusher) -> u64 {
    let mut count = 0;
    while admit(store, 1_100, pusher) {
        store.publish(&[1], &numbered_payload(count, 1_000), 0);
        store.storage.release(1_100);
        count += 1;
    }
    count
}

#[test]
fn publishers_dead_letters_and_settles_each_find_room_for_what_was_admitted() {
    let rig = Rig::new(options());
    let store = busy(&rig);
    let published = push_admitted(&store, Pusher::Publisher);
    let buried = push_admitted(&store, Pusher::DeadLetters);
    assert!(published >= 5 && buried >= 2, "{published}, {buried}");
    // Now it is full, and all of it is still in memory.
    rig.leave(0);
    store.settle(1, 1, 10);
    store.commit().unwrap();
    rig.clock.advance_ms(60);
    store.commit().unwrap();
    assert!(!store.storage.is_stalled());
    assert_eq!(store.storage.synced_lsn(), store.storage.confirm_lsn());
    let (_, recovered) = rig.after_power_loss().open();
    let left = recovered.report.message_count;
    assert_eq!(left, published + buried, "the ten are settled");
}

/// The more a checkpoint borrows, the less may be pending: it never takes what commits need.
#[test]
fn a_checkpoint_at_zero_bytes_free_leaves_room_for_what_is_pending() {
    let rig = Rig::new(options());
    let store = busy(&rig);
    let published = push_admitted(&store, Pusher::Publisher);
    assert!(published > 0);
    rig.leave(0);
    for seq in 1..=10 {
        store.settle(1, seq, seq);
        rig.clock.advance_ms(3_000);
        store.storage.checkpoint(&store).unwrap();
        store.commit().unwrap();
        assert!(!store.storage.is_stalled(), "after {seq}");
    }
}

/// However much checkpoints and compaction ask for.
#[test]
fn what_is_borrowed_leaves_room_for_what_is_pending_and_for_settles() {
    for is_pending in [false, true] {
        let rig = Rig::new(options());
        let store = busy(&rig);
        let space = &store.storage.shared().space;
        let whole_bytes = space.reserve_bytes();
        if is_pending {
            push_admitted(&store, Pusher::Publisher);
        }
        let pending_bytes = space.admission.pending_bytes();
        while space.make_room(Need::Vital) {}
        let before = space.reserve_bytes();
        while space.make_room(Need::Commit) {}
        let left_bytes = space.reserve_bytes();
        let settle_bytes = whole_bytes * 3 / 16;
        assert!(before - left_bytes >= pending_bytes + settle_bytes);
        // What is for the next start.
        assert_eq!(left_bytes, 16 << 10);
        assert!(before < whole_bytes, "something was given");
    }
}

#[test]
fn nobody_is_admitted_to_publish_once_the_disk_has_refused_anything() {
    let rig = Rig::new(options());
    let store = busy(&rig);
    assert!(admit(&store, 100, Pusher::Publisher));
    store.storage.release(100);
    rig.leave(0);
    store.settle(1, 1, 1);
    for _ in 0..40 {
        store.settle(1, 2, 2);
        store.commit().unwrap();
        rig.clock.advance_ms(60);
    }
    store.storage.checkpoint(&store).unwrap();
    assert!(store.storage.is_short_of_space());
    assert!(!admit(&store, 1, Pusher::Publisher));
    // As long as there is something left beyond what is for settles.
    assert!(admit(&store, 1, Pusher::DeadLetters));
    assert!(!admit(&store, 1 << 20, Pusher::DeadLetters));
    rig.leave(PLENTY / 2);
    store.storage.tend_space(false).unwrap();
    assert!(admit(&store, 100, Pusher::Publisher));
}

#[test]
fn whoever_was_refused_hears_of_the_next_commit() {
    let rig = Rig::new(options());
    let store = busy(&rig);
    push_admitted(&store, Pusher::Publisher);
    let heard = || *store.heard.room_again_count.lock().unwrap();
    let before = heard();
    assert!(!admit(&store, 4_000, Pusher::Publisher));
    store.commit().unwrap();
    assert!(heard() > before);
    assert!(admit(&store, 4_000, Pusher::Publisher));
    let before = heard();
    store.storage.release(4_000);
    store.publish(&[1], &numbered_payload(1, 10), 0);
    store.commit().unwrap();
    assert_eq!(heard(), before, "nobody waits any more");
}

#[test]
fn a_record_larger_than_a_small_reserve_is_admitted_alone_and_makes_it_a_large_one() {
    let rig = Rig::new(Options::default());
    rig.disk.set_capacity(Some(PLENTY));
    let (store, _) = rig.open();
    store.create_queue(1);
    store.commit().unwrap();
    let small_bytes = store.storage.stats().reserve_bytes;
    let large = 10 << 20;
    assert!(admit(&store, large, Pusher::Publisher), "alone");
    assert!(!admit(&store, large, Pusher::Publisher), "not both");
    store.publish(&[1], &numbered_payload(1, 1 << 20), 0);
    store.storage.release(large);
    store.commit().unwrap();
    assert!(store.storage.stats().reserve_bytes > 100 * small_bytes);
    assert!(admit(&store, large, Pusher::Publisher));
    assert!(
        admit(&store, large, Pusher::Publisher),
        "both have room now"
    );
}

#[test]
fn a_record_that_the_disk_has_no_room_for_waits_and_nobody_for_it() {
    let rig = Rig::new(Options::default());
    rig.disk.set_capacity(Some(PLENTY));
    let (store, _) = rig.open();
    rig.leave(5 << 20);
    assert!(!admit(&store, 10 << 20, Pusher::Publisher));
    assert!(admit(&store, 1_000, Pusher::Publisher));
    store.storage.release(1_000);
    assert!(!store.storage.is_short_of_space());
    rig.leave(30 << 20);
    assert!(admit(&store, 10 << 20, Pusher::Publisher));
}

#[test]
fn small_records_let_a_large_one_go_first_as_long_as_it_asks() {
    let rig = Rig::new(options());
    let store = busy(&rig);
    push_admitted(&store, Pusher::Publisher);
    let large = 1 << 20;
    assert!(!admit(&store, large, Pusher::Publisher), "not alone");
    store.commit().unwrap();
    for pusher in [Pusher::Publisher, Pusher::DeadLetters] {
        assert!(!admit(&store, 100, pusher), "a larger one waits");
    }
    assert!(admit(&store, large, Pusher::Publisher));
    store.storage.release(large);
    assert!(admit(&store, 100, Pusher::Publisher));
    store.storage.release(100);
    // Whoever does not ask any more is not waited for.
    push_admitted(&store, Pusher::Publisher);
    assert!(!admit(&store, large, Pusher::Publisher));
    store.commit().unwrap();
    assert!(!admit(&store, 100, Pusher::Publisher));
    rig.clock.advance_ms(1_000);
    assert!(admit(&store, 100, Pusher::Publisher));
}

#[test]
fn whoever_was_refused_hears_when_somebody_gives_back_what_he_was_admitted_with() {
    let rig = Rig::new(options());
    let store = busy(&rig);
    assert!(admit(&store, 30_000, Pusher::Publisher));
    assert!(!admit(&store, 30_000, Pusher::Publisher));
    let heard = || *store.heard.room_again_count.lock().unwrap();
    let before = heard();
    store.storage.release(30_000);
    assert_eq!(heard(), before + 1);
    assert!(admit(&store, 30_000, Pusher::Publisher));
}

/// With `interval` a sync may be far away: nobody who has something to publish waits for it.
#[test]
fn a_commit_is_not_put_off_while_somebody_waits_for_room() {
    let rig = Rig::new(Options {
        fsync: FsyncPolicy::Interval { ms: 60_000 },
        ..options()
    });
    rig.disk.set_capacity(Some(PLENTY));
    let (store, _) = rig.open();
    store.create_queue(1);
    store.storage.checkpoint(&store).unwrap();
    push_admitted(&store, Pusher::Publisher);
    while store.storage.step().unwrap() {}
    let confirmed = store.storage.confirm_lsn();
    assert!(!admit(&store, 30_000, Pusher::Publisher));
    while store.storage.step().unwrap() {}
    assert!(store.storage.confirm_lsn() > confirmed);
    assert!(admit(&store, 30_000, Pusher::Publisher));
}

#[test]
fn a_reserve_of_larger_segments_is_cut_to_what_is_wanted() {
    let rig = Rig::new(Options {
        segment_size_bytes: 1 << 20,
        ..options()
    });
    rig.disk.set_capacity(Some(PLENTY));
    let (store, _) = rig.open();
    assert!(admit(&store, 10 << 20, Pusher::Publisher), "alone");
    store.storage.release(10 << 20);
    store.commit().unwrap();
    assert_eq!(store.storage.stats().reserve_bytes, 2 << 20);
    store.storage.close(&store).unwrap();
    let smaller = Rig {
        options: options(),
        ..rig
    };
    let (store, _) = smaller.open();
    let reserve_bytes = store.storage.stats().reserve_bytes;
    assert_eq!(reserve_bytes, 2 * smaller.options.segment_size_bytes);
}

/// Restarted with what was left, again and again: every start has room, and so have its settles.
#[test]
fn what_a_dead_broker_left_of_the_reserve_keeps_its_parts() {
    let mut rig = Rig::new(options());
    let store = busy(&rig);
    push_admitted(&store, Pusher::Publisher);
    rig.leave(0);
    store.commit().unwrap();
    drop(store);
    for round in 1..=5 {
        rig = rig.after_power_loss();
        rig.leave(0);
        let (store, _) = rig.open();
        store.settle(1, round, round);
        store.commit().unwrap();
        rig.clock.advance_ms(60);
        store.commit().unwrap();
        assert!(!store.storage.is_stalled(), "round {round}");
        store.storage.checkpoint(&store).unwrap();
    }
}
