//! Fuzz targets as plain functions: any bytes may be given, none may panic or break a promise.
//!
//! A test drives them from a seeded generator; a fuzzer may call them as they are. For a long run:
//! `STRATAMQ_FUZZ_CASES=1000000 cargo test --lib amqp::fuzz`.

use bytes::{Bytes, BytesMut};

use super::content::ContentHeader;
use super::field_table::FieldTable;
use super::frame::{self, Frame};
use super::limits::FRAME_MAX_DEFAULT;
use super::method::Method;
use super::properties::Properties;

/// A stream of frames: what is decoded encodes to the bytes it was decoded from, and nothing beyond the
/// frame is consumed.
pub fn fuzz_frame(data: &[u8]) {
    let mut input = BytesMut::from(data);
    while let Ok(Some(frame)) = frame::decode(&mut input, FRAME_MAX_DEFAULT) {
        let start = data.len() - input.len() - (frame.payload.len() + 8);
        let mut again = BytesMut::new();
        frame::encode(&mut again, frame.kind, frame.channel, |out| {
            out.extend_from_slice(&frame.payload);
        });
        assert_eq!(Some(&again[..]), data.get(start..data.len() - input.len()));
        fuzz_frame_payload(&frame);
    }
}

fn fuzz_frame_payload(frame: &Frame) {
    match frame.kind {
        frame::FrameKind::Method => fuzz_method(&frame.payload),
        frame::FrameKind::Header => fuzz_content_header(&frame.payload),
        frame::FrameKind::Body | frame::FrameKind::Heartbeat => {}
    }
}

/// A method's payload: what is decoded encodes to something that decodes to an equal value.
pub fn fuzz_method(data: &[u8]) {
    let Ok(method) = Method::decode(&Bytes::copy_from_slice(data)) else {
        return;
    };
    let mut out = BytesMut::new();
    method.encode(&mut out, 1);
    let frame = frame::decode(&mut out, 0)
        .expect("an encoded method is a frame")
        .expect("a whole frame");
    let again = Method::decode(&frame.payload).expect("an encoded method decodes");
    assert_eq!(method, again);
}

/// A header frame's payload.
pub fn fuzz_content_header(data: &[u8]) {
    let payload = Bytes::copy_from_slice(data);
    if let Ok(header) = ContentHeader::decode(&payload) {
        let mut out = BytesMut::new();
        header.encode(&mut out, 1);
        assert_eq!(out.get(7..7 + data.len()), Some(data));
    }
}

/// A field table: what is decoded encodes to something that decodes to an equal table.
pub fn fuzz_field_table(data: &[u8]) {
    let Ok(table) = FieldTable::decode(&Bytes::copy_from_slice(data)) else {
        return;
    };
    let again = FieldTable::decode(&table.to_bytes()).expect("an encoded table decodes");
    assert_eq!(table, again);
    assert_eq!(table, table.detached());
    assert_eq!(table.canonical(), table.canonical().canonical());
}

/// A property section: every getter answers, and taking it apart and together again loses nothing.
pub fn fuzz_properties(data: &[u8]) {
    let Ok(properties) = Properties::decode(Bytes::copy_from_slice(data)) else {
        return;
    };
    let headers = properties.headers();
    assert_eq!(headers.is_some(), properties.has_headers());
    for (name, _) in headers.iter().flatten() {
        if let Ok(name) = std::str::from_utf8(name) {
            let expected = headers.as_ref().and_then(|headers| headers.get(name));
            assert_eq!(properties.header(name).as_ref(), expected);
        }
    }
    assert_eq!(properties.edit().build().edit(), properties.edit());
    assert!(!properties.without_bcc().has_bcc());
}

#[cfg(test)]
mod tests;
