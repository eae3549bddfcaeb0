//! `OnCorruption::Quarantine`: whatever is damaged, the store opens, gives no wrong byte, loses no more than what was
//! hit, says so, and the next start finds a whole store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::*;
use crate::disk::{Disk, OpenMode};
use crate::storage::format::{SUPERBLOCK_FILES, segment_path};
use crate::storage::salvage::Salvage;
use crate::storage::testing::{as_recovered, numbered_payload};
use crate::storage::types::{QueueId, SegmentId, Seq};
use crate::storage::{Found, OnCorruption, QueueImage, ReadError};

/// Payloads by name.
type Payloads = BTreeMap<(QueueId, Seq), bytes::Bytes>;

/// A store of several segments: one message a commit, two queues, two incarnations.
struct History {
    rig: Rig,
    payloads: Payloads,
}

fn history(with_checkpoint: bool) -> History {
    let rig = Rig::new(Options {
        segment_size_bytes: Options::SEGMENT_SIZE_MIN_BYTES,
        ..options()
    });
    let mut payloads = Payloads::new();
    for round in 0..2_u64 {
        let (store, _) = rig.open();
        if round == 0 {
            store.create_queue(1);
            store.create_queue(2);
        }
        for number in 0..14_u64 {
            let payload = numbered_payload(100 * round + number, 900);
            store.publish(if number % 3 == 0 { &[1, 2] } else { &[1] }, &payload, 0);
            store.commit().unwrap();
            if number == 8 && round == 1 && with_checkpoint {
                store.storage.checkpoint(&store).unwrap();
            }
        }
        payloads.extend(store.payloads());
        // A later header says that all of it was durable.
        store.reserve(1, 3);
        store.commit().unwrap();
        store.reserve(2, 2);
        store.commit().unwrap();
    }
    let rig = rig.after_power_loss();
    History { rig, payloads }
}

impl History {
    fn damaged(&self, damage: impl FnOnce(&SimDisk)) -> Rig {
        let mut rig = self.rig.after_power_loss();
        damage(&rig.disk);
        rig.options.on_corruption = OnCorruption::Quarantine;
        rig
    }

    /// Opens; compares what is there with what was; gives the report and the number of messages that are not readable.
    #[track_caller]
    fn salvage(&self, rig: &Rig, what: &str) -> (Option<Salvage>, usize) {
        let refuses = {
            let mut strict = rig.after_power_loss();
            strict.options.on_corruption = OnCorruption::Refuse;
            strict.try_open().err()
        };
        let (store, recovered) = rig
            .try_open()
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let salvage = recovered.report.salvage.clone();
        assert_eq!(salvage.is_some(), refuses.is_some(), "{what}: {salvage:?}");
        let readable = self.read_all(&store, what);
        // A checkpoint later, nothing depends on the damage any longer.
        store.storage.close(&store).unwrap();
        let before = readable_images(&store);
        let mut strict = rig.after_power_loss();
        strict.options.on_corruption = OnCorruption::Refuse;
        let (again, report) = match strict.try_open() {
            Ok(opened) => opened,
            // That lasts as long as its messages are unsettled.
            Err(error) if error.to_string().contains("holds live messages") => {
                return (salvage, self.payloads.len() - readable);
            }
            Err(error) => panic!("{what}: the second start: {error}"),
        };
        assert_eq!(report.report.salvage, None, "{what}");
        assert_eq!(readable_images(&again), before, "{what}");
        (salvage, self.payloads.len() - readable)
    }

    /// Messages that can be read; each must say what was published.
    fn read_all(&self, store: &LiveStore, what: &str) -> usize {
        let mut count = 0;
        for image in store.images() {
            for entry in image.entries.iter() {
                match store.storage.read(image.id, entry.seq, entry.position) {
                    Ok(payload) => {
                        let expected = self.payloads.get(&(image.id, entry.seq));
                        assert_eq!(Some(&payload), expected, "{what}: a wrong byte");
                        count += 1;
                    }
                    Err(ReadError::Damaged { .. } | ReadError::Freed { .. }) => {}
                    Err(error) => panic!("{what}: {error}"),
                }
            }
        }
        count
    }
}

fn readable_images(store: &LiveStore) -> Vec<QueueImage> {
    as_recovered(store.images())
}

fn flip_everywhere(history: &History, files: impl Fn(&Path) -> bool) -> (usize, usize) {
    let (mut salvaged_count, mut flip_count) = (0, 0);
    for path in history.rig.disk.files() {
        if !files(&path) {
            continue;
        }
        let bytes = history.rig.disk.contents(&path).unwrap();
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
        // A stride that meets every field of a header somewhere, because no two records begin at the same remainder.
        for at in (0..=used).filter(|at| at % 97 == 0 || (at % 1024) < 130 && at % 11 == 0) {
            let bit = u8::try_from(at % 8).unwrap();
            let rig = history.damaged(|disk| disk.flip_bit(&path, at as u64, bit).unwrap());
            let what = format!("{} byte {at}", path.display());
            let (salvage, lost) = history.salvage(&rig, &what);
            flip_count += 1;
            if let Some(salvage) = salvage {
                salvaged_count += 1;
                assert!(
                    salvage.places.iter().any(|place| place.path == path),
                    "{what}: {salvage:?}"
                );
                let limit = if path.starts_with("log") {
                    3
                } else {
                    usize::MAX
                };
                assert!(lost <= limit, "{what}: {lost} messages lost: {salvage:?}");
            }
        }
    }
    (salvaged_count, flip_count)
}

#[test]
fn any_flip_in_the_log_costs_at_most_the_batch_it_hits() {
    let (salvaged, flips) = flip_everywhere(&history(false), |path| path.starts_with("log"));
    assert!(salvaged > 100, "{salvaged} of {flips}");
}

#[test]
fn any_flip_in_checkpoint_or_superblock_leaves_a_store_that_opens() {
    let is_small = |path: &Path| !path.starts_with("log") && path != Path::new("LOCK");
    let (salvaged, flips) = flip_everywhere(&history(true), is_small);
    assert!(salvaged > 20, "{salvaged} of {flips}");
}

#[test]
fn a_wrong_payload_in_the_replayed_part_costs_only_its_message() {
    let history = history(false);
    let path = segment_path(SegmentId(1));
    let rig = history.damaged(|disk| disk.flip_bit(&path, 4096 + 700, 1).unwrap());
    let (salvage, lost) = history.salvage(&rig, "a payload");
    let salvage = salvage.expect("it is noticed");
    assert_eq!(
        (salvage.lost_bytes, salvage.unreadable_message_count),
        (0, 1)
    );
    // It went to two queues, is unreadable in both, and both keep it.
    assert_eq!(lost, 2);
    assert!(!salvage.is_state_incomplete());
}

#[test]
fn each_missing_file_is_survived_and_reported() {
    let history = history(true);
    for path in history.rig.disk.files() {
        if path == Path::new("LOCK") {
            continue;
        }
        let rig = history.damaged(|disk| {
            disk.remove(&path).unwrap();
            disk.sync_dir(path.parent().unwrap()).unwrap();
        });
        let what = format!("{} removed", path.display());
        let (salvage, _) = history.salvage(&rig, &what);
        if let Some(salvage) = salvage {
            assert!(
                salvage.places.iter().any(|place| place.path == path),
                "{what}"
            );
        }
    }
}

#[test]
fn both_superblocks_are_made_again() {
    for is_missing in [false, true] {
        let history = history(true);
        let rig = history.damaged(|disk| {
            for name in SUPERBLOCK_FILES {
                if is_missing {
                    disk.remove(Path::new(name)).unwrap();
                    disk.sync_dir(Path::new("")).unwrap();
                } else {
                    disk.flip_bit(Path::new(name), 60, 1).unwrap();
                }
            }
        });
        let (salvage, lost) = history.salvage(&rig, "both superblocks");
        assert!(salvage.expect("it is noticed").is_superblock_guessed);
        assert_eq!(lost, 0);
    }
}

#[test]
fn without_its_checkpoint_the_log_that_is_there_is_replayed() {
    let history = history(true);
    let path = checkpoint_file(&history.rig.disk);
    let rig = history.damaged(|disk| disk.flip_bit(&path, 200, 0).unwrap());
    let (salvage, lost) = history.salvage(&rig, "the checkpoint");
    assert_eq!(
        salvage.expect("it is noticed").checkpoint_replaced_by,
        Some(0)
    );
    // All messages are live, so all segments are there.
    assert_eq!(lost, 0);
    let kept = rig.disk.list(Path::new("quarantine")).unwrap();
    assert!(kept.iter().any(|name| path.ends_with(name)), "{kept:?}");
}

/// A store whose queue 2 has 12 messages that were moved to a cold segment, their own segments freed; with the checkpoint
/// before they were moved.
fn moved(index_min_messages: u64) -> (Rig, LiveStore, (PathBuf, Vec<u8>)) {
    let rig = Rig::new(Options {
        index_min_messages,
        ..options()
    });
    let (store, _) = rig.open();
    store.create_queue(1);
    store.create_queue(2);
    for round in 0..12 {
        store.publish(&[1, 2], &numbered_payload(round, 500), 0);
        for number in 0..5 {
            store.publish(&[1], &numbered_payload(number, 12_000), 0);
            store.commit().unwrap();
        }
    }
    store.settle(1, 1, 72);
    rig.clock.advance_ms(60);
    store.commit().unwrap();
    store.storage.checkpoint(&store).unwrap();
    let path = checkpoint_file(&rig.disk);
    let older = (path.clone(), rig.disk.contents(&path).unwrap());
    let moved = store.storage.compact(&store, false, u64::MAX).unwrap();
    assert!(moved.moved_count >= 10, "{moved:?}");
    let freed = store.storage.checkpoint(&store).unwrap().freed;
    assert!(freed.len() >= 10, "{freed:?}");
    store.settle(2, 3, 4);
    store.publish(&[2], &numbered_payload(77, 500), 0);
    store.commit().unwrap();
    store.reserve(1, 75);
    rig.clock.advance_ms(60);
    store.commit().unwrap();
    (rig, store, older)
}

/// What can be read, by seq, of the queues that there are; all of it must be what was published.
fn readable(store: &LiveStore, published: &Payloads) -> BTreeMap<QueueId, Vec<u64>> {
    let mut seqs = BTreeMap::<QueueId, Vec<u64>>::new();
    for image in store.images() {
        for entry in image.entries.iter() {
            if let Ok(payload) = store.storage.read(image.id, entry.seq, entry.position) {
                assert_eq!(Some(&payload), published.get(&(image.id, entry.seq)));
                seqs.entry(image.id).or_default().push(entry.seq.0);
            }
        }
    }
    seqs
}

#[test]
fn without_any_checkpoint_cold_segments_are_read() {
    let (mut rig, store, _) = moved(u64::MAX);
    rig.options.on_corruption = OnCorruption::Quarantine;
    let salvaged = rig.after_power_loss();
    let path = checkpoint_file(&salvaged.disk);
    salvaged.disk.flip_bit(&path, 200, 0).unwrap();
    let (again, recovered) = salvaged.open();
    let salvage = recovered.report.salvage.expect("it is noticed");
    assert_eq!(salvage.checkpoint_replaced_by, Some(0));
    let found = readable(&again, &store.payloads());
    // What was settled by a record that is still there stays settled; all others are there.
    let all: Vec<u64> = (1..=13).filter(|seq| ![3, 4].contains(seq)).collect();
    assert_eq!(found[&QueueId(2)], all);
    // The record that settled the copies' other names is still there too.
    assert!(!found.contains_key(&QueueId(1)), "{found:?}");
    again.storage.close(&again).unwrap();
    let mut strict = salvaged.after_power_loss();
    strict.options.on_corruption = OnCorruption::Refuse;
    let (last, _) = strict.open();
    assert_eq!(readable(&last, &store.payloads()), found);
    // Damage in the cold segment costs what it hits.
    let salvaged = rig.after_power_loss();
    salvaged.disk.flip_bit(&path, 200, 0).unwrap();
    let cold = segment_path(SegmentId::FIRST_COLD);
    salvaged.disk.flip_bit(&cold, 4096 + 20, 0).unwrap();
    let (again, recovered) = salvaged.open();
    let salvage = recovered.report.salvage.expect("it is noticed");
    assert!(
        salvage.places.iter().any(|place| place.path == cold),
        "{salvage:?}"
    );
    let _ = readable(&again, &store.payloads());
}

#[test]
fn with_an_older_checkpoint_messages_that_moved_since_are_found() {
    for index_min_messages in [0, u64::MAX] {
        let (mut rig, store, (older, bytes)) = moved(index_min_messages);
        rig.options.on_corruption = OnCorruption::Quarantine;
        let salvaged = rig.after_power_loss();
        let path = checkpoint_file(&salvaged.disk);
        salvaged.disk.flip_bit(&path, 200, 0).unwrap();
        drop(salvaged.disk.open(&older, OpenMode::CreateNew).unwrap());
        salvaged.disk.write_durably(&older, 0, &bytes).unwrap();
        salvaged.disk.sync_dir(Path::new("checkpoint")).unwrap();
        let (again, recovered) = salvaged.open();
        let salvage = recovered.report.salvage.expect("it is noticed");
        assert!(salvage.checkpoint_replaced_by > Some(0), "{salvage:?}");
        let found = readable(&again, &store.payloads());
        let all: Vec<u64> = (1..=13).filter(|seq| ![3, 4].contains(seq)).collect();
        assert_eq!(found[&QueueId(2)], all, "{index_min_messages}");
        // It knows what was settled.
        assert!(!found.contains_key(&QueueId(1)), "{found:?}");
    }
}

#[test]
fn after_a_lost_batch_everything_left_counts_as_delivered() {
    let history = history(false);
    let path = segment_path(SegmentId(1));
    let rig = history.damaged(|disk| disk.flip_bit(&path, 4096 + 64 + 8, 1).unwrap());
    let (_, recovered) = rig.open();
    let salvage = recovered.report.salvage.expect("it is noticed");
    assert!(salvage.lost_batch_count > 0 && salvage.is_state_incomplete());
    for queue in recovered.queues {
        assert_eq!(queue.reserved_upto, queue.next_seq);
    }
}

#[test]
fn a_torn_tail_is_no_damage() {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    store.create_queue(1);
    store.commit().unwrap();
    store.publish(&[1], &numbered_payload(1, 100), 0);
    store.commit().unwrap();
    let end = store.storage.confirm_lsn();
    let mut torn = rig.after_power_loss();
    torn.options.on_corruption = OnCorruption::Quarantine;
    let at = u64::from(end.offset()) - 20;
    torn.disk
        .flip_bit(&segment_path(end.segment()), at, 0)
        .unwrap();
    let (_, recovered) = torn.open();
    assert_eq!(recovered.report.salvage, None);
    assert!(matches!(recovered.report.found, Found::TornTail(_)));
}

#[test]
fn a_salvage_that_is_interrupted_gives_the_same_again() {
    let history = history(true);
    let path = segment_path(SegmentId(4));
    let rig = history.damaged(|disk| {
        disk.flip_bit(&path, 5000, 0).unwrap();
        disk.flip_bit(&checkpoint_file(disk), 90, 3).unwrap();
    });
    let (store, first) = rig.open();
    drop(store);
    let (_, second) = rig.after_power_loss().open();
    assert_eq!(as_recovered(first.queues), as_recovered(second.queues));
    let kept = |salvage: Option<Salvage>| {
        let mut salvage = salvage.expect("it is noticed");
        salvage.kept_in.sort();
        salvage
    };
    assert_eq!(kept(first.report.salvage), kept(second.report.salvage));
}

fn checkpoint_file(disk: &SimDisk) -> PathBuf {
    let name = disk.list(Path::new("checkpoint")).unwrap().remove(0);
    Path::new("checkpoint").join(name)
}
