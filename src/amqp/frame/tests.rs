use super::*;
use crate::amqp::limits::FRAME_MAX_DEFAULT;

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
