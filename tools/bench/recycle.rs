//! Segments used again against fresh ones: what an fdatasync costs in each.
//!
//! The engine itself, without a broker: one message after the other, each waited for. A checkpoint after every segment frees
//! what is behind it; with a pool these files come back, without one every segment is a new file, allocated ahead. Blocks
//! that were written before need no entry in the file system's journal. Each kind is warmed up, closed, and opened again,
//! so that the engine's figures are those of the measured part alone. The kinds take turns.

use crate::clock::{Clock, secs};
use crate::error::BenchError;
use crate::raw::RawDisk;
use crate::report::rate;
use crate::table::{Grid, Table, median};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use stratamq::disk::{RealClock, RealDisk};
use stratamq::storage::types::{Lsn, QueueId, Ref, Request, Seq, Urgency};
use stratamq::storage::{
    CheckpointSource, CommitListener, Options, QueueImage, Storage, StorageError,
};

/// Segments are small, so that many are entered.
const SEGMENT_BYTES: u64 = 4 << 20;
/// Files kept where files are used again.
const SPARE_COUNT: usize = 4;
/// Segments written before those that are measured.
const WARM_COUNT: u32 = 6;

/// What to write.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RecycleArgs {
    /// Bytes of a body.
    #[arg(long, default_value_t = 1024)]
    body_size: usize,
    /// Segments of 4 MiB that are measured, of each kind and repetition.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    segments: u32,
    /// How often all of it is repeated; medians are shown.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Where the fresh directories are made.
    #[arg(long, default_value = ".")]
    directory: PathBuf,
    /// Print one JSON object in place of the table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// All that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct RecycleReport {
    raw: RawDisk,
    body_bytes: usize,
    recycled: Measured,
    fresh: Measured,
}

/// Medians over the repetitions.
#[derive(Clone, Copy, Debug, Serialize)]
struct Measured {
    messages_per_sec: f64,
    fdatasync_p50_us: f64,
    fdatasync_p99_us: f64,
    recycled_segments: f64,
}

pub(crate) fn run(args: &RecycleArgs) -> Result<RecycleReport, BenchError> {
    let raw = RawDisk::measure(&args.directory)?;
    let (mut recycled, mut fresh) = (Vec::new(), Vec::new());
    for _ in 0..args.repeats {
        recycled.push(measure(args, SPARE_COUNT)?);
        fresh.push(measure(args, 0)?);
    }
    Ok(RecycleReport {
        raw,
        body_bytes: args.body_size,
        recycled: Measured::middle(&recycled),
        fresh: Measured::middle(&fresh),
    })
}

fn measure(args: &RecycleArgs, spare_count_max: usize) -> Result<Measured, BenchError> {
    let place = tempfile::Builder::new()
        .prefix("strata-bench-")
        .tempdir_in(&args.directory)
        .map_err(BenchError::io("making a directory"))?;
    let clock = Clock::start();
    let mut store = Store::open(place.path().to_owned(), spare_count_max)?;
    for _ in 0..WARM_COUNT {
        store.fill_segment(args.body_size, clock)?;
    }
    drop(store);
    let mut store = Store::open(place.path().to_owned(), spare_count_max)?;
    let mut taken_ns = 0;
    let mut count = 0;
    for _ in 0..args.segments {
        let (messages, ns) = store.fill_segment(args.body_size, clock)?;
        count += messages;
        taken_ns += ns;
    }
    let stats = store.storage.stats();
    let us = |permille| secs(stats.sync_ns.percentile(permille)) * 1e6;
    Ok(Measured {
        messages_per_sec: rate(count, secs(taken_ns)),
        fdatasync_p50_us: us(500),
        fdatasync_p99_us: us(990),
        recycled_segments: rate(stats.recycled_segment_count, 1.0),
    })
}

/// The engine on a directory of its own.
struct Store {
    storage: Storage,
    watermark: Arc<Watermark>,
}

impl Store {
    fn open(directory: PathBuf, spare_count_max: usize) -> Result<Self, BenchError> {
        let disk = RealDisk::new(directory).map_err(BenchError::io("opening a directory"))?;
        let watermark = Arc::new(Watermark::default());
        let options = Options {
            segment_size_bytes: SEGMENT_BYTES,
            spare_count_max,
            ..Options::default()
        };
        let listener: Arc<dyn CommitListener> = watermark.clone();
        let clock = Arc::new(RealClock::new());
        let (storage, _) =
            Storage::open(Arc::new(disk), clock, options, listener).map_err(failed)?;
        Ok(Self { storage, watermark })
    }

    /// Writes messages for one segment, then frees it. How many, and the nanoseconds without the checkpoint.
    fn fill_segment(&mut self, body_bytes: usize, clock: Clock) -> Result<(u64, u64), BenchError> {
        let payload = [bytes::Bytes::from(vec![b'x'; body_bytes])];
        let payload_crc = crc32fast::hash(&payload[0]);
        let begun_ns = clock.now_ns();
        let mut count = 0;
        let goal_bytes = self.storage.stats().batch_bytes + SEGMENT_BYTES;
        while self.storage.stats().batch_bytes < goal_bytes {
            count += 1;
            let refs = [Ref {
                queue: QueueId(1),
                seq: Seq(count),
                expires_at_ms: 0,
            }];
            let request = Request::Publish {
                refs: &refs,
                priority: 0,
                time_ms: 1,
                payload: (&payload[..]).into(),
                payload_crc,
            };
            let mut positions = Vec::new();
            let pushed = self
                .storage
                .push(&[request], false, Urgency::Waited, &mut positions);
            self.storage.wake();
            self.watermark.wait_for(pushed.end)?;
        }
        let taken_ns = clock.now_ns() - begun_ns;
        self.storage.checkpoint(&Nothing).map_err(failed)?;
        Ok((count, taken_ns))
    }
}

fn failed(error: StorageError) -> BenchError {
    BenchError::io("the engine")(std::io::Error::other(error.to_string()))
}

/// An owner of no queue: every message is dead at once.
struct Nothing;

impl CheckpointSource for Nothing {
    fn meta(&self) -> (Vec<u8>, Lsn) {
        (Vec::new(), Lsn(0))
    }
    fn queue_ids(&self) -> Vec<QueueId> {
        Vec::new()
    }
    fn queue(&self, _: QueueId) -> Option<QueueImage> {
        None
    }
}

/// Lets a thread wait for what is durable.
#[derive(Default)]
struct Watermark {
    /// And whether the engine has failed.
    state: Mutex<(Lsn, bool)>,
    changed: Condvar,
}

impl Watermark {
    fn wait_for(&self, end: Lsn) -> Result<(), BenchError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.0 < end && !state.1 {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.1 {
            return Err(BenchError::Protocol("the engine has failed".to_owned()));
        }
        Ok(())
    }

    fn change(&self, change: impl FnOnce(&mut (Lsn, bool))) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }
}

impl CommitListener for Watermark {
    fn committed(&self, confirm_lsn: Lsn) {
        self.change(|state| state.0 = confirm_lsn);
    }
    fn has_room_again(&self) {}
    fn failed(&self, _: &StorageError) {
        self.change(|state| state.1 = true);
    }
}

impl Measured {
    fn middle(all: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| median(all.iter().map(figure));
        Self {
            messages_per_sec: of(|one| one.messages_per_sec),
            fdatasync_p50_us: of(|one| one.fdatasync_p50_us),
            fdatasync_p99_us: of(|one| one.fdatasync_p99_us),
            recycled_segments: of(|one| one.recycled_segments),
        }
    }

    fn cells(&self, name: &str, raw_us: f64) -> Vec<String> {
        vec![
            name.to_owned(),
            format!("{:.0}", self.messages_per_sec),
            format!("{:.0}", self.fdatasync_p50_us),
            format!("{:.0}", self.fdatasync_p99_us),
            format!("{:.2}", self.fdatasync_p50_us / raw_us),
            format!("{:.0}", self.recycled_segments),
        ]
    }
}

impl Table for RecycleReport {
    fn table(&self) -> String {
        let headings = [
            "segments",
            "msg/s",
            "sync p50 us",
            "sync p99 us",
            "p50 / raw",
            "recycled",
        ];
        let mut grid = Grid::new(&headings);
        let (recycled, fresh) = (&self.recycled, &self.fresh);
        grid.row(recycled.cells("recycled", self.raw.fdatasync_overwrite_p50_us));
        grid.row(fresh.cells("fresh", self.raw.fdatasync_append_p50_us));
        format!(
            "{}{}recycled / fresh: msg/s {:.2}, sync p50 {:.2}, p99 {:.2}\n",
            self.raw.line(),
            grid.text(),
            recycled.messages_per_sec / fresh.messages_per_sec,
            recycled.fdatasync_p50_us / fresh.fdatasync_p50_us,
            recycled.fdatasync_p99_us / fresh.fdatasync_p99_us,
        )
    }
}
