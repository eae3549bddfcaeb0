//! The durable exchanges, queues and bindings of the crash test, and extra ones that come and go.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use stratamq::amqp::field_table::{FieldTable, FieldValue};
use stratamq::amqp::method::queue;

use super::random::Random;
use crate::support::raw::{Client, Outcome, Trouble, durable, passive, transient};

/// Consumed by several consumers.
pub(super) const SHARED_QUEUES: [&str; 4] = ["shared-0", "shared-1", "shared-2", LEVELS_QUEUE];
/// The one of them with priorities.
pub(super) const LEVELS_QUEUE: &str = "levels";
/// Its highest level: lower than the highest priority of messages.
pub(super) const LEVEL_MAX: u8 = 5;
/// Used by the transactional client alone.
pub(super) const TX_QUEUES: [&str; 2] = ["tx-0", "tx-1"];
/// Published to and purged on one channel, without consumers.
pub(super) const PURGED_QUEUE: &str = "purged";
/// A queue that no restart keeps.
const FLEETING_QUEUE: &str = "fleeting";

/// A way to publish, and where it leads.
pub(super) struct Route {
    pub(super) exchange: &'static str,
    pub(super) routing_key: &'static str,
    pub(super) targets: &'static [&'static str],
}

const fn route(
    exchange: &'static str,
    routing_key: &'static str,
    targets: &'static [&'static str],
) -> Route {
    Route {
        exchange,
        routing_key,
        targets,
    }
}

/// Ways of the confirming publishers.
pub(super) const SHARED_ROUTES: [Route; 8] = [
    route("", "shared-0", &["shared-0"]),
    route("", LEVELS_QUEUE, &[LEVELS_QUEUE]),
    route("crash.direct", "urgent", &["shared-1", LEVELS_QUEUE]),
    route("crash.direct", "one", &["shared-1"]),
    route("crash.direct", "pair", &["shared-0", "shared-2"]),
    route(
        "crash.fanout",
        "anything",
        &["shared-0", "shared-1", "shared-2"],
    ),
    // Two bindings of the queue match: once all the same.
    route("crash.topic", "a.b.c", &["shared-2"]),
    route("crash.chained", "x", &["shared-0", "shared-1", "shared-2"]),
];
/// Ways of the transactional client.
pub(super) const TX_ROUTES: [Route; 3] = [
    route("", "tx-0", &["tx-0"]),
    route("", "tx-1", &["tx-1"]),
    route("crash.tx", "", &["tx-0", "tx-1"]),
];
/// The way of the purging client.
pub(super) const PURGED_ROUTE: Route = route("", PURGED_QUEUE, &[PURGED_QUEUE]);

/// Everything durable that is always there.
pub(super) fn all_queues() -> impl Iterator<Item = &'static str> {
    SHARED_QUEUES
        .into_iter()
        .chain(TX_QUEUES)
        .chain([PURGED_QUEUE])
}

/// Every way there is.
pub(super) fn all_routes() -> impl Iterator<Item = &'static Route> {
    SHARED_ROUTES
        .iter()
        .chain(&TX_ROUTES)
        .chain([&PURGED_ROUTE])
}

fn options(queue: &str) -> queue::Declare {
    if queue != LEVELS_QUEUE {
        return durable();
    }
    let highest = FieldValue::SignedInt(LEVEL_MAX.into());
    queue::Declare {
        arguments: FieldTable::new().with("x-max-priority", highest),
        ..durable()
    }
}

/// Declares what is always there. A second time it checks that all of it is as it was: a queue or exchange that came back different
/// is answered with 406.
pub(super) fn declare(client: &mut Client, channel: u16) {
    for queue in all_queues() {
        client.queue_declare(channel, queue, options(queue));
    }
    for (exchange, kind) in [
        ("crash.direct", "direct"),
        ("crash.fanout", "fanout"),
        ("crash.topic", "topic"),
        ("crash.chained", "topic"),
        ("crash.tx", "fanout"),
    ] {
        client.exchange_declare(channel, exchange, kind, true);
    }
}

/// Binds; only once, so that later rounds see what a restart has kept.
pub(super) fn bind(client: &mut Client, channel: u16) {
    for (queue, exchange, key) in [
        ("shared-1", "crash.direct", "one"),
        ("shared-1", "crash.direct", "urgent"),
        (LEVELS_QUEUE, "crash.direct", "urgent"),
        ("shared-0", "crash.direct", "pair"),
        ("shared-2", "crash.direct", "pair"),
        ("shared-0", "crash.fanout", ""),
        ("shared-1", "crash.fanout", ""),
        ("shared-2", "crash.fanout", ""),
        ("shared-2", "crash.topic", "a.#"),
        ("shared-2", "crash.topic", "*.b.*"),
        ("tx-0", "crash.tx", ""),
        ("tx-1", "crash.tx", ""),
    ] {
        client.bind(channel, queue, exchange, key);
    }
    client.exchange_bind(channel, "crash.fanout", "crash.chained", "#");
}

/// Declares a queue that the next restart must forget.
pub(super) fn declare_fleeting(client: &mut Client, channel: u16) {
    client.queue_declare(channel, FLEETING_QUEUE, transient());
}

/// Checks that the restart forgot it. Closes the channel.
pub(super) fn check_fleeting_is_gone(client: &mut Client, channel: u16) -> Result<(), String> {
    match exists(client, channel, FLEETING_QUEUE) {
        Ok(false) => Ok(()),
        Ok(true) => Err("a queue that is not durable survived the restart".into()),
        Err(trouble) => Err(trouble.to_string()),
    }
}

/// Asks for a queue on a channel of its own.
fn exists(client: &mut Client, channel: u16, queue: &str) -> Outcome<bool> {
    client.try_open_channel(channel)?;
    match client.try_queue_declare(channel, queue, passive()) {
        Ok(_) => client.try_close_channel(channel).map(|()| true),
        Err(Trouble::ChannelClosed(close)) if close.reply_code == 404 => Ok(false),
        Err(trouble) => Err(trouble),
    }
}

/// What is known of an extra queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    There,
    Gone,
    /// Asked to come or to go, and no answer.
    Unknown,
}

/// Queues with arguments, declared and deleted all the time.
#[derive(Default)]
pub(super) struct ExtraQueues(Mutex<BTreeMap<String, Known>>);

/// Extra queues have names from a small set, so that names are used again.
const EXTRA_QUEUES: u64 = 6;

impl ExtraQueues {
    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        // A thread that panicked fails the test anyhow.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn learn(&self, name: &str, known: Known) {
        self.known().insert(name.to_owned(), known);
    }

    fn options() -> queue::Declare {
        let arguments = FieldTable::new()
            .with("x-max-length", FieldValue::SignedInt(1000))
            .with("x-message-ttl", FieldValue::Long(86_400_000));
        queue::Declare {
            arguments,
            ..durable()
        }
    }

    /// Declares or deletes one; to be called from one thread.
    pub(super) fn change_one(
        &self,
        client: &mut Client,
        channel: u16,
        random: &mut Random,
    ) -> Outcome<()> {
        let name = format!("extra-{}", random.below(EXTRA_QUEUES));
        let was = self.known().get(&name).copied();
        self.learn(&name, Known::Unknown);
        if was == Some(Known::There) {
            client.try_queue_delete(channel, &name)?;
            self.learn(&name, Known::Gone);
        } else {
            client.try_queue_declare(channel, &name, Self::options())?;
            self.learn(&name, Known::There);
        }
        Ok(())
    }

    /// Checks after a restart which are there, and that they have kept their arguments.
    pub(super) fn check(&self, client: &mut Client, channel: u16) -> Result<(), String> {
        let known = self.known().clone();
        for (name, known) in known {
            let is_there = exists(client, channel, &name).map_err(|trouble| trouble.to_string())?;
            match (known, is_there) {
                (Known::There, false) => return Err(format!("queue {name} is lost")),
                (Known::Gone, true) => return Err(format!("deleted queue {name} is there again")),
                _ => {}
            }
            self.learn(&name, if is_there { Known::There } else { Known::Gone });
            if is_there {
                client.open_channel(channel);
                let declared = client.try_queue_declare(channel, &name, Self::options());
                declared.map_err(|trouble| format!("queue {name} has changed: {trouble}"))?;
                client.close_channel(channel);
            }
        }
        Ok(())
    }
}
