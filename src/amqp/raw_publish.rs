//! Whole publishes at the front of a read buffer, looked at where they lie.
//!
//! ```text
//!  method frame: basic.publish | header frame | body frame | method frame: basic.publish | ..
//!  '----------------- one RawPublish -----------------------' '--------- the next one ------ ..
//! ```
//! Nearly all of what a publisher sends is like this. Nothing is taken out of the buffer and nothing shared: parts are
//! borrowed. A publish that repeats the one before, byte for byte up to its body, is found by one comparison and not decoded
//! again; one that has only another routing key, of the same length, by two; and so is each of its first two frames alone, where
//! lengths or other names differ.
//!
//! 1. Whoever reads a publish here gets what [`frame::decode`], [`Method::decode`](super::method::Method::decode) and
//!    [`ContentHeader::decode`](super::content::ContentHeader::decode) would give, or nothing: whatever is incomplete, wrong,
//!    unusual or something else ends the reading, and is the general path's. So no error comes from here.
//! 2. A publish that asks for `immediate` is unusual (it is refused), and so is a body in several frames.

use std::ops::Range;

use super::frame::{self, FRAME_END, FrameKind, RawFrame};
use super::limits::{FRAME_HEADER_BYTES, FRAME_SLACK_BYTES};
use super::method::basic;
use super::properties::Checked;
use super::short_string::ShortString;
use super::wire::{take, take_array, take_u8, take_u16, take_u64};

/// Bit of the arguments' last octet (AMQP 0-9-1 section 4.2.5.2: the first one lowest).
const IS_MANDATORY: u8 = 1;
/// The second one.
const IS_IMMEDIATE: u8 = 2;

/// What ends a frame.
const FRAME_END_BYTES: usize = 1;

/// Where the names begin: behind the header, class and method, and the ticket.
const NAMES_AT: usize = FRAME_HEADER_BYTES + METHOD_ID.len() + 2;

/// Class and method of `basic.publish` on the wire.
const METHOD_ID: [u8; 4] = {
    let [class_0, class_1] = basic::Publish::ID.class_id.to_be_bytes();
    let [method_0, method_1] = basic::Publish::ID.method_id.to_be_bytes();
    [class_0, class_1, method_0, method_1]
};

/// A `basic.publish` with its whole content.
#[derive(Clone, Copy, Debug)]
pub struct RawPublish<'a> {
    /// Channel of all its frames.
    pub channel: u16,
    /// Its flag.
    pub is_mandatory: bool,
    /// Exchange and routing key, each behind an octet with its length; both are valid [`ShortString`]s.
    pub names: &'a [u8],
    /// Bytes of the exchange's name.
    pub exchange_len: u8,
    /// Bytes of the routing key.
    pub routing_key_len: u8,
    /// The property section.
    pub properties: &'a [u8],
    /// What the check of it has found.
    pub checked: Checked,
    /// The body.
    pub body: &'a [u8],
    /// Bytes of all its frames.
    pub frames_len: usize,
    /// All but the body is as in the publish before it.
    pub is_repeated: bool,
}

impl RawPublish<'_> {
    /// Where the names lie in its frames.
    #[must_use]
    pub fn names_range(&self) -> Range<usize> {
        NAMES_AT..NAMES_AT + self.names.len()
    }

    /// Where the routing key lies in its frames.
    fn routing_key_range(&self) -> Range<usize> {
        let end = self.names_range().end;
        end - usize::from(self.routing_key_len)..end
    }

    /// Where the property section lies in its frames: at the end of the one that stands before the body, which is not empty.
    #[must_use]
    pub fn properties_range(&self) -> Range<usize> {
        let end = self.body_at() - FRAME_HEADER_BYTES - FRAME_END_BYTES;
        end - self.properties.len()..end
    }

    /// Where the body, which is not empty, begins in its frames.
    #[must_use]
    pub fn body_at(&self) -> usize {
        self.frames_len - FRAME_END_BYTES - self.body.len()
    }
}

/// Reads one publish after the other.
#[derive(Debug)]
pub struct PublishReader<'a> {
    rest: &'a [u8],
    payload_max_bytes: u32,
    body_max_bytes: usize,
    /// Of the publish before.
    method: Option<PublishMethod<'a>>,
    header: Option<PublishHeader<'a>>,
    last: Option<LastPublish<'a>>,
}

/// The publish before.
#[derive(Clone, Copy, Debug)]
struct LastPublish<'a> {
    /// Everything in front of its body: two frames, and the start of the third one if it has a body.
    before_body: &'a [u8],
    publish: RawPublish<'a>,
}

/// The method frame.
#[derive(Clone, Copy, Debug)]
struct PublishMethod<'a> {
    frame: &'a [u8],
    channel: u16,
    is_mandatory: bool,
    names: &'a [u8],
    exchange_len: u8,
    routing_key_len: u8,
}

/// The header frame.
#[derive(Clone, Copy, Debug)]
struct PublishHeader<'a> {
    frame: &'a [u8],
    channel: u16,
    body_bytes: usize,
    properties: &'a [u8],
    checked: Checked,
}

impl<'a> PublishReader<'a> {
    /// Reads `input`, on a connection that negotiated `frame_max` bytes a frame, as long as bodies are not longer than
    /// `body_max_bytes`.
    #[must_use]
    pub fn new(input: &'a [u8], frame_max: u32, body_max_bytes: usize) -> Self {
        let payload_max_bytes = frame::payload_max_bytes(frame_max);
        Self {
            rest: input,
            payload_max_bytes: payload_max_bytes.saturating_add(FRAME_SLACK_BYTES),
            body_max_bytes,
            method: None,
            header: None,
            last: None,
        }
    }

    /// The publish at the front of `input`, if it differs from the one before in nothing but the octets of its body: so what
    /// was found about that one's frames, their lengths included, holds for these.
    #[inline]
    fn repeated(&self, input: &'a [u8]) -> Option<RawPublish<'a>> {
        let LastPublish {
            before_body,
            publish,
        } = self.last?;
        let frames = input.get(..publish.frames_len)?;
        let (start, rest) = frames.split_at_checked(before_body.len())?;
        if start != before_body {
            return None;
        }
        let (body, end) = rest.split_at_checked(publish.body.len())?;
        let is_ended = end.first().is_none_or(|octet| *octet == FRAME_END);
        is_ended.then_some(RawPublish {
            body,
            is_repeated: true,
            ..publish
        })
    }

    /// The same if another routing key of the same length is all that differs besides: that of a publisher that goes round
    /// several queues.
    #[inline]
    fn rekeyed(&mut self, input: &'a [u8]) -> Option<RawPublish<'a>> {
        let LastPublish {
            before_body,
            publish,
        } = self.last?;
        let frames = input.get(..publish.frames_len)?;
        let (start, rest) = frames.split_at_checked(before_body.len())?;
        let Range {
            start: key_at,
            end: key_end,
        } = publish.routing_key_range();
        let is_alike = start.get(..key_at)? == before_body.get(..key_at)?
            && start.get(key_end..)? == before_body.get(key_end..)?;
        if !is_alike || !ShortString::is_valid(start.get(key_at..key_end)?) {
            return None;
        }
        let (body, end) = rest.split_at_checked(publish.body.len())?;
        if end.first().is_some_and(|octet| *octet != FRAME_END) {
            return None;
        }
        let publish = RawPublish {
            names: start.get(publish.names_range())?,
            body,
            is_repeated: false,
            ..publish
        };
        self.last = Some(LastPublish {
            before_body: start,
            publish,
        });
        Some(publish)
    }

    /// The publish at the front of `input`, frame by frame.
    fn different(&mut self, input: &'a [u8]) -> Option<RawPublish<'a>> {
        let method = self.method(input)?;
        let header_at = method.frame.len();
        let header = self.header(input.get(header_at..)?)?;
        if header.channel != method.channel || header.body_bytes > self.body_max_bytes {
            return None;
        }
        let body_at = header_at + header.frame.len();
        let body = self.body(input.get(body_at..)?, &header)?;
        let publish = RawPublish {
            channel: method.channel,
            is_mandatory: method.is_mandatory,
            names: method.names,
            exchange_len: method.exchange_len,
            routing_key_len: method.routing_key_len,
            properties: header.properties,
            checked: header.checked,
            body: body.payload,
            frames_len: body_at + body.bytes.len(),
            is_repeated: false,
        };
        self.method = Some(method);
        self.header = Some(header);
        let behind_bytes = match body.payload.is_empty() {
            true => 0,
            false => body.payload.len() + FRAME_END_BYTES,
        };
        let before_body = input.get(..publish.frames_len - behind_bytes)?;
        self.last = Some(LastPublish {
            before_body,
            publish,
        });
        Some(publish)
    }

    /// False when `input` begins with something else, which costs nothing to see.
    #[must_use]
    pub fn may_read(input: &[u8]) -> bool {
        let kind = input.first();
        let id = input.get(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + METHOD_ID.len());
        kind == Some(&FrameKind::Method.octet()) && id == Some(&METHOD_ID)
    }

    fn frame(&self, input: &'a [u8]) -> Option<RawFrame<'a>> {
        frame::front(input, self.payload_max_bytes)
    }

    /// The method at the front of `input`.
    fn method(&self, input: &'a [u8]) -> Option<PublishMethod<'a>> {
        match self.method {
            Some(method) if input.starts_with(method.frame) => Some(method),
            _ => PublishMethod::of(&self.frame(input)?),
        }
    }

    fn header(&self, input: &'a [u8]) -> Option<PublishHeader<'a>> {
        match self.header {
            Some(header) if input.starts_with(header.frame) => Some(header),
            _ => PublishHeader::of(&self.frame(input)?),
        }
    }

    /// The body frame, which holds all of it; none when it is empty.
    fn body(&self, input: &'a [u8], header: &PublishHeader<'a>) -> Option<RawFrame<'a>> {
        if header.body_bytes == 0 {
            return Some(RawFrame::NONE);
        }
        let body = self.frame(input)?;
        let is_whole = body.payload.len() == header.body_bytes;
        let is_body = body.kind == FrameKind::Body.octet() && body.channel == header.channel;
        (is_whole && is_body).then_some(body)
    }
}

impl<'a> Iterator for PublishReader<'a> {
    type Item = RawPublish<'a>;

    #[inline]
    fn next(&mut self) -> Option<RawPublish<'a>> {
        let input = self.rest;
        let alike = self.repeated(input).or_else(|| self.rekeyed(input));
        let publish = match alike {
            Some(publish) => publish,
            None => self.different(input)?,
        };
        self.rest = input.get(publish.frames_len..)?;
        Some(publish)
    }
}

impl<'a> PublishMethod<'a> {
    fn of(frame: &RawFrame<'a>) -> Option<Self> {
        if frame.kind != FrameKind::Method.octet() {
            return None;
        }
        let mut rest = frame.payload;
        if take_array(&mut rest) != Ok(METHOD_ID) {
            return None;
        }
        let _ticket = take_u16(&mut rest).ok()?;
        let (names, exchange_len, routing_key_len) = take_names(&mut rest)?;
        let bits = take_u8(&mut rest).ok()?;
        if bits & IS_IMMEDIATE != 0 || !rest.is_empty() {
            return None;
        }
        Some(Self {
            frame: frame.bytes,
            channel: frame.channel,
            is_mandatory: bits & IS_MANDATORY != 0,
            names,
            exchange_len,
            routing_key_len,
        })
    }
}

/// Takes two names with their lengths, and their lengths again.
fn take_names<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], u8, u8)> {
    let start = *rest;
    let mut lens = [0; 2];
    for len in &mut lens {
        *len = take_u8(rest).ok()?;
        let name = take(rest, usize::from(*len)).ok()?;
        if !ShortString::is_valid(name) {
            return None;
        }
    }
    let names = start.get(..start.len() - rest.len())?;
    Some((names, lens[0], lens[1]))
}

impl<'a> PublishHeader<'a> {
    fn of(frame: &RawFrame<'a>) -> Option<Self> {
        if frame.kind != FrameKind::Header.octet() {
            return None;
        }
        let mut rest = frame.payload;
        let class_id = take_u16(&mut rest).ok()?;
        let weight: [u8; 2] = take_array(&mut rest).ok()?;
        let body_size_bytes = take_u64(&mut rest).ok()?;
        if class_id != basic::CLASS_ID || weight != [0; 2] {
            return None;
        }
        Some(Self {
            frame: frame.bytes,
            channel: frame.channel,
            body_bytes: usize::try_from(body_size_bytes).ok()?,
            properties: rest,
            checked: Checked::of(rest).ok()?,
        })
    }
}
