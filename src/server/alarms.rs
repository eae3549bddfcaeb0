//! The disk alarm: publishers are stopped before the disk is full, everybody else goes on.
//!
//! A log that cannot grow is the end of the process (an acknowledgement has to be written too), so publishers
//! are blocked while there is still room for what frees space: acknowledgements and checkpoints. The alarm is
//! raised below a limit and cleared well above it, so that it does not flap. It is raised too while the store lives on
//! its reserve, because the disk filled up faster than it is measured, or nobody set a limit.

use std::sync::Mutex;

use tokio::sync::watch;

use crate::disk::FreeSpace;
use crate::sync::lock;

/// Text of `connection.blocked`, as in RabbitMQ.
pub(super) const LOW_ON_DISK: &str = "low on disk";

/// Text in `status` while even the reserve is used up.
pub(super) const STALLED: &str = "disk full: commits wait for room";

/// See the module.
pub(super) struct DiskAlarm {
    /// Bytes that must stay free; 0 for no alarm.
    limit_bytes: u64,
    causes: Mutex<Causes>,
    reason: watch::Sender<Option<&'static str>>,
}

/// Why the alarm is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Causes {
    /// Less than the limit is free.
    is_low: bool,
    /// The store lives on its reserve.
    is_short: bool,
}

impl DiskAlarm {
    pub(super) fn new(limit_bytes: u64) -> Self {
        Self {
            limit_bytes,
            causes: Mutex::default(),
            reason: watch::Sender::new(None),
        }
    }

    /// Why publishers are blocked; `None` when they are not.
    pub(super) fn reason(&self) -> Option<&'static str> {
        *self.reason.borrow()
    }

    /// Hears about changes.
    pub(super) fn subscribe(&self) -> watch::Receiver<Option<&'static str>> {
        self.reason.subscribe()
    }

    /// Takes a measurement in, and tells connections when it changes something. Answers whether the disk is low.
    pub(super) fn update(&self, free: FreeSpace) -> bool {
        let mut causes = lock(&self.causes);
        let was_low = causes.is_low;
        causes.is_low = is_low(free, self.limit_bytes, was_low);
        if causes.is_low && !was_low {
            tracing::warn!(
                available_bytes = free.available_bytes,
                limit_bytes = self.limit_bytes,
                "low on disk; publishers are blocked until there is room"
            );
        }
        let is_low = causes.is_low;
        self.tell(*causes);
        is_low
    }

    /// The store began or ceased to live on its reserve.
    pub(super) fn set_short(&self, is_short: bool) {
        let mut causes = lock(&self.causes);
        causes.is_short = is_short;
        self.tell(*causes);
    }

    /// Called with the causes locked, so that what was found out last is what is told last.
    fn tell(&self, causes: Causes) {
        let is_raised = causes.is_low || causes.is_short;
        if is_raised == self.reason().is_some() {
            return;
        }
        if !is_raised {
            tracing::info!("enough disk again; publishers go on");
        }
        self.reason.send_replace(is_raised.then_some(LOW_ON_DISK));
    }
}

/// Whether the alarm is to be on. A file system of 0 bytes does not say how full it is: never low.
fn is_low(free: FreeSpace, limit_bytes: u64, was_low: bool) -> bool {
    if free.total_bytes == 0 {
        return false;
    }
    let limit_bytes = if was_low {
        limit_bytes.saturating_add(limit_bytes / 2)
    } else {
        limit_bytes
    };
    free.available_bytes < limit_bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(
        available_bytes: u64,
        total_bytes: u64,
        limit_bytes: u64,
        was_low: bool,
        expected: bool,
    ) {
        let free = FreeSpace {
            available_bytes,
            total_bytes,
        };
        assert_eq!(is_low(free, limit_bytes, was_low), expected);
    }

    #[test]
    fn the_alarm_is_raised_below_the_limit_and_cleared_well_above_it() {
        check(100, 1000, 100, false, false);
        check(99, 1000, 100, false, true);
        check(149, 1000, 100, true, true);
        check(150, 1000, 100, true, false);
    }

    #[test]
    fn no_limit_and_an_unknown_size_mean_no_alarm() {
        check(0, 1000, 0, false, false);
        check(0, 1000, 0, true, false);
        check(0, 0, 100, false, false);
        check(0, 0, 100, true, false);
    }

    #[test]
    fn connections_hear_of_changes_only() {
        let alarm = DiskAlarm::new(100);
        let mut heard = alarm.subscribe();
        let free = |available_bytes| FreeSpace {
            available_bytes,
            total_bytes: 1000,
        };
        alarm.update(free(500));
        assert!(!heard.has_changed().unwrap());
        alarm.update(free(50));
        assert_eq!(*heard.borrow_and_update(), Some(LOW_ON_DISK));
        alarm.update(free(40));
        assert!(!heard.has_changed().unwrap());
        alarm.update(free(500));
        assert_eq!(*heard.borrow_and_update(), None);
    }

    #[test]
    fn the_alarm_stays_on_as_long_as_there_is_any_cause() {
        let alarm = DiskAlarm::new(100);
        let free = |available_bytes| FreeSpace {
            available_bytes,
            total_bytes: 1000,
        };
        alarm.set_short(true);
        assert_eq!(alarm.reason(), Some(LOW_ON_DISK));
        assert!(alarm.update(free(50)));
        alarm.set_short(false);
        assert_eq!(alarm.reason(), Some(LOW_ON_DISK));
        alarm.set_short(true);
        assert!(!alarm.update(free(500)));
        assert_eq!(alarm.reason(), Some(LOW_ON_DISK));
        alarm.set_short(false);
        assert_eq!(alarm.reason(), None);
    }
}
