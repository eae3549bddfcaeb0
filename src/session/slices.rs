//! Publishes that become messages where they lie in the read buffer.
//!
//! ```text
//!   input --PublishReader--> [ where 64 of them lie ] --split off, one by one--> Message = slice of input
//! ```
//! A body of a kilobyte is not copied to memory that the caches have forgotten, and that nobody has to find and to free. What is
//! read is looked at first and taken afterwards: while the reader compares each publish with the one before, nothing may move.
//!
//! 1. As in [`publishes`](super::publishes), what becomes of a publish is what the path frame by frame would make of it.
//! 2. A message keeps the whole buffer. So the caller counts the buffers it allows this for, and bodies that are short beside what
//!    surrounds them are copied.

use std::sync::Arc;

use bytes::BytesMut;
use smallvec::SmallVec;

use super::Session;
use super::publishes::{Counted, PUBLISH_RUN_MAX};
use crate::amqp::raw_publish::{PublishReader, RawPublish};
use crate::broker::command::Publish;
use crate::broker::message::{LooseMessage, Message};

/// Shorter bodies are copied: two counts of those who share the buffer cost what that costs, and the buffer is free sooner.
pub const SLICED_BODY_MIN_BYTES: usize = 512;

/// Publishes that are looked at before the first of them is taken.
const FOUND_MAX: usize = 64;
const _: () = assert!(PUBLISH_RUN_MAX.is_multiple_of(FOUND_MAX));

/// A publish that was found, but not taken yet.
struct Found {
    channel: u16,
    is_mandatory: bool,
    /// All but the body is as in the one before it.
    is_repeated: bool,
    /// Bytes of all its frames, up to the body's end.
    body_end: usize,
    /// Bytes of all its frames.
    frames_len: usize,
    message: LooseMessage,
}

impl Session {
    /// Takes the publishes at the front of `input` as [`receive_publishes`](Self::receive_publishes) does, as long as their bodies
    /// are not short, as slices of it.
    pub(super) fn receive_slices(&mut self, input: &mut BytesMut) -> bool {
        let mut run: Vec<Publish> = Vec::new();
        let mut has_taken = false;
        loop {
            let found = self.find_publishes(input);
            let Some(first) = found.first() else {
                break;
            };
            has_taken = true;
            if run.is_empty() {
                let count = input.len() / first.frames_len.max(1);
                run.reserve(count.clamp(found.len(), PUBLISH_RUN_MAX));
            }
            for publish in &found {
                let publish = publish.take(input, run.last());
                run.push(publish);
            }
            if run.len() > PUBLISH_RUN_MAX - FOUND_MAX {
                self.push_run(std::mem::take(&mut run));
            }
            if found.len() < FOUND_MAX {
                break;
            }
        }
        self.push_run(run);
        has_taken
    }

    /// Looks for the next few publishes that are ordinary ones, and counts them as taken.
    fn find_publishes(&mut self, input: &[u8]) -> SmallVec<[Found; FOUND_MAX]> {
        let mut all = SmallVec::new();
        if !self.may_receive_publishes(input) {
            return all;
        }
        let mut counted = Counted::default();
        for raw in PublishReader::new(input, self.frame_max_bytes, self.body_max_bytes()) {
            if raw.body.len() < SLICED_BODY_MIN_BYTES || !self.takes(&raw, &mut counted) {
                break;
            }
            all.push(Found::of(&raw));
            if all.len() == FOUND_MAX {
                break;
            }
        }
        self.count_publishes(&counted);
        all
    }
}

impl Found {
    fn of(raw: &RawPublish<'_>) -> Self {
        let body_at = raw.body_at();
        Self {
            channel: raw.channel,
            is_mandatory: raw.is_mandatory,
            is_repeated: raw.is_repeated,
            body_end: body_at + raw.body.len(),
            frames_len: raw.frames_len,
            message: LooseMessage {
                names: raw.names_range(),
                exchange_len: raw.exchange_len,
                routing_key_len: raw.routing_key_len,
                properties: raw.properties_range(),
                checked: raw.checked,
                body_at,
            },
        }
    }

    /// Takes it off the front of `input`; `before` is the one that was taken before it.
    #[inline]
    fn take(&self, input: &mut BytesMut, before: Option<&Publish>) -> Publish {
        let mut frames = input.split_to(self.frames_len);
        frames.truncate(self.body_end);
        let message = match before {
            Some(before) if self.is_repeated => {
                before.message.with_body_in(frames, self.message.body_at)
            }
            _ => Message::from_loose(frames, &self.message),
        };
        Publish {
            channel: self.channel,
            is_mandatory: self.is_mandatory,
            message: Arc::new(message),
        }
    }
}
