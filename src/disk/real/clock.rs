//! The system's clocks, read in one place.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::disk::Clock;

/// The system's clocks. The wall clock is read once; from then on it advances with the monotonic one, so a
/// clock that is set back while the broker runs expires no message early and none twice.
#[derive(Clone, Debug)]
pub struct RealClock {
    /// Wall clock when the process started to use this clock, since 1970.
    start_wall: Duration,
    /// The same moment on the monotonic clock.
    start: Instant,
}

impl RealClock {
    /// A clock that shows the system's time of now. A wall clock before 1970 counts as 1970.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the system's clocks"
    )]
    pub fn new() -> Self {
        let start_wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            start_wall,
            start: Instant::now(),
        }
    }
}

impl Default for RealClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for RealClock {
    fn unix_ms(&self) -> u64 {
        let now = self.start_wall + self.start.elapsed();
        u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
    }

    fn monotonic_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_never_goes_back() {
        let clock = RealClock::new();
        let (wall, mono) = (clock.unix_ms(), clock.monotonic_ns());
        assert!(wall > 1_600_000_000_000, "milliseconds since 1970");
        assert!(clock.unix_ms() >= wall);
        assert!(clock.monotonic_ns() >= mono);
    }
}
