//! What `verify` says about copies of the clean directory in which something was changed.

use std::path::Path;

use crate::command::{copy_of, strata_dump};

/// Changes a file of a copy and compares `verify`'s exit code; `expected` stands in what it says.
#[track_caller]
fn check(path: &str, change: impl FnOnce(&Path), code: i32, expected: &str) {
    let copy = copy_of("clean");
    change(&copy.path().join(path));
    let output = strata_dump(&["verify", copy.path().to_str().expect("a plain path")]);
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert_eq!(output.status.code(), Some(code), "{path}: {said}");
    assert!(said.contains(expected), "{path}: {said}");
}

fn flip(offset: usize) -> impl FnOnce(&Path) {
    move |path| {
        let mut bytes = std::fs::read(path).expect("read");
        bytes[offset] ^= 4;
        std::fs::write(path, bytes).expect("written");
    }
}

fn cut(len_bytes: usize) -> impl FnOnce(&Path) {
    move |path| {
        let bytes = std::fs::read(path).expect("read");
        std::fs::write(path, &bytes[..len_bytes]).expect("written");
    }
}

fn remove(path: &Path) {
    std::fs::remove_file(path).expect("removed");
}

const CHECKPOINT: &str = "checkpoint/0000000000000003.checkpoint";
const OLD: &str = "log/000000000001.segment";
const LAST: &str = "log/000000000005.segment";

#[test]
fn one_copy_of_the_superblock_is_enough() {
    check("superblock.0", flip(40), 0, "superblock.0 is not whole");
    check("superblock.1", remove, 0, "superblock.1 is missing");
}

#[test]
fn directory_without_a_whole_superblock_is_damaged() {
    let both = |path: &Path| {
        flip(40)(path);
        flip(40)(&path.with_extension("1"));
    };
    check(
        "superblock.0",
        both,
        3,
        "neither copy of the superblock is whole",
    );
}

#[test]
fn checkpoint_is_checked_from_its_first_byte_to_its_last() {
    for offset in [0, 100, 1500, 3439] {
        check(CHECKPOINT, flip(offset), 3, CHECKPOINT);
    }
    check(CHECKPOINT, cut(3000), 3, CHECKPOINT);
    check(CHECKPOINT, remove, 3, "missing");
}

#[test]
fn segment_with_live_messages_must_be_there() {
    check(OLD, remove, 3, "000000000001.segment at offset 0");
    check(LAST, remove, 3, "000000000005.segment at offset 0");
    check(OLD, flip(20), 3, "000000000001.segment at offset 0");
}

#[test]
fn damaged_live_message_is_named_with_its_queue() {
    check(OLD, flip(27_696 + 500), 3, "message 8 of queue 1");
    check(OLD, cut(30_000), 3, "message 8 of queue 1");
}

#[test]
fn damage_where_no_live_message_lies_is_found_too() {
    // In the OPEN record, in acked messages, and in the last batch of a segment whose successor was freed.
    for offset in [4170, 10_000, 54_426, 64_000] {
        check(OLD, flip(offset), 3, OLD);
    }
    check(LAST, flip(6100), 3, LAST);
}

/// A stream of numbers that is the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % end
    }
}

#[test]
fn no_bytes_make_any_command_crash() {
    let mut numbers = Numbers(5);
    let files = [
        "superblock.0",
        CHECKPOINT,
        OLD,
        "log/000000000003.segment",
        LAST,
    ];
    let commands = [
        "verify",
        "segments",
        "records",
        "batches",
        "queues",
        "topology",
        "checkpoint",
        "superblock",
    ];
    for round in 0..40 {
        let copy = copy_of("clean");
        let file = files[numbers.below(files.len())];
        let path = copy.path().join(file);
        let mut bytes = std::fs::read(&path).expect("read");
        let at = numbers.below(bytes.len());
        let end = bytes.len().min(at + 1 + numbers.below(64));
        bytes[at..end]
            .iter_mut()
            .for_each(|byte| *byte = u8::try_from(numbers.below(256)).expect("a byte"));
        std::fs::write(&path, &bytes).expect("written");
        for command in ["verify", commands[numbers.below(commands.len())]] {
            let output = strata_dump(&[command, copy.path().to_str().expect("a plain path")]);
            let is_sane = matches!(output.status.code(), Some(0 | 1 | 3));
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(
                is_sane,
                "round {round}, {command}, {file} at {at}: {errors}"
            );
        }
    }
}
