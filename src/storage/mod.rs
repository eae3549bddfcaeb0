//! The log-structured persistence engine. It has never heard of AMQP.

mod error;
pub mod image;
mod options;
mod report;
pub mod stats;
pub mod types;

pub use error::{ReadError, StorageError};
pub use image::QueueImage;
pub use options::{FsyncPolicy, Options};
pub use report::{CheckpointReport, Found, MetaRecord, Recovered, RecoveryReport, TornTail};
pub use stats::Stats;

use types::{Lsn, QueueId};

/// Hears about commits. Called on the commit thread, so it must not block: it stores a value and wakes.
pub trait CommitListener: Send + Sync {
    /// Everything below `confirm_lsn` may be confirmed now.
    fn committed(&self, confirm_lsn: Lsn);
    /// Un-durable bytes fell below their cap after [`has_room`](Options::undurable_max_bytes) had been refused.
    fn has_room_again(&self);
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
}
