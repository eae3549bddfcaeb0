//! `basic.publish`: the checks, the route, and runs of messages with the same targets.
//!
//! ```text
//!   batch      m1 m2 m3 .. | m40 m41 m42 m43 ..     one socket read
//!   targets    {a,b}  ..   | {c} {}  {d} {c} ..     one lock set and one push a run
//! ```
//! A run is of one set of targets, or a mixed one of few queues together: publishers that go round a thousand queues would
//! otherwise pay for a lock set and a push with every message.
//!
//! What the checks and the topology said about an exchange and a key is kept by the connection until one
//! of them changes (`route_cache`). Messages with `CC` or `BCC`, and those an exchange had a say in that looks at more than
//! keys, are routed every time.

mod run;
mod target_sets;

use std::sync::Arc;
use std::vec::IntoIter;

use smallvec::SmallVec;

use self::run::Run;
use super::access::Operation;
use super::command::{ConfirmAt, Publish, PublishedRun};
use super::confirm_runs::ConfirmRuns;
use super::connection::Connection;
use super::effects::Effects;
use super::error::BrokerError;
use super::exchange::History;
use super::message::{Message, MessageParts, TTL_MAX_MS};
use super::queue::{self, LoggedTargets, RoutedPublish};
use super::refusal::{access_refused, no_exchange, precondition_failed};
use super::reply_to::is_requester_name;
use super::route_cache::SharedTargets;
use super::routing::Targets;
use crate::amqp::field_table::FieldValue;
use crate::amqp::properties::{BCC_HEADER, CC_HEADER, Properties};
use crate::amqp::short_string::ShortString;
use crate::storage::types::Pusher;

/// Publishes whose routes are fetched together.
const ROUTED_TOGETHER: usize = 32;

impl Connection {
    /// Takes a publish of a transaction: checks it and finds its queues now, and keeps it for the
    /// channel's [`TxCommit`](super::command::Command::TxCommit) or `TxRollback` (TX-3).
    ///
    /// # Errors
    /// The refusal, which closes the channel; it does not wait for the commit.
    pub fn tx_publish(&mut self, publish: &Publish, now_ms: u64) -> Result<(), BrokerError> {
        let routed = self.check_and_route(publish, now_ms)?;
        let channel = self.channel_mut(publish.channel);
        if let Some(names) = routed.replies {
            let index = channel.transaction.len();
            channel.transaction_replies.push((index, names));
        }
        if !routed.histories.is_empty() {
            let index = channel.transaction.len();
            channel
                .transaction_histories
                .push((index, routed.histories));
        }
        channel.transaction.push(RoutedPublish {
            message: visible_form(&routed.rewritten, publish),
            targets: routed.targets.to_vec(),
        });
        Ok(())
    }

    /// Publishes a batch in order, and takes off it what is done; the outcomes are appended to `out`. What is left in it without an
    /// error did not find room in the log: it is to be given again, when there may be some.
    ///
    /// # Errors
    /// The channel of the first refused publish and why; those before it are done, it is taken off as well, and nothing behind
    /// it was done.
    pub fn publish(
        &mut self,
        batch: &mut Vec<Publish>,
        now_ms: u64,
        effects: &mut Effects,
        out: &mut Vec<PublishedRun>,
    ) -> Result<(), (u16, BrokerError)> {
        let mut publishes = std::mem::take(batch).into_iter();
        let result = self.publish_runs(&mut publishes, now_ms, effects, out);
        *batch = publishes.collect();
        result
    }

    fn publish_runs(
        &mut self,
        publishes: &mut IntoIter<Publish>,
        now_ms: u64,
        effects: &mut Effects,
        out: &mut Vec<PublishedRun>,
    ) -> Result<(), (u16, BrokerError)> {
        let shortcut = self.begin_batch();
        let mut run = Run::default();
        let mut cold_count = publishes.len();
        // The run's own stay at the front until it is published.
        while let Some(publish) = publishes.as_slice().get(run.len()) {
            let next = &publishes.as_slice()[run.len()..];
            if next.len() <= cold_count {
                let names = next.iter().map(|publish| publish.message.raw_names());
                self.routes.warm(names.take(ROUTED_TOGETHER));
                cold_count = next.len().saturating_sub(ROUTED_TOGETHER);
            }
            let channel = publish.channel;
            let routed = match self.route_one(shortcut, publish, now_ms) {
                Ok(routed) => routed,
                Err(error) => {
                    if !self.publish_run(&mut run, publishes, now_ms, effects, out) {
                        return Ok(());
                    }
                    publishes.next();
                    return Err((channel, error));
                }
            };
            let must_end = !run.takes(&routed.targets) || routed.replies.is_some();
            if must_end && !self.publish_run(&mut run, publishes, now_ms, effects, out) {
                return Ok(());
            }
            let Some(publish) = publishes.as_mut_slice().get_mut(run.len()) else {
                break;
            };
            if let Some(names) = routed.replies {
                // Whether its requester is there or not: it is not returned.
                publish.is_mandatory = false;
                let visible = visible_form(&routed.rewritten, publish);
                run.push(publish, routed.rewritten, routed.targets);
                if !self.publish_run(&mut run, publishes, now_ms, effects, out) {
                    return Ok(());
                }
                self.deliver_replies(&names, &visible, effects);
                continue;
            }
            if !routed.histories.is_empty() {
                let visible = visible_form(&routed.rewritten, publish);
                run.remember(visible, routed.histories);
            }
            run.push(publish, routed.rewritten, routed.targets);
            self.join_run(shortcut, publishes.as_slice(), &mut run);
        }
        self.publish_run(&mut run, publishes, now_ms, effects, out);
        Ok(())
    }

    /// Gives a run, which stands at the front of `publishes`, to its queues, and takes it from there; false when the log has no
    /// room for it, then nothing happened.
    fn publish_run(
        &mut self,
        run: &mut Run,
        publishes: &mut IntoIter<Publish>,
        now_ms: u64,
        effects: &mut Effects,
        out: &mut Vec<PublishedRun>,
    ) -> bool {
        if run.is_empty() {
            return true;
        }
        let admitted = self.shared.queues.admit(run.log_bytes(), Pusher::Publisher);
        if admitted.is_none() {
            return false;
        }
        run.take_from(publishes);
        let outcome = run.give_to_queues(&mut self.shared.turn(now_ms, effects));
        run.remember_published();
        if outcome.is_err() {
            for publish in run.take_unpublished() {
                let (confirm, is_unroutable) = self.publish_again(&publish, now_ms, effects);
                run.answer(publish, confirm, is_unroutable);
            }
        }
        run.tell(out);
        run.clear();
        true
    }

    /// A target was deleted between route and delivery: routes by the topology of now. How to confirm it, and whether no queue
    /// took it.
    fn publish_again(
        &mut self,
        publish: &Publish,
        now_ms: u64,
        effects: &mut Effects,
    ) -> (ConfirmAt, bool) {
        loop {
            self.routes.clear();
            // The message has passed the checks; an exchange that went since routes nowhere.
            let routed = self.check_and_route(publish, now_ms);
            let routed = routed.unwrap_or_else(|_| Routed::plain(None, [].into()));
            let message = visible_form(&routed.rewritten, publish);
            let mut targets = routed.targets.to_vec();
            targets.retain(|queue| !queue.is_deleted());
            let turn = &mut self.shared.turn(now_ms, effects);
            let mut confirms = ConfirmRuns::default();
            // Ends: every further round needs one more queue to be deleted meanwhile.
            let messages = &mut vec![Arc::clone(&message)];
            if queue::publish(turn, &targets, messages, &mut confirms).is_ok() {
                remember(&routed.histories, &message);
                let confirm = confirms.runs().next();
                let confirm = confirm.map_or(ConfirmAt::Now, |(confirm, _)| confirm);
                return (confirm, targets.is_empty());
            }
        }
    }

    /// Gives a message to queues on the broker's own account: nobody waits for its confirm. Where the log has no room for it,
    /// the message does not go there.
    pub(super) fn publish_to(
        &self,
        message: &Arc<Message>,
        mut targets: Targets,
        now_ms: u64,
        effects: &mut Effects,
    ) {
        let bytes = LoggedTargets::of(&targets).record_bytes(message);
        let Some(_admitted) = self.shared.queues.admit(bytes, Pusher::DeadLetters) else {
            let exchange = message.exchange();
            tracing::warn!(
                %exchange,
                "no room in the log for a message of the exchange's history"
            );
            return;
        };
        let turn = &mut self.shared.turn(now_ms, effects);
        let messages = &mut vec![Arc::clone(message)];
        while queue::publish(turn, &targets, messages, &mut ConfirmRuns::default()).is_err() {
            targets.retain(|queue| !queue.is_deleted());
        }
    }

    fn renew_cache(&mut self) {
        // Read before anything is looked up, so that what is cached is never older than its version.
        let versions = (self.vhost.version(), self.shared.access_version());
        self.routes.renew(versions, self.vhost.queues_version());
    }

    /// Looks at topology and permissions once for all messages of a batch. One that a client sent before a change is as good
    /// as one that came before it; what the same client changes is behind what it has published.
    fn begin_batch(&mut self) -> Shortcut {
        self.renew_cache();
        // Brings the topic permissions up to date as well.
        self.permissions();
        Shortcut {
            is_open: self.topic_permissions.is_empty() && self.shared.options.stamps.is_off(),
        }
    }

    /// Adds the publishes behind the run to it that go where the one before went, while nothing can be refused or changed about
    /// them: the usual case, in which nothing is looked up. `publishes` begin with those of the run.
    fn join_run(&self, shortcut: Shortcut, publishes: &[Publish], run: &mut Run) {
        let Some((names, targets)) = self.routes.newest_route() else {
            return;
        };
        let next = publishes.iter().skip(run.len());
        let messages = next.map(|publish| &publish.message);
        let same =
            messages.take_while(|message| shortcut.is_for(message) && message.raw_names() == names);
        run.push_same(same, targets);
    }

    /// The route of a message of a batch.
    fn route_one(
        &mut self,
        shortcut: Shortcut,
        publish: &Publish,
        now_ms: u64,
    ) -> Result<Routed, BrokerError> {
        let message = &publish.message;
        let is_short = shortcut.is_for(message);
        if is_short && let Some(targets) = self.routes.find(message.raw_names()) {
            return Ok(Routed::plain(None, targets));
        }
        self.route(publish, now_ms)
    }

    /// Checks a message and finds its queues. The message comes back without its `BCC` header.
    pub(super) fn check_and_route(
        &mut self,
        publish: &Publish,
        now_ms: u64,
    ) -> Result<Routed, BrokerError> {
        self.renew_cache();
        self.route(publish, now_ms)
    }

    fn route(&mut self, publish: &Publish, now_ms: u64) -> Result<Routed, BrokerError> {
        let message = &publish.message;
        let names = message.raw_names();
        let recent = self.routes.recent(names).cloned();
        let checked = self.check_message(publish.channel, message, recent.is_some())?;
        let FurtherKeys { cc, bcc } = checked.further_keys;
        let mut rewrite = checked.rewrite;
        let stamps = &self.shared.options.stamps;
        if !stamps.is_off() {
            rewrite.stamped = Some(stamps.apply(&message.properties(), now_ms));
        }
        let is_plain = cc.is_empty() && bcc.is_empty();
        if is_plain && let Some(targets) = recent {
            return Ok(Routed::plain(rewritten(message, bcc, rewrite), targets));
        }
        let (raw_exchange, raw_key) = (message.raw_exchange(), message.raw_routing_key());
        if is_plain && let Some(targets) = self.routes.get(names, raw_exchange, raw_key) {
            let targets = Arc::clone(targets);
            return Ok(Routed::plain(rewritten(message, bcc, rewrite), targets));
        }
        let head = message.head_parts();
        let (exchange, key) = (&head.exchange, &head.routing_key);
        let mut keys: SmallVec<[ShortString; 4]> = SmallVec::new();
        keys.push(key.clone());
        keys.extend(cc);
        keys.extend(bcc.iter().cloned());
        let route = self.vhost.read().route(exchange, &keys, &head.properties);
        // Deleted since it was checked.
        let route = route.ok_or_else(|| no_exchange(exchange, self.vhost.name()))?;
        let targets: SharedTargets = Arc::from(&route.targets[..]);
        let replies = reply_keys(exchange, &keys);
        if is_plain && !route.is_for_one_message && replies.is_none() {
            self.routes.insert(exchange, key, &targets);
        }
        let rewritten = rewritten(message, bcc, rewrite);
        Ok(Routed {
            rewritten,
            targets,
            replies,
            histories: route.histories,
        })
    }

    /// The checks of a publish, in RabbitMQ's order.
    fn check_message(
        &mut self,
        channel: u16,
        message: &Message,
        is_exchange_checked: bool,
    ) -> Result<Checked, BrokerError> {
        if !is_exchange_checked && !self.routes.has_exchange(message.raw_exchange()) {
            let exchange = message.exchange();
            self.check_exchange(&exchange)?;
            self.routes.insert_exchange(&exchange);
        }
        self.permissions();
        if message.checked_properties().is_plain() && self.topic_permissions.is_empty() {
            return Ok(Checked::default());
        }
        let head = message.head_parts();
        let (exchange, properties) = (&head.exchange, &head.properties);
        let reply_name = self.reply_name(channel, properties)?;
        let expiration = match properties.expiration() {
            Some(expiration) => check_expiration(expiration).map_err(precondition_failed)?,
            None => None,
        };
        let further_keys = further_keys(properties)?;
        let FurtherKeys { cc, bcc } = &further_keys;
        for keys in [std::slice::from_ref(&head.routing_key), cc, bcc] {
            self.check_topic_access(Operation::Write, exchange, keys)?;
        }
        if let Some(user_id) = properties.user_id() {
            self.check_user_id(user_id)?;
        }
        Ok(Checked {
            further_keys,
            rewrite: Rewrite {
                reply_name,
                expiration,
                stamped: None,
            },
        })
    }

    fn check_exchange(&mut self, name: &ShortString) -> Result<(), BrokerError> {
        self.check_exchange_access(Operation::Write, name)?;
        if name.is_empty() {
            return Ok(());
        }
        let vhost = self.vhost.name();
        let topology = self.vhost.read();
        let exchange = topology.exchange(name);
        let exchange = exchange.ok_or_else(|| no_exchange(name, vhost))?;
        if exchange.spec().is_internal {
            return Err(access_refused(format!(
                "cannot publish to internal exchange '{name}' in vhost '{vhost}'"
            )));
        }
        Ok(())
    }

    fn check_user_id(&self, user_id: &[u8]) -> Result<(), BrokerError> {
        let user = self.user.name();
        if user_id == user.as_bytes() || self.user.is_impersonator() {
            return Ok(());
        }
        let claimed = String::from_utf8_lossy(user_id);
        Err(precondition_failed(format!(
            "user_id property set to '{claimed}' but authenticated user was '{user}'"
        )))
    }
}

/// A publish that passed the checks, and where it goes.
pub(super) struct Routed {
    /// As receivers see it, if that is not how it was published. Usually nothing.
    rewritten: Option<Arc<Message>>,
    targets: SharedTargets,
    /// Whom it answers by direct reply-to. Usually nobody.
    replies: Option<Box<[ShortString]>>,
    /// Exchanges that remember it when it has gone there. Usually none.
    histories: Vec<Arc<History>>,
}

/// A message has gone the way it was routed: the exchanges on it remember it.
pub(super) fn remember(histories: &[Arc<History>], message: &Arc<Message>) {
    for history in histories {
        history.remember(message);
    }
}

impl Routed {
    /// An ordinary message.
    fn plain(rewritten: Option<Arc<Message>>, targets: SharedTargets) -> Self {
        Self {
            rewritten,
            targets,
            replies: None,
            histories: Vec::new(),
        }
    }
}

/// Which messages of a batch need no check once their route is known: those whose properties ask nothing of the broker,
/// while it has nothing to check or to write into them either.
#[derive(Clone, Copy)]
struct Shortcut {
    /// The user has no topic permissions, and the broker does not stamp.
    is_open: bool,
}

impl Shortcut {
    fn is_for(self, message: &Message) -> bool {
        self.is_open && message.checked_properties().is_plain()
    }
}

/// What the checks of a publish have found in its properties.
#[derive(Default)]
struct Checked {
    further_keys: FurtherKeys,
    rewrite: Rewrite,
}

/// Properties that receivers see otherwise than they were published. Usually none.
#[derive(Default)]
struct Rewrite {
    /// What its `reply_to` becomes, if anything (DR-3).
    reply_name: Option<ShortString>,
    /// What its `expiration` becomes, if anything (PP-3).
    expiration: Option<ShortString>,
    /// All of them with the broker's stamps, if it puts any (CC-8).
    stamped: Option<Properties>,
}

/// The routing keys in the headers `CC` and `BCC` (CC-1). Usually none.
#[derive(Debug, Default)]
struct FurtherKeys {
    cc: Vec<ShortString>,
    bcc: Vec<ShortString>,
}

fn further_keys(properties: &Properties) -> Result<FurtherKeys, BrokerError> {
    let mut keys = FurtherKeys::default();
    if properties.has_cc() {
        keys.cc = keys_in(properties, CC_HEADER)?;
    }
    if properties.has_bcc() {
        keys.bcc = keys_in(properties, BCC_HEADER)?;
    }
    Ok(keys)
}

fn keys_in(properties: &Properties, header: &str) -> Result<Vec<ShortString>, BrokerError> {
    match properties.header(header) {
        None => Ok(Vec::new()),
        // What is no routing key reaches nobody; RabbitMQ skips it too.
        Some(FieldValue::Array(items)) => Ok(items
            .into_iter()
            .filter_map(|item| match item {
                FieldValue::LongString(key) => ShortString::new(key),
                _ => None,
            })
            .collect()),
        Some(other) => {
            let kind = other.type_name();
            Err(precondition_failed(format!(
                "invalid message: {{unacceptable_type_in_header,\"{header}\",{kind}}}"
            )))
        }
    }
}

/// The `expiration` property is a decimal number, with RabbitMQ's texts for everything else (TT-2); the number as it is
/// usually written, if this is not it.
fn check_expiration(text: &[u8]) -> Result<Option<ShortString>, String> {
    let shown = String::from_utf8_lossy(text);
    let refuse = |reason: String| Err(format!("invalid expiration '{shown}': {reason}"));
    let (is_negative, unsigned) = match text.split_first() {
        Some((b'-', rest)) => (true, rest),
        Some((b'+', rest)) => (false, rest),
        _ => (false, text),
    };
    let digits_count = unsigned
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let (digits, leftover) = unsigned.split_at(digits_count);
    if digits.is_empty() {
        return refuse("no_integer".to_owned());
    }
    if !leftover.is_empty() {
        let leftover = String::from_utf8_lossy(leftover);
        return refuse(format!("{{leftover_string,\"{leftover}\"}}"));
    }
    // At most 255 digits: what does not fit is too large anyway.
    let number = digits.iter().fold(0u128, |number, digit| {
        let digit = u128::from(digit - b'0');
        number.saturating_mul(10).saturating_add(digit)
    });
    if is_negative && number > 0 {
        return refuse(format!("{{value_negative,-{number}}}"));
    }
    if number > u128::from(TTL_MAX_MS) {
        return refuse(format!("{{value_too_large,{number}}}"));
    }
    let is_plain = text == b"0"
        || text
            .first()
            .is_some_and(|first| matches!(first, b'1'..=b'9'));
    if is_plain {
        return Ok(None);
    }
    Ok(ShortString::from_text(&number.to_string()))
}

/// The keys that name requesters, on the default exchange.
fn reply_keys(exchange: &ShortString, keys: &[ShortString]) -> Option<Box<[ShortString]>> {
    if !exchange.is_empty() {
        return None;
    }
    let mut names: Vec<ShortString> = Vec::new();
    for key in keys.iter().filter(|key| is_requester_name(key)) {
        if !names.contains(key) {
            names.push(key.clone());
        }
    }
    (!names.is_empty()).then(|| names.into_boxed_slice())
}

/// A publish as receivers see it.
fn visible_form(rewritten: &Option<Arc<Message>>, publish: &Publish) -> Arc<Message> {
    Arc::clone(rewritten.as_ref().unwrap_or(&publish.message))
}

/// The message as receivers see it, if that is not how it was published (CC-3, DR-3, PP-3). The hidden keys stay known for
/// dead-lettering.
fn rewritten(message: &Message, bcc: Vec<ShortString>, rewrite: Rewrite) -> Option<Arc<Message>> {
    let is_rewritten = rewrite.reply_name.is_some() || rewrite.expiration.is_some();
    let has_bcc = message.checked_properties().has_bcc();
    if !has_bcc && !is_rewritten && rewrite.stamped.is_none() {
        return None;
    }
    let parts = message.to_parts();
    let mut properties = rewrite.stamped.unwrap_or(parts.properties);
    if has_bcc {
        properties = properties.without_bcc();
    }
    if let Some(name) = rewrite.reply_name {
        properties = properties.edit().set_reply_to(Some(name)).build();
    }
    if let Some(number) = rewrite.expiration {
        properties = properties.edit().set_expiration(Some(number)).build();
    }
    Some(Arc::new(Message::from_parts(&MessageParts {
        bcc,
        properties,
        has_deaths: false,
        is_rekeyed: false,
        ..parts
    })))
}
