//! What a connection does between reading and writing: carries the session's events to the domain and the answers back.
//!
//! ```text
//!  Session --Event--> login, open, execute, publish (in batches) --> broker::Connection
//!          <-Reply--                                                     | Effects -> Hub
//!          <------------- Outbox <--- queues of all connections
//! ```
//! Nothing here waits or touches the socket: one round takes what there is, and what is missing (durability, room in the
//! store, a message on disk) wakes the task again.

use std::sync::Arc;

use super::publishing::PUBLISH_BATCH_MAX;
use super::{ConnectionTask, buffers};
use crate::amqp::reply_code::ConnectionReplyCode;
use crate::broker::User;
use crate::broker::command::{Command, Publish, Unacked};
use crate::broker::error::BrokerError;
use crate::broker::outbox::OutboxItems;
use crate::server::clients::ConnectionEntry;
use crate::session::{Event, Login, LoginRefused, Proof};
use crate::telemetry::Counters;

/// Deliveries that are worth a large buffer of the thread.
const WIDE_ITEMS: usize = 16;
/// Output that must still be allowed for that: a slow client, or memory that is scarce, leaves less.
const WIDE_ROOM_BYTES: usize = buffers::BUFFER_BYTES / 2;

/// Text with parts that come from a stranger, who must not write lines of his own into the log.
fn printable(text: &str) -> String {
    let escaped = |c: char| match c.is_control() {
        true => c.escape_debug().to_string(),
        false => c.to_string(),
    };
    text.chars().map(escaped).collect()
}

impl ConnectionTask {
    pub(super) fn round(&mut self) {
        let now_ms = self.hub.now_ms();
        if !self.input.is_empty() && self.session.wants_input() {
            self.receive_rest();
        }
        self.session.handle_timeout(now_ms);
        if let Some(reason) = self.outbox.forced_close() {
            // Before deliveries that nobody reads: they go back.
            self.session.begin_shutdown(reason);
        }
        self.take_outbox(false);
        self.handle_events();
        self.carry_out();
        self.handle_durability();
        self.check_room();
        if let Some(complaint) = self.session.take_complaint() {
            tracing::warn!(peer = %self.peer, "{}", printable(&complaint));
        }
    }

    /// Does what the domain handed back. Who else is to be woken may wait a moment for what others bring.
    fn carry_out(&mut self) {
        let has_published = std::mem::take(&mut self.has_published);
        let has_wakes = self.effects.wakes_commit || !self.effects.wakes.is_empty();
        if has_published || has_wakes {
            self.hub.wakes.put_off(&mut self.effects);
        }
        self.hub.carry_out(&mut self.effects);
    }

    /// Moves the outbox into the session: all of it when `is_whole`, else as long as the output is short.
    pub(super) fn take_outbox(&mut self, is_whole: bool) {
        loop {
            if self.items.is_empty() {
                let turned_somebody_away = self.outbox.drain(&mut self.items);
                if turned_somebody_away && let Some(domain) = &mut self.domain {
                    let now_ms = self.hub.now_ms();
                    self.hub
                        .broker
                        .outbox_drained(domain, now_ms, &mut self.effects);
                }
            }
            if self.items.is_empty() {
                return;
            }
            let output_max_bytes = match is_whole {
                true => usize::MAX,
                false => self.deliveries_max_bytes(),
            };
            if !self.give_items(output_max_bytes) {
                return;
            }
        }
    }

    /// Gives items to the session until the output is so long; true when none is left.
    fn give_items(&mut self, output_max_bytes: usize) -> bool {
        self.is_busy = true;
        let room_bytes = output_max_bytes.saturating_sub(self.session.output_len());
        if self.items.deliveries_count() >= WIDE_ITEMS && room_bytes >= WIDE_ROOM_BYTES {
            self.session.output().lend(buffers::take);
        }
        self.is_item_in_hand = true;
        let (items, done) = (&self.items, &mut self.items_done);
        let delivered_count = self.session.handle_items(items, done, output_max_bytes);
        self.session.output().end_lending();
        self.is_item_in_hand = false;
        Counters::add(&self.hub.counters.messages_delivered, delivered_count);
        // While a client is slow, messages are not to stay beside their encoded copies.
        self.items.drop_done(&mut self.items_done);
        self.items.is_empty()
    }

    /// Does what the session asks for, in order, as far as the log has room.
    pub(super) fn handle_events(&mut self) {
        let awaits_room = !self.try_events();
        self.session.set_awaits_room(awaits_room);
        if awaits_room {
            // What was done so far is confirmed meanwhile.
            self.session.send_confirms();
        }
    }

    /// False when something has to wait for room in the log, and all that follows it.
    fn try_events(&mut self) -> bool {
        loop {
            let event = match self.held_event.take() {
                Some(event) => Some(event),
                None => {
                    self.session
                        .poll_publishes(&mut self.batch, PUBLISH_BATCH_MAX);
                    match self.batch.len() < PUBLISH_BATCH_MAX {
                        true => self.session.poll_event(),
                        false => None,
                    }
                }
            };
            let event = match event {
                Some(Event::Publish(publish)) => {
                    self.batch.push(publish);
                    continue;
                }
                other => other,
            };
            // Order within a channel: what was published before comes first.
            let has_more = self.batch.len() >= PUBLISH_BATCH_MAX;
            if !self.flush_publishes() {
                self.held_event = event;
                return false;
            }
            match event {
                None if has_more => {}
                None => return true,
                Some(event) => {
                    if !self.handle_event(event) {
                        return false;
                    }
                }
            }
        }
    }

    /// False when it has to wait for room in the log: then it is held.
    fn handle_event(&mut self, event: Event) -> bool {
        match event {
            Event::Publish(_) => {}
            Event::Login(login) => self.login(login),
            Event::Open { vhost } => self.open(vhost.as_str()),
            Event::Command { channel, command } => return self.try_command(channel, command),
            Event::TxPublish(publish) => self.tx_publish(&publish),
            Event::Ended => {
                self.close_domain();
                self.session.ended();
            }
        }
        true
    }

    fn login(&mut self, login: Login) {
        let is_loopback = self.peer.ip().to_canonical().is_loopback();
        let broker = &self.hub.broker;
        let result = match &login.proof {
            Proof::Password(password) => broker.login(&login.user, password, is_loopback),
            Proof::Vouched => broker.login_vouched(&login.user, is_loopback),
        };
        match result {
            Ok(user) => {
                tracing::info!(peer = %self.peer, user = login.user, client = login.client,
                    name = login.connection_name, "logged in");
                self.user = Some((user, login));
                self.session.login_result(Ok(()));
            }
            Err(error) => {
                let (user, mechanism) = (printable(&login.user), login.mechanism.name());
                tracing::info!(peer = %self.peer, mechanism, "login refused: user '{user}' {error}");
                self.session.login_result(Err(LoginRefused));
            }
        }
    }

    fn open(&mut self, vhost: &str) {
        let Some((user, login)) = self.user.take() else {
            return;
        };
        let entry = self.entry(&user, vhost, login);
        self.place = self.hub.clients.enter(entry, &self.outbox);
        if self.place.is_none() {
            let max = self.hub.clients.max();
            let text = format!("connection refused: node connection limit ({max}) is reached");
            tracing::info!(peer = %self.peer, "{text}");
            let refusal = BrokerError::connection(ConnectionReplyCode::NotAllowed, text);
            return self.session.open_result(Err(refusal));
        }
        let result = self
            .hub
            .broker
            .connect(&user, vhost, Arc::clone(&self.outbox));
        let answer = match result {
            Ok(domain) => {
                self.domain = Some(domain);
                Ok(())
            }
            Err(error) => {
                self.place = None;
                Err(error)
            }
        };
        self.session.open_result(answer);
    }

    /// What operators see of the connection; its id comes with its place.
    fn entry(&self, user: &User, vhost: &str, login: Login) -> ConnectionEntry {
        ConnectionEntry {
            id: 0,
            peer: self.peer,
            user: user.name().to_owned(),
            vhost: vhost.to_owned(),
            name: login.connection_name,
            client: login.client,
            mechanism: login.mechanism.name().to_owned(),
            tls: self.tls_version.map(str::to_owned),
            opened_at_ms: self.hub.now_ms(),
        }
    }

    pub(super) fn execute(&mut self, channel: u16, command: Command) {
        let must_drain = matches!(
            command,
            Command::CloseChannel { .. } | Command::Cancel { .. }
        );
        let Some(domain) = &mut self.domain else {
            return;
        };
        let now_ms = self.hub.now_ms();
        let command = self.command_in_hand.insert(command);
        let result = domain.execute(channel, command, now_ms, &mut self.effects);
        self.command_in_hand = None;
        if must_drain {
            // What the domain handed over before it forgot the consumer is in the outbox now.
            self.take_outbox(true);
        }
        self.session.command_result(channel, result);
    }

    fn tx_publish(&mut self, publish: &Publish) {
        let Some(domain) = &mut self.domain else {
            return;
        };
        self.published_at_ms = self.hub.now_ms();
        if let Err(error) = domain.tx_publish(publish, self.published_at_ms) {
            self.session.publish_refused(publish.channel, error);
        }
    }

    /// Tells the session what is durable and asks to be woken for the rest.
    fn handle_durability(&mut self) {
        loop {
            let confirm_lsn = self.hub.storage.confirm_lsn();
            if let Some(domain) = &mut self.domain {
                domain.reveal_committed(self.hub.now_ms(), &mut self.effects);
            }
            self.session.handle_durable(confirm_lsn);
            // A released channel goes on with what it held.
            self.handle_events();
            self.carry_out();
            let Some(lsn) = self.session.first_pending_lsn() else {
                self.waits_for = None;
                return;
            };
            if self.waits_for != Some(lsn) {
                self.hub.signals.wake_at(lsn, &self.notify);
                self.waits_for = Some(lsn);
            }
            // Registered first, looked afterwards: see `Signals`.
            if self.hub.storage.confirm_lsn() < lsn {
                return;
            }
        }
    }

    /// Stops reading while too much is not durable yet.
    fn check_room(&mut self) {
        let mut has_room = self.hub.storage.has_room();
        if !has_room {
            self.hub.signals.wake_at_room(&self.notify);
            has_room = self.hub.storage.has_room();
            if has_room {
                self.hub.signals.wake_room_waiters();
            }
        }
        self.session.set_has_room(has_room);
    }

    pub(super) fn close_domain(&mut self) {
        if let Some(mut domain) = self.domain.take() {
            let now_ms = self.hub.now_ms();
            domain.close(now_ms, &mut self.effects);
            let mut held = self.collect_held();
            if !held.is_empty() {
                domain.requeue(&mut held, now_ms, &mut self.effects);
            }
            self.hub.carry_out(&mut self.effects);
            self.place = None;
        }
    }

    /// What nobody has given back: nothing, after an orderly end.
    fn collect_held(&mut self) -> Vec<Unacked> {
        self.drop_held_event();
        let mut held = std::mem::take(&mut self.dropped);
        held.append(&mut self.session.abandon());
        self.items.drop_done(&mut self.items_done);
        let mut items = OutboxItems::default();
        self.outbox.drain(&mut items);
        for items in [std::mem::take(&mut self.items), items] {
            let undelivered = items.into_deliveries();
            held.extend(undelivered.filter_map(|delivery| delivery.unsettled()));
        }
        held
    }

    /// After the socket is done: gives back what the connection held.
    pub(super) fn end(&mut self) {
        self.guarded(|task| {
            task.session.handle_eof();
            task.take_outbox(true);
        });
        self.guarded(Self::round);
        if self.session.awaits_room() {
            self.drop_waiting();
            self.guarded(Self::round);
        }
        self.close_domain();
        buffers::rest();
    }
}
