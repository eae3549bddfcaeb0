//! The commands beside running a broker: users, permissions, vhosts and status, on a running broker and on a
//! stopped data directory, as an operator types them.

mod support;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use support::TestBroker;

/// Runs `stratamq --data-dir DIR ARGS`.
fn stratamq(data_dir: &Path, args: &[&str]) -> Output {
    Command::new(support::broker_binary())
        .arg("--data-dir")
        .arg(data_dir)
        .args(args)
        .output()
        .expect("the binary starts")
}

#[track_caller]
fn done(data_dir: &Path, args: &[&str]) -> String {
    let output = stratamq(data_dir, args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    String::from_utf8(output.stdout).expect("output is text")
}

#[track_caller]
fn refused(data_dir: &Path, args: &[&str], expected: &str) {
    let output = stratamq(data_dir, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        format!("stratamq: {expected}\n"),
        "{args:?}"
    );
}

fn list(data_dir: &Path, kind: &str) -> Value {
    serde_json::from_str(&done(data_dir, &[kind, "list", "--json"])).expect("--json prints JSON")
}

/// Adds, changes and removes one of everything, and looks at the listings in between.
fn exercise(data_dir: &Path) {
    done(
        data_dir,
        &[
            "user",
            "add",
            "alice",
            "--password",
            "secret",
            "--tag",
            "monitoring",
        ],
    );
    done(data_dir, &["vhost", "add", "staging"]);
    done(
        data_dir,
        &[
            "permission",
            "set",
            "alice",
            "^a",
            ".*",
            "",
            "--vhost",
            "staging",
        ],
    );
    let users = list(data_dir, "user");
    let alice = users
        .as_array()
        .expect("a list")
        .iter()
        .find(|user| user["name"] == "alice")
        .expect("alice is there");
    assert_eq!(alice["tags"], serde_json::json!(["monitoring"]));
    assert_eq!(list(data_dir, "vhost"), serde_json::json!(["/", "staging"]));
    let permissions = list(data_dir, "permission");
    let entry = serde_json::json!(
        {"user": "alice", "vhost": "staging", "configure": "^a", "write": ".*", "read": ""});
    assert!(
        permissions.as_array().expect("a list").contains(&entry),
        "{permissions}"
    );

    refused(
        data_dir,
        &["user", "add", "alice", "--password", "x"],
        "user 'alice' already exists",
    );
    refused(
        data_dir,
        &["user", "delete", "nobody"],
        "user 'nobody' does not exist",
    );
    refused(
        data_dir,
        &["vhost", "add", "staging"],
        "vhost 'staging' already exists",
    );
    refused(
        data_dir,
        &["vhost", "delete", "nowhere"],
        "vhost 'nowhere' does not exist",
    );
    refused(
        data_dir,
        &[
            "permission",
            "set",
            "alice",
            ".*",
            ".*",
            ".*",
            "--vhost",
            "nowhere",
        ],
        "vhost 'nowhere' does not exist",
    );

    done(
        data_dir,
        &["user", "set-password", "alice", "--password", "other"],
    );
    done(data_dir, &["user", "set-tags", "alice"]);
    done(
        data_dir,
        &["permission", "clear", "alice", "--vhost", "staging"],
    );
    assert!(!list(data_dir, "permission").to_string().contains("alice"));
    done(data_dir, &["vhost", "delete", "staging"]);
    done(data_dir, &["user", "delete", "alice"]);
    assert!(!list(data_dir, "user").to_string().contains("alice"));
}

#[test]
fn operators_change_users_and_vhosts_of_a_running_broker() {
    let broker = TestBroker::start();
    exercise(broker.data_dir());
}

#[test]
fn operators_change_users_and_vhosts_of_a_stopped_directory() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    exercise(&directory.path().join("data"));
}

#[test]
fn what_was_changed_survives_a_killed_broker() {
    let mut broker = TestBroker::start();
    done(
        broker.data_dir(),
        &["user", "add", "carol", "--password", "c"],
    );
    done(broker.data_dir(), &["vhost", "add", "kept"]);
    done(
        broker.data_dir(),
        &[
            "permission",
            "set",
            "carol",
            ".*",
            ".*",
            ".*",
            "--vhost",
            "kept",
        ],
    );
    broker.kill();
    broker.restart();
    assert!(
        list(broker.data_dir(), "permission")
            .to_string()
            .contains("carol")
    );
    assert_eq!(
        list(broker.data_dir(), "vhost"),
        serde_json::json!(["/", "kept"])
    );
}

#[test]
fn status_tells_what_a_running_broker_does_and_that_none_runs() {
    let broker = TestBroker::start();
    let status: Value =
        serde_json::from_str(&done(broker.data_dir(), &["status", "--json"])).expect("JSON");
    for key in [
        "version",
        "uptime_ms",
        "recovery",
        "alarms",
        "connections",
        "messages",
        "log",
        "queues",
    ] {
        assert!(!status[key].is_null(), "status has {key}: {status}");
    }
    let text = done(broker.data_dir(), &["status"]);
    for word in ["recovery", "alarms", "fdatasync", "queues"] {
        assert!(text.contains(word), "{text}");
    }
    let directory = tempfile::tempdir().expect("a directory can be made");
    let expected = format!(
        "no broker runs on data directory {}",
        directory.path().display()
    );
    refused(directory.path(), &["status"], &expected);
}

#[test]
fn a_data_directory_with_a_very_long_path_has_an_admin_socket_too() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let data_dir = directory.path().join("d".repeat(120));
    let _broker = TestBroker::builder().data_dir(&data_dir).start();
    done(&data_dir, &["user", "list"]);
}
