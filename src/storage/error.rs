//! What can go wrong in the engine, split by what the caller does about it.

use std::io;

use super::types::Lsn;

/// Why the engine could not be opened, or why it had to stop.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// Another process holds the lock. Stop that process, or choose another directory.
    #[error("data directory {path} is locked by another broker")]
    Locked {
        /// The data directory.
        path: String,
    },
    /// The directory has content and none of it is ours. Nothing was changed; choose another directory.
    #[error("{path} is not a data directory and not empty (found {found}); choose an empty one")]
    NotADataDirectory {
        /// The directory.
        path: String,
        /// First foreign entry.
        found: String,
    },
    /// Written by a later release. Nothing was changed; use that release.
    #[error(
        "{path} needs a reader of format version {found} or later, this program reads version {supported}"
    )]
    NewerFormat {
        /// The file.
        path: String,
        /// Oldest reader version that may open it.
        found: u32,
        /// Version this program reads.
        supported: u32,
    },
    /// Bytes that were proven durable do not verify. Nothing was changed; inspect with the dump tool.
    #[error(
        "damaged data in {path} at offset {offset}: {detail}; nothing was changed: keep a copy of the data directory, \
         `strata-dump verify DIR` lists all damage, `strata-dump export DIR` gets the readable messages out, \
         `--on-corruption quarantine` starts without what is damaged"
    )]
    Damaged {
        /// The file.
        path: String,
        /// Where the damage starts in the file.
        offset: u64,
        /// What was expected and what was found.
        detail: String,
    },
    /// The operating system refused an operation.
    #[error("cannot {operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// There was no file descriptor for an operation that may be repeated: nothing that is given up on the disk makes one.
    #[error("cannot {operation} {path}: no file descriptor left")]
    NoDescriptor {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: String,
    },
    /// There was no space for an operation that may be repeated: free some, then try again.
    #[error("cannot {operation} {path}: no space left on the device")]
    Full {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: String,
    },
    /// The engine was closed while the log waited for room, or for a file descriptor. Nothing is wrong with the directory: it
    /// opens as after a crash, with the disk still full, too.
    #[error(
        "stopped while there was no room on the disk, or no file descriptor, to go on writing {path}; what was confirmed is kept, \
         publishes and acks that were not committed are not"
    )]
    ClosedFull {
        /// The segment file.
        path: String,
    },
    /// The engine stopped after an earlier error; nothing is committed any more. Restart and recover.
    #[error("the storage engine has stopped: {reason}")]
    Stopped {
        /// The earlier error.
        reason: String,
    },
}

impl StorageError {
    /// True when the system had no space, whatever the operation was.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Io { source, .. } => super::reserve::is_full(source),
            _ => false,
        }
    }
}

/// Why one message could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The position lies beyond everything that was pushed. A wrong position.
    #[error("no record was written at {lsn} yet")]
    NotYetWritten {
        /// The position asked for.
        lsn: Lsn,
    },
    /// The segment is gone: the message was settled and its segment freed meanwhile. Look it up again.
    #[error("segment of {lsn} was freed")]
    Freed {
        /// The position asked for.
        lsn: Lsn,
    },
    /// The bytes at the position are not that message or fail their checksum. Look the position up once
    /// more; if it has not changed, quarantine the message. Never deliver, never settle it.
    #[error("damaged record in {path} at offset {offset}: {detail}")]
    Damaged {
        /// The segment file.
        path: String,
        /// Start of the record in the file.
        offset: u64,
        /// What was expected and what was found.
        detail: String,
    },
    /// The operating system refused to read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The segment file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}
