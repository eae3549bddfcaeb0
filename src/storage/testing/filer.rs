//! What an owner of queues remembers about its index files when it keeps all entries in memory as well.
//!
//! Its queues have no runs; [`Filer::image`] gives them as an owner would that holds nothing of a filed run. So what a
//! start reads through the index files is compared with what never left memory.

use std::collections::{BTreeMap, BTreeSet};

use crate::storage::format::StoreId;
use crate::storage::index::block;
use crate::storage::run::FiledRun;
use crate::storage::types::{ImageEntry, QueueId, SegmentId, Seq};
use crate::storage::{Options, QueueImage, ReadError, Recovered, Storage};

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Filer {
    /// Runs whose blocks are right; `live` is what each block holds.
    filed: BTreeMap<QueueId, BTreeMap<u64, FiledRun>>,
    min_messages: u64,
}

impl Filer {
    /// Of a store that was just opened with `options`.
    #[must_use]
    pub fn new(options: &Options, recovered: &Recovered) -> Self {
        let of_queue = |queue: &QueueImage| {
            let runs = queue.runs.iter().map(|run| (run.number, run.clone()));
            (queue.id, runs.collect())
        };
        Self {
            filed: recovered.queues.iter().map(of_queue).collect(),
            min_messages: options.index_min_messages,
        }
    }

    /// Messages of a run moved: its block says the old place.
    pub fn forget(&mut self, queue: QueueId, number: u64) {
        if let Some(runs) = self.filed.get_mut(&queue) {
            runs.remove(&number);
        }
    }

    /// What [`CheckpointSource::queue`](crate::storage::CheckpointSource::queue) gives for a queue.
    #[must_use]
    pub fn image(&self, whole: &QueueImage) -> QueueImage {
        let mut image = whole.clone();
        let filed = self.filed.get(&whole.id);
        for filed in filed.into_iter().flat_map(BTreeMap::values) {
            let entries: Vec<ImageEntry> = whole
                .entries
                .range(filed.range())
                .filter(|entry| filed.live.contains(FiledRun::index_of(entry.seq)))
                .copied()
                .collect();
            if let Some((_, now)) = block::encode(StoreId([0; 16]), whole.id, &entries) {
                entries
                    .iter()
                    .for_each(|entry| image.entries.remove(entry.seq));
                let is_whole = now.live == filed.live;
                image.runs.push(FiledRun {
                    live: now.live,
                    marks: now.marks,
                    segments: now.segments,
                    content_bytes: if is_whole { filed.content_bytes } else { 0 },
                    ..filed.clone()
                });
            }
        }
        image
    }

    /// What [`CheckpointSource::refs_in`](crate::storage::CheckpointSource::refs_in) gives for a queue.
    #[must_use]
    pub fn refs_in(
        &self,
        whole: &QueueImage,
        segments: &BTreeSet<SegmentId>,
    ) -> (Vec<ImageEntry>, Vec<FiledRun>) {
        let image = self.image(whole);
        let entries = image.entries.iter();
        let there = entries.filter(|entry| segments.contains(&entry.position.lsn.segment()));
        let there = there.copied().collect();
        let mut runs = image.runs;
        runs.retain(|run| {
            let mut used = run.segments.iter();
            used.any(|used| segments.contains(&used.segment))
        });
        (there, runs)
    }

    /// What [`CheckpointSource::refile`](crate::storage::CheckpointSource::refile) does with a queue. The new places are
    /// read from the new block: what cannot be read is not taken.
    pub fn refile(
        &mut self,
        storage: &Storage,
        whole: &mut QueueImage,
        old: &FiledRun,
        new: FiledRun,
    ) {
        if self.image(whole).run(old.number) != Some(old) {
            return;
        }
        let Ok(entries) = storage.read_run(whole.id, &new) else {
            return;
        };
        for moved in entries {
            if let Some(entry) = whole.entries.get_mut(moved.seq) {
                entry.position = moved.position;
            }
        }
        let known = self.filed.entry(whole.id).or_default();
        known.insert(new.number, new);
    }

    /// What [`CheckpointSource::unfiled_runs`](crate::storage::CheckpointSource::unfiled_runs) gives for a queue:
    /// complete runs of a queue that is long enough, and with a threshold of 0 all that is not filed as it is.
    #[must_use]
    pub fn unfiled(&self, whole: &QueueImage, max_count: usize) -> Vec<Vec<ImageEntry>> {
        if whole.message_count() < self.min_messages {
            return Vec::new();
        }
        let mut runs: BTreeMap<u64, Vec<ImageEntry>> = BTreeMap::new();
        for entry in whole.entries.iter() {
            let number = FiledRun::number_of(entry.seq);
            runs.entry(number).or_default().push(*entry);
        }
        let filed = self.filed.get(&whole.id);
        let is_missing = |number: u64, entry: &ImageEntry| {
            let run = filed.and_then(|filed| filed.get(&number));
            run.is_none_or(|run| !run.live.contains(FiledRun::index_of(entry.seq)))
        };
        let tail = |rank| FiledRun::number_of(Seq::new(rank, whole.next_seq.0));
        runs.into_iter()
            .filter(|(number, _)| {
                self.min_messages == 0 || *number < tail(FiledRun::rank_of(*number))
            })
            .filter(|(number, entries)| entries.iter().any(|entry| is_missing(*number, entry)))
            .map(|(_, entries)| entries)
            .take(max_count)
            .collect()
    }

    /// Notes what [`CheckpointSource::filed`](crate::storage::CheckpointSource::filed) is told, and what the contents
    /// take. A filer never moves a message by itself, so all of it is right.
    pub fn filed(&mut self, id: QueueId, runs: Vec<FiledRun>) {
        let known = self.filed.entry(id).or_default();
        for mut run in runs {
            run.content_bytes = run.live_bytes();
            known.insert(run.number, run);
        }
    }
}

/// Reads filed messages back among the entries of `queues`.
///
/// # Errors
/// Those of [`Storage::read_run`].
pub fn unfile(storage: &Storage, queues: &mut [QueueImage]) -> Result<(), ReadError> {
    for image in queues {
        for run in std::mem::take(&mut image.runs) {
            let entries = storage.read_run(image.id, &run)?;
            entries
                .into_iter()
                .for_each(|entry| image.entries.insert(entry));
        }
    }
    Ok(())
}
