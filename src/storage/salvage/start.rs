//! Where reading begins when nothing can be taken for granted: a superblock and a checkpoint.

use std::path::{Path, PathBuf};

use super::{Salvage, open};
use crate::disk::Disk;
use crate::storage::checkpoint::{self, Checkpoint};
use crate::storage::error::StorageError;
use crate::storage::file::{damaged, io_error, list_or_empty, read_up_to};
use crate::storage::format::{
    CHECKPOINT_DIR, CHECKPOINT_EXTENSION, SUPERBLOCK_FILES, checkpoint_path, number_in_name,
    segment_path,
};
use crate::storage::segment::{self, SegmentHeader};
use crate::storage::superblock::Superblock;
use crate::storage::types::Lsn;

/// Generations of the checkpoint files that exist, newest first.
fn checkpoint_generations(disk: &dyn Disk) -> Result<Vec<u64>, StorageError> {
    let names = list_or_empty(disk, Path::new(CHECKPOINT_DIR))?;
    let number = |name: &PathBuf| number_in_name(name, 16, CHECKPOINT_EXTENSION);
    let mut generations: Vec<u64> = names.iter().filter_map(number).collect();
    generations.sort_unstable_by(|a, b| b.cmp(a));
    Ok(generations)
}

/// The checkpoint that the superblock names, else the newest that is whole. A checkpoint has its name only once the
/// log was durable up to its end, so every whole one is a state that was.
pub(super) fn load_checkpoint(
    disk: &dyn Disk,
    mut superblock: Superblock,
    salvage: &mut Salvage,
) -> Result<(Option<Checkpoint>, Superblock), StorageError> {
    let named = superblock.checkpoint_generation;
    if named == 0 {
        return Ok((None, superblock));
    }
    let mut candidates = checkpoint_generations(disk)?;
    candidates.retain(|generation| *generation != named);
    candidates.insert(0, named);
    for generation in candidates {
        match checkpoint::read(disk, superblock.store, generation) {
            Ok(checkpoint) => {
                if generation != named {
                    salvage.checkpoint_replaced_by = Some(generation);
                } else if !salvage.is_superblock_guessed
                    && checkpoint.header.begin != superblock.begin
                {
                    let detail = "superblock and checkpoint name different places to begin at";
                    salvage.note(PathBuf::from(SUPERBLOCK_FILES[0]), 0, 0, detail);
                }
                superblock.begin = checkpoint.header.begin;
                return Ok((Some(checkpoint), superblock));
            }
            Err(StorageError::Damaged { offset, detail, .. }) => {
                salvage.note(checkpoint_path(generation), offset, 0, detail);
            }
            Err(error) => return Err(error),
        }
    }
    salvage.checkpoint_replaced_by = Some(0);
    superblock.begin = Lsn(0);
    Ok((None, superblock))
}

/// A superblock from what segments and checkpoints say about themselves.
pub(super) fn guess_superblock(
    disk: &dyn Disk,
    salvage: &mut Salvage,
) -> Result<Superblock, StorageError> {
    let mut newest: Option<SegmentHeader> = None;
    for segment in segment::list(disk)? {
        let path = segment_path(segment);
        let file = open(disk, &path)?;
        let bytes = read_up_to(&*file, 0, 4096).map_err(io_error(disk, "read a segment", &path))?;
        if let Some(header) = SegmentHeader::decode_of_any_store(&bytes, segment)
            && newest.is_none_or(|newest| newest.epoch <= header.epoch)
        {
            newest = Some(header);
        }
    }
    let path = Path::new(SUPERBLOCK_FILES[0]);
    let detail = "neither copy of the superblock is whole";
    let Some(newest) = newest else {
        let detail = format!("{detail}, and no segment says which store it belongs to");
        return Err(damaged(disk, path, 0, detail));
    };
    for name in SUPERBLOCK_FILES {
        salvage.note(PathBuf::from(name), 0, 0, detail);
    }
    salvage.is_superblock_guessed = true;
    let generation = checkpoint_generations(disk)?.first().copied();
    Ok(Superblock {
        store: newest.store,
        sequence: 0,
        epoch: newest.epoch,
        checkpoint_generation: generation.unwrap_or(0),
        begin: Lsn(0),
        synced: Lsn(0),
        created_at_ms: newest.created_at_ms,
    })
}
