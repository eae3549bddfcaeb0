//! The bindings of an exchange, arranged as its type looks them up.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::direct::DirectTable;
use super::fanout::FanoutTable;
use super::hash::{ConsistentTable, HashOn, ModulusTable, parse_weight};
use super::headers::{HeadersPattern, HeadersTable};
use super::history::{self, Histories, History};
use super::kind::ExchangeKind;
use super::random::RandomTable;
use super::topic::TopicTable;
use crate::amqp::field_table::FieldTable;
use crate::amqp::properties::Properties;
use crate::amqp::short_string::ShortString;
use crate::broker::binding::{Binding, BindingKey, Destination};

type Item = Arc<Binding>;

#[derive(Debug)]
pub(super) enum Table {
    Direct(DirectTable<Item>),
    Fanout(FanoutTable<Item>),
    Topic(TopicTable<Item>),
    Headers(HeadersTable<Item>),
    ConsistentHash(ConsistentTable<Item>),
    ModulusHash(ModulusTable<Item>),
    Random(RandomTable<Item>),
    RecentHistory(FanoutTable<Item>, Arc<History>),
}

/// Why a binding is refused by the type of its source (406), if it is.
pub(super) fn check_binding(
    kind: ExchangeKind,
    key: &BindingKey,
    arguments: &FieldTable,
) -> Result<(), String> {
    match kind {
        ExchangeKind::Headers => HeadersPattern::parse(arguments).map(drop),
        ExchangeKind::ConsistentHash => parse_weight(&key.routing_key).map(drop),
        ExchangeKind::LocalRandom if !key.routing_key.is_empty() => {
            let key = &key.routing_key;
            Err(format!("Non empty binding '{key}' key not permitted"))
        }
        ExchangeKind::LocalRandom if !key.destination.is_queue() => {
            Err("Destination not found".to_owned())
        }
        _ => Ok(()),
    }
}

/// A name that no other destination has.
fn unique_name(destination: &Destination) -> Bytes {
    let name = destination.name().as_bytes();
    let mut unique = BytesMut::with_capacity(1 + name.len());
    unique.put_u8(u8::from(destination.is_queue()));
    unique.put_slice(name);
    unique.freeze()
}

impl Table {
    /// An empty table for an exchange that routes as `kind`. Arguments were checked before.
    pub(super) fn new(
        kind: ExchangeKind,
        arguments: &FieldTable,
        histories: &Arc<Histories>,
    ) -> Self {
        match kind {
            ExchangeKind::Direct | ExchangeKind::Delayed => Self::Direct(DirectTable::default()),
            ExchangeKind::Fanout => Self::Fanout(FanoutTable::default()),
            ExchangeKind::Topic => Self::Topic(TopicTable::default()),
            ExchangeKind::Headers => Self::Headers(HeadersTable::default()),
            ExchangeKind::ConsistentHash => {
                let hash_on = HashOn::parse(arguments).unwrap_or(HashOn::Keys);
                Self::ConsistentHash(ConsistentTable::new(hash_on))
            }
            ExchangeKind::ModulusHash => Self::ModulusHash(ModulusTable::default()),
            ExchangeKind::Random | ExchangeKind::LocalRandom => {
                Self::Random(RandomTable::default())
            }
            ExchangeKind::RecentHistory => {
                let length = history::parse_length(arguments).unwrap_or_default();
                let history = Arc::new(History::new(length, histories));
                Self::RecentHistory(FanoutTable::default(), history)
            }
        }
    }

    /// True when messages with the same keys always go the same way, as long as the bindings stay.
    pub(super) fn is_by_key(&self) -> bool {
        match self {
            Self::Direct(_) | Self::Fanout(_) | Self::Topic(_) | Self::ModulusHash(_) => true,
            Self::ConsistentHash(table) => table.is_by_key(),
            Self::Headers(_) | Self::Random(_) | Self::RecentHistory(..) => false,
        }
    }

    /// Where messages are remembered.
    pub(super) fn history(&self) -> Option<&Arc<History>> {
        match self {
            Self::RecentHistory(_, history) => Some(history),
            _ => None,
        }
    }

    /// Adds a checked binding that is not there yet.
    pub(super) fn insert(&mut self, item: Item) {
        let key = item.key.routing_key.as_bytes().clone();
        match self {
            Self::Direct(table) => table.insert(key, item),
            Self::Fanout(table) | Self::RecentHistory(table, _) => table.insert(item),
            Self::Topic(table) => table.insert(&key, item),
            Self::Headers(table) => {
                // Checked before; a binding that asks for nothing sensible matches nothing.
                if let Ok(pattern) = HeadersPattern::parse(&item.arguments) {
                    table.insert(pattern, item);
                }
            }
            Self::ConsistentHash(table) => {
                if let Ok(weight) = parse_weight(&item.key.routing_key) {
                    table.insert(unique_name(&item.key.destination), weight, item);
                }
            }
            Self::ModulusHash(table) => table.insert(unique_name(&item.key.destination), item),
            Self::Random(table) => table.insert(item),
        }
    }

    /// Removes a binding.
    pub(super) fn remove(&mut self, item: &Item) {
        let key = item.key.routing_key.as_bytes();
        let destination = || unique_name(&item.key.destination);
        match self {
            Self::Direct(table) => table.remove(key, item),
            Self::Fanout(table) | Self::RecentHistory(table, _) => table.remove(item),
            Self::Topic(table) => table.remove(key, item),
            Self::Headers(table) => table.remove(item),
            Self::ConsistentHash(table) => table.remove(&destination(), item),
            Self::ModulusHash(table) => table.remove(&destination(), item),
            Self::Random(table) => table.remove(item),
        }
    }

    /// Visits the bindings that want a message with any of `keys`. A binding may be visited once a key.
    pub(super) fn route<'a>(
        &'a self,
        keys: &[ShortString],
        properties: &Properties,
        mut visit: impl FnMut(&'a Item),
    ) {
        match self {
            Self::Direct(table) => {
                for key in keys {
                    table.route(key.as_bytes(), &mut visit);
                }
            }
            Self::Fanout(table) | Self::RecentHistory(table, _) => table.route(visit),
            Self::Topic(table) => {
                for key in keys {
                    table.route(key.as_bytes(), &mut visit);
                }
            }
            Self::Headers(table) => {
                table.route(&properties.headers().unwrap_or_default(), visit);
            }
            Self::ConsistentHash(table) => {
                table.route(keys, properties).into_iter().for_each(visit)
            }
            Self::ModulusHash(table) => table.route(keys).into_iter().for_each(visit),
            Self::Random(table) => table.route().into_iter().for_each(visit),
        }
    }
}
