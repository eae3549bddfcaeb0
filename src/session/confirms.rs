//! The one place that produces a channel's publisher confirms, in publish order.
//!
//! ```text
//!   tag:       5        6        7        8        9
//!   outcome: [Now] [Durable 40] [40] [Durable 90] [Nack]      watermark 50 -> ack 7 multiple
//!             ^next_tag
//! ```
//! 1. Tags are given in the order in which the publishes came; the first one is 1.
//! 2. Only the settled prefix is confirmed, so a multiple confirm never covers an unfinished message.
//! 3. A run of equal answers is one frame.

use std::collections::VecDeque;

use crate::broker::command::{ConfirmAt, Lsn};

/// One frame to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Confirm {
    /// Tag of the last message it covers.
    pub(super) tag: u64,
    /// It covers all unconfirmed messages up to `tag`.
    pub(super) is_multiple: bool,
    /// `basic.ack`, else `basic.nack`.
    pub(super) is_ack: bool,
}

/// Outcomes in publish order, from the oldest unconfirmed message on.
#[derive(Debug, Default)]
pub(super) struct Confirms {
    /// Tag of the last message that was confirmed.
    confirmed_tag: u64,
    /// Runs of equal outcomes, with their lengths.
    runs: VecDeque<(ConfirmAt, u64)>,
    /// Outcomes to come of publishes from before `confirm.select`, which are not confirmed.
    unasked_count: u64,
}

impl Confirms {
    /// Confirms all publishes but the `unasked_count` ones whose outcomes come first.
    pub(super) fn after(unasked_count: u64) -> Self {
        Self {
            unasked_count,
            ..Self::default()
        }
    }

    /// Appends the outcome of the next `count` publishes.
    pub(super) fn push(&mut self, outcome: ConfirmAt, count: u64) {
        let unasked_count = self.unasked_count.min(count);
        self.unasked_count -= unasked_count;
        let count = count - unasked_count;
        match self.runs.back_mut() {
            _ if count == 0 => {}
            Some((last, run_len)) if *last == outcome => *run_len += count,
            _ => self.runs.push_back((outcome, count)),
        }
    }

    /// Hands over the next confirm that may be sent when everything below `durable` is durable.
    pub(super) fn take(&mut self, durable: Lsn) -> Option<Confirm> {
        let is_ack = answer(self.runs.front()?.0, durable)?;
        let mut count = 0;
        while let Some((outcome, run)) = self.runs.front()
            && answer(*outcome, durable) == Some(is_ack)
        {
            count += run;
            self.runs.pop_front();
        }
        self.confirmed_tag += count;
        Some(Confirm {
            tag: self.confirmed_tag,
            is_multiple: count > 1,
            is_ack,
        })
    }

    /// True when every publish is confirmed.
    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// What the oldest unconfirmed message waits for.
    pub(super) fn first_pending_lsn(&self) -> Option<Lsn> {
        match self.runs.front()?.0 {
            ConfirmAt::Durable(lsn) => Some(lsn),
            ConfirmAt::Now | ConfirmAt::Nack => None,
        }
    }
}

/// Ack (true), nack (false) or not yet.
fn answer(outcome: ConfirmAt, durable: Lsn) -> Option<bool> {
    match outcome {
        ConfirmAt::Now => Some(true),
        ConfirmAt::Durable(lsn) => (lsn <= durable).then_some(true),
        ConfirmAt::Nack => Some(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ConfirmAt::{Durable, Nack, Now};
    use proptest::prelude::*;

    #[track_caller]
    fn check(outcomes: &[ConfirmAt], durable: u64, expected: &[(u64, bool, bool)]) {
        let mut confirms = Confirms::default();
        outcomes
            .iter()
            .for_each(|outcome| confirms.push(*outcome, 1));
        let sent: Vec<_> = std::iter::from_fn(|| confirms.take(Lsn(durable)))
            .map(|confirm| (confirm.tag, confirm.is_multiple, confirm.is_ack))
            .collect();
        assert_eq!(sent, expected);
    }

    #[test]
    fn the_settled_prefix_is_confirmed_in_as_few_frames_as_possible() {
        check(&[], 0, &[]);
        check(&[Now], 0, &[(1, false, true)]);
        check(&[Now, Now, Now], 0, &[(3, true, true)]);
        check(&[Durable(Lsn(5))], 4, &[]);
        check(&[Durable(Lsn(5))], 5, &[(1, false, true)]);
        check(&[Durable(Lsn(5)), Now], 4, &[]);
        check(
            &[Now, Durable(Lsn(5)), Durable(Lsn(9))],
            5,
            &[(2, true, true)],
        );
        check(
            &[Now, Nack, Now],
            0,
            &[(1, false, true), (2, false, false), (3, false, true)],
        );
        check(
            &[Nack, Nack, Durable(Lsn(1))],
            1,
            &[(2, true, false), (3, false, true)],
        );
    }

    proptest! {
        #[test]
        fn every_publish_is_confirmed_once_in_order_and_never_too_early(
            steps in prop::collection::vec((0u8..4, 1u64..100, 1usize..4), 0..200),
            unasked_count in 0u64..6,
        ) {
            let mut confirms = Confirms::after(unasked_count);
            let mut unasked_left = usize::try_from(unasked_count).expect("few");
            let mut outcomes = Vec::new();
            let (mut next_lsn, mut durable, mut confirmed) = (1, 0, 0usize);
            for (kind, amount, count) in steps {
                let outcome = match kind {
                    0 => Some(Now),
                    1 => { next_lsn += amount; Some(Durable(Lsn(next_lsn))) }
                    2 => Some(Nack),
                    _ => { durable = (durable + amount).min(next_lsn); None }
                };
                if let Some(outcome) = outcome {
                    confirms.push(outcome, count as u64);
                    let asked_count = count.saturating_sub(unasked_left);
                    unasked_left -= count - asked_count;
                    outcomes.extend(std::iter::repeat_n(outcome, asked_count));
                }
                while let Some(confirm) = confirms.take(Lsn(durable)) {
                    let upto = usize::try_from(confirm.tag).expect("small");
                    prop_assert!(upto > confirmed && upto <= outcomes.len());
                    prop_assert!(confirm.is_multiple || upto == confirmed + 1);
                    for outcome in &outcomes[confirmed..upto] {
                        prop_assert_eq!(answer(*outcome, Lsn(durable)), Some(confirm.is_ack));
                    }
                    confirmed = upto;
                }
                let waits = outcomes.get(confirmed).is_some_and(|o| answer(*o, Lsn(durable)).is_none());
                prop_assert_eq!(confirmed == outcomes.len(), !waits);
                prop_assert_eq!(confirms.first_pending_lsn().is_some(), waits);
            }
        }
    }
}
