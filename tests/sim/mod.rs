//! Proof of the storage engine on a simulated disk; see `tests/README.md`.

mod action;
mod damage;
mod explore;
mod faults;
mod live;
mod model;
mod oracle;
mod oracle_tests;
mod scripts;
mod seeded;
mod world;
