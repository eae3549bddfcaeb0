//! Topology of a store that was opened although a part of its log is lost: whatever a message needs to be reached.
//!
//! - A queue whose declaration is lost gets a name, `recovered.ID` in the vhost `/`, so that its messages are not
//!   dropped. Nothing in it expires: what stands in its entries may have been a time to live, or the time at which a
//!   delayed message was due. An argument of the record says so, for all later starts. No policy bounds its length
//!   or its time either: it would match by accident.
//! - The delay queue of an exchange that is lost becomes such a queue as well; a delayed exchange without one gets it.
//! - A vhost that a queue names exists.
//! - Without any user nobody could log in: `guest` is made again, as in a blank broker.

use std::collections::BTreeSet;

use super::access::{Account, PasswordHash, Permissions};
use super::delayed;
use super::exchange::ExchangeKind;
use super::facade::{ADMINISTRATOR_TAG, DEFAULT_USER, DEFAULT_VHOST};
use super::meta::{Change, MetaState, QueueV1, VhostV1};
use super::records;
use crate::amqp::field_table::{FieldTable, FieldValue};
use crate::storage::QueueImage;

/// Names of queues whose declaration was lost begin so.
const NAME_PREFIX: &str = "recovered.";
/// Argument in their records.
const RECOVERED: &str = "x-recovered";

/// True when this names a queue whose declaration was lost.
pub(super) fn is_recovered(name: &str, arguments: &FieldTable) -> bool {
    name.starts_with(NAME_PREFIX) && arguments.get(RECOVERED) == Some(&FieldValue::Bool(true))
}

/// The declaration of a queue that lost its own.
fn recovered(id: u64, vhost: String) -> QueueV1 {
    let arguments = FieldTable::new().with(RECOVERED, true);
    QueueV1 {
        id,
        vhost,
        name: format!("{NAME_PREFIX}{id}"),
        is_auto_delete: false,
        arguments: arguments.to_bytes().to_vec(),
    }
}

/// Adds what is missing.
pub(super) fn complete(state: &mut MetaState, images: &[QueueImage]) {
    for image in images {
        if state.queues.contains_key(&image.id.0) {
            continue;
        }
        let record = recovered(image.id.0, DEFAULT_VHOST.to_owned());
        tracing::error!(
            queue = record.name,
            "the declaration of a queue is lost; its messages are here"
        );
        state.apply(Change::QueueDeclared(record));
    }
    complete_delays(state);
    let mut vhosts: Vec<String> = state
        .queues
        .values()
        .map(|queue| queue.vhost.clone())
        .collect();
    vhosts.push(DEFAULT_VHOST.to_owned());
    for name in vhosts {
        if !state.vhosts.contains(&name) {
            tracing::error!(
                vhost = name,
                "the record of a vhost is lost; it is made again"
            );
            state.apply(Change::VhostAdded(VhostV1 { name }));
        }
    }
    if state.users.is_empty() {
        tracing::error!("the records of all users are lost; `guest` is made again");
        let account = Account {
            password: PasswordHash::new(DEFAULT_USER.as_bytes()),
            tags: vec![ADMINISTRATOR_TAG.to_owned()],
        };
        state.apply(Change::UserSet(records::user(DEFAULT_USER, &account)));
        let permissions = records::permissions(DEFAULT_VHOST, DEFAULT_USER, &Permissions::all());
        state.apply(Change::PermissionsSet(permissions));
    }
}

/// Delayed exchanges and their delay queues, each with the other or none of them.
fn complete_delays(state: &mut MetaState) {
    let mut without: BTreeSet<(String, String)> = state
        .exchanges
        .iter()
        .filter(|(_, exchange)| exchange.kind == ExchangeKind::Delayed.name())
        .map(|(key, _)| key.clone())
        .collect();
    let mut changes = Vec::new();
    for queue in state.queues.values() {
        let Some(exchange) = delayed::exchange_of_record(queue) else {
            continue;
        };
        if without.remove(&(queue.vhost.clone(), exchange)) {
            continue;
        }
        let record = recovered(queue.id, queue.vhost.clone());
        tracing::error!(
            queue = record.name,
            "the declaration of a delayed exchange is lost; the messages that waited in it are here"
        );
        changes.push(Change::QueueDeclared(record));
    }
    let new_ids = state.next_queue_id..;
    for ((vhost, exchange), id) in without.into_iter().zip(new_ids) {
        changes.push(Change::QueueDeclared(delayed::record(id, vhost, &exchange)));
    }
    for change in changes {
        state.apply(change);
    }
}

#[cfg(test)]
mod tests {
    use super::super::meta::ExchangeV1;
    use super::*;
    use crate::storage::types::{Lsn, QueueId};

    #[test]
    fn messages_without_a_declared_queue_can_be_reached() {
        let mut state = MetaState::new();
        let images = [QueueImage::new(QueueId(7), Lsn(0))];
        complete(&mut state, &images);
        assert_eq!(state.queues[&7].name, "recovered.7");
        assert!(state.vhosts.contains("/") && state.users.contains_key("guest"));
        let complete_before = state.clone();
        complete(&mut state, &images);
        assert_eq!(state, complete_before, "nothing is added to what is there");
    }

    #[test]
    fn messages_of_a_lost_delayed_exchange_can_be_reached_and_a_found_one_delays_again() {
        let mut state = MetaState::new();
        let lost = delayed::record(3, "/".to_owned(), "lost");
        state.apply(Change::QueueDeclared(lost));
        state.apply(Change::ExchangeDeclared(ExchangeV1 {
            vhost: "/".to_owned(),
            name: "found".to_owned(),
            kind: "x-delayed-message".to_owned(),
            is_auto_delete: false,
            is_internal: false,
            arguments: FieldTable::default().to_bytes().to_vec(),
        }));
        complete(&mut state, &[]);
        assert_eq!(state.queues[&3].name, "recovered.3");
        assert_eq!(delayed::exchange_of_record(&state.queues[&3]), None);
        let found = delayed::exchange_of_record(&state.queues[&4]);
        assert_eq!(found.as_deref(), Some("found"));
        let complete_before = state.clone();
        complete(&mut state, &[]);
        assert_eq!(state, complete_before, "nothing is added to what is there");
    }

    #[test]
    fn known_users_are_not_replaced_by_guest() {
        let mut state = MetaState::new();
        let account = Account {
            password: PasswordHash::new(b"secret"),
            tags: Vec::new(),
        };
        state.apply(Change::UserSet(records::user("alice", &account)));
        complete(&mut state, &[]);
        assert!(!state.users.contains_key("guest"));
    }
}
