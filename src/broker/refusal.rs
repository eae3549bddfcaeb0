//! The texts of refusals, as clients match on them.

use super::error::BrokerError;
use crate::amqp::reply_code::{ChannelReplyCode, ConnectionReplyCode};
use crate::amqp::short_string::ShortString;

pub(crate) fn access_refused(text: impl Into<String>) -> BrokerError {
    BrokerError::channel(ChannelReplyCode::AccessRefused, text)
}

pub(crate) fn precondition_failed(text: impl Into<String>) -> BrokerError {
    BrokerError::channel(ChannelReplyCode::PreconditionFailed, text)
}

pub(crate) fn no_queue(name: &ShortString, vhost: &str) -> BrokerError {
    let text = format!("no queue '{name}' in vhost '{vhost}'");
    BrokerError::channel(ChannelReplyCode::NotFound, text)
}

pub(crate) fn no_exchange(name: &ShortString, vhost: &str) -> BrokerError {
    let text = format!("no exchange '{name}' in vhost '{vhost}'");
    BrokerError::channel(ChannelReplyCode::NotFound, text)
}

pub(crate) fn locked_queue(name: &ShortString, vhost: &str) -> BrokerError {
    let text = format!(
        "cannot obtain exclusive access to locked queue '{name}' in vhost '{vhost}'. It could be \
         originally declared on another connection or the exclusive property value does not match \
         that of the original declaration."
    );
    BrokerError::channel(ChannelReplyCode::ResourceLocked, text)
}

/// A quorum queue with a single active consumer hands nothing out beside it (GT-5).
pub(crate) fn get_beside_active(name: &ShortString, vhost: &str) -> BrokerError {
    let text = format!(
        "cannot obtain access to locked queue '{name}' in vhost '{vhost}'. basic.get operations are not \
         supported by <<\"quorum\">> queues with single active consumer"
    );
    BrokerError::channel(ChannelReplyCode::ResourceLocked, text)
}

pub(crate) fn no_global_prefetch(name: &ShortString, vhost: &str) -> BrokerError {
    let text = format!("queue '{name}' in vhost '{vhost}' does not support global qos");
    BrokerError::connection(ConnectionReplyCode::NotImplemented, text)
}

/// `if-unused` and `if-empty` on a quorum queue (QU-33).
pub(crate) fn no_conditional_delete(name: &ShortString, vhost: &str, flag: &str) -> BrokerError {
    let text = format!(
        "cannot delete queue '{name}' in vhost '{vhost}'. queue.delete operations with {flag} flag set are \
         not supported by quorum queues"
    );
    BrokerError::connection(ConnectionReplyCode::NotImplemented, text)
}

pub(crate) fn default_exchange() -> BrokerError {
    access_refused("operation not permitted on the default exchange")
}

pub(crate) fn exclusive_use(name: &ShortString, vhost: &str) -> BrokerError {
    access_refused(format!(
        "queue '{name}' in vhost '{vhost}' in exclusive use"
    ))
}

/// The vhost went while a command was on its way; the connection is being closed with the same words.
pub(crate) fn vhost_deleted(vhost: &str) -> BrokerError {
    let text = format!("vhost '{vhost}' is deleted");
    BrokerError::connection(ConnectionReplyCode::ConnectionForced, text)
}
