//! The queues as the broker would hold them, and what has been pushed about them.

use std::collections::{BTreeMap, BTreeSet};

use stratamq::storage::QueueImage;
use stratamq::storage::testing::filer::Filer;
use stratamq::storage::types::{ImageEntry, Lsn, QueueId, Seq, SeqRange};

use super::model::{Body, Event};
use super::oracle::History;

/// Stands for a queue in scripts: deleting and creating it again gives a new id.
pub(super) type Slot = usize;

/// A queue in memory.
#[derive(Clone, Debug)]
pub(super) struct LiveQueue {
    pub(super) image: QueueImage,
    /// Reservations with the place at which they are durable.
    reservations: Vec<(Lsn, Seq)>,
    /// Highest reservation pushed; messages below it that are published later follow it in the log.
    reserved_upto: Seq,
    /// Messages whose own record follows a reservation above them.
    covered: BTreeSet<Seq>,
    /// Messages handed to a consumer by this incarnation, settled ones excluded.
    pub(super) delivered: BTreeSet<Seq>,
    /// First seq that no incarnation can have delivered.
    delivered_upto: Seq,
}

impl LiveQueue {
    pub(super) fn new(image: QueueImage) -> Self {
        Self {
            reservations: vec![(Lsn(0), image.reserved_upto)],
            reserved_upto: image.reserved_upto,
            covered: BTreeSet::new(),
            delivered: BTreeSet::new(),
            delivered_upto: image.reserved_upto,
            image,
        }
    }

    /// Takes the next seq. The message with it may be delivered at once if a reservation above it was pushed before.
    pub(super) fn take_seq(&mut self) -> Seq {
        let seq = self.image.next_seq;
        self.image.next_seq = Seq(seq.0 + 1);
        if seq < self.reserved_upto {
            self.covered.insert(seq);
        }
        seq
    }

    /// A seq for a message that will never be logged.
    pub(super) fn skip_seq(&mut self) {
        self.image.next_seq = Seq(self.image.next_seq.0 + 1);
    }

    /// Where the next reservation goes.
    pub(super) fn next_reservation(&self) -> Seq {
        Seq(self.image.next_seq.0.max(self.reserved_upto.0) + 3)
    }

    pub(super) fn reserve(&mut self, upto: Seq, end: Lsn) {
        self.reserved_upto = upto;
        self.reservations.push((end, upto));
        self.image.apply_reserve(upto, end, end);
    }

    /// Hands the first `count` deliverable messages to a consumer.
    pub(super) fn deliver(&mut self, count: usize, confirm_lsn: Lsn) -> Vec<ImageEntry> {
        let durable = self
            .reservations
            .iter()
            .filter(|(end, _)| *end <= confirm_lsn);
        let durable_upto = durable.map(|(_, upto)| *upto).max().unwrap_or(Seq(0));
        let is_deliverable = |entry: &&ImageEntry| {
            let is_covered = entry.seq < durable_upto || self.covered.contains(&entry.seq);
            is_covered && !self.delivered.contains(&entry.seq)
        };
        let entries: Vec<_> = self
            .image
            .entries
            .iter()
            .filter(is_deliverable)
            .take(count)
            .copied()
            .collect();
        for entry in &entries {
            self.delivered.insert(entry.seq);
            self.delivered_upto = self.delivered_upto.max(Seq(entry.seq.0 + 1));
        }
        entries
    }

    /// The image that a clean stop leaves: exact delivery state.
    pub(super) fn exact_image(&self) -> QueueImage {
        let mut image = self.image.clone();
        image.reserved_upto = self.delivered_upto;
        for seq in &self.delivered {
            if let Some(entry) = image.entries.get_mut(*seq) {
                entry.is_redelivered = true;
            }
        }
        image
    }

    fn exact_event(&self) -> Event {
        let is_there = |seq: &&Seq| self.image.entries.get(**seq).is_some();
        Event::Exact {
            queue: self.image.id,
            reserved_upto: self.delivered_upto,
            delivered: self.delivered.iter().filter(is_there).copied().collect(),
        }
    }

    /// The first `count` messages as ranges that name nothing else.
    pub(super) fn ranges(&self, is_chosen: impl Fn(usize) -> bool) -> Vec<SeqRange> {
        let mut ranges: Vec<SeqRange> = Vec::new();
        for (index, entry) in self.image.entries.iter().enumerate() {
            if !is_chosen(index) {
                continue;
            }
            match ranges.last_mut() {
                Some(last) if last.last.0 + 1 == entry.seq.0 => last.last = entry.seq,
                _ => ranges.push(SeqRange {
                    first: entry.seq,
                    last: entry.seq,
                }),
            }
        }
        ranges
    }

    pub(super) fn settle(&mut self, ranges: &[SeqRange], end: Lsn) {
        for range in ranges {
            self.delivered
                .retain(|seq| *seq < range.first || *seq > range.last);
        }
        self.image.apply_settle(ranges.iter().copied(), end, end);
    }
}

/// Everything in memory: what a crash takes away, and the history that the oracle judges by.
#[derive(Clone, Debug, Default)]
pub(super) struct Live {
    pub(super) queues: BTreeMap<QueueId, LiveQueue>,
    /// Numbers of META records.
    pub(super) meta: Vec<u64>,
    pub(super) meta_lsn: Lsn,
    pub(super) slots: BTreeMap<Slot, QueueId>,
    pub(super) history: History,
    /// Where each step of the history ends.
    step_ends: Vec<Lsn>,
    /// Queues by the META record that created them; survives crashes, to know which ids were issued.
    created: BTreeMap<u64, QueueId>,
    next_number: u64,
    /// What is in index files.
    pub(super) filer: Filer,
}

impl Live {
    /// Continues with a recovered store.
    pub(super) fn restored(
        mut self,
        kept_step_count: usize,
        images: Vec<QueueImage>,
        meta: Vec<u64>,
        filer: Filer,
    ) -> Self {
        self.filer = filer;
        self.history = self.history.resolve(kept_step_count);
        self.step_ends.clear();
        self.queues = images
            .into_iter()
            .map(|image| (image.id, LiveQueue::new(image)))
            .collect();
        self.slots.retain(|_, id| self.queues.contains_key(id));
        self.created.retain(|number, _| meta.contains(number));
        self.meta = meta;
        self.meta_lsn = Lsn(0);
        self
    }

    /// A number that was never used, not even by what was lost.
    pub(super) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// A body that was never used.
    pub(super) fn body(&mut self, len_bytes: u32) -> Body {
        Body {
            number: self.number(),
            len_bytes: len_bytes.max(Body::LEN_MIN_BYTES),
        }
    }

    /// The next queue id. As in the broker it depends on what survived: the id of a queue whose creation was lost is
    /// issued again.
    pub(super) fn next_queue_id(&self) -> QueueId {
        QueueId(self.created.values().map(|id| id.0).max().unwrap_or(0) + 1)
    }

    pub(super) fn queue_of(&mut self, slot: Slot) -> Option<&mut LiveQueue> {
        self.queues.get_mut(self.slots.get(&slot)?)
    }

    pub(super) fn create(&mut self, slot: Slot, id: QueueId, number: u64, end: Lsn) {
        self.created.insert(number, id);
        self.slots.insert(slot, id);
        self.queues
            .insert(id, LiveQueue::new(QueueImage::new(id, end)));
    }

    /// Notes one step that ends at `end`.
    pub(super) fn note(&mut self, events: Vec<Event>, end: Lsn) {
        for number in events.iter().filter_map(Event::meta_number) {
            self.meta.push(number);
            self.meta_lsn = end;
        }
        self.history.push(events);
        self.step_ends.push(end);
    }

    /// Notes the exact state that a clean stop saves, as the last step.
    pub(super) fn note_exact(&mut self) {
        let events = self.queues.values().map(LiveQueue::exact_event).collect();
        self.note(events, Lsn(u64::MAX));
    }

    /// Everything below `lsn` is durable.
    pub(super) fn confirm(&mut self, lsn: Lsn) {
        let count = self.step_ends.partition_point(|end| *end <= lsn);
        self.history.confirm(count);
    }

    /// The highest end that is waited for.
    pub(super) fn last_end(&self) -> Lsn {
        self.step_ends
            .iter()
            .rev()
            .find(|end| **end < Lsn(u64::MAX))
            .copied()
            .unwrap_or_default()
    }
}
