//! What the recording client does while the broker waits for its death: each worker a thread with a connection of its own.
//!
//! A worker runs until its connection ends, or until it is told to rest: then it finishes what is under way, reports, and waits for
//! the broker to close the connection.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use stratamq::amqp::method::Method;

use super::content::{LARGEST_BODY_BYTES, fingerprint, message, observed, priority};
use super::history::{ChannelKey, Event, MessageId, TxId};
use super::moving::Moving;
use super::random::Random;
use super::recorder::Recorder;
use super::topology::{
    ExtraQueues, PURGED_QUEUE, PURGED_ROUTE, Route, SHARED_QUEUES, SHARED_ROUTES, TX_QUEUES,
    TX_ROUTES,
};
use crate::support::raw::{Client, Delivered, Incoming, Login, Outcome, Trouble};

/// The channel every worker uses.
const CHANNEL: u16 = 1;
/// Confirms a publisher waits for at most.
const WINDOW_MAX: u64 = 64;
/// Bodies of a transaction, all together: with what else is in the log of them less than the least limit of a campaign, which
/// is that of segments of 1 MiB (256 KiB).
const TX_BODIES_MAX_BYTES: usize = 240_000;
/// A consumer without deliveries looks this often whether it should rest.
const IDLE_LOOK: Duration = Duration::from_millis(5);

/// What all workers share.
pub(super) struct Shared {
    pub(super) recorder: Recorder,
    pub(super) extras: ExtraQueues,
    pub(super) moving: Moving,
    pub(super) address: SocketAddr,
    /// Finish and rest.
    pub(super) should_rest: AtomicBool,
    /// The broker is about to end: connections may break.
    pub(super) is_ending: AtomicBool,
    /// Workers that rest.
    pub(super) resting_count: AtomicUsize,
    /// Workers that ended before they should.
    pub(super) early_count: AtomicUsize,
}

/// What a worker does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    /// Publishes with confirms.
    Publish,
    /// Consumes, acknowledges, rejects, gives back.
    Consume,
    /// Publishes, gets and acknowledges in transactions.
    Transact,
    /// Publishes, gets and purges on one channel; declares and deletes queues.
    Purge,
    /// Publishes messages that expire, are pushed out, fail, are rejected, or come later.
    Send,
    /// Lets those fail, rejects and acknowledges them.
    Try,
}

/// The workers of a round.
pub(super) const WORKERS: [Work; 8] = [
    Work::Publish,
    Work::Publish,
    Work::Consume,
    Work::Consume,
    Work::Transact,
    Work::Purge,
    Work::Send,
    Work::Try,
];

/// Runs one worker to its end; what went wrong, if it was not the broker's end.
pub(super) fn run(shared: &Shared, random: Random, work: Work) -> Result<(), String> {
    let outcome = Worker::connect(shared, random).and_then(|mut worker| {
        match work {
            Work::Publish => worker.publish_with_confirms(),
            Work::Consume => worker.consume(),
            Work::Transact => worker.transact(),
            Work::Purge => worker.purge(),
            Work::Send => worker.send(),
            Work::Try => worker.try_some(),
        }?;
        worker.rest()
    });
    let Err(trouble) = outcome else { return Ok(()) };
    let is_forced = matches!(&trouble, Trouble::ConnectionClosed(close) if close.reply_code == 320);
    let is_end = matches!(trouble, Trouble::Gone(_)) || is_forced;
    if shared.is_ending.load(Ordering::SeqCst) && is_end {
        return Ok(());
    }
    shared.early_count.fetch_add(1, Ordering::SeqCst);
    shared.recorder.nudge();
    Err(format!("{work:?}: {trouble}"))
}

/// A message in a worker's hands.
#[derive(Clone)]
struct Held {
    tag: u64,
    queue: String,
    id: Option<MessageId>,
}

/// One thread of the client.
pub(super) struct Worker<'a> {
    shared: &'a Shared,
    client: Client,
    random: Random,
    /// The channel's name in the history.
    key: ChannelKey,
    /// Publishes that are not confirmed, by their number on the channel.
    unconfirmed: BTreeMap<u64, MessageId>,
    published_count: u64,
    held: Vec<Held>,
}

impl<'a> Worker<'a> {
    fn connect(shared: &'a Shared, random: Random) -> Outcome<Self> {
        let mut client = Client::try_login(shared.address, &Login::default())?;
        client.try_open_channel(CHANNEL)?;
        Ok(Self {
            shared,
            client,
            random,
            key: shared.recorder.new_channel(),
            unconfirmed: BTreeMap::new(),
            published_count: 0,
            held: Vec::new(),
        })
    }

    fn record(&self, event: Event) {
        self.shared.recorder.record(event);
    }

    fn should_rest(&self) -> bool {
        self.shared.should_rest.load(Ordering::SeqCst)
    }

    /// Says that nothing is under way any more, and waits for the broker to end.
    fn rest(&mut self) -> Outcome<()> {
        self.shared.resting_count.fetch_add(1, Ordering::SeqCst);
        self.shared.recorder.nudge();
        loop {
            // Silence is fine: the other workers may take long to finish.
            match self.client.try_next(CHANNEL) {
                Ok(incoming) => return Err(Trouble::Unexpected(format!("at rest: {incoming:?}"))),
                Err(Trouble::Silent) => {}
                Err(trouble) => return Err(trouble),
            }
        }
    }

    /// Records a publish and puts it into the output.
    /// Sends a message without waiting for anything; the length of its body.
    fn push_publish(&mut self, route: &Route, tx: Option<TxId>) -> usize {
        let id = self.shared.recorder.new_message();
        let is_persistent = self.random.percent(85);
        let message = message(id, is_persistent);
        self.record(Event::Publish {
            id,
            publisher: self.key,
            tx,
            is_persistent,
            priority: priority(&message),
            targets: route
                .targets
                .iter()
                .map(|queue| (*queue).to_owned())
                .collect(),
            fingerprint: fingerprint(&message, route.exchange, route.routing_key),
        });
        self.client
            .push_publish(CHANNEL, route.exchange, route.routing_key, &message);
        self.published_count += 1;
        if tx.is_none() {
            self.unconfirmed.insert(self.published_count, id);
        }
        message.body.len()
    }

    /// Waits for one confirm, which may be for several publishes.
    fn take_confirm(&mut self) -> Outcome<()> {
        let ack = self.client.try_wait_confirm(CHANNEL)?;
        let later = self.unconfirmed.split_off(&(ack.delivery_tag + 1));
        let upto = std::mem::replace(&mut self.unconfirmed, later);
        for (tag, id) in upto {
            if ack.multiple || tag == ack.delivery_tag {
                self.record(Event::Confirmed { id });
            } else {
                self.unconfirmed.insert(tag, id);
            }
        }
        Ok(())
    }

    fn take_all_confirms(&mut self) -> Outcome<()> {
        while !self.unconfirmed.is_empty() {
            self.take_confirm()?;
        }
        Ok(())
    }

    fn publish_with_confirms(&mut self) -> Outcome<()> {
        self.client.try_confirm_select(CHANNEL)?;
        let window = 1 + self.random.below(WINDOW_MAX);
        while !self.should_rest() {
            for _ in 0..=self.random.below(8) {
                let route = &SHARED_ROUTES[self.random.index(SHARED_ROUTES.len())];
                self.push_publish(route, None);
            }
            self.client.flush()?;
            while u64::try_from(self.unconfirmed.len()).unwrap_or(u64::MAX) > window {
                self.take_confirm()?;
            }
        }
        self.take_all_confirms()
    }

    /// Records a delivery and keeps it.
    fn hold(&mut self, queue: &str, delivered: &Delivered) {
        let observed = observed(delivered);
        let held = Held {
            tag: delivered.tag,
            queue: queue.to_owned(),
            id: observed.id,
        };
        self.record(Event::Delivered {
            queue: queue.to_owned(),
            observed,
        });
        self.held.push(held);
    }

    fn record_ack(&self, held: &Held, tx: Option<TxId>) {
        if let Some(id) = held.id {
            self.record(Event::Ack {
                queue: held.queue.clone(),
                id,
                channel: self.key,
                tx,
            });
        }
    }

    fn record_requeue(&self, held: &Held) {
        if let Some(id) = held.id {
            self.record(Event::Requeue {
                queue: held.queue.clone(),
                id,
            });
        }
    }

    /// A round trip: what was acknowledged before has been read by the broker.
    fn sync(&mut self, prefetch: u16) -> Outcome<()> {
        self.client.try_qos(CHANNEL, prefetch)?;
        self.record(Event::Synced { channel: self.key });
        Ok(())
    }

    fn consume(&mut self) -> Outcome<()> {
        let prefetch = 2 + u16::try_from(self.random.below(60)).unwrap_or(0);
        self.client.try_qos(CHANNEL, prefetch)?;
        for queue in SHARED_QUEUES {
            self.client.try_consume(CHANNEL, queue, queue)?;
        }
        while !self.should_rest() {
            match self.client.try_next_within(CHANNEL, IDLE_LOOK) {
                Ok(incoming) => self.consumed(incoming)?,
                // Nothing ready, or the prefetch is used up.
                Err(Trouble::Silent) => self.give_back_some()?,
                Err(trouble) => return Err(trouble),
            }
            if self.random.percent(5) {
                self.sync(prefetch)?;
            }
        }
        for queue in SHARED_QUEUES {
            self.client.try_cancel(CHANNEL, queue)?;
        }
        // What was under way when the consumers ended is in the inbox now.
        loop {
            match self.client.try_next_within(CHANNEL, Duration::ZERO) {
                Ok(incoming) => self.consumed(incoming)?,
                Err(Trouble::Silent) => return self.sync(prefetch),
                Err(trouble) => return Err(trouble),
            }
        }
    }

    /// Does something with a delivery.
    fn consumed(&mut self, incoming: Incoming) -> Outcome<()> {
        let (Method::BasicDeliver(deliver), Some(message)) = (&incoming.method, incoming.message)
        else {
            return Err(Trouble::Unexpected(format!(
                "to a consumer: {:?}",
                incoming.method
            )));
        };
        let delivered = Delivered::of_deliver(deliver, message);
        self.hold(&delivered.consumer_tag, &delivered);
        match self.random.below(100) {
            0..50 => self.settle_last(),
            50..60 => self.ack_everything(),
            60..75 => self.requeue_last(),
            // Kept until the consumer has nothing better to do.
            _ => Ok(()),
        }
    }

    /// Acknowledges the newest message in hand, or rejects it for good, which is the same without a dead-letter exchange.
    fn settle_last(&mut self) -> Outcome<()> {
        let Some(held) = self.held.pop() else {
            return Ok(());
        };
        self.record_ack(&held, None);
        if self.random.percent(10) {
            self.client.try_nack(CHANNEL, held.tag, false)
        } else {
            self.client.try_ack(CHANNEL, held.tag, false)
        }
    }

    fn requeue_last(&mut self) -> Outcome<()> {
        let Some(held) = self.held.pop() else {
            return Ok(());
        };
        self.record_requeue(&held);
        self.client.try_nack(CHANNEL, held.tag, true)
    }

    fn ack_everything(&mut self) -> Outcome<()> {
        let held = std::mem::take(&mut self.held);
        for message in &held {
            self.record_ack(message, None);
        }
        match held.iter().map(|message| message.tag).max() {
            Some(tag) => self.client.try_ack(CHANNEL, tag, true),
            None => Ok(()),
        }
    }

    fn give_back_some(&mut self) -> Outcome<()> {
        if self.random.percent(50) {
            return self.requeue_last();
        }
        self.ack_everything()
    }

    fn transact(&mut self) -> Outcome<()> {
        self.client.try_tx_select(CHANNEL)?;
        while !self.should_rest() {
            let tx = self.shared.recorder.new_tx();
            let mut bodies_bytes = 0;
            for _ in 0..self.random.below(4) {
                let route = &TX_ROUTES[self.random.index(TX_ROUTES.len())];
                if bodies_bytes + LARGEST_BODY_BYTES <= TX_BODIES_MAX_BYTES {
                    bodies_bytes += self.push_publish(route, Some(tx));
                }
            }
            self.client.flush()?;
            for _ in 0..self.random.below(4) {
                let queue = *self.random.pick(&TX_QUEUES);
                if let Some(delivered) = self.client.try_get(CHANNEL, queue)? {
                    self.hold(queue, &delivered);
                }
            }
            let mut acked = Vec::new();
            while !self.held.is_empty() && self.random.percent(70) {
                let index = self.random.index(self.held.len());
                let held = self.held.swap_remove(index);
                self.record_ack(&held, Some(tx));
                self.client.try_ack(CHANNEL, held.tag, false)?;
                acked.push(held);
            }
            if self.random.percent(85) {
                self.record(Event::Commit { tx });
                self.client.try_tx_commit(CHANNEL)?;
                self.record(Event::Committed { tx });
            } else {
                self.client.try_tx_rollback(CHANNEL)?;
                self.record(Event::RolledBack { tx });
                // They are still in hand.
                self.held.append(&mut acked);
            }
        }
        Ok(())
    }

    fn purge(&mut self) -> Outcome<()> {
        self.client.try_confirm_select(CHANNEL)?;
        while !self.should_rest() {
            for _ in 0..self.random.below(20) {
                self.push_publish(&PURGED_ROUTE, None);
            }
            self.client.flush()?;
            if self.random.percent(80) {
                self.take_all_confirms()?;
            }
            for _ in 0..self.random.below(4) {
                if let Some(delivered) = self.client.try_get(CHANNEL, PURGED_QUEUE)? {
                    self.hold(PURGED_QUEUE, &delivered);
                    if self.random.percent(50) {
                        self.settle_last()?;
                    }
                }
            }
            if self.random.percent(30) {
                self.record(Event::Purge {
                    queue: PURGED_QUEUE.into(),
                    channel: self.key,
                });
                self.client.try_purge(CHANNEL, PURGED_QUEUE)?;
                self.record(Event::Synced { channel: self.key });
            }
            let Self {
                shared,
                client,
                random,
                ..
            } = self;
            shared.extras.change_one(client, CHANNEL, random)?;
        }
        self.take_all_confirms()?;
        self.sync(0)
    }

    fn send(&mut self) -> Outcome<()> {
        self.client.try_confirm_select(CHANNEL)?;
        while !self.should_rest() {
            let Self {
                shared,
                client,
                random,
                published_count,
                ..
            } = self;
            shared
                .moving
                .publish_some(client, CHANNEL, published_count, random)?;
        }
        Ok(())
    }

    fn try_some(&mut self) -> Outcome<()> {
        while !self.should_rest() {
            let Self {
                shared,
                client,
                random,
                ..
            } = self;
            shared.moving.try_some(client, CHANNEL, random)?;
        }
        Ok(())
    }
}
