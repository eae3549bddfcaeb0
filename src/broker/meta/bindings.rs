//! The durable bindings, in the order in which they were made.
//!
//! The order matters where two bindings lead from one exchange to the same place and only the first counts (a consistent
//! hash with two weights): so snapshots list them in it, and whoever reads one back has it again.

use std::collections::BTreeMap;

use super::BindingV1;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Bindings {
    /// With the place of each in the order.
    places: BTreeMap<BindingV1, u64>,
    next_place: u64,
}

impl Bindings {
    /// Adds a binding at the end, unless it is there already.
    pub fn insert(&mut self, binding: BindingV1) {
        let place = self.next_place;
        self.places.entry(binding).or_insert(place);
        self.next_place += 1;
    }

    /// Removes a binding.
    pub fn remove(&mut self, binding: &BindingV1) {
        self.places.remove(binding);
    }

    /// Removes the others.
    pub(super) fn retain(&mut self, mut is_kept: impl FnMut(&BindingV1) -> bool) {
        self.places.retain(|binding, _| is_kept(binding));
    }

    /// Removes the bindings of a queue; the cost is theirs.
    pub(super) fn remove_of_queue(&mut self, vhost: &str, queue: &str) {
        let first = BindingV1 {
            vhost: vhost.to_owned(),
            is_to_queue: true,
            destination: queue.to_owned(),
            source: String::new(),
            routing_key: String::new(),
            arguments: Vec::new(),
        };
        let is_of_queue = |binding: &BindingV1| {
            binding.vhost == vhost && binding.is_to_queue && binding.destination == queue
        };
        let from_first = self.places.range(first..).map(|(binding, _)| binding);
        let of_queue = from_first.take_while(|binding| is_of_queue(binding));
        for binding in of_queue.cloned().collect::<Vec<BindingV1>>() {
            self.places.remove(&binding);
        }
    }

    /// Number of bindings.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// True when there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// All of them, in order.
    #[must_use]
    pub fn in_order(&self) -> Vec<&BindingV1> {
        let mut bindings: Vec<_> = self.places.iter().collect();
        bindings.sort_unstable_by_key(|(_, place)| **place);
        bindings.into_iter().map(|(binding, _)| binding).collect()
    }

    /// The same, without a copy.
    pub(super) fn into_ordered(self) -> Vec<BindingV1> {
        let mut bindings: Vec<_> = self.places.into_iter().collect();
        bindings.sort_unstable_by_key(|(_, place)| *place);
        bindings.into_iter().map(|(binding, _)| binding).collect()
    }
}

impl FromIterator<BindingV1> for Bindings {
    fn from_iter<T: IntoIterator<Item = BindingV1>>(bindings: T) -> Self {
        let mut all = Self::default();
        bindings.into_iter().for_each(|binding| all.insert(binding));
        all
    }
}

/// The same bindings in the same order: where the order has gaps says nothing.
impl PartialEq for Bindings {
    fn eq(&self, other: &Self) -> bool {
        self.in_order() == other.in_order()
    }
}

impl Eq for Bindings {}
