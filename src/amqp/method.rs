//! Methods: a table of every method of AMQP 0-9-1 and RabbitMQ's extensions, and their codec.
//!
//! ```text
//!  payload of a method frame:  class:u16  method:u16  arguments in table order
//! ```
//!
//! 1. The table is the only place that knows ids, names, arguments and who may send what; the structs,
//!    [`Method`] and the codec are made from it.
//! 2. Consecutive bits share an octet, the first one lowest; any other argument ends the run.
//! 3. Arguments must fill the payload exactly.
//!
//! The structs' fields are the arguments by the names of the specification, `ticket` included, which is
//! read and ignored. `Bytes` is a long string.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use super::DecodeError;
use super::field_table::FieldTable;
use super::frame::{self, ErlangBinary, FrameError, FrameKind};
use super::reply_code::ConnectionReplyCode;
use super::short_string::ShortString;
use super::wire::{ArgumentReader, ArgumentWriter};

/// Class and method number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct MethodId {
    /// Class, for example 60 for basic.
    pub class_id: u16,
    /// Method within the class.
    pub method_id: u16,
}

impl MethodId {
    /// No method at all, in a close that no method caused.
    pub const NONE: Self = Self {
        class_id: 0,
        method_id: 0,
    };
}

impl fmt::Display for MethodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "{}.{}", self.class_id, self.method_id),
        }
    }
}

/// Who sends a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// Only clients.
    Client,
    /// Only the server: a client that sends it gets 503.
    Server,
    /// Both.
    Either,
}

/// Why the payload of a method frame is refused; [`id`](Self::id) is what the close names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MethodError {
    /// Too short to name a method (FR-12).
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// No such method (FR-13).
    #[error("unknown method {id}")]
    Unknown {
        /// What was asked for.
        id: MethodId,
    },
    /// The arguments are not those of the method (FR-14).
    #[error("cannot decode {}", ErlangBinary::numbers(arguments))]
    Arguments {
        /// The method.
        id: MethodId,
        /// Its arguments, as many as a reply text can show.
        arguments: Vec<u8>,
        /// What is wrong with them, for the log.
        reason: DecodeError,
    },
    /// A short string is not UTF-8 (FR-15).
    #[error("Malformed UTF-8 in shortstr")]
    Utf8 {
        /// The method.
        id: MethodId,
    },
}

impl MethodError {
    /// Bytes of arguments kept for the text; each takes at least two characters there, of 255.
    const SHOWN_BYTES: usize = 128;

    fn new(id: MethodId, arguments: &[u8], reason: DecodeError) -> Self {
        match reason {
            DecodeError::Utf8 => Self::Utf8 { id },
            _ => Self::Arguments {
                id,
                arguments: arguments.iter().copied().take(Self::SHOWN_BYTES).collect(),
                reason,
            },
        }
    }

    /// The code that closes the connection.
    #[must_use]
    pub const fn reply_code(&self) -> ConnectionReplyCode {
        match self {
            Self::Frame(error) => error.reply_code(),
            Self::Unknown { .. } => ConnectionReplyCode::CommandInvalid,
            Self::Arguments { .. } | Self::Utf8 { .. } => ConnectionReplyCode::FrameError,
        }
    }

    /// The method to name in the close.
    #[must_use]
    pub const fn id(&self) -> MethodId {
        match self {
            Self::Frame(_) => MethodId::NONE,
            Self::Unknown { id } | Self::Arguments { id, .. } | Self::Utf8 { id } => *id,
        }
    }
}

macro_rules! methods {
    (@carries_content content) => { true };
    (@carries_content) => { false };
    ($(
        $(#[doc = $class_doc:literal])*
        $class:ident = $class_id:literal {
            $(
                $(#[doc = $doc:literal])*
                $variant:ident, $name:literal = $method_id:literal $struct:ident [$sender:ident $($content:ident)?]
                    { $($field:ident: $type:ty),* }
            )*
        }
    )*) => {
        $(
            $(#[doc = $class_doc])*
            pub mod $class {
                #![allow(missing_docs, reason = "the fields are the specification's arguments, by its names")]
                #[allow(unused_imports, reason = "some classes have few types of arguments")]
                use super::{ArgumentReader, ArgumentWriter, Bytes, DecodeError, FieldTable, Method, MethodId, ShortString};

                /// The number of the class.
                pub const CLASS_ID: u16 = $class_id;

                $(
                    $(#[doc = $doc])*
                    #[derive(Clone, Debug, PartialEq, Default)]
                    pub struct $struct { $(pub $field: $type,)* }

                    impl $struct {
                        /// Its class and method number.
                        pub const ID: MethodId = MethodId { class_id: $class_id, method_id: $method_id };
                        /// Its name.
                        pub const NAME: &'static str = $name;

                        #[allow(unused_mut, reason = "methods without arguments")]
                        fn take(mut reader: ArgumentReader<'_>) -> Result<Self, DecodeError> {
                            let method = Self { $($field: reader.take()?,)* };
                            reader.finish()?;
                            Ok(method)
                        }

                        #[allow(unused_variables, reason = "methods without arguments")]
                        pub(super) fn put(&self, writer: &mut ArgumentWriter<'_>) {
                            $(writer.put(&self.$field);)*
                        }
                    }

                    impl From<$struct> for Method {
                        fn from(method: $struct) -> Self { Self::$variant(method) }
                    }
                )*

                impl $crate::amqp::method::Class {
                    /// Takes the arguments of a method of this class; `None` for a number it does not have.
                    pub(super) fn $class(method_id: u16, reader: ArgumentReader<'_>) -> Option<Result<Method, DecodeError>> {
                        match method_id {
                            $($method_id => Some($struct::take(reader).map(Method::$variant)),)*
                            _ => None,
                        }
                    }
                }
            }
        )*

        /// Any method.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Method {
            $($(
                $(#[doc = $doc])*
                $variant($class::$struct),
            )*)*
        }

        impl Method {
            /// Its class and method number.
            #[must_use]
            pub const fn id(&self) -> MethodId {
                match self { $($(Self::$variant(_) => $class::$struct::ID,)*)* }
            }
            /// Its name, for example `queue.declare`.
            #[must_use]
            pub const fn name(&self) -> &'static str {
                match self { $($(Self::$variant(_) => $name,)*)* }
            }
            /// Who sends it.
            #[must_use]
            pub const fn sender(&self) -> Sender {
                match self { $($(Self::$variant(_) => Sender::$sender,)*)* }
            }
            /// True when a content header and a body follow.
            #[must_use]
            pub const fn carries_content(&self) -> bool {
                match self { $($(Self::$variant(_) => methods!(@carries_content $($content)?),)*)* }
            }
            fn put_arguments(&self, writer: &mut ArgumentWriter<'_>) {
                match self { $($(Self::$variant(method) => method.put(writer),)*)* }
            }
        }

        /// One of every method, with random arguments.
        #[cfg(test)]
        pub(super) fn samples(random: &mut super::samples::Random) -> Vec<Method> {
            vec![$($(Method::$variant($class::$struct {
                $($field: super::samples::Sample::sample(random),)*
            }),)*)*]
        }

        impl MethodId {
            /// Every method there is.
            pub const ALL: &'static [Self] = &[$($($class::$struct::ID,)*)*];

            /// The method's name; `None` when there is none of that number.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match (self.class_id, self.method_id) {
                    $($(($class_id, $method_id) => Some($name),)*)*
                    _ => None,
                }
            }
        }

        fn take_method(id: MethodId, reader: ArgumentReader<'_>) -> Option<Result<Method, DecodeError>> {
            match id.class_id {
                $($class_id => Class::$class(id.method_id, reader),)*
                _ => None,
            }
        }
    };
}

/// Carries one decoding function a class.
struct Class;

methods! {
    /// Class connection: handshake, tuning and close.
    connection = 10 {
        /// Offers version, mechanisms and properties.
        ConnectionStart, "connection.start" = 10 Start [Server]
            { version_major: u8, version_minor: u8, server_properties: FieldTable, mechanisms: Bytes, locales: Bytes }
        /// Chooses a mechanism and answers it.
        ConnectionStartOk, "connection.start-ok" = 11 StartOk [Client]
            { client_properties: FieldTable, mechanism: ShortString, response: Bytes, locale: ShortString }
        /// Challenges the client.
        ConnectionSecure, "connection.secure" = 20 Secure [Server] { challenge: Bytes }
        /// Answers a challenge.
        ConnectionSecureOk, "connection.secure-ok" = 21 SecureOk [Client] { response: Bytes }
        /// Offers limits; the heartbeat is in seconds.
        ConnectionTune, "connection.tune" = 30 Tune [Server] { channel_max: u16, frame_max: u32, heartbeat: u16 }
        /// Settles the limits.
        ConnectionTuneOk, "connection.tune-ok" = 31 TuneOk [Client] { channel_max: u16, frame_max: u32, heartbeat: u16 }
        /// Enters a virtual host.
        ConnectionOpen, "connection.open" = 40 Open [Client]
            { virtual_host: ShortString, capabilities: ShortString, insist: bool }
        /// The connection is open.
        ConnectionOpenOk, "connection.open-ok" = 41 OpenOk [Server] { known_hosts: ShortString }
        /// Ends the connection.
        ConnectionClose, "connection.close" = 50 Close [Either]
            { reply_code: u16, reply_text: ShortString, class_id: u16, method_id: u16 }
        /// The end is understood.
        ConnectionCloseOk, "connection.close-ok" = 51 CloseOk [Either] {}
        /// RabbitMQ extension: the server does not read from this publisher for a while.
        ConnectionBlocked, "connection.blocked" = 60 Blocked [Server] { reason: ShortString }
        /// RabbitMQ extension: it reads again.
        ConnectionUnblocked, "connection.unblocked" = 61 Unblocked [Server] {}
        /// RabbitMQ extension: a fresh secret for a running connection.
        ConnectionUpdateSecret, "connection.update-secret" = 70 UpdateSecret [Client]
            { new_secret: Bytes, reason: ShortString }
        /// The secret is taken.
        ConnectionUpdateSecretOk, "connection.update-secret-ok" = 71 UpdateSecretOk [Server] {}
    }
    /// Class channel.
    channel = 20 {
        /// Opens a channel.
        ChannelOpen, "channel.open" = 10 Open [Client] { out_of_band: ShortString }
        /// It is open.
        ChannelOpenOk, "channel.open-ok" = 11 OpenOk [Server] { channel_id: Bytes }
        /// Pauses or resumes deliveries.
        ChannelFlow, "channel.flow" = 20 Flow [Either] { active: bool }
        /// Paused or resumed.
        ChannelFlowOk, "channel.flow-ok" = 21 FlowOk [Either] { active: bool }
        /// Ends a channel.
        ChannelClose, "channel.close" = 40 Close [Either]
            { reply_code: u16, reply_text: ShortString, class_id: u16, method_id: u16 }
        /// The end is understood.
        ChannelCloseOk, "channel.close-ok" = 41 CloseOk [Either] {}
    }
    /// Class access: gone from AMQP 0-9-1, still sent by old clients.
    access = 30 {
        /// Asks for a ticket.
        AccessRequest, "access.request" = 10 Request [Client]
            { realm: ShortString, exclusive: bool, passive: bool, active: bool, write: bool, read: bool }
        /// Grants one, which nobody will look at.
        AccessRequestOk, "access.request-ok" = 11 RequestOk [Server] { ticket: u16 }
    }
    /// Class exchange.
    exchange = 40 {
        /// Creates an exchange, or checks that it is as described.
        ExchangeDeclare, "exchange.declare" = 10 Declare [Client]
            { ticket: u16, exchange: ShortString, kind: ShortString, passive: bool, durable: bool, auto_delete: bool,
              internal: bool, nowait: bool, arguments: FieldTable }
        /// It exists.
        ExchangeDeclareOk, "exchange.declare-ok" = 11 DeclareOk [Server] {}
        /// Deletes an exchange.
        ExchangeDelete, "exchange.delete" = 20 Delete [Client]
            { ticket: u16, exchange: ShortString, if_unused: bool, nowait: bool }
        /// It is gone.
        ExchangeDeleteOk, "exchange.delete-ok" = 21 DeleteOk [Server] {}
        /// RabbitMQ extension: binds an exchange to an exchange.
        ExchangeBind, "exchange.bind" = 30 Bind [Client]
            { ticket: u16, destination: ShortString, source: ShortString, routing_key: ShortString, nowait: bool,
              arguments: FieldTable }
        /// It is bound.
        ExchangeBindOk, "exchange.bind-ok" = 31 BindOk [Server] {}
        /// RabbitMQ extension: undoes `exchange.bind`.
        ExchangeUnbind, "exchange.unbind" = 40 Unbind [Client]
            { ticket: u16, destination: ShortString, source: ShortString, routing_key: ShortString, nowait: bool,
              arguments: FieldTable }
        /// It is unbound. The number is 51, not 41.
        ExchangeUnbindOk, "exchange.unbind-ok" = 51 UnbindOk [Server] {}
    }
    /// Class queue.
    queue = 50 {
        /// Creates a queue, or checks that it is as described.
        QueueDeclare, "queue.declare" = 10 Declare [Client]
            { ticket: u16, queue: ShortString, passive: bool, durable: bool, exclusive: bool, auto_delete: bool,
              nowait: bool, arguments: FieldTable }
        /// It exists; counts of ready messages and consumers.
        QueueDeclareOk, "queue.declare-ok" = 11 DeclareOk [Server]
            { queue: ShortString, message_count: u32, consumer_count: u32 }
        /// Binds a queue to an exchange.
        QueueBind, "queue.bind" = 20 Bind [Client]
            { ticket: u16, queue: ShortString, exchange: ShortString, routing_key: ShortString, nowait: bool,
              arguments: FieldTable }
        /// It is bound.
        QueueBindOk, "queue.bind-ok" = 21 BindOk [Server] {}
        /// Removes the ready messages.
        QueuePurge, "queue.purge" = 30 Purge [Client] { ticket: u16, queue: ShortString, nowait: bool }
        /// So many are gone.
        QueuePurgeOk, "queue.purge-ok" = 31 PurgeOk [Server] { message_count: u32 }
        /// Deletes a queue.
        QueueDelete, "queue.delete" = 40 Delete [Client]
            { ticket: u16, queue: ShortString, if_unused: bool, if_empty: bool, nowait: bool }
        /// It is gone, and so many messages with it.
        QueueDeleteOk, "queue.delete-ok" = 41 DeleteOk [Server] { message_count: u32 }
        /// Undoes `queue.bind`; the only one without nowait.
        QueueUnbind, "queue.unbind" = 50 Unbind [Client]
            { ticket: u16, queue: ShortString, exchange: ShortString, routing_key: ShortString, arguments: FieldTable }
        /// It is unbound.
        QueueUnbindOk, "queue.unbind-ok" = 51 UnbindOk [Server] {}
    }
    /// Class basic: messages.
    basic = 60 {
        /// Limits unacknowledged deliveries.
        BasicQos, "basic.qos" = 10 Qos [Client] { prefetch_size: u32, prefetch_count: u16, global: bool }
        /// The limit holds.
        BasicQosOk, "basic.qos-ok" = 11 QosOk [Server] {}
        /// Starts a consumer.
        BasicConsume, "basic.consume" = 20 Consume [Client]
            { ticket: u16, queue: ShortString, consumer_tag: ShortString, no_local: bool, no_ack: bool, exclusive: bool,
              nowait: bool, arguments: FieldTable }
        /// It runs.
        BasicConsumeOk, "basic.consume-ok" = 21 ConsumeOk [Server] { consumer_tag: ShortString }
        /// Ends a consumer; from the server: it was ended.
        BasicCancel, "basic.cancel" = 30 Cancel [Either] { consumer_tag: ShortString, nowait: bool }
        /// It has ended.
        BasicCancelOk, "basic.cancel-ok" = 31 CancelOk [Either] { consumer_tag: ShortString }
        /// Publishes a message.
        BasicPublish, "basic.publish" = 40 Publish [Client content]
            { ticket: u16, exchange: ShortString, routing_key: ShortString, mandatory: bool, immediate: bool }
        /// Hands a mandatory message back.
        BasicReturn, "basic.return" = 50 Return [Server content]
            { reply_code: u16, reply_text: ShortString, exchange: ShortString, routing_key: ShortString }
        /// Hands a message to a consumer.
        BasicDeliver, "basic.deliver" = 60 Deliver [Server content]
            { consumer_tag: ShortString, delivery_tag: u64, redelivered: bool, exchange: ShortString,
              routing_key: ShortString }
        /// Asks for one message.
        BasicGet, "basic.get" = 70 Get [Client] { ticket: u16, queue: ShortString, no_ack: bool }
        /// Here it is; the count is of ready messages left.
        BasicGetOk, "basic.get-ok" = 71 GetOk [Server content]
            { delivery_tag: u64, redelivered: bool, exchange: ShortString, routing_key: ShortString, message_count: u32 }
        /// There is none.
        BasicGetEmpty, "basic.get-empty" = 72 GetEmpty [Server] { cluster_id: ShortString }
        /// Takes responsibility: a consumer's acknowledgement or the broker's confirm.
        BasicAck, "basic.ack" = 80 Ack [Either] { delivery_tag: u64, multiple: bool }
        /// Refuses one delivery.
        BasicReject, "basic.reject" = 90 Reject [Client] { delivery_tag: u64, requeue: bool }
        /// Asks for redelivery of everything unacknowledged, without an answer.
        BasicRecoverAsync, "basic.recover-async" = 100 RecoverAsync [Client] { requeue: bool }
        /// Asks for redelivery of everything unacknowledged.
        BasicRecover, "basic.recover" = 110 Recover [Client] { requeue: bool }
        /// Redelivery has begun.
        BasicRecoverOk, "basic.recover-ok" = 111 RecoverOk [Server] {}
        /// RabbitMQ extension: refuses deliveries, or a publish.
        BasicNack, "basic.nack" = 120 Nack [Either] { delivery_tag: u64, multiple: bool, requeue: bool }
    }
    /// Class confirm: publisher confirms, a RabbitMQ extension.
    confirm = 85 {
        /// Asks for confirms.
        ConfirmSelect, "confirm.select" = 10 Select [Client] { nowait: bool }
        /// They will come.
        ConfirmSelectOk, "confirm.select-ok" = 11 SelectOk [Server] {}
    }
    /// Class tx: transactions.
    tx = 90 {
        /// Makes the channel transactional.
        TxSelect, "tx.select" = 10 Select [Client] {}
        /// It is.
        TxSelectOk, "tx.select-ok" = 11 SelectOk [Server] {}
        /// Commits.
        TxCommit, "tx.commit" = 20 Commit [Client] {}
        /// Committed.
        TxCommitOk, "tx.commit-ok" = 21 CommitOk [Server] {}
        /// Rolls back.
        TxRollback, "tx.rollback" = 30 Rollback [Client] {}
        /// Rolled back.
        TxRollbackOk, "tx.rollback-ok" = 31 RollbackOk [Server] {}
    }
}

impl Method {
    /// Decodes the payload of a method frame.
    ///
    /// # Errors
    /// See [`MethodError`]; all of them close the connection.
    pub fn decode(payload: &Bytes) -> Result<Self, MethodError> {
        let Some((&[class_0, class_1, method_0, method_1], arguments)) =
            payload.split_first_chunk::<4>()
        else {
            return Err(FrameError::unknown(FrameKind::Method, payload).into());
        };
        let id = MethodId {
            class_id: u16::from_be_bytes([class_0, class_1]),
            method_id: u16::from_be_bytes([method_0, method_1]),
        };
        match take_method(id, ArgumentReader::new(payload, arguments)) {
            Some(Ok(method)) => Ok(method),
            Some(Err(reason)) => Err(MethodError::new(id, arguments, reason)),
            None => Err(MethodError::Unknown { id }),
        }
    }

    /// Appends the method as a frame of `channel`.
    pub fn encode(&self, out: &mut BytesMut, channel: u16) {
        frame::encode(out, FrameKind::Method, channel, |out| {
            put_id(out, self.id());
            self.put_arguments(&mut ArgumentWriter::new(out));
        });
    }

    /// True when a client may send it at all.
    #[must_use]
    pub const fn is_from_client(&self) -> bool {
        !matches!(self.sender(), Sender::Server)
    }
}

/// Appends class and method number.
pub(super) fn put_id(out: &mut BytesMut, id: MethodId) {
    out.put_u16(id.class_id);
    out.put_u16(id.method_id);
}

#[cfg(test)]
mod tests;
