//! kill -9 at random moments: what was confirmed is there, once, in order, byte by byte; nothing else is. Priorities, times to live,
//! histories of the dead, counts of failures, delays and policies are as they were.
//!
//! ```text
//! cargo test --test crash_kill                                                   # what CI runs
//! STRATAMQ_CRASH_ROUNDS=1000 cargo test --test crash_kill -- --nocapture         # longer
//! STRATAMQ_CRASH_SEED=123 cargo test --test crash_kill always -- --nocapture     # the choices of an earlier run
//! ```
//! The seed is printed at the start. See `crash::campaign`.

mod crash;
mod support;

use crash::campaign::Campaign;

/// Small segments, so that rounds cross their borders and checkpoints come often.
const SEGMENT: &str = "--segment-size=4MiB";

/// Proves I1, I19, I21.
#[test]
fn fsync_always_survives_kill_9() {
    let arguments = &[SEGMENT];
    Campaign {
        name: "always",
        arguments,
        rounds: 30,
    }
    .run();
}

#[test]
fn fsync_interval_survives_kill_9() {
    let arguments = &[SEGMENT, "--fsync=interval", "--fsync-interval-ms=20"];
    Campaign {
        name: "interval",
        arguments,
        rounds: 8,
    }
    .run();
}

/// What was written is in the page cache, which outlives the process.
#[test]
fn fsync_never_survives_kill_9() {
    let arguments = &[SEGMENT, "--fsync=never"];
    Campaign {
        name: "never",
        arguments,
        rounds: 8,
    }
    .run();
}

/// Every queue in an index file, as far as it goes: ranks, times and counts come from there.
#[test]
fn filed_queues_survive_kill_9() {
    let arguments = &["--segment-size=1MiB", "--queue-index-min-messages=0"];
    Campaign {
        name: "filed",
        arguments,
        rounds: 8,
    }
    .run();
}
