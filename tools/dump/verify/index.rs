//! The index against the log: every unsettled message must be where its queue says, whole.

use stratamq::disk::{Disk, OpenMode};
use stratamq::storage::check_record;
use stratamq::storage::format::segment_path;
use stratamq::storage::types::{Position, QueueId, Seq};

use super::kept::Ends;
use super::{Outcome, Report};
use crate::error::DumpError;
use crate::log::io_error;
use crate::snapshot::Snapshot;
use crate::store::Store;

/// What an operator can do about one message.
const ADVICE: &str =
    "only this message is lost: restore the segment from a backup, or purge the queue";

pub(super) fn check(
    store: &Store,
    snapshot: &Snapshot,
    ends: &Ends,
    report: &mut Report,
) -> Result<(), DumpError> {
    let damage_before = report.damage_count;
    let mut entries: Vec<(Position, QueueId, Seq)> = snapshot
        .queues
        .iter()
        .flat_map(|image| {
            image
                .entries
                .iter()
                .map(|entry| (entry.position, image.id, entry.seq))
        })
        .collect();
    // In the order of the log, so that the disk is read once from front to back.
    entries.sort_unstable_by_key(|(position, queue, seq)| (position.lsn, queue.0, seq.0));
    let mut record = Vec::new();
    for (position, queue, seq) in &entries {
        // A segment that is missing or void was reported as a whole.
        let Some(end) = ends.get(&position.lsn.segment()) else {
            continue;
        };
        let wrong = if position.lsn >= *end {
            Some(format!(
                "the record lies behind {end}, where its segment ends"
            ))
        } else {
            read(store, *position, &mut record)?;
            check_record(&record, *queue, *seq, *position).err()
        };
        if let Some(wrong) = wrong {
            let path = store.view.describe(&segment_path(position.lsn.segment()));
            let text = format!("message {} of queue {queue}: {wrong}; {ADVICE}", seq.0);
            report.damage("index", path, u64::from(position.lsn.offset()), text);
        }
    }
    if report.damage_count == damage_before {
        let text = format!(
            "{} messages in {} queues, each in its place",
            entries.len(),
            snapshot.queues.len()
        );
        report.add("index", Outcome::Ok, text);
    }
    Ok(())
}

/// Reads the bytes at `position`, or those of them that the file has.
fn read(store: &Store, position: Position, record: &mut Vec<u8>) -> Result<(), DumpError> {
    let path = segment_path(position.lsn.segment());
    let error = |source| io_error(store, "read a segment", &path, source);
    let file = store.view.open(&path, OpenMode::Read).map_err(error)?;
    // A length from the disk: never more than the file has.
    let rest = file
        .len()
        .map_err(error)?
        .saturating_sub(u64::from(position.lsn.offset()));
    let len = u64::from(position.len_bytes).min(rest);
    record.clear();
    record.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
    let count = file
        .read_at(record, u64::from(position.lsn.offset()))
        .map_err(error)?;
    record.truncate(count);
    Ok(())
}
