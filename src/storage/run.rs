//! Runs: the positions of neighbouring messages of a queue, kept in its index file instead of in memory.
//!
//! ```text
//!   queue     run 0        run 1        run 2 ..            seqs 256 * number .. 256 * number + 255
//!   memory    FiledRun     FiledRun     entries, one by one (head, tail, unacked)
//!   file      [ block 7 ]  [ block 2 ]                      256 entries of 16 bytes, 4 KiB a block
//! ```
//! A [`FiledRun`] is what memory and the checkpoint keep of such a run: where its block is, which of its messages are
//! unsettled, what is known about their deliveries, and which segments they lie in. The block holds only what the
//! PUBLISH records say (position, expiry, priority), so it is derived: a lost one is built again from the log.
//!
//! Invariants:
//! 1. A block that a checkpoint names is not written again before a newer checkpoint, which does not name it, is
//!    durable.
//! 2. `live` and `marks` stand in the checkpoint, never in the block: settling writes no index file.
//! 3. `segments` is the sum over the live messages alone.

use smallvec::SmallVec;

use super::types::{Position, SegmentId, Seq, SeqRange};

/// Seqs of one run.
pub const RUN_SEQS: u64 = 256;
/// The same, as a length.
pub const RUN_LEN: usize = 256;

/// A block that no index file has.
const NO_BLOCK: u32 = u32::MAX;

/// A set of seqs of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunSet([u64; RUN_LEN / 64]);

impl RunSet {
    /// The set that four words in ascending order spell, lowest bit first.
    #[must_use]
    pub const fn from_words(words: [u64; RUN_LEN / 64]) -> Self {
        Self(words)
    }

    /// Its words, see [`RunSet::from_words`].
    #[must_use]
    pub const fn words(&self) -> [u64; RUN_LEN / 64] {
        self.0
    }

    /// Adds the seq at `index` of the run.
    pub fn insert(&mut self, index: u8) {
        self.0[usize::from(index / 64)] |= 1 << (index % 64);
    }

    /// Removes every seq from `first` to `last` of the run.
    pub fn remove_range(&mut self, first: u8, last: u8) {
        (first..=last).for_each(|index| self.remove(index));
    }

    /// Removes the seq at `index` of the run.
    pub fn remove(&mut self, index: u8) {
        self.0[usize::from(index / 64)] &= !(1 << (index % 64));
    }

    /// True when the seq at `index` of the run is in it.
    #[must_use]
    pub fn contains(&self, index: u8) -> bool {
        self.0[usize::from(index / 64)] & (1 << (index % 64)) != 0
    }

    /// Number of seqs.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// True when there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 == [0; RUN_LEN / 64]
    }

    /// Its seqs' indexes, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u8> + '_ {
        (0..=u8::MAX).filter(|index| self.contains(*index))
    }
}

/// What one run has in one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunUse {
    /// The segment.
    pub segment: SegmentId,
    /// Unsettled messages of the run in it.
    pub live_refs: u32,
    /// Record bytes of those.
    pub live_bytes: u64,
}

/// What is known about deliveries of a run's messages; most runs have none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunMarks {
    /// May have been delivered before.
    pub redelivered: RunSet,
    /// Failed deliveries so far, by index. A run with a message above 255 is not filed.
    pub delivery_counts: [u8; RUN_LEN],
}

impl Default for RunMarks {
    fn default() -> Self {
        Self {
            redelivered: RunSet::default(),
            delivery_counts: [0; RUN_LEN],
        }
    }
}

impl RunMarks {
    /// True when nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.redelivered.is_empty() && self.delivery_counts == [0; RUN_LEN]
    }

    /// Failed deliveries of the message at `index`.
    #[must_use]
    pub fn delivery_count(&self, index: u8) -> u8 {
        self.delivery_counts[usize::from(index)]
    }

    /// Notes the failed deliveries of the message at `index`.
    pub fn set_delivery_count(&mut self, index: u8, count: u8) {
        self.delivery_counts[usize::from(index)] = count;
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FiledRun {
    /// `seq / 256` of all its messages.
    pub number: u64,
    /// Its block in the queue's index file: bytes `4096 * block ..`.
    pub block: u32,
    /// CRC of the block, seeded with queue and run.
    pub crc: u32,
    /// What the expiry fields of the block count from, Unix milliseconds.
    pub expiry_base_ms: u64,
    /// Unsettled messages. Never empty: a run without any is forgotten.
    pub live: RunSet,
    /// See [`RunMarks`].
    pub marks: Option<Box<RunMarks>>,
    /// Ascending by segment.
    pub segments: SmallVec<[RunUse; 2]>,
    /// Sum of the live messages' sizes as the owner counts them; 0 when unknown. Opaque here.
    pub content_bytes: u64,
}

impl FiledRun {
    /// Number of the run that `seq` belongs to.
    #[must_use]
    pub const fn number_of(seq: Seq) -> u64 {
        seq.0 / RUN_SEQS
    }

    /// Place of `seq` inside its run.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a remainder of 256 has a byte"
    )]
    pub const fn index_of(seq: Seq) -> u8 {
        (seq.0 % RUN_SEQS) as u8
    }

    /// The seq at `index` of the run.
    #[must_use]
    pub const fn seq_at(&self, index: u8) -> Seq {
        Seq(self.number * RUN_SEQS + index as u64)
    }

    /// All seqs of the run, settled or not.
    #[must_use]
    pub const fn range(&self) -> SeqRange {
        SeqRange {
            first: self.seq_at(0),
            last: self.seq_at(u8::MAX),
        }
    }

    /// Its unsettled seqs, ascending.
    pub fn live_seqs(&self) -> impl Iterator<Item = Seq> + '_ {
        self.live.iter().map(|index| self.seq_at(index))
    }

    /// Forgets the messages at `first` to `last` of the run; `segments` is no longer right then.
    pub fn settle(&mut self, first: u8, last: u8) {
        let before = self.live;
        self.live.remove_range(first, last);
        if self.live != before {
            // Sizes are not known here.
            self.content_bytes = 0;
            self.drop_marks(first, last);
        }
    }

    fn drop_marks(&mut self, first: u8, last: u8) {
        if let Some(marks) = &mut self.marks {
            marks.redelivered.remove_range(first, last);
            (first..=last).for_each(|index| marks.set_delivery_count(index, 0));
            if marks.is_empty() {
                self.marks = None;
            }
        }
    }

    /// Notes that the message at `index` came back after `delivery_count` failed deliveries; counts above 255, which
    /// a run cannot hold, become 255.
    pub fn requeue(&mut self, index: u8, delivery_count: u32) {
        if self.live.contains(index) {
            let marks = self.marks.get_or_insert_default();
            marks.redelivered.insert(index);
            marks.set_delivery_count(index, u8::try_from(delivery_count).unwrap_or(u8::MAX));
        }
    }

    /// A message of the run has a copy at `position`: its block is given up, and a start builds another one from the
    /// segments, in which the later of two copies counts.
    pub fn note_copy(&mut self, position: Position) {
        self.block = NO_BLOCK;
        let segment = position.lsn.segment();
        if self.segments.iter().all(|used| used.segment != segment) {
            // Copies are read in ascending order, and cold segments are above all others.
            self.segments.push(RunUse {
                segment,
                live_refs: 0,
                live_bytes: 0,
            });
        }
        if let Some(used) = self
            .segments
            .iter_mut()
            .find(|used| used.segment == segment)
        {
            used.live_refs = used.live_refs.saturating_add(1);
            used.live_bytes += u64::from(position.len_bytes);
        }
    }

    /// True when messages were settled since `segments` was counted.
    #[must_use]
    pub fn is_touched(&self) -> bool {
        let counted: u64 = self
            .segments
            .iter()
            .map(|used| u64::from(used.live_refs))
            .sum();
        counted != u64::from(self.live.len())
    }

    /// Record bytes of its unsettled messages.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.segments.iter().map(|used| used.live_bytes).sum()
    }

    /// True when the block holds an expiry.
    #[must_use]
    pub const fn may_expire(&self) -> bool {
        self.expiry_base_ms != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn run_set_behaves_like_a_set() {
        let mut set = RunSet::default();
        let mut model = BTreeSet::new();
        for step in 0..2000u32 {
            let index = u8::try_from(step * 37 % 256).expect("a remainder");
            if step % 3 == 0 {
                set.remove(index);
                model.remove(&index);
            } else {
                set.insert(index);
                model.insert(index);
            }
            assert_eq!(set.contains(index), model.contains(&index));
            assert_eq!(set.len() as usize, model.len());
            assert_eq!(set.is_empty(), model.is_empty());
        }
        assert!(set.iter().eq(model));
        assert_eq!(RunSet::from_words(set.words()), set);
    }

    /// A run whose messages are all alive, in one segment, with marks on two of them.
    fn marked() -> FiledRun {
        let mut run = FiledRun {
            number: 3,
            block: 0,
            crc: 0,
            expiry_base_ms: 0,
            live: RunSet::from_words([u64::MAX; 4]),
            marks: None,
            segments: SmallVec::from_iter([RunUse {
                segment: SegmentId(1),
                live_refs: 256,
                live_bytes: 25_600,
            }]),
            content_bytes: 1000,
        };
        run.requeue(10, 2);
        run.requeue(20, 300);
        run
    }

    #[test]
    fn settling_forgets_marks_and_sizes_of_what_left() {
        let mut run = marked();
        assert!(!run.is_touched());
        run.settle(0, 10);
        assert!(run.is_touched());
        assert_eq!(run.live.len(), 245);
        assert_eq!(run.content_bytes, 0, "the sum is not known any more");
        let marks = run.marks.as_deref().expect("one is left");
        assert!(!marks.redelivered.contains(10));
        assert_eq!(marks.delivery_count(10), 0);
        assert!(marks.redelivered.contains(20));
        assert_eq!(marks.delivery_count(20), 255);
        run.settle(20, 20);
        assert_eq!(run.marks, None, "nothing is known");
        // What is gone cannot come back.
        run.requeue(5, 1);
        assert_eq!(run.marks, None);
        let before = marked();
        let mut same = before.clone();
        same.settle(0, 255);
        let mut emptied = same.clone();
        emptied.settle(0, 255);
        assert_eq!(same, emptied);
        assert!(same.live.is_empty());
    }
}
