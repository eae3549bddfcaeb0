//! Which segments are part of the log, when those that should say so may be damaged.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use super::open;
use crate::disk::Disk;
use crate::storage::error::StorageError;
use crate::storage::file::io_error;
use crate::storage::format::{FORMAT_VERSION, segment_path};
use crate::storage::scan::{Remains, SegmentScan, first_signed_header, survey_remains};
use crate::storage::segment::{self, FIRST_BATCH_OFFSET, HeaderError, SegmentHeader};
use crate::storage::superblock::Superblock;
use crate::storage::survey::{Survey, opening};
use crate::storage::types::{Lsn, SegmentId};

/// A segment at or above the place where replay begins.
pub(super) struct Part {
    /// Its header; put together from a batch when it is not whole.
    pub(super) header: Option<SegmentHeader>,
    pub(super) is_header_whole: bool,
    /// What its OPEN names, if that is readable.
    pub(super) predecessor_end: Option<Lsn>,
    /// Everything behind the segment's header.
    pub(super) remains: Remains,
    /// Where its successor says that it ends.
    pub(super) end: Option<Lsn>,
    pub(super) is_void: bool,
}

/// Looks at every segment from the begin on, and finds out which are part of the log.
pub(super) fn find_parts(
    disk: &dyn Disk,
    survey: &Survey,
) -> Result<BTreeMap<SegmentId, Part>, StorageError> {
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
