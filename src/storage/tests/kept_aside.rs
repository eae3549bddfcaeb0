//! What a start leaves out of the log is kept for people, byte for byte; and a copy that cannot be made stops nothing.

use std::path::{Path, PathBuf};

use super::*;
use crate::disk::sim::{Effect, Trigger};
use crate::storage::file::temp_path;
use crate::storage::format::{QUARANTINE_DIR, segment_path};
use crate::storage::quarantine::keep_damaged;
use crate::storage::salvage::Salvage;
use crate::storage::testing::{as_recovered, numbered_payload};
use crate::storage::types::SegmentId;
use crate::storage::{Found, TornTail};

const CHECKPOINT: &str = "checkpoint/0000000000000007.checkpoint";

/// A disk with these files, all of it durable.
fn disk_with(files: &[(&str, &[u8])]) -> SimDisk {
    let disk = SimDisk::new(1);
    for dir in ["log", "checkpoint", QUARANTINE_DIR] {
        disk.create_dir(Path::new(dir)).unwrap();
    }
    for (path, bytes) in files {
        let file = disk.open(Path::new(path), OpenMode::CreateNew).unwrap();
        file.write_at(&[std::io::IoSlice::new(bytes)], 0).unwrap();
        file.sync_all().unwrap();
    }
    for dir in ["", "log", "checkpoint"] {
        disk.sync_dir(Path::new(dir)).unwrap();
    }
    disk
}

/// Bytes of which no stretch is like another.
fn bytes(len: usize) -> Vec<u8> {
    let words = (0..).flat_map(|word: u32| word.wrapping_mul(0x9e37_79b1).to_le_bytes());
    words.take(len).collect()
}

/// Files in the quarantine with what they hold, sorted.
fn kept(disk: &SimDisk) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = disk.files();
    files.retain(|path| path.starts_with(QUARANTINE_DIR));
    files.sort();
    let read = |path: PathBuf| {
        let contents = disk.contents(&path).unwrap();
        (path, contents)
    };
    files.into_iter().map(read).collect()
}

fn quarantined(name: &str) -> PathBuf {
    Path::new(QUARANTINE_DIR).join(name)
}

#[test]
fn damaged_places_are_copied_exactly_and_other_files_whole() {
    // Longer than what is copied at once, more than twice.
    let (log, checkpoint, superblock) = (bytes(2_600_000), bytes(5_000), bytes(4096));
    let first = segment_path(SegmentId(1));
    let second = segment_path(SegmentId(2));
    let disk = disk_with(&[
        (first.to_str().unwrap(), &log),
        (CHECKPOINT, &checkpoint),
        ("superblock.1", &superblock),
    ]);
    let mut salvage = Salvage::default();
    salvage.note(first.clone(), 4096, 100, "a record");
    salvage.note(first.clone(), 8192, 2_500_000, "a batch");
    salvage.note(first.clone(), 9000, 0, "of unknown length");
    salvage.note(first, 2_599_990, 100, "beyond the end");
    salvage.note(second, 4096, 100, "missing");
    salvage.note(CHECKPOINT.into(), 90, 4, "a field");
    salvage.note("superblock.1".into(), 0, 0, "not whole");
    keep_damaged(&disk, &mut salvage);
    let expected = [
        ("0000000000000007.checkpoint", &checkpoint[..]),
        ("000000000001-00001000.damaged", &log[4096..4196]),
        ("000000000001-00002000.damaged", &log[8192..2_508_192]),
        ("000000000001-0027ac36.damaged", &log[2_599_990..]),
        ("superblock.1.damaged", &superblock[..]),
    ];
    let expected = expected.map(|(name, bytes)| (quarantined(name), bytes.to_vec()));
    // They are durable: what they were taken from may be gone after the start.
    for disk in [&disk, &disk.power_cycle(&CrashChoice::keep_nothing())] {
        let found = kept(disk);
        let names: Vec<_> = found
            .iter()
            .map(|(path, bytes)| (path, bytes.len()))
            .collect();
        assert!(found == expected, "{names:?}");
    }
    let mut listed: Vec<PathBuf> = salvage.kept_in.iter().map(PathBuf::from).collect();
    listed.sort();
    assert!(listed.iter().eq(expected.iter().map(|(path, _)| path)));
}

/// The operations that a copy needs, each of them refused.
#[test]
fn a_copy_that_fails_leaves_nothing_behind_and_the_next_one_is_made() {
    for trigger in [
        Trigger::Create,
        Trigger::Read,
        Trigger::Write,
        Trigger::Sync,
    ] {
        let path = segment_path(SegmentId(1));
        let log = bytes(10_000);
        let disk = disk_with(&[(path.to_str().unwrap(), &log)]);
        let mut salvage = Salvage::default();
        salvage.note(path.clone(), 5000, 100, "a record");
        salvage.note(path, 6000, 100, "a record");
        // The first operation of the kind; the directory is there already.
        let nth = if trigger == Trigger::Create { 2 } else { 1 };
        disk.inject(trigger, nth, Effect::NoSpace);
        keep_damaged(&disk, &mut salvage);
        let expected = quarantined("000000000001-00001770.damaged");
        assert_eq!(
            kept(&disk),
            [(expected, log[6000..6100].to_vec())],
            "{trigger:?}"
        );
        assert_eq!(salvage.kept_in.len(), 1, "{trigger:?}");
    }
}

/// A store in which three commits were written and never synced, the first of them rotten since.
fn torn() -> (Rig, Vec<u8>) {
    let rig = Rig::new(with_policy(FsyncPolicy::Never));
    let (store, _) = rig.open();
    store.create_queue(1);
    store.commit().unwrap();
    store.storage.checkpoint(&store).unwrap();
    let start = store.storage.confirm_lsn();
    for count in [1, 2, 3] {
        for number in 0..count {
            store.publish(&[1], &numbered_payload(number, 500), 0);
        }
        store.commit().unwrap();
    }
    let end = store.storage.confirm_lsn();
    assert_eq!(end.segment(), start.segment());
    drop(store);
    let rig = rig.after_crash(&CrashChoice::keep_everything());
    let path = segment_path(start.segment());
    rig.disk
        .flip_bit(&path, u64::from(start.offset()) + 300, 1)
        .unwrap();
    let contents = rig.disk.contents(&path).unwrap();
    let range = start.offset() as usize..end.offset() as usize;
    (rig, contents[range].to_vec())
}

fn torn_tail(found: &Found) -> &TornTail {
    match found {
        Found::TornTail(torn) => torn,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_torn_tail_is_counted_and_copied() {
    let (rig, cut) = torn();
    let (_store, recovered) = rig.open();
    let torn = torn_tail(&recovered.report.found);
    assert_eq!(
        (torn.discarded_batch_count, torn.discarded_record_count),
        (3, 6)
    );
    let len = usize::try_from(torn.discarded_bytes).unwrap();
    assert_eq!(torn.kept_in.len(), 1);
    let kept = rig.disk.contents(Path::new(&torn.kept_in[0])).unwrap();
    assert_eq!(kept.len(), len);
    // Behind the last byte that means something, a batch is filled up with zeros.
    assert!(cut.starts_with(&kept) && cut[len..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_start_goes_on_without_a_copy() {
    let (rig, _) = torn();
    let (_, whole) = rig.after_power_loss().open();
    let kept_in = &torn_tail(&whole.report.found).kept_in;
    // Somebody's directory stands where the copy would be written.
    let rig = rig.after_power_loss();
    let in_the_way = temp_path(Path::new(&kept_in[0]));
    rig.disk.create_dir(&in_the_way).unwrap();
    let (store, recovered) = rig.open();
    assert!(torn_tail(&recovered.report.found).kept_in.is_empty());
    assert_eq!(as_recovered(recovered.queues), as_recovered(whole.queues));
    store.publish(&[1], &numbered_payload(9, 30), 0);
    store.commit().unwrap();
}
