//! Section 30: exchanges that hold messages back. What outlives a crash stands in `tests/exchange_restart.rs`.

use std::time::Duration;

use stratamq::amqp::field_table::FieldValue;
use stratamq::amqp::method::{Method, exchange};

use super::stage::*;
use crate::support::raw::{Client, Message, exclusive, now};
use crate::support::wait::{Pace, at_some_pace};

fn delayed(name: &str, kind: &str) -> exchange::Declare {
    exchange::Declare {
        arguments: table([("x-delayed-type", string(kind))]),
        ..x(name, "x-delayed-message")
    }
}

fn later(body: &str, delay: impl Into<FieldValue>) -> Message {
    Message::with(body.to_owned(), |properties| {
        properties.set_header("x-delay", delay);
    })
}

/// A delayed exchange of that type and a queue bound to it with `key`.
fn bound(exchange: &str, kind: &str, key: &str) -> (Client, String) {
    let mut c = client();
    c.call::<exchange::DeclareOk>(1, delayed(exchange, kind));
    let queue = c.queue_declare(1, "", exclusive()).queue.to_string();
    c.bind(1, &queue, exchange, key);
    (c, queue)
}

/// XP-7: messages come in the order of their time, not of their publishing; without a delay at once, in all ways to say so.
#[test]
fn messages_come_when_their_delay_is_over() {
    // The order of their times is that of the delays if all were published within one of them.
    at_some_pace(Duration::from_millis(200), come_when_their_delay_is_over);
}

fn come_when_their_delay_is_over(delay: Duration) -> Pace {
    let (mut c, queue) = bound("xp7", "topic", "a.*");
    c.consume(1, &queue, "c");
    let delay_ms = i32::try_from(delay.as_millis()).expect("some seconds");
    let begun = now();
    for (body, delays) in [("third", 3), ("second", 2), ("first", 1)] {
        c.push_publish(1, "xp7", "a.b", &later(body, delays * delay_ms));
    }
    for message in [
        Message::plain("none"),
        later("zero", 0),
        later("negative", -5),
        later("no number", "soon"),
    ] {
        c.push_publish(1, "xp7", "a.b", &message);
    }
    c.push_publish(1, "xp7", "elsewhere", &later("nobody's", 1));
    c.flush().expect("the broker reads");
    settle(&mut c, 1);
    if begun.elapsed() >= delay {
        c.call::<exchange::DeleteOk>(1, x_delete("xp7"));
        return Pace::TooSlow;
    }
    for expected in [
        "none",
        "zero",
        "negative",
        "no number",
        "first",
        "second",
        "third",
    ] {
        let delivered = c.next_delivery(1);
        assert_eq!(delivered.message.body_text(), expected);
        let place = (delivered.exchange.as_str(), delivered.routing_key.as_str());
        assert_eq!(place, ("xp7", "a.b"));
        assert!(!delivered.is_redelivered);
    }
    Pace::Quick
}

/// XP-7: the header says afterwards, by its sign, that there was a delay; all else is as published.
#[test]
fn a_delayed_message_says_so_and_nothing_else_of_it_changes() {
    let (mut c, queue) = bound("xp7.header", "direct", "k");
    for (delay, after) in [
        (FieldValue::SignedInt(20), FieldValue::SignedInt(-20)),
        (FieldValue::Long(20), FieldValue::Long(-20)),
        (FieldValue::UnsignedShort(20), FieldValue::Long(-20)),
        (FieldValue::text("20"), FieldValue::Long(-20)),
    ] {
        let message = |delay: FieldValue| {
            Message::with("body", |properties| {
                properties
                    .set_header("before", 1)
                    .set_header("x-delay", delay)
                    .set_header("after", 2)
                    .set_delivery_mode(Some(2));
            })
        };
        c.publish(1, "xp7.header", "k", &message(delay));
        wait_ready(&mut c, &queue, 1);
        let delivered = c.get(1, &queue).expect("it is ready");
        assert_eq!(delivered.message, message(after));
        // What was delayed once is not delayed again.
        c.publish(1, "xp7.header", "k", &delivered.message);
        settle(&mut c, 1);
        assert_eq!(drain(&mut c, &queue).len(), 1);
    }
}

/// XP-7: waiting counts as routed, so there is no return and the confirm comes at once.
#[test]
fn a_message_that_waits_is_confirmed_and_not_returned() {
    let (mut c, queue) = bound("xp7.confirm", "fanout", "");
    c.confirm_select(1);
    let an_hour = 3_600_000;
    send(
        &mut c,
        1,
        mandatory("xp7.confirm", "k"),
        &later("m", an_hour),
    );
    assert!(matches!(c.next(1).method, Method::BasicAck(_)));
    assert_eq!(counts(&mut c, &queue), (0, 0));
    // It goes with its exchange, and what a transaction delays begins to wait.
    c.call::<exchange::DeleteOk>(1, x_delete("xp7.confirm"));
    c.open_channel(2);
    c.tx_select(2);
    c.call::<exchange::DeclareOk>(1, delayed("xp7.confirm", "fanout"));
    c.bind(1, &queue, "xp7.confirm", "");
    c.publish(2, "xp7.confirm", "k", &later("dropped", 1));
    c.tx_rollback(2);
    c.publish(2, "xp7.confirm", "k", &later("kept", 1));
    settle(&mut c, 2);
    assert_eq!(counts(&mut c, &queue), (0, 0));
    c.tx_commit(2);
    wait_ready(&mut c, &queue, 1);
    assert_eq!(drain(&mut c, &queue), ["kept"]);
}

/// XP-7, CC-1: through other exchanges, as a dead letter, and by all keys of a message.
#[test]
fn delays_work_wherever_a_message_comes_from() {
    let (mut c, queue) = bound("xp7.far", "direct", "k");
    c.call::<exchange::DeclareOk>(1, x("xp7.near", "fanout"));
    c.call::<exchange::BindOk>(1, x_bind("xp7.far", "xp7.near", ""));
    c.publish(1, "xp7.near", "k", &later("through", 20));
    wait_ready(&mut c, &queue, 1);
    let delivered = c.get(1, &queue).expect("it is ready");
    assert_eq!(delivered.exchange, "xp7.near");
    c.ack(1, delivered.tag);
    let dying = [
        ("x-message-ttl", int(0)),
        ("x-dead-letter-exchange", string("xp7.far")),
        ("x-dead-letter-routing-key", string("k")),
    ];
    c.queue_declare(1, "xp7.dying", q_with("", dying));
    c.publish(1, "", "xp7.dying", &later("dead", 20));
    wait_ready(&mut c, &queue, 1);
    let dead = c.get(1, &queue).expect("it is ready");
    c.ack(1, dead.tag);
    let header = |name: &str| dead.message.properties.header(name);
    assert_eq!(header("x-delay"), Some(int(-20)));
    assert_eq!(header("x-first-death-queue"), Some(string("xp7.dying")));
    let by_cc = Message::with("cc", |properties| {
        properties
            .set_header("x-delay", 20)
            .set_header("CC", FieldValue::Array(vec![string("k")]))
            .set_header("BCC", FieldValue::Array(vec![string("hidden")]));
    });
    c.bind(1, &queue, "xp7.far", "hidden");
    c.publish(1, "xp7.far", "other", &by_cc);
    wait_ready(&mut c, &queue, 1);
    let delivered = c.get(1, &queue).expect("it is ready");
    assert_eq!(delivered.message.properties.header("BCC"), None);
}

/// XP-7, TT-14: an expiry of its own begins when the delay is over.
#[test]
fn expiry_begins_behind_the_delay() {
    let (mut c, queue) = bound("xp7.expiry", "direct", "k");
    let message = Message::with("m", |properties| {
        properties
            .set_header("x-delay", 300)
            .set_expiration(Some(crate::support::raw::text("60000")));
    });
    c.publish(1, "xp7.expiry", "k", &message);
    wait_ready(&mut c, &queue, 1);
    let delivered = c.get(1, &queue).expect("it is ready");
    let expiration = delivered.message.properties.expiration();
    assert_eq!(expiration, Some(&b"60000"[..]));
}

/// XP-7: the type it routes as must be one, and nobody gets at what waits.
#[test]
fn delayed_exchanges_want_a_type_and_hide_their_queue() {
    let mut c = client();
    let text = "PRECONDITION_FAILED - Invalid argument, 'x-delayed-type' must be an existing exchange type";
    refused(&mut c, x("xp7.bad", "x-delayed-message"), 406, text);
    for kind in ["bogus", "x-delayed-message", ""] {
        refused(&mut c, delayed("xp7.bad", kind), 406, text);
    }
    // The type's own rules hold.
    c.call::<exchange::DeclareOk>(1, delayed("xp7.hash", "x-consistent-hash"));
    let queue = c.queue_declare(1, "", exclusive()).queue.to_string();
    refused(
        &mut c,
        bind(&queue, "xp7.hash", "heavy"),
        406,
        "PRECONDITION_FAILED - The binding key must be an integer: <<\"heavy\">>",
    );
    c.call::<exchange::DeclareOk>(1, delayed("xp7.hash", "x-consistent-hash"));
    let hidden = "amq.delayed.xp7.hash";
    let text = format!("NOT_FOUND - no queue '{hidden}' in vhost '/'");
    refused(&mut c, get(hidden), 404, &text);
    refused(&mut c, consume(hidden, ""), 404, &text);
    let text = format!("ACCESS_REFUSED - queue name '{hidden}' contains reserved prefix 'amq.*'");
    refused(&mut c, q(hidden), 403, &text);
    assert_eq!(c.queue_delete(1, hidden), 0);
    c.bind(1, &queue, "xp7.hash", "1");
    c.publish(1, "xp7.hash", "k", &later("m", 20));
    wait_ready(&mut c, &queue, 1);
}
