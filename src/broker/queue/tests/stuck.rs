//! Dead letters that nobody takes, in a queue that keeps them until somebody does.

use super::dying::dead_letter_to;
use super::*;
use crate::broker::arguments::Overflow;
use crate::broker::queue::state::Locked;

/// Letters go to the exchange `dlx`, and stay while nobody takes them.
fn keeping() -> QueueArguments {
    QueueArguments {
        is_at_least_once: true,
        overflow: Overflow::RejectPublish,
        ..dead_letter_to("dlx", None)
    }
}

/// Publishes the bodies and rejects all of them.
fn reject(rig: &mut Rig, queue: &QueueHandle, bodies: &[String]) {
    for body in bodies {
        rig.publish(queue, persistent(body));
    }
    rig.settle_down();
    let taken: Vec<Delivery> = std::iter::from_fn(|| rig.get(queue)).collect();
    assert_eq!(taken.len(), bodies.len());
    rig.settle(&taken, SettleOutcome::Reject);
    rig.settle_down();
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

impl Rig {
    /// Letters that are routed while so much time passes, second by second.
    fn tried_within(&mut self, secs: usize) -> u64 {
        let before = self.router.asked_count.load(Ordering::Relaxed);
        for _ in 0..secs {
            let _ = self.advance(1_000);
            self.settle_down();
        }
        self.router.asked_count.load(Ordering::Relaxed) - before
    }
}

#[test]
fn stuck_letters_are_in_the_log_alone_and_leave_in_order() {
    let mut rig = Rig::new();
    let (source, dead) = (rig.queue_with("q", keeping()), rig.queue("dead"));
    let bodies: Vec<String> = (0..200)
        .map(|number| number.to_string().repeat(100))
        .collect();
    reject(&mut rig, &source, &bodies);
    assert_eq!(source.resident_bytes(), 0, "nobody needs the bodies");
    // They are read for a try, and go again.
    assert!(rig.tried_within(3) > 0);
    assert_eq!(source.resident_bytes(), 0);
    assert_eq!(rig.journal.replay(source.id()).entries.len(), bodies.len());
    source.check_sums();
    rig.bind("dlx", "key", &dead);
    let _ = rig.tried_within(1);
    assert_eq!(rig.take_all(&dead), bodies);
    assert!(rig.journal.replay(source.id()).entries.is_empty());
    source.check_sums();
}

#[test]
fn few_of_many_stuck_letters_are_tried_at_a_time_and_less_and_less_often() {
    let mut rig = Rig::new();
    let (source, dead) = (rig.queue_with("q", keeping()), rig.queue("dead"));
    let bodies = numbers(1000);
    reject(&mut rig, &source, &bodies);
    assert_eq!(rig.tried_within(1), 64, "the first try");
    assert_eq!(
        rig.tried_within(60),
        6 * 64,
        "after 1, 2, 4, 8, 16 and 16 seconds"
    );
    // A change of the topology that helps nobody: each is tried once, some a second.
    rig.bind("dlx", "other", &dead);
    assert_eq!(rig.tried_within(1), 256);
    assert_eq!(rig.tried_within(3), 1000 - 256);
    assert_eq!(rig.tried_within(1), 64, "the pause began anew");
    // One that helps: all go at once.
    rig.bind("dlx", "key", &dead);
    assert_eq!(rig.tried_within(1), 1000);
    assert_eq!(rig.tried_within(60), 0, "nothing is left");
    let mut taken = rig.take_all(&dead);
    taken.sort_by_key(|body| body.parse::<usize>().ok());
    assert_eq!(taken, bodies);
}

#[test]
fn target_that_was_full_gets_what_it_takes() {
    let mut rig = Rig::new();
    let source = rig.queue_with("q", keeping());
    let full = QueueArguments {
        max_length: Some(100),
        overflow: Overflow::RejectPublish,
        ..QueueArguments::default()
    };
    let dead = rig.queue_with("dead", full);
    rig.bind("dlx", "key", &dead);
    let bodies = numbers(300);
    reject(&mut rig, &source, &bodies);
    let mut taken = Vec::new();
    for _ in 0..2 {
        assert_eq!(dead.stats().ready_count, 100);
        taken.extend(rig.take_all(&dead));
        // Nothing tells the source that there is room.
        let _ = rig.tried_within(1);
    }
    taken.extend(rig.take_all(&dead));
    taken.sort_by_key(|body| body.parse::<usize>().ok());
    assert_eq!(taken, bodies);
}

#[test]
fn stuck_letters_count_for_the_length_of_their_queue() {
    for (max_length, max_length_bytes) in [(Some(3), None), (None, Some(3))] {
        let mut rig = Rig::new();
        let settings = QueueArguments {
            max_length,
            max_length_bytes,
            ..keeping()
        };
        let (source, dead) = (rig.queue_with("q", settings), rig.queue("dead"));
        reject(&mut rig, &source, &numbers(2));
        assert_eq!(source.stats().ready_count, 0);
        let accepted = |rig: &mut Rig| rig.publish(&source, persistent("x")) != ConfirmAt::Nack;
        assert!(accepted(&mut rig), "two stuck ones and this one");
        assert!(!accepted(&mut rig), "the fourth is too much");
        rig.bind("dlx", "key", &dead);
        let _ = rig.tried_within(1);
        assert_eq!(dead.stats().ready_count, 2);
        assert!(accepted(&mut rig) && accepted(&mut rig) && !accepted(&mut rig));
    }
}

#[test]
fn other_settings_are_tried_at_once() {
    let mut rig = Rig::new();
    let (source, dead) = (rig.queue_with("q", keeping()), rig.queue("dead"));
    rig.bind("other", "key", &dead);
    reject(&mut rig, &source, &numbers(2));
    let settings = QueueArguments {
        dead_letter: dead_letter_to("other", None).dead_letter,
        ..keeping()
    };
    rig.turn(|turn| source.obey(turn, settings.shared()));
    rig.settle_down();
    assert_eq!(rig.take_all(&dead), ["0", "1"]);
    source.check_sums();
}

#[test]
fn letters_on_their_way_do_not_count_for_the_length() {
    let mut rig = Rig::new();
    let settings = QueueArguments {
        max_length: Some(1),
        ..keeping()
    };
    let (source, dead) = (rig.queue_with("q", settings), rig.queue("dead"));
    rig.bind("dlx", "key", &dead);
    rig.publish(&source, persistent("a"));
    let held = rig.get(&source).expect("it is there");
    rig.journal.set_full(true);
    rig.settle(&[held], SettleOutcome::Reject);
    assert_eq!(dead.stats().ready_count, 0, "the log has no room for it");
    rig.journal.set_full(false);
    assert_ne!(rig.publish(&source, persistent("b")), ConfirmAt::Nack);
}

/// Bytes of the letters that are stuck.
fn stuck_bytes(queue: &QueueHandle) -> u64 {
    let mut locked = Locked::one(queue);
    locked.first().1.stuck().map_or(0, |stuck| stuck.bytes())
}

#[test]
fn a_letter_that_is_too_large_when_it_is_tried_is_stuck_no_more() {
    let mut rig = Rig::new();
    let (source, dead) = (rig.queue_with("q", keeping()), rig.queue("dead"));
    let body = "x".repeat(17 << 20);
    reject(&mut rig, &source, std::slice::from_ref(&body));
    assert_eq!(stuck_bytes(&source), body.len() as u64);
    rig.journal.set_group_max_bytes(1 << 10);
    rig.bind("dlx", "key", &dead);
    let _ = rig.tried_within(1);
    assert_eq!(source.stats().quarantined_count, 1);
    assert_eq!(stuck_bytes(&source), 0);
}

#[test]
fn a_letter_that_cannot_be_read_is_stuck_no_more() {
    let mut rig = Rig::new();
    let (source, dead) = (rig.queue_with("q", keeping()), rig.queue("dead"));
    reject(&mut rig, &source, &numbers(2));
    rig.bind("dlx", "key", &dead);
    // The first one finds no room, so nothing is tried while the second one is read, twice.
    rig.journal.set_full(true);
    let _ = rig.advance(1_000);
    let mut first = None;
    for _ in 0..2 {
        for fetch in std::mem::take(&mut rig.effects.fetches) {
            for &(seq, position) in &fetch.wanted {
                let reason = "damaged".into();
                let result = match *first.get_or_insert(seq) == seq {
                    true => rig.read(position),
                    false => Err(FetchFailure { reason }),
                };
                rig.turn(|turn| fetched(turn, &fetch.queue, vec![(seq, result.and_then(decoded))]));
            }
        }
    }
    assert_eq!(source.stats().quarantined_count, 1);
    assert_eq!(stuck_bytes(&source), 1);
}

#[test]
fn a_queue_that_is_its_own_target_takes_its_letters_back() {
    for (max_length, max_length_bytes) in [(Some(1), None), (None, Some(1))] {
        let mut rig = Rig::new();
        let settings = QueueArguments {
            max_length,
            max_length_bytes,
            ..keeping()
        };
        let queue = rig.queue_with("q", settings);
        rig.bind("dlx", "key", &queue);
        let mut held = Vec::new();
        for body in ["a", "b"] {
            rig.publish(&queue, persistent(body));
            rig.settle_down();
            held.extend(rig.get(&queue));
        }
        rig.settle(&held, SettleOutcome::Reject);
        rig.settle_down();
        // The other one waits while this one goes round.
        for round in 0..3 {
            assert_eq!(queue.stats().ready_count, 1, "round {round}");
            let one = rig.get(&queue).expect("it came back");
            assert_eq!(body_of(&one.message), "a");
            rig.settle(&[one], SettleOutcome::Reject);
            rig.settle_down();
        }
        let one = rig.get(&queue).expect("it came back");
        rig.settle(&[one], SettleOutcome::Ack);
        let _ = rig.tried_within(20);
        assert_eq!(rig.take_all(&queue), ["b"]);
        assert_eq!(rig.journal.replay(queue.id()).entries.len(), 1);
        queue.check_sums();
    }
}

#[test]
fn letters_for_a_full_queue_do_not_wait_long_behind_those_that_nobody_wants() {
    let mut rig = Rig::new();
    let source = rig.queue_with("q", keeping());
    let full = QueueArguments {
        max_length: Some(1),
        overflow: Overflow::RejectPublish,
        ..QueueArguments::default()
    };
    let dead = rig.queue_with("dead", full);
    rig.bind("dlx", "key", &dead);
    reject(&mut rig, &source, &numbers(3));
    assert_eq!(dead.stats().ready_count, 1, "the others are refused");
    for number in 0..638 {
        let unwanted = Message::new(
            ShortString::default(),
            ShortString::from_static("nobody"),
            persistent("x").properties().clone(),
            vec![Bytes::from(number.to_string())],
        );
        rig.publish(&source, unwanted);
    }
    rig.settle_down();
    let taken: Vec<Delivery> = std::iter::from_fn(|| rig.get(&source)).collect();
    rig.settle(&taken, SettleOutcome::Reject);
    rig.settle_down();
    let _ = rig.tried_within(300);
    assert!(rig.get(&dead).is_some(), "there is room now");
    // Ten tries are a round.
    let _ = rig.tried_within(10 * 2 + 2);
    assert_eq!(dead.stats().ready_count, 1);
}
