//! Which messages arrived: a bit for each sequence number of each publisher.
//!
//! Every consumer keeps one for itself; they are merged at the end, when a bit that is set in two of them is a duplicate as well.

use crate::message::Stamp;

/// No sequence number is as large: a ledger of one publisher takes at most 256 MiB, whatever a body says.
const SEQ_MAX: u64 = 1 << 31;
/// No run has as many publishers.
const PUBLISHERS_MAX: u32 = 1 << 16;

/// What one or all consumers have received.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Whose messages are counted; the first message's, if nobody has said so.
    run: Option<u32>,
    /// Per publisher: bits of the sequence numbers that arrived.
    arrived: Vec<Vec<u64>>,
    /// Every message counts as a new one.
    takes_any: bool,
    /// Different messages.
    pub(crate) unique_count: u64,
    /// Messages that arrived again.
    pub(crate) duplicate_count: u64,
    /// Messages of other runs, or of others altogether.
    pub(crate) foreign_count: u64,
}

impl Ledger {
    pub(crate) fn new(run: Option<u32>) -> Self {
        Self {
            run,
            ..Self::default()
        }
    }

    /// A ledger for deliveries that are all alike: it counts them.
    pub(crate) fn of_any() -> Self {
        Self {
            takes_any: true,
            ..Self::default()
        }
    }

    /// Enters a delivery; true when it is one of this run and new.
    pub(crate) fn enter(&mut self, stamp: Option<Stamp>) -> bool {
        if self.takes_any {
            self.unique_count += 1;
            return false;
        }
        let Some(stamp) = stamp.filter(|stamp| {
            let run = *self.run.get_or_insert(stamp.run);
            stamp.run == run && stamp.seq < SEQ_MAX && stamp.publisher < PUBLISHERS_MAX
        }) else {
            self.foreign_count += 1;
            return false;
        };
        let publisher = usize::try_from(stamp.publisher).unwrap_or(usize::MAX);
        if self.arrived.len() <= publisher {
            self.arrived.resize(publisher + 1, Vec::new());
        }
        let bits = &mut self.arrived[publisher];
        let word = usize::try_from(stamp.seq / 64).unwrap_or(usize::MAX);
        if bits.len() <= word {
            bits.resize(word + 1, 0);
        }
        let mask = 1 << (stamp.seq % 64);
        let is_new = bits[word] & mask == 0;
        bits[word] |= mask;
        if is_new {
            self.unique_count += 1;
        } else {
            self.duplicate_count += 1;
        }
        is_new
    }

    /// Adds what another consumer has received.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.foreign_count += other.foreign_count;
        self.duplicate_count += other.duplicate_count;
        self.unique_count += other.unique_count;
        if self.arrived.len() < other.arrived.len() {
            self.arrived.resize(other.arrived.len(), Vec::new());
        }
        for (mine, theirs) in self.arrived.iter_mut().zip(&other.arrived) {
            if mine.len() < theirs.len() {
                mine.resize(theirs.len(), 0);
            }
            for (mine, theirs) in mine.iter_mut().zip(theirs) {
                let both = u64::from((*mine & *theirs).count_ones());
                self.unique_count -= both;
                self.duplicate_count += both;
                *mine |= theirs;
            }
        }
    }

    /// Whether a message has arrived.
    pub(crate) fn has(&self, publisher: u32, seq: u64) -> bool {
        let bits = usize::try_from(publisher)
            .ok()
            .and_then(|index| self.arrived.get(index));
        let word = usize::try_from(seq / 64).ok();
        let word = bits.zip(word).and_then(|(bits, index)| bits.get(index));
        word.is_some_and(|word| word & (1 << (seq % 64)) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(publisher: u32, seq: u64) -> Option<Stamp> {
        Some(Stamp {
            run: 7,
            publisher,
            seq,
            sent_ns: 0,
        })
    }

    #[track_caller]
    fn check(first: &[(u32, u64)], second: &[(u32, u64)], expected: (u64, u64, u64)) {
        let mut all = Ledger::new(Some(7));
        let mut other = Ledger::new(Some(7));
        for (publisher, seq) in first {
            all.enter(stamp(*publisher, *seq));
        }
        for (publisher, seq) in second {
            other.enter(stamp(*publisher, *seq));
        }
        all.merge(&other);
        let counts = (all.unique_count, all.duplicate_count, all.foreign_count);
        assert_eq!(counts, expected);
        assert!(first.iter().chain(second).all(|(publisher, seq)| {
            all.has(*publisher, *seq) == (*seq < SEQ_MAX && *publisher < PUBLISHERS_MAX)
        }));
        assert!(!all.has(9, 9));
    }

    #[test]
    fn each_message_counts_once_and_its_repetitions_are_seen() {
        check(&[], &[], (0, 0, 0));
        check(&[(0, 0), (0, 63), (0, 64), (1, 0)], &[], (4, 0, 0));
        check(&[(0, 5), (0, 5)], &[], (1, 1, 0));
        check(&[(0, 5)], &[(0, 5), (2, 100)], (2, 1, 0));
        check(&[(0, SEQ_MAX)], &[(PUBLISHERS_MAX, 1)], (0, 0, 2));
    }

    #[test]
    fn messages_that_are_all_alike_are_counted() {
        let mut all = Ledger::default();
        for _ in 0..2 {
            let mut ledger = Ledger::of_any();
            assert!(!ledger.enter(stamp(0, 0)) && !ledger.enter(None));
            all.merge(&ledger);
        }
        assert_eq!((all.unique_count, all.duplicate_count), (4, 0));
    }

    #[test]
    fn messages_of_another_run_are_foreign() {
        let mut ledger = Ledger::new(Some(8));
        assert!(!ledger.enter(stamp(0, 0)));
        assert!(!ledger.enter(None));
        assert_eq!((ledger.unique_count, ledger.foreign_count), (0, 2));
        let mut adopting = Ledger::new(None);
        assert!(adopting.enter(stamp(0, 0)));
        assert_eq!(adopting.unique_count, 1);
    }
}
