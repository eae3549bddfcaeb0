//! Which logged messages may be delivered (invariant 4).
//!
//! After a crash a message below the reservation counts as possibly delivered. So a reservation is durable
//! before a message below it leaves, or stands in the log before the message's own PUBLISH: then a log
//! that has the message has the reservation too.
//!
//! ```text
//!   seq   ....|======== delivered ========|-- durable, may go --|-- pushed, in commit --|   not yet reserved
//!                                                           durable_upto             pushed_upto
//! ```
//!
//! A step that is too small makes a draining backlog wait for commits; one that is too large flags too many
//! messages in vain after a crash. So steps double while a backlog drains, and start small again once the
//! queue has been empty. The next one is asked for when half of the last is delivered; in haste when the backlog goes on
//! beyond it, since lazy traffic reaches the disk later than such a backlog the end of a step.
//!
//! A reservation is a bound of counts, which holds for all levels of a queue with priorities.

use std::num::NonZeroU64;

use crate::storage::types::{Lsn, Seq};

/// First step: messages flagged in vain, at most, by a crash of a queue that keeps up.
const STEP_MIN: u32 = 128;
/// Largest step.
const STEP_MAX: u32 = 16 * 1024;

#[derive(Debug)]
pub(super) struct Reservation {
    durable_upto: u64,
    pushed_upto: u64,
    /// End of the newest record in the log and what it reserves, while it is not known to be durable. In the
    /// middle of a critical section `pushed_upto` may be above it: then the record is yet to be pushed.
    pending: Option<Pending>,
    step: u32,
    /// Somebody waits for the newest one and the log knows it.
    is_hurried: bool,
}

/// A record that is in the log: where it ends, behind the segment's header at least, and what it reserves.
#[derive(Clone, Copy, Debug)]
struct Pending {
    end: NonZeroU64,
    upto: u64,
}

/// A reservation to push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) upto: Seq,
    /// Somebody waits for it.
    pub(super) is_waited: bool,
    /// Somebody will, soon.
    pub(super) is_urgent: bool,
}

impl Reservation {
    pub(super) fn new(upto: Seq) -> Self {
        Self {
            durable_upto: upto.0,
            pushed_upto: upto.0,
            pending: None,
            is_hurried: false,
            step: STEP_MIN,
        }
    }

    /// What the log has been told.
    pub(super) fn pushed_upto(&self) -> Seq {
        Seq(self.pushed_upto)
    }

    /// A PUBLISH of `seq` pushed from here on comes after a reservation above it.
    pub(super) fn precedes(&self, seq: Seq) -> bool {
        seq.count() < self.pushed_upto
    }

    /// A reservation above `seq` is durable.
    pub(super) fn allows(&mut self, seq: Seq, confirm_lsn: impl FnOnce() -> Lsn) -> bool {
        if seq.count() < self.durable_upto {
            return true;
        }
        if let Some(Pending { end, upto }) = self.pending
            && confirm_lsn().0 >= end.get()
        {
            self.durable_upto = upto;
            self.pending = None;
            self.is_hurried &= upto < self.pushed_upto;
        }
        seq.count() < self.durable_upto
    }

    /// As [`allows`](Self::allows) has said before.
    pub(super) fn has_allowed(&self, seq: Seq) -> bool {
        seq.count() < self.durable_upto
    }

    /// The reservation to push in front of the PUBLISH of `seq`, which a consumer waits for.
    pub(super) fn ask_ahead_of_publish(&mut self, seq: Seq) -> Ask {
        self.push(seq.count() + u64::from(self.step), false)
    }

    /// The reservation to push because `seq`, which is wanted now, is not allowed; `None` when it is on
    /// its way with all speed.
    pub(super) fn ask_blocked(&mut self, seq: Seq) -> Option<Ask> {
        if seq.count() >= self.pushed_upto {
            let ask = self.push(seq.count() + u64::from(self.step), true);
            self.grow();
            return Some(ask);
        }
        if self.is_hurried {
            return None;
        }
        // Asked for early, lazily, and not durable yet: the same again, in haste.
        Some(self.push(self.pushed_upto, true))
    }

    /// The count of the first seq whose delivery may [ask early](Self::ask_early).
    pub(super) fn early_from(&self) -> Option<u64> {
        let near = self.pushed_upto.saturating_sub(u64::from(self.step / 2));
        self.pending.is_none().then_some(near)
    }

    /// The reservation to push early, while `seq` leaves a backlog that goes on up to `next_seq`.
    pub(super) fn ask_early(&mut self, seq: Seq, next_seq: Seq) -> Option<Ask> {
        let is_near = seq.count() + u64::from(self.step / 2) >= self.pushed_upto;
        if !is_near || self.pending.is_some() || next_seq.0 <= self.pushed_upto {
            return None;
        }
        let mut ask = self.push(
            self.pushed_upto.max(seq.count()) + u64::from(self.step),
            false,
        );
        ask.is_urgent = next_seq > ask.upto;
        self.grow();
        Some(ask)
    }

    fn push(&mut self, upto: u64, is_waited: bool) -> Ask {
        self.pushed_upto = upto.max(self.pushed_upto);
        // Whoever waited for an earlier one is called when that is durable, which may be too early now: so it
        // must be able to ask again.
        self.is_hurried = is_waited;
        Ask {
            upto: Seq(self.pushed_upto),
            is_waited,
            is_urgent: is_waited,
        }
    }

    fn grow(&mut self) {
        self.step = (self.step * 2).min(STEP_MAX);
    }

    /// The record of `pushed_upto` ends at `lsn`.
    pub(super) fn set_pending(&mut self, lsn: Lsn) {
        self.pending = NonZeroU64::new(lsn.0).map(|end| Pending {
            end,
            upto: self.pushed_upto,
        });
    }

    /// The queue is empty: nothing drains any more.
    pub(super) fn rest(&mut self) {
        self.step = STEP_MIN;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocked_message_is_asked_for_once_and_goes_when_durable() {
        let mut reservation = Reservation::new(Seq(1));
        assert!(!reservation.allows(Seq(5), || Lsn(0)));
        let ask = reservation.ask_blocked(Seq(5)).expect("nothing is pending");
        assert!(ask.is_waited && ask.upto > Seq(5));
        reservation.set_pending(Lsn(100));
        assert_eq!(reservation.ask_blocked(Seq(5)), None);
        assert!(!reservation.allows(Seq(5), || Lsn(99)));
        assert!(reservation.allows(Seq(5), || Lsn(100)));
    }

    #[test]
    fn steps_double_while_a_backlog_drains() {
        let mut reservation = Reservation::new(Seq(1));
        let mut seq = 1;
        let mut steps = Vec::new();
        for lsn in 1..20 {
            let ask = reservation.ask_blocked(Seq(seq)).expect("not reserved");
            steps.push(ask.upto.0 - seq);
            reservation.set_pending(Lsn(lsn));
            assert!(reservation.allows(Seq(seq), || Lsn(lsn)));
            seq = ask.upto.0;
        }
        let first = u64::from(STEP_MIN);
        assert_eq!(steps[..3], [first, first * 2, first * 4]);
        assert_eq!(steps.last(), Some(&u64::from(STEP_MAX)));
        reservation.rest();
        let ask = reservation.ask_blocked(Seq(seq)).expect("not reserved");
        assert_eq!(ask.upto.0 - seq, first);
    }

    #[test]
    fn reservation_that_is_not_in_the_log_yet_allows_nothing() {
        let mut reservation = Reservation::new(Seq(1));
        let first = reservation.ask_blocked(Seq(5)).expect("nothing is pending");
        reservation.set_pending(Lsn(100));
        // t1 a message behind the pending reservation is asked for, t2 the pending one becomes durable,
        // t3 the same critical section looks again, before it has pushed what it asked for
        let blocked = first.upto;
        assert!(!reservation.allows(blocked, || Lsn(99)));
        assert!(reservation.ask_blocked(blocked).is_some());
        assert!(!reservation.allows(blocked, || Lsn(100)));
        assert_eq!(reservation.ask_blocked(blocked), None, "it is on its way");
        reservation.set_pending(Lsn(200));
        assert!(reservation.allows(Seq(5), || Lsn(100)));
        assert!(!reservation.allows(blocked, || Lsn(199)));
        assert!(reservation.allows(blocked, || Lsn(200)));
    }

    #[test]
    fn message_blocked_by_a_later_reservation_asks_again() {
        let mut reservation = Reservation::new(Seq(1));
        let first = reservation.ask_blocked(Seq(5)).expect("nothing is pending");
        reservation.set_pending(Lsn(100));
        // A publish pushes a further one, for which nobody is called when it is durable.
        reservation.ask_ahead_of_publish(Seq(first.upto.0 + 1));
        reservation.set_pending(Lsn(200));
        assert!(!reservation.allows(first.upto, || Lsn(150)));
        let again = reservation.ask_blocked(first.upto);
        assert!(again.expect("nobody would call it").is_waited);
    }

    #[test]
    fn early_reservation_is_hurried_once_somebody_waits() {
        let mut reservation = Reservation::new(Seq(100));
        let early = reservation
            .ask_early(Seq(90), Seq(228))
            .expect("the end is near");
        assert!(!early.is_waited && !early.is_urgent);
        reservation.set_pending(Lsn(7));
        assert_eq!(reservation.ask_early(Seq(95), Seq(5000)), None);
        let hurry = reservation.ask_blocked(Seq(100)).expect("lazy so far");
        assert!(hurry.is_waited);
        assert_eq!(hurry.upto, early.upto);
    }

    #[test]
    fn early_reservation_of_a_long_backlog_is_urgent_before_somebody_waits() {
        let mut reservation = Reservation::new(Seq(100));
        let early = reservation
            .ask_early(Seq(90), Seq(5000))
            .expect("the end is near");
        assert!(early.is_urgent && !early.is_waited);
        reservation.set_pending(Lsn(7));
        let hurry = reservation.ask_blocked(Seq(100)).expect("nobody is called");
        assert!(hurry.is_waited && hurry.is_urgent);
    }
}
