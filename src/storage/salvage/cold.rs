//! Cold segments without the checkpoint that says which of their messages count.
//!
//! ```text
//!   checkpoint that is left     entries, next seq       (or none: every queue begins with nothing)
//!   + every copy in log/*.cold  a message that it has takes the place of its copy; one above its next seq joins
//!   + the log that is left      SETTLE ends messages, QUEUE_DELETED queues, as ever
//! ```
//! The segment that a message was copied from may be freed, so its copy may be all there is. What settled it may be
//! freed as well: then it comes back. Of two copies the later one counts, as for a rebuilt index.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::{Salvage, open};
use crate::disk::{Disk, DiskFile};
use crate::storage::error::StorageError;
use crate::storage::file::io_error;
use crate::storage::format::{BLOCK_BYTES, segment_path};
use crate::storage::record::Record;
use crate::storage::scan::{SegmentScan, first_signed_header, survey_remains};
use crate::storage::segment::{self, FIRST_BATCH_OFFSET, SegmentHeader};
use crate::storage::survey::Survey;
use crate::storage::types::{QueueId, SegmentId, Seq};

/// Adds the messages of all cold segments to the state of the checkpoint, before the log is replayed upon it.
pub(super) fn read_all(
    disk: &dyn Disk,
    survey: &mut Survey,
    salvage: &mut Salvage,
) -> Result<(), StorageError> {
    let known = survey.replay.next_seqs();
    for segment in segment::list_cold(disk)? {
        let path = segment_path(segment);
        let file = open(disk, &path)?;
        let read = read_segment(file, segment, &path, &known, survey, salvage);
        survey.read_bytes += read.map_err(io_error(disk, "read a segment", &path))?;
    }
    Ok(())
}

/// Gives the bytes read.
fn read_segment(
    file: Arc<dyn DiskFile>,
    segment: SegmentId,
    path: &Path,
    known: &HashMap<QueueId, Seq>,
    survey: &mut Survey,
    salvage: &mut Salvage,
) -> io::Result<u64> {
    let store = survey.superblock.store;
    let header = match segment::read_header(&*file, store, segment)? {
        Ok(header) => header,
        Err(_) => {
            let detail = "the header of the segment is not whole";
            salvage.note(path.to_owned(), 0, BLOCK_BYTES, detail);
            let Some(batch) = first_signed_header(Arc::clone(&file), store, segment)? else {
                return Ok(0);
            };
            SegmentHeader {
                store,
                segment,
                epoch: batch.epoch,
                created_at_ms: 0,
                is_recycled: true,
            }
        }
    };
    let mut scan = SegmentScan::new(file, header, FIRST_BATCH_OFFSET)?;
    loop {
        let place = scan.place();
        let invalid = match scan.next_batch_without_payloads()? {
            Ok((batch, _)) => {
                for (position, record) in batch.records() {
                    if let Record::Publish(publish) = record {
                        survey.replay.restore_copy(position, &publish, known);
                    }
                }
                continue;
            }
            Err(invalid) => invalid,
        };
        // Nothing depends on what was being written when the power went: it was named nowhere yet.
        let remains = survey_remains(scan.file(), store, segment, place.offset())?;
        if remains.len_bytes == 0 {
            return Ok(scan.read_bytes());
        }
        let is_found = scan.find_next_header(u64::MAX)?;
        let len_bytes = if is_found {
            scan.place().0 - place.0
        } else {
            remains.len_bytes
        };
        salvage.lost_bytes += len_bytes;
        let detail = invalid.to_string();
        salvage.note(path.to_owned(), place.offset().into(), len_bytes, detail);
        if !is_found {
            return Ok(scan.read_bytes());
        }
    }
}
