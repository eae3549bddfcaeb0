//! Limits of length that hold from the first moment after a restart.
//!
//! What was unacked at a crash is ready afterwards, and a policy may have changed on the stopped directory: a queue can come back
//! with more than it may have. Its head is dropped before anybody looks. For that sizes of bodies are read that no index tells, and
//! runs that are in index files; mostly there are none, or few.

use super::hub::Hub;
use super::readers::load_runs;
use crate::broker::effects::Effects;
use crate::broker::message::Message;
use crate::broker::queue::QueueHandle;
use crate::storage::ReadBuffer;
use crate::storage::types::{Position, Seq};

/// Bytes of records that are read at once, but for one that is larger.
const CHUNK_BYTES: u64 = 8 << 20;

/// Has all queues drop what is too much.
pub(super) fn apply(hub: &Hub, effects: &mut Effects) {
    let mut buffer = ReadBuffer::default();
    for (queue, entries) in hub.broker.unsized_entries() {
        let mut rest = entries.as_slice();
        while !rest.is_empty() {
            let (chunk, later) = rest.split_at(chunk_len(rest));
            let sizes = read_sizes(hub, &queue, chunk, &mut buffer);
            hub.broker.sized(&queue, &sizes, hub.now_ms(), effects);
            rest = later;
        }
    }
    drop_heads(hub, effects);
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
