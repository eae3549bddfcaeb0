//! Handing ready messages to whoever may take them, and reading bodies ahead from disk.
//!
//! ```text
//!   hand_over_run   messages arrive where nothing waits and the only consumer has room: they never are ones that wait
//!   hand_over       the same for one message, and where there are several consumers
//!   serve_run       what waits, while it may simply go to the only consumer
//!   serve           the same for one message, and where there are several consumers
//!   dispatch        everything else: gets, expiry, reservations, bodies on disk, counts of quorum queues
//! ```
//! All of them come to the same, which `tests::twins` proves; the others leave to the last whatever is unusual.

use std::sync::{Arc, Weak};

use bytes::Bytes;

use super::batch::Batch;
use super::slots::{Head, Slot, Status};
use super::state::{Locked, PendingGet, QueueState, is_expired, lock_queues};
use super::{FetchFailure, GetOutcome, QueueHandle, Turn};
use crate::broker::command::Delivery;
use crate::broker::consumer::{ChannelCredit, ConsumerIndex};
use crate::broker::dead_letter::DeathReason;
use crate::broker::message::{Message, PayloadDecoder};
use crate::broker::outbox::{Outbox, OutboxItem};
use crate::storage::types::{Seq, SettleCause};

/// Queues that one critical section serves after an outbox was drained.
const DRAIN_GROUP: usize = 16;

pub(super) enum Taker {
    Get,
    Consumer(ConsumerIndex),
}

impl QueueState {
    /// Delivers until nobody can take, nothing is ready, or the log or the disk must be waited for.
    /// A message that arrived just now (`fresh`) may be delivered though its time to live is 0 (TT-8).
    pub(super) fn dispatch(
        &mut self,
        queue: &QueueHandle,
        turn: &mut Turn<'_>,
        batch: &mut Batch,
        fresh: Option<Seq>,
    ) {
        if self.slots.sums().ready_count == 0 && self.gets.is_empty() && self.rare.is_none() {
            return;
        }
        self.serve(queue, turn, batch);
        while !self.gets.is_empty() || !self.consumers.is_empty() {
            let seq = match self.next_ready() {
                Head::Entry(seq) => seq,
                Head::Filed(seq) => {
                    if self.pick(queue).is_some() {
                        self.load(queue, turn, seq);
                    }
                    return;
                }
                Head::None => {
                    self.answer_gets_empty(batch);
                    return;
                }
            };
            let slot = self.slots.get(seq).expect("a ready entry is an entry");
            let may_expire = self.slots.may_expire();
            if may_expire && is_expired(slot, turn.now_ms) && fresh != Some(seq) {
                self.let_die(queue, batch, seq, DeathReason::Expired);
                continue;
            }
            let Some(taker) = self.pick(queue) else {
                return;
            };
            let Some(message) = self.deliverable(queue, turn, batch, seq) else {
                return;
            };
            match taker {
                Taker::Get => self.hand_to_get(queue, turn, batch, seq, message),
                Taker::Consumer(index) => self.hand_to(index, queue, turn, batch, seq, message),
            }
            self.look_ahead(queue, turn, batch, seq);
        }
    }

    /// True when messages that just arrived may go to consumers without a place among those that wait, unless they say otherwise
    /// themselves.
    fn passes_on(&self, queue: &QueueHandle, turn: &Turn<'_>) -> bool {
        let traits = &queue.traits;
        self.slots.sums().ready_count == 0
            && self.consumers.may_take()
            && self.gets.is_empty()
            && !self.rules.has_ttl
            && !self.rules.has_length_limit()
            && !self.slots.has_ranks()
            && !traits.is_quorum
            && !traits.is_delay
            && turn.shared.has_straight_way()
    }

    /// Gives a message that just arrived to a consumer, without a place among those that wait; gives it back when it is to take
    /// the general way: `admit`, then `dispatch`.
    pub(super) fn hand_over(
        &mut self,
        queue: &QueueHandle,
        turn: &Turn<'_>,
        batch: &mut Batch,
        message: Arc<Message>,
    ) -> Option<Arc<Message>> {
        if !self.passes_on(queue, turn) || message.ttl_ms().is_some() {
            return Some(message);
        }
        let is_single_active = queue.traits.is_single_active;
        let picked = self.consumers.pick_and_take(queue, is_single_active);
        let Some((index, is_settled)) = picked else {
            return Some(message);
        };
        let seq = self.slots.next_seq();
        self.pass_on(queue, turn, batch, &message, is_settled);
        batch.deliver(self.consumers.spec(index), queue, seq, false, message);
        None
    }

    /// Gives messages that just arrived to the only consumer, as [`hand_over`](Self::hand_over) would one after the other: as many
    /// from the front of `messages` as may go together. For each, `is_logged` hears whether the log gets it; how many they were.
    pub(super) fn hand_over_run<M>(
        &mut self,
        queue: &QueueHandle,
        turn: &Turn<'_>,
        batch: &mut Batch,
        messages: &mut M,
        mut is_logged: impl FnMut(bool),
    ) -> usize
    where
        M: Iterator<Item = Arc<Message>> + AsRef<[Arc<Message>]>,
    {
        if !self.passes_on(queue, turn) || queue.traits.is_single_active {
            return 0;
        }
        let Some((spec, count_max)) = self.consumers.only_taker(queue) else {
            return 0;
        };
        let is_settled = spec.is_no_ack;
        let all = messages.as_ref();
        let may_go = &all[..all.len().min(count_max)];
        let plain = may_go.iter().take_while(|one| one.ttl_ms().is_none());
        let fitting_count = batch.fitting(&spec.outbox, plain);
        let first = self.slots.next_seq();
        let count = self.consumers.take_from_only(fitting_count);
        for message in &may_go[..count] {
            let has_record = self.pass_on(queue, turn, batch, message, is_settled)
                && batch.end_publication(Arc::clone(message));
            is_logged(has_record);
        }
        if count > 0 {
            let spec = self.consumers.only();
            let spec = spec.expect("it has just taken credit");
            let handed_over = messages.take(count);
            batch.deliver_run(spec, queue, first, false, |list| list.extend(handed_over));
        }
        count
    }

    /// Gives the next seq to a message that is handed over; true when the log gets it.
    #[inline]
    fn pass_on(
        &mut self,
        queue: &QueueHandle,
        turn: &Turn<'_>,
        batch: &mut Batch,
        message: &Arc<Message>,
        is_settled: bool,
    ) -> bool {
        let seq = self.slots.next_seq();
        let is_logged = queue.logs(message);
        if is_logged {
            if !self.reservation.precedes(seq) {
                batch.reserve(queue.id(), self.reservation.ask_ahead_of_publish(seq));
            }
            batch.add_ref(queue.id(), seq, 0);
        }
        self.delivered_upto = self.delivered_upto.max(seq.count() + 1);
        if is_settled {
            self.slots.pass();
            if is_logged {
                batch.settle(queue.id(), SettleCause::Acked, seq);
            }
            return is_logged;
        }
        let gives_away = self.kept_deliveries.gives_away(turn.shared, is_logged);
        let mut slot = match gives_away && is_logged {
            true => Slot::passed_on(Status::Unacked, message),
            false => Slot::arrived(Status::Unacked, Arc::clone(message), 0),
        };
        slot.is_logged = is_logged;
        slot.is_covered = is_logged;
        self.slots.push(0, slot);
        is_logged
    }

    /// Who would take a message now.
    pub(super) fn pick(&mut self, queue: &QueueHandle) -> Option<Taker> {
        if !self.gets.is_empty() {
            return Some(Taker::Get);
        }
        let is_single_active = queue.traits.is_single_active;
        self.consumers
            .pick(queue, is_single_active)
            .map(Taker::Consumer)
    }

    /// The content of `seq` when it may leave now; else what it lacks is asked for.
    fn deliverable(
        &mut self,
        queue: &QueueHandle,
        turn: &mut Turn<'_>,
        batch: &mut Batch,
        seq: Seq,
    ) -> Option<Arc<Message>> {
        let slot = self.slots.get(seq)?;
        let message = slot.message.clone();
        if slot.is_logged && !slot.is_covered {
            let journal = turn.shared.journal();
            if !self.reservation.allows(seq, || journal.confirm_lsn()) {
                if let Some(ask) = self.reservation.ask_blocked(seq) {
                    batch.reserve(queue.spec.id, ask);
                }
                // The body may come from disk while the reservation is committed.
                if message.is_none() {
                    self.read_missing(queue, turn, seq);
                }
                return None;
            }
        }
        if message.is_none() {
            self.read_missing(queue, turn, seq);
        }
        match queue.traits.is_quorum {
            true => message.map(|message| self.with_counts(seq, message)),
            false => message,
        }
    }

    fn hand_to(
        &mut self,
        index: ConsumerIndex,
        queue: &QueueHandle,
        turn: &Turn<'_>,
        batch: &mut Batch,
        seq: Seq,
        message: Arc<Message>,
    ) {
        let Some(spec) = self.consumers.take(index) else {
            return;
        };
        let is_settled = spec.is_no_ack;
        let is_redelivered = self.slots.get(seq).is_some_and(|slot| slot.is_redelivered);
        batch.deliver(spec, queue, seq, is_redelivered, message);
        self.note_delivered(queue, turn, batch, seq, is_settled);
    }

    fn hand_to_get(
        &mut self,
        queue: &QueueHandle,
        turn: &Turn<'_>,
        batch: &mut Batch,
        seq: Seq,
        message: Arc<Message>,
    ) {
        let Some(get) = self.gets.pop_front() else {
            return;
        };
        let (channel, is_no_ack) = (get.channel, get.is_no_ack);
        let got = self.take_for_get(queue, turn, batch, channel, is_no_ack, seq, message);
        let item = OutboxItem::GetReady {
            channel,
            got: Some(Box::new(got)),
        };
        batch.hand_out(&get.outbox, item);
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the three of every call, and a get in parts"
    )]
    fn take_for_get(
        &mut self,
        queue: &QueueHandle,
        turn: &Turn<'_>,
        batch: &mut Batch,
        channel: u16,
        is_no_ack: bool,
        seq: Seq,
        message: Arc<Message>,
    ) -> (Delivery, u32) {
        let delivery = Delivery {
            channel,
            consumer: None,
            queue: Arc::clone(queue),
            seq,
            is_redelivered: self.slots.get(seq).is_some_and(|slot| slot.is_redelivered),
            is_settled: is_no_ack,
            message,
        };
        self.note_delivered(queue, turn, batch, seq, is_no_ack);
        let remaining = u32::try_from(self.slots.sums().ready_count).unwrap_or(u32::MAX);
        (delivery, remaining)
    }

    fn note_delivered(
        &mut self,
        queue: &QueueHandle,
        turn: &Turn<'_>,
        batch: &mut Batch,
        seq: Seq,
        is_settled: bool,
    ) {
        self.note_taken(seq);
        self.delivered_upto = self.delivered_upto.max(seq.count() + 1);
        if is_settled {
            self.end(queue, batch, seq, SettleCause::Acked);
        } else {
            let is_logged = self.slots.get(seq).is_some_and(|slot| slot.is_logged);
            self.slots.set_status(seq, Status::Unacked);
            if self.kept_deliveries.gives_away(turn.shared, is_logged) {
                self.evict(seq);
            }
        }
    }

    /// After `seq` left: asks for what the next ones will need.
    pub(super) fn look_ahead(
        &mut self,
        queue: &QueueHandle,
        turn: &mut Turn<'_>,
        batch: &mut Batch,
        seq: Seq,
    ) {
        if self.slots.sums().ready_count == 0 {
            return;
        }
        self.read_ahead(queue, turn, seq);
        if !queue.traits.is_durable {
            return;
        }
        if let Some(ask) = self.reservation.ask_early(seq, self.slots.next_seq()) {
            batch.reserve(queue.spec.id, ask);
        }
        self.load_ahead(queue, turn, seq);
    }

    /// A body arrived.
    fn take_fetched(&mut self, seq: Seq, message: Arc<Message>) {
        if let Some(len_bytes) = self.slots.arrive(seq, message) {
            self.fetching_bytes = self.fetching_bytes.saturating_sub(u64::from(len_bytes));
        }
    }

    /// A body could not be read: it is looked up once more, then the message is quarantined.
    #[cold]
    fn miss_fetched(
        &mut self,
        queue: &QueueHandle,
        turn: &mut Turn<'_>,
        seq: Seq,
        failure: &FetchFailure,
    ) {
        let Some(place) = self.slots.place_of(seq) else {
            return;
        };
        let slot = self.slots.at(place);
        if !slot.is_fetching {
            return;
        }
        let has_failed = slot.has_failed;
        let len_bytes = u64::from(slot.position().len_bytes);
        self.fetching_bytes = self.fetching_bytes.saturating_sub(len_bytes);
        self.slots.update_at(place, |slot| {
            slot.is_fetching = false;
            slot.has_failed = true;
        });
        if has_failed {
            self.keep_aside(queue, turn, seq, failure);
        } else {
            self.fetch(queue, turn, seq);
        }
    }

    /// Quarantines a message: it stays in its queue, unsettled, and is never delivered.
    pub(super) fn keep_aside(
        &mut self,
        queue: &QueueHandle,
        turn: &Turn<'_>,
        seq: Seq,
        failure: &FetchFailure,
    ) {
        tracing::error!(
            queue = %queue.spec.name,
            vhost = %queue.spec.vhost,
            %seq,
            reason = %failure.reason,
            "message cannot be read and is quarantined: kept, not delivered"
        );
        let status = self.slots.get(seq).map(|slot| slot.status);
        match (status, self.stuck()) {
            (Some(Status::Stuck), Some(stuck)) => stuck.forget_entry(seq),
            _ => self.leaving.retain(|&(leaving, _)| leaving != seq),
        }
        self.slots.set_status(seq, Status::Quarantined);
        turn.shared.count_quarantined(1);
    }

    /// Tells everybody who waits for a message that there is none.
    pub(super) fn answer_gets_empty(&mut self, batch: &mut Batch) {
        if self.gets.is_empty() {
            return;
        }
        for get in self.gets.take() {
            let item = OutboxItem::GetReady {
                channel: get.channel,
                got: None,
            };
            batch.hand_out(&get.outbox, item);
        }
    }
}

/// Tries again to deliver: an outbox was drained, or a reservation is durable (`AfterDurable::Redispatch`).
pub fn dispatch(turn: &mut Turn<'_>, queue: &QueueHandle) {
    let mut locked = Locked::one(queue);
    let mut batch = Batch::default();
    let (_, state) = locked.first();
    state.consumers.refresh();
    state.dispatch(queue, turn, &mut batch, None);
    locked.conclude(turn, batch);
    turn.finish();
}

/// Serves a queue that `credit` gave back, because there is room.
pub(super) fn dispatch_resumed(
    turn: &mut Turn<'_>,
    queue: &QueueHandle,
    credit: &Arc<ChannelCredit>,
) {
    let mut locked = Locked::one(queue);
    let mut batch = Batch::default();
    let (_, state) = locked.first();
    state.consumers.refresh_after_credit(credit);
    state.dispatch(queue, turn, &mut batch, None);
    locked.conclude(turn, batch);
}

/// Serves the queues that `outbox` turned away while it was full, in the order in which they came, until it is full
/// again. The rest waits on, before those that had something now: so none is passed over for good.
pub fn outbox_drained(turn: &mut Turn<'_>, outbox: &Arc<Outbox>) {
    let mut waiting = outbox.take_waiting();
    let mut done = 0;
    while !outbox.is_full() {
        let group = waiting.iter().skip(done).take(DRAIN_GROUP);
        // Of a deleted queue nothing is left to serve.
        let group: Vec<Option<QueueHandle>> = group.map(Weak::upgrade).collect();
        if group.is_empty() {
            break;
        }
        done += dispatch_group(turn, outbox, &group);
    }
    waiting.drain(..done.min(waiting.len()));
    outbox.wait_again(waiting);
    turn.finish();
}

/// Dispatches some queues, in the given order, in one critical section; how many of them had their turn before the box
/// was full.
fn dispatch_group(
    turn: &mut Turn<'_>,
    outbox: &Arc<Outbox>,
    queues: &[Option<QueueHandle>],
) -> usize {
    let mut by_id: Vec<&QueueHandle> = queues.iter().flatten().collect();
    by_id.sort_unstable_by_key(|queue| queue.id());
    by_id.dedup_by_key(|queue| queue.id());
    let mut locked = lock_queues(by_id);
    let mut batch = Batch::default();
    let mut done = 0;
    for queue in queues {
        if outbox.is_full() {
            break;
        }
        done += 1;
        if let Some(queue) = queue {
            let (queue, state) = locked.entry_of(queue.id());
            state.consumers.refresh_after(outbox);
            state.dispatch(queue, turn, &mut batch, None);
        }
    }
    locked.conclude(turn, batch);
    done
}

/// Bodies that `Effects::fetches` asked for, in any order.
pub fn fetched(
    turn: &mut Turn<'_>,
    queue: &QueueHandle,
    messages: Vec<(Seq, Result<Arc<Message>, FetchFailure>)>,
) {
    let mut locked = Locked::one(queue);
    let mut batch = Batch::default();
    batch.expect(0, messages.len());
    let (_, state) = locked.first();
    for (seq, message) in messages {
        match message {
            Ok(message) => state.take_fetched(seq, message),
            Err(failure) => state.miss_fetched(queue, turn, seq, &failure),
        }
    }
    state.dispatch(queue, turn, &mut batch, None);
    locked.conclude(turn, batch);
    turn.finish();
}

/// The message that the log stored as `payload`, for [`fetched`]: made before the queue's lock is taken.
///
/// # Errors
/// The payload is not one that a broker wrote.
pub fn decode_body(
    decoder: &mut PayloadDecoder,
    payload: Bytes,
) -> Result<Arc<Message>, FetchFailure> {
    match decoder.decode(payload) {
        Ok(message) => Ok(Arc::new(message)),
        Err(error) => Err(FetchFailure {
            reason: error.to_string(),
        }),
    }
}

/// Takes one message for `basic.get`.
pub fn get(
    turn: &mut Turn<'_>,
    queue: &QueueHandle,
    channel: u16,
    outbox: &Arc<Outbox>,
    is_no_ack: bool,
) -> GetOutcome {
    let mut locked = Locked::one(queue);
    let mut batch = Batch::default();
    let (_, state) = locked.first();
    if state.is_deleted {
        return GetOutcome::Deleted;
    }
    state.lease_from_ms = turn.now_ms;
    state.expire_heads(queue, turn.now_ms, &mut batch);
    let outcome = match state.next_ready() {
        Head::None => GetOutcome::Empty,
        Head::Filed(seq) => {
            state.gets.push_back(PendingGet {
                channel,
                outbox: Arc::clone(outbox),
                is_no_ack,
            });
            state.load(queue, turn, seq);
            GetOutcome::Pending
        }
        Head::Entry(seq) => {
            let is_first = state.gets.is_empty();
            let message = is_first
                .then(|| state.deliverable(queue, turn, &mut batch, seq))
                .flatten();
            if let Some(message) = message {
                let (delivery, remaining) =
                    state.take_for_get(queue, turn, &mut batch, channel, is_no_ack, seq, message);
                state.look_ahead(queue, turn, &mut batch, seq);
                GetOutcome::Got(delivery, remaining)
            } else {
                state.gets.push_back(PendingGet {
                    channel,
                    outbox: Arc::clone(outbox),
                    is_no_ack,
                });
                GetOutcome::Pending
            }
        }
    };
    locked.conclude(turn, batch);
    turn.finish();
    outcome
}

/// Forgets a `get` that is pending; for a channel that ends while it waits.
pub fn abandon_get(queue: &QueueHandle, channel: u16, outbox: &Arc<Outbox>) {
    let mut locked = Locked::one(queue);
    let (_, state) = locked.first();
    state
        .gets
        .retain(|get| get.channel != channel || !Arc::ptr_eq(&get.outbox, outbox));
}
