//! Exchanges: a name, a type, and a table of bindings that the type searches in its own way.

pub mod direct;
pub mod fanout;
mod hash;
pub mod headers;
mod history;
pub mod items;
mod kind;
mod random;
mod table;
pub mod topic;

use std::collections::HashMap;
use std::sync::Arc;

pub(crate) use self::history::{Histories, History};
pub use self::kind::ExchangeKind;
use self::table::Table;
use super::binding::{Binding, BindingKey};
use super::queue::QueueHandle;
use crate::amqp::field_table::{FieldTable, FieldValue};
use crate::amqp::properties::Properties;
use crate::amqp::short_string::ShortString;

/// Names that only the broker may give.
pub(crate) const RESERVED_PREFIX: &str = "amq.";

/// Argument that names the exchange for what this one cannot route.
pub(crate) const ALTERNATE_EXCHANGE: &str = "alternate-exchange";

/// What an exchange is, fixed at its declaration.
#[derive(Clone, Debug)]
pub(crate) struct ExchangeSpec {
    pub(crate) name: ShortString,
    pub(crate) kind: ExchangeKind,
    pub(crate) is_durable: bool,
    pub(crate) is_auto_delete: bool,
    pub(crate) is_internal: bool,
    pub(crate) arguments: FieldTable,
}

impl ExchangeSpec {
    /// A durable exchange that every vhost has from the start.
    fn predeclared(name: &'static str, kind: ExchangeKind) -> Self {
        Self {
            name: ShortString::from_static(name),
            kind,
            is_durable: true,
            is_auto_delete: false,
            is_internal: false,
            arguments: FieldTable::default(),
        }
    }

    /// True for the exchanges that every vhost has from the start; nobody else may declare such a name.
    pub(crate) fn is_predeclared(&self) -> bool {
        self.name.as_str().starts_with(RESERVED_PREFIX)
    }

    /// The exchanges every vhost has from the start. The default exchange is not among them: it has no
    /// bindings and is answered by `routing`.
    pub(crate) fn all_predeclared() -> [Self; 6] {
        [
            Self::predeclared("amq.direct", ExchangeKind::Direct),
            Self::predeclared("amq.fanout", ExchangeKind::Fanout),
            Self::predeclared("amq.topic", ExchangeKind::Topic),
            Self::predeclared("amq.headers", ExchangeKind::Headers),
            Self::predeclared("amq.match", ExchangeKind::Headers),
            Self {
                is_internal: true,
                ..Self::predeclared("amq.rabbitmq.trace", ExchangeKind::Topic)
            },
        ]
    }
}

/// An exchange with the bindings that have it as source.
#[derive(Debug)]
pub(crate) struct Exchange {
    spec: ExchangeSpec,
    /// The type that says where messages go.
    routing_kind: ExchangeKind,
    /// Where messages of a delayed exchange wait.
    delay_queue: Option<QueueHandle>,
    /// Parsed from the arguments.
    alternate: Option<ShortString>,
    /// What a policy says; the argument wins (PO-7).
    policy_alternate: Option<ShortString>,
    bindings: HashMap<BindingKey, Arc<Binding>>,
    /// The same bindings, arranged for look-up.
    table: Table,
}

impl Exchange {
    pub(crate) fn new(spec: ExchangeSpec, histories: &Arc<Histories>) -> Self {
        let alternate = match spec.arguments.get(ALTERNATE_EXCHANGE) {
            Some(FieldValue::LongString(name)) => ShortString::new(name.clone()),
            _ => None,
        };
        // Arguments were checked before.
        let routing_kind = spec.kind.routing_kind(&spec.arguments).unwrap_or(spec.kind);
        let table = Table::new(routing_kind, &spec.arguments, histories);
        Self {
            spec,
            routing_kind,
            delay_queue: None,
            alternate,
            policy_alternate: None,
            bindings: HashMap::new(),
            table,
        }
    }

    pub(crate) fn spec(&self) -> &ExchangeSpec {
        &self.spec
    }

    pub(crate) fn alternate(&self) -> Option<&ShortString> {
        self.alternate.as_ref().or(self.policy_alternate.as_ref())
    }

    pub(crate) fn set_policy_alternate(&mut self, name: Option<ShortString>) {
        self.policy_alternate = name;
    }

    /// True when some binding has it as source.
    pub(crate) fn is_in_use(&self) -> bool {
        !self.bindings.is_empty()
    }

    pub(crate) fn binding(&self, key: &BindingKey) -> Option<&Arc<Binding>> {
        self.bindings.get(key)
    }

    pub(crate) fn bindings(&self) -> impl Iterator<Item = &Arc<Binding>> {
        self.bindings.values()
    }

    /// Why a binding is refused (406), if it is.
    pub(crate) fn check_binding(
        &self,
        key: &BindingKey,
        arguments: &FieldTable,
    ) -> Result<(), String> {
        table::check_binding(self.routing_kind, key, arguments)
    }

    /// True when messages with the same keys always go the same way, as long as the bindings stay.
    pub(crate) fn is_by_key(&self) -> bool {
        self.table.is_by_key() && self.delay_queue.is_none()
    }

    /// Gives a delayed exchange the queue in which messages wait.
    pub(crate) fn set_delay_queue(&mut self, queue: QueueHandle) {
        self.delay_queue = Some(queue);
    }

    /// Where messages wait, in a delayed exchange.
    pub(crate) fn delay_queue(&self) -> Option<&QueueHandle> {
        self.delay_queue.as_ref()
    }

    /// Where messages are remembered for later bindings.
    pub(crate) fn history(&self) -> Option<&Arc<History>> {
        self.table.history()
    }

    /// Adds a checked binding that is not there yet.
    pub(crate) fn insert(&mut self, binding: &Arc<Binding>) {
        self.table.insert(Arc::clone(binding));
        self.bindings
            .insert(binding.key.clone(), Arc::clone(binding));
    }

    /// Removes a binding.
    pub(crate) fn remove(&mut self, binding: &Arc<Binding>) {
        self.table.remove(binding);
        self.bindings.remove(&binding.key);
    }

    /// Visits the bindings that want a message with any of `keys`. A binding may be visited once a key.
    pub(crate) fn route<'a>(
        &'a self,
        keys: &[ShortString],
        properties: &Properties,
        visit: impl FnMut(&'a Arc<Binding>),
    ) {
        self.table.route(keys, properties, visit);
    }
}
