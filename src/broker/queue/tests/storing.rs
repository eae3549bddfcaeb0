//! What the log is told: confirms, reservations, images, transactions, reading back.

use super::*;
use crate::broker::queue::ImageKind;
use crate::broker::testing::Logged;
use crate::storage::types::{SeqRange, SettleCause, Urgency};

/// Proves I41.
#[test]
fn only_persistent_messages_in_durable_queues_are_logged() {
    let mut rig = Rig::new();
    let durable = rig.queue("d");
    let mut spec = rig.spec("t");
    spec.is_durable = false;
    let not_durable = Queue::new(spec, QueueArguments::default().shared(), Lsn(0), 0);
    assert!(matches!(
        rig.publish(&durable, persistent("a")),
        ConfirmAt::Durable(_)
    ));
    assert_eq!(rig.publish(&durable, transient("b")), ConfirmAt::Now);
    assert_eq!(rig.publish(&not_durable, persistent("c")), ConfirmAt::Now);
    assert_eq!(
        rig.publish_all(&[], vec![persistent("d")]),
        [ConfirmAt::Now]
    );
    assert_eq!(rig.journal.records().len(), 1);
    assert_eq!(rig.take_all(&durable), ["a", "b"]);
}

#[test]
fn fan_out_is_one_record_with_a_ref_per_durable_queue() {
    let mut rig = Rig::new();
    let targets = [rig.queue("a"), rig.queue("b"), rig.queue("c")];
    rig.publish_all(&targets, vec![persistent("x"), persistent("y")]);
    let pushes = rig.journal.pushes();
    assert_eq!(pushes.len(), 1, "one push for the run");
    assert_eq!(pushes[0].urgency, Urgency::Waited);
    for record in &pushes[0].records {
        assert!(matches!(record, Logged::Publish { refs, .. } if refs.len() == 3));
    }
}

#[test]
fn waiting_consumer_gets_a_message_whose_reservation_precedes_it_in_the_log() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    let consumer = rig.consume(&queue, |_| {});
    rig.publish_texts(&queue, "a");
    assert_eq!(deliveries(&consumer).len(), 1, "nothing is durable yet");
    assert!(matches!(
        rig.journal.records()[..],
        [Logged::Reserve { upto, .. }, Logged::Publish { .. }] if upto > Seq(1)
    ));
}

#[test]
fn backlog_is_delivered_only_below_a_durable_reservation() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    rig.publish_texts(&queue, "abc");
    let consumer = rig.consume(&queue, |_| {});
    assert!(deliveries(&consumer).is_empty());
    let last = rig.journal.pushes().pop().expect("the reservation");
    assert!(matches!(last.records[..], [Logged::Reserve { .. }]));
    assert_eq!(last.urgency, Urgency::Waited);
    rig.settle_down();
    assert_eq!(shown(&deliveries(&consumer)), ["a", "b", "c"]);
}

/// Proves I21.
#[test]
fn nothing_leaves_unreserved_while_a_long_backlog_drains() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    let run = (0..5000).map(|_| persistent("m")).collect();
    rig.publish_all(std::slice::from_ref(&queue), run);
    let consumer = rig.consume(&queue, |_| {});
    let mut seen = 0;
    while seen < 5000 {
        rig.settle_down();
        let got = deliveries(&consumer);
        assert!(!got.is_empty(), "it goes on");
        let reserved = rig.journal.replay(queue.id()).reserved_upto;
        assert!(got.iter().all(|delivery| delivery.seq < reserved));
        seen += got.len();
        rig.settle(&got, SettleOutcome::Ack);
        rig.turn(|turn| super::dispatch(turn, &queue));
    }
    let reserves = rig
        .journal
        .records()
        .into_iter()
        .filter(|record| matches!(record, Logged::Reserve { .. }));
    assert!(reserves.count() < 20, "steps grow");
}

#[test]
fn purge_leaves_unacked_messages_and_names_no_entry_that_stays() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    rig.publish_texts(&queue, "abcdef");
    let taken: Vec<_> = (0..3).filter_map(|_| rig.get(&queue)).collect();
    rig.settle(&taken[0..1], SettleOutcome::Requeue);
    let purged = rig.turn(|turn| purge(turn, &queue));
    assert_eq!(purged.message_count, 4);
    assert!(purged.durable_at.is_some());
    let left: Vec<_> = rig
        .journal
        .replay(queue.id())
        .entries
        .iter()
        .map(|entry| entry.seq)
        .collect();
    assert_eq!(left, [Seq(2), Seq(3)]);
    rig.settle(&taken[1..], SettleOutcome::Requeue);
    assert_eq!(rig.take_all(&queue), ["b*", "c*"]);
}

#[test]
fn acks_of_one_call_are_one_lazy_record() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    let consumer = rig.consume(&queue, |_| {});
    rig.publish_texts(&queue, "abcde");
    let held = deliveries(&consumer);
    let picked = [held[3].clone(), held[0].clone(), held[1].clone()];
    rig.settle(&picked, SettleOutcome::Ack);
    let last = rig.journal.pushes().pop().expect("the acks");
    assert_eq!(last.urgency, Urgency::Lazy);
    let range = |first, last| SeqRange {
        first: Seq(first),
        last: Seq(last),
    };
    assert_eq!(
        last.records,
        [Logged::Settle {
            queue: queue.id(),
            cause: SettleCause::Acked,
            ranges: vec![range(1, 2), range(4, 4)],
        }]
    );
}

#[test]
fn image_is_what_replay_gives_and_restores_the_queue() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    rig.publish_texts(&queue, "abcd");
    rig.publish(&queue, transient("gone"));
    let taken: Vec<_> = (0..2).filter_map(|_| rig.get(&queue)).collect();
    rig.settle(&taken[..1], SettleOutcome::Ack);
    let running = queue.image(ImageKind::Running).expect("it is durable");
    let replayed = rig.journal.replay(queue.id());
    assert_eq!(running.entries, replayed.entries);
    assert_eq!(running.reserved_upto, replayed.reserved_upto);
    assert_eq!(running.last_lsn, replayed.last_lsn);

    // After a crash all below the reservation is marked; after a clean stop only what was unacked.
    for (kind, expected) in [
        (ImageKind::Running, ["b*", "c*", "d*"]),
        (ImageKind::Stopped, ["b*", "c", "d"]),
    ] {
        let image = queue.image(kind).expect("it is durable");
        let restored = rig.turn(|turn| {
            Queue::restore(queue.spec().clone(), queue.settings(), image.clone(), turn)
        });
        assert_eq!(restored.stats().ready_count, 3);
        assert_eq!(rig.take_all(&restored), expected, "{kind:?}");
    }
}

#[test]
fn messages_over_the_memory_budget_come_back_from_the_log() {
    let mut rig = Rig::with_memory(0);
    let queue = rig.queue("q");
    let big = "x".repeat(17 * 1024);
    let bodies: Vec<_> = (0..200).map(|at| format!("{at}{big}")).collect();
    for body in &bodies {
        rig.publish(&queue, persistent(body));
    }
    let resident = rig.shared.resident_bytes();
    assert!(resident < 64 * 1024, "{resident} bytes stay in memory");
    let consumer = rig.consume(&queue, |spec| spec.is_no_ack = true);
    let mut seen = Vec::new();
    while seen.len() < bodies.len() {
        rig.settle_down();
        let got = deliveries(&consumer);
        assert!(!got.is_empty(), "it goes on");
        seen.extend(got.iter().map(|delivery| body_of(&delivery.message)));
        rig.turn(|turn| super::dispatch(turn, &queue));
    }
    assert_eq!(seen, bodies);
}

#[test]
fn backlog_keeps_a_small_part_of_its_messages_in_memory() {
    const BUDGET_BYTES: u64 = 8 << 20;
    let mut rig = Rig::with_memory(1 << 30);
    let backlog = rig.queue("backlog");
    let wanted = rig.queue("wanted");
    let consumer = rig.consume(&wanted, |spec| spec.prefetch = 1);
    let body = "x".repeat(100 * 1024);
    let messages = || (0..400).map(|_| persistent(&body)).collect::<Vec<_>>();
    for message in messages() {
        rig.publish(&backlog, message);
    }
    let resident = rig.shared.resident_bytes();
    assert!(resident > BUDGET_BYTES / 2, "a small backlog stays");
    assert!(resident < BUDGET_BYTES + (1 << 20), "{resident} bytes stay");
    for message in messages() {
        rig.publish(&wanted, message);
    }
    assert!(
        wanted.resident_bytes() > 2 * BUDGET_BYTES,
        "somebody takes from it"
    );
    assert_eq!(deliveries(&consumer).len(), 1);
    assert_eq!(rig.take_all(&backlog), vec![body; 400]);
}

#[test]
fn unacked_messages_over_the_memory_budget_stay_on_disk_only() {
    let mut rig = Rig::with_memory(64 * 1024);
    let queue = rig.queue("q");
    let big = "x".repeat(17 * 1024);
    for _ in 0..200 {
        rig.publish(&queue, persistent(&big));
    }
    let consumer = rig.consume(&queue, |_| {});
    let mut held = Vec::new();
    while held.len() < 200 {
        rig.settle_down();
        held.extend(deliveries(&consumer));
        rig.turn(|turn| super::dispatch(turn, &queue));
    }
    let resident = rig.shared.resident_bytes();
    assert!(resident < 256 * 1024, "{resident} bytes stay in memory");
    let aftermath = rig.turn(|turn| cancel(turn, &queue, consumer.id));
    assert_eq!(aftermath, Aftermath::Stays);
    rig.settle(&held, SettleOutcome::Requeue);
    assert_eq!(rig.take_all(&queue), vec![format!("{big}*"); 200]);
}

#[test]
fn byte_limit_drops_nothing_that_fits_when_a_queue_is_restored() {
    // The log knows the length of a record, which is more than the body that counts for the limit.
    let mut rig = Rig::new();
    let settings = QueueArguments {
        max_length_bytes: Some(30),
        ..QueueArguments::default()
    };
    let queue = rig.queue_with("q", settings);
    for body in ["aaaaaaaaaa", "bbbbbbbbbb", "cccccccccc"] {
        rig.publish(&queue, persistent(body));
    }
    let image = queue.image(ImageKind::Running).expect("it is durable");
    assert_eq!(image.entries.len(), 3);
    let restored = rig
        .turn(|turn| Queue::restore(queue.spec().clone(), queue.settings(), image.clone(), turn));
    assert_eq!(restored.stats().ready_count, 3);
    let taken = rig.get(&restored).expect("the first");
    assert_eq!(body_of(&taken.message), "aaaaaaaaaa");
    rig.publish(&restored, persistent("dddddddddd"));
    assert_eq!(
        rig.take_all(&restored),
        ["bbbbbbbbbb", "cccccccccc", "dddddddddd"]
    );
}

/// Proves I15.
#[test]
fn unreadable_message_is_looked_up_again_then_quarantined() {
    let mut rig = Rig::with_memory(0);
    let queue = rig.queue("q");
    for body in ["bad", "good"] {
        rig.publish(&queue, persistent(&body.repeat(10_000)));
    }
    let mut image = queue.image(ImageKind::Running).expect("it is durable");
    let bad = image.entries.get_mut(Seq(1)).expect("the first");
    bad.position.lsn = Lsn(1);
    let restored = rig
        .turn(|turn| Queue::restore(queue.spec().clone(), queue.settings(), image.clone(), turn));
    let taken = rig.get(&restored).expect("the second");
    assert!(body_of(&taken.message).starts_with("good"));
    assert_eq!(restored.stats().quarantined_count, 1);
    assert_eq!(rig.shared.quarantined_count(), 1);
    let image = restored.image(ImageKind::Stopped).expect("it is durable");
    assert!(image.entries.get(Seq(1)).is_some(), "it is never settled");
}

#[test]
fn get_on_an_emptied_queue_is_answered() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    rig.publish_texts(&queue, "a");
    let outbox = testing::outbox();
    let outcome = rig.turn(|turn| super::get(turn, &queue, 3, &outbox, false));
    assert!(matches!(outcome, GetOutcome::Pending));
    rig.turn(|turn| purge(turn, &queue));
    rig.settle_down();
    assert!(matches!(
        testing::drain(&outbox).list(),
        [OutboxItem::GetReady {
            channel: 3,
            got: None
        }]
    ));
}

/// Proves I32.
#[test]
fn transaction_is_one_group_and_visible_once_durable() {
    let mut rig = Rig::new();
    let (source, target) = (rig.queue("s"), rig.queue("t"));
    let consumer = rig.consume(&source, |_| {});
    rig.publish_texts(&source, "a");
    let held = deliveries(&consumer);
    let publishes = ["x", "y"].map(|body| RoutedPublish {
        message: Arc::new(persistent(body)),
        targets: vec![source.clone(), target.clone()],
    });
    let settlements = [(SettleOutcome::Ack, vec![held[0].unacked()])];
    let before = rig.journal.pushes().len();
    let committed = rig
        .turn(|turn| commit(turn, &publishes, &settlements))
        .expect("it is small");
    let pushes = rig.journal.pushes();
    assert_eq!(pushes.len(), before + 1);
    assert!(pushes[before].is_atomic);
    assert_eq!(committed.durable_at, Some(pushes[before].end));
    assert!(deliveries(&consumer).is_empty());
    assert_eq!(target.stats().ready_count, 0);
    rig.settle_down();
    assert_eq!(shown(&deliveries(&consumer)), ["x", "y"]);
    assert_eq!(rig.take_all(&target), ["x", "y"]);
}

#[test]
fn transaction_larger_than_a_group_is_refused_untouched() {
    let mut rig = Rig::new();
    rig.journal.set_group_max_bytes(100);
    let queue = rig.queue("q");
    let publishes = [RoutedPublish {
        message: Arc::new(persistent(&"x".repeat(200))),
        targets: vec![queue.clone()],
    }];
    let refused = rig.turn(|turn| commit(turn, &publishes, &[]));
    assert!(matches!(refused, Err(GroupTooLarge { max_bytes: 100, .. })));
    assert_eq!(queue.stats(), QueueStats::default());
    assert!(rig.journal.pushes().is_empty());
}

#[test]
fn fan_out_counts_for_the_size_of_a_transaction() {
    let mut rig = Rig::new();
    let targets = [rig.queue("p"), rig.queue("q"), rig.queue("r")];
    let message = Arc::new(persistent("x"));
    rig.journal
        .set_group_max_bytes(message.payload_len() as u64 + 60);
    let publish = |targets: &[QueueHandle]| RoutedPublish {
        message: Arc::clone(&message),
        targets: targets.to_vec(),
    };
    let narrow = rig.turn(|turn| commit(turn, &[publish(&targets[..2])], &[]));
    assert!(narrow.is_ok());
    let wide = rig.turn(|turn| commit(turn, &[publish(&targets)], &[]));
    assert!(matches!(wide, Err(GroupTooLarge { .. })));
}

#[test]
fn transient_transaction_is_visible_at_once() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    let publishes = [RoutedPublish {
        message: Arc::new(transient("x")),
        targets: vec![queue.clone()],
    }];
    let committed = rig
        .turn(|turn| commit(turn, &publishes, &[]))
        .expect("small");
    assert_eq!(committed.durable_at, None);
    assert_eq!(rig.take_all(&queue), ["x"]);
}

#[test]
fn straggler_does_not_keep_the_memory_of_what_was_settled_behind_it() {
    let mut slots = super::super::slots::Slots::new(Seq(1), 0);
    let content = Arc::new(transient("m"));
    let arrived = || {
        super::super::slots::Slot::arrived(
            super::super::slots::Status::Ready,
            Arc::clone(&content),
            0,
        )
    };
    slots.push(0, arrived());
    for _ in 0..100_000 {
        let seq = slots.push(0, arrived());
        slots.remove(seq);
    }
    assert!(slots.run_count() <= 2);
    assert_eq!(slots.first_ready().entry(), Some(Seq(1)));
}

/// With limits a publish and what it drops are one group, whose size the places in all queues count for.
#[test]
fn fan_out_to_limited_queues_is_cut_into_groups() {
    let mut rig = Rig::new();
    let settings = QueueArguments {
        max_length: Some(100),
        ..QueueArguments::default()
    };
    let targets: Vec<QueueHandle> = (0..3)
        .map(|_| rig.queue_with("q", settings.clone()))
        .collect();
    let one_bytes = persistent("x").payload_len() as u64 + 3 * 24;
    rig.journal.set_group_max_bytes(2 * one_bytes);
    rig.publish_all(&targets, (0..5).map(|_| persistent("x")).collect());
    let pushes = rig.journal.pushes();
    let counts = pushes.iter().map(|push| push.records.len());
    assert!(counts.eq([2, 2, 1]));
}
