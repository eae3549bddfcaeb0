//! What every [`Disk`] promises, checked on the real one and on the simulated one.
//!
//! The simulated disk is worth something only as far as it behaves like the real one while the power is on.

use std::io::{ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::sim::SimDisk;
use super::{DIRECT_ALIGN_BYTES, Disk, DiskFile, OpenMode, RealDisk};

fn path(name: &str) -> &Path {
    Path::new(name)
}

fn create(disk: &dyn Disk, name: &str, bytes: &[u8]) -> Arc<dyn DiskFile> {
    let file = disk.open(path(name), OpenMode::CreateNew).expect("create");
    file.write_at(&[IoSlice::new(bytes)], 0).expect("write");
    file
}

fn read_all(file: &dyn DiskFile) -> Vec<u8> {
    let mut bytes = vec![0xAA; usize::try_from(file.len().expect("len")).expect("small")];
    assert_eq!(file.read_at(&mut bytes, 0).expect("read"), bytes.len());
    bytes
}

fn contents(disk: &dyn Disk, name: &str) -> Vec<u8> {
    read_all(&*disk.open(path(name), OpenMode::Read).expect("open"))
}

fn names(disk: &dyn Disk, directory: &str) -> Vec<String> {
    let names = disk.list(path(directory)).expect("list");
    names
        .iter()
        .map(|name| name.display().to_string())
        .collect()
}

#[track_caller]
fn check_kind<T>(result: std::io::Result<T>, expected: ErrorKind) {
    assert_eq!(result.err().map(|error| error.kind()), Some(expected));
}

fn written_bytes_are_read_back(disk: &dyn Disk) {
    let file = create(disk, "f", b"");
    let (first, last) = (vec![1; 700], vec![3; 900]);
    let buffers = [
        IoSlice::new(&first),
        IoSlice::new(b""),
        IoSlice::new(b"22"),
        IoSlice::new(&last),
    ];
    file.write_at(&buffers, 5).expect("write");
    let expected = [vec![0; 5], first.clone(), b"22".to_vec(), last.clone()].concat();
    assert_eq!(read_all(&*file), expected);
    assert_eq!(
        contents(disk, "f"),
        expected,
        "another handle sees the same"
    );
    file.write_at(&[IoSlice::new(b"xyz")], 511)
        .expect("overwrite");
    assert_eq!(&read_all(&*file)[509..516], [1, 1, b'x', b'y', b'z', 1, 1]);
    assert_eq!(file.len().expect("len"), expected.len() as u64);
    file.sync_data().expect("sync");
    file.sync_all().expect("sync");
    file.drop_cache().expect("drop cache");
    assert_eq!(read_all(&*file).len(), expected.len());
    for range in [0..0, 0..2, 1..u64::MAX / 2, 1 << 40..1 << 41] {
        file.drop_range(range.clone()).expect("drop a range");
        assert_eq!(read_all(&*file).len(), expected.len(), "{range:?}");
    }
}

fn many_buffers_are_one_write(disk: &dyn Disk) {
    let file = create(disk, "f", b"");
    let parts: Vec<[u8; 3]> = (0..3000_u16).map(|i| [i.to_le_bytes()[0], 7, 9]).collect();
    let buffers: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    file.write_at(&buffers, 0).expect("write");
    assert_eq!(read_all(&*file), parts.concat());
}

fn reads_end_with_the_file(disk: &dyn Disk) {
    let file = create(disk, "f", b"hello");
    let mut buffer = [0; 8];
    assert_eq!(file.read_at(&mut buffer, 2).expect("read"), 3);
    assert_eq!(&buffer, b"llo\0\0\0\0\0");
    assert_eq!(file.read_at(&mut buffer, 5).expect("read"), 0);
    assert_eq!(file.read_at(&mut buffer, 5000).expect("read"), 0);
    assert!(!file.is_empty().expect("len"));
}

fn holes_and_regrown_bytes_are_zeros(disk: &dyn Disk) {
    let file = create(disk, "f", &[9; 1500]);
    file.set_len(700).expect("cut");
    file.set_len(2000).expect("grow");
    file.write_at(&[IoSlice::new(b"end")], 5000)
        .expect("write behind the end");
    let mut expected = vec![0; 5003];
    expected[..700].fill(9);
    expected[5000..].copy_from_slice(b"end");
    assert_eq!(read_all(&*file), expected);
    file.set_len(0).expect("cut");
    assert!(file.is_empty().expect("len"));
}

fn allocation_grows_and_keeps_content(disk: &dyn Disk) {
    let file = create(disk, "f", b"content");
    match file.allocate(10_000) {
        Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported),
        Ok(()) => {
            let bytes = read_all(&*file);
            assert_eq!(bytes.len(), 10_000);
            assert_eq!(&bytes[..7], b"content");
            assert!(bytes[7..].iter().all(|byte| *byte == 0));
            file.allocate(100).expect("less than there is");
            assert_eq!(file.len().expect("len"), 10_000);
        }
    }
}

fn open_modes_mean_what_they_say(disk: &dyn Disk) {
    check_kind(disk.open(path("f"), OpenMode::Read), ErrorKind::NotFound);
    check_kind(
        disk.open(path("f"), OpenMode::ReadWrite),
        ErrorKind::NotFound,
    );
    check_kind(
        disk.open(path("no/f"), OpenMode::CreateNew),
        ErrorKind::NotFound,
    );
    create(disk, "f", b"old");
    check_kind(
        disk.open(path("f"), OpenMode::CreateNew),
        ErrorKind::AlreadyExists,
    );
    let reader = disk.open(path("f"), OpenMode::Read).expect("open");
    assert!(
        reader.write_at(&[IoSlice::new(b"x")], 0).is_err(),
        "not opened for writing"
    );
    let writer = disk.open(path("f"), OpenMode::ReadWrite).expect("open");
    writer.write_at(&[IoSlice::new(b"n")], 0).expect("write");
    assert_eq!(read_all(&*reader), b"nld");
}

fn directories_list_their_names_in_order(disk: &dyn Disk) {
    assert!(names(disk, "").is_empty());
    disk.create_dir(path("log")).expect("create");
    disk.create_dir(path("log")).expect("again");
    check_kind(disk.create_dir(path("no/way")), ErrorKind::NotFound);
    create(disk, "log/b", b"");
    create(disk, "log/a", b"");
    create(disk, "z", b"");
    assert_eq!(names(disk, ""), ["log", "z"]);
    assert_eq!(names(disk, "log"), ["a", "b"]);
    check_kind(disk.list(path("none")), ErrorKind::NotFound);
    check_kind(disk.list(path("z")), ErrorKind::NotADirectory);
    check_kind(disk.create_dir(path("z")), ErrorKind::AlreadyExists);
    disk.sync_dir(path("log")).expect("sync");
    disk.sync_dir(path("")).expect("sync");
    check_kind(disk.sync_dir(path("none")), ErrorKind::NotFound);
}

fn rename_replaces_and_handles_stay(disk: &dyn Disk) {
    let old = create(disk, "to", b"old");
    let new = create(disk, "from", b"new");
    disk.rename(path("from"), path("to")).expect("rename");
    assert_eq!(names(disk, ""), ["to"]);
    assert_eq!(contents(disk, "to"), b"new");
    assert_eq!(
        read_all(&*old),
        b"old",
        "the handle keeps the replaced file"
    );
    new.write_at(&[IoSlice::new(b"N")], 0).expect("write");
    assert_eq!(contents(disk, "to"), b"New");
    check_kind(disk.rename(path("from"), path("to")), ErrorKind::NotFound);
}

fn removed_files_live_on_in_their_handles(disk: &dyn Disk) {
    let file = create(disk, "f", b"abc");
    disk.remove(path("f")).expect("remove");
    check_kind(disk.remove(path("f")), ErrorKind::NotFound);
    check_kind(disk.open(path("f"), OpenMode::Read), ErrorKind::NotFound);
    disk.sync_dir(path("")).expect("sync");
    file.write_at(&[IoSlice::new(b"d")], 3).expect("write");
    file.sync_data().expect("sync");
    assert_eq!(read_all(&*file), b"abcd");
    create(disk, "f", b"other");
    assert_eq!(read_all(&*file), b"abcd");
}

fn the_lock_has_one_holder(disk: &dyn Disk) {
    let held = disk.lock(path("LOCK")).expect("free");
    check_kind(disk.lock(path("LOCK")), ErrorKind::WouldBlock);
    disk.lock(path("OTHER")).expect("another lock");
    drop(held);
    disk.lock(path("LOCK")).expect("free again");
}

fn temporary_files_have_no_name(disk: &dyn Disk) {
    let file = disk.temp_file().expect("temporary file");
    file.write_at(&[IoSlice::new(b"spilled")], 0)
        .expect("write");
    assert_eq!(read_all(&*file), b"spilled");
    assert!(names(disk, "").is_empty());
}

fn sealed_files_can_be_mapped(disk: &dyn Disk) {
    create(disk, "f", &[5; 9000]);
    create(disk, "empty", b"");
    let map = disk.map_sealed(path("f")).expect("map");
    assert_eq!((*map).as_ref(), [5; 9000]);
    assert!(
        (*disk.map_sealed(path("empty")).expect("map"))
            .as_ref()
            .is_empty()
    );
    check_kind(disk.map_sealed(path("none")).map(drop), ErrorKind::NotFound);
}

fn space_is_told(disk: &dyn Disk) {
    let space = disk.free_space().expect("free space");
    assert!(space.available_bytes > 0 && space.total_bytes >= space.available_bytes);
}

fn many_files_are_synced_at_once(disk: &dyn Disk) {
    disk.sync_files(&[]).expect("nothing to do");
    disk.create_dir(path("index")).expect("create");
    let paths: Vec<PathBuf> = (0..100)
        .map(|n| PathBuf::from(format!("index/{n}")))
        .collect();
    for (n, path) in paths.iter().enumerate() {
        create(disk, &path.display().to_string(), &[1; 100]);
        if n == 0 || n == 40 {
            disk.sync_files(&paths[..=n]).expect("some");
        }
    }
    disk.sync_files(&paths).expect("all, and all again");
    disk.sync_files(&paths).expect("all, and all again");
    assert_eq!(contents(disk, "index/99"), [1; 100]);
    check_kind(
        disk.sync_files(&[PathBuf::from("none")]),
        ErrorKind::NotFound,
    );
    check_kind(
        disk.sync_files(&[PathBuf::from("../up")]),
        ErrorKind::InvalidInput,
    );
}

fn paths_stay_below_the_root(disk: &dyn Disk) {
    for bad in ["../up", "/etc/hosts", "a/../../b", "./x"] {
        check_kind(
            disk.open(path(bad), OpenMode::CreateNew),
            ErrorKind::InvalidInput,
        );
        check_kind(disk.remove(path(bad)), ErrorKind::InvalidInput);
        check_kind(disk.rename(path("a"), path(bad)), ErrorKind::InvalidInput);
    }
    assert!(disk.describe(&PathBuf::from("log/x")).ends_with("log/x"));
}

/// A promise and its check, which gets an empty disk.
type Claim = (&'static str, fn(&dyn Disk));

/// A handle that has the old bytes in the cache reads what was written, and so does a new one, also after a sync.
fn writes_past_the_cache_are_read(disk: &dyn Disk) {
    let path = Path::new("direct");
    let file = disk.open(path, OpenMode::CreateNew).expect("create");
    let reader = disk.open(path, OpenMode::Read).expect("open");
    file.write_at(&[IoSlice::new(&[7; 10_000])], 0)
        .expect("write");
    let mut room = vec![0; 5 * DIRECT_ALIGN_BYTES];
    assert_eq!(reader.read_at(&mut room, 0).expect("read"), 10_000);
    // Where it is not possible, nothing is different.
    file.bypass_cache();
    let skipped = room.as_ptr().addr().next_multiple_of(DIRECT_ALIGN_BYTES) - room.as_ptr().addr();
    let blocks = &mut room[skipped..skipped + 4 * DIRECT_ALIGN_BYTES];
    blocks.fill(8);
    let (one, three) = blocks.split_at(DIRECT_ALIGN_BYTES);
    let buffers = [IoSlice::new(three), IoSlice::new(one)];
    file.write_at(&buffers, DIRECT_ALIGN_BYTES as u64)
        .expect("write");
    for _ in 0..2 {
        let late = disk.open(path, OpenMode::Read).expect("open");
        for handle in [&late, &reader] {
            let mut read = vec![0; 6 * DIRECT_ALIGN_BYTES];
            let len = handle.read_at(&mut read, 0).expect("read");
            assert_eq!(len, 5 * DIRECT_ALIGN_BYTES);
            let (old, new) = read[..len].split_at(DIRECT_ALIGN_BYTES);
            assert!(old.iter().all(|byte| *byte == 7) && new.iter().all(|byte| *byte == 8));
        }
        file.sync_data().expect("sync");
    }
    // A handle of its own reads whole blocks past the cache.
    let direct = disk.open(path, OpenMode::Read).expect("open");
    direct.bypass_cache();
    let blocks = &mut room[skipped..skipped + 4 * DIRECT_ALIGN_BYTES];
    let len = direct
        .read_at(blocks, DIRECT_ALIGN_BYTES as u64)
        .expect("read");
    assert_eq!(len, 4 * DIRECT_ALIGN_BYTES);
    assert!(blocks.iter().all(|byte| *byte == 8));
}

const CLAIMS: &[Claim] = &[
    ("written bytes are read back", written_bytes_are_read_back),
    ("many buffers are one write", many_buffers_are_one_write),
    ("reads end with the file", reads_end_with_the_file),
    (
        "holes and regrown bytes are zeros",
        holes_and_regrown_bytes_are_zeros,
    ),
    (
        "allocation grows and keeps content",
        allocation_grows_and_keeps_content,
    ),
    (
        "open modes mean what they say",
        open_modes_mean_what_they_say,
    ),
    (
        "directories list their names in order",
        directories_list_their_names_in_order,
    ),
    (
        "rename replaces and handles stay",
        rename_replaces_and_handles_stay,
    ),
    (
        "removed files live on in their handles",
        removed_files_live_on_in_their_handles,
    ),
    ("the lock has one holder", the_lock_has_one_holder),
    ("temporary files have no name", temporary_files_have_no_name),
    ("sealed files can be mapped", sealed_files_can_be_mapped),
    (
        "many files are synced at once",
        many_files_are_synced_at_once,
    ),
    ("writes past the cache", writes_past_the_cache_are_read),
    ("space is told", space_is_told),
    ("paths stay below the root", paths_stay_below_the_root),
];

#[test]
fn real_disk_keeps_every_promise() {
    for (claim, check) in CLAIMS {
        println!("real disk: {claim}");
        let place = tempfile::tempdir().expect("temp dir");
        check(&RealDisk::new(place.path().join("data")).expect("disk"));
    }
}

#[test]
fn simulated_disk_keeps_every_promise() {
    for (claim, check) in CLAIMS {
        println!("simulated disk: {claim}");
        check(&SimDisk::new(1));
        let small = SimDisk::new(1);
        small.set_capacity(Some(1 << 20));
        small.set_allocate_supported(false);
        check(&small);
    }
}

#[test]
fn a_power_cycled_disk_keeps_every_promise() {
    for (claim, check) in CLAIMS {
        println!("power cycled disk: {claim}");
        check(&SimDisk::new(1).power_cycle(&super::sim::CrashChoice::keep_everything()));
    }
}
