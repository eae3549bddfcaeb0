//! Reading everything again that nobody has asked for lately, so that damage is found while there is still a backup.
//!
//! ```text
//!  round:  superblocks -> checkpoint -> S1 [batch][batch].. -> S2 .. (sealed segments only) -> index files, queue by
//!          queue -> pause, by the owner
//!  step:   reads about as many bytes as it is allowed, then returns what it found
//! ```
//! 1. Pages are dropped from the cache before a file is read: what is verified is the medium.
//! 2. Only files that nobody writes are looked at, and of index files the blocks that a queue relies on; what was freed
//!    meanwhile is no finding.
//! 3. Nothing is repaired and nothing changed. Which live messages a damaged place hits is the owner's to find out; a
//!    damaged block has [`Storage::rewrite_run`](super::Storage::rewrite_run).

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::CheckpointSource;
use super::batch::Invalid;
use super::error::StorageError;
use super::file::{io_error, list_or_empty, read_up_to};
use super::format::{
    CHECKPOINT_DIR, CHECKPOINT_EXTENSION, SUPERBLOCK_FILES, checkpoint_path, is_crc_right,
    number_in_name, segment_path,
};
use super::index::scrub::IndexRound;
use super::scan::{SegmentScan, survey_remains};
use super::segment::{self, FIRST_BATCH_OFFSET};
use super::shared::Shared;
use super::superblock::{self, Copy};
use super::survey::opening;
use super::types::{Lsn, QueueId, SegmentId};
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::sync::lock;

/// Bytes read at once: small, because the reading is slow on purpose and should take no memory.
const CHUNK_BYTES: u64 = 256 << 10;

/// A place that does not verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rot {
    /// The file, for people.
    pub path: String,
    /// First byte in it.
    pub offset: u64,
    /// What is wrong.
    pub detail: String,
    /// In the log: the part of it that messages must not lie in.
    pub range: Option<(Lsn, Lsn)>,
    /// In an index file: the queue, and its run whose block this is.
    pub run: Option<(QueueId, u64)>,
}

/// What a step did.
#[derive(Debug, Default)]
pub struct Step {
    /// Bytes it read.
    pub read_bytes: u64,
    /// What it found.
    pub found: Vec<Rot>,
    /// Everything was read once; the next step begins again.
    pub is_round_over: bool,
}

/// Where a round stands.
enum Stage {
    Superblocks,
    Checkpoint,
    /// Segments above this one.
    Segments(SegmentId),
    /// Inside a segment, up to the end that its successor names.
    Reading(Box<SegmentScan>, Option<Lsn>),
    Index(IndexRound),
}

/// See the module. One per store.
pub struct Scrubber {
    shared: Arc<Shared>,
    stage: Stage,
    /// What ended the last step, when that had something to tell.
    failed: Option<StorageError>,
}

impl Scrubber {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            stage: Stage::Superblocks,
            failed: None,
        }
    }

    /// Goes on reading until `budget_bytes` are read or the round is over; a batch or a checkpoint is read whole.
    /// `source` says which blocks of index files count.
    ///
    /// # Errors
    /// Those of the disk: the round goes on behind the file that cannot be read. One that follows upon findings is told
    /// by the next call.
    pub fn step(
        &mut self,
        source: &dyn CheckpointSource,
        budget_bytes: u64,
    ) -> Result<Step, StorageError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let mut step = Step::default();
        while step.read_bytes < budget_bytes && !step.is_round_over {
            let stage = std::mem::replace(&mut self.stage, Stage::Superblocks);
            if let Err(error) = self.advance(source, stage, &mut step) {
                if step.found.is_empty() && step.read_bytes == 0 {
                    return Err(error);
                }
                self.failed = Some(error);
                break;
            }
        }
        Ok(step)
    }

    /// Does a piece of the work. The stage is set to what comes behind a file before that is read.
    fn advance(
        &mut self,
        source: &dyn CheckpointSource,
        stage: Stage,
        step: &mut Step,
    ) -> Result<(), StorageError> {
        self.stage = match stage {
            Stage::Superblocks => {
                self.stage = Stage::Checkpoint;
                self.superblocks(step)?;
                Stage::Checkpoint
            }
            Stage::Checkpoint => {
                self.stage = Stage::Segments(SegmentId(0));
                self.checkpoint(step)?;
                Stage::Segments(SegmentId(0))
            }
            Stage::Segments(after) => self.next_segment(after, step)?,
            Stage::Reading(scan, end) => self.read_on(source, scan, end, step)?,
            Stage::Index(mut round) => {
                let goes_on = round.step(&self.shared, source, step);
                // After an error it goes on with the next queue.
                let is_over = matches!(goes_on, Ok(false));
                step.is_round_over = is_over;
                let next = if is_over {
                    Stage::Superblocks
                } else {
                    Stage::Index(round)
                };
                if let Err(error) = goes_on {
                    self.stage = next;
                    return Err(error);
                }
                next
            }
        };
        Ok(())
    }

    fn disk(&self) -> &dyn Disk {
        &*self.shared.disk
    }

    /// A copy may be half written as it is read, so a wrong one is read once more.
    fn superblocks(&self, step: &mut Step) -> Result<(), StorageError> {
        for path in SUPERBLOCK_FILES.map(Path::new) {
            if let Some(file) = self.open(path)? {
                let error = io_error(self.disk(), "read the superblock", path);
                file.drop_cache().map_err(error)?;
            }
        }
        let mut copies = superblock::read_copies(self.disk())?;
        if copies.contains(&Copy::Invalid) {
            copies = superblock::read_copies(self.disk())?;
        }
        for (copy, name) in copies.iter().zip(SUPERBLOCK_FILES) {
            if matches!(copy, Copy::Invalid | Copy::Missing) {
                step.found.push(Rot {
                    path: self.disk().describe(Path::new(name)),
                    offset: 0,
                    detail: "this copy of the superblock is not whole; the next checkpoint writes it again".into(),
                    range: None,
                    run: None,
                });
            }
        }
        Ok(())
    }

    /// The file's own checksum over all of it, without looking into it.
    fn checkpoint(&self, step: &mut Step) -> Result<(), StorageError> {
        let names = list_or_empty(self.disk(), Path::new(CHECKPOINT_DIR))?;
        let number = |name: &PathBuf| number_in_name(name, 16, CHECKPOINT_EXTENSION);
        let Some(newest) = names.iter().filter_map(number).max() else {
            return Ok(());
        };
        let path = checkpoint_path(newest);
        let error = |source| io_error(self.disk(), "read a checkpoint", &path)(source);
        let Some(file) = self.open(&path)? else {
            return Ok(());
        };
        file.drop_cache().map_err(error)?;
        let is_whole = is_file_crc_right(&*file, &mut step.read_bytes).map_err(error)?;
        // One that was replaced meanwhile does not matter any more.
        if !is_whole && self.open(&path)?.is_some() {
            step.found.push(Rot {
                path: self.disk().describe(&path),
                offset: 0,
                detail: "the checkpoint does not match its crc; the next checkpoint replaces it"
                    .into(),
                range: None,
                run: None,
            });
        }
        Ok(())
    }

    fn open(&self, path: &Path) -> Result<Option<Arc<dyn DiskFile>>, StorageError> {
        match self.disk().open(path, OpenMode::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened
                .map(Some)
                .map_err(io_error(self.disk(), "open", path)),
        }
    }

    /// The next sealed segment.
    fn next_segment(&mut self, after: SegmentId, step: &mut Step) -> Result<Stage, StorageError> {
        let open = lock(&self.shared.append).end().segment();
        let next = {
            let segments = lock(&self.shared.segments);
            let is_closed = |segment: &&SegmentId| **segment < open || segment.is_cold();
            let mut later = segments.range(SegmentId(after.0 + 1)..);
            later.find(is_closed).copied()
        };
        let Some(segment) = next else {
            return Ok(Stage::Index(IndexRound::default()));
        };
        self.stage = Stage::Segments(segment);
        let path = segment_path(segment);
        let error = |source| io_error(self.disk(), "read a segment", &path)(source);
        let Some(file) = self.open(&path)? else {
            return Ok(Stage::Segments(segment));
        };
        file.drop_cache().map_err(error)?;
        let header = segment::read_header(&*file, self.shared.store, segment).map_err(error)?;
        let header = match header {
            Ok(header) => header,
            Err(invalid) => {
                let from = Lsn::new(segment, 0);
                self.report(
                    segment,
                    from,
                    Lsn::new(SegmentId(segment.0 + 1), 0),
                    &invalid,
                    step,
                );
                return Ok(Stage::Segments(segment));
            }
        };
        if segment.is_cold() && header.epoch == self.shared.epoch && self.is_newest(segment) {
            // It may be being filled.
            return Ok(Stage::Segments(segment));
        }
        let mut scan = SegmentScan::new(file, header, FIRST_BATCH_OFFSET).map_err(error)?;
        scan.read_in_chunks_of(CHUNK_BYTES);
        let end = self.end_of(segment)?;
        Ok(Stage::Reading(Box::new(scan), end))
    }

    fn is_newest(&self, segment: SegmentId) -> bool {
        lock(&self.shared.segments).last() == Some(&segment)
    }

    /// Where the log leaves a segment, if the one it goes on in is still there.
    fn end_of(&self, segment: SegmentId) -> Result<Option<Lsn>, StorageError> {
        let later = lock(&self.shared.segments)
            .range(SegmentId(segment.0 + 1)..)
            .next()
            .copied();
        let Some(later) = later else { return Ok(None) };
        let path = segment_path(later);
        let Some(file) = self.open(&path)? else {
            return Ok(None);
        };
        let read = || -> io::Result<Option<Lsn>> {
            let Ok(header) = segment::read_header(&*file, self.shared.store, later)? else {
                return Ok(None);
            };
            let mut scan = SegmentScan::new(Arc::clone(&file), header, FIRST_BATCH_OFFSET)?;
            scan.read_in_chunks_of(FIRST_BATCH_OFFSET.into());
            let first = scan.next_batch()?;
            Ok(first.ok().and_then(|batch| opening(&batch, header.epoch)))
        };
        let end = read().map_err(io_error(self.disk(), "read a segment", &path))?;
        Ok(end.filter(|end| end.segment() == segment))
    }

    /// Verifies the next batch.
    fn read_on(
        &mut self,
        source: &dyn CheckpointSource,
        mut scan: Box<SegmentScan>,
        end: Option<Lsn>,
        step: &mut Step,
    ) -> Result<Stage, StorageError> {
        let segment = scan.header().segment;
        self.stage = Stage::Segments(segment);
        if end.is_some_and(|end| scan.place() >= end) {
            return Ok(Stage::Segments(segment));
        }
        let path = segment_path(segment);
        let error = |source| io_error(self.disk(), "read a segment", &path)(source);
        let (before, place) = (scan.read_bytes(), scan.place());
        let invalid = scan.next_batch().map_err(error)?.err();
        let goes_on = match invalid {
            None => true,
            Some(invalid) => self
                .look_at(source, &mut scan, end, place, &invalid, step)
                .map_err(error)?,
        };
        step.read_bytes += scan.read_bytes() - before;
        Ok(if goes_on {
            Stage::Reading(scan, end)
        } else {
            Stage::Segments(segment)
        })
    }

    /// No valid batch at `place`: the end of the segment, or damage. True when there is more behind it.
    fn look_at(
        &self,
        source: &dyn CheckpointSource,
        scan: &mut SegmentScan,
        end: Option<Lsn>,
        place: Lsn,
        invalid: &Invalid,
        step: &mut Step,
    ) -> io::Result<bool> {
        let segment = scan.header().segment;
        let behind = match end {
            Some(end) => end,
            None => {
                // Without the successor's word: something signed behind this place says that the log went on there, and
                // so does a message.
                let remains =
                    survey_remains(scan.file(), self.shared.store, segment, place.offset())?;
                let is_blank = remains.len_bytes == 0 && !scan.header().is_recycled;
                let last = if remains.batch_count > 0 || is_blank {
                    None
                } else {
                    self.last_live(source, place)
                };
                if remains.batch_count == 0 && last.is_none() {
                    return Ok(false);
                }
                let len_bytes = remains.len_bytes.max(last.unwrap_or(place).0 - place.0);
                Lsn(place.0 + len_bytes)
            }
        };
        let is_found = scan.skip_batch()?.is_some()
            || scan.find_next_header(behind.0 - (segment.0 << Lsn::OFFSET_BITS))?;
        let upto = if is_found { scan.place() } else { behind };
        let from = match invalid {
            Invalid::Record { offset, .. } => Lsn::new(segment, *offset),
            _ => place,
        };
        self.report(segment, from, upto, invalid, step);
        Ok(is_found)
    }

    /// The end of the last live message that lies at `place` or behind it in its segment.
    fn last_live(&self, source: &dyn CheckpointSource, place: Lsn) -> Option<Lsn> {
        let segments = BTreeSet::from([place.segment()]);
        let mut last = None;
        for queue in source.queue_ids() {
            let (mut entries, runs) = source.refs_in(queue, &segments);
            for run in runs {
                // A damaged block is found when its turn comes.
                if let Ok(Ok(block)) = self.shared.index.read(queue, &run) {
                    entries.extend(block.live_entries(&run).unwrap_or_default());
                }
            }
            let positions = entries.iter().map(|entry| entry.position);
            let behind = positions.filter(|position| {
                position.lsn.segment() == place.segment() && position.lsn >= place
            });
            let ends = behind.map(|position| Lsn(position.lsn.0 + u64::from(position.len_bytes)));
            last = last.max(ends.max());
        }
        last
    }

    fn report(
        &self,
        segment: SegmentId,
        from: Lsn,
        upto: Lsn,
        detail: &dyn std::fmt::Display,
        step: &mut Step,
    ) {
        // Freed meanwhile, and perhaps in use again: keeps (2).
        if lock(&self.shared.segments).contains(&segment) {
            step.found.push(Rot {
                path: self.disk().describe(&segment_path(segment)),
                offset: from.offset().into(),
                detail: detail.to_string(),
                range: Some((from, upto)),
                run: None,
            });
        }
    }
}

/// True when the last four bytes of a checkpoint are the CRC of all before them.
fn is_file_crc_right(file: &dyn DiskFile, read_bytes: &mut u64) -> io::Result<bool> {
    let len = file.len()?;
    let Some(covered) = len.checked_sub(4) else {
        return Ok(false);
    };
    let mut hasher = crc32fast::Hasher::new();
    let mut at = 0;
    while at < covered {
        let wanted = (covered - at).min(CHUNK_BYTES);
        let chunk = read_up_to(file, at, usize::try_from(wanted).unwrap_or(0))?;
        if chunk.len() as u64 != wanted {
            return Ok(false);
        }
        hasher.update(&chunk);
        at += wanted;
    }
    *read_bytes += len;
    let stored = read_up_to(file, covered, 4)?;
    let stored = stored.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    Ok(stored.is_some_and(|stored| is_crc_right(stored, hasher.finalize())))
}
