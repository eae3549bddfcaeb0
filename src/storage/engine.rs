//! [`Storage`]: the engine as its owner sees it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use bytes::Bytes;

use super::append::Append;
use super::checkpoint::{self, CheckpointHeader};
use super::commit::{Committer, Next};
use super::compaction::Compactor;
use super::error::{ReadError, StorageError};
use super::file::{create_temp, io_error, publish_temp, temp_path};
use super::filing::Filing;
use super::format::{CHECKPOINT_DIR, LOG_DIR, StoreId, checkpoint_path, segment_path};
use super::gather::ReadBuffer;
use super::index::files::Named;
use super::options::Options;
use super::recovery;
use super::report::{CheckpointReport, Recovered};
use super::reserve::{Need, Space, with_room};
use super::scrub::Scrubber;
use super::shared::{Shared, Stop};
use super::stats::Stats;
use super::superblock::Superblock;
use super::types::{Lsn, Position, QueueId, Receipt, Request, SegmentId, Seq, Urgency};
use super::{CheckpointSource, CommitListener};
use crate::disk::fault::{self, Fault};
use crate::disk::{Clock, DirectoryLock, Disk, OpenMode};
use crate::sync::lock;

/// Log bytes after which a checkpoint is due at the earliest: keeps replay far below a second.
const CHECKPOINT_BYTES_MIN: u64 = 64 << 20;
/// And at the latest, however large the last checkpoint was.
const CHECKPOINT_BYTES_MAX: u64 = 256 << 20;
/// With small segments, so many of them: they are freed, and compacted, by checkpoints.
const CHECKPOINT_SEGMENTS_MIN: u64 = 8;
/// When messages were moved, one is due after this time, or this many times as long as the last one took: it frees
/// what they left.
const MOVED_AFTER_MS: u64 = 2_000;
/// See [`MOVED_AFTER_MS`].
const MOVED_COST_FACTOR: u64 = 10;
/// With any changes at all, one is due after this time ..
const CHECKPOINT_AFTER_MS: u64 = 30_000;
/// .. or this many times as long as the last one took.
const CHECKPOINT_COST_FACTOR: u64 = 50;

/// A handle of the engine. Cheap to clone; the engine ends with the last one.
#[derive(Clone)]
pub struct Storage {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    committing: Mutex<Committing>,
    /// Held during a checkpoint: there is one at a time.
    checkpoints: Mutex<Checkpoints>,
    /// Bytes pushed when the last checkpoint began.
    checkpointed_bytes: AtomicU64,
    /// Bytes that recovery replayed, until the first checkpoint: the next recovery would replay them again.
    replayed_bytes: AtomicU64,
    /// Messages have moved since then.
    has_moved: AtomicBool,
    /// `unix_ms` of that.
    checkpointed_at_ms: AtomicU64,
    /// Given up when the engine is closed.
    lock: Mutex<Option<Box<dyn DirectoryLock>>>,
}

/// Who runs the commit steps.
enum Committing {
    /// A thread, and one that prepares segments.
    Threads(JoinHandle<()>, JoinHandle<()>),
    /// The caller of [`Storage::step`], who prepares segments as well.
    ByHand(Box<Committer>),
    /// Nobody any more.
    Ended,
}

/// What the next checkpoint continues.
pub(super) struct Checkpoints {
    superblock: Superblock,
    /// Never used twice, not even after a failure: a copy of the superblock may name the failed one.
    next_generation: u64,
    last_ms: u64,
    last_bytes: u64,
    pub(super) compactor: Compactor,
}

impl Storage {
    /// Opens the data directory, made when missing or empty, recovers its state and starts the commit thread.
    ///
    /// # Errors
    /// `Locked`, `NotADataDirectory`, `NewerFormat` and `Damaged` leave the directory as it was.
    pub fn open(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        options: Options,
        listener: Arc<dyn CommitListener>,
    ) -> Result<(Self, Recovered), StorageError> {
        let mut store = [0; 16];
        getrandom::fill(&mut store).map_err(|error| StorageError::Io {
            operation: "name the store by",
            path: "random bytes".into(),
            source: std::io::Error::other(error.to_string()),
        })?;
        let (storage, recovered) =
            Self::open_by_hand(disk, clock, options, listener, StoreId(store))?;
        storage.start_threads()?;
        Ok((storage, recovered))
    }

    /// As [`Storage::open`], but commits happen only when [`Storage::step`] is called, or inside a checkpoint. With
    /// a simulated disk every run makes the same calls in the same order.
    ///
    /// # Errors
    /// As [`Storage::open`].
    pub fn open_by_hand(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        options: Options,
        listener: Arc<dyn CommitListener>,
        new_store: StoreId,
    ) -> Result<(Self, Recovered), StorageError> {
        let options = Options {
            segment_size_bytes: options.segment_size_bytes.clamp(
                Options::SEGMENT_SIZE_MIN_BYTES,
                Options::SEGMENT_SIZE_MAX_BYTES,
            ),
            ..options
        };
        let space = Arc::new(Space::new(
            Arc::clone(&disk),
            options.segment_size_bytes,
            options.spare_count_max,
        ));
        let opened = recovery::open(&disk, &*clock, new_store, options.on_corruption, &space)?;
        let (fresh, superblock) = (opened.fresh, opened.superblock);
        let base = fresh.open_header.end();
        let append = Append::new(
            base,
            superblock.epoch,
            options.segment_size_bytes,
            options.commit_max_bytes,
        );
        let now_ms = clock.unix_ms();
        let report = &opened.recovered.report;
        let replayed_bytes = if report.replayed_record_count + report.rebuilt_run_count > 0 {
            report.read_bytes
        } else {
            0
        };
        let shared = Arc::new(Shared::new(
            disk,
            clock,
            options,
            &superblock,
            append,
            opened.existing,
            space,
        ));
        lock(&shared.stats).rebuilt_run_count = report.rebuilt_run_count;
        let committer = Committer::new(
            Arc::clone(&shared),
            listener,
            fresh.header,
            fresh.file,
            &fresh.open_batch,
            &fresh.open_header,
        );
        let inner = Inner {
            shared,
            committing: Mutex::new(Committing::ByHand(Box::new(committer))),
            checkpoints: Mutex::new(Checkpoints {
                superblock,
                next_generation: superblock.checkpoint_generation + 1,
                last_ms: 0,
                last_bytes: 0,
                compactor: Compactor::default(),
            }),
            checkpointed_bytes: AtomicU64::new(0),
            has_moved: AtomicBool::new(false),
            replayed_bytes: AtomicU64::new(replayed_bytes),
            checkpointed_at_ms: AtomicU64::new(now_ms),
            lock: Mutex::new(Some(opened.lock)),
        };
        Ok((
            Self {
                inner: Arc::new(inner),
            },
            opened.recovered,
        ))
    }

    pub(super) fn checkpoints(&self) -> MutexGuard<'_, Checkpoints> {
        lock(&self.inner.checkpoints)
    }

    /// Messages have moved: the next checkpoint frees what they left.
    pub(super) fn note_moved(&self) {
        self.inner.has_moved.store(true, Ordering::Relaxed);
    }

    /// Held by whatever writes index files, checkpoints among it.
    pub(super) fn checkpoint_lock(&self) -> MutexGuard<'_, impl Sized> {
        lock(&self.inner.checkpoints)
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.inner.shared
    }

    fn start_threads(&self) -> Result<(), StorageError> {
        let mut committing = lock(&self.inner.committing);
        if let Committing::ByHand(committer) =
            std::mem::replace(&mut *committing, Committing::Ended)
        {
            let shared = Arc::clone(&self.inner.shared);
            let ahead = spawn("stratamq-space", move || {
                shared.space.run(|| shared.rouse());
            })?;
            match spawn("stratamq-commit", move || committer.run()) {
                Ok(commit) => *committing = Committing::Threads(commit, ahead),
                Err(error) => {
                    self.inner.shared.space.pool.stop();
                    // A panic in it has aborted the process already.
                    let _ = ahead.join();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Makes one step of the commit thread's work; false when there is nothing to do at this time.
    ///
    /// # Errors
    /// A failed step is the end of the engine; the listener has been told.
    ///
    /// # Panics
    /// When the engine runs its own thread.
    pub fn step(&self) -> Result<bool, StorageError> {
        match &mut *lock(&self.inner.committing) {
            Committing::ByHand(committer) => Self::step_by_hand(committer, &self.inner.shared),
            Committing::Threads(..) => panic!("the engine was not opened to be stepped by hand"),
            Committing::Ended => Ok(false),
        }
    }

    fn step_by_hand(committer: &mut Committer, shared: &Shared) -> Result<bool, StorageError> {
        shared.check_not_failed()?;
        let step = match shared.space.work() {
            Ok(true) => Ok(Next::Step),
            Ok(false) => committer.step(),
            Err(error) => Err(error),
        };
        match step {
            Ok(next) => Ok(next == Next::Step),
            Err(error) => {
                committer.fail(&error);
                Err(error)
            }
        }
    }

    /// Appends `requests` in order; as one group that survives a crash whole or not at all when `is_atomic`. The
    /// position of every PUBLISH is appended to `positions`. Never waits for the disk and wakes nobody: call
    /// [`Storage::wake`] once no lock is held.
    ///
    /// # Panics
    /// When a group does not fit a segment; see [`Storage::group_max_bytes`].
    pub fn push(
        &self,
        requests: &[Request<'_>],
        is_atomic: bool,
        urgency: Urgency,
        positions: &mut Vec<Position>,
    ) -> Receipt {
        self.inner
            .shared
            .push(requests, is_atomic, urgency, positions)
    }

    /// Wakes the commit thread if what was pushed needs it and it sleeps.
    pub fn wake(&self) {
        self.inner.shared.wake();
    }

    /// False when so many bytes are un-durable that publishers must wait for
    /// [`CommitListener::has_room_again`].
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.inner.shared.has_room()
    }

    /// A push may be confirmed when this has reached its receipt's end.
    #[must_use]
    pub fn confirm_lsn(&self) -> Lsn {
        self.inner.shared.confirm_lsn()
    }

    /// Everything below is on stable storage.
    #[must_use]
    pub fn synced_lsn(&self) -> Lsn {
        self.inner.shared.synced_lsn()
    }

    /// Largest payload of a record, and largest sum of payloads of an atomic group.
    #[must_use]
    pub fn group_max_bytes(&self) -> u64 {
        self.inner.shared.options.segment_size_bytes / 4
    }

    /// Reads the payload of a message. Blocks on the disk; any thread may call it.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read(&self, queue: QueueId, seq: Seq, position: Position) -> Result<Bytes, ReadError> {
        super::read::read(&self.inner.shared, queue, seq, position)
    }

    /// Reads the payloads of many messages of a queue with few reads; the results are in the order of `wanted`, each as
    /// [`Storage::read`] would give it. Blocks on the disk; `buffer` is the calling thread's own.
    pub fn read_many(
        &self,
        queue: QueueId,
        wanted: &[(Seq, Position)],
        buffer: &mut ReadBuffer,
    ) -> Vec<Result<Bytes, ReadError>> {
        super::gather::read_many(&*self.inner.shared, queue, wanted, buffer)
    }

    /// True when enough was logged, or enough time passed since a change, that a checkpoint should be made.
    #[must_use]
    pub fn checkpoint_due(&self) -> bool {
        let replay_bytes = self.replay_bytes();
        let Ok(checkpoints) = self.inner.checkpoints.try_lock() else {
            return false;
        };
        let (last_ms, last_bytes) = (checkpoints.last_ms, checkpoints.last_bytes);
        drop(checkpoints);
        let segments = self.inner.shared.options.segment_size_bytes * CHECKPOINT_SEGMENTS_MIN;
        let bytes_due = last_bytes.clamp(CHECKPOINT_BYTES_MIN.min(segments), CHECKPOINT_BYTES_MAX);
        let after_ms = CHECKPOINT_AFTER_MS.max(last_ms.saturating_mul(CHECKPOINT_COST_FACTOR));
        let at_ms = self.inner.checkpointed_at_ms.load(Ordering::Relaxed);
        let age_ms = self.inner.shared.clock.unix_ms().saturating_sub(at_ms);
        let moved_ms = MOVED_AFTER_MS.max(last_ms.saturating_mul(MOVED_COST_FACTOR));
        let is_moved_due = self.inner.has_moved.load(Ordering::Relaxed) && age_ms >= moved_ms;
        replay_bytes >= bytes_due || (replay_bytes > 0 && age_ms >= after_ms) || is_moved_due
    }

    fn replay_bytes(&self) -> u64 {
        let pushed = lock(&self.inner.shared.append).pushed_bytes();
        let since = pushed.saturating_sub(self.inner.checkpointed_bytes.load(Ordering::Relaxed));
        since + self.inner.replayed_bytes.load(Ordering::Relaxed)
    }

    /// Writes a checkpoint of `source`, then frees what it no longer needs. Blocks; call it on a thread of its own,
    /// with no lock held that `source` takes.
    ///
    /// ```text
    /// t1 begin = append position, a batch ends there, t2 snapshots, t3 end = append position, t4 sync up to end,
    /// and index files, t5 file synced, renamed, directory synced, t6 superblock copy 0, t7 copy 1, t8 segments and old file removed
    /// crash before t6 -> the old checkpoint counts, its log is all there; a leftover file is removed later
    /// crash after t6  -> the new one counts; what t8 did not remove is removed after the next one
    /// ```
    /// t4 comes before t6: a snapshot may hold what the log has not made durable yet, and must not outlive it.
    ///
    /// # Errors
    /// Those of the disk: the old checkpoint counts. `Stopped` when the engine has failed.
    pub fn checkpoint(
        &self,
        source: &dyn CheckpointSource,
    ) -> Result<CheckpointReport, StorageError> {
        let shared = &self.inner.shared;
        let mut checkpoints = lock(&self.inner.checkpoints);
        shared.check_not_failed()?;
        let begun_ns = shared.clock.monotonic_ns();
        let (begin, pushed_bytes) = {
            let mut append = lock(&shared.append);
            (append.cut_batch(), append.pushed_bytes())
        };
        let (header, (written, named, filed_run_count)) = loop {
            let header = CheckpointHeader {
                generation: checkpoints.next_generation,
                epoch: shared.epoch,
                begin,
                created_at_ms: shared.clock.unix_ms(),
            };
            checkpoints.next_generation += 1;
            match self.write_checkpoint(&header, source) {
                Ok(written) => break (header, written),
                Err(error) => {
                    self.discard_checkpoint(header.generation);
                    // A new file with a new name: whatever failed of this one, no sync of it is repeated.
                    let may_repeat = error.is_full() && shared.check_not_failed().is_ok();
                    if !(may_repeat && !shared.is_stalled() && shared.space.make_room(Need::Vital))
                    {
                        return Err(error);
                    }
                    tracing::warn!(%error, "the disk is full; trying again on the reserve");
                }
            }
        };
        let superblock = Superblock {
            sequence: checkpoints.superblock.sequence + 1,
            checkpoint_generation: header.generation,
            begin,
            synced: shared.synced_lsn(),
            ..checkpoints.superblock
        };
        // Even if only one copy is written, the next one must not repeat the number.
        checkpoints.superblock.sequence = superblock.sequence;
        with_room(&shared.space, || superblock.write(&*shared.disk))?;
        if fault::is_active(Fault::SwapSuperblock) {
            self.publish_late(header.generation)?;
        }
        checkpoints.superblock = superblock;
        self.inner
            .checkpointed_bytes
            .store(pushed_bytes, Ordering::Relaxed);
        self.inner
            .checkpointed_at_ms
            .store(header.created_at_ms, Ordering::Relaxed);
        self.inner.replayed_bytes.store(0, Ordering::Relaxed);
        self.inner.has_moved.store(false, Ordering::Relaxed);
        let compactor = &mut checkpoints.compactor;
        compactor.checkpointed(&written.segments, begin.segment());
        let (live_bytes, filling) = (compactor.live_bytes(), compactor.open_segment());
        let freed = self.free(begin.segment(), filling, &written, header.generation)?;
        shared.index.checkpointed(named)?;
        let duration_ms = shared.clock.monotonic_ns().saturating_sub(begun_ns) / 1_000_000;
        (checkpoints.last_ms, checkpoints.last_bytes) = (duration_ms, written.len_bytes);
        let mut stats = lock(&shared.stats);
        stats.checkpoint_count += 1;
        stats.live_bytes = live_bytes;
        stats.freed_segment_count += freed.len() as u64;
        stats.last_checkpoint_at_ms = header.created_at_ms;
        stats.last_checkpoint_ms = duration_ms;
        stats.last_checkpoint_bytes = written.len_bytes;
        Ok(CheckpointReport {
            generation: header.generation,
            begin,
            size_bytes: written.len_bytes,
            queue_count: written.queue_count,
            message_count: written.entry_count,
            filed_run_count,
            freed,
            duration_ms,
        })
    }

    fn write_checkpoint(
        &self,
        header: &CheckpointHeader,
        source: &dyn CheckpointSource,
    ) -> Result<(checkpoint::Written, Named, u64), StorageError> {
        let shared = &self.inner.shared;
        let path = checkpoint_path(header.generation);
        let error = |operation| io_error(&*shared.disk, operation, &path);
        let file = create_temp(&*shared.disk, &path).map_err(error("create a checkpoint"))?;
        let mut writer = checkpoint::Writer::new(Arc::clone(&file), shared.store, header);
        let (meta, meta_lsn) = source.meta();
        writer
            .meta(&meta, meta_lsn)
            .map_err(error("write a checkpoint"))?;
        let mut ids = source.queue_ids();
        ids.sort_unstable();
        ids.dedup();
        let mut filing = Filing::new(shared, source);
        for id in ids {
            if let Some(image) = filing.queue(id)? {
                assert_eq!(image.id, id, "a queue is asked for by its id");
                writer.queue(&image).map_err(error("write a checkpoint"))?;
            }
        }
        let end = lock(&shared.append).end();
        let written = writer.finish(end).map_err(error("write a checkpoint"))?;
        self.sync_to(end)?;
        let (named, filed_run_count) = filing.finish()?;
        if !fault::is_active(Fault::SwapSuperblock) {
            publish_temp(&*shared.disk, &*file, &path).map_err(error("publish a checkpoint"))?;
        }
        Ok((written, named, filed_run_count))
    }

    /// [`Fault::SwapSuperblock`]: what should have been done before the superblock named the checkpoint.
    fn publish_late(&self, generation: u64) -> Result<(), StorageError> {
        let disk = &*self.inner.shared.disk;
        let path = checkpoint_path(generation);
        let file = disk.open(&temp_path(&path), OpenMode::ReadWrite);
        let published = file.and_then(|file| publish_temp(disk, &*file, &path));
        published.map_err(io_error(disk, "publish a checkpoint", &path))
    }

    /// Removes what a failed checkpoint left, which no superblock names: on a full disk the leftovers of every
    /// attempt would take what the log needs. What cannot be removed goes after the next one that succeeds.
    fn discard_checkpoint(&self, generation: u64) {
        let disk = &*self.inner.shared.disk;
        let path = checkpoint_path(generation);
        for leftover in [temp_path(&path), path] {
            match disk.remove(&leftover) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(%error, generation, "cannot remove a failed checkpoint");
                }
                _ => {}
            }
        }
    }

    /// Makes everything below `lsn` durable, in every mode.
    fn sync_to(&self, lsn: Lsn) -> Result<(), StorageError> {
        let shared = &self.inner.shared;
        shared.request_sync(lsn);
        if let Committing::ByHand(committer) = &mut *lock(&self.inner.committing) {
            while shared.synced_lsn() < lsn {
                if !Self::step_by_hand(committer, shared)? && shared.is_stalled() {
                    return Err(StorageError::Full {
                        operation: "write the log, which a checkpoint needs, to",
                        path: shared.disk.describe(std::path::Path::new(LOG_DIR)),
                    });
                }
            }
        }
        shared.wait_synced(lsn)
    }

    /// Removes segments that the checkpoint just published does not need, and older checkpoints. A segment is
    /// needed when replay reads it or an entry of the checkpoint lies in it; zero live refs now would not do,
    /// because a crash goes back to the checkpoint.
    fn free(
        &self,
        begin: SegmentId,
        filling: Option<SegmentId>,
        written: &checkpoint::Written,
        generation: u64,
    ) -> Result<Vec<SegmentId>, StorageError> {
        let shared = &self.inner.shared;
        let existing = lock(&shared.segments).clone();
        let freed: Vec<SegmentId> = existing
            .range(..begin)
            .chain(existing.range(SegmentId::FIRST_COLD..))
            .filter(|segment| filling != Some(**segment) && !written.segments.contains_key(segment))
            .copied()
            .collect();
        let spares = self.retire(&freed)?;
        for leftover in checkpoint::leftovers(&*shared.disk, generation)? {
            self.remove(&leftover)?;
        }
        for dir in [LOG_DIR, CHECKPOINT_DIR] {
            let path = std::path::Path::new(dir);
            shared.disk.sync_dir(path).map_err(io_error(
                &*shared.disk,
                "sync the directory",
                path,
            ))?;
        }
        shared.space.pool.add(spares);
        shared.space.pool.trim().map_err(io_error(
            &*shared.disk,
            "trim",
            std::path::Path::new(LOG_DIR),
        ))?;
        if !freed.is_empty() {
            tracing::info!(count = freed.len(), %begin, generation, "freed segments");
        }
        Ok(freed)
    }

    /// Takes the files of freed segments out of the log; those that become spares once the directory is synced.
    fn retire(&self, freed: &[SegmentId]) -> Result<Vec<SegmentId>, StorageError> {
        let shared = &self.inner.shared;
        let mut spares = Vec::new();
        for segment in freed {
            // First from the list: a reader that finds other bytes in the file looks there.
            lock(&shared.segments).remove(segment);
            let retired = shared.space.pool.retire(*segment, spares.len());
            let is_spare = retired.map_err(|error| {
                lock(&shared.segments).insert(*segment);
                io_error(&*shared.disk, "free", &segment_path(*segment))(error)
            })?;
            spares.extend(is_spare.then_some(*segment));
            shared.files.forget(*segment);
        }
        Ok(spares)
    }

    fn remove(&self, path: &std::path::Path) -> Result<(), StorageError> {
        let disk = &*self.inner.shared.disk;
        match disk.remove(path) {
            // A file that came back after a crash of an earlier removal, or went already, is gone either way.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(io_error(disk, "remove", path)),
        }
    }

    /// Commits everything, writes a last checkpoint, stops the commit thread and gives up the lock. Whatever is
    /// pushed while it runs may or may not be kept.
    ///
    /// # Errors
    /// Those of [`Storage::checkpoint`]; the log is complete up to the last commit all the same.
    pub fn close(&self, source: &dyn CheckpointSource) -> Result<(), StorageError> {
        self.inner.shared.set_closing();
        // First the log: a checkpoint that begins in a batch nobody waited for would have it replayed at the start.
        let end = lock(&self.inner.shared.append).end();
        let checkpointed = self.sync_to(end).and_then(|()| self.checkpoint(source));
        self.inner.end(Stop::Drain);
        checkpointed.map(|_| ())
    }

    /// Something that reads the store again, step by step, and says what does not verify.
    #[must_use]
    pub fn scrubber(&self) -> Scrubber {
        Scrubber::new(Arc::clone(&self.inner.shared))
    }

    /// Looks after what is put aside; to be called every now and then. While the disk is low nothing is kept for
    /// later, and spare segments are given back; otherwise a reserve that had to give is made whole again.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn tend_space(&self, is_low: bool) -> Result<(), StorageError> {
        let shared = &self.inner.shared;
        let path = std::path::Path::new(LOG_DIR);
        let set = shared.space.pool.set_low(is_low);
        set.map_err(io_error(&*shared.disk, "give back spare segments of", path))?;
        if !is_low {
            shared.space.refill();
        }
        Ok(())
    }

    /// True since the disk refused something for lack of space, until there is room and the reserve is whole again:
    /// nobody may publish meanwhile. Everything else goes on.
    #[must_use]
    pub fn is_short_of_space(&self) -> bool {
        self.inner.shared.space.is_short()
    }

    /// True while not even acks can be logged: commits wait for room, and go on by themselves when there is some.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.inner.shared.is_stalled()
    }

    /// Counters since the start.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let shared = &self.inner.shared;
        let mut stats = lock(&shared.stats).clone();
        stats.undurable_bytes = shared.undurable_bytes();
        let segments = lock(&shared.segments).clone();
        stats.segment_count = segments.len() as u64;
        stats.cold_segment_count = segments.range(SegmentId::FIRST_COLD..).count() as u64;
        stats.segment_bytes = segments
            .iter()
            .filter_map(|segment| shared.files.get(*segment).and_then(|file| file.len()).ok())
            .sum();
        stats.reserve_bytes = shared.space.reserve_bytes();
        stats.spare_count = shared.space.pool.spare_count() as u64;
        stats.replay_bytes = self.replay_bytes();
        stats
    }
}

/// Starts a thread of the engine.
fn spawn(
    name: &'static str,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, StorageError> {
    let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
        // A panic here would leave a broker that never confirms: better a restart.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_err() {
            tracing::error!(name, "a thread of the engine panicked; aborting, the next start recovers from the log");
            std::process::abort();
        }
    });
    thread.map_err(|source| StorageError::Io {
        operation: "start the thread",
        path: name.into(),
        source,
    })
}

impl Inner {
    /// Ends the commit thread and releases the lock; a second call does nothing.
    fn end(&self, stop: Stop) {
        self.shared.request_stop(stop);
        self.shared.space.pool.stop();
        let committing = std::mem::replace(&mut *lock(&self.committing), Committing::Ended);
        let is_drained = stop == Stop::Drain;
        match committing {
            Committing::Threads(commit, pool) => {
                for thread in [commit, pool] {
                    // The last handle may be dropped by the listener, on the commit thread itself.
                    if thread.thread().id() != std::thread::current().id() {
                        // A panic in it has aborted the process already.
                        let _ = thread.join();
                    }
                }
            }
            Committing::ByHand(mut committer) if is_drained => {
                while let Ok(true) = Storage::step_by_hand(&mut committer, &self.shared) {}
            }
            Committing::ByHand(_) | Committing::Ended => return self.release(),
        }
        if is_drained {
            self.shared.space.pool.put_away();
        }
        self.release();
    }

    fn release(&self) {
        lock(&self.lock).take();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.end(Stop::Abandon);
    }
}
