//! Pages that were read for the last time, and leave the cache of the system.
//!
//! Whoever drains a backlog reads each page once. Left alone, those pages push out what others use, and each new page
//! lies in memory that the processor has not touched for long: copying out of it costs several times as much as out of
//! the few that are used again and again when the read ones are given back.
//!
//! ```text
//!   file     ... dropped ...[ read, kept ][ read ]        [ read ]  ... read ahead ...
//!                            '- range ------------'        '- range, until the gap between them was read
//! ```
//! 1. Only what was read is dropped: threads that read neighbouring parts take nothing away from each other.
//! 2. The system caches in pieces of up to [`PIECE_BYTES`] and drops whole ones: so the end of a range is kept, and
//!    dropped together with what follows.

use std::ops::Range;

/// What the system caches in one piece at most.
const PIECE_BYTES: u32 = 2 << 20;
/// Bytes that one call drops, with the piece that was kept before.
const DROPPED_BYTES: u32 = 2 * PIECE_BYTES;
/// Bytes between two ranges that belong to neither, and are not worth keeping: batch headers, other records.
const GAP_MAX_BYTES: u32 = 16 * 1024;
/// Ranges that are remembered of one file.
const RANGES_MAX: usize = 64;

/// What was read of one file and is still in the cache.
#[derive(Debug, Default)]
pub(super) struct ReadBehind {
    /// Ascending, with gaps between them.
    ranges: Vec<Range<u32>>,
}

impl ReadBehind {
    /// Adds what was read now; what to drop, if it is enough to be worth a call.
    pub(super) fn add(&mut self, read: Range<u32>) -> Option<Range<u32>> {
        let from = self
            .ranges
            .partition_point(|range| range.end.saturating_add(GAP_MAX_BYTES) < read.start);
        let near = self
            .ranges
            .iter()
            .skip(from)
            .take_while(|range| range.start <= read.end.saturating_add(GAP_MAX_BYTES))
            .count();
        let mut whole = read;
        for range in self.ranges.drain(from..from + near) {
            whole = whole.start.min(range.start)..whole.end.max(range.end);
        }
        let dropped = (whole.end - whole.start >= DROPPED_BYTES).then(|| whole.clone());
        if dropped.is_some() {
            whole.start = whole.end - PIECE_BYTES;
        }
        self.ranges.insert(from, whole);
        if self.ranges.len() > RANGES_MAX {
            self.ranges.remove(0);
        }
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u32 = 1 << 20;

    /// Adds pieces of a file, given in MiB; what was dropped, from and to, likewise.
    fn dropped(pieces: &[Range<u32>]) -> Vec<(u32, u32)> {
        let mut behind = ReadBehind::default();
        let added = pieces.iter().filter_map(|piece| {
            let dropped = behind.add(piece.start * MIB..piece.end * MIB);
            assert!(behind.ranges.len() <= RANGES_MAX);
            assert!(behind.ranges.is_sorted_by(|a, b| a.end < b.start));
            dropped
        });
        added
            .map(|range| (range.start / MIB, range.end / MIB))
            .collect()
    }

    #[test]
    fn what_was_read_in_order_is_dropped_with_the_piece_that_was_kept() {
        let pieces: Vec<_> = (0..9).map(|at| at..at + 1).collect();
        assert_eq!(dropped(&pieces), [(0, 4), (2, 6), (4, 8)]);
    }

    #[test]
    fn what_was_not_read_yet_is_never_dropped() {
        // Two threads; the one that reads the second piece is late.
        assert_eq!(dropped(&[0..1, 2..3, 3..4, 4..5, 1..2]), [(0, 5)]);
        assert!(dropped(&[0..1, 2..3, 4..5, 6..7, 8..9]).is_empty());
        assert_eq!(dropped(&[8..12, 0..4, 4..8]), [(8, 12), (0, 4), (2, 8)]);
    }

    #[test]
    fn small_gaps_are_no_gaps() {
        let mut behind = ReadBehind::default();
        assert_eq!(behind.add(0..2 * MIB), None);
        let start = 2 * MIB + GAP_MAX_BYTES;
        assert_eq!(behind.add(start + 1..4 * MIB), None, "one byte too far");
        assert_eq!(behind.add(start..start + 1), Some(0..4 * MIB));
    }

    #[test]
    fn ranges_far_apart_are_forgotten_when_they_are_many() {
        let pieces: Vec<_> = (0..1000).map(|at| 2 * at..2 * at + 1).collect();
        assert!(dropped(&pieces).is_empty());
    }
}
