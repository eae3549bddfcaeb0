//! Contents: how bodies are cut into frames, without copies of large ones, and what headers are refused.

use super::*;
use crate::amqp::field_table::FieldTable;
use crate::amqp::frame::Frame;
use crate::amqp::method::Method;
use crate::amqp::properties::PropertiesBuilder;
use proptest::prelude::*;

/// Keeps buffer and chunks apart, as the socket's writer does.
#[derive(Default)]
struct Parts {
    done: Vec<Bytes>,
    chunk_count: usize,
    buffer: BytesMut,
}

impl FrameSink for Parts {
    fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }
    fn chunk(&mut self, chunk: Bytes) {
        assert!(chunk.len() >= CHUNK_MIN_BYTES);
        self.done.push(self.buffer.split().freeze());
        self.done.push(chunk);
        self.chunk_count += 1;
    }
}

impl Parts {
    fn frames(mut self) -> Vec<Frame> {
        self.done.push(self.buffer.freeze());
        let mut input = BytesMut::from(&self.done.concat()[..]);
        let mut frames = Vec::new();
        while let Some(frame) = frame::decode(&mut input, 0).expect("frames") {
            frames.push(frame);
        }
        assert!(input.is_empty());
        frames
    }
}

fn name(text: &'static str) -> ShortString {
    ShortString::from_static(text)
}

fn properties() -> Properties {
    let headers = FieldTable::new().with("x", 1);
    PropertiesBuilder::new().set_headers(Some(headers)).build()
}

/// Bytes that tell where they came from.
fn body(count: usize) -> Bytes {
    (0..=250u8).cycle().take(count).collect()
}

#[track_caller]
fn check_cut(parts: &[usize], frame_max: u32, expected: &[usize]) {
    let whole = body(parts.iter().sum());
    let mut rest = whole.clone();
    let parts: Vec<Bytes> = parts.iter().map(|&count| rest.split_to(count)).collect();
    let content = Content {
        properties: &properties(),
        body: &parts,
    };
    let mut sink = Parts::default();
    encode_content(&mut sink, Lane::new(5, frame_max), &content);
    let frames = sink.frames();
    let (header, bodies) = frames.split_first().unwrap();
    assert_eq!((header.kind, header.channel), (FrameKind::Header, 5));
    let header = ContentHeader::decode(&header.payload).unwrap();
    assert_eq!(header.body_size_bytes, u64::try_from(whole.len()).unwrap());
    assert_eq!(header.properties, properties());
    assert!(
        bodies
            .iter()
            .all(|frame| frame.kind == FrameKind::Body && frame.channel == 5)
    );
    let sizes: Vec<usize> = bodies.iter().map(|frame| frame.payload.len()).collect();
    assert_eq!(sizes, expected);
    let joined: Vec<u8> = bodies
        .iter()
        .flat_map(|frame| frame.payload.to_vec())
        .collect();
    assert_eq!(joined, whole);
}

#[test]
fn bodies_are_cut_into_full_frames() {
    check_cut(&[], 4096, &[]);
    check_cut(&[0, 0], 4096, &[]);
    check_cut(&[1], 4096, &[1]);
    check_cut(&[4088], 4096, &[4088]);
    check_cut(&[4089], 4096, &[4088, 1]);
    check_cut(&[8176], 4096, &[4088, 4088]);
    check_cut(&[20_000], 8192, &[8184, 8184, 3632]);
    check_cut(&[100_000], 0, &[100_000]);
}

#[test]
fn frames_take_from_several_parts() {
    check_cut(&[10, 0, 20], 4096, &[30]);
    check_cut(&[4087, 1], 4096, &[4088]);
    check_cut(&[4087, 2], 4096, &[4088, 1]);
    check_cut(&[4088, 1], 4096, &[4088, 1]);
    check_cut(&[4000, 4000, 4000], 4096, &[4088, 4088, 3824]);
    check_cut(&[5000, 1, 50_000], 131_072, &[55_001]);
}

proptest! {
    #[test]
    fn any_parts_are_cut_alike(parts in prop::collection::vec(0..9000_usize, 0..6), frame_max in 9..9000_u32) {
        let size = usize::try_from(frame_max).unwrap() - 8;
        let total: usize = parts.iter().sum();
        let mut expected = vec![size; total / size];
        expected.extend(Some(total % size).filter(|&rest| rest > 0));
        check_cut(&parts, frame_max, &expected);
    }
}

#[test]
fn large_bodies_are_not_copied() {
    let body = [body(300_000)];
    let content = Content {
        properties: &Properties::default(),
        body: &body,
    };
    let mut sink = Parts::default();
    encode_content(&mut sink, Lane::new(1, 131_072), &content);
    assert_eq!(sink.chunk_count, 3);
    let shared = sink
        .done
        .iter()
        .filter(|part| body[0].as_ptr_range().contains(&part.as_ptr()));
    assert_eq!(shared.count(), 3);
}

#[track_caller]
fn check_method(sink: BytesMut, expected: impl Into<Method>) {
    let mut input = sink;
    let frame = frame::decode(&mut input, 0).unwrap().unwrap();
    assert_eq!((frame.kind, frame.channel), (FrameKind::Method, 3));
    assert_eq!(Method::decode(&frame.payload), Ok(expected.into()));
    let frame = frame::decode(&mut input, 0).unwrap().unwrap();
    assert_eq!(frame.kind, FrameKind::Header);
    let frame = frame::decode(&mut input, 0).unwrap().unwrap();
    assert_eq!(frame.payload, &b"hi"[..]);
    assert!(input.is_empty());
}

#[test]
fn the_fast_encoders_write_what_the_method_table_says() {
    let (exchange, routing_key, text) = (name("logs"), name("a.b"), name("NO_ROUTE"));
    let lane = Lane::new(3, 131_072);
    let body = [Bytes::from_static(b"hi")];
    let content = Content {
        properties: &properties(),
        body: &body,
    };

    let mut sink = BytesMut::new();
    let head = DeliverHead {
        consumer_tag: b"c-1",
        delivery_tag: 77,
        is_redelivered: true,
        names: b"\x04logs\x03a.b",
    };
    // As it is stored, behind something else.
    let stored = [Bytes::from_static(b"head"), Bytes::from_static(b"hi")].concat();
    let raw = RawContent {
        body: &[Bytes::from(stored)],
        skip_bytes: 4,
        ..RawContent::from(&content)
    };
    encode_deliver(&mut sink, lane, &head, &raw);
    let expected = basic::Deliver {
        consumer_tag: name("c-1"),
        delivery_tag: 77,
        redelivered: true,
        exchange: exchange.clone(),
        routing_key: routing_key.clone(),
    };
    check_method(sink, expected);

    let mut sink = BytesMut::new();
    let head = GetOkHead {
        delivery_tag: 78,
        is_redelivered: false,
        names: b"\x04logs\x03a.b",
        message_count: 5,
    };
    encode_get_ok(&mut sink, lane, &head, &raw);
    let expected = basic::GetOk {
        delivery_tag: 78,
        redelivered: false,
        exchange: exchange.clone(),
        routing_key: routing_key.clone(),
        message_count: 5,
    };
    check_method(sink, expected);

    let mut sink = BytesMut::new();
    let head = ReturnHead {
        reply_code: 312,
        reply_text: &text,
        names: b"\x04logs\x03a.b",
    };
    encode_return(&mut sink, lane, &head, &raw);
    let expected = basic::Return {
        reply_code: 312,
        reply_text: text,
        exchange,
        routing_key,
    };
    check_method(sink, expected);
}

#[track_caller]
fn check_refused(payload: &'static [u8], text: &str, code: ConnectionReplyCode) {
    let error = ContentHeader::decode(&Bytes::from_static(payload)).expect_err("a bad header");
    assert_eq!(error.to_string(), text);
    assert_eq!(error.reply_code(), code);
}

#[test]
fn bad_headers_get_rabbitmqs_texts() {
    use ConnectionReplyCode::{FrameError, UnexpectedFrame};
    check_refused(
        b"\x00\x3c\x00",
        "type 2, all octets = <<0,60,0>>: unknown_frame",
        FrameError,
    );
    check_refused(
        b"\x00\x3c\x00\x01\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00",
        "expected content header for class 60, got non content header frame instead",
        UnexpectedFrame,
    );
    check_refused(
        b"\x00\x0a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00",
        "expected content header for class 60, got one for class 10 instead",
        UnexpectedFrame,
    );
    check_refused(
        b"\x00\x3c\x00\x00\x00\x00\x00\x00\x23\xc3\x46\x00\x00\x00",
        "content body size 600000000 exceeds maximum allowed size 536870912",
        FrameError,
    );
    check_refused(
        b"\x00\x3c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x05\x00\x01",
        "cannot decode content properties: unknown property flags 0x0001",
        FrameError,
    );
}

#[test]
fn the_largest_body_may_be_announced() {
    let payload = b"\x00\x3c\x00\x00\x00\x00\x00\x00\x20\x00\x00\x00\x00\x00";
    let header = ContentHeader::decode(&Bytes::from_static(payload)).unwrap();
    assert_eq!(header.body_size_bytes, CONTENT_MAX_BYTES);
}

/// Lengths of names, properties and body, and bytes to skip.
type Look = (usize, usize, usize, usize);

fn look() -> impl Strategy<Value = Look> {
    let body_len = prop_oneof![Just(0), 1..4_usize, 4000..4200_usize];
    let names_len = prop_oneof![2..5_usize, 2..300_usize];
    let properties_len = prop_oneof![2..5_usize, 2..600_usize];
    (names_len, properties_len, body_len, 0..80_usize)
}

/// The body behind the first bytes of what is stored, in either form.
fn raw_content<'a>(
    properties: &'a [u8],
    stored: &'a [Bytes; 1],
    skip_bytes: usize,
    is_front: bool,
) -> RawContent<'a> {
    let (front, body, skip_bytes): (&[u8], &[Bytes], _) = match is_front {
        true => (&stored[0][skip_bytes..], &[], 0),
        false => (&[], stored, skip_bytes),
    };
    RawContent {
        properties,
        front,
        body,
        skip_bytes,
    }
}

#[test]
fn a_body_in_two_forms_at_once_is_written_in_order() {
    let lane = Lane::new(1, 4096);
    let whole = body(10_000);
    let parts = [whole.slice(90..5000), whole.slice(5000..)];
    let in_parts = [whole.slice(..)];
    let mut expected = BytesMut::new();
    put_content(
        &mut expected,
        lane,
        &raw_content(b"\0\0", &in_parts, 0, false),
    );
    let content = RawContent {
        properties: b"\0\0",
        front: &whole[..100],
        body: &parts,
        skip_bytes: 10,
    };
    let mut actual = BytesMut::new();
    put_content(&mut actual, lane, &content);
    assert_eq!(actual, expected);
}

proptest! {
    #[test]
    fn both_ways_to_encode_a_delivery_write_the_same(
        tag_len in 0..256_usize,
        names_len in 2..300_usize,
        properties_len in 2..600_usize,
        body_len in prop_oneof![Just(0), 1..64_usize, 4000..4200_usize],
        skip_bytes in 0..80_usize,
        is_front in any::<bool>(),
        frame_max in prop_oneof![Just(0), Just(9), 4090..4110_u32, Just(131_072)],
        (delivery_tag, is_redelivered, channel) in any::<(u64, bool, u16)>(),
    ) {
        let text = body(2000);
        let head = DeliverHead {
            consumer_tag: &text[..tag_len],
            delivery_tag,
            is_redelivered,
            names: &text[300..300 + names_len],
        };
        let stored = [body(skip_bytes + body_len)];
        let content = raw_content(&text[1000..1000 + properties_len], &stored, skip_bytes, is_front);
        let lane = Lane::new(channel, frame_max);
        let mut expected = BytesMut::from(&b"before"[..]);
        encode_any_deliver(&mut expected, lane, &head, &content);
        let mut actual = BytesMut::from(&b"before"[..]);
        let is_small = body_len < CHUNK_MIN_BYTES && body_len <= lane.body_frame_max_bytes;
        let place = put_small_deliver(&mut actual, lane, &head, &content);
        prop_assert_eq!(place.is_some(), is_small);
        if !is_small {
            prop_assert_eq!(&actual[..], &b"before"[..], "nothing is written halfway");
            encode_deliver(&mut actual, lane, &head, &content);
        }
        prop_assert_eq!(actual, expected);
    }

    #[test]
    fn deliveries_of_a_run_are_written_as_each_by_itself(
        tag_len in 0..256_usize,
        frame_max in prop_oneof![Just(0), Just(9), 4090..4110_u32, Just(131_072)],
        channel in any::<u16>(),
        deliveries in prop::collection::vec((look(), 0..4_u8, any::<(u64, bool)>(), 0..2_usize, 0..2_usize), 1..6),
    ) {
        let text = body(2000);
        let lane = Lane::new(channel, frame_max);
        let mut run = DeliverRun::new(lane, &text[..tag_len]);
        let mut expected = BytesMut::from(&b"before"[..]);
        let mut actual = expected.clone();
        let mut last = None;
        for (look, repeats, (delivery_tag, is_redelivered), names_at, properties_at) in deliveries {
            // Three in four have the lengths of the one before.
            let look = last.filter(|_| repeats > 0).unwrap_or(look);
            last = Some(look);
            let (names_len, properties_len, body_len, skip_bytes) = look;
            let names = &text[300 + names_at..][..names_len];
            let head = DeliverHead {
                consumer_tag: &text[..tag_len],
                delivery_tag,
                is_redelivered,
                names,
            };
            let stored = [body(skip_bytes + body_len)];
            let properties = &text[1000 + properties_at..][..properties_len];
            let content = raw_content(properties, &stored, skip_bytes, delivery_tag % 2 == 0);
            encode_any_deliver(&mut expected, lane, &head, &content);
            let before = actual.len();
            let is_small = body_len < CHUNK_MIN_BYTES && body_len <= lane.body_frame_max_bytes;
            let is_short = tag_len + names_len + properties_len < 400;
            let placed = run.put_small(&mut actual, delivery_tag, is_redelivered, names, &content);
            prop_assert!(placed.is_none() || is_small);
            prop_assert!(placed.is_some() || !is_small || !is_short);
            if placed.is_none() {
                prop_assert_eq!(actual.len(), before, "nothing is written halfway");
                run.put(&mut actual, delivery_tag, is_redelivered, names, &content);
            }
            prop_assert_eq!(&actual, &expected);
        }
    }
}
