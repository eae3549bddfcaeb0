//! Items of an outbox: what joins a run, what a run gives, and what comes of items that were not sent.

use super::*;
use crate::amqp::properties::Properties;
use crate::amqp::short_string::ShortString;
use crate::broker::arguments::QueueArguments;
use crate::broker::queue::{Queue, QueueSpec};
use crate::storage::types::{Lsn, QueueId};

fn queue(id: u64) -> QueueHandle {
    let spec = QueueSpec {
        id: QueueId(id),
        vhost: "/".into(),
        name: ShortString::from_static("q"),
        is_durable: false,
        exclusive_owner: None,
        is_auto_delete: false,
        arguments: Default::default(),
    };
    Queue::new(spec, QueueArguments::default().shared(), Lsn(0), 0)
}

/// Seqs, consumers and marks: three runs of one queue, one of another, and deliveries that stand alone.
fn mixed() -> Vec<Delivery> {
    let queues = [queue(1), queue(2)];
    let name = ShortString::default;
    let message = Message::new(name(), name(), Properties::default(), Vec::new());
    let message = Arc::new(message);
    let of = |(queue, consumer, seq, is_redelivered): (usize, u64, u64, bool)| Delivery {
        channel: 1,
        consumer: Some(ConsumerId(consumer)),
        queue: Arc::clone(&queues[queue]),
        seq: Seq(seq),
        is_redelivered,
        is_settled: false,
        message: Arc::clone(&message),
    };
    let places = [
        (0, 1, 5, false),
        (0, 1, 6, false),
        (0, 1, 7, false),
        // Marked, then not.
        (0, 1, 8, true),
        (0, 1, 9, false),
        (0, 1, 10, false),
        // A hole.
        (0, 1, 12, false),
        // Another queue, and another consumer.
        (1, 2, 13, false),
        (1, 2, 14, false),
        (0, 3, 15, false),
    ];
    places.into_iter().map(of).collect()
}

fn told(delivery: &Delivery) -> (usize, Option<ConsumerId>, Seq, bool) {
    let queue = Arc::as_ptr(&delivery.queue).addr();
    let (consumer, seq) = (delivery.consumer, delivery.seq);
    (queue, consumer, seq, delivery.is_redelivered)
}

#[test]
fn deliveries_that_follow_each_other_are_one_item() {
    let items = OutboxItems::of_deliveries(mixed());
    let lens = items.list().iter().map(|item| match item {
        OutboxItem::Deliver(run) => run.len(),
        other => panic!("a run, not {other:?}"),
    });
    assert!(lens.eq([3, 1, 2, 1, 2, 1]));
    assert_eq!(items.deliveries_count(), 10);
}

#[test]
fn what_is_left_behind_any_place_comes_out_as_it_went_in() {
    let expected: Vec<_> = mixed();
    for done_count in 0..=expected.len() {
        let mut items = OutboxItems::of_deliveries(expected.iter().cloned());
        let mut place = OutboxPlace::default();
        for _ in 0..done_count {
            let OutboxItem::Deliver(run) = &items.list()[place.item] else {
                panic!("a run");
            };
            place.pass_deliveries(run, 1);
        }
        items.drop_done(&mut place);
        assert_eq!(place, OutboxPlace::default());
        let left: Vec<_> = items
            .into_deliveries()
            .map(|delivery| told(&delivery))
            .collect();
        let expected: Vec<_> = expected[done_count..].iter().map(told).collect();
        assert_eq!(left, expected);
    }
}

#[test]
fn items_are_taken_one_by_one() {
    let expected: Vec<_> = mixed();
    let mut items = OutboxItems::of_deliveries(expected.iter().cloned());
    let (channel, consumer) = (1, ConsumerId(9));
    items.push(OutboxItem::ConsumerCancelled { channel, consumer });
    for expected in &expected {
        let taken = items.take_first().expect("a delivery");
        assert_eq!(told(&taken), told(expected));
    }
    assert!(!items.is_empty());
    assert!(items.take_first().is_none());
    assert!(items.is_empty());
    assert!(items.take_first().is_none());
}
