//! A set of bindings that is mostly walked through and sometimes loses one.
//!
//! ```text
//!   few     [ a b c ]                        found by looking at all
//!   many    [ a b c .. z ]  {a: 0, b: 1, ..} found by hash; the last one takes the place of the one that goes
//! ```
//! Ten thousand queues bound to one fanout exchange, or one queue with ten thousand binding keys, would make every deletion a walk
//! through all the others. The order means nothing: a message's queues are sorted by id.
//!
//! Invariant: when there is a map, it has exactly the items of the list, each with its place.

use std::collections::HashMap;
use std::hash::Hash;

/// Sets up to this size have no map: looking at all of them is as fast, and most bindings share their key with nobody.
const UNMAPPED_MAX: usize = 16;

/// See the module. An item is in it once.
#[derive(Debug)]
pub struct Items<T> {
    list: Vec<T>,
    #[expect(
        clippy::box_collection,
        reason = "a topic exchange has a set for every node of its trie, most of them without a map"
    )]
    places: Option<Box<HashMap<T, usize>>>,
}

impl<T> Default for Items<T> {
    fn default() -> Self {
        Self {
            list: Vec::new(),
            places: None,
        }
    }
}

impl<T: Clone + Eq + Hash> Items<T> {
    /// Adds an item that is not there yet.
    pub fn insert(&mut self, item: T) {
        let place = self.list.len();
        self.list.push(item.clone());
        match &mut self.places {
            Some(places) => {
                let before = places.insert(item, place);
                debug_assert!(before.is_none(), "an item is in a set once");
            }
            None if place >= UNMAPPED_MAX => {
                let numbered = self.list.iter().cloned().zip(0..);
                self.places = Some(Box::new(numbered.collect()));
            }
            None => {}
        }
    }

    /// Removes an item; says which place the last one has taken, for lists kept beside this one by `swap_remove`.
    pub fn remove(&mut self, item: &T) -> Option<usize> {
        let place = match &mut self.places {
            Some(places) => places.remove(item)?,
            None => self.list.iter().position(|other| other == item)?,
        };
        self.list.swap_remove(place);
        if let (Some(places), Some(moved)) = (&mut self.places, self.list.get(place)) {
            places.insert(moved.clone(), place);
        }
        if self.list.is_empty() {
            *self = Self::default();
        }
        Some(place)
    }

    /// True when there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.list.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn items_are_a_set_at_every_size(steps in prop::collection::vec((0u8..60, any::<bool>()), 0..400)) {
            let mut items = Items::default();
            let mut beside = Vec::new();
            let mut model = BTreeSet::new();
            for (item, is_added) in steps {
                if is_added && model.insert(item) {
                    items.insert(item);
                    beside.push(item);
                } else if !is_added {
                    let removed = items.remove(&item);
                    prop_assert_eq!(removed.is_some(), model.remove(&item));
                    removed.map(|place| beside.swap_remove(place));
                }
                prop_assert_eq!(items.is_empty(), model.is_empty());
                prop_assert!(items.iter().eq(beside.iter()));
                prop_assert_eq!(items.iter().copied().collect::<BTreeSet<_>>(), model.clone());
            }
        }
    }
}
