//! How much of each segment is alive, every record counted once.
//!
//! ```text
//!   segment 7:  [a....b....]     a lies in queues 1 2 3, b in queue 3
//!   by refs     a + a + a + b    counted with every checkpoint
//!   fullest     a + b            most that one queue has there: queue 3
//!   counted     a + b            exact: all refs looked up, each place marked once
//! ```
//! Compaction must know what a segment costs, and that is bytes, not refs: with a message in twenty queues a segment
//! looks twenty times as full as it is, and would stay although nearly all of it is dead. The exact number takes
//! looking at every ref, so it is asked for only where the bounds, which cost nothing, leave a doubt:
//!
//! 1. `by_refs` is an upper bound. So is an older count, because nothing is added to a closed segment.
//! 2. `fullest` is a lower bound: a queue has a record once. So is an older count less what refs have lost since then.

use std::collections::BTreeMap;

use super::checkpoint::SegmentTable;
use super::format::{narrow_ref, record_header};
use super::types::{Position, SegmentId};

/// No two PUBLISH records begin in the same this many bytes: the grid on which places are marked.
const PLACE_BYTES: u32 = 32;
const _: () = assert!(record_header::SIZE + narrow_ref::SIZE >= PLACE_BYTES as usize);

/// Live bytes of a segment lie between these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) least_bytes: u64,
    pub(crate) most_bytes: u64,
}

/// Largest part that one queue has in each segment.
pub(crate) type Fullest = BTreeMap<SegmentId, u64>;

/// Notes what one queue has.
pub(crate) fn note_fullest(fullest: &mut Fullest, own: &SegmentTable) {
    for (segment, used) in own {
        let most = fullest.entry(*segment).or_default();
        *most = used.live_bytes.max(*most);
    }
}

/// What was found by looking.
#[derive(Clone, Copy, Debug)]
struct Counted {
    unique_bytes: u64,
    /// What refs summed up to in the checkpoint before.
    by_refs_bytes: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Occupancy {
    /// Of the newest checkpoint.
    by_refs: SegmentTable,
    /// Of the same.
    fullest: Fullest,
    counted: BTreeMap<SegmentId, Counted>,
}

impl Occupancy {
    /// A checkpoint is durable.
    pub(crate) fn checkpointed(&mut self, by_refs: &SegmentTable, fullest: &Fullest) {
        self.by_refs.clone_from(by_refs);
        self.fullest.clone_from(fullest);
        self.counted
            .retain(|segment, _| by_refs.contains_key(segment));
    }

    /// What is known of a segment; `None` when nothing in it was alive.
    pub(crate) fn bounds(&self, segment: SegmentId) -> Option<Bounds> {
        let by_refs_bytes = self.by_refs.get(&segment)?.live_bytes;
        let fullest_bytes = self.fullest.get(&segment).copied().unwrap_or_default();
        let Some(counted) = self.counted.get(&segment) else {
            return Some(Bounds {
                least_bytes: fullest_bytes,
                most_bytes: by_refs_bytes,
            });
        };
        let lost_bytes = counted.by_refs_bytes.saturating_sub(by_refs_bytes);
        let left_bytes = counted.unique_bytes.saturating_sub(lost_bytes);
        Some(Bounds {
            least_bytes: fullest_bytes.max(left_bytes),
            most_bytes: by_refs_bytes.min(counted.unique_bytes),
        })
    }

    /// All refs into a closed segment were looked up.
    pub(crate) fn note_counted(&mut self, segment: SegmentId, unique_bytes: u64) {
        if let Some(used) = self.by_refs.get(&segment) {
            let counted = Counted {
                unique_bytes,
                by_refs_bytes: used.live_bytes,
            };
            self.counted.insert(segment, counted);
        }
    }

    /// Bytes of live records, as far as they are known: a segment that never was in doubt counts by refs.
    pub(crate) fn live_bytes(&self) -> u64 {
        let bounds = self
            .by_refs
            .keys()
            .filter_map(|segment| self.bounds(*segment));
        bounds.map(|bounds| bounds.most_bytes).sum()
    }
}

/// Places in one segment, each counted once. Memory: a bit for each [`PLACE_BYTES`] of the segment.
#[derive(Default)]
pub(crate) struct Places {
    marks: Vec<u64>,
    bytes: u64,
}

impl Places {
    /// Counts a record, unless it was.
    pub(crate) fn note(&mut self, position: Position) {
        let place = position.lsn.offset() / PLACE_BYTES;
        let (word, bit) = ((place / u64::BITS) as usize, place % u64::BITS);
        if word >= self.marks.len() {
            self.marks.resize(word + 1, 0);
        }
        if let Some(marks) = self.marks.get_mut(word)
            && *marks & (1 << bit) == 0
        {
            *marks |= 1 << bit;
            self.bytes += u64::from(position.len_bytes);
        }
    }

    /// Bytes of all records noted.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::checkpoint::SegmentUse;
    use crate::storage::types::Lsn;

    const SEGMENT: SegmentId = SegmentId(7);

    fn table(live_bytes: u64) -> SegmentTable {
        let used = SegmentUse {
            live_refs: 1,
            live_bytes,
        };
        BTreeMap::from([(SEGMENT, used)])
    }

    #[track_caller]
    fn check(occupancy: &Occupancy, least_bytes: u64, most_bytes: u64) {
        let expected = Bounds {
            least_bytes,
            most_bytes,
        };
        assert_eq!(occupancy.bounds(SEGMENT), Some(expected));
        assert_eq!(occupancy.live_bytes(), most_bytes);
    }

    #[test]
    fn bounds_close_in_on_what_was_counted_and_open_as_refs_go() {
        let mut occupancy = Occupancy::default();
        assert_eq!(occupancy.bounds(SEGMENT), None);
        let mut fullest = Fullest::default();
        for own in [100, 300, 200] {
            note_fullest(&mut fullest, &table(own));
        }
        occupancy.checkpointed(&table(600), &fullest);
        check(&occupancy, 300, 600);
        occupancy.note_counted(SEGMENT, 400);
        check(&occupancy, 400, 400);
        let fullest = BTreeMap::from([(SEGMENT, 280)]);
        occupancy.checkpointed(&table(550), &fullest);
        check(&occupancy, 350, 400);
        occupancy.checkpointed(&table(380), &fullest);
        check(&occupancy, 280, 380);
        occupancy.checkpointed(&SegmentTable::new(), &Fullest::default());
        assert_eq!(occupancy.bounds(SEGMENT), None);
        // Not even a number that comes again would inherit anything.
        occupancy.checkpointed(&table(900), &fullest);
        check(&occupancy, 280, 900);
    }

    #[test]
    fn a_place_counts_once() {
        let mut places = Places::default();
        // The smallest records there are, side by side.
        for round in 0..3 {
            for number in 0..1_000_u32 {
                places.note(Position {
                    lsn: Lsn::new(SEGMENT, 4_096 + number * 48),
                    len_bytes: 48,
                });
            }
            assert_eq!(places.bytes(), 48_000, "round {round}");
        }
    }
}
