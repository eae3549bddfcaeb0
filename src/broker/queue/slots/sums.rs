//! Sums over the entries of a queue, in memory or filed.

use super::slot::Status;

/// Sums over the entries (invariant 5 of the queue).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::broker::queue) struct Sums {
    pub(in crate::broker::queue) ready_count: u64,
    pub(in crate::broker::queue) ready_bytes: u64,
    pub(in crate::broker::queue) unacked_count: u64,
    /// Stuck ones too.
    pub(in crate::broker::queue) leaving_count: u64,
    pub(in crate::broker::queue) hidden_count: u64,
    pub(in crate::broker::queue) hidden_bytes: u64,
    pub(in crate::broker::queue) quarantined_count: u64,
    /// Bytes of messages in memory.
    pub(in crate::broker::queue) resident_bytes: u64,
}

impl Sums {
    pub(super) fn add(&mut self, status: Status, body_bytes: u32) {
        match status {
            Status::Empty => {}
            Status::Ready => {
                self.ready_count += 1;
                self.ready_bytes += u64::from(body_bytes);
            }
            Status::Unacked => self.unacked_count += 1,
            Status::Leaving | Status::Stuck => self.leaving_count += 1,
            Status::Hidden => {
                self.hidden_count += 1;
                self.hidden_bytes += u64::from(body_bytes);
            }
            Status::Quarantined => self.quarantined_count += 1,
        }
    }

    pub(super) fn subtract(&mut self, status: Status, body_bytes: u32) {
        match status {
            Status::Empty => {}
            Status::Ready => {
                self.ready_count -= 1;
                self.ready_bytes -= u64::from(body_bytes);
            }
            Status::Unacked => self.unacked_count -= 1,
            Status::Leaving | Status::Stuck => self.leaving_count -= 1,
            Status::Hidden => {
                self.hidden_count -= 1;
                self.hidden_bytes -= u64::from(body_bytes);
            }
            Status::Quarantined => self.quarantined_count -= 1,
        }
    }

    /// Entries of any kind.
    pub(in crate::broker::queue) fn total_count(&self) -> u64 {
        self.ready_count
            + self.unacked_count
            + self.leaving_count
            + self.hidden_count
            + self.quarantined_count
    }
}
