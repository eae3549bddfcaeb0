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
use std::hash::{Hash, Hasher};
use std::sync::Arc;

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

/// What equal values have in common, for those that are worth being looked up: text and binary by their bytes, integers of all
/// widths by value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Indexed {
    Integer(i64),
    Bytes(Bytes),
}

impl Indexed {
    fn of(value: &FieldValue) -> Option<Self> {
        match value {
            FieldValue::LongString(bytes) | FieldValue::Binary(bytes) => {
                Some(Self::Bytes(bytes.clone()))
            }
            value => value.as_integer().map(Self::Integer),
        }
    }
}

/// Where a binding stands: a message that it matches leads there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Place {
    /// It matches every message.
    Always,
    /// Messages with that header.
    Key(Bytes),
    /// Messages with that header and that value.
    Value(Bytes, Indexed),
}

impl HeadersPattern {
    /// Where a binding stands: `all` of something under the one thing that says most, `any` under each; nowhere when it can match
    /// nothing.
    fn places(&self) -> Vec<Place> {
        let place_of = |(key, value): &(Bytes, FieldValue)| match value {
            FieldValue::Table(_) | FieldValue::Array(_) => None,
            value => Some(match Indexed::of(value) {
                Some(indexed) => Place::Value(key.clone(), indexed),
                None => Place::Key(key.clone()),
            }),
        };
        if self.is_all && self.wanted.is_empty() {
            return vec![Place::Always];
        }
        let mut places = Vec::with_capacity(self.wanted.len());
        for wanted in &self.wanted {
            match place_of(wanted) {
                Some(place) if !places.contains(&place) => places.push(place),
                None if self.is_all => return Vec::new(),
                _ => {}
            }
        }
        if self.is_all {
            let is_value = |place: &Place| matches!(place, Place::Value(..));
            let best = places.iter().position(is_value).unwrap_or(0);
            places.swap(0, best);
            places.truncate(1);
        }
        places
    }
}

/// A binding with its pattern; it is known by itself alone.
#[derive(Clone, Debug)]
struct Entry<T> {
    pattern: Arc<HeadersPattern>,
    item: T,
}

impl<T: PartialEq> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.item == other.item
    }
}

impl<T: Eq> Eq for Entry<T> {}

impl<T: Hash> Hash for Entry<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.item.hash(state);
    }
}

/// All bindings with their patterns, to be found by the headers of a message.
///
/// ```text
///   {a: 1, b: 2}            under (a, 1)              every message with a = 1 looks whether b is 2
///   any of {a: 1, b: void}  under (a, 1) and under b
///   {}                      always
/// ```
/// So a message costs what its headers lead to, not what is bound.
#[derive(Debug)]
pub struct HeadersTable<T> {
    patterns: HashMap<T, Arc<HeadersPattern>>,
    places: HashMap<Place, Items<Entry<T>>>,
}

impl<T> Default for HeadersTable<T> {
    fn default() -> Self {
        Self {
            patterns: HashMap::new(),
            places: HashMap::new(),
        }
    }
}

impl<T: Clone + Eq + Hash> HeadersTable<T> {
    /// Adds a binding.
    pub fn insert(&mut self, pattern: HeadersPattern, item: T) {
        let pattern = Arc::new(pattern);
        for place in pattern.places() {
            self.places.entry(place).or_default().insert(Entry {
                pattern: Arc::clone(&pattern),
                item: item.clone(),
            });
        }
        self.patterns.insert(item, pattern);
    }

    /// Removes a binding.
    pub fn remove(&mut self, item: &T) {
        let Some((item, pattern)) = self.patterns.remove_entry(item) else {
            return;
        };
        let entry = Entry { pattern, item };
        for place in entry.pattern.places() {
            if let Some(entries) = self.places.get_mut(&place) {
                entries.remove(&entry);
                if entries.is_empty() {
                    self.places.remove(&place);
                }
            }
        }
    }

    /// Visits the bindings that match `headers`; one that wants any of several may be visited for each of them.
    pub fn route<'a>(&'a self, headers: &FieldTable, mut visit: impl FnMut(&'a T)) {
        let mut by_key: HashMap<&[u8], &FieldValue> = HashMap::with_capacity(headers.len());
        for (key, value) in headers {
            by_key.entry(key).or_insert(value);
        }
        let mut look = |place: &Place| {
            let entries = self.places.get(place).into_iter();
            for entry in entries.flat_map(Items::iter) {
                if entry.pattern.matches(&by_key) {
                    visit(&entry.item);
                }
            }
        };
        look(&Place::Always);
        // Each key once: a table may repeat them, and then the first value counts.
        for (key, value) in headers {
            if !by_key
                .get(&key[..])
                .is_some_and(|first| std::ptr::eq(*first, value))
            {
                continue;
            }
            if let Some(indexed) = Indexed::of(value) {
                look(&Place::Value(key.clone(), indexed));
            }
            look(&Place::Key(key.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

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
    fn a_key_that_is_repeated_is_looked_up_once() {
        let mut routes = HeadersTable::default();
        let binding = table(&[("x-match", text("any")), ("a", FieldValue::Void)]);
        routes.insert(
            HeadersPattern::parse(&binding).expect("x-match is valid"),
            (),
        );
        let one = ("a", text("1"));
        let mut visit_count = 0;
        routes.route(&table(&[one.clone(), one.clone(), one]), |()| {
            visit_count += 1
        });
        assert_eq!(visit_count, 1);
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
    fn message_looks_only_at_bindings_its_headers_lead_to() {
        let mut routes = HeadersTable::default();
        for number in 0..1000 {
            let wanted = [("k", FieldValue::Long(number)), ("common", text("x"))];
            let pattern = HeadersPattern::parse(&table(&wanted)).expect("valid");
            routes.insert(pattern, number);
        }
        assert_eq!(routes.places.len(), 1000);
        let headers = table(&[("common", text("x")), ("k", FieldValue::Byte(7))]);
        let mut found = Vec::new();
        routes.route(&headers, |item| found.push(*item));
        assert_eq!(found, [7]);
        for number in 0..1000 {
            routes.remove(&number);
        }
        assert!(routes.places.is_empty() && routes.patterns.is_empty());
    }

    fn any_value() -> impl Strategy<Value = FieldValue> {
        prop_oneof![
            Just(FieldValue::Void),
            (0..3i64).prop_map(FieldValue::Long),
            (0..3i8).prop_map(FieldValue::Byte),
            Just(FieldValue::Double(1.0)),
            Just(FieldValue::Bool(true)),
            Just(text("1")),
            Just(FieldValue::Binary(Bytes::from_static(b"1"))),
            Just(FieldValue::Array(vec![])),
        ]
    }

    fn any_table() -> impl Strategy<Value = FieldTable> {
        let key = prop::sample::select(vec!["a", "b", "x-c"]);
        let pairs = prop::collection::vec((key, any_value()), 0..4);
        pairs.prop_map(|pairs| table(&pairs))
    }

    proptest! {
        #[test]
        fn agrees_with_looking_at_every_binding(
            bindings in prop::collection::vec((any_table(), 0..4usize), 0..8),
            headers in any_table(),
            removed in prop::collection::vec(0..8usize, 0..3),
        ) {
            let words = ["all", "any", "all-with-x", "any-with-x"];
            let mut routes = HeadersTable::default();
            let mut naive = BTreeMap::new();
            for (index, (mut arguments, word)) in bindings.into_iter().enumerate() {
                arguments.set("x-match", words[word]);
                let pattern = HeadersPattern::parse(&arguments).expect("valid");
                routes.insert(pattern.clone(), index);
                naive.insert(index, pattern);
            }
            for index in removed {
                routes.remove(&index);
                naive.remove(&index);
            }
            let mut found = BTreeSet::new();
            routes.route(&headers, |item| { found.insert(*item); });
            let mut by_key: HashMap<&[u8], &FieldValue> = HashMap::new();
            for (key, value) in &headers {
                by_key.entry(key).or_insert(value);
            }
            let expected = naive.iter().filter(|(_, pattern)| pattern.matches(&by_key));
            let expected: BTreeSet<usize> = expected.map(|(index, _)| *index).collect();
            prop_assert_eq!(found, expected);
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
