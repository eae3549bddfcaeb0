//! What the commit thread, pushing threads, readers and the checkpoint share.
//!
//! Locks, in the order in which they may nest (none is held while a file is touched, except `files` while one
//! is opened): `append`; every other one alone. Watermarks are atomics that only the commit thread raises.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread::Thread;
use std::time::Duration;

use super::CommitListener;
use super::admission::Admission;
use super::append::{Append, Pending};
use super::error::StorageError;
use super::format::StoreId;
use super::index::files::IndexFiles;
use super::options::{FsyncPolicy, Options};
use super::read::FileCache;
use super::reserve::Space;
use super::stats::Stats;
use super::superblock::Superblock;
use super::types::{Lsn, Position, Receipt, Request, SegmentId, Urgency};
use crate::disk::{Clock, Disk};
use crate::sync::{lock, wait};

/// The commit thread runs, or is about to look.
const RUNNING: u8 = 0;
/// It sleeps until a deadline of lazy traffic, or so shortly that such traffic can wait for the end; only something waited for wakes it.
const SLEEPS_WITH_LAZY: u8 = 1;
/// It sleeps; anything wakes it.
const SLEEPS: u8 = 2;

/// How the commit thread shall end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Commit and sync everything first.
    Drain,
    /// At once: what is not written is lost, as in a crash.
    Abandon,
}

/// Requests to the commit thread and its end.
#[derive(Debug, Default)]
struct Control {
    stop: Option<Stop>,
    /// Why the engine stopped for good.
    failure: Option<String>,
    /// Nobody waits for room on a full disk any more.
    is_closing: bool,
    /// The file that had no room when closing: the log ends before what is still pending.
    gave_up_at: Option<String>,
}

/// Files that recovery found or made.
pub(crate) struct Existing {
    pub(crate) segments: BTreeSet<SegmentId>,
    pub(crate) index: IndexFiles,
}

/// What the engine is opened with.
pub(crate) struct Surroundings {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) listener: Arc<dyn CommitListener>,
}

/// See the module.
pub(crate) struct Shared {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) options: Options,
    pub(crate) store: StoreId,
    pub(crate) epoch: u64,
    pub(crate) append: Mutex<Append>,
    /// End of what is in the files.
    written_lsn: AtomicU64,
    /// End of what is on stable storage.
    synced_lsn: AtomicU64,
    /// End of what may be confirmed.
    confirm_lsn: AtomicU64,
    /// The log waits for room on the disk.
    is_stalled: AtomicBool,
    /// Something pending is waited for: wakes the commit thread out of a lazy sleep.
    has_waited: AtomicBool,
    /// A checkpoint or a stop waits until this is synced.
    force_to: AtomicU64,
    parked: AtomicU8,
    thread: OnceLock<Thread>,
    control: Mutex<Control>,
    /// Signalled when `synced_lsn` rose while somebody forced it, and when the engine failed.
    control_changed: Condvar,
    pub(crate) stats: Mutex<Stats>,
    /// Segment files that exist.
    pub(crate) segments: Mutex<BTreeSet<SegmentId>>,
    pub(crate) files: FileCache,
    /// The index files; they have a lock of their own.
    pub(crate) index: IndexFiles,
    pub(crate) space: Arc<Space>,
    listener: Arc<dyn CommitListener>,
}

impl Shared {
    pub(crate) fn new(
        surroundings: Surroundings,
        options: Options,
        superblock: &Superblock,
        append: Append,
        existing: Existing,
        space: Arc<Space>,
    ) -> Self {
        let Surroundings {
            disk,
            clock,
            listener,
        } = surroundings;
        let end = append.end().0;
        Self {
            files: FileCache::new(
                Arc::clone(&disk),
                superblock.store,
                options.fsync == FsyncPolicy::Always,
            ),
            disk,
            clock,
            options,
            store: superblock.store,
            epoch: superblock.epoch,
            append: Mutex::new(append),
            written_lsn: AtomicU64::new(end),
            synced_lsn: AtomicU64::new(end),
            confirm_lsn: AtomicU64::new(end),
            is_stalled: AtomicBool::new(false),
            has_waited: AtomicBool::new(false),
            force_to: AtomicU64::new(0),
            parked: AtomicU8::new(RUNNING),
            thread: OnceLock::new(),
            control: Mutex::default(),
            control_changed: Condvar::new(),
            stats: Mutex::default(),
            segments: Mutex::new(existing.segments),
            index: existing.index,
            space,
            listener,
        }
    }

    pub(crate) fn written_lsn(&self) -> Lsn {
        Lsn(self.written_lsn.load(Ordering::Acquire))
    }

    pub(crate) fn synced_lsn(&self) -> Lsn {
        Lsn(self.synced_lsn.load(Ordering::Acquire))
    }

    pub(crate) fn confirm_lsn(&self) -> Lsn {
        Lsn(self.confirm_lsn.load(Ordering::Acquire))
    }

    pub(crate) fn set_written(&self, lsn: Lsn) {
        self.written_lsn.store(lsn.0, Ordering::Release);
    }

    pub(crate) fn set_synced(&self, lsn: Lsn) {
        // Sequentially consistent, as in `request_sync` and `wait_synced`: of "raise the watermark, then look for a
        // waiter" and "ask, then look at the watermark" one must see the other, or the waiter sleeps on.
        let before = self.synced_lsn.swap(lsn.0, Ordering::SeqCst);
        // Whoever asked for less was told when the watermark passed that.
        if self.force_to.load(Ordering::SeqCst) > before {
            // Under the lock, or the waiter could look, miss it, and then sleep.
            let _control = lock(&self.control);
            self.control_changed.notify_all();
        }
    }

    /// Raises the confirm watermark, which covers `confirmed_bytes` more of records.
    pub(crate) fn set_confirmed(&self, lsn: Lsn, confirmed_bytes: u64) {
        self.confirm_lsn.store(lsn.0, Ordering::Release);
        self.admission().confirmed(confirmed_bytes);
    }

    pub(crate) fn push(
        &self,
        requests: &[Request<'_>],
        is_atomic: bool,
        urgency: Urgency,
        positions: &mut Vec<Position>,
    ) -> Receipt {
        let mut append = lock(&self.append);
        let before = append.pushed_bytes();
        let receipt = append.push(requests, is_atomic, urgency, positions);
        // Inside the lock: the commit thread takes the batch only behind it, so the count never goes below zero.
        self.admission().pushed(append.pushed_bytes() - before);
        if urgency == Urgency::Waited {
            self.has_waited.store(true, Ordering::SeqCst);
        }
        receipt
    }

    pub(crate) fn push_mark(&self) {
        let mut append = lock(&self.append);
        let before = append.pushed_bytes();
        append.push_mark();
        self.admission().pushed(append.pushed_bytes() - before);
    }

    /// What waits to be written; clears the hint for [`Shared::wake`] when nothing of it is waited for.
    pub(crate) fn pending(&self) -> Pending {
        let append = lock(&self.append);
        let pending = append.pending();
        self.has_waited.store(pending.is_waited, Ordering::SeqCst);
        pending
    }

    pub(crate) fn admission(&self) -> &Admission {
        &self.space.admission
    }

    /// Tells whoever was refused before, if there may be room again.
    pub(crate) fn tell_of_room(&self) {
        if self.admission().take_waiting() {
            self.listener.has_room_again();
        }
    }

    /// Somebody waits until less is pending: no commit is put off. While the disk is short they wait for more than that.
    pub(crate) fn is_hurried(&self) -> bool {
        self.admission().is_full() || (self.admission().is_waited_for() && !self.space.is_short())
    }

    pub(crate) fn set_stalled(&self, is_stalled: bool) {
        self.is_stalled.store(is_stalled, Ordering::SeqCst);
    }

    pub(crate) fn is_stalled(&self) -> bool {
        self.is_stalled.load(Ordering::SeqCst)
    }

    pub(crate) fn is_forced(&self) -> bool {
        self.force_to.load(Ordering::SeqCst) > self.synced_lsn.load(Ordering::SeqCst)
    }

    /// Wakes the commit thread if what was pushed before this call needs it now.
    pub(crate) fn wake(&self) {
        match self.parked.load(Ordering::SeqCst) {
            RUNNING => {}
            SLEEPS_WITH_LAZY if !self.has_waited.load(Ordering::SeqCst) && !self.is_hurried() => {}
            _ => self.unpark(),
        }
    }

    /// Makes the commit thread look whatever it waits for.
    pub(crate) fn rouse(&self) {
        self.unpark();
    }

    fn unpark(&self) {
        if self.parked.swap(RUNNING, Ordering::SeqCst) != RUNNING
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    /// Names the commit thread, from inside it.
    pub(crate) fn set_thread(&self, thread: Thread) {
        let is_first = self.thread.set(thread).is_ok();
        assert!(is_first, "there is one commit thread");
    }

    /// Puts the commit thread to sleep, unless something changed since it saw `seen`.
    ///
    /// ```text
    /// t1 thread: parked = SLEEPS, t2 pusher: push (append lock), t3 pusher: wake sees SLEEPS, unparks
    /// t1 pusher: push, wake sees RUNNING, t2 thread: parked = SLEEPS, t3 thread: looks again (append lock), stays up
    /// ```
    ///
    /// In a doze, lazy traffic is no change: the sleep is short enough for it.
    pub(crate) fn park(&self, seen: Pending, is_doze: bool, sleep: Option<Duration>) {
        let state = match seen.is_any || is_doze {
            true => SLEEPS_WITH_LAZY,
            false => SLEEPS,
        };
        self.parked.store(state, Ordering::SeqCst);
        let now = self.pending();
        let is_same = (now.is_any == seen.is_any || is_doze) && now.is_waited == seen.is_waited;
        if is_same
            && !self.is_forced()
            && self.stop().is_none()
            && (!self.is_hurried() || !now.is_any)
        {
            match sleep {
                Some(duration) => std::thread::park_timeout(duration),
                None => std::thread::park(),
            }
        }
        self.parked.store(RUNNING, Ordering::SeqCst);
    }

    /// Asks for a sync of everything below `lsn`, in every mode.
    pub(crate) fn request_sync(&self, lsn: Lsn) {
        self.force_to.fetch_max(lsn.0, Ordering::SeqCst);
        self.unpark();
    }

    /// Waits until everything below `lsn` is synced by the commit thread.
    ///
    /// # Errors
    /// `Stopped` when the engine failed or was stopped first.
    pub(crate) fn wait_synced(&self, lsn: Lsn) -> Result<(), StorageError> {
        let mut control = lock(&self.control);
        while Lsn(self.synced_lsn.load(Ordering::SeqCst)) < lsn {
            Self::check_running(&control)?;
            if let Some(path) = &control.gave_up_at {
                return Err(StorageError::ClosedFull { path: path.clone() });
            }
            control = wait(&self.control_changed, control);
        }
        Ok(())
    }

    fn check_running(control: &Control) -> Result<(), StorageError> {
        match (&control.failure, control.stop) {
            (Some(reason), _) => Err(StorageError::Stopped {
                reason: reason.clone(),
            }),
            (None, Some(Stop::Abandon)) => Err(StorageError::Stopped {
                reason: "it was closed".into(),
            }),
            (None, _) => Ok(()),
        }
    }

    /// Fails when the engine has failed before.
    pub(crate) fn check_not_failed(&self) -> Result<(), StorageError> {
        Self::check_running(&lock(&self.control))
    }

    pub(crate) fn fail(&self, error: &StorageError) {
        lock(&self.control)
            .failure
            .get_or_insert_with(|| error.to_string());
        self.control_changed.notify_all();
    }

    pub(crate) fn request_stop(&self, stop: Stop) {
        lock(&self.control).stop.get_or_insert(stop);
        self.control_changed.notify_all();
        self.unpark();
    }

    /// The owner wants to end: nobody waits for room on a full disk any more.
    pub(crate) fn set_closing(&self) {
        lock(&self.control).is_closing = true;
        self.unpark();
    }

    pub(crate) fn is_closing(&self) -> bool {
        lock(&self.control).is_closing
    }

    /// There was no room for what is pending, and it is closing time: it stays unconfirmed, and is not kept.
    pub(crate) fn give_up(&self, path: String) {
        lock(&self.control).gave_up_at.get_or_insert(path);
        self.control_changed.notify_all();
    }

    pub(crate) fn stop(&self) -> Option<Stop> {
        lock(&self.control).stop
    }
}
