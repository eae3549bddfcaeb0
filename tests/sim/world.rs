//! The storage engine on a simulated disk, driven as the broker drives it.
//!
//! ```text
//!   script --Action--> World --push, checkpoint, close--> Storage --> SimDisk
//!                        |  \--Event--> History                          | crash, power cycle
//!                        \--image-- CheckpointSource                     v
//!                                                  Storage::open --> Observed --> History::check
//! ```
//! The commit steps are made by the driving thread ([`Storage::open_by_hand`]), so the order of disk operations depends
//! on the script alone: operation number n is the same in every run. With [`Drive::Thread`] the engine commits on its
//! own thread, as in the broker.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stratamq::disk::sim::{SimClock, SimDisk};
use stratamq::storage::format::StoreId;
use stratamq::storage::testing::filer::{Filer, unfile};
use stratamq::storage::types::Lsn;
use stratamq::storage::{
    CheckpointReport, CommitListener, Found, Options, QueueImage, Recovered, Storage, StorageError,
};

use super::action::{Action, Source};
use super::live::Live;
use super::model::Body;
use super::oracle::{Complaint, Observed, ObservedEntry, ObservedQueue};

/// META records of these tests all have this kind and version.
pub(super) const META_KIND: u16 = 7;
/// See [`META_KIND`].
pub(super) const META_VERSION: u16 = 1;
/// No wait takes longer unless the engine hangs.
const HANG: Duration = Duration::from_secs(30);

/// Options of a store small enough to roll often.
pub(super) fn small_options() -> Options {
    Options {
        segment_size_bytes: 32 << 10,
        commit_max_bytes: 16 << 10,
        ..Options::default()
    }
}

/// The same, with an index file for every queue.
pub(super) fn filing_options() -> Options {
    Options {
        index_min_messages: 0,
        ..small_options()
    }
}

/// Who makes the commit steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drive {
    /// The test, one by one: exact repetition.
    ByHand,
    /// The engine's own thread.
    Thread,
}

/// The engine is gone: the power failed, or the disk did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dead(pub String);

/// Listens to the engine.
#[derive(Default)]
pub(super) struct Ear {
    heard: Mutex<Heard>,
    changed: Condvar,
    /// Set when something was confirmed after the failure.
    pub(super) has_confirmed_after_failure: AtomicBool,
}

#[derive(Clone, Debug, Default)]
struct Heard {
    confirm_lsn: Lsn,
    failure: Option<String>,
}

impl Ear {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until everything below `lsn` may be confirmed.
    pub(super) fn wait(&self, lsn: Lsn) -> Result<(), Dead> {
        let is_over = self.wait_for(lsn, HANG)?;
        assert!(is_over, "the engine neither commits {lsn} nor fails");
        Ok(())
    }

    /// Waits for a limited time; false when it was too short.
    fn wait_for(&self, lsn: Lsn, limit: Duration) -> Result<bool, Dead> {
        let guard = self.heard();
        let is_waiting = |heard: &mut Heard| heard.confirm_lsn < lsn && heard.failure.is_none();
        let (heard, timeout) = self
            .changed
            .wait_timeout_while(guard, limit, is_waiting)
            .unwrap_or_else(PoisonError::into_inner);
        match &heard.failure {
            Some(reason) if heard.confirm_lsn < lsn => Err(Dead(reason.clone())),
            _ => Ok(!timeout.timed_out()),
        }
    }

    /// Why the engine failed, if it did.
    pub(super) fn failure(&self) -> Option<String> {
        self.heard().failure.clone()
    }

    /// What may be confirmed.
    pub(super) fn confirm_lsn(&self) -> Lsn {
        self.heard().confirm_lsn
    }
}

impl CommitListener for Ear {
    fn committed(&self, confirm_lsn: Lsn) {
        let mut heard = self.heard();
        if heard.failure.is_some() {
            self.has_confirmed_after_failure
                .store(true, Ordering::SeqCst);
        }
        assert!(confirm_lsn >= heard.confirm_lsn, "the watermark only rises");
        heard.confirm_lsn = confirm_lsn;
        self.changed.notify_all();
    }

    fn has_room_again(&self) {}

    fn failed(&self, error: &StorageError) {
        self.heard()
            .failure
            .get_or_insert_with(|| error.to_string());
        self.changed.notify_all();
    }
}

/// A running engine with the state it is used for.
pub(super) struct World {
    pub(super) disk: SimDisk,
    pub(super) clock: SimClock,
    pub(super) options: Options,
    drive: Drive,
    pub(super) storage: Storage,
    pub(super) ear: Arc<Ear>,
    pub(super) live: Mutex<Live>,
    pub(super) found: Found,
    /// Reports of the checkpoints, in order.
    pub(super) checkpoints: Vec<CheckpointReport>,
}

/// A store did not come up as it should.
#[derive(Debug)]
pub(super) enum OpenError {
    /// Recovery refused.
    Refused(StorageError),
    /// Recovery found something that cannot be.
    Wrong(Vec<Complaint>, Box<Observed>),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(error) => write!(f, "recovery refused: {error}"),
            Self::Wrong(complaints, observed) => {
                write!(f, "recovery is wrong: {complaints:?}\nfound: {observed:#?}")
            }
        }
    }
}

/// Opens the store on `disk` and looks at all of it, without any expectation.
pub(super) fn recover(disk: &SimDisk, options: &Options) -> Result<Opened, StorageError> {
    recover_with(Drive::ByHand, disk, options)
}

fn recover_with(drive: Drive, disk: &SimDisk, options: &Options) -> Result<Opened, StorageError> {
    let clock = SimClock::new(1_700_000_000_000);
    let ear = Arc::new(Ear::default());
    let (on, at, settings) = (
        Arc::new(disk.clone()),
        Arc::new(clock.clone()),
        options.clone(),
    );
    let (storage, mut recovered) = match drive {
        Drive::ByHand => Storage::open_by_hand(on, at, settings, ear.clone(), StoreId([0x5a; 16]))?,
        Drive::Thread => Storage::open(on, at, settings, ear.clone())?,
    };
    let filer = Filer::new(options, &recovered);
    unfile(&storage, &mut recovered.queues).map_err(|error| StorageError::Stopped {
        reason: error.to_string(),
    })?;
    let observed = observe(&storage, &recovered);
    Ok(Opened {
        filer,
        disk: disk.clone(),
        clock,
        ear,
        storage,
        recovered,
        observed,
    })
}

/// A store that was opened and looked at.
pub(super) struct Opened {
    filer: Filer,
    disk: SimDisk,
    clock: SimClock,
    ear: Arc<Ear>,
    pub(super) storage: Storage,
    pub(super) recovered: Recovered,
    pub(super) observed: Observed,
}

impl Opened {
    /// What was found; the engine is killed.
    pub(super) fn into_observed(self) -> Observed {
        self.disk.crash();
        self.observed
    }
}

impl World {
    /// A new store.
    pub(super) fn fresh(disk: SimDisk, options: Options) -> Result<Self, OpenError> {
        Self::open(disk, options, Live::default()).map_err(|(error, _)| error)
    }

    /// Opens a store whose commit steps are made by this thread.
    pub(super) fn open(
        disk: SimDisk,
        options: Options,
        before: Live,
    ) -> Result<Self, (OpenError, Live)> {
        Self::open_with(Drive::ByHand, disk, options, before)
    }

    /// Opens a store that `before` was done to, and checks what recovery finds.
    pub(super) fn open_with(
        drive: Drive,
        disk: SimDisk,
        options: Options,
        before: Live,
    ) -> Result<Self, (OpenError, Live)> {
        let opened = match recover_with(drive, &disk, &options) {
            Ok(opened) => opened,
            Err(error) => return Err((OpenError::Refused(error), before)),
        };
        let kept = match before.history.check(&opened.observed) {
            Ok(kept) => kept,
            Err(complaints) => {
                disk.crash();
                let observed = Box::new(opened.observed);
                return Err((OpenError::Wrong(complaints, observed), before));
            }
        };
        let live = before.restored(
            kept,
            opened.recovered.queues,
            opened.observed.meta,
            opened.filer,
        );
        Ok(Self {
            disk,
            clock: opened.clock,
            options,
            drive,
            storage: opened.storage,
            ear: opened.ear,
            live: Mutex::new(live),
            found: opened.recovered.report.found,
            checkpoints: Vec::new(),
        })
    }

    pub(super) fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does all of `script`, or as much as the engine lives to see.
    pub(super) fn run(&mut self, script: &[Action]) -> Result<(), Dead> {
        script.iter().try_for_each(|action| self.perform(action))
    }

    fn perform(&mut self, action: &Action) -> Result<(), Dead> {
        match action {
            Action::Checkpoint(meanwhile) => self.checkpoint(meanwhile),
            Action::Compact(meanwhile) => {
                let source = Source::new(self, meanwhile);
                let compacted = self.storage.compact(&source, false, u64::MAX);
                compacted.map(drop).map_err(|error| Dead(error.to_string()))
            }
            Action::Reopen => self.reopen(),
            Action::Burst(actions) => self.burst(actions),
            Action::Idle => self.idle(),
            Action::Flush => self.flush(),
            other => self.push(other)?.map_or(Ok(()), |end| self.wait(end)),
        }
    }

    /// Waits until everything below `end` may be confirmed.
    pub(super) fn wait(&self, end: Lsn) -> Result<(), Dead> {
        if self.drive == Drive::Thread {
            return self.ear.wait(end);
        }
        while self.ear.confirm_lsn() < end {
            match self.storage.step() {
                Ok(true) => {}
                Ok(false) if self.storage.is_stalled() => {
                    return Err(Dead("no space is left on the device".into()));
                }
                Ok(false) => panic!("the engine has nothing to do, but {end} is not confirmed"),
                Err(error) => return Err(Dead(error.to_string())),
            }
        }
        Ok(())
    }

    /// Waits until everything pushed is durable, acks too.
    pub(super) fn flush(&self) -> Result<(), Dead> {
        let end = self.live().last_end();
        let ahead_ms = self.options.ack_fsync_ms + 10;
        // The engine counts from when it first saw them, which may be behind a step of the clock.
        for _ in 0..1_000 {
            let is_over = match self.drive {
                Drive::ByHand => self.step_all().map(|()| self.ear.confirm_lsn() >= end)?,
                Drive::Thread => self.ear.wait_for(end, Duration::from_millis(10))?,
            };
            if is_over {
                return Ok(());
            }
            if self.storage.is_stalled() {
                return Err(Dead("no space is left on the device".into()));
            }
            self.clock.advance_ms(ahead_ms);
            self.storage.wake();
        }
        panic!("acks up to {end} are never committed");
    }

    /// Makes commit steps until there is nothing to do at this time.
    fn step_all(&self) -> Result<(), Dead> {
        loop {
            match self.storage.step() {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) => return Err(Dead(error.to_string())),
            }
        }
    }

    /// Lets a quiet second pass, after which the watermark stands in the log.
    fn idle(&self) -> Result<(), Dead> {
        self.flush()?;
        self.clock.advance_ms(1_500);
        match self.drive {
            Drive::ByHand => self.step_all(),
            Drive::Thread => Ok(()),
        }
    }

    /// Pushes `actions` so that they end in one commit, and waits for it.
    fn burst(&mut self, actions: &[Action]) -> Result<(), Dead> {
        if self.drive == Drive::Thread {
            self.disk.hold_syncs();
        }
        let pushed = actions.iter().try_fold(None, |last, action| {
            let end = self.push(action)?;
            if last.is_none() && end.is_some() && self.drive == Drive::Thread {
                // The others arrive while the first one is synced.
                self.disk.wait_for_held_sync();
            }
            Ok(end.or(last))
        });
        self.disk.release_syncs();
        pushed?.map_or(Ok(()), |end| self.wait(end))
    }

    fn checkpoint(&mut self, meanwhile: &[Action]) -> Result<(), Dead> {
        let source = Source::new(self, meanwhile);
        let report = self
            .storage
            .checkpoint(&source)
            .map_err(|error| Dead(error.to_string()))?;
        self.check_freed(&report);
        self.checkpoints.push(report);
        Ok(())
    }

    /// I26: a freed segment held nothing that is alive and lies below the checkpoint.
    fn check_freed(&self, report: &CheckpointReport) {
        let live = self.live();
        for segment in &report.freed {
            assert!(
                *segment < report.begin.segment() || segment.is_cold(),
                "{segment} freed, begin {}",
                report.begin
            );
            for queue in live.queues.values() {
                let holder = queue
                    .image
                    .entries
                    .iter()
                    .find(|e| e.position.lsn.segment() == *segment);
                assert_eq!(
                    holder, None,
                    "{segment} was freed under a message of {}",
                    queue.image.id
                );
            }
        }
    }

    /// Stops cleanly.
    pub(super) fn close(&mut self) -> Result<(), Dead> {
        self.live().note_exact();
        let closed = self.storage.close(&Source::exact(self));
        closed.map_err(|error| Dead(error.to_string()))?;
        self.live().confirm(Lsn(u64::MAX));
        Ok(())
    }

    fn reopen(&mut self) -> Result<(), Dead> {
        self.close()?;
        let live = std::mem::take(&mut *self.live());
        let number = self.disk.operation_count();
        match Self::open_with(self.drive, self.disk.clone(), self.options.clone(), live) {
            Ok(world) => {
                assert_eq!(world.found, Found::Clean, "reopened at operation {number}");
                *self = world;
                Ok(())
            }
            Err((OpenError::Refused(error), live)) => {
                // The history goes on with whatever survives.
                *self.live() = live;
                Err(Dead(error.to_string()))
            }
            Err((wrong, _)) => panic!("after a clean stop: {wrong}"),
        }
    }

    /// Ends as a power failure or a killed process does; what was confirmed until now is certain.
    pub(super) fn into_dead(self) -> (SimDisk, Live) {
        self.disk.crash();
        let mut live = std::mem::take(&mut *self.live());
        live.confirm(self.ear.confirm_lsn());
        (self.disk, live)
    }
}

/// Reads everything back.
fn observe(storage: &Storage, recovered: &Recovered) -> Observed {
    let snapshot = recovered.meta_snapshot.as_deref().unwrap_or_default();
    let mut meta: Vec<u64> = snapshot
        .chunks(8)
        .map(|bytes| u64::from_le_bytes(bytes.try_into().expect("the snapshot is whole numbers")))
        .collect();
    for record in &recovered.meta_records {
        assert_eq!((record.kind, record.version), (META_KIND, META_VERSION));
        let number = record.body.first_chunk().expect("the body is whole");
        meta.push(u64::from_le_bytes(*number));
    }
    let queues = recovered
        .queues
        .iter()
        .map(|image| observe_queue(storage, image));
    Observed {
        queues: queues.collect(),
        meta,
    }
}

fn observe_queue(storage: &Storage, image: &QueueImage) -> ObservedQueue {
    let entries = image.entries.iter().map(|entry| {
        let payload = storage.read(image.id, entry.seq, entry.position);
        ObservedEntry {
            seq: entry.seq,
            body: payload.ok().and_then(|bytes| Body::of_payload(&bytes)),
            expires_at_ms: entry.expires_at_ms,
            priority: entry.priority,
            delivery_count: entry.delivery_count,
            is_redelivered: entry.is_redelivered,
        }
    });
    ObservedQueue {
        id: image.id,
        next_seq: image.next_seq,
        reserved_upto: image.reserved_upto,
        entries: entries.collect(),
    }
}
