//! From (exchange, routing keys, properties) to a set of queues.
//!
//! Starting with the exchange published to, every exchange is visited at most once, so cycles end. An
//! exchange without any destination for the message hands over to its alternate exchange. A queue is in
//! the set once, however many bindings lead there. Neither keys nor headers change on the way. A delayed exchange has one
//! destination for a message that shall wait: its delay queue.

use std::collections::HashSet;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::binding::{Binding, Destination, Target};
use super::delayed;
use super::exchange::{Exchange, History};
use super::message::Message;
use super::queue::{Queue, QueueHandle};
use super::vhost::Topology;
use crate::amqp::properties::Properties;
use crate::amqp::short_string::ShortString;

/// Distinct queues in ascending id, which is the order of locking.
pub(crate) type Targets = SmallVec<[QueueHandle; 4]>;

/// Where a message goes.
#[derive(Debug, Default)]
pub(crate) struct Route {
    /// The queues.
    pub(crate) targets: Targets,
    /// More than keys and bindings had a say: the answer holds for this message only.
    pub(crate) is_for_one_message: bool,
    /// Exchanges that want to remember the message once it has gone that way.
    pub(crate) histories: Vec<Arc<History>>,
}

impl Topology {
    /// The queues that `exchange` gives a message with `keys` to. `None` when there is no such exchange.
    pub(crate) fn route(
        &self,
        exchange: &ShortString,
        keys: &[ShortString],
        properties: &Properties,
    ) -> Option<Route> {
        let mut route = Route::default();
        if exchange.is_empty() {
            route.add_named_queues(self, keys);
        } else {
            let first = self.exchange(exchange)?;
            self.walk(first, keys, properties, &mut route);
        }
        route.targets.sort_unstable_by_key(|queue| queue.id());
        route.targets.dedup_by_key(|queue| queue.id());
        Some(route)
    }

    /// What the source of a new binding remembers, and where it goes by that binding.
    pub(crate) fn recent_messages(&self, binding: &Binding) -> Vec<(Arc<Message>, Targets)> {
        let source = self.exchange(&binding.source);
        let Some(history) = source.and_then(Exchange::history) else {
            return Vec::new();
        };
        let messages = history.messages().into_iter();
        let targets_of = |message: &Arc<Message>| match (&binding.target, &binding.key.destination)
        {
            (Target::Queue(queue), _) => Some(smallvec![QueueHandle::clone(queue)]),
            (Target::Exchange, destination) => {
                let head = message.head_parts();
                let keys = [head.routing_key];
                let route = self.route(destination.name(), &keys, &head.properties);
                route.map(|route| route.targets)
            }
        };
        messages
            .filter_map(|message| targets_of(&message).map(|targets| (message, targets)))
            .collect()
    }

    fn walk<'a>(
        &'a self,
        first: &'a Exchange,
        keys: &[ShortString],
        properties: &Properties,
        route: &mut Route,
    ) {
        // Allocates only when there is a second exchange.
        let mut seen: HashSet<*const Exchange> = HashSet::new();
        let mut pending: SmallVec<[&'a Exchange; 8]> = SmallVec::new();
        pending.push(first);
        let mut is_new = |next: &Exchange| !std::ptr::eq(next, first) && seen.insert(next);
        while let Some(exchange) = pending.pop() {
            route.is_for_one_message |= !exchange.is_by_key();
            if let Some(queue) = exchange.delay_queue()
                && delayed::delay_ms(properties).is_some()
            {
                route.targets.push(QueueHandle::clone(queue));
                continue;
            }
            route.histories.extend(exchange.history().cloned());
            let mut is_anywhere = false;
            exchange.route(keys, properties, |binding| {
                is_anywhere = true;
                match (&binding.target, &binding.key.destination) {
                    (Target::Queue(queue), _) => route.targets.push(QueueHandle::clone(queue)),
                    (Target::Exchange, Destination::Exchange(name) | Destination::Queue(name)) => {
                        pending.extend(self.exchange(name).filter(|next| is_new(next)));
                    }
                }
            });
            if !is_anywhere && let Some(alternate) = exchange.alternate() {
                if alternate.is_empty() {
                    // A queue of that name may come while others get the message anyway.
                    route.is_for_one_message = true;
                    route.add_named_queues(self, keys);
                } else {
                    pending.extend(self.exchange(alternate).filter(|next| is_new(next)));
                }
            }
        }
    }
}

impl Route {
    /// What the default exchange does: the queues named by the keys.
    fn add_named_queues(&mut self, topology: &Topology, keys: &[ShortString]) {
        let queues = keys.iter().filter_map(|key| topology.queue(key));
        self.targets.extend(queues.cloned());
    }
}

/// True when both are the same queues.
#[inline]
pub(crate) fn is_same_set(left: &[QueueHandle], right: &[QueueHandle]) -> bool {
    let is_same =
        |left: &QueueHandle, right: &QueueHandle| std::ptr::eq::<Queue>(&**left, &**right);
    match (left, right) {
        // Nearly all there are.
        ([left], [right]) => is_same(left, right),
        _ => left.len() == right.len() && left.iter().zip(right).all(|(l, r)| is_same(l, r)),
    }
}
