//! The simulated disk as the storage engine sees it.

use std::io::{self, ErrorKind, IoSlice};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use super::journal::Action;
use super::plan::{Effect, Trigger};
use super::state::{InodeId, State};
use super::{Shared, SimDisk};
use crate::disk::fault::{self, Fault};
use crate::disk::real::check_relative;
use crate::disk::{DIRECT_ALIGN_BYTES, DirectoryLock, Disk, DiskFile, FreeSpace, OpenMode};

impl Disk for SimDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        check_relative(path)?;
        let mut state = self.shared.state();
        state.check_alive()?;
        let inode = match mode {
            OpenMode::Read | OpenMode::ReadWrite => {
                state.find_file(path).map_err(|e| named(path, e))?
            }
            OpenMode::CreateNew => state
                .operate(Action::Create, path, None, |state| state.create_file(path))
                .map_err(|e| named(path, e))?,
        };
        Ok(self.handle(&mut state, inode, mode != OpenMode::Read))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        check_relative(from)?;
        check_relative(to)?;
        let mut state = self.shared.state();
        let inode = state.find_file(from).ok();
        let action = Action::Rename { to: to.to_owned() };
        state
            .operate(action, from, inode, |state| state.rename(from, to))
            .map_err(|e| named(from, e))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        check_relative(path)?;
        let mut state = self.shared.state();
        let inode = state.find_file(path).ok();
        state
            .operate(Action::Remove, path, inode, |state| state.remove(path))
            .map_err(|e| named(path, e))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        check_relative(path)?;
        let state = self.shared.state();
        state.check_alive()?;
        state.check_directory(path).map_err(|e| named(path, e))?;
        let below = state.live.keys().filter(|name| name.parent() == Some(path));
        Ok(below
            .filter_map(|name| name.file_name())
            .map(PathBuf::from)
            .collect())
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        check_relative(path)?;
        let mut state = self.shared.state();
        state
            .operate(Action::CreateDir, path, None, |state| {
                state.create_dir(path)
            })
            .map_err(|e| named(path, e))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        check_relative(path)?;
        let mut state = self.shared.state();
        let (number, effect) = state.begin(Action::SyncDir, path, None)?;
        let outcome = match effect {
            Some(Effect::LostFlush) => Ok(()),
            Some(effect) => {
                state.fail_sync_dir(path);
                Err(effect.error())
            }
            None if state.is_lying || fault::is_active(Fault::SkipDirSync) => Ok(()),
            None => state.check_directory(path).map(|()| state.sync_dir(path)),
        };
        state.note(number, outcome).map_err(|e| named(path, e))
    }

    /// One operation a file, in an order that nobody may rely on.
    fn sync_files(&self, paths: &[PathBuf]) -> io::Result<()> {
        let mut left: Vec<&PathBuf> = paths.iter().collect();
        while !left.is_empty() {
            let next = self.shared.state().random.index(left.len());
            self.open(left.swap_remove(next), OpenMode::Read)?
                .sync_data()?;
        }
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DirectoryLock>> {
        check_relative(path)?;
        let mut state = self.shared.state();
        state.check_alive()?;
        if !state.live.contains_key(path) {
            state
                .operate(Action::Create, path, None, |state| state.create_file(path))
                .map_err(|e| named(path, e))?;
        }
        if !state.locks.insert(path.to_owned()) {
            let text = format!("{} is locked by another process", self.describe(path));
            return Err(io::Error::new(ErrorKind::WouldBlock, text));
        }
        Ok(Box::new(SimLock {
            shared: Arc::clone(&self.shared),
            path: path.to_owned(),
        }))
    }

    fn free_space(&self) -> io::Result<FreeSpace> {
        let state = self.shared.state();
        state.check_alive()?;
        Ok(state.free_space())
    }

    fn temp_file(&self) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.shared.state();
        state.check_alive()?;
        let inode = state.create_inode(Path::new("(temporary file)"));
        Ok(self.handle(&mut state, inode, true))
    }

    fn map_sealed(&self, path: &Path) -> io::Result<Box<dyn AsRef<[u8]> + Send + Sync>> {
        let file = self.open(path, OpenMode::Read)?;
        let len = usize::try_from(file.len()?).map_err(|_| ErrorKind::OutOfMemory)?;
        let mut bytes = vec![0; len];
        file.read_at(&mut bytes, 0)?;
        Ok(Box::new(bytes))
    }

    fn describe(&self, path: &Path) -> String {
        format!("sim:/{}", path.display())
    }
}

impl SimDisk {
    fn handle(&self, state: &mut State, inode: InodeId, is_writable: bool) -> Arc<dyn DiskFile> {
        state.inode(inode).handle_count += 1;
        Arc::new(SimFile {
            shared: Arc::clone(&self.shared),
            inode,
            is_writable,
            is_direct: AtomicBool::new(false),
        })
    }
}

fn named(path: &Path, error: io::Error) -> io::Error {
    match error.kind() {
        // Carries the mark of a crash, which must stay recognisable.
        ErrorKind::Other => error,
        kind => io::Error::new(kind, format!("sim:/{}: {error}", path.display())),
    }
}

/// Lets go of the lock when dropped, as the death of a process does.
struct SimLock {
    shared: Arc<Shared>,
    path: PathBuf,
}

impl DirectoryLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.shared.state().locks.remove(&self.path);
    }
}

/// An open simulated file.
struct SimFile {
    shared: Arc<Shared>,
    inode: InodeId,
    is_writable: bool,
    is_direct: AtomicBool,
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.shared.state().inode(self.inode).handle_count -= 1;
    }
}

impl SimFile {
    fn check_writable(&self) -> io::Result<()> {
        if self.is_writable {
            Ok(())
        } else {
            Err(rustix::io::Errno::BADF.into())
        }
    }

    /// An operation that changes this file.
    fn operate<T>(
        &self,
        action: Action,
        run: impl FnOnce(&mut State) -> io::Result<T>,
    ) -> io::Result<T> {
        self.check_writable()?;
        let mut state = self.shared.state();
        let path = state.inode(self.inode).name.clone();
        state.operate(action, &path, Some(self.inode), run)
    }

    fn sync(&self, action: Action) -> io::Result<()> {
        let mut state = self.shared.state();
        let path = state.inode(self.inode).name.clone();
        let (number, effect) = state.begin(action, &path, Some(self.inode))?;
        // What is written while the sync runs is not promised by it.
        let seq = state.seq;
        let changed = Arc::clone(&state.changed);
        while state.are_syncs_held && !state.is_crashed {
            state.held_sync_count += 1;
            changed.notify_all();
            state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.held_sync_count -= 1;
        }
        let outcome = finish_sync(&mut state, self.inode, seq, effect);
        state.note(number, outcome).map_err(|e| named(&path, e))
    }
}

fn finish_sync(
    state: &mut State,
    inode: InodeId,
    seq: u64,
    effect: Option<Effect>,
) -> io::Result<()> {
    state.check_alive()?;
    match effect {
        Some(Effect::LostFlush) => {}
        Some(effect) => {
            let mut random = state.random.clone();
            state.inode(inode).fail_sync(seq, &mut random);
            state.random = random;
            return Err(effect.error());
        }
        None if state.is_lying || fault::is_active(Fault::SkipSync) => {}
        None => state.inode(inode).sync(seq),
    }
    Ok(())
}

/// Panics where a real disk would refuse a write or a read past the cache.
fn check_alignment<'a>(buffers: impl IntoIterator<Item = &'a [u8]>, offset: u64) {
    let is_aligned = |value: usize| value.is_multiple_of(DIRECT_ALIGN_BYTES);
    assert!(
        offset.is_multiple_of(DIRECT_ALIGN_BYTES as u64),
        "the offset is a block's"
    );
    for buffer in buffers {
        assert!(
            is_aligned(buffer.as_ptr().addr()) && is_aligned(buffer.len()),
            "buffers consist of blocks"
        );
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.bypasses_cache() {
            check_alignment([&*buffer], offset);
        }
        let mut state = self.shared.state();
        state.check_alive()?;
        match state.plan.strike(Trigger::Read) {
            Some(effect) if effect != Effect::LostFlush => Err(effect.error()),
            _ => Ok(state.inode(self.inode).cache.read(buffer, offset)),
        }
    }

    fn write_at(&self, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.check_writable()?;
        if self.is_direct.load(Ordering::Relaxed) {
            check_alignment(buffers.iter().map(|buffer| &**buffer), offset);
        }
        let mut bytes = Vec::with_capacity(buffers.iter().map(|buffer| buffer.len()).sum());
        buffers
            .iter()
            .for_each(|buffer| bytes.extend_from_slice(buffer));
        if offset.checked_add(bytes.len() as u64).is_none() {
            return Err(ErrorKind::InvalidInput.into());
        }
        let mut state = self.shared.state();
        let path = state.inode(self.inode).name.clone();
        let action = Action::Write {
            offset,
            len_bytes: bytes.len() as u64,
        };
        let (number, effect) = state.begin(action, &path, Some(self.inode))?;
        let asked = match effect {
            Some(Effect::Short { written_bytes }) => written_bytes.min(bytes.len()),
            Some(Effect::Eio | Effect::NoSpace | Effect::NoDescriptor) => 0,
            Some(Effect::LostFlush) | None => bytes.len(),
        };
        let free_bytes = state.free_bytes();
        let state = &mut *state;
        let inode = state
            .inodes
            .get_mut(&self.inode)
            .expect("a handle keeps its file alive");
        let fitting = inode.fitting(offset, asked, free_bytes);
        inode.write(&bytes[..fitting], offset, &mut state.seq);
        let outcome = match effect {
            _ if fitting < asked => Err(Effect::NoSpace.error()),
            Some(effect) if effect != Effect::LostFlush => Err(effect.error()),
            _ => Ok(()),
        };
        state.note(number, outcome).map_err(|e| named(&path, e))
    }

    fn len(&self) -> io::Result<u64> {
        let mut state = self.shared.state();
        state.check_alive()?;
        Ok(state.inode(self.inode).cache.len_bytes)
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.operate(Action::SetLen { len_bytes }, |state| {
            let inode = state
                .inodes
                .get_mut(&self.inode)
                .expect("a handle keeps its file alive");
            inode.set_len(len_bytes, &mut state.seq);
            Ok(())
        })
    }

    fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        self.operate(Action::Allocate { len_bytes }, |state| {
            if !state.is_allocate_supported {
                return Err(ErrorKind::Unsupported.into());
            }
            let free_bytes = state.free_bytes();
            let inode = state
                .inodes
                .get_mut(&self.inode)
                .expect("a handle keeps its file alive");
            if inode.missing_bytes(len_bytes) > free_bytes {
                return Err(Effect::NoSpace.error());
            }
            inode.allocate(len_bytes, &mut state.seq);
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync(Action::SyncData)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync(Action::SyncAll)
    }

    fn bypass_cache(&self) -> bool {
        let is_supported = self.shared.state().is_bypass_supported;
        self.is_direct.store(is_supported, Ordering::Relaxed);
        is_supported
    }

    fn bypasses_cache(&self) -> bool {
        self.is_direct.load(Ordering::Relaxed)
    }

    fn drop_cache(&self) -> io::Result<()> {
        let mut state = self.shared.state();
        state.check_alive()?;
        state.inode(self.inode).drop_cache();
        Ok(())
    }

    /// Pages may leave a cache at any time: these take the others along.
    fn drop_range(&self, bytes: Range<u64>) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.drop_cache()
    }
}
