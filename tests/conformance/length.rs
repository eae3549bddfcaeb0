//! Section 17: length limits.

use stratamq::amqp::method::{basic, queue};

use super::stage::*;
use crate::support::raw::{Client, Message};

fn limited<const COUNT: usize>(
    name: &str,
    arguments: [(&str, stratamq::amqp::field_table::FieldValue); COUNT],
) -> Client {
    let mut c = client();
    c.call::<queue::DeclareOk>(1, q_with(name, arguments));
    c
}

/// LL-1, LL-2, LL-3.
#[test]
fn the_head_is_dropped_until_the_limits_hold() {
    let mut c = limited(
        "ll2",
        [("x-max-length", int(3)), ("x-max-length-bytes", int(10))],
    );
    fill(&mut c, "ll2", &["a", "b", "c", "d"]);
    assert_eq!(counts(&mut c, "ll2").0, 3);
    fill(&mut c, "ll2", &["12345678"]);
    assert_eq!(drain(&mut c, "ll2"), ["c", "d", "12345678"]);
    // One that is too large by itself empties the queue, itself included.
    fill(&mut c, "ll2", &["a", "b", "12345678901"]);
    assert_eq!(counts(&mut c, "ll2").0, 0);
}

/// LL-1: unacked messages do not count.
#[test]
fn unacked_messages_do_not_count() {
    let mut c = limited("ll1", [("x-max-length", int(1))]);
    fill(&mut c, "ll1", &["a"]);
    c.get(1, "ll1").expect("a");
    fill(&mut c, "ll1", &["b"]);
    assert_eq!(drain(&mut c, "ll1"), ["b"]);
}

/// LL-4.
#[test]
fn limit_zero_serves_waiting_consumers_only() {
    let mut c = limited("ll4", [("x-max-length", int(0))]);
    fill(&mut c, "ll4", &["lost"]);
    c.consume(1, "ll4", "t");
    c.publish(1, "", "ll4", &Message::plain("taken"));
    assert_eq!(c.next_delivery(1).message.body_text(), "taken");
}

/// LL-5.
#[test]
fn reject_publish_does_not_look_at_consumers() {
    let mut c = limited(
        "ll5",
        [
            ("x-max-length", int(0)),
            ("x-overflow", string("reject-publish")),
        ],
    );
    c.consume(1, "ll5", "t");
    // Without confirms nobody is told.
    c.publish(1, "", "ll5", &Message::plain("m"));
    silent(&mut c, 1);
    c.open_channel(2);
    c.confirm_select(2);
    c.publish(2, "", "ll5", &Message::plain("m"));
    assert_eq!(c.expect::<basic::Nack>(2).delivery_tag, 1);
}

/// LL-5, by bytes; LL-8: what is queued stays.
#[test]
fn reject_publish_counts_the_message_that_would_come() {
    let mut c = limited(
        "ll5b",
        [
            ("x-max-length-bytes", int(5)),
            ("x-overflow", string("reject-publish")),
        ],
    );
    c.confirm_select(1);
    for (body, is_taken) in [("123", true), ("123", false), ("12", true), ("1", false)] {
        c.publish(1, "", "ll5b", &Message::plain(body));
        match c.try_wait_confirm(1) {
            Ok(_) => assert!(is_taken, "{body} is too much"),
            Err(trouble) => assert!(!is_taken, "{body} fits: {trouble}"),
        }
    }
    assert_eq!(drain(&mut c, "ll5b"), ["123", "12"]);
}
