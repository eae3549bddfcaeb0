//! Section 12: transactions.

use std::time::Duration;

use stratamq::amqp::method::{Method, basic, exchange, queue, tx};

use super::stage::*;
use crate::support::raw::{Client, Message, durable, now};
use crate::support::wait::{Pace, at_some_pace};

/// A client with channel 2 transactional, and a queue.
fn stage(queue: &str) -> Client {
    let mut c = client();
    c.queue_declare(1, queue, q(""));
    c.open_channel(2);
    c.tx_select(2);
    c
}

/// TX-1.
#[test]
fn commit_and_rollback_want_a_transactional_channel() {
    let mut c = client();
    let text = "PRECONDITION_FAILED - channel is not transactional";
    refused(&mut c, tx::Commit {}, 406, text);
    refused(&mut c, tx::Rollback {}, 406, text);
    c.tx_select(1);
    c.tx_select(1);
    c.tx_commit(1);
    c.tx_rollback(1);
}

/// TX-2, TX-8, TX-11.
#[test]
fn publishes_wait_for_the_commit_and_a_rollback_forgets_them() {
    let mut c = stage("tx2");
    for body in ["a", "b"] {
        c.publish(2, "", "tx2", &Message::plain(body));
    }
    settle(&mut c, 2);
    assert_eq!(counts(&mut c, "tx2").0, 0);
    c.tx_commit(2);
    assert_eq!(counts(&mut c, "tx2").0, 2);
    c.publish(2, "", "tx2", &Message::plain("dropped"));
    c.tx_rollback(2);
    c.publish(2, "", "tx2", &Message::plain("c"));
    c.tx_commit(2);
    assert_eq!(drain(&mut c, "tx2"), ["a", "b", "c"]);
}

/// TX-3: a binding made after the publish does not count, nor does one removed.
#[test]
fn routes_are_those_of_the_publish() {
    let mut c = stage("tx3.early");
    c.call::<exchange::DeclareOk>(1, x("tx3", "fanout"));
    for queue in ["tx3.late", "tx3.deleted", "tx3.unbound"] {
        c.queue_declare(1, queue, q(""));
    }
    for queue in ["tx3.early", "tx3.deleted", "tx3.unbound"] {
        c.bind(1, queue, "tx3", "");
    }
    c.publish(2, "tx3", "", &Message::plain("m"));
    settle(&mut c, 2);
    c.bind(1, "tx3.late", "tx3", "");
    c.queue_delete(1, "tx3.deleted");
    c.call::<queue::UnbindOk>(1, unbind("tx3.unbound", "tx3", ""));
    c.tx_commit(2);
    assert_eq!(drain(&mut c, "tx3.early"), ["m"]);
    assert_eq!(drain(&mut c, "tx3.unbound"), ["m"]);
    assert!(drain(&mut c, "tx3.late").is_empty());
    // The exchange itself may go.
    c.publish(2, "tx3", "", &Message::plain("m2"));
    settle(&mut c, 2);
    c.call::<exchange::DeleteOk>(1, x_delete("tx3"));
    c.tx_commit(2);
    assert_eq!(drain(&mut c, "tx3.early"), ["m2"]);
}

/// TX-3, RT-7: all its queues gone since: nothing is returned, for it was routed.
#[test]
fn a_queue_deleted_before_the_commit_is_skipped() {
    let mut c = stage("tx3.gone");
    send(&mut c, 2, mandatory("", "tx3.gone"), &Message::plain("m"));
    settle(&mut c, 2);
    c.queue_delete(1, "tx3.gone");
    c.tx_commit(2);
    silent(&mut c, 2);
    // Nor does a new queue of the same name get it.
    send(&mut c, 2, mandatory("", "tx3.gone"), &Message::plain("m"));
    settle(&mut c, 2);
    c.queue_declare(1, "tx3.gone", q(""));
    c.tx_commit(2);
    let stray = c.next(2).method;
    assert!(matches!(stray, Method::BasicReturn(_)), "{stray:?}");
    assert!(drain(&mut c, "tx3.gone").is_empty());
}

/// TX-2, TX-8: acks too.
#[test]
fn acks_wait_for_the_commit_and_a_rollback_leaves_them_to_do() {
    let mut c = stage("tx8");
    fill(&mut c, "tx8", &["a", "b"]);
    c.try_qos(2, 10).expect("qos");
    c.consume(2, "tx8", "t");
    let (a, b) = (c.next_delivery(2), c.next_delivery(2));
    c.ack(2, a.tag);
    c.nack(2, b.tag, true);
    c.tx_rollback(2);
    silent(&mut c, 2);
    // The old tags still stand.
    c.ack(2, a.tag);
    c.tx_commit(2);
    c.close_channel(2);
    let left = drain_all(&mut c, "tx8");
    assert_eq!(left.len(), 1);
    assert_eq!(
        (left[0].message.body_text().as_str(), left[0].is_redelivered),
        ("b", true)
    );
}

/// TX-6, PB-10.
#[test]
fn returns_come_with_the_commit_and_before_its_answer() {
    let mut c = stage("tx6");
    send(&mut c, 2, mandatory("", "tx6.none"), &Message::plain("m"));
    silent(&mut c, 2);
    c.send(2, tx::Commit {});
    assert!(matches!(c.next(2).method, Method::BasicReturn(_)));
    assert!(matches!(c.next(2).method, Method::TxCommitOk(_)));
}

/// TX-7, with the returns of TX-6.
#[test]
fn a_refusing_queue_makes_it_a_partial_completion() {
    let mut c = stage("tx7.open");
    c.call::<queue::DeclareOk>(
        1,
        q_with(
            "tx7.full",
            [
                ("x-max-length", int(0)),
                ("x-overflow", string("reject-publish")),
            ],
        ),
    );
    send(
        &mut c,
        2,
        mandatory("", "tx7.none"),
        &Message::plain("unroutable"),
    );
    c.publish(2, "", "tx7.full", &Message::plain("refused"));
    c.publish(2, "", "tx7.open", &Message::plain("kept"));
    c.send(2, tx::Commit {});
    assert!(matches!(c.next(2).method, Method::BasicReturn(_)));
    channel_closed(
        &mut c,
        2,
        406,
        "PRECONDITION_FAILED - partial tx completion",
        tx::Commit::ID,
    );
    assert_eq!(drain(&mut c, "tx7.open"), ["kept"]);
}

/// TX-9, PB-2.
#[test]
fn mistakes_do_not_wait_for_the_commit() {
    let mut c = stage("tx9");
    c.ack(2, 5);
    channel_closed(
        &mut c,
        2,
        406,
        "PRECONDITION_FAILED - unknown delivery tag 5",
        basic::Ack::ID,
    );
    c.open_channel(2);
    c.tx_select(2);
    c.publish(2, "tx9.none", "", &Message::plain("m"));
    channel_closed(
        &mut c,
        2,
        404,
        "NOT_FOUND - no exchange 'tx9.none' in vhost '/'",
        basic::Publish::ID,
    );
}

/// TX-10.
#[test]
fn the_end_of_the_channel_is_a_rollback() {
    let mut c = stage("tx10");
    fill(&mut c, "tx10", &["a"]);
    c.publish(2, "", "tx10", &Message::plain("dropped"));
    let got = c.get(2, "tx10").expect("a");
    c.ack(2, got.tag);
    c.close_channel(2);
    let left = drain_all(&mut c, "tx10");
    assert_eq!(left.len(), 1);
    assert!(left[0].is_redelivered);
}

/// TX-4, AK-17: persistent publishes, acks and rejects in one commit.
#[test]
fn a_commit_carries_publishes_acks_and_rejects() {
    let mut c = client();
    for queue in ["tx4.a", "tx4.b"] {
        c.queue_declare(1, queue, durable());
    }
    c.tx_select(1);
    for body in ["1", "2", "3"] {
        c.publish(1, "", "tx4.a", &Message::persistent(body));
    }
    c.tx_commit(1);
    let tags: Vec<u64> = (0..3)
        .map(|_| c.get(1, "tx4.a").expect("a message").tag)
        .collect();
    c.ack(1, tags[0]);
    c.nack(1, tags[1], true);
    c.send(
        1,
        basic::Reject {
            delivery_tag: tags[2],
            requeue: false,
        },
    );
    c.publish(1, "", "tx4.b", &Message::persistent("moved"));
    settle(&mut c, 1);
    assert_eq!(
        (counts(&mut c, "tx4.a").0, counts(&mut c, "tx4.b").0),
        (0, 0)
    );
    c.tx_commit(1);
    assert_eq!(
        (counts(&mut c, "tx4.a").0, counts(&mut c, "tx4.b").0),
        (1, 1)
    );
    for queue in ["tx4.a", "tx4.b"] {
        c.queue_delete(1, queue);
    }
}

/// TX-4, BS-4: whoever has read commit-ok finds the messages, also those that waited for the disk.
#[test]
fn what_was_committed_is_there_when_the_answer_is() {
    let mut c = client();
    c.queue_declare(1, "tx4.c", durable());
    c.open_channel(2);
    c.tx_select(2);
    for round in 0..100 {
        c.publish(2, "", "tx4.c", &Message::persistent("m"));
        c.tx_commit(2);
        let got = c.get(1, "tx4.c");
        assert!(got.is_some(), "round {round}");
        c.ack(1, got.map_or(0, |got| got.tag));
    }
    c.queue_delete(1, "tx4.c");
}

/// TX-14: time to live counts from the commit.
#[test]
fn time_to_live_begins_with_the_commit() {
    at_some_pace(Duration::from_millis(400), |time_to_live| {
        let mut c = client();
        c.open_channel(2);
        c.tx_select(2);
        let ttl_ms = i32::try_from(time_to_live.as_millis()).expect("some seconds");
        c.queue_declare(1, "tx14", q_with("", [("x-message-ttl", int(ttl_ms))]));
        c.publish(2, "", "tx14", &Message::plain("m"));
        std::thread::sleep(time_to_live * 3 / 2);
        let begun = now();
        c.tx_commit(2);
        let (ready, _) = counts(&mut c, "tx14");
        let is_late = begun.elapsed() >= time_to_live;
        assert!(ready == 1 || is_late, "it has just arrived");
        wait_ready(&mut c, "tx14", 0);
        c.queue_delete(1, "tx14");
        if ready == 1 {
            Pace::Quick
        } else {
            Pace::TooSlow
        }
    });
}
