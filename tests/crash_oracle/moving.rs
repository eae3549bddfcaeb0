//! Doctored histories of messages that move.

use crate::crash::moving::ledger::{Ledger, Step};
use crate::crash::moving::sighting::{Cause, Death, Sighting};
use crate::crash::moving::terms::{ARRIVALS, COUNTED, GRAVE, PAUSE, RETRY, Terms, retried};
use crate::crash::oracle::Kind;

/// A history under construction; each step takes a millisecond.
struct Tale {
    ledger: Ledger,
    now_ms: u64,
}

fn fading(ttl_ms: u64) -> Terms {
    Terms {
        ttl_ms: Some(ttl_ms),
        has_letters: true,
        ..Terms::staying_in("fading")
    }
}

fn narrow(length_max: usize) -> Terms {
    Terms {
        length_max: Some(length_max),
        has_letters: true,
        ..Terms::staying_in("narrow")
    }
}

fn counted() -> Terms {
    Terms {
        failures_max: Some(2),
        has_letters: true,
        ..Terms::staying_in(COUNTED)
    }
}

fn delayed(delay_ms: u64) -> Terms {
    Terms {
        delay_ms: Some(delay_ms),
        ..Terms::staying_in(ARRIVALS)
    }
}

fn without_letters(terms: Terms) -> Terms {
    Terms {
        has_letters: false,
        ..terms
    }
}

fn cause(queue: &str, reason: &str) -> Cause {
    Cause {
        queue: queue.to_owned(),
        reason: reason.to_owned(),
    }
}

/// At second 9.
fn death(queue: &str, reason: &str, count: i64) -> Death {
    Death {
        cause: cause(queue, reason),
        count,
        time: 9,
    }
}

/// A sound one, never dead and never failed.
fn seen(queue: &str, id: u64) -> Sighting {
    Sighting {
        queue: queue.to_owned(),
        id: Some(id),
        asked_ms: 0,
        seen_ms: 0,
        is_redelivered: true,
        deaths: Vec::new(),
        first: None,
        last: None,
        failures: None,
        altered: None,
    }
}

/// In the grave, or on its way round; the latest death first, the earliest one last.
fn dead(queue: &str, id: u64, deaths: &[Death]) -> Sighting {
    Sighting {
        deaths: deaths.to_vec(),
        first: deaths.last().map(|death| death.cause.clone()),
        last: deaths.first().map(|death| death.cause.clone()),
        ..seen(queue, id)
    }
}

/// Buried for this reason.
fn buried(id: u64, queue: &str, reason: &str) -> Sighting {
    dead(GRAVE, id, &[death(queue, reason, 1)])
}

fn failed(id: u64, count: i64) -> Sighting {
    Sighting {
        failures: (count > 0).then_some(count),
        ..seen(COUNTED, id)
    }
}

/// Back in its queue after so many rejections.
fn retried_times(id: u64, count: i64) -> Sighting {
    let deaths = [
        death(PAUSE, "expired", count),
        death(RETRY, "rejected", count),
    ];
    dead(RETRY, id, &deaths)
}

impl Tale {
    fn new() -> Self {
        Self {
            ledger: Ledger::default(),
            now_ms: 1000,
        }
    }

    /// These messages, confirmed.
    fn published(terms: &Terms, ids: &[u64]) -> Self {
        ids.iter().fold(Self::new(), |tale, id| {
            tale.publish(*id, terms).step(Step::Confirmed(*id))
        })
    }

    fn step(mut self, step: Step) -> Self {
        self.now_ms += 1;
        self.ledger.note(self.now_ms, step);
        self
    }

    fn publish(self, id: u64, terms: &Terms) -> Self {
        let terms = terms.clone();
        self.step(Step::Publish { id, terms })
    }

    fn take(self, sighting: Sighting) -> Self {
        let (asked_ms, seen_ms) = (self.now_ms, self.now_ms + 1);
        self.step(Step::Taken(Sighting {
            asked_ms,
            seen_ms,
            ..sighting
        }))
    }

    /// A confirm that makes all before it sure.
    fn sure(self) -> Self {
        let stays = Terms::staying_in("elsewhere");
        self.step(Step::Synced)
            .publish(99, &stays)
            .step(Step::Confirmed(99))
            .step(Step::Acked(99))
    }

    fn later(mut self, by_ms: u64) -> Self {
        self.now_ms += by_ms;
        self
    }

    fn killed(self) -> Self {
        self.step(Step::Killed)
    }

    /// Taken and given back, as when a restart has shown it.
    fn shown(self, sighting: Sighting) -> Self {
        let id = sighting.id.expect("ours");
        let mut tale = self.take(sighting);
        tale.ledger.conclude(tale.now_ms);
        tale.step(Step::Returned(id))
    }

    /// After everything was taken; exactly these complaints.
    #[track_caller]
    fn check(mut self, expected: &[(Kind, u64)]) {
        self.ledger.conclude(self.now_ms);
        let violations = self.ledger.take_violations();
        let found: Vec<(Kind, u64)> = violations
            .iter()
            .map(|violation| (violation.kind, violation.id.unwrap_or(0)))
            .collect();
        assert_eq!(found, expected, "{violations:#?}");
    }
}

#[test]
fn a_confirmed_message_is_in_exactly_one_queue() {
    let tale = || Tale::published(&fading(50), &[1]).killed();
    tale().take(seen("fading", 1)).check(&[]);
    let late = || tale().later(60);
    late().take(buried(1, "fading", "expired")).check(&[]);
    late().check(&[(Kind::Lost, 1)]);
    late()
        .take(seen("fading", 1))
        .take(buried(1, "fading", "expired"))
        .check(&[(Kind::Duplicated, 1)]);
    late()
        .take(buried(1, "fading", "expired"))
        .take(buried(1, "fading", "expired"))
        .check(&[(Kind::Duplicated, 1)]);
    // Not confirmed: there or not, but if it was there, then for good.
    let unconfirmed = || Tale::new().publish(1, &fading(5000)).killed();
    unconfirmed().check(&[]);
    unconfirmed()
        .shown(seen("fading", 1))
        .killed()
        .check(&[(Kind::Lost, 1)]);
}

#[test]
fn strangers_and_altered_messages_are_noticed() {
    let tale = || Tale::published(&counted(), &[1]).killed();
    tale().take(seen(RETRY, 1)).check(&[(Kind::Invented, 1)]);
    let stranger = Tale::new().take(seen(RETRY, 7));
    stranger.check(&[(Kind::Invented, 7)]);
    let nobody = Sighting {
        id: None,
        ..seen(RETRY, 7)
    };
    Tale::new().take(nobody).check(&[(Kind::Invented, 0)]);
    let altered = Sighting {
        altered: Some(Kind::AlteredBody),
        ..failed(1, 0)
    };
    tale().take(altered).check(&[(Kind::AlteredBody, 1)]);
}

#[test]
fn the_time_of_a_message_goes_on_over_a_kill() {
    let tale = || Tale::published(&fading(1000), &[1]).killed();
    // As if its time began anew with the broker, or was forgotten.
    tale()
        .later(1200)
        .take(seen("fading", 1))
        .check(&[(Kind::Overdue, 1)]);
    tale().later(900).take(seen("fading", 1)).check(&[]);
    tale()
        .later(800)
        .take(buried(1, "fading", "expired"))
        .check(&[(Kind::Early, 1)]);
    tale()
        .later(1000)
        .take(buried(1, "fading", "expired"))
        .check(&[]);
}

#[test]
fn an_acknowledged_message_is_gone_once_that_is_sure() {
    let acked = |sighting| {
        let tale = Tale::published(&counted(), &[1]);
        tale.take(sighting).step(Step::Acked(1))
    };
    acked(failed(1, 0)).killed().check(&[]);
    acked(failed(1, 0)).killed().take(failed(1, 0)).check(&[]);
    acked(failed(1, 0))
        .sure()
        .killed()
        .take(failed(1, 0))
        .check(&[(Kind::CameBack, 1)]);
    // Answered, and the broker stopped by itself.
    acked(failed(1, 0))
        .step(Step::Synced)
        .step(Step::Stopped)
        .take(failed(1, 0))
        .check(&[(Kind::CameBack, 1)]);
    // Gone after one restart, there after the next.
    let mut tale = acked(failed(1, 0)).killed();
    tale.ledger.conclude(tale.now_ms);
    tale.killed()
        .take(failed(1, 0))
        .check(&[(Kind::CameBack, 1)]);
}

#[test]
fn a_queue_with_a_limit_keeps_the_newest() {
    let tale = || Tale::published(&narrow(2), &[1, 2, 3]).killed();
    let rest = |tale: Tale| tale.take(seen("narrow", 2)).take(seen("narrow", 3));
    rest(tale().take(buried(1, "narrow", "maxlen"))).check(&[]);
    rest(tale().take(seen("narrow", 1))).check(&[(Kind::TooLong, 3)]);
    // The one that was pushed out is not the oldest.
    tale()
        .take(seen("narrow", 1))
        .take(buried(2, "narrow", "maxlen"))
        .take(seen("narrow", 3))
        .check(&[(Kind::WrongDeaths, 2)]);
    // Without letters it is gone, and only that one.
    let tale = || Tale::published(&without_letters(narrow(2)), &[1, 2, 3]).killed();
    rest(tale()).check(&[]);
    tale()
        .take(seen("narrow", 1))
        .take(seen("narrow", 3))
        .check(&[(Kind::Lost, 2)]);
    rest(tale().take(buried(1, "narrow", "maxlen"))).check(&[(Kind::WrongDeaths, 1)]);
}

#[test]
fn a_policy_that_was_cleared_does_nothing() {
    let tale = || Tale::published(&Terms::staying_in("ruled"), &[1]).killed();
    tale().take(seen("ruled", 1)).check(&[]);
    tale().later(60_000).check(&[(Kind::Lost, 1)]);
    for reason in ["expired", "maxlen", "rejected", "delivery_limit"] {
        tale()
            .take(buried(1, "ruled", reason))
            .check(&[(Kind::WrongDeaths, 1)]);
    }
    // One that takes messages away, but not before their time.
    let tale = || Tale::published(&without_letters(fading(50)), &[1]).killed();
    tale().check(&[(Kind::Lost, 1)]);
    tale().later(50).check(&[]);
}

#[test]
fn the_history_of_a_dead_message_is_what_happened_to_it() {
    let tale = || Tale::published(&fading(0), &[1]).killed();
    let wrong = |sighting| tale().take(sighting).check(&[(Kind::WrongDeaths, 1)]);
    tale().take(buried(1, "fading", "expired")).check(&[]);
    wrong(buried(1, "fading", "maxlen"));
    wrong(buried(1, "fading", "rejected"));
    wrong(dead(GRAVE, 1, &[death("fading", "expired", 2)]));
    wrong(dead(GRAVE, 1, &[]));
    wrong(dead(
        GRAVE,
        1,
        &[death("fading", "expired", 1), death("fading", "maxlen", 1)],
    ));
    // Alive, and yet it died.
    wrong(dead("fading", 1, &[death("fading", "expired", 1)]));
    // The other headers say something else.
    let contradicted = |first: Option<Cause>, last: Option<Cause>| Sighting {
        first,
        last,
        ..buried(1, "fading", "expired")
    };
    let (is, other) = (cause("fading", "expired"), cause("fading", "maxlen"));
    wrong(contradicted(Some(is.clone()), Some(other.clone())));
    wrong(contradicted(Some(other), Some(is.clone())));
    wrong(contradicted(None, Some(is)));
}

#[test]
fn a_history_that_is_sure_goes_on() {
    let rejected = |tale: Tale, count| tale.take(retried_times(1, count)).step(Step::Rejected(1));
    let once = || {
        let tale = Tale::published(&retried(), &[1]);
        tale.take(seen(RETRY, 1)).step(Step::Rejected(1))
    };
    // Whatever came last may be forgotten.
    let twice = || rejected(once(), 1);
    twice().killed().take(seen(RETRY, 1)).check(&[]);
    twice().killed().take(retried_times(1, 1)).check(&[]);
    twice().killed().take(retried_times(1, 2)).check(&[]);
    twice().killed().check(&[(Kind::Lost, 1)]);
    // It was never rejected as often as that.
    let wrong = |tale: Tale, sighting| tale.take(sighting).check(&[(Kind::WrongDeaths, 1)]);
    wrong(twice().killed(), retried_times(1, 3));
    // As long as the broker lives, it forgets nothing.
    twice().take(retried_times(1, 2)).check(&[]);
    wrong(twice(), retried_times(1, 1));
    wrong(twice(), seen(RETRY, 1));
    // What was seen before a confirm is not forgotten.
    let sure = || twice().sure().killed();
    sure().take(retried_times(1, 1)).check(&[]);
    sure().take(retried_times(1, 2)).check(&[]);
    wrong(sure(), seen(RETRY, 1));
    let mut at_another_time = retried_times(1, 1);
    at_another_time.deaths[1].time += 1;
    wrong(sure(), at_another_time);
    // More pauses than rejections, and the other way round.
    let mut odd = retried_times(1, 2);
    odd.deaths[0].count = 1;
    wrong(sure(), odd);
    let mut odd = retried_times(1, 1);
    odd.deaths[0].count = 2;
    wrong(sure(), odd);
}

#[test]
fn a_rejected_message_is_dead_and_no_other_is() {
    let tale = || Tale::published(&counted(), &[1]);
    let rejected = || tale().take(failed(1, 0)).step(Step::Rejected(1)).killed();
    rejected().take(buried(1, COUNTED, "rejected")).check(&[]);
    rejected().take(failed(1, 0)).check(&[]);
    rejected().check(&[(Kind::Lost, 1)]);
    tale()
        .killed()
        .take(buried(1, COUNTED, "rejected"))
        .check(&[(Kind::WrongDeaths, 1)]);
    // Once it was seen dead it stays so: the count begins with nothing else.
    let mut other = buried(1, COUNTED, "rejected");
    other.deaths[0].time = 8;
    rejected()
        .take(buried(1, COUNTED, "rejected"))
        .sure()
        .killed()
        .take(other)
        .check(&[(Kind::WrongDeaths, 1)]);
    rejected()
        .take(buried(1, COUNTED, "rejected"))
        .sure()
        .killed()
        .take(failed(1, 0))
        .check(&[(Kind::WrongDeaths, 1)]);
}

#[test]
fn a_count_of_failures_does_not_begin_anew() {
    let wrong = |tale: Tale, count| tale.take(failed(1, count)).check(&[(Kind::WrongCount, 1)]);
    let once = || {
        let tale = Tale::published(&counted(), &[1]).take(failed(1, 0));
        tale.step(Step::Failed(1))
    };
    // As long as the broker lives, nothing is.
    once().take(failed(1, 1)).check(&[]);
    wrong(once(), 0);
    // Not answered, or no confirm behind it: it may be forgotten.
    once().killed().take(failed(1, 0)).check(&[]);
    let answered = once().step(Step::Synced).killed();
    answered.take(failed(1, 0)).check(&[]);
    wrong(once().sure().killed(), 0);
    once().sure().killed().take(failed(1, 1)).check(&[]);
    wrong(once().sure().killed(), 2);
    let stopped = once().step(Step::Synced).step(Step::Stopped);
    wrong(stopped, 0);
    // A return is no failure, unless the connection ended before it was read.
    let returned = || once().take(failed(1, 1)).step(Step::Returned(1));
    wrong(returned().sure().killed(), 2);
    returned().sure().killed().take(failed(1, 1)).check(&[]);
    returned().killed().take(failed(1, 2)).check(&[]);
    // Nor is an acknowledgement.
    let acked = || once().take(failed(1, 1)).step(Step::Acked(1)).killed();
    acked().take(failed(1, 2)).check(&[]);
    // What the client holds fails with its connection, or not.
    let held = || once().take(failed(1, 1)).sure().killed();
    held().take(failed(1, 1)).check(&[]);
    held().take(failed(1, 2)).check(&[]);
    wrong(held(), 0);
    // The flag goes with it.
    let unflagged = Sighting {
        is_redelivered: false,
        ..failed(1, 1)
    };
    let tale = once().sure().killed().take(unflagged);
    tale.check(&[(Kind::WrongRedelivered, 1)]);
    // Where nothing is counted, there is no count.
    let other = Sighting {
        failures: Some(1),
        ..seen(RETRY, 1)
    };
    let tale = Tale::published(&retried(), &[1]).take(other);
    tale.check(&[(Kind::WrongCount, 1)]);
}

#[test]
fn a_message_dies_of_one_failure_too_many_and_of_no_fewer() {
    let at = |count| {
        let tale = Tale::published(&counted(), &[1]).take(failed(1, 0));
        let tale = (1..=count).fold(tale, |tale, count| {
            tale.step(Step::Failed(1)).take(failed(1, count))
        });
        tale.step(Step::Failed(1)).killed()
    };
    let dead = || buried(1, COUNTED, "delivery_limit");
    at(2).take(dead()).check(&[]);
    at(1).take(dead()).check(&[(Kind::WrongDeaths, 1)]);
    at(2).check(&[(Kind::Lost, 1)]);
    // Above the limit and alive.
    let over = at(2).take(failed(1, 3));
    over.check(&[(Kind::WrongCount, 1)]);
    // What was seen dead is not counted any more, but it has failed.
    at(2).shown(dead()).killed().take(dead()).check(&[]);
    let counted = Sighting {
        failures: Some(2),
        ..dead()
    };
    at(2).take(counted).check(&[(Kind::WrongCount, 1)]);
}

#[test]
fn a_delayed_message_comes_once_and_not_before_its_time() {
    let tale = || Tale::published(&delayed(1000), &[1]).killed();
    // It waits, and nobody can see it.
    tale().later(900).check(&[]);
    tale()
        .later(700)
        .take(seen(ARRIVALS, 1))
        .check(&[(Kind::Early, 1)]);
    tale().later(1000).take(seen(ARRIVALS, 1)).check(&[]);
    tale().later(1000).check(&[(Kind::Lost, 1)]);
    tale()
        .later(1000)
        .take(seen(ARRIVALS, 1))
        .take(seen(ARRIVALS, 1))
        .check(&[(Kind::Duplicated, 1)]);
    // What has come stays.
    let unconfirmed = Tale::new().publish(1, &delayed(0)).killed();
    let shown = unconfirmed.shown(seen(ARRIVALS, 1));
    shown.killed().check(&[(Kind::Lost, 1)]);
    // Acknowledged for good, and delayed once more.
    tale()
        .later(1000)
        .take(seen(ARRIVALS, 1))
        .step(Step::Acked(1))
        .sure()
        .killed()
        .take(seen(ARRIVALS, 1))
        .check(&[(Kind::CameBack, 1)]);
    tale()
        .take(buried(1, ARRIVALS, "expired"))
        .check(&[(Kind::WrongDeaths, 1)]);
}
