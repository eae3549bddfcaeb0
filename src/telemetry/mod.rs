//! Tracing set-up and the broker's own counters.
//!
//! Log lines go to standard error; standard output carries only the start-up lines, so that scripts can
//! wait for them. There is no metrics endpoint; `stratamq status` shows the counters.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing_subscriber::EnvFilter;

/// Starts logging with `filter` (the syntax of `tracing_subscriber::EnvFilter`, for example `info` or
/// `stratamq::server=debug,info`).
///
/// # Errors
/// When `filter` does not parse; the text says why.
pub fn start(filter: &str) -> Result<(), String> {
    let filter =
        EnvFilter::try_new(filter).map_err(|error| format!("invalid --log '{filter}': {error}"))?;
    // A second start in one process (tests) keeps the first subscriber.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .try_init();
    Ok(())
}

/// Events counted over the life of the process.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections accepted.
    pub connections_opened: AtomicU64,
    /// Connections ended, for any reason.
    pub connections_closed: AtomicU64,
    /// Messages clients published.
    pub messages_published: AtomicU64,
    /// Messages handed to consumers and `basic.get`.
    pub messages_delivered: AtomicU64,
    /// Connections closed because their own code panicked.
    pub connection_panics: AtomicU64,
    /// Bytes the scrubber has read.
    pub scrubbed_bytes: AtomicU64,
    /// Damaged places it has found.
    pub scrub_found: AtomicU64,
}

impl Counters {
    /// Adds `count` to `counter`.
    pub fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}
