//! Deep queues: which runs leave memory for the index file, and when they come back.
//!
//! ```text
//!              head                                                  tail
//!   a consumer [ in memory ][ in memory ][ filed ][ filed ] .. [ filed ][ in memory ]
//!                             ^ loading goes on from here before this one is drained
//!   nobody     [ filed ][ filed ][ filed ] .................... [ filed ][ in memory ]
//! ```
//! Runs get a block when their queue is long or when entries take too much memory altogether. Those that have one
//! leave memory when nobody will want them soon: behind the window of the queue's head when somebody takes messages,
//! at once when nobody does. What leaves takes the contents of its messages with it: they are in the log.
//!
//! Whoever needs a filed head asks for it (`Effects::run_loads`) and goes on in [`run_loaded`]: dispatch, expiry and
//! length limits alike. Nothing waits.

use std::sync::atomic::{AtomicU64, Ordering};

use super::batch::Batch;
use super::read_ahead::ReadAhead;
use super::slots::{Head, PagedIn, Policy, SLOT_BYTES, Shed};
use super::state::{Locked, QueueState};
use super::{FetchFailure, Queue, QueueHandle, QueueShared, Turn};
use crate::broker::effects::RunLoad;
use crate::storage::run::{FiledRun, RUN_SEQS};
use crate::storage::types::{ImageEntry, Seq};
use crate::sync::lock;

/// Runs that are loaded at first.
pub(super) const LOAD_WINDOW_MIN: u16 = 2;
/// Runs that are loaded ahead of a consumer that drains a backlog.
const LOAD_WINDOW_MAX: u16 = 32;
/// The same while entries take too much memory.
const LOAD_WINDOW_TIGHT: u16 = 2;
/// Messages on their way to a dead-letter exchange beyond which no more runs are loaded to expire.
const LEAVING_MAX_COUNT: usize = 4096;
/// Filing is worth a look at all queues when entries grew by this part of their budget. Each entry holds a message as
/// well, until it leaves, which takes many times as much memory.
const FILING_STEPS: u64 = 16;
/// How far the slots in memory of one queue may stray from what the shared sum knows of them.
const SLOTS_SLACK: u64 = 64;

/// When queues use index files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexLimits {
    /// Unsettled messages from which on a queue has an index file; 0 for every durable queue.
    pub min_messages: u64,
    /// Entries in memory may take about this much; above it shorter queues are filed too.
    pub entries_max_bytes: u64,
}

impl Default for IndexLimits {
    fn default() -> Self {
        Self {
            min_messages: 1024,
            entries_max_bytes: 32 << 20,
        }
    }
}

/// Entries in memory, of all queues.
#[derive(Debug)]
pub(super) struct EntriesGauge {
    limits: IndexLimits,
    slot_count: AtomicU64,
    filed_count: AtomicU64,
    /// What filing left in memory when it was done last.
    floor_bytes: AtomicU64,
}

impl EntriesGauge {
    pub(super) fn new(limits: IndexLimits) -> Self {
        Self {
            limits,
            slot_count: AtomicU64::new(0),
            filed_count: AtomicU64::new(0),
            floor_bytes: AtomicU64::new(0),
        }
    }

    fn bytes(&self) -> u64 {
        self.slot_count.load(Ordering::Relaxed) * SLOT_BYTES
    }

    fn is_over(&self) -> bool {
        self.bytes() > self.limits.entries_max_bytes
    }

    /// True from a quarter of the budget on: what can leave without harm should.
    fn is_filling(&self) -> bool {
        self.bytes() > self.limits.entries_max_bytes / 4
    }
}

impl QueueShared {
    /// Bytes of entries in memory, about.
    #[must_use]
    pub fn entries_bytes(&self) -> u64 {
        self.entries().bytes()
    }

    /// Runs whose entries are in index files only, about.
    #[must_use]
    pub fn filed_run_count(&self) -> u64 {
        self.entries().filed_count.load(Ordering::Relaxed)
    }

    /// True when filing runs would free a good part of the memory of entries.
    #[must_use]
    pub fn wants_filing(&self) -> bool {
        let gauge = self.entries();
        let bytes = gauge.bytes();
        // What could not leave last time will not leave now, unless it went in another way meanwhile.
        let floor_bytes = gauge.floor_bytes.fetch_min(bytes, Ordering::Relaxed);
        bytes > floor_bytes + gauge.limits.entries_max_bytes / FILING_STEPS
    }

    /// Runs were filed as far as possible.
    pub fn note_filing(&self) {
        let gauge = self.entries();
        gauge.floor_bytes.store(gauge.bytes(), Ordering::Relaxed);
    }
}

fn report(sum: &AtomicU64, before: &mut u64, now: u64) {
    if now >= *before {
        sum.fetch_add(now - *before, Ordering::Relaxed);
    } else {
        sum.fetch_sub(*before - now, Ordering::Relaxed);
    }
    *before = now;
}

impl QueueState {
    /// Tells the shared sums of the entries in memory and of filed runs.
    pub(super) fn report_entries(&mut self, shared: &QueueShared) {
        let gauge = shared.entries();
        let slots = self.slots.slot_count();
        // The last word about a queue is exact.
        let slack = if self.is_deleted { 1 } else { SLOTS_SLACK };
        if slots.abs_diff(self.reported_slots) >= slack {
            report(&gauge.slot_count, &mut self.reported_slots, slots);
        }
        let filed = self.slots.filed_count();
        if filed != self.reported_filed {
            let mut reported = u64::from(self.reported_filed);
            report(&gauge.filed_count, &mut reported, u64::from(filed));
            self.reported_filed = filed;
        }
    }

    /// Loads the run of the head, and some behind it, for somebody who waits.
    pub(super) fn load(&mut self, queue: &QueueHandle, turn: &mut Turn<'_>, head: Seq) {
        self.loads_upto = 0;
        self.load_ahead(queue, turn, head);
    }

    /// Asks for the filed runs that whoever takes `seq` will want soon, if that was not done before.
    pub(super) fn load_ahead(&mut self, queue: &QueueHandle, turn: &mut Turn<'_>, seq: Seq) {
        if !self.slots.has_filed() {
            return;
        }
        let max = if turn.shared.entries().is_over() {
            LOAD_WINDOW_TIGHT
        } else {
            LOAD_WINDOW_MAX
        };
        let window = self.load_window.min(max);
        if seq.0 / RUN_SEQS + u64::from(window / 2) < self.loads_upto {
            return;
        }
        let (runs, upto) = self.slots.take_loads(seq, usize::from(window));
        self.loads_upto = upto;
        if !runs.is_empty() {
            self.load_window = (window * 2).min(LOAD_WINDOW_MAX);
            let queue = QueueHandle::clone(queue);
            turn.effects.run_loads.push(RunLoad { queue, runs });
        }
    }

    /// Loads a filed head that must expire or is too much; whoever takes messages asks for it on his own.
    pub(super) fn want_head(&mut self, queue: &QueueHandle, turn: &mut Turn<'_>) {
        if !self.slots.has_filed() {
            return;
        }
        let drops = self.rules.drops_head();
        for (level, head) in self.slots.heads().into_iter().enumerate() {
            // What is too much is dropped from the first level.
            let drops = drops && level == 0;
            match head {
                Head::Filed(seq) => {
                    let run = self.slots.filed_run(seq);
                    let base_ms = run.map_or(0, |run| run.expiry_base_ms);
                    let is_due = base_ms != 0
                        && self.slots.may_expire()
                        && base_ms <= turn.now_ms
                        && self.leaving.len() < LEAVING_MAX_COUNT;
                    if is_due || (drops && self.is_too_long()) {
                        self.load(queue, turn, seq);
                    }
                }
                Head::Entry(seq) if drops => self.load_ahead(queue, turn, seq),
                Head::Entry(_) | Head::None => {}
            }
        }
    }

    /// What may leave the memory of this queue now; `None` when it is too short to bother.
    fn policy(&mut self, shared: &QueueShared) -> Option<Policy> {
        let gauge = shared.entries();
        let is_long = self.slots.sums().total_count() >= gauge.limits.min_messages;
        if !is_long && !gauge.is_over() {
            return None;
        }
        Some(Policy {
            closes_tail: gauge.limits.min_messages == 0,
            hot_runs: self.hot_runs(shared),
            keeps_all: self.settings.max_length_bytes.is_some(),
        })
    }

    fn hot_runs(&mut self, shared: &QueueShared) -> usize {
        let gauge = shared.entries();
        let is_taken_from = self.is_taken_from();
        let drops = self.rules.drops_head();
        if is_taken_from && !gauge.is_filling() && !shared.is_over_budget() {
            return usize::MAX;
        }
        if is_taken_from && !gauge.is_over() {
            return usize::from(LOAD_WINDOW_MAX);
        }
        if is_taken_from || drops {
            return usize::from(LOAD_WINDOW_TIGHT);
        }
        let head = self.slots.first_ready().entry();
        let head = head.and_then(|seq| self.slots.get(seq));
        // The timer of the queue stands at its head.
        usize::from(head.is_some_and(|slot| slot.expires_at_ms != 0))
    }

    fn shed(&mut self, policy: Policy) -> Shed {
        let shed = self.slots.shed(policy);
        if !shed.is_empty() {
            self.loads_upto = 0;
            if self.consumers.is_empty() {
                self.load_window = LOAD_WINDOW_MIN;
                self.read_ahead = ReadAhead::default();
            }
        }
        shed
    }

    fn take_loaded(
        &mut self,
        queue: &QueueHandle,
        turn: &Turn<'_>,
        run: &FiledRun,
        result: Result<Vec<ImageEntry>, FetchFailure>,
    ) {
        let reason = match result {
            Ok(entries) => match self.slots.page_in(run, &entries) {
                PagedIn::Done | PagedIn::Stale => return,
                PagedIn::Incomplete => "its index block lacks a message of it".to_owned(),
            },
            Err(failure) => failure.reason,
        };
        let Some(count) = self.slots.lose(run) else {
            return;
        };
        turn.shared.count_quarantined(count);
        tracing::error!(
            queue = %queue.spec.name,
            vhost = %queue.spec.vhost,
            first_seq = run.seq_at(0).0,
            messages = count,
            reason,
            "positions of messages cannot be read; they are quarantined: kept, not delivered"
        );
    }
}

/// Runs that `Effects::run_loads` asked for, in any order, or why they could not be read.
pub fn run_loaded(
    turn: &mut Turn<'_>,
    queue: &QueueHandle,
    results: Vec<(FiledRun, Result<Vec<ImageEntry>, FetchFailure>)>,
) {
    let mut locked = Locked::one(queue);
    let mut batch = Batch::default();
    let (_, state) = locked.first();
    for (run, result) in results {
        state.take_loaded(queue, turn, &run, result);
    }
    state.expire_heads(queue, turn.now_ms, &mut batch);
    state.dispatch(queue, turn, &mut batch, None);
    state.read_on(queue, turn);
    state.enforce_limits(queue, &mut batch);
    locked.conclude(turn, batch);
    turn.finish();
}

impl Queue {
    /// Up to `max_count` runs that should be written into the queue's index file. Those that are there already and
    /// that nobody will want soon leave memory.
    #[must_use]
    pub fn unfiled_runs(&self, shared: &QueueShared, max_count: usize) -> Vec<Vec<ImageEntry>> {
        if !self.spec.is_durable || self.traits.is_delay {
            return Vec::new();
        }
        let mut state = lock(&self.state);
        if state.is_deleted {
            return Vec::new();
        }
        let Some(policy) = state.policy(shared) else {
            return Vec::new();
        };
        let shed = state.shed(policy);
        let runs = state.slots.offer(policy, max_count);
        state.report_memory(shared);
        drop(state);
        // Contents are freed outside the lock.
        drop(shed);
        runs
    }

    /// Runs that [`Queue::unfiled_runs`] gave are in the index file now. Those that changed meanwhile stay as they are.
    pub fn filed(&self, shared: &QueueShared, runs: &[FiledRun]) {
        let mut state = lock(&self.state);
        if state.is_deleted {
            return;
        }
        let Some(policy) = state.policy(shared) else {
            return;
        };
        for run in runs {
            state.slots.accept(run);
        }
        let shed = state.shed(policy);
        state.report_memory(shared);
        drop(state);
        drop(shed);
    }
}
