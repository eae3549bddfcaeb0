//! Queues: declare, exclusive, auto-delete, delete, purge (section 7 of the behaviour reference).

use super::support::{TestBroker, TestConnection, bind, queue, short};
use super::{declare_queue, declared_name, refusal};
use crate::amqp::field_table::{FieldTable, FieldValue};
use crate::amqp::properties::Properties;
use crate::broker::command::{Command, Consume, QueueDeclare, ReplyBody, SettleOutcome, Unacked};
use crate::broker::outbox::OutboxItem;

const LOCKED: &str = "405 RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'mine' in vhost '/'. It could be originally declared on another connection or the exclusive property value does not match that of the original declaration.";

fn with(name: &str, argument: &str, value: impl Into<FieldValue>) -> QueueDeclare {
    QueueDeclare {
        arguments: FieldTable::new().with(argument, value),
        ..queue(name)
    }
}

fn passive(name: &str) -> QueueDeclare {
    QueueDeclare {
        is_passive: true,
        ..queue(name)
    }
}

fn exclusive(name: &str) -> QueueDeclare {
    QueueDeclare {
        is_exclusive: true,
        ..queue(name)
    }
}

fn delete(name: &str, if_unused: bool, if_empty: bool) -> Command {
    Command::QueueDelete {
        queue: short(name),
        if_unused,
        if_empty,
    }
}

#[track_caller]
fn check_removed(client: &mut TestConnection, command: Command, expected: u32) {
    match client.run(command) {
        Ok(ReplyBody::Removed { messages }) => assert_eq!(messages, expected),
        other => panic!("{other:?}"),
    }
}

#[test]
fn generated_names_are_unguessable_and_distinct() {
    let mut client = TestBroker::new().connect();
    let first = declared_name(declare_queue(&mut client, queue("")));
    let second = declared_name(declare_queue(&mut client, queue("")));
    assert!(
        first.starts_with("amq.gen-") && first.len() == 30,
        "{first}"
    );
    assert_ne!(first, second);
    assert_eq!(
        declared_name(declare_queue(&mut client, passive(&first))),
        first
    );
    assert_eq!(
        refusal(declare_queue(&mut client, queue(&first))),
        format!("403 ACCESS_REFUSED - queue name '{first}' contains reserved prefix 'amq.*'")
    );
}

#[test]
fn refused_declares() {
    let mut client = TestBroker::new().connect();
    declare_queue(&mut client, with("q", "x-message-ttl", 5)).expect("declares");
    let q = "for queue 'q' in vhost '/'";
    let plain = QueueDeclare {
        is_durable: false,
        ..with("q", "x-message-ttl", 5)
    };
    let auto = QueueDeclare {
        is_auto_delete: true,
        ..with("q", "x-message-ttl", 5)
    };
    let mut unknown = with("q", "x-message-ttl", 5i64);
    unknown.arguments.set("x-nobody-knows", 1);
    let mut classic = with("q", "x-message-ttl", 5);
    classic.arguments.set("x-queue-type", "classic");
    for (declare, expected) in [
        (passive("none"), "404 NOT_FOUND - no queue 'none' in vhost '/'".to_owned()),
        (passive("q"), String::new()),
        (unknown, String::new()),
        (classic, String::new()),
        (plain, format!("406 PRECONDITION_FAILED - inequivalent arg 'durable' {q}: received 'false' but current is 'true'")),
        (auto, format!("406 PRECONDITION_FAILED - inequivalent arg 'auto_delete' {q}: received 'true' but current is 'false'")),
        (queue("q"), format!("406 PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' {q}: received none but current is the value '5' of type 'signedint'")),
        (with("q", "x-message-ttl", 6), format!("406 PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' {q}: received '6' but current is '5'")),
        (
            with("new", "x-message-ttl", -1),
            "406 PRECONDITION_FAILED - invalid arg 'x-message-ttl' for queue 'new' in vhost '/': {value_negative,-1}".to_owned(),
        ),
        (
            with("new", "x-dead-letter-exchange", 1),
            "406 PRECONDITION_FAILED - invalid type 'signedint' for arg 'x-dead-letter-exchange' in queue 'new' in vhost '/'".to_owned(),
        ),
    ] {
        let shown = format!("{declare:?}");
        assert_eq!(refusal(declare_queue(&mut client, declare)), expected, "{shown}");
    }
}

#[test]
fn exclusive_queue_is_locked_for_others_and_goes_with_its_connection() {
    let broker = TestBroker::new();
    let mut owner = broker.connect();
    let mut other = broker.connect();
    declare_queue(&mut owner, exclusive("mine")).expect("declares");
    owner.bind("mine", "amq.direct", "k");
    // Exclusive queues are never durable, so the flag does not matter.
    let transient = QueueDeclare {
        is_durable: false,
        ..exclusive("mine")
    };
    assert_eq!(refusal(declare_queue(&mut owner, transient)), "");
    assert_eq!(refusal(declare_queue(&mut owner, queue("mine"))), LOCKED);
    let get = Command::Get {
        queue: short("mine"),
        is_no_ack: true,
    };
    let purge = Command::QueuePurge {
        queue: short("mine"),
    };
    for command in [
        Command::QueueDeclare(exclusive("mine")),
        Command::QueueDeclare(queue("mine")),
        Command::QueueDeclare(passive("mine")),
        Command::Bind(bind("mine", "amq.direct", "new")),
        Command::Bind(bind("mine", "amq.direct", "k")),
        Command::Unbind(bind("mine", "amq.direct", "k")),
        get,
        purge,
        delete("mine", false, false),
    ] {
        let shown = format!("{command:?}");
        assert_eq!(refusal(other.run(command)), LOCKED, "{shown}");
    }
    assert_eq!(refusal(other.consume("mine")), LOCKED);
    let unknown = other.run(Command::Unbind(bind("mine", "amq.direct", "unknown")));
    assert_eq!(refusal(unknown), "");
    other
        .publish("amq.direct", "k")
        .expect("publishing is allowed");
    assert_eq!(owner.ready_count("mine"), 1);
    owner.close();
    assert!(!other.has_queue("mine"));
    assert!(
        other
            .publish("amq.direct", "k")
            .expect("publishes")
            .is_unroutable
    );
    // A queue that was shared cannot become exclusive either.
    other.queue("mine");
    assert_eq!(
        refusal(declare_queue(&mut other, exclusive("mine"))),
        LOCKED
    );
}

#[test]
fn auto_delete_queue_goes_with_its_last_consumer() {
    let broker = TestBroker::new();
    let mut client = broker.connect();
    let auto = QueueDeclare {
        is_auto_delete: true,
        ..queue("auto")
    };
    declare_queue(&mut client, auto.clone()).expect("declares");
    let mut consumers = Vec::new();
    for _ in 0..2 {
        match client.consume("auto") {
            Ok(ReplyBody::Consuming { consumer, .. }) => consumers.push(consumer),
            other => panic!("{other:?}"),
        }
    }
    for (index, consumer) in consumers.into_iter().enumerate() {
        assert!(client.has_queue("auto"), "before cancel {index}");
        client.run(Command::Cancel { consumer }).expect("cancels");
    }
    assert!(!client.has_queue("auto"));
    // The same when the channel or the connection ends.
    let mut leaving = broker.connect();
    declare_queue(&mut leaving, auto).expect("declares");
    leaving.consume("auto").expect("consumes");
    leaving.close();
    assert!(!client.has_queue("auto"));
}

#[test]
fn deleting_tells_the_consumers() {
    let mut client = TestBroker::new().connect();
    client.queue("q");
    client.consume("q").expect("consumes");
    check_removed(&mut client, delete("q", false, false), 0);
    let items = client.arrived();
    assert!(
        matches!(
            items.list(),
            [OutboxItem::ConsumerCancelled { channel: 1, .. }]
        ),
        "{items:?}"
    );
}

#[test]
fn delete_and_purge_count_ready_messages() {
    let mut client = TestBroker::new().connect();
    client.queue("q");
    for _ in 0..3 {
        // Transient: a persistent one would need a reservation to be durable before the get.
        let transient = Properties::default();
        client.publish_with("", "q", &transient).expect("publishes");
    }
    assert_eq!(
        refusal(client.run(delete("q", true, true))),
        "406 PRECONDITION_FAILED - queue 'q' in vhost '/' not empty"
    );
    let get = Command::Get {
        queue: short("q"),
        is_no_ack: false,
    };
    client.run(get).expect("gets");
    check_removed(&mut client, Command::QueuePurge { queue: short("q") }, 2);
    client.publish("", "q").expect("publishes");
    check_removed(&mut client, delete("q", false, false), 1);
    check_removed(&mut client, delete("q", false, false), 0);
    assert_eq!(
        refusal(client.run(Command::QueuePurge { queue: short("q") })),
        "404 NOT_FOUND - no queue 'q' in vhost '/'"
    );
    client.queue("busy");
    client.consume("busy").expect("consumes");
    assert_eq!(
        refusal(client.run(delete("busy", true, false))),
        "406 PRECONDITION_FAILED - queue 'busy' in vhost '/' in use"
    );
}

#[test]
fn queue_with_a_lease_goes_when_its_time_is_up() {
    let mut broker = TestBroker::new();
    let mut client = broker.connect();
    declare_queue(&mut client, with("leased", "x-expires", 100)).expect("declares");
    let timer = client.effects.timers.pop().expect("a lease arms a timer");
    assert_eq!(timer.due_at_ms, 100);
    broker
        .broker
        .timer_due(&timer.queue, 99, &mut broker.effects);
    assert!(client.has_queue("leased"));
    broker
        .broker
        .timer_due(&timer.queue, 200, &mut broker.effects);
    assert!(!client.has_queue("leased"));
}

#[test]
fn refused_consumers() {
    let mut client = TestBroker::new().connect();
    assert_eq!(
        refusal(client.consume("none")),
        "404 NOT_FOUND - no queue 'none' in vhost '/'"
    );
    client.queue("q");
    let mut consume = crate::broker::command::Consume {
        queue: short("q"),
        tag: short("t"),
        is_no_ack: false,
        is_exclusive: true,
        prefetch: 0,
        arguments: FieldTable::new().with("x-stream-offset", 1),
    };
    assert_eq!(
        refusal(client.run(Command::Consume(consume.clone()))),
        "406 PRECONDITION_FAILED - invalid arg 'x-stream-offset' for queue 'q' in vhost '/' of queue type rabbit_classic_queue"
    );
    consume.arguments = FieldTable::new().with("x-priority", 5);
    client
        .run(Command::Consume(consume.clone()))
        .expect("consumes alone");
    assert_eq!(
        refusal(client.consume("q")),
        "403 ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use"
    );
}

#[test]
fn what_a_connection_held_when_it_ended_by_a_fault_comes_back() {
    let broker = TestBroker::new();
    let mut other = broker.connect();
    other.queue("q");
    let mut faulty = broker.connect();
    let consume = Consume {
        queue: short("q"),
        tag: short("tag"),
        is_no_ack: false,
        is_exclusive: false,
        prefetch: 0,
        arguments: FieldTable::new(),
    };
    faulty.run(Command::Consume(consume)).expect("consumes");
    for _ in 0..3 {
        other.publish("", "q").expect("publishes");
    }
    let items = crate::broker::testing::drain(&faulty.outbox);
    let deliveries = items.into_deliveries();
    let mut held: Vec<Unacked> = deliveries.map(|delivery| delivery.unacked()).collect();
    assert_eq!(held.len(), 3);
    // One of them was settled before; no channel gives back the others.
    let settle = Command::Settle {
        items: held[..1].to_vec(),
        outcome: SettleOutcome::Ack,
    };
    faulty.run(settle).expect("settles");
    faulty.connection.close(0, &mut faulty.effects);
    assert_eq!(other.ready_count("q"), 0);
    faulty.connection.requeue(&mut held, 0, &mut faulty.effects);
    assert_eq!(other.ready_count("q"), 2);
}
