//! Spill files: what goes in comes out, nothing is lost by a disk that fails, and space comes back.

use bytes::Bytes;

use crate::disk::Disk;
use crate::disk::sim::{CrashChoice, Effect, SimDisk, Trigger};
use crate::storage::testing::numbered_payload;
use crate::storage::types::{Position, QueueId, Seq};
use crate::storage::{ReadBuffer, ReadError, Spill, SpillItem};
use std::sync::Arc;

const QUEUE: QueueId = QueueId(9);
/// Small files, so that tests fill many of them.
const FILE_BYTES: u64 = 16 * 1024;

struct Rig {
    disk: SimDisk,
    spill: Spill,
}

impl Rig {
    fn new() -> Self {
        let disk = SimDisk::new(7);
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        Self {
            disk,
            spill: Spill::new(shared, FILE_BYTES),
        }
    }

    /// Writes messages with these numbers as seqs, in one chunk.
    fn write(&self, numbers: std::ops::Range<u64>, len: usize) -> std::io::Result<Vec<Position>> {
        let payloads: Vec<_> = numbers.clone().map(|n| parts_of(n, len)).collect();
        let items: Vec<SpillItem<'_>> = numbers
            .zip(&payloads)
            .map(|(number, payload)| SpillItem {
                queue: QUEUE,
                seq: Seq(number),
                payload: (&payload[..]).into(),
                payload_crc: crc32fast::hash(&payload.concat()),
            })
            .collect();
        self.spill.write(&items)
    }

    #[track_caller]
    fn check(&self, numbers: std::ops::Range<u64>, len: usize, positions: &[Position]) {
        let wanted: Vec<(Seq, Position)> =
            numbers.map(Seq).zip(positions.iter().copied()).collect();
        let mut buffer = ReadBuffer::default();
        let results = self.spill.read_many(QUEUE, &wanted, &mut buffer);
        for (&(seq, position), result) in wanted.iter().zip(results) {
            assert_eq!(result.unwrap(), numbered_payload(seq.0, len), "{seq:?}");
            let alone = self.spill.read(QUEUE, seq, position).unwrap();
            assert_eq!(alone, numbered_payload(seq.0, len), "{seq:?}");
        }
    }
}

/// A payload in two parts, as large bodies come.
fn parts_of(number: u64, len: usize) -> [Bytes; 2] {
    let whole = numbered_payload(number, len);
    [whole.slice(..len / 2), whole.slice(len / 2..)]
}

#[test]
fn spilled_messages_come_back_whatever_their_size() {
    let rig = Rig::new();
    let mut written = Vec::new();
    for (chunk, len) in [0, 1, 100, 1000, 5000, 70_000].into_iter().enumerate() {
        let first = chunk as u64 * 100;
        written.push((
            first..first + 9,
            len,
            rig.write(first..first + 9, len).unwrap(),
        ));
    }
    for (numbers, len, positions) in &written {
        rig.check(numbers.clone(), *len, positions);
    }
    let len_bytes = |at: &Position| u64::from(at.len_bytes);
    let sum_bytes: u64 = written.iter().flat_map(|(.., at)| at).map(len_bytes).sum();
    assert_eq!(rig.spill.live_bytes(), sum_bytes);
    assert!(rig.write(0..0, 1).unwrap().is_empty());
}

#[test]
fn a_place_answers_only_for_the_message_that_was_put_there() {
    let rig = Rig::new();
    let positions = rig.write(1..4, 300).unwrap();
    let mut buffer = ReadBuffer::default();
    for (queue, seq, position) in [
        (QUEUE, Seq(2), positions[0]),
        (QueueId(8), Seq(1), positions[0]),
        (
            QUEUE,
            Seq(1),
            Position {
                len_bytes: positions[0].len_bytes + 8,
                ..positions[0]
            },
        ),
    ] {
        let one = rig.spill.read(queue, seq, position);
        assert!(matches!(one, Err(ReadError::Damaged { .. })), "{one:?}");
        let many = rig.spill.read_many(queue, &[(seq, position)], &mut buffer);
        assert!(matches!(many[..], [Err(ReadError::Damaged { .. })]));
    }
}

#[test]
fn space_comes_back_when_nothing_in_a_file_is_wanted() {
    let rig = Rig::new();
    let mut positions = Vec::new();
    for chunk in 0..20 {
        positions.extend(rig.write(chunk * 10..chunk * 10 + 10, 500).unwrap());
    }
    let full_bytes = rig.spill.size_bytes();
    assert!(full_bytes > 5 * FILE_BYTES);
    let (first, rest) = positions.split_at(100);
    rig.spill.release(first);
    rig.spill.tidy();
    assert!(rig.spill.size_bytes() <= full_bytes / 2 + FILE_BYTES);
    rig.check(100..200, 500, rest);
    rig.spill.release(rest);
    rig.spill.tidy();
    assert_eq!((rig.spill.size_bytes(), rig.spill.live_bytes()), (0, 0));
    let freed = rig.spill.read(QUEUE, Seq(150), positions[150]);
    assert!(matches!(freed, Err(ReadError::Freed { .. })), "{freed:?}");
}

#[test]
fn a_file_that_is_mostly_dead_is_offered_for_rewriting_once_it_is_closed() {
    let rig = Rig::new();
    let mut positions = Vec::new();
    for chunk in 0..10 {
        positions.extend(rig.write(chunk * 10..chunk * 10 + 10, 500).unwrap());
    }
    assert!(rig.spill.stragglers().is_empty(), "all is live");
    // One in nine stays.
    let is_kept = |number: &usize| number.is_multiple_of(9);
    let dead: Vec<Position> = (0..100)
        .filter(|n| !is_kept(n))
        .map(|n| positions[n])
        .collect();
    rig.spill.release(&dead);
    let before_bytes = rig.spill.size_bytes();
    let mut rounds = 0;
    loop {
        let found = rig.spill.stragglers();
        if found.is_empty() {
            break;
        }
        rounds += 1;
        assert!(rounds < 20, "every round frees a file");
        for spilled in found {
            let at = usize::try_from(spilled.seq.0).unwrap();
            if positions[at] != spilled.position || !is_kept(&at) {
                continue;
            }
            assert_eq!(spilled.queue, QUEUE);
            assert_eq!(spilled.payload, numbered_payload(spilled.seq.0, 500));
            let moved = rig.write(spilled.seq.0..spilled.seq.0 + 1, 500).unwrap()[0];
            rig.spill.release(&[positions[at]]);
            positions[at] = moved;
        }
    }
    rig.spill.tidy();
    assert!(rounds >= 2);
    assert!(rig.spill.size_bytes() < before_bytes / 2);
    for at in (0..100).filter(is_kept) {
        rig.check(at as u64..at as u64 + 1, 500, &positions[at..=at]);
    }
}

/// A disk that fails at the n-th write of a long story; nothing that was written before or after is lost or wrong.
#[test]
fn a_write_that_fails_moves_nothing_and_harms_nothing() {
    for effect in [
        Effect::Eio,
        Effect::NoSpace,
        Effect::Short { written_bytes: 700 },
        Effect::Short { written_bytes: 7 },
    ] {
        for nth in 1..=12 {
            let rig = Rig::new();
            rig.disk.inject(Trigger::Write, nth, effect);
            let mut failures = 0;
            let mut written = Vec::new();
            for chunk in 0..12 {
                let numbers = chunk * 10..chunk * 10 + 10;
                let before = (rig.spill.live_bytes(), rig.spill.size_bytes());
                let positions = rig.write(numbers.clone(), 400).or_else(|_| {
                    failures += 1;
                    assert_eq!(rig.spill.live_bytes(), before.0);
                    assert_eq!(rig.spill.size_bytes(), before.1);
                    rig.write(numbers.clone(), 400)
                });
                written.push((numbers, positions.unwrap()));
            }
            assert_eq!(failures, 1, "{effect:?} at write {nth}");
            for (numbers, positions) in &written {
                rig.check(numbers.clone(), 400, positions);
            }
        }
    }
}

#[test]
fn a_full_disk_moves_nothing_until_there_is_room() {
    let rig = Rig::new();
    let first = rig.write(0..10, 400).unwrap();
    rig.disk.set_capacity(Some(rig.spill.size_bytes()));
    assert!(rig.write(10..20, 400).is_err());
    rig.check(0..10, 400, &first);
    rig.disk.set_capacity(None);
    let second = rig.write(10..20, 400).unwrap();
    rig.check(0..10, 400, &first);
    rig.check(10..20, 400, &second);
}

#[test]
fn a_read_that_fails_says_so_and_works_again_later() {
    let rig = Rig::new();
    let positions = rig.write(0..10, 400).unwrap();
    // The large read, then the sixth of the small ones that repeat it.
    rig.disk.inject(Trigger::Read, 1, Effect::Eio);
    rig.disk.inject(Trigger::Read, 7, Effect::Eio);
    let wanted: Vec<_> = (0..10).map(Seq).zip(positions.iter().copied()).collect();
    let results = rig
        .spill
        .read_many(QUEUE, &wanted, &mut ReadBuffer::default());
    let failed: Vec<usize> = (0..10).filter(|&at| results[at].is_err()).collect();
    assert_eq!(failed, [5]);
    assert!(matches!(results[5], Err(ReadError::Io { .. })));
    rig.check(0..10, 400, &positions);
}

#[test]
fn a_file_that_cannot_be_read_is_not_rewritten_for_ever() {
    let rig = Rig::new();
    let mut positions = Vec::new();
    for chunk in 0..5 {
        positions.extend(rig.write(chunk * 10..chunk * 10 + 10, 500).unwrap());
    }
    rig.spill.release(&positions[1..25]);
    rig.disk.inject(Trigger::Read, 1, Effect::Eio);
    assert!(rig.spill.stragglers().is_empty(), "it could not be read");
    assert!(rig.spill.stragglers().is_empty(), "and is left alone");
    rig.check(0..1, 500, &positions[..1]);
}

#[test]
fn nothing_of_it_is_there_after_a_restart() {
    let rig = Rig::new();
    rig.write(0..10, 400).unwrap();
    let before = rig.disk.files();
    rig.disk.crash();
    let after = rig.disk.power_cycle(&CrashChoice::keep_nothing());
    assert_eq!(
        before,
        Vec::<std::path::PathBuf>::new(),
        "the files have no name"
    );
    assert_eq!(after.files(), before);
}
