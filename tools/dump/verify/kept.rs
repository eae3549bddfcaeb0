//! Every batch of every segment that is kept, those before the checkpoint's begin included.

use std::collections::BTreeMap;

use stratamq::disk::Disk;
use stratamq::storage::batch::Invalid;
use stratamq::storage::format::segment_path;
use stratamq::storage::superblock::Superblock;
use stratamq::storage::types::{Lsn, SegmentId};

use super::{Outcome, RESTORE, Report};
use crate::error::DumpError;
use crate::log::{Log, Scanned, SegmentFile};
use crate::snapshot::Snapshot;
use crate::store::Store;

/// Where the valid part of each segment of the log ends.
pub(super) type Ends = BTreeMap<SegmentId, Lsn>;

/// The last batch of the segment before.
struct Previous {
    segment: SegmentId,
    epoch: u64,
    crc: Option<u32>,
}

pub(super) fn check(
    store: &Store,
    log: &Log,
    superblock: &Superblock,
    snapshot: Option<&Snapshot>,
    report: &mut Report,
) -> Result<Ends, DumpError> {
    let mut ends = Ends::new();
    let mut previous = None;
    let (mut batch_count, mut record_count) = (0u64, 0u64);
    let damage_before = report.damage_count;
    for file in log.in_order() {
        let Ok(header) = file.header else { continue };
        let scanned = file.scan(store, first_crc(file, header.epoch, previous.as_ref()), |batch| {
            batch_count += 1;
            record_count += u64::from(batch.header.record_count);
            Ok(())
        })?;
        // What is wrong from the checkpoint's begin on has been found by replay already.
        if scanned.end < superblock.begin
            && let Some(text) = damage_of(store, superblock, file, &scanned)?
        {
            let path = store.view.describe(&segment_path(file.segment));
            report.damage("segments", path, u64::from(scanned.end.offset()), format!("{text}; {RESTORE}"));
        }
        ends.insert(file.segment, scanned.end);
        previous = Some(Previous { segment: file.segment, epoch: header.epoch, crc: scanned.last_crc });
    }
    check_needed(store, log, snapshot, report);
    if report.damage_count == damage_before {
        let void_count = log.files.values().filter(|file| file.is_void).count();
        let text = format!(
            "{} kept, {batch_count} batches, {record_count} records; {void_count} void",
            log.files.len() - void_count
        );
        report.add("segments", Outcome::Ok, text);
    }
    Ok(ends)
}

/// What the first batch of a segment must name as the one before it, if that is known: nothing when an incarnation
/// begins with it.
fn first_crc(file: &SegmentFile, epoch: u64, previous: Option<&Previous>) -> Option<u32> {
    let predecessor = file.predecessor_end.map(Lsn::segment);
    match previous {
        _ if file.predecessor_end == Some(Lsn(0)) => Some(0),
        Some(previous) if predecessor == Some(previous.segment) => {
            if previous.epoch == epoch { previous.crc } else { Some(0) }
        }
        _ => None,
    }
}

fn damage_of(
    store: &Store,
    superblock: &Superblock,
    file: &SegmentFile,
    scanned: &Scanned,
) -> Result<Option<String>, DumpError> {
    let Some(invalid) = &scanned.invalid else { return Ok(None) };
    let is_first_replayed = file.segment == superblock.begin.segment();
    if let Some(end) = file.end.or(is_first_replayed.then_some(superblock.begin)) {
        return Ok(Some(format!("{invalid}, but the log of this segment goes on to {end}")));
    }
    // The segment that would say where this one ends has been freed. A tail that was torn once is legal here.
    let remains = file.remains(store, superblock, scanned.end)?;
    if *invalid != Invalid::Absent && remains.synced > scanned.end {
        return Ok(Some(format!("{invalid}, but everything before {} had been synced", remains.synced)));
    }
    Ok(None)
}

/// Segments that hold live messages must be part of the log.
fn check_needed(store: &Store, log: &Log, snapshot: Option<&Snapshot>, report: &mut Report) {
    let Some(snapshot) = snapshot else { return };
    for (segment, live) in snapshot.live() {
        let text = match log.files.get(&segment) {
            None => "the segment is missing",
            Some(file) if file.header.is_err() => "the header of the segment is not whole",
            Some(file) if file.is_void => "the segment is no part of the log",
            Some(_) => continue,
        };
        let path = store.view.describe(&segment_path(segment));
        report.damage("segments", path, 0, format!("{text}, but {} live messages lie in it; {RESTORE}", live.refs));
    }
}
