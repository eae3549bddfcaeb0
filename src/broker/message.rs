//! A message: where it was published, its properties and its body; and its bytes in the log.
//!
//! What the log stores for it, all integers little endian; storage-format.md has it as a table:
//!
//! ```text
//!  | flags u8 | len u8, exchange | len u8, routing key | count u16, { len u8, key }* | len u32, properties | body |
//!                                                       '-- keys of BCC, see (2) --'
//!  '------------------------------- head: one buffer, small bodies included --------------------------- ... '
//! ```
//!
//! 1. The head is written once, when the message is built; all other parts are slices of it. A small body is
//!    copied into it, so a small message does not keep a large read buffer alive, unless the buffer is counted: then the head is
//!    put in front of the body ([`LooseMessage`]). A message knows where its parts lie. A short
//!    head has no memory of its own: it lies in the message ([`Stored::Short`]).
//! 2. Keys of the `BCC` header are kept beside the properties, since that header is removed before delivery
//!    but dead-lettering still routes by it.
//! 3. Flag bit 0 says that the `x-death` header was written by a broker. Without it, it came from a client
//!    and counts for nothing.
//! 4. Flag bit 1 says that a dead-letter routing key took the place of all keys it was published with: its
//!    `CC` header is only shown from then on.
//! 5. Looking at a message leaves nothing in it: [`Message::size_bytes`] is all it ever takes of its own, however it was routed (a
//!    buffer that it shares, (1), is counted where it comes from), and what it takes off a budget when it goes is what it brought. So there are two ways to look: borrowed bytes (`raw_*`,
//!    [`Message::stored_body`]) on the way of every message, and copies that are thrown away (all others) where the
//!    broker is asked for something. Never slices of the head: the first one moves the head to a shared allocation, which
//!    stays as long as the message.

mod layout;
mod loose;
mod stored;

use bytes::{BufMut, Bytes, BytesMut};
use smallvec::SmallVec;

use self::layout::Layout;
pub use self::loose::LooseMessage;
use self::stored::Stored;
use crate::amqp::properties::{Checked, Properties};
use crate::amqp::short_string::ShortString;
use crate::storage::types::Payload;

/// Bodies up to this are copied into the head. A quarter of a connection's read buffer: a slice that keeps
/// less than that of its buffer alive is not worth the buffer.
pub const COPIED_BODY_MAX_BYTES: usize = 32 * 1024;

/// Longer names and properties than these are not compared with those of the next message.
const REMEMBERED_MAX_BYTES: usize = 512;

/// Bit of the flags byte, see (3).
pub const FLAG_HAS_DEATHS: u8 = 1;
/// Bit of the flags byte, see (4).
pub const FLAG_IS_REKEYED: u8 = 2;
/// Bits that mean nothing yet; a payload that has one was written by a newer version.
const UNKNOWN_FLAGS: u8 = !(FLAG_HAS_DEATHS | FLAG_IS_REKEYED);

/// An immutable message, shared by all queues and consumers that hold it. Two lines of the processor's cache, together
/// with the counts of its `Arc`.
#[derive(Debug)]
pub struct Message {
    stored: Stored,
    /// Of messages that will go to the log; computed before a queue's lock is taken.
    payload_crc: Option<u32>,
    layout: Layout,
}

const _: () = assert!(size_of::<Message>() <= 96);

/// A message's body as it is stored: bytes, then parts.
#[derive(Clone, Copy, Debug)]
pub struct StoredBody<'a> {
    /// All of it, when the message is short.
    pub front: &'a [u8],
    /// The parts.
    pub parts: &'a [Bytes],
    /// Bytes to skip at the start of the first part.
    pub skip_bytes: usize,
}

/// A message that was published in few frames, as it lies there.
#[derive(Clone, Copy, Debug)]
pub struct RawMessage<'a> {
    /// Exchange and routing key, each behind an octet with its length: in `basic.publish` they stand as in the head. They
    /// are those of [`ShortString`]s.
    pub names: &'a [u8],
    /// Bytes of the exchange's name.
    pub exchange_len: u8,
    /// Bytes of the routing key.
    pub routing_key_len: u8,
    /// The property section.
    pub properties: &'a [u8],
    /// What the check of it has found.
    pub checked: Checked,
    /// The body, at most [`COPIED_BODY_MAX_BYTES`].
    pub body: &'a [u8],
}

/// What a message is made of.
#[derive(Clone, Debug, Default)]
pub struct MessageParts {
    /// Exchange it is published to.
    pub exchange: ShortString,
    /// Routing key it is published with.
    pub routing_key: ShortString,
    /// Keys of its `BCC` header, which is not in `properties` any more.
    pub bcc: Vec<ShortString>,
    /// Its properties.
    pub properties: Properties,
    /// Its body, in parts.
    pub body: Vec<Bytes>,
    /// Its `x-death` header was written by a broker.
    pub has_deaths: bool,
    /// Its routing key is its only one, whatever its `CC` header says.
    pub is_rekeyed: bool,
}

/// A payload that no version of this broker wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// It ends too early.
    #[error("message payload is cut short")]
    Truncated,
    /// It has a flag this version does not know.
    #[error("message payload has unknown flags {flags:#04x}: written by a newer version")]
    UnknownFlags {
        /// The flags.
        flags: u8,
    },
    /// Names or properties are malformed.
    #[error("message payload has malformed {field}")]
    Malformed {
        /// Which.
        field: &'static str,
    },
}

impl Message {
    /// A message as published.
    #[must_use]
    pub fn new(
        exchange: ShortString,
        routing_key: ShortString,
        properties: Properties,
        body: impl AsRef<[Bytes]>,
    ) -> Self {
        let names = Names {
            exchange: &exchange,
            routing_key: &routing_key,
            bcc: &[],
        };
        Self::build(&names, &properties, body.as_ref(), 0)
    }

    /// A message with everything it may have.
    #[must_use]
    pub fn from_parts(parts: &MessageParts) -> Self {
        // A header holds fewer keys than its bytes: at most 4 GiB / 5, in practice a frame's worth. What
        // is above 65535 keys is not kept for dead-lettering.
        let bcc_count = parts.bcc.len().min(usize::from(u16::MAX));
        let names = Names {
            exchange: &parts.exchange,
            routing_key: &parts.routing_key,
            bcc: &parts.bcc[..bcc_count],
        };
        let deaths = if parts.has_deaths { FLAG_HAS_DEATHS } else { 0 };
        let rekeyed = if parts.is_rekeyed { FLAG_IS_REKEYED } else { 0 };
        let flags = deaths | rekeyed;
        Self::build(&names, &parts.properties, &parts.body, flags)
    }

    /// A message as published, from the bytes that were read.
    #[must_use]
    pub fn from_raw(raw: &RawMessage<'_>) -> Self {
        let [len_0, len_1, len_2, len_3] = length_u32(raw.properties.len()).to_le_bytes();
        let stored = Stored::of_pieces([
            &[0],
            raw.names,
            // No keys of BCC, then the length of the properties.
            &[0, 0, len_0, len_1, len_2, len_3],
            raw.properties,
            raw.body,
        ]);
        let layout = Layout::published(
            (raw.exchange_len, raw.routing_key_len),
            raw.names.len(),
            raw.properties.len(),
            raw.checked,
        );
        Self::of_stored(layout, stored)
    }

    /// A message published as this one was, with another body of at most [`COPIED_BODY_MAX_BYTES`]: everything in front of the
    /// body is copied as it stands.
    #[must_use]
    pub fn with_body(&self, body: &[u8]) -> Self {
        let (before_body, _) = self.head().split_at(self.layout.body_at());
        Self::of_stored(self.layout, Stored::of_pieces([before_body, body]))
    }

    /// Writes the head. Nothing is parsed: it was checked before.
    fn build(names: &Names<'_>, properties: &Properties, body: &[Bytes], flags: u8) -> Self {
        let body_bytes: usize = body.iter().map(Bytes::len).sum();
        let is_copied = body_bytes <= COPIED_BODY_MAX_BYTES;
        let (copied_body, kept_body) = if is_copied {
            (body, &[][..])
        } else {
            (&[][..], body)
        };
        let head = encode_head(names, properties, copied_body, flags);
        let body_at = head.len() - if is_copied { body_bytes } else { 0 };
        let layout = Layout {
            flags,
            exchange_len: name_len(names.exchange),
            routing_key_len: name_len(names.routing_key),
            properties_at: length_u32(body_at - properties.raw().len()),
            body_at: length_u32(body_at),
            properties: properties.checked(),
        };
        Self::of_stored(layout, Stored::of_parts(head, kept_body))
    }

    /// A message of a payload that was just written.
    #[inline]
    fn of_stored(layout: Layout, stored: Stored) -> Self {
        let is_persistent = layout.properties.is_persistent();
        Self {
            payload_crc: is_persistent.then(|| crc_of(stored.payload())),
            layout,
            stored,
        }
    }

    /// Reads what the log stored.
    ///
    /// # Errors
    /// [`PayloadError`]: the bytes were not written by [`Message::payload`].
    pub fn decode_payload(payload: Bytes) -> Result<Self, PayloadError> {
        let layout = Layout::of(&payload)?;
        Ok(Self::of_payload(layout, payload))
    }

    /// The message whose payload is `head`, which stays where it lies.
    fn of_payload(layout: Layout, head: Bytes) -> Self {
        Self {
            layout,
            // It is in the log already; what is written again is built anew.
            payload_crc: None,
            stored: Stored::Parts(SmallVec::from_buf([head])),
        }
    }

    #[inline]
    fn head(&self) -> &[u8] {
        self.stored.head()
    }

    /// What it is made of, but for the body: a copy.
    #[must_use]
    pub fn head_parts(&self) -> MessageParts {
        let names_and_properties = &self.head()[..self.layout.body_at()];
        self.layout
            .parts_of(&Bytes::copy_from_slice(names_and_properties))
    }

    /// What it is made of: a copy, but for a large body.
    #[must_use]
    pub fn to_parts(&self) -> MessageParts {
        MessageParts {
            body: self.body(),
            ..self.head_parts()
        }
    }

    /// Exchange and routing key as they stand in the head, and in `basic.deliver`: each behind an octet with its length. Equal
    /// for messages that were published to the same place.
    #[must_use]
    pub fn raw_names(&self) -> &[u8] {
        let names_len =
            2 + usize::from(self.layout.exchange_len) + usize::from(self.layout.routing_key_len);
        &self.head()[1..=names_len]
    }
    /// Exchange it was published to: a copy.
    #[must_use]
    pub fn exchange(&self) -> ShortString {
        copied_name(self.raw_exchange())
    }
    /// Its bytes.
    #[must_use]
    pub fn raw_exchange(&self) -> &[u8] {
        let start = Layout::EXCHANGE_AT;
        &self.head()[start..start + usize::from(self.layout.exchange_len)]
    }
    /// Routing key it was published with: a copy.
    #[must_use]
    pub fn routing_key(&self) -> ShortString {
        copied_name(self.raw_routing_key())
    }
    /// Its bytes.
    #[must_use]
    pub fn raw_routing_key(&self) -> &[u8] {
        let start = self.layout.routing_key_at();
        &self.head()[start..start + usize::from(self.layout.routing_key_len)]
    }
    /// Its properties: a copy.
    #[must_use]
    pub fn properties(&self) -> Properties {
        let raw = Bytes::copy_from_slice(self.raw_properties());
        self.layout.properties.over(raw)
    }
    /// Their bytes.
    #[must_use]
    pub fn raw_properties(&self) -> &[u8] {
        &self.head()[self.layout.properties_at()..self.layout.body_at()]
    }
    /// What the check of its properties has found.
    #[must_use]
    pub fn checked_properties(&self) -> &Checked {
        &self.layout.properties
    }
    /// Its body, in parts; a copy when it is small.
    #[must_use]
    pub fn body(&self) -> Vec<Bytes> {
        match &self.stored {
            Stored::Parts(parts) if parts.len() > 1 => parts[1..].to_vec(),
            _ => vec![Bytes::copy_from_slice(
                &self.head()[self.layout.body_at()..],
            )],
        }
    }
    /// Its body as it is stored.
    #[inline]
    #[must_use]
    pub fn stored_body(&self) -> StoredBody<'_> {
        self.stored.body(self.layout.body_at())
    }
    /// [`touch`](crate::cache_line::touch)es the message as it is stored; of a body in several parts, which are not copied, the first.
    #[inline]
    #[must_use]
    pub fn touch(&self) -> u8 {
        self.stored.touch()
    }
    /// Bytes of the body.
    #[must_use]
    pub fn body_len(&self) -> usize {
        self.payload_len() - self.layout.body_at()
    }
    /// Bytes it keeps in memory, about.
    #[inline]
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let outside_bytes = match self.stored {
            Stored::Short { .. } => 0,
            Stored::Parts(_) => self.payload_len(),
        };
        outside_bytes + size_of::<Self>()
    }
    /// What the log stores for it.
    #[inline]
    #[must_use]
    pub fn payload(&self) -> Payload<'_> {
        self.stored.payload()
    }
    /// Bytes of the payload.
    #[inline]
    #[must_use]
    pub fn payload_len(&self) -> usize {
        self.stored.len()
    }
    /// CRC-32 of the payload; computed when the message was built, if it is persistent.
    #[must_use]
    pub fn payload_crc(&self) -> u32 {
        self.payload_crc.unwrap_or_else(|| crc_of(self.payload()))
    }
    /// Its delivery mode is 2.
    #[must_use]
    pub fn is_persistent(&self) -> bool {
        self.layout.properties.is_persistent()
    }
    /// Its own time to live, from the `expiration` property.
    #[inline]
    #[must_use]
    pub fn ttl_ms(&self) -> Option<u64> {
        self.layout.ttl_ms(self.head())
    }
    /// Its `x-death` header was written by a broker.
    #[must_use]
    pub fn has_deaths(&self) -> bool {
        self.layout.has_deaths()
    }
    /// Its routing key is its only one, whatever its `CC` header says.
    #[must_use]
    pub fn is_rekeyed(&self) -> bool {
        self.layout.is_rekeyed()
    }
}

/// Reads messages that the log stored one after the other. They often look the same but for the body, and what was checked
/// once is not checked again.
#[derive(Debug, Default)]
pub struct PayloadDecoder {
    /// What stands before the body of the last one, which says alone what lies where.
    before_body: Vec<u8>,
    last: Option<Layout>,
}

impl PayloadDecoder {
    /// As [`Message::decode_payload`].
    ///
    /// # Errors
    /// As [`Message::decode_payload`].
    pub fn decode(&mut self, payload: Bytes) -> Result<Message, PayloadError> {
        if let Some(layout) = self.last
            && payload.starts_with(&self.before_body)
        {
            return Ok(Message::of_payload(layout, payload));
        }
        let message = Message::decode_payload(payload)?;
        let before_body = message.head().get(..message.layout.body_at());
        let before_body = before_body.filter(|bytes| bytes.len() <= REMEMBERED_MAX_BYTES);
        self.last = before_body.map(|before_body| {
            self.before_body.clear();
            self.before_body.extend_from_slice(before_body);
            message.layout
        });
        Ok(message)
    }
}

/// Longest time to live, 10 years, as RabbitMQ has it.
pub const TTL_MAX_MS: u64 = 315_360_000_000;

/// Understands the `expiration` property: decimal milliseconds, an optional `+`, at most
/// [`TTL_MAX_MS`]; `None` when it is anything else (the publish is refused then).
#[must_use]
pub fn parse_expiration(text: &[u8]) -> Option<u64> {
    let digits = text.strip_prefix(b"+").unwrap_or(text);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (value <= TTL_MAX_MS).then_some(value)
}

/// Where a message was published, borrowed.
struct Names<'a> {
    exchange: &'a ShortString,
    routing_key: &'a ShortString,
    /// At most 65535.
    bcc: &'a [ShortString],
}

fn encode_head(
    names: &Names<'_>,
    properties: &Properties,
    copied_body: &[Bytes],
    flags: u8,
) -> Bytes {
    let name_bytes = |name: &ShortString| 1 + name.len();
    let raw = properties.raw();
    let capacity = 7
        + name_bytes(names.exchange)
        + name_bytes(names.routing_key)
        + names.bcc.iter().map(name_bytes).sum::<usize>()
        + raw.len()
        + copied_body.iter().map(Bytes::len).sum::<usize>();
    let mut head = BytesMut::with_capacity(capacity);
    head.put_u8(flags);
    put_name(&mut head, names.exchange);
    put_name(&mut head, names.routing_key);
    head.put_u16_le(u16::try_from(names.bcc.len()).expect("the caller cut them"));
    for key in names.bcc {
        put_name(&mut head, key);
    }
    head.put_u32_le(length_u32(raw.len()));
    head.put_slice(raw);
    for part in copied_body {
        head.put_slice(part);
    }
    head.freeze()
}

fn length_u32(len: usize) -> u32 {
    u32::try_from(len).expect("keys of 16 MiB, and properties that fit a frame")
}

fn name_len(name: &ShortString) -> u8 {
    u8::try_from(name.len()).expect("a short string is at most 255 bytes")
}

/// A name of a head, which was checked.
fn copied_name(bytes: &[u8]) -> ShortString {
    ShortString::new(Bytes::copy_from_slice(bytes)).unwrap_or_default()
}

fn crc_of(payload: Payload<'_>) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    for piece in payload.pieces().filter(|piece| !piece.is_empty()) {
        crc.update(piece);
    }
    crc.finalize()
}

fn put_name(head: &mut BytesMut, name: &ShortString) {
    head.put_u8(name_len(name));
    head.put_slice(name.as_bytes());
}

#[cfg(test)]
mod tests;
