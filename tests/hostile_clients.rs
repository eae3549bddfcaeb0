//! Idle, silent, slow and restless clients leave a healthy one at work and the broker standing.
//!
//! `strata-bench hostile` does the work, in small; what it prints of latency and memory is for people, so only that every case
//! was played to its end is looked at here.

mod support;

use serde_json::Value;
use std::process::Command;
use support::broker_binary;

#[test]
fn a_healthy_client_is_served_beside_every_hostile_one() {
    let output = Command::new(env!("CARGO_BIN_EXE_strata-bench"))
        .args(["hostile", "--connections", "100", "--seconds", "1"])
        .args(["--json", "--directory", env!("CARGO_TARGET_TMPDIR")])
        .env("STRATA_BENCH_BROKER", broker_binary())
        .output()
        .expect("the generator can be executed");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaint}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("the report is JSON");
    let cases = report["cases"].as_array().expect("a list");
    assert_eq!(cases.len(), 9, "{report:#}");
    for case in cases {
        let round_trips = case["disturbed"]["round_trips"].as_u64();
        assert!(round_trips.is_some_and(|count| count > 0), "{case:#}");
    }
}
