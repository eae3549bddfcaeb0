//! Exchanges: declare, delete, auto-delete (sections 6 and 9.1 of the behaviour reference).

use super::support::{TestBroker, bind, bind_exchange, exchange, short};
use super::{declare_exchange, refusal};
use crate::amqp::field_table::{FieldTable, FieldValue};
use crate::broker::command::{Command, ExchangeDeclare};

fn delete(name: &str, if_unused: bool) -> Command {
    Command::ExchangeDelete {
        exchange: short(name),
        if_unused,
    }
}

#[test]
fn every_vhost_has_the_predeclared_exchanges() {
    let mut client = TestBroker::new().connect();
    for (name, kind, is_internal) in [
        ("amq.direct", "direct", false),
        ("amq.fanout", "fanout", false),
        ("amq.topic", "topic", false),
        ("amq.headers", "headers", false),
        ("amq.match", "headers", false),
        ("amq.rabbitmq.trace", "topic", true),
    ] {
        let mut declare = exchange(name, kind);
        declare.is_internal = is_internal;
        let outcome = declare_exchange(&mut client, declare);
        assert_eq!(refusal(outcome), "", "redeclare of {name}");
    }
}

#[test]
fn refused_declares() {
    let mut client = TestBroker::new().connect();
    client.exchange("x", "fanout");
    let passive = |name| ExchangeDeclare {
        is_passive: true,
        ..exchange(name, "")
    };
    let with_alternate = |name, value: FieldValue| ExchangeDeclare {
        arguments: FieldTable::new().with("alternate-exchange", value),
        ..exchange(name, "fanout")
    };
    let x = "for exchange 'x' in vhost '/'";
    for (declare, expected) in [
        (exchange("new", "bogus"), "406 PRECONDITION_FAILED - unknown exchange type 'bogus'".into()),
        (
            exchange("", "direct"),
            "403 ACCESS_REFUSED - operation not permitted on the default exchange".into(),
        ),
        (
            exchange("amq.foo", "direct"),
            "403 ACCESS_REFUSED - exchange name 'amq.foo' contains reserved prefix 'amq.*'".into(),
        ),
        (passive("none"), "404 NOT_FOUND - no exchange 'none' in vhost '/'".into()),
        (passive("x"), String::new()),
        (exchange("x", "fanout"), String::new()),
        (exchange("\rx\n", "fanout"), String::new()),
        (
            exchange("x", "direct"),
            format!("406 PRECONDITION_FAILED - inequivalent arg 'type' {x}: received 'direct' but current is 'fanout'"),
        ),
        (
            ExchangeDeclare { is_durable: false, ..exchange("x", "fanout") },
            format!("406 PRECONDITION_FAILED - inequivalent arg 'durable' {x}: received 'false' but current is 'true'"),
        ),
        (
            ExchangeDeclare { is_auto_delete: true, ..exchange("x", "fanout") },
            format!("406 PRECONDITION_FAILED - inequivalent arg 'auto_delete' {x}: received 'true' but current is 'false'"),
        ),
        (
            ExchangeDeclare { is_internal: true, ..exchange("x", "fanout") },
            format!("406 PRECONDITION_FAILED - inequivalent arg 'internal' {x}: received 'true' but current is 'false'"),
        ),
        (
            with_alternate("x", "ae".into()),
            format!("406 PRECONDITION_FAILED - inequivalent arg 'alternate-exchange' {x}: received the value 'ae' of type 'longstr' but current is none"),
        ),
        (
            with_alternate("y", 5.into()),
            "406 PRECONDITION_FAILED - invalid type 'signedint' for arg 'alternate-exchange' in exchange 'y' in vhost '/'".into(),
        ),
        (with_alternate("z", "nowhere".into()), String::new()),
    ] {
        let shown = format!("{declare:?}");
        assert_eq!(refusal(declare_exchange(&mut client, declare)), expected, "{shown}");
    }
}

#[test]
fn refused_and_idempotent_deletes() {
    let mut client = TestBroker::new().connect();
    client.exchange("x", "fanout");
    client.exchange("y", "fanout");
    client
        .run(Command::Bind(bind_exchange("y", "x", "")))
        .expect("binds");
    for (name, if_unused, expected) in [
        ("none", false, ""),
        (
            "",
            false,
            "403 ACCESS_REFUSED - operation not permitted on the default exchange",
        ),
        (
            "amq.direct",
            false,
            "403 ACCESS_REFUSED - deletion of system exchange 'amq.direct' in vhost '/' not allowed",
        ),
        (
            "x",
            true,
            "406 PRECONDITION_FAILED - exchange 'x' in vhost '/' in use",
        ),
        // Being a destination is no use.
        ("y", true, ""),
        ("x", true, ""),
    ] {
        assert_eq!(
            refusal(client.run(delete(name, if_unused))),
            expected,
            "{name}"
        );
    }
}

#[test]
fn auto_delete_exchange_goes_with_its_last_binding_as_source() {
    let mut client = TestBroker::new().connect();
    client.queue("q");
    let auto = |name| ExchangeDeclare {
        is_auto_delete: true,
        ..exchange(name, "direct")
    };
    for name in ["a", "b", "never-bound"] {
        declare_exchange(&mut client, auto(name)).expect("declares");
    }
    // a -> b -> q
    client
        .run(Command::Bind(bind_exchange("b", "a", "k")))
        .expect("binds");
    client.bind("q", "b", "k1");
    client.bind("q", "b", "k2");
    client
        .run(Command::Unbind(bind("q", "b", "k1")))
        .expect("unbinds");
    assert!(client.has_exchange("b"));
    client
        .run(Command::Unbind(bind("q", "b", "k2")))
        .expect("unbinds");
    assert!(!client.has_exchange("b"), "its last binding went");
    assert!(!client.has_exchange("a"), "its destination went");
    assert!(client.has_exchange("never-bound"));
}

#[test]
fn auto_delete_cascades_from_a_queue_and_ends_at_cycles() {
    let mut client = TestBroker::new().connect();
    client.queue("q");
    let auto = |name| ExchangeDeclare {
        is_auto_delete: true,
        ..exchange(name, "fanout")
    };
    for name in ["a", "b"] {
        declare_exchange(&mut client, auto(name)).expect("declares");
    }
    client
        .run(Command::Bind(bind_exchange("a", "a", "")))
        .expect("binds to itself");
    client
        .run(Command::Bind(bind_exchange("b", "a", "")))
        .expect("binds");
    client.bind("q", "b", "");
    client
        .run(Command::QueueDelete {
            queue: short("q"),
            if_unused: false,
            if_empty: false,
        })
        .expect("deletes");
    assert!(!client.has_exchange("b"));
    assert!(client.has_exchange("a"), "it is still bound to itself");
    client
        .run(Command::Unbind(bind_exchange("a", "a", "")))
        .expect("unbinds");
    assert!(!client.has_exchange("a"));
}
