//! The published message: a template of its frames, and the stamp at the start of its body.
//!
//! ```text
//!  0        4            6      10         16
//!  +--------+------------+------+----------+------------
//!  | run    | publisher  | seq  | sent_ns  | zeros ...      big-endian
//!  +--------+------------+------+----------+------------
//! ```
//! 16 bytes, so that messages as small as that can be measured. What does not fit is cut to the greatest value: the ledger knows
//! neither so many publishers nor so many messages, and 48 bits of nanoseconds are three days.

use bytes::BytesMut;
use std::sync::Arc;
use stratamq::amqp::content::ContentHeader;
use stratamq::amqp::frame::{self, FrameKind};
use stratamq::amqp::limits::{FRAME_HEADER_BYTES, FRAME_MAX_DEFAULT, FRAME_OVERHEAD_BYTES};
use stratamq::amqp::method::{Method, basic};
use stratamq::amqp::properties::Properties;
use stratamq::amqp::short_string::ShortString;

/// Bytes of a stamp.
pub(crate) const STAMP_BYTES: usize = 16;
/// Publishers that stamps can tell apart.
pub(crate) const PUBLISHERS_MAX: u32 = u16::MAX as u32;
/// The latest time that a stamp can say.
const SENT_MAX_NS: u64 = (1 << 48) - 1;

/// What a body says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Which run of the generator.
    pub(crate) run: u32,
    /// Which of its publishers.
    pub(crate) publisher: u32,
    /// Which of the publisher's messages, from 0.
    pub(crate) seq: u64,
    /// When, by the run's clock.
    pub(crate) sent_ns: u64,
}

impl Stamp {
    pub(crate) fn encode(self) -> [u8; STAMP_BYTES] {
        let publisher = u16::try_from(self.publisher).unwrap_or(u16::MAX);
        let seq = u32::try_from(self.seq).unwrap_or(u32::MAX);
        let [_, _, sent_ns @ ..] = self.sent_ns.min(SENT_MAX_NS).to_be_bytes();
        let mut bytes = [0; STAMP_BYTES];
        bytes[..4].copy_from_slice(&self.run.to_be_bytes());
        bytes[4..6].copy_from_slice(&publisher.to_be_bytes());
        bytes[6..10].copy_from_slice(&seq.to_be_bytes());
        bytes[10..].copy_from_slice(&sent_ns);
        bytes
    }

    /// Reads the stamp at the start of a body; `None` for a body that is too short to have one.
    pub(crate) fn decode(body: &[u8]) -> Option<Self> {
        let (run, rest) = body.split_first_chunk()?;
        let (publisher, rest) = rest.split_first_chunk()?;
        let (seq, rest) = rest.split_first_chunk()?;
        let (&[a, b, c, d, e, f], _) = rest.split_first_chunk()?;
        Some(Self {
            run: u32::from_be_bytes(*run),
            publisher: u32::from(u16::from_be_bytes(*publisher)),
            seq: u64::from(u32::from_be_bytes(*seq)),
            sent_ns: u64::from_be_bytes([0, 0, a, b, c, d, e, f]),
        })
    }
}

/// All frames of a message to one queue; publishing is two copies and a stamp.
///
/// The frames behind the method are the same for all queues and stand in memory once: with a copy for each of a thousand
/// queues the generator would wait for its own memory, and more queues would look slow that are not.
pub(crate) struct Template {
    method: Box<[u8]>,
    content: Arc<ContentFrames>,
}

/// Header and body of a message.
pub(crate) struct ContentFrames {
    frames: BytesMut,
    stamp_at: usize,
}

impl Template {
    pub(crate) fn new(
        exchange: &ShortString,
        queue: &ShortString,
        content: &Arc<ContentFrames>,
    ) -> Self {
        let mut method = BytesMut::new();
        let publish = basic::Publish {
            exchange: exchange.clone(),
            routing_key: queue.clone(),
            ..basic::Publish::default()
        };
        Method::from(publish).encode(&mut method, 1);
        Self {
            method: method.to_vec().into(),
            content: Arc::clone(content),
        }
    }

    /// Bytes of one message with all its frames.
    pub(crate) fn len(&self) -> usize {
        self.method.len() + self.content.frames.len()
    }

    /// Appends a message.
    pub(crate) fn put(&self, out: &mut BytesMut, stamp: Stamp) {
        out.extend_from_slice(&self.method);
        let start = out.len() + self.content.stamp_at;
        out.extend_from_slice(&self.content.frames);
        out[start..start + STAMP_BYTES].copy_from_slice(&stamp.encode());
    }
}

impl ContentFrames {
    pub(crate) fn new(properties: &Properties, body_size: usize, frame_max: u32) -> Self {
        let mut frames = BytesMut::new();
        let header = ContentHeader {
            body_size_bytes: body_size as u64,
            properties: properties.clone(),
        };
        header.encode(&mut frames, 1);
        let stamp_at = frames.len() + FRAME_HEADER_BYTES;
        let frame_max = if frame_max == 0 {
            FRAME_MAX_DEFAULT
        } else {
            frame_max
        };
        let part_max = frame_max.saturating_sub(FRAME_OVERHEAD_BYTES).max(1) as usize;
        let mut left = body_size;
        while left > 0 {
            let part = left.min(part_max);
            frame::encode(&mut frames, FrameKind::Body, 1, |out| {
                out.resize(out.len() + part, 0)
            });
            left -= part;
        }
        Self { frames, stamp_at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(publisher: u32, seq: u64, sent_ns: u64, expected: (u32, u64, u64)) {
        let stamp = Stamp {
            run: 0xfeed_beef,
            publisher,
            seq,
            sent_ns,
        };
        let read = Stamp::decode(&stamp.encode()).expect("it is long enough");
        assert_eq!(read.run, 0xfeed_beef);
        assert_eq!((read.publisher, read.seq, read.sent_ns), expected);
    }

    #[test]
    fn a_stamp_says_what_was_written_or_the_greatest_value() {
        check(0, 0, 0, (0, 0, 0));
        check(65_534, 1 << 31, 1 << 47, (65_534, 1 << 31, 1 << 47));
        check(
            1 << 16,
            1 << 40,
            u64::MAX,
            (65_535, u64::from(u32::MAX), SENT_MAX_NS),
        );
        assert_eq!(Stamp::decode(&[0; STAMP_BYTES - 1]), None);
    }
}
