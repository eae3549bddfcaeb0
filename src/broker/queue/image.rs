//! From a live queue to its image and back.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::state::{Locked, QueueState};
use super::{Queue, QueueHandle, QueueSpec, Turn};
use crate::broker::arguments::QueueArguments;
use crate::storage::image::QueueImage;
use crate::storage::run::FiledRun;
use crate::storage::types::{ImageEntry, Move, SegmentId, Seq};
use crate::sync::lock;

/// What an image says about deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageKind {
    /// The queue goes on: the reservation as the log knows it.
    Running,
    /// Nothing is delivered any more: exactly what was delivered, so that after a clean stop only those
    /// messages are redelivered (AK-12).
    Stopped,
}

impl Queue {
    /// The queue's unsettled, logged messages; `None` for a queue that is not in the log or is deleted.
    #[must_use]
    pub fn image(&self, kind: ImageKind) -> Option<QueueImage> {
        if !self.spec.is_durable {
            return None;
        }
        let state = lock(&self.state);
        if state.is_deleted {
            return None;
        }
        let reserved_upto = match kind {
            ImageKind::Running => state.reservation.pushed_upto(),
            // Lower levels have messages that were not delivered: those that were are marked one by one.
            ImageKind::Stopped if state.slots.has_ranks() => state.slots.redelivered_below(),
            ImageKind::Stopped => Seq(state.delivered_upto),
        };
        let mut image = QueueImage::new(self.spec.id, state.last_lsn);
        image.next_seq = state.slots.next_seq();
        image.reserved_upto = reserved_upto;
        let picture = state.slots.picture(kind == ImageKind::Stopped);
        image.entries = picture.entries;
        image.runs = picture.runs;
        Some(image)
    }

    /// The messages that lie in these segments; see [`CheckpointSource::refs_in`].
    ///
    /// [`CheckpointSource::refs_in`]: crate::storage::CheckpointSource::refs_in
    #[must_use]
    pub fn refs_in(&self, segments: &BTreeSet<SegmentId>) -> (Vec<ImageEntry>, Vec<FiledRun>) {
        let state = lock(&self.state);
        if state.is_deleted {
            return Default::default();
        }
        state.slots.refs_in(segments)
    }

    /// Messages lie elsewhere now. A read that is on its way to the old place finds the message there, or fails once
    /// and is repeated at the new one.
    pub fn relocate(&self, moves: &[Move]) {
        lock(&self.state).slots.relocate(moves);
    }

    /// Messages of a run in the index file lie elsewhere now.
    pub fn refile(&self, old: &FiledRun, new: FiledRun) {
        lock(&self.state).slots.refile(old, new);
    }

    /// True when there is more in the queue than its limits allow, and its head is to be dropped: only until the runs
    /// that it asked for are there.
    #[must_use]
    pub fn is_too_long(&self) -> bool {
        let state = lock(&self.state);
        state.rules.drops_head() && state.is_too_long()
    }

    /// Compares the counters with the entries.
    #[cfg(test)]
    pub(super) fn check_sums(&self) {
        lock(&self.state).slots.check();
    }

    /// The queue that `image` shows. Limits and expiry apply, but nothing is routed yet: once the whole
    /// topology stands, [`Queue::renew_lease`] starts timers and dead letters.
    #[must_use]
    pub fn restore(
        spec: QueueSpec,
        settings: Arc<QueueArguments>,
        image: QueueImage,
        turn: &mut Turn<'_>,
    ) -> QueueHandle {
        let mut state = QueueState::new(
            settings,
            image.next_seq,
            image.reserved_upto,
            image.last_lsn,
            turn.now_ms,
        );
        state.delivered_upto = image.reserved_upto.0;
        state
            .slots
            .restore(image.entries, image.runs, image.reserved_upto);
        let queue = Arc::new(Self::with_state(spec, state));
        let mut locked = Locked::one(&queue);
        let mut batch = super::batch::Batch::default();
        let (_, state) = locked.first();
        if queue.traits.is_delay {
            state.restore_due();
        }
        state.expire_heads(&queue, turn.now_ms, &mut batch);
        state.enforce_limits(&queue, &mut batch);
        locked.conclude(turn, batch);
        queue
    }
}
