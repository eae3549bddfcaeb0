//! Section 7: queues.

use std::time::Duration;

use stratamq::amqp::field_table::FieldValue;
use stratamq::amqp::method::{basic, queue};

use super::stage::*;
use crate::support::PROCESS_LIMIT;
use crate::support::raw::{
    Client, Message, Trouble, auto_delete, durable, exclusive, now, passive,
};
use crate::support::wait::{Pace, at_some_pace, wait_until};

const LOCKED: &str = "It could be originally declared on another connection or the exclusive property value does not match that of the original declaration.";

fn locked(name: &str) -> String {
    format!(
        "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '{name}' in vhost '/'. {LOCKED}"
    )
}

fn missing(name: &str) -> String {
    format!("NOT_FOUND - no queue '{name}' in vhost '/'")
}

fn passive_q(name: &str) -> queue::Declare {
    queue::Declare {
        passive: true,
        ..q(name)
    }
}

/// QU-1.
#[test]
fn declare_ok_tells_name_ready_messages_and_consumers() {
    let mut c = client();
    let fresh = c.queue_declare(1, "qu1", durable());
    assert_eq!(
        (
            fresh.queue.as_str(),
            fresh.message_count,
            fresh.consumer_count
        ),
        ("qu1", 0, 0)
    );
    fill(&mut c, "qu1", &["a", "b", "c"]);
    c.get(1, "qu1").expect("a message");
    assert_eq!(counts(&mut c, "qu1"), (2, 0), "ready messages only");
    c.open_channel(2);
    c.try_qos(2, 1).expect("qos");
    c.consume(2, "qu1", "t");
    c.next_delivery(2);
    assert_eq!(counts(&mut c, "qu1"), (1, 1));
    c.queue_delete(1, "qu1");
}

/// QU-2.
#[test]
fn nowait_declare_is_silent_but_its_errors_are_not() {
    let mut c = client();
    c.send(
        1,
        queue::Declare {
            nowait: true,
            ..q("qu2")
        },
    );
    settle(&mut c, 1);
    assert_eq!(counts(&mut c, "qu2"), (0, 0));
    let clash = queue::Declare {
        nowait: true,
        durable: true,
        ..q("qu2")
    };
    refused(
        &mut c,
        clash,
        406,
        "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'qu2' in vhost '/': received 'true' but current is 'false'",
    );
}

/// QU-8, CH-12, step 3 of 7.1.
#[test]
fn the_server_names_queues_and_keeps_the_prefix_for_itself() {
    let mut c = client();
    let mut names = Vec::new();
    for _ in 0..2 {
        let name = c.queue_declare(1, "", exclusive()).queue.to_string();
        assert!(name.starts_with("amq.gen-") && name.len() == 30, "{name}");
        names.push(name);
    }
    assert_ne!(names[0], names[1]);
    assert_eq!(counts(&mut c, &names[0]), (0, 0));
    let reserved = |name: &str| {
        format!("ACCESS_REFUSED - queue name '{name}' contains reserved prefix 'amq.*'")
    };
    refused(&mut c, q(&names[0]), 403, &reserved(&names[0]));
    refused(&mut c, q("amq.foo"), 403, &reserved("amq.foo"));
    refused(&mut c, passive_q(""), 404, &missing(""));
}

/// CH-11.
#[test]
fn an_empty_name_means_the_queue_last_declared_on_the_channel() {
    let mut c = client();
    c.queue_declare(1, "ch11.a", q(""));
    c.queue_declare(1, "ch11.b", q(""));
    c.queue_declare(1, "ch11.a", passive());
    c.bind(1, "", "amq.direct", "");
    c.publish(1, "amq.direct", "ch11.a", &Message::plain("m"));
    let got = c.get(1, "").expect("the key became the queue's name");
    assert_eq!(got.routing_key, "ch11.a");
    c.open_channel(2);
    let nothing = "NOT_FOUND - no previously declared queue";
    refused(&mut c, get(""), 404, nothing);
    refused(&mut c, consume("", ""), 404, nothing);
    refused(&mut c, bind("", "amq.direct", ""), 404, nothing);
    refused(&mut c, q_delete(""), 404, nothing);
    refused(&mut c, queue::Purge::default(), 404, nothing);
    c.queue_delete(1, "");
    refused(&mut c, passive_q("ch11.a"), 404, &missing("ch11.a"));
}

/// Section 7.3, LM-11.
#[test]
fn bad_arguments_are_refused_with_their_reason() {
    let mut c = client();
    let cases: &[(&str, FieldValue, &str)] = &[
        ("x-message-ttl", int(-1), ": {value_negative,-1}"),
        (
            "x-message-ttl",
            FieldValue::Long(315_360_000_001),
            ": {value_too_large,315360000001}",
        ),
        (
            "x-message-ttl",
            string("5"),
            ": \"expected integer, got longstr\"",
        ),
        ("x-expires", int(0), ": {value_zero,0}"),
        ("x-expires", int(-5), ": {value_negative,-5}"),
        ("x-max-length", int(-3), ": {value_negative,-3}"),
        ("x-max-length-bytes", int(-3), ": {value_negative,-3}"),
        ("x-overflow", string("bogus"), ": invalid_overflow"),
        ("x-overflow", int(1), ": {unacceptable_type,signedint}"),
        (
            "x-dead-letter-routing-key",
            string("k"),
            ": routing_key_but_no_dlx_defined",
        ),
        (
            "x-single-active-consumer",
            string("yes"),
            ": {unacceptable_type,longstr}",
        ),
        (
            "x-queue-type",
            string("foo"),
            ": \"unsupported queue type 'foo'\"",
        ),
        (
            "x-max-age",
            string("1D"),
            " of queue type rabbit_classic_queue",
        ),
        (
            "x-delivery-limit",
            int(3),
            " of queue type rabbit_classic_queue",
        ),
    ];
    for (name, value, reason) in cases {
        let text = format!(
            "PRECONDITION_FAILED - invalid arg '{name}' for queue 'qu73' in vhost '/'{reason}"
        );
        refused(&mut c, q_with("qu73", [(name, value.clone())]), 406, &text);
    }
    refused(
        &mut c,
        q_with("qu73", [("x-dead-letter-exchange", int(1))]),
        406,
        "PRECONDITION_FAILED - invalid type 'signedint' for arg 'x-dead-letter-exchange' in queue 'qu73' in vhost '/'",
    );
    // What nobody knows is kept and ignored, and so is what has lost its meaning (VD-8).
    c.call::<queue::DeclareOk>(
        1,
        q_with(
            "qu73",
            [("x-foo", int(1)), ("x-queue-mode", string("lazy"))],
        ),
    );
}

/// QU-16: the setting that relaxes it is off by default there, and we have none: a quorum queue is no classic one.
#[test]
fn a_quorum_queue_cannot_be_redeclared_as_a_classic_one() {
    let mut c = client();
    let of_type = |kind: &str| queue::Declare {
        durable: true,
        ..q_with("qu16", [("x-queue-type", string(kind))])
    };
    c.call::<queue::DeclareOk>(1, of_type("quorum"));
    let text = "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'qu16' in vhost '/': \
                received 'classic' but current is 'quorum'";
    refused(&mut c, of_type("classic"), 406, text);
    c.call::<queue::DeclareOk>(1, of_type("quorum"));
    c.queue_delete(1, "qu16");
}

/// QU-12 to QU-14, FT-3, FT-4 and the inequivalence rows of 4.4.
#[test]
fn a_redeclare_must_be_equivalent() {
    let mut c = client();
    let ttl = |value: FieldValue| q_with("qu13", [("x-message-ttl", value)]);
    c.call::<queue::DeclareOk>(1, ttl(int(5)));
    for same in [
        FieldValue::Byte(5),
        FieldValue::Short(5),
        FieldValue::Long(5),
        FieldValue::UnsignedByte(5),
    ] {
        c.call::<queue::DeclareOk>(1, ttl(same));
    }
    let unknown = q_with(
        "qu13",
        [
            ("x-message-ttl", int(5)),
            ("x-foo", int(1)),
            ("x-queue-type", string("classic")),
        ],
    );
    c.call::<queue::DeclareOk>(1, unknown);
    let text = |rest: &str| format!("PRECONDITION_FAILED - inequivalent arg {rest}");
    let cases = [
        (
            ttl(int(6)),
            text("'x-message-ttl' for queue 'qu13' in vhost '/': received '6' but current is '5'"),
        ),
        (
            q("qu13"),
            text(
                "'x-message-ttl' for queue 'qu13' in vhost '/': received none but current is the value '5' of type 'signedint'",
            ),
        ),
        (
            q_with(
                "qu13",
                [("x-message-ttl", int(5)), ("x-expires", int(60_000))],
            ),
            text(
                "'x-expires' for queue 'qu13' in vhost '/': received the value '60000' of type 'signedint' but current is none",
            ),
        ),
        (
            queue::Declare {
                auto_delete: true,
                ..ttl(int(5))
            },
            text(
                "'auto_delete' for queue 'qu13' in vhost '/': received 'true' but current is 'false'",
            ),
        ),
        (
            queue::Declare {
                durable: true,
                ..ttl(int(5))
            },
            text("'durable' for queue 'qu13' in vhost '/': received 'true' but current is 'false'"),
        ),
    ];
    for (declare, text) in cases {
        refused(&mut c, declare, 406, &text);
    }
    refused(
        &mut c,
        queue::Declare {
            exclusive: true,
            ..ttl(int(5))
        },
        405,
        &locked("qu13"),
    );
}

/// QU-17.
#[test]
fn a_passive_declare_looks_at_nothing_but_the_name() {
    let mut c = client();
    c.queue_declare(1, "qu17", durable());
    let odd = queue::Declare {
        passive: true,
        auto_delete: true,
        ..q_with("qu17", [("x-expires", int(0))])
    };
    c.call::<queue::DeclareOk>(1, odd);
    refused(&mut c, passive_q("qu17.none"), 404, &missing("qu17.none"));
    c.queue_delete(1, "qu17");
}

/// QU-19, QU-20, step 2 of 7.1.
#[test]
fn an_exclusive_queue_belongs_to_its_connection() {
    let (mut owner, mut other) = (client(), client());
    owner.queue_declare(1, "qu20", exclusive());
    owner.bind(1, "qu20", "amq.direct", "qu20.k");
    // Durability means nothing for it.
    owner.call::<queue::DeclareOk>(
        1,
        queue::Declare {
            exclusive: true,
            durable: true,
            ..q("qu20")
        },
    );
    owner.open_channel(2);
    owner.call::<queue::DeclareOk>(2, passive_q("qu20"));
    let text = locked("qu20");
    refused(&mut owner, q("qu20"), 405, &text);
    refused(&mut other, q("qu20"), 405, &text);
    refused(
        &mut other,
        queue::Declare {
            exclusive: true,
            ..q("qu20")
        },
        405,
        &text,
    );
    refused(&mut other, passive_q("qu20"), 405, &text);
    refused(&mut other, bind("qu20", "amq.direct", "other"), 405, &text);
    refused(
        &mut other,
        unbind("qu20", "amq.direct", "qu20.k"),
        405,
        &text,
    );
    refused(&mut other, get("qu20"), 405, &text);
    refused(&mut other, consume("qu20", ""), 405, &text);
    refused(
        &mut other,
        queue::Purge {
            queue: crate::support::raw::text("qu20"),
            ..queue::Purge::default()
        },
        405,
        &text,
    );
    refused(&mut other, q_delete("qu20"), 405, &text);
    other.call::<queue::UnbindOk>(1, unbind("qu20", "amq.direct", "no such binding"));
    // Publishing is open to all.
    other.publish(1, "amq.direct", "qu20.k", &Message::plain("m"));
    settle(&mut other, 1);
    assert_eq!(drain(&mut owner, "qu20"), ["m"]);
}

/// QU-21, CN-51.
#[test]
fn exclusive_queues_are_gone_before_close_ok() {
    let mut witness = client();
    for round in 0..20 {
        let mut owner = client();
        owner.queue_declare(1, "qu21", exclusive());
        owner.bind(1, "qu21", "amq.fanout", "");
        owner.close();
        refused(&mut witness, passive_q("qu21"), 404, &missing("qu21"));
        let mut next = client();
        let declared = next.try_queue_declare(1, "qu21", exclusive());
        assert!(declared.is_ok(), "round {round}: {declared:?}");
        next.close();
    }
}

/// CN-56, QU-21.
#[test]
fn exclusive_queues_go_when_the_socket_breaks() {
    let mut witness = client();
    let mut owner = client();
    owner.queue_declare(1, "cn56", exclusive());
    drop(owner);
    wait_until("the queue is gone", || {
        witness.open_channel(2);
        match witness.try_queue_declare(2, "cn56", passive()) {
            Err(Trouble::ChannelClosed(close)) => close.reply_code == 404,
            other => panic!("{other:?}"),
        }
    });
}

/// QU-24, QU-25, CO-17, CH-3: gone when cancel-ok, close-ok is seen.
#[test]
fn auto_delete_queues_go_with_their_last_consumer_before_the_answer() {
    let mut witness = client();
    type End = fn(&mut Client);
    let ends: [(&str, End); 2] = [
        ("by cancel", |c| c.try_cancel(2, "t").expect("cancel-ok")),
        ("by channel close", |c| c.close_channel(2)),
    ];
    for (how, end) in ends {
        let mut c = client();
        c.queue_declare(1, "qu25", auto_delete());
        c.open_channel(2);
        c.consume(1, "qu25", "first");
        c.consume(2, "qu25", "t");
        c.try_cancel(1, "first").expect("cancel-ok");
        assert_eq!(
            counts(&mut c, "qu25"),
            (0, 1),
            "{how}: one consumer is left"
        );
        end(&mut c);
        refused(&mut witness, passive_q("qu25"), 404, &missing("qu25"));
    }
    let mut c = client();
    c.queue_declare(1, "qu25", auto_delete());
    c.consume(1, "qu25", "t");
    c.close();
    refused(&mut witness, passive_q("qu25"), 404, &missing("qu25"));
    // A get is no consumer, and a queue that never had one stays.
    witness.queue_declare(1, "qu24", auto_delete());
    assert!(witness.get(1, "qu24").is_none());
    assert_eq!(counts(&mut witness, "qu24"), (0, 0));
}

/// QU-27, QU-28, QU-32.
#[test]
fn delete_asks_for_its_conditions() {
    let mut c = client();
    assert_eq!(c.queue_delete(1, "qu28.none"), 0);
    c.queue_declare(1, "qu28", q(""));
    fill(&mut c, "qu28", &["m"]);
    c.consume(1, "qu28", "t");
    let unacked = c.next_delivery(1);
    let (if_unused, if_empty) = (
        queue::Delete {
            if_unused: true,
            ..q_delete("qu28")
        },
        queue::Delete {
            if_empty: true,
            ..q_delete("qu28")
        },
    );
    refused(
        &mut c,
        if_unused.clone(),
        406,
        "PRECONDITION_FAILED - queue 'qu28' in vhost '/' in use",
    );
    c.try_cancel(1, "t").expect("cancel-ok");
    c.nack(1, unacked.tag, true);
    settle(&mut c, 1);
    refused(
        &mut c,
        if_empty.clone(),
        406,
        "PRECONDITION_FAILED - queue 'qu28' in vhost '/' not empty",
    );
    let got = c.get(1, "qu28").expect("the requeued one");
    // Unacked messages do not count.
    let both = queue::Delete {
        if_unused: true,
        ..if_empty
    };
    assert_eq!(c.call::<queue::DeleteOk>(1, both).message_count, 0);
    // QU-30: their tags may still be settled.
    c.ack(1, got.tag);
    settle(&mut c, 1);
}

/// QU-29.
#[test]
fn purge_and_delete_count_ready_messages_only() {
    let mut c = client();
    c.queue_declare(1, "qu29", q(""));
    fill(&mut c, "qu29", &["a", "b", "c"]);
    let held = c.get(1, "qu29").expect("a");
    assert_eq!(c.try_purge(1, "qu29").expect("purge-ok"), 2);
    c.nack(1, held.tag, true);
    // The unacked one was spared.
    wait_ready(&mut c, "qu29", 1);
    assert_eq!(c.queue_delete(1, "qu29"), 1);
    refused(
        &mut c,
        queue::Purge {
            queue: crate::support::raw::text("qu29"),
            ..queue::Purge::default()
        },
        404,
        &missing("qu29"),
    );
}

/// QU-31, CF-10: nothing is left unanswered.
#[test]
fn a_deleted_queue_leaves_no_confirm_outstanding() {
    let mut c = client();
    c.queue_declare(1, "qu31", durable());
    c.confirm_select(1);
    for _ in 0..50 {
        c.push_publish(1, "", "qu31", &Message::persistent("m"));
    }
    c.push(1, q_delete("qu31"));
    c.flush().expect("sent");
    c.expect::<queue::DeleteOk>(1);
    c.wait_confirms_upto(1, 50);
}

/// TT-14 to TT-16, QU-3, GT-4.
#[test]
fn unused_queues_expire_and_use_renews_the_lease() {
    at_some_pace(Duration::from_millis(1000), |lease| {
        let mut c = client();
        let lease_ms = i32::try_from(lease.as_millis()).expect("some seconds");
        let leased = |name: &str| q_with(name, [("x-expires", int(lease_ms))]);
        let begun = now();
        let mut used_at = begun;
        let names = ["consumed", "idle", "got"].map(|use_| format!("tt14.{use_}.{lease_ms}"));
        for name in &names {
            c.call::<queue::DeclareOk>(1, leased(name));
        }
        let [consumed, idle, got] = &names;
        c.consume(1, consumed, "t");
        c.open_channel(2);
        // Many uses, each well within the lease of the one before, and together longer than it.
        let mut is_idle_gone = false;
        while !is_idle_gone || begun.elapsed() < lease * 8 / 5 {
            assert!(begun.elapsed() < lease + PROCESS_LIMIT, "publishing is use");
            std::thread::sleep(Duration::from_millis(20));
            let asked_at = now();
            match c.try_get(1, got) {
                Ok(message) => assert!(message.is_none()),
                Err(trouble) => {
                    assert!(used_at.elapsed() >= lease, "in use, but gone: {trouble}");
                    return Pace::TooSlow;
                }
            }
            used_at = asked_at;
            // Publishing is no use; the message goes with the queue, and those behind it come back.
            send(&mut c, 2, mandatory("", idle), &Message::plain("m"));
            settle(&mut c, 2);
            is_idle_gone |= c.try_next_within(2, Duration::ZERO).is_ok();
        }
        refused(&mut c, passive_q(idle), 404, &missing(idle));
        assert_eq!(counts(&mut c, consumed), (0, 1));
        c.queue_delete(1, consumed);
        c.queue_delete(1, got);
        Pace::Quick
    });
}

/// CO-18, QU-30 and section 3.8.
#[test]
fn consumers_of_a_deleted_queue_are_told_if_they_can_hear_it() {
    let mut c = client();
    c.queue_declare(1, "co18", q(""));
    c.open_channel(2);
    c.consume(2, "co18", "t");
    let mut deaf = Client::login(
        address(),
        &crate::support::raw::Login {
            capabilities: Vec::new(),
            ..Default::default()
        },
    );
    deaf.open_channel(1);
    deaf.consume(1, "co18", "t");
    c.queue_delete(1, "co18");
    let cancel: basic::Cancel = c.expect(2);
    assert_eq!((cancel.consumer_tag.as_str(), cancel.nowait), ("t", true));
    silent(&mut deaf, 1);
    // A client may answer; the tag is free again.
    c.send(
        2,
        basic::CancelOk {
            consumer_tag: crate::support::raw::text("t"),
        },
    );
    c.queue_declare(2, "co18", q(""));
    c.consume(2, "co18", "t");
}

/// QU-4: any text of at most 255 bytes names a queue.
#[test]
fn names_may_be_long_and_of_any_letters() {
    let mut c = client();
    let long = "q".repeat(255);
    for name in [
        long.as_str(),
        "qu4 \u{1f407} with spaces/and:signs",
        "qu4.'\"<>",
    ] {
        assert_eq!(c.queue_declare(1, name, q("")).queue.as_str(), name);
        fill(&mut c, name, &["m"]);
        assert_eq!(drain(&mut c, name), ["m"]);
        c.queue_delete(1, name);
    }
}

/// QU-6, VD-5: a queue that is neither durable nor exclusive is fine, and others may use it.
#[test]
fn transient_queues_may_be_shared() {
    let (mut c, mut other) = (client(), client());
    c.queue_declare(1, "qu6", q(""));
    fill(&mut other, "qu6", &["m"]);
    assert_eq!(drain(&mut other, "qu6"), ["m"]);
    drop(c);
    assert_eq!(counts(&mut other, "qu6"), (0, 0));
}

/// QU-9: on this baseline the argument is one that nobody knows.
#[test]
fn a_name_prefix_is_ignored() {
    let mut c = client();
    let with = queue::Declare {
        exclusive: true,
        ..q_with("", [("x-name-prefix", string("mine"))])
    };
    let declared: queue::DeclareOk = c.call(1, with);
    assert!(declared.queue.as_str().starts_with("amq.gen-"));
}

/// QU-22, QU-26: exclusive and auto-delete: whichever ends first; what was in it is gone, not dead-lettered.
#[test]
fn the_first_of_two_ends_counts() {
    let mut c = client();
    c.queue_declare(1, "qu22.dead", q(""));
    let both = || queue::Declare {
        exclusive: true,
        auto_delete: true,
        ..q_with(
            "qu22",
            [
                ("x-dead-letter-exchange", string("")),
                ("x-dead-letter-routing-key", string("qu22.dead")),
            ],
        )
    };
    // Its last consumer goes.
    c.call::<queue::DeclareOk>(1, both());
    c.consume(1, "qu22", "t");
    fill(&mut c, "qu22", &["unacked"]);
    c.next_delivery(1);
    c.try_cancel(1, "t").expect("cancel-ok");
    refused(&mut c, passive_q("qu22"), 404, &missing("qu22"));
    // Its connection goes, though it never had a consumer.
    let mut owner = client();
    owner.call::<queue::DeclareOk>(1, both());
    fill(&mut owner, "qu22", &["ready"]);
    owner.close();
    refused(&mut c, passive_q("qu22"), 404, &missing("qu22"));
    assert_eq!(counts(&mut c, "qu22.dead"), (0, 0));
}
