//! What a connection may do: permissions, topic permissions and the owners of exclusive queues.
//!
//! ```text
//!   check -> has the version of users and permissions changed? -- no --> the connection's own copy decides
//!                                 '-- yes: read both anew, under the lock of all users
//! ```
//! So a change is in force from the next command on, and a check costs a comparison. A user that lost its access to the
//! vhost is refused everything.

use super::Connection;
use crate::amqp::short_string::ShortString;
use crate::broker::access::{Operation, Permissions};
use crate::broker::error::BrokerError;
use crate::broker::exchange::ExchangeKind;
use crate::broker::queue::QueueHandle;
use crate::broker::refusal::{access_refused, locked_queue};

/// The default exchange where permissions name it.
const DEFAULT_EXCHANGE: &str = "amq.default";

impl Connection {
    /// The permissions in force; they may have changed since the last call.
    pub(in crate::broker) fn permissions(&mut self) -> Option<&Permissions> {
        let version = self.shared.access_version();
        if version != self.permissions_version {
            let access = crate::sync::read(&self.shared.access);
            let now = access.permissions_of(self.user.name(), self.vhost.name());
            self.topic_permissions =
                access.topic_permissions_of(self.user.name(), self.vhost.name());
            self.permissions = now?;
            drop(access);
            self.permissions_version = version;
        }
        Some(&self.permissions)
    }

    /// True when the user may do that to the thing of that name.
    pub(in crate::broker) fn allows(&mut self, operation: Operation, name: &ShortString) -> bool {
        let name = permission_name(name);
        self.permissions()
            .is_some_and(|permissions| permissions.allows(operation, name))
    }

    pub(in crate::broker) fn check_exchange_access(
        &mut self,
        operation: Operation,
        name: &ShortString,
    ) -> Result<(), BrokerError> {
        if self.allows(operation, name) {
            return Ok(());
        }
        Err(self.refused(operation, "exchange", permission_name(name)))
    }

    pub(in crate::broker) fn check_queue_access(
        &mut self,
        operation: Operation,
        name: &ShortString,
    ) -> Result<(), BrokerError> {
        let allowed = self
            .permissions()
            .is_some_and(|permissions| permissions.allows(operation, name.as_str()));
        if allowed {
            return Ok(());
        }
        Err(self.refused(operation, "queue", name.as_str()))
    }

    /// Topic permissions, which only topic exchanges have (AZ-2). An exchange that is not there is somebody else's concern.
    pub(in crate::broker) fn check_topic_access(
        &mut self,
        operation: Operation,
        exchange: &ShortString,
        keys: &[ShortString],
    ) -> Result<(), BrokerError> {
        self.permissions();
        let Some(permissions) = self.topic_permissions.get(exchange) else {
            return Ok(());
        };
        let refused = keys
            .iter()
            .find(|key| !permissions.allows(operation, key.as_str()));
        let Some(key) = refused else {
            return Ok(());
        };
        let topology = self.vhost.read();
        let kind = topology.exchange(exchange).map(|found| found.spec().kind);
        if kind != Some(ExchangeKind::Topic) {
            return Ok(());
        }
        let (vhost, user) = (self.vhost.name(), self.user.name());
        Err(access_refused(format!(
            "{operation} access to topic '{key}' in exchange '{exchange}' in vhost '{vhost}' \
             refused for user '{user}'"
        )))
    }

    /// Passive declares need any of the three.
    pub(in crate::broker) fn check_any_access(
        &mut self,
        kind: &str,
        name: &ShortString,
    ) -> Result<(), BrokerError> {
        let operations = [Operation::Configure, Operation::Write, Operation::Read];
        let allowed = self.permissions().is_some_and(|permissions| {
            let mut operations = operations.into_iter();
            operations.any(|operation| permissions.allows(operation, name.as_str()))
        });
        if allowed {
            return Ok(());
        }
        Err(self.refused(Operation::Configure, kind, name.as_str()))
    }

    fn refused(&self, operation: Operation, kind: &str, name: &str) -> BrokerError {
        let (vhost, user) = (self.vhost.name(), self.user.name());
        access_refused(format!(
            "{operation} access to {kind} '{name}' in vhost '{vhost}' refused for user '{user}'"
        ))
    }

    /// Refuses the exclusive queue of another connection.
    pub(in crate::broker) fn check_owner(&self, queue: &QueueHandle) -> Result<(), BrokerError> {
        let owner = queue.spec().exclusive_owner;
        if owner.is_none_or(|owner| owner == self.id) {
            return Ok(());
        }
        Err(locked_queue(&queue.spec().name, self.vhost.name()))
    }
}

/// The name of an exchange where permissions look.
fn permission_name(name: &ShortString) -> &str {
    if name.is_empty() {
        DEFAULT_EXCHANGE
    } else {
        name.as_str()
    }
}
