//! The output of every command on every fixture, compared with texts under `tests/fixtures/v*/expected`.
//!
//! `STRATAMQ_UPDATE_EXPECTED=1 cargo test --test dump` writes the texts; review them as text.

use std::path::PathBuf;

use crate::command::{expected_dir, fixture, in_repository, strata_dump, transcript};
use crate::fixtures::files_of;

/// Commands with the words behind the data directory. Each is run as a table and with `--json`.
const COMMANDS: [(&str, &[&str]); 12] = [
    ("segments", &["segments", "DIR"]),
    ("batches", &["batches", "DIR"]),
    ("records", &["records", "DIR"]),
    (
        "records-of-a-queue",
        &["records", "DIR", "--queue", "shop/work"],
    ),
    (
        "records-of-a-place",
        &[
            "records", "DIR", "--type", "publish", "--from", "2:4096", "--to", "2:20000",
        ],
    ),
    (
        "bodies",
        &[
            "records", "DIR", "--bodies", "--queue", "5", "--type", "publish",
        ],
    ),
    ("queues", &["queues", "DIR"]),
    ("index", &["index", "//work", "DIR"]),
    ("topology", &["topology", "DIR"]),
    ("superblock", &["superblock", "DIR"]),
    ("checkpoint", &["checkpoint", "DIR"]),
    ("verify", &["verify", "DIR"]),
];

fn expected_path(fixture: &str, name: &str) -> PathBuf {
    expected_dir(fixture).join(format!("{name}.txt"))
}

#[track_caller]
fn check(fixture_name: &str, name: &str, words: &[&str]) {
    let directory = fixture(fixture_name);
    let words: Vec<&str> = words
        .iter()
        .map(|word| {
            if *word == "DIR" {
                directory.as_str()
            } else {
                word
            }
        })
        .collect();
    let json = [words.as_slice(), &["--json"]].concat();
    let found = format!("{}\n{}", transcript(&words), transcript(&json));
    let path = expected_path(fixture_name, name);
    if std::env::var_os("STRATAMQ_UPDATE_EXPECTED").is_some() {
        std::fs::create_dir_all(path.parent().expect("it is below the fixtures")).expect("created");
        std::fs::write(&path, &found).expect("written");
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    if let Some((line, (expected, found))) = first_difference(&expected, &found) {
        panic!(
            "{}, line {line}:\nexpected: {expected}\n   found: {found}",
            path.display()
        );
    }
}

fn first_difference<'t>(expected: &'t str, found: &'t str) -> Option<(usize, (&'t str, &'t str))> {
    let lines = expected.lines().count().max(found.lines().count());
    let at = |text: &'t str, line: usize| text.lines().nth(line).unwrap_or("(nothing)");
    (0..lines)
        .map(|line| (line + 1, (at(expected, line), at(found, line))))
        .find(|(_, (e, f))| e != f)
}

#[track_caller]
fn check_all(fixture_name: &str) {
    let before = files_of(&in_repository(&fixture(fixture_name)));
    for (name, words) in COMMANDS {
        // The stories of newer versions have no such queue or place.
        let is_newer = ["filed", "moved", "short", "ruled"].contains(&fixture_name);
        if !is_newer || !name.starts_with("records-of") {
            check(fixture_name, name, words);
        }
    }
    let after = files_of(&in_repository(&fixture(fixture_name)));
    assert!(before == after, "looking changes nothing");
}

#[test]
fn clean_directory_is_shown_as_expected() {
    check_all("clean");
}

#[test]
fn torn_directory_is_shown_as_expected() {
    check_all("torn");
}

#[test]
fn damaged_directory_is_shown_as_far_as_it_can_be_read() {
    check_all("damaged");
}

#[test]
fn directory_with_a_rotten_message_is_shown_and_names_it() {
    check_all("rotten");
}

#[test]
fn directory_with_index_files_is_shown_as_expected() {
    check_all("filed");
}

#[test]
fn directory_whose_files_were_used_again_is_shown_as_expected() {
    check_all("moved");
}

#[test]
fn directory_with_full_runs_is_shown_as_expected() {
    check_all("short");
}

#[test]
fn directory_with_rules_and_levels_is_shown_as_expected() {
    check_all("ruled");
    check("ruled", "index-of-levels", &["index", "urgent", "DIR"]);
}

#[test]
fn exit_codes_tell_what_was_found() {
    let clean = fixture("clean");
    let cases: [(&[&str], i32); 16] = [
        (&["verify", &clean], 0),
        (&["verify", &fixture("torn")], 0),
        (&["verify", &fixture("filed")], 0),
        (&["verify", &fixture("moved")], 0),
        (&["verify", &fixture("short")], 0),
        (&["verify", &fixture("ruled")], 0),
        (&["verify", &fixture("damaged")], 3),
        (&["verify", &fixture("rotten")], 3),
        (&["queues", &fixture("damaged")], 3),
        (&["verify", "tests/no-such-directory"], 1),
        (&["verify", "Cargo.toml"], 1),
        (&["verify", "tests"], 1),
        (&["verify"], 2),
        (&["records", &clean, "--from", "nowhere"], 2),
        (&["index", "no-such-queue", &clean], 2),
        (&["index", "work", &clean], 2),
    ];
    for (words, expected) in cases {
        let output = strata_dump(words);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(expected), "{words:?}: {errors}");
        assert_eq!(expected == 0, errors.is_empty(), "{words:?}: {errors}");
    }
    assert!(
        !in_repository("tests/no-such-directory").exists(),
        "looking creates nothing"
    );
}

#[test]
fn password_hashes_are_never_shown() {
    for (_, words) in COMMANDS {
        let directory = fixture("clean");
        let words: Vec<&str> = words
            .iter()
            .map(|word| if *word == "DIR" { &directory } else { *word })
            .collect();
        let output = strata_dump(&[words.as_slice(), &["--json"]].concat());
        assert!(
            !String::from_utf8_lossy(&output.stdout).contains("c2FsdHNl"),
            "{words:?}"
        );
    }
}
