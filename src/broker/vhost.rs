//! A virtual host: its exchanges, queues and bindings behind one lock, with a version for caches.
//!
//! ```text
//!   exchanges  name -> Exchange { bindings with it as source, arranged for look-up }
//!   inbound    destination -> bindings that lead there          (the same bindings, seen from the end)
//!   queues     handles, found by the name in the queue
//! ```
//!
//! Invariants: (1) a binding is in its source's table exactly when it is under its destination in
//! `inbound`, and both ends exist; (2) a version rises before the lock of a change is released, so who
//! reads a version and routes afterwards never caches something older under it; (3) all functions here
//! change memory only: what they removed is returned, for the log.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::arguments::QueueArguments;
use super::binding::{Binding, BindingKey, Destination};
use super::exchange::items::Items;
use super::exchange::{Exchange, ExchangeKind, ExchangeSpec, Histories};
use super::policy::Policies;
use super::queue::QueueHandle;
use crate::amqp::short_string::ShortString;
use crate::sync::{read, write};

/// A virtual host. Lock order: meta, then this one, then queues.
#[derive(Debug)]
pub(crate) struct Vhost {
    name: Arc<str>,
    version: AtomicU64,
    queues_version: AtomicU64,
    topology: RwLock<Topology>,
    settings: RwLock<Arc<VhostSettings>>,
}

/// What an operator said about a vhost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct VhostSettings {
    /// In the operator's words.
    pub(crate) description: String,
    pub(crate) tags: Vec<String>,
    /// Empty for classic.
    pub(crate) default_queue_type: String,
    /// It is not to be deleted.
    pub(crate) is_protected: bool,
}

impl VhostSettings {
    /// Something was said.
    pub(crate) fn is_any(&self) -> bool {
        *self != Self::default()
    }

    /// The type of queues that are declared without one.
    pub(crate) fn queue_type(&self) -> &str {
        match self.default_queue_type.as_str() {
            "" => "classic",
            named => named,
        }
    }
}

impl Vhost {
    /// A vhost with nothing but the predeclared exchanges.
    pub(crate) fn new(name: &str, histories: &Arc<Histories>) -> Self {
        Self {
            name: name.into(),
            version: AtomicU64::new(0),
            queues_version: AtomicU64::new(0),
            topology: RwLock::new(Topology::new(histories)),
            settings: RwLock::default(),
        }
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What is said about it.
    pub(crate) fn settings(&self) -> Arc<VhostSettings> {
        Arc::clone(&read(&self.settings))
    }

    /// Says something else about it; called under `meta`.
    pub(crate) fn set_settings(&self, settings: VhostSettings) {
        *write(&self.settings) = Arc::new(settings);
    }

    /// Changes with every change of the topology but a new queue. Read it before routing.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Changes with every new queue. Nothing is bound to it yet, so it makes a difference only to messages that
    /// nobody got: routes that lead somewhere stay good while clients declare queue after queue. Read it before routing.
    pub(crate) fn queues_version(&self) -> u64 {
        self.queues_version.load(Ordering::Acquire)
    }

    /// For look-up.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Topology> {
        read(&self.topology)
    }

    /// For change; caches are void from here on (2).
    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Topology> {
        let guard = write(&self.topology);
        self.version.fetch_add(1, Ordering::AcqRel);
        guard
    }

    /// For the addition of a queue, and nothing else; cached answers "nobody" are void from here on (2).
    pub(crate) fn write_new_queue(&self) -> RwLockWriteGuard<'_, Topology> {
        let guard = write(&self.topology);
        self.queues_version.fetch_add(1, Ordering::AcqRel);
        guard
    }
}

/// What a removal took along.
#[derive(Debug, Default)]
pub(crate) struct Removed {
    /// Exchanges that went, the named one included, in order.
    pub(crate) exchanges: Vec<ExchangeSpec>,
    /// Bindings that went.
    pub(crate) bindings: Vec<Arc<Binding>>,
    /// Delay queues of those exchanges: to be deleted by the caller, who holds `meta`.
    pub(crate) delay_queues: Vec<QueueHandle>,
}

/// A queue, found by its name. That stands in the queue only: a copy of it in the table would take 80 bytes a queue.
#[derive(Debug)]
struct Named(QueueHandle);

impl Borrow<ShortString> for Named {
    fn borrow(&self) -> &ShortString {
        &self.0.spec().name
    }
}

impl Hash for Named {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let name: &ShortString = self.borrow();
        name.hash(state);
    }
}

impl PartialEq for Named {
    fn eq(&self, other: &Self) -> bool {
        self.0.spec().name == other.0.spec().name
    }
}

impl Eq for Named {}

/// See the module.
#[derive(Debug)]
pub(crate) struct Topology {
    exchanges: HashMap<ShortString, Exchange>,
    queues: HashSet<Named>,
    inbound: HashMap<Destination, Items<Arc<Binding>>>,
    policies: Policies,
    next_binding: u64,
    /// Where its exchanges remember messages.
    histories: Arc<Histories>,
    /// The vhost was deleted: nothing may be added any more.
    pub(crate) is_deleted: bool,
}

impl Topology {
    fn new(histories: &Arc<Histories>) -> Self {
        let mut topology = Self {
            exchanges: HashMap::new(),
            queues: HashSet::new(),
            inbound: HashMap::new(),
            policies: Policies::default(),
            next_binding: 0,
            histories: Arc::clone(histories),
            is_deleted: false,
        };
        for spec in ExchangeSpec::all_predeclared() {
            topology.insert_exchange(spec);
        }
        topology
    }

    pub(crate) fn exchange(&self, name: &ShortString) -> Option<&Exchange> {
        self.exchanges.get(name)
    }

    pub(crate) fn exchanges(&self) -> impl Iterator<Item = &Exchange> {
        self.exchanges.values()
    }

    pub(crate) fn queue(&self, name: &ShortString) -> Option<&QueueHandle> {
        self.queues.get(name).map(|Named(queue)| queue)
    }

    pub(crate) fn queues(&self) -> impl Iterator<Item = &QueueHandle> {
        self.queues.iter().map(|Named(queue)| queue)
    }

    pub(crate) fn queues_count(&self) -> u64 {
        self.queues.len() as u64
    }

    /// The default exchange, which is in no list, is one too.
    pub(crate) fn exchanges_count(&self) -> u64 {
        self.exchanges.len() as u64 + 1
    }

    /// The queues in which messages of delayed exchanges wait; they are not among the others.
    pub(crate) fn delay_queues(&self) -> impl Iterator<Item = &QueueHandle> {
        self.exchanges.values().filter_map(Exchange::delay_queue)
    }

    /// Gives a delayed exchange its delay queue; false when it is not there.
    pub(crate) fn set_delay_queue(&mut self, exchange: &ShortString, queue: QueueHandle) -> bool {
        match self.exchanges.get_mut(exchange) {
            Some(exchange) if exchange.spec().kind == ExchangeKind::Delayed => {
                exchange.set_delay_queue(queue);
                true
            }
            _ => false,
        }
    }

    pub(crate) fn bindings(&self) -> impl Iterator<Item = &Arc<Binding>> {
        self.exchanges.values().flat_map(Exchange::bindings)
    }

    /// Adds an exchange that is not there yet.
    pub(crate) fn insert_exchange(&mut self, spec: ExchangeSpec) {
        let alternate = self.policies.alternate_exchange(&spec.name);
        let name = spec.name.clone();
        let mut exchange = Exchange::new(spec, &self.histories);
        exchange.set_policy_alternate(alternate);
        self.exchanges.insert(name, exchange);
    }

    pub(crate) fn policies(&self) -> &Policies {
        &self.policies
    }

    /// For change; [`Topology::apply_policies`] makes it felt.
    pub(crate) fn policies_mut(&mut self) -> &mut Policies {
        &mut self.policies
    }

    /// Gives every exchange what the policies say; what every queue is to obey comes back.
    pub(crate) fn apply_policies(&mut self) -> Vec<(QueueHandle, Arc<QueueArguments>)> {
        for (name, exchange) in &mut self.exchanges {
            exchange.set_policy_alternate(self.policies.alternate_exchange(name));
        }
        let queues = self.queues().filter_map(|queue| {
            let settings = self.policies.settings_of_queue(queue.spec())?;
            Some((QueueHandle::clone(queue), settings))
        });
        queues.collect()
    }

    /// Adds a queue that is not there yet.
    pub(crate) fn insert_queue(&mut self, queue: QueueHandle) {
        self.queues.replace(Named(queue));
    }

    /// The binding of that identity.
    pub(crate) fn binding(&self, source: &ShortString, key: &BindingKey) -> Option<&Arc<Binding>> {
        self.exchanges.get(source)?.binding(key)
    }

    /// Adds a binding whose ends exist and that is not there yet.
    pub(crate) fn insert_binding(&mut self, mut binding: Binding) {
        let Some(exchange) = self.exchanges.get_mut(&binding.source) else {
            debug_assert!(false, "the caller looked the source up under the same lock");
            return;
        };
        binding.place = self.next_binding;
        self.next_binding += 1;
        let binding = Arc::new(binding);
        exchange.insert(&binding);
        let destination = binding.key.destination.clone();
        self.inbound.entry(destination).or_default().insert(binding);
    }

    /// Removes a binding, and the auto-delete exchanges that hang on it.
    pub(crate) fn remove_binding(&mut self, binding: &Arc<Binding>) -> Removed {
        let mut removed = Removed::default();
        self.forget_inbound(binding);
        let mut unused = self.detach(binding, &mut removed);
        self.remove_unused(&mut unused, &mut removed);
        removed
    }

    /// Forgets everything, for a vhost that is deleted.
    pub(crate) fn clear(&mut self) {
        self.exchanges.clear();
        self.queues.clear();
        self.inbound.clear();
    }

    /// Removes a queue with its bindings, and the auto-delete exchanges that hang on them.
    pub(crate) fn remove_queue(&mut self, name: &ShortString) -> Removed {
        let mut removed = Removed::default();
        self.queues.remove(name);
        let mut unused = self.detach_inbound(&Destination::Queue(name.clone()), &mut removed);
        self.remove_unused(&mut unused, &mut removed);
        removed
    }

    /// Removes an exchange with all its bindings, and the auto-delete exchanges that hang on them.
    pub(crate) fn remove_exchange(&mut self, name: &ShortString) -> Removed {
        let mut removed = Removed::default();
        self.remove_unused(&mut vec![name.clone()], &mut removed);
        removed
    }

    /// Removes all exchanges in `unused`, and those that become unused by it (EX-13).
    fn remove_unused(&mut self, unused: &mut Vec<ShortString>, removed: &mut Removed) {
        while let Some(name) = unused.pop() {
            let Some(exchange) = self.exchanges.remove(&name) else {
                continue;
            };
            for binding in exchange.bindings() {
                self.forget_inbound(binding);
                removed.bindings.push(Arc::clone(binding));
            }
            removed.exchanges.push(exchange.spec().clone());
            removed.delay_queues.extend(exchange.delay_queue().cloned());
            let inbound = Destination::Exchange(name);
            unused.extend(self.detach_inbound(&inbound, removed));
        }
    }

    /// Takes all bindings to `destination` out of their sources; returns the sources to delete now.
    fn detach_inbound(
        &mut self,
        destination: &Destination,
        removed: &mut Removed,
    ) -> Vec<ShortString> {
        let bindings = self.inbound.remove(destination).unwrap_or_default();
        bindings
            .iter()
            .flat_map(|binding| self.detach(binding, removed))
            .collect()
    }

    /// Takes a binding out of its source; returns the source when it is to be deleted now (EX-15).
    fn detach(&mut self, binding: &Arc<Binding>, removed: &mut Removed) -> Vec<ShortString> {
        removed.bindings.push(Arc::clone(binding));
        let Some(source) = self.exchanges.get_mut(&binding.source) else {
            return Vec::new();
        };
        source.remove(binding);
        if source.spec().is_auto_delete && !source.is_in_use() {
            return vec![binding.source.clone()];
        }
        Vec::new()
    }

    fn forget_inbound(&mut self, binding: &Arc<Binding>) {
        let destination = &binding.key.destination;
        if let Some(bindings) = self.inbound.get_mut(destination) {
            bindings.remove(binding);
            if bindings.is_empty() {
                self.inbound.remove(destination);
            }
        }
    }
}
