//! Waiting for what a broker does by itself, such as compaction, a checkpoint or the end of an alarm.
//!
//! Nothing is said about how long it takes: the limit is only there so that a test of something that never happens ends.

use std::time::Duration;

use super::raw::{Outcome, now};
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

/// Tries again and again, until it succeeds; for what a sound broker may refuse for a moment.
#[track_caller]
pub(crate) fn wait_until_ok<T>(what: &str, mut attempt: impl FnMut() -> Outcome<T>) -> T {
    let begun = now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(trouble) => {
                let is_late = begun.elapsed() >= PROCESS_LIMIT;
                assert!(!is_late, "never: {what}: {trouble}");
            }
        }
        std::thread::sleep(PAUSE);
    }
}

/// What a scene says that has to be quicker than a span of time, such as a lease.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Pace {
    /// It was quick enough to see what it is about, and saw it.
    Quick,
    /// The machine had other things to do, and nothing can be said.
    TooSlow,
}

/// Plays a scene with that span of time, and with longer ones as long as it was too slow.
#[track_caller]
pub(crate) fn at_some_pace(shortest: Duration, mut scene: impl FnMut(Duration) -> Pace) {
    let spans = [1, 2, 6, 18, 54].map(|factor| shortest * factor);
    let is_quick = spans.into_iter().any(|span| scene(span) == Pace::Quick);
    assert!(is_quick, "the machine is too slow for {spans:?}");
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
