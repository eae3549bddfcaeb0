//! What is in a data directory, seen from outside.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Bytes of all files of the log.
pub(crate) fn log_bytes(data_dir: &Path) -> u64 {
    let entries = fs::read_dir(data_dir.join("log")).expect("the log is a directory");
    entries
        .filter_map(|entry| entry.ok()?.metadata().ok())
        .map(|metadata| metadata.len())
        .sum()
}

/// Checks that `strata-dump verify` finds nothing wrong. The broker must not run.
#[track_caller]
pub(crate) fn verify(data_dir: &Path) {
    let verified = Command::new(env!("CARGO_BIN_EXE_strata-dump"))
        .arg("verify")
        .arg(data_dir)
        .output()
        .expect("the dump tool can be executed");
    let said = String::from_utf8_lossy(&verified.stdout);
    assert!(verified.status.success(), "{said}");
}
