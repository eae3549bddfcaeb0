//! Judges what recovery found against what had been pushed and confirmed.
//!
//! ```text
//!   base (certain) | step 0 | step 1 | .. | step c-1 | step c | .. | step n-1 |
//!                  '---------- confirmed -----------'  '------ uncertain -----'
//! ```
//! A *step* is what the engine must keep or lose as a whole: one record, or one atomic group. Two judgements are made,
//! independently of each other:
//!
//! 1. *Sets*, per queue: a message is **confirmed** (must be there), **uncertain** (may be there), **settled** (must
//!    be gone) or **settled-uncertain** (either). From these come the complaints with names.
//! 2. *Prefix*: the recovered state equals the state after the first k steps, for one k from c to n, the same for
//!    messages, delivery state and META (I5, I31, I33).
//!
//! The module is pure; its tests feed it doctored histories.

use std::collections::{BTreeMap, BTreeSet};

use stratamq::storage::types::{QueueId, Seq};

use super::model::{Body, Event, Message, State};

/// What recovery found, with the payloads read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Observed {
    pub(super) queues: Vec<ObservedQueue>,
    /// Numbers of all META records, snapshot first.
    pub(super) meta: Vec<u64>,
}

/// A recovered queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ObservedQueue {
    pub(super) id: QueueId,
    pub(super) next_seq: Seq,
    pub(super) reserved_upto: Seq,
    pub(super) entries: Vec<ObservedEntry>,
}

/// A recovered message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ObservedEntry {
    pub(super) seq: Seq,
    /// What reading it gave: `None` when the bytes are no payload that was ever made, or could not be read.
    pub(super) body: Option<Body>,
    pub(super) expires_at_ms: u64,
    pub(super) priority: u8,
    pub(super) delivery_count: u32,
    pub(super) is_redelivered: bool,
}

/// What is wrong with a recovered store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Complaint {
    /// A queue that was certainly there is not.
    QueueLost(QueueId),
    /// A queue is there that was never created, or certainly deleted.
    QueueInvented(QueueId),
    /// A confirmed, unsettled message is missing.
    Lost(QueueId, Seq),
    /// A message is there that was never published.
    Invented(QueueId, Seq),
    /// A message is there whose settling was durable.
    Resurrected(QueueId, Seq),
    /// The same message twice in one queue.
    Duplicated(QueueId, Seq),
    /// Messages stand in another order.
    Reordered(QueueId, Seq),
    /// The content, or what belongs to it, is not what was published.
    Altered(QueueId, Seq),
    /// A group was kept in part; the number of its step.
    HalfGroup(usize),
    /// The next seq is one that was named before.
    SeqReused(QueueId, Seq),
    /// A durable reservation went back.
    ReservationLost(QueueId, Seq),
    /// A message that was delivered would be handed out as new.
    NotFlagged(QueueId, Seq),
    /// META records are not a prefix that holds the confirmed ones.
    Meta,
    /// Each message is right for itself, but no prefix of the steps gives this state.
    NotAPrefix,
}

/// What was done to a store since it was last known exactly.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    base: State,
    steps: Vec<Vec<Event>>,
    confirmed_count: usize,
    /// Messages that were handed to a consumer.
    delivered: BTreeSet<(QueueId, Seq)>,
}

/// How often a message can be there: what the sets know about one (queue, seq).
struct Fate {
    message: Message,
    /// `None`: in the base.
    published_at: Option<usize>,
    /// First step that settled it or deleted its queue.
    gone_at: Option<usize>,
}

impl History {
    /// Adds a step; answers its number.
    pub(super) fn push(&mut self, events: Vec<Event>) -> usize {
        self.steps.push(events);
        self.steps.len() - 1
    }

    /// The first `count` steps are durable.
    pub(super) fn confirm(&mut self, count: usize) {
        assert!(
            count <= self.steps.len(),
            "only steps that were made can be confirmed"
        );
        self.confirmed_count = self.confirmed_count.max(count);
    }

    /// Steps so far.
    pub(super) fn step_count(&self) -> usize {
        self.steps.len()
    }

    /// A message was handed to a consumer.
    pub(super) fn deliver(&mut self, queue: QueueId, seq: Seq) {
        self.delivered.insert((queue, seq));
    }

    /// The state after all steps.
    pub(super) fn latest(&self) -> State {
        self.after(self.steps.len())
    }

    fn after(&self, count: usize) -> State {
        let mut state = self.base.clone();
        let events = self.steps.iter().take(count).flatten();
        events.for_each(|event| state.apply(event));
        state
    }

    /// Judges `observed`. Answers how many steps survived.
    pub(super) fn check(&self, observed: &Observed) -> Result<usize, Vec<Complaint>> {
        let mut complaints = self.check_sets(observed);
        let kept = (self.confirmed_count..=self.steps.len())
            .rev()
            .find(|count| is_same(&self.after(*count), observed));
        if kept.is_none() && complaints.is_empty() {
            complaints.push(Complaint::NotAPrefix);
        }
        match kept {
            Some(count) if complaints.is_empty() => Ok(count),
            _ => Err(complaints),
        }
    }

    /// Goes on from a recovered store that kept `count` steps: all of it is certain now.
    pub(super) fn resolve(&self, count: usize) -> Self {
        let mut base = self.after(count);
        // Recovery put the tails above what may have been delivered; from here on that is where they are.
        base.queues
            .values_mut()
            .for_each(|queue| queue.next_seq = queue.tail());
        let is_there = |(queue, seq): &(QueueId, Seq)| {
            base.queues
                .get(queue)
                .is_some_and(|q| q.messages.contains_key(seq))
        };
        Self {
            delivered: self
                .delivered
                .iter()
                .filter(|key| is_there(key))
                .copied()
                .collect(),
            base,
            steps: Vec::new(),
            confirmed_count: 0,
        }
    }

    fn check_sets(&self, observed: &Observed) -> Vec<Complaint> {
        let mut complaints = Vec::new();
        self.check_queues(observed, &mut complaints);
        let fates = self.fates();
        for queue in &observed.queues {
            self.check_entries(queue, &fates, &mut complaints);
            self.check_tail(queue, &mut complaints);
        }
        self.check_confirmed(observed, &fates, &mut complaints);
        self.check_groups(observed, &fates, &mut complaints);
        self.check_meta(observed, &mut complaints);
        complaints
    }

    fn is_certain(&self, step: Option<usize>) -> bool {
        step.is_none_or(|step| step < self.confirmed_count)
    }

    /// Which queues were created when and deleted when.
    fn lives(&self) -> BTreeMap<QueueId, (Option<usize>, Option<usize>)> {
        let mut lives: BTreeMap<_, _> = self
            .base
            .queues
            .keys()
            .map(|id| (*id, (None, None)))
            .collect();
        for (step, event) in self.numbered_events() {
            match event {
                Event::Created(_, id) => drop(lives.insert(*id, (Some(step), None))),
                Event::Deleted(_, id) => {
                    if let Some(life) = lives.get_mut(id) {
                        life.1 = Some(step);
                    }
                }
                _ => {}
            }
        }
        lives
    }

    fn numbered_events(&self) -> impl Iterator<Item = (usize, &Event)> {
        let steps = self.steps.iter().enumerate();
        steps.flat_map(|(step, events)| events.iter().map(move |event| (step, event)))
    }

    fn check_queues(&self, observed: &Observed, complaints: &mut Vec<Complaint>) {
        let lives = self.lives();
        let seen: BTreeSet<QueueId> = observed.queues.iter().map(|queue| queue.id).collect();
        for id in &seen {
            let is_possible = lives
                .get(id)
                .is_some_and(|(_, deleted)| deleted.is_none() || !self.is_certain(*deleted));
            if !is_possible {
                complaints.push(Complaint::QueueInvented(*id));
            }
        }
        for (id, (created, deleted)) in &lives {
            if self.is_certain(*created) && deleted.is_none() && !seen.contains(id) {
                complaints.push(Complaint::QueueLost(*id));
            }
        }
    }

    fn fates(&self) -> BTreeMap<(QueueId, Seq), Fate> {
        let mut fates = BTreeMap::new();
        for (id, queue) in &self.base.queues {
            for (seq, message) in &queue.messages {
                let fate = Fate {
                    message: *message,
                    published_at: None,
                    gone_at: None,
                };
                fates.insert((*id, *seq), fate);
            }
        }
        for (step, event) in self.numbered_events() {
            match event {
                Event::Published {
                    refs,
                    body,
                    priority,
                } => {
                    for (id, seq, expires_at_ms) in refs {
                        let message = Message {
                            body: *body,
                            expires_at_ms: *expires_at_ms,
                            priority: *priority,
                            delivery_count: 0,
                            is_redelivered: false,
                        };
                        let fate = Fate {
                            message,
                            published_at: Some(step),
                            gone_at: None,
                        };
                        fates.insert((*id, *seq), fate);
                    }
                }
                Event::Settled { queue, ranges } => {
                    for range in ranges {
                        let gone = fates.range_mut((*queue, range.first)..=(*queue, range.last));
                        gone.for_each(|(_, fate)| fate.gone_at = fate.gone_at.or(Some(step)));
                    }
                }
                Event::Deleted(_, id) => {
                    let gone = fates.range_mut((*id, Seq(0))..=(*id, Seq(u64::MAX)));
                    gone.for_each(|(_, fate)| fate.gone_at = fate.gone_at.or(Some(step)));
                }
                _ => {}
            }
        }
        fates
    }

    fn check_entries(
        &self,
        queue: &ObservedQueue,
        fates: &BTreeMap<(QueueId, Seq), Fate>,
        complaints: &mut Vec<Complaint>,
    ) {
        let (mut last, mut bodies) = (None, BTreeSet::new());
        let ours = || fates.range((queue.id, Seq(0))..=(queue.id, Seq(u64::MAX)));
        for entry in &queue.entries {
            let seq = entry.seq;
            if entry.body.is_some_and(|body| !bodies.insert(body)) || last == Some(seq) {
                complaints.push(Complaint::Duplicated(queue.id, seq));
            } else if last.is_some_and(|last| last > seq) {
                complaints.push(Complaint::Reordered(queue.id, seq));
            }
            last = Some(seq);
            let Some(fate) = fates.get(&(queue.id, seq)) else {
                complaints.push(Complaint::Invented(queue.id, seq));
                continue;
            };
            if fate.gone_at.is_some() && self.is_certain(fate.gone_at) {
                complaints.push(Complaint::Resurrected(queue.id, seq));
            }
            let is_right = entry.body == Some(fate.message.body)
                && entry.expires_at_ms == fate.message.expires_at_ms
                && entry.priority == fate.message.priority;
            if !is_right {
                let is_another = ours()
                    .any(|(key, other)| key.1 != seq && Some(other.message.body) == entry.body);
                complaints.push(if is_another {
                    Complaint::Reordered(queue.id, seq)
                } else {
                    Complaint::Altered(queue.id, seq)
                });
            }
            let is_delivered = self.delivered.contains(&(queue.id, seq));
            if is_delivered && seq >= queue.reserved_upto && !entry.is_redelivered {
                complaints.push(Complaint::NotFlagged(queue.id, seq));
            }
        }
    }

    fn check_tail(&self, queue: &ObservedQueue, complaints: &mut Vec<Complaint>) {
        let certain = self.after(self.confirmed_count);
        let Some(expected) = certain.queues.get(&queue.id) else {
            return;
        };
        // A clean stop that is not certain yet may have lowered the reservation to the exact value.
        let is_exact_possible = self
            .steps
            .iter()
            .skip(self.confirmed_count)
            .flatten()
            .any(|event| matches!(event, Event::Exact { queue: id, .. } if *id == queue.id));
        let tail = if is_exact_possible {
            expected.next_seq
        } else {
            expected.tail()
        };
        if queue.next_seq < tail {
            complaints.push(Complaint::SeqReused(queue.id, queue.next_seq));
        }
        if queue.reserved_upto < expected.reserved_upto && !is_exact_possible {
            complaints.push(Complaint::ReservationLost(queue.id, queue.reserved_upto));
        }
    }

    fn check_confirmed(
        &self,
        observed: &Observed,
        fates: &BTreeMap<(QueueId, Seq), Fate>,
        complaints: &mut Vec<Complaint>,
    ) {
        let seen = keys(observed);
        for (key, fate) in fates {
            let is_confirmed = self.is_certain(fate.published_at) && fate.gone_at.is_none();
            if is_confirmed && !seen.contains(key) {
                complaints.push(Complaint::Lost(key.0, key.1));
            }
        }
    }

    /// Looks for uncertain steps of which one effect is visible and another is not. An effect that a later step
    /// hides says nothing.
    fn check_groups(
        &self,
        observed: &Observed,
        fates: &BTreeMap<(QueueId, Seq), Fate>,
        complaints: &mut Vec<Complaint>,
    ) {
        let seen = keys(observed);
        let exists = |id: QueueId| observed.queues.iter().any(|queue| queue.id == id);
        for (step, events) in self.steps.iter().enumerate().skip(self.confirmed_count) {
            let mut effects = Vec::new();
            for ((id, seq), fate) in fates.iter().filter(|((id, _), _)| exists(*id)) {
                let is_seen = seen.contains(&(*id, *seq));
                let is_ours = fate.published_at == Some(step) && fate.gone_at.is_none();
                let is_settled_here = events.iter().any(|event| {
                    matches!(event, Event::Settled { queue, ranges } if queue == id
                        && ranges.iter().any(|r| r.first <= *seq && *seq <= r.last))
                });
                if is_ours {
                    effects.push(is_seen);
                } else if fate.gone_at == Some(step)
                    && is_settled_here
                    && self.is_certain(fate.published_at)
                {
                    effects.push(!is_seen);
                }
            }
            if effects.contains(&true) && effects.contains(&false) {
                complaints.push(Complaint::HalfGroup(step));
            }
        }
    }

    fn check_meta(&self, observed: &Observed, complaints: &mut Vec<Complaint>) {
        let certain_count = self.after(self.confirmed_count).meta.len();
        let all = self.latest().meta;
        if !all.starts_with(&observed.meta) || observed.meta.len() < certain_count {
            complaints.push(Complaint::Meta);
        }
    }
}

fn keys(observed: &Observed) -> BTreeSet<(QueueId, Seq)> {
    let queues = observed.queues.iter();
    queues
        .flat_map(|queue| queue.entries.iter().map(|entry| (queue.id, entry.seq)))
        .collect()
}

/// True when the recovered store is in this state. A tail may be higher than the log shows: messages that are not
/// logged take seqs too, and a checkpoint knows them.
fn is_same(state: &State, observed: &Observed) -> bool {
    let mut expected = observe(state);
    if expected.queues.len() != observed.queues.len() {
        return false;
    }
    for (expected, found) in expected.queues.iter_mut().zip(&observed.queues) {
        expected.next_seq = expected.next_seq.max(found.next_seq);
    }
    expected == *observed
}

/// What a perfect recovery of `state` finds.
pub(super) fn observe(state: &State) -> Observed {
    let queues = state.queues.iter().map(|(id, queue)| ObservedQueue {
        id: *id,
        next_seq: queue.tail(),
        reserved_upto: queue.reserved_upto,
        entries: queue
            .messages
            .iter()
            .map(|(seq, message)| ObservedEntry {
                seq: *seq,
                body: Some(message.body),
                expires_at_ms: message.expires_at_ms,
                priority: message.priority,
                delivery_count: message.delivery_count,
                is_redelivered: message.is_redelivered,
            })
            .collect(),
    });
    Observed {
        queues: queues.collect(),
        meta: state.meta.clone(),
    }
}
