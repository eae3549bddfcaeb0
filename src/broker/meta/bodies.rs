//! The bodies of META records. A struct that was written once is never changed, only followed by a `...V2`.

use serde::{Deserialize, Serialize};

/// A virtual host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VhostV1 {
    /// Its name.
    pub name: String,
}

/// A user, complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserV1 {
    /// Its name.
    pub name: String,
    /// `base64(salt + SHA-256(salt + password))`, or empty.
    pub password_hash: String,
    /// Its tags.
    pub tags: Vec<String>,
}

/// The name of a user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNameV1 {
    /// The name.
    pub name: String,
}

/// Permissions of a user in a vhost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PermissionsV1 {
    /// The vhost.
    pub vhost: String,
    /// The user.
    pub user: String,
    /// Pattern.
    pub configure: String,
    /// Pattern.
    pub write: String,
    /// Pattern.
    pub read: String,
}

/// Names a user in a vhost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PermissionsNameV1 {
    /// The vhost.
    pub vhost: String,
    /// The user.
    pub user: String,
}

/// A durable exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExchangeV1 {
    /// Its vhost.
    pub vhost: String,
    /// Its name.
    pub name: String,
    /// The name of its type, as clients declare it.
    pub kind: String,
    /// Deleted with its last binding as source.
    pub is_auto_delete: bool,
    /// Refuses publishes from clients.
    pub is_internal: bool,
    /// The arguments as a field table on the wire, length included.
    pub arguments: Vec<u8>,
}

/// Names an exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExchangeNameV1 {
    /// Its vhost.
    pub vhost: String,
    /// Its name.
    pub name: String,
}

/// A durable queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueV1 {
    /// Its id in the storage engine.
    pub id: u64,
    /// Its vhost.
    pub vhost: String,
    /// Its name.
    pub name: String,
    /// Deleted with its last consumer.
    pub is_auto_delete: bool,
    /// The arguments as a field table on the wire, length included.
    pub arguments: Vec<u8>,
}

/// Names a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueIdV1 {
    /// Its id in the storage engine.
    pub id: u64,
}

/// A binding between two durable ends. Ordered by destination, so that those of a queue stand together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BindingV1 {
    /// Its vhost.
    pub vhost: String,
    /// The destination is a queue, not an exchange.
    pub is_to_queue: bool,
    /// Name of the destination.
    pub destination: String,
    /// Name of the source exchange.
    pub source: String,
    /// Binding key.
    pub routing_key: String,
    /// The arguments, sorted by name, as a field table on the wire, length included.
    pub arguments: Vec<u8>,
}

/// A policy or an operator policy, complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyV1 {
    /// Its vhost.
    pub vhost: String,
    /// An operator policy; those have names of their own.
    pub is_operator: bool,
    /// Its name.
    pub name: String,
    /// Pattern of the names of the objects it applies to.
    pub pattern: String,
    /// `all`, `queues`, `classic_queues`, `quorum_queues`, `streams` or `exchanges`.
    pub apply_to: String,
    /// The matching policy of the highest priority applies.
    pub priority: i64,
    /// Keys and values, a JSON object.
    pub definition: String,
}

/// Names a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyNameV1 {
    /// Its vhost.
    pub vhost: String,
    /// An operator policy.
    pub is_operator: bool,
    /// Its name.
    pub name: String,
}

/// What routing keys a user may use with a topic exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicPermissionsV1 {
    /// The vhost.
    pub vhost: String,
    /// The user.
    pub user: String,
    /// The exchange.
    pub exchange: String,
    /// Pattern of routing keys it may publish with; `{username}` and `{vhost}` stand for names.
    pub write: String,
    /// The same of keys it may bind with.
    pub read: String,
}

/// Names topic permissions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicPermissionsNameV1 {
    /// The vhost.
    pub vhost: String,
    /// The user.
    pub user: String,
    /// The exchange.
    pub exchange: String,
}

/// A limit of a vhost or of a user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitV1 {
    /// It is of a user, not of a vhost.
    pub is_of_user: bool,
    /// The vhost or user.
    pub owner: String,
    /// `max-connections`, `max-queues` or `max-channels`.
    pub name: String,
    /// How many; negative for no limit.
    pub value: i64,
}

/// Names a limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitNameV1 {
    /// It is of a user, not of a vhost.
    pub is_of_user: bool,
    /// The vhost or user.
    pub owner: String,
    /// Its name.
    pub name: String,
}

/// What an operator said about a vhost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VhostSettingsV1 {
    /// The vhost.
    pub name: String,
    /// In the operator's words.
    pub description: String,
    /// Tags.
    pub tags: Vec<String>,
    /// The type of queues that are declared without one; empty for classic.
    pub default_queue_type: String,
    /// It is not to be deleted.
    pub is_protected: bool,
}
