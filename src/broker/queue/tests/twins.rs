//! Two brokers that are told the same, of which one knows the general way of a message only: nobody can tell them apart.

use std::fmt::Write as _;
use std::sync::Arc;

use proptest::prelude::*;

use super::{Rig, TestConsumer, body_of, message};
use crate::broker::arguments::{Overflow, QueueArguments, QueueKind};
use crate::broker::command::{Delivery, SettleOutcome};
use crate::broker::confirm_runs::ConfirmRuns;
use crate::broker::consumer::ChannelCredit;
use crate::broker::message::Message;
use crate::broker::outbox::{Outbox, OutboxItem, OutboxItems, OutboxLimit, Wake};
use crate::broker::queue::{ImageKind, QueueHandle, cancel, get, outbox_drained, publish, purge};

/// A few messages fill an outbox of 32 KiB.
const LARGE_BODY_BYTES: usize = 9000;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Durable,
    Transient,
    Ttl,
    SingleActive,
    Short,
    Refusing,
    Levels,
    Quorum,
}

#[derive(Clone, Debug)]
enum Step {
    Publish {
        count: usize,
        targets: u8,
        is_persistent: bool,
        is_large: bool,
        ttl_ms: Option<u64>,
    },
    Consume {
        queue: usize,
        outbox: usize,
        is_no_ack: bool,
        prefetch: u16,
        priority: i64,
    },
    Cancel {
        at: usize,
    },
    Get {
        queue: usize,
    },
    Drain {
        outbox: usize,
    },
    Settle {
        at: usize,
        count: usize,
        outcome: SettleOutcome,
    },
    Limit {
        limit: u32,
    },
    Purge {
        queue: usize,
    },
    SettleDown,
    Wait,
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![
        4 => Just(SettleOutcome::Ack),
        1 => Just(SettleOutcome::Reject),
        1 => Just(SettleOutcome::Requeue),
        1 => Just(SettleOutcome::Return),
    ];
    let ttl_ms = prop_oneof![6 => Just(None), 1 => Just(Some(0)), 1 => Just(Some(50))];
    prop_oneof![
        8 => (1usize..6, 1u8..8, any::<bool>(), any::<bool>(), ttl_ms).prop_map(
            |(count, targets, is_persistent, is_large, ttl_ms)| Step::Publish {
                count, targets, is_persistent, is_large, ttl_ms,
            }
        ),
        1 => (200usize..300, 1u8..8, any::<bool>()).prop_map(
            |(count, targets, is_persistent)| Step::Publish {
                count, targets, is_persistent, is_large: false, ttl_ms: None,
            }
        ),
        3 => (0usize..3, 0usize..2, any::<bool>(), 0u16..4, 0i64..2).prop_map(
            |(queue, outbox, is_no_ack, prefetch, priority)| Step::Consume {
                queue, outbox, is_no_ack, prefetch, priority,
            }
        ),
        1 => (0usize..8).prop_map(|at| Step::Cancel { at }),
        1 => (0usize..3).prop_map(|queue| Step::Get { queue }),
        4 => (0usize..2).prop_map(|outbox| Step::Drain { outbox }),
        4 => (0usize..8, 1usize..9, outcome)
            .prop_map(|(at, count, outcome)| Step::Settle { at, count, outcome }),
        1 => (0u32..4).prop_map(|limit| Step::Limit { limit }),
        1 => (0usize..3).prop_map(|queue| Step::Purge { queue }),
        3 => Just(Step::SettleDown),
        1 => Just(Step::Wait),
    ]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        4 => Just(Kind::Durable),
        4 => Just(Kind::Transient),
        1 => Just(Kind::Ttl),
        1 => Just(Kind::SingleActive),
        1 => Just(Kind::Short),
        1 => Just(Kind::Refusing),
        1 => Just(Kind::Levels),
        1 => Just(Kind::Quorum),
    ]
}

#[derive(Debug)]
struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

struct World {
    rig: Rig,
    queues: Vec<QueueHandle>,
    outboxes: Vec<Arc<Outbox>>,
    credit: Arc<ChannelCredit>,
    consumers: Vec<(usize, TestConsumer)>,
    held: Vec<Delivery>,
    published_count: usize,
    /// What could be seen from outside.
    story: String,
}

impl World {
    fn new(kinds: &[Kind], is_roundabout: bool, resident_max_bytes: u64) -> Self {
        let mut rig = Rig::with_memory(resident_max_bytes);
        rig.shared.set_roundabout(is_roundabout);
        let queues = kinds.iter().enumerate().map(|(at, kind)| {
            let mut spec = rig.spec(&format!("q{at}"));
            let mut settings = QueueArguments::default();
            match kind {
                Kind::Durable => {}
                Kind::Transient => spec.is_durable = false,
                Kind::Ttl => settings.message_ttl_ms = Some(80),
                Kind::SingleActive => settings.is_single_active_consumer = true,
                Kind::Short => settings.max_length = Some(3),
                Kind::Refusing => {
                    settings.max_length = Some(3);
                    settings.overflow = Overflow::RejectPublish;
                }
                Kind::Levels => settings.max_priority = Some(3),
                Kind::Quorum => settings.kind = QueueKind::Quorum,
            }
            super::Queue::new(spec, settings.shared(), super::Lsn(0), rig.now_ms)
        });
        let queues = queues.collect();
        let limit = Arc::new(OutboxLimit::default());
        limit.set_scarce(true);
        let outbox = || Arc::new(Outbox::within(Box::new(NoWake), Arc::clone(&limit)));
        Self {
            queues,
            rig,
            outboxes: vec![outbox(), outbox()],
            credit: Arc::new(ChannelCredit::new()),
            consumers: Vec::new(),
            held: Vec::new(),
            published_count: 0,
            story: String::new(),
        }
    }

    fn tell(&mut self, what: impl std::fmt::Debug) {
        writeln!(self.story, "{what:?}").expect("a text takes everything");
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Publish {
                count,
                targets,
                is_persistent,
                is_large,
                ttl_ms,
            } => {
                let chosen = self.queues.iter().enumerate();
                let chosen = chosen.filter(|(at, _)| targets & (1 << at) != 0);
                let targets: Vec<_> = chosen.map(|(_, queue)| Arc::clone(queue)).collect();
                let mut messages: Vec<_> = (0..count)
                    .map(|_| Arc::new(self.message(is_persistent, is_large, ttl_ms)))
                    .collect();
                let mut out = ConfirmRuns::default();
                let result = self
                    .rig
                    .turn(|turn| publish(turn, &targets, &mut messages, &mut out));
                result.expect("nothing is deleted");
                self.tell(out.each());
            }
            Step::Consume {
                queue,
                outbox,
                is_no_ack,
                prefetch,
                priority,
            } => {
                let outbox = &self.outboxes[outbox];
                let own_credit = Arc::new(ChannelCredit::new());
                // A quorum queue serves no channel with a limit.
                let credit = match self.queues[queue].is_quorum() {
                    true => &own_credit,
                    false => &self.credit,
                };
                let consumer = self.rig.consume(&self.queues[queue], |spec| {
                    spec.outbox = Arc::clone(outbox);
                    spec.is_no_ack = is_no_ack;
                    spec.prefetch = prefetch;
                    spec.priority = priority;
                    spec.channel_credit = Arc::clone(credit);
                });
                self.consumers.push((queue, consumer));
            }
            Step::Cancel { at } => {
                if !self.consumers.is_empty() {
                    let (queue, consumer) = self.consumers.remove(at % self.consumers.len());
                    let queue = &self.queues[queue];
                    let _ = self.rig.turn(|turn| cancel(turn, queue, consumer.id));
                }
            }
            Step::Get { queue } => {
                let (queue, outbox) = (&self.queues[queue], &self.outboxes[0]);
                let got = self.rig.turn(|turn| get(turn, queue, 1, outbox, false));
                if let super::GetOutcome::Got(delivery, remaining) = got {
                    self.tell(remaining);
                    self.receive(delivery);
                }
            }
            Step::Drain { outbox } => self.drain(outbox),
            Step::Settle { at, count, outcome } => {
                if !self.held.is_empty() {
                    let from = at % self.held.len();
                    let upto = (from + count).min(self.held.len());
                    let items: Vec<_> = self.held.drain(from..upto).collect();
                    self.rig.settle(&items, outcome);
                }
            }
            Step::Limit { limit } => {
                let credit = Arc::clone(&self.credit);
                self.rig
                    .turn(|turn| credit.set_limit(limit, &mut turn.resumed));
            }
            Step::Purge { queue } => {
                let queue = &self.queues[queue];
                let _ = self.rig.turn(|turn| purge(turn, queue));
            }
            Step::SettleDown => self.rig.settle_down(),
            Step::Wait => {
                self.rig.advance(30);
            }
        }
        self.look();
    }

    fn message(&mut self, is_persistent: bool, is_large: bool, ttl_ms: Option<u64>) -> Message {
        self.published_count += 1;
        let width = if is_large { LARGE_BODY_BYTES } else { 1 };
        let body = format!("{:width$}", self.published_count);
        let priority = u8::try_from(self.published_count % 5).expect("below 5");
        message(&body, |properties| {
            properties
                .set_delivery_mode(Some(1 + u8::from(is_persistent)))
                .set_priority(Some(priority));
            if let Some(ttl_ms) = ttl_ms {
                let ttl = super::ShortString::from_text(&ttl_ms.to_string());
                properties.set_expiration(ttl);
            }
        })
    }

    fn drain(&mut self, at: usize) {
        let outbox = Arc::clone(&self.outboxes[at]);
        let mut items = OutboxItems::default();
        let is_due = outbox.drain(&mut items);
        self.tell((at, is_due));
        let told: Vec<(usize, Option<String>)> = items.list().iter().map(described).collect();
        let mut deliveries = items.into_deliveries();
        for (count, text) in told {
            text.into_iter().for_each(|text| self.tell(text));
            for delivery in deliveries.by_ref().take(count) {
                self.receive(delivery);
            }
        }
        if is_due {
            self.rig.turn(|turn| outbox_drained(turn, &outbox));
        }
    }

    fn receive(&mut self, delivery: Delivery) {
        let place = (delivery.queue.id(), delivery.seq, delivery.consumer);
        let marks = (delivery.is_redelivered, delivery.is_settled);
        let body = body_of(&delivery.message);
        self.tell((place, marks, body.trim_start(), delivery.channel));
        if !delivery.is_settled {
            self.held.push(delivery);
        }
    }

    fn look(&mut self) {
        let boxes = self.outboxes.iter().map(|outbox| outbox.size_bytes());
        let boxes: Vec<_> = boxes.collect();
        self.tell((boxes, self.credit.used(), self.rig.shared.resident_bytes()));
        for queue in self.queues.clone() {
            queue.check_sums();
            self.tell(queue.stats());
            self.tell(queue.image(ImageKind::Running));
            let state = super::lock(&queue.state);
            let marks = (state.delivered_upto, state.last_lsn, state.armed_at_ms);
            let sums = state.slots.sums().clone();
            let entries = state.slots.iter().map(|(seq, slot)| {
                let marks = (slot.is_logged, slot.is_redelivered, slot.is_covered);
                let body = (slot.message.is_some(), slot.is_fetching, slot.body_bytes());
                let counts = (slot.delivery_count, slot.expires_at_ms);
                (seq, slot.status, marks, body, counts, slot.position())
            });
            let entries: Vec<_> = entries.collect();
            let next_seq = state.slots.next_seq();
            let run_count = state.slots.run_count();
            drop(state);
            assert!(run_count <= entries.len() + 8, "empty runs end");
            self.tell((marks, sums, entries, next_seq));
        }
    }
}

/// How many deliveries an item is, and what else it says. How deliveries are cut into runs is nobody's business.
fn described(item: &OutboxItem) -> (usize, Option<String>) {
    match item {
        OutboxItem::Deliver(run) => (run.len(), None),
        OutboxItem::GetReady { got, .. } => {
            let left = got.as_ref().map(|got| got.1);
            (usize::from(got.is_some()), Some(format!("get {left:?}")))
        }
        other => (0, Some(format!("{other:?}"))),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn straight_way_ends_where_the_general_one_does(
        kinds in prop::collection::vec(kind(), 3),
        resident_max_bytes in prop_oneof![Just(0u64), Just(1 << 30)],
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut straight = World::new(&kinds, false, resident_max_bytes);
        let mut roundabout = World::new(&kinds, true, resident_max_bytes);
        for step in &steps {
            straight.run(step);
            roundabout.run(step);
            for (straight, roundabout) in straight.story.lines().zip(roundabout.story.lines()) {
                prop_assert_eq!(straight, roundabout);
            }
            prop_assert_eq!(straight.story.len(), roundabout.story.len());
            straight.story.clear();
            roundabout.story.clear();
        }
        let records = |world: &World| format!("{:?}", world.rig.journal.pushes());
        prop_assert_eq!(records(&straight), records(&roundabout));
    }
}
