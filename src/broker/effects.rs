//! Things to do that a call into the domain hands back, to be carried out after all locks are released.

use std::sync::Arc;

use super::outbox::Outbox;
use super::queue::QueueHandle;
use crate::storage::run::FiledRun;
use crate::storage::types::{Lsn, Position, Seq};

/// A message body that must be read from disk before its queue can go on.
#[derive(Clone, Debug)]
pub struct Fetch {
    /// Queue that waits; the result goes to `Broker::fetched`.
    pub queue: QueueHandle,
    /// The message.
    pub seq: Seq,
    /// Where it lies.
    pub position: Position,
    /// It lies in a spill file, not in the log.
    pub is_spilled: bool,
}

/// Runs of a queue whose entries must be read from its index file before it can go on.
#[derive(Clone, Debug)]
pub struct RunLoad {
    /// Queue that waits; the result goes to `Broker::run_loaded`.
    pub queue: QueueHandle,
    /// The runs, as they are now.
    pub runs: Vec<FiledRun>,
}

/// What to do once an LSN is durable.
#[derive(Clone, Debug)]
pub enum AfterDurable {
    /// Call `Broker::redispatch`: a delivery reservation became usable.
    Redispatch(QueueHandle),
    /// Call `Broker::reveal`: the publishes of a transaction become visible.
    Reveal(QueueHandle),
}

/// When to call `Broker::timer_due` for a queue.
#[derive(Clone, Debug)]
pub struct Timer {
    /// Unix milliseconds.
    pub due_at_ms: u64,
    /// The queue whose messages or lease may expire then.
    pub queue: QueueHandle,
}

/// Collected by reference through a call; every list is usually empty.
#[derive(Debug, Default)]
pub struct Effects {
    /// The log has something to commit: unpark its thread if it is parked.
    pub wakes_commit: bool,
    /// Connections whose outbox went from empty to non-empty.
    pub wakes: Vec<Arc<Outbox>>,
    /// Bodies to read.
    pub fetches: Vec<Fetch>,
    /// Places in spill files that nobody needs any more.
    pub released: Vec<Position>,
    /// Runs to read.
    pub run_loads: Vec<RunLoad>,
    /// Continuations on durability.
    pub after_durable: Vec<(Lsn, AfterDurable)>,
    /// Timers to arm.
    pub timers: Vec<Timer>,
}
