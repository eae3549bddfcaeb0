//! A store whose topology is the broker's own and whose live state is kept beside it, for scripts that need exact
//! control over batches: what the broker would do for a client, without one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use stratamq::amqp::field_table::FieldTable;
use stratamq::amqp::properties::Properties;
use stratamq::amqp::short_string::ShortString;
use stratamq::broker::message::Message;
use stratamq::broker::meta::{Change, MetaState, QueueV1, VhostV1};
use stratamq::disk::{Clock, RealDisk};
use stratamq::storage::format::StoreId;
use stratamq::storage::run::FiledRun;
use stratamq::storage::testing::filer::{Filer, unfile};
use stratamq::storage::types::{
    ImageEntry, Lsn, MetaEffect, Move, Position, QueueId, Receipt, Ref, Request, SegmentId, Seq,
    SeqRange, SettleCause, Urgency,
};
use stratamq::storage::{
    CheckpointSource, CommitListener, Options, QueueImage, Recovered, Storage, StorageError,
};

struct Deaf;

impl CommitListener for Deaf {
    fn committed(&self, _: Lsn) {}
    fn has_room_again(&self) {}
    fn failed(&self, error: &StorageError) {
        panic!("{error}");
    }
}

#[derive(Default)]
struct Live {
    queues: BTreeMap<QueueId, QueueImage>,
    topology: MetaState,
    meta_lsn: Lsn,
    filer: Filer,
}

/// See the module.
pub(crate) struct Scripted {
    pub(crate) storage: Storage,
    live: Mutex<Live>,
}

/// Segments of the size of the fixtures.
pub(crate) fn options() -> Options {
    Options {
        segment_size_bytes: 64 * 1024,
        ..Options::default()
    }
}

impl Scripted {
    /// Opens a store that is stepped by hand, so that every run writes the same bytes.
    pub(crate) fn by_hand(
        root: &Path,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Recovered), StorageError> {
        Self::by_hand_with(root, clock, &options())
    }

    /// The same, with other options.
    pub(crate) fn by_hand_with(
        root: &Path,
        clock: Arc<dyn Clock>,
        options: &Options,
    ) -> Result<(Self, Recovered), StorageError> {
        let disk = Arc::new(RealDisk::new(root.to_owned()).expect("a directory"));
        let name = StoreId(*b"strata fixtures!");
        let (storage, recovered) =
            Storage::open_by_hand(disk, clock, options.clone(), Arc::new(Deaf), name)?;
        Ok(Self::over(storage, recovered, options))
    }

    /// Opens a store with a commit thread.
    pub(crate) fn threaded(
        root: &Path,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Recovered), StorageError> {
        let disk = Arc::new(RealDisk::new(root.to_owned()).expect("a directory"));
        let (storage, recovered) = Storage::open(disk, clock, options(), Arc::new(Deaf))?;
        Ok(Self::over(storage, recovered, &options()))
    }

    fn over(storage: Storage, mut recovered: Recovered, options: &Options) -> (Self, Recovered) {
        let filer = Filer::new(options, &recovered);
        unfile(&storage, &mut recovered.queues).expect("what is filed can be read");
        let snapshot = recovered.meta_snapshot.as_deref();
        let mut topology = snapshot.map_or_else(MetaState::new, |bytes| {
            MetaState::decode(bytes).expect("our own")
        });
        for record in &recovered.meta_records {
            topology
                .apply(Change::decode(record.kind, record.version, &record.body).expect("our own"));
        }
        let live = Live {
            queues: recovered
                .queues
                .iter()
                .map(|queue| (queue.id, queue.clone()))
                .collect(),
            topology,
            meta_lsn: storage.confirm_lsn(),
            filer,
        };
        let store = Self {
            storage,
            live: Mutex::new(live),
        };
        (store, recovered)
    }

    /// Commits what was pushed, as one batch.
    pub(crate) fn commit(&self) {
        while self.storage.step().expect("the disk works") {}
    }

    /// Declares the vhost `/` and plain durable queues with these names, numbered from 1.
    pub(crate) fn declare(&self, queues: &[&str]) {
        self.change(Change::VhostAdded(VhostV1 { name: "/".into() }));
        for (id, name) in (1..).zip(queues) {
            self.change(Change::QueueDeclared(QueueV1 {
                id,
                vhost: "/".into(),
                name: (*name).into(),
                is_auto_delete: false,
                arguments: arguments(&FieldTable::default()),
            }));
        }
    }

    /// Changes the topology.
    pub(crate) fn change(&self, change: Change) {
        let mut live = self.live.lock().expect("no panic");
        let (kind, version) = change.kind_and_version();
        let effect = match &change {
            Change::QueueDeclared(queue) => MetaEffect::QueueCreated(QueueId(queue.id)),
            Change::QueueDeleted(queue) => MetaEffect::QueueDeleted(QueueId(queue.id)),
            _ => MetaEffect::None,
        };
        let request = Request::Meta {
            kind,
            version,
            effect,
            body: &change.encode(),
        };
        let receipt = self.push(&[request], &mut Vec::new());
        match effect {
            MetaEffect::QueueCreated(id) => {
                drop(live.queues.insert(id, QueueImage::new(id, receipt.end)))
            }
            MetaEffect::QueueDeleted(id) => drop(live.queues.remove(&id)),
            MetaEffect::None => {}
        }
        live.topology.apply(change);
        live.meta_lsn = receipt.end;
    }

    /// Publishes a message to queues in ascending id; each target with its own expiry.
    pub(crate) fn publish(
        &self,
        message: &Message,
        targets: &[(u64, u64)],
        priority: u8,
        time_ms: u64,
    ) -> Position {
        self.publish_ranked(message, targets, (0, priority), time_ms)
    }

    /// The same, with the rank that queues with priorities give it.
    pub(crate) fn publish_ranked(
        &self,
        message: &Message,
        targets: &[(u64, u64)],
        (rank, priority): (u16, u8),
        time_ms: u64,
    ) -> Position {
        let mut live = self.live.lock().expect("no panic");
        let refs: Vec<Ref> = targets
            .iter()
            .map(|(id, expires_at_ms)| {
                let queue = QueueId(*id);
                Ref {
                    queue,
                    seq: Seq::new(rank, live.queues[&queue].next_seq.count()),
                    expires_at_ms: *expires_at_ms,
                }
            })
            .collect();
        let mut positions = Vec::new();
        let request = Request::Publish {
            refs: &refs,
            priority,
            time_ms,
            payload: message.payload(),
            payload_crc: message.payload_crc(),
        };
        let receipt = self.push(&[request], &mut positions);
        for r in &refs {
            let entry = ImageEntry::published(r, positions[0], priority);
            let image = live.queues.get_mut(&r.queue).expect("the queue exists");
            image.apply_publish(entry, positions[0].lsn, receipt.end);
        }
        positions[0]
    }

    /// Messages leave a queue.
    pub(crate) fn settle(&self, queue: u64, cause: SettleCause, ranges: &[(u64, u64)]) {
        let ranges: Vec<SeqRange> = ranges
            .iter()
            .map(|(first, last)| SeqRange {
                first: Seq(*first),
                last: Seq(*last),
            })
            .collect();
        let request = Request::Settle {
            queue: QueueId(queue),
            cause,
            ranges: &ranges,
        };
        self.touch(queue, request, |image, start, end| {
            image.apply_settle(ranges.iter().copied(), start, end)
        });
    }

    /// A message goes back to its place.
    pub(crate) fn requeue(&self, queue: u64, seq: u64, delivery_count: u32) {
        let request = Request::Requeue {
            queue: QueueId(queue),
            seq: Seq(seq),
            delivery_count,
        };
        self.touch(queue, request, |image, start, end| {
            image.apply_requeue(Seq(seq), delivery_count, start, end)
        });
    }

    /// Messages below `upto` may be delivered from here on.
    pub(crate) fn reserve(&self, queue: u64, upto: u64) {
        let request = Request::Reserve {
            queue: QueueId(queue),
            upto: Seq(upto),
        };
        self.touch(queue, request, |image, start, end| {
            image.apply_reserve(Seq(upto), start, end)
        });
    }

    fn touch(
        &self,
        queue: u64,
        request: Request<'_>,
        apply: impl FnOnce(&mut QueueImage, Lsn, Lsn),
    ) {
        let mut live = self.live.lock().expect("no panic");
        let receipt = self.push(&[request], &mut Vec::new());
        let image = live
            .queues
            .get_mut(&QueueId(queue))
            .expect("the queue exists");
        apply(image, image.last_lsn, receipt.end);
    }

    fn push(&self, requests: &[Request<'_>], positions: &mut Vec<Position>) -> Receipt {
        self.storage
            .push(requests, false, Urgency::Waited, positions)
    }

    /// The live topology.
    pub(crate) fn topology(&self) -> MetaState {
        self.live.lock().expect("no panic").topology.clone()
    }

    /// The live state of all queues.
    pub(crate) fn queues(&self) -> Vec<QueueImage> {
        self.live
            .lock()
            .expect("no panic")
            .queues
            .values()
            .cloned()
            .collect()
    }
}

impl CheckpointSource for Scripted {
    fn meta(&self) -> (Vec<u8>, Lsn) {
        let live = self.live.lock().expect("no panic");
        (live.topology.clone().encode(), live.meta_lsn)
    }
    fn queue_ids(&self) -> Vec<QueueId> {
        self.live
            .lock()
            .expect("no panic")
            .queues
            .keys()
            .copied()
            .collect()
    }
    fn queue(&self, id: QueueId) -> Option<QueueImage> {
        let live = self.live.lock().expect("no panic");
        Some(live.filer.image(live.queues.get(&id)?))
    }
    fn unfiled_runs(&self, id: QueueId, max_count: usize) -> Vec<Vec<ImageEntry>> {
        let live = self.live.lock().expect("no panic");
        let image = live.queues.get(&id);
        image.map_or_else(Vec::new, |image| live.filer.unfiled(image, max_count))
    }
    fn refs_in(
        &self,
        id: QueueId,
        segments: &BTreeSet<SegmentId>,
    ) -> (Vec<ImageEntry>, Vec<FiledRun>) {
        let live = self.live.lock().expect("no panic");
        let image = live.queues.get(&id);
        let entries = image.into_iter().flat_map(|image| image.entries.iter());
        let there = entries.filter(|entry| segments.contains(&entry.position.lsn.segment()));
        (there.copied().collect(), Vec::new())
    }
    fn relocate(&self, id: QueueId, moves: &[Move]) {
        let mut live = self.live.lock().expect("no panic");
        let Live { queues, filer, .. } = &mut *live;
        for moved in moves {
            let image = queues.get_mut(&id);
            let entry = image.and_then(|image| image.entries.get_mut(moved.seq));
            if let Some(entry) = entry.filter(|entry| entry.position == moved.from) {
                entry.position = moved.to;
                filer.forget(id, FiledRun::number_of(moved.seq));
            }
        }
    }
    fn filed(&self, id: QueueId, runs: Vec<FiledRun>) {
        let mut live = self.live.lock().expect("no panic");
        live.filer.filed(id, runs);
    }
}

/// A persistent message as a client would publish it.
pub(crate) fn message(exchange: &str, routing_key: &str, body: impl Into<Bytes>) -> Message {
    let name = |text| ShortString::from_text(text).expect("a short name");
    // Property flags of a content header with nothing but delivery mode 2 (AMQP 0-9-1 section 4.2.6.1).
    let properties =
        Properties::decode(Bytes::from_static(&[0x10, 0x00, 2])).expect("flags and one octet");
    Message::new(
        name(exchange),
        name(routing_key),
        properties,
        vec![body.into()],
    )
}

/// Arguments as META records keep them.
pub(crate) fn arguments(table: &FieldTable) -> Vec<u8> {
    table.to_bytes().to_vec()
}
