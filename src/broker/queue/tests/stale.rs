//! Answers to loads that come when the run is not what it was when its block was asked for.
//!
//! A load that nobody waits for any more happens when a run is taken into memory by somebody else (the scrubber, on
//! behalf of damage) while a reader thread has it: from there it goes on as any run does, even back to the file.

use super::*;
use crate::broker::effects::RunLoad;
use crate::broker::queue::ImageKind;
use crate::storage::run::{FiledRun, RunSet};
use crate::storage::types::{ImageEntry, SegmentId};

/// A queue with nothing but run 0, filed: messages `1 ..= 255` by seq, as after a restart.
fn filed() -> (Rig, QueueHandle) {
    let mut rig = Rig::paging();
    let queue = rig.queue("q");
    let messages = (1..256).map(|seq| persistent(&seq.to_string()));
    let messages: Vec<Message> = messages.collect();
    rig.publish_all(std::slice::from_ref(&queue), messages);
    assert_eq!(rig.file(&queue), 1);
    assert_eq!(rig.shared.filed_run_count(), 1);
    (rig, queue)
}

/// The same, and the load of its run on its way, with nobody who waits for it.
fn asked() -> (Rig, QueueHandle, RunLoad) {
    let (mut rig, queue) = filed();
    let load = ask(&mut rig, &queue);
    (rig, queue, load)
}

/// Somebody wants the head: the load of its run, on its way.
fn ask(rig: &mut Rig, queue: &QueueHandle) -> RunLoad {
    let outbox = testing::outbox();
    let outcome = rig.turn(|turn| super::super::get(turn, queue, 7, &outbox, true));
    assert!(matches!(outcome, GetOutcome::Pending));
    let load = rig.effects.run_loads.pop().expect("it is in the file");
    assert_eq!(load.runs.len(), 1);
    // He goes away.
    lock(&queue.state).gets.clear();
    load
}

/// The run comes into memory by another way than the load that was asked for.
fn take_in(rig: &mut Rig, queue: &QueueHandle, run: &FiledRun) {
    let entries = rig.index.read(run).expect("it is whole");
    find(rig, queue, run, entries);
}

fn find(rig: &mut Rig, queue: &QueueHandle, run: &FiledRun, entries: Vec<ImageEntry>) {
    let unreadable = Unreadable {
        messages: Vec::new(),
        runs: vec![(run.clone(), entries)],
    };
    assert_eq!(rig.turn(|turn| quarantine(turn, queue, unreadable)), 0);
    queue.check_sums();
}

fn fail(rig: &mut Rig, load: RunLoad) {
    let failed = load.runs.into_iter().map(|run| {
        let reason = "rot".to_owned();
        (run, Err(FetchFailure { reason }))
    });
    let results = failed.collect();
    rig.turn(|turn| run_loaded(turn, &load.queue, results));
}

/// The unsettled messages as a checkpoint would tell, whatever is in memory.
fn entries(rig: &Rig, queue: &QueueHandle) -> Vec<ImageEntry> {
    let image = queue.image(ImageKind::Running).expect("it is durable");
    rig.index.expand(&image).iter().copied().collect()
}

fn seqs(entries: &[ImageEntry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.seq.0).collect()
}

#[test]
fn a_run_that_came_another_way_and_left_again_ignores_the_first_answer() {
    let (mut rig, queue, first) = asked();
    take_in(&mut rig, &queue, &first.runs[0]);
    assert_eq!(rig.shared.filed_run_count(), 0);
    rig.file(&queue);
    assert_eq!(rig.shared.filed_run_count(), 1, "it left again");
    // Neither the failure of a read nor its success is of interest now.
    fail(&mut rig, first.clone());
    assert_eq!(queue.stats().quarantined_count, 0);
    rig.answer(first);
    assert_eq!(rig.shared.filed_run_count(), 1);
    queue.check_sums();
    // And its head can be had, by a load of its own.
    assert_eq!(show(&rig.get(&queue).expect("the first")), "1");
}

#[test]
fn a_run_in_memory_is_not_lost_by_a_late_failure() {
    let (mut rig, queue, load) = asked();
    take_in(&mut rig, &queue, &load.runs[0]);
    fail(&mut rig, load);
    queue.check_sums();
    assert_eq!(queue.stats().quarantined_count, 0);
    assert_eq!(queue.stats().ready_count, 255);
}

#[test]
fn a_lost_run_does_not_come_back_by_a_late_answer() {
    let (mut rig, queue, first) = asked();
    let run = first.runs[0].clone();
    let of_run = rig.index.read(&run).expect("it is whole");
    take_in(&mut rig, &queue, &run);
    rig.file(&queue);
    let second = ask(&mut rig, &queue);
    fail(&mut rig, second.clone());
    assert_eq!(queue.stats().quarantined_count, 255);
    assert_eq!(rig.shared.quarantined_count(), 255);
    // It was said that these are kept aside: they are, whoever can read them now, and they are counted once.
    rig.answer(first);
    queue.check_sums();
    find(&mut rig, &queue, &run, of_run);
    fail(&mut rig, second);
    queue.check_sums();
    assert_eq!(queue.stats().quarantined_count, 255);
    assert_eq!(rig.shared.quarantined_count(), 255);
    assert_eq!(queue.stats().ready_count, 0);
    assert!(rig.get(&queue).is_none());
}

#[test]
fn a_block_that_says_where_messages_were_before_they_moved_is_not_believed() {
    let (mut rig, queue, first) = asked();
    let run = first.runs[0].clone();
    let of_run = rig.index.read(&run).expect("it is whole");
    take_in(&mut rig, &queue, &run);
    let pass = rig.copy_records(&queue, |_| true);
    rig.swap_records(&queue, &pass);
    assert_eq!(rig.file(&queue), 1, "the old block does not hold any more");
    let moved = entries(&rig, &queue);
    let is_cold = |entry: &ImageEntry| entry.position.lsn.segment() == SegmentId::FIRST_COLD;
    assert!(moved.iter().all(is_cold));
    // By whichever way the old block comes.
    find(&mut rig, &queue, &run, of_run);
    assert_eq!(entries(&rig, &queue), moved);
    let second = ask(&mut rig, &queue);
    rig.answer(first);
    assert_eq!(rig.shared.filed_run_count(), 1, "the right one comes yet");
    assert_eq!(entries(&rig, &queue), moved);
    rig.answer(second);
    assert_eq!(rig.shared.filed_run_count(), 0);
    let (resident, _) = queue.refs_in(&[SegmentId::FIRST_COLD].into());
    assert_eq!(resident, moved);
    queue.check_sums();
}

#[test]
fn what_was_settled_since_a_block_was_asked_for_is_not_revived() {
    let (mut rig, queue, first) = asked();
    take_in(&mut rig, &queue, &first.runs[0]);
    let taken: Vec<Delivery> = (0..10).filter_map(|_| rig.get(&queue)).collect();
    rig.settle(&taken[..9], SettleOutcome::Ack);
    rig.settle(&taken[9..], SettleOutcome::Requeue);
    rig.file(&queue);
    assert_eq!(rig.shared.filed_run_count(), 1);
    let second = ask(&mut rig, &queue);
    // The block is the same: what it says is told from what counts by the run as it is now.
    rig.answer(first);
    queue.check_sums();
    assert_eq!(seqs(&entries(&rig, &queue)), (10..256).collect::<Vec<_>>());
    rig.answer(second);
    queue.check_sums();
    assert_eq!(queue.stats().ready_count, 246);
    assert_eq!(show(&rig.get(&queue).expect("the tenth")), "10*");
}

#[test]
fn a_block_that_lacks_a_message_costs_all_of_its_run_and_says_so() {
    // The first, one in the middle, the last, and one too many instead.
    for missing in [1, 100, 255] {
        let (mut rig, queue, load) = asked();
        let run = load.runs[0].clone();
        let mut of_run = rig.index.read(&run).expect("it is whole");
        of_run.retain(|entry| entry.seq.0 != missing);
        let results = vec![(run, Ok(of_run))];
        rig.turn(|turn| run_loaded(turn, &queue, results));
        queue.check_sums();
        assert_eq!(queue.stats().quarantined_count, 255);
        assert_eq!(rig.shared.quarantined_count(), 255);
        assert!(rig.get(&queue).is_none());
    }
}

/// The number of entries is right, but one of them is another message's.
#[test]
fn a_block_with_a_message_in_the_place_of_another_is_not_believed() {
    let (mut rig, queue, load) = asked();
    let run = load.runs[0].clone();
    let mut of_run = rig.index.read(&run).expect("it is whole");
    let mut alien = of_run[254];
    alien.seq.0 += 1;
    of_run.push(alien);
    of_run.retain(|entry| entry.seq.0 != 100);
    rig.turn(|turn| run_loaded(turn, &queue, vec![(run, Ok(of_run))]));
    queue.check_sums();
    assert_eq!(queue.stats().quarantined_count, 255);
}

/// The reader answers to the slot that asked; once that is gone he would be asked again, for no reason.
#[test]
fn a_run_stays_in_memory_while_a_body_of_it_is_being_read() {
    let (mut rig, queue, load) = asked();
    take_in(&mut rig, &queue, &load.runs[0]);
    let outbox = testing::outbox();
    let outcome = rig.turn(|turn| super::super::get(turn, &queue, 7, &outbox, true));
    assert!(matches!(outcome, GetOutcome::Pending));
    rig.file(&queue);
    assert_eq!(rig.shared.filed_run_count(), 0);
    rig.settle_down();
    let items = testing::drain(&outbox);
    assert!(matches!(
        items.list(),
        [OutboxItem::GetReady { got: Some(_), .. }]
    ));
}

#[test]
fn a_run_that_moves_while_its_block_is_being_read_keeps_its_old_place() {
    let (mut rig, queue) = filed();
    let before = entries(&rig, &queue);
    let load = ask(&mut rig, &queue);
    let pass = rig.copy_records(&queue, |_| true);
    rig.swap_records(&queue, &pass);
    // Compaction tries again later: the reader knows the old block only.
    assert_eq!(entries(&rig, &queue), before);
    rig.answer(load);
    queue.check_sums();
    assert_eq!(rig.shared.filed_run_count(), 0, "it was waited for");
    assert_eq!(entries(&rig, &queue), before);
}

#[test]
fn a_copy_made_of_a_run_as_it_was_does_not_replace_it() {
    let (mut rig, queue) = filed();
    let pass = rig.copy_records(&queue, |_| true);
    // Meanwhile it loses a message.
    let first = rig.get(&queue).expect("the first");
    rig.settle(&[first], SettleOutcome::Ack);
    rig.file(&queue);
    assert_eq!(rig.shared.filed_run_count(), 1);
    let before = entries(&rig, &queue);
    rig.swap_records(&queue, &pass);
    assert_eq!(entries(&rig, &queue), before);
    queue.check_sums();
    // Nor does a copy in which some are missing.
    let image = queue.image(ImageKind::Running).expect("it is durable");
    let old = &image.runs[0];
    let mut live = old.live.set();
    live.remove_range(0, 99);
    let fewer = FiledRun {
        live: live.into(),
        ..old.clone()
    };
    queue.refile(old, fewer);
    queue.check_sums();
    assert_eq!(entries(&rig, &queue), before);
}

#[test]
fn a_block_written_of_a_run_that_changed_meanwhile_is_not_taken() {
    let mut rig = Rig::paging();
    let queue = rig.queue("q");
    rig.publish_texts(&queue, "abc");
    let offer = |rig: &Rig| {
        let mut offered = queue.unfiled_runs(&rig.shared, 8);
        assert_eq!(offered.len(), 1);
        offered.swap_remove(0)
    };
    // Its messages moved.
    let of_run = offer(&rig);
    let run = rig.index.write(of_run);
    let pass = rig.copy_records(&queue, |_| true);
    rig.swap_records(&queue, &pass);
    let moved = entries(&rig, &queue);
    queue.filed(&rig.shared, &[run]);
    assert_eq!(rig.shared.filed_run_count(), 0);
    assert_eq!(entries(&rig, &queue), moved);
    // One joined it.
    let of_run = offer(&rig);
    let run = rig.index.write(of_run);
    rig.publish_texts(&queue, "d");
    queue.filed(&rig.shared, std::slice::from_ref(&run));
    assert_eq!(rig.shared.filed_run_count(), 0);
    assert_eq!(seqs(&entries(&rig, &queue)), [1, 2, 3, 4]);
    // It was never offered as it is now: whatever block is shown for it, none is taken.
    let mut all = RunSet::default();
    (1..=4).for_each(|index| all.insert(index));
    let guessed = FiledRun {
        live: all.into(),
        ..run
    };
    queue.filed(&rig.shared, &[guessed]);
    assert_eq!(rig.shared.filed_run_count(), 0);
    // It ended.
    let of_run = offer(&rig);
    let run = rig.index.write(of_run);
    rig.turn(|turn| purge(turn, &queue));
    queue.filed(&rig.shared, &[run]);
    queue.check_sums();
    rig.publish_texts(&queue, "e");
    assert_eq!(seqs(&entries(&rig, &queue)), [5]);
    assert_eq!(rig.file(&queue), 1);
    assert_eq!(rig.take_all(&queue), ["e"]);
    // The same when its messages were acked one by one.
    rig.publish_texts(&queue, "g");
    let of_run = offer(&rig);
    let run = rig.index.write(of_run);
    let taken = rig.get(&queue).expect("the message");
    rig.settle(&[taken], SettleOutcome::Ack);
    queue.filed(&rig.shared, &[run]);
    queue.check_sums();
    rig.publish_texts(&queue, "h");
    assert_eq!(rig.take_all(&queue), ["h"]);
    // And a queue that is deleted takes nothing and offers nothing.
    rig.publish_texts(&queue, "f");
    let of_run = offer(&rig);
    let run = rig.index.write(of_run);
    rig.turn(|turn| delete(turn, &queue, DeleteCondition::default(), || {}))
        .expect("it can be deleted");
    queue.filed(&rig.shared, &[run]);
    assert!(queue.unfiled_runs(&rig.shared, 8).is_empty());
    assert_eq!(rig.shared.entries_bytes(), 0);
    assert_eq!(rig.shared.filed_run_count(), 0);
}
