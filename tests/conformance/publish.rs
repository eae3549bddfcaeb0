//! Section 10 and the framing of bodies.

use bytes::Bytes;
use stratamq::amqp::field_table::FieldTable;
use stratamq::amqp::method::{basic, channel};
use stratamq::amqp::properties::PropertiesBuilder;

use super::stage::*;
use crate::support::raw::{Message, durable, text};

/// PB-1, CC-6, TT-2, LM-11 and the publish rows of 4.4.
#[test]
fn bad_publishes_close_the_channel() {
    let mut c = client();
    let plain = Message::plain("m");
    publish_refused(
        &mut c,
        publish("pb.none", ""),
        &plain,
        404,
        "NOT_FOUND - no exchange 'pb.none' in vhost '/'",
    );
    let user = Message::with("m", |properties| {
        properties.set_user_id(Some(text("bob")));
    });
    publish_refused(
        &mut c,
        publish("", ""),
        &user,
        406,
        "PRECONDITION_FAILED - user_id property set to 'bob' but authenticated user was 'guest'",
    );
    for (expiration, reason) in [
        ("abc", "no_integer"),
        ("", "no_integer"),
        ("-1", "{value_negative,-1}"),
        ("5x", "{leftover_string,\"x\"}"),
        ("315360000001", "{value_too_large,315360000001}"),
    ] {
        let message = Message::with("m", |properties| {
            properties.set_expiration(Some(text(expiration)));
        });
        let text = format!("PRECONDITION_FAILED - invalid expiration '{expiration}': {reason}");
        publish_refused(&mut c, publish("", ""), &message, 406, &text);
    }
}

/// Section 4.5.
#[test]
fn immediate_is_not_implemented() {
    let mut c = client();
    let immediate = basic::Publish {
        immediate: true,
        ..publish("", "")
    };
    send(&mut c, 1, immediate, &Message::plain("m"));
    connection_closed(
        &mut c,
        540,
        "NOT_IMPLEMENTED - immediate=true",
        basic::Publish::ID,
    );
}

/// PB-4, PB-5, PB-10, CF-5, CT-1.
#[test]
fn mandatory_messages_without_a_queue_come_back_before_their_confirm() {
    let mut c = client();
    c.confirm_select(1);
    let message = Message::with("the body", |properties| {
        properties
            .set_message_id(Some(text("id")))
            .set_header("h", int(1));
    });
    send(&mut c, 1, publish("amq.direct", "pb5.none"), &message);
    assert!(matches!(
        c.next(1).method,
        stratamq::amqp::method::Method::BasicAck(_)
    ));
    send(&mut c, 1, mandatory("amq.direct", "pb5.none"), &message);
    let returned = c.next(1);
    let stratamq::amqp::method::Method::BasicReturn(told) = returned.method else {
        panic!("the return comes first: {returned:?}");
    };
    assert_eq!(
        (told.reply_code, told.reply_text.as_str()),
        (312, "NO_ROUTE")
    );
    assert_eq!(
        (told.exchange.as_str(), told.routing_key.as_str()),
        ("amq.direct", "pb5.none")
    );
    assert_eq!(returned.message, Some(message));
    let stratamq::amqp::method::Method::BasicAck(ack) = c.next(1).method else {
        panic!("then the confirm");
    };
    assert_eq!(ack.delivery_tag, 2);
}

/// PP-1, VD-14: all fourteen properties; a delivery mode that means nothing stays as it is.
#[test]
fn properties_are_delivered_as_published() {
    let mut c = client();
    c.queue_declare(1, "pp1", q(""));
    let mut all = PropertiesBuilder::new();
    all.set_content_type(Some(text("text/plain")))
        .set_content_encoding(Some(text("utf-8")))
        .set_headers(Some(table([("k", string("v"))])))
        .set_delivery_mode(Some(5))
        .set_priority(Some(9))
        .set_correlation_id(Some(text("corr")))
        .set_reply_to(Some(text("back")))
        .set_expiration(Some(text("60000")))
        .set_message_id(Some(text("mid")))
        .set_timestamp(Some(0))
        .set_message_type(Some(text("type")))
        .set_user_id(Some(text("guest")))
        .set_app_id(Some(text("app")))
        .set_cluster_id(Some(text("cluster")));
    let mut empty_headers = PropertiesBuilder::new();
    empty_headers.set_headers(Some(FieldTable::new()));
    for properties in [
        PropertiesBuilder::new().build(),
        empty_headers.build(),
        all.build(),
    ] {
        let message = Message {
            properties,
            body: Bytes::from_static(b"m"),
        };
        c.publish(1, "", "pp1", &message);
        settle(&mut c, 1);
        let got = c.get(1, "pp1").expect("a message");
        assert_eq!(got.message, message);
    }
}

/// FR-5, PB-3: a client that sends far more than is read at once, small and large messages, on two channels, and answers and
/// questions between them. Each one comes out as it went in, in the order of its channel.
#[test]
fn a_flood_of_all_sizes_comes_out_in_order() {
    let mut c = client();
    c.open_channel(2);
    c.confirm_select(2);
    for (channel, queue) in [(1, "flood.1"), (2, "flood.2")] {
        c.queue_declare(channel, queue, q(""));
    }
    let body = |index: usize| {
        let len = match index {
            _ if index % 1000 == 999 => 200_000,
            _ if index % 400 == 399 => 33_000 + index,
            _ if index.is_multiple_of(7) => index % 40,
            _ => 900 + index % 300,
        };
        let text = format!("{index:08}");
        let bytes = text.bytes().chain(std::iter::repeat(b'x'));
        bytes.take(8 + len).collect::<Vec<u8>>()
    };
    let of_channel =
        |channel: u16| (0..6000).filter(move |index| index / 50 % 2 == usize::from(channel - 1));
    for index in 0..6000 {
        let channel = 1 + u16::from(index / 50 % 2 == 1);
        let message = Message::plain(body(index));
        c.push_publish(channel, "", &format!("flood.{channel}"), &message);
        if index.is_multiple_of(333) {
            c.push(1, channel::Flow { active: true });
        }
    }
    c.flush().expect("the broker reads");
    for _ in (0..6000).step_by(333) {
        c.expect::<channel::FlowOk>(1);
    }
    c.wait_confirms_upto(2, 3000);
    for channel in [1, 2] {
        settle(&mut c, channel);
        let queue = format!("flood.{channel}");
        let consume = basic::Consume {
            no_ack: true,
            ..consume(&queue, "")
        };
        c.call::<basic::ConsumeOk>(channel, consume);
        for index in of_channel(channel) {
            let delivered = c.next_delivery(channel);
            assert!(delivered.message.body == body(index), "{index} of {queue}");
        }
    }
}

/// FR-5, FR-7, PB-3: bodies of every awkward length come back whole, in frames as large as agreed.
#[test]
fn bodies_of_every_length_come_back_whole() {
    let mut c = client();
    c.queue_declare(1, "fr5", crate::support::raw::durable());
    c.confirm_select(1);
    let payload_max = 131_072 - 8;
    for (round, length) in [
        0,
        1,
        payload_max - 1,
        payload_max,
        payload_max + 1,
        2 * payload_max,
        1 << 20,
        16 << 20,
    ]
    .into_iter()
    .enumerate()
    {
        let body: Vec<u8> = (0..length)
            .map(|at: usize| u8::try_from(at * 7 % 251).expect("small"))
            .collect();
        let message = match round % 2 {
            0 => Message::plain(body),
            _ => Message::persistent(body),
        };
        c.publish(1, "", "fr5", &message);
        c.wait_confirm(1);
        let got = c.get(1, "fr5").expect("a message");
        assert!(
            got.message == message,
            "{length} bytes are not what came back"
        );
        c.ack(1, got.tag);
    }
    c.queue_delete(1, "fr5");
}

/// FR-5: exact frame sizes, seen from below.
#[test]
fn a_full_last_frame_is_not_followed_by_an_empty_one() {
    use stratamq::amqp::frame::FrameKind;
    let mut c = crate::support::raw::Client::login(
        address(),
        &crate::support::raw::Login {
            frame_max: 4096,
            ..Default::default()
        },
    );
    c.open_channel(1);
    c.queue_declare(1, "fr5.frames", q(""));
    for (length, expected) in [
        (0, vec![]),
        (4088, vec![4088]),
        (4089, vec![4088, 1]),
        (8176, vec![4088, 4088]),
    ] {
        c.publish(1, "", "fr5.frames", &Message::plain(vec![7; length]));
        c.send(
            1,
            basic::Get {
                no_ack: true,
                ..get("fr5.frames")
            },
        );
        // What follows the message shows its end.
        c.send(1, basic::Qos::default());
        let mut frames = Vec::new();
        loop {
            let frame = c.try_next_frame().expect("a frame");
            match frame.kind {
                FrameKind::Body => frames.push(frame.payload.len()),
                FrameKind::Method if frame.payload.starts_with(&[0, 60, 0, 11]) => break,
                _ => {}
            }
        }
        assert_eq!(frames, expected, "{length} bytes");
    }
}

/// PB-3, VD-2: the limit is that of today's RabbitMQ.
#[test]
fn one_byte_more_than_the_largest_message_closes_the_channel() {
    let mut c = client();
    publish_refused(
        &mut c,
        publish("", "pb3"),
        &Message::plain(vec![0; (16 << 20) + 1]),
        406,
        "PRECONDITION_FAILED - message size 16777217 is larger than configured max size 16777216",
    );
    settle(&mut c, 1);
}

/// FR-6.
#[test]
fn empty_body_frames_are_skipped() {
    use stratamq::amqp::frame::FrameKind;
    let mut c = client();
    c.queue_declare(1, "fr6", q(""));
    c.send(1, publish("", "fr6"));
    c.send_frame(
        FrameKind::Header,
        1,
        b"\x00\x3c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00",
    );
    for part in [&b""[..], b"ab", b"", b"cd"] {
        c.send_frame(FrameKind::Body, 1, part);
    }
    settle(&mut c, 1);
    assert_eq!(drain(&mut c, "fr6"), ["abcd"]);
}

/// PB-9, PB-1: a publish has no answer of its own, and a consumer may have the message before its publisher is told.
#[test]
fn consumers_do_not_wait_for_confirms() {
    let mut c = client();
    c.queue_declare(1, "pb9", durable());
    c.consume(1, "pb9", "t");
    c.open_channel(2);
    c.confirm_select(2);
    c.publish(2, "", "pb9", &Message::persistent("m"));
    // In whichever order they come, both come.
    assert_eq!(c.next_delivery(1).message.body_text(), "m");
    assert_eq!(c.wait_confirm(2).delivery_tag, 1);
    c.queue_delete(1, "pb9");
}
