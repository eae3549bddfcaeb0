//! Ack, reject and requeue.

use std::sync::Arc;

use super::batch::Batch;
use super::slots::{Slot, Status};
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
    // As many follow, where consumers are kept at their limits and there are more messages.
    let settled_count: u64 = items.iter().map(Unacked::count).sum();
    let ready_counts = locked.iter_mut().map(|(_, state)| state.ready_count());
    let expected_count = settled_count.min(ready_counts.sum());
    batch.expect(0, usize::try_from(expected_count).unwrap_or(usize::MAX));
    batch.expect_queues(locked.count());
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
        let ranges = group.iter().map(|item| item.seqs);
        // Ranges are ascending; delivery order is not, once messages were requeued.
        if group.is_sorted_by(|a, b| a.seqs.last < b.seqs.first) {
            state.settle_all(queue, batch, ranges, outcome);
        } else {
            let mut sorted: Vec<SeqRange> = ranges.collect();
            sorted.sort_unstable_by_key(|range| range.first);
            state.settle_all(queue, batch, sorted.into_iter(), outcome);
        }
        let count = group.iter().map(Unacked::count).sum();
        state.give_back(turn, group[0].consumer, count);
    }
}

impl QueueState {
    fn settle_all(
        &mut self,
        queue: &QueueHandle,
        batch: &mut Batch,
        ranges: impl Iterator<Item = SeqRange>,
        outcome: SettleOutcome,
    ) {
        if outcome != SettleOutcome::Ack {
            self.kept_deliveries.renew();
        }
        for range in ranges {
            if outcome == SettleOutcome::Ack {
                self.acknowledge(queue, batch, range);
                continue;
            }
            for seq in (range.first.0..=range.last.0).map(Seq) {
                // Messages of a deleted queue are gone; settling them is accepted and ignored (QU-30).
                let slot = self.slots.get(seq);
                if slot.is_none_or(|slot| slot.status != Status::Unacked) {
                    continue;
                }
                match outcome {
                    SettleOutcome::Ack => {}
                    SettleOutcome::Reject => self.let_die(queue, batch, seq, DeathReason::Rejected),
                    SettleOutcome::Requeue => self.put_back(queue, batch, seq, true),
                    SettleOutcome::Return => self.put_back(queue, batch, seq, false),
                }
            }
        }
    }

    /// Ends those of `range` that are held; what is told to the log are the runs of them that it has.
    fn acknowledge(&mut self, queue: &QueueHandle, batch: &mut Batch, range: SeqRange) {
        if range.first == range.last {
            // Round many queues every range is one message.
            if let Some(slot) = self.slots.end_one_held(range.first) {
                self.ended(queue, batch, range.first, &slot, SettleCause::Acked);
            }
            return;
        }
        // Acknowledged and yet to be told to the log.
        let mut logged: Option<SeqRange> = None;
        // Those of which more is to be forgotten than the entry.
        let mut unusual: Vec<(Seq, Slot)> = Vec::new();
        let has_unfailed = self.has_unfailed();
        self.slots.end_held(range, |seq, slot| {
            if slot.is_logged {
                match &mut logged {
                    Some(range) if range.last.0 + 1 == seq.0 => range.last = seq,
                    _ => {
                        let next = SeqRange {
                            first: seq,
                            last: seq,
                        };
                        if let Some(range) = logged.replace(next) {
                            batch.settle_range(queue.id(), SettleCause::Acked, range);
                        }
                    }
                }
            }
            if has_unfailed || slot.is_fetching || slot.is_spilled() {
                unusual.push((seq, slot));
            }
        });
        if let Some(range) = logged {
            batch.settle_range(queue.id(), SettleCause::Acked, range);
        }
        for (seq, slot) in unusual {
            self.forget_ended(seq, &slot);
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

    fn ready_count(&self) -> u64 {
        self.slots.sums().ready_count
    }

    fn give_back(&mut self, turn: &mut Turn<'_>, consumer: Option<ConsumerId>, count: u64) {
        if let Some(consumer) = consumer {
            let count = u32::try_from(count).expect("a channel holds fewer messages than 2^32");
            self.consumers.give_back(consumer, count, &mut turn.resumed);
        }
    }
}
