//! An index file in memory: what storage does with runs.

use std::collections::HashMap;

use super::*;
use crate::broker::effects::RunLoad;
use crate::storage::image::Entries;
use crate::storage::run::{FiledRun, RunMarks, RunSet, RunUses, count_use};
use crate::storage::types::{ImageEntry, Move, SegmentId};

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
        let mut marks = RunMarks::default();
        for entry in &entries {
            let index = FiledRun::index_of(entry.seq);
            live.insert(index);
            if entry.is_redelivered {
                marks.redelivered.insert(index);
            }
            marks.set_delivery_count(index, u8::try_from(entry.delivery_count).expect("few"));
        }
        let expiring = entries.iter().map(|entry| entry.expires_at_ms);
        let run = FiledRun {
            number: FiledRun::number_of(entries[0].seq),
            block,
            crc: block ^ 0xffff,
            expiry_base_ms: expiring.filter(|ms| *ms != 0).min().unwrap_or(0),
            live: live.into(),
            marks: (!marks.is_empty()).then(|| Box::new(marks)),
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
        let marked = |entry: &ImageEntry| {
            let index = FiledRun::index_of(entry.seq);
            let marks = run.marks.as_deref();
            ImageEntry {
                is_redelivered: marks.is_some_and(|marks| marks.redelivered.contains(index)),
                delivery_count: marks.map_or(0, |marks| marks.delivery_count(index).into()),
                ..*entry
            }
        };
        Ok(entries.iter().filter(is_live).map(marked).collect())
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
            for entry in entries {
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

fn segments<'a>(entries: impl Iterator<Item = &'a ImageEntry>) -> RunUses {
    let mut uses = RunUses::new();
    for entry in entries {
        count_use(&mut uses, entry.position);
    }
    uses
}

/// Copies of records of a queue, of which it has not been told yet.
#[derive(Debug)]
pub(in crate::broker::queue) struct Pass {
    moves: Vec<Move>,
    /// Runs as they were found, and as they are with the new places.
    refiled: Vec<(FiledRun, FiledRun)>,
}

impl Rig {
    /// The first half of compaction: copies some of the queue's records, wherever they are, into a cold segment.
    pub(in crate::broker::queue) fn copy_records(
        &mut self,
        queue: &QueueHandle,
        is_chosen: impl Fn(Seq) -> bool,
    ) -> Pass {
        let segments = [SegmentId(0), SegmentId::FIRST_COLD].into();
        let (entries, runs) = queue.refs_in(&segments);
        let chosen = entries.into_iter().filter(|entry| is_chosen(entry.seq));
        let moves = chosen.map(|entry| Move {
            seq: entry.seq,
            from: entry.position,
            to: self.journal.copy(entry.position),
        });
        let moves = moves.collect();
        let mut refiled = Vec::new();
        for run in runs {
            let mut entries = self.index.read(&run).expect("not damaged");
            for entry in entries.iter_mut().filter(|entry| is_chosen(entry.seq)) {
                entry.position = self.journal.copy(entry.position);
            }
            let new = FiledRun {
                content_bytes: run.content_bytes,
                ..self.index.write(entries)
            };
            refiled.push((run, new));
        }
        Pass { moves, refiled }
    }

    /// The second half: the queue is told.
    pub(in crate::broker::queue) fn swap_records(&mut self, queue: &QueueHandle, pass: &Pass) {
        queue.relocate(&pass.moves);
        for (old, new) in &pass.refiled {
            queue.refile(old, new.clone());
        }
    }

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
