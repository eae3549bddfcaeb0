//! The commands a connection gives to the domain, and the answers.
//!
//! A command is one AMQP method after the session has checked its form, resolved delivery tags and the
//! "last declared queue" shortcut. Every answer may name an LSN: it is sent only when that is durable.

use std::sync::Arc;

use super::message::Message;
use super::queue::QueueHandle;
use crate::amqp::field_table::FieldTable;
use crate::amqp::short_string::ShortString;
use crate::storage::types::Receipt;
pub use crate::storage::types::{Lsn, Seq, SeqRange};

/// Names a consumer, unique in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConsumerId(pub u64);

/// A message on its way to a consumer or to `basic.get`.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Channel it goes to.
    pub channel: u16,
    /// Consumer it goes to; `None` for `basic.get`.
    pub consumer: Option<ConsumerId>,
    /// Queue it came from.
    pub queue: QueueHandle,
    /// Its place there; settle it with this.
    pub seq: Seq,
    /// It may have been delivered before.
    pub is_redelivered: bool,
    /// Already settled: the consumer takes without acknowledgement.
    pub is_settled: bool,
    /// The message.
    pub message: Arc<Message>,
}

/// One message to publish. The session has assembled and checked its content.
#[derive(Clone, Debug)]
pub struct Publish {
    /// Channel it came on.
    pub channel: u16,
    /// Return it when no queue takes it.
    pub is_mandatory: bool,
    /// The message, exchange and routing key included.
    pub message: Arc<Message>,
}

/// How the broker answers for a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfirmAt {
    /// Acknowledge now (unroutable, transient, or nothing to store).
    Now,
    /// Acknowledge when this LSN is durable.
    Durable(Lsn),
    /// Negative acknowledgement: a queue refused it.
    Nack,
}

impl ConfirmAt {
    /// For a message that a queue refused or not, and that is in the log by the push with this receipt or not.
    #[inline]
    pub(super) fn of(is_refused: bool, is_logged: bool, receipt: Receipt) -> Self {
        match (is_refused, is_logged) {
            (true, _) => Self::Nack,
            (false, true) => Self::Durable(receipt.end),
            (false, false) => Self::Now,
        }
    }
}

/// Outcome of publishes of one channel that follow each other.
#[derive(Clone, Debug)]
pub struct PublishedRun {
    /// Their channel.
    pub channel: u16,
    /// How many they are.
    pub count: u64,
    /// When and how to confirm each of them.
    pub confirm: ConfirmAt,
    /// Those that no queue took though they were mandatory, in their order and as they were published: to be sent back
    /// before the confirm.
    pub returned: Vec<Arc<Message>>,
}

/// Outcome of one publish of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// When and how to confirm.
    pub confirm: ConfirmAt,
    /// No queue took it (send `basic.return` first when mandatory).
    pub is_unroutable: bool,
}

/// What to do with delivered messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettleOutcome {
    /// `basic.ack`.
    Ack,
    /// `basic.reject`/`nack` without requeue: dead-letter or drop.
    Reject,
    /// Back to the original position, as a failed delivery: `reject` with requeue, and what a channel held when it
    /// ended.
    Requeue,
    /// Back to the original position, as if nothing had been tried: `nack` with requeue, `recover`, and what did not
    /// reach its consumer.
    Return,
}

impl SettleOutcome {
    /// True when the message goes back to its queue.
    #[must_use]
    pub fn is_requeue(self) -> bool {
        matches!(self, Self::Requeue | Self::Return)
    }
}

/// Delivered, unsettled messages that follow each other in their queue, as the session remembers them behind delivery tags.
#[derive(Clone, Debug)]
pub struct Unacked {
    /// Their queue.
    pub queue: QueueHandle,
    /// Their places there.
    pub seqs: SeqRange,
    /// Consumer that holds them; `None` for `basic.get`.
    pub consumer: Option<ConsumerId>,
}

impl Unacked {
    /// How many they are.
    #[must_use]
    pub fn count(&self) -> u64 {
        (self.seqs.last.0 - self.seqs.first.0).saturating_add(1)
    }

    /// Adds what stands behind `items` in the order of delivery: to the last of them where it follows that one in its queue.
    /// So many deliveries of one queue are one item, and nobody else has to hold their queue.
    pub fn join(
        items: &mut Vec<Self>,
        queue: &QueueHandle,
        consumer: Option<ConsumerId>,
        seqs: SeqRange,
    ) {
        if let Some(last) = items.last_mut()
            && last.seqs.last.0.checked_add(1) == Some(seqs.first.0)
            && last.consumer == consumer
            && Arc::ptr_eq(&last.queue, queue)
        {
            last.seqs.last = seqs.last;
            return;
        }
        items.push(Self {
            queue: Arc::clone(queue),
            seqs,
            consumer,
        });
    }
}

/// What an exchange is called and how it routes, as declared.
#[derive(Clone, Debug)]
pub struct ExchangeDeclare {
    /// Name.
    pub exchange: ShortString,
    /// Type as text, for example `topic`.
    pub kind: ShortString,
    /// Only check that it exists.
    pub is_passive: bool,
    /// Kept over restarts.
    pub is_durable: bool,
    /// Deleted with its last binding as source.
    pub is_auto_delete: bool,
    /// Refuses publishes from clients.
    pub is_internal: bool,
    /// `alternate-exchange` and others.
    pub arguments: FieldTable,
}

/// `queue.declare`.
#[derive(Clone, Debug)]
pub struct QueueDeclare {
    /// Name; empty for a server-generated one.
    pub queue: ShortString,
    /// Only check that it exists.
    pub is_passive: bool,
    /// Kept over restarts.
    pub is_durable: bool,
    /// Owned by this connection.
    pub is_exclusive: bool,
    /// Deleted with its last consumer.
    pub is_auto_delete: bool,
    /// `x-message-ttl` and others.
    pub arguments: FieldTable,
}

/// A binding, for bind and unbind of queues and exchanges.
#[derive(Clone, Debug)]
pub struct Bind {
    /// Queue or exchange that receives.
    pub destination: ShortString,
    /// True when the destination is a queue.
    pub is_to_queue: bool,
    /// Exchange that sends.
    pub source: ShortString,
    /// Binding key.
    pub routing_key: ShortString,
    /// Headers to match, and others.
    pub arguments: FieldTable,
}

/// `basic.consume`.
#[derive(Clone, Debug)]
pub struct Consume {
    /// Queue.
    pub queue: ShortString,
    /// The consumer tag; never empty (the session generates one).
    pub tag: ShortString,
    /// Deliveries are settled at once.
    pub is_no_ack: bool,
    /// No other consumer beside this one.
    pub is_exclusive: bool,
    /// Unacked deliveries it may hold; 0 for no limit.
    pub prefetch: u16,
    /// `x-priority` and others.
    pub arguments: FieldTable,
}

/// One command of a channel.
#[derive(Clone, Debug)]
pub enum Command {
    /// `exchange.declare`.
    ExchangeDeclare(ExchangeDeclare),
    /// `exchange.delete`.
    ExchangeDelete {
        /// Name.
        exchange: ShortString,
        /// Only when no binding has it as source.
        if_unused: bool,
    },
    /// `exchange.bind`, `queue.bind`.
    Bind(Bind),
    /// `exchange.unbind`, `queue.unbind`.
    Unbind(Bind),
    /// `queue.declare`.
    QueueDeclare(QueueDeclare),
    /// `queue.delete`.
    QueueDelete {
        /// Name.
        queue: ShortString,
        /// Only without consumers.
        if_unused: bool,
        /// Only without ready messages.
        if_empty: bool,
    },
    /// `queue.purge`.
    QueuePurge {
        /// Name.
        queue: ShortString,
    },
    /// `basic.consume`.
    Consume(Consume),
    /// `basic.cancel`.
    Cancel {
        /// The consumer.
        consumer: ConsumerId,
    },
    /// `basic.get`.
    Get {
        /// Name.
        queue: ShortString,
        /// The message is settled at once.
        is_no_ack: bool,
    },
    /// `basic.ack`, `nack`, `reject`, `recover`; in delivery tag order.
    Settle {
        /// The messages.
        items: Vec<Unacked>,
        /// What becomes of them.
        outcome: SettleOutcome,
    },
    /// `basic.qos` with the global bit: one limit for all consumers of the channel; 0 for none.
    ChannelPrefetch {
        /// The limit.
        count: u16,
    },
    /// `tx.commit`: all or nothing over a crash; first the publishes that were routed for the channel
    /// since the last commit or rollback, then settlements.
    TxCommit {
        /// How many publishes there are.
        publish_count: usize,
        /// Acks and rejects, in order.
        settlements: Vec<(SettleOutcome, Vec<Unacked>)>,
    },
    /// `tx.rollback`: forgets the publishes that were routed for the channel.
    TxRollback,
    /// A channel is opened. Answered by `Done`, or refused for a limit of the user.
    OpenChannel,
    /// The channel ends: cancel its consumers, then requeue what it holds.
    CloseChannel {
        /// All deliveries it has not settled, outbox included.
        unacked: Vec<Unacked>,
    },
}

impl Command {
    /// The deliveries it settles or gives back.
    #[must_use]
    pub fn into_unacked(self) -> Vec<Unacked> {
        match self {
            Self::Settle { items, .. } => items,
            Self::CloseChannel { unacked } => unacked,
            Self::TxCommit { settlements, .. } => {
                let items = settlements.into_iter().flat_map(|(_, items)| items);
                items.collect()
            }
            _ => Vec::new(),
        }
    }
}

impl Delivery {
    /// What the session remembers of it.
    #[must_use]
    pub fn unacked(&self) -> Unacked {
        Unacked {
            queue: self.queue.clone(),
            seqs: SeqRange {
                first: self.seq,
                last: self.seq,
            },
            consumer: self.consumer,
        }
    }

    /// The same, unless it is settled already.
    #[must_use]
    pub fn unsettled(&self) -> Option<Unacked> {
        (!self.is_settled).then(|| self.unacked())
    }
}

/// Answer to a command.
#[derive(Clone, Debug)]
pub struct Reply {
    /// What to tell the client.
    pub body: ReplyBody,
    /// Tell it only when this is durable; `None` for at once.
    pub durable_at: Option<Lsn>,
}

/// The body of a [`Reply`].
#[derive(Clone, Debug)]
pub enum ReplyBody {
    /// The plain `-ok` of the method, if it has one.
    Done,
    /// `queue.declare-ok`.
    QueueDeclared {
        /// Final name.
        queue: ShortString,
        /// Ready messages.
        messages: u32,
        /// Consumers.
        consumers: u32,
    },
    /// `queue.delete-ok`, `queue.purge-ok`.
    Removed {
        /// Ready messages removed.
        messages: u32,
    },
    /// `basic.consume-ok`.
    Consuming {
        /// The new consumer.
        consumer: ConsumerId,
        /// How long it may hold a delivery, 0 for any time; `None` when it does not say.
        timeout_ms: Option<u64>,
    },
    /// `basic.get-ok`.
    Got {
        /// The message.
        delivery: Delivery,
        /// Ready messages left.
        remaining: u32,
    },
    /// `basic.get-empty`.
    GotNothing,
    /// `basic.get` on a message whose body is on disk: hold the channel, the answer comes as
    /// [`OutboxItem::GetReady`](super::outbox::OutboxItem::GetReady).
    GetPending,
    /// `tx.commit-ok`, after these returns; outcomes in order of the publishes.
    Committed {
        /// One per publish.
        published: Vec<Published>,
    },
}
