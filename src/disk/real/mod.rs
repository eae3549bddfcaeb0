//! The operating system's files and clocks.
//!
//! A thin layer: each method is one or two system calls, plus what POSIX leaves to the caller. Here are the data directory, its names
//! and its lock; [`file`] reads and writes, [`clock`] tells the time.
//!
//! 1. Every error names the file; its `kind()` is the one of the system. Running out of file descriptors has none
//!    there: see [`super::is_out_of_descriptors`].
//! 2. The data directory itself is durable when [`RealDisk::new`] returns.

mod clock;
mod file;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fs2::FileExt as _;
use rustix::io::Errno;

pub use clock::RealClock;
use file::RealFile;

use super::descriptors::{is_out_of_descriptors, out_of_descriptors};
use super::fault::{self, Fault};
use super::file_system::{self, FileSystem};
use super::{DirectoryLock, Disk, DiskFile, FreeSpace, OpenMode};

/// Messages and password hashes are the broker's own business.
const FILE_MODE: u32 = 0o600;
/// See [`FILE_MODE`].
const DIR_MODE: u32 = 0o700;

/// Attempts to lock a directory: [`RealDisk::is_locked`] of an onlooker holds a shared lock for an instant.
const LOCK_ATTEMPTS: u32 = 5;
/// Pause between them.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Looks for a file descriptor before the store serves anybody: some seconds.
const STARTING_ATTEMPTS: u32 = 250;
/// Pause before the next look for a file descriptor.
const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(20);

/// Files below one directory of the operating system.
#[derive(Clone, Debug)]
pub struct RealDisk {
    /// Absolute path of the data directory; every path of the trait is below it.
    root: PathBuf,
    file_system: Arc<FileSystem>,
    /// The store serves: there are files and sockets that may be closed, and clients who wait.
    is_serving: Arc<AtomicBool>,
}

impl RealDisk {
    /// Opens the data directory `root`, created durably with its parents when missing.
    ///
    /// # Errors
    /// Those of the system, with the path; `NotADirectory` when the name is taken by something else.
    pub fn new(root: PathBuf) -> io::Result<Self> {
        let root = std::path::absolute(&root).map_err(|e| named(&root, "use", &e))?;
        create_dirs_durably(&root)?;
        Self::at(root)
    }

    /// Opens the data directory `root` as it is: nothing is created, for those who only look.
    ///
    /// # Errors
    /// Those of the system, with the path: `NotFound` when there is no such directory, `NotADirectory` when
    /// the name is taken by something else.
    pub fn open_existing(root: PathBuf) -> io::Result<Self> {
        let root = std::path::absolute(&root).map_err(|e| named(&root, "use", &e))?;
        check_is_directory(&root)?;
        Self::at(root)
    }

    fn at(root: PathBuf) -> io::Result<Self> {
        let file_system = FileSystem::of(&root).map_err(|e| named(&root, "open", &e))?;
        Ok(Self {
            root,
            file_system: Arc::new(file_system),
            is_serving: Arc::new(AtomicBool::new(false)),
        })
    }

    /// True while another process holds the lock on `path`. Leaves the lock and the file as they are; a file
    /// that does not exist is held by nobody. The answer may be out of date when it arrives.
    ///
    /// # Errors
    /// Those of the system.
    pub fn is_locked(&self, path: &Path) -> io::Result<bool> {
        let path = self.resolve(path)?;
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(named(&path, "open", &e)),
        };
        // A shared lock is refused only while somebody holds the exclusive one. It is given up at once, with
        // the descriptor.
        match fs2::FileExt::try_lock_shared(&file) {
            Ok(()) => Ok(false),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(true),
            Err(e) => Err(named(&path, "test the lock of", &e)),
        }
    }

    /// The start is over: from now on whoever makes a name durable waits for a file descriptor however long it takes.
    /// A start fails after some seconds, so that somebody hears of it.
    pub fn set_serving(&self) {
        self.is_serving.store(true, Ordering::Relaxed);
    }

    /// Absolute path of the data directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The system's path of `path`. Refuses paths that could leave the data directory.
    fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        check_relative(path)?;
        Ok(self.root.join(path))
    }
}

/// Refuses paths that are not plainly below the data directory: both disks keep to the same names.
pub(super) fn check_relative(path: &Path) -> io::Result<()> {
    if path
        .components()
        .all(|part| matches!(part, Component::Normal(_)))
    {
        return Ok(());
    }
    let text = format!(
        "{}: not a plain path below the data directory",
        path.display()
    );
    Err(io::Error::new(ErrorKind::InvalidInput, text))
}

/// The system's error with the file and the attempted act in its text; marked when there is no file descriptor left.
fn named(path: &Path, act: &str, error: &io::Error) -> io::Error {
    let text = format!("cannot {act} {}: {error}", path.display());
    if !is_descriptor_limit(error) {
        return io::Error::new(error.kind(), text);
    }
    // It is tried again many times a second.
    static COUNT: AtomicU64 = AtomicU64::new(1);
    if COUNT.fetch_add(1, Ordering::Relaxed).is_power_of_two() {
        tracing::error!("out of file descriptors: {text}");
    }
    out_of_descriptors(text)
}

/// This process may have no more of them, or the system has no more.
fn is_descriptor_limit(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    errno.is_some_and(|errno| [Errno::MFILE, Errno::NFILE].contains(&errno))
}

/// Creates `root` and its missing parents, each one synced into its parent before the next is made.
///
/// ```text
/// t1 an earlier process makes `a`, t2 and dies before the sync, t3 we find `a`, make `a/b` and sync `a`,
/// t4 power fails -> `a` may be gone with all that was confirmed below it
/// ```
/// So the deepest directory that exists already is synced into its parent as well.
fn create_dirs_durably(root: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = root.ancestors().take_while(|path| !path.exists()).collect();
    let existing = missing.last().map_or(Some(root), |path| path.parent());
    if let Some(parent) = existing.and_then(Path::parent) {
        match sync_directory(parent, Some(STARTING_ATTEMPTS)) {
            // Such a parent was not made by this user, so it was there long before.
            Err(e) if e.kind() == ErrorKind::PermissionDenied => {}
            done => done?,
        }
    }
    for path in missing.into_iter().rev() {
        create_directory(path)?;
        if let Some(parent) = path.parent() {
            sync_directory(parent, Some(STARTING_ATTEMPTS))?;
        }
    }
    check_is_directory(root)
}

/// Refuses a name that is not a directory's.
fn check_is_directory(root: &Path) -> io::Result<()> {
    let metadata = fs::metadata(root).map_err(|e| named(root, "open", &e))?;
    if metadata.is_dir() {
        return Ok(());
    }
    let text = format!(
        "{}: not a directory, so it cannot hold the data",
        root.display()
    );
    Err(io::Error::new(ErrorKind::NotADirectory, text))
}

fn create_directory(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(DIR_MODE).create(path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        done => done.map_err(|e| named(path, "create directory", &e)),
    }
}

fn sync_directory(path: &Path, attempts: Option<u32>) -> io::Result<()> {
    if fault::is_active(Fault::SkipDirSync) {
        return Ok(());
    }
    let open = || File::open(path).map_err(|e| named(path, "open directory", &e));
    let directory = patiently(attempts, open)?;
    directory
        .sync_all()
        .map_err(|e| named(path, "sync directory", &e))
}

/// Tries again while there is no file descriptor. A name in the directory has changed already, so nobody can go on without
/// the sync; and nothing has been synced yet, so there is no failed sync that was repeated. `attempts`: how often, or without end.
fn patiently(
    attempts: Option<u32>,
    mut open: impl FnMut() -> io::Result<File>,
) -> io::Result<File> {
    let mut count = 0;
    loop {
        count += 1;
        match open() {
            Err(e) if is_out_of_descriptors(&e) && attempts.is_none_or(|most| count < most) => {
                std::thread::sleep(DESCRIPTOR_PAUSE);
            }
            opened => return opened,
        }
    }
}

impl Disk for RealDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.resolve(path)?;
        let mut options = OpenOptions::new();
        options.read(true).mode(FILE_MODE);
        match mode {
            OpenMode::Read => {}
            OpenMode::ReadWrite => drop(options.write(true)),
            OpenMode::CreateNew => drop(options.write(true).create_new(true)),
        }
        let file = options.open(&path).map_err(|e| named(&path, "open", &e))?;
        Ok(Arc::new(RealFile::new(file, path)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (self.resolve(from)?, self.resolve(to)?);
        fs::rename(&from, &to).map_err(|e| named(&from, "rename", &e))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let path = self.resolve(path)?;
        fs::remove_file(&path).map_err(|e| named(&path, "remove", &e))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let path = self.resolve(path)?;
        let read = |path: &Path| -> io::Result<Vec<PathBuf>> {
            fs::read_dir(path)?
                .map(|entry| Ok(entry?.file_name().into()))
                .collect()
        };
        let mut names = read(&path).map_err(|e| named(&path, "list", &e))?;
        names.sort_unstable();
        Ok(names)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        create_directory(&self.resolve(path)?)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let is_serving = self.is_serving.load(Ordering::Relaxed);
        let attempts = (!is_serving).then_some(STARTING_ATTEMPTS);
        sync_directory(&self.resolve(path)?, attempts)
    }

    fn sync_files(&self, paths: &[PathBuf]) -> io::Result<()> {
        if fault::is_active(Fault::SkipSync) {
            return Ok(());
        }
        paths.iter().try_for_each(|path| check_relative(path))?;
        let sync = |path: &Path| self.open(path, OpenMode::Read)?.sync_data();
        self.file_system.sync(paths, sync)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DirectoryLock>> {
        let path = self.resolve(path)?;
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE);
        let file = options.open(&path).map_err(|e| named(&path, "open", &e))?;
        let mut attempts_left = LOCK_ATTEMPTS;
        loop {
            attempts_left -= 1;
            match file.try_lock_exclusive() {
                Ok(()) => break,
                Err(e) if e.kind() != ErrorKind::WouldBlock => {
                    return Err(named(&path, "lock", &e));
                }
                Err(_) if attempts_left == 0 => return Err(held_by(&path, file)),
                Err(_) => std::thread::sleep(LOCK_PAUSE),
            }
        }
        match note_holder(&file) {
            // On a full disk nobody is told who holds the lock; it is held all the same.
            Err(e) if matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {}
            noted => noted.map_err(|e| named(&path, "write", &e))?,
        }
        Ok(Box::new(RealLock { _file: file }))
    }

    fn free_space(&self) -> io::Result<FreeSpace> {
        let stats = fs2::statvfs(&self.root).map_err(|e| named(&self.root, "measure", &e))?;
        Ok(self.file_system.told(FreeSpace {
            available_bytes: stats.available_space(),
            total_bytes: stats.total_space(),
        }))
    }

    fn temp_file(&self) -> io::Result<Arc<dyn DiskFile>> {
        let file = self
            .file_system
            .temp_file(&self.root, file_system::open_unnamed)
            .map_err(|e| named(&self.root, "create a temporary file in", &e))?;
        let path = self.root.join("(temporary file)");
        Ok(Arc::new(RealFile::new(file, path)))
    }

    fn map_sealed(&self, path: &Path) -> io::Result<Box<dyn AsRef<[u8]> + Send + Sync>> {
        let path = self.resolve(path)?;
        let file = File::open(&path).map_err(|e| named(&path, "open", &e))?;
        let map = map_read_only(&file).map_err(|e| named(&path, "map", &e))?;
        Ok(Box::new(map))
    }

    fn describe(&self, path: &Path) -> String {
        self.root.join(path).display().to_string()
    }
}

/// Maps a whole file for reading.
#[expect(
    unsafe_code,
    reason = "a map is sound only while nobody changes the file, which no type can say"
)]
fn map_read_only(file: &File) -> io::Result<memmap2::Mmap> {
    // SAFETY: the map is read-only, and `Disk::map_sealed` is called only for files that nobody changes
    // any more: sealed segments are never written, truncated or recycled while they are mapped, and the
    // lock of the data directory keeps every other broker away. `map_sealed` hands out `&[u8]` only.
    unsafe { memmap2::Mmap::map(file) }
}

/// Keeps the descriptor that holds the `flock`; the kernel lets go when it is closed or the process dies.
struct RealLock {
    _file: File,
}

impl DirectoryLock for RealLock {}

/// Leaves our process id in the lock file, for the message of the next who tries.
fn note_holder(mut file: &File) -> io::Result<()> {
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())
}

fn held_by(path: &Path, file: File) -> io::Error {
    let mut holder = String::new();
    // The text is a courtesy: an unreadable one changes nothing about the lock.
    let _ = file.take(32).read_to_string(&mut holder);
    let who = match holder.trim() {
        "" => "another process".to_owned(),
        id => format!("process {id}"),
    };
    io::Error::new(
        ErrorKind::WouldBlock,
        format!("{} is locked by {who}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_waits_for_a_descriptor_and_for_nothing_else() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut answers = vec![Errno::NFILE, Errno::MFILE];
        let opened = patiently(None, || match answers.pop() {
            Some(errno) => Err(named(directory.path(), "open", &errno.into())),
            None => File::open(directory.path()),
        });
        opened.expect("there is one in the end");
        let mut count = 0;
        let refused = patiently(None, || {
            count += 1;
            Err(named(directory.path(), "open", &Errno::IO.into()))
        });
        assert!(refused.is_err());
        assert_eq!(count, 1);
    }

    #[test]
    fn a_start_waits_for_a_descriptor_for_so_long_only() {
        let mut count = 0;
        let refused = patiently(Some(3), || {
            count += 1;
            assert!(count <= 3, "it waits without end");
            Err(named(Path::new("data"), "open", &Errno::MFILE.into()))
        });
        assert!(refused.is_err_and(|error| is_out_of_descriptors(&error)));
        assert_eq!(count, 3);
    }

    #[test]
    fn a_missing_data_directory_is_made_with_its_parents() {
        let place = tempfile::tempdir().expect("temp dir");
        let root = place.path().join("a/b/c");
        RealDisk::new(root.clone()).expect("created");
        assert!(root.is_dir());
        RealDisk::new(root).expect("an existing one is fine");
    }

    #[test]
    fn a_data_directory_that_is_a_file_is_refused_by_name() {
        let place = tempfile::tempdir().expect("temp dir");
        let root = place.path().join("taken");
        fs::write(&root, "x").expect("write");
        let error = RealDisk::new(root.clone()).expect_err("a file");
        assert_eq!(error.kind(), ErrorKind::NotADirectory);
        assert!(error.to_string().contains("taken"), "{error}");
        RealDisk::new(root.join("below")).expect_err("below a file");
    }

    #[test]
    fn the_lock_error_names_the_holder() {
        let place = tempfile::tempdir().expect("temp dir");
        let disk = RealDisk::new(place.path().to_owned()).expect("open");
        let _held = disk.lock(Path::new("LOCK")).expect("free");
        let error = disk.lock(Path::new("LOCK")).err().expect("held");
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        assert!(
            error.to_string().contains(&std::process::id().to_string()),
            "{error}"
        );
    }

    #[test]
    fn looking_creates_nothing() {
        let place = tempfile::tempdir().expect("temp dir");
        let root = place.path().join("absent");
        let error = RealDisk::open_existing(root.clone()).expect_err("there is none");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(!root.exists());
        fs::create_dir(&root).expect("create");
        let disk = RealDisk::open_existing(root.clone()).expect("there is one");
        assert!(!disk.is_locked(Path::new("LOCK")).expect("no file, no lock"));
        assert_eq!(fs::read_dir(root).expect("list").count(), 0);
    }

    #[test]
    fn testing_the_lock_leaves_it_as_it_was() {
        let place = tempfile::tempdir().expect("temp dir");
        let disk = RealDisk::new(place.path().to_owned()).expect("open");
        let lock = Path::new("LOCK");
        let held = disk.lock(lock).expect("free");
        assert!(disk.is_locked(lock).expect("tested"));
        drop(held);
        assert!(!disk.is_locked(lock).expect("tested"));
        disk.lock(lock).expect("still free");
    }
}
