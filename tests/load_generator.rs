//! `strata-bench` against the broker: the load it generates is complete, and it notices when messages are missing.
//!
//! `STRATAMQ_TEST_URL` runs it against another broker instead.

mod support;

use serde_json::Value;
use std::process::Command;
use support::{TestBroker, broker_binary};

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
    let arguments = "--count 500 --consumers 0 --queue-argument x-max-length=100 --patience";
    // It waits for what is lost as long as its patience lasts; a busy broker may need more of it.
    let (mut code, mut report) = bench(&format!("{arguments} 2"));
    if report["lost_count"] != 400 {
        (code, report) = bench(&format!("{arguments} 20"));
    }
    assert_eq!(
        (code, &report["lost_count"]),
        (Some(1), &Value::from(400)),
        "{report:#}"
    );
}

/// Runs a command that starts a broker of its own; its report.
#[track_caller]
fn own_broker(arguments: &str) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_strata-bench"))
        .args(arguments.split_whitespace())
        .args(["--json", "--directory", env!("CARGO_TARGET_TMPDIR")])
        .env("STRATA_BENCH_BROKER", broker_binary())
        .output()
        .expect("the generator can be executed");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments}: {complaint}");
    serde_json::from_slice(&output.stdout).expect("the report is JSON")
}

/// Numbers that say that something was measured at all.
#[track_caller]
fn check_positive(report: &Value, pointers: &[&str]) {
    for pointer in pointers {
        let value = report.pointer(pointer).and_then(Value::as_f64);
        assert!(
            value.is_some_and(|value| value > 0.0),
            "{pointer} of {report:#}"
        );
    }
}

#[test]
fn restart_kills_a_broker_with_a_backlog_and_finds_every_message() {
    let report = own_broker("restart --messages 2k --queues 1,7 --repeats 2 --cold");
    let backlogs = report["backlogs"].as_array().expect("a list");
    assert_eq!(backlogs.len(), 2, "{report:#}");
    for backlog in backlogs {
        assert_eq!(backlog["restarts"].as_array().map(Vec::len), Some(2));
        check_positive(
            backlog,
            &[
                "/restarts/0/accept_ms",
                "/restarts/0/first_delivery_ms",
                "/restarts/0/peak_rss_bytes",
                "/raw/fdatasync_append_p50_us",
                "/files/bytes",
            ],
        );
    }
}

#[test]
fn queues_compares_numbers_of_queues_by_what_the_log_wrote() {
    let report = own_broker("queues --counts 1,20 --messages 2k --repeats 1 --window 100");
    for (index, queues) in [(0, 1), (1, 20)] {
        let measured = &report["counts"][index];
        assert_eq!(measured["queues"], queues, "{report:#}");
        check_positive(
            measured,
            &[
                "/confirmed_per_sec",
                "/confirmed_ratio",
                "/fdatasync_per_sec",
                "/messages_per_fdatasync",
                "/bytes_ratio",
            ],
        );
        // The body alone has 1024.
        let bytes = measured["bytes_per_message"].as_f64();
        assert!(bytes.is_some_and(|bytes| bytes > 1024.0), "{report:#}");
    }
}

#[test]
fn limit_sets_a_load_beside_the_stand_in_and_the_disk() {
    for (case, is_durable) in [
        ("transient 16 B", false),
        ("durable fan-out 5", true),
        ("10 x 10 x 10", true),
    ] {
        let report = Command::new(env!("CARGO_BIN_EXE_strata-bench"))
            .args(["limit", "--rounds", "1", "--seconds", "1", "--case", case])
            .args(["--json", "--directory", env!("CARGO_TARGET_TMPDIR")])
            .env("STRATA_BENCH_BROKER", broker_binary())
            .output()
            .expect("the generator can be executed");
        let complaint = String::from_utf8_lossy(&report.stderr);
        assert!(report.status.success(), "{case}: {complaint}");
        let report: Value = serde_json::from_slice(&report.stdout).expect("the report is JSON");
        let load = &report["loads"][0];
        assert_eq!(load["name"], case);
        let round = "/rounds/0";
        let socket = format!("{round}/limits/socket/per_sec");
        check_positive(load, &[&socket, &format!("{round}/broker/per_sec")]);
        if is_durable {
            let commits = format!("{round}/limits/disk/commits_per_sec");
            check_positive(
                load,
                &[&commits, &format!("{round}/broker/messages_per_commit")],
            );
        } else {
            assert!(load["rounds"][0]["limits"]["disk"].is_null(), "{load:#}");
        }
    }
}

#[test]
fn goals_are_judged_by_what_was_measured() {
    let report = own_broker("goals --rounds 1 --seconds 1 --case RPC");
    let goals = report["goals"].as_array().expect("a list");
    assert_eq!(goals.len(), 2, "{report:#}");
    for goal in goals {
        check_positive(goal, &["/figure", "/goal"]);
        assert!(goal["is_reached"].is_boolean());
    }
    let report = own_broker("goals --rounds 1 --seconds 1 --backlog 2k --case backlog");
    check_positive(&report, &["/goals/0/figure", "/goals/1/figure"]);
}

#[test]
fn sweep_measures_every_axis_and_draws_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let svg = directory.path().join("sweep.svg");
    let flags = "sweep --rounds 1 --messages 2k --max 30k --svg";
    let report = own_broker(&format!("{flags} {}", svg.display()));
    let points = report["points"].as_array().expect("a list");
    for axis in [
        "Connections",
        "Queues",
        "Bindings",
        "BacklogPublished",
        "BacklogDrained",
        "Body",
    ] {
        let of_axis = points.iter().filter(|point| point["axis"] == axis);
        assert!(of_axis.clone().count() > 0, "{axis} in {report:#}");
        for point in of_axis {
            check_positive(point, &["/at", "/per_sec"]);
        }
    }
    let drawn = std::fs::read_to_string(&svg).expect("the plot is there");
    assert_eq!(drawn.matches("<polyline").count(), 6, "{drawn}");
}
