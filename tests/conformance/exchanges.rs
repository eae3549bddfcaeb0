//! Section 6: exchanges.

use stratamq::amqp::method::{basic, exchange};

use super::stage::*;
use crate::support::raw::{Message, text};

fn flags(name: &str, durable: bool, auto_delete: bool, internal: bool) -> exchange::Declare {
    exchange::Declare {
        durable,
        auto_delete,
        internal,
        ..x(name, "direct")
    }
}

fn passive_x(name: &str) -> exchange::Declare {
    exchange::Declare {
        passive: true,
        ..x(name, "")
    }
}

/// Section 6.1, EX-3.
#[test]
fn every_vhost_has_the_predeclared_exchanges() {
    let mut c = client();
    for (name, kind, internal) in [
        ("amq.direct", "direct", false),
        ("amq.fanout", "fanout", false),
        ("amq.topic", "topic", false),
        ("amq.headers", "headers", false),
        ("amq.match", "headers", false),
        ("amq.rabbitmq.trace", "topic", true),
    ] {
        let declare = exchange::Declare {
            durable: true,
            internal,
            ..x(name, kind)
        };
        c.call::<exchange::DeclareOk>(1, declare);
        c.call::<exchange::DeclareOk>(1, passive_x(name));
    }
}

/// EX-1.
#[test]
fn a_redeclare_must_agree_in_type_and_flags_compared_in_that_order() {
    let mut c = client();
    let name = "ex1";
    c.call::<exchange::DeclareOk>(1, flags(name, true, false, false));
    c.call::<exchange::DeclareOk>(1, flags(name, true, false, false));
    let text = |arg: &str, received: &str, current: &str| {
        format!(
            "PRECONDITION_FAILED - inequivalent arg '{arg}' for exchange 'ex1' in vhost '/': received '{received}' but current is '{current}'"
        )
    };
    let other_kind = exchange::Declare {
        kind: self::text("fanout"),
        ..flags(name, false, true, true)
    };
    refused(&mut c, other_kind, 406, &text("type", "fanout", "direct"));
    let cases = [
        (
            flags(name, false, true, true),
            text("durable", "false", "true"),
        ),
        (
            flags(name, true, true, true),
            text("auto_delete", "true", "false"),
        ),
        (
            flags(name, true, false, true),
            text("internal", "true", "false"),
        ),
    ];
    for (declare, text) in cases {
        refused(&mut c, declare, 406, &text);
    }
}

/// EX-2, EX-4.
#[test]
fn of_the_arguments_only_the_alternate_exchange_is_compared() {
    let mut c = client();
    let with = |arguments| exchange::Declare {
        arguments,
        ..x("ex2", "direct")
    };
    c.call::<exchange::DeclareOk>(
        1,
        with(table([
            ("alternate-exchange", string("ex2.a")),
            ("foo", int(1)),
        ])),
    );
    c.call::<exchange::DeclareOk>(
        1,
        with(table([
            ("alternate-exchange", string("ex2.a")),
            ("foo", int(2)),
        ])),
    );
    refused(
        &mut c,
        with(table([("alternate-exchange", string("ex2.b"))])),
        406,
        "PRECONDITION_FAILED - inequivalent arg 'alternate-exchange' for exchange 'ex2' in vhost '/': received 'ex2.b' but current is 'ex2.a'",
    );
    refused(
        &mut c,
        with(table([])),
        406,
        "PRECONDITION_FAILED - inequivalent arg 'alternate-exchange' for exchange 'ex2' in vhost '/': received none but current is the value 'ex2.a' of type 'longstr'",
    );
    let declare = exchange::Declare {
        arguments: table([("alternate-exchange", int(5))]),
        ..x("ex2.new", "direct")
    };
    refused(
        &mut c,
        declare,
        406,
        "PRECONDITION_FAILED - invalid type 'signedint' for arg 'alternate-exchange' in exchange 'ex2.new' in vhost '/'",
    );
}

/// EX-3, EX-5, EX-8, EX-11, BI-5 and the exchange rows of 4.4.
#[test]
fn what_may_not_be_done_to_exchanges_is_refused_on_the_channel() {
    let mut c = client();
    c.call::<exchange::DeclareOk>(1, x("ex3", "fanout"));
    let default = "ACCESS_REFUSED - operation not permitted on the default exchange";
    refused(&mut c, x("", "direct"), 403, default);
    refused(&mut c, x_delete(""), 403, default);
    refused(&mut c, x_bind("", "ex3", ""), 403, default);
    refused(&mut c, x_bind("ex3", "", ""), 403, default);
    refused(&mut c, x_unbind("", "ex3", ""), 403, default);
    refused(&mut c, x_unbind("ex3", "", ""), 403, default);
    refused(
        &mut c,
        x("amq.foo", "direct"),
        403,
        "ACCESS_REFUSED - exchange name 'amq.foo' contains reserved prefix 'amq.*'",
    );
    refused(
        &mut c,
        x_delete("amq.direct"),
        403,
        "ACCESS_REFUSED - deletion of system exchange 'amq.direct' in vhost '/' not allowed",
    );
    refused(
        &mut c,
        x("ex3.bogus", "bogus"),
        406,
        "PRECONDITION_FAILED - unknown exchange type 'bogus'",
    );
    refused(
        &mut c,
        passive_x("ex3.none"),
        404,
        "NOT_FOUND - no exchange 'ex3.none' in vhost '/'",
    );
}

/// EX-6.
#[test]
fn line_breaks_are_removed_from_names() {
    let mut c = client();
    c.call::<exchange::DeclareOk>(1, x("ex6\r\n.x", "fanout"));
    c.call::<exchange::DeclareOk>(1, passive_x("ex6.x"));
    assert_eq!(c.queue_declare(1, "ex6\n.q", q("")).queue.as_str(), "ex6.q");
    c.bind(1, "ex6.\rq", "ex6\n.x", "");
    c.publish(1, "ex6.x", "", &Message::plain("m"));
    assert_eq!(drain(&mut c, "ex6.q"), ["m"]);
}

/// EX-7.
#[test]
fn nowait_is_not_answered() {
    let mut c = client();
    let declare = exchange::Declare {
        nowait: true,
        ..x("ex7", "fanout")
    };
    c.send(1, declare);
    c.call::<exchange::DeclareOk>(1, passive_x("ex7"));
    c.send(
        1,
        exchange::Delete {
            nowait: true,
            ..x_delete("ex7")
        },
    );
    settle(&mut c, 1);
    refused(
        &mut c,
        passive_x("ex7"),
        404,
        "NOT_FOUND - no exchange 'ex7' in vhost '/'",
    );
}

/// EX-10, EX-12.
#[test]
fn deleting_is_idempotent_and_if_unused_counts_outgoing_bindings_only() {
    let mut c = client();
    c.call::<exchange::DeleteOk>(1, x_delete("ex10.none"));
    for name in ["ex10.a", "ex10.b"] {
        c.call::<exchange::DeclareOk>(1, x(name, "fanout"));
    }
    c.exchange_bind(1, "ex10.b", "ex10.a", "");
    let if_unused = |name| exchange::Delete {
        if_unused: true,
        ..x_delete(name)
    };
    refused(
        &mut c,
        if_unused("ex10.a"),
        406,
        "PRECONDITION_FAILED - exchange 'ex10.a' in vhost '/' in use",
    );
    c.call::<exchange::DeleteOk>(1, if_unused("ex10.b"));
    c.call::<exchange::DeleteOk>(1, if_unused("ex10.a"));
}

/// EX-13, EX-15.
#[test]
fn auto_delete_exchanges_go_with_their_last_outgoing_binding_transitively() {
    let mut c = client();
    let auto = |name| exchange::Declare {
        auto_delete: true,
        ..x(name, "fanout")
    };
    for name in ["ex15.a", "ex15.b", "ex15.never"] {
        c.call::<exchange::DeclareOk>(1, auto(name));
    }
    c.queue_declare(1, "ex15.q", q(""));
    c.exchange_bind(1, "ex15.b", "ex15.a", "");
    c.bind(1, "ex15.q", "ex15.b", "");
    // The queue goes, so b has nothing left and goes, so a has nothing left and goes.
    c.queue_delete(1, "ex15.q");
    for name in ["ex15.a", "ex15.b"] {
        let text = format!("NOT_FOUND - no exchange '{name}' in vhost '/'");
        refused(&mut c, passive_x(name), 404, &text);
    }
    c.call::<exchange::DeclareOk>(1, passive_x("ex15.never"));
    // By unbind, and seen when unbind-ok is.
    c.call::<exchange::DeclareOk>(1, auto("ex15.c"));
    c.queue_declare(1, "ex15.q", q(""));
    c.bind(1, "ex15.q", "ex15.c", "k");
    c.call::<stratamq::amqp::method::queue::UnbindOk>(1, unbind("ex15.q", "ex15.c", "k"));
    refused(
        &mut c,
        passive_x("ex15.c"),
        404,
        "NOT_FOUND - no exchange 'ex15.c' in vhost '/'",
    );
}

/// EX-16.
#[test]
fn internal_exchanges_take_bindings_but_no_publishes() {
    let mut c = client();
    c.call::<exchange::DeclareOk>(1, x("ex16.x", "fanout"));
    c.call::<exchange::DeclareOk>(
        1,
        exchange::Declare {
            internal: true,
            ..x("ex16.i", "fanout")
        },
    );
    c.queue_declare(1, "ex16.q", q(""));
    c.exchange_bind(1, "ex16.i", "ex16.x", "");
    c.bind(1, "ex16.q", "ex16.i", "");
    c.publish(1, "ex16.x", "k", &Message::plain("m"));
    assert_eq!(drain(&mut c, "ex16.q"), ["m"]);
    publish_refused(
        &mut c,
        publish("ex16.i", ""),
        &Message::plain("m"),
        403,
        "ACCESS_REFUSED - cannot publish to internal exchange 'ex16.i' in vhost '/'",
    );
}

/// EX-18, EX-19, RT-1, RT-2.
#[test]
fn exchanges_bind_to_exchanges_and_cycles_end() {
    let mut c = client();
    for name in ["ex18.a", "ex18.b"] {
        c.call::<exchange::DeclareOk>(1, x(name, "fanout"));
    }
    c.queue_declare(1, "ex18.q", q(""));
    c.exchange_bind(1, "ex18.a", "ex18.a", "");
    c.exchange_bind(1, "ex18.b", "ex18.a", "");
    c.exchange_bind(1, "ex18.a", "ex18.b", "");
    c.bind(1, "ex18.q", "ex18.b", "");
    c.publish(1, "ex18.a", "key", &Message::plain("m"));
    let got = drain_all(&mut c, "ex18.q");
    assert_eq!(got.len(), 1);
    assert_eq!(
        (got[0].exchange.as_str(), got[0].routing_key.as_str()),
        ("ex18.a", "key")
    );
    refused(
        &mut c,
        x_bind("ex18.none", "ex18.a", ""),
        404,
        "NOT_FOUND - no exchange 'ex18.none' in vhost '/'",
    );
    refused(
        &mut c,
        x_bind("ex18.a", "ex18.none", ""),
        404,
        "NOT_FOUND - no exchange 'ex18.none' in vhost '/'",
    );
    c.call::<exchange::UnbindOk>(1, x_unbind("ex18.b", "ex18.a", ""));
    c.call::<exchange::UnbindOk>(1, x_unbind("ex18.b", "ex18.a", ""));
    send(&mut c, 1, mandatory("ex18.a", ""), &Message::plain("m"));
    c.expect::<basic::Return>(1);
}
