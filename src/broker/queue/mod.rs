//! Queues: ordered messages, the consumers that wait for them, and the one critical section in which a
//! queue changes, the log learns of it and deliveries leave.
//!
//! ```text
//!              publish / requeue / reveal                     settle (ack)
//!   publisher ------------------------> [ Ready ] --dispatch--> [ Unacked ] ------> gone
//!                                          |  ^------ requeue ------'  | reject
//!                     expire, max-length   v                           v
//!                                       [ Leaving ] --{PUBLISH targets, settle}--> gone
//!   tx.commit --> [ Hidden ] --durable--> Ready
//! ```
//!
//! Invariants, cited by number in the code:
//! 1. Every record is pushed while the locks of all queues it names are held; they are taken in ascending
//!    queue id by [`lock_queues`]. So log order is the order in which each queue changed.
//! 2. Nothing under a queue lock waits, wakes a thread or calls back: that is collected in [`Effects`].
//! 3. A range in a settle record names no entry that stays.
//! 4. A logged message is delivered only when a reservation above it is durable or precedes its own
//!    PUBLISH in the log.
//! 5. An entry is in one state at a time, and the counters of a queue are the sums over its entries.
//!
//! The functions of this module take the locks themselves. They are called **without** the topology lock
//! (dead-lettering routes, which takes it), except [`delete`], which never routes.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};

use super::arguments::QueueArguments;
use super::command::{ConfirmAt, ConsumerId, Delivery, SettleOutcome, Unacked};
use super::consumer::{ChannelCredit, ConsumerSpec};
use super::dead_letter::DeadLetterRouter;
use super::effects::Effects;
use super::journal::Journal;
use super::message::Message;
use super::outbox::Outbox;
use crate::amqp::field_table::FieldTable;
use crate::amqp::short_string::ShortString;
use crate::storage::types::{Lsn, QueueId, Receipt, Seq};

/// A client connection, unique in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// What a queue is, fixed at its declaration.
#[derive(Clone, Debug)]
pub struct QueueSpec {
    /// Its name in the log and in the lock order.
    pub id: QueueId,
    /// Its virtual host.
    pub vhost: Arc<str>,
    /// Its name.
    pub name: ShortString,
    /// Kept over restarts (never true for an exclusive queue).
    pub is_durable: bool,
    /// The connection that owns it, when exclusive.
    pub exclusive_owner: Option<ConnectionId>,
    /// Deleted with its last consumer.
    pub is_auto_delete: bool,
    /// The arguments as declared, for equivalence and listings.
    pub arguments: FieldTable,
    /// The arguments as understood.
    pub settings: QueueArguments,
}

/// A queue. State behind one short mutex.
#[derive(Debug)]
pub struct Queue {
    spec: QueueSpec,
    is_deleted: AtomicBool,
    state: Mutex<QueueState>,
}

#[derive(Debug, Default)]
struct QueueState {}

/// A shared handle to a queue.
pub type QueueHandle = Arc<Queue>;

/// What all queues of a broker share.
pub struct QueueShared {
    journal: Arc<dyn Journal>,
    resident_max_bytes: u64,
    resident_bytes: AtomicU64,
    quarantined_count: AtomicU64,
}

/// What one call into the domain brings along.
pub struct Turn<'a> {
    /// The log and the memory budget.
    pub shared: &'a QueueShared,
    /// Finds the targets of dead letters.
    pub router: &'a dyn DeadLetterRouter,
    /// Unix milliseconds.
    pub now_ms: u64,
    /// What to do after all locks are released.
    pub effects: &'a mut Effects,
}

/// A target queue was deleted: nothing was done, route once more with a fresh topology (leaving out
/// queues that say [`Queue::is_deleted`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetDeleted;

/// What the caller must do about a queue after a consumer left or a timer fired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Aftermath {
    /// Nothing.
    Stays,
    /// Delete it with `if_unused`: auto-delete without consumers, or its lease ran out.
    Unused,
}

/// When [`delete`] deletes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeleteCondition {
    /// Only without consumers.
    pub if_unused: bool,
    /// Only without ready messages.
    pub if_empty: bool,
}

/// Why [`delete`] did not; checked in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeleteRefusal {
    /// Somebody deleted it before.
    AlreadyDeleted,
    /// It has ready messages.
    NotEmpty,
    /// It has consumers.
    InUse,
}

/// Why [`consume`] refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsumeRefusal {
    /// The queue is gone.
    Deleted,
    /// An exclusive consumer is there, or the new one wants to be alone and is not.
    ExclusiveUse,
}

/// Answer of [`get`].
#[derive(Clone, Debug)]
pub enum GetOutcome {
    /// A message and the ready messages left.
    Got(Delivery, u32),
    /// Nothing ready.
    Empty,
    /// The answer comes as `OutboxItem::GetReady`.
    Pending,
    /// The queue is gone.
    Deleted,
}

/// One publish of a transaction, routed.
#[derive(Clone, Debug)]
pub struct RoutedPublish {
    /// The message.
    pub message: Arc<Message>,
    /// Its targets, ascending by id, distinct.
    pub targets: Vec<QueueHandle>,
}

/// What a transaction came to.
#[derive(Clone, Debug)]
pub struct Committed {
    /// One per publish; `Nack` when a queue refused it.
    pub published: Vec<ConfirmAt>,
    /// Send commit-ok when this is durable.
    pub durable_at: Option<Lsn>,
}

/// A transaction holds more than one atomic group may; nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupTooLarge {
    /// Bytes of its publishes.
    pub size_bytes: u64,
    /// The limit.
    pub max_bytes: u64,
}

/// What [`purge`] removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purged {
    /// Ready messages removed.
    pub message_count: u32,
    /// Answer when this is durable.
    pub durable_at: Option<Lsn>,
}

/// Counts of a queue, for replies and listings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Messages that could be delivered.
    pub ready_count: u64,
    /// Body bytes of those.
    pub ready_bytes: u64,
    /// Delivered, not settled.
    pub unacked_count: u64,
    /// Consumers, active or not.
    pub consumer_count: u32,
    /// Messages that could not be read and are kept aside.
    pub quarantined_count: u64,
}

/// The message could not be read: it is missing or damaged on disk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message body cannot be read: {reason}")]
pub struct FetchFailure {
    /// Names file and offset.
    pub reason: String,
}

impl<'a> Turn<'a> {
    /// A call at `now_ms` whose consequences go to `effects`.
    pub fn new(
        shared: &'a QueueShared,
        router: &'a dyn DeadLetterRouter,
        now_ms: u64,
        effects: &'a mut Effects,
    ) -> Self {
        Self {
            shared,
            router,
            now_ms,
            effects,
        }
    }
}

impl QueueShared {
    /// Queues on `journal` that keep at most about `resident_max_bytes` of messages in memory that are
    /// on disk as well.
    #[must_use]
    pub fn new(journal: Arc<dyn Journal>, resident_max_bytes: u64) -> Self {
        todo!()
    }
    /// The log.
    #[must_use]
    pub fn journal(&self) -> &dyn Journal {
        &*self.journal
    }
}

impl Queue {
    /// A new, empty queue. `created_at` is the end of its META record when it is durable.
    #[must_use]
    pub fn new(spec: QueueSpec, created_at: Lsn, now_ms: u64) -> QueueHandle {
        todo!()
    }
    /// What it was declared as.
    #[must_use]
    pub fn spec(&self) -> &QueueSpec {
        &self.spec
    }
    /// Its id.
    #[must_use]
    pub fn id(&self) -> QueueId {
        self.spec.id
    }
    /// True once [`delete`] has happened.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        todo!()
    }
    /// Its counts.
    #[must_use]
    pub fn stats(&self) -> QueueStats {
        todo!()
    }
    /// Renews the lease of `x-expires` (declare; `get` does it itself).
    pub fn renew_lease(self: &Arc<Self>, now_ms: u64, effects: &mut Effects) {
        todo!()
    }
}

/// Puts messages that share one set of targets into all of them; one outcome per message is appended to
/// `out`. `targets` ascending by id, distinct; with no targets every outcome is `Now`.
///
/// # Errors
/// [`TargetDeleted`] before anything was done.
pub fn publish(
    turn: &mut Turn<'_>,
    targets: &[QueueHandle],
    messages: &[Arc<Message>],
    out: &mut Vec<ConfirmAt>,
) -> Result<(), TargetDeleted> {
    todo!()
}

/// Publishes and settlements of a transaction as one atomic group. Deleted targets are skipped.
///
/// # Errors
/// [`GroupTooLarge`] before anything was done.
pub fn commit(
    turn: &mut Turn<'_>,
    publishes: &[RoutedPublish],
    settlements: &[(SettleOutcome, Vec<Unacked>)],
) -> Result<Committed, GroupTooLarge> {
    todo!()
}

/// The publishes of transactions that are durable now become visible (`AfterDurable::Reveal`).
pub fn reveal(turn: &mut Turn<'_>, queue: &QueueHandle) {
    todo!()
}

/// Settles delivered messages of any queues; gives back the consumers' and channels' credit.
pub fn settle(turn: &mut Turn<'_>, items: &[Unacked], outcome: SettleOutcome) {
    todo!()
}

/// Adds a consumer and delivers what it may have.
///
/// # Errors
/// [`ConsumeRefusal`].
pub fn consume(
    turn: &mut Turn<'_>,
    queue: &QueueHandle,
    consumer: ConsumerSpec,
) -> Result<(), ConsumeRefusal> {
    todo!()
}

/// Removes a consumer; what it holds stays unacked.
pub fn cancel(turn: &mut Turn<'_>, queue: &QueueHandle, consumer: ConsumerId) -> Aftermath {
    todo!()
}

/// Takes one message for `basic.get`.
pub fn get(
    turn: &mut Turn<'_>,
    queue: &QueueHandle,
    channel: u16,
    outbox: &Arc<Outbox>,
    is_no_ack: bool,
) -> GetOutcome {
    todo!()
}

/// Forgets a `get` that is pending; for a channel that ends while it waits.
pub fn abandon_get(queue: &QueueHandle, channel: u16, outbox: &Arc<Outbox>) {
    todo!()
}

/// Removes all ready messages.
pub fn purge(turn: &mut Turn<'_>, queue: &QueueHandle) -> Purged {
    todo!()
}

/// Deletes a queue: `push_meta` logs it (for a durable queue) under the queue's lock, consumers are told,
/// messages are gone. Returns the ready messages removed. May be called with the topology lock held.
///
/// # Errors
/// [`DeleteRefusal`]; `push_meta` was not called.
pub fn delete(
    turn: &mut Turn<'_>,
    queue: &QueueHandle,
    condition: DeleteCondition,
    push_meta: impl FnOnce(),
) -> Result<u32, DeleteRefusal> {
    todo!()
}

/// Tries again to deliver: an outbox was drained, or a reservation is durable (`AfterDurable::Redispatch`).
pub fn dispatch(turn: &mut Turn<'_>, queue: &QueueHandle) {
    todo!()
}

/// Sets the limit of a channel (`basic.qos` global) and resumes the queues it had stopped.
pub fn set_channel_prefetch(turn: &mut Turn<'_>, credit: &Arc<ChannelCredit>, count: u16) {
    todo!()
}

/// Bodies that `Effects::fetches` asked for, in any order.
pub fn fetched(
    turn: &mut Turn<'_>,
    queue: &QueueHandle,
    results: Vec<(Seq, Result<bytes::Bytes, FetchFailure>)>,
) {
    todo!()
}

/// A timer armed by `Effects::timers` is due.
pub fn timer_due(turn: &mut Turn<'_>, queue: &QueueHandle) -> Aftermath {
    todo!()
}
