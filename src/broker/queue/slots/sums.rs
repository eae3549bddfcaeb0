//! Sums over the entries of a queue, in memory or filed.

use super::slot::Status;

/// Sums over the entries (invariant 5 of the queue).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::broker::queue) struct Sums {
    pub(in crate::broker::queue) ready_count: u64,
    pub(in crate::broker::queue) ready_bytes: u64,
    pub(in crate::broker::queue) unacked_count: u64,
    /// Bytes of messages in memory.
    pub(in crate::broker::queue) resident_bytes: u64,
    /// `None` when, and only when, all of them are 0, as in most queues.
    others: Option<Box<Others>>,
}

/// Sums over the entries that are neither ready nor delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::broker::queue) struct Others {
    /// Stuck ones too.
    pub(in crate::broker::queue) leaving_count: u64,
    pub(in crate::broker::queue) hidden_count: u64,
    pub(in crate::broker::queue) hidden_bytes: u64,
    pub(in crate::broker::queue) quarantined_count: u64,
}

impl Sums {
    pub(in crate::broker::queue) fn others(&self) -> Others {
        self.others.as_deref().copied().unwrap_or_default()
    }

    #[cold]
    pub(super) fn change_others(&mut self, change: impl FnOnce(&mut Others)) {
        change(self.others.get_or_insert_default());
        self.others.take_if(|others| **others == Others::default());
    }

    pub(super) fn add(&mut self, status: Status, body_bytes: u32) {
        match status {
            Status::Empty => {}
            Status::Ready => {
                self.ready_count += 1;
                self.ready_bytes += u64::from(body_bytes);
            }
            Status::Unacked => self.unacked_count += 1,
            Status::Leaving | Status::Stuck => {
                self.change_others(|others| others.leaving_count += 1);
            }
            Status::Hidden => self.change_others(|others| {
                others.hidden_count += 1;
                others.hidden_bytes += u64::from(body_bytes);
            }),
            Status::Quarantined => self.change_others(|others| others.quarantined_count += 1),
        }
    }

    /// So many entries, with bodies of so many bytes together, are not ready any more but held by a consumer.
    pub(super) fn hold(&mut self, count: u64, body_bytes: u64) {
        self.ready_count -= count;
        self.ready_bytes -= body_bytes;
        self.unacked_count += count;
    }

    pub(super) fn subtract(&mut self, status: Status, body_bytes: u32) {
        match status {
            Status::Empty => {}
            Status::Ready => {
                self.ready_count -= 1;
                self.ready_bytes -= u64::from(body_bytes);
            }
            Status::Unacked => self.unacked_count -= 1,
            Status::Leaving | Status::Stuck => {
                self.change_others(|others| others.leaving_count -= 1);
            }
            Status::Hidden => self.change_others(|others| {
                others.hidden_count -= 1;
                others.hidden_bytes -= u64::from(body_bytes);
            }),
            Status::Quarantined => self.change_others(|others| others.quarantined_count -= 1),
        }
    }

    /// Entries of any kind.
    pub(in crate::broker::queue) fn total_count(&self) -> u64 {
        let others = self.others.as_ref().map_or(0, |others| {
            others.leaving_count + others.hidden_count + others.quarantined_count
        });
        self.ready_count + self.unacked_count + others
    }
}
