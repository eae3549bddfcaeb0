//! Messages that are known to be unreadable before anybody asked for them.

use super::batch::Batch;
use super::slots::Status;
use super::state::Locked;
use super::{FetchFailure, QueueHandle, Turn};
use crate::storage::types::{Position, Seq};

/// Keeps those of the messages aside that wait for a consumer and would be read from `position`; gives their number.
///
/// One whose content is in memory is delivered from there; one that is being read is found out by that read; one that
/// a consumer has is found out if it comes back.
pub fn quarantine(
    turn: &mut Turn<'_>,
    queue: &QueueHandle,
    unreadable: Vec<(Seq, Position, FetchFailure)>,
) -> u64 {
    let mut locked = Locked::one(queue);
    let (_, state) = locked.first();
    let mut count = 0;
    for (seq, position, failure) in unreadable {
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
