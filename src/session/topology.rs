//! Classes exchange and queue: arguments become commands, empty queue names become the last declared one.

use super::Session;
use super::channel::Awaiting;
use super::close::Failure;
use super::dispatch::Handled;
use crate::amqp::method::{Method, MethodId, exchange, queue};
use crate::amqp::reply_code::ChannelReplyCode;
use crate::amqp::short_string::ShortString;
use crate::broker::command::{Bind, Command, ExchangeDeclare, QueueDeclare};

impl Session {
    pub(super) fn exchange_declare(&mut self, id: u16, method: exchange::Declare) -> Handled {
        let command = Command::ExchangeDeclare(ExchangeDeclare {
            exchange: method.exchange.detached(),
            kind: method.kind.detached(),
            is_passive: method.passive,
            is_durable: method.durable,
            is_auto_delete: method.auto_delete,
            is_internal: method.internal,
            arguments: method.arguments.detached(),
        });
        let ok = plain_ok(method.nowait, exchange::DeclareOk {});
        self.ask(id, exchange::Declare::ID, command, ok);
        Ok(())
    }

    pub(super) fn exchange_delete(&mut self, id: u16, method: exchange::Delete) -> Handled {
        let command = Command::ExchangeDelete {
            exchange: method.exchange,
            if_unused: method.if_unused,
        };
        let ok = plain_ok(method.nowait, exchange::DeleteOk {});
        self.ask(id, exchange::Delete::ID, command, ok);
        Ok(())
    }

    pub(super) fn exchange_bind(&mut self, id: u16, method: exchange::Bind) -> Handled {
        let bind = Bind {
            destination: method.destination.detached(),
            is_to_queue: false,
            source: method.source.detached(),
            routing_key: method.routing_key.detached(),
            arguments: method.arguments.detached(),
        };
        let ok = plain_ok(method.nowait, exchange::BindOk {});
        self.ask(id, exchange::Bind::ID, Command::Bind(bind), ok);
        Ok(())
    }

    pub(super) fn exchange_unbind(&mut self, id: u16, method: exchange::Unbind) -> Handled {
        let bind = Bind {
            destination: method.destination,
            is_to_queue: false,
            source: method.source,
            routing_key: method.routing_key,
            arguments: method.arguments,
        };
        let ok = plain_ok(method.nowait, exchange::UnbindOk {});
        self.ask(id, exchange::Unbind::ID, Command::Unbind(bind), ok);
        Ok(())
    }

    pub(super) fn queue_declare(&mut self, id: u16, method: queue::Declare) -> Handled {
        let is_nowait = method.nowait;
        let command = Command::QueueDeclare(QueueDeclare {
            queue: method.queue.detached(),
            is_passive: method.passive,
            is_durable: method.durable,
            is_exclusive: method.exclusive,
            is_auto_delete: method.auto_delete,
            arguments: method.arguments.detached(),
        });
        let awaiting = Awaiting::QueueDeclare { is_nowait };
        self.ask(id, queue::Declare::ID, command, awaiting);
        Ok(())
    }

    pub(super) fn queue_bind(&mut self, id: u16, method: queue::Bind) -> Handled {
        let (queue, routing_key) =
            self.binding_names(id, method.queue, method.routing_key, queue::Bind::ID)?;
        let bind = Bind {
            destination: queue.detached(),
            is_to_queue: true,
            source: method.exchange.detached(),
            routing_key: routing_key.detached(),
            arguments: method.arguments.detached(),
        };
        let ok = plain_ok(method.nowait, queue::BindOk {});
        self.ask(id, queue::Bind::ID, Command::Bind(bind), ok);
        Ok(())
    }

    pub(super) fn queue_unbind(&mut self, id: u16, method: queue::Unbind) -> Handled {
        let (queue, routing_key) =
            self.binding_names(id, method.queue, method.routing_key, queue::Unbind::ID)?;
        let bind = Bind {
            destination: queue,
            is_to_queue: true,
            source: method.exchange,
            routing_key,
            arguments: method.arguments,
        };
        let ok = plain_ok(false, queue::UnbindOk {});
        self.ask(id, queue::Unbind::ID, Command::Unbind(bind), ok);
        Ok(())
    }

    pub(super) fn queue_purge(&mut self, id: u16, method: queue::Purge) -> Handled {
        let is_nowait = method.nowait;
        let queue = self.queue_name(id, method.queue, queue::Purge::ID)?;
        let awaiting = Awaiting::QueuePurge { is_nowait };
        self.ask(
            id,
            queue::Purge::ID,
            Command::QueuePurge { queue },
            awaiting,
        );
        Ok(())
    }

    pub(super) fn queue_delete(&mut self, id: u16, method: queue::Delete) -> Handled {
        let is_nowait = method.nowait;
        let command = Command::QueueDelete {
            queue: self.queue_name(id, method.queue, queue::Delete::ID)?,
            if_unused: method.if_unused,
            if_empty: method.if_empty,
        };
        let awaiting = Awaiting::QueueDelete { is_nowait };
        self.ask(id, queue::Delete::ID, command, awaiting);
        Ok(())
    }

    /// The queue meant: an empty name is the one declared last on this channel.
    pub(super) fn queue_name(
        &mut self,
        id: u16,
        name: ShortString,
        method: MethodId,
    ) -> Result<ShortString, Failure> {
        if !name.is_empty() {
            return Ok(name);
        }
        let last_queue = self.channel(id)?.last_queue.clone();
        last_queue.ok_or_else(|| {
            let text = "no previously declared queue";
            Failure::channel(ChannelReplyCode::NotFound, text, method)
        })
    }

    /// Queue and routing key of a binding: when both are empty both are the last declared queue.
    fn binding_names(
        &mut self,
        id: u16,
        queue: ShortString,
        routing_key: ShortString,
        method: MethodId,
    ) -> Result<(ShortString, ShortString), Failure> {
        let is_key_implied = queue.is_empty() && routing_key.is_empty();
        let queue = self.queue_name(id, queue, method)?;
        let routing_key = if is_key_implied {
            queue.clone()
        } else {
            routing_key
        };
        Ok((queue, routing_key))
    }
}

fn plain_ok(is_nowait: bool, ok: impl Into<Method>) -> Awaiting {
    Awaiting::Ok((!is_nowait).then(|| ok.into()))
}
