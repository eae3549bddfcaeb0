//! A clock that moves only when a test moves it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk::Clock;

/// Simulated time; clones show the same time.
#[derive(Clone, Debug)]
pub struct SimClock {
    start_unix_ms: u64,
    /// Time since the start. One counter, so that both readings of the clock agree.
    elapsed_ns: Arc<AtomicU64>,
}

impl SimClock {
    /// A clock that shows `unix_ms` until it is advanced.
    #[must_use]
    pub fn new(unix_ms: u64) -> Self {
        Self {
            start_unix_ms: unix_ms,
            elapsed_ns: Arc::default(),
        }
    }

    /// Lets `ms` milliseconds pass.
    pub fn advance_ms(&self, ms: u64) {
        self.advance_ns(ms.saturating_mul(1_000_000));
    }

    /// Lets `ns` nanoseconds pass.
    pub fn advance_ns(&self, ns: u64) {
        self.elapsed_ns.fetch_add(ns, Ordering::SeqCst);
    }
}

impl Clock for SimClock {
    fn unix_ms(&self) -> u64 {
        self.start_unix_ms + self.monotonic_ns() / 1_000_000
    }

    fn monotonic_ns(&self) -> u64 {
        self.elapsed_ns.load(Ordering::SeqCst)
    }
}
