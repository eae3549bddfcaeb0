//! Section 11: publisher confirms.

use stratamq::amqp::method::{Method, confirm, tx};

use super::stage::*;
use crate::support::raw::{Client, Message, durable};

/// Reads confirms until all numbers up to `last` are answered: the nacked ones.
#[track_caller]
fn outcomes(c: &mut Client, last: u64) -> Vec<u64> {
    let mut open: std::collections::BTreeSet<u64> = (1..=last).collect();
    let mut nacked = Vec::new();
    while !open.is_empty() {
        let (tag, multiple, is_nack) = match c.next(1).method {
            Method::BasicAck(ack) => (ack.delivery_tag, ack.multiple, false),
            Method::BasicNack(nack) => {
                assert!(nack.requeue, "CF-14");
                (nack.delivery_tag, nack.multiple, true)
            }
            other => panic!("no confirm: {other:?}"),
        };
        let settled: Vec<u64> = match multiple {
            true => open.range(..=tag).copied().collect(),
            false => vec![tag],
        };
        for number in settled {
            assert!(open.remove(&number), "{number} is answered twice");
            if is_nack {
                nacked.push(number);
            }
        }
    }
    nacked
}

/// CF-1.
#[test]
fn confirm_select_may_be_repeated_and_excludes_tx() {
    let mut c = client();
    c.confirm_select(1);
    c.confirm_select(1);
    c.send(1, confirm::Select { nowait: true });
    settle(&mut c, 1);
    c.send(1, tx::Select {});
    let text = "PRECONDITION_FAILED - cannot switch from confirm to tx mode";
    channel_closed(&mut c, 1, 406, text, tx::Select::ID);
    c.open_channel(2);
    c.tx_select(2);
    c.send(2, confirm::Select { nowait: true });
    let text = "PRECONDITION_FAILED - cannot switch from tx to confirm mode";
    channel_closed(&mut c, 2, 406, text, confirm::Select::ID);
}

/// CF-2, CF-3, CH-10: numbers count from the first publish after confirm.select, each answered once.
#[test]
fn every_publish_is_answered_exactly_once() {
    let mut c = client();
    c.queue_declare(1, "cf2", durable());
    c.publish(1, "", "cf2", &Message::plain("before"));
    c.confirm_select(1);
    for round in 0..300 {
        let message = match round % 3 {
            0 => Message::plain("transient"),
            1 => Message::persistent("persistent"),
            _ => Message::persistent(vec![1; 10_000]),
        };
        let queue = if round % 5 == 0 { "cf2.none" } else { "cf2" };
        c.push_publish(1, "", queue, &message);
    }
    c.flush().expect("sent");
    assert!(outcomes(&mut c, 300).is_empty());
    silent(&mut c, 1);
    assert_eq!(c.queue_delete(1, "cf2"), 241);
}

/// CF-6, LL-5, LL-7, PB-6: one refusing queue makes it a nack, no return; the other keeps its copy.
#[test]
fn a_queue_that_refuses_makes_it_a_nack() {
    let mut c = client();
    c.call::<stratamq::amqp::method::exchange::DeclareOk>(1, x("cf6", "fanout"));
    let full = q_with(
        "cf6.full",
        [
            ("x-max-length", int(1)),
            ("x-overflow", string("reject-publish")),
        ],
    );
    c.call::<stratamq::amqp::method::queue::DeclareOk>(1, full);
    c.queue_declare(1, "cf6.open", durable());
    c.bind(1, "cf6.full", "cf6", "");
    c.bind(1, "cf6.open", "cf6", "");
    c.confirm_select(1);
    for _ in 0..4 {
        c.push(1, mandatory("cf6", ""));
        c.push_content(1, &Message::persistent("m"));
    }
    c.flush().expect("sent");
    assert_eq!(outcomes(&mut c, 4), [2, 3, 4]);
    assert_eq!(counts(&mut c, "cf6.full").0, 1);
    assert_eq!(counts(&mut c, "cf6.open").0, 4);
    c.queue_delete(1, "cf6.open");
}

/// CF-12, ER-6.
#[test]
fn nothing_is_confirmed_after_the_channel_was_closed() {
    let mut c = client();
    c.confirm_select(1);
    c.push_publish(1, "cf12.none", "", &Message::plain("m"));
    c.push_publish(1, "", "", &Message::plain("m"));
    c.flush().expect("sent");
    let text = "NOT_FOUND - no exchange 'cf12.none' in vhost '/'";
    c.expect_channel_close(1, 404, text);
    c.open_channel(1);
    silent(&mut c, 1);
}
