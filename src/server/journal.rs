//! The arrow from the domain to the store.

use crate::broker::journal::Journal;
use crate::storage::Storage;
use crate::storage::types::{Lsn, Position, Pusher, Receipt, Request, Urgency};

/// The store as the domain's log.
pub struct StorageJournal(pub Storage);

impl Journal for StorageJournal {
    fn push(
        &self,
        requests: &[Request<'_>],
        is_atomic: bool,
        urgency: Urgency,
        positions: &mut Vec<Position>,
    ) -> Receipt {
        self.0.push(requests, is_atomic, urgency, positions)
    }

    fn admit(&self, bytes: u64, pusher: Pusher) -> bool {
        self.0.admit(bytes, pusher)
    }

    fn release(&self, bytes: u64) {
        self.0.release(bytes);
    }

    fn confirm_lsn(&self) -> Lsn {
        self.0.confirm_lsn()
    }

    fn group_max_bytes(&self) -> u64 {
        self.0.group_max_bytes()
    }
}
