//! Section 8: bindings.

use stratamq::amqp::method::{exchange, queue};

use super::elsewhere::skipped_elsewhere;
use super::stage::*;
use crate::support::raw::{Message, exclusive};

/// BI-1.
#[test]
fn a_binding_is_known_by_key_and_arguments() {
    let mut c = client();
    c.call::<exchange::DeclareOk>(1, x("bi1", "direct"));
    c.queue_declare(1, "bi1.q", q(""));
    let with = |arguments| queue::Bind {
        arguments,
        ..bind("bi1.q", "bi1", "k")
    };
    let without = |arguments| queue::Unbind {
        arguments,
        ..unbind("bi1.q", "bi1", "k")
    };
    let both = || table([("a", int(1)), ("b", int(2))]);
    let turned = || table([("b", int(2)), ("a", int(1))]);
    c.call::<queue::BindOk>(1, with(both()));
    c.call::<queue::BindOk>(1, with(turned()));
    c.call::<queue::BindOk>(1, with(table([])));
    c.publish(1, "bi1", "k", &Message::plain("m"));
    assert_eq!(drain(&mut c, "bi1.q").len(), 1);
    // Two bindings: the one with arguments, in whatever order, and the one without.
    c.call::<queue::UnbindOk>(1, without(table([])));
    c.publish(1, "bi1", "k", &Message::plain("m"));
    assert_eq!(drain(&mut c, "bi1.q").len(), 1);
    c.call::<queue::UnbindOk>(1, without(turned()));
    c.publish(1, "bi1", "k", &Message::plain("m"));
    assert!(drain(&mut c, "bi1.q").is_empty());
}

/// BI-3, BI-4, BI-5.
#[test]
fn bind_wants_both_ends_and_unbind_is_content_with_none() {
    let mut c = client();
    c.queue_declare(1, "bi3.q", q(""));
    let no_exchange = "NOT_FOUND - no exchange 'bi3.none' in vhost '/'";
    refused(&mut c, bind("bi3.q", "bi3.none", ""), 404, no_exchange);
    refused(&mut c, bind("bi3.none", "bi3.none", ""), 404, no_exchange);
    refused(
        &mut c,
        bind("bi3.none", "amq.direct", ""),
        404,
        "NOT_FOUND - no queue 'bi3.none' in vhost '/'",
    );
    c.call::<queue::UnbindOk>(1, unbind("bi3.q", "amq.direct", "never bound"));
    c.call::<queue::UnbindOk>(1, unbind("bi3.q", "bi3.none", ""));
    c.call::<queue::UnbindOk>(1, unbind("bi3.none", "amq.direct", ""));
    let default = "ACCESS_REFUSED - operation not permitted on the default exchange";
    refused(&mut c, bind("bi3.q", "", "k"), 403, default);
    refused(&mut c, unbind("bi3.q", "", "k"), 403, default);
}

/// BI-9: also a nowait bind precedes the publishes behind it.
#[test]
fn a_bind_is_seen_by_the_publishes_behind_it() {
    let mut c = client();
    c.call::<exchange::DeclareOk>(1, x("bi9", "direct"));
    c.queue_declare(1, "bi9.q", q(""));
    for round in 0..20 {
        let key = format!("k{round}");
        c.push_publish(1, "bi9", &key, &Message::plain("too early"));
        c.push(
            1,
            queue::Bind {
                nowait: true,
                ..bind("bi9.q", "bi9", &key)
            },
        );
        c.push_publish(1, "bi9", &key, &Message::plain("in time"));
    }
    c.flush().expect("sent");
    settle(&mut c, 1);
    assert_eq!(drain(&mut c, "bi9.q"), ["in time"; 20]);
}

/// BI-11.
#[test]
fn system_exchanges_take_bindings_in_both_directions() {
    let mut c = client();
    c.call::<exchange::DeclareOk>(1, x("bi11", "fanout"));
    c.queue_declare(1, "bi11.q", q(""));
    c.exchange_bind(1, "amq.fanout", "bi11", "");
    c.exchange_bind(1, "bi11", "amq.topic", "bi11.#");
    c.bind(1, "bi11.q", "bi11", "");
    c.publish(1, "amq.topic", "bi11.x", &Message::plain("m"));
    assert_eq!(drain(&mut c, "bi11.q"), ["m"]);
    c.call::<exchange::UnbindOk>(1, x_unbind("amq.fanout", "bi11", ""));
}

/// BI-6, BI-7: the pseudo queue first, then write on the destination, the default exchange, read on the source; what is there comes
/// last, the source before the destination, then the type's opinion, then exclusivity. (Topic permissions have tests of their own.)
#[test]
fn binding_is_checked_in_order() {
    if skipped_elsewhere("users and permissions are set by our own commands") {
        return;
    }
    let mut c = super::users::user("bi6", "^bi6", "^bi6", "^bi6");
    let mut owner = client();
    let hidden = owner.queue_declare(1, "bi6.exclusive", exclusive());
    let hidden = hidden.queue.to_string();
    c.call::<exchange::DeclareOk>(1, x("bi6.headers", "headers"));
    c.queue_declare(1, "bi6.q", q(""));
    let no = |operation: &str, thing: &str| {
        let text = format!("{operation} access to {thing} in vhost '/' refused for user 'bi6'");
        (403, format!("ACCESS_REFUSED - {text}"))
    };
    let missing = |thing: &str| (404, format!("NOT_FOUND - no {thing} in vhost '/'"));
    let default = || {
        let text = "ACCESS_REFUSED - operation not permitted on the default exchange";
        (403, text.to_owned())
    };
    let volatile = "ACCESS_REFUSED - cannot bind or unbind to a volatile (direct reply-to) queue";
    let bad_match = || table([("x-match", string("foo"))]);
    let with = |arguments, bind| queue::Bind { arguments, ..bind };
    for (bind, (code, text)) in [
        (bind("amq.rabbitmq.reply-to", "", "k"), (403, volatile.to_owned())),
        (bind("other", "", "k"), no("write", "queue 'other'")),
        (bind("bi6.none", "", "k"), default()),
        (bind("bi6.none", "other", "k"), no("read", "exchange 'other'")),
        (bind("bi6.none", "bi6.x", "k"), missing("exchange 'bi6.x'")),
        (with(bad_match(), bind("bi6.none", "bi6.headers", "k")), missing("queue 'bi6.none'")),
        (
            with(bad_match(), bind(&hidden, "bi6.headers", "k")),
            (
                406,
                "PRECONDITION_FAILED - Invalid x-match field value <<\"foo\">>; expected all, any, all-with-x, or any-with-x"
                    .to_owned(),
            ),
        ),
        (
            bind(&hidden, "bi6.headers", "k"),
            (
                405,
                format!(
                    "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '{hidden}' in vhost '/'. It could be originally \
                     declared on another connection or the exclusive property value does not match that of the original declaration."
                ),
            ),
        ),
    ] {
        let (code, text): (u16, String) = (code, text);
        refused(&mut c, bind, code, &text);
    }
    // Names lose their line breaks first.
    c.call::<queue::BindOk>(1, bind("bi6\r.q", "bi6.\nheaders", "k"));
    for (bind, (code, text)) in [
        (x_bind("other", "", "k"), no("write", "exchange 'other'")),
        (
            x_bind("", "bi6.headers", "k"),
            no("write", "exchange 'amq.default'"),
        ),
        (
            x_bind("bi6.x", "other", "k"),
            no("read", "exchange 'other'"),
        ),
        (x_bind("bi6.x", "bi6.y", "k"), missing("exchange 'bi6.y'")),
        (
            x_bind("bi6.x", "bi6.headers", "k"),
            missing("exchange 'bi6.x'"),
        ),
    ] {
        refused(&mut c, bind, code, &text);
    }
}

/// BI-8: what a type refuses; topic keys may have any number of wildcards here, since matching them stays cheap (RT-13).
#[test]
fn types_refuse_bindings_they_cannot_read() {
    let mut c = client();
    c.queue_declare(1, "bi8.q", q(""));
    let with = |value| queue::Bind {
        arguments: table([("x-match", value)]),
        ..bind("bi8.q", "amq.headers", "")
    };
    let text =
        "PRECONDITION_FAILED - Invalid x-match field type signedint (value 5); expected longstr";
    refused(&mut c, with(int(5)), 406, text);
    // Nobody else reads it.
    let elsewhere = queue::Bind {
        arguments: table([("x-match", string("foo"))]),
        ..bind("bi8.q", "amq.direct", "")
    };
    c.call::<queue::BindOk>(1, elsewhere);
    c.bind(1, "bi8.q", "amq.topic", "bi8.#.#.#");
    c.publish(1, "amq.topic", "bi8.a.b.c", &Message::plain("m"));
    assert_eq!(drain(&mut c, "bi8.q"), ["m"]);
}
