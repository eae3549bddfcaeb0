//! A consumer: reads its queues, enters every message into its ledger, and acknowledges once a read.

use crate::args::{AckMode, Args};
use crate::clock::Clock;
use crate::connection::{Connection, check_harmless};
use crate::error::BenchError;
use crate::histogram::Histogram;
use crate::input::Event;
use crate::ledger::Ledger;
use crate::message::Stamp;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use stratamq::amqp::method::{Method, basic};
use stratamq::amqp::short_string::ShortString;

/// What the consumers and the main thread tell each other.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Different messages received, by all consumers.
    pub(crate) received_count: AtomicU64,
    /// All is received, or given up: go home.
    pub(crate) is_over: AtomicBool,
}

/// What a consumer has received.
pub(crate) struct Consumed {
    pub(crate) ledger: Ledger,
    /// From the publisher's write to this consumer's read.
    pub(crate) latency: Histogram,
    /// Deliveries that said redelivered=true.
    pub(crate) redelivered_count: u64,
    /// Messages behind a later one of the same publisher in the same queue.
    pub(crate) out_of_order_count: u64,
    /// When the first and the last message came.
    pub(crate) first_ns: Option<u64>,
    pub(crate) last_ns: u64,
    /// Why it ended early.
    pub(crate) error: Option<BenchError>,
}

/// The last sequence number that each queue has brought of each publisher.
#[derive(Default)]
struct Order {
    last_seq: Vec<Vec<Option<u64>>>,
}

impl Order {
    /// Enters a message that is in the ledger already, so its publisher's number is a sane one; false when it comes too late.
    fn enter(&mut self, queue: usize, stamp: Stamp) -> bool {
        let publisher = usize::try_from(stamp.publisher).unwrap_or(usize::MAX);
        if self.last_seq.len() <= queue {
            self.last_seq.resize(queue + 1, Vec::new());
        }
        let publishers = &mut self.last_seq[queue];
        if publishers.len() <= publisher {
            publishers.resize(publisher + 1, None);
        }
        let before = publishers[publisher].replace(stamp.seq);
        before < Some(stamp.seq)
    }
}

/// A delivery whose body has not come yet.
struct Pending {
    queue: usize,
    tag: u64,
    is_redelivered: bool,
    /// Bytes of body to come; `None` before the header.
    left_bytes: Option<u64>,
    stamp: Option<Stamp>,
}

/// A connected consumer, subscribed to its queues.
pub(crate) struct Consumer {
    connection: Connection,
    ack: AckMode,
    order: Option<Order>,
    /// Latencies mean something when the messages were stamped by this run's clock.
    is_clock_ours: bool,
    queue_count: usize,
    /// Queues that get a copy of each message: each copy counts as one of another publisher.
    copies: u32,
    pending: Option<Pending>,
    /// The last complete delivery that is not acknowledged.
    unacked_tag: Option<u64>,
    consumed: Consumed,
}

impl Consumer {
    /// Connects and subscribes. Without a `run` the messages are those of an earlier one.
    pub(crate) fn connect(args: &Args, index: u32, run: Option<u32>) -> Result<Self, BenchError> {
        let mut connection = Connection::open(&args.url)?;
        let qos = basic::Qos {
            prefetch_count: args.prefetch,
            ..basic::Qos::default()
        };
        connection.call(qos, |method| matches!(method, Method::BasicQosOk(_)))?;
        let mut consumer = Self {
            connection,
            ack: args.ack,
            order: args.is_order_known().then(Order::default),
            is_clock_ours: run.is_some(),
            queue_count: args.queues as usize,
            copies: args.copies(),
            pending: None,
            unacked_tag: None,
            consumed: Consumed {
                ledger: match args.takes_any_delivery {
                    true => Ledger::of_any(),
                    false => Ledger::new(run),
                },
                latency: Histogram::new(),
                redelivered_count: 0,
                out_of_order_count: 0,
                first_ns: None,
                last_ns: 0,
                error: None,
            },
        };
        for queue in args.queues_of(index) {
            // The consumer tag says which queue a delivery comes from. No answer is awaited: deliveries may come before it.
            let consume = basic::Consume {
                queue: ShortString::from_text_cut(&args.queue_name(queue)),
                consumer_tag: ShortString::from_text_cut(&queue.to_string()),
                no_ack: args.ack == AckMode::Auto,
                nowait: true,
                ..basic::Consume::default()
            };
            consumer.connection.put(consume, 1);
        }
        Ok(consumer)
    }

    /// Sends the subscriptions and consumes until the main thread says that it is over.
    pub(crate) fn consume(mut self, clock: Clock, progress: &Progress) -> Consumed {
        self.consumed.error = self.consume_all(clock, progress).err();
        self.connection.close();
        self.consumed
    }

    fn consume_all(&mut self, clock: Clock, progress: &Progress) -> Result<(), BenchError> {
        let mut goes_on = || !progress.is_over.load(Ordering::Relaxed);
        self.connection.send(&mut goes_on)?;
        while goes_on() {
            if !self.connection.fill()? {
                continue;
            }
            let new_count = self.take_deliveries(clock.now_ns())?;
            if let Some(delivery_tag) = self
                .unacked_tag
                .take()
                .filter(|_| self.ack == AckMode::Manual)
            {
                self.connection.put(
                    basic::Ack {
                        delivery_tag,
                        multiple: true,
                    },
                    1,
                );
            }
            self.connection.send(&mut goes_on)?;
            // A statistic, and the end of the run: it orders nothing.
            progress
                .received_count
                .fetch_add(new_count, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Takes what a read has brought; returns how many new messages that were.
    fn take_deliveries(&mut self, now_ns: u64) -> Result<u64, BenchError> {
        let before = self.consumed.ledger.unique_count;
        while let Some(event) = self.connection.input.next()? {
            let is_complete = match (event, &mut self.pending) {
                (
                    Event::Deliver {
                        consumer_tag,
                        tag,
                        is_redelivered,
                    },
                    pending @ None,
                ) => {
                    *pending = Some(Pending {
                        queue: queue_of(consumer_tag, self.queue_count)?,
                        tag,
                        is_redelivered,
                        left_bytes: None,
                        stamp: None,
                    });
                    false
                }
                (
                    Event::Header {
                        body_size_bytes, ..
                    },
                    Some(
                        pending @ Pending {
                            left_bytes: None, ..
                        },
                    ),
                ) => {
                    pending.left_bytes = Some(body_size_bytes);
                    body_size_bytes == 0
                }
                (
                    Event::Body(part),
                    Some(Pending {
                        left_bytes: Some(left),
                        stamp,
                        ..
                    }),
                ) => {
                    *stamp = stamp.or_else(|| Stamp::decode(part));
                    *left = left.checked_sub(part.len() as u64).ok_or_else(|| {
                        BenchError::Protocol("a body longer than announced".to_owned())
                    })?;
                    *left == 0
                }
                (other @ (Event::Deliver { .. } | Event::Header { .. } | Event::Body(_)), _) => {
                    return Err(BenchError::Protocol(format!(
                        "content out of order: {other:?}"
                    )));
                }
                (other, _) => {
                    check_harmless(&other)?;
                    false
                }
            };
            if is_complete && let Some(pending) = self.pending.take() {
                self.enter(&pending, now_ns);
            }
        }
        Ok(self.consumed.ledger.unique_count - before)
    }

    fn enter(&mut self, pending: &Pending, now_ns: u64) {
        let consumed = &mut self.consumed;
        consumed.first_ns.get_or_insert(now_ns);
        consumed.last_ns = now_ns;
        consumed.redelivered_count += u64::from(pending.is_redelivered);
        let stamp = pending.stamp.map(|stamp| Stamp {
            publisher: copy_of(stamp.publisher, pending.queue, self.copies),
            ..stamp
        });
        let is_new = consumed.ledger.enter(stamp);
        if let Some(stamp) = stamp.filter(|_| is_new) {
            if self.is_clock_ours {
                consumed
                    .latency
                    .record(now_ns.saturating_sub(stamp.sent_ns), 1);
            }
            // A redelivered message is where it was before; others may have overtaken it rightly.
            if let Some(order) = self.order.as_mut().filter(|_| !pending.is_redelivered) {
                consumed.out_of_order_count += u64::from(!order.enter(pending.queue, stamp));
            }
        }
        self.unacked_tag = Some(pending.tag);
        if self.ack == AckMode::Each {
            let ack = basic::Ack {
                delivery_tag: pending.tag,
                multiple: false,
            };
            self.connection.put(ack, 1);
        }
    }
}

/// The number under which a ledger keeps what `publisher` sent to `queue`, when every message has `copies`.
pub(crate) fn copy_of(publisher: u32, queue: usize, copies: u32) -> u32 {
    let queue = u32::try_from(queue).unwrap_or(u32::MAX);
    // What a foreign body says may be anything: the ledger knows no such publisher.
    let first = publisher.checked_mul(copies);
    let copy = first.and_then(|first| first.checked_add(queue % copies));
    copy.unwrap_or(u32::MAX)
}

/// The queue a consumer tag of ours stands for.
fn queue_of(consumer_tag: &[u8], queue_count: usize) -> Result<usize, BenchError> {
    let text = std::str::from_utf8(consumer_tag).ok();
    let queue = text
        .and_then(|text| text.parse().ok())
        .filter(|queue| *queue < queue_count);
    queue.ok_or_else(|| BenchError::Protocol("a delivery to a consumer we are not".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_a_message_count_as_messages_of_different_publishers() {
        let all =
            (0..3).flat_map(|publisher| (0..5).map(move |queue| copy_of(publisher, queue, 5)));
        assert!(all.eq(0..15));
        assert_eq!(
            copy_of(7, 3, 1),
            7,
            "without fan-out the queue does not matter"
        );
        assert_eq!(copy_of(u32::MAX, 1, 5), u32::MAX);
    }
}
