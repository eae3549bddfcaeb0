//! Reading one message by its position, on any thread.
//!
//! A record is served from the pending batches until it is in the file. From the file it is believed only when
//! its length, its LSN, the ref that was asked for and the payload's CRC agree: so neither rot nor a wrong index
//! nor a misdirected read can deliver wrong bytes. That the file is of this store and this segment, which no record says,
//! is checked when it is opened.
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
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::error::ReadError;
use super::format::{StoreId, segment_path};
use super::gather::{self, Source};
use super::read_behind::ReadBehind;
use super::record::{self, Record};
use super::segment::{FIRST_BATCH_OFFSET, HeaderError, read_header};
use super::shared::Shared;
use super::types::{Lsn, Position, QueueId, SegmentId, Seq};
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::sync::lock;

/// Segment files kept open for reading: bounds file descriptors, not data.
const OPEN_FILES_MAX: usize = 128;
/// Of them, those for reads past the cache: of a backlog the segments at its head are read.
const DIRECT_FILES_MAX: usize = 16;
/// Part of a record that its payload must at least be, or it is copied out so that it pins no larger buffer.
const PAYLOAD_SHARE_MIN: usize = 4;

/// A segment file that was opened for reading.
struct Opened {
    file: Arc<dyn DiskFile>,
    behind: ReadBehind,
}

/// Segment files that were opened for reading.
pub(crate) struct FileCache {
    disk: Arc<dyn Disk>,
    store: StoreId,
    files: Mutex<Files>,
}

/// See [`FileCache`].
#[derive(Default)]
struct Files {
    opened: BTreeMap<SegmentId, Opened>,
    /// Opened a second time, for reads past the cache; `None` where those go through it.
    direct: BTreeMap<SegmentId, Option<Arc<dyn DiskFile>>>,
}

impl FileCache {
    /// Files of `store`.
    pub(crate) fn new(disk: Arc<dyn Disk>, store: StoreId) -> Self {
        Self {
            disk,
            store,
            files: Mutex::default(),
        }
    }

    /// The file of a segment.
    ///
    /// # Errors
    /// Those of the disk; `InvalidData` when the file says that it is another one's.
    pub(crate) fn get(&self, segment: SegmentId) -> io::Result<Arc<dyn DiskFile>> {
        let files = &mut lock(&self.files).opened;
        if let Some(opened) = files.get(&segment) {
            return Ok(Arc::clone(&opened.file));
        }
        let file = self.open(segment)?;
        if files.len() >= OPEN_FILES_MAX {
            // The oldest segments are read least.
            files.pop_first();
        }
        let opened = Opened {
            file: Arc::clone(&file),
            behind: ReadBehind::default(),
        };
        files.insert(segment, opened);
        Ok(file)
    }

    fn open(&self, segment: SegmentId) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.disk.open(&segment_path(segment), OpenMode::Read)?;
        self.check_identity(&*file, segment)?;
        Ok(file)
    }

    /// The file of a segment for reads past the cache; `None` where they are not possible or not wanted.
    fn direct(&self, segment: SegmentId) -> Option<Arc<dyn DiskFile>> {
        let files = &mut lock(&self.files).direct;
        if let Some(known) = files.get(&segment) {
            return known.clone();
        }
        let file = self.open(segment).ok().filter(|file| file.bypass_cache());
        if files.len() >= DIRECT_FILES_MAX {
            files.pop_first();
        }
        files.insert(segment, file.clone());
        file
    }

    /// Reads of a segment go through the cache from now on, as long as anybody remembers it.
    fn keep_cached(&self, segment: SegmentId) {
        let files = &mut lock(&self.files).direct;
        if let Some(file) = files.get_mut(&segment) {
            *file = None;
        }
    }

    /// Refuses the file of another store or with another number: a record says neither, so one of those might pass for
    /// ours. A header that rotted is no reason to give up records that verify.
    fn check_identity(&self, file: &dyn DiskFile, segment: SegmentId) -> io::Result<()> {
        match read_header(file, self.store, segment) {
            // Records that verify are delivered, also when the medium has lost the block of the header.
            Err(_) | Ok(Ok(_) | Err(HeaderError::NotWhole)) => Ok(()),
            Ok(Err(error @ (HeaderError::Foreign | HeaderError::Newer(_)))) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, error))
            }
        }
    }

    /// These bytes of a segment were read, and nobody will want them again.
    fn read_behind(&self, segment: SegmentId, bytes: Range<u32>) {
        let dropped = lock(&self.files)
            .opened
            .get_mut(&segment)
            .and_then(|opened| {
                let bytes = opened.behind.add(bytes)?;
                Some((Arc::clone(&opened.file), bytes))
            });
        let Some((file, bytes)) = dropped else { return };
        if let Err(error) = file.drop_range(u64::from(bytes.start)..u64::from(bytes.end)) {
            tracing::debug!(%error, "pages that were read stay in the cache");
        }
    }

    pub(crate) fn forget(&self, segment: SegmentId) {
        let mut files = lock(&self.files);
        files.opened.remove(&segment);
        files.direct.remove(&segment);
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
        None => gather::read_record(shared, position).map_err(|error| match error {
            ReadError::Damaged { .. } if !is_there(shared, position) => {
                ReadError::Freed { lsn: position.lsn }
            }
            error => error,
        })?,
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

/// False when the segment was freed.
fn is_there(shared: &Shared, position: Position) -> bool {
    lock(&shared.segments).contains(&position.lsn.segment())
}

/// What to say about bytes that are not the record: were they ever meant to be?
fn wrong_bytes(shared: &Shared, position: Position, detail: String) -> ReadError {
    let lsn = position.lsn;
    if !is_there(shared, position) {
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
    fn direct_file(&self, segment: SegmentId) -> Option<Arc<dyn DiskFile>> {
        // What is being written, or was gathered of several queues, is not read for one of them alone.
        let is_sealed = !segment.is_cold() && segment != self.written_lsn().segment();
        is_sealed.then(|| self.files.direct(segment)).flatten()
    }
    fn keep_cached(&self, segment: SegmentId) {
        self.files.keep_cached(segment);
    }
    fn read_behind(&self, segment: SegmentId, bytes: Range<u32>) {
        // The one that is being written is left alone.
        if segment != self.written_lsn().segment() {
            self.files.read_behind(segment, bytes);
        }
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
    check_shared(record, queue, seq, position).map(|(payload, _)| payload)
}

/// As [`check_record`]; also true when the record names other messages as well.
pub(crate) fn check_shared(
    record: &[u8],
    queue: QueueId,
    seq: Seq,
    position: Position,
) -> Result<(&[u8], bool), String> {
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
                Ok((publish.payload, publish.refs.count() > 1))
            } else {
                Err(format!("the record does not name queue {queue} seq {seq}"))
            }
        }
        _ => Err("the record is no PUBLISH".into()),
    }
}
