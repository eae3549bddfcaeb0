//! The checkpoint thread: writes a checkpoint whenever the store says that one is due; in between it moves entries of
//! deep queues to their index files when they take too much memory. The disk thread watches the free space: it is
//! another one, because a checkpoint on a full disk may wait for the room that this one finds.

use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::alarms::LOW_ON_DISK;
use super::hub::Hub;
use crate::sync::{lock, wait_within};

/// How often the store is asked.
const POLL: Duration = Duration::from_millis(500);
/// How often the memory of entries is looked at: publishers fill it faster than a checkpoint becomes due.
const FILING_POLL: Duration = Duration::from_millis(100);
/// Bytes that compaction copies in that time at most: 16 MiB/s leave the disk to messages, and empty a 64 MiB segment of
/// which a quarter is alive in a second.
const COMPACT_BYTES: u64 = 8 << 20;
/// Pause after a failed checkpoint: each attempt writes the state of all queues, on a disk that may be full.
const FAILED_PAUSE: Duration = Duration::from_secs(5);

/// Tells a thread to end.
#[derive(Default)]
pub(super) struct Stop {
    is_stopping: Mutex<bool>,
    wakes: Condvar,
}

impl Stop {
    /// Asks the thread to end.
    fn raise(&self) {
        *lock(&self.is_stopping) = true;
        self.wakes.notify_all();
    }

    /// Waits; true once the thread shall end.
    pub(super) fn is_raised_within(&self, duration: Duration) -> bool {
        let is_stopping = lock(&self.is_stopping);
        if *is_stopping {
            return true;
        }
        *wait_within(&self.wakes, is_stopping, duration)
    }
}

/// Handle of the threads: these two, and the scrubber's.
pub(super) struct Checkpointer {
    stop: Arc<Stop>,
    threads: Vec<JoinHandle<()>>,
}

impl Checkpointer {
    /// Starts the threads; no scrubber for a rate of 0.
    pub(super) fn spawn(hub: &Arc<Hub>, scrub_rate_bytes: u64) -> io::Result<Self> {
        let stop = Arc::new(Stop::default());
        let (own_hub, own_stop) = (Arc::clone(hub), Arc::clone(&stop));
        let disk = super::named("stratamq-disk".into(), move || {
            while !own_stop.is_raised_within(POLL) {
                own_hub.check_disk();
            }
        })?;
        let (own_hub, own_stop) = (Arc::clone(hub), Arc::clone(&stop));
        let checkpoints = super::named("stratamq-ckpt".into(), move || run(&own_hub, &own_stop))?;
        let mut threads = vec![disk, checkpoints];
        if scrub_rate_bytes > 0 {
            let (own_hub, own_stop) = (Arc::clone(hub), Arc::clone(&stop));
            threads.push(super::named("stratamq-scrub".into(), move || {
                super::scrubber::run(&own_hub, &own_stop, scrub_rate_bytes);
            })?);
        }
        Ok(Self { stop, threads })
    }

    /// Ends the threads after what they are about: a checkpoint, a read.
    pub(super) fn stop(&mut self) {
        self.stop.raise();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn run(hub: &Hub, stop: &Stop) {
    let pause_ms = |pause: Duration| u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
    let mut asked_at_ms = hub.now_ms();
    let mut pause = POLL;
    while !stop.is_raised_within(FILING_POLL) {
        file_runs(hub);
        // By the clock: filing takes its time just when the log grows fastest.
        if hub.now_ms().saturating_sub(asked_at_ms) < pause_ms(pause) {
            continue;
        }
        asked_at_ms = hub.now_ms();
        pause = POLL;
        compact(hub);
        if !hub.storage.checkpoint_due() {
            continue;
        }
        match hub.storage.checkpoint(&hub.broker) {
            Ok(report) => tracing::debug!(?report, "checkpoint"),
            // The log goes on: the previous checkpoint stays valid and only the replay grows. A failed
            // sync of the log itself has already ended the process.
            Err(error) => {
                tracing::error!(%error, "checkpoint failed");
                pause = FAILED_PAUSE;
            }
        }
    }
}

/// Moves the last messages out of nearly empty segments: slowly, unless the disk is low.
fn compact(hub: &Hub) {
    let is_low = hub.alarms.reasons().contains(&LOW_ON_DISK);
    let max_bytes = if is_low { u64::MAX } else { COMPACT_BYTES };
    match hub.storage.compact(&hub.broker, is_low, max_bytes) {
        Ok(done) if done.segment_count > 0 => tracing::debug!(?done, "compaction"),
        Ok(_) => {}
        // Everything is where it was; the next checkpoint makes the segments candidates again.
        Err(error) => tracing::warn!(%error, "cannot move messages out of nearly empty segments"),
    }
}

/// Makes room in memory, when entries of queues take too much of it; false when they do not.
pub(super) fn file_runs(hub: &Hub) -> bool {
    let queues = hub.broker.queues();
    if !queues.wants_filing() {
        return false;
    }
    match hub.storage.file_runs(&hub.broker) {
        Ok(runs) => tracing::debug!(runs, "filed runs of deep queues"),
        // They stay in memory; the next checkpoint tries again.
        Err(error) => tracing::warn!(%error, "cannot write index files"),
    }
    queues.note_filing();
    true
}
