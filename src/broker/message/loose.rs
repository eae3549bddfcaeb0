//! Messages that stay where they were read: the head is put together in front of the body.
//!
//! ```text
//!   read    | names | .. | properties | frame's end and header | body |
//!   made                      | flags | names | .. | properties | body |
//! ```
//! What the protocol has between the parts is longer than what a head has there, so every part moves towards the body, and the
//! body, which is nearly all of it, does not move at all.

use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};
use smallvec::SmallVec;

use super::layout::Layout;
use super::stored::Stored;
use super::{Message, length_u32};
use crate::amqp::properties::Checked;

/// A message that was published in few frames: where it lies in bytes that end with its body.
#[derive(Clone, Debug)]
pub struct LooseMessage {
    /// Exchange and routing key, as in [`RawMessage::names`](super::RawMessage::names).
    pub names: Range<usize>,
    /// Bytes of the exchange's name.
    pub exchange_len: u8,
    /// Bytes of the routing key.
    pub routing_key_len: u8,
    /// The property section.
    pub properties: Range<usize>,
    /// What the check of it has found.
    pub checked: Checked,
    /// Where the body begins: the head fits in front of it, and none of its parts lies further behind than it will.
    pub body_at: usize,
}

impl Message {
    /// A message as published, which goes on lying in `bytes`.
    ///
    /// # Panics
    /// When it does not lie there, or there is no room for the head: whoever found it has seen to that.
    #[must_use]
    pub fn from_loose(mut bytes: BytesMut, loose: &LooseMessage) -> Self {
        let [len_0, len_1, len_2, len_3] = length_u32(loose.properties.len()).to_le_bytes();
        // From the back: no part is written over before it has moved.
        let mut at = loose.body_at - loose.properties.len();
        bytes.copy_within(loose.properties.clone(), at);
        let between = [0, 0, len_0, len_1, len_2, len_3];
        at -= between.len();
        bytes[at..at + between.len()].copy_from_slice(&between);
        at -= loose.names.len();
        bytes.copy_within(loose.names.clone(), at);
        at -= 1;
        bytes[at] = 0;
        let layout = Layout::published(
            (loose.exchange_len, loose.routing_key_len),
            loose.names.len(),
            loose.properties.len(),
            loose.checked,
        );
        debug_assert_eq!(at + layout.body_at(), loose.body_at);
        bytes.advance(at);
        Self::of_stored(layout, Stored::of_one(bytes.freeze()))
    }

    /// A message published as this one was, whose body begins at `body_at` of `bytes`, ends with them and stays there.
    ///
    /// # Panics
    /// As [`from_loose`](Self::from_loose), for a head as long as this one's.
    #[must_use]
    pub fn with_body_in(&self, mut bytes: BytesMut, body_at: usize) -> Self {
        let (before_body, _) = self.head().split_at(self.layout.body_at());
        let at = body_at - before_body.len();
        bytes[at..body_at].copy_from_slice(before_body);
        bytes.advance(at);
        Self::of_stored(self.layout, Stored::of_one(bytes.freeze()))
    }
}

impl Stored {
    /// Head and body in one piece, which is left where it is.
    fn of_one(payload: Bytes) -> Self {
        Self::Parts(SmallVec::from_buf([payload]))
    }
}

#[cfg(test)]
mod tests {
    use super::super::RawMessage;
    use super::super::layout::HEAD_BYTES;
    use super::*;
    use crate::amqp::properties::PropertiesBuilder;
    use crate::amqp::short_string::ShortString;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_message_that_stays_where_it_is_is_the_one_that_is_copied(
            exchange in "[a-z]{0,20}",
            routing_key in "[a-z]{0,20}",
            content_type in prop::option::of("[a-z]{0,20}"),
            bodies in prop::collection::vec(0usize..3000, 1..4),
            gaps in (0usize..4, HEAD_BYTES..40, 0usize..4),
        ) {
            let mut properties = PropertiesBuilder::new();
            properties
                .set_delivery_mode(Some(2))
                .set_content_type(content_type.map(|text| ShortString::new(text.into()).expect("short")));
            let properties = properties.build();
            let len = |text: &str| u8::try_from(text.len()).expect("short");
            let mut names = vec![len(&exchange)];
            names.extend_from_slice(exchange.as_bytes());
            names.push(len(&routing_key));
            names.extend_from_slice(routing_key.as_bytes());
            let mut first: Option<Message> = None;
            for body_len in bodies {
                let body = vec![b'x'; body_len];
                let mut bytes = BytesMut::from(&vec![1; gaps.0][..]);
                bytes.extend_from_slice(&names);
                bytes.extend_from_slice(&vec![2; gaps.1]);
                let properties_at = bytes.len();
                bytes.extend_from_slice(properties.raw());
                bytes.extend_from_slice(&vec![3; gaps.2]);
                let body_at = bytes.len();
                bytes.extend_from_slice(&body);
                let memory = bytes.as_ptr_range();
                let message = match &first {
                    Some(first) => first.with_body_in(bytes, body_at),
                    None => Message::from_loose(bytes, &LooseMessage {
                        names: gaps.0..gaps.0 + names.len(),
                        exchange_len: len(&exchange),
                        routing_key_len: len(&routing_key),
                        properties: properties_at..properties_at + properties.raw().len(),
                        checked: properties.checked(),
                        body_at,
                    }),
                };
                let copied = Message::from_raw(&RawMessage {
                    names: &names,
                    exchange_len: len(&exchange),
                    routing_key_len: len(&routing_key),
                    properties: properties.raw(),
                    checked: properties.checked(),
                    body: &body,
                });
                prop_assert!(memory.contains(&message.head().as_ptr()));
                prop_assert_eq!(message.payload().concat(), copied.payload().concat());
                prop_assert_eq!(message.payload_crc(), copied.payload_crc());
                prop_assert_eq!(format!("{:?}", message.layout), format!("{:?}", copied.layout));
                first.get_or_insert(message);
            }
        }
    }
}
