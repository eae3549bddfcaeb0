//! Settings that change under a queue that is in use.

use super::dying::dead_letter_to;
use super::*;
use crate::broker::arguments::Overflow;

impl Rig {
    fn obey(&mut self, queue: &QueueHandle, settings: QueueArguments) {
        self.turn(|turn| queue.obey(turn, settings.shared()));
    }
}

fn limited_to(max_length: u64) -> QueueArguments {
    QueueArguments {
        max_length: Some(max_length),
        ..QueueArguments::default()
    }
}

#[test]
fn new_length_limit_drops_heads_at_once_and_its_end_lets_the_queue_grow() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    let dead = rig.queue("dead");
    rig.bind("dlx", "dead", &dead);
    rig.publish_texts(&queue, "abcd");
    rig.obey(
        &queue,
        QueueArguments {
            max_length: Some(1),
            ..dead_letter_to("dlx", Some("dead"))
        },
    );
    assert_eq!(queue.stats().ready_count, 1);
    rig.publish_texts(&queue, "e");
    rig.obey(&queue, QueueArguments::default());
    rig.publish_texts(&queue, "f");
    assert_eq!(rig.take_all(&queue), ["e", "f"]);
    assert_eq!(rig.take_all(&dead), ["a", "b", "c", "d"]);
}

#[test]
fn new_limit_that_refuses_drops_nothing() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    rig.publish_texts(&queue, "ab");
    let settings = QueueArguments {
        overflow: Overflow::RejectPublish,
        ..limited_to(1)
    };
    rig.obey(&queue, settings);
    assert!(matches!(
        rig.publish(&queue, persistent("c")),
        ConfirmAt::Nack
    ));
    assert_eq!(rig.take_all(&queue), ["a", "b"]);
}

#[test]
fn new_time_to_live_is_for_messages_that_come_later() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    rig.publish_texts(&queue, "a");
    rig.obey(
        &queue,
        QueueArguments {
            message_ttl_ms: Some(10),
            ..QueueArguments::default()
        },
    );
    rig.publish_texts(&queue, "b");
    let _ = rig.advance(20);
    // The expired one stands behind a head that lives.
    assert_eq!(queue.stats().ready_count, 2);
    assert_eq!(rig.take_all(&queue), ["a"]);
}

#[test]
fn new_lease_begins_with_the_change_and_goes_with_the_next() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    let _ = rig.advance(1000);
    let leased = QueueArguments {
        expires_ms: Some(100),
        ..QueueArguments::default()
    };
    rig.obey(&queue, leased.clone());
    assert!(!rig.advance(99).contains(&Aftermath::Unused));
    rig.obey(&queue, QueueArguments::default());
    assert!(!rig.advance(1000).contains(&Aftermath::Unused));
    rig.obey(&queue, leased);
    assert!(rig.advance(100).contains(&Aftermath::Unused));
}

#[test]
fn publish_that_did_not_know_of_a_new_limit_is_still_one_group_with_its_drops() {
    let mut rig = Rig::new();
    let (queue, other) = (rig.queue("q"), rig.queue("other"));
    rig.obey(&queue, limited_to(1));
    // The hint lags behind.
    queue
        .has_length_limit
        .store(false, std::sync::atomic::Ordering::Relaxed);
    let targets = [Arc::clone(&queue), Arc::clone(&other)];
    let mut publishes = ["a", "b"].map(|body| Addressed::new(Arc::new(persistent(body)), 0));
    let mut out = ConfirmRuns::default();
    rig.turn(|turn| publish_group(turn, &[Arc::from(targets)], &mut publishes, &mut out))
        .expect("no target is deleted");
    assert_eq!(out.len(), 2);
    let pushes = rig.journal.pushes();
    let mut with_records = pushes.iter().filter(|push| !push.records.is_empty());
    assert!(with_records.all(|push| push.is_atomic));
    assert_eq!(rig.take_all(&queue), ["b"]);
}
