//! Field tables and properties as others write them: section 1.3, and what of section 1.2 concerns headers.

use stratamq::amqp::field_table::FieldValue;
use stratamq::amqp::frame::FrameKind;
use stratamq::amqp::method::queue;

use super::stage::*;
use crate::support::raw::{Client, Delivered, Message, text};

/// A length that a test's bytes have, as the wire has it.
fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).expect("short").to_be_bytes()
}

/// `queue.declare` of a transient queue whose arguments are these bytes.
fn declare_with(name: &str, arguments: &[u8]) -> Vec<u8> {
    let mut payload = vec![0, 50, 0, 10, 0, 0];
    payload.push(u8::try_from(name.len()).expect("a short name"));
    payload.extend_from_slice(name.as_bytes());
    payload.push(0);
    payload.extend_from_slice(&length(arguments));
    payload.extend_from_slice(arguments);
    payload
}

/// Publishes a message with these bytes as its headers and takes it out again.
#[track_caller]
fn round_trip(c: &mut Client, queue: &str, headers: &[u8]) -> Delivered {
    c.send(1, publish("", queue));
    let mut header = b"\x00\x3c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x20\x00".to_vec();
    header.extend_from_slice(&length(headers));
    header.extend_from_slice(headers);
    c.send_frame(FrameKind::Header, 1, &header);
    settle(c, 1);
    wait_ready(c, queue, 1);
    c.get(1, queue).expect("the message")
}

/// FT-1, FT-2: any bytes are a name, any order will do, and of two entries with one name the first counts.
#[test]
fn names_in_tables_are_bytes_and_the_first_of_two_counts() {
    let mut c = client();
    let twice =
        b"\x0cx-max-lengthI\x00\x00\x00\x01\x02\xff\xfeV\x01aV\x0cx-max-lengthI\x00\x00\x00\x09";
    c.send_frame(FrameKind::Method, 1, &declare_with("ft2", twice));
    c.expect::<queue::DeclareOk>(1);
    fill(&mut c, "ft2", &["a", "b", "c"]);
    wait_ready(&mut c, "ft2", 1);
    let differs = "PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'ft2' in vhost '/': \
                   received '9' but current is '1'";
    refused(
        &mut c,
        q_with("ft2", [("x-max-length", int(9))]),
        406,
        differs,
    );
}

/// PP-2, VD-13: headers arrive as the same map; here even as the same bytes, which nobody is promised.
#[test]
fn headers_arrive_as_the_same_map() {
    let mut c = client();
    c.queue_declare(1, "pp2", q(""));
    // Not in order, one name twice, a 64-bit integer under its other tag, a boolean that is neither 0 nor 1.
    let headers = b"\x01zS\x00\x00\x00\x01v\x01aL\x00\x00\x00\x00\x00\x00\x00\x07\x01zI\x00\x00\x00\x02\x01bt\x05";
    let got = round_trip(&mut c, "pp2", headers);
    let table = got.message.properties.headers().expect("headers");
    assert_eq!(table.get("z"), Some(&string("v")));
    assert_eq!(table.get("a"), Some(&FieldValue::Long(7)));
    assert_eq!(table.get("b"), Some(&FieldValue::Bool(true)));
}

/// PP-3: an expiration is delivered as the plain number that it is.
#[test]
fn an_expiration_is_delivered_as_a_plain_number() {
    let mut c = client();
    c.queue_declare(1, "pp3", q(""));
    for (published, delivered) in [
        ("60000", "60000"),
        ("+60000", "60000"),
        ("0060000", "60000"),
    ] {
        let message = Message::with("m", |properties| {
            properties
                .set_message_id(Some(text("id")))
                .set_expiration(Some(text(published)));
        });
        c.publish(1, "", "pp3", &message);
        wait_ready(&mut c, "pp3", 1);
        let got = c.get(1, "pp3").expect("the message");
        let properties = &got.message.properties;
        assert_eq!(properties.expiration(), Some(delivered.as_bytes()));
        assert_eq!(properties.message_id(), Some(&b"id"[..]));
    }
    // Nothing, whatever its sign: over at once.
    for nothing in ["0", "000", "-0", "+0"] {
        let message = Message::with("m", |properties| {
            properties.set_expiration(Some(text(nothing)));
        });
        c.publish(1, "", "pp3", &message);
        wait_ready(&mut c, "pp3", 0);
        assert!(c.get(1, "pp3").is_none(), "{nothing}");
    }
}
