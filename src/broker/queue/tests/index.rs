//! An index file in memory: what storage does with runs.

use std::collections::HashMap;

use smallvec::SmallVec;

use super::*;
use crate::broker::effects::RunLoad;
use crate::storage::image::Entries;
use crate::storage::run::{FiledRun, RunSet, RunUse};
use crate::storage::types::ImageEntry;

/// Blocks by number; never reused.
#[derive(Default)]
pub(in crate::broker::queue) struct TestIndex {
    blocks: HashMap<u32, Vec<ImageEntry>>,
}

impl TestIndex {
    /// Writes a run into a block of its own.
    pub(in crate::broker::queue) fn write(&mut self, entries: Vec<ImageEntry>) -> FiledRun {
        let block = u32::try_from(self.blocks.len()).unwrap();
        let mut live = RunSet::default();
        for entry in &entries {
            live.insert(FiledRun::index_of(entry.seq));
        }
        let expiring = entries.iter().map(|entry| entry.expires_at_ms);
        let run = FiledRun {
            number: FiledRun::number_of(entries[0].seq),
            block,
            crc: block ^ 0xffff,
            expiry_base_ms: expiring.filter(|ms| *ms != 0).min().unwrap_or(0),
            live,
            marks: None,
            segments: segments(entries.iter()),
            content_bytes: 0,
        };
        self.blocks.insert(block, entries);
        run
    }

    /// The block is gone.
    pub(in crate::broker::queue) fn damage(&mut self, block: u32) {
        self.blocks.insert(block, Vec::new());
    }

    pub(super) fn read(&self, run: &FiledRun) -> Result<Vec<ImageEntry>, FetchFailure> {
        let entries = &self.blocks[&run.block];
        if entries.is_empty() {
            let reason = "damaged".into();
            return Err(FetchFailure { reason });
        }
        let is_live = |entry: &&ImageEntry| run.live.contains(FiledRun::index_of(entry.seq));
        Ok(entries.iter().filter(is_live).copied().collect())
    }

    /// All entries of an image, filed or not; checks what the image says of its runs.
    pub(in crate::broker::queue) fn expand(
        &self,
        image: &crate::storage::image::QueueImage,
    ) -> Entries {
        let mut all: Vec<ImageEntry> = image.entries.iter().copied().collect();
        assert!(image.runs.is_sorted_by(|a, b| a.number < b.number));
        for run in &image.runs {
            let entries = self.read(run).expect("not damaged");
            assert_eq!(entries.len(), run.live.len() as usize);
            assert_eq!(segments(entries.iter()), run.segments);
            assert!(!run.live.is_empty());
            for mut entry in entries {
                if let Some(marks) = &run.marks {
                    let index = FiledRun::index_of(entry.seq);
                    entry.is_redelivered = marks.redelivered.contains(index);
                    entry.delivery_count = u32::from(marks.delivery_counts[usize::from(index)]);
                }
                let number = FiledRun::number_of(entry.seq);
                let mut packed = image.entries.iter();
                assert!(packed.all(|packed| FiledRun::number_of(packed.seq) != number));
                all.push(entry);
            }
        }
        all.sort_by_key(|entry| entry.seq);
        all.into_iter().collect()
    }
}

fn segments<'a>(entries: impl Iterator<Item = &'a ImageEntry>) -> SmallVec<[RunUse; 2]> {
    let mut uses: SmallVec<[RunUse; 2]> = SmallVec::new();
    for entry in entries {
        let segment = entry.position.lsn.segment();
        let known = uses.iter_mut().find(|one| one.segment == segment);
        let Some(one) = known else {
            uses.push(RunUse {
                segment,
                live_refs: 1,
                live_bytes: u64::from(entry.position.len_bytes),
            });
            continue;
        };
        one.live_refs += 1;
        one.live_bytes += u64::from(entry.position.len_bytes);
    }
    uses
}

impl Rig {
    /// Files what the queue wants to be rid of; the number of runs.
    pub(in crate::broker::queue) fn file(&mut self, queue: &QueueHandle) -> usize {
        let mut count = 0;
        loop {
            let offered = queue.unfiled_runs(&self.shared, 64);
            if offered.is_empty() {
                return count;
            }
            count += offered.len();
            let runs: Vec<FiledRun> = offered
                .into_iter()
                .map(|run| self.index.write(run))
                .collect();
            queue.filed(&self.shared, &runs);
        }
    }

    /// What a reader thread does with a load.
    pub(in crate::broker::queue) fn answer(&mut self, load: RunLoad) {
        let results: Vec<_> = load
            .runs
            .into_iter()
            .map(|run| {
                let result = self.index.read(&run);
                (run, result)
            })
            .collect();
        self.turn(|turn| run_loaded(turn, &load.queue, results));
    }
}
