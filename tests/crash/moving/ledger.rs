//! What is known of each message that moves, given what the client did and saw. Pure: no socket, no clock of its own.
//!
//! ```text
//!  a step of the client --asked--> (an answer on its channel) --received--> (a later publish confirmed) --sure--
//!  what a delivery says ----------------------------------------received--^                  a clean stop ^
//! ```
//! 1. The log has one order: what the broker told or answered before a publish was sent is in the log before that publish, so its
//!    confirm makes all of that sure. What is sure, no kill takes back.
//! 2. A message that was confirmed, or seen after a restart, exists from then on, until its acknowledgement was asked for.
//! 3. Sure are: an acknowledged message is gone; a history (`x-death`) goes on from what was seen; a message has failed so often.
//! 4. How often a message was rejected and has failed: as the client did since the counts were seen. Once the broker has ended, that
//!    is only the most it can be, what is sure the least; and one more failure, when the broker may have thought at its end that
//!    the client held the message.
//!
//! The client has one consumer of these queues at a time, so an answer to it means all that it asked before. What may be seen is
//! in [`super::judge`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::sighting::{Death, Sighting};
use super::terms::Terms;
use crate::crash::history::MessageId;
use crate::crash::oracle::{Kind, Violation};

/// One thing the client did or learnt.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// About to publish.
    Publish {
        /// The message.
        id: MessageId,
        /// What becomes of it.
        terms: Terms,
    },
    /// The broker confirmed it.
    Confirmed(MessageId),
    /// The client was handed it and holds it.
    Taken(Sighting),
    /// About to acknowledge it.
    Acked(MessageId),
    /// About to reject it, for good.
    Rejected(MessageId),
    /// About to give it back as a failure.
    Failed(MessageId),
    /// About to give it back otherwise.
    Returned(MessageId),
    /// The broker answered something asked after all of that.
    Synced,
    /// The broker was killed.
    Killed,
    /// The broker was asked to stop and did.
    Stopped,
}

impl Step {
    fn mentions(&self, wanted: MessageId) -> bool {
        match self {
            Self::Publish { id, .. }
            | Self::Confirmed(id)
            | Self::Acked(id)
            | Self::Rejected(id)
            | Self::Failed(id)
            | Self::Returned(id) => *id == wanted,
            Self::Taken(sighting) => sighting.id == Some(wanted),
            Self::Killed | Self::Stopped => true,
            Self::Synced => false,
        }
    }
}

/// What becomes sure, see (1).
#[derive(Clone, Debug)]
enum Fact {
    Gone,
    Failed(i64),
    Died(Vec<Death>),
}

/// A message that is not known to be gone.
#[derive(Debug)]
pub(super) struct Mortal {
    pub(super) terms: Terms,
    /// Its publish left after this time.
    pub(super) sent_ms: u64,
    /// The broker had it at this time.
    pub(super) confirmed_ms: Option<u64>,
    /// Place of the publish in the history.
    at: usize,
    /// It exists, see (2).
    pub(super) is_certain: bool,
    pub(super) is_acked: bool,
    /// It has been seen: what it waits for before it comes is over.
    pub(super) has_come: bool,
    /// The client holds it, out of this queue.
    pub(super) held_in: Option<String>,
    /// The broker did not end since it was last seen, so that the counts are as the most says, see (4).
    pub(super) is_exact: bool,
    pub(super) rejected_at_most: i64,
    pub(super) failed_at_least: i64,
    pub(super) failed_at_most: i64,
    /// The history that is sure.
    pub(super) deaths: Vec<Death>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(super) live: BTreeMap<MessageId, Mortal>,
    pub(super) gone: BTreeSet<MessageId>,
    /// All that was published to queues with a limit.
    pub(super) limited: BTreeMap<&'static str, BTreeSet<MessageId>>,
    asked: Vec<(MessageId, Fact)>,
    /// Let go by the client, without an answer, in a way that is no failure.
    let_go: BTreeSet<MessageId>,
    received: VecDeque<(usize, MessageId, Fact)>,
    pub(super) violations: Vec<Violation>,
    history: Vec<(u64, Step)>,
}

impl Ledger {
    /// Steps so far.
    pub(super) fn step_count(&self) -> usize {
        self.history.len()
    }

    /// The violations found since the last call.
    pub(crate) fn take_violations(&mut self) -> Vec<Violation> {
        std::mem::take(&mut self.violations)
    }

    /// Everything noted about a message, for a report.
    pub(super) fn story(&self, id: MessageId) -> Vec<String> {
        let about = self.history.iter().filter(|(_, step)| step.mentions(id));
        about
            .map(|(at_ms, step)| format!("{at_ms} ms: {step:?}"))
            .collect()
    }

    /// How often messages were seen that moved in each way.
    pub(crate) fn census(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (_, step) in &self.history {
            let Step::Taken(sighting) = step else {
                continue;
            };
            let reason = sighting.last.as_ref().map(|last| last.reason.clone());
            let failed = sighting.failures.map(|_| "failed".to_owned());
            let way = reason.or(failed).unwrap_or_else(|| "none".into());
            *counts
                .entry(format!("{way} in {}", sighting.queue))
                .or_default() += 1;
        }
        counts
    }

    /// Takes note of a step at this time.
    pub(crate) fn note(&mut self, now_ms: u64, step: Step) {
        match &step {
            Step::Publish { id, terms } => self.publish(*id, terms.clone(), now_ms),
            Step::Confirmed(id) => self.confirmed(*id, now_ms),
            Step::Taken(sighting) => self.taken(sighting),
            Step::Acked(id) => {
                if let Some(mortal) = self.let_go(*id) {
                    mortal.is_acked = true;
                    self.asked.push((*id, Fact::Gone));
                }
            }
            Step::Rejected(id) => {
                if let Some(mortal) = self.let_go(*id) {
                    mortal.rejected_at_most += 1;
                }
            }
            Step::Failed(id) => self.failed(*id),
            Step::Returned(id) => {
                self.let_go(*id);
            }
            Step::Synced => self.synced(),
            Step::Killed => self.ended(),
            Step::Stopped => {
                self.make_sure(usize::MAX);
                self.ended();
            }
        }
        self.history.push((now_ms, step));
    }

    fn publish(&mut self, id: MessageId, terms: Terms, now_ms: u64) {
        if terms.length_max.is_some() {
            self.limited.entry(terms.queue).or_default().insert(id);
        }
        let mortal = Mortal {
            terms,
            sent_ms: now_ms,
            confirmed_ms: None,
            at: self.history.len(),
            is_certain: false,
            is_acked: false,
            has_come: false,
            held_in: None,
            is_exact: true,
            rejected_at_most: 0,
            failed_at_least: 0,
            failed_at_most: 0,
            deaths: Vec::new(),
        };
        self.live.insert(id, mortal);
    }

    fn confirmed(&mut self, id: MessageId, now_ms: u64) {
        let Some(mortal) = self.live.get_mut(&id) else {
            return;
        };
        mortal.is_certain = true;
        mortal.confirmed_ms = Some(now_ms);
        let at = mortal.at;
        self.make_sure(at);
    }

    /// Everything in the log before `at` is durable now.
    fn make_sure(&mut self, at: usize) {
        while self
            .received
            .front()
            .is_some_and(|(received_at, ..)| *received_at < at)
        {
            let Some((_, id, fact)) = self.received.pop_front() else {
                return;
            };
            let Some(mortal) = self.live.get_mut(&id) else {
                continue;
            };
            match fact {
                Fact::Gone => self.is_gone(id),
                Fact::Failed(count) => mortal.failed_at_least = mortal.failed_at_least.max(count),
                Fact::Died(deaths) => mortal.deaths = deaths,
            }
        }
    }

    pub(super) fn is_gone(&mut self, id: MessageId) {
        self.live.remove(&id);
        self.gone.insert(id);
    }

    fn taken(&mut self, sighting: &Sighting) {
        let Some(id) = self.judge(sighting) else {
            return;
        };
        let at = self.history.len();
        let Some(mortal) = self.live.get_mut(&id) else {
            return;
        };
        self.let_go.remove(&id);
        mortal.held_in = Some(sighting.queue.clone());
        mortal.has_come = true;
        let died = Fact::Died(sighting.deaths.clone());
        self.received.push_back((at, id, died));
        // A dead one does not say how often it failed.
        if sighting.queue == mortal.terms.queue {
            let failures = sighting.failures.unwrap_or(0);
            mortal.failed_at_most = failures;
            mortal.rejected_at_most = sighting.rejected_count();
            mortal.is_exact = true;
            self.received.push_back((at, id, Fact::Failed(failures)));
        }
    }

    /// The client does not hold it any more.
    fn let_go(&mut self, id: MessageId) -> Option<&mut Mortal> {
        self.let_go.insert(id);
        let mortal = self.live.get_mut(&id)?;
        mortal.held_in = None;
        Some(mortal)
    }

    fn failed(&mut self, id: MessageId) {
        let Some(mortal) = self.let_go(id) else {
            return;
        };
        // What was seen when it was taken, and one more.
        mortal.failed_at_most += 1;
        let count = mortal.failed_at_most;
        self.let_go.remove(&id);
        self.asked.push((id, Fact::Failed(count)));
    }

    fn synced(&mut self) {
        let at = self.history.len();
        self.let_go.clear();
        for (id, fact) in std::mem::take(&mut self.asked) {
            self.received.push_back((at, id, fact));
        }
    }

    /// The process is gone, and the client's connection with it.
    fn ended(&mut self) {
        self.asked.clear();
        self.received.clear();
        let let_go = std::mem::take(&mut self.let_go);
        for (id, mortal) in &mut self.live {
            mortal.is_exact = false;
            if mortal.held_in.take().is_some() || let_go.contains(id) {
                mortal.failed_at_most += 1;
            }
        }
    }

    pub(super) fn complain(&mut self, kind: Kind, queue: &str, id: Option<MessageId>, why: &str) {
        self.violations.push(Violation {
            kind,
            queue: queue.to_owned(),
            id,
            detail: why.to_owned(),
        });
    }
}
