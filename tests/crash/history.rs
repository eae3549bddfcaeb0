//! What the recording client did and saw, one event after the other.
//!
//! An event that *asks* for something is recorded before its bytes can leave, an event that *learns* something after its bytes were
//! read. So at any moment: what was asked may have happened, what was learnt has.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

/// Names a message; the messages of one publisher have rising ids.
pub(crate) type MessageId = u64;
/// Names a transaction.
pub(crate) type TxId = u64;
/// Names a channel, over all connections and restarts.
pub(crate) type ChannelKey = u64;

/// What must come back byte by byte, as hashes: bodies of a long run would not fit into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    /// Of the property bytes on the wire.
    pub(crate) properties: u64,
    /// Of the body.
    pub(crate) body: u64,
    /// Of exchange and routing key.
    pub(crate) route: u64,
}

impl Fingerprint {
    /// Of a message as published or delivered.
    pub(crate) fn of(properties: &[u8], body: &[u8], exchange: &str, routing_key: &str) -> Self {
        let hash = |value: &dyn Fn(&mut DefaultHasher)| {
            let mut hasher = DefaultHasher::new();
            value(&mut hasher);
            hasher.finish()
        };
        Self {
            properties: hash(&|hasher| properties.hash(hasher)),
            body: hash(&|hasher| body.hash(hasher)),
            route: hash(&|hasher| (exchange, routing_key).hash(hasher)),
        }
    }
}

/// A message as it was seen in a queue.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    /// From its message-id; `None` when that is none of ours.
    pub(crate) id: Option<MessageId>,
    /// The broker's flag.
    pub(crate) is_redelivered: bool,
    /// What it looked like.
    pub(crate) fingerprint: Fingerprint,
}

/// One thing the client did or learnt.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// About to publish.
    Publish {
        /// The message.
        id: MessageId,
        /// Whose order counts.
        publisher: ChannelKey,
        /// The transaction it is part of.
        tx: Option<TxId>,
        /// Delivery mode 2.
        is_persistent: bool,
        /// Its property; 0 when it has none.
        priority: u8,
        /// Queues it is routed to, all of them durable.
        targets: Vec<String>,
        /// What it looks like.
        fingerprint: Fingerprint,
    },
    /// The broker confirmed it.
    Confirmed {
        /// The message.
        id: MessageId,
    },
    /// A consumer was handed a message.
    Delivered {
        /// From this queue.
        queue: String,
        /// The message.
        observed: Observed,
    },
    /// About to acknowledge it, or to reject it for good.
    Ack {
        /// In this queue.
        queue: String,
        /// The message.
        id: MessageId,
        /// On this channel.
        channel: ChannelKey,
        /// In this transaction.
        tx: Option<TxId>,
    },
    /// About to give it back.
    Requeue {
        /// To this queue.
        queue: String,
        /// The message.
        id: MessageId,
    },
    /// About to purge. The queue must have no consumers and no publisher but this channel, else nobody knows what was purged.
    Purge {
        /// This queue.
        queue: String,
        /// On this channel.
        channel: ChannelKey,
    },
    /// The broker answered a request that was sent after everything before it on this channel.
    Synced {
        /// The channel.
        channel: ChannelKey,
    },
    /// About to commit.
    Commit {
        /// The transaction.
        tx: TxId,
    },
    /// Committed.
    Committed {
        /// The transaction.
        tx: TxId,
    },
    /// Rolled back.
    RolledBack {
        /// The transaction.
        tx: TxId,
    },
    /// About to stop the broker: from now on it closes connections, and may have read no more of what they sent.
    Stopping,
    /// The broker was killed.
    Killed,
    /// The broker was asked to stop and did.
    Stopped {
        /// Nothing was under way: what was handed out has been read.
        is_quiet: bool,
    },
}

impl Event {
    /// True when the event is about the message.
    pub(crate) fn mentions(&self, wanted: MessageId) -> bool {
        match self {
            Self::Publish { id, .. }
            | Self::Confirmed { id }
            | Self::Ack { id, .. }
            | Self::Requeue { id, .. } => *id == wanted,
            Self::Delivered { observed, .. } => observed.id == Some(wanted),
            Self::Stopping | Self::Killed | Self::Stopped { .. } => true,
            Self::Purge { .. }
            | Self::Synced { .. }
            | Self::Commit { .. }
            | Self::Committed { .. }
            | Self::RolledBack { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_see_every_part() {
        let of = |properties: &str, body: &str, exchange: &str, key: &str| {
            Fingerprint::of(properties.as_bytes(), body.as_bytes(), exchange, key)
        };
        let base = of("p", "b", "x", "k");
        assert_eq!(base, of("p", "b", "x", "k"));
        assert_ne!(base.properties, of("P", "b", "x", "k").properties);
        assert_ne!(base.body, of("p", "B", "x", "k").body);
        assert_ne!(base.route, of("p", "b", "X", "k").route);
        assert_ne!(base.route, of("p", "b", "x", "K").route);
    }
}
