//! `strata-bench` against the broker: the load it generates is complete, and it notices when messages are missing.
//!
//! `STRATAMQ_TEST_URL` runs it against another broker instead.

mod support;

use serde_json::Value;
use std::process::Command;
use support::TestBroker;

/// Runs the generator; says its exit code and its report.
#[track_caller]
fn bench(arguments: &str) -> (Option<i32>, Value) {
    let outside = std::env::var("STRATAMQ_TEST_URL");
    let broker = outside.is_err().then(TestBroker::start);
    let url = broker.as_ref().map_or_else(
        || outside.expect("without a broker of our own there is another"),
        TestBroker::url,
    );
    // Tests run side by side, on another broker also with the same queues.
    let prefix = format!("load-generator-{}", arguments.len());
    let output = Command::new(env!("CARGO_BIN_EXE_strata-bench"))
        .args(["--json", "--url", &url, "--queue-prefix", &prefix])
        .args(arguments.split_whitespace())
        .output()
        .expect("the generator can be executed");
    let complaint = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("no report ({error}): {complaint}"));
    (output.status.code(), report)
}

/// Every message of the load arrives once and in order.
#[track_caller]
fn check(arguments: &str, consumed_count: u64, confirmed_count: u64) {
    let (code, report) = bench(arguments);
    assert_eq!(code, Some(0), "{report:#}");
    for (key, expected) in [
        ("consumed_count", consumed_count),
        ("confirmed_count", confirmed_count),
        ("lost_count", 0),
        ("duplicate_count", 0),
        ("out_of_order_count", 0),
        ("foreign_count", 0),
    ] {
        assert_eq!(report[key], expected, "{key} of {report:#}");
    }
}

#[test]
fn confirmed_persistent_messages_arrive_once_in_order() {
    check("--count 5000 --window 100", 5000, 5000);
}

#[test]
fn many_connections_and_queues_share_the_load() {
    check(
        "--count 6000 --publishers 3 --queues 4 --consumers 2 --window 50 --ack each --prefetch 10",
        6000,
        6000,
    );
}

#[test]
fn transient_messages_without_confirms_or_acks_arrive_as_well() {
    check(
        "--count 20000 --window 0 --transient --ack auto --durable=false",
        20_000,
        0,
    );
}

#[test]
fn bodies_of_many_frames_arrive_whole() {
    check("--count 40 --body-size 1000000 --window 5", 40, 40);
}

#[test]
fn messages_that_the_queue_dropped_are_reported_as_lost() {
    let arguments = "--count 500 --consumers 0 --queue-argument x-max-length=100 --patience 1";
    let (code, report) = bench(arguments);
    assert_eq!(
        (code, &report["lost_count"]),
        (Some(1), &Value::from(400)),
        "{report:#}"
    );
}
