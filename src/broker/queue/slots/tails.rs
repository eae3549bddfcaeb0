//! Where entries arrive: the seq that the next one gets, in each rank.
//!
//! ```text
//!   no priorities   rank 0 counts up
//!   levels 0 to n   rank 1 (level n) .. rank n + 1 (level 0), each counts for itself: its runs are dense
//! ```
//! Checkpoints and reservations know one bound for all ranks. After a restart each rank goes on there.

use crate::storage::run::{FiledRun, RUN_SEQS};
use crate::storage::types::Seq;

#[derive(Debug)]
pub(super) struct Tails {
    /// The next seq of rank 0; with ranks, above every count of any of them.
    bound: u64,
    ranks: Option<Box<Ranks>>,
}

/// One more place in memory, so that queues without priorities have a pointer and no length.
#[derive(Debug)]
struct Ranks {
    /// Next counts from rank 1 on.
    next: Box<[u64]>,
}

impl Tails {
    /// All ranks go on at `bound`. `rank_count` is 0 for a queue without priorities.
    pub(super) fn new(bound: Seq, rank_count: u16) -> Self {
        let ranks = (rank_count > 0).then(|| {
            let next = vec![bound.0; usize::from(rank_count)].into();
            Box::new(Ranks { next })
        });
        Self {
            bound: bound.0,
            ranks,
        }
    }

    /// The same, empty.
    pub(super) fn anew(&self) -> Self {
        let rank_count = self.ranks.as_ref().map_or(0, |ranks| ranks.next.len());
        Self::new(
            self.bound(),
            u16::try_from(rank_count).expect("made of that many"),
        )
    }

    /// Above the count of every entry.
    pub(super) fn bound(&self) -> Seq {
        Seq(self.bound)
    }

    pub(super) fn has_ranks(&self) -> bool {
        self.ranks.is_some()
    }

    fn rank(&self, rank: u16) -> Option<&u64> {
        let ranks = self.ranks.as_ref()?;
        ranks.next.get(usize::from(rank).checked_sub(1)?)
    }

    /// The seq that the next entry of `rank` gets. Nothing arrives in a rank that the queue does not have: one that
    /// came from a damaged disk is complete.
    pub(super) fn next(&self, rank: u16) -> Seq {
        match (rank, self.rank(rank)) {
            (_, Some(count)) => Seq::new(rank, *count),
            (0, None) => Seq(self.bound),
            (_, None) => Seq(u64::MAX),
        }
    }

    /// The run that the next entry belongs to, in the rank of run `number`.
    pub(super) fn run_beside(&self, number: u64) -> u64 {
        FiledRun::number_of(self.next(FiledRun::rank_of(number)))
    }

    /// Gives the next seq of `rank` away.
    pub(super) fn take(&mut self, rank: u16) -> Seq {
        let seq = self.next(rank);
        self.raise(rank, seq.count() + 1);
        seq
    }

    /// The run `number` gets no more entries.
    pub(super) fn close(&mut self, number: u64) {
        let rank = FiledRun::rank_of(number);
        let last = Seq(number * RUN_SEQS + (RUN_SEQS - 1));
        self.raise(rank, last.count() + 1);
    }

    fn raise(&mut self, rank: u16, count: u64) {
        self.bound = self.bound.max(count);
        if let Some(ranks) = &mut self.ranks
            && let Some(at) = usize::from(rank).checked_sub(1)
            && let Some(next) = ranks.next.get_mut(at)
        {
            *next = (*next).max(count);
        }
    }
}
