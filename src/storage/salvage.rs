//! Reading what is left of a damaged store: for an owner who said that a part is better than nothing, and for the
//! dump tool's `export`.
//!
//! Recovery (`survey`) trusts the chain of batches and refuses where it is broken below the proven watermark D. Here
//! the chain may be broken:
//!
//! ```text
//!  segment  [batch][batch][ #### ][batch][batch] ..      #### does not verify: skipped up to the next header that does
//!  log      S0 -> S1 ->   ####   -> S3 -> S4             a segment whose OPEN is lost follows the one before it
//! ```
//! 1. A batch counts whole or not at all, as ever: groups stay atomic. Only a payload may be wrong in a batch that
//!    counts; its message stays in its queue, and whoever reads it is told (exactly that message is quarantined).
//! 2. A place is skipped only below D or before a later part of the log. At or above D the log ends as ever: torn.
//! 3. Bytes that are void (behind the end that a successor names, segments nobody continued) stay void.
//! 4. With a batch lost, deliveries are distrusted: whatever is left may have been delivered, so it is redelivered.
//! 5. Nothing is written here. The same directory gives the same result each time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::batch::{BatchHeader, Invalid};
use super::checkpoint::{self, Checkpoint};
use super::error::StorageError;
use super::file::{io_error, list_or_empty, read_up_to};
use super::format::{
    BLOCK_BYTES, CHECKPOINT_DIR, CHECKPOINT_EXTENSION, FORMAT_VERSION, SUPERBLOCK_FILES,
    batch_header, checkpoint_path, number_in_name, segment_path,
};
use super::scan::{Remains, SegmentScan, first_signed_header, survey_remains};
use super::segment::{self, FIRST_BATCH_OFFSET, HeaderError, SegmentHeader};
use super::superblock::Superblock;
use super::survey::{Discarded, Survey, opening};
use super::types::{Lsn, SegmentId};
use crate::disk::{Disk, DiskFile, OpenMode};

/// Damaged places that are listed one by one; more are only counted.
const LISTED_MAX: usize = 100;

/// Bytes that do not verify although they were proven durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedPlace {
    /// The file, relative to the data directory.
    pub path: PathBuf,
    /// First byte.
    pub offset: u64,
    /// Number of bytes; 0 when unknown or when the file is missing.
    pub len_bytes: u64,
    /// What is wrong.
    pub detail: String,
}

/// What was found damaged, and what is lost by it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Salvage {
    /// The first of them.
    pub places: Vec<DamagedPlace>,
    /// Number of all of them.
    pub place_count: u64,
    /// Bytes of the log that were skipped.
    pub lost_bytes: u64,
    /// Batches among them whose header is whole.
    pub lost_batch_count: u64,
    /// Records these announce: publishes, settlements, topology.
    pub lost_record_count: u64,
    /// Messages of the replayed part that stay in their queue and cannot be read.
    pub unreadable_message_count: u64,
    /// The superblock was put together from the log and the checkpoints.
    pub is_superblock_guessed: bool,
    /// The checkpoint that the superblock names could not be used: what was used in its place, 0 for none.
    pub checkpoint_replaced_by: Option<u64>,
    /// Copies of the damaged bytes; fewer than places when they could not be written.
    pub kept_in: Vec<String>,
}

impl Salvage {
    pub(crate) fn note(
        &mut self,
        path: PathBuf,
        offset: u64,
        len_bytes: u64,
        detail: impl Into<String>,
    ) {
        self.place_count += 1;
        if self.places.len() < LISTED_MAX {
            let detail = detail.into();
            self.places.push(DamagedPlace {
                path,
                offset,
                len_bytes,
                detail,
            });
        }
    }

    /// True when records may be lost, not only payloads.
    #[must_use]
    pub fn is_state_incomplete(&self) -> bool {
        self.lost_bytes > 0 || self.lost_batch_count > 0 || self.checkpoint_replaced_by.is_some()
    }
}

impl fmt::Display for Salvage {
    /// What an operator must know, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} damaged places: {} bytes of the log lost with {} batches and {} records known of, {} messages unreadable",
            self.place_count,
            self.lost_bytes,
            self.lost_batch_count,
            self.lost_record_count,
            self.unreadable_message_count
        )?;
        if self.is_superblock_guessed {
            write!(f, "; no superblock was whole, it was made again")?;
        }
        match self.checkpoint_replaced_by {
            None => {}
            Some(0) => write!(
                f,
                "; the checkpoint is lost: topology and state older than the log that is there are gone, and acked \
                 messages in it may be back"
            )?,
            Some(generation) => write!(
                f,
                "; the checkpoint is lost, generation {generation} was used"
            )?,
        }
        Ok(())
    }
}

/// Reads all that can be verified of the store that `superblock` describes, or of whichever store the files belong to
/// when that is not known.
///
/// # Errors
/// `Damaged` when not even that is possible (no file says which store it is), `NewerFormat`, and those of the disk.
pub fn salvage(disk: &dyn Disk, superblock: Option<Superblock>) -> Result<Survey, StorageError> {
    let mut salvage = Salvage::default();
    let superblock = match superblock {
        Some(superblock) => superblock,
        None => guess_superblock(disk, &mut salvage)?,
    };
    let segments = segment::list(disk)?;
    let (checkpoint, superblock) = load_checkpoint(disk, superblock, &mut salvage)?;
    let mut survey = begin(superblock, segments, checkpoint);
    if let Some(checkpoint) = &survey.checkpoint {
        let mut existing = segment::list_cold(disk)?;
        existing.extend(&survey.segments);
        for missing in super::replay::missing_segments(checkpoint, &existing) {
            let detail = "the segment holds live messages of the checkpoint but is missing: they cannot be read";
            salvage.note(segment_path(missing), 0, 0, detail);
        }
    }
    let parts = find_parts(disk, &survey)?;
    survey.synced = parts.values().fold(superblock.synced, |high, part| {
        high.max(part.remains.synced)
    });
    let mut pass = Pass {
        disk,
        survey,
        salvage,
        previous_crc: None,
    };
    pass.read_all(&parts)?;
    pass.look_behind_the_end(&parts);
    Ok(pass.finish())
}

fn begin(
    superblock: Superblock,
    segments: BTreeSet<SegmentId>,
    checkpoint: Option<Checkpoint>,
) -> Survey {
    let mut survey = Survey::begin(superblock, segments, checkpoint);
    survey.replay.adopt_unknown_queues();
    survey
}

/// Generations of the checkpoint files that exist, newest first.
fn checkpoint_generations(disk: &dyn Disk) -> Result<Vec<u64>, StorageError> {
    let names = list_or_empty(disk, Path::new(CHECKPOINT_DIR))?;
    let number = |name: &PathBuf| number_in_name(name, 16, CHECKPOINT_EXTENSION);
    let mut generations: Vec<u64> = names.iter().filter_map(number).collect();
    generations.sort_unstable_by(|a, b| b.cmp(a));
    Ok(generations)
}

/// The checkpoint that the superblock names, else the newest that is whole. A checkpoint has its name only once the
/// log was durable up to its end, so every whole one is a state that was.
fn load_checkpoint(
    disk: &dyn Disk,
    mut superblock: Superblock,
    salvage: &mut Salvage,
) -> Result<(Option<Checkpoint>, Superblock), StorageError> {
    let named = superblock.checkpoint_generation;
    if named == 0 {
        return Ok((None, superblock));
    }
    let mut candidates = checkpoint_generations(disk)?;
    candidates.retain(|generation| *generation != named);
    candidates.insert(0, named);
    for generation in candidates {
        match checkpoint::read(disk, superblock.store, generation) {
            Ok(checkpoint) => {
                if generation != named {
                    salvage.checkpoint_replaced_by = Some(generation);
                } else if !salvage.is_superblock_guessed
                    && checkpoint.header.begin != superblock.begin
                {
                    let detail = "superblock and checkpoint name different places to begin at";
                    salvage.note(PathBuf::from(SUPERBLOCK_FILES[0]), 0, 0, detail);
                }
                superblock.begin = checkpoint.header.begin;
                return Ok((Some(checkpoint), superblock));
            }
            Err(StorageError::Damaged { offset, detail, .. }) => {
                salvage.note(checkpoint_path(generation), offset, 0, detail);
            }
            Err(error) => return Err(error),
        }
    }
    salvage.checkpoint_replaced_by = Some(0);
    superblock.begin = Lsn(0);
    Ok((None, superblock))
}

/// A superblock from what segments and checkpoints say about themselves.
fn guess_superblock(disk: &dyn Disk, salvage: &mut Salvage) -> Result<Superblock, StorageError> {
    let mut newest: Option<SegmentHeader> = None;
    for segment in segment::list(disk)? {
        let path = segment_path(segment);
        let file = open(disk, &path)?;
        let bytes = read_up_to(&*file, 0, 4096).map_err(io_error(disk, "read a segment", &path))?;
        if let Some(header) = SegmentHeader::decode_of_any_store(&bytes, segment)
            && newest.is_none_or(|newest| newest.epoch <= header.epoch)
        {
            newest = Some(header);
        }
    }
    let path = Path::new(SUPERBLOCK_FILES[0]);
    let detail = "neither copy of the superblock is whole";
    let Some(newest) = newest else {
        let detail = format!("{detail}, and no segment says which store it belongs to");
        return Err(super::file::damaged(disk, path, 0, detail));
    };
    for name in SUPERBLOCK_FILES {
        salvage.note(PathBuf::from(name), 0, 0, detail);
    }
    salvage.is_superblock_guessed = true;
    let generation = checkpoint_generations(disk)?.first().copied();
    Ok(Superblock {
        store: newest.store,
        sequence: 0,
        epoch: newest.epoch,
        checkpoint_generation: generation.unwrap_or(0),
        begin: Lsn(0),
        synced: Lsn(0),
        created_at_ms: newest.created_at_ms,
    })
}

fn open(disk: &dyn Disk, path: &Path) -> Result<Arc<dyn DiskFile>, StorageError> {
    disk.open(path, OpenMode::Read)
        .map_err(io_error(disk, "open a segment", path))
}

/// A segment at or above the place where replay begins.
struct Part {
    /// Its header; put together from a batch when it is not whole.
    header: Option<SegmentHeader>,
    is_header_whole: bool,
    /// What its OPEN names, if that is readable.
    predecessor_end: Option<Lsn>,
    /// Everything behind the segment's header.
    remains: Remains,
    /// Where its successor says that it ends.
    end: Option<Lsn>,
    is_void: bool,
}

/// Looks at every segment from the begin on, and finds out which are part of the log.
fn find_parts(disk: &dyn Disk, survey: &Survey) -> Result<BTreeMap<SegmentId, Part>, StorageError> {
    let mut parts = BTreeMap::new();
    let first = survey.superblock.begin.segment();
    for segment in survey.segments.range(first..) {
        parts.insert(*segment, look(disk, &survey.superblock, *segment)?);
    }
    let mut ends: BTreeMap<SegmentId, (u64, SegmentId, Lsn)> = BTreeMap::new();
    for (segment, part) in &parts {
        if let (Some(header), Some(end)) = (part.header, part.predecessor_end) {
            let best = ends
                .entry(end.segment())
                .or_insert((header.epoch, *segment, end));
            if best.0 < header.epoch {
                *best = (header.epoch, *segment, end);
            }
        }
    }
    let mut void = BTreeSet::new();
    let mut last_epoch = None;
    let segments: Vec<SegmentId> = parts.keys().copied().collect();
    for segment in segments {
        let is_proven = parts
            .get(&segment)
            .is_some_and(|part| is_proven(part, segment, &survey.superblock, &parts));
        let Some(part) = parts.get_mut(&segment) else {
            continue;
        };
        let epoch = part.header.map(|header| header.epoch);
        part.is_void = match part.predecessor_end {
            _ if segment == first => false,
            Some(end) => {
                let best = ends.get(&end.segment()).map(|(_, best, _)| *best);
                best != Some(segment) || void.contains(&end.segment())
            }
            // Its OPEN is lost, or was never written: it counts if something says that it was durable, or if it
            // holds more of what the incarnation before it wrote.
            None => !is_proven && (part.remains.batch_count == 0 || epoch != last_epoch),
        };
        part.end = ends.get(&segment).map(|(_, _, end)| *end);
        if part.is_void {
            void.insert(segment);
        } else {
            last_epoch = epoch;
        }
    }
    Ok(parts)
}

/// True when something says that the segment's beginning had been synced: a header of its incarnation.
fn is_proven(
    part: &Part,
    segment: SegmentId,
    superblock: &Superblock,
    parts: &BTreeMap<SegmentId, Part>,
) -> bool {
    let Some(header) = part.header else {
        return false;
    };
    let of_epoch = parts
        .values()
        .filter(|other| other.header.is_some_and(|h| h.epoch == header.epoch));
    let in_log = of_epoch.map(|other| other.remains.synced).max();
    let in_superblock = (superblock.epoch == header.epoch).then_some(superblock.synced);
    in_log.max(in_superblock) > Some(Lsn::new(segment, FIRST_BATCH_OFFSET))
}

fn look(
    disk: &dyn Disk,
    superblock: &Superblock,
    segment: SegmentId,
) -> Result<Part, StorageError> {
    let path = segment_path(segment);
    let file = open(disk, &path)?;
    let error = |source: io::Error| io_error(disk, "read a segment", &path)(source);
    let whole = match segment::read_header(&*file, superblock.store, segment).map_err(error)? {
        Ok(header) => Some(header),
        Err(HeaderError::Newer(found)) => {
            return Err(StorageError::NewerFormat {
                path: disk.describe(&path),
                found,
                supported: FORMAT_VERSION,
            });
        }
        Err(HeaderError::NotWhole | HeaderError::Foreign) => None,
    };
    let header = match whole {
        Some(header) => Some(header),
        None => first_signed_header(Arc::clone(&file), superblock.store, segment)
            .map_err(error)?
            .map(|batch| SegmentHeader {
                store: superblock.store,
                segment,
                epoch: batch.epoch,
                created_at_ms: 0,
                // Unknown; so nothing is made of bytes that are not signed.
                is_recycled: true,
            }),
    };
    let remains = survey_remains(
        Arc::clone(&file),
        superblock.store,
        segment,
        FIRST_BATCH_OFFSET,
    )
    .map_err(error)?;
    let mut part = Part {
        header,
        is_header_whole: whole.is_some(),
        predecessor_end: None,
        remains,
        end: None,
        is_void: false,
    };
    if let Some(header) = header {
        let mut scan = SegmentScan::new(file, header, FIRST_BATCH_OFFSET).map_err(error)?;
        if let Ok(batch) = scan.next_batch().map_err(error)? {
            part.predecessor_end = opening(&batch, header.epoch);
        }
    }
    Ok(part)
}

struct Pass<'a> {
    disk: &'a dyn Disk,
    survey: Survey,
    salvage: Salvage,
    /// Header CRC of the batch before; `None` when it is not known.
    previous_crc: Option<u32>,
}

impl Pass<'_> {
    fn read_all(&mut self, parts: &BTreeMap<SegmentId, Part>) -> Result<(), StorageError> {
        let begin = self.survey.superblock.begin;
        let first = begin.segment();
        if first != SegmentId(0) && !parts.contains_key(&first) {
            self.lose_file(first, "the segment in which replay begins is missing");
        }
        let living: Vec<(&SegmentId, &Part)> =
            parts.iter().filter(|(_, part)| !part.is_void).collect();
        for (index, (segment, part)) in living.iter().enumerate() {
            if let Some(named) = part.predecessor_end.map(Lsn::segment)
                && named > first
                && !parts.contains_key(&named)
            {
                self.lose_file(named, "the segment is missing");
            }
            let from = if **segment == first {
                begin.offset().max(FIRST_BATCH_OFFSET)
            } else {
                FIRST_BATCH_OFFSET
            };
            let is_last = index + 1 == living.len();
            self.read_part(**segment, part, from, is_last)?;
        }
        if self.survey.end < self.survey.synced {
            let (end, synced) = (self.survey.end, self.survey.synced);
            if self.survey.segments.contains(&synced.segment()) {
                let from = end.max(Lsn::new(synced.segment(), FIRST_BATCH_OFFSET));
                let (path, len) = (
                    segment_path(synced.segment()),
                    synced.0.saturating_sub(from.0),
                );
                let detail = "nothing in the segment verifies";
                self.lose(&path, from.offset().into(), len, detail);
            } else {
                self.lose_file(synced.segment(), "the segment is missing");
            }
            // Whatever comes next must lie behind what was there.
            self.survey.end = self.survey.synced;
        }
        Ok(())
    }

    fn lose_file(&mut self, segment: SegmentId, detail: &str) {
        // How much was in it is not known; that something was, is.
        self.salvage.lost_bytes += 1;
        self.salvage.note(segment_path(segment), 0, 0, detail);
    }

    /// Replays a segment, past everything in it that does not verify.
    fn read_part(
        &mut self,
        segment: SegmentId,
        part: &Part,
        from: u32,
        is_last: bool,
    ) -> Result<(), StorageError> {
        let path = segment_path(segment);
        if !part.is_header_whole {
            let detail = "the header of the segment is not whole";
            self.salvage.note(path.clone(), 0, BLOCK_BYTES, detail);
        }
        let limit = self.limit(segment, part, from, is_last);
        let Some(header) = part.header else {
            let len = u64::from(limit.offset().saturating_sub(from));
            self.lose(&path, from.into(), len, "nothing in the segment verifies");
            self.survey.end = limit.max(self.survey.end);
            return Ok(());
        };
        if self
            .survey
            .chain
            .last()
            .is_none_or(|last| last.epoch != header.epoch)
        {
            self.previous_crc = None;
        }
        self.survey.chain.push(header);
        self.survey.end = Lsn::new(segment, from);
        let file = open(self.disk, &path)?;
        let scan = SegmentScan::new(file, header, from);
        let mut scan = scan.map_err(io_error(self.disk, "read a segment", &path))?;
        while part.end.is_none_or(|end| self.survey.end < end) {
            let is_proven = self.survey.end < limit;
            let Some(invalid) = self.replay_batch(&mut scan, is_proven, &path)? else {
                continue;
            };
            if !is_proven {
                break;
            }
            self.skip(&mut scan, limit, &path, &invalid)?;
        }
        self.survey.read_bytes += scan.read_bytes();
        Ok(())
    }

    /// Below this, what is in the segment was durable.
    fn limit(&self, segment: SegmentId, part: &Part, from: u32, is_last: bool) -> Lsn {
        let place = |offset: u64| Lsn((segment.0 << Lsn::OFFSET_BITS) + offset);
        match part.end {
            Some(end) => end,
            // Its successor exists and cannot say where this one ends: it was synced to its end.
            None if !is_last => place(u64::from(FIRST_BATCH_OFFSET) + part.remains.len_bytes),
            None if self.survey.synced.segment() > segment => {
                place(u64::from(FIRST_BATCH_OFFSET) + part.remains.len_bytes)
            }
            None => self.survey.synced,
        }
        .max(place(from.into()))
    }

    /// Replays the batch at the scan's place; the reason when there is none.
    fn replay_batch(
        &mut self,
        scan: &mut SegmentScan,
        is_proven: bool,
        path: &Path,
    ) -> Result<Option<Invalid>, StorageError> {
        let error = |source: io::Error| io_error(self.disk, "read a segment", path)(source);
        let place = scan.place();
        match scan.next_batch().map_err(error)? {
            Ok(batch) => {
                self.survey.replay.apply_batch(&batch);
                self.survey.end = batch.header.end();
                let header = batch.header;
                self.check_chain(&header, path);
                return Ok(None);
            }
            Err(invalid) if invalid.is_newer() => {
                return Err(StorageError::NewerFormat {
                    path: self.disk.describe(path),
                    found: FORMAT_VERSION + 1,
                    supported: FORMAT_VERSION,
                });
            }
            Err(invalid) if !is_proven => return Ok(Some(invalid)),
            Err(invalid) => match scan.next_batch_without_payloads().map_err(error)? {
                Err(_) => return Ok(Some(invalid)),
                Ok((batch, unreadable_count)) => {
                    self.survey.replay.apply_batch(&batch);
                    self.survey.end = batch.header.end();
                    let len = u64::from(batch.header.len_bytes);
                    let header = batch.header;
                    self.check_chain(&header, path);
                    self.salvage.unreadable_message_count += unreadable_count;
                    self.salvage.note(
                        path.to_owned(),
                        place.offset().into(),
                        len,
                        format!("{invalid}; only that message cannot be read"),
                    );
                }
            },
        }
        Ok(None)
    }

    /// A batch that is whole but does not continue the one before it: something between them was exchanged.
    fn check_chain(&mut self, header: &BatchHeader, path: &Path) {
        let expected = self.previous_crc.replace(header.crc);
        let found = header.previous_crc;
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            let detail = Invalid::Chain { expected, found }.to_string();
            self.salvage.lost_batch_count += 1;
            let (offset, len) = (header.lsn.offset(), batch_header::SIZE as u64);
            self.salvage
                .note(path.to_owned(), offset.into(), len, detail);
        }
    }

    /// Goes on to the next place below `limit` where a batch may begin.
    fn skip(
        &mut self,
        scan: &mut SegmentScan,
        limit: Lsn,
        path: &Path,
        invalid: &Invalid,
    ) -> Result<(), StorageError> {
        let error = |source: io::Error| io_error(self.disk, "read a segment", path)(source);
        let from = scan.place();
        self.previous_crc = None;
        if let Some(header) = scan.skip_batch().map_err(error)? {
            self.salvage.lost_batch_count += 1;
            self.salvage.lost_record_count += u64::from(header.record_count);
            self.survey.end = header.end();
        } else {
            let limit_offset = limit.0 - (from.segment().0 << Lsn::OFFSET_BITS);
            let is_found = scan.find_next_header(limit_offset).map_err(error)?;
            self.survey.end = if is_found { scan.place() } else { limit };
            if !is_found {
                scan.go_to(limit.offset());
            }
        }
        let len = self.survey.end.0 - from.0;
        self.lose(path, from.offset().into(), len, invalid.to_string());
        Ok(())
    }

    fn lose(&mut self, path: &Path, offset: u64, len_bytes: u64, detail: impl Into<String>) {
        if len_bytes > 0 {
            self.salvage.lost_bytes += len_bytes;
            self.salvage
                .note(path.to_owned(), offset, len_bytes, detail);
        }
    }

    /// What lies behind the end of the log, and segments that are void.
    fn look_behind_the_end(&mut self, parts: &BTreeMap<SegmentId, Part>) {
        let end = self.survey.end;
        for (segment, part) in parts.range(end.segment()..) {
            let from = if *segment == end.segment() {
                end.offset().max(FIRST_BATCH_OFFSET)
            } else {
                FIRST_BATCH_OFFSET
            };
            let before = u64::from(from - FIRST_BATCH_OFFSET);
            let mut remains = part.remains.clone();
            remains.len_bytes = remains.len_bytes.saturating_sub(before);
            if remains.len_bytes > 0 {
                self.survey.discarded.push(Discarded {
                    segment: *segment,
                    from,
                    remains,
                });
            }
        }
    }

    fn finish(self) -> Survey {
        let Self {
            mut survey,
            salvage,
            ..
        } = self;
        if salvage.is_state_incomplete() {
            survey.replay.distrust_deliveries();
        }
        survey.salvage = (salvage.place_count > 0).then_some(salvage);
        survey
    }
}
