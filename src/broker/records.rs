//! The domain's things as META structs: the one place that knows both sides.

use std::sync::Arc;

use super::access::{Account, Permissions};
use super::admin::TopicPermissionsEntry;
use super::binding::Binding;
use super::exchange::ExchangeSpec;
use super::meta::{
    BindingV1, Change, ExchangeNameV1, ExchangeV1, PermissionsV1, PolicyV1, QueueIdV1, QueueV1,
    TopicPermissionsV1, UserV1, VhostSettingsV1,
};
use super::policy::Policy;
use super::queue::{QueueHandle, QueueSpec};
use super::vhost::{Removed, VhostSettings};

pub(crate) fn user(name: &str, account: &Account) -> UserV1 {
    UserV1 {
        name: name.to_owned(),
        password_hash: account.password.to_text(),
        tags: account.tags.clone(),
    }
}

pub(crate) fn permissions(vhost: &str, user: &str, permissions: &Permissions) -> PermissionsV1 {
    PermissionsV1 {
        vhost: vhost.to_owned(),
        user: user.to_owned(),
        configure: permissions.configure.text().to_owned(),
        write: permissions.write.text().to_owned(),
        read: permissions.read.text().to_owned(),
    }
}

pub(crate) fn exchange(vhost: &str, spec: &ExchangeSpec) -> ExchangeV1 {
    ExchangeV1 {
        vhost: vhost.to_owned(),
        name: spec.name.as_str().to_owned(),
        kind: spec.kind.name().to_owned(),
        is_auto_delete: spec.is_auto_delete,
        is_internal: spec.is_internal,
        arguments: spec.arguments.to_bytes().to_vec(),
    }
}

pub(crate) fn queue(spec: &QueueSpec) -> QueueV1 {
    QueueV1 {
        id: spec.id.0,
        vhost: spec.vhost.to_string(),
        name: spec.name.as_str().to_owned(),
        is_auto_delete: spec.is_auto_delete,
        arguments: spec.arguments.to_bytes().to_vec(),
    }
}

pub(crate) fn binding(vhost: &str, binding: &Binding) -> BindingV1 {
    BindingV1 {
        vhost: vhost.to_owned(),
        is_to_queue: binding.key.destination.is_queue(),
        destination: binding.key.destination.name().as_str().to_owned(),
        source: binding.source.as_str().to_owned(),
        routing_key: binding.key.routing_key.as_str().to_owned(),
        arguments: binding.key.arguments.to_vec(),
    }
}

pub(crate) fn policy(vhost: &str, policy: &Policy) -> PolicyV1 {
    PolicyV1 {
        vhost: vhost.to_owned(),
        is_operator: policy.is_operator,
        name: policy.name.clone(),
        pattern: policy.pattern.text().to_owned(),
        apply_to: policy.apply_to.name().to_owned(),
        priority: policy.priority,
        definition: policy.definition.text().to_owned(),
    }
}

pub(crate) fn topic_permissions(entry: &TopicPermissionsEntry) -> TopicPermissionsV1 {
    TopicPermissionsV1 {
        vhost: entry.vhost.clone(),
        user: entry.user.clone(),
        exchange: entry.exchange.clone(),
        write: entry.write.clone(),
        read: entry.read.clone(),
    }
}

pub(crate) fn vhost_settings(name: &str, settings: &VhostSettings) -> VhostSettingsV1 {
    VhostSettingsV1 {
        name: name.to_owned(),
        description: settings.description.clone(),
        tags: settings.tags.clone(),
        default_queue_type: settings.default_queue_type.clone(),
        is_protected: settings.is_protected,
    }
}

/// What the log must hear about exchanges that went with something else.
fn exchanges_deleted<'a>(
    vhost: &'a str,
    removed: &'a Removed,
) -> impl Iterator<Item = Change> + use<'a> {
    let durable = removed.exchanges.iter().filter(|spec| spec.is_durable);
    durable.map(|spec| {
        Change::ExchangeDeleted(ExchangeNameV1 {
            vhost: vhost.to_owned(),
            name: spec.name.as_str().to_owned(),
        })
    })
}

/// A queue went, with what hung on it. Its bindings go without saying.
pub(crate) fn queue_deleted(queue: &QueueHandle, removed: &Removed) -> Vec<Change> {
    let spec = queue.spec();
    let id = QueueIdV1 { id: spec.id.0 };
    let deleted = spec.is_durable.then_some(Change::QueueDeleted(id));
    let exchanges = exchanges_deleted(&spec.vhost, removed);
    deleted.into_iter().chain(exchanges).collect()
}

/// An exchange went, with what hung on it. Their bindings go without saying.
pub(crate) fn exchange_deleted(vhost: &str, removed: &Removed) -> Vec<Change> {
    exchanges_deleted(vhost, removed).collect()
}

/// A binding went, with what hung on it.
pub(crate) fn binding_removed(
    vhost: &str,
    removed_binding: &Arc<Binding>,
    removed: &Removed,
) -> Vec<Change> {
    let is_durable = removed_binding.is_durable;
    let change = is_durable.then(|| Change::BindingRemoved(binding(vhost, removed_binding)));
    let exchanges = exchanges_deleted(vhost, removed);
    change.into_iter().chain(exchanges).collect()
}
