//! Index files: what is filed survives, is freed, and is built again when it is lost.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::disk::sim::{Effect, Trigger};
use crate::disk::{Disk, OpenMode};
use crate::storage::format::{INDEX_DIR, StoreId, index_path, segment_path};
use crate::storage::index::BLOCK_LEN;
use crate::storage::run::FiledRun;
use crate::storage::testing::{Heard, as_recovered, numbered_payload};
use crate::storage::types::{QueueId, SegmentId, Seq};
use crate::storage::{
    CheckpointSource, CommitListener, OnCorruption, QueueImage, ReadError, Storage,
};

/// Every queue has a file, and everything in it that a checkpoint finds.
fn filing() -> Options {
    Options {
        index_min_messages: 0,
        ..options()
    }
}

#[track_caller]
fn check_same_state(recovered: &Recovered, live: &LiveStore) {
    check_equal(&recovered.queues, &live.images());
}

/// As `assert_eq`, but thousands of entries are not printed.
#[track_caller]
fn check_equal(left: &[QueueImage], right: &[QueueImage]) {
    let (left, right) = (as_recovered(left.to_vec()), as_recovered(right.to_vec()));
    assert_eq!(left.len(), right.len());
    for (left, right) in left.iter().zip(&right) {
        let mut entries = left.entries.iter().zip(right.entries.iter());
        let different = entries.find(|(left, right)| left != right);
        assert_eq!(different, None, "queue {}", left.id);
        assert_eq!(left.entries.len(), right.entries.len());
        assert!(left == right, "queue {}", left.id);
    }
}

fn index_files(rig: &Rig) -> Vec<PathBuf> {
    let files = rig.disk.files();
    let files = files.into_iter();
    files.filter(|path| path.starts_with(INDEX_DIR)).collect()
}

fn publish(store: &LiveStore, queues: &[u64], count: u64) {
    for number in 0..count {
        let expires_at_ms = if number % 7 == 0 {
            5_000_000 + number
        } else {
            0
        };
        store.publish(queues, &numbered_payload(number, 60), expires_at_ms);
    }
}

/// Queue 1 with 1000 messages and holes, queue 2 with 300 of them; a checkpoint, and more behind it.
fn with_a_backlog(rig: &Rig) -> LiveStore {
    let (store, _) = rig.open();
    store.create_queue(1);
    store.create_queue(2);
    publish(&store, &[1], 700);
    publish(&store, &[1, 2], 300);
    store.requeue(1, 5, 3);
    store.settle(1, 100, 150);
    store.commit().unwrap();
    store.storage.checkpoint(&store).unwrap();
    store
}

fn change_what_is_filed(store: &LiveStore) {
    // All of run 0, parts of run 1 and run 2 of queue 1; marks.
    store.settle(1, 1, 300);
    store.settle(1, 520, 520);
    store.requeue(1, 521, 1);
    store.requeue(2, 3, 200);
    store.settle(2, 3, 3);
    store.reserve(1, 600);
    publish(store, &[1, 2], 20);
    store.commit().unwrap();
}

#[test]
fn filed_messages_survive_a_restart() {
    let rig = Rig::new(filing());
    let store = with_a_backlog(&rig);
    store.check_filed();
    assert_eq!(
        index_files(&rig),
        [index_path(QueueId(1)), index_path(QueueId(2))]
    );
    assert_eq!(store.storage.stats().filed_run_count, 4 + 2);
    let (again, recovered) = rig.after_power_loss().open();
    check_same_state(&recovered, &store);
    assert_eq!(recovered.report.message_count, 949 + 300);
    assert_eq!(recovered.report.filed_run_count, 6);
    assert_eq!(recovered.report.rebuilt_run_count, 0);
    again.check_filed();
    again.check_payloads(&store.payloads());
    assert_eq!(again.storage.stats().rebuilt_run_count, 0);
}

#[test]
fn records_behind_the_checkpoint_change_runs() {
    let rig = Rig::new(filing());
    let store = with_a_backlog(&rig);
    change_what_is_filed(&store);
    let rig = rig.after_power_loss();
    let (again, recovered) = rig.open();
    check_same_state(&recovered, &store);
    assert_eq!(
        recovered.report.filed_run_count, 5,
        "an emptied run is gone"
    );
    again.check_filed();
    // What runs have in which segment was counted again, or the checkpoint would not agree with itself.
    again.storage.checkpoint(&again).unwrap();
    let (third, recovered) = rig.after_power_loss().open();
    check_same_state(&recovered, &store);
    third.check_filed();
    third.check_payloads(&store.payloads());
}

#[test]
fn a_run_that_was_settled_in_part_is_counted_again_at_start() {
    let rig = Rig::new(filing());
    let store = with_a_backlog(&rig);
    change_what_is_filed(&store);
    let rig = rig.after_power_loss();
    let heard: Arc<dyn CommitListener> = Arc::new(Heard::default());
    let (_, recovered) = Storage::open_by_hand(
        Arc::new(rig.disk.clone()),
        Arc::new(rig.clock.clone()),
        rig.options.clone(),
        heard,
        StoreId([0x5a; 16]),
    )
    .unwrap();
    let runs: Vec<&FiledRun> = recovered.queues.iter().flat_map(|q| &q.runs).collect();
    assert_eq!(runs.len(), 5);
    assert!(runs.iter().any(|run| run.live.len() < 256 - 1));
    assert!(runs.iter().all(|run| !run.is_touched()), "{runs:?}");
}

#[test]
fn blocks_of_the_checkpoint_are_not_written_after_a_start() {
    let rig = Rig::new(filing());
    drop(with_a_backlog(&rig));
    let (store, _) = rig.after_power_loss().open();
    publish(&store, &[1, 2], 600);
    store.commit().unwrap();
    assert!(store.storage.file_runs(&store).unwrap() > 3);
    store.check_filed();
    assert_eq!(store.storage.stats().rebuilt_run_count, 0);
}

#[test]
fn a_file_is_cut_behind_its_last_block() {
    let rig = Rig::new(filing());
    let (store, _) = rig.open();
    store.create_queue(1);
    publish(&store, &[1], 12 * 256);
    store.commit().unwrap();
    store.storage.checkpoint(&store).unwrap();
    // The third block is all that is left.
    store.settle(1, 1, 2 * 256);
    store.settle(1, 3 * 256, 12 * 256);
    store.commit().unwrap();
    for _ in 0..3 {
        store.storage.checkpoint(&store).unwrap();
    }
    let len = rig.disk.contents(&index_path(QueueId(1))).unwrap().len();
    assert_eq!(len, 3 * BLOCK_LEN);
    let (again, _) = rig.after_power_loss().open();
    again.check_filed();
    assert_eq!(again.storage.stats().rebuilt_run_count, 0);
}

#[test]
fn a_queue_that_grows_long_again_gets_a_new_file() {
    let rig = Rig::new(Options {
        index_min_messages: 500,
        ..options()
    });
    let (store, _) = rig.open();
    store.create_queue(1);
    for round in 0..2 {
        publish(&store, &[1], 700);
        store.commit().unwrap();
        store.storage.checkpoint(&store).unwrap();
        assert_eq!(index_files(&rig), [index_path(QueueId(1))]);
        let (again, recovered) = rig.after_power_loss().open();
        check_same_state(&recovered, &store);
        again.check_filed();
        assert_eq!(again.storage.stats().rebuilt_run_count, 0);
        store.settle(1, 700 * round + 1, 700 * (round + 1));
        store.commit().unwrap();
        store.storage.checkpoint(&store).unwrap();
        assert_eq!(index_files(&rig), Vec::<PathBuf>::new());
    }
}

/// The runs of a queue as a checkpoint would name them.
fn runs(store: &LiveStore, queue: u64) -> Vec<FiledRun> {
    store.queue(QueueId(queue)).expect("it exists").runs
}

fn remove(rig: &Rig, path: &Path) {
    rig.disk.remove(path).unwrap();
    rig.disk.sync_dir(Path::new(INDEX_DIR)).unwrap();
}

#[test]
fn deleted_index_files_are_built_again() {
    for is_changed in [false, true] {
        for lost in [vec![1], vec![2], vec![1, 2]] {
            let rig = Rig::new(filing());
            let store = with_a_backlog(&rig);
            if is_changed {
                change_what_is_filed(&store);
            }
            let rig = rig.after_power_loss();
            for queue in &lost {
                remove(&rig, &index_path(QueueId(*queue)));
            }
            let (again, recovered) = rig.open();
            check_same_state(&recovered, &store);
            let expected: u64 = lost
                .iter()
                .map(|queue| runs(&store, *queue).len() as u64)
                .sum();
            assert_eq!(recovered.report.rebuilt_run_count, expected, "of {lost:?}");
            let line = recovered.report.to_string();
            let told = format!(
                "built {expected} of {} index blocks",
                recovered.report.filed_run_count
            );
            assert!(line.contains(&told), "{line}");
            again.check_filed();
            again.check_payloads(&store.payloads());
            assert!(
                again.storage.stats().rebuilt_run_count == expected,
                "read from the new blocks"
            );
            // Before the next checkpoint they are not relied on, behind it they are.
            let (_, early) = rig.after_power_loss().open();
            assert_eq!(early.report.rebuilt_run_count, expected);
            again.storage.checkpoint(&again).unwrap();
            let (_, late) = rig.after_power_loss().open();
            assert_eq!(late.report.rebuilt_run_count, 0);
            check_same_state(&late, &store);
        }
    }
}

#[test]
fn a_cut_index_file_is_completed() {
    let rig = Rig::new(filing());
    let store = with_a_backlog(&rig);
    let rig = rig.after_power_loss();
    let file = rig
        .disk
        .open(&index_path(QueueId(1)), OpenMode::ReadWrite)
        .unwrap();
    file.set_len(2 * BLOCK_LEN as u64 + 100).unwrap();
    let (again, recovered) = rig.open();
    assert_eq!(recovered.report.rebuilt_run_count, 2);
    check_same_state(&recovered, &store);
    again.check_filed();
    again.storage.checkpoint(&again).unwrap();
    let (_, late) = rig.after_power_loss().open();
    assert_eq!(late.report.rebuilt_run_count, 0);
}

#[test]
fn a_damaged_block_is_looked_up_in_the_log() {
    let rig = Rig::new(filing());
    let store = with_a_backlog(&rig);
    change_what_is_filed(&store);
    for run in runs(&store, 1) {
        let place = u64::from(run.block) * BLOCK_LEN as u64 + 33;
        rig.disk
            .flip_bit(&index_path(QueueId(1)), place, 3)
            .unwrap();
    }
    let before = store.storage.stats().rebuilt_run_count;
    store.check_filed();
    assert_eq!(store.storage.stats().rebuilt_run_count, before + 3);
}

/// A queue over several segments, all below the checkpoint's begin, whose index file is gone; a bit of the record of
/// message 40 has changed, `skip` bytes behind the start of its batch or, with `None`, in its payload.
fn without_index_and_with_rot(skip: Option<u64>) -> (Rig, LiveStore) {
    let rig = Rig::new(filing());
    let (store, _) = rig.open();
    store.create_queue(1);
    for number in 0..60 {
        store.publish(&[1], &numbered_payload(number, 4_000), 0);
        if number % 2 == 1 {
            store.commit().unwrap();
        }
    }
    store.storage.checkpoint(&store).unwrap();
    let position = store.images()[0]
        .entries
        .position(Seq(40))
        .expect("it is there");
    assert!(position.lsn.segment() > SegmentId(1));
    let rig = rig.after_power_loss();
    remove(&rig, &index_path(QueueId(1)));
    let path = segment_path(position.lsn.segment());
    // Message 39 is the other one of the batch.
    let batch = position.lsn.offset() - position.len_bytes - 64;
    let place = match skip {
        Some(skip) => u64::from(batch) + skip,
        None => u64::from(position.lsn.offset()) + 2_000,
    };
    rig.disk.flip_bit(&path, place, 2).unwrap();
    (rig, store)
}

#[test]
fn i35_a_rotten_payload_costs_a_rebuild_nothing() {
    let (rig, store) = without_index_and_with_rot(None);
    let (again, recovered) = rig.open();
    check_same_state(&recovered, &store);
    assert_eq!(recovered.report.rebuilt_run_count, 1);
    let unreadable: Vec<u64> = recovered.queues[0]
        .entries
        .iter()
        .filter(|entry| {
            let read = again.storage.read(QueueId(1), entry.seq, entry.position);
            read.is_err()
        })
        .map(|entry| entry.seq.0)
        .collect();
    assert_eq!(unreadable, [40]);
}

/// Seqs of a queue's messages that cannot be read, each for want of a batch.
fn unreadable(store: &LiveStore, queue: &QueueImage) -> Vec<u64> {
    let mut seqs = Vec::new();
    for entry in queue.entries.iter() {
        match store.storage.read(queue.id, entry.seq, entry.position) {
            Ok(payload) => assert_eq!(payload, numbered_payload(entry.seq.0 - 1, 4_000)),
            Err(ReadError::Damaged { path, detail, .. }) => {
                assert!(path.ends_with(".segment"), "{path}");
                assert!(detail.contains("the batch"), "{detail}");
                seqs.push(entry.seq.0);
            }
            Err(error) => panic!("{error}"),
        }
    }
    seqs
}

#[test]
fn a_rotten_batch_without_an_index_costs_the_messages_in_it() {
    // In the header of the batch, and in that of its first record.
    for skip in [20, 70] {
        for on_corruption in [OnCorruption::Refuse, OnCorruption::Quarantine] {
            let (mut rig, store) = without_index_and_with_rot(Some(skip));
            rig.options.on_corruption = on_corruption;
            let (again, recovered) = rig.open();
            assert_eq!(recovered.report.salvage, None);
            assert_eq!(recovered.queues[0].entries.len(), 60);
            assert_eq!(unreadable(&again, &recovered.queues[0]), [39, 40]);
            // They stay, also when their segment has nothing else that is alive.
            again.settle(1, 1, 38);
            again.settle(1, 41, 60);
            again.commit().unwrap();
            again.storage.checkpoint(&again).unwrap();
            let (late, recovered) = rig.after_power_loss().open();
            assert_eq!(unreadable(&late, &recovered.queues[0]), [39, 40]);
            drop(store);
        }
    }
}

#[test]
fn a_damaged_block_and_a_rotten_batch_cost_a_run_the_messages_in_it() {
    let (rig, store) = without_index_and_with_rot(Some(20));
    let (running, _) = rig.open();
    drop(store);
    running.storage.checkpoint(&running).unwrap();
    let [run] = &runs(&running, 1)[..] else {
        panic!("one run")
    };
    let place = u64::from(run.block) * BLOCK_LEN as u64 + 33;
    rig.disk
        .flip_bit(&index_path(QueueId(1)), place, 3)
        .unwrap();
    let entries = running.storage.read_run(QueueId(1), run).unwrap();
    let mut image = QueueImage::new(QueueId(1), crate::storage::types::Lsn(0));
    entries
        .into_iter()
        .for_each(|entry| image.entries.insert(entry));
    assert_eq!(unreadable(&running, &image), [39, 40]);
    // The segment they lie in, not another, is what they keep.
    let place = image.entries.position(Seq(40)).unwrap();
    let neighbour = image.entries.position(Seq(41)).unwrap();
    assert_eq!(place.lsn.segment(), neighbour.lsn.segment());
}

#[test]
fn files_of_queues_without_runs_are_removed() {
    let rig = Rig::new(filing());
    let store = with_a_backlog(&rig);
    store.delete_queue(2);
    store.settle(1, 1, 1000);
    store.commit().unwrap();
    store.storage.checkpoint(&store).unwrap();
    // Threshold 0: also an empty queue has a file.
    assert_eq!(index_files(&rig), [index_path(QueueId(1))]);
    let rig = Rig {
        options: Options {
            index_min_messages: 500,
            ..options()
        },
        ..rig
    };
    drop(store);
    let (store, _) = rig.open();
    publish(&store, &[1], 499);
    store.commit().unwrap();
    store.storage.checkpoint(&store).unwrap();
    assert_eq!(
        index_files(&rig),
        Vec::<PathBuf>::new(),
        "below the threshold"
    );
    publish(&store, &[1], 200);
    store.storage.checkpoint(&store).unwrap();
    assert_eq!(index_files(&rig), [index_path(QueueId(1))]);
    assert!(!runs(&store, 1).is_empty());
    store.check_filed();
}

#[test]
fn blocks_are_reused_and_files_shrink() {
    let rig = Rig::new(filing());
    let (store, _) = rig.open();
    store.create_queue(1);
    let mut settled = 0;
    let mut longest = 0;
    for round in 0..30 {
        publish(&store, &[1], 512);
        store.commit().unwrap();
        store.storage.checkpoint(&store).unwrap();
        store.check_filed();
        let len = rig.disk.contents(&index_path(QueueId(1))).unwrap().len();
        longest = longest.max(len);
        if round % 4 != 0 {
            store.settle(1, settled + 1, settled + 600);
            settled += 600;
        }
    }
    // At most some 2500 messages: 10 runs, and what rests for a checkpoint.
    assert!(longest <= 24 * BLOCK_LEN, "{longest}");
    store.settle(1, 1, 30 * 512);
    for _ in 0..5 {
        publish(&store, &[1], 1);
        store.commit().unwrap();
        store.storage.checkpoint(&store).unwrap();
    }
    let len = rig.disk.contents(&index_path(QueueId(1))).unwrap().len();
    assert!(len < longest / 2, "{len} of {longest}");
    let (again, recovered) = rig.after_power_loss().open();
    check_same_state(&recovered, &store);
    again.check_filed();
    assert_eq!(recovered.report.rebuilt_run_count, 0);
}

#[test]
fn runs_are_filed_between_checkpoints_too() {
    let rig = Rig::new(filing());
    let (store, _) = rig.open();
    store.create_queue(1);
    publish(&store, &[1], 700);
    assert_eq!(store.storage.file_runs(&store).unwrap(), 3);
    assert_eq!(store.storage.file_runs(&store).unwrap(), 0);
    store.check_filed();
    store.commit().unwrap();
    let (_, recovered) = rig.after_power_loss().open();
    check_same_state(&recovered, &store);
    assert_eq!(
        recovered.report.filed_run_count, 0,
        "no checkpoint names them yet"
    );
}

/// Filed or not, the log gives the same state: the checkpoint's form is no part of it.
#[test]
fn i24_replay_with_runs_equals_replay_without() {
    proptest!(ProptestConfig::with_cases(40), |(steps in prop::collection::vec((0u8..6, 1u64..900, 0u64..300), 1..25))| {
        let rigs = [Rig::new(filing()), Rig::new(options())];
        let states: Vec<_> = rigs.iter().map(|rig| {
            let (store, _) = rig.open();
            store.create_queue(1);
            publish(&store, &[1], 600);
            for (kind, seq, width) in &steps {
                match kind {
                    0 => publish(&store, &[1], *width),
                    1 | 2 => drop(store.settle(1, *seq, seq + width)),
                    3 => drop(store.requeue(1, *seq, u32::try_from(*width).unwrap())),
                    4 => drop(store.reserve(1, *seq)),
                    _ => drop(store.storage.checkpoint(&store).unwrap()),
                }
            }
            // Lazy traffic rides with what is waited for.
            publish(&store, &[1], 1);
            store.commit().unwrap();
            let (again, recovered) = rig.after_power_loss().open();
            check_same_state(&recovered, &store);
            again.check_filed();
            recovered.queues
        }).collect();
        check_equal(&states[0], &states[1]);
    });
}

#[test]
fn what_a_failed_sync_lost_is_written_again() {
    // The commit of the checkpoint syncs nothing more, so the first syncs are those of index files. What one says goes
    // for all of them.
    for nth in 1..=2 {
        let rig = Rig::new(filing());
        let store = with_a_backlog(&rig);
        change_what_is_filed(&store);
        rig.disk.inject(Trigger::Sync, nth, Effect::Eio);
        store.storage.checkpoint(&store).unwrap_err();
        store.storage.checkpoint(&store).unwrap();
        let (again, recovered) = rig.after_power_loss().open();
        check_same_state(&recovered, &store);
        again.check_filed();
        assert_eq!(again.storage.stats().rebuilt_run_count, 0);
    }
}

#[test]
fn a_full_disk_keeps_positions_in_memory() {
    let rig = Rig::new(filing());
    let (store, _) = rig.open();
    store.create_queue(1);
    publish(&store, &[1], 600);
    store.commit().unwrap();
    rig.disk.inject(Trigger::Create, 2, Effect::NoSpace);
    let report = store.storage.checkpoint(&store).unwrap();
    assert_eq!((report.filed_run_count, report.message_count), (0, 600));
    let report = store.storage.checkpoint(&store).unwrap();
    assert_eq!((report.filed_run_count, report.message_count), (3, 600));
    // And at start, when there is nowhere to put what is built again.
    let rig = rig.after_power_loss();
    remove(&rig, &index_path(QueueId(1)));
    // The first thing created is a segment.
    rig.disk.inject(Trigger::Create, 2, Effect::NoSpace);
    let (again, recovered) = rig.open();
    check_same_state(&recovered, &store);
    assert_eq!(recovered.report.rebuilt_run_count, 3);
    assert_eq!(again.storage.stats().filed_run_count, 0);
    assert_eq!(index_files(&rig), Vec::<PathBuf>::new());
    again.check_payloads(&store.payloads());
}

/// A crash at every operation of a checkpoint, the next ones and a rebuild: the state is there, and no block that a
/// checkpoint names was touched.
#[test]
fn i24_no_crash_hurts_what_is_filed() {
    let script = |rig: &Rig| -> Option<LiveStore> {
        let (store, _) = rig.try_open().ok()?;
        store.create_queue(1);
        publish(&store, &[1], 300);
        store.commit().ok()?;
        for round in 0..4 {
            store.storage.checkpoint(&store).ok()?;
            store.settle(1, 1 + round * 260, 200 + round * 260);
            store.requeue(1, 280 + round * 260, 2);
            publish(&store, &[1], 260);
            store.commit().ok()?;
        }
        Some(store)
    };
    let whole = Rig::new(filing());
    script(&whole).expect("nothing fails");
    for number in 0..whole.disk.operation_count() {
        let rig = Rig::new(filing());
        rig.disk.crash_at(number);
        drop(script(&rig));
        for choice in rig.disk.choices(4, number) {
            let survivor = rig.after_crash(&choice);
            let context = format!("operation {number}, {choice:?}");
            let (again, recovered) = survivor
                .try_open()
                .unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_eq!(recovered.report.rebuilt_run_count, 0, "{context}");
            again.check_filed();
            again.check_payloads(&again.payloads());
            assert_eq!(again.storage.stats().rebuilt_run_count, 0, "{context}");
        }
    }
}
