//! Which part of the log is shown.

use stratamq::storage::types::{Lsn, SegmentId};

use crate::args::LogRange;

impl LogRange {
    /// True when a segment may hold something of the range.
    pub(crate) fn has_segment(&self, segment: SegmentId) -> bool {
        self.segment.is_none_or(|only| only == segment)
            && self.from.is_none_or(|from| from.segment() <= segment)
            && self.to.is_none_or(|to| segment <= to.segment())
    }

    /// True when what starts at `lsn` is in the range.
    pub(crate) fn has(&self, lsn: Lsn) -> bool {
        self.has_segment(lsn.segment())
            && self.from.is_none_or(|from| from <= lsn)
            && self.to.is_none_or(|to| lsn < to)
    }
}
