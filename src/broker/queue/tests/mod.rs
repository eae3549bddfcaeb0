//! Features of queues, one table or story each, against a fake log.

mod content;
mod delivery;
mod dying;
mod filing_limits;
mod groups;
mod hot_window;
mod index;
mod levels;
mod model;
mod obeying;
mod outboxes;
mod paging;
mod spilling;
mod stale;
mod storing;
mod stuck;
mod twins;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use self::index::TestIndex;
use super::*;
use crate::amqp::properties::{Properties, PropertiesBuilder};
use crate::broker::command::{ConsumerId, SettleOutcome, Unacked};
use crate::broker::confirm_runs::ConfirmRuns;
use crate::broker::consumer::{ChannelCredit, ConsumerSpec};
use crate::broker::dead_letter::LetterRoute;
use crate::broker::effects::AfterDurable;
use crate::broker::message::PayloadDecoder;
use crate::broker::outbox::{Outbox, OutboxItem};
use crate::broker::testing::{self, FakeJournal};
use crate::storage::types::Position;

/// The message of a body that was read, as the first one of a read.
pub(super) fn decoded(body: Bytes) -> Result<Arc<Message>, FetchFailure> {
    decode_body(&mut PayloadDecoder::default(), body)
}

/// Routes a dead letter by (exchange, routing key), like a set of direct exchanges.
#[derive(Default)]
pub(super) struct TableRouter {
    routes: Mutex<HashMap<(String, String), Vec<QueueHandle>>>,
    /// Letters that were routed.
    asked_count: AtomicU64,
}

impl DeadLetterRouter for TableRouter {
    fn route(
        &self,
        _vhost: &str,
        exchange: &ShortString,
        routing_keys: &[ShortString],
        _message: &Arc<Message>,
    ) -> Option<LetterRoute> {
        self.asked_count.fetch_add(1, Ordering::Relaxed);
        let routes = lock(&self.routes);
        if !routes.keys().any(|(known, _)| known == exchange.as_str()) {
            return None;
        }
        let mut targets: Vec<QueueHandle> = routing_keys
            .iter()
            .filter_map(|key| routes.get(&(exchange.to_string(), key.to_string())))
            .flatten()
            .cloned()
            .collect();
        targets.sort_by_key(|queue| queue.id());
        targets.dedup_by_key(|queue| queue.id());
        Some(LetterRoute {
            targets,
            histories: Vec::new(),
        })
    }

    /// Routes are only added.
    fn version(&self, _vhost: &str) -> u64 {
        lock(&self.routes).values().map(Vec::len).sum::<usize>() as u64
    }
}

/// A consumer of a test.
#[derive(Clone)]
pub(super) struct TestConsumer {
    pub(super) id: ConsumerId,
    pub(super) outbox: Arc<Outbox>,
}

/// One broker's worth of queues, log and time.
pub(super) struct Rig {
    pub(super) journal: Arc<FakeJournal>,
    pub(super) shared: QueueShared,
    pub(super) router: TableRouter,
    pub(super) now_ms: u64,
    pub(super) effects: Effects,
    pub(super) index: TestIndex,
    spill_files: spilling::SpillFiles,
    next_id: u64,
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with_memory(1 << 30)
    }

    pub(super) fn with_memory(resident_max_bytes: u64) -> Self {
        let journal = FakeJournal::new();
        Self {
            shared: QueueShared::new(Arc::<FakeJournal>::clone(&journal), resident_max_bytes),
            journal,
            router: TableRouter::default(),
            now_ms: 1_000_000,
            effects: Effects::default(),
            index: TestIndex::default(),
            spill_files: spilling::SpillFiles::default(),
            next_id: 1,
        }
    }

    /// Queues are filed as soon as they have a message, and nothing stays in memory that can leave.
    pub(super) fn paging() -> Self {
        let mut rig = Self::new();
        let shared = QueueShared::new(Arc::<FakeJournal>::clone(&rig.journal), 1 << 30);
        rig.shared = shared.with_index_limits(IndexLimits {
            min_messages: 0,
            entries_max_bytes: 0,
        });
        rig
    }

    pub(super) fn turn<T>(&mut self, work: impl FnOnce(&mut Turn<'_>) -> T) -> T {
        let mut turn = Turn::new(&self.shared, &self.router, self.now_ms, &mut self.effects);
        let result = work(&mut turn);
        turn.finish();
        result
    }

    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(super) fn spec(&mut self, name: &str) -> QueueSpec {
        QueueSpec {
            id: QueueId(self.next_id()),
            vhost: "/".into(),
            name: ShortString::from_text(name).unwrap(),
            is_durable: true,
            exclusive_owner: None,
            is_auto_delete: false,
            arguments: FieldTable::default(),
        }
    }

    pub(super) fn queue_with(&mut self, name: &str, settings: QueueArguments) -> QueueHandle {
        let spec = self.spec(name);
        Queue::new(spec, settings.shared(), Lsn(0), self.now_ms)
    }

    pub(super) fn queue(&mut self, name: &str) -> QueueHandle {
        self.queue_with(name, QueueArguments::default())
    }

    /// Dead letters for `exchange` with `key` go to `queue`.
    pub(super) fn bind(&mut self, exchange: &str, key: &str, queue: &QueueHandle) {
        lock(&self.router.routes)
            .entry((exchange.into(), key.into()))
            .or_default()
            .push(Arc::clone(queue));
    }

    pub(super) fn publish(&mut self, queue: &QueueHandle, message: Message) -> ConfirmAt {
        self.publish_all(std::slice::from_ref(queue), vec![message])[0]
    }

    pub(super) fn publish_all(
        &mut self,
        targets: &[QueueHandle],
        messages: Vec<Message>,
    ) -> Vec<ConfirmAt> {
        let mut messages: Vec<_> = messages.into_iter().map(Arc::new).collect();
        let mut out = ConfirmRuns::default();
        self.turn(|turn| super::publish(turn, targets, &mut messages, &mut out))
            .expect("no target is deleted");
        out.each()
    }

    /// Publishes one persistent message per letter.
    pub(super) fn publish_texts(&mut self, queue: &QueueHandle, bodies: &str) {
        for body in bodies.chars() {
            self.publish(queue, persistent(&body.to_string()));
        }
    }

    pub(super) fn consume(
        &mut self,
        queue: &QueueHandle,
        change: impl FnOnce(&mut ConsumerSpec),
    ) -> TestConsumer {
        let outbox = testing::outbox();
        let id = ConsumerId(self.next_id());
        let mut spec = ConsumerSpec {
            id,
            channel: 1,
            outbox: Arc::clone(&outbox),
            is_no_ack: false,
            is_exclusive: false,
            prefetch: 0,
            priority: 0,
            channel_credit: Arc::new(ChannelCredit::new()),
        };
        change(&mut spec);
        self.turn(|turn| super::consume(turn, queue, spec))
            .expect("the consumer is welcome");
        TestConsumer { id, outbox }
    }

    pub(super) fn settle(&mut self, items: &[Delivery], outcome: SettleOutcome) {
        let mut held: Vec<Unacked> = Vec::new();
        for delivery in items {
            let one = delivery.unacked();
            match self.shared.has_straight_way() {
                true => Unacked::join(&mut held, &one.queue, one.consumer, one.seqs),
                false => held.push(one),
            }
        }
        self.turn(|turn| super::settle(turn, &mut held, outcome));
    }

    pub(super) fn get(&mut self, queue: &QueueHandle) -> Option<Delivery> {
        let outbox = testing::outbox();
        match self.turn(|turn| super::get(turn, queue, 7, &outbox, false)) {
            GetOutcome::Got(delivery, _) => Some(delivery),
            GetOutcome::Pending => {
                self.settle_down();
                testing::drain(&outbox).into_deliveries().next()
            }
            GetOutcome::Empty | GetOutcome::Deleted => None,
        }
    }

    /// Takes everything from a queue by `get`: body and redelivered mark.
    pub(super) fn take_all(&mut self, queue: &QueueHandle) -> Vec<String> {
        std::iter::from_fn(|| self.get(queue))
            .map(|d| show(&d))
            .collect()
    }

    /// Everything becomes durable, and all that waits for it or for the disk goes on.
    pub(super) fn settle_down(&mut self) {
        loop {
            self.journal.make_durable();
            let after = std::mem::take(&mut self.effects.after_durable);
            let fetches = std::mem::take(&mut self.effects.fetches);
            let loads = std::mem::take(&mut self.effects.run_loads);
            if after.is_empty() && fetches.is_empty() && loads.is_empty() {
                return;
            }
            for load in loads {
                self.answer(load);
            }
            for (_, what) in after {
                match what {
                    AfterDurable::Redispatch(queue) => {
                        self.turn(|turn| super::dispatch(turn, &queue));
                    }
                    AfterDurable::Reveal(queue) => self.turn(|turn| super::reveal(turn, &queue)),
                }
            }
            for fetch in fetches {
                // One by one: as many critical sections as there can be.
                for &(seq, position) in &fetch.wanted {
                    let result = if fetch.is_spilled {
                        self.spill_files.read(position)
                    } else {
                        self.read(position)
                    };
                    self.turn(|turn| {
                        super::fetched(turn, &fetch.queue, vec![(seq, result.and_then(decoded))])
                    });
                }
            }
        }
    }

    fn read(&self, position: Position) -> Result<Bytes, FetchFailure> {
        self.journal.read(position).ok_or_else(|| FetchFailure {
            reason: "no record there".into(),
        })
    }

    /// Lets time pass and the timers that become due fire.
    pub(super) fn advance(&mut self, ms: u64) -> Vec<Aftermath> {
        self.now_ms += ms;
        let timers = std::mem::take(&mut self.effects.timers);
        let (due, later): (Vec<_>, Vec<_>) = timers
            .into_iter()
            .partition(|timer| timer.due_at_ms <= self.now_ms);
        self.effects.timers = later;
        due.iter()
            .map(|timer| self.turn(|turn| super::timer_due(turn, &timer.queue)))
            .collect()
    }
}

pub(super) fn message(body: &str, change: impl FnOnce(&mut PropertiesBuilder)) -> Message {
    let mut properties = PropertiesBuilder::new();
    change(&mut properties);
    Message::new(
        ShortString::from_static("ex"),
        ShortString::from_static("key"),
        properties.build(),
        vec![Bytes::copy_from_slice(body.as_bytes())],
    )
}

pub(super) fn persistent(body: &str) -> Message {
    message(body, |properties| {
        properties.set_delivery_mode(Some(2));
    })
}

pub(super) fn transient(body: &str) -> Message {
    Message::new(
        ShortString::default(),
        ShortString::from_static("q"),
        Properties::default(),
        vec![Bytes::copy_from_slice(body.as_bytes())],
    )
}

pub(super) fn body_of(message: &Message) -> String {
    String::from_utf8(message.body().concat()).unwrap()
}

/// `a`, or `a*` when it is marked as redelivered.
pub(super) fn show(delivery: &Delivery) -> String {
    let mark = if delivery.is_redelivered { "*" } else { "" };
    format!("{}{mark}", body_of(&delivery.message))
}

/// The deliveries in an outbox.
pub(super) fn deliveries(consumer: &TestConsumer) -> Vec<Delivery> {
    testing::drain(&consumer.outbox).into_deliveries().collect()
}

pub(super) fn shown(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(show).collect()
}
