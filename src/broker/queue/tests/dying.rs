//! Time to live, length limits, dead letters, leases.

use super::*;
use crate::amqp::field_table::FieldValue;
use crate::broker::arguments::{DeadLetterTarget, Overflow};
use crate::broker::testing::Logged;

fn expiring(body: &str, expiration: &'static str) -> Message {
    message(body, |properties| {
        properties
            .set_delivery_mode(Some(2))
            .set_expiration(Some(ShortString::from_static(expiration)));
    })
}

pub(super) fn dead_letter_to(
    exchange: &'static str,
    routing_key: Option<&'static str>,
) -> QueueArguments {
    QueueArguments {
        dead_letter: Some(DeadLetterTarget {
            exchange: ShortString::from_static(exchange),
            routing_key: routing_key.map(ShortString::from_static),
        }),
        ..QueueArguments::default()
    }
}

#[test]
fn shorter_of_both_times_to_live_holds_and_is_fixed_at_entry() {
    for (queue_ttl_ms, own, lives_ms) in [
        (Some(100), "50", 50),
        (Some(50), "100", 50),
        (None, "+070", 70),
    ] {
        let mut rig = Rig::new();
        let settings = QueueArguments {
            message_ttl_ms: queue_ttl_ms,
            ..QueueArguments::default()
        };
        let queue = rig.queue_with("q", settings);
        rig.publish(&queue, expiring("a", own));
        let _ = rig.advance(lives_ms - 1);
        assert_eq!(queue.stats().ready_count, 1);
        let _ = rig.advance(1);
        assert_eq!(queue.stats().ready_count, 0);
        assert!(rig.journal.replay(queue.id()).entries.is_empty());
    }
}

#[test]
fn expired_message_behind_a_living_head_stays_counted_but_is_never_delivered() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    rig.publish_texts(&queue, "a");
    rig.publish(&queue, expiring("b", "10"));
    rig.publish_texts(&queue, "c");
    let _ = rig.advance(20);
    assert_eq!(queue.stats().ready_count, 3);
    assert_eq!(rig.take_all(&queue), ["a", "c"]);
}

#[test]
fn zero_time_to_live_reaches_only_a_consumer_that_waits() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    assert!(matches!(
        rig.publish(&queue, expiring("a", "0")),
        ConfirmAt::Durable(_)
    ));
    assert_eq!(queue.stats().ready_count, 0);
    let consumer = rig.consume(&queue, |spec| spec.prefetch = 1);
    rig.publish(&queue, expiring("b", "0"));
    rig.publish(&queue, expiring("c", "0"));
    assert_eq!(shown(&deliveries(&consumer)), ["b"]);
    assert_eq!(queue.stats().ready_count, 0);
}

#[test]
fn requeued_message_keeps_its_expiry() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    rig.publish(&queue, expiring("a", "10"));
    let taken = rig.get(&queue).expect("it lives");
    let _ = rig.advance(20);
    assert_eq!(
        queue.stats().unacked_count,
        1,
        "unacked messages do not expire"
    );
    rig.settle(&[taken], SettleOutcome::Requeue);
    assert_eq!(queue.stats(), QueueStats::default());
}

#[test]
fn drop_head_leaves_the_newest_and_is_one_group_with_the_publish() {
    // (max-length, max-length-bytes, bodies, what stays)
    type Row = (
        Option<u64>,
        Option<u64>,
        &'static [&'static str],
        &'static [&'static str],
    );
    let table: [Row; 5] = [
        (Some(2), None, &["a", "b", "c"], &["b", "c"]),
        (None, Some(4), &["aa", "bb", "cc"], &["bb", "cc"]),
        (Some(3), Some(2), &["a", "b", "c"], &["b", "c"]),
        (None, Some(2), &["a", "toolong"], &[]),
        (Some(0), None, &["a"], &[]),
    ];
    for (max_length, max_length_bytes, bodies, stays) in table {
        let mut rig = Rig::new();
        let settings = QueueArguments {
            max_length,
            max_length_bytes,
            ..QueueArguments::default()
        };
        let queue = rig.queue_with("q", settings);
        for body in bodies {
            rig.publish(&queue, persistent(body));
            assert!(rig.journal.pushes().iter().all(|push| push.is_atomic));
        }
        assert_eq!(rig.take_all(&queue), stays);
    }
}

#[test]
fn zero_length_queue_still_hands_over_to_a_waiting_consumer() {
    let mut rig = Rig::new();
    let settings = QueueArguments {
        max_length: Some(0),
        ..QueueArguments::default()
    };
    let queue = rig.queue_with("q", settings);
    let consumer = rig.consume(&queue, |_| {});
    rig.publish_texts(&queue, "a");
    assert_eq!(shown(&deliveries(&consumer)), ["a"]);
}

#[test]
fn reject_publish_refuses_before_consumers_are_asked() {
    let mut rig = Rig::new();
    let settings = QueueArguments {
        max_length: Some(1),
        overflow: Overflow::RejectPublish,
        ..QueueArguments::default()
    };
    let (full, other) = (rig.queue_with("full", settings), rig.queue("other"));
    let targets = [full.clone(), other.clone()];
    let outcomes = rig.publish_all(&targets, vec![persistent("a"), persistent("b")]);
    assert!(matches!(
        outcomes[..],
        [ConfirmAt::Durable(_), ConfirmAt::Nack]
    ));
    assert_eq!(rig.take_all(&full), ["a"]);
    assert_eq!(rig.take_all(&other), ["a", "b"], "the others keep it");
}

#[test]
fn requeue_over_the_limit_drops_the_oldest() {
    let mut rig = Rig::new();
    let settings = QueueArguments {
        max_length: Some(1),
        ..QueueArguments::default()
    };
    let queue = rig.queue_with("q", settings);
    rig.publish_texts(&queue, "a");
    let taken = rig.get(&queue).expect("a");
    rig.publish_texts(&queue, "b");
    rig.settle(&[taken], SettleOutcome::Requeue);
    assert_eq!(rig.take_all(&queue), ["b"]);
}

/// Header `x-death` as text, one line per death.
fn deaths(message: &Message) -> Vec<String> {
    let Some(FieldValue::Array(deaths)) = message.properties().header("x-death") else {
        return Vec::new();
    };
    let show_value = |value: &FieldValue| match value {
        FieldValue::LongString(text) => format!("S{}", String::from_utf8_lossy(text)),
        FieldValue::Long(number) => format!("l{number}"),
        FieldValue::Timestamp(secs) => format!("T{secs}"),
        FieldValue::Array(items) => {
            let items: Vec<_> = items.iter().filter_map(FieldValue::as_text).collect();
            format!("A{}", items.join("|"))
        }
        other => panic!("not in x-death: {other:?}"),
    };
    deaths
        .iter()
        .filter_map(FieldValue::as_table)
        .map(|death| {
            let fields = death.iter().map(|(name, value)| {
                format!("{}={}", String::from_utf8_lossy(name), show_value(value))
            });
            fields.collect::<Vec<_>>().join(" ")
        })
        .collect()
}

#[test]
fn rejected_message_carries_its_death() {
    let mut rig = Rig::new();
    let queue = rig.queue_with("work", dead_letter_to("dlx", Some("dead")));
    let grave = rig.queue("grave");
    rig.bind("dlx", "dead", &grave);
    let original = message("a", |properties| {
        let cc = FieldValue::Array(vec![FieldValue::text("copy")]);
        properties
            .set_delivery_mode(Some(2))
            .set_expiration(Some(ShortString::from_static("60000")))
            .set_header("x-death", "forged")
            .set_header("x-first-death-queue", "forged")
            .set_header("CC", cc);
    });
    rig.publish(&queue, original);
    let taken = rig.get(&queue).expect("it is there");
    rig.settle(&[taken], SettleOutcome::Reject);
    let dead = rig.get(&grave).expect("it died");
    assert!(!dead.is_redelivered);
    assert_eq!(dead.message.exchange().as_str(), "dlx");
    assert_eq!(dead.message.routing_key().as_str(), "dead");
    assert_eq!(dead.message.properties().expiration(), None);
    assert_eq!(dead.message.properties().delivery_mode(), Some(2));
    assert_eq!(
        deaths(&dead.message),
        [
            "original-expiration=S60000 count=l1 reason=Srejected queue=Swork time=T1000 \
          exchange=Sex routing-keys=Akey|copy"
        ]
    );
    for (name, value) in [
        ("x-first-death-queue", "work"),
        ("x-first-death-reason", "rejected"),
        ("x-first-death-exchange", "ex"),
        ("x-last-death-queue", "work"),
        ("x-last-death-reason", "rejected"),
        ("x-last-death-exchange", "ex"),
    ] {
        let header = dead.message.properties().header(name);
        assert_eq!(header, Some(FieldValue::text(value)), "{name}");
    }
    assert_eq!(queue.stats(), QueueStats::default());
    assert!(rig.journal.replay(queue.id()).entries.is_empty());
}

/// Proves I31.
#[test]
fn burial_is_one_atomic_group_of_targets_and_source() {
    let mut rig = Rig::new();
    let queue = rig.queue_with("work", dead_letter_to("dlx", Some("dead")));
    let graves = [rig.queue("g1"), rig.queue("g2")];
    for grave in &graves {
        rig.bind("dlx", "dead", grave);
    }
    rig.publish(&queue, persistent("a"));
    let taken = rig.get(&queue).expect("it is there");
    let before = rig.journal.pushes().len();
    rig.settle(&[taken], SettleOutcome::Reject);
    let groups = &rig.journal.pushes()[before..];
    let with_records: Vec<_> = groups
        .iter()
        .filter(|push| !push.records.is_empty())
        .collect();
    assert_eq!(with_records.len(), 1);
    assert!(with_records[0].is_atomic);
    assert!(matches!(
        &with_records[0].records[..],
        [Logged::Publish { refs, .. }, Logged::Settle { .. }] if refs.len() == 2
    ));
}

#[test]
fn message_of_the_largest_size_is_dead_lettered_although_its_headers_grow() {
    let mut rig = Rig::new();
    let queue = rig.queue_with("q", dead_letter_to("dlx", Some("dead")));
    let dead = rig.queue("dead");
    rig.bind("dlx", "dead", &dead);
    let message = persistent(&"x".repeat(20_000));
    rig.journal
        .set_group_max_bytes(message.payload_len() as u64);
    rig.publish(&queue, message);
    let held = rig.get(&queue).expect("it is there");
    rig.settle(&[held], SettleOutcome::Reject);
    assert_eq!(dead.stats().ready_count, 1);
    assert_eq!(queue.stats().quarantined_count, 0);
}

#[test]
fn retry_loop_counts_and_goes_on_because_of_the_rejection() {
    let mut rig = Rig::new();
    let work = rig.queue_with("work", dead_letter_to("dlx", Some("wait")));
    let mut waiting = dead_letter_to("dlx", Some("work"));
    waiting.message_ttl_ms = Some(10);
    let wait = rig.queue_with("wait", waiting);
    rig.bind("dlx", "wait", &wait);
    rig.bind("dlx", "work", &work);
    rig.publish(&work, persistent("a"));
    for round in 1..=3i64 {
        let taken = rig.get(&work).expect("it came back");
        assert_eq!(deaths(&taken.message).len(), if round == 1 { 0 } else { 2 });
        rig.settle(&[taken], SettleOutcome::Reject);
        let _ = rig.advance(10);
    }
    let taken = rig.get(&work).expect("it came back");
    let history = deaths(&taken.message);
    assert!(history[0].starts_with("count=l3 reason=Sexpired queue=Swait time=T1000"));
    assert!(history[1].starts_with("count=l3 reason=Srejected queue=Swork time=T1000"));
}

#[test]
fn queue_that_expires_into_itself_ends_after_one_round() {
    let mut rig = Rig::new();
    let mut settings = dead_letter_to("", None);
    settings.message_ttl_ms = Some(10);
    let queue = rig.queue_with("key", settings);
    rig.bind("", "key", &queue);
    rig.publish(&queue, persistent("a"));
    let _ = rig.advance(10);
    assert_eq!(queue.stats(), QueueStats::default());
    assert!(rig.journal.replay(queue.id()).entries.is_empty());
}

#[test]
fn message_for_a_missing_exchange_is_dropped() {
    let mut rig = Rig::new();
    let mut settings = dead_letter_to("nowhere", None);
    settings.message_ttl_ms = Some(10);
    let queue = rig.queue_with("q", settings);
    rig.publish(&queue, persistent("a"));
    let _ = rig.advance(10);
    assert_eq!(queue.stats(), QueueStats::default());
    assert!(rig.journal.replay(queue.id()).entries.is_empty());
}

#[test]
fn own_keys_cc_and_bcc_route_when_the_queue_names_no_key() {
    let mut rig = Rig::new();
    let queue = rig.queue_with("q", dead_letter_to("dlx", None));
    let graves = ["key", "copy", "blind"].map(|key| {
        let grave = rig.queue(key);
        rig.bind("dlx", key, &grave);
        grave
    });
    let mut properties = PropertiesBuilder::new();
    properties.set_header("CC", FieldValue::Array(vec![FieldValue::text("copy")]));
    let original = Message::from_parts(&crate::broker::message::MessageParts {
        routing_key: ShortString::from_static("key"),
        bcc: vec![ShortString::from_static("blind")],
        properties: properties.build(),
        ..Default::default()
    });
    rig.publish(&queue, original);
    let taken = rig.get(&queue).expect("it is there");
    rig.settle(&[taken], SettleOutcome::Reject);
    for grave in &graves {
        let dead = rig.get(grave).expect("every key routes");
        assert!(deaths(&dead.message)[0].ends_with("routing-keys=Akey|copy"));
    }
}

#[test]
fn overflow_dead_letters_in_order_with_bodies_from_disk() {
    let mut rig = Rig::with_memory(0);
    let mut settings = dead_letter_to("dlx", Some("dead"));
    settings.max_length = Some(2);
    let queue = rig.queue_with("q", settings);
    let grave = rig.queue("grave");
    rig.bind("dlx", "dead", &grave);
    let big = "x".repeat(17_000);
    let bodies: Vec<_> = (0..10).map(|at| format!("{at}{big}")).collect();
    for body in &bodies {
        rig.publish(&queue, persistent(body));
    }
    rig.settle_down();
    assert_eq!(rig.take_all(&grave), bodies[..8]);
    assert_eq!(rig.take_all(&queue), bodies[8..]);
}

#[test]
fn dead_letters_of_a_large_backlog_wait_for_the_disk_instead_of_filling_memory() {
    let mut rig = Rig::with_memory(0);
    let queue = rig.queue_with("q", dead_letter_to("dlx", Some("dead")));
    let dead = rig.queue("dead");
    rig.bind("dlx", "dead", &dead);
    let big = "x".repeat(100_000);
    for _ in 0..100 {
        rig.publish(&queue, expiring(&big, "1000"));
    }
    rig.journal.make_durable();
    rig.advance(1000);
    // Reads are answered at once, and nothing becomes durable.
    loop {
        let fetches = std::mem::take(&mut rig.effects.fetches);
        if fetches.is_empty() {
            break;
        }
        for fetch in fetches {
            for &(seq, position) in &fetch.wanted {
                let body = rig.journal.read(position).expect("it was published");
                rig.turn(|turn| super::fetched(turn, &fetch.queue, vec![(seq, decoded(body))]));
            }
        }
    }
    let buried = dead.stats().ready_count;
    assert!((1..30).contains(&buried), "{buried} letters in memory");
    rig.settle_down();
    assert_eq!(dead.stats().ready_count, 100);
}

#[test]
fn dead_letters_that_find_no_room_in_the_log_wait_in_order() {
    let mut rig = Rig::new();
    let queue = rig.queue_with("q", dead_letter_to("dlx", Some("dead")));
    let dead = rig.queue("dead");
    rig.bind("dlx", "dead", &dead);
    let bodies: Vec<String> = (0..5).map(|number| format!("m{number}")).collect();
    for body in &bodies {
        rig.publish(&queue, expiring(body, "1000"));
    }
    rig.settle_down();
    rig.journal.set_full(true);
    rig.advance(1000);
    rig.settle_down();
    assert_eq!(dead.stats().ready_count, 0);
    // A restart now finds them where they were.
    assert_eq!(rig.journal.replay(queue.id()).entries.len(), 5);
    rig.advance(1000);
    rig.settle_down();
    assert_eq!(dead.stats().ready_count, 0);
    rig.journal.set_full(false);
    rig.advance(1000);
    rig.settle_down();
    assert_eq!(rig.take_all(&dead), bodies);
}

#[test]
fn messages_that_expired_while_the_broker_was_down_are_dead_lettered() {
    let mut rig = Rig::new();
    let mut settings = dead_letter_to("dlx", Some("dead"));
    settings.message_ttl_ms = Some(100);
    let queue = rig.queue_with("q", settings);
    let grave = rig.queue("grave");
    rig.bind("dlx", "dead", &grave);
    rig.publish_texts(&queue, "ab");
    let image = queue.image(crate::broker::queue::ImageKind::Running);
    let image = image.expect("it is durable");
    rig.now_ms += 200;
    let mut turn = Turn::new(&rig.shared, &rig.router, rig.now_ms, &mut rig.effects);
    let restored = Queue::restore(
        queue.spec().clone(),
        queue.settings(),
        image.clone(),
        &mut turn,
    );
    drop(turn);
    rig.turn(|turn| restored.renew_lease(turn));
    rig.settle_down();
    assert_eq!(rig.take_all(&grave), ["a", "b"]);
    assert_eq!(restored.stats(), QueueStats::default());
}

#[test]
fn refused_message_is_dead_lettered_when_the_queue_says_so() {
    let mut rig = Rig::new();
    let mut settings = dead_letter_to("dlx", Some("dead"));
    settings.max_length = Some(1);
    settings.overflow = Overflow::RejectPublishDlx;
    let queue = rig.queue_with("q", settings);
    let grave = rig.queue("grave");
    rig.bind("dlx", "dead", &grave);
    rig.publish(&queue, persistent("a"));
    assert_eq!(rig.publish(&queue, persistent("b")), ConfirmAt::Nack);
    let dead = rig.get(&grave).expect("b");
    assert_eq!(body_of(&dead.message), "b");
    assert!(deaths(&dead.message)[0].contains("reason=Smaxlen queue=Sq"));
}

#[test]
fn lease_runs_out_only_while_nobody_uses_the_queue() {
    let mut rig = Rig::new();
    let settings = QueueArguments {
        expires_ms: Some(100),
        ..QueueArguments::default()
    };
    let queue = rig.queue_with("q", settings);
    rig.turn(|turn| queue.renew_lease(turn));
    let consumer = rig.consume(&queue, |_| {});
    assert_eq!(rig.advance(150), [Aftermath::Stays], "a consumer is there");
    let _ = rig.turn(|turn| cancel(turn, &queue, consumer.id));
    assert!(rig.advance(60).is_empty());
    assert!(rig.get(&queue).is_none(), "a get renews");
    assert_eq!(rig.advance(60), [Aftermath::Stays]);
    assert_eq!(rig.advance(40), [Aftermath::Unused]);
}
