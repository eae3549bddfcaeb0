//! Critical sections of many queues: as much is pushed, as seldom, as in one queue.

use std::sync::Arc;

use super::{Rig, deliveries, persistent, show, shown, transient};
use crate::broker::arguments::QueueArguments;
use crate::broker::command::{ConfirmAt, SettleOutcome};
use crate::broker::confirm_runs::ConfirmRuns;
use crate::broker::message::Message;
use crate::broker::queue::{Addressed, QueueHandle, TargetDeleted};

/// Publishes messages of which each has a set of targets of its own.
fn publish_all(
    rig: &mut Rig,
    publishes: Vec<(Message, Arc<[QueueHandle]>)>,
) -> (Result<(), TargetDeleted>, Vec<ConfirmAt>) {
    let (messages, sets): (Vec<Message>, Vec<Arc<[QueueHandle]>>) = publishes.into_iter().unzip();
    let numbered = messages.into_iter().zip(0..);
    let mut group: Vec<Addressed> = numbered
        .map(|(message, set)| Addressed::new(Arc::new(message), set))
        .collect();
    let mut out = ConfirmRuns::default();
    let outcome = rig.turn(|turn| super::super::publish_group(turn, &sets, &mut group, &mut out));
    let undone = &group[out.len()..];
    assert!(undone.iter().all(|publish| publish.message.is_some()));
    (outcome, out.each())
}

fn publish(
    rig: &mut Rig,
    publishes: &[(&str, &[&QueueHandle])],
) -> (Result<(), TargetDeleted>, Vec<ConfirmAt>) {
    let addressed = publishes.iter().map(|(body, targets)| {
        let targets = targets.iter().copied().cloned().collect();
        (persistent(body), targets)
    });
    let addressed = addressed.collect();
    publish_all(rig, addressed)
}

#[test]
fn each_queue_gets_its_messages_in_order_by_one_push() {
    let mut rig = Rig::new();
    let (a, b) = (rig.queue("a"), rig.queue("b"));
    let before = rig.journal.pushes().len();
    let (outcome, out) = publish(
        &mut rig,
        &[
            ("1", &[&b]),
            ("2", &[&a]),
            ("3", &[&a, &b]),
            ("4", &[]),
            ("5", &[&b]),
        ],
    );
    assert_eq!(outcome, Ok(()));
    let pushes = rig.journal.pushes();
    assert_eq!(pushes.len(), before + 1);
    let end = ConfirmAt::Durable(pushes[before].end);
    assert_eq!(out, [end, end, end, ConfirmAt::Now, end]);
    rig.settle_down();
    assert_eq!(rig.take_all(&a), ["2", "3"]);
    assert_eq!(rig.take_all(&b), ["1", "3", "5"]);
}

#[test]
fn messages_of_one_target_go_there_together_and_their_outcomes_stand_as_they_came() {
    let mut rig = Rig::new();
    let (a, b) = (rig.queue("a"), rig.queue("b"));
    let consumers = [&a, &b].map(|queue| rig.consume(queue, |_| {}));
    let before = rig.journal.pushes().len();
    let publishes = (0..40)
        .map(|number| {
            let body = number.to_string();
            // Every third one is for nobody; some of each queue have no place in the log.
            let message = match number % 4 {
                3 => transient(&body),
                _ => persistent(&body),
            };
            let targets = [Some(&b), Some(&a), None][number % 3];
            (message, targets.into_iter().cloned().collect())
        })
        .collect();
    let (outcome, out) = publish_all(&mut rig, publishes);
    assert_eq!(outcome, Ok(()));
    let pushes = rig.journal.pushes().split_off(before);
    let [push] = &pushes[..] else {
        panic!("one push, not {}", pushes.len());
    };
    let expected: Vec<ConfirmAt> = (0..40)
        .map(|number| match (number % 3, number % 4) {
            (2, _) | (_, 3) => ConfirmAt::Now,
            _ => ConfirmAt::Durable(push.end),
        })
        .collect();
    assert_eq!(out, expected);
    for (consumer, rest) in consumers.iter().zip([1, 0]) {
        let own = (0..40).filter(|number| number % 3 == rest);
        let own: Vec<String> = own.map(|number: usize| number.to_string()).collect();
        assert_eq!(shown(&deliveries(consumer)), own);
    }
}

#[test]
fn queue_that_several_sets_have_gets_its_messages_as_they_came() {
    let mut rig = Rig::new();
    let (a, b) = (rig.queue("a"), rig.queue("b"));
    let (first, other, again) = ([&a], [&b], [&a]);
    // As two keys that are bound to the same queue.
    let sets: Vec<Arc<[QueueHandle]>> = [first, other, again]
        .map(|[queue]| Arc::from([Arc::clone(queue)]))
        .into();
    let publishes = (0..30).map(|number: usize| {
        let message = persistent(&number.to_string());
        (message, Arc::clone(&sets[number % 3]))
    });
    let (outcome, out) = publish_all(&mut rig, publishes.collect());
    assert_eq!((outcome, out.len()), (Ok(()), 30));
    rig.settle_down();
    let own = |wanted: fn(&usize) -> bool| -> Vec<String> {
        let own = (0..30).filter(wanted);
        own.map(|number: usize| number.to_string()).collect()
    };
    assert_eq!(rig.take_all(&a), own(|number| number % 3 != 1));
    assert_eq!(rig.take_all(&b), own(|number| number % 3 == 1));
}

#[test]
fn nothing_is_published_when_a_target_is_deleted() {
    let mut rig = Rig::new();
    let (a, b) = (rig.queue("a"), rig.queue("b"));
    rig.turn(|turn| super::super::delete(turn, &b, Default::default(), || {}))
        .expect("deletes");
    let (outcome, out) = publish(&mut rig, &[("1", &[&a]), ("2", &[&b])]);
    assert_eq!((outcome, out.len()), (Err(TargetDeleted), 0));
    assert_eq!(a.stats().ready_count, 0);
}

#[test]
fn queue_with_a_limit_drops_in_a_group_of_its_own() {
    let mut rig = Rig::new();
    let settings = QueueArguments {
        max_length: Some(1),
        ..QueueArguments::default()
    };
    let (limited, free) = (rig.queue_with("limited", settings), rig.queue("free"));
    let before = rig.journal.pushes().len();
    let (outcome, out) = publish(
        &mut rig,
        &[
            ("1", &[&limited]),
            ("2", &[&free]),
            ("3", &[&limited]),
            ("4", &[&limited]),
        ],
    );
    assert_eq!((outcome, out.len()), (Ok(()), 4));
    let atomic: Vec<bool> = rig.journal.pushes()[before..]
        .iter()
        .map(|push| push.is_atomic)
        .collect();
    assert_eq!(atomic, [true, false, true, true]);
    rig.settle_down();
    assert_eq!(rig.take_all(&limited), ["4"]);
    assert_eq!(rig.take_all(&free), ["2"]);
}

#[test]
fn acks_of_many_queues_are_pushed_together() {
    let mut rig = Rig::new();
    let queues: Vec<QueueHandle> = (0..100).map(|at| rig.queue(&at.to_string())).collect();
    let mut held = Vec::new();
    for round in ["x", "y"] {
        for queue in &queues {
            rig.publish(queue, persistent(round));
            let consumer = rig.consume(queue, |_| {});
            rig.settle_down();
            held.extend(deliveries(&consumer));
            rig.turn(|turn| {
                let _ = super::super::cancel(turn, queue, consumer.id);
            });
        }
    }
    assert_eq!(held.len(), 200);
    assert_eq!(show(&held[0]), "x");
    let before = rig.journal.pushes().len();
    rig.settle(&held, SettleOutcome::Ack);
    let pushes = rig.journal.pushes().split_off(before);
    assert_eq!(pushes.len(), 2, "64 queues, and the other 36");
    let records: usize = pushes.iter().map(|push| push.records.len()).sum();
    assert_eq!(records, 100, "one record a queue");
    for queue in &queues {
        assert_eq!(queue.stats().unacked_count, 0);
        assert!(rig.journal.replay(queue.id()).entries.is_empty());
    }
}

#[test]
fn requeued_messages_of_many_queues_go_back_to_their_places() {
    let mut rig = Rig::new();
    let (a, b) = (rig.queue("a"), rig.queue("b"));
    let (outcome, _) = publish(
        &mut rig,
        &[("1", &[&a]), ("2", &[&b]), ("3", &[&a]), ("4", &[&b])],
    );
    assert_eq!(outcome, Ok(()));
    let mut held = Vec::new();
    for queue in [&b, &a, &a, &b] {
        held.extend(rig.get(queue));
    }
    rig.settle(&held, SettleOutcome::Requeue);
    assert_eq!(rig.take_all(&a), ["1*", "3*"]);
    assert_eq!(rig.take_all(&b), ["2*", "4*"]);
}
