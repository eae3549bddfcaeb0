//! Publisher confirms and returns (CF, PB).

use super::support::*;
use crate::amqp::method::{Method, basic, channel, confirm, tx};
use crate::amqp::reply_code::ChannelReplyCode;
use crate::broker::command::{ConfirmAt, Lsn, Published};
use crate::broker::error::BrokerError;

fn confirming() -> Peer {
    let mut peer = Peer::with_channel();
    peer.method(1, confirm::Select { nowait: false }).serve();
    peer.expect(1, confirm::SelectOk {});
    peer
}

fn ack(delivery_tag: u64, multiple: bool) -> (u16, Method) {
    (
        1,
        basic::Ack {
            delivery_tag,
            multiple,
        }
        .into(),
    )
}

fn nack(delivery_tag: u64, multiple: bool) -> (u16, Method) {
    (
        1,
        basic::Nack {
            delivery_tag,
            multiple,
            requeue: true,
        }
        .into(),
    )
}

#[test]
fn confirm_mode_may_be_asked_for_twice_and_not_with_tx() {
    let mut peer = confirming();
    peer.method(1, confirm::Select { nowait: true }).serve();
    peer.expect_nothing();
    peer.method(1, tx::Select {}).serve();
    let text = "PRECONDITION_FAILED - cannot switch from confirm to tx mode";
    peer.expect_channel_close(1, 406, text, tx::Select::ID);
}

#[test]
fn confirms_come_in_publish_order_coalesced_and_when_durable() {
    let mut peer = confirming();
    let outcomes = [
        ConfirmAt::Now,
        ConfirmAt::Now,
        ConfirmAt::Nack,
        ConfirmAt::Durable(Lsn(5)),
        ConfirmAt::Now,
        ConfirmAt::Durable(Lsn(9)),
    ];
    peer.outcomes = outcomes.into_iter().rev().map(published).collect();
    (0..6).for_each(|_| sent(peer.publish(1, false, b"x")));
    peer.serve();
    peer.expect_all(&[ack(2, true), nack(3, false)]);
    assert_eq!(peer.session.first_pending_lsn(), Some(Lsn(5)));
    peer.session.handle_durable(Lsn(5));
    peer.expect_all(&[ack(5, true)]);
    peer.session.handle_durable(Lsn(20));
    peer.expect_all(&[ack(6, false)]);
    assert_eq!(peer.session.first_pending_lsn(), None);
}

#[test]
fn publishes_before_confirm_select_are_not_counted() {
    let mut peer = Peer::with_channel();
    peer.publish(1, false, b"x")
        .method(1, confirm::Select { nowait: true })
        .publish(1, false, b"y");
    // Even when the broker answers the first one only now.
    peer.serve();
    peer.expect_all(&[ack(1, false)]);
}

#[test]
fn a_mandatory_message_without_a_queue_comes_back_before_its_confirm() {
    let mut peer = confirming();
    let unroutable = Published {
        confirm: ConfirmAt::Now,
        is_unroutable: true,
    };
    peer.outcomes = vec![unroutable, unroutable];
    peer.publish(1, true, b"hello").serve();
    let mut frames = peer.frames();
    let confirm = frames.pop().expect("a confirm");
    assert_eq!(methods(&[confirm]), [ack(1, false)]);
    assert_eq!(frames.len(), 3, "return, header, body");
    let back = basic::Return {
        reply_code: 312,
        reply_text: short("NO_ROUTE"),
        exchange: short("x"),
        routing_key: short("key"),
    };
    assert_eq!(methods(&frames[..1]), [(1, back.into())]);
    assert_eq!(&frames[2].payload[..], b"hello");
    peer.publish(1, false, b"hello").serve();
    peer.expect_all(&[ack(2, false)]);
}

#[test]
fn a_refused_publish_closes_the_channel_and_nothing_more_is_confirmed_or_published() {
    let mut peer = confirming();
    peer.outcomes = vec![published(ConfirmAt::Durable(Lsn(5)))];
    peer.publish(1, false, b"one").serve();
    let error = BrokerError::channel(ChannelReplyCode::NotFound, "no exchange 'x' in vhost '/'");
    peer.publish_refusal = Some(error);
    peer.publish(1, false, b"two")
        .publish(1, false, b"three")
        .serve();
    let text = "NOT_FOUND - no exchange 'x' in vhost '/'";
    peer.expect_channel_close(1, 404, text, basic::Publish::ID);
    peer.expect_log(&["1 publish one", "1 publish two", "1 close, 0 unacked"]);
    assert!(!peer.session.is_open_channel(1));
    peer.session.handle_durable(Lsn(5));
    peer.expect_nothing();
}

#[test]
fn what_is_confirmed_already_is_told_before_close_ok() {
    let mut peer = confirming();
    peer.publish(1, false, b"x")
        .method(1, channel::Close::default())
        .serve();
    peer.expect_all(&[ack(1, false), (1, channel::CloseOk {}.into())]);
}

#[test]
fn channels_count_for_themselves() {
    let mut peer = confirming();
    peer.open(2);
    peer.method(2, confirm::Select { nowait: true });
    peer.publish(1, false, b"a")
        .publish(2, false, b"b")
        .publish(1, false, b"c")
        .serve();
    let other = (
        2,
        basic::Ack {
            delivery_tag: 1,
            multiple: false,
        }
        .into(),
    );
    peer.expect_all(&[ack(2, true), other]);
}
