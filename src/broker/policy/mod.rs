//! Policies: what operators say about queues and exchanges by the pattern of their names.
//!
//! ```text
//!   policies           p1 p2 p3   -- the matching one of the highest priority --.
//!   operator policies  o1 o2      -- the matching one of the highest priority --+--> key by key: the stricter
//!                                                                               |
//!   arguments of the queue ----------- key by key: the stricter, or its own ----'--> what the queue obeys
//! ```
//!
//! One policy and one operator policy at most apply to an object (PO-2, PO-3); of those with the same priority it is the
//! first by name. A policy with a key that the type of a queue does not know does not match that queue (PO-8).
//! What results is computed here and given to queues and exchanges when it changes: nobody looks a policy up for a
//! message.

mod definition;

use std::sync::Arc;

pub(crate) use self::definition::{Definition, PolicySettings};
use super::arguments::{DeadLetterTarget, QueueArguments, QueueKind};
use super::pattern::NamePattern;
use super::queue::QueueSpec;
use super::salvage;
use crate::amqp::field_table::{FieldTable, FieldValue};
use crate::amqp::short_string::ShortString;

/// What kind of things a policy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ApplyTo {
    /// Queues and exchanges.
    All,
    /// Queues of every type.
    Queues,
    ClassicQueues,
    QuorumQueues,
    /// Nothing here; kept for definitions that come from elsewhere.
    Streams,
    Exchanges,
}

/// What a policy may match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ObjectKind {
    Exchange,
    ClassicQueue,
    QuorumQueue,
}

impl ApplyTo {
    const NAMES: [(&'static str, Self); 6] = [
        ("all", Self::All),
        ("queues", Self::Queues),
        ("classic_queues", Self::ClassicQueues),
        ("quorum_queues", Self::QuorumQueues),
        ("streams", Self::Streams),
        ("exchanges", Self::Exchanges),
    ];

    /// The one of that name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        let mut names = Self::NAMES.into_iter();
        names.find(|(known, _)| *known == name).map(|(_, of)| of)
    }

    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        let mut names = Self::NAMES.into_iter();
        names
            .find(|(_, of)| *of == self)
            .map_or("all", |(name, _)| name)
    }

    fn includes(self, kind: ObjectKind) -> bool {
        match self {
            Self::All => true,
            Self::Queues => kind != ObjectKind::Exchange,
            Self::ClassicQueues => kind == ObjectKind::ClassicQueue,
            Self::QuorumQueues => kind == ObjectKind::QuorumQueue,
            Self::Streams => false,
            Self::Exchanges => kind == ObjectKind::Exchange,
        }
    }
}

/// A policy or an operator policy.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) name: String,
    pub(crate) is_operator: bool,
    pub(crate) pattern: NamePattern,
    pub(crate) apply_to: ApplyTo,
    pub(crate) priority: i64,
    pub(crate) definition: Definition,
}

impl Policy {
    fn matches(&self, name: &str, kind: ObjectKind) -> bool {
        self.apply_to.includes(kind) && self.definition.suits(kind) && self.pattern.matches(name)
    }
}

/// The policies of a vhost.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    /// The highest priority first, then by name.
    policies: Vec<Arc<Policy>>,
}

impl Policies {
    /// Adds a policy, or replaces the one of its name.
    pub(crate) fn insert(&mut self, policy: Arc<Policy>) {
        self.remove(policy.is_operator, &policy.name);
        self.policies.push(policy);
        self.policies.sort_by(|left, right| {
            let by_priority = right.priority.cmp(&left.priority);
            by_priority.then_with(|| left.name.cmp(&right.name))
        });
    }

    /// Removes a policy; false when there is none of that name.
    pub(crate) fn remove(&mut self, is_operator: bool, name: &str) -> bool {
        let count = self.policies.len();
        self.policies
            .retain(|policy| policy.is_operator != is_operator || policy.name != name);
        self.policies.len() < count
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.iter()
    }

    /// What policy and operator policy together say about an object.
    fn settings_of(&self, name: &str, kind: ObjectKind) -> PolicySettings {
        let mut matching = [None, None];
        for policy in &self.policies {
            let place = &mut matching[usize::from(policy.is_operator)];
            if place.is_none() && policy.matches(name, kind) {
                *place = Some(policy.definition.settings());
            }
        }
        match matching {
            [None, None] => PolicySettings::default(),
            [Some(settings), None] | [None, Some(settings)] => settings.clone(),
            [Some(user), Some(operator)] => user.limited_by(operator),
        }
    }

    /// What a queue with these arguments, as given and as understood, obeys.
    pub(crate) fn queue_settings(
        &self,
        name: &ShortString,
        arguments: &FieldTable,
        declared: QueueArguments,
    ) -> Arc<QueueArguments> {
        if self.policies.is_empty() {
            return declared.shared();
        }
        let kind = match declared.kind {
            QueueKind::Classic => ObjectKind::ClassicQueue,
            QueueKind::Quorum => ObjectKind::QuorumQueue,
        };
        let mut policy = self.settings_of(name.as_str(), kind);
        if salvage::is_recovered(name.as_str(), arguments) {
            // Most policies match every name, and nobody had these messages in mind.
            policy = policy.without_loss();
        }
        merge(declared, arguments, policy).shared()
    }

    /// What a queue that is there is to obey. `None` never happens: its arguments were understood when it was declared.
    pub(crate) fn settings_of_queue(&self, spec: &QueueSpec) -> Option<Arc<QueueArguments>> {
        let declared = if spec.arguments.is_empty() {
            QueueArguments::default()
        } else {
            QueueArguments::parse(&spec.arguments, spec.name.as_str(), &spec.vhost).ok()?
        };
        Some(self.queue_settings(&spec.name, &spec.arguments, declared))
    }

    /// The alternate exchange of the exchange of that name, where its arguments name none (PO-7).
    pub(crate) fn alternate_exchange(&self, name: &ShortString) -> Option<ShortString> {
        let policy = self.settings_of(name.as_str(), ObjectKind::Exchange);
        policy.alternate_exchange
    }
}

/// PO-6: numbers are the lower of both, and of the rest the argument wins.
fn merge(
    declared: QueueArguments,
    arguments: &FieldTable,
    policy: PolicySettings,
) -> QueueArguments {
    let overflow = policy
        .overflow
        .filter(|_| arguments.get("x-overflow").is_none());
    let delivery_limit = delivery_limit(&declared, arguments, policy.delivery_limit);
    let (exchange, routing_key) = match declared.dead_letter {
        Some(target) => (Some(target.exchange), target.routing_key),
        None => (None, None),
    };
    let routing_key = routing_key.or(policy.dead_letter_routing_key);
    let exchange = exchange.or(policy.dead_letter_exchange);
    QueueArguments {
        delivery_limit,
        consumer_timeout_ms: lower(declared.consumer_timeout_ms, policy.consumer_timeout_ms),
        is_at_least_once: match arguments.get("x-dead-letter-strategy") {
            Some(_) => declared.is_at_least_once,
            None => policy.is_at_least_once.unwrap_or(false),
        },
        message_ttl_ms: lower(declared.message_ttl_ms, policy.message_ttl_ms),
        expires_ms: lower(declared.expires_ms, policy.expires_ms),
        max_length: lower(declared.max_length, policy.max_length),
        max_length_bytes: lower(declared.max_length_bytes, policy.max_length_bytes),
        overflow: overflow.unwrap_or(declared.overflow),
        dead_letter: exchange.map(|exchange| DeadLetterTarget {
            exchange,
            routing_key,
        }),
        ..declared
    }
}

/// The stricter one of argument and policy; the default holds where there is neither (QQ-2).
fn delivery_limit(
    declared: &QueueArguments,
    arguments: &FieldTable,
    policy: Option<i64>,
) -> Option<u64> {
    if policy.is_none() {
        return declared.delivery_limit;
    }
    let argument = arguments.get("x-delivery-limit");
    let argument = argument.and_then(FieldValue::as_integer);
    let stricter = definition::stricter_limit(argument, policy)?;
    u64::try_from(stricter).ok()
}

/// The lower of two limits, each of which may be absent.
fn lower(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests;
