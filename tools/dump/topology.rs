//! `topology`: vhosts, users, permissions, exchanges, queues and bindings. Never a password hash.

use serde_json::{Value, json};
use stratamq::broker::meta::{BindingV1, Change, ExchangeV1, PermissionsV1, QueueV1, UserV1};

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
        topology.bindings.iter().map(binding_row),
    )
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
    }
}

fn binding_value(binding: &BindingV1) -> Value {
    json!({"vhost": binding.vhost, "source": binding.source, "destination": binding.destination,
        "routing_key": binding.routing_key, "arguments": arguments(&binding.arguments)})
}
