//! The index at start: which blocks can be relied on, and new ones for those that cannot.
//!
//! ```text
//! t1 look at one block of each file, t2 where it is not what the checkpoint says: look at all of that file
//! t3 runs whose messages were settled behind the checkpoint: count again what they have in which segment
//! t4 build lost runs from the log, into free blocks
//! ```
//! - The block looked at in t1 is the one with the highest number: a missing file has it not, a cut one neither, and
//!   one that an earlier start built again after the same checkpoint has other blocks. Any other damage is found by
//!   the checksum when the block is read.
//! - t4 writes only blocks that the checkpoint does not name, so a crash leaves what there was before.
//! - Memory: the runs, and the positions of those under construction.

use std::collections::{BTreeMap, HashMap};

use super::block::{self, Block};
use super::files::IndexFiles;
use super::rebuild::{FOUND_MAX, Rebuild, Rebuilt, Sink};
use crate::disk::{Clock, Disk};
use crate::storage::error::StorageError;
use crate::storage::file::{damaged, io_error};
use crate::storage::format::{StoreId, index_path};
use crate::storage::image::QueueImage;
use crate::storage::replay::HighCounts;
use crate::storage::run::{FiledRun, RunSet};
use crate::storage::types::{ImageEntry, QueueId, Seq};

/// Pause between two lines about progress.
const PROGRESS_EVERY_MS: u64 = 2_000;

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct IndexReport {
    /// Runs built again from the log.
    pub(crate) rebuilt_run_count: u64,
    /// Bytes of the log read for that.
    pub(crate) read_bytes: u64,
    /// Messages that neither index nor log know, by queue: they stay and cannot be read.
    pub(crate) missing: BTreeMap<QueueId, u64>,
}

/// What the runs of a recovered store are made readable with.
pub(crate) struct IndexRecovery<'a> {
    pub(crate) disk: &'a dyn Disk,
    pub(crate) clock: &'a dyn Clock,
    pub(crate) store: StoreId,
    pub(crate) files: &'a IndexFiles,
    /// What runs cannot say.
    pub(crate) high_counts: &'a HighCounts,
    /// Whole segments may be missing.
    pub(crate) is_forgiving: bool,
}

impl IndexRecovery<'_> {
    /// Makes every run of `queues` readable.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn run(&self, queues: &mut [QueueImage]) -> Result<IndexReport, StorageError> {
        let report = self.rebuild_lost(queues)?;
        for ((queue, seq), delivery_count) in self.high_counts {
            let image = queues.binary_search_by_key(queue, |image| image.id);
            if let Some(image) = image.ok().and_then(|index| queues.get_mut(index)) {
                unfile(self.disk, self.files, image, *seq, *delivery_count)?;
            }
        }
        Ok(report)
    }

    fn rebuild_lost(&self, queues: &mut [QueueImage]) -> Result<IndexReport, StorageError> {
        let mut rebuild = Rebuild::new(self.disk, self.store, FOUND_MAX);
        if self.is_forgiving {
            rebuild = rebuild.forgive();
        }
        let mut lost_count = 0;
        for image in queues.iter_mut().filter(|image| !image.runs.is_empty()) {
            for number in self.find_lost(image)? {
                if let Some(run) = image.run(number) {
                    rebuild.add(image.id, run);
                    lost_count += 1;
                }
            }
        }
        if lost_count == 0 {
            return Ok(IndexReport::default());
        }
        tracing::warn!(
            runs = lost_count,
            "index blocks are missing: building them again from the log"
        );
        let mut builder = Builder::new(self.store, self.files, self.clock, queues);
        let Rebuilt {
            read_bytes,
            missing,
            ..
        } = rebuild.run(&mut builder)?;
        queues.iter_mut().for_each(QueueImage::compact);
        tracing::info!(
            runs = lost_count,
            read_bytes,
            "built the index again from the log"
        );
        Ok(IndexReport {
            rebuilt_run_count: lost_count,
            read_bytes,
            missing,
        })
    }

    /// Numbers of the runs whose block cannot be used; counts again what the touched ones of the others have where.
    fn find_lost(&self, image: &mut QueueImage) -> Result<Vec<u64>, StorageError> {
        let path = index_path(image.id);
        let id = image.id;
        let read = |run: &FiledRun| {
            let read = self.files.read(id, run);
            read.map_err(io_error(self.disk, "read an index file", &path))
        };
        let last = image.runs.iter().max_by_key(|run| run.block);
        let is_suspect = match last {
            Some(run) => read(run)?.is_err(),
            None => false,
        };
        let is_needed = |run: &FiledRun| {
            let range = run.range();
            let mut high = self.high_counts.range((id, range.first)..=(id, range.last));
            run.is_touched() || high.next().is_some()
        };
        let mut lost = Vec::new();
        for run in &mut image.runs {
            if !is_suspect && !is_needed(run) {
                continue;
            }
            match read(run)? {
                Ok(block) => {
                    let entries = block
                        .live_entries(run)
                        .expect("a decoded block has all live entries");
                    run.segments = block::uses(&entries);
                }
                Err(detail) => {
                    let path = self.disk.describe(&path);
                    let offset = u64::from(run.block) * super::BLOCK_LEN as u64;
                    tracing::debug!(path, offset, run = run.number, detail, "lost index block");
                    lost.push(run.number);
                }
            }
        }
        Ok(lost)
    }
}

/// Takes a run out of its file whose marks cannot say how often one of its messages was delivered.
fn unfile(
    disk: &dyn Disk,
    files: &IndexFiles,
    image: &mut QueueImage,
    seq: Seq,
    delivery_count: u32,
) -> Result<(), StorageError> {
    let number = FiledRun::number_of(seq);
    if let Some(run) = image.run(number).filter(|_| image.is_filed(seq)) {
        let path = index_path(image.id);
        let read = files.read(image.id, run);
        let read = read.map_err(io_error(disk, "read an index file", &path))?;
        let offset = u64::from(run.block) * super::BLOCK_LEN as u64;
        let block = read.map_err(|detail| damaged(disk, &path, offset, detail))?;
        let entries = block
            .live_entries(run)
            .expect("a decoded block has all live entries");
        image.runs.retain(|run| run.number != number);
        entries
            .into_iter()
            .for_each(|entry| image.entries.insert(entry));
    }
    if let Some(entry) = image.entries.get_mut(seq) {
        entry.delivery_count = delivery_count;
    }
    Ok(())
}

/// Puts rebuilt runs into free blocks.
struct Builder<'a> {
    store: StoreId,
    files: &'a IndexFiles,
    clock: &'a dyn Clock,
    queues: HashMap<QueueId, &'a mut QueueImage>,
    /// Blocks of runs that are half done.
    parked: HashMap<(QueueId, u64), u32>,
    begun_ns: u64,
    told_ns: u64,
    /// The disk takes no more blocks: the rest stays in memory.
    is_full: bool,
}

impl<'a> Builder<'a> {
    fn new(
        store: StoreId,
        files: &'a IndexFiles,
        clock: &'a dyn Clock,
        queues: &'a mut [QueueImage],
    ) -> Self {
        let now_ns = clock.monotonic_ns();
        Self {
            store,
            files,
            clock,
            queues: queues.iter_mut().map(|image| (image.id, image)).collect(),
            parked: HashMap::new(),
            begun_ns: now_ns,
            told_ns: now_ns,
            is_full: false,
        }
    }

    fn write(&mut self, queue: QueueId, place: u32, block: &Block) -> bool {
        if self.is_full {
            return false;
        }
        match self.files.write_at(queue, place, &[block.bytes()]) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "cannot write index files: positions stay in memory");
                self.is_full = true;
                false
            }
        }
    }
}

impl Sink for Builder<'_> {
    fn finished(
        &mut self,
        queue: QueueId,
        run: &FiledRun,
        mut entries: Vec<ImageEntry>,
    ) -> Result<(), StorageError> {
        for entry in &mut entries {
            block::mark(entry, FiledRun::index_of(entry.seq), run.marks.as_deref());
        }
        let parked = self.parked.remove(&(queue, run.number));
        let written =
            block::encode(self.store, queue, &entries).and_then(|(block, mut rebuilt)| {
                rebuilt.block = parked.unwrap_or_else(|| self.files.allocate(queue));
                if rebuilt.live == run.live {
                    rebuilt.content_bytes = run.content_bytes;
                }
                self.write(queue, rebuilt.block, &block).then_some(rebuilt)
            });
        let Some(image) = self.queues.get_mut(&queue) else {
            return Ok(());
        };
        match written {
            Some(rebuilt) => {
                if let Some(place) = image.run_mut(run.number) {
                    *place = rebuilt;
                }
            }
            None => {
                // Emptied: forgotten at the end.
                if let Some(place) = image.run_mut(run.number) {
                    place.live = RunSet::default().into();
                }
                entries
                    .into_iter()
                    .for_each(|entry| image.entries.insert(entry));
            }
        }
        Ok(())
    }

    fn park(&mut self, queue: QueueId, run: &FiledRun, entries: Vec<ImageEntry>) -> bool {
        let Ok(mut all) = self.unpark(queue, run) else {
            return false;
        };
        all.extend(entries);
        let mut block = Block::new(run.expiry_base_ms);
        if !all.iter().all(|entry| block.put(entry)) {
            return false;
        }
        let files = self.files;
        let place = *self
            .parked
            .entry((queue, run.number))
            .or_insert_with(|| files.allocate(queue));
        self.write(queue, place, &block)
    }

    fn unpark(&mut self, queue: QueueId, run: &FiledRun) -> Result<Vec<ImageEntry>, StorageError> {
        let Some(place) = self.parked.get(&(queue, run.number)) else {
            return Ok(Vec::new());
        };
        let bytes = self.files.read_bytes(queue, *place)?;
        let block = Block::from_bytes(bytes, run.expiry_base_ms);
        let entries = |block: Block| {
            run.live
                .iter()
                .filter_map(|index| block.entry(run, index))
                .collect()
        };
        Ok(block.map(entries).unwrap_or_default())
    }

    fn progress(
        &mut self,
        segments_done: usize,
        segment_count: usize,
        done_bytes: u64,
        total_bytes: u64,
    ) {
        let now_ns = self.clock.monotonic_ns();
        if now_ns.saturating_sub(self.told_ns) < PROGRESS_EVERY_MS * 1_000_000
            && segments_done < segment_count
        {
            return;
        }
        self.told_ns = now_ns;
        let elapsed_ms = now_ns.saturating_sub(self.begun_ns) / 1_000_000;
        let seconds_left = remaining_ms(elapsed_ms, done_bytes, total_bytes).div_ceil(1000);
        tracing::info!(
            segments_done,
            segment_count,
            done_bytes,
            total_bytes,
            seconds_left,
            "building the index again from the log"
        );
    }
}

/// Time that the rest takes if it goes on as before.
fn remaining_ms(elapsed_ms: u64, done_bytes: u64, total_bytes: u64) -> u64 {
    let rest = u128::from(total_bytes.saturating_sub(done_bytes));
    let left = u128::from(elapsed_ms) * rest / u128::from(done_bytes.max(1));
    u64::try_from(left).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::disk::sim::{SimClock, SimDisk};
    use crate::storage::testing::{LiveStore, numbered_payload};
    use crate::storage::{CheckpointSource, Options};

    const STORE: StoreId = StoreId([0x5a; 16]);

    #[test]
    fn the_estimate_goes_by_bytes() {
        assert_eq!(remaining_ms(1000, 250, 1000), 3000);
        assert_eq!(remaining_ms(1000, 1000, 1000), 0);
        assert_eq!(remaining_ms(1000, 0, 7), 7000);
        assert_eq!(remaining_ms(10, 2000, 1000), 0);
    }

    /// With room for a few positions only, runs go to their blocks half done and come back whole.
    #[test]
    fn a_rebuild_needs_little_memory() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
        let clock = Arc::new(SimClock::new(1_000));
        let options = Options {
            index_min_messages: 0,
            segment_size_bytes: 16 << 10,
            ..Options::default()
        };
        let opened = LiveStore::open_by_hand(Arc::clone(&disk), clock.clone(), options);
        let (store, _) = opened.expect("it opens");
        // Messages of 40 queues take turns, so that every run lies in many segments.
        for queue in 1..=40 {
            store.create_queue(queue);
        }
        for number in 0..60 {
            for queue in 1..=40 {
                store.publish(&[queue], &numbered_payload(number, 50), number % 3 * 1_000);
            }
            store.commit().expect("it commits");
        }
        store.requeue(7, 9, 2);
        store.storage.checkpoint(&store).expect("it is written");
        let filed = |id: &QueueId| store.queue(*id).expect("it exists");
        let mut images: Vec<QueueImage> = store.queue_ids().iter().map(filed).collect();
        assert!(images.iter().all(|image| image.runs[0].segments.len() > 5));
        let files = IndexFiles::open(Arc::clone(&disk), STORE, &[]).expect("it opens");
        let mut rebuild = Rebuild::new(&*disk, STORE, 100);
        let before = images.clone();
        before
            .iter()
            .for_each(|image| rebuild.add(image.id, &image.runs[0]));
        let mut builder = Builder::new(STORE, &files, &*clock, &mut images);
        let peak = rebuild
            .run(&mut builder)
            .expect("the log has all")
            .found_peak;
        assert!(peak < 400, "{peak} positions of 2400 in memory");
        for (image, before) in images.iter().zip(&before) {
            let read = |run: &FiledRun| {
                let block = files.read(image.id, run).expect("the disk works");
                block.expect("it is whole").live_entries(run)
            };
            assert_eq!(image.runs[0].live, before.runs[0].live);
            assert_eq!(image.runs[0].segments, before.runs[0].segments);
            assert_eq!(
                read(&image.runs[0]),
                store.storage.read_run(image.id, &before.runs[0]).ok()
            );
        }
    }
}
