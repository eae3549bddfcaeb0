//! Long random workloads with crashes at random places, reproduced by a seed.
//!
//! ```text
//! STRATAMQ_SIM_SEEDS=5000 cargo test --release --test sim_crash seeded     # many (first seed: STRATAMQ_SIM_SEED)
//! STRATAMQ_SIM_SEED=77 STRATAMQ_SIM_SEEDS=1 cargo test --test sim_crash seeded     # this one again
//! ```

use stratamq::disk::sim::{CrashChoice, Effect, Random, SimDisk, Trigger};
use stratamq::storage::{FsyncPolicy, Options};

use super::action::{Action, Pick, publish, publish_run};
use super::live::Live;
use super::world::{Drive, OpenError, World};

/// Seeds of a quick run.
const SEED_COUNT: u64 = 40;
/// Power failures a seed goes through.
const CRASH_COUNT: u64 = 6;
const SLOT_COUNT: u64 = 4;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

fn slot(random: &mut Random) -> usize {
    random.index(SLOT_COUNT as usize)
}

fn slots(random: &mut Random) -> Vec<usize> {
    (0..SLOT_COUNT as usize)
        .filter(|_| random.chance(40))
        .collect()
}

fn len_bytes(random: &mut Random) -> u32 {
    let most = match random.below(10) {
        0 => 7_900,
        1 | 2 => 5_000,
        3 => 1_500,
        _ => 120,
    };
    random.below(most) as u32
}

fn pick(random: &mut Random) -> Pick {
    match random.below(8) {
        0 => Pick::All,
        1 => Pick::EverySecond,
        2 => Pick::AllButFirst,
        _ => Pick::First(random.index(4) + 1),
    }
}

/// A push of any kind.
fn push(random: &mut Random) -> Action {
    match random.below(34) {
        0..=2 => Action::Create(slot(random)),
        3 => Action::Delete(slot(random)),
        4 => Action::Meta,
        5..=11 => publish(&slots(random), len_bytes(random)),
        12..=15 => publish_run(&slots(random), random.index(5) + 1, len_bytes(random)),
        16..=19 => Action::Ack(slot(random), pick(random)),
        20 => Action::Purge(slot(random), pick(random)),
        21..=22 => Action::Requeue(slot(random)),
        23..=24 => Action::Reserve(slot(random)),
        25..=27 => Action::Deliver(slot(random), random.index(5) + 1),
        28 => Action::Transient(slot(random)),
        29..=30 => {
            let from = random.below(SLOT_COUNT);
            // To another queue: a body is in a queue once.
            let to = (from + 1 + random.below(SLOT_COUNT - 1)) % SLOT_COUNT;
            Action::DeadLetter {
                from: from as usize,
                to: to as usize,
            }
        }
        _ => Action::Transaction {
            to: slots(random),
            len_bytes: random.below(1_800) as u32,
            acks: slots(random),
        },
    }
}

fn pushes(random: &mut Random, most: usize) -> Vec<Action> {
    (0..random.index(most + 1)).map(|_| push(random)).collect()
}

fn action(random: &mut Random) -> Action {
    match random.below(30) {
        0 | 1 => Action::Checkpoint(pushes(random, 6)),
        2 => Action::Reopen,
        3 => Action::Idle,
        4 => Action::Flush,
        9 => Action::Compact(pushes(random, 3)),
        5..=8 => Action::Burst(pushes(random, 9)),
        _ => push(random),
    }
}

fn options(random: &mut Random) -> Options {
    Options {
        segment_size_bytes: [32 << 10, 48 << 10, 64 << 10][random.index(3)],
        index_min_messages: [0, 1024][random.index(2)],
        commit_max_bytes: [1, 4 << 10, 16 << 10, 1 << 20][random.index(4)],
        ..Options::default()
    }
}

/// What went wrong with a seed.
fn describe(seed: u64, round: u64, choice: &CrashChoice, error: &OpenError) -> String {
    format!(
        "seed {seed}, power failure {round}, {choice:?}: {error}\n\
         repeat with: STRATAMQ_SIM_SEED={seed} STRATAMQ_SIM_SEEDS=1 cargo test --test sim_crash seeded"
    )
}

/// Says which seed it was, whatever panics.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!(
                "seed {0}: repeat with: STRATAMQ_SIM_SEED={0} STRATAMQ_SIM_SEEDS=1",
                self.0
            );
        }
    }
}

/// Some operation of some kind that does not do what it should.
fn plan_fault(disk: &SimDisk, random: &mut Random) {
    let trigger = match random.below(8) {
        0..=2 => Trigger::Write,
        3 | 4 => Trigger::Sync,
        5 => Trigger::SyncDir,
        6 => Trigger::Create,
        _ => Trigger::Rename,
    };
    let effect = match random.below(4) {
        0 | 1 => Effect::Eio,
        2 => Effect::NoSpace,
        _ => Effect::Short {
            written_bytes: random.index(6000),
        },
    };
    disk.inject(trigger, random.below(120) + 1, effect);
}

fn run_seed(seed: u64, drive: Drive, has_faults: bool) {
    let _named = Seed(seed);
    let mut random = Random::new(seed);
    let options = options(&mut random);
    let (mut disk, mut live) = (SimDisk::new(seed), Live::default());
    // Half of the disks can be written to and read past the cache: then zeros are written ahead.
    disk.set_bypass_supported(seed % 2 == 1);
    let mut choice = CrashChoice::keep_everything();
    for round in 0..=CRASH_COUNT {
        // Sometimes the power fails inside recovery.
        disk.crash_at(random.below(400));
        let mut world = match World::open_with(drive, disk.clone(), options.clone(), live) {
            Ok(world) => world,
            Err((OpenError::Refused(_), before)) if disk.is_crashed() => {
                live = before;
                choice = CrashChoice::sampled(random.next_u64());
                disk = disk.power_cycle(&choice);
                continue;
            }
            Err((error, _)) => panic!("{}", describe(seed, round, &choice, &error)),
        };
        let has_fault = has_faults && random.chance(60);
        if has_fault {
            plan_fault(&world.disk, &mut random);
        }
        let script: Vec<_> = (0..120).map(|_| action(&mut random)).collect();
        let outcome = world.run(&script);
        assert!(
            outcome.is_ok() || world.disk.is_crashed() || has_fault,
            "seed {seed}, round {round}: {outcome:?} without a crash"
        );
        (disk, live) = world.into_dead();
        disk.clear_faults();
        choice = if options.fsync == FsyncPolicy::Never {
            CrashChoice::keep_everything()
        } else {
            CrashChoice::sampled(random.next_u64())
        };
        disk = disk.power_cycle(&choice);
    }
    if let Err((error, _)) = World::open(disk, options, live) {
        panic!("{}", describe(seed, CRASH_COUNT, &choice, &error));
    }
}

#[test]
fn i05_seeded_workloads_survive_random_crashes() {
    let first = number("STRATAMQ_SIM_SEED", 1);
    for seed in first..first + number("STRATAMQ_SIM_SEEDS", SEED_COUNT) {
        run_seed(seed, Drive::ByHand, false);
    }
}

/// As above with the engine's own commit thread: not repeatable to the operation, but as the broker runs it.
#[test]
fn i05_seeded_workloads_survive_crashes_with_a_commit_thread() {
    let first = number("STRATAMQ_SIM_SEED", 1);
    for seed in first..first + number("STRATAMQ_SIM_SEEDS", SEED_COUNT) / 4 {
        run_seed(seed, Drive::Thread, false);
    }
}

/// As the first, on a disk that also refuses now and then, or does half of what it should.
#[test]
fn i12_i13_seeded_workloads_survive_failing_operations() {
    let first = number("STRATAMQ_SIM_SEED", 1);
    for seed in first..first + number("STRATAMQ_SIM_SEEDS", SEED_COUNT) {
        run_seed(seed, Drive::ByHand, true);
    }
}
