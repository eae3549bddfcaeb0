//! Consumers come and go; purge, deletion and what timers bring.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::batch::Batch;
use super::dispatch::dispatch_resumed;
use super::state::Locked;
use super::{Aftermath, ConsumeRefusal, DeleteCondition, DeleteRefusal, Purged, QueueHandle, Turn};
use crate::broker::command::ConsumerId;
use crate::broker::consumer::{ChannelCredit, ConsumerSpec};
use crate::broker::outbox::OutboxItem;
use crate::storage::types::SettleCause;

/// Unacked deliveries that a consumer of a quorum queue may hold at most.
const QUORUM_PREFETCH_MAX: u16 = 2000;

/// Adds a consumer and delivers what it may have.
///
/// # Errors
/// [`ConsumeRefusal`].
pub fn consume(
    turn: &mut Turn<'_>,
    queue: &QueueHandle,
    mut consumer: ConsumerSpec,
) -> Result<(), ConsumeRefusal> {
    let mut locked = Locked::one(queue);
    let mut batch = Batch::default();
    let (_, state) = locked.first();
    if state.is_deleted {
        return Err(ConsumeRefusal::Deleted);
    }
    if queue.traits.is_quorum {
        if consumer.channel_credit.has_limit() {
            return Err(ConsumeRefusal::ChannelLimit);
        }
        // CO-20, QS-5.
        consumer.is_exclusive = false;
        consumer.prefetch = match consumer.prefetch {
            0 => QUORUM_PREFETCH_MAX,
            count => count.min(QUORUM_PREFETCH_MAX),
        };
    }
    // Without an exclusive consumer several may share; a queue with a single active one takes no
    // exclusive one at all (CO-19, CO-20).
    let wants_alone =
        consumer.is_exclusive && (!state.consumers.is_empty() || queue.traits.is_single_active);
    if wants_alone || state.consumers.has_exclusive() {
        return Err(ConsumeRefusal::ExclusiveUse);
    }
    state.consumers.add(consumer);
    if queue.traits.is_single_active {
        state.consumers.elect();
    }
    state.had_consumer = true;
    state.dispatch(queue, turn, &mut batch, None);
    locked.conclude(turn, batch);
    turn.finish();
    Ok(())
}

/// Removes a consumer; what it holds stays unacked.
pub fn cancel(turn: &mut Turn<'_>, queue: &QueueHandle, consumer: ConsumerId) -> Aftermath {
    let mut locked = Locked::one(queue);
    let mut batch = Batch::default();
    let (_, state) = locked.first();
    let was_there = state.consumers.remove(consumer);
    if was_there && state.consumers.is_empty() {
        state.lease_from_ms = turn.now_ms;
    }
    let is_unused =
        queue.spec.is_auto_delete && was_there && state.consumers.is_empty() && !state.is_deleted;
    // The active consumer of the queue may have been the one that left: whoever comes next must not be faster than those
    // who wait.
    if queue.traits.is_single_active {
        state.consumers.elect();
    }
    state.dispatch(queue, turn, &mut batch, None);
    locked.conclude(turn, batch);
    turn.finish();
    if is_unused {
        Aftermath::Unused
    } else {
        Aftermath::Stays
    }
}

/// Sets the limit of a channel (`basic.qos` global) and resumes the queues it had stopped.
pub fn set_channel_prefetch(turn: &mut Turn<'_>, credit: &Arc<ChannelCredit>, count: u16) {
    credit.set_limit(u32::from(count), &mut turn.resumed);
    turn.finish();
}

/// Removes all ready messages, and those that cannot be read.
pub fn purge(turn: &mut Turn<'_>, queue: &QueueHandle) -> Purged {
    let mut locked = Locked::one(queue);
    let mut batch = Batch::default();
    batch.set_waited();
    let (_, state) = locked.first();
    let purged = state.slots.purge();
    for &range in &purged.ranges {
        batch.settle_range(queue.id(), SettleCause::Purged, range);
    }
    state.fetching_bytes = state.fetching_bytes.saturating_sub(purged.fetching_bytes);
    state.released.extend(purged.spilled.iter().copied());
    let receipt = locked.conclude(turn, batch);
    turn.finish();
    Purged {
        message_count: u32::try_from(purged.count).unwrap_or(u32::MAX),
        durable_at: receipt.map(|receipt| receipt.end),
    }
}

/// Deletes a queue: `push_meta` logs it (for a durable queue) under the queue's lock, consumers are told,
/// messages are gone. Returns the ready messages removed. May be called with the topology lock held.
///
/// # Errors
/// [`DeleteRefusal`]; `push_meta` was not called.
pub fn delete(
    turn: &mut Turn<'_>,
    queue: &QueueHandle,
    condition: DeleteCondition,
    push_meta: impl FnOnce(),
) -> Result<u32, DeleteRefusal> {
    let mut locked = Locked::one(queue);
    let mut batch = Batch::default();
    let (_, state) = locked.first();
    if state.is_deleted {
        return Err(DeleteRefusal::AlreadyDeleted);
    }
    let sums = state.slots.sums();
    let ready_count = sums.ready_count;
    if condition.if_empty && ready_count + sums.others().quarantined_count > 0 {
        return Err(DeleteRefusal::NotEmpty);
    }
    if condition.if_unused && !state.consumers.is_empty() {
        return Err(DeleteRefusal::InUse);
    }
    push_meta();
    state.is_deleted = true;
    queue.is_deleted.store(true, Ordering::SeqCst);
    state.consumers.remove_all(|spec| {
        let item = OutboxItem::ConsumerCancelled {
            channel: spec.channel,
            consumer: spec.id,
        };
        batch.hand_out(&spec.outbox, item);
    });
    state.answer_gets_empty(&mut batch);
    state.release_all();
    state.slots.clear();
    state.leaving.clear();
    state.rare = None;
    state.due.clear();
    state.hidden.clear();
    locked.conclude(turn, batch);
    Ok(u32::try_from(ready_count).unwrap_or(u32::MAX))
}

/// A timer armed by `Effects::timers` is due.
pub fn timer_due(turn: &mut Turn<'_>, queue: &QueueHandle) -> Aftermath {
    let mut locked = Locked::one(queue);
    let mut batch = Batch::default();
    let (_, state) = locked.first();
    if state.is_deleted {
        return Aftermath::Stays;
    }
    if state.armed_at_ms <= turn.now_ms {
        state.armed_at_ms = 0;
    }
    state.expire_heads(queue, turn.now_ms, &mut batch);
    let is_unused = state
        .lease_due_at_ms()
        .is_some_and(|due_at_ms| due_at_ms <= turn.now_ms);
    locked.conclude(turn, batch);
    turn.finish();
    if is_unused {
        Aftermath::Unused
    } else {
        Aftermath::Stays
    }
}

impl Turn<'_> {
    /// Does what the critical sections of this call left to do, until nothing is left: queues whose
    /// channel got credit again, and messages that die.
    pub(super) fn finish(&mut self) {
        loop {
            if let Some(credit) = self.resumed.pop() {
                while let Some(queue) = credit.next_waiting() {
                    dispatch_resumed(self, &queue, &credit);
                }
            } else if let Some(refused) = self.refused.pop() {
                super::death::bury_refused(self, &refused);
            } else if let Some(queue) = self.dying.pop() {
                super::death::bury(self, &queue);
            } else {
                return;
            }
        }
    }
}
