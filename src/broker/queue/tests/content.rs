//! Contents that leave memory with their delivery, and what happens when one of them comes back.

use super::super::content::{KEPT_AFTER_RETURN, KEPT_AT_FIRST};
use super::*;
use crate::broker::arguments::QueueKind;

/// Entries that have no content in memory, of those there are.
fn without_content(queue: &QueueHandle) -> (usize, usize) {
    let state = lock(&queue.state);
    let absent = state
        .slots
        .iter()
        .filter(|(_, slot)| slot.message.is_none());
    (absent.count(), state.slots.iter().count())
}

fn publish_many(rig: &mut Rig, queue: &QueueHandle, numbers: std::ops::Range<u16>) {
    let messages = numbers.map(|number| persistent(&number.to_string()));
    rig.publish_all(std::slice::from_ref(queue), messages.collect());
}

/// Both ways: a consumer takes what arrives, and what waited.
fn taken(rig: &mut Rig, queue: &QueueHandle, count: u16, waits: bool) -> Vec<Delivery> {
    if waits {
        publish_many(rig, queue, 0..count);
        rig.settle_down();
    }
    let consumer = rig.consume(queue, |_| {});
    if !waits {
        publish_many(rig, queue, 0..count);
    }
    rig.settle_down();
    let held = deliveries(&consumer);
    assert_eq!(held.len(), usize::from(count));
    held
}

#[test]
fn what_is_delivered_keeps_no_memory_once_a_queue_is_used() {
    for waits in [false, true] {
        let mut rig = Rig::new();
        let queue = rig.queue("q");
        let _held = taken(&mut rig, &queue, KEPT_AT_FIRST + 5, waits);
        let all = usize::from(KEPT_AT_FIRST + 5);
        assert_eq!(without_content(&queue), (5, all), "{waits}");
        queue.check_sums();
    }
}

#[test]
fn what_comes_back_is_read_again_and_the_next_ones_stay() {
    for waits in [false, true] {
        let mut rig = Rig::new();
        let queue = rig.queue("q");
        let held = taken(&mut rig, &queue, KEPT_AT_FIRST + 3, waits);
        let back = &held[usize::from(KEPT_AT_FIRST)..];
        assert_eq!(without_content(&queue).0, back.len());
        rig.settle(&held[..usize::from(KEPT_AT_FIRST)], SettleOutcome::Ack);
        rig.settle(back, SettleOutcome::Requeue);
        assert_eq!(without_content(&queue), (3, 3), "they are on their way");
        rig.settle_down();
        assert_eq!(without_content(&queue), (0, 3), "they were delivered again");
        publish_many(&mut rig, &queue, 0..KEPT_AFTER_RETURN);
        assert_eq!(without_content(&queue).0, 3, "as many stay");
        queue.check_sums();
    }
}

#[test]
fn what_has_no_other_place_stays() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    let consumer = rig.consume(&queue, |_| {});
    let messages = (0..2 * KEPT_AT_FIRST).map(|_| transient("t"));
    rig.publish_all(std::slice::from_ref(&queue), messages.collect());
    assert_eq!(deliveries(&consumer).len(), usize::from(2 * KEPT_AT_FIRST));
    assert_eq!(without_content(&queue).0, 0);
    queue.check_sums();
}

#[test]
fn each_of_several_queues_lets_go_of_its_own_share() {
    let mut rig = Rig::new();
    let (one, two) = (rig.queue("one"), rig.queue("two"));
    let consumer = rig.consume(&one, |_| {});
    let texts = (0..2 * KEPT_AT_FIRST).map(|number| persistent(&number.to_string()));
    rig.publish_all(&[Arc::clone(&one), Arc::clone(&two)], texts.collect());
    rig.settle_down();
    let held = deliveries(&consumer);
    assert_eq!(without_content(&one).0, usize::from(KEPT_AT_FIRST));
    assert_eq!(without_content(&two).0, 0);
    rig.settle(&held, SettleOutcome::Ack);
    assert_eq!(rig.take_all(&two).len(), usize::from(2 * KEPT_AT_FIRST));
    one.check_sums();
    two.check_sums();
}

#[test]
fn what_was_got_or_counted_comes_back_as_what_was_consumed() {
    let quorum = QueueArguments {
        kind: QueueKind::Quorum,
        ..QueueArguments::default()
    };
    for settings in [QueueArguments::default(), quorum] {
        let mut rig = Rig::new();
        let queue = rig.queue_with("q", settings);
        publish_many(&mut rig, &queue, 0..KEPT_AT_FIRST + 2);
        rig.settle_down();
        let got = std::iter::from_fn(|| rig.get(&queue));
        let got: Vec<Delivery> = got.collect();
        assert_eq!(without_content(&queue).0, 2);
        rig.settle(&got, SettleOutcome::Requeue);
        let expected = (0..KEPT_AT_FIRST + 2).map(|number| format!("{number}*"));
        assert_eq!(rig.take_all(&queue), expected.collect::<Vec<_>>());
        queue.check_sums();
    }
}
