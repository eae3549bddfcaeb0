//! The index against its checksums and against the log: every unsettled message must be where its queue says, whole.

use std::path::Path;

use stratamq::disk::Disk;
use stratamq::storage::format::{
    INDEX_DIR, INDEX_EXTENSION, index_path, number_in_name, segment_path,
};
use stratamq::storage::index::look::Messages;
use stratamq::storage::types::{Position, QueueId, Seq};
use stratamq::storage::{QueueImage, check_record};

use super::kept::Ends;
use super::{Outcome, Report, counted};
use crate::error::DumpError;
use crate::live::read_record;
use crate::log::io_error;
use crate::snapshot::Snapshot;
use crate::store::Store;

/// What an operator can do about one message.
const ADVICE: &str =
    "only this message is lost: restore the segment from a backup, or purge the queue";

/// What an operator can do about a block.
const BLOCK_ADVICE: &str = "no message is lost: the broker looks in the log instead; remove the file of a stopped broker to have it built again";

pub(super) fn check(
    store: &Store,
    snapshot: &Snapshot,
    ends: &Ends,
    report: &mut Report,
) -> Result<(), DumpError> {
    let damage_before = report.damage_count;
    let mut entries: Vec<(Position, QueueId, Seq)> = Vec::new();
    let mut run_count = 0;
    for image in &snapshot.queues {
        match snapshot.messages(store, image) {
            Ok(messages) => {
                report_blocks(store, image, &messages, report);
                let places = messages.entries.iter();
                entries.extend(places.map(|entry| (entry.position, image.id, entry.seq)));
                run_count += image.runs.len() - messages.lost.len();
            }
            Err(error) => report.add_error("index", error)?,
        }
    }
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
            read_record(store, *position, &mut record)?;
            check_record(&record, *queue, *seq, *position).err()
        };
        if let Some(wrong) = wrong {
            let path = store.view.describe(&segment_path(position.lsn.segment()));
            let text = format!("message {seq} of queue {queue}: {wrong}; {ADVICE}");
            report.damage("index", path, u64::from(position.lsn.offset()), text);
        }
    }
    if report.damage_count == damage_before {
        let text = format!(
            "{} messages in {} queues, each in its place{}",
            entries.len(),
            snapshot.queues.len(),
            match run_count {
                0 => String::new(),
                _ => format!(
                    "; {} of index files whole",
                    counted(run_count as u64, "block")
                ),
            }
        );
        report.add("index", Outcome::Ok, text);
    }
    Ok(())
}

/// Blocks of index files that are not what the checkpoint says. Nothing is lost with them.
fn report_blocks(store: &Store, image: &QueueImage, messages: &Messages, report: &mut Report) {
    let path = store.view.describe(&index_path(image.id));
    for block in &messages.lost {
        if let Some(detail) = &block.detail {
            let text = format!("{detail}; {BLOCK_ADVICE}");
            report.damage("index", path.clone(), block.offset, text);
        }
    }
    let missing_count = messages
        .lost
        .iter()
        .filter(|block| block.detail.is_none())
        .count();
    if missing_count > 0 {
        let text = format!(
            "{path} is missing, with {}: {BLOCK_ADVICE}",
            counted(missing_count as u64, "block")
        );
        report.add("index", Outcome::Note, text);
    }
}

/// Names in `index/` that nothing refers to.
pub(super) fn check_strangers(
    store: &Store,
    snapshot: &Snapshot,
    report: &mut Report,
) -> Result<(), DumpError> {
    let dir = Path::new(INDEX_DIR);
    let names = match store.view.list(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        names => names.map_err(|source| io_error(store, "list", dir, source))?,
    };
    for name in names {
        let queue = number_in_name(&name, 16, INDEX_EXTENSION).map(QueueId);
        let text = match queue {
            None => "no file of the broker's",
            Some(id) if snapshot.image(id).is_none() => {
                "the index of a queue that is gone; removed by the next checkpoint"
            }
            Some(_) => continue,
        };
        let path = store.view.describe(&dir.join(name));
        report.add("index", Outcome::Note, format!("{path}: {text}"));
    }
    Ok(())
}
