//! From a checkpoint and the records behind it to the state at the end of the log. Pure: no files.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::batch::Batch;
use super::checkpoint::Checkpoint;
use super::image::QueueImage;
use super::record::{Publish, Record};
use super::report::MetaRecord;
use super::types::{ImageEntry, Lsn, MetaEffect, Position, QueueId, Seq};

/// The state so far.
#[derive(Debug, Default)]
pub struct Replay {
    queues: HashMap<QueueId, QueueImage>,
    meta_records: Vec<MetaRecord>,
    /// META records that start below are in the snapshot.
    meta_lsn: Lsn,
    record_count: u64,
    high_counts: HighCounts,
    /// See [`Replay::adopt_unknown_queues`].
    adopts_queues: bool,
}

/// Failed deliveries of filed messages that are too many for the marks of a run.
pub type HighCounts = BTreeMap<(QueueId, Seq), u32>;

impl Replay {
    /// Starts with what a checkpoint holds; gives its META snapshot and its file's facts no further thought.
    #[must_use]
    pub fn from_checkpoint(queues: Vec<QueueImage>, meta_lsn: Lsn) -> Self {
        Self {
            queues: queues.into_iter().map(|image| (image.id, image)).collect(),
            meta_lsn,
            ..Self::default()
        }
    }

    /// From now on a message for a queue that is not known makes that queue: the record that created it may be lost.
    pub fn adopt_unknown_queues(&mut self) {
        self.adopts_queues = true;
    }

    /// Takes every message for one that may have been delivered: reservations and settlements may be lost.
    pub fn distrust_deliveries(&mut self) {
        for image in self.queues.values_mut() {
            image.reserved_upto = image.reserved_upto.max(image.next_seq);
        }
    }

    /// Applies all records of a batch.
    pub fn apply_batch(&mut self, batch: &Batch<'_>) {
        for (position, record) in batch.records() {
            self.apply(position, &record);
        }
    }

    /// Applies one record.
    ///
    /// A queue that is not there was deleted, or was deleted before the snapshot of a checkpoint was taken: its
    /// refs are dead, not damaged.
    pub fn apply(&mut self, position: Position, record: &Record<'_>) {
        let start = position.lsn;
        let end = Lsn(start.0 + u64::from(position.len_bytes));
        self.record_count += 1;
        match *record {
            Record::Publish(publish) => self.apply_publish(position, &publish, end),
            Record::Settle { queue, ranges, .. } => {
                if let Some(image) = self.queues.get_mut(&queue) {
                    image.apply_settle(ranges.iter(), start, end);
                }
            }
            Record::Requeue {
                queue,
                seq,
                delivery_count,
            } => {
                if let Some(image) = self.queues.get_mut(&queue) {
                    let is_new = !image.is_contained(start);
                    image.apply_requeue(seq, delivery_count, start, end);
                    let is_high = delivery_count > u32::from(u8::MAX);
                    if is_new && is_high && image.is_filed(seq) {
                        self.high_counts.insert((queue, seq), delivery_count);
                    } else if is_new {
                        self.high_counts.remove(&(queue, seq));
                    }
                }
            }
            Record::Reserve { queue, upto } => {
                if let Some(image) = self.queues.get_mut(&queue) {
                    image.apply_reserve(upto, start, end);
                }
            }
            Record::Meta {
                kind,
                version,
                effect,
                body,
            } => {
                self.apply_effect(effect, end);
                if start >= self.meta_lsn {
                    self.meta_records.push(MetaRecord {
                        lsn: start,
                        kind,
                        version,
                        body: body.to_vec(),
                    });
                }
            }
            Record::Open { .. } | Record::Mark => self.record_count -= 1,
        }
    }

    fn apply_publish(&mut self, position: Position, publish: &Publish<'_>, end: Lsn) {
        for r in publish.refs.iter() {
            if self.adopts_queues {
                self.queues
                    .entry(r.queue)
                    .or_insert_with(|| QueueImage::new(r.queue, Lsn(0)));
            }
            if let Some(image) = self.queues.get_mut(&r.queue) {
                let entry = ImageEntry::published(&r, position, publish.priority);
                image.apply_publish(entry, position.lsn, end);
            }
        }
    }

    /// The next seq of each queue.
    #[must_use]
    pub(crate) fn next_seqs(&self) -> HashMap<QueueId, Seq> {
        let queues = self.queues.iter();
        queues.map(|(id, image)| (*id, image.next_seq)).collect()
    }

    /// Applies a copy of a PUBLISH in a cold segment when the checkpoint that names it is lost. `known`: what the state
    /// says about messages below these seqs is right.
    pub(crate) fn restore_copy(
        &mut self,
        position: Position,
        publish: &Publish<'_>,
        known: &HashMap<QueueId, Seq>,
    ) {
        for r in publish.refs.iter() {
            let image = self.queues.entry(r.queue);
            let image = image.or_insert_with(|| QueueImage::new(r.queue, Lsn(0)));
            let entry = ImageEntry::published(&r, position, publish.priority);
            let known_below = known.get(&r.queue).copied().unwrap_or(Seq(0));
            image.apply_copy(entry, known_below);
        }
    }

    fn apply_effect(&mut self, effect: MetaEffect, end: Lsn) {
        match effect {
            MetaEffect::None => {}
            // A queue that the checkpoint holds already was created before its snapshot.
            MetaEffect::QueueCreated(id) => {
                self.queues
                    .entry(id)
                    .or_insert_with(|| QueueImage::new(id, end));
            }
            MetaEffect::QueueDeleted(id) => {
                self.queues.remove(&id);
            }
        }
    }

    /// Records applied; openings and marks not counted.
    #[must_use]
    pub fn record_count(&self) -> u64 {
        self.record_count
    }

    /// Delivery counts that the runs at the end of the log cannot say; of messages that left since, too.
    #[must_use]
    pub fn high_counts(&self) -> &HighCounts {
        &self.high_counts
    }

    /// The state at the end of the log: queues in ascending id, and META records behind the snapshot.
    #[must_use]
    pub fn finish(self) -> (Vec<QueueImage>, Vec<MetaRecord>) {
        let mut queues: Vec<QueueImage> = self.queues.into_values().collect();
        queues.sort_unstable_by_key(|image| image.id);
        queues.iter_mut().for_each(QueueImage::finish_replay);
        (queues, self.meta_records)
    }
}

/// Segments that hold live messages of a checkpoint but do not exist.
#[must_use]
pub fn missing_segments(
    checkpoint: &Checkpoint,
    existing: &BTreeSet<super::types::SegmentId>,
) -> Vec<super::types::SegmentId> {
    checkpoint
        .segments
        .keys()
        .filter(|segment| !existing.contains(segment))
        .copied()
        .collect()
}
