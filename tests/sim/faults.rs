//! Disks that refuse: EIO at every write and every sync, and a disk that is full at every operation
//! (I1, I12, I13, I30).

use std::sync::atomic::Ordering;

use super::action::{Action, Pick, publish, publish_run};
use super::live::Live;
use super::world::{Dead, OpenError, World, filing_options, small_options};
use stratamq::disk::sim::{Action as Done, CrashChoice, Effect, Operation, SimDisk, Trigger};
use stratamq::storage::Options;

use Action::{Ack, Burst, Checkpoint, Create, Flush, Purge, Reopen};

/// A little of everything that writes.
fn script() -> Vec<Action> {
    vec![
        Burst(vec![Create(0), Create(1), publish_run(&[0, 1], 2, 50)]),
        publish(&[0], 5_000),
        Ack(0, Pick::First(1)),
        Flush,
        Burst(vec![
            publish_run(&[0], 3, 7_900),
            publish_run(&[1], 2, 7_900),
        ]),
        Checkpoint(vec![publish(&[0], 30), Purge(1, Pick::First(2))]),
        publish(&[1], 30),
        Reopen,
        publish(&[0, 1], 40),
    ]
}

/// What became of a script on a disk with a planned fault.
struct Ending {
    options: Options,
    world: Option<World>,
    outcome: Result<(), String>,
    live: Live,
    disk: SimDisk,
}

fn run(disk: SimDisk, options: &Options) -> Ending {
    match World::fresh(disk.clone(), options.clone()) {
        Ok(mut world) => {
            let outcome = world.run(&script()).map_err(|Dead(reason)| reason);
            Ending {
                options: options.clone(),
                world: Some(world),
                outcome,
                live: Live::default(),
                disk,
            }
        }
        Err(OpenError::Refused(error)) => Ending {
            options: options.clone(),
            world: None,
            outcome: Err(error.to_string()),
            live: Live::default(),
            disk,
        },
        Err(error) => panic!("{error}"),
    }
}

/// Nothing is confirmed after the failure; then the power fails, and everything confirmed is there.
#[track_caller]
fn check_ending(mut ending: Ending, what: &str) {
    if let Some(world) = ending.world.take() {
        let confirmed = world.ear.confirm_lsn();
        if world.ear.failure().is_some() {
            let operations = world.disk.operation_count();
            // Whoever goes on pushing is not confirmed, and nothing is written any more (I12, I13).
            let end = world
                .push(&publish(&[0], 20))
                .expect("a push does not touch the disk");
            assert!(
                world.storage.step().is_err(),
                "{what}: a failed engine takes a step"
            );
            if let Some(end) = end {
                assert!(
                    world.storage.confirm_lsn() < end,
                    "{what}: confirmed after a failure"
                );
            }
            assert_eq!(
                world.disk.operation_count(),
                operations,
                "{what}: touched the disk"
            );
        }
        assert_eq!(world.ear.confirm_lsn(), confirmed, "{what}");
        assert!(
            !world.ear.has_confirmed_after_failure.load(Ordering::SeqCst),
            "{what}"
        );
        (ending.disk, ending.live) = world.into_dead();
    }
    let choices = [
        CrashChoice::keep_nothing(),
        CrashChoice::sampled(2),
        CrashChoice::keep_everything(),
    ];
    for choice in choices {
        let survivor = ending.disk.power_cycle(&choice);
        survivor.set_capacity(None);
        match World::open(survivor, ending.options.clone(), ending.live.clone()) {
            Ok(mut world) => {
                let outcome = world.run(&[publish(&[0, 1], 40), Create(5), Checkpoint(vec![])]);
                assert_eq!(outcome, Ok(()), "{what}, {choice:?}: works again");
            }
            Err((error, _)) => panic!("{what}, {choice:?}: {error}"),
        }
    }
}

fn failure_count(disk: &SimDisk) -> usize {
    disk.journal()
        .iter()
        .filter(|operation| !operation.is_ok)
        .count()
}

/// Plans one fault after the other, until there is no operation left to hit; without index files and with them.
fn at_every(trigger: Trigger, effect: Effect, check: impl Fn(u64, &Ending)) -> u64 {
    at_every_of(&filing_options(), trigger, effect, &check);
    at_every_of(&small_options(), trigger, effect, &check)
}

fn at_every_of(
    options: &Options,
    trigger: Trigger,
    effect: Effect,
    check: &impl Fn(u64, &Ending),
) -> u64 {
    // Removals of leftovers that are not there.
    let harmless = failure_count(&run(SimDisk::new(0), options).disk);
    for nth in 1.. {
        let disk = SimDisk::new(nth);
        disk.inject(trigger, nth, effect);
        let ending = run(disk, options);
        let is_hit = ending.outcome.is_err() || failure_count(&ending.disk) > harmless;
        if !is_hit {
            assert_eq!(ending.outcome, Ok(()), "no fault, no failure");
            return nth - 1;
        }
        check(nth, &ending);
        check_ending(ending, &format!("{effect:?} at {trigger:?} {nth}"));
    }
    unreachable!("the script ends")
}

#[test]
fn i12_i13_a_failing_sync_ends_the_engine_at_every_sync() {
    let count = at_every(Trigger::Sync, Effect::Eio, |nth, ending| {
        let journal = ending.disk.journal();
        let is_sync = |o: &&Operation| matches!(o.action, Done::SyncData | Done::SyncAll);
        let failed = journal.iter().filter(is_sync).find(|o| !o.is_ok);
        // The content of the reserve means nothing.
        let is_reserve = failed.is_some_and(|o| o.path.starts_with("reserve"));
        assert!(
            ending.outcome.is_err() || is_reserve,
            "sync {nth} failed and nobody noticed"
        );
    });
    assert!(count > 15, "only {count} syncs");
}

#[test]
fn i13_a_failed_sync_of_the_log_is_not_repeated() {
    at_every(Trigger::Sync, Effect::Eio, |nth, ending| {
        let journal = ending.disk.journal();
        let is_sync = |o: &Operation| matches!(o.action, Done::SyncData | Done::SyncAll);
        let failed = journal
            .iter()
            .position(|o| !o.is_ok && is_sync(o))
            .expect("it was hit");
        let path = &journal[failed].path;
        if !path.starts_with("log") {
            return;
        }
        let again = journal[failed + 1..].iter().find(|operation| {
            operation.path == *path
                && matches!(
                    operation.action,
                    Done::SyncData | Done::SyncAll | Done::Write { .. }
                )
        });
        assert_eq!(
            again,
            None,
            "sync {nth}: {} was touched again",
            path.display()
        );
    });
}

#[test]
fn i04_a_failing_directory_sync_is_never_passed_over() {
    // Index files can be built again: that of their directory's own name may fail.
    at_every_of(&filing_options(), Trigger::SyncDir, Effect::Eio, &|_, _| {});
    let check = |nth, ending: &Ending| {
        assert!(
            ending.outcome.is_err(),
            "directory sync {nth} failed and nobody noticed"
        );
    };
    let count = at_every_of(&small_options(), Trigger::SyncDir, Effect::Eio, &check);
    assert!(count > 8, "only {count} syncs of directories");
}

#[test]
fn i12_a_failing_write_is_repeated_once_or_ends_the_engine() {
    at_every(Trigger::Write, Effect::Eio, |_, _| {});
    at_every(
        Trigger::Write,
        Effect::Short { written_bytes: 700 },
        |_, _| {},
    );
}

#[test]
fn i12_two_failing_writes_in_a_row_end_the_engine() {
    for nth in 1..60 {
        let disk = SimDisk::new(nth);
        disk.inject(Trigger::Write, nth, Effect::Eio);
        disk.inject(Trigger::Write, nth + 1, Effect::Eio);
        check_ending(
            run(disk, &filing_options()),
            &format!("EIO at writes {nth} and {}", nth + 1),
        );
    }
}

#[test]
fn i12_failing_creations_renames_and_removals_lie_to_nobody() {
    for trigger in [
        Trigger::Create,
        Trigger::Rename,
        Trigger::Remove,
        Trigger::Resize,
    ] {
        at_every(trigger, Effect::Eio, |_, _| {});
    }
}

#[test]
fn i30_a_full_disk_at_every_operation_lies_to_nobody() {
    for trigger in [
        Trigger::Write,
        Trigger::Create,
        Trigger::Sync,
        Trigger::Rename,
    ] {
        at_every(trigger, Effect::NoSpace, |nth, ending| {
            if let Err(reason) = &ending.outcome {
                let is_clear = reason.contains("space") || reason.contains("stopped");
                assert!(is_clear, "{trigger:?} {nth}: {reason}");
            }
        });
    }
}

#[test]
fn i30_a_disk_of_every_size_lies_to_nobody() {
    let mut refused = 0;
    for kib in (1..200).step_by(3) {
        let disk = SimDisk::new(kib);
        disk.set_capacity(Some(kib << 10));
        let ending = run(disk, &filing_options());
        refused += u64::from(ending.outcome.is_err());
        check_ending(ending, &format!("a disk of {kib} KiB"));
    }
    assert!(refused > 10, "only {refused} disks were too small");
}
