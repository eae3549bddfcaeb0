//! The segments that are there, the order they have, and what in them is void.
//!
//! `storage::survey` reads the log from the checkpoint on, which is all that recovery needs. Segments before that are
//! kept for the live messages in them; here they are read too, by the same rule: the successor of S is the segment of
//! the highest epoch whose OPEN names S, and what is behind the end that OPEN gives is void.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use stratamq::disk::{Disk, OpenMode};
use stratamq::storage::StorageError;
use stratamq::storage::batch::{Batch, BatchHeader, Invalid};
use stratamq::storage::format::{FORMAT_VERSION, segment_path};
use stratamq::storage::scan::{Remains, SegmentScan, survey_remains};
use stratamq::storage::segment::{self, FIRST_BATCH_OFFSET, HeaderError, SegmentHeader};
use stratamq::storage::superblock::Superblock;
use stratamq::storage::survey::opening;
use stratamq::storage::types::{Lsn, SegmentId};

use crate::error::DumpError;
use crate::store::Store;

/// One segment file.
pub(crate) struct SegmentFile {
    /// Its number.
    pub(crate) segment: SegmentId,
    /// Its header, or why there is none.
    pub(crate) header: Result<SegmentHeader, HeaderError>,
    /// Size of the file.
    pub(crate) len_bytes: u64,
    /// End of the log before it, if its first record is a fitting OPEN.
    pub(crate) predecessor_end: Option<Lsn>,
    /// Nothing in it is part of the log.
    pub(crate) is_void: bool,
    /// Where its part of the log ends, if its successor is there to say so.
    pub(crate) end: Option<Lsn>,
    /// The log is known to reach at least to here.
    proven: Option<Lsn>,
    /// Holds messages that were moved out of the log.
    pub(crate) is_cold: bool,
    /// Its incarnation went on to another segment, so it was synced to its end and cannot have a torn tail.
    is_sealed: bool,
}

/// All segment files, in order, cold ones last.
pub(crate) struct Log {
    /// The files.
    pub(crate) files: BTreeMap<SegmentId, SegmentFile>,
}

/// How the reading of a segment ended.
pub(crate) struct Scanned {
    /// Behind the last batch of the log.
    pub(crate) end: Lsn,
    /// Batches that do not verify although the log is known to go on behind them.
    pub(crate) damage: Vec<Damage>,
    /// CRC of the last batch's header.
    pub(crate) last_crc: Option<u32>,
}

/// A batch that does not verify.
pub(crate) struct Damage {
    /// Its place.
    pub(crate) place: Lsn,
    /// What is wrong with it.
    pub(crate) invalid: Invalid,
    /// The log is known to reach at least to here.
    pub(crate) proven: Lsn,
}

impl Log {
    /// Lists the segments and reads the beginning of each.
    pub(crate) fn read(store: &Store, superblock: &Superblock) -> Result<Self, DumpError> {
        let mut files = BTreeMap::new();
        for segment in segment::list(&store.view)? {
            files.insert(segment, SegmentFile::read(store, superblock, segment)?);
        }
        let mut log = Self { files };
        log.find_order(superblock.begin.segment());
        for segment in segment::list_cold(&store.view)? {
            let mut file = SegmentFile::read(store, superblock, segment)?;
            // No part of the chain: what is valid in it counts.
            (file.is_cold, file.is_void) = (true, false);
            log.files.insert(segment, file);
        }
        let mut later_epochs = BTreeSet::new();
        for file in log.files.values_mut().rev() {
            if let (Ok(header), false) = (file.header, file.is_void || file.is_cold) {
                file.is_sealed = !later_epochs.insert(header.epoch);
            }
            let begins_here = superblock.begin.segment() == file.segment;
            file.proven = file.end.max(begins_here.then_some(superblock.begin));
        }
        Ok(log)
    }

    /// Decides which segment follows which. Numbers rise along the log, so one pass upwards does.
    ///
    /// One whose first batch is damaged does not say what it follows. It is part of the log all the same when the
    /// checkpoint begins in it, or when another segment follows it: then it was synced, and is no remainder of a crash.
    fn find_order(&mut self, begin: SegmentId) {
        let mut successors: BTreeMap<SegmentId, (u64, SegmentId, Lsn)> = BTreeMap::new();
        for file in self.files.values() {
            let (Ok(header), Some(end)) = (file.header, file.predecessor_end) else {
                continue;
            };
            let best = successors
                .entry(end.segment())
                .or_insert((header.epoch, file.segment, end));
            if best.0 < header.epoch {
                *best = (header.epoch, file.segment, end);
            }
        }
        let mut void = Vec::new();
        for file in self.files.values_mut() {
            let predecessor = file.predecessor_end.map(Lsn::segment);
            let is_known = file.segment == begin || successors.contains_key(&file.segment);
            let is_successor = match predecessor {
                None => file.header.is_ok() && is_known,
                Some(predecessor) => successors
                    .get(&predecessor)
                    .is_some_and(|(_, best, _)| *best == file.segment),
            };
            file.is_void =
                !is_successor || predecessor.is_some_and(|predecessor| void.contains(&predecessor));
            if file.is_void {
                void.push(file.segment);
            } else {
                file.end = successors.get(&file.segment).map(|(_, _, end)| *end);
            }
        }
    }

    /// Notes that there are messages in a segment up to here.
    pub(crate) fn prove(&mut self, end: Lsn) {
        if let Some(file) = self.files.get_mut(&end.segment()) {
            file.proven = file.proven.max(Some(end));
        }
    }

    /// Segments that are part of the log, in its order.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = &SegmentFile> {
        self.files.values().filter(|file| !file.is_void)
    }
}

impl SegmentFile {
    fn read(store: &Store, superblock: &Superblock, segment: SegmentId) -> Result<Self, DumpError> {
        let path = segment_path(segment);
        let error = |source| io_error(store, "read a segment", &path, source);
        let file = store.view.open(&path, OpenMode::Read).map_err(error)?;
        let header = segment::read_header(&*file, superblock.store, segment).map_err(error)?;
        if let Err(HeaderError::Newer(found)) = header {
            return Err(newer(store, &path, found));
        }
        let mut read = Self {
            segment,
            header,
            len_bytes: file.len().map_err(error)?,
            predecessor_end: None,
            is_void: true,
            end: None,
            proven: None,
            is_cold: false,
            is_sealed: false,
        };
        let Ok(header) = header else { return Ok(read) };
        let mut scan = SegmentScan::new(file, header, FIRST_BATCH_OFFSET).map_err(error)?;
        match scan.next_batch().map_err(error)? {
            Ok(batch) => read.predecessor_end = opening(&batch, header.epoch),
            Err(invalid) if invalid.is_newer() => {
                return Err(newer(store, &path, FORMAT_VERSION + 1));
            }
            Err(_) => {}
        }
        Ok(read)
    }

    /// First place of a batch.
    pub(crate) fn first_batch(&self) -> Lsn {
        Lsn::new(self.segment, FIRST_BATCH_OFFSET)
    }

    /// Shows every valid batch of the log in this segment to `visit`. Each continues the one before it; the first
    /// one continues `previous_crc`, if that is known.
    pub(crate) fn scan(
        &self,
        store: &Store,
        previous_crc: Option<u32>,
        mut visit: impl FnMut(&Batch<'_>) -> Result<(), DumpError>,
    ) -> Result<Scanned, DumpError> {
        let mut scanned = Scanned {
            end: self.first_batch(),
            damage: Vec::new(),
            last_crc: previous_crc,
        };
        let Ok(header) = self.header else {
            return Ok(scanned);
        };
        let path = segment_path(self.segment);
        let error = |source| io_error(store, "read a segment", &path, source);
        let file = store.view.open(&path, OpenMode::Read).map_err(error)?;
        let mut scan =
            SegmentScan::new(Arc::clone(&file), header, FIRST_BATCH_OFFSET).map_err(error)?;
        let mut proven = self.proven;
        while self.end.is_none_or(|end| scanned.end < end) {
            let place = scanned.end;
            let (batch, invalid) = match scan.next_batch().map_err(error)? {
                Ok(batch) => (Some(batch), check_chain(&batch.header, scanned.last_crc)),
                Err(invalid) => (None, Some(invalid)),
            };
            if let Some(invalid) = invalid {
                if proven.is_none_or(|proven| proven <= place) {
                    let file = Arc::clone(&file);
                    let remains = survey_remains(file, header.store, self.segment, place.offset());
                    proven = proven.max(Some(self.proven_by(place, &remains.map_err(error)?)));
                }
                let Some(proven) = proven.filter(|proven| place < *proven) else {
                    break;
                };
                scanned.damage.push(Damage {
                    place,
                    invalid,
                    proven,
                });
            }
            let header = match batch {
                Some(batch) => {
                    visit(&batch)?;
                    Some(batch.header)
                }
                None => scan.skip_batch().map_err(error)?,
            };
            let Some(header) = header else {
                // Where the next batch begins is lost as well.
                scanned.end = scanned.end.max(proven.unwrap_or(place));
                scanned.last_crc = None;
                break;
            };
            scanned.last_crc = Some(header.crc);
            scanned.end = header.end();
        }
        Ok(scanned)
    }

    /// How far the log is known to reach, by what lies behind an invalid place: something there may say that all
    /// before it had been synced, and in a sealed segment everything had.
    fn proven_by(&self, place: Lsn, remains: &Remains) -> Lsn {
        let all = Lsn(place.0 + if self.is_sealed { remains.len_bytes } else { 0 });
        remains.synced.max(all)
    }
}

fn check_chain(header: &BatchHeader, expected: Option<u32>) -> Option<Invalid> {
    let found = header.previous_crc;
    let expected = expected.filter(|expected| *expected != found)?;
    Some(Invalid::Chain { expected, found })
}

/// The system's refusal, as the engine would say it.
pub(crate) fn io_error(
    store: &Store,
    operation: &'static str,
    path: &Path,
    source: std::io::Error,
) -> DumpError {
    StorageError::Io {
        operation,
        path: store.view.describe(path),
        source,
    }
    .into()
}

fn newer(store: &Store, path: &Path, found: u32) -> DumpError {
    StorageError::NewerFormat {
        path: store.view.describe(path),
        found,
        supported: FORMAT_VERSION,
    }
    .into()
}
