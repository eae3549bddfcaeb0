//! The AMQP 0-9-1 wire format: bytes to values and back. A leaf: it uses no other room.
//!
//! ```text
//!  bytes --frame::decode--> Frame --+-- Method::decode          (type 1)
//!                                   +-- ContentHeader::decode   (type 2) --> Properties --> FieldTable
//!                                   +-- body                    (type 3)
//!  values --method::encode, content::DeliverRun ..--> FrameSink (bytes and large body parts)
//! ```
//!
//! Invariants:
//! 1. No input makes a decoder panic, read beyond its slice, or allocate more than a fixed multiple of the
//!    bytes it was given: a length is checked against what is there before anything is done with it.
//! 2. What was decoded shares the memory of the frame it came in; nothing is copied. Whoever keeps a value
//!    for long detaches it (`ShortString::detached` and its like) so that it does not pin a read buffer.
//! 3. What was decoded can be encoded again and decodes to an equal value.
//! 4. No clock, no IO, no state beyond the values.

pub mod content;
pub mod field_table;
pub mod frame;
pub mod fuzz;
pub mod limits;
pub mod method;
pub mod properties;
pub mod protocol_header;
pub mod raw_publish;
pub mod reply_code;
#[cfg(test)]
mod samples;
pub mod short_string;
mod wire;

use field_table::MAX_NESTING;

/// Why bytes inside a frame are not the value they should be.
///
/// The reader's remedy is always the same, to close the connection; the cases exist for the texts and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A value ends beyond the bytes that hold it.
    #[error("a value is cut short")]
    Truncated,
    /// Bytes are left over after the last value.
    #[error("{count} bytes are left over")]
    TrailingBytes {
        /// How many.
        count: usize,
    },
    /// A field table value has a type tag nobody uses.
    #[error("unknown field type tag {tag}")]
    UnknownTag {
        /// The tag.
        tag: u8,
    },
    /// Tables and arrays are nested deeper than [`MAX_NESTING`].
    #[error("tables are nested deeper than {MAX_NESTING}")]
    TooDeep,
    /// A float is infinite or not a number; such a value equals nothing, so no declaration could repeat it.
    #[error("a float is not a finite number")]
    NotFinite,
    /// A short string of a method is not UTF-8.
    #[error("malformed UTF-8 in a short string")]
    Utf8,
    /// The property flags announce a second flag word, which AMQP 0-9-1 has no use for.
    #[error("unknown property flags {flags:#06x}")]
    PropertyFlags {
        /// The flag word.
        flags: u16,
    },
}
