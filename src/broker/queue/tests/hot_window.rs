//! How much of a deep queue is in memory: what stays for whom, what is loaded ahead, and what the sums say at once.

use super::dying::dead_letter_to;
use super::*;
use crate::broker::queue::ImageKind;
use crate::broker::queue::slots::Head;
use crate::storage::image::QueueImage;
use crate::storage::run::{FiledRun, RUN_SEQS};
use crate::storage::types::{ImageEntry, SegmentId};

/// Entries of one run in memory.
const RUN_BYTES: u64 = 256 * 40;
/// Complete runs of [`deep`].
const RUNS: u64 = 40;

fn limits(min_messages: u64, entries_max_bytes: u64) -> IndexLimits {
    IndexLimits {
        min_messages,
        entries_max_bytes,
    }
}

fn rig_with(limits: IndexLimits, resident_max_bytes: u64) -> Rig {
    let mut rig = Rig::new();
    let journal = Arc::<FakeJournal>::clone(&rig.journal);
    rig.shared = QueueShared::new(journal, resident_max_bytes).with_index_limits(limits);
    rig
}

/// A queue of 40 complete runs and one message, all of it in memory.
fn deep(rig: &mut Rig, settings: QueueArguments) -> QueueHandle {
    let queue = rig.queue_with("q", settings);
    let messages = (1..=RUNS * RUN_SEQS).map(|seq| persistent(&seq.to_string()));
    rig.publish_all(std::slice::from_ref(&queue), messages.collect());
    rig.settle_down();
    queue
}

/// Runs that stay in memory, when entries may take so much, with a consumer or without one.
fn stays(entries_max_bytes: u64, is_taken_from: bool, settings: QueueArguments) -> u64 {
    let mut rig = rig_with(limits(1, entries_max_bytes), 1 << 30);
    let queue = deep(&mut rig, settings);
    let consumer = is_taken_from.then(|| rig.consume(&queue, |spec| spec.prefetch = 1));
    rig.settle_down();
    rig.file(&queue);
    queue.check_sums();
    drop(consumer);
    RUNS - rig.shared.filed_run_count()
}

#[test]
fn what_stays_in_memory_depends_on_who_takes_and_how_much_there_is() {
    let plain = QueueArguments::default;
    let all_bytes = RUNS * RUN_BYTES;
    for (entries_max_bytes, expected) in [
        (all_bytes * 5, RUNS),
        (all_bytes * 3, 32),
        (all_bytes / 2, 2),
    ] {
        let found = stays(entries_max_bytes, true, plain());
        assert_eq!(found, expected, "of {entries_max_bytes}");
    }
    // Nobody wants them, however much room there is.
    assert_eq!(stays(all_bytes * 5, false, plain()), 0);
    // The timer stands at the head.
    let expiring = QueueArguments {
        message_ttl_ms: Some(3_600_000),
        ..plain()
    };
    assert_eq!(stays(all_bytes * 5, false, expiring), 1);
    // Its head is dropped when the next ones come.
    let limited = QueueArguments {
        max_length: Some(1 << 20),
        ..plain()
    };
    assert_eq!(stays(all_bytes * 5, false, limited), 2);
}

/// Runs take their contents with them.
#[test]
fn less_stays_for_a_consumer_when_messages_take_too_much_memory() {
    let mut rig = rig_with(limits(1, 1 << 30), 100_000);
    let queue = deep(&mut rig, QueueArguments::default());
    let other = rig.queue("other");
    rig.publish(&other, transient(&"x".repeat(200_000)));
    let _consumer = rig.consume(&queue, |spec| spec.prefetch = 1);
    rig.settle_down();
    rig.file(&queue);
    assert_eq!(RUNS - rig.shared.filed_run_count(), 32);
}

#[test]
fn what_was_filed_has_left_memory_at_once() {
    let mut rig = rig_with(limits(0, 0), 1 << 30);
    let queue = rig.queue("q");
    let messages = (0..1000).map(|number| persistent(&number.to_string()));
    rig.publish_all(std::slice::from_ref(&queue), messages.collect());
    // No more at once than were asked for, the first ones first.
    let offered = queue.unfiled_runs(&rig.shared, 3);
    let numbers: Vec<u64> = offered
        .iter()
        .map(|run| FiledRun::number_of(run[0].seq))
        .collect();
    assert_eq!(numbers, [0, 1, 2]);
    let before = rig.shared.entries_bytes();
    let runs: Vec<FiledRun> = offered
        .into_iter()
        .map(|run| rig.index.write(run))
        .collect();
    queue.filed(&rig.shared, &runs);
    assert_eq!(rig.shared.filed_run_count(), 3);
    assert_eq!(before - rig.shared.entries_bytes(), (255 + 256 + 256) * 40);
}

#[test]
fn runs_at_both_ends_are_offered_in_order() {
    let mut rig = rig_with(limits(0, 0), 1 << 30);
    let queue = deep(&mut rig, QueueArguments::default());
    rig.file(&queue);
    let first = rig.get(&queue).expect("the first");
    let messages = (0..800).map(|number| persistent(&number.to_string()));
    rig.publish_all(std::slice::from_ref(&queue), messages.collect());
    // Of the run at the head the block does not hold any more: its records moved.
    let pass = rig.copy_records(&queue, |seq| seq.0 < RUN_SEQS);
    rig.swap_records(&queue, &pass);
    let offered = queue.unfiled_runs(&rig.shared, 64);
    let numbers: Vec<u64> = offered
        .iter()
        .map(|run| FiledRun::number_of(run[0].seq))
        .collect();
    assert_eq!(numbers, [0, 41, 42, 43, 44]);
    rig.settle(&[first], SettleOutcome::Requeue);
}

#[test]
fn the_last_word_of_a_deleted_queue_about_its_entries_is_exact() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    let messages = (0..299).map(|number| persistent(&number.to_string()));
    rig.publish_all(std::slice::from_ref(&queue), messages.collect());
    let taken: Vec<Delivery> = (0..255).filter_map(|_| rig.get(&queue)).collect();
    rig.settle(&taken, SettleOutcome::Ack);
    assert_eq!(rig.shared.entries_bytes(), 44 * 40);
    rig.turn(|turn| delete(turn, &queue, DeleteCondition::default(), || {}))
        .expect("it can be deleted");
    assert_eq!(rig.shared.entries_bytes(), 0);
}

#[test]
fn filing_is_wanted_for_what_came_since_it_was_done() {
    // Worth a look are 100,000 bytes, which 2,500 entries take. These cannot leave.
    let mut rig = rig_with(limits(1, 1_600_000), 1 << 30);
    let publish = |rig: &mut Rig, name: &str| {
        let queue = rig.queue(name);
        let messages = (0..3000).map(|_| transient("t"));
        rig.publish_all(std::slice::from_ref(&queue), messages.collect());
        queue
    };
    let first = publish(&mut rig, "first");
    assert!(rig.shared.wants_filing());
    rig.file(&first);
    rig.shared.note_filing();
    assert!(!rig.shared.wants_filing(), "nothing came");
    let _second = publish(&mut rig, "second");
    assert!(rig.shared.wants_filing());
    rig.shared.note_filing();
    rig.turn(|turn| purge(turn, &first));
    assert!(!rig.shared.wants_filing(), "some left");
    let _third = publish(&mut rig, "third");
    assert!(rig.shared.wants_filing(), "as much came as left before");
}

/// A queue of filed runs, of which each has one message, the first one of its seqs.
fn sparse(
    rig: &mut Rig,
    numbers: impl Iterator<Item = u64>,
    settings: QueueArguments,
) -> QueueHandle {
    let entry = |number: u64| ImageEntry {
        seq: Seq(number * RUN_SEQS),
        position: Position {
            lsn: Lsn::new(SegmentId(1), 4096),
            len_bytes: 64,
        },
        expires_at_ms: 0,
        priority: 0,
        delivery_count: 0,
        is_redelivered: false,
    };
    let spec = rig.spec("q");
    let mut image = QueueImage::new(spec.id, Lsn(0));
    image.runs = numbers
        .map(|number| rig.index.write(vec![entry(number)]))
        .collect();
    image.next_seq = Seq(1 << 40);
    rig.turn(|turn| Queue::restore(spec, settings.shared(), image, turn))
}

/// The numbers of the runs that somebody asks for who waits for the head, or who took it.
fn asked(rig: &mut Rig, queue: &QueueHandle, seq: u64, waits: bool) -> Vec<u64> {
    rig.turn(|turn| {
        let mut state = lock(&queue.state);
        if waits {
            state.load(queue, turn, Seq(seq));
        } else {
            state.load_ahead(queue, turn, Seq(seq));
        }
    });
    let loads = &rig.effects.run_loads;
    loads
        .iter()
        .flat_map(|load| load.runs.iter().map(|run| run.number))
        .collect()
}

/// Readers answer.
fn answer_all(rig: &mut Rig) {
    for load in std::mem::take(&mut rig.effects.run_loads) {
        rig.answer(load);
    }
}

#[test]
fn the_window_doubles_while_a_backlog_is_drained() {
    for (entries_max_bytes, expected) in [
        (1 << 30, [2, 4, 8, 16, 32, 32, 32]),
        // Too much is in memory: no more than what is needed.
        (0, [2, 2, 2, 2, 2, 2, 2]),
    ] {
        let mut rig = rig_with(limits(1, entries_max_bytes), 1 << 30);
        let queue = sparse(&mut rig, 1..200, QueueArguments::default());
        // An entry in memory is enough to be too much.
        let other = rig.queue("other");
        let messages = (0..100).map(|_| transient("t"));
        rig.publish_all(std::slice::from_ref(&other), messages.collect());
        let mut next = 1;
        for count in expected {
            let asked = asked(&mut rig, &queue, next * RUN_SEQS, true);
            assert_eq!(asked, (next..next + count).collect::<Vec<_>>());
            rig.effects.run_loads.clear();
            next += count;
        }
    }
}

#[test]
fn the_next_runs_are_asked_for_before_those_that_are_there_are_drained() {
    let mut rig = rig_with(limits(1, 1 << 30), 1 << 30);
    let queue = sparse(&mut rig, 1..200, QueueArguments::default());
    assert_eq!(asked(&mut rig, &queue, RUN_SEQS, true), [1, 2]);
    answer_all(&mut rig);
    // Half of the window, which is 4 now, is left.
    assert_eq!(asked(&mut rig, &queue, RUN_SEQS, false), [3, 4]);
    assert_eq!(
        asked(&mut rig, &queue, RUN_SEQS, true),
        [3, 4, 5, 6, 7, 8],
        "each is asked for once"
    );
}

#[test]
fn the_window_begins_small_again_once_nobody_takes_any_more() {
    let mut rig = rig_with(limits(1, 0), 1 << 30);
    let queue = sparse(&mut rig, 1..200, QueueArguments::default());
    lock(&queue.state).load_window = 32;
    let first: Vec<u64> = (1..33).collect();
    assert_eq!(asked(&mut rig, &queue, RUN_SEQS, true), first);
    answer_all(&mut rig);
    assert_eq!(rig.shared.filed_run_count(), 167);
    rig.file(&queue);
    assert_eq!(rig.shared.filed_run_count(), 199, "they left");
    assert_eq!(lock(&queue.state).load_window, 2);
    // And they are not taken for runs that are there.
    assert_eq!(asked(&mut rig, &queue, RUN_SEQS, false), [1, 2]);
}

#[test]
fn runs_of_which_nothing_can_be_had_do_not_count_for_the_window() {
    let mut rig = rig_with(limits(1, 1 << 30), 1 << 30);
    let queue = sparse(&mut rig, 1..200, QueueArguments::default());
    assert_eq!(asked(&mut rig, &queue, RUN_SEQS, true), [1, 2]);
    let load = rig.effects.run_loads.remove(0);
    let mut results: Vec<_> = load
        .runs
        .iter()
        .map(|run| (run.clone(), rig.index.read(run)))
        .collect();
    let reason = "rot".to_owned();
    results[1].1 = Err(FetchFailure { reason });
    rig.turn(|turn| run_loaded(turn, &queue, results));
    assert_eq!(asked(&mut rig, &queue, RUN_SEQS, true), [3, 4, 5]);
}

/// The runs of a lower level were asked for when a message of a higher one, whose seq is below, is wanted.
#[test]
fn whoever_waits_for_a_head_gets_it_wherever_was_read_last() {
    let mut rig = rig_with(limits(1, 1 << 30), 1 << 30);
    let settings = QueueArguments {
        max_priority: Some(1),
        ..QueueArguments::default()
    };
    let [high, low] = [1, 2].map(|rank| Seq::new(rank, RUN_SEQS).0);
    let numbers = [high, low].map(|seq| seq / RUN_SEQS);
    let queue = sparse(&mut rig, numbers.into_iter(), settings);
    assert_eq!(asked(&mut rig, &queue, low, true), [numbers[1]]);
    answer_all(&mut rig);
    assert_eq!(
        lock(&queue.state).slots.first_ready(),
        Head::Filed(Seq(high))
    );
    assert_eq!(asked(&mut rig, &queue, high, true), [numbers[0]]);
}

/// Proves nothing about the end: that all of them get there is shown elsewhere.
#[test]
fn no_more_expire_at_once_than_can_be_on_their_way() {
    let mut rig = Rig::paging();
    let target = rig.queue("target");
    rig.bind("dlx", "key", &target);
    let settings = QueueArguments {
        message_ttl_ms: Some(1000),
        ..dead_letter_to("dlx", Some("key"))
    };
    let queue = deep(&mut rig, settings);
    rig.file(&queue);
    rig.advance(1000);
    // Positions are read at once, contents never.
    while !rig.effects.run_loads.is_empty() {
        answer_all(&mut rig);
    }
    let leaving_count = lock(&queue.state).leaving.len();
    assert!(
        (4096..4096 + 3 * 256).contains(&leaving_count),
        "{leaving_count}"
    );
    assert!(rig.shared.filed_run_count() > 20);
}

/// What comes from storage may say that a run with a block goes on where the next message belongs: it does not.
#[test]
fn a_run_with_a_block_gets_no_more_messages_after_a_restart() {
    let mut rig = Rig::paging();
    let queue = rig.queue("q");
    rig.publish_texts(&queue, "abc");
    rig.file(&queue);
    let mut image = queue.image(ImageKind::Running).expect("it is durable");
    assert_eq!((image.entries.len(), image.runs.len()), (0, 1));
    image.next_seq = Seq(4);
    let queue =
        rig.turn(|turn| Queue::restore(queue.spec().clone(), queue.settings(), image, turn));
    rig.publish_texts(&queue, "d");
    let next = queue
        .image(ImageKind::Running)
        .expect("it is durable")
        .next_seq;
    assert_eq!(next, Seq(RUN_SEQS + 1));
    assert_eq!(rig.take_all(&queue), ["a", "b", "c", "d"]);
}

#[test]
fn a_lost_run_of_known_size_is_purged_with_the_rest() {
    let mut rig = Rig::paging();
    let queue = rig.queue("q");
    let messages = (0..300).map(|number| persistent(&number.to_string()));
    rig.publish_all(std::slice::from_ref(&queue), messages.collect());
    rig.file(&queue);
    assert!(queue.stats().ready_bytes > 0);
    rig.index.damage(0);
    assert_eq!(
        body_of(&rig.get(&queue).expect("one of the next run").message),
        "255"
    );
    queue.check_sums();
    assert_eq!(queue.stats().quarantined_count, 255);
    rig.turn(|turn| purge(turn, &queue));
    queue.check_sums();
    let stats = queue.stats();
    assert_eq!(
        (
            stats.ready_count,
            stats.ready_bytes,
            stats.quarantined_count
        ),
        (0, 0, 0)
    );
}

#[test]
fn a_purge_forgets_the_reads_that_are_on_their_way() {
    let mut rig = Rig::paging();
    let queue = rig.queue("q");
    rig.publish_texts(&queue, "abc");
    rig.file(&queue);
    let consumer = rig.consume(&queue, |spec| spec.prefetch = 3);
    answer_all(&mut rig);
    assert!(lock(&queue.state).fetching_bytes > 0);
    rig.turn(|turn| purge(turn, &queue));
    assert_eq!(lock(&queue.state).fetching_bytes, 0);
    rig.settle_down();
    assert_eq!(lock(&queue.state).fetching_bytes, 0);
    assert!(deliveries(&consumer).is_empty());
}

/// The reader answers to the slot that asked, though nobody waits any more.
#[test]
fn a_run_that_nobody_wants_stays_while_a_body_of_it_is_being_read() {
    let mut rig = Rig::paging();
    let queue = rig.queue("q");
    rig.publish_texts(&queue, "abc");
    rig.file(&queue);
    let consumer = rig.consume(&queue, |spec| spec.prefetch = 3);
    answer_all(&mut rig);
    assert!(!rig.effects.fetches.is_empty());
    let _ = rig.turn(|turn| cancel(turn, &queue, consumer.id));
    rig.file(&queue);
    assert_eq!(rig.shared.filed_run_count(), 0);
    rig.settle_down();
    rig.file(&queue);
    assert_eq!(rig.shared.filed_run_count(), 1);
    assert_eq!(lock(&queue.state).fetching_bytes, 0);
}

/// In a queue with priorities no bound tells what was delivered: each message that is out is marked, filed or not.
#[test]
fn a_stop_image_marks_the_messages_that_are_out() {
    for is_filed in [false, true] {
        let mut rig = Rig::paging();
        let settings = QueueArguments {
            max_priority: Some(1),
            ..QueueArguments::default()
        };
        let queue = rig.queue_with("q", settings);
        rig.publish_texts(&queue, "abc");
        if is_filed {
            rig.file(&queue);
        }
        let held = rig.get(&queue).expect("the first");
        let image = queue.image(ImageKind::Stopped).expect("it is durable");
        assert_eq!(image.runs.len(), usize::from(is_filed));
        let queue =
            rig.turn(|turn| Queue::restore(queue.spec().clone(), queue.settings(), image, turn));
        assert_eq!(show(&held), "a");
        assert_eq!(rig.take_all(&queue), ["a*", "b", "c"], "filed: {is_filed}");
    }
}
