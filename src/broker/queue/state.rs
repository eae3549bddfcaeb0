//! What a queue's mutex guards, and the changes that more than one operation makes.

use std::sync::Arc;
use std::sync::MutexGuard;

use smallvec::SmallVec;

use super::batch::Batch;
use super::content::KeptDeliveries;
use super::due::DueList;
use super::paging::LOAD_WINDOW_MIN;
use super::rare::Rare;
use super::read_ahead::ReadAhead;
use super::reservation::Reservation;
use super::seldom::Seldom;
use super::slots::{Head, Slot, Slots, Status};
use super::{Bound, QueueHandle, QueueShared, Refused, Rules, Turn};
use crate::broker::arguments::{Overflow, QueueArguments};
use crate::broker::consumer::Consumers;
use crate::broker::dead_letter::DeathReason;
use crate::broker::delayed::delay_ms;
use crate::broker::effects::{Effects, Timer};
use crate::broker::message::Message;
use crate::broker::outbox::Outbox;
use crate::storage::types::{Lsn, Position, QueueId, Receipt, Seq, SettleCause};
use crate::sync::lock;

/// How far the bytes in memory of one queue may stray from what the shared sum knows of it: keeps the
/// shared counter off the path of single messages.
const RESIDENT_SLACK_BYTES: u64 = 16 * 1024;

/// A `basic.get` that waits for the disk.
#[derive(Debug)]
pub(super) struct PendingGet {
    pub(super) channel: u16,
    pub(super) outbox: Arc<Outbox>,
    pub(super) is_no_ack: bool,
}

/// See the module. In the order of [`Queue`](super::Queue): what every message needs first.
#[derive(Debug)]
#[repr(C)]
pub(super) struct QueueState {
    pub(super) slots: Slots,
    /// What the shared sum of bytes in memory knows of this queue.
    pub(super) reported_bytes: u64,
    /// The same for slots in memory.
    pub(super) reported_slots: u64,
    /// End of the last record that names this queue.
    pub(super) last_lsn: Lsn,
    pub(super) is_deleted: bool,
    /// What the settings say to every message.
    pub(super) rules: Rules,
    /// A thread is writing dead letters of this queue: others leave it to that one, to keep the order.
    pub(super) is_dead_lettering: bool,
    /// They are too many; the queue is called when the last of them is durable.
    pub(super) awaits_letters: bool,
    /// Something was written to a spill file since the start.
    pub(super) has_spilled: bool,
    pub(super) had_consumer: bool,
    /// What the queue obeys: its arguments merged with its policies.
    pub(super) settings: Arc<QueueArguments>,
    /// Served before consumers.
    pub(super) gets: Seldom<PendingGet>,
    /// Entries with status `Leaving` whose dead letter has not been written, in order.
    pub(super) leaving: Seldom<(Seq, DeathReason)>,
    /// Places in spill files that are not wanted any more, until the critical section ends.
    pub(super) released: Seldom<Position>,
    pub(super) consumers: Consumers,
    pub(super) reservation: Reservation,
    /// Above the count of every seq that was ever delivered.
    pub(super) delivered_upto: u64,
    /// How far bodies have been asked for ahead of the consumers.
    pub(super) read_ahead: ReadAhead,
    pub(super) rare: Option<Box<Rare>>,
    /// Of a delay queue: who goes when.
    pub(super) due: DueList,
    /// Publishes of transactions, with the LSN from which they are visible.
    pub(super) hidden: Seldom<(Lsn, Vec<Seq>)>,
    /// Bytes of the reads that are on their way.
    pub(super) fetching_bytes: u64,
    /// Runs below this number have been looked at for loading.
    pub(super) loads_upto: u64,
    /// What the shared sum of filed runs knows of this queue.
    pub(super) reported_filed: u32,
    /// Runs to load ahead of who takes messages.
    pub(super) load_window: u16,
    pub(super) kept_deliveries: KeptDeliveries,
    /// When the earliest armed timer is due; 0 for none.
    pub(super) armed_at_ms: u64,
    /// Since when the queue counts as unused.
    pub(super) lease_from_ms: u64,
}

impl QueueState {
    pub(super) fn new(
        settings: Arc<QueueArguments>,
        next_seq: Seq,
        reserved_upto: Seq,
        last_lsn: Lsn,
        now_ms: u64,
    ) -> Self {
        let rank_count = settings.rank_count();
        Self {
            rules: Rules::of(&settings),
            settings,
            slots: Slots::new(next_seq, rank_count),
            consumers: Consumers::default(),
            reservation: Reservation::new(reserved_upto),
            gets: Seldom::default(),
            leaving: Seldom::default(),
            is_dead_lettering: false,
            rare: None,
            due: DueList::default(),
            awaits_letters: false,
            hidden: Seldom::default(),
            delivered_upto: 0,
            last_lsn,
            fetching_bytes: 0,
            released: Seldom::default(),
            has_spilled: false,
            loads_upto: 0,
            load_window: LOAD_WINDOW_MIN,
            kept_deliveries: KeptDeliveries::default(),
            read_ahead: ReadAhead::default(),
            armed_at_ms: 0,
            lease_from_ms: now_ms,
            had_consumer: false,
            reported_bytes: 0,
            reported_slots: 0,
            reported_filed: 0,
            is_deleted: false,
        }
    }

    /// Reads a word of each part that a message or an acknowledgement changes.
    fn warm(&self) -> u64 {
        let own = self.reported_bytes ^ self.delivered_upto;
        own ^ self.slots.warm() ^ u64::from(self.consumers.warm())
    }

    /// Adds a message, offers it to consumers and enforces the limits; false when the queue refuses it.
    /// The caller closes the message's refs in `batch`.
    pub(super) fn enqueue(
        &mut self,
        queue: &QueueHandle,
        turn: &mut Turn<'_>,
        batch: &mut Batch,
        message: Arc<Message>,
    ) -> bool {
        let Some(message) = self.hand_over(queue, turn, batch, message) else {
            return true;
        };
        let ttl_ms = message.ttl_ms();
        let seq = self.admit(queue, turn, batch, message, Status::Ready);
        seq.inspect(|&seq| self.offer(queue, turn, batch, ttl_ms, seq))
            .is_some()
    }

    /// The same for a dead letter, which it does not refuse (`refuses_letter`).
    pub(super) fn enqueue_letter(
        &mut self,
        queue: &QueueHandle,
        turn: &mut Turn<'_>,
        batch: &mut Batch,
        message: &Arc<Message>,
    ) {
        let seq = self.add(queue, turn, batch, Arc::clone(message), Status::Ready);
        self.offer(queue, turn, batch, message.ttl_ms(), seq);
    }

    /// Offers a new message, with this time to live of its own, to consumers and enforces the limits.
    fn offer(
        &mut self,
        queue: &QueueHandle,
        turn: &mut Turn<'_>,
        batch: &mut Batch,
        ttl_ms: Option<u64>,
        seq: Seq,
    ) {
        // What cannot leave waits, unless somebody has to be told or something may have expired meanwhile.
        if self.consumers.may_take() || !self.gets.is_empty() || self.slots.may_expire() {
            self.dispatch(queue, turn, batch, Some(seq));
        }
        if ttl_ms == Some(0) || (self.rules.has_ttl && self.settings.message_ttl_ms == Some(0)) {
            self.expire_heads(queue, turn.now_ms, batch);
        }
        self.enforce_limits(queue, batch);
    }

    /// Gives a message its place; `None` when the queue refuses it.
    pub(super) fn admit(
        &mut self,
        queue: &QueueHandle,
        turn: &mut Turn<'_>,
        batch: &mut Batch,
        message: Arc<Message>,
        status: Status,
    ) -> Option<Seq> {
        if self.refuses(&message) {
            let settings = &self.settings;
            if settings.overflow == Overflow::RejectPublishDlx && settings.dead_letter.is_some() {
                turn.refused.push(Refused {
                    queue: Arc::clone(queue),
                    message,
                    settings: Arc::clone(settings),
                });
            }
            return None;
        }
        Some(self.add(queue, turn, batch, message, status))
    }

    /// Gives a message its place.
    fn add(
        &mut self,
        queue: &QueueHandle,
        turn: &mut Turn<'_>,
        batch: &mut Batch,
        message: Arc<Message>,
        status: Status,
    ) -> Seq {
        let queue_ttl_ms = match self.rules.has_ttl {
            true => self.settings.message_ttl_ms,
            false => None,
        };
        let ttl_ms = match (queue_ttl_ms, message.ttl_ms()) {
            (Some(queue_ttl_ms), Some(own_ttl_ms)) => Some(queue_ttl_ms.min(own_ttl_ms)),
            (queue_ttl_ms, own_ttl_ms) => queue_ttl_ms.or(own_ttl_ms),
        };
        let ttl_ms = match queue.traits.is_delay {
            // Its own expiry begins in the queue it comes to.
            true => Some(delay_ms(&message.properties()).unwrap_or_default()),
            false => ttl_ms,
        };
        let expires_at_ms = ttl_ms.map_or(0, |ttl_ms| turn.now_ms.saturating_add(ttl_ms).max(1));
        let rank = match self.slots.has_ranks() {
            true => self
                .settings
                .rank_of(message.checked_properties().priority()),
            false => 0,
        };
        let seq = self.slots.next_seq_in(rank);
        let is_logged = queue.logs(&message);
        let mut slot = Slot::arrived(status, message, expires_at_ms);
        if is_logged {
            slot.is_logged = true;
            let is_wanted = status == Status::Ready
                && self.slots.sums().ready_count == 0
                && !self.reservation.precedes(seq)
                && self.pick(queue).is_some();
            if is_wanted {
                batch.reserve(queue.spec.id, self.reservation.ask_ahead_of_publish(seq));
            }
            slot.is_covered = self.reservation.precedes(seq);
            batch.add_ref(queue.spec.id, seq, expires_at_ms);
        }
        let pushed = self.slots.push(rank, slot);
        debug_assert_eq!(pushed, seq, "seqs are given in order");
        if queue.traits.is_delay {
            self.due.push(expires_at_ms, seq);
        }
        seq
    }

    /// True when the queue does not take the message.
    pub(super) fn refuses(&self, message: &Message) -> bool {
        self.rules.bound == Bound::Refuse && self.would_overflow(message, self.kept_sums())
    }

    /// True when the queue does not take a dead letter. One of its own (`is_own`) lies in the queue already, and it is the
    /// only one that can take those that are stuck there: they do not stand in each other's way.
    pub(super) fn refuses_letter(&self, message: &Message, is_own: bool) -> bool {
        match is_own {
            true => self.rules.bound == Bound::Refuse && self.would_overflow(message, (0, 0)),
            false => self.refuses(message),
        }
    }

    /// True when the message is too much, with these that are stuck: their number, and their bytes.
    fn would_overflow(&self, message: &Message, stuck: (u64, u64)) -> bool {
        let sums = self.slots.sums();
        let settings = &self.settings;
        let others = sums.others();
        let count = sums.ready_count + others.hidden_count + 1 + stuck.0;
        let ready_bytes = sums.ready_bytes + others.hidden_bytes;
        let bytes = ready_bytes + message.body_len() as u64 + stuck.1;
        settings.max_length.is_some_and(|max| count > max)
            || settings.max_length_bytes.is_some_and(|max| bytes > max)
    }

    /// Drops from the head while the queue is too long (`drop-head` only).
    pub(super) fn enforce_limits(&mut self, queue: &QueueHandle, batch: &mut Batch) {
        if !self.rules.drops_head() {
            return;
        }
        while self.is_too_long() {
            // A head in the index file is asked for when the critical section ends; then the drop goes on.
            let Some(seq) = self.slots.first_ready().entry() else {
                return;
            };
            self.let_die(queue, batch, seq, DeathReason::MaxLength);
        }
    }

    /// True when the queue has more than its limits allow.
    pub(super) fn is_too_long(&self) -> bool {
        let sums = self.slots.sums();
        let settings = &self.settings;
        let others = sums.others();
        let count = sums.ready_count + others.hidden_count;
        let bytes = sums.ready_bytes + others.hidden_bytes;
        settings.max_length.is_some_and(|max| count > max)
            || settings.max_length_bytes.is_some_and(|max| bytes > max)
    }

    /// Removes expired messages from the head (TT-5: only there), with priorities from that of each level (TT-6).
    pub(super) fn expire_heads(&mut self, queue: &QueueHandle, now_ms: u64, batch: &mut Batch) {
        if queue.traits.is_delay {
            return self.take_due(now_ms);
        }
        if !self.slots.may_expire() {
            return;
        }
        for head in self.slots.heads() {
            let mut head = head.entry();
            while let Some(seq) = head {
                let slot = self.slots.get(seq);
                if !slot.is_some_and(|slot| is_expired(slot, now_ms)) {
                    break;
                }
                self.let_die(queue, batch, seq, DeathReason::Expired);
                head = self.slots.head_after(seq);
            }
        }
    }

    /// Ends the entry `seq`: into the dead-letter exchange where the queue has one, else for good.
    pub(super) fn let_die(
        &mut self,
        queue: &QueueHandle,
        batch: &mut Batch,
        seq: Seq,
        reason: DeathReason,
    ) {
        if self.settings.dead_letter.is_some() {
            self.slots.set_status(seq, Status::Leaving);
            self.leaving.push_back((seq, reason));
            return;
        }
        let cause = match reason {
            DeathReason::Rejected | DeathReason::DeliveryLimit => SettleCause::Rejected,
            DeathReason::Expired => SettleCause::Expired,
            DeathReason::MaxLength => SettleCause::MaxLength,
        };
        self.end(queue, batch, seq, cause);
    }

    /// Ends the entry `seq` for good.
    pub(super) fn end(
        &mut self,
        queue: &QueueHandle,
        batch: &mut Batch,
        seq: Seq,
        cause: SettleCause,
    ) {
        if let Some(slot) = self.slots.remove(seq) {
            self.ended(queue, batch, seq, &slot, cause);
        }
    }

    /// The entry `seq` has ended, for good: it was `slot`.
    #[inline]
    pub(super) fn ended(
        &mut self,
        queue: &QueueHandle,
        batch: &mut Batch,
        seq: Seq,
        slot: &Slot,
        cause: SettleCause,
    ) {
        self.forget_ended(seq, slot);
        if slot.is_logged {
            batch.settle(queue.id(), cause, seq);
        }
    }

    /// The same, but for its settlement.
    #[inline]
    pub(super) fn forget_ended(&mut self, seq: Seq, slot: &Slot) {
        self.forget(slot);
        if let Some(rare) = &mut self.rare
            && !rare.unfailed.is_empty()
        {
            rare.unfailed.remove(&seq);
        }
    }

    /// True when it is counted how often some of its messages came back.
    pub(super) fn has_unfailed(&self) -> bool {
        let rare = self.rare.as_ref();
        rare.is_some_and(|rare| !rare.unfailed.is_empty())
    }

    /// The entry is gone: it does not wait for its body any more, and needs no place in a spill file.
    pub(super) fn forget(&mut self, slot: &Slot) {
        self.forget_fetch(slot);
        if slot.is_spilled() {
            self.released.push_back(slot.position());
        }
    }

    /// The entry does not wait for its body any more.
    pub(super) fn forget_fetch(&mut self, slot: &Slot) {
        if slot.is_fetching {
            self.fetching_bytes = self
                .fetching_bytes
                .saturating_sub(u64::from(slot.position().len_bytes));
        }
    }

    /// What every critical section does last: timers, the memory sum, dead letters to write.
    fn conclude(&mut self, queue: &QueueHandle, turn: &mut Turn<'_>) {
        self.report_memory(turn.shared);
        if self.slots.sums().total_count() == 0 {
            self.reservation.rest();
        }
        if !self.is_ordinary(queue) {
            self.conclude_unusual(queue, turn);
        }
    }

    /// True when nothing is left to do at the end of a critical section but the sums: so it is with nearly every message.
    #[inline]
    fn is_ordinary(&self, queue: &QueueHandle) -> bool {
        !self.slots.may_expire()
            && !self.slots.has_filed()
            && !self.rules.has_lease
            && !queue.traits.is_delay
            && self.leaving.is_empty()
            && self.released.is_empty()
            && self.rare.is_none()
    }

    fn conclude_unusual(&mut self, queue: &QueueHandle, turn: &mut Turn<'_>) {
        if !self.released.is_empty() {
            turn.effects.released.extend(self.released.take());
        }
        self.want_head(queue, turn);
        if queue.traits.is_delay {
            self.take_due(turn.now_ms);
        }
        let rare = self.rare.as_ref();
        let is_stuck_due = rare.is_some_and(|rare| rare.stuck.is_due(turn.now_ms));
        if (is_stuck_due || !self.leaving.is_empty()) && !self.is_dead_lettering {
            turn.dying.push(Arc::clone(queue));
        }
        self.arm_timer(queue, turn.now_ms, turn.effects);
    }

    pub(super) fn report_memory(&mut self, shared: &QueueShared) {
        let bytes = self.slots.sums().resident_bytes;
        // The last word about a queue is exact.
        let slack_bytes = if self.is_deleted {
            1
        } else {
            RESIDENT_SLACK_BYTES
        };
        if bytes.abs_diff(self.reported_bytes) >= slack_bytes {
            shared.report_resident(self.reported_bytes, bytes);
            self.reported_bytes = bytes;
        }
        self.report_entries(shared);
    }

    pub(super) fn arm_timer(&mut self, queue: &QueueHandle, now_ms: u64, effects: &mut Effects) {
        if self.is_deleted {
            return;
        }
        let rare = self.rare.as_ref();
        let retry_at_ms = rare.map_or(0, |rare| rare.stuck.due_at_ms(now_ms));
        if !self.rules.has_lease && !self.slots.may_expire() && retry_at_ms == 0 {
            return;
        }
        let head_ms = match queue.traits.is_delay {
            true => self.next_due_at_ms(now_ms),
            false => {
                let heads = self.slots.heads();
                let due = heads.iter().map(|head| self.head_due_at_ms(*head, now_ms));
                let due = due.chain([retry_at_ms]);
                due.filter(|due_at_ms| *due_at_ms != 0).min().unwrap_or(0)
            }
        };
        let due_at_ms = match (head_ms, self.lease_due_at_ms()) {
            (0, lease_ms) => lease_ms.unwrap_or(0),
            (head_ms, lease_ms) => head_ms.min(lease_ms.unwrap_or(head_ms)),
        };
        if due_at_ms != 0 && (self.armed_at_ms == 0 || due_at_ms < self.armed_at_ms) {
            self.armed_at_ms = due_at_ms;
            effects.timers.push(Timer {
                due_at_ms,
                queue: Arc::clone(queue),
            });
        }
    }

    /// When this head of a level is to be looked at for its expiry; 0 for never.
    fn head_due_at_ms(&self, head: Head, now_ms: u64) -> u64 {
        match head {
            _ if !self.slots.may_expire() => 0,
            Head::None => 0,
            Head::Entry(seq) => self.slots.get(seq).map_or(0, |slot| slot.expires_at_ms),
            // Not before the earliest of the run. When that is past, the run is on its way.
            Head::Filed(seq) => self
                .slots
                .filed_run(seq)
                .map(|run| run.expiry_base_ms)
                .filter(|base_ms| *base_ms > now_ms)
                .unwrap_or(0),
        }
    }

    /// When the lease of `x-expires` runs out; `None` without one or while the queue is used.
    pub(super) fn lease_due_at_ms(&self) -> Option<u64> {
        if !self.rules.has_lease {
            return None;
        }
        let expires_ms = self.settings.expires_ms?;
        (self.consumers.is_empty() && self.gets.is_empty())
            .then(|| self.lease_from_ms.saturating_add(expires_ms).max(1))
    }
}

/// TT-7: such a message is never delivered.
pub(super) fn is_expired(slot: &Slot, now_ms: u64) -> bool {
    slot.expires_at_ms != 0 && slot.expires_at_ms <= now_ms
}

/// The locks of the queues that one critical section changes (invariant 1).
pub(super) struct Locked<'a> {
    entries: SmallVec<[Entry<'a>; 2]>,
    /// The one that was looked up last: the next one is the same, or the one behind it.
    newest: usize,
}

/// The id stands here too: looked for in one place, not in a line of each queue.
type Entry<'a> = (QueueId, &'a QueueHandle, MutexGuard<'a, QueueState>);

/// Locks queues in the order of their ids, the one order of this broker. `queues` is ascending, distinct.
pub(super) fn lock_queues<'a>(queues: impl IntoIterator<Item = &'a QueueHandle>) -> Locked<'a> {
    let queues = queues.into_iter();
    let mut entries = SmallVec::with_capacity(queues.size_hint().0);
    let mut last = None;
    for queue in queues {
        let id = queue.id();
        assert!(
            last < Some(id),
            "queues are locked in ascending id, each once"
        );
        last = Some(id);
        entries.push((id, queue, lock(&queue.state)));
    }
    Locked { entries, newest: 0 }
}

impl<'a> Locked<'a> {
    /// Locks one queue.
    pub(super) fn one(queue: &'a QueueHandle) -> Self {
        let mut entries = SmallVec::new();
        entries.push((queue.id(), queue, lock(&queue.state)));
        Self { entries, newest: 0 }
    }

    /// Looks at the state of all queues once, where there are several. What is not in the processor's cache it fetches
    /// for many queues at a time then; the work that follows, queue by queue, would wait for each line by itself.
    pub(super) fn warm(&self) {
        if self.entries.len() > 1 {
            let seen = self.entries.iter().map(|(.., state)| state.warm());
            std::hint::black_box(seen.fold(0, u64::wrapping_add));
        }
    }

    /// How many queues they are.
    pub(super) fn count(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn has_deleted(&self) -> bool {
        self.entries.iter().any(|(.., state)| state.is_deleted)
    }

    /// True when a publish to these queues may bring drops along.
    pub(super) fn has_limited(&self) -> bool {
        self.entries
            .iter()
            .any(|(.., state)| state.rules.has_length_limit())
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&'a QueueHandle, &mut QueueState)> {
        self.entries
            .iter_mut()
            .map(|(_, queue, state)| (*queue, &mut **state))
    }

    /// The queue, when it is the only one.
    pub(super) fn only(&mut self) -> Option<(&'a QueueHandle, &mut QueueState)> {
        match &mut self.entries[..] {
            [(_, queue, state)] => Some((queue, state)),
            _ => None,
        }
    }

    /// The first (often the only) queue.
    pub(super) fn first(&mut self) -> (&'a QueueHandle, &mut QueueState) {
        let (_, queue, state) = &mut self.entries[0];
        (queue, state)
    }

    pub(super) fn entry_of(&mut self, id: QueueId) -> (&'a QueueHandle, &mut QueueState) {
        let is_at = |at: usize| self.entries.get(at).is_some_and(|entry| entry.0 == id);
        if is_at(self.newest + 1) {
            self.newest += 1;
        } else if !is_at(self.newest) {
            self.newest = self.search(id);
        }
        let (_, queue, state) = &mut self.entries[self.newest];
        (queue, state)
    }

    #[cold]
    fn search(&self, id: QueueId) -> usize {
        self.entries
            .binary_search_by_key(&id, |entry| entry.0)
            .expect("a critical section names only queues it has locked")
    }

    pub(super) fn state_of(&mut self, id: QueueId) -> &mut QueueState {
        self.entry_of(id).1
    }

    /// Ends the critical section: log, outboxes, then what state changes bring with them.
    pub(super) fn conclude(mut self, turn: &mut Turn<'_>, batch: Batch) -> Option<Receipt> {
        let receipt = batch.carry_out(turn, &mut self);
        for (queue, state) in self.iter_mut() {
            state.conclude(queue, turn);
        }
        receipt
    }
}
