//! When the contents of logged messages leave memory.
//!
//! ```text
//!   arrives ---> waits ----------------> delivered -----------------> acknowledged
//!                 '- goes when memory     '- goes with the delivery    '- the entry ends, and touches
//!                    is scarce               to the output                no memory but its own
//! ```
//! A message that is acknowledged is not looked at again, and by then the caches have forgotten it: to free it there means to
//! wait for memory that nobody wants. While it is delivered it is at hand, and whoever encodes it is its last owner. So a
//! consumer may also hold any number of messages that are in the log, for what their entries take.
//!
//! 1. What comes back is read from the log like any other content that is not in memory. A queue of which something came back
//!    keeps the contents of its next [`KEPT_AFTER_RETURN`] deliveries: where workers refuse much, nearly nothing is read. The
//!    price is that the first one to come back stands at the head of its queue until it was read, and that a disk which cannot
//!    read it keeps it from everybody, as any message that left memory.
//! 2. So does each queue with its first [`KEPT_AT_FIRST`] ones: where little happens, there is nothing to gain.

use super::QueueShared;
use super::slots::Status;
use super::state::QueueState;
use crate::storage::types::Seq;

/// Deliveries of a queue that keep their contents, since it is in memory.
pub(super) const KEPT_AT_FIRST: u16 = if cfg!(test) { 4 } else { 64 };
/// The same, since a delivery came back.
pub(super) const KEPT_AFTER_RETURN: u16 = if cfg!(test) { 6 } else { 1024 };

/// How many deliveries are still to keep their contents.
#[derive(Debug)]
pub(super) struct KeptDeliveries(u16);

impl Default for KeptDeliveries {
    fn default() -> Self {
        Self(KEPT_AT_FIRST)
    }
}

impl KeptDeliveries {
    /// Something came back.
    pub(super) fn renew(&mut self) {
        self.0 = KEPT_AFTER_RETURN;
    }

    /// Counts a delivery that is to be acknowledged; true when its content should not stay in memory, if it is elsewhere.
    pub(super) fn gives_away(&mut self, shared: &QueueShared, is_logged: bool) -> bool {
        let is_kept = !is_logged || self.0 > 0;
        self.0 = self.0.saturating_sub(u16::from(is_logged));
        // A consumer may hold a whole backlog: what it holds costs no memory here beyond the budget.
        !is_kept || shared.is_over_budget()
    }
}

impl QueueState {
    /// True when there is somebody who will want its messages soon.
    pub(super) fn is_taken_from(&self) -> bool {
        !self.consumers.is_empty() || !self.gets.is_empty()
    }

    /// True when the content of a message that is in the log now should not stay in memory. Dropped here, by the thread
    /// that made it a moment ago, it costs next to nothing; later, among millions, it takes the processor's time.
    pub(super) fn is_content_unwanted(&self, shared: &QueueShared) -> bool {
        shared.is_over_budget() || (shared.is_over_backlog_budget() && !self.is_taken_from())
    }

    /// Frees the memory of an entry that is on disk.
    pub(super) fn evict(&mut self, seq: Seq) {
        let can_go = self.slots.get(seq).is_some_and(|slot| {
            slot.is_on_disk()
                && matches!(slot.status, Status::Ready | Status::Unacked | Status::Stuck)
        });
        if can_go {
            self.slots.set_message(seq, None);
        }
    }
}
