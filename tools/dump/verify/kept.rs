//! Every batch of every segment that is kept, those before the checkpoint's begin included.

use std::collections::BTreeMap;

use stratamq::disk::Disk;
use stratamq::storage::format::segment_path;
use stratamq::storage::pool;
use stratamq::storage::superblock::Superblock;
use stratamq::storage::types::{Lsn, SegmentId};

use super::{Outcome, RESTORE, Report};
use crate::error::DumpError;
use crate::log::{Damage, Log, SegmentFile};
use crate::snapshot::{Live, Snapshot};
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
    log: &mut Log,
    superblock: &Superblock,
    snapshot: Option<&Snapshot>,
    report: &mut Report,
) -> Result<Ends, DumpError> {
    let mut ends = Ends::new();
    let mut previous = None;
    let (mut batch_count, mut record_count) = (0u64, 0u64);
    let damage_before = report.damage_count;
    let live = match snapshot.map(|snapshot| snapshot.live(store)) {
        Some(Ok(live)) => live,
        Some(Err(error)) => {
            report.add_error("index", error)?;
            BTreeMap::new()
        }
        None => BTreeMap::new(),
    };
    // Nothing else says where a cold segment ends, or one whose successor is gone.
    for live in live.values() {
        log.prove(live.end);
    }
    for file in log.in_order() {
        let Ok(header) = file.header else { continue };
        let scanned = file.scan(
            store,
            first_crc(file, header.epoch, previous.as_ref()),
            |batch| {
                batch_count += 1;
                record_count += u64::from(batch.header.record_count);
                Ok(())
            },
        )?;
        for damage in &scanned.damage {
            // What is wrong from the checkpoint's begin on has been found by replay already; but replay ends with
            // the first place it finds.
            if damage.place < superblock.begin || snapshot.is_none() {
                report_damage(store, damage, report);
            }
        }
        ends.insert(file.segment, scanned.end);
        previous = Some(Previous {
            segment: file.segment,
            epoch: header.epoch,
            crc: scanned.last_crc,
        });
    }
    check_needed(store, log, &live, report);
    if report.damage_count == damage_before {
        let void_count = log.files.values().filter(|file| file.is_void).count();
        let text = format!(
            "{} kept, {batch_count} batches, {record_count} records; {void_count} void{}",
            log.files.len() - void_count,
            match pool::list(&store.view)?.len() {
                0 => String::new(),
                spare_count => format!(", {spare_count} spare"),
            }
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
            if previous.epoch == epoch {
                previous.crc
            } else {
                Some(0)
            }
        }
        _ => None,
    }
}

fn report_damage(store: &Store, damage: &Damage, report: &mut Report) {
    let path = store.view.describe(&segment_path(damage.place.segment()));
    let batch_offset = u64::from(damage.place.offset());
    if report.has(&path, batch_offset) {
        return;
    }
    let (invalid, proven) = (&damage.invalid, damage.proven);
    let text = format!("{invalid}, but the log is known to go on to {proven}; {RESTORE}");
    report.damage("segments", path, batch_offset, text);
}

/// Segments that hold live messages must be part of the log.
fn check_needed(store: &Store, log: &Log, live: &BTreeMap<SegmentId, Live>, report: &mut Report) {
    for (segment, live) in live {
        let text = match log.files.get(segment) {
            None => "the segment is missing",
            Some(file) if file.header.is_err() => "the header of the segment is not whole",
            Some(file) if file.is_void => "the segment is no part of the log",
            Some(_) => continue,
        };
        let path = store.view.describe(&segment_path(*segment));
        report.damage(
            "segments",
            path,
            0,
            format!(
                "{text}, but {} live messages lie in it; {RESTORE}",
                live.refs
            ),
        );
    }
}
