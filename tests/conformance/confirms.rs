//! Section 11: publisher confirms.

use stratamq::amqp::method::{Method, basic, confirm, tx};

use super::stage::*;
use crate::support::raw::{Client, Message, durable, text};

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

/// CF-6, CF-9, CT-6, CT-10, LL-5, LL-7, PB-6: one refusing queue makes it a nack, no return; the other keeps its copy. There is no
/// other reason for a nack: a queue is no process that could be gone.
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

/// CF-5, CF-13, CF-14: confirms do not wait for consumers, nor do acks wait for confirms; a nack says requeue, which means
/// nothing to a publisher.
#[test]
fn confirms_and_acks_have_nothing_to_do_with_each_other() {
    let mut c = client();
    c.queue_declare(
        1,
        "cf13",
        q_with(
            "",
            [
                ("x-max-length", int(1)),
                ("x-overflow", string("reject-publish")),
            ],
        ),
    );
    c.confirm_select(1);
    c.publish(1, "", "cf13", &Message::plain("kept"));
    assert_eq!(c.wait_confirm(1).delivery_tag, 1);
    c.publish(1, "", "cf13", &Message::plain("refused"));
    let nack: basic::Nack = c.expect(1);
    assert_eq!((nack.delivery_tag, nack.requeue), (2, true));
    // The message is not acknowledged; the next publish is confirmed all the same.
    let held = c.get(1, "cf13").expect("the first one");
    c.publish(1, "", "cf13", &Message::plain("next"));
    assert_eq!(c.wait_confirm(1).delivery_tag, 3);
    c.ack(1, held.tag);
    assert_eq!(drain(&mut c, "cf13"), ["next"]);
}

/// CF-10, CT-9: what is purged, expired or deleted before anybody took it counts as confirmed.
#[test]
fn what_left_its_queue_is_confirmed() {
    let mut c = client();
    c.open_channel(2);
    c.confirm_select(2);
    for name in ["cf10.purged", "cf10.deleted"] {
        c.queue_declare(1, name, durable());
        for _ in 0..20 {
            c.push_publish(2, "", name, &Message::persistent("m"));
        }
        c.flush().expect("the broker reads");
    }
    let dead = Message::with("m", |properties| {
        properties
            .set_delivery_mode(Some(2))
            .set_expiration(Some(text("0")));
    });
    c.publish(2, "", "cf10.purged", &dead);
    c.try_purge(1, "cf10.purged").expect("purge-ok");
    c.queue_delete(1, "cf10.deleted");
    c.wait_confirms_upto(2, 41);
    c.queue_delete(1, "cf10.purged");
}
