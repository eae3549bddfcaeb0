//! Topology of a store that was opened although a part of its log is lost: whatever a message needs to be reached.
//!
//! - A queue whose declaration is lost gets a name, `recovered.ID` in the vhost `/`, so that its messages are not
//!   dropped.
//! - A vhost that a queue names exists.
//! - Without any user nobody could log in: `guest` is made again, as in a blank broker.

use super::access::{Account, PasswordHash, Permissions};
use super::facade::{ADMINISTRATOR_TAG, DEFAULT_USER, DEFAULT_VHOST};
use super::meta::{Change, MetaState, QueueV1, VhostV1};
use super::records;
use crate::amqp::field_table::FieldTable;
use crate::storage::QueueImage;

/// Adds what is missing.
pub(super) fn complete(state: &mut MetaState, images: &[QueueImage]) {
    for image in images {
        if state.queues.contains_key(&image.id.0) {
            continue;
        }
        let name = format!("recovered.{}", image.id);
        tracing::error!(
            queue = name,
            "the declaration of a queue is lost; its messages are here"
        );
        state.apply(Change::QueueDeclared(QueueV1 {
            id: image.id.0,
            vhost: DEFAULT_VHOST.to_owned(),
            name,
            is_auto_delete: false,
            arguments: FieldTable::default().to_bytes().to_vec(),
        }));
    }
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

#[cfg(test)]
mod tests {
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
