//! Delivery tags: what a channel has handed to its client and not heard of again.
//!
//! ```text
//!   tags      64 ... 127 | 128 ... 191 | (192 .. 255 all settled: no chunk) | 256 ...   <- last_tag
//!   chunks    [ seq, holder ] * 64                                            [ .. ]
//!   holders   1: (queue a, consumer x)   2: (queue b, basic.get)
//! ```
//! A consumer may hold a whole backlog, so a delivery takes 12 bytes here: its seq, and the number of who holds it.
//!
//! 1. Tags rise by one with every delivery; those taken without acknowledgement leave no entry.
//! 2. A chunk that has no entry is dropped, so one that is never acknowledged costs 64 places, not all behind it.
//! 3. What is acknowledged is handed out in runs: of one holder, with tags and seqs that follow each other. Each costs one look
//!    at its holder and, at most, one reference to its queue.

mod holders;

use std::collections::VecDeque;
use std::sync::Arc;

use smallvec::SmallVec;

pub(super) use self::holders::HolderNumber;
use self::holders::{Holders, NOBODY};
use crate::broker::command::{ConsumerId, Seq, SeqRange, Unacked};
use crate::broker::queue::QueueHandle;

/// Tags of one chunk.
const CHUNK_TAGS: u64 = 64;
/// The same, as a length.
const CHUNK_LEN: usize = 64;
/// Tags whose holders are looked at together; a part of a chunk.
const WARM_TAGS: u64 = 16;
/// The same, as a length.
const WARM_LEN: usize = 16;

/// Which deliveries an acknowledgement speaks of (AMQP 0-9-1 section 1.8.3.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AckScope {
    /// This one.
    One(u64),
    /// This one, which must be outstanding, and all outstanding ones before it.
    UpTo(u64),
    /// All outstanding ones up to here, if any: this one went back by itself.
    Through(u64),
    /// All outstanding ones, if any.
    All,
}

impl AckScope {
    /// What the arguments of `basic.ack` and `basic.nack` mean.
    pub(super) fn new(tag: u64, is_multiple: bool) -> Self {
        match (tag, is_multiple) {
            (0, true) => Self::All,
            (tag, true) => Self::UpTo(tag),
            (tag, false) => Self::One(tag),
        }
    }
}

/// The tag is not outstanding on this channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UnknownTag(pub(super) u64);

/// Deliveries that may be acknowledged, with tags that follow each other: the first of these.
pub(super) type Outstanding = (u64, Unacked);

/// The same, as it is handed out: who wants to keep the queue has to hold it.
pub(super) struct Taken<'a> {
    /// The first tag.
    pub(super) first: u64,
    queue: &'a QueueHandle,
    consumer: Option<ConsumerId>,
    seqs: SeqRange,
}

impl Taken<'_> {
    /// Adds it to what was handed out before it.
    #[inline]
    pub(super) fn join(&self, items: &mut Vec<Unacked>) {
        Unacked::join(items, self.queue, self.consumer, self.seqs);
    }

    /// What is to be put back, maybe.
    pub(super) fn outstanding(&self) -> Outstanding {
        let unacked = Unacked {
            queue: Arc::clone(self.queue),
            seqs: self.seqs,
            consumer: self.consumer,
        };
        (self.first, unacked)
    }
}

/// The deliveries of 64 tags.
#[derive(Debug)]
struct Chunk {
    /// `tag / 64` of all its tags.
    number: u64,
    count: u32,
    holders: [HolderNumber; CHUNK_LEN],
    seqs: [u64; CHUNK_LEN],
}

impl Chunk {
    /// The first of its tags from `tag` to `last` that is outstanding.
    fn held(&self, tag: u64, last: u64) -> Option<u64> {
        if tag > last {
            return None;
        }
        let holders = self.holders.get(place(tag)..=place(last))?;
        let skipped = holders.iter().position(|holder| *holder != NOBODY)?;
        Some(tag + skipped as u64)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct DeliveryTags {
    /// The last tag given.
    last_tag: u64,
    /// Ascending by number, none without entries.
    chunks: VecDeque<Box<Chunk>>,
    /// A chunk for the next deliveries.
    spare: Option<Box<Chunk>>,
    count: usize,
    /// The first of the tags whose holders were looked at last.
    warmed_from: u64,
    holders: Holders,
}

/// With its slot in the queue (40 bytes), a delivered message may take 64.
const _: () = assert!(size_of::<Chunk>() <= 24 * CHUNK_LEN);

/// Where in its chunk a tag stands.
fn place(tag: u64) -> usize {
    usize::try_from(tag % CHUNK_TAGS).unwrap_or(0)
}

impl DeliveryTags {
    /// The next tag, for a delivery that is settled already.
    pub(super) fn next_settled(&mut self) -> u64 {
        self.last_tag += 1;
        self.last_tag
    }

    /// So many tags more, for deliveries that are settled already.
    pub(super) fn pass_settled(&mut self, count: usize) {
        self.last_tag += count as u64;
    }

    /// The next tag, for a delivery to be acknowledged.
    pub(super) fn next(
        &mut self,
        queue: &QueueHandle,
        seq: Seq,
        consumer: Option<ConsumerId>,
    ) -> u64 {
        let mut newest = self.holders.newest();
        self.next_run(&mut newest, queue, consumer, seq, 1);
        self.last_tag
    }

    /// The next tags, for so many deliveries from the message `first` on, which are to be acknowledged. Their holder is probably
    /// `known` as it was the last time; its number now comes back there.
    pub(super) fn next_run(
        &mut self,
        known: &mut HolderNumber,
        queue: &QueueHandle,
        consumer: Option<ConsumerId>,
        first: Seq,
        count: usize,
    ) {
        if count == 0 {
            return;
        }
        *known = self.holders.add(*known, queue, consumer, count);
        self.put_run(self.last_tag + 1, first, count, *known);
        self.last_tag += count as u64;
    }

    /// The channel has so many consumers.
    pub(super) fn expect_holders(&mut self, consumers_count: usize) {
        self.holders.expect(consumers_count);
    }

    /// Reads a word of a holder.
    pub(super) fn warm_holder(&self, holder: HolderNumber) -> u64 {
        self.holders
            .get(holder)
            .map_or(0, |holder| u64::from(holder.count))
    }

    /// Where there are many holders, looks at those of the deliveries from `tag` on: they will probably be acknowledged next,
    /// and the processor fetches their queues side by side that way.
    #[inline]
    fn warm_next(&mut self, chunk: usize, tag: u64) {
        let first = tag - tag % WARM_TAGS;
        if self.warmed_from != first {
            self.warm_from(chunk, first);
        }
    }

    fn warm_from(&mut self, chunk: usize, first: u64) {
        self.warmed_from = first;
        if self.holders.are_few() {
            return;
        }
        let holders = self.chunks.get(chunk).map(|chunk| &chunk.holders);
        let holders =
            holders.and_then(|holders| holders.get(place(first)..place(first) + WARM_LEN));
        let holders = holders.unwrap_or_default().iter();
        let queues = holders.filter_map(|number| Some(&self.holders.get(*number)?.queue));
        let queues: SmallVec<[&QueueHandle; WARM_LEN]> = queues.collect();
        let ids = queues.into_iter().map(|queue| queue.id().0);
        std::hint::black_box(ids.fold(0, |seen, id| seen ^ id));
    }

    /// Hands the deliveries in `scope` to `settle`, in tag order: together where both tags and seqs follow each other.
    ///
    /// # Errors
    /// The tag is not outstanding; then nothing has changed.
    pub(super) fn take(
        &mut self,
        scope: AckScope,
        mut settle: impl FnMut(Taken<'_>),
    ) -> Result<(), UnknownTag> {
        match scope {
            AckScope::All => self.take_upto(u64::MAX, &mut settle),
            AckScope::Through(tag) => self.take_upto(tag, &mut settle),
            AckScope::UpTo(tag) => {
                self.find(tag).ok_or(UnknownTag(tag))?;
                self.take_upto(tag, &mut settle);
            }
            AckScope::One(tag) => {
                let index = self.find(tag).ok_or(UnknownTag(tag))?;
                self.warm_next(index, tag);
                self.take_one(index, tag, &mut settle);
                self.drop_empty(index);
            }
        }
        Ok(())
    }

    /// Hands over all outstanding deliveries.
    pub(super) fn take_all(&mut self) -> Vec<Unacked> {
        let mut all = Vec::new();
        self.take_upto(u64::MAX, &mut |taken: Taken<'_>| taken.join(&mut all));
        self.spare = None;
        all
    }

    /// Puts back what `take` gave, after a rollback.
    pub(super) fn restore(&mut self, outstanding: impl IntoIterator<Item = Outstanding>) {
        for (first, unacked) in outstanding {
            let newest = self.holders.newest();
            let count = usize::try_from(unacked.count()).unwrap_or(usize::MAX);
            let holder = self
                .holders
                .add(newest, &unacked.queue, unacked.consumer, count);
            self.put_run(first, unacked.seqs.first, count, holder);
        }
    }

    /// True when the last tag was given to the message `seq` of `queue`, and is outstanding.
    pub(super) fn is_last(&self, queue: &QueueHandle, seq: Seq) -> bool {
        let Some(chunk) = self.find(self.last_tag).and_then(|at| self.chunks.get(at)) else {
            return false;
        };
        let holder = self.holders.get(chunk.holders[place(self.last_tag)]);
        chunk.seqs[place(self.last_tag)] == seq.0
            && holder.is_some_and(|holder| Arc::ptr_eq(&holder.queue, queue))
    }

    /// The last tag given.
    pub(super) fn last_tag(&self) -> u64 {
        self.last_tag
    }

    /// True when the delivery may be acknowledged.
    pub(super) fn is_outstanding(&self, tag: u64) -> bool {
        self.find(tag).is_some()
    }

    /// Outstanding deliveries up to the tag `last`, in tag order, with their queues and consumers.
    pub(super) fn upto(
        &self,
        last: u64,
    ) -> impl Iterator<Item = (u64, &QueueHandle, Option<ConsumerId>)> {
        let chunks = self.chunks.iter();
        let chunks = chunks.take_while(move |chunk| chunk.number * CHUNK_TAGS <= last);
        let places = chunks.flat_map(|chunk| {
            let first = chunk.number * CHUNK_TAGS;
            (first..).zip(chunk.holders)
        });
        let outstanding = places.filter(move |(tag, _)| *tag <= last);
        outstanding.filter_map(|(tag, number)| {
            let holder = self.holders.get(number)?;
            Some((tag, &holder.queue, holder.consumer))
        })
    }

    /// Outstanding deliveries.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.count
    }

    /// The chunk of a tag, or where it would stand.
    fn find_chunk(&self, number: u64) -> Result<usize, usize> {
        let first = self.chunks.front().map_or(0, |chunk| chunk.number);
        if let Ok(guess) = usize::try_from(number.wrapping_sub(first))
            && let Some(chunk) = self.chunks.get(guess)
            && chunk.number == number
        {
            return Ok(guess);
        }
        self.chunks
            .binary_search_by_key(&number, |chunk| chunk.number)
    }

    /// Index of the chunk in which the tag is outstanding.
    fn find(&self, tag: u64) -> Option<usize> {
        let index = self.find_chunk(tag / CHUNK_TAGS).ok()?;
        let chunk = self.chunks.get(index)?;
        (chunk.holders[place(tag)] != NOBODY).then_some(index)
    }

    /// Deliveries from the message `first` on get so many tags from `tag` on.
    fn put_run(&mut self, tag: u64, first: Seq, count: usize, holder: HolderNumber) {
        self.count += count;
        if count == 1 {
            let index = self.chunk_for(tag / CHUNK_TAGS);
            let chunk = &mut self.chunks[index];
            chunk.seqs[place(tag)] = first.0;
            chunk.holders[place(tag)] = holder;
            chunk.count += 1;
            return;
        }
        let (mut tag, mut seq, mut left) = (tag, first.0, count);
        while left > 0 {
            let from = place(tag);
            let len = left.min(CHUNK_LEN - from);
            let index = self.chunk_for(tag / CHUNK_TAGS);
            let chunk = &mut self.chunks[index];
            for (kept, seq) in chunk.seqs[from..from + len].iter_mut().zip(seq..) {
                *kept = seq;
            }
            chunk.holders[from..from + len].fill(holder);
            chunk.count += u32::try_from(len).unwrap_or(0);
            tag += len as u64;
            seq += len as u64;
            left -= len;
        }
    }

    /// Index of the chunk with this number, which is made if need be.
    #[inline]
    fn chunk_for(&mut self, number: u64) -> usize {
        if self.chunks.back().is_some_and(|last| last.number == number) {
            return self.chunks.len() - 1;
        }
        self.find_chunk(number).unwrap_or_else(|index| {
            let chunk = self.fresh_chunk(number);
            self.chunks.insert(index, chunk);
            index
        })
    }

    fn fresh_chunk(&mut self, number: u64) -> Box<Chunk> {
        let mut chunk = self.spare.take().unwrap_or_else(|| {
            Box::new(Chunk {
                number,
                count: 0,
                holders: [NOBODY; CHUNK_LEN],
                seqs: [0; CHUNK_LEN],
            })
        });
        chunk.number = number;
        chunk
    }

    /// Ends the delivery `tag` of the chunk at `index`, and those up to `last`, of the same chunk, that go on where it ends; the
    /// tag behind them.
    fn take_run(
        &mut self,
        index: usize,
        tag: u64,
        last: u64,
        settle: &mut impl FnMut(Taken<'_>),
    ) -> u64 {
        self.warm_next(index, tag);
        let Some(chunk) = self.chunks.get_mut(index) else {
            return tag + 1;
        };
        let number = chunk.holders[place(tag)];
        if number == NOBODY {
            return tag + 1;
        }
        let next = chunk.holders.get(place(tag) + 1..=place(last));
        if next.and_then(<[_]>::first) != Some(&number) {
            // Round many queues, all of them are alone.
            self.take_one(index, tag, settle);
            return tag + 1;
        }
        let first = chunk.seqs[place(tag)];
        let places = place(tag)..place(last) + 1;
        let held = chunk.holders.get_mut(places.clone()).unwrap_or_default();
        let seqs = chunk.seqs.get(places).unwrap_or_default();
        let mut count = 0;
        for ((holder, seq), expected) in held.iter_mut().zip(seqs).zip(first..) {
            if *holder != number || *seq != expected {
                break;
            }
            *holder = NOBODY;
            count += 1;
        }
        chunk.count -= count;
        self.count -= count as usize;
        let seqs = SeqRange {
            first: Seq(first),
            last: Seq(first + u64::from(count - 1)),
        };
        self.holders.release(number, tag, count, seqs, settle);
        tag + u64::from(count)
    }

    /// Ends the delivery `tag` of the chunk at `index`, if it is outstanding.
    #[inline]
    fn take_one(&mut self, index: usize, tag: u64, settle: &mut impl FnMut(Taken<'_>)) {
        let Some(chunk) = self.chunks.get_mut(index) else {
            return;
        };
        let number = std::mem::replace(&mut chunk.holders[place(tag)], NOBODY);
        if number == NOBODY {
            return;
        }
        let seq = Seq(chunk.seqs[place(tag)]);
        chunk.count -= 1;
        self.count -= 1;
        let seqs = SeqRange {
            first: seq,
            last: seq,
        };
        self.holders.release(number, tag, 1, seqs, settle);
    }

    fn take_upto(&mut self, last: u64, settle: &mut impl FnMut(Taken<'_>)) {
        while let Some(chunk) = self.chunks.front() {
            let first = chunk.number * CHUNK_TAGS;
            if first > last {
                return;
            }
            let end = last.min(first + (CHUNK_TAGS - 1));
            let mut tag = first;
            while let Some(held) = self.chunks.front().and_then(|chunk| chunk.held(tag, end)) {
                tag = self.take_run(0, held, end, settle);
            }
            if !self.drop_empty(0) {
                return;
            }
        }
    }

    /// Keeps (2); true when the chunk was dropped.
    fn drop_empty(&mut self, index: usize) -> bool {
        let is_empty = self.chunks.get(index).is_some_and(|chunk| chunk.count == 0);
        if is_empty {
            self.spare = self.chunks.remove(index);
        }
        is_empty
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::queue;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Clone, Debug)]
    enum Step {
        Deliver {
            count: u8,
        },
        Settled,
        Take {
            tag: u64,
            is_multiple: bool,
        },
        /// Take, and put back.
        Rollback {
            tag: u64,
        },
    }

    /// More than any tag here.
    const JUMP: u64 = 10_000;

    fn any_step() -> impl Strategy<Value = Step> {
        let tag = 0u64..400;
        prop_oneof![
            (1u8..50).prop_map(|count| Step::Deliver { count }),
            Just(Step::Settled),
            (tag.clone(), prop::bool::weighted(0.1))
                .prop_map(|(tag, is_multiple)| Step::Take { tag, is_multiple }),
            tag.prop_map(|tag| Step::Rollback { tag }),
        ]
    }

    fn taken(tags: &mut DeliveryTags, scope: AckScope) -> Result<Vec<Outstanding>, UnknownTag> {
        let mut taken = Vec::new();
        tags.take(scope, |run| taken.push(run.outstanding()))?;
        Ok(taken)
    }

    /// What the reference says (AK-2, AK-3), on a plain set.
    fn expected(model: &mut BTreeSet<u64>, scope: AckScope) -> Result<Vec<u64>, UnknownTag> {
        let known =
            |model: &BTreeSet<u64>, tag| model.contains(&tag).then_some(()).ok_or(UnknownTag(tag));
        let taken: Vec<u64> = match scope {
            AckScope::All => model.iter().copied().collect(),
            AckScope::One(tag) => {
                known(model, tag)?;
                vec![tag]
            }
            AckScope::UpTo(tag) => {
                known(model, tag)?;
                model.range(..=tag).copied().collect()
            }
            AckScope::Through(tag) => model.range(..=tag).copied().collect(),
        };
        model.retain(|tag| !taken.contains(tag));
        Ok(taken)
    }

    #[test]
    fn a_run_of_deliveries_gets_tags_across_chunks() {
        let (queue, other) = (queue(), queue());
        for count in [1, 2, 61, 62, 63, 64, 65, 126, 127, 200] {
            let mut tags = DeliveryTags::default();
            let mut known = NOBODY;
            // Tags 1, and 2 to `count + 1`: the first chunk has 63 of them.
            tags.next(&other, Seq(7), None);
            tags.next_run(&mut known, &queue, Some(ConsumerId(1)), Seq(100), count);
            tags.pass_settled(3);
            let last = count as u64 + 1;
            assert_eq!(tags.last_tag(), last + 3);
            assert_eq!(tags.len(), count + 1);
            let taken: Vec<_> = (1..=last)
                .flat_map(|tag| taken(&mut tags, AckScope::One(tag)).expect("it is outstanding"))
                .map(|(tag, unacked)| (tag, unacked.seqs.first.0, unacked.consumer))
                .collect();
            let run = (2..=last).map(|tag| (tag, tag + 98, Some(ConsumerId(1))));
            assert!(std::iter::once((1, 7, None)).chain(run).eq(taken));
            assert_eq!((tags.len(), tags.chunks.len()), (0, 0));
        }
    }

    proptest! {
        #[test]
        fn tags_behave_like_a_set_and_remember_their_holders(steps in prop::collection::vec(any_step(), 0..100)) {
            let queues: Vec<QueueHandle> = (0..9).map(|_| queue()).collect();
            let holders: Vec<(QueueHandle, Option<ConsumerId>)> = queues
                .iter()
                .flat_map(|queue| [None, Some(ConsumerId(1)), Some(ConsumerId(2))].map(|id| (queue.clone(), id)))
                .collect();
            // Some follow each other, so that there are runs; some of one holder jump, as requeued messages do.
            let holder_of = |tag: u64| &holders[usize::try_from(tag / 6).unwrap() * 7 % holders.len()];
            let seq_of = |tag: u64| tag + JUMP * (tag / 4 % 3);
            let mut tags = DeliveryTags::default();
            let mut model = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Deliver { count } => for _ in 0..count {
                        let tag = tags.last_tag + 1;
                        let (queue, consumer) = holder_of(tag);
                        model.insert(tags.next(queue, Seq(seq_of(tag)), *consumer));
                    },
                    Step::Settled => { tags.next_settled(); }
                    Step::Take { tag, is_multiple } => {
                        let scope = AckScope::new(tag, is_multiple);
                        let taken = taken(&mut tags, scope);
                        for (tag, run) in taken.iter().flatten() {
                            let seqs = run.seqs.first.0..=run.seqs.last.0;
                            prop_assert!(seqs.eq((*tag..tag + run.count()).map(seq_of)));
                        }
                        let actual = taken
                            .map(|taken| taken.into_iter().flat_map(|(tag, run)| tag..tag + run.count()).collect::<Vec<_>>());
                        prop_assert_eq!(actual, expected(&mut model, scope));
                    }
                    Step::Rollback { tag } => {
                        if let Ok(taken) = taken(&mut tags, AckScope::One(tag)) {
                            tags.restore(taken);
                        }
                    }
                }
                prop_assert_eq!(tags.len(), model.len());
                prop_assert!(tags.chunks.iter().all(|chunk| chunk.count > 0));
                tags.holders.check(model.len());
            }
            let all = tags.take_all();
            for unacked in &all {
                for seq in unacked.seqs.first.0..=unacked.seqs.last.0 {
                    let (queue, consumer) = holder_of(seq % JUMP);
                    prop_assert!(Arc::ptr_eq(&unacked.queue, queue) && unacked.consumer == *consumer);
                }
            }
            let seqs: Vec<u64> = all.iter().flat_map(|unacked| unacked.seqs.first.0..=unacked.seqs.last.0).collect();
            prop_assert_eq!(seqs, model.into_iter().map(seq_of).collect::<Vec<_>>());
        }
    }
}
