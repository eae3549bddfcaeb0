//! Publishes from the read buffer to the list of things to poll: many at once, where nothing is in the way.
//!
//! ```text
//!   input --PublishReader--> RawPublish --> Message --> Work::Publishes [ p1 p2 p3 .. ] --poll_publishes--> server
//!      \-- anything else -------> frame by frame ------------^
//! ```
//! 1. What is taken here, and what becomes of it, is what the path frame by frame would make of it. A publish with which
//!    that path would do anything else (hold it back, refuse it, add it to a transaction, stop the client) is left to it, and
//!    nothing has changed then.
//! 2. A publish that repeats the one before but for its body is made from that one's message.
//! 3. The buffer is advanced once, behind the last publish taken; messages are copies of what they need of it.

use std::sync::Arc;

use bytes::{Buf, BytesMut};

use super::channel::{ChannelState, Mode};
use super::content::Content;
use super::event::Event;
use super::{Phase, Session, Work};
use crate::amqp::raw_publish::{PublishReader, RawPublish};
use crate::broker::command::Publish;
use crate::broker::message::{COPIED_BODY_MAX_BYTES, Message, RawMessage};

/// Publishes in one list of them: as many as the server gathers, which then takes the list.
pub const PUBLISH_RUN_MAX: usize = 512;

/// Publishes of one channel that follow each other, taken and not yet counted there.
#[derive(Debug, Default)]
pub(super) struct Counted {
    channel: Option<u16>,
    count: u64,
}

impl Session {
    /// Takes the publishes at the front of `input` as long as they are ordinary ones; true when there was one. Only while
    /// [`wants_input`](Self::wants_input), which no ordinary publish changes.
    pub(super) fn receive_publishes(&mut self, input: &mut BytesMut) -> bool {
        if !self.may_receive_publishes(input) {
            return false;
        }
        let mut taken_bytes = 0;
        let mut run = Vec::new();
        let mut counted = Counted::default();
        for raw in PublishReader::new(input, self.frame_max_bytes, self.body_max_bytes()) {
            if !self.takes(&raw, &mut counted) {
                break;
            }
            taken_bytes += raw.frames_len;
            let publish = match run.last() {
                Some(before) if raw.is_repeated => repeated(before, &raw),
                _ => publish(&raw),
            };
            if run.is_empty() {
                let count = input.len() / raw.frames_len.max(1);
                run.reserve(count.clamp(1, PUBLISH_RUN_MAX));
            }
            run.push(publish);
            if run.len() >= PUBLISH_RUN_MAX {
                self.push_run(std::mem::take(&mut run));
            }
        }
        self.count_publishes(&counted);
        input.advance(taken_bytes);
        self.push_run(run);
        taken_bytes > 0
    }

    /// True when `input` may begin with a publish that nothing is in the way of.
    pub(super) fn may_receive_publishes(&self, input: &[u8]) -> bool {
        let is_ordinary = matches!(self.phase, Phase::Running) && self.alarm.reason.is_none();
        is_ordinary && PublishReader::may_read(input)
    }

    /// Bytes of the longest body that is not the general path's.
    pub(super) fn body_max_bytes(&self) -> usize {
        let max_bytes = usize::try_from(self.options.message_max_bytes);
        max_bytes.map_or(COPIED_BODY_MAX_BYTES, |max_bytes| {
            max_bytes.min(COPIED_BODY_MAX_BYTES)
        })
    }

    /// Counts a publish as taken; false when it cannot be, and nothing was changed.
    #[inline]
    pub(super) fn takes(&mut self, raw: &RawPublish<'_>, counted: &mut Counted) -> bool {
        if counted.channel != Some(raw.channel) {
            if !self.takes_publishes(raw.channel) {
                return false;
            }
            self.count_publishes(counted);
            *counted = Counted {
                channel: Some(raw.channel),
                count: 0,
            };
        }
        // Counted as a body that may stay unfinished is; what to do when there are too many is not decided here.
        let unfinished_bytes = self.unfinished_bytes + raw.body.len() as u64;
        if unfinished_bytes > self.options.unfinished_max_bytes {
            return false;
        }
        self.unfinished_bytes = unfinished_bytes;
        counted.count += 1;
        true
    }

    /// Adds publishes to those that wait to be polled: to the last of them, or beside them when they are many.
    pub(super) fn push_run(&mut self, run: Vec<Publish>) {
        if run.is_empty() {
            return;
        }
        match self.work.back_mut() {
            Some(Work::Publishes(before)) if before.len() + run.len() <= PUBLISH_RUN_MAX => {
                before.extend(run);
            }
            _ => self.work.push_back(Work::Publishes(run.into())),
        }
    }

    /// The channel takes a publish now, and gives it to the broker at once.
    fn takes_publishes(&self, id: u16) -> bool {
        self.channels.get(&id).is_some_and(|channel| {
            matches!(channel.state, ChannelState::Open)
                && matches!(channel.content, Content::Idle)
                && matches!(channel.mode, Mode::Plain | Mode::Confirm(_))
        })
    }

    /// Tells their channel about publishes that were taken.
    pub(super) fn count_publishes(&mut self, counted: &Counted) {
        if let Some(channel) = counted.channel.and_then(|id| self.channels.get_mut(&id)) {
            channel.unanswered_publish_count += counted.count;
        }
    }

    /// Adds a publish to those that wait to be polled.
    pub(super) fn push_publish(&mut self, publish: Publish) {
        match self.work.back_mut() {
            Some(Work::Publishes(run)) if run.len() < PUBLISH_RUN_MAX => run.push_back(publish),
            _ => self.work.push_back(Work::Publishes([publish].into())),
        }
    }

    /// What [`poll_event`](Self::poll_event) would return next, as long as it is an [`Event::Publish`]: appended to `batch` until
    /// that holds `count_max` of them. Answered as those are.
    pub fn poll_publishes(&mut self, batch: &mut Vec<Publish>, count_max: usize) {
        while let Some(Work::Publishes(run)) = self.work.front_mut()
            && batch.len() < count_max
        {
            if batch.is_empty() && run.len() <= count_max {
                // Changes hands as it is.
                *batch = Vec::from(std::mem::take(run));
            } else {
                let count = run.len().min(count_max - batch.len());
                batch.extend(run.drain(..count));
            }
            if run.is_empty() {
                self.work.pop_front();
            }
        }
    }

    /// The first of the publishes that are next.
    pub(super) fn poll_publish(&mut self) -> Option<Event> {
        let Some(Work::Publishes(run)) = self.work.front_mut() else {
            return None;
        };
        let publish = run.pop_front();
        if run.is_empty() {
            self.work.pop_front();
        }
        publish.map(Event::Publish)
    }
}

/// A publish that has nothing but its body of its own.
#[inline]
fn repeated(before: &Publish, raw: &RawPublish<'_>) -> Publish {
    Publish {
        channel: raw.channel,
        is_mandatory: raw.is_mandatory,
        message: Arc::new(before.message.with_body(raw.body)),
    }
}

fn publish(raw: &RawPublish<'_>) -> Publish {
    let message = RawMessage {
        names: raw.names,
        exchange_len: raw.exchange_len,
        routing_key_len: raw.routing_key_len,
        properties: raw.properties,
        checked: raw.checked,
        body: raw.body,
    };
    Publish {
        channel: raw.channel,
        is_mandatory: raw.is_mandatory,
        message: Arc::new(Message::from_raw(&message)),
    }
}
