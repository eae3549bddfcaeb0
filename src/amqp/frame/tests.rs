//! Frames: when one is complete, how long it may be, and the texts of refusals.

use super::*;
use crate::amqp::limits::FRAME_MAX_DEFAULT;

#[track_caller]
fn check_refused(input: &[u8], text: &str, code: ConnectionReplyCode) {
    let error = decode(&mut BytesMut::from(input), FRAME_MAX_DEFAULT).expect_err("a bad frame");
    assert_eq!(error.to_string(), text);
    assert_eq!(error.reply_code(), code);
}

fn with_size(size: u32) -> BytesMut {
    let mut input = BytesMut::new();
    put_header(&mut input, FrameKind::Body, 1, size);
    input
}

#[test]
fn a_frame_is_taken_only_when_complete() {
    let whole = b"\x03\x00\x07\x00\x00\x00\x02hi\xce\x08";
    for cut in 0..whole.len() - 1 {
        let mut input = BytesMut::from(&whole[..cut]);
        assert_eq!(decode(&mut input, FRAME_MAX_DEFAULT), Ok(None), "{cut}");
        assert_eq!(input, &whole[..cut]);
    }
    let mut input = BytesMut::from(&whole[..]);
    let frame = Frame {
        kind: FrameKind::Body,
        channel: 7,
        payload: Bytes::from_static(b"hi"),
    };
    assert_eq!(decode(&mut input, FRAME_MAX_DEFAULT), Ok(Some(frame)));
    assert_eq!(input, &b"\x08"[..]);
}

#[test]
fn bad_frames_get_rabbitmqs_texts() {
    use ConnectionReplyCode::{FrameError, UnexpectedFrame};
    check_refused(
        b"\x01\x00\x00\x00\x00\x00\x02\x00\x0a\xcd",
        "type 1, all octets = <<0,10>>: {invalid_frame_end_marker,205}",
        FrameError,
    );
    check_refused(
        b"\x00\x00\x01\x00\x00\x00\x0a1234567890\xce",
        "type 0, all octets = <<\"1234567890\">>: unknown_frame",
        FrameError,
    );
    check_refused(
        b"\x09\x00\x01\x00\x00\x00\x111234567890123456\xff\xce",
        "type 9, first 16 octets = <<\"1234567890123456\">>: unknown_frame",
        FrameError,
    );
    check_refused(
        b"\x08\x00\x00\x00\x00\x00\x01\x00\xce",
        "type 8, all octets = <<0>>: unknown_frame",
        FrameError,
    );
    check_refused(
        b"\x08\x00\x01\x00\x00\x00\x00\xce",
        "type 8, all octets = <<>>",
        UnexpectedFrame,
    );
    check_refused(
        &with_size(131_073),
        "type 3, all octets = <<>>: {frame_too_large,131073,131064}",
        FrameError,
    );
}

#[test]
fn a_payload_may_be_as_long_as_frame_max_itself() {
    assert_eq!(decode(&mut with_size(131_072), 131_072), Ok(None));
    assert!(decode(&mut with_size(131_073), 131_072).is_err());
    assert_eq!(decode(&mut with_size(8192), 8192), Ok(None));
    assert!(decode(&mut with_size(8193), 8192).is_err());
}

#[test]
fn no_limit_is_still_one() {
    assert_eq!(decode(&mut with_size(1 << 29), 0), Ok(None));
    assert!(decode(&mut with_size(u32::MAX), 0).is_err());
}

#[test]
fn a_heartbeat_is_eight_bytes() {
    let mut out = BytesMut::new();
    encode_heartbeat(&mut out);
    assert_eq!(out, &b"\x08\x00\x00\x00\x00\x00\x00\xce"[..]);
    let frame = decode(&mut out, FRAME_MAX_DEFAULT).unwrap().unwrap();
    assert_eq!(frame.kind, FrameKind::Heartbeat);
    assert!(out.is_empty());
}

#[test]
fn binaries_are_shown_as_erlang_does() {
    assert_eq!(ErlangBinary::text(b"a\"\n").to_string(), r#"<<"a\"\n">>"#);
    assert_eq!(ErlangBinary::text(b"a\x00").to_string(), "<<97,0>>");
    assert_eq!(ErlangBinary::numbers(b"ab").to_string(), "<<97,98>>");
}
