//! Looking whether the blocks that queues rely on are still what was written.
//!
//! A queue is asked once for its blocks, of which only number and checksum are kept: 16 bytes for 256 messages. One that
//! does not verify is a finding only if the queue, asked again, still relies on it: it may have been written anew, and
//! its place used for another, since.

use std::io;

use super::BLOCK_LEN;
use super::block;
use crate::disk::OpenMode;
use crate::storage::CheckpointSource;
use crate::storage::error::StorageError;
use crate::storage::file::io_error;
use crate::storage::format::{index_path, is_crc_right};
use crate::storage::scrub::{Rot, Step};
use crate::storage::shared::Shared;
use crate::storage::types::QueueId;

/// A block that a queue relies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Named {
    run: u64,
    block: u32,
    crc: u32,
}

/// One pass over all index files.
#[derive(Debug, Default)]
pub(crate) struct IndexRound {
    /// Queues that are left, the next one last; `None` before they are known.
    queues: Option<Vec<QueueId>>,
    /// Blocks that are left of one of them, the next one last.
    current: Option<(QueueId, Vec<Named>)>,
}

impl IndexRound {
    /// Verifies one more block, or turns to the next queue. False when there is no other.
    ///
    /// # Errors
    /// Those of the disk: the round goes on with the next queue.
    pub(crate) fn step(
        &mut self,
        shared: &Shared,
        source: &dyn CheckpointSource,
        step: &mut Step,
    ) -> Result<bool, StorageError> {
        if let Some((queue, mut blocks)) = self.current.take() {
            if let Some(named) = blocks.pop() {
                verify(shared, source, queue, named, step)?;
                self.current = Some((queue, blocks));
            }
            return Ok(true);
        }
        let queues = self.queues.get_or_insert_with(|| source.queue_ids());
        let Some(queue) = queues.pop() else {
            return Ok(false);
        };
        let blocks = named_by(source, queue);
        if !blocks.is_empty() {
            drop_cache(shared, queue)?;
            self.current = Some((queue, blocks));
        }
        Ok(true)
    }
}

/// The blocks that a queue relies on now, the one with the highest number first.
fn named_by(source: &dyn CheckpointSource, queue: QueueId) -> Vec<Named> {
    let image = source.queue(queue);
    let runs = image.iter().flat_map(|image| &image.runs);
    let mut blocks: Vec<Named> = runs
        .map(|run| Named {
            run: run.number,
            block: run.block,
            crc: run.crc,
        })
        .collect();
    blocks.sort_unstable_by_key(|named| std::cmp::Reverse(named.block));
    blocks
}

/// What is verified is the medium.
fn drop_cache(shared: &Shared, queue: QueueId) -> Result<(), StorageError> {
    let path = index_path(queue);
    let dropped = match shared.disk.open(&path, OpenMode::Read) {
        // Found out block by block.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        file => file.and_then(|file| file.drop_cache()),
    };
    dropped.map_err(io_error(&*shared.disk, "read an index file", &path))
}

fn verify(
    shared: &Shared,
    source: &dyn CheckpointSource,
    queue: QueueId,
    named: Named,
    step: &mut Step,
) -> Result<(), StorageError> {
    let bytes = shared.index.read_bytes(queue, named.block)?;
    step.read_bytes += bytes.len() as u64;
    let crc = block::crc(&bytes, shared.store, queue, named.run);
    let is_whole = bytes.len() == BLOCK_LEN && is_crc_right(named.crc, crc);
    if is_whole || !named_by(source, queue).contains(&named) {
        return Ok(());
    }
    step.found.push(Rot {
        path: shared.disk.describe(&index_path(queue)),
        offset: u64::from(named.block) * BLOCK_LEN as u64,
        detail: format!(
            "the block of run {} has the checksum {crc:08x}, not {:08x}; the log knows what it said",
            named.run, named.crc
        ),
        range: None,
        run: Some((queue, named.run)),
    });
    Ok(())
}
