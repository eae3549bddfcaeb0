//! What an index entry has room for, entry by entry; and what is told of a run beside its block.

use std::collections::BTreeSet;

use super::super::slots::{PagedIn, Policy, Slot, Slots, Status};
use super::*;
use crate::storage::image::Entries;
use crate::storage::run::FiledRun;
use crate::storage::types::{ImageEntry, SegmentId};

/// Everything that can leave leaves.
const ALL: Policy = Policy {
    closes_tail: true,
    hot_runs: 0,
    keeps_all: false,
};
/// A record of this length and more has no place in an entry: lengths have 24 bits, of 8 bytes each.
const TOO_LONG_BYTES: u32 = 1 << 27;
/// Times to live further apart than this have no place in one block.
const SPREAD_MAX_MS: u64 = (1 << 32) - 2;

/// Entries in the log, of which each is changed.
fn slots(count: u64, change: impl Fn(u64, &mut Slot)) -> Slots {
    let mut slots = Slots::new(Seq(1), 0);
    for number in 1..=count {
        let message = Arc::new(persistent("message"));
        let seq = slots.push(0, Slot::arrived(Status::Ready, message, 0));
        let lsn = Lsn::new(SegmentId(1), 4096 + u32::try_from(number).unwrap() * 64);
        slots.set_position(seq, Position { lsn, len_bytes: 64 });
        slots.update(seq, |slot| {
            slot.is_logged = true;
            change(number, slot);
        });
        slots.set_message(seq, None);
    }
    slots
}

/// Offers, writes and accepts all there is; the runs.
fn file(slots: &mut Slots, index: &mut TestIndex) -> Vec<FiledRun> {
    let offered = slots.offer(ALL, usize::MAX);
    let runs: Vec<FiledRun> = offered.into_iter().map(|run| index.write(run)).collect();
    for run in &runs {
        assert!(slots.accept(run));
        assert!(!slots.accept(run), "it has its block");
    }
    drop(slots.shed(ALL));
    slots.check();
    runs
}

/// Takes everything back in.
fn page_in(slots: &mut Slots, index: &TestIndex) {
    let (runs, _) = slots.take_loads(Seq(1), usize::MAX);
    for run in runs {
        let entries = index.read(&run).expect("it is whole");
        assert_eq!(slots.page_in(&run, &entries), PagedIn::Done);
    }
    slots.check();
}

#[test]
fn a_run_stays_for_one_entry_that_does_not_fit() {
    for last_expiry_ms in [1000 + SPREAD_MAX_MS, 1001 + SPREAD_MAX_MS] {
        let mut slots = slots(3, |number, slot| match number {
            1 => slot.expires_at_ms = 1000,
            3 => slot.expires_at_ms = last_expiry_ms,
            _ => {}
        });
        let fits = last_expiry_ms - 1000 == SPREAD_MAX_MS;
        assert_eq!(
            slots.offer(ALL, 9).len(),
            usize::from(fits),
            "{last_expiry_ms}"
        );
    }
    for delivery_count in [255, 256] {
        let mut slots = slots(3, |number, slot| {
            slot.delivery_count = if number == 2 { delivery_count } else { 0 };
        });
        let fits = delivery_count == 255;
        assert_eq!(
            slots.offer(ALL, 9).len(),
            usize::from(fits),
            "{delivery_count}"
        );
    }
    for len_bytes in [TOO_LONG_BYTES - 8, TOO_LONG_BYTES] {
        let mut slots = slots(3, |_, _| {});
        let lsn = Lsn::new(SegmentId(2), 4096);
        slots.set_position(Seq(2), Position { lsn, len_bytes });
        let fits = len_bytes < TOO_LONG_BYTES;
        assert_eq!(slots.offer(ALL, 9).len(), usize::from(fits), "{len_bytes}");
    }
}

/// The block was written before a message failed that often: it holds, but memory knows more.
#[test]
fn a_run_whose_count_grew_too_large_does_not_leave() {
    let mut slots = slots(3, |_, _| {});
    let offered = slots.offer(ALL, 9);
    let run = TestIndex::default().write(offered.into_iter().next().expect("one run"));
    assert!(slots.accept(&run));
    slots.update(Seq(2), |slot| slot.delivery_count = 256);
    assert!(slots.shed(ALL).is_empty());
    let picture = slots.picture(false);
    assert_eq!((picture.runs.len(), picture.entries.len()), (0, 3));
    let counts = picture.entries.iter().map(|entry| entry.delivery_count);
    assert!(counts.eq([0, 256, 0]));
    slots.update(Seq(2), |slot| slot.delivery_count = 255);
    assert!(!slots.shed(ALL).is_empty());
}

#[test]
fn counts_marks_and_sizes_survive_the_way_out_and_back() {
    let mut index = TestIndex::default();
    let mut slots = slots(300, |number, slot| {
        slot.delivery_count = u16::try_from(number % 4).unwrap();
        slot.is_redelivered = number % 3 == 0;
    });
    let before = slots.sums().clone();
    let known = |slots: &Slots| -> Vec<(Seq, u16, bool)> {
        let known = |(seq, slot): (Seq, &Slot)| (seq, slot.delivery_count, slot.is_redelivered);
        slots.iter().map(known).collect()
    };
    let entries = known(&slots);
    assert_eq!(file(&mut slots, &mut index).len(), 2);
    assert!(known(&slots).is_empty() && slots.filed_count() == 2);
    page_in(&mut slots, &index);
    assert_eq!(known(&slots), entries);
    let after = slots.sums();
    assert_eq!(
        (after.ready_count, after.ready_bytes),
        (before.ready_count, before.ready_bytes)
    );
    // One that leaves takes its own size with it, and no other's.
    let gone = slots.remove(Seq(7)).expect("it is there");
    assert_eq!(gone.body_bytes(), 7);
    slots.check();
}

/// What is below the bound counts as delivered anyway: a run of it needs no marks, which take memory.
#[test]
fn marks_are_kept_only_above_the_bound_of_all_that_may_have_been_delivered() {
    let mut index = TestIndex::default();
    let entry = |number: u64| ImageEntry {
        seq: Seq(number),
        position: Position {
            lsn: Lsn::new(SegmentId(1), 4096),
            len_bytes: 64,
        },
        expires_at_ms: 0,
        priority: 0,
        delivery_count: 0,
        is_redelivered: number == 2 || number == 300,
    };
    let mut slots = Slots::new(Seq(400), 0);
    let entries: Entries = (1..400).map(entry).collect();
    slots.restore(entries, Vec::new(), Seq(256));
    file(&mut slots, &mut index);
    let picture = slots.picture(false);
    let marked: Vec<bool> = picture.runs.iter().map(|run| run.marks.is_some()).collect();
    assert_eq!(marked, [false, true]);
    page_in(&mut slots, &index);
    let redelivered = slots.iter().filter(|(_, slot)| slot.is_redelivered);
    assert!(redelivered.map(|(seq, _)| seq.0).eq((1..256).chain([300])));
}

/// The first entry of a queue that has hardly any takes the memory of one.
#[test]
fn a_short_queue_takes_little_memory() {
    let slots = slots(1, |_, _| {});
    assert!(slots.heap_bytes() < 1024, "{}", slots.heap_bytes());
}

/// Compaction names segments of the log. What was spilled has a place too, in files with numbers of their own.
#[test]
fn what_is_not_in_the_log_is_not_moved() {
    let mut slots = slots(2, |number, slot| slot.is_logged = number == 1);
    let segments = BTreeSet::from([SegmentId(1)]);
    let (entries, runs) = slots.refs_in(&segments);
    assert!(entries.iter().map(|entry| entry.seq).eq([Seq(1)]) && runs.is_empty());
    let to = Position {
        lsn: Lsn::new(SegmentId::FIRST_COLD, 4096),
        len_bytes: 64,
    };
    for (seq, moves) in [(Seq(1), true), (Seq(2), false)] {
        let from = slots.get(seq).expect("it is there").position();
        slots.relocate(&[crate::storage::types::Move { seq, from, to }]);
        let now = slots.get(seq).expect("it is there").position();
        assert_eq!(now == to, moves, "{seq:?}");
    }
}

/// A restart knows one bound for all levels: whatever was given below it is never given again, in none of them, whether
/// an entry came back or not.
#[test]
fn every_level_goes_on_above_what_was_given_before_a_restart() {
    let entry = |rank: u16, count: u64| ImageEntry {
        seq: Seq::new(rank, count),
        position: Position {
            lsn: Lsn::new(SegmentId(1), 4096),
            len_bytes: 64,
        },
        expires_at_ms: 0,
        priority: 0,
        delivery_count: 0,
        is_redelivered: false,
    };
    let arrived = || Slot::arrived(Status::Ready, Arc::new(persistent("m")), 0);
    let mut slots = Slots::new(Seq(40), 3);
    let entries: Entries = [entry(1, 7), entry(3, 39)].into_iter().collect();
    slots.restore(entries, Vec::new(), Seq(0));
    for rank in 1..=3 {
        assert_eq!(slots.push(rank, arrived()), Seq::new(rank, 40));
        assert_eq!(slots.push(rank, arrived()), Seq::new(rank, 41));
    }
    slots.check();
    // Nor when the queue is emptied at once.
    slots.clear();
    assert_eq!(slots.next_seq(), Seq(42));
    for rank in 1..=3 {
        assert_eq!(slots.push(rank, arrived()), Seq::new(rank, 42));
    }
    slots.check();
}

/// Entries that came back beside new ones: what is known of some must not pass for the size of the run.
#[test]
fn a_sum_of_some_sizes_is_not_known() {
    let mut index = TestIndex::default();
    let entries = slots(3, |_, _| {}).picture(false).entries;
    let mut slots = Slots::new(Seq(4), 0);
    slots.restore(entries, Vec::new(), Seq(0));
    for _ in 0..2 {
        let message = Arc::new(persistent("message"));
        let seq = slots.push(0, Slot::arrived(Status::Ready, message, 0));
        let lsn = Lsn::new(SegmentId(2), 4096);
        slots.set_position(seq, Position { lsn, len_bytes: 64 });
        slots.update(seq, |slot| slot.is_logged = true);
        slots.set_message(seq, None);
    }
    assert_eq!(slots.sums().ready_bytes, 2 * 7);
    file(&mut slots, &mut index);
    let unknown = slots.unsized_runs(0, 9);
    assert_eq!(unknown.len(), 1, "it would never be measured");
    slots.set_content_bytes(&unknown[0], 5 * 7);
    slots.check();
    page_in(&mut slots, &index);
    assert_eq!(slots.sums().ready_bytes, 5 * 7);
}

/// A body without a byte is known to have none.
#[test]
fn an_empty_body_leaves_the_sum_of_its_run_known() {
    let mut index = TestIndex::default();
    let mut slots = slots(3, |_, _| {});
    for seq in [Seq(1), Seq(2)] {
        slots.set_body_bytes(seq, 0);
    }
    file(&mut slots, &mut index);
    assert!(slots.unsized_runs(0, 9).is_empty());
    assert_eq!(slots.sums().ready_bytes, 7);
}
