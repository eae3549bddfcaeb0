//! Serving what waits, while it may simply go: a backlog that is drained.
//!
//! Entries that follow each other go to an only consumer together: it is asked for room, its credit taken and the sums changed
//! once for all of them. As in [`dispatch`](super::dispatch), whatever is unusual is left to the general way.

use super::batch::Batch;
use super::dispatch::Taker;
use super::read_ahead::ReadAhead;
use super::reservation::Reservation;
use super::slots::{Place, Slot};
use super::state::QueueState;
use super::{QueueHandle, Turn};
use crate::cache_line::TOUCHED_TOGETHER;
use crate::storage::types::{Seq, SettleCause};

impl QueueState {
    /// Delivers to consumers as `dispatch` does, while what stands at the head may simply go: the rest, whatever it is, is
    /// left to that one.
    pub(super) fn serve(&mut self, queue: &QueueHandle, turn: &mut Turn<'_>, batch: &mut Batch) {
        let has_way = turn.shared.has_straight_way();
        if !has_way || queue.traits.is_quorum || self.slots.may_expire() || !self.gets.is_empty() {
            return;
        }
        let mut warmed_below = 0;
        while self.consumers.may_take()
            && let Some(place) = self.slots.first_ready_place()
            && let Some(Taker::Consumer(index)) = self.pick(queue)
        {
            let seq = place.seq;
            if seq.0 >= warmed_below {
                warmed_below = seq.0.saturating_add(TOUCHED_TOGETHER as u64);
                self.slots.warm_from(place);
            }
            if self.serve_run(queue, turn, batch, place) {
                warmed_below = 0;
                continue;
            }
            let slot = self.slots.at(place);
            if slot.message.is_none() {
                return;
            }
            if slot.is_logged && !slot.is_covered {
                let confirm_lsn = || turn.shared.journal().confirm_lsn();
                if !self.reservation.allows(seq, confirm_lsn) {
                    return;
                }
            }
            let Some(spec) = self.consumers.take(index) else {
                return;
            };
            let is_redelivered = slot.is_redelivered;
            let (message, ended) = match spec.is_no_ack {
                true => self
                    .slots
                    .remove_at(place)
                    .map_or((None, None), |mut slot| (slot.message.take(), Some(slot))),
                false => {
                    let kept = &mut self.kept_deliveries;
                    let message = self.slots.hold_at(place, |slot| {
                        kept.gives_away(turn.shared, slot.is_logged) && slot.is_on_disk()
                    });
                    (message, None)
                }
            };
            let Some(message) = message else {
                return;
            };
            batch.deliver(spec, queue, seq, is_redelivered, message);
            self.delivered_upto = self.delivered_upto.max(seq.count() + 1);
            if let Some(slot) = ended {
                self.ended(queue, batch, seq, &slot, SettleCause::Acked);
            }
            self.look_ahead(queue, turn, batch, seq);
        }
    }

    /// Delivers the entries from `place` on to the only consumer, as [`serve`](Self::serve) would one after the other: as many as
    /// may go together. False when these are none, which says nothing about the first one.
    fn serve_run(
        &mut self,
        queue: &QueueHandle,
        turn: &mut Turn<'_>,
        batch: &mut Batch,
        place: Place,
    ) -> bool {
        let only = self.consumers.only();
        if queue.traits.is_single_active || only.is_none_or(|spec| spec.is_no_ack) {
            return false;
        }
        let Some((spec, count_max)) = self.consumers.only_taker(queue) else {
            return false;
        };
        let needs_reservation = |slot: &Slot| slot.is_logged && !slot.is_covered;
        let first = self.slots.at(place);
        let is_redelivered = first.is_redelivered;
        let confirm_lsn = || turn.shared.journal().confirm_lsn();
        if needs_reservation(first) && !self.reservation.allows(place.seq, confirm_lsn) {
            return false;
        }
        let reservation = &self.reservation;
        let count_max = count_max.min(stretch_count(
            queue,
            reservation,
            &self.read_ahead,
            place.seq,
        ));
        let ready = self.slots.ready_from(place).take(count_max);
        let going = ready.map_while(|(seq, slot)| {
            let is_allowed = !needs_reservation(slot) || reservation.has_allowed(seq);
            let may_go = is_allowed && slot.is_redelivered == is_redelivered;
            slot.message.as_ref().filter(|_| may_go)
        });
        let fitting_count = batch.fitting(&spec.outbox, going);
        let count = self.consumers.take_from_only(fitting_count);
        let Some(spec) = self.consumers.only().filter(|_| count > 0) else {
            return false;
        };
        let (slots, kept) = (&mut self.slots, &mut self.kept_deliveries);
        batch.deliver_run(spec, queue, place.seq, is_redelivered, |list| {
            let gives_away =
                |slot: &Slot| kept.gives_away(turn.shared, slot.is_logged) && slot.is_on_disk();
            slots.hold_run(place, count, gives_away, list);
        });
        let last = Seq(place.seq.0 + (count as u64 - 1));
        self.delivered_upto = self.delivered_upto.max(last.count() + 1);
        self.look_ahead(queue, turn, batch, last);
        true
    }
}

/// How many from `from` on may be served before something has to be [looked for ahead](QueueState::look_ahead): the last of them
/// is the first that may need it.
fn stretch_count(
    queue: &QueueHandle,
    reservation: &Reservation,
    read_ahead: &ReadAhead,
    from: Seq,
) -> usize {
    let chunk = read_ahead.next_start();
    let until_chunk = chunk.map(|chunk| chunk.0.saturating_sub(from.0));
    let early = reservation.early_from();
    let early = early.filter(|_| queue.traits.is_durable);
    let until_early = early.map(|early| early.saturating_sub(from.count()));
    let nearest = until_chunk.into_iter().chain(until_early).min();
    nearest.map_or(usize::MAX, |until| {
        let until = usize::try_from(until).unwrap_or(usize::MAX);
        until.saturating_add(1)
    })
}
