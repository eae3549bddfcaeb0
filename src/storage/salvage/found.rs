//! What is damaged and what is lost by it, for people.

use std::fmt;
use std::path::PathBuf;

/// Damaged places that are listed one by one; more are only counted.
const LISTED_MAX: usize = 100;

/// Bytes that do not verify although they were proven durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedPlace {
    /// The file, relative to the data directory.
    pub path: PathBuf,
    /// First byte.
    pub offset: u64,
    /// Number of bytes; 0 when unknown or when the file is missing.
    pub len_bytes: u64,
    /// What is wrong.
    pub detail: String,
}

/// What was found damaged, and what is lost by it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Salvage {
    /// The first of them.
    pub places: Vec<DamagedPlace>,
    /// Number of all of them.
    pub place_count: u64,
    /// Bytes of the log that were skipped.
    pub lost_bytes: u64,
    /// Batches among them whose header is whole.
    pub lost_batch_count: u64,
    /// Records these announce: publishes, settlements, topology.
    pub lost_record_count: u64,
    /// Messages of the replayed part that stay in their queue and cannot be read.
    pub unreadable_message_count: u64,
    /// The superblock was put together from the log and the checkpoints.
    pub is_superblock_guessed: bool,
    /// The checkpoint that the superblock names could not be used: what was used in its place, 0 for none.
    pub checkpoint_replaced_by: Option<u64>,
    /// Copies of the damaged bytes; fewer than places when they could not be written.
    pub kept_in: Vec<String>,
}

impl Salvage {
    pub(crate) fn note(
        &mut self,
        path: PathBuf,
        offset: u64,
        len_bytes: u64,
        detail: impl Into<String>,
    ) {
        self.place_count += 1;
        if self.places.len() < LISTED_MAX {
            let detail = detail.into();
            self.places.push(DamagedPlace {
                path,
                offset,
                len_bytes,
                detail,
            });
        }
    }

    /// True when records may be lost, not only payloads.
    #[must_use]
    pub fn is_state_incomplete(&self) -> bool {
        self.lost_bytes > 0 || self.lost_batch_count > 0 || self.checkpoint_replaced_by.is_some()
    }
}

impl fmt::Display for Salvage {
    /// What an operator must know, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} damaged places: {} bytes of the log lost with {} batches and {} records known of, {} messages unreadable",
            self.place_count,
            self.lost_bytes,
            self.lost_batch_count,
            self.lost_record_count,
            self.unreadable_message_count
        )?;
        if self.is_superblock_guessed {
            write!(f, "; no superblock was whole, it was made again")?;
        }
        match self.checkpoint_replaced_by {
            None => {}
            Some(0) => write!(
                f,
                "; the checkpoint is lost: topology and state older than the log that is there are gone, and acked \
                 messages in it may be back"
            )?,
            Some(generation) => write!(
                f,
                "; the checkpoint is lost, generation {generation} was used"
            )?,
        }
        Ok(())
    }
}
