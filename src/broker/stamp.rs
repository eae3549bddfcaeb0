//! What the broker writes into messages that come in, when it is asked to: the time, and its name.
//!
//! | stamp | header | property |
//! |---|---|---|
//! | time | `timestamp_in_ms`, milliseconds since 1970 | `timestamp`, seconds |
//! | node | `x-routed-by`, the broker's name | |
//!
//! Off by default: a message that is stamped is written anew.

use crate::amqp::field_table::FieldValue;
use crate::amqp::properties::Properties;

/// Header with the time.
const TIME: &str = "timestamp_in_ms";
/// Header with the broker's name.
const NODE: &str = "x-routed-by";

/// Whether a stamp is put.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stamp {
    /// Never.
    #[default]
    Off,
    /// Where the message has none of its own.
    Fill,
    /// On every message.
    Overwrite,
}

/// The stamps of a broker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stamps {
    /// When the message came in.
    pub time: Stamp,
    /// Who took it.
    pub node: Stamp,
    /// The broker's name.
    pub node_name: String,
}

impl Stamp {
    fn applies(self, is_there: bool) -> bool {
        match self {
            Self::Off => false,
            Self::Fill => !is_there,
            Self::Overwrite => true,
        }
    }
}

impl Stamps {
    /// True when messages stay as they are.
    pub(super) fn is_off(&self) -> bool {
        self.time == Stamp::Off && self.node == Stamp::Off
    }

    /// The properties of a message that came in at `now_ms`.
    pub(super) fn apply(&self, properties: &Properties, now_ms: u64) -> Properties {
        let mut stamped = properties.edit();
        if self.time.applies(properties.timestamp().is_some()) {
            stamped.set_timestamp(Some(now_ms / 1000));
        }
        let has = |name| properties.header(name).is_some();
        if self.time.applies(has(TIME)) {
            let time = FieldValue::Long(i64::try_from(now_ms).unwrap_or(i64::MAX));
            stamped.headers_mut().set(TIME, time);
        }
        if self.node.applies(has(NODE)) {
            let name = FieldValue::text(&self.node_name);
            stamped.headers_mut().set(NODE, name);
        }
        stamped.build()
    }
}
