//! Maps keyed by numbers that the broker itself made: no client can choose them so that they collide, so they need no
//! hash that resists it.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// See the module.
pub(super) type NumberMap<K, V> = HashMap<K, V, BuildHasherDefault<NumberHasher>>;

/// Mixes numbers by multiplication.
#[derive(Debug, Default)]
pub(super) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            let (taken, _) = word.split_at_mut(part.len());
            taken.copy_from_slice(part);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, number: u64) {
        // The golden ratio spreads a difference upwards; the map takes its place from the low bits.
        let product = (self.0 ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = product ^ (product >> 32);
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u64(number.unsigned_abs() as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    #[test]
    fn addresses_and_small_numbers_fall_into_different_places() {
        let hasher = BuildHasherDefault::<NumberHasher>::default();
        let keys =
            (0..1000usize).map(|index| (0x7f00_0000_0000 + index * 1024, Some(index as u64)));
        let places: HashSet<u64> = keys.map(|key| hasher.hash_one(key) % 4096).collect();
        // A random function would fill about 885.
        assert!(places.len() > 800, "{} places", places.len());
    }
}
