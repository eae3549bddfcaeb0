//! The one place that reads the clock.

use std::time::{Duration, Instant};

/// Nanoseconds since the run began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    #[expect(
        clippy::disallowed_methods,
        reason = "a load generator measures real time"
    )]
    pub(crate) fn start() -> Self {
        Self {
            origin: Instant::now(),
        }
    }

    pub(crate) fn now_ns(self) -> u64 {
        nanos(self.origin.elapsed())
    }
}

/// Whole nanoseconds; 584 years are enough.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Nanoseconds as seconds, for reports.
#[expect(clippy::cast_precision_loss, reason = "reports round anyway")]
pub(crate) fn secs(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}
