//! The oracle against doctored histories: it must see each kind of lie, and accept every honest outcome.

use stratamq::storage::types::{QueueId, Seq, SeqRange};

use super::model::{Body, Event};
use super::oracle::{Complaint, History, Observed, observe};

const Q1: QueueId = QueueId(1);
const Q2: QueueId = QueueId(2);

fn body(number: u64) -> Body {
    Body {
        number,
        len_bytes: 40,
    }
}

fn published(number: u64, refs: &[(QueueId, u64)]) -> Event {
    Event::Published {
        refs: refs
            .iter()
            .map(|(queue, seq)| (*queue, Seq(*seq), 0))
            .collect(),
        body: body(number),
        priority: 0,
    }
}

fn settled(queue: QueueId, first: u64, last: u64) -> Event {
    let ranges = vec![SeqRange {
        first: Seq(first),
        last: Seq(last),
    }];
    Event::Settled { queue, ranges }
}

/// Two queues; Q1 holds 1, 2, 3 confirmed; 1 is settled for certain; a reservation; then, uncertain: 2 is settled,
/// 4 is published, and the group {publish 1 to Q2, settle 3 in Q1}.
fn history() -> History {
    let mut history = History::default();
    for event in [
        Event::Created(1, Q1),
        Event::Created(2, Q2),
        published(11, &[(Q1, 1)]),
        published(12, &[(Q1, 2)]),
        published(13, &[(Q1, 3)]),
        settled(Q1, 1, 1),
        Event::Reserved {
            queue: Q1,
            upto: Seq(3),
        },
    ] {
        history.push(vec![event]);
    }
    history.confirm(7);
    history.deliver(Q1, Seq(2));
    history.push(vec![settled(Q1, 2, 2)]);
    history.push(vec![published(14, &[(Q1, 4)])]);
    history.push(vec![published(15, &[(Q2, 1)]), settled(Q1, 3, 3)]);
    history.push(vec![Event::Meta(3)]);
    history
}

/// What a recovery that kept `count` steps finds.
fn found_after(count: usize) -> Observed {
    observe(&history().resolve(count).latest())
}

#[track_caller]
fn check(doctor: impl FnOnce(&mut Observed), expected: &[Complaint]) {
    check_after(8, doctor, expected);
}

/// Doctors what an honest recovery with `count` steps found.
#[track_caller]
fn check_after(count: usize, doctor: impl FnOnce(&mut Observed), expected: &[Complaint]) {
    let mut observed = found_after(count);
    doctor(&mut observed);
    let complaints = history()
        .check(&observed)
        .expect_err("the oracle must complain");
    for complaint in expected {
        assert!(
            complaints.contains(complaint),
            "{complaint:?} is not among {complaints:?}"
        );
    }
}

#[test]
fn every_prefix_behind_the_confirmed_steps_is_accepted() {
    for count in 7..=11 {
        assert_eq!(history().check(&found_after(count)), Ok(count));
    }
}

#[test]
fn a_prefix_before_the_confirmed_steps_is_a_loss() {
    for count in 0..7 {
        assert!(
            history().check(&found_after(count)).is_err(),
            "{count} steps"
        );
    }
}

#[test]
fn a_lost_message_is_seen() {
    let mut history = history();
    history.push(vec![published(16, &[(Q1, 5)])]);
    history.confirm(history.step_count());
    let mut observed = observe(&history.latest());
    observed.queues[0].entries.pop();
    let complaints = history
        .check(&observed)
        .expect_err("the oracle must complain");
    assert!(
        complaints.contains(&Complaint::Lost(Q1, Seq(5))),
        "{complaints:?}"
    );
}

#[test]
fn a_duplicated_message_is_seen() {
    check(
        |found| {
            let again = found.queues[0].entries[0].clone();
            found.queues[0].entries.push(again);
        },
        &[Complaint::Duplicated(Q1, Seq(3))],
    );
    // Under a seq of its own.
    check(
        |found| {
            let mut again = found.queues[0].entries[0].clone();
            again.seq = Seq(4);
            found.queues[0].entries.push(again);
        },
        &[Complaint::Duplicated(Q1, Seq(4))],
    );
}

#[test]
fn reordered_messages_are_seen() {
    check_after(
        7,
        |found| found.queues[0].entries.swap(0, 1),
        &[Complaint::Reordered(Q1, Seq(2))],
    );
    check_after(
        7,
        |found| {
            let entries = &mut found.queues[0].entries;
            (entries[0].body, entries[1].body) = (entries[1].body, entries[0].body);
        },
        &[
            Complaint::Reordered(Q1, Seq(2)),
            Complaint::Reordered(Q1, Seq(3)),
        ],
    );
}

#[test]
fn altered_messages_are_seen() {
    let altered = [Complaint::Altered(Q1, Seq(3))];
    check(|found| found.queues[0].entries[0].body = None, &altered);
    check(
        |found| found.queues[0].entries[0].body = Some(body(99)),
        &altered,
    );
    check(
        |found| found.queues[0].entries[0].expires_at_ms = 1,
        &altered,
    );
    check(|found| found.queues[0].entries[0].priority = 9, &altered);
    check(
        |found| found.queues[0].entries[0].delivery_count = 9,
        &[Complaint::NotAPrefix],
    );
}

#[test]
fn an_invented_message_is_seen() {
    check(
        |found| {
            let mut strange = found.queues[0].entries[0].clone();
            (strange.seq, strange.body) = (Seq(9), Some(body(98)));
            found.queues[0].entries.push(strange);
        },
        &[Complaint::Invented(Q1, Seq(9))],
    );
}

#[test]
fn a_settled_message_that_comes_back_is_seen() {
    check(
        |found| {
            let mut back = found.queues[0].entries[0].clone();
            (back.seq, back.body) = (Seq(1), Some(body(11)));
            found.queues[0].entries.insert(0, back);
        },
        &[Complaint::Resurrected(Q1, Seq(1))],
    );
}

#[test]
fn half_a_group_is_seen() {
    // The publish without the settle.
    check_after(
        10,
        |found| {
            let source = found_after(9).queues[0].entries[0].clone();
            found.queues[0].entries.insert(0, source);
        },
        &[Complaint::HalfGroup(9)],
    );
    // The settle without the publish: a dead-lettering that loses the message.
    check_after(
        10,
        |found| found.queues[1].entries.clear(),
        &[Complaint::HalfGroup(9)],
    );
}

#[test]
fn half_a_fan_out_is_seen() {
    let mut history = history();
    history.push(vec![published(16, &[(Q1, 5), (Q2, 2)])]);
    let mut observed = observe(&history.latest());
    observed.queues[1].entries.pop();
    let complaints = history
        .check(&observed)
        .expect_err("the oracle must complain");
    assert!(
        complaints.contains(&Complaint::HalfGroup(11)),
        "{complaints:?}"
    );
}

#[test]
fn a_later_step_without_an_earlier_one_is_seen() {
    // Each message is possible for itself: 2 unsettled, 4 published.
    check_after(
        9,
        |found| {
            let unsettled = found_after(7).queues[0].entries[0].clone();
            found.queues[0].entries.insert(0, unsettled);
        },
        &[Complaint::NotAPrefix],
    );
}

#[test]
fn lost_and_invented_queues_are_seen() {
    check(
        |found| drop(found.queues.remove(1)),
        &[Complaint::QueueLost(Q2)],
    );
    check(
        |found| found.queues[1].id = QueueId(9),
        &[Complaint::QueueInvented(QueueId(9))],
    );
}

#[test]
fn a_deleted_queue_that_comes_back_is_seen() {
    let mut history = history();
    history.push(vec![Event::Deleted(4, Q1)]);
    history.confirm(history.step_count());
    let complaints = history
        .check(&found_after(11))
        .expect_err("the oracle must complain");
    assert!(
        complaints.contains(&Complaint::QueueInvented(Q1)),
        "{complaints:?}"
    );
}

#[test]
fn reused_seqs_and_lost_reservations_are_seen() {
    check(
        |found| found.queues[0].next_seq = Seq(3),
        &[Complaint::SeqReused(Q1, Seq(3))],
    );
    check(
        |found| found.queues[0].reserved_upto = Seq(1),
        &[Complaint::ReservationLost(Q1, Seq(1))],
    );
}

#[test]
fn a_delivered_message_without_a_flag_is_seen() {
    check_after(
        7,
        |found| found.queues[0].reserved_upto = Seq(2),
        &[Complaint::NotFlagged(Q1, Seq(2))],
    );
}

#[test]
fn wrong_meta_is_seen() {
    check(|found| found.meta.truncate(1), &[Complaint::Meta]);
    check(|found| found.meta.swap(0, 1), &[Complaint::Meta]);
    check(|found| found.meta.push(9), &[Complaint::Meta]);
    // A META behind messages that did not survive.
    check(|found| found.meta.push(3), &[Complaint::NotAPrefix]);
}

#[test]
fn a_clean_stop_may_lower_the_reservation_only_once_it_happened() {
    let mut history = history();
    history.push(vec![Event::Exact {
        queue: Q1,
        reserved_upto: Seq(3),
        delivered: vec![],
    }]);
    assert_eq!(history.check(&observe(&history.latest())), Ok(12));
    assert_eq!(history.check(&found_after(8)), Ok(8));
}

#[test]
fn payloads_name_their_body_to_the_last_bit() {
    for len_bytes in [16, 40, 5000] {
        let body = Body {
            number: 7,
            len_bytes,
        };
        let payload = body.payload();
        assert_eq!(Body::of_payload(&payload), Some(body));
        for at in 0..payload.len() {
            let mut wrong = payload.clone();
            wrong[at] ^= 1;
            assert_eq!(Body::of_payload(&wrong), None, "byte {at} of {len_bytes}");
        }
        assert_eq!(Body::of_payload(&payload[..payload.len() - 1]), None);
    }
    assert_eq!(Body::of_payload(&[0; 40]), None);
    assert_eq!(Body::of_payload(&[]), None);
}
