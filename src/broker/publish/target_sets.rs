//! The sets of targets of a run, each numbered once.
//!
//! ```text
//!   keys of a run    q0 q1 q2 q0 q1 q2 ..
//!   sets             0: {q0}  1: {q1}  2: {q2}
//!   its messages     m/0 m/1 m/2 m/0 ..
//! ```
//! A publisher that goes round its queues has the same few sets again and again. They are known by their addresses, which the cache of
//! routes gives them, so that nothing is compared but those, and a run keeps hold of a set once and not for each message.

use std::sync::Arc;

use crate::broker::queue::{GROUP_QUEUES_MAX, LoggedTargets, QueueHandle};
use crate::broker::route_cache::SharedTargets;

/// Where numbers of sets stand.
const PLACES: usize = 2 * GROUP_QUEUES_MAX;
/// Places that a number may stand in, its home first.
const SEARCH_MAX: usize = 8;

/// The number of a set in its run.
pub(super) type SetNumber = u32;

/// See the module. A set that finds no place near its home takes that of another, which gets another number when it comes back.
pub(super) struct TargetSets {
    sets: Vec<SharedTargets>,
    /// Of each set, what matters for its messages' room in the log.
    logged: Vec<LoggedTargets>,
    /// Numbers of sets and one; 0 for none.
    places: [SetNumber; PLACES],
}

impl Default for TargetSets {
    fn default() -> Self {
        Self {
            sets: Vec::new(),
            logged: Vec::new(),
            places: [0; PLACES],
        }
    }
}

impl TargetSets {
    /// All of them, by number.
    pub(super) fn all(&self) -> &[SharedTargets] {
        &self.sets
    }

    /// One of them; nothing, where there is none of that number.
    pub(super) fn get(&self, number: SetNumber) -> &[QueueHandle] {
        self.sets.get(number as usize).map_or(&[], |set| &set[..])
    }

    /// What of a set matters for the room in the log.
    pub(super) fn logged(&self, number: SetNumber) -> LoggedTargets {
        self.logged
            .get(number as usize)
            .copied()
            .unwrap_or_default()
    }

    /// The number of a set that was added.
    pub(super) fn find(&self, targets: &SharedTargets) -> Option<SetNumber> {
        self.number_at(self.place_of(targets), targets)
    }

    /// Adds a set that is not [found](Self::find).
    pub(super) fn add(&mut self, targets: SharedTargets) -> SetNumber {
        let place = self.place_of(&targets);
        let number = SetNumber::try_from(self.sets.len()).unwrap_or(SetNumber::MAX);
        self.places[place] = number.saturating_add(1);
        self.logged.push(LoggedTargets::of(&targets));
        self.sets.push(targets);
        number
    }

    pub(super) fn clear(&mut self) {
        *self = Self {
            sets: std::mem::take(&mut self.sets),
            logged: std::mem::take(&mut self.logged),
            places: [0; PLACES],
        };
        self.sets.clear();
        self.logged.clear();
    }

    /// The number that stands in a place, if it is that of `targets`.
    fn number_at(&self, place: usize, targets: &SharedTargets) -> Option<SetNumber> {
        let number = self.places[place].checked_sub(1)?;
        let set = self.sets.get(number as usize)?;
        Arc::ptr_eq(set, targets).then_some(number)
    }

    /// Where the number of a set is, or may be.
    fn place_of(&self, targets: &SharedTargets) -> usize {
        let address = Arc::as_ptr(targets).addr() as u64;
        let mixed = address.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let home = mixed as usize % PLACES;
        let mut near = (home..home + SEARCH_MAX).map(|place| place % PLACES);
        let fits =
            |place: &usize| self.places[*place] == 0 || self.number_at(*place, targets).is_some();
        near.find(fits).unwrap_or(home)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_is_found_by_its_number_until_the_run_ends() {
        let sets: Vec<SharedTargets> = (0..GROUP_QUEUES_MAX).map(|_| Arc::from([])).collect();
        let mut known = TargetSets::default();
        for set in &sets {
            assert_eq!(known.find(set), None);
            let number = known.add(Arc::clone(set));
            assert_eq!(known.find(set), Some(number));
            assert!(Arc::ptr_eq(&known.all()[number as usize], set));
        }
        let found = sets.iter().filter(|set| known.find(set).is_some()).count();
        assert!(found > GROUP_QUEUES_MAX / 2, "{found}");
        known.clear();
        assert!(known.all().is_empty() && sets.iter().all(|set| known.find(set).is_none()));
    }
}
