//! The superblock: who the store is and where recovery begins. Two copies of equal content.
//!
//! ```text
//! t1 write copy 0, t2 sync it, t3 write copy 1, t4 sync it
//! crash t1..t2 -> copy 0 is old, new or torn; copy 1 is the old one and whole
//! crash t2..t4 -> copy 0 is the new one and whole
//! ```
//! So one copy is always whole, and the whole one with the higher sequence counts. What the old one refers to
//! is removed only after t4, so either of them leads to a complete state.

use std::io;
use std::path::Path;

use super::error::StorageError;
use super::file::{create_temp, io_error, publish_temp, read_up_to, room_error, write_all};
use super::format::{
    BLOCK_BYTES, FORMAT_VERSION, MIN_READER_VERSION, SUPERBLOCK_FILES, SUPERBLOCK_MAGIC, StoreId,
    is_crc_right, superblock as at,
};
use super::types::Lsn;
use crate::disk::{Disk, OpenMode};

/// What a superblock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Random name of the store.
    pub store: StoreId,
    /// Rises with every write.
    pub sequence: u64,
    /// Incarnations so far.
    pub epoch: u64,
    /// Generation of the newest checkpoint; 0 for none.
    pub checkpoint_generation: u64,
    /// Where replay begins; `Lsn(0)`: at the first segment.
    pub begin: Lsn,
    /// Everything below was synced when it was written.
    pub synced: Lsn,
    /// When the store was made, Unix milliseconds.
    pub created_at_ms: u64,
}

/// What a copy turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    /// There is no such file.
    Missing,
    /// Whole.
    Valid(Superblock),
    /// Not whole: torn by a crash, or damaged.
    Invalid,
    /// Whole, and for readers of this version or later only.
    Newer(u32),
}

impl Superblock {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(BLOCK_BYTES).expect("a block is small")];
        at::MAGIC.put(&mut bytes, SUPERBLOCK_MAGIC);
        at::VERSION.put(&mut bytes, FORMAT_VERSION);
        at::MIN_READER.put(&mut bytes, MIN_READER_VERSION);
        bytes[at::STORE_ID.offset..at::STORE_ID.end()].copy_from_slice(&self.store.0);
        at::SEQUENCE.put(&mut bytes, self.sequence);
        at::EPOCH.put(&mut bytes, self.epoch);
        at::CHECKPOINT.put(&mut bytes, self.checkpoint_generation);
        at::BEGIN.put(&mut bytes, self.begin.0);
        at::SYNCED.put(&mut bytes, self.synced.0);
        at::CREATED_AT.put(&mut bytes, self.created_at_ms);
        let crc = crc32fast::hash(&bytes[..at::CRC.offset]);
        at::CRC.put(&mut bytes, crc);
        bytes
    }

    /// Decodes a copy's bytes.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Copy {
        let Some(bytes) = bytes.first_chunk::<{ at::SIZE }>() else {
            return Copy::Invalid;
        };
        let is_whole = at::MAGIC.get(bytes) == SUPERBLOCK_MAGIC
            && is_crc_right(
                at::CRC.get_u32(bytes),
                crc32fast::hash(&bytes[..at::CRC.offset]),
            );
        if !is_whole {
            return Copy::Invalid;
        }
        let min_reader = at::MIN_READER.get_u32(bytes);
        if min_reader > FORMAT_VERSION {
            return Copy::Newer(min_reader);
        }
        let mut store = [0; 16];
        store.copy_from_slice(&bytes[at::STORE_ID.offset..at::STORE_ID.end()]);
        Copy::Valid(Self {
            store: StoreId(store),
            sequence: at::SEQUENCE.get(bytes),
            epoch: at::EPOCH.get(bytes),
            checkpoint_generation: at::CHECKPOINT.get(bytes),
            begin: Lsn(at::BEGIN.get(bytes)),
            synced: Lsn(at::SYNCED.get(bytes)),
            created_at_ms: at::CREATED_AT.get(bytes),
        })
    }

    /// Writes both copies, one after the other, each durable before the next is touched.
    ///
    /// # Errors
    /// Those of the disk; then the copy that was not reached still leads to a complete state.
    pub(crate) fn write(&self, disk: &dyn Disk) -> Result<(), StorageError> {
        SUPERBLOCK_FILES
            .iter()
            .try_for_each(|name| self.write_copy(disk, Path::new(name)))
    }

    fn write_copy(&self, disk: &dyn Disk, path: &Path) -> Result<(), StorageError> {
        let bytes = self.encode();
        let room = || room_error(disk, "write the superblock", path);
        let synced = match disk.open(path, OpenMode::ReadWrite) {
            Ok(file) => {
                write_all(&*file, &bytes, 0).map_err(room())?;
                file.sync_all()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = create_temp(disk, path).map_err(room())?;
                write_all(&*file, &bytes, 0).map_err(room())?;
                publish_temp(disk, &*file, path)
            }
            Err(error) => Err(error),
        };
        synced.map_err(io_error(disk, "write the superblock", path))
    }
}

/// Reads both copies.
///
/// # Errors
/// Those of the disk, other than a missing file.
pub fn read_copies(disk: &dyn Disk) -> Result<[Copy; 2], StorageError> {
    let mut copies = [Copy::Missing; 2];
    for (copy, name) in copies.iter_mut().zip(SUPERBLOCK_FILES) {
        *copy = read_copy(disk, Path::new(name))?;
    }
    Ok(copies)
}

fn read_copy(disk: &dyn Disk, path: &Path) -> Result<Copy, StorageError> {
    let file = match disk.open(path, OpenMode::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Copy::Missing),
        Err(error) => return Err(io_error(disk, "open the superblock", path)(error)),
    };
    let bytes =
        read_up_to(&*file, 0, at::SIZE).map_err(io_error(disk, "read the superblock", path))?;
    Ok(Superblock::decode(&bytes))
}

/// The copy that counts; `None` when both are missing.
///
/// # Errors
/// `NewerFormat` when a copy is for later readers, `Damaged` when there is a copy but no whole one, or when each is of
/// another store: one of them was put there by somebody, and nothing here says which.
pub fn choose(disk: &dyn Disk, copies: &[Copy; 2]) -> Result<Option<Superblock>, StorageError> {
    for (copy, name) in copies.iter().zip(SUPERBLOCK_FILES) {
        if let Copy::Newer(found) = *copy {
            let path = disk.describe(Path::new(name));
            return Err(StorageError::NewerFormat {
                path,
                found,
                supported: FORMAT_VERSION,
            });
        }
    }
    if let [Copy::Valid(left), Copy::Valid(right)] = copies
        && left.store != right.store
    {
        let path = Path::new(SUPERBLOCK_FILES[0]);
        let detail = "the two copies of the superblock are of different stores";
        return Err(super::file::damaged(disk, path, 0, detail));
    }
    let valid = copies.iter().filter_map(|copy| match copy {
        Copy::Valid(superblock) => Some(*superblock),
        _ => None,
    });
    match valid.max_by_key(|superblock| superblock.sequence) {
        Some(superblock) => Ok(Some(superblock)),
        None if copies.iter().all(|copy| *copy == Copy::Missing) => Ok(None),
        None => {
            let path = Path::new(SUPERBLOCK_FILES[0]);
            Err(super::file::damaged(
                disk,
                path,
                0,
                "neither copy of the superblock is whole",
            ))
        }
    }
}
