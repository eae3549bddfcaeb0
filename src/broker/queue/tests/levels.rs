//! Queues with priorities: order, filing, restarts and expiry level by level.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::slots::{Head, Slot, Slots, Status};
use super::*;
use crate::broker::queue::ImageKind;
use crate::storage::types::SeqRange;

fn levels(rig: &mut Rig, top: u8) -> QueueHandle {
    let settings = QueueArguments {
        max_priority: Some(top),
        ..QueueArguments::default()
    };
    rig.queue_with("q", settings)
}

fn urgent(body: &str, priority: u8) -> Message {
    message(body, |properties| {
        properties.set_delivery_mode(Some(2));
        properties.set_priority(Some(priority));
    })
}

/// Bodies of everything, in order of delivery, to a consumer that acknowledges.
fn drain(rig: &mut Rig, queue: &QueueHandle) -> Vec<String> {
    let consumer = rig.consume(queue, |spec| spec.prefetch = 100);
    let mut seen = Vec::new();
    loop {
        rig.settle_down();
        let got = deliveries(&consumer);
        if got.is_empty() {
            return seen;
        }
        seen.extend(got.iter().map(|delivery| body_of(&delivery.message)));
        rig.settle(&got, SettleOutcome::Ack);
        queue.check_sums();
    }
}

/// The queue as it comes back with what a checkpoint holds.
fn restarted(rig: &mut Rig, queue: &QueueHandle, kind: ImageKind) -> QueueHandle {
    let mut image = queue.image(kind).expect("it is durable");
    image.finish_replay();
    rig.effects = Effects::default();
    let (spec, settings) = (queue.spec().clone(), queue.settings());
    let queue = rig.turn(|turn| Queue::restore(spec, settings, image, turn));
    rig.turn(|turn| queue.renew_lease(turn));
    queue
}

#[test]
fn levels_leave_memory_and_come_back_in_order() {
    for kind in [ImageKind::Running, ImageKind::Stopped] {
        let mut rig = Rig::paging();
        let mut queue = levels(&mut rig, 3);
        let body = |level: u8, round: u32, number: u32| format!("{level}:{round}:{number:03}");
        // Levels of different lengths, so that their counts differ; filed, restarted, and then there are more.
        let counts = [(0u8, 700u32), (2, 30), (3, 300)];
        for round in 0..3 {
            for (level, count) in counts {
                for number in 0..count {
                    rig.publish(&queue, urgent(&body(level, round, number), level));
                }
            }
            rig.settle_down();
            assert!(rig.file(&queue) > 0, "round {round}");
            assert!(rig.shared.filed_run_count() > 0);
            queue.check_sums();
            if round < 2 {
                queue = restarted(&mut rig, &queue, kind);
                queue.check_sums();
            }
        }
        let mut expected = Vec::new();
        for (level, count) in counts.iter().rev() {
            for round in 0..3 {
                expected.extend((0..*count).map(|number| body(*level, round, number)));
            }
        }
        assert!(drain(&mut rig, &queue) == expected, "{kind:?}");
    }
}

/// A clean stop marks what was unacked, whatever the counts of the levels.
#[test]
fn a_clean_stop_marks_what_was_unacked() {
    let mut rig = Rig::new();
    let queue = levels(&mut rig, 3);
    for number in 0..20 {
        rig.publish(&queue, urgent(&format!("high {number}"), 3));
    }
    rig.publish(&queue, urgent("low a", 0));
    rig.settle_down();
    let taken: Vec<Delivery> = (0..20).filter_map(|_| rig.get(&queue)).collect();
    rig.settle(&taken[1..], SettleOutcome::Ack);
    rig.publish(&queue, urgent("low b", 0));
    let queue = restarted(&mut rig, &queue, ImageKind::Stopped);
    assert_eq!(rig.take_all(&queue), ["high 0*", "low a", "low b"]);
}

/// Heads of levels expire wherever they are, in memory or filed.
#[test]
fn filed_heads_of_levels_expire() {
    let mut rig = Rig::paging();
    let queue = levels(&mut rig, 3);
    let expiring = |body: &str, priority: u8| {
        message(body, |properties| {
            properties.set_delivery_mode(Some(2));
            properties.set_priority(Some(priority));
            properties.set_expiration(Some(ShortString::from_static("1000")));
        })
    };
    for number in 0..300 {
        rig.publish(&queue, urgent(&format!("stays {number}"), 3));
        rig.publish(&queue, expiring("goes", 1));
    }
    rig.publish(&queue, urgent("stays low", 0));
    rig.settle_down();
    rig.file(&queue);
    assert!(rig.shared.filed_run_count() > 0);
    rig.advance(999);
    rig.settle_down();
    assert_eq!(queue.stats().ready_count, 601);
    for _ in 0..4 {
        rig.advance(1);
        rig.settle_down();
    }
    assert_eq!(queue.stats().ready_count, 301);
    queue.check_sums();
}

/// A settlement by ranges never names seqs that are yet to be given.
#[test]
fn ranges_of_a_purge_end_with_their_level() {
    let mut slots = Slots::new(Seq(1), 3);
    let content = Arc::new(persistent("m"));
    for rank in [1, 1, 3, 2, 2] {
        let mut slot = Slot::arrived(Status::Ready, Arc::clone(&content), 0);
        slot.is_logged = true;
        slots.push(rank, slot);
    }
    let range = |rank, first, last| SeqRange {
        first: Seq::new(rank, first),
        last: Seq::new(rank, last),
    };
    let purged = slots.purge();
    assert_eq!(
        purged.ranges,
        [range(1, 1, 2), range(2, 1, 2), range(3, 1, 1)]
    );
}

proptest! {
    #[test]
    fn ranked_slots_behave_like_a_map(steps in prop::collection::vec((0u8..5, 0u64..400, 1u16..4), 0..900)) {
        let content = Arc::new(transient("m"));
        let mut slots = Slots::new(Seq(250), 3);
        let mut model: BTreeMap<Seq, Status> = BTreeMap::new();
        for (kind, at, rank) in steps {
            let seq = Seq::new(rank, 250 + at);
            match kind {
                0 | 1 => {
                    let arrived = Slot::arrived(Status::Ready, Arc::clone(&content), 0);
                    let expected = slots.next_seq_in(rank);
                    prop_assert_eq!(slots.push(rank, arrived), expected);
                    prop_assert!(expected.is_within(slots.next_seq()));
                    prop_assert_eq!(model.insert(expected, Status::Ready), None);
                }
                2 => prop_assert_eq!(slots.remove(seq).map(|slot| slot.status), model.remove(&seq)),
                _ => {
                    let status = if kind == 3 { Status::Ready } else { Status::Unacked };
                    let is_there = model.get_mut(&seq).map(|known| *known = status).is_some();
                    prop_assert_eq!(slots.set_status(seq, status), is_there);
                }
            }
            let ready = model.iter().filter(|(_, status)| **status == Status::Ready);
            let mut heads: Vec<Head> = Vec::new();
            for (seq, _) in ready {
                let is_new = |head: &Head| head.entry().is_none_or(|head| head.rank() != seq.rank());
                if heads.last().is_none_or(is_new) {
                    heads.push(Head::Entry(*seq));
                }
            }
            let first = heads.first().copied().unwrap_or(Head::None);
            prop_assert_eq!(slots.first_ready(), first);
            prop_assert_eq!(slots.heads().to_vec(), heads);
        }
        slots.check();
        prop_assert!(slots.iter().map(|(seq, slot)| (seq, slot.status)).eq(model));
    }
}
