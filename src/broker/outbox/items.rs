//! What lies in an outbox, in order.
//!
//! ```text
//!   list       [run of 3, queue a] [reply] [run of 1, queue b] [run of 2, queue a]
//!   messages   [m1][m2][m3]                [m4]                [m5][m6]
//!                   ^ an `OutboxPlace`: one delivery of item 0 is done
//! ```
//! Deliveries of one queue to one consumer mostly follow each other: what they have in common is said once. Their messages stand in a
//! list of their own, so that a run of one needs no memory besides its item and its message.

use std::sync::Arc;

use smallvec::SmallVec;

use super::delivery_bytes;
use crate::broker::command::{ConsumerId, Delivery, Unacked};
use crate::broker::consumer::ConsumerSpec;
use crate::broker::message::Message;
use crate::broker::queue::QueueHandle;
use crate::storage::types::{Seq, SeqRange};

/// One thing for a connection to do.
#[derive(Debug)]
pub enum OutboxItem {
    /// Send `basic.deliver`, for each of them.
    Deliver(DeliveryRun),
    /// Send `basic.deliver` of an answer by direct reply-to, which no queue has held.
    Reply {
        /// Channel of the requester.
        channel: u16,
        /// Its pseudo consumer.
        consumer: ConsumerId,
        /// The answer.
        message: Arc<Message>,
    },
    /// The broker cancelled a consumer (its queue was deleted): tell the client if it can hear it.
    ConsumerCancelled {
        /// Channel of the consumer.
        channel: u16,
        /// The consumer.
        consumer: ConsumerId,
    },
    /// Late answer to a `basic.get` that had to read from disk.
    GetReady {
        /// Channel that waits.
        channel: u16,
        /// The message and the ready messages left; `None` when the queue has become empty. Behind a pointer, so that the
        /// usual item is no longer for it.
        got: Option<Box<(Delivery, u32)>>,
    },
}

/// Round a thousand queues every delivery is one of these.
const _: () = assert!(size_of::<OutboxItem>() <= 40);

/// Deliveries of one queue to one consumer, with seqs that follow each other. Their messages stand in the list beside it.
#[derive(Debug)]
pub struct DeliveryRun {
    /// Queue they came from.
    pub queue: QueueHandle,
    /// Place of the first of them there.
    first: Seq,
    /// Consumer they go to.
    pub consumer: ConsumerId,
    count: u32,
    /// Channel they go to.
    pub channel: u16,
    /// They may have been delivered before.
    pub is_redelivered: bool,
    /// Already settled: the consumer takes without acknowledgement.
    pub is_settled: bool,
}

impl DeliveryRun {
    /// So many deliveries, from `first` on.
    pub(in crate::broker) fn new(
        spec: &ConsumerSpec,
        queue: &QueueHandle,
        first: Seq,
        count: u32,
        is_redelivered: bool,
    ) -> Self {
        Self {
            queue: Arc::clone(queue),
            first,
            consumer: spec.id,
            count,
            channel: spec.channel,
            is_redelivered,
            is_settled: spec.is_no_ack,
        }
    }

    /// Adds so many deliveries, from `first` on, if they go on where this ends; false when they do not.
    #[inline]
    pub(in crate::broker) fn join(
        &mut self,
        spec: &ConsumerSpec,
        queue: &QueueHandle,
        first: Seq,
        count: u32,
        is_redelivered: bool,
    ) -> bool {
        // A consumer never changes its channel, nor how it takes.
        let goes_on = self.consumer == spec.id
            && self.seq(self.len()) == first
            && self.is_redelivered == is_redelivered
            && Arc::ptr_eq(&self.queue, queue);
        if goes_on {
            self.count += count;
        }
        goes_on
    }

    /// How many they are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Never: a run has one delivery at least.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Place of the delivery `at` in the queue.
    #[must_use]
    pub fn seq(&self, at: usize) -> Seq {
        Seq(self.first.0 + at as u64)
    }

    /// Those from `at` on, of which there is one at least, if they are to be settled.
    #[must_use]
    pub fn unacked_from(&self, at: usize) -> Option<Unacked> {
        let seqs = SeqRange {
            first: self.seq(at),
            last: self.seq(self.len() - 1),
        };
        (!self.is_settled).then(|| Unacked {
            queue: Arc::clone(&self.queue),
            seqs,
            consumer: Some(self.consumer),
        })
    }

    /// The delivery `at`.
    fn delivery(&self, at: usize, message: Arc<Message>) -> Delivery {
        Delivery {
            channel: self.channel,
            consumer: Some(self.consumer),
            queue: Arc::clone(&self.queue),
            seq: self.seq(at),
            is_redelivered: self.is_redelivered,
            is_settled: self.is_settled,
            message,
        }
    }
}

/// How far a list was worked through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutboxPlace {
    /// Items that are done.
    pub item: usize,
    /// Deliveries that are done of the run behind these.
    pub delivery: usize,
    /// Messages of all that are done.
    pub message: usize,
}

impl OutboxPlace {
    /// The item in hand, which is no run, is done.
    pub fn pass(&mut self) {
        self.item += 1;
    }

    /// So many deliveries more of `run`, which is in hand, are done; true when these were its last.
    #[inline]
    pub fn pass_deliveries(&mut self, run: &DeliveryRun, count: usize) -> bool {
        self.message += count;
        self.delivery += count;
        let is_over = self.delivery >= run.len();
        if is_over {
            self.delivery = 0;
            self.item += 1;
        }
        is_over
    }
}

/// Where two are added, more will follow: room for so many more is made at once.
const ADDED_MIN: usize = 7;

/// Messages of deliveries that are on their way to an outbox.
pub(in crate::broker) type AddedMessages = SmallVec<[Arc<Message>; 1]>;

/// Items for one outbox, on their way there. A single one needs no memory of its own.
#[derive(Debug, Default)]
pub(in crate::broker) struct AddedItems {
    list: SmallVec<[OutboxItem; 1]>,
    messages: AddedMessages,
}

impl AddedItems {
    /// None yet, with room for about so many deliveries in so many runs.
    pub(in crate::broker) fn expecting(deliveries_count: usize, runs_count: usize) -> Self {
        Self {
            list: SmallVec::with_capacity(runs_count),
            messages: SmallVec::with_capacity(deliveries_count),
        }
    }

    /// Adds what is no delivery.
    pub(in crate::broker) fn push(&mut self, item: OutboxItem) {
        debug_assert!(
            !matches!(item, OutboxItem::Deliver(_)),
            "a run has its messages here"
        );
        self.list.push(item);
    }

    /// Adds deliveries of messages that follow each other from `first` on: those that `fill` adds to the list; their bytes.
    pub(in crate::broker) fn deliver_run(
        &mut self,
        spec: &ConsumerSpec,
        queue: &QueueHandle,
        first: Seq,
        is_redelivered: bool,
        fill: impl FnOnce(&mut AddedMessages),
    ) -> usize {
        let before = self.messages.len();
        fill(&mut self.messages);
        let added = self.messages.get(before..).unwrap_or_default();
        let size_bytes = added.iter().map(|message| delivery_bytes(message)).sum();
        let count = u32::try_from(added.len()).expect("an outbox is full before");
        if count > 0 {
            self.add_run(spec, queue, first, count, is_redelivered);
        }
        size_bytes
    }

    /// Adds a delivery.
    #[inline]
    pub(in crate::broker) fn deliver(
        &mut self,
        spec: &ConsumerSpec,
        queue: &QueueHandle,
        seq: Seq,
        is_redelivered: bool,
        message: Arc<Message>,
    ) {
        if self.messages.len() == 1 {
            self.messages.reserve(ADDED_MIN);
        }
        self.messages.push(message);
        self.add_run(spec, queue, seq, 1, is_redelivered);
    }

    #[inline]
    fn add_run(
        &mut self,
        spec: &ConsumerSpec,
        queue: &QueueHandle,
        first: Seq,
        count: u32,
        is_redelivered: bool,
    ) {
        if let Some(OutboxItem::Deliver(run)) = self.list.last_mut()
            && run.join(spec, queue, first, count, is_redelivered)
        {
            return;
        }
        let run = DeliveryRun::new(spec, queue, first, count, is_redelivered);
        if self.list.len() == 1 {
            self.list.reserve(ADDED_MIN);
        }
        self.list.push(OutboxItem::Deliver(run));
    }

    #[cfg(test)]
    pub(in crate::broker) fn list(&self) -> &[OutboxItem] {
        &self.list
    }

    #[cfg(test)]
    pub(in crate::broker) fn capacity(&self) -> usize {
        self.list.capacity().max(self.messages.capacity())
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct OutboxItems {
    list: Vec<OutboxItem>,
    /// Those of the runs in `list`.
    messages: Vec<Arc<Message>>,
}

impl OutboxItems {
    /// True when nothing is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The items, runs as one each.
    #[must_use]
    pub fn list(&self) -> &[OutboxItem] {
        &self.list
    }

    /// Deliveries in it, from queues.
    #[must_use]
    pub fn deliveries_count(&self) -> usize {
        self.messages.len()
    }

    /// The messages of all deliveries behind `place`.
    #[inline]
    #[must_use]
    pub fn messages_from(&self, place: &OutboxPlace) -> &[Arc<Message>] {
        self.messages.get(place.message..).unwrap_or_default()
    }

    /// True when it is empty and has room for something.
    #[must_use]
    pub fn is_spare(&self) -> bool {
        self.is_empty() && self.list.capacity() + self.messages.capacity() > 0
    }

    pub(super) fn push(&mut self, item: OutboxItem) {
        self.list.push(item);
    }

    /// Adds items at the end.
    pub(super) fn append(&mut self, added: AddedItems) {
        match added.list.spilled() {
            true => append(&mut self.list, added.list.into_vec()),
            false => self.list.extend(added.list),
        }
        match added.messages.spilled() {
            true => append(&mut self.messages, added.messages.into_vec()),
            false => self.messages.extend(added.messages),
        }
    }

    /// Drops all of it, and keeps the room.
    pub fn clear(&mut self) {
        self.list.clear();
        self.messages.clear();
    }

    /// Drops what was done, up to `place`, which is the start from then on.
    pub fn drop_done(&mut self, place: &mut OutboxPlace) {
        let done = std::mem::take(place);
        if done.item >= self.list.len() {
            return self.clear();
        }
        self.list.drain(..done.item);
        self.messages.drain(..done.message.min(self.messages.len()));
        if let Some(OutboxItem::Deliver(run)) = self.list.first_mut() {
            let count = u32::try_from(done.delivery).unwrap_or(0).min(run.count);
            run.first = run.seq(done.delivery);
            run.count -= count;
        }
    }

    /// Takes the first item away, of a run the first delivery: the message in it.
    pub fn take_first(&mut self) -> Option<Delivery> {
        let OutboxItem::Deliver(run) = self.list.first()? else {
            return match self.list.remove(0) {
                OutboxItem::GetReady { got, .. } => got.map(|got| got.0),
                _ => None,
            };
        };
        let delivery = run.delivery(0, Arc::clone(self.messages.first()?));
        let mut place = OutboxPlace::default();
        place.pass_deliveries(run, 1);
        self.drop_done(&mut place);
        Some(delivery)
    }

    /// The messages in it, each by itself.
    pub fn into_deliveries(self) -> impl Iterator<Item = Delivery> {
        let mut messages = self.messages.into_iter();
        self.list.into_iter().flat_map(move |item| match item {
            OutboxItem::Deliver(run) => {
                let own = messages.by_ref().take(run.len()).enumerate();
                own.map(|(at, message)| run.delivery(at, message)).collect()
            }
            OutboxItem::GetReady { got, .. } => got.map(|got| got.0).into_iter().collect(),
            OutboxItem::Reply { .. } | OutboxItem::ConsumerCancelled { .. } => Vec::new(),
        })
    }
}

/// A list of items that has room for more than so many times as many is not kept.
const LIST_SLACK_FACTOR: usize = 4;

/// Adds what stands in a list to another; the longer one of the two is kept.
fn append<T>(list: &mut Vec<T>, mut added: Vec<T>) {
    // A list with room for far more than it has would keep that room.
    let is_snug = added.capacity() <= LIST_SLACK_FACTOR * added.len();
    if list.is_empty() && is_snug && list.capacity() < added.len() {
        *list = added;
    } else {
        list.append(&mut added);
    }
}

#[cfg(test)]
impl OutboxItems {
    /// Deliveries to consumers.
    pub(crate) fn of_deliveries(deliveries: impl IntoIterator<Item = Delivery>) -> Self {
        let mut items = Self::default();
        for delivery in deliveries {
            let spec = spec_of(&delivery);
            let mut added = AddedItems::default();
            added.deliver(
                &spec,
                &delivery.queue,
                delivery.seq,
                delivery.is_redelivered,
                delivery.message,
            );
            let joins = match (items.list.last_mut(), added.list.first()) {
                (Some(OutboxItem::Deliver(run)), Some(OutboxItem::Deliver(next))) => run.join(
                    &spec,
                    &next.queue,
                    next.first,
                    next.count,
                    next.is_redelivered,
                ),
                _ => false,
            };
            if joins {
                added.list.clear();
            }
            items.append(added);
        }
        items
    }

    /// What is no delivery.
    pub(crate) fn of_item(item: OutboxItem) -> Self {
        let mut items = Self::default();
        items.push(item);
        items
    }

    /// Room for so many items or messages.
    pub(crate) fn capacity(&self) -> usize {
        self.list.capacity().max(self.messages.capacity())
    }
}

#[cfg(test)]
fn spec_of(delivery: &Delivery) -> ConsumerSpec {
    ConsumerSpec {
        id: delivery.consumer.expect("it goes to a consumer"),
        channel: delivery.channel,
        outbox: crate::broker::testing::outbox(),
        is_no_ack: delivery.is_settled,
        is_exclusive: false,
        prefetch: 0,
        priority: 0,
        channel_credit: Arc::default(),
    }
}

#[cfg(test)]
mod tests;
