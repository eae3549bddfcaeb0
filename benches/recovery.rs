//! How long a start takes: replay of the log, with and without a checkpoint before it.
//!
//! `cargo bench --bench recovery`. The store lies on the simulated disk, in memory, so this is what the processor
//! does: reading, checksums, rebuilding the queues. A recovery writes too (a new segment and both superblocks), so
//! each iteration gets a copy of the disk as it was; making the copy is not timed.
//!
//! ```text
//!   replay      [ N publishes, every second one settled ]           all of it is read
//!   checkpoint  [ N publishes, every second one settled ][ckpt]     the checkpoint is read, no record
//! ```

#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use stratamq::disk::sim::{CrashChoice, SimDisk};
use stratamq::disk::{Clock, Disk, RealClock};
use stratamq::storage::Options;
use stratamq::storage::testing::{LiveStore, numbered_payload};

const QUEUES: u64 = 4;
/// Messages in the log, and bytes of each one's payload.
const LOGS: [(u64, usize); 3] = [(1_000, 16), (10_000, 16), (10_000, 1024)];

/// Opens the store on `disk`; what it found is dropped.
fn open(disk: &SimDisk) -> LiveStore {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
    let (store, _) =
        LiveStore::open_by_hand(disk, clock, Options::default()).expect("the store opens");
    store
}

/// A disk with a store that was used and then lost its power.
fn used_disk(count: u64, payload_bytes: usize, has_checkpoint: bool) -> SimDisk {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    for queue in 1..=QUEUES {
        store.create_queue(queue);
    }
    for number in 0..count {
        let queue = 1 + number % QUEUES;
        let payload = numbered_payload(number, payload_bytes);
        let (_, seqs) = store.publish(&[queue], &payload, 0);
        if number % 2 == 1 {
            store.settle(queue, seqs[0].0, seqs[0].0);
        }
        if number % 100 == 99 {
            store.commit().expect("the disk works");
        }
    }
    store.commit().expect("the disk works");
    if has_checkpoint {
        store.storage.checkpoint(&store).expect("the disk works");
    }
    disk.crash();
    disk
}

fn recovery(criterion: &mut Criterion) {
    for (group_name, has_checkpoint) in [("recovery/replay", false), ("recovery/checkpoint", true)]
    {
        let mut group = criterion.benchmark_group(group_name);
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(200))
            .measurement_time(Duration::from_secs(1));
        for (count, payload_bytes) in LOGS {
            let disk = used_disk(count, payload_bytes, has_checkpoint);
            group.throughput(Throughput::ElementsAndBytes {
                elements: count,
                bytes: count * payload_bytes as u64,
            });
            let id = BenchmarkId::new(format!("{count} messages"), format!("{payload_bytes} B"));
            group.bench_function(id, |bencher| {
                bencher.iter_batched(
                    || disk.power_cycle(&CrashChoice::keep_nothing()),
                    |disk| open(&disk),
                    BatchSize::PerIteration,
                );
            });
        }
        group.finish();
    }
}

criterion_group!(benches, recovery);
criterion_main!(benches);
