//! Queue arguments, parsed once.

use crate::amqp::field_table::FieldTable;
use crate::amqp::short_string::ShortString;

/// What happens to a message that would make a queue too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// The oldest ready messages go.
    #[default]
    DropHead,
    /// The new one is refused (nack).
    RejectPublish,
    /// The new one is refused and dead-lettered.
    RejectPublishDlx,
}

/// Where dead letters of a queue go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterTarget {
    /// The exchange; empty for the default one.
    pub exchange: ShortString,
    /// The routing key; `None` for the message's own keys.
    pub routing_key: Option<ShortString>,
}

/// The arguments of a queue that mean something to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueArguments {
    /// `x-message-ttl`.
    pub message_ttl_ms: Option<u64>,
    /// `x-expires`.
    pub expires_ms: Option<u64>,
    /// `x-max-length`.
    pub max_length: Option<u64>,
    /// `x-max-length-bytes`.
    pub max_length_bytes: Option<u64>,
    /// `x-overflow`.
    pub overflow: Overflow,
    /// `x-dead-letter-exchange` and `x-dead-letter-routing-key`.
    pub dead_letter: Option<DeadLetterTarget>,
    /// `x-single-active-consumer`.
    pub is_single_active_consumer: bool,
}

/// An argument that is refused: the text after `PRECONDITION_FAILED - `.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ArgumentError(pub String);

impl QueueArguments {
    /// Checks and understands the arguments of `queue.declare` for a classic queue.
    ///
    /// # Errors
    /// The reply text for 406, naming the argument, the queue and the vhost.
    pub fn parse(arguments: &FieldTable, queue: &str, vhost: &str) -> Result<Self, ArgumentError> {
        todo!()
    }
}
