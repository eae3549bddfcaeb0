//! Consumers of a queue and the credit they deliver against.
//!
//! Two limits hold at once: the consumer's own prefetch, and one that all consumers of a channel share
//! (`basic.qos` with the global bit). Messages taken without acknowledgement count for neither.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::command::ConsumerId;
use super::outbox::Outbox;

/// A consumer as `basic.consume` asks for it.
#[derive(Clone, Debug)]
pub struct ConsumerSpec {
    /// Unique in the process.
    pub id: ConsumerId,
    /// Channel its deliveries go to.
    pub channel: u16,
    /// Outbox of its connection.
    pub outbox: Arc<Outbox>,
    /// Deliveries are settled at once.
    pub is_no_ack: bool,
    /// No other consumer beside this one.
    pub is_exclusive: bool,
    /// Unacked deliveries it may hold; 0 for no limit.
    pub prefetch: u16,
    /// `x-priority`: higher ones are served first.
    pub priority: i64,
    /// The limit it shares with its channel.
    pub channel_credit: Arc<ChannelCredit>,
}

/// The prefetch limit that the consumers of one channel share.
#[derive(Debug, Default)]
pub struct ChannelCredit {
    limit: AtomicU32,
    used: AtomicU32,
}

impl ChannelCredit {
    /// No limit.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
    /// Unacked deliveries of the channel's consumers.
    #[must_use]
    pub fn used(&self) -> u32 {
        self.used.load(Ordering::SeqCst)
    }
}
