//! `export` and `quarantine` get everything readable out of directories that are damaged in any way, and `verify` finds
//! any damage where it is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::command::{copy_dir, in_repository, strata_dump};
use crate::fixtures::files_of;

/// Directories whose files are damaged: with packed positions, with index files, and with cold segments and files used
/// again.
const DIRECTORIES: [&str; 4] = [
    "tests/fixtures/v1/clean",
    "tests/fixtures/v2/filed",
    "tests/fixtures/v2/moved",
    "tests/fixtures/v3/short",
];

/// Queue id and seq.
type Name = (u64, u64);

fn words<'w>(command: &'w str, dir: &'w Path) -> [&'w str; 2] {
    [command, dir.to_str().expect("a plain path")]
}

/// What `export` writes, its exit code and what it says.
fn export(dir: &Path) -> (BTreeMap<Name, Value>, i32, String) {
    let output = strata_dump(&words("export", dir));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let out = String::from_utf8(output.stdout).expect("JSON is text");
    let lines = out.lines().map(|line| {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let number = |name: &str| line[name].as_u64().expect("a number");
        ((number("queue_id"), number("seq")), line)
    });
    let code = output.status.code().expect("it was not killed");
    (lines.collect(), code, said)
}

fn copy_of(directory: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a temporary directory can be made");
    copy_dir(&in_repository(directory), copy.path());
    copy
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).expect("it can be read");
    bytes[at] ^= 1 << (at % 8);
    std::fs::write(path, bytes).expect("it can be written");
}

/// No exported message says anything else than it did in the whole directory.
#[track_caller]
fn check_content(whole: &BTreeMap<Name, Value>, found: &BTreeMap<Name, Value>, what: &str) {
    for (name, line) in found {
        // Settled messages may be back, with their own content, which the whole directory does not export.
        let Some(expected) = whole.get(name) else {
            continue;
        };
        for field in ["exchange", "routing_key", "properties", "body_base64"] {
            assert_eq!(line[field], expected[field], "{what}: {name:?}");
        }
    }
}

#[test]
fn a_whole_directory_is_exported_as_it_is() {
    let dir = in_repository(DIRECTORIES[0]);
    let before = files_of(&dir);
    let (lines, code, said) = export(&dir);
    assert_eq!(code, 0, "{said}");
    assert!(lines.len() > 20, "{}", lines.len());
    assert!(said.contains("0 unreadable"), "{said}");
    let line = &lines[&(
        5,
        lines.keys().find(|(q, _)| *q == 5).expect("it has some").1,
    )];
    for field in [
        "queue",
        "vhost",
        "exchange",
        "routing_key",
        "body_base64",
        "properties",
    ] {
        assert!(!line[field].is_null(), "{field}: {line}");
    }
    assert!(files_of(&dir) == before, "nothing is written");
    let only = strata_dump(&[
        "export",
        dir.to_str().expect("a plain path"),
        "--queue",
        "shop/work",
    ]);
    let only = String::from_utf8(only.stdout).expect("JSON is text");
    assert!(!only.is_empty() && only.lines().all(|line| line.contains("\"queue\":\"work\"")));
    let quarantine = strata_dump(&words("quarantine", &dir));
    assert_eq!(quarantine.status.code(), Some(0));
}

#[test]
fn a_damaged_message_is_named_and_all_others_are_exported() {
    let (whole, _, _) = export(&in_repository(DIRECTORIES[0]));
    let copy = copy_of(DIRECTORIES[0]);
    flip(&copy.path().join("log/000000000001.segment"), 27_696 + 500);
    let (lines, code, said) = export(copy.path());
    assert_eq!(code, 3, "{said}");
    assert_eq!(lines.len(), whole.len() - 1);
    assert!(!lines.contains_key(&(1, 8)));
    assert!(
        said.contains("1 unreadable") && said.contains("offset 27696"),
        "{said}"
    );
    let output = strata_dump(&[&words("quarantine", copy.path())[..], &["--json"]].concat());
    assert_eq!(output.status.code(), Some(3));
    let row: Value = serde_json::from_slice(&output.stdout).expect("one row");
    assert_eq!((&row["seq"], &row["queue_id"]), (&8.into(), &1.into()));
    assert_eq!(row["offset"], 27_696);
    assert!(
        row["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("crc"))
    );
}

#[test]
fn without_superblock_and_checkpoint_the_log_is_exported() {
    let (whole, _, _) = export(&in_repository(DIRECTORIES[0]));
    let copy = copy_of(DIRECTORIES[0]);
    for name in ["superblock.0", "superblock.1"] {
        flip(&copy.path().join(name), 40);
    }
    let (lines, code, said) = export(copy.path());
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("no superblock was whole"), "{said}");
    assert!(
        lines.keys().eq(whole.keys()),
        "the checkpoint is still there"
    );
    for (path, _) in files_of(&copy.path().join("checkpoint")) {
        flip(&path, 200);
    }
    let (lines, code, said) = export(copy.path());
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("checkpoint is lost"), "{said}");
    assert!(whole.keys().all(|name| lines.contains_key(name)));
    check_content(&whole, &lines, "without a checkpoint");
}

/// The offsets `verify` names in the file that ends with `path`.
fn places(out: &[u8], path: &str) -> Vec<u64> {
    let out = String::from_utf8_lossy(out);
    let rows = out
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    rows.filter(|row| {
        let file = row["file"].as_str().unwrap_or_default();
        row["result"] == "damaged" && file.ends_with(path)
    })
    .filter_map(|row| row["offset"].as_u64())
    .collect()
}

/// What `verify` says about byte `at` of a file of which it finds the rest whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Named,
    /// The end of the log, of which nothing says that it had been durable.
    Torn,
    Noted,
    Clean,
}

fn verify(dir: &Path, path: &str, at: usize) -> Verdict {
    let output = strata_dump(&[&words("verify", dir)[..], &["--json"]].concat());
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.code() {
        Some(3) => {
            let places = places(&output.stdout, path);
            // A batch of these directories is shorter than its segment; a checkpoint is one unit.
            let near = |place: &u64| path.starts_with("checkpoint") || *place <= at as u64 + 64;
            assert!(
                places.iter().any(near),
                "{path} byte {at}: {places:?}: {said}"
            );
            Verdict::Named
        }
        Some(0) if said.contains("torn tail") => Verdict::Torn,
        Some(0) if said.contains("is not whole") || said.contains("\"result\":\"note\"") => {
            Verdict::Noted
        }
        Some(0) => Verdict::Clean,
        other => panic!("{path} byte {at}: exit code {other:?}: {said}"),
    }
}

/// Flips bytes of every file: with a stride, and all around the beginning of what it holds.
fn flips(dir: &Path) -> Vec<(PathBuf, usize)> {
    let mut flips = Vec::new();
    for (path, bytes) in files_of(dir) {
        let path = path.strip_prefix(dir).expect("it is below").to_owned();
        let used = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        let is_head =
            |at: usize| at < 128 && at % 16 == 5 || (4096..4300).contains(&at) && at % 40 == 3;
        flips.extend(
            (0..used)
                .filter(|at| is_head(*at) || at % 2003 == 7)
                .map(|at| (path.clone(), at)),
        );
    }
    flips
}

#[test]
fn any_flipped_byte_is_named_by_verify_or_harmless_and_never_exported_wrong() {
    for directory in DIRECTORIES {
        let original = in_repository(directory);
        let (whole, _, _) = export(&original);
        let copy = copy_of(directory);
        let mut named_count = 0;
        for (path, at) in flips(&original) {
            let target = copy.path().join(&path);
            flip(&target, at);
            let text = path.to_str().expect("a plain path");
            let what = format!("{directory}: {text} byte {at}");
            let verdict = verify(copy.path(), text, at);
            let (lines, code, said) = export(copy.path());
            flip(&target, at);
            check_content(&whole, &lines, &what);
            let is_all_there = whole.keys().all(|name| lines.contains_key(name));
            match verdict {
                Verdict::Named => named_count += 1,
                Verdict::Torn => {
                    assert_eq!(code, 0, "{what}: {said}");
                    continue;
                }
                // Void bytes, a copy of the superblock, an index block that the log makes good.
                Verdict::Noted | Verdict::Clean => {
                    assert!(is_all_there && code == 0, "{what}: {said}");
                }
            }
            assert!(code == 3 || is_all_there, "{what}: {said}");
        }
        assert!(named_count > 40, "{directory}: {named_count}");
    }
}
