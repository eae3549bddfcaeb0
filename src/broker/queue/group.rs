//! Publishing messages that each have targets of their own.
//!
//! ```text
//!   publishes   1>a  2>b  3>a  4>c  5>b  6>a  ..     as they came
//!   places      a: 1 3 6   b: 2 5   c: 4             by queue, each in its order
//!   queues      a.hand_over_run [1 3 6] ..           one lock set, one push; outcomes as they came
//! ```
//! 1. A message costs no more in a thousand queues than in one: locks, push and hand-over are once a group.
//! 2. Where each message has one target at most, those of a queue go there together: a publisher that goes round ten queues fills
//!    runs of deliveries as one that stays with one queue does. Between queues there is no order that anybody could rely on.

use std::sync::Arc;

use smallvec::SmallVec;

use super::batch::Batch;
use super::publish::{lock_targets, publish_all_to_one, publish_locked};
use super::state::{Locked, lock_queues};
use super::{QueueHandle, TargetDeleted, Turn};
use crate::broker::confirm_runs::ConfirmRuns;
use crate::broker::message::Message;
use crate::storage::types::QueueId;

/// Queues that one critical section publishes to at most: others wait for them meanwhile.
pub const GROUP_QUEUES_MAX: usize = 64;

/// Messages for each queue, on average, that are worth to be gathered by queue.
const RUN_MIN: usize = 2;

/// A message and its targets.
type Addressed = (Arc<Message>, Arc<[QueueHandle]>);

/// Where a message of a group goes. The id stands here: each queue is looked at once, independently of the others, so that
/// the processor fetches many of them at a time.
struct Place<'a> {
    id: QueueId,
    index: usize,
    queue: &'a QueueHandle,
}

/// As [`publish`](super::publish::publish), for messages that each have targets of their own: together at most about
/// [`GROUP_QUEUES_MAX`]. One lock set and one push for all of them; each queue sees its messages in the given order.
///
/// # Errors
/// [`TargetDeleted`]; the messages without an outcome in `out` were not published.
pub fn publish_group(
    turn: &mut Turn<'_>,
    publishes: &[Addressed],
    out: &mut ConfirmRuns,
) -> Result<(), TargetDeleted> {
    let is_limited = |(_, targets): &Addressed| targets.iter().any(|queue| queue.seems_limited());
    if !publishes.iter().any(is_limited) {
        let result = publish_unlimited(turn, publishes, out);
        turn.finish();
        return result;
    }
    let mut result = Ok(());
    for run in publishes.chunk_by(|a, b| is_limited(a) == is_limited(b)) {
        result = match run {
            // A publish and what it drops are one atomic group, which shall be no larger than it must.
            limited if limited.first().is_some_and(is_limited) => {
                publish_limited(turn, limited, out)
            }
            unlimited => publish_unlimited(turn, unlimited, out),
        };
        if result.is_err() {
            break;
        }
    }
    turn.finish();
    result
}

/// Publishes to queues of which some have a limit of their length.
fn publish_limited(
    turn: &mut Turn<'_>,
    publishes: &[Addressed],
    out: &mut ConfirmRuns,
) -> Result<(), TargetDeleted> {
    let mut one = Vec::with_capacity(1);
    publishes.iter().try_for_each(|(message, targets)| {
        let (locked, batch) = lock_targets(targets)?;
        one.push(Arc::clone(message));
        publish_locked(turn, locked, batch, one.drain(..), out);
        Ok(())
    })
}

/// Publishes to queues without a limit of their length.
fn publish_unlimited(
    turn: &mut Turn<'_>,
    publishes: &[Addressed],
    out: &mut ConfirmRuns,
) -> Result<(), TargetDeleted> {
    let places = places_of(publishes);
    let queues = places.chunk_by(|one, next| one.id == next.id);
    let mut locked = lock_queues(queues.filter_map(|own| Some(own.first()?.queue)));
    locked.warm();
    if locked.has_deleted() {
        return Err(TargetDeleted);
    }
    if locked.has_limited() {
        // A policy has limited one of them since.
        drop(locked);
        return publish_limited(turn, publishes, out);
    }
    let mut batch = Batch::default();
    batch.expect(publishes.len(), publishes.len());
    batch.expect_queues(locked.count());
    let is_worth_it = publishes.len() >= RUN_MIN * locked.count();
    match is_worth_it && publishes.iter().all(|(_, targets)| targets.len() <= 1) {
        true => publish_by_queue(turn, &mut batch, &mut locked, publishes, &places, out),
        false => publish_each(turn, &mut batch, &mut locked, publishes, out),
    }
    if let Some(receipt) = locked.conclude(turn, batch) {
        out.set_receipt(receipt);
    }
    Ok(())
}

/// All places of messages, ascending by queue, those of a queue as the messages came.
fn places_of(publishes: &[Addressed]) -> SmallVec<[Place<'_>; GROUP_QUEUES_MAX]> {
    let mut places = SmallVec::with_capacity(publishes.len());
    for (index, (_, targets)) in publishes.iter().enumerate() {
        for queue in targets.iter() {
            let id = queue.id();
            places.push(Place { id, index, queue });
        }
    }
    if !places.is_sorted_by_key(|place: &Place<'_>| place.id) {
        places.sort_unstable_by_key(|place| (place.id, place.index));
    }
    places
}

/// Publishes messages that have one target at most, queue by queue.
fn publish_by_queue(
    turn: &mut Turn<'_>,
    batch: &mut Batch,
    locked: &mut Locked<'_>,
    publishes: &[Addressed],
    places: &[Place<'_>],
    out: &mut ConfirmRuns,
) {
    // Refused, and logged; neither, where no queue takes it.
    let mut outcomes: SmallVec<[(bool, bool); GROUP_QUEUES_MAX]> = SmallVec::new();
    outcomes.resize(publishes.len(), (false, false));
    let mut messages = Vec::new();
    for own in places.chunk_by(|one, next| one.id == next.id) {
        let Some(first) = own.first() else {
            continue;
        };
        let indexes = own.iter().map(|place| place.index);
        messages.extend(indexes.clone().map(|index| Arc::clone(&publishes[index].0)));
        let (queue, state) = locked.entry_of(first.id);
        let mut told = indexes;
        let tell = |is_refused, is_logged| {
            if let Some(index) = told.next() {
                outcomes[index] = (is_refused, is_logged);
            }
        };
        publish_all_to_one(turn, batch, queue, state, messages.drain(..), tell);
    }
    for (is_refused, is_logged) in outcomes {
        out.push_unpushed(is_refused, is_logged);
    }
}

/// Publishes messages of which some have several targets, one after the other.
fn publish_each(
    turn: &mut Turn<'_>,
    batch: &mut Batch,
    locked: &mut Locked<'_>,
    publishes: &[Addressed],
    out: &mut ConfirmRuns,
) {
    for (message, targets) in publishes {
        let mut is_refused = false;
        for target in targets.iter() {
            let (queue, state) = locked.entry_of(target.id());
            is_refused |= !state.enqueue(queue, turn, batch, Arc::clone(message));
        }
        let is_logged = batch.end_publication(message);
        out.push_unpushed(is_refused, is_logged);
    }
}
