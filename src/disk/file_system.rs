//! What not every file system can, and what is done where it cannot: many files made durable at once, files without a
//! name, the free space.
//!
//! # Many files
//! A checkpoint of a thousand long queues has written a thousand index files. Synced one after the other, each pays for
//! a commit of the file system's journal and a flush of the device, and whatever else the disk is doing waits in
//! between. So many files go by one `syncfs`, and a few threads do it where that cannot be relied on:
//!
//! ```text
//!   few files                          fdatasync, one after the other
//!   many, ext4 / XFS / Btrfs, >= 5.8   syncfs, then fdatasync of one of them
//!   many, anywhere else                fdatasync, on a few threads
//! ```
//! 1. `syncfs` says nothing about failed writes before Linux 5.8. Since then it reports each one on the whole file system
//!    since the descriptor was opened, which is why that one is as old as the disk: an error between a write and the
//!    sync is never missed. It may be that of another program's file. Then a checkpoint fails that need not have.
//! 2. On other file systems it may mean less than fdatasync: FUSE does not pass it on, overlays hide errors.
//! 3. fdatasync ends with a flush of the device's cache on all of them; `syncfs` may leave it out when no metadata has
//!    changed. Hence the one after it.
//! 4. `syncfs` writes what other programs have not synced yet, too. Measured beside one that writes as fast as it can,
//!    it was still four times as fast as the files one by one.
//!
//! # The rest
//! Without `O_TMPFILE` a file gets a name that is removed at once. A file system of 0 blocks does not say how full it is: its
//! free space is unknown. Each of the two is said once.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::FreeSpace;
use crate::sync::lock;

/// From so many files on it is worth more than one sync after the other.
const MANY_COUNT: usize = 32;
/// Threads that sync where `syncfs` does not do.
const THREAD_COUNT: usize = 8;
/// Types of file system, as in `statfs(2)`, whose `syncfs` is all that rule 3 needs.
const TRUSTED_TYPES: [u32; 3] = [0xEF53, 0x5846_5342, 0x9123_683E];
/// First version of Linux that reports failed writes, rule 1.
const REPORTING_VERSION: (u32, u32) = (5, 8);

/// The file system of a data directory.
#[derive(Debug)]
pub(super) struct FileSystem {
    /// `syncfs` goes here; open from the start, rule 1.
    root: File,
    is_trusted: bool,
    has_said_size: AtomicBool,
    has_said_unnamed: AtomicBool,
}

impl FileSystem {
    /// That of directory `root`.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub(super) fn of(root: &Path) -> io::Result<Self> {
        let root = File::open(root)?;
        let is_trusted = is_trusted_type(&root) && is_reporting(&release());
        Ok(Self {
            root,
            is_trusted,
            has_said_size: AtomicBool::new(false),
            has_said_unnamed: AtomicBool::new(false),
        })
    }

    /// What the system says of its space; that it says nothing is said once.
    pub(super) fn told(&self, free: FreeSpace) -> FreeSpace {
        if free.total_bytes == 0 && !self.has_said_size.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "this file system does not say how much space is free; there is no alarm before it is full"
            );
        }
        free
    }

    /// A file in `root` that is gone when it is closed. `open` makes one that never had a name, where that is possible.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn temp_file(
        &self,
        root: &Path,
        open: impl FnOnce(&Path) -> Result<OwnedFd, Errno>,
    ) -> io::Result<File> {
        match open(root) {
            // So say a file system that does not know of it, a kernel that does not, and FUSE.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::NOSYS | Errno::INVAL) => {
                if !self.has_said_unnamed.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "this file system has no files without a name; a power cut may leave some called .stratamq-*"
                    );
                }
                let named = tempfile::Builder::new()
                    .prefix(".stratamq-")
                    .tempfile_in(root)?;
                let (file, path) = named.into_parts();
                path.close()?;
                Ok(file)
            }
            opened => Ok(opened?.into()),
        }
    }

    /// Makes data and size of all files durable; `sync` is fdatasync of one. No sync is repeated.
    ///
    /// # Errors
    /// The first one: nothing is known then about any of the files.
    pub(super) fn sync(
        &self,
        files: &[PathBuf],
        sync: impl Fn(&Path) -> io::Result<()> + Sync,
    ) -> io::Result<()> {
        match files.last() {
            Some(last) if files.len() >= MANY_COUNT && self.is_trusted => {
                rustix::fs::syncfs(&self.root)?;
                sync(last)
            }
            Some(_) if files.len() >= MANY_COUNT => sync_on_threads(files, &sync),
            _ => files.iter().try_for_each(|file| sync(file)),
        }
    }
}

/// A file that never has a name.
pub(super) fn open_unnamed(root: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, root, flags, Mode::RUSR | Mode::WUSR)
}

fn sync_on_threads(
    files: &[PathBuf],
    sync: &(impl Fn(&Path) -> io::Result<()> + Sync),
) -> io::Result<()> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let work = || {
        while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = sync(file) {
                lock(&failed).get_or_insert(error);
                // The others need not go on: no file of these is known to be durable any more.
                next.store(files.len(), Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..THREAD_COUNT {
            // Without the thread the others do its work.
            let _ = thread::Builder::new()
                .name("sync".into())
                .spawn_scoped(scope, work);
        }
        work();
    });
    lock(&failed).take().map_or(Ok(()), Err)
}

fn is_trusted_type(root: &File) -> bool {
    let kind = rustix::fs::fstatfs(root).map(|stats| stats.f_type);
    // The type of the field differs between machines; the numbers have 32 bits.
    kind.is_ok_and(|kind| TRUSTED_TYPES.map(i128::from).contains(&i128::from(kind)))
}

/// The release of the running system, such as `6.1.0-13-amd64`.
fn release() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

fn is_reporting(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next()?.parse::<u32>().ok();
    matches!((number(), number()), (Some(major), Some(minor)) if (major, minor) >= REPORTING_VERSION)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names(count: usize) -> Vec<PathBuf> {
        (0..count).map(|n| PathBuf::from(n.to_string())).collect()
    }

    fn file_system(is_trusted: bool) -> (tempfile::TempDir, FileSystem) {
        let place = tempfile::tempdir().expect("temp dir");
        let file_system = FileSystem {
            is_trusted,
            ..FileSystem::of(place.path()).expect("it opens")
        };
        (place, file_system)
    }

    /// What is synced one by one out of `count` files.
    fn synced(count: usize, is_trusted: bool) -> Vec<PathBuf> {
        let seen = Mutex::new(Vec::new());
        let note = |file: &Path| {
            lock(&seen).push(file.to_owned());
            Ok(())
        };
        let (_place, file_system) = file_system(is_trusted);
        file_system.sync(&names(count), note).expect("synced");
        lock(&seen).clone()
    }

    #[test]
    fn each_file_is_synced_once_unless_all_are_at_once() {
        for is_trusted in [false, true] {
            assert!(synced(0, is_trusted).is_empty());
            assert_eq!(synced(MANY_COUNT - 1, is_trusted), names(MANY_COUNT - 1));
        }
        let on_threads = synced(500, false);
        assert_eq!(on_threads.len(), 500);
        let set: BTreeSet<PathBuf> = on_threads.into_iter().collect();
        assert_eq!(set, names(500).into_iter().collect());
        assert_eq!(synced(500, true), [PathBuf::from("499")]);
    }

    #[test]
    fn one_failure_is_that_of_all_and_ends_the_work() {
        for (count, is_trusted) in [(3, false), (5_000, false), (5_000, true)] {
            let calls = AtomicUsize::new(0);
            let fail = |file: &Path| match calls.fetch_add(1, Ordering::Relaxed) {
                0 => Err(io::Error::other(file.display().to_string())),
                _ => Ok(()),
            };
            let (_place, file_system) = file_system(is_trusted);
            let error = file_system.sync(&names(count), fail).unwrap_err();
            assert!(error.to_string().parse::<usize>().is_ok(), "{error}");
            assert!(calls.into_inner() <= count);
        }
    }

    #[test]
    fn without_unnamed_files_a_name_is_removed_at_once_and_that_is_said_once() {
        use std::io::{Read, Seek, Write};
        let logs = Logs::default();
        let (place, file_system) = file_system(false);
        let root = place.path();
        tracing::subscriber::with_default(logs.clone(), || {
            for refusal in [Errno::OPNOTSUPP, Errno::ISDIR] {
                let mut file = file_system
                    .temp_file(root, |_| Err(refusal))
                    .expect("a file");
                file.write_all(b"spilled").expect("written");
                file.rewind().expect("rewound");
                let mut text = String::new();
                file.read_to_string(&mut text).expect("read");
                assert_eq!(text, "spilled");
                assert_eq!(std::fs::read_dir(root).expect("listed").count(), 0);
                assert_eq!(logs.count(), 1);
            }
            let full = file_system.temp_file(root, |_| Err(Errno::NOSPC));
            assert_eq!(full.unwrap_err().kind(), io::ErrorKind::StorageFull);
        });
    }

    #[test]
    fn a_file_system_that_does_not_say_its_size_is_mentioned_once() {
        let logs = Logs::default();
        let (_place, file_system) = file_system(false);
        let told = |total_bytes| {
            file_system.told(FreeSpace {
                available_bytes: 0,
                total_bytes,
            })
        };
        tracing::subscriber::with_default(logs.clone(), || {
            assert_eq!(told(100).total_bytes, 100);
            assert_eq!(logs.count(), 0);
            assert_eq!((told(0).total_bytes, told(0).total_bytes), (0, 0));
            assert_eq!(logs.count(), 1);
        });
    }

    /// Counts what is logged.
    #[derive(Clone, Default)]
    struct Logs(std::sync::Arc<AtomicUsize>);

    impl Logs {
        fn count(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    impl tracing::Subscriber for Logs {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, _: &tracing::Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }

    #[test]
    fn releases_before_the_first_that_reports_are_not_trusted() {
        for (release, expected) in [
            ("6.1.0-13-amd64", true),
            ("5.8", true),
            ("5.10.0", true),
            ("5.7.19", false),
            ("4.19.0-rc8", false),
            ("", false),
            ("unknown", false),
        ] {
            assert_eq!(is_reporting(release), expected, "{release}");
        }
    }
}
