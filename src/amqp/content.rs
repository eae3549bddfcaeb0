//! Contents: the header and body frames that follow `basic.publish`, `deliver`, `get-ok` and `return`.
//!
//! ```text
//!  header payload:  class:u16  weight:u16 (0)  body_size:u64  property flags:u16  property values
//!  body:            cut into payloads of frame_max - 8 bytes, the last one shorter; none when empty
//! ```
//!
//! Encoding is the hot path of delivery: everything is appended to a buffer, except large parts of bodies, which go to
//! the socket from where they are.
//!
//! ```text
//!  buffer:  method frame | header frame | body frame head |            | 0xCE ...
//!  chunk:                                                  body bytes
//! ```
//! Most deliveries have a small body that fits one frame. Their length is known before anything is written: they are
//! written in one go, into room that was made once; those that follow each other share what stands before the body (see
//! [`DeliverRun`]). All others take the general way, frame by frame and part by part.

mod deliver_run;

use bytes::{BufMut, Bytes, BytesMut};

use super::DecodeError;
use super::frame::{self, FRAME_END, FrameError, FrameKind};
use super::limits::{CHUNK_MIN_BYTES, CONTENT_MAX_BYTES, FRAME_MAX_DEFAULT, FRAME_OVERHEAD_BYTES};
use super::method::{self, MethodId, basic};
use super::properties::Properties;
use super::reply_code::ConnectionReplyCode;
use super::short_string::ShortString;
use super::wire::{ArgumentWriter, take_u16, take_u64};
pub use deliver_run::DeliverRun;

/// Takes encoded frames: small things into a buffer, large ones as they are, in order.
pub trait FrameSink {
    /// The buffer at the end of what was taken so far.
    fn buffer(&mut self) -> &mut BytesMut;
    /// The same with room for so many bytes.
    fn room(&mut self, bytes: usize) -> &mut BytesMut {
        let buffer = self.buffer();
        buffer.reserve(bytes);
        buffer
    }
    /// Takes bytes that follow the buffer's present end. At least [`CHUNK_MIN_BYTES`] long.
    fn chunk(&mut self, chunk: Bytes);
}

/// One contiguous buffer; for tests and small messages.
impl FrameSink for BytesMut {
    fn buffer(&mut self) -> &mut BytesMut {
        self
    }
    fn chunk(&mut self, chunk: Bytes) {
        self.extend_from_slice(&chunk);
    }
}

/// The header of a content.
#[derive(Clone, Debug, PartialEq)]
pub struct ContentHeader {
    /// Bytes of all body frames together.
    pub body_size_bytes: u64,
    /// The properties.
    pub properties: Properties,
}

/// Why a content header is refused; class and method to name are those of the publish it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// Too short to be a content header at all; class and method are 0.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The weight is not 0, which RabbitMQ takes for no content header (FR-8).
    #[error("expected content header for class 60, got non content header frame instead")]
    Weight,
    /// The class is not basic.
    #[error("expected content header for class 60, got one for class {class_id} instead")]
    Class {
        /// What it is.
        class_id: u16,
    },
    /// The announced body is larger than anything we take (FR-9).
    #[error(
        "content body size {body_size_bytes} exceeds maximum allowed size {}",
        CONTENT_MAX_BYTES
    )]
    TooLarge {
        /// What was announced.
        body_size_bytes: u64,
    },
    /// The properties do not decode (PP-4).
    #[error("cannot decode content properties: {0}")]
    Properties(#[from] DecodeError),
}

impl ContentError {
    /// The code that closes the connection.
    #[must_use]
    pub const fn reply_code(&self) -> ConnectionReplyCode {
        match self {
            Self::Frame(error) => error.reply_code(),
            Self::Weight | Self::Class { .. } => ConnectionReplyCode::UnexpectedFrame,
            Self::TooLarge { .. } | Self::Properties(_) => ConnectionReplyCode::FrameError,
        }
    }
}

impl ContentHeader {
    /// Decodes the payload of a header frame; the properties share its memory.
    ///
    /// # Errors
    /// See [`ContentError`]; all of them close the connection.
    pub fn decode(payload: &Bytes) -> Result<Self, ContentError> {
        let (class_id, weight, body_size_bytes, properties) = Self::split(payload)
            .map_err(|_too_short| FrameError::unknown(FrameKind::Header, payload))?;
        if weight != 0 {
            return Err(ContentError::Weight);
        }
        if class_id != basic::CLASS_ID {
            return Err(ContentError::Class { class_id });
        }
        if body_size_bytes > CONTENT_MAX_BYTES {
            return Err(ContentError::TooLarge { body_size_bytes });
        }
        let properties = Properties::decode(payload.slice_ref(properties))?;
        Ok(Self {
            body_size_bytes,
            properties,
        })
    }

    fn split(mut rest: &[u8]) -> Result<(u16, u16, u64, &[u8]), DecodeError> {
        let class_id = take_u16(&mut rest)?;
        let weight = take_u16(&mut rest)?;
        let body_size_bytes = take_u64(&mut rest)?;
        Ok((class_id, weight, body_size_bytes, rest))
    }

    /// Appends the header as a frame of `channel`.
    pub fn encode(&self, out: &mut BytesMut, channel: u16) {
        put_header_frame(out, channel, self.body_size_bytes, self.properties.raw());
    }
}

fn put_header_frame(out: &mut BytesMut, channel: u16, body_size_bytes: u64, properties: &[u8]) {
    frame::encode(out, FrameKind::Header, channel, |out| {
        out.put_u16(basic::CLASS_ID);
        out.put_u16(0);
        out.put_u64(body_size_bytes);
        out.put_slice(properties);
    });
}

/// Where frames go: the channel, and the size they may have there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane {
    channel: u16,
    body_frame_max_bytes: usize,
}

impl Lane {
    /// A channel of a connection that negotiated `frame_max` bytes a frame. 0, no limit, is taken for the
    /// default: nobody gains from larger frames.
    #[must_use]
    pub fn new(channel: u16, frame_max: u32) -> Self {
        let frame_max = match frame_max {
            0 => FRAME_MAX_DEFAULT,
            _ => frame_max,
        };
        let body_frame_max = frame_max.saturating_sub(FRAME_OVERHEAD_BYTES).max(1);
        Self {
            channel,
            body_frame_max_bytes: usize::try_from(body_frame_max).unwrap_or(usize::MAX),
        }
    }
}

/// What `basic.deliver` says of a message.
#[derive(Clone, Copy, Debug)]
pub struct DeliverHead<'a> {
    /// The consumer's tag: the bytes of a [`ShortString`].
    pub consumer_tag: &'a [u8],
    /// The channel's number for this delivery.
    pub delivery_tag: u64,
    /// It may have been delivered before.
    pub is_redelivered: bool,
    /// Exchange it was published to and routing key, as they follow each other on the wire: two short strings, each
    /// behind its length.
    pub names: &'a [u8],
}

/// What `basic.get-ok` says of a message.
#[derive(Clone, Copy, Debug)]
pub struct GetOkHead<'a> {
    /// The channel's number for this delivery.
    pub delivery_tag: u64,
    /// It may have been delivered before.
    pub is_redelivered: bool,
    /// Exchange it was published to and routing key, as in [`DeliverHead`].
    pub names: &'a [u8],
    /// Ready messages left.
    pub message_count: u32,
}

/// What `basic.return` says of a message.
#[derive(Clone, Copy, Debug)]
pub struct ReturnHead<'a> {
    /// 312.
    pub reply_code: u16,
    /// `NO_ROUTE`.
    pub reply_text: &'a ShortString,
    /// Exchange it was published to and routing key, as in [`DeliverHead`].
    pub names: &'a [u8],
}

/// A message's content.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    /// Its properties.
    pub properties: &'a Properties,
    /// Its body, in parts of any size.
    pub body: &'a [Bytes],
}

/// The same as it is stored: nothing has to be taken apart to be delivered.
#[derive(Clone, Copy, Debug)]
pub struct RawContent<'a> {
    /// Its properties, as on the wire: those of a [`Properties`].
    pub properties: &'a [u8],
    /// The start of its body; all of it, when the message is short.
    pub front: &'a [u8],
    /// The rest, in parts of any size.
    pub body: &'a [Bytes],
    /// Bytes at the start of the first part that are not of the body.
    pub skip_bytes: usize,
}

impl<'a> RawContent<'a> {
    /// The body, when it lies in one piece.
    #[inline]
    fn whole_body(&self) -> Option<&'a [u8]> {
        match self.body {
            [] => Some(self.front),
            [part] if self.front.is_empty() => part.get(self.skip_bytes..),
            _ => None,
        }
    }
}

impl<'a> From<&Content<'a>> for RawContent<'a> {
    fn from(content: &Content<'a>) -> Self {
        Self {
            properties: content.properties.raw(),
            front: &[],
            body: content.body,
            skip_bytes: 0,
        }
    }
}

/// Appends `basic.deliver` with its content.
#[inline]
pub fn encode_deliver(
    sink: &mut impl FrameSink,
    lane: Lane,
    head: &DeliverHead<'_>,
    content: &RawContent<'_>,
) {
    if put_small_deliver(sink, lane, head, content).is_none() {
        encode_any_deliver(sink, lane, head, content);
    }
}

/// The general way.
fn encode_any_deliver(
    sink: &mut impl FrameSink,
    lane: Lane,
    head: &DeliverHead<'_>,
    content: &RawContent<'_>,
) {
    put_method(sink, lane, basic::Deliver::ID, |writer| {
        writer.put_short(head.consumer_tag);
        writer.put(&head.delivery_tag);
        writer.put(&head.is_redelivered);
        writer.put_raw(head.names);
    });
    put_content(sink, lane, content);
}

/// Appends a delivery whose body is small and in one piece; `None` when it is not, and then nothing was appended.
fn put_small_deliver(
    sink: &mut impl FrameSink,
    lane: Lane,
    head: &DeliverHead<'_>,
    content: &RawContent<'_>,
) -> Option<()> {
    let body = content.whole_body()?;
    if body.len() >= CHUNK_MIN_BYTES || body.len() > lane.body_frame_max_bytes {
        return None;
    }
    let tag_len = u8::try_from(head.consumer_tag.len()).ok()?;
    let method_bytes = METHOD_BYTES + head.consumer_tag.len() + head.names.len();
    let header_bytes = HEADER_BYTES + content.properties.len();
    let [m_0, m_1, m_2, m_3] = u32::try_from(method_bytes).ok()?.to_be_bytes();
    let [h_0, h_1, h_2, h_3] = u32::try_from(header_bytes).ok()?.to_be_bytes();
    let body_bytes = u32::try_from(body.len()).ok()?.to_be_bytes();
    let [b_0, b_1, b_2, b_3] = body_bytes;
    let [t_0, t_1, t_2, t_3, t_4, t_5, t_6, t_7] = head.delivery_tag.to_be_bytes();
    let [c_0, c_1] = lane.channel.to_be_bytes();
    let [class_0, class_1] = basic::CLASS_ID.to_be_bytes();
    let [id_0, id_1] = basic::Deliver::ID.method_id.to_be_bytes();
    let redelivered = u8::from(head.is_redelivered);
    let out = sink.room(method_bytes + header_bytes + body.len() + 3 * FRAME_BYTES);
    #[rustfmt::skip]
    out.extend_from_slice(&[
        FrameKind::Method.octet(), c_0, c_1, m_0, m_1, m_2, m_3, class_0, class_1, id_0, id_1, tag_len,
    ]);
    out.extend_from_slice(head.consumer_tag);
    out.extend_from_slice(&[t_0, t_1, t_2, t_3, t_4, t_5, t_6, t_7, redelivered]);
    out.extend_from_slice(head.names);
    #[rustfmt::skip]
    out.extend_from_slice(&[
        FRAME_END, FrameKind::Header.octet(), c_0, c_1, h_0, h_1, h_2, h_3,
        class_0, class_1, 0, 0, 0, 0, 0, 0, b_0, b_1, b_2, b_3,
    ]);
    out.extend_from_slice(content.properties);
    if body.is_empty() {
        out.extend_from_slice(&[FRAME_END]);
    } else {
        #[rustfmt::skip]
        out.extend_from_slice(&[
            FRAME_END, FrameKind::Body.octet(), c_0, c_1, b_0, b_1, b_2, b_3,
        ]);
        out.extend_from_slice(body);
        out.extend_from_slice(&[FRAME_END]);
    }
    Some(())
}

/// Class, method, length of the consumer tag, delivery tag and the redelivered bit.
const METHOD_BYTES: usize = 2 + 2 + 1 + 8 + 1;
/// Class, weight and size of the body.
const HEADER_BYTES: usize = 2 + 2 + 8;
/// Header and end of a frame.
const FRAME_BYTES: usize = 8;

/// Appends `basic.get-ok` with its content.
pub fn encode_get_ok(
    sink: &mut impl FrameSink,
    lane: Lane,
    head: &GetOkHead<'_>,
    content: &RawContent<'_>,
) {
    put_method(sink, lane, basic::GetOk::ID, |writer| {
        writer.put(&head.delivery_tag);
        writer.put(&head.is_redelivered);
        writer.put_raw(head.names);
        writer.put(&head.message_count);
    });
    put_content(sink, lane, content);
}

/// Appends `basic.return` with its content.
pub fn encode_return(
    sink: &mut impl FrameSink,
    lane: Lane,
    head: &ReturnHead<'_>,
    content: &RawContent<'_>,
) {
    put_method(sink, lane, basic::Return::ID, |writer| {
        writer.put(&head.reply_code);
        writer.put(head.reply_text);
        writer.put_raw(head.names);
    });
    put_content(sink, lane, content);
}

fn put_method(
    sink: &mut impl FrameSink,
    lane: Lane,
    id: MethodId,
    write: impl FnOnce(&mut ArgumentWriter<'_>),
) {
    frame::encode(sink.buffer(), FrameKind::Method, lane.channel, |out| {
        method::put_id(out, id);
        write(&mut ArgumentWriter::new(out));
    });
}

/// Appends header and body frames; the method frame must be there.
pub fn encode_content(sink: &mut impl FrameSink, lane: Lane, content: &Content<'_>) {
    put_content(sink, lane, &content.into());
}

fn put_content(sink: &mut impl FrameSink, lane: Lane, content: &RawContent<'_>) {
    let parts_bytes: usize = content.body.iter().map(Bytes::len).sum();
    let body_bytes = content.front.len() + parts_bytes.saturating_sub(content.skip_bytes);
    // Lossless: usize has at most 64 bits on every platform.
    let body_size_bytes = u64::try_from(body_bytes).unwrap_or(u64::MAX);
    put_header_frame(
        sink.room(content.properties.len() + HEADER_BYTES + FRAME_BYTES),
        lane.channel,
        body_size_bytes,
        content.properties,
    );
    put_body_frames(sink, lane, content, body_bytes);
}

/// Cuts a body into frames. A frame may take from several parts, and a part may fill several frames.
fn put_body_frames(
    sink: &mut impl FrameSink,
    lane: Lane,
    content: &RawContent<'_>,
    body_bytes: usize,
) {
    let mut body_left = body_bytes;
    let mut frame_left = 0;
    let front = Bytes::copy_from_slice(content.front);
    let parts = content.body.iter().enumerate();
    let parts = parts.map(|(index, part)| match index {
        0 => (part, content.skip_bytes),
        _ => (part, 0),
    });
    for (part, skip_bytes) in std::iter::once((&front, 0)).chain(parts) {
        let mut taken = skip_bytes;
        while taken < part.len() {
            if frame_left == 0 {
                frame_left = body_left.min(lane.body_frame_max_bytes);
                let size = u32::try_from(frame_left)
                    .expect("a body frame is at most as long as frame_max, a u32");
                frame::put_header(sink.buffer(), FrameKind::Body, lane.channel, size);
            }
            let end = part.len().min(taken + frame_left);
            put_body_part(sink, part, taken, end);
            frame_left -= end - taken;
            body_left -= end - taken;
            taken = end;
            if frame_left == 0 {
                sink.buffer().put_u8(FRAME_END);
            }
        }
    }
}

/// Appends `part[start..end]`, copied when small.
fn put_body_part(sink: &mut impl FrameSink, part: &Bytes, start: usize, end: usize) {
    if end - start < CHUNK_MIN_BYTES {
        sink.room(end - start).put_slice(&part[start..end]);
    } else {
        sink.chunk(part.slice(start..end));
    }
}

#[cfg(test)]
mod tests;
