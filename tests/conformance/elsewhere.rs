//! The same suite against any other broker.
//!
//! ```text
//!   STRATAMQ_CONFORMANCE_URL=amqp://127.0.0.1:5672 cargo test --test conformance
//!   tests/against amqp://127.0.0.1:5672          the same, compared with differences.md
//! ```
//!
//! 1. The broker is fresh: it has the user guest with the password guest, who may do everything in the vhost `/`, and nothing else.
//!    The texts of the reference name that user and that vhost, so no others can be chosen.
//! 2. A test that needs our own process, its flags or its log is skipped there, and says so.
//! 3. `differences.md` lists the tests that another broker does not pass, what it does and why ours is as it is. It names only tests
//!    that exist.

use std::collections::BTreeSet;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;

use super::stage::address;
use crate::support::raw::Client;

const VARIABLE: &str = "STRATAMQ_CONFORMANCE_URL";

/// The other broker, if one is named.
pub(crate) fn other_broker() -> Option<SocketAddr> {
    let url = std::env::var(VARIABLE).ok()?;
    match address_in(&url) {
        Ok(address) => Some(address),
        Err(why) => panic!("{VARIABLE}={url}: {why}"),
    }
}

/// True against another broker; says that the test is skipped.
#[expect(
    clippy::print_stdout,
    reason = "a skipped test must not look like a passed one"
)]
pub(crate) fn skipped_elsewhere(why: &str) -> bool {
    let is_elsewhere = other_broker().is_some();
    if is_elsewhere {
        println!("skipped against another broker: {why}");
    }
    is_elsewhere
}

fn address_in(url: &str) -> Result<SocketAddr, String> {
    let rest = url
        .strip_prefix("amqp://")
        .ok_or("it begins with amqp://")?;
    let (authority, vhost) = rest.split_once('/').unwrap_or((rest, "%2f"));
    if !matches!(vhost, "%2f" | "%2F") {
        return Err("the vhost is /, written %2f or left out".into());
    }
    let (user, host) = authority
        .rsplit_once('@')
        .unwrap_or(("guest:guest", authority));
    if user != "guest:guest" {
        return Err("the user is guest with the password guest, or left out".into());
    }
    let host = if host.contains(':') {
        host.to_owned()
    } else {
        format!("{host}:5672")
    };
    let mut addresses = host.to_socket_addrs().map_err(|error| error.to_string())?;
    addresses
        .next()
        .ok_or_else(|| "the host has no address".into())
}

/// `section::test` of all tests of the sections.
fn tests_there_are() -> BTreeSet<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance");
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(directory).expect("it is there") {
        let path = entry.expect("it can be read").path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let section = path
            .file_stem()
            .expect("a source has a name")
            .to_string_lossy();
        let text = std::fs::read_to_string(&path).expect("a source is text");
        let names = text
            .split("#[test]\nfn ")
            .skip(1)
            .filter_map(|rest| rest.split_once('('));
        found.extend(names.map(|(name, _)| format!("{section}::{name}")));
    }
    found
}

/// The names in the first column of the tables.
fn tests_listed() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/differences.md");
    let text = std::fs::read_to_string(path).expect("it is there");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| Some(row.split_once("` |")?.0.to_owned()))
        .collect()
}

#[test]
fn the_list_of_differences_names_tests_that_exist_each_once() {
    let (known, listed) = (tests_there_are(), tests_listed());
    assert!(known.len() > 150, "{} tests found", known.len());
    let unknown: Vec<&String> = listed
        .iter()
        .filter(|name| !known.contains(*name))
        .collect();
    assert!(unknown.is_empty(), "no such tests: {unknown:?}");
    let distinct: BTreeSet<&String> = listed.iter().collect();
    assert_eq!(distinct.len(), listed.len(), "a test is listed twice");
}

#[test]
fn a_url_names_the_broker_and_nothing_else() {
    let local = |port| Ok(SocketAddr::from(([127, 0, 0, 1], port)));
    assert_eq!(address_in("amqp://127.0.0.1"), local(5672));
    assert_eq!(
        address_in("amqp://guest:guest@127.0.0.1:5673/%2f"),
        local(5673)
    );
    for wrong in [
        "http://127.0.0.1",
        "amqp://bob:bob@127.0.0.1",
        "amqp://127.0.0.1/other",
        "amqp://127.0.0.1:port",
    ] {
        assert!(address_in(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn the_broker_takes_the_login_that_all_tests_use() {
    Client::connect(address()).close();
}
