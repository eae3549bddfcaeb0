//! What closes a channel or a connection, and with which words.

use crate::amqp::frame::FrameError;
use crate::amqp::method::{Method, MethodError, MethodId, channel, connection};
use crate::amqp::reply_code::{ChannelReplyCode, ConnectionReplyCode};
use crate::amqp::short_string::ShortString;
use crate::broker::error::BrokerError;

/// An error of the peer, and how much it closes. The two kinds of codes are two types, so that a code for
/// connections never ends in a `channel.close`.
#[derive(Debug)]
pub(super) enum Failure {
    /// Closes the channel it happened on.
    Channel(CloseReason<ChannelReplyCode>),
    /// Closes the connection.
    Connection(CloseReason<ConnectionReplyCode>),
}

/// Why something is closed.
#[derive(Debug)]
pub(super) struct CloseReason<Code> {
    pub(super) code: Code,
    /// What follows `NAME - `.
    pub(super) text: String,
    pub(super) method: MethodId,
}

impl Failure {
    pub(super) fn channel(
        code: ChannelReplyCode,
        text: impl Into<String>,
        method: MethodId,
    ) -> Self {
        let text = text.into();
        Self::Channel(CloseReason { code, text, method })
    }

    pub(super) fn connection(
        code: ConnectionReplyCode,
        text: impl Into<String>,
        method: MethodId,
    ) -> Self {
        let text = text.into();
        Self::Connection(CloseReason { code, text, method })
    }

    /// A refusal by the broker, blamed on `method`.
    pub(super) fn broker(error: BrokerError, method: MethodId) -> Self {
        match error {
            BrokerError::Channel { code, text } => Self::channel(code, text, method),
            BrokerError::Connection { code, text } => Self::connection(code, text, method),
        }
    }
}

/// The reply text on the wire: `NAME - text`, at most 255 bytes, cut with `...` when longer.
pub(super) fn reply_text(name: &str, text: &str) -> ShortString {
    ShortString::from_text_cut(&format!("{name} - {text}"))
}

impl CloseReason<ConnectionReplyCode> {
    /// What the client is told.
    pub(super) fn reply_text(&self) -> ShortString {
        reply_text(self.code.name(), &self.text)
    }

    /// `connection.close` with this reason.
    pub(super) fn close(&self) -> Method {
        Method::from(connection::Close {
            reply_code: self.code.code(),
            reply_text: self.reply_text(),
            class_id: self.method.class_id,
            method_id: self.method.method_id,
        })
    }
}

impl CloseReason<ChannelReplyCode> {
    /// `channel.close` with this reason.
    pub(super) fn close(&self) -> Method {
        Method::from(channel::Close {
            reply_code: self.code.code(),
            reply_text: reply_text(self.code.name(), &self.text),
            class_id: self.method.class_id,
            method_id: self.method.method_id,
        })
    }
}

impl From<FrameError> for Failure {
    fn from(error: FrameError) -> Self {
        Self::connection(error.reply_code(), error.to_string(), MethodId::NONE)
    }
}

impl From<MethodError> for Failure {
    fn from(error: MethodError) -> Self {
        Self::connection(error.reply_code(), error.to_string(), error.id())
    }
}
