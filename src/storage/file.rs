//! Small habits of handling files: errors that name them, durable creation, whole reads.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::StorageError;
use super::format::TEMP_EXTENSION;
use super::reserve::is_full;
use crate::disk::{Disk, DiskFile, OpenMode, is_out_of_descriptors};

/// Turns the system's refusal of `operation` on `path` into the engine's error.
pub(crate) fn io_error<'a>(
    disk: &'a dyn Disk,
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> StorageError + 'a {
    move |source| StorageError::Io {
        operation,
        path: disk.describe(path),
        source,
    }
}

/// As [`io_error`], for an operation that may be repeated when there is room again: never for a sync.
pub(crate) fn room_error<'a>(
    disk: &'a dyn Disk,
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> StorageError + 'a {
    move |source| {
        if is_out_of_descriptors(&source) {
            let path = disk.describe(path);
            return StorageError::NoDescriptor { operation, path };
        }
        if is_full(&source) {
            let path = disk.describe(path);
            return StorageError::Full { operation, path };
        }
        io_error(disk, operation, path)(source)
    }
}

/// An error that says where bytes are wrong.
pub(crate) fn damaged(
    disk: &dyn Disk,
    path: &Path,
    offset: u64,
    detail: impl Into<String>,
) -> StorageError {
    StorageError::Damaged {
        path: disk.describe(path),
        offset,
        detail: detail.into(),
    }
}

/// Writes all of `bytes` at `offset`.
pub(crate) fn write_all(file: &dyn DiskFile, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_at(&[IoSlice::new(bytes)], offset)
}

/// Reads `len` bytes at `offset`, or what there is of them.
pub(crate) fn read_up_to(file: &dyn DiskFile, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let read = file.read_at(&mut bytes, offset)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Path of the temporary file that becomes `path`.
pub(crate) fn temp_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(TEMP_EXTENSION);
    name.into()
}

/// Creates a temporary file beside `path`; a leftover of an earlier attempt is replaced.
pub(crate) fn create_temp(disk: &dyn Disk, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
    let temp = temp_path(path);
    match disk.remove(&temp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    disk.open(&temp, OpenMode::CreateNew)
}

/// Makes the temporary file of `path` the durable file `path`.
///
/// ```text
/// t1 sync the content, t2 rename, t3 sync the directory
/// crash before t2 -> a leftover with a temporary name, removed by the next attempt
/// crash between t2 and t3 -> the old file or the whole new one, never a part
/// ```
pub(crate) fn publish_temp(disk: &dyn Disk, file: &dyn DiskFile, path: &Path) -> io::Result<()> {
    file.sync_all()?;
    disk.rename(&temp_path(path), path)?;
    disk.sync_dir(path.parent().unwrap_or(Path::new("")))
}

/// Entries of a directory; none when it does not exist.
pub(crate) fn list_or_empty(disk: &dyn Disk, path: &Path) -> Result<Vec<PathBuf>, StorageError> {
    match disk.list(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.map_err(io_error(disk, "list", path)),
    }
}
