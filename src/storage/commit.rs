//! The commit thread's work, one step at a time.
//!
//! [`Committer::step`] looks at what is pending, asks [`schedule::decide`] what to do and does it. The thread
//! calls it in a loop; tests call it by hand, so that a simulated disk sees the same calls in every run.
//!
//! ```text
//! t1 take batches, t2 build headers, t3 pwritev, t4 fdatasync, t5 raise watermarks, t6 tell the listener
//! crash before t4 ends -> any part of the batch may be on disk; nobody was told: torn tail, or it survives
//! crash after t4       -> the batch is on disk; whether or not somebody was told
//! ```
//! 1. A watermark is sampled before the sync that proves it: `written_end` cannot move while the sync runs,
//!    because the same thread writes.
//! 2. A segment's first batch is written after everything before it was synced, and after the segment's header
//!    and name were. So a valid first batch proves that its predecessor is whole.
//! 3. A failed sync is never repeated: the kernel may have dropped the pages. A failed write into the cache is, once, with the
//!    same records at the same place; past the cache it counts as a failed sync. One that failed for lack of space is repeated until there is room: first the
//!    reserve gives some, then the owner has to; nothing is taken or confirmed meanwhile. One that lacks a file descriptor
//!    is repeated as well, and nothing is given for it.
//! 4. Whole blocks are written. The last, partly filled block is written again, with the same bytes in its first part, by
//!    the next batch: tearing it cannot change what was confirmed. See [`BlockWriter`].

use std::sync::Arc;
use std::time::Duration;

use super::CommitListener;
use super::batch::{BatchBody, BatchHeader};
use super::block_writer::{BlockWriter, block_span};
use super::error::StorageError;
use super::file::{io_error, room_error};
use super::format::{Seed, batch_header, segment_path};
use super::options::FsyncPolicy;
use super::reserve::{Need, is_full};
use super::schedule::{self, LAZY_WRITE_NS, MARK_AFTER_NS, MS, Plan, Since, Situation};
use super::segment::{FIRST_BATCH_OFFSET, SegmentHeader};
use super::shared::{Shared, Stop};
use super::types::{Lsn, SegmentId};
use crate::disk::DiskFile;
use crate::disk::fault::{self, Fault};
use crate::sync::lock;

/// Pause before the next attempt to write to a full disk.
const STALLED_PAUSE_NS: u64 = 50 * MS;

/// What the thread does after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another step.
    Step,
    /// Nothing to do before that time (`monotonic_ns`), or before something is pushed.
    Sleep { until_ns: Option<u64> },
    /// Nothing before that time, whatever is pushed: the disk is full.
    Stall { until_ns: u64 },
    /// The end.
    Stop,
}

/// What a write may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    Space,
    Descriptor,
}

/// A commit that waits for room.
#[derive(Clone, Copy, Debug)]
struct Stall {
    until_ns: u64,
    is_sync: bool,
}

/// Writes and syncs the log. Owned by the commit thread alone.
pub(crate) struct Committer {
    shared: Arc<Shared>,
    listener: Arc<dyn CommitListener>,
    segment: SegmentHeader,
    seed: Seed,
    writer: BlockWriter,
    /// The last segment that the pool was asked to prepare.
    requested: Option<SegmentId>,
    /// Batches taken to be written, and how many of them are.
    taken: Vec<Arc<BatchBody>>,
    written_count: usize,
    /// Something else waits to be written besides them.
    has_rest: bool,
    /// The disk was full.
    stall: Option<Stall>,
    /// It was, when the engine was being closed: nothing is written any more.
    has_given_up: bool,
    /// Header CRC of the last batch.
    previous_crc: u32,
    /// End of what was written.
    written_end: Lsn,
    /// The watermark in the newest header.
    recorded: Lsn,
    /// End of the last batch that held more than marks.
    data_end: Lsn,
    /// Something was written and not synced.
    is_dirty: bool,
    pending: Since,
    unsynced: Since,
    /// Record bytes written and not confirmed.
    unconfirmed_bytes: u64,
    last_sync_ns: u64,
    last_write_ns: u64,
    /// Since when lazy traffic may be pending that nobody told of.
    dozed_from_ns: Option<u64>,
}

impl Committer {
    /// Continues behind the OPEN batch of a fresh segment that recovery wrote: `open_batch` is that whole batch.
    pub(crate) fn new(
        shared: Arc<Shared>,
        listener: Arc<dyn CommitListener>,
        segment: SegmentHeader,
        file: Arc<dyn DiskFile>,
        open_batch: &[u8],
        header: &BatchHeader,
    ) -> Self {
        let end = header.end();
        let now = shared.clock.monotonic_ns();
        let mut writer = BlockWriter::new(&shared.options);
        writer.enter(file, &segment, open_batch);
        Self {
            shared,
            listener,
            segment,
            seed: segment.seed(),
            writer,
            requested: None,
            taken: Vec::new(),
            written_count: 0,
            has_rest: false,
            stall: None,
            has_given_up: false,
            previous_crc: header.crc,
            written_end: end,
            recorded: header.synced,
            data_end: header.synced,
            is_dirty: false,
            pending: Since::default(),
            unsynced: Since::default(),
            unconfirmed_bytes: 0,
            last_sync_ns: now,
            last_write_ns: now,
            dozed_from_ns: None,
        }
    }

    /// The body of the commit thread.
    pub(crate) fn run(mut self) {
        self.shared.set_thread(std::thread::current());
        loop {
            match self.step() {
                Ok(Next::Step) => {}
                Ok(Next::Sleep { until_ns }) => self.sleep(until_ns),
                Ok(Next::Stall { until_ns }) => {
                    let now_ns = self.shared.clock.monotonic_ns();
                    std::thread::sleep(Duration::from_nanos(until_ns.saturating_sub(now_ns)));
                }
                Ok(Next::Stop) => return,
                Err(error) => return self.fail(&error),
            }
        }
    }

    /// Tells everybody that no further commit will happen.
    pub(crate) fn fail(&self, error: &StorageError) {
        tracing::error!(%error, "the log cannot be committed; no further confirm is sent");
        self.shared.fail(error);
        self.listener.failed(error);
    }

    /// Sleeps. With nothing pending, a moment after a write, it dozes first: acknowledgements follow deliveries as a rule,
    /// and something that is waited for follows them. Being woken by lazy traffic just to see that there is time costs as
    /// much as being woken for a commit, so nobody tells of it; what came meanwhile counts as come at once.
    fn sleep(&mut self, until_ns: Option<u64>) {
        let now = self.shared.clock.monotonic_ns();
        let mut sleep = until_ns.map(|until| Duration::from_nanos(until.saturating_sub(now)));
        let seen = super::append::Pending {
            bytes: 0,
            is_any: self.pending.lazy_ns.is_some(),
            is_waited: self.pending.waited_ns.is_some(),
        };
        let is_doze = !seen.is_any && now < self.last_write_ns.saturating_add(LAZY_WRITE_NS);
        if is_doze {
            let doze = Duration::from_nanos(LAZY_WRITE_NS);
            sleep = Some(sleep.map_or(doze, |sleep| sleep.min(doze)));
            self.dozed_from_ns = Some(now);
        }
        self.shared.park(seen, is_doze, sleep);
    }

    /// Does the next thing.
    ///
    /// # Errors
    /// Any error is fatal: the caller must call [`Committer::fail`] and never step again.
    pub(crate) fn step(&mut self) -> Result<Next, StorageError> {
        let stop = self.shared.stop();
        if stop == Some(Stop::Abandon) || self.has_given_up {
            return Ok(Next::Stop);
        }
        self.shared.space.pool.check()?;
        let now_ns = self.shared.clock.monotonic_ns();
        if let Some(stall) = self.stall {
            if now_ns < stall.until_ns && !self.shared.is_closing() {
                let until_ns = stall.until_ns;
                return Ok(Next::Stall { until_ns });
            }
            self.commit(true, stall.is_sync)?;
            return Ok(Next::Step);
        }
        let pending = self.shared.pending();
        let lazy_from_ns = self.dozed_from_ns.take().unwrap_or(now_ns);
        self.pending.observe(pending, lazy_from_ns, now_ns);
        let is_drained = !pending.is_any && !self.is_dirty;
        if stop == Some(Stop::Drain) && is_drained {
            return Ok(Next::Stop);
        }
        let mut situation = self.situation(now_ns, pending.bytes);
        situation.is_forced |= stop.is_some();
        match schedule::decide(&situation) {
            Plan::Commit { is_write, is_sync } => self.commit(is_write, is_sync)?,
            Plan::Mark => {
                self.shared.push_mark();
                self.commit(true, true)?;
                self.rest();
            }
            Plan::Sleep { until_ns } => return Ok(Next::Sleep { until_ns }),
        }
        Ok(Next::Step)
    }

    /// The log was marked, so nothing was written for a while: gives back what long batches took. Without syncs it is marked
    /// behind a checkpoint.
    fn rest(&mut self) {
        lock(&self.shared.append).rest();
        self.writer.rest();
        self.shared.space.pool.rest();
    }

    fn situation(&self, now_ns: u64, pending_bytes: u64) -> Situation {
        let options = &self.shared.options;
        let is_mark_due =
            self.recorded < self.data_end && self.data_end <= self.shared.synced_lsn();
        Situation {
            now_ns,
            policy: options.fsync,
            delay_ns: options.commit_delay_us.saturating_mul(1_000),
            batch_max_bytes: options.commit_max_bytes,
            lazy_sync_ns: options.ack_fsync_ms.saturating_mul(MS),
            pending_bytes,
            pending: self.pending,
            unsynced: self.unsynced,
            last_sync_ns: self.last_sync_ns,
            is_forced: self.shared.is_forced(),
            is_full: self.shared.is_hurried(),
            mark_at_ns: is_mark_due.then(|| self.last_write_ns.saturating_add(MARK_AFTER_NS)),
        }
    }

    fn commit(&mut self, is_write: bool, is_sync: bool) -> Result<(), StorageError> {
        if is_write && let Some(lack) = self.write_pending()? {
            return self.begin_stall(is_sync, lack);
        }
        if self.stall.take().is_some() {
            self.shared.set_stalled(false);
            tracing::info!("the log goes on: what it waited for is there again");
        }
        if is_sync {
            self.sync()?;
        }
        let policy_end = match self.shared.options.fsync {
            FsyncPolicy::Never => self.written_end,
            FsyncPolicy::Always | FsyncPolicy::Interval { .. } => self.shared.synced_lsn(),
        };
        self.confirm(policy_end);
        Ok(())
    }

    /// Raises the confirm watermark to `end`, if it is all that was written (a watermark between, which a
    /// segment change proved, may wait for the rest of the commit).
    fn confirm(&mut self, end: Lsn) {
        if end != self.written_end || end <= self.shared.confirm_lsn() {
            return;
        }
        self.shared
            .set_confirmed(end, std::mem::take(&mut self.unconfirmed_bytes));
        self.listener.committed(end);
        self.shared.tell_of_room();
    }

    /// The disk is full and there is no reserve left, or there is no descriptor: the batches stay as they are and are written again later.
    /// Nor does anybody wait when the engine is being closed: then they stay unconfirmed, and the log ends before them.
    fn begin_stall(&mut self, is_sync: bool, lack: Lack) -> Result<(), StorageError> {
        if self.stall.is_none() {
            self.shared.set_stalled(true);
            match lack {
                Lack::Space => tracing::error!(
                    "the disk is full and the reserve is used up; commits wait for room"
                ),
                Lack::Descriptor => {
                    tracing::error!("out of file descriptors; commits wait for one");
                }
            }
        }
        if self.shared.is_closing() {
            let path = segment_path(self.segment.segment);
            self.has_given_up = true;
            self.sync()?;
            self.shared.give_up(self.shared.disk.describe(&path));
        }
        let now_ns = self.shared.clock.monotonic_ns();
        self.stall = Some(Stall {
            until_ns: now_ns.saturating_add(STALLED_PAUSE_NS),
            is_sync,
        });
        Ok(())
    }

    /// Writes what is pending, or tells what it lacks: then it goes on where it ended.
    fn write_pending(&mut self) -> Result<Option<Lack>, StorageError> {
        if self.taken.is_empty() {
            let max_bytes = self.shared.options.commit_max_bytes.max(1);
            let mut append = lock(&self.shared.append);
            self.taken = append.take(max_bytes);
            self.has_rest = append.pending().is_any;
            self.written_count = 0;
        }
        while let Some(batch) = self.taken.get(self.written_count).cloned() {
            match self.try_write(&batch) {
                Ok(()) => self.written_count += 1,
                Err(StorageError::Full { .. }) if self.make_room() => {}
                Err(StorageError::Full { .. }) => return Ok(Some(Lack::Space)),
                Err(StorageError::NoDescriptor { .. }) => return Ok(Some(Lack::Descriptor)),
                Err(error) => return Err(error),
            }
        }
        let batches = std::mem::take(&mut self.taken);
        // In this order: who finds a record no longer among the pending ones must see that it is in the file.
        self.shared.set_written(self.written_end);
        lock(&self.shared.append).set_written();
        self.note_written(&batches, self.has_rest);
        let mut append = lock(&self.shared.append);
        for batch in batches {
            append.recycle(batch);
        }
        Ok(None)
    }

    fn try_write(&mut self, batch: &BatchBody) -> Result<(), StorageError> {
        if batch.base.segment() != self.segment.segment {
            self.enter_segment(batch.base)?;
        }
        self.write_batch(batch)
    }

    /// Frees some space; the owner hears of it first, so that nobody publishes into the reserve.
    fn make_room(&self) -> bool {
        self.listener.short_of_space();
        self.shared.space.make_room(Need::Commit)
    }

    /// Takes note of a write; what it left behind has been waiting as long as what it took.
    fn note_written(&mut self, batches: &[Arc<BatchBody>], has_rest: bool) {
        if batches.is_empty() {
            return;
        }
        self.last_write_ns = self.shared.clock.monotonic_ns();
        self.unsynced.merge(self.pending);
        if !has_rest {
            self.pending = Since::default();
        }
        let mut stats = lock(&self.shared.stats);
        stats.commit_count += 1;
        stats.written_bytes += self.writer.take_ahead_bytes();
        for batch in batches {
            stats.batch_count += 1;
            stats.record_count += u64::from(batch.record_count);
            stats.message_count += u64::from(batch.message_count);
            stats.batch_bytes += batch.len_bytes;
            stats.written_bytes += block_span(batch.base.offset(), batch.len_bytes);
            self.unconfirmed_bytes += batch.len_bytes - batch_header::SIZE as u64;
        }
    }

    /// Ends the current segment and enters the next one, see invariant 2. It is prepared as a rule.
    fn enter_segment(&mut self, first_batch: Lsn) -> Result<(), StorageError> {
        if fault::is_active(Fault::SwapSegments) {
            fault::put_off_sync(self.writer.file());
        } else if self.is_dirty {
            self.sync()?;
        }
        let (prepared, was_ready) = self
            .shared
            .space
            .pool
            .take(self.header_of(first_batch.segment()))?;
        self.segment = prepared.header;
        self.seed = self.segment.seed();
        self.writer.enter(prepared.file, &self.segment, &[]);
        lock(&self.shared.segments).insert(self.segment.segment);
        {
            let mut stats = lock(&self.shared.stats);
            stats.entered_segment_count += 1;
            stats.prepared_segment_count += u64::from(was_ready);
            stats.recycled_segment_count += u64::from(self.segment.is_recycled);
        }
        assert_eq!(
            first_batch.offset(),
            FIRST_BATCH_OFFSET,
            "a segment begins with its first batch"
        );
        self.written_end = first_batch;
        tracing::debug!(segment = %self.segment.segment, "opened segment");
        Ok(())
    }

    /// The header of another segment of this incarnation.
    fn header_of(&self, segment: SegmentId) -> SegmentHeader {
        SegmentHeader {
            segment,
            created_at_ms: self.shared.clock.unix_ms(),
            is_recycled: false,
            ..self.segment
        }
    }

    /// Has the next segment prepared once this one is half full: so a store that hardly writes has only one.
    fn request_next_segment(&mut self) {
        let half = self.shared.options.segment_size_bytes / 2;
        let next = SegmentId(self.segment.segment.0 + 1);
        if u64::from(self.written_end.offset()) >= half && self.requested != Some(next) {
            self.requested = Some(next);
            self.shared.space.want_whole_reserve();
            // On a full disk it would take what was just given.
            if !self.shared.space.is_short() {
                self.shared.space.pool.request(self.header_of(next));
            }
        }
    }

    fn write_batch(&mut self, batch: &BatchBody) -> Result<(), StorageError> {
        assert_eq!(
            batch.base, self.written_end,
            "batches are written where they were promised"
        );
        let mut header = BatchHeader {
            len_bytes: u32::try_from(batch.len_bytes).expect("a batch is shorter than a segment"),
            record_count: batch.record_count,
            lsn: batch.base,
            epoch: self.segment.epoch,
            synced: self.shared.synced_lsn(),
            previous_crc: self.previous_crc,
            records_crc: batch.records_crc(self.seed),
            crc: 0,
        };
        let header_bytes = header.encode(self.seed);
        self.write_blocks(&header_bytes, batch)?;
        self.previous_crc = header.crc;
        self.recorded = header.synced;
        self.written_end = batch.end();
        self.is_dirty = true;
        if batch.has_data {
            self.data_end = batch.end();
        }
        self.request_next_segment();
        Ok(())
    }

    fn write_blocks(&mut self, header: &[u8], batch: &BatchBody) -> Result<(), StorageError> {
        // On a full disk nothing is taken ahead.
        let may_take_ahead = !self.shared.space.is_short();
        let offset = batch.base.offset();
        let written = self
            .writer
            .write(header, batch.pieces(), offset, may_take_ahead)
            .or_else(|error| {
                // Past the cache it is the device that failed: as with a sync, nothing is known about the write.
                if is_full(&error) || self.writer.is_direct() {
                    return Err(error);
                }
                tracing::warn!(%error, segment = %self.segment.segment, "a write failed, trying once more");
                self.writer.write(header, batch.pieces(), offset, false)
            });
        written.map_err(|error| {
            let path = segment_path(self.segment.segment);
            room_error(&*self.shared.disk, "write a batch", &path)(error)
        })
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        if self.is_dirty {
            let begun_ns = self.shared.clock.monotonic_ns();
            self.writer.file().sync_data().map_err(|error| {
                let path = segment_path(self.segment.segment);
                io_error(&*self.shared.disk, "sync the log", &path)(error)
            })?;
            let ended_ns = self.shared.clock.monotonic_ns();
            self.last_sync_ns = ended_ns;
            let mut stats = lock(&self.shared.stats);
            stats.sync_count += 1;
            stats.sync_ns.record(ended_ns.saturating_sub(begun_ns));
        }
        self.is_dirty = false;
        self.unsynced = Since::default();
        self.shared.set_synced(self.written_end);
        fault::sync_late();
        Ok(())
    }
}
