//! Properties as values, to make or change them.

use super::{
    BufMut, Bytes, BytesMut, FieldTable, FieldValue, Properties, ShortString, flag, put_short,
};

/// Owned properties, for what the broker makes or changes itself: dead-lettering, direct reply-to, tests.
///
/// Short strings here are bytes, as in [`Properties`]; those over 255 bytes cannot be set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PropertiesBuilder {
    content_type: Option<Bytes>,
    content_encoding: Option<Bytes>,
    headers: Option<FieldTable>,
    delivery_mode: Option<u8>,
    priority: Option<u8>,
    correlation_id: Option<Bytes>,
    reply_to: Option<Bytes>,
    expiration: Option<Bytes>,
    message_id: Option<Bytes>,
    timestamp: Option<u64>,
    message_type: Option<Bytes>,
    user_id: Option<Bytes>,
    app_id: Option<Bytes>,
    cluster_id: Option<Bytes>,
}

impl From<&Properties> for PropertiesBuilder {
    fn from(properties: &Properties) -> Self {
        let share = |value: Option<&[u8]>| value.map(|value| properties.raw.slice_ref(value));
        Self {
            content_type: share(properties.content_type()),
            content_encoding: share(properties.content_encoding()),
            headers: properties.headers(),
            delivery_mode: properties.delivery_mode(),
            priority: properties.priority(),
            correlation_id: share(properties.correlation_id()),
            reply_to: share(properties.reply_to()),
            expiration: share(properties.expiration()),
            message_id: share(properties.message_id()),
            timestamp: properties.timestamp(),
            message_type: share(properties.message_type()),
            user_id: share(properties.user_id()),
            app_id: share(properties.app_id()),
            cluster_id: share(properties.cluster_id()),
        }
    }
}

macro_rules! short_setters {
    ($($(#[$doc:meta])* $name:ident $field:ident,)*) => { $(
        $(#[$doc])*
        pub fn $name(&mut self, value: Option<ShortString>) -> &mut Self {
            self.$field = value.map(|value| value.as_bytes().clone());
            self
        }
    )* };
}

impl PropertiesBuilder {
    /// No properties.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    short_setters! {
        /// Sets or removes the MIME type.
        set_content_type content_type,
        /// Sets or removes the MIME encoding.
        set_content_encoding content_encoding,
        /// Sets or removes the correlation id.
        set_correlation_id correlation_id,
        /// Sets or removes the queue that wants the answer.
        set_reply_to reply_to,
        /// Sets or removes the time to live, milliseconds as text.
        set_expiration expiration,
        /// Sets or removes the message id.
        set_message_id message_id,
        /// Sets or removes the property `type`.
        set_message_type message_type,
        /// Sets or removes the user id.
        set_user_id user_id,
        /// Sets or removes the application id.
        set_app_id app_id,
        /// Sets or removes the reserved cluster id.
        set_cluster_id cluster_id,
    }

    /// Sets or removes the delivery mode.
    pub fn set_delivery_mode(&mut self, value: Option<u8>) -> &mut Self {
        self.delivery_mode = value;
        self
    }

    /// Sets or removes the priority.
    pub fn set_priority(&mut self, value: Option<u8>) -> &mut Self {
        self.priority = value;
        self
    }

    /// Sets or removes the time, seconds since 1970.
    pub fn set_timestamp(&mut self, value: Option<u64>) -> &mut Self {
        self.timestamp = value;
        self
    }

    /// Sets or removes the header table.
    pub fn set_headers(&mut self, value: Option<FieldTable>) -> &mut Self {
        self.headers = value;
        self
    }

    /// The header table, if there is one.
    #[must_use]
    pub fn headers(&self) -> Option<&FieldTable> {
        self.headers.as_ref()
    }

    /// The header table to change it; made when there is none.
    pub fn headers_mut(&mut self) -> &mut FieldTable {
        self.headers.get_or_insert_default()
    }

    /// Sets one header.
    ///
    /// # Panics
    /// When `name` has more than 255 bytes.
    pub fn set_header(&mut self, name: &str, value: impl Into<FieldValue>) -> &mut Self {
        self.headers_mut().set(name, value);
        self
    }

    /// Removes one header, every one of that name; the table stays, even if empty.
    pub fn remove_header(&mut self, name: &str) -> &mut Self {
        if let Some(headers) = &mut self.headers {
            headers.remove(name);
        }
        self
    }

    /// Encodes the properties.
    ///
    /// # Panics
    /// When headers were put in that no decoder takes: nested too deep, or with a float that is no number.
    #[must_use]
    pub fn build(&self) -> Properties {
        Properties::decode(self.encode()).expect("properties made of valid values are valid")
    }

    fn flags(&self) -> u16 {
        let when = |is_present: bool, flag: u16| if is_present { flag } else { 0 };
        when(self.content_type.is_some(), flag::CONTENT_TYPE)
            | when(self.content_encoding.is_some(), flag::CONTENT_ENCODING)
            | when(self.headers.is_some(), flag::HEADERS)
            | when(self.delivery_mode.is_some(), flag::DELIVERY_MODE)
            | when(self.priority.is_some(), flag::PRIORITY)
            | when(self.correlation_id.is_some(), flag::CORRELATION_ID)
            | when(self.reply_to.is_some(), flag::REPLY_TO)
            | when(self.expiration.is_some(), flag::EXPIRATION)
            | when(self.message_id.is_some(), flag::MESSAGE_ID)
            | when(self.timestamp.is_some(), flag::TIMESTAMP)
            | when(self.message_type.is_some(), flag::TYPE)
            | when(self.user_id.is_some(), flag::USER_ID)
            | when(self.app_id.is_some(), flag::APP_ID)
            | when(self.cluster_id.is_some(), flag::CLUSTER_ID)
    }

    /// Flags and values, in wire order.
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u16(self.flags());
        put_optional(&mut out, self.content_type.as_ref());
        put_optional(&mut out, self.content_encoding.as_ref());
        if let Some(headers) = &self.headers {
            headers.encode(&mut out);
        }
        out.extend(self.delivery_mode);
        out.extend(self.priority);
        put_optional(&mut out, self.correlation_id.as_ref());
        put_optional(&mut out, self.reply_to.as_ref());
        put_optional(&mut out, self.expiration.as_ref());
        put_optional(&mut out, self.message_id.as_ref());
        if let Some(seconds) = self.timestamp {
            out.put_u64(seconds);
        }
        put_optional(&mut out, self.message_type.as_ref());
        put_optional(&mut out, self.user_id.as_ref());
        put_optional(&mut out, self.app_id.as_ref());
        put_optional(&mut out, self.cluster_id.as_ref());
        out.freeze()
    }
}

fn put_optional(out: &mut BytesMut, value: Option<&Bytes>) {
    if let Some(value) = value {
        put_short(out, value);
    }
}
