//! What the domain needs from a log, as a trait: the arrow `broker -> storage` is drawn by `server`.

use crate::storage::types::{Lsn, Receipt, Request, Urgency};

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

    /// Everything below this is on stable storage by the chosen policy: confirms may be sent for it.
    fn confirm_lsn(&self) -> Lsn;

    /// Largest payload in bytes that one record (and largest sum that one atomic group) may hold.
    fn group_max_bytes(&self) -> u64;
}
