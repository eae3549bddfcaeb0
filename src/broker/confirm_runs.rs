//! When publishes may be confirmed, in their order: equal outcomes that follow each other are one entry.
//!
//! Hundreds of messages of one push share its receipt, so a list of them is usually one entry long.

use super::command::ConfirmAt;
use crate::storage::types::{Lsn, Receipt};

/// Stands in the outcomes of a push until it is made.
const NOT_PUSHED: Receipt = Receipt { end: Lsn(0) };

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct ConfirmRuns {
    runs: Vec<(ConfirmAt, usize)>,
    /// The first of `runs` that may wait for a receipt.
    unpushed_from: usize,
    len: usize,
}

impl ConfirmRuns {
    /// Publishes that have their outcome here.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// None has.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds the outcome of the next publish.
    #[inline]
    pub fn push(&mut self, confirm: ConfirmAt) {
        self.len += 1;
        match self.runs.last_mut() {
            Some((last, run_len)) if *last == confirm => *run_len += 1,
            _ => self.runs.push((confirm, 1)),
        }
    }

    /// Adds the outcome of the next publish of a push that is yet to be made: what is in the log waits for its
    /// [`receipt`](Self::set_receipt).
    #[inline]
    pub(super) fn push_unpushed(&mut self, is_refused: bool, is_logged: bool) {
        self.push(ConfirmAt::of(is_refused, is_logged, NOT_PUSHED));
    }

    /// The push was made: what has waited for it waits for its commit now.
    pub(super) fn set_receipt(&mut self, receipt: Receipt) {
        for (confirm, _) in self.runs.iter_mut().skip(self.unpushed_from) {
            if *confirm == ConfirmAt::Durable(NOT_PUSHED.end) {
                *confirm = ConfirmAt::Durable(receipt.end);
            }
        }
        self.unpushed_from = self.runs.len();
    }

    /// The outcomes with their lengths.
    pub(super) fn runs(&self) -> impl Iterator<Item = (ConfirmAt, usize)> {
        self.runs.iter().copied()
    }

    /// The outcome of each.
    #[cfg(test)]
    pub(super) fn each(&self) -> Vec<ConfirmAt> {
        let runs = self.runs();
        runs.flat_map(|(confirm, count)| std::iter::repeat_n(confirm, count))
            .collect()
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.runs.clear();
        self.unpushed_from = 0;
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_outcomes_are_one_run_and_only_those_of_the_push_get_its_receipt() {
        let mut confirms = ConfirmRuns::default();
        let before = ConfirmAt::Durable(Lsn(7));
        confirms.push(before);
        for (is_refused, is_logged) in [(false, true), (false, true), (true, true), (false, false)]
        {
            confirms.push_unpushed(is_refused, is_logged);
        }
        confirms.push_unpushed(false, true);
        confirms.set_receipt(Receipt { end: Lsn(9) });
        confirms.push_unpushed(false, true);
        confirms.set_receipt(Receipt { end: Lsn(11) });
        let [pushed, later] = [9, 11].map(|end| ConfirmAt::Durable(Lsn(end)));
        let (nack, now) = (ConfirmAt::Nack, ConfirmAt::Now);
        let expected = [before, pushed, pushed, nack, now, pushed, later];
        assert_eq!(confirms.each(), expected);
        assert_eq!((confirms.len(), confirms.runs().count()), (7, 6));
        confirms.clear();
        assert!(confirms.is_empty() && confirms.each().is_empty());
    }
}
