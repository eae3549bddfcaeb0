//! Messages leave memory and come back, against a fake of the spill files.

use std::collections::BTreeMap;

use super::*;
use crate::broker::queue::{Shed, moved, purge, shed, spilled};
use crate::storage::types::Lsn;

/// What was spilled, by place.
#[derive(Default)]
pub(super) struct SpillFiles {
    payloads: BTreeMap<Lsn, Bytes>,
    next: u64,
}

impl SpillFiles {
    fn write(&mut self, message: &Message) -> Position {
        let payload: Bytes = message.payload().concat().into();
        self.next += 1 << 20;
        let position = Position {
            lsn: Lsn(self.next),
            len_bytes: u32::try_from(payload.len()).unwrap(),
        };
        self.payloads.insert(position.lsn, payload);
        position
    }

    pub(super) fn read(&self, position: Position) -> Result<Bytes, FetchFailure> {
        let payload = self.payloads.get(&position.lsn).cloned();
        payload.ok_or_else(|| FetchFailure {
            reason: "it was released".into(),
        })
    }

    /// Forgets released places; each was held until now.
    #[track_caller]
    fn release(&mut self, places: &mut Vec<Position>) {
        for place in places.drain(..) {
            assert!(self.payloads.remove(&place.lsn).is_some(), "released twice");
        }
    }
}

impl Rig {
    fn shed(&mut self, queue: &QueueHandle, want_bytes: u64) -> Shed {
        self.turn(|turn| shed(turn, queue, want_bytes))
    }

    /// What the memory thread does: sheds, writes, tells the queue.
    fn spill_all(&mut self, queue: &QueueHandle) -> usize {
        let shed = self.shed(queue, u64::MAX);
        let places = self.write(&shed);
        self.turn(|turn| spilled(turn, queue, &places));
        self.release();
        places.len()
    }

    fn write(&mut self, shed: &Shed) -> Vec<(Seq, Position)> {
        let to_spill = shed.to_spill.iter();
        to_spill
            .map(|(seq, message)| (*seq, self.spill_files.write(message)))
            .collect()
    }

    #[track_caller]
    fn release(&mut self) {
        self.spill_files.release(&mut self.effects.released);
    }

    fn publish_transient(&mut self, queue: &QueueHandle, bodies: &str) {
        for body in bodies.chars() {
            self.publish(queue, transient(&body.to_string()));
        }
    }

    fn held_count(&self) -> usize {
        self.spill_files.payloads.len()
    }
}

fn bodies(shed: &Shed) -> Vec<String> {
    shed.to_spill.iter().map(|(_, m)| body_of(m)).collect()
}

#[test]
fn messages_needed_last_are_handed_out_first() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    rig.publish_transient(&queue, "abcd");
    let one = transient("a").size_bytes() as u64;
    assert_eq!(bodies(&rig.shed(&queue, 1)), ["d"]);
    assert_eq!(bodies(&rig.shed(&queue, 2 * one)), ["d", "c"]);
    // What a consumer holds is needed by nobody.
    let consumer = rig.consume(&queue, |spec| spec.prefetch = 2);
    assert_eq!(shown(&deliveries(&consumer)), ["a", "b"]);
    assert_eq!(bodies(&rig.shed(&queue, u64::MAX)), ["b", "a", "d", "c"]);
    assert_eq!(queue.stats().ready_count, 2, "nothing has left yet");
}

#[test]
fn logged_messages_are_dropped_and_read_again_in_order() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    rig.publish_texts(&queue, "ab");
    rig.publish_transient(&queue, "c");
    rig.publish_texts(&queue, "d");
    let shed = rig.shed(&queue, u64::MAX);
    assert_eq!(bodies(&shed), ["c"]);
    assert!(shed.dropped_bytes > 0);
    assert_eq!(rig.shed(&queue, u64::MAX).dropped_bytes, 0);
    assert_eq!(rig.take_all(&queue), ["a", "b", "c", "d"]);
}

#[test]
fn spilled_messages_are_delivered_in_order_and_give_their_places_up() {
    let mut rig = Rig::new();
    for queue in [rig.queue("durable"), {
        let mut spec = rig.spec("transient");
        spec.is_durable = false;
        Queue::new(spec, QueueArguments::default().shared(), Lsn(0), 0)
    }] {
        rig.publish_transient(&queue, "abcdef");
        assert_eq!(rig.spill_all(&queue), 6);
        assert_eq!(queue.resident_bytes(), 0);
        rig.publish_transient(&queue, "gh");
        let consumer = rig.consume(&queue, |_| {});
        rig.settle_down();
        let delivered = deliveries(&consumer);
        assert_eq!(shown(&delivered), ["a", "b", "c", "d", "e", "f", "g", "h"]);
        assert_eq!(rig.held_count(), 6, "unacked messages may come back");
        // Their bodies leave memory a second time without being written.
        assert_eq!(rig.spill_all(&queue), 2);
        rig.settle(&delivered[..1], SettleOutcome::Requeue);
        rig.settle_down();
        let again = deliveries(&consumer);
        assert_eq!(shown(&again), ["a*"]);
        rig.settle(&again, SettleOutcome::Ack);
        rig.settle(&delivered[1..], SettleOutcome::Ack);
        rig.release();
        assert_eq!(rig.held_count(), 0);
    }
}

#[test]
fn place_of_a_message_that_left_meanwhile_is_given_up() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    rig.publish_transient(&queue, "abc");
    let shed = rig.shed(&queue, u64::MAX);
    let places = rig.write(&shed);
    let first = rig.get(&queue).unwrap();
    rig.settle(&[first], SettleOutcome::Ack);
    rig.turn(|turn| spilled(turn, &queue, &places));
    // Told twice: the second time every place is refused, as nothing needs it.
    rig.release();
    assert_eq!(rig.held_count(), 2);
    assert_eq!(rig.take_all(&queue), ["b", "c"]);
}

#[test]
fn failed_spill_leaves_messages_where_they_were() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    rig.publish_transient(&queue, "abc");
    let before_bytes = queue.resident_bytes();
    // Written nowhere: the queue hears nothing more.
    rig.shed(&queue, u64::MAX);
    assert_eq!(queue.resident_bytes(), before_bytes);
    assert_eq!(rig.take_all(&queue), ["a", "b", "c"]);
    assert!(rig.effects.fetches.is_empty());
}

#[test]
fn every_way_out_of_a_queue_gives_places_up() {
    let expiring = || {
        message("x", |properties| {
            properties.set_expiration(Some(ShortString::from_static("50")));
        })
    };
    type WayOut = fn(&mut Rig, &QueueHandle);
    let ways: [(&str, WayOut); 4] = [
        ("purge", |rig, queue| {
            rig.turn(|turn| purge(turn, queue));
        }),
        ("delete", |rig, queue| {
            rig.turn(|turn| delete(turn, queue, DeleteCondition::default(), || {}))
                .unwrap();
        }),
        ("expiry", |rig, _| {
            rig.advance(100);
        }),
        ("get", |rig, queue| {
            let outbox = testing::outbox();
            for _ in 0..3 {
                rig.turn(|turn| get(turn, queue, 1, &outbox, true));
                rig.settle_down();
            }
        }),
    ];
    for (name, way) in ways {
        let mut rig = Rig::new();
        let queue = rig.queue("q");
        for _ in 0..3 {
            rig.publish(&queue, expiring());
        }
        assert_eq!(rig.spill_all(&queue), 3, "{name}");
        way(&mut rig, &queue);
        rig.release();
        assert_eq!(rig.held_count(), 0, "{name}");
        assert_eq!(queue.stats().ready_count, 0, "{name}");
    }
}

#[test]
fn spilled_message_that_moves_is_found_at_its_new_place() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    rig.publish_transient(&queue, "ab");
    let shed = rig.shed(&queue, u64::MAX);
    let places = rig.write(&shed);
    rig.turn(|turn| spilled(turn, &queue, &places));
    assert_eq!(queue.holds(&places), [true, true]);
    let wrong = [(places[0].0, places[1].1)];
    assert_eq!(queue.holds(&wrong), [false]);
    let again = rig.write(&shed);
    let moves: Vec<_> = places
        .iter()
        .zip(&again)
        .map(|(from, to)| (from.0, from.1, to.1))
        .collect();
    rig.turn(|turn| moved(turn, &queue, &moves));
    rig.release();
    assert_eq!(queue.holds(&again), [true, true]);
    assert_eq!(rig.held_count(), 2);
    // A second time nobody lies there any more: the new places are given up.
    let third = rig.write(&shed);
    let moves: Vec<_> = places
        .iter()
        .zip(&third)
        .map(|(from, to)| (from.0, from.1, to.1))
        .collect();
    rig.turn(|turn| moved(turn, &queue, &moves));
    rig.release();
    assert_eq!(rig.held_count(), 2);
    assert_eq!(rig.take_all(&queue), ["a", "b"]);
}

#[test]
fn spilled_message_that_cannot_be_read_is_kept_and_never_delivered() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    rig.publish_transient(&queue, "ab");
    rig.spill_all(&queue);
    rig.spill_files.payloads.pop_last();
    let consumer = rig.consume(&queue, |_| {});
    rig.settle_down();
    // Spilled from the end: the last place is that of the first message.
    assert_eq!(shown(&deliveries(&consumer)), ["b"]);
    assert_eq!(queue.stats().quarantined_count, 1);
}

#[test]
fn spilled_messages_are_in_no_image() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    rig.publish_transient(&queue, "abc");
    rig.publish_texts(&queue, "d");
    rig.spill_all(&queue);
    let image = queue
        .image(crate::broker::queue::ImageKind::Stopped)
        .unwrap();
    assert_eq!(image.entries.iter().count(), 1);
}
