//! Content properties of class basic.

use bytes::Bytes;

/// The property section of a content header (flags and values, as on the wire), checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Properties {
    raw: Bytes,
}

impl Properties {
    /// The bytes as on the wire: property flags, then the values.
    #[must_use]
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }
}
