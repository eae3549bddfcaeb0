//! `queue.declare`, `exchange.declare` and `exchange.delete`: the order of the checks is the contract.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::access::Operation;
use super::arguments::{QueueArguments, QueueKind};
use super::command::{ExchangeDeclare, QueueDeclare, Reply, ReplyBody};
use super::connection::{Connection, done, exchange_argument, without_line_breaks};
use super::delayed;
use super::effects::Effects;
use super::equivalence::{check_argument, check_property};
use super::error::BrokerError;
use super::exchange::{ALTERNATE_EXCHANGE, Exchange, ExchangeKind, ExchangeSpec, RESERVED_PREFIX};
use super::meta::Change;
use super::queue::{Queue, QueueHandle, QueueSpec};
use super::records;
use super::refusal::{
    access_refused, default_exchange, locked_queue, no_exchange, precondition_failed, vhost_deleted,
};
use super::reply_to::is_reply_name;
use crate::amqp::field_table::{FieldTable, FieldValue};
use crate::amqp::short_string::ShortString;
use crate::storage::types::Lsn;
use crate::sync::lock;

/// Random bytes in a generated name.
const GENERATED_NAME_BYTES: usize = 16;
/// Arguments that must not differ on a redeclare, beside `x-queue-type`.
const COMPARED_ARGUMENTS: [&str; 19] = [
    "x-expires",
    "x-message-ttl",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-max-length",
    "x-max-length-bytes",
    "x-overflow",
    "x-max-priority",
    "x-single-active-consumer",
    "x-queue-mode",
    "x-queue-version",
    "x-queue-master-locator",
    "x-queue-leader-locator",
    "x-delivery-limit",
    "x-dead-letter-strategy",
    "x-quorum-initial-group-size",
    "x-consumer-timeout",
    "x-max-in-memory-length",
    "x-max-in-memory-bytes",
];

impl Connection {
    pub(super) fn declare_queue(
        &mut self,
        declare: &QueueDeclare,
        now_ms: u64,
        effects: &mut Effects,
    ) -> Result<Reply, BrokerError> {
        let stripped = without_line_breaks(&declare.queue);
        if is_reply_name(&stripped) {
            return self.declare_reply_name(&stripped);
        }
        if declare.is_passive {
            return self.declare_queue_passively(&stripped, now_ms, effects);
        }
        let declare = &*self.with_default_type(declare);
        let name = self.queue_name(&declare.queue)?;
        self.check_queue_access(Operation::Configure, &name)?;
        let existing = self.vhost.read().queue(&name).cloned();
        let queue = match existing {
            Some(queue) => queue,
            None => {
                let settings = self.check_new_queue(&name, declare)?;
                match self.create_queue(&name, declare, settings, now_ms, effects)? {
                    Created::New(queue, durable_at) => {
                        return Ok(self.queue_declared(&queue, durable_at, now_ms, effects));
                    }
                    // Somebody else was faster.
                    Created::Existing(queue) => queue,
                }
            }
        };
        self.check_redeclare(declare, &queue)?;
        let durable_at = self.pending_meta(queue.spec().is_durable);
        Ok(self.queue_declared(&queue, durable_at, now_ms, effects))
    }

    /// The declare with the queue type of the vhost, when it names none. A type that does not fit what is asked for gives
    /// way to classic (section 7.3).
    fn with_default_type<'a>(&self, declare: &'a QueueDeclare) -> Cow<'a, QueueDeclare> {
        let settings = self.vhost.settings();
        let fits = declare.is_durable
            && !declare.is_exclusive
            && !declare.is_auto_delete
            && !declare.queue.is_empty();
        let is_wanted = settings.queue_type() != "classic" && fits;
        if !is_wanted || names_queue_type(&declare.arguments) {
            return Cow::Borrowed(declare);
        }
        let mut declare = declare.clone();
        let kind = FieldValue::text(settings.queue_type());
        declare.arguments.set("x-queue-type", kind);
        Cow::Owned(declare)
    }

    fn declare_queue_passively(
        &mut self,
        name: &ShortString,
        now_ms: u64,
        effects: &mut Effects,
    ) -> Result<Reply, BrokerError> {
        self.check_any_access("queue", name)?;
        let queue = self.find_queue(name)?;
        let durable_at = self.pending_meta(queue.spec().is_durable);
        Ok(self.queue_declared(&queue, durable_at, now_ms, effects))
    }

    fn queue_declared(
        &self,
        queue: &QueueHandle,
        durable_at: Option<Lsn>,
        now_ms: u64,
        effects: &mut Effects,
    ) -> Reply {
        queue.renew_lease(&mut self.shared.turn(now_ms, effects));
        let stats = queue.stats();
        Reply {
            body: ReplyBody::QueueDeclared {
                // A name that was shared once takes 32 bytes more for as long as its queue is there.
                queue: queue.spec().name.detached(),
                messages: u32::try_from(stats.ready_count).unwrap_or(u32::MAX),
                consumers: stats.consumer_count,
            },
            durable_at,
        }
    }

    /// The name to declare: the given one, or a new one that nobody can guess.
    fn queue_name(&self, given: &ShortString) -> Result<ShortString, BrokerError> {
        let name = without_line_breaks(given);
        if name.as_str().starts_with(RESERVED_PREFIX) {
            let text = format!("queue name '{name}' contains reserved prefix 'amq.*'");
            return Err(access_refused(text));
        }
        if !name.is_empty() {
            return Ok(name);
        }
        let mut random = [0; GENERATED_NAME_BYTES];
        getrandom::fill(&mut random).expect("the operating system provides randomness");
        let text = format!("amq.gen-{}", URL_SAFE_NO_PAD.encode(random));
        Ok(ShortString::from_text(&text).unwrap_or_default())
    }

    /// Exclusivity first, then properties, then arguments (QU-12, QU-13).
    fn check_redeclare(
        &self,
        declare: &QueueDeclare,
        queue: &QueueHandle,
    ) -> Result<(), BrokerError> {
        let spec = queue.spec();
        let vhost = self.vhost.name();
        self.check_owner(queue)?;
        if declare.is_exclusive != spec.exclusive_owner.is_some() {
            return Err(locked_queue(&spec.name, vhost));
        }
        let thing = format!("queue '{}' in vhost '{vhost}'", spec.name);
        let is_durable = declare.is_durable && !declare.is_exclusive;
        check_property("durable", &thing, is_durable, spec.is_durable)
            .and_then(|()| {
                let (received, current) = (declare.is_auto_delete, spec.is_auto_delete);
                check_property("auto_delete", &thing, received, current)
            })
            .and_then(|()| {
                let received = with_queue_type(&declare.arguments);
                let current = with_queue_type(&spec.arguments);
                check_argument("x-queue-type", &thing, &received, &current)
            })
            .and_then(|()| {
                let mut names = COMPARED_ARGUMENTS.into_iter();
                names.try_for_each(|name| {
                    check_argument(name, &thing, &declare.arguments, &spec.arguments)
                })
            })
            .map_err(precondition_failed)
    }

    /// What only a new queue is asked: rights on its dead letter exchange, then its arguments.
    fn check_new_queue(
        &mut self,
        name: &ShortString,
        declare: &QueueDeclare,
    ) -> Result<QueueArguments, BrokerError> {
        let vhost = self.vhost.name().to_string();
        let thing = format!("queue '{name}' in vhost '{vhost}'");
        let arguments = &declare.arguments;
        if let Some(exchange) = exchange_argument(arguments, "x-dead-letter-exchange", &thing)? {
            self.check_queue_access(Operation::Read, name)?;
            self.check_exchange_access(Operation::Write, &exchange)?;
        }
        // Parsed from a copy: names in it outlive the frame.
        let settings = QueueArguments::parse(&arguments.detached(), name.as_str(), &vhost)
            .map_err(|error| precondition_failed(error.to_string()))?;
        if settings.kind == QueueKind::Quorum {
            check_quorum(declare, &thing)?;
        }
        Ok(settings)
    }

    fn create_queue(
        &mut self,
        name: &ShortString,
        declare: &QueueDeclare,
        settings: QueueArguments,
        now_ms: u64,
        effects: &mut Effects,
    ) -> Result<Created, BrokerError> {
        let mut meta = lock(&self.shared.meta);
        let vhost_max_count = self.shared.queue_limit(self.vhost.name());
        let is_full = self.shared.is_full_of_queues();
        let mut topology = self.vhost.write_new_queue();
        if topology.is_deleted {
            return Err(vhost_deleted(self.vhost.name()));
        }
        if let Some(queue) = topology.queue(name) {
            return Ok(Created::Existing(QueueHandle::clone(queue)));
        }
        if let Some(max_count) = is_full {
            return Err(precondition_failed(format!(
                "cannot declare queue '{name}': queue limit in cluster ({max_count}) is reached"
            )));
        }
        if let Some(max_count) = vhost_max_count
            && topology.queues_count() >= max_count
        {
            let vhost = self.vhost.name();
            return Err(precondition_failed(format!(
                "cannot declare queue '{name}': queue limit in vhost '{vhost}' ({max_count}) is reached"
            )));
        }
        let spec = QueueSpec {
            id: meta.issue_queue_id(),
            vhost: self.vhost.name().clone(),
            name: name.detached(),
            is_durable: declare.is_durable && !declare.is_exclusive,
            exclusive_owner: declare.is_exclusive.then_some(self.id),
            is_auto_delete: declare.is_auto_delete,
            arguments: declare.arguments.detached(),
        };
        let is_durable = spec.is_durable;
        let change = is_durable.then(|| Change::QueueDeclared(records::queue(&spec)));
        let durable_at = self.shared.push(&mut meta, change.as_slice(), effects);
        let policies = topology.policies();
        let settings = policies.queue_settings(name, &spec.arguments, settings);
        let queue = Queue::new(spec, settings, meta.last_lsn(), now_ms);
        if is_durable {
            let handle = QueueHandle::clone(&queue);
            meta.durable_queues.insert(queue.id(), handle);
        }
        topology.insert_queue(QueueHandle::clone(&queue));
        drop((topology, meta));
        if declare.is_exclusive {
            self.own(QueueHandle::clone(&queue));
        }
        Ok(Created::New(queue, durable_at))
    }

    pub(super) fn declare_exchange(
        &mut self,
        declare: &ExchangeDeclare,
        now_ms: u64,
        effects: &mut Effects,
    ) -> Result<Reply, BrokerError> {
        let name = without_line_breaks(&declare.exchange);
        if declare.is_passive {
            return self.declare_exchange_passively(&name);
        }
        let kind = ExchangeKind::from_name(declare.kind.as_str()).ok_or_else(|| {
            precondition_failed(format!("unknown exchange type '{}'", declare.kind))
        })?;
        if name.is_empty() {
            return Err(default_exchange());
        }
        self.check_exchange_access(Operation::Configure, &name)?;
        if let Some(exchange) = self.vhost.read().exchange(&name) {
            self.check_exchange_redeclare(declare, kind, exchange)?;
            return Ok(done(self.pending_meta(exchange.spec().is_durable)));
        }
        self.check_new_exchange(&name, kind, declare)?;
        let spec = ExchangeSpec {
            name,
            kind,
            is_durable: declare.is_durable,
            is_auto_delete: declare.is_auto_delete,
            is_internal: declare.is_internal,
            arguments: declare.arguments.detached(),
        };
        self.create_exchange(declare, spec, now_ms, effects)
    }

    fn declare_exchange_passively(&mut self, name: &ShortString) -> Result<Reply, BrokerError> {
        if name.is_empty() {
            return Err(default_exchange());
        }
        self.check_any_access("exchange", name)?;
        let is_durable = match self.vhost.read().exchange(name) {
            Some(exchange) => exchange.spec().is_durable,
            None => return Err(no_exchange(name, self.vhost.name())),
        };
        Ok(done(self.pending_meta(is_durable)))
    }

    /// Type and properties in this order, then the one argument that counts (EX-1, EX-2).
    fn check_exchange_redeclare(
        &self,
        declare: &ExchangeDeclare,
        kind: ExchangeKind,
        exchange: &Exchange,
    ) -> Result<(), BrokerError> {
        let spec = exchange.spec();
        let thing = format!("exchange '{}' in vhost '{}'", spec.name, self.vhost.name());
        let flags = [
            ("durable", declare.is_durable, spec.is_durable),
            ("auto_delete", declare.is_auto_delete, spec.is_auto_delete),
            ("internal", declare.is_internal, spec.is_internal),
        ];
        check_property("type", &thing, kind, spec.kind)
            .and_then(|()| {
                flags.into_iter().try_for_each(|(name, received, current)| {
                    check_property(name, &thing, received, current)
                })
            })
            .and_then(|()| {
                let (received, current) = (&declare.arguments, &spec.arguments);
                check_argument(ALTERNATE_EXCHANGE, &thing, received, current)
            })
            .map_err(precondition_failed)
    }

    fn check_new_exchange(
        &mut self,
        name: &ShortString,
        kind: ExchangeKind,
        declare: &ExchangeDeclare,
    ) -> Result<(), BrokerError> {
        if name.as_str().starts_with(RESERVED_PREFIX) {
            let text = format!("exchange name '{name}' contains reserved prefix 'amq.*'");
            return Err(access_refused(text));
        }
        let thing = format!("exchange '{name}' in vhost '{}'", self.vhost.name());
        if let Some(alternate) = exchange_argument(&declare.arguments, ALTERNATE_EXCHANGE, &thing)?
        {
            self.check_exchange_access(Operation::Read, name)?;
            self.check_exchange_access(Operation::Write, &alternate)?;
        }
        kind.check_arguments(&declare.arguments)
            .map_err(precondition_failed)
    }

    fn create_exchange(
        &mut self,
        declare: &ExchangeDeclare,
        spec: ExchangeSpec,
        now_ms: u64,
        effects: &mut Effects,
    ) -> Result<Reply, BrokerError> {
        let mut meta = lock(&self.shared.meta);
        let is_full = self.shared.is_full_of_exchanges();
        let mut topology = self.vhost.write();
        if topology.is_deleted {
            return Err(vhost_deleted(self.vhost.name()));
        }
        if let Some(exchange) = topology.exchange(&spec.name) {
            // Somebody else was faster.
            self.check_exchange_redeclare(declare, spec.kind, exchange)?;
            let is_durable = exchange.spec().is_durable;
            return Ok(done(
                self.shared
                    .unless_durable(is_durable.then(|| meta.last_lsn())),
            ));
        }
        if let Some(max_count) = is_full {
            let (name, vhost) = (&spec.name, self.vhost.name());
            return Err(precondition_failed(format!(
                "cannot declare exchange '{name}' in vhost '{vhost}': exchange limit of {max_count} is reached"
            )));
        }
        let delay_queue = (spec.kind == ExchangeKind::Delayed)
            .then(|| delayed::queue_spec(&spec, meta.issue_queue_id(), self.vhost.name()));
        let mut changes = Vec::new();
        if spec.is_durable {
            let exchange = records::exchange(self.vhost.name(), &spec);
            changes.push(Change::ExchangeDeclared(exchange));
            let queue = delay_queue.as_ref().map(records::queue);
            changes.extend(queue.map(Change::QueueDeclared));
        }
        let durable_at = self.shared.push(&mut meta, &changes, effects);
        let name = spec.name.clone();
        topology.insert_exchange(spec);
        if let Some(spec) = delay_queue {
            let settings = QueueArguments::default().shared();
            let queue = Queue::new(spec, settings, meta.last_lsn(), now_ms);
            if queue.spec().is_durable {
                let handle = QueueHandle::clone(&queue);
                meta.durable_queues.insert(queue.id(), handle);
            }
            topology.set_delay_queue(&name, queue);
        }
        Ok(done(durable_at))
    }

    pub(super) fn delete_exchange(
        &mut self,
        name: &ShortString,
        if_unused: bool,
        now_ms: u64,
        effects: &mut Effects,
    ) -> Result<Reply, BrokerError> {
        let name = &without_line_breaks(name);
        let vhost = self.vhost.clone();
        let vhost_name = vhost.name();
        if name.is_empty() {
            return Err(default_exchange());
        }
        if name.as_str().starts_with(RESERVED_PREFIX) {
            return Err(access_refused(format!(
                "deletion of system exchange '{name}' in vhost '{vhost_name}' not allowed"
            )));
        }
        self.check_exchange_access(Operation::Configure, name)?;
        if vhost.read().exchange(name).is_none() {
            return Ok(done(None));
        }
        let mut meta = lock(&self.shared.meta);
        let mut topology = vhost.write();
        if if_unused && topology.exchange(name).is_some_and(Exchange::is_in_use) {
            return Err(precondition_failed(format!(
                "exchange '{name}' in vhost '{vhost_name}' in use"
            )));
        }
        let removed = topology.remove_exchange(name);
        let changes = records::exchange_deleted(vhost_name, &removed);
        let durable_at = self.shared.push(&mut meta, &changes, effects);
        let dropped = self
            .shared
            .drop_delay_queues(&mut meta, &removed, now_ms, effects);
        Ok(done(dropped.or(durable_at)))
    }

    /// What to wait for before a durable thing that is there already may be vouched for: it may have been
    /// declared a moment ago by somebody who still waits.
    pub(super) fn pending_meta(&self, is_durable: bool) -> Option<Lsn> {
        // Not taken under the topology lock: the order is meta first. A later LSN only waits longer.
        self.shared
            .unless_durable(is_durable.then(|| self.shared.newest_meta()))
    }
}

/// A quorum queue is durable and everybody's, and has a name of its own (QQ-1, QU-10).
fn check_quorum(declare: &QueueDeclare, thing: &str) -> Result<(), BrokerError> {
    if declare.queue.is_empty() {
        let module = QueueKind::Quorum.module();
        let text = format!("Cannot declare a server-named queue for type {module}");
        return Err(precondition_failed(text));
    }
    let properties = [
        (declare.is_auto_delete, "auto-delete"),
        (declare.is_exclusive, "exclusive-owner"),
        (!declare.is_durable, "non-durable"),
    ];
    match properties.into_iter().find(|(is_wrong, _)| *is_wrong) {
        Some((_, name)) => Err(precondition_failed(format!(
            "invalid property '{name}' for {thing}"
        ))),
        None => Ok(()),
    }
}

/// What a declare found or made.
enum Created {
    New(QueueHandle, Option<Lsn>),
    Existing(QueueHandle),
}

/// True when the arguments say what type of queue it is.
fn names_queue_type(arguments: &FieldTable) -> bool {
    arguments
        .get("x-queue-type")
        .is_some_and(|value| !matches!(value.as_text(), Some("" | "undefined")))
}

/// The arguments with the queue type that the absent one stands for.
fn with_queue_type(arguments: &FieldTable) -> FieldTable {
    let named = arguments.get("x-queue-type").filter(|value| {
        let text = value.as_text();
        !matches!(text, Some("" | "undefined"))
    });
    let kind = named
        .cloned()
        .unwrap_or_else(|| FieldValue::text("classic"));
    FieldTable::new().with("x-queue-type", kind)
}
