//! Delayed exchanges: `x-delayed-message`.
//!
//! ```text
//!   publish, header x-delay = 5000 --> exchange --> its delay queue ... 5 s ... --> the exchange once more, x-delay = -5000
//!   publish, no such header -------> exchange --> as its x-delayed-type says
//! ```
//! Every delayed exchange owns one queue of the engine that is in no list of queues: no client can declare, bind, consume, purge or
//! delete it, and no policy applies to it. It is durable when the exchange is, so persistent messages outlive a crash with their
//! time; a restart neither loses nor repeats one, since it moves in one atomic group.
//!
//! 1. The exchange and its delay queue are declared in one atomic group. The record of the queue names the exchange in an argument;
//!    a client cannot declare such a queue, because the name is reserved.
//! 2. The delay is looked at wherever a message reaches the exchange: published, through a binding, as a dead letter.
//! 3. A message that waits counts as routed (confirmed, not returned); when it is due and nobody wants it, it is dropped.
//! 4. The delivered header is negative: it tells that there was a delay, and no delayed exchange delays the message again.

use std::sync::Arc;

use bytes::Bytes;

use super::dead_letter::{DeadLetter, DeadLetterRouter, routing_keys};
use super::exchange::ExchangeSpec;
use super::message::{Message, MessageParts, TTL_MAX_MS};
use super::meta::QueueV1;
use super::queue::{QueueHandle, QueueSpec};
use crate::amqp::field_table::{FieldTable, FieldValue};
use crate::amqp::properties::Properties;
use crate::amqp::short_string::ShortString;
use crate::storage::types::QueueId;

/// Header: how long a message waits, in milliseconds.
const DELAY: &str = "x-delay";
/// Argument in the record of a delay queue, see (1).
const DELAYS_FOR: &str = "x-delayed-exchange";
/// Names of delay queues begin so, in the log and in listings.
const NAME_PREFIX: &str = "amq.delayed.";

/// The delay that a message asks for, if any; at most ten years.
pub(crate) fn delay_ms(properties: &Properties) -> Option<u64> {
    if !properties.has_headers() {
        return None;
    }
    let delay = wanted_ms(&properties.header(DELAY)?)?;
    let delay = u64::try_from(delay).ok().filter(|delay| *delay > 0)?;
    Some(delay.min(TTL_MAX_MS))
}

/// Numbers of any type, and text that is one.
fn wanted_ms(value: &FieldValue) -> Option<i64> {
    if let Some(number) = value.as_integer() {
        return Some(number);
    }
    if let Some(number) = value.as_float() {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "fractions are cut off, and what is too large is limited by the caller"
        )]
        return Some(number as i64);
    }
    value.as_text()?.parse().ok()
}

/// The header of a message whose delay is over, of the same type where that can be negative.
fn negated(value: &FieldValue) -> FieldValue {
    match value {
        FieldValue::Byte(number) => FieldValue::Byte(number.saturating_neg()),
        FieldValue::Short(number) => FieldValue::Short(number.saturating_neg()),
        FieldValue::SignedInt(number) => FieldValue::SignedInt(number.saturating_neg()),
        FieldValue::Float(number) => FieldValue::Float(-number),
        FieldValue::Double(number) => FieldValue::Double(-number),
        other => FieldValue::Long(wanted_ms(other).unwrap_or_default().saturating_neg()),
    }
}

/// The delay queue of a new exchange.
pub(crate) fn queue_spec(exchange: &ExchangeSpec, id: QueueId, vhost: &Arc<str>) -> QueueSpec {
    let exchange_name = exchange.name.as_str();
    QueueSpec {
        id,
        vhost: Arc::clone(vhost),
        name: queue_name(exchange_name),
        is_durable: exchange.is_durable,
        exclusive_owner: None,
        is_auto_delete: false,
        arguments: arguments(exchange_name),
    }
}

fn queue_name(exchange: &str) -> ShortString {
    ShortString::from_text_cut(&format!("{NAME_PREFIX}{exchange}"))
}

fn arguments(exchange: &str) -> FieldTable {
    FieldTable::new().with(DELAYS_FOR, FieldValue::text(exchange))
}

/// The record of a delay queue.
pub(super) fn record(id: u64, vhost: String, exchange: &str) -> QueueV1 {
    QueueV1 {
        id,
        vhost,
        name: queue_name(exchange).as_str().to_owned(),
        is_auto_delete: false,
        arguments: arguments(exchange).to_bytes().to_vec(),
    }
}

/// The exchange whose delay queue a record declares, if it does.
pub(super) fn exchange_of_record(record: &QueueV1) -> Option<String> {
    let arguments = FieldTable::decode(&Bytes::copy_from_slice(&record.arguments)).ok()?;
    let exchange = exchange_of(&record.name, &arguments)?;
    Some(exchange.as_str().to_owned())
}

/// The exchange whose delay queue this is, by what its record says, if it is one.
pub(crate) fn exchange_of(name: &str, arguments: &FieldTable) -> Option<ShortString> {
    if !name.starts_with(NAME_PREFIX) {
        return None;
    }
    ShortString::from_text(arguments.get_text(DELAYS_FOR)?)
}

/// Where a message goes whose delay in the queue of `exchange` is over; `None` for nowhere.
pub(super) fn plan_release(
    router: &dyn DeadLetterRouter,
    source: &QueueHandle,
    exchange: &ShortString,
    message: &Message,
) -> Option<DeadLetter> {
    let message = Arc::new(release(message));
    let keys = routing_keys(&message);
    let route = router.route(&source.spec().vhost, exchange, &keys, &message)?;
    DeadLetter::new(message, route)
}

/// The message as it goes on: only its delay is different.
fn release(message: &Message) -> Message {
    let parts = message.to_parts();
    let mut properties = parts.properties.edit();
    let headers = properties.headers_mut();
    if let Some(value) = headers.get_mut(DELAY) {
        *value = negated(value);
    }
    Message::from_parts(&MessageParts {
        properties: properties.build(),
        ..parts
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::properties::PropertiesBuilder;
    use bytes::Bytes;

    #[track_caller]
    fn check(value: FieldValue, delay: Option<u64>, after: &FieldValue) {
        let mut properties = PropertiesBuilder::new();
        properties.set_header("a", 1).set_header(DELAY, value);
        let properties = properties.build();
        assert_eq!(delay_ms(&properties), delay);
        let body = [Bytes::from_static(b"body")];
        let key = ShortString::from_static("k");
        let released = release(&Message::new(key.clone(), key, properties, body));
        assert_eq!(released.properties().header(DELAY).as_ref(), Some(after));
        if delay.is_some() {
            assert_eq!(delay_ms(&released.properties()), None, "never twice");
        }
        assert_eq!(released.body().concat(), b"body");
    }

    #[test]
    fn delays_are_numbers_and_come_back_negative() {
        use FieldValue::{Byte, Double, Long, SignedInt, UnsignedInt};
        check(SignedInt(5000), Some(5000), &SignedInt(-5000));
        check(Byte(5), Some(5), &Byte(-5));
        check(UnsignedInt(5000), Some(5000), &Long(-5000));
        check(Double(1.5), Some(1), &Double(-1.5));
        check(FieldValue::text("70"), Some(70), &Long(-70));
        check(Long(i64::MAX), Some(TTL_MAX_MS), &Long(-i64::MAX));
        check(Long(0), None, &Long(0));
        check(Long(-7), None, &Long(7));
        check(FieldValue::text("soon"), None, &Long(0));
        assert_eq!(delay_ms(&Properties::default()), None);
    }

    #[test]
    fn name_of_a_delay_queue_is_one_that_nobody_can_declare() {
        let spec = |name: &str| ExchangeSpec {
            name: ShortString::from_text(name).expect("short"),
            kind: crate::broker::exchange::ExchangeKind::Delayed,
            is_durable: true,
            is_auto_delete: false,
            is_internal: false,
            arguments: FieldTable::new(),
        };
        for name in ["x", &"long".repeat(63)] {
            let queue = queue_spec(&spec(name), QueueId(1), &Arc::from("/"));
            let found = exchange_of(queue.name.as_str(), &queue.arguments);
            assert_eq!(found.expect("it is one").as_str(), name);
            assert_eq!(exchange_of("mine", &queue.arguments), None);
        }
        assert_eq!(exchange_of("amq.delayed.x", &FieldTable::new()), None);
    }
}
