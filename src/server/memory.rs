//! Keeps the process within its memory limit.
//!
//! ```text
//!   limit     0 %              40 %             60 %          80 %            92 %
//!   contents  |-- in memory ----|- shed, slowed --|- blocked
//!   RSS       |-----------------------------------------------|--- slowed -----|- blocked
//! ```
//! *Contents* are the messages in the queues' memory. Above their budget a thread drops those that are on disk as well
//! and writes the others to spill files, the ones needed last first. It is as fast as the disk; publishers may be
//! faster. So they pause between reads, for longer the further contents are above the budget, and settle at the speed of
//! the disk. The resident size of the process is measured too, since not all memory is contents: it slows publishers in
//! the same way. When that is not enough, or nothing can be spilled because the disk is full, publishers are blocked and
//! told so. Consumers and whoever has not published for a while are never slowed: they are the way out.
//!
//! 1. Nothing is ever dropped that is nowhere else: a spill that failed leaves its messages in memory.
//! 2. No connection thread waits here. They read atomics, and pause by not reading their socket.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::hub::Hub;
use crate::allocator;
use crate::broker::effects::Effects;
use crate::broker::memory::ToSpill;
use crate::broker::outbox::OutboxLimit;
use crate::disk::{Disk, machine};
use crate::storage::types::{Position, Seq};
use crate::storage::{SPILL_FILE_BYTES, Spill, SpillItem, Spilled};
use crate::sync::{lock, wait_within};

/// Part of the limit, in per cent, that contents may take.
const CONTENTS_PERCENT: u64 = 40;
/// Contents above this many per cent of their budget block publishers.
const CONTENTS_HIGH_PERCENT: u64 = 150;
/// Contents are brought down to this many per cent of their budget, so that the thread works in strides.
const CONTENTS_LOW_PERCENT: u64 = 85;
/// Per cent of the limit from which the resident size slows publishers ..
const RSS_LOW_PERCENT: u64 = 80;
/// .. and at which it blocks them.
const RSS_HIGH_PERCENT: u64 = 92;

/// Pressure at which publishers are blocked; below 0 is none.
const PRESSURE_MAX: u32 = 1000;
/// Pressure below which they go on.
const PRESSURE_CLEAR: u32 = 300;
/// The longest pause between two reads of a publisher is 2 to this power, in milliseconds.
const PAUSE_MAX_LOG2: u32 = 10;

/// Bytes that are shed at a time; also bounds what is in memory twice while it is written.
const ROUND_MAX_BYTES: u64 = 2 << 20;
/// How often memory is measured.
const POLL: Duration = Duration::from_millis(100);
/// The same while there is pressure.
const POLL_UNDER_PRESSURE: Duration = Duration::from_millis(10);
/// Parts of spill files that are rewritten before other work is looked at.
const REWRITE_ROUNDS: u32 = 32;
/// After a spill that failed, the next one is tried so much later.
const SPILL_PAUSE_MS: u64 = 1000;
/// While the process is large, free memory is given back so often.
const GIVE_BACK_PAUSE_MS: u64 = 200;
/// While the process is large, the queues are counted one by one so often.
const COUNT_PAUSE_MS: u64 = 500;

/// How much memory contents may take under a limit.
pub(super) fn contents_max_bytes(limit_bytes: u64) -> u64 {
    limit_bytes / 100 * CONTENTS_PERCENT
}

/// See the module.
pub(super) struct Memory {
    limit_bytes: u64,
    spill: Spill,
    rss_bytes: AtomicU64,
    /// What the resident size, or a failing spill, comes to.
    pressure: AtomicU32,
    /// What the boxes of deliveries may hold.
    outbox_limit: Arc<OutboxLimit>,
    /// The thread is at work or has been told to be.
    is_awake: AtomicBool,
    is_stopping: Mutex<bool>,
    wakes: Condvar,
}

/// What `status` shows of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct MemoryFigures {
    pub(super) limit_bytes: u64,
    pub(super) rss_bytes: u64,
    pub(super) spilled_bytes: u64,
    pub(super) spill_file_bytes: u64,
}

impl Memory {
    pub(super) fn new(limit_bytes: u64, disk: Arc<dyn Disk>) -> Self {
        Self {
            limit_bytes,
            spill: Spill::new(disk, SPILL_FILE_BYTES),
            rss_bytes: AtomicU64::new(0),
            pressure: AtomicU32::new(0),
            outbox_limit: Arc::default(),
            is_awake: AtomicBool::new(false),
            is_stopping: Mutex::new(false),
            wakes: Condvar::new(),
        }
    }

    pub(super) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// The limit that all outboxes share.
    pub(super) fn outbox_limit(&self) -> &Arc<OutboxLimit> {
        &self.outbox_limit
    }

    pub(super) fn spill(&self) -> &Spill {
        &self.spill
    }

    pub(super) fn figures(&self) -> MemoryFigures {
        MemoryFigures {
            limit_bytes: self.limit_bytes,
            rss_bytes: machine::resident_bytes().unwrap_or(0),
            spilled_bytes: self.spill.live_bytes(),
            spill_file_bytes: self.spill.size_bytes(),
        }
    }

    /// From 0 to [`PRESSURE_MAX`].
    fn pressure(&self, contents_bytes: u64, contents_max_bytes: u64) -> u32 {
        let high_bytes = contents_max_bytes / 100 * CONTENTS_HIGH_PERCENT;
        let of_contents = share(contents_bytes, contents_max_bytes, high_bytes);
        of_contents.max(self.pressure.load(Ordering::Relaxed))
    }

    /// Wakes the thread; cheap when it is awake.
    pub(super) fn wake(&self) {
        if !self.is_awake.swap(true, Ordering::SeqCst) {
            let _stopping = lock(&self.is_stopping);
            self.wakes.notify_one();
        }
    }

    /// Ends the thread.
    pub(super) fn stop(&self) {
        *lock(&self.is_stopping) = true;
        self.wakes.notify_one();
    }

    /// Sleeps until there is something to do; false when the thread is to end.
    fn wait(&self, timeout: Duration) -> bool {
        let mut is_stopping = lock(&self.is_stopping);
        if !*is_stopping && !self.is_awake.load(Ordering::SeqCst) {
            is_stopping = wait_within(&self.wakes, is_stopping, timeout);
        }
        self.is_awake.store(true, Ordering::SeqCst);
        !*is_stopping
    }
}

/// Where `value` stands between `low` and `high`, as a pressure.
fn share(value: u64, low: u64, high: u64) -> u32 {
    let above = value.saturating_sub(low);
    let range = high.saturating_sub(low).max(1);
    let share = above.saturating_mul(u64::from(PRESSURE_MAX)) / range;
    u32::try_from(share).map_or(PRESSURE_MAX, |share| share.min(PRESSURE_MAX))
}

/// How long a publisher is not read under this pressure: nothing, then from 1 ms, doubled with every tenth of it. So
/// one publisher finds the speed of the disk at a pause of some milliseconds, a thousand of them at one of a second.
fn pause_of(pressure: u32) -> Duration {
    if pressure == 0 {
        return Duration::ZERO;
    }
    Duration::from_millis(1 << (pressure * PAUSE_MAX_LOG2 / PRESSURE_MAX))
}

impl Hub {
    /// How long a connection that publishes must not be read now.
    pub(super) fn publisher_pause(&self) -> Duration {
        let contents_bytes = self.broker.resident_bytes();
        let contents_max_bytes = self.broker.resident_max_bytes();
        pause_of(self.memory.pressure(contents_bytes, contents_max_bytes))
    }

    /// Wakes the memory thread when contents are above their budget.
    pub(super) fn check_contents(&self) {
        if self.broker.resident_bytes() > self.broker.resident_max_bytes() {
            self.memory.wake();
        }
    }
}

pub(super) fn spawn(hub: &Arc<Hub>) -> io::Result<JoinHandle<()>> {
    let hub = Arc::clone(hub);
    super::named("stratamq-memory".into(), move || {
        Keeper {
            hub: &hub,
            effects: Effects::default(),
            spill_after_ms: 0,
            give_back_after_ms: 0,
            count_after_ms: 0,
        }
        .run();
    })
}

/// The thread's own state.
struct Keeper<'a> {
    hub: &'a Hub,
    effects: Effects,
    /// After a spill that failed, none before this time.
    spill_after_ms: u64,
    /// Free memory is given back not before this time.
    give_back_after_ms: u64,
    /// Queues are counted one by one not before this time.
    count_after_ms: u64,
}

impl Keeper<'_> {
    fn run(mut self) {
        let mut poll = POLL;
        while self.hub.memory.wait(poll) {
            self.hub.memory.is_awake.store(false, Ordering::SeqCst);
            self.measure();
            while self.shed() {
                self.measure();
            }
            self.hub.read_buffers.sweep();
            self.hub.memory.spill.tidy();
            self.rewrite();
            let is_tight = self.measure() > 0;
            if self.hub.memory.pressure.load(Ordering::Relaxed) > 0 {
                self.give_back();
            }
            poll = if is_tight { POLL_UNDER_PRESSURE } else { POLL };
        }
    }

    /// The process is large: part of that may be memory that nobody uses any more.
    fn give_back(&mut self) {
        let now_ms = self.hub.now_ms();
        if now_ms >= self.give_back_after_ms {
            self.give_back_after_ms = now_ms + GIVE_BACK_PAUSE_MS;
            allocator::give_back();
        }
    }

    /// Measures the process and raises or clears the alarm; the pressure.
    fn measure(&mut self) -> u32 {
        let memory = &self.hub.memory;
        let rss_bytes = machine::resident_bytes().unwrap_or(0);
        memory.rss_bytes.store(rss_bytes, Ordering::Relaxed);
        let low_bytes = memory.limit_bytes / 100 * RSS_LOW_PERCENT;
        let high_bytes = memory.limit_bytes / 100 * RSS_HIGH_PERCENT;
        let of_rss = share(rss_bytes, low_bytes, high_bytes);
        memory.pressure.store(of_rss, Ordering::Relaxed);
        memory.outbox_limit.set_scarce(of_rss > 0);
        let contents_bytes = self.hub.broker.resident_bytes();
        let contents_max_bytes = self.hub.broker.resident_max_bytes();
        let mut pressure = memory.pressure(contents_bytes, contents_max_bytes);
        if contents_bytes > contents_max_bytes && self.is_spill_failing() {
            // What is above the budget stays there: no pause would end that.
            pressure = PRESSURE_MAX;
        }
        self.update_alarm(pressure, rss_bytes, contents_bytes);
        pressure
    }

    fn update_alarm(&self, pressure: u32, rss_bytes: u64, contents_bytes: u64) {
        let limit_bytes = self.hub.memory.limit_bytes;
        if pressure >= PRESSURE_MAX && self.hub.alarms.set_memory(true) {
            tracing::warn!(
                rss_bytes,
                contents_bytes,
                limit_bytes,
                "low on memory; publishers are blocked until there is room"
            );
        } else if pressure < PRESSURE_CLEAR && self.hub.alarms.set_memory(false) {
            tracing::info!(
                rss_bytes,
                contents_bytes,
                "enough memory again; publishers go on"
            );
        }
    }

    fn is_spill_failing(&self) -> bool {
        self.hub.alarms.is_disk_low() || self.spill_after_ms > self.hub.now_ms()
    }

    /// Contents that may stay: less when the process is large all the same.
    fn allowed_bytes(&self) -> u64 {
        let max_bytes = self.hub.broker.resident_max_bytes();
        let pressure = u64::from(self.hub.memory.pressure.load(Ordering::Relaxed));
        max_bytes - max_bytes * pressure / u64::from(PRESSURE_MAX) * 3 / 4
    }

    /// Bytes of messages in memory. When the process is large, what every queue has is counted one by one now and then:
    /// each may have a little that the sum does not know of, and there may be very many of them.
    fn contents_bytes(&mut self) -> u64 {
        let broker = &self.hub.broker;
        let now_ms = self.hub.now_ms();
        let is_large = self.hub.memory.pressure.load(Ordering::Relaxed) > 0;
        if is_large && now_ms >= self.count_after_ms {
            self.count_after_ms = now_ms + COUNT_PAUSE_MS;
            let queues = broker.all_queues();
            let queued = queues.iter().map(|queue| queue.resident_bytes());
            return queued.sum::<u64>() + broker.queues().remembered_bytes();
        }
        broker.resident_bytes()
    }

    /// Makes some room when there is too little; true when that should go on.
    fn shed(&mut self) -> bool {
        let allowed_bytes = self.allowed_bytes();
        let contents_bytes = self.contents_bytes();
        if contents_bytes <= allowed_bytes {
            return false;
        }
        let goal_bytes = allowed_bytes / 100 * CONTENTS_LOW_PERCENT;
        let mut left_bytes = contents_bytes - goal_bytes;
        while left_bytes > 0 {
            let freed_bytes = self.shed_some(left_bytes.min(ROUND_MAX_BYTES));
            if freed_bytes == 0 {
                return false;
            }
            left_bytes = left_bytes.saturating_sub(freed_bytes);
            // Shedding takes a while; who publishes is slowed by what was measured last.
            self.measure();
        }
        true
    }

    /// The bytes that left memory.
    fn shed_some(&mut self, want_bytes: u64) -> u64 {
        let now_ms = self.hub.now_ms();
        let shed = self.hub.broker.shed(want_bytes, now_ms, &mut self.effects);
        self.hub.carry_out(&mut self.effects);
        if shed.to_spill.is_empty() || self.is_spill_failing() {
            return shed.dropped_bytes;
        }
        match self.spill(&shed.to_spill) {
            Ok(()) => shed.dropped_bytes + shed.to_spill_bytes,
            Err(error) => {
                tracing::warn!(%error, "cannot spill messages; they stay in memory");
                self.spill_after_ms = now_ms + SPILL_PAUSE_MS;
                shed.dropped_bytes
            }
        }
    }

    fn spill(&mut self, messages: &[ToSpill]) -> io::Result<()> {
        let items: Vec<SpillItem<'_>> = messages
            .iter()
            .map(|to_spill| SpillItem {
                queue: to_spill.queue.id(),
                seq: to_spill.seq,
                payload: to_spill.message.payload(),
                payload_crc: to_spill.message.payload_crc(),
            })
            .collect();
        let positions = self.hub.memory.spill.write(&items)?;
        let mut positions = positions.into_iter();
        for same_queue in messages.chunk_by(|a, b| Arc::ptr_eq(&a.queue, &b.queue)) {
            let places: Vec<(Seq, Position)> = same_queue
                .iter()
                .zip(&mut positions)
                .map(|(message, position)| (message.seq, position))
                .collect();
            let queue = &same_queue[0].queue;
            let now_ms = self.hub.now_ms();
            self.hub
                .broker
                .spilled(queue, &places, now_ms, &mut self.effects);
            self.hub.carry_out(&mut self.effects);
        }
        Ok(())
    }

    /// Moves what is left in spill files that are mostly dead.
    fn rewrite(&mut self) {
        for _ in 0..REWRITE_ROUNDS {
            if !self.rewrite_some() {
                return;
            }
            self.measure();
        }
    }

    /// False when there is no more, or when that failed.
    fn rewrite_some(&mut self) -> bool {
        let mut found = self.hub.memory.spill.stragglers();
        if found.is_empty() {
            return false;
        }
        // By queue; the sort keeps the order inside of one.
        found.sort_by_key(|spilled| spilled.queue);
        let queues = self.hub.broker.all_queues();
        for of_queue in found.chunk_by(|a, b| a.queue == b.queue) {
            let queue = queues.iter().find(|queue| queue.id() == of_queue[0].queue);
            // A queue that is deleted has given up its places, or is about to.
            let Some(queue) = queue else { continue };
            let places: Vec<_> = of_queue.iter().map(|s| (s.seq, s.position)).collect();
            let held = of_queue.iter().zip(queue.holds(&places));
            let held: Vec<&Spilled> = held
                .filter_map(|(spilled, is_held)| is_held.then_some(spilled))
                .collect();
            if let Err(error) = self.rewrite_of(queue, &held) {
                tracing::warn!(%error, "cannot move spilled messages; they stay where they are");
                self.spill_after_ms = self.hub.now_ms() + SPILL_PAUSE_MS;
                return false;
            }
        }
        true
    }

    fn rewrite_of(
        &mut self,
        queue: &crate::broker::queue::QueueHandle,
        held: &[&Spilled],
    ) -> io::Result<()> {
        let items: Vec<SpillItem<'_>> = held
            .iter()
            .map(|spilled| SpillItem {
                queue: spilled.queue,
                seq: spilled.seq,
                payload: (&spilled.payload).into(),
                payload_crc: spilled.payload_crc,
            })
            .collect();
        let positions = self.hub.memory.spill.write(&items)?;
        let moves: Vec<_> = held
            .iter()
            .zip(positions)
            .map(|(spilled, to)| (spilled.seq, spilled.position, to))
            .collect();
        let now_ms = self.hub.now_ms();
        self.hub
            .broker
            .moved(queue, &moves, now_ms, &mut self.effects);
        self.hub.carry_out(&mut self.effects);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_rises_between_the_marks() {
        for (value, expected) in [
            (0, 0),
            (100, 0),
            (101, 10),
            (150, 500),
            (200, 1000),
            (900, 1000),
        ] {
            assert_eq!(share(value, 100, 200), expected, "{value}");
        }
        assert_eq!(share(5, 5, 5), 0);
        assert_eq!(share(6, 5, 5), PRESSURE_MAX);
        assert_eq!(share(u64::MAX, 0, 1), PRESSURE_MAX);
    }

    #[test]
    fn publishers_pause_longer_the_higher_the_pressure() {
        for (pressure, millis) in [(0, 0), (1, 1), (100, 2), (500, 32), (1000, 1024)] {
            assert_eq!(
                pause_of(pressure),
                Duration::from_millis(millis),
                "{pressure}"
            );
        }
    }
}
