//! The data directory as a disk that cannot write.
//!
//! 1. Every act that could change anything is refused here, whoever asks for it.
//! 2. A segment that was opened stays open: a broker that frees it meanwhile takes the name, not the file. It may
//!    use the file again: then its superblock has changed, and what was read is read anew.
//! 3. Of a stopped directory segments are mapped: none of them is ever written again, because the next broker begins
//!    a fresh one. Of a running one they are read with positioned reads only.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use stratamq::disk::{DirectoryLock, Disk, DiskFile, FreeSpace, OpenMode, RealDisk};
use stratamq::storage::format::{LOCK_FILE, LOG_DIR};
use stratamq::sync::lock;

use crate::mapped::MappedFile;

/// Segments kept open at once: below the usual limit of 1024 descriptors, and far above a broker's normal number.
const HELD_FILES_MAX: usize = 512;

/// See the module.
pub(crate) struct View {
    disk: RealDisk,
    is_running: bool,
    /// Segments that were opened, keeps (2).
    held: Mutex<BTreeMap<PathBuf, Arc<dyn DiskFile>>>,
}

impl View {
    /// Looks at `root`, which must exist.
    pub(crate) fn open(root: PathBuf) -> io::Result<Self> {
        let disk = RealDisk::open_existing(root)?;
        let is_running = disk.is_locked(Path::new(LOCK_FILE))?;
        Ok(Self {
            disk,
            is_running,
            held: Mutex::default(),
        })
    }

    /// True when a broker held the lock as the view was opened.
    pub(crate) fn is_running(&self) -> bool {
        self.is_running
    }

    /// Lets go of the files that were opened: for a fresh look.
    pub(crate) fn forget(&self) {
        lock(&self.held).clear();
    }

    fn open_segment(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(file) = lock(&self.held).get(path) {
            return Ok(Arc::clone(file));
        }
        let file = self.disk.open(path, OpenMode::Read)?;
        // An empty file cannot be mapped.
        let file: Arc<dyn DiskFile> = if self.is_running || file.is_empty()? {
            file
        } else {
            Arc::new(MappedFile::new(self.disk.map_sealed(path)?))
        };
        let mut held = lock(&self.held);
        if held.len() < HELD_FILES_MAX {
            held.insert(path.to_owned(), Arc::clone(&file));
        }
        Ok(file)
    }
}

/// Keeps (1).
pub(crate) fn refused<T>() -> io::Result<T> {
    Err(io::Error::new(
        io::ErrorKind::ReadOnlyFilesystem,
        "the dump tool never writes",
    ))
}

impl Disk for View {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        match mode {
            OpenMode::Read if path.starts_with(LOG_DIR) => self.open_segment(path),
            OpenMode::Read => self.disk.open(path, mode),
            OpenMode::ReadWrite | OpenMode::CreateNew => refused(),
        }
    }
    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        refused()
    }
    fn remove(&self, _: &Path) -> io::Result<()> {
        refused()
    }
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.disk.list(path)
    }
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        refused()
    }
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        refused()
    }
    fn sync_files(&self, _: &[PathBuf]) -> io::Result<()> {
        refused()
    }
    fn lock(&self, _: &Path) -> io::Result<Box<dyn DirectoryLock>> {
        refused()
    }
    fn free_space(&self) -> io::Result<FreeSpace> {
        self.disk.free_space()
    }
    fn temp_file(&self) -> io::Result<Arc<dyn DiskFile>> {
        refused()
    }
    fn map_sealed(&self, path: &Path) -> io::Result<Box<dyn AsRef<[u8]> + Send + Sync>> {
        self.disk.map_sealed(path)
    }
    fn describe(&self, path: &Path) -> String {
        self.disk.describe(path)
    }
}
