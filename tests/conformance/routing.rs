//! Sections 8 and 9: which bindings let a message through.

use stratamq::amqp::field_table::{FieldTable, FieldValue};
use stratamq::amqp::method::{Method, exchange, queue};

use super::stage::*;
use crate::support::raw::{Client, Message, exclusive};

/// One queue for each binding of `exchange`.
struct Fan {
    client: Client,
    exchange: String,
    queues: Vec<(String, String)>,
}

impl Fan {
    fn new(exchange: &str, kind: &str, keys: &[&str]) -> Self {
        let mut client = client();
        client.call::<exchange::DeclareOk>(1, x(exchange, kind));
        let mut queues = Vec::new();
        for key in keys {
            let queue = client.queue_declare(1, "", exclusive()).queue.to_string();
            client.bind(1, &queue, exchange, key);
            queues.push(((*key).to_owned(), queue));
        }
        Self {
            client,
            exchange: exchange.to_owned(),
            queues,
        }
    }

    #[track_caller]
    fn check(&mut self, key: &str, expected: &[&str]) {
        let exchange = self.exchange.clone();
        self.client.publish(1, &exchange, key, &Message::plain("m"));
        let mut matched: Vec<&str> = Vec::new();
        for (binding, queue) in &self.queues {
            let count = drain(&mut self.client, queue).len();
            assert!(count <= 1, "{key:?} came {count} times to {binding:?}");
            if count == 1 {
                matched.push(binding);
            }
        }
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        matched.sort_unstable();
        assert_eq!(matched, expected, "routing key {key:?}");
    }
}

/// Section 9.3, RT-10, RT-11: the verified matrix.
#[test]
fn topic_keys_match_as_in_the_matrix() {
    let mut fan = Fan::new(
        "rt10",
        "topic",
        &[
            "#", "*", "*.*", "a.#", "#.a", "a.*", "*.a", "a..b", "", "a.#.b", "#.#", ".", "*.#",
            "#.*", "a.b", "a",
        ],
    );
    fan.check("", &["#", "", "#.#"]);
    fan.check("a", &["#", "*", "a.#", "#.a", "#.#", "*.#", "#.*", "a"]);
    fan.check(
        "a.b",
        &[
            "#", "*.*", "a.#", "a.*", "a.#.b", "#.#", "*.#", "#.*", "a.b",
        ],
    );
    fan.check("a.", &["#", "*.*", "a.#", "a.*", "#.#", "*.#", "#.*"]);
    fan.check(".a", &["#", "*.*", "#.a", "*.a", "#.#", "*.#", "#.*"]);
    fan.check(".", &["#", "*.*", "#.#", ".", "*.#", "#.*"]);
    fan.check("..", &["#", "#.#", "*.#", "#.*"]);
    fan.check("a..b", &["#", "a.#", "a..b", "a.#.b", "#.#", "*.#", "#.*"]);
    fan.check("a.x.y.b", &["#", "a.#", "a.#.b", "#.#", "*.#", "#.*"]);
    fan.check("a.b.c", &["#", "a.#", "#.#", "*.#", "#.*"]);
    fan.check("#", &["#", "*", "#.#", "*.#", "#.*"]);
}

/// RT-8, RT-9, and the stock ticker of the task.
#[test]
fn each_exchange_type_reads_the_same_bindings_its_own_way() {
    let bindings = ["#", "*", "NYSE"];
    Fan::new("nyse.topic", "topic", &bindings).check("NYSE", &bindings);
    let mut direct = Fan::new("nyse.direct", "direct", &bindings);
    direct.check("NYSE", &["NYSE"]);
    direct.check("nyse", &[]);
    direct.check("#", &["#"]);
    Fan::new("nyse.fanout", "fanout", &bindings).check("anything", &bindings);
}

/// RT-14 to RT-20.
#[test]
fn headers_match_in_the_four_ways() {
    let mut c = client();
    c.call::<exchange::DeclareOk>(1, x("rt14", "headers"));
    let one = || ("a", int(1));
    let match_by = |word: &str| ("x-match", string(word));
    let bindings: Vec<(&str, FieldTable)> = vec![
        ("default", table([one(), ("b", string("2"))])),
        ("all", table([match_by("all"), one(), ("x-c", int(3))])),
        (
            "any",
            table([match_by("any"), one(), ("b", string("2")), ("x-c", int(3))]),
        ),
        (
            "all-with-x",
            table([match_by("all-with-x"), one(), ("x-c", int(3))]),
        ),
        (
            "any-with-x",
            table([match_by("any-with-x"), ("b", string("2")), ("x-c", int(3))]),
        ),
        ("present", table([("a", FieldValue::Void)])),
        ("nothing", table([])),
        ("any of nothing", table([match_by("any")])),
        ("x only", table([("x-c", int(9))])),
        ("byte", table([("a", FieldValue::Byte(1))])),
        ("string", table([("a", string("1"))])),
    ];
    let mut queues = Vec::new();
    for (name, arguments) in bindings {
        let queue = c.queue_declare(1, "", exclusive()).queue.to_string();
        c.bind_with(1, &queue, "rt14", "ignored", arguments);
        queues.push((name, queue));
    }
    let cases: Vec<(&str, Option<FieldTable>, &[&str])> = vec![
        ("no headers", None, &["nothing", "x only"]),
        (
            "a",
            Some(table([one()])),
            &["all", "any", "present", "nothing", "x only", "byte"],
        ),
        (
            "a long, b",
            Some(table([("a", FieldValue::Long(1)), ("b", string("2"))])),
            &[
                "default",
                "all",
                "any",
                "any-with-x",
                "present",
                "nothing",
                "x only",
                "byte",
            ],
        ),
        (
            "x-c",
            Some(table([("x-c", int(3))])),
            &["any-with-x", "nothing", "x only"],
        ),
        (
            "a, x-c",
            Some(table([one(), ("x-c", int(3))])),
            &[
                "all",
                "any",
                "all-with-x",
                "any-with-x",
                "present",
                "nothing",
                "x only",
                "byte",
            ],
        ),
        (
            "a text",
            Some(table([("a", string("1"))])),
            &["present", "nothing", "x only", "string"],
        ),
        (
            "a real",
            Some(table([("a", FieldValue::Double(1.0))])),
            &["present", "nothing", "x only"],
        ),
        (
            "a table",
            Some(table([("a", FieldValue::Table(table([])))])),
            &["present", "nothing", "x only"],
        ),
    ];
    for (label, headers, expected) in cases {
        let message = Message::with("m", |properties| {
            properties.set_headers(headers);
        });
        c.publish(1, "rt14", "key", &message);
        let mut matched = Vec::new();
        for (name, queue) in &queues {
            if !drain(&mut c, queue).is_empty() {
                matched.push(*name);
            }
        }
        assert_eq!(matched, expected, "{label}");
    }
    let bad = |value| stratamq::amqp::method::queue::Bind {
        arguments: table([("x-match", value)]),
        ..bind(&queues[0].1, "rt14", "")
    };
    refused(
        &mut c,
        bad(string("foo")),
        406,
        "PRECONDITION_FAILED - Invalid x-match field value <<\"foo\">>; expected all, any, all-with-x, or any-with-x",
    );
    refused(
        &mut c,
        bad(int(5)),
        406,
        "PRECONDITION_FAILED - Invalid x-match field type signedint (value 5); expected longstr",
    );
}

/// RT-3, RT-4, RT-6.
#[test]
fn alternate_exchanges_take_what_found_no_destination() {
    let mut c = client();
    let with_alternate = |name: &str, kind: &str, alternate: &str| exchange::Declare {
        arguments: table([("alternate-exchange", string(alternate))]),
        ..x(name, kind)
    };
    c.call::<exchange::DeclareOk>(1, with_alternate("rt3.a", "direct", "rt3.b"));
    c.call::<exchange::DeclareOk>(1, with_alternate("rt3.b", "direct", "rt3.c"));
    c.call::<exchange::DeclareOk>(1, x("rt3.c", "fanout"));
    for (queue, exchange, key) in [
        ("rt3.qa", "rt3.a", "a"),
        ("rt3.qb", "rt3.b", "b"),
        ("rt3.qc", "rt3.c", ""),
    ] {
        c.queue_declare(1, queue, q(""));
        c.bind(1, queue, exchange, key);
    }
    for key in ["a", "b", "c"] {
        send(&mut c, 1, mandatory("rt3.a", key), &Message::plain(key));
    }
    settle(&mut c, 1);
    for (queue, body) in [("rt3.qa", "a"), ("rt3.qb", "b"), ("rt3.qc", "c")] {
        assert_eq!(drain(&mut c, queue), [body]);
    }
    // An exchange as destination counts, even if that one routes nowhere.
    c.call::<exchange::DeclareOk>(1, x("rt3.dead-end", "direct"));
    c.exchange_bind(1, "rt3.dead-end", "rt3.a", "d");
    send(&mut c, 1, mandatory("rt3.a", "d"), &Message::plain("d"));
    c.expect::<stratamq::amqp::method::basic::Return>(1);
    // A missing alternate is skipped.
    c.call::<exchange::DeleteOk>(1, x_delete("rt3.b"));
    send(&mut c, 1, mandatory("rt3.a", "zzz"), &Message::plain("z"));
    c.expect::<stratamq::amqp::method::basic::Return>(1);
    assert!(drain(&mut c, "rt3.qc").is_empty());
}

/// BI-2, PB-8, CC-1, CC-3, CC-4: once to each queue, whatever leads there; CC and BCC are keys, and BCC is hidden (PP-5).
#[test]
fn a_queue_gets_a_message_once_whatever_the_keys() {
    let mut c = client();
    c.call::<exchange::DeclareOk>(1, x("bi2", "topic"));
    for name in ["bi2.q", "bi2.cc", "bi2.bcc"] {
        c.queue_declare(1, name, q(""));
    }
    for key in ["#", "a.*", "a.b"] {
        c.bind(1, "bi2.q", "bi2", key);
    }
    c.bind(1, "bi2.cc", "bi2", "cc");
    c.bind(1, "bi2.bcc", "bi2", "bcc");
    let keys = |keys: &[&str]| FieldValue::Array(keys.iter().map(|key| string(key)).collect());
    let message = Message::with("m", |properties| {
        properties.set_header("CC", keys(&["cc", "a.b"]));
        properties.set_header("BCC", keys(&["bcc"]));
    });
    c.publish(1, "bi2", "a.b", &message);
    for queue in ["bi2.q", "bi2.cc", "bi2.bcc"] {
        let got = drain_all(&mut c, queue);
        assert_eq!(got.len(), 1, "{queue}");
        assert_eq!(got[0].routing_key, "a.b");
        let headers = got[0].message.properties.headers().expect("CC is kept");
        assert!(headers.get("CC").is_some() && headers.get("BCC").is_none());
    }
    publish_refused(
        &mut c,
        publish("bi2", ""),
        &Message::with("m", |properties| {
            properties.set_header("CC", string("cc"));
        }),
        406,
        "PRECONDITION_FAILED - invalid message: {unacceptable_type_in_header,\"CC\",longstr}",
    );
}

/// CC-2, PB-5, CC-3: keys of CC that lead nowhere do not matter; when none leads anywhere the message comes back, without BCC.
#[test]
fn one_key_that_routes_is_enough() {
    let mut c = client();
    c.queue_declare(1, "cc2", q(""));
    let keys = |keys: &[&str]| FieldValue::Array(keys.iter().map(|key| string(key)).collect());
    let with = |cc: &[&str]| {
        let cc = keys(cc);
        Message::with("m", |properties| {
            // What is no text among the keys is passed over.
            properties.set_header("CC", cc);
            properties.set_header("BCC", FieldValue::Array(vec![int(5), string("cc2.no")]));
        })
    };
    send(
        &mut c,
        1,
        mandatory("amq.direct", "cc2.nowhere"),
        &with(&["cc2.neither"]),
    );
    let Method::BasicReturn(returned) = c.next(1).method else {
        panic!("nothing routes it");
    };
    assert_eq!(
        (returned.reply_code, returned.reply_text.as_str()),
        (312, "NO_ROUTE")
    );
    c.bind(1, "cc2", "amq.direct", "cc2.key");
    send(
        &mut c,
        1,
        mandatory("amq.direct", "cc2.nowhere"),
        &with(&["cc2.neither", "cc2.key"]),
    );
    settle(&mut c, 1);
    assert_eq!(drain(&mut c, "cc2"), ["m"]);
}

/// RT-12: keys are bytes, upper and lower case differ, and may be as long as a short string.
#[test]
fn topic_keys_are_compared_byte_by_byte() {
    let mut c = client();
    c.queue_declare(1, "rt12", q(""));
    let long = format!("{}.end", "w".repeat(251));
    for key in ["Rt12.Case", "rt12.\u{e9}", &long] {
        c.bind(1, "rt12", "amq.topic", key);
    }
    for (key, body) in [
        ("rt12.case", "other case"),
        ("Rt12.Case", "same case"),
        ("rt12.e\u{301}", "another way to write it"),
        ("rt12.\u{e9}", "the same bytes"),
        (&long, "long"),
    ] {
        c.publish(1, "amq.topic", key, &Message::plain(body.to_owned()));
    }
    settle(&mut c, 1);
    assert_eq!(
        drain(&mut c, "rt12"),
        ["same case", "the same bytes", "long"]
    );
}

/// RT-13, VD-16: a binding key of many `#` is taken, and its price does not explode.
#[test]
fn many_wildcards_cost_no_more_than_their_number() {
    let mut c = client();
    c.queue_declare(1, "rt13", q(""));
    let pattern = format!("rt13.{}end", "#.a.".repeat(30));
    c.bind(1, "rt13", "amq.topic", &pattern);
    for body in ["1", "2", "3"] {
        let key = format!("rt13.{}nd", "a.".repeat(120));
        c.publish(1, "amq.topic", &key, &Message::plain(body));
    }
    let key = format!("rt13.{}end", "a.".repeat(120));
    c.publish(1, "amq.topic", &key, &Message::plain("matches"));
    settle(&mut c, 1);
    assert_eq!(drain(&mut c, "rt13"), ["matches"]);
}

/// RT-5: the default exchange has no bindings to look at: only a queue of that very name gets the message.
#[test]
fn the_default_exchange_knows_queues_by_their_names_only() {
    let mut c = client();
    c.queue_declare(1, "rt5", q(""));
    c.bind(1, "rt5", "amq.direct", "rt5.other");
    for key in ["rt5.other", "RT5", "rt5"] {
        c.publish(1, "", key, &Message::plain(key.to_owned()));
    }
    settle(&mut c, 1);
    assert_eq!(drain(&mut c, "rt5"), ["rt5"]);
}

/// RT-21: a headers exchange looks at no key.
#[test]
fn a_headers_exchange_ignores_keys() {
    let mut c = client();
    c.queue_declare(1, "rt21", q(""));
    let arguments = table([("rt21", int(1))]);
    c.call::<queue::BindOk>(
        1,
        queue::Bind {
            arguments,
            ..bind("rt21", "amq.headers", "a key")
        },
    );
    let message = Message::with("m", |properties| {
        properties.set_header("rt21", int(1));
    });
    c.publish(1, "amq.headers", "another key", &message);
    settle(&mut c, 1);
    assert_eq!(drain(&mut c, "rt21"), ["m"]);
}
