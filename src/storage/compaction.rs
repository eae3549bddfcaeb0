//! Copy-forward compaction: the last messages of nearly empty segments move together, so that their segments go.
//!
//! ```text
//!   segment 7  [..........m1......]  --copy-->  cold 1 [m1][m2][m3]      segments 7 and 9 have no live ref in the
//!   segment 9  [.m2...........m3..]                                      next checkpoint, and are freed by it
//!
//! t1 read and verify records, t2 write them to a cold segment, t3 sync it and its name, t4 the owner swaps positions,
//! queue by queue, t5 the next checkpoint names the new ones, t6 the old segments are freed
//! crash before t5 -> the old positions count again, their segments are there; the copies are garbage
//! crash after t5  -> the new positions count; what t6 did not free is freed later
//! ```
//! No record says that a message moved. It would have to be durable before the old segment goes, and so has the
//! checkpoint, which says the same: nothing between two checkpoints depends on where a message lies.
//!
//! 1. A record is copied only if it verifies as for a delivery. A damaged one stays where it is and keeps its segment.
//! 2. A position is swapped only if it still is the old one, under the lock of its queue.
//! 3. A reader on its way to the old place finds it there until the next checkpoint; then it is told `Freed`.
//! 4. Cold segments have numbers of their own, above all of the log's: bit 33 is set. They have no successor and no
//!    place in the chain; replay never reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::CheckpointSource;
use super::batch::{BatchBody, BatchHeader};
use super::checkpoint::SegmentTable;
use super::engine::Storage;
use super::error::StorageError;
use super::file::{io_error, room_error, write_all};
use super::format::{LOG_DIR, SEGMENT_END_MAX, segment_path};
use super::index::block;
use super::read::check_record;
use super::record::{Entry, Record, decode};
use super::reserve::with_room;
use super::run::FiledRun;
use super::segment::{FIRST_BATCH_OFFSET, SegmentHeader};
use super::shared::Shared;
use super::types::{ImageEntry, Lsn, Move, Position, QueueId, Ref, Request, SegmentId, Seq};
use crate::disk::DiskFile;
use crate::sync::lock;

/// A segment with no more than this part of it alive is a candidate.
const LIVE_PERCENT_MAX: u64 = 25;
/// The same while the disk is low.
const LIVE_PERCENT_MAX_LOW: u64 = 50;
/// A batch of a cold segment is closed once it is as long.
const BATCH_BYTES: u64 = 1 << 20;

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Segments whose messages were looked for.
    pub segment_count: u64,
    /// Messages that have a new place; one in two queues counts twice.
    pub moved_count: u64,
    /// Bytes of records copied.
    pub copied_bytes: u64,
    /// Records that could not be copied, because they do not verify.
    pub damaged_count: u64,
}

/// What compaction knows between its passes. Guarded by the lock of checkpoints.
#[derive(Default)]
pub(crate) struct Compactor {
    /// Live refs by segment, of the newest checkpoint.
    table: SegmentTable,
    /// Where its replay begins: older segments are closed.
    begin: SegmentId,
    /// Segments looked at since that checkpoint.
    tried: BTreeSet<SegmentId>,
    /// The cold segment being filled.
    cold: Option<Cold>,
}

impl Compactor {
    /// A checkpoint is durable.
    pub(crate) fn checkpointed(&mut self, table: &SegmentTable, begin: SegmentId) {
        self.table.clone_from(table);
        self.begin = begin;
        self.tried.clear();
    }

    /// The cold segment that is not to be freed, because more will be written to it.
    pub(crate) fn open_segment(&self) -> Option<SegmentId> {
        self.cold.as_ref().map(|cold| cold.header.segment)
    }

    /// Bytes of live records, as the newest checkpoint counts them.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.table.values().map(|used| used.live_bytes).sum()
    }

    /// Segments to empty, the emptiest first; together they hold about `max_bytes` of live records.
    fn candidates(&self, shared: &Shared, is_low: bool, max_bytes: u64) -> BTreeSet<SegmentId> {
        let percent_max = if is_low {
            LIVE_PERCENT_MAX_LOW
        } else {
            LIVE_PERCENT_MAX
        };
        let existing = lock(&shared.segments).clone();
        let is_closed = |segment: &SegmentId| {
            let is_open = self.open_segment() == Some(*segment);
            (segment.is_cold() && !is_open) || *segment < self.begin
        };
        let mut found: Vec<(u64, SegmentId)> = existing
            .into_iter()
            .filter(|segment| is_closed(segment) && !self.tried.contains(segment))
            .filter_map(|segment| {
                let live_bytes = self.table.get(&segment)?.live_bytes;
                let len_bytes = shared.files.get(segment).and_then(|file| file.len()).ok()?;
                let is_nearly_empty =
                    live_bytes.saturating_mul(100) <= len_bytes.saturating_mul(percent_max);
                is_nearly_empty.then_some((live_bytes, segment))
            })
            .collect();
        found.sort_unstable();
        let mut sum_bytes = 0;
        let fitting = found.into_iter().take_while(|(live_bytes, _)| {
            let is_first = sum_bytes == 0;
            sum_bytes += live_bytes;
            is_first || sum_bytes <= max_bytes
        });
        fitting.map(|(_, segment)| segment).collect()
    }
}

/// A record to be copied, and who refers to it.
struct Wanted {
    position: Position,
    named: (QueueId, Seq),
}

/// A filed run with messages in the segments that are being emptied.
struct WantedRun {
    queue: QueueId,
    run: FiledRun,
    entries: Vec<ImageEntry>,
}

/// All that is to be moved.
#[derive(Default)]
struct Found {
    records: BTreeMap<Lsn, Wanted>,
    entries: BTreeMap<QueueId, Vec<ImageEntry>>,
    runs: Vec<WantedRun>,
}

impl Storage {
    /// Makes one pass: empties segments of which little is alive, about `max_bytes` of it, by moving that to cold
    /// segments. They are freed by the next checkpoint, which becomes due. Blocks; like a checkpoint, and never at the
    /// same time.
    ///
    /// # Errors
    /// Those of the disk: nothing has moved. `Stopped` when the engine has failed.
    pub fn compact(
        &self,
        source: &dyn CheckpointSource,
        is_low: bool,
        max_bytes: u64,
    ) -> Result<Compacted, StorageError> {
        let mut checkpoints = self.checkpoints();
        let shared = self.shared();
        shared.check_not_failed()?;
        let compactor = &mut checkpoints.compactor;
        let segments = compactor.candidates(shared, is_low, max_bytes);
        let mut done = Compacted {
            segment_count: segments.len() as u64,
            ..Compacted::default()
        };
        if segments.is_empty() {
            return Ok(done);
        }
        compactor.tried.extend(&segments);
        let found = self.find(source, &segments);
        // After an error the file is left alone: a sync of it may have failed. The next checkpoint frees it.
        let mut cold = compactor.cold.take();
        let places = copy_all(shared, &mut cold, &found.records, &mut done)?;
        compactor.cold = cold;
        if !places.is_empty() {
            self.swap(source, found, &places, &mut done)?;
            self.note_moved();
        }
        let mut stats = lock(&shared.stats);
        stats.compacted_bytes += done.copied_bytes;
        stats.compacted_segment_count += done.segment_count;
        drop(stats);
        tracing::info!(?done, "moved messages out of nearly empty segments");
        Ok(done)
    }

    fn find(&self, source: &dyn CheckpointSource, segments: &BTreeSet<SegmentId>) -> Found {
        let mut found = Found::default();
        let mut note = |queue: QueueId, entry: &ImageEntry| {
            let position = entry.position;
            if segments.contains(&position.lsn.segment()) {
                let named = (queue, entry.seq);
                let wanted = Wanted { position, named };
                found.records.entry(position.lsn).or_insert(wanted);
            }
        };
        for queue in source.queue_ids() {
            let (entries, runs) = source.refs_in(queue, segments);
            entries.iter().for_each(|entry| note(queue, entry));
            if !entries.is_empty() {
                found.entries.insert(queue, entries);
            }
            for run in runs {
                match self.read_run(queue, &run) {
                    Ok(entries) => {
                        entries.iter().for_each(|entry| note(queue, entry));
                        let wanted = WantedRun {
                            queue,
                            run,
                            entries,
                        };
                        found.runs.push(wanted);
                    }
                    Err(error) => {
                        tracing::warn!(%error, %queue, "cannot move the messages of a run");
                    }
                }
            }
        }
        found
    }

    /// Tells the owner of the new places.
    fn swap(
        &self,
        source: &dyn CheckpointSource,
        found: Found,
        places: &BTreeMap<Lsn, Position>,
        done: &mut Compacted,
    ) -> Result<(), StorageError> {
        for (queue, entries) in found.entries {
            let moves: Vec<Move> = entries
                .iter()
                .filter_map(|entry| {
                    Some(Move {
                        seq: entry.seq,
                        from: entry.position,
                        to: *places.get(&entry.position.lsn)?,
                    })
                })
                .collect();
            done.moved_count += moves.len() as u64;
            source.relocate(queue, &moves);
        }
        for wanted in found.runs {
            done.moved_count += self.refile(source, wanted, places)?;
        }
        Ok(())
    }

    /// Writes a run anew, with the new places of its messages; gives their number.
    fn refile(
        &self,
        source: &dyn CheckpointSource,
        wanted: WantedRun,
        places: &BTreeMap<Lsn, Position>,
    ) -> Result<u64, StorageError> {
        let shared = self.shared();
        let mut entries = wanted.entries;
        let mut count = 0;
        for entry in &mut entries {
            if let Some(place) = places.get(&entry.position.lsn) {
                entry.position = *place;
                count += 1;
            }
        }
        let encoded = block::encode(shared.store, wanted.queue, &entries).filter(|_| count > 0);
        let Some((block, run)) = encoded else {
            return Ok(0);
        };
        let run = FiledRun {
            content_bytes: wanted.run.content_bytes,
            ..run
        };
        let mut blocks = [(block, run)];
        shared.index.write_new(wanted.queue, &mut blocks)?;
        let [(_, run)] = blocks;
        source.refile(wanted.queue, &wanted.run, run);
        Ok(count)
    }
}

/// Copies records into cold segments; gives their new places once these are durable.
fn copy_all(
    shared: &Shared,
    cold: &mut Option<Cold>,
    records: &BTreeMap<Lsn, Wanted>,
    done: &mut Compacted,
) -> Result<BTreeMap<Lsn, Position>, StorageError> {
    let mut places = BTreeMap::new();
    for wanted in records.values() {
        let Some(record) = read_record(shared, wanted) else {
            done.damaged_count += 1;
            continue;
        };
        let lsn = wanted.position.lsn;
        let Ok(Record::Publish(publish)) = decode(&record, lsn) else {
            continue;
        };
        let refs: Vec<Ref> = publish.refs.iter().collect();
        let payload = [Bytes::copy_from_slice(publish.payload)];
        let request = Request::Publish {
            refs: &refs,
            priority: publish.priority,
            time_ms: publish.time_ms,
            payload: &payload,
            payload_crc: publish.payload_crc,
        };
        let entry = Entry::Request(&request);
        if cold
            .as_ref()
            .is_some_and(|cold| !cold.has_room(shared, &entry))
            && let Some(mut full) = cold.take()
        {
            full.finish(shared)?;
        }
        let target = match cold {
            Some(target) => target,
            None => cold.insert(Cold::create(shared)?),
        };
        places.insert(lsn, target.push(shared, &entry)?);
        done.copied_bytes += u64::from(wanted.position.len_bytes);
    }
    if let Some(cold) = cold {
        cold.finish(shared)?;
    }
    Ok(places)
}

/// The record, if it verifies; keeps (1).
fn read_record(shared: &Shared, wanted: &Wanted) -> Option<Vec<u8>> {
    let Position { lsn, len_bytes } = wanted.position;
    let mut record = vec![0; usize::try_from(len_bytes).ok()?];
    let file = shared.files.get(lsn.segment());
    let read = file.and_then(|file| file.read_at(&mut record, u64::from(lsn.offset())));
    let (queue, seq) = wanted.named;
    let verified = read.map_err(|error| error.to_string()).and_then(|count| {
        record.truncate(count);
        check_record(&record, queue, seq, wanted.position).map(drop)
    });
    if let Err(reason) = &verified {
        tracing::error!(%queue, seq = seq.0, %lsn, reason, "a damaged message cannot be moved; it keeps its segment");
    }
    verified.is_ok().then_some(record)
}

/// A cold segment being filled.
struct Cold {
    header: SegmentHeader,
    file: Arc<dyn DiskFile>,
    body: BatchBody,
    previous_crc: u32,
    /// Its name is not durable yet.
    is_new: bool,
    is_dirty: bool,
}

impl Cold {
    fn create(shared: &Shared) -> Result<Self, StorageError> {
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
    fn has_room(&self, shared: &Shared, entry: &Entry<'_>) -> bool {
        let limit = shared.options.segment_size_bytes.min(SEGMENT_END_MAX);
        let end = u64::from(self.body.base.offset()) + self.body.len_bytes + entry.len_bytes();
        end <= limit || self.body.base.offset() == FIRST_BATCH_OFFSET
    }

    fn push(&mut self, shared: &Shared, entry: &Entry<'_>) -> Result<Position, StorageError> {
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
    fn finish(&mut self, shared: &Shared) -> Result<(), StorageError> {
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
