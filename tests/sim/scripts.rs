//! Scripts whose every disk operation is a crash point (I1, I2, I5, I6, I8, I19, I21, I31, I33).
//!
//! They are short, so that all operations and, where few units are unsynced, all subsets can be tried; and each brings
//! the engine to one of its delicate passages.

use super::action::{Action, Pick, publish, publish_run};
use stratamq::disk::sim::SimDisk;

use super::explore::{Case, Coverage};
use super::world::World;

use Action::{
    Ack, Burst, Checkpoint, Compact, Create, DeadLetter, Delete, Deliver, Flush, Idle, Meta,
    Publish, Purge, Reopen, Requeue, Reserve, Transaction, Transient,
};

/// Work for after a recovery: some of everything, on the queues that survived and on a new one.
fn after() -> Vec<Action> {
    vec![
        publish(&[0, 1], 60),
        Ack(0, Pick::First(1)),
        Create(7),
        Reserve(0),
        publish(&[7, 0], 700),
        Deliver(0, 2),
        Checkpoint(vec![
            publish(&[0], 30),
            Purge(1, Pick::First(1)),
            publish(&[7], 20),
        ]),
        DeadLetter { from: 0, to: 7 },
        publish(&[1], 50),
        Flush,
    ]
}

#[track_caller]
fn check(name: &'static str, script: Vec<Action>) -> Coverage {
    let coverage = Case::new(name, script, after()).explore();
    assert!(
        (10..=120).contains(&coverage.operations),
        "{coverage:?}: short enough to try everything"
    );
    coverage
}

/// Proves I19.
#[test]
fn i01_i05_confirmed_messages_survive_a_crash_at_every_operation() {
    check(
        "i01_i05_confirmed_messages_survive_a_crash_at_every_operation",
        vec![
            Create(0),
            Create(1),
            publish(&[0], 40),
            publish_run(&[0, 1], 3, 50),
            Burst(vec![
                publish(&[1], 30),
                Ack(0, Pick::First(2)),
                publish(&[0, 1], 5_000),
            ]),
            Meta,
            Ack(1, Pick::EverySecond),
            Flush,
            Idle,
            publish(&[0], 9),
        ],
    );
}

#[test]
fn i03_i04_rolling_over_segments_survives_a_crash_at_every_operation() {
    check(
        "i03_i04_rolling_over_segments_survives_a_crash_at_every_operation",
        vec![
            Create(0),
            Burst(vec![publish_run(&[0], 3, 7_000), publish(&[0], 30)]),
            // One commit that spans three segments.
            Burst(vec![
                publish_run(&[0], 3, 7_900),
                publish_run(&[0], 3, 7_900),
                Ack(0, Pick::EverySecond),
                publish_run(&[0], 2, 7_900),
            ]),
            publish(&[0], 20),
        ],
    );
}

#[test]
fn i31_groups_are_all_or_nothing_at_every_operation() {
    check(
        "i31_groups_are_all_or_nothing_at_every_operation",
        vec![
            Burst(vec![Create(0), Create(1), Create(2)]),
            publish_run(&[0], 4, 40),
            publish(&[0, 1, 2], 5_000),
            DeadLetter { from: 0, to: 1 },
            Transaction {
                to: vec![1, 2, 2],
                len_bytes: 3_000,
                acks: vec![0, 1],
            },
            Burst(vec![
                DeadLetter { from: 0, to: 2 },
                publish(&[0], 10),
                Transaction {
                    to: vec![0, 1],
                    len_bytes: 30,
                    acks: vec![2],
                },
            ]),
        ],
    );
}

#[test]
fn i23_i25_a_fuzzy_checkpoint_survives_a_crash_at_every_operation() {
    check(
        "i23_i25_a_fuzzy_checkpoint_survives_a_crash_at_every_operation",
        vec![
            Burst(vec![Create(0), Create(1), publish_run(&[0, 1], 3, 40)]),
            Requeue(0),
            // Between its looks at META, at the list, and at each queue, something happens to all of them.
            Checkpoint(vec![
                Create(2),
                publish(&[0, 1, 2], 30),
                Purge(0, Pick::First(1)),
                Requeue(1),
                DeadLetter { from: 1, to: 0 },
                Meta,
            ]),
            publish(&[2], 20),
            Checkpoint(vec![Delete(1), Create(1), publish(&[0, 1], 30)]),
        ],
    );
}

#[test]
fn i26_freeing_segments_survives_a_crash_at_every_operation() {
    let mut case = Case::new(
        "i26_freeing_segments_survives_a_crash_at_every_operation",
        vec![
            Burst(vec![Create(0), Create(1), publish(&[1], 30)]),
            Burst(vec![
                publish_run(&[0], 3, 7_900),
                publish_run(&[0], 3, 7_900),
            ]),
            Burst(vec![publish_run(&[0], 3, 7_900), Purge(0, Pick::All)]),
            // Segment 2 goes; segment 1 holds a straggler.
            Checkpoint(vec![]),
            Purge(1, Pick::All),
            Checkpoint(vec![]),
        ],
        after(),
    );
    case.options.segment_size_bytes = 32 << 10;
    let coverage = case.explore();
    assert!(coverage.operations > 30, "{coverage:?}");
}

/// Messages move while others come, go and are deleted; whatever operation the power fails at, each is there once.
#[test]
fn i28_compaction_survives_a_crash_at_every_operation() {
    let mut case = Case::new(
        "i28_compaction_survives_a_crash_at_every_operation",
        vec![
            Burst(vec![Create(0), Create(1), publish(&[0, 1], 30)]),
            Burst(vec![
                publish_run(&[0], 3, 7_900),
                publish_run(&[0], 3, 7_900),
            ]),
            Burst(vec![publish(&[1], 40), publish_run(&[0], 4, 7_900)]),
            Purge(0, Pick::AllButFirst),
            Checkpoint(vec![]),
            Compact(vec![publish(&[0, 1], 20), Purge(1, Pick::First(1))]),
            publish(&[1], 30),
            Checkpoint(vec![]),
            publish(&[0], 30),
            Purge(0, Pick::First(1)),
            Checkpoint(vec![]),
        ],
        after(),
    );
    case.options.spare_count_max = 1;
    let mut world = World::fresh(SimDisk::new(1), case.options.clone()).expect("a healthy disk");
    world.run(&case.script).expect("a healthy disk");
    assert!(world.storage.stats().compacted_bytes > 0);
    assert!(world.checkpoints[1].freed.len() >= 2);
    let coverage = case.explore();
    assert!(coverage.operations > 60, "{coverage:?}");
}

/// Two rounds through files that held other segments before: what they left never comes back, at whatever operation of
/// freeing, preparing or entering the power fails.
#[test]
fn i07_i09_recycling_segments_survives_a_crash_at_every_operation() {
    let fill = Burst(vec![
        publish_run(&[0], 3, 7_900),
        publish_run(&[0], 3, 7_900),
    ]);
    let mut case = Case::new(
        "i07_i09_recycling_segments_survives_a_crash_at_every_operation",
        vec![
            Burst(vec![Create(0), Create(1), publish(&[1], 30)]),
            fill.clone(),
            fill.clone(),
            Purge(0, Pick::All),
            Checkpoint(vec![]),
            fill.clone(),
            Idle,
            fill,
            publish(&[1], 30),
            Purge(0, Pick::AllButFirst),
            Checkpoint(vec![]),
            publish_run(&[0], 3, 7_900),
        ],
        after(),
    );
    case.options.spare_count_max = 2;
    let mut world = World::fresh(SimDisk::new(1), case.options.clone()).expect("a healthy disk");
    world.run(&case.script).expect("a healthy disk");
    let stats = world.storage.stats();
    assert!(stats.recycled_segment_count >= 2, "{stats:?}");
    assert!(stats.prepared_segment_count >= 2, "{stats:?}");
    let coverage = case.explore();
    assert!(coverage.operations > 60, "{coverage:?}");
}

#[test]
fn i33_deleting_and_creating_queues_survives_a_crash_at_every_operation() {
    check(
        "i33_deleting_and_creating_queues_survives_a_crash_at_every_operation",
        vec![
            Burst(vec![Create(0), Create(1), publish_run(&[0, 1], 2, 30)]),
            Delete(0),
            Create(0),
            publish(&[0], 20),
            Burst(vec![Delete(1), Create(1), publish(&[0, 1], 30)]),
            Checkpoint(vec![Meta, Delete(0), Create(0), publish(&[0, 1], 10)]),
            Delete(1),
        ],
    );
}

#[test]
fn i21_i22_delivery_state_survives_a_crash_at_every_operation() {
    check(
        "i21_i22_delivery_state_survives_a_crash_at_every_operation",
        vec![
            Burst(vec![Create(0), publish_run(&[0], 3, 40)]),
            Reserve(0),
            Deliver(0, 2),
            publish_run(&[0], 3, 40),
            // Covered by the reservation before them, although that is hardly durable.
            Burst(vec![
                Reserve(0),
                publish_run(&[0], 2, 30),
                Deliver(0, 9),
                Requeue(0),
            ]),
            Transient(0),
            Requeue(0),
            Reopen,
            Deliver(0, 1),
            publish(&[0], 20),
            Ack(0, Pick::First(3)),
            Flush,
        ],
    );
}

#[test]
fn i06_stopping_and_starting_survives_a_crash_at_every_operation() {
    check(
        "i06_stopping_and_starting_survives_a_crash_at_every_operation",
        vec![
            Burst(vec![Create(0), Create(1), publish_run(&[0, 1], 2, 50)]),
            Ack(0, Pick::First(1)),
            Reopen,
            publish(&[0], 30),
            Reopen,
            Publish {
                to: vec![1],
                count: 2,
                len_bytes: 40,
                expires: true,
            },
        ],
    );
}
