//! Publishing messages that each have targets of their own.
//!
//! ```text
//!   publishes   1>a  2>b  3>a  4>c  5>b  6>a  ..     as they came
//!   by queue    a: 1 3 6   b: 2 5   c: 4             each in its order
//!   queues      a.hand_over_run [1 3 6] ..           one lock set, one push; outcomes as they came
//! ```
//! 1. A message costs no more in a thousand queues than in one: locks, push and hand-over are once a group.
//! 2. Where each message has one target at most, those of a queue go there together: a publisher that goes round ten queues fills
//!    runs of deliveries as one that stays with one queue does. Between queues there is no order that anybody could rely on.

use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::batch::Batch;
use super::publish::{lock_targets, publish_all_to_one, publish_locked};
use super::state::{Locked, lock_queues};
use super::{QueueHandle, TargetDeleted, Turn};
use crate::broker::confirm_runs::ConfirmRuns;
use crate::broker::message::Message;
use crate::storage::types::QueueId;

/// Queues that one critical section publishes to at most: others wait for them meanwhile.
pub const GROUP_QUEUES_MAX: usize = 64;

/// Messages of a usual group.
const PLACES: usize = 4 * GROUP_QUEUES_MAX;

/// Messages for each queue, on average, that are worth to be gathered by queue.
const RUN_MIN: usize = 2;

/// A message and the number of the set of targets that it goes to.
#[derive(Debug)]
pub struct Addressed {
    /// `None` when the queues have it.
    pub message: Option<Arc<Message>>,
    /// Which of the group's sets.
    pub set: u32,
}

/// The targets of a group, each set of them ascending by id and distinct.
type Sets<'a> = &'a [Arc<[QueueHandle]>];

impl Addressed {
    /// One that is to be published.
    pub fn new(message: Arc<Message>, set: u32) -> Self {
        let message = Some(message);
        Self { message, set }
    }

    fn targets<'a>(&self, sets: Sets<'a>) -> &'a [QueueHandle] {
        &sets[self.set as usize]
    }
}

/// As [`publish`](super::publish::publish), for messages that each have targets of their own: together at most about
/// [`GROUP_QUEUES_MAX`]. One lock set and one push for all of them; each queue sees its messages in the given order.
///
/// # Errors
/// [`TargetDeleted`]; the messages without an outcome in `out` were not published, and are still there.
pub fn publish_group(
    turn: &mut Turn<'_>,
    sets: Sets<'_>,
    publishes: &mut [Addressed],
    out: &mut ConfirmRuns,
) -> Result<(), TargetDeleted> {
    let is_limited = |targets: &[QueueHandle]| targets.iter().any(|queue| queue.seems_limited());
    if !sets.iter().any(|targets| is_limited(targets)) {
        let result = publish_unlimited(turn, sets, publishes, out);
        turn.finish();
        return result;
    }
    let is_limited = |publish: &Addressed| is_limited(publish.targets(sets));
    let mut result = Ok(());
    for run in publishes.chunk_by_mut(|a, b| is_limited(a) == is_limited(b)) {
        result = match run {
            // A publish and what it drops are one atomic group, which shall be no larger than it must.
            [first, ..] if is_limited(first) => publish_limited(turn, sets, run, out),
            unlimited => publish_unlimited(turn, sets, unlimited, out),
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
    sets: Sets<'_>,
    publishes: &mut [Addressed],
    out: &mut ConfirmRuns,
) -> Result<(), TargetDeleted> {
    let mut one = Vec::with_capacity(1);
    publishes.iter_mut().try_for_each(|publish| {
        let (locked, batch) = lock_targets(publish.targets(sets))?;
        one.extend(publish.message.take());
        publish_locked(turn, locked, batch, one.drain(..), out);
        Ok(())
    })
}

/// Publishes to queues without a limit of their length.
fn publish_unlimited(
    turn: &mut Turn<'_>,
    sets: Sets<'_>,
    publishes: &mut [Addressed],
    out: &mut ConfirmRuns,
) -> Result<(), TargetDeleted> {
    let queues = queues_of(sets, publishes);
    let mut locked = lock_queues(queues.iter().map(|(_, queue)| *queue));
    locked.warm();
    if locked.has_deleted() {
        return Err(TargetDeleted);
    }
    if locked.has_limited() {
        // A policy has limited one of them since.
        drop(locked);
        return publish_limited(turn, sets, publishes, out);
    }
    let mut batch = Batch::default();
    batch.expect(publishes.len(), publishes.len());
    batch.expect_queues(locked.count());
    let is_worth_it = publishes.len() >= RUN_MIN * locked.count();
    match is_worth_it && sets.iter().all(|targets| targets.len() <= 1) {
        true => {
            let by_queue = ByQueue::of(sets, publishes, &queues);
            publish_by_queue(turn, &mut batch, &mut locked, publishes, &by_queue, out);
        }
        false => publish_each(turn, &mut batch, &mut locked, sets, publishes, out),
    }
    if let Some(receipt) = locked.conclude(turn, batch) {
        out.set_receipt(receipt);
    }
    Ok(())
}

/// Queues with their ids, which stand here: each queue is looked at once, independently of the others, so that the processor
/// fetches many of them at a time.
type Queues<'a> = SmallVec<[(QueueId, &'a QueueHandle); GROUP_QUEUES_MAX]>;

/// All queues that messages go to, ascending, each once.
fn queues_of<'a>(sets: Sets<'a>, publishes: &[Addressed]) -> Queues<'a> {
    let mut queues = Queues::new();
    // Parts of a group name few of its sets.
    let mut is_named: SmallVec<[bool; GROUP_QUEUES_MAX]> = smallvec![false; sets.len()];
    for publish in publishes {
        if !std::mem::replace(&mut is_named[publish.set as usize], true) {
            let targets = publish.targets(sets).iter();
            queues.extend(targets.map(|queue| (queue.id(), queue)));
        }
    }
    if !queues.is_sorted_by_key(|(id, _)| id) {
        queues.sort_unstable_by_key(|(id, _)| *id);
    }
    queues.dedup_by_key(|(id, _)| *id);
    queues
}

/// Messages that have one target at most, by queue, those of a queue as they came.
struct ByQueue {
    /// The messages' indexes; those for nobody stand last.
    indexes: SmallVec<[u32; PLACES]>,
    /// Each queue and where its part of the indexes ends.
    ends: SmallVec<[(QueueId, usize); GROUP_QUEUES_MAX]>,
}

impl ByQueue {
    fn of(sets: Sets<'_>, publishes: &[Addressed], queues: &Queues<'_>) -> Self {
        // Sets may have a queue in common. Without one they come last.
        let place_of = |targets: &Arc<[QueueHandle]>| {
            let only = targets.first().map(|queue| queue.id());
            let place = |id| queues.binary_search_by_key(&id, |(id, _)| *id).ok();
            only.and_then(place).unwrap_or(queues.len())
        };
        let places: SmallVec<[usize; GROUP_QUEUES_MAX]> = sets.iter().map(place_of).collect();
        let place = |publish: &Addressed| places[publish.set as usize];
        // First how many each has, then where it begins.
        let mut next: SmallVec<[usize; GROUP_QUEUES_MAX]> = smallvec![0; queues.len() + 1];
        for publish in publishes {
            next[place(publish)] += 1;
        }
        let mut begin = 0;
        for own in &mut next {
            begin += std::mem::replace(own, begin);
        }
        let mut indexes = smallvec![0; publishes.len()];
        for (index, publish) in (0..).zip(publishes) {
            let at = &mut next[place(publish)];
            indexes[*at] = index;
            *at += 1;
        }
        // Each has come to its end by now.
        let ends = queues.iter().zip(next).map(|((id, _), end)| (*id, end));
        let ends = ends.collect();
        Self { indexes, ends }
    }
}

/// Publishes messages that have one target at most, queue by queue.
fn publish_by_queue(
    turn: &mut Turn<'_>,
    batch: &mut Batch,
    locked: &mut Locked<'_>,
    publishes: &mut [Addressed],
    by_queue: &ByQueue,
    out: &mut ConfirmRuns,
) {
    // Refused, and logged; neither, where no queue takes it.
    let mut outcomes: SmallVec<[(bool, bool); PLACES]> = smallvec![(false, false); publishes.len()];
    let mut messages = Vec::new();
    let mut begin = 0;
    for &(id, end) in &by_queue.ends {
        let own = &by_queue.indexes[begin..end];
        begin = end;
        let taken = own
            .iter()
            .filter_map(|index| publishes[*index as usize].message.take());
        messages.extend(taken);
        let (queue, state) = locked.entry_of(id);
        let mut told = own.iter();
        let tell = |is_refused, is_logged| {
            if let Some(index) = told.next() {
                outcomes[*index as usize] = (is_refused, is_logged);
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
    sets: Sets<'_>,
    publishes: &mut [Addressed],
    out: &mut ConfirmRuns,
) {
    for publish in publishes {
        let Some(message) = publish.message.take() else {
            continue;
        };
        let mut is_refused = false;
        for target in publish.targets(sets) {
            let (queue, state) = locked.entry_of(target.id());
            is_refused |= !state.enqueue(queue, turn, batch, Arc::clone(&message));
        }
        let is_logged = batch.end_publication(message);
        out.push_unpushed(is_refused, is_logged);
    }
}
