//! What a session is told when it is made: identity, offers and limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::amqp::limits::{CHANNEL_MAX_DEFAULT, FRAME_MAX_DEFAULT, MESSAGE_MAX_BYTES_DEFAULT};

/// The broker's name, which clients are told and stamped messages carry.
pub(crate) const CLUSTER_NAME: &str = "stratamq";

/// Identity, offers and limits of the server side of one connection.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// `product` of the server properties. Clients compare it: kombu takes any other product than
    /// `RabbitMQ` for a broker with the specification's (connection wide) prefetch.
    pub product: String,
    /// `version` of the server properties: the RabbitMQ version whose behaviour is offered.
    pub version: String,
    /// `platform` of the server properties: names the real program.
    pub platform: String,
    /// `information` of the server properties.
    pub information: String,
    /// `copyright` of the server properties.
    pub copyright: String,
    /// `cluster_name` of the server properties.
    pub cluster_name: String,
    /// How clients may log in.
    pub mechanisms: Mechanisms,
    /// Open channels of all sessions together; `None` for any number.
    pub channel_budget: Option<Arc<ChannelBudget>>,
    /// Consumers a channel may have; `None` for any number.
    pub channel_consumers_max: Option<u64>,
    /// How long a delivery may be unacknowledged; 0 for any time.
    pub consumer_timeout_ms: u64,
    /// Prefetch of consumers on channels that say none; 0 for no limit.
    pub default_prefetch: u16,
    /// Open channels offered in `tune`; at least 1.
    pub channel_max: u16,
    /// Largest frame offered in `tune`, in bytes, frame header and end included; at least 8192.
    pub frame_max_bytes: u32,
    /// Heartbeat interval offered in `tune`; 0 for off.
    pub heartbeat_secs: u16,
    /// Larger bodies close the channel with 406 after they have arrived; at most 512 MiB.
    pub message_max_bytes: u64,
    /// Bodies of one uncommitted transaction; more close the channel with 406.
    pub tx_max_bytes: u64,
    /// Bodies that are arriving and those of uncommitted transactions, over all channels; more close the connection with
    /// 506. At least `message_max_bytes`.
    pub unfinished_max_bytes: u64,
    /// From accept to `connection.open-ok`.
    pub handshake_timeout_ms: u64,
    /// How long the socket of a refused handshake, or of a fatal frame error, stays open. Damps
    /// password guessing and keeps the close frame from being lost in a reset.
    pub linger_ms: u64,
    /// How long the server waits for `close-ok` after its own `connection.close`.
    pub close_timeout_ms: u64,
    /// Where generated consumer tags start; random, so that they differ over connections.
    pub tag_seed: u128,
}

/// The SASL mechanisms that are enabled on a connection.
#[derive(Clone, Debug)]
pub struct Mechanisms {
    /// User and password.
    pub is_plain: bool,
    /// User and password in a table.
    pub is_amqplain: bool,
    /// The user that anybody may log in as.
    pub anonymous_user: Option<String>,
    /// The owner of a client certificate.
    pub external: External,
}

impl Default for Mechanisms {
    fn default() -> Self {
        Self {
            is_plain: true,
            is_amqplain: true,
            anonymous_user: None,
            external: External::Off,
        }
    }
}

/// The mechanism `EXTERNAL`.
#[derive(Clone, Debug)]
pub enum External {
    /// Not enabled, or not a TLS connection: not offered.
    Off,
    /// Offered, and every login refused: the client has shown no certificate with a name.
    Nobody,
    /// The user that the client's certificate names.
    User(String),
}

/// How many channels all sessions together may have open.
#[derive(Debug)]
pub struct ChannelBudget {
    max: u64,
    open: AtomicU64,
}

impl ChannelBudget {
    /// At most `max` at a time.
    #[must_use]
    pub fn new(max: u64) -> Self {
        Self {
            max,
            open: AtomicU64::new(0),
        }
    }

    /// How many that are.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.max
    }

    /// Room for one more channel, given back when it is dropped; `None` when there is none.
    pub(super) fn take(self: &Arc<Self>) -> Option<ChannelSlot> {
        let more = |open: u64| (open < self.max).then_some(open + 1);
        self.open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .ok()?;
        Some(ChannelSlot(Arc::clone(self)))
    }
}

/// The room of one channel.
#[derive(Debug)]
pub(super) struct ChannelSlot(Arc<ChannelBudget>);

impl Drop for ChannelSlot {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            product: "RabbitMQ".into(),
            version: "4.3.0".into(),
            platform: concat!("StrataMQ ", env!("CARGO_PKG_VERSION")).into(),
            information: "StrataMQ, a durable AMQP 0-9-1 broker; licensed under MIT or Apache-2.0"
                .into(),
            copyright: "Copyright (c) the StrataMQ authors".into(),
            cluster_name: CLUSTER_NAME.into(),
            mechanisms: Mechanisms::default(),
            channel_budget: None,
            channel_consumers_max: None,
            consumer_timeout_ms: 0,
            default_prefetch: 0,
            channel_max: CHANNEL_MAX_DEFAULT,
            frame_max_bytes: FRAME_MAX_DEFAULT,
            heartbeat_secs: 60,
            message_max_bytes: MESSAGE_MAX_BYTES_DEFAULT,
            tx_max_bytes: 64 * 1024 * 1024,
            unfinished_max_bytes: 64 * 1024 * 1024,
            handshake_timeout_ms: 10_000,
            linger_ms: 3_000,
            close_timeout_ms: 30_000,
            tag_seed: 0,
        }
    }
}
