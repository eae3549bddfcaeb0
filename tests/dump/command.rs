//! Running `strata-dump`, and directories to run it on.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Where the directories of all format versions are, below the repository.
const FIXTURES: &str = "tests/fixtures";
/// The version of the format of those that are not of version 1.
const VERSIONS: [(&str, u32); 4] = [("filed", 2), ("moved", 2), ("short", 3), ("ruled", 3)];

/// Runs the tool in the repository's root.
pub(crate) fn strata_dump(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_strata-dump"))
        .args(words)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("the dump tool can be executed")
}

/// Its exit code, output and errors, as one text without the place of the repository in it.
pub(crate) fn transcript(words: &[&str]) -> String {
    let output = strata_dump(words);
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    let code = output.status.code().expect("the tool was not killed");
    let text = format!(
        "$ strata-dump {}\n{out}{err}exit code {code}\n",
        words.join(" ")
    );
    text.replace(&format!("{}/", env!("CARGO_MANIFEST_DIR")), "")
}

/// A directory that was made by an earlier release, or what is expected of it, relative to the repository.
pub(crate) fn fixture(name: &str) -> String {
    format!("{}/{name}", version_dir(name))
}

/// What the tool says about a directory.
pub(crate) fn expected_dir(name: &str) -> PathBuf {
    in_repository(&version_dir(name))
        .join("expected")
        .join(name)
}

fn version_dir(name: &str) -> String {
    let known = VERSIONS.iter().find(|(known, _)| *known == name);
    let version = known.map_or(1, |(_, version)| *version);
    format!("{FIXTURES}/v{version}")
}

/// Where the repository's file `path` is.
pub(crate) fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A copy of a directory, to be changed.
pub(crate) fn copy_of(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a temporary directory can be made");
    copy_dir(&in_repository(&fixture(name)), copy.path());
    copy
}

/// Copies files and directories.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("created");
    for entry in std::fs::read_dir(from).expect("listed") {
        let entry = entry.expect("listed");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}
