//! Ack, reject and requeue.

use std::sync::Arc;

use super::batch::Batch;
use super::slots::{Place, Status};
use super::state::{Locked, QueueState, lock_queues};
use super::{QueueHandle, Turn};
use crate::broker::command::{ConsumerId, SettleOutcome, Unacked};
use crate::broker::dead_letter::DeathReason;
use crate::storage::types::{Seq, SeqRange, SettleCause};

/// Queues that one critical section settles in at most: others wait for them meanwhile.
const GROUP_QUEUES_MAX: usize = 64;

/// Settles delivered messages of any queues; gives back the consumers' and channels' credit. `items` comes back sorted by queue.
pub fn settle(turn: &mut Turn<'_>, items: &mut [Unacked], outcome: SettleOutcome) {
    if !is_of_one_queue(items) {
        // Stable: the messages of a queue stay in the order of their delivery. Each queue is asked for its id once.
        items.sort_by_cached_key(|item| item.queue.id());
    }
    let mut rest = &*items;
    while !rest.is_empty() {
        let (group, later) = rest.split_at(group_len(rest));
        settle_group(turn, group, outcome);
        rest = later;
    }
    turn.finish();
}

fn is_of_one_queue(items: &[Unacked]) -> bool {
    items
        .windows(2)
        .all(|pair| Arc::ptr_eq(&pair[0].queue, &pair[1].queue))
}

/// Items from the front of sorted ones that belong to few enough queues.
fn group_len(items: &[Unacked]) -> usize {
    let of_queue = items.chunk_by(|a, b| Arc::ptr_eq(&a.queue, &b.queue));
    of_queue.take(GROUP_QUEUES_MAX).map(<[_]>::len).sum()
}

/// One record for what one call settles in one queue; the records of some queues in one push.
fn settle_group(turn: &mut Turn<'_>, items: &[Unacked], outcome: SettleOutcome) {
    let of_queue = items.chunk_by(|a, b| Arc::ptr_eq(&a.queue, &b.queue));
    let queues = of_queue.filter_map(|items| items.first().map(|item| &item.queue));
    let mut locked = lock_queues(queues);
    locked.warm();
    let mut batch = Batch::default();
    settle_in(turn, &mut locked, &mut batch, items, outcome);
    for (queue, state) in locked.iter_mut() {
        state.dispatch(queue, turn, &mut batch, None);
        if outcome.is_requeue() {
            state.expire_heads(queue, turn.now_ms, &mut batch);
            state.enforce_limits(queue, &mut batch);
        }
    }
    locked.conclude(turn, batch);
}

/// Settles items of locked queues, without dispatching.
pub(super) fn settle_in(
    turn: &mut Turn<'_>,
    locked: &mut Locked<'_>,
    batch: &mut Batch,
    items: &[Unacked],
    outcome: SettleOutcome,
) {
    let same_holder =
        |a: &Unacked, b: &Unacked| a.consumer == b.consumer && Arc::ptr_eq(&a.queue, &b.queue);
    for group in items.chunk_by(same_holder) {
        let (queue, state) = locked.entry_of(group[0].queue.id());
        let seqs = group.iter().map(|item| item.seq);
        // Ranges are ascending; delivery order is not, once messages were requeued.
        if group.is_sorted_by_key(|item| item.seq) {
            state.settle_all(queue, batch, seqs, outcome);
        } else {
            let mut sorted: Vec<Seq> = seqs.collect();
            sorted.sort_unstable();
            state.settle_all(queue, batch, sorted.into_iter(), outcome);
        }
        state.give_back(turn, group[0].consumer, group.len());
    }
}

impl QueueState {
    fn settle_all(
        &mut self,
        queue: &QueueHandle,
        batch: &mut Batch,
        seqs: impl Iterator<Item = Seq>,
        outcome: SettleOutcome,
    ) {
        // What was acknowledged and is yet to be told to the log.
        let mut acked: Option<SeqRange> = None;
        for seq in seqs {
            let place = self.slots.place_of(seq);
            let is_held = |place: &Place| self.slots.at(*place).status == Status::Unacked;
            // Messages of a deleted queue are gone; settling them is accepted and ignored (QU-30).
            let Some(place) = place.filter(is_held) else {
                continue;
            };
            match outcome {
                SettleOutcome::Ack => {
                    let Some(slot) = self.slots.remove_at(place) else {
                        continue;
                    };
                    self.forget_ended(seq, &slot);
                    if !slot.is_logged {
                        continue;
                    }
                    match &mut acked {
                        Some(range) if range.last.0 + 1 == seq.0 => range.last = seq,
                        _ => {
                            let next = SeqRange {
                                first: seq,
                                last: seq,
                            };
                            if let Some(range) = acked.replace(next) {
                                batch.settle_range(queue.id(), SettleCause::Acked, range);
                            }
                        }
                    }
                }
                SettleOutcome::Reject => self.let_die(queue, batch, seq, DeathReason::Rejected),
                SettleOutcome::Requeue => self.put_back(queue, batch, seq, true),
                SettleOutcome::Return => self.put_back(queue, batch, seq, false),
            }
        }
        if let Some(range) = acked {
            batch.settle_range(queue.id(), SettleCause::Acked, range);
        }
    }

    /// Back to its place, marked (AK-7).
    fn put_back(&mut self, queue: &QueueHandle, batch: &mut Batch, seq: Seq, is_failure: bool) {
        if queue.traits.is_quorum && !self.count_return(queue, batch, seq, is_failure) {
            return;
        }
        self.slots.set_status(seq, Status::Ready);
        let mut logged_count = None;
        self.slots.update(seq, |slot| {
            slot.is_redelivered = true;
            slot.delivery_count = slot.delivery_count.saturating_add(u16::from(is_failure));
            logged_count = slot.is_logged.then_some(slot.delivery_count);
        });
        if let Some(delivery_count) = logged_count {
            batch.requeue(queue.id(), seq, u32::from(delivery_count));
        }
    }

    fn give_back(&mut self, turn: &mut Turn<'_>, consumer: Option<ConsumerId>, count: usize) {
        if let Some(consumer) = consumer {
            let count = u32::try_from(count).expect("a channel holds fewer messages than 2^32");
            self.consumers.give_back(consumer, count, &mut turn.resumed);
        }
    }
}
