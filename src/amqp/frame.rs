//! Frames: the envelope of everything on a connection (AMQP 0-9-1 section 4.2.3).
//!
//! ```text
//!  0      1         3             7                size+7   size+8
//!  +------+---------+-------------+----------------+--------+
//!  | type | channel | size        | payload[size]  | 0xCE   |
//!  +------+---------+-------------+----------------+--------+
//! ```
//!
//! 1. The size is judged as soon as the seven header bytes are there, before a byte of payload is awaited.
//! 2. The texts of [`FrameError`] are RabbitMQ's; applications match on parts of them.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::limits::{
    CONTENT_MAX_BYTES, FRAME_HEADER_BYTES, FRAME_OVERHEAD_BYTES, FRAME_SLACK_BYTES,
};
use super::reply_code::ConnectionReplyCode;

/// The octet that ends every frame.
pub const FRAME_END: u8 = 0xCE;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// A method.
    Method = 1,
    /// The header of a content.
    Header = 2,
    /// A part of a content's body.
    Body = 3,
    /// Nothing but life.
    Heartbeat = 8,
}

impl FrameKind {
    /// The type octet.
    #[must_use]
    pub const fn octet(self) -> u8 {
        self as u8
    }
    /// The kind of a type octet; `None` for a type AMQP does not have.
    #[must_use]
    pub const fn from_octet(octet: u8) -> Option<Self> {
        match octet {
            1 => Some(Self::Method),
            2 => Some(Self::Header),
            3 => Some(Self::Body),
            8 => Some(Self::Heartbeat),
            _ => None,
        }
    }
}

/// A complete frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: FrameKind,
    /// Channel; 0 for the connection itself.
    pub channel: u16,
    /// The payload, sharing the memory it was read into.
    pub payload: Bytes,
}

/// The bytes of a frame an error text shows: the first 16, as RabbitMQ does.
#[derive(Clone, PartialEq, Eq)]
pub struct Snippet {
    bytes: Vec<u8>,
    is_whole: bool,
}

impl Snippet {
    const MAX_BYTES: usize = 16;

    fn of(payload: &[u8]) -> Self {
        Self {
            bytes: payload.iter().copied().take(Self::MAX_BYTES).collect(),
            is_whole: payload.len() <= Self::MAX_BYTES,
        }
    }
}

impl fmt::Display for Snippet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let extent = if self.is_whole { "all" } else { "first 16" };
        write!(f, "{extent} octets = {}", ErlangBinary::text(&self.bytes))
    }
}

impl fmt::Debug for Snippet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Shows bytes as Erlang does, for texts that RabbitMQ's users know.
#[derive(Clone, Copy, Debug)]
pub struct ErlangBinary<'a> {
    bytes: &'a [u8],
    is_text_allowed: bool,
}

impl<'a> ErlangBinary<'a> {
    /// Printable bytes as `<<"abc">>`, others as `<<1,2,3>>` (Erlang's `~p`).
    #[must_use]
    pub fn text(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            is_text_allowed: true,
        }
    }
    /// Always as `<<1,2,3>>` (Erlang's `~w`).
    #[must_use]
    pub fn numbers(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            is_text_allowed: false,
        }
    }

    fn escape(byte: u8) -> Option<&'static str> {
        Some(match byte {
            0x08 => "\\b",
            b'\t' => "\\t",
            b'\n' => "\\n",
            0x0b => "\\v",
            0x0c => "\\f",
            b'\r' => "\\r",
            0x1b => "\\e",
            b'"' => "\\\"",
            b'\\' => "\\\\",
            _ => return None,
        })
    }

    fn is_printable(byte: u8) -> bool {
        matches!(byte, 0x20..=0x7e) || Self::escape(byte).is_some()
    }
}

impl fmt::Display for ErlangBinary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_text = self.is_text_allowed
            && !self.bytes.is_empty()
            && self.bytes.iter().copied().all(Self::is_printable);
        f.write_str("<<")?;
        if is_text {
            f.write_str("\"")?;
            for &byte in self.bytes {
                match Self::escape(byte) {
                    Some(escaped) => f.write_str(escaped)?,
                    None => write!(f, "{}", char::from(byte))?,
                }
            }
            f.write_str("\"")?;
        } else {
            for (index, byte) in self.bytes.iter().enumerate() {
                let comma = if index == 0 { "" } else { "," };
                write!(f, "{comma}{byte}")?;
            }
        }
        f.write_str(">>")
    }
}

/// Why a frame is refused. Its text follows `NAME - ` in the reply text; class and method are 0.
///
/// After any of these the bytes that follow mean nothing: send the close, read no further (CN-55).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The payload is longer than negotiated.
    #[error(
        "type {frame_type}, all octets = <<>>: {{frame_too_large,{payload_bytes},{payload_max_bytes}}}"
    )]
    TooLarge {
        /// Type octet.
        frame_type: u8,
        /// Announced size of the payload.
        payload_bytes: u32,
        /// Its official limit, without slack.
        payload_max_bytes: u32,
    },
    /// The end octet is another one: the size was wrong or the stream is damaged.
    #[error("type {frame_type}, {snippet}: {{invalid_frame_end_marker,{end}}}")]
    BadEnd {
        /// Type octet.
        frame_type: u8,
        /// Start of the payload.
        snippet: Snippet,
        /// The octet found.
        end: u8,
    },
    /// A frame of no known type, or whose payload cannot be one of its type: a method or content header
    /// too short to name itself, a heartbeat that says something.
    #[error("type {frame_type}, {snippet}: unknown_frame")]
    Unknown {
        /// Type octet.
        frame_type: u8,
        /// Start of the payload.
        snippet: Snippet,
    },
    /// A well-formed frame on a channel where its type has no place: heartbeats elsewhere than on channel
    /// 0, content on channel 0.
    #[error("type {frame_type}, {snippet}")]
    Unexpected {
        /// Type octet.
        frame_type: u8,
        /// Start of the payload.
        snippet: Snippet,
    },
}

impl FrameError {
    /// The code that closes the connection.
    #[must_use]
    pub const fn reply_code(&self) -> ConnectionReplyCode {
        match self {
            Self::TooLarge { .. } | Self::BadEnd { .. } | Self::Unknown { .. } => {
                ConnectionReplyCode::FrameError
            }
            Self::Unexpected { .. } => ConnectionReplyCode::UnexpectedFrame,
        }
    }

    /// A frame whose payload is too short for its type.
    #[must_use]
    pub fn unknown(kind: FrameKind, payload: &[u8]) -> Self {
        Self::Unknown {
            frame_type: kind.octet(),
            snippet: Snippet::of(payload),
        }
    }

    /// A frame on a channel where its type has no place.
    #[must_use]
    pub fn unexpected(kind: FrameKind, payload: &[u8]) -> Self {
        Self::Unexpected {
            frame_type: kind.octet(),
            snippet: Snippet::of(payload),
        }
    }
}

/// The official limit of a payload; `frame_max` 0 is no limit by AMQP, and a generous one here.
pub(super) fn payload_max_bytes(frame_max: u32) -> u32 {
    match frame_max {
        0 => u32::try_from(CONTENT_MAX_BYTES).unwrap_or(u32::MAX),
        _ => frame_max.saturating_sub(FRAME_OVERHEAD_BYTES),
    }
}

/// Takes the next complete frame from the front of `input`; `Ok(None)` when more bytes are needed.
///
/// `frame_max` is the negotiated size of a whole frame, or
/// [`FRAME_MAX_BEFORE_TUNE`](super::limits::FRAME_MAX_BEFORE_TUNE). Heartbeats are
/// returned like other frames, and are what they should be.
///
/// # Errors
/// See [`FrameError`]. `input` is then in no useful state.
pub fn decode(input: &mut BytesMut, frame_max: u32) -> Result<Option<Frame>, FrameError> {
    let Some(
        &[
            frame_type,
            channel_0,
            channel_1,
            size_0,
            size_1,
            size_2,
            size_3,
        ],
    ) = input.first_chunk::<FRAME_HEADER_BYTES>()
    else {
        return Ok(None);
    };
    let channel = u16::from_be_bytes([channel_0, channel_1]);
    let payload_bytes = u32::from_be_bytes([size_0, size_1, size_2, size_3]);
    let payload_max_bytes = payload_max_bytes(frame_max);
    if payload_bytes > payload_max_bytes.saturating_add(FRAME_SLACK_BYTES) {
        return Err(FrameError::TooLarge {
            frame_type,
            payload_bytes,
            payload_max_bytes,
        });
    }
    let size = usize::try_from(payload_bytes).unwrap_or(usize::MAX);
    let Some(&end) = input.get(size.saturating_add(FRAME_HEADER_BYTES)) else {
        return Ok(None);
    };
    input.advance(FRAME_HEADER_BYTES);
    let payload = input.split_to(size).freeze();
    input.advance(1);
    check(frame_type, channel, payload, end).map(Some)
}

/// A complete frame where it lies, of any type.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawFrame<'a> {
    /// Type octet.
    pub(super) kind: u8,
    pub(super) channel: u16,
    pub(super) payload: &'a [u8],
    /// All of it.
    pub(super) bytes: &'a [u8],
}

impl RawFrame<'_> {
    /// No frame.
    pub(super) const NONE: Self = Self {
        kind: 0,
        channel: 0,
        payload: &[],
        bytes: &[],
    };
}

/// Bytes of the frame that `input` begins with, as its header says; `None` when that is not there yet. Nothing is judged.
#[must_use]
pub(crate) fn announced_len(input: &[u8]) -> Option<usize> {
    let (&[.., size_0, size_1, size_2, size_3], _) =
        input.split_first_chunk::<FRAME_HEADER_BYTES>()?;
    let payload_bytes = u32::from_be_bytes([size_0, size_1, size_2, size_3]);
    let payload_bytes = usize::try_from(payload_bytes).ok()?;
    payload_bytes.checked_add(FRAME_HEADER_BYTES + 1)
}

/// Bytes of the frame at the front of `input`, when it is complete, ends as it should and holds at most `payload_max_bytes`.
#[must_use]
pub(crate) fn front_len(input: &[u8], payload_max_bytes: u32) -> Option<usize> {
    front(input, payload_max_bytes).map(|frame| frame.bytes.len())
}

/// The frame at the front of `input`, when it is complete, ends as it should and holds at most `payload_max_bytes`, slack
/// included.
pub(super) fn front(input: &[u8], payload_max_bytes: u32) -> Option<RawFrame<'_>> {
    let (&[kind, channel_0, channel_1, size_0, size_1, size_2, size_3], rest) =
        input.split_first_chunk::<FRAME_HEADER_BYTES>()?;
    let payload_bytes = u32::from_be_bytes([size_0, size_1, size_2, size_3]);
    if payload_bytes > payload_max_bytes {
        return None;
    }
    let size = usize::try_from(payload_bytes).ok()?;
    let (payload, after) = rest.split_at_checked(size)?;
    if *after.first()? != FRAME_END {
        return None;
    }
    Some(RawFrame {
        kind,
        channel: u16::from_be_bytes([channel_0, channel_1]),
        payload,
        bytes: input.get(..FRAME_HEADER_BYTES + size + 1)?,
    })
}

/// Judges a complete frame, in RabbitMQ's order.
fn check(frame_type: u8, channel: u16, payload: Bytes, end: u8) -> Result<Frame, FrameError> {
    if end != FRAME_END {
        return Err(FrameError::BadEnd {
            frame_type,
            snippet: Snippet::of(&payload),
            end,
        });
    }
    let Some(kind) = FrameKind::from_octet(frame_type) else {
        return Err(FrameError::Unknown {
            frame_type,
            snippet: Snippet::of(&payload),
        });
    };
    if kind == FrameKind::Heartbeat {
        if !payload.is_empty() {
            return Err(FrameError::unknown(kind, &payload));
        }
        if channel != 0 {
            return Err(FrameError::unexpected(kind, &payload));
        }
    }
    Ok(Frame {
        kind,
        channel,
        payload,
    })
}

/// Appends the seven bytes before a payload of known size.
pub(super) fn put_header(out: &mut BytesMut, kind: FrameKind, channel: u16, size: u32) {
    let [channel_0, channel_1] = channel.to_be_bytes();
    let [size_0, size_1, size_2, size_3] = size.to_be_bytes();
    // One write instead of three: this is done three times for a delivery.
    out.put_slice(&[
        kind.octet(),
        channel_0,
        channel_1,
        size_0,
        size_1,
        size_2,
        size_3,
    ]);
}

/// Appends a frame with the payload that `write` appends.
pub fn encode(
    out: &mut BytesMut,
    kind: FrameKind,
    channel: u16,
    write: impl FnOnce(&mut BytesMut),
) {
    let frame_at = out.len();
    put_header(out, kind, channel, 0);
    let payload_at = out.len();
    write(out);
    let size = u32::try_from(out.len() - payload_at)
        .expect("everything that is encoded is smaller than 4 GiB");
    out[frame_at + 3..payload_at].copy_from_slice(&size.to_be_bytes());
    out.put_u8(FRAME_END);
}

/// Appends a heartbeat.
pub fn encode_heartbeat(out: &mut BytesMut) {
    encode(out, FrameKind::Heartbeat, 0, |_| {});
}

#[cfg(test)]
mod tests;
