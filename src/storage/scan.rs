//! Reading a segment from a place onwards, batch by batch, each fully verified before it is seen.
//!
//! Used by recovery, by the dump tool and by tests. It reads with positioned reads in chunks and never trusts a
//! length it has not compared with the size of the file, so any bytes are safe to scan.

use std::io;
use std::sync::Arc;

use super::batch::{Batch, BatchHeader, Invalid};
use super::format::{Seed, batch_header};
use super::segment::{FIRST_BATCH_OFFSET, SegmentHeader, read_header};
use super::types::{Lsn, SegmentId};
use crate::disk::DiskFile;

/// Bytes read at once: large enough that the disk streams, small beside everything else.
const CHUNK_BYTES: u64 = 4 << 20;

/// Bytes looked through at once: a multiple of 8.
const STRETCH_BYTES: u64 = 1 << 20;

/// A window that slides over a file.
pub(crate) struct Window {
    file: Arc<dyn DiskFile>,
    file_len: u64,
    /// Bytes of the file from `start` on.
    bytes: Vec<u8>,
    start: u64,
    /// Bytes read at once, see [`CHUNK_BYTES`].
    chunk_bytes: u64,
    /// Bytes read so far.
    pub(crate) read_bytes: u64,
}

impl Window {
    pub(crate) fn new(file: Arc<dyn DiskFile>) -> io::Result<Self> {
        let file_len = file.len()?;
        Ok(Self {
            file,
            file_len,
            bytes: Vec::new(),
            start: 0,
            chunk_bytes: CHUNK_BYTES,
            read_bytes: 0,
        })
    }

    pub(crate) fn file_len(&self) -> u64 {
        self.file_len
    }

    /// The `len` bytes at `offset`, or those of them that the file has.
    pub(crate) fn get(&mut self, offset: u64, len: u64) -> io::Result<&[u8]> {
        let end = offset.saturating_add(len).min(self.file_len);
        let offset = offset.min(end);
        if offset < self.start || end > self.start + self.bytes.len() as u64 {
            self.slide(offset, end)?;
        }
        let from = index(offset - self.start).min(self.bytes.len());
        let to = index(end - self.start).min(self.bytes.len());
        Ok(self.bytes.get(from..to).unwrap_or_default())
    }

    /// Makes the window begin at `offset` and reach at least to `end`.
    fn slide(&mut self, offset: u64, end: u64) -> io::Result<()> {
        let held_end = self.start + self.bytes.len() as u64;
        if (self.start..held_end).contains(&offset) {
            self.bytes.drain(..index(offset - self.start));
        } else {
            self.bytes.clear();
        }
        self.start = offset;
        let held = self.bytes.len();
        let wanted = (end - offset)
            .max(self.chunk_bytes)
            .min(self.file_len - offset);
        self.bytes.resize(index(wanted).max(held), 0);
        let tail = self.bytes.get_mut(held..).unwrap_or_default();
        let read = self.file.read_at(tail, offset + held as u64)?;
        self.bytes.truncate(held + read);
        self.read_bytes += read as u64;
        Ok(())
    }
}

/// An offset inside a window as an index.
fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("a file of the engine fits the address space")
}

/// A segment being read.
pub struct SegmentScan {
    header: SegmentHeader,
    seed: Seed,
    window: Window,
    /// Offset of the next batch.
    at: u64,
}

impl SegmentScan {
    /// Starts at `from` in the segment that `header` describes.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn new(file: Arc<dyn DiskFile>, header: SegmentHeader, from: u32) -> io::Result<Self> {
        Ok(Self {
            header,
            seed: header.seed(),
            window: Window::new(file)?,
            at: u64::from(from),
        })
    }

    /// Reads less at once than a scan that hurries.
    pub(crate) fn read_in_chunks_of(&mut self, bytes: u64) {
        self.window.chunk_bytes = bytes;
    }

    /// The file it reads.
    pub(crate) fn file(&self) -> Arc<dyn DiskFile> {
        Arc::clone(&self.window.file)
    }

    /// The header of the segment.
    #[must_use]
    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// Place of the next batch: behind the last valid one.
    #[must_use]
    pub fn place(&self) -> Lsn {
        Lsn((self.header.segment.0 << Lsn::OFFSET_BITS) + self.at)
    }

    /// Size of the file when the scan began.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.window.file_len()
    }

    /// Bytes read so far.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.window.read_bytes
    }

    /// The next batch, or why there is none at [`place`](Self::place); then the scan stays there.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn next_batch(&mut self) -> io::Result<Result<Batch<'_>, Invalid>> {
        let place = self.place();
        let header = match self.read_header(place)? {
            Ok(header) => header,
            Err(invalid) => return Ok(Err(invalid)),
        };
        let len = u64::from(header.len_bytes);
        if self.at + len > self.window.file_len() {
            return Ok(Err(Invalid::Truncated(len)));
        }
        let bytes = self.window.get(self.at, len)?;
        if bytes.len() as u64 != len {
            return Ok(Err(Invalid::Truncated(len)));
        }
        let verified = Batch::verify(header, bytes, self.seed);
        if verified.is_ok() {
            self.at += len;
        }
        Ok(verified)
    }

    /// As [`next_batch`](Self::next_batch), but wrong payloads are let pass; with their number.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn next_batch_without_payloads(
        &mut self,
    ) -> io::Result<Result<(Batch<'_>, u64), Invalid>> {
        let header = match self.read_header(self.place())? {
            Ok(header) => header,
            Err(invalid) => return Ok(Err(invalid)),
        };
        let len = u64::from(header.len_bytes);
        let bytes = self.window.get(self.at, len)?;
        if bytes.len() as u64 != len {
            return Ok(Err(Invalid::Truncated(len)));
        }
        let verified = Batch::verify_without_payloads(header, bytes, self.seed);
        if verified.is_ok() {
            self.at += len;
        }
        Ok(verified)
    }

    /// Goes to `offset`.
    pub(crate) fn go_to(&mut self, offset: u32) {
        self.at = offset.into();
    }

    /// Goes on to the next place behind this one, and before `limit`, where a batch header verifies; false when there
    /// is none, and the scan stays.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn find_next_header(&mut self, limit: u64) -> io::Result<bool> {
        let from = self.at;
        let limit = limit.min(self.window.file_len());
        self.at += 8;
        while self.at < limit {
            if self.read_header(self.place())?.is_ok() {
                return Ok(true);
            }
            self.at += 8;
        }
        self.at = from;
        Ok(false)
    }

    /// Goes past a batch that does not verify, when its header does: for a report of all that is damaged. What is in
    /// it stays unseen.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn skip_batch(&mut self) -> io::Result<Option<BatchHeader>> {
        let header = self.read_header(self.place())?.ok();
        let fits =
            |header: &BatchHeader| self.at + u64::from(header.len_bytes) <= self.window.file_len();
        let header = header.filter(fits);
        if let Some(header) = &header {
            self.at += u64::from(header.len_bytes);
        }
        Ok(header)
    }

    fn read_header(&mut self, place: Lsn) -> io::Result<Result<BatchHeader, Invalid>> {
        let (epoch, seed, at) = (self.header.epoch, self.seed, self.at);
        let bytes = self.window.get(at, batch_header::SIZE as u64)?;
        Ok(match bytes.first_chunk() {
            Some(bytes) => BatchHeader::decode(bytes, place, epoch, seed),
            None => Err(Invalid::Absent),
        })
    }
}

/// What lies behind the last valid batch of a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// Bytes up to the last one that this segment may have written: that is not zero, or, in a recycled file, that
    /// belongs to a batch whose header verifies.
    pub len_bytes: u64,
    /// Batch headers that verify.
    pub batch_count: u64,
    /// Records they announce.
    pub record_count: u64,
    /// Highest watermark they carry.
    pub synced: Lsn,
    /// Bytes read.
    pub read_bytes: u64,
}

/// Looks at everything from `from` on for headers that this store signed. A header is found also when the
/// segment's own header is not whole, because the epoch it is signed with is taken from itself.
///
/// A recycled file is full of what another segment left. Only signed headers count there: they alone show that it was
/// written under this number. So they do in a file whose own header does not say what it is.
///
/// A payload could imitate a header only by knowing the random store id.
///
/// # Errors
/// Those of the disk.
pub fn survey_remains(
    file: Arc<dyn DiskFile>,
    store: super::format::StoreId,
    segment: SegmentId,
    from: u32,
) -> io::Result<Remains> {
    let header = read_header(&*file, store, segment)?;
    let is_blank_behind = header.is_ok_and(|header| !header.is_recycled);
    let mut window = Window::new(file)?;
    let mut remains = Remains::default();
    let from = u64::from(from.max(FIRST_BATCH_OFFSET));
    let mut at = from;
    while at < window.file_len() {
        // A stretch of places, and the rest of a header that begins at the last of them.
        let len = (window.file_len() - at).min(STRETCH_BYTES);
        let bytes = window.get(at, len + batch_header::SIZE as u64)?;
        let len = bytes.len().min(index(len));
        if is_blank(bytes) && len > 0 {
            // Most of what lies behind the end was only allocated.
            at += len as u64;
            continue;
        }
        let stretch = bytes.get(..len).unwrap_or_default();
        if is_blank_behind && let Some(last) = stretch.iter().rposition(|byte| *byte != 0) {
            remains.len_bytes = remains.len_bytes.max(at - from + last as u64 + 1);
        }
        for header in signed_headers(bytes, len, store, segment, at) {
            remains.batch_count += 1;
            remains.record_count += u64::from(header.record_count);
            remains.synced = remains.synced.max(header.synced);
            if !is_blank_behind {
                let end = u64::from(header.lsn.offset()) + u64::from(header.len_bytes);
                remains.len_bytes = remains.len_bytes.max(end - from);
            }
        }
        if len == 0 {
            break;
        }
        at += len as u64;
    }
    remains.len_bytes = remains
        .len_bytes
        .min(window.file_len().saturating_sub(from));
    remains.read_bytes = window.read_bytes;
    Ok(remains)
}

/// True when there are only zeros. Block by block, without a look at single bytes: a start looks at whole segments.
fn is_blank(bytes: &[u8]) -> bool {
    let mut blocks = bytes.chunks(4096);
    blocks.all(|block| block.iter().fold(0, |sum, byte| sum | byte) == 0)
}

/// The first header in a segment that this store signed.
///
/// # Errors
/// Those of the disk.
pub(crate) fn first_signed_header(
    file: Arc<dyn DiskFile>,
    store: super::format::StoreId,
    segment: SegmentId,
) -> io::Result<Option<BatchHeader>> {
    let mut window = Window::new(file)?;
    let mut at = u64::from(FIRST_BATCH_OFFSET);
    while at < window.file_len() {
        let bytes = window.get(at, batch_header::SIZE as u64)?.first_chunk();
        if let Some(header) = bytes.and_then(|bytes| signed_header(bytes, store, segment, at)) {
            return Ok(Some(header));
        }
        at += 8;
    }
    Ok(None)
}

/// Signed headers that begin in the first `len` bytes of what lies `at` in the file.
fn signed_headers(
    bytes: &[u8],
    len: usize,
    store: super::format::StoreId,
    segment: SegmentId,
    at: u64,
) -> impl Iterator<Item = BatchHeader> + '_ {
    let magic = super::format::BATCH_MAGIC.to_le_bytes();
    let words = bytes.get(..len).unwrap_or_default().chunks(8);
    // The magic first: nearly every place fails here.
    let places = words
        .enumerate()
        .filter(move |(_, word)| word.starts_with(&magic));
    places.filter_map(move |(number, _)| {
        let start = number * 8;
        let header = bytes.get(start..)?.first_chunk()?;
        signed_header(header, store, segment, at + start as u64)
    })
}

fn signed_header(
    bytes: &[u8; batch_header::SIZE],
    store: super::format::StoreId,
    segment: SegmentId,
    at: u64,
) -> Option<BatchHeader> {
    let epoch = BatchHeader::claimed_epoch(bytes);
    let place = Lsn::new(segment, u32::try_from(at).ok()?);
    BatchHeader::decode(bytes, place, epoch, Seed::new(store, segment, epoch)).ok()
}
