//! A broker under a recording client, killed at random moments, and an oracle that knows what must still be there.
//!
//! ```text
//!  workload (threads, one connection each) --events--> oracle <--contents of the queues-- readout
//!        |                                               |
//!        +--------------- broker, kill -9 <------------ campaign (rounds, seeds)
//! ```

#![allow(
    dead_code,
    unused_imports,
    reason = "each test binary includes this module and uses its own part of it"
)]

pub(crate) mod campaign;
mod content;
pub(crate) mod history;
pub(crate) mod moving;
pub(crate) mod oracle;
mod people;
pub(crate) mod proofs;
pub(crate) mod random;
mod recorder;
mod syscalls;
mod topology;
pub(crate) mod verdict;
mod workload;
