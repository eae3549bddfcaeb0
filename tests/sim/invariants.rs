//! Invariants that are seen in the journal of the disk, or by comparing two ways to the same state.

use std::path::{Path, PathBuf};

use stratamq::disk::sim::{Action as Done, CrashChoice, Operation, Random, SimDisk};
use stratamq::storage::types::{Lsn, SegmentId};
use stratamq::storage::{Found, FsyncPolicy, Options};

use super::action::{Action, Pick, publish, publish_run};
use super::live::Live;
use super::world::{Drive, World, recover, small_options};

use Action::{Ack, Burst, Checkpoint, Create, Deliver, Flush, Idle, Purge, Reopen, Reserve};

/// Some hundred operations: rolls, checkpoints, restarts.
fn long_script() -> Vec<Action> {
    let mut script = vec![Burst(vec![Create(0), Create(1)])];
    for round in 0..6 {
        script.extend([
            Burst(vec![
                publish_run(&[0], 3, 7_900),
                publish_run(&[0, 1], 3, 7_000),
            ]),
            publish(&[1], 50),
            Ack(0, Pick::AllButFirst),
            Reserve(1),
            Deliver(1, 2),
            Idle,
            publish_run(&[0, 1], 4, 100),
        ]);
        match round {
            1 | 3 => script.push(Checkpoint(vec![
                publish(&[0], 20),
                Purge(1, Pick::First(5)),
            ])),
            4 => script.push(Reopen),
            _ => {}
        }
    }
    script
}

fn journal_of(script: &[Action], options: Options) -> Vec<Operation> {
    let mut world = World::fresh(SimDisk::new(1), options).expect("a healthy disk");
    world.run(script).expect("a healthy disk");
    world.into_dead().0.journal()
}

fn is_log(operation: &Operation) -> bool {
    operation
        .path
        .extension()
        .is_some_and(|extension| extension == "segment")
}

fn is_spare(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "spare")
}

fn is_sync(operation: &Operation) -> bool {
    matches!(operation.action, Done::SyncData | Done::SyncAll)
}

/// The new name, if it is a rename.
fn renamed_to(operation: &Operation) -> Option<&PathBuf> {
    match &operation.action {
        Done::Rename { to } => Some(to),
        _ => None,
    }
}

/// Offset of the write, if it is one.
fn written_at(operation: &Operation) -> Option<u64> {
    match operation.action {
        Done::Write { offset, .. } => Some(offset),
        _ => None,
    }
}

#[test]
fn i03_a_segment_is_synced_before_its_successor_is_written() {
    let journal = journal_of(&long_script(), small_options());
    let mut crossings = 0;
    let mut last: Option<PathBuf> = None;
    for (number, operation) in journal.iter().enumerate() {
        // The first batch stands behind the header block.
        if !is_log(operation) || written_at(operation).is_none_or(|offset| offset == 0) {
            continue;
        }
        if let Some(before) = last.filter(|before| *before != operation.path) {
            crossings += 1;
            let ends = journal[..number].iter().rev().filter(|o| o.path == before);
            let last_change = ends.clone().find(|o| is_sync(o) || written_at(o).is_some());
            assert!(
                last_change.is_some_and(is_sync),
                "operation {number} writes {} before {} is synced",
                operation.path.display(),
                before.display()
            );
        }
        last = Some(operation.path.clone());
    }
    assert!(crossings > 5, "only {crossings} crossings");
}

#[test]
fn i04_a_batch_is_written_only_into_a_segment_with_durable_header_and_name() {
    let journal = journal_of(&long_script(), small_options());
    let mut checked = 0;
    for (number, operation) in journal.iter().enumerate() {
        if !is_log(operation) || written_at(operation).is_none_or(|offset| offset == 0) {
            continue;
        }
        checked += 1;
        assert!(
            operation.is_name_durable,
            "operation {number}: {operation:?}"
        );
        let named = journal[..number]
            .iter()
            .rposition(|o| renamed_to(o) == Some(&operation.path));
        let named = named.expect("a segment gets its name from a spare");
        let spare = &journal[named].path;
        let header = journal[..named]
            .iter()
            .rposition(|o| o.path == *spare && written_at(o) == Some(0));
        let header = header.expect("a segment begins with its header");
        let is_synced = journal[header..named]
            .iter()
            .any(|o| o.path == *spare && is_sync(o));
        assert!(is_synced, "operation {number}: the header is not synced");
    }
    assert!(checked > 30, "only {checked} batches");
}

#[test]
fn i07_i08_files_of_earlier_epochs_are_never_changed_and_numbers_never_reused() {
    let (mut disk, mut live) = (SimDisk::new(1), Live::default());
    let mut random = Random::new(7);
    let mut highest = None;
    for round in 0..12 {
        disk.crash_at(60 + random.below(120));
        let mut world = World::open(disk, small_options(), live)
            .unwrap_or_else(|(error, _)| panic!("round {round}: {error}"));
        let _ = world.run(&long_script());
        (disk, live) = world.into_dead();
        // Spares that got a number of this incarnation.
        let journal = disk.journal();
        let mine: Vec<_> = journal
            .iter()
            .filter(|o| is_spare(&o.path))
            .filter_map(|o| renamed_to(o).cloned())
            .collect();
        for operation in journal {
            let is_change = matches!(
                operation.action,
                Done::Write { .. }
                    | Done::SetLen { .. }
                    | Done::Allocate { .. }
                    | Done::Rename { .. }
            );
            let is_freed =
                is_log(&operation) && renamed_to(&operation).is_some_and(|to| is_spare(to));
            let may_change = operation.path.starts_with("superblock.0")
                || operation.path.starts_with("superblock.1")
                || is_spare(&operation.path)
                || mine.contains(&operation.path)
                || is_freed;
            assert!(
                !(is_change && operation.is_inherited) || may_change,
                "round {round}: {operation:?} changes a file of an earlier epoch"
            );
            // A number is taken once a batch was written under it.
            let named = renamed_to(&operation).filter(|to| !is_spare(to) && to.starts_with("log"));
            if let Some(path) = named {
                assert!(
                    Some(path) > highest.as_ref(),
                    "round {round}: {path:?} after {highest:?}"
                );
            }
            if is_log(&operation) && written_at(&operation).is_some_and(|offset| offset > 0) {
                highest = highest.max(Some(operation.path));
            }
        }
        disk = disk.power_cycle(&CrashChoice::sampled(random.next_u64()));
    }
}

#[test]
fn i25_one_copy_of_the_superblock_is_always_durable() {
    let journal = journal_of(&long_script(), small_options());
    let copies = [Path::new("superblock.0"), Path::new("superblock.1")];
    let mut is_dirty = [false; 2];
    let mut writes = 0;
    for (number, operation) in journal.iter().enumerate() {
        let Some(copy) = copies.iter().position(|path| operation.path == *path) else {
            continue;
        };
        if is_sync(operation) {
            is_dirty[copy] = false;
        } else if written_at(operation).is_some() {
            writes += 1;
            assert!(
                !is_dirty[1 - copy],
                "operation {number}: both copies are being written"
            );
            is_dirty[copy] = true;
        }
    }
    assert!(writes >= 8, "only {writes} writes");
}

/// I25: whatever superblock write the power failed in, the older checkpoint is whole; see the exhaustive scripts for
/// the state that is found.
#[test]
fn i25_a_checkpoint_is_removed_only_after_both_superblocks_name_the_next() {
    let journal = journal_of(&long_script(), small_options());
    let removals = journal.iter().enumerate().filter(|(_, operation)| {
        operation.action == Done::Remove
            && operation.is_ok
            && operation
                .path
                .extension()
                .is_some_and(|e| e == "checkpoint")
    });
    let mut count = 0;
    for (number, _) in removals {
        count += 1;
        let renamed = journal[..number]
            .iter()
            .rposition(|o| renamed_to(o).is_some_and(|to| to.starts_with("checkpoint")));
        let since = &journal[renamed.expect("the next checkpoint was published")..number];
        for name in ["superblock.0", "superblock.1"] {
            let is_named = since
                .iter()
                .any(|o| o.path == Path::new(name) && is_sync(o));
            assert!(
                is_named,
                "operation {number}: {name} does not name the next checkpoint yet"
            );
        }
    }
    assert!(count > 0, "no checkpoint was replaced");
}

/// What recovery finds after `script`, with the positions of the messages.
fn state_after(script: &[Action]) -> (super::oracle::Observed, Vec<Lsn>) {
    let mut world = World::fresh(SimDisk::new(1), small_options()).expect("a healthy disk");
    world.run(script).expect("a healthy disk");
    let (disk, _) = world.into_dead();
    let survivor = disk.power_cycle(&CrashChoice::keep_nothing());
    let opened = recover(&survivor, &small_options()).expect("recovers");
    let entries = opened
        .recovered
        .queues
        .iter()
        .flat_map(|queue| queue.entries.iter());
    let positions = entries.map(|entry| entry.position.lsn).collect();
    (opened.into_observed(), positions)
}

#[test]
fn i23_i24_replay_from_zero_and_from_any_checkpoint_give_the_same_state() {
    let script: Vec<_> = vec![
        Burst(vec![Create(0), Create(1), publish_run(&[0, 1], 4, 60)]),
        Action::Requeue(0),
        Burst(vec![
            publish_run(&[0], 3, 7_900),
            publish_run(&[1], 3, 7_900),
        ]),
        Reserve(1),
        Purge(0, Pick::EverySecond),
        Action::DeadLetter { from: 0, to: 1 },
        Action::Delete(1),
        Create(1),
        publish_run(&[0, 1], 3, 100),
        Ack(1, Pick::First(1)),
        Flush,
    ];
    let from_zero = state_after(&script);
    assert!(from_zero.1.len() > 6);
    for at in 1..=script.len() {
        let mut with_checkpoint = script.clone();
        with_checkpoint.insert(at, Checkpoint(vec![]));
        assert_eq!(
            state_after(&with_checkpoint),
            from_zero,
            "a checkpoint before action {at}"
        );
        // And one that the next action falls into.
        if at < script.len() && !matches!(script[at], Burst(_) | Flush) {
            let mut fuzzy = script.clone();
            fuzzy[at] = Checkpoint(vec![script[at].clone()]);
            assert_eq!(
                state_after(&fuzzy),
                from_zero,
                "a checkpoint around action {at}"
            );
        }
    }
}

#[test]
fn i24_a_clean_stop_and_a_crash_give_the_same_messages() {
    let script = [
        Burst(vec![Create(0), Create(1), publish_run(&[0, 1], 4, 60)]),
        Purge(0, Pick::EverySecond),
        publish(&[1], 7_000),
    ];
    let crashed = state_after(&script).0;
    let mut stopped = script.to_vec();
    stopped.push(Reopen);
    assert_eq!(state_after(&stopped).0, crashed);
}

#[test]
fn i26_i27_a_segment_is_freed_exactly_when_no_message_in_it_is_alive() {
    let mut world = World::fresh(SimDisk::new(1), small_options()).expect("a healthy disk");
    let fill = Burst(vec![
        publish_run(&[0], 3, 7_900),
        publish_run(&[0], 3, 7_900),
    ]);
    let script = [
        Create(0),
        Create(1),
        publish(&[1], 30),
        fill.clone(),
        fill,
        Checkpoint(vec![]),
    ];
    world.run(&script).expect("a healthy disk");
    assert!(world.checkpoints[0].freed.is_empty(), "everything is alive");
    // All but the straggler in segment 1.
    let rest = [Purge(0, Pick::All), Checkpoint(vec![])];
    world.run(&rest).expect("a healthy disk");
    let (freed, begin) = (
        world.checkpoints[1].freed.clone(),
        world.checkpoints[1].begin,
    );
    let expected: Vec<_> = (2..begin.segment().0).map(SegmentId).collect();
    assert!(!expected.is_empty(), "the log rolled");
    assert_eq!(freed, expected);
    world
        .run(&[Purge(1, Pick::All), Checkpoint(vec![])])
        .expect("a healthy disk");
    assert!(world.checkpoints[2].freed.contains(&SegmentId(1)));
    let logs = world
        .disk
        .files()
        .into_iter()
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "segment")
        })
        .count() as u64;
    let stats = world.storage.stats();
    // The last one is prepared, or is being written to.
    assert!((stats.segment_count..=stats.segment_count + 1).contains(&logs));
    let spares = world.disk.files().into_iter().filter(|path| is_spare(path));
    assert_eq!(spares.count() as u64, stats.spare_count);
}

#[test]
fn i11_a_torn_tail_is_cut_counted_and_kept() {
    let mut world = World::fresh(SimDisk::new(1), small_options()).expect("a healthy disk");
    world
        .run(&[Create(0), publish(&[0], 3_000)])
        .expect("a healthy disk");
    // The power fails between the write and the sync of the next commit, and half of the write survives.
    world.disk.crash_at(world.disk.operation_count() + 1);
    world
        .run(&[publish(&[0], 3_000)])
        .expect_err("the power fails");
    let (disk, live) = world.into_dead();
    let count = disk.unsynced().len();
    assert!(count > 3, "a write of several sectors");
    let survivor = disk.power_cycle(&CrashChoice::keep_prefix(count / 2));
    let world =
        World::open(survivor, small_options(), live).unwrap_or_else(|(error, _)| panic!("{error}"));
    let Found::TornTail(torn) = &world.found else {
        panic!("{:?}", world.found)
    };
    assert!(torn.discarded_bytes > 500, "{torn:?}");
    assert_eq!(torn.discarded_batch_count, 1, "{torn:?}");
    for kept in &torn.kept_in {
        let bytes = world.disk.contents(Path::new(kept)).expect("it is kept");
        assert_eq!(bytes.len() as u64, torn.discarded_bytes);
    }
    assert_eq!(torn.kept_in.len(), 1);
}

#[test]
fn never_policy_survives_the_death_of_the_process() {
    let options = Options {
        fsync: FsyncPolicy::Never,
        ..small_options()
    };
    for operation in (40..160).step_by(7) {
        let disk = SimDisk::new(operation);
        disk.crash_at(operation);
        let mut world = World::fresh(disk, options.clone()).expect("it starts before the crash");
        let _ = world.run(&long_script());
        let (disk, live) = world.into_dead();
        let survivor = disk.power_cycle(&CrashChoice::keep_everything());
        if let Err((error, _)) = World::open(survivor, options.clone(), live) {
            panic!("killed at operation {operation}: {error}");
        }
    }
}

#[test]
fn interval_policy_confirms_nothing_before_its_sync() {
    let options = Options {
        fsync: FsyncPolicy::Interval { ms: 50 },
        ..small_options()
    };
    let world = World::fresh(SimDisk::new(1), options).expect("a healthy disk");
    let end = world
        .push(&Create(0))
        .expect("alive")
        .expect("somebody waits");
    let syncs = world.storage.stats().sync_count;
    while world.storage.step().expect("a healthy disk") {}
    assert!(world.ear.confirm_lsn() < end, "written, not synced");
    world.clock.advance_ms(60);
    world.wait(end).expect("a healthy disk");
    assert_eq!(world.storage.stats().sync_count, syncs + 1);
}

#[test]
fn i02_commits_on_the_engine_thread_confirm_only_what_a_sync_returned_for() {
    let disk = SimDisk::new(1);
    let world = World::open_with(
        Drive::Thread,
        disk.clone(),
        small_options(),
        Live::default(),
    );
    let mut world = world.unwrap_or_else(|(error, _)| panic!("{error}"));
    world.run(&[Create(0)]).expect("a healthy disk");
    disk.hold_syncs();
    let first = world
        .push(&publish(&[0], 30))
        .expect("alive")
        .expect("somebody waits");
    disk.wait_for_held_sync();
    // Written by the next commit at the earliest: the sync that is running does not cover it.
    let second = world
        .push(&publish(&[0], 30))
        .expect("alive")
        .expect("somebody waits");
    assert!(
        world.ear.confirm_lsn() < first,
        "nothing is confirmed while its sync runs"
    );
    disk.release_syncs();
    world.ear.wait(second).expect("a healthy disk");
}
