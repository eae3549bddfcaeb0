//! What few queues have, behind one pointer in all of them.

use std::collections::{HashMap, VecDeque};

use super::stuck::Stuck;
use crate::storage::types::{Lsn, Seq};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Rare {
    /// Dead letters on their way to the disk.
    pub(super) letters: Letters,
    /// Dead letters of a queue that keeps them until somebody takes them (DL-24).
    pub(super) stuck: Stuck,
    /// Messages of a quorum queue that came back, in this order: they leave before all others (QQ-5).
    pub(super) returned: VecDeque<Seq>,
    /// How often messages of a quorum queue came back beyond their failed deliveries. A restart forgets it.
    pub(super) unfailed: HashMap<Seq, u32>,
}

/// Dead letters written since it was last known that all of them are durable.
#[derive(Debug, Default)]
pub(super) struct Letters {
    pub(super) bytes: u64,
    /// The end of the last one in the log.
    pub(super) end: Lsn,
    /// The log had no room for the next ones: not before this time again, Unix milliseconds.
    pub(super) no_room_until_ms: u64,
}
