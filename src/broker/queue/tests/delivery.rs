//! Order, turns, prefetch, requeue, get.

use super::*;

#[test]
fn messages_come_in_order_and_to_consumers_in_turn() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    let first = rig.consume(&queue, |_| {});
    let second = rig.consume(&queue, |_| {});
    rig.publish_texts(&queue, "abcdef");
    assert_eq!(shown(&deliveries(&first)), ["a", "c", "e"]);
    assert_eq!(shown(&deliveries(&second)), ["b", "d", "f"]);
}

#[test]
fn higher_priority_is_served_first_and_lower_once_it_is_full() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    let low = rig.consume(&queue, |spec| spec.priority = -1);
    let high = rig.consume(&queue, |spec| {
        spec.priority = 5;
        spec.prefetch = 2;
    });
    rig.publish_texts(&queue, "abcd");
    let held = deliveries(&high);
    assert_eq!(shown(&held), ["a", "b"]);
    assert_eq!(shown(&deliveries(&low)), ["c", "d"]);
    rig.settle(&held[..1], SettleOutcome::Ack);
    rig.publish_texts(&queue, "e");
    assert_eq!(shown(&deliveries(&high)), ["e"]);
}

#[test]
fn every_way_to_settle_frees_a_place() {
    for outcome in [
        SettleOutcome::Ack,
        SettleOutcome::Reject,
        SettleOutcome::Requeue,
    ] {
        let mut rig = Rig::new();
        let queue = rig.queue("q");
        let consumer = rig.consume(&queue, |spec| spec.prefetch = 1);
        rig.publish_texts(&queue, "ab");
        let held = deliveries(&consumer);
        assert_eq!(held.len(), 1);
        rig.settle(&held, outcome);
        let next = deliveries(&consumer);
        let expected = if outcome == SettleOutcome::Requeue {
            "a*"
        } else {
            "b"
        };
        assert_eq!(shown(&next), [expected], "{outcome:?}");
    }
}

#[test]
fn channel_limit_is_shared_over_queues_and_resumes_both() {
    let mut rig = Rig::new();
    let (one, two) = (rig.queue("one"), rig.queue("two"));
    let credit = Arc::new(ChannelCredit::new());
    rig.turn(|turn| set_channel_prefetch(turn, &credit, 2));
    let share = |spec: &mut ConsumerSpec| spec.channel_credit = Arc::clone(&credit);
    let first = rig.consume(&one, share);
    let second = rig.consume(&two, share);
    rig.publish_texts(&one, "abc");
    rig.publish_texts(&two, "xyz");
    let held = deliveries(&first);
    assert_eq!(shown(&held), ["a", "b"]);
    assert!(deliveries(&second).is_empty());
    rig.settle(&held, SettleOutcome::Ack);
    rig.settle_down();
    let together = deliveries(&first).len() + deliveries(&second).len();
    assert_eq!((together, credit.used()), (2, 2));
    rig.turn(|turn| set_channel_prefetch(turn, &credit, 0));
    assert_eq!(deliveries(&first).len() + deliveries(&second).len(), 2);
}

#[test]
fn channel_limit_serves_waiting_queues_in_turn_and_no_more_than_it_has_room_for() {
    let mut rig = Rig::new();
    let credit = Arc::new(ChannelCredit::new());
    rig.turn(|turn| set_channel_prefetch(turn, &credit, 1));
    let queues: Vec<_> = (0..20)
        .map(|index| rig.queue(&format!("q{index}")))
        .collect();
    let consumers: Vec<_> = queues
        .iter()
        .map(|queue| rig.consume(queue, |spec| spec.channel_credit = Arc::clone(&credit)))
        .collect();
    for queue in &queues {
        rig.publish_texts(queue, "a");
        // Noted once, however often it is turned away.
        rig.publish_texts(queue, "b");
    }
    let mut order = Vec::new();
    for _ in &queues {
        let waiting_count = credit.waiting_count();
        let mut held = Vec::new();
        for (index, consumer) in consumers.iter().enumerate() {
            let got = deliveries(consumer);
            order.extend(got.iter().map(|_| index));
            held.extend(got);
        }
        assert_eq!(held.len(), 1);
        // The queue that gives room back has one more message, which it is offered before all others.
        rig.settle(&held, SettleOutcome::Ack);
        let again: Vec<_> = consumers.iter().flat_map(deliveries).collect();
        assert_eq!(shown(&again), ["b"]);
        // So nobody was called.
        assert_eq!(credit.waiting_count(), waiting_count);
        assert!(waiting_count <= queues.len());
        rig.settle(&again, SettleOutcome::Ack);
        rig.settle_down();
    }
    assert_eq!(order, (0..queues.len()).collect::<Vec<_>>());
    assert_eq!((credit.used(), credit.waiting_count()), (0, 0));
}

/// Proves I16.
#[test]
fn requeued_messages_go_back_to_their_places() {
    // The table of AK-8: m0..m4, three taken, m1 nacked, then m0 rejected, both with requeue.
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    rig.publish_texts(&queue, "01234");
    let taken: Vec<_> = (0..3).filter_map(|_| rig.get(&queue)).collect();
    rig.settle(&taken[1..2], SettleOutcome::Requeue);
    rig.settle(&taken[0..1], SettleOutcome::Requeue);
    assert_eq!(rig.take_all(&queue), ["0*", "1*", "3", "4"]);
}

#[test]
fn message_taken_without_ack_is_settled_with_its_delivery() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    let consumer = rig.consume(&queue, |spec| spec.is_no_ack = true);
    rig.publish_all(
        std::slice::from_ref(&queue),
        vec![persistent("a"), persistent("b"), persistent("c")],
    );
    assert_eq!(shown(&deliveries(&consumer)), ["a", "b", "c"]);
    assert_eq!(
        queue.stats(),
        QueueStats {
            consumer_count: 1,
            ..QueueStats::default()
        }
    );
    let settles = rig
        .journal
        .records()
        .into_iter()
        .filter(|record| matches!(record, testing::Logged::Settle { .. }));
    assert_eq!(settles.count(), 1, "one record for the run");
    assert!(rig.journal.replay(queue.id()).entries.is_empty());
}

#[test]
fn consumer_with_a_full_outbox_is_passed_over_until_it_is_drained() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    let slow = rig.consume(&queue, |_| {});
    let big = "x".repeat(300 * 1024);
    for _ in 0..4 {
        rig.publish(&queue, transient(&big));
    }
    assert_eq!(queue.stats().ready_count, 2, "two fill the outbox");
    assert_eq!(deliveries(&slow).len(), 2);
    rig.turn(|turn| super::dispatch(turn, &queue));
    assert_eq!(deliveries(&slow).len(), 2);
}

#[test]
fn queues_turned_away_by_a_full_outbox_are_served_in_turn_and_no_others_are_touched() {
    let mut rig = Rig::new();
    let outbox = testing::outbox();
    let queues: Vec<QueueHandle> = (0..40).map(|at| rig.queue(&format!("q{at}"))).collect();
    for queue in &queues {
        rig.consume(queue, |spec| spec.outbox = Arc::clone(&outbox));
    }
    // Two of these fill the outbox.
    let big = "x".repeat(300 * 1024);
    let backlog = |rig: &mut Rig, at: usize, count: usize| {
        for _ in 0..count {
            rig.publish(&queues[at], transient(&big));
        }
    };
    let served = |rig: &mut Rig| {
        let items = testing::drain(&outbox);
        rig.turn(|turn| super::outbox_drained(turn, &outbox));
        let ids = items.into_deliveries().map(|delivery| delivery.queue.id());
        ids.map(|id| queues.iter().position(|queue| queue.id() == id).unwrap())
            .collect::<Vec<_>>()
    };
    backlog(&mut rig, 7, 5);
    backlog(&mut rig, 3, 4);
    backlog(&mut rig, 30, 1);
    // Each box is filled by the one that waits longest; whoever had something waits behind the others.
    assert_eq!(served(&mut rig), [7, 7]);
    assert_eq!(served(&mut rig), [7, 7]);
    assert_eq!(served(&mut rig), [3, 3]);
    assert_eq!(served(&mut rig), [30, 7]);
    assert_eq!(served(&mut rig), [3, 3]);
    assert!(served(&mut rig).is_empty());
    assert!(outbox.take_waiting().is_empty(), "nobody waits any more");
    // Who was served may be turned away again.
    backlog(&mut rig, 3, 3);
    assert_eq!(outbox.take_waiting().len(), 1);
}

#[test]
fn cancelled_consumer_gets_no_more_and_its_messages_stay_unacked() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    let credit = Arc::new(ChannelCredit::new());
    let consumer = rig.consume(&queue, |spec| spec.channel_credit = Arc::clone(&credit));
    rig.publish_texts(&queue, "a");
    let held = deliveries(&consumer);
    assert_eq!(
        rig.turn(|turn| cancel(turn, &queue, consumer.id)),
        Aftermath::Stays
    );
    rig.publish_texts(&queue, "b");
    assert!(deliveries(&consumer).is_empty());
    assert_eq!(queue.stats().unacked_count, 1);
    rig.settle(&held, SettleOutcome::Ack);
    assert_eq!((queue.stats().unacked_count, credit.used()), (0, 0));
}

#[test]
fn exclusive_consumer_wants_to_be_alone() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    let spec = |rig: &mut Rig, is_exclusive| ConsumerSpec {
        id: ConsumerId(rig.next_id()),
        channel: 1,
        outbox: testing::outbox(),
        is_no_ack: false,
        is_exclusive,
        prefetch: 0,
        priority: 0,
        channel_credit: Arc::new(ChannelCredit::new()),
    };
    let (alone, other) = (spec(&mut rig, true), spec(&mut rig, false));
    let alone_id = alone.id;
    assert_eq!(rig.turn(|turn| super::consume(turn, &queue, alone)), Ok(()));
    assert_eq!(
        rig.turn(|turn| super::consume(turn, &queue, other.clone())),
        Err(ConsumeRefusal::ExclusiveUse)
    );
    let _ = rig.turn(|turn| cancel(turn, &queue, alone_id));
    assert_eq!(rig.turn(|turn| super::consume(turn, &queue, other)), Ok(()));
    let late = spec(&mut rig, true);
    assert_eq!(
        rig.turn(|turn| super::consume(turn, &queue, late)),
        Err(ConsumeRefusal::ExclusiveUse)
    );
}

#[test]
fn single_active_consumer_is_followed_by_the_next_one() {
    let mut rig = Rig::new();
    let settings = QueueArguments {
        is_single_active_consumer: true,
        ..QueueArguments::default()
    };
    let queue = rig.queue_with("q", settings);
    let first = rig.consume(&queue, |_| {});
    let second = rig.consume(&queue, |_| {});
    rig.publish_texts(&queue, "ab");
    assert_eq!(shown(&deliveries(&first)), ["a", "b"]);
    let _ = rig.turn(|turn| cancel(turn, &queue, first.id));
    rig.publish_texts(&queue, "c");
    assert_eq!(shown(&deliveries(&second)), ["c"]);
}

#[test]
fn last_consumer_of_an_auto_delete_queue_leaves_it_unused() {
    let mut rig = Rig::new();
    let mut spec = rig.spec("q");
    spec.is_auto_delete = true;
    let queue = Queue::new(spec, QueueArguments::default().shared(), Lsn(0), 0);
    let (one, two) = (rig.consume(&queue, |_| {}), rig.consume(&queue, |_| {}));
    assert_eq!(
        rig.turn(|turn| cancel(turn, &queue, one.id)),
        Aftermath::Stays
    );
    assert_eq!(
        rig.turn(|turn| cancel(turn, &queue, two.id)),
        Aftermath::Unused
    );
}

#[test]
fn deletion_tells_consumers_and_publishers() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    let consumer = rig.consume(&queue, |spec| spec.prefetch = 1);
    rig.publish_texts(&queue, "abc");
    let held = deliveries(&consumer);
    let in_use = DeleteCondition {
        if_unused: true,
        if_empty: false,
    };
    let not_empty = DeleteCondition {
        if_unused: true,
        if_empty: true,
    };
    for (condition, refusal) in [
        (in_use, DeleteRefusal::InUse),
        (not_empty, DeleteRefusal::NotEmpty),
    ] {
        let refused = rig.turn(|turn| delete(turn, &queue, condition, || panic!("not logged")));
        assert_eq!(refused, Err(refusal));
    }
    let deleted = rig.turn(|turn| delete(turn, &queue, DeleteCondition::default(), || {}));
    assert_eq!(deleted, Ok(2));
    assert!(matches!(
        testing::drain(&consumer.outbox).list(),
        [OutboxItem::ConsumerCancelled { channel: 1, .. }]
    ));
    rig.settle(&held, SettleOutcome::Requeue);
    assert_eq!(queue.stats(), QueueStats::default());
    let outcome = rig.turn(|turn| {
        super::publish(
            turn,
            std::slice::from_ref(&queue),
            &mut vec![Arc::new(transient("x"))],
            &mut ConfirmRuns::default(),
        )
    });
    assert_eq!(outcome, Err(TargetDeleted));
}
