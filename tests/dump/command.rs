//! Running `strata-dump`, and directories to run it on.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Where the directories of format version 1 are, below the repository.
const FIXTURES: &str = "tests/fixtures/v1";

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

/// A directory of format version 1, relative to the repository.
pub(crate) fn fixture(name: &str) -> String {
    format!("{FIXTURES}/{name}")
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
