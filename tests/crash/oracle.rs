//! Says what may be in the queues, given what a client did and saw. Pure: no socket, no clock.
//!
//! ```text
//!  a publish:      unknown --confirmed, committed, seen after a restart--> certain
//!                  unknown --not seen after a restart, rolled back-------> never
//!  a settlement:   open --ack sent--> asked --a later answer on the channel--> received --a later publish confirmed--> settled
//! ```
//!
//! 1. A certain, open message is in its queue, exactly once, unaltered, in order.
//! 2. A settled message, and one that never was, is not. What is between may be there or not; once a restart has shown which, it
//!    stays so.
//! 3. Acknowledgements are lazy: *received* says that the broker has put it into its log, *settled* that something behind it in the
//!    log was confirmed, or that the broker stopped cleanly.
//! 4. A message that may have been handed out comes back with the redelivered flag. After a quiet stop the flag is exact; after a
//!    crash the broker may flag others in vain.
//! 5. A message to several queues is in all of them or in none; a transaction happened as a whole or not at all.
//! 6. Order: what a restart has shown keeps that order; what was published since comes behind it, each publisher's in its order. In a
//!    queue with priorities this holds within a level, and higher levels come first.
//!
//! The checks after a restart are in [`super::verdict`].

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use super::history::{ChannelKey, Event, Fingerprint, MessageId, Observed, TxId};

/// What is known of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Existence {
    Unknown,
    Certain,
    Never,
}

/// A publish.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) publisher: ChannelKey,
    pub(super) tx: Option<TxId>,
    pub(super) is_persistent: bool,
    priority: u8,
    pub(super) targets: Vec<String>,
    pub(super) fingerprint: Fingerprint,
    pub(super) existence: Existence,
    /// Its place in the history.
    at: usize,
}

/// How far the end of a message in a queue has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settlement {
    Open,
    Asked,
    Received,
    /// With a transaction whose commit was not answered.
    InTx(TxId),
    Settled,
}

/// A message in a queue.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) settlement: Settlement,
    /// A client has seen it.
    pub(super) was_delivered: bool,
    /// Place in the history of its first delivery, when that had the redelivered flag: the delivery before it was not read yet, or
    /// nobody was left to read it.
    flagged_first_at: Option<usize>,
    /// A client holds it at this moment.
    pub(super) is_unacked: bool,
    /// Its place as a restart has shown it.
    pub(super) rank: Option<usize>,
}

impl Entry {
    /// True, once, for a first delivery that is read after a second one: a stopping broker closes a connection whose client has not
    /// read it yet, and hands the message to another client that reads faster.
    fn take_overtaken(&mut self, stopping_at: Option<usize>) -> bool {
        let was_flagged_since =
            stopping_at.is_some_and(|stop| self.flagged_first_at.is_some_and(|at| at > stop));
        if was_flagged_since {
            self.flagged_first_at = None;
        }
        was_flagged_since
    }
}

/// A transaction.
#[derive(Debug, Default)]
pub(super) struct Tx {
    pub(super) publishes: Vec<MessageId>,
    pub(super) acks: Vec<(String, MessageId)>,
    /// Place of the commit in the history.
    pub(super) commit_at: Option<usize>,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A certain message is not there.
    Lost,
    /// A message is there twice.
    Duplicated,
    /// Messages have changed places.
    Reordered,
    /// Body bytes differ.
    AlteredBody,
    /// Property bytes differ.
    AlteredProperties,
    /// Exchange or routing key differ.
    AlteredRoute,
    /// Nobody published it, or not to this queue.
    Invented,
    /// It was settled, or known not to be, and is there again.
    CameBack,
    /// The redelivered flag is missing, or there without cause.
    WrongRedelivered,
    /// In some queues of a publish only.
    TornFanout,
    /// A part of a transaction only.
    TornTx,
    /// Dead, or arrived, before its time.
    Early,
    /// Alive after its time.
    Overdue,
    /// A history that is not what happened to the message.
    WrongDeaths,
    /// Failed more or less often than it says.
    WrongCount,
    /// More messages than the queue takes.
    TooLong,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    /// What is wrong.
    pub(crate) kind: Kind,
    /// Where.
    pub(crate) queue: String,
    /// With which message; `None` when it is none of ours.
    pub(crate) id: Option<MessageId>,
    /// More words.
    pub(crate) detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            queue,
            id,
            detail,
        } = self;
        match id {
            Some(id) => write!(f, "{kind:?}: message {id} in queue {queue}: {detail}"),
            None => write!(f, "{kind:?}: in queue {queue}: {detail}"),
        }
    }
}

/// What may be in the queues; see the module.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    /// The highest level of each queue with priorities.
    highest_levels: BTreeMap<String, u8>,
    pub(super) sent: BTreeMap<MessageId, Sent>,
    pub(super) queues: BTreeMap<String, BTreeMap<MessageId, Entry>>,
    pub(super) txs: BTreeMap<TxId, Tx>,
    /// Settlements that wait for an answer on their channel.
    asked: BTreeMap<ChannelKey, Vec<(String, MessageId)>>,
    /// Settlements in the log, with the place in the history at which that was known.
    received: VecDeque<(usize, String, MessageId)>,
    /// Connections are being closed since this place in the history.
    stopping_at: Option<usize>,
    /// The broker handed out nothing that no client saw.
    pub(super) is_flag_exact: bool,
    pub(super) violations: Vec<Violation>,
    pub(super) history: Vec<Event>,
}

impl Oracle {
    /// Knows nothing; the queues are empty.
    pub(crate) fn new() -> Self {
        Self {
            is_flag_exact: true,
            ..Self::default()
        }
    }

    /// The queue has priorities, up to this one.
    pub(crate) fn has_levels(&mut self, queue: &str, highest: u8) {
        self.highest_levels.insert(queue.to_owned(), highest);
    }

    /// The level of a message in a queue.
    pub(super) fn level(&self, queue: &str, sent: &Sent) -> u8 {
        let highest = self.highest_levels.get(queue).copied().unwrap_or(0);
        sent.priority.min(highest)
    }

    /// Events so far.
    pub(crate) fn event_count(&self) -> usize {
        self.history.len()
    }

    /// The violations found since the last call.
    pub(crate) fn take_violations(&mut self) -> Vec<Violation> {
        std::mem::take(&mut self.violations)
    }

    /// Everything recorded about a message, for a report.
    pub(crate) fn story(&self, id: MessageId) -> Vec<String> {
        let events = self.history.iter().enumerate();
        let of_message = events.filter(|(_, event)| event.mentions(id));
        of_message
            .map(|(at, event)| format!("{at}: {event:?}"))
            .collect()
    }

    /// Takes note of an event.
    pub(crate) fn record(&mut self, event: Event) {
        let at = self.history.len();
        match &event {
            Event::Publish {
                id,
                publisher,
                tx,
                is_persistent,
                priority,
                targets,
                fingerprint,
            } => {
                let sent = Sent {
                    publisher: *publisher,
                    tx: *tx,
                    is_persistent: *is_persistent,
                    priority: *priority,
                    targets: targets.clone(),
                    fingerprint: *fingerprint,
                    existence: Existence::Unknown,
                    at,
                };
                self.publish(*id, sent);
            }
            Event::Confirmed { id } => self.confirmed(*id),
            Event::Delivered { queue, observed } => self.delivered(queue, observed),
            Event::Ack {
                queue,
                id,
                channel,
                tx,
            } => self.ack(queue, *id, *channel, *tx),
            Event::Requeue { queue, id } => {
                if let Some(entry) = self.entry(queue, *id) {
                    entry.is_unacked = false;
                }
            }
            Event::Purge { queue, channel } => self.purge(queue, *channel),
            Event::Synced { channel } => self.synced(*channel, at),
            Event::Commit { tx } => self.txs.entry(*tx).or_default().commit_at = Some(at),
            Event::Committed { tx } => self.committed(*tx),
            Event::RolledBack { tx } => self.undo(*tx),
            Event::Stopping => self.stopping_at = Some(at),
            Event::Killed => self.ended(false),
            Event::Stopped { is_quiet } => {
                self.settle_received(usize::MAX);
                self.ended(*is_quiet);
            }
        }
        self.history.push(event);
    }

    fn entry(&mut self, queue: &str, id: MessageId) -> Option<&mut Entry> {
        self.queues.get_mut(queue)?.get_mut(&id)
    }

    fn publish(&mut self, id: MessageId, sent: Sent) {
        for queue in &sent.targets {
            let entry = Entry {
                settlement: Settlement::Open,
                was_delivered: false,
                flagged_first_at: None,
                is_unacked: false,
                rank: None,
            };
            self.queues
                .entry(queue.clone())
                .or_default()
                .insert(id, entry);
        }
        if let Some(tx) = sent.tx {
            self.txs.entry(tx).or_default().publishes.push(id);
        }
        self.sent.insert(id, sent);
    }

    fn confirmed(&mut self, id: MessageId) {
        let Some(sent) = self.sent.get_mut(&id) else {
            return;
        };
        sent.existence = Existence::Certain;
        // Only a message that is logged says something about the log.
        if sent.is_persistent && !sent.targets.is_empty() {
            let at = sent.at;
            self.settle_received(at);
        }
    }

    /// Everything in the log before `at` is durable now.
    fn settle_received(&mut self, at: usize) {
        while self
            .received
            .front()
            .is_some_and(|(received_at, ..)| *received_at < at)
        {
            let Some((_, queue, id)) = self.received.pop_front() else {
                return;
            };
            if let Some(entry) = self.entry(&queue, id)
                && entry.settlement == Settlement::Received
            {
                entry.settlement = Settlement::Settled;
            }
        }
    }

    fn delivered(&mut self, queue: &str, observed: &Observed) {
        let Some(id) = self.check_looks(queue, observed) else {
            return;
        };
        // A transaction is visible only when it is committed.
        if let Some(tx) = self.sent.get(&id).and_then(|sent| sent.tx)
            && self.txs.get(&tx).is_some_and(|tx| tx.commit_at.is_some())
        {
            self.committed(tx);
        }
        let stopping_at = self.stopping_at;
        let at = self.history.len();
        let Some(entry) = self.entry(queue, id) else {
            return;
        };
        if !observed.is_redelivered && entry.take_overtaken(stopping_at) {
            return;
        }
        if stopping_at.is_some() && entry.settlement == Settlement::Asked {
            // The acknowledgement was on its way when its connection was closed.
            entry.settlement = Settlement::Open;
        }
        if !entry.was_delivered && observed.is_redelivered {
            entry.flagged_first_at = Some(at);
        }
        let (settlement, was_delivered) = (entry.settlement, entry.was_delivered);
        entry.was_delivered = true;
        entry.is_unacked = true;
        if settlement != Settlement::Open {
            self.complain(
                Kind::CameBack,
                queue,
                Some(id),
                &format!("delivered although {settlement:?}"),
            );
        }
        if was_delivered && !observed.is_redelivered {
            self.complain(
                Kind::WrongRedelivered,
                queue,
                Some(id),
                "delivered again without the flag",
            );
        }
    }

    /// Checks that the message was published to this queue and looks like that; its id.
    pub(super) fn check_looks(&mut self, queue: &str, observed: &Observed) -> Option<MessageId> {
        let Some(id) = observed.id else {
            self.complain(
                Kind::Invented,
                queue,
                None,
                &format!("no message of ours: {observed:?}"),
            );
            return None;
        };
        let known = self
            .sent
            .get(&id)
            .filter(|sent| sent.targets.iter().any(|target| target == queue));
        let Some(sent) = known else {
            self.complain(
                Kind::Invented,
                queue,
                Some(id),
                "never published to this queue",
            );
            return None;
        };
        let (was, is) = (sent.fingerprint, observed.fingerprint);
        for (is_same, kind) in [
            (was.properties == is.properties, Kind::AlteredProperties),
            (was.body == is.body, Kind::AlteredBody),
            (was.route == is.route, Kind::AlteredRoute),
        ] {
            if !is_same {
                self.complain(kind, queue, Some(id), "not as published");
            }
        }
        Some(id)
    }

    fn ack(&mut self, queue: &str, id: MessageId, channel: ChannelKey, tx: Option<TxId>) {
        let Some(entry) = self.entry(queue, id) else {
            return;
        };
        entry.is_unacked = false;
        let acked = (queue.to_owned(), id);
        match tx {
            Some(tx) => {
                entry.settlement = Settlement::InTx(tx);
                self.txs.entry(tx).or_default().acks.push(acked);
            }
            None => {
                entry.settlement = Settlement::Asked;
                self.asked.entry(channel).or_default().push(acked);
            }
        }
    }

    fn purge(&mut self, queue: &str, channel: ChannelKey) {
        let Some(entries) = self.queues.get_mut(queue) else {
            return;
        };
        let asked = self.asked.entry(channel).or_default();
        for (id, entry) in entries {
            if entry.settlement == Settlement::Open && !entry.is_unacked {
                entry.settlement = Settlement::Asked;
                asked.push((queue.to_owned(), *id));
            }
        }
    }

    fn synced(&mut self, channel: ChannelKey, at: usize) {
        for (queue, id) in self.asked.remove(&channel).unwrap_or_default() {
            if let Some(entry) = self.entry(&queue, id)
                && entry.settlement == Settlement::Asked
            {
                entry.settlement = Settlement::Received;
                self.received.push_back((at, queue, id));
            }
        }
    }

    pub(super) fn committed(&mut self, tx: TxId) {
        let Some(tx) = self.txs.remove(&tx) else {
            return;
        };
        // An empty transaction, and one of transient messages, is answered at once and says nothing about the log.
        let mut is_logged = false;
        for id in tx.publishes {
            if let Some(sent) = self.sent.get_mut(&id) {
                sent.existence = Existence::Certain;
                is_logged |= sent.is_persistent && !sent.targets.is_empty();
            }
        }
        for (queue, id) in tx.acks {
            if let Some(entry) = self.entry(&queue, id) {
                entry.settlement = Settlement::Settled;
            }
        }
        if let (true, Some(at)) = (is_logged, tx.commit_at) {
            self.settle_received(at);
        }
    }

    /// The transaction did not happen.
    pub(super) fn undo(&mut self, tx: TxId) {
        let settled_by_it = Settlement::InTx(tx);
        let Some(tx) = self.txs.remove(&tx) else {
            return;
        };
        for id in tx.publishes {
            if let Some(sent) = self.sent.get_mut(&id) {
                sent.existence = Existence::Never;
            }
        }
        for (queue, id) in tx.acks {
            if let Some(entry) = self.entry(&queue, id)
                && entry.settlement == settled_by_it
            {
                entry.settlement = Settlement::Open;
            }
        }
    }

    /// The process is gone, and with it transient messages and transactions that nobody asked to commit.
    fn ended(&mut self, is_quiet: bool) {
        self.is_flag_exact &= is_quiet;
        self.stopping_at = None;
        let is_open = |(id, tx): (&TxId, &Tx)| tx.commit_at.is_none().then_some(*id);
        let open: Vec<TxId> = self.txs.iter().filter_map(is_open).collect();
        for tx in open {
            self.undo(tx);
        }
        self.asked.clear();
        self.received.clear();
        for entries in self.queues.values_mut() {
            for (id, entry) in entries {
                entry.is_unacked = false;
                if self.sent.get(id).is_some_and(|sent| !sent.is_persistent) {
                    entry.settlement = Settlement::Settled;
                }
            }
        }
    }

    pub(super) fn complain(
        &mut self,
        kind: Kind,
        queue: &str,
        id: Option<MessageId>,
        detail: &str,
    ) {
        let (queue, detail) = (queue.to_owned(), detail.to_owned());
        self.violations.push(Violation {
            kind,
            queue,
            id,
            detail,
        });
    }
}
