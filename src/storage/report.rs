//! What recovery found and what a checkpoint did: values for the log, for `status` and for tests.

use std::fmt;

use super::image::QueueImage;
use super::salvage::Salvage;
use super::types::{Lsn, SegmentId};

/// In what state the data directory was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It was missing or empty; a blank one was made.
    Fresh,
    /// The newest checkpoint covered everything: a clean stop, or nothing happened since.
    Clean,
    /// The log went on behind the checkpoint and ended with a whole batch.
    Replayed,
    /// As `Replayed`, and behind the last whole batch lay the remains of writes that were never proven
    /// durable, so nobody was promised anything about them.
    TornTail(TornTail),
}

/// The remains of unfinished writes that recovery cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// Where the log ends now.
    pub cut_at: Lsn,
    /// Bytes behind it, up to the last one that is not zero.
    pub discarded_bytes: u64,
    /// Batch headers among them that were whole.
    pub discarded_batch_count: u64,
    /// Records these headers announced.
    pub discarded_record_count: u64,
    /// Files in `quarantine/` that keep a copy; fewer than segments touched when they could not be written.
    pub kept_in: Vec<String>,
}

/// What recovery did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryReport {
    /// State of the directory.
    pub found: Found,
    /// The number of this incarnation; rises by one with every start.
    pub epoch: u64,
    /// Generation of the checkpoint that was loaded; 0 when there is none yet.
    pub checkpoint_generation: u64,
    /// Where replay began.
    pub replayed_from: Lsn,
    /// Where the log ended.
    pub replayed_to: Lsn,
    /// Records read behind the checkpoint's begin, marks and segment openings not counted.
    pub replayed_record_count: u64,
    /// Queues that exist now.
    pub queue_count: u64,
    /// Messages in them (one that went to two queues counts twice).
    pub message_count: u64,
    /// Runs of messages whose positions are in index files.
    pub filed_run_count: u64,
    /// Of these, runs whose place in the index file was lost and was found in the log.
    pub rebuilt_run_count: u64,
    /// Segment files that exist, the fresh one included.
    pub segment_count: u64,
    /// Bytes read from checkpoint and log.
    pub read_bytes: u64,
    /// How long it took.
    pub duration_ms: u64,
    /// What is lost, if the store was damaged and opened all the same.
    pub salvage: Option<Salvage>,
}

impl fmt::Display for RecoveryReport {
    /// One line for the start-up lines and `status`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.found {
            Found::Fresh => write!(f, "nothing: a fresh data directory")?,
            Found::Clean | Found::Replayed | Found::TornTail(_) => write!(
                f,
                "{} messages in {} queues; {} records replayed, {} bytes read",
                self.message_count, self.queue_count, self.replayed_record_count, self.read_bytes
            )?,
        }
        if let Found::TornTail(tail) = &self.found {
            write!(
                f,
                "; cut {} bytes of unfinished writes at {} (nobody was promised them)",
                tail.discarded_bytes, tail.cut_at
            )?;
        }
        if self.rebuilt_run_count > 0 {
            write!(
                f,
                "; built {} of {} index blocks again from the log",
                self.rebuilt_run_count, self.filed_run_count
            )?;
        }
        write!(f, "; {} ms", self.duration_ms)?;
        match &self.salvage {
            Some(salvage) => write!(f, "; SALVAGED from damage: {salvage}"),
            None => Ok(()),
        }
    }
}

/// A META record behind the checkpoint's snapshot, as it was pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaRecord {
    /// Where it stands in the log.
    pub lsn: Lsn,
    /// Kind, the owner's own numbering.
    pub kind: u16,
    /// Version of that kind's encoding.
    pub version: u16,
    /// The encoded change.
    pub body: Vec<u8>,
}

/// The state of the store at the end of the log.
#[derive(Debug)]
pub struct Recovered {
    /// What was found.
    pub report: RecoveryReport,
    /// The owner's snapshot in the newest checkpoint; `None` when there is none yet.
    pub meta_snapshot: Option<Vec<u8>>,
    /// What changed after it, in log order.
    pub meta_records: Vec<MetaRecord>,
    /// All queues, in ascending id.
    pub queues: Vec<QueueImage>,
}

/// What a checkpoint did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointReport {
    /// Its number.
    pub generation: u64,
    /// Replay will begin here.
    pub begin: Lsn,
    /// Size of its file.
    pub size_bytes: u64,
    /// Queues in it.
    pub queue_count: u64,
    /// Messages in these queues.
    pub message_count: u64,
    /// Runs that went to index files for it.
    pub filed_run_count: u64,
    /// Segments it made removable, and that were removed.
    pub freed: Vec<SegmentId>,
    /// How long it took.
    pub duration_ms: u64,
}
