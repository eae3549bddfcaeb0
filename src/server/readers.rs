//! Reader threads: message bodies from disk, off the network threads.
//!
//! The queue of requests needs no cap of its own: each broker queue asks for a bounded window of its head.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};

use super::hub::Hub;
use crate::broker::effects::{Effects, Fetch};
use crate::sync::lock;

/// Reader threads; cold reads wait for the device, not for the processor.
pub(super) const READER_THREADS: usize = 2;

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

    fn next(&self) -> Option<Fetch> {
        let mut state = lock(&self.state);
        loop {
            if state.is_stopping {
                return None;
            }
            if let Some(fetch) = state.fetches.pop_front() {
                return Some(fetch);
            }
            state = match self.wakes.wait(state) {
                Ok(state) => state,
                Err(_) => std::process::abort(),
            };
        }
    }
}

/// A thread's body; ends after [`ReadQueue::stop`].
pub(super) fn run(hub: &Arc<Hub>) {
    let mut effects = Effects::default();
    while let Some(fetch) = hub.read_queue().next() {
        let payload = hub.storage.read(fetch.queue.id(), fetch.seq, fetch.position);
        let payload = payload.map_err(|error| error.to_string());
        hub.broker.fetched(&fetch.queue, fetch.seq, fetch.position, payload, hub.now_ms(), &mut effects);
        hub.carry_out(&mut effects);
    }
}
