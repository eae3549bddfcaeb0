//! After a restart: where all messages are. Nobody else is at work.

use std::collections::BTreeMap;
use std::time::Duration;

use super::judge::CLOCK_SLACK_MS;
use super::ledger::Step;
use super::terms::{self, COUNTED, GRAVE, RULED, Terms};
use super::{Moving, terms::retried};
use crate::crash::history::MessageId;
use crate::crash::random::Random;
use crate::crash::recorder::report;
use crate::support::raw::{Client, Outcome};

/// Publishes the probes.
const PROBES: u16 = 2;
/// The queues' channels begin here.
const FIRST: u16 = 3;
/// More than any limit of the queue `ruled`.
const PROBE_COUNT: usize = 8;
/// What is on its way arrives within this, or never.
const WAY_LIMIT_MS: u64 = 20_000;
/// Pause between two looks for what is on its way.
const PAUSE: Duration = Duration::from_millis(5);

/// Messages of a queue, held on a channel of their own.
struct Held {
    channel: u16,
    queue: &'static str,
    messages: Vec<(u64, MessageId)>,
}

impl Moving {
    /// Declares the queues and the exchange; a second time it checks that they are as they were.
    pub(in crate::crash) fn declare(client: &mut Client, channel: u16) {
        terms::declare(client, channel);
    }

    /// Binds; once.
    pub(in crate::crash) fn bind(client: &mut Client, channel: u16) {
        terms::bind(client, channel);
    }

    /// Checks where each message is and what it looks like; gives them back or takes them for good.
    pub(in crate::crash) fn check(
        &self,
        client: &mut Client,
        random: &mut Random,
    ) -> Result<(), String> {
        self.look(client, random)
            .map_err(|trouble| format!("messages that move: {trouble}"))?
    }

    fn look(&self, client: &mut Client, random: &mut Random) -> Outcome<Result<(), String>> {
        client.try_open_channel(PROBES)?;
        client.try_confirm_select(PROBES)?;
        let mut published_count = 0;
        let rule = self.ruled();
        // What the policy says shows in what becomes of them.
        let probes = vec![rule.clone(); PROBE_COUNT];
        self.publish(client, PROBES, &mut published_count, probes)?;
        if let Some(ttl_ms) = rule.ttl_ms {
            std::thread::sleep(Duration::from_millis(ttl_ms + CLOCK_SLACK_MS));
        }
        let (queues, looked_ms) = self.take_all(client)?;
        let violations = {
            let mut book = self.book();
            book.ledger.conclude(looked_ms);
            book.ledger.take_violations()
        };
        if !violations.is_empty() {
            let book = self.book();
            return Ok(Err(report(&violations, |id| book.ledger.story(id))));
        }
        for held in &queues {
            self.let_go(client, random, held)?;
        }
        // Its confirm makes sure what was acknowledged.
        self.publish(client, PROBES, &mut published_count, vec![retried()])?;
        client.try_close_channel(PROBES)?;
        Ok(Ok(()))
    }

    /// Takes all there is, and what is on its way as it comes. With the time of which that holds: what is due a moment later
    /// is not here.
    fn take_all(&self, client: &mut Client) -> Outcome<(Vec<Held>, u64)> {
        let mut queues = Vec::new();
        for (channel, queue) in (FIRST..).zip(terms::all_queues()) {
            client.try_open_channel(channel)?;
            let messages = Vec::new();
            queues.push(Held {
                channel,
                queue,
                messages,
            });
        }
        let end_ms = self.now_ms() + WAY_LIMIT_MS;
        loop {
            for held in &mut queues {
                while let Some((tag, sighting)) = self.take(client, held.channel, held.queue)? {
                    held.messages.extend(sighting.id.map(|id| (tag, id)));
                }
            }
            let now_ms = self.now_ms();
            if self.book().ledger.missing(now_ms).is_empty() || now_ms > end_ms {
                return Ok((queues, now_ms));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Gives the messages of a queue back, or takes them all, so that queues do not grow for ever.
    fn let_go(&self, client: &mut Client, random: &mut Random, held: &Held) -> Outcome<()> {
        let is_taken = match held.queue {
            // Tomorrow another rule may hold there.
            RULED => true,
            GRAVE => random.percent(60),
            _ => random.percent(30),
        };
        for (tag, id) in &held.messages {
            self.note(if is_taken {
                Step::Acked(*id)
            } else {
                Step::Returned(*id)
            });
            // A channel that closes lets them fail.
            if !is_taken && held.queue == COUNTED {
                client.try_nack(held.channel, *tag, true)?;
            }
        }
        if is_taken && let Some((last, _)) = held.messages.last() {
            client.try_ack(held.channel, *last, true)?;
        }
        self.sync(client, held.channel)?;
        client.try_close_channel(held.channel)
    }
}
