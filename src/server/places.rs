//! How many connections may be open at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The places of all connections. Cheap to clone: all clones are the same.
#[derive(Clone)]
pub(super) struct Places {
    max: u64,
    taken: Arc<AtomicU64>,
}

impl Places {
    /// At most `max`; `None` for any number.
    pub(super) fn new(max: Option<u64>) -> Self {
        Self {
            max: max.unwrap_or(u64::MAX),
            taken: Arc::default(),
        }
    }

    /// How many there are.
    pub(super) fn max(&self) -> u64 {
        self.max
    }

    /// One of them, given back when it is dropped; `None` when all are taken.
    pub(super) fn take(&self) -> Option<Place> {
        let more = |taken: u64| (taken < self.max).then_some(taken + 1);
        let outcome = self
            .taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        outcome.ok().map(|_| Place(Arc::clone(&self.taken)))
    }
}

/// The place of one connection.
pub(super) struct Place(Arc<AtomicU64>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
