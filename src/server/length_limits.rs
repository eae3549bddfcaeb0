//! Limits of length that hold from the first moment after a restart, and those that a policy sets afterwards.
//!
//! What was unacked at a crash is ready afterwards, and a policy may have changed on the stopped directory: a queue can come back
//! with more than it may have. Its head is dropped before anybody looks. For that sizes of bodies are read that no index tells, and
//! runs that are in index files; mostly there are none, or few.
//!
//! Two things can be many: runs in index files whose bodies nobody has measured since the start, and what a policy begins to
//! limit in bytes. They are measured by a thread of their own, in chunks, while the queue goes on; what is too much goes as soon
//! as it is known to be.

use std::sync::{Arc, Condvar, Mutex};

use super::hub::Hub;
use super::readers::load_runs;
use crate::broker::effects::Effects;
use crate::broker::message::Message;
use crate::broker::queue::{QueueHandle, Sizes};
use crate::storage::ReadBuffer;
use crate::storage::types::{Position, Seq};
use crate::sync::{lock, wait};

/// Bytes of records that are read at once, but for one that is larger.
const CHUNK_BYTES: u64 = 8 << 20;

/// Runs that are asked for at once: bounds what is copied under a queue's lock.
const RUNS_AT_ONCE: usize = 64;

/// Has all queues drop what is too much.
pub(super) fn apply(hub: &Hub, effects: &mut Effects) {
    let mut buffer = ReadBuffer::default();
    for queue in hub.broker.durable_queues() {
        // Nothing is carried out before the start is over.
        measure_entries(hub, &queue, &mut buffer, effects, &|| true, &|_| {});
    }
    drop_heads(hub, effects);
}

/// Asks for sizes to be measured, and ends the thread that does.
#[derive(Default)]
pub(super) struct Measuring {
    state: Mutex<State>,
    wakes: Condvar,
}

#[derive(Default)]
struct State {
    is_wanted: bool,
    is_stopping: bool,
}

impl Measuring {
    /// Somebody may be limited who was not.
    pub(super) fn request(&self) {
        lock(&self.state).is_wanted = true;
        self.wakes.notify_all();
    }

    /// Ends the thread.
    pub(super) fn stop(&self) {
        lock(&self.state).is_stopping = true;
        self.wakes.notify_all();
    }

    fn goes_on(&self) -> bool {
        !lock(&self.state).is_stopping
    }

    /// Waits for a request; false when the thread is to end.
    fn wait_for_request(&self) -> bool {
        let mut state = lock(&self.state);
        while !state.is_wanted && !state.is_stopping {
            state = wait(&self.wakes, state);
        }
        state.is_wanted = false;
        !state.is_stopping
    }
}

/// The thread's body; ends after [`Measuring::stop`].
pub(super) fn run(hub: &Arc<Hub>) {
    let mut buffer = ReadBuffer::default();
    let mut effects = Effects::default();
    let goes_on = || hub.measuring().goes_on();
    // Chunk by chunk: a consumer may wait for what the queue asked for.
    let conclude = |effects: &mut Effects| hub.carry_out(effects);
    while hub.measuring().wait_for_request() {
        for queue in hub.broker.durable_queues() {
            // Runs first: one that is paged in meanwhile comes with its entries.
            measure_runs(hub, &queue, &mut buffer, &mut effects);
            measure_entries(hub, &queue, &mut buffer, &mut effects, &goes_on, &conclude);
        }
    }
}

fn measure_entries(
    hub: &Hub,
    queue: &QueueHandle,
    buffer: &mut ReadBuffer,
    effects: &mut Effects,
    goes_on: &dyn Fn() -> bool,
    conclude: &dyn Fn(&mut Effects),
) {
    in_chunks(&queue.unsized_entries(), goes_on, |chunk| {
        let sizes = Sizes {
            entries: read_sizes(hub, queue, chunk, buffer),
            runs: Vec::new(),
        };
        hub.broker.sized(queue, &sizes, hub.now_ms(), effects);
        conclude(effects);
        true
    });
}

fn measure_runs(hub: &Hub, queue: &QueueHandle, buffer: &mut ReadBuffer, effects: &mut Effects) {
    let goes_on = || hub.measuring().goes_on();
    let mut from = 0;
    loop {
        let unknown = queue.unsized_runs(from, RUNS_AT_ONCE);
        let Some(last) = unknown.last() else { return };
        from = last.number + 1;
        for run in unknown {
            if !goes_on() {
                return;
            }
            // Whoever wants its messages learns why it cannot be read.
            let Ok(entries) = hub.storage.read_run(queue.id(), &run) else {
                continue;
            };
            let places = entries.iter().map(|entry| (entry.seq, entry.position));
            let places: Vec<(Seq, Position)> = places.collect();
            let mut content_bytes = 0;
            let is_measured = in_chunks(&places, &goes_on, |chunk| {
                let sizes = read_sizes(hub, queue, chunk, buffer);
                content_bytes += sizes.iter().map(|(_, len)| u64::from(*len)).sum::<u64>();
                sizes.len() == chunk.len()
            });
            // The sum of some of them would pass for that of all.
            if !is_measured {
                continue;
            }
            let sizes = Sizes {
                entries: Vec::new(),
                runs: vec![(run, content_bytes)],
            };
            hub.broker.sized(queue, &sizes, hub.now_ms(), effects);
            hub.carry_out(effects);
        }
    }
}

/// Has `measure` go through the places in parts of about [`CHUNK_BYTES`]. False when it was stopped, or `measure` answered so.
fn in_chunks(
    places: &[(Seq, Position)],
    goes_on: &dyn Fn() -> bool,
    mut measure: impl FnMut(&[(Seq, Position)]) -> bool,
) -> bool {
    let mut rest = places;
    while !rest.is_empty() {
        let (chunk, later) = rest.split_at(chunk_len(rest));
        if !goes_on() || !measure(chunk) {
            return false;
        }
        rest = later;
    }
    true
}

fn chunk_len(entries: &[(Seq, Position)]) -> usize {
    let mut sum_bytes = 0;
    let fitting = entries.iter().take_while(|(_, position)| {
        sum_bytes += u64::from(position.len_bytes);
        sum_bytes <= CHUNK_BYTES
    });
    fitting.count().max(1)
}

/// Sizes of bodies. One that cannot be read has none: whoever wants the message learns why.
fn read_sizes(
    hub: &Hub,
    queue: &QueueHandle,
    entries: &[(Seq, Position)],
    buffer: &mut ReadBuffer,
) -> Vec<(Seq, u32)> {
    let payloads = hub.storage.read_many(queue.id(), entries, buffer);
    let read = entries.iter().zip(payloads);
    read.filter_map(|((seq, _), payload)| {
        let message = Message::decode_payload(payload.ok()?).ok()?;
        let body_bytes = u32::try_from(message.body_len()).unwrap_or(u32::MAX);
        Some((*seq, body_bytes))
    })
    .collect()
}

fn drop_heads(hub: &Hub, effects: &mut Effects) {
    loop {
        let loads = std::mem::take(&mut effects.run_loads);
        let (now, later): (Vec<_>, Vec<_>) =
            loads.into_iter().partition(|load| load.queue.is_too_long());
        effects.run_loads = later;
        if now.is_empty() {
            return;
        }
        for load in now {
            load_runs(hub, load, effects);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::storage::types::Lsn;

    /// Entries each of which fills a chunk.
    fn places(count: u64) -> Vec<(Seq, Position)> {
        let len_bytes = u32::try_from(CHUNK_BYTES).expect("small");
        let place = |number| {
            (
                Seq(number),
                Position {
                    lsn: Lsn(number),
                    len_bytes,
                },
            )
        };
        (1..=count).map(place).collect()
    }

    #[test]
    fn a_stop_waits_for_one_chunk_only() {
        let count = Cell::new(0);
        let is_whole = in_chunks(&places(5), &|| count.get() < 2, |chunk| {
            assert_eq!(chunk.len(), 1);
            count.set(count.get() + 1);
            true
        });
        assert!(!is_whole, "a part of a run passed for the whole");
        assert_eq!(count.get(), 2);
    }

    #[test]
    fn what_cannot_be_read_ends_the_measure_of_its_run() {
        let mut count = 0;
        let is_whole = in_chunks(&places(5), &|| true, |_| {
            count += 1;
            count < 3
        });
        assert!(!is_whole);
        assert_eq!(count, 3);
        assert!(in_chunks(&places(5), &|| true, |_| true));
    }
}
