//! A simulated disk that forgets what was not synced, and worse.
//!
//! It keeps everything in memory and is deterministic: the same calls on a disk of the same seed have the same
//! results. A test drives the storage engine on it, lets the power fail, looks at what may be left, and starts the
//! engine again.
//!
//! ```text
//!  engine --open, write, sync, rename--> SimDisk --power_cycle(choice)--> SimDisk --> engine recovers --> oracle
//!                                           |                 ^
//!            crash_at(op), inject(fault) ---+                 +--- choices(): all subsets of unsynced(), or samples
//! ```
//!
//! # What it does to its user
//! 1. *Unsynced data*: a crash keeps any subset of the sectors (512 bytes), lengths and directory entries that were
//!    not synced. See [`CrashChoice`].
//! 2. *Names*: a created, renamed or removed name is durable only after `sync_dir` of its directory; syncing the
//!    file is not enough. A renamed file exists under its old or its new name, or under neither when its
//!    creation was lost as well.
//! 3. *Failing syncs*: a sync that fails loses data that no later sync will write, while reads go on showing it until
//!    the cache is dropped.
//! 4. *Full disk*: a write that does not fit lands in part and fails with `StorageFull`.
//! 5. *Damage*: [`SimDisk::flip_bit`], [`SimDisk::write_durably`] change the medium behind the engine's back;
//!    [`SimDisk::set_lying`] makes every sync an empty promise.
//!
//! # Crash points
//! Every call that changes the disk is an *operation*; its number is its index in [`SimDisk::journal`]. With
//! [`SimDisk::crash_at`] operation n does not take place, and from there on every call fails with an error that
//! [`SimDisk::is_crash`] recognises, on all handles and for ever: the engine dies as at a power failure, however many
//! threads it has. Then [`SimDisk::power_cycle`] makes as many surviving disks as the test wants, each with its own
//! future.
//!
//! # Reproducing a failure
//! A failing test must print three things: the seed of its workload, the operation at which it crashed, and the
//! [`CrashChoice`] (its `Debug` text names the constructor and its arguments). With the three the run is repeated exactly:
//!
//! ```
//! use std::io::IoSlice;
//! use std::path::Path;
//! use stratamq::disk::sim::{CrashChoice, SimDisk};
//! use stratamq::disk::{Disk, OpenMode};
//!
//! // The workload: stops at the first error, as the engine does.
//! fn workload(disk: &SimDisk) -> std::io::Result<()> {
//!     let file = disk.open(Path::new("log"), OpenMode::CreateNew)?;
//!     file.write_at(&[IoSlice::new(b"confirmed")], 0)?;
//!     file.sync_data()?;
//!     disk.sync_dir(Path::new(""))
//! }
//!
//! // Printed: seed 7, operation 3, CrashChoice { keep: Nothing, stale_seed: None }. Operation 3 is the sync of the directory.
//! let disk = SimDisk::new(7);
//! disk.crash_at(3);
//! assert!(SimDisk::is_crash(&workload(&disk).unwrap_err()));
//! let survivor = disk.power_cycle(&CrashChoice::keep_nothing());
//! // The data was synced, its name was not.
//! assert!(survivor.list(Path::new("")).unwrap().is_empty());
//! ```
//!
//! With more than one thread on the disk the order of operations is the scheduler's. A test that wants exact
//! repetition waits for the commit thread after each step, or holds it with [`SimDisk::hold_syncs`].

mod clock;
mod content;
mod crash;
mod file;
mod journal;
mod plan;
mod random;
mod state;
#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use clock::SimClock;
pub use crash::{CrashChoice, EXHAUSTIVE_UNIT_COUNT_MAX, Unsynced};
pub use journal::{Action, Operation};
pub use plan::{Effect, Trigger};
pub use random::Random;

use state::{Crashed, State};

/// A simulated disk; see the module. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
}

impl Shared {
    /// A test that panicked while it held the disk has failed already; what else it prints is of use.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SimDisk {
    /// An empty, healthy disk without a limit of space. `seed` decides what a failed sync loses.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::of(State::new(seed))
    }

    fn of(state: State) -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
            }),
        }
    }

    // ---- power failures

    /// Lets the power fail at operation `number`, counted from 0 since the disk was made or power cycled: that
    /// operation does not take place.
    pub fn crash_at(&self, number: u64) {
        self.shared.state().crash_at = Some(number);
    }

    /// Lets the power fail now.
    pub fn crash(&self) {
        self.shared.state().crash();
    }

    /// True once the power has failed.
    #[must_use]
    pub fn is_crashed(&self) -> bool {
        self.shared.state().is_crashed
    }

    /// True for the error of a call after the power failed.
    #[must_use]
    pub fn is_crash(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Crashed>())
    }

    /// What is not durable now, in the order in which it was done.
    #[must_use]
    pub fn unsynced(&self) -> Vec<Unsynced> {
        self.shared
            .state()
            .units()
            .into_iter()
            .map(|(_, unit)| unit)
            .collect()
    }

    /// Choices worth trying for the disk as it is: every subset of [`SimDisk::unsynced`] when there are at most
    /// [`EXHAUSTIVE_UNIT_COUNT_MAX`] units and `count_max` subsets, otherwise `count_max` choices: nothing,
    /// everything, and samples from `seed`.
    #[must_use]
    pub fn choices(&self, count_max: usize, seed: u64) -> Vec<CrashChoice> {
        crash::choices(self.shared.state().units().len(), count_max, seed)
    }

    /// The disk that is there when the power comes back: what was synced, and of the rest what `choice` keeps. The
    /// new disk is healthy, has no handles, no locks, no planned faults and an empty journal. This disk is left as
    /// it is, so that other choices can be tried; whoever still runs on it should have been killed by
    /// [`SimDisk::crash`].
    #[must_use]
    pub fn power_cycle(&self, choice: &CrashChoice) -> Self {
        Self::of(self.shared.state().survivor(choice))
    }

    /// How often the power was cycled since the first disk.
    #[must_use]
    pub fn power_cycle_count(&self) -> u64 {
        self.shared.state().power_cycle_count
    }

    // ---- what happened

    /// The operations since the disk was made or power cycled.
    #[must_use]
    pub fn journal(&self) -> Vec<Operation> {
        self.shared.state().journal.clone()
    }

    /// How many operations there were; the number that the next one gets.
    #[must_use]
    pub fn operation_count(&self) -> u64 {
        self.shared.state().journal.len() as u64
    }

    /// Paths of all files, sorted.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let state = self.shared.state();
        let files = state.live.iter().filter(|(_, node)| node.inode().is_some());
        files.map(|(path, _)| path.clone()).collect()
    }

    /// The bytes of a file as reads see them; works after a crash too.
    ///
    /// # Errors
    /// `NotFound`, `IsADirectory`.
    pub fn contents(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut state = self.shared.state();
        let inode = state.find_file(path)?;
        let content = &state.inode(inode).cache;
        let len = usize::try_from(content.len_bytes).map_err(|_| ErrorKind::OutOfMemory)?;
        let mut bytes = vec![0; len];
        content.read(&mut bytes, 0);
        Ok(bytes)
    }

    // ---- faults

    /// Plans `effect` for the `nth` operation of a kind from now; 1 is the next one.
    ///
    /// # Panics
    /// When `nth` is 0.
    pub fn inject(&self, trigger: Trigger, nth: u64, effect: Effect) {
        self.shared.state().plan.add(trigger, nth, effect);
    }

    /// Forgets the planned faults.
    pub fn clear_faults(&self) {
        self.shared.state().plan.clear();
    }

    /// Sets the size of the disk; `None` means without limit. It may be below what is used.
    pub fn set_capacity(&self, capacity_bytes: Option<u64>) {
        self.shared.state().capacity_bytes = capacity_bytes;
    }

    /// Whether files can be allocated ahead; some file systems cannot.
    pub fn set_allocate_supported(&self, is_supported: bool) {
        self.shared.state().is_allocate_supported = is_supported;
    }

    /// Whether writes and reads can go past the cache; by default they cannot, as on some file systems.
    pub fn set_bypass_supported(&self, is_supported: bool) {
        self.shared.state().is_bypass_supported = is_supported;
    }

    /// Whether the disk says how large it is and how full; some file systems report 0 of 0 blocks.
    pub fn set_size_unknown(&self, is_unknown: bool) {
        self.shared.state().is_size_unknown = is_unknown;
    }

    /// From now on every sync, of files and directories, reports success and does nothing.
    pub fn set_lying(&self, is_lying: bool) {
        self.shared.state().is_lying = is_lying;
    }

    /// Makes syncs of files wait until [`SimDisk::release_syncs`] or a crash. Other calls go on.
    pub fn hold_syncs(&self) {
        self.shared.state().are_syncs_held = true;
    }

    /// Lets waiting syncs go on.
    pub fn release_syncs(&self) {
        let mut state = self.shared.state();
        state.are_syncs_held = false;
        state.changed.notify_all();
    }

    /// Waits until a sync waits because of [`SimDisk::hold_syncs`], or until the power has failed.
    pub fn wait_for_held_sync(&self) {
        let mut state = self.shared.state();
        let changed = Arc::clone(&state.changed);
        while state.held_sync_count == 0 && !state.is_crashed {
            state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Damages one bit of a file, on the medium and in the cache.
    ///
    /// # Errors
    /// `NotFound`, `IsADirectory`.
    ///
    /// # Panics
    /// When the file is shorter.
    pub fn flip_bit(&self, path: &Path, offset: u64, bit: u8) -> io::Result<()> {
        let mut byte = [0];
        {
            let mut state = self.shared.state();
            let inode = state.find_file(path)?;
            let count = state.inode(inode).cache.read(&mut byte, offset);
            assert_eq!(count, 1, "{} has no byte {offset}", path.display());
        }
        self.write_durably(path, offset, &[byte[0] ^ (1 << (bit % 8))])
    }

    /// Changes bytes of a file on the medium and in the cache, behind the back of its user: rot, or a
    /// misdirected write. A later write to the same sector that is not synced yet wins.
    ///
    /// # Errors
    /// `NotFound`, `IsADirectory`.
    pub fn write_durably(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.shared.state();
        let inode = state.find_file(path)?;
        state.inode(inode).overwrite(bytes, offset);
        Ok(())
    }
}
