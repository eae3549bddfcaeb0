//! The domain's part in keeping memory within its limit: which messages leave it, queue by queue.

use std::sync::Arc;

use super::effects::Effects;
use super::facade::Broker;
use super::message::Message;
use super::queue::{self, QueueHandle};
use crate::storage::types::{Position, Seq};
use crate::sync::read;

/// A message that is nowhere but in memory and is to be written elsewhere.
#[derive(Clone, Debug)]
pub struct ToSpill {
    /// Its queue; the place it gets goes to [`Broker::spilled`].
    pub queue: QueueHandle,
    /// Its place there.
    pub seq: Seq,
    /// What is to be written.
    pub message: Arc<Message>,
}

/// What one call of [`Broker::shed`] came to.
#[derive(Debug, Default)]
pub struct Shed {
    /// Bytes that were dropped, since they are on disk.
    pub dropped_bytes: u64,
    /// What must be written before more can be dropped; messages of one queue stand together.
    pub to_spill: Vec<ToSpill>,
    /// Bytes of those.
    pub to_spill_bytes: u64,
}

impl Broker {
    /// Bytes of messages in the queues' memory, and of those that exchanges remember, about.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        self.shared.queues.resident_bytes()
    }

    /// Bytes of messages that the queues may keep in memory.
    #[must_use]
    pub fn resident_max_bytes(&self) -> u64 {
        self.shared.options.resident_max_bytes
    }

    /// Makes room for `want_bytes`: the queues with the most in memory give first.
    pub fn shed(&self, want_bytes: u64, now_ms: u64, effects: &mut Effects) -> Shed {
        let mut queues: Vec<(u64, QueueHandle)> = self
            .all_queues()
            .into_iter()
            .map(|queue| (queue.resident_bytes(), queue))
            .filter(|(bytes, _)| *bytes > 0)
            .collect();
        queues.sort_unstable_by_key(|(bytes, queue)| (std::cmp::Reverse(*bytes), queue.id()));
        let mut sum = Shed::default();
        for (_, queue) in queues {
            let done_bytes = sum.dropped_bytes + sum.to_spill_bytes;
            if done_bytes >= want_bytes {
                break;
            }
            let mut turn = self.shared.turn(now_ms, effects);
            let shed = queue::shed(&mut turn, &queue, want_bytes - done_bytes);
            sum.dropped_bytes += shed.dropped_bytes;
            sum.to_spill_bytes += shed.to_spill_bytes;
            let handed_out = shed.to_spill.into_iter().map(|(seq, message)| ToSpill {
                queue: Arc::clone(&queue),
                seq,
                message,
            });
            sum.to_spill.extend(handed_out);
        }
        sum
    }

    /// Messages of `queue` that [`Broker::shed`] handed out were written to these places.
    pub fn spilled(
        &self,
        queue: &QueueHandle,
        places: &[(Seq, Position)],
        now_ms: u64,
        effects: &mut Effects,
    ) {
        queue::spilled(&mut self.shared.turn(now_ms, effects), queue, places);
    }

    /// Messages of `queue` were written again elsewhere: (message, from, to).
    pub fn moved(
        &self,
        queue: &QueueHandle,
        moves: &[(Seq, Position, Position)],
        now_ms: u64,
        effects: &mut Effects,
    ) {
        queue::moved(&mut self.shared.turn(now_ms, effects), queue, moves);
    }

    /// Every queue of every vhost, those included in which delayed messages wait.
    #[must_use]
    pub fn all_queues(&self) -> Vec<QueueHandle> {
        let vhosts: Vec<_> = read(&self.shared.vhosts).values().cloned().collect();
        let mut queues = Vec::new();
        for vhost in vhosts {
            let topology = vhost.read();
            queues.extend(topology.queues().chain(topology.delay_queues()).cloned());
        }
        queues
    }
}
