//! Publishes on their way to the domain, and what becomes of them while the log has no room.
//!
//! ```text
//!   session --Publish--> batch --domain.publish--> admitted: queues, log
//!                          |                  `--> refused: the batch waits, and every later event of the connection
//!                          |                       with it; its socket is not read; deliveries and confirms go on
//!                          `-- the client is gone, or is closed, while the disk is short: dropped, unconfirmed
//! ```
//! Usually room comes with the next commit. On a full disk it comes when somebody frees some; the client is told so by
//! `connection.blocked`, and what it had sent before waits here: at most one batch and what the session holds.

use std::sync::Arc;
use std::time::Duration;

use super::ConnectionTask;
use crate::broker::command::Command;
use crate::session::{Event, PUBLISH_RUN_MAX};
use crate::telemetry::Counters;

/// Publishes gathered before they go to the domain; bounds what one call holds.
pub(super) const PUBLISH_BATCH_MAX: usize = PUBLISH_RUN_MAX;
/// How often a client that is gone is looked at whose publishes wait for room.
const DEPARTED_POLL: Duration = Duration::from_millis(200);
/// How long such publishes wait at most.
const DEPARTED_WAIT_MAX_MS: u64 = 10_000;

impl ConnectionTask {
    /// Gives the gathered publishes to the domain; false when some of them wait for room in the log. One that is
    /// refused closes its channel; later ones of that channel are dropped, those of other channels go on.
    pub(super) fn flush_publishes(&mut self) -> bool {
        let mut has_registered = self.batch.is_empty();
        while !self.batch.is_empty() {
            if self.domain.is_none() {
                self.batch.clear();
            } else if !self.publish_some() {
                if self.is_hopeless() {
                    self.drop_publishes();
                } else if has_registered {
                    return false;
                } else {
                    // Registered first, asked again afterwards: see `Signals`.
                    self.hub.signals.wake_at_room(&self.notify);
                    has_registered = true;
                }
            }
        }
        true
    }

    /// Publishes until one is refused; false when the log has no room for the next one.
    fn publish_some(&mut self) -> bool {
        let now_ms = self.hub.now_ms();
        let Some(domain) = &mut self.domain else {
            return true;
        };
        self.is_busy = true;
        self.has_published = true;
        let (batch, effects) = (&mut self.batch, &mut self.effects);
        let result = domain.publish(batch, now_ms, effects, &mut self.published);
        self.session.publish_results(&self.published);
        let done: u64 = self.published.iter().map(|run| run.count).sum();
        Counters::add(&self.hub.counters.messages_published, done);
        // What was sent back is held by nobody any more, and by no budget.
        self.published.clear();
        self.published_at_ms = now_ms;
        match result {
            Ok(()) => self.batch.is_empty(),
            Err((channel, error)) => {
                self.session.publish_refused(channel, error);
                let session = &self.session;
                self.batch
                    .retain(|publish| session.is_open_channel(publish.channel));
                true
            }
        }
    }

    /// Carries a command out; false when it is a commit for which the log has no room: then it is held.
    pub(super) fn try_command(&mut self, channel: u16, command: Command) -> bool {
        let admitted = match (&command, &self.domain) {
            (Command::TxCommit { .. }, Some(domain)) => {
                let mut admitted = domain.admit_commit(channel);
                if admitted.is_none() {
                    self.hub.signals.wake_at_room(&self.notify);
                    admitted = domain.admit_commit(channel);
                }
                let Some(admitted) = admitted else {
                    if self.is_hopeless() {
                        self.dropped.extend(command.into_unacked());
                        return true;
                    }
                    self.held_event = Some(Event::Command { channel, command });
                    return false;
                };
                Some(admitted)
            }
            _ => None,
        };
        self.execute(channel, command);
        drop(admitted);
        true
    }

    /// The client is gone: what it has published before waits for room as it would with it, unless the disk is short.
    pub(super) async fn wait_for_room(&mut self) {
        let notify = Arc::clone(&self.notify);
        let until_ms = self.hub.now_ms() + DEPARTED_WAIT_MAX_MS;
        while self.session.awaits_room()
            && !self.hub.storage.is_short_of_space()
            && self.hub.now_ms() < until_ms
        {
            let _ = tokio::time::timeout(DEPARTED_POLL, notify.notified()).await;
            self.guarded(Self::round);
        }
    }

    /// The connection ends, and what waits for room with it: none of it was confirmed. What a commit would have settled is
    /// given back.
    pub(super) fn drop_waiting(&mut self) {
        self.drop_publishes();
        self.drop_held_event();
    }

    pub(super) fn drop_held_event(&mut self) {
        if let Some(Event::Command { command, .. }) = self.held_event.take() {
            self.dropped.extend(command.into_unacked());
        }
    }

    /// Nobody waits for what has no room: the connection is being closed, and room may be far away.
    fn is_hopeless(&self) -> bool {
        self.session.is_given_up() && self.hub.storage.is_short_of_space()
    }

    fn drop_publishes(&mut self) {
        let count = self.batch.len();
        if count > 0 {
            tracing::warn!(peer = %self.peer, count, "unconfirmed publishes of a closed connection are dropped: the log has no room for them");
            self.batch.clear();
        }
    }
}
