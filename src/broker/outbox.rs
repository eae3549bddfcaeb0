//! The bounded box in which a connection finds what the broker has for it.
//!
//! Filled under queue locks by whoever causes a delivery, emptied by the connection's own task, which
//! assigns delivery tags and encodes. Lock order: queue, then outbox. A consumer whose outbox is full is
//! skipped, and its queue noted in the box; the connection calls `Broker::outbox_drained` after it emptied a
//! box that turned queues away, which serves those queues and no other, however many the connection consumes
//! from.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use super::message::Message;
use super::queue::{Queue, QueueHandle};
use crate::sync::lock;

mod items;

pub(super) use items::{AddedItems, AddedMessages};
pub use items::{DeliveryRun, OutboxItem, OutboxItems, OutboxPlace};

/// Deliveries a connection may have outstanding in its outbox, in bytes of payload plus overhead each.
pub const OUTBOX_MAX_BYTES: usize = 512 * 1024;
/// The same while memory is scarce: thousands of clients that do not read must not fill it.
pub const SCARCE_OUTBOX_MAX_BYTES: usize = 32 * 1024;

/// How full outboxes may be; one value that all outboxes of a server share.
#[derive(Debug)]
pub struct OutboxLimit(AtomicUsize);

impl Default for OutboxLimit {
    fn default() -> Self {
        Self(AtomicUsize::new(OUTBOX_MAX_BYTES))
    }
}

impl OutboxLimit {
    /// Sets it by whether memory is scarce. What is in a box stays there.
    pub fn set_scarce(&self, is_scarce: bool) {
        let max_bytes = if is_scarce {
            SCARCE_OUTBOX_MAX_BYTES
        } else {
            OUTBOX_MAX_BYTES
        };
        self.0.store(max_bytes, Ordering::Relaxed);
    }

    /// Bytes of deliveries from which on a box is full.
    #[must_use]
    pub fn max_bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// Bytes every delivery counts on top of its payload.
pub const DELIVERY_OVERHEAD_BYTES: usize = 128;

/// Woken when an empty outbox receives its first item. Implemented by the server.
pub trait Wake: Send + Sync + std::fmt::Debug {
    /// Schedules the connection's task; called without locks held.
    fn wake(&self);
}

/// See the module.
#[derive(Debug)]
pub struct Outbox {
    content: Mutex<Content>,
    /// Bytes of the deliveries in the box and of those that were promised a place in it.
    size_bytes: AtomicUsize,
    /// Somebody was turned away; set behind the note in `waiting`.
    was_full: AtomicBool,
    /// Queues that were turned away, the one that waits longest first.
    waiting: Mutex<Vec<Weak<Queue>>>,
    limit: Arc<OutboxLimit>,
    /// The connection is to be closed, and why.
    forced_close: OnceLock<String>,
    waker: Box<dyn Wake>,
}

#[derive(Debug, Default)]
struct Content {
    items: OutboxItems,
    /// Bytes of the deliveries in `items`.
    size_bytes: usize,
}

/// Bytes a delivery of `message` counts in an outbox.
#[must_use]
pub fn delivery_bytes(message: &Message) -> usize {
    message.size_bytes() + DELIVERY_OVERHEAD_BYTES
}

impl Outbox {
    /// An empty outbox that wakes its connection through `waker`.
    #[must_use]
    pub fn new(waker: Box<dyn Wake>) -> Self {
        Self::within(waker, Arc::default())
    }

    /// The same, with a limit that it shares with others.
    #[must_use]
    pub fn within(waker: Box<dyn Wake>, limit: Arc<OutboxLimit>) -> Self {
        Self {
            content: Mutex::default(),
            size_bytes: AtomicUsize::new(0),
            was_full: AtomicBool::new(false),
            waiting: Mutex::default(),
            limit,
            forced_close: OnceLock::new(),
            waker,
        }
    }

    /// Bytes of the deliveries in the box and of those that were promised a place in it.
    pub(super) fn size_bytes(&self) -> usize {
        self.size_bytes.load(Ordering::SeqCst)
    }

    /// True when no further delivery should be put in.
    pub(super) fn is_full(&self) -> bool {
        self.size_bytes() >= self.limit.max_bytes()
    }

    /// True when no further delivery should be put in. Then `queue` is noted, unless `is_noted` says that it is:
    /// that is the caller's to keep, and to clear when [`Outbox::take_waiting`] gave the queue back.
    pub(super) fn check_full(&self, queue: &QueueHandle, is_noted: &mut bool) -> bool {
        if !self.is_full() {
            return false;
        }
        if !std::mem::replace(is_noted, true) {
            lock(&self.waiting).push(Arc::downgrade(queue));
        }
        self.was_full.store(true, Ordering::SeqCst);
        // The connection may have emptied the box between the first line and the last: look again, so that
        // either we see it empty or it sees the note.
        self.is_full()
    }

    /// The queues that were turned away, the one that waits longest first.
    pub(super) fn take_waiting(&self) -> Vec<Weak<Queue>> {
        std::mem::take(&mut *lock(&self.waiting))
    }

    /// Puts back queues that the box had no room for again: before those that were noted since, which have been
    /// served.
    pub(super) fn wait_again(&self, mut queues: Vec<Weak<Queue>>) {
        if queues.is_empty() {
            return;
        }
        let mut waiting = lock(&self.waiting);
        queues.append(&mut waiting);
        *waiting = queues;
        self.was_full.store(true, Ordering::SeqCst);
    }

    /// Bytes left until it is full.
    pub(super) fn room_bytes(&self) -> usize {
        self.limit.max_bytes().saturating_sub(self.size_bytes())
    }

    /// True when it will be full with so many bytes more.
    #[inline]
    pub(super) fn is_full_with(&self, added_bytes: usize) -> bool {
        self.size_bytes() + added_bytes >= self.limit.max_bytes()
    }

    /// Promises places for deliveries of so many bytes, which [`Outbox::push_all`] brings later.
    pub(super) fn reserve(&self, size_bytes: usize) {
        self.size_bytes.fetch_add(size_bytes, Ordering::SeqCst);
    }

    /// Adds items of so many bytes, whose places were [reserved](Outbox::reserve); true when the box was empty, so that
    /// the caller must wake the connection (after releasing all locks).
    pub(super) fn push_all(&self, added: AddedItems, size_bytes: usize) -> bool {
        let mut content = lock(&self.content);
        content.size_bytes += size_bytes;
        let was_empty = content.items.is_empty();
        content.items.append(added);
        was_empty && !content.items.is_empty()
    }

    /// Adds an item that is no delivery from a queue; true when the box was empty, so that the caller must wake the connection
    /// (after releasing all locks).
    pub fn push(&self, item: OutboxItem) -> bool {
        let size_bytes = match &item {
            OutboxItem::Reply { message, .. } => delivery_bytes(message),
            _ => 0,
        };
        self.reserve(size_bytes);
        let mut content = lock(&self.content);
        content.size_bytes += size_bytes;
        let was_empty = content.items.is_empty();
        content.items.push(item);
        was_empty
    }

    /// Moves everything into `into`, which is empty; true when somebody was turned away since the last
    /// call, so that `Broker::outbox_drained` is due.
    pub fn drain(&self, into: &mut OutboxItems) -> bool {
        let size_bytes = {
            let mut content = lock(&self.content);
            std::mem::swap(&mut content.items, into);
            std::mem::take(&mut content.size_bytes)
        };
        self.size_bytes.fetch_sub(size_bytes, Ordering::SeqCst);
        self.was_full.swap(false, Ordering::SeqCst)
    }

    /// Gives the lists back that an empty box keeps for the next items.
    pub fn rest(&self) {
        let mut content = lock(&self.content);
        if content.items.is_empty() {
            content.items = OutboxItems::default();
        }
    }

    /// Has the connection closed with 320 CONNECTION_FORCED and this text; the caller must wake it (after releasing all
    /// locks). That comes before everything in the box, which a client that does not read leaves there for ever.
    pub fn force_close(&self, text: &str) {
        // The first reason is as good as any later one.
        let _ = self.forced_close.set(text.to_owned());
    }

    /// Why the connection is to be closed, if it is.
    #[must_use]
    pub fn forced_close(&self) -> Option<&str> {
        self.forced_close.get().map(String::as_str)
    }

    /// Wakes the connection.
    pub fn wake(&self) {
        self.waker.wake();
    }
}
