//! A directory with what rules a vhost (policies, limits, topic permissions, settings) and queues in levels, one of them the queue
//! of a delayed exchange.

use std::path::Path;
use std::sync::Arc;

use stratamq::amqp::field_table::{FieldTable, FieldValue};
use stratamq::broker::meta::{
    Change, ExchangeV1, LimitNameV1, LimitV1, PolicyNameV1, PolicyV1, QueueV1,
    TopicPermissionsNameV1, TopicPermissionsV1, UserV1, VhostSettingsV1, VhostV1,
};
use stratamq::disk::sim::SimClock;
use stratamq::storage::types::{Seq, SettleCause};

use crate::command::{copy_of, strata_dump};
use crate::scripted::{Scripted, arguments, message};

/// 2026-11-01T00:00:00Z.
const START_MS: u64 = 1_793_491_200_000;
/// Levels of queue `urgent`, 0 to 3: ranks 4 to 1.
const LEVELS: u8 = 4;

/// Rules and messages, a checkpoint with a snapshot of all of it, changes of each, and a kill.
pub(crate) fn tell(root: &Path) {
    let clock = Arc::new(SimClock::new(START_MS));
    let (store, _) = Scripted::by_hand(root, clock).expect("the store opens");
    declare(&store);
    for number in 0..40 {
        publish(&store, number);
    }
    // Those of the highest level are delivered first: two are acked, one comes back.
    store.reserve(1, 9);
    let first = |rank: u16, count: u64| Seq::new(rank, count).0;
    store.settle(1, SettleCause::Acked, &[(first(1, 4), first(1, 8))]);
    store.requeue(1, first(2, 3), 1);
    store.commit();
    store.storage.checkpoint(&store).expect("a checkpoint");
    change(&store);
    for number in 40..60 {
        publish(&store, number);
    }
    store.settle(1, SettleCause::Purged, &[(first(4, 1), first(4, 20))]);
    store.requeue(1, first(2, 3), 2);
    store.commit();
}

/// Message `number` to its level of `urgent`, and every tenth one to the delayed exchange.
fn publish(store: &Scripted, number: u64) {
    let order = message("", "urgent", format!("order {number:04}"));
    let level = u8::try_from(number % u64::from(LEVELS)).expect("small");
    let rank = u16::from(LEVELS - level);
    store.publish_ranked(&order, &[(1, 0)], (rank, level), START_MS + number);
    if number.is_multiple_of(10) {
        let later = message("later", "urgent", format!("later {number:04}"));
        let due_ms = START_MS + 86_400_000 - number;
        store.publish(&later, &[(2, due_ms)], 0, START_MS + number);
    }
}

fn queue(id: u64, name: &str, table: &FieldTable) -> Change {
    Change::QueueDeclared(QueueV1 {
        id,
        vhost: "/".into(),
        name: name.into(),
        is_auto_delete: false,
        arguments: arguments(table),
    })
}

fn policy(name: &str, is_operator: bool, priority: i64, definition: &str) -> Change {
    Change::PolicySet(PolicyV1 {
        vhost: "/".into(),
        is_operator,
        name: name.into(),
        pattern: "^(?!amq)urg".into(),
        apply_to: "queues".into(),
        priority,
        definition: definition.into(),
    })
}

fn limit(is_of_user: bool, owner: &str, name: &str, value: i64) -> Change {
    Change::LimitSet(LimitV1 {
        is_of_user,
        owner: owner.into(),
        name: name.into(),
        value,
    })
}

fn topic_permissions(exchange: &str) -> Change {
    Change::TopicPermissionsSet(TopicPermissionsV1 {
        vhost: "/".into(),
        user: "till".into(),
        exchange: exchange.into(),
        write: "^{username}\\.".into(),
        read: ".*".into(),
    })
}

fn settings(description: &str, default_queue_type: &str) -> Change {
    Change::VhostSettingsSet(VhostSettingsV1 {
        name: "/".into(),
        description: description.into(),
        tags: vec!["shop".into(), "eu".into()],
        default_queue_type: default_queue_type.into(),
        is_protected: true,
    })
}

fn declare(store: &Scripted) {
    let levels = FieldTable::new().with("x-max-priority", FieldValue::SignedInt(3));
    let delayed = FieldTable::new().with("x-delayed-type", FieldValue::text("direct"));
    let delays_for = FieldTable::new().with("x-delayed-exchange", FieldValue::text("later"));
    let changes = [
        Change::VhostAdded(VhostV1 { name: "/".into() }),
        Change::UserSet(UserV1 {
            name: "till".into(),
            password_hash: "c2FsdHNlY3JldCBoYXNoIHRoYXQgbm9ib2R5IG1heSBzZWU=".into(),
            tags: vec!["monitoring".into()],
        }),
        queue(1, "urgent", &levels),
        Change::ExchangeDeclared(ExchangeV1 {
            vhost: "/".into(),
            name: "later".into(),
            kind: "x-delayed-message".into(),
            is_auto_delete: false,
            is_internal: false,
            arguments: arguments(&delayed),
        }),
        queue(2, "amq.delayed.later", &delays_for),
        policy("short", false, 1, r#"{"max-length":1000}"#),
        policy("long", false, 0, r#"{"max-length":100000}"#),
        policy("most", true, 0, r#"{"max-length-bytes":1000000}"#),
        limit(false, "/", "max-queues", 100),
        limit(true, "till", "max-channels", 10),
        topic_permissions("amq.topic"),
        topic_permissions("events"),
        settings("the shop", ""),
    ];
    changes.into_iter().for_each(|change| store.change(change));
    store.commit();
}

/// One of each kind is changed, one is taken away.
fn change(store: &Scripted) {
    let changes = [
        policy("short", false, 2, r#"{"max-length":2000}"#),
        Change::PolicyCleared(PolicyNameV1 {
            vhost: "/".into(),
            is_operator: false,
            name: "long".into(),
        }),
        limit(false, "/", "max-queues", 200),
        Change::LimitCleared(LimitNameV1 {
            is_of_user: true,
            owner: "till".into(),
            name: "max-channels".into(),
        }),
        Change::TopicPermissionsCleared(TopicPermissionsNameV1 {
            vhost: "/".into(),
            user: "till".into(),
            exchange: "events".into(),
        }),
        settings("the new shop", "quorum"),
    ];
    changes.into_iter().for_each(|change| store.change(change));
    store.commit();
}

/// Every place that says seqs says them as level and count.
#[test]
fn seqs_of_levels_are_told_as_rank_and_count() {
    let copy = copy_of("ruled");
    let directory = copy.path().to_str().expect("text");
    let said = |words: &[&str]| {
        let output = strata_dump(&[words, &[directory]].concat());
        let texts = [output.stdout, output.stderr];
        texts.map(|text| String::from_utf8(text).expect("text"))
    };
    let [index, _] = said(&["index", "urgent", "--json"]);
    let rows = index
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"));
    let rows: Vec<serde_json::Value> = rows.collect();
    let head = rows
        .iter()
        .find(|row| row["acked"] == false)
        .expect("some are unsettled");
    assert_eq!(head["seq"], "1:12");
    // Messages up to 1:8 were reserved; what was published later was not delivered.
    assert_eq!(head["delivered"], false);

    let path = copy.path().join("log").join("000000000001.segment");
    let mut bytes = std::fs::read(&path).expect("read");
    let number =
        |name: &str| usize::try_from(head[name].as_u64().expect("a number")).expect("small");
    bytes[number("offset") + number("size") - 9] ^= 1;
    std::fs::write(&path, bytes).expect("written");
    for words in [
        &["quarantine"][..],
        &["quarantine", "--json"],
        &["export"],
        &["verify"],
    ] {
        let [out, err] = said(words);
        assert!(
            format!("{out}{err}").contains("1:12"),
            "{words:?}: {out}{err}"
        );
    }
    let [exported, _] = said(&["export"]);
    assert!(exported.contains(r#""seq":"1:16""#), "{exported}");
}
