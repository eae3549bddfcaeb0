//! Index files: where the messages of long queues lie, on disk instead of in memory.
//!
//! ```text
//!   owner --unfiled runs--> filing --blocks--> index/<queue>.index      one file a queue, one block of 4 KiB a run
//!     ^                       |                        |
//!     +------ FiledRun -------+      checkpoint names blocks, after a sync of the files written since the last one
//! ```
//! A block holds only what PUBLISH records say, so index files are derived: deleted, damaged or cut ones are built
//! again from the log. What is *not* derived (which messages are unsettled, how often they were delivered) stands
//! in the [`FiledRun`](super::run::FiledRun), in memory and in the checkpoint.
//!
//! Reading order: `block` (the bytes), `files` (which block is free), `rebuild` (from the log), `recover` (at
//! start), `look` (for the dump tool), `scrub` (whether they still are what was written).

pub mod block;
pub(crate) mod files;
pub mod look;
pub mod rebuild;
pub(crate) mod recover;
pub(crate) mod scrub;

pub use block::BLOCK_LEN;
