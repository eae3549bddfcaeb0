//! Headers exchanges: bindings that name headers and the values they must have.
//!
//! | `x-match` | matches when | arguments that count |
//! |---|---|---|
//! | `all` (default) | every one matches | those that do not begin with `x-` |
//! | `any` | one matches | those that do not begin with `x-` |
//! | `all-with-x` | every one matches | all but `x-match` |
//! | `any-with-x` | one matches | all but `x-match` |
//!
//! A void argument asks for presence only. `all` of nothing matches everything, `any` of nothing nothing.

use std::collections::HashMap;
use std::hash::Hash;

use bytes::Bytes;

use super::items::Items;
use crate::amqp::field_table::{FieldTable, FieldValue};
use crate::broker::equivalence::display;

/// Equality of a header with the value a binding asks for: integers of all widths by value, text and
/// binary by their bytes, tables and arrays never.
fn is_match(wanted: &FieldValue, header: &FieldValue) -> bool {
    use FieldValue::{Array, Binary, LongString, Table};
    match (wanted, header) {
        (LongString(wanted) | Binary(wanted), LongString(header) | Binary(header)) => {
            wanted == header
        }
        (Table(_) | Array(_), _) => false,
        _ => wanted.is_equivalent(header),
    }
}

/// The arguments of a headers binding, parsed once.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadersPattern {
    is_all: bool,
    wanted: Vec<(Bytes, FieldValue)>,
}

impl HeadersPattern {
    /// Reads the arguments of a binding.
    ///
    /// # Errors
    /// The text of the refusal (406) when `x-match` is not one of the four words.
    pub fn parse(arguments: &FieldTable) -> Result<Self, String> {
        let (is_all, counts_x) = match arguments.get("x-match") {
            None => (true, false),
            Some(FieldValue::LongString(word)) => match &word[..] {
                b"all" => (true, false),
                b"any" => (false, false),
                b"all-with-x" => (true, true),
                b"any-with-x" => (false, true),
                word => {
                    return Err(format!(
                        "Invalid x-match field value <<\"{}\">>; expected all, any, all-with-x, or any-with-x",
                        String::from_utf8_lossy(word)
                    ));
                }
            },
            Some(value) => {
                return Err(format!(
                    "Invalid x-match field type {} (value {}); expected longstr",
                    value.type_name(),
                    display(value)
                ));
            }
        };
        let counts = |key: &[u8]| key != b"x-match" && (counts_x || !key.starts_with(b"x-"));
        let wanted = arguments.iter().filter(|(key, _)| counts(key));
        Ok(Self {
            is_all,
            wanted: wanted.cloned().collect(),
        })
    }

    /// True when a message with these headers is meant.
    fn matches(&self, headers: &HashMap<&[u8], &FieldValue>) -> bool {
        let matches_one = |(key, wanted): &(Bytes, FieldValue)| {
            headers.get(&key[..]).is_some_and(|header| {
                matches!(wanted, FieldValue::Void) || is_match(wanted, header)
            })
        };
        if self.is_all {
            self.wanted.iter().all(matches_one)
        } else {
            self.wanted.iter().any(matches_one)
        }
    }
}

/// All bindings with their patterns.
#[derive(Debug)]
pub struct HeadersTable<T> {
    items: Items<T>,
    /// In the order of the items.
    patterns: Vec<HeadersPattern>,
}

impl<T> Default for HeadersTable<T> {
    fn default() -> Self {
        Self {
            items: Items::default(),
            patterns: Vec::new(),
        }
    }
}

impl<T: Clone + Eq + Hash> HeadersTable<T> {
    /// Adds a binding.
    pub fn insert(&mut self, pattern: HeadersPattern, item: T) {
        self.items.insert(item);
        self.patterns.push(pattern);
    }

    /// Removes a binding.
    pub fn remove(&mut self, item: &T) {
        if let Some(place) = self.items.remove(item) {
            self.patterns.swap_remove(place);
        }
    }

    /// Visits the bindings that match `headers`.
    pub fn route<'a>(&'a self, headers: &FieldTable, mut visit: impl FnMut(&'a T)) {
        let mut by_key: HashMap<&[u8], &FieldValue> = HashMap::with_capacity(headers.len());
        for (key, value) in headers {
            by_key.entry(key).or_insert(value);
        }
        for (pattern, item) in self.patterns.iter().zip(self.items.iter()) {
            if pattern.matches(&by_key) {
                visit(item);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &'static str) -> FieldValue {
        FieldValue::LongString(Bytes::from_static(value.as_bytes()))
    }

    fn table(pairs: &[(&'static str, FieldValue)]) -> FieldTable {
        let mut table = FieldTable::new();
        for (key, value) in pairs {
            table.push(Bytes::from_static(key.as_bytes()), value.clone());
        }
        table
    }

    #[track_caller]
    fn check(
        binding: &[(&'static str, FieldValue)],
        headers: &[(&'static str, FieldValue)],
        expected: bool,
    ) {
        let mut routes = HeadersTable::default();
        let pattern = HeadersPattern::parse(&table(binding)).expect("x-match is valid");
        routes.insert(pattern, ());
        let mut is_match = false;
        routes.route(&table(headers), |()| is_match = true);
        assert_eq!(is_match, expected);
    }

    #[test]
    fn all_and_any() {
        let (a, b) = (("a", text("1")), ("b", text("2")));
        let any = ("x-match", text("any"));
        let all = ("x-match", text("all"));
        check(&[a.clone(), b.clone()], std::slice::from_ref(&a), false);
        check(&[a.clone(), b.clone()], &[a.clone(), b.clone()], true);
        check(
            &[all, a.clone(), b.clone()],
            std::slice::from_ref(&b),
            false,
        );
        check(
            &[any.clone(), a.clone(), b.clone()],
            std::slice::from_ref(&b),
            true,
        );
        check(&[any.clone(), a.clone()], std::slice::from_ref(&b), false);
        check(&[any], &[b], false);
        check(&[], &[a], true);
        check(&[], &[], true);
    }

    #[test]
    fn x_headers_count_only_with_x() {
        let x = ("x-foo", text("1"));
        check(std::slice::from_ref(&x), &[], true);
        check(&[("x-match", text("all-with-x")), x.clone()], &[], false);
        check(
            &[("x-match", text("all-with-x")), x.clone()],
            std::slice::from_ref(&x),
            true,
        );
        check(
            &[("x-match", text("any")), x.clone()],
            std::slice::from_ref(&x),
            false,
        );
        check(&[("x-match", text("any-with-x")), x.clone()], &[x], true);
    }

    #[test]
    fn values_compare_by_kind_and_value() {
        use FieldValue::{Binary, Byte, Double, Long, SignedInt, Void};
        for (wanted, header, expected) in [
            (Byte(5), SignedInt(5), true),
            (Long(5), SignedInt(6), false),
            (text("1"), SignedInt(1), false),
            (SignedInt(1), Double(1.0), false),
            (text("x"), Binary(Bytes::from_static(b"x")), true),
            (Void, SignedInt(1), true),
            (FieldValue::Array(vec![]), FieldValue::Array(vec![]), false),
        ] {
            check(&[("k", wanted.clone())], &[("k", header)], expected);
            check(&[("k", wanted)], &[], false);
        }
    }

    #[test]
    fn bad_x_match_is_refused_with_its_value() {
        for (value, expected) in [
            (
                text("foo"),
                "Invalid x-match field value <<\"foo\">>; expected all, any, all-with-x, or any-with-x",
            ),
            (
                FieldValue::SignedInt(5),
                "Invalid x-match field type signedint (value 5); expected longstr",
            ),
        ] {
            let refusal = HeadersPattern::parse(&table(&[("x-match", value)]));
            assert_eq!(refusal, Err(expected.to_owned()));
        }
    }
}
