//! Every error of frames (reference 4.3) and of channel methods that closes the connection (4.5).

use super::support::*;
use crate::amqp::method::{basic, channel, connection, queue, tx};
use crate::amqp::reply_code::ChannelReplyCode;
use crate::broker::command::ReplyBody;
use crate::broker::error::BrokerError;
use crate::session::SessionOptions;

/// On a connection with channel 1, what `send` sends closes it so.
#[track_caller]
fn check(send: impl FnOnce(&mut Peer), code: u16, text: &str, method: (u16, u16)) {
    let mut peer = Peer::with_channel();
    send(&mut peer);
    peer.serve();
    peer.expect_connection_close(code, text, method);
    assert_eq!(peer.log.last().map(String::as_str), Some("ended"));
}

fn begin_publish(peer: &mut Peer) -> &mut Peer {
    peer.method(1, basic::Publish::default())
}

#[test]
fn broken_frames_close_the_connection() {
    check(
        |peer| sent(peer.bytes(&[1, 0, 0, 0, 0, 0, 4, 0, 10, 0, 50, 205])),
        501,
        "FRAME_ERROR - type 1, all octets = <<0,10,0,50>>: {invalid_frame_end_marker,205}",
        (0, 0),
    );
    check(
        |peer| sent(peer.frame(0, 1, b"1234567890")),
        501,
        "FRAME_ERROR - type 0, all octets = <<\"1234567890\">>: unknown_frame",
        (0, 0),
    );
    check(
        |peer| sent(peer.frame(5, 1, b"12345678901234567")),
        501,
        "FRAME_ERROR - type 5, first 16 octets = <<\"1234567890123456\">>: unknown_frame",
        (0, 0),
    );
    check(
        |peer| sent(peer.bytes(&[3, 0, 1, 0, 2, 0, 1])),
        501,
        "FRAME_ERROR - type 3, all octets = <<>>: {frame_too_large,131073,131064}",
        (0, 0),
    );
    check(
        |peer| sent(peer.frame(8, 1, b"")),
        505,
        "UNEXPECTED_FRAME - type 8, all octets = <<>>",
        (0, 0),
    );
    check(
        |peer| sent(peer.frame(8, 0, b"x")),
        501,
        "FRAME_ERROR - type 8, all octets = <<\"x\">>: unknown_frame",
        (0, 0),
    );
    check(
        |peer| sent(peer.frame(1, 1, &[0, 10, 0])),
        501,
        "FRAME_ERROR - type 1, all octets = <<0,10,0>>: unknown_frame",
        (0, 0),
    );
}

#[test]
fn after_a_broken_frame_nothing_is_read_and_the_socket_closes_later() {
    let mut peer = Peer::with_channel();
    peer.bytes(&[1, 0, 0, 0, 0, 0, 0, 205])
        .method(0, connection::Close::default())
        .serve();
    assert_eq!(peer.frames().len(), 1);
    peer.method(0, connection::CloseOk {})
        .method(0, connection::Close::default())
        .serve();
    peer.expect_nothing();
    assert!(!peer.session.is_finished());
    assert!(peer.at(3000).session.is_finished());
}

#[test]
fn content_out_of_order_closes_the_connection() {
    let no_method = "UNEXPECTED_FRAME - expected method frame, got non method frame instead";
    check(|peer| sent(peer.header(1, 60, 1)), 505, no_method, (0, 0));
    check(|peer| sent(peer.frame(3, 1, b"x")), 505, no_method, (0, 0));
    let no_header = "UNEXPECTED_FRAME - expected content header for class 60, \
                     got non content header frame instead";
    check(
        |peer| sent(begin_publish(peer).method(1, tx::Select {})),
        505,
        no_header,
        (60, 40),
    );
    check(
        |peer| sent(begin_publish(peer).frame(3, 1, b"x")),
        505,
        no_header,
        (60, 40),
    );
    let weight = [0, 60, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    check(
        |peer| sent(begin_publish(peer).frame(2, 1, &weight)),
        505,
        no_header,
        (60, 40),
    );
    check(
        |peer| sent(begin_publish(peer).header(1, 10, 1)),
        505,
        "UNEXPECTED_FRAME - expected content header for class 60, got one for class 10 instead",
        (60, 40),
    );
    let no_body = "UNEXPECTED_FRAME - expected content body, got non content body frame instead";
    check(
        |peer| {
            sent(
                begin_publish(peer)
                    .header(1, 60, 1)
                    .method(1, tx::Select {}),
            )
        },
        505,
        no_body,
        (60, 40),
    );
    check(
        |peer| sent(begin_publish(peer).header(1, 60, 1).header(1, 60, 1)),
        505,
        no_body,
        (60, 40),
    );
    check(
        |peer| sent(begin_publish(peer).header(1, 60, 2).frame(3, 1, b"xyz")),
        501,
        "FRAME_ERROR - content body frame exceeds remaining content size",
        (60, 40),
    );
    check(
        |peer| sent(begin_publish(peer).header(1, 60, 600_000_000)),
        501,
        "FRAME_ERROR - content body size 600000000 exceeds maximum allowed size 536870912",
        (60, 40),
    );
}

#[test]
fn methods_of_servers_and_unknown_ones_are_refused() {
    let text = "COMMAND_INVALID - unimplemented method";
    check(
        |peer| sent(peer.method(1, queue::DeclareOk::default())),
        503,
        text,
        (50, 11),
    );
    check(
        |peer| sent(peer.method(1, basic::Deliver::default())),
        503,
        text,
        (60, 60),
    );
    check(
        |peer| sent(peer.method(1, channel::FlowOk::default())),
        503,
        text,
        (20, 21),
    );
    check(
        |peer| sent(peer.method(1, connection::Open::default())),
        503,
        text,
        (10, 40),
    );
    check(
        |peer| sent(peer.frame(1, 1, &[0, 60, 0, 99])),
        503,
        "COMMAND_INVALID - unknown method 60.99",
        (60, 99),
    );
}

#[test]
fn arguments_that_do_not_decode_close_the_connection() {
    check(
        |peer| sent(peer.frame(1, 1, &[0, 60, 0, 80, 1, 2])),
        501,
        "FRAME_ERROR - cannot decode <<1,2>>",
        (60, 80),
    );
    check(
        |peer| sent(peer.frame(1, 1, &[0, 50, 0, 30, 0, 0, 1, 255, 0])),
        501,
        "FRAME_ERROR - Malformed UTF-8 in shortstr",
        (50, 30),
    );
}

#[test]
fn channel_zero_takes_no_channel_methods() {
    let text = "CHANNEL_ERROR - unexpected method in connection state running";
    check(
        |peer| sent(peer.method(0, tx::Select {})),
        504,
        text,
        (90, 10),
    );
    check(
        |peer| sent(peer.method(0, start_ok(&[]))),
        504,
        text,
        (10, 11),
    );
    check(
        |peer| sent(peer.method(0, connection::Open::default())),
        504,
        text,
        (10, 40),
    );
}

#[test]
fn methods_that_close_the_connection() {
    let unopened = "CHANNEL_ERROR - expected 'channel.open'";
    check(
        |peer| sent(peer.method(2, tx::Select {})),
        504,
        unopened,
        (90, 10),
    );
    check(
        |peer| sent(peer.method(2, channel::CloseOk {})),
        504,
        unopened,
        (20, 41),
    );
    let second = "CHANNEL_ERROR - second 'channel.open' seen";
    check(
        |peer| sent(peer.method(1, channel::Open::default())),
        504,
        second,
        (20, 10),
    );
    check(
        |peer| {
            sent(peer.method(
                1,
                basic::Publish {
                    immediate: true,
                    ..Default::default()
                },
            ))
        },
        540,
        "NOT_IMPLEMENTED - immediate=true",
        (60, 40),
    );
    check(
        |peer| {
            sent(peer.method(
                1,
                basic::Qos {
                    prefetch_size: 1,
                    ..Default::default()
                },
            ))
        },
        540,
        "NOT_IMPLEMENTED - prefetch_size!=0 (1)",
        (60, 10),
    );
    check(
        |peer| sent(peer.method(1, basic::Recover { requeue: false })),
        540,
        "NOT_IMPLEMENTED - requeue=false",
        (60, 110),
    );
    check(
        |peer| sent(peer.method(1, basic::RecoverAsync { requeue: false })),
        540,
        "NOT_IMPLEMENTED - requeue=false",
        (60, 100),
    );
    check(
        |peer| sent(peer.method(1, channel::Flow { active: false })),
        540,
        "NOT_IMPLEMENTED - active=false",
        (20, 20),
    );
    let consume = || basic::Consume {
        queue: short("q"),
        consumer_tag: short("c"),
        ..Default::default()
    };
    let consuming = |peer: &mut Peer| {
        peer.method(1, consume()).serve();
        peer.frames();
        peer.method(1, consume());
    };
    let text = "NOT_ALLOWED - attempt to reuse consumer tag 'c'";
    check(consuming, 530, text, (60, 20));
}

#[test]
fn the_number_of_open_channels_is_limited_not_their_numbers() {
    let options = SessionOptions {
        channel_max: 2,
        ..SessionOptions::default()
    };
    let mut peer = Peer::new(options);
    peer.bytes(b"AMQP\x00\x00\x09\x01").method(0, start_ok(&[]));
    peer.method(
        0,
        connection::TuneOk {
            channel_max: 2,
            ..tune_ok()
        },
    );
    peer.method(0, connection::Open::default()).serve();
    peer.frames();
    peer.open(7);
    peer.open(65535);
    peer.method(3, channel::Open::default()).serve();
    let text =
        "NOT_ALLOWED - number of channels opened (2) has reached the negotiated channel_max (2)";
    peer.expect_connection_close(530, text, (0, 0));
}

#[test]
fn nothing_may_follow_a_commit_that_waits_for_the_disk() {
    let text = "CHANNEL_ERROR - unexpected command while processing 'tx.commit'";
    let pending = |peer: &mut Peer| {
        let body = ReplyBody::Committed { published: vec![] };
        peer.answers.push(reply(body, Some(9)));
        peer.method(1, tx::Select {})
            .method(1, tx::Commit {})
            .serve();
        peer.expect(1, tx::SelectOk {});
    };
    check(
        |peer| {
            pending(peer);
            peer.method(1, tx::Commit {});
        },
        504,
        text,
        (90, 20),
    );
    check(
        |peer| {
            pending(peer);
            peer.method(1, basic::Qos::default());
        },
        504,
        text,
        (60, 10),
    );
}

#[test]
fn long_texts_are_cut() {
    let mut peer = Peer::with_channel();
    peer.session.begin_shutdown(&"x".repeat(300));
    peer.serve();
    let text = format!("CONNECTION_FORCED - {}...", "x".repeat(232));
    assert_eq!(text.len(), 255);
    peer.expect_connection_close(320, &text, (0, 0));
}

/// Channel 1 with deliveries 1 to 3, on which the next publish is refused.
fn about_to_fail() -> Peer {
    let mut peer = Peer::with_channel();
    let consume = basic::Consume {
        queue: short("q"),
        consumer_tag: short("c"),
        ..Default::default()
    };
    peer.method(1, consume).serve();
    (1..=3).for_each(|seq| sent(peer.deliver(delivery(1, Some(1), seq))));
    peer.frames();
    peer.log.clear();
    let text = "no exchange 'x' in vhost '/'";
    peer.publish_refusal = Some(BrokerError::channel(ChannelReplyCode::NotFound, text));
    peer
}

#[test]
fn deliveries_acked_behind_a_refused_publish_are_given_back() {
    // The acks are ignored, as all that follows; but their deliveries must not be forgotten.
    let ack = |delivery_tag| basic::Ack {
        delivery_tag,
        multiple: false,
    };
    let mut peer = about_to_fail();
    peer.publish(1, false, b"a").method(1, ack(1));
    peer.publish(1, false, b"b").method(1, ack(3)).serve();
    let text = "NOT_FOUND - no exchange 'x' in vhost '/'";
    peer.expect_channel_close(1, 404, text, basic::Publish::ID);
    let (outcome, mut seqs) = peer.settled.pop().expect("the channel is closed");
    seqs.sort_unstable();
    assert_eq!((outcome.as_str(), seqs), ("Close", vec![1, 2, 3]));
    assert!(peer.settled.is_empty());
}

#[test]
fn a_command_behind_a_refused_publish_does_not_keep_the_channel_from_closing() {
    let get = basic::Get {
        queue: short("q"),
        ..Default::default()
    };
    let mut peer = about_to_fail();
    peer.publish(1, false, b"a").method(1, get).serve();
    let text = "NOT_FOUND - no exchange 'x' in vhost '/'";
    peer.expect_channel_close(1, 404, text, basic::Publish::ID);
}
