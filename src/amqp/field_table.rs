//! Field tables: the tagged values RabbitMQ clients really send.
//!
//! ```text
//!  table:  length:u32  ( name_length:u8 name  tag:u8 value )*
//!  array:  length:u32  ( tag:u8 value )*
//! ```
//!
//! The specification and the implementations disagree about the tags; these are RabbitMQ's (its "AMQP
//! 0-9-1 errata"): `s` is a 16-bit integer, `l` and `L` are both signed, `U` does not exist.
//!
//! 1. Names have at most 255 bytes; their encoding is nobody's business.
//! 2. Order and duplicates are kept; look-up finds the first.
//! 3. Floats are finite, so that equal tables compare equal.
//! 4. One function, `take_value`, knows how values look; checking, skipping and decoding use it.

use bytes::{BufMut, Bytes, BytesMut};

use super::DecodeError;
use super::limits::SHORT_STRING_MAX_BYTES;
use super::wire::{
    Source, check_end, put_counted, put_long, put_short, take_array, take_long, take_short,
    take_u8, take_u32, take_u64,
};

/// Tables and arrays inside one another that are decoded: each costs a stack frame. Real headers
/// (`x-death`) have two.
pub const MAX_NESTING: usize = 64;

// What a hostile table can cost: its smallest entry, two bytes, becomes this much, and its smallest array
// item, one byte, a value. So a frame of 128 KiB cannot make more than some megabytes of table.
const _: () = assert!(size_of::<(Bytes, FieldValue)>() <= 80 && size_of::<FieldValue>() <= 48);

/// A table of names and values; order and duplicates are kept, look-up finds the first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FieldTable {
    entries: Vec<(Bytes, FieldValue)>,
}

/// A value, one variant a type tag.
#[derive(Clone, Debug, PartialEq)]
pub enum FieldValue {
    /// `t`
    Bool(bool),
    /// `b`
    Byte(i8),
    /// `B`
    UnsignedByte(u8),
    /// `s`
    Short(i16),
    /// `u`
    UnsignedShort(u16),
    /// `I`
    SignedInt(i32),
    /// `i`
    UnsignedInt(u32),
    /// `l` and `L`; written as `l`
    Long(i64),
    /// `f`, finite
    Float(f32),
    /// `d`, finite
    Double(f64),
    /// `D`
    Decimal {
        /// Digits after the point.
        scale: u8,
        /// The digits.
        value: u32,
    },
    /// `S`
    LongString(Bytes),
    /// `x`
    Binary(Bytes),
    /// `A`
    Array(Vec<FieldValue>),
    /// `T`, seconds
    Timestamp(u64),
    /// `F`
    Table(FieldTable),
    /// `V`
    Void,
}

/// A value whose inner values are still bytes.
enum Raw<'a> {
    /// Complete, with nothing shared.
    Plain(FieldValue),
    LongString(&'a [u8]),
    Binary(&'a [u8]),
    Array(&'a [u8]),
    Table(&'a [u8]),
}

/// Takes one tagged value.
fn take_value<'a>(rest: &mut &'a [u8]) -> Result<Raw<'a>, DecodeError> {
    let plain = match take_u8(rest)? {
        b't' => FieldValue::Bool(take_u8(rest)? != 0),
        b'b' => FieldValue::Byte(i8::from_be_bytes(take_array(rest)?)),
        b'B' => FieldValue::UnsignedByte(take_u8(rest)?),
        b's' => FieldValue::Short(i16::from_be_bytes(take_array(rest)?)),
        b'u' => FieldValue::UnsignedShort(u16::from_be_bytes(take_array(rest)?)),
        b'I' => FieldValue::SignedInt(i32::from_be_bytes(take_array(rest)?)),
        b'i' => FieldValue::UnsignedInt(take_u32(rest)?),
        b'l' | b'L' => FieldValue::Long(i64::from_be_bytes(take_array(rest)?)),
        b'f' => FieldValue::Float(f32::from_be_bytes(take_array(rest)?)),
        b'd' => FieldValue::Double(f64::from_be_bytes(take_array(rest)?)),
        b'D' => FieldValue::Decimal {
            scale: take_u8(rest)?,
            value: take_u32(rest)?,
        },
        b'S' => return take_long(rest).map(Raw::LongString),
        b'x' => return take_long(rest).map(Raw::Binary),
        b'A' => return take_long(rest).map(Raw::Array),
        b'F' => return take_long(rest).map(Raw::Table),
        b'T' => FieldValue::Timestamp(take_u64(rest)?),
        b'V' => FieldValue::Void,
        tag => return Err(DecodeError::UnknownTag { tag }),
    };
    let is_finite = match plain {
        FieldValue::Float(number) => number.is_finite(),
        FieldValue::Double(number) => number.is_finite(),
        _ => true,
    };
    // RabbitMQ's decoder refuses them too: Erlang has no such numbers.
    is_finite
        .then_some(Raw::Plain(plain))
        .ok_or(DecodeError::NotFinite)
}

impl Raw<'_> {
    /// Walks what is inside without keeping any of it.
    fn check(self, depth_left: usize) -> Result<(), DecodeError> {
        match self {
            Raw::Plain(_) | Raw::LongString(_) | Raw::Binary(_) => Ok(()),
            Raw::Array(mut items) => {
                let depth_left = depth_left.checked_sub(1).ok_or(DecodeError::TooDeep)?;
                while !items.is_empty() {
                    take_value(&mut items)?.check(depth_left)?;
                }
                Ok(())
            }
            Raw::Table(entries) => {
                let depth_left = depth_left.checked_sub(1).ok_or(DecodeError::TooDeep)?;
                check_entries(entries, depth_left, |_| {})
            }
        }
    }

    /// Decodes what is inside, sharing the memory of `source`.
    fn decode(self, source: Source<'_>, depth_left: usize) -> Result<FieldValue, DecodeError> {
        Ok(match self {
            Raw::Plain(value) => value,
            Raw::LongString(text) => FieldValue::LongString(source.share(text)),
            Raw::Binary(octets) => FieldValue::Binary(source.share(octets)),
            Raw::Array(mut rest) => {
                let depth_left = depth_left.checked_sub(1).ok_or(DecodeError::TooDeep)?;
                let mut items = Vec::new();
                while !rest.is_empty() {
                    items.push(take_value(&mut rest)?.decode(source, depth_left)?);
                }
                FieldValue::Array(items)
            }
            Raw::Table(entries) => {
                let depth_left = depth_left.checked_sub(1).ok_or(DecodeError::TooDeep)?;
                FieldValue::Table(decode_entries(source, entries, depth_left)?)
            }
        })
    }
}

fn decode_entries(
    source: Source<'_>,
    mut rest: &[u8],
    depth_left: usize,
) -> Result<FieldTable, DecodeError> {
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let name = source.share(take_short(&mut rest)?);
        let value = take_value(&mut rest)?.decode(source, depth_left)?;
        entries.push((name, value));
    }
    Ok(FieldTable { entries })
}

/// Walks entries without keeping any; `saw` hears the names of this level.
fn check_entries<'a>(
    mut rest: &'a [u8],
    depth_left: usize,
    mut saw: impl FnMut(&'a [u8]),
) -> Result<(), DecodeError> {
    while !rest.is_empty() {
        saw(take_short(&mut rest)?);
        take_value(&mut rest)?.check(depth_left)?;
    }
    Ok(())
}

/// Checks the entries of a table (its bytes after the length) without allocating; `saw` hears its names.
pub(super) fn check_table<'a>(
    entries: &'a [u8],
    saw: impl FnMut(&'a [u8]),
) -> Result<(), DecodeError> {
    check_entries(entries, MAX_NESTING, saw)
}

/// Decodes the first value of that name from the entries of a table, and nothing else.
pub(super) fn find_in_entries(source: &Bytes, entries: &[u8], name: &[u8]) -> Option<FieldValue> {
    let mut rest = entries;
    while !rest.is_empty() {
        let found = take_short(&mut rest).ok()?;
        let value = take_value(&mut rest).ok()?;
        if found == name {
            return value.decode(Source(source), MAX_NESTING).ok();
        }
    }
    None
}

impl FieldTable {
    /// An empty table.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            entries: Vec::new(),
        }
    }

    /// Decodes a table with its length, which must fill `bytes`.
    ///
    /// # Errors
    /// When it is none; see [`DecodeError`].
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let mut rest: &[u8] = bytes;
        let entries = take_long(&mut rest)?;
        check_end(rest)?;
        Self::decode_entries(Source(bytes), entries)
    }

    /// Decodes the entries of a table that has no length in front, as AMQPLAIN sends it.
    ///
    /// # Errors
    /// When it is none; see [`DecodeError`].
    pub fn decode_bare(bytes: &Bytes) -> Result<Self, DecodeError> {
        Self::decode_entries(Source(bytes), bytes)
    }

    pub(super) fn decode_entries(source: Source<'_>, entries: &[u8]) -> Result<Self, DecodeError> {
        decode_entries(source, entries, MAX_NESTING)
    }

    /// Appends the table with its length.
    pub fn encode(&self, out: &mut BytesMut) {
        put_counted(out, |out| {
            for (name, value) in &self.entries {
                put_short(out, name);
                value.encode(out);
            }
        });
    }

    /// The table with its length as bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::new();
        self.encode(&mut out);
        out.freeze()
    }

    /// The first value of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&FieldValue> {
        self.get_bytes(name.as_bytes())
    }

    /// The first value of that name, given as bytes.
    #[must_use]
    pub fn get_bytes(&self, name: &[u8]) -> Option<&FieldValue> {
        self.entries
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, value)| value)
    }

    /// The first value of that name, to change it.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut FieldValue> {
        self.entries
            .iter_mut()
            .find(|(found, _)| found == name.as_bytes())
            .map(|(_, value)| value)
    }

    /// The integer of that name, if it is one of any width.
    #[must_use]
    pub fn get_integer(&self, name: &str) -> Option<i64> {
        self.get(name)?.as_integer()
    }

    /// The bool of that name, if it is one.
    #[must_use]
    pub fn get_bool(&self, name: &str) -> Option<bool> {
        self.get(name)?.as_bool()
    }

    /// The long string of that name, if it is one and UTF-8.
    #[must_use]
    pub fn get_text(&self, name: &str) -> Option<&str> {
        self.get(name)?.as_text()
    }

    /// The table of that name, if it is one.
    #[must_use]
    pub fn get_table(&self, name: &str) -> Option<&FieldTable> {
        self.get(name)?.as_table()
    }

    /// The array of that name, if it is one.
    #[must_use]
    pub fn get_array(&self, name: &str) -> Option<&[FieldValue]> {
        self.get(name)?.as_array()
    }

    /// Sets a value: in the place of the first of that name, or at the end.
    ///
    /// # Panics
    /// When `name` has more than 255 bytes: names are literals of the program or came from a table.
    pub fn set(&mut self, name: &str, value: impl Into<FieldValue>) {
        let value = value.into();
        match self.get_mut(name) {
            Some(present) => *present = value,
            None => self.push(Bytes::copy_from_slice(name.as_bytes()), value),
        }
    }

    /// [`set`](Self::set) for building a table in one expression.
    ///
    /// # Panics
    /// As `set`.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<FieldValue>) -> Self {
        self.set(name, value);
        self
    }

    /// Adds a value at the end, whatever is there.
    ///
    /// # Panics
    /// When `name` has more than 255 bytes.
    pub fn push(&mut self, name: Bytes, value: FieldValue) {
        assert!(
            name.len() <= SHORT_STRING_MAX_BYTES,
            "a field name has at most 255 bytes"
        );
        self.entries.push((name, value));
    }

    /// Removes all values of that name; true when there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        let count = self.entries.len();
        self.entries.retain(|(found, _)| found != name.as_bytes());
        self.entries.len() != count
    }

    /// Names and values, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, (Bytes, FieldValue)> {
        self.entries.iter()
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True without entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The table as the map it stands for: sorted by name, only the first of equal names. Two tables mean
    /// the same when their canonical forms are equal.
    #[must_use]
    pub fn canonical(&self) -> Self {
        let mut entries = self.entries.clone();
        // Stable, so the first of equal names stays first.
        entries.sort_by(|(left, _), (right, _)| left.cmp(right));
        entries.dedup_by(|(later, _), (earlier, _)| later == earlier);
        Self { entries }
    }

    /// The same table in memory of its own; see [`ShortString::detached`](super::short_string::ShortString::detached).
    #[must_use]
    pub fn detached(&self) -> Self {
        // All in one piece. Only a table built here, too deep or with a float that is no number, does not
        // decode again, and that has its own memory already.
        Self::decode(&self.to_bytes()).unwrap_or_else(|_| self.clone())
    }
}

impl<'a> IntoIterator for &'a FieldTable {
    type Item = &'a (Bytes, FieldValue);
    type IntoIter = std::slice::Iter<'a, (Bytes, FieldValue)>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl FieldValue {
    /// A long string.
    #[must_use]
    pub fn text(text: &str) -> Self {
        Self::LongString(Bytes::copy_from_slice(text.as_bytes()))
    }

    /// RabbitMQ's name of the type, as its error texts say it.
    #[must_use]
    pub const fn type_name(&self) -> &'static str {
        match self {
            Self::Bool(_) => "bool",
            Self::Byte(_) => "byte",
            Self::UnsignedByte(_) => "unsignedbyte",
            Self::Short(_) => "short",
            Self::UnsignedShort(_) => "unsignedshort",
            Self::SignedInt(_) => "signedint",
            Self::UnsignedInt(_) => "unsignedint",
            Self::Long(_) => "long",
            Self::Float(_) => "float",
            Self::Double(_) => "double",
            Self::Decimal { .. } => "decimal",
            Self::LongString(_) => "longstr",
            Self::Binary(_) => "binary",
            Self::Array(_) => "array",
            Self::Timestamp(_) => "timestamp",
            Self::Table(_) => "table",
            Self::Void => "void",
        }
    }

    /// The number, if the value is an integer of any width and sign.
    #[must_use]
    pub const fn as_integer(&self) -> Option<i64> {
        // Widening casts only; `From` is not const.
        Some(match *self {
            Self::Byte(number) => number as i64,
            Self::UnsignedByte(number) => number as i64,
            Self::Short(number) => number as i64,
            Self::UnsignedShort(number) => number as i64,
            Self::SignedInt(number) => number as i64,
            Self::UnsignedInt(number) => number as i64,
            Self::Long(number) => number,
            _ => return None,
        })
    }

    /// The number, if the value is a float of either width.
    #[must_use]
    pub fn as_float(&self) -> Option<f64> {
        match *self {
            Self::Float(number) => Some(f64::from(number)),
            Self::Double(number) => Some(number),
            _ => None,
        }
    }

    /// The truth value, if it is one.
    #[must_use]
    pub const fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// The bytes of a long string.
    #[must_use]
    pub const fn as_long_string(&self) -> Option<&Bytes> {
        match self {
            Self::LongString(text) => Some(text),
            _ => None,
        }
    }

    /// The text of a long string, if it is UTF-8.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        std::str::from_utf8(self.as_long_string()?).ok()
    }

    /// The items of an array.
    #[must_use]
    pub fn as_array(&self) -> Option<&[FieldValue]> {
        match self {
            Self::Array(items) => Some(items),
            _ => None,
        }
    }

    /// The table.
    #[must_use]
    pub const fn as_table(&self) -> Option<&FieldTable> {
        match self {
            Self::Table(table) => Some(table),
            _ => None,
        }
    }

    /// Compares as RabbitMQ compares arguments of a redeclaration: integers by value whatever their
    /// width, floats likewise, everything else by type and value.
    #[must_use]
    pub fn is_equivalent(&self, other: &Self) -> bool {
        if let (Some(left), Some(right)) = (self.as_integer(), other.as_integer()) {
            return left == right;
        }
        if let (Some(left), Some(right)) = (self.as_float(), other.as_float()) {
            return left == right;
        }
        self == other
    }

    /// Appends tag and value.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Bool(value) => put(out, b't', &[u8::from(*value)]),
            Self::Byte(number) => put(out, b'b', &number.to_be_bytes()),
            Self::UnsignedByte(number) => put(out, b'B', &number.to_be_bytes()),
            Self::Short(number) => put(out, b's', &number.to_be_bytes()),
            Self::UnsignedShort(number) => put(out, b'u', &number.to_be_bytes()),
            Self::SignedInt(number) => put(out, b'I', &number.to_be_bytes()),
            Self::UnsignedInt(number) => put(out, b'i', &number.to_be_bytes()),
            Self::Long(number) => put(out, b'l', &number.to_be_bytes()),
            Self::Float(number) => put(out, b'f', &number.to_be_bytes()),
            Self::Double(number) => put(out, b'd', &number.to_be_bytes()),
            Self::Decimal { scale, value } => {
                put(out, b'D', &[*scale]);
                out.put_u32(*value);
            }
            Self::LongString(text) => {
                out.put_u8(b'S');
                put_long(out, text);
            }
            Self::Binary(octets) => {
                out.put_u8(b'x');
                put_long(out, octets);
            }
            Self::Array(items) => {
                out.put_u8(b'A');
                put_counted(out, |out| items.iter().for_each(|item| item.encode(out)));
            }
            Self::Timestamp(seconds) => put(out, b'T', &seconds.to_be_bytes()),
            Self::Table(table) => {
                out.put_u8(b'F');
                table.encode(out);
            }
            Self::Void => out.put_u8(b'V'),
        }
    }
}

fn put(out: &mut BytesMut, tag: u8, value: &[u8]) {
    out.put_u8(tag);
    out.put_slice(value);
}

impl From<bool> for FieldValue {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i32> for FieldValue {
    fn from(value: i32) -> Self {
        Self::SignedInt(value)
    }
}

impl From<i64> for FieldValue {
    fn from(value: i64) -> Self {
        Self::Long(value)
    }
}

impl From<&str> for FieldValue {
    fn from(value: &str) -> Self {
        Self::text(value)
    }
}

impl From<FieldTable> for FieldValue {
    fn from(value: FieldTable) -> Self {
        Self::Table(value)
    }
}

impl From<Vec<FieldValue>> for FieldValue {
    fn from(value: Vec<FieldValue>) -> Self {
        Self::Array(value)
    }
}

#[cfg(test)]
mod tests;
