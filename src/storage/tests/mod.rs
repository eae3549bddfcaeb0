//! Tests of the engine as a whole, on the simulated disk. Exhaustive crash points are in `tests/`.

mod admission;
mod bytes_on_disk;
mod commits;
mod compacting;
mod damage;
mod every_byte;
mod filing;
mod full_disk;
mod full_disk_crashes;
mod gathering;
mod invariants;
mod kept_aside;
mod lifecycle;
mod recycling;
mod salvage;
mod scrub;
mod scrub_rounds;
mod spilling;

use std::path::Path;
use std::sync::Arc;

use super::testing::LiveStore;
use super::{FsyncPolicy, Options, Recovered, StorageError};
use crate::disk::sim::{CrashChoice, SimClock, SimDisk};
use crate::disk::{Disk, OpenMode};

/// Smallest segments, and everything else as in production.
fn options() -> Options {
    Options {
        segment_size_bytes: 64 * 1024,
        ..Options::default()
    }
}

fn with_policy(fsync: FsyncPolicy) -> Options {
    Options { fsync, ..options() }
}

/// Bytes of a disk that is large enough for everything.
const PLENTY: u64 = 1 << 40;

/// A disk, a clock and what runs on them.
struct Rig {
    disk: SimDisk,
    clock: SimClock,
    options: Options,
}

impl Rig {
    fn new(options: Options) -> Self {
        Self {
            disk: SimDisk::new(1),
            clock: SimClock::new(1_000_000),
            options,
        }
    }

    fn try_open(&self) -> Result<(LiveStore, Recovered), StorageError> {
        LiveStore::open_by_hand(
            Arc::new(self.disk.clone()),
            Arc::new(self.clock.clone()),
            self.options.clone(),
        )
    }

    #[track_caller]
    fn open(&self) -> (LiveStore, Recovered) {
        self.try_open().expect("the store opens")
    }

    /// What is left when the power fails now and nothing that was not synced survives.
    fn after_power_loss(&self) -> Self {
        self.after_crash(&CrashChoice::keep_nothing())
    }

    /// Leaves so many bytes of the disk free, up to a sector more; somebody else's file takes the rest.
    #[track_caller]
    fn leave(&self, free_bytes: u64) {
        self.disk.set_capacity(Some(PLENTY));
        let path = Path::new("somebody's");
        let file = self
            .disk
            .open(path, OpenMode::ReadWrite)
            .or_else(|_| self.disk.open(path, OpenMode::CreateNew))
            .unwrap();
        file.set_len(0).unwrap();
        let available_bytes = self.disk.free_space().unwrap().available_bytes;
        file.allocate(available_bytes - free_bytes).unwrap();
        file.sync_all().unwrap();
        self.disk.sync_dir(Path::new("")).unwrap();
        let left = self.disk.free_space().unwrap().available_bytes;
        assert!((free_bytes..free_bytes + 512).contains(&left));
    }

    fn after_crash(&self, choice: &CrashChoice) -> Self {
        Self {
            disk: self.disk.power_cycle(choice),
            clock: self.clock.clone(),
            options: self.options.clone(),
        }
    }
}
