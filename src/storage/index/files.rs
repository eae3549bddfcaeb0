//! Which block of which index file is free, and the files themselves.
//!
//! ```text
//!   free --allocate--> fresh --checkpoint names it--> named --next one does not--> parted --the one after--> free
//!                        +----- checkpoint does not name it -----> free
//! ```
//! 1. A block is written only while no durable checkpoint names it.
//! 2. It rests for one more checkpoint, so that whoever still reads by the older one (a reader thread, the dump tool)
//!    finds what that one says.
//! 3. Blocks are written by one thread at a time: filing and checkpoints exclude each other.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::block::{self, BLOCK_LEN, Block};
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::storage::error::StorageError;
use crate::storage::file::{
    create_temp, io_error, list_or_empty, publish_temp, read_up_to, write_all,
};
use crate::storage::format::{INDEX_DIR, INDEX_EXTENSION, StoreId, index_path, number_in_name};
use crate::storage::image::QueueImage;
use crate::storage::run::FiledRun;
use crate::storage::types::QueueId;
use crate::sync::lock;

/// Bytes copied at once.
const COPY_CHUNK_BYTES: usize = 1 << 20;
/// Index files kept open: bounds file descriptors, not data.
const OPEN_FILES_MAX: usize = 256;

/// Numbers of blocks of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockSet {
    words: Vec<u64>,
}

impl BlockSet {
    pub(crate) fn insert(&mut self, block: u32) {
        let word = block as usize / 64;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        if let Some(bits) = self.words.get_mut(word) {
            *bits |= 1 << (block % 64);
        }
    }

    pub(crate) fn contains(&self, block: u32) -> bool {
        let word = self.words.get(block as usize / 64);
        word.is_some_and(|bits| bits & (1 << (block % 64)) != 0)
    }

    fn merge(&mut self, other: &Self) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        for (bits, more) in self.words.iter_mut().zip(&other.words) {
            *bits |= more;
        }
    }

    /// First block at or behind `from` that is not in it.
    fn first_absent(&self, from: u32) -> u32 {
        let mut block = from;
        while self.contains(block) {
            let bits = self.words.get(block as usize / 64).copied().unwrap_or(0);
            // All ones from here to the end of the word: on to the next one.
            let skipped = (bits >> (block % 64)).trailing_ones();
            block += skipped.max(1);
        }
        block
    }

    /// Number of the block behind the last one in it.
    fn end(&self) -> u32 {
        let last = self.words.iter().rposition(|bits| *bits != 0);
        last.map_or(0, |word| {
            let bits = self.words.get(word).copied().unwrap_or(0);
            u32::try_from(word * 64).unwrap_or(u32::MAX) + (64 - bits.leading_zeros())
        })
    }
}

/// What is known about the index file of one queue.
#[derive(Debug, Default)]
struct QueueFile {
    exists: bool,
    /// Named by the newest durable checkpoint.
    named: BlockSet,
    /// Named, parted with, or written since: not to be written.
    held: BlockSet,
    /// Everything below is held.
    full_below: u32,
    /// Written since the last sync.
    unsynced: BlockSet,
    /// A sync failed: a copy must take its place before a checkpoint names anything in it.
    is_doubtful: bool,
    len_blocks: u32,
}

#[derive(Default)]
struct State {
    files: BTreeMap<QueueId, QueueFile>,
    open: BTreeMap<QueueId, (Arc<dyn DiskFile>, u64)>,
    /// Rises with every use of an open file.
    use_count: u64,
    has_dir: bool,
    /// A file was created since the directory was synced.
    is_dir_dirty: bool,
}

/// See the module.
pub(crate) struct IndexFiles {
    disk: Arc<dyn Disk>,
    store: StoreId,
    state: Mutex<State>,
}

/// Blocks that a checkpoint names, by queue. A queue without any, but with a file all the same, is in it too.
pub(crate) type Named = BTreeMap<QueueId, BlockSet>;

impl IndexFiles {
    /// The index files that exist, with the blocks that `queues` name in them.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        store: StoreId,
        queues: &[QueueImage],
    ) -> Result<Self, StorageError> {
        let mut state = State::default();
        for name in list_or_empty(&*disk, Path::new(INDEX_DIR))? {
            if let Some(number) = number_in_name(&name, 16, INDEX_EXTENSION) {
                state.has_dir = true;
                let file = QueueFile {
                    exists: true,
                    ..QueueFile::default()
                };
                state.files.insert(QueueId(number), file);
            }
        }
        let files = Self {
            disk,
            store,
            state: Mutex::new(state),
        };
        for image in queues.iter().filter(|image| !image.runs.is_empty()) {
            files.adopt(image)?;
        }
        Ok(files)
    }

    /// Notes what an image names, as far as the file reaches: what lies behind its end is lost, and free.
    fn adopt(&self, image: &QueueImage) -> Result<(), StorageError> {
        let path = index_path(image.id);
        let len = match self.file(image.id).and_then(|file| file.len()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            len => len.map_err(io_error(&*self.disk, "open an index file", &path))?,
        };
        let mut state = lock(&self.state);
        let file = state.files.entry(image.id).or_default();
        file.len_blocks = u32::try_from(len / BLOCK_LEN as u64).unwrap_or(u32::MAX);
        for run in &image.runs {
            if run.block < file.len_blocks {
                file.named.insert(run.block);
            }
        }
        file.held = file.named.clone();
        Ok(())
    }

    fn error<'a>(
        &'a self,
        operation: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> StorageError + 'a {
        io_error(&*self.disk, operation, path)
    }

    /// The open file of a queue.
    fn file(&self, queue: QueueId) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = lock(&self.state);
        state.use_count += 1;
        let now = state.use_count;
        if let Some((file, used)) = state.open.get_mut(&queue) {
            *used = now;
            return Ok(Arc::clone(file));
        }
        let path = index_path(queue);
        let file = match self.disk.open(&path, OpenMode::ReadWrite) {
            // A dump of a directory that may only be read.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.disk.open(&path, OpenMode::Read)?
            }
            opened => opened?,
        };
        state.keep_open(queue, &file);
        Ok(file)
    }

    /// The file of a queue, made when there is none. Its name is durable after [`IndexFiles::sync`].
    fn file_or_new(&self, queue: QueueId) -> io::Result<Arc<dyn DiskFile>> {
        match self.file(queue) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
        let mut state = lock(&self.state);
        if !state.has_dir {
            self.disk.create_dir(Path::new(INDEX_DIR))?;
            self.disk.sync_dir(Path::new(""))?;
            state.has_dir = true;
        }
        let file = self.disk.open(&index_path(queue), OpenMode::CreateNew)?;
        state.is_dir_dirty = true;
        state.files.entry(queue).or_default().exists = true;
        state.keep_open(queue, &file);
        Ok(file)
    }

    /// Makes sure that the queue has a file, if only an empty one.
    pub(crate) fn ensure(&self, queue: QueueId) -> Result<(), StorageError> {
        if lock(&self.state)
            .files
            .get(&queue)
            .is_some_and(|file| file.exists)
        {
            return Ok(());
        }
        let path = index_path(queue);
        let made = self.file_or_new(queue);
        made.map(|_| ())
            .map_err(self.error("create an index file", &path))
    }

    /// The block of a run, verified.
    ///
    /// # Errors
    /// Outside those of the disk; inside what is wrong with the bytes, or that there is no file.
    pub(crate) fn read(&self, queue: QueueId, run: &FiledRun) -> io::Result<Result<Block, String>> {
        let file = match self.file(queue) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Err("the file is missing".into()));
            }
            file => file?,
        };
        let bytes = read_up_to(&*file, offset_of(run.block), BLOCK_LEN)?;
        Ok(block::decode(bytes, self.store, queue, run))
    }

    /// Takes a free block of the queue's file.
    pub(crate) fn allocate(&self, queue: QueueId) -> u32 {
        let mut state = lock(&self.state);
        let file = state.files.entry(queue).or_default();
        let block = file.held.first_absent(file.full_below);
        file.full_below = block.saturating_add(1);
        file.held.insert(block);
        block
    }

    /// Writes blocks into places of their own and says so in their runs. Not synced.
    ///
    /// # Errors
    /// Those of the disk; the blocks rest until the next checkpoint.
    pub(crate) fn write_new(
        &self,
        queue: QueueId,
        runs: &mut [(Block, FiledRun)],
    ) -> Result<(), StorageError> {
        for (_, run) in runs.iter_mut() {
            run.block = self.allocate(queue);
        }
        let mut rest = &*runs;
        while let Some((_, first)) = rest.first() {
            // Neighbours go out in one write.
            let blocks = (first.block..).zip(rest);
            let count = blocks
                .take_while(|(block, (_, run))| run.block == *block)
                .count();
            let (together, behind) = rest.split_at(count);
            let pieces: Vec<&[u8]> = together.iter().map(|(block, _)| block.bytes()).collect();
            self.write_at(queue, first.block, &pieces)?;
            rest = behind;
        }
        Ok(())
    }

    /// Writes bytes of blocks from `first` on, which the caller allocated.
    pub(crate) fn write_at(
        &self,
        queue: QueueId,
        first: u32,
        blocks: &[&[u8]],
    ) -> Result<(), StorageError> {
        let path = index_path(queue);
        let slices: Vec<io::IoSlice<'_>> =
            blocks.iter().map(|bytes| io::IoSlice::new(bytes)).collect();
        let written = self.file_or_new(queue).and_then(|opened| {
            let mut state = lock(&self.state);
            let file = state.files.entry(queue).or_default();
            let end = first.saturating_add(u32::try_from(blocks.len()).unwrap_or(u32::MAX));
            (first..end).for_each(|block| file.unsynced.insert(block));
            file.len_blocks = file.len_blocks.max(end);
            drop(state);
            opened.write_at(&slices, offset_of(first))
        });
        written.map_err(self.error("write an index file", &path))
    }

    /// Reads bytes of a block that was written but is not finished.
    pub(crate) fn read_bytes(&self, queue: QueueId, block: u32) -> Result<Vec<u8>, StorageError> {
        let path = index_path(queue);
        let read = self
            .file(queue)
            .and_then(|file| read_up_to(&*file, offset_of(block), BLOCK_LEN));
        read.map_err(self.error("read an index file", &path))
    }

    /// Puts a copy into the place of a file of which a failed sync may have lost something: what reads still show is on
    /// its way to nowhere. What cannot be read any more will be found by its checksum, and in the log.
    ///
    /// # Errors
    /// Those of the disk: then no checkpoint may name the file's blocks.
    pub(crate) fn copy_doubtful(&self, queue: QueueId) -> Result<(), StorageError> {
        let is_doubtful = |file: &QueueFile| file.is_doubtful;
        if !lock(&self.state).files.get(&queue).is_some_and(is_doubtful) {
            return Ok(());
        }
        let path = index_path(queue);
        tracing::warn!(%queue, "copying an index file whose sync failed");
        let copied = self.copy(queue, &path);
        copied.map_err(self.error("copy an index file", &path))?;
        let mut state = lock(&self.state);
        state.open.remove(&queue);
        if let Some(file) = state.files.get_mut(&queue) {
            file.is_doubtful = false;
            file.unsynced = BlockSet::default();
        }
        Ok(())
    }

    fn copy(&self, queue: QueueId, path: &Path) -> io::Result<()> {
        let from = self.file(queue)?;
        let to = create_temp(&*self.disk, path)?;
        let mut offset = 0;
        loop {
            let chunk = read_up_to(&*from, offset, COPY_CHUNK_BYTES)?;
            if chunk.is_empty() {
                return publish_temp(&*self.disk, &*to, path);
            }
            write_all(&*to, &chunk, offset)?;
            offset += chunk.len() as u64;
        }
    }

    /// Makes everything that was written durable: the files first, then their names.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn sync(&self) -> Result<(), StorageError> {
        let dirty: Vec<QueueId> = {
            let state = lock(&self.state);
            let dirty = state
                .files
                .iter()
                .filter(|(_, file)| file.unsynced.end() > 0);
            dirty.map(|(queue, _)| *queue).collect()
        };
        let paths: Vec<PathBuf> = dirty.iter().map(|queue| index_path(*queue)).collect();
        let synced = self.disk.sync_files(&paths);
        for queue in dirty {
            if let Some(file) = lock(&self.state).files.get_mut(&queue) {
                // A sync that failed is never repeated, and it says nothing about any of them.
                file.unsynced = BlockSet::default();
                file.is_doubtful |= synced.is_err();
            }
        }
        synced.map_err(self.error("sync the index files", Path::new(INDEX_DIR)))?;
        if std::mem::take(&mut lock(&self.state).is_dir_dirty) {
            let path = Path::new(INDEX_DIR);
            let synced = self.disk.sync_dir(path);
            synced.map_err(self.error("sync the directory", path))?;
        }
        Ok(())
    }

    /// A checkpoint that names `named` is durable: frees what neither it nor the one before names, and removes the
    /// files of queues it does not know.
    ///
    /// # Errors
    /// Those of the disk; what was not removed is removed after the next checkpoint.
    pub(crate) fn checkpointed(&self, mut named: Named) -> Result<(), StorageError> {
        let mut unused = Vec::new();
        let mut too_long = Vec::new();
        {
            let mut state = lock(&self.state);
            for (queue, file) in &mut state.files {
                match named.remove(queue) {
                    Some(newest) => {
                        file.rest(newest);
                        too_long.extend(file.shorten().map(|len_blocks| (*queue, len_blocks)));
                    }
                    None => unused.push(*queue),
                }
            }
            for queue in &unused {
                state.open.remove(queue);
            }
        }
        for queue in unused {
            let path = index_path(queue);
            match self.disk.remove(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.map_err(self.error("remove", &path))?,
            }
            lock(&self.state).files.remove(&queue);
        }
        for (queue, len_blocks) in too_long {
            let path = index_path(queue);
            let cut = self
                .file(queue)
                .and_then(|file| file.set_len(offset_of(len_blocks)));
            cut.map_err(self.error("cut an index file", &path))?;
        }
        Ok(())
    }
}

impl QueueFile {
    /// What `newest` does not name rests until the next checkpoint, and is free then.
    fn rest(&mut self, newest: BlockSet) {
        let parted = std::mem::replace(&mut self.named, newest);
        self.held = self.named.clone();
        self.held.merge(&parted);
        self.full_below = 0;
    }

    /// Its new length, if more than half of the file is free at the end.
    fn shorten(&mut self) -> Option<u32> {
        let end = self.held.end();
        if end >= self.len_blocks / 2 {
            return None;
        }
        self.len_blocks = end;
        Some(end)
    }
}

impl State {
    fn keep_open(&mut self, queue: QueueId, file: &Arc<dyn DiskFile>) {
        if self.open.len() >= OPEN_FILES_MAX {
            let oldest = self.open.iter().min_by_key(|(_, (_, used))| *used);
            if let Some(oldest) = oldest.map(|(queue, _)| *queue) {
                self.open.remove(&oldest);
            }
        }
        self.open.insert(queue, (Arc::clone(file), self.use_count));
    }
}

fn offset_of(block: u32) -> u64 {
    u64::from(block) * BLOCK_LEN as u64
}
