//! The one place where changes of topology and users enter the log.
//!
//! Everything here is behind the broker's `meta` mutex, the first in the lock order. A change is pushed and
//! the state it changes is swapped while that mutex is held, so the order of META records is the order of
//! the changes, and a snapshot taken under it is exactly what the records up to its LSN say.

use std::collections::BTreeMap;

use super::journal::Journal;
use super::meta::Change;
use super::queue::QueueHandle;
use crate::storage::types::{Lsn, MetaEffect, QueueId, Request, Urgency};

/// Guarded by the `meta` mutex.
#[derive(Debug)]
pub(crate) struct MetaLog {
    /// The id of the next queue, durable or not.
    next_queue_id: u64,
    /// End of the newest META record; everything at or below is in the state.
    last_lsn: Lsn,
    /// The queues that are in the log.
    pub(crate) durable_queues: BTreeMap<QueueId, QueueHandle>,
}

impl MetaLog {
    pub(crate) fn new(next_queue_id: u64) -> Self {
        Self {
            next_queue_id,
            last_lsn: Lsn::default(),
            durable_queues: BTreeMap::new(),
        }
    }

    /// Issues a queue id, once.
    pub(crate) fn issue_queue_id(&mut self) -> QueueId {
        let id = QueueId(self.next_queue_id);
        self.next_queue_id += 1;
        id
    }

    pub(crate) fn next_queue_id(&self) -> u64 {
        self.next_queue_id
    }

    /// End of the newest META record.
    pub(crate) fn last_lsn(&self) -> Lsn {
        self.last_lsn
    }

    /// Logs `changes` in order, all or nothing; `None` when there are none.
    pub(crate) fn push(&mut self, journal: &dyn Journal, changes: &[Change]) -> Option<Lsn> {
        if changes.is_empty() {
            return None;
        }
        let bodies: Vec<Vec<u8>> = changes.iter().map(Change::encode).collect();
        let requests: Vec<Request<'_>> = changes
            .iter()
            .zip(&bodies)
            .map(|(change, body)| {
                let (kind, version) = change.kind_and_version();
                let effect = effect(change);
                Request::Meta {
                    kind,
                    version,
                    effect,
                    body,
                }
            })
            .collect();
        let is_atomic = requests.len() > 1;
        let receipt = journal.push(&requests, is_atomic, Urgency::Waited, &mut Vec::new());
        self.last_lsn = receipt.end;
        Some(receipt.end)
    }
}

/// What a change means for the engine's set of queues.
fn effect(change: &Change) -> MetaEffect {
    match change {
        Change::QueueDeclared(queue) => MetaEffect::QueueCreated(QueueId(queue.id)),
        Change::QueueDeleted(queue) => MetaEffect::QueueDeleted(QueueId(queue.id)),
        _ => MetaEffect::None,
    }
}
