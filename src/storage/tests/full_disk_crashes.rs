//! Crashes while the engine lives on its reserve, and space that comes back wherever it was missing.

use super::*;
use crate::storage::testing::numbered_payload;
use crate::storage::types::{Lsn, QueueId, Seq};

/// Survivors looked at for each crash point.
const CHOICE_COUNT: usize = 2;
/// A body of which five fill a segment.
const BODY_LEN: usize = 12_000;

/// What was promised: each message of queue 1 with the place its record ends at, and those that were settled.
#[derive(Default)]
struct Promised {
    published: Vec<(Seq, Lsn)>,
    settled: Vec<Seq>,
    /// Everything below was confirmed.
    confirmed: Lsn,
}

impl Promised {
    fn publish(&mut self, store: &LiveStore, count: u64) -> Result<(), StorageError> {
        for number in 0..count {
            let (receipt, seqs) = store.publish(&[1], &numbered_payload(number, BODY_LEN), 0);
            self.published.push((seqs[0], receipt.end));
            self.commit(store)?;
        }
        Ok(())
    }

    fn settle(&mut self, store: &LiveStore, first: u64, last: u64) -> Result<(), StorageError> {
        store.settle(1, first, last);
        self.settled.extend((first..=last).map(Seq));
        self.commit(store)
    }

    fn commit(&mut self, store: &LiveStore) -> Result<(), StorageError> {
        let done = store.commit();
        self.confirmed = store.storage.confirm_lsn();
        done
    }

    /// Every confirmed message is there unless it was settled, and nothing is there that was never published.
    #[track_caller]
    fn check(&self, store: &LiveStore, context: &str) {
        let images = store.images();
        let there: Vec<Seq> = images
            .iter()
            .filter(|image| image.id == QueueId(1))
            .flat_map(|image| image.entries.iter().map(|entry| entry.seq))
            .collect();
        for (seq, end) in &self.published {
            let is_owed = *end <= self.confirmed && !self.settled.contains(seq);
            assert!(
                !is_owed || there.contains(seq),
                "{context}: {} is lost",
                seq.0
            );
        }
        let is_known = |seq: &Seq| self.published.iter().any(|(known, _)| known == seq);
        assert!(there.iter().all(is_known), "{context}: {there:?}");
        for entry in images.iter().flat_map(|image| image.entries.iter()) {
            let read = store.storage.read(QueueId(1), entry.seq, entry.position);
            let read = read.unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_eq!(read.len(), BODY_LEN, "{context}");
        }
    }
}

/// A store with fifteen messages in queue 1, and room for everything.
fn filled(rig: &Rig) -> (LiveStore, Promised) {
    let (store, _) = rig.open();
    store.create_queue(1);
    let mut promised = Promised::default();
    promised.publish(&store, 15).unwrap();
    (store, promised)
}

/// Everything that needs space: commits into new segments, a checkpoint, compaction, and the checkpoint that frees what
/// it left. Goes on after a refusal, as an owner does.
fn work(
    rig: &Rig,
    store: &LiveStore,
    promised: &mut Promised,
    publish_count: u64,
) -> Result<(), StorageError> {
    promised.publish(store, publish_count)?;
    for seq in (1..15).filter(|seq| seq % 5 != 0) {
        promised.settle(store, seq, seq)?;
    }
    for _ in 0..2 {
        rig.clock.advance_ms(3_000);
        promised.commit(store)?;
        end_of(store.storage.checkpoint(store))?;
        end_of(store.storage.compact(store, true, u64::MAX))?;
    }
    end_of(store.storage.tend_space(false))
}

/// A full disk ends nothing; anything else does.
fn end_of<T>(done: Result<T, StorageError>) -> Result<(), StorageError> {
    match done {
        Err(error) if !error.is_full() => Err(error),
        _ => Ok(()),
    }
}

/// Proves I30.
#[test]
fn a_crash_at_any_operation_on_a_full_disk_loses_nothing_and_starts_on_the_full_disk() {
    crash_at_every_operation(6);
}

/// The last quarter of the reserve is for the next start.
#[test]
fn a_crash_at_any_operation_after_commits_took_what_they_may_starts_on_the_full_disk() {
    crash_at_every_operation(12);
}

#[track_caller]
fn crash_at_every_operation(publish_count: u64) {
    let mut number = 0;
    loop {
        let rig = Rig::new(options());
        let (store, mut promised) = filled(&rig);
        rig.leave(0);
        rig.disk.crash_at(rig.disk.operation_count() + number);
        let worked = work(&rig, &store, &mut promised, publish_count);
        if !rig.disk.is_crashed() {
            assert!(number > 60, "only {number} operations");
            let used = store.storage.stats().reserve_bytes < 2 * rig.options.segment_size_bytes;
            assert!(used, "the reserve was needed");
            worked.unwrap();
            return;
        }
        drop(store);
        for choice in rig.disk.choices(CHOICE_COUNT, number) {
            let context = format!("operation {number}, {choice:?}");
            let dead = rig.after_crash(&choice);
            dead.leave(0);
            let opened = dead.try_open();
            let (store, _) = opened.unwrap_or_else(|error| panic!("{context}: {error}"));
            promised.check(&store, &context);
            drop(store);
            // With room everything goes on.
            dead.leave(PLENTY / 2);
            let (store, _) = dead.open();
            store.publish(&[1], &numbered_payload(7, BODY_LEN), 0);
            store.commit().unwrap();
            store.storage.checkpoint(&store).unwrap();
            store.storage.tend_space(false).unwrap();
            assert!(!store.storage.is_short_of_space(), "{context}");
        }
        number += 1;
    }
}

/// However much is left, it is missing somewhere: at a commit, a new segment, a checkpoint, a copy.
#[test]
fn where_ever_space_ends_everything_works_once_there_is_some() {
    let mut stalled_count = 0;
    for kib in (0..120).step_by(2) {
        let context = format!("{kib} KiB");
        let rig = Rig::new(options());
        let (store, mut promised) = filled(&rig);
        rig.leave(kib << 10);
        promised.publish(&store, 10).unwrap();
        work(&rig, &store, &mut promised, 6).unwrap();
        promised.publish(&store, 10).unwrap();
        stalled_count += u64::from(store.storage.is_stalled());
        rig.leave(PLENTY / 2);
        rig.clock.advance_ms(3_000);
        promised.commit(&store).unwrap();
        assert!(!store.storage.is_stalled(), "{context}");
        let last = promised.published.last().unwrap().1;
        assert!(promised.confirmed >= last, "{context}: confirms are owed");
        store.storage.checkpoint(&store).unwrap();
        store.storage.compact(&store, false, u64::MAX).unwrap();
        store.storage.checkpoint(&store).unwrap();
        store.storage.tend_space(false).unwrap();
        assert!(!store.storage.is_short_of_space(), "{context}");
        assert!(store.heard.failures.lock().unwrap().is_empty(), "{context}");
        let (again, _) = rig.after_power_loss().open();
        promised.check(&again, &context);
        assert_eq!(
            crate::storage::testing::as_recovered(again.images()),
            crate::storage::testing::as_recovered(store.images()),
            "{context}"
        );
    }
    assert!(stalled_count > 5, "{stalled_count}");
}
