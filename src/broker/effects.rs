//! Things to do that a call into the domain hands back, to be carried out after all locks are released.

use std::sync::Arc;

use super::outbox::Outbox;
use super::queue::QueueHandle;
use crate::storage::run::FiledRun;
use crate::storage::types::{Lsn, Position, Seq};

/// Bodies read and answered together: few reads of the disk, and their queue is locked once for all of them.
const FETCH_MAX_COUNT: usize = 2048;
/// Bytes of their records, unless a single one is longer; more would only be waited for longer.
const FETCH_MAX_BYTES: u64 = 2 * 1024 * 1024;

/// Message bodies that must be read from disk before their queue can go on.
#[derive(Clone, Debug)]
pub struct Fetch {
    /// Queue that waits; the results go to `Broker::fetched`.
    pub queue: QueueHandle,
    /// They lie in spill files, not in the log.
    pub is_spilled: bool,
    /// The messages, and where they lie: not more than are worth being read together.
    pub wanted: Vec<(Seq, Position)>,
    /// Bytes of their records.
    pub len_bytes: u64,
}

impl Fetch {
    fn takes(&self, queue: &QueueHandle, position: Position, is_spilled: bool) -> bool {
        Arc::ptr_eq(&self.queue, queue)
            && self.is_spilled == is_spilled
            && self.wanted.len() < FETCH_MAX_COUNT
            && self.len_bytes + u64::from(position.len_bytes) <= FETCH_MAX_BYTES
    }
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

impl Effects {
    /// Every list, its length and its capacity.
    fn lists(&self) -> [(usize, usize); 6] {
        [
            (self.wakes.len(), self.wakes.capacity()),
            (self.fetches.len(), self.fetches.capacity()),
            (self.released.len(), self.released.capacity()),
            (self.run_loads.len(), self.run_loads.capacity()),
            (self.after_durable.len(), self.after_durable.capacity()),
            (self.timers.len(), self.timers.capacity()),
        ]
    }

    /// True when all lists are empty and [`rest`](Self::rest) would give some back.
    #[must_use]
    pub fn has_spare(&self) -> bool {
        let lists = self.lists();
        lists.iter().all(|(len, _)| *len == 0) && lists.iter().any(|(_, capacity)| *capacity > 0)
    }

    /// Gives the memory of the lists back when all are empty.
    pub fn rest(&mut self) {
        if self.has_spare() {
            *self = Self {
                wakes_commit: self.wakes_commit,
                ..Self::default()
            };
        }
    }

    /// Asks for a body: together with the last ones, if they are of the same queue.
    pub(super) fn fetch(
        &mut self,
        queue: &QueueHandle,
        seq: Seq,
        position: Position,
        is_spilled: bool,
    ) {
        let len_bytes = u64::from(position.len_bytes);
        let last = self.fetches.last_mut();
        match last.filter(|last| last.takes(queue, position, is_spilled)) {
            Some(last) => {
                last.wanted.push((seq, position));
                last.len_bytes += len_bytes;
            }
            None => self.fetches.push(Fetch {
                queue: Arc::clone(queue),
                is_spilled,
                wanted: vec![(seq, position)],
                len_bytes,
            }),
        }
    }
}
