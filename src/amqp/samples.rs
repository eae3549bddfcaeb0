//! Random values for tests, the same for the same seed.

use bytes::Bytes;

use super::field_table::{FieldTable, FieldValue};
use super::short_string::ShortString;

/// A small generator of numbers (splitmix64).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub(super) fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).unwrap();
        usize::try_from(self.next() % end).unwrap()
    }

    pub(super) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next().to_be_bytes()[0]).collect()
    }
}

/// A type that can be made up.
pub(super) trait Sample {
    fn sample(random: &mut Random) -> Self;
}

impl Sample for bool {
    fn sample(random: &mut Random) -> Self {
        random.below(2) == 1
    }
}

macro_rules! sample_numbers {
    ($($type:ty)*) => { $(
        impl Sample for $type {
            fn sample(random: &mut Random) -> Self {
                let bytes = random.next().to_be_bytes();
                Self::from_be_bytes(*bytes.first_chunk().unwrap())
            }
        }
    )* };
}
sample_numbers! { u8 u16 u32 u64 }

impl Sample for ShortString {
    fn sample(random: &mut Random) -> Self {
        let length = random.below(20);
        let text: String = (0..length)
            .map(|_| ['a', 'Z', '.', 'é'][random.below(4)])
            .collect();
        Self::from_text(&text).unwrap()
    }
}

impl Sample for Bytes {
    fn sample(random: &mut Random) -> Self {
        let length = random.below(20);
        Self::from(random.bytes(length))
    }
}

/// Names in order, and of types every codec agrees on.
impl Sample for FieldTable {
    fn sample(random: &mut Random) -> Self {
        (0..random.below(5)).fold(Self::new(), |table, index| {
            let value = match random.below(5) {
                0 => FieldValue::Bool(bool::sample(random)),
                1 => FieldValue::SignedInt(i32::from(u16::sample(random)) - 40_000),
                2 => FieldValue::LongString(Bytes::sample(random)),
                3 => FieldValue::Table(Self::new().with("inner", "value")),
                _ => FieldValue::Array(vec![FieldValue::Void, FieldValue::Timestamp(7)]),
            };
            table.with(&format!("name-{index}"), value)
        })
    }
}
