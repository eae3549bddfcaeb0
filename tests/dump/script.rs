//! The story of the fixture directories: three incarnations of one store.
//!
//! ```text
//! epoch 1  topology, fan-out, expiring messages, a queue that is deleted; acks; a clean stop
//! epoch 2  reservations, requeues, more messages, a checkpoint, then more; killed
//! epoch 3  replays, works on, and then: stopped (clean) or killed (torn, damaged, rotten)
//! ```

use std::path::Path;
use std::sync::Arc;

use stratamq::amqp::field_table::{FieldTable, FieldValue};
use stratamq::broker::meta::{
    BindingV1, Change, ExchangeNameV1, ExchangeV1, PermissionsV1, QueueIdV1, QueueV1, UserV1,
    VhostV1,
};
use stratamq::disk::sim::SimClock;
use stratamq::storage::types::{Position, SettleCause};

use crate::scripted::{Scripted, arguments, message};

/// 2026-01-01T00:00:00Z.
const START_MS: u64 = 1_767_225_600_000;

/// How the third incarnation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Stopped,
    Killed,
}

/// Places in the log that the fixtures do something to.
pub(crate) struct Told {
    /// A message of queue `work` in a segment below the checkpoint's begin, unsettled to the end.
    pub(crate) old_message: Position,
    /// A message of the third incarnation with synced batches behind it.
    pub(crate) synced_message: Position,
    /// The only record of the last batch.
    pub(crate) last_message: Position,
}

/// Tells the story in the empty directory `root`.
pub(crate) fn tell(root: &Path, end: End) -> Told {
    let old_message = first_incarnation(root);
    second_incarnation(root);
    let (synced_message, last_message) = third_incarnation(root, end);
    Told {
        old_message,
        synced_message,
        last_message,
    }
}

fn open(root: &Path, hour: u64) -> Scripted {
    let clock = Arc::new(SimClock::new(START_MS + hour * 3_600_000));
    Scripted::by_hand(root, clock).expect("the store opens").0
}

fn name(text: &str) -> String {
    text.to_owned()
}

fn queue(id: u64, vhost: &str, queue: &str, table: &FieldTable) -> Change {
    let arguments = arguments(table);
    Change::QueueDeclared(QueueV1 {
        id,
        vhost: name(vhost),
        name: name(queue),
        is_auto_delete: false,
        arguments,
    })
}

fn exchange(vhost: &str, exchange: &str, kind: &str) -> Change {
    Change::ExchangeDeclared(ExchangeV1 {
        vhost: name(vhost),
        name: name(exchange),
        kind: name(kind),
        is_auto_delete: false,
        is_internal: false,
        arguments: arguments(&FieldTable::default()),
    })
}

fn binding(source: &str, destination: &str, key: &str) -> Change {
    Change::BindingAdded(BindingV1 {
        vhost: name("/"),
        is_to_queue: true,
        destination: name(destination),
        source: name(source),
        routing_key: name(key),
        arguments: arguments(&FieldTable::default()),
    })
}

fn user(user: &str, tags: &[&str]) -> Change {
    Change::UserSet(UserV1 {
        name: name(user),
        password_hash: name("c2FsdHNlY3JldCBoYXNoIHRoYXQgbm9ib2R5IG1heSBzZWU="),
        tags: tags.iter().map(|tag| name(tag)).collect(),
    })
}

fn permissions(vhost: &str, user: &str, read: &str) -> Change {
    Change::PermissionsSet(PermissionsV1 {
        vhost: name(vhost),
        user: name(user),
        configure: name("^$"),
        write: name(".*"),
        read: name(read),
    })
}

fn declare_topology(store: &Scripted) {
    let none = FieldTable::default();
    let ttl = FieldTable::default().with("x-message-ttl", FieldValue::SignedInt(3_600_000));
    let priorities = FieldTable::default().with("x-max-priority", FieldValue::SignedInt(9));
    let changes = [
        Change::VhostAdded(VhostV1 { name: name("/") }),
        user("guest", &["administrator"]),
        permissions("/", "guest", ".*"),
        exchange("/", "orders", "topic"),
        exchange("/", "audit", "fanout"),
        exchange("/", "mistake", "direct"),
        queue(1, "/", "work", &none),
        queue(2, "/", "audit-all", &none),
        queue(3, "/", "quotes", &ttl),
        queue(4, "/", "gone", &none),
        binding("orders", "work", "order.*"),
        binding("orders", "quotes", "quote.#"),
        binding("audit", "audit-all", ""),
        Change::ExchangeDeleted(ExchangeNameV1 {
            vhost: name("/"),
            name: name("mistake"),
        }),
        Change::VhostAdded(VhostV1 { name: name("shop") }),
        user("till", &[]),
        permissions("shop", "till", "^work$"),
        queue(5, "shop", "work", &priorities),
    ];
    changes.into_iter().for_each(|change| store.change(change));
    store.commit();
}

/// A body that tells its number and can be compressed well.
fn body(number: u64, len: usize) -> Vec<u8> {
    format!("order {number:06} ")
        .into_bytes()
        .into_iter()
        .cycle()
        .take(len)
        .collect()
}

fn first_incarnation(root: &Path) -> Position {
    let store = open(root, 0);
    declare_topology(&store);
    let time = |number: u64| START_MS + number * 1000;
    let mut old_message = None;
    for number in 1..=40 {
        let order = message("orders", "order.new", body(number, 3000));
        // Every fourth one is for the auditors too.
        let targets: &[(u64, u64)] = if number % 4 == 0 {
            &[(1, 0), (2, 0)]
        } else {
            &[(1, 0)]
        };
        let position = store.publish(&order, targets, 0, time(number));
        if number == 8 {
            old_message = Some(position);
        }
        if number % 5 == 0 {
            store.commit();
        }
    }
    for number in 1..=6 {
        let quote = message("orders", "quote.new", body(number, 100));
        store.publish(&quote, &[(3, time(number) + 3_600_000)], 0, time(number));
    }
    store.publish(
        &message("", "gone", "lost with its queue"),
        &[(4, 0)],
        0,
        time(1),
    );
    store.commit();
    for number in 1..=5 {
        let sale = message("", "work", body(number, 50));
        let priority = u8::try_from(number).expect("small");
        store.publish(&sale, &[(5, 0)], priority, time(number));
    }
    store.reserve(1, 20);
    store.settle(1, SettleCause::Acked, &[(1, 7), (9, 12)]);
    store.settle(3, SettleCause::Expired, &[(1, 2)]);
    store.change(Change::QueueDeleted(QueueIdV1 { id: 4 }));
    store.commit();
    store.storage.close(&store).expect("a clean stop");
    old_message.expect("it was published")
}

fn second_incarnation(root: &Path) {
    let store = open(root, 1);
    let time = |number: u64| START_MS + 3_600_000 + number * 1000;
    store.requeue(1, 8, 1);
    store.requeue(1, 13, 3);
    store.settle(1, SettleCause::Acked, &[(14, 36)]);
    store.commit();
    for number in 41..=60 {
        let order = message("orders", "order.changed", body(number, 2000));
        store.publish(&order, &[(1, 0)], 0, time(number));
        store.commit();
    }
    store.storage.checkpoint(&store).expect("a checkpoint");
    store.settle(1, SettleCause::Acked, &[(37, 38)]);
    store.settle(2, SettleCause::Purged, &[(1, 9)]);
    store.reserve(1, 50);
    for number in 61..=70 {
        let order = message("audit", "", body(number, 500));
        store.publish(&order, &[(1, 0), (2, 0)], 0, time(number));
    }
    store.commit();
}

fn third_incarnation(root: &Path, end: End) -> (Position, Position) {
    let store = open(root, 2);
    let time = |number: u64| START_MS + 7_200_000 + number * 1000;
    store.reserve(2, 16);
    store.settle(2, SettleCause::MaxLength, &[(10, 10)]);
    store.settle(5, SettleCause::DeadLettered, &[(1, 1)]);
    store.commit();
    let mut positions = Vec::new();
    for number in 71..=76 {
        let order = message("orders", "order.last", body(number, 1500));
        positions.push(store.publish(&order, &[(1, 0)], 0, time(number)));
        store.commit();
    }
    if end == End::Stopped {
        store.storage.close(&store).expect("a clean stop");
    }
    (positions[1], positions[5])
}
