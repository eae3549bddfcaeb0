//! What one critical section wants from the log and from the outboxes, gathered while state changes and
//! carried out in one push, then one hand-over per outbox, before the queues are unlocked.

use std::collections::BTreeMap;
use std::sync::Arc;

use smallvec::SmallVec;

use super::reservation::Ask;
use super::state::Locked;
use super::{QueueHandle, Turn};
use crate::broker::consumer::ConsumerSpec;
use crate::broker::effects::AfterDurable;
use crate::broker::message::Message;
use crate::broker::outbox::{AddedItems, AddedMessages, Outbox, OutboxItem, delivery_bytes};
use crate::storage::types::{QueueId, Receipt, Ref, Request, Seq, SeqRange, SettleCause, Urgency};

/// How many settle requests are looked at for one to extend.
const SETTLE_SEARCH_MAX: usize = 16;

struct Publication {
    message: Arc<Message>,
    /// Its refs are `refs[from..to]`.
    from: usize,
    to: usize,
}

struct Settlement {
    queue: QueueId,
    cause: SettleCause,
    ranges: SmallVec<[SeqRange; 2]>,
}

/// How many outboxes are looked at one by one for the one that gets an item; with more they are looked up.
const HANDOUT_SEARCH_MAX: usize = 16;
/// Items that an outbox gets room for at once: nobody knows which of the outboxes will get the items expected.
const EXPECTED_MAX_COUNT: usize = 512;
/// Bytes that an outbox is not told of yet: it would get that much too many from each of several threads.
const UNTOLD_MAX_BYTES: usize = 16 * 1024;

/// What one outbox gets; there is one for each outbox, or its bound would not hold.
struct Handout {
    outbox: Arc<Outbox>,
    items: AddedItems,
    /// Bytes of the deliveries in `items`.
    size_bytes: usize,
    /// Those that have no place in the outbox yet.
    untold_bytes: usize,
}

impl Handout {
    /// A delivery of so many bytes was added.
    #[inline]
    fn count(&mut self, size_bytes: usize) {
        self.size_bytes += size_bytes;
        self.untold_bytes += size_bytes;
        // A full box is told at once: nobody else may be picked for it.
        if self.untold_bytes >= UNTOLD_MAX_BYTES || self.outbox.is_full_with(self.untold_bytes) {
            self.tell();
        }
    }

    fn tell(&mut self) {
        if self.untold_bytes > 0 {
            self.outbox.reserve(self.untold_bytes);
            self.untold_bytes = 0;
        }
    }
}

/// Tells outboxes apart that are held meanwhile.
fn address(outbox: &Arc<Outbox>) -> usize {
    Arc::as_ptr(outbox).addr()
}

/// See the module.
#[derive(Default)]
pub(super) struct Batch {
    reservations: SmallVec<[(QueueId, Ask); 1]>,
    publications: SmallVec<[Publication; 1]>,
    refs: SmallVec<[Ref; 1]>,
    settlements: SmallVec<[Settlement; 1]>,
    /// The queues of `settlements` do not ascend.
    is_settled_back: bool,
    requeues: Vec<(QueueId, Seq, u32)>,
    handouts: SmallVec<[Handout; 1]>,
    /// Addresses of outboxes, and where in `handouts` they are, once these are more than are looked through.
    handout_places: BTreeMap<usize, usize>,
    /// Items that the first outbox will get, about.
    expected_count: usize,
    /// Queues that something happens in, at most.
    expected_queues_count: usize,
    /// Messages that may go to the log.
    expected_messages_count: usize,
    is_waited: bool,
    is_atomic: bool,
}

impl Batch {
    /// All or nothing after a crash.
    pub(super) fn set_atomic(&mut self) {
        self.is_atomic = true;
    }

    /// Somebody waits for the push.
    pub(super) fn set_waited(&mut self) {
        self.is_waited = true;
    }

    pub(super) fn reserve(&mut self, queue: QueueId, ask: Ask) {
        self.is_waited |= ask.is_urgent;
        self.reservations.push((queue, ask));
    }

    /// A place of the message that [`Batch::end_publication`] closes; ascending queue ids.
    pub(super) fn add_ref(&mut self, queue: QueueId, seq: Seq, expires_at_ms: u64) {
        self.refs.push(Ref {
            queue,
            seq,
            expires_at_ms,
        });
    }

    /// Ends the refs of one message; true when it has any, so that the log gets it.
    pub(super) fn end_publication(&mut self, message: Arc<Message>) -> bool {
        let from = self.publications.last().map_or(0, |last| last.to);
        let to = self.refs.len();
        if from == to {
            return false;
        }
        if self.publications.is_empty() {
            self.publications.reserve(self.expected_messages_count);
            self.refs.reserve(self.expected_messages_count);
        }
        self.publications.push(Publication { message, from, to });
        true
    }

    pub(super) fn settle(&mut self, queue: QueueId, cause: SettleCause, seq: Seq) {
        self.settle_range(
            queue,
            cause,
            SeqRange {
                first: seq,
                last: seq,
            },
        );
    }

    pub(super) fn settle_range(&mut self, queue: QueueId, cause: SettleCause, range: SeqRange) {
        let is_next = self
            .settlements
            .last()
            .is_none_or(|last| last.queue < queue);
        if is_next && !self.is_settled_back {
            // Nearly always: queues are settled in the order of their ids.
            self.add_settlement(queue, cause, range);
            return;
        }
        let open = self
            .settlements
            .iter_mut()
            .rev()
            .take(SETTLE_SEARCH_MAX)
            .find(|open| open.queue == queue && open.cause == cause);
        if let Some(open) = open
            && let Some(last) = open.ranges.last_mut()
            && last.last < range.first
        {
            if last.last.0 + 1 == range.first.0 {
                last.last = range.last;
            } else {
                open.ranges.push(range);
            }
            return;
        }
        self.is_settled_back |= !is_next
            && self
                .settlements
                .last()
                .is_some_and(|last| last.queue != queue);
        self.add_settlement(queue, cause, range);
    }

    fn add_settlement(&mut self, queue: QueueId, cause: SettleCause, range: SeqRange) {
        if self.settlements.is_empty() {
            self.settlements.reserve(self.expected_queues_count);
        }
        self.settlements.push(Settlement {
            queue,
            cause,
            ranges: SmallVec::from_slice(&[range]),
        });
    }

    pub(super) fn requeue(&mut self, queue: QueueId, seq: Seq, delivery_count: u32) {
        self.requeues.push((queue, seq, delivery_count));
    }

    /// Room for as many messages and deliveries at once, rather than by and by.
    pub(super) fn expect(&mut self, message_count: usize, delivery_count: usize) {
        self.expected_count = delivery_count.min(EXPECTED_MAX_COUNT);
        self.expected_messages_count = message_count;
    }

    /// Room for what happens in so many queues, rather than by and by.
    pub(super) fn expect_queues(&mut self, count: usize) {
        self.expected_queues_count = count;
    }

    /// Hands out what is no delivery. Nothing passes an outbox but in the order in which it is handed out here.
    pub(super) fn hand_out(&mut self, outbox: &Arc<Outbox>, item: OutboxItem) {
        self.handout_for(outbox).items.push(item);
    }

    /// Hands out a delivery to the consumer.
    #[inline]
    pub(super) fn deliver(
        &mut self,
        spec: &ConsumerSpec,
        queue: &QueueHandle,
        seq: Seq,
        is_redelivered: bool,
        message: Arc<Message>,
    ) {
        let size_bytes = delivery_bytes(&message);
        let handout = self.handout_for(&spec.outbox);
        let items = &mut handout.items;
        items.deliver(spec, queue, seq, is_redelivered, message);
        handout.count(size_bytes);
    }

    /// How many of the first of `messages` the outbox takes now: as many as make it full, or as many as it need not be told of
    /// before; maybe none, where others were faster.
    pub(super) fn fitting<'a>(
        &self,
        outbox: &Arc<Outbox>,
        messages: impl Iterator<Item = &'a Arc<Message>>,
    ) -> usize {
        let place = self.handout_place(outbox);
        let untold_bytes = place.map_or(0, |place| self.handouts[place].untold_bytes);
        let room_bytes = outbox.room_bytes().min(UNTOLD_MAX_BYTES);
        let mut size_bytes = untold_bytes;
        let fitting = messages.take_while(|message| {
            let fits = size_bytes < room_bytes;
            size_bytes += delivery_bytes(message);
            fits
        });
        fitting.count()
    }

    /// Hands out deliveries to the consumer, of messages that follow each other from `first` on: those that `fill` adds.
    pub(super) fn deliver_run(
        &mut self,
        spec: &ConsumerSpec,
        queue: &QueueHandle,
        first: Seq,
        is_redelivered: bool,
        fill: impl FnOnce(&mut AddedMessages),
    ) {
        let handout = self.handout_for(&spec.outbox);
        let items = &mut handout.items;
        let size_bytes = items.deliver_run(spec, queue, first, is_redelivered, fill);
        handout.count(size_bytes);
    }

    #[inline]
    fn handout_for(&mut self, outbox: &Arc<Outbox>) -> &mut Handout {
        let place = match self.handout_place(outbox) {
            Some(place) => place,
            None => self.add_handout(outbox),
        };
        &mut self.handouts[place]
    }

    fn add_handout(&mut self, outbox: &Arc<Outbox>) -> usize {
        let place = self.handouts.len();
        let deliveries_count = std::mem::take(&mut self.expected_count);
        let runs_count = deliveries_count.min(self.expected_queues_count);
        self.handouts.push(Handout {
            outbox: Arc::clone(outbox),
            items: AddedItems::expecting(deliveries_count, runs_count),
            size_bytes: 0,
            untold_bytes: 0,
        });
        if self.handouts.len() > HANDOUT_SEARCH_MAX {
            let unknown = self.handout_places.len()..self.handouts.len();
            let places = unknown.map(|place| (address(&self.handouts[place].outbox), place));
            self.handout_places.extend(places);
        }
        place
    }

    fn handout_place(&self, outbox: &Arc<Outbox>) -> Option<usize> {
        if self.handouts.len() > HANDOUT_SEARCH_MAX {
            return self.handout_places.get(&address(outbox)).copied();
        }
        let mut handouts = self.handouts.iter();
        handouts.rposition(|handout| Arc::ptr_eq(&handout.outbox, outbox))
    }

    /// Pushes and hands out, under the locks of all queues named.
    pub(super) fn carry_out(
        mut self,
        turn: &mut Turn<'_>,
        locked: &mut Locked<'_>,
    ) -> Option<Receipt> {
        let receipt = self.push(turn, locked);
        self.fill_outboxes(turn);
        receipt
    }

    fn push(&mut self, turn: &mut Turn<'_>, locked: &mut Locked<'_>) -> Option<Receipt> {
        let mut requests: SmallVec<[Request<'_>; 2]> = SmallVec::with_capacity(
            self.reservations.len()
                + self.publications.len()
                + self.requeues.len()
                + self.settlements.len(),
        );
        // Reservations first: those asked for ahead of a PUBLISH must precede it (invariant 4).
        requests.extend(
            self.reservations
                .iter()
                .map(|&(queue, ask)| Request::Reserve {
                    queue,
                    upto: ask.upto,
                }),
        );
        requests.extend(
            self.publications
                .iter()
                .map(|publication| Request::Publish {
                    refs: &self.refs[publication.from..publication.to],
                    priority: 0,
                    time_ms: turn.now_ms,
                    payload: publication.message.payload(),
                    payload_crc: publication.message.payload_crc(),
                }),
        );
        requests.extend(self.requeues.iter().map(|&(queue, seq, delivery_count)| {
            Request::Requeue {
                queue,
                seq,
                delivery_count,
            }
        }));
        requests.extend(self.settlements.iter().map(|settlement| Request::Settle {
            queue: settlement.queue,
            cause: settlement.cause,
            ranges: &settlement.ranges,
        }));
        if requests.is_empty() {
            return None;
        }
        let is_waited = self.is_waited || !self.publications.is_empty();
        let urgency = if is_waited {
            Urgency::Waited
        } else {
            Urgency::Lazy
        };
        let mut positions = Vec::with_capacity(self.publications.len());
        let receipt =
            turn.shared
                .journal()
                .push(&requests, self.is_atomic, urgency, &mut positions);
        turn.effects.wakes_commit = true;
        assert_eq!(
            positions.len(),
            self.publications.len(),
            "the log says where every message lies"
        );
        for (publication, &position) in self.publications.iter().zip(&positions) {
            for reference in &self.refs[publication.from..publication.to] {
                let state = locked.state_of(reference.queue);
                state.last_lsn = receipt.end;
                state.slots.set_position(reference.seq, position);
                if state.is_content_unwanted(turn.shared) {
                    state.evict(reference.seq);
                }
            }
        }
        self.note_receipt(receipt, turn, locked);
        Some(receipt)
    }

    fn note_receipt(&self, receipt: Receipt, turn: &mut Turn<'_>, locked: &mut Locked<'_>) {
        for &(queue, ask) in &self.reservations {
            let (handle, state) = locked.entry_of(queue);
            state.last_lsn = receipt.end;
            state.reservation.set_pending(receipt.end);
            if ask.is_waited {
                let again = AfterDurable::Redispatch(QueueHandle::clone(handle));
                turn.effects.after_durable.push((receipt.end, again));
            }
        }
        for settlement in &self.settlements {
            locked.state_of(settlement.queue).last_lsn = receipt.end;
        }
        for &(queue, ..) in &self.requeues {
            locked.state_of(queue).last_lsn = receipt.end;
        }
    }

    /// What one outbox gets is handed over under one lock of it.
    fn fill_outboxes(&mut self, turn: &mut Turn<'_>) {
        for mut handout in std::mem::take(&mut self.handouts) {
            handout.tell();
            let Handout { outbox, items, .. } = handout;
            if outbox.push_all(items, handout.size_bytes) {
                turn.effects.wakes.push(outbox);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::testing;

    fn cancelled() -> OutboxItem {
        OutboxItem::ConsumerCancelled {
            channel: 1,
            consumer: crate::broker::command::ConsumerId(1),
        }
    }

    #[test]
    fn each_outbox_has_one_handout_however_many_there_are() {
        for count in [1, HANDOUT_SEARCH_MAX, HANDOUT_SEARCH_MAX + 1, 100] {
            let outboxes: Vec<_> = (0..count).map(|_| testing::outbox()).collect();
            let mut batch = Batch::default();
            for outbox in outboxes
                .iter()
                .chain(&outboxes)
                .chain(outboxes.iter().rev())
            {
                batch.hand_out(outbox, cancelled());
            }
            let handouts = outboxes.iter().zip(&batch.handouts);
            assert_eq!(batch.handouts.len(), count);
            for (outbox, handout) in handouts {
                assert!(Arc::ptr_eq(outbox, &handout.outbox));
                assert_eq!(handout.items.list().len(), 3);
            }
        }
    }

    #[test]
    fn what_all_outboxes_get_is_not_expected_by_the_first() {
        let mut batch = Batch::default();
        batch.expect(512, 512 * 1000);
        batch.hand_out(&testing::outbox(), cancelled());
        assert!(batch.handouts[0].items.capacity() <= EXPECTED_MAX_COUNT);
    }
}
