//! A small owner of a store, for tests and benches: it keeps the live state of queues the way the broker does, and
//! knows what was promised about every message.
//!
//! [`LiveStore`] changes its own [`QueueImage`]s with the same steps as replay does, pushes the record in the same
//! critical section, and is the checkpoint's source. So "recovery gives the state before the crash" is the
//! comparison of two lists of images.
//!
//! It files runs as its options say, but keeps their entries as well: its images have no runs, those that it hands to a
//! checkpoint have. What a start gives back is read through the index files, and compared with what never left memory.

pub mod filer;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use filer::{Filer, unfile};

use super::format::StoreId;
use super::run::FiledRun;
use super::types::{
    ImageEntry, Lsn, MetaEffect, Move, Position, QueueId, Receipt, Ref, Request, SegmentId, Seq,
    SeqRange, SettleCause, Urgency,
};
use super::{
    CheckpointSource, CommitListener, Options, QueueImage, Recovered, Storage, StorageError,
};
use crate::disk::{Clock, Disk};
use crate::sync::lock;

/// Remembers what the engine told it.
#[derive(Debug, Default)]
pub struct Heard {
    /// Watermarks, in order.
    pub committed: Mutex<Vec<Lsn>>,
    /// Calls of `has_room_again`.
    pub room_again_count: Mutex<u64>,
    /// Calls of `short_of_space`.
    pub short_count: Mutex<u64>,
    /// Texts of failures.
    pub failures: Mutex<Vec<String>>,
}

impl CommitListener for Heard {
    fn committed(&self, confirm_lsn: Lsn) {
        lock(&self.committed).push(confirm_lsn);
    }
    fn has_room_again(&self) {
        *lock(&self.room_again_count) += 1;
    }
    fn short_of_space(&self) {
        *lock(&self.short_count) += 1;
    }
    fn failed(&self, error: &StorageError) {
        lock(&self.failures).push(error.to_string());
    }
}

/// The live state.
#[derive(Clone, Debug, Default)]
struct Live {
    queues: BTreeMap<QueueId, QueueImage>,
    /// Bodies of all META records so far.
    metas: Vec<Vec<u8>>,
    meta_lsn: Lsn,
    /// What every message that was ever published says.
    payloads: BTreeMap<(QueueId, Seq), Bytes>,
    filer: Filer,
}

/// See the module.
pub struct LiveStore {
    /// The engine.
    pub storage: Storage,
    /// What it told.
    pub heard: Arc<Heard>,
    live: Mutex<Live>,
}

/// Two states of queues, compared as a recovery would leave them.
#[must_use]
pub fn as_recovered(mut queues: Vec<QueueImage>) -> Vec<QueueImage> {
    for queue in &mut queues {
        queue.finish_replay();
        // Where a queue's last record lies is no part of its state.
        queue.last_lsn = Lsn(0);
    }
    queues
}

/// A payload that tells its number, `len` bytes long.
#[must_use]
pub fn numbered_payload(number: u64, len: usize) -> Bytes {
    number.to_le_bytes().into_iter().cycle().take(len).collect()
}

/// A message of a queue's image; its record lies where all of these do.
#[must_use]
pub fn entry(seq: u64) -> ImageEntry {
    ImageEntry {
        seq: Seq(seq),
        position: Position {
            lsn: Lsn::new(SegmentId(1), 4096),
            len_bytes: 64,
        },
        expires_at_ms: 0,
        priority: 0,
        delivery_count: 0,
        is_redelivered: false,
    }
}

/// The seqs from `first` to `last`.
#[must_use]
pub fn range(first: u64, last: u64) -> SeqRange {
    SeqRange {
        first: Seq(first),
        last: Seq(last),
    }
}

impl LiveStore {
    /// Opens a store that is stepped by hand.
    ///
    /// # Errors
    /// Those of [`Storage::open`].
    pub fn open_by_hand(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        options: Options,
    ) -> Result<(Self, Recovered), StorageError> {
        let heard = Arc::new(Heard::default());
        let listener: Arc<dyn CommitListener> = heard.clone();
        let known = options.clone();
        let (storage, recovered) =
            Storage::open_by_hand(disk, clock, options, listener, StoreId([0x5a; 16]))?;
        Self::over(storage, heard, recovered, &known)
    }

    /// Opens a store with its own commit thread.
    ///
    /// # Errors
    /// Those of [`Storage::open`].
    pub fn open(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        options: Options,
    ) -> Result<(Self, Recovered), StorageError> {
        let heard = Arc::new(Heard::default());
        let listener: Arc<dyn CommitListener> = heard.clone();
        let known = options.clone();
        let (storage, recovered) = Storage::open(disk, clock, options, listener)?;
        Self::over(storage, heard, recovered, &known)
    }

    /// Reads what is filed, so that what was recovered is complete in `recovered` too.
    fn over(
        storage: Storage,
        heard: Arc<Heard>,
        mut recovered: Recovered,
        options: &Options,
    ) -> Result<(Self, Recovered), StorageError> {
        let filer = Filer::new(options, &recovered);
        unfile(&storage, &mut recovered.queues).map_err(|error| StorageError::Stopped {
            reason: error.to_string(),
        })?;
        let mut metas = recovered
            .meta_snapshot
            .as_deref()
            .map(decode_metas)
            .unwrap_or_default();
        metas.extend(
            recovered
                .meta_records
                .iter()
                .map(|record| record.body.clone()),
        );
        let live = Live {
            queues: recovered
                .queues
                .iter()
                .map(|queue| (queue.id, queue.clone()))
                .collect(),
            metas,
            meta_lsn: storage.confirm_lsn(),
            payloads: BTreeMap::new(),
            filer,
        };
        let store = Self {
            storage,
            heard,
            live: Mutex::new(live),
        };
        Ok((store, recovered))
    }

    /// Commits everything pushed so far.
    ///
    /// # Errors
    /// Those of [`Storage::step`].
    pub fn commit(&self) -> Result<(), StorageError> {
        while self.storage.step()? {}
        Ok(())
    }

    /// Logs a META record and applies its effect.
    pub fn meta(&self, body: &[u8], effect: MetaEffect) -> Receipt {
        let mut live = lock(&self.live);
        let request = Request::Meta {
            kind: 1,
            version: 1,
            effect,
            body,
        };
        let receipt = self
            .storage
            .push(&[request], false, Urgency::Waited, &mut Vec::new());
        live.metas.push(body.to_vec());
        live.meta_lsn = receipt.end;
        match effect {
            MetaEffect::None => {}
            MetaEffect::QueueCreated(id) => {
                drop(live.queues.insert(id, QueueImage::new(id, receipt.end)))
            }
            MetaEffect::QueueDeleted(id) => drop(live.queues.remove(&id)),
        }
        receipt
    }

    /// Declares a queue.
    pub fn create_queue(&self, id: u64) -> Receipt {
        self.meta(
            format!("create {id}").as_bytes(),
            MetaEffect::QueueCreated(QueueId(id)),
        )
    }

    /// Deletes a queue.
    pub fn delete_queue(&self, id: u64) -> Receipt {
        self.meta(
            format!("delete {id}").as_bytes(),
            MetaEffect::QueueDeleted(QueueId(id)),
        )
    }

    /// Publishes one message to `queues` (ascending, all existing) and says which seq it got in each.
    pub fn publish(
        &self,
        queues: &[u64],
        payload: &Bytes,
        expires_at_ms: u64,
    ) -> (Receipt, Vec<Seq>) {
        self.publish_parts(queues, std::slice::from_ref(payload), expires_at_ms)
    }

    /// As [`LiveStore::publish`], with a payload in parts.
    ///
    /// # Panics
    /// When a queue does not exist.
    pub fn publish_parts(
        &self,
        queues: &[u64],
        payload: &[Bytes],
        expires_at_ms: u64,
    ) -> (Receipt, Vec<Seq>) {
        let mut live = lock(&self.live);
        let refs: Vec<Ref> = queues
            .iter()
            .map(|id| {
                let queue = QueueId(*id);
                let seq = live.queues.get(&queue).expect("the queue exists").next_seq;
                Ref {
                    queue,
                    seq,
                    expires_at_ms,
                }
            })
            .collect();
        let whole: Bytes = payload.concat().into();
        let request = Request::Publish {
            refs: &refs,
            priority: 0,
            time_ms: 7,
            payload: payload.into(),
            payload_crc: crc32fast::hash(&whole),
        };
        let mut positions = Vec::new();
        let receipt = self
            .storage
            .push(&[request], false, Urgency::Waited, &mut positions);
        let position = positions[0];
        for r in &refs {
            let entry = ImageEntry::published(r, position, 0);
            live.payloads.insert((r.queue, r.seq), whole.clone());
            let image = live.queues.get_mut(&r.queue).expect("the queue exists");
            image.apply_publish(entry, position.lsn, receipt.end);
        }
        (receipt, refs.iter().map(|r| r.seq).collect())
    }

    /// Settles a run of messages.
    pub fn settle(&self, queue: u64, first: u64, last: u64) -> Receipt {
        let ranges = [SeqRange {
            first: Seq(first),
            last: Seq(last),
        }];
        let request = Request::Settle {
            queue: QueueId(queue),
            cause: SettleCause::Acked,
            ranges: &ranges,
        };
        self.change(queue, request, |image, start, end| {
            image.apply_settle(ranges, start, end)
        })
    }

    /// Puts a message back.
    pub fn requeue(&self, queue: u64, seq: u64, delivery_count: u32) -> Receipt {
        let request = Request::Requeue {
            queue: QueueId(queue),
            seq: Seq(seq),
            delivery_count,
        };
        self.change(queue, request, |image, start, end| {
            image.apply_requeue(Seq(seq), delivery_count, start, end);
        })
    }

    /// Reserves deliveries below `upto`.
    pub fn reserve(&self, queue: u64, upto: u64) -> Receipt {
        let request = Request::Reserve {
            queue: QueueId(queue),
            upto: Seq(upto),
        };
        self.change(queue, request, |image, start, end| {
            image.apply_reserve(Seq(upto), start, end)
        })
    }

    fn change(
        &self,
        queue: u64,
        request: Request<'_>,
        apply: impl FnOnce(&mut QueueImage, Lsn, Lsn),
    ) -> Receipt {
        let mut live = lock(&self.live);
        let receipt = self
            .storage
            .push(&[request], false, Urgency::Lazy, &mut Vec::new());
        if let Some(image) = live.queues.get_mut(&QueueId(queue)) {
            let start = image.last_lsn;
            apply(image, start, receipt.end);
        }
        receipt
    }

    /// Moves a message to another queue in one atomic group: the target's PUBLISH and the source's SETTLE.
    ///
    /// # Panics
    /// When the target does not exist.
    pub fn move_message(&self, from: u64, seq: u64, to: u64, payload: &Bytes) -> Receipt {
        let mut live = lock(&self.live);
        let target = QueueId(to);
        let target_seq = live.queues.get(&target).expect("the queue exists").next_seq;
        let refs = [Ref {
            queue: target,
            seq: target_seq,
            expires_at_ms: 0,
        }];
        let ranges = [SeqRange {
            first: Seq(seq),
            last: Seq(seq),
        }];
        let group = [
            Request::Publish {
                refs: &refs,
                priority: 0,
                time_ms: 7,
                payload: payload.into(),
                payload_crc: crc32fast::hash(payload),
            },
            Request::Settle {
                queue: QueueId(from),
                cause: SettleCause::DeadLettered,
                ranges: &ranges,
            },
        ];
        let mut positions: Vec<Position> = Vec::new();
        let receipt = self
            .storage
            .push(&group, true, Urgency::Waited, &mut positions);
        live.payloads.insert((target, target_seq), payload.clone());
        let entry = ImageEntry {
            seq: target_seq,
            position: positions[0],
            expires_at_ms: 0,
            priority: 0,
            delivery_count: 0,
            is_redelivered: false,
        };
        if let Some(image) = live.queues.get_mut(&target) {
            image.apply_publish(entry, positions[0].lsn, receipt.end);
        }
        if let Some(image) = live.queues.get_mut(&QueueId(from)) {
            let start = image.last_lsn;
            image.apply_settle(ranges, start, receipt.end);
        }
        receipt
    }

    /// The live state of all queues, in ascending id.
    #[must_use]
    pub fn images(&self) -> Vec<QueueImage> {
        lock(&self.live).queues.values().cloned().collect()
    }

    /// Bodies of all META records.
    #[must_use]
    pub fn metas(&self) -> Vec<Vec<u8>> {
        lock(&self.live).metas.clone()
    }

    /// What every message says that this owner has published.
    #[must_use]
    pub fn payloads(&self) -> BTreeMap<(QueueId, Seq), Bytes> {
        lock(&self.live).payloads.clone()
    }

    /// Reads every filed run and compares it with what was filed.
    ///
    /// # Panics
    /// When a run cannot be read or says something else.
    pub fn check_filed(&self) {
        for id in self.queue_ids() {
            let whole = lock(&self.live).queues.get(&id).cloned();
            let whole = whole.expect("the queue exists");
            let filed = self.queue(id).expect("the queue exists");
            for run in &filed.runs {
                let read = self.storage.read_run(id, run);
                let read = read
                    .unwrap_or_else(|error| panic!("run {} of queue {id}: {error}", run.number));
                let expected: Vec<ImageEntry> = run
                    .live_seqs()
                    .filter_map(|seq| whole.entries.get(seq).copied())
                    .collect();
                assert_eq!(read, expected, "run {} of queue {id}", run.number);
            }
        }
    }

    /// Reads every live message and compares it with what was published, as far as `payloads` knows it.
    ///
    /// # Panics
    /// When a message cannot be read or is another one.
    pub fn check_payloads(&self, payloads: &BTreeMap<(QueueId, Seq), Bytes>) {
        for image in self.images() {
            for entry in image.entries.iter() {
                let read = self.storage.read(image.id, entry.seq, entry.position);
                let read = read.unwrap_or_else(|error| {
                    panic!("queue {} seq {}: {error}", image.id, entry.seq.0)
                });
                if let Some(expected) = payloads.get(&(image.id, entry.seq)) {
                    assert_eq!(read, *expected, "queue {} seq {}", image.id, entry.seq.0);
                }
            }
        }
    }
}

impl CheckpointSource for LiveStore {
    fn meta(&self) -> (Vec<u8>, Lsn) {
        let live = lock(&self.live);
        (encode_metas(&live.metas), live.meta_lsn)
    }
    fn queue_ids(&self) -> Vec<QueueId> {
        lock(&self.live).queues.keys().copied().collect()
    }
    fn queue(&self, id: QueueId) -> Option<QueueImage> {
        let live = lock(&self.live);
        Some(live.filer.image(live.queues.get(&id)?))
    }
    fn unfiled_runs(&self, id: QueueId, max_count: usize) -> Vec<Vec<ImageEntry>> {
        let live = lock(&self.live);
        let image = live.queues.get(&id);
        image.map_or_else(Vec::new, |image| live.filer.unfiled(image, max_count))
    }
    fn refs_in(
        &self,
        id: QueueId,
        segments: &BTreeSet<SegmentId>,
    ) -> (Vec<ImageEntry>, Vec<FiledRun>) {
        let live = lock(&self.live);
        let image = live.queues.get(&id);
        image.map_or_else(Default::default, |image| {
            live.filer.refs_in(image, segments)
        })
    }
    fn refile(&self, id: QueueId, old: &FiledRun, new: FiledRun) {
        let mut live = lock(&self.live);
        let Live { queues, filer, .. } = &mut *live;
        if let Some(image) = queues.get_mut(&id) {
            filer.refile(&self.storage, image, old, new);
        }
    }
    fn relocate(&self, id: QueueId, moves: &[Move]) {
        let mut live = lock(&self.live);
        let Live { queues, filer, .. } = &mut *live;
        for moved in moves {
            let entry = queues
                .get_mut(&id)
                .and_then(|image| image.entries.get_mut(moved.seq));
            if let Some(entry) = entry.filter(|entry| entry.position == moved.from) {
                entry.position = moved.to;
                filer.forget(id, FiledRun::number_of(moved.seq));
            }
        }
    }
    fn filed(&self, id: QueueId, runs: Vec<FiledRun>) {
        lock(&self.live).filer.filed(id, runs);
    }
}

fn encode_metas(metas: &[Vec<u8>]) -> Vec<u8> {
    metas.join(&b'\n')
}

fn decode_metas(bytes: &[u8]) -> Vec<Vec<u8>> {
    if bytes.is_empty() {
        return Vec::new();
    }
    bytes
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect()
}
