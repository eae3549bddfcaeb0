//! `topology`: vhosts, users, permissions, exchanges, queues and bindings. Never a password hash.

use serde::Serialize;
use serde_json::{Value, json};
use stratamq::broker::meta::{
    BindingV1, Change, ExchangeV1, LimitV1, MetaState, PermissionsV1, PolicyV1, QueueV1,
    TopicPermissionsV1, UserV1, VhostSettingsV1,
};

use crate::error::DumpError;
use crate::print::{Printer, Row};
use crate::snapshot::Snapshot;
use crate::store::Store;
use crate::tables::{arguments, short};

pub(crate) fn run(store: &Store, printer: &mut Printer<'_>) -> Result<(), DumpError> {
    let topology = Snapshot::load(store)?.topology;
    let vhosts = topology
        .vhosts
        .iter()
        .map(|name| start("vhost").text("vhost", name));
    section(printer, "vhosts", vhosts)?;
    section(printer, "users", topology.users.values().map(user_row))?;
    section(
        printer,
        "permissions",
        topology.permissions.values().map(permissions_row),
    )?;
    section(
        printer,
        "exchanges",
        topology.exchanges.values().map(exchange_row),
    )?;
    section(printer, "queues", topology.queues.values().map(queue_row))?;
    section(
        printer,
        "bindings",
        topology.bindings.in_order().into_iter().map(binding_row),
    )?;
    rules(&topology, printer)
}

/// What operators say about names, users and vhosts: shown where they say something.
fn rules(topology: &MetaState, printer: &mut Printer<'_>) -> Result<(), DumpError> {
    let policies = topology.policies.values().map(policy_row);
    section_unless_empty(printer, "policies", policies)?;
    let topics = topology.topic_permissions.values();
    section_unless_empty(
        printer,
        "topic permissions",
        topics.map(topic_permissions_row),
    )?;
    section_unless_empty(printer, "limits", topology.limits.values().map(limit_row))?;
    let settings = topology.vhost_settings.values().map(vhost_settings_row);
    section_unless_empty(printer, "vhost settings", settings)
}

fn section_unless_empty(
    printer: &mut Printer<'_>,
    title: &str,
    rows: impl ExactSizeIterator<Item = Row>,
) -> Result<(), DumpError> {
    if rows.len() == 0 {
        return Ok(());
    }
    section(printer, title, rows)
}

fn section(
    printer: &mut Printer<'_>,
    title: &str,
    rows: impl Iterator<Item = Row>,
) -> Result<(), DumpError> {
    let rows: Vec<Row> = rows.collect();
    printer.title(&format!("{title}: {}", rows.len()))?;
    rows.into_iter().try_for_each(|row| printer.row(row))?;
    printer.end()
}

fn start(kind: &str) -> Row {
    Row::new().json("kind", kind)
}

fn user_row(user: &UserV1) -> Row {
    start("user")
        .text("user", &user.name)
        .json("tags", user.tags.clone())
        .people("tags", or_dash(user.tags.join(", ")))
        .flag(
            // The hash itself is nobody's business; that there is none, and so no way to log in, is the operator's.
            "has_password",
            !user.password_hash.is_empty(),
        )
}

fn permissions_row(permissions: &PermissionsV1) -> Row {
    start("permissions")
        .text("vhost", &permissions.vhost)
        .text("user", &permissions.user)
        .text("configure", &permissions.configure)
        .text("write", &permissions.write)
        .text("read", &permissions.read)
}

fn exchange_row(exchange: &ExchangeV1) -> Row {
    let row = start("exchange")
        .text("vhost", &exchange.vhost)
        .text("name", &exchange.name)
        .text("type", &exchange.kind)
        .flag("auto_delete", exchange.is_auto_delete)
        .flag("internal", exchange.is_internal);
    arguments_cells(row, &exchange.arguments)
}

fn queue_row(queue: &QueueV1) -> Row {
    let row = start("queue")
        .number("id", queue.id)
        .text("vhost", &queue.vhost)
        .text("name", &queue.name)
        .flag("auto_delete", queue.is_auto_delete);
    arguments_cells(row, &queue.arguments)
}

fn binding_row(binding: &BindingV1) -> Row {
    let row = start("binding")
        .text("vhost", &binding.vhost)
        .text("source", &binding.source)
        .text("destination", &binding.destination)
        .text(
            "destination_type",
            if binding.is_to_queue {
                "queue"
            } else {
                "exchange"
            },
        )
        .text("routing_key", &binding.routing_key);
    arguments_cells(row, &binding.arguments)
}

fn policy_row(policy: &PolicyV1) -> Row {
    start(if policy.is_operator {
        "operator policy"
    } else {
        "policy"
    })
    .text("vhost", &policy.vhost)
    .text("name", &policy.name)
    .text("pattern", &policy.pattern)
    .text("apply_to", &policy.apply_to)
    .json("priority", policy.priority)
    .people("priority", policy.priority.to_string())
    .text("definition", &policy.definition)
}

fn topic_permissions_row(permissions: &TopicPermissionsV1) -> Row {
    start("topic permissions")
        .text("vhost", &permissions.vhost)
        .text("user", &permissions.user)
        .text("exchange", &permissions.exchange)
        .text("write", &permissions.write)
        .text("read", &permissions.read)
}

fn limit_row(limit: &LimitV1) -> Row {
    start("limit")
        .text("of", if limit.is_of_user { "user" } else { "vhost" })
        .text("owner", &limit.owner)
        .text("name", &limit.name)
        .json("value", limit.value)
        .people("value", limit.value.to_string())
}

fn vhost_settings_row(settings: &VhostSettingsV1) -> Row {
    start("vhost settings")
        .text("vhost", &settings.name)
        .text("description", &settings.description)
        .json("tags", settings.tags.clone())
        .people("tags", or_dash(settings.tags.join(", ")))
        .text("default_queue_type", &settings.default_queue_type)
        .flag("protected", settings.is_protected)
}

fn arguments_cells(row: Row, bytes: &[u8]) -> Row {
    let arguments = arguments(bytes);
    let text = short(&arguments);
    row.json("arguments", arguments)
        .people("arguments", or_dash(text))
}

fn or_dash(text: String) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

/// A change of topology in words, and what it says, without password hashes.
pub(crate) fn describe(change: &Change) -> (&'static str, Value) {
    match change {
        Change::VhostAdded(vhost) => ("vhost added", json!({"vhost": vhost.name})),
        Change::VhostDeleted(vhost) => ("vhost deleted", json!({"vhost": vhost.name})),
        Change::UserSet(user) => ("user set", json!({"user": user.name, "tags": user.tags})),
        Change::UserDeleted(user) => ("user deleted", json!({"user": user.name})),
        Change::PermissionsSet(set) => (
            "permissions set",
            json!({"vhost": set.vhost, "user": set.user, "configure": set.configure, "write": set.write, "read": set.read}),
        ),
        Change::PermissionsCleared(name) => (
            "permissions cleared",
            json!({"vhost": name.vhost, "user": name.user}),
        ),
        Change::ExchangeDeclared(exchange) => (
            "exchange declared",
            json!({"vhost": exchange.vhost, "name": exchange.name, "type": exchange.kind,
                "arguments": arguments(&exchange.arguments)}),
        ),
        Change::ExchangeDeleted(name) => (
            "exchange deleted",
            json!({"vhost": name.vhost, "name": name.name}),
        ),
        Change::QueueDeclared(queue) => (
            "queue declared",
            json!({"id": queue.id, "vhost": queue.vhost, "name": queue.name, "arguments": arguments(&queue.arguments)}),
        ),
        Change::QueueDeleted(queue) => ("queue deleted", json!({"id": queue.id})),
        Change::BindingAdded(binding) => ("binding added", binding_value(binding)),
        Change::BindingRemoved(binding) => ("binding removed", binding_value(binding)),
        Change::PolicySet(policy) => ("policy set", fields(policy)),
        Change::PolicyCleared(name) => ("policy cleared", fields(name)),
        Change::TopicPermissionsSet(set) => ("topic permissions set", fields(set)),
        Change::TopicPermissionsCleared(name) => ("topic permissions cleared", fields(name)),
        Change::LimitSet(limit) => ("limit set", fields(limit)),
        Change::LimitCleared(name) => ("limit cleared", fields(name)),
        Change::VhostSettingsSet(settings) => ("vhost settings set", fields(settings)),
    }
}

/// A body that is shown as it is.
fn fields(body: &impl Serialize) -> Value {
    serde_json::to_value(body).unwrap_or_default()
}

fn binding_value(binding: &BindingV1) -> Value {
    json!({"vhost": binding.vhost, "source": binding.source, "destination": binding.destination,
        "routing_key": binding.routing_key, "arguments": arguments(&binding.arguments)})
}
