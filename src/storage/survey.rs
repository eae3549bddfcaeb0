//! Reading a whole data directory without changing it: what recovery knows before it writes anything, and what
//! the dump tool shows.
//!
//! ```text
//!  superblock --> checkpoint --> [S0 from begin] -> [S1] -> [S2 ...... X
//!                                 the successor of S is the segment of the highest epoch whose OPEN names S;
//!                                 bytes of S behind the end that OPEN names are void
//! ```
//! At X, the first place without a valid batch in a segment without a successor, the log ends. Let D be the highest
//! watermark in any signed header: superblock, log, and everything found behind X, in later files too.
//!
//! - `X >= D`: nothing behind X was ever proven durable, so nothing was promised about it: a torn tail.
//! - `X <  D`: what was proven durable does not verify: damage. Also any invalid place before the end that a
//!   successor names, because a segment is synced before its successor's first batch is written.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::batch::Invalid;
use super::checkpoint::{self, Checkpoint};
use super::error::StorageError;
use super::file::{damaged, io_error};
use super::format::{FORMAT_VERSION, SUPERBLOCK_FILES, segment_path};
use super::record::Record;
use super::replay::{Replay, missing_segments};
use super::salvage::Salvage;
use super::scan::{Remains, SegmentScan, survey_remains};
use super::segment::{self, HeaderError, SegmentHeader};
use super::superblock::Superblock;
use super::types::{Lsn, SegmentId};
use crate::disk::{Disk, DiskFile, OpenMode};

/// The virtual predecessor of the first segment of a store.
const ROOT: SegmentId = SegmentId(0);

/// What lies behind the end of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discarded {
    /// The segment.
    pub segment: SegmentId,
    /// Where the void part begins in it.
    pub from: u32,
    /// What is there.
    pub remains: Remains,
}

/// A whole data directory, read and verified from the newest checkpoint on.
#[derive(Debug)]
pub struct Survey {
    /// The superblock that counts.
    pub superblock: Superblock,
    /// The newest checkpoint, without its queues (they went into `replay`).
    pub checkpoint: Option<Checkpoint>,
    /// Segment files that exist.
    pub segments: BTreeSet<SegmentId>,
    /// The segments of the log from the place where replay begins, in order.
    pub chain: Vec<SegmentHeader>,
    /// Where the log ends; `Lsn(0)` when nothing was ever written.
    pub end: Lsn,
    /// Highest watermark found.
    pub synced: Lsn,
    /// Void parts that are not blank, behind the end.
    pub discarded: Vec<Discarded>,
    /// State at the end.
    pub replay: Replay,
    /// Bytes read.
    pub read_bytes: u64,
    /// What is missing, if the store is damaged and was read all the same.
    pub salvage: Option<Salvage>,
}

/// A segment that may follow another: its first batch is valid and begins with OPEN.
#[derive(Clone, Copy, Debug)]
struct Successor {
    header: SegmentHeader,
    predecessor_end: Lsn,
}

impl Survey {
    /// Of a store of which the checkpoint is read and the log is not.
    pub(super) fn begin(
        superblock: Superblock,
        segments: BTreeSet<SegmentId>,
        mut checkpoint: Option<Checkpoint>,
    ) -> Self {
        let replay = match &mut checkpoint {
            Some(checkpoint) => {
                Replay::from_checkpoint(std::mem::take(&mut checkpoint.queues), checkpoint.meta_lsn)
            }
            None => Replay::default(),
        };
        let read_bytes = checkpoint
            .as_ref()
            .map_or(0, |checkpoint| checkpoint.len_bytes);
        Self {
            superblock,
            checkpoint,
            segments,
            chain: Vec::new(),
            end: superblock.begin,
            synced: superblock.synced,
            discarded: Vec::new(),
            replay,
            read_bytes,
            salvage: None,
        }
    }
}

/// Reads the directory that `superblock` describes.
///
/// # Errors
/// `Damaged` and `NewerFormat` as the module says; those of the disk.
pub fn survey(disk: &dyn Disk, superblock: Superblock) -> Result<Survey, StorageError> {
    let segments = segment::list(disk)?;
    let checkpoint = load_checkpoint(disk, &superblock, &segments)?;
    let survey = Survey::begin(superblock, segments, checkpoint);
    let previous_crc = (survey.end.segment() == ROOT).then_some(0);
    let mut pass = Pass {
        disk,
        survey,
        successors: BTreeMap::new(),
        previous_crc,
    };
    pass.find_successors()?;
    pass.walk()?;
    pass.look_behind_the_end()?;
    if pass.survey.end < pass.survey.synced {
        // Of a running broker, the log may have grown meanwhile: what was proven durable by the first look must
        // be there in a second one. At recovery nothing changes, and the second look finds what the first did.
        let proven = pass.survey.synced;
        pass.survey.segments = segment::list(disk)?;
        pass.find_successors()?;
        let ended = pass.walk()?;
        if pass.survey.end < proven {
            return Err(pass.damage(&ended, proven));
        }
        pass.look_behind_the_end()?;
        pass.survey.synced = pass.survey.synced.min(pass.survey.end);
    }
    Ok(pass.survey)
}

fn load_checkpoint(
    disk: &dyn Disk,
    superblock: &Superblock,
    segments: &BTreeSet<SegmentId>,
) -> Result<Option<Checkpoint>, StorageError> {
    if superblock.checkpoint_generation == 0 {
        return Ok(None);
    }
    let checkpoint = checkpoint::read(disk, superblock.store, superblock.checkpoint_generation)?;
    if checkpoint.header.begin != superblock.begin {
        let detail = "superblock and checkpoint name different places to begin at";
        return Err(damaged(disk, Path::new(SUPERBLOCK_FILES[0]), 0, detail));
    }
    let mut existing = segment::list_cold(disk)?;
    existing.extend(segments);
    if let Some(missing) = missing_segments(&checkpoint, &existing).first() {
        let detail = "the segment holds live messages of the newest checkpoint but is missing";
        return Err(damaged(disk, &segment_path(*missing), 0, detail));
    }
    Ok(Some(checkpoint))
}

struct Pass<'a> {
    disk: &'a dyn Disk,
    survey: Survey,
    /// The best successor of each segment.
    successors: BTreeMap<SegmentId, Successor>,
    /// Header CRC of the last batch read; `None` when nothing was read of what precedes.
    previous_crc: Option<u32>,
}

impl Pass<'_> {
    fn open(&self, segment: SegmentId) -> Result<Arc<dyn DiskFile>, StorageError> {
        let path = segment_path(segment);
        self.disk
            .open(&path, OpenMode::Read)
            .map_err(io_error(self.disk, "open a segment", &path))
    }

    fn reading<T>(&self, segment: SegmentId, read: io::Result<T>) -> Result<T, StorageError> {
        read.map_err(io_error(
            self.disk,
            "read a segment",
            &segment_path(segment),
        ))
    }

    fn newer(&self, segment: SegmentId, found: u32) -> StorageError {
        let path = self.disk.describe(&segment_path(segment));
        StorageError::NewerFormat {
            path,
            found,
            supported: FORMAT_VERSION,
        }
    }

    /// The header of a segment; `None` when it is not whole or not ours.
    fn header(
        &self,
        file: &dyn DiskFile,
        segment: SegmentId,
    ) -> Result<Option<SegmentHeader>, StorageError> {
        let header = segment::read_header(file, self.survey.superblock.store, segment);
        match self.reading(segment, header)? {
            Ok(header) => Ok(Some(header)),
            Err(HeaderError::Newer(found)) => Err(self.newer(segment, found)),
            Err(HeaderError::NotWhole | HeaderError::Foreign) => Ok(None),
        }
    }

    /// Reads the first batch of every segment behind the one where the walk stands.
    fn find_successors(&mut self) -> Result<(), StorageError> {
        let after = self.survey.end.segment();
        let later: Vec<SegmentId> = self
            .survey
            .segments
            .iter()
            .copied()
            .filter(|s| *s > after)
            .collect();
        for segment in later {
            let file = self.open(segment)?;
            let Some(header) = self.header(&*file, segment)? else {
                continue;
            };
            let scan = SegmentScan::new(file, header, segment::FIRST_BATCH_OFFSET);
            let mut scan = self.reading(segment, scan)?;
            let first = match scan.next_batch() {
                Ok(Ok(batch)) => opening(&batch, header.epoch),
                Ok(Err(invalid)) if invalid.is_newer() => {
                    return Err(self.newer(segment, FORMAT_VERSION + 1));
                }
                Ok(Err(_)) => None,
                Err(error) => return self.reading(segment, Err(error)),
            };
            self.survey.read_bytes += scan.read_bytes();
            let Some(predecessor_end) = first else {
                continue;
            };
            let successor = Successor {
                header,
                predecessor_end,
            };
            let best = self
                .successors
                .entry(predecessor_end.segment())
                .or_insert(successor);
            if best.header.epoch < header.epoch {
                *best = successor;
            }
        }
        Ok(())
    }

    /// Replays along the chain; gives the reason why there is no further batch at `survey.end`.
    fn walk(&mut self) -> Result<Invalid, StorageError> {
        loop {
            let segment = self.survey.end.segment();
            if segment != ROOT
                && let Some(invalid) = self.replay_segment(segment)?
            {
                return Ok(invalid);
            }
            let Some(successor) = self.successors.get(&segment) else {
                return Ok(Invalid::Absent);
            };
            // Numbers rise along the chain, so this ends.
            assert!(
                successor.header.segment > segment,
                "a segment opens behind its predecessor"
            );
            self.survey.end = successor.header.first_batch();
        }
    }

    /// Replays one segment from `survey.end` on. Gives the reason for the end, if that is the end of the log.
    fn replay_segment(&mut self, segment: SegmentId) -> Result<Option<Invalid>, StorageError> {
        let begin = self.survey.end;
        let path = segment_path(segment);
        if !self.survey.segments.contains(&segment) {
            return Err(damaged(
                self.disk,
                &path,
                0,
                "the segment in which replay begins is missing",
            ));
        }
        let file = self.open(segment)?;
        let Some(header) = self.header(&*file, segment)? else {
            return Err(damaged(
                self.disk,
                &path,
                0,
                "the header of a segment of the log is not whole",
            ));
        };
        self.enter(header);
        let end = self
            .successors
            .get(&segment)
            .map(|successor| successor.predecessor_end);
        let mut scan = self.reading(segment, SegmentScan::new(file, header, begin.offset()))?;
        if scan.file_len() < u64::from(begin.offset()) {
            // What precedes `begin` was synced long ago; a file that ends before it lost proven data.
            let detail = "the segment ends before the place where replay begins";
            return Err(damaged(self.disk, &path, scan.file_len(), detail));
        }
        let invalid = loop {
            if Some(self.survey.end) == end {
                break None;
            }
            let step = scan.next_batch();
            match self
                .reading(segment, step)?
                .and_then(|batch| self.check_chain(&batch).map(|()| batch))
            {
                Ok(batch) => {
                    self.previous_crc = Some(batch.header.crc);
                    self.survey.synced = self.survey.synced.max(batch.header.synced);
                    self.survey.replay.apply_batch(&batch);
                    self.survey.end = batch.header.end();
                }
                Err(invalid) => break Some(invalid),
            }
        };
        self.survey.read_bytes += scan.read_bytes();
        match (invalid, end) {
            (Some(invalid), _) if invalid.is_newer() => {
                Err(self.newer(segment, FORMAT_VERSION + 1))
            }
            (Some(invalid), Some(end)) => Err(self.damage(&invalid, end)),
            (invalid, _) => Ok(invalid),
        }
    }

    /// Notes a segment of the chain. The first batch of an incarnation follows nothing it could name.
    fn enter(&mut self, header: SegmentHeader) {
        let last = self.survey.chain.last();
        if last.is_none_or(|last| last.segment != header.segment) {
            if last.is_some_and(|last| last.epoch != header.epoch) {
                self.previous_crc = Some(0);
            }
            self.survey.chain.push(header);
        }
    }

    fn check_chain(&self, batch: &super::batch::Batch<'_>) -> Result<(), Invalid> {
        let found = batch.header.previous_crc;
        match self.previous_crc {
            Some(expected) if expected != found => Err(Invalid::Chain { expected, found }),
            _ => Ok(()),
        }
    }

    /// The log is invalid at `survey.end`, although everything below `proven` was durable.
    fn damage(&self, invalid: &Invalid, proven: Lsn) -> StorageError {
        // With nothing left in its own segment, the beginning of the next one is what is missing.
        let at = match self.survey.discarded.first() {
            Some(first) if *invalid == Invalid::Absent => {
                let file = self.open(first.segment).ok();
                let header = file.and_then(|file| self.header(&*file, first.segment).ok()?);
                Lsn::new(first.segment, header.map_or(0, |_| first.from))
            }
            _ => self.survey.end,
        };
        let path = segment_path(at.segment());
        let detail = format!("{invalid}, but everything before {proven} had been synced");
        damaged(self.disk, &path, u64::from(at.offset()), detail)
    }

    /// Finds what lies behind the end of the log, and the watermarks in it.
    fn look_behind_the_end(&mut self) -> Result<(), StorageError> {
        self.survey.discarded.clear();
        let end = self.survey.end;
        let tail = end.segment();
        let later: Vec<SegmentId> = self
            .survey
            .segments
            .iter()
            .copied()
            .filter(|s| *s >= tail)
            .collect();
        for segment in later {
            let from = if segment == tail {
                end.offset()
            } else {
                segment::FIRST_BATCH_OFFSET
            };
            let file = self.open(segment)?;
            let remains = survey_remains(file, self.survey.superblock.store, segment, from);
            let remains = self.reading(segment, remains)?;
            self.survey.read_bytes += remains.read_bytes;
            self.survey.synced = self.survey.synced.max(remains.synced);
            if remains.len_bytes > 0 {
                self.survey.discarded.push(Discarded {
                    segment,
                    from,
                    remains,
                });
            }
        }
        Ok(())
    }
}

/// The end of the predecessor, if the first record of a segment's first batch is a fitting OPEN. Of several segments
/// that name the same predecessor, the one of the highest epoch is its successor.
#[must_use]
pub fn opening(batch: &super::batch::Batch<'_>, segment_epoch: u64) -> Option<Lsn> {
    match batch.records().next() {
        Some((
            position,
            Record::Open {
                predecessor_end,
                epoch,
            },
        )) => {
            let is_fitting =
                epoch == segment_epoch && predecessor_end.segment() < position.lsn.segment();
            is_fitting.then_some(predecessor_end)
        }
        _ => None,
    }
}
