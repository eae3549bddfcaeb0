//! Why a command failed, and the exit code that says so.

use std::io;

use stratamq::broker::RestoreError;
use stratamq::storage::StorageError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DumpError {
    /// The engine's own words name file, offset and remedy.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The directory is not one of a broker.
    #[error(
        "{path} is not a StrataMQ data directory: it has no superblock; name the broker's --data-dir"
    )]
    NotADataDirectory {
        /// The directory.
        path: String,
    },
    /// The directory or its lock cannot be looked at.
    #[error("{0}; name the broker's --data-dir and check its permissions")]
    Directory(io::Error),
    /// The checks are right, but the broker's own bytes are not understood.
    #[error("cannot read the topology in {path}: {error}; use the release that wrote it")]
    Topology {
        /// The data directory.
        path: String,
        /// What is wrong.
        error: RestoreError,
    },
    /// A queue that does not exist, or several that do.
    #[error("{0}; `strata-dump queues` lists them")]
    Queue(String),
    /// A queue is named, but topology cannot be read.
    #[error(
        "the directory is damaged and the names of queues cannot be read: give the id of {0:?}; `strata-dump verify` \
         says where the damage is"
    )]
    NoNames(String),
    /// `verify` has said where and what.
    #[error(
        "{count} place(s) of {path} are damaged; nothing was changed: keep a copy before anything else"
    )]
    Damaged {
        /// The data directory.
        path: String,
        /// Findings.
        count: u64,
    },
    /// Standard output is gone.
    #[error("cannot write the output: {0}")]
    Output(io::Error),
}

impl DumpError {
    /// The code the process ends with.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Storage(StorageError::Damaged { .. })
            | Self::Damaged { .. }
            | Self::NoNames(_) => 3,
            Self::Topology {
                error: RestoreError::Malformed { .. },
                ..
            } => 3,
            Self::Queue(_) => 2,
            _ => 1,
        }
    }

    /// Both copies of the superblock are missing; perhaps there is a log all the same.
    pub(crate) fn is_missing_superblock(&self) -> bool {
        matches!(self, Self::NotADataDirectory { .. })
    }

    /// The system says that a file is not there.
    pub(crate) fn is_missing_file(&self) -> bool {
        matches!(self, Self::Storage(StorageError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound)
    }
}
