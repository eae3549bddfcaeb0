//! One entry of a queue in memory, kept small: a backlog that a consumer holds unacked is made of these.

use std::sync::Arc;

use crate::broker::message::Message;
use crate::storage::types::{ImageEntry, Lsn, Position, Seq};

/// What an entry is doing. Exactly one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::broker::queue) enum Status {
    /// Nothing here: settled, or never used.
    Empty,
    /// Waits for a consumer.
    Ready,
    /// Delivered, not settled.
    Unacked,
    /// On its way to the dead-letter exchange: not deliverable, not counted, not settled.
    Leaving,
    /// A dead letter that nobody took: it waits until somebody does.
    Stuck,
    /// Published by a transaction that is not durable yet: not deliverable, counted for limits.
    Hidden,
    /// Could not be read: kept, never delivered, never settled.
    Quarantined,
}

/// After a restart, until the body was read. A body of this size counts a byte less.
const UNKNOWN_BYTES: u32 = u32::MAX;

/// One entry.
#[derive(Clone, Debug)]
pub(in crate::broker::queue) struct Slot {
    /// Unix milliseconds; 0 for never.
    pub(in crate::broker::queue) expires_at_ms: u64,
    /// The content, while it is in memory.
    pub(in crate::broker::queue) message: Option<Arc<Message>>,
    /// Its record starts here, once it is logged.
    lsn: Lsn,
    /// Length of that record.
    len_bytes: u32,
    /// Bytes of the body, or [`UNKNOWN_BYTES`].
    body_bytes: u32,
    /// Failed deliveries; stops at the largest value.
    pub(in crate::broker::queue) delivery_count: u16,
    pub(in crate::broker::queue) status: Status,
    /// It is in the log.
    pub(in crate::broker::queue) is_logged: bool,
    /// It may have been delivered before.
    pub(in crate::broker::queue) is_redelivered: bool,
    /// A reservation above it precedes its PUBLISH in the log (invariant 4 of the queue).
    pub(in crate::broker::queue) is_covered: bool,
    /// A read of its body is on its way.
    pub(in crate::broker::queue) is_fetching: bool,
    /// A read of its body failed once.
    pub(in crate::broker::queue) has_failed: bool,
}

/// Memory of one entry.
pub(in crate::broker::queue) const SLOT_BYTES: u64 = size_of::<Slot>() as u64;

/// With its delivery tag (see `session::acks`), a delivered message may take 64.
const _: () = assert!(size_of::<Slot>() <= 40);

impl Slot {
    pub(super) const EMPTY: Self = Self {
        expires_at_ms: 0,
        message: None,
        lsn: Lsn(0),
        len_bytes: 0,
        body_bytes: 0,
        delivery_count: 0,
        status: Status::Empty,
        is_logged: false,
        is_redelivered: false,
        is_covered: false,
        is_fetching: false,
        has_failed: false,
    };

    /// An entry that just arrived.
    pub(in crate::broker::queue) fn arrived(
        status: Status,
        message: Arc<Message>,
        expires_at_ms: u64,
    ) -> Self {
        let entry = Self::passed_on(status, &message);
        Self {
            expires_at_ms,
            message: Some(message),
            ..entry
        }
    }

    /// An entry that just arrived, in the state `status`, and left its content to somebody else.
    pub(in crate::broker::queue) fn passed_on(status: Status, message: &Message) -> Self {
        Self {
            status,
            body_bytes: sized(u32::try_from(message.body_len()).unwrap_or(u32::MAX)),
            ..Self::EMPTY
        }
    }

    /// An entry known by its position only.
    pub(in crate::broker::queue) fn restored(entry: &ImageEntry) -> Self {
        Self {
            status: Status::Ready,
            is_logged: true,
            is_redelivered: entry.is_redelivered,
            delivery_count: u16::try_from(entry.delivery_count).unwrap_or(u16::MAX),
            lsn: entry.position.lsn,
            len_bytes: entry.position.len_bytes,
            expires_at_ms: entry.expires_at_ms,
            body_bytes: UNKNOWN_BYTES,
            ..Self::EMPTY
        }
    }

    /// Bytes of the body; 0 while they are not known: a length limit must not drop a message for bytes it may not have.
    pub(in crate::broker::queue) fn body_bytes(&self) -> u32 {
        if self.is_sized() { self.body_bytes } else { 0 }
    }

    /// True when it is known how large the body is.
    pub(in crate::broker::queue) fn is_sized(&self) -> bool {
        self.body_bytes != UNKNOWN_BYTES
    }

    pub(super) fn set_body_bytes(&mut self, body_bytes: u32) {
        self.body_bytes = sized(body_bytes);
    }

    /// Where its record lies.
    pub(in crate::broker::queue) fn position(&self) -> Position {
        Position {
            lsn: self.lsn,
            len_bytes: self.len_bytes,
        }
    }

    /// It lies in a spill file: what is not logged has no other place.
    pub(in crate::broker::queue) fn is_spilled(&self) -> bool {
        !self.is_logged && self.len_bytes > 0
    }

    /// Its content can be read again.
    pub(in crate::broker::queue) fn is_on_disk(&self) -> bool {
        self.is_logged || self.is_spilled()
    }

    pub(super) fn set_position(&mut self, position: Position) {
        self.lsn = position.lsn;
        self.len_bytes = position.len_bytes;
    }

    /// What a checkpoint says of it.
    pub(super) fn image_entry(&self, seq: Seq) -> ImageEntry {
        ImageEntry {
            seq,
            position: self.position(),
            expires_at_ms: self.expires_at_ms,
            priority: 0,
            delivery_count: u32::from(self.delivery_count),
            is_redelivered: self.is_redelivered,
        }
    }

    pub(super) fn resident_bytes(&self) -> u64 {
        self.message
            .as_ref()
            .map_or(0, |message| message.size_bytes() as u64)
    }
}

fn sized(body_bytes: u32) -> u32 {
    body_bytes.min(UNKNOWN_BYTES - 1)
}
