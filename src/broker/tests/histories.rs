//! What `x-recent-history` exchanges remember: what has been routed, when it has been, and once.

use bytes::Bytes;

use super::support::{
    TestBroker, TestConnection, bind, exchange, message, persistent, queue, short,
};
use super::{declare_exchange, declare_queue};
use crate::amqp::field_table::{FieldTable, FieldValue};
use crate::broker::command::{Command, ExchangeDeclare, QueueDeclare};
use crate::broker::message::PayloadDecoder;
use crate::broker::queue::{self, DeleteCondition, QueueHandle};

/// A broker with the exchange `x`, which remembers.
fn remembering() -> (TestBroker, TestConnection) {
    let broker = TestBroker::new();
    let mut client = broker.connect();
    client.exchange("x", "x-recent-history");
    (broker, client)
}

/// How many messages a queue gets that is bound to `source` now.
fn remembered_by(client: &mut TestConnection, source: &str, name: &str) -> u32 {
    client.queue(name);
    client.bind(name, source, "");
    client.ready_count(name)
}

fn queue_of(broker: &TestBroker, is_it: impl Fn(&QueueHandle) -> bool) -> QueueHandle {
    let mut queues = broker.broker.all_queues().into_iter();
    queues.find(is_it).expect("it is there")
}

#[test]
fn a_transaction_is_remembered_when_it_commits() {
    let (_broker, mut client) = remembering();
    let publish = message("x", "k", &persistent());
    for _ in 0..2 {
        client.connection.tx_publish(&publish, 0).expect("may");
    }
    assert_eq!(remembered_by(&mut client, "x", "open"), 0);
    client.run(Command::TxRollback).expect("rolls back");
    assert_eq!(remembered_by(&mut client, "x", "rolled.back"), 0);
    for _ in 0..3 {
        client.connection.tx_publish(&publish, 0).expect("may");
    }
    let commit = Command::TxCommit {
        publish_count: 3,
        settlements: Vec::new(),
    };
    client.run(commit).expect("commits");
    assert_eq!(remembered_by(&mut client, "x", "committed"), 3);
}

#[test]
fn a_message_that_is_routed_twice_is_remembered_once() {
    let (broker, mut client) = remembering();
    for name in ["goes", "stays"] {
        assert_eq!(remembered_by(&mut client, "x", name), 0);
    }
    // As for somebody who routes while it is being deleted.
    let going = queue_of(&broker, |queue| queue.spec().name == short("goes"));
    let turn = &mut broker.broker.shared.turn(0, &mut client.effects);
    queue::delete(turn, &going, DeleteCondition::default(), || {}).expect("goes");
    client.publish("x", "k").expect("publishes");
    assert_eq!(client.ready_count("stays"), 1);
    assert_eq!(remembered_by(&mut client, "x", "new"), 1);
}

#[test]
fn a_delayed_message_is_remembered_when_it_is_due() {
    let (broker, mut client) = remembering();
    let delayed = ExchangeDeclare {
        arguments: FieldTable::new().with("x-delayed-type", FieldValue::text("x-recent-history")),
        ..exchange("later", "x-delayed-message")
    };
    declare_exchange(&mut client, delayed).expect("declares");
    let mut properties = persistent().edit();
    properties.set_header("x-delay", 5_000);
    let published = client.publish_with("later", "k", &properties.build());
    published.expect("publishes");
    assert_eq!(remembered_by(&mut client, "later", "early"), 0);
    let waiting = queue_of(&broker, |queue| queue.spec().delays_for().is_some());
    let turn = &mut broker.broker.shared.turn(5_000, &mut client.effects);
    let _ = queue::timer_due(turn, &waiting);
    assert_eq!(client.ready_count("early"), 1);
    assert_eq!(remembered_by(&mut client, "later", "late"), 1);
}

#[test]
fn a_dead_letter_is_remembered_when_somebody_took_it() {
    let (broker, mut client) = remembering();
    let text = |text: &'static str| FieldValue::text(text);
    let keeping = QueueDeclare {
        arguments: FieldTable::new()
            .with("x-queue-type", text("quorum"))
            .with("x-message-ttl", 0)
            .with("x-dead-letter-exchange", text("x"))
            .with("x-dead-letter-strategy", text("at-least-once"))
            .with("x-overflow", text("reject-publish")),
        ..queue("q")
    };
    declare_queue(&mut client, keeping).expect("declares");
    client.publish("", "q").expect("publishes");
    let source = queue_of(&broker, |queue| queue.spec().name == short("q"));
    let payload = message("", "q", &persistent()).message;
    let payload = Bytes::from(payload.payload().concat());
    let try_again = |client: &mut TestConnection, now_ms: u64| {
        let turn = &mut broker.broker.shared.turn(now_ms, &mut client.effects);
        let _ = queue::timer_due(turn, &source);
        for fetch in std::mem::take(&mut client.effects.fetches) {
            let bodies = fetch.wanted.iter().map(|(seq, _)| {
                (
                    *seq,
                    queue::decode_body(&mut PayloadDecoder::default(), payload.clone()),
                )
            });
            let turn = &mut broker.broker.shared.turn(now_ms, &mut client.effects);
            queue::fetched(turn, &fetch.queue, bodies.collect());
        }
    };
    for secs in 1..=4 {
        try_again(&mut client, secs * 1_000);
    }
    assert_eq!(remembered_by(&mut client, "x", "first"), 0);
    try_again(&mut client, 10_000);
    assert_eq!(client.ready_count("first"), 1);
    assert_eq!(remembered_by(&mut client, "x", "second"), 1);
    // A letter that need not be kept is gone when nobody takes it: then that is its way.
    let dropping = QueueDeclare {
        arguments: FieldTable::new()
            .with("x-message-ttl", 0)
            .with("x-dead-letter-exchange", text("y")),
        ..queue("p")
    };
    client.exchange("y", "x-recent-history");
    declare_queue(&mut client, dropping).expect("declares");
    client.publish("", "p").expect("publishes");
    assert_eq!(remembered_by(&mut client, "y", "before"), 0);
    let bind = bind("before", "y", "");
    client.run(Command::Unbind(bind)).expect("unbinds");
    let source = queue_of(&broker, |queue| queue.spec().name == short("p"));
    let turn = &mut broker.broker.shared.turn(1_000, &mut client.effects);
    let _ = queue::timer_due(turn, &source);
    assert_eq!(remembered_by(&mut client, "y", "third"), 1);
}

#[test]
fn what_exchanges_remember_counts_for_memory() {
    let (broker, mut client) = remembering();
    let before = broker.broker.resident_bytes();
    for _ in 0..3 {
        client.publish("x", "k").expect("publishes");
    }
    let delete = Command::ExchangeDelete {
        exchange: short("x"),
        if_unused: false,
    };
    assert!(broker.broker.resident_bytes() > before);
    client.run(delete).expect("deletes");
    assert_eq!(broker.broker.resident_bytes(), before);
}
