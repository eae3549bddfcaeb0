//! Checkpoint files: the state of all queues and the owner's snapshot, as one streamed file.
//!
//! ```text
//! | header | META | QUEUE | QUEUE | .. | SEGMENTS | END |       every section: header, content, zeros to 8
//! ```
//! The file is written queue by queue while the broker works on: each queue is contained up to its own LSN, and
//! replay skips what a queue already contains. The END section holds the CRC of everything before it; a file
//! without a right one does not count. Live refs per segment are counted from the entries, on writing and again
//! on reading, and the two must agree.

mod reader;
mod writer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::error::StorageError;
use super::format::{CHECKPOINT_DIR, checkpoint_path};
use super::image::QueueImage;
use super::run::FiledRun;
use super::types::{ImageEntry, Lsn, SegmentId};
use crate::disk::Disk;

pub use self::reader::read;
pub(crate) use self::writer::{Writer, Written};

/// What is alive in one segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentUse {
    /// Unsettled refs into it.
    pub live_refs: u64,
    /// Record bytes of these refs; a record with two live refs counts twice.
    pub live_bytes: u64,
}

/// Live refs of all segments that have any.
pub type SegmentTable = BTreeMap<SegmentId, SegmentUse>;

/// What the header of a checkpoint says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointHeader {
    /// Its number.
    pub generation: u64,
    /// The incarnation that wrote it.
    pub epoch: u64,
    /// Replay begins here: a batch starts at this place, or the log ended there.
    pub begin: Lsn,
    /// When it was begun, Unix milliseconds.
    pub created_at_ms: u64,
}

/// A checkpoint that was read and verified.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its header.
    pub header: CheckpointHeader,
    /// Append position after the last snapshot.
    pub end: Lsn,
    /// The owner's snapshot.
    pub meta: Vec<u8>,
    /// End of the last META record it contains.
    pub meta_lsn: Lsn,
    /// All queues, in ascending id.
    pub queues: Vec<QueueImage>,
    /// What is alive where.
    pub segments: SegmentTable,
    /// Size of the file.
    pub len_bytes: u64,
}

/// Counts an entry where its record lies.
fn count_entry(segments: &mut SegmentTable, entry: &ImageEntry) {
    let segment = segments.entry(entry.position.lsn.segment()).or_default();
    segment.live_refs += 1;
    segment.live_bytes = segment
        .live_bytes
        .saturating_add(u64::from(entry.position.len_bytes));
}

/// Counts the messages of a run where their records lie.
fn count_run(segments: &mut SegmentTable, run: &FiledRun) {
    for used in &run.segments {
        let segment = segments.entry(used.segment).or_default();
        segment.live_refs += u64::from(used.live_refs);
        segment.live_bytes = segment.live_bytes.saturating_add(used.live_bytes());
    }
}

/// Paths of all files in the checkpoint directory other than the checkpoint `generation`: leftovers.
///
/// # Errors
/// Those of the disk.
pub(crate) fn leftovers(disk: &dyn Disk, generation: u64) -> Result<Vec<PathBuf>, StorageError> {
    let dir = Path::new(CHECKPOINT_DIR);
    let kept = checkpoint_path(generation);
    let names = super::file::list_or_empty(disk, dir)?;
    Ok(names
        .into_iter()
        .map(|name| dir.join(name))
        .filter(|path| *path != kept)
        .collect())
}
