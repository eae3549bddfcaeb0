//! Writing a checkpoint, section by section.

use std::io;
use std::sync::Arc;

use super::{CheckpointHeader, SegmentTable, count_entry, count_run};
use crate::disk::DiskFile;
use crate::storage::file::write_all;
use crate::storage::format::{
    CHECKPOINT_MAGIC, CHECKPOINT_MIN_READER_VERSION, FORMAT_VERSION, StoreId,
    checkpoint_header as head, end_section, entry_flag, meta_section, narrow_entry, queue_flag,
    queue_section, run_counts, section_header, section_kind, segment_entry, wide_entry,
};
use crate::storage::image::QueueImage;
use crate::storage::occupancy::{Fullest, note_fullest};
use crate::storage::run_codec;
use crate::storage::types::{ImageEntry, Lsn, QueueId};

/// Bytes gathered before they are written: bounds memory, whatever the size of a queue.
const WRITE_CHUNK_BYTES: usize = 1 << 20;

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
                entry.seq.is_within(image.next_seq),
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
