//! The checkpoint thread: writes a checkpoint whenever the store says that one is due; in between it moves entries of
//! deep queues to their index files when they take too much memory. The disk thread watches the free space: it is
//! another one, because a checkpoint on a full disk may wait for the room that this one finds.

use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::hub::Hub;
use crate::sync::{lock, wait_within};

/// How often the store is asked.
const POLL: Duration = Duration::from_millis(500);
/// How often the memory of entries is looked at: publishers fill it faster than a checkpoint becomes due.
const FILING_POLL: Duration = Duration::from_millis(100);
/// Pause after a failed checkpoint: each attempt writes the state of all queues, on a disk that may be full.
const FAILED_PAUSE: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Stop {
    is_stopping: Mutex<bool>,
    wakes: Condvar,
}

/// Handle of both threads.
pub(super) struct Checkpointer {
    stop: Arc<Stop>,
    threads: Vec<JoinHandle<()>>,
}

impl Checkpointer {
    pub(super) fn spawn(hub: Arc<Hub>) -> io::Result<Self> {
        let stop = Arc::new(Stop::default());
        let (disk_hub, disk_stop) = (Arc::clone(&hub), Arc::clone(&stop));
        let disk = super::named("stratamq-disk".into(), move || {
            while !stopped_within(&disk_stop, POLL) {
                disk_hub.check_disk();
            }
        })?;
        let thread_stop = Arc::clone(&stop);
        let checkpoints = super::named("stratamq-ckpt".into(), move || run(&hub, &thread_stop))?;
        Ok(Self {
            stop,
            threads: vec![disk, checkpoints],
        })
    }

    /// Ends the threads, after the checkpoint it may be writing.
    pub(super) fn stop(&mut self) {
        *lock(&self.stop.is_stopping) = true;
        self.stop.wakes.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn run(hub: &Hub, stop: &Stop) {
    let mut pause = POLL;
    while !stopped_within(stop, FILING_POLL.min(pause)) {
        pause = pause.saturating_sub(FILING_POLL);
        file_runs(hub);
        if !pause.is_zero() {
            continue;
        }
        pause = POLL;
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

/// Makes room in memory, when entries of queues take too much of it.
fn file_runs(hub: &Hub) {
    let queues = hub.broker.queues();
    if !queues.wants_filing() {
        return;
    }
    match hub.storage.file_runs(&hub.broker) {
        Ok(runs) => tracing::debug!(runs, "filed runs of deep queues"),
        // They stay in memory; the next checkpoint tries again.
        Err(error) => tracing::warn!(%error, "cannot write index files"),
    }
    queues.note_filing();
}

fn stopped_within(stop: &Stop, duration: Duration) -> bool {
    let is_stopping = lock(&stop.is_stopping);
    if *is_stopping {
        return true;
    }
    *wait_within(&stop.wakes, is_stopping, duration)
}
