//! The order in which the messages of a delay queue are due.
//!
//! A delay queue belongs to a delayed exchange, and nobody else can reach it (see `broker::delayed`). Its entries stand in the
//! order of their arrival, as in every queue, and their time is kept where others keep their expiry; so the log, checkpoints and
//! recovery know nothing of delays. Only who goes next is different:
//!
//! ```text
//!   other queues   the head expires                               first_ready, then its expires_at_ms
//!   delay queue    whoever is due first, wherever it stands       DueList: a heap of (time, seq), 16 bytes each, in memory only
//! ```
//! What is due becomes `Leaving` and is moved by `death`, {PUBLISH targets, settle here} in one atomic group. Entries of a delay
//! queue do not leave memory for an index file: the heap could not tell what it points to.
//!
//! Invariant: every ready or hidden entry of a delay queue is in the list once; other entries of the list mean nothing.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::slots::Status;
use super::state::QueueState;
use crate::broker::dead_letter::DeathReason;
use crate::storage::types::Seq;

/// Messages that leave at a time; the next ones follow when these have gone. Protects from holding the queue's lock for long
/// when very many are due at once.
const LEAVING_MAX_COUNT: usize = 4096;

/// See the module. One word in queues that are none of these.
#[derive(Debug, Default)]
#[expect(
    clippy::box_collection,
    reason = "all queues have this field, and almost none uses it"
)]
pub(super) struct DueList(Option<Box<BinaryHeap<Due>>>);

/// Time, then place: the heap has the least on top.
type Due = Reverse<(u64, Seq)>;

impl DueList {
    pub(super) fn push(&mut self, due_at_ms: u64, seq: Seq) {
        self.0
            .get_or_insert_default()
            .push(Reverse((due_at_ms, seq)));
    }

    /// Time and place of the first one.
    pub(super) fn first(&self) -> Option<(u64, Seq)> {
        self.0.as_ref()?.peek().map(|Reverse(first)| *first)
    }

    fn pop(&mut self) {
        if let Some(heap) = &mut self.0 {
            heap.pop();
            if heap.is_empty() {
                self.0 = None;
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.0 = None;
    }
}

impl QueueState {
    /// Fills the list of a delay queue that was restored.
    pub(super) fn restore_due(&mut self) {
        let Self { slots, due, .. } = self;
        for (seq, slot) in slots.iter() {
            if slot.status == Status::Ready {
                due.push(slot.expires_at_ms, seq);
            }
        }
    }

    /// Lets go what is due, in the order of time.
    pub(super) fn take_due(&mut self, now_ms: u64) {
        while self.leaving.len() < LEAVING_MAX_COUNT {
            let Some((due_at_ms, seq)) = self.due.first() else {
                return;
            };
            if due_at_ms > now_ms {
                return;
            }
            match self.slots.get(seq).map(|slot| slot.status) {
                // Its transaction is not durable yet; when it is, this is called again.
                Some(Status::Hidden) => return,
                Some(Status::Ready) => {
                    self.slots.set_status(seq, Status::Leaving);
                    self.leaving.push_back((seq, DeathReason::Expired));
                }
                _ => {}
            }
            self.due.pop();
        }
    }

    /// When to look again; 0 for not by time: nothing waits, or something is on its way already.
    pub(super) fn next_due_at_ms(&self, now_ms: u64) -> u64 {
        let next = self.due.first().map(|(due_at_ms, _)| due_at_ms);
        next.filter(|due_at_ms| *due_at_ms > now_ms).unwrap_or(0)
    }
}
