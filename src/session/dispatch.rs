//! Frames of an open channel to what they ask for: one line a method.

use super::channel::{Channel, Mode};
use super::close::Failure;
use super::content::{Assembled, PublishStart};
use super::event::Event;
use super::{Session, Work, lifecycle};
use crate::amqp::frame::{Frame, FrameKind};
use crate::amqp::method::{Method, MethodId, access, basic, channel};
use crate::amqp::reply_code::{ChannelReplyCode, ConnectionReplyCode};
use crate::broker::command::Publish;

/// What handling a method comes to.
pub(super) type Handled = Result<(), Failure>;

impl Session {
    /// A frame of a channel that is open and not busy.
    pub(super) fn handle_open_channel(&mut self, id: u16, frame: Frame) -> Handled {
        match frame.kind {
            FrameKind::Method => self.handle_method(id, &frame),
            FrameKind::Header => {
                let assembled = self.channel(id)?.content.handle_header(&frame.payload)?;
                self.check_alarm();
                self.handle_assembled(id, assembled)
            }
            FrameKind::Body => {
                self.check_alarm();
                self.check_unfinished(frame.payload.len() as u64)?;
                let max_bytes = self.options.message_max_bytes;
                let content = &mut self.channel(id)?.content;
                let assembled = content.handle_body(frame.payload, max_bytes)?;
                self.handle_assembled(id, assembled)
            }
            // The frame decoder lets heartbeats pass on channel 0 only.
            FrameKind::Heartbeat => Ok(()),
        }
    }

    /// Counts `len_bytes` more of contents that may stay unfinished: bodies that are arriving and transactions, over all
    /// channels. What was finished meanwhile is found when the count seems too high; so single messages cost nothing.
    fn check_unfinished(&mut self, len_bytes: u64) -> Handled {
        self.unfinished_bytes += len_bytes;
        let max_bytes = self.options.unfinished_max_bytes;
        if self.unfinished_bytes <= max_bytes {
            return Ok(());
        }
        let unfinished = self
            .channels
            .values()
            .map(|channel| channel.unfinished_bytes());
        self.unfinished_bytes = unfinished.sum::<u64>() + len_bytes;
        if self.unfinished_bytes <= max_bytes {
            return Ok(());
        }
        let text = format!(
            "unfinished contents of all channels are larger than configured max size {max_bytes}"
        );
        let code = ConnectionReplyCode::ResourceError;
        Err(Failure::connection(code, text, basic::Publish::ID))
    }

    fn handle_method(&mut self, id: u16, frame: &Frame) -> Handled {
        let content = &self.channel(id)?.content;
        if content.is_in_progress() {
            return Err(content.interrupted());
        }
        match Method::decode(&frame.payload)? {
            Method::BasicPublish(method) => self.publish(id, method),
            Method::BasicAck(method) => self.ack(id, &method),
            Method::BasicNack(method) => self.nack(id, &method),
            Method::BasicReject(method) => self.reject(id, &method),
            Method::BasicRecover(method) => self.recover(id, &method),
            Method::BasicRecoverAsync(method) => self.recover_async(id, &method),
            Method::BasicQos(method) => self.qos(id, &method),
            Method::BasicConsume(method) => self.consume(id, method),
            Method::BasicCancel(method) => self.cancel(id, method),
            // An answer to our own basic.cancel, which needs none.
            Method::BasicCancelOk(_) => Ok(()),
            Method::BasicGet(method) => self.get(id, method),
            Method::ConfirmSelect(method) => self.confirm_select(id, &method),
            Method::TxSelect(_) => self.tx_select(id),
            Method::TxCommit(_) => self.tx_commit(id),
            Method::TxRollback(_) => self.tx_rollback(id),
            Method::ExchangeDeclare(method) => self.exchange_declare(id, method),
            Method::ExchangeDelete(method) => self.exchange_delete(id, method),
            Method::ExchangeBind(method) => self.exchange_bind(id, method),
            Method::ExchangeUnbind(method) => self.exchange_unbind(id, method),
            Method::QueueDeclare(method) => self.queue_declare(id, method),
            Method::QueueBind(method) => self.queue_bind(id, method),
            Method::QueueUnbind(method) => self.queue_unbind(id, method),
            Method::QueuePurge(method) => self.queue_purge(id, method),
            Method::QueueDelete(method) => self.queue_delete(id, method),
            Method::ChannelOpen(_) => Err(lifecycle::second_open()),
            Method::ChannelFlow(method) => self.flow(id, &method),
            Method::ChannelClose(_) => self.close_open_channel(id),
            Method::AccessRequest(_) => self.access_request(id),
            method => Err(unimplemented_method(method.id())),
        }
    }

    /// The channel that a frame is being handled for.
    pub(super) fn channel(&mut self, id: u16) -> Result<&mut Channel, Failure> {
        self.channels
            .get_mut(&id)
            .map(Box::as_mut)
            .ok_or_else(|| super::internal_error("channel vanished"))
    }

    fn publish(&mut self, id: u16, method: basic::Publish) -> Handled {
        if method.immediate {
            let code = ConnectionReplyCode::NotImplemented;
            return Err(Failure::connection(
                code,
                "immediate=true",
                basic::Publish::ID,
            ));
        }
        self.channel(id)?.content = super::content::Content::AwaitHeader(PublishStart {
            exchange: method.exchange,
            routing_key: method.routing_key,
            is_mandatory: method.mandatory,
        });
        Ok(())
    }

    fn handle_assembled(&mut self, id: u16, assembled: Option<Assembled>) -> Handled {
        let Some(Assembled {
            is_mandatory,
            message,
        }) = assembled
        else {
            return Ok(());
        };
        let publish = Publish {
            channel: id,
            is_mandatory,
            message,
        };
        let tx_max_bytes = self.options.tx_max_bytes;
        let channel = self.channel(id)?;
        match &mut channel.mode {
            Mode::Plain | Mode::Confirm(_) => {
                channel.unanswered_publish_count += 1;
                self.push_publish(publish);
            }
            Mode::Tx(transaction) => {
                transaction.size_bytes += publish.message.size_bytes() as u64;
                if transaction.size_bytes > tx_max_bytes {
                    return Err(transaction_too_large(tx_max_bytes));
                }
                transaction.add(&publish);
                let event = Event::TxPublish(publish);
                self.work.push_back(Work::Event(event));
            }
        }
        Ok(())
    }

    fn flow(&mut self, id: u16, method: &channel::Flow) -> Handled {
        if !method.active {
            let code = ConnectionReplyCode::NotImplemented;
            return Err(Failure::connection(code, "active=false", channel::Flow::ID));
        }
        self.send(id, channel::FlowOk { active: true });
        Ok(())
    }

    fn close_open_channel(&mut self, id: u16) -> Handled {
        self.close_channel(id);
        Ok(())
    }

    fn access_request(&mut self, id: u16) -> Handled {
        self.send(id, access::RequestOk { ticket: 1 });
        Ok(())
    }
}

fn unimplemented_method(method: MethodId) -> Failure {
    Failure::connection(
        ConnectionReplyCode::CommandInvalid,
        "unimplemented method",
        method,
    )
}

fn transaction_too_large(max_bytes: u64) -> Failure {
    let text = format!("transaction is larger than {max_bytes} bytes");
    Failure::channel(
        ChannelReplyCode::PreconditionFailed,
        text,
        basic::Publish::ID,
    )
}
