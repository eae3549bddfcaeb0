//! What an operator asks of a broker, as values: users, vhosts, permissions, a listing of queues.

use crate::storage::types::Lsn;

/// One request of an operator.
#[derive(Clone, Debug)]
pub enum AdminCommand {
    /// Adds a user without permissions.
    AddUser {
        /// Name, not empty.
        name: String,
        /// The password; empty for none, then nobody can log in with a password.
        password: Vec<u8>,
        /// Tags.
        tags: Vec<String>,
    },
    /// Deletes a user, its permissions, and closes its connections.
    DeleteUser {
        /// Name.
        name: String,
    },
    /// Replaces a password. Open connections stay.
    SetPassword {
        /// Name.
        name: String,
        /// The new one.
        password: Vec<u8>,
    },
    /// Replaces the tags of a user.
    SetTags {
        /// Name.
        name: String,
        /// The new ones.
        tags: Vec<String>,
    },
    /// Lists users by name.
    ListUsers,
    /// Sets the three patterns of a user in a vhost.
    SetPermissions {
        /// User.
        user: String,
        /// Vhost.
        vhost: String,
        /// What it may declare and delete.
        configure: String,
        /// What it may publish to and bind.
        write: String,
        /// What it may consume and bind from.
        read: String,
    },
    /// Takes a user's access to a vhost away.
    ClearPermissions {
        /// User.
        user: String,
        /// Vhost.
        vhost: String,
    },
    /// Lists permissions of one vhost, or of all.
    ListPermissions {
        /// The vhost; `None` for all.
        vhost: Option<String>,
    },
    /// Adds a vhost with its predeclared exchanges.
    AddVhost {
        /// Name, not empty, at most 255 bytes.
        name: String,
    },
    /// Deletes a vhost with everything in it and closes its connections.
    DeleteVhost {
        /// Name.
        name: String,
    },
    /// Lists vhosts by name.
    ListVhosts,
    /// Lists queues of all vhosts.
    ListQueues,
    /// Lists vhosts and what is said about them.
    DescribeVhosts,
    /// Changes what is said about a vhost.
    ChangeVhost {
        /// Name.
        name: String,
        /// What changes.
        change: VhostChange,
    },
    /// Adds or replaces a policy; it holds at once.
    SetPolicy {
        /// An operator policy.
        is_operator: bool,
        /// The policy.
        policy: PolicyEntry,
    },
    /// Takes a policy away.
    ClearPolicy {
        /// An operator policy.
        is_operator: bool,
        /// Its vhost.
        vhost: String,
        /// Its name.
        name: String,
    },
    /// Lists policies of all vhosts.
    ListPolicies {
        /// Operator policies.
        is_operator: bool,
    },
    /// Sets what routing keys a user may use with a topic exchange.
    SetTopicPermissions(TopicPermissionsEntry),
    /// Takes topic permissions away: then every key is allowed.
    ClearTopicPermissions {
        /// User.
        user: String,
        /// Vhost.
        vhost: String,
        /// The exchange; `None` for all.
        exchange: Option<String>,
    },
    /// Lists all topic permissions.
    ListTopicPermissions,
    /// Sets a limit.
    SetLimit(LimitEntry),
    /// Takes a limit away.
    ClearLimit {
        /// Whose.
        owner: LimitOwner,
        /// Which.
        name: String,
    },
    /// Lists all limits.
    ListLimits,
}

/// A policy, as set and as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyEntry {
    /// Vhost.
    pub vhost: String,
    /// Name.
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

/// Topic permissions, as set and as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicPermissionsEntry {
    /// Vhost.
    pub vhost: String,
    /// User.
    pub user: String,
    /// The topic exchange.
    pub exchange: String,
    /// Pattern of the keys it may publish with; `{username}` and `{vhost}` stand for names.
    pub write: String,
    /// The same of the keys it may bind with.
    pub read: String,
}

/// Whose a limit is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitOwner {
    /// Of a vhost: `max-connections`, `max-queues`.
    Vhost(String),
    /// Of a user: `max-connections`, `max-channels`.
    User(String),
}

/// A limit, as set and as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitEntry {
    /// Whose.
    pub owner: LimitOwner,
    /// Which.
    pub name: String,
    /// How many; negative for no limit.
    pub value: i64,
}

/// What is to change about a vhost; `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VhostChange {
    /// In the operator's words.
    pub description: Option<String>,
    /// Tags.
    pub tags: Option<Vec<String>>,
    /// The type of queues that are declared without one.
    pub default_queue_type: Option<String>,
    /// It is not to be deleted.
    pub is_protected: Option<bool>,
}

/// A vhost in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostEntry {
    /// Name.
    pub name: String,
    /// In the operator's words.
    pub description: String,
    /// Tags.
    pub tags: Vec<String>,
    /// The type of queues that are declared without one.
    pub default_queue_type: String,
    /// It is not to be deleted.
    pub is_protected: bool,
}

/// Answer to an [`AdminCommand`].
#[derive(Clone, Debug)]
pub struct AdminReply {
    /// What to tell.
    pub body: AdminReplyBody,
    /// Tell it only when this is durable; `None` for at once.
    pub durable_at: Option<Lsn>,
}

/// The body of an [`AdminReply`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminReplyBody {
    /// Done.
    Done,
    /// Users.
    Users(Vec<UserRow>),
    /// Permissions.
    Permissions(Vec<PermissionsRow>),
    /// Names of vhosts.
    Vhosts(Vec<String>),
    /// Queues.
    Queues(Vec<QueueRow>),
    /// Vhosts and what is said about them.
    VhostEntries(Vec<VhostEntry>),
    /// Policies or operator policies.
    Policies(Vec<PolicyEntry>),
    /// Topic permissions.
    TopicPermissions(Vec<TopicPermissionsEntry>),
    /// Limits.
    Limits(Vec<LimitEntry>),
}

/// A user in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserRow {
    /// Name.
    pub name: String,
    /// Tags.
    pub tags: Vec<String>,
}

/// A user's permissions in a vhost, in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PermissionsRow {
    /// Vhost.
    pub vhost: String,
    /// User.
    pub user: String,
    /// What it may declare and delete.
    pub configure: String,
    /// What it may publish to and bind.
    pub write: String,
    /// What it may consume and bind from.
    pub read: String,
}

/// A queue in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueRow {
    /// Vhost.
    pub vhost: String,
    /// Name.
    pub name: String,
    /// Engine's id, as shown by the dump tool.
    pub id: u64,
    /// Kept over restarts.
    pub is_durable: bool,
    /// Messages ready for delivery.
    pub ready_count: u64,
    /// Messages delivered and not settled.
    pub unacked_count: u64,
    /// Messages that cannot be read and are kept aside.
    pub quarantined_count: u64,
    /// Consumers.
    pub consumer_count: u64,
}

/// Why an [`AdminCommand`] was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// The user to add is there.
    #[error("user '{0}' already exists")]
    UserExists(String),
    /// No such user.
    #[error("user '{0}' does not exist")]
    NoSuchUser(String),
    /// The vhost to add is there.
    #[error("vhost '{0}' already exists")]
    VhostExists(String),
    /// No such vhost.
    #[error("vhost '{0}' does not exist")]
    NoSuchVhost(String),
    /// A vhost that is not to be deleted.
    #[error("vhost '{0}' is protected from deletion")]
    VhostProtected(String),
    /// A user with the tag `protected`.
    #[error("user '{0}' is protected from deletion")]
    UserProtected(String),
    /// No such policy.
    #[error("policy '{0}' does not exist")]
    NoSuchPolicy(String),
    /// Something that cannot be set; the text says why.
    #[error("{0}")]
    Invalid(String),
    /// Empty, or longer than 255 bytes.
    #[error("a name must have 1 to 255 bytes")]
    BadName,
    /// A permission that is no regular expression.
    #[error("invalid pattern '{pattern}': {reason}")]
    BadPattern {
        /// As given.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
}
