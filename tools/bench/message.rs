//! The published message: a template of its frames, and the stamp at the start of its body.
//!
//! ```text
//!  0        4            8          16         24
//!  +--------+------------+----------+----------+------------
//!  | run    | publisher  | seq      | sent_ns  | zeros ...      big-endian
//!  +--------+------------+----------+----------+------------
//! ```

use bytes::BytesMut;
use std::sync::Arc;
use stratamq::amqp::content::ContentHeader;
use stratamq::amqp::frame::{self, FrameKind};
use stratamq::amqp::limits::{FRAME_HEADER_BYTES, FRAME_MAX_DEFAULT, FRAME_OVERHEAD_BYTES};
use stratamq::amqp::method::{Method, basic};
use stratamq::amqp::properties::Properties;
use stratamq::amqp::short_string::ShortString;

/// Bytes of a stamp.
pub(crate) const STAMP_BYTES: usize = 24;

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
        let mut bytes = [0; STAMP_BYTES];
        bytes[..4].copy_from_slice(&self.run.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.publisher.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.seq.to_be_bytes());
        bytes[16..].copy_from_slice(&self.sent_ns.to_be_bytes());
        bytes
    }

    /// Reads the stamp at the start of a body; `None` for a body that is too short to have one.
    pub(crate) fn decode(body: &[u8]) -> Option<Self> {
        let (run, rest) = body.split_first_chunk()?;
        let (publisher, rest) = rest.split_first_chunk()?;
        let (seq, rest) = rest.split_first_chunk()?;
        let (sent_ns, _) = rest.split_first_chunk()?;
        Some(Self {
            run: u32::from_be_bytes(*run),
            publisher: u32::from_be_bytes(*publisher),
            seq: u64::from_be_bytes(*seq),
            sent_ns: u64::from_be_bytes(*sent_ns),
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
