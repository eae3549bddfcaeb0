//! Messages whose every byte follows from their id.

use bytes::Bytes;
use stratamq::amqp::field_table::{FieldTable, FieldValue};

use super::history::{Fingerprint, MessageId, Observed};
use super::random::Random;
use crate::support::raw::{Delivered, Message, text};

/// Bodies have at most so many bytes, except one in [`LARGE_EVERY`]: 2^bits.
const USUAL_BODY_BITS: u32 = 10;
/// One message in so many is large.
const LARGE_EVERY: u64 = 25;
/// What is around the sizes at which brokers change their mind: frames, blocks, several frames.
const LARGE_BODIES_BYTES: [usize; 7] = [
    4087,
    4096,
    5000,
    20_000,
    131_064,
    131_073,
    LARGEST_BODY_BYTES,
];
/// No message is larger.
pub(super) const LARGEST_BODY_BYTES: usize = 200_000;

/// The message of an id.
pub(super) fn message(id: MessageId, is_persistent: bool) -> Message {
    let mut random = Random::new(id);
    let length = if random.below(LARGE_EVERY) == 0 {
        *random.pick(&LARGE_BODIES_BYTES)
    } else {
        usize::try_from(random.skewed(USUAL_BODY_BITS)).unwrap_or(0)
    };
    Message::with(body(&mut random, length), |properties| {
        properties.set_message_id(Some(text(&id.to_string())));
        properties.set_delivery_mode(Some(if is_persistent { 2 } else { 1 }));
        if random.percent(50) {
            properties
                .set_content_type(Some(text("application/octet-stream")))
                .set_content_encoding(Some(text("identity")))
                .set_priority(Some(u8::try_from(random.below(10)).unwrap_or(0)))
                .set_correlation_id(Some(text(&format!("c-{}", random.next()))))
                .set_reply_to(Some(text("answers")))
                .set_timestamp(Some(random.next()))
                .set_message_type(Some(text("crash test")))
                .set_user_id(Some(text("guest")))
                .set_app_id(Some(text("recording client")));
        }
        if random.percent(10) {
            // A day: longer than any campaign.
            properties.set_expiration(Some(text("86400000")));
        }
        if random.percent(50) {
            properties.set_headers(Some(headers(&mut random)));
        }
    })
}

fn body(random: &mut Random, length: usize) -> Bytes {
    let mut body = Vec::with_capacity(length + 8);
    while body.len() < length {
        body.extend_from_slice(&random.next().to_le_bytes());
    }
    body.truncate(length);
    body.into()
}

/// One value of many a type, nested too.
fn headers(random: &mut Random) -> FieldTable {
    let inner = FieldTable::new().with("zero", FieldValue::Void).with(
        "list",
        FieldValue::Array(vec![FieldValue::Bool(true), FieldValue::Short(-3)]),
    );
    FieldTable::new()
        .with("number", FieldValue::Long(random.next().cast_signed()))
        .with("text", FieldValue::text("Grüße"))
        .with("bytes", FieldValue::Binary(body(random, 33)))
        .with("half", FieldValue::Double(0.5))
        .with(
            "price",
            FieldValue::Decimal {
                scale: 2,
                value: 1999,
            },
        )
        .with("since", FieldValue::Timestamp(1))
        .with("inner", FieldValue::Table(inner))
}

/// The priority of a message; 0 when it says none.
pub(super) fn priority(message: &Message) -> u8 {
    message.properties.priority().unwrap_or(0)
}

/// What a message looks like when published so.
pub(super) fn fingerprint(message: &Message, exchange: &str, routing_key: &str) -> Fingerprint {
    Fingerprint::of(
        message.properties.raw(),
        &message.body,
        exchange,
        routing_key,
    )
}

/// A delivery as the oracle wants it.
pub(super) fn observed(delivered: &Delivered) -> Observed {
    let message = &delivered.message;
    let id = message
        .properties
        .message_id()
        .and_then(|id| std::str::from_utf8(id).ok()?.parse().ok());
    Observed {
        id,
        is_redelivered: delivered.is_redelivered,
        fingerprint: fingerprint(message, &delivered.exchange, &delivered.routing_key),
    }
}
