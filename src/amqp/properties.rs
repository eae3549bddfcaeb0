//! Content properties of class basic.
//!
//! ```text
//!  flags:u16, high bit first: content-type content-encoding headers delivery-mode priority correlation-id
//!                             reply-to expiration message-id timestamp type user-id app-id cluster-id 0 0
//!  then the values of the properties whose flag is set, in that order
//! ```
//!
//! Properties are kept as the bytes they came as, and forwarded as such: most of them mean nothing to the
//! broker. One pass at decoding proves them well-formed and remembers what it needs for every message, which is a
//! few numbers; the values are found by walking.
//!
//! 1. The bytes are well-formed: at most 14 values, each complete, a header table that decodes, nothing after.
//! 2. Short strings in properties are any bytes; nobody promised UTF-8 (FR-15).

use bytes::{BufMut, Bytes, BytesMut};

use super::DecodeError;
use super::field_table::{self, FieldTable, FieldValue};
use super::short_string::ShortString;
use super::wire::{check_end, put_short, take, take_long, take_short, take_u8, take_u16, take_u64};

mod builder;

pub use builder::PropertiesBuilder;

/// The delivery mode of messages that survive a restart.
pub const DELIVERY_MODE_PERSISTENT: u8 = 2;

/// Header whose values are further routing keys.
pub const CC_HEADER: &str = "CC";

/// Header whose values are further routing keys, and which nobody gets to see.
pub const BCC_HEADER: &str = "BCC";

/// A property's flag.
mod flag {
    pub(super) const CONTENT_TYPE: u16 = 1 << 15;
    pub(super) const CONTENT_ENCODING: u16 = 1 << 14;
    pub(super) const HEADERS: u16 = 1 << 13;
    pub(super) const DELIVERY_MODE: u16 = 1 << 12;
    pub(super) const PRIORITY: u16 = 1 << 11;
    pub(super) const CORRELATION_ID: u16 = 1 << 10;
    pub(super) const REPLY_TO: u16 = 1 << 9;
    pub(super) const EXPIRATION: u16 = 1 << 8;
    pub(super) const MESSAGE_ID: u16 = 1 << 7;
    pub(super) const TIMESTAMP: u16 = 1 << 6;
    pub(super) const TYPE: u16 = 1 << 5;
    pub(super) const USER_ID: u16 = 1 << 4;
    pub(super) const APP_ID: u16 = 1 << 3;
    pub(super) const CLUSTER_ID: u16 = 1 << 2;
    /// Never set: a second flag word follows, and a bit without meaning.
    pub(super) const RESERVED: u16 = 0b11;
}

/// The flags that are set, one by one: high bit first is the wire's order; most messages have few of them.
fn in_wire_order(flags: u16) -> impl Iterator<Item = u16> {
    let mut left = flags;
    std::iter::from_fn(move || {
        let flag = 0x8000u16.checked_shr(left.leading_zeros())?;
        left &= !flag;
        Some(flag)
    })
}

/// Takes the value of a property: what is inside its length, or its octets.
fn take_property<'a>(flag: u16, rest: &mut &'a [u8]) -> Result<&'a [u8], DecodeError> {
    match flag {
        flag::HEADERS => take_long(rest),
        flag::DELIVERY_MODE | flag::PRIORITY => take(rest, 1),
        flag::TIMESTAMP => take(rest, 8),
        _ => take_short(rest),
    }
}

/// What is asked of every message, found in one pass. Values that few messages have are found by walking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Digest {
    flags: u16,
    delivery_mode: u8,
    priority: u8,
    has_cc: bool,
    has_bcc: bool,
}

/// What checking a property section has found; nothing without the bytes. Eight bytes: every message keeps one.
#[derive(Clone, Copy, Debug)]
pub struct Checked(Digest);

const _: () = assert!(size_of::<Checked>() <= 8);

impl Checked {
    /// Checks a property section, which must fill `raw`. Allocates nothing.
    ///
    /// # Errors
    /// As [`Properties::decode`].
    pub fn of(raw: &[u8]) -> Result<Self, DecodeError> {
        Digest::of(raw).map(Self)
    }

    /// True for delivery mode 2.
    #[must_use]
    pub fn is_persistent(&self) -> bool {
        let has_mode = self.0.flags & flag::DELIVERY_MODE != 0;
        has_mode && self.0.delivery_mode == DELIVERY_MODE_PERSISTENT
    }

    /// True when no property asks the broker for a check or another route, so that nothing can be refused or changed: no
    /// `CC` and `BCC`, no reply-to, expiration or user-id.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        const OF_BROKER: u16 = flag::REPLY_TO | flag::EXPIRATION | flag::USER_ID;
        self.0.flags & OF_BROKER == 0 && !self.0.has_cc && !self.0.has_bcc
    }

    /// True when there is a header table, even an empty one.
    #[must_use]
    pub fn has_headers(&self) -> bool {
        self.0.flags & flag::HEADERS != 0
    }

    /// True when the headers have a `BCC`.
    #[must_use]
    pub fn has_bcc(&self) -> bool {
        self.0.has_bcc
    }

    /// Priority as sent.
    #[must_use]
    pub fn priority(&self) -> Option<u8> {
        (self.0.flags & flag::PRIORITY != 0).then_some(self.0.priority)
    }

    /// Time to live as text, unchecked, in the bytes that were checked.
    #[inline]
    #[must_use]
    pub fn expiration<'a>(&self, raw: &'a [u8]) -> Option<&'a [u8]> {
        if self.0.flags & flag::EXPIRATION == 0 {
            // Nearly always.
            return None;
        }
        self.0.find_in(raw, flag::EXPIRATION)
    }

    /// The section itself: `raw` holds the bytes that were checked.
    #[must_use]
    pub fn over(&self, raw: Bytes) -> Properties {
        Properties {
            raw,
            digest: self.0,
        }
    }
}

/// The property section of a content header (flags and values, as on the wire), checked.
///
/// Cheap to clone; the bytes are shared.
#[derive(Clone, Debug)]
pub struct Properties {
    raw: Bytes,
    digest: Digest,
}

/// No properties at all.
impl Default for Properties {
    fn default() -> Self {
        Self {
            raw: Bytes::from_static(&[0, 0]),
            digest: Digest::default(),
        }
    }
}

impl PartialEq for Properties {
    fn eq(&self, other: &Self) -> bool {
        self.raw == other.raw
    }
}

impl Properties {
    /// Checks a property section, which must fill `raw`, and keeps it.
    ///
    /// # Errors
    /// When a value is incomplete or a header undecodable, flags without meaning are set, or bytes are left.
    pub fn decode(raw: Bytes) -> Result<Self, DecodeError> {
        let digest = Digest::of(&raw)?;
        Ok(Self { raw, digest })
    }

    /// The bytes as on the wire: property flags, then the values.
    #[must_use]
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// The same properties in memory of their own; see [`ShortString::detached`].
    #[must_use]
    pub fn detached(&self) -> Self {
        Self {
            raw: Bytes::copy_from_slice(&self.raw),
            digest: self.digest,
        }
    }

    /// The properties as values, to change them.
    #[must_use]
    pub fn edit(&self) -> PropertiesBuilder {
        PropertiesBuilder::from(self)
    }

    fn has(&self, flag: u16) -> bool {
        self.digest.flags & flag != 0
    }

    /// What the check has found.
    #[must_use]
    pub fn checked(&self) -> Checked {
        Checked(self.digest)
    }

    /// A value found by walking.
    fn find(&self, wanted: u16) -> Option<&[u8]> {
        self.digest.find_in(&self.raw, wanted)
    }

    /// True for delivery mode 2; every other one, and none, is transient.
    #[must_use]
    pub fn is_persistent(&self) -> bool {
        self.delivery_mode() == Some(DELIVERY_MODE_PERSISTENT)
    }

    /// Delivery mode as sent.
    #[must_use]
    pub fn delivery_mode(&self) -> Option<u8> {
        self.has(flag::DELIVERY_MODE)
            .then_some(self.digest.delivery_mode)
    }

    /// Priority as sent.
    #[must_use]
    pub fn priority(&self) -> Option<u8> {
        self.has(flag::PRIORITY).then_some(self.digest.priority)
    }

    /// True when there is a header table, even an empty one.
    #[must_use]
    pub fn has_headers(&self) -> bool {
        self.has(flag::HEADERS)
    }

    /// True when the headers have a `CC`.
    #[must_use]
    pub fn has_cc(&self) -> bool {
        self.digest.has_cc
    }

    /// True when the headers have a `BCC`.
    #[must_use]
    pub fn has_bcc(&self) -> bool {
        self.digest.has_bcc
    }

    /// Name of the queue that wants the answer.
    #[must_use]
    pub fn reply_to(&self) -> Option<&[u8]> {
        self.find(flag::REPLY_TO)
    }

    /// Time to live as text, unchecked.
    #[must_use]
    pub fn expiration(&self) -> Option<&[u8]> {
        self.find(flag::EXPIRATION)
    }

    /// The user who claims to have published.
    #[must_use]
    pub fn user_id(&self) -> Option<&[u8]> {
        self.find(flag::USER_ID)
    }

    /// MIME type.
    #[must_use]
    pub fn content_type(&self) -> Option<&[u8]> {
        self.find(flag::CONTENT_TYPE)
    }

    /// MIME encoding.
    #[must_use]
    pub fn content_encoding(&self) -> Option<&[u8]> {
        self.find(flag::CONTENT_ENCODING)
    }

    /// The application's correlation of request and answer.
    #[must_use]
    pub fn correlation_id(&self) -> Option<&[u8]> {
        self.find(flag::CORRELATION_ID)
    }

    /// The application's name of the message.
    #[must_use]
    pub fn message_id(&self) -> Option<&[u8]> {
        self.find(flag::MESSAGE_ID)
    }

    /// The application's time, seconds since 1970.
    #[must_use]
    pub fn timestamp(&self) -> Option<u64> {
        take_u64(&mut self.find(flag::TIMESTAMP)?).ok()
    }

    /// The application's type of message (property `type`).
    #[must_use]
    pub fn message_type(&self) -> Option<&[u8]> {
        self.find(flag::TYPE)
    }

    /// The application's name.
    #[must_use]
    pub fn app_id(&self) -> Option<&[u8]> {
        self.find(flag::APP_ID)
    }

    /// Reserved by AMQP, carried through.
    #[must_use]
    pub fn cluster_id(&self) -> Option<&[u8]> {
        self.find(flag::CLUSTER_ID)
    }

    /// The header table, decoded now; `None` when absent.
    #[must_use]
    pub fn headers(&self) -> Option<FieldTable> {
        let entries = self.find(flag::HEADERS)?;
        // Checked when the properties were decoded.
        FieldTable::decode_bare(&self.raw.slice_ref(entries)).ok()
    }

    /// One header, without decoding the others.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<FieldValue> {
        let entries = self.find(flag::HEADERS)?;
        field_table::find_in_entries(&self.raw, entries, name.as_bytes())
    }

    /// The properties without the `BCC` header (PP-5).
    #[must_use]
    pub fn without_bcc(&self) -> Self {
        if !self.has_bcc() {
            return self.clone();
        }
        let mut builder = self.edit();
        builder.remove_header(BCC_HEADER);
        builder.build()
    }
}

impl Digest {
    /// A value in the bytes that were checked, found by walking.
    fn find_in<'a>(&self, raw: &'a [u8], wanted: u16) -> Option<&'a [u8]> {
        if self.flags & wanted == 0 {
            return None;
        }
        let mut rest = raw.get(2..)?;
        for flag in in_wire_order(self.flags) {
            let value = take_property(flag, &mut rest).ok()?;
            if flag == wanted {
                return Some(value);
            }
        }
        None
    }

    /// Checks a property section and remembers what is needed of it. Allocates nothing.
    fn of(raw: &[u8]) -> Result<Self, DecodeError> {
        let mut rest = raw;
        let flags = take_u16(&mut rest)?;
        if flags & flag::RESERVED != 0 {
            return Err(DecodeError::PropertyFlags { flags });
        }
        let mut digest = Self {
            flags,
            ..Self::default()
        };
        for flag in in_wire_order(flags) {
            let value = take_property(flag, &mut rest)?;
            digest.note(flag, value)?;
        }
        check_end(rest)?;
        Ok(digest)
    }

    /// Remembers a property.
    fn note(&mut self, flag: u16, mut value: &[u8]) -> Result<(), DecodeError> {
        match flag {
            flag::HEADERS => self.note_headers(value)?,
            flag::DELIVERY_MODE => self.delivery_mode = take_u8(&mut value)?,
            flag::PRIORITY => self.priority = take_u8(&mut value)?,
            _ => {}
        }
        Ok(())
    }

    fn note_headers(&mut self, entries: &[u8]) -> Result<(), DecodeError> {
        field_table::check_table(entries, |name| {
            self.has_cc |= name == CC_HEADER.as_bytes();
            self.has_bcc |= name == BCC_HEADER.as_bytes();
        })
    }
}

#[cfg(test)]
mod tests;
