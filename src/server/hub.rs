//! What all parts of the running server share: the store, the domain, and the way effects are carried out.

use std::sync::Arc;

use super::alarms::Alarms;
use super::clients::Clients;
use super::length_limits::Measuring;
use super::memory::Memory;
use super::read_buffers::ReadBuffers;
use super::readers::ReadQueue;
use super::signals::Signals;
use super::wakes::Wakes;
use super::worker::WorkerQueue;
use crate::broker::Broker;
use crate::broker::effects::Effects;
use crate::disk::{Clock, Disk};
use crate::storage::{RecoveryReport, Storage};
use crate::telemetry::Counters;

/// See the module.
pub(super) struct Hub {
    /// The log.
    pub(super) storage: Storage,
    /// The domain.
    pub(super) broker: Broker,
    /// Events counted.
    pub(super) counters: Counters,
    /// What the start found on disk.
    pub(super) recovery: RecoveryReport,
    /// When the process started, Unix milliseconds.
    pub(super) started_at_ms: u64,
    pub(super) signals: Arc<Signals>,
    pub(super) clock: Arc<dyn Clock>,
    /// Whether publishers are blocked.
    pub(super) alarms: Arc<Alarms>,
    /// How much memory the process may take.
    pub(super) memory: Memory,
    /// What busy publishers are read into.
    pub(super) read_buffers: ReadBuffers,
    /// The open connections.
    pub(super) clients: Clients,
    disk: Arc<dyn Disk>,
    worker: Arc<WorkerQueue>,
    reads: ReadQueue,
    measuring: Measuring,
    /// Wake-ups of connections that wait for the others that are ready.
    pub(super) wakes: Wakes,
}

/// What a hub needs of the machine.
pub(super) struct Machine {
    pub(super) clock: Arc<dyn Clock>,
    /// The data directory, for the space left on it.
    pub(super) disk: Arc<dyn Disk>,
    /// Whether publishers are blocked.
    pub(super) alarms: Arc<Alarms>,
    /// What the process may take of the memory.
    pub(super) memory_limit_bytes: u64,
    /// The open connections.
    pub(super) clients: Clients,
}

impl Hub {
    pub(super) fn new(
        storage: Storage,
        broker: Broker,
        recovery: RecoveryReport,
        signals: Arc<Signals>,
        worker: Arc<WorkerQueue>,
        machine: Machine,
    ) -> Self {
        Self {
            storage,
            broker,
            counters: Counters::default(),
            recovery,
            started_at_ms: machine.clock.unix_ms(),
            signals,
            clock: machine.clock,
            alarms: machine.alarms,
            memory: Memory::new(machine.memory_limit_bytes, Arc::clone(&machine.disk)),
            read_buffers: ReadBuffers::new(machine.memory_limit_bytes),
            clients: machine.clients,
            disk: machine.disk,
            worker,
            reads: ReadQueue::new(machine.memory_limit_bytes),
            measuring: Measuring::default(),
            wakes: Wakes::default(),
        }
    }

    /// Milliseconds since 1970, monotone.
    pub(super) fn now_ms(&self) -> u64 {
        self.clock.unix_ms()
    }

    /// Measures the free space of the data directory, lets the store look after what it put aside, and raises or
    /// clears the alarm.
    pub(super) fn check_disk(&self) {
        let is_low = match self.disk.free_space() {
            Ok(free) => self.alarms.update_disk(free),
            Err(error) => {
                tracing::warn!(%error, "cannot measure the free disk space");
                false
            }
        };
        if let Err(error) = self.storage.tend_space(is_low) {
            tracing::warn!(%error, "cannot give back spare segments");
        }
        let is_short = self.storage.is_short_of_space();
        self.alarms.set_short(is_short);
        if !is_short {
            // Those that waited for the end of the shortage.
            self.signals.wake_room_waiters();
        }
    }

    pub(super) fn worker(&self) -> &WorkerQueue {
        &self.worker
    }

    pub(super) fn read_queue(&self) -> &ReadQueue {
        &self.reads
    }

    pub(super) fn measuring(&self) -> &Measuring {
        &self.measuring
    }

    /// Does what a call into the domain handed back. Called after all locks are released; leaves
    /// `effects` empty.
    pub(super) fn carry_out(&self, effects: &mut Effects) {
        if std::mem::take(&mut effects.wakes_commit) {
            self.storage.wake();
        }
        for outbox in effects.wakes.drain(..) {
            outbox.wake();
        }
        if !effects.released.is_empty() {
            self.memory.spill().release(&effects.released);
            effects.released.clear();
        }
        self.check_contents();
        if !effects.fetches.is_empty() || !effects.run_loads.is_empty() {
            self.reads.add(&mut effects.run_loads, &mut effects.fetches);
        }
        if !effects.after_durable.is_empty() || !effects.timers.is_empty() {
            self.worker.add(
                &mut effects.after_durable,
                &mut effects.timers,
                self.storage.confirm_lsn(),
            );
        }
    }

    /// Ends the worker, the readers, the measurer of sizes and the memory thread.
    pub(super) fn stop_threads(&self) {
        self.worker.stop();
        self.memory.stop();
        self.reads.stop();
        self.measuring.stop();
    }
}
