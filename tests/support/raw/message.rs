//! Messages as tests make and compare them.

use bytes::Bytes;
use stratamq::amqp::properties::{DELIVERY_MODE_PERSISTENT, Properties, PropertiesBuilder};
use stratamq::amqp::short_string::ShortString;

/// A short string of a test.
#[track_caller]
pub(crate) fn text(text: &str) -> ShortString {
    ShortString::from_text(text).expect("names in tests have at most 255 bytes")
}

/// Properties and body.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Message {
    /// The properties, as on the wire.
    pub(crate) properties: Properties,
    /// The body.
    pub(crate) body: Bytes,
}

impl Message {
    /// No properties.
    pub(crate) fn plain(body: impl Into<Bytes>) -> Self {
        Self {
            properties: Properties::default(),
            body: body.into(),
        }
    }

    /// Delivery mode 2.
    pub(crate) fn persistent(body: impl Into<Bytes>) -> Self {
        Self::with(body, |properties| {
            properties.set_delivery_mode(Some(DELIVERY_MODE_PERSISTENT));
        })
    }

    /// Properties of the test's choice.
    pub(crate) fn with(
        body: impl Into<Bytes>,
        change: impl FnOnce(&mut PropertiesBuilder),
    ) -> Self {
        let mut properties = PropertiesBuilder::new();
        change(&mut properties);
        Self {
            properties: properties.build(),
            body: body.into(),
        }
    }

    /// The body as text, for messages of tests.
    pub(crate) fn body_text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}
