//! Queue arguments, parsed once.

use std::sync::{Arc, LazyLock};

use super::message::TTL_MAX_MS;
use crate::amqp::field_table::{FieldTable, FieldValue};
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

impl Overflow {
    /// The one of that name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "drop-head" => Self::DropHead,
            "reject-publish" => Self::RejectPublish,
            "reject-publish-dlx" => Self::RejectPublishDlx,
            _ => return None,
        })
    }
}

/// Whose semantics a queue has. The engine below is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueueKind {
    /// A classic queue.
    #[default]
    Classic,
    /// A quorum queue, of one member: it counts failed deliveries, and its messages are always persistent.
    Quorum,
}

impl QueueKind {
    /// Its module in RabbitMQ, which refusals name.
    #[must_use]
    pub fn module(self) -> &'static str {
        match self {
            Self::Classic => "rabbit_classic_queue",
            Self::Quorum => "rabbit_quorum_queue",
        }
    }
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
    /// `x-queue-type`.
    pub kind: QueueKind,
    /// `x-max-priority`.
    pub max_priority: Option<u8>,
    /// `x-delivery-limit`: failed deliveries that a message may have; `None` for any number.
    pub delivery_limit: Option<u64>,
    /// `x-consumer-timeout`.
    pub consumer_timeout_ms: Option<u64>,
    /// `x-dead-letter-strategy` is `at-least-once`.
    pub is_at_least_once: bool,
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

/// Longest `x-expires`, 10 years, as RabbitMQ has it; the same as the longest message TTL.
const EXPIRES_MAX_MS: u64 = TTL_MAX_MS;

/// Failed deliveries that a message of a quorum queue may have (QQ-2).
const DELIVERY_LIMIT_DEFAULT: u64 = 20;
/// Levels of a quorum queue above level 0 (PR-7).
const QUORUM_TOP_LEVEL: u8 = 31;
/// Level of a message without priority in a quorum queue.
const QUORUM_DEFAULT_LEVEL: u8 = 4;

/// Arguments that streams and classic queues know: a quorum queue refuses them.
const NOT_OF_QUORUM: [&str; 8] = [
    "x-max-priority",
    "x-queue-mode",
    "x-queue-version",
    "x-queue-master-locator",
    "x-max-age",
    "x-stream-max-segment-size-bytes",
    "x-stream-filter-size-bytes",
    "x-initial-cluster-size",
];

/// Arguments that only other queue types know (reference section 7.3): a classic queue refuses them.
const NOT_OF_CLASSIC: [&str; 14] = [
    "x-delivery-limit",
    "x-quorum-initial-group-size",
    "x-dead-letter-strategy",
    "x-consumer-timeout",
    "x-consumer-disconnected-timeout",
    "x-delayed-retry-type",
    "x-delayed-retry-min",
    "x-delayed-retry-max",
    "x-max-in-memory-length",
    "x-max-in-memory-bytes",
    "x-max-age",
    "x-stream-max-segment-size-bytes",
    "x-stream-filter-size-bytes",
    "x-initial-cluster-size",
];

impl QueueArguments {
    /// The same behind a pointer. Most queues have no arguments, and one place in memory for them all.
    #[must_use]
    pub fn shared(self) -> Arc<Self> {
        static NONE: LazyLock<Arc<QueueArguments>> = LazyLock::new(Arc::default);
        if self == **NONE {
            return Arc::clone(&NONE);
        }
        Arc::new(self)
    }

    /// True when a dead letter stays in the queue until another one has it: `at-least-once`, which works with
    /// `reject-publish` alone.
    #[must_use]
    pub fn keeps_letters(&self) -> bool {
        self.is_at_least_once && self.overflow == Overflow::RejectPublish
    }

    /// Ranks of seqs that the queue has; 0 without priorities.
    #[must_use]
    pub fn rank_count(&self) -> u16 {
        self.top_level().map_or(0, |top| u16::from(top) + 1)
    }

    /// The highest level; `None` without priorities.
    fn top_level(&self) -> Option<u8> {
        match self.kind {
            QueueKind::Quorum => Some(QUORUM_TOP_LEVEL),
            // 0 behaves as 1 (PR-1).
            QueueKind::Classic => self.max_priority.map(|top| top.max(1)),
        }
    }

    /// The rank of a message with this `priority` property: the lower the more urgent, 0 without priorities.
    #[must_use]
    pub fn rank_of(&self, priority: Option<u8>) -> u16 {
        let Some(top) = self.top_level() else {
            return 0;
        };
        let default = match self.kind {
            QueueKind::Quorum => QUORUM_DEFAULT_LEVEL,
            QueueKind::Classic => 0,
        };
        1 + u16::from(top - priority.unwrap_or(default).min(top))
    }

    /// Checks and understands the arguments of `queue.declare`.
    ///
    /// # Errors
    /// The reply text for 406, naming the argument, the queue and the vhost.
    pub fn parse(arguments: &FieldTable, queue: &str, vhost: &str) -> Result<Self, ArgumentError> {
        let parser = Parser {
            arguments,
            queue,
            vhost,
        };
        let kind = parser.kind()?;
        parser.check_foreign(kind)?;
        parser.check_without_effect()?;
        Ok(Self {
            kind,
            max_priority: parser.max_priority()?,
            delivery_limit: match kind {
                QueueKind::Classic => None,
                QueueKind::Quorum => parser.delivery_limit()?,
            },
            consumer_timeout_ms: parser.number("x-consumer-timeout", 0, u64::MAX)?,
            is_at_least_once: parser.is_at_least_once()?,
            message_ttl_ms: parser.number("x-message-ttl", 0, TTL_MAX_MS)?,
            expires_ms: parser.number("x-expires", 1, EXPIRES_MAX_MS)?,
            max_length: parser.number("x-max-length", 0, u64::MAX)?,
            max_length_bytes: parser.number("x-max-length-bytes", 0, u64::MAX)?,
            overflow: parser.overflow()?,
            dead_letter: parser.dead_letter()?,
            is_single_active_consumer: parser.flag("x-single-active-consumer")?,
        })
    }
}

struct Parser<'a> {
    arguments: &'a FieldTable,
    queue: &'a str,
    vhost: &'a str,
}

impl Parser<'_> {
    fn invalid(&self, name: &str, reason: impl std::fmt::Display) -> ArgumentError {
        let (queue, vhost) = (self.queue, self.vhost);
        ArgumentError(format!(
            "invalid arg '{name}' for queue '{queue}' in vhost '{vhost}': {reason}"
        ))
    }

    fn kind(&self) -> Result<QueueKind, ArgumentError> {
        let Some(value) = self.arguments.get("x-queue-type") else {
            return Ok(QueueKind::Classic);
        };
        let text = value.as_text();
        match text {
            Some("" | "classic" | "undefined") => Ok(QueueKind::Classic),
            Some("quorum") => Ok(QueueKind::Quorum),
            None if matches!(value, FieldValue::Void) => Ok(QueueKind::Classic),
            _ => {
                let found = text.unwrap_or(value.type_name());
                let reason = format_args!("\"unsupported queue type '{found}'\"");
                Err(self.invalid("x-queue-type", reason))
            }
        }
    }

    fn check_foreign(&self, kind: QueueKind) -> Result<(), ArgumentError> {
        let foreign = match kind {
            QueueKind::Classic => &NOT_OF_CLASSIC[..],
            QueueKind::Quorum => &NOT_OF_QUORUM[..],
        };
        let mut foreign = foreign.iter();
        let found = foreign.find(|name| self.arguments.get(name).is_some());
        found.map_or(Ok(()), |name| {
            let (queue, vhost, module) = (self.queue, self.vhost, kind.module());
            Err(ArgumentError(format!(
                "invalid arg '{name}' for queue '{queue}' in vhost '{vhost}' of queue type {module}"
            )))
        })
    }

    /// Arguments about other members of a quorum queue and consumers there, and about memory it does not need: checked, then
    /// forgotten.
    /// Delayed retry would be missed by whoever asks for it, and is refused.
    fn check_without_effect(&self) -> Result<(), ArgumentError> {
        self.number("x-quorum-initial-group-size", 1, u64::MAX)?;
        for name in [
            "x-consumer-disconnected-timeout",
            "x-max-in-memory-length",
            "x-max-in-memory-bytes",
        ] {
            self.number(name, 0, u64::MAX)?;
        }
        let retry = self.arguments.get("x-delayed-retry-type");
        if retry.is_some_and(|value| value.as_text() != Some("disabled")) {
            return Err(self.invalid("x-delayed-retry-type", "\"delayed retry is not supported\""));
        }
        Ok(())
    }

    fn max_priority(&self) -> Result<Option<u8>, ArgumentError> {
        let name = "x-max-priority";
        let number = self.number(name, 0, u64::MAX)?;
        let level = number.map(|number| {
            u8::try_from(number)
                .map_err(|_| self.invalid(name, format_args!("{{max_value_exceeded,{number}}}")))
        });
        level.transpose()
    }

    /// A negative limit is none.
    fn delivery_limit(&self) -> Result<Option<u64>, ArgumentError> {
        let name = "x-delivery-limit";
        let Some(value) = self.arguments.get(name) else {
            return Ok(Some(DELIVERY_LIMIT_DEFAULT));
        };
        let Some(number) = value.as_integer() else {
            let found = value.type_name();
            return Err(self.invalid(name, format_args!("\"expected integer, got {found}\"")));
        };
        Ok(u64::try_from(number).ok())
    }

    fn is_at_least_once(&self) -> Result<bool, ArgumentError> {
        let name = "x-dead-letter-strategy";
        match self.arguments.get(name).map(FieldValue::as_text) {
            None | Some(Some("at-most-once")) => Ok(false),
            Some(Some("at-least-once")) => Ok(true),
            Some(_) => Err(self.invalid(name, "invalid_dlx_strategy")),
        }
    }

    fn number(&self, name: &str, min: u64, max: u64) -> Result<Option<u64>, ArgumentError> {
        let Some(value) = self.arguments.get(name) else {
            return Ok(None);
        };
        let Some(number) = value.as_integer() else {
            let found = value.type_name();
            return Err(self.invalid(name, format_args!("\"expected integer, got {found}\"")));
        };
        match u64::try_from(number) {
            Err(_) => Err(self.invalid(name, format_args!("{{value_negative,{number}}}"))),
            Ok(0) if min > 0 => Err(self.invalid(name, "{value_zero,0}")),
            Ok(number) if number > max => {
                Err(self.invalid(name, format_args!("{{value_too_large,{number}}}")))
            }
            Ok(number) => Ok(Some(number)),
        }
    }

    fn flag(&self, name: &str) -> Result<bool, ArgumentError> {
        match self.arguments.get(name) {
            None => Ok(false),
            Some(FieldValue::Bool(value)) => Ok(*value),
            Some(other) => {
                let found = other.type_name();
                Err(self.invalid(name, format_args!("{{unacceptable_type,{found}}}")))
            }
        }
    }

    fn overflow(&self) -> Result<Overflow, ArgumentError> {
        let name = "x-overflow";
        let Some(value) = self.arguments.get(name) else {
            return Ok(Overflow::default());
        };
        if !matches!(value, FieldValue::LongString(_)) {
            let found = value.type_name();
            return Err(self.invalid(name, format_args!("{{unacceptable_type,{found}}}")));
        }
        let overflow = value.as_text().and_then(Overflow::from_name);
        overflow.ok_or_else(|| self.invalid(name, "invalid_overflow"))
    }

    fn dead_letter(&self) -> Result<Option<DeadLetterTarget>, ArgumentError> {
        let exchange = self.name("x-dead-letter-exchange")?;
        let routing_key = self.name("x-dead-letter-routing-key")?;
        match (exchange, routing_key) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(self.invalid(
                "x-dead-letter-routing-key",
                "routing_key_but_no_dlx_defined",
            )),
            (Some(exchange), routing_key) => Ok(Some(DeadLetterTarget {
                exchange,
                routing_key,
            })),
        }
    }

    fn name(&self, name: &str) -> Result<Option<ShortString>, ArgumentError> {
        let Some(value) = self.arguments.get(name) else {
            return Ok(None);
        };
        let FieldValue::LongString(bytes) = value else {
            let (queue, vhost, found) = (self.queue, self.vhost, value.type_name());
            return Err(ArgumentError(format!(
                "invalid type '{found}' for arg '{name}' in queue '{queue}' in vhost '{vhost}'"
            )));
        };
        ShortString::new(bytes.clone())
            .map(Some)
            .ok_or_else(|| self.invalid(name, "\"not a short string of UTF-8\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_refused(name: &str, value: FieldValue, expected: &str) {
        let arguments = FieldTable::new().with(name, value);
        let error = QueueArguments::parse(&arguments, "Q", "/").expect_err("refused");
        assert_eq!(error.0, expected);
    }

    #[test]
    fn bad_values_are_refused_in_the_words_of_the_reference() {
        check_refused(
            "x-message-ttl",
            FieldValue::SignedInt(-1),
            "invalid arg 'x-message-ttl' for queue 'Q' in vhost '/': {value_negative,-1}",
        );
        check_refused(
            "x-message-ttl",
            FieldValue::Long(315_360_000_001),
            "invalid arg 'x-message-ttl' for queue 'Q' in vhost '/': {value_too_large,315360000001}",
        );
        check_refused(
            "x-message-ttl",
            FieldValue::text("5"),
            "invalid arg 'x-message-ttl' for queue 'Q' in vhost '/': \"expected integer, got longstr\"",
        );
        check_refused(
            "x-expires",
            FieldValue::SignedInt(0),
            "invalid arg 'x-expires' for queue 'Q' in vhost '/': {value_zero,0}",
        );
        check_refused(
            "x-overflow",
            FieldValue::text("drop-tail"),
            "invalid arg 'x-overflow' for queue 'Q' in vhost '/': invalid_overflow",
        );
        check_refused(
            "x-dead-letter-exchange",
            FieldValue::SignedInt(1),
            "invalid type 'signedint' for arg 'x-dead-letter-exchange' in queue 'Q' in vhost '/'",
        );
        check_refused(
            "x-dead-letter-routing-key",
            FieldValue::text("k"),
            "invalid arg 'x-dead-letter-routing-key' for queue 'Q' in vhost '/': \
             routing_key_but_no_dlx_defined",
        );
        check_refused(
            "x-queue-type",
            FieldValue::text("stream"),
            "invalid arg 'x-queue-type' for queue 'Q' in vhost '/': \"unsupported queue type 'stream'\"",
        );
        check_refused(
            "x-max-age",
            FieldValue::text("1D"),
            "invalid arg 'x-max-age' for queue 'Q' in vhost '/' of queue type rabbit_classic_queue",
        );
    }

    #[test]
    fn known_arguments_are_understood_and_unknown_ones_ignored() {
        let arguments = FieldTable::new()
            .with("x-message-ttl", 5)
            .with("x-max-length", 7i64)
            .with("x-overflow", "reject-publish")
            .with("x-dead-letter-exchange", "")
            .with("x-single-active-consumer", true)
            .with("x-queue-mode", "lazy")
            .with("x-my-own", 1);
        let parsed = QueueArguments::parse(&arguments, "Q", "/").expect("all fine");
        let expected = QueueArguments {
            message_ttl_ms: Some(5),
            max_length: Some(7),
            overflow: Overflow::RejectPublish,
            dead_letter: Some(DeadLetterTarget {
                exchange: ShortString::default(),
                routing_key: None,
            }),
            is_single_active_consumer: true,
            ..QueueArguments::default()
        };
        assert_eq!(parsed, expected);
    }
}
