//! Deliveries that are not acknowledged in time (`--consumer-timeout-ms`, `x-consumer-timeout`).
//!
//! ```text
//!   looks    t0        t1        t2        t3          one every quarter of the shortest timeout, at most a minute
//!   marks    tag 0     tag 40    tag 40    tag 75      the last tag each channel had given by then
//!            `--------- a tag up to 40 was given before t1: no delivery remembers when it left
//! ```
//! So a delivery is found overdue never early, and late by a look or so. On a classic queue it closes the channel. A
//! consumer of a quorum queue whose client hears of cancels is cancelled, and what it held too long goes back; the
//! client may acknowledge that later without harm (AK-20), alone or as the last of many: what else such an
//! acknowledgement names is settled.

use std::collections::{BTreeSet, VecDeque};

use super::acks::{AckScope, DeliveryTags};
use super::channel::{Channel, ChannelState};
use super::close::Failure;
use super::event::Event;
use super::number_map::NumberMap;
use super::{Session, Work};
use crate::amqp::method::{MethodId, basic};
use crate::amqp::reply_code::ChannelReplyCode;
use crate::broker::command::{Command, ConsumerId, SettleOutcome, Unacked};

/// Longest pause between two looks.
const PERIOD_MAX_MS: u64 = 60_000;
/// Shortest: a look meets everything a channel has given out.
const PERIOD_MIN_MS: u64 = 50;
/// Marks of one channel; of more, one goes that is close to its neighbours for its age.
const MARKS_MAX: usize = 128;

/// Tags that went back and are remembered one by one; of more, every tag up to the newest of the oldest is excused.
const RETURNED_MAX: usize = 4096;

/// When the session looks for overdue deliveries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watch {
    shortest_ms: u64,
    next_look_ms: u64,
}

impl Watch {
    /// Looks for deliveries that take longer than this.
    pub(super) fn new(timeout_ms: u64, now_ms: u64) -> Self {
        let mut watch = Self {
            shortest_ms: timeout_ms,
            next_look_ms: 0,
        };
        watch.next_look_ms = now_ms + watch.period_ms();
        watch
    }

    /// When the next look is due.
    pub(super) fn due_at_ms(&self) -> u64 {
        self.next_look_ms
    }

    fn period_ms(&self) -> u64 {
        (self.shortest_ms / 4).clamp(PERIOD_MIN_MS, PERIOD_MAX_MS)
    }
}

/// What a channel remembers about times.
#[derive(Debug, Default)]
pub(super) struct Ages {
    /// When, and the last tag given by then; both ascending.
    marks: VecDeque<(u64, u64)>,
    /// Consumers with a timeout of their own.
    timeouts: NumberMap<ConsumerId, u64>,
    /// Tags that went back to their queue: acknowledging them is no mistake.
    returned: BTreeSet<u64>,
    /// Tags up to this one may have gone back: they are too many to be remembered.
    excused_upto: u64,
}

impl Ages {
    fn note(&mut self, now_ms: u64, last_tag: u64) {
        if self.marks.back().is_some_and(|(_, tag)| *tag == last_tag) {
            return;
        }
        self.marks.push_back((now_ms, last_tag));
        if self.marks.len() > MARKS_MAX {
            self.thin(now_ms);
        }
    }

    /// Takes one mark out. The older marks are, the farther they may be apart, so that a timeout is late by a part of
    /// itself, whatever its length.
    fn thin(&mut self, now_ms: u64) {
        let share = |index: &usize| {
            let at = |index: usize| self.marks.get(index).map_or(0, |(marked_ms, _)| *marked_ms);
            let gap_ms = at(index + 1).saturating_sub(at(index - 1));
            let age_ms = now_ms.saturating_sub(at(*index));
            gap_ms.saturating_mul(MARKS_MAX as u64) / (age_ms + 1)
        };
        let inner = 1..self.marks.len().saturating_sub(1);
        if let Some(index) = inner.min_by_key(share) {
            self.marks.remove(index);
        }
    }

    /// The last tag that was surely given by then.
    fn given_by(&self, at_ms: u64) -> u64 {
        let upto = self
            .marks
            .partition_point(|(marked_ms, _)| *marked_ms <= at_ms);
        let last = upto.checked_sub(1).and_then(|index| self.marks.get(index));
        last.map_or(0, |(_, tag)| *tag)
    }

    fn note_returned(&mut self, tag: u64) {
        self.returned.insert(tag);
        if self.returned.len() > RETURNED_MAX {
            // Consumers are cancelled one after another, so a lower tag may come later.
            let oldest = self.returned.pop_first().unwrap_or_default();
            self.excused_upto = self.excused_upto.max(oldest);
        }
    }

    /// What is left of an acknowledgement that may name deliveries which went back by themselves; `None` when that is
    /// nothing. They are acknowledged then: a second time is a mistake, unless `is_revocable` (a transaction).
    pub(super) fn left_of(
        &mut self,
        scope: AckScope,
        tags: &DeliveryTags,
        is_revocable: bool,
    ) -> Option<AckScope> {
        if self.returned.is_empty() && self.excused_upto == 0 {
            return Some(scope);
        }
        let went_back = |tag: u64| {
            let is_old = (1..=self.excused_upto).contains(&tag) && !tags.is_outstanding(tag);
            is_old || self.returned.contains(&tag)
        };
        let (left, upto) = match scope {
            AckScope::One(tag) if !went_back(tag) => return Some(scope),
            AckScope::One(tag) => {
                if !is_revocable {
                    self.returned.remove(&tag);
                }
                return None;
            }
            AckScope::UpTo(tag) if went_back(tag) => (AckScope::Through(tag), tag),
            AckScope::UpTo(tag) | AckScope::Through(tag) => (scope, tag),
            AckScope::All => (scope, u64::MAX),
        };
        if !is_revocable {
            self.returned.retain(|tag| *tag > upto);
        }
        Some(left)
    }
}

/// What a look found on one channel.
enum Overdue {
    /// The channel cannot go on.
    Channel { timeout_ms: u64 },
    /// Consumers to cancel, each with tags to give back.
    Consumers(Vec<(ConsumerId, Vec<u64>)>),
}

impl Session {
    /// Deliveries to this consumer have a timeout; 0 for none.
    pub(super) fn set_timeout(&mut self, id: u16, consumer: ConsumerId, timeout_ms: u64) {
        let Some(channel) = self.channels.get_mut(&id) else {
            return;
        };
        channel.ages.timeouts.insert(consumer, timeout_ms);
        if timeout_ms == 0 {
            return;
        }
        let is_shortest = |watch: &Watch| timeout_ms < watch.shortest_ms;
        if self.watch.as_ref().is_none_or(is_shortest) {
            self.watch = Some(Watch::new(timeout_ms, self.now_ms));
        }
    }

    /// Looks for overdue deliveries when it is time.
    pub(super) fn check_overdue(&mut self) {
        let Some(watch) = &mut self.watch else {
            return;
        };
        if self.now_ms < watch.next_look_ms {
            return;
        }
        watch.next_look_ms = self.now_ms + watch.period_ms();
        let shortest_ms = watch.shortest_ms;
        let mut found = Vec::new();
        for (id, channel) in &mut self.channels {
            // Whoever waits for the broker is looked at the next time: answers come in order.
            if !matches!(channel.state, ChannelState::Open) {
                continue;
            }
            channel.ages.note(self.now_ms, channel.tags.last_tag());
            let consumers = &channel.consumers;
            let timeouts = &mut channel.ages.timeouts;
            timeouts.retain(|consumer, _| consumers.taker(*consumer).is_some());
            let limits = Limits {
                now_ms: self.now_ms,
                shortest_ms,
                default_ms: self.options.consumer_timeout_ms,
                may_cancel: self.client.hears_consumer_cancel,
            };
            found.extend(limits.look(channel).map(|overdue| (*id, overdue)));
        }
        for (id, overdue) in found {
            match overdue {
                Overdue::Channel { timeout_ms } => self.fail(id, timed_out(id, timeout_ms)),
                Overdue::Consumers(consumers) => {
                    for (consumer, tags) in consumers {
                        self.cancel_overdue(id, consumer, &tags);
                    }
                }
            }
        }
    }

    /// Cancels a consumer in the broker and towards the client, then gives back what it held too long.
    fn cancel_overdue(&mut self, id: u16, consumer: ConsumerId, tags: &[u64]) {
        let Some(channel) = self.channels.get_mut(&id) else {
            return;
        };
        let mut items: Vec<Unacked> = Vec::new();
        for tag in tags {
            let taken = channel
                .tags
                .take(AckScope::One(*tag), |run| run.join(&mut items));
            if taken.is_ok() {
                channel.ages.note_returned(*tag);
            }
        }
        channel.unneeded_answer_count += 2;
        let consumer_tag = channel.consumers.remove(consumer);
        let outcome = SettleOutcome::Return;
        for command in [
            Command::Cancel { consumer },
            Command::Settle { items, outcome },
        ] {
            self.work.push_back(Work::Event(Event::Command {
                channel: id,
                command,
            }));
        }
        if let Some(consumer_tag) = consumer_tag {
            self.send(
                id,
                basic::Cancel {
                    consumer_tag,
                    nowait: true,
                },
            );
        }
    }
}

/// What a look goes by.
struct Limits {
    now_ms: u64,
    shortest_ms: u64,
    default_ms: u64,
    may_cancel: bool,
}

impl Limits {
    fn look(&self, channel: &Channel) -> Option<Overdue> {
        let ages = &channel.ages;
        let given_before = |timeout_ms: u64| ages.given_by(self.now_ms.saturating_sub(timeout_ms));
        let mut cancelled: Vec<(ConsumerId, Vec<u64>)> = Vec::new();
        for (tag, queue, consumer) in channel.tags.upto(given_before(self.shortest_ms)) {
            let own_ms = consumer.and_then(|consumer| ages.timeouts.get(&consumer));
            let timeout_ms = own_ms.copied().unwrap_or(self.default_ms);
            if timeout_ms == 0 || tag > given_before(timeout_ms) {
                continue;
            }
            let cancelled_one = consumer.filter(|_| self.may_cancel && queue.is_quorum());
            let Some(consumer) = cancelled_one else {
                return Some(Overdue::Channel { timeout_ms });
            };
            match cancelled.iter_mut().find(|(known, _)| *known == consumer) {
                Some((_, tags)) => tags.push(tag),
                None => cancelled.push((consumer, vec![tag])),
            }
        }
        (!cancelled.is_empty()).then_some(Overdue::Consumers(cancelled))
    }
}

fn timed_out(id: u16, timeout_ms: u64) -> Failure {
    let text = format!(
        "delivery acknowledgement on channel {id} timed out. Timeout value used: {timeout_ms} ms. This timeout \
         value can be configured, see consumers doc guide to learn more"
    );
    let code = ChannelReplyCode::PreconditionFailed;
    Failure::channel(code, text, MethodId::NONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_and_short_timeouts_are_found_late_by_a_part_of_themselves() {
        const LOOK_MS: u64 = 1_000;
        const LOOKS: u64 = 100_000;
        let mut ages = Ages::default();
        // A delivery between any two looks.
        for look in 1..=LOOKS {
            ages.note(look * LOOK_MS, look);
        }
        let now_ms = LOOKS * LOOK_MS;
        for timeout in [10, 100, 1_000, 10_000, 50_000] {
            let given = ages.given_by(now_ms - timeout * LOOK_MS);
            let exact = LOOKS - timeout;
            assert!(given <= exact, "never early");
            assert!(
                exact - given <= timeout / 4,
                "{timeout}: {given} of {exact}"
            );
        }
    }

    #[test]
    fn a_tag_is_as_old_as_the_first_look_that_saw_it() {
        let mut ages = Ages::default();
        for (now_ms, last_tag) in [(10, 0), (20, 40), (30, 40), (40, 75)] {
            ages.note(now_ms, last_tag);
        }
        assert_eq!(
            [9, 10, 20, 39, 40].map(|at_ms| ages.given_by(at_ms)),
            [0, 0, 40, 40, 75]
        );
    }

    #[test]
    fn marks_are_thinned_out_and_never_make_a_tag_older() {
        let mut ages = Ages::default();
        for step in 1..=1000 {
            ages.note(step * 10, step);
        }
        assert!(ages.marks.len() <= MARKS_MAX + 1);
        for step in 1..=1000 {
            assert!(ages.given_by(step * 10) <= step);
        }
        assert_eq!(ages.given_by(10_000), 1000);
    }
    #[test]
    fn a_late_acknowledgement_is_excused_once_or_as_long_as_it_can_be_revoked() {
        let tags = DeliveryTags::default();
        let mut ages = Ages::default();
        let mut left = |scope, is_revocable| ages.left_of(scope, &tags, is_revocable);
        assert_eq!(left(AckScope::One(3), false), Some(AckScope::One(3)));
        ages.note_returned(3);
        ages.note_returned(5);
        let mut left = |scope, is_revocable| ages.left_of(scope, &tags, is_revocable);
        assert_eq!(left(AckScope::One(4), false), Some(AckScope::One(4)));
        assert_eq!(left(AckScope::One(3), true), None);
        assert_eq!(left(AckScope::One(3), false), None);
        assert_eq!(left(AckScope::One(3), false), Some(AckScope::One(3)));
        assert_eq!(left(AckScope::UpTo(5), true), Some(AckScope::Through(5)));
        assert_eq!(left(AckScope::UpTo(5), false), Some(AckScope::Through(5)));
        assert_eq!(left(AckScope::UpTo(5), false), Some(AckScope::UpTo(5)));
    }

    #[test]
    fn however_many_went_back_none_is_held_against_the_client() {
        let tags = DeliveryTags::default();
        let mut ages = Ages::default();
        let count = RETURNED_MAX as u64 * 2;
        (1..=count).for_each(|tag| ages.note_returned(tag));
        assert!(ages.returned.len() <= RETURNED_MAX);
        for tag in [1, count / 2, count] {
            assert_eq!(ages.left_of(AckScope::One(tag), &tags, false), None);
        }
        let none = AckScope::One(count + 1);
        assert_eq!(ages.left_of(none, &tags, false), Some(none));
    }

    #[test]
    fn what_went_back_stays_excused_whatever_goes_back_after_it() {
        let tags = DeliveryTags::default();
        let mut ages = Ages::default();
        let newest = 2 * RETURNED_MAX as u64;
        (10..=newest).for_each(|tag| ages.note_returned(tag));
        // Another consumer held an older one.
        ages.note_returned(1);
        for tag in [1, 10, newest - RETURNED_MAX as u64, newest] {
            assert_eq!(ages.left_of(AckScope::One(tag), &tags, true), None, "{tag}");
        }
    }

    #[test]
    fn tag_0_never_went_back() {
        let tags = DeliveryTags::default();
        let mut ages = Ages::default();
        (1..=RETURNED_MAX as u64 + 1).for_each(|tag| ages.note_returned(tag));
        let scope = AckScope::One(0);
        assert_eq!(ages.left_of(scope, &tags, false), Some(scope));
    }
}
