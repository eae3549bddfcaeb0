//! The simulated disk loses and tears what a real one may, and never what was synced.

use std::collections::BTreeSet;
use std::io::{ErrorKind, IoSlice};
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::disk::{Clock, Disk, DiskFile, OpenMode};

const SECTOR: usize = 512;

fn path(name: &str) -> &Path {
    Path::new(name)
}

fn create(disk: &SimDisk, name: &str) -> Arc<dyn DiskFile> {
    disk.open(path(name), OpenMode::CreateNew).expect("create")
}

fn write(file: &dyn DiskFile, offset: u64, bytes: &[u8]) {
    file.write_at(&[IoSlice::new(bytes)], offset)
        .expect("write");
}

/// A disk whose file `f` is durable with these bytes.
fn disk_with(bytes: &[u8]) -> (SimDisk, Arc<dyn DiskFile>) {
    let disk = SimDisk::new(1);
    let file = create(&disk, "f");
    write(&*file, 0, bytes);
    file.sync_all().expect("sync");
    disk.sync_dir(path("")).expect("sync");
    assert_eq!(disk.unsynced(), []);
    (disk, file)
}

/// What `f` may hold after a crash, over all subsets of the unsynced units; `None` when it is not there.
fn outcomes(disk: &SimDisk) -> BTreeSet<Option<Vec<u8>>> {
    let choices = disk.choices(1 << EXHAUSTIVE_UNIT_COUNT_MAX, 1);
    assert_eq!(choices.len(), 1 << disk.unsynced().len(), "all subsets");
    choices
        .iter()
        .map(|choice| disk.power_cycle(choice).contents(path("f")).ok())
        .collect()
}

fn sectors(values: &[u8]) -> Vec<u8> {
    values.iter().flat_map(|value| [*value; SECTOR]).collect()
}

#[track_caller]
fn check_outcomes(disk: &SimDisk, expected: &[Option<Vec<u8>>]) {
    assert_eq!(outcomes(disk), expected.iter().cloned().collect());
}

#[test]
fn synced_data_survives_every_crash() {
    let (disk, _file) = disk_with(b"kept");
    check_outcomes(&disk, &[Some(b"kept".to_vec())]);
}

#[test]
fn unsynced_write_may_be_lost() {
    let (disk, file) = disk_with(b"old");
    write(&*file, 0, b"new");
    check_outcomes(&disk, &[Some(b"old".to_vec()), Some(b"new".to_vec())]);
}

#[test]
fn writes_are_torn_between_sectors_and_reordered() {
    let (disk, file) = disk_with(&sectors(&[1, 1]));
    write(&*file, 0, &sectors(&[2, 2]));
    let all = [[1, 1], [1, 2], [2, 1], [2, 2]].map(|values| Some(sectors(&values)));
    check_outcomes(&disk, &all);
}

#[test]
fn a_later_write_of_a_sector_contains_the_earlier_one() {
    let (disk, file) = disk_with(b"--");
    write(&*file, 0, b"a");
    write(&*file, 1, b"b");
    check_outcomes(
        &disk,
        &["--", "a-", "ab"].map(|text| Some(text.as_bytes().to_vec())),
    );
}

#[test]
fn a_length_may_survive_without_its_data_and_data_without_its_length() {
    let (disk, file) = disk_with(b"");
    write(&*file, 0, b"abc");
    check_outcomes(
        &disk,
        &[
            Some(vec![]),
            Some(b"\0\0\0".to_vec()),
            Some(b"abc".to_vec()),
        ],
    );
    let survivor = disk.power_cycle(&CrashChoice::keep_mask(0b01));
    let file = survivor.open(path("f"), OpenMode::ReadWrite).expect("open");
    file.set_len(3).expect("grow");
    assert_eq!(
        survivor.contents(path("f")).expect("read"),
        b"\0\0\0",
        "data beyond the end is gone"
    );
}

#[test]
fn stale_blocks_show_what_lay_on_the_medium() {
    let (disk, _file) = disk_with(b"");
    let other = create(&disk, "other");
    write(&*other, 0, &sectors(&[7]));
    other.sync_data().expect("sync");
    let file = disk.open(path("f"), OpenMode::ReadWrite).expect("open");
    write(&*file, 0, &sectors(&[1, 1]));
    let length_only = disk
        .unsynced()
        .iter()
        .position(|unit| matches!(unit, Unsynced::Length { path, .. } if path == Path::new("f")))
        .expect("the length is a unit");
    let choice = CrashChoice::keep_mask(1 << length_only).with_stale_blocks(1);
    let survivor = disk.power_cycle(&choice);
    assert_eq!(
        survivor.contents(path("f")).expect("read"),
        sectors(&[7, 7])
    );
}

#[test]
fn a_cut_may_be_lost() {
    let (disk, file) = disk_with(b"abcdef");
    file.set_len(2).expect("cut");
    check_outcomes(&disk, &[Some(b"ab".to_vec()), Some(b"abcdef".to_vec())]);
}

#[test]
fn a_created_name_is_lost_until_its_directory_is_synced() {
    let disk = SimDisk::new(1);
    let file = create(&disk, "f");
    write(&*file, 0, b"x");
    file.sync_all().expect("sync");
    assert_eq!(disk.unsynced(), [Unsynced::Created("f".into())]);
    check_outcomes(&disk, &[None, Some(b"x".to_vec())]);
    disk.sync_dir(path("")).expect("sync");
    check_outcomes(&disk, &[Some(b"x".to_vec())]);
}

#[test]
fn a_lost_directory_takes_its_files_along() {
    let disk = SimDisk::new(1);
    disk.create_dir(path("log")).expect("create");
    create(&disk, "log/f").sync_all().expect("sync");
    disk.sync_dir(path("log")).expect("sync");
    let survivor = disk.power_cycle(&CrashChoice::keep_nothing());
    assert!(survivor.list(path("")).expect("list").is_empty());
    disk.sync_dir(path("")).expect("sync");
    let survivor = disk.power_cycle(&CrashChoice::keep_nothing());
    assert_eq!(survivor.files(), [path("log/f")]);
}

#[test]
fn a_rename_happens_or_not_but_never_loses_both() {
    let (disk, _file) = disk_with(b"old");
    let new = create(&disk, "tmp");
    write(&*new, 0, b"new");
    new.sync_data().expect("sync");
    disk.rename(path("tmp"), path("f")).expect("rename");
    check_outcomes(&disk, &[Some(b"old".to_vec()), Some(b"new".to_vec())]);
    disk.sync_dir(path("")).expect("sync");
    check_outcomes(&disk, &[Some(b"new".to_vec())]);
    assert_eq!(disk.files(), [path("f")]);
}

#[test]
fn a_removed_file_may_come_back() {
    let (disk, file) = disk_with(b"x");
    drop(file);
    disk.remove(path("f")).expect("remove");
    check_outcomes(&disk, &[None, Some(b"x".to_vec())]);
    disk.sync_dir(path("")).expect("sync");
    check_outcomes(&disk, &[None]);
}

#[test]
fn a_failed_sync_loses_data_that_a_later_sync_does_not_bring_back() {
    let (disk, file) = disk_with(&sectors(&[1]));
    write(&*file, 0, &sectors(&[2]));
    disk.inject(Trigger::Sync, 1, Effect::Eio);
    file.sync_data().expect_err("EIO");
    assert_eq!(
        disk.contents(path("f")).expect("read"),
        sectors(&[2]),
        "the cache still shows it"
    );
    file.sync_data().expect("nothing is dirty any more");
    check_outcomes(&disk, &[Some(sectors(&[1]))]);
    file.drop_cache().expect("drop");
    assert_eq!(disk.contents(path("f")).expect("read"), sectors(&[1]));
}

/// Files 0 to 7, each with a durable name, and something in it that is not synced.
fn eight_files() -> (SimDisk, Vec<PathBuf>) {
    let disk = SimDisk::new(3);
    let paths: Vec<PathBuf> = (0..8).map(|n| PathBuf::from(format!("{n}"))).collect();
    for path in &paths {
        let file = disk.open(path, OpenMode::CreateNew).expect("create");
        write(&*file, 0, b"data");
    }
    disk.sync_dir(path("")).expect("sync");
    (disk, paths)
}

fn surviving_count(disk: &SimDisk, paths: &[PathBuf]) -> usize {
    let survivor = disk.power_cycle(&CrashChoice::keep_nothing());
    let has_data = |path: &&PathBuf| survivor.contents(path).is_ok_and(|bytes| bytes == b"data");
    paths.iter().filter(has_data).count()
}

#[test]
fn files_synced_together_are_all_durable_or_an_error_says_so() {
    let (disk, paths) = eight_files();
    disk.sync_files(&paths).expect("synced");
    assert_eq!(surviving_count(&disk, &paths), 8);
    let (disk, paths) = eight_files();
    disk.inject(Trigger::Sync, 4, Effect::Eio);
    disk.sync_files(&paths).expect_err("one failed");
    assert!(surviving_count(&disk, &paths) < 8);
    // The power may fail in between, with any of them done.
    let (disk, paths) = eight_files();
    disk.crash_at(disk.operation_count() + 5);
    let error = disk.sync_files(&paths).expect_err("it crashed");
    assert!(SimDisk::is_crash(&error));
    assert_eq!(surviving_count(&disk, &paths), 5);
}

#[test]
fn a_failed_directory_sync_loses_names() {
    let disk = SimDisk::new(1);
    create(&disk, "f");
    disk.inject(Trigger::SyncDir, 1, Effect::Eio);
    disk.sync_dir(path("")).expect_err("EIO");
    disk.sync_dir(path("")).expect("too late");
    check_outcomes(&disk, &[None]);
}

#[test]
fn planned_faults_hit_the_nth_operation_only() {
    let (disk, file) = disk_with(&sectors(&[1, 1]));
    disk.inject(
        Trigger::Write,
        2,
        Effect::Short {
            written_bytes: SECTOR,
        },
    );
    disk.inject(Trigger::Read, 1, Effect::Eio);
    disk.inject(Trigger::Create, 1, Effect::NoSpace);
    disk.inject(Trigger::Rename, 1, Effect::Eio);
    disk.inject(Trigger::Remove, 1, Effect::Eio);
    write(&*file, 0, b"x");
    file.write_at(&[IoSlice::new(&sectors(&[2, 2]))], 0)
        .expect_err("short");
    assert_eq!(disk.contents(path("f")).expect("read"), sectors(&[2, 1]));
    file.read_at(&mut [0], 0).expect_err("EIO");
    file.read_at(&mut [0], 0).expect("well again");
    let error = disk
        .open(path("g"), OpenMode::CreateNew)
        .err()
        .expect("no space");
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    disk.rename(path("f"), path("g")).expect_err("EIO");
    disk.remove(path("f")).expect_err("EIO");
    assert_eq!(disk.files(), [path("f")]);
    assert_eq!(
        disk.journal()
            .iter()
            .filter(|operation| !operation.is_ok)
            .count(),
        4
    );
}

#[test]
fn a_full_disk_takes_what_fits() {
    let (disk, file) = disk_with(&sectors(&[1]));
    disk.set_capacity(Some(3 * 512));
    let error = file
        .write_at(&[IoSlice::new(&sectors(&[2; 4]))], 0)
        .expect_err("full");
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert_eq!(disk.contents(path("f")).expect("read"), sectors(&[2; 3]));
    assert_eq!(disk.free_space().expect("space").available_bytes, 0);
    write(&*file, 0, &sectors(&[3; 3]));
    file.set_len(512).expect("cut");
    assert_eq!(disk.free_space().expect("space").available_bytes, 1024);
    assert_eq!(
        file.allocate(4 * 512).expect_err("full").kind(),
        ErrorKind::StorageFull
    );
    file.allocate(3 * 512).expect("fits");
    assert_eq!(disk.free_space().expect("space").available_bytes, 0);
    write(&*file, 0, &sectors(&[4; 3]));
    drop(file);
    disk.remove(path("f")).expect("remove");
    assert_eq!(disk.free_space().expect("space").available_bytes, 3 * 512);
}

#[test]
fn a_lying_device_keeps_nothing() {
    let (disk, file) = disk_with(b"old");
    write(&*file, 0, b"new");
    disk.inject(Trigger::Sync, 1, Effect::LostFlush);
    file.sync_data().expect("claims success");
    check_outcomes(&disk, &[Some(b"old".to_vec()), Some(b"new".to_vec())]);
    disk.set_lying(true);
    file.sync_data().expect("claims success");
    create(&disk, "g");
    disk.sync_dir(path("")).expect("claims success");
    assert_eq!(disk.unsynced().len(), 2);
    disk.set_lying(false);
    file.sync_data().expect("honest");
    disk.sync_dir(path("")).expect("honest");
    assert_eq!(disk.unsynced(), []);
}

#[test]
fn damage_reaches_the_medium_and_the_readers() {
    let (disk, _file) = disk_with(b"abc");
    disk.flip_bit(path("f"), 1, 0).expect("flip");
    disk.write_durably(path("f"), 2, b"!!").expect("write");
    assert_eq!(disk.contents(path("f")).expect("read"), b"ac!!");
    check_outcomes(&disk, &[Some(b"ac!!".to_vec())]);
}

#[test]
fn nothing_works_after_the_crash_and_the_survivor_is_independent() {
    let (disk, file) = disk_with(b"x");
    let lock = disk.lock(path("LOCK")).expect("lock");
    disk.crash_at(disk.operation_count() + 1);
    write(&*file, 0, b"y");
    let errors = [
        file.write_at(&[IoSlice::new(b"z")], 0)
            .expect_err("crashed"),
        file.read_at(&mut [0], 0).expect_err("crashed"),
        file.sync_data().expect_err("crashed"),
        disk.list(path("")).expect_err("crashed"),
        disk.open(path("f"), OpenMode::Read).err().expect("crashed"),
        disk.lock(path("LOCK")).err().expect("crashed"),
        disk.rename(path("f"), path("g")).expect_err("crashed"),
    ];
    assert!(errors.iter().all(SimDisk::is_crash), "{errors:?}");
    assert!(!SimDisk::is_crash(&ErrorKind::Other.into()));
    let survivor = disk.power_cycle(&CrashChoice::keep_everything());
    assert_eq!(survivor.contents(path("f")).expect("read"), b"y");
    assert!(
        survivor.lock(path("LOCK")).is_ok(),
        "a lock dies with its holder"
    );
    assert_eq!(
        (survivor.power_cycle_count(), survivor.is_crashed()),
        (1, false)
    );
    survivor.remove(path("f")).expect("remove");
    assert_eq!(
        disk.power_cycle(&CrashChoice::keep_nothing())
            .contents(path("f"))
            .expect("read"),
        b"x"
    );
    drop((lock, file));
}

#[test]
fn the_journal_tells_order_epoch_and_durable_names() {
    let disk = SimDisk::new(1);
    let file = create(&disk, "f");
    write(&*file, 4, b"xy");
    disk.sync_dir(path("")).expect("sync");
    write(&*file, 6, b"z");
    disk.rename(path("f"), path("g")).expect("rename");
    let journal = disk.journal();
    let told: Vec<_> = journal
        .iter()
        .map(|o| (&o.action, o.is_name_durable))
        .collect();
    let expected = [
        (&Action::Create, false),
        (
            &Action::Write {
                offset: 4,
                len_bytes: 2,
            },
            false,
        ),
        (&Action::SyncDir, true),
        (
            &Action::Write {
                offset: 6,
                len_bytes: 1,
            },
            true,
        ),
        (&Action::Rename { to: "g".into() }, true),
    ];
    assert_eq!(told, expected);
    assert!(journal.iter().all(|operation| !operation.is_inherited));
    let survivor = disk.power_cycle(&CrashChoice::keep_everything());
    let file = survivor.open(path("g"), OpenMode::ReadWrite).expect("open");
    file.set_len(1).expect("cut");
    assert!(
        survivor.journal()[0].is_inherited,
        "a file of an earlier epoch was changed"
    );
}

/// A workload without a fixed shape, driven by the seed.
fn scramble(disk: &SimDisk, seed: u64) {
    let mut random = Random::new(seed);
    let mut files = Vec::new();
    for step in 0..60 {
        match random.below(6) {
            0 => files.push(create(disk, &format!("f{step}"))),
            1 => drop(disk.sync_dir(path(""))),
            2 if !files.is_empty() => drop(files[random.index(files.len())].sync_data()),
            _ if !files.is_empty() => {
                let bytes = vec![random.next_u64().to_le_bytes()[0]; random.index(3000)];
                let file = &files[random.index(files.len())];
                drop(file.write_at(&[IoSlice::new(&bytes)], random.below(5000)));
            }
            _ => {}
        }
    }
}

fn image(disk: &SimDisk) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let read = |file: std::path::PathBuf| (file.clone(), disk.contents(&file).expect("read"));
    disk.files().into_iter().map(read).collect()
}

#[test]
fn a_seed_reproduces_faults_crashes_and_survivors() {
    let run = |seed: u64| {
        let disk = SimDisk::new(seed);
        disk.inject(Trigger::Sync, 2, Effect::Eio);
        scramble(&disk, seed);
        let choices = disk.choices(16, seed);
        assert_eq!(choices.len(), 16, "sampled");
        let images: Vec<_> = choices
            .iter()
            .map(|choice| image(&disk.power_cycle(choice)))
            .collect();
        (disk.journal(), choices, images)
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5).2, run(6).2);
    let images = run(5).2;
    let different: BTreeSet<_> = images.iter().collect();
    assert!(different.len() > 8, "samples differ from each other");
}

#[test]
fn a_second_crash_starts_from_the_first_survivor() {
    let (disk, file) = disk_with(b"one");
    write(&*file, 0, b"two");
    let survivor = disk.power_cycle(&CrashChoice::keep_everything());
    let file = survivor.open(path("f"), OpenMode::ReadWrite).expect("open");
    write(&*file, 0, b"six");
    check_outcomes(&survivor, &[Some(b"two".to_vec()), Some(b"six".to_vec())]);
}

#[test]
fn a_held_sync_promises_only_what_was_written_before_it() {
    let (disk, file) = disk_with(&sectors(&[1, 1]));
    write(&*file, 0, &sectors(&[2]));
    disk.hold_syncs();
    let syncing = {
        let file = Arc::clone(&file);
        std::thread::spawn(move || file.sync_data())
    };
    disk.wait_for_held_sync();
    write(&*file, 512, &sectors(&[3]));
    assert_eq!(disk.unsynced().len(), 2);
    disk.release_syncs();
    syncing.join().expect("no panic").expect("synced");
    check_outcomes(&disk, &[Some(sectors(&[2, 1])), Some(sectors(&[2, 3]))]);
}

#[test]
fn a_crash_wakes_a_held_sync() {
    let (disk, file) = disk_with(b"x");
    disk.hold_syncs();
    let syncing = {
        let file = Arc::clone(&file);
        std::thread::spawn(move || file.sync_data())
    };
    disk.wait_for_held_sync();
    disk.crash_at(disk.operation_count());
    assert!(SimDisk::is_crash(&file.set_len(0).expect_err("crashed")));
    assert!(SimDisk::is_crash(
        &syncing.join().expect("no panic").expect_err("crashed")
    ));
}

#[test]
fn time_passes_only_when_told() {
    let clock = SimClock::new(1_000);
    let same = clock.clone();
    clock.advance_ms(5);
    same.advance_ns(1_500_000);
    assert_eq!((clock.unix_ms(), clock.monotonic_ns()), (1_006, 6_500_000));
}
