//! The open connections: how many there may be, who they are, and a way to close one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::broker::outbox::Outbox;
use crate::sync::lock;

/// An open connection, as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionEntry {
    /// Its number, unique since the start.
    pub id: u64,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// Who it is.
    pub user: String,
    /// Where it works.
    pub vhost: String,
    /// The name it gave itself.
    pub name: Option<String>,
    /// Product, version and platform that it gave.
    pub client: String,
    /// How it logged in.
    pub mechanism: String,
    /// Version of TLS; `None` in the clear.
    pub tls: Option<String>,
    /// When it was opened, Unix milliseconds.
    pub opened_at_ms: u64,
}

/// See the module. Cheap to clone: all clones are the same.
#[derive(Clone)]
pub(super) struct Clients {
    max: u64,
    open: Arc<Mutex<Open>>,
}

#[derive(Default)]
struct Open {
    last_id: u64,
    by_id: BTreeMap<u64, (ConnectionEntry, Arc<Outbox>)>,
}

impl Clients {
    /// At most `max`; `None` for any number.
    pub(super) fn new(max: Option<u64>) -> Self {
        Self {
            max: max.unwrap_or(u64::MAX),
            open: Arc::default(),
        }
    }

    /// How many there may be.
    pub(super) fn max(&self) -> u64 {
        self.max
    }

    /// A place for one more, which is given its id; `None` when all are taken.
    pub(super) fn enter(&self, entry: ConnectionEntry, outbox: &Arc<Outbox>) -> Option<Place> {
        let mut open = lock(&self.open);
        if open.by_id.len() as u64 >= self.max {
            return None;
        }
        open.last_id += 1;
        let id = open.last_id;
        let entry = ConnectionEntry { id, ..entry };
        open.by_id.insert(id, (entry, Arc::clone(outbox)));
        Some(Place {
            id,
            open: Arc::clone(&self.open),
        })
    }

    /// All of them, oldest first.
    pub(super) fn list(&self) -> Vec<ConnectionEntry> {
        let open = lock(&self.open);
        let entries = open.by_id.values().map(|(entry, _)| entry.clone());
        entries.collect()
    }

    /// Has a connection closed with 320 and this reason; false when there is none of that id.
    pub(super) fn close(&self, id: u64, reason: &str) -> bool {
        let outbox = lock(&self.open)
            .by_id
            .get(&id)
            .map(|(_, outbox)| Arc::clone(outbox));
        let Some(outbox) = outbox else { return false };
        outbox.force_close(reason);
        outbox.wake();
        true
    }
}

/// The place of one connection, given back when it is dropped.
pub(super) struct Place {
    id: u64,
    open: Arc<Mutex<Open>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.open).by_id.remove(&self.id);
    }
}
