//! The disk alarm: publishers are stopped before the disk is full, everybody else goes on.
//!
//! A log that cannot grow is the end of the process (an acknowledgement has to be written too), so publishers
//! are blocked while there is still room for what frees space: acknowledgements and checkpoints. The alarm is
//! raised below a limit and cleared well above it, so that it does not flap.

use tokio::sync::watch;

use crate::disk::FreeSpace;

/// Text of `connection.blocked`, as in RabbitMQ.
pub(super) const LOW_ON_DISK: &str = "low on disk";

/// See the module.
pub(super) struct DiskAlarm {
    /// Bytes that must stay free; 0 for no alarm.
    limit_bytes: u64,
    reason: watch::Sender<Option<&'static str>>,
}

impl DiskAlarm {
    pub(super) fn new(limit_bytes: u64) -> Self {
        Self {
            limit_bytes,
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

    /// Takes a measurement in, and tells connections when it changes something.
    pub(super) fn update(&self, free: FreeSpace) {
        let was_raised = self.reason().is_some();
        let is_raised = is_low(free, self.limit_bytes, was_raised);
        if is_raised == was_raised {
            return;
        }
        if is_raised {
            tracing::warn!(
                available_bytes = free.available_bytes,
                limit_bytes = self.limit_bytes,
                "low on disk; publishers are blocked until there is room"
            );
        } else {
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
}
