//! What the domain needs from a log, as a trait: the arrow `broker -> storage` is drawn by `server`.

use std::sync::Arc;

use crate::storage::types::{Lsn, Pusher, Receipt, Request, Urgency};

/// The log as the domain sees it. All calls return at once; nothing here waits or wakes a thread,
/// so they may be made while queue locks are held.
pub trait Journal: Send + Sync {
    /// Appends `requests` in order, as one atomic group when `is_atomic` (all or nothing after a crash).
    /// The start of every PUBLISH record is appended to `lsns`, in order, with its length.
    ///
    /// The caller holds the locks of all queues named, and has checked admission before it took them.
    fn push(
        &self,
        requests: &[Request<'_>],
        is_atomic: bool,
        urgency: Urgency,
        positions: &mut Vec<crate::storage::types::Position>,
    ) -> Receipt;

    /// Whether `pusher` may push PUBLISH records of so many bytes, on top of all that is not durable yet: there is never more
    /// of that than what finds room on a full disk. If not, he waits until some of it is durable, or longer. If so,
    /// [`Journal::release`] follows when they are pushed.
    fn admit(&self, bytes: u64, pusher: Pusher) -> bool;

    /// What was admitted is pushed, or will not be.
    fn release(&self, bytes: u64);

    /// Everything below this is on stable storage by the chosen policy: confirms may be sent for it.
    fn confirm_lsn(&self) -> Lsn;

    /// Largest payload in bytes that one record (and largest sum that one atomic group) may hold.
    fn group_max_bytes(&self) -> u64;
}

/// What was admitted, until it is pushed.
pub struct Admitted {
    journal: Arc<dyn Journal>,
    bytes: u64,
}

impl Admitted {
    /// Asks for room for PUBLISH records of so many bytes; none at all is always granted. `None` when `pusher` has to wait.
    pub fn ask(journal: &Arc<dyn Journal>, bytes: u64, pusher: Pusher) -> Option<Self> {
        if bytes > 0 && !journal.admit(bytes, pusher) {
            return None;
        }
        Some(Self {
            journal: Arc::clone(journal),
            bytes,
        })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.journal.release(self.bytes);
        }
    }
}
