//! Sizes of bodies that a queue with `x-max-length-bytes` must know and a restart does not tell.
//!
//! The log says how long a record is, which is more than the body, and an index says it of a whole run. So the entries that came
//! back one by one have size 0 until their message is read, and such a queue would hold more than it may. It is asked for them
//! once, at the start, before anybody looks.

use std::sync::Arc;

use super::batch::Batch;
use super::state::Locked;
use super::{Queue, QueueHandle, Turn};
use crate::storage::types::{Position, Seq};
use crate::sync::lock;

impl Queue {
    /// Entries whose size counts and is not known, in order.
    #[must_use]
    pub fn unsized_entries(&self) -> Vec<(Seq, Position)> {
        let state = lock(&self.state);
        if state.is_deleted || state.settings.max_length_bytes.is_none() {
            return Vec::new();
        }
        let entries = state.slots.iter();
        let unknown = entries.filter(|(_, slot)| slot.body_bytes == 0 && slot.message.is_none());
        unknown.map(|(seq, slot)| (seq, slot.position())).collect()
    }
}

/// Tells a queue the sizes of bodies, in bytes. What is too much now goes, as after a publish.
pub fn sized(turn: &mut Turn<'_>, queue: &QueueHandle, sizes: &[(Seq, u32)]) {
    let mut locked = Locked::one(queue);
    let mut batch = Batch::default();
    let (_, state) = locked.first();
    for (seq, body_bytes) in sizes {
        state.slots.set_body_bytes(*seq, *body_bytes);
    }
    state.enforce_limits(&Arc::clone(queue), &mut batch);
    locked.conclude(turn, batch);
    turn.finish();
}
