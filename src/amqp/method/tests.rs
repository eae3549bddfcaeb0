//! Methods: every one survives a round trip, alone and against a foreign codec; malformed ones are refused.

use super::*;
use crate::amqp::samples::Random;

fn payload(method: &Method) -> Bytes {
    let mut out = BytesMut::new();
    method.encode(&mut out, 9);
    let frame = frame::decode(&mut out, 0).unwrap().unwrap();
    assert_eq!((frame.kind, frame.channel), (FrameKind::Method, 9));
    assert!(out.is_empty());
    frame.payload
}

fn short(text: &'static str) -> ShortString {
    ShortString::from_static(text)
}

#[test]
fn every_method_survives_encoding_and_decoding() {
    let mut random = Random::new(1);
    for _ in 0..20 {
        for method in samples(&mut random) {
            assert_eq!(Method::decode(&payload(&method)), Ok(method));
        }
    }
}

/// Our table and that of a client written by others cannot have the same mistake by accident. The other
/// one does not keep deprecated arguments such as the ticket, so equality is asked of what it writes.
#[test]
fn a_foreign_codec_reads_and_writes_every_method_alike() {
    use lapin::protocol::{gen_class, parse_class};
    use std::io::Cursor;

    let mut random = Random::new(2);
    for method in (0..20).flat_map(|_| samples(&mut random)) {
        let ours = payload(&method);
        let (rest, foreign) = parse_class(&ours[..]).expect("a method lapin knows");
        assert!(rest.is_empty(), "{method:?}: {rest:?}");
        let id = MethodId {
            class_id: foreign.get_amqp_class_id(),
            method_id: foreign.get_amqp_method_id(),
        };
        assert_eq!(id, method.id());
        let mut theirs = vec![0; ours.len()];
        let written = gen_class(&foreign)(Cursor::new(&mut theirs[..]).into()).unwrap();
        let count = usize::try_from(written.write.position()).unwrap();
        theirs.truncate(count);
        let again = Method::decode(&Bytes::from(theirs.clone()));
        let again = again.expect("lapin writes what we read");
        assert_eq!(payload(&again), theirs, "{method:?}");
        assert_eq!(parse_class(&payload(&again)[..]).unwrap().1, foreign);
    }
}

#[track_caller]
fn check_bytes(method: impl Into<Method>, expected: &[u8]) {
    let method = method.into();
    assert_eq!(payload(&method), expected, "{method:?}");
    let decoded = Method::decode(&Bytes::copy_from_slice(expected));
    assert_eq!(decoded, Ok(method));
}

/// FR-16.
#[test]
fn bits_are_packed_lowest_first_and_other_arguments_end_the_octet() {
    let declare = queue::Declare {
        ticket: 1,
        queue: short("q"),
        durable: true,
        nowait: true,
        ..Default::default()
    };
    check_bytes(
        declare,
        b"\x00\x32\x00\x0a\x00\x01\x01q\x12\x00\x00\x00\x00",
    );
    let declare = exchange::Declare {
        exchange: short("x"),
        kind: short("t"),
        passive: true,
        internal: true,
        ..Default::default()
    };
    check_bytes(
        declare,
        b"\x00\x28\x00\x0a\x00\x00\x01x\x01t\x09\x00\x00\x00\x00",
    );
    let deliver = basic::Deliver {
        consumer_tag: short("c"),
        delivery_tag: 258,
        redelivered: true,
        exchange: short(""),
        routing_key: short("k"),
    };
    check_bytes(
        deliver,
        b"\x00\x3c\x00\x3c\x01c\x00\x00\x00\x00\x00\x00\x01\x02\x01\x00\x01k",
    );
    let nack = basic::Nack {
        delivery_tag: 3,
        multiple: false,
        requeue: true,
    };
    check_bytes(
        nack,
        b"\x00\x3c\x00\x78\x00\x00\x00\x00\x00\x00\x00\x03\x02",
    );
    check_bytes(exchange::UnbindOk {}, b"\x00\x28\x00\x33");
}

#[test]
fn ids_names_and_senders_are_those_of_the_specification() {
    #[track_caller]
    fn check(method: impl Into<Method>, name: &str, id: (u16, u16), sender: Sender) {
        let method = method.into();
        assert_eq!(method.name(), name);
        assert_eq!(method.id().name(), Some(name));
        assert_eq!((method.id().class_id, method.id().method_id), id);
        assert_eq!(method.sender(), sender);
        assert_eq!(method.is_from_client(), sender != Sender::Server);
    }
    check(
        queue::Declare::default(),
        "queue.declare",
        (50, 10),
        Sender::Client,
    );
    check(
        queue::DeclareOk::default(),
        "queue.declare-ok",
        (50, 11),
        Sender::Server,
    );
    check(
        basic::Deliver::default(),
        "basic.deliver",
        (60, 60),
        Sender::Server,
    );
    check(
        basic::Cancel::default(),
        "basic.cancel",
        (60, 30),
        Sender::Either,
    );
    check(
        connection::Close::default(),
        "connection.close",
        (10, 50),
        Sender::Either,
    );
    check(
        confirm::Select::default(),
        "confirm.select",
        (85, 10),
        Sender::Client,
    );
    assert_eq!(MethodId::ALL.len(), 66);
    assert_eq!(
        MethodId {
            class_id: 60,
            method_id: 61
        }
        .to_string(),
        "60.61"
    );
}

#[test]
fn four_methods_carry_content() {
    let carriers: Vec<_> = samples(&mut Random::new(3))
        .iter()
        .filter(|method| method.carries_content())
        .map(Method::name)
        .collect();
    let expected = [
        "basic.publish",
        "basic.return",
        "basic.deliver",
        "basic.get-ok",
    ];
    assert_eq!(carriers, expected);
}

#[track_caller]
fn check_refused(payload: &'static [u8], text: &str, id: (u16, u16), code: ConnectionReplyCode) {
    let error = Method::decode(&Bytes::from_static(payload)).expect_err("a bad method");
    assert_eq!(error.to_string(), text);
    assert_eq!((error.id().class_id, error.id().method_id), id);
    assert_eq!(error.reply_code(), code);
}

#[test]
fn bad_methods_get_rabbitmqs_texts() {
    use ConnectionReplyCode::{CommandInvalid, FrameError};
    let text = "type 1, all octets = <<0,10,0>>: unknown_frame";
    check_refused(b"\x00\x0a\x00", text, (0, 0), FrameError);
    check_refused(
        b"\x00\x32\x00\x63",
        "unknown method 50.99",
        (50, 99),
        CommandInvalid,
    );
    check_refused(
        b"\x00\x63\x00\x0a",
        "unknown method 99.10",
        (99, 10),
        CommandInvalid,
    );
    let text = "cannot decode <<0,1,5,113>>";
    check_refused(b"\x00\x32\x00\x1e\x00\x01\x05q", text, (50, 30), FrameError);
    // An argument too many.
    check_refused(
        b"\x00\x5a\x00\x0a\x07",
        "cannot decode <<7>>",
        (90, 10),
        FrameError,
    );
    let text = "Malformed UTF-8 in shortstr";
    check_refused(b"\x00\x14\x00\x0a\x01\xff", text, (20, 10), FrameError);
}

#[test]
fn every_method_cut_anywhere_is_refused() {
    for method in samples(&mut Random::new(4)) {
        let whole = payload(&method);
        for cut in 0..whole.len() {
            assert!(Method::decode(&whole.slice(..cut)).is_err(), "{method:?}");
        }
    }
}
