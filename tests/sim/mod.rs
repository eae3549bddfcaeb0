//! Proof of the storage engine on a simulated disk.
//!
//! ```text
//!  model    the state a store should have, as a value        oracle   judges a recovery: sets, and one prefix
//!  live     queues in memory, as the broker has them         action   operations of scripts, as pushes
//!  world    the engine on a SimDisk, driven by scripts       explore  crash at every operation, double, nested
//!  scripts, seeded    power failures                         faults   EIO and ENOSPC
//!  filing   index files: crash points, rebuilds
//!  damage   flipped bits, odd, foreign and missing files     invariants   the journal of the disk; differentials
//! ```
//! Names of tests begin with the invariants they cover (`i05_..` is I5 of the list of 43 in the storage study).
//!
//! | variable | what it does |
//! |---|---|
//! | `STRATAMQ_SIM_SEEDS`, `STRATAMQ_SIM_SEED` | number of random workloads, and the first seed |
//! | `STRATAMQ_SIM_OPERATION` | explores only this crash point of a script |
//! | `STRATAMQ_SIM_FULL` | every survivor is crashed again, and many of them inside recovery |
//!
//! `STRATAMQ_SIM_FULL=1 cargo test --profile sim --test sim_crash` is the whole of it: some 100,000 first crashes, 200,000
//! second ones and 250,000 inside recovery take two minutes on two cores. The profile is fast code that still checks
//! itself; a debug build takes an hour.
//!
//! `tests/mutation` shows that removed syncs and checksums are noticed.

mod action;
mod damage;
mod explore;
mod faults;
mod filing;
mod invariants;
mod live;
mod model;
mod oracle;
mod oracle_tests;
mod scripts;
mod seeded;
mod world;
