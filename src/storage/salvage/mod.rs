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
//! 6. Without the newest checkpoint nothing says which messages of the cold segments are still there. All of them are
//!    taken for it that no later record settles, so one may come back that was settled, and none is lost.

mod cold;
mod found;
mod parts;
mod start;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

pub use found::{DamagedPlace, Salvage};
use parts::{Part, find_parts};
use start::{guess_superblock, load_checkpoint};

use super::batch::{BatchHeader, Invalid};
use super::checkpoint::Checkpoint;
use super::error::StorageError;
use super::file::io_error;
use super::format::{BLOCK_BYTES, FORMAT_VERSION, batch_header, segment_path};
use super::scan::SegmentScan;
use super::segment::{self, FIRST_BATCH_OFFSET};
use super::superblock::Superblock;
use super::survey::{Discarded, Survey};
use super::types::{Lsn, SegmentId};
use crate::disk::{Disk, DiskFile, OpenMode};

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
    if salvage.checkpoint_replaced_by.is_some() {
        cold::read_all(disk, &mut survey, &mut salvage)?;
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

fn open(disk: &dyn Disk, path: &Path) -> Result<Arc<dyn DiskFile>, StorageError> {
    disk.open(path, OpenMode::Read)
        .map_err(io_error(disk, "open a segment", path))
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
