//! Dead-lettering: what is written into a message that dies, and where it goes.
//!
//! A message carries its history in the header `x-death`: one table per (queue, reason), the latest death
//! first. A client may send a header of that name; it means nothing until the first death overwrites it
//! (DL-17), which is why a message says itself whether a broker wrote it ([`Message::has_deaths`]).
//!
//! Cycles (DL-20, DL-21): a message that would come back to a queue it died in, without a rejection since,
//! is dropped there; without that, a queue that expires into itself would turn for ever. Rejections are
//! somebody's decision, so loops with one go on.
//!
//! An operator hears once of each cycle, and once of each exchange that is missing, not once a message:
//! see [`Warned`].

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;

use super::arguments::DeadLetterTarget;
use super::exchange::History;
use super::message::{Message, MessageParts};
use super::queue::{QueueHandle, QueueSpec};
use crate::amqp::field_table::{FieldTable, FieldValue};
use crate::amqp::properties::{CC_HEADER, Properties};
use crate::amqp::short_string::ShortString;
use crate::storage::types::QueueId;

/// Why a message died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeathReason {
    /// Rejected without requeue.
    Rejected,
    /// Its time to live ran out.
    Expired,
    /// The queue was too long.
    MaxLength,
    /// It failed too often in a quorum queue.
    DeliveryLimit,
}

impl DeathReason {
    /// The word in the headers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::MaxLength => "maxlen",
            Self::DeliveryLimit => "delivery_limit",
        }
    }
}

/// Where a dead letter goes.
pub struct LetterRoute {
    /// Queues, ascending by id, distinct.
    pub targets: Vec<QueueHandle>,
    /// Exchanges on its way that remember it when it has gone there.
    pub(crate) histories: Vec<Arc<History>>,
}

/// Finds the queues a dead letter goes to; implemented over the topology.
pub trait DeadLetterRouter: Send + Sync {
    /// Queues that `exchange` of `vhost` routes `message` to with any of `routing_keys`, alternate
    /// exchanges and exchange bindings included. `None` when the exchange does not exist. Called without
    /// queue locks.
    fn route(
        &self,
        vhost: &str,
        exchange: &ShortString,
        routing_keys: &[ShortString],
        message: &Arc<Message>,
    ) -> Option<LetterRoute>;

    /// Another one when a message may go another way than before. Called without queue locks.
    fn version(&self, vhost: &str) -> u64;
}

/// A message after its death, and its next queues.
#[derive(Clone, Debug)]
pub(super) struct DeadLetter {
    pub(super) message: Arc<Message>,
    /// Ascending by id, distinct. None when there are only exchanges that remember it.
    pub(super) targets: Vec<QueueHandle>,
    pub(super) histories: Vec<Arc<History>>,
}

impl DeadLetter {
    /// What goes that way; `None` when nobody takes it.
    pub(super) fn new(message: Arc<Message>, route: LetterRoute) -> Option<Self> {
        let LetterRoute { targets, histories } = route;
        (!targets.is_empty() || !histories.is_empty()).then_some(Self {
            message,
            targets,
            histories,
        })
    }

    /// It has gone where it goes: the exchanges on its way remember it.
    pub(super) fn remember(&self) {
        for history in &self.histories {
            history.remember(&self.message);
        }
    }
}

/// Cycles of one queue that are remembered; further ones are not reported.
const WARNED_CYCLES_MAX: usize = 64;

/// What has been said already about the dead letters of one queue.
#[derive(Debug, Default)]
pub(super) struct Warned {
    /// The exchange was missing at the last look. Read and written without order: at worst a line is
    /// written twice.
    is_exchange_missing: AtomicBool,
    /// Queues that letters were kept from because they would have gone round. Most queues never have any.
    cycles: OnceLock<Box<Mutex<BTreeSet<QueueId>>>>,
}

impl Warned {
    fn exchange_missing(&self, source: &QueueSpec, exchange: &ShortString) {
        if !self.is_exchange_missing.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                queue = %source.name,
                vhost = %source.vhost,
                %exchange,
                "dead-letter exchange does not exist; dead letters are dropped"
            );
        }
    }

    /// It is there: should it go again, that is news.
    fn exchange_found(&self) {
        if self.is_exchange_missing.load(Ordering::Relaxed) {
            self.is_exchange_missing.store(false, Ordering::Relaxed);
        }
    }

    fn cycle(&self, source: &QueueSpec, target: &QueueHandle) {
        let mut cycles = crate::sync::lock(self.cycles.get_or_init(Box::default));
        let is_new = cycles.len() < WARNED_CYCLES_MAX && cycles.insert(target.id());
        drop(cycles);
        if is_new {
            tracing::warn!(
                queue = %source.name,
                vhost = %source.vhost,
                target = %target.spec().name,
                "dead letters would go round without end; they are dropped"
            );
        }
    }
}

/// What becomes of a message that dies in `source`, which has its dead letters go to `target`; `None` when no queue takes it.
pub(super) fn plan_dead_letter(
    router: &dyn DeadLetterRouter,
    source: &QueueHandle,
    target: &DeadLetterTarget,
    message: &Message,
    reason: DeathReason,
    now_ms: u64,
) -> Option<DeadLetter> {
    let spec = source.spec();
    let letter = Arc::new(die(spec, target, message, reason, now_ms));
    let routing_keys = match &target.routing_key {
        Some(key) => vec![key.clone()],
        None => routing_keys(message),
    };
    let Some(mut route) = router.route(&spec.vhost, &target.exchange, &routing_keys, &letter)
    else {
        source.warned().exchange_missing(spec, &target.exchange);
        return None;
    };
    source.warned().exchange_found();
    if reason != DeathReason::Rejected {
        let deaths = deaths_of(&letter);
        route.targets.retain(|queue| {
            let is_cycle = is_cycle(&deaths, queue.spec().name.as_str());
            if is_cycle {
                source.warned().cycle(spec, queue);
            }
            !is_cycle
        });
    }
    DeadLetter::new(letter, route)
}

/// The message as it leaves `spec`, with its death in the headers.
fn die(
    spec: &QueueSpec,
    target: &DeadLetterTarget,
    message: &Message,
    reason: DeathReason,
    now_ms: u64,
) -> Message {
    let parts = message.to_parts();
    let properties = write_death(spec, &parts, reason, now_ms);
    let (routing_key, bcc) = match &target.routing_key {
        Some(key) => (key.clone(), Vec::new()),
        None => (parts.routing_key, parts.bcc),
    };
    Message::from_parts(&MessageParts {
        exchange: target.exchange.clone(),
        routing_key,
        bcc,
        properties,
        body: parts.body,
        has_deaths: true,
        is_rekeyed: target.routing_key.is_some() || parts.is_rekeyed,
    })
}

fn write_death(
    spec: &QueueSpec,
    message: &MessageParts,
    reason: DeathReason,
    now_ms: u64,
) -> Properties {
    let mut properties = message.properties.edit();
    properties.set_expiration(None);
    let headers = properties.headers_mut();
    let queue = long_string(&spec.name);
    let exchange = long_string(&message.exchange);
    let why = FieldValue::text(reason.as_str());
    let deaths = add_death(spec, message, reason, now_ms);
    headers.set("x-death", FieldValue::Array(deaths));
    if !message.has_deaths {
        headers.set("x-first-death-queue", queue.clone());
        headers.set("x-first-death-reason", why.clone());
        headers.set("x-first-death-exchange", exchange.clone());
    }
    headers.set("x-last-death-queue", queue);
    headers.set("x-last-death-reason", why);
    headers.set("x-last-death-exchange", exchange);
    properties.build()
}

/// The history with one more death, which comes first (DL-15, DL-16).
fn add_death(
    spec: &QueueSpec,
    message: &MessageParts,
    reason: DeathReason,
    now_ms: u64,
) -> Vec<FieldValue> {
    let mut deaths = if message.has_deaths {
        match message.properties.header("x-death") {
            Some(FieldValue::Array(deaths)) => deaths,
            _ => Vec::new(),
        }
    } else {
        Vec::new()
    };
    let known = deaths
        .iter()
        .position(|death| is_death_of(death, spec.name.as_str(), reason));
    let latest = match known {
        Some(at) => count_again(deaths.remove(at)),
        None => FieldValue::Table(first_death(spec, message, reason, now_ms)),
    };
    deaths.insert(0, latest);
    deaths
}

fn is_death_of(death: &FieldValue, queue: &str, reason: DeathReason) -> bool {
    death.as_table().is_some_and(|table| {
        table.get_text("queue") == Some(queue) && table.get_text("reason") == Some(reason.as_str())
    })
}

fn count_again(mut death: FieldValue) -> FieldValue {
    if let FieldValue::Table(table) = &mut death
        && let Some(FieldValue::Long(count)) = table.get_mut("count")
    {
        *count = count.saturating_add(1);
    }
    death
}

/// A table of `x-death`, its fields in the order clients see (reference section 18.2).
fn first_death(
    spec: &QueueSpec,
    message: &MessageParts,
    reason: DeathReason,
    now_ms: u64,
) -> FieldTable {
    let mut death = FieldTable::new();
    if let Some(expiration) = message.properties.expiration() {
        let text = Bytes::copy_from_slice(expiration);
        death.push(
            Bytes::from_static(b"original-expiration"),
            FieldValue::LongString(text),
        );
    }
    let fields: [(&'static [u8], FieldValue); 6] = [
        (b"count", FieldValue::Long(1)),
        (b"reason", FieldValue::text(reason.as_str())),
        (b"queue", long_string(&spec.name)),
        (b"time", FieldValue::Timestamp(now_ms / 1000)),
        (b"exchange", long_string(&message.exchange)),
        (b"routing-keys", FieldValue::Array(visible_keys(message))),
    ];
    for (name, value) in fields {
        death.push(Bytes::from_static(name), value);
    }
    death
}

/// Routing key and CC; BCC is nobody's business.
fn visible_keys(message: &MessageParts) -> Vec<FieldValue> {
    let own = long_string(&message.routing_key);
    std::iter::once(own).chain(cc_of(message)).collect()
}

/// All keys a message is routed by.
pub(super) fn routing_keys(message: &Message) -> Vec<ShortString> {
    let head = message.head_parts();
    let cc = cc_of(&head).into_iter().filter_map(|value| match value {
        FieldValue::LongString(key) => ShortString::new(key),
        _ => None,
    });
    std::iter::once(head.routing_key)
        .chain(cc)
        .chain(head.bcc)
        .collect()
}

/// The strings of the `CC` header (CC-1: other items are skipped), as far as they are routing keys.
fn cc_of(message: &MessageParts) -> Vec<FieldValue> {
    if message.is_rekeyed || !message.properties.has_cc() {
        return Vec::new();
    }
    match message.properties.header(CC_HEADER) {
        Some(FieldValue::Array(items)) => items
            .into_iter()
            .filter(|item| matches!(item, FieldValue::LongString(_)))
            .collect(),
        _ => Vec::new(),
    }
}

fn long_string(name: &ShortString) -> FieldValue {
    FieldValue::LongString(name.as_bytes().clone())
}

/// (queue, was rejected) of every death, the latest first.
fn deaths_of(message: &Message) -> Vec<(String, bool)> {
    let Some(FieldValue::Array(deaths)) = message.properties().header("x-death") else {
        return Vec::new();
    };
    deaths
        .iter()
        .filter_map(FieldValue::as_table)
        .map(|death| {
            let queue = death.get_text("queue").unwrap_or_default().to_owned();
            (queue, death.get_text("reason") == Some("rejected"))
        })
        .collect()
}

/// The message died in `queue` before, and since then only by itself.
fn is_cycle(deaths: &[(String, bool)], queue: &str) -> bool {
    let Some(at) = deaths.iter().position(|(name, _)| name == queue) else {
        return false;
    };
    deaths[..=at].iter().all(|(_, was_rejected)| !was_rejected)
}
