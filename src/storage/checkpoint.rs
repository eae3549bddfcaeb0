//! Checkpoint files: the state of all queues and the owner's snapshot, as one streamed file.
//!
//! ```text
//! | header | META | QUEUE | QUEUE | .. | SEGMENTS | END |       every section: header, content, zeros to 8
//! ```
//! The file is written queue by queue while the broker works on: each queue is contained up to its own LSN, and
//! replay skips what a queue already contains. The END section holds the CRC of everything before it; a file
//! without a right one does not count. Live refs per segment are counted from the entries, on writing and again
//! on reading, and the two must agree.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::StorageError;
use super::file::{damaged, io_error, write_all};
use super::format::{
    CHECKPOINT_MAGIC, CHECKPOINT_MIN_READER_VERSION, FORMAT_VERSION, StoreId, align_up,
    checkpoint_header as head, checkpoint_path, end_section, entry_flag, is_crc_right,
    meta_section, narrow_entry, queue_flag, queue_section, run as run_head, run_counts,
    section_header, section_kind, segment_entry, wide_entry,
};
use super::image::{Entries, QueueImage};
use super::occupancy::{Fullest, note_fullest};
use super::run::FiledRun;
use super::run_codec;
use super::scan::Window;
use super::types::{ImageEntry, Lsn, Position, QueueId, SegmentId, Seq};
use crate::disk::{Disk, DiskFile, OpenMode};

/// Bytes gathered before they are written: bounds memory, whatever the size of a queue.
const WRITE_CHUNK_BYTES: usize = 1 << 20;

/// What is alive in one segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentUse {
    /// Unsettled refs into it.
    pub live_refs: u64,
    /// Record bytes of these refs; a record with two live refs counts twice.
    pub live_bytes: u64,
}

/// Live refs of all segments that have any.
pub type SegmentTable = BTreeMap<SegmentId, SegmentUse>;

/// What the header of a checkpoint says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointHeader {
    /// Its number.
    pub generation: u64,
    /// The incarnation that wrote it.
    pub epoch: u64,
    /// Replay begins here: a batch starts at this place, or the log ended there.
    pub begin: Lsn,
    /// When it was begun, Unix milliseconds.
    pub created_at_ms: u64,
}

/// A checkpoint that was read and verified.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its header.
    pub header: CheckpointHeader,
    /// Append position after the last snapshot.
    pub end: Lsn,
    /// The owner's snapshot.
    pub meta: Vec<u8>,
    /// End of the last META record it contains.
    pub meta_lsn: Lsn,
    /// All queues, in ascending id.
    pub queues: Vec<QueueImage>,
    /// What is alive where.
    pub segments: SegmentTable,
    /// Size of the file.
    pub len_bytes: u64,
}

/// A checkpoint being written.
pub(crate) struct Writer {
    file: Arc<dyn DiskFile>,
    buffer: Vec<u8>,
    /// Bytes already handed to the file.
    written_bytes: u64,
    crc: crc32fast::Hasher,
    segments: SegmentTable,
    fullest: Fullest,
    queue_count: u64,
    entry_count: u64,
    last_queue: Option<QueueId>,
}

/// What was written.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) len_bytes: u64,
    pub(crate) queue_count: u64,
    pub(crate) entry_count: u64,
    pub(crate) segments: SegmentTable,
    pub(crate) fullest: Fullest,
}

impl Writer {
    /// Begins a checkpoint in an empty file.
    pub(crate) fn new(file: Arc<dyn DiskFile>, store: StoreId, header: &CheckpointHeader) -> Self {
        let mut bytes = vec![0; head::SIZE];
        head::MAGIC.put(&mut bytes, CHECKPOINT_MAGIC);
        head::VERSION.put(&mut bytes, FORMAT_VERSION);
        head::MIN_READER.put(&mut bytes, CHECKPOINT_MIN_READER_VERSION);
        bytes[head::STORE_ID.offset..head::STORE_ID.end()].copy_from_slice(&store.0);
        head::GENERATION.put(&mut bytes, header.generation);
        head::EPOCH.put(&mut bytes, header.epoch);
        head::BEGIN.put(&mut bytes, header.begin.0);
        head::CREATED_AT.put(&mut bytes, header.created_at_ms);
        let crc = crc32fast::hash(&bytes[..head::CRC.offset]);
        head::CRC.put(&mut bytes, crc);
        Self {
            file,
            buffer: bytes,
            written_bytes: 0,
            crc: crc32fast::Hasher::new(),
            segments: SegmentTable::new(),
            fullest: Fullest::default(),
            queue_count: 0,
            entry_count: 0,
            last_queue: None,
        }
    }

    /// Adds the owner's snapshot: first.
    pub(crate) fn meta(&mut self, meta: &[u8], last_lsn: Lsn) -> io::Result<()> {
        self.section(
            section_kind::META,
            0,
            (meta_section::SIZE + meta.len()) as u64,
        );
        self.buffer.extend_from_slice(&last_lsn.0.to_le_bytes());
        self.buffer.extend_from_slice(meta);
        self.pad();
        self.flush_if_full()
    }

    /// Adds a queue. Queues come in ascending id.
    pub(crate) fn queue(&mut self, image: &QueueImage) -> io::Result<()> {
        assert!(
            self.last_queue.is_none_or(|last| last < image.id),
            "queues come in ascending id"
        );
        self.last_queue = Some(image.id);
        let is_wide = image
            .entries
            .iter()
            .any(|entry| entry.expires_at_ms != 0 || entry.delivery_count != 0);
        let (mut flags, size) = if is_wide {
            (queue_flag::WIDE_ENTRIES, wide_entry::SIZE)
        } else {
            (0, narrow_entry::SIZE)
        };
        let mut len = queue_section::SIZE + image.entries.len() * size;
        if !image.runs.is_empty() {
            flags |= queue_flag::RUNS;
            len += run_counts::SIZE;
            len += image.runs.iter().map(run_codec::len_bytes).sum::<usize>();
        }
        self.section(section_kind::QUEUE, flags, len as u64);
        for value in [
            image.id.0,
            image.last_lsn.0,
            image.next_seq.0,
            image.reserved_upto.0,
        ] {
            self.buffer.extend_from_slice(&value.to_le_bytes());
        }
        if !image.runs.is_empty() {
            for count in [image.entries.len(), image.runs.len()] {
                self.buffer.extend_from_slice(&(count as u64).to_le_bytes());
            }
        }
        let mut own = SegmentTable::new();
        for entry in image.entries.iter() {
            // What is written must be readable: the log that could replace it is about to be freed.
            assert!(
                entry.seq < image.next_seq,
                "the tail of a queue is above its messages"
            );
            self.buffer.extend_from_slice(&encode_entry(entry)[..size]);
            count_entry(&mut own, entry);
            self.flush_if_full()?;
        }
        for run in &image.runs {
            assert!(
                !run.live.is_empty() && !run.is_touched(),
                "what a run has in each segment is all that is unsettled of it"
            );
            run_codec::encode(run, &mut self.buffer);
            count_run(&mut own, run);
            self.flush_if_full()?;
        }
        note_fullest(&mut self.fullest, &own);
        add(&mut self.segments, own);
        self.queue_count += 1;
        self.entry_count += image.message_count();
        Ok(())
    }

    /// Ends the file. It is not synced yet.
    pub(crate) fn finish(mut self, end: Lsn) -> io::Result<Written> {
        self.section(
            section_kind::SEGMENTS,
            0,
            (self.segments.len() * segment_entry::SIZE) as u64,
        );
        for (segment, used) in &self.segments {
            for value in [segment.0, used.live_refs, used.live_bytes] {
                self.buffer.extend_from_slice(&value.to_le_bytes());
            }
        }
        self.section(section_kind::END, 0, end_section::SIZE as u64);
        let len_bytes = self.written_bytes + (self.buffer.len() + end_section::SIZE) as u64;
        let mut section = [0; end_section::SIZE];
        end_section::END.put(&mut section, end.0);
        end_section::QUEUE_COUNT.put(&mut section, self.queue_count);
        end_section::ENTRY_COUNT.put(&mut section, self.entry_count);
        end_section::FILE_LEN.put(&mut section, len_bytes);
        self.buffer
            .extend_from_slice(&section[..end_section::CRC.offset]);
        self.flush()?;
        let crc = self.crc.clone().finalize();
        self.buffer.extend_from_slice(&crc.to_le_bytes());
        self.flush()?;
        assert_eq!(
            self.written_bytes, len_bytes,
            "the length is the one announced"
        );
        Ok(Written {
            len_bytes,
            queue_count: self.queue_count,
            entry_count: self.entry_count,
            segments: self.segments,
            fullest: self.fullest,
        })
    }

    fn section(&mut self, kind: u32, flags: u32, len_bytes: u64) {
        let mut header = [0; section_header::SIZE];
        section_header::KIND.put(&mut header, kind);
        section_header::FLAGS.put(&mut header, flags);
        section_header::LEN.put(&mut header, len_bytes);
        self.buffer.extend_from_slice(&header);
    }

    fn pad(&mut self) {
        // What was flushed before is a multiple of 8, so the buffer's own length tells.
        self.buffer.resize(self.buffer.len().next_multiple_of(8), 0);
    }

    fn flush_if_full(&mut self) -> io::Result<()> {
        if self.buffer.len() >= WRITE_CHUNK_BYTES {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.crc.update(&self.buffer);
        write_all(&*self.file, &self.buffer, self.written_bytes)?;
        self.written_bytes += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

/// Adds what one queue has to what all have.
fn add(all: &mut SegmentTable, own: SegmentTable) {
    for (id, used) in own {
        let segment = all.entry(id).or_default();
        segment.live_refs += used.live_refs;
        segment.live_bytes = segment.live_bytes.saturating_add(used.live_bytes);
    }
}

/// Counts an entry where its record lies.
fn count_entry(segments: &mut SegmentTable, entry: &ImageEntry) {
    let segment = segments.entry(entry.position.lsn.segment()).or_default();
    segment.live_refs += 1;
    segment.live_bytes = segment
        .live_bytes
        .saturating_add(u64::from(entry.position.len_bytes));
}

/// Counts the messages of a run where their records lie.
fn count_run(segments: &mut SegmentTable, run: &FiledRun) {
    for used in &run.segments {
        let segment = segments.entry(used.segment).or_default();
        segment.live_refs += u64::from(used.live_refs);
        segment.live_bytes = segment.live_bytes.saturating_add(used.live_bytes);
    }
}

fn encode_entry(entry: &ImageEntry) -> [u8; wide_entry::SIZE] {
    use wide_entry as at;
    let mut bytes = [0; at::SIZE];
    let flags = if entry.is_redelivered {
        entry_flag::REDELIVERED
    } else {
        0
    };
    at::SEQ.put(&mut bytes, entry.seq.0);
    at::LSN.put(&mut bytes, entry.position.lsn.0);
    at::LEN.put(&mut bytes, entry.position.len_bytes);
    at::PRIORITY.put(&mut bytes, entry.priority);
    at::FLAGS.put(&mut bytes, flags);
    at::EXPIRES_AT.put(&mut bytes, entry.expires_at_ms);
    at::DELIVERY_COUNT.put(&mut bytes, entry.delivery_count);
    bytes
}

// A narrow entry is the beginning of a wide one.
const _: () = assert!(narrow_entry::FLAGS.offset == wide_entry::FLAGS.offset);
const _: () = assert!(narrow_entry::SIZE == wide_entry::EXPIRES_AT.offset);

/// Why a checkpoint was not read.
enum ReadFailure {
    Io(io::Error),
    Bad(&'static str),
    Newer(u32),
}

impl From<io::Error> for ReadFailure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads and verifies the checkpoint `generation`.
///
/// # Errors
/// `Damaged` when it is missing or does not verify: a superblock that names it was written after it was synced.
pub fn read(disk: &dyn Disk, store: StoreId, generation: u64) -> Result<Checkpoint, StorageError> {
    let path = checkpoint_path(generation);
    let mut offset = 0;
    let loaded = open(disk, &path).and_then(|file| {
        let mut reader = Reader {
            window: Window::new(file)?,
            at: 0,
            crc: crc32fast::Hasher::new(),
        };
        let loaded = reader.read(store, generation);
        offset = reader.at;
        loaded
    });
    loaded.map_err(|failure| match failure {
        ReadFailure::Io(error) => io_error(disk, "read a checkpoint", &path)(error),
        ReadFailure::Bad(detail) => damaged(disk, &path, offset, detail),
        ReadFailure::Newer(found) => StorageError::NewerFormat {
            path: disk.describe(&path),
            found,
            supported: FORMAT_VERSION,
        },
    })
}

fn open(disk: &dyn Disk, path: &Path) -> Result<Arc<dyn DiskFile>, ReadFailure> {
    disk.open(path, OpenMode::Read)
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                ReadFailure::Bad("the checkpoint that the superblock names is missing")
            }
            _ => ReadFailure::Io(error),
        })
}

struct Reader {
    window: Window,
    at: u64,
    crc: crc32fast::Hasher,
}

impl Reader {
    /// The next `len` bytes; they are part of the checksum.
    fn take(&mut self, len: u64) -> Result<&[u8], ReadFailure> {
        let bytes = self.window.get(self.at, len)?;
        if bytes.len() as u64 != len {
            return Err(ReadFailure::Bad("the file is too short"));
        }
        self.crc.update(bytes);
        self.at += len;
        Ok(bytes)
    }

    fn section(&mut self, expected: Option<u32>) -> Result<(u32, u32, u64), ReadFailure> {
        let bytes = self.take(section_header::SIZE as u64)?;
        let kind = section_header::KIND.get_u32(bytes);
        let flags = section_header::FLAGS.get_u32(bytes);
        let len = section_header::LEN.get(bytes);
        if expected.is_some_and(|expected| expected != kind) {
            return Err(ReadFailure::Bad("sections are not in order"));
        }
        if len > self.window.file_len() - self.at {
            return Err(ReadFailure::Bad("a section is longer than the file"));
        }
        Ok((kind, flags, len))
    }

    fn read(&mut self, store: StoreId, generation: u64) -> Result<Checkpoint, ReadFailure> {
        let header = self.header(store, generation)?;
        let (meta, meta_lsn) = self.meta()?;
        let mut queues: Vec<QueueImage> = Vec::new();
        let mut counted = SegmentTable::new();
        let segments = loop {
            match self.section(None)? {
                (section_kind::QUEUE, flags, len) => {
                    let image = self.queue(flags, len, &mut counted)?;
                    if queues.last().is_some_and(|last| last.id >= image.id) {
                        return Err(ReadFailure::Bad("queues are not in order"));
                    }
                    queues.push(image);
                }
                (section_kind::SEGMENTS, 0, len) => break self.segments(len)?,
                _ => return Err(ReadFailure::Bad("unknown section")),
            }
        };
        let (end, queue_count, entry_count) = self.end()?;
        let found_entries: u64 = counted.values().map(|used| used.live_refs).sum();
        if queue_count != queues.len() as u64 || entry_count != found_entries || segments != counted
        {
            return Err(ReadFailure::Bad("counts differ from the content"));
        }
        let len_bytes = self.at;
        Ok(Checkpoint {
            header,
            end,
            meta,
            meta_lsn,
            queues,
            segments,
            len_bytes,
        })
    }

    fn header(&mut self, store: StoreId, generation: u64) -> Result<CheckpointHeader, ReadFailure> {
        let bytes = self.take(head::SIZE as u64)?;
        let is_whole = head::MAGIC.get(bytes) == CHECKPOINT_MAGIC
            && is_crc_right(
                head::CRC.get_u32(bytes),
                crc32fast::hash(&bytes[..head::CRC.offset]),
            );
        if !is_whole {
            return Err(ReadFailure::Bad("the header is not whole"));
        }
        let min_reader = head::MIN_READER.get_u32(bytes);
        if min_reader > FORMAT_VERSION {
            return Err(ReadFailure::Newer(min_reader));
        }
        let is_ours = bytes[head::STORE_ID.offset..head::STORE_ID.end()] == store.0
            && head::GENERATION.get(bytes) == generation;
        if !is_ours {
            return Err(ReadFailure::Bad("the header belongs to another file"));
        }
        Ok(CheckpointHeader {
            generation,
            epoch: head::EPOCH.get(bytes),
            begin: Lsn(head::BEGIN.get(bytes)),
            created_at_ms: head::CREATED_AT.get(bytes),
        })
    }

    fn meta(&mut self) -> Result<(Vec<u8>, Lsn), ReadFailure> {
        let (_, _, len) = self.section(Some(section_kind::META))?;
        let body_len = len
            .checked_sub(meta_section::SIZE as u64)
            .ok_or(ReadFailure::Bad("the META section is too short"))?;
        let last_lsn = Lsn(meta_section::LAST_LSN.get(self.take(meta_section::SIZE as u64)?));
        let meta = self.take(body_len)?.to_vec();
        self.take(align_up(len) - len)?;
        Ok((meta, last_lsn))
    }

    fn queue(
        &mut self,
        flags: u32,
        len: u64,
        counted: &mut SegmentTable,
    ) -> Result<QueueImage, ReadFailure> {
        if flags & !queue_flag::KNOWN != 0 {
            return Err(ReadFailure::Bad("unknown flags of a queue"));
        }
        let size = if flags & queue_flag::WIDE_ENTRIES == 0 {
            narrow_entry::SIZE
        } else {
            wide_entry::SIZE
        } as u64;
        let rest_len = len
            .checked_sub(queue_section::SIZE as u64)
            .ok_or(ReadFailure::Bad("a QUEUE section is too short"))?;
        let bytes = self.take(queue_section::SIZE as u64)?;
        let mut image = QueueImage {
            id: QueueId(queue_section::QUEUE.get(bytes)),
            last_lsn: Lsn(queue_section::LAST_LSN.get(bytes)),
            next_seq: Seq(queue_section::NEXT_SEQ.get(bytes)),
            reserved_upto: Seq(queue_section::RESERVED_UPTO.get(bytes)),
            entries: Entries::default(),
            runs: Vec::new(),
        };
        let (count, runs) = if flags & queue_flag::RUNS == 0 {
            if !rest_len.is_multiple_of(size) {
                return Err(ReadFailure::Bad("a QUEUE section holds a part of an entry"));
            }
            (rest_len / size, None)
        } else {
            let (entry_count, run_count, runs_len) = self.run_counts(rest_len, size)?;
            (entry_count, Some((run_count, runs_len)))
        };
        image
            .entries
            .reserve(usize::try_from(count).map_err(|_| ReadFailure::Bad("too many entries"))?);
        let mut previous = Seq(0);
        for index in 0..count {
            let entry = decode_entry(self.take(size)?)?;
            let is_in_order = (index == 0 || previous < entry.seq) && entry.seq < image.next_seq;
            if !is_in_order {
                return Err(ReadFailure::Bad("entries are not in order"));
            }
            previous = entry.seq;
            count_entry(counted, &entry);
            image.entries.insert(entry);
        }
        if let Some((count, len)) = runs {
            self.runs(count, len, &mut image, counted)?;
        }
        Ok(image)
    }

    /// How many entries and runs a queue has in `rest_len` bytes, and how long the runs are.
    fn run_counts(&mut self, rest_len: u64, size: u64) -> Result<(u64, u64, u64), ReadFailure> {
        let short = ReadFailure::Bad("a QUEUE section is shorter than its counts say");
        let Some(behind) = rest_len.checked_sub(run_counts::SIZE as u64) else {
            return Err(short);
        };
        let bytes = self.take(run_counts::SIZE as u64)?;
        let entry_count = run_counts::ENTRY_COUNT.get(bytes);
        let run_count = run_counts::RUN_COUNT.get(bytes);
        let entries_len = entry_count.checked_mul(size);
        match entries_len.and_then(|len| behind.checked_sub(len)) {
            Some(runs_len) => Ok((entry_count, run_count, runs_len)),
            None => Err(short),
        }
    }

    /// Reads `count` runs in exactly `len` bytes.
    fn runs(
        &mut self,
        count: u64,
        len: u64,
        image: &mut QueueImage,
        counted: &mut SegmentTable,
    ) -> Result<(), ReadFailure> {
        let end = self.at + len;
        for _ in 0..count {
            let head = run_codec::Head::decode(self.take(run_head::SIZE as u64)?)
                .ok_or(ReadFailure::Bad("a run has an impossible field"))?;
            let rest = self.take(head.rest_len() as u64)?;
            let run = head
                .finish(rest)
                .ok_or(ReadFailure::Bad("a run contradicts itself"))?;
            let last = run.live_seqs().last();
            let is_in_order = image
                .runs
                .last()
                .is_none_or(|last| last.number < run.number)
                && last.is_some_and(|last| last < image.next_seq);
            let mut packed = image.entries.range(run.range());
            let is_twice = packed.any(|entry| run.live.contains(FiledRun::index_of(entry.seq)));
            if !is_in_order || is_twice || self.at > end {
                return Err(ReadFailure::Bad("runs are not in order"));
            }
            count_run(counted, &run);
            image.runs.push(run);
        }
        if self.at == end {
            Ok(())
        } else {
            Err(ReadFailure::Bad("a QUEUE section holds a part of a run"))
        }
    }

    fn segments(&mut self, len: u64) -> Result<SegmentTable, ReadFailure> {
        let mut table = SegmentTable::new();
        let mut remaining = len;
        while remaining >= segment_entry::SIZE as u64 {
            let bytes = self.take(segment_entry::SIZE as u64)?;
            let used = SegmentUse {
                live_refs: segment_entry::LIVE_REFS.get(bytes),
                live_bytes: segment_entry::LIVE_BYTES.get(bytes),
            };
            table.insert(SegmentId(segment_entry::SEGMENT.get(bytes)), used);
            remaining -= segment_entry::SIZE as u64;
        }
        if remaining > 0 {
            Err(ReadFailure::Bad(
                "the SEGMENTS section holds a part of an entry",
            ))
        } else {
            Ok(table)
        }
    }

    fn end(&mut self) -> Result<(Lsn, u64, u64), ReadFailure> {
        let (_, _, len) = self.section(Some(section_kind::END))?;
        let before_crc = end_section::CRC.offset as u64;
        if len != end_section::SIZE as u64 {
            return Err(ReadFailure::Bad("the END section has a wrong length"));
        }
        let bytes = self.take(before_crc)?;
        let end = Lsn(end_section::END.get(bytes));
        let counts = (
            end_section::QUEUE_COUNT.get(bytes),
            end_section::ENTRY_COUNT.get(bytes),
        );
        let file_len = end_section::FILE_LEN.get(bytes);
        let computed = self.crc.clone().finalize();
        let stored = self
            .take(end_section::CRC.size as u64)?
            .first_chunk()
            .copied()
            .map(u32::from_le_bytes);
        if !stored.is_some_and(|stored| is_crc_right(stored, computed)) {
            return Err(ReadFailure::Bad("the checksum is wrong"));
        }
        if file_len != self.at || self.window.file_len() != self.at {
            return Err(ReadFailure::Bad("the file has another length"));
        }
        Ok((end, counts.0, counts.1))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the fields have one byte")]
fn decode_entry(bytes: &[u8]) -> Result<ImageEntry, ReadFailure> {
    use wide_entry as at;
    let flags = at::FLAGS.get(bytes) as u8;
    let position = Position {
        lsn: Lsn(at::LSN.get(bytes)),
        len_bytes: at::LEN.get_u32(bytes),
    };
    if flags & !entry_flag::KNOWN != 0 || position.len_bytes == 0 {
        return Err(ReadFailure::Bad("an entry has an impossible field"));
    }
    let is_wide = bytes.len() == at::SIZE;
    Ok(ImageEntry {
        seq: Seq(at::SEQ.get(bytes)),
        position,
        expires_at_ms: if is_wide {
            at::EXPIRES_AT.get(bytes)
        } else {
            0
        },
        priority: at::PRIORITY.get(bytes) as u8,
        delivery_count: if is_wide {
            at::DELIVERY_COUNT.get_u32(bytes)
        } else {
            0
        },
        is_redelivered: flags & entry_flag::REDELIVERED != 0,
    })
}

/// Paths of all files in the checkpoint directory other than the checkpoint `generation`: leftovers.
///
/// # Errors
/// Those of the disk.
pub(crate) fn leftovers(disk: &dyn Disk, generation: u64) -> Result<Vec<PathBuf>, StorageError> {
    let dir = Path::new(super::format::CHECKPOINT_DIR);
    let kept = checkpoint_path(generation);
    let names = super::file::list_or_empty(disk, dir)?;
    Ok(names
        .into_iter()
        .map(|name| dir.join(name))
        .filter(|path| *path != kept)
        .collect())
}
