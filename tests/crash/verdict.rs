//! The checks on what was found in the queues, after a restart or in between.
//!
//! Each queue is read from head to tail while nobody else works on it. Afterwards nothing is unknown any more: a message was there
//! or it was not, and the oracle goes on from that.

use std::collections::{BTreeMap, BTreeSet};

use super::history::{ChannelKey, MessageId, Observed, TxId};
use super::oracle::{Existence, Kind, Oracle, Settlement};

/// The contents of all queues, each from head to tail.
pub(crate) type Readout = BTreeMap<String, Vec<Observed>>;

/// What the presence of a message in a queue says about its publish.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Evidence {
    Happened,
    DidNot,
    Silent,
}

impl Oracle {
    /// Checks the contents of all queues and learns from them. Everything in the readout counts as delivered and given back.
    pub(crate) fn check(&mut self, readout: &Readout) {
        let present: BTreeMap<String, BTreeSet<MessageId>> = readout
            .iter()
            .map(|(queue, list)| (queue.clone(), ids(list).collect()))
            .collect();
        for (queue, list) in readout {
            self.check_each(queue, list);
            self.check_order(queue, list);
        }
        self.resolve_txs(&present);
        self.resolve_publishes(&present);
        self.check_missing(&present);
        for (queue, list) in readout {
            self.learn(queue, list);
        }
        self.is_flag_exact = true;
    }

    /// Looks, number and flag of every message, and whether it may be there at all.
    fn check_each(&mut self, queue: &str, list: &[Observed]) {
        let mut seen = BTreeSet::new();
        for observed in list {
            let Some(id) = self.check_looks(queue, observed) else {
                continue;
            };
            if !seen.insert(id) {
                self.complain(
                    Kind::Duplicated,
                    queue,
                    Some(id),
                    "in the queue more than once",
                );
                continue;
            }
            let existence = self
                .sent
                .get(&id)
                .map_or(Existence::Never, |sent| sent.existence);
            let Some(entry) = self.queues.get(queue).and_then(|entries| entries.get(&id)) else {
                continue;
            };
            let (settlement, was_delivered) = (entry.settlement, entry.was_delivered);
            if settlement == Settlement::Settled || existence == Existence::Never {
                let detail = format!("there again although {settlement:?}, publish {existence:?}");
                self.complain(Kind::CameBack, queue, Some(id), &detail);
            }
            if was_delivered && !observed.is_redelivered {
                self.complain(
                    Kind::WrongRedelivered,
                    queue,
                    Some(id),
                    "was delivered before; flag missing",
                );
            }
            if self.is_flag_exact && !was_delivered && observed.is_redelivered {
                self.complain(
                    Kind::WrongRedelivered,
                    queue,
                    Some(id),
                    "was never delivered; flag set",
                );
            }
        }
    }

    /// Higher levels first; in each level the ranked messages first, in their order; then the others, each publisher's in its order.
    fn check_order(&mut self, queue: &str, list: &[Observed]) {
        let mut last_level = u8::MAX;
        let mut last_rank = None;
        let mut last_of: BTreeMap<ChannelKey, MessageId> = BTreeMap::new();
        for id in ids(list) {
            let Some(sent) = self.sent.get(&id) else {
                continue;
            };
            let Some(entry) = self.queues.get(queue).and_then(|entries| entries.get(&id)) else {
                continue;
            };
            let level = self.level(queue, sent);
            if level < last_level {
                last_level = level;
                last_rank = None;
                last_of.clear();
            }
            let is_in_order = match entry.rank {
                _ if level > last_level => false,
                Some(rank) => {
                    let is_behind = last_rank.is_none_or(|last| last < rank);
                    last_rank = Some(rank);
                    is_behind && last_of.is_empty()
                }
                None => last_of
                    .insert(sent.publisher, id)
                    .is_none_or(|last| last < id),
            };
            if !is_in_order {
                self.complain(Kind::Reordered, queue, Some(id), "before its predecessor");
            }
        }
    }

    /// What the queues say about a message in one of them.
    fn evidence(
        &self,
        present: &BTreeMap<String, BTreeSet<MessageId>>,
        queue: &str,
        id: MessageId,
    ) -> Evidence {
        if present.get(queue).is_some_and(|ids| ids.contains(&id)) {
            return Evidence::Happened;
        }
        let entry = self.queues.get(queue).and_then(|entries| entries.get(&id));
        match entry.map(|entry| entry.settlement) {
            Some(Settlement::Open) => Evidence::DidNot,
            // Absent, but perhaps only because it was settled.
            _ => Evidence::Silent,
        }
    }

    fn is_persistent(&self, id: MessageId) -> bool {
        self.sent.get(&id).is_some_and(|sent| sent.is_persistent)
    }

    /// Commits that were not answered happened as a whole or not at all.
    fn resolve_txs(&mut self, present: &BTreeMap<String, BTreeSet<MessageId>>) {
        let asked = |(id, tx): (&TxId, &super::oracle::Tx)| tx.commit_at.is_some().then_some(*id);
        let pending: Vec<TxId> = self.txs.iter().filter_map(asked).collect();
        for id in pending {
            let Some(tx) = self.txs.get(&id) else {
                continue;
            };
            let mut evidence = Vec::new();
            for publish in &tx.publishes {
                let sent = self.sent.get(publish);
                // Transient messages are gone, whatever happened.
                for queue in sent
                    .iter()
                    .filter(|sent| sent.is_persistent)
                    .flat_map(|sent| &sent.targets)
                {
                    evidence.push((
                        queue.clone(),
                        *publish,
                        self.evidence(present, queue, *publish),
                    ));
                }
            }
            for (queue, acked) in &tx.acks {
                if !self.is_persistent(*acked) {
                    continue;
                }
                let is_present = present.get(queue).is_some_and(|ids| ids.contains(acked));
                let said = if is_present {
                    Evidence::DidNot
                } else {
                    Evidence::Happened
                };
                evidence.push((queue.clone(), *acked, said));
            }
            let find = |wanted| evidence.iter().find(|(.., said)| *said == wanted);
            let (happened, did_not) = (find(Evidence::Happened), find(Evidence::DidNot));
            if let (Some((queue, publish, _)), Some((other_queue, other, _))) = (happened, did_not)
            {
                let detail =
                    format!("took place here, but not for message {other} in queue {other_queue}");
                let (queue, publish) = (queue.clone(), *publish);
                self.complain(Kind::TornTx, &queue, Some(publish), &detail);
            }
            if happened.is_some() {
                self.committed(id);
            } else {
                self.undo(id);
            }
        }
    }

    /// Publishes that were not confirmed reached all their queues or none.
    fn resolve_publishes(&mut self, present: &BTreeMap<String, BTreeSet<MessageId>>) {
        let is_unknown = |(id, sent): (&MessageId, &super::oracle::Sent)| {
            (sent.existence == Existence::Unknown).then_some(*id)
        };
        let unknown: Vec<MessageId> = self.sent.iter().filter_map(is_unknown).collect();
        for id in unknown {
            let Some(sent) = self.sent.get(&id) else {
                continue;
            };
            let said: Vec<(String, Evidence)> = sent
                .targets
                .iter()
                .map(|queue| (queue.clone(), self.evidence(present, queue, id)))
                .collect();
            let did_happen = said.iter().any(|(_, said)| *said == Evidence::Happened);
            let missing = said.into_iter().find(|(_, said)| *said == Evidence::DidNot);
            if let (true, Some((queue, _))) = (did_happen, &missing) {
                self.complain(
                    Kind::TornFanout,
                    queue,
                    Some(id),
                    "in another queue, but not in this one",
                );
            }
            if let Some(sent) = self.sent.get_mut(&id) {
                // A torn one is not complained about again as lost.
                sent.existence = if did_happen && missing.is_none() {
                    Existence::Certain
                } else {
                    Existence::Never
                };
            }
        }
    }

    /// Certain, open messages must be there.
    fn check_missing(&mut self, present: &BTreeMap<String, BTreeSet<MessageId>>) {
        let mut lost = Vec::new();
        for (queue, entries) in &self.queues {
            let Some(ids) = present.get(queue) else {
                continue;
            };
            for (id, entry) in entries {
                let is_certain = self
                    .sent
                    .get(id)
                    .is_some_and(|sent| sent.existence == Existence::Certain);
                if is_certain && entry.settlement == Settlement::Open && !ids.contains(id) {
                    lost.push((queue.clone(), *id));
                }
            }
        }
        for (queue, id) in lost {
            self.complain(
                Kind::Lost,
                &queue,
                Some(id),
                "confirmed, not acknowledged, not there",
            );
        }
    }

    /// From now on it is as it was found.
    fn learn(&mut self, queue: &str, list: &[Observed]) {
        let Some(entries) = self.queues.get_mut(queue) else {
            return;
        };
        let ranks: BTreeMap<MessageId, usize> = list
            .iter()
            .enumerate()
            .filter_map(|(rank, observed)| Some((observed.id?, rank)))
            .collect();
        for (id, entry) in entries {
            match ranks.get(id) {
                Some(rank) => {
                    entry.settlement = Settlement::Open;
                    entry.was_delivered = true;
                    entry.rank = Some(*rank);
                    if let Some(sent) = self.sent.get_mut(id) {
                        sent.existence = Existence::Certain;
                    }
                }
                None => entry.settlement = Settlement::Settled,
            }
        }
    }
}

fn ids(list: &[Observed]) -> impl Iterator<Item = MessageId> {
    list.iter().filter_map(|observed| observed.id)
}
