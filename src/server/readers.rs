//! Reader threads: message bodies from disk, off the network threads.
//!
//! The queue of requests needs no cap of its own: each broker queue asks for a bounded window of its head.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;

use super::hub::Hub;
use crate::broker::effects::{Effects, Fetch};
use crate::broker::queue::FetchFailure;
use crate::storage::ReadError;
use crate::sync::{lock, wait};

/// Reader threads; cold reads wait for the device, not for the processor.
pub(super) const READER_THREADS: usize = 2;
/// Reads answered together: the queue is locked once for all of them.
const RUN_MAX: usize = 64;
/// How often a read is tried that the system refuses.
const READ_ATTEMPTS: u32 = 10;
/// Pause between the attempts.
const READ_PAUSE: Duration = Duration::from_millis(100);

#[derive(Default)]
struct State {
    fetches: VecDeque<Fetch>,
    is_stopping: bool,
}

/// Bodies to read; filled by all threads.
#[derive(Default)]
pub(super) struct ReadQueue {
    state: Mutex<State>,
    wakes: Condvar,
}

impl ReadQueue {
    /// Takes over the reads that a call into the domain asked for.
    pub(super) fn add(&self, fetches: &mut Vec<Fetch>) {
        let mut state = lock(&self.state);
        state.fetches.extend(fetches.drain(..));
        self.wakes.notify_all();
    }

    /// Ends the threads; what is still queued is forgotten.
    pub(super) fn stop(&self) {
        lock(&self.state).is_stopping = true;
        self.wakes.notify_all();
    }

    /// Waits for work and moves a run of reads of one queue into `run`; false when the thread is to end.
    fn next_run(&self, run: &mut Vec<Fetch>) -> bool {
        let mut state = lock(&self.state);
        loop {
            if state.is_stopping {
                return false;
            }
            if let Some(first) = state.fetches.pop_front() {
                let queue = Arc::clone(&first.queue);
                run.push(first);
                while run.len() < RUN_MAX
                    && state
                        .fetches
                        .front()
                        .is_some_and(|next| Arc::ptr_eq(&next.queue, &queue))
                {
                    run.extend(state.fetches.pop_front());
                }
                return true;
            }
            state = wait(&self.wakes, state);
        }
    }
}

/// A thread's body; ends after [`ReadQueue::stop`].
pub(super) fn run(hub: &Arc<Hub>) {
    let mut effects = Effects::default();
    let mut run = Vec::new();
    while hub.read_queue().next_run(&mut run) {
        let Some(queue) = run.first().map(|fetch| Arc::clone(&fetch.queue)) else {
            continue;
        };
        let results = run
            .drain(..)
            .map(|fetch| (fetch.seq, read(hub, &fetch)))
            .collect();
        hub.broker
            .fetched(&queue, results, hub.now_ms(), &mut effects);
        hub.carry_out(&mut effects);
    }
}

/// Reads one body. What the system refuses may work a moment later (it ran out of file descriptors, say), and a
/// message that cannot be read is out of reach until a restart: so that is tried again for a while.
fn read(hub: &Hub, fetch: &Fetch) -> Result<Bytes, FetchFailure> {
    let read_once = || {
        hub.storage
            .read(fetch.queue.id(), fetch.seq, fetch.position)
    };
    let mut result = read_once();
    for _ in 1..READ_ATTEMPTS {
        if !matches!(result, Err(ReadError::Io { .. })) {
            break;
        }
        std::thread::sleep(READ_PAUSE);
        result = read_once();
    }
    result.map_err(|error| FetchFailure {
        reason: error.to_string(),
    })
}
