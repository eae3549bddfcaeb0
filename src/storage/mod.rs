//! The log-structured persistence engine. It has never heard of AMQP.
//!
//! ```text
//!   push ----> append ----> commit ----> segments (log/)          read <---- pending batches, segments
//!  (any thread) (mutex)   (own thread)      |
//!                                           v
//!              checkpoint <---- source    survey ----> recovery ----> Recovered
//! ```
//! The truth is the newest checkpoint plus the log from the place where it begins. Everything that happens is one
//! record in one log, in the order in which queues changed; one sync makes it durable, whatever the number of
//! queues. Reading order: `types`, `format`, `record`, `block_buffer`, `batch`, `append`, `schedule`, `pool`, `block_writer`, `commit`,
//! `engine`, `closing`; then `image`, `run`, `checkpoint`, `checkpointing`, `freeing`, `occupancy`,
//! `compaction`, `cold`, `filing`, `index`, `scan`, `survey`, `replay`,
//! `recovery`; for damage `salvage`, `quarantine`, `scrub`.
//!
//! 1. A watermark covers only what an fdatasync that began later than the write has returned for.
//! 2. No file of an earlier incarnation is ever changed; LSNs and segment numbers are never used twice.
//! 3. The log has one end: the first place without a valid batch. What was proven durable before it must verify.
//! 4. A segment is removed only when the newest durable checkpoint needs nothing in it.

mod admission;
mod append;
pub mod batch;
mod block_buffer;
mod block_writer;
pub mod checkpoint;
mod checkpointing;
mod closing;
mod cold;
mod commit;
mod compaction;
mod direct_files;
mod engine;
mod entries;
mod error;
mod file;
mod filing;
pub mod format;
mod freeing;
pub mod fuzz;
mod gather;
pub mod image;
pub mod index;
mod long_run_codec;
mod occupancy;
mod options;
pub mod pool;
mod quarantine;
mod read;
mod read_behind;
mod read_pages;
pub mod record;
mod recovery;
pub mod replay;
mod report;
mod reserve;
pub mod run;
mod run_codec;
pub mod salvage;
pub mod scan;
mod schedule;
pub mod scrub;
pub mod segment;
mod shared;
mod spill;
pub mod stats;
pub mod superblock;
pub mod survey;
pub mod testing;
#[cfg(test)]
mod tests;
pub mod types;

pub use compaction::Compacted;
pub use engine::Storage;
pub use error::{ReadError, StorageError};
pub use gather::ReadBuffer;
pub use image::QueueImage;
pub use options::{FsyncPolicy, OnCorruption, Options};
pub use read::check_record;
pub use read_pages::ReadPages;
pub use report::{CheckpointReport, Found, MetaRecord, Recovered, RecoveryReport, TornTail};
pub use spill::{SPILL_FILE_BYTES, Spill, SpillItem, Spilled};
pub use stats::Stats;

use run::FiledRun;
use std::collections::BTreeSet;

use types::{ImageEntry, Lsn, Move, QueueId, SegmentId};

/// Hears about commits. Called on the commit thread, so it must not block: it stores a value and wakes.
pub trait CommitListener: Send + Sync {
    /// Everything below `confirm_lsn` may be confirmed now.
    fn committed(&self, confirm_lsn: Lsn);
    /// There may be room again, after [`Storage::has_room`] or [`Storage::admit`] had said no.
    fn has_room_again(&self);
    /// The disk is full and the engine lives on its reserve: nobody may publish until
    /// [`Storage::is_short_of_space`] says otherwise. May come again and again.
    fn short_of_space(&self) {}
    /// The engine stopped for good: no confirm may be sent any more, the process must end.
    fn failed(&self, error: &StorageError);
}

/// The live state, as a checkpoint asks for it. Called on the thread that runs the checkpoint.
///
/// Order of calls: `meta`, `queue_ids`, then `queue` for each of them. What was pushed before `meta` is called
/// must be visible to all of them: push a META record and swap the state it changes under one mutex, and let
/// `meta` and `queue_ids` take it.
pub trait CheckpointSource {
    /// The owner's state, encoded, and the [`end`](types::Receipt::end) of the last META push it contains
    /// (`Lsn(0)` for none).
    fn meta(&self) -> (Vec<u8>, Lsn);
    /// Every queue whose messages are logged.
    fn queue_ids(&self) -> Vec<QueueId>;
    /// One of them, copied under its lock; `None` when it was deleted meanwhile. Messages on their way out
    /// whose settling has not been pushed are in it.
    fn queue(&self, id: QueueId) -> Option<QueueImage>;
    /// Up to `max_count` runs of the queue that should leave memory for its index file, each with its unsettled
    /// messages in ascending seq. None for an owner that keeps everything in memory.
    fn unfiled_runs(&self, id: QueueId, max_count: usize) -> Vec<Vec<ImageEntry>> {
        let _ = (id, max_count);
        Vec::new()
    }
    /// The runs that [`unfiled_runs`](Self::unfiled_runs) gave are in the index file now. The owner looks whether each
    /// still is what it was (messages may have left meanwhile, none may have moved) and may then forget its entries;
    /// the next [`queue`](Self::queue) names the runs whose block it relies on, and only those blocks are kept.
    fn filed(&self, id: QueueId, runs: Vec<FiledRun>) {
        let _ = (id, runs);
    }
    /// The queue's unsettled messages that lie in these segments: those in memory one by one, and the runs that are in
    /// the index file only and have some there. None for an owner whose messages stay where they are.
    fn refs_in(
        &self,
        id: QueueId,
        segments: &BTreeSet<SegmentId>,
    ) -> (Vec<ImageEntry>, Vec<FiledRun>) {
        let _ = (id, segments);
        (Vec::new(), Vec::new())
    }
    /// Messages lie elsewhere now. The owner takes the new place of each that still has the old one (some may be
    /// settled meanwhile); a block of the index file that says the old place holds no longer.
    fn relocate(&self, id: QueueId, moves: &[Move]) {
        let _ = (id, moves);
    }
    /// Messages of a run in the index file lie elsewhere now, and `new` says so. The owner takes it, if the run is
    /// still exactly `old`.
    fn refile(&self, id: QueueId, old: &FiledRun, new: FiledRun) {
        let _ = (id, old, new);
    }
}
