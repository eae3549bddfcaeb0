//! A message as it was seen, and whether it looks as it should.

use stratamq::amqp::field_table::{FieldTable, FieldValue};
use stratamq::amqp::properties::PropertiesBuilder;

use super::terms::{ARRIVALS, DELAYED_EXCHANGE, Terms};
use crate::crash::content;
use crate::crash::history::MessageId;
use crate::crash::oracle::Kind;
use crate::support::raw::{Delivered, Message};

const DEATHS: &str = "x-death";
const DELAY: &str = "x-delay";
const FAILURES: &str = "x-delivery-count";
/// What the broker writes besides [`DEATHS`] and [`FAILURES`].
const WRITTEN: [&str; 7] = [
    "x-acquired-count",
    "x-first-death-queue",
    "x-first-death-reason",
    "x-first-death-exchange",
    "x-last-death-queue",
    "x-last-death-reason",
    "x-last-death-exchange",
];

/// Where and why a message died.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cause {
    /// In this queue.
    pub(crate) queue: String,
    /// The broker's word.
    pub(crate) reason: String,
}

/// An entry of a message's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Death {
    /// Where and why.
    pub(crate) cause: Cause,
    /// How often.
    pub(crate) count: i64,
    /// When first, in seconds.
    pub(crate) time: u64,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Sighting {
    /// In this queue.
    pub(crate) queue: String,
    /// `None` when it is none of ours.
    pub(crate) id: Option<MessageId>,
    /// The broker was asked for it at this time.
    pub(crate) asked_ms: u64,
    /// It was here at this time.
    pub(crate) seen_ms: u64,
    /// The broker's flag.
    pub(crate) is_redelivered: bool,
    /// Its history, the latest death first.
    pub(crate) deaths: Vec<Death>,
    /// The first death and the last one, by their own headers.
    pub(crate) first: Option<Cause>,
    /// See `first`.
    pub(crate) last: Option<Cause>,
    /// How often it failed, if that is said.
    pub(crate) failures: Option<i64>,
    /// What else is not as published.
    pub(crate) altered: Option<Kind>,
}

/// The message of an id, as it is published on these terms.
pub(super) fn message(id: MessageId, terms: &Terms) -> Message {
    let mut message = content::message(id, true);
    if let Some(delay_ms) = terms.delay_ms {
        let delay = FieldValue::Long(i64::try_from(delay_ms).unwrap_or(i64::MAX));
        let mut properties = message.properties.edit();
        properties.set_header(DELAY, delay);
        message.properties = properties.build();
    }
    message
}

impl Sighting {
    /// How often it was rejected, as it says.
    pub(super) fn rejected_count(&self) -> i64 {
        let mut rejected = self
            .deaths
            .iter()
            .filter(|death| death.cause.reason == "rejected");
        rejected.next().map_or(0, |death| death.count)
    }

    /// Of a delivery.
    pub(super) fn of(queue: &str, delivered: &Delivered, asked_ms: u64, seen_ms: u64) -> Self {
        let properties = &delivered.message.properties;
        let headers = properties.headers().unwrap_or_default();
        let id = properties
            .message_id()
            .and_then(|id| std::str::from_utf8(id).ok()?.parse().ok());
        let deaths = headers.get_array(DEATHS).unwrap_or_default();
        Self {
            queue: queue.to_owned(),
            id,
            asked_ms,
            seen_ms,
            is_redelivered: delivered.is_redelivered,
            deaths: deaths.iter().filter_map(death).collect(),
            first: cause(&headers, "x-first-death-queue", "x-first-death-reason"),
            last: cause(&headers, "x-last-death-queue", "x-last-death-reason"),
            failures: headers.get_integer(FAILURES),
            altered: id.and_then(|id| difference(id, delivered, queue)),
        }
    }
}

fn cause(table: &FieldTable, queue: &str, reason: &str) -> Option<Cause> {
    Some(Cause {
        queue: table.get_text(queue)?.to_owned(),
        reason: table.get_text(reason)?.to_owned(),
    })
}

fn death(value: &FieldValue) -> Option<Death> {
    let table = value.as_table()?;
    let FieldValue::Timestamp(time) = *table.get("time")? else {
        return None;
    };
    Some(Death {
        cause: cause(table, "queue", "reason")?,
        count: table.get_integer("count")?,
        time,
    })
}

/// What is different from the message as published, but for what the broker writes.
fn difference(id: MessageId, delivered: &Delivered, queue: &str) -> Option<Kind> {
    let was = content::message(id, true);
    let is = &delivered.message;
    let exchange = if queue == ARRIVALS {
        DELAYED_EXCHANGE
    } else {
        ""
    };
    let is_delay_right = match is.properties.header(DELAY) {
        None => queue != ARRIVALS,
        // It tells that it was delayed, by its sign.
        Some(value) => queue == ARRIVALS && value.as_integer().is_some_and(|delay| delay < 0),
    };
    if was.body != is.body {
        return Some(Kind::AlteredBody);
    }
    if (delivered.exchange.as_str(), delivered.routing_key.as_str()) != (exchange, queue) {
        return Some(Kind::AlteredRoute);
    }
    let mut expected = was.properties.edit();
    let mut found = is.properties.edit();
    if is.properties.header(DEATHS).is_some() {
        expected.set_expiration(None);
    }
    for header in [DEATHS, DELAY, FAILURES].iter().chain(&WRITTEN) {
        found.remove_header(header);
    }
    let same = without_empty(&mut expected).build() == without_empty(&mut found).build();
    (!same || !is_delay_right).then_some(Kind::AlteredProperties)
}

/// A table that only held what the broker wrote was not there before.
fn without_empty(properties: &mut PropertiesBuilder) -> &mut PropertiesBuilder {
    if properties.headers().is_some_and(FieldTable::is_empty) {
        properties.set_headers(None);
    }
    properties
}
