//! Unmodified clients of other languages against the broker: RabbitMQ's tutorials and publisher confirms, one suite a language.
//!
//! The suites are programs in `tests/clients`; `tests/run` installs what they need. Each takes the broker's address, asserts for
//! itself, prints `ok NAME` for every scenario and exits with 0. A language that is not installed fails its test: a skipped suite
//! would look like a passed one.
//!
//! `STRATAMQ_TEST_URL` plays the suites against another broker instead, to check the suites themselves.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::TestBroker;

const TUTORIALS: &[&str] = &[
    "hello_world",
    "work_queue",
    "publish_subscribe",
    "topics",
    "rpc",
    "confirms",
];

fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

/// What `tests/run` has installed.
fn installed() -> PathBuf {
    std::env::var_os("STRATAMQ_TEST_ENV").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/.env"),
        PathBuf::from,
    )
}

/// Plays one suite on a broker of its own; every scenario must have said that it passed, in order, and nothing else.
#[track_caller]
#[expect(
    clippy::print_stdout,
    reason = "the scenario lines are the test's report"
)]
fn check(client: &str, program: &Path, arguments: &[&str], needs: &[PathBuf], scenarios: &[&str]) {
    for path in needs {
        assert!(
            path.exists(),
            "the {client} client is not installed ({} is missing): run tests/run once",
            path.display()
        );
    }
    let outside = std::env::var("STRATAMQ_TEST_URL");
    let broker = outside.is_err().then(TestBroker::start);
    let url = broker.as_ref().map_or_else(
        || outside.expect("without a broker of our own there is another"),
        TestBroker::url,
    );
    let output = Command::new(program)
        .args(arguments)
        .arg(&url)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("the {client} client needs {}: {error}", program.display()));
    let said = String::from_utf8_lossy(&output.stdout);
    for line in said.lines() {
        println!("{client}: {line}");
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "the {client} suite failed ({}):\n{said}{complaint}",
        output.status
    );
    let passed: Vec<&str> = said
        .lines()
        .filter_map(|line| line.strip_prefix("ok "))
        .collect();
    assert_eq!(
        passed, scenarios,
        "scenarios of the {client} suite:\n{complaint}"
    );
}

#[test]
fn pika_plays_all_tutorials() {
    let python = installed().join("python/bin/python");
    let script = clients().join("python/tutorials.py");
    check(
        "pika",
        &python,
        &[script.to_str().expect("the checkout's path is text")],
        std::slice::from_ref(&python),
        &[
            "hello_world",
            "work_queue",
            "publish_subscribe",
            "routing",
            "topics",
            "rpc",
            "direct_reply_to",
            "delayed_exchange",
            "confirms_single",
            "confirms_batch",
            "confirms_async",
        ],
    );
}

#[test]
fn amqplib_plays_the_tutorials() {
    let script = clients().join("node/tutorials.js");
    check(
        "amqplib",
        Path::new("node"),
        &[script.to_str().expect("the checkout's path is text")],
        &[clients().join("node/node_modules/amqplib")],
        TUTORIALS,
    );
}

#[test]
fn amqp091_go_plays_the_tutorials() {
    let program = installed().join("go/tutorials");
    check(
        "amqp091-go",
        &program,
        &[],
        std::slice::from_ref(&program),
        TUTORIALS,
    );
}

#[test]
fn java_client_plays_the_tutorials() {
    let target = clients().join("java/target");
    let class_path = format!(
        "{}:{}/*",
        target.join("classes").display(),
        target.join("dependency").display()
    );
    check(
        "java",
        Path::new("java"),
        &["-cp", &class_path, "Tutorials"],
        &[
            target.join("classes/Tutorials.class"),
            target.join("dependency"),
        ],
        TUTORIALS,
    );
}
