//! The checks on messages that move: on each one that is seen, and on what is missing after a restart.
//!
//! Times are bounds that no busy machine can break: a message that is *asked for* after it has expired must not come, and one that
//! is *seen* dead, or arrived, before its time cannot have begun its time when it was published.

use std::collections::BTreeMap;

use super::ledger::{Ledger, Mortal};
use super::sighting::{Cause, Death, Sighting};
use super::terms::{GRAVE, PAUSE, RETRY, Terms};
use crate::crash::history::MessageId;
use crate::crash::oracle::Kind;

/// The broker's clock and ours may differ by so much over the life of a message, rounding included.
pub(super) const CLOCK_SLACK_MS: u64 = 100;

/// What is wrong, and the words for it.
type Complaint = (Kind, String);

impl Ledger {
    /// Checks one message as it was handed out; its id, if it is one that may be there.
    pub(super) fn judge(&mut self, sighting: &Sighting) -> Option<MessageId> {
        let queue = &sighting.queue;
        let Some(id) = sighting.id else {
            let why = format!("no message of ours: {sighting:?}");
            self.complain(Kind::Invented, queue, None, &why);
            return None;
        };
        let Some(mortal) = self.live.get(&id) else {
            let (kind, why) = if self.gone.contains(&id) {
                (Kind::CameBack, "there again although it was acknowledged")
            } else {
                (Kind::Invented, "never published")
            };
            self.complain(kind, queue, Some(id), why);
            return None;
        };
        let complaints = self.faults(id, mortal, sighting);
        for (kind, why) in complaints {
            self.complain(kind, queue, Some(id), &why);
        }
        Some(id)
    }

    fn faults(&self, id: MessageId, mortal: &Mortal, sighting: &Sighting) -> Vec<Complaint> {
        let mut faults = Vec::new();
        if let Some(kind) = sighting.altered {
            faults.push((kind, "not as published".into()));
        }
        if let Some(other) = &mortal.held_in {
            faults.push((Kind::Duplicated, format!("and in {other} too")));
        }
        faults.extend(broken_history(mortal, sighting));
        if sighting.queue == mortal.terms.queue {
            faults.extend(overdue(mortal, sighting));
            faults.extend(wrong_history_at_home(mortal, sighting));
            faults.extend(wrong_count(mortal, sighting));
        } else if sighting.queue == GRAVE {
            faults.extend(self.wrong_death(id, mortal, sighting));
        } else {
            let why = format!("was published to {}", mortal.terms.queue);
            faults.push((Kind::Invented, why));
        }
        faults
    }

    /// Dead, once, of something that its queue kills for.
    fn wrong_death(
        &self,
        id: MessageId,
        mortal: &Mortal,
        sighting: &Sighting,
    ) -> Option<Complaint> {
        let terms = &mortal.terms;
        let wrong = |why: String| Some((Kind::WrongDeaths, why));
        let [death] = sighting.deaths.as_slice() else {
            return wrong(format!("died once, says {:?}", sighting.deaths));
        };
        if death.count != 1 || death.cause.queue != terms.queue {
            return wrong(format!("died once in {}, says {death:?}", terms.queue));
        }
        if sighting.failures.is_some() {
            let why = "a count of failures in a classic queue".into();
            return Some((Kind::WrongCount, why));
        }
        let reason = death.cause.reason.as_str();
        let can_be = match reason {
            "expired" => {
                let due_ms = terms.ttl_ms.map(|ttl_ms| mortal.sent_ms + ttl_ms);
                if due_ms.is_some_and(|due_ms| sighting.seen_ms + CLOCK_SLACK_MS < due_ms) {
                    return Some((Kind::Early, "expired before its time".into()));
                }
                due_ms.is_some()
            }
            "maxlen" => self.can_be_pushed_out(id, terms),
            "delivery_limit" => terms
                .failures_max
                .is_some_and(|most| mortal.failed_at_most > i64::from(most)),
            "rejected" => mortal.rejected_at_most > 0 && !terms.is_retried,
            _ => false,
        };
        if can_be && terms.has_letters {
            return None;
        }
        wrong(format!("nothing happened to it that is called {reason}"))
    }

    /// So many were published behind it that it is over the limit of its queue.
    fn can_be_pushed_out(&self, id: MessageId, terms: &Terms) -> bool {
        terms.length_max.is_some_and(|most| {
            let published = self.limited.get(terms.queue);
            published.is_some_and(|ids| ids.range(id + 1..).take(most).count() == most)
        })
    }

    /// Messages that must have been found by now and were not.
    pub(super) fn missing(&self, now_ms: u64) -> Vec<MessageId> {
        let is_missing = |(id, mortal): (&MessageId, &Mortal)| {
            let terms = &mortal.terms;
            let is_over = |since_ms: u64, time_ms: u64| since_ms.saturating_add(time_ms) <= now_ms;
            let had_ms = mortal.confirmed_ms.unwrap_or(u64::MAX);
            let waits = !mortal.has_come
                && terms
                    .delay_ms
                    .is_some_and(|delay_ms| !is_over(had_ms, delay_ms));
            let can_expire = |ttl_ms| is_over(mortal.sent_ms, ttl_ms);
            let may_be_dropped = !terms.is_retried
                && !terms.has_letters
                && (terms.ttl_ms.is_some_and(can_expire) || self.can_be_pushed_out(*id, terms));
            let must_be = mortal.is_certain && !mortal.is_acked && !waits && !may_be_dropped;
            (must_be && mortal.held_in.is_none()).then_some(*id)
        };
        self.live.iter().filter_map(is_missing).collect()
    }

    /// After everything there is was taken, nobody else being at work: what is missing, and what is too long. From now on it is as
    /// it was found.
    pub(crate) fn conclude(&mut self, now_ms: u64) {
        for id in self.missing(now_ms) {
            let queue = self.live.get(&id).map_or("", |mortal| mortal.terms.queue);
            let why = "exists, was not acknowledged, is in no queue";
            self.complain(Kind::Lost, queue, Some(id), why);
            self.is_gone(id);
        }
        self.check_lengths();
        let mut gone = Vec::new();
        for (id, mortal) in &mut self.live {
            if mortal.held_in.is_some() {
                mortal.is_certain = true;
                mortal.is_acked = false;
                mortal.confirmed_ms.get_or_insert(now_ms);
            } else if mortal.is_acked {
                gone.push(*id);
            }
        }
        for id in gone {
            self.is_gone(id);
        }
    }

    fn check_lengths(&mut self) {
        let mut lengths: BTreeMap<&str, (usize, usize, MessageId)> = BTreeMap::new();
        for (id, mortal) in &self.live {
            let terms = &mortal.terms;
            if let (Some(most), Some(held_in)) = (terms.length_max, &mortal.held_in)
                && held_in == terms.queue
            {
                let (count, _, last) = lengths.entry(terms.queue).or_insert((0, most, *id));
                *count += 1;
                *last = *id;
            }
        }
        let too_long = lengths
            .into_iter()
            .filter(|(_, (count, most, _))| count > most);
        let found: Vec<(String, usize, MessageId)> = too_long
            .map(|(queue, (count, _, last))| (queue.to_owned(), count, last))
            .collect();
        for (queue, count, last) in found {
            let why = format!("has {count} messages, more than its limit");
            self.complain(Kind::TooLong, &queue, Some(last), &why);
        }
    }
}

/// Alive though its time was over when it was asked for, or there before its time.
fn overdue(mortal: &Mortal, sighting: &Sighting) -> Option<Complaint> {
    let came_ms = mortal.confirmed_ms?;
    let terms = &mortal.terms;
    if let Some(ttl_ms) = terms.ttl_ms
        && sighting.asked_ms > came_ms + ttl_ms + CLOCK_SLACK_MS
    {
        return Some((Kind::Overdue, "should have expired".into()));
    }
    let delay_ms = terms.delay_ms?;
    let is_early = sighting.seen_ms + CLOCK_SLACK_MS < mortal.sent_ms + delay_ms;
    is_early.then(|| (Kind::Early, "should wait".into()))
}

/// What a message still in its queue says of its deaths.
fn wrong_history_at_home(mortal: &Mortal, sighting: &Sighting) -> Option<Complaint> {
    let counts: Vec<(&str, &str, i64)> = sighting
        .deaths
        .iter()
        .map(|death| {
            let cause = &death.cause;
            (cause.queue.as_str(), cause.reason.as_str(), death.count)
        })
        .collect();
    let has_form = match counts.as_slice() {
        [] => true,
        // As often as it was rejected it has paused.
        [(PAUSE, "expired", paused), (RETRY, "rejected", rejected)] => {
            mortal.terms.is_retried && paused == rejected
        }
        _ => false,
    };
    let why = || {
        let word = if mortal.is_exact { "" } else { " at most" };
        let at_most = mortal.rejected_at_most;
        format!("rejected {at_most} times{word}, says {counts:?}")
    };
    let (count, at_most) = (sighting.rejected_count(), mortal.rejected_at_most);
    // The least is what the sure history says.
    let is_right = has_form && count <= at_most && (count == at_most || !mortal.is_exact);
    (!is_right).then(|| (Kind::WrongDeaths, why()))
}

/// A history that does not go on from what is sure of it, or headers that contradict each other.
fn broken_history(mortal: &Mortal, sighting: &Sighting) -> Option<Complaint> {
    let deaths = &sighting.deaths;
    let goes_on = |known: &Death| {
        deaths.iter().any(|death| {
            death.cause == known.cause && death.time == known.time && death.count >= known.count
        })
    };
    if let Some(known) = mortal.deaths.iter().find(|known| !goes_on(known)) {
        return Some((Kind::WrongDeaths, format!("does not go on from {known:?}")));
    }
    let last = deaths.first().map(|death| &death.cause);
    let is_first_at_home = |first: &Cause| first.queue == mortal.terms.queue;
    let is_first_right = match &sighting.first {
        None => deaths.is_empty(),
        Some(first) => is_first_at_home(first) && deaths.iter().any(|death| death.cause == *first),
    };
    let is_right = sighting.last.as_ref() == last && is_first_right;
    let why = || {
        let (first, last) = (&sighting.first, &sighting.last);
        format!("{deaths:?}, first {first:?}, last {last:?}")
    };
    (!is_right).then(|| (Kind::WrongDeaths, why()))
}

/// A count of failures that is none of what can be.
fn wrong_count(mortal: &Mortal, sighting: &Sighting) -> Option<Complaint> {
    let count = sighting.failures.unwrap_or(0);
    let most = mortal.terms.failures_max.map_or(0, i64::from);
    let at_most = mortal.failed_at_most.min(most);
    let at_least = if mortal.is_exact {
        at_most
    } else {
        mortal.failed_at_least.min(most)
    };
    if !(at_least..=at_most).contains(&count) {
        let why = format!("failed {at_least} to {at_most} times, says {count}");
        return Some((Kind::WrongCount, why));
    }
    let is_flag_missing = count > 0 && !sighting.is_redelivered;
    is_flag_missing.then(|| (Kind::WrongRedelivered, "failed, but no flag".into()))
}
