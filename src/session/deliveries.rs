//! What the broker has for the client: deliveries get their tags here and are encoded straight into the
//! output.

use std::sync::Arc;

use super::acks::{DeliveryTags, HolderNumber};
use super::channel::{Awaiting, Channel, ChannelState};
use super::event::Event;
use super::fitting::shortened;
use super::output::Output;
use super::{Session, Work};
use crate::amqp::content::{
    self, DeliverHead, DeliverRun, GetOkHead, Lane, RawContent, ReturnHead,
};
use crate::amqp::method::basic;
use crate::amqp::properties::Properties;
use crate::amqp::reply_code::{NO_ROUTE, NO_ROUTE_TEXT};
use crate::amqp::short_string::ShortString;
use crate::broker::command::{Command, ConsumerId, Delivery, Publish, SettleOutcome, Unacked};
use crate::broker::message::Message;
use crate::broker::outbox::{DeliveryRun, OutboxItem, OutboxItems, OutboxPlace};
use crate::cache_line::TOUCHED_TOGETHER;

/// So many deliveries to one consumer are encoded as a run, if there are as many; see [`DeliverRun`].
const RUN_MIN: usize = 4;

impl Session {
    /// Takes what is in the outbox from `done` on, until the output holds `output_max_bytes` or more; `done` is how far it came, and
    /// names the one in hand all the while, or one shortly before it. Says how many deliveries were taken.
    pub fn handle_items(
        &mut self,
        items: &OutboxItems,
        done: &mut OutboxPlace,
        output_max_bytes: usize,
    ) -> u64 {
        let mut delivered_count = 0;
        let mut warmed_upto = 0;
        while self.output.len() < output_max_bytes
            && let Some(item) = items.list().get(done.item)
        {
            match item {
                OutboxItem::Deliver(first) => {
                    if done.message >= warmed_upto {
                        warmed_upto = self.warm(items, done);
                    }
                    let warmed_upto = &mut warmed_upto;
                    delivered_count +=
                        self.deliver_runs(first, items, done, warmed_upto, output_max_bytes);
                    continue;
                }
                OutboxItem::Reply {
                    channel,
                    consumer,
                    message,
                } => {
                    delivered_count += 1;
                    self.deliver_reply(*channel, *consumer, message);
                }
                OutboxItem::ConsumerCancelled { channel, consumer } => {
                    self.consumer_cancelled(*channel, *consumer);
                }
                OutboxItem::GetReady { channel, got } => self.get_ready(*channel, got.as_deref()),
            }
            done.pass();
        }
        delivered_count
    }

    /// Looks at what the next deliveries will touch; the number of the first message behind these. Where a connection consumes from
    /// many queues, the processor fetches it side by side that way; one delivery after the other would wait for each.
    fn warm(&self, items: &OutboxItems, done: &OutboxPlace) -> usize {
        let list = items.list().get(done.item..).unwrap_or_default();
        let upto = done.message + TOUCHED_TOGETHER;
        let mut message = done.message;
        let mut last_consumer = None;
        let mut last_channel = None;
        let mut guess = None;
        let mut seen = 0;
        for item in list {
            let OutboxItem::Deliver(run) = item else {
                break;
            };
            if last_consumer != Some(run.consumer) {
                last_consumer = Some(run.consumer);
                let channel = match last_channel {
                    Some((id, channel)) if id == run.channel => channel,
                    _ => self.channels.get(&run.channel),
                };
                last_channel = Some((run.channel, channel));
                if let Some(channel) = channel {
                    let consumers = &channel.consumers;
                    let taker = consumers.taker_near(run.consumer, &mut guess);
                    seen ^= taker.map_or(0, |taker| channel.tags.warm_holder(taker.holder));
                }
                seen ^= run.queue.id().0;
            }
            message += run.len();
            if message >= upto {
                break;
            }
        }
        std::hint::black_box(seen);
        touch_next(items, done)
    }

    /// True when `delivery` is the last one that its channel keeps a tag for.
    #[must_use]
    pub fn holds_last(&self, delivery: &Delivery) -> bool {
        self.channels
            .get(&delivery.channel)
            .is_some_and(|channel| channel.tags.is_last(&delivery.queue, delivery.seq))
    }

    /// Ends the session's part in it all, in whatever state it is: hands over the deliveries that are not settled and
    /// of which the broker has not been told. There are none after `Ended`.
    pub fn abandon(&mut self) -> Vec<Unacked> {
        let mut held = Vec::new();
        for work in std::mem::take(&mut self.work) {
            if let Work::Event(Event::Command { command, .. }) = work {
                held.extend(command.into_unacked());
            }
        }
        for channel in self.channels.values_mut() {
            held.append(&mut channel.collect_unacked());
            held.append(&mut channel.unsent);
        }
        held
    }

    /// Delivers `first`, which is the item in hand, and the runs behind it that are for the same channel, as
    /// [`handle_items`](Self::handle_items) does, while they were looked at: channel and consumer are looked up once. Messages below
    /// `warmed_upto` were looked at.
    fn deliver_runs(
        &mut self,
        first: &DeliveryRun,
        items: &OutboxItems,
        done: &mut OutboxPlace,
        warmed_upto: &mut usize,
        output_max_bytes: usize,
    ) -> u64 {
        let lane = Lane::new(first.channel, self.frame_max_bytes);
        let channel = self.channels.get_mut(&first.channel);
        let Some(channel) = channel.filter(|channel| channel.is_live() && !channel.is_collected)
        else {
            return self.pass_unsent(first, done);
        };
        let mut deliveries = Deliveries {
            items,
            done,
            warmed_upto,
            output_max_bytes,
        };
        let mut run = first;
        let mut delivered_count = 0;
        loop {
            let Some(taker) = channel.consumers.taker_mut(run.consumer) else {
                return delivered_count + self.pass_unsent(run, deliveries.done);
            };
            let (tag, holder) = (&taker.tag[..], &mut taker.holder);
            let wire = &mut Wire {
                output: &mut self.output,
                lane,
                frame_max_bytes: self.frame_max_bytes,
                consumer_tag: tag,
            };
            let tags = &mut channel.tags;
            delivered_count += match deliveries.is_worth_a_head(run) {
                true => {
                    let mut alike = DeliverRun::new(lane, tag);
                    deliveries.put(run, wire, tags, holder, |wire, tag, again, message| {
                        wire.put_in(&mut alike, tag, again, message);
                    })
                }
                false => deliveries.put(run, wire, tags, holder, Wire::put),
            };
            let is_looked_at = deliveries.done.message < *deliveries.warmed_upto;
            match deliveries.run_in_hand() {
                Some(next)
                    if next.channel == first.channel
                        && is_looked_at
                        && self.output.len() < output_max_bytes =>
                {
                    run = next;
                }
                _ => return delivered_count,
            }
        }
    }

    /// The client is not told of the rest of `run`, which is in hand; how many that are.
    fn pass_unsent(&mut self, run: &DeliveryRun, done: &mut OutboxPlace) -> u64 {
        self.keep_unsent(run.channel, run.unacked_from(done.delivery));
        let count = run.len() - done.delivery;
        done.pass_deliveries(run, count);
        count as u64
    }

    /// An answer by direct reply-to: when its requester is gone, so is the answer.
    fn deliver_reply(&mut self, id: u16, consumer: ConsumerId, message: &Message) {
        let lane = Lane::new(id, self.frame_max_bytes);
        let Some(channel) = self.channels.get_mut(&id) else {
            return;
        };
        if !channel.is_live() || channel.is_collected {
            return;
        }
        let Some(taker) = channel.consumers.taker(consumer) else {
            return;
        };
        let mut wire = Wire {
            output: &mut self.output,
            lane,
            frame_max_bytes: self.frame_max_bytes,
            consumer_tag: &taker.tag,
        };
        wire.put(channel.tags.next_settled(), false, message);
    }

    /// The client is not told of these deliveries, if they are to be settled. They go back with the channel's end if that is still
    /// to come: at once they would be handed to the same consumer again.
    pub(super) fn keep_unsent(&mut self, id: u16, unsent: Option<Unacked>) {
        let Some(unsent) = unsent else {
            return;
        };
        match self.channels.get_mut(&id) {
            Some(channel) if !channel.is_live() && !channel.is_collected => {
                channel.unsent.push(unsent);
            }
            _ => self.give_back(id, unsent),
        }
    }

    /// The channel or consumer they were meant for is gone.
    fn give_back(&mut self, id: u16, unsent: Unacked) {
        let id = match self.channels.get(&id) {
            Some(channel) if !channel.is_collected => id,
            // Nothing is known of the answers of channel 0.
            _ => 0,
        };
        // Those of one look into the outbox go back together, in their order.
        if let Some(Work::Event(Event::Command {
            channel,
            command:
                Command::Settle {
                    items,
                    outcome: SettleOutcome::Return,
                },
        })) = self.work.front_mut()
            && *channel == id
        {
            items.push(unsent);
            return;
        }
        if let Some(channel) = self.channels.get_mut(&id) {
            // A channel that lives counts the answer.
            channel.unneeded_answer_count += 1;
        }
        self.return_next(id, vec![unsent]);
    }

    /// Gives deliveries back as not tried: at the front, so that it comes before an `Ended` after which there is nobody to
    /// give them to.
    pub(super) fn return_next(&mut self, id: u16, items: Vec<Unacked>) {
        if items.is_empty() {
            return;
        }
        let outcome = SettleOutcome::Return;
        let command = Command::Settle { items, outcome };
        self.work.push_front(Work::Event(Event::Command {
            channel: id,
            command,
        }));
    }

    fn consumer_cancelled(&mut self, id: u16, consumer: ConsumerId) {
        let Some(channel) = self.channels.get_mut(&id) else {
            return;
        };
        let is_live = channel.is_live();
        if let Some(consumer_tag) = channel.consumers.remove(consumer)
            && is_live
            && self.client.hears_consumer_cancel
        {
            self.send(
                id,
                basic::Cancel {
                    consumer_tag,
                    nowait: true,
                },
            );
        }
    }

    fn get_ready(&mut self, id: u16, got: Option<&(Delivery, u32)>) {
        let awaits_get = |channel: &Channel| {
            let state = &channel.state;
            matches!(
                state,
                ChannelState::Waiting {
                    awaiting: Awaiting::GetReady,
                    ..
                }
            )
        };
        let channel = self.channels.get_mut(&id);
        match (channel, got) {
            (Some(channel), got) if awaits_get(channel) => {
                channel.state = ChannelState::Open;
                match got {
                    Some((delivery, remaining)) => self.send_get_ok(id, delivery, *remaining),
                    None => self.send(id, basic::GetEmpty::default()),
                }
                self.replay_held(id);
            }
            (_, Some((delivery, _))) => self.keep_unsent(id, delivery.unsettled()),
            (_, None) => {}
        }
    }

    pub(super) fn send_get_ok(&mut self, id: u16, delivery: &Delivery, remaining: u32) {
        let Some(channel) = self.channels.get_mut(&id) else {
            return;
        };
        let message = &delivery.message;
        let head = GetOkHead {
            delivery_tag: next_tag(&mut channel.tags, delivery),
            is_redelivered: delivery.is_redelivered,
            names: message.raw_names(),
            message_count: remaining,
        };
        let lane = Lane::new(id, self.frame_max_bytes);
        let shorter = shortened(message, self.frame_max_bytes);
        let content = content_of(message, shorter.as_ref());
        content::encode_get_ok(&mut self.output, lane, &head, &content);
    }

    /// Hands a mandatory message back, as it was published but for `BCC`.
    pub(super) fn send_return(&mut self, publish: &Publish) {
        let message = &publish.message;
        let no_bcc = message
            .checked_properties()
            .has_bcc()
            .then(|| message.properties().without_bcc());
        let head = ReturnHead {
            reply_code: NO_ROUTE,
            reply_text: &ShortString::from_static(NO_ROUTE_TEXT),
            names: message.raw_names(),
        };
        let content = content_of(message, no_bcc.as_ref());
        let lane = Lane::new(publish.channel, self.frame_max_bytes);
        content::encode_return(&mut self.output, lane, &head, &content);
    }
}

/// The run in `item`, if it goes to this consumer.
#[inline]
fn run_to(consumer: ConsumerId, item: &OutboxItem) -> Option<&DeliveryRun> {
    match item {
        OutboxItem::Deliver(run) if run.consumer == consumer => Some(run),
        _ => None,
    }
}

/// Looks at the next messages from `done` on; the number of the first one behind these.
fn touch_next(items: &OutboxItems, done: &OutboxPlace) -> usize {
    let mut last = std::ptr::null();
    let mut seen = 0;
    for message in items.messages_from(done).iter().take(TOUCHED_TOGETHER) {
        // A fan-out brings the same one for each of several queues.
        if !std::ptr::eq(Arc::as_ptr(message), last) {
            last = Arc::as_ptr(message);
            seen ^= message.touch();
        }
    }
    std::hint::black_box(seen);
    done.message + TOUCHED_TOGETHER
}

/// Deliveries on their way from the outbox to the output.
struct Deliveries<'a> {
    items: &'a OutboxItems,
    done: &'a mut OutboxPlace,
    /// Messages below this one were looked at.
    warmed_upto: &'a mut usize,
    output_max_bytes: usize,
}

impl<'a> Deliveries<'a> {
    /// The run in hand, if it is one.
    #[inline]
    fn run_in_hand(&self) -> Option<&'a DeliveryRun> {
        match self.items.list().get(self.done.item) {
            Some(OutboxItem::Deliver(run)) => Some(run),
            _ => None,
        }
    }

    /// True when so many deliveries to the consumer of `run`, which is in hand, follow each other that they are encoded as a
    /// [`DeliverRun`].
    #[inline]
    fn is_worth_a_head(&self, run: &DeliveryRun) -> bool {
        let last = || self.items.list().get(self.done.item + (RUN_MIN - 1));
        run.len() - self.done.delivery >= RUN_MIN
            || last().is_some_and(|last| run_to(run.consumer, last).is_some())
    }

    /// Gives tags to `first`, which is in hand, and to the runs behind it that are for the same consumer, and puts them into the
    /// output; how many deliveries that were.
    #[inline]
    fn put<'w>(
        &mut self,
        first: &'a DeliveryRun,
        wire: &mut Wire<'w>,
        tags: &mut DeliveryTags,
        holder: &mut HolderNumber,
        mut put: impl FnMut(&mut Wire<'w>, u64, bool, &Message),
    ) -> u64 {
        let mut run = first;
        let mut delivered_count = 0;
        loop {
            let left_count = run.len() - self.done.delivery;
            let messages = self.items.messages_from(self.done).iter().take(left_count);
            let mut count = 0;
            for (tag, message) in (tags.last_tag() + 1..).zip(messages) {
                if self.done.message + count >= *self.warmed_upto {
                    let mut next = *self.done;
                    next.message += count;
                    *self.warmed_upto = touch_next(self.items, &next);
                }
                put(wire, tag, run.is_redelivered, message);
                count += 1;
                if wire.output.len() >= self.output_max_bytes {
                    break;
                }
            }
            // Only what is in the output has a tag, and it leaves the list with that.
            if run.is_settled {
                tags.pass_settled(count);
            } else {
                let seq = run.seq(self.done.delivery);
                tags.next_run(holder, &run.queue, Some(run.consumer), seq, count);
            }
            delivered_count += count as u64;
            let is_over = self.done.pass_deliveries(run, count);
            if !is_over || wire.output.len() >= self.output_max_bytes {
                return delivered_count;
            }
            let next = self.items.list().get(self.done.item);
            let Some(next) = next.and_then(|next| run_to(first.consumer, next)) else {
                return delivered_count;
            };
            run = next;
        }
    }
}

/// Encodes deliveries to one consumer.
struct Wire<'a> {
    output: &'a mut Output,
    lane: Lane,
    frame_max_bytes: u32,
    consumer_tag: &'a [u8],
}

impl Wire<'_> {
    #[inline]
    fn put(&mut self, delivery_tag: u64, is_redelivered: bool, message: &Message) {
        let shorter = shortened(message, self.frame_max_bytes);
        let content = content_of(message, shorter.as_ref());
        let head = DeliverHead {
            consumer_tag: self.consumer_tag,
            delivery_tag,
            is_redelivered,
            names: message.raw_names(),
        };
        content::encode_deliver(self.output, self.lane, &head, &content);
    }

    /// The same, as one of several that look alike.
    #[inline]
    fn put_in(
        &mut self,
        alike: &mut DeliverRun<'_>,
        delivery_tag: u64,
        is_redelivered: bool,
        message: &Message,
    ) {
        let names = message.raw_names();
        let shorter = shortened(message, self.frame_max_bytes);
        let content = content_of(message, shorter.as_ref());
        alike.put(self.output, delivery_tag, is_redelivered, names, &content);
    }
}

/// The content as it is shown, with these properties if others than its own.
#[inline]
fn content_of<'a>(message: &'a Message, shown: Option<&'a Properties>) -> RawContent<'a> {
    let body = message.stored_body();
    RawContent {
        properties: shown.map_or(message.raw_properties(), |shown| shown.raw()),
        front: body.front,
        body: body.parts,
        skip_bytes: body.skip_bytes,
    }
}

/// The delivery's tag; it is outstanding from here on unless it was taken without acknowledgement.
fn next_tag(tags: &mut DeliveryTags, delivery: &Delivery) -> u64 {
    match delivery.is_settled {
        true => tags.next_settled(),
        false => tags.next(&delivery.queue, delivery.seq, delivery.consumer),
    }
}
