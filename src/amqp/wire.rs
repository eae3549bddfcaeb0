//! Reading and writing the elementary values of AMQP 0-9-1 section 4.2.5.
//!
//! Readers take from the front of a borrowed slice and never index; a [`Source`] turns a part of the slice
//! into shared [`Bytes`] without a copy.

use bytes::{BufMut, Bytes, BytesMut};

use super::DecodeError;
use super::field_table::FieldTable;
use super::short_string::ShortString;

/// Takes `count` bytes from the front.
pub(super) fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], DecodeError> {
    let (taken, after) = rest.split_at_checked(count).ok_or(DecodeError::Truncated)?;
    *rest = after;
    Ok(taken)
}

/// Takes exactly `N` bytes from the front.
pub(super) fn take_array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], DecodeError> {
    let (taken, after) = rest.split_first_chunk().ok_or(DecodeError::Truncated)?;
    *rest = after;
    Ok(*taken)
}

/// Takes an octet.
pub(super) fn take_u8(rest: &mut &[u8]) -> Result<u8, DecodeError> {
    take_array(rest).map(u8::from_be_bytes)
}

/// Takes a big-endian 16-bit number.
pub(super) fn take_u16(rest: &mut &[u8]) -> Result<u16, DecodeError> {
    take_array(rest).map(u16::from_be_bytes)
}

/// Takes a big-endian 32-bit number.
pub(super) fn take_u32(rest: &mut &[u8]) -> Result<u32, DecodeError> {
    take_array(rest).map(u32::from_be_bytes)
}

/// Takes a big-endian 64-bit number.
pub(super) fn take_u64(rest: &mut &[u8]) -> Result<u64, DecodeError> {
    take_array(rest).map(u64::from_be_bytes)
}

/// Takes a short string's bytes: one octet of length, then that many.
pub(super) fn take_short<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], DecodeError> {
    let length = take_u8(rest)?;
    take(rest, usize::from(length))
}

/// Takes a long string's bytes: four octets of length, then that many.
pub(super) fn take_long<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], DecodeError> {
    let length = take_u32(rest)?;
    // On a machine whose usize is smaller than the length nothing so long can be there either.
    take(rest, usize::try_from(length).unwrap_or(usize::MAX))
}

/// Refuses bytes after the last value.
pub(super) fn check_end(rest: &[u8]) -> Result<(), DecodeError> {
    match rest.len() {
        0 => Ok(()),
        count => Err(DecodeError::TrailingBytes { count }),
    }
}

/// Writes a short string's bytes.
///
/// # Panics
/// When there are more than 255: the types of everything that is written here rule it out.
pub(super) fn put_short(out: &mut BytesMut, text: &[u8]) {
    let length = u8::try_from(text.len()).expect("a short string has at most 255 bytes");
    out.put_u8(length);
    out.put_slice(text);
}

/// Writes a long string's bytes.
///
/// # Panics
/// When there are 4 GiB or more, which no buffer of the broker holds.
pub(super) fn put_long(out: &mut BytesMut, text: &[u8]) {
    out.put_u32(length_u32(text.len()));
    out.put_slice(text);
}

/// Writes a four octet length followed by what `write` appends, which is what the length counts.
pub(super) fn put_counted(out: &mut BytesMut, write: impl FnOnce(&mut BytesMut)) {
    let length_at = out.len();
    out.put_u32(0);
    let start = out.len();
    write(out);
    let length = length_u32(out.len() - start);
    out[length_at..start].copy_from_slice(&length.to_be_bytes());
}

/// A length as AMQP counts it.
fn length_u32(length: usize) -> u32 {
    u32::try_from(length).expect("everything that is encoded is smaller than 4 GiB")
}

/// The shared memory behind a borrowed slice.
#[derive(Clone, Copy)]
pub(super) struct Source<'a>(pub(super) &'a Bytes);

impl Source<'_> {
    /// Shares `part`, which was taken from this source.
    pub(super) fn share(self, part: &[u8]) -> Bytes {
        self.0.slice_ref(part)
    }
}

/// Takes method arguments in order, bits unpacked (AMQP 0-9-1 section 4.2.5.2).
pub(super) struct ArgumentReader<'a> {
    source: Source<'a>,
    rest: &'a [u8],
    /// The octet that holds the current run of bits, the next one lowest.
    bits: u8,
    /// Bits of that octet not yet taken; 0 when the next bit starts an octet.
    bit_count: u8,
}

impl<'a> ArgumentReader<'a> {
    /// Reads the arguments in `rest`, a part of `source`.
    pub(super) fn new(source: &'a Bytes, rest: &'a [u8]) -> Self {
        Self {
            source: Source(source),
            rest,
            bits: 0,
            bit_count: 0,
        }
    }

    /// Takes the next argument.
    pub(super) fn take<A: Argument>(&mut self) -> Result<A, DecodeError> {
        A::take(self)
    }

    /// Refuses bytes after the last argument.
    pub(super) fn finish(self) -> Result<(), DecodeError> {
        check_end(self.rest)
    }

    fn take_bit(&mut self) -> Result<bool, DecodeError> {
        if self.bit_count == 0 {
            self.bits = take_u8(&mut self.rest)?;
            self.bit_count = 8;
        }
        let bit = self.bits & 1 == 1;
        self.bits >>= 1;
        self.bit_count -= 1;
        Ok(bit)
    }

    /// The bytes from which the next argument that is no bit is taken; ends a run of bits.
    fn octets(&mut self) -> &mut &'a [u8] {
        self.bit_count = 0;
        &mut self.rest
    }
}

/// Appends method arguments in order, bits packed, the first one lowest.
pub(super) struct ArgumentWriter<'a> {
    out: &'a mut BytesMut,
    /// Bits in the last octet of `out`; 0 when the next bit starts an octet.
    bit_count: u8,
}

impl<'a> ArgumentWriter<'a> {
    /// Appends to `out`.
    pub(super) fn new(out: &'a mut BytesMut) -> Self {
        Self { out, bit_count: 0 }
    }

    /// Appends an argument.
    pub(super) fn put<A: Argument>(&mut self, argument: &A) {
        argument.put(self);
    }

    /// Appends a short string; at most 255 bytes of UTF-8.
    pub(super) fn put_short(&mut self, text: &[u8]) {
        put_short(self.octets(), text);
    }

    /// Appends arguments that are encoded already.
    pub(super) fn put_raw(&mut self, encoded: &[u8]) {
        self.octets().put_slice(encoded);
    }

    fn put_bit(&mut self, bit: bool) {
        if self.bit_count == 0 || self.bit_count == 8 {
            self.out.put_u8(0);
            self.bit_count = 0;
        }
        if let Some(octet) = self.out.last_mut() {
            *octet |= u8::from(bit) << self.bit_count;
        }
        self.bit_count += 1;
    }

    /// Where the next argument that is no bit goes; ends a run of bits.
    fn octets(&mut self) -> &mut BytesMut {
        self.bit_count = 0;
        self.out
    }
}

/// A type of method argument.
pub(super) trait Argument: Sized {
    fn take(reader: &mut ArgumentReader<'_>) -> Result<Self, DecodeError>;
    fn put(&self, writer: &mut ArgumentWriter<'_>);
}

impl Argument for bool {
    fn take(reader: &mut ArgumentReader<'_>) -> Result<Self, DecodeError> {
        reader.take_bit()
    }
    fn put(&self, writer: &mut ArgumentWriter<'_>) {
        writer.put_bit(*self);
    }
}

macro_rules! number_arguments {
    ($($type:ty)*) => { $(
        impl Argument for $type {
            fn take(reader: &mut ArgumentReader<'_>) -> Result<Self, DecodeError> {
                take_array(reader.octets()).map(<$type>::from_be_bytes)
            }
            fn put(&self, writer: &mut ArgumentWriter<'_>) {
                writer.octets().put_slice(&self.to_be_bytes());
            }
        }
    )* };
}
number_arguments! { u8 u16 u32 u64 }

impl Argument for ShortString {
    fn take(reader: &mut ArgumentReader<'_>) -> Result<Self, DecodeError> {
        let text = take_short(reader.octets())?;
        Self::new(reader.source.share(text)).ok_or(DecodeError::Utf8)
    }
    fn put(&self, writer: &mut ArgumentWriter<'_>) {
        put_short(writer.octets(), self.as_bytes());
    }
}

/// A long string.
impl Argument for Bytes {
    fn take(reader: &mut ArgumentReader<'_>) -> Result<Self, DecodeError> {
        let text = take_long(reader.octets())?;
        Ok(reader.source.share(text))
    }
    fn put(&self, writer: &mut ArgumentWriter<'_>) {
        put_long(writer.octets(), self);
    }
}

impl Argument for FieldTable {
    fn take(reader: &mut ArgumentReader<'_>) -> Result<Self, DecodeError> {
        let entries = take_long(reader.octets())?;
        Self::decode_entries(reader.source, entries)
    }
    fn put(&self, writer: &mut ArgumentWriter<'_>) {
        self.encode(writer.octets());
    }
}
