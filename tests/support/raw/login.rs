//! Who logs in, and with which limits.

use bytes::Bytes;
use stratamq::amqp::field_table::{FieldTable, FieldValue};

use super::FRAME_MAX;

/// How to log in; the default is what a usual client does.
#[derive(Clone, Debug)]
pub(crate) struct Login {
    /// SASL mechanism.
    pub(crate) mechanism: &'static str,
    /// User.
    pub(crate) user: String,
    /// Password.
    pub(crate) password: String,
    /// Virtual host.
    pub(crate) vhost: String,
    /// Largest frame, answered in tune-ok.
    pub(crate) frame_max: u32,
    /// Seconds, answered in tune-ok.
    pub(crate) heartbeat_secs: u16,
    /// Capabilities the client claims to have.
    pub(crate) capabilities: Vec<&'static str>,
}

impl Default for Login {
    fn default() -> Self {
        Self {
            mechanism: "PLAIN",
            user: "guest".into(),
            password: "guest".into(),
            vhost: "/".into(),
            frame_max: FRAME_MAX,
            heartbeat_secs: 0,
            capabilities: vec![
                "publisher_confirms",
                "consumer_cancel_notify",
                "basic.nack",
                "connection.blocked",
                "authentication_failure_close",
            ],
        }
    }
}

impl Login {
    /// The table for `connection.start-ok`.
    pub(crate) fn client_properties(&self) -> FieldTable {
        let mut capabilities = FieldTable::new();
        for name in &self.capabilities {
            capabilities.set(name, FieldValue::Bool(true));
        }
        FieldTable::new()
            .with("product", FieldValue::text("stratamq raw test client"))
            .with("capabilities", FieldValue::Table(capabilities))
    }

    /// The response of the mechanism: of all but PLAIN, nothing.
    pub(crate) fn response(&self) -> Bytes {
        match self.mechanism {
            "PLAIN" => self.plain_response(),
            _ => Bytes::new(),
        }
    }

    /// The response of mechanism PLAIN.
    pub(crate) fn plain_response(&self) -> Bytes {
        Bytes::from(format!("\0{}\0{}", self.user, self.password))
    }
}
