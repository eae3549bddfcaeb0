//! Reading one message by its position, on any thread.
//!
//! A record is served from the pending batches until it is in the file. From the file it is believed only when
//! its length, its LSN, the ref that was asked for and the payload's CRC agree: so neither rot nor a wrong index
//! nor a misdirected read can deliver wrong bytes.
//!
//! No reader holds a segment. One whose last message was settled may be freed, and its file used again for another
//! segment, while a read is on its way:
//!
//! ```text
//! t1 reader has the file open, t2 checkpoint takes the segment from the list, t3 file renamed, t4 overwritten,
//! t5 reader finds other bytes, t6 reader misses the segment in the list -> Freed, not Damaged
//! ```
//! The list is changed (t2) before the first byte is (t4), so bytes that are not the segment's are always found out.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::error::ReadError;
use super::format::segment_path;
use super::gather::{self, Source};
use super::record::{self, Record};
use super::segment::FIRST_BATCH_OFFSET;
use super::shared::Shared;
use super::types::{Lsn, Position, QueueId, SegmentId, Seq};
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::sync::lock;

/// Segment files kept open for reading: bounds file descriptors, not data.
const OPEN_FILES_MAX: usize = 128;
/// Part of a record that its payload must at least be, or it is copied out so that it pins no larger buffer.
const PAYLOAD_SHARE_MIN: usize = 4;

/// Segment files that were opened for reading.
pub(crate) struct FileCache {
    disk: Arc<dyn Disk>,
    files: Mutex<BTreeMap<SegmentId, Arc<dyn DiskFile>>>,
}

impl FileCache {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Self {
        Self {
            disk,
            files: Mutex::default(),
        }
    }

    pub(crate) fn get(&self, segment: SegmentId) -> io::Result<Arc<dyn DiskFile>> {
        let mut files = lock(&self.files);
        if let Some(file) = files.get(&segment) {
            return Ok(Arc::clone(file));
        }
        let file = self.disk.open(&segment_path(segment), OpenMode::Read)?;
        if files.len() >= OPEN_FILES_MAX {
            // The oldest segments are read least.
            files.pop_first();
        }
        files.insert(segment, Arc::clone(&file));
        Ok(file)
    }

    pub(crate) fn forget(&self, segment: SegmentId) {
        lock(&self.files).remove(&segment);
    }
}

/// Reads the payload of the message `(queue, seq)` whose record is at `position`.
///
/// # Errors
/// See [`ReadError`].
pub(crate) fn read(
    shared: &Shared,
    queue: QueueId,
    seq: Seq,
    position: Position,
) -> Result<Bytes, ReadError> {
    let record = match read_pending(shared, position) {
        Some(record) => record,
        None => gather::read_record(shared, position)?,
    };
    payload_of(record, queue, seq, position).map_err(|detail| wrong_bytes(shared, position, detail))
}

/// The payload in a record that was read alone, checked.
///
/// # Errors
/// As [`check_record`].
pub(crate) fn payload_of(
    record: Vec<u8>,
    queue: QueueId,
    seq: Seq,
    position: Position,
) -> Result<Bytes, String> {
    let payload = check_record(&record, queue, seq, position)?;
    if payload.len() < record.len() / PAYLOAD_SHARE_MIN {
        return Ok(Bytes::copy_from_slice(payload));
    }
    let start = payload.as_ptr().addr() - record.as_ptr().addr();
    let end = start + payload.len();
    Ok(Bytes::from(record).slice(start..end))
}

/// What to say about bytes that are not the record: were they ever meant to be?
fn wrong_bytes(shared: &Shared, position: Position, detail: String) -> ReadError {
    let lsn = position.lsn;
    if !lock(&shared.segments).contains(&lsn.segment()) {
        return ReadError::Freed { lsn };
    }
    // No record of a segment lies there (in a spill file it may): that is what a run says that could not be rebuilt.
    let detail = if lsn.offset() < FIRST_BATCH_OFFSET {
        "its index block is lost, and so is the batch that it lies in".into()
    } else {
        detail
    };
    ReadError::Damaged {
        path: shared.disk.describe(&segment_path(lsn.segment())),
        offset: u64::from(lsn.offset()),
        detail,
    }
}

/// What was moved to a cold segment was in a file before anybody heard of the place.
pub(super) fn is_in_file(shared: &Shared, lsn: Lsn) -> bool {
    lsn.segment().is_cold() || lsn < shared.written_lsn()
}

fn read_pending(shared: &Shared, position: Position) -> Option<Vec<u8>> {
    if is_in_file(shared, position.lsn) {
        return None;
    }
    // A batch leaves the pending ones after it is in the file, so a miss here means that it is there by now,
    // or that nobody ever pushed it.
    lock(&shared.append).copy_out(position)
}

impl Source for Shared {
    fn end(&self) -> Lsn {
        self.written_lsn()
    }
    fn file(&self, segment: SegmentId) -> io::Result<Arc<dyn DiskFile>> {
        self.files.get(segment)
    }
    fn name(&self, segment: SegmentId) -> String {
        self.disk.describe(&segment_path(segment))
    }
    fn read_alone(&self, queue: QueueId, seq: Seq, position: Position) -> Result<Bytes, ReadError> {
        read(self, queue, seq, position)
    }
}

/// The payload of the message `(queue, seq)` in the bytes that were read at `position`.
///
/// # Errors
/// What was expected and what was found, when the bytes are not that message or fail their checksum.
pub fn check_record(
    record: &[u8],
    queue: QueueId,
    seq: Seq,
    position: Position,
) -> Result<&[u8], String> {
    if record.len() != position.len_bytes as usize {
        return Err(format!(
            "the file ends {} bytes into the record",
            record.len()
        ));
    }
    match record::decode(record, position.lsn).map_err(|error| error.to_string())? {
        Record::Publish(publish) => {
            let is_named = publish
                .refs
                .iter()
                .any(|r| (r.queue, r.seq) == (queue, seq));
            if is_named {
                Ok(publish.payload)
            } else {
                Err(format!(
                    "the record does not name queue {queue} seq {}",
                    seq.0
                ))
            }
        }
        _ => Err("the record is no PUBLISH".into()),
    }
}
