//! Section 18: dead-lettering.

use stratamq::amqp::field_table::{FieldTable, FieldValue};
use stratamq::amqp::method::{basic, exchange, queue};

use super::elsewhere::skipped_elsewhere;
use super::stage::*;
use crate::support::raw::{Client, Delivered, Message, durable, text};

/// A queue `NAME` whose dead letters go through exchange `NAME.x` (fanout) to queue `NAME.dead`.
fn stage<const COUNT: usize>(name: &str, more: [(&str, FieldValue); COUNT]) -> Client {
    let mut c = client();
    let (exchange, dead) = (format!("{name}.x"), format!("{name}.dead"));
    c.call::<exchange::DeclareOk>(1, x(&exchange, "fanout"));
    c.queue_declare(1, &dead, q(""));
    c.bind(1, &dead, &exchange, "");
    let mut arguments = table(more);
    arguments.set("x-dead-letter-exchange", string(&exchange));
    c.call::<queue::DeclareOk>(
        1,
        queue::Declare {
            arguments,
            ..q(name)
        },
    );
    c
}

/// The one dead letter, once it is there.
#[track_caller]
fn dead_letter(c: &mut Client, queue: &str) -> Delivered {
    wait_ready(c, queue, 1);
    let got = c.get(1, queue).expect("a dead letter");
    c.ack(1, got.tag);
    got
}

fn headers(got: &Delivered) -> FieldTable {
    got.message
        .properties
        .headers()
        .expect("headers were written")
}

/// The entries of x-death.
fn deaths(got: &Delivered) -> Vec<FieldTable> {
    let headers = headers(got);
    let deaths = headers.get_array("x-death").expect("an array");
    deaths
        .iter()
        .map(|death| death.as_table().expect("of tables").clone())
        .collect()
}

/// Field names and values of a death but for its time, in order.
#[track_caller]
fn check_death(death: &FieldTable, expected: &[(&str, FieldValue)]) {
    let fields: Vec<(String, FieldValue)> = death
        .iter()
        .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.clone()))
        .filter(|(name, _)| name != "time")
        .collect();
    let expected: Vec<(String, FieldValue)> = expected
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone()))
        .collect();
    assert_eq!(fields, expected);
    assert!(
        matches!(death.get("time"), Some(FieldValue::Timestamp(seconds)) if *seconds > 1_500_000_000)
    );
}

fn keys(keys: &[&str]) -> FieldValue {
    FieldValue::Array(keys.iter().map(|key| string(key)).collect())
}

/// DL-1, DL-8, DL-12 to DL-14, DL-16, VD-4 and the table of 18.2.
#[test]
fn a_rejected_message_tells_its_story_exactly() {
    let mut c = stage("dl1", []);
    c.bind(1, "dl1", "amq.topic", "dl1.#");
    let message = Message::with("body", |properties| {
        properties
            .set_delivery_mode(Some(2))
            .set_priority(Some(3))
            .set_message_id(Some(text("id")))
            .set_header("mine", int(7))
            .set_header("CC", keys(&["cc"]))
            .set_header("BCC", keys(&["bcc"]))
            // DL-17, VD-3: what a client says of deaths means nothing.
            .set_header("x-death", string("mine"))
            .set_header("x-first-death-queue", string("mine"));
    });
    c.publish(1, "amq.topic", "dl1.key", &message);
    settle(&mut c, 1);
    let got = c.get(1, "dl1").expect("the message");
    // DL-18: passed through as long as it lives.
    assert_eq!(headers(&got).get_text("x-death"), Some("mine"));
    c.nack(1, got.tag, false);
    let letter = dead_letter(&mut c, "dl1.dead");
    assert_eq!(
        (letter.exchange.as_str(), letter.routing_key.as_str()),
        ("dl1.x", "dl1.key")
    );
    // VD-20: nobody has been given it from this queue.
    assert!(!letter.is_redelivered, "AK-13");
    assert_eq!(letter.message.body_text(), "body");
    let properties = &letter.message.properties;
    assert_eq!(
        (properties.delivery_mode(), properties.priority()),
        (Some(2), Some(3))
    );
    assert_eq!(properties.message_id(), Some(&b"id"[..]));
    let all = deaths(&letter);
    assert_eq!(all.len(), 1);
    check_death(
        &all[0],
        &[
            ("count", FieldValue::Long(1)),
            ("reason", string("rejected")),
            ("queue", string("dl1")),
            ("exchange", string("amq.topic")),
            ("routing-keys", keys(&["dl1.key", "cc"])),
        ],
    );
    let headers = headers(&letter);
    for (name, value) in [
        ("x-first-death-queue", "dl1"),
        ("x-first-death-reason", "rejected"),
        ("x-first-death-exchange", "amq.topic"),
        ("x-last-death-queue", "dl1"),
        ("x-last-death-reason", "rejected"),
        ("x-last-death-exchange", "amq.topic"),
    ] {
        assert_eq!(headers.get_text(name), Some(value), "{name}");
    }
    assert_eq!(headers.get_integer("mine"), Some(7));
    assert!(headers.get("BCC").is_none());
}

/// DL-1, DL-9, TT-13: expiry, with the expiration moved into the history.
#[test]
fn an_expired_message_loses_its_expiration() {
    let mut c = stage("dl9", []);
    let message = Message::with("m", |properties| {
        properties.set_expiration(Some(text("30")));
    });
    c.publish(1, "", "dl9", &message);
    let letter = dead_letter(&mut c, "dl9.dead");
    assert_eq!(letter.message.properties.expiration(), None);
    check_death(
        &deaths(&letter)[0],
        &[
            ("original-expiration", string("30")),
            ("count", FieldValue::Long(1)),
            ("reason", string("expired")),
            ("queue", string("dl9")),
            ("exchange", string("")),
            ("routing-keys", keys(&["dl9"])),
        ],
    );
}

/// DL-1, LL-2, LL-6, DL-10: overflow, in order; reject-publish-dlx buries the newcomer and nacks.
#[test]
fn overflow_dead_letters_the_head_or_the_newcomer() {
    let mut c = stage("dl1.head", [("x-max-length", int(1))]);
    fill(&mut c, "dl1.head", &["a", "b", "c"]);
    wait_ready(&mut c, "dl1.head.dead", 2);
    let letters = drain_all(&mut c, "dl1.head.dead");
    assert_eq!(
        letters
            .iter()
            .map(|got| got.message.body_text())
            .collect::<Vec<_>>(),
        ["a", "b"]
    );
    assert_eq!(
        headers(&letters[0]).get_text("x-first-death-reason"),
        Some("maxlen")
    );
    let mut c = stage(
        "ll6",
        [
            ("x-max-length", int(1)),
            ("x-overflow", string("reject-publish-dlx")),
        ],
    );
    c.confirm_select(1);
    c.publish(1, "", "ll6", &Message::plain("a"));
    c.wait_confirm(1);
    c.publish(1, "", "ll6", &Message::plain("b"));
    c.expect::<basic::Nack>(1);
    assert_eq!(dead_letter(&mut c, "ll6.dead").message.body_text(), "b");
    assert_eq!(drain(&mut c, "ll6"), ["a"]);
}

/// TT-8: time 0 with nobody there.
#[test]
fn a_message_without_time_dies_at_once() {
    let mut c = stage("dl.tt8", [("x-message-ttl", int(0))]);
    fill(&mut c, "dl.tt8", &["m"]);
    assert_eq!(deaths(&dead_letter(&mut c, "dl.tt8.dead")).len(), 1);
}

/// DL-2.
#[test]
fn purge_deletion_and_no_ack_are_no_deaths() {
    let mut c = stage("dl2", []);
    fill(&mut c, "dl2", &["purged"]);
    assert_eq!(c.try_purge(1, "dl2").expect("purge-ok"), 1);
    fill(&mut c, "dl2", &["taken"]);
    c.send(
        1,
        basic::Get {
            no_ack: true,
            ..get("dl2")
        },
    );
    c.expect::<basic::GetOk>(1);
    fill(&mut c, "dl2", &["deleted"]);
    c.queue_delete(1, "dl2");
    settle(&mut c, 1);
    assert_eq!(counts(&mut c, "dl2.dead").0, 0);
}

/// DL-3, DL-5: without a key all keys of the message count, with one only that, and CC stays to be read.
#[test]
fn the_dead_letter_key_replaces_all_keys() {
    let mut c = client();
    c.call::<exchange::DeclareOk>(1, x("dl5.x", "direct"));
    for key in ["own", "cc", "bcc", "fixed"] {
        let queue = format!("dl5.{key}");
        c.queue_declare(1, &queue, q(""));
        c.bind(1, &queue, "dl5.x", key);
    }
    let dlx = || ("x-dead-letter-exchange", string("dl5.x"));
    c.call::<queue::DeclareOk>(1, q_with("dl5.all", [dlx()]));
    c.call::<queue::DeclareOk>(
        1,
        q_with(
            "dl5.one",
            [dlx(), ("x-dead-letter-routing-key", string("fixed"))],
        ),
    );
    for queue in ["dl5.all", "dl5.one"] {
        c.bind(1, queue, "amq.direct", "own");
        let message = Message::with("m", |properties| {
            properties
                .set_header("CC", keys(&["cc"]))
                .set_header("BCC", keys(&["bcc"]));
        });
        c.publish(1, "amq.direct", "own", &message);
        settle(&mut c, 1);
        let got = c.get(1, queue).expect("the message");
        c.nack(1, got.tag, false);
        settle(&mut c, 1);
        c.call::<queue::UnbindOk>(1, unbind(queue, "amq.direct", "own"));
    }
    for queue in ["dl5.own", "dl5.cc", "dl5.bcc"] {
        let letter = dead_letter(&mut c, queue);
        assert_eq!(letter.routing_key, "own");
        assert!(headers(&letter).get("CC").is_some());
    }
    let letter = dead_letter(&mut c, "dl5.fixed");
    assert_eq!(letter.routing_key, "fixed");
    assert_eq!(
        headers(&letter).get("CC"),
        Some(&keys(&["cc"])),
        "it stays in the headers"
    );
    for key in ["own", "cc", "bcc"] {
        assert_eq!(counts(&mut c, &format!("dl5.{key}")).0, 0);
    }
}

/// DL-16.
#[test]
fn a_message_can_die_twice_and_remembers_both() {
    let mut c = stage("dl16.b", []);
    // a dies into b, b into b.dead.
    let arguments = [
        ("x-dead-letter-exchange", string("")),
        ("x-dead-letter-routing-key", string("dl16.b")),
    ];
    c.call::<queue::DeclareOk>(1, q_with("dl16.a", arguments));
    let message = Message::with("m", |properties| {
        properties.set_header("CC", keys(&["dl16.cc"]));
    });
    c.publish(1, "", "dl16.a", &message);
    for queue in ["dl16.a", "dl16.b"] {
        wait_ready(&mut c, queue, 1);
        let got = c.get(1, queue).expect("the message");
        c.nack(1, got.tag, false);
    }
    let letter = dead_letter(&mut c, "dl16.b.dead");
    let history: Vec<_> = deaths(&letter)
        .iter()
        .map(|death| {
            (
                death.get_text("queue").map(str::to_owned),
                death.get("routing-keys").cloned(),
            )
        })
        .collect();
    // The latest first; and a key given by a queue is the only one since then (DL-5).
    let expected = [
        (Some("dl16.b".to_owned()), Some(keys(&["dl16.b"]))),
        (
            Some("dl16.a".to_owned()),
            Some(keys(&["dl16.a", "dl16.cc"])),
        ),
    ];
    assert_eq!(history, expected);
    let headers = headers(&letter);
    assert_eq!(headers.get_text("x-first-death-queue"), Some("dl16.a"));
    assert_eq!(headers.get_text("x-last-death-queue"), Some("dl16.b"));
}

/// DL-5: a message that got a new key is not routed by its CC any more, however often it dies.
#[test]
fn a_new_key_ends_the_life_of_cc() {
    let mut c = client();
    c.call::<exchange::DeclareOk>(1, x("dl5b.x", "direct"));
    for queue in ["dl5b.cc", "dl5b.end"] {
        c.queue_declare(1, queue, q(""));
    }
    c.bind(1, "dl5b.cc", "dl5b.x", "cc");
    c.bind(1, "dl5b.end", "dl5b.x", "dl5b.second");
    let first = [
        ("x-dead-letter-exchange", string("")),
        ("x-dead-letter-routing-key", string("dl5b.second")),
    ];
    c.call::<queue::DeclareOk>(1, q_with("dl5b.first", first));
    c.call::<queue::DeclareOk>(
        1,
        q_with(
            "dl5b.second",
            [("x-dead-letter-exchange", string("dl5b.x"))],
        ),
    );
    let message = Message::with("m", |properties| {
        properties.set_header("CC", keys(&["cc"]));
    });
    c.publish(1, "", "dl5b.first", &message);
    for queue in ["dl5b.first", "dl5b.second"] {
        wait_ready(&mut c, queue, 1);
        let got = c.get(1, queue).expect("the message");
        c.nack(1, got.tag, false);
    }
    dead_letter(&mut c, "dl5b.end");
    assert_eq!(counts(&mut c, "dl5b.cc").0, 0);
}

/// DL-15, DL-21, DL-23: the retry loop of reject and wait goes on, and counts.
#[test]
fn a_retry_loop_with_rejections_goes_on_and_counts() {
    let mut c = client();
    let to = |key: &str| {
        [
            ("x-dead-letter-exchange", string("")),
            ("x-dead-letter-routing-key", string(key)),
        ]
    };
    c.call::<queue::DeclareOk>(1, q_with("dl23.work", to("dl23.wait")));
    let [exchange, key] = to("dl23.work");
    c.call::<queue::DeclareOk>(
        1,
        q_with("dl23.wait", [exchange, key, ("x-message-ttl", int(10))]),
    );
    fill(&mut c, "dl23.work", &["m"]);
    c.consume(1, "dl23.work", "t");
    for round in 0..4_i64 {
        let got = c.next_delivery(1);
        if round > 0 {
            let deaths = deaths(&got);
            let seen: Vec<_> = deaths
                .iter()
                .map(|death| {
                    (
                        death.get_text("reason").expect("a reason"),
                        death.get_integer("count").expect("a count"),
                    )
                })
                .collect();
            assert_eq!(seen, [("expired", round), ("rejected", round)]);
        }
        c.nack(1, got.tag, false);
    }
    c.next_delivery(1);
}

/// DL-20, DL-22: a loop without a rejection ends where it began.
#[test]
fn a_loop_of_expiry_alone_ends() {
    let mut c = client();
    let arguments = |key: &str| {
        [
            ("x-dead-letter-exchange", string("")),
            ("x-dead-letter-routing-key", string(key)),
            ("x-message-ttl", int(10)),
        ]
    };
    c.call::<queue::DeclareOk>(1, q_with("dl22.self", arguments("dl22.self")));
    c.call::<queue::DeclareOk>(1, q_with("dl20.a", arguments("dl20.b")));
    c.call::<queue::DeclareOk>(1, q_with("dl20.b", arguments("dl20.a")));
    for round in 0..3 {
        let queue = if round == 0 { "dl22.self" } else { "dl20.a" };
        fill(&mut c, queue, &["m"]);
        for queue in ["dl22.self", "dl20.a", "dl20.b"] {
            wait_ready(&mut c, queue, 0);
        }
    }
    if skipped_elsewhere("what we log of it") {
        return;
    }
    // Twice round dl20, one line: operators want to know, once.
    broker().wait_for_line("dl22.self");
    broker().wait_for_line("dl20.");
    let lines = broker().log();
    let cycle_lines = lines
        .lines()
        .filter(|line| line.contains("dl20.") && line.contains("WARN"))
        .count();
    assert_eq!(cycle_lines, 1, "{lines}");
}

/// DL-4: dropped with one line while the exchange is missing; works again once it is there.
#[test]
fn a_missing_dead_letter_exchange_loses_letters_until_it_exists() {
    let mut c = client();
    c.call::<queue::DeclareOk>(
        1,
        q_with("dl4", [("x-dead-letter-exchange", string("dl4.x"))]),
    );
    let reject_one = |c: &mut Client| {
        fill(c, "dl4", &["m"]);
        let got = c.get(1, "dl4").expect("the message");
        c.nack(1, got.tag, false);
        settle(c, 1);
    };
    reject_one(&mut c);
    reject_one(&mut c);
    if !skipped_elsewhere("what we log of it") {
        broker().wait_for_line("dl4.x");
        let lines = broker().log();
        let count = lines
            .lines()
            .filter(|line| line.contains("dl4.x") && line.contains("WARN"))
            .count();
        assert_eq!(count, 1, "{lines}");
    }
    c.call::<exchange::DeclareOk>(1, x("dl4.x", "fanout"));
    c.queue_declare(1, "dl4.dead", q(""));
    c.bind(1, "dl4.dead", "dl4.x", "");
    reject_one(&mut c);
    dead_letter(&mut c, "dl4.dead");
}

/// FR-2, DL-12: a history that outgrows the frame loses its oldest entries, and the message arrives.
#[test]
fn a_long_history_is_cut_to_fit_a_frame() {
    let mut c = Client::login(
        address(),
        &crate::support::raw::Login {
            frame_max: 4096,
            ..Default::default()
        },
    );
    c.open_channel(1);
    let count = 25;
    let name = |number: usize| format!("dlf.{number}.{}", "n".repeat(120));
    for number in 0..count {
        let arguments = [
            ("x-dead-letter-exchange", string("")),
            ("x-dead-letter-routing-key", string(&name(number + 1))),
        ];
        c.call::<queue::DeclareOk>(1, q_with(&name(number), arguments));
    }
    c.queue_declare(1, &name(count), q(""));
    fill(&mut c, &name(0), &["m"]);
    for number in 0..count {
        wait_ready(&mut c, &name(number), 1);
        let got = c.get(1, &name(number)).expect("deliverable in every step");
        c.nack(1, got.tag, false);
    }
    let letter = dead_letter(&mut c, &name(count));
    assert_eq!(letter.message.body_text(), "m");
    let deaths = deaths(&letter);
    assert!(deaths.len() > 3 && deaths.len() < count, "{}", deaths.len());
    assert_eq!(
        deaths[0].get_text("queue"),
        Some(name(count - 1).as_str()),
        "the latest is there"
    );
}

/// DL-11: persistent letters in durable queues; DL-9: the target's own time starts afresh.
#[test]
fn letters_between_durable_queues_keep_everything() {
    let mut c = client();
    let arguments = table([
        ("x-dead-letter-exchange", string("")),
        ("x-dead-letter-routing-key", string("dl11.dead")),
    ]);
    c.call::<queue::DeclareOk>(
        1,
        queue::Declare {
            durable: true,
            arguments,
            ..q("dl11")
        },
    );
    c.queue_declare(1, "dl11.dead", durable());
    c.confirm_select(1);
    let body = vec![9; 300_000];
    c.publish(1, "", "dl11", &Message::persistent(body.clone()));
    c.wait_confirm(1);
    let got = c.get(1, "dl11").expect("the message");
    c.nack(1, got.tag, false);
    let letter = dead_letter(&mut c, "dl11.dead");
    assert!(letter.message.body == body);
    assert_eq!(letter.message.properties.delivery_mode(), Some(2));
    for queue in ["dl11", "dl11.dead"] {
        c.queue_delete(1, queue);
    }
}

/// DL-6, LL-11: a dead letter takes the alternate exchange and exchange bindings like any message; what no queue takes is
/// gone, and so is what a queue refuses.
#[test]
fn dead_letters_are_routed_like_any_message() {
    let mut c = client();
    c.exchange_declare(1, "dl6b.alternate", "fanout", false);
    let with_alternate = stratamq::amqp::method::exchange::Declare {
        arguments: table([("alternate-exchange", string("dl6b.alternate"))]),
        ..x("dl6b.x", "direct")
    };
    c.call::<stratamq::amqp::method::exchange::DeclareOk>(1, with_alternate);
    c.exchange_declare(1, "dl6b.next", "fanout", false);
    c.exchange_bind(1, "dl6b.next", "dl6b.x", "dl6b.bound");
    for queue in ["dl6b.to-alternate", "dl6b.to-next"] {
        c.queue_declare(1, queue, q(""));
    }
    let full = [
        ("x-max-length", int(1)),
        ("x-overflow", string("reject-publish")),
    ];
    c.call::<queue::DeclareOk>(1, q_with("dl6b.full", full));
    c.bind(1, "dl6b.to-alternate", "dl6b.alternate", "");
    c.bind(1, "dl6b.to-next", "dl6b.next", "");
    c.bind(1, "dl6b.full", "dl6b.next", "");
    for name in ["dl6b.bound", "dl6b.unbound"] {
        c.call::<queue::DeclareOk>(
            1,
            q_with(name, [("x-dead-letter-exchange", string("dl6b.x"))]),
        );
        fill(&mut c, name, &["a", "b"]);
        for _ in 0..2 {
            let got = c.get(1, name).expect("it is there");
            c.nack(1, got.tag, false);
        }
    }
    wait_ready(&mut c, "dl6b.to-alternate", 2);
    wait_ready(&mut c, "dl6b.to-next", 2);
    assert_eq!(
        drain(&mut c, "dl6b.full"),
        ["a"],
        "the other one is refused"
    );
    // Nothing is bound any more: gone, and nobody is told.
    c.call::<queue::DeclareOk>(
        1,
        q_with(
            "dl6b.lost",
            [("x-dead-letter-exchange", string("amq.direct"))],
        ),
    );
    fill(&mut c, "dl6b.lost", &["m"]);
    let got = c.get(1, "dl6b.lost").expect("m");
    c.nack(1, got.tag, false);
    settle(&mut c, 1);
    assert_eq!(counts(&mut c, "dl6b.lost").0, 0);
}

/// DL-19, VD-3: an `x-death` of the client that makes no sense is overwritten by the first death, and kept nowhere.
#[test]
fn a_malformed_history_of_the_client_is_overwritten() {
    let mut c = client();
    let arguments = [
        ("x-dead-letter-exchange", string("")),
        ("x-dead-letter-routing-key", string("dl19.dead")),
    ];
    c.call::<queue::DeclareOk>(1, q_with("dl19", arguments));
    c.queue_declare(1, "dl19.dead", q(""));
    let message = Message::with("m", |properties| {
        properties.set_header("x-death", "not a history");
    });
    c.publish(1, "", "dl19", &message);
    settle(&mut c, 1);
    let got = c.get(1, "dl19").expect("m");
    // Until then it is the client's own.
    let header = got.message.properties.header("x-death");
    assert_eq!(header, Some(string("not a history")));
    c.nack(1, got.tag, false);
    wait_ready(&mut c, "dl19.dead", 1);
    let dead = c.get(1, "dl19.dead").expect("the letter");
    let header = dead.message.properties.header("x-death");
    assert!(matches!(header, Some(FieldValue::Array(deaths)) if deaths.len() == 1));
    assert_eq!(dead.message.properties.header("x-invalid-headers"), None);
}
