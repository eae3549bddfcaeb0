//! Fanout exchanges: every binding, whatever the key.

use std::hash::Hash;

use super::items::Items;

/// All bindings.
#[derive(Debug)]
pub struct FanoutTable<T> {
    items: Items<T>,
}

impl<T> Default for FanoutTable<T> {
    fn default() -> Self {
        Self {
            items: Items::default(),
        }
    }
}

impl<T: Clone + Eq + Hash> FanoutTable<T> {
    /// Adds a binding.
    pub fn insert(&mut self, item: T) {
        self.items.insert(item);
    }

    /// Removes a binding.
    pub fn remove(&mut self, item: &T) {
        self.items.remove(item);
    }

    /// Visits all bindings.
    pub fn route<'a>(&'a self, visit: impl FnMut(&'a T)) {
        self.items.iter().for_each(visit);
    }
}
