//! Short strings: at most 255 bytes of UTF-8, shared without copying.

use bytes::Bytes;
use std::fmt;

/// At most 255 bytes of UTF-8, usually a slice of the frame it came in (AMQP 0-9-1 section 4.2.5.3).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ShortString(Bytes);

impl ShortString {
    /// Checks length and encoding; `None` when either is violated.
    #[must_use]
    pub fn new(bytes: Bytes) -> Option<Self> {
        (bytes.len() <= 255 && std::str::from_utf8(&bytes).is_ok()).then_some(Self(bytes))
    }
    /// From text known to be short; `None` when longer than 255 bytes.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        Self::new(Bytes::copy_from_slice(text.as_bytes()))
    }
    /// From a literal of the program.
    ///
    /// # Panics
    /// When `text` is longer than 255 bytes.
    #[must_use]
    pub fn from_static(text: &'static str) -> Self {
        assert!(
            text.len() <= 255,
            "a literal short string is at most 255 bytes"
        );
        Self(Bytes::from_static(text.as_bytes()))
    }
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Checked in `new`; an empty text is the harmless answer to the impossible.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }
    /// True for the empty string.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for ShortString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for ShortString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}
