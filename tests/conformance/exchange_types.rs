//! Section 30: exchange types beyond the four of the protocol.

use std::collections::BTreeMap;

use stratamq::amqp::field_table::FieldValue;
use stratamq::amqp::method::exchange;
use stratamq::amqp::properties::PropertiesBuilder;

use super::stage::*;
use crate::support::raw::{Client, Message, exclusive, text};

fn x_with<const COUNT: usize>(
    name: &str,
    kind: &str,
    arguments: [(&str, FieldValue); COUNT],
) -> exchange::Declare {
    exchange::Declare {
        arguments: table(arguments),
        ..x(name, kind)
    }
}

/// Queues of a client, each bound to an exchange with a key.
#[track_caller]
fn bound(client: &mut Client, exchange: &str, keys: &[&str]) -> Vec<String> {
    let queues = keys.iter().map(|key| {
        let queue = client.queue_declare(1, "", exclusive()).queue.to_string();
        client.bind(1, &queue, exchange, key);
        queue
    });
    queues.collect()
}

/// What came to each queue: routing keys by queue.
fn taken(client: &mut Client, queues: &[String]) -> Vec<Vec<String>> {
    let of_queue = queues.iter().map(|queue| {
        let delivered = drain_all(client, queue).into_iter();
        delivered.map(|delivered| delivered.routing_key).collect()
    });
    of_queue.collect()
}

fn publish_keys(client: &mut Client, exchange: &str, count: u32) {
    for number in 0..count {
        let key = format!("key {number}");
        client.push_publish(1, exchange, &key, &Message::plain("m"));
    }
    client.flush().expect("the broker reads");
    settle(client, 1);
}

/// XP-1: one destination a key, by weight, and the same one as long as the bindings stay.
#[test]
fn consistent_hash_sends_each_key_to_one_place_by_weight() {
    let mut c = client();
    c.call::<exchange::DeclareOk>(1, x("xp1", "x-consistent-hash"));
    let queues = bound(&mut c, "xp1", &["1", "1", "2"]);
    // Another weight for a destination that has one is ignored.
    c.bind(1, &queues[0], "xp1", "1000");
    publish_keys(&mut c, "xp1", 400);
    let first = taken(&mut c, &queues);
    let counts: Vec<usize> = first.iter().map(Vec::len).collect();
    assert_eq!(counts.iter().sum::<usize>(), 400, "{counts:?}");
    let is_fair = (60..140).contains(&counts[0]) && (150..250).contains(&counts[2]);
    assert!(is_fair, "{counts:?}");
    publish_keys(&mut c, "xp1", 400);
    assert_eq!(taken(&mut c, &queues), first);
    for (key, complaint) in [
        ("heavy", "The binding key must be an integer: <<\"heavy\">>"),
        ("0", "The binding key must be greater than 0"),
    ] {
        let text = format!("PRECONDITION_FAILED - {complaint}");
        refused(&mut c, bind(&queues[0], "xp1", key), 406, &text);
    }
}

/// XP-1, XP-2: what is hashed can be a header or a property, not both; and the argument of another broker counts too.
#[test]
fn consistent_hash_can_look_at_a_header_or_a_property() {
    let mut c = client();
    type Set = fn(&mut PropertiesBuilder, &str);
    let header: Set = |properties, value| {
        properties.set_header("h", value);
    };
    let correlation: Set = |properties, value| {
        properties.set_correlation_id(Some(text(value)));
    };
    let message_id: Set = |properties, value| {
        properties.set_message_id(Some(text(value)));
    };
    let timestamp: Set = |properties, value| {
        properties.set_timestamp(value.parse().ok());
    };
    let cases: [(&str, &str, &str, Set); 5] = [
        ("xp1.header", "hash-header", "h", header),
        ("xp2.header", "x-hash-on", "h", header),
        (
            "xp1.correlation",
            "hash-property",
            "correlation_id",
            correlation,
        ),
        ("xp1.message", "hash-property", "message_id", message_id),
        ("xp1.time", "hash-property", "timestamp", timestamp),
    ];
    for (name, argument, value, set) in cases {
        c.call::<exchange::DeclareOk>(
            1,
            x_with(name, "x-consistent-hash", [(argument, string(value))]),
        );
        let queues = bound(&mut c, name, &["1", "1", "1"]);
        for number in 0..90 {
            let value = (number % 30).to_string();
            let message = Message::with(value.clone(), |properties| set(properties, &value));
            // The key means nothing.
            c.push_publish(1, name, &format!("key {number}"), &message);
        }
        c.flush().expect("the broker reads");
        settle(&mut c, 1);
        let mut place: BTreeMap<String, usize> = BTreeMap::new();
        for (at, queue) in queues.iter().enumerate() {
            for body in drain(&mut c, queue) {
                assert_eq!(*place.entry(body).or_insert(at), at, "{name}");
            }
        }
        let used: std::collections::BTreeSet<usize> = place.values().copied().collect();
        assert_eq!((place.len(), used.len()), (30, 3), "{name}");
    }
    for (arguments, complaint) in [
        (
            [
                ("hash-header", string("h")),
                ("hash-property", string("message_id")),
            ],
            "hash-header and hash-property are mutually exclusive",
        ),
        (
            [("hash-property", string("app_id")), ("x-unknown", int(1))],
            "Unsupported property: app_id",
        ),
        (
            [("x-hash-on", string("h")), ("x-algorithm", string("dice"))],
            "x-algorithm must be either 'ring' or 'jump'",
        ),
    ] {
        let text = format!("PRECONDITION_FAILED - {complaint}");
        refused(
            &mut c,
            x_with("xp1.bad", "x-consistent-hash", arguments),
            406,
            &text,
        );
    }
}

/// XP-3: one destination a key, whatever the binding keys, each destination counted once.
#[test]
fn modulus_hash_spreads_keys_over_destinations() {
    let mut c = client();
    c.call::<exchange::DeclareOk>(1, x("xp3", "x-modulus-hash"));
    let queues = bound(&mut c, "xp3", &["a", "b"]);
    for key in ["c", "d", "e"] {
        c.bind(1, &queues[0], "xp3", key);
    }
    publish_keys(&mut c, "xp3", 200);
    let first = taken(&mut c, &queues);
    let counts: Vec<usize> = first.iter().map(Vec::len).collect();
    assert_eq!(counts[0] + counts[1], 200);
    assert!((60..140).contains(&counts[0]), "{counts:?}");
    publish_keys(&mut c, "xp3", 200);
    assert_eq!(taken(&mut c, &queues), first);
}

/// XP-4, XP-5: one destination, any; `x-local-random` takes queues only, without a key.
#[test]
fn random_exchanges_send_to_one_of_all() {
    let mut c = client();
    for (name, kind) in [("xp5", "x-random"), ("xp4", "x-local-random")] {
        c.call::<exchange::DeclareOk>(1, x(name, kind));
        send(&mut c, 1, mandatory(name, "k"), &Message::plain("m"));
        assert!(matches!(
            c.next(1).method,
            stratamq::amqp::method::Method::BasicReturn(_)
        ));
        let queues = bound(&mut c, name, &["", "", ""]);
        for _ in 0..300 {
            c.push_publish(1, name, "the same key", &Message::plain("m"));
        }
        c.flush().expect("the broker reads");
        settle(&mut c, 1);
        let counts: Vec<usize> = taken(&mut c, &queues).iter().map(Vec::len).collect();
        assert_eq!(counts.iter().sum::<usize>(), 300, "{name}");
        let is_fair = counts.iter().all(|count| (60..140).contains(count));
        assert!(is_fair, "{name}: {counts:?}");
        if kind == "x-local-random" {
            let text = "PRECONDITION_FAILED - Non empty binding 'k' key not permitted";
            refused(&mut c, bind(&queues[0], name, "k"), 406, text);
            let text = "PRECONDITION_FAILED - Destination not found";
            refused(&mut c, x_bind("amq.fanout", name, ""), 406, text);
        }
    }
}

/// XP-6: a new binding gets the last messages, the oldest first; those that do not want it are not kept.
#[test]
fn recent_history_is_replayed_to_new_bindings() {
    let mut c = client();
    c.call::<exchange::DeclareOk>(1, x("xp6", "x-recent-history"));
    let no_store = Message::with("not kept", |properties| {
        properties.set_header("x-recent-history-no-store", true);
    });
    for number in 0..25 {
        c.push_publish(1, "xp6", "k", &Message::plain(number.to_string()));
    }
    c.push_publish(1, "xp6", "k", &no_store);
    c.flush().expect("the broker reads");
    let last = |from: u32| -> Vec<String> { (from..25).map(|number| number.to_string()).collect() };
    let [queue] = &bound(&mut c, "xp6", &["k"])[..] else {
        panic!("one queue")
    };
    assert_eq!(drain(&mut c, queue), last(5));
    // The same binding again is none; from here on it is a fanout.
    c.bind(1, queue, "xp6", "k");
    c.publish(1, "xp6", "other", &Message::plain("live"));
    settle(&mut c, 1);
    assert_eq!(drain(&mut c, queue), ["live"]);
    // By way of another exchange, and with a length of its own.
    let three = [("x-recent-history-length", int(3))];
    c.call::<exchange::DeclareOk>(1, x_with("xp6.three", "x-recent-history", three));
    for number in 0..25 {
        c.publish(1, "xp6.three", "k", &Message::plain(number.to_string()));
    }
    c.call::<exchange::DeclareOk>(1, x("xp6.direct", "direct"));
    let behind = bound(&mut c, "xp6.direct", &["k"]);
    c.call::<exchange::BindOk>(1, x_bind("xp6.direct", "xp6.three", ""));
    assert_eq!(drain(&mut c, &behind[0]), last(22));
    for length in [int(0), int(-1), string("3")] {
        let text = "PRECONDITION_FAILED - Invalid argument, 'x-recent-history-length' must be a positive integer";
        let bad = x_with(
            "xp6.bad",
            "x-recent-history",
            [("x-recent-history-length", length)],
        );
        refused(&mut c, bad, 406, text);
    }
}

/// XP-8: types that only plugins use among themselves are unknown, as they are to a broker without those plugins.
#[test]
fn types_of_plugin_internals_are_unknown() {
    let mut c = client();
    for kind in ["x-jms-topic", "x-federation-upstream", "x-super-stream"] {
        let text = format!("PRECONDITION_FAILED - unknown exchange type '{kind}'");
        refused(&mut c, x("xp8", kind), 406, &text);
    }
}

/// EX-1, EX-2, EX-14: the further types are redeclared, listed as types and guarded like the others.
#[test]
fn further_types_are_exchanges_like_others() {
    let mut c = client();
    c.call::<exchange::DeclareOk>(1, x("ex1.hash", "x-consistent-hash"));
    let other = x_with(
        "ex1.hash",
        "x-consistent-hash",
        [("hash-header", string("h"))],
    );
    c.call::<exchange::DeclareOk>(1, other);
    refused(
        &mut c,
        x("ex1.hash", "x-random"),
        406,
        "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'ex1.hash' in vhost '/': \
         received 'x-random' but current is 'x-consistent-hash'",
    );
    let mut nobody = super::users::user("ex14", "^mine", ".*", ".*");
    let text = |name: &str| {
        format!(
            "ACCESS_REFUSED - configure access to exchange '{name}' in vhost '/' refused for user 'ex14'"
        )
    };
    refused(&mut nobody, x_delete("ex1.hash"), 403, &text("ex1.hash"));
    refused(&mut nobody, x("ex14", "x-random"), 403, &text("ex14"));
}
