//! Consumers of a queue, whose turn it is, and the credit they deliver against.
//!
//! Two limits hold at once: the consumer's own prefetch, and one that all consumers of a channel share
//! (`basic.qos` with the global bit). Messages taken without acknowledgement count for neither.
//!
//! Higher `x-priority` is served first; equal ones take turns, one message each. A consumer that cannot
//! take a message (its limits, or a full outbox) is passed over until something gives it room again.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};

use smallvec::{SmallVec, smallvec};

use super::command::ConsumerId;
use super::outbox::Outbox;
use super::queue::{Queue, QueueHandle};
use crate::sync::lock;

/// A consumer as `basic.consume` asks for it.
#[derive(Clone, Debug)]
pub struct ConsumerSpec {
    /// Unique in the process.
    pub id: ConsumerId,
    /// Channel its deliveries go to.
    pub channel: u16,
    /// Outbox of its connection.
    pub outbox: Arc<Outbox>,
    /// Deliveries are settled at once.
    pub is_no_ack: bool,
    /// No other consumer beside this one.
    pub is_exclusive: bool,
    /// Unacked deliveries it may hold; 0 for no limit.
    pub prefetch: u16,
    /// `x-priority`: higher ones are served first.
    pub priority: i64,
    /// The limit it shares with its channel.
    pub channel_credit: Arc<ChannelCredit>,
}

/// The prefetch limit that the consumers of one channel share.
///
/// A queue that found no room is noted here once, and when there is room it is served in its turn. So what comes back serves as
/// many queues as it has room for, however many wait.
///
/// Lock order: a queue's lock, then the one inside.
#[derive(Debug, Default)]
pub struct ChannelCredit {
    /// 0 for none.
    limit: AtomicU32,
    used: AtomicU32,
    /// Queues that passed over a consumer because of this limit, the one that waits longest first.
    waiting: Mutex<VecDeque<Weak<Queue>>>,
}

impl ChannelCredit {
    /// No limit.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Unacked deliveries of the channel's consumers.
    #[must_use]
    pub fn used(&self) -> u32 {
        self.used.load(Ordering::SeqCst)
    }

    /// True when the channel has a limit.
    pub(super) fn has_limit(&self) -> bool {
        self.limit.load(Ordering::SeqCst) != 0
    }

    fn has_room(&self) -> bool {
        self.room() > 0
    }

    /// True when a delivery may be tried; else `queue` is told when there is room. It is noted, unless `is_noted` says that it
    /// is: that is the caller's to keep, and to clear when [`ChannelCredit::next_waiting`] gave the queue back.
    fn check_room(&self, queue: &QueueHandle, is_noted: &mut bool) -> bool {
        if self.has_room() {
            return true;
        }
        if !std::mem::replace(is_noted, true) {
            lock(&self.waiting).push_back(Arc::downgrade(queue));
        }
        // Room may have come up between the check and the note: then nobody may read the note.
        self.has_room()
    }

    /// Takes one unit of room; false when another queue was faster.
    fn try_take(&self) -> bool {
        self.take_some(1) == 1
    }

    /// Units of room there are now.
    fn room(&self) -> usize {
        match self.limit.load(Ordering::SeqCst) {
            0 => usize::MAX,
            limit => limit.saturating_sub(self.used()) as usize,
        }
    }

    /// Takes so many units of room, or as many as there are; how many.
    fn take_some(&self, count: u32) -> u32 {
        let limit = self.limit.load(Ordering::SeqCst);
        if limit == 0 {
            self.used.fetch_add(count, Ordering::SeqCst);
            return count;
        }
        let mut taken = 0;
        let _ = self
            .used
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |used| {
                taken = count.min(limit.saturating_sub(used));
                (taken > 0).then_some(used + taken)
            });
        taken
    }

    /// Gives back room; added to `resumed` when there are queues to serve with it.
    fn give_back(self: &Arc<Self>, count: u32, resumed: &mut Vec<Arc<Self>>) {
        self.used.fetch_sub(count, Ordering::SeqCst);
        if self.limit.load(Ordering::SeqCst) != 0 {
            self.resume(resumed);
        }
    }

    /// Sets the limit, 0 for none; added to `resumed` when there are queues to try again.
    pub(super) fn set_limit(self: &Arc<Self>, limit: u32, resumed: &mut Vec<Arc<Self>>) {
        self.limit.store(limit, Ordering::SeqCst);
        self.resume(resumed);
    }

    fn resume(self: &Arc<Self>, resumed: &mut Vec<Arc<Self>>) {
        let is_there = resumed.last().is_some_and(|last| Arc::ptr_eq(last, self));
        if !is_there && !lock(&self.waiting).is_empty() {
            resumed.push(Arc::clone(self));
        }
    }

    /// The queue to serve next, as long as there is room: whoever takes the last of it leaves the others to whoever gives
    /// some back. The queue's note is gone.
    pub(super) fn next_waiting(&self) -> Option<QueueHandle> {
        while self.has_room() {
            let next = lock(&self.waiting).pop_front()?;
            // Of a deleted queue nothing is left to serve.
            if let Some(queue) = next.upgrade() {
                return Some(queue);
            }
        }
        None
    }

    /// Queues that wait.
    #[cfg(test)]
    pub(super) fn waiting_count(&self) -> usize {
        lock(&self.waiting).len()
    }
}

/// A registered consumer.
#[derive(Debug)]
pub(super) struct Consumer {
    pub(super) spec: ConsumerSpec,
    unacked_count: u32,
    /// Its outbox has a note of the queue.
    is_noted: bool,
    /// Its channel's credit has one.
    awaits_credit: bool,
}

impl Consumer {
    /// Messages that its own limit and that of its channel allow.
    fn credit(&self) -> usize {
        let spec = &self.spec;
        if spec.is_no_ack {
            return usize::MAX;
        }
        let own = match spec.prefetch {
            0 => usize::MAX,
            prefetch => u32::from(prefetch).saturating_sub(self.unacked_count) as usize,
        };
        own.min(spec.channel_credit.room())
    }

    /// Takes credit for a message; false when its channel ran out of it meanwhile.
    #[inline]
    fn take_credit(&mut self) -> bool {
        if !self.spec.is_no_ack {
            if !self.spec.channel_credit.try_take() {
                return false;
            }
            self.unacked_count += 1;
        }
        true
    }

    #[inline]
    fn can_take(&mut self, queue: &QueueHandle) -> bool {
        let spec = &self.spec;
        let has_credit = spec.is_no_ack
            || ((spec.prefetch == 0 || self.unacked_count < u32::from(spec.prefetch))
                && spec
                    .channel_credit
                    .check_room(queue, &mut self.awaits_credit));
        has_credit && !spec.outbox.check_full(queue, &mut self.is_noted)
    }
}

/// Consumers of equal priority.
#[derive(Debug)]
struct Group {
    priority: i64,
    /// In the order they came. Most queues have one, which costs no further place in memory.
    members: SmallVec<[Consumer; 1]>,
    /// Whose turn it is.
    next: usize,
}

/// Where a consumer stands in [`Consumers`]; good until the next change of the set.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConsumerIndex {
    group: usize,
    member: usize,
}

impl ConsumerIndex {
    const FIRST: Self = Self {
        group: 0,
        member: 0,
    };
}

/// The consumers of one queue.
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct Consumers {
    /// `None` when, and only when, there is nothing in it: most of very many queues have no consumer.
    known: Option<Box<Known>>,
    /// There is one, at least, that has not left.
    is_any: bool,
    /// Nobody could take a message when last asked, and nothing that could change it has happened.
    is_exhausted: bool,
}

/// Those that are there, and those of whom something is left.
#[derive(Debug, Default)]
struct Known {
    /// Highest priority first.
    groups: SmallVec<[Group; 1]>,
    /// The only one that is served, where a queue wants just one.
    active: Option<ConsumerId>,
    /// Cancelled ones that still hold unacked messages: their channel's credit comes back through them.
    departed: Vec<Consumer>,
}

impl Consumers {
    fn groups(&self) -> &[Group] {
        self.known.as_ref().map_or(&[], |known| &known.groups)
    }

    fn groups_mut(&mut self) -> &mut [Group] {
        self.known
            .as_mut()
            .map_or(&mut [], |known| &mut known.groups)
    }

    /// Some of them left.
    fn tidy(&mut self) {
        self.is_any = !self.groups().is_empty();
        let is_over = |known: &mut Box<Known>| known.groups.is_empty() && known.departed.is_empty();
        self.known.take_if(is_over);
    }

    pub(super) fn count(&self) -> usize {
        let groups = self.groups().iter();
        groups.map(|group| group.members.len()).sum()
    }

    /// Reads a word of the consumer whose turn it is.
    pub(super) fn warm(&self) -> u32 {
        let group = self.groups().first();
        let consumer = group.and_then(|group| group.members.get(group.next));
        consumer.map_or(0, |consumer| consumer.unacked_count)
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.is_any
    }

    pub(super) fn has_exclusive(&self) -> bool {
        self.iter().any(|consumer| consumer.spec.is_exclusive)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Consumer> {
        self.groups().iter().flat_map(|group| &group.members)
    }

    /// Something happened that may let a consumer take messages again.
    pub(super) fn refresh(&mut self) {
        self.is_exhausted = false;
    }

    /// `outbox` has room, and has given back its note of the queue.
    pub(super) fn refresh_after(&mut self, outbox: &Arc<Outbox>) {
        self.refresh();
        let groups = self.groups_mut().iter_mut();
        let all = groups.flat_map(|group| &mut group.members);
        for consumer in all.filter(|consumer| consumer.is_noted) {
            consumer.is_noted = !Arc::ptr_eq(&consumer.spec.outbox, outbox);
        }
    }

    /// `credit` has given back its note of the queue.
    pub(super) fn refresh_after_credit(&mut self, credit: &Arc<ChannelCredit>) {
        self.refresh();
        let groups = self.groups_mut().iter_mut();
        let all = groups.flat_map(|group| &mut group.members);
        for consumer in all.filter(|consumer| consumer.awaits_credit) {
            consumer.awaits_credit = !Arc::ptr_eq(&consumer.spec.channel_credit, credit);
        }
    }

    pub(super) fn add(&mut self, spec: ConsumerSpec) {
        self.refresh();
        let priority = spec.priority;
        let consumer = Consumer {
            spec,
            unacked_count: 0,
            is_noted: false,
            awaits_credit: false,
        };
        self.is_any = true;
        let groups = &mut self.known.get_or_insert_default().groups;
        match groups.binary_search_by(|group| priority.cmp(&group.priority)) {
            Ok(at) => groups[at].members.push(consumer),
            Err(at) => groups.insert(
                at,
                Group {
                    priority,
                    members: smallvec![consumer],
                    next: 0,
                },
            ),
        }
    }

    /// Removes a consumer; what it holds stays unacked. True when it was there.
    pub(super) fn remove(&mut self, id: ConsumerId) -> bool {
        self.refresh();
        let index = self.find(id);
        let (Some(known), Some(index)) = (&mut self.known, index) else {
            return false;
        };
        known.active.take_if(|active| *active == id);
        let group = &mut known.groups[index.group];
        let consumer = group.members.remove(index.member);
        if index.member < group.next {
            group.next -= 1;
        }
        if group.next >= group.members.len() {
            group.next = 0;
        }
        if group.members.is_empty() {
            known.groups.remove(index.group);
        }
        if consumer.unacked_count > 0 {
            known.departed.push(consumer);
        }
        self.tidy();
        true
    }

    /// Removes all of them, remembering who holds what.
    pub(super) fn remove_all(&mut self, mut told: impl FnMut(&ConsumerSpec)) {
        let Some(known) = &mut self.known else {
            return;
        };
        for consumer in known.groups.drain(..).flat_map(|group| group.members) {
            told(&consumer.spec);
            if consumer.unacked_count > 0 {
                known.departed.push(consumer);
            }
        }
        known.active = None;
        self.tidy();
    }

    fn find(&self, id: ConsumerId) -> Option<ConsumerIndex> {
        let mut groups = self.groups().iter().enumerate();
        groups.find_map(|(group, members)| {
            let member = members
                .members
                .iter()
                .position(|consumer| consumer.spec.id == id)?;
            Some(ConsumerIndex { group, member })
        })
    }

    /// False when nobody could take a message when last asked, and nothing happened since.
    #[inline]
    pub(super) fn may_take(&self) -> bool {
        !self.is_exhausted && self.is_any
    }

    /// Who gets the next message.
    pub(super) fn pick(
        &mut self,
        queue: &QueueHandle,
        is_single_active: bool,
    ) -> Option<ConsumerIndex> {
        if !self.may_take() {
            return None;
        }
        let picked = if is_single_active {
            self.pick_active(queue)
        } else {
            self.pick_in_turn(queue)
        };
        self.is_exhausted = picked.is_none();
        picked
    }

    fn pick_in_turn(&mut self, queue: &QueueHandle) -> Option<ConsumerIndex> {
        if let Some(only) = self.only_mut() {
            return only.can_take(queue).then_some(ConsumerIndex::FIRST);
        }
        for (at, group) in self.groups_mut().iter_mut().enumerate() {
            let (before, from_next) = group.members.split_at_mut(group.next);
            let in_turn = (group.next..).zip(from_next).chain((0..).zip(before));
            let found = in_turn
                .into_iter()
                .find_map(|(member, consumer)| consumer.can_take(queue).then_some(member));
            if let Some(member) = found {
                return Some(ConsumerIndex { group: at, member });
            }
        }
        None
    }

    /// Chooses the one that is served, if there is none: first by priority, then by age.
    pub(super) fn elect(&mut self) {
        if let Some(known) = &mut self.known
            && known.active.is_none()
        {
            let first = known.groups.first().and_then(|group| group.members.first());
            known.active = first.map(|consumer| consumer.spec.id);
        }
    }

    /// The active consumer, chosen for good. In a quorum queue one of higher priority
    /// takes over, once the active one has settled what it holds (SA-3).
    fn pick_active(&mut self, queue: &QueueHandle) -> Option<ConsumerIndex> {
        self.elect();
        let mut index = self.find(self.known.as_ref()?.active?)?;
        if index.group > 0 && queue.is_quorum() {
            let known = self.known.as_mut()?;
            if known.groups[index.group].members[index.member].unacked_count > 0 {
                return None;
            }
            known.active = None;
            self.elect();
            index = ConsumerIndex::FIRST;
        }
        self.groups_mut()[index.group].members[index.member]
            .can_take(queue)
            .then_some(index)
    }

    /// Gives the consumer a message: takes its credit and passes the turn on. `None` when its channel
    /// ran out of credit meanwhile: pick again.
    pub(super) fn take(&mut self, index: ConsumerIndex) -> Option<&ConsumerSpec> {
        let group = &mut self.groups_mut()[index.group];
        if !group.members[index.member].take_credit() {
            return None;
        }
        let next = index.member + 1;
        group.next = if next < group.members.len() { next } else { 0 };
        Some(&group.members[index.member].spec)
    }

    /// [`pick`](Self::pick) and [`take`](Self::take), with one look where there is one consumer: so it is in most queues. Also
    /// true when what the consumer gets is settled at once.
    #[inline]
    pub(super) fn pick_and_take(
        &mut self,
        queue: &QueueHandle,
        is_single_active: bool,
    ) -> Option<(ConsumerIndex, bool)> {
        if !is_single_active
            && self.may_take()
            && let Some(only) = self.only_mut()
        {
            let can_take = only.can_take(queue);
            let is_taken = can_take && only.take_credit();
            let is_settled = only.spec.is_no_ack;
            self.is_exhausted = !can_take;
            return is_taken.then_some((ConsumerIndex::FIRST, is_settled));
        }
        let index = self.pick(queue, is_single_active)?;
        let spec = self.take(index)?;
        Some((index, spec.is_no_ack))
    }

    /// A consumer that has just been picked.
    pub(super) fn spec(&self, index: ConsumerIndex) -> &ConsumerSpec {
        &self.groups()[index.group].members[index.member].spec
    }

    fn only_mut(&mut self) -> Option<&mut Consumer> {
        match self.groups_mut() {
            [group] => match &mut group.members[..] {
                [only] => Some(only),
                _ => None,
            },
            _ => None,
        }
    }

    /// The consumer, when there is but one.
    pub(super) fn only(&mut self) -> Option<&ConsumerSpec> {
        self.only_mut().map(|only| &only.spec)
    }

    /// The same if it can take messages now, and how many of them its credit allows, which others may have taken in a moment.
    pub(super) fn only_taker(&mut self, queue: &QueueHandle) -> Option<(&ConsumerSpec, usize)> {
        let only = self.only_mut()?;
        if !only.can_take(queue) {
            self.is_exhausted = true;
            return None;
        }
        let only = self.only_mut()?;
        Some((&only.spec, only.credit()))
    }

    /// Gives the only consumer so many messages, or as many as its channel's credit allows: takes its credit; how many.
    pub(super) fn take_from_only(&mut self, count: usize) -> usize {
        let Some(only) = self.only_mut() else {
            return 0;
        };
        if only.spec.is_no_ack {
            return count;
        }
        let wanted = u32::try_from(count).unwrap_or(u32::MAX);
        let taken = only.spec.channel_credit.take_some(wanted);
        only.unacked_count += taken;
        taken as usize
    }

    /// `count` messages that consumer `id` held were settled or went back; its channel's credit is added to `resumed` when
    /// it had stopped queues.
    pub(super) fn give_back(
        &mut self,
        id: ConsumerId,
        count: u32,
        resumed: &mut Vec<Arc<ChannelCredit>>,
    ) {
        self.refresh();
        if let Some(index) = self.find(id) {
            let consumer = &mut self.groups_mut()[index.group].members[index.member];
            consumer.unacked_count = consumer.unacked_count.saturating_sub(count);
            consumer.spec.channel_credit.give_back(count, resumed);
        } else if let Some(known) = &mut self.known
            && let Some(at) = known.departed.iter().position(|gone| gone.spec.id == id)
        {
            let consumer = &mut known.departed[at];
            // A settlement that a panic cut short may have been counted before.
            consumer.unacked_count = consumer.unacked_count.saturating_sub(count);
            consumer.spec.channel_credit.give_back(count, resumed);
            if consumer.unacked_count == 0 {
                known.departed.swap_remove(at);
                self.tidy();
            }
        }
    }
}
