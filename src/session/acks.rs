//! Delivery tags: what a channel has handed to its client and not heard of again.
//!
//! ```text
//!   entries, rising tags: [7 U] [8 -] [9 -] [10 U] [12 U]     ack 10 multiple -> 7 and 10 leave
//! ```
//! 1. Tags rise by one with every delivery; those taken without acknowledgement leave no entry.
//! 2. The front entry is always outstanding: settled ones in the middle stay as holes until the front
//!    passes them, or until there are more holes than entries. So acks in order cost no search, and a
//!    message that is never acknowledged costs no memory for those behind it.

use std::collections::VecDeque;

use crate::broker::command::Unacked;

/// Holes that are always tolerated.
const HOLES_MIN: usize = 64;

/// Which deliveries an acknowledgement speaks of (AMQP 0-9-1 section 1.8.3.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AckScope {
    /// This one.
    One(u64),
    /// This one, which must be outstanding, and all outstanding ones before it.
    UpTo(u64),
    /// All outstanding ones, if any.
    All,
}

impl AckScope {
    /// What the arguments of `basic.ack` and `basic.nack` mean.
    pub(super) fn new(tag: u64, is_multiple: bool) -> Self {
        match (tag, is_multiple) {
            (0, true) => Self::All,
            (tag, true) => Self::UpTo(tag),
            (tag, false) => Self::One(tag),
        }
    }
}

/// The tag is not outstanding on this channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UnknownTag(pub(super) u64);

/// A delivery that may be acknowledged.
pub(super) type Outstanding = (u64, Unacked);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct DeliveryTags {
    /// The last tag given.
    last_tag: u64,
    entries: VecDeque<(u64, Option<Unacked>)>,
    /// Entries that are settled.
    hole_count: usize,
}

impl DeliveryTags {
    /// The next tag, for a delivery that is settled already.
    pub(super) fn next_settled(&mut self) -> u64 {
        self.last_tag += 1;
        self.last_tag
    }

    /// The next tag, for a delivery to be acknowledged.
    pub(super) fn next(&mut self, unacked: Unacked) -> u64 {
        self.last_tag += 1;
        self.entries.push_back((self.last_tag, Some(unacked)));
        self.last_tag
    }

    /// Hands the deliveries in `scope` to `settle`, in tag order.
    ///
    /// # Errors
    /// The tag is not outstanding; then nothing has changed.
    pub(super) fn take(
        &mut self,
        scope: AckScope,
        mut settle: impl FnMut(Outstanding),
    ) -> Result<(), UnknownTag> {
        match scope {
            AckScope::All => self.take_front(self.entries.len(), &mut settle),
            AckScope::UpTo(tag) => {
                let index = self.find(tag).ok_or(UnknownTag(tag))?;
                self.take_front(index + 1, &mut settle);
            }
            AckScope::One(tag) => {
                let index = self.find(tag).ok_or(UnknownTag(tag))?;
                if let Some((_, entry)) = self.entries.get_mut(index)
                    && let Some(unacked) = entry.take()
                {
                    self.hole_count += 1;
                    settle((tag, unacked));
                }
            }
        }
        self.drop_holes();
        Ok(())
    }

    /// Hands over all outstanding deliveries.
    pub(super) fn take_all(&mut self) -> Vec<Unacked> {
        self.hole_count = 0;
        self.entries
            .drain(..)
            .filter_map(|(_, entry)| entry)
            .collect()
    }

    /// Puts back what `take` gave, after a rollback.
    pub(super) fn restore(&mut self, outstanding: impl IntoIterator<Item = Outstanding>) {
        let back = outstanding
            .into_iter()
            .map(|(tag, unacked)| (tag, Some(unacked)));
        self.entries.extend(back);
        self.entries.retain(|(_, entry)| entry.is_some());
        self.entries.make_contiguous().sort_by_key(|(tag, _)| *tag);
        self.hole_count = 0;
    }

    /// Outstanding deliveries.
    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.hole_count
    }

    fn find(&self, tag: u64) -> Option<usize> {
        let index = match self.entries.front() {
            Some((first, _)) if *first == tag => 0,
            _ => self
                .entries
                .binary_search_by_key(&tag, |(tag, _)| *tag)
                .ok()?,
        };
        let (_, entry) = self.entries.get(index)?;
        entry.is_some().then_some(index)
    }

    fn take_front(&mut self, count: usize, settle: &mut impl FnMut(Outstanding)) {
        for (tag, entry) in self.entries.drain(..count) {
            match entry {
                Some(unacked) => settle((tag, unacked)),
                None => self.hole_count -= 1,
            }
        }
    }

    /// Keeps (2).
    fn drop_holes(&mut self) {
        while let Some((_, None)) = self.entries.front() {
            self.entries.pop_front();
            self.hole_count -= 1;
        }
        if self.hole_count > HOLES_MIN && self.hole_count > self.len() {
            self.entries.retain(|(_, entry)| entry.is_some());
            self.hole_count = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::command::Seq;
    use crate::session::tests::queue;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Clone, Debug)]
    enum Step {
        Deliver {
            count: u8,
        },
        Settled,
        Take {
            tag: u64,
            is_multiple: bool,
        },
        /// Take, and put back.
        Rollback {
            tag: u64,
        },
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let tag = 0u64..400;
        prop_oneof![
            (1u8..50).prop_map(|count| Step::Deliver { count }),
            Just(Step::Settled),
            (tag.clone(), prop::bool::weighted(0.1))
                .prop_map(|(tag, is_multiple)| Step::Take { tag, is_multiple }),
            tag.prop_map(|tag| Step::Rollback { tag }),
        ]
    }

    fn taken(tags: &mut DeliveryTags, scope: AckScope) -> Result<Vec<Outstanding>, UnknownTag> {
        let mut taken = Vec::new();
        tags.take(scope, |outstanding| taken.push(outstanding))?;
        Ok(taken)
    }

    /// What the reference says (AK-2, AK-3), on a plain set.
    fn expected(model: &mut BTreeSet<u64>, scope: AckScope) -> Result<Vec<u64>, UnknownTag> {
        let known =
            |model: &BTreeSet<u64>, tag| model.contains(&tag).then_some(()).ok_or(UnknownTag(tag));
        let taken: Vec<u64> = match scope {
            AckScope::All => model.iter().copied().collect(),
            AckScope::One(tag) => {
                known(model, tag)?;
                vec![tag]
            }
            AckScope::UpTo(tag) => {
                known(model, tag)?;
                model.range(..=tag).copied().collect()
            }
        };
        model.retain(|tag| !taken.contains(tag));
        Ok(taken)
    }

    proptest! {
        #[test]
        fn tags_behave_like_a_set_and_holes_are_bounded(steps in prop::collection::vec(any_step(), 0..100)) {
            let handle = queue();
            let mut tags = DeliveryTags::default();
            let mut model = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Deliver { count } => for _ in 0..count {
                        let queue = handle.clone();
                        let seq = Seq(tags.last_tag + 1);
                        model.insert(tags.next(Unacked { queue, seq, consumer: None }));
                    },
                    Step::Settled => { tags.next_settled(); }
                    Step::Take { tag, is_multiple } => {
                        let scope = AckScope::new(tag, is_multiple);
                        let actual = taken(&mut tags, scope)
                            .map(|taken| taken.into_iter().map(|(tag, _)| tag).collect::<Vec<_>>());
                        prop_assert_eq!(actual, expected(&mut model, scope));
                    }
                    Step::Rollback { tag } => {
                        if let Ok(taken) = taken(&mut tags, AckScope::One(tag)) {
                            tags.restore(taken);
                        }
                    }
                }
                prop_assert_eq!(tags.len(), model.len());
                prop_assert!(tags.hole_count <= HOLES_MIN.max(tags.len()));
                prop_assert!(tags.entries.front().is_none_or(|(_, entry)| entry.is_some()));
            }
            let seqs: Vec<u64> = tags.take_all().iter().map(|unacked| unacked.seq.0).collect();
            prop_assert_eq!(seqs, model.into_iter().collect::<Vec<_>>());
        }
    }
}
