//! What the admin socket answers with.

use serde::{Deserialize, Serialize};

use super::{Response, to_response};
use crate::broker::admin::{AdminReplyBody, LimitOwner};

/// A user in an answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct UserEntry {
    /// Name.
    pub name: String,
    /// Tags.
    pub tags: Vec<String>,
}

/// A vhost in an answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct VhostWire {
    /// Name.
    pub name: String,
    /// In the operator's words.
    pub description: String,
    /// Tags.
    pub tags: Vec<String>,
    /// Type of queues that name none.
    pub default_queue_type: String,
    /// It is not to be deleted.
    pub protected_from_deletion: bool,
}

/// A policy in an answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct PolicyWire {
    /// Vhost.
    pub vhost: String,
    /// Name.
    pub name: String,
    /// Pattern.
    pub pattern: String,
    /// What kind of things it is for.
    #[serde(rename = "apply-to")]
    pub apply_to: String,
    /// Priority.
    pub priority: i64,
    /// Keys and values.
    pub definition: serde_json::Value,
}

/// Topic permissions in an answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct TopicPermissionWire {
    /// Vhost.
    pub vhost: String,
    /// User.
    pub user: String,
    /// Exchange.
    pub exchange: String,
    /// Pattern.
    pub write: String,
    /// Pattern.
    pub read: String,
}

/// A limit in an answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct LimitWire {
    /// `vhost` or `user`.
    pub of: String,
    /// Its name.
    pub owner: String,
    /// Which.
    pub name: String,
    /// How many; negative for no limit.
    pub value: i64,
}

/// Permissions in an answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct PermissionEntry {
    /// Vhost.
    pub vhost: String,
    /// User.
    pub user: String,
    /// Pattern.
    pub configure: String,
    /// Pattern.
    pub write: String,
    /// Pattern.
    pub read: String,
}

pub(super) fn body_response(body: &AdminReplyBody) -> Response {
    match body {
        AdminReplyBody::Done | AdminReplyBody::Queues(_) => Response::Ok(serde_json::Value::Null),
        AdminReplyBody::Vhosts(names) => to_response(names),
        AdminReplyBody::VhostEntries(rows) => list(rows, |row| VhostWire {
            name: row.name.clone(),
            description: row.description.clone(),
            tags: row.tags.clone(),
            default_queue_type: row.default_queue_type.clone(),
            protected_from_deletion: row.is_protected,
        }),
        AdminReplyBody::Policies(rows) => list(rows, |row| PolicyWire {
            vhost: row.vhost.clone(),
            name: row.name.clone(),
            pattern: row.pattern.clone(),
            apply_to: row.apply_to.clone(),
            priority: row.priority,
            definition: serde_json::from_str(&row.definition).unwrap_or_default(),
        }),
        AdminReplyBody::TopicPermissions(rows) => list(rows, |row| TopicPermissionWire {
            vhost: row.vhost.clone(),
            user: row.user.clone(),
            exchange: row.exchange.clone(),
            write: row.write.clone(),
            read: row.read.clone(),
        }),
        AdminReplyBody::Limits(rows) => list(rows, |row| {
            let (of, owner) = match &row.owner {
                LimitOwner::Vhost(vhost) => ("vhost", vhost),
                LimitOwner::User(user) => ("user", user),
            };
            LimitWire {
                of: of.to_owned(),
                owner: owner.clone(),
                name: row.name.clone(),
                value: row.value,
            }
        }),
        AdminReplyBody::Users(rows) => to_response(
            &rows
                .iter()
                .map(|row| UserEntry {
                    name: row.name.clone(),
                    tags: row.tags.clone(),
                })
                .collect::<Vec<_>>(),
        ),
        AdminReplyBody::Permissions(rows) => to_response(
            &rows
                .iter()
                .map(|row| PermissionEntry {
                    vhost: row.vhost.clone(),
                    user: row.user.clone(),
                    configure: row.configure.clone(),
                    write: row.write.clone(),
                    read: row.read.clone(),
                })
                .collect::<Vec<_>>(),
        ),
    }
}

fn list<Row, Wire: Serialize>(rows: &[Row], wire: impl Fn(&Row) -> Wire) -> Response {
    to_response(&rows.iter().map(wire).collect::<Vec<_>>())
}
