//! Segments that are made ready ahead, and files that are used again.

use std::path::PathBuf;

use super::*;
use crate::disk::sim::{Action, Effect, Operation, Trigger};
use crate::disk::{Disk, OpenMode};
use crate::storage::format::{StoreId, segment_path};
use crate::storage::segment;
use crate::storage::testing::numbered_payload;
use crate::storage::types::{QueueId, Seq};
use crate::storage::{Found, ReadError};

/// A body of which a few fill a segment of the tests.
const BODY_LEN: usize = 12_000;

/// Publishes `count` messages to queue 1 and commits each.
fn fill(store: &LiveStore, count: u64) {
    for number in 0..count {
        store.publish(&[1], &numbered_payload(number, BODY_LEN), 0);
        store.commit().unwrap();
    }
}

/// A store that went through its log once: the next segments are made of spares.
fn recycling(rig: &Rig) -> LiveStore {
    let (store, _) = rig.open();
    store.create_queue(1);
    fill(&store, 40);
    store.settle(1, 1, 40);
    store.commit().unwrap();
    let report = store.storage.checkpoint(&store).unwrap();
    assert!(report.freed.len() > 4, "{report:?}");
    assert!(store.storage.stats().spare_count > 4);
    store
}

/// Files that are no part of the log.
fn spare_files(rig: &Rig) -> u64 {
    let files = rig.disk.files().into_iter();
    let spares = files.filter(|path| path.extension().is_some_and(|e| e == "spare"));
    spares.count() as u64
}

fn is_sync(operation: &Operation) -> bool {
    matches!(
        operation.action,
        Action::SyncData | Action::SyncAll | Action::SyncDir
    )
}

fn written_segment(operation: &Operation) -> Option<&PathBuf> {
    let is_batch = matches!(operation.action, Action::Write { offset, .. } if offset > 0);
    (is_batch && operation.path.starts_with("log")).then_some(&operation.path)
}

#[test]
fn entering_a_prepared_segment_costs_only_the_sync_of_the_old_one() {
    let rig = Rig::new(options());
    let store = recycling(&rig);
    let before = rig.disk.journal().len();
    fill(&store, 30);
    let stats = store.storage.stats();
    assert!(stats.recycled_segment_count >= 4, "{stats:?}");
    assert_eq!(stats.entered_segment_count, stats.prepared_segment_count);
    let journal = rig.disk.journal();
    let mut crossings = 0;
    let mut last: Option<(usize, &PathBuf)> = None;
    for (number, operation) in journal.iter().enumerate().skip(before) {
        let Some(path) = written_segment(operation) else {
            continue;
        };
        if let Some((at, old)) = last.replace((number, path))
            && old != path
        {
            crossings += 1;
            let between: Vec<_> = journal[at..number].iter().filter(|o| is_sync(o)).collect();
            assert_eq!(between.len(), 1, "{between:?}");
            assert_eq!(between[0].path, *old);
        }
    }
    assert!(crossings >= 4, "{crossings} crossings");
}

#[test]
fn what_another_segment_left_is_no_torn_tail() {
    let rig = Rig::new(options());
    let store = recycling(&rig);
    fill(&store, 7);
    assert!(store.storage.stats().recycled_segment_count > 0);
    let again = rig.after_power_loss();
    let (reopened, recovered) = again.open();
    assert_eq!(recovered.report.found, Found::Replayed);
    assert_eq!(reopened.payloads().len(), 0, "it knows nothing yet");
    reopened.check_payloads(&store.payloads());
    assert!(
        !again
            .disk
            .files()
            .iter()
            .any(|path| path.starts_with("quarantine"))
    );
}

#[test]
fn torn_write_into_a_recycled_file_is_kept_without_what_the_file_was_before() {
    let rig = Rig::new(options());
    let store = recycling(&rig);
    fill(&store, 7);
    store.publish(&[1], &numbered_payload(9, BODY_LEN), 0);
    rig.disk.crash_at(rig.disk.operation_count() + 1);
    store.commit().unwrap_err();
    let count = rig.disk.unsynced().len();
    let torn = rig.after_crash(&CrashChoice::keep_prefix(count / 2));
    let (_, recovered) = torn.open();
    let Found::TornTail(tail) = recovered.report.found else {
        panic!("{:?}", recovered.report.found)
    };
    assert_eq!(tail.discarded_batch_count, 1);
    let whole = u64::try_from(BODY_LEN).unwrap();
    assert!(
        (whole..whole + 4096).contains(&tail.discarded_bytes),
        "{tail:?}"
    );
}

#[test]
fn spares_and_the_prepared_segment_serve_the_next_incarnation() {
    let rig = Rig::new(options());
    let store = recycling(&rig);
    let spare_count = store.storage.stats().spare_count;
    store.storage.close(&store).unwrap();
    drop(store);
    let spares = spare_files;
    let before = spares(&rig);
    assert_eq!(before, spare_count + 1, "the prepared one is a spare again");
    let (store, recovered) = rig.open();
    assert_eq!(recovered.report.found, Found::Clean);
    assert_eq!(spares(&rig), before - 1, "its first segment is one of them");
    fill(&store, 12);
    assert!(store.storage.stats().recycled_segment_count > 0);
}

/// Removing files takes long, and the log would make as many anew.
#[test]
fn a_busy_log_keeps_the_spares_that_it_takes() {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    store.create_queue(1);
    let spare_count = || store.storage.stats().spare_count;
    // What nobody waits for is synced, then the log is marked.
    let rest = || {
        for _ in 0..2 {
            rig.clock.advance_ms(2_000);
            store.commit().unwrap();
        }
    };
    // Messages of about so many segments come, and go.
    let mut next_seq = 1;
    let mut pass = |segment_count: u64| {
        let count = segment_count * 5;
        fill(&store, count);
        store.settle(1, next_seq, next_seq + count - 1);
        next_seq += count;
        store.commit().unwrap();
    };
    // How many spares that leaves when they are forgotten.
    let freed = || {
        store.storage.checkpoint(&store).unwrap();
        spare_count()
    };
    let mut round = |segment_count: u64| {
        pass(segment_count);
        freed()
    };
    let busy = round(10);
    assert!((9..=12).contains(&busy), "{busy}");
    assert_eq!(round(40), 16, "not without end");
    assert_eq!(round(2), 16, "it may be a pause");
    assert_eq!(round(2), 4);
    assert_eq!(round(40), 16);
    rest();
    assert_eq!(spare_count(), 4, "it rests");
    assert_eq!(spare_files(&rig), 4);
    // The checkpoint may also come when it rests already.
    pass(40);
    rest();
    assert_eq!(freed(), 4);
}

#[test]
fn a_smaller_limit_gives_spares_back() {
    let mut rig = Rig::new(options());
    drop(recycling(&rig));
    rig.options.spare_count_max = 1;
    let rig = rig.after_power_loss();
    let (store, _) = rig.open();
    store.storage.checkpoint(&store).unwrap();
    assert_eq!(store.storage.stats().spare_count, 1);
    store.storage.tend_space(true).unwrap();
    assert_eq!(store.storage.stats().spare_count, 0);
}

/// The header is durable before the name is: whatever a power cut takes, a segment says which one it is.
#[test]
fn a_segment_has_its_name_when_its_header_is_durable() {
    let rig = Rig::new(options());
    let store = recycling(&rig);
    for _ in 0..12 {
        fill(&store, 1);
        let disk = rig.after_power_loss().disk;
        for segment in segment::list(&disk).unwrap() {
            let file = disk.open(&segment_path(segment), OpenMode::Read).unwrap();
            let header = segment::read_header(&*file, StoreId([0x5a; 16]), segment).unwrap();
            assert!(header.is_ok(), "{segment}: {header:?}");
        }
    }
}

#[test]
fn nothing_is_kept_for_later_while_the_disk_is_low() {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    store.create_queue(1);
    fill(&store, 40);
    store.settle(1, 1, 40);
    store.commit().unwrap();
    store.storage.tend_space(true).unwrap();
    let report = store.storage.checkpoint(&store).unwrap();
    assert!(report.freed.len() > 4, "{report:?}");
    assert_eq!(store.storage.stats().spare_count, 0);
    assert_eq!(spare_files(&rig), 0);
}

#[test]
fn a_spare_that_could_not_be_used_serves_the_next_attempt() {
    let rig = Rig::new(options());
    let store = recycling(&rig);
    rig.disk.inject(Trigger::Resize, 1, Effect::NoSpace);
    fill(&store, 12);
    let stats = store.storage.stats();
    assert!(
        stats.entered_segment_count > stats.prepared_segment_count,
        "one was refused: {stats:?}"
    );
    assert_eq!(stats.spare_count, spare_files(&rig), "{stats:?}");
}

#[test]
fn a_file_system_that_cannot_allocate_is_good_enough() {
    let rig = Rig::new(options());
    rig.disk.set_allocate_supported(false);
    let store = recycling(&rig);
    fill(&store, 30);
    let stats = store.storage.stats();
    assert_eq!(stats.entered_segment_count, stats.prepared_segment_count);
    rig.after_power_loss()
        .open()
        .0
        .check_payloads(&store.payloads());
}

#[test]
fn a_store_that_hardly_writes_has_one_small_segment() {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    store.create_queue(1);
    fill(&store, 2);
    let files = rig.disk.files();
    let logs: Vec<_> = files
        .iter()
        .filter(|path| path.starts_with("log"))
        .collect();
    assert_eq!(logs.len(), 1, "{logs:?}");
}

#[test]
fn reading_a_segment_that_was_freed_and_used_again_says_so() {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    store.create_queue(1);
    fill(&store, 41);
    let position = store.images()[0].entries.iter().next().unwrap().position;
    let (queue, seq) = (QueueId(1), Seq(1));
    store.storage.read(queue, seq, position).unwrap();
    // The file is open for reading now.
    let open = rig
        .disk
        .open(&segment_path(position.lsn.segment()), OpenMode::Read)
        .unwrap();
    store.settle(1, 1, 41);
    store.commit().unwrap();
    store.storage.checkpoint(&store).unwrap();
    fill(&store, 40);
    let mut number = [0; 8];
    open.read_at(&mut number, 32).unwrap();
    let now = u64::from_le_bytes(number);
    assert!(
        now > position.lsn.segment().0,
        "the file is segment {now} now"
    );
    let read = store.storage.read(queue, seq, position);
    assert!(matches!(read, Err(ReadError::Freed { .. })), "{read:?}");
}
