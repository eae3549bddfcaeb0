//! An unmodified client of another language over TLS: pika, with a password and with a certificate.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::authorities::{Authority, Files};
use super::cli;

/// What `tests/run` has installed.
fn python() -> PathBuf {
    let installed = std::env::var_os("STRATAMQ_TEST_ENV").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/.env"),
        PathBuf::from,
    );
    installed.join("python/bin/python")
}

/// CN-23: pika logs in over TLS, by password and by certificate.
#[test]
fn pika_speaks_tls() {
    let python = python();
    assert!(
        python.exists(),
        "pika is not installed ({} is missing): run tests/run once",
        python.display()
    );
    let (servers, clients) = (Authority::new("Servers"), Authority::new("Clients"));
    let files = Files::new(&servers.server("broker"), &clients);
    files.write("servers.pem", &servers.pem());
    let alice = clients.client("alice");
    files.write("alice.pem", &alice.cert);
    files.write("alice.key", &alice.key);
    let flags = [
        "--tls-verify",
        "optional",
        "--auth-mechanisms",
        "PLAIN,EXTERNAL",
    ];
    let (broker, port) = files.start(&flags);
    cli(&broker, &["user", "add", "alice", "--password", ""]);
    cli(&broker, &["permission", "set", "alice", ".*", ".*", ".*"]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/python/tls.py");
    let output = Command::new(python)
        .arg(script)
        .arg(Ipv4Addr::LOCALHOST.to_string())
        .arg(port.to_string())
        .args(["servers.pem", "alice.pem", "alice.key"].map(|name| files.path(name)))
        .output()
        .expect("python can be executed");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complained}");
    assert_eq!(said, "ok password\nok certificate\n", "{complained}");
}
