//! The state of one queue as a plain value.
//!
//! The same [`QueueImage`] is what a checkpoint stores, what replay builds record by record, what the dump
//! tool shows and what the broker's live queue hands over when it is asked for a snapshot. So "replay gives
//! the live state" is a comparison of two values of one type.
//!
//! Invariants:
//! 1. Entries and runs stand in ascending seq; a seq occurs once, in an entry or in a run.
//! 2. `next_seq` is above the count of every seq any applied record named. A seq between entries that is not there was
//!    settled, or was taken by a message that never was logged; both mean the same.
//! 3. Applying a record is idempotent: one that starts below `last_lsn` is already contained and skipped.

use super::run::FiledRun;
use super::types::{ImageEntry, Lsn, QueueId, Seq, SeqRange};

pub use super::entries::Entries;

/// The unsettled messages of a queue and what is known about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueImage {
    /// The queue.
    pub id: QueueId,
    /// End of the last record that touched it: records that start below are contained.
    pub last_lsn: Lsn,
    /// Seq of the next message; in a queue with priorities, the bound of all counts.
    pub next_seq: Seq,
    /// Any message whose count is below may have been delivered before.
    pub reserved_upto: Seq,
    /// The unsettled messages that are not in `runs`.
    pub entries: Entries,
    /// Runs whose positions are in the queue's index file, ascending; their seqs are not in `entries`.
    pub runs: Vec<FiledRun>,
}

impl QueueImage {
    /// An empty queue that was created by the record ending at `created_lsn`.
    #[must_use]
    pub fn new(id: QueueId, created_lsn: Lsn) -> Self {
        Self {
            id,
            last_lsn: created_lsn,
            next_seq: Seq(1),
            reserved_upto: Seq(0),
            entries: Entries::default(),
            runs: Vec::new(),
        }
    }

    /// Applies the arrival of a message. The entry names the place of its record.
    pub fn apply_publish(&mut self, entry: ImageEntry, start: Lsn, end: Lsn) {
        if self.is_contained(start) {
            return;
        }
        self.name_seq(entry.seq);
        self.entries.insert(entry);
        self.touch(end);
    }

    /// Applies that a message was copied to the place that `entry` names. Below `known_below` one that is not here was
    /// settled; any other is here from now on, and so is one with a priority: a bound for all levels does not tell
    /// what was settled from what came later.
    pub fn apply_copy(&mut self, entry: ImageEntry, known_below: Seq) {
        if let Some(known) = self.entries.get_mut(entry.seq) {
            known.position = entry.position;
        } else if self.is_filed(entry.seq) {
            if let Some(run) = self.run_mut(FiledRun::number_of(entry.seq)) {
                run.note_copy(entry.position);
            }
        } else if entry.seq >= known_below || entry.seq.rank() > 0 {
            self.name_seq(entry.seq);
            self.entries.insert(entry);
        }
    }

    /// Applies the settling of runs of messages. Seqs that are not there are legal.
    pub fn apply_settle(
        &mut self,
        ranges: impl IntoIterator<Item = SeqRange>,
        start: Lsn,
        end: Lsn,
    ) {
        if self.is_contained(start) {
            return;
        }
        for range in ranges {
            self.name_seq(range.last);
            self.entries.remove_range(range);
            self.remove_filed(range);
        }
        self.touch(end);
    }

    /// Applies a message's return to its place.
    pub fn apply_requeue(&mut self, seq: Seq, delivery_count: u32, start: Lsn, end: Lsn) {
        if self.is_contained(start) {
            return;
        }
        self.name_seq(seq);
        if let Some(entry) = self.entries.get_mut(seq) {
            entry.delivery_count = delivery_count;
            entry.is_redelivered = true;
        } else if let Some(run) = self.run_mut(FiledRun::number_of(seq)) {
            run.requeue(FiledRun::index_of(seq), delivery_count);
        }
        self.touch(end);
    }

    /// Applies a delivery reservation. Reservations only rise.
    pub fn apply_reserve(&mut self, upto: Seq, start: Lsn, end: Lsn) {
        if self.is_contained(start) {
            return;
        }
        self.reserved_upto = self.reserved_upto.max(upto);
        self.touch(end);
    }

    /// Ends replay. Seqs are never reused: whatever a reservation covered may have been given to a
    /// message that was delivered but not logged, so the tail goes above it.
    pub fn finish_replay(&mut self) {
        self.next_seq = self.next_seq.max(self.reserved_upto);
        self.compact();
    }

    /// Gives up the places of messages that left.
    pub fn compact(&mut self) {
        self.entries.compact();
        self.runs.retain(|run| !run.live.is_empty());
    }

    /// The run `number`, if it is filed. After settling and before [`compact`](Self::compact) it may be empty.
    #[must_use]
    pub fn run(&self, number: u64) -> Option<&FiledRun> {
        let index = self.runs.binary_search_by_key(&number, |run| run.number);
        self.runs.get(index.ok()?)
    }

    /// The run `number`, to be changed; its number must stay.
    pub fn run_mut(&mut self, number: u64) -> Option<&mut FiledRun> {
        let index = self.runs.binary_search_by_key(&number, |run| run.number);
        self.runs.get_mut(index.ok()?)
    }

    /// True when the message is in the queue, filed or not.
    #[must_use]
    pub fn contains(&self, seq: Seq) -> bool {
        self.entries.get(seq).is_some() || self.is_filed(seq)
    }

    /// True when the message is in a run.
    #[must_use]
    pub fn is_filed(&self, seq: Seq) -> bool {
        let run = self.run(FiledRun::number_of(seq));
        run.is_some_and(|run| run.live.contains(FiledRun::index_of(seq)))
    }

    /// Unsettled messages, filed ones included.
    #[must_use]
    pub fn message_count(&self) -> u64 {
        let filed = self.runs.iter().map(|run| u64::from(run.live.len()));
        self.entries.len() as u64 + filed.sum::<u64>()
    }

    /// Seq of the oldest unsettled message.
    #[must_use]
    pub fn first_seq(&self) -> Option<Seq> {
        let packed = self.entries.iter().next().map(|entry| entry.seq);
        let filed = self.runs.iter().find_map(|run| run.live_seqs().next());
        packed.into_iter().chain(filed).min()
    }

    /// Removes the filed messages of a range. Emptied runs stay until [`compact`](Self::compact), so that settling at
    /// the head of a long queue moves nothing.
    fn remove_filed(&mut self, range: SeqRange) {
        let from = self
            .runs
            .partition_point(|run| run.range().last < range.first);
        for run in self.runs.iter_mut().skip(from) {
            let whole = run.range();
            if whole.first > range.last {
                break;
            }
            let first = FiledRun::index_of(range.first.max(whole.first));
            let last = FiledRun::index_of(range.last.min(whole.last));
            run.settle(first, last);
        }
    }

    /// True when a record that starts there has been applied already.
    #[must_use]
    pub fn is_contained(&self, start: Lsn) -> bool {
        start < self.last_lsn
    }

    fn name_seq(&mut self, seq: Seq) {
        self.next_seq = self.next_seq.max(Seq(seq.count() + 1));
    }

    fn touch(&mut self, end: Lsn) {
        self.last_lsn = self.last_lsn.max(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::testing::{entry, range};

    #[test]
    fn contained_record_is_skipped() {
        let mut image = QueueImage::new(QueueId(1), Lsn(100));
        image.apply_publish(entry(1), Lsn(100), Lsn(164));
        let before = image.clone();
        image.apply_settle([range(1, 1)], Lsn(99), Lsn(140));
        image.apply_requeue(Seq(1), 3, Lsn(163), Lsn(170));
        image.apply_reserve(Seq(9), Lsn(0), Lsn(8));
        image.apply_publish(entry(2), Lsn(100), Lsn(164));
        assert_eq!(image, before);
    }

    #[test]
    fn settling_an_unknown_seq_only_raises_the_tail() {
        let mut image = QueueImage::new(QueueId(1), Lsn(0));
        image.apply_settle([range(5, 9)], Lsn(8), Lsn(16));
        assert!(image.entries.is_empty());
        assert_eq!(image.next_seq, Seq(10));
    }

    #[test]
    fn tail_goes_above_a_reservation_when_replay_ends() {
        let mut image = QueueImage::new(QueueId(1), Lsn(0));
        image.apply_publish(entry(1), Lsn(8), Lsn(16));
        image.apply_reserve(Seq(100), Lsn(16), Lsn(24));
        assert_eq!(image.next_seq, Seq(2));
        image.finish_replay();
        assert_eq!(image.next_seq, Seq(100));
    }

    #[test]
    fn bounds_hold_for_the_counts_of_all_ranks() {
        let mut image = QueueImage::new(QueueId(1), Lsn(0));
        image.apply_publish(entry(Seq::new(9, 7).0), Lsn(8), Lsn(16));
        image.apply_publish(entry(Seq::new(2, 3).0), Lsn(16), Lsn(24));
        assert_eq!(image.next_seq, Seq(8));
        assert!(
            image
                .entries
                .iter()
                .map(|entry| entry.seq.rank())
                .eq([2, 9])
        );
        assert!(Seq::new(9, 7).is_within(image.next_seq));
        assert!(!Seq::new(2, 8).is_within(image.next_seq));
    }

    #[test]
    fn requeue_marks_the_message_redelivered() {
        let mut image = QueueImage::new(QueueId(1), Lsn(0));
        image.apply_publish(entry(1), Lsn(8), Lsn(16));
        image.apply_requeue(Seq(1), 2, Lsn(16), Lsn(24));
        let found = image.entries.get(Seq(1)).copied().expect("it stays");
        assert_eq!((found.delivery_count, found.is_redelivered), (2, true));
    }
}
