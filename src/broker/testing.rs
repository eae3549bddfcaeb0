//! Stand-ins for what the domain talks to, for tests only.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::journal::Journal;
use super::outbox::{Outbox, OutboxItems, Wake};
use crate::storage::image::QueueImage;
use crate::storage::types::{
    ImageEntry, Lsn, MetaEffect, Position, Pusher, QueueId, Receipt, Ref, Request, SegmentId, Seq,
    SeqRange, SettleCause, Urgency,
};
use crate::sync::lock;

/// A record as the fake log keeps it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Logged {
    /// PUBLISH.
    Publish { refs: Vec<Ref>, payload: Bytes },
    /// ACK or DROP.
    Settle {
        queue: QueueId,
        cause: SettleCause,
        ranges: Vec<SeqRange>,
    },
    /// REQUEUE.
    Requeue {
        queue: QueueId,
        seq: Seq,
        delivery_count: u32,
    },
    /// DELIVERED_UPTO.
    Reserve { queue: QueueId, upto: Seq },
    /// META.
    Meta { kind: u16, effect: MetaEffect },
}

/// One call of `push`.
#[derive(Clone, Debug)]
pub(crate) struct Push {
    pub(crate) records: Vec<Logged>,
    pub(crate) is_atomic: bool,
    pub(crate) urgency: Urgency,
    /// Start of the first record; each is 64 bytes long.
    pub(crate) start: Lsn,
    pub(crate) end: Lsn,
}

/// Every record of the fake log is this long.
const RECORD_BYTES: u32 = 64;

/// A log in memory whose watermark moves only when a test says so.
#[derive(Debug)]
pub(crate) struct FakeJournal {
    pushes: Mutex<Vec<Push>>,
    /// Copies of records in a cold segment, and what each is a copy of.
    copies: Mutex<BTreeMap<Lsn, Lsn>>,
    confirm_lsn: AtomicU64,
    group_max_bytes: AtomicU64,
    /// There is no room for what asks for some.
    is_full: AtomicBool,
}

impl FakeJournal {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            pushes: Mutex::default(),
            copies: Mutex::default(),
            confirm_lsn: AtomicU64::new(0),
            group_max_bytes: AtomicU64::new(16 << 20),
            is_full: AtomicBool::new(false),
        })
    }

    pub(crate) fn set_full(&self, is_full: bool) {
        self.is_full.store(is_full, Ordering::SeqCst);
    }

    pub(crate) fn set_group_max_bytes(&self, bytes: u64) {
        self.group_max_bytes.store(bytes, Ordering::SeqCst);
    }

    fn end(pushes: &[Push]) -> Lsn {
        pushes.last().map_or(Lsn(4096), |push| push.end)
    }

    /// Everything pushed so far is on stable storage.
    pub(crate) fn make_durable(&self) {
        let end = Self::end(&lock(&self.pushes));
        self.confirm_lsn.store(end.0, Ordering::SeqCst);
    }

    pub(crate) fn pushes(&self) -> Vec<Push> {
        lock(&self.pushes).clone()
    }

    pub(crate) fn records(&self) -> Vec<Logged> {
        self.pushes()
            .into_iter()
            .flat_map(|push| push.records)
            .collect()
    }

    /// Copies a record into a cold segment, as compaction does; its new place.
    pub(crate) fn copy(&self, position: Position) -> Position {
        let original = self.original(position);
        let mut copies = lock(&self.copies);
        let first = Lsn::new(SegmentId::FIRST_COLD, 4096);
        let lsn = Lsn(first.0 + copies.len() as u64 * u64::from(RECORD_BYTES));
        copies.insert(lsn, original.lsn);
        Position { lsn, ..position }
    }

    /// Where the record at `position` was written first.
    pub(crate) fn original(&self, position: Position) -> Position {
        let lsn = lock(&self.copies).get(&position.lsn).copied();
        Position {
            lsn: lsn.unwrap_or(position.lsn),
            ..position
        }
    }

    /// What a reader thread would find.
    pub(crate) fn read(&self, position: Position) -> Option<Bytes> {
        let position = self.original(position);
        let pushes = lock(&self.pushes);
        let after = pushes.partition_point(|push| push.start <= position.lsn);
        let push = pushes
            .get(after.checked_sub(1)?)
            .filter(|push| position.lsn < push.end)?;
        let at = (position.lsn.0 - push.start.0) / u64::from(RECORD_BYTES);
        match push.records.get(usize::try_from(at).ok()?)? {
            Logged::Publish { payload, .. } => Some(payload.clone()),
            _ => None,
        }
    }

    /// The state of `queue` by replay from the beginning.
    pub(crate) fn replay(&self, queue: QueueId) -> QueueImage {
        let mut image = QueueImage::new(queue, Lsn(0));
        for push in lock(&self.pushes).iter() {
            let mut start = push.start;
            for record in &push.records {
                let end = Lsn(start.0 + u64::from(RECORD_BYTES));
                apply(&mut image, record, start, end);
                start = end;
            }
        }
        image.entries.compact();
        image
    }
}

fn apply(image: &mut QueueImage, record: &Logged, start: Lsn, end: Lsn) {
    match record {
        Logged::Publish { refs, .. } => {
            let id = image.id;
            for reference in refs.iter().filter(|reference| reference.queue == id) {
                let entry = ImageEntry::published(
                    reference,
                    Position {
                        lsn: start,
                        len_bytes: RECORD_BYTES,
                    },
                    0,
                );
                image.apply_publish(entry, start, end);
            }
        }
        Logged::Settle { queue, ranges, .. } if *queue == image.id => {
            image.apply_settle(ranges.iter().copied(), start, end);
        }
        Logged::Requeue {
            queue,
            seq,
            delivery_count,
        } if *queue == image.id => image.apply_requeue(*seq, *delivery_count, start, end),
        Logged::Reserve { queue, upto } if *queue == image.id => {
            image.apply_reserve(*upto, start, end);
        }
        _ => {}
    }
}

impl Journal for FakeJournal {
    fn push(
        &self,
        requests: &[Request<'_>],
        is_atomic: bool,
        urgency: Urgency,
        positions: &mut Vec<Position>,
    ) -> Receipt {
        let mut pushes = lock(&self.pushes);
        let start = Self::end(&pushes);
        let mut end = start;
        let mut records = Vec::new();
        for request in requests {
            if let Request::Publish { .. } = request {
                positions.push(Position {
                    lsn: end,
                    len_bytes: RECORD_BYTES,
                });
            }
            end = Lsn(end.0 + u64::from(RECORD_BYTES));
            records.push(keep(request));
        }
        pushes.push(Push {
            records,
            is_atomic,
            urgency,
            start,
            end,
        });
        Receipt { end }
    }

    fn admit(&self, _bytes: u64, _pusher: Pusher) -> bool {
        !self.is_full.load(Ordering::SeqCst)
    }

    fn release(&self, _bytes: u64) {}

    fn confirm_lsn(&self) -> Lsn {
        Lsn(self.confirm_lsn.load(Ordering::SeqCst))
    }

    fn group_max_bytes(&self) -> u64 {
        self.group_max_bytes.load(Ordering::SeqCst)
    }
}

/// Copies a request, and checks what the engine relies on.
fn keep(request: &Request<'_>) -> Logged {
    match *request {
        Request::Publish {
            refs,
            payload,
            payload_crc,
            ..
        } => {
            assert!(!refs.is_empty(), "a PUBLISH has a ref");
            assert!(refs.is_sorted_by(|a, b| a.queue < b.queue), "refs ascend");
            let payload = payload.concat();
            assert_eq!(crc32fast::hash(&payload), payload_crc, "the CRC is right");
            Logged::Publish {
                refs: refs.to_vec(),
                payload: payload.into(),
            }
        }
        Request::Settle {
            queue,
            cause,
            ranges,
        } => {
            assert!(
                ranges.is_sorted_by(|a, b| a.last < b.first),
                "ranges ascend and are disjoint"
            );
            Logged::Settle {
                queue,
                cause,
                ranges: ranges.to_vec(),
            }
        }
        Request::Requeue {
            queue,
            seq,
            delivery_count,
        } => Logged::Requeue {
            queue,
            seq,
            delivery_count,
        },
        Request::Reserve { queue, upto } => Logged::Reserve { queue, upto },
        Request::Meta { kind, effect, .. } => Logged::Meta { kind, effect },
    }
}

#[derive(Debug)]
struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

/// An outbox that nobody listens to.
pub(crate) fn outbox() -> Arc<Outbox> {
    Arc::new(Outbox::new(Box::new(NoWake)))
}

/// What lies in an outbox.
pub(crate) fn drain(outbox: &Outbox) -> OutboxItems {
    let mut items = OutboxItems::default();
    outbox.drain(&mut items);
    items
}
