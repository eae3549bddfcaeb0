//! The types of exchanges by name, and what each of them wants of its arguments.

use std::fmt;

use super::hash::HashOn;
use super::history;
use crate::amqp::field_table::FieldTable;

/// Argument of a delayed exchange: the type it routes as.
const DELAYED_TYPE: &str = "x-delayed-type";

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
    /// One destination for each key, by weight; few keys move when destinations come and go.
    ConsistentHash,
    /// One destination for each key.
    ModulusHash,
    /// One destination, any.
    Random,
    /// One queue of this machine, any; that is all of them.
    LocalRandom,
    /// Every binding, and new ones get the last messages.
    RecentHistory,
    /// As another type, later.
    Delayed,
}

impl ExchangeKind {
    const ALL: [Self; 10] = [
        Self::Direct,
        Self::Fanout,
        Self::Topic,
        Self::Headers,
        Self::ConsistentHash,
        Self::ModulusHash,
        Self::Random,
        Self::LocalRandom,
        Self::RecentHistory,
        Self::Delayed,
    ];

    /// The type of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Fanout => "fanout",
            Self::Topic => "topic",
            Self::Headers => "headers",
            Self::ConsistentHash => "x-consistent-hash",
            Self::ModulusHash => "x-modulus-hash",
            Self::Random => "x-random",
            Self::LocalRandom => "x-local-random",
            Self::RecentHistory => "x-recent-history",
            Self::Delayed => "x-delayed-message",
        }
    }

    /// The type that says where messages go: that of a delayed exchange stands in its arguments.
    ///
    /// # Errors
    /// The text of the refusal (406).
    pub(crate) fn routing_kind(self, arguments: &FieldTable) -> Result<Self, String> {
        if self != Self::Delayed {
            return Ok(self);
        }
        let named = arguments.get_text(DELAYED_TYPE).and_then(Self::from_name);
        let named = named.filter(|kind| *kind != Self::Delayed);
        named.ok_or_else(|| {
            format!("Invalid argument, '{DELAYED_TYPE}' must be an existing exchange type")
        })
    }

    /// Why an exchange with these arguments is refused (406), if it is.
    pub(crate) fn check_arguments(self, arguments: &FieldTable) -> Result<(), String> {
        match self.routing_kind(arguments)? {
            Self::ConsistentHash => HashOn::parse(arguments).map(drop),
            Self::RecentHistory => history::parse_length(arguments).map(drop),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for ExchangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
