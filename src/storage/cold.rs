//! A cold segment: where messages go that were moved out of the log.
//!
//! It looks like a segment of the log, with batches of its own, and is written by compaction alone: filled over many
//! passes, synced at the end of each. Its space may come from the reserve, as everything that frees more than it takes.

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;

use super::batch::{BatchBody, BatchHeader};
use super::error::StorageError;
use super::file::{io_error, room_error, write_all};
use super::format::{LOG_DIR, SEGMENT_END_MAX, segment_path};
use super::record::Entry;
use super::reserve::with_room;
use super::segment::{FIRST_BATCH_OFFSET, SegmentHeader};
use super::shared::Shared;
use super::types::{Lsn, Position, SegmentId};
use crate::disk::DiskFile;
use crate::sync::lock;

/// A batch of a cold segment is closed once it is as long.
const BATCH_BYTES: u64 = 1 << 20;

/// A cold segment being filled.
pub(crate) struct Cold {
    header: SegmentHeader,
    file: Arc<dyn DiskFile>,
    body: BatchBody,
    previous_crc: u32,
    /// Its name is not durable yet.
    is_new: bool,
    is_dirty: bool,
}

impl Cold {
    /// Its number.
    pub(crate) fn segment(&self) -> SegmentId {
        self.header.segment
    }

    /// Makes the next one.
    pub(crate) fn create(shared: &Shared) -> Result<Self, StorageError> {
        let last = lock(&shared.segments)
            .last()
            .copied()
            .filter(|segment| segment.is_cold());
        let header = SegmentHeader {
            store: shared.store,
            segment: last.map_or(SegmentId::FIRST_COLD, |last| SegmentId(last.0 + 1)),
            epoch: shared.epoch,
            created_at_ms: shared.clock.unix_ms(),
            is_recycled: false,
        };
        let path = segment_path(header.segment);
        let file = with_room(&shared.space, || {
            super::pool::create(&*shared.disk, &path).map_err(room_error(
                &*shared.disk,
                "create a cold segment",
                &path,
            ))
        })?;
        with_room(&shared.space, || {
            write_all(&*file, &header.encode(), 0).map_err(room_error(
                &*shared.disk,
                "write a segment header",
                &path,
            ))
        })?;
        lock(&shared.segments).insert(header.segment);
        let mut body = BatchBody::new(header.first_batch());
        body.push(&Entry::Open {
            predecessor_end: Lsn(0),
            epoch: header.epoch,
        });
        Ok(Self {
            header,
            file,
            body,
            previous_crc: 0,
            is_new: true,
            is_dirty: true,
        })
    }

    /// False when the record belongs into the next one. One that is larger than a segment makes a longer one.
    pub(crate) fn has_room(&self, shared: &Shared, entry: &Entry<'_>) -> bool {
        let limit = shared.options.segment_size_bytes.min(SEGMENT_END_MAX);
        let end = u64::from(self.body.base.offset()) + self.body.len_bytes + entry.len_bytes();
        end <= limit || self.body.base.offset() == FIRST_BATCH_OFFSET
    }

    /// Adds a record; it is durable after [`Cold::finish`].
    pub(crate) fn push(
        &mut self,
        shared: &Shared,
        entry: &Entry<'_>,
    ) -> Result<Position, StorageError> {
        if self.body.len_bytes >= BATCH_BYTES || !self.body.has_room_for_externals(1) {
            self.write(shared)?;
        }
        Ok(self.body.push(entry))
    }

    fn write(&mut self, shared: &Shared) -> Result<(), StorageError> {
        if self.body.is_empty() {
            return Ok(());
        }
        let seed = self.header.seed();
        let mut header = BatchHeader {
            len_bytes: u32::try_from(self.body.len_bytes)
                .expect("a batch is shorter than a segment"),
            record_count: self.body.record_count,
            lsn: self.body.base,
            epoch: self.header.epoch,
            synced: Lsn(0),
            previous_crc: self.previous_crc,
            records_crc: self.body.records_crc(seed),
            crc: 0,
        };
        let header_bytes = header.encode(seed);
        let pieces: Vec<IoSlice<'_>> = std::iter::once(&header_bytes[..])
            .chain(self.body.pieces())
            .filter(|piece| !piece.is_empty())
            .map(IoSlice::new)
            .collect();
        let path = segment_path(self.header.segment);
        let offset = u64::from(self.body.base.offset());
        with_room(&shared.space, || {
            self.file.write_at(&pieces, offset).map_err(room_error(
                &*shared.disk,
                "write a cold segment",
                &path,
            ))
        })?;
        self.previous_crc = header.crc;
        self.is_dirty = true;
        let end = self.body.end();
        self.body.reset(end);
        Ok(())
    }

    /// Makes everything so far durable.
    pub(crate) fn finish(&mut self, shared: &Shared) -> Result<(), StorageError> {
        self.write(shared)?;
        let path = segment_path(self.header.segment);
        if std::mem::take(&mut self.is_dirty) {
            let synced = self.file.sync_all();
            synced.map_err(io_error(&*shared.disk, "sync a cold segment", &path))?;
        }
        if std::mem::take(&mut self.is_new) {
            let dir = Path::new(LOG_DIR);
            let synced = shared.disk.sync_dir(dir);
            synced.map_err(io_error(&*shared.disk, "sync the directory", dir))?;
        }
        Ok(())
    }
}
