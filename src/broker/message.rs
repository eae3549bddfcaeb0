//! A message: where it was published, its properties and its body.

use bytes::Bytes;

use crate::amqp::properties::Properties;
use crate::amqp::short_string::ShortString;

/// An immutable message, shared by all queues and consumers that hold it.
#[derive(Debug)]
pub struct Message {
    exchange: ShortString,
    routing_key: ShortString,
    properties: Properties,
    body: Vec<Bytes>,
}

impl Message {
    /// A message as published.
    #[must_use]
    pub fn new(
        exchange: ShortString,
        routing_key: ShortString,
        properties: Properties,
        body: Vec<Bytes>,
    ) -> Self {
        Self {
            exchange,
            routing_key,
            properties,
            body,
        }
    }
    /// Exchange it was published to.
    #[must_use]
    pub fn exchange(&self) -> &ShortString {
        &self.exchange
    }
    /// Routing key it was published with.
    #[must_use]
    pub fn routing_key(&self) -> &ShortString {
        &self.routing_key
    }
    /// Its properties.
    #[must_use]
    pub fn properties(&self) -> &Properties {
        &self.properties
    }
    /// Its body, in parts.
    #[must_use]
    pub fn body(&self) -> &[Bytes] {
        &self.body
    }
    /// Bytes of the body.
    #[must_use]
    pub fn body_len(&self) -> usize {
        self.body.iter().map(Bytes::len).sum()
    }
    /// Bytes it keeps in memory.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.body_len() + self.properties.raw().len() + self.routing_key.as_bytes().len()
    }
}
