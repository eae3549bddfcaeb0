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
//! 4. A hundred million messages are 390,625 runs: one with all its messages in one segment takes no memory beyond the
//!    struct itself.

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

    /// The lowest index.
    #[must_use]
    pub fn first(&self) -> Option<u8> {
        let word = self.0.iter().position(|bits| *bits != 0)?;
        index_of_bit(word, self.0.get(word)?.trailing_zeros())
    }

    /// The highest index.
    #[must_use]
    pub fn last(&self) -> Option<u8> {
        let word = self.0.iter().rposition(|bits| *bits != 0)?;
        index_of_bit(word, 63 - self.0.get(word)?.leading_zeros())
    }

    /// Its seqs' indexes, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u8> + use<> {
        let set = *self;
        (0..=u8::MAX).filter(move |index| set.contains(*index))
    }
}

fn index_of_bit(word: usize, bit: u32) -> Option<u8> {
    u8::try_from(u32::try_from(word).ok()? * 64 + bit).ok()
}

/// The unsettled messages of a run: of a backlog nearly always all of them, which takes no memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveSet(Option<Box<RunSet>>);

/// Every seq of a run.
const ALL: RunSet = RunSet([u64::MAX; RUN_LEN / 64]);

impl From<RunSet> for LiveSet {
    fn from(set: RunSet) -> Self {
        Self((set != ALL).then(|| Box::new(set)))
    }
}

impl LiveSet {
    /// Every message of a run.
    pub const ALL: Self = Self(None);

    /// As a set.
    #[must_use]
    pub fn set(&self) -> RunSet {
        self.0.as_deref().copied().unwrap_or(ALL)
    }

    /// True when every message of the run is unsettled.
    #[must_use]
    pub const fn is_all(&self) -> bool {
        self.0.is_none()
    }

    /// See [`RunSet::contains`].
    #[must_use]
    pub fn contains(&self, index: u8) -> bool {
        self.0.as_ref().is_none_or(|set| set.contains(index))
    }

    /// See [`RunSet::len`].
    #[must_use]
    pub fn len(&self) -> u32 {
        self.set().len()
    }

    /// See [`RunSet::is_empty`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.as_ref().is_some_and(|set| set.is_empty())
    }

    /// See [`RunSet::iter`].
    pub fn iter(&self) -> impl Iterator<Item = u8> + use<> {
        self.set().iter()
    }

    /// Removes every seq from `first` to `last` of the run; true when there was one.
    pub fn remove_range(&mut self, first: u8, last: u8) -> bool {
        if first > last {
            return false;
        }
        let set = self.0.get_or_insert_with(|| Box::new(ALL));
        let before = **set;
        set.remove_range(first, last);
        **set != before
    }
}

/// What one run has in one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunUse {
    /// The segment.
    pub segment: SegmentId,
    /// Unsettled messages of the run in it.
    pub live_refs: u32,
    /// Length of their records / 8: 256 records that are shorter than 128 MiB.
    pub live_words: u32,
}

impl RunUse {
    /// Record bytes of its unsettled messages.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        u64::from(self.live_words) * 8
    }
}

/// What one run has in each segment, ascending. Most runs lie in one.
pub type RunUses = SmallVec<[RunUse; 1]>;

/// Counts the record of an unsettled message.
pub fn count_use(uses: &mut RunUses, position: Position) {
    let segment = position.lsn.segment();
    let words = position.len_bytes / 8;
    let at = uses.partition_point(|one| one.segment < segment);
    match uses.get_mut(at) {
        Some(one) if one.segment == segment => {
            one.live_refs = one.live_refs.saturating_add(1);
            one.live_words = one.live_words.saturating_add(words);
        }
        _ => uses.insert(
            at,
            RunUse {
                segment,
                live_refs: 1,
                live_words: words,
            },
        ),
    }
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
    pub live: LiveSet,
    /// See [`RunMarks`].
    pub marks: Option<Box<RunMarks>>,
    /// Ascending by segment.
    pub segments: RunUses,
    /// Sum of the live messages' sizes as the owner counts them; 0 when unknown. Opaque here.
    pub content_bytes: u64,
}

impl FiledRun {
    /// Number of the run that `seq` belongs to.
    #[must_use]
    pub const fn number_of(seq: Seq) -> u64 {
        seq.0 / RUN_SEQS
    }

    /// Rank of all seqs of the run `number`.
    #[must_use]
    pub const fn rank_of(number: u64) -> u16 {
        Seq(number * RUN_SEQS).rank()
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

    /// The first and the last of them.
    #[must_use]
    pub fn live_range(&self) -> Option<SeqRange> {
        let set = self.live.set();
        Some(SeqRange {
            first: self.seq_at(set.first()?),
            last: self.seq_at(set.last()?),
        })
    }

    /// Forgets the messages at `first` to `last` of the run; `segments` is no longer right then.
    pub fn settle(&mut self, first: u8, last: u8) {
        if self.live.remove_range(first, last) {
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
        count_use(&mut self.segments, position);
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
        self.segments.iter().map(RunUse::live_bytes).sum()
    }

    /// True when the block holds an expiry.
    #[must_use]
    pub const fn may_expire(&self) -> bool {
        self.expiry_base_ms != 0
    }
}

/// See invariant 4.
const _: () = assert!(size_of::<FiledRun>() <= 72);

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
            assert_eq!(set.first(), model.first().copied());
            assert_eq!(set.last(), model.last().copied());
        }
        assert!(set.iter().eq(model));
        assert_eq!(RunSet::from_words(set.words()), set);
    }

    #[test]
    fn live_set_is_the_set_it_was_made_of() {
        let part = RunSet::from_words([1, 0, 6, 1 << 63]);
        for set in [RunSet::default(), part, ALL] {
            let live = LiveSet::from(set);
            assert_eq!(live.set(), set);
            assert_eq!(live.len(), set.len());
            assert_eq!(live.is_empty(), set.is_empty());
            assert_eq!(live.is_all(), set == ALL);
            assert!(live.iter().eq(set.iter()));
            assert!((0..=u8::MAX).all(|index| live.contains(index) == set.contains(index)));
        }
        let mut live = LiveSet::from(ALL);
        assert!(live.remove_range(3, 4));
        assert!(!live.remove_range(3, 4));
        assert_eq!(
            (live.len(), live.contains(3), live.contains(5)),
            (254, false, true)
        );
        assert!(live.remove_range(0, u8::MAX));
        assert!(live.is_empty());
    }

    /// A run whose messages are all alive, in one segment, with marks on two of them.
    fn marked() -> FiledRun {
        let mut run = FiledRun {
            number: 3,
            block: 0,
            crc: 0,
            expiry_base_ms: 0,
            live: LiveSet::ALL,
            marks: None,
            segments: SmallVec::from_iter([RunUse {
                segment: SegmentId(1),
                live_refs: 256,
                live_words: 3_200,
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
