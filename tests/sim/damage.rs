//! Damaged, foreign, odd and missing files: found out, harmless, or refused without a change; never wrong data and
//! never a panic (I9, I10, I14, I35, I36).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use stratamq::disk::sim::{CrashChoice, SimDisk};
use stratamq::disk::{Disk, OpenMode};
use stratamq::storage::format::{BATCH_MAGIC, batch_header, superblock};
use stratamq::storage::{Found, StorageError};

use super::action::{Action, Pick, publish, publish_run};
use super::live::Live;
use super::oracle::Complaint;
use super::world::{OpenError, World, small_options};

use Action::{Ack, Burst, Checkpoint, Create, Flush, Idle, Purge, Reopen};

/// A small store with a checkpoint, two incarnations, and a tail of several commits. With `is_marked` the end of the
/// tail stands in the log as durable.
fn store(is_marked: bool) -> (SimDisk, Live) {
    let mut world = World::fresh(SimDisk::new(1), small_options()).expect("a healthy disk");
    let mut script = vec![
        Burst(vec![Create(0), Create(1), publish_run(&[0, 1], 2, 30)]),
        Reopen,
        publish(&[0], 20),
        Checkpoint(vec![]),
        publish(&[1], 40),
        Ack(0, Pick::First(1)),
        Flush,
        Burst(vec![publish(&[0, 1], 20), Purge(1, Pick::First(1))]),
        publish(&[0], 30),
    ];
    if is_marked {
        script.push(Idle);
    }
    world.run(&script).expect("a healthy disk");
    world.into_dead()
}

fn copy(disk: &SimDisk) -> SimDisk {
    disk.power_cycle(&CrashChoice::keep_everything())
}

/// The number at `at`; 0 where the file ends before.
fn number(bytes: &[u8], at: usize) -> u64 {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.map_or(0, |eight| u64::from_le_bytes(*eight))
}

/// D, computed without the engine: the highest watermark that stands anywhere on the disk, in a header that does not
/// contain the byte at `except`.
fn watermark(disk: &SimDisk, except: (&Path, usize)) -> u64 {
    let mut highest = 0;
    for path in disk.files() {
        let bytes = disk.contents(&path).expect("it is listed");
        let is_hit = |at: usize, len: usize| except.0 == path && (at..at + len).contains(&except.1);
        if path.to_string_lossy().starts_with("superblock") && !is_hit(0, superblock::SIZE) {
            highest = highest.max(number(&bytes, superblock::SYNCED.offset));
        }
        if !path.starts_with("log") {
            continue;
        }
        for at in (4096..bytes.len().saturating_sub(batch_header::SIZE)).step_by(8) {
            let is_batch = bytes[at..at + 4] == BATCH_MAGIC.to_le_bytes();
            if is_batch && !is_hit(at, batch_header::SIZE) {
                highest = highest.max(number(&bytes, at + batch_header::SYNCED.offset));
            }
        }
    }
    highest
}

/// How opening a damaged store ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    /// All confirmed data is there.
    Harmless,
    /// The log ends earlier, at a place that nothing had proven durable.
    Torn,
    /// Refused.
    Refused,
    /// The start succeeds, reading the message says that it is damaged.
    Quarantined,
}

/// Opens a damaged store. Panics when the outcome is none of the allowed ones. `place` is the damaged byte.
#[track_caller]
fn judge(disk: &SimDisk, live: &Live, place: (&Path, usize), what: &str) -> Verdict {
    let proven = watermark(disk, place);
    let before = snapshot(disk);
    match World::open(disk.clone(), small_options(), live.clone()) {
        Ok(_) => Verdict::Harmless,
        Err((OpenError::Refused(error), _)) => {
            assert!(
                matches!(
                    error,
                    StorageError::Damaged { .. } | StorageError::NewerFormat { .. }
                ),
                "{what}: {error}"
            );
            // The lock file may be made; nothing else is touched.
            assert_eq!(
                snapshot(disk),
                before,
                "{what}: a refused directory was changed"
            );
            Verdict::Refused
        }
        Err((OpenError::Wrong(complaints, observed), _)) => {
            let is_only_altered = complaints
                .iter()
                .all(|complaint| matches!(complaint, Complaint::Altered(..)));
            let is_unread = observed
                .queues
                .iter()
                .flat_map(|q| &q.entries)
                .any(|e| e.body.is_none());
            if is_only_altered && is_unread {
                return Verdict::Quarantined;
            }
            // Torn: the log ends before what was confirmed. Legal only if nothing says that more was durable.
            let reopened =
                super::world::recover(&copy(disk), &small_options()).expect("it opened before");
            let report = &reopened.recovered.report;
            let cut = match &report.found {
                Found::TornTail(torn) => torn.cut_at.0,
                _ => report.replayed_to.0,
            };
            assert!(
                cut >= proven,
                "I10: {what}: cut at {cut:x}, but {proven:x} was proven durable: {complaints:?}"
            );
            let is_loss = complaints.iter().all(|complaint| {
                matches!(
                    complaint,
                    Complaint::Lost(..)
                        | Complaint::Resurrected(..)
                        | Complaint::SeqReused(..)
                        | Complaint::Meta
                        | Complaint::QueueLost(..)
                        | Complaint::NotAPrefix
                )
            });
            assert!(is_loss, "{what}: {complaints:?}");
            Verdict::Torn
        }
    }
}

/// All bytes of all files but the lock.
fn snapshot(disk: &SimDisk) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = disk
        .files()
        .into_iter()
        .filter(|path| path != Path::new("LOCK"));
    files
        .map(|path| (path.clone(), disk.contents(&path).expect("it is listed")))
        .collect()
}

/// Flips one bit of every byte of every file; counts the verdicts by directory.
fn flip_every_byte(is_marked: bool) -> BTreeMap<(String, Verdict), usize> {
    let (dead, live) = store(is_marked);
    let disk = copy(&dead);
    let mut verdicts = BTreeMap::new();
    for (path, bytes) in snapshot(&disk) {
        // Blank blocks behind the data are alike: every 64th byte of them is enough.
        let used = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        let blank = (used..bytes.len()).step_by(64);
        for at in (0..used)
            .filter(|at| *at < 256 || bytes[*at] != 0 || at % 16 == 0)
            .chain(blank)
        {
            let damaged = copy(&disk);
            let bit = (at % 8) as u8;
            damaged
                .flip_bit(&path, at as u64, bit)
                .expect("the file has the byte");
            let what = format!("bit {bit} of byte {at} of {} flipped", path.display());
            let verdict = judge(&damaged, &live, (&path, at), &what);
            let kind = path
                .iter()
                .next()
                .map(|p| p.to_string_lossy().into_owned())
                .unwrap_or_default();
            *verdicts.entry((kind, verdict)).or_insert(0) += 1;
        }
    }
    println!("marked: {is_marked}: {verdicts:?}");
    verdicts
}

#[test]
fn i10_i14_a_flipped_bit_anywhere_is_found_out_or_harmless() {
    let verdicts = flip_every_byte(true);
    // With the watermark in the log, nothing that was confirmed can pass for a torn tail.
    assert!(
        verdicts
            .keys()
            .all(|(_, verdict)| *verdict != Verdict::Torn),
        "{verdicts:?}"
    );
    assert!(
        verdicts
            .get(&("log".into(), Verdict::Refused))
            .is_some_and(|count| *count > 100)
    );
    assert!(
        verdicts
            .get(&("checkpoint".into(), Verdict::Refused))
            .is_some_and(|count| *count > 100)
    );
    // One copy of the superblock stands in for the other.
    for name in ["superblock.0", "superblock.1"] {
        assert!(
            !verdicts.contains_key(&(name.into(), Verdict::Refused)),
            "{verdicts:?}"
        );
    }
}

#[test]
fn i10_a_flipped_bit_in_an_unproven_tail_is_a_torn_tail() {
    let verdicts = flip_every_byte(false);
    assert!(
        verdicts
            .get(&("log".into(), Verdict::Torn))
            .is_some_and(|count| *count > 10)
    );
    assert!(
        verdicts
            .get(&("log".into(), Verdict::Refused))
            .is_some_and(|count| *count > 10)
    );
}

#[test]
fn i10_two_damaged_superblocks_are_refused() {
    let (dead, live) = store(true);
    let disk = copy(&dead);
    for name in ["superblock.0", "superblock.1"] {
        disk.flip_bit(Path::new(name), 40, 0).expect("it is there");
    }
    let verdict = judge(&disk, &live, (Path::new(""), 0), "both superblocks");
    assert_eq!(verdict, Verdict::Refused);
}

/// Removes a file durably, behind the engine's back.
fn remove(disk: &SimDisk, path: &Path) {
    disk.remove(path).expect("it is there");
    disk.sync_dir(path.parent().expect("no root"))
        .expect("a healthy disk");
}

#[test]
fn i10_each_missing_file_is_missed_or_harmless() {
    let (dead, live) = store(true);
    for (path, _) in snapshot(&copy(&dead)) {
        let disk = copy(&dead);
        remove(&disk, &path);
        let what = format!("{} removed", path.display());
        let verdict = judge(&disk, &live, (Path::new(""), 0), &what);
        let is_dispensable = ["superblock.0", "superblock.1", "reserve"]
            .iter()
            .any(|name| path.starts_with(name));
        let expected = if is_dispensable {
            Verdict::Harmless
        } else {
            Verdict::Refused
        };
        assert_eq!(verdict, expected, "{what}");
    }
}

#[test]
fn i36_files_of_any_length_are_read_without_panic() {
    let (dead, live) = store(true);
    for (path, bytes) in snapshot(&copy(&dead)) {
        let lengths = (0..bytes.len())
            .step_by(331)
            .chain([1, 7, 63, 127, 511, 513, 4095, 4097, 4159]);
        for len in lengths.filter(|len| *len < bytes.len()) {
            let disk = copy(&dead);
            let file = disk.open(&path, OpenMode::ReadWrite).expect("it is there");
            file.set_len(len as u64)
                .and_then(|()| file.sync_all())
                .expect("a healthy disk");
            drop(file);
            judge(
                &disk,
                &live,
                (Path::new(""), 0),
                &format!("{} cut to {len}", path.display()),
            );
        }
        // Longer, with garbage.
        for extra in [1_usize, 8, 500, 4096] {
            let disk = copy(&dead);
            let garbage: Vec<u8> = (0..extra).map(|i: usize| (i * 37 + 11) as u8).collect();
            disk.write_durably(&path, bytes.len() as u64, &garbage)
                .expect("it is there");
            judge(
                &disk,
                &live,
                (Path::new(""), 0),
                &format!("{} longer by {extra}", path.display()),
            );
        }
    }
}

#[test]
fn i09_batches_of_another_place_never_validate() {
    let (dead, live) = store(true);
    let disk = copy(&dead);
    let segments: Vec<PathBuf> = disk
        .files()
        .into_iter()
        .filter(|path| path.starts_with("log"))
        .collect();
    for from in &segments {
        let stale = disk.contents(from).expect("it is listed");
        for to in &segments {
            // The whole of another segment, as if a rename or a recycling had gone wrong.
            if from != to {
                let mixed = copy(&disk);
                mixed.write_durably(to, 0, &stale).expect("it is there");
                let what = format!("{} over {}", from.display(), to.display());
                let verdict = judge(&mixed, &live, (to, usize::MAX), &what);
                // Below the checkpoint it is noticed by whoever reads a message there.
                let is_seen = matches!(verdict, Verdict::Refused | Verdict::Quarantined);
                assert!(is_seen, "{what}: {verdict:?}");
            }
            // Its batches behind the end of this one.
            let end = disk.contents(to).expect("it is listed").len() as u64;
            let mixed = copy(&disk);
            mixed
                .write_durably(to, end, &stale[4096..])
                .expect("it is there");
            let what = format!("batches of {} behind {}", from.display(), to.display());
            assert_eq!(
                judge(&mixed, &live, (to, usize::MAX), &what),
                Verdict::Harmless,
                "{what}"
            );
        }
    }
}

/// Makes a file with this content, durably.
fn put(disk: &SimDisk, path: &str, bytes: &[u8]) {
    let path = Path::new(path);
    drop(disk.open(path, OpenMode::CreateNew).expect("a free name"));
    disk.write_durably(path, 0, bytes)
        .expect("it was just made");
    disk.sync_dir(path.parent().expect("no root"))
        .expect("a healthy disk");
}

#[test]
fn a_foreign_directory_is_refused_and_not_changed() {
    let disk = SimDisk::new(1);
    put(&disk, "thesis.txt", b"ten years of work");
    let before = snapshot(&disk);
    let error = World::fresh(disk.clone(), small_options())
        .err()
        .expect("refused");
    assert!(
        matches!(
            error,
            OpenError::Refused(StorageError::NotADataDirectory { .. })
        ),
        "{error}"
    );
    assert_eq!(snapshot(&disk), before);
    assert!(
        !disk.files().contains(&PathBuf::from("LOCK")),
        "not even a lock"
    );
}

#[test]
fn i35_a_newer_format_is_refused_and_not_changed() {
    let (dead, _) = store(true);
    for (path, bytes) in snapshot(&copy(&dead)) {
        let disk = copy(&dead);
        let crc_at = match path.iter().next().and_then(|first| first.to_str()) {
            Some("log" | "checkpoint") => 76,
            Some("superblock.0" | "superblock.1") => 124,
            _ => continue,
        };
        // min reader and a right checksum: a file of a later release.
        let mut newer = bytes.clone();
        newer[12] = 99;
        let crc = crc32fast::hash(&newer[..crc_at]);
        newer[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
        disk.write_durably(&path, 0, &newer).expect("it is there");
        let before = snapshot(&disk);
        match World::fresh(disk.clone(), small_options()).err() {
            Some(OpenError::Refused(StorageError::NewerFormat { found: 99, .. })) => {
                assert_eq!(snapshot(&disk), before, "{}", path.display());
            }
            // Segments below the checkpoint are not looked at before a message in them is read.
            None | Some(OpenError::Wrong(..)) if path.starts_with("log") => {}
            other => panic!(
                "{}: {:?}",
                path.display(),
                other.map(|error| error.to_string())
            ),
        }
    }
}
