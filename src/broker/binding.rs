//! Bindings: from an exchange to a queue or another exchange.

use std::hash::{Hash, Hasher};

use crate::amqp::field_table::FieldTable;
use crate::amqp::short_string::ShortString;
use crate::broker::queue::QueueHandle;

/// Where a binding leads, by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Destination {
    /// A queue.
    Queue(ShortString),
    /// Another exchange.
    Exchange(ShortString),
}

impl Destination {
    /// The destination called `name`.
    pub(crate) fn new(name: ShortString, is_to_queue: bool) -> Self {
        if is_to_queue {
            Self::Queue(name)
        } else {
            Self::Exchange(name)
        }
    }

    pub(crate) fn name(&self) -> &ShortString {
        let (Self::Queue(name) | Self::Exchange(name)) = self;
        name
    }

    pub(crate) fn is_queue(&self) -> bool {
        matches!(self, Self::Queue(_))
    }
}

/// What makes two bindings of one source the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BindingKey {
    pub(crate) destination: Destination,
    pub(crate) routing_key: ShortString,
    /// The arguments sorted by name, on the wire: equal as maps means equal bytes.
    pub(crate) arguments: Box<[u8]>,
}

/// Where a binding leads, ready to go there.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// A queue of the same life: deleting it removes the binding.
    Queue(QueueHandle),
    /// An exchange, looked up by name.
    Exchange,
}

/// A binding.
#[derive(Debug)]
pub(crate) struct Binding {
    pub(crate) source: ShortString,
    pub(crate) key: BindingKey,
    pub(crate) arguments: FieldTable,
    pub(crate) target: Target,
    /// Both ends are durable: it is in the log.
    pub(crate) is_durable: bool,
    /// Where it stands among the bindings of its vhost, in the order in which they were made. The topology sets it.
    pub(crate) place: u64,
}

/// Bindings are the same when they connect the same ends under the same key and arguments.
impl PartialEq for Binding {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source && self.key == other.key
    }
}

impl Eq for Binding {}

impl Hash for Binding {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.source.hash(state);
        self.key.hash(state);
    }
}
