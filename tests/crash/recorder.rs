//! The one place where all threads of the client write down what they do.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::history::{ChannelKey, Event, MessageId, TxId};
use super::oracle::{Oracle, Violation};
use super::topology::{LEVEL_MAX, LEVELS_QUEUE};
use super::verdict::Readout;
use crate::support::raw::now;

/// The oracle, shared, with names for everything new.
pub(crate) struct Recorder {
    oracle: Mutex<Oracle>,
    grown: Condvar,
    next_message: AtomicU64,
    next_key: AtomicU64,
}

impl Recorder {
    /// Nothing recorded yet.
    pub(crate) fn new() -> Self {
        let mut oracle = Oracle::new();
        oracle.has_levels(LEVELS_QUEUE, LEVEL_MAX);
        Self {
            oracle: Mutex::new(oracle),
            grown: Condvar::new(),
            next_message: AtomicU64::new(1),
            next_key: AtomicU64::new(1),
        }
    }

    fn oracle(&self) -> MutexGuard<'_, Oracle> {
        // A thread that panicked fails the test anyhow; the others finish.
        self.oracle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note.
    pub(crate) fn record(&self, event: Event) {
        self.oracle().record(event);
        self.grown.notify_all();
    }

    /// Wakes who waits for events, though there is none.
    pub(crate) fn nudge(&self) {
        drop(self.oracle());
        self.grown.notify_all();
    }

    /// The id of a new message.
    pub(crate) fn new_message(&self) -> MessageId {
        self.next_message.fetch_add(1, Ordering::Relaxed)
    }

    /// The key of a new channel.
    pub(crate) fn new_channel(&self) -> ChannelKey {
        self.next_key.fetch_add(1, Ordering::Relaxed)
    }

    /// The id of a new transaction.
    pub(crate) fn new_tx(&self) -> TxId {
        self.next_key.fetch_add(1, Ordering::Relaxed)
    }

    /// Events so far.
    pub(crate) fn event_count(&self) -> usize {
        self.oracle().event_count()
    }

    /// Waits until there are so many events, or it is late, or nothing will come any more.
    pub(crate) fn wait_for_events(
        &self,
        count: usize,
        limit: Duration,
        is_over: impl Fn() -> bool,
    ) {
        let deadline: Instant = now() + limit;
        let mut oracle = self.oracle();
        while oracle.event_count() < count && !is_over() {
            let left = deadline.saturating_duration_since(now());
            if left.is_zero() {
                return;
            }
            oracle = self
                .grown
                .wait_timeout(oracle, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Checks the contents of all queues; the violations since the last check, with the story of each message.
    pub(crate) fn check(&self, readout: &Readout) -> Result<(), String> {
        let mut oracle = self.oracle();
        oracle.check(readout);
        let violations = oracle.take_violations();
        if violations.is_empty() {
            return Ok(());
        }
        Err(report(&violations, |id| oracle.story(id)))
    }
}

/// Violations shown in full; the others are counted.
const SHOWN_MAX: usize = 10;

/// The violations, with the story of each message.
pub(super) fn report(violations: &[Violation], story: impl Fn(MessageId) -> Vec<String>) -> String {
    let mut lines = vec![format!("{} violations", violations.len())];
    for violation in violations.iter().take(SHOWN_MAX) {
        lines.push(violation.to_string());
        for line in violation.id.map(&story).unwrap_or_default() {
            lines.push(format!("    {line}"));
        }
    }
    lines.join("\n")
}
