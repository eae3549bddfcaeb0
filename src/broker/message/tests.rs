//! A message is the same however it was made, and keeps no more memory alive than its own.

use super::stored::SHORT_MAX_BYTES;
use super::*;
use crate::amqp::properties::PropertiesBuilder;
use proptest::prelude::*;

fn parts(body: Vec<Bytes>) -> MessageParts {
    let mut properties = PropertiesBuilder::new();
    properties.set_delivery_mode(Some(2)).set_header("a", 1);
    MessageParts {
        exchange: ShortString::from_static("exchange"),
        routing_key: ShortString::from_static("key"),
        bcc: vec![ShortString::from_static("blind")],
        properties: properties.build(),
        body,
        has_deaths: true,
        is_rekeyed: true,
    }
}

#[track_caller]
fn check_round_trip(body: Vec<Bytes>) {
    let message = Message::from_parts(&parts(body));
    let payload = message.payload().concat();
    assert_eq!(crc32fast::hash(&payload), message.payload_crc());
    let back = Message::decode_payload(payload.into()).expect("written by us");
    assert_eq!(back.exchange(), message.exchange());
    assert_eq!(back.routing_key(), message.routing_key());
    assert_eq!(back.head_parts().bcc, message.head_parts().bcc);
    assert_eq!(back.properties(), message.properties());
    assert_eq!(back.body().concat(), message.body().concat());
    assert_eq!(back.body_len(), message.body_len());
    for message in [&message, &back] {
        assert_eq!(message.raw_exchange(), message.exchange().as_bytes());
        assert_eq!(message.raw_routing_key(), message.routing_key().as_bytes());
        assert_eq!(message.raw_properties(), message.properties().raw());
        let body = message.stored_body();
        let parts = body.parts.concat();
        let stored = [body.front, &parts[body.skip_bytes..]].concat();
        assert_eq!(stored, message.body().concat());
    }
    assert!(back.has_deaths() && back.is_rekeyed() && back.is_persistent());
}

#[test]
fn payload_round_trip() {
    for len in [
        0,
        1,
        COPIED_BODY_MAX_BYTES,
        COPIED_BODY_MAX_BYTES + 1,
        1 << 20,
    ] {
        let body = Bytes::from(vec![7; len]);
        check_round_trip(vec![body.clone()]);
        check_round_trip(vec![body.slice(..len / 2), body.slice(len / 2..)]);
    }
    check_round_trip(Vec::new());
}

/// Heads of some of these lie in the message, others beside it.
#[test]
fn however_it_is_made_a_message_is_the_same() {
    let names = b"\x01x\x03key";
    let mut properties = PropertiesBuilder::new();
    properties.set_delivery_mode(Some(2));
    properties.set_expiration(Some(ShortString::from_static("70")));
    let properties = properties.build();
    let of_body = |body: &[u8]| {
        Message::from_raw(&RawMessage {
            names,
            exchange_len: 1,
            routing_key_len: 3,
            properties: properties.raw(),
            checked: properties.checked(),
            body,
        })
    };
    for len in (0..100).chain([1024, COPIED_BODY_MAX_BYTES]) {
        let body: Vec<u8> = (0..=u8::MAX).cycle().take(len).collect();
        let message = of_body(&body);
        let again = of_body(b"another").with_body(&body);
        let [exchange, key] = ["x", "key"].map(ShortString::from_static);
        let parts = [Bytes::from(body.clone())];
        let new = Message::new(exchange, key, properties.clone(), parts);
        for other in [&again, &new] {
            assert_eq!(format!("{other:?}"), format!("{message:?}"));
        }
        assert_eq!(message.body().concat(), body);
        assert_eq!(message.body_len(), len);
        assert_eq!(
            (message.ttl_ms(), message.is_persistent()),
            (Some(70), true)
        );
        let payload = message.payload().concat();
        assert_eq!(message.payload_len(), payload.len());
        assert_eq!(message.payload_crc(), crc32fast::hash(&payload));
        let is_short = message.payload().parts.is_empty();
        assert_eq!(is_short, payload.len() <= SHORT_MAX_BYTES);
        let back = Message::decode_payload(payload.into()).expect("written by us");
        assert_eq!(back.body().concat(), body);
        assert_eq!((back.ttl_ms(), back.body_len()), (Some(70), len));
    }
}

#[test]
fn small_message_does_not_keep_its_read_buffer_alive_and_large_is_not_copied() {
    let buffer = Bytes::from(vec![1; 64 * 1024]);
    let small = Message::from_parts(&parts(vec![buffer.slice(..100)]));
    assert!(!buffer.as_ptr_range().contains(&small.body()[0].as_ptr()));
    let large = Message::from_parts(&parts(vec![buffer.slice(..40_000)]));
    assert!(buffer.as_ptr_range().contains(&large.body()[0].as_ptr()));
}

/// See (5) of the module.
#[test]
fn what_is_looked_at_is_no_slice_of_the_head() {
    let message = Message::from_parts(&parts(vec![Bytes::from_static(b"body")]));
    let head = message.head().as_ptr_range();
    let body = message.body();
    let parts = message.to_parts();
    let properties = message.properties();
    let properties = [&properties, &parts.properties].map(Properties::raw);
    let (exchange, key) = (message.exchange(), message.routing_key());
    let names = [&exchange, &key, &parts.exchange, &parts.routing_key];
    let names = names.into_iter().chain(&parts.bcc);
    let looked_at = names.map(ShortString::as_bytes).chain(properties);
    for bytes in looked_at.chain(&body).chain(&parts.body) {
        assert!(!bytes.is_empty() && !head.contains(&bytes.as_ptr()));
    }
}

#[test]
fn expiration_is_a_decimal_number_of_at_most_ten_years() {
    for (text, expected) in [
        ("0", Some(0)),
        ("+5", Some(5)),
        ("007", Some(7)),
        ("315360000000", Some(TTL_MAX_MS)),
        ("315360000001", None),
        ("99999999999999999999999", None),
        ("", None),
        ("+", None),
        ("-1", None),
        ("5x", None),
        (" 5", None),
    ] {
        assert_eq!(parse_expiration(text.as_bytes()), expected, "{text:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Message::decode_payload(bytes.into());
    }

    #[test]
    fn messages_that_are_decoded_one_after_the_other_are_as_if_alone(
        steps in prop::collection::vec((0_usize..4, 0_usize..3, any::<u8>(), 0_usize..100), 0..20),
    ) {
        let mut decoder = PayloadDecoder::default();
        for (kind, len, value, cut) in steps {
            let mut parts = parts(vec![Bytes::from(vec![value; len])]);
            let mut properties = PropertiesBuilder::new();
            match kind {
                0 => {}
                1 => {
                    properties.set_expiration(Some(ShortString::from_static("7")));
                    parts.properties = properties.build();
                }
                2 => parts.routing_key = ShortString::from_static(["a", "b", "key"][len]),
                _ => parts.bcc.clear(),
            }
            let mut payload = Message::from_parts(&parts).payload().concat();
            if value % 4 == 0 {
                payload.truncate(cut);
            }
            if value % 8 == 1 && let Some(byte) = payload.get_mut(cut) {
                *byte = value;
            }
            let payload = Bytes::from(payload);
            let alone = Message::decode_payload(payload.clone());
            prop_assert_eq!(format!("{:?}", decoder.decode(payload)), format!("{alone:?}"));
        }
    }

    #[test]
    fn damaged_payload_never_panics(at in 0usize..60, value in any::<u8>(), cut in 0usize..60) {
        let payload = Message::from_parts(&parts(vec![Bytes::from_static(b"body")]));
        let mut bytes = payload.payload().concat();
        let at = at % bytes.len();
        bytes[at] = value;
        bytes.truncate(bytes.len().saturating_sub(cut));
        let _ = Message::decode_payload(bytes.into());
    }
}
