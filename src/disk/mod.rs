//! The only door to the file system.
//!
//! Everything the storage engine does to files goes through [`Disk`] and [`DiskFile`], directory listing,
//! rename and directory sync included: crash bugs hide in just those operations, so a seam with a hole in
//! it would prove nothing. [`RealDisk`] is the operating system; [`sim::SimDisk`] is a simulated one with
//! seeded torn writes, lost unsynced data, failing syncs and full disks. Both pass one conformance suite.
//!
//! All paths are relative to the root of one data directory. Calls are synchronous on purpose: they are
//! made on the engine's own threads, never on a network thread.

#[cfg(test)]
mod conformance;
mod descriptors;
pub mod fault;
mod file_system;
mod large_page;
pub mod machine;
mod real;
pub mod sim;
pub mod small_file;

use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use descriptors::is_out_of_descriptors;
pub use large_page::{LARGE_PAGE_BYTES, LargePage};
pub use real::{RealClock, RealDisk};

/// What a write or read that goes past the system's cache is made of: its buffers begin at multiples of this in memory, and their
/// lengths and the offset are multiples of it.
pub const DIRECT_ALIGN_BYTES: usize = 4096;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Existing file, reading only.
    Read,
    /// Existing file, reading and writing.
    ReadWrite,
    /// New file; fails with `AlreadyExists` when the name is taken.
    CreateNew,
}

/// Free and total bytes of the file system that holds the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreeSpace {
    /// Bytes an unprivileged process may still allocate.
    pub available_bytes: u64,
    /// Size of the file system; 0 means the file system does not say (treat as unknown).
    pub total_bytes: u64,
}

/// A held lock of the data directory; released when dropped or when the process dies.
pub trait DirectoryLock: Send + Sync {}

/// A file system rooted at one data directory.
pub trait Disk: Send + Sync + 'static {
    /// Opens or creates `path`. A created name is durable only after [`Disk::sync_dir`] of its directory.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;
    /// Atomically replaces `to` by `from`; durable after `sync_dir` of the directory. Both are files of one
    /// directory.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file; durable after `sync_dir`.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Names of the entries directly below directory `path`, sorted; `NotFound` when it does not exist.
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>>;
    /// Creates a directory (parents must exist); an existing one is not an error.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes creations, renames and removals in `path` durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// As [`DiskFile::sync_data`] of each of these files, all at once where the system can. They all exist. After an
    /// error nothing is known about any of them since the last success; it must never be retried.
    fn sync_files(&self, paths: &[PathBuf]) -> io::Result<()>;
    /// Takes the exclusive lock on `path` (created when missing). `WouldBlock` when another process holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn DirectoryLock>>;
    /// Space left for the data directory.
    fn free_space(&self) -> io::Result<FreeSpace>;
    /// An anonymous file, gone when closed or when the process dies.
    fn temp_file(&self) -> io::Result<Arc<dyn DiskFile>>;
    /// A read-only view of a whole file that nobody will ever change again.
    fn map_sealed(&self, path: &Path) -> io::Result<Box<dyn AsRef<[u8]> + Send + Sync>>;
    /// Where the data directory is, for messages to people.
    fn describe(&self, path: &Path) -> String;
}

/// One open file. Positions are explicit, so a file may be shared between threads.
pub trait DiskFile: Send + Sync {
    /// Reads up to `buffer.len()` bytes at `offset`; fewer only at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `buffers` one after the other at `offset`, extending the file when needed.
    fn write_at(&self, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Size of the file in bytes.
    fn len(&self) -> io::Result<u64>;
    /// True when the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or (with zeros) extends the file.
    fn set_len(&self, len_bytes: u64) -> io::Result<()>;
    /// Reserves space for the first `len_bytes`, so that writes there cannot fail for lack of it. A shorter file
    /// grows to that size, with zeros. `Unsupported` where the file system cannot.
    fn allocate(&self, len_bytes: u64) -> io::Result<()>;
    /// fdatasync: the data and the size are on stable storage when it returns. After an error nothing
    /// is known about any write since the last success; it must never be retried.
    fn sync_data(&self) -> io::Result<()>;
    /// fsync: as [`DiskFile::sync_data`], with all metadata.
    fn sync_all(&self) -> io::Result<()>;
    /// Has what is written or read through this handle go past the system's cache from now on: it is on its way to the
    /// device when a write returns, but no less in need of a sync. False where that is not possible, and everything goes on
    /// as before. All writes and reads must then keep to [`DIRECT_ALIGN_BYTES`]; at the end of a file a read may be refused
    /// that a cache would have served. Nobody may write through another handle than one that writes like this. Other
    /// handles read the same bytes.
    fn bypass_cache(&self) -> bool;
    /// Whether it goes past the cache: a file system that cannot may say so only when it meets the first one.
    fn bypasses_cache(&self) -> bool;
    /// Drops clean cached pages, so that the next read comes from the device.
    fn drop_cache(&self) -> io::Result<()>;
    /// Drops clean cached pages that lie within these bytes: a hint that nobody will want them soon.
    fn drop_range(&self, bytes: Range<u64>) -> io::Result<()>;
}

/// Wall clock time for records and expiry. Advances monotonically within one process.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since 1970-01-01 UTC.
    fn unix_ms(&self) -> u64;
    /// Nanoseconds since an arbitrary fixed point, for measuring durations.
    fn monotonic_ns(&self) -> u64;
}
