//! Exchanges: a name, a type, and a table of bindings that the type searches in its own way.

pub mod direct;
pub mod fanout;
pub mod headers;
pub mod items;
pub mod topic;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use self::direct::DirectTable;
use self::fanout::FanoutTable;
use self::headers::{HeadersPattern, HeadersTable};
use self::topic::TopicTable;
use super::binding::{Binding, BindingKey};
use crate::amqp::field_table::{FieldTable, FieldValue};
use crate::amqp::short_string::ShortString;

/// Names that only the broker may give.
pub(crate) const RESERVED_PREFIX: &str = "amq.";

/// Argument that names the exchange for what this one cannot route.
pub(crate) const ALTERNATE_EXCHANGE: &str = "alternate-exchange";

/// The type of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExchangeKind {
    /// Byte-exact keys.
    Direct,
    /// Every binding.
    Fanout,
    /// Patterns of words.
    Topic,
    /// Headers instead of keys.
    Headers,
}

impl ExchangeKind {
    /// The type of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "direct" => Self::Direct,
            "fanout" => Self::Fanout,
            "topic" => Self::Topic,
            "headers" => Self::Headers,
            _ => return None,
        })
    }
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Fanout => "fanout",
            Self::Topic => "topic",
            Self::Headers => "headers",
        }
    }
}

impl fmt::Display for ExchangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

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
    /// Parsed from the arguments.
    alternate: Option<ShortString>,
    bindings: HashMap<BindingKey, Arc<Binding>>,
    /// The same bindings, arranged for look-up.
    table: Table,
}

#[derive(Debug)]
enum Table {
    Direct(DirectTable<Arc<Binding>>),
    Fanout(FanoutTable<Arc<Binding>>),
    Topic(TopicTable<Arc<Binding>>),
    Headers(HeadersTable<Arc<Binding>>),
}

impl Exchange {
    pub(crate) fn new(spec: ExchangeSpec) -> Self {
        let alternate = match spec.arguments.get(ALTERNATE_EXCHANGE) {
            Some(FieldValue::LongString(name)) => ShortString::new(name.clone()),
            _ => None,
        };
        let table = match spec.kind {
            ExchangeKind::Direct => Table::Direct(DirectTable::default()),
            ExchangeKind::Fanout => Table::Fanout(FanoutTable::default()),
            ExchangeKind::Topic => Table::Topic(TopicTable::default()),
            ExchangeKind::Headers => Table::Headers(HeadersTable::default()),
        };
        Self {
            spec,
            alternate,
            bindings: HashMap::new(),
            table,
        }
    }

    pub(crate) fn spec(&self) -> &ExchangeSpec {
        &self.spec
    }

    pub(crate) fn alternate(&self) -> Option<&ShortString> {
        self.alternate.as_ref()
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

    /// Why a binding with these arguments is refused (406), if it is.
    pub(crate) fn check_binding(&self, arguments: &FieldTable) -> Result<(), String> {
        match self.spec.kind {
            ExchangeKind::Headers => HeadersPattern::parse(arguments).map(|_| ()),
            _ => Ok(()),
        }
    }

    /// Adds a checked binding that is not there yet.
    pub(crate) fn insert(&mut self, binding: &Arc<Binding>) {
        let item = Arc::clone(binding);
        match &mut self.table {
            Table::Direct(table) => table.insert(item.key.routing_key.as_bytes().clone(), item),
            Table::Fanout(table) => table.insert(item),
            Table::Topic(table) => table.insert(&item.key.routing_key.as_bytes().clone(), item),
            Table::Headers(table) => {
                // Checked before; a binding that asks for nothing sensible matches nothing.
                if let Ok(pattern) = HeadersPattern::parse(&item.arguments) {
                    table.insert(pattern, item);
                }
            }
        }
        self.bindings
            .insert(binding.key.clone(), Arc::clone(binding));
    }

    /// Removes a binding.
    pub(crate) fn remove(&mut self, binding: &Arc<Binding>) {
        let key = binding.key.routing_key.as_bytes();
        match &mut self.table {
            Table::Direct(table) => table.remove(key, binding),
            Table::Fanout(table) => table.remove(binding),
            Table::Topic(table) => table.remove(key, binding),
            Table::Headers(table) => table.remove(binding),
        }
        self.bindings.remove(&binding.key);
    }

    /// Visits the bindings that want a message with any of `keys`; `headers` is asked for only by a
    /// headers exchange. A binding may be visited once a key.
    pub(crate) fn route<'a>(
        &'a self,
        keys: &[ShortString],
        headers: impl FnOnce() -> FieldTable,
        mut visit: impl FnMut(&'a Arc<Binding>),
    ) {
        match &self.table {
            Table::Direct(table) => {
                for key in keys {
                    table.route(key.as_bytes(), &mut visit);
                }
            }
            Table::Fanout(table) => table.route(visit),
            Table::Topic(table) => {
                for key in keys {
                    table.route(key.as_bytes(), &mut visit);
                }
            }
            Table::Headers(table) => table.route(&headers(), visit),
        }
    }
}
