//! Fanout exchanges: every binding, whatever the key.

/// All bindings.
#[derive(Debug)]
pub struct FanoutTable<T> {
    items: Vec<T>,
}

impl<T> Default for FanoutTable<T> {
    fn default() -> Self {
        Self { items: Vec::new() }
    }
}

impl<T: PartialEq> FanoutTable<T> {
    /// Adds a binding.
    pub fn insert(&mut self, item: T) {
        self.items.push(item);
    }

    /// Removes a binding.
    pub fn remove(&mut self, item: &T) {
        self.items.retain(|other| other != item);
    }

    /// Visits all bindings.
    pub fn route<'a>(&'a self, visit: impl FnMut(&'a T)) {
        self.items.iter().for_each(visit);
    }
}
