//! Messages that die: expired, or pushed out of a full queue, into a queue for dead letters.
//!
//! ```text
//!  publish --> dying (time to live 30 ms)  --expired-->  grave
//!          --> narrow (at most 5 messages) --pushed out--^
//! ```
//! Nobody consumes here. A dead-lettering moves a message from one queue to the other in one atomic group, so after any
//! crash every confirmed message is in exactly one of the three, none is there twice, and none was never published.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use stratamq::amqp::field_table::{FieldTable, FieldValue};
use stratamq::amqp::method::queue;

use super::content::message;
use super::random::Random;
use crate::support::raw::{Client, Outcome, durable, now};

const GRAVE: &str = "grave";
const DYING: &str = "dying";
const NARROW: &str = "narrow";
/// Messages expire after this.
const TTL_MS: i64 = 30;
/// More push the oldest out.
const LENGTH_MAX: i64 = 5;
/// Expired messages are buried within this, or never.
const BURIAL_LIMIT: std::time::Duration = std::time::Duration::from_secs(20);

/// What was published since the graves were emptied.
#[derive(Default)]
struct Record {
    next_id: u64,
    published: BTreeSet<u64>,
    confirmed: BTreeSet<u64>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Graveyard(Mutex<Record>);

fn dies_into_grave(name: &str, value: i64) -> queue::Declare {
    let arguments = FieldTable::new()
        .with(name, FieldValue::Long(value))
        .with("x-dead-letter-exchange", "")
        .with("x-dead-letter-routing-key", GRAVE);
    queue::Declare {
        arguments,
        ..durable()
    }
}

impl Graveyard {
    fn record(&self) -> MutexGuard<'_, Record> {
        // A thread that panicked fails the test anyhow.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Declares the queues; a second time it checks that they are as they were.
    pub(super) fn declare(client: &mut Client, channel: u16) {
        client.queue_declare(channel, GRAVE, durable());
        client.queue_declare(channel, DYING, dies_into_grave("x-message-ttl", TTL_MS));
        client.queue_declare(channel, NARROW, dies_into_grave("x-max-length", LENGTH_MAX));
    }

    /// Publishes a few messages on a channel that confirms, and waits for the confirms.
    pub(super) fn publish_some(
        &self,
        client: &mut Client,
        channel: u16,
        published_count: &mut u64,
        random: &mut Random,
    ) -> Outcome<()> {
        let mut waiting = BTreeMap::new();
        for _ in 0..=random.below(12) {
            let id = {
                let mut record = self.record();
                record.next_id += 1;
                let id = record.next_id;
                record.published.insert(id);
                id
            };
            let queue = if random.percent(50) { DYING } else { NARROW };
            client.push_publish(channel, "", queue, &message(id, true));
            *published_count += 1;
            waiting.insert(*published_count, id);
        }
        client.flush()?;
        while !waiting.is_empty() {
            let ack = client.try_wait_confirm(channel)?;
            let later = waiting.split_off(&(ack.delivery_tag + 1));
            for (tag, id) in std::mem::replace(&mut waiting, later) {
                if ack.multiple || tag == ack.delivery_tag {
                    self.record().confirmed.insert(id);
                } else {
                    waiting.insert(tag, id);
                }
            }
        }
        Ok(())
    }

    /// After a restart: waits until what has expired is buried, then looks where each message is. Empties the graves.
    pub(super) fn check(&self, client: &mut Client, channel: u16) -> Result<(), String> {
        self.look(client, channel)
            .map_err(|trouble| format!("dead letters: {trouble}"))?
    }

    fn look(&self, client: &mut Client, channel: u16) -> Outcome<Result<(), String>> {
        client.try_open_channel(channel)?;
        let declare = || dies_into_grave("x-message-ttl", TTL_MS);
        let end = now() + BURIAL_LIMIT;
        while client
            .try_queue_declare(channel, DYING, declare())?
            .message_count
            > 0
        {
            if now() > end {
                return Ok(Err("expired messages are not buried".into()));
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        // Nothing is on its way any more once the counts stand still; a burial under way is one record, so a message
        // may be between two looks, never in neither queue for long.
        let mut last = None;
        loop {
            let grave = client
                .try_queue_declare(channel, GRAVE, durable())?
                .message_count;
            if last == Some(grave) {
                break;
            }
            last = Some(grave);
            std::thread::sleep(std::time::Duration::from_millis(40));
        }
        let mut found: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
        for queue in [DYING, NARROW, GRAVE] {
            while let Some(delivered) = client.try_get(channel, queue)? {
                let id = delivered.message.properties.message_id();
                let id = id.and_then(|id| std::str::from_utf8(id).ok()?.parse().ok());
                let Some(id) = id else {
                    return Ok(Err(format!("queue {queue} has a message without an id")));
                };
                let expected = message(id, true);
                if delivered.message.body != expected.body {
                    return Ok(Err(format!("message {id} in {queue} has another body")));
                }
                found.entry(id).or_default().push(queue);
            }
        }
        let verdict = self.judge(&found);
        // Acks of all that was read, and a round trip behind them; whatever a crash gives back is published still.
        client.try_ack(channel, 0, true)?;
        client.try_qos(channel, 0)?;
        let mut record = self.record();
        // What was lost of these acks by a later kill would look like a message that came back: so they count on.
        record.confirmed.clear();
        drop(record);
        client.try_close_channel(channel)?;
        Ok(verdict)
    }

    fn judge(&self, found: &BTreeMap<u64, Vec<&str>>) -> Result<(), String> {
        let record = self.record();
        if let Some(lost) = record.confirmed.iter().find(|id| !found.contains_key(id)) {
            return Err(format!("message {lost} was confirmed and is in no queue"));
        }
        for (id, queues) in found {
            if !record.published.contains(id) {
                return Err(format!("message {id} was never published"));
            }
            if queues.len() > 1 {
                return Err(format!("message {id} is in {queues:?} at once"));
            }
        }
        Ok(())
    }
}
