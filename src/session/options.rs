//! What a session is told when it is made: identity, offers and limits.

use crate::amqp::limits::{CHANNEL_MAX_DEFAULT, FRAME_MAX_DEFAULT, MESSAGE_MAX_BYTES_DEFAULT};

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

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            product: "RabbitMQ".into(),
            version: "4.3.0".into(),
            platform: concat!("StrataMQ ", env!("CARGO_PKG_VERSION")).into(),
            information: "StrataMQ, a durable AMQP 0-9-1 broker; licensed under MIT or Apache-2.0"
                .into(),
            copyright: "Copyright (c) the StrataMQ authors".into(),
            cluster_name: "stratamq".into(),
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
