//! Messages that are in no log, moved out of memory into anonymous files.
//!
//! ```text
//!   spill files   [ r r r r . . . . ]  [ . . r . . . . . ]  [ r r r r -> ]
//!                   live                 mostly dead:          active: the next chunk is written here
//!                                        rewritten, freed
//! ```
//! 1. The files have no name: they are gone when the process ends, however it ends. Nothing of them is ever synced, and
//!    no start looks for them.
//! 2. A spilled message has the framing of the log, one PUBLISH record with one ref, and is believed on the same terms:
//!    length, place, ref and CRC must agree.
//! 3. A failed write changes nothing: the next one goes to the same place, and the caller still has the messages.
//! 4. A file is closed, and so its space freed, when nothing in it is wanted any more. One that is mostly dead is offered
//!    for rewriting, so the files take at most four times what is in them, and one file more.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::error::ReadError;
use super::gather::{self, ReadBuffer, Source};
use super::read::payload_of;
use super::record::{self, Entry, Record};
use super::types::{Lsn, Payload, Position, QueueId, Ref, Request, SegmentId, Seq};
use crate::disk::{Disk, DiskFile};
use crate::sync::lock;

/// Size at which a file is closed for further chunks. Small, so that space comes back while a backlog is drained.
pub const SPILL_FILE_BYTES: u64 = 16 << 20;
/// A file is worth rewriting when less than one part in so many of it is live.
const LIVE_SHARE_MIN: u64 = 4;
/// Bytes of a mostly dead file that are looked at in one go.
const SWEEP_BYTES: u64 = 256 * 1024;

/// A message to be moved out of memory.
#[derive(Clone, Copy, Debug)]
pub struct SpillItem<'a> {
    /// The queue that holds it.
    pub queue: QueueId,
    /// Its place there.
    pub seq: Seq,
    /// The payload.
    pub payload: Payload<'a>,
    /// CRC-32 of the whole payload.
    pub payload_crc: u32,
}

/// A message that was found in a file.
#[derive(Clone, Debug)]
pub struct Spilled {
    /// The queue that held it.
    pub queue: QueueId,
    /// Its place there.
    pub seq: Seq,
    /// Where it lies.
    pub position: Position,
    /// The payload.
    pub payload: Bytes,
    /// Its CRC-32, checked.
    pub payload_crc: u32,
}

/// See the module.
pub struct Spill {
    disk: Arc<dyn Disk>,
    /// Size at which a file is closed for further chunks.
    file_bytes: u64,
    files: Mutex<Files>,
}

#[derive(Default)]
struct Files {
    by_number: BTreeMap<SegmentId, File>,
    /// Gets the next chunk.
    active: Option<SegmentId>,
    /// Numbers are not used again, so a position that is out of date is never taken for another.
    next_number: u64,
    live_bytes: u64,
    /// Nothing in them is wanted; closed by [`Spill::tidy`], since that is where the system frees the space.
    dead: Vec<Arc<dyn DiskFile>>,
}

struct File {
    file: Arc<dyn DiskFile>,
    end_bytes: u64,
    live_bytes: u64,
    /// [`Spill::stragglers`] goes on here.
    swept_bytes: u64,
    /// It could not be read when it was to be rewritten.
    is_unreadable: bool,
}

impl Spill {
    /// No files yet; they will be made on `disk`.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, file_bytes: u64) -> Self {
        Self {
            disk,
            file_bytes,
            files: Mutex::default(),
        }
    }

    /// Bytes of the files.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        let files = lock(&self.files);
        files.by_number.values().map(|file| file.end_bytes).sum()
    }

    /// Bytes of messages in them that are still wanted.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        lock(&self.files).live_bytes
    }

    /// Writes messages with one write and says where each one lies. They count as wanted until they are
    /// [released](Self::release). One thread at a time may call it.
    ///
    /// # Errors
    /// Those of the disk; no message was moved then.
    pub fn write(&self, items: &[SpillItem<'_>]) -> io::Result<Vec<Position>> {
        if items.is_empty() {
            return Ok(Vec::new());
        }
        let (number, file, start) = self.file_to_write(chunk_bytes(items))?;
        let (positions, heads) = frame(items, number, start);
        let padding = [0; 8];
        let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(items.len() * 4);
        for (item, head) in items.iter().zip(&heads) {
            slices.push(IoSlice::new(head));
            slices.extend(item.payload.pieces().map(IoSlice::new));
            let payload_len = item.payload.len();
            let pad_len = (head.len() + payload_len).next_multiple_of(8) - head.len() - payload_len;
            slices.push(IoSlice::new(&padding[..pad_len]));
        }
        file.write_at(&slices, start)?;
        let len_bytes: u64 = positions.iter().map(|at| u64::from(at.len_bytes)).sum();
        let mut files = lock(&self.files);
        files.live_bytes += len_bytes;
        let written = files.by_number.get_mut(&number);
        let written = written.expect("the active file is only dropped by who writes");
        written.end_bytes += len_bytes;
        written.live_bytes += len_bytes;
        Ok(positions)
    }

    /// The active file, or a new one when a chunk of `len_bytes` does not fit it any more.
    fn file_to_write(&self, len_bytes: u64) -> io::Result<(SegmentId, Arc<dyn DiskFile>, u64)> {
        let mut files = lock(&self.files);
        if let Some(number) = files.active
            && let Some(active) = files.by_number.get(&number)
        {
            let is_fitting = active.end_bytes + len_bytes <= self.file_bytes;
            if active.end_bytes == 0 || is_fitting {
                return Ok((number, Arc::clone(&active.file), active.end_bytes));
            }
            files.close_active();
        }
        drop(files);
        let file = self.disk.temp_file()?;
        let mut files = lock(&self.files);
        let number = SegmentId(files.next_number);
        files.next_number += 1;
        files.active = Some(number);
        let entry = File {
            file: Arc::clone(&file),
            end_bytes: 0,
            live_bytes: 0,
            swept_bytes: 0,
            is_unreadable: false,
        };
        files.by_number.insert(number, entry);
        Ok((number, file, 0))
    }

    /// Reads the payloads of messages of one queue; as [`super::Storage::read_many`].
    pub fn read_many(
        &self,
        queue: QueueId,
        wanted: &[(Seq, Position)],
        buffer: &mut ReadBuffer,
    ) -> Vec<Result<Bytes, ReadError>> {
        gather::read_many(self, queue, wanted, buffer)
    }

    /// Reads the payloads of messages of one queue; as [`super::Storage::read_each`].
    pub fn read_each(
        &self,
        queue: QueueId,
        wanted: &[(Seq, Position)],
        buffer: &mut ReadBuffer,
        take: impl FnMut(usize, Result<Bytes, ReadError>),
    ) {
        gather::read_each(self, queue, wanted, buffer, take);
    }

    /// Reads the payload of one message.
    ///
    /// # Errors
    /// As [`super::Storage::read`].
    pub fn read(&self, queue: QueueId, seq: Seq, position: Position) -> Result<Bytes, ReadError> {
        self.read_alone(queue, seq, position)
    }

    /// These are not wanted any more. Touches no file.
    pub fn release(&self, positions: &[Position]) {
        let mut files = lock(&self.files);
        for position in positions {
            files.release(*position);
        }
    }

    /// Closes files in which nothing is wanted. Call it on the thread that writes, now and then.
    pub fn tidy(&self) {
        let dead = {
            let mut files = lock(&self.files);
            let active = files.active.and_then(|number| files.by_number.get(&number));
            if active.is_some_and(|file| file.end_bytes > 0 && file.live_bytes == 0) {
                files.close_active();
            }
            std::mem::take(&mut files.dead)
        };
        drop(dead);
    }

    /// Some of what is in a file that is mostly dead; empty when there is no such file. The caller writes what it still
    /// wants again and releases the old places, which frees the file after enough calls. On the thread that writes.
    #[must_use]
    pub fn stragglers(&self) -> Vec<Spilled> {
        let Some((number, part)) = lock(&self.files).sparsest() else {
            return Vec::new();
        };
        let found = part.read(number);
        let mut files = lock(&self.files);
        let Some(file) = files.by_number.get_mut(&number) else {
            return Vec::new();
        };
        match found {
            Ok((found, next_bytes)) => {
                file.swept_bytes = if next_bytes < file.end_bytes {
                    next_bytes
                } else {
                    0
                };
                found
            }
            Err(error) => {
                tracing::warn!(%error, "a spill file cannot be read; it is kept as it is");
                file.is_unreadable = true;
                Vec::new()
            }
        }
    }
}

/// What is left to sweep of a file.
struct Part {
    file: Arc<dyn DiskFile>,
    from_bytes: u64,
    end_bytes: u64,
}

impl Part {
    /// The next messages, and where those after them begin.
    fn read(&self, number: SegmentId) -> io::Result<(Vec<Spilled>, u64)> {
        let rest_bytes = self.end_bytes - self.from_bytes;
        // Small messages take several times their size while they are moved: some at a time. One that is longer than
        // that is read with all that follows.
        for len_bytes in [rest_bytes.min(SWEEP_BYTES), rest_bytes] {
            let len = usize::try_from(len_bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
            let mut bytes = vec![0; len];
            let len = self.file.read_at(&mut bytes, self.from_bytes)?;
            bytes.truncate(len);
            let found = records_in(&Bytes::from(bytes), number, self.from_bytes);
            if let Some(last) = found.last() {
                let last = last.position;
                let next_bytes = u64::from(last.lsn.offset()) + u64::from(last.len_bytes);
                return Ok((found, next_bytes));
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }
}

impl Files {
    fn close_active(&mut self) {
        if let Some(number) = self.active.take() {
            self.bury_if_dead(number);
        }
    }

    fn release(&mut self, position: Position) {
        let number = position.lsn.segment();
        let len_bytes = u64::from(position.len_bytes);
        let Some(file) = self.by_number.get_mut(&number) else {
            return;
        };
        debug_assert!(file.live_bytes >= len_bytes, "each place is released once");
        file.live_bytes = file.live_bytes.saturating_sub(len_bytes);
        self.live_bytes = self.live_bytes.saturating_sub(len_bytes);
        if self.active != Some(number) {
            self.bury_if_dead(number);
        }
    }

    fn bury_if_dead(&mut self, number: SegmentId) {
        if self
            .by_number
            .get(&number)
            .is_some_and(|file| file.live_bytes == 0)
            && let Some(file) = self.by_number.remove(&number)
        {
            self.dead.push(file.file);
        }
    }

    /// A closed file that is worth rewriting.
    fn sparsest(&self) -> Option<(SegmentId, Part)> {
        let closed = self.by_number.iter().filter(|(number, file)| {
            Some(**number) != self.active
                && !file.is_unreadable
                && file.live_bytes < file.end_bytes / LIVE_SHARE_MIN
        });
        closed
            .min_by_key(|(_, file)| file.live_bytes)
            .map(|(number, file)| {
                let part = Part {
                    file: Arc::clone(&file.file),
                    from_bytes: file.swept_bytes,
                    end_bytes: file.end_bytes,
                };
                (*number, part)
            })
    }
}

impl Source for Spill {
    fn end(&self) -> Lsn {
        // A position is handed out after its record was written.
        Lsn(u64::MAX)
    }

    fn file(&self, number: SegmentId) -> io::Result<Arc<dyn DiskFile>> {
        let files = lock(&self.files);
        let file = files.by_number.get(&number);
        file.map(|file| Arc::clone(&file.file))
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn name(&self, number: SegmentId) -> String {
        format!("spill file {}", number.0)
    }

    fn read_alone(&self, queue: QueueId, seq: Seq, position: Position) -> Result<Bytes, ReadError> {
        let record = gather::read_record(self, position)?;
        payload_of(record, queue, seq, position).map_err(|detail| ReadError::Damaged {
            path: self.name(position.lsn.segment()),
            offset: u64::from(position.lsn.offset()),
            detail,
        })
    }
}

fn request<'a>(item: &SpillItem<'a>, refs: &'a [Ref]) -> Request<'a> {
    Request::Publish {
        refs,
        priority: 0,
        time_ms: 0,
        payload: item.payload,
        payload_crc: item.payload_crc,
    }
}

fn ref_of(item: &SpillItem<'_>) -> [Ref; 1] {
    [Ref {
        queue: item.queue,
        seq: item.seq,
        expires_at_ms: 0,
    }]
}

fn chunk_bytes(items: &[SpillItem<'_>]) -> u64 {
    let lens = items.iter().map(|item| {
        let refs = ref_of(item);
        Entry::Request(&request(item, &refs)).len_bytes()
    });
    lens.sum()
}

/// Where each message will lie, and what stands before its payload.
fn frame(items: &[SpillItem<'_>], number: SegmentId, start: u64) -> (Vec<Position>, Vec<Vec<u8>>) {
    let mut offset = start;
    let framed = items.iter().map(|item| {
        let refs = ref_of(item);
        let request = request(item, &refs);
        let entry = Entry::Request(&request);
        let fits = |value: u64| u32::try_from(value).expect("a chunk is far below 1 GiB");
        let position = Position {
            lsn: Lsn::new(number, fits(offset)),
            len_bytes: fits(entry.len_bytes()),
        };
        let mut head = Vec::new();
        entry.encode_head(position.lsn, entry.len_bytes(), &mut head);
        offset += entry.len_bytes();
        (position, head)
    });
    framed.unzip()
}

/// The messages in the bytes of a file. What does not verify ends the list: its owner finds out when it is read.
/// The whole records of `bytes`, which stand at `start` in their file.
fn records_in(bytes: &Bytes, number: SegmentId, start: u64) -> Vec<Spilled> {
    let mut found = Vec::new();
    let mut offset = 0;
    while let Some((spilled, len)) = record_at(bytes, number, start, offset) {
        found.push(spilled);
        offset += len;
    }
    found
}

fn record_at(
    bytes: &Bytes,
    number: SegmentId,
    start: u64,
    offset: usize,
) -> Option<(Spilled, usize)> {
    let lsn = Lsn::new(number, u32::try_from(start + offset as u64).ok()?);
    let rest = bytes.get(offset..).filter(|rest| !rest.is_empty())?;
    let (record, _) = record::split(rest).ok()?;
    let Ok(Record::Publish(publish)) = record::decode(record, lsn) else {
        return None;
    };
    let place = publish.refs.iter().next()?;
    let position = Position {
        lsn,
        len_bytes: u32::try_from(record.len()).ok()?,
    };
    let spilled = Spilled {
        queue: place.queue,
        seq: place.seq,
        position,
        payload: bytes.slice_ref(publish.payload),
        payload_crc: publish.payload_crc,
    };
    Some((spilled, record.len()))
}
