//! Faults that a test plans: the n-th operation of a kind does not do what it should.

use std::io;

use rustix::io::Errno;

use crate::disk::descriptors::out_of_descriptors;

/// The kinds of operation that a fault can be planned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// `read_at` and `map_sealed`.
    Read,
    /// `write_at`.
    Write,
    /// `sync_data` and `sync_all`.
    Sync,
    /// `sync_dir`.
    SyncDir,
    /// `open` with `CreateNew`, and `create_dir`.
    Create,
    /// `rename`.
    Rename,
    /// `remove`.
    Remove,
    /// `set_len` and `allocate`.
    Resize,
}

/// What the chosen operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Fails with EIO. A failed sync loses some of the unsynced changes (all of them are clean for later
    /// syncs); any other failed operation changes nothing.
    Eio,
    /// Fails with ENOSPC and changes nothing; as EDQUOT and delayed allocation do, it can hit a sync, where
    /// it has the effect of [`Effect::Eio`].
    NoSpace,
    /// Fails for want of a file descriptor and changes nothing; for operations that open a file.
    NoDescriptor,
    /// A write of which only the first bytes land; then it fails with EIO. Other operations: as `Eio`.
    Short {
        /// How many bytes land.
        written_bytes: usize,
    },
    /// A sync that reports success and does nothing: the device dropped the flush. The changes stay unsynced,
    /// so an honest sync later makes them durable. Other operations are not touched.
    LostFlush,
}

impl Effect {
    /// The error that the caller sees.
    pub(super) fn error(self) -> io::Error {
        match self {
            Self::NoSpace => Errno::NOSPC.into(),
            Self::NoDescriptor => out_of_descriptors("no file descriptor".to_owned()),
            Self::Eio | Self::Short { .. } | Self::LostFlush => Errno::IO.into(),
        }
    }
}

/// The faults still to come.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    waiting: Vec<(Trigger, u64, Effect)>,
}

impl Plan {
    /// Plans `effect` for the `nth` operation of the kind from now; 1 is the next one.
    pub(super) fn add(&mut self, trigger: Trigger, nth: u64, effect: Effect) {
        assert!(nth > 0, "operations are counted from 1");
        self.waiting.push((trigger, nth, effect));
    }

    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }

    /// Counts one operation and answers the effect planned for it.
    pub(super) fn strike(&mut self, trigger: Trigger) -> Option<Effect> {
        for (_, left, _) in self
            .waiting
            .iter_mut()
            .filter(|(kind, ..)| *kind == trigger)
        {
            *left -= 1;
        }
        let due = self.waiting.iter().position(|(_, left, _)| *left == 0)?;
        Some(self.waiting.remove(due).2)
    }
}
