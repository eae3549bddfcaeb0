//! What survives a restart (section 2 of the persistence reference), by replay and by snapshot.

use std::sync::Arc;

use super::support::{TestBroker, bind, bind_exchange, exchange, persistent, queue, short};
use super::{declare_exchange, declare_queue};
use crate::amqp::field_table::{FieldTable, FieldValue};
use crate::broker::command::{Command, Consume, ExchangeDeclare, QueueDeclare};
use crate::broker::effects::Effects;
use crate::broker::meta::MetaState;
use crate::broker::{Broker, BrokerOptions, RestoreError};
use crate::storage::CheckpointSource;

/// A broker with some of everything, and some of it deleted again.
fn busy_broker() -> TestBroker {
    let broker = TestBroker::new();
    let mut client = broker.connect();
    let transient = QueueDeclare {
        is_durable: false,
        ..queue("transient")
    };
    let exclusive = QueueDeclare {
        is_exclusive: true,
        ..queue("exclusive")
    };
    let transient_exchange = ExchangeDeclare {
        is_durable: false,
        ..exchange("transient", "fanout")
    };
    let limited = QueueDeclare {
        arguments: FieldTable::new().with("x-max-length", 2),
        ..queue("limited")
    };
    for declare in [queue("q"), queue("gone"), transient, exclusive, limited] {
        declare_queue(&mut client, declare).expect("declares");
    }
    client.exchange("x", "topic");
    client.exchange("y", "headers");
    client.exchange("gone", "direct");
    declare_exchange(&mut client, transient_exchange).expect("declares");
    client.bind("q", "x", "a.#");
    client.bind("q", "x", "unbound");
    client.bind("gone", "x", "#");
    client.bind("transient", "x", "#");
    client.bind("limited", "gone", "k");
    client.bind("q", "transient", "");
    client
        .run(Command::Bind(bind_exchange("y", "x", "to.y")))
        .expect("binds");
    let mut arguments = bind("limited", "y", "");
    arguments.arguments = FieldTable::new().with("k", 1).with("a", "text");
    client.run(Command::Bind(arguments)).expect("binds");
    client
        .run(Command::Unbind(bind("q", "x", "unbound")))
        .expect("unbinds");
    for command in [
        Command::QueueDelete {
            queue: short("gone"),
            if_unused: false,
            if_empty: false,
        },
        Command::ExchangeDelete {
            exchange: short("gone"),
            if_unused: false,
        },
    ] {
        client.run(command).expect("deletes");
    }
    client.publish("x", "a.b").expect("publishes");
    broker
}

fn state(broker: &TestBroker) -> MetaState {
    MetaState::decode(&broker.broker.meta().0).expect("a snapshot decodes")
}

#[test]
fn replay_and_snapshot_agree_with_the_live_topology() {
    let broker = busy_broker();
    let live = state(&broker);
    let replayed = broker.restart();
    assert_eq!(state(&replayed), live);
    let (snapshot, lsn) = broker.broker.meta();
    let loaded = broker.try_restart(Some(&snapshot)).expect("restores");
    assert_eq!(state(&loaded), live);
    assert!(lsn.0 > 0);
}

/// Proves I41.
#[test]
fn durable_things_survive_and_transient_ones_do_not() {
    let restarted = busy_broker().restart();
    let mut client = restarted.connect();
    for (name, expected) in [
        ("q", true),
        ("limited", true),
        ("transient", false),
        ("exclusive", false),
        ("gone", false),
    ] {
        assert_eq!(client.has_queue(name), expected, "queue {name}");
    }
    for (name, expected) in [
        ("x", true),
        ("y", true),
        ("transient", false),
        ("gone", false),
        ("amq.topic", true),
    ] {
        assert_eq!(client.has_exchange(name), expected, "exchange {name}");
    }
    assert_eq!(client.ready_count("q"), 1);
    // Bindings and arguments are the old ones.
    client.publish("x", "a.c").expect("publishes");
    assert!(
        client
            .publish("x", "unbound")
            .expect("publishes")
            .is_unroutable
    );
    assert_eq!(client.ready_count("q"), 2);
    let same = QueueDeclare {
        arguments: FieldTable::new().with("x-max-length", 2),
        ..queue("limited")
    };
    declare_queue(&mut client, same).expect("is equivalent");
}

#[test]
fn queue_ids_are_never_used_again() {
    let broker = busy_broker();
    let before = state(&broker).next_queue_id;
    let restarted = broker.restart();
    let mut client = restarted.connect();
    client.queue("new");
    let newest = state(&restarted).queues.into_keys().max();
    // The exclusive and transient queues of before have left no trace in the log, durable ones have.
    let logged_max = state(&broker).queues.into_keys().max();
    assert!(newest > logged_max && newest <= Some(before));
}

#[test]
fn nothing_durable_waits_for_nothing() {
    let broker = TestBroker::new();
    let mut client = broker.connect();
    let pending = |client: &mut super::support::TestConnection, declare: QueueDeclare| {
        let reply = client
            .execute(Command::QueueDeclare(declare))
            .expect("declares");
        reply.durable_at.is_some()
    };
    let transient = QueueDeclare {
        is_durable: false,
        ..queue("t")
    };
    assert!(!pending(&mut client, transient));
    assert!(pending(&mut client, queue("q")), "a durable declare waits");
    assert!(
        pending(&mut client, queue("q")),
        "so does who repeats it meanwhile"
    );
    broker.journal.commit();
    assert!(!pending(&mut client, queue("q")));
}

#[test]
fn unknown_records_are_refused() {
    for (record, expected) in [
        ((99, 1, &b""[..]), RestoreError::UnknownKind { kind: 99 }),
        (
            (9, 2, &b""[..]),
            RestoreError::UnknownVersion {
                kind: 9,
                version: 2,
            },
        ),
    ] {
        let outcome = crate::broker::Broker::restore(
            TestBroker::new().journal,
            crate::broker::BrokerOptions::default(),
            None,
            &[record],
            vec![],
            0,
            &mut crate::broker::effects::Effects::default(),
        );
        assert_eq!(outcome.err(), Some(expected));
    }
}

#[test]
fn users_and_permissions_survive() {
    let mut broker = TestBroker::new();
    super::access::add_user(&mut broker, "bob");
    super::access::allow(&mut broker, "bob", "", "", "^q$");
    let restarted = broker.restart();
    let mut bob = restarted
        .connect_as("bob", "/")
        .expect("password and permissions are there");
    restarted.connect().queue("q");
    assert!(bob.has_queue("q"));
    assert!(bob.publish("", "q").is_err());
}

#[test]
fn checkpoint_covers_exactly_the_durable_queues() {
    let broker = busy_broker();
    let ids = broker.broker.queue_ids();
    assert_eq!(ids.len(), 2, "q and limited");
    let logged = broker.journal.logged().images;
    for id in ids {
        let image = broker.broker.queue(id).expect("the queue is there");
        assert_eq!(image.entries, logged[&id].entries, "{id}");
        assert_eq!(image.last_lsn, logged[&id].last_lsn, "{id}");
    }
}

/// What this broker has logged, opened at `now_ms` although the records of these kinds are lost.
fn salvage(broker: &TestBroker, lost_kinds: &[u16], now_ms: u64) -> TestBroker {
    let logged = broker.journal.logged();
    let left = logged
        .metas
        .iter()
        .filter(|(kind, ..)| !lost_kinds.contains(kind));
    let records: Vec<(u16, u16, &[u8])> = left
        .map(|(kind, version, body)| (*kind, *version, &body[..]))
        .collect();
    let options = BrokerOptions {
        is_salvaged: true,
        ..BrokerOptions::default()
    };
    reopen(broker, options, None, &records, now_ms)
}

fn reopen(
    broker: &TestBroker,
    options: BrokerOptions,
    snapshot: Option<&[u8]>,
    records: &[(u16, u16, &[u8])],
    now_ms: u64,
) -> TestBroker {
    let images = broker.journal.logged().images.into_values().collect();
    let journal = Arc::clone(&broker.journal);
    let mut effects = Effects::default();
    let restored = Broker::restore(
        Arc::clone(&journal) as _,
        options,
        snapshot,
        records,
        images,
        now_ms,
        &mut effects,
    );
    TestBroker {
        journal,
        broker: restored.expect("restores"),
        effects,
    }
}

/// What waited for a delayed exchange whose declaration is lost stays, however long ago it was due.
#[test]
fn messages_of_a_lost_delayed_exchange_do_not_expire_when_they_were_due() {
    const EXCHANGE_DECLARED: u16 = 7;
    const QUEUE_DECLARED: u16 = 9;
    for lost_kinds in [
        &[EXCHANGE_DECLARED][..],
        &[EXCHANGE_DECLARED, QUEUE_DECLARED],
    ] {
        let broker = TestBroker::new();
        let mut client = broker.connect();
        let delayed = ExchangeDeclare {
            arguments: FieldTable::new().with("x-delayed-type", FieldValue::text("direct")),
            ..exchange("later", "x-delayed-message")
        };
        declare_exchange(&mut client, delayed).expect("declares");
        let mut properties = persistent().edit();
        properties.set_header("x-delay", 5_000);
        let properties = properties.build();
        for _ in 0..3 {
            client
                .publish_with("later", "k", &properties)
                .expect("publishes");
        }
        let id = broker.broker.queue_ids()[0];
        let salvaged = salvage(&broker, lost_kinds, 10_000);
        let name = format!("recovered.{id}");
        let mut client = salvaged.connect();
        assert_eq!(client.ready_count(&name), 3, "lost {lost_kinds:?}");
        // Nor later, when nothing says any more that something was lost.
        let (snapshot, _) = salvaged.broker.meta();
        let next = reopen(
            &salvaged,
            BrokerOptions::default(),
            Some(&snapshot),
            &[],
            20_000,
        );
        let mut client = next.connect();
        assert_eq!(client.ready_count(&name), 3, "lost {lost_kinds:?}");
        let queues = next.broker.all_queues();
        let queue = queues.iter().find(|queue| queue.id() == id);
        let turn = &mut next.broker.shared.turn(30_000, &mut client.effects);
        let after = crate::broker::queue::timer_due(turn, queue.expect("it is there"));
        assert_eq!(after, crate::broker::queue::Aftermath::Stays);
        assert_eq!(client.ready_count(&name), 3, "lost {lost_kinds:?}");
        // Nor on the way to a consumer: the bodies are asked for.
        let consume = Consume {
            queue: short(&name),
            tag: short("tag"),
            is_no_ack: true,
            is_exclusive: false,
            prefetch: 0,
            arguments: FieldTable::new(),
        };
        client
            .connection
            .execute(
                1,
                &mut Command::Consume(consume),
                30_000,
                &mut client.effects,
            )
            .expect("consumes");
        assert_eq!(client.ready_count(&name), 3, "lost {lost_kinds:?}");
        assert!(!client.effects.fetches.is_empty());
    }
}
