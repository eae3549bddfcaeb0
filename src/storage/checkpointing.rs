//! Checkpoints: when one is due, writing it and publishing it. What it no longer needs is freed by `freeing`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};

use super::CheckpointSource;
use super::checkpoint::{self, CheckpointHeader};
use super::compaction::Compactor;
use super::engine::Storage;
use super::error::StorageError;
use super::file::{create_temp, io_error, publish_temp, temp_path};
use super::filing::Filing;
use super::format::checkpoint_path;
use super::index::files::Named;
use super::report::CheckpointReport;
use super::reserve::{Need, with_room};
use super::superblock::Superblock;
use crate::disk::OpenMode;
use crate::disk::fault::{self, Fault};
use crate::sync::lock;

/// Log bytes after which a checkpoint is due at the earliest: keeps replay far below a second.
const CHECKPOINT_BYTES_MIN: u64 = 64 << 20;
/// And at the latest, however large the last checkpoint was.
const CHECKPOINT_BYTES_MAX: u64 = 256 << 20;
/// With small segments, so many of them: they are freed, and compacted, by checkpoints.
const CHECKPOINT_SEGMENTS_MIN: u64 = 8;
/// When messages were moved, or anything happened while the disk is full, one is due after this time, or this many times
/// as long as the last one took: it frees what messages left.
const MOVED_AFTER_MS: u64 = 2_000;
/// See [`MOVED_AFTER_MS`].
const MOVED_COST_FACTOR: u64 = 10;
/// With any changes at all, one is due after this time ..
const CHECKPOINT_AFTER_MS: u64 = 30_000;
/// .. or this many times as long as the last one took.
const CHECKPOINT_COST_FACTOR: u64 = 50;

/// What the next checkpoint continues.
pub(super) struct Checkpoints {
    superblock: Superblock,
    /// Never used twice, not even after a failure: a copy of the superblock may name the failed one.
    next_generation: u64,
    last_ms: u64,
    last_bytes: u64,
    pub(super) compactor: Compactor,
}

impl Checkpoints {
    pub(super) fn new(superblock: Superblock) -> Self {
        Self {
            superblock,
            next_generation: superblock.checkpoint_generation + 1,
            last_ms: 0,
            last_bytes: 0,
            compactor: Compactor::default(),
        }
    }
}

/// What makes the next checkpoint due. Looked at all the time, so without the lock of [`Checkpoints`].
pub(super) struct Since {
    /// Bytes pushed when the last checkpoint began.
    pushed_bytes: AtomicU64,
    /// Bytes that recovery replayed, until the first checkpoint: the next recovery would replay them again.
    replayed_bytes: AtomicU64,
    /// Messages have moved since then.
    has_moved: AtomicBool,
    /// `unix_ms` of that.
    at_ms: AtomicU64,
}

impl Since {
    /// As after a start at `now_ms` that replayed so much.
    pub(super) fn new(replayed_bytes: u64, now_ms: u64) -> Self {
        Self {
            pushed_bytes: AtomicU64::new(0),
            replayed_bytes: AtomicU64::new(replayed_bytes),
            has_moved: AtomicBool::new(false),
            at_ms: AtomicU64::new(now_ms),
        }
    }

    fn checkpointed(&self, pushed_bytes: u64, at_ms: u64) {
        self.pushed_bytes.store(pushed_bytes, Ordering::Relaxed);
        self.at_ms.store(at_ms, Ordering::Relaxed);
        self.replayed_bytes.store(0, Ordering::Relaxed);
        self.has_moved.store(false, Ordering::Relaxed);
    }

    /// Log bytes that the next recovery would replay, when so many have been pushed.
    fn replay_bytes(&self, pushed_bytes: u64) -> u64 {
        let since = pushed_bytes.saturating_sub(self.pushed_bytes.load(Ordering::Relaxed));
        since + self.replayed_bytes.load(Ordering::Relaxed)
    }
}

impl Storage {
    pub(super) fn checkpoints(&self) -> MutexGuard<'_, Checkpoints> {
        lock(&self.inner.checkpoints)
    }

    /// Messages have moved: the next checkpoint frees what they left.
    pub(super) fn note_moved(&self) {
        self.inner.since.has_moved.store(true, Ordering::Relaxed);
    }

    /// Held by whatever writes index files, checkpoints among it.
    pub(super) fn checkpoint_lock(&self) -> MutexGuard<'_, impl Sized> {
        lock(&self.inner.checkpoints)
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
        let at_ms = self.inner.since.at_ms.load(Ordering::Relaxed);
        let age_ms = self.inner.shared.clock.unix_ms().saturating_sub(at_ms);
        let moved_ms = MOVED_AFTER_MS.max(last_ms.saturating_mul(MOVED_COST_FACTOR));
        let may_free = self.inner.since.has_moved.load(Ordering::Relaxed)
            || (replay_bytes > 0 && self.is_short_of_space());
        replay_bytes >= bytes_due
            || self.inner.shared.space.wants_checkpoint()
            || (replay_bytes > 0 && age_ms >= after_ms)
            || (may_free && age_ms >= moved_ms)
    }

    pub(super) fn replay_bytes(&self) -> u64 {
        let pushed_bytes = lock(&self.inner.shared.append).pushed_bytes();
        self.inner.since.replay_bytes(pushed_bytes)
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
        shared.space.note_checkpoint();
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
        let since = &self.inner.since;
        since.checkpointed(pushed_bytes, header.created_at_ms);
        let compactor = &mut checkpoints.compactor;
        compactor.checkpointed(&written, begin.segment());
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
}
