//! Sizes of bodies that a queue with `x-max-length-bytes` must know and a restart does not tell.
//!
//! The log says how long a record is, which is more than the body, and an index says it of a whole run. So the entries that came
//! back one by one count as empty until their message is read, runs in an index file have a sum of 0 if any of them does, and such a queue would hold
//! more than it may. It is asked for them whenever somebody begins to limit it: entries at the start, before anybody looks;
//! runs, of which there may be very many, and what a policy limits while the broker runs, while all goes on.

use std::sync::Arc;

use super::batch::Batch;
use super::state::Locked;
use super::{Queue, QueueHandle, Turn};
use crate::storage::run::FiledRun;
use crate::storage::types::{Position, Seq};
use crate::sync::lock;

impl Queue {
    /// Up to `max_count` runs in the index file, from number `from` on, whose sizes count and are not known.
    #[must_use]
    pub fn unsized_runs(&self, from: u64, max_count: usize) -> Vec<FiledRun> {
        let state = lock(&self.state);
        if state.is_deleted || state.settings.max_length_bytes.is_none() {
            return Vec::new();
        }
        state.slots.unsized_runs(from, max_count)
    }

    /// Entries whose size counts and is not known, in order.
    #[must_use]
    pub fn unsized_entries(&self) -> Vec<(Seq, Position)> {
        let state = lock(&self.state);
        if state.is_deleted || state.settings.max_length_bytes.is_none() {
            return Vec::new();
        }
        let entries = state.slots.iter();
        let unknown = entries.filter(|(_, slot)| !slot.is_sized());
        unknown.map(|(seq, slot)| (seq, slot.position())).collect()
    }
}

/// Sizes of bodies, in bytes.
#[derive(Debug, Default)]
pub struct Sizes {
    /// Of single entries.
    pub entries: Vec<(Seq, u32)>,
    /// Of all messages of a run in the index file; one that has changed since is left as it is.
    pub runs: Vec<(FiledRun, u64)>,
}

/// Tells a queue the sizes of bodies. What is too much now goes, as after a publish.
pub fn sized(turn: &mut Turn<'_>, queue: &QueueHandle, sizes: &Sizes) {
    let mut locked = Locked::one(queue);
    let mut batch = Batch::default();
    let (_, state) = locked.first();
    if state.is_deleted {
        return;
    }
    for (seq, body_bytes) in &sizes.entries {
        state.slots.set_body_bytes(*seq, *body_bytes);
    }
    for (run, content_bytes) in &sizes.runs {
        state.slots.set_content_bytes(run, *content_bytes);
    }
    state.enforce_limits(&Arc::clone(queue), &mut batch);
    locked.conclude(turn, batch);
    turn.finish();
}
