//! The append side of the log: batches being filled and waiting to be written.
//!
//! ```text
//!   push --> [ open ] --close--> [ closed, closed, .. ] --take--> [ in flight ] --written--> file
//! ```
//! Everything happens under one short mutex and nothing here touches a file.
//!
//! 1. The base of a batch is the end of the one before it, so a record's LSN is final when it is pushed.
//! 2. A batch never spans segments; the first record of a segment is OPEN.
//! 3. The records of an atomic push are in one batch.
//! 4. A record is found in `closed`, `open` or `in_flight` until its batch is in the file: readers look here
//!    for what they cannot find there.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::batch::{BatchBody, EXTERNAL_MAX_COUNT};
use super::format::SEGMENT_END_MAX;
use super::record::Entry;
use super::segment::FIRST_BATCH_OFFSET;
use super::types::{Lsn, Position, Receipt, Request, SegmentId, Urgency};
use crate::cache_line::{TOUCHED_TOGETHER, touch};

/// A buffer that grew beyond this is not kept for the next batch.
const SPARE_MAX_BYTES: usize = 4 << 20;
/// Batches that are kept: one is filled while two or three are written. Making the memory of another is dearer than filling it.
const SPARE_MAX_COUNT: usize = 4;

/// So many times as long as it may grow otherwise, a batch may grow by large parts: they go to the disk several at a time, and
/// share the sync.
const LARGE_MAX_SHARES: u64 = 4;

/// What waits to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pending {
    /// Bytes of batches.
    pub(crate) bytes: u64,
    /// There is something.
    pub(crate) is_any: bool,
    /// Somebody waits for some of it.
    pub(crate) is_waited: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Append {
    epoch: u64,
    segment_limit: u64,
    commit_max_bytes: u64,
    open: BatchBody,
    closed: VecDeque<BatchBody>,
    in_flight: Vec<Arc<BatchBody>>,
    /// Emptied batches whose buffers are used again, the last one first.
    spare: Vec<BatchBody>,
    closed_pending: Pending,
    /// Record bytes pushed since the start, the engine's own included.
    pushed_bytes: u64,
}

impl Append {
    /// An append side whose next batch begins at `base`.
    pub(crate) fn new(
        base: Lsn,
        epoch: u64,
        segment_size_bytes: u64,
        commit_max_bytes: u64,
    ) -> Self {
        Self {
            epoch,
            segment_limit: segment_size_bytes.min(SEGMENT_END_MAX),
            commit_max_bytes,
            open: BatchBody::new(base),
            closed: VecDeque::new(),
            in_flight: Vec::new(),
            spare: Vec::new(),
            closed_pending: Pending::default(),
            pushed_bytes: 0,
        }
    }

    /// Appends `requests`; in one batch when `is_atomic`.
    ///
    /// # Panics
    /// When a record or an atomic group does not fit the largest segment: the group limit keeps them below.
    pub(crate) fn push(
        &mut self,
        requests: &[Request<'_>],
        is_atomic: bool,
        urgency: Urgency,
        positions: &mut Vec<Position>,
    ) -> Receipt {
        if is_atomic {
            let len_bytes = requests
                .iter()
                .map(|request| Entry::Request(request).len_bytes())
                .sum();
            let parts = requests.iter().map(external_count).sum();
            self.make_room(len_bytes, parts);
        }
        for together in requests.chunks(TOUCHED_TOGETHER) {
            touch_payloads(together);
            for request in together {
                let entry = Entry::Request(request);
                let len_bytes = entry.len_bytes();
                if !is_atomic {
                    self.make_room(len_bytes, external_count(request));
                }
                let position = self.push_entry(&entry, len_bytes);
                if matches!(request, Request::Publish { .. }) {
                    positions.push(position);
                }
            }
        }
        self.open.is_waited |= urgency == Urgency::Waited && !self.open.is_empty();
        Receipt { end: self.end() }
    }

    /// Appends a MARK unless something else is about to carry the watermark anyway.
    pub(crate) fn push_mark(&mut self) {
        if !self.pending().is_any {
            let len_bytes = Entry::Mark.len_bytes();
            self.make_room(len_bytes, 0);
            self.push_entry(&Entry::Mark, len_bytes);
        }
    }

    fn push_entry(&mut self, entry: &Entry<'_>, len_bytes: u64) -> Position {
        let position = self.open.push_of_len(entry, len_bytes);
        self.pushed_bytes += u64::from(position.len_bytes);
        position
    }

    /// Makes the open batch one that can take `len_bytes` more of records with `external_count` parts.
    fn make_room(&mut self, len_bytes: u64, external_count: usize) {
        let is_full = self.open.small_bytes() >= self.commit_max_bytes
            || self.open.len_bytes >= self.commit_max_bytes.saturating_mul(LARGE_MAX_SHARES)
            || !self
                .open
                .has_room_for_externals(external_count.min(EXTERNAL_MAX_COUNT));
        if is_full && !self.open.is_empty() {
            self.close_open();
        }
        let end_after =
            |open: &BatchBody| u64::from(open.base.offset()) + open.len_bytes + len_bytes;
        if end_after(&self.open) > self.segment_limit && !self.is_segment_fresh() {
            self.roll();
        }
        // A single group larger than the (small) segment size makes a longer segment rather than none.
        assert!(
            end_after(&self.open) <= SEGMENT_END_MAX,
            "a group fits a segment of 1 GiB"
        );
    }

    /// True when the segment holds nothing but its OPEN record.
    fn is_segment_fresh(&self) -> bool {
        self.open.base.offset() == FIRST_BATCH_OFFSET
            && self.open.record_count <= 1
            && !self.open.has_data
    }

    fn close_open(&mut self) {
        let next = self.new_batch(self.open.end());
        let closed = std::mem::replace(&mut self.open, next);
        self.closed_pending.bytes += closed.len_bytes;
        self.closed_pending.is_any = true;
        self.closed_pending.is_waited |= closed.is_waited;
        self.closed.push_back(closed);
    }

    fn new_batch(&mut self, base: Lsn) -> BatchBody {
        match self.spare.pop() {
            Some(mut spare) => {
                spare.reset(base);
                spare
            }
            None if self.closed.len() < SPARE_MAX_COUNT => BatchBody::new(base),
            // The disk does not keep up: a page may be twice as long as a batch.
            None => BatchBody::of_small_pages(base),
        }
    }

    fn roll(&mut self) {
        if !self.open.is_empty() {
            self.close_open();
        }
        let predecessor_end = self.open.base;
        let segment = SegmentId(predecessor_end.segment().0 + 1);
        self.open.reset(Lsn::new(segment, FIRST_BATCH_OFFSET));
        let open = Entry::Open {
            predecessor_end,
            epoch: self.epoch,
        };
        self.push_entry(&open, open.len_bytes());
    }

    /// What waits to be written.
    pub(crate) fn pending(&self) -> Pending {
        let mut pending = self.closed_pending;
        if !self.open.is_empty() {
            pending.bytes += self.open.len_bytes;
            pending.is_any = true;
            pending.is_waited |= self.open.is_waited;
        }
        pending
    }

    /// Takes batches to write, in order, until they are `max_bytes` long or there is none left.
    pub(crate) fn take(&mut self, max_bytes: u64) -> Vec<Arc<BatchBody>> {
        let mut taken = Vec::new();
        let mut taken_bytes = 0;
        while taken_bytes < max_bytes {
            if self.closed.is_empty() && !self.open.is_empty() {
                self.close_open();
            }
            let Some(batch) = self.closed.pop_front() else {
                break;
            };
            taken_bytes += batch.len_bytes;
            taken.push(Arc::new(batch));
        }
        self.closed_pending = Pending {
            bytes: self.closed.iter().map(|batch| batch.len_bytes).sum(),
            is_any: !self.closed.is_empty(),
            is_waited: self.closed.iter().any(|batch| batch.is_waited),
        };
        self.in_flight.clone_from(&taken);
        taken
    }

    /// The taken batches are in the file now.
    pub(crate) fn set_written(&mut self) {
        self.in_flight.clear();
    }

    /// Takes a written batch back to use its buffers again.
    pub(crate) fn recycle(&mut self, batch: Arc<BatchBody>) {
        if self.spare.len() < SPARE_MAX_COUNT
            && let Some(batch) = Arc::into_inner(batch)
            && batch.capacity() <= SPARE_MAX_BYTES
            && batch.may_take_page()
        {
            self.spare.push(batch);
        }
    }

    /// The log was marked, so nobody has written for a while: gives the memory of batches back.
    pub(crate) fn rest(&mut self) {
        self.spare = Vec::new();
        if self.open.is_empty() {
            self.open = BatchBody::new(self.open.base);
        }
    }

    /// Large pages that batches lie in.
    #[cfg(test)]
    pub(crate) fn page_count(&self) -> usize {
        let batches = self.closed.iter().chain(&self.spare);
        let batches = batches.chain(std::iter::once(&self.open));
        batches.filter(|batch| batch.is_in_page()).count()
    }

    /// Bytes that batches can hold without more memory, those of messages aside.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        let batches = self.closed.iter().chain(&self.spare);
        let batches = batches.chain(std::iter::once(&self.open));
        batches.map(BatchBody::capacity).sum()
    }

    /// Ends the open batch, so that the append position is a place at which replay can begin, and answers it.
    pub(crate) fn cut_batch(&mut self) -> Lsn {
        if !self.open.is_empty() {
            self.close_open();
        }
        self.open.base
    }

    /// The append position: first place behind everything pushed.
    pub(crate) fn end(&self) -> Lsn {
        self.open.end()
    }

    /// Record bytes pushed since the start.
    pub(crate) fn pushed_bytes(&self) -> u64 {
        self.pushed_bytes
    }

    /// Copies a record that is not in the file yet.
    pub(crate) fn copy_out(&self, position: Position) -> Option<Vec<u8>> {
        let len = usize::try_from(position.len_bytes).ok()?;
        let in_flight = self.in_flight.iter().map(Arc::as_ref);
        in_flight
            .chain(&self.closed)
            .chain(std::iter::once(&self.open))
            .find_map(|batch| batch.copy_out(position.lsn, len))
    }
}

/// [`touch`]es what a batch is about to copy.
fn touch_payloads(requests: &[Request<'_>]) {
    let payloads = requests.iter().filter_map(|request| match request {
        Request::Publish { payload, .. } => Some(*payload),
        _ => None,
    });
    let seen = payloads.fold(0, |seen, payload| {
        let parts = payload.parts.iter();
        let copied = parts.filter(|part| !BatchBody::may_be_external(part));
        copied.fold(seen ^ touch(payload.front), |seen, part| seen ^ touch(part))
    });
    std::hint::black_box(seen);
}

/// Parts of a request that its batch may take by reference.
fn external_count(request: &Request<'_>) -> usize {
    match request {
        Request::Publish { payload, .. } => payload
            .parts
            .iter()
            .filter(|part: &&Bytes| BatchBody::may_be_external(part))
            .count(),
        _ => 0,
    }
}
