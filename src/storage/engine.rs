//! [`Storage`]: the engine as its owner sees it.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use bytes::Bytes;

use super::CommitListener;
use super::append::Append;
use super::checkpointing::{Checkpoints, Since};
use super::commit::{Committer, Next};
use super::error::{ReadError, StorageError};
use super::file::io_error;
use super::format::{LOG_DIR, StoreId};
use super::gather::ReadBuffer;
use super::options::Options;
use super::recovery;
use super::report::Recovered;
use super::reserve::Space;
use super::scrub::Scrubber;
use super::shared::{Shared, Surroundings};
use super::stats::Stats;
use super::types::{Lsn, Position, Pusher, QueueId, Receipt, Request, SegmentId, Seq, Urgency};
use crate::disk::{Clock, DirectoryLock, Disk};
use crate::sync::lock;

/// A handle of the engine. Cheap to clone; the engine ends with the last one.
#[derive(Clone)]
pub struct Storage {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) shared: Arc<Shared>,
    pub(super) committing: Mutex<Committing>,
    /// Held during a checkpoint: there is one at a time.
    pub(super) checkpoints: Mutex<Checkpoints>,
    pub(super) since: Since,
    /// Given up when the engine is closed.
    pub(super) lock: Mutex<Option<Box<dyn DirectoryLock>>>,
}

/// Who runs the commit steps.
pub(super) enum Committing {
    /// A thread, and one that prepares segments.
    Threads(JoinHandle<()>, JoinHandle<()>),
    /// The caller of [`Storage::step`], who prepares segments as well.
    ByHand(Box<Committer>),
    /// Nobody any more.
    Ended,
}

impl Storage {
    /// Opens the data directory, made when missing or empty, recovers its state and starts the commit thread.
    ///
    /// # Errors
    /// `Locked`, `NotADataDirectory`, `NewerFormat` and `Damaged` leave the directory as it was.
    pub fn open(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        options: Options,
        listener: Arc<dyn CommitListener>,
    ) -> Result<(Self, Recovered), StorageError> {
        let mut store = [0; 16];
        getrandom::fill(&mut store).map_err(|error| StorageError::Io {
            operation: "name the store by",
            path: "random bytes".into(),
            source: std::io::Error::other(error.to_string()),
        })?;
        let (storage, recovered) =
            Self::open_by_hand(disk, clock, options, listener, StoreId(store))?;
        storage.start_threads()?;
        Ok((storage, recovered))
    }

    /// As [`Storage::open`], but commits happen only when [`Storage::step`] is called, or inside a checkpoint. With
    /// a simulated disk every run makes the same calls in the same order.
    ///
    /// # Errors
    /// As [`Storage::open`].
    pub fn open_by_hand(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        options: Options,
        listener: Arc<dyn CommitListener>,
        new_store: StoreId,
    ) -> Result<(Self, Recovered), StorageError> {
        let options = Options {
            segment_size_bytes: options.segment_size_bytes.clamp(
                Options::SEGMENT_SIZE_MIN_BYTES,
                Options::SEGMENT_SIZE_MAX_BYTES,
            ),
            ..options
        };
        let space = Arc::new(Space::new(
            Arc::clone(&disk),
            options.segment_size_bytes,
            options.spare_count_max,
            options.undurable_max_bytes,
        ));
        let opened = recovery::open(&disk, &*clock, new_store, options.on_corruption, &space)?;
        space.set_started();
        let (fresh, superblock) = (opened.fresh, opened.superblock);
        let base = fresh.open_header.end();
        let append = Append::new(
            base,
            superblock.epoch,
            options.segment_size_bytes,
            options.commit_max_bytes,
        );
        let now_ms = clock.unix_ms();
        let report = &opened.recovered.report;
        let replayed_bytes = if report.replayed_record_count + report.rebuilt_run_count > 0 {
            report.read_bytes
        } else {
            0
        };
        let surroundings = Surroundings {
            disk,
            clock,
            listener: Arc::clone(&listener),
        };
        let shared = Arc::new(Shared::new(
            surroundings,
            options,
            &superblock,
            append,
            opened.existing,
            space,
        ));
        lock(&shared.stats).rebuilt_run_count = report.rebuilt_run_count;
        let committer = Committer::new(
            Arc::clone(&shared),
            listener,
            fresh.header,
            fresh.file,
            &fresh.open_batch,
            &fresh.open_header,
        );
        let inner = Inner {
            shared,
            committing: Mutex::new(Committing::ByHand(Box::new(committer))),
            checkpoints: Mutex::new(Checkpoints::new(superblock)),
            since: Since::new(replayed_bytes, now_ms),
            lock: Mutex::new(Some(opened.lock)),
        };
        Ok((
            Self {
                inner: Arc::new(inner),
            },
            opened.recovered,
        ))
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.inner.shared
    }

    fn start_threads(&self) -> Result<(), StorageError> {
        let mut committing = lock(&self.inner.committing);
        if let Committing::ByHand(committer) =
            std::mem::replace(&mut *committing, Committing::Ended)
        {
            let shared = Arc::clone(&self.inner.shared);
            let ahead = spawn("stratamq-space", move || {
                let on_room = || shared.tell_of_room();
                shared.space.run(|| shared.rouse(), on_room);
            })?;
            match spawn("stratamq-commit", move || committer.run()) {
                Ok(commit) => *committing = Committing::Threads(commit, ahead),
                Err(error) => {
                    self.inner.shared.space.pool.stop();
                    // A panic in it has aborted the process already.
                    let _ = ahead.join();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Makes one step of the commit thread's work; false when there is nothing to do at this time.
    ///
    /// # Errors
    /// A failed step is the end of the engine; the listener has been told.
    ///
    /// # Panics
    /// When the engine runs its own thread.
    pub fn step(&self) -> Result<bool, StorageError> {
        match &mut *lock(&self.inner.committing) {
            Committing::ByHand(committer) => Self::step_by_hand(committer, &self.inner.shared),
            Committing::Threads(..) => panic!("the engine was not opened to be stepped by hand"),
            Committing::Ended => Ok(false),
        }
    }

    pub(super) fn step_by_hand(
        committer: &mut Committer,
        shared: &Shared,
    ) -> Result<bool, StorageError> {
        shared.check_not_failed()?;
        let step = match shared.space.work() {
            Ok(true) => {
                shared.tell_of_room();
                Ok(Next::Step)
            }
            Ok(false) => committer.step(),
            Err(error) => Err(error),
        };
        match step {
            Ok(next) => Ok(next == Next::Step),
            Err(error) => {
                committer.fail(&error);
                Err(error)
            }
        }
    }

    /// Appends `requests` in order; as one group that survives a crash whole or not at all when `is_atomic`. The
    /// position of every PUBLISH is appended to `positions`. Never waits for the disk and wakes nobody: call
    /// [`Storage::wake`] once no lock is held.
    ///
    /// # Panics
    /// When a group does not fit a segment; see [`Storage::group_max_bytes`].
    pub fn push(
        &self,
        requests: &[Request<'_>],
        is_atomic: bool,
        urgency: Urgency,
        positions: &mut Vec<Position>,
    ) -> Receipt {
        self.inner
            .shared
            .push(requests, is_atomic, urgency, positions)
    }

    /// Wakes the commit thread if what was pushed needs it and it sleeps.
    pub fn wake(&self) {
        self.inner.shared.wake();
    }

    /// False when so many bytes are un-durable that publishers must wait for
    /// [`CommitListener::has_room_again`].
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.inner.shared.admission().has_room()
    }

    /// Whether `pusher` may push records of `bytes` that nobody has pushed yet; if so, [`Storage::release`] must follow once
    /// they are pushed. If not, he has to wait for [`CommitListener::has_room_again`], or until
    /// [`Storage::is_short_of_space`] changes, and ask again.
    #[must_use]
    pub fn admit(&self, bytes: u64, pusher: Pusher) -> bool {
        let shared = &self.inner.shared;
        let now_ns = shared.clock.monotonic_ns();
        let is_admitted = shared
            .admission()
            .admit(bytes, pusher, &shared.space, now_ns);
        if !is_admitted {
            // What is pending stands in its way: the commit thread does not let it wait.
            shared.rouse();
        }
        is_admitted
    }

    /// Records that were admitted are pushed, or will not be.
    pub fn release(&self, bytes: u64) {
        let shared = &self.inner.shared;
        shared.admission().release(bytes);
        // It may have been counted twice when somebody else was refused.
        shared.tell_of_room();
    }

    /// A push may be confirmed when this has reached its receipt's end.
    #[must_use]
    pub fn confirm_lsn(&self) -> Lsn {
        self.inner.shared.confirm_lsn()
    }

    /// Everything below is on stable storage.
    #[must_use]
    pub fn synced_lsn(&self) -> Lsn {
        self.inner.shared.synced_lsn()
    }

    /// Largest payload of a record, and largest sum of payloads of an atomic group.
    #[must_use]
    pub fn group_max_bytes(&self) -> u64 {
        self.inner.shared.options.segment_size_bytes / 4
    }

    /// Reads the payload of a message. Blocks on the disk; any thread may call it.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read(&self, queue: QueueId, seq: Seq, position: Position) -> Result<Bytes, ReadError> {
        super::read::read(&self.inner.shared, queue, seq, position)
    }

    /// Reads the payloads of many messages of a queue with few reads; the results are in the order of `wanted`, each as
    /// [`Storage::read`] would give it. Blocks on the disk; `buffer` is the calling thread's own.
    pub fn read_many(
        &self,
        queue: QueueId,
        wanted: &[(Seq, Position)],
        buffer: &mut ReadBuffer,
    ) -> Vec<Result<Bytes, ReadError>> {
        super::gather::read_many(&*self.inner.shared, queue, wanted, buffer)
    }

    /// As [`Storage::read_many`], in any order: `take` gets the index in `wanted` of each.
    pub fn read_each(
        &self,
        queue: QueueId,
        wanted: &[(Seq, Position)],
        buffer: &mut ReadBuffer,
        take: impl FnMut(usize, Result<Bytes, ReadError>),
    ) {
        super::gather::read_each(&*self.inner.shared, queue, wanted, buffer, take);
    }

    /// Makes everything below `lsn` durable, in every mode.
    pub(super) fn sync_to(&self, lsn: Lsn) -> Result<(), StorageError> {
        let shared = &self.inner.shared;
        shared.request_sync(lsn);
        if let Committing::ByHand(committer) = &mut *lock(&self.inner.committing) {
            while shared.synced_lsn() < lsn {
                if !Self::step_by_hand(committer, shared)? && shared.is_stalled() {
                    if shared.is_closing() {
                        break;
                    }
                    return Err(StorageError::Full {
                        operation: "write the log, which a checkpoint needs, to",
                        path: shared.disk.describe(Path::new(LOG_DIR)),
                    });
                }
            }
        }
        shared.wait_synced(lsn)
    }

    /// Something that reads the store again, step by step, and says what does not verify.
    #[must_use]
    pub fn scrubber(&self) -> Scrubber {
        Scrubber::new(Arc::clone(&self.inner.shared))
    }

    /// Looks after what is put aside; to be called every now and then. While the disk is low nothing is kept for
    /// later, and spare segments are given back; otherwise a reserve that had to give is made whole again.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn tend_space(&self, is_low: bool) -> Result<(), StorageError> {
        let shared = &self.inner.shared;
        let path = Path::new(LOG_DIR);
        let set = shared.space.pool.set_low(is_low);
        set.map_err(io_error(&*shared.disk, "give back spare segments of", path))?;
        if !is_low {
            shared.space.refill();
        }
        Ok(())
    }

    /// True since the disk refused something for lack of space, until there is room and the reserve is whole again:
    /// nobody may publish meanwhile. Everything else goes on.
    #[must_use]
    pub fn is_short_of_space(&self) -> bool {
        self.inner.shared.space.is_short()
    }

    /// True while not even acks can be logged: commits wait for room, and go on by themselves when there is some.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.inner.shared.is_stalled()
    }

    /// Counters since the start.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let shared = &self.inner.shared;
        let mut stats = lock(&shared.stats).clone();
        stats.undurable_bytes = shared.admission().undurable_bytes();
        let segments = lock(&shared.segments).clone();
        stats.segment_count = segments.len() as u64;
        stats.cold_segment_count = segments.range(SegmentId::FIRST_COLD..).count() as u64;
        stats.segment_bytes = segments
            .iter()
            .filter_map(|segment| shared.files.get(*segment).and_then(|file| file.len()).ok())
            .sum();
        stats.reserve_bytes = shared.space.reserve_bytes();
        stats.spare_count = shared.space.pool.spare_count() as u64;
        stats.replay_bytes = self.replay_bytes();
        stats
    }
}

/// Starts a thread of the engine.
fn spawn(
    name: &'static str,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, StorageError> {
    let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
        // A panic here would leave a broker that never confirms: better a restart.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_err() {
            tracing::error!(name, "a thread of the engine panicked; aborting, the next start recovers from the log");
            std::process::abort();
        }
    });
    thread.map_err(|source| StorageError::Io {
        operation: "start the thread",
        path: name.into(),
        source,
    })
}
