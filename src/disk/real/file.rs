//! An open file of the operating system.
//!
//! Short reads and writes are continued where they ended, `EINTR` and the limit of buffers a call are dealt with; a caller sees all
//! or an error. A failed sync is passed on and never repeated: after it the kernel may have marked the lost pages clean.

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice};
use std::num::NonZero;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Advice, FallocateFlags, OFlags};

use super::named;
use crate::disk::DiskFile;
use crate::disk::fault::{self, Fault};

/// Most buffers one `pwritev` takes on Linux (`UIO_MAXIOV`).
const IOV_MAX: usize = 1024;

/// An open file of the operating system.
pub(super) struct RealFile {
    file: File,
    /// For error texts; wrong after a rename, which is why it is not used for anything else.
    path: PathBuf,
    /// Writes and reads go past the system's cache.
    is_direct: AtomicBool,
}

impl RealFile {
    pub(super) fn new(file: File, path: PathBuf) -> Self {
        Self {
            file,
            path,
            is_direct: AtomicBool::new(false),
        }
    }

    fn set_direct(&self, is_direct: bool) -> io::Result<()> {
        let mut flags = rustix::fs::fcntl_getfl(&self.file)?;
        flags.set(OFlags::DIRECT, is_direct);
        rustix::fs::fcntl_setfl(&self.file, flags)?;
        self.is_direct.store(is_direct, Ordering::Relaxed);
        Ok(())
    }

    fn error(&self, act: &str, error: &io::Error) -> io::Error {
        named(&self.path, act, error)
    }
}

impl DiskFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        read_fully(buffer, offset, |part, at| self.file.read_at(part, at))
            .map_err(|e| self.error("read", &e))
    }

    fn write_at(&self, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let pwritev = |part: &[IoSlice<'_>], at| Ok(rustix::io::pwritev(&self.file, part, at)?);
        let mut written = write_fully(buffers, offset, pwritev);
        let is_refused = |e: &io::Error| e.kind() == ErrorKind::InvalidInput;
        if written.as_ref().is_err_and(is_refused) && self.is_direct.load(Ordering::Relaxed) {
            // Some systems say only now that they cannot, or that their blocks are larger.
            tracing::info!(path = %self.path.display(), "writes go through the cache of the system");
            written = self
                .set_direct(false)
                .and_then(|()| write_fully(buffers, offset, pwritev));
        }
        written.map_err(|e| self.error("write", &e))
    }

    fn len(&self) -> io::Result<u64> {
        self.file
            .metadata()
            .map(|metadata| metadata.len())
            .map_err(|e| self.error("measure", &e))
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.file
            .set_len(len_bytes)
            .map_err(|e| self.error("resize", &e))
    }

    fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        // Not `posix_fallocate`, which quietly writes zeros where the file system cannot allocate.
        let allocate = || rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, len_bytes);
        match rustix::io::retry_on_intr(allocate) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                Err(self.error("allocate", &ErrorKind::Unsupported.into()))
            }
            Err(e) => Err(self.error("allocate", &e.into())),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        if fault::is_active(Fault::SkipSync) {
            return Ok(());
        }
        self.file.sync_data().map_err(|e| self.error("sync", &e))
    }

    fn sync_all(&self) -> io::Result<()> {
        if fault::is_active(Fault::SkipSync) {
            return Ok(());
        }
        self.file.sync_all().map_err(|e| self.error("sync", &e))
    }

    fn bypass_cache(&self) -> bool {
        self.set_direct(true).is_ok()
    }

    fn bypasses_cache(&self) -> bool {
        self.is_direct.load(Ordering::Relaxed)
    }

    fn drop_cache(&self) -> io::Result<()> {
        rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed)
            .map_err(|e| self.error("drop the cache of", &e.into()))
    }

    fn drop_range(&self, bytes: Range<u64>) -> io::Result<()> {
        // A length of 0 would mean all that follows.
        let Some(len) = NonZero::new(bytes.end.saturating_sub(bytes.start)) else {
            return Ok(());
        };
        rustix::fs::fadvise(&self.file, bytes.start, Some(len), Advice::DontNeed)
            .map_err(|e| self.error("drop cached pages of", &e.into()))
    }
}

/// Repeats `read` until `buffer` is full or the file ends; answers how many bytes were read.
fn read_fully(
    buffer: &mut [u8],
    offset: u64,
    mut read: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match read(&mut buffer[done..], position(offset, done)?) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Repeats `write` (at most [`IOV_MAX`] buffers each) until all of `buffers` is written.
fn write_fully(
    buffers: &[IoSlice<'_>],
    offset: u64,
    mut write: impl FnMut(&[IoSlice<'_>], u64) -> io::Result<usize>,
) -> io::Result<()> {
    let mut done = 0;
    // The first buffer that is not written completely, and how much of it is.
    let (mut index, mut within) = (0, 0);
    loop {
        while index < buffers.len() && within == buffers[index].len() {
            (index, within) = (index + 1, 0);
        }
        if index == buffers.len() {
            return Ok(());
        }
        let rest = [IoSlice::new(&buffers[index][within..])];
        // The rest of a half-written buffer goes alone, so that nothing has to be copied.
        let part = match within {
            0 => &buffers[index..buffers.len().min(index + IOV_MAX)],
            _ => &rest[..],
        };
        match write(part, position(offset, done)?) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => {
                done += count;
                (index, within) = advance(buffers, index, within, count);
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// The place `count` bytes after byte `within` of buffer `index`.
fn advance(
    buffers: &[IoSlice<'_>],
    mut index: usize,
    mut within: usize,
    mut count: usize,
) -> (usize, usize) {
    while count > 0 {
        let step = count.min(buffers[index].len() - within);
        (within, count) = (within + step, count - step);
        if count > 0 {
            (index, within) = (index + 1, 0);
        }
    }
    (index, within)
}

fn position(offset: u64, done: usize) -> io::Result<u64> {
    offset
        .checked_add(done as u64)
        .ok_or_else(|| ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A writer that takes at most `step` bytes a call, answers `EINTR` to every third one, and refuses
    /// more than `IOV_MAX` buffers as the kernel does.
    #[track_caller]
    fn check_write(lens: &[usize], step: usize) {
        let content: Vec<Vec<u8>> = lens
            .iter()
            .enumerate()
            .map(|(i, len)| vec![u8::try_from(i % 251).expect("small"); *len])
            .collect();
        let buffers: Vec<IoSlice<'_>> = content.iter().map(|b| IoSlice::new(b)).collect();
        let mut written = Vec::new();
        let mut calls = 0;
        write_fully(&buffers, 7, |part, at| {
            calls += 1;
            if calls % 3 == 0 {
                return Err(ErrorKind::Interrupted.into());
            }
            assert!(part.len() <= IOV_MAX, "EINVAL");
            assert_eq!(
                at,
                7 + written.len() as u64,
                "offset follows what was taken"
            );
            let bytes: Vec<u8> = part
                .iter()
                .flat_map(|b| b.iter().copied())
                .take(step)
                .collect();
            written.extend_from_slice(&bytes);
            Ok(bytes.len())
        })
        .expect("every byte is taken in the end");
        assert_eq!(written, content.concat());
    }

    #[test]
    fn short_writes_are_continued_where_they_ended() {
        check_write(&[], 10);
        check_write(&[0, 0], 10);
        check_write(&[5], 1);
        check_write(&[0, 3, 0, 4, 0], 2);
        check_write(&[10, 10, 10], 10);
        check_write(&[10, 10, 10], 15);
        check_write(&vec![3; 2 * IOV_MAX + 5], usize::MAX);
        check_write(&vec![3; 2 * IOV_MAX + 5], 1000);
    }

    #[test]
    fn a_device_that_takes_nothing_is_an_error() {
        let error = write_fully(&[IoSlice::new(b"x")], 0, |_, _| Ok(0)).expect_err("no progress");
        assert_eq!(error.kind(), ErrorKind::WriteZero);
    }
}
