//! Why the domain refuses a command.

use crate::amqp::reply_code::{ChannelReplyCode, ConnectionReplyCode};

/// A refusal: the reply code decides how much it closes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// Closes the channel. The text is what follows `NAME - ` on the wire.
    #[error("{code}: {text}")]
    Channel {
        /// The code.
        code: ChannelReplyCode,
        /// Names the thing and the reason.
        text: String,
    },
    /// Closes the connection.
    #[error("{code}: {text}")]
    Connection {
        /// The code.
        code: ConnectionReplyCode,
        /// Names the thing and the reason.
        text: String,
    },
}

impl BrokerError {
    /// A channel error.
    pub fn channel(code: ChannelReplyCode, text: impl Into<String>) -> Self {
        Self::Channel {
            code,
            text: text.into(),
        }
    }
    /// A connection error.
    pub fn connection(code: ConnectionReplyCode, text: impl Into<String>) -> Self {
        Self::Connection {
            code,
            text: text.into(),
        }
    }
}
