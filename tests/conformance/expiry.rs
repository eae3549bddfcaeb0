//! Section 16: time to live.

use std::time::Duration;

use stratamq::amqp::method::queue;

use super::stage::*;
use crate::support::raw::{Message, now, text};
use crate::support::wait::{Pace, at_some_pace};

fn expiring(body: &str, expiration: &str) -> Message {
    Message::with(body.as_bytes().to_vec(), |properties| {
        properties.set_expiration(Some(text(expiration)));
    })
}

/// TT-1, TT-7, TT-11.
#[test]
fn messages_of_a_queue_with_a_ttl_expire_by_themselves() {
    let mut c = client();
    c.call::<queue::DeclareOk>(1, q_with("tt1", [("x-message-ttl", int(100))]));
    fill(&mut c, "tt1", &["a", "b"]);
    wait_ready(&mut c, "tt1", 0);
    assert!(c.get(1, "tt1").is_none());
    // The smaller one of both counts.
    c.publish(1, "", "tt1", &expiring("long", "60000"));
    wait_ready(&mut c, "tt1", 0);
}

/// TT-5: only the head is looked at.
#[test]
fn an_expired_message_waits_behind_one_that_has_not() {
    let mut c = client();
    c.queue_declare(1, "tt5", q(""));
    c.publish(1, "", "tt5", &Message::plain("head"));
    c.publish(1, "", "tt5", &expiring("behind", "1"));
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!(counts(&mut c, "tt5").0, 2);
    let head = c.get(1, "tt5").expect("the head");
    assert_eq!(head.message.body_text(), "head");
    assert!(c.get(1, "tt5").is_none(), "never handed out");
    assert_eq!(counts(&mut c, "tt5").0, 0);
}

/// TT-2, TT-13: what is delivered keeps its expiration.
#[test]
fn per_message_expiration_is_kept_on_delivery() {
    let mut c = client();
    c.queue_declare(1, "tt13", q(""));
    for expiration in ["60000", "+60000", "0060000"] {
        c.publish(1, "", "tt13", &expiring("m", expiration));
    }
    wait_ready(&mut c, "tt13", 3);
    let got = drain_all(&mut c, "tt13");
    assert_eq!(got[0].message.properties.expiration(), Some(&b"60000"[..]));
}

/// TT-8: with time 0 only a consumer that waits gets it; the publisher is told nothing bad.
#[test]
fn time_zero_means_now_or_never() {
    let mut c = client();
    c.queue_declare(1, "tt8", q(""));
    c.confirm_select(1);
    send(&mut c, 1, mandatory("", "tt8"), &expiring("lost", "0"));
    c.wait_confirm(1);
    assert_eq!(counts(&mut c, "tt8").0, 0);
    c.consume(1, "tt8", "t");
    c.publish(1, "", "tt8", &expiring("taken", "0"));
    assert_eq!(c.next_delivery(1).message.body_text(), "taken");
}

/// TT-9, AK-16: the clock goes on while a message is unacked, and strikes at its requeue.
#[test]
fn requeue_keeps_the_first_expiry() {
    at_some_pace(Duration::from_millis(300), |time_to_live| {
        let mut c = client();
        let ttl_ms = i32::try_from(time_to_live.as_millis()).expect("some seconds");
        c.call::<queue::DeclareOk>(1, q_with("tt9", [("x-message-ttl", int(ttl_ms))]));
        let begun = now();
        fill(&mut c, "tt9", &["m"]);
        let got = c.get(1, "tt9");
        let is_late = begun.elapsed() >= time_to_live;
        assert!(got.is_some() || is_late, "its time is not over");
        if let Some(got) = &got {
            std::thread::sleep(time_to_live + Duration::from_millis(100));
            c.nack(1, got.tag, true);
            assert!(c.get(1, "tt9").is_none());
            assert_eq!(counts(&mut c, "tt9").0, 0);
        }
        c.queue_delete(1, "tt9");
        got.map_or(Pace::TooSlow, |_| Pace::Quick)
    });
}

/// TT-12: without a dead-letter exchange what expires is just gone.
#[test]
fn expired_without_a_dead_letter_exchange_is_gone() {
    let mut c = client();
    c.queue_declare(1, "tt12", q(""));
    c.confirm_select(1);
    let message = Message::with("m", |properties| {
        properties.set_expiration(Some(text("20")));
    });
    c.publish(1, "", "tt12", &message);
    c.wait_confirm(1);
    wait_ready(&mut c, "tt12", 0);
    assert!(c.get(1, "tt12").is_none());
}
