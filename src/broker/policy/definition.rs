//! The keys a policy may have, what each takes, and what they come to.

use serde_json::{Map, Value};

use super::{ObjectKind, lower};
use crate::amqp::short_string::ShortString;
use crate::broker::arguments::Overflow;
use crate::broker::message::TTL_MAX_MS;

/// What the value of a key must be.
#[derive(Clone, Copy, Debug)]
enum Takes {
    /// An integer from this to that.
    Integer(i64, i64),
    /// A name of at most 255 bytes.
    Name,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A text that means something only where we do not go.
    Text,
    /// Whatever: the key means nothing to a broker alone.
    Anything,
}

/// Which queues a key suits; a policy with it matches no others (PO-8). Exchanges do not mind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Suits {
    Both,
    Classic,
    Quorum,
    Neither,
}

/// Who may set a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    User,
    Operator,
}

/// The largest number that means something in a definition.
const MAX: i64 = i64::MAX;
const TTL_MAX: i64 = TTL_MAX_MS.cast_signed();
/// Words of `queue-leader-locator`.
const LOCATORS: &[&str] = &["client-local", "balanced", "random", "least-leaders"];
const OVERFLOWS: &[&str] = &["drop-head", "reject-publish", "reject-publish-dlx"];
const STRATEGIES: &[&str] = &["at-most-once", "at-least-once"];
const RETRIES: &[&str] = &["disabled", "all", "failed", "returned"];

/// Key, value, queues, who, and what the value is called when it is refused.
type Key = (&'static str, Takes, Suits, Who, &'static str);

/// All keys (PO-5, PO-11), and those of mirrored queues, which are accepted and mean nothing (VD-21). "Operator" is who
/// may set a key in an operator policy too. `consumer-disconnected-timeout` is about consumers on a node that cannot be reached:
/// a single node has none.
#[rustfmt::skip]
const KEYS: &[Key] = &[
    ("alternate-exchange", Takes::Name, Suits::Both, Who::User, "alternate exchange name"),
    ("consumer-disconnected-timeout", Takes::Integer(0, MAX), Suits::Quorum, Who::User, "consumer disconnected timeout"),
    ("consumer-timeout", Takes::Integer(0, MAX), Suits::Both, Who::User, "consumer timeout"),
    ("dead-letter-exchange", Takes::Name, Suits::Both, Who::User, "dead letter exchange name"),
    ("dead-letter-routing-key", Takes::Name, Suits::Both, Who::User, "dead letter routing key"),
    ("dead-letter-strategy", Takes::Word(STRATEGIES), Suits::Quorum, Who::User, "dead letter strategy"),
    ("delayed-retry-max", Takes::Integer(0, MAX), Suits::Quorum, Who::User, "delayed retry maximum"),
    ("delayed-retry-min", Takes::Integer(0, MAX), Suits::Quorum, Who::User, "delayed retry minimum"),
    ("delayed-retry-type", Takes::Word(RETRIES), Suits::Quorum, Who::User, "delayed retry type"),
    ("delivery-limit", Takes::Integer(i64::MIN, MAX), Suits::Quorum, Who::Operator, "delivery limit"),
    ("expires", Takes::Integer(1, TTL_MAX), Suits::Both, Who::Operator, "queue expiry"),
    ("federation-upstream", Takes::Anything, Suits::Both, Who::User, "upstream"),
    ("federation-upstream-set", Takes::Anything, Suits::Both, Who::User, "upstream set"),
    ("ha-mode", Takes::Anything, Suits::Classic, Who::User, "mode"),
    ("ha-params", Takes::Anything, Suits::Classic, Who::User, "parameters"),
    ("ha-promote-on-failure", Takes::Anything, Suits::Classic, Who::User, "promotion"),
    ("ha-promote-on-shutdown", Takes::Anything, Suits::Classic, Who::User, "promotion"),
    ("ha-sync-batch-size", Takes::Anything, Suits::Classic, Who::User, "batch size"),
    ("ha-sync-mode", Takes::Anything, Suits::Classic, Who::User, "mode"),
    ("initial-cluster-size", Takes::Integer(1, MAX), Suits::Neither, Who::User, "cluster size"),
    ("max-age", Takes::Text, Suits::Neither, Who::User, "max age"),
    ("max-in-memory-bytes", Takes::Integer(0, MAX), Suits::Quorum, Who::Operator, "maximum memory in bytes"),
    ("max-in-memory-length", Takes::Integer(0, MAX), Suits::Quorum, Who::Operator, "maximum memory in length"),
    ("max-length", Takes::Integer(0, MAX), Suits::Both, Who::Operator, "maximum length"),
    ("max-length-bytes", Takes::Integer(0, MAX), Suits::Both, Who::Operator, "maximum length in bytes"),
    ("message-ttl", Takes::Integer(0, TTL_MAX), Suits::Both, Who::Operator, "message TTL"),
    ("overflow", Takes::Word(OVERFLOWS), Suits::Both, Who::Operator, "overflow value"),
    ("queue-leader-locator", Takes::Word(LOCATORS), Suits::Both, Who::User, "queue leader locator"),
    ("queue-master-locator", Takes::Text, Suits::Classic, Who::Operator, "queue master locator"),
    ("queue-mode", Takes::Word(&["default", "lazy"]), Suits::Classic, Who::User, "queue mode"),
    ("queue-version", Takes::Integer(1, 2), Suits::Classic, Who::Operator, "queue version"),
    ("stream-filter-size-bytes", Takes::Integer(16, 255), Suits::Neither, Who::User, "filter size"),
    ("stream-max-segment-size-bytes", Takes::Integer(0, MAX), Suits::Neither, Who::User, "segment size"),
    ("target-group-size", Takes::Integer(1, MAX), Suits::Quorum, Who::Operator, "target group size"),
];

/// What policies say, as far as it means something here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PolicySettings {
    pub(crate) message_ttl_ms: Option<u64>,
    pub(crate) expires_ms: Option<u64>,
    pub(crate) max_length: Option<u64>,
    pub(crate) max_length_bytes: Option<u64>,
    pub(crate) overflow: Option<Overflow>,
    pub(crate) dead_letter_exchange: Option<ShortString>,
    pub(crate) dead_letter_routing_key: Option<ShortString>,
    pub(crate) alternate_exchange: Option<ShortString>,
    /// Negative for none.
    pub(crate) delivery_limit: Option<i64>,
    pub(crate) consumer_timeout_ms: Option<u64>,
    pub(crate) is_at_least_once: Option<bool>,
}

impl PolicySettings {
    /// These of a policy, with what an operator's policy says (PO-4).
    pub(super) fn limited_by(&self, operator: &Self) -> Self {
        Self {
            message_ttl_ms: lower(self.message_ttl_ms, operator.message_ttl_ms),
            expires_ms: lower(self.expires_ms, operator.expires_ms),
            max_length: lower(self.max_length, operator.max_length),
            max_length_bytes: lower(self.max_length_bytes, operator.max_length_bytes),
            overflow: operator.overflow.or(self.overflow),
            delivery_limit: stricter_limit(self.delivery_limit, operator.delivery_limit),
            ..self.clone()
        }
    }

    /// These without what drops or expires messages, or deletes their queue.
    pub(super) fn without_loss(self) -> Self {
        Self {
            message_ttl_ms: None,
            expires_ms: None,
            max_length: None,
            max_length_bytes: None,
            ..self
        }
    }

    fn set(&mut self, key: &str, value: &Value) {
        match key {
            "message-ttl" => self.message_ttl_ms = value.as_u64(),
            "expires" => self.expires_ms = value.as_u64(),
            "max-length" => self.max_length = value.as_u64(),
            "max-length-bytes" => self.max_length_bytes = value.as_u64(),
            "overflow" => self.overflow = value.as_str().and_then(Overflow::from_name),
            "dead-letter-exchange" => self.dead_letter_exchange = name(value),
            "dead-letter-routing-key" => self.dead_letter_routing_key = name(value),
            "alternate-exchange" => self.alternate_exchange = name(value),
            "consumer-timeout" => self.consumer_timeout_ms = value.as_u64(),
            "dead-letter-strategy" => {
                self.is_at_least_once = Some(value.as_str() == Some("at-least-once"));
            }
            "delivery-limit" => self.delivery_limit = value.as_i64(),
            _ => {}
        }
    }
}

/// Of two delivery limits the lower one; a negative one, which means none, yields to the other.
pub(crate) fn stricter_limit(one: Option<i64>, other: Option<i64>) -> Option<i64> {
    match (one, other) {
        (Some(one), Some(other)) if one < 0 || other < 0 => Some(one.max(other)),
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

fn name(value: &Value) -> Option<ShortString> {
    value.as_str().and_then(ShortString::from_text)
}

/// The keys and values of a policy, checked.
#[derive(Clone, Debug)]
pub(crate) struct Definition {
    /// JSON, keys in order.
    text: String,
    settings: PolicySettings,
    suits_classic: bool,
    suits_quorum: bool,
    asks_for_delayed_retry: bool,
}

impl Definition {
    /// Reads a JSON object of keys and values.
    ///
    /// # Errors
    /// What is wrong, in RabbitMQ's words as far as it has some.
    pub(crate) fn parse(text: &str, is_operator: bool) -> Result<Self, String> {
        let values: Map<String, Value> = serde_json::from_str(text)
            .map_err(|error| format!("the definition must be a JSON object: {error}"))?;
        if values.is_empty() {
            return Err("no policy provided".to_owned());
        }
        let mut definition = Self {
            text: String::new(),
            settings: PolicySettings::default(),
            suits_classic: true,
            suits_quorum: true,
            asks_for_delayed_retry: false,
        };
        let mut unknown = Vec::new();
        for (key, value) in &values {
            match KEYS.iter().find(|(name, ..)| name == key) {
                Some(known) if !is_operator || known.3 == Who::Operator => {
                    definition.add(known, value)?;
                }
                _ => unknown.push(key.as_str()),
            }
        }
        if !unknown.is_empty() {
            let keys = unknown.join(", ");
            let kind = if is_operator {
                "operator policy"
            } else {
                "policy"
            };
            return Err(format!("[{keys}] are not recognised {kind} settings"));
        }
        definition.text = Value::Object(values).to_string();
        Ok(definition)
    }

    fn add(&mut self, known: &Key, value: &Value) -> Result<(), String> {
        let (key, takes, suits, _, what) = known;
        if !takes.is_met_by(value) {
            let shown = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            return Err(format!("{shown} is not a valid {what}"));
        }
        self.suits_classic &= matches!(suits, Suits::Both | Suits::Classic);
        self.suits_quorum &= matches!(suits, Suits::Both | Suits::Quorum);
        self.asks_for_delayed_retry |= *key == "delayed-retry-type" && value != "disabled";
        self.settings.set(key, value);
        Ok(())
    }

    /// Refuses what would be missed: who asks for a delay between attempts must not get them at full speed.
    ///
    /// # Errors
    /// What is not there.
    pub(crate) fn check_supported(&self) -> Result<(), String> {
        match self.asks_for_delayed_retry {
            true => Err(
                "delayed retry is not supported: delayed-retry-type may only be 'disabled'"
                    .to_owned(),
            ),
            false => Ok(()),
        }
    }

    /// The JSON it was read from, keys in order.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn settings(&self) -> &PolicySettings {
        &self.settings
    }

    /// True when objects of that kind know all keys.
    pub(super) fn suits(&self, kind: ObjectKind) -> bool {
        match kind {
            ObjectKind::Exchange => true,
            ObjectKind::ClassicQueue => self.suits_classic,
            ObjectKind::QuorumQueue => self.suits_quorum,
        }
    }
}

impl Takes {
    fn is_met_by(self, value: &Value) -> bool {
        match self {
            Self::Integer(min, max) => value
                .as_i64()
                .is_some_and(|number| (min..=max).contains(&number)),
            Self::Name => name(value).is_some(),
            Self::Word(words) => value.as_str().is_some_and(|text| words.contains(&text)),
            Self::Text => value.is_string(),
            Self::Anything => true,
        }
    }
}
