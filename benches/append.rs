//! From a record pushed to the word that it is durable, and what of that the processor does.
//!
//! `cargo bench --bench append`. `append/durable` writes to the real disk and waits for a real fdatasync, in a
//! directory below `target/` (so not on a memory file system); its figures are the disk's first of all. One
//! iteration pushes a batch of messages with one call, as a connection does with what a socket read brought, and
//! waits until the watermark covers it. `append/encode` pushes the same batches and never writes them: records,
//! checksums of the payloads and the copy into the batch.

#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use stratamq::disk::sim::SimDisk;
use stratamq::disk::{Clock, Disk, RealClock, RealDisk};
use stratamq::storage::format::StoreId;
use stratamq::storage::types::{Lsn, MetaEffect, QueueId, Ref, Request, Seq, Urgency};
use stratamq::storage::{CommitListener, Options, Storage, StorageError};

/// Bytes of a payload, as names and as numbers.
const PAYLOADS: [(&str, usize); 3] = [("16 B", 16), ("1 KiB", 1024), ("64 KiB", 64 * 1024)];
/// Messages of one push.
const BATCH_COUNTS: [usize; 3] = [1, 10, 100];
/// Messages of one push where nothing is written.
const ENCODED_COUNT: usize = 64;
const QUEUE: QueueId = QueueId(1);

/// Lets a thread wait for the watermark.
#[derive(Default)]
struct Watermark {
    lsn: Mutex<Lsn>,
    changed: Condvar,
}

impl Watermark {
    fn wait_for(&self, end: Lsn) {
        let mut lsn = self.lsn.lock().unwrap_or_else(PoisonError::into_inner);
        while *lsn < end {
            lsn = self
                .changed
                .wait(lsn)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl CommitListener for Watermark {
    fn committed(&self, confirm_lsn: Lsn) {
        *self.lsn.lock().unwrap_or_else(PoisonError::into_inner) = confirm_lsn;
        self.changed.notify_all();
    }
    fn has_room_again(&self) {}
    fn failed(&self, error: &StorageError) {
        panic!("the disk failed: {error}");
    }
}

/// Messages of one size for one queue.
struct Source {
    payload: Bytes,
    payload_crc: u32,
    refs: Vec<[Ref; 1]>,
    next_seq: u64,
}

impl Source {
    fn new(payload_bytes: usize, count: usize) -> Self {
        let payload = Bytes::from(vec![b'x'; payload_bytes]);
        let nothing = Ref {
            queue: QUEUE,
            seq: Seq(0),
            expires_at_ms: 0,
        };
        Self {
            payload_crc: crc32fast::hash(&payload),
            payload,
            refs: vec![[nothing]; count],
            next_seq: 1,
        }
    }

    /// Pushes one batch and answers its end.
    fn push(&mut self, storage: &Storage) -> Lsn {
        for [place] in &mut self.refs {
            place.seq = Seq(self.next_seq);
            self.next_seq += 1;
        }
        let (payload, payload_crc) = ((&self.payload).into(), self.payload_crc);
        let requests: Vec<Request<'_>> = self
            .refs
            .iter()
            .map(|refs| Request::Publish {
                refs,
                priority: 0,
                time_ms: 1,
                payload,
                payload_crc,
            })
            .collect();
        let mut positions = Vec::with_capacity(requests.len());
        let receipt = storage.push(&requests, false, Urgency::Waited, &mut positions);
        receipt.end
    }
}

fn create_queue(storage: &Storage) -> Lsn {
    let request = Request::Meta {
        kind: 1,
        version: 1,
        effect: MetaEffect::QueueCreated(QUEUE),
        body: b"queue",
    };
    let receipt = storage.push(&[request], false, Urgency::Waited, &mut Vec::new());
    receipt.end
}

fn durable(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("append/durable");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    for (name, payload_bytes) in PAYLOADS {
        for count in BATCH_COUNTS {
            // A directory of its own: every case begins with a fresh log.
            let directory = tempfile::Builder::new()
                .prefix("stratamq-bench-append-")
                .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
                .expect("a directory on the disk that is measured");
            let disk: Arc<dyn Disk> = Arc::new(
                RealDisk::new(directory.path().to_owned()).expect("the directory is there"),
            );
            let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
            let watermark = Arc::new(Watermark::default());
            let listener: Arc<dyn CommitListener> = watermark.clone();
            let (storage, _) = Storage::open(disk, clock, Options::default(), listener)
                .expect("a fresh directory opens");
            watermark.wait_for(create_queue(&storage));
            let mut source = Source::new(payload_bytes, count);
            group.throughput(Throughput::ElementsAndBytes {
                elements: count as u64,
                bytes: (count * payload_bytes) as u64,
            });
            let id = BenchmarkId::new(name, format!("{count} a push"));
            group.bench_function(id, |bencher| {
                bencher.iter(|| {
                    let end = source.push(&storage);
                    storage.wake();
                    watermark.wait_for(end);
                });
            });
        }
    }
    group.finish();
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("append/encode");
    group
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    for (name, payload_bytes) in PAYLOADS {
        let mut source = Source::new(payload_bytes, ENCODED_COUNT);
        group.throughput(Throughput::ElementsAndBytes {
            elements: ENCODED_COUNT as u64,
            bytes: (ENCODED_COUNT * payload_bytes) as u64,
        });
        group.bench_function(
            BenchmarkId::new(name, format!("{ENCODED_COUNT} a push")),
            |bencher| {
                // Nobody steps this store, so what is pushed stays in memory, and each goes with its batch.
                let open = || {
                    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
                    let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
                    let listener: Arc<dyn CommitListener> = Arc::new(Watermark::default());
                    let store = StoreId([7; 16]);
                    Storage::open_by_hand(disk, clock, Options::default(), listener, store)
                        .expect("a fresh disk opens")
                        .0
                };
                bencher.iter_batched_ref(
                    open,
                    |storage| source.push(storage),
                    BatchSize::SmallInput,
                );
            },
        );
    }
    group.finish();
}

criterion_group!(benches, encode, durable);
criterion_main!(benches);
