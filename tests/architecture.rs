//! The rooms use each other only as the table says (README, Architecture).
//!
//! Reads every `crate::ROOM` path in `src`, comments and tests aside, and checks it against the table.

#[path = "support/sources.rs"]
mod sources;

use std::fs;
use std::path::{Path, PathBuf};

use sources::sources;

/// What each room may name besides itself; a path allows everything below it.
const TABLE: &[(&str, &[&str])] = &[
    ("amqp", &[]),
    (
        "session",
        &[
            "amqp",
            "broker::command",
            "broker::error",
            "broker::message",
            "broker::outbox",
            "broker::queue",
            "storage::types::Lsn",
        ],
    ),
    (
        "broker",
        &[
            "amqp::field_table",
            "amqp::limits",
            "amqp::properties",
            "amqp::reply_code",
            "amqp::short_string",
            "storage::types",
            "storage::image",
            "storage::run",
            "storage::CheckpointSource",
            "storage::QueueImage",
        ],
    ),
    ("storage", &["disk"]),
    ("disk", &[]),
    ("config", &[]),
    ("telemetry", &[]),
    (
        "server",
        &[
            "session",
            "broker",
            "storage",
            "disk",
            "allocator",
            "telemetry",
            "config",
            "amqp::limits",
            "amqp::reply_code",
            "amqp::short_string",
        ],
    ),
];

/// Crates that only some rooms may name.
const CRATES: &[(&str, &[&str])] = &[
    ("tokio", &["server"]),
    ("serde", &["broker", "server"]),
    ("bincode", &["broker"]),
    ("fs2", &["disk"]),
    ("memmap2", &["disk"]),
    ("rustix", &["disk", "server"]),
    ("tempfile", &["disk"]),
    ("toml", &["config"]),
    ("rustls", &["server"]),
    ("x509_cert", &["server"]),
];

/// The code of a file without comments and without its tests, which stand last.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("sources are text");
    let lines = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default());
    let code = lines.collect::<Vec<_>>().join("\n");
    let before_tests = code.split("#[cfg(test)]\nmod tests").next();
    before_tests.unwrap_or_default().to_owned()
}

/// The room a file belongs to; `None` for `lib.rs`, `main.rs`, `sync.rs`, `cache_line.rs` and `allocator.rs`.
fn room(path: &Path, root: &Path) -> Option<String> {
    let relative = path.strip_prefix(root).expect("below the root");
    let first = relative.iter().next()?.to_str()?;
    let name = first.strip_suffix(".rs").unwrap_or(first);
    TABLE
        .iter()
        .any(|(room, _)| *room == name)
        .then(|| name.to_owned())
}

fn is_test_file(path: &Path) -> bool {
    path.iter().any(|part| {
        ["tests", "tests.rs", "testing.rs", "testing"]
            .iter()
            .any(|name| part == *name)
    })
}

/// Every path behind `crate::`, groups resolved one level deep.
fn paths(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let is_path =
            |character: char| character.is_alphanumeric() || character == '_' || character == ':';
        let end = rest
            .find(|character| !is_path(character))
            .unwrap_or(rest.len());
        let (path, behind) = rest.split_at(end);
        match behind.strip_prefix('{') {
            Some(group) => {
                let group = group.split('}').next().unwrap_or_default();
                let names = group
                    .split(',')
                    .map(str::trim)
                    .filter(|name| !name.is_empty());
                paths.extend(names.map(|name| format!("{path}{name}")));
            }
            None => paths.push(path.to_owned()),
        }
    }
    paths
}

fn is_below(path: &str, allowed: &str) -> bool {
    path == allowed
        || path
            .strip_prefix(allowed)
            .is_some_and(|rest| rest.starts_with("::"))
}

#[test]
fn rooms_use_each_other_as_the_table_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut violations = Vec::new();
    for path in sources(&root)
        .into_iter()
        .filter(|path| !is_test_file(path))
    {
        let Some(room) = room(&path, &root) else {
            continue;
        };
        let code = code(&path);
        let (_, allowed) = TABLE
            .iter()
            .find(|(name, _)| *name == room)
            .expect("room() looked it up");
        for used in paths(&code) {
            let is_allowed = is_below(&used, &room)
                || is_below(&used, "sync")
                || is_below(&used, "cache_line")
                || allowed.iter().any(|allowed| is_below(&used, allowed));
            if !is_allowed {
                violations.push(format!("{} uses {used}", path.display()));
            }
        }
        for (name, users) in CRATES {
            let is_used = code.contains(&format!("{name}::"));
            if is_used && !users.contains(&room.as_str()) {
                violations.push(format!("{} uses the crate {name}", path.display()));
            }
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn only_one_module_knows_bincode() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let users: Vec<PathBuf> = sources(&root)
        .into_iter()
        .filter(|path| code(path).contains("bincode::"))
        .collect();
    assert_eq!(users, [root.join("broker/meta.rs")]);
}

#[test]
fn the_checker_sees_paths_in_every_form() {
    let code = "use crate::a::b;\nuse crate::c::{d, e::F};\nlet x = crate::g::h();";
    assert_eq!(paths(code), ["a::b", "c::d", "c::e::F", "g::h"]);
    assert!(is_below("storage::types::Lsn", "storage::types"));
    assert!(!is_below("storage::types_of", "storage::types"));
}
