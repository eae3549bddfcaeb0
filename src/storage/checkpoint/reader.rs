//! Reading a checkpoint, and believing nothing of it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::{Checkpoint, CheckpointHeader, SegmentTable, SegmentUse, count_entry, count_run};
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::storage::error::StorageError;
use crate::storage::file::{damaged, io_error};
use crate::storage::format::{
    CHECKPOINT_MAGIC, FORMAT_VERSION, StoreId, align_up, checkpoint_header as head,
    checkpoint_path, end_section, entry_flag, is_crc_right, meta_section, narrow_entry, queue_flag,
    queue_section, run_counts, section_header, section_kind, segment_entry, wide_entry,
};
use crate::storage::image::{Entries, QueueImage};
use crate::storage::run::FiledRun;
use crate::storage::run_codec::Form;
use crate::storage::scan::Window;
use crate::storage::types::{ImageEntry, Lsn, Position, QueueId, SegmentId, Seq};

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

/// How a queue's runs are written; `None` when it has none.
fn form_of(flags: u32) -> Result<Option<Form>, ReadFailure> {
    match flags & (queue_flag::RUNS | queue_flag::LONG_RUNS) {
        0 => Ok(None),
        queue_flag::RUNS => Ok(Some(Form::Short)),
        queue_flag::LONG_RUNS => Ok(Some(Form::Long)),
        _ => Err(ReadFailure::Bad("runs in two forms")),
    }
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
        let (count, runs) = if let Some(form) = form_of(flags)? {
            let (entry_count, run_count, runs_len) = self.run_counts(rest_len, size)?;
            (entry_count, Some((form, run_count, runs_len)))
        } else {
            if !rest_len.is_multiple_of(size) {
                return Err(ReadFailure::Bad("a QUEUE section holds a part of an entry"));
            }
            (rest_len / size, None)
        };
        image
            .entries
            .reserve(usize::try_from(count).map_err(|_| ReadFailure::Bad("too many entries"))?);
        let mut previous = Seq(0);
        for index in 0..count {
            let entry = decode_entry(self.take(size)?)?;
            let is_in_order =
                (index == 0 || previous < entry.seq) && entry.seq.is_within(image.next_seq);
            if !is_in_order {
                return Err(ReadFailure::Bad("entries are not in order"));
            }
            previous = entry.seq;
            count_entry(counted, &entry);
            image.entries.insert(entry);
        }
        if let Some((form, count, len)) = runs {
            self.runs(form, count, len, &mut image, counted)?;
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
        form: Form,
        count: u64,
        len: u64,
        image: &mut QueueImage,
        counted: &mut SegmentTable,
    ) -> Result<(), ReadFailure> {
        let end = self.at + len;
        let head_len = form.head_len() as u64;
        if count > len / head_len {
            return Err(ReadFailure::Bad("more runs than fit the QUEUE section"));
        }
        let count = usize::try_from(count).map_err(|_| ReadFailure::Bad("too many runs"))?;
        image.runs.reserve_exact(count);
        for _ in 0..count {
            let head = form
                .decode_head(self.take(head_len)?)
                .ok_or(ReadFailure::Bad("a run has an impossible field"))?;
            let rest = self.take(head.rest_len() as u64)?;
            let run = head
                .finish(rest)
                .ok_or(ReadFailure::Bad("a run contradicts itself"))?;
            let previous = image.runs.last();
            let is_in_order = previous.is_none_or(|previous| previous.number < run.number)
                && run
                    .live_range()
                    .is_some_and(|live| live.last.is_within(image.next_seq));
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
