//! The alarms: publishers are stopped before the disk or the memory is full, everybody else goes on.
//!
//! A log that cannot grow is the end of the process (an acknowledgement has to be written too), and so is memory that
//! the system takes back. So publishers are blocked while there is still room for what frees space: acknowledgements,
//! deliveries, checkpoints. An alarm is raised at a limit and cleared well away from it, so that it does not flap.

use std::sync::Mutex;

use tokio::sync::watch;

use crate::disk::FreeSpace;
use crate::sync::lock;

/// Texts of `connection.blocked`, as in RabbitMQ.
const LOW_ON_DISK: &str = "low on disk";
const LOW_ON_MEMORY: &str = "low on memory";
const LOW_ON_BOTH: &str = "low on memory & disk";

#[derive(Clone, Copy, Debug, Default)]
struct Raised {
    disk: bool,
    memory: bool,
}

/// See the module.
pub(super) struct Alarms {
    /// Bytes that must stay free on the disk; 0 for no alarm.
    disk_limit_bytes: u64,
    raised: Mutex<Raised>,
    reason: watch::Sender<Option<&'static str>>,
}

impl Alarms {
    pub(super) fn new(disk_limit_bytes: u64) -> Self {
        Self {
            disk_limit_bytes,
            raised: Mutex::default(),
            reason: watch::Sender::new(None),
        }
    }

    /// Why publishers are blocked; `None` when they are not.
    pub(super) fn reason(&self) -> Option<&'static str> {
        *self.reason.borrow()
    }

    /// Each alarm that is raised.
    pub(super) fn reasons(&self) -> Vec<&'static str> {
        let raised = *lock(&self.raised);
        let alarms = [(raised.memory, LOW_ON_MEMORY), (raised.disk, LOW_ON_DISK)];
        let raised = alarms.into_iter().filter(|(is_raised, _)| *is_raised);
        raised.map(|(_, reason)| reason).collect()
    }

    /// The disk has too little room left.
    pub(super) fn is_disk_low(&self) -> bool {
        lock(&self.raised).disk
    }

    /// Hears about changes.
    pub(super) fn subscribe(&self) -> watch::Receiver<Option<&'static str>> {
        self.reason.subscribe()
    }

    /// Takes a measurement of the disk in, and tells connections when it changes something.
    pub(super) fn update_disk(&self, free: FreeSpace) {
        let was_low = self.is_disk_low();
        let is_low = is_low(free, self.disk_limit_bytes, was_low);
        if is_low == was_low {
            return;
        }
        if is_low {
            tracing::warn!(
                available_bytes = free.available_bytes,
                limit_bytes = self.disk_limit_bytes,
                "low on disk; publishers are blocked until there is room"
            );
        } else {
            tracing::info!("enough disk again; publishers go on");
        }
        self.change(|raised| raised.disk = is_low);
    }

    /// Raises or clears the alarm of memory; true when that is a change.
    pub(super) fn set_memory(&self, is_low: bool) -> bool {
        let is_change = lock(&self.raised).memory != is_low;
        if is_change {
            self.change(|raised| raised.memory = is_low);
        }
        is_change
    }

    fn change(&self, change: impl FnOnce(&mut Raised)) {
        let mut raised = lock(&self.raised);
        change(&mut raised);
        let reason = match (raised.memory, raised.disk) {
            (false, false) => None,
            (true, false) => Some(LOW_ON_MEMORY),
            (false, true) => Some(LOW_ON_DISK),
            (true, true) => Some(LOW_ON_BOTH),
        };
        // Under the lock: the last word sent must be the last change.
        self.reason.send_replace(reason);
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
}
