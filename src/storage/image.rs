//! The state of one queue as a plain value.
//!
//! The same [`QueueImage`] is what a checkpoint stores, what replay builds record by record, what the dump
//! tool shows and what the broker's live queue hands over when it is asked for a snapshot. So "replay gives
//! the live state" is a comparison of two values of one type.
//!
//! Invariants:
//! 1. Entries and runs stand in ascending seq; a seq occurs once, in an entry or in a run.
//! 2. `next_seq` is above every seq any applied record named. A seq between entries that is not there was
//!    settled, or was taken by a message that never was logged; both mean the same.
//! 3. Applying a record is idempotent: one that starts below `last_lsn` is already contained and skipped.

use std::collections::VecDeque;

use super::run::FiledRun;
use super::types::{ImageEntry, Lsn, Position, QueueId, Seq, SeqRange};

/// The unsettled messages of a queue and what is known about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueImage {
    /// The queue.
    pub id: QueueId,
    /// End of the last record that touched it: records that start below are contained.
    pub last_lsn: Lsn,
    /// Seq of the next message.
    pub next_seq: Seq,
    /// Any message below may have been delivered before.
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
    /// settled; any other is here from now on.
    pub fn apply_copy(&mut self, entry: ImageEntry, known_below: Seq) {
        if let Some(known) = self.entries.get_mut(entry.seq) {
            known.position = entry.position;
        } else if self.is_filed(entry.seq) {
            if let Some(run) = self.run_mut(FiledRun::number_of(entry.seq)) {
                run.note_copy(entry.position);
            }
        } else if entry.seq >= known_below {
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
        self.next_seq = self.next_seq.max(Seq(seq.0.saturating_add(1)));
    }

    fn touch(&mut self, end: Lsn) {
        self.last_lsn = self.last_lsn.max(end);
    }
}

/// Entries in ascending seq, made for what queues do: arrive at the tail, leave at the head.
///
/// A message that leaves from the middle stays as a tombstone (length 0, which no record has) until it
/// reaches the head or tombstones outnumber the living; so every operation is cheap on average.
#[derive(Clone, Default)]
pub struct Entries {
    slots: VecDeque<ImageEntry>,
    dead_count: usize,
}

/// Length of a tombstone. Real records are at least as long as their header.
const DEAD_LEN_BYTES: u32 = 0;

fn is_live(entry: &ImageEntry) -> bool {
    entry.position.len_bytes != DEAD_LEN_BYTES
}

impl Entries {
    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len() - self.dead_count
    }

    /// True when there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All entries in ascending seq.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &ImageEntry> + '_ {
        self.slots.iter().filter(|entry| is_live(entry))
    }

    /// The entries of a run of seqs, ascending.
    pub fn range(&self, range: SeqRange) -> impl Iterator<Item = &ImageEntry> + '_ {
        let from = self.slots.partition_point(|entry| entry.seq < range.first);
        let entries = self.slots.range(from..);
        entries
            .take_while(move |entry| entry.seq <= range.last)
            .filter(|entry| is_live(entry))
    }

    /// The entry of `seq`.
    #[must_use]
    pub fn get(&self, seq: Seq) -> Option<&ImageEntry> {
        let index = self
            .slots
            .binary_search_by_key(&seq, |entry| entry.seq)
            .ok()?;
        self.slots.get(index).filter(|entry| is_live(entry))
    }

    /// The entry of `seq`, to be changed; its seq must stay.
    pub fn get_mut(&mut self, seq: Seq) -> Option<&mut ImageEntry> {
        let index = self
            .slots
            .binary_search_by_key(&seq, |entry| entry.seq)
            .ok()?;
        self.slots.get_mut(index).filter(|entry| is_live(entry))
    }

    /// Makes room for `count` more entries.
    pub fn reserve(&mut self, count: usize) {
        self.slots.reserve(count);
    }

    /// Adds an entry at its place, replacing one of the same seq. Cheap at the tail.
    ///
    /// # Panics
    /// When the entry names a record of length 0: there is none.
    pub fn insert(&mut self, entry: ImageEntry) {
        assert!(is_live(&entry), "a record is longer than its header");
        if self.slots.back().is_none_or(|last| last.seq < entry.seq) {
            self.slots.push_back(entry);
            return;
        }
        match self
            .slots
            .binary_search_by_key(&entry.seq, |other| other.seq)
        {
            Ok(index) => {
                if let Some(slot) = self.slots.get_mut(index) {
                    self.dead_count -= usize::from(!is_live(slot));
                    *slot = entry;
                }
            }
            Err(index) => self.slots.insert(index, entry),
        }
    }

    /// Removes the entry of `seq`.
    pub fn remove(&mut self, seq: Seq) {
        self.remove_range(SeqRange {
            first: seq,
            last: seq,
        });
    }

    /// Removes every entry of a run; the cost is that of the entries met, not of the run's length.
    pub fn remove_range(&mut self, range: SeqRange) {
        let from = self.slots.partition_point(|entry| entry.seq < range.first);
        for entry in self.slots.range_mut(from..) {
            if entry.seq > range.last {
                break;
            }
            if is_live(entry) {
                entry.position.len_bytes = DEAD_LEN_BYTES;
                self.dead_count += 1;
            }
        }
        self.drop_dead_head();
        if self.dead_count > self.slots.len() / 2 + 16 {
            self.compact();
        }
    }

    fn drop_dead_head(&mut self) {
        while self.slots.front().is_some_and(|entry| !is_live(entry)) {
            self.slots.pop_front();
            self.dead_count -= 1;
        }
    }

    /// Gives up the places of entries that left.
    pub fn compact(&mut self) {
        if self.dead_count > 0 {
            self.slots.retain(is_live);
            self.dead_count = 0;
        }
    }

    /// Position of the entry of `seq`.
    #[must_use]
    pub fn position(&self, seq: Seq) -> Option<Position> {
        self.get(seq).map(|entry| entry.position)
    }
}

impl PartialEq for Entries {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl Eq for Entries {}

impl std::fmt::Debug for Entries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl FromIterator<ImageEntry> for Entries {
    fn from_iter<I: IntoIterator<Item = ImageEntry>>(iter: I) -> Self {
        let mut entries = Self::default();
        let iter = iter.into_iter();
        entries.reserve(iter.size_hint().0);
        for entry in iter {
            entries.insert(entry);
        }
        entries
    }
}

impl IntoIterator for Entries {
    type Item = ImageEntry;
    type IntoIter = std::iter::Filter<
        std::collections::vec_deque::IntoIter<ImageEntry>,
        fn(&ImageEntry) -> bool,
    >;

    fn into_iter(self) -> Self::IntoIter {
        self.slots.into_iter().filter(is_live)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::types::SegmentId;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn entry(seq: u64) -> ImageEntry {
        ImageEntry {
            seq: Seq(seq),
            position: Position {
                lsn: Lsn::new(SegmentId(1), 4096),
                len_bytes: 64,
            },
            expires_at_ms: 0,
            priority: 0,
            delivery_count: 0,
            is_redelivered: false,
        }
    }

    fn run(first: u64, last: u64) -> SeqRange {
        SeqRange {
            first: Seq(first),
            last: Seq(last),
        }
    }

    #[test]
    fn contained_record_is_skipped() {
        let mut image = QueueImage::new(QueueId(1), Lsn(100));
        image.apply_publish(entry(1), Lsn(100), Lsn(164));
        let before = image.clone();
        image.apply_settle([run(1, 1)], Lsn(99), Lsn(140));
        image.apply_requeue(Seq(1), 3, Lsn(163), Lsn(170));
        image.apply_reserve(Seq(9), Lsn(0), Lsn(8));
        image.apply_publish(entry(2), Lsn(100), Lsn(164));
        assert_eq!(image, before);
    }

    #[test]
    fn settling_an_unknown_seq_only_raises_the_tail() {
        let mut image = QueueImage::new(QueueId(1), Lsn(0));
        image.apply_settle([run(5, 9)], Lsn(8), Lsn(16));
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
    fn requeue_marks_the_message_redelivered() {
        let mut image = QueueImage::new(QueueId(1), Lsn(0));
        image.apply_publish(entry(1), Lsn(8), Lsn(16));
        image.apply_requeue(Seq(1), 2, Lsn(16), Lsn(24));
        let found = image.entries.get(Seq(1)).copied().expect("it stays");
        assert_eq!((found.delivery_count, found.is_redelivered), (2, true));
    }

    proptest! {
        #[test]
        fn entries_behave_like_a_map(steps in prop::collection::vec((0u8..3, 1u64..80, 0u64..40), 0..120)) {
            let mut entries = Entries::default();
            let mut model = BTreeMap::new();
            for (kind, seq, width) in steps {
                if kind < 2 {
                    entries.insert(entry(seq));
                    model.insert(seq, entry(seq));
                } else {
                    entries.remove_range(run(seq, seq + width));
                    model.retain(|key, _| !(seq..=seq + width).contains(key));
                }
                prop_assert_eq!(entries.len(), model.len());
                prop_assert!(entries.iter().eq(model.values()));
                for key in 0..130 {
                    prop_assert_eq!(entries.get(Seq(key)), model.get(&key));
                }
            }
            prop_assert!(entries.into_iter().eq(model.into_values()));
        }
    }
}
