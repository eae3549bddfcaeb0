//! Queues: ordered messages, the consumers that wait for them, and the one critical section in which a
//! queue changes, the log learns of it and deliveries leave.
//!
//! ```text
//!              publish / requeue / reveal                     settle (ack)
//!   publisher ------------------------> [ Ready ] --dispatch--> [ Unacked ] ------> gone
//!                                          |  ^------ requeue ------'  | reject
//!                     expire, max-length   v                           v
//!                                       [ Leaving ] --{PUBLISH targets, settle}--> gone
//!                      nobody takes it     |  ^ again
//!                                          v  |
//!                                       [ Stuck ]
//!   tx.commit --> [ Hidden ] --durable--> Ready
//! ```
//!
//! Invariants, cited by number in the code:
//! 1. Every record is pushed while the locks of all queues it names are held; they are taken in ascending
//!    queue id by `lock_queues`. So log order is the order in which each queue changed.
//! 2. Nothing under a queue lock waits, wakes a thread or calls back: that is collected in [`Effects`].
//! 3. A range in a settle record names no entry that stays.
//! 4. A logged message is delivered only when a reservation above it is durable or precedes its own
//!    PUBLISH in the log.
//! 5. An entry is in one state at a time, and the counters of a queue are the sums over its entries.
//!
//! The functions of this module take the locks themselves. They are called **without** the topology lock
//! (dead-lettering routes, which takes it), except [`delete`], which never routes.

mod batch;
mod content;
mod death;
mod dispatch;
mod due;
mod group;
mod image;
mod lifecycle;
mod paging;
mod publish;
mod quarantine;
mod quorum;
mod rare;
mod read_ahead;
mod reservation;
mod seldom;
mod serve;
mod settle;
mod sizing;
mod slots;
mod spill;
mod state;
mod stuck;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use self::batch::Batch;
use self::paging::EntriesGauge;
use self::state::{Locked, QueueState};
use super::arguments::{Overflow, QueueArguments, QueueKind};
use super::command::{ConfirmAt, Delivery};
use super::consumer::ChannelCredit;
use super::dead_letter::{DeadLetterRouter, Warned};
use super::delayed::exchange_of;
use super::effects::Effects;
use super::journal::{Admitted, Journal};
use super::message::Message;
use super::salvage;
use crate::amqp::field_table::FieldTable;
use crate::amqp::short_string::ShortString;
use crate::storage::types::{Lsn, Pusher, QueueId, Seq};
use crate::sync::lock;

pub use self::dispatch::{abandon_get, decode_body, dispatch, fetched, get, outbox_drained};
pub use self::group::{Addressed, GROUP_QUEUES_MAX, publish_group};
pub use self::image::ImageKind;
pub use self::lifecycle::{cancel, consume, delete, purge, set_channel_prefetch, timer_due};
pub use self::paging::{IndexLimits, run_loaded};
pub use self::publish::{LoggedTargets, commit, commit_bytes, publish, reveal};
pub use self::quarantine::{Unreadable, quarantine};
pub use self::settle::settle;
pub use self::sizing::{Sizes, sized};
pub use self::spill::{Shed, moved, shed, spilled};

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
}

impl QueueSpec {
    /// The delayed exchange whose messages wait in it, if it is a delay queue: then nobody else can reach it.
    #[must_use]
    pub fn delays_for(&self) -> Option<ShortString> {
        exchange_of(self.name.as_str(), &self.arguments)
    }

    /// True for a queue of messages whose own declaration was lost.
    fn is_recovered(&self) -> bool {
        salvage::is_recovered(self.name.as_str(), &self.arguments)
    }
}

/// A queue. State behind one short mutex.
///
/// With a thousand queues a message finds the one it goes to in no cache near the processor, and waits for every line of
/// 64 bytes it touches. So what every message needs stands together, in this order, and the rest behind it.
#[derive(Debug)]
#[repr(C)]
pub struct Queue {
    id: QueueId,
    traits: Traits,
    is_deleted: AtomicBool,
    /// What the state's rules say of it. Without the lock only a hint: policies change it.
    has_length_limit: AtomicBool,
    state: Mutex<QueueState>,
    /// What operators have been told of its dead letters.
    warned: Warned,
    spec: QueueSpec,
}

/// With the two counts before it, a queue fits the allocator's class of 512 bytes.
const _: () = assert!(size_of::<Queue>() <= 496);

/// What every message asks of the spec of its queue.
#[derive(Clone, Copy, Debug)]
struct Traits {
    is_durable: bool,
    is_single_active: bool,
    is_quorum: bool,
    /// Entries go in the order of their time.
    is_delay: bool,
}

/// What every message asks of the settings of its queue. They change with policies, so this stands in the state.
#[derive(Clone, Copy, Debug)]
struct Rules {
    bound: Bound,
    has_ttl: bool,
    has_lease: bool,
}

/// What happens when a queue is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    /// It never is.
    None,
    /// The head goes.
    DropHead,
    /// What would make it so is refused.
    Refuse,
}

impl Rules {
    fn of(settings: &QueueArguments) -> Self {
        let is_bounded = settings.max_length.is_some() || settings.max_length_bytes.is_some();
        Self {
            bound: match settings.overflow {
                _ if !is_bounded => Bound::None,
                Overflow::DropHead => Bound::DropHead,
                Overflow::RejectPublish | Overflow::RejectPublishDlx => Bound::Refuse,
            },
            has_ttl: settings.message_ttl_ms.is_some(),
            has_lease: settings.expires_ms.is_some(),
        }
    }

    fn has_length_limit(self) -> bool {
        self.bound != Bound::None
    }

    fn drops_head(self) -> bool {
        self.bound == Bound::DropHead
    }
}

/// A shared handle to a queue.
pub type QueueHandle = Arc<Queue>;

/// Contents in memory beyond which a queue that nobody takes from keeps none of what is in the log: it is a backlog, and
/// a backlog is read from the log. Below that, a consumer that was away for a moment finds everything in memory. Half of what
/// the read buffers of all connections take together: with more, a backlog would hold them all, and every later message be copied.
const BACKLOG_RESIDENT_MAX_BYTES: u64 = 8 << 20;

/// What all queues of a broker share.
pub struct QueueShared {
    journal: Arc<dyn Journal>,
    resident_max_bytes: u64,
    resident_bytes: AtomicU64,
    /// Bytes of messages that exchanges remember.
    remembered_bytes: Arc<AtomicU64>,
    quarantined_count: AtomicU64,
    entries: EntriesGauge,
    /// Messages take the general way only.
    #[cfg(test)]
    is_roundabout: bool,
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
    /// Channels that have credit again, for queues that wait for it.
    resumed: Vec<Arc<ChannelCredit>>,
    /// Queues with messages on their way to a dead-letter exchange.
    dying: Vec<QueueHandle>,
    /// Messages that a queue refused and dead-letters.
    refused: Vec<Refused>,
}

/// A message that a queue refused and dead-letters, and the settings by which it did.
struct Refused {
    queue: QueueHandle,
    message: Arc<Message>,
    settings: Arc<QueueArguments>,
}

/// A target queue was deleted: route once more with a fresh topology (leaving out queues that say
/// [`Queue::is_deleted`]).
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
    /// A quorum queue serves no channel with a limit of its own.
    ChannelLimit,
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
            resumed: Vec::new(),
            dying: Vec::new(),
            refused: Vec::new(),
        }
    }
}

impl QueueShared {
    /// Queues on `journal` that keep at most about `resident_max_bytes` of messages in memory that are
    /// on disk as well.
    #[must_use]
    pub fn new(journal: Arc<dyn Journal>, resident_max_bytes: u64) -> Self {
        Self {
            journal,
            resident_max_bytes,
            resident_bytes: AtomicU64::new(0),
            remembered_bytes: Arc::default(),
            quarantined_count: AtomicU64::new(0),
            entries: EntriesGauge::new(IndexLimits::default()),
            #[cfg(test)]
            is_roundabout: false,
        }
    }

    /// False when messages are to take the general way, so that a test can compare.
    fn has_straight_way(&self) -> bool {
        #[cfg(test)]
        return !self.is_roundabout;
        #[cfg(not(test))]
        true
    }

    #[cfg(test)]
    fn set_roundabout(&mut self, is_roundabout: bool) {
        self.is_roundabout = is_roundabout;
    }

    /// Changes when queues use index files.
    #[must_use]
    pub fn with_index_limits(mut self, limits: IndexLimits) -> Self {
        self.entries = EntriesGauge::new(limits);
        self
    }

    /// Counts what exchanges remember as messages in memory.
    #[must_use]
    pub fn with_remembered(mut self, bytes: Arc<AtomicU64>) -> Self {
        self.remembered_bytes = bytes;
        self
    }

    /// What entries take in memory, and when they leave it.
    fn entries(&self) -> &EntriesGauge {
        &self.entries
    }

    /// The log.
    #[must_use]
    pub fn journal(&self) -> &dyn Journal {
        &*self.journal
    }

    /// Asks the log for room for PUBLISH records of so many bytes; `None` when `pusher` has to wait.
    #[must_use]
    pub fn admit(&self, bytes: u64, pusher: Pusher) -> Option<Admitted> {
        Admitted::ask(&self.journal, bytes, pusher)
    }

    /// Bytes of messages in memory, about: those that exchanges remember too.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        self.resident_bytes.load(Ordering::Relaxed) + self.remembered_bytes()
    }

    /// Bytes of the messages that exchanges remember.
    #[must_use]
    pub fn remembered_bytes(&self) -> u64 {
        self.remembered_bytes.load(Ordering::Relaxed)
    }

    /// Messages that could not be read since the start; they are kept aside.
    #[must_use]
    pub fn quarantined_count(&self) -> u64 {
        self.quarantined_count.load(Ordering::Relaxed)
    }

    /// True when a queue that nobody takes from should not keep contents in memory.
    fn is_over_backlog_budget(&self) -> bool {
        let max_bytes = self.resident_max_bytes.min(BACKLOG_RESIDENT_MAX_BYTES);
        self.resident_bytes.load(Ordering::Relaxed) > max_bytes
    }

    fn is_over_budget(&self) -> bool {
        self.resident_bytes() > self.resident_max_bytes
    }

    fn report_resident(&self, before: u64, after: u64) {
        if after >= before {
            self.resident_bytes
                .fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.resident_bytes
                .fetch_sub(before - after, Ordering::Relaxed);
        }
    }

    fn count_quarantined(&self, count: u64) {
        self.quarantined_count.fetch_add(count, Ordering::Relaxed);
    }
}

impl Queue {
    /// A new, empty queue that obeys `settings`. `created_at` is the end of its META record when it is
    /// durable.
    #[must_use]
    pub fn new(
        spec: QueueSpec,
        settings: Arc<QueueArguments>,
        created_at: Lsn,
        now_ms: u64,
    ) -> QueueHandle {
        let state = QueueState::new(settings, Seq(1), Seq(0), created_at, now_ms);
        Arc::new(Self::with_state(spec, state))
    }

    fn with_state(spec: QueueSpec, mut state: QueueState) -> Self {
        if spec.is_recovered() {
            state.slots.keep_expired();
        }
        Self {
            id: spec.id,
            traits: Traits {
                is_durable: spec.is_durable,
                is_single_active: state.settings.is_single_active_consumer,
                is_quorum: state.settings.kind == QueueKind::Quorum,
                is_delay: spec.delays_for().is_some(),
            },
            is_deleted: AtomicBool::new(false),
            has_length_limit: AtomicBool::new(state.rules.has_length_limit()),
            state: Mutex::new(state),
            warned: Warned::default(),
            spec,
        }
    }

    /// What it was declared as.
    #[must_use]
    pub fn spec(&self) -> &QueueSpec {
        &self.spec
    }

    /// True when it has the semantics of a quorum queue.
    #[must_use]
    pub fn is_quorum(&self) -> bool {
        self.traits.is_quorum
    }

    /// Whose semantics it has.
    #[must_use]
    pub fn kind(&self) -> QueueKind {
        match self.traits.is_quorum {
            true => QueueKind::Quorum,
            false => QueueKind::Classic,
        }
    }

    /// True when it serves one consumer at a time.
    #[must_use]
    pub fn is_single_active(&self) -> bool {
        self.traits.is_single_active
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> QueueId {
        self.id
    }

    /// True once [`delete`] has happened.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        self.is_deleted.load(Ordering::SeqCst)
    }

    /// True when a message it takes goes to the log.
    fn logs(&self, message: &Message) -> bool {
        self.traits.is_durable && (message.is_persistent() || self.traits.is_quorum)
    }

    pub(super) fn warned(&self) -> &Warned {
        &self.warned
    }

    /// True when there probably is a limit: who must be sure looks at the rules under the lock.
    pub(super) fn seems_limited(&self) -> bool {
        self.has_length_limit.load(Ordering::Relaxed)
    }

    /// What it obeys now.
    #[must_use]
    pub fn settings(&self) -> Arc<QueueArguments> {
        Arc::clone(&lock(&self.state).settings)
    }

    /// Gives it other settings, which hold at once: what is too much or too old goes, and its lease begins
    /// anew (PO-9). Expiry times that messages have already got stay (TT-3).
    pub fn obey(self: &Arc<Self>, turn: &mut Turn<'_>, settings: Arc<QueueArguments>) {
        let mut locked = Locked::one(self);
        let mut batch = Batch::default();
        let (_, state) = locked.first();
        if state.is_deleted || *state.settings == *settings {
            return;
        }
        if state.settings.expires_ms != settings.expires_ms {
            state.lease_from_ms = turn.now_ms;
        }
        state.rules = Rules::of(&settings);
        self.has_length_limit
            .store(state.rules.has_length_limit(), Ordering::Relaxed);
        state.settings = settings;
        if let Some(stuck) = state.stuck() {
            stuck.start_anew();
        }
        state.expire_heads(self, turn.now_ms, &mut batch);
        state.enforce_limits(self, &mut batch);
        locked.conclude(turn, batch);
        turn.finish();
    }

    /// Its counts.
    #[must_use]
    pub fn stats(&self) -> QueueStats {
        let state = lock(&self.state);
        let sums = state.slots.sums();
        QueueStats {
            ready_count: sums.ready_count,
            ready_bytes: sums.ready_bytes,
            unacked_count: sums.unacked_count,
            consumer_count: u32::try_from(state.consumers.count()).unwrap_or(u32::MAX),
            quarantined_count: sums.others().quarantined_count,
        }
    }

    /// Renews the lease of `x-expires` (declare; `get` does it itself) and arms its timer. After a
    /// restart this also starts what [`Queue::restore`] left to do: dead letters of messages that expired
    /// or became too many meanwhile.
    pub fn renew_lease(self: &Arc<Self>, turn: &mut Turn<'_>) {
        let mut locked = Locked::one(self);
        // A quorum queue is used by those who take from it alone (TT-18).
        if !self.traits.is_quorum {
            locked.first().1.lease_from_ms = turn.now_ms;
        }
        locked.conclude(turn, Batch::default());
        turn.finish();
    }
}

#[cfg(test)]
mod tests;
