//! Dead-lettering: what is written into a message that dies, and where it goes.

use super::message::Message;
use super::queue::QueueHandle;
use crate::amqp::short_string::ShortString;

/// Why a message died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeathReason {
    /// Rejected without requeue.
    Rejected,
    /// Its time to live ran out.
    Expired,
    /// The queue was too long.
    MaxLength,
}

impl DeathReason {
    /// The word in the headers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::MaxLength => "maxlen",
        }
    }
}

/// Finds the queues a dead letter goes to; implemented over the topology.
pub trait DeadLetterRouter: Send + Sync {
    /// Queues that `exchange` of `vhost` routes `message` to with any of `routing_keys`, alternate
    /// exchanges and exchange bindings included; ascending by id, distinct. `None` when the exchange
    /// does not exist. Called without queue locks.
    fn route(
        &self,
        vhost: &str,
        exchange: &ShortString,
        routing_keys: &[ShortString],
        message: &Message,
    ) -> Option<Vec<QueueHandle>>;
}
