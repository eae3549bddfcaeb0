//! From the durable state to a live broker, and back for a checkpoint.
//!
//! ```text
//!   snapshot --decode--> MetaState --apply records--> MetaState --build--> Broker --snapshot--> MetaState
//!                                                        + queue images
//! ```
//!
//! The predeclared exchanges are in no record: every vhost has them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::access::{Account, PasswordHash, Pattern, Permissions, TopicPermissions};
use super::admin::TopicPermissionsEntry;
use super::arguments::QueueArguments;
use super::binding::{Binding, BindingKey, Destination, Target};
use super::effects::Effects;
use super::exchange::{ExchangeKind, ExchangeSpec};
use super::facade::{Broker, BrokerOptions, Shared};
use super::journal::Journal;
use super::limits::{Limits, Of};
use super::meta::{
    BindingV1, Change, ExchangeV1, LimitV1, MetaState, PermissionsV1, PolicyV1, QueueV1,
    RestoreError, TopicPermissionsV1, UserV1, VhostSettingsV1,
};
use super::pattern::NamePattern;
use super::policy::{ApplyTo, Definition, Policy};
use super::queue::{ImageKind, Queue, QueueHandle, QueueSpec};
use super::records;
use super::vhost::{Vhost, VhostSettings};
use crate::amqp::field_table::FieldTable;
use crate::amqp::short_string::ShortString;
use crate::storage::run::FiledRun;
use crate::storage::types::{ImageEntry, Lsn, Move, QueueId, SegmentId};
use crate::storage::{CheckpointSource, QueueImage};
use crate::sync::{lock, read, write};

impl Broker {
    /// The broker that was there before: a snapshot if there is one, the META records after it in log
    /// order, and the queues' messages. With neither snapshot nor records it is a blank one.
    ///
    /// # Errors
    /// See [`RestoreError`].
    pub fn restore(
        journal: Arc<dyn Journal>,
        options: BrokerOptions,
        meta_snapshot: Option<&[u8]>,
        meta_records: &[(u16, u16, &[u8])],
        queues: Vec<QueueImage>,
        now_ms: u64,
        effects: &mut Effects,
    ) -> Result<Self, RestoreError> {
        if meta_snapshot.is_none() && meta_records.is_empty() && queues.is_empty() {
            effects.wakes_commit = true;
            return Ok(Self::new(journal, options));
        }
        let mut state = meta_snapshot.map_or_else(|| Ok(MetaState::new()), MetaState::decode)?;
        for (kind, version, body) in meta_records {
            state.apply(Change::decode(*kind, *version, body)?);
        }
        if options.is_salvaged {
            super::salvage::complete(&mut state, &queues);
        }
        // Ids are never used again, not even those of queues whose declaration did not survive.
        let above_images = queues
            .iter()
            .map(|image| image.id.0.saturating_add(1))
            .max();
        let next_queue_id = state.next_queue_id.max(above_images.unwrap_or(0));
        let shared = Arc::new(Shared::new(journal, options, next_queue_id));
        shared.restore(state, queues, now_ms, effects)?;
        Ok(Self { shared })
    }

    /// From now on snapshots say exactly what was delivered, for a clean stop: call it when the last
    /// connection has ended, before the final checkpoint.
    pub fn stop(&self) {
        self.shared.is_stopped.store(true, Ordering::Release);
    }
}

fn malformed(record: u16, reason: impl Into<String>) -> RestoreError {
    RestoreError::Malformed {
        kind: record,
        reason: reason.into(),
    }
}

/// Kinds, for errors about the content of a record.
const USER: u16 = 3;
const EXCHANGE: u16 = 7;
const QUEUE: u16 = 9;
const BINDING: u16 = 11;
const POLICY: u16 = 13;

fn name(record: u16, text: &str) -> Result<ShortString, RestoreError> {
    let refuse = || malformed(record, "a name is longer than 255 bytes");
    ShortString::from_text(text).ok_or_else(refuse)
}

fn arguments(record: u16, bytes: &[u8]) -> Result<FieldTable, RestoreError> {
    FieldTable::decode(&Bytes::copy_from_slice(bytes))
        .map_err(|error| malformed(record, format!("arguments: {error}")))
}

impl Shared {
    fn restore(
        &self,
        state: MetaState,
        images: Vec<QueueImage>,
        now_ms: u64,
        effects: &mut Effects,
    ) -> Result<(), RestoreError> {
        {
            let _meta = lock(&self.meta);
            for vhost in &state.vhosts {
                self.add_vhost(vhost);
            }
        }
        self.restore_access(state.users.into_values(), state.permissions.into_values())?;
        self.restore_topic_permissions(state.topic_permissions.into_values());
        self.restore_limits(state.limits.into_values());
        for settings in state.vhost_settings.into_values() {
            self.restore_vhost_settings(settings);
        }
        // Before what they are about, which obeys them from the start.
        for policy in state.policies.values() {
            self.restore_policy(policy)?;
        }
        for exchange in state.exchanges.values() {
            self.restore_exchange(exchange)?;
        }
        self.restore_queues(state.queues.into_values(), images, now_ms, effects)?;
        for binding in state.bindings.in_order() {
            self.restore_binding(binding)?;
        }
        // Only now may dead letters be routed and timers run.
        let queues: Vec<QueueHandle> = lock(&self.meta).durable_queues.values().cloned().collect();
        for queue in &queues {
            queue.renew_lease(&mut self.turn(now_ms, effects));
        }
        Ok(())
    }

    fn restore_access(
        &self,
        users: impl Iterator<Item = UserV1>,
        permissions: impl Iterator<Item = PermissionsV1>,
    ) -> Result<(), RestoreError> {
        let mut access = write(&self.access);
        for user in users {
            let password = PasswordHash::from_text(&user.password_hash);
            let password = password.ok_or_else(|| malformed(USER, "not a password hash"))?;
            let tags = user.tags;
            access
                .accounts
                .insert(user.name, Account { password, tags });
        }
        for entry in permissions {
            let permissions = Permissions {
                configure: Pattern::new_or_deny(&entry.configure),
                write: Pattern::new_or_deny(&entry.write),
                read: Pattern::new_or_deny(&entry.read),
            };
            let key = (entry.vhost, entry.user);
            access.permissions.insert(key, Arc::new(permissions));
        }
        Ok(())
    }

    fn restore_topic_permissions(&self, records: impl Iterator<Item = TopicPermissionsV1>) {
        let mut access = write(&self.access);
        for record in records {
            let entry = TopicPermissionsEntry {
                vhost: record.vhost,
                user: record.user,
                exchange: record.exchange,
                write: record.write,
                read: record.read,
            };
            let permissions = TopicPermissions::new_or_deny(&entry);
            access.set_topic_permissions(&entry, permissions);
        }
    }

    fn restore_limits(&self, records: impl Iterator<Item = LimitV1>) {
        let mut access = write(&self.access);
        for record in records {
            let of = match record.is_of_user {
                true => Of::User,
                false => Of::Vhost,
            };
            let (owner, name) = (&record.owner, &record.name);
            access.limits.set(of, owner, name, record.value);
        }
    }

    fn restore_vhost_settings(&self, record: VhostSettingsV1) {
        if let Some(vhost) = self.vhost_of(&record.name, "settings") {
            vhost.set_settings(VhostSettings {
                description: record.description,
                tags: record.tags,
                default_queue_type: record.default_queue_type,
                is_protected: record.is_protected,
            });
        }
    }

    fn restore_policy(&self, record: &PolicyV1) -> Result<(), RestoreError> {
        let Some(vhost) = self.vhost_of(&record.vhost, &record.name) else {
            return Ok(());
        };
        let unknown = || malformed(POLICY, format!("unknown apply-to {}", record.apply_to));
        let refused = |reason: String| malformed(POLICY, reason);
        let policy = Policy {
            name: record.name.clone(),
            is_operator: record.is_operator,
            pattern: NamePattern::new(&record.pattern).map_err(refused)?,
            apply_to: ApplyTo::from_name(&record.apply_to).ok_or_else(unknown)?,
            priority: record.priority,
            definition: Definition::parse(&record.definition, record.is_operator)
                .map_err(refused)?,
        };
        vhost.write().policies_mut().insert(Arc::new(policy));
        Ok(())
    }

    /// The vhost of a record; none when the vhost went and the record came before that.
    fn vhost_of(&self, vhost: &str, thing: &str) -> Option<Arc<Vhost>> {
        let found = self.vhost(vhost);
        if found.is_none() {
            tracing::warn!(
                vhost,
                thing,
                "dropped topology of a vhost that does not exist"
            );
        }
        found
    }

    fn restore_exchange(&self, record: &ExchangeV1) -> Result<(), RestoreError> {
        let Some(vhost) = self.vhost_of(&record.vhost, &record.name) else {
            return Ok(());
        };
        let unknown_kind = || malformed(EXCHANGE, format!("unknown exchange type {}", record.kind));
        let kind = ExchangeKind::from_name(&record.kind).ok_or_else(unknown_kind)?;
        let arguments = arguments(EXCHANGE, &record.arguments)?;
        kind.check_arguments(&arguments)
            .map_err(|reason| malformed(EXCHANGE, reason))?;
        vhost.write().insert_exchange(ExchangeSpec {
            name: name(EXCHANGE, &record.name)?,
            kind,
            is_durable: true,
            is_auto_delete: record.is_auto_delete,
            is_internal: record.is_internal,
            arguments,
        });
        Ok(())
    }

    fn restore_queues(
        &self,
        records: impl Iterator<Item = QueueV1>,
        images: Vec<QueueImage>,
        now_ms: u64,
        effects: &mut Effects,
    ) -> Result<(), RestoreError> {
        let mut images: BTreeMap<QueueId, QueueImage> =
            images.into_iter().map(|image| (image.id, image)).collect();
        for record in records {
            let Some(vhost) = self.vhost_of(&record.vhost, &record.name) else {
                continue;
            };
            let (spec, settings) = queue_spec(&vhost, &record)?;
            let turn = &mut self.turn(now_ms, effects);
            let queue = match images.remove(&spec.id) {
                Some(image) => Queue::restore(spec, settings, image, turn),
                None => {
                    tracing::warn!(
                        queue = record.name,
                        "a durable queue has no messages on record"
                    );
                    Queue::new(spec, settings, Lsn::default(), now_ms)
                }
            };
            let mut topology = vhost.write();
            match queue.spec().delays_for() {
                Some(exchange) => {
                    if !topology.set_delay_queue(&exchange, QueueHandle::clone(&queue)) {
                        // Deleted with it, but for its own record.
                        tracing::info!(%exchange, "dropped the delay queue of an exchange that is gone");
                        continue;
                    }
                }
                None => topology.insert_queue(QueueHandle::clone(&queue)),
            }
            drop(topology);
            lock(&self.meta).durable_queues.insert(queue.id(), queue);
        }
        if !images.is_empty() {
            // A vhost is gone with its first record; those of its queues may not have reached the disk.
            let filed = images.values().flat_map(|image| &image.runs);
            let filed: u64 = filed.map(|run| u64::from(run.live.len())).sum();
            let packed: usize = images.values().map(|image| image.entries.len()).sum();
            let messages = packed as u64 + filed;
            let queues = images.len();
            tracing::info!(
                queues,
                messages,
                "dropped queues that are not declared any more"
            );
        }
        Ok(())
    }

    fn restore_binding(&self, record: &BindingV1) -> Result<(), RestoreError> {
        let Some(vhost) = self.vhost_of(&record.vhost, &record.destination) else {
            return Ok(());
        };
        let mut topology = vhost.write();
        let source = name(BINDING, &record.source)?;
        let destination = Destination::new(name(BINDING, &record.destination)?, record.is_to_queue);
        let target = match &destination {
            Destination::Queue(name) => topology.queue(name).cloned().map(Target::Queue),
            Destination::Exchange(name) => topology.exchange(name).map(|_| Target::Exchange),
        };
        let arguments = arguments(BINDING, &record.arguments)?;
        let exchange = topology.exchange(&source);
        let (Some(target), Some(exchange)) = (target, exchange) else {
            let (source, destination) = (&record.source, &record.destination);
            tracing::warn!(source, destination, "dropped a binding without its ends");
            return Ok(());
        };
        let key = BindingKey {
            destination,
            routing_key: name(BINDING, &record.routing_key)?,
            arguments: record.arguments.as_slice().into(),
        };
        exchange
            .check_binding(&key, &arguments)
            .map_err(|reason| malformed(BINDING, reason))?;
        topology.insert_binding(Binding {
            source,
            key,
            arguments,
            target,
            is_durable: true,
            place: 0,
        });
        Ok(())
    }

    /// Everything durable, as of now. Called under `meta`, so it is what the records so far say; with a hundred
    /// thousand queues only handles are copied while others wait for that lock.
    fn freeze(&self, next_queue_id: u64) -> Frozen {
        let access = read(&self.access);
        let accounts = access.accounts.iter();
        let permissions = access.permissions.iter();
        Frozen {
            next_queue_id,
            accounts: accounts
                .map(|(name, account)| (name.clone(), account.clone()))
                .collect(),
            permissions: permissions
                .map(|(key, permissions)| (key.clone(), Arc::clone(permissions)))
                .collect(),
            topic_permissions: access.topic_permissions().collect(),
            limits: access.limits.clone(),
            vhosts: read(&self.vhosts).values().map(freeze_vhost).collect(),
        }
    }
}

/// Handles of everything durable: none of it changes any more, so it is written out with no lock held.
struct Frozen {
    next_queue_id: u64,
    accounts: Vec<(String, Account)>,
    permissions: Vec<((String, String), Arc<Permissions>)>,
    topic_permissions: Vec<TopicPermissionsEntry>,
    limits: Limits,
    vhosts: Vec<FrozenVhost>,
}

struct FrozenVhost {
    name: Arc<str>,
    exchanges: Vec<ExchangeSpec>,
    queues: Vec<QueueHandle>,
    bindings: Vec<Arc<Binding>>,
    policies: Vec<Arc<Policy>>,
    settings: Arc<VhostSettings>,
}

fn freeze_vhost(vhost: &Arc<Vhost>) -> FrozenVhost {
    let topology = vhost.read();
    let exchanges = topology.exchanges().map(|exchange| exchange.spec());
    let queues = topology.queues().chain(topology.delay_queues());
    let queues = queues.filter(|queue| queue.spec().is_durable);
    let bindings = topology.bindings().filter(|binding| binding.is_durable);
    FrozenVhost {
        name: Arc::clone(vhost.name()),
        exchanges: exchanges
            .filter(|spec| spec.is_durable && !spec.is_predeclared())
            .cloned()
            .collect(),
        queues: queues.cloned().collect(),
        bindings: bindings.cloned().collect(),
        policies: topology.policies().iter().cloned().collect(),
        settings: vhost.settings(),
    }
}

impl Frozen {
    fn state(&self) -> MetaState {
        let mut state = MetaState {
            next_queue_id: self.next_queue_id,
            ..MetaState::default()
        };
        for (name, account) in &self.accounts {
            state.apply(Change::UserSet(records::user(name, account)));
        }
        for ((vhost, user), permissions) in &self.permissions {
            let record = records::permissions(vhost, user, permissions);
            state.apply(Change::PermissionsSet(record));
        }
        for entry in &self.topic_permissions {
            let record = records::topic_permissions(entry);
            state.apply(Change::TopicPermissionsSet(record));
        }
        for (of, owner, name, value) in self.limits.iter() {
            state.apply(Change::LimitSet(LimitV1 {
                is_of_user: of == Of::User,
                owner: owner.to_owned(),
                name: name.to_owned(),
                value,
            }));
        }
        for vhost in &self.vhosts {
            collect_vhost(&mut state, vhost);
        }
        state
    }
}

/// The queue, and what it obeys.
fn queue_spec(
    vhost: &Vhost,
    record: &QueueV1,
) -> Result<(QueueSpec, Arc<QueueArguments>), RestoreError> {
    let arguments = arguments(QUEUE, &record.arguments)?;
    let settings = QueueArguments::parse(&arguments, &record.name, vhost.name())
        .map_err(|error| malformed(QUEUE, error.to_string()))?;
    let spec = QueueSpec {
        id: QueueId(record.id),
        vhost: Arc::clone(vhost.name()),
        name: name(QUEUE, &record.name)?,
        is_durable: true,
        exclusive_owner: None,
        is_auto_delete: record.is_auto_delete,
        arguments,
    };
    if spec.delays_for().is_some() {
        // What waits for an exchange is no queue of a client's: no policy may drop it.
        return Ok((spec, settings.shared()));
    }
    let topology = vhost.read();
    let settings = topology
        .policies()
        .queue_settings(&spec.name, &spec.arguments, settings);
    Ok((spec, settings))
}

fn collect_vhost(state: &mut MetaState, vhost: &FrozenVhost) {
    let name = &vhost.name;
    state.vhosts.insert(name.to_string());
    if vhost.settings.is_any() {
        let record = records::vhost_settings(name, &vhost.settings);
        state.apply(Change::VhostSettingsSet(record));
    }
    for policy in &vhost.policies {
        state.apply(Change::PolicySet(records::policy(name, policy)));
    }
    for spec in &vhost.exchanges {
        state.apply(Change::ExchangeDeclared(records::exchange(name, spec)));
    }
    for queue in &vhost.queues {
        state.apply(Change::QueueDeclared(records::queue(queue.spec())));
    }
    let mut bindings: Vec<&Arc<Binding>> = vhost.bindings.iter().collect();
    bindings.sort_unstable_by_key(|binding| binding.place);
    for binding in bindings {
        state.apply(Change::BindingAdded(records::binding(name, binding)));
    }
}

impl CheckpointSource for Broker {
    fn meta(&self) -> (Vec<u8>, Lsn) {
        let meta = lock(&self.shared.meta);
        let frozen = self.shared.freeze(meta.next_queue_id());
        let last_lsn = meta.last_lsn();
        // Names are copied and encoded with no lock held.
        drop(meta);
        (frozen.state().encode(), last_lsn)
    }

    fn queue_ids(&self) -> Vec<QueueId> {
        let meta = lock(&self.shared.meta);
        meta.durable_queues.keys().copied().collect()
    }

    fn queue(&self, id: QueueId) -> Option<QueueImage> {
        let queue = lock(&self.shared.meta).durable_queues.get(&id).cloned()?;
        let is_stopped = self.shared.is_stopped.load(Ordering::Acquire);
        queue.image(if is_stopped {
            ImageKind::Stopped
        } else {
            ImageKind::Running
        })
    }

    fn unfiled_runs(&self, id: QueueId, max_count: usize) -> Vec<Vec<ImageEntry>> {
        let queue = lock(&self.shared.meta).durable_queues.get(&id).cloned();
        queue.map_or_else(Vec::new, |queue| {
            queue.unfiled_runs(&self.shared.queues, max_count)
        })
    }

    fn refs_in(
        &self,
        id: QueueId,
        segments: &BTreeSet<SegmentId>,
    ) -> (Vec<ImageEntry>, Vec<FiledRun>) {
        let queue = lock(&self.shared.meta).durable_queues.get(&id).cloned();
        queue.map_or_else(Default::default, |queue| queue.refs_in(segments))
    }

    fn relocate(&self, id: QueueId, moves: &[Move]) {
        let queue = lock(&self.shared.meta).durable_queues.get(&id).cloned();
        if let Some(queue) = queue {
            queue.relocate(moves);
        }
    }

    fn refile(&self, id: QueueId, old: &FiledRun, new: FiledRun) {
        let queue = lock(&self.shared.meta).durable_queues.get(&id).cloned();
        if let Some(queue) = queue {
            queue.refile(old, new);
        }
    }

    fn filed(&self, id: QueueId, runs: Vec<FiledRun>) {
        let queue = lock(&self.shared.meta).durable_queues.get(&id).cloned();
        if let Some(queue) = queue {
            queue.filed(&self.shared.queues, &runs);
        }
    }
}
