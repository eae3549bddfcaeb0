//! Publishing and routing: checks, CC and BCC, alternate exchanges, cycles, caches (sections 9, 10, 21).

use std::sync::Arc;

use super::support::{
    TestBroker, TestConnection, bind, bind_exchange, exchange, message, persistent, queue, short,
};
use super::{declare_exchange, declare_queue};
use crate::amqp::field_table::{FieldTable, FieldValue};
use crate::amqp::properties::{Properties, PropertiesBuilder};
use crate::broker::command::{
    Command, ConfirmAt, ExchangeDeclare, Publish, PublishedRun, QueueDeclare, ReplyBody,
};
use crate::broker::effects::Effects;

fn properties(edit: impl FnOnce(&mut PropertiesBuilder)) -> Properties {
    let mut builder = PropertiesBuilder::new();
    edit(&mut builder);
    builder.build()
}

fn keys(keys: &[&str]) -> FieldValue {
    FieldValue::Array(keys.iter().map(|key| FieldValue::text(key)).collect())
}

/// Names of the queues that got the message, which are emptied.
fn arrived_in(client: &mut TestConnection, queues: &[&str]) -> String {
    let mut names = Vec::new();
    for name in queues {
        let queue = short(name);
        match client.run(Command::QueuePurge { queue }) {
            Ok(ReplyBody::Removed { messages }) => names.extend((0..messages).map(|_| *name)),
            other => panic!("{other:?}"),
        }
    }
    names.join(" ")
}

#[test]
fn refused_publishes() {
    let mut client = TestBroker::new().connect();
    let internal = ExchangeDeclare {
        is_internal: true,
        ..exchange("in", "fanout")
    };
    declare_exchange(&mut client, internal).expect("declares");
    let plain = persistent();
    let expiration = |text: &str| properties(|p| _ = p.set_expiration(Some(short(text))));
    let user = |text: &str| properties(|p| _ = p.set_user_id(Some(short(text))));
    let header = |name: &str| properties(|p| _ = p.set_header(name, "text"));
    for (exchange, properties, expected) in [
        (
            "none",
            plain.clone(),
            "404 NOT_FOUND - no exchange 'none' in vhost '/'",
        ),
        (
            "in",
            plain,
            "403 ACCESS_REFUSED - cannot publish to internal exchange 'in' in vhost '/'",
        ),
        (
            "",
            expiration("abc"),
            "406 PRECONDITION_FAILED - invalid expiration 'abc': no_integer",
        ),
        (
            "",
            expiration(""),
            "406 PRECONDITION_FAILED - invalid expiration '': no_integer",
        ),
        (
            "",
            expiration("-1"),
            "406 PRECONDITION_FAILED - invalid expiration '-1': {value_negative,-1}",
        ),
        (
            "",
            expiration("315360000001"),
            "406 PRECONDITION_FAILED - invalid expiration '315360000001': {value_too_large,315360000001}",
        ),
        (
            "",
            expiration("10x"),
            "406 PRECONDITION_FAILED - invalid expiration '10x': {leftover_string,\"x\"}",
        ),
        ("", expiration("+007"), ""),
        ("", expiration("315360000000"), ""),
        (
            "",
            user("bob"),
            "406 PRECONDITION_FAILED - user_id property set to 'bob' but authenticated user was 'guest'",
        ),
        ("", user("guest"), ""),
        (
            "",
            header("CC"),
            "406 PRECONDITION_FAILED - invalid message: {unacceptable_type_in_header,\"CC\",longstr}",
        ),
        (
            "",
            header("BCC"),
            "406 PRECONDITION_FAILED - invalid message: {unacceptable_type_in_header,\"BCC\",longstr}",
        ),
        ("", header("cc"), ""),
    ] {
        let outcome = client.publish_with(exchange, "q", &properties);
        assert_eq!(outcome.err().unwrap_or_default(), expected);
    }
}

#[test]
fn tutorial_topology_routes_by_type() {
    let mut client = TestBroker::new().connect();
    let queues = ["all", "one-word", "nyse"];
    client.exchange("t", "topic");
    client.exchange("d", "direct");
    for (queue, key) in queues.into_iter().zip(["#", "*", "NYSE"]) {
        client.queue(queue);
        client.bind(queue, "t", key);
        client.bind(queue, "d", key);
    }
    client.publish("t", "NYSE").expect("publishes");
    assert_eq!(arrived_in(&mut client, &queues), "all one-word nyse");
    client.publish("d", "NYSE").expect("publishes");
    assert_eq!(arrived_in(&mut client, &queues), "nyse");
    client.publish("", "all").expect("publishes");
    assert_eq!(arrived_in(&mut client, &queues), "all");
}

#[test]
fn exchanges_bound_to_exchanges_may_form_cycles() {
    let mut client = TestBroker::new().connect();
    for name in ["a", "b", "c"] {
        client.exchange(name, "fanout");
        client.queue(name);
        client.bind(name, name, "");
    }
    for (destination, source) in [("b", "a"), ("c", "b"), ("a", "c"), ("a", "a")] {
        client
            .run(Command::Bind(bind_exchange(destination, source, "")))
            .expect("binds");
    }
    for start in ["a", "b", "c"] {
        client.publish(start, "").expect("publishes");
        assert_eq!(
            arrived_in(&mut client, &["a", "b", "c"]),
            "a b c",
            "from {start}"
        );
    }
}

#[test]
fn alternate_exchange_takes_what_has_no_destination_at_all() {
    let mut client = TestBroker::new().connect();
    client.exchange("alternate", "fanout");
    client.exchange("dead-end", "fanout");
    let main = ExchangeDeclare {
        arguments: FieldTable::new().with("alternate-exchange", "alternate"),
        ..exchange("main", "direct")
    };
    declare_exchange(&mut client, main).expect("declares");
    for name in ["q", "rest"] {
        client.queue(name);
    }
    client.bind("q", "main", "q");
    client.bind("rest", "alternate", "");
    client
        .run(Command::Bind(bind_exchange("dead-end", "main", "dead-end")))
        .expect("binds");
    for (key, expected) in [("q", "q"), ("unknown", "rest"), ("dead-end", "")] {
        let published = client.publish("main", key).expect("publishes");
        assert_eq!(published.is_unroutable, expected.is_empty(), "{key}");
        assert_eq!(arrived_in(&mut client, &["q", "rest"]), expected, "{key}");
    }
    // An alternate exchange that is missing is skipped.
    let delete = Command::ExchangeDelete {
        exchange: short("alternate"),
        if_unused: false,
    };
    client.run(delete).expect("deletes");
    assert!(
        client
            .publish("main", "unknown")
            .expect("publishes")
            .is_unroutable
    );
}

#[test]
fn cc_and_bcc_are_further_keys_and_bcc_is_hidden() {
    let mut client = TestBroker::new().connect();
    let queues = ["main", "copy", "hidden"];
    for name in queues {
        client.queue(name);
    }
    let properties = properties(|p| {
        p.set_header("CC", keys(&["copy", "main"]));
        p.set_header("BCC", keys(&["hidden", "nowhere"]));
    });
    client
        .publish_with("", "main", &properties)
        .expect("publishes");
    for name in queues {
        let get = Command::Get {
            queue: short(name),
            is_no_ack: true,
        };
        match client.run(get) {
            Ok(ReplyBody::Got {
                delivery,
                remaining,
            }) => {
                let message = &delivery.message;
                assert_eq!(remaining, 0, "{name} got it once");
                assert_eq!(message.routing_key().as_str(), "main");
                assert!(message.properties().has_cc() && !message.properties().has_bcc());
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn headers_decide_for_each_message_anew() {
    let mut client = TestBroker::new().connect();
    client.exchange("h", "headers");
    client.queue("red");
    let mut binding = bind("red", "h", "");
    binding.arguments = FieldTable::new().with("color", "red");
    client.run(Command::Bind(binding)).expect("binds");
    for (color, expected) in [("red", "red"), ("blue", ""), ("red", "red")] {
        let properties = properties(|p| _ = p.set_header("color", color));
        client
            .publish_with("h", "same key", &properties)
            .expect("publishes");
        assert_eq!(arrived_in(&mut client, &["red"]), expected);
    }
}

#[test]
fn cached_routes_follow_every_change() {
    let mut client = TestBroker::new().connect();
    client.exchange("x", "topic");
    let queues = ["a", "b"];
    client.queue("a");
    client.queue("b");
    let check = |client: &mut TestConnection, expected: &str| {
        client.publish("x", "k").expect("publishes");
        assert_eq!(arrived_in(client, &queues), expected);
    };
    check(&mut client, "");
    client.bind("a", "x", "*");
    check(&mut client, "a");
    client.bind("b", "x", "#");
    check(&mut client, "a b");
    client
        .run(Command::Unbind(bind("a", "x", "*")))
        .expect("unbinds");
    check(&mut client, "b");
    let delete = Command::QueueDelete {
        queue: short("b"),
        if_unused: false,
        if_empty: false,
    };
    client.run(delete).expect("deletes");
    assert!(client.publish("x", "k").expect("publishes").is_unroutable);
}

#[test]
fn queue_that_comes_later_gets_what_nobody_got_before() {
    let mut client = TestBroker::new().connect();
    client.queue("other");
    let alternate = ExchangeDeclare {
        arguments: FieldTable::new().with("alternate-exchange", ""),
        ..exchange("x", "fanout")
    };
    declare_exchange(&mut client, alternate).expect("declares");
    for exchange in ["", "x"] {
        for key in ["other", "late"] {
            let published = client.publish(exchange, key).expect("publishes");
            assert_eq!(published.is_unroutable, key == "late");
        }
    }
    client.queue("late");
    for exchange in ["", "x"] {
        let published = client.publish(exchange, "late").expect("publishes");
        assert!(!published.is_unroutable, "by exchange '{exchange}'");
    }
    assert_eq!(client.ready_count("late"), 2);
    assert_eq!(client.ready_count("other"), 2);
}

/// Publishes that have an outcome.
fn count_of(out: &[PublishedRun]) -> usize {
    let counts = out.iter().map(|run| run.count);
    usize::try_from(counts.sum::<u64>()).expect("few")
}

#[test]
fn batch_is_cut_into_runs_and_stops_at_a_refusal() {
    let broker = TestBroker::new();
    let mut client = broker.connect();
    client.queue("a");
    client.queue("b");
    let pushes_before = broker.journal.logged().pushes_count;
    let plain = persistent();
    let mut batch: Vec<_> = [
        ("", "a"),
        ("", "a"),
        ("", "b"),
        ("", "nobody"),
        ("none", ""),
        ("", "a"),
    ]
    .into_iter()
    .map(|(exchange, key)| message(exchange, key, &plain))
    .collect();
    let mut out = Vec::new();
    let mut effects = Effects::default();
    let refused = client
        .connection
        .publish(&mut batch, 0, &mut effects, &mut out);
    let (channel, _) = refused.expect_err("an exchange is missing");
    assert_eq!((channel, batch.len()), (1, 1), "the last one is left");
    let [routed, unroutable] = &out[..] else {
        panic!("{out:?}");
    };
    assert_eq!((routed.count, unroutable.count), (3, 1));
    assert!(routed.returned.is_empty());
    assert_eq!(unroutable.returned[0].raw_routing_key(), b"nobody");
    assert!(matches!(routed.confirm, ConfirmAt::Durable(_)));
    assert_eq!(unroutable.confirm, ConfirmAt::Now);
    assert_eq!(
        broker.journal.logged().pushes_count,
        pushes_before + 1,
        "few messages for few queues are one run"
    );
    assert_eq!(client.ready_count("a"), 2);
    assert_eq!(client.ready_count("b"), 1);
}

/// A broker with queues `q0`, `q1`, ... and a batch that goes round them `rounds` times.
fn round_robin(queues: usize, rounds: usize) -> (TestBroker, TestConnection, Vec<Publish>) {
    let broker = TestBroker::new();
    let mut client = broker.connect();
    let names: Vec<String> = (0..queues).map(|index| format!("q{index}")).collect();
    names.iter().for_each(|name| client.queue(name));
    let plain = persistent();
    let keys = names.iter().cycle().take(queues * rounds);
    let batch = keys.map(|name| message("", name, &plain)).collect();
    (broker, client, batch)
}

#[test]
fn pushes_of_a_batch_do_not_depend_on_the_number_of_queues() {
    for (queues, rounds, expected) in [(1, 192, 1), (64, 3, 3), (192, 1, 3)] {
        let (broker, mut client, mut batch) = round_robin(queues, rounds);
        let before = broker.journal.logged().pushes_count;
        let mut out = Vec::new();
        let mut effects = Effects::default();
        let published = client
            .connection
            .publish(&mut batch, 0, &mut effects, &mut out);
        published.expect("publishes");
        assert_eq!(count_of(&out), queues * rounds);
        assert!(out.iter().all(|run| run.returned.is_empty()));
        let pushes = broker.journal.logged().pushes_count - before;
        assert!(pushes <= expected, "{pushes} pushes to {queues} queues");
        for index in 0..queues {
            assert_eq!(client.ready_count(&format!("q{index}")) as usize, rounds);
        }
    }
}

#[test]
fn length_limits_hold_in_a_mixed_run() {
    let mut client = TestBroker::new().connect();
    let limited = QueueDeclare {
        arguments: FieldTable::new().with("x-max-length", 1),
        ..queue("limited")
    };
    declare_queue(&mut client, limited).expect("declares");
    client.queue("free");
    let plain = persistent();
    let keys = ["limited", "free", "limited", "limited", "free"];
    let batch = keys.iter().map(|key| message("", key, &plain));
    let mut batch: Vec<_> = batch.collect();
    let mut out = Vec::new();
    let mut effects = Effects::default();
    let published = client
        .connection
        .publish(&mut batch, 0, &mut effects, &mut out);
    published.expect("publishes");
    assert_eq!(count_of(&out), 5);
    assert_eq!(client.ready_count("limited"), 1);
    assert_eq!(client.ready_count("free"), 2);
}

#[test]
fn message_to_very_many_queues_is_a_run_of_its_own() {
    let (_broker, mut client, mut batch) = round_robin(100, 1);
    client.exchange("all", "fanout");
    for index in 0..100 {
        client.bind(&format!("q{index}"), "all", "");
    }
    batch.insert(3, message("all", "", &persistent()));
    let mut out = Vec::new();
    let mut effects = Effects::default();
    let published = client
        .connection
        .publish(&mut batch, 0, &mut effects, &mut out);
    published.expect("publishes");
    assert_eq!(count_of(&out), 101);
    assert_eq!(client.ready_count("q99"), 2);
}

#[test]
fn transaction_publishes_and_settles() {
    let mut client = TestBroker::new().connect();
    client.queue("a");
    for queue in ["a", "nobody"] {
        let publish = message("", queue, &persistent());
        client
            .connection
            .tx_publish(&publish, 0)
            .expect("a good publish");
    }
    // Routes are those of the publish: a queue that comes later gets nothing.
    client.queue("nobody");
    let commit = Command::TxCommit {
        publish_count: 2,
        settlements: vec![],
    };
    match client.run(commit) {
        Ok(ReplyBody::Committed { published }) => {
            let unroutable: Vec<bool> = published.iter().map(|p| p.is_unroutable).collect();
            assert_eq!(unroutable, [false, true]);
        }
        other => panic!("{other:?}"),
    }
    let refused = client
        .connection
        .tx_publish(&message("none", "", &persistent()), 0);
    assert!(refused.is_err(), "refusals do not wait for the commit");
}

#[test]
fn publishes_that_find_no_room_in_the_log_wait_and_those_before_them_are_done() {
    let broker = TestBroker::new();
    let journal = Arc::clone(&broker.journal);
    let mut client = broker.connect();
    client.queue("a");
    let mut effects = Effects::default();
    let mut out = Vec::new();
    let plain = Properties::default();
    let all = [
        message("", "a", &plain),
        message("", "nobody", &persistent()),
        message("", "a", &persistent()),
        message("", "a", &plain),
    ];
    let mut batch = all.to_vec();
    journal.set_full(true);
    let published = client
        .connection
        .publish(&mut batch, 0, &mut effects, &mut out);
    published.expect("nothing is refused for good");
    let done = count_of(&out);
    assert!(done <= 2, "{out:?}");
    assert_eq!(batch.len(), all.len() - done);
    assert_eq!(client.ready_count("a"), u32::from(done > 0));
    // What is wrong with a later one is said when its turn comes.
    let mut wrong = vec![all[2].clone(), message("none", "a", &plain)];
    out.clear();
    let published = client
        .connection
        .publish(&mut wrong, 0, &mut effects, &mut out);
    published.expect("it is not its turn");
    assert_eq!((out.len(), wrong.len()), (0, 2));
    journal.set_full(false);
    let published = client
        .connection
        .publish(&mut wrong, 0, &mut effects, &mut out);
    published.expect_err("its turn");
    assert_eq!((count_of(&out), wrong.len()), (1, 0));
    out.clear();
    let rest_count = batch.len();
    let published = client
        .connection
        .publish(&mut batch, 0, &mut effects, &mut out);
    published.expect("publishes");
    assert_eq!((count_of(&out), batch.len()), (rest_count, 0));
    assert_eq!(client.ready_count("a"), 4);
}

#[test]
fn a_commit_asks_for_the_room_of_its_publishes() {
    let broker = TestBroker::new();
    let journal = Arc::clone(&broker.journal);
    let mut client = broker.connect();
    client.queue("a");
    journal.set_full(true);
    assert!(client.connection.admit_commit(1).is_some(), "it has none");
    let publish = message("", "a", &persistent());
    let channel = publish.channel;
    let taken = client.connection.tx_publish(&publish, 0);
    taken.expect("a good publish");
    assert!(client.connection.admit_commit(channel).is_none());
    journal.set_full(false);
    assert!(client.connection.admit_commit(channel).is_some());
}
