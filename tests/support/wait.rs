//! Waiting for what a broker does by itself, such as compaction, a checkpoint or the end of an alarm.
//!
//! Nothing is said about how long it takes: the limit is only there so that a test of something that never happens ends.

use std::time::Duration;

use super::raw::now;
use super::status::Status;
use super::{PROCESS_LIMIT, TestBroker};

const PAUSE: Duration = Duration::from_millis(50);

/// Looks again and again, until it is so.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = now();
    while !is_so() {
        assert!(begun.elapsed() < PROCESS_LIMIT, "never: {what}");
        std::thread::sleep(PAUSE);
    }
}

impl Status {
    /// Asks again and again, until what the broker answers is so; that answer.
    #[track_caller]
    pub(crate) fn wait_for(broker: &TestBroker, what: &str, is_so: impl Fn(&Self) -> bool) -> Self {
        let begun = now();
        loop {
            let status = Self::of(broker);
            if is_so(&status) {
                return status;
            }
            let is_late = begun.elapsed() >= PROCESS_LIMIT;
            assert!(!is_late, "never: {what}: {status:?}");
            std::thread::sleep(PAUSE);
        }
    }
}
