//! Segment files before and after their time in the log.
//!
//! ```text
//!            rename              header, sync, rename, sync directory          commit thread enters
//!   freed -----------> spare ------------------------------------> prepared -----------------------> log
//!     \ pool is full     ^                                            |
//!      `--> removed      `-- created and allocated, if there is none  `-- clean stop: a spare again
//! ```
//! Overwriting blocks that were written before costs a sync about half of what growing a file costs, because the file
//! system has nothing to note about it; so freed segments are used again. The next one is made ready on a thread of
//! its own while the current one fills up: entering it costs the commit path no sync.
//!
//! 1. A `.segment` name always leads to a file whose header, with that number, is durable: the header is written and
//!    synced under the name of the spare. A crash before the rename leaves a spare.
//! 2. A file is renamed to a spare only when a durable checkpoint needs nothing in it, and is written again only
//!    after that rename is durable.
//! 3. What an earlier segment left in a file never validates: checksums are seeded with number and epoch. The header
//!    says [`RECYCLED`](super::format::segment_flag::RECYCLED), so nobody takes such bytes for a torn write.
//! 4. Removing a file may take long, and whoever writes meanwhile waits for it: where the file system tells the device at once what
//!    it no longer needs, 13 ms a segment of 64 MiB. So a log that takes more segments between two checkpoints than the pool
//!    usually keeps is left as many spares, within limits, for as long as it does that.
//! 5. A failed sync is the end of the engine here too. Everything else that fails while a segment is prepared ahead is
//!    left to the commit thread, which then makes its segment itself.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use super::error::StorageError;
use super::file::{io_error, list_or_empty, room_error, write_all};
use super::format::{LOG_DIR, SPARE_EXTENSION, number_in_name, segment_path, spare_path};
use super::segment::SegmentHeader;
use super::types::{Lsn, SegmentId};
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::sync::{lock, wait};

/// So many times the usual number of spares are kept for a log that takes them.
const BUSY_FACTOR: usize = 4;

/// A segment that can be entered: header and name are durable.
pub(crate) struct Prepared {
    pub(crate) header: SegmentHeader,
    pub(crate) file: Arc<dyn DiskFile>,
}

/// What is being done about the next segment.
enum Stage {
    Idle,
    Wanted(SegmentHeader),
    Working(SegmentId),
    Ready(Prepared),
    /// A sync failed.
    Failed(StorageError),
}

struct State {
    /// Files that may become segments, named after the ones they were.
    spares: BTreeSet<SegmentId>,
    /// So many of them are kept, see (4).
    keep_count: usize,
    /// Segments made since the last checkpoint.
    made_count: usize,
    /// And between that and the one before.
    made_before_count: usize,
    stage: Stage,
    /// Nothing is kept for later while the disk is low.
    is_low: bool,
    /// The thread has something else to do.
    is_nudged: bool,
    is_stopping: bool,
}

/// Why there is no segment.
enum MakeError {
    /// The commit thread may try again.
    Refused(StorageError),
    /// A sync failed: the end.
    Fatal(StorageError),
}

impl MakeError {
    fn into_inner(self) -> StorageError {
        match self {
            Self::Refused(error) | Self::Fatal(error) => error,
        }
    }
}

/// See the module.
pub(crate) struct Pool {
    disk: Arc<dyn Disk>,
    segment_size_bytes: u64,
    spare_count_max: usize,
    state: Mutex<State>,
    /// Signalled when `stage` changed, and when the pool is stopped.
    changed: Condvar,
    /// It was said that this file system cannot allocate.
    has_said_unsupported: AtomicBool,
}

impl Pool {
    /// A pool without spares; those that are there are handed in with [`Pool::add`].
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        segment_size_bytes: u64,
        spare_count_max: usize,
    ) -> Self {
        Self {
            disk,
            segment_size_bytes,
            spare_count_max,
            state: Mutex::new(State {
                spares: BTreeSet::new(),
                keep_count: spare_count_max,
                made_count: 0,
                made_before_count: 0,
                stage: Stage::Idle,
                is_low: false,
                is_nudged: false,
                is_stopping: false,
            }),
            changed: Condvar::new(),
            has_said_unsupported: AtomicBool::new(false),
        }
    }

    // ---- the next segment

    /// Asks for a segment with this header to be made ready.
    pub(crate) fn request(&self, header: SegmentHeader) {
        let mut state = lock(&self.state);
        if matches!(state.stage, Stage::Idle) && !state.is_low {
            state.stage = Stage::Wanted(header);
            self.changed.notify_all();
        }
    }

    /// Prepares what was asked for; false when there is nothing to do.
    ///
    /// # Errors
    /// A failed sync.
    pub(crate) fn work(&self) -> Result<bool, StorageError> {
        let header = {
            let mut state = lock(&self.state);
            let Stage::Wanted(header) = state.stage else {
                return Ok(false);
            };
            state.stage = Stage::Working(header.segment);
            header
        };
        let made = self.make(header, true);
        let mut state = lock(&self.state);
        let outcome = match made {
            Ok(prepared) => {
                state.stage = Stage::Ready(prepared);
                Ok(true)
            }
            Err(MakeError::Refused(error)) => {
                tracing::warn!(%error, segment = %header.segment, "cannot prepare a segment ahead");
                state.stage = Stage::Idle;
                Ok(true)
            }
            Err(MakeError::Fatal(error)) => {
                state.stage = Stage::Idle;
                Err(error)
            }
        };
        self.changed.notify_all();
        outcome
    }

    /// A sync failed on the thread that prepares segments: the next [`Pool::take`] or [`Pool::check`] passes it on.
    pub(crate) fn set_failed(&self, error: StorageError) {
        lock(&self.state).stage = Stage::Failed(error);
        self.changed.notify_all();
    }

    /// Wakes the thread for something that is not the pool's.
    pub(crate) fn nudge(&self) {
        lock(&self.state).is_nudged = true;
        self.changed.notify_all();
    }

    /// Waits until a segment is to be prepared, or for a [`Pool::nudge`]; false after [`Pool::stop`].
    pub(crate) fn wait_for_work(&self) -> bool {
        let mut state = lock(&self.state);
        while !(state.is_stopping || state.is_nudged || matches!(state.stage, Stage::Wanted(_))) {
            state = wait(&self.changed, state);
        }
        state.is_nudged = false;
        !state.is_stopping
    }

    /// Fails when a sync of the thread has failed.
    pub(crate) fn check(&self) -> Result<(), StorageError> {
        let mut state = lock(&self.state);
        if matches!(state.stage, Stage::Failed(_))
            && let Stage::Failed(error) = std::mem::replace(&mut state.stage, Stage::Idle)
        {
            return Err(error);
        }
        Ok(())
    }

    /// The segment with this header: the prepared one, or one that is made now.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn take(&self, header: SegmentHeader) -> Result<(Prepared, bool), StorageError> {
        let mut state = lock(&self.state);
        while matches!(state.stage, Stage::Working(segment) if segment == header.segment) {
            state = wait(&self.changed, state);
        }
        match std::mem::replace(&mut state.stage, Stage::Idle) {
            Stage::Ready(prepared) if prepared.header.segment == header.segment => {
                return Ok((prepared, true));
            }
            Stage::Failed(error) => return Err(error),
            Stage::Idle | Stage::Wanted(_) | Stage::Ready(_) => {}
            working @ Stage::Working(_) => state.stage = working,
        }
        drop(state);
        self.make(header, false)
            .map(|prepared| (prepared, false))
            .map_err(MakeError::into_inner)
    }

    /// Makes a segment of a spare, or of a new file: that is allocated when there is time for it.
    ///
    /// ```text
    /// t1 create or take a spare, t2 allocate, t3 header, t4 sync, t5 rename, t6 sync the directory
    /// crash before t5 durable -> a spare, whatever its header says
    /// crash after             -> a segment without a valid batch: void
    /// ```
    fn make(&self, header: SegmentHeader, is_ahead: bool) -> Result<Prepared, MakeError> {
        let spare = lock(&self.state).spares.pop_first();
        let header = SegmentHeader {
            is_recycled: spare.is_some(),
            ..header
        };
        let name = spare.unwrap_or(header.segment);
        let path = spare_path(name);
        let made = self.make_of(header, &path, is_ahead);
        match &made {
            Ok(_) => lock(&self.state).made_count += 1,
            // A spare may serve the next attempt; a new file is made anew.
            Err(MakeError::Refused(_)) if spare.is_some() => {
                lock(&self.state).spares.insert(name);
            }
            Err(MakeError::Refused(_)) => {
                let _ = self.disk.remove(&path);
            }
            Err(MakeError::Fatal(_)) => {}
        }
        made
    }

    fn make_of(
        &self,
        header: SegmentHeader,
        path: &Path,
        is_ahead: bool,
    ) -> Result<Prepared, MakeError> {
        let disk = &*self.disk;
        let refused = |operation| {
            move |source: io::Error| MakeError::Refused(room_error(disk, operation, path)(source))
        };
        let file = if header.is_recycled {
            disk.open(path, OpenMode::ReadWrite)
        } else {
            create(disk, path)
        };
        let file = file.map_err(refused("create a segment"))?;
        if is_ahead {
            self.allocate(&*file)
                .map_err(refused("allocate a segment"))?;
        }
        write_all(&*file, &header.encode(), 0).map_err(refused("write a segment header"))?;
        file.sync_all()
            .map_err(io_error(disk, "sync a new segment", path))
            .map_err(MakeError::Fatal)?;
        disk.rename(path, &segment_path(header.segment))
            .map_err(refused("name a segment"))?;
        disk.sync_dir(Path::new(LOG_DIR))
            .map_err(io_error(
                disk,
                "sync the directory of a new segment",
                Path::new(LOG_DIR),
            ))
            .map_err(MakeError::Fatal)?;
        Ok(Prepared { header, file })
    }

    /// Takes all the blocks that the segment will need, where that is possible.
    fn allocate(&self, file: &dyn DiskFile) -> io::Result<()> {
        match file.allocate(self.segment_size_bytes) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                if !self.has_said_unsupported.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "this file system cannot allocate space ahead; segments grow as they are written"
                    );
                }
                Ok(())
            }
            allocated => allocated,
        }
    }

    // ---- spares

    /// A checkpoint is about to hand in what it freed: as many spares are kept as the log took since the last one, or between
    /// that and the one before; while there is no room for all that is wanted, no more than usual.
    pub(crate) fn begin_round(&self, is_short: bool) {
        let mut state = lock(&self.state);
        let made_count = std::mem::take(&mut state.made_count);
        let made_before_count = std::mem::replace(&mut state.made_before_count, made_count);
        let wanted = match is_short {
            true => self.spare_count_max,
            false => made_count.max(made_before_count),
        };
        let most = self.spare_count_max.saturating_mul(BUSY_FACTOR);
        state.keep_count = wanted.clamp(self.spare_count_max, most);
    }

    /// Nobody writes: what is more than the usual number of spares goes, in the thread's own time. What the log took is forgotten.
    pub(crate) fn rest(&self) {
        let mut state = lock(&self.state);
        state.made_count = 0;
        state.made_before_count = 0;
        state.keep_count = self.spare_count_max;
        if state.spares.len() > state.keep_count {
            state.is_nudged = true;
            self.changed.notify_all();
        }
    }

    /// Takes the file of a freed segment out of the log: as a spare, when there is room for one and the file is worth
    /// it. The caller syncs the directory, then hands spares in with [`Pool::add`].
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn retire(&self, segment: SegmentId, waiting: usize) -> io::Result<bool> {
        let path = segment_path(segment);
        let has_room = {
            let state = lock(&self.state);
            !state.is_low && state.spares.len() + waiting < state.keep_count
        };
        if has_room && self.is_worth_keeping(&path) {
            return match self.disk.rename(&path, &spare_path(segment)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                renamed => renamed.map(|()| true),
            };
        }
        // A file that came back after a crash of an earlier removal, or went already, is gone either way.
        remove_if_there(&*self.disk, &path).map(|()| false)
    }

    /// A short file has few blocks to use again; a long one, of times with larger segments, takes too many.
    fn is_worth_keeping(&self, path: &Path) -> bool {
        let len = self
            .disk
            .open(path, OpenMode::Read)
            .and_then(|file| file.len());
        len.is_ok_and(|len| {
            (self.segment_size_bytes / 2..=self.segment_size_bytes * 2).contains(&len)
        })
    }

    /// Spares whose names are durable.
    pub(crate) fn add(&self, spares: impl IntoIterator<Item = SegmentId>) {
        lock(&self.state).spares.extend(spares);
    }

    /// Gives the space of a spare back to the file system; false when there is none.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn give_back(&self) -> io::Result<bool> {
        let Some(spare) = lock(&self.state).spares.pop_last() else {
            return Ok(false);
        };
        remove_if_there(&*self.disk, &spare_path(spare)).map(|()| true)
    }

    /// While the disk is low, the pool is empty and stays it.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn set_low(&self, is_low: bool) -> io::Result<()> {
        lock(&self.state).is_low = is_low;
        while is_low && self.give_back()? {}
        Ok(())
    }

    /// Gives back what is more than is kept: that may have been more when it was put there.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn trim(&self) -> io::Result<()> {
        while self.trim_by_one()? {}
        Ok(())
    }

    /// The same for one file; false when nothing is too much.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn trim_by_one(&self) -> io::Result<bool> {
        let has_too_many = {
            let state = lock(&self.state);
            state.spares.len() > state.keep_count
        };
        Ok(has_too_many && self.give_back()?)
    }

    /// Files in the pool.
    pub(crate) fn spare_count(&self) -> usize {
        lock(&self.state).spares.len()
    }

    // ---- the end

    /// Ends the thread.
    pub(crate) fn stop(&self) {
        lock(&self.state).is_stopping = true;
        self.changed.notify_all();
    }

    /// Makes the segment that nobody entered a spare again, so that the next start does not have to look into it.
    /// Whether that reaches the disk does not matter: without a batch it is void.
    pub(crate) fn put_away(&self) {
        let stage = std::mem::replace(&mut lock(&self.state).stage, Stage::Idle);
        if let Stage::Ready(prepared) = stage {
            let segment = prepared.header.segment;
            if let Err(error) = self
                .disk
                .rename(&segment_path(segment), &spare_path(segment))
            {
                tracing::warn!(%error, %segment, "cannot put a prepared segment away");
            }
        }
    }
}

/// Creates a file; a leftover of an earlier attempt is replaced.
pub(crate) fn create(disk: &dyn Disk, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
    match disk.open(path, OpenMode::CreateNew) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            disk.remove(path)?;
            disk.open(path, OpenMode::CreateNew)
        }
        opened => opened,
    }
}

fn remove_if_there(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.remove(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// The spares that exist, by the numbers in their names.
///
/// # Errors
/// Those of the disk.
pub fn list(disk: &dyn Disk) -> Result<BTreeSet<SegmentId>, StorageError> {
    let names: Vec<PathBuf> = list_or_empty(disk, Path::new(LOG_DIR))?;
    Ok(names
        .iter()
        .filter_map(|name| number_in_name(name, 12, SPARE_EXTENSION))
        .filter(|number| *number <= u64::MAX >> Lsn::OFFSET_BITS)
        .map(SegmentId)
        .collect())
}
