//! Section 23: quorum queues, and what sections 7, 13, 15 and 19 say of them.

use stratamq::amqp::field_table::{FieldTable, FieldValue};
use stratamq::amqp::method::{basic, queue};

use super::elsewhere::skipped_elsewhere;
use super::stage::*;
use crate::support::raw::{Client, Delivered, Message};

/// A quorum queue to declare.
fn quorum<const COUNT: usize>(
    name: &str,
    arguments: [(&str, FieldValue); COUNT],
) -> queue::Declare {
    let mut declare = q_with(name, arguments);
    declare.arguments.set("x-queue-type", string("quorum"));
    declare.durable = true;
    declare
}

fn declare<const COUNT: usize>(c: &mut Client, name: &str, arguments: [(&str, FieldValue); COUNT]) {
    c.call::<queue::DeclareOk>(1, quorum(name, arguments));
}

fn reject(c: &mut Client, tag: u64) {
    let delivery_tag = tag;
    c.send(
        1,
        basic::Reject {
            delivery_tag,
            requeue: true,
        },
    );
}

/// `x-delivery-count` and `x-acquired-count`.
fn headers(delivered: &Delivered) -> (Option<i64>, Option<i64>) {
    let properties = &delivered.message.properties;
    let count = |name| match properties.header(name) {
        Some(FieldValue::Long(count)) => Some(count),
        None => None,
        other => panic!("{name} is a long: {other:?}"),
    };
    (count("x-delivery-count"), count("x-acquired-count"))
}

/// QQ-1, QQ-9, QU-5, QU-10: what a quorum queue cannot be, and that it is declared like any other else.
#[test]
fn quorum_queues_are_durable_shared_and_named() {
    let mut c = client();
    let thing = "for queue 'qq1' in vhost '/'";
    for property in ["auto-delete", "exclusive-owner", "non-durable"] {
        let declare = queue::Declare {
            auto_delete: property == "auto-delete",
            exclusive: property == "exclusive-owner",
            durable: property != "non-durable",
            ..quorum("qq1", [])
        };
        let text = format!("PRECONDITION_FAILED - invalid property '{property}' {thing}");
        refused(&mut c, declare, 406, &text);
    }
    refused(
        &mut c,
        quorum("", []),
        406,
        "PRECONDITION_FAILED - Cannot declare a server-named queue for type rabbit_quorum_queue",
    );
    declare(&mut c, "qq1", [("x-quorum-initial-group-size", int(3))]);
    let classic = queue::Declare {
        durable: true,
        ..q("qq1")
    };
    refused(
        &mut c,
        classic,
        406,
        "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'qq1' in vhost '/': received 'classic' but current is 'quorum'",
    );
    fill(&mut c, "qq1", &["m"]);
    assert_eq!(counts(&mut c, "qq1").0, 1);
}

/// PR-7, QU-5: arguments of other types are refused, and those of quorum queues by classic ones.
#[test]
fn arguments_of_other_types_are_refused() {
    let mut c = client();
    for name in ["x-max-priority", "x-max-age", "x-queue-mode"] {
        let text = format!(
            "PRECONDITION_FAILED - invalid arg '{name}' for queue 'qq.foreign' in vhost '/' of queue type rabbit_quorum_queue"
        );
        refused(&mut c, quorum("qq.foreign", [(name, int(5))]), 406, &text);
    }
    for name in ["x-delivery-limit", "x-dead-letter-strategy"] {
        let text = format!(
            "PRECONDITION_FAILED - invalid arg '{name}' for queue 'qq.foreign' in vhost '/' of queue type rabbit_classic_queue"
        );
        refused(&mut c, q_with("qq.foreign", [(name, int(5))]), 406, &text);
    }
    refused(
        &mut c,
        quorum("qq.foreign", [("x-quorum-initial-group-size", int(0))]),
        406,
        "PRECONDITION_FAILED - invalid arg 'x-quorum-initial-group-size' for queue 'qq.foreign' in vhost '/': {value_zero,0}",
    );
    refused(
        &mut c,
        quorum("qq.foreign", [("x-dead-letter-strategy", string("maybe"))]),
        406,
        "PRECONDITION_FAILED - invalid arg 'x-dead-letter-strategy' for queue 'qq.foreign' in vhost '/': invalid_dlx_strategy",
    );
}

/// QQ-1: the delivery mode is delivered as it was sent, though every message is kept; see `queue_features` for that.
#[test]
fn the_delivery_mode_is_not_changed() {
    let mut c = client();
    declare(&mut c, "qq1.mode", []);
    fill(&mut c, "qq1.mode", &["m"]);
    let got = c.get(1, "qq1.mode").expect("m");
    assert_eq!(got.message.properties.delivery_mode(), None);
}

/// QQ-7: a confirm says that it is on stable storage.
#[test]
fn publishes_are_confirmed() {
    let mut c = client();
    declare(&mut c, "qq7", []);
    c.confirm_select(1);
    c.publish(1, "", "qq7", &Message::plain("m"));
    c.wait_confirm(1);
    // QQ-8: counts do not lag here.
    assert_eq!(counts(&mut c, "qq7").0, 1);
}

/// QQ-2, QQ-3, AK-14, DL-1: rejections count and nacks do not; what was rejected once more than the limit allows is
/// dead-lettered with that reason.
#[test]
fn failures_are_counted_up_to_the_limit() {
    let mut c = client();
    declare(
        &mut c,
        "qq3",
        [
            ("x-delivery-limit", int(2)),
            ("x-dead-letter-exchange", string("")),
            ("x-dead-letter-routing-key", string("qq3.dead")),
        ],
    );
    c.queue_declare(1, "qq3.dead", q(""));
    fill(&mut c, "qq3", &["m"]);
    let take = |c: &mut Client, is_redelivered: bool, expected| {
        let got = c.get(1, "qq3").expect("m");
        assert_eq!(got.is_redelivered, is_redelivered);
        assert_eq!(headers(&got), expected);
        got.tag
    };
    let tag = take(&mut c, false, (None, None));
    c.nack(1, tag, true);
    let tag = take(&mut c, true, (None, Some(1)));
    reject(&mut c, tag);
    let tag = take(&mut c, true, (Some(1), Some(2)));
    reject(&mut c, tag);
    let tag = take(&mut c, true, (Some(2), Some(3)));
    reject(&mut c, tag);
    wait_ready(&mut c, "qq3.dead", 1);
    assert!(c.get(1, "qq3").is_none());
    let dead = c.get(1, "qq3.dead").expect("the dead letter");
    // VD-20, AK-13: in its new queue it is new.
    assert!(!dead.is_redelivered);
    let reason = dead.message.properties.header("x-first-death-reason");
    assert_eq!(reason, Some(string("delivery_limit")));
    let Some(FieldValue::Array(deaths)) = dead.message.properties.header("x-death") else {
        panic!("it has a history");
    };
    let FieldValue::Table(death) = &deaths[0] else {
        panic!("of tables");
    };
    assert_eq!(death.get("reason"), Some(&string("delivery_limit")));
}

/// QQ-2, QQ-3, VD-10: the limit is 20 when nothing is said, and a lost channel is a failure too. Without a dead-letter
/// exchange the message is gone.
#[test]
fn the_limit_is_twenty_by_default() {
    let mut c = client();
    declare(&mut c, "qq2", []);
    fill(&mut c, "qq2", &["m"]);
    for failed in 0..=20 {
        c.open_channel(2);
        let got = c.try_get(2, "qq2").expect("a get").expect("m is there");
        let count = (failed > 0).then_some(failed);
        assert_eq!(headers(&got), (count, count));
        c.close_channel(2);
    }
    assert!(c.get(1, "qq2").is_none());
    assert_eq!(counts(&mut c, "qq2").0, 0);
}

/// QQ-2, PO-9: the limit of a policy holds at once, also for messages that failed before it came, and with it it goes.
#[test]
fn the_limit_of_a_policy_holds_at_once() {
    if skipped_elsewhere("policies are set by our own commands") {
        return;
    }
    let mut c = client();
    let name = "qq2-by-policy";
    declare(&mut c, name, []);
    let set = |limit: i32| {
        let definition = format!(r#"{{"delivery-limit": {limit}}}"#);
        cli(&["policy", "set", name, name, &definition]);
    };
    // Rejects the message this often, each time with so many failures before; whether it is still there.
    let survives = |c: &mut Client, failures: std::ops::Range<i64>| {
        for failed in failures {
            let got = c.get(1, name).expect("m");
            assert_eq!(headers(&got).0.unwrap_or(0), failed);
            reject(c, got.tag);
        }
        settle(c, 1);
        counts(c, name).0 == 1
    };
    set(1);
    fill(&mut c, name, &["m"]);
    assert!(survives(&mut c, 0..1));
    assert!(!survives(&mut c, 1..2), "the second failure is too much");
    // Wider, while a message is at the limit.
    fill(&mut c, name, &["m"]);
    assert!(survives(&mut c, 0..1));
    set(4);
    assert!(survives(&mut c, 1..4));
    assert!(!survives(&mut c, 4..5));
    // Narrower, while a message is above it: its next failure ends it.
    fill(&mut c, name, &["m"]);
    assert!(survives(&mut c, 0..3));
    set(1);
    assert!(
        counts(&mut c, name).0 == 1,
        "it has not failed yet under that limit"
    );
    assert!(!survives(&mut c, 3..4));
    // Without the policy it is the limit of every quorum queue.
    fill(&mut c, name, &["m"]);
    cli(&["policy", "clear", name]);
    assert!(survives(&mut c, 0..20));
    assert!(!survives(&mut c, 20..21));
}

/// QQ-2: a negative limit is none.
#[test]
fn a_negative_limit_is_none() {
    let mut c = client();
    declare(&mut c, "qq2.none", [("x-delivery-limit", int(-1))]);
    fill(&mut c, "qq2.none", &["m"]);
    for _ in 0..25 {
        let got = c.get(1, "qq2.none").expect("m");
        reject(&mut c, got.tag);
    }
    let got = c.get(1, "qq2.none").expect("m");
    assert_eq!(headers(&got), (Some(25), Some(25)));
}

/// AK-14: a classic queue adds no such header.
#[test]
fn classic_queues_add_no_counts() {
    let mut c = client();
    c.queue_declare(1, "ak14", q(""));
    fill(&mut c, "ak14", &["m"]);
    let got = c.get(1, "ak14").expect("m");
    reject(&mut c, got.tag);
    let got = c.get(1, "ak14").expect("m");
    assert!(got.is_redelivered);
    assert_eq!(headers(&got), (None, None));
}

/// PR-7, VD-11: 32 levels, 4 when nothing is said, strictly in order.
#[test]
fn quorum_queues_have_thirty_two_levels() {
    let mut c = client();
    declare(&mut c, "pr7", []);
    for priority in [
        Some(0),
        Some(3),
        None,
        Some(4),
        Some(5),
        Some(200),
        Some(31),
    ] {
        let body = priority.map_or_else(|| "none".to_owned(), |priority: u8| priority.to_string());
        let message = Message::with(body.into_bytes(), |properties| {
            properties.set_priority(priority);
        });
        c.publish(1, "", "pr7", &message);
    }
    settle(&mut c, 1);
    assert_eq!(
        drain(&mut c, "pr7"),
        ["200", "31", "5", "none", "4", "3", "0"]
    );
}

/// QQ-5, PR-7: what came back leaves before all else, in the order of its return.
#[test]
fn returned_messages_go_ahead() {
    let mut c = client();
    declare(&mut c, "qq5", []);
    fill(&mut c, "qq5", &["a", "b", "c", "d"]);
    let a = c.get(1, "qq5").expect("a");
    let b = c.get(1, "qq5").expect("b");
    let urgent = Message::with("urgent", |properties| {
        properties.set_priority(Some(9));
    });
    c.publish(1, "", "qq5", &urgent);
    c.nack(1, b.tag, true);
    c.nack(1, a.tag, true);
    assert_eq!(drain(&mut c, "qq5"), ["b", "a", "urgent", "c", "d"]);
}

/// DL-24: with at-least-once a dead letter stays until somebody takes it: while the exchange is missing, while nothing is
/// bound to it, while its queue refuses it.
#[test]
fn at_least_once_letters_wait_for_somebody_who_takes_them() {
    let mut c = client();
    declare(
        &mut c,
        "dl24",
        [
            ("x-dead-letter-exchange", string("dl24.x")),
            ("x-dead-letter-strategy", string("at-least-once")),
            ("x-overflow", string("reject-publish")),
        ],
    );
    fill(&mut c, "dl24", &["a", "b"]);
    for body in ["a", "b"] {
        let got = c.get(1, "dl24").expect("both are there");
        assert_eq!(got.message.body_text(), body);
        c.nack(1, got.tag, false);
    }
    settle(&mut c, 1);
    c.exchange_declare(1, "dl24.x", "fanout", false);
    let full = [
        ("x-max-length", int(1)),
        ("x-overflow", string("reject-publish")),
    ];
    c.call::<queue::DeclareOk>(1, q_with("dl24.dead", full));
    c.bind(1, "dl24.dead", "dl24.x", "");
    let mut bodies = Vec::new();
    for _ in 0..2 {
        wait_ready(&mut c, "dl24.dead", 1);
        bodies.extend(drain(&mut c, "dl24.dead"));
    }
    bodies.sort();
    assert_eq!(bodies, ["a", "b"]);
}

/// QQ-6: a limit of the channel is refused.
#[test]
fn a_channel_with_a_limit_cannot_consume() {
    let mut c = client();
    declare(&mut c, "qq6", []);
    let qos = basic::Qos {
        prefetch_count: 5,
        global: true,
        ..basic::Qos::default()
    };
    c.call::<basic::QosOk>(1, qos);
    c.send(1, consume("qq6", "t"));
    connection_closed(
        &mut c,
        540,
        "NOT_IMPLEMENTED - queue 'qq6' in vhost '/' does not support global qos",
        basic::Consume::ID,
    );
}

/// QS-5: no limit is 2000 on a quorum queue.
#[test]
fn a_consumer_holds_two_thousand_at_most() {
    let mut c = client();
    declare(&mut c, "qs5", []);
    c.queue_declare(1, "qs5.classic", q(""));
    let bodies = vec!["m"; 2010];
    for (queue, tag, count) in [("qs5", "t", 2000), ("qs5.classic", "u", 2010)] {
        fill(&mut c, queue, &bodies);
        c.consume(1, queue, tag);
        for _ in 0..count {
            c.next_delivery(1);
        }
        settle(&mut c, 1);
        assert_eq!(counts(&mut c, queue).0, 2010 - count);
    }
}

/// QU-33: conditions of a delete are not supported.
#[test]
fn conditional_deletes_are_refused() {
    let mut c = client();
    declare(&mut c, "qu33", []);
    for (if_unused, flag) in [(true, "if-unused"), (false, "if-empty")] {
        let delete = queue::Delete {
            if_unused,
            if_empty: !if_unused,
            ..q_delete("qu33")
        };
        let text = format!(
            "NOT_IMPLEMENTED - cannot delete queue 'qu33' in vhost '/'. queue.delete operations with {flag} flag set are not supported by quorum queues"
        );
        fatal(delete, 540, &text);
    }
}

/// CO-20: an exclusive consumer of a quorum queue is one like any other. CO-5: it may have a timeout.
#[test]
fn exclusive_means_nothing_to_a_quorum_queue() {
    let mut c = client();
    declare(&mut c, "co20.q", []);
    for tag in ["one", "two"] {
        let exclusive = basic::Consume {
            exclusive: true,
            arguments: table([("x-consumer-timeout", int(60_000))]),
            ..consume("co20.q", tag)
        };
        c.call::<basic::ConsumeOk>(1, exclusive);
    }
    assert_eq!(counts(&mut c, "co20.q").1, 2);
    let stream = basic::Consume {
        arguments: table([("x-stream-offset", string("first"))]),
        ..consume("co20.q", "three")
    };
    refused(
        &mut c,
        stream,
        406,
        "PRECONDITION_FAILED - invalid arg 'x-stream-offset' for queue 'co20.q' in vhost '/' of queue type rabbit_quorum_queue",
    );
}

/// LL-10: the message that would be too many is refused here, without overshoot.
#[test]
fn reject_publish_is_exact() {
    let mut c = client();
    let arguments = [
        ("x-max-length", int(2)),
        ("x-overflow", string("reject-publish")),
    ];
    declare(&mut c, "ll10", arguments);
    c.confirm_select(1);
    for is_taken in [true, true, false] {
        c.publish(1, "", "ll10", &Message::plain("m"));
        assert_eq!(c.try_wait_confirm(1).is_ok(), is_taken);
    }
    assert_eq!(counts(&mut c, "ll10").0, 2);
}

/// TT-18: a redeclare does not renew the lease of a quorum queue.
#[test]
fn a_redeclare_does_not_renew_the_lease() {
    let mut c = client();
    let arguments = || [("x-expires", int(400))];
    declare(&mut c, "tt18", arguments());
    let deadline = crate::support::raw::now() + std::time::Duration::from_secs(20);
    c.open_channel(2);
    // While it is declared all the time it goes nevertheless.
    while c
        .try_queue_declare(2, "tt18", crate::support::raw::passive())
        .is_ok()
    {
        let is_late = crate::support::raw::now() > deadline;
        assert!(!is_late, "its lease was renewed");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Streams are refused where they would come to be; see the deviations.
#[test]
fn streams_are_refused_at_declaration() {
    let mut c = client();
    let mut declare = q("st1");
    declare.durable = true;
    declare.arguments = FieldTable::new().with("x-queue-type", "stream");
    refused(
        &mut c,
        declare,
        406,
        "PRECONDITION_FAILED - invalid arg 'x-queue-type' for queue 'st1' in vhost '/': \"unsupported queue type 'stream'\"",
    );
}
