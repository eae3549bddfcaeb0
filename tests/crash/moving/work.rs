//! The client that makes messages move, while the broker may die at any moment.

use std::collections::BTreeMap;
use std::time::Duration;

use stratamq::amqp::method::basic;

use super::Moving;
use super::ledger::Step;
use super::sighting::{Sighting, message};
use super::terms::{self, COUNTED, RETRY, Terms};
use crate::crash::history::MessageId;
use crate::crash::random::Random;
use crate::support::raw::{Client, Outcome};

/// The publisher takes a breath, so that a round has few enough messages to look for.
const BREATH: Duration = Duration::from_millis(1);

impl Moving {
    /// Publishes a few messages on a channel that confirms, and waits for the confirms.
    pub(in crate::crash) fn publish_some(
        &self,
        client: &mut Client,
        channel: u16,
        published_count: &mut u64,
        random: &mut Random,
    ) -> Outcome<()> {
        let choices = (0..=random.below(8)).map(|_| {
            if random.percent(20) {
                self.ruled()
            } else {
                terms::pick(random)
            }
        });
        let choices: Vec<Terms> = choices.collect();
        self.publish(client, channel, published_count, choices)?;
        std::thread::sleep(BREATH);
        Ok(())
    }

    /// Publishes one message on each of these terms.
    pub(super) fn publish(
        &self,
        client: &mut Client,
        channel: u16,
        published_count: &mut u64,
        choices: Vec<Terms>,
    ) -> Outcome<()> {
        let mut waiting: BTreeMap<u64, MessageId> = BTreeMap::new();
        for terms in choices {
            let id = {
                let mut book = self.book();
                book.last_id += 1;
                book.last_id
            };
            let message = message(id, &terms);
            let (exchange, routing_key) = terms.route();
            self.note(Step::Publish { id, terms });
            client.push_publish(channel, exchange, routing_key, &message);
            *published_count += 1;
            waiting.insert(*published_count, id);
        }
        client.flush()?;
        while !waiting.is_empty() {
            let ack = client.try_wait_confirm(channel)?;
            let later = waiting.split_off(&(ack.delivery_tag + 1));
            for (tag, id) in std::mem::replace(&mut waiting, later) {
                if ack.multiple || tag == ack.delivery_tag {
                    self.note(Step::Confirmed(id));
                } else {
                    waiting.insert(tag, id);
                }
            }
        }
        Ok(())
    }

    /// Takes some messages and does something with most of them; the others are held until the connection ends.
    pub(in crate::crash) fn try_some(
        &self,
        client: &mut Client,
        channel: u16,
        random: &mut Random,
    ) -> Outcome<()> {
        let mut is_idle = true;
        for queue in [COUNTED, RETRY] {
            for _ in 0..random.below(8) {
                if let Some((tag, sighting)) = self.take(client, channel, queue)? {
                    is_idle = false;
                    let Some(id) = sighting.id else { continue };
                    match random.below(100) {
                        0..50 => self.let_fail(client, channel, queue, tag, id)?,
                        50..70 => {
                            self.note(Step::Acked(id));
                            client.try_ack(channel, tag, false)?;
                        }
                        70..85 => {
                            self.note(Step::Returned(id));
                            client.try_nack(channel, tag, true)?;
                        }
                        85..95 => {
                            self.note(Step::Rejected(id));
                            client.try_nack(channel, tag, false)?;
                        }
                        _ => {}
                    }
                }
            }
        }
        if is_idle {
            std::thread::sleep(BREATH);
        }
        if is_idle || random.percent(30) {
            self.sync(client, channel)?;
        }
        Ok(())
    }

    /// The way of the queue: what fails in the one is given back, what fails in the other is rejected and comes again.
    fn let_fail(
        &self,
        client: &mut Client,
        channel: u16,
        queue: &str,
        delivery_tag: u64,
        id: MessageId,
    ) -> Outcome<()> {
        let requeue = queue == COUNTED;
        self.note(if requeue {
            Step::Failed(id)
        } else {
            Step::Rejected(id)
        });
        let reject = basic::Reject {
            delivery_tag,
            requeue,
        };
        client.try_send(channel, reject)
    }

    /// A message out of a queue, to be held.
    pub(super) fn take(
        &self,
        client: &mut Client,
        channel: u16,
        queue: &str,
    ) -> Outcome<Option<(u64, Sighting)>> {
        let asked_ms = self.now_ms();
        let Some(delivered) = client.try_get(channel, queue)? else {
            return Ok(None);
        };
        let sighting = Sighting::of(queue, &delivered, asked_ms, self.now_ms());
        self.note(Step::Taken(sighting.clone()));
        Ok(Some((delivered.tag, sighting)))
    }

    /// A round trip: what was asked before has been read by the broker.
    pub(super) fn sync(&self, client: &mut Client, channel: u16) -> Outcome<()> {
        client.try_qos(channel, 0)?;
        self.note(Step::Synced);
        Ok(())
    }
}
