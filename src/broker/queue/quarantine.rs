//! Messages that are known to be unreadable before anybody asked for them.
//!
//! Those of a run that is in the index file only are taken into memory with it, and keep it there: what cannot be read
//! is known to memory alone, and found again after a restart.

use super::batch::Batch;
use super::slots::Status;
use super::state::Locked;
use super::{FetchFailure, QueueHandle, Turn};
use crate::storage::run::FiledRun;
use crate::storage::types::{ImageEntry, Position, Seq};

/// Messages of one queue that cannot be read from their place.
#[derive(Debug, Default)]
pub struct Unreadable {
    /// Which they are, and why.
    pub messages: Vec<(Seq, Position, FetchFailure)>,
    /// Runs in the index file that some of them are in, each with all its unsettled messages.
    pub runs: Vec<(FiledRun, Vec<ImageEntry>)>,
}

/// Keeps those of the messages aside that wait for a consumer and would be read from that place; gives their number.
///
/// One whose content is in memory is delivered from there; one that is being read is found out by that read; one that
/// a consumer has is found out if it comes back.
pub fn quarantine(turn: &mut Turn<'_>, queue: &QueueHandle, unreadable: Unreadable) -> u64 {
    let mut locked = Locked::one(queue);
    let (_, state) = locked.first();
    for (run, entries) in &unreadable.runs {
        // One that has changed meanwhile has nothing to be kept aside, or is found again.
        let _ = state.slots.page_in_found(run, entries);
    }
    let mut count = 0;
    for (seq, position, failure) in unreadable.messages {
        let is_waiting = state.slots.get(seq).is_some_and(|slot| {
            slot.status == Status::Ready
                && slot.position() == position
                && slot.message.is_none()
                && !slot.is_fetching
        });
        if is_waiting {
            state.keep_aside(queue, turn, seq, &failure);
            count += 1;
        }
    }
    locked.conclude(turn, Batch::default());
    turn.finish();
    count
}
