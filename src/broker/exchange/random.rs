//! Exchanges that send every message to one destination, any of them.

use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};

use super::hash::mix;

/// What a counter moves on by, so that neighbours share no bits.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// Bindings, and how many messages have been spread over them: the numbers are as even as random ones and can be repeated.
#[derive(Debug)]
pub(crate) struct RandomTable<T> {
    list: Vec<T>,
    turn: AtomicU64,
}

impl<T> Default for RandomTable<T> {
    fn default() -> Self {
        Self {
            list: Vec::new(),
            turn: AtomicU64::new(0),
        }
    }
}

impl<T: Clone + Eq + Hash> RandomTable<T> {
    /// Adds a binding.
    pub(crate) fn insert(&mut self, item: T) {
        self.list.push(item);
    }

    /// Removes a binding.
    pub(crate) fn remove(&mut self, item: &T) {
        if let Some(at) = self.list.iter().position(|other| other == item) {
            self.list.swap_remove(at);
        }
    }

    /// A binding, each as likely as the others.
    pub(crate) fn route(&self) -> Option<&T> {
        let count = u64::try_from(self.list.len()).ok()?;
        let turn = self.turn.fetch_add(STEP, Ordering::Relaxed);
        let at = mix(turn).checked_rem(count)?;
        self.list.get(usize::try_from(at).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_destination_gets_its_share() {
        let mut table = RandomTable::default();
        assert_eq!(table.route(), None);
        for item in 0..4 {
            table.insert(item);
        }
        table.remove(&3);
        let mut counts = [0; 3];
        for _ in 0..3_000 {
            counts[*table.route().expect("there are three")] += 1;
        }
        assert!(
            counts.iter().all(|count| (850..1150).contains(count)),
            "{counts:?}"
        );
    }
}
