//! All unsettled messages of a queue as a list, for whoever only looks: blocks are read where they are whole, and the
//! log where they are not. Nothing is written.

use std::io;

use super::BLOCK_LEN;
use super::block::{self, Block};
use super::rebuild::{self, Rebuild};
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::storage::error::StorageError;
use crate::storage::file::{io_error, read_up_to};
use crate::storage::format::{StoreId, index_path};
use crate::storage::image::QueueImage;
use crate::storage::replay::HighCounts;
use crate::storage::run::FiledRun;
use crate::storage::types::ImageEntry;

/// A block that is not what the checkpoint says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostBlock {
    /// The run.
    pub run: u64,
    /// Where its block should be in the index file.
    pub offset: u64,
    /// What was found; `None` when there is no file.
    pub detail: Option<String>,
}

/// The messages of a queue and where their places are known from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Messages {
    /// All unsettled messages in ascending seq.
    pub entries: Vec<ImageEntry>,
    /// Messages from blocks that are whole.
    pub filed_count: u64,
    /// Blocks whose messages were looked up in the log.
    pub lost: Vec<LostBlock>,
}

/// The messages of the queue `image` of the store `store`. `high_counts` is what its runs cannot say.
///
/// # Errors
/// Those of the disk. A message that is neither in the index nor in the log has a place where nothing is.
pub fn messages(
    disk: &dyn Disk,
    store: StoreId,
    image: &QueueImage,
    high_counts: &HighCounts,
) -> Result<Messages, StorageError> {
    let mut messages = Messages {
        entries: image.entries.iter().copied().collect(),
        filed_count: 0,
        lost: Vec::new(),
    };
    let path = index_path(image.id);
    let error = |operation| io_error(disk, operation, &path);
    let file = match disk.open(&path, OpenMode::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        file => Some(file.map_err(error("open an index file"))?),
    };
    let mut lost = Rebuild::new(disk, store, rebuild::FOUND_MAX);
    for run in &image.runs {
        let read = read_block(file.as_deref(), store, image, run);
        match read.map_err(error("read an index file"))? {
            Ok(block) => {
                let entries = block.live_entries(run).unwrap_or_default();
                messages.filed_count += entries.len() as u64;
                messages.entries.extend(entries);
            }
            Err(detail) => {
                let offset = u64::from(run.block) * BLOCK_LEN as u64;
                let run_number = run.number;
                messages.lost.push(LostBlock {
                    run: run_number,
                    offset,
                    detail,
                });
                lost.add(image.id, run);
            }
        }
    }
    messages.entries.extend(lost.run_to_list()?);
    messages.entries.sort_unstable_by_key(|entry| entry.seq);
    for entry in &mut messages.entries {
        if let Some(count) = high_counts.get(&(image.id, entry.seq)) {
            entry.delivery_count = *count;
        }
    }
    Ok(messages)
}

fn read_block(
    file: Option<&dyn DiskFile>,
    store: StoreId,
    image: &QueueImage,
    run: &FiledRun,
) -> io::Result<Result<Block, Option<String>>> {
    let Some(file) = file else {
        return Ok(Err(None));
    };
    let bytes = read_up_to(file, u64::from(run.block) * BLOCK_LEN as u64, BLOCK_LEN)?;
    Ok(block::decode(bytes, store, image.id, run).map_err(Some))
}
