//! Reading bodies ahead of the consumers, from disk.
//!
//! ```text
//!   seq    ... delivered ... [ chunk, in memory ][ chunk, on its way ][ chunk, on its way ]  ... on disk ...
//!                             ^ starts[0]         ^ starts[1]          ^ starts[2]         ^ frontier
//!                             '- a delivery from here on asks for the next chunk
//! ```
//! A chunk is what one large read may bring. While one is delivered the next ones are read, so that the device and the
//! consumers work at the same time. Entries that are in memory anyway cost a chunk nothing; they only count for its
//! length, so that each entry is looked at once.
//!
//! 1. Every ready entry between the one being delivered and the frontier is in memory or on its way, unless it came
//!    back or was dropped from memory since; whoever finds one missing begins anew from there.
//! 2. So at most [`CHUNKS_AHEAD`] chunks of a queue, and the one that deliveries have reached, are in memory or on their
//!    way on behalf of its consumers; only one ahead, a small one, while messages take more memory than they may.

use std::ops::ControlFlow;

use super::seldom::Seldom;
use super::state::QueueState;
use super::{QueueHandle, Turn};
use crate::storage::types::Seq;

/// Chunks that no delivery has reached.
const CHUNKS_AHEAD: usize = 2;
/// Entries of one chunk.
const CHUNK_MAX_COUNT: u32 = 2048;
/// Bytes of records in one chunk, but for what the last one is longer: with what lies between them not more than one read
/// brings, or a few of them would have to be read for themselves.
const CHUNK_MAX_BYTES: u64 = 1792 * 1024;
/// The same when memory is scarce.
const SCARCE_CHUNK_MAX_BYTES: u64 = 64 * 1024;

/// How far a queue has asked for bodies.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    /// Where chunks begin that no delivery has reached, ascending.
    starts: Seldom<u64>,
    /// Above the last entry that was looked at.
    frontier: u64,
}

impl ReadAhead {
    /// Where the next chunk begins, at which more are asked for.
    pub(super) fn next_start(&self) -> Option<Seq> {
        self.starts.front().map(|&start| Seq(start))
    }
}

impl QueueState {
    /// After `seq` left: asks for the next chunk when a delivery has reached the first one.
    pub(super) fn read_ahead(&mut self, queue: &QueueHandle, turn: &mut Turn<'_>, seq: Seq) {
        let ahead = &mut self.read_ahead;
        if ahead.starts.front().is_none_or(|&start| seq.0 < start) {
            return;
        }
        while ahead.starts.front().is_some_and(|&start| start <= seq.0) {
            ahead.starts.pop_front();
        }
        self.fill_ahead(queue, turn);
    }

    /// The body of the ready entry `seq` is missing: asks for it and for what follows.
    pub(super) fn read_missing(&mut self, queue: &QueueHandle, turn: &mut Turn<'_>, seq: Seq) {
        let is_asked = self.slots.get(seq).is_none_or(|slot| slot.is_fetching);
        if is_asked || !self.slots.has_absent() {
            return;
        }
        self.read_ahead.starts.clear();
        self.read_ahead.frontier = seq.0;
        self.fill_ahead(queue, turn);
    }

    /// Entries came from the index file: goes on where it had to stop, for the consumers that are being served.
    pub(super) fn read_on(&mut self, queue: &QueueHandle, turn: &mut Turn<'_>) {
        if self.read_ahead.frontier > 0 && !self.consumers.is_empty() {
            self.fill_ahead(queue, turn);
        }
    }

    fn fill_ahead(&mut self, queue: &QueueHandle, turn: &mut Turn<'_>) {
        let is_scarce = turn.shared.is_over_budget();
        let (chunk_count, max_bytes) = if is_scarce {
            (1, SCARCE_CHUNK_MAX_BYTES)
        } else {
            (CHUNKS_AHEAD, CHUNK_MAX_BYTES)
        };
        while self.read_ahead.starts.len() < chunk_count && self.slots.has_absent() {
            let from = Seq(self.read_ahead.frontier);
            // Where entries are in the index file it goes on once they are loaded.
            let Some(first) = self.slots.ready_at_or_after(from).entry() else {
                return;
            };
            self.read_ahead.starts.push_back(first.0);
            self.ask_chunk(queue, turn, first, max_bytes);
        }
    }

    /// Asks for the bodies from `first` on that are not in memory, up to a chunk of them.
    fn ask_chunk(&mut self, queue: &QueueHandle, turn: &mut Turn<'_>, first: Seq, max_bytes: u64) {
        let mut count = 0;
        let mut asked_bytes = 0;
        let mut frontier = first.0;
        self.slots.visit_ready(first, |seq, slot| {
            if count >= CHUNK_MAX_COUNT || asked_bytes >= max_bytes {
                return ControlFlow::Break(());
            }
            count += 1;
            frontier = seq.0 + 1;
            if slot.message.is_none() && !slot.is_fetching {
                slot.is_fetching = true;
                let position = slot.position();
                asked_bytes += u64::from(position.len_bytes);
                turn.effects.fetch(queue, seq, position, slot.is_spilled());
            }
            ControlFlow::Continue(())
        });
        self.fetching_bytes += asked_bytes;
        self.read_ahead.frontier = frontier;
    }

    /// Asks for one body; the bytes of its record, 0 when it is in memory or on its way.
    pub(super) fn fetch(&mut self, queue: &QueueHandle, turn: &mut Turn<'_>, seq: Seq) -> u64 {
        let Some(place) = self.slots.place_of(seq) else {
            return 0;
        };
        let slot = self.slots.at(place);
        if slot.message.is_some() || slot.is_fetching {
            return 0;
        }
        let (position, is_spilled) = (slot.position(), slot.is_spilled());
        self.slots.update_at(place, |slot| slot.is_fetching = true);
        self.fetching_bytes += u64::from(position.len_bytes);
        turn.effects.fetch(queue, seq, position, is_spilled);
        u64::from(position.len_bytes)
    }
}
