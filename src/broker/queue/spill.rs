//! Messages leave memory when they take too much of it.
//!
//! ```text
//!   logged       body in memory --shed--> body dropped, it is in the log
//!   not logged   body in memory --shed--> handed out --written, spilled--> body dropped, its place kept
//!                                                    '--write failed----> stays as it was
//! ```
//! First those that consumers hold, which nobody needs unless they come back; then the ready ones from the end of the
//! queue, since the head is needed first. The writing happens on another thread, without the queue's lock, so an entry
//! may be gone or back at the head when its place is known: then the place is given up again.
//!
//! 1. An entry that is not logged and has a position lies in a spill file; it keeps that place while it lives, so that
//!    dropping its body a second time writes nothing.
//! 2. Each place is given up exactly once: with its entry, when another takes its place, or when nobody took it.

use std::sync::Arc;

use super::batch::Batch;
use super::slots::Status;
use super::state::{Locked, QueueState};
use super::{Queue, QueueHandle, Turn};
use crate::broker::message::Message;
use crate::storage::types::{Position, Seq};
use crate::sync::lock;

/// What [`shed`] did, and what is to be written before more can be done.
#[derive(Debug, Default)]
pub struct Shed {
    /// Bytes that were dropped because they are on disk.
    pub dropped_bytes: u64,
    /// Messages that are nowhere else.
    pub to_spill: Vec<(Seq, Arc<Message>)>,
    /// Bytes of those.
    pub to_spill_bytes: u64,
}

impl Shed {
    fn sum_bytes(&self) -> u64 {
        self.dropped_bytes + self.to_spill_bytes
    }
}

impl Queue {
    /// Bytes of its messages in memory.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        lock(&self.state).slots.sums().resident_bytes
    }

    /// For each place, whether the entry still lies there.
    #[must_use]
    pub fn holds(&self, places: &[(Seq, Position)]) -> Vec<bool> {
        let state = lock(&self.state);
        let holds = |(seq, position): &(Seq, Position)| {
            state
                .slots
                .get(*seq)
                .is_some_and(|slot| slot.is_spilled() && slot.position() == *position)
        };
        places.iter().map(holds).collect()
    }
}

/// Frees `want_bytes` of the queue's messages in memory, as far as they are on disk, and hands out others that must be
/// written first. At most that much and one message more.
pub fn shed(turn: &mut Turn<'_>, queue: &QueueHandle, want_bytes: u64) -> Shed {
    let mut locked = Locked::one(queue);
    let (_, state) = locked.first();
    let mut shed = Shed::default();
    for status in [Status::Stuck, Status::Unacked, Status::Ready] {
        state.shed_contents(status, want_bytes, &mut shed);
    }
    locked.conclude(turn, Batch::default());
    turn.finish();
    shed
}

/// Messages that [`shed`] handed out lie in spill files now.
pub fn spilled(turn: &mut Turn<'_>, queue: &QueueHandle, places: &[(Seq, Position)]) {
    let mut locked = Locked::one(queue);
    let (_, state) = locked.first();
    for &(seq, position) in places {
        if state.takes_place(seq) {
            state.slots.set_position(seq, position);
            state.slots.set_message(seq, None);
            state.has_spilled = true;
        } else {
            state.released.push_back(position);
        }
    }
    locked.conclude(turn, Batch::default());
    turn.finish();
}

/// Messages moved from one place in the spill files to another.
pub fn moved(turn: &mut Turn<'_>, queue: &QueueHandle, moves: &[(Seq, Position, Position)]) {
    let mut locked = Locked::one(queue);
    let (_, state) = locked.first();
    for &(seq, from, to) in moves {
        let is_there = state
            .slots
            .get(seq)
            // A read on its way would bring an error from a file that is closed.
            .is_some_and(|slot| slot.is_spilled() && slot.position() == from && !slot.is_fetching);
        if is_there {
            state.slots.set_position(seq, to);
        }
        state.released.push_back(if is_there { from } else { to });
    }
    locked.conclude(turn, Batch::default());
    turn.finish();
}

impl QueueState {
    fn shed_contents(&mut self, status: Status, want_bytes: u64, shed: &mut Shed) {
        let mut dropped = Vec::new();
        self.slots.contents_from_end(|seq, slot| {
            if slot.status != status || slot.is_fetching {
                return true;
            }
            let Some(message) = &slot.message else {
                return true;
            };
            if slot.position().len_bytes > 0 {
                dropped.push(seq);
                shed.dropped_bytes += message.size_bytes() as u64;
            } else if !slot.is_logged {
                shed.to_spill.push((seq, Arc::clone(message)));
                shed.to_spill_bytes += message.size_bytes() as u64;
            }
            shed.sum_bytes() < want_bytes
        });
        for seq in dropped {
            self.slots.set_message(seq, None);
        }
    }

    /// Gives up the places of all entries, which are about to be forgotten.
    pub(super) fn release_all(&mut self) {
        if self.has_spilled {
            self.released.extend(self.slots.spilled());
        }
    }

    /// True when the entry may exchange its body for a place.
    fn takes_place(&self, seq: Seq) -> bool {
        self.slots.get(seq).is_some_and(|slot| {
            slot.message.is_some()
                && !slot.is_logged
                && !slot.is_spilled()
                && matches!(slot.status, Status::Ready | Status::Unacked)
        })
    }
}
