//! `--config` and `--print-config`, from outside.

use std::process::{Command, Output};

use super::support::raw::Client;
use super::support::{TestBroker, broker_binary, free_port};

fn run(words: &[&str]) -> Output {
    Command::new(broker_binary())
        .args(words)
        .env("STRATAMQ_HEARTBEAT", "33")
        .output()
        .expect("the broker's binary can be executed")
}

#[test]
fn a_broker_runs_by_its_file_and_says_what_it_comes_to() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("stratamq.toml");
    let data = directory.path().join("data");
    let port = free_port();
    let text = format!(
        "data-dir = {data:?}\namqp-port = {port}\nheartbeat = 11\nchannel-max = 5\nauth-mechanisms = ['PLAIN']\n"
    );
    std::fs::write(&path, text).expect("written");
    let path = path.to_str().expect("text");
    let printed = run(&["--config", path, "--channel-max", "6", "--print-config"]);
    assert!(printed.status.success());
    let printed = String::from_utf8(printed.stdout).expect("text");
    for line in [
        &format!("amqp-port = {port}"),
        "heartbeat = 33  # environment",
        "channel-max = 6  # flag",
        "auth-mechanisms = \"PLAIN\"",
        "fsync = \"always\"",
        "# tls-cert is not set",
    ] {
        assert!(
            printed.lines().any(|found| found == line),
            "{line}:\n{printed}"
        );
    }
    assert!(!data.exists(), "printing starts nothing");
    // The test's own flags win over the file's port and directory.
    let broker = TestBroker::builder().arg("--config").arg(path).start();
    let mut c = Client::connect(broker.address());
    for number in 1..=5 {
        c.open_channel(number);
    }
    c.send(6, stratamq::amqp::method::channel::Open::default());
    assert_eq!(c.wait_connection_close().reply_code, 530);
}

#[test]
fn mistakes_in_a_file_are_one_line_that_names_them() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("bad.toml");
    let name = path.to_str().expect("text");
    for (text, wanted) in [
        (
            "fsinc = 'always'",
            "unknown key 'fsinc'; known are data-dir, bind, ",
        ),
        (
            "fsync = 'maybe'",
            "key 'fsync': invalid value 'maybe' [possible values: always, interval, never]",
        ),
        ("heartbeat = 1\nfsync = ", "line 2: "),
        (
            "frame-max = 17",
            "key 'frame-max': invalid value '17': allowed is 8KiB to 16MiB",
        ),
        (
            "net-threads = 0",
            "key 'net-threads': invalid value '0': expected 1 to 1024, or auto",
        ),
    ] {
        std::fs::write(&path, text).expect("written");
        let output = run(&["--config", name]);
        assert_eq!(output.status.code(), Some(2), "{text}");
        let said = String::from_utf8(output.stderr).expect("text");
        assert_eq!(said.lines().count(), 1, "{said}");
        let start = format!("stratamq: {name}: {wanted}");
        assert!(said.starts_with(&start), "{said} instead of {start}");
    }
    let output = run(&["--config", "/nowhere/x.toml"]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).expect("text");
    assert!(
        said.starts_with("stratamq: cannot read /nowhere/x.toml: "),
        "{said}"
    );
}
