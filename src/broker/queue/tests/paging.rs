//! Deep queues: each operation on a queue whose head is in the index file.

use std::collections::BTreeSet;

use super::*;
use crate::broker::queue::ImageKind;
use crate::storage::types::{ImageEntry, Move, Position, SegmentId};

/// A queue of persistent messages `0, 1, ..`, all of it filed, as it comes back from a restart.
fn filed_queue(rig: &mut Rig, settings: QueueArguments, count: usize) -> QueueHandle {
    let queue = rig.queue_with("q", settings);
    fill(rig, &queue, 0, count);
    assert!(rig.file(&queue) > 0);
    queue.check_sums();
    let image = queue.image(ImageKind::Stopped).expect("it is durable");
    assert_eq!(image.entries.len(), 0);
    let deleted = rig.turn(|turn| delete(turn, &queue, DeleteCondition::default(), || {}));
    assert_eq!(deleted, Ok(u32::try_from(count).unwrap()));
    let queue =
        rig.turn(|turn| Queue::restore(queue.spec().clone(), queue.settings(), image, turn));
    rig.turn(|turn| queue.renew_lease(turn));
    assert_eq!(rig.shared.entries_bytes(), 0, "nothing is in memory");
    queue
}

fn fill(rig: &mut Rig, queue: &QueueHandle, from: usize, count: usize) {
    let messages = (from..from + count).map(|at| persistent(&at.to_string()));
    let messages: Vec<Message> = messages.collect();
    rig.publish_all(std::slice::from_ref(queue), messages);
}

fn bodies(from: usize, to: usize) -> Vec<String> {
    (from..to).map(|at| at.to_string()).collect()
}

/// Takes everything with a consumer that acks at once.
fn drain(rig: &mut Rig, queue: &QueueHandle) -> Vec<String> {
    let consumer = rig.consume(queue, |spec| spec.prefetch = 300);
    let mut seen = Vec::new();
    loop {
        rig.settle_down();
        let got = deliveries(&consumer);
        if got.is_empty() {
            break;
        }
        seen.extend(got.iter().map(|delivery| body_of(&delivery.message)));
        rig.settle(&got, SettleOutcome::Ack);
    }
    let aftermath = rig.turn(|turn| cancel(turn, queue, consumer.id));
    assert_eq!(aftermath, Aftermath::Stays);
    seen
}

/// What was found to be unreadable in a filed run is kept aside, that and nothing else, whoever asks for the run when.
#[test]
fn unreadable_messages_of_a_filed_run_are_kept_aside() {
    for is_asked_for in [false, true] {
        let mut rig = Rig::paging();
        let queue = filed_queue(&mut rig, QueueArguments::default(), 1000);
        let (entries, runs) = queue.refs_in(&BTreeSet::from([SegmentId(0)]));
        assert!(entries.is_empty());
        let run = runs.into_iter().nth(1).expect("there are four");
        let of_run = rig.index.read(&run).expect("it is whole");
        let consumer = is_asked_for.then(|| {
            // Its answer is on the way and comes late.
            rig.consume(&queue, |spec| spec.prefetch = 300)
        });
        let failure = |entry: &ImageEntry| {
            let reason = "rot".to_owned();
            (entry.seq, entry.position, FetchFailure { reason })
        };
        let unreadable = Unreadable {
            messages: of_run[7..9].iter().map(failure).collect(),
            runs: vec![(run, of_run.clone())],
        };
        let count = rig.turn(|turn| quarantine(turn, &queue, unreadable));
        assert_eq!(count, 2);
        queue.check_sums();
        assert_eq!(queue.stats().quarantined_count, 2);
        assert_eq!(queue.stats().ready_count + queue.stats().unacked_count, 998);
        let mut seen = Vec::new();
        if let Some(consumer) = consumer {
            rig.settle_down();
            // Whoever leaves is given no more.
            let aftermath = rig.turn(|turn| cancel(turn, &queue, consumer.id));
            assert_eq!(aftermath, Aftermath::Stays);
            let got = deliveries(&consumer);
            seen.extend(got.iter().map(|delivery| body_of(&delivery.message)));
            rig.settle(&got, SettleOutcome::Ack);
        }
        let bad: Vec<String> = of_run[7..9]
            .iter()
            .map(|entry| (entry.seq.0 - 1).to_string())
            .collect();
        let mut expected = bodies(0, 1000);
        expected.retain(|body| !bad.contains(body));
        seen.extend(drain(&mut rig, &queue));
        assert!(seen == expected, "{} messages", seen.len());
        assert_eq!(queue.stats().quarantined_count, 2);
        queue.check_sums();
    }
}

/// Messages that lie elsewhere by now, one that a consumer has, some that are being read, and one that is in memory.
#[test]
fn what_is_not_read_from_the_damaged_place_is_not_kept_aside() {
    let mut rig = Rig::paging();
    let queue = filed_queue(&mut rig, QueueArguments::default(), 1000);
    let segments = BTreeSet::from([SegmentId(0)]);
    let failure = |seq: Seq, position: Position| {
        let reason = "rot".to_owned();
        (seq, position, FetchFailure { reason })
    };
    let run = queue.refs_in(&segments).1.swap_remove(0);
    let of_run = rig.index.read(&run).expect("it is whole");
    let elsewhere = of_run.iter().map(|entry| {
        let mut position = entry.position;
        position.lsn.0 += 8;
        failure(entry.seq, position)
    });
    let unreadable = Unreadable {
        messages: elsewhere.collect(),
        runs: vec![(run, of_run.clone())],
    };
    assert_eq!(rig.turn(|turn| quarantine(turn, &queue, unreadable)), 0);
    fill(&mut rig, &queue, 1000, 1);
    let consumer = rig.consume(&queue, |spec| spec.prefetch = 10);
    let (seq, position) = rig.effects.fetches[0].wanted[0];
    assert!(rig.effects.fetches[0].wanted.len() > 200);
    let result = rig.read(position);
    rig.turn(|turn| fetched(turn, &queue, vec![(seq, result.and_then(decoded))]));
    rig.journal.make_durable();
    for (_, what) in std::mem::take(&mut rig.effects.after_durable) {
        if let AfterDurable::Redispatch(queue) = what {
            rig.turn(|turn| super::super::dispatch(turn, &queue));
        }
    }
    let held = deliveries(&consumer);
    assert_eq!(shown(&held), ["0"]);
    let entries = queue.refs_in(&segments).0;
    let there = entries
        .iter()
        .map(|entry| failure(entry.seq, entry.position));
    let unreadable = Unreadable {
        messages: there.collect(),
        runs: Vec::new(),
    };
    assert_eq!(rig.turn(|turn| quarantine(turn, &queue, unreadable)), 0);
    rig.settle(&held, SettleOutcome::Ack);
    rig.settle_down();
    let aftermath = rig.turn(|turn| cancel(turn, &queue, consumer.id));
    assert_eq!(aftermath, Aftermath::Stays);
    let next = deliveries(&consumer);
    rig.settle(&next, SettleOutcome::Requeue);
    assert_eq!(drain(&mut rig, &queue), bodies(1, 1001));
    assert_eq!(queue.stats().quarantined_count, 0);
    queue.check_sums();
}

#[test]
fn only_what_lies_where_it_was_found_moves() {
    let mut rig = Rig::paging();
    let queue = rig.queue("q");
    fill(&mut rig, &queue, 0, 1);
    let places = || queue.refs_in(&BTreeSet::from([SegmentId(0)])).0;
    let before = places();
    let mut from = before[0].position;
    from.lsn.0 += 8;
    let (seq, mut to) = (before[0].seq, from);
    to.lsn.0 += 8;
    queue.relocate(&[Move { seq, from, to }]);
    assert_eq!(places(), before);
}

#[test]
fn filed_backlog_is_delivered_in_order_and_leaves_memory_again() {
    let mut rig = Rig::paging();
    let queue = rig.queue("q");
    fill(&mut rig, &queue, 0, 3000);
    rig.file(&queue);
    let stats = queue.stats();
    assert_eq!(stats.ready_count, 3000);
    assert_eq!(stats.ready_bytes, 10 + 180 + 2700 + 8000);
    assert_eq!(rig.shared.resident_bytes(), 0);
    assert_eq!(rig.shared.filed_run_count(), 12);
    let first = rig.get(&queue).expect("the first");
    assert_eq!(body_of(&first.message), "0");
    rig.settle(&[first], SettleOutcome::Requeue);
    assert_eq!(
        rig.file(&queue),
        0,
        "the blocks hold: nothing is written again"
    );
    assert_eq!(rig.shared.entries_bytes(), 0);
    assert_eq!(rig.shared.filed_run_count(), 12);
    let taken = rig.get(&queue).expect("the first");
    assert_eq!(show(&taken), "0*", "that it was delivered is not forgotten");
    rig.settle(&[taken], SettleOutcome::Ack);
    rig.file(&queue);
    assert_eq!(drain(&mut rig, &queue), bodies(1, 3000));
    queue.check_sums();
    assert_eq!(rig.shared.filed_run_count(), 0);
}

/// Proves I37.
#[test]
fn deep_queue_leaves_memory_as_it_grows_and_is_drained_in_order() {
    const COUNT: usize = 200_000;
    let mut rig = Rig::new();
    let journal = Arc::<FakeJournal>::clone(&rig.journal);
    rig.shared = QueueShared::new(journal, 1 << 30).with_index_limits(IndexLimits {
        min_messages: 1024,
        entries_max_bytes: 4 << 20,
    });
    let queue = rig.queue("q");
    for from in (0..COUNT).step_by(10_000) {
        fill(&mut rig, &queue, from, 10_000);
        if rig.shared.wants_filing() {
            rig.file(&queue);
            rig.shared.note_filing();
        }
        let bytes = rig.shared.entries_bytes();
        assert!(bytes < 1 << 20, "{bytes} bytes of entries");
    }
    rig.file(&queue);
    assert_eq!(rig.shared.entries_bytes() / 40, COUNT as u64 % 256 + 1);
    let image = queue.image(ImageKind::Running).expect("it is durable");
    assert!(
        image.entries.len() < 256,
        "a checkpoint copies the tail only"
    );
    assert_eq!(drain(&mut rig, &queue), bodies(0, COUNT));
    assert!(rig.shared.entries_bytes() < 16 * 1024);
}

#[test]
fn runs_are_loaded_before_the_head_is_drained() {
    let mut rig = Rig::paging();
    let queue = filed_queue(&mut rig, QueueArguments::default(), 2560);
    let consumer = rig.consume(&queue, |spec| spec.prefetch = 1);
    rig.settle_down();
    let mut stalled_count = 0;
    for at in 0..2560 {
        let got = deliveries(&consumer);
        assert_eq!(shown(&got), [at.to_string()]);
        rig.settle(&got, SettleOutcome::Ack);
        // The run of the next message is in memory, unless this was the last one that was loaded.
        let loads = std::mem::take(&mut rig.effects.run_loads);
        stalled_count += usize::from(!loads.is_empty() && at % 256 == 255);
        rig.effects.run_loads = loads;
        rig.settle_down();
    }
    assert_eq!(stalled_count, 0);
}

/// Proves I40.
#[test]
fn reads_for_consumers_that_take_everything_are_bounded() {
    const COUNT: usize = 30_000;
    let mut rig = Rig::paging();
    let queue = filed_queue(&mut rig, QueueArguments::default(), COUNT);
    let consumers: Vec<TestConsumer> = (0..5).map(|_| rig.consume(&queue, |_| {})).collect();
    rig.journal.make_durable();
    let mut seen = 0;
    while seen < COUNT {
        for load in std::mem::take(&mut rig.effects.run_loads) {
            rig.answer(load);
        }
        for (_, what) in std::mem::take(&mut rig.effects.after_durable) {
            if let AfterDurable::Redispatch(queue) = what {
                rig.turn(|turn| super::super::dispatch(turn, &queue));
            }
        }
        // Nobody answers for a while. A chunk is being delivered, two are ahead of it.
        let asked: usize = rig.effects.fetches.iter().map(|f| f.wanted.len()).sum();
        assert!(asked <= 3 * 2048, "{asked} bodies are on their way");
        let first = rig.effects.fetches.first_mut();
        let answered: Vec<_> = first.map_or_else(Vec::new, |first| {
            first.wanted.drain(..first.wanted.len().min(100)).collect()
        });
        rig.effects.fetches.retain(|fetch| !fetch.wanted.is_empty());
        for (seq, position) in answered {
            let result = rig.read(position);
            rig.turn(|turn| fetched(turn, &queue, vec![(seq, result.and_then(decoded))]));
        }
        queue.check_sums();
        for got in consumers.iter().map(deliveries) {
            seen += got.len();
            rig.settle(&got, SettleOutcome::Ack);
        }
        rig.journal.make_durable();
        // Of what is not taken yet, a window is in memory.
        let bytes = rig.shared.entries_bytes();
        assert!(bytes <= 48 * 256 * 40, "{bytes} bytes of entries");
    }
    queue.check_sums();
}

#[test]
fn short_queues_are_filed_only_when_entries_take_too_much_memory() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    fill(&mut rig, &queue, 0, 1023);
    assert_eq!(rig.file(&queue), 0);
    fill(&mut rig, &queue, 1023, 1);
    assert_eq!(rig.file(&queue), 4, "complete runs only: seqs start at 1");
    assert_eq!(rig.shared.filed_run_count(), 4);

    let journal = Arc::<FakeJournal>::clone(&rig.journal);
    rig.shared = QueueShared::new(journal, 1 << 30).with_index_limits(IndexLimits {
        min_messages: 1_000_000,
        entries_max_bytes: 1000,
    });
    let queue = rig.queue("p");
    fill(&mut rig, &queue, 0, 20);
    assert_eq!(rig.file(&queue), 0);
    fill(&mut rig, &queue, 20, 600);
    assert_eq!(rig.file(&queue), 2);
}

#[test]
fn a_run_with_messages_that_are_not_logged_or_held_stays() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    fill(&mut rig, &queue, 0, 300);
    rig.publish(&queue, transient("t"));
    fill(&mut rig, &queue, 301, 1000);
    let held = rig.get(&queue).expect("the first");
    rig.file(&queue);
    assert_eq!(
        rig.shared.filed_run_count(),
        3,
        "not runs 0 and 1, nor the tail"
    );
    rig.settle(&[held], SettleOutcome::Requeue);
    rig.file(&queue);
    assert_eq!(rig.shared.filed_run_count(), 4);
    let mut expected = bodies(0, 1301);
    expected[300] = "t".into();
    assert_eq!(drain(&mut rig, &queue), expected);
}

#[test]
fn purge_of_a_filed_queue_is_one_range_and_late_answers_are_ignored() {
    let mut rig = Rig::paging();
    let queue = filed_queue(&mut rig, QueueArguments::default(), 5000);
    let outbox = testing::outbox();
    let pending = rig.turn(|turn| super::super::get(turn, &queue, 7, &outbox, false));
    assert!(matches!(pending, GetOutcome::Pending));
    let loads = std::mem::take(&mut rig.effects.run_loads);
    assert!(!loads.is_empty());
    let purged = rig.turn(|turn| purge(turn, &queue));
    assert_eq!(purged.message_count, 5000);
    let settled = rig
        .journal
        .records()
        .into_iter()
        .find_map(|record| match record {
            testing::Logged::Settle { ranges, .. } => Some(ranges),
            _ => None,
        });
    assert_eq!(settled.expect("logged").len(), 1);
    for load in loads {
        rig.answer(load);
    }
    let items = testing::drain(&outbox);
    assert!(matches!(
        items.list(),
        [OutboxItem::GetReady { got: None, .. }]
    ));
    queue.check_sums();
    assert_eq!(queue.stats(), QueueStats::default());
    assert!(rig.journal.replay(queue.id()).entries.is_empty());
}

#[test]
fn purge_spares_what_is_held_between_filed_runs() {
    let mut rig = Rig::paging();
    let queue = filed_queue(&mut rig, QueueArguments::default(), 1000);
    let held: Vec<Delivery> = (0..300).filter_map(|_| rig.get(&queue)).collect();
    rig.settle(&held[..299], SettleOutcome::Requeue);
    rig.file(&queue);
    let purged = rig.turn(|turn| purge(turn, &queue));
    assert_eq!(purged.message_count, 999);
    let left = rig.journal.replay(queue.id()).entries;
    assert_eq!(
        left.iter().map(|entry| entry.seq).collect::<Vec<_>>(),
        [held[299].seq]
    );
    queue.check_sums();
}

#[test]
fn delete_of_a_filed_queue_frees_everything() {
    let mut rig = Rig::paging();
    let queue = filed_queue(&mut rig, QueueArguments::default(), 1000);
    let deleted = rig.turn(|turn| delete(turn, &queue, DeleteCondition::default(), || {}));
    assert_eq!(deleted, Ok(1000));
    assert_eq!(rig.shared.filed_run_count(), 0);
    assert_eq!(rig.shared.entries_bytes(), 0);
}

#[test]
fn filed_messages_expire_in_bulk_into_the_dead_letter_exchange() {
    let mut rig = Rig::paging();
    let target = rig.queue("target");
    rig.bind("dlx", "key", &target);
    let settings = QueueArguments {
        message_ttl_ms: Some(1000),
        ..super::dying::dead_letter_to("dlx", Some("key"))
    };
    let queue = filed_queue(&mut rig, settings, 10_000);
    assert!(
        rig.effects
            .timers
            .iter()
            .all(|timer| timer.due_at_ms == rig.now_ms + 1000)
    );
    rig.advance(999);
    assert_eq!(queue.stats().ready_count, 10_000);
    rig.advance(1);
    rig.settle_down();
    assert_eq!(queue.stats(), QueueStats::default());
    assert_eq!(target.stats().ready_count, 10_000);
    assert_eq!(drain(&mut rig, &target), bodies(0, 10_000));
    assert!(rig.journal.replay(queue.id()).entries.is_empty());
}

#[test]
fn length_limit_drops_from_a_filed_head() {
    let mut rig = Rig::paging();
    let settings = QueueArguments {
        max_length: Some(1000),
        ..QueueArguments::default()
    };
    let queue = filed_queue(&mut rig, settings, 1000);
    for at in 1000..3000 {
        rig.publish(&queue, persistent(&at.to_string()));
        rig.settle_down();
        assert_eq!(queue.stats().ready_count, 1000);
        if at % 100 == 0 {
            rig.file(&queue);
        }
    }
    assert_eq!(drain(&mut rig, &queue), bodies(2000, 3000));
}

#[test]
fn byte_limit_keeps_entries_in_memory_and_sums_exact() {
    let mut rig = Rig::paging();
    let settings = QueueArguments {
        max_length_bytes: Some(100_000),
        ..QueueArguments::default()
    };
    let queue = rig.queue_with("q", settings);
    fill(&mut rig, &queue, 0, 1000);
    assert_eq!(rig.file(&queue), 4);
    assert_eq!(rig.shared.filed_run_count(), 0);
    assert_eq!(
        queue.image(ImageKind::Running).expect("durable").runs.len(),
        4
    );
    rig.publish(&queue, persistent(&"x".repeat(99_999)));
    assert_eq!(queue.stats().ready_bytes, 99_999);
}

#[test]
fn filed_queue_is_restored_without_its_entries() {
    for kind in [ImageKind::Running, ImageKind::Stopped] {
        let mut rig = Rig::paging();
        let queue = filed_queue(&mut rig, QueueArguments::default(), 1000);
        let held: Vec<Delivery> = (0..10).filter_map(|_| rig.get(&queue)).collect();
        assert_eq!(held.len(), 10);
        rig.file(&queue);
        let image = queue.image(kind).expect("it is durable");
        assert_eq!((image.entries.len(), image.runs.len()), (0, 4));
        // Seqs start at 1.
        let marked = usize::try_from(image.reserved_upto.0 - 1).unwrap();
        assert!(if kind == ImageKind::Stopped {
            marked == 10
        } else {
            marked > 10 && marked < 1000
        });
        rig.shared = QueueShared::new(Arc::<FakeJournal>::clone(&rig.journal), 1 << 30);
        let restored =
            rig.turn(|turn| Queue::restore(queue.spec().clone(), queue.settings(), image, turn));
        assert_eq!(restored.stats().ready_count, 1000);
        assert_eq!(rig.shared.entries_bytes(), 0);
        fill(&mut rig, &restored, 1000, 5);
        let shown = rig.take_all(&restored);
        let expected: Vec<String> = (0..1005)
            .map(|at| format!("{at}{}", if at < marked { "*" } else { "" }))
            .collect();
        assert_eq!(shown, expected, "{kind:?}");
    }
}

#[test]
fn unreadable_run_is_quarantined_and_never_settled() {
    let mut rig = Rig::paging();
    let queue = filed_queue(&mut rig, QueueArguments::default(), 1000);
    rig.index.damage(1);
    let mut expected = bodies(0, 255);
    expected.extend(bodies(511, 1000));
    assert_eq!(drain(&mut rig, &queue), expected);
    assert_eq!(queue.stats().quarantined_count, 256);
    assert_eq!(rig.shared.quarantined_count(), 256);
    let image = queue.image(ImageKind::Running).expect("it is durable");
    assert_eq!(image.runs.len(), 1);
    assert_eq!(rig.journal.replay(queue.id()).entries.len(), 256);
    // Only who purges the queue or deletes it takes them away.
    let purged = rig.turn(|turn| purge(turn, &queue));
    assert_eq!(purged.message_count, 256);
    queue.check_sums();
    assert_eq!(queue.stats().quarantined_count, 0);
    assert_eq!(rig.journal.replay(queue.id()).entries.len(), 0);
}

#[test]
fn a_transaction_is_filed_once_it_is_visible() {
    let mut rig = Rig::paging();
    let queue = rig.queue("q");
    let publish = |at: usize| RoutedPublish {
        message: Arc::new(persistent(&at.to_string())),
        targets: vec![Arc::clone(&queue)],
    };
    let publishes: Vec<RoutedPublish> = (0..700).map(publish).collect();
    rig.turn(|turn| commit(turn, &publishes, &[]))
        .expect("it fits");
    assert_eq!(rig.file(&queue), 0, "hidden");
    rig.settle_down();
    assert_eq!(rig.file(&queue), 3);
    assert_eq!(drain(&mut rig, &queue), bodies(0, 700));
}

#[test]
fn an_idle_queue_takes_little_memory() {
    let mut rig = Rig::paging();
    let queue = filed_queue(&mut rig, QueueArguments::default(), 1000);
    assert_eq!(drain(&mut rig, &queue).len(), 1000);
    let bytes = size_of::<Queue>() + lock(&queue.state).slots.heap_bytes();
    assert!(bytes <= 1024, "{bytes} bytes");
}
