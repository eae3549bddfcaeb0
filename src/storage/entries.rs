//! The unsettled messages of a queue image that are not in runs.
//!
//! ```text
//!   rank 0   [ 1 . 3 4 5 . . 8 ]     one deque of messages and tombstones: all that most queues have
//!   rank 5   [ 2 3 ]                 one more for each level of a queue with priorities: a message arrives at the
//!   rank 9   [ 7 . 9 ]               tail of its level, in the middle of the queue
//! ```

use std::collections::VecDeque;

use smallvec::SmallVec;

use super::types::{ImageEntry, Position, Seq, SeqRange};

/// Entries in ascending seq, made for what queues do: within a rank messages arrive at the tail and leave at the head.
#[derive(Clone, Default)]
pub struct Entries {
    /// Ascending by rank; most queues have one.
    lanes: SmallVec<[(u16, Lane); 1]>,
}

impl Entries {
    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lanes.iter().map(|(_, lane)| lane.len()).sum()
    }

    /// True when there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All entries in ascending seq.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &ImageEntry> + '_ {
        self.lanes.iter().flat_map(|(_, lane)| lane.iter())
    }

    /// The entries of a run of seqs, ascending.
    pub fn range(&self, range: SeqRange) -> impl Iterator<Item = &ImageEntry> + '_ {
        let lanes = self.lanes.iter();
        let lanes = lanes.skip_while(move |(rank, _)| *rank < range.first.rank());
        let lanes = lanes.take_while(move |(rank, _)| *rank <= range.last.rank());
        lanes.flat_map(move |(_, lane)| lane.range(range))
    }

    fn lane(&self, rank: u16) -> Option<&Lane> {
        let index = self.lanes.binary_search_by_key(&rank, |(rank, _)| *rank);
        self.lanes.get(index.ok()?).map(|(_, lane)| lane)
    }

    fn lane_mut(&mut self, rank: u16) -> &mut Lane {
        let index = self.lanes.binary_search_by_key(&rank, |(rank, _)| *rank);
        let index = index.unwrap_or_else(|at| {
            self.lanes.insert(at, (rank, Lane::default()));
            at
        });
        &mut self.lanes[index].1
    }

    /// The entry of `seq`.
    #[must_use]
    pub fn get(&self, seq: Seq) -> Option<&ImageEntry> {
        self.lane(seq.rank())?.get(seq)
    }

    /// The entry of `seq`, to be changed; its seq must stay.
    pub fn get_mut(&mut self, seq: Seq) -> Option<&mut ImageEntry> {
        let rank = seq.rank();
        let index = self.lanes.binary_search_by_key(&rank, |(rank, _)| *rank);
        self.lanes.get_mut(index.ok()?)?.1.get_mut(seq)
    }

    /// Makes room for `count` more entries of a queue without priorities.
    pub fn reserve(&mut self, count: usize) {
        if count > 0 {
            self.lane_mut(0).reserve(count);
        }
    }

    /// Adds an entry at its place, replacing one of the same seq. Cheap at the tail of its rank.
    ///
    /// # Panics
    /// When the entry names a record of length 0: there is none.
    pub fn insert(&mut self, entry: ImageEntry) {
        assert!(is_live(&entry), "a record is longer than its header");
        self.lane_mut(entry.seq.rank()).insert(entry);
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
        let ranks = range.first.rank()..=range.last.rank();
        let lanes = self.lanes.iter_mut();
        for (_, lane) in lanes.filter(|(rank, _)| ranks.contains(rank)) {
            lane.remove_range(range);
        }
    }

    /// Gives up the places of entries that left.
    pub fn compact(&mut self) {
        for (_, lane) in &mut self.lanes {
            lane.compact();
        }
    }

    /// Position of the entry of `seq`.
    #[must_use]
    pub fn position(&self, seq: Seq) -> Option<Position> {
        self.get(seq).map(|entry| entry.position)
    }
}

/// The entries of one rank in ascending seq, made for what queues do: arrive at the tail, leave at the head.
///
/// A message that leaves from the middle stays as a tombstone (length 0, which no record has) until it
/// reaches the head or tombstones outnumber the living; so every operation is cheap on average.
#[derive(Clone, Default)]
pub struct Lane {
    slots: VecDeque<ImageEntry>,
    dead_count: usize,
}

/// Length of a tombstone. Real records are at least as long as their header.
const DEAD_LEN_BYTES: u32 = 0;

fn is_live(entry: &ImageEntry) -> bool {
    entry.position.len_bytes != DEAD_LEN_BYTES
}

impl Lane {
    /// Number of entries.
    fn len(&self) -> usize {
        self.slots.len() - self.dead_count
    }

    /// All entries in ascending seq.
    fn iter(&self) -> impl DoubleEndedIterator<Item = &ImageEntry> + '_ {
        self.slots.iter().filter(|entry| is_live(entry))
    }

    /// The entries of a run of seqs, ascending.
    fn range(&self, range: SeqRange) -> impl Iterator<Item = &ImageEntry> + '_ {
        let from = self.slots.partition_point(|entry| entry.seq < range.first);
        let entries = self.slots.range(from..);
        entries
            .take_while(move |entry| entry.seq <= range.last)
            .filter(|entry| is_live(entry))
    }

    /// The entry of `seq`.
    fn get(&self, seq: Seq) -> Option<&ImageEntry> {
        let index = self
            .slots
            .binary_search_by_key(&seq, |entry| entry.seq)
            .ok()?;
        self.slots.get(index).filter(|entry| is_live(entry))
    }

    /// The entry of `seq`, to be changed; its seq must stay.
    fn get_mut(&mut self, seq: Seq) -> Option<&mut ImageEntry> {
        let index = self
            .slots
            .binary_search_by_key(&seq, |entry| entry.seq)
            .ok()?;
        self.slots.get_mut(index).filter(|entry| is_live(entry))
    }

    /// Makes room for `count` more entries.
    fn reserve(&mut self, count: usize) {
        self.slots.reserve(count);
    }

    /// Adds an entry at its place, replacing one of the same seq. Cheap at the tail.
    fn insert(&mut self, entry: ImageEntry) {
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

    /// Removes every entry of a run; the cost is that of the entries met, not of the run's length.
    fn remove_range(&mut self, range: SeqRange) {
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
    fn compact(&mut self) {
        if self.dead_count > 0 {
            self.slots.retain(is_live);
            self.dead_count = 0;
        }
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

type LaneIntoIter =
    std::iter::Filter<std::collections::vec_deque::IntoIter<ImageEntry>, fn(&ImageEntry) -> bool>;

impl IntoIterator for Entries {
    type Item = ImageEntry;
    type IntoIter = std::iter::FlatMap<
        smallvec::IntoIter<[(u16, Lane); 1]>,
        LaneIntoIter,
        fn((u16, Lane)) -> LaneIntoIter,
    >;

    fn into_iter(self) -> Self::IntoIter {
        self.lanes
            .into_iter()
            .flat_map(|(_, lane)| lane.slots.into_iter().filter(is_live as _))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::testing::{entry, range};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn entries_behave_like_a_map(steps in prop::collection::vec((0u8..3, 1u64..80, 0u64..40, 0u16..3), 0..120)) {
            let mut entries = Entries::default();
            let mut model = BTreeMap::new();
            for (kind, count, width, rank) in steps {
                let seq = Seq::new(rank, count).0;
                if kind < 2 {
                    entries.insert(entry(seq));
                    model.insert(seq, entry(seq));
                } else {
                    // Now and then into the next rank.
                    let last = if width % 5 == 0 { Seq::new(rank + 1, width).0 } else { seq + width };
                    entries.remove_range(range(seq, last));
                    model.retain(|key, _| !(seq..=last).contains(key));
                }
                prop_assert_eq!(entries.len(), model.len());
                prop_assert!(entries.iter().eq(model.values()));
                for key in (0..4).flat_map(|rank| (0..130).map(move |count| Seq::new(rank, count).0)) {
                    prop_assert_eq!(entries.get(Seq(key)), model.get(&key));
                }
            }
            prop_assert!(entries.into_iter().eq(model.into_values()));
        }
    }
}
