//! Lets the power fail at every operation of a script, and looks at everything that may be left.
//!
//! ```text
//!   script --crash at op n--> dead disk --every choice c--> survivor --recover--> check
//!                                                             |                     |
//!                          crash inside recovery at op m <----'                     '--> go on, crash again
//!                          recover again: the same state (I6)                            recover, check
//! ```
//! A failure names the script, the operation, the choice, and the command that repeats just this operation.

use stratamq::disk::sim::{CrashChoice, Random, SimDisk};
use stratamq::storage::Options;

use super::action::Action;
use super::live::Live;
use super::world::{OpenError, World, recover, small_options};

/// Choices per crash when there are too many units for all subsets: 2^12 of them, or that many samples.
pub(super) const SAMPLE_COUNT: usize = 64;
/// All subsets of twelve units.
const SUBSET_COUNT: usize = 1 << 12;

/// True when time does not matter: every survivor is crashed again, many of them inside recovery.
fn is_full() -> bool {
    std::env::var_os("STRATAMQ_SIM_FULL").is_some()
}

/// A script whose every operation is a crash point.
pub(super) struct Case {
    /// Name of the test, for the command that repeats a failure.
    pub(super) name: &'static str,
    pub(super) options: Options,
    pub(super) script: Vec<Action>,
    /// What happens after recovery, to be crashed again.
    pub(super) after: Vec<Action>,
}

/// How much was tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Coverage {
    pub(super) operations: u64,
    pub(super) recoveries: u64,
    pub(super) double_crashes: u64,
    pub(super) crashes_inside_recovery: u64,
}

/// Where a run is, so that a failure can be repeated.
#[derive(Clone)]
struct Place<'a> {
    case: &'a Case,
    operation: u64,
    choice: CrashChoice,
}

impl Place<'_> {
    fn fail(&self, what: &str) -> ! {
        panic!(
            "{name}: crash at operation {operation}, {choice:?}: {what}\n\
             repeat with: STRATAMQ_SIM_OPERATION={operation} cargo test --test sim_crash {name}",
            name = self.case.name,
            operation = self.operation,
            choice = self.choice,
        )
    }
}

impl Place<'_> {
    /// What a checkpoint names in index files is on the disk: nothing had to be looked up in the log.
    fn check_index(&self, world: &World) {
        match world.storage.stats().rebuilt_run_count {
            0 => {}
            count => self.fail(&format!("{count} runs had to be built again")),
        }
    }
}

impl Case {
    /// A case with small segments.
    pub(super) fn new(name: &'static str, script: Vec<Action>, after: Vec<Action>) -> Self {
        Self {
            name,
            options: small_options(),
            script,
            after,
        }
    }

    /// Runs all of it.
    pub(super) fn explore(&self) -> Coverage {
        let mut coverage = Coverage::default();
        let only: Option<u64> = std::env::var("STRATAMQ_SIM_OPERATION")
            .ok()
            .map(|text| text.parse().expect("a number"));
        let count = self.operation_count();
        for operation in 0..=count {
            if only.is_none_or(|only| only == operation) {
                self.crash_at(operation, &mut coverage);
            }
        }
        coverage.operations = count;
        println!("{}: {coverage:?}", self.name);
        coverage
    }

    fn nested_stride() -> usize {
        if is_full() { 16 } else { 499 }
    }

    /// Operations of an undisturbed run, which must be the same each time.
    fn operation_count(&self) -> u64 {
        let run = || {
            let mut world = World::fresh(SimDisk::new(1), self.options.clone())
                .unwrap_or_else(|error| panic!("{}: {error}", self.name));
            let outcome = world.run(&self.script);
            assert_eq!(outcome, Ok(()), "{}: an undisturbed run", self.name);
            let shape = |disk: &SimDisk| -> Vec<_> {
                disk.journal()
                    .into_iter()
                    .map(|o| (o.action, o.path))
                    .collect()
            };
            shape(&world.into_dead().0)
        };
        let journal = run();
        assert_eq!(
            journal,
            run(),
            "{}: two runs of one script differ",
            self.name
        );
        journal.len() as u64
    }

    fn crash_at(&self, operation: u64, coverage: &mut Coverage) {
        let disk = SimDisk::new(operation);
        disk.crash_at(operation);
        let (disk, live) = match World::fresh(disk.clone(), self.options.clone()) {
            Ok(mut world) => {
                // It ends with the power failure, or by itself when that comes after the last operation.
                let _ = world.run(&self.script);
                world.into_dead()
            }
            Err(OpenError::Refused(_)) => (disk, Live::default()),
            Err(error) => panic!("{}: a fresh disk: {error}", self.name),
        };
        let unit_count = disk.unsynced().len();
        let choice_max = if unit_count <= 12 {
            SUBSET_COUNT
        } else {
            SAMPLE_COUNT
        };
        for (index, choice) in disk.choices(choice_max, operation).into_iter().enumerate() {
            let place = Place {
                case: self,
                operation,
                choice,
            };
            self.survive(&disk, &live, &place, index, coverage);
        }
    }

    /// One survivor of a crash: recover, go on, crash again.
    fn survive(
        &self,
        disk: &SimDisk,
        live: &Live,
        place: &Place<'_>,
        index: usize,
        coverage: &mut Coverage,
    ) {
        coverage.recoveries += 1;
        let survivor = disk.power_cycle(&place.choice);
        let mut world = match World::open(survivor, self.options.clone(), live.clone()) {
            Ok(world) => world,
            Err((error, _)) => place.fail(&error.to_string()),
        };
        place.check_index(&world);
        let recovery_count = world.disk.operation_count();
        // Nested crashes cost a hundred recoveries each, so only some survivors have them.
        if index < 2 || index.is_multiple_of(Self::nested_stride()) {
            self.crash_inside_recovery(disk, place, recovery_count, coverage);
        }
        if index >= 8 && !index.is_multiple_of(32) && !is_full() {
            world.into_dead();
            return;
        }
        let mut random = Random::new(place.operation << 16 | index as u64);
        world.disk.crash_at(recovery_count + random.below(24));
        let _ = world.run(&self.after);
        let (dead, live) = world.into_dead();
        for _ in 0..2 {
            coverage.double_crashes += 1;
            let choice = CrashChoice::sampled(random.next_u64());
            let survivor = dead.power_cycle(&choice);
            match World::open(survivor, self.options.clone(), live.clone()) {
                Ok(world) => {
                    place.check_index(&world);
                    drop(world.into_dead());
                }
                Err((error, _)) => place.fail(&format!("second crash, {choice:?}: {error}")),
            }
        }
    }

    /// I6: a crash at any operation of recovery changes nothing of what recovery finds, and neither does recovering
    /// twice.
    fn crash_inside_recovery(
        &self,
        disk: &SimDisk,
        place: &Place<'_>,
        recovery_count: u64,
        coverage: &mut Coverage,
    ) {
        let whole = || disk.power_cycle(&place.choice);
        let expected = match recover(&whole(), &self.options) {
            Ok(opened) => opened.into_observed(),
            Err(error) => place.fail(&format!("recovered once, then refused: {error}")),
        };
        for operation in 0..=recovery_count {
            let victim = whole();
            victim.crash_at(operation);
            if let Ok(opened) = recover(&victim, &self.options) {
                drop(opened.into_observed());
            }
            victim.crash();
            for choice in victim.choices(4, operation) {
                coverage.crashes_inside_recovery += 1;
                let what = format!("crash inside recovery at operation {operation}, {choice:?}");
                match recover(&victim.power_cycle(&choice), &self.options) {
                    Err(error) => place.fail(&format!("{what}: {error}")),
                    Ok(opened) => {
                        let found = opened.into_observed();
                        if found != expected {
                            place.fail(&format!("{what}: found {found:#?}, not {expected:#?}"));
                        }
                    }
                }
            }
        }
    }
}
