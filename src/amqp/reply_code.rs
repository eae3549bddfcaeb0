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
