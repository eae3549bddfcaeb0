//! `queue.bind`, `exchange.bind` and their opposites.

use super::access::Operation;
use super::binding::{Binding, BindingKey, Destination, Target};
use super::command::{Bind, Reply};
use super::connection::{Connection, done, without_line_breaks};
use super::effects::Effects;
use super::error::BrokerError;
use super::meta::Change;
use super::queue::QueueHandle;
use super::records;
use super::refusal::{
    access_refused, default_exchange, no_exchange, no_queue, precondition_failed, vhost_deleted,
};
use super::reply_to::is_reply_name;
use super::vhost::Topology;
use crate::amqp::field_table::FieldTable;
use crate::amqp::short_string::ShortString;
use crate::sync::lock;

/// A binding as asked for, after the checks that need no topology.
struct Wanted {
    source: ShortString,
    key: BindingKey,
    arguments: FieldTable,
}

impl Connection {
    pub(super) fn bind(
        &mut self,
        bind: &Bind,
        now_ms: u64,
        effects: &mut Effects,
    ) -> Result<Reply, BrokerError> {
        let wanted = self.check_bind(bind)?;
        {
            let topology = self.vhost.read();
            if let Some(existing) = topology.binding(&wanted.source, &wanted.key) {
                self.check_bound_queue(&existing.target)?;
                return Ok(done(self.pending_meta(existing.is_durable)));
            }
        }
        let mut meta = lock(&self.shared.meta);
        let mut topology = self.vhost.write();
        if topology.is_deleted {
            return Err(vhost_deleted(self.vhost.name()));
        }
        let binding = self.resolve(&topology, wanted)?;
        if topology.binding(&binding.source, &binding.key).is_some() {
            // Somebody else was faster.
            let durable_at = binding.is_durable.then(|| meta.last_lsn());
            return Ok(done(self.shared.unless_durable(durable_at)));
        }
        let change = binding
            .is_durable
            .then(|| Change::BindingAdded(records::binding(self.vhost.name(), &binding)));
        let durable_at = self.shared.push(&mut meta, change.as_slice(), effects);
        let recent = topology.recent_messages(&binding);
        topology.insert_binding(binding);
        drop((topology, meta));
        for (message, targets) in recent {
            self.publish_to(&message, targets, now_ms, effects);
        }
        Ok(done(durable_at))
    }

    pub(super) fn unbind(
        &mut self,
        bind: &Bind,
        now_ms: u64,
        effects: &mut Effects,
    ) -> Result<Reply, BrokerError> {
        let wanted = self.check_bind(bind)?;
        if self
            .vhost
            .read()
            .binding(&wanted.source, &wanted.key)
            .is_none()
        {
            return Ok(done(None));
        }
        let mut meta = lock(&self.shared.meta);
        let mut topology = self.vhost.write();
        let Some(binding) = topology.binding(&wanted.source, &wanted.key).cloned() else {
            return Ok(done(None));
        };
        self.check_bound_queue(&binding.target)?;
        let removed = topology.remove_binding(&binding);
        let changes = records::binding_removed(self.vhost.name(), &binding, &removed);
        let durable_at = self.shared.push(&mut meta, &changes, effects);
        let dropped = self
            .shared
            .drop_delay_queues(&mut meta, &removed, now_ms, effects);
        Ok(done(dropped.or(durable_at)))
    }

    /// Everything that is checked before anybody looks whether the ends exist (BI-7).
    fn check_bind(&mut self, bind: &Bind) -> Result<Wanted, BrokerError> {
        let source = without_line_breaks(&bind.source);
        let destination = without_line_breaks(&bind.destination);
        let destination = Destination::new(destination, bind.is_to_queue);
        let name = destination.name();
        if destination.is_queue() {
            if is_reply_name(name) {
                let text = "cannot bind or unbind to a volatile (direct reply-to) queue";
                return Err(access_refused(text));
            }
            self.check_queue_access(Operation::Write, name)?;
        } else {
            self.check_exchange_access(Operation::Write, name)?;
        }
        if source.is_empty() || (!destination.is_queue() && name.is_empty()) {
            return Err(default_exchange());
        }
        self.check_exchange_access(Operation::Read, &source)?;
        let key = std::slice::from_ref(&bind.routing_key);
        self.check_topic_access(Operation::Read, &source, key)?;
        // A copy: a binding outlives the frame it came in.
        let arguments = bind.arguments.canonical().detached();
        let key = BindingKey {
            destination,
            routing_key: bind.routing_key.detached(),
            arguments: arguments.to_bytes()[..].into(),
        };
        Ok(Wanted {
            source,
            key,
            arguments,
        })
    }

    /// The exclusive queue of another connection may not be bound or unbound.
    fn check_bound_queue(&self, target: &Target) -> Result<(), BrokerError> {
        match target {
            Target::Queue(queue) => self.check_owner(queue),
            Target::Exchange => Ok(()),
        }
    }

    /// Finds both ends, the source first, and asks the source's type for its opinion.
    fn resolve(&self, topology: &Topology, wanted: Wanted) -> Result<Binding, BrokerError> {
        let vhost = self.vhost.name();
        let source = topology
            .exchange(&wanted.source)
            .ok_or_else(|| no_exchange(&wanted.source, vhost))?;
        let (target, is_target_durable) = match &wanted.key.destination {
            Destination::Queue(name) => {
                let queue = topology.queue(name).ok_or_else(|| no_queue(name, vhost))?;
                (
                    Target::Queue(QueueHandle::clone(queue)),
                    queue.spec().is_durable,
                )
            }
            Destination::Exchange(name) => {
                let exchange = topology.exchange(name);
                let exchange = exchange.ok_or_else(|| no_exchange(name, vhost))?;
                (Target::Exchange, exchange.spec().is_durable)
            }
        };
        source
            .check_binding(&wanted.key, &wanted.arguments)
            .map_err(precondition_failed)?;
        self.check_bound_queue(&target)?;
        Ok(Binding {
            is_durable: source.spec().is_durable && is_target_durable,
            source: wanted.source,
            key: wanted.key,
            arguments: wanted.arguments,
            target,
            place: 0,
        })
    }
}
