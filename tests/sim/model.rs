//! The state that a store should have, as a pure value.
//!
//! A [`State`] knows nothing of files or positions: queues are sets of numbered messages, a message is the number of
//! its body. Events are applied one by one; "recovery yields a prefix of the log" is then a comparison of the
//! recovered state with the states after the first k steps.

use std::collections::BTreeMap;

use stratamq::disk::sim::Random;
use stratamq::storage::types::{QueueId, Seq, SeqRange};

/// Names the content of a message: its payload is a function of the number and the length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Body {
    /// Unique in one history.
    pub(super) number: u64,
    /// Length of the payload, at least [`Body::LEN_MIN_BYTES`].
    pub(super) len_bytes: u32,
}

impl Body {
    /// A payload begins with the number, the length, and at least four bytes that follow from both.
    pub(super) const LEN_MIN_BYTES: u32 = 16;

    /// All bytes of the payload.
    pub(super) fn payload(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len_bytes as usize + 8);
        bytes.extend_from_slice(&self.number.to_le_bytes());
        bytes.extend_from_slice(&self.len_bytes.to_le_bytes());
        let mut random = Random::new(self.number ^ u64::from(self.len_bytes) << 40);
        while bytes.len() < self.len_bytes as usize {
            bytes.extend_from_slice(&random.next_u64().to_le_bytes());
        }
        bytes.truncate(self.len_bytes as usize);
        bytes
    }

    /// The body whose payload these bytes are, if they are one to the last bit.
    pub(super) fn of_payload(bytes: &[u8]) -> Option<Self> {
        let number = u64::from_le_bytes(*bytes.first_chunk()?);
        let len_bytes = u32::from_le_bytes(*bytes.get(8..)?.first_chunk()?);
        let body = Self { number, len_bytes };
        (len_bytes as usize == bytes.len() && body.payload() == bytes).then_some(body)
    }
}

/// A message in one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) body: Body,
    pub(super) expires_at_ms: u64,
    pub(super) priority: u8,
    pub(super) delivery_count: u32,
    pub(super) is_redelivered: bool,
}

/// A queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Queue {
    pub(super) next_seq: Seq,
    pub(super) reserved_upto: Seq,
    pub(super) messages: BTreeMap<Seq, Message>,
}

impl Queue {
    fn new() -> Self {
        Self {
            next_seq: Seq(1),
            reserved_upto: Seq(0),
            messages: BTreeMap::new(),
        }
    }

    fn name(&mut self, seq: Seq) {
        self.next_seq = self.next_seq.max(Seq(seq.0 + 1));
    }

    /// The tail that a recovered queue has: above all that was named or may have been delivered.
    pub(super) fn tail(&self) -> Seq {
        self.next_seq.max(self.reserved_upto)
    }
}

/// One event of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// META number `.0` without effect on queues.
    Meta(u64),
    /// META number `.0` that creates a queue.
    Created(u64, QueueId),
    /// META number `.0` that deletes a queue.
    Deleted(u64, QueueId),
    /// A message for some queues: place and expiry in each.
    Published {
        refs: Vec<(QueueId, Seq, u64)>,
        body: Body,
        priority: u8,
    },
    /// Messages that left.
    Settled {
        queue: QueueId,
        ranges: Vec<SeqRange>,
    },
    /// A message that came back.
    Requeued {
        queue: QueueId,
        seq: Seq,
        delivery_count: u32,
    },
    /// A reservation.
    Reserved { queue: QueueId, upto: Seq },
    /// A clean stop set the exact delivery state: the reservation, and which messages were delivered.
    Exact {
        queue: QueueId,
        reserved_upto: Seq,
        delivered: Vec<Seq>,
    },
}

impl Event {
    /// Number of the META record, if it is one.
    pub(super) fn meta_number(&self) -> Option<u64> {
        match self {
            Self::Meta(number) | Self::Created(number, _) | Self::Deleted(number, _) => {
                Some(*number)
            }
            _ => None,
        }
    }
}

/// The whole store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) queues: BTreeMap<QueueId, Queue>,
    /// Numbers of all META records, in order.
    pub(super) meta: Vec<u64>,
}

impl State {
    /// Applies one event. Events of queues that do not exist change nothing: dead refs.
    pub(super) fn apply(&mut self, event: &Event) {
        self.meta.extend(event.meta_number());
        match event {
            Event::Meta(_) => {}
            Event::Created(_, id) => drop(self.queues.insert(*id, Queue::new())),
            Event::Deleted(_, id) => drop(self.queues.remove(id)),
            Event::Published {
                refs,
                body,
                priority,
            } => {
                for (id, seq, expires_at_ms) in refs {
                    let message = Message {
                        body: *body,
                        expires_at_ms: *expires_at_ms,
                        priority: *priority,
                        delivery_count: 0,
                        is_redelivered: false,
                    };
                    if let Some(queue) = self.queues.get_mut(id) {
                        queue.name(*seq);
                        queue.messages.insert(*seq, message);
                    }
                }
            }
            Event::Settled { queue, ranges } => {
                if let Some(queue) = self.queues.get_mut(queue) {
                    for range in ranges {
                        queue.name(range.last);
                        queue
                            .messages
                            .retain(|seq, _| *seq < range.first || *seq > range.last);
                    }
                }
            }
            Event::Requeued {
                queue,
                seq,
                delivery_count,
            } => {
                if let Some(queue) = self.queues.get_mut(queue) {
                    queue.name(*seq);
                    if let Some(message) = queue.messages.get_mut(seq) {
                        message.delivery_count = *delivery_count;
                        message.is_redelivered = true;
                    }
                }
            }
            Event::Reserved { queue, upto } => {
                if let Some(queue) = self.queues.get_mut(queue) {
                    queue.reserved_upto = queue.reserved_upto.max(*upto);
                }
            }
            Event::Exact {
                queue,
                reserved_upto,
                delivered,
            } => {
                if let Some(queue) = self.queues.get_mut(queue) {
                    queue.reserved_upto = *reserved_upto;
                    for seq in delivered {
                        if let Some(message) = queue.messages.get_mut(seq) {
                            message.is_redelivered = true;
                        }
                    }
                }
            }
        }
    }
}
