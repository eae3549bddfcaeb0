//! The alarms: publishers are stopped before the disk or the memory is full, everybody else goes on.
//!
//! A log that cannot grow is the end of the process (an acknowledgement has to be written too), and so is memory that
//! the system takes back. So publishers are blocked while there is still room for what frees space: acknowledgements,
//! deliveries, checkpoints. An alarm is raised at a limit and cleared well away from it, so that it does not flap. That
//! of the disk is raised too while the store lives on its reserve, because the disk filled up faster than it is
//! measured, or nobody set a limit.

use std::sync::Mutex;

use tokio::sync::watch;

use crate::disk::FreeSpace;
use crate::sync::lock;

/// Texts of `connection.blocked`, as in RabbitMQ.
pub(super) const LOW_ON_DISK: &str = "low on disk";
const LOW_ON_MEMORY: &str = "low on memory";
const LOW_ON_BOTH: &str = "low on memory & disk";

/// Text in `status` while even the reserve is used up.
pub(super) const STALLED: &str = "commits wait for room on the disk, or for a file descriptor";

/// See the module.
pub(super) struct Alarms {
    /// Bytes that must stay free on the disk; 0 for no alarm.
    disk_limit_bytes: u64,
    causes: Mutex<Causes>,
    reason: watch::Sender<Option<&'static str>>,
}

/// Why an alarm is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Causes {
    /// Less than the limit is free on the disk.
    is_disk_low: bool,
    /// The store lives on its reserve.
    is_disk_short: bool,
    /// The process is near its memory limit, or its messages cannot leave memory.
    is_memory_low: bool,
}

impl Causes {
    fn is_disk(self) -> bool {
        self.is_disk_low || self.is_disk_short
    }
}

impl Alarms {
    pub(super) fn new(disk_limit_bytes: u64) -> Self {
        Self {
            disk_limit_bytes,
            causes: Mutex::default(),
            reason: watch::Sender::new(None),
        }
    }

    /// Why publishers are blocked; `None` when they are not.
    pub(super) fn reason(&self) -> Option<&'static str> {
        *self.reason.borrow()
    }

    /// Each alarm that is raised.
    pub(super) fn reasons(&self) -> Vec<&'static str> {
        let causes = *lock(&self.causes);
        let alarms = [
            (causes.is_memory_low, LOW_ON_MEMORY),
            (causes.is_disk(), LOW_ON_DISK),
        ];
        let raised = alarms.into_iter().filter(|(is_raised, _)| *is_raised);
        raised.map(|(_, reason)| reason).collect()
    }

    /// The disk has too little room left.
    pub(super) fn is_disk_low(&self) -> bool {
        lock(&self.causes).is_disk()
    }

    /// Hears about changes.
    pub(super) fn subscribe(&self) -> watch::Receiver<Option<&'static str>> {
        self.reason.subscribe()
    }

    /// Takes a measurement of the disk in, and tells connections when it changes something. Answers whether it is low.
    pub(super) fn update_disk(&self, free: FreeSpace) -> bool {
        let mut causes = lock(&self.causes);
        let was_raised = causes.is_disk();
        let was_low = causes.is_disk_low;
        causes.is_disk_low = is_low(free, self.disk_limit_bytes, was_low);
        if causes.is_disk_low && !was_low {
            tracing::warn!(
                available_bytes = free.available_bytes,
                limit_bytes = self.disk_limit_bytes,
                "low on disk; publishers are blocked until there is room"
            );
        }
        self.tell(*causes, was_raised);
        causes.is_disk_low
    }

    /// The store began or ceased to live on its reserve.
    pub(super) fn set_short(&self, is_short: bool) {
        let mut causes = lock(&self.causes);
        let was_raised = causes.is_disk();
        causes.is_disk_short = is_short;
        self.tell(*causes, was_raised);
    }

    /// Raises or clears the alarm of memory; true when that is a change.
    pub(super) fn set_memory(&self, is_low: bool) -> bool {
        let mut causes = lock(&self.causes);
        let is_change = causes.is_memory_low != is_low;
        causes.is_memory_low = is_low;
        self.tell(*causes, causes.is_disk());
        is_change
    }

    /// Called with the causes locked, so that what was found out last is what is told last.
    fn tell(&self, causes: Causes, was_disk: bool) {
        if was_disk && !causes.is_disk() {
            tracing::info!("enough disk again; publishers go on");
        }
        let reason = match (causes.is_memory_low, causes.is_disk()) {
            (false, false) => None,
            (true, false) => Some(LOW_ON_MEMORY),
            (false, true) => Some(LOW_ON_DISK),
            (true, true) => Some(LOW_ON_BOTH),
        };
        if reason != self.reason() {
            self.reason.send_replace(reason);
        }
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
        let alarms = Alarms::new(100);
        let mut heard = alarms.subscribe();
        let free = |available_bytes| FreeSpace {
            available_bytes,
            total_bytes: 1000,
        };
        alarms.update_disk(free(500));
        assert!(!alarms.set_memory(false));
        assert!(!heard.has_changed().unwrap());
        alarms.update_disk(free(50));
        assert_eq!(*heard.borrow_and_update(), Some(LOW_ON_DISK));
        alarms.update_disk(free(40));
        assert!(!heard.has_changed().unwrap());
        assert!(alarms.set_memory(true));
        assert_eq!(*heard.borrow_and_update(), Some(LOW_ON_BOTH));
        assert_eq!(alarms.reasons(), [LOW_ON_MEMORY, LOW_ON_DISK]);
        alarms.update_disk(free(500));
        assert_eq!(*heard.borrow_and_update(), Some(LOW_ON_MEMORY));
        assert!(alarms.set_memory(false));
        assert_eq!(*heard.borrow_and_update(), None);
        assert!(alarms.reasons().is_empty());
    }

    #[test]
    fn the_alarm_stays_on_as_long_as_there_is_any_cause() {
        let alarms = Alarms::new(100);
        let free = |available_bytes| FreeSpace {
            available_bytes,
            total_bytes: 1000,
        };
        alarms.set_short(true);
        assert_eq!(alarms.reason(), Some(LOW_ON_DISK));
        assert!(alarms.update_disk(free(50)));
        alarms.set_short(false);
        assert_eq!(alarms.reason(), Some(LOW_ON_DISK));
        alarms.set_short(true);
        assert!(!alarms.update_disk(free(500)));
        assert_eq!(alarms.reason(), Some(LOW_ON_DISK));
        alarms.set_short(false);
        assert_eq!(alarms.reason(), None);
    }
}
