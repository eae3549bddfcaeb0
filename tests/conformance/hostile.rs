//! Sections 1 and 4.3: bytes that no client should send. Each case runs beside a healthy connection.

use stratamq::amqp::frame::FrameKind;
use stratamq::amqp::method::{MethodId, basic, connection, queue};

use super::stage::*;
use crate::support::raw::{Client, Message};

/// A content header: class 60, that body size, no properties.
fn header(body_size: u64) -> Vec<u8> {
    let mut payload = vec![0, 60, 0, 0];
    payload.extend_from_slice(&body_size.to_be_bytes());
    payload.extend_from_slice(&[0, 0]);
    payload
}

/// What `provoke` does to a connection with channel 1 open ends it like that, and does not disturb another one.
#[track_caller]
fn check(provoke: impl FnOnce(&mut Client), code: u16, reply_text: &str, id: MethodId) {
    let mut healthy = client();
    let healthy_queue = healthy
        .queue_declare(1, "", crate::support::raw::exclusive())
        .queue;
    let mut c = client();
    provoke(&mut c);
    connection_closed(&mut c, code, reply_text, id);
    fill(&mut healthy, healthy_queue.as_str(), &["m"]);
    assert_eq!(drain(&mut healthy, healthy_queue.as_str()), ["m"]);
}

/// Section 4.3, FR-1, FR-11, FR-12: frames.
#[test]
fn broken_frames_end_the_connection() {
    let none = MethodId::NONE;
    let bytes = |bytes: &'static [u8]| move |c: &mut Client| c.send_bytes(bytes).expect("sent");
    check(
        bytes(b"\x01\x00\x01\x00\x00\x00\x05\x00\x14\x00\x14\x01\xcd"),
        501,
        "FRAME_ERROR - type 1, all octets = <<0,20,0,20,1>>: {invalid_frame_end_marker,205}",
        none,
    );
    check(
        bytes(b"\x00\x00\x01\x00\x00\x00\x0a1234567890\xce"),
        501,
        "FRAME_ERROR - type 0, all octets = <<\"1234567890\">>: unknown_frame",
        none,
    );
    check(
        bytes(b"\x05\x00\x01\x00\x00\x00\x1412345678901234567890\xce"),
        501,
        "FRAME_ERROR - type 5, first 16 octets = <<\"1234567890123456\">>: unknown_frame",
        none,
    );
    check(
        bytes(b"\x03\x00\x01\x00\x02\x00\x01"),
        501,
        "FRAME_ERROR - type 3, all octets = <<>>: {frame_too_large,131073,131064}",
        none,
    );
    check(
        |c| c.send_frame(FrameKind::Heartbeat, 1, b""),
        505,
        "UNEXPECTED_FRAME - type 8, all octets = <<>>",
        none,
    );
    check(
        bytes(b"\x01\x00\x01\x00\x00\x00\x03\x00\x0a\x00\xce"),
        501,
        "FRAME_ERROR - type 1, all octets = <<0,10,0>>: unknown_frame",
        none,
    );
}

/// FR-11: a heartbeat that carries something.
#[test]
fn a_heartbeat_with_a_payload_ends_the_connection() {
    let mut c = client();
    c.send_frame(FrameKind::Heartbeat, 0, b"x");
    assert_eq!(c.wait_connection_close().reply_code, 501);
}

/// Section 4.3, FR-8, FR-9: contents out of order.
#[test]
fn contents_out_of_order_end_the_connection() {
    let none = MethodId::NONE;
    let publishing = basic::Publish::ID;
    let no_method = "UNEXPECTED_FRAME - expected method frame, got non method frame instead";
    check(
        |c| c.send_frame(FrameKind::Header, 1, &header(1)),
        505,
        no_method,
        none,
    );
    check(
        |c| c.send_frame(FrameKind::Body, 1, b"x"),
        505,
        no_method,
        none,
    );
    let no_header = "UNEXPECTED_FRAME - expected content header for class 60, got non content header frame instead";
    let begin = |c: &mut Client| c.send(1, publish("", "hostile"));
    check(
        |c| {
            begin(c);
            c.send(1, get("x"));
        },
        505,
        no_header,
        publishing,
    );
    check(
        |c| {
            begin(c);
            c.send_frame(FrameKind::Body, 1, b"x");
        },
        505,
        no_header,
        publishing,
    );
    check(
        |c| {
            begin(c);
            c.send_frame(
                FrameKind::Header,
                1,
                b"\x00\x3c\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00",
            );
        },
        505,
        no_header,
        publishing,
    );
    check(
        |c| {
            begin(c);
            c.send_frame(
                FrameKind::Header,
                1,
                b"\x00\x0a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00",
            );
        },
        505,
        "UNEXPECTED_FRAME - expected content header for class 60, got one for class 10 instead",
        publishing,
    );
    check(
        |c| {
            begin(c);
            c.send_frame(FrameKind::Header, 1, &header(2));
            c.send(1, get("x"));
        },
        505,
        "UNEXPECTED_FRAME - expected content body, got non content body frame instead",
        publishing,
    );
    check(
        |c| {
            begin(c);
            c.send_frame(FrameKind::Header, 1, &header(2));
            c.send_frame(FrameKind::Body, 1, b"xxx");
        },
        501,
        "FRAME_ERROR - content body frame exceeds remaining content size",
        publishing,
    );
    check(
        |c| {
            begin(c);
            c.send_frame(FrameKind::Header, 1, &header(600_000_000));
        },
        501,
        "FRAME_ERROR - content body size 600000000 exceeds maximum allowed size 536870912",
        publishing,
    );
}

/// FR-7: a body after an empty content is one too many.
#[test]
fn a_body_behind_an_empty_content_ends_the_connection() {
    check(
        |c| {
            c.send(1, publish("", "hostile"));
            c.send_frame(FrameKind::Header, 1, &header(0));
            c.send_frame(FrameKind::Body, 1, b"x");
        },
        505,
        "UNEXPECTED_FRAME - expected method frame, got non method frame instead",
        MethodId::NONE,
    );
}

/// FR-13 to FR-15, section 4.3: methods.
#[test]
fn broken_methods_end_the_connection() {
    let unimplemented = "COMMAND_INVALID - unimplemented method";
    fatal(queue::DeclareOk::default(), 503, unimplemented);
    fatal(basic::Deliver::default(), 503, unimplemented);
    fatal(connection::Open::default(), 503, unimplemented);
    check(
        |c| c.send_frame(FrameKind::Method, 1, b"\x00\x14\x00\x0a\x01\xff"),
        501,
        "FRAME_ERROR - Malformed UTF-8 in shortstr",
        MethodId {
            class_id: 20,
            method_id: 10,
        },
    );
    for (payload, class_id, method_id) in [
        (&b"\x00\x32\x00\x1e\x00\x01\x05q"[..], 50, 30),
        (b"\x00\x3c\x00\x50\x00", 60, 80),
        // A table with a tag nobody knows, one that ends behind its end, and one cut off.
        (
            b"\x00\x32\x00\x0a\x00\x00\x01q\x00\x00\x00\x00\x04\x01k?\x00",
            50,
            10,
        ),
        (
            b"\x00\x32\x00\x0a\x00\x00\x01q\x00\x00\x00\x00\x07\x01kS\x7f\xff\xff\xff",
            50,
            10,
        ),
        (
            b"\x00\x32\x00\x0a\x00\x00\x01q\x00\xff\xff\xff\xff\x01",
            50,
            10,
        ),
    ] {
        let mut c = client();
        c.send_frame(FrameKind::Method, 1, payload);
        let close = c.wait_connection_close();
        let told = (close.reply_code, close.class_id, close.method_id);
        assert_eq!(told, (501, class_id, method_id), "{payload:?}");
        assert!(
            close
                .reply_text
                .as_str()
                .starts_with("FRAME_ERROR - cannot decode <<"),
            "{}",
            close.reply_text
        );
    }
    for id in [(50, 99), (99, 10), (60, 0), (0, 0), (65535, 65535)] {
        let (class_id, method_id): (u16, u16) = id;
        let mut c = client();
        let payload = [class_id.to_be_bytes(), method_id.to_be_bytes()].concat();
        c.send_frame(FrameKind::Method, 1, &payload);
        assert_eq!(c.wait_connection_close().reply_code, 503, "{id:?}");
    }
}

/// FT-5: tables as deep as a frame allows, in arguments and in headers: refused or taken, never more than that.
#[test]
fn deep_tables_hurt_nobody() {
    let mut healthy = client();
    for depth in [10_usize, 63, 100, 1000, 10_000] {
        let mut c = client();
        let mut nested = Vec::new();
        for _ in 0..depth {
            // The array that holds the one before.
            let mut outer = vec![b'A'];
            outer.extend_from_slice(&u32::try_from(nested.len()).expect("short").to_be_bytes());
            outer.extend_from_slice(&nested);
            nested = outer;
        }
        let mut table = vec![1, b'k'];
        table.extend_from_slice(&nested);
        let mut payload = b"\x00\x32\x00\x0a\x00\x00\x00\x04".to_vec();
        payload.extend_from_slice(&u32::try_from(table.len()).expect("short").to_be_bytes());
        payload.extend_from_slice(&table);
        c.send_frame(FrameKind::Method, 1, &payload);
        match c.try_expect::<queue::DeclareOk>(1) {
            Ok(_) => assert!(depth < 1000),
            Err(_) => assert!(
                depth > 60 && c.wait_connection_close().reply_code == 501,
                "{depth}"
            ),
        }
        settle(&mut healthy, 1);
    }
}

/// PP-4: properties that do not decode are refused, not stored.
#[test]
fn broken_properties_are_not_accepted() {
    for properties in [
        // Headers with an unknown tag; trailing bytes; continuation bit; truncated.
        &b"\x20\x00\x00\x00\x00\x04\x01k?\x00"[..],
        b"\x00\x00\x01",
        b"\x00\x01\x00\x00",
        b"\x80\x00\x09abc",
    ] {
        let mut c = client();
        c.queue_declare(1, "pp4", q(""));
        c.send(1, publish("", "pp4"));
        let mut payload = b"\x00\x3c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00".to_vec();
        payload.extend_from_slice(properties);
        c.send_frame(FrameKind::Header, 1, &payload);
        let code = c.wait_connection_close().reply_code;
        assert!(matches!(code, 501 | 502 | 541), "{properties:?}: {code}");
        assert_eq!(counts(&mut client(), "pp4").0, 0);
    }
}

/// FR-3, VD-1: before tune-ok a frame has at most 8192 bytes.
#[test]
fn a_large_frame_before_tune_ok_ends_the_handshake() {
    let mut c = Client::connect_tcp(address());
    c.send_bytes(b"AMQP\x00\x00\x09\x01").expect("sent");
    c.expect::<connection::Start>(0);
    // The end may come before all is written.
    let _ = c.send_bytes(b"\x01\x00\x00\x00\x00\x40\x00");
    assert!(c.read_to_end().expect("an end").is_empty());
}

/// FR-2: eight bytes of slack, not one more.
#[test]
fn a_payload_of_frame_max_is_tolerated() {
    let mut c = client();
    c.queue_declare(1, "fr2", q(""));
    c.send(1, publish("", "fr2"));
    c.send_frame(FrameKind::Header, 1, &header(131_072));
    c.send_frame(FrameKind::Body, 1, &vec![b'x'; 131_072]);
    settle(&mut c, 1);
    assert_eq!(counts(&mut c, "fr2").0, 1);
}

/// CN-63: a client that does not read is nobody else's trouble.
#[test]
fn a_client_that_does_not_read_holds_up_nobody() {
    let mut idle = client();
    idle.queue_declare(1, "cn63", q(""));
    idle.call::<basic::ConsumeOk>(
        1,
        basic::Consume {
            no_ack: true,
            ..consume("cn63", "t")
        },
    );
    let mut c = client();
    c.confirm_select(1);
    let message = Message::plain(vec![0; 256 << 10]);
    for _ in 0..40 {
        c.publish(1, "", "cn63", &message);
    }
    c.wait_confirms_upto(1, 40);
    c.close();
    for _ in 0..40 {
        assert_eq!(idle.next_delivery(1).message.body.len(), 256 << 10);
    }
}
