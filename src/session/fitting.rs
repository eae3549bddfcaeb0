//! Content headers that fit a frame.
//!
//! A content header is one frame; the protocol has no way to split it. What a client published came in
//! one, but dead-lettering makes it grow, and the consumer may have agreed on a smaller `frame_max` than
//! the publisher. So a history (`x-death`) that does not fit is shown without its oldest entries: those
//! at its end, since the latest death comes first. The stored message keeps them all.
//!
//! Headers that are too large without any history stay as they are, as in RabbitMQ: the message is the
//! publisher's, and a client that cannot take it says so.

use bytes::BytesMut;

use crate::amqp::field_table::FieldValue;
use crate::amqp::properties::Properties;
use crate::broker::message::Message;

/// Frame header and end, class, weight and body size: everything of a content header frame that is not
/// properties.
const FRAME_OVERHEAD_BYTES: usize = 8 + 2 + 2 + 8;

/// The message's properties with a shorter history, when they do not fit a frame with it; 0 for no limit.
#[inline]
pub(super) fn shortened(message: &Message, frame_max_bytes: u32) -> Option<Properties> {
    let frame_max_bytes = usize::try_from(frame_max_bytes).unwrap_or(usize::MAX);
    let frame_bytes = message.raw_properties().len() + FRAME_OVERHEAD_BYTES;
    let excess_bytes = frame_bytes.saturating_sub(frame_max_bytes);
    if excess_bytes == 0 || frame_max_bytes == 0 || !message.has_deaths() {
        return None;
    }
    shortened_by(message, excess_bytes)
}

#[cold]
fn shortened_by(message: &Message, excess_bytes: usize) -> Option<Properties> {
    let mut properties = message.properties().edit();
    let Some(FieldValue::Array(deaths)) = properties.headers_mut().get_mut("x-death") else {
        return None;
    };
    let mut saved_bytes = 0;
    while saved_bytes < excess_bytes && deaths.len() > 1 {
        let oldest = deaths.pop();
        saved_bytes += oldest.map_or(0, |death| encoded_bytes(&death));
    }
    Some(properties.build())
}

fn encoded_bytes(value: &FieldValue) -> usize {
    let mut out = BytesMut::new();
    value.encode(&mut out);
    out.len()
}
