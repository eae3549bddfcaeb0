//! Deliveries to one consumer that follow each other.
//!
//! ```text
//!   method frame: .. consumer tag | delivery tag, redelivered | names | header frame: body size, properties | body frame head | body
//!   '--------------------------- head: kept for the next delivery ------------------------------------------------'
//! ```
//! Messages of one queue mostly look the same but for the body. What stands before the body is put together once; for each
//! delivery only its number and the redelivered bit are written anew. A message with other names, properties or length has the
//! head made anew. That takes as long as writing three deliveries at once: for fewer a run is not worth it.

use bytes::BufMut;

use super::{DeliverHead, FrameSink, HEADER_BYTES, Lane, METHOD_BYTES, RawContent, encode_deliver};
use crate::amqp::frame::{FRAME_END, FrameKind};
use crate::amqp::limits::{CHUNK_MIN_BYTES, FRAME_HEADER_BYTES};
use crate::amqp::method::basic;

/// Longest head that is kept; a delivery with a longer one is encoded by itself.
const HEAD_MAX_BYTES: usize = 512;
/// Delivery tag and redelivered bit.
const TAG_BYTES: usize = 8 + 1;
/// Kind, channel and length of a frame, with the end of the frame before it.
const FRAME_START_BYTES: usize = 1 + FRAME_HEADER_BYTES;

/// See the module.
#[derive(Debug)]
pub struct DeliverRun<'a> {
    lane: Lane,
    /// The bytes of a [`ShortString`](crate::amqp::short_string::ShortString).
    consumer_tag: &'a [u8],
    head: [u8; HEAD_MAX_BYTES],
    /// Bytes of `head`; 0 for none.
    head_len: usize,
    /// What it was made for.
    names_len: usize,
    properties_len: usize,
    body_len: usize,
}

impl<'a> DeliverRun<'a> {
    /// Nothing was delivered yet. The tag is that of a consumer: at most 255 bytes.
    #[must_use]
    pub fn new(lane: Lane, consumer_tag: &'a [u8]) -> Self {
        Self {
            lane,
            consumer_tag,
            head: [0; HEAD_MAX_BYTES],
            head_len: 0,
            names_len: 0,
            properties_len: 0,
            body_len: 0,
        }
    }

    /// Appends what [`encode_deliver`] does. The names are exchange and routing key, as in [`DeliverHead`].
    #[inline]
    pub fn put(
        &mut self,
        sink: &mut impl FrameSink,
        delivery_tag: u64,
        is_redelivered: bool,
        names: &[u8],
        content: &RawContent<'_>,
    ) {
        if self
            .put_small(sink, delivery_tag, is_redelivered, names, content)
            .is_none()
        {
            let head = DeliverHead {
                consumer_tag: self.consumer_tag,
                delivery_tag,
                is_redelivered,
                names,
            };
            encode_deliver(sink, self.lane, &head, content);
        }
    }

    /// Appends a delivery whose body is small and in one piece; `None` when it is not, or its head is long, and then nothing
    /// was appended.
    #[inline]
    pub(super) fn put_small(
        &mut self,
        sink: &mut impl FrameSink,
        delivery_tag: u64,
        is_redelivered: bool,
        names: &[u8],
        content: &RawContent<'_>,
    ) -> Option<()> {
        let body = content.whole_body()?;
        if body.len() >= CHUNK_MIN_BYTES || body.len() > self.lane.body_frame_max_bytes {
            return None;
        }
        if !self.is_like_last(names, content.properties, body.len()) {
            self.fill(names, content.properties, body.len())?;
        }
        let tag_at = self.names_at() - TAG_BYTES;
        let head = self.head.get_mut(..self.head_len)?;
        let (number, redelivered) = head.get_mut(tag_at..)?.split_first_chunk_mut::<8>()?;
        *number = delivery_tag.to_be_bytes();
        *redelivered.first_mut()? = u8::from(is_redelivered);
        let out = sink.room(head.len() + body.len() + 1);
        out.extend_from_slice(head);
        if !body.is_empty() {
            out.extend_from_slice(body);
            out.extend_from_slice(&[FRAME_END]);
        }
        Some(())
    }

    /// Where the names stand in the head.
    fn names_at(&self) -> usize {
        FRAME_HEADER_BYTES + METHOD_BYTES + self.consumer_tag.len()
    }

    /// True when the head is that of a message which says the same.
    #[inline]
    fn is_like_last(&self, names: &[u8], properties: &[u8], body_len: usize) -> bool {
        let names_end = self.names_at() + self.names_len;
        let properties_at = names_end + FRAME_START_BYTES + HEADER_BYTES;
        let properties_end = properties_at + self.properties_len;
        self.head_len > 0
            && self.body_len == body_len
            && self.head.get(self.names_at()..names_end) == Some(names)
            && self.head.get(properties_at..properties_end) == Some(properties)
    }

    /// Makes the head, but for number and redelivered bit; `None` when it is too long.
    fn fill(&mut self, names: &[u8], properties: &[u8], body_len: usize) -> Option<()> {
        self.head_len = 0;
        let names_end = self.names_at() + names.len();
        let properties_at = names_end + FRAME_START_BYTES + HEADER_BYTES;
        let frame_start_bytes = match body_len {
            0 => 1,
            _ => FRAME_START_BYTES,
        };
        let head_len = properties_at + properties.len() + frame_start_bytes;
        let consumer_tag_len = u8::try_from(self.consumer_tag.len()).ok()?;
        let method_len = METHOD_BYTES + self.consumer_tag.len() + names.len();
        let header_len = HEADER_BYTES + properties.len();
        let channel = self.lane.channel;
        let mut rest = self.head.get_mut(..head_len)?;
        let put_frame_header = |rest: &mut &mut [u8], kind: FrameKind, len: usize| {
            rest.put_u8(kind.octet());
            rest.put_u16(channel);
            u32::try_from(len).map(|len| rest.put_u32(len)).ok()
        };
        put_frame_header(&mut rest, FrameKind::Method, method_len)?;
        rest.put_u16(basic::CLASS_ID);
        rest.put_u16(basic::Deliver::ID.method_id);
        rest.put_u8(consumer_tag_len);
        rest.put_slice(self.consumer_tag);
        rest.put_bytes(0, TAG_BYTES);
        rest.put_slice(names);
        rest.put_u8(FRAME_END);
        put_frame_header(&mut rest, FrameKind::Header, header_len)?;
        rest.put_u16(basic::CLASS_ID);
        rest.put_u16(0);
        rest.put_u64(u64::try_from(body_len).ok()?);
        rest.put_slice(properties);
        rest.put_u8(FRAME_END);
        if body_len > 0 {
            put_frame_header(&mut rest, FrameKind::Body, body_len)?;
        }
        self.names_len = names.len();
        self.properties_len = properties.len();
        self.body_len = body_len;
        self.head_len = head_len;
        Some(())
    }
}
