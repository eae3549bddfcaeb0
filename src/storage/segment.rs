//! Segment files: their header, and the list of those that exist. How they are made is in `pool`.

use std::collections::BTreeSet;
use std::path::Path;

use super::error::StorageError;
use super::file::{list_or_empty, read_up_to};
use super::format::{
    BLOCK_BYTES, COLD_EXTENSION, FORMAT_VERSION, LOG_DIR, MIN_READER_VERSION, SEGMENT_EXTENSION,
    SEGMENT_MAGIC, Seed, StoreId, is_crc_right, number_in_name, segment_flag, segment_header as at,
};
use super::types::{Lsn, SegmentId};
use crate::disk::{Disk, DiskFile};

/// Offset of the first batch.
pub const FIRST_BATCH_OFFSET: u32 = 4096;
const _: () = assert!(FIRST_BATCH_OFFSET as u64 == BLOCK_BYTES);

/// What the header of a segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The store it belongs to.
    pub store: StoreId,
    /// Its number.
    pub segment: SegmentId,
    /// The incarnation that alone writes it.
    pub epoch: u64,
    /// Unix milliseconds.
    pub created_at_ms: u64,
    /// The file was another segment before: what lies behind the end may be remains of that one.
    pub is_recycled: bool,
}

/// Why a file has no usable segment header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Torn or damaged.
    #[error("segment header is not whole")]
    NotWhole,
    /// Whole, but of another store or with another number.
    #[error("segment header belongs to another file")]
    Foreign,
    /// Written for readers of this version or later.
    #[error("segment needs a reader of version {0}")]
    Newer(u32),
}

impl SegmentHeader {
    /// The first block of the file.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; FIRST_BATCH_OFFSET as usize];
        at::MAGIC.put(&mut bytes, SEGMENT_MAGIC);
        at::VERSION.put(&mut bytes, FORMAT_VERSION);
        at::MIN_READER.put(&mut bytes, MIN_READER_VERSION);
        bytes[at::STORE_ID.offset..at::STORE_ID.end()].copy_from_slice(&self.store.0);
        at::SEGMENT.put(&mut bytes, self.segment.0);
        at::EPOCH.put(&mut bytes, self.epoch);
        at::CREATED_AT.put(&mut bytes, self.created_at_ms);
        if self.is_recycled {
            at::FLAGS.put(&mut bytes, segment_flag::RECYCLED);
        }
        let crc = crc32fast::hash(&bytes[..at::CRC.offset]);
        at::CRC.put(&mut bytes, crc);
        bytes
    }

    /// Decodes the header of the file that is named `segment` in the store `store`.
    pub(crate) fn decode(
        bytes: &[u8],
        store: StoreId,
        segment: SegmentId,
    ) -> Result<Self, HeaderError> {
        let bytes = bytes
            .first_chunk::<{ at::SIZE }>()
            .ok_or(HeaderError::NotWhole)?;
        let is_whole = at::MAGIC.get(bytes) == SEGMENT_MAGIC
            && is_crc_right(
                at::CRC.get_u32(bytes),
                crc32fast::hash(&bytes[..at::CRC.offset]),
            );
        if !is_whole {
            return Err(HeaderError::NotWhole);
        }
        let min_reader = at::MIN_READER.get_u32(bytes);
        if min_reader > FORMAT_VERSION {
            return Err(HeaderError::Newer(min_reader));
        }
        let is_ours = bytes[at::STORE_ID.offset..at::STORE_ID.end()] == store.0
            && at::SEGMENT.get(bytes) == segment.0;
        if !is_ours {
            return Err(HeaderError::Foreign);
        }
        Ok(Self {
            store,
            segment,
            epoch: at::EPOCH.get(bytes),
            created_at_ms: at::CREATED_AT.get(bytes),
            is_recycled: at::FLAGS.get_u32(bytes) & segment_flag::RECYCLED != 0,
        })
    }

    /// The header of a file that is named `segment`, of whichever store; `None` when it is not whole.
    pub(crate) fn decode_of_any_store(bytes: &[u8], segment: SegmentId) -> Option<Self> {
        let mut store = StoreId([0; 16]);
        let named = bytes.get(at::STORE_ID.offset..at::STORE_ID.end())?;
        store.0.copy_from_slice(named);
        Self::decode(bytes, store, segment).ok()
    }

    /// The checksum seed of what this incarnation writes into this segment.
    #[must_use]
    pub fn seed(&self) -> Seed {
        Seed::new(self.store, self.segment, self.epoch)
    }

    /// Place of the first batch.
    #[must_use]
    pub fn first_batch(&self) -> Lsn {
        Lsn::new(self.segment, FIRST_BATCH_OFFSET)
    }
}

/// Reads the header of an open segment file.
///
/// # Errors
/// Those of the disk outside; inside, why there is no usable header.
pub fn read_header(
    file: &dyn DiskFile,
    store: StoreId,
    segment: SegmentId,
) -> std::io::Result<Result<SegmentHeader, HeaderError>> {
    let bytes = read_up_to(file, 0, at::SIZE)?;
    Ok(SegmentHeader::decode(&bytes, store, segment))
}

/// Numbers of the segments of the log that exist. Other names are ignored.
///
/// # Errors
/// Those of the disk.
pub fn list(disk: &dyn Disk) -> Result<BTreeSet<SegmentId>, StorageError> {
    list_of(disk, SEGMENT_EXTENSION, |segment| !segment.is_cold())
}

/// Numbers of the cold segments that exist.
///
/// # Errors
/// Those of the disk.
pub fn list_cold(disk: &dyn Disk) -> Result<BTreeSet<SegmentId>, StorageError> {
    list_of(disk, COLD_EXTENSION, SegmentId::is_cold)
}

fn list_of(
    disk: &dyn Disk,
    extension: &str,
    is_named_so: impl Fn(SegmentId) -> bool,
) -> Result<BTreeSet<SegmentId>, StorageError> {
    let names = list_or_empty(disk, Path::new(LOG_DIR))?;
    Ok(names
        .iter()
        .filter_map(|name| number_in_name(name, 12, extension))
        .filter(|number| *number <= u64::MAX >> Lsn::OFFSET_BITS)
        .map(SegmentId)
        .filter(|segment| is_named_so(*segment))
        .collect())
}
