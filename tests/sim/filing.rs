//! Index files under power failures (I5, I6, I8, I24).
//!
//! Every queue has one, so that runs of a few messages are filed, changed by replay, filed again into other blocks, and
//! parted with.

use std::path::Path;

use stratamq::disk::Disk;
use stratamq::disk::sim::SimDisk;

use super::action::{Action, Pick, publish, publish_run};
use super::explore::Case;
use super::live::Live;
use super::world::{World, filing_options, recover, small_options};

use Action::{Burst, Checkpoint, Create, Delete, Idle, Purge, Reopen, Requeue, Reserve};

fn case(name: &'static str, script: Vec<Action>) -> Case {
    let after = vec![
        publish(&[0], 30),
        Requeue(0),
        Checkpoint(vec![publish(&[0], 20), Purge(0, Pick::First(1))]),
        Create(7),
        publish_run(&[0, 7], 2, 20),
        Checkpoint(vec![]),
    ];
    Case {
        options: filing_options(),
        ..Case::new(name, script, after)
    }
}

#[test]
fn i24_filing_survives_a_crash_at_every_operation() {
    let script = vec![
        Burst(vec![Create(0), Create(1), publish_run(&[0, 1], 3, 40)]),
        // Something happens between its looks, also between writing blocks and letting go of entries.
        Checkpoint(vec![
            publish(&[0], 30),
            Requeue(0),
            Purge(0, Pick::First(1)),
            Purge(1, Pick::EverySecond),
            Requeue(1),
        ]),
        Requeue(0),
        Purge(0, Pick::First(1)),
        publish(&[0], 20),
        // The runs go to other blocks; the file of queue 1 goes.
        Checkpoint(vec![Delete(1)]),
    ];
    let coverage = case("i24_filing_survives_a_crash_at_every_operation", script).explore();
    assert!((40..=120).contains(&coverage.operations), "{coverage:?}");
}

#[test]
fn i24_reusing_blocks_survives_a_crash_at_every_operation() {
    let refile = Burst(vec![
        publish(&[0], 20),
        Reserve(0),
        Purge(0, Pick::First(1)),
    ]);
    let script = vec![
        Burst(vec![Create(0), publish_run(&[0], 3, 40)]),
        Checkpoint(vec![]),
        refile.clone(),
        Checkpoint(vec![]),
        refile.clone(),
        Checkpoint(vec![]),
        refile,
        // Written over the block of the first one.
        Checkpoint(vec![]),
    ];
    let name = "i24_reusing_blocks_survives_a_crash_at_every_operation";
    let case = case(name, script);
    let mut world = World::fresh(SimDisk::new(1), case.options.clone()).expect("a healthy disk");
    world.run(&case.script).expect("a healthy disk");
    let index = world
        .disk
        .contents(Path::new("index/0000000000000001.index"));
    assert_eq!(index.expect("it has a file").len(), 3 * 4096);
    case.explore();
}

fn long_script() -> Vec<Action> {
    vec![
        Burst(vec![Create(0), Create(1), publish_run(&[0, 1], 5, 40)]),
        Burst(vec![
            publish_run(&[0], 3, 7_900),
            publish_run(&[1], 3, 7_900),
        ]),
        Burst(vec![
            publish_run(&[0], 3, 7_900),
            publish_run(&[0, 1], 5, 20),
        ]),
        Requeue(0),
        Purge(1, Pick::EverySecond),
        Checkpoint(vec![publish(&[0, 1], 30)]),
        Purge(0, Pick::First(2)),
        Requeue(0),
        publish(&[1], 60),
        Idle,
    ]
}

fn after_a_crash() -> (SimDisk, Live) {
    let mut world = World::fresh(SimDisk::new(3), filing_options()).expect("a healthy disk");
    world.run(&long_script()).expect("a healthy disk");
    world.into_dead()
}

/// A power failure at every operation of a start that builds index files again, then another start.
#[test]
fn i06_i24_building_the_index_again_survives_a_crash_at_every_operation() {
    let (disk, live) = after_a_crash();
    let whole = || {
        let disk = disk.power_cycle(&stratamq::disk::sim::CrashChoice::keep_everything());
        for queue in [1, 2] {
            let path = format!("index/{queue:016x}.index");
            disk.remove(Path::new(&path)).expect("it has a file");
        }
        disk.sync_dir(Path::new("index")).expect("a healthy disk");
        disk
    };
    let count = {
        let disk = whole();
        let opened = recover(&disk, &filing_options()).expect("the log has everything");
        assert_eq!(opened.recovered.report.rebuilt_run_count, 2);
        disk.operation_count()
    };
    for operation in 0..count {
        let victim = whole();
        victim.crash_at(operation);
        drop(recover(&victim, &filing_options()));
        victim.crash();
        for choice in victim.choices(24, operation) {
            let survivor = victim.power_cycle(&choice);
            let opened = World::open(survivor, filing_options(), live.clone());
            let mut world = opened
                .unwrap_or_else(|(error, _)| panic!("operation {operation}, {choice:?}: {error}"));
            let outcome = world.run(&[publish(&[0, 1], 30), Checkpoint(vec![]), Reopen]);
            assert_eq!(outcome, Ok(()), "operation {operation}, {choice:?}");
        }
    }
}

/// The same script with and without index files, crashed at the same place: the same state.
#[test]
fn i24_filed_and_packed_checkpoints_recover_to_the_same_state() {
    let states = [filing_options(), small_options()].map(|options| {
        let mut world = World::fresh(SimDisk::new(3), options.clone()).expect("a healthy disk");
        world.run(&long_script()).expect("a healthy disk");
        let (disk, _) = world.into_dead();
        let survivor = disk.power_cycle(&stratamq::disk::sim::CrashChoice::keep_nothing());
        let opened = recover(&survivor, &options).expect("it recovers");
        let report = opened.recovered.report.clone();
        let is_filed = options.index_min_messages == 0;
        assert_eq!(report.filed_run_count, if is_filed { 2 } else { 0 });
        assert!(report.replayed_record_count > 0);
        (opened.recovered.queues.clone(), report.message_count)
    });
    assert_eq!(states[0], states[1]);
}
