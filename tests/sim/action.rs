//! The operations of scripts, turned into pushes under the lock, as the broker does them.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Mutex;

use bytes::Bytes;
use stratamq::storage::run::FiledRun;
use stratamq::storage::types::{
    ImageEntry, Lsn, MetaEffect, Move, Position, QueueId, Ref, Request, SegmentId, SeqRange,
    SettleCause, Urgency,
};
use stratamq::storage::{CheckpointSource, QueueImage, ReadError};

use super::live::{Live, Slot};
use super::model::{Body, Event};
use super::world::{Dead, META_KIND, META_VERSION, World};

/// One operation of a script. Operations on slots without a queue do nothing.
#[derive(Clone, Debug)]
pub(super) enum Action {
    /// Declares a queue.
    Create(Slot),
    /// Deletes a queue with all its messages.
    Delete(Slot),
    /// A META record that concerns no queue.
    Meta,
    /// Publishes `count` messages of `len_bytes` to all of the queues, in one push.
    Publish {
        to: Vec<Slot>,
        count: usize,
        len_bytes: u32,
        expires: bool,
    },
    /// Acknowledges the chosen messages; nobody waits.
    Ack(Slot, Pick),
    /// Takes the chosen messages out and waits.
    Purge(Slot, Pick),
    /// Puts the first message back.
    Requeue(Slot),
    /// Reserves some seqs for delivery.
    Reserve(Slot),
    /// Hands messages to a consumer, as far as reservations allow.
    Deliver(Slot, usize),
    /// Takes seqs for messages that are not logged.
    Transient(Slot),
    /// One atomic group: the first message of `from` is settled and published again to `to`.
    DeadLetter { from: Slot, to: Slot },
    /// One atomic group: a message of `len_bytes` to each of `to`, and the first two of `acks` settled.
    Transaction {
        to: Vec<Slot>,
        len_bytes: u32,
        acks: Vec<Slot>,
    },
    /// A checkpoint; the operations take place one by one between its looks at the queues.
    Checkpoint(Vec<Action>),
    /// Moves the last messages out of nearly empty segments; the operations take place while it does.
    Compact(Vec<Action>),
    /// Clean stop and start.
    Reopen,
    /// One commit for all of them.
    Burst(Vec<Action>),
    /// Nothing for more than a second.
    Idle,
    /// Waits until the acks are durable.
    Flush,
}

/// Which messages of a queue.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pick {
    /// The first ones.
    First(usize),
    /// Every second one.
    EverySecond,
    /// All but the first, the straggler.
    AllButFirst,
    /// All.
    All,
}

impl Pick {
    fn takes(self, index: usize) -> bool {
        match self {
            Self::First(count) => index < count,
            Self::EverySecond => index % 2 == 1,
            Self::AllButFirst => index > 0,
            Self::All => true,
        }
    }
}

/// Publishes one message.
pub(super) fn publish(to: &[Slot], len_bytes: u32) -> Action {
    Action::Publish {
        to: to.to_vec(),
        count: 1,
        len_bytes,
        expires: false,
    }
}

/// Publishes several messages in one push.
pub(super) fn publish_run(to: &[Slot], count: usize, len_bytes: u32) -> Action {
    Action::Publish {
        to: to.to_vec(),
        count,
        len_bytes,
        expires: true,
    }
}

/// A message that is about to be pushed.
struct Outgoing {
    refs: Vec<Ref>,
    body: Body,
    payload: Vec<Bytes>,
    crc: u32,
}

const PRIORITY: u8 = 3;
const TIME_MS: u64 = 1_700_000_000_000;

impl Outgoing {
    fn new(live: &mut Live, to: &[Slot], len_bytes: u32, expires_at_ms: u64) -> Option<Self> {
        let body = live.body(len_bytes);
        let mut refs: Vec<Ref> = Vec::new();
        for slot in to {
            let Some(queue) = live.queue_of(*slot) else {
                continue;
            };
            refs.push(Ref {
                queue: queue.image.id,
                seq: queue.take_seq(),
                expires_at_ms,
            });
        }
        refs.sort_by_key(|r| r.queue);
        let payload = body.payload();
        let crc = crc32fast::hash(&payload);
        // As the broker does it: properties and body are parts of their own.
        let (head, body_bytes) = payload.split_at(Body::LEN_MIN_BYTES as usize);
        let payload = vec![
            Bytes::copy_from_slice(head),
            Bytes::copy_from_slice(body_bytes),
        ];
        (!refs.is_empty()).then_some(Self {
            refs,
            body,
            payload,
            crc,
        })
    }

    fn request(&self) -> Request<'_> {
        Request::Publish {
            refs: &self.refs,
            priority: PRIORITY,
            time_ms: TIME_MS,
            payload: (&self.payload[..]).into(),
            payload_crc: self.crc,
        }
    }

    fn event(&self) -> Event {
        Event::Published {
            refs: self
                .refs
                .iter()
                .map(|r| (r.queue, r.seq, r.expires_at_ms))
                .collect(),
            body: self.body,
            priority: PRIORITY,
        }
    }

    fn apply(&self, live: &mut Live, position: Position) {
        let end = Lsn(position.lsn.0 + u64::from(position.len_bytes));
        for r in &self.refs {
            let entry = ImageEntry::published(r, position, PRIORITY);
            if let Some(queue) = live.queues.get_mut(&r.queue) {
                queue.image.apply_publish(entry, position.lsn, end);
            }
        }
    }
}

impl World {
    /// Changes the state and pushes the record, in one critical section. Answers the place to wait for, if
    /// somebody waits.
    pub(super) fn push(&self, action: &Action) -> Result<Option<Lsn>, Dead> {
        let end = {
            let mut live = self.live();
            match action {
                Action::Create(slot) => self.create(&mut live, *slot),
                Action::Delete(slot) => self.delete(&mut live, *slot),
                Action::Meta => Some(self.push_meta(&mut live, MetaEffect::None, Event::Meta)),
                Action::Publish {
                    to,
                    count,
                    len_bytes,
                    expires,
                } => self.publish(&mut live, to, *count, *len_bytes, *expires),
                Action::Ack(slot, pick) => {
                    self.settle(&mut live, *slot, *pick, SettleCause::Acked, Urgency::Lazy);
                    None
                }
                Action::Purge(slot, pick) => self.settle(
                    &mut live,
                    *slot,
                    *pick,
                    SettleCause::Purged,
                    Urgency::Waited,
                ),
                Action::Requeue(slot) => self.requeue(&mut live, *slot),
                Action::Reserve(slot) => self.reserve(&mut live, *slot),
                Action::Deliver(slot, count) => {
                    self.deliver(&mut live, *slot, *count)?;
                    None
                }
                Action::Transient(slot) => {
                    if let Some(queue) = live.queue_of(*slot) {
                        queue.skip_seq();
                    }
                    None
                }
                Action::DeadLetter { from, to } => {
                    self.group(&mut live, &[*to], 64, &[(*from, Pick::First(1))])
                }
                Action::Transaction {
                    to,
                    len_bytes,
                    acks,
                } => {
                    let acks: Vec<_> = acks.iter().map(|slot| (*slot, Pick::First(2))).collect();
                    self.group(&mut live, to, *len_bytes, &acks)
                }
                Action::Checkpoint(_)
                | Action::Compact(_)
                | Action::Reopen
                | Action::Burst(_)
                | Action::Idle
                | Action::Flush => {
                    panic!("{action:?} is no push")
                }
            }
        };
        self.storage.wake();
        Ok(end)
    }

    fn push_one(&self, request: Request<'_>, urgency: Urgency) -> (Lsn, Option<Position>) {
        let mut positions = Vec::new();
        let receipt = self
            .storage
            .push(&[request], false, urgency, &mut positions);
        (receipt.end, positions.first().copied())
    }

    fn push_meta(&self, live: &mut Live, effect: MetaEffect, event: impl Fn(u64) -> Event) -> Lsn {
        let number = live.number();
        let mut body = number.to_le_bytes().to_vec();
        body.resize(8 + (number % 40) as usize, 0xee);
        let request = Request::Meta {
            kind: META_KIND,
            version: META_VERSION,
            effect,
            body: &body,
        };
        let (end, _) = self.push_one(request, Urgency::Waited);
        live.note(vec![event(number)], end);
        end
    }

    fn create(&self, live: &mut Live, slot: Slot) -> Option<Lsn> {
        if live.slots.contains_key(&slot) {
            return None;
        }
        let id = live.next_queue_id();
        let effect = MetaEffect::QueueCreated(id);
        let end = self.push_meta(live, effect, |number| Event::Created(number, id));
        let number = *live.meta.last().expect("it was just noted");
        live.create(slot, id, number, end);
        Some(end)
    }

    fn delete(&self, live: &mut Live, slot: Slot) -> Option<Lsn> {
        let id = live.slots.remove(&slot)?;
        let effect = MetaEffect::QueueDeleted(id);
        let end = self.push_meta(live, effect, |number| Event::Deleted(number, id));
        live.queues.remove(&id);
        Some(end)
    }

    fn publish(
        &self,
        live: &mut Live,
        to: &[Slot],
        count: usize,
        len_bytes: u32,
        expires: bool,
    ) -> Option<Lsn> {
        let expires_at_ms = if expires { TIME_MS + 60_000 } else { 0 };
        let messages: Vec<_> = (0..count)
            .filter_map(|_| Outgoing::new(live, to, len_bytes, expires_at_ms))
            .collect();
        if messages.is_empty() {
            return None;
        }
        let requests: Vec<_> = messages.iter().map(Outgoing::request).collect();
        let mut positions = Vec::new();
        let receipt = self
            .storage
            .push(&requests, false, Urgency::Waited, &mut positions);
        assert_eq!(
            positions.len(),
            messages.len(),
            "a position for each message"
        );
        for (message, position) in messages.iter().zip(positions) {
            message.apply(live, position);
            // Each record may survive without the next, but is waited for with the whole push.
            live.note(vec![message.event()], receipt.end);
        }
        Some(receipt.end)
    }

    fn settle(
        &self,
        live: &mut Live,
        slot: Slot,
        pick: Pick,
        cause: SettleCause,
        urgency: Urgency,
    ) -> Option<Lsn> {
        let queue = live.queue_of(slot)?;
        let ranges = queue.ranges(|index| pick.takes(index));
        if ranges.is_empty() {
            return None;
        }
        let id = queue.image.id;
        let request = Request::Settle {
            queue: id,
            cause,
            ranges: &ranges,
        };
        let (end, _) = self.push_one(request, urgency);
        queue.settle(&ranges, end);
        live.note(vec![Event::Settled { queue: id, ranges }], end);
        Some(end)
    }

    fn requeue(&self, live: &mut Live, slot: Slot) -> Option<Lsn> {
        let queue = live.queue_of(slot)?;
        let entry = *queue.image.entries.iter().next()?;
        let (id, delivery_count) = (queue.image.id, entry.delivery_count + 1);
        let request = Request::Requeue {
            queue: id,
            seq: entry.seq,
            delivery_count,
        };
        let (end, _) = self.push_one(request, Urgency::Waited);
        queue
            .image
            .apply_requeue(entry.seq, delivery_count, end, end);
        queue.delivered.remove(&entry.seq);
        let event = Event::Requeued {
            queue: id,
            seq: entry.seq,
            delivery_count,
        };
        live.note(vec![event], end);
        Some(end)
    }

    fn reserve(&self, live: &mut Live, slot: Slot) -> Option<Lsn> {
        let queue = live.queue_of(slot)?;
        let (id, upto) = (queue.image.id, queue.next_reservation());
        let (end, _) = self.push_one(Request::Reserve { queue: id, upto }, Urgency::Waited);
        queue.reserve(upto, end);
        live.note(vec![Event::Reserved { queue: id, upto }], end);
        Some(end)
    }

    fn deliver(&self, live: &mut Live, slot: Slot, count: usize) -> Result<(), Dead> {
        let confirm_lsn = self.ear.confirm_lsn();
        let Some(queue) = live.queue_of(slot) else {
            return Ok(());
        };
        let id = queue.image.id;
        for entry in queue.deliver(count, confirm_lsn) {
            live.history.deliver(id, entry.seq);
            match self.storage.read(id, entry.seq, entry.position) {
                Ok(payload) => assert!(
                    Body::of_payload(&payload).is_some(),
                    "I14: wrong bytes for queue {id} {:?}",
                    entry.seq
                ),
                Err(ReadError::Io { source, .. }) => return Err(Dead(source.to_string())),
                Err(error) if self.ear.failure().is_some() => return Err(Dead(error.to_string())),
                Err(error) => panic!("queue {id} {:?} cannot be read: {error}", entry.seq),
            }
        }
        Ok(())
    }

    fn group(
        &self,
        live: &mut Live,
        to: &[Slot],
        len_bytes: u32,
        acks: &[(Slot, Pick)],
    ) -> Option<Lsn> {
        let mut settles: Vec<(QueueId, Vec<SeqRange>)> = Vec::new();
        for (slot, pick) in acks {
            let Some(queue) = live.queue_of(*slot) else {
                continue;
            };
            let ranges = queue.ranges(|index| pick.takes(index));
            if !ranges.is_empty() {
                settles.push((queue.image.id, ranges));
            }
        }
        let messages: Vec<_> = to
            .iter()
            .filter_map(|slot| Outgoing::new(live, &[*slot], len_bytes, 0))
            .collect();
        if settles.is_empty() || messages.is_empty() {
            return None;
        }
        let mut requests: Vec<_> = messages.iter().map(Outgoing::request).collect();
        requests.extend(settles.iter().map(|(queue, ranges)| Request::Settle {
            queue: *queue,
            cause: SettleCause::DeadLettered,
            ranges,
        }));
        let mut positions = Vec::new();
        let receipt = self
            .storage
            .push(&requests, true, Urgency::Waited, &mut positions);
        let mut events: Vec<_> = messages.iter().map(Outgoing::event).collect();
        for (message, position) in messages.iter().zip(positions) {
            message.apply(live, position);
        }
        for (id, ranges) in settles {
            if let Some(queue) = live.queues.get_mut(&id) {
                queue.settle(&ranges, receipt.end);
            }
            events.push(Event::Settled { queue: id, ranges });
        }
        live.note(events, receipt.end);
        Some(receipt.end)
    }
}

/// What a checkpoint asks, with operations that happen in between.
pub(super) struct Source<'a> {
    world: &'a World,
    meanwhile: Mutex<VecDeque<&'a Action>>,
    is_exact: bool,
}

impl<'a> Source<'a> {
    pub(super) fn new(world: &'a World, meanwhile: &'a [Action]) -> Self {
        Self {
            world,
            meanwhile: Mutex::new(meanwhile.iter().collect()),
            is_exact: false,
        }
    }

    /// The source of a clean stop.
    pub(super) fn exact(world: &'a World) -> Self {
        Self {
            is_exact: true,
            ..Self::new(world, &[])
        }
    }

    /// Lets the next operation happen. Its commit is awaited, so that the order of disk operations is always the same.
    fn happen(&self) {
        let next = self
            .meanwhile
            .lock()
            .expect("no test panics in it")
            .pop_front();
        if let Some(action) = next
            && let Ok(Some(end)) = self.world.push(action)
        {
            // A dead engine is noticed by the checkpoint itself.
            let _ = self.world.wait(end);
        }
    }
}

impl CheckpointSource for Source<'_> {
    fn meta(&self) -> (Vec<u8>, Lsn) {
        self.happen();
        let live = self.world.live();
        let bytes = live
            .meta
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect();
        (bytes, live.meta_lsn)
    }

    fn queue_ids(&self) -> Vec<QueueId> {
        self.happen();
        self.world.live().queues.keys().copied().collect()
    }

    fn refs_in(
        &self,
        id: QueueId,
        segments: &BTreeSet<SegmentId>,
    ) -> (Vec<ImageEntry>, Vec<FiledRun>) {
        self.happen();
        let live = self.world.live();
        let queue = live.queues.get(&id);
        queue.map_or_else(Default::default, |queue| {
            live.filer.refs_in(&queue.image, segments)
        })
    }

    fn refile(&self, id: QueueId, old: &FiledRun, new: FiledRun) {
        self.happen();
        let mut live = self.world.live();
        let Live { queues, filer, .. } = &mut *live;
        if let Some(queue) = queues.get_mut(&id) {
            filer.refile(&self.world.storage, &mut queue.image, old, new);
        }
    }

    fn relocate(&self, id: QueueId, moves: &[Move]) {
        self.happen();
        let mut live = self.world.live();
        let Live { queues, filer, .. } = &mut *live;
        let Some(queue) = queues.get_mut(&id) else {
            return;
        };
        for moved in moves {
            let entry = queue.image.entries.get_mut(moved.seq);
            if let Some(entry) = entry.filter(|entry| entry.position == moved.from) {
                entry.position = moved.to;
                filer.forget(id, FiledRun::number_of(moved.seq));
            }
        }
    }

    fn queue(&self, id: QueueId) -> Option<QueueImage> {
        self.happen();
        let live = self.world.live();
        let queue = live.queues.get(&id)?;
        Some(if self.is_exact {
            live.filer.image(&queue.exact_image())
        } else {
            live.filer.image(&queue.image)
        })
    }

    fn unfiled_runs(&self, id: QueueId, max_count: usize) -> Vec<Vec<ImageEntry>> {
        let live = self.world.live();
        let queue = live.queues.get(&id);
        queue.map_or_else(Vec::new, |queue| {
            live.filer.unfiled(&queue.image, max_count)
        })
    }

    fn filed(&self, id: QueueId, runs: Vec<FiledRun>) {
        // Between writing the blocks and letting go of what they say, messages may leave.
        self.happen();
        self.world.live().filer.filed(id, runs);
    }
}
