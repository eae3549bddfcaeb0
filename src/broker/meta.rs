//! Topology and users as bytes: the META records of the log and the snapshot in a checkpoint.
//!
//! The only module that knows bincode. bincode is unmaintained, so nothing of it shows outside: every
//! value travels in an envelope of our own that names kind and version, and a struct that was written
//! once is never changed, only followed by a `...V2`.
//!
//! ```text
//!  META record    kind and version stand in the record, the body is the struct
//!  snapshot       | kind u16 = 0 | version u16 | length of the body u32 | body |     little endian
//! ```
//!
//! Invariants: (1) an unknown kind or version is an error, never skipped: a newer broker wrote it and
//! means it; (2) a body is used up to its last byte; (3) no length in a body is believed before it is
//! checked against a limit; (4) applying a record twice is the same as applying it once.

mod bindings;
mod bodies;

use std::collections::{BTreeMap, BTreeSet};

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use self::bindings::Bindings;
pub use self::bodies::{
    BindingV1, ExchangeNameV1, ExchangeV1, LimitNameV1, LimitV1, PermissionsNameV1, PermissionsV1,
    PolicyNameV1, PolicyV1, QueueIdV1, QueueV1, TopicPermissionsNameV1, TopicPermissionsV1,
    UserNameV1, UserV1, VhostSettingsV1, VhostV1,
};

/// Largest body of one record: names and one field table.
const RECORD_MAX_BYTES: usize = 16 << 20;
/// Largest snapshot.
const SNAPSHOT_MAX_BYTES: usize = 1 << 30;
/// Kind in the envelope of a snapshot.
pub const SNAPSHOT_KIND: u16 = 0;
/// Version of the snapshot's body that is written. Version 1, which ends before the policies, is read too.
pub const SNAPSHOT_VERSION: u16 = 2;
/// Kind, version, length.
const ENVELOPE_BYTES: usize = 8;

type Config<const LIMIT: usize> = Configuration<LittleEndian, Fixint, Limit<LIMIT>>;

const fn config<const LIMIT: usize>() -> Config<LIMIT> {
    bincode::config::standard()
        .with_fixed_int_encoding()
        .with_little_endian()
        .with_limit::<LIMIT>()
}

/// Why topology could not be read back. The data directory was written by a newer broker, or is damaged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// A record of a kind nobody knows here.
    #[error("topology record of unknown kind {kind}: written by a newer broker")]
    UnknownKind {
        /// The kind found.
        kind: u16,
    },
    /// A known kind in a version nobody knows here.
    #[error(
        "topology record of kind {kind} has unknown version {version}: written by a newer broker"
    )]
    UnknownVersion {
        /// The kind found.
        kind: u16,
        /// The version found.
        version: u16,
    },
    /// The body is not what kind and version promise.
    #[error("topology record of kind {kind} cannot be decoded: {reason}")]
    Malformed {
        /// The kind found.
        kind: u16,
        /// What is wrong.
        reason: String,
    },
}

/// Everything, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct SnapshotV1 {
    next_queue_id: u64,
    users: Vec<UserV1>,
    permissions: Vec<PermissionsV1>,
    vhosts: Vec<VhostV1>,
    exchanges: Vec<ExchangeV1>,
    queues: Vec<QueueV1>,
    bindings: Vec<BindingV1>,
}

/// The same with what policies, limits and settings of vhosts there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct SnapshotV2 {
    next_queue_id: u64,
    users: Vec<UserV1>,
    permissions: Vec<PermissionsV1>,
    vhosts: Vec<VhostV1>,
    exchanges: Vec<ExchangeV1>,
    queues: Vec<QueueV1>,
    bindings: Vec<BindingV1>,
    policies: Vec<PolicyV1>,
    topic_permissions: Vec<TopicPermissionsV1>,
    limits: Vec<LimitV1>,
    vhost_settings: Vec<VhostSettingsV1>,
}

impl From<SnapshotV1> for SnapshotV2 {
    fn from(before: SnapshotV1) -> Self {
        Self {
            next_queue_id: before.next_queue_id,
            users: before.users,
            permissions: before.permissions,
            vhosts: before.vhosts,
            exchanges: before.exchanges,
            queues: before.queues,
            bindings: before.bindings,
            ..Self::default()
        }
    }
}

/// The kinds of META records: variant, number, version, struct.
macro_rules! changes {
    ($($(#[$doc:meta])* $variant:ident = $kind:literal v $version:literal $body:ty,)*) => {
        /// One change of topology or users.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Change { $($(#[$doc])* $variant($body),)* }

        impl Change {
            /// All kinds: name, number, version, name of the body's struct. storage-format.md lists the same.
            pub const KINDS: &[(&str, u16, u16, &str)] = &[
                $((stringify!($variant), $kind, $version, stringify!($body)),)*
            ];

            /// Kind and version to store beside the body.
            #[must_use]
            pub const fn kind_and_version(&self) -> (u16, u16) {
                match self { $(Self::$variant(_) => ($kind, $version),)* }
            }

            /// The body.
            #[must_use]
            pub fn encode(&self) -> Vec<u8> {
                match self { $(Self::$variant(body) => encode::<RECORD_MAX_BYTES>(body),)* }
            }

            /// Reads a body back.
            ///
            /// # Errors
            /// See [`RestoreError`].
            pub fn decode(kind: u16, version: u16, body: &[u8]) -> Result<Self, RestoreError> {
                match (kind, version) {
                    $(($kind, $version) => {
                        decode::<RECORD_MAX_BYTES, $body>(kind, body).map(Self::$variant)
                    })*
                    $(($kind, version) => Err(RestoreError::UnknownVersion { kind, version }),)*
                    (kind, _) => Err(RestoreError::UnknownKind { kind }),
                }
            }
        }
    };
}

changes! {
    /// A vhost was added.
    VhostAdded = 1 v 1 VhostV1,
    /// A vhost was deleted, with all that is in it.
    VhostDeleted = 2 v 1 VhostV1,
    /// A user was added or changed.
    UserSet = 3 v 1 UserV1,
    /// A user was deleted, with its permissions.
    UserDeleted = 4 v 1 UserNameV1,
    /// Permissions were set.
    PermissionsSet = 5 v 1 PermissionsV1,
    /// Permissions were taken away.
    PermissionsCleared = 6 v 1 PermissionsNameV1,
    /// A durable exchange was declared.
    ExchangeDeclared = 7 v 1 ExchangeV1,
    /// An exchange was deleted, with all bindings from and to it.
    ExchangeDeleted = 8 v 1 ExchangeNameV1,
    /// A durable queue was declared.
    QueueDeclared = 9 v 1 QueueV1,
    /// A queue was deleted, with all bindings to it.
    QueueDeleted = 10 v 1 QueueIdV1,
    /// A binding was added.
    BindingAdded = 11 v 1 BindingV1,
    /// A binding was removed.
    BindingRemoved = 12 v 1 BindingV1,
    /// A policy or an operator policy was added or changed.
    PolicySet = 13 v 1 PolicyV1,
    /// A policy or an operator policy was taken away.
    PolicyCleared = 14 v 1 PolicyNameV1,
    /// Topic permissions were set.
    TopicPermissionsSet = 15 v 1 TopicPermissionsV1,
    /// Topic permissions were taken away.
    TopicPermissionsCleared = 16 v 1 TopicPermissionsNameV1,
    /// A limit was set.
    LimitSet = 17 v 1 LimitV1,
    /// A limit was taken away.
    LimitCleared = 18 v 1 LimitNameV1,
    /// What is said about a vhost was changed.
    VhostSettingsSet = 19 v 1 VhostSettingsV1,
}

fn encode<const LIMIT: usize>(body: &impl Serialize) -> Vec<u8> {
    bincode::serde::encode_to_vec(body, config::<LIMIT>()).expect(
        "structs of texts and numbers encode, and names and tables come from bounded frames",
    )
}

fn decode<const LIMIT: usize, T: DeserializeOwned>(
    kind: u16,
    body: &[u8],
) -> Result<T, RestoreError> {
    let malformed = |reason| RestoreError::Malformed { kind, reason };
    let (value, used) = bincode::serde::decode_from_slice(body, config::<LIMIT>())
        .map_err(|error| malformed(error.to_string()))?;
    if used != body.len() {
        return Err(malformed(format!("{} bytes left over", body.len() - used)));
    }
    Ok(value)
}

/// All durable topology and users: a snapshot plus the records after it. Also what the dump tool prints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetaState {
    /// Above every id ever issued that the log may name.
    pub next_queue_id: u64,
    /// By name.
    pub users: BTreeMap<String, UserV1>,
    /// By (vhost, user).
    pub permissions: BTreeMap<(String, String), PermissionsV1>,
    /// Names.
    pub vhosts: BTreeSet<String>,
    /// By (vhost, name).
    pub exchanges: BTreeMap<(String, String), ExchangeV1>,
    /// By id.
    pub queues: BTreeMap<u64, QueueV1>,
    /// All of them, in the order in which they were made.
    pub bindings: Bindings,
    /// By (vhost, is an operator policy, name).
    pub policies: BTreeMap<(String, bool, String), PolicyV1>,
    /// By (vhost, user, exchange).
    pub topic_permissions: BTreeMap<(String, String, String), TopicPermissionsV1>,
    /// By (is of a user, vhost or user, name).
    pub limits: BTreeMap<(bool, String, String), LimitV1>,
    /// By vhost; of most nothing is said.
    pub vhost_settings: BTreeMap<String, VhostSettingsV1>,
}

impl MetaState {
    /// Nothing, before the first record.
    #[must_use]
    pub fn new() -> Self {
        Self {
            next_queue_id: 1,
            ..Self::default()
        }
    }

    /// The envelope and everything in it.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        let body = encode::<SNAPSHOT_MAX_BYTES>(&SnapshotV2 {
            next_queue_id: self.next_queue_id,
            users: self.users.into_values().collect(),
            permissions: self.permissions.into_values().collect(),
            vhosts: self
                .vhosts
                .into_iter()
                .map(|name| VhostV1 { name })
                .collect(),
            exchanges: self.exchanges.into_values().collect(),
            queues: self.queues.into_values().collect(),
            bindings: self.bindings.into_ordered(),
            policies: self.policies.into_values().collect(),
            topic_permissions: self.topic_permissions.into_values().collect(),
            limits: self.limits.into_values().collect(),
            vhost_settings: self.vhost_settings.into_values().collect(),
        });
        let length =
            u32::try_from(body.len()).expect("a snapshot is encoded under a limit of 1 GiB");
        let mut bytes = Vec::with_capacity(ENVELOPE_BYTES + body.len());
        bytes.extend_from_slice(&SNAPSHOT_KIND.to_le_bytes());
        bytes.extend_from_slice(&SNAPSHOT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }

    /// Reads an envelope back.
    ///
    /// # Errors
    /// See [`RestoreError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, RestoreError> {
        let (version, body) = open_envelope(bytes)?;
        let snapshot = match version {
            1 => decode::<SNAPSHOT_MAX_BYTES, SnapshotV1>(SNAPSHOT_KIND, body)?.into(),
            SNAPSHOT_VERSION => decode::<SNAPSHOT_MAX_BYTES, SnapshotV2>(SNAPSHOT_KIND, body)?,
            version => {
                let kind = SNAPSHOT_KIND;
                return Err(RestoreError::UnknownVersion { kind, version });
            }
        };
        let mut state = Self {
            next_queue_id: snapshot.next_queue_id,
            vhosts: snapshot
                .vhosts
                .into_iter()
                .map(|vhost| vhost.name)
                .collect(),
            bindings: snapshot.bindings.into_iter().collect(),
            ..Self::default()
        };
        let users = snapshot.users.into_iter().map(Change::UserSet);
        let permissions = snapshot.permissions.into_iter().map(Change::PermissionsSet);
        let exchanges = snapshot.exchanges.into_iter().map(Change::ExchangeDeclared);
        let queues = snapshot.queues.into_iter().map(Change::QueueDeclared);
        for change in users.chain(permissions).chain(exchanges).chain(queues) {
            state.apply(change);
        }
        let policies = snapshot.policies.into_iter().map(Change::PolicySet);
        let topics = snapshot.topic_permissions.into_iter();
        let topics = topics.map(Change::TopicPermissionsSet);
        let limits = snapshot.limits.into_iter().map(Change::LimitSet);
        let settings = snapshot.vhost_settings.into_iter();
        let settings = settings.map(Change::VhostSettingsSet);
        for change in policies.chain(topics).chain(limits).chain(settings) {
            state.apply(change);
        }
        Ok(state)
    }

    /// Applies one record. Idempotent (4).
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::VhostAdded(vhost) => {
                self.vhosts.insert(vhost.name);
            }
            Change::VhostDeleted(vhost) => self.remove_vhost(&vhost.name),
            Change::UserSet(user) => {
                self.users.insert(user.name.clone(), user);
            }
            Change::UserDeleted(user) => {
                self.users.remove(&user.name);
                self.permissions.retain(|(_, of), _| *of != user.name);
                self.topic_permissions
                    .retain(|(_, of, _), _| *of != user.name);
                self.limits
                    .retain(|(is_of_user, of, _), _| !is_of_user || *of != user.name);
            }
            Change::PermissionsSet(permissions) => {
                let key = (permissions.vhost.clone(), permissions.user.clone());
                self.permissions.insert(key, permissions);
            }
            Change::PermissionsCleared(name) => {
                self.permissions.remove(&(name.vhost, name.user));
            }
            Change::ExchangeDeclared(exchange) => {
                let key = (exchange.vhost.clone(), exchange.name.clone());
                self.exchanges.insert(key, exchange);
            }
            Change::ExchangeDeleted(exchange) => self.remove_exchange(exchange),
            Change::QueueDeclared(queue) => {
                self.next_queue_id = self.next_queue_id.max(queue.id.saturating_add(1));
                self.queues.insert(queue.id, queue);
            }
            Change::QueueDeleted(queue) => self.remove_queue(queue.id),
            Change::BindingAdded(binding) => {
                self.bindings.insert(binding);
            }
            Change::BindingRemoved(binding) => {
                self.bindings.remove(&binding);
            }
            other => self.apply_rule(other),
        }
    }

    /// What operators say about vhosts, users and names.
    fn apply_rule(&mut self, change: Change) {
        match change {
            Change::PolicySet(policy) => {
                let key = (
                    policy.vhost.clone(),
                    policy.is_operator,
                    policy.name.clone(),
                );
                self.policies.insert(key, policy);
            }
            Change::PolicyCleared(of) => {
                self.policies.remove(&(of.vhost, of.is_operator, of.name));
            }
            Change::TopicPermissionsSet(set) => {
                let key = (set.vhost.clone(), set.user.clone(), set.exchange.clone());
                self.topic_permissions.insert(key, set);
            }
            Change::TopicPermissionsCleared(of) => {
                self.topic_permissions
                    .remove(&(of.vhost, of.user, of.exchange));
            }
            Change::LimitSet(limit) => {
                let key = (limit.is_of_user, limit.owner.clone(), limit.name.clone());
                self.limits.insert(key, limit);
            }
            Change::LimitCleared(of) => {
                self.limits.remove(&(of.is_of_user, of.owner, of.name));
            }
            Change::VhostSettingsSet(settings) => {
                self.vhost_settings.insert(settings.name.clone(), settings);
            }
            // The rest is above.
            _ => {}
        }
    }

    fn remove_vhost(&mut self, name: &str) {
        self.vhosts.remove(name);
        self.permissions.retain(|(within, _), _| within != name);
        self.exchanges.retain(|(within, _), _| within != name);
        self.queues.retain(|_, queue| queue.vhost != name);
        self.bindings.retain(|binding| binding.vhost != name);
        self.policies.retain(|(within, ..), _| within != name);
        self.topic_permissions
            .retain(|(within, ..), _| within != name);
        self.limits
            .retain(|(is_of_user, of, _), _| *is_of_user || of != name);
        self.vhost_settings.remove(name);
    }

    fn remove_exchange(&mut self, exchange: ExchangeNameV1) {
        self.bindings.retain(|binding| {
            let is_destination = !binding.is_to_queue && binding.destination == exchange.name;
            let is_end = is_destination || binding.source == exchange.name;
            binding.vhost != exchange.vhost || !is_end
        });
        self.exchanges.remove(&(exchange.vhost, exchange.name));
    }

    fn remove_queue(&mut self, id: u64) {
        // The id was issued, whatever became of the queue.
        self.next_queue_id = self.next_queue_id.max(id.saturating_add(1));
        let Some(queue) = self.queues.remove(&id) else {
            return;
        };
        self.bindings.remove_of_queue(&queue.vhost, &queue.name);
    }
}

/// The version and the body of a snapshot's envelope.
fn open_envelope(bytes: &[u8]) -> Result<(u16, &[u8]), RestoreError> {
    let malformed = |reason: &str| RestoreError::Malformed {
        kind: SNAPSHOT_KIND,
        reason: reason.to_owned(),
    };
    let Some((&[k0, k1, v0, v1, l0, l1, l2, l3], body)) =
        bytes.split_first_chunk::<ENVELOPE_BYTES>()
    else {
        return Err(malformed("shorter than its envelope"));
    };
    let kind = u16::from_le_bytes([k0, k1]);
    let version = u16::from_le_bytes([v0, v1]);
    if kind != SNAPSHOT_KIND {
        return Err(RestoreError::UnknownKind { kind });
    }
    if usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])) != Ok(body.len()) {
        return Err(malformed("its length is not that in the envelope"));
    }
    Ok((version, body))
}

#[cfg(test)]
mod tests;
