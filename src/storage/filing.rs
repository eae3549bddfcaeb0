//! Filing: runs of messages leave memory for the index file of their queue; and come back one by one.
//!
//! ```text
//! t1 the owner names runs, t2 their blocks are written, t3 the owner lets go of them, t4 a checkpoint names them,
//! t5 the files are synced, t6 the superblock is written
//! crash before t6 -> the old checkpoint and its log know the messages; the blocks are free
//! ```
//! Filing is a saving, never a duty: what cannot be written stays where it is.

use std::collections::BTreeSet;

use super::CheckpointSource;
use super::engine::Storage;
use super::error::{ReadError, StorageError};
use super::format::index_path;
use super::image::QueueImage;
use super::index::block::{self, Block};
use super::index::files::Named;
use super::index::{BLOCK_LEN, rebuild};
use super::run::FiledRun;
use super::segment::FIRST_BATCH_OFFSET;
use super::shared::Shared;
use super::types::{ImageEntry, Move, QueueId};
use crate::sync::lock;

/// Runs asked for at once: what is written in one go, and copied under the lock of a queue.
const FILE_AT_ONCE: usize = 64;

impl Storage {
    /// Files the runs that `source` wants to be rid of, of all its queues; gives their number. Blocks; like a
    /// checkpoint, and never at the same time. The blocks become durable with the next checkpoint.
    ///
    /// # Errors
    /// Those of the disk: runs filed before stay filed. `Stopped` when the engine has failed.
    pub fn file_runs(&self, source: &dyn CheckpointSource) -> Result<u64, StorageError> {
        let _one_at_a_time = self.checkpoint_lock();
        let shared = self.shared();
        shared.check_not_failed()?;
        let mut count = 0;
        for id in source.queue_ids() {
            count += file_queue(shared, source, id)?;
        }
        Ok(count)
    }

    /// The unsettled messages of a filed run, in ascending seq. Blocks on the disk; any thread may call it. A block
    /// that is damaged or missing is noted, and the messages are looked up in the log instead. One that the log does not
    /// have either gets a place where nothing is, so that it alone is found damaged when it is read.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read_run(&self, queue: QueueId, run: &FiledRun) -> Result<Vec<ImageEntry>, ReadError> {
        let shared = self.shared();
        let detail = match shared.index.read(queue, run) {
            Ok(Ok(block)) => {
                return Ok(block
                    .live_entries(run)
                    .expect("a decoded block has all live entries"));
            }
            Ok(Err(detail)) => detail,
            Err(error) => error.to_string(),
        };
        let path = shared.disk.describe(&index_path(queue));
        let offset = u64::from(run.block) * BLOCK_LEN as u64;
        tracing::warn!(
            path,
            offset,
            run = run.number,
            detail,
            "damaged index block: looking in the log instead"
        );
        lock(&shared.stats).rebuilt_run_count += 1;
        rebuild::read_run_from_log(&*shared.disk, shared.store, queue, run).map_err(as_read_error)
    }

    /// Writes the block of a run anew if it is damaged, from what the log says. False when it is whole or no longer relied
    /// on, and when the log does not have all of its messages either: then the damaged one is the better witness, because
    /// a segment may come back from a backup. Blocks, like a checkpoint, and never at the same time.
    ///
    /// # Errors
    /// Those of the disk: the run is read from the log as before. `Stopped` when the engine has failed.
    pub fn rewrite_run(
        &self,
        source: &dyn CheckpointSource,
        queue: QueueId,
        number: u64,
    ) -> Result<bool, StorageError> {
        let _one_at_a_time = self.checkpoint_lock();
        let shared = self.shared();
        shared.check_not_failed()?;
        let image = source.queue(queue);
        let Some(run) = image.as_ref().and_then(|image| image.run(number)) else {
            return Ok(false);
        };
        if matches!(shared.index.read(queue, run), Ok(Ok(_))) {
            return Ok(false);
        }
        let entries = rebuild::read_run_from_log(&*shared.disk, shared.store, queue, run)?;
        let is_known = |entry: &ImageEntry| entry.position.lsn.offset() >= FIRST_BATCH_OFFSET;
        if !entries.iter().all(is_known) {
            return Ok(false);
        }
        let Some((block, rebuilt)) = block::encode(shared.store, queue, &entries) else {
            return Ok(false);
        };
        let rebuilt = FiledRun {
            content_bytes: run.content_bytes,
            ..rebuilt
        };
        let mut blocks = [(block, rebuilt)];
        shared.index.write_new(queue, &mut blocks)?;
        let [(_, rebuilt)] = blocks;
        source.refile(queue, run, rebuilt);
        // Of a run that is in memory too, the block is forgotten, and written again with the next ones.
        let stay = |entry: &ImageEntry| Move {
            seq: entry.seq,
            from: entry.position,
            to: entry.position,
        };
        source.relocate(queue, &entries.iter().map(stay).collect::<Vec<Move>>());
        lock(&shared.stats).rebuilt_run_count += 1;
        Ok(true)
    }
}

fn as_read_error(error: StorageError) -> ReadError {
    match error {
        StorageError::Damaged {
            path,
            offset,
            detail,
        } => ReadError::Damaged {
            path,
            offset,
            detail,
        },
        StorageError::Io { path, source, .. } => ReadError::Io { path, source },
        other => ReadError::Io {
            path: String::new(),
            source: std::io::Error::other(other.to_string()),
        },
    }
}

/// Files what one queue wants to be rid of.
fn file_queue(
    shared: &Shared,
    source: &dyn CheckpointSource,
    id: QueueId,
) -> Result<u64, StorageError> {
    let mut count = 0;
    let mut seen = BTreeSet::new();
    loop {
        let runs = source.unfiled_runs(id, FILE_AT_ONCE);
        // One that could not be filed, or was declined, is offered again: not twice in one pass.
        let fresh = |entries: &&Vec<ImageEntry>| {
            entries
                .first()
                .is_some_and(|first| seen.insert(FiledRun::number_of(first.seq)))
        };
        let offered: Vec<Vec<ImageEntry>> = runs.iter().filter(fresh).cloned().collect();
        if offered.is_empty() {
            return Ok(count);
        }
        let encoded = offered
            .iter()
            .filter_map(|entries| block::encode(shared.store, id, entries));
        let mut blocks: Vec<(Block, FiledRun)> = encoded.collect();
        shared.index.write_new(id, &mut blocks)?;
        count += blocks.len() as u64;
        lock(&shared.stats).filed_run_count += blocks.len() as u64;
        source.filed(id, blocks.into_iter().map(|(_, run)| run).collect());
    }
}

/// What a checkpoint does about index files while it takes the images of queues.
pub(crate) struct Filing<'a> {
    shared: &'a Shared,
    source: &'a dyn CheckpointSource,
    named: Named,
    filed_count: u64,
    /// The disk refused a block: what is not filed is packed.
    is_refused: bool,
}

impl<'a> Filing<'a> {
    pub(crate) fn new(shared: &'a Shared, source: &'a dyn CheckpointSource) -> Self {
        Self {
            shared,
            source,
            named: Named::new(),
            filed_count: 0,
            is_refused: false,
        }
    }

    /// The image of a queue, after what it wants to be rid of went to its file.
    ///
    /// # Errors
    /// Those of the disk: what the image names cannot be made durable.
    pub(crate) fn queue(&mut self, id: QueueId) -> Result<Option<QueueImage>, StorageError> {
        if !self.is_refused {
            match file_queue(self.shared, self.source, id) {
                Ok(count) => self.filed_count += count,
                Err(error) => self.refuse(&error),
            }
        }
        let image = self.source.queue(id);
        if let Some(image) = &image {
            self.note(image)?;
        }
        Ok(image)
    }

    fn note(&mut self, image: &QueueImage) -> Result<(), StorageError> {
        let index = &self.shared.index;
        if !image.runs.is_empty() {
            index.copy_doubtful(image.id)?;
            let blocks = self.named.entry(image.id).or_default();
            image.runs.iter().for_each(|run| blocks.insert(run.block));
        } else if self.shared.options.index_min_messages == 0 {
            match index.ensure(image.id) {
                Ok(()) => drop(self.named.entry(image.id).or_default()),
                Err(error) => self.refuse(&error),
            }
        }
        Ok(())
    }

    fn refuse(&mut self, error: &StorageError) {
        if !self.is_refused {
            tracing::warn!(%error, "cannot write index files: positions stay in memory and in the checkpoint");
        }
        self.is_refused = true;
    }

    /// Makes durable what the images name. Gives what [`IndexFiles::checkpointed`] is to be told.
    ///
    /// [`IndexFiles::checkpointed`]: super::index::files::IndexFiles::checkpointed
    pub(crate) fn finish(self) -> Result<(Named, u64), StorageError> {
        self.shared.index.sync()?;
        Ok((self.named, self.filed_count))
    }
}
