//! Field tables: the tagged values RabbitMQ clients really send.

use bytes::Bytes;

/// A table of names and values; order and duplicates are kept, look-up finds the first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FieldTable(pub Vec<(Bytes, FieldValue)>);

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
    /// `l` and `L`
    Long(i64),
    /// `f`
    Float(f32),
    /// `d`
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
