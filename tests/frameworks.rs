//! Unmodified frameworks against the broker, which is killed and started again under them: Celery, aio-pika's robust connections,
//! amqp-connection-manager, Spring AMQP.
//!
//! ```text
//!  tests/run --test frameworks          installs them and plays all; --test frameworks spring plays one
//! ```
//!
//! The suites are programs in `tests/clients`. Each takes the broker's address, asserts for itself, prints `ok NAME` for every
//! scenario and exits with 0. One that writes `restart broker` has the broker killed with SIGKILL and started again, and is told
//! `restarted` on its standard input. A framework that is not installed fails its test.
//!
//! `STRATAMQ_TEST_URL` plays the suites against another broker instead, to check the suites themselves; the shell command in
//! `STRATAMQ_TEST_RESTART` restarts it.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use support::TestBroker;

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

/// The broker under the suite.
enum Stage {
    Own(Box<TestBroker>),
    Other(String),
}

impl Stage {
    #[track_caller]
    fn set(flags: &[&str]) -> Self {
        if let Ok(url) = std::env::var("STRATAMQ_TEST_URL") {
            return Self::Other(url);
        }
        let builder = flags
            .iter()
            .fold(TestBroker::builder(), |b, flag| b.arg(flag));
        Self::Own(Box::new(builder.start()))
    }

    fn url(&self) -> String {
        match self {
            Self::Own(broker) => broker.url(),
            Self::Other(url) => url.clone(),
        }
    }

    #[track_caller]
    fn restart(&mut self) {
        match self {
            Self::Own(broker) => broker.restart(),
            Self::Other(_) => {
                let command = std::env::var("STRATAMQ_TEST_RESTART")
                    .expect("STRATAMQ_TEST_RESTART restarts the other broker");
                let status = Command::new("sh").args(["-c", &command]).status();
                assert!(status.is_ok_and(|status| status.success()), "{command}");
            }
        }
    }
}

/// A suite's process, which does not outlive the test.
struct Suite(Child);

impl Drop for Suite {
    fn drop(&mut self) {
        // An error says that it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Plays one suite; every scenario must have said that it passed, in order, and nothing else. `URL` among the words of the command
/// is the broker's address.
#[track_caller]
#[expect(
    clippy::print_stdout,
    reason = "the scenario lines are the test's report"
)]
fn check(command: &[&str], flags: &[&str], scenarios: &[&str]) {
    let mut stage = Stage::set(flags);
    let url = stage.url();
    let (program, words) = command.split_first().expect("a program");
    let spawned = Command::new(program)
        .args(words.iter().map(|word| word.replace("URL", &url)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut suite = match spawned {
        Ok(child) => Suite(child),
        Err(error) => panic!("{program}: {error}: run tests/run once, it installs what is needed"),
    };
    let mut answers = suite.0.stdin.take().expect("it is piped");
    let said = suite.0.stdout.take().expect("it is piped");
    let mut passed = Vec::new();
    for line in BufReader::new(said).lines() {
        let line = line.expect("a suite says UTF-8");
        println!("{line}");
        if line == "restart broker" {
            stage.restart();
            // A suite that has ended meanwhile is told by its exit code.
            let _ = answers.write_all(b"restarted\n");
        } else if let Some(name) = line.strip_prefix("ok ") {
            passed.push(name.to_owned());
        }
    }
    let status = suite.0.wait().expect("it is ours");
    assert!(status.success(), "the suite failed ({status})");
    assert_eq!(passed, scenarios);
}

/// Text of a path below a directory, for a command line.
fn path(directory: &Path, below: &str) -> String {
    let path = directory.join(below);
    path.to_str().expect("the checkout's path is text").into()
}

#[test]
fn celery_works() {
    let python = path(&installed(), "python/bin/python");
    let suite = path(&clients(), "celery/suite.py");
    check(
        &[&python, &suite, "URL"],
        &[],
        &[
            "results",
            "acks_late_killed_worker",
            "countdown_and_eta",
            "priorities",
            "remote_control",
            "events",
            "broker_restarted",
        ],
    );
}

/// QS-3, QS-9: the global prefetch of RabbitMQ 3, which Celery asks for when that is what it sees.
#[test]
fn celery_raises_the_prefetch_of_a_broker_of_version_3() {
    let python = path(&installed(), "python/bin/python");
    let suite = path(&clients(), "celery/suite.py");
    check(
        &[&python, &suite, "URL", "eta_beyond_the_prefetch"],
        &["--product-version", "3.13.7"],
        &["eta_beyond_the_prefetch"],
    );
}

#[test]
fn aio_pika_reconnects() {
    let python = path(&installed(), "python/bin/python");
    let suite = path(&clients(), "aiopika/suite.py");
    check(
        &[&python, &suite, "URL"],
        &[],
        &[
            "topology_and_refusals",
            "transactions_and_qos",
            "rpc_pattern",
            "restarted_meanwhile",
        ],
    );
}

#[test]
fn amqp_connection_manager_reconnects() {
    let suite = path(&clients(), "node/manager.js");
    check(
        &["node", &suite, "URL"],
        &[],
        &[
            "setup_and_queueing",
            "cancelled_by_broker",
            "restarted_meanwhile",
        ],
    );
}

#[test]
fn spring_amqp_application_works() {
    let target = path(&clients(), "spring/target");
    check(
        &[
            "java",
            "-cp",
            &format!("{target}/classes:{target}/dependency/*"),
            "orders.Application",
            "URL",
        ],
        &[],
        &[
            "declarations",
            "confirms_and_returns",
            "listeners_and_dead_letters",
            "replies_and_manual_acks",
            "restarted_meanwhile",
        ],
    );
}
