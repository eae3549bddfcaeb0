//! The types of exchanges by name, and what each of them wants of its arguments.

use std::fmt;

use super::hash::HashOn;
use super::history;
use crate::amqp::field_table::FieldTable;

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
}

impl ExchangeKind {
    const ALL: [Self; 9] = [
        Self::Direct,
        Self::Fanout,
        Self::Topic,
        Self::Headers,
        Self::ConsistentHash,
        Self::ModulusHash,
        Self::Random,
        Self::LocalRandom,
        Self::RecentHistory,
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
        }
    }

    /// Why an exchange with these arguments is refused (406), if it is.
    pub(crate) fn check_arguments(self, arguments: &FieldTable) -> Result<(), String> {
        match self {
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
