//! The storage engine against power failures, failing disks and damaged files; see `sim`.

#![allow(
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    clippy::result_large_err,
    reason = "small numbers of a test, and what a run covered is of interest"
)]

mod sim;
