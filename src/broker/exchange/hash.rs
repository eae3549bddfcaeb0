//! Exchanges that send every message to one destination, chosen by a hash: the same key goes to the same place.
//!
//! ```text
//!   consistent   each destination draws a number from (key, its own name), scaled by its weight; the least one wins
//!   modulus      destinations sorted by name; hash of the key modulo their number
//! ```
//! The draw (rendezvous hashing) makes a share of exactly weight / sum of weights, moves only the keys of a destination that goes or
//! the share of one that comes, and depends on the names alone: after a restart every key goes where it went before. It costs a few
//! nanoseconds a destination, once for each key as long as a connection remembers its route.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};

use crate::amqp::field_table::{FieldTable, FieldValue};
use crate::amqp::properties::Properties;
use crate::amqp::short_string::ShortString;

/// What a consistent hash exchange hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HashOn {
    /// The routing keys.
    Keys,
    /// The header of that name.
    Header(Bytes),
    /// A property.
    CorrelationId,
    /// A property.
    MessageId,
    /// A property.
    Timestamp,
}

impl HashOn {
    /// Reads the arguments of an exchange; those of other brokers that have this type (`x-hash-on`, `x-algorithm`) count too.
    ///
    /// # Errors
    /// The text of the refusal (406).
    pub(crate) fn parse(arguments: &FieldTable) -> Result<Self, String> {
        if let Some(algorithm) = arguments.get("x-algorithm")
            && !matches!(algorithm.as_text(), Some("ring" | "jump"))
        {
            return Err("x-algorithm must be either 'ring' or 'jump'".to_owned());
        }
        let header = text_of(arguments, "hash-header").or_else(|| text_of(arguments, "x-hash-on"));
        match (header, text_of(arguments, "hash-property")) {
            (None, None) => Ok(Self::Keys),
            (Some(header), None) => Ok(Self::Header(header.clone())),
            (None, Some(property)) => match &property[..] {
                b"correlation_id" => Ok(Self::CorrelationId),
                b"message_id" => Ok(Self::MessageId),
                b"timestamp" => Ok(Self::Timestamp),
                other => {
                    let other = String::from_utf8_lossy(other);
                    Err(format!("Unsupported property: {other}"))
                }
            },
            (Some(_), Some(_)) => {
                Err("hash-header and hash-property are mutually exclusive".to_owned())
            }
        }
    }

    /// The hash of a message. What it does not have hashes like nothing.
    fn hash(&self, keys: &[ShortString], properties: &Properties) -> u64 {
        let text = |text: Option<&[u8]>| hash_bytes(text.unwrap_or_default());
        match self {
            Self::Keys => hash_keys(keys),
            Self::Header(name) => {
                let headers = properties.headers().unwrap_or_default();
                hash_value(headers.get_bytes(name))
            }
            Self::CorrelationId => text(properties.correlation_id()),
            Self::MessageId => text(properties.message_id()),
            Self::Timestamp => mix(properties.timestamp().unwrap_or_default()),
        }
    }
}

fn text_of<'a>(arguments: &'a FieldTable, name: &str) -> Option<&'a Bytes> {
    match arguments.get(name) {
        Some(FieldValue::LongString(text)) => Some(text),
        _ => None,
    }
}

/// Spreads a number over all 64 bits.
pub(super) fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

/// FNV-1a, spread: the same on every machine and in every version, since it decides who gets a message after a restart.
fn hash_bytes(bytes: &[u8]) -> u64 {
    let hash = bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3)
    });
    mix(hash)
}

fn hash_keys(keys: &[ShortString]) -> u64 {
    let hashes = keys.iter().map(|key| hash_bytes(key.as_bytes()));
    hashes.fold(0, |all: u64, hash| mix(all.rotate_left(5) ^ hash))
}

/// Integers hash alike whatever their width.
fn hash_value(value: Option<&FieldValue>) -> u64 {
    match value {
        None => hash_bytes(&[]),
        Some(FieldValue::LongString(bytes) | FieldValue::Binary(bytes)) => hash_bytes(bytes),
        Some(value) => {
            let mut encoded = BytesMut::new();
            match value.as_integer() {
                Some(number) => encoded.put_i64_le(number),
                None => value.encode(&mut encoded),
            }
            hash_bytes(&encoded)
        }
    }
}

/// The weight that a binding key stands for.
///
/// # Errors
/// The text of the refusal (406).
pub(crate) fn parse_weight(key: &ShortString) -> Result<u64, String> {
    let shown = || format!("The binding key must be an integer: <<\"{key}\">>");
    let too_small = || Err("The binding key must be greater than 0".to_owned());
    let (is_negative, digits) = match key.as_str().as_bytes().split_first() {
        Some((b'-', digits)) => (true, digits),
        Some((b'+', digits)) => (false, digits),
        _ => (false, key.as_str().as_bytes()),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(shown());
    }
    let weight = digits.iter().fold(0u64, |number, digit| {
        let digit = u64::from(digit - b'0');
        number.saturating_mul(10).saturating_add(digit)
    });
    if is_negative || weight == 0 {
        return too_small();
    }
    Ok(weight)
}

/// What leads to one destination: the first binding counts, later ones with other keys are ignored until it goes.
#[derive(Debug)]
struct Member<T> {
    seed: u64,
    bindings: Vec<(f64, T)>,
}

/// Destinations of an `x-consistent-hash` exchange.
#[derive(Debug)]
pub(crate) struct ConsistentTable<T> {
    hash_on: HashOn,
    members: BTreeMap<Bytes, Member<T>>,
}

impl<T: PartialEq> ConsistentTable<T> {
    pub(crate) fn new(hash_on: HashOn) -> Self {
        Self {
            hash_on,
            members: BTreeMap::new(),
        }
    }

    /// True when messages with the same keys go to the same place.
    pub(crate) fn is_by_key(&self) -> bool {
        self.hash_on == HashOn::Keys
    }

    /// Adds a binding to `destination`, a name that is unique among them.
    pub(crate) fn insert(&mut self, destination: Bytes, weight: u64, item: T) {
        let seed = hash_bytes(&destination);
        let member = self.members.entry(destination).or_insert_with(|| Member {
            seed,
            bindings: Vec::new(),
        });
        #[expect(
            clippy::cast_precision_loss,
            reason = "a share is as exact as 53 bits are"
        )]
        let weight = weight as f64;
        member.bindings.push((weight, item));
    }

    /// Removes a binding.
    pub(crate) fn remove(&mut self, destination: &[u8], item: &T) {
        let Some(member) = self.members.get_mut(destination) else {
            return;
        };
        member.bindings.retain(|(_, other)| other != item);
        if member.bindings.is_empty() {
            self.members.remove(destination);
        }
    }

    /// The binding a message goes by.
    pub(crate) fn route(&self, keys: &[ShortString], properties: &Properties) -> Option<&T> {
        let hash = self.hash_on.hash(keys, properties);
        let draws = self.members.values().filter_map(|member| {
            let (weight, item) = member.bindings.first()?;
            Some((draw(hash ^ member.seed) / weight, item))
        });
        let least = draws.min_by(|(left, _), (right, _)| left.total_cmp(right));
        least.map(|(_, item)| item)
    }
}

/// An exponentially distributed number: the least of several is each one's as often as its rate says.
fn draw(seed: u64) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        reason = "53 bits are what the type holds"
    )]
    let uniform = ((mix(seed) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -uniform.ln()
}

/// Destinations of an `x-modulus-hash` exchange, sorted by name.
#[derive(Debug)]
pub(crate) struct ModulusTable<T> {
    members: Vec<(Bytes, Vec<T>)>,
}

impl<T> Default for ModulusTable<T> {
    fn default() -> Self {
        Self {
            members: Vec::new(),
        }
    }
}

impl<T: PartialEq> ModulusTable<T> {
    /// Adds a binding to `destination`.
    pub(crate) fn insert(&mut self, destination: Bytes, item: T) {
        match self.find(&destination) {
            Ok(at) => self.members[at].1.push(item),
            Err(at) => self.members.insert(at, (destination, vec![item])),
        }
    }

    /// Removes a binding.
    pub(crate) fn remove(&mut self, destination: &[u8], item: &T) {
        if let Ok(at) = self.find(destination) {
            self.members[at].1.retain(|other| other != item);
            if self.members[at].1.is_empty() {
                self.members.remove(at);
            }
        }
    }

    /// The binding a message with `keys` goes by.
    pub(crate) fn route(&self, keys: &[ShortString]) -> Option<&T> {
        let count = u64::try_from(self.members.len()).ok()?;
        let at = hash_keys(keys).checked_rem(count)?;
        let (_, items) = self.members.get(usize::try_from(at).ok()?)?;
        items.first()
    }

    fn find(&self, destination: &[u8]) -> Result<usize, usize> {
        let places = self.members.as_slice();
        places.binary_search_by(|(name, _)| name[..].cmp(destination))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> ShortString {
        ShortString::from_text(text).expect("short")
    }

    fn place(table: &ConsistentTable<u32>, number: u32) -> u32 {
        let keys = [key(&format!("key {number}"))];
        *table
            .route(&keys, &Properties::default())
            .expect("a destination")
    }

    #[test]
    fn shares_follow_weights_and_few_keys_move() {
        let mut table = ConsistentTable::new(HashOn::Keys);
        for (id, weight) in [(1, 1), (2, 1), (3, 2)] {
            table.insert(Bytes::from(format!("q{id}")), weight, id);
        }
        let before: Vec<u32> = (0..20_000).map(|number| place(&table, number)).collect();
        for (id, expected) in [(1, 5_000), (2, 5_000), (3, 10_000)] {
            let count = before.iter().filter(|place| **place == id).count();
            assert!(count.abs_diff(expected) < 300, "{id}: {count}");
        }
        table.insert(Bytes::from_static(b"q0"), 1, 0);
        let moved = (0..20_000).zip(&before);
        for (number, before) in moved {
            let now = place(&table, number);
            assert!(now == 0 || now == *before, "{number}: {before} -> {now}");
        }
        table.remove(b"q0", &0);
        let after: Vec<u32> = (0..20_000).map(|number| place(&table, number)).collect();
        assert_eq!(before, after);
    }

    #[test]
    fn second_weight_of_a_destination_is_ignored_until_the_first_goes() {
        let mut table = ConsistentTable::new(HashOn::Keys);
        table.insert(Bytes::from_static(b"a"), 1, 1);
        table.insert(Bytes::from_static(b"b"), 1, 2);
        table.insert(Bytes::from_static(b"b"), 1_000_000, 3);
        assert!((0..100).any(|number| place(&table, number) == 1));
        assert!((0..100).all(|number| place(&table, number) != 3));
        table.remove(b"b", &2);
        assert!((0..100).all(|number| place(&table, number) == 3));
    }

    #[test]
    fn modulus_is_the_same_for_the_same_destinations() {
        let mut table = ModulusTable::default();
        assert_eq!(table.route(&[key("k")]), None);
        for name in ["b", "a", "c"] {
            table.insert(Bytes::from(name), name);
        }
        table.insert(Bytes::from_static(b"a"), "again");
        let places: Vec<&str> = (0..300)
            .filter_map(|number| table.route(&[key(&number.to_string())]).copied())
            .collect();
        for name in ["a", "b", "c"] {
            let count = places.iter().filter(|place| **place == name).count();
            assert!((60..140).contains(&count), "{name}: {count}");
        }
        table.remove(b"a", &"a");
        assert!((0..300).any(|number| table.route(&[key(&number.to_string())]) == Some(&"again")));
    }

    #[test]
    fn weights_are_positive_integers() {
        for (text, expected) in [
            ("1", Ok(1)),
            ("+20", Ok(20)),
            ("0", Err("The binding key must be greater than 0")),
            ("-5", Err("The binding key must be greater than 0")),
            ("", Err("The binding key must be an integer: <<\"\">>")),
            (
                "1.5",
                Err("The binding key must be an integer: <<\"1.5\">>"),
            ),
            ("-", Err("The binding key must be an integer: <<\"-\">>")),
            ("99999999999999999999999", Ok(u64::MAX)),
        ] {
            assert_eq!(parse_weight(&key(text)), expected.map_err(str::to_owned));
        }
    }

    #[test]
    fn headers_hash_by_value() {
        let int = |value| hash_value(Some(&value));
        assert_eq!(int(FieldValue::Byte(5)), int(FieldValue::Long(5)));
        assert_ne!(int(FieldValue::Long(5)), int(FieldValue::Long(6)));
        assert_ne!(int(FieldValue::Long(5)), hash_value(None));
    }
}
