//! Space put aside for bad times: at zero bytes free the engine lives on it.
//!
//! ```text
//!   plenty        spare segments, reserve = 2 segments
//!   ENOSPC        1. a spare is given back   2. the reserve shrinks by a step   3. wait until there is room
//!   room again    the reserve grows back; only then publishers go on
//! ```
//! `reserve` is one file whose blocks are taken and whose content means nothing. What needs space and must not fail -
//! recovery, the superblock, a commit, a checkpoint, compaction - asks [`Space::make_room`] when the disk refuses, and
//! tries again. The owner hears of it at once, blocks whoever publishes, and lets acks, purges and deletes through: they
//! are what frees space, and the reserve is for them.
//!
//! 1. Only an operation that may be repeated is: a write of the same bytes at the same place, the creation of a
//!    file, the whole of a file that nobody has seen. A sync is none of these.
//! 2. Everybody has a part of his own, so that none waits for what another one took:
//!    ```text
//!    | commits: pending publishes | dead letters | settles |  checkpoints, compaction  | the next start |
//!    0                           3/8            9/16      3/4                        15/16              1
//!    ```
//!    Publishes are admitted before they are pushed, and never more than can be written into their part: see
//!    [`Admission`]. None is once the disk has refused anything. So no settle stands in the log behind a publish that
//!    there is no room for, whatever was sent before anybody knew.
//! 3. Checkpoints and compaction free what settles have left, and borrow from the commits for that, but neither the settles'
//!    part nor what is pending. A broker that died in the middle of it starts again, and frees some.
//! 4. Settles alone could use up their part only faster than checkpoints free the log they are written to; a commit
//!    that finds no room even so waits, and goes on when somebody makes some. Reading and delivering need none.
//! 5. A store that never had much under way has a small reserve, so that an idle directory stays small. The first burst
//!    makes it a large one.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::admission::Admission;
use super::error::StorageError;
use super::file::write_all;
use super::format::RESERVE_FILE;
use super::pool::Pool;
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::sync::lock;

/// Reserve of a store that hardly writes.
const SMALL_BYTES: u64 = 256 << 10;
/// Reserve of others, in segments.
const SEGMENT_COUNT: u64 = 2;
/// Least that is given at once.
const STEP_BYTES_MIN: u64 = 16 << 10;
/// Part of it that is not for commits.
const VITAL_SHARE: u64 = 4;
/// Part of what is for commits that nothing but settles takes.
const SETTLE_SHARE: u64 = 4;
/// Part of what is for commits after which a checkpoint should free what was settled.
const CHECKPOINT_SHARE: u64 = 8;
/// Part of it that is for starts alone, and at least a step.
const START_SHARE: u64 = 16;
/// Part of the disk that the reserve takes at most: on a small one, two segments would be all of it.
const DISK_SHARE: u64 = 16;
/// Part of the goal that is given at once.
const STEP_SHARE: u64 = 16;
/// Zeros written at once where blocks cannot be allocated.
const FILL_CHUNK_BYTES: usize = 1 << 20;

/// Attempts to get a file descriptor.
const DESCRIPTOR_ATTEMPTS: u32 = 100;
/// Pause between them.
const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(20);

/// Who asks for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// A commit.
    Commit,
    /// What a start needs, or what frees space.
    Vital,
}

struct State {
    file: Option<Arc<dyn DiskFile>>,
    len_bytes: u64,
    goal_bytes: u64,
    /// The goal that it last reached: what its parts are parts of.
    whole_bytes: u64,
    /// What commits have been given of it since.
    committed_bytes: u64,
}

impl State {
    /// The part for commits, when it is whole.
    fn commit_bytes(&self) -> u64 {
        self.whole_bytes - self.whole_bytes / VITAL_SHARE
    }

    /// The part for starts.
    fn start_bytes(&self) -> u64 {
        (self.whole_bytes / START_SHARE).max(STEP_BYTES_MIN)
    }

    /// The part for what frees space.
    fn own_vital_bytes(&self) -> u64 {
        self.whole_bytes
            .saturating_sub(self.commit_bytes() + self.start_bytes())
    }

    /// What others than commits have been given.
    fn vital_bytes(&self) -> u64 {
        self.whole_bytes
            .saturating_sub(self.len_bytes + self.committed_bytes)
    }

    /// What commits may still have: their part, but for what was borrowed of it.
    fn commit_left_bytes(&self) -> u64 {
        let borrowed_bytes = self.vital_bytes().saturating_sub(self.own_vital_bytes());
        self.commit_bytes()
            .saturating_sub(borrowed_bytes + self.committed_bytes)
    }

    /// What a checkpoint may still have while so much is `pending_bytes` in the log, keeps (3).
    fn vital_left_bytes(&self, pending_bytes: u64) -> u64 {
        let kept_bytes = self.commit_bytes() / SETTLE_SHARE + pending_bytes;
        self.own_vital_bytes().saturating_sub(self.vital_bytes())
            + self.commit_left_bytes().saturating_sub(kept_bytes)
    }

    /// As it was found, or has become: it is not known any more who took what is missing, and commits come first.
    fn settle_accounts(&mut self) {
        let missing_bytes = self.whole_bytes.saturating_sub(self.len_bytes);
        self.committed_bytes = missing_bytes.min(self.commit_bytes());
    }
}

/// See the module.
pub(crate) struct Space {
    pub(crate) pool: Pool,
    disk: Arc<dyn Disk>,
    segment_size_bytes: u64,
    reserve: Mutex<State>,
    /// Who may push how much before it is durable.
    pub(crate) admission: Admission,
    /// What commits had been given of the reserve at the last checkpoint.
    checkpointed_bytes: AtomicU64,
    /// The large reserve is wanted.
    is_large_wanted: AtomicBool,
    /// The start is over: what is left for the next one is not touched any more.
    is_started: AtomicBool,
    /// The disk refused something, and the reserve is not whole again since.
    is_short: AtomicBool,
    /// The reserve is to be made whole; by the thread that prepares segments, or a step by hand.
    is_refill_wanted: AtomicBool,
}

/// Does `act` again and again, as long as it fails for lack of space and some can be given, and for some seconds as long as
/// there is no file descriptor, which nothing here can give.
///
/// # Errors
/// Those of `act`; `Full` when there is nothing left to give.
pub(crate) fn with_room<T>(
    space: &Space,
    mut act: impl FnMut() -> Result<T, StorageError>,
) -> Result<T, StorageError> {
    let mut attempts_left = DESCRIPTOR_ATTEMPTS;
    loop {
        match act() {
            Err(StorageError::NoDescriptor { .. }) if attempts_left > 0 => {
                attempts_left -= 1;
                std::thread::sleep(DESCRIPTOR_PAUSE);
            }
            Err(error @ StorageError::Full { .. }) if space.make_room(Need::Vital) => {
                tracing::warn!(%error, "the disk is full; trying again on the reserve");
            }
            done => return done,
        }
    }
}

impl Space {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        segment_size_bytes: u64,
        spare_count_max: usize,
        undurable_max_bytes: u64,
    ) -> Self {
        Self {
            admission: Admission::new(undurable_max_bytes),
            checkpointed_bytes: AtomicU64::new(0),
            is_large_wanted: AtomicBool::new(false),
            pool: Pool::new(Arc::clone(&disk), segment_size_bytes, spare_count_max),
            disk,
            segment_size_bytes,
            reserve: Mutex::new(State {
                file: None,
                len_bytes: 0,
                goal_bytes: 0,
                whole_bytes: 0,
                committed_bytes: 0,
            }),
            is_started: AtomicBool::new(false),
            is_short: AtomicBool::new(false),
            is_refill_wanted: AtomicBool::new(false),
        }
    }

    /// Finds the reserve that is there. One that is larger than the small one says that the log was busy before.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn find_reserve(&self) -> io::Result<()> {
        let path = Path::new(RESERVE_FILE);
        let goal_bytes = self.limited(SMALL_BYTES);
        {
            let mut state = lock(&self.reserve);
            (state.goal_bytes, state.whole_bytes) = (goal_bytes, goal_bytes);
        }
        let file = match self.disk.open(path, OpenMode::ReadWrite) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened?,
        };
        let len_bytes = file.len()?;
        let mut state = lock(&self.reserve);
        (state.file, state.len_bytes) = (Some(file), len_bytes);
        if len_bytes > SMALL_BYTES {
            self.is_large_wanted.store(true, Ordering::SeqCst);
            state.goal_bytes = self.limited(SEGMENT_COUNT * self.segment_size_bytes);
            state.whole_bytes = state.goal_bytes;
        }
        if len_bytes > state.goal_bytes.max(SMALL_BYTES) {
            // Of times with larger segments.
            let goal_bytes = state.goal_bytes;
            if let Some(file) = &state.file {
                file.set_len(goal_bytes)?;
            }
            state.len_bytes = goal_bytes;
        }
        self.tell(&state);
        Ok(())
    }

    /// `bytes`, or what is reasonable on this disk.
    fn limited(&self, bytes: u64) -> u64 {
        let bytes = bytes.min(SEGMENT_COUNT * self.segment_size_bytes);
        match self.disk.free_space() {
            Ok(free) if free.total_bytes > 0 => bytes.min(free.total_bytes / DISK_SHARE),
            Ok(_) | Err(_) => bytes,
        }
    }

    /// Somebody was refused: the reserve shall be the large one, once the thread that prepares segments finds the time.
    pub(crate) fn want_large_reserve(&self) {
        if !self.is_large_wanted.swap(true, Ordering::SeqCst) {
            self.want_refill();
        }
    }

    /// The log is busy: the same, and it shall be whole.
    pub(crate) fn want_whole_reserve(&self) {
        let was_wanted = self.is_large_wanted.swap(true, Ordering::SeqCst);
        // Not while it is being made whole: the commit thread does not wait for that.
        let is_whole = match self.reserve.try_lock() {
            Ok(state) => state.len_bytes >= state.goal_bytes,
            Err(_) => true,
        };
        if !(was_wanted && is_whole) {
            self.want_refill();
        }
    }

    fn want_refill(&self) {
        self.is_refill_wanted.store(true, Ordering::SeqCst);
        self.pool.nudge();
    }

    /// What is left for commits has changed.
    fn tell(&self, state: &State) {
        self.admission
            .set_reserve(state.commit_bytes(), state.commit_left_bytes());
    }

    /// The body of the thread that does what is asked for ahead. Ends after [`Pool::stop`], or with a failed sync,
    /// which the commit thread finds in the pool when `on_failure` rouses it. `on_room` hears of what may let publishers go on.
    pub(crate) fn run(&self, on_failure: impl Fn(), on_room: impl Fn()) {
        while self.pool.wait_for_work() {
            loop {
                match self.work() {
                    Ok(true) => on_room(),
                    Ok(false) => break,
                    Err(error) => {
                        self.pool.set_failed(error);
                        return on_failure();
                    }
                }
            }
        }
    }

    /// Recovery is over: what is left for the next one is not touched any more.
    pub(crate) fn set_started(&self) {
        self.is_started.store(true, Ordering::SeqCst);
        let mut state = lock(&self.reserve);
        state.settle_accounts();
        self.tell(&state);
    }

    /// True when commits have taken so much of the reserve since the last checkpoint that it is time for one: it frees what
    /// they have settled.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        if !self.is_short() {
            return false;
        }
        let state = lock(&self.reserve);
        let taken_bytes = state
            .committed_bytes
            .saturating_sub(self.checkpointed_bytes.load(Ordering::Relaxed));
        taken_bytes > state.commit_bytes() / CHECKPOINT_SHARE
    }

    /// A checkpoint begins.
    pub(crate) fn note_checkpoint(&self) {
        let committed_bytes = lock(&self.reserve).committed_bytes;
        self.checkpointed_bytes
            .store(committed_bytes, Ordering::Relaxed);
    }

    /// True since the disk refused something, until the reserve is whole again.
    pub(crate) fn is_short(&self) -> bool {
        self.is_short.load(Ordering::SeqCst)
    }

    /// Bytes put aside.
    pub(crate) fn reserve_bytes(&self) -> u64 {
        lock(&self.reserve).len_bytes
    }

    /// Gives something back to the file system; false when there is nothing left.
    pub(crate) fn make_room(&self, need: Need) -> bool {
        if !self.is_short.swap(true, Ordering::SeqCst) {
            tracing::error!(
                "the disk is full; going on with what was put aside, publishers have to wait until there is room"
            );
        }
        match self.pool.give_back() {
            Ok(true) => return true,
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "cannot give back a spare segment"),
        }
        self.shrink(need)
    }

    fn shrink(&self, need: Need) -> bool {
        let mut state = lock(&self.reserve);
        let is_started = self.is_started.load(Ordering::SeqCst);
        let may_give_bytes = match need {
            _ if !is_started => state.len_bytes,
            Need::Commit => state.commit_left_bytes(),
            Need::Vital => state.vital_left_bytes(self.admission.pending_bytes()),
        };
        let may_give_bytes = may_give_bytes.min(state.len_bytes);
        let Some(file) = state.file.clone().filter(|_| may_give_bytes > 0) else {
            return false;
        };
        let step_bytes = if is_started {
            (state.whole_bytes / STEP_SHARE).max(STEP_BYTES_MIN)
        } else {
            STEP_BYTES_MIN
        };
        let given_bytes = step_bytes.min(may_give_bytes);
        let left_bytes = state.len_bytes - given_bytes;
        if let Err(error) = file.set_len(left_bytes) {
            tracing::warn!(%error, "cannot shrink the reserve");
            return false;
        }
        state.len_bytes = left_bytes;
        if need == Need::Commit {
            state.committed_bytes += given_bytes;
        }
        self.tell(&state);
        // A journaling file system hands blocks out again only after its next commit. The content means nothing, so
        // a failure says nothing about anything else.
        if let Err(error) = file.sync_all() {
            tracing::warn!(%error, "cannot sync the reserve");
        }
        tracing::warn!(left_bytes, "the reserve shrinks");
        true
    }

    /// Gives back a spare if there are too many: one by one, because a segment may be wanted meanwhile.
    fn trim_by_one(&self) -> bool {
        self.pool.trim_by_one().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot give back a spare segment");
            false
        })
    }

    /// Does what was asked for ahead: the next segment, then the reserve; spares that are too many go. False when there is nothing to do.
    ///
    /// # Errors
    /// A failed sync of a segment.
    pub(crate) fn work(&self) -> Result<bool, StorageError> {
        if self.pool.work()? {
            return Ok(true);
        }
        let is_wanted = self.is_refill_wanted.swap(false, Ordering::SeqCst);
        if is_wanted {
            self.refill();
        }
        Ok(is_wanted || self.trim_by_one())
    }

    /// Makes the reserve whole if there is plenty of room for that. True when that ends a shortage.
    pub(crate) fn refill(&self) -> bool {
        let is_large_wanted = self.is_large_wanted.load(Ordering::SeqCst);
        let large_bytes =
            is_large_wanted.then(|| self.limited(SEGMENT_COUNT * self.segment_size_bytes));
        let mut state = lock(&self.reserve);
        state.goal_bytes = state.goal_bytes.max(large_bytes.unwrap_or_default());
        if state.len_bytes < state.goal_bytes && self.has_plenty(state.goal_bytes - state.len_bytes)
        {
            match self.grow(&mut state) {
                Ok(()) => {}
                Err(error) if is_full(&error) => {}
                Err(error) => tracing::warn!(%error, "cannot put space aside"),
            }
        }
        let is_over =
            state.len_bytes >= state.goal_bytes && self.is_short.swap(false, Ordering::SeqCst);
        if is_over {
            tracing::info!("there is room on the disk again, and the reserve is whole");
        }
        is_over
    }

    /// Twice what is missing must be free, so that publishers do not go on just to be stopped again.
    fn has_plenty(&self, missing_bytes: u64) -> bool {
        self.has_free(missing_bytes.saturating_mul(2))
    }

    /// True when so much is free. A file system that does not say how large it is may always be tried.
    pub(crate) fn has_free(&self, bytes: u64) -> bool {
        match self.disk.free_space() {
            Ok(free) if free.total_bytes > 0 => free.available_bytes >= bytes,
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(%error, "cannot measure the free disk space");
                false
            }
        }
    }

    /// Creates the reserve, still empty. Whoever syncs the directory next makes its name durable; that it needs no sync
    /// of its own is because a power cut that takes the name gives the space back too.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn create_reserve(&self) -> io::Result<()> {
        self.open_or_create(&mut lock(&self.reserve)).map(drop)
    }

    fn open_or_create(&self, state: &mut State) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(file) = &state.file {
            return Ok(Arc::clone(file));
        }
        let path = Path::new(RESERVE_FILE);
        let file = self.disk.open(path, OpenMode::CreateNew)?;
        state.file = Some(Arc::clone(&file));
        Ok(file)
    }

    fn grow(&self, state: &mut State) -> io::Result<()> {
        let file = self.open_or_create(state)?;
        let taken = match file.allocate(state.goal_bytes) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                fill(&*file, state.len_bytes, state.goal_bytes)
            }
            allocated => allocated,
        };
        if let Err(error) = taken.and_then(|()| file.sync_all()) {
            // What was taken in part is of no use and may be all there was.
            file.set_len(state.len_bytes)?;
            return Err(error);
        }
        state.len_bytes = state.goal_bytes;
        state.whole_bytes = state.goal_bytes;
        state.committed_bytes = 0;
        self.checkpointed_bytes.store(0, Ordering::Relaxed);
        self.tell(state);
        Ok(())
    }
}

/// Takes blocks by writing them.
fn fill(file: &dyn DiskFile, from: u64, to: u64) -> io::Result<()> {
    let zeros = vec![0; FILL_CHUNK_BYTES];
    let mut at = from;
    while at < to {
        let len = usize::try_from(to - at).map_or(FILL_CHUNK_BYTES, |left| left.min(zeros.len()));
        write_all(file, zeros.get(..len).unwrap_or_default(), at)?;
        at += len as u64;
    }
    Ok(())
}

/// True for the ways in which a system says that there is no space.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
