//! A queue against a small model: whatever is done, nothing is lost, nothing comes twice, the order holds,
//! and the log tells the same story as memory.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::index::Pass;
use super::*;
use crate::broker::queue::ImageKind;
use crate::storage::image::Entries;
use crate::storage::types::ImageEntry;

#[derive(Clone, Debug)]
enum Step {
    Publish {
        is_persistent: bool,
    },
    Get,
    Settle {
        at: usize,
        outcome: SettleOutcome,
    },
    SettleAll {
        outcome: SettleOutcome,
    },
    Purge,
    SettleDown,
    Drain,
    /// The consumer goes; what it holds stays held.
    Cancel,
    /// Another one comes, unless one is there.
    Consume,
    /// A whole filing.
    File,
    /// Its first half; the second comes with some later step, or never.
    Offer,
    Accept,
    /// A run that was asked for is answered, in any order.
    Load {
        at: usize,
    },
    Restart {
        kind: ImageKind,
    },
    /// Some records are copied to another segment.
    Copy {
        modulus: u64,
    },
    /// The queue is told of a copy: not always of the latest.
    Swap {
        at: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![
        Just(SettleOutcome::Ack),
        Just(SettleOutcome::Reject),
        Just(SettleOutcome::Requeue)
    ];
    prop_oneof![
        8 => any::<bool>().prop_map(|is_persistent| Step::Publish { is_persistent }),
        2 => Just(Step::Get),
        4 => (0usize..8, outcome.clone()).prop_map(|(at, outcome)| Step::Settle { at, outcome }),
        1 => outcome.prop_map(|outcome| Step::SettleAll { outcome }),
        1 => Just(Step::Purge),
        3 => Just(Step::SettleDown),
        3 => Just(Step::Drain),
        1 => Just(Step::Cancel),
        2 => Just(Step::Consume),
    ]
}

/// The same, with runs that leave memory and come back, and records that move.
fn paging_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => step(),
        2 => Just(Step::File),
        2 => Just(Step::Offer),
        2 => Just(Step::Accept),
        2 => (0usize..8).prop_map(|at| Step::Load { at }),
        1 => prop_oneof![Just(ImageKind::Running), Just(ImageKind::Stopped)]
            .prop_map(|kind| Step::Restart { kind }),
        2 => (1u64..4).prop_map(|modulus| Step::Copy { modulus }),
        2 => (0usize..4).prop_map(|at| Step::Swap { at }),
    ]
}

/// What the model knows of a message that is not settled.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Known {
    is_persistent: bool,
    is_held: bool,
    was_delivered: bool,
}

struct Pair {
    rig: Rig,
    queue: QueueHandle,
    consumer: Option<TestConsumer>,
    held: Vec<Delivery>,
    model: BTreeMap<Seq, Known>,
    prefetch: u16,
    /// The marks come from the restart too, not from the log alone.
    has_restarted: bool,
    /// Runs on their way to the index.
    offered: Vec<Vec<ImageEntry>>,
    /// Copies that the queue was not told of.
    copied: Vec<Pass>,
}

impl Pair {
    fn new(prefetch: u16, mut rig: Rig) -> Self {
        let queue = rig.queue("q");
        let consumer = rig.consume(&queue, |spec| spec.prefetch = prefetch);
        Self {
            rig,
            queue,
            consumer: Some(consumer),
            held: Vec::new(),
            model: BTreeMap::new(),
            prefetch,
            has_restarted: false,
            offered: Vec::new(),
            copied: Vec::new(),
        }
    }

    fn consume(&mut self) {
        if self.consumer.is_none() {
            let prefetch = self.prefetch;
            let consumer = self
                .rig
                .consume(&self.queue, |spec| spec.prefetch = prefetch);
            self.consumer = Some(consumer);
        }
    }

    /// Deliveries that nobody has seen.
    fn arrived(&self) -> Vec<Delivery> {
        self.consumer.as_ref().map_or_else(Vec::new, deliveries)
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Publish { is_persistent } => {
                let seq = Seq(self.published_count() + 1);
                let body = seq.0.to_string();
                let message = if *is_persistent {
                    persistent(&body)
                } else {
                    transient(&body)
                };
                self.rig.publish(&self.queue, message);
                self.model.insert(
                    seq,
                    Known {
                        is_persistent: *is_persistent,
                        is_held: false,
                        was_delivered: false,
                    },
                );
            }
            Step::Get => {
                if let Some(delivery) = self.rig.get(&self.queue.clone()) {
                    self.drain_before(&delivery);
                }
            }
            Step::Settle { at, outcome } => {
                if !self.held.is_empty() {
                    let one = self.held.remove(at % self.held.len());
                    self.settle(&[one], *outcome);
                }
            }
            Step::SettleAll { outcome } => {
                let all = std::mem::take(&mut self.held);
                self.settle(&all, *outcome);
            }
            Step::Purge => {
                self.drain();
                self.rig.turn(|turn| purge(turn, &self.queue));
                self.model.retain(|_, known| known.is_held);
            }
            Step::SettleDown => self.rig.settle_down(),
            Step::Drain => {}
            Step::Cancel => {
                self.drain();
                if let Some(gone) = self.consumer.take() {
                    let aftermath = self.rig.turn(|turn| cancel(turn, &self.queue, gone.id));
                    assert_eq!(aftermath, Aftermath::Stays);
                }
            }
            Step::Consume => self.consume(),
            Step::File => {
                self.rig.file(&self.queue);
            }
            Step::Offer => self.offered = self.queue.unfiled_runs(&self.rig.shared, 3),
            Step::Accept => {
                let offered = std::mem::take(&mut self.offered);
                let runs = offered.into_iter().map(|run| self.rig.index.write(run));
                let runs: Vec<_> = runs.collect();
                self.queue.filed(&self.rig.shared, &runs);
            }
            Step::Load { at } => {
                let loads = &mut self.rig.effects.run_loads;
                if !loads.is_empty() {
                    let load = loads.remove(at % loads.len());
                    self.rig.answer(load);
                }
            }
            Step::Restart { kind } => self.restart(*kind),
            Step::Copy { modulus } => {
                let is_chosen = |seq: Seq| seq.0.is_multiple_of(*modulus);
                let pass = self.rig.copy_records(&self.queue, is_chosen);
                self.copied.push(pass);
            }
            Step::Swap { at } => {
                if !self.copied.is_empty() {
                    let pass = self.copied.remove(at % self.copied.len());
                    self.rig.swap_records(&self.queue, &pass);
                }
            }
        }
        self.drain();
        self.check();
    }

    fn published_count(&self) -> u64 {
        let image = self.queue.image(ImageKind::Running).expect("it is durable");
        image.next_seq.0 - 1
    }

    /// The broker comes back with what a checkpoint held; answers to the old one go nowhere.
    fn restart(&mut self, kind: ImageKind) {
        self.rig.settle_down();
        self.drain();
        let mut image = self.queue.image(kind).expect("it is durable");
        image.finish_replay();
        let reserved_upto = image.reserved_upto;
        self.has_restarted = true;
        self.rig.effects = Effects::default();
        self.held.clear();
        self.offered.clear();
        self.copied.clear();
        let (spec, settings) = (self.queue.spec().clone(), self.queue.settings());
        let restored = |turn: &mut Turn<'_>| Queue::restore(spec, settings, image, turn);
        self.queue = self.rig.turn(restored);
        self.model.retain(|_, known| known.is_persistent);
        for (seq, known) in &mut self.model {
            known.was_delivered |= *seq < reserved_upto;
            known.is_held = false;
        }
        if self.consumer.take().is_some() {
            self.consume();
        }
    }

    fn settle(&mut self, items: &[Delivery], outcome: SettleOutcome) {
        for delivery in items {
            if outcome == SettleOutcome::Requeue {
                self.model.get_mut(&delivery.seq).expect("held").is_held = false;
            } else {
                self.model.remove(&delivery.seq);
            }
        }
        self.rig.settle(items, outcome);
    }

    /// Takes what was delivered and compares it with what should have been.
    fn drain(&mut self) {
        for delivery in self.arrived() {
            self.receive(delivery);
        }
    }

    /// A `get` may let the consumer's deliveries before it, or after it, in the same call.
    fn drain_before(&mut self, got: &Delivery) {
        let mut all = self.arrived();
        all.push(got.clone());
        all.sort_by_key(|delivery| delivery.seq);
        for delivery in all {
            self.receive(delivery);
        }
    }

    fn receive(&mut self, delivery: Delivery) {
        let first_ready = self
            .model
            .iter()
            .find(|(_, known)| !known.is_held)
            .map(|(seq, _)| *seq);
        assert_eq!(Some(delivery.seq), first_ready, "the head is delivered");
        assert_eq!(body_of(&delivery.message), delivery.seq.0.to_string());
        let known = self.model.get_mut(&delivery.seq).expect("found above");
        assert_eq!(delivery.is_redelivered, known.was_delivered);
        known.is_held = true;
        known.was_delivered = true;
        self.held.push(delivery);
    }

    fn check(&self) {
        let stats = self.queue.stats();
        let held = self.model.values().filter(|known| known.is_held).count();
        assert_eq!(stats.unacked_count, held as u64);
        assert_eq!(stats.ready_count, (self.model.len() - held) as u64);
        let image = self.queue.image(ImageKind::Running).expect("it is durable");
        let replayed = self.rig.journal.replay(self.queue.id());
        let found = self.rig.index.expand(&image);
        let moved_back = found.iter().map(|entry| ImageEntry {
            position: self.rig.journal.original(entry.position),
            ..*entry
        });
        let entries: Entries = moved_back.collect();
        if !self.has_restarted {
            assert_eq!(entries, replayed.entries, "memory and log agree");
            assert_eq!(image.reserved_upto, replayed.reserved_upto);
        }
        self.queue.check_sums();
        let logged = self.model.iter().filter(|(_, known)| known.is_persistent);
        assert!(
            entries
                .iter()
                .map(|entry| entry.seq)
                .eq(logged.map(|(seq, _)| *seq))
        );
    }

    /// Everything that is left can be taken, in order.
    fn finish(&mut self) {
        self.consume();
        let all = std::mem::take(&mut self.held);
        self.settle(&all, SettleOutcome::Ack);
        self.drain();
        while !self.model.is_empty() {
            let before = self.model.len();
            self.rig.settle_down();
            self.drain();
            let all = std::mem::take(&mut self.held);
            self.settle(&all, SettleOutcome::Ack);
            self.drain();
            assert!(
                self.model.len() < before || !self.held.is_empty(),
                "it goes on"
            );
        }
        assert_eq!(self.queue.stats().ready_count, 0);
    }
}

proptest! {
    /// Proves I16.
    #[test]
    fn queue_behaves_like_its_model(
        steps in prop::collection::vec(step(), 1..150),
        prefetch in 0u16..5,
    ) {
        let mut pair = Pair::new(prefetch, Rig::new());
        for step in &steps {
            pair.run(step);
        }
        pair.finish();
    }

    #[test]
    fn queue_behaves_like_its_model_while_runs_leave_and_come_back(
        steps in prop::collection::vec(paging_step(), 1..250),
        prefetch in 1u16..5,
    ) {
        let mut pair = Pair::new(prefetch, Rig::paging());
        for step in &steps {
            pair.run(step);
        }
        pair.finish();
    }

    #[test]
    fn slots_behave_like_a_map(steps in prop::collection::vec((0u8..7, 0u64..700), 0..900)) {
        use super::super::slots::{Slot, Slots, Status};
        let content = Arc::new(transient("m"));
        let mut slots = Slots::new(Seq(250), 0);
        let mut model: BTreeMap<Seq, Status> = BTreeMap::new();
        for (kind, at) in steps {
            let seq = Seq(250 + at);
            match kind {
                0 | 1 => {
                    let arrived = Slot::arrived(Status::Ready, Arc::clone(&content), 0);
                    model.insert(slots.push(0, arrived), Status::Ready);
                }
                2 => prop_assert_eq!(
                    slots.remove(seq).map(|slot| slot.status),
                    model.remove(&seq)
                ),
                3 | 4 => {
                    let status = if kind == 3 { Status::Ready } else { Status::Unacked };
                    let is_there = model.get_mut(&seq).map(|known| *known = status).is_some();
                    prop_assert_eq!(slots.set_status(seq, status), is_there);
                }
                5 => {
                    let next = slots.next_seq();
                    prop_assert_eq!(slots.pass(), next);
                    prop_assert_eq!(slots.next_seq(), Seq(next.0 + 1));
                }
                6 => {
                    // Over the end of a run.
                    (0..at).for_each(|_| _ = slots.pass());
                }
                _ => {}
            }
            prop_assert!(slots.run_count() <= model.len() + 1, "empty runs end");
            let first = model.iter().find(|(_, status)| **status == Status::Ready);
            prop_assert_eq!(slots.first_ready().entry(), first.map(|(seq, _)| *seq));
        }
        prop_assert!(slots.iter().map(|(seq, slot)| (seq, slot.status)).eq(model));
    }
}
