//! Carries out what an operator says about names, users and vhosts: policies, limits, topic permissions.
//!
//! Every change is logged and takes effect under `meta`, so a queue or an exchange that is declared meanwhile either
//! sees the change itself or is found by it.

use std::sync::Arc;

use super::access::TopicPermissions;
use super::admin::{
    AdminError, AdminReplyBody, LimitEntry, LimitOwner, PolicyEntry, TopicPermissionsEntry,
    VhostChange, VhostEntry,
};
use super::arguments::QueueArguments;
use super::effects::Effects;
use super::facade::Shared;
use super::limits::{Limits, MAX_QUEUES, Of};
use super::meta::{Change, LimitNameV1, LimitV1, PolicyNameV1, TopicPermissionsNameV1};
use super::operator::{Outcome, check_name};
use super::pattern::NamePattern;
use super::policy::{ApplyTo, Definition, Policy};
use super::records;
use super::vhost::Vhost;
use crate::amqp::field_table::FieldTable;
use crate::sync::{lock, read};

fn invalid(text: impl Into<String>) -> AdminError {
    AdminError::Invalid(text.into())
}

/// The policy that an operator describes.
fn checked_policy(entry: &PolicyEntry, is_operator: bool) -> Result<Policy, AdminError> {
    check_name(&entry.name)?;
    let validation = |text: String| invalid(format!("Validation failed: {text}"));
    let pattern = NamePattern::new(&entry.pattern).map_err(|error| {
        let pattern = &entry.pattern;
        validation(format!(
            "{pattern} should be regular expression, error: {error}"
        ))
    })?;
    let apply_to = ApplyTo::from_name(&entry.apply_to).ok_or_else(|| {
        let given = &entry.apply_to;
        validation(format!(
            "apply-to '{given}' unrecognised; should be one of: 'all', 'queues', 'classic_queues', \
             'quorum_queues', 'streams', 'exchanges'"
        ))
    })?;
    let definition = Definition::parse(&entry.definition, is_operator).map_err(validation)?;
    definition.check_supported().map_err(validation)?;
    Ok(Policy {
        name: entry.name.clone(),
        is_operator,
        pattern,
        apply_to,
        priority: entry.priority,
        definition,
    })
}

impl Shared {
    fn vhost_or_refuse(&self, name: &str) -> Result<Arc<Vhost>, AdminError> {
        let no_vhost = || AdminError::NoSuchVhost(name.to_owned());
        self.vhost(name).ok_or_else(no_vhost)
    }

    pub(super) fn set_policy(
        &self,
        entry: &PolicyEntry,
        is_operator: bool,
        now_ms: u64,
        effects: &mut Effects,
    ) -> Outcome {
        let policy = Arc::new(checked_policy(entry, is_operator)?);
        let mut meta = lock(&self.meta);
        let vhost = self.vhost_or_refuse(&entry.vhost)?;
        let record = Change::PolicySet(records::policy(vhost.name(), &policy));
        let durable_at = self.push(&mut meta, &[record], effects);
        vhost.write().policies_mut().insert(policy);
        self.apply_policies(&vhost, now_ms, effects);
        Ok(durable_at)
    }

    pub(super) fn clear_policy(
        &self,
        vhost: &str,
        name: &str,
        is_operator: bool,
        now_ms: u64,
        effects: &mut Effects,
    ) -> Outcome {
        let mut meta = lock(&self.meta);
        let vhost = self.vhost_or_refuse(vhost)?;
        if !vhost.write().policies_mut().remove(is_operator, name) {
            return Err(AdminError::NoSuchPolicy(name.to_owned()));
        }
        let record = Change::PolicyCleared(PolicyNameV1 {
            vhost: vhost.name().to_string(),
            is_operator,
            name: name.to_owned(),
        });
        let durable_at = self.push(&mut meta, &[record], effects);
        self.apply_policies(&vhost, now_ms, effects);
        Ok(durable_at)
    }

    /// Gives everything in a vhost what its policies say now (PO-9). Called under `meta`, without the topology's lock:
    /// messages that go now may be dead-lettered, which routes.
    fn apply_policies(&self, vhost: &Vhost, now_ms: u64, effects: &mut Effects) {
        let queues = vhost.write().apply_policies();
        for (queue, settings) in queues {
            queue.obey(&mut self.turn(now_ms, effects), settings);
        }
    }

    pub(super) fn policies(&self, is_operator: bool) -> AdminReplyBody {
        let mut entries = Vec::new();
        for vhost in self.vhosts_by_name() {
            let topology = vhost.read();
            let policies = topology.policies().iter();
            let of_kind = policies.filter(|policy| policy.is_operator == is_operator);
            entries.extend(of_kind.map(|policy| PolicyEntry {
                vhost: vhost.name().to_string(),
                name: policy.name.clone(),
                pattern: policy.pattern.text().to_owned(),
                apply_to: policy.apply_to.name().to_owned(),
                priority: policy.priority,
                definition: policy.definition.text().to_owned(),
            }));
        }
        AdminReplyBody::Policies(entries)
    }

    fn vhosts_by_name(&self) -> Vec<Arc<Vhost>> {
        let mut vhosts: Vec<Arc<Vhost>> = read(&self.vhosts).values().cloned().collect();
        vhosts.sort_unstable_by(|left, right| left.name().cmp(right.name()));
        vhosts
    }

    pub(super) fn set_topic_permissions(
        &self,
        entry: &TopicPermissionsEntry,
        effects: &mut Effects,
    ) -> Outcome {
        let permissions = TopicPermissions::new(entry).map_err(|(pattern, reason)| {
            let pattern = pattern.to_owned();
            AdminError::BadPattern { pattern, reason }
        })?;
        let mut meta = lock(&self.meta);
        self.account(&entry.user)?;
        self.vhost_or_refuse(&entry.vhost)?;
        let record = Change::TopicPermissionsSet(records::topic_permissions(entry));
        let durable_at = self.push(&mut meta, &[record], effects);
        self.change_access(|access| access.set_topic_permissions(entry, permissions));
        Ok(durable_at)
    }

    /// Of one exchange, or of all when none is named.
    pub(super) fn clear_topic_permissions(
        &self,
        user: &str,
        vhost: &str,
        exchange: Option<&str>,
        effects: &mut Effects,
    ) -> Outcome {
        let mut meta = lock(&self.meta);
        self.account(user)?;
        self.vhost_or_refuse(vhost)?;
        let of_user = read(&self.access).topic_permissions_of(user, vhost);
        let exchanges: Vec<String> = of_user
            .into_keys()
            .map(|name| name.as_str().to_owned())
            .filter(|name| exchange.is_none_or(|exchange| exchange == name))
            .collect();
        let name = |exchange: &String| {
            Change::TopicPermissionsCleared(TopicPermissionsNameV1 {
                vhost: vhost.to_owned(),
                user: user.to_owned(),
                exchange: exchange.clone(),
            })
        };
        let records: Vec<Change> = exchanges.iter().map(name).collect();
        let durable_at = self.push(&mut meta, &records, effects);
        self.change_access(|access| {
            for exchange in &exchanges {
                access.clear_topic_permissions(user, vhost, exchange);
            }
        });
        Ok(durable_at)
    }

    pub(super) fn topic_permissions(&self) -> AdminReplyBody {
        AdminReplyBody::TopicPermissions(read(&self.access).topic_permissions().collect())
    }

    /// The owner of a limit; it exists. Called under `meta`.
    fn check_owner<'a>(
        &self,
        owner: &'a LimitOwner,
        name: &str,
    ) -> Result<(Of, &'a str), AdminError> {
        let (of, owner) = match owner {
            LimitOwner::Vhost(vhost) => (Of::Vhost, vhost),
            LimitOwner::User(user) => (Of::User, user),
        };
        match of {
            Of::Vhost => drop(self.vhost_or_refuse(owner)?),
            Of::User => drop(self.account(owner)?),
        }
        if Limits::is_known(of, name) {
            return Ok((of, owner));
        }
        Err(invalid(format!("unknown limit '{name}'")))
    }

    pub(super) fn set_limit(&self, entry: &LimitEntry, effects: &mut Effects) -> Outcome {
        let mut meta = lock(&self.meta);
        let (of, owner) = self.check_owner(&entry.owner, &entry.name)?;
        let record = Change::LimitSet(LimitV1 {
            is_of_user: of == Of::User,
            owner: owner.to_owned(),
            name: entry.name.clone(),
            value: entry.value,
        });
        let durable_at = self.push(&mut meta, &[record], effects);
        self.change_access(|access| access.limits.set(of, owner, &entry.name, entry.value));
        Ok(durable_at)
    }

    pub(super) fn clear_limit(
        &self,
        owner: &LimitOwner,
        name: &str,
        effects: &mut Effects,
    ) -> Outcome {
        let mut meta = lock(&self.meta);
        let (of, owner) = self.check_owner(owner, name)?;
        if !self.change_access(|access| access.limits.clear(of, owner, name)) {
            return Ok(None);
        }
        let record = Change::LimitCleared(LimitNameV1 {
            is_of_user: of == Of::User,
            owner: owner.to_owned(),
            name: name.to_owned(),
        });
        Ok(self.push(&mut meta, &[record], effects))
    }

    /// How many queues there may be in a vhost.
    pub(super) fn queue_limit(&self, vhost: &str) -> Option<u64> {
        read(&self.access).limits.get(Of::Vhost, vhost, MAX_QUEUES)
    }

    /// The number of queues there may be in all, when it is reached. Called under `meta`, so nobody adds one meanwhile.
    pub(super) fn is_full_of_queues(&self) -> Option<u64> {
        let max_count = self.options.queue_max_count?;
        let vhosts = self.vhosts_by_name();
        let counts = vhosts.iter().map(|vhost| vhost.read().queues_count());
        (counts.sum::<u64>() >= max_count).then_some(max_count)
    }

    /// The same of exchanges.
    pub(super) fn is_full_of_exchanges(&self) -> Option<u64> {
        let max_count = self.options.exchange_max_count?;
        let vhosts = self.vhosts_by_name();
        let counts = vhosts.iter().map(|vhost| vhost.read().exchanges_count());
        (counts.sum::<u64>() >= max_count).then_some(max_count)
    }

    pub(super) fn limits(&self) -> AdminReplyBody {
        let access = read(&self.access);
        let entries = access.limits.iter().map(|(of, owner, name, value)| {
            let owner = owner.to_owned();
            LimitEntry {
                owner: match of {
                    Of::Vhost => LimitOwner::Vhost(owner),
                    Of::User => LimitOwner::User(owner),
                },
                name: name.to_owned(),
                value,
            }
        });
        AdminReplyBody::Limits(entries.collect())
    }

    pub(super) fn change_vhost(
        &self,
        name: &str,
        change: VhostChange,
        effects: &mut Effects,
    ) -> Outcome {
        let mut meta = lock(&self.meta);
        let vhost = self.vhost_or_refuse(name)?;
        let mut settings = (*vhost.settings()).clone();
        if let Some(kind) = change.default_queue_type {
            let arguments = FieldTable::new().with("x-queue-type", kind.as_str());
            QueueArguments::parse(&arguments, "", name)
                .map_err(|_| invalid(format!("unsupported queue type '{kind}'")))?;
            settings.default_queue_type = kind;
        }
        settings.description = change.description.unwrap_or(settings.description);
        settings.tags = change.tags.unwrap_or(settings.tags);
        settings.is_protected = change.is_protected.unwrap_or(settings.is_protected);
        let record = Change::VhostSettingsSet(records::vhost_settings(name, &settings));
        let durable_at = self.push(&mut meta, &[record], effects);
        vhost.set_settings(settings);
        Ok(durable_at)
    }

    pub(super) fn vhost_entries(&self) -> AdminReplyBody {
        let entries = self.vhosts_by_name().into_iter().map(|vhost| {
            let settings = vhost.settings();
            VhostEntry {
                name: vhost.name().to_string(),
                description: settings.description.clone(),
                tags: settings.tags.clone(),
                default_queue_type: settings.queue_type().to_owned(),
                is_protected: settings.is_protected,
            }
        });
        AdminReplyBody::VhostEntries(entries.collect())
    }
}
