//! Queues that come and go leave nothing behind: no file descriptor, no file, no binding.
//!
//! `strata-bench churn` does the work, so that what an operator would run to look for a leak is what the suite runs.

mod support;

use serde_json::Value;
use std::process::Command;
use support::broker_binary;

#[test]
fn two_thousand_queues_come_and_go_without_a_file_left() {
    let output = Command::new(env!("CARGO_BIN_EXE_strata-bench"))
        .args(["churn", "--queues", "1k", "--rounds", "2", "--settle-secs"])
        // Room for a checkpoint that is due every 30 seconds, or 50 times as long as the last one took; no longer than needed
        // is waited.
        .args(["300", "--json", "--directory", env!("CARGO_TARGET_TMPDIR")])
        .env("STRATA_BENCH_BROKER", broker_binary())
        .output()
        .expect("the generator can be executed");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaint}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("the report is JSON");
    let rounds = report["rounds"].as_array().expect("a list");
    assert_eq!(rounds.len(), 2, "{report:#}");
    for round in rounds {
        assert_eq!(round["is_back"], true, "{report:#}");
    }
}
