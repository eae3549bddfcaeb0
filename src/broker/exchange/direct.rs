//! Direct exchanges: byte-exact look-up of the routing key. The empty key is an ordinary key.

use std::collections::HashMap;
use std::hash::Hash;

use bytes::Bytes;

use super::items::Items;

/// Bindings by key.
#[derive(Debug)]
pub struct DirectTable<T> {
    by_key: HashMap<Bytes, Items<T>>,
}

impl<T> Default for DirectTable<T> {
    fn default() -> Self {
        Self {
            by_key: HashMap::new(),
        }
    }
}

impl<T: Clone + Eq + Hash> DirectTable<T> {
    /// Adds a binding under `key`.
    pub fn insert(&mut self, key: Bytes, item: T) {
        self.by_key.entry(key).or_default().insert(item);
    }

    /// Removes a binding under `key`.
    pub fn remove(&mut self, key: &[u8], item: &T) {
        let Some(items) = self.by_key.get_mut(key) else {
            return;
        };
        items.remove(item);
        if items.is_empty() {
            self.by_key.remove(key);
        }
    }

    /// Visits the bindings whose key is `routing_key`.
    pub fn route<'a>(&'a self, routing_key: &[u8], mut visit: impl FnMut(&'a T)) {
        if let Some(items) = self.by_key.get(routing_key) {
            items.iter().for_each(&mut visit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direct_matches_whole_keys_only() {
        let mut table = DirectTable::default();
        for (key, item) in [("a", 1), ("a", 2), ("a.b", 3), ("", 4), ("#", 5)] {
            table.insert(Bytes::from_static(key.as_bytes()), item);
        }
        for (key, expected) in [
            ("a", vec![1, 2]),
            ("a.b", vec![3]),
            ("", vec![4]),
            ("A", vec![]),
            ("x", vec![]),
        ] {
            let mut found = Vec::new();
            table.route(key.as_bytes(), |item| found.push(*item));
            assert_eq!(found, expected, "{key}");
        }
        table.remove(b"a", &1);
        table.remove(b"nothing", &1);
        let mut found = Vec::new();
        table.route(b"a", |item| found.push(*item));
        assert_eq!(found, [2]);
    }
}
