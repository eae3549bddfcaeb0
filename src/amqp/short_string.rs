//! Short strings: at most 255 bytes of UTF-8, shared without copying.

use std::borrow::Borrow;
use std::fmt;

use bytes::Bytes;

use super::limits::SHORT_STRING_MAX_BYTES;

/// At most 255 bytes of UTF-8, usually a slice of the frame it came in (AMQP 0-9-1 section 4.2.5.3).
///
/// Compares and hashes as its bytes, so maps keyed by it can be asked with a `&[u8]`. The hot paths do
/// that: [`as_str`](Self::as_str) checks the encoding again each time, which is cheap but not free.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ShortString(Bytes);

impl ShortString {
    /// Checks length and encoding; `None` when either is violated.
    #[must_use]
    pub fn new(bytes: Bytes) -> Option<Self> {
        Self::is_valid(&bytes).then_some(Self(bytes))
    }
    /// True when [`new`](Self::new) would take them.
    #[must_use]
    pub fn is_valid(bytes: &[u8]) -> bool {
        // Nearly all names are ASCII, which is found out faster.
        let is_text = bytes.is_ascii() || std::str::from_utf8(bytes).is_ok();
        bytes.len() <= SHORT_STRING_MAX_BYTES && is_text
    }
    /// From text known to be short; `None` when longer than 255 bytes.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        (text.len() <= SHORT_STRING_MAX_BYTES)
            .then(|| Self(Bytes::copy_from_slice(text.as_bytes())))
    }
    /// From a literal of the program.
    ///
    /// # Panics
    /// When `text` is longer than 255 bytes.
    #[must_use]
    pub fn from_static(text: &'static str) -> Self {
        assert!(
            text.len() <= SHORT_STRING_MAX_BYTES,
            "a literal short string is at most 255 bytes"
        );
        Self(Bytes::from_static(text.as_bytes()))
    }
    /// From text of any length: what is too long is cut to 252 bytes or a little less, at a character's
    /// border, and `...` added, as RabbitMQ does with reply texts.
    #[must_use]
    pub fn from_text_cut(text: &str) -> Self {
        const ELLIPSIS: &str = "...";
        if text.len() <= SHORT_STRING_MAX_BYTES {
            return Self(Bytes::copy_from_slice(text.as_bytes()));
        }
        let mut end = SHORT_STRING_MAX_BYTES - ELLIPSIS.len();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let kept = text.get(..end).unwrap_or_default();
        Self(Bytes::from([kept, ELLIPSIS].concat()))
    }
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Checked when made; an empty text is the harmless answer to the impossible.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }
    /// Number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }
    /// True for the empty string.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// The same text in memory of its own. For names that outlive the frame they came in, which they
    /// would otherwise keep alive together with everything read with it.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self(Bytes::copy_from_slice(&self.0))
    }
}

impl Borrow<[u8]> for ShortString {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq<str> for ShortString {
    fn eq(&self, other: &str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl PartialEq<&str> for ShortString {
    fn eq(&self, other: &&str) -> bool {
        self.0 == other.as_bytes()
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn only_short_utf8_is_accepted() {
        assert!(ShortString::new(Bytes::from(vec![b'a'; 255])).is_some());
        assert!(ShortString::new(Bytes::from(vec![b'a'; 256])).is_none());
        assert!(ShortString::new(Bytes::from_static(b"\xff")).is_none());
        assert!(ShortString::from_text(&"a".repeat(256)).is_none());
    }

    #[test]
    fn a_map_keyed_by_short_strings_is_asked_by_bytes() {
        let map = HashMap::from([(ShortString::from_static("orders"), 1)]);
        assert_eq!(map.get(b"orders".as_slice()), Some(&1));
        assert_eq!(map.get(b"order".as_slice()), None);
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        let cut = ShortString::from_text_cut(&"a".repeat(256));
        assert_eq!(cut.as_str(), format!("{}...", "a".repeat(252)));
        let cut = ShortString::from_text_cut(&format!("{}é{}", "a".repeat(251), "b".repeat(9)));
        assert_eq!(cut.as_str(), format!("{}...", "a".repeat(251)));
        let whole = "a".repeat(255);
        assert_eq!(ShortString::from_text_cut(&whole), whole.as_str());
    }
}
