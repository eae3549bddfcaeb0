//! The crash test's oracle, fed with doctored histories: a checker that never complains proves nothing.

#[path = "../crash/mod.rs"]
mod crash;
mod levels;
mod moving;
#[path = "../support/mod.rs"]
mod support;
mod transactions;

use crash::history::{Event, Fingerprint, Observed};
use crash::oracle::{Kind, Oracle};
use crash::verdict::Readout;

/// A history under construction, and what is found in the queues at its end.
struct Story {
    oracle: Oracle,
    readout: Readout,
}

fn look(id: u64) -> Fingerprint {
    Fingerprint {
        properties: id,
        body: id,
        route: 0,
    }
}

fn observed(id: u64, is_redelivered: bool) -> Observed {
    Observed {
        id: Some(id),
        is_redelivered,
        fingerprint: look(id),
    }
}

impl Story {
    fn new() -> Self {
        Self {
            oracle: Oracle::new(),
            readout: Readout::new(),
        }
    }

    /// Message 1 is confirmed, delivered and acked.
    fn acked() -> Self {
        Self::new()
            .publish(&[1])
            .confirm(&[1])
            .deliver(1, false)
            .ack(1, None)
    }

    fn event(mut self, event: Event) -> Self {
        self.oracle.record(event);
        self
    }

    fn publish_as(self, id: u64, targets: &[&str], is_persistent: bool, tx: Option<u64>) -> Self {
        let targets = targets.iter().map(|queue| (*queue).to_owned()).collect();
        self.event(Event::Publish {
            id,
            publisher: 1,
            tx,
            is_persistent,
            priority: 0,
            targets,
            fingerprint: look(id),
        })
    }

    fn publish(self, ids: &[u64]) -> Self {
        ids.iter()
            .fold(self, |story, id| story.publish_as(*id, &["q"], true, None))
    }

    fn confirm(self, ids: &[u64]) -> Self {
        ids.iter()
            .fold(self, |story, id| story.event(Event::Confirmed { id: *id }))
    }

    fn deliver(self, id: u64, is_redelivered: bool) -> Self {
        self.event(Event::Delivered {
            queue: "q".into(),
            observed: observed(id, is_redelivered),
        })
    }

    fn ack(self, id: u64, tx: Option<u64>) -> Self {
        self.event(Event::Ack {
            queue: "q".into(),
            id,
            channel: 7,
            tx,
        })
    }

    fn synced(self) -> Self {
        self.event(Event::Synced { channel: 7 })
    }

    fn killed(self) -> Self {
        self.event(Event::Killed)
    }

    fn stopped(self) -> Self {
        self.event(Event::Stopped { is_quiet: true })
    }

    fn found(mut self, queue: &str, contents: &[(u64, bool)]) -> Self {
        let list = contents
            .iter()
            .map(|(id, is_redelivered)| observed(*id, *is_redelivered))
            .collect();
        self.readout.insert(queue.to_owned(), list);
        self
    }

    /// Checks what was found so far; another round may follow.
    fn round(mut self) -> Self {
        self.oracle.check(&std::mem::take(&mut self.readout));
        self
    }

    /// Checks what was found; exactly these complaints.
    #[track_caller]
    fn check(mut self, expected: &[(Kind, u64)]) {
        self = self.round();
        let violations = self.oracle.take_violations();
        let found: Vec<(Kind, u64)> = violations
            .iter()
            .map(|violation| (violation.kind, violation.id.unwrap_or(0)))
            .collect();
        assert_eq!(found, expected, "{violations:#?}");
    }
}

/// Three confirmed messages in queue `q`, and a kill.
fn three() -> Story {
    Story::new()
        .publish(&[1, 2, 3])
        .confirm(&[1, 2, 3])
        .killed()
}

#[test]
fn a_faithful_broker_is_not_complained_about() {
    three()
        .found("q", &[(1, true), (2, true), (3, true)])
        .check(&[]);
    three()
        .found("q", &[(1, false), (2, true), (3, false)])
        .check(&[]);
    Story::new().found("q", &[]).check(&[]);
}

#[test]
fn a_lost_message_is_noticed() {
    three()
        .found("q", &[(1, true), (3, true)])
        .check(&[(Kind::Lost, 2)]);
    three()
        .found("q", &[])
        .check(&[(Kind::Lost, 1), (Kind::Lost, 2), (Kind::Lost, 3)]);
    // Also one that a former restart showed, though it was never confirmed.
    Story::new()
        .publish(&[1])
        .killed()
        .found("q", &[(1, false)])
        .round()
        .killed()
        .found("q", &[])
        .check(&[(Kind::Lost, 1)]);
    // Also one given back.
    Story::new()
        .publish(&[1])
        .confirm(&[1])
        .deliver(1, false)
        .event(Event::Requeue {
            queue: "q".into(),
            id: 1,
        })
        .killed()
        .found("q", &[])
        .check(&[(Kind::Lost, 1)]);
}

#[test]
fn an_unconfirmed_message_may_be_there_or_not_but_not_first_gone_and_then_there() {
    let story = || Story::new().publish(&[1, 2]).confirm(&[2]).killed();
    story().found("q", &[(1, false), (2, false)]).check(&[]);
    story().found("q", &[(2, false)]).check(&[]);
    story()
        .found("q", &[(2, false)])
        .round()
        .killed()
        .found("q", &[(1, true), (2, true)])
        .check(&[(Kind::CameBack, 1), (Kind::Reordered, 2)]);
}

#[test]
fn a_duplicate_is_noticed() {
    three()
        .found("q", &[(1, true), (1, true), (2, true), (3, true)])
        .check(&[(Kind::Duplicated, 1), (Kind::Reordered, 1)]);
}

#[test]
fn a_changed_order_is_noticed() {
    three()
        .found("q", &[(2, true), (1, true), (3, true)])
        .check(&[(Kind::Reordered, 1)]);
    // Two publishers: only each one's own order counts, until a restart has shown one.
    let two_publishers = || {
        let other = Event::Publish {
            id: 9,
            publisher: 2,
            tx: None,
            is_persistent: true,
            priority: 0,
            targets: vec!["q".into()],
            fingerprint: look(9),
        };
        Story::new()
            .publish(&[1])
            .event(other)
            .publish(&[10])
            .confirm(&[1, 9, 10])
            .killed()
    };
    two_publishers()
        .found("q", &[(9, true), (1, true), (10, true)])
        .check(&[]);
    two_publishers()
        .found("q", &[(1, true), (10, true), (9, true)])
        .check(&[]);
    two_publishers()
        .found("q", &[(1, true), (10, true), (9, true)])
        .round()
        .killed()
        .found("q", &[(1, true), (9, true), (10, true)])
        .check(&[(Kind::Reordered, 10)]);
    // What is new comes behind what was there.
    three()
        .found("q", &[(1, true), (2, true), (3, true)])
        .round()
        .publish(&[4])
        .confirm(&[4])
        .killed()
        .found("q", &[(1, true), (2, true), (4, true), (3, true)])
        .check(&[(Kind::Reordered, 3)]);
}

#[test]
fn altered_bytes_are_noticed() {
    let found = |change: fn(&mut Fingerprint)| {
        let mut story = Story::new()
            .publish(&[1])
            .confirm(&[1])
            .killed()
            .found("q", &[(1, true)]);
        let list = story.readout.get_mut("q").expect("just made");
        change(&mut list[0].fingerprint);
        story
    };
    found(|look| look.body ^= 1).check(&[(Kind::AlteredBody, 1)]);
    found(|look| look.properties ^= 1).check(&[(Kind::AlteredProperties, 1)]);
    found(|look| look.route ^= 1).check(&[(Kind::AlteredRoute, 1)]);
    // Also at delivery.
    let mut altered = observed(1, false);
    altered.fingerprint.body ^= 1;
    Story::new()
        .publish(&[1])
        .event(Event::Delivered {
            queue: "q".into(),
            observed: altered,
        })
        .check(&[(Kind::AlteredBody, 1)]);
}

#[test]
fn inventions_are_noticed() {
    Story::new()
        .found("q", &[(5, false)])
        .check(&[(Kind::Invented, 5)]);
    // Right message, wrong queue.
    three()
        .found("q", &[(1, true), (2, true), (3, true)])
        .found("other", &[(1, true)])
        .check(&[(Kind::Invented, 1)]);
    let mut story = Story::new();
    let nobody = Observed {
        id: None,
        is_redelivered: false,
        fingerprint: look(1),
    };
    story.readout.insert("q".into(), vec![nobody]);
    story.check(&[(Kind::Invented, 0)]);
}

#[test]
fn a_fresh_ack_may_be_forgotten_but_the_flag_tells() {
    let story = Story::acked;
    story().killed().found("q", &[]).check(&[]);
    story().killed().found("q", &[(1, true)]).check(&[]);
    story()
        .killed()
        .found("q", &[(1, false)])
        .check(&[(Kind::WrongRedelivered, 1)]);
    // In the log, but nothing behind it was confirmed.
    story()
        .synced()
        .killed()
        .found("q", &[(1, true)])
        .check(&[]);
}

#[test]
fn an_ack_before_a_confirmed_publish_is_not_forgotten() {
    let story = Story::acked;
    let settled = story().synced().publish(&[2]).confirm(&[2]).killed();
    settled
        .found("q", &[(1, true), (2, false)])
        .check(&[(Kind::CameBack, 1)]);
    // The publish left before the broker was known to have the ack: nothing follows.
    let unsettled = story().publish(&[2]).synced().confirm(&[2]).killed();
    unsettled.found("q", &[(1, true), (2, false)]).check(&[]);
    // An empty transaction says nothing about the log.
    let commit = |story: Story| {
        story
            .event(Event::Commit { tx: 4 })
            .event(Event::Committed { tx: 4 })
            .killed()
    };
    let found = |story: Story| story.found("q", &[(1, true)]);
    found(commit(story().synced())).check(&[]);
    let logged = commit(story().synced().publish_as(2, &["p"], true, Some(4)));
    found(logged).check(&[(Kind::CameBack, 1)]);
    // A transient publish says nothing about it either.
    let transient = story()
        .synced()
        .publish_as(2, &["q"], false, None)
        .confirm(&[2])
        .killed();
    transient.found("q", &[(1, true)]).check(&[]);
    // Forgotten in one restart is not forgotten in the next.
    story()
        .killed()
        .found("q", &[])
        .round()
        .killed()
        .found("q", &[(1, true)])
        .check(&[(Kind::CameBack, 1)]);
}

#[test]
fn a_clean_stop_forgets_no_ack() {
    let story = Story::acked;
    story()
        .synced()
        .stopped()
        .found("q", &[(1, true)])
        .check(&[(Kind::CameBack, 1)]);
    story().synced().stopped().found("q", &[]).check(&[]);
    // One that the broker perhaps never read.
    story().stopped().found("q", &[(1, true)]).check(&[]);
}

#[test]
fn the_redelivered_flag_is_there_when_it_must_be() {
    let story = || {
        Story::new()
            .publish(&[1, 2])
            .confirm(&[1, 2])
            .deliver(1, false)
    };
    story()
        .killed()
        .found("q", &[(1, false), (2, true)])
        .check(&[(Kind::WrongRedelivered, 1)]);
    story()
        .stopped()
        .found("q", &[(1, true), (2, false)])
        .check(&[]);
    story()
        .stopped()
        .found("q", &[(1, true), (2, true)])
        .check(&[(Kind::WrongRedelivered, 2)]);
    story()
        .stopped()
        .found("q", &[(1, false), (2, false)])
        .check(&[(Kind::WrongRedelivered, 1)]);
    story()
        .event(Event::Stopped { is_quiet: false })
        .found("q", &[(1, true), (2, true)])
        .check(&[]);
    // A second delivery in the same run.
    story()
        .event(Event::Requeue {
            queue: "q".into(),
            id: 1,
        })
        .deliver(1, false)
        .found("q", &[(1, true), (2, false)])
        .check(&[(Kind::WrongRedelivered, 1)]);
}

#[test]
fn a_delivery_overtaken_by_the_next_one_is_excused_once_and_only_in_a_stop() {
    let published = || Story::new().publish(&[1]).confirm(&[1]);
    let settle = |story: Story| story.ack(1, None).synced().stopped().found("q", &[]);
    let in_stop = || {
        published()
            .event(Event::Stopping)
            .deliver(1, true)
            .event(Event::Requeue {
                queue: "q".into(),
                id: 1,
            })
            .deliver(1, false)
    };
    settle(in_stop()).check(&[]);
    settle(in_stop().deliver(1, false)).check(&[(Kind::WrongRedelivered, 1)]);
    // Read late, and settled by the faster client meanwhile.
    let settled = published().event(Event::Stopping).deliver(1, true);
    settled
        .ack(1, None)
        .synced()
        .deliver(1, false)
        .stopped()
        .found("q", &[])
        .check(&[]);
    settle(published().deliver(1, true).deliver(1, false)).check(&[(Kind::WrongRedelivered, 1)]);
    let before_stop = published().deliver(1, true).event(Event::Stopping);
    settle(before_stop.deliver(1, false)).check(&[(Kind::WrongRedelivered, 1)]);
    let plain = published().event(Event::Stopping).deliver(1, false);
    settle(plain.deliver(1, false)).check(&[(Kind::WrongRedelivered, 1)]);
}

#[test]
fn a_delivery_after_the_ack_is_noticed() {
    Story::new()
        .publish(&[1])
        .confirm(&[1])
        .deliver(1, false)
        .ack(1, None)
        .deliver(1, true)
        .found("q", &[])
        .check(&[(Kind::CameBack, 1)]);
}

#[test]
fn an_ack_that_crossed_the_close_of_its_connection_may_be_unread() {
    let story = Story::acked;
    let stop = || Event::Stopped { is_quiet: false };
    let redelivered = story()
        .event(Event::Stopping)
        .deliver(1, true)
        .event(stop());
    redelivered.found("q", &[]).check(&[(Kind::Lost, 1)]);
    let redelivered = story()
        .event(Event::Stopping)
        .deliver(1, true)
        .event(stop());
    redelivered.found("q", &[(1, true)]).check(&[]);
    // But not one that the broker is known to have read.
    let read = story()
        .synced()
        .event(Event::Stopping)
        .deliver(1, true)
        .event(stop());
    read.found("q", &[]).check(&[(Kind::CameBack, 1)]);
}

#[test]
fn transient_messages_stay_until_a_restart_and_no_longer() {
    let story = || {
        Story::new()
            .publish_as(1, &["q"], false, None)
            .confirm(&[1])
    };
    story().found("q", &[(1, false)]).check(&[]);
    story().found("q", &[]).check(&[(Kind::Lost, 1)]);
    story().killed().found("q", &[]).check(&[]);
    story()
        .killed()
        .found("q", &[(1, true)])
        .check(&[(Kind::CameBack, 1)]);
}

#[test]
fn a_purge_takes_what_is_ready() {
    let purge = || Event::Purge {
        queue: "q".into(),
        channel: 7,
    };
    let story = || {
        Story::new()
            .publish(&[1, 2])
            .confirm(&[1, 2])
            .deliver(1, false)
            .event(purge())
    };
    story().killed().found("q", &[(1, true)]).check(&[]);
    story()
        .killed()
        .found("q", &[(1, true), (2, false)])
        .check(&[]);
    story().killed().found("q", &[]).check(&[(Kind::Lost, 1)]);
    story()
        .synced()
        .publish(&[3])
        .confirm(&[3])
        .killed()
        .found("q", &[(1, true), (2, true), (3, true)])
        .check(&[(Kind::CameBack, 2)]);
}

#[test]
fn a_fanout_in_some_of_its_queues_is_noticed() {
    let story = || Story::new().publish_as(1, &["a", "b"], true, None).killed();
    story()
        .found("a", &[(1, false)])
        .found("b", &[(1, false)])
        .check(&[]);
    story().found("a", &[]).found("b", &[]).check(&[]);
    story()
        .found("a", &[(1, false)])
        .found("b", &[])
        .check(&[(Kind::TornFanout, 1)]);
    let confirmed = Story::new()
        .publish_as(1, &["a", "b"], true, None)
        .confirm(&[1])
        .killed();
    confirmed
        .found("a", &[(1, false)])
        .found("b", &[])
        .check(&[(Kind::Lost, 1)]);
}
