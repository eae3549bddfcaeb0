//! What the commit thread tells the rest of the server.
//!
//! The commit thread touches no queue and runs no domain code: it publishes the watermark, wakes the
//! connections whose first pending LSN it passed, and nudges the worker thread when a continuation is due.
//!
//! Invariant: a waiter registers first and looks at the store's watermark afterwards; the commit thread raises
//! the watermark first and looks at the waiters afterwards. So one of the two always sees the other.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::alarms::Alarms;
use super::worker::WorkerQueue;
use crate::storage::types::Lsn;
use crate::storage::{CommitListener, StorageError};
use crate::sync::lock;

/// A connection that waits for an LSN. Ordered by LSN only.
struct Waiter {
    lsn: Lsn,
    notify: Arc<Notify>,
}

impl PartialEq for Waiter {
    fn eq(&self, other: &Self) -> bool {
        self.lsn == other.lsn
    }
}
impl Eq for Waiter {}
impl PartialOrd for Waiter {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Waiter {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.lsn.cmp(&other.lsn)
    }
}

/// See the module.
pub(super) struct Signals {
    /// Connections that wait for durability; at most one live entry each, plus stale ones that the
    /// watermark soon passes.
    waiters: Mutex<BinaryHeap<Reverse<Waiter>>>,
    /// Connections that stopped reading because too much is not durable yet.
    room_waiters: Mutex<Vec<Arc<Notify>>>,
    /// Continuations of the domain.
    worker: Arc<WorkerQueue>,
    alarms: Arc<Alarms>,
}

impl Signals {
    pub(super) fn new(worker: Arc<WorkerQueue>, alarms: Arc<Alarms>) -> Self {
        Self {
            waiters: Mutex::default(),
            room_waiters: Mutex::default(),
            worker,
            alarms,
        }
    }

    /// Wakes `notify` once `lsn` is durable. The caller must look at the watermark after this call.
    pub(super) fn wake_at(&self, lsn: Lsn, notify: &Arc<Notify>) {
        lock(&self.waiters).push(Reverse(Waiter {
            lsn,
            notify: Arc::clone(notify),
        }));
    }

    /// Wakes `notify` when the store can take publishes again. The caller must ask the store after this.
    pub(super) fn wake_at_room(&self, notify: &Arc<Notify>) {
        let mut waiters = lock(&self.room_waiters);
        // A connection asks in every round while there is no room.
        if !waiters.iter().any(|known| Arc::ptr_eq(known, notify)) {
            waiters.push(Arc::clone(notify));
        }
    }

    /// Wakes everybody who waits for room; also called by a waiter that found room after registering.
    pub(super) fn wake_room_waiters(&self) {
        for notify in std::mem::take(&mut *lock(&self.room_waiters)) {
            notify.notify_one();
        }
    }
}

impl CommitListener for Signals {
    fn committed(&self, confirm_lsn: Lsn) {
        let mut due = Vec::new();
        {
            let mut waiters = lock(&self.waiters);
            while waiters
                .peek()
                .is_some_and(|Reverse(waiter)| waiter.lsn <= confirm_lsn)
            {
                due.extend(waiters.pop().map(|Reverse(waiter)| waiter.notify));
            }
        }
        for notify in due {
            notify.notify_one();
        }
        self.worker.committed(confirm_lsn);
    }

    fn has_room_again(&self) {
        self.wake_room_waiters();
    }

    fn short_of_space(&self) {
        self.alarms.set_short(true);
    }

    /// The disk refused a write or a sync. What it holds is unknown now; going on could confirm what is
    /// not there. The next start reads what really reached the disk.
    fn failed(&self, error: &StorageError) {
        tracing::error!(%error, "storage failed; aborting, no further confirm is sent");
        std::process::abort();
    }
}
