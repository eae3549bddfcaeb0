//! What was done to a simulated disk, for assertions about order.

use std::path::PathBuf;

use super::plan::Trigger;

/// What an operation does. Reads are not in the journal: a crash at a read is a crash at the next change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A file was created.
    Create,
    /// A directory was created.
    CreateDir,
    /// Bytes were written.
    Write {
        /// Place in the file.
        offset: u64,
        /// How many.
        len_bytes: u64,
    },
    /// The length was set.
    SetLen {
        /// The new length.
        len_bytes: u64,
    },
    /// Space was reserved.
    Allocate {
        /// From the start of the file.
        len_bytes: u64,
    },
    /// fdatasync.
    SyncData,
    /// fsync.
    SyncAll,
    /// The file was renamed; the path of the operation is the old name.
    Rename {
        /// The new name.
        to: PathBuf,
    },
    /// The file was removed.
    Remove,
    /// A directory was synced.
    SyncDir,
}

impl Action {
    pub(super) const fn trigger(&self) -> Trigger {
        match self {
            Self::Create | Self::CreateDir => Trigger::Create,
            Self::Write { .. } => Trigger::Write,
            Self::SetLen { .. } | Self::Allocate { .. } => Trigger::Resize,
            Self::SyncData | Self::SyncAll => Trigger::Sync,
            Self::Rename { .. } => Trigger::Rename,
            Self::Remove => Trigger::Remove,
            Self::SyncDir => Trigger::SyncDir,
        }
    }
}

/// One operation that changed the disk or tried to. Its index in the journal is its operation number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What was asked for.
    pub action: Action,
    /// The file or directory, by the name it had then.
    pub path: PathBuf,
    /// The caller was told of success.
    pub is_ok: bool,
    /// When the operation began, the name was on the medium and led to this file: a crash could not lose it.
    pub is_name_durable: bool,
    /// The file existed when the power came back the last time: it belongs to an earlier epoch.
    pub is_inherited: bool,
}
