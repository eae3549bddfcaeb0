//! How fast a cold backlog comes back, against what the disk gives.
//!
//! `cargo bench --bench drain`; `STRATAMQ_DRAIN_COUNT` sets the number of messages (1,000,000). Persistent messages of
//! 1 KiB are published to a broker in a process of its own, which then stops. Then, each time after the page cache of
//! all files of the data directory was dropped:
//!
//! ```text
//!   pread     the segments in reads of 1 MiB, CRC-32 of every byte: what this machine gives
//!   map       the same through a read-only map
//!   engine    the index and every message by Storage::read_run and read_many, on two threads as in the broker
//!   broker    a new broker, one consumer over AMQP, acks; broker and consumer share the machine's processors
//! ```
//! Every line is a share of the first one, which reads the same bytes in the same run: the fastest of three such loops.
//! The last one also says how many messages a second of processor time brought, of the broker's process and of the
//! consumer's.

#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a bench prints and measures time"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use stratamq::disk::{Clock, Disk, OpenMode, RealClock, RealDisk};
use stratamq::storage::run::{FiledRun, RUN_LEN};
use stratamq::storage::testing::Heard;
use stratamq::storage::types::{Position, QueueId, Seq};
use stratamq::storage::{CommitListener, Options, ReadBuffer, Storage};
use support::TestBroker;

const COUNT_DEFAULT: u64 = 1_000_000;
const BODY_BYTES: &str = "1024";
/// Bytes of one read of the bare loop.
const READ_BYTES: usize = 1 << 20;
/// Runs of 256 messages in one of the engine's chunks: about as much as one read brings.
const RUNS_OF_CHUNK: usize = 4;
/// Threads that read in the engine's part, as the broker has them.
const READER_THREADS: usize = 2;
/// Directories of the data directory whose files are read while a backlog is drained.
const DIRECTORIES: [&str; 2] = ["log", "index"];

fn main() {
    // `cargo test --benches` only wants to know that it starts.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let count = std::env::var("STRATAMQ_DRAIN_COUNT")
        .ok()
        .map_or(COUNT_DEFAULT, |text| {
            text.parse().expect("a number of messages")
        });
    let directory = tempfile::Builder::new()
        .prefix("stratamq-bench-drain-")
        .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
        .expect("a directory on the disk that is measured");
    write_backlog(directory.path(), count);
    // A spare one has no messages, and is gone as soon as somebody opens the store.
    let mut segments = files(directory.path(), "log");
    segments.retain(|path| {
        path.extension()
            .is_none_or(|extension| extension != "spare")
    });
    let bytes: u64 = segments
        .iter()
        .map(|path| disk_len(directory.path(), path))
        .sum();
    println!(
        "backlog: {count} messages of {BODY_BYTES} B, {} MiB of segments",
        bytes >> 20
    );
    // Before and after the others, and the fastest one counts: the machine below may have a cache of its own.
    let bare = || cold(directory.path(), || read_all(directory.path(), &segments));
    let before = bare().min(bare());
    let map = cold(directory.path(), || map_all(directory.path(), &segments));
    let engine = drain_engine(directory.path(), count);
    let bare = before.min(bare());
    let broker = drain_broker(directory.path(), count);
    for (name, took) in [
        ("pread", bare),
        ("map", map),
        ("engine", engine),
        ("broker", broker.took),
    ] {
        print_line(name, count, bytes, took, bare);
    }
    println!(
        "processor time: {:.0} messages per second of the broker's, {:.0} per second of the consumer's",
        broker.per_broker_cpu_sec, broker.per_consumer_cpu_sec
    );
}

fn print_line(name: &str, count: u64, bytes: u64, took: Duration, bare: Duration) {
    let secs = took.as_secs_f64();
    println!(
        "{name:<8}{:>10.0} messages/s {:>8.0} MiB/s   {:.2} of pread",
        f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / secs,
        f64::from(u32::try_from(bytes >> 20).unwrap_or(u32::MAX)) / secs,
        bare.as_secs_f64() / secs
    );
}

fn run_generator(broker: &TestBroker, flags: &[&str]) -> serde_json::Value {
    let output = Command::new(env!("CARGO_BIN_EXE_strata-bench"))
        .args([
            "--url",
            &broker.url(),
            "--json",
            "--keep",
            "--body-size",
            BODY_BYTES,
        ])
        .args(flags)
        .output()
        .expect("the generator runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("its report is JSON")
}

fn start_broker(directory: &Path) -> TestBroker {
    TestBroker::builder()
        .data_dir(directory)
        .arg("--log")
        .arg("warn")
        .start()
}

fn write_backlog(directory: &Path, count: u64) {
    let mut broker = start_broker(directory);
    let count = count.to_string();
    run_generator(
        &broker,
        &["--consumers", "0", "--window", "2000", "--count", &count],
    );
    assert!(broker.terminate().success(), "the broker stops cleanly");
}

/// What draining by a whole broker came to.
struct Drained {
    took: Duration,
    per_broker_cpu_sec: f64,
    per_consumer_cpu_sec: f64,
}

fn drain_broker(directory: &Path, count: u64) -> Drained {
    let mut broker = start_broker(directory);
    drop_caches(directory);
    let pid = broker.pid().to_string();
    let flags = ["--publishers", "0", "--prefetch", "2000", "--pid", &pid];
    let report = run_generator(&broker, &flags);
    let figure = |name: &str| report[name].as_f64().expect("a figure");
    assert_eq!(
        report["consumed_count"].as_u64(),
        Some(count),
        "all came back"
    );
    broker.kill();
    let count = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    Drained {
        took: Duration::from_secs_f64(count / figure("consumed_per_sec")),
        per_broker_cpu_sec: figure("messages_per_broker_cpu_sec"),
        per_consumer_cpu_sec: count / figure("generator_cpu_secs"),
    }
}

/// Messages that are read together, as the broker does.
enum Chunk<'a> {
    /// Their entries were in the checkpoint.
    Packed(QueueId, Vec<(Seq, Position)>),
    /// Their entries are in the index file.
    Filed(QueueId, &'a [FiledRun]),
}

fn drain_engine(directory: &Path, count: u64) -> Duration {
    let listener: Arc<dyn CommitListener> = Arc::new(Heard::default());
    let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
    let (storage, recovered) = Storage::open(disk(directory), clock, Options::default(), listener)
        .expect("the backlog recovers");
    let mut chunks = Vec::new();
    for queue in &recovered.queues {
        let filed = queue.runs.chunks(RUNS_OF_CHUNK);
        chunks.extend(filed.map(|runs| Chunk::Filed(queue.id, runs)));
        let packed = queue
            .entries
            .iter()
            .map(|entry| (entry.seq, entry.position));
        let packed: Vec<_> = packed.collect();
        let packed = packed.chunks(RUNS_OF_CHUNK * RUN_LEN);
        chunks.extend(packed.map(|places| Chunk::Packed(queue.id, places.to_vec())));
    }
    let next = AtomicUsize::new(0);
    let read_count = AtomicU64::new(0);
    let took = cold(directory, || {
        std::thread::scope(|scope| {
            for _ in 0..READER_THREADS {
                scope.spawn(|| {
                    let mut buffer = ReadBuffer::default();
                    while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let done = read_chunk(&storage, chunk, &mut buffer);
                        read_count.fetch_add(done, Ordering::Relaxed);
                    }
                });
            }
        });
    });
    assert_eq!(
        read_count.into_inner(),
        count,
        "all of the backlog was read"
    );
    took
}

fn read_chunk(storage: &Storage, chunk: &Chunk<'_>, buffer: &mut ReadBuffer) -> u64 {
    let (queue, places) = match chunk {
        Chunk::Packed(queue, places) => (*queue, places.clone()),
        Chunk::Filed(queue, runs) => {
            let entries = runs.iter().flat_map(|run| {
                let entries = storage.read_run(*queue, run);
                entries.expect("every run is readable")
            });
            let places = entries.map(|entry| (entry.seq, entry.position));
            (*queue, places.collect())
        }
    };
    let results = storage.read_many(queue, &places, buffer);
    let count = results.len() as u64;
    for result in results {
        drop(result.expect("every message is readable"));
    }
    count
}

fn read_all(directory: &Path, segments: &[PathBuf]) {
    let disk = disk(directory);
    let mut buffer = vec![0; READ_BYTES];
    let mut crc = crc32fast::Hasher::new();
    for path in segments {
        let file = disk.open(path, OpenMode::Read).expect("a segment");
        let mut offset = 0;
        loop {
            let len = file.read_at(&mut buffer, offset).expect("it is readable");
            if len == 0 {
                break;
            }
            crc.update(&buffer[..len]);
            offset += len as u64;
        }
    }
    std::hint::black_box(crc.finalize());
}

fn map_all(directory: &Path, segments: &[PathBuf]) {
    let disk = disk(directory);
    let mut crc = crc32fast::Hasher::new();
    for path in segments {
        let map = disk.map_sealed(path).expect("a segment that nobody writes");
        crc.update((*map).as_ref());
    }
    std::hint::black_box(crc.finalize());
}

/// How long `part` takes when nothing of the directory is in the page cache.
fn cold(directory: &Path, part: impl FnOnce()) -> Duration {
    drop_caches(directory);
    let begun = Instant::now();
    part();
    begun.elapsed()
}

fn disk(directory: &Path) -> Arc<dyn Disk> {
    Arc::new(RealDisk::open_existing(directory.to_owned()).expect("the directory is there"))
}

/// Paths of the files of a directory below the data directory.
fn files(directory: &Path, below: &str) -> Vec<PathBuf> {
    match disk(directory).list(Path::new(below)) {
        Ok(names) => names
            .iter()
            .map(|name| Path::new(below).join(name))
            .collect(),
        Err(_) => Vec::new(),
    }
}

fn disk_len(directory: &Path, path: &Path) -> u64 {
    let file = disk(directory).open(path, OpenMode::Read).expect("a file");
    file.len().expect("it has a size")
}

fn drop_caches(directory: &Path) {
    for path in DIRECTORIES.iter().flat_map(|below| files(directory, below)) {
        let file = disk(directory)
            .open(&path, OpenMode::ReadWrite)
            .expect("a file");
        file.sync_data().expect("it is written");
        file.drop_cache().expect("the system drops it");
    }
}
