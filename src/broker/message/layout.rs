//! Where the parts of a head lie.

use bytes::Bytes;

use super::{
    FLAG_HAS_DEATHS, FLAG_IS_REKEYED, MessageParts, PayloadError, UNKNOWN_FLAGS, length_u32,
    parse_expiration,
};
use crate::amqp::properties::Checked;
use crate::amqp::short_string::ShortString;

/// Where the parts of a head lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// See (3) and (4) of the message.
    pub(super) flags: u8,
    pub(super) exchange_len: u8,
    pub(super) routing_key_len: u8,
    pub(super) properties_at: u32,
    /// Where the properties end and the body begins, if it stands in the head.
    pub(super) body_at: u32,
    pub(super) properties: Checked,
}

/// What a head has beside names and properties: flags, the count of keys of BCC, the length of the properties.
pub(super) const HEAD_BYTES: usize = 1 + 2 + 4;

impl Layout {
    /// The exchange's name stands behind the flags and its length.
    pub(super) const EXCHANGE_AT: usize = 2;

    /// Of a head with nothing but what was published: names of these lengths, in so many bytes, and properties.
    #[inline]
    pub(super) fn published(
        (exchange_len, routing_key_len): (u8, u8),
        names_len: usize,
        properties_len: usize,
        properties: Checked,
    ) -> Self {
        let properties_at = HEAD_BYTES + names_len;
        Self {
            flags: 0,
            exchange_len,
            routing_key_len,
            properties_at: length_u32(properties_at),
            body_at: length_u32(properties_at + properties_len),
            properties,
        }
    }

    /// Checks a head; what is behind it is the body.
    pub(super) fn of(head: &[u8]) -> Result<Self, PayloadError> {
        let mut reader = Reader { bytes: head };
        let flags = reader.u8()?;
        if flags & UNKNOWN_FLAGS != 0 {
            return Err(PayloadError::UnknownFlags { flags });
        }
        let exchange_len = reader.name("exchange")?;
        let routing_key_len = reader.name("routing key")?;
        for _ in 0..reader.u16()? {
            reader.name("bcc")?;
        }
        let properties_len = reader.u32()?;
        let properties_at = head.len() - reader.bytes.len();
        let raw = reader.take(usize::try_from(properties_len).unwrap_or(usize::MAX))?;
        let properties = Checked::of(raw).map_err(|_| PayloadError::Malformed {
            field: "properties",
        })?;
        let at = |offset: usize| u32::try_from(offset).map_err(|_| PayloadError::Truncated);
        Ok(Self {
            flags,
            exchange_len,
            routing_key_len,
            properties_at: at(properties_at)?,
            body_at: at(properties_at + raw.len())?,
            properties,
        })
    }

    pub(super) fn has_deaths(&self) -> bool {
        self.flags & FLAG_HAS_DEATHS != 0
    }

    pub(super) fn is_rekeyed(&self) -> bool {
        self.flags & FLAG_IS_REKEYED != 0
    }

    pub(super) fn properties_at(&self) -> usize {
        // Lossless: an offset into bytes that are in memory.
        usize::try_from(self.properties_at).unwrap_or(usize::MAX)
    }

    pub(super) fn body_at(&self) -> usize {
        usize::try_from(self.body_at).unwrap_or(usize::MAX)
    }

    /// The time to live that the properties in `head` say.
    #[inline]
    pub(super) fn ttl_ms(&self, head: &[u8]) -> Option<u64> {
        let raw = head.get(self.properties_at()..self.body_at())?;
        self.properties.expiration(raw).and_then(parse_expiration)
    }

    pub(super) fn routing_key_at(&self) -> usize {
        Self::EXCHANGE_AT + usize::from(self.exchange_len) + 1
    }

    /// The parts of a head that was checked, each as a slice of it; no body.
    pub(super) fn parts_of(&self, head: &Bytes) -> MessageParts {
        let mut rest = Slices { head, at: 1 };
        let exchange = rest.next_name();
        let routing_key = rest.next_name();
        let bcc_count = head[rest.at..]
            .first_chunk()
            .map_or(0, |count| u16::from_le_bytes(*count));
        rest.at += 2;
        let bcc = (0..bcc_count).map(|_| rest.next_name()).collect();
        let raw = head.slice(self.properties_at()..self.body_at());
        MessageParts {
            exchange,
            routing_key,
            bcc,
            properties: self.properties.over(raw),
            body: Vec::new(),
            has_deaths: self.has_deaths(),
            is_rekeyed: self.is_rekeyed(),
        }
    }
}

/// Takes slices off a head that was checked.
struct Slices<'a> {
    head: &'a Bytes,
    at: usize,
}

impl Slices<'_> {
    fn take(&mut self, len: usize) -> Bytes {
        let from = self.at;
        self.at += len;
        self.head.slice(from..self.at)
    }
    /// The next name of a head that was checked.
    fn next_name(&mut self) -> ShortString {
        let len = usize::from(self.head[self.at]);
        self.at += 1;
        ShortString::new(self.take(len)).unwrap_or_default()
    }
}

/// Takes values off the front of a payload.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], PayloadError> {
        let (taken, rest) = self
            .bytes
            .split_at_checked(len)
            .ok_or(PayloadError::Truncated)?;
        self.bytes = rest;
        Ok(taken)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], PayloadError> {
        let (value, rest) = self
            .bytes
            .split_first_chunk::<N>()
            .ok_or(PayloadError::Truncated)?;
        self.bytes = rest;
        Ok(*value)
    }
    fn u8(&mut self) -> Result<u8, PayloadError> {
        Ok(u8::from_le_bytes(self.array()?))
    }
    fn u16(&mut self) -> Result<u16, PayloadError> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    fn u32(&mut self) -> Result<u32, PayloadError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    /// Checks a name; its length.
    fn name(&mut self, field: &'static str) -> Result<u8, PayloadError> {
        let len = self.u8()?;
        let bytes = self.take(usize::from(len))?;
        if !ShortString::is_valid(bytes) {
            return Err(PayloadError::Malformed { field });
        }
        Ok(len)
    }
}
