//! Methods a broker sends, as types to wait for.

use stratamq::amqp::method::{
    Method, MethodId, basic, channel, confirm, connection, exchange, queue, tx,
};

/// A method the broker sends.
pub(crate) trait Reply: Sized {
    /// Its number.
    const ID: MethodId;
    /// Its name, for complaints.
    const NAME: &'static str;
    /// Takes it out of the enum, or hands the other one back.
    fn from_method(method: Method) -> Result<Self, Box<Method>>;
}

macro_rules! replies {
    ($($variant:ident($type:ty),)*) => { $(
        impl Reply for $type {
            const ID: MethodId = <$type>::ID;
            const NAME: &'static str = <$type>::NAME;
            fn from_method(method: Method) -> Result<Self, Box<Method>> {
                match method {
                    Method::$variant(reply) => Ok(reply),
                    other => Err(Box::new(other)),
                }
            }
        }
    )* };
}

replies! {
    ConnectionStart(connection::Start),
    ConnectionTune(connection::Tune),
    ConnectionOpenOk(connection::OpenOk),
    ConnectionCloseOk(connection::CloseOk),
    ConnectionBlocked(connection::Blocked),
    ConnectionUnblocked(connection::Unblocked),
    ConnectionUpdateSecretOk(connection::UpdateSecretOk),
    ChannelOpenOk(channel::OpenOk),
    ChannelFlowOk(channel::FlowOk),
    ChannelCloseOk(channel::CloseOk),
    ExchangeDeclareOk(exchange::DeclareOk),
    ExchangeDeleteOk(exchange::DeleteOk),
    ExchangeBindOk(exchange::BindOk),
    ExchangeUnbindOk(exchange::UnbindOk),
    QueueDeclareOk(queue::DeclareOk),
    QueueBindOk(queue::BindOk),
    QueueUnbindOk(queue::UnbindOk),
    QueuePurgeOk(queue::PurgeOk),
    QueueDeleteOk(queue::DeleteOk),
    BasicQosOk(basic::QosOk),
    BasicConsumeOk(basic::ConsumeOk),
    BasicCancel(basic::Cancel),
    BasicCancelOk(basic::CancelOk),
    BasicReturn(basic::Return),
    BasicDeliver(basic::Deliver),
    BasicGetOk(basic::GetOk),
    BasicGetEmpty(basic::GetEmpty),
    BasicAck(basic::Ack),
    BasicNack(basic::Nack),
    BasicRecoverOk(basic::RecoverOk),
    ConfirmSelectOk(confirm::SelectOk),
    TxSelectOk(tx::SelectOk),
    TxCommitOk(tx::CommitOk),
    TxRollbackOk(tx::RollbackOk),
}
