//! Reader threads: message bodies, and entries of deep queues, from disk, off the network threads.
//!
//! The queue of requests needs no cap of its own: each broker queue asks for a bounded window of its head. Requests of
//! one queue that stand together are made with few large reads; two threads, so that one reads while the messages of
//! the other are delivered.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;

use super::hub::Hub;
use crate::broker::effects::{Effects, Fetch, RunLoad};
use crate::broker::message::PayloadDecoder;
use crate::broker::queue::{self, FetchFailure};
use crate::storage::run::FiledRun;
use crate::storage::types::{ImageEntry, QueueId};
use crate::storage::{ReadBuffer, ReadError, ReadPages};
use crate::sync::{lock, wait, wait_until_idle};

/// Reader threads; cold reads wait for the device, not for the processor.
pub(super) const READER_THREADS: usize = 2;
/// How often reads of a run are tried again that the system refuses.
const READ_ATTEMPTS: u32 = 10;
/// Pause between the attempts.
const READ_PAUSE: Duration = Duration::from_millis(100);

/// Readers that had nothing to do for so long give memory back.
const REST_AFTER: Duration = Duration::from_secs(1);

#[derive(Default)]
struct State {
    /// Served first: bodies cannot be asked for before the entries are there.
    loads: VecDeque<RunLoad>,
    fetches: VecDeque<Fetch>,
    is_stopping: bool,
}

/// What a reader thread does next.
enum Work {
    /// Nothing for a while: memory is given back.
    Rest,
    Load(RunLoad),
    Bodies(Fetch),
}

/// What is to be read; filled by all threads.
pub(super) struct ReadQueue {
    state: Mutex<State>,
    wakes: Condvar,
    /// What the bodies of long reads stay in.
    pages: ReadPages,
}

impl ReadQueue {
    /// Nothing yet, of a process that may use so much memory.
    pub(super) fn new(memory_limit_bytes: u64) -> Self {
        Self {
            state: Mutex::default(),
            wakes: Condvar::new(),
            pages: ReadPages::within(memory_limit_bytes),
        }
    }

    /// Takes over the reads that a call into the domain asked for.
    pub(super) fn add(&self, loads: &mut Vec<RunLoad>, fetches: &mut Vec<Fetch>) {
        let count = loads.len() + fetches.len();
        let mut state = lock(&self.state);
        state.loads.extend(loads.drain(..));
        state.fetches.extend(fetches.drain(..));
        drop(state);
        // No more threads than there is work for.
        for _ in 0..count.min(READER_THREADS) {
            self.wakes.notify_one();
        }
    }

    /// Ends the threads; what is still queued is forgotten.
    pub(super) fn stop(&self) {
        lock(&self.state).is_stopping = true;
        self.wakes.notify_all();
    }

    /// Waits for work; `None` when the thread is to end. A thread that has given back its memory already `is_resting`.
    fn next(&self, is_resting: bool) -> Option<Work> {
        let mut state = lock(&self.state);
        loop {
            if state.is_stopping {
                return None;
            }
            if let Some(load) = state.loads.pop_front() {
                return Some(Work::Load(load));
            }
            if let Some(fetch) = state.fetches.pop_front() {
                return Some(Work::Bodies(fetch));
            }
            if is_resting {
                state = wait(&self.wakes, state);
                continue;
            }
            let (again, is_idle) = wait_until_idle(&self.wakes, state, REST_AFTER);
            state = again;
            let has_nothing = state.loads.is_empty() && state.fetches.is_empty();
            if is_idle && has_nothing && !state.is_stopping {
                return Some(Work::Rest);
            }
        }
    }
}

/// A thread's body; ends after [`ReadQueue::stop`].
pub(super) fn run(hub: &Arc<Hub>) {
    let mut effects = Effects::default();
    let mut buffer = ReadBuffer::with_pages(hub.read_queue().pages.clone());
    let mut is_resting = false;
    while let Some(work) = hub.read_queue().next(is_resting) {
        is_resting = matches!(work, Work::Rest);
        match work {
            Work::Rest => buffer.rest(),
            Work::Load(load) => load_runs(hub, load, &mut effects),
            Work::Bodies(fetch) => read_bodies(hub, &fetch, &mut buffer, &mut effects),
        }
        hub.carry_out(&mut effects);
    }
}

/// Reads the entries of runs and gives them to their queue.
pub(super) fn load_runs(hub: &Hub, load: RunLoad, effects: &mut Effects) {
    let RunLoad { queue, runs } = load;
    let mut attempts_left = READ_ATTEMPTS;
    let read = |run: FiledRun| {
        let result = read_run(hub, queue.id(), &run, &mut attempts_left);
        (run, result)
    };
    let results = runs.into_iter().map(read).collect();
    hub.broker
        .run_loaded(&queue, results, hub.now_ms(), effects);
}

/// Reads the entries of one run; as for bodies, what the system refuses is tried again for a while.
fn read_run(
    hub: &Hub,
    queue: QueueId,
    run: &FiledRun,
    attempts_left: &mut u32,
) -> Result<Vec<ImageEntry>, FetchFailure> {
    loop {
        match hub.storage.read_run(queue, run) {
            Ok(entries) => return Ok(entries),
            Err(ReadError::Io { .. }) if *attempts_left > 0 => {
                *attempts_left -= 1;
                std::thread::sleep(READ_PAUSE);
            }
            Err(error) => {
                let reason = error.to_string();
                return Err(FetchFailure { reason });
            }
        }
    }
}

/// Reads bodies and gives them to their queue. Each one becomes a message while its bytes are at hand.
fn read_bodies(hub: &Hub, fetch: &Fetch, buffer: &mut ReadBuffer, effects: &mut Effects) {
    let Fetch { queue, wanted, .. } = fetch;
    let spill = hub.memory.spill();
    let mut messages = Vec::with_capacity(wanted.len());
    // For all of them: a device that is gone would keep this thread from the other queues for minutes.
    let mut attempts_left = READ_ATTEMPTS;
    let mut decoder = PayloadDecoder::default();
    let take = |index: usize, result| {
        let (seq, position) = wanted[index];
        let result = match result {
            Ok(payload) => queue::decode_body(&mut decoder, payload),
            Err(error) => insist(&mut attempts_left, error, || match fetch.is_spilled {
                true => spill.read(queue.id(), seq, position),
                false => hub.storage.read(queue.id(), seq, position),
            })
            .and_then(|payload| queue::decode_body(&mut decoder, payload)),
        };
        messages.push((seq, result));
    };
    match fetch.is_spilled {
        true => spill.read_each(queue.id(), wanted, buffer, take),
        false => hub.storage.read_each(queue.id(), wanted, buffer, take),
    }
    hub.broker.fetched(queue, messages, hub.now_ms(), effects);
}

/// What the system refuses may work a moment later (it ran out of file descriptors, say), and a message that cannot be
/// read is out of reach until a restart: so that is tried again for a while.
#[cold]
fn insist(
    attempts_left: &mut u32,
    mut error: ReadError,
    read: impl Fn() -> Result<Bytes, ReadError>,
) -> Result<Bytes, FetchFailure> {
    while *attempts_left > 0 && matches!(error, ReadError::Io { .. }) {
        *attempts_left -= 1;
        std::thread::sleep(READ_PAUSE);
        error = match read() {
            Ok(payload) => return Ok(payload),
            Err(error) => error,
        };
    }
    Err(FetchFailure {
        reason: error.to_string(),
    })
}
