//! The values that cross the storage engine's border: positions, requests and their receipts.
//!
//! The engine keeps payloads of bytes under `(queue, seq)` names. It does not know what a payload means.

use std::fmt;

use bytes::Bytes;

/// Number of a segment file. Numbers rise and are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SegmentId(pub u64);

impl SegmentId {
    /// The first cold segment: its number is above all that the log can have. See `compaction`.
    pub const FIRST_COLD: Self = Self(1 << 33);
    /// The last one that an LSN has bits for.
    pub const MAX: Self = Self(u64::MAX >> Lsn::OFFSET_BITS);

    /// True for a segment of messages that were moved out of the log.
    #[must_use]
    pub const fn is_cold(self) -> bool {
        self.0 >= Self::FIRST_COLD.0
    }
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012x}", self.0)
    }
}

/// A place in the endless log: `segment number << 30 | offset in the segment file`.
///
/// Known when a record is pushed, rising in log order, sparse, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Bits of an LSN that hold the offset; a segment is at most 1 GiB.
    pub const OFFSET_BITS: u32 = 30;

    /// The place `offset` bytes into `segment`.
    #[must_use]
    pub const fn new(segment: SegmentId, offset: u32) -> Self {
        Self((segment.0 << Self::OFFSET_BITS) | offset as u64)
    }
    /// The segment this place lies in.
    #[must_use]
    pub const fn segment(self) -> SegmentId {
        SegmentId(self.0 >> Self::OFFSET_BITS)
    }
    /// Bytes from the start of the segment file.
    #[must_use]
    pub const fn offset(self) -> u32 {
        (self.0 & ((1 << Self::OFFSET_BITS) - 1)) as u32
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.segment(), self.offset())
    }
}

/// Name of a queue inside the engine; never reused. Rising ids are also the order of locking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId(pub u64);

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Position of a message in its queue, `rank << 48 | count`: unique per queue, with gaps, in the order of delivery.
///
/// Most queues have rank 0 alone, and their seqs count up from 1. A queue with priorities has a rank for each level,
/// the lower the more urgent, from 1 on; each counts for itself. Bounds (next seq, reservation) have rank 0 and hold
/// for the counts of all ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

impl Seq {
    /// Bits of a seq that hold the count: at a million messages a second they last for nine years.
    pub const COUNT_BITS: u32 = 48;

    /// The seq with this count in this rank.
    #[must_use]
    pub const fn new(rank: u16, count: u64) -> Self {
        Self(((rank as u64) << Self::COUNT_BITS) | count)
    }
    /// Its rank.
    #[must_use]
    pub const fn rank(self) -> u16 {
        (self.0 >> Self::COUNT_BITS) as u16
    }
    /// Its count.
    #[must_use]
    pub const fn count(self) -> u64 {
        self.0 & ((1 << Self::COUNT_BITS) - 1)
    }
    /// True when it is below a bound that holds for all ranks.
    #[must_use]
    pub const fn is_within(self, bound: Self) -> bool {
        self.count() < bound.0
    }
}

/// `rank:count`, or the count alone in rank 0.
impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rank() {
            0 => write!(f, "{}", self.count()),
            rank => write!(f, "{rank}:{}", self.count()),
        }
    }
}

/// A run of seqs, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SeqRange {
    /// First seq of the run.
    pub first: Seq,
    /// Last seq of the run.
    pub last: Seq,
}

/// One queue that a published message goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ref {
    /// The queue.
    pub queue: QueueId,
    /// The message's place in that queue.
    pub seq: Seq,
    /// When the message expires in that queue, Unix milliseconds; 0 for never.
    pub expires_at_ms: u64,
}

/// Why messages left a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SettleCause {
    /// A consumer acknowledged them, or took them without acknowledgement.
    Acked = 1,
    /// Their time to live ran out.
    Expired = 2,
    /// The queue was longer than its limit.
    MaxLength = 3,
    /// The queue was purged.
    Purged = 4,
    /// Rejected without requeue.
    Rejected = 5,
    /// Republished to a dead-letter exchange (in the same atomic group).
    DeadLettered = 6,
}

/// Effect of a META record on the set of queues the engine keeps state for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaEffect {
    /// None.
    None,
    /// From here on the queue exists, empty.
    QueueCreated(QueueId),
    /// From here on the queue and all its messages are gone.
    QueueDeleted(QueueId),
}

/// The payload of a message: pieces that are stored one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a> {
    /// What is always copied.
    pub front: &'a [u8],
    /// What follows; the engine keeps large parts by reference count.
    pub parts: &'a [Bytes],
}

impl<'a> Payload<'a> {
    /// Its bytes.
    #[inline]
    #[must_use]
    pub fn len(self) -> usize {
        self.front.len() + self.parts.iter().map(Bytes::len).sum::<usize>()
    }
    /// True when there are none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
    /// Its pieces in order, of which some may be empty.
    #[inline]
    pub fn pieces(self) -> impl Iterator<Item = &'a [u8]> {
        let parts = self.parts.iter().map(Bytes::as_ref);
        std::iter::once(self.front).chain(parts)
    }
    /// All of it in one piece.
    #[must_use]
    pub fn concat(self) -> Vec<u8> {
        let mut whole = Vec::with_capacity(self.len());
        for piece in self.pieces() {
            whole.extend_from_slice(piece);
        }
        whole
    }
}

impl<'a> From<&'a [Bytes]> for Payload<'a> {
    fn from(parts: &'a [Bytes]) -> Self {
        Self { front: &[], parts }
    }
}

impl<'a> From<&'a Bytes> for Payload<'a> {
    fn from(part: &'a Bytes) -> Self {
        Self::from(std::slice::from_ref(part))
    }
}

/// One event to be logged. Borrowed: the engine copies what it keeps (large payload parts by reference count).
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    /// A message and all the queues it goes to.
    Publish {
        /// Target queues, at least one, in ascending queue id.
        refs: &'a [Ref],
        /// Priority level inside its queues.
        priority: u8,
        /// When it was published, Unix milliseconds.
        time_ms: u64,
        /// The payload.
        payload: Payload<'a>,
        /// CRC-32 of the whole payload, computed by the publisher's own thread.
        payload_crc: u32,
    },
    /// Messages that left a queue for good. The ranges cover no message that stays.
    Settle {
        /// The queue.
        queue: QueueId,
        /// Why.
        cause: SettleCause,
        /// Ascending, disjoint.
        ranges: &'a [SeqRange],
    },
    /// A message went back to its place after `delivery_count` deliveries.
    Requeue {
        /// The queue.
        queue: QueueId,
        /// The message.
        seq: Seq,
        /// Failed deliveries so far.
        delivery_count: u32,
    },
    /// A reservation: from here on any message below `upto` may have been delivered.
    Reserve {
        /// The queue.
        queue: QueueId,
        /// First seq that is not covered.
        upto: Seq,
    },
    /// A change of topology or users; opaque bytes.
    Meta {
        /// Kind of record, the owner's own numbering.
        kind: u16,
        /// Version of that kind's encoding.
        version: u16,
        /// Effect on queues.
        effect: MetaEffect,
        /// The encoded change.
        body: &'a [u8],
    },
}

/// How soon a push must reach stable storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Somebody waits (confirms, declare-ok, reservations): commit as soon as the last commit ended.
    Waited,
    /// Nobody waits (acks): written within 5 ms, synced within `--ack-fsync-ms`.
    Lazy,
}

/// On whose account records that take space are pushed: some have to wait earlier than others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pusher {
    /// Clients that publish.
    Publisher,
    /// The broker, which moves messages from queue to queue.
    DeadLetters,
}

/// What a push was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// End of the last record of the push: durable when the watermark is at least this.
    pub end: Lsn,
}

/// Where a message lies, as kept in a queue's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Start of its PUBLISH record.
    pub lsn: Lsn,
    /// Length of that record in bytes, header and padding included.
    pub len_bytes: u32,
}

/// A message got another place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The message.
    pub seq: Seq,
    /// Where it lay.
    pub from: Position,
    /// Where it lies now.
    pub to: Position,
}

/// A message's entry in the image of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageEntry {
    /// Its place in the queue.
    pub seq: Seq,
    /// Where its record lies.
    pub position: Position,
    /// Unix milliseconds; 0 for never.
    pub expires_at_ms: u64,
    /// Priority level.
    pub priority: u8,
    /// Failed deliveries so far, for queues that count.
    pub delivery_count: u32,
    /// It may have been delivered before (from REQUEUE, or from being unacked at a clean stop).
    pub is_redelivered: bool,
}

impl ImageEntry {
    /// The entry of a message that a PUBLISH at this position brings into a queue: nobody has seen it there yet.
    #[must_use]
    pub const fn published(r: &Ref, position: Position, priority: u8) -> Self {
        Self {
            seq: r.seq,
            position,
            expires_at_ms: r.expires_at_ms,
            priority,
            delivery_count: 0,
            is_redelivered: false,
        }
    }
}
