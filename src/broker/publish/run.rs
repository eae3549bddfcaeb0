//! Publishes that follow each other and share a critical section.
//!
//! ```text
//!   publishes   [ p1 p2 p3 | p4 p5 .. ]      the first `len` of them are the run
//!                  \--take_from--> messages, for one set of targets    --> queues --> confirms --> outcomes
//!                           `----> group, each with targets of its own -->
//!                take_unpublished <-- what is left when one of the queues was deleted meanwhile: routed once more
//! ```
//! 1. While it grows a run only counts: its messages stay where they are, and those that the log has no room for are still there.
//! 2. They go to the queues by value, so that nobody counts references to them.

use std::sync::Arc;
use std::vec::IntoIter;

use super::remember;
use super::target_sets::{SetNumber, TargetSets};
use crate::broker::command::{ConfirmAt, Publish, PublishedRun};
use crate::broker::confirm_runs::ConfirmRuns;
use crate::broker::exchange::History;
use crate::broker::message::Message;
use crate::broker::queue::{self, Addressed, GROUP_QUEUES_MAX, QueueHandle, TargetDeleted, Turn};
use crate::broker::route_cache::SharedTargets;
use crate::broker::routing::is_same_set;

/// Bytes in the log from which on a run takes no more: the log has to have room for all of it at once.
const RUN_MAX_BYTES: u64 = 256 << 10;
/// Messages of one set of targets that are given to it as they are; fewer join a mixed run.
const UNIFORM_RUN_MIN: usize = 8;

/// See the module.
#[derive(Default)]
pub(super) struct Run {
    len: usize,
    sets: TargetSets,
    /// Where the newest message goes.
    newest: SetNumber,
    /// The set of each message, if they are not all for the first one.
    mixed: Vec<SetNumber>,
    /// Queues of all sets, some of them counted more than once.
    queue_count: usize,
    /// What it takes in the log, at most.
    log_bytes: u64,
    /// Messages, by their indexes, that receivers see otherwise than they were published: as those see them, and once they are
    /// taken as they were published.
    rewritten: Vec<(usize, Arc<Message>)>,
    /// Those that exchanges remember, each by its index.
    remembered: Vec<(usize, Arc<Message>, Vec<Arc<History>>)>,
    /// What was taken, until the queues have it.
    messages: Vec<Arc<Message>>,
    group: Vec<Addressed>,
    /// Where the messages came from, equal ones together.
    origins: Vec<(Origin, usize)>,
    confirms: ConfirmRuns,
    /// What goes back to publishers, as they published it, each by its index.
    returned: Vec<(usize, Arc<Message>)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Origin {
    channel: u16,
    is_mandatory: bool,
}

impl Run {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn log_bytes(&self) -> u64 {
        self.log_bytes
    }

    /// Whether a message for `targets` may join.
    pub(super) fn takes(&self, targets: &SharedTargets) -> bool {
        self.is_empty() || (self.log_bytes < RUN_MAX_BYTES && self.takes_targets(targets))
    }

    fn is_mixed(&self) -> bool {
        !self.mixed.is_empty()
    }

    fn takes_targets(&self, targets: &SharedTargets) -> bool {
        self.is_newest(targets)
            || ((self.is_mixed() || self.len < UNIFORM_RUN_MIN)
                && (self.sets.find(targets).is_some()
                    || self.queue_count + targets.len() <= GROUP_QUEUES_MAX))
    }

    /// Whether the newest message goes to these, too.
    fn is_newest(&self, targets: &[QueueHandle]) -> bool {
        is_same_set(self.sets.get(self.newest), targets)
    }

    /// Adds messages for the same targets as the newest one, as many as it takes.
    pub(super) fn push_same<'a>(
        &mut self,
        messages: impl Iterator<Item = &'a Arc<Message>>,
        targets: &SharedTargets,
    ) {
        let is_same = self.sets.find(targets) == Some(self.newest);
        if !is_same || self.is_mixed() || self.is_empty() {
            return;
        }
        let logged = self.sets.logged(self.newest);
        for message in messages {
            if self.log_bytes >= RUN_MAX_BYTES {
                break;
            }
            self.log_bytes += logged.record_bytes(message);
            self.len += 1;
        }
    }

    /// Adds a publish that the run takes, and how receivers see it if otherwise.
    pub(super) fn push(
        &mut self,
        publish: &Publish,
        rewritten: Option<Arc<Message>>,
        targets: SharedTargets,
    ) {
        let before = self.newest;
        if self.is_empty() || !self.is_newest(&targets) {
            self.newest = self.number_of(targets);
        }
        let message = rewritten.as_ref().unwrap_or(&publish.message);
        self.log_bytes += self.sets.logged(self.newest).record_bytes(message);
        if let Some(message) = rewritten {
            self.rewritten.push((self.len, message));
        }
        if self.is_mixed() {
            self.mixed.push(self.newest);
        } else if !self.is_empty() && self.newest != before {
            self.mixed.extend(std::iter::repeat_n(before, self.len));
            self.mixed.push(self.newest);
        }
        self.len += 1;
    }

    /// The number of a set of targets, which joins the others when it is not one of them.
    fn number_of(&mut self, targets: SharedTargets) -> SetNumber {
        self.sets.find(&targets).unwrap_or_else(|| {
            self.queue_count += targets.len();
            self.sets.add(targets)
        })
    }

    /// Exchanges remember the message that is pushed next, as receivers see it.
    pub(super) fn remember(&mut self, message: Arc<Message>, histories: Vec<Arc<History>>) {
        self.remembered.push((self.len, message, histories));
    }

    /// Takes the run's messages, which are the first of `publishes`.
    pub(super) fn take_from(&mut self, publishes: &mut IntoIter<Publish>) {
        let own = publishes.as_slice().get(..self.len).unwrap_or_default();
        let chunks = own.chunk_by(|one, next| one.origin() == next.origin());
        let origins = chunks.filter_map(|chunk| Some((chunk.first()?.origin(), chunk.len())));
        self.origins.extend(origins);
        let has_targets = !self.sets.get(self.newest).is_empty();
        let is_plain = !self.is_mixed() && self.rewritten.is_empty() && has_targets;
        let own = publishes.take(self.len);
        match is_plain {
            true => self.messages.extend(own.map(|publish| publish.message)),
            false => self.take_each(own),
        }
    }

    /// The same for messages that may be mixed, rewritten or without a target.
    fn take_each(&mut self, publishes: impl Iterator<Item = Publish>) {
        let mut rewritten = self.rewritten.iter_mut().peekable();
        let mut mixed = self.mixed.drain(..);
        for (index, publish) in publishes.enumerate() {
            let mut message = publish.message;
            let set = mixed.next();
            let is_unroutable = self.sets.get(set.unwrap_or(self.newest)).is_empty();
            if publish.is_mandatory && is_unroutable {
                self.returned.push((index, Arc::clone(&message)));
            }
            if let Some((_, visible)) = rewritten.next_if(|(at, _)| *at == index) {
                std::mem::swap(&mut message, visible);
            }
            match set {
                Some(set) => self.group.push(Addressed::new(message, set)),
                None => self.messages.push(message),
            }
        }
    }

    /// Publishes what was taken.
    pub(super) fn give_to_queues(&mut self, turn: &mut Turn<'_>) -> Result<(), TargetDeleted> {
        let confirms = &mut self.confirms;
        match self.group.is_empty() {
            true => {
                let targets = self.sets.get(self.newest);
                queue::publish(turn, targets, &mut self.messages, confirms)
            }
            false => queue::publish_group(turn, self.sets.all(), &mut self.group, confirms),
        }
    }

    /// What was published is remembered by the exchanges on its way.
    pub(super) fn remember_published(&mut self) {
        for (index, message, histories) in self.remembered.drain(..) {
            // The others are routed once more.
            if index < self.confirms.len() {
                remember(&histories, &message);
            }
        }
    }

    /// The publishes that the queues did not take because one of these was deleted, as they came.
    pub(super) fn take_unpublished(&mut self) -> Vec<Publish> {
        let done = self.confirms.len();
        self.returned.retain(|(index, _)| *index < done);
        let group = self.group.drain(..).skip(done);
        let left = self
            .messages
            .drain(..)
            .chain(group.filter_map(|addressed| addressed.message));
        let origins = self.origins.iter();
        let origins = origins.flat_map(|(origin, count)| std::iter::repeat_n(*origin, *count));
        let indexed = origins.enumerate().skip(done).zip(left);
        let mut publishes = Vec::new();
        for ((index, origin), message) in indexed {
            let place = self.rewritten.binary_search_by_key(&index, |(at, _)| *at);
            let original = place.ok().and_then(|place| self.rewritten.get(place));
            publishes.push(Publish {
                channel: origin.channel,
                is_mandatory: origin.is_mandatory,
                message: original.map_or(message, |(_, original)| Arc::clone(original)),
            });
        }
        publishes
    }

    /// Adds the outcome of the next publish.
    pub(super) fn answer(&mut self, publish: Publish, confirm: ConfirmAt, is_unroutable: bool) {
        if is_unroutable && publish.is_mandatory {
            self.returned.push((self.confirms.len(), publish.message));
        }
        self.confirms.push(confirm);
    }

    /// Appends the outcomes to `out`.
    pub(super) fn tell(&mut self, out: &mut Vec<PublishedRun>) {
        let mut returned = self.returned.drain(..).peekable();
        let mut confirms = self.confirms.runs();
        let mut confirm = confirms.next();
        let mut end = 0;
        for (origin, mut left) in self.origins.iter().copied() {
            while left > 0
                && let Some((outcome, run_len)) = &mut confirm
            {
                let count = left.min(*run_len);
                let (channel, outcome) = (origin.channel, *outcome);
                left -= count;
                *run_len -= count;
                if *run_len == 0 {
                    confirm = confirms.next();
                }
                end += count;
                let back = std::iter::from_fn(|| returned.next_if(|(index, _)| *index < end));
                push_outcome(
                    out,
                    channel,
                    outcome,
                    count,
                    back.map(|(_, message)| message),
                );
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
        self.sets.clear();
        self.newest = 0;
        self.mixed.clear();
        self.queue_count = 0;
        self.log_bytes = 0;
        self.rewritten.clear();
        self.remembered.clear();
        self.messages.clear();
        self.group.clear();
        self.origins.clear();
        self.confirms.clear();
        self.returned.clear();
    }
}

impl Publish {
    fn origin(&self) -> Origin {
        Origin {
            channel: self.channel,
            is_mandatory: self.is_mandatory,
        }
    }
}

/// Adds an outcome of `count` publishes to the newest one, if that is the same.
fn push_outcome(
    out: &mut Vec<PublishedRun>,
    channel: u16,
    confirm: ConfirmAt,
    count: usize,
    returned: impl Iterator<Item = Arc<Message>>,
) {
    match out.last_mut() {
        Some(last) if last.channel == channel && last.confirm == confirm => {
            last.count += count as u64;
            last.returned.extend(returned);
        }
        _ => out.push(PublishedRun {
            channel,
            count: count as u64,
            confirm,
            returned: returned.collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::amqp::field_table::FieldTable;
    use crate::amqp::properties::Properties;
    use crate::amqp::short_string::ShortString;
    use crate::broker::arguments::QueueArguments;
    use crate::broker::queue::{Queue, QueueSpec};
    use crate::storage::types::{Lsn, QueueId};

    fn message(body: &'static str) -> Arc<Message> {
        let name = ShortString::from_static("x");
        let body = vec![Bytes::from_static(body.as_bytes())];
        Arc::new(Message::new(
            name.clone(),
            name,
            Properties::default(),
            body,
        ))
    }

    fn publish(channel: u16, is_mandatory: bool, body: &'static str) -> Publish {
        Publish {
            channel,
            is_mandatory,
            message: message(body),
        }
    }

    fn text(message: &Message) -> String {
        String::from_utf8(message.body().concat()).expect("a text")
    }

    fn durable_queue(id: u64) -> QueueHandle {
        let spec = QueueSpec {
            id: QueueId(id),
            vhost: "/".into(),
            name: ShortString::from_static("q"),
            is_durable: true,
            exclusive_owner: None,
            is_auto_delete: false,
            arguments: FieldTable::default(),
        };
        Queue::new(spec, QueueArguments::default().shared(), Lsn(0), 0)
    }

    /// A run for no queue of four publishes of two channels, the third of which is seen otherwise; and one behind it.
    fn taken() -> (Run, IntoIter<Publish>) {
        let publishes = vec![
            publish(1, false, "a"),
            publish(1, true, "b"),
            publish(2, true, "c"),
            publish(2, true, "d"),
            publish(1, true, "behind"),
        ];
        let mut run = Run::default();
        let nowhere = SharedTargets::default();
        for (index, publish) in publishes.iter().take(4).enumerate() {
            assert!(run.takes(&nowhere));
            let rewritten = (index == 2).then(|| message("c for receivers"));
            run.push(publish, rewritten, Arc::clone(&nowhere));
        }
        let mut publishes = publishes.into_iter();
        run.take_from(&mut publishes);
        (run, publishes)
    }

    #[test]
    fn outcomes_are_told_by_channel_with_what_goes_back_as_it_was_published() {
        let (mut run, publishes) = taken();
        assert_eq!(text(&publishes.as_slice()[0].message), "behind");
        let seen: Vec<String> = run.messages.iter().map(|message| text(message)).collect();
        assert_eq!(seen, ["a", "b", "c for receivers", "d"]);
        for confirm in [
            ConfirmAt::Now,
            ConfirmAt::Now,
            ConfirmAt::Now,
            ConfirmAt::Nack,
        ] {
            run.confirms.push(confirm);
        }
        let mut out = Vec::new();
        run.tell(&mut out);
        let told: Vec<_> = out
            .iter()
            .map(|run| {
                let returned: Vec<String> = run.returned.iter().map(|back| text(back)).collect();
                (run.channel, run.count, run.confirm, returned.join(" "))
            })
            .collect();
        let expected = [
            (1, 2, ConfirmAt::Now, "b".to_owned()),
            (2, 1, ConfirmAt::Now, "c".to_owned()),
            (2, 1, ConfirmAt::Nack, "d".to_owned()),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn queues_that_come_back_are_counted_once() {
        let sets = |count: usize| -> Vec<SharedTargets> {
            (0..count)
                .map(|number| Arc::from([durable_queue(number as u64 + 1)]))
                .collect()
        };
        let few = sets(10);
        let mut run = Run::default();
        for targets in few.iter().cycle().take(300) {
            assert!(run.takes(targets));
            run.push(&publish(1, false, "x"), None, Arc::clone(targets));
        }
        assert!(run.queue_count <= GROUP_QUEUES_MAX && run.len() == 300);
        run.clear();
        let many = sets(2 * GROUP_QUEUES_MAX);
        let taken = many.iter().take_while(|targets| {
            let takes = run.takes(targets);
            if takes {
                run.push(&publish(1, false, "x"), None, Arc::clone(targets));
            }
            takes
        });
        assert_eq!(taken.count(), GROUP_QUEUES_MAX);
    }

    #[test]
    fn what_queues_did_not_take_is_routed_once_more_as_it_was_published() {
        let (mut run, _) = taken();
        run.confirms.push(ConfirmAt::Now);
        run.messages.remove(0);
        let again = run.take_unpublished();
        let seen: Vec<_> = again
            .iter()
            .map(|publish| {
                (
                    publish.channel,
                    publish.is_mandatory,
                    text(&publish.message),
                )
            })
            .collect();
        let expected = [(1, true, "b"), (2, true, "c"), (2, true, "d")];
        assert_eq!(
            seen,
            expected.map(|(channel, must, body)| (channel, must, body.to_owned()))
        );
        // The last one finds no queue this time either.
        for (publish, is_unroutable) in again.into_iter().zip([false, false, true]) {
            run.answer(publish, ConfirmAt::Now, is_unroutable);
        }
        let mut out = Vec::new();
        run.tell(&mut out);
        let told: Vec<_> = out
            .iter()
            .map(|run| (run.channel, run.count, run.returned.len()))
            .collect();
        assert_eq!(told, [(1, 2, 0), (2, 2, 1)]);
        assert_eq!(text(&out[1].returned[0]), "d");
        run.clear();
        assert!(run.is_empty() && run.confirms.is_empty());
    }
}
