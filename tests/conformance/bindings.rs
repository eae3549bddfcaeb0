//! Section 8: bindings.

use stratamq::amqp::method::{exchange, queue};

use super::stage::*;
use crate::support::raw::Message;

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
