//! The last messages of an `x-recent-history` exchange, for whoever is bound to it next.
//!
//! They are kept in memory only. A message is remembered when it is routed, also when nothing is bound.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use crate::amqp::field_table::{FieldTable, FieldValue};
use crate::broker::message::Message;
use crate::sync::lock;

/// Argument: how many messages are kept.
const LENGTH: &str = "x-recent-history-length";
/// Header of messages that are not kept.
const NO_STORE: &str = "x-recent-history-no-store";
/// Messages that are kept unless the exchange says otherwise.
const DEFAULT_LENGTH: usize = 20;
/// Bytes that one exchange keeps, but for the last message: protects from a large length and large messages.
const HISTORY_MAX_BYTES: usize = 16 << 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct History {
    length: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// The oldest first.
    messages: VecDeque<Arc<Message>>,
    size_bytes: usize,
}

/// The argument of the exchange.
///
/// # Errors
/// The text of the refusal (406).
pub(crate) fn parse_length(arguments: &FieldTable) -> Result<usize, String> {
    let Some(value) = arguments.get(LENGTH) else {
        return Ok(DEFAULT_LENGTH);
    };
    let length = value.as_integer().filter(|length| *length > 0);
    let length = length.and_then(|length| usize::try_from(length).ok());
    length.ok_or_else(|| format!("Invalid argument, '{LENGTH}' must be a positive integer"))
}

impl History {
    pub(crate) fn new(length: usize) -> Self {
        Self {
            length,
            kept: Mutex::default(),
        }
    }

    /// Keeps a message, unless it says that it does not want to.
    pub(crate) fn remember(&self, message: &Arc<Message>) {
        let no_store = message.properties().header(NO_STORE);
        if no_store == Some(FieldValue::Bool(true)) {
            return;
        }
        let mut kept = lock(&self.kept);
        kept.size_bytes += message.size_bytes();
        kept.messages.push_back(Arc::clone(message));
        while kept.messages.len() > self.length
            || (kept.size_bytes > HISTORY_MAX_BYTES && kept.messages.len() > 1)
        {
            let oldest = kept.messages.pop_front();
            kept.size_bytes -= oldest.map_or(0, |oldest| oldest.size_bytes());
        }
    }

    /// What is kept, the oldest first.
    pub(crate) fn messages(&self) -> Vec<Arc<Message>> {
        lock(&self.kept).messages.iter().cloned().collect()
    }
}
