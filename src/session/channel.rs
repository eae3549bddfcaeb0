//! One channel: what it is doing, what it remembers, what it holds back.
//!
//! ```text
//!           command             answer, durable
//!   Open ------------> Waiting -----------------> Open
//!    |                   \-- not yet durable --> Held --> Open
//!    | error, or close by the client
//!    v                       CloseChannel answered
//!   Ending ------------------------------------> AwaitCloseOk --close-ok--> gone
//!    (CloseChannel is on its way)  \-- the client closed: close-ok --> gone
//! ```
//! While a channel waits or holds, its frames are kept in arrival order (`held`); other channels go on.

use std::collections::{BTreeMap, VecDeque};

use smallvec::SmallVec;

use super::acks::{DeliveryTags, HolderNumber, Outstanding};
use super::close::CloseReason;
use super::confirms::Confirms;
use super::content::Content;
use super::number_map::NumberMap;
use super::options::ChannelSlot;

use super::overdue::Ages;
use crate::amqp::frame::Frame;
use crate::amqp::method::{Method, MethodId};
use crate::amqp::reply_code::ChannelReplyCode;
use crate::amqp::short_string::ShortString;
use crate::broker::command::{Command, ConsumerId, Delivery, Lsn, Publish, SettleOutcome, Unacked};

/// A channel that was opened. See the module.
#[derive(Debug, Default)]
pub(super) struct Channel {
    /// Its share of what all sessions may have open.
    pub(super) _slot: Option<ChannelSlot>,
    pub(super) state: ChannelState,
    /// The publish that is arriving.
    pub(super) content: Content,
    pub(super) tags: DeliveryTags,
    pub(super) ages: Ages,
    pub(super) consumers: Consumers,
    /// Prefetch of consumers started from now on.
    pub(super) prefetch: u16,
    /// What an empty queue name means.
    pub(super) last_queue: Option<ShortString>,
    pub(super) mode: Mode,
    /// Publishes handed to the server that are not answered yet.
    pub(super) unanswered_publish_count: u64,
    /// Frames that arrived while the channel could not go on.
    pub(super) held: VecDeque<Frame>,
    /// Answers of the broker that will come before the one that `state` waits for, and need none.
    pub(super) unneeded_answer_count: u32,
    /// Deliveries of settlements that will not reach the broker, since the channel failed before.
    pub(super) unsettled: Vec<Unacked>,
    /// Deliveries that came when the client could be told no more: they have not been tried, and do not count as failed.
    pub(super) unsent: Vec<Unacked>,
    /// The list of unacked deliveries has been handed over with `CloseChannel`.
    pub(super) is_collected: bool,
}

/// What a channel is doing.
#[derive(Debug, Default)]
pub(super) enum ChannelState {
    /// Takes frames.
    #[default]
    Open,
    /// The broker has the word.
    Waiting {
        /// What errors are blamed on.
        method: MethodId,
        /// What its answer becomes.
        awaiting: Awaiting,
    },
    /// The answer is known and waits for durability.
    Held {
        /// When it may be sent.
        lsn: Lsn,
        /// The answer.
        answer: Answer,
        /// `tx.commit` tolerates nothing behind it while it is pending.
        is_commit: bool,
    },
    /// `CloseChannel` is on its way to the broker.
    Ending(AfterEnd),
    /// The server has sent `channel.close`.
    AwaitCloseOk,
}

/// What the broker's answer becomes.
#[derive(Debug)]
pub(super) enum Awaiting {
    /// The plain `-ok`; `None` for nowait.
    Ok(Option<Method>),
    /// `queue.declare-ok`.
    QueueDeclare { is_nowait: bool },
    /// `queue.delete-ok`.
    QueueDelete { is_nowait: bool },
    /// `queue.purge-ok`.
    QueuePurge { is_nowait: bool },
    /// `basic.consume-ok`.
    Consume { tag: ShortString, is_nowait: bool },
    /// `basic.cancel-ok`.
    Cancel {
        consumer: ConsumerId,
        tag: ShortString,
        is_nowait: bool,
    },
    /// `basic.get-ok` or `get-empty`.
    Get,
    /// `basic.get-ok` or `get-empty`, by way of the outbox; nothing is to be answered.
    GetReady,
    /// `tx.commit-ok`.
    Commit(PendingCommit),
}

/// What must be known when a commit is answered.
#[derive(Debug)]
pub(super) struct PendingCommit {
    /// The mandatory publishes, with their place among all.
    pub(super) mandatory: Vec<(usize, Publish)>,
    /// Deliveries that are outstanding again should the broker refuse.
    pub(super) settled: Vec<Outstanding>,
}

/// What is told to the client.
#[derive(Debug)]
pub(super) enum Answer {
    /// Nothing, for nowait.
    Nothing,
    /// A method.
    Method(Method),
    /// `basic.get-ok`, and the ready messages left.
    Got(Box<Delivery>, u32),
    /// `basic.return`s, then `tx.commit-ok`.
    Committed(Vec<Publish>),
    /// `channel.close-ok`, and the channel is gone.
    CloseOk,
}

/// What follows when the broker has closed its side of the channel.
#[derive(Debug)]
pub(super) enum AfterEnd {
    /// `channel.close-ok`: the client asked for it.
    CloseOk,
    /// `channel.close`.
    Close {
        reason: CloseReason<ChannelReplyCode>,
        /// The client closed it as well, and gets its close-ok.
        is_crossed: bool,
    },
    /// Nothing: the whole connection ends.
    Silence,
}

/// Confirms and transactions exclude each other.
#[derive(Debug, Default)]
pub(super) enum Mode {
    /// Neither.
    #[default]
    Plain,
    /// `confirm.select`.
    Confirm(Confirms),
    /// `tx.select`.
    Tx(Transaction),
}

/// The transaction that is open on a channel.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    /// Publishes, which the broker keeps.
    pub(super) publish_count: usize,
    /// Those of them that may have to be returned, with their place among all.
    pub(super) mandatory: Vec<(usize, Publish)>,
    /// Bytes of the publishes.
    pub(super) size_bytes: u64,
    /// Acks and rejects in order of issue.
    pub(super) settlements: Vec<(SettleOutcome, Vec<Outstanding>)>,
}

/// The consumers of a channel, by tag and by id.
#[derive(Debug, Default)]
pub(super) struct Consumers {
    by_tag: BTreeMap<ShortString, ConsumerId>,
    /// Where among the takers each stands.
    places: NumberMap<ConsumerId, usize>,
    /// In the order they came, as long as none has gone.
    takers: Vec<Taker>,
    /// The place of the one that was looked up last.
    newest: usize,
}

/// What a delivery to a consumer needs: one line of the processor's cache.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Taker {
    consumer: ConsumerId,
    /// The consumer's tag, a [`ShortString`].
    pub(super) tag: SmallVec<[u8; 24]>,
    /// What the channel's tags called it last.
    pub(super) holder: HolderNumber,
}

const _: () = assert!(size_of::<Taker>() == 64);

impl Consumers {
    pub(super) fn insert(&mut self, tag: ShortString, consumer: ConsumerId) {
        let taker = Taker {
            consumer,
            tag: SmallVec::from_slice(tag.as_bytes()),
            holder: HolderNumber::default(),
        };
        self.by_tag.insert(tag, consumer);
        self.places.insert(consumer, self.takers.len());
        self.takers.push(taker);
    }
    pub(super) fn count(&self) -> usize {
        self.by_tag.len()
    }
    pub(super) fn id(&self, tag: &ShortString) -> Option<ConsumerId> {
        self.by_tag.get(tag).copied()
    }
    pub(super) fn taker(&self, consumer: ConsumerId) -> Option<&Taker> {
        self.takers.get(self.place_of(consumer, self.newest)?)
    }
    /// The same for several in a row; `last` is the place of the one before, and of this one then.
    pub(super) fn taker_near(
        &self,
        consumer: ConsumerId,
        last: &mut Option<usize>,
    ) -> Option<&Taker> {
        let place = self.place_of(consumer, last.unwrap_or(self.newest))?;
        *last = Some(place);
        self.takers.get(place)
    }
    pub(super) fn taker_mut(&mut self, consumer: ConsumerId) -> Option<&mut Taker> {
        self.newest = self.place_of(consumer, self.newest)?;
        self.takers.get_mut(self.newest)
    }
    pub(super) fn remove(&mut self, consumer: ConsumerId) -> Option<ShortString> {
        // The last one takes its place.
        let place = self.places.remove(&consumer)?;
        let taker = self.takers.swap_remove(place);
        if let Some(moved) = self.takers.get(place) {
            self.places.insert(moved.consumer, place);
        }
        if self.takers.is_empty() {
            self.takers = Vec::new();
        }
        let (tag, _) = self.by_tag.remove_entry(&taker.tag[..])?;
        Some(tag)
    }

    /// Where a consumer stands. Messages that go round many queues mostly come to consumers in the order in which these came, so
    /// it is looked for behind the one `before` first.
    #[inline]
    fn place_of(&self, consumer: ConsumerId, before: usize) -> Option<usize> {
        let is_at = |place: &usize| {
            let taker = self.takers.get(*place);
            taker.is_some_and(|taker| taker.consumer == consumer)
        };
        let near = [before, before + 1].into_iter().find(is_at);
        near.or_else(|| self.places.get(&consumer).copied())
    }
}

impl Channel {
    /// Frames must wait.
    pub(super) fn is_busy(&self) -> bool {
        matches!(
            self.state,
            ChannelState::Waiting { .. } | ChannelState::Held { .. }
        )
    }

    /// The client may still be told things.
    pub(super) fn is_live(&self) -> bool {
        matches!(
            self.state,
            ChannelState::Open
                | ChannelState::Waiting { .. }
                | ChannelState::Held { .. }
                | ChannelState::Ending(AfterEnd::CloseOk)
        )
    }

    /// From here on only the end counts.
    pub(super) fn begin_end(&mut self, after: AfterEnd) {
        if let ChannelState::Waiting { awaiting, .. } = &self.state
            && !matches!(awaiting, Awaiting::GetReady)
        {
            self.unneeded_answer_count += 1;
        }
        self.content = Content::Idle;
        self.state = ChannelState::Ending(after);
    }

    /// All deliveries that are not settled, those of an uncommitted transaction included.
    pub(super) fn collect_unacked(&mut self) -> Vec<Unacked> {
        if let Mode::Tx(transaction) = &mut self.mode {
            self.tags
                .restore(std::mem::take(transaction).into_settled());
        }
        self.is_collected = true;
        let mut unacked = self.tags.take_all();
        unacked.append(&mut self.unsettled);
        unacked
    }

    /// A command that was to reach the broker does not: the channel failed before. No answer will come, and what
    /// it would have settled is unacked.
    pub(super) fn forget_command(&mut self, command: Command) {
        match command {
            Command::Settle { items, .. } => {
                self.unneeded_answer_count = self.unneeded_answer_count.saturating_sub(1);
                self.unsettled.extend(items);
                return;
            }
            Command::TxCommit { settlements, .. } => {
                let items = settlements.into_iter().flat_map(|(_, items)| items);
                self.unsettled.extend(items);
            }
            _ => {}
        }
        match std::mem::take(&mut self.state) {
            // Open now.
            ChannelState::Waiting { .. } => {}
            // Ended while it waited.
            state => {
                self.state = state;
                self.unneeded_answer_count = self.unneeded_answer_count.saturating_sub(1);
            }
        }
    }

    /// Bytes of the publish that is arriving and of a transaction that is not committed.
    pub(super) fn unfinished_bytes(&self) -> u64 {
        let of_transaction = match &self.mode {
            Mode::Tx(transaction) => transaction.size_bytes,
            Mode::Plain | Mode::Confirm(_) => 0,
        };
        of_transaction + self.content.kept_bytes()
    }

    /// What this channel waits for.
    pub(super) fn first_pending_lsn(&self) -> Option<Lsn> {
        let held = match &self.state {
            ChannelState::Held { lsn, .. } => Some(*lsn),
            _ => None,
        };
        let confirm = match &self.mode {
            Mode::Confirm(confirms) => confirms.first_pending_lsn(),
            Mode::Plain | Mode::Tx(_) => None,
        };
        held.into_iter().chain(confirm).min()
    }
}

impl Transaction {
    /// Counts a publish.
    pub(super) fn add(&mut self, publish: &Publish) {
        if publish.is_mandatory {
            self.mandatory.push((self.publish_count, publish.clone()));
        }
        self.publish_count += 1;
    }

    /// The deliveries it would have settled.
    pub(super) fn into_settled(self) -> impl Iterator<Item = Outstanding> {
        self.settlements.into_iter().flat_map(|(_, items)| items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tag_of(number: u64) -> ShortString {
        ShortString::from_text_cut(&format!("consumer-{number}"))
    }

    proptest! {
        #[test]
        fn a_consumer_is_found_wherever_others_have_gone(gone in prop::collection::vec(0u64..20, 0..30), asked in prop::collection::vec(0u64..25, 1..60)) {
            let mut consumers = Consumers::default();
            for number in 0..20 {
                consumers.insert(tag_of(number), ConsumerId(number));
            }
            for number in &gone {
                consumers.remove(ConsumerId(*number));
            }
            // Behind those that are left.
            consumers.insert(tag_of(20), ConsumerId(20));
            let is_there = |number: u64| number <= 20 && !gone.contains(&number);
            prop_assert_eq!(consumers.count(), (0..25).filter(|number| is_there(*number)).count());
            let mut last = None;
            for number in asked {
                let id = ConsumerId(number);
                let expected = is_there(number).then(|| tag_of(number));
                let expected = expected.as_ref().map(|tag| &tag.as_bytes()[..]);
                let near = consumers.taker_near(id, &mut last);
                prop_assert_eq!(near.map(|taker| &taker.tag[..]), expected);
                prop_assert_eq!(consumers.taker(id).map(|taker| &taker.tag[..]), expected);
                prop_assert_eq!(consumers.taker_mut(id).map(|taker| &taker.tag[..]), expected);
                prop_assert_eq!(consumers.id(&tag_of(number)).is_some(), is_there(number));
            }
        }
    }
}
