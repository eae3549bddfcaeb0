//! What may be asked on the admin socket.

use serde::{Deserialize, Serialize};

use crate::broker::admin::{
    AdminCommand, LimitEntry, LimitOwner, PolicyEntry, TopicPermissionsEntry, VhostChange,
};

/// A request on the socket.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Uptime, recovery, queues, commits.
    Status,
    /// The open connections.
    ListConnections,
    /// Closes a connection with 320.
    CloseConnection {
        /// Its number in the listing.
        id: u64,
        /// What its client is told.
        reason: String,
    },
    /// See [`AdminCommand::AddUser`].
    AddUser {
        /// Name.
        name: String,
        /// Password.
        password: String,
        /// Tags.
        tags: Vec<String>,
    },
    /// See [`AdminCommand::DeleteUser`].
    DeleteUser {
        /// Name.
        name: String,
    },
    /// See [`AdminCommand::SetPassword`].
    SetPassword {
        /// Name.
        name: String,
        /// Password.
        password: String,
    },
    /// See [`AdminCommand::SetTags`].
    SetTags {
        /// Name.
        name: String,
        /// Tags.
        tags: Vec<String>,
    },
    /// See [`AdminCommand::ListUsers`].
    ListUsers,
    /// See [`AdminCommand::SetPermissions`].
    SetPermissions {
        /// User.
        user: String,
        /// Vhost.
        vhost: String,
        /// Pattern.
        configure: String,
        /// Pattern.
        write: String,
        /// Pattern.
        read: String,
    },
    /// See [`AdminCommand::ClearPermissions`].
    ClearPermissions {
        /// User.
        user: String,
        /// Vhost.
        vhost: String,
    },
    /// See [`AdminCommand::ListPermissions`].
    ListPermissions,
    /// See [`AdminCommand::AddVhost`].
    AddVhost {
        /// Name.
        name: String,
    },
    /// See [`AdminCommand::DeleteVhost`].
    DeleteVhost {
        /// Name.
        name: String,
    },
    /// See [`AdminCommand::ListVhosts`].
    ListVhosts,
    /// See [`AdminCommand::DescribeVhosts`].
    DescribeVhosts,
    /// See [`AdminCommand::ChangeVhost`].
    ChangeVhost {
        /// Name.
        name: String,
        /// In the operator's words.
        description: Option<String>,
        /// Tags.
        tags: Option<Vec<String>>,
        /// Type of queues that name none.
        default_queue_type: Option<String>,
        /// It is not to be deleted.
        is_protected: Option<bool>,
    },
    /// See [`AdminCommand::SetPolicy`].
    SetPolicy {
        /// An operator policy.
        is_operator: bool,
        /// Vhost.
        vhost: String,
        /// Name.
        name: String,
        /// Pattern.
        pattern: String,
        /// Keys and values, JSON.
        definition: String,
        /// Priority.
        priority: i64,
        /// What kind of things it is for.
        apply_to: String,
    },
    /// See [`AdminCommand::ClearPolicy`].
    ClearPolicy {
        /// An operator policy.
        is_operator: bool,
        /// Vhost.
        vhost: String,
        /// Name.
        name: String,
    },
    /// See [`AdminCommand::ListPolicies`].
    ListPolicies {
        /// Operator policies.
        is_operator: bool,
    },
    /// See [`AdminCommand::SetTopicPermissions`].
    SetTopicPermissions {
        /// User.
        user: String,
        /// Vhost.
        vhost: String,
        /// Exchange.
        exchange: String,
        /// Pattern.
        write: String,
        /// Pattern.
        read: String,
    },
    /// See [`AdminCommand::ClearTopicPermissions`].
    ClearTopicPermissions {
        /// User.
        user: String,
        /// Vhost.
        vhost: String,
        /// Exchange.
        exchange: Option<String>,
    },
    /// See [`AdminCommand::ListTopicPermissions`].
    ListTopicPermissions,
    /// See [`AdminCommand::SetLimit`].
    SetLimit {
        /// It is of a user, not of a vhost.
        is_of_user: bool,
        /// The user or vhost.
        owner: String,
        /// Which.
        name: String,
        /// How many.
        value: i64,
    },
    /// See [`AdminCommand::ClearLimit`].
    ClearLimit {
        /// It is of a user, not of a vhost.
        is_of_user: bool,
        /// The user or vhost.
        owner: String,
        /// Which.
        name: String,
    },
    /// See [`AdminCommand::ListLimits`].
    ListLimits,
}

fn limit_owner(is_of_user: bool, owner: String) -> LimitOwner {
    match is_of_user {
        true => LimitOwner::User(owner),
        false => LimitOwner::Vhost(owner),
    }
}

impl Request {
    /// The domain's command; `None` for what the server answers itself.
    pub(super) fn into_command(self) -> Option<AdminCommand> {
        Some(match self {
            Self::Status | Self::ListConnections | Self::CloseConnection { .. } => return None,
            Self::AddUser {
                name,
                password,
                tags,
            } => AdminCommand::AddUser {
                name,
                password: password.into_bytes(),
                tags,
            },
            Self::DeleteUser { name } => AdminCommand::DeleteUser { name },
            Self::SetPassword { name, password } => AdminCommand::SetPassword {
                name,
                password: password.into_bytes(),
            },
            Self::SetTags { name, tags } => AdminCommand::SetTags { name, tags },
            Self::ListUsers => AdminCommand::ListUsers,
            Self::SetPermissions {
                user,
                vhost,
                configure,
                write,
                read,
            } => AdminCommand::SetPermissions {
                user,
                vhost,
                configure,
                write,
                read,
            },
            Self::ClearPermissions { user, vhost } => {
                AdminCommand::ClearPermissions { user, vhost }
            }
            Self::ListPermissions => AdminCommand::ListPermissions { vhost: None },
            Self::AddVhost { name } => AdminCommand::AddVhost { name },
            Self::DeleteVhost { name } => AdminCommand::DeleteVhost { name },
            Self::ListVhosts => AdminCommand::ListVhosts,
            other => return other.into_rule(),
        })
    }

    /// The commands about names, users' topics and vhosts.
    fn into_rule(self) -> Option<AdminCommand> {
        Some(match self {
            Self::DescribeVhosts => AdminCommand::DescribeVhosts,
            Self::ChangeVhost {
                name,
                description,
                tags,
                default_queue_type,
                is_protected,
            } => AdminCommand::ChangeVhost {
                name,
                change: VhostChange {
                    description,
                    tags,
                    default_queue_type,
                    is_protected,
                },
            },
            Self::SetPolicy {
                is_operator,
                vhost,
                name,
                pattern,
                definition,
                priority,
                apply_to,
            } => AdminCommand::SetPolicy {
                is_operator,
                policy: PolicyEntry {
                    vhost,
                    name,
                    pattern,
                    apply_to,
                    priority,
                    definition,
                },
            },
            Self::ClearPolicy {
                is_operator,
                vhost,
                name,
            } => AdminCommand::ClearPolicy {
                is_operator,
                vhost,
                name,
            },
            Self::ListPolicies { is_operator } => AdminCommand::ListPolicies { is_operator },
            Self::SetTopicPermissions {
                user,
                vhost,
                exchange,
                write,
                read,
            } => AdminCommand::SetTopicPermissions(TopicPermissionsEntry {
                vhost,
                user,
                exchange,
                write,
                read,
            }),
            Self::ClearTopicPermissions {
                user,
                vhost,
                exchange,
            } => AdminCommand::ClearTopicPermissions {
                user,
                vhost,
                exchange,
            },
            Self::ListTopicPermissions => AdminCommand::ListTopicPermissions,
            Self::SetLimit {
                is_of_user,
                owner,
                name,
                value,
            } => AdminCommand::SetLimit(LimitEntry {
                owner: limit_owner(is_of_user, owner),
                name,
                value,
            }),
            Self::ClearLimit {
                is_of_user,
                owner,
                name,
            } => AdminCommand::ClearLimit {
                owner: limit_owner(is_of_user, owner),
                name,
            },
            Self::ListLimits => AdminCommand::ListLimits,
            // The rest is above.
            _ => return None,
        })
    }
}
