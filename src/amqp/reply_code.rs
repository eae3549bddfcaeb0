//! Reply codes and how much each of them closes (AMQP 0-9-1 section 1.1, and the reference's section 4.1).

use std::fmt;

macro_rules! reply_codes {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $code:literal $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum $name { $($(#[$vdoc])* $variant = $code,)* }
        impl $name {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            /// The number on the wire.
            #[must_use]
            pub const fn code(self) -> u16 { self as u16 }
            /// The name that leads the reply text.
            #[must_use]
            pub const fn name(self) -> &'static str { match self { $(Self::$variant => $text,)* } }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(self.name()) }
        }
    };
}

reply_codes! {
    /// Codes that close a channel.
    ChannelReplyCode {
        /// Permissions, reserved names, the default exchange, exclusive consumers.
        AccessRefused = 403 "ACCESS_REFUSED",
        /// A queue or exchange does not exist.
        NotFound = 404 "NOT_FOUND",
        /// An exclusive queue of another connection.
        ResourceLocked = 405 "RESOURCE_LOCKED",
        /// Inequivalent or bad arguments, unknown delivery tags, misuse of tx, size limits.
        PreconditionFailed = 406 "PRECONDITION_FAILED",
    }
}

reply_codes! {
    /// Codes that close a connection.
    ConnectionReplyCode {
        /// Shutdown, operator, deleted user or vhost.
        ConnectionForced = 320 "CONNECTION_FORCED",
        /// Login refused.
        AccessRefused = 403 "ACCESS_REFUSED",
        /// Bad frames and undecodable arguments.
        FrameError = 501 "FRAME_ERROR",
        /// Malformed values.
        SyntaxError = 502 "SYNTAX_ERROR",
        /// Methods the server does not take.
        CommandInvalid = 503 "COMMAND_INVALID",
        /// Unopened, doubly opened or wrongly used channels.
        ChannelError = 504 "CHANNEL_ERROR",
        /// Content out of order.
        UnexpectedFrame = 505 "UNEXPECTED_FRAME",
        /// The server lacks a resource.
        ResourceError = 506 "RESOURCE_ERROR",
        /// Vhost refused, limits, reused consumer tags.
        NotAllowed = 530 "NOT_ALLOWED",
        /// Features nobody implements.
        NotImplemented = 540 "NOT_IMPLEMENTED",
        /// Our own fault.
        InternalError = 541 "INTERNAL_ERROR",
    }
}

/// Reply code of `basic.return` for a mandatory message that no queue took.
pub const NO_ROUTE: u16 = 312;

/// Reply text that goes with [`NO_ROUTE`].
pub const NO_ROUTE_TEXT: &str = "NO_ROUTE";

#[cfg(test)]
mod tests {
    use super::*;

    /// Codes an error may carry, and whether they may close just a channel (reference section 4.1). The
    /// others of AMQP 0-9-1 (311, 313, 402) are never sent.
    const TABLE: &[(u16, &str, &str)] = &[
        (320, "CONNECTION_FORCED", "connection"),
        (403, "ACCESS_REFUSED", "channel and connection"),
        (404, "NOT_FOUND", "channel"),
        (405, "RESOURCE_LOCKED", "channel"),
        (406, "PRECONDITION_FAILED", "channel"),
        (501, "FRAME_ERROR", "connection"),
        (502, "SYNTAX_ERROR", "connection"),
        (503, "COMMAND_INVALID", "connection"),
        (504, "CHANNEL_ERROR", "connection"),
        (505, "UNEXPECTED_FRAME", "connection"),
        (506, "RESOURCE_ERROR", "connection"),
        (530, "NOT_ALLOWED", "connection"),
        (540, "NOT_IMPLEMENTED", "connection"),
        (541, "INTERNAL_ERROR", "connection"),
    ];

    fn of_scope(scope: &str) -> Vec<(u16, &'static str)> {
        TABLE
            .iter()
            .filter(|(_, _, scopes)| scopes.contains(scope))
            .map(|(code, name, _)| (*code, *name))
            .collect()
    }

    #[test]
    fn every_code_closes_what_the_specification_says() {
        let channel: Vec<_> = ChannelReplyCode::ALL
            .iter()
            .map(|code| (code.code(), code.name()))
            .collect();
        assert_eq!(channel, of_scope("channel"));
        let connection: Vec<_> = ConnectionReplyCode::ALL
            .iter()
            .map(|code| (code.code(), code.name()))
            .collect();
        assert_eq!(connection, of_scope("connection"));
    }

    #[test]
    fn the_numbers_are_those_of_a_foreign_client() {
        use lapin::protocol::AMQPErrorKind;
        for (code, name, _) in TABLE {
            let kind = AMQPErrorKind::from_id(*code).expect(name);
            let kind = format!("{kind:?}").replace(['(', ')'], "");
            let spoken = name.replace('_', "").to_lowercase();
            assert!(kind.to_lowercase().ends_with(&spoken), "{kind} {name}");
        }
    }
}
