//! The calls tests make all the time, one line each.
//!
//! Options are the specification's own structs, so that nothing of a method is out of reach:
//! `client.queue_declare(1, "q", queue::Declare { arguments, ..durable() })`.

use std::time::Duration;

use stratamq::amqp::field_table::FieldTable;
use stratamq::amqp::method::{Method, basic, channel, confirm, connection, exchange, queue, tx};

use super::{Client, Message, Outcome, Trouble, must, text};

/// A durable queue.
pub(crate) fn durable() -> queue::Declare {
    queue::Declare {
        durable: true,
        ..queue::Declare::default()
    }
}

/// A queue that a restart forgets.
pub(crate) fn transient() -> queue::Declare {
    queue::Declare::default()
}

/// A queue of this connection only.
pub(crate) fn exclusive() -> queue::Declare {
    queue::Declare {
        exclusive: true,
        ..queue::Declare::default()
    }
}

/// A queue that goes with its last consumer.
pub(crate) fn auto_delete() -> queue::Declare {
    queue::Declare {
        auto_delete: true,
        ..queue::Declare::default()
    }
}

/// Only asks whether the queue exists.
pub(crate) fn passive() -> queue::Declare {
    queue::Declare {
        passive: true,
        ..queue::Declare::default()
    }
}

/// A message handed out by the broker.
#[derive(Clone, Debug)]
pub(crate) struct Delivered {
    /// Consumer; empty for basic.get.
    pub(crate) consumer_tag: String,
    /// The channel's number for it.
    pub(crate) tag: u64,
    /// May have been delivered before.
    pub(crate) is_redelivered: bool,
    /// Exchange it was published to.
    pub(crate) exchange: String,
    /// Routing key it was published with.
    pub(crate) routing_key: String,
    /// Properties and body.
    pub(crate) message: Message,
}

impl Delivered {
    /// From a basic.deliver with its content.
    pub(crate) fn of_deliver(deliver: &basic::Deliver, message: Message) -> Self {
        Self {
            consumer_tag: deliver.consumer_tag.to_string(),
            tag: deliver.delivery_tag,
            is_redelivered: deliver.redelivered,
            exchange: deliver.exchange.to_string(),
            routing_key: deliver.routing_key.to_string(),
            message,
        }
    }

    /// From a basic.get-ok with its content.
    fn of_get_ok(got: &basic::GetOk, message: Message) -> Self {
        Self {
            consumer_tag: String::new(),
            tag: got.delivery_tag,
            is_redelivered: got.redelivered,
            exchange: got.exchange.to_string(),
            routing_key: got.routing_key.to_string(),
            message,
        }
    }
}

impl Client {
    /// Opens a channel.
    #[track_caller]
    pub(crate) fn open_channel(&mut self, channel: u16) {
        must("channel.open", self.try_open_channel(channel));
    }

    /// Opens a channel.
    pub(crate) fn try_open_channel(&mut self, channel: u16) -> Outcome<()> {
        self.try_call::<channel::OpenOk>(channel, channel::Open::default())
            .map(drop)
    }

    /// Closes a channel; what it left unacknowledged is requeued.
    #[track_caller]
    pub(crate) fn close_channel(&mut self, channel: u16) {
        must("channel.close", self.try_close_channel(channel));
    }

    /// Closes a channel.
    pub(crate) fn try_close_channel(&mut self, channel: u16) -> Outcome<()> {
        let close = channel::Close {
            reply_code: 200,
            ..channel::Close::default()
        };
        self.try_call::<channel::CloseOk>(channel, close)?;
        self.inboxes.remove(&channel);
        Ok(())
    }

    /// Closes the connection and waits for its end.
    #[track_caller]
    pub(crate) fn close(mut self) {
        let close = connection::Close {
            reply_code: 200,
            ..connection::Close::default()
        };
        self.call::<connection::CloseOk>(0, close);
        // Some brokers leave it to the client to close the socket.
        let _ = self.stream().shutdown(std::net::Shutdown::Write);
        self.expect_end();
    }

    /// Declares a queue.
    #[track_caller]
    pub(crate) fn queue_declare(
        &mut self,
        channel: u16,
        name: &str,
        options: queue::Declare,
    ) -> queue::DeclareOk {
        must(
            "queue.declare",
            self.try_queue_declare(channel, name, options),
        )
    }

    /// Declares a queue.
    pub(crate) fn try_queue_declare(
        &mut self,
        channel: u16,
        name: &str,
        options: queue::Declare,
    ) -> Outcome<queue::DeclareOk> {
        self.try_call(
            channel,
            queue::Declare {
                queue: text(name),
                ..options
            },
        )
    }

    /// Declares an exchange that is durable or not.
    #[track_caller]
    pub(crate) fn exchange_declare(
        &mut self,
        channel: u16,
        name: &str,
        kind: &str,
        is_durable: bool,
    ) {
        let declare = exchange::Declare {
            exchange: text(name),
            kind: text(kind),
            durable: is_durable,
            ..exchange::Declare::default()
        };
        self.call::<exchange::DeclareOk>(channel, declare);
    }

    /// Binds a queue to an exchange.
    #[track_caller]
    pub(crate) fn bind(&mut self, channel: u16, queue: &str, exchange: &str, routing_key: &str) {
        self.bind_with(channel, queue, exchange, routing_key, FieldTable::new());
    }

    /// Binds a queue to an exchange with arguments.
    #[track_caller]
    pub(crate) fn bind_with(
        &mut self,
        channel: u16,
        queue: &str,
        exchange: &str,
        routing_key: &str,
        arguments: FieldTable,
    ) {
        let bind = queue::Bind {
            queue: text(queue),
            exchange: text(exchange),
            routing_key: text(routing_key),
            arguments,
            ..queue::Bind::default()
        };
        self.call::<queue::BindOk>(channel, bind);
    }

    /// Removes the ready messages of a queue; how many.
    pub(crate) fn try_purge(&mut self, channel: u16, queue: &str) -> Outcome<u32> {
        let purge = queue::Purge {
            queue: text(queue),
            ..queue::Purge::default()
        };
        self.try_call::<queue::PurgeOk>(channel, purge)
            .map(|reply| reply.message_count)
    }

    /// Messages of a queue that wait.
    #[track_caller]
    pub(crate) fn message_count(&mut self, channel: u16, queue: &str) -> u32 {
        self.queue_declare(channel, queue, passive()).message_count
    }

    /// Deletes a queue; how many messages went with it.
    #[track_caller]
    pub(crate) fn queue_delete(&mut self, channel: u16, queue: &str) -> u32 {
        must("queue.delete", self.try_queue_delete(channel, queue))
    }

    /// Deletes a queue; how many messages went with it.
    pub(crate) fn try_queue_delete(&mut self, channel: u16, queue: &str) -> Outcome<u32> {
        let delete = queue::Delete {
            queue: text(queue),
            ..queue::Delete::default()
        };
        self.try_call::<queue::DeleteOk>(channel, delete)
            .map(|reply| reply.message_count)
    }

    /// Binds an exchange to an exchange.
    #[track_caller]
    pub(crate) fn exchange_bind(
        &mut self,
        channel: u16,
        destination: &str,
        source: &str,
        routing_key: &str,
    ) {
        let bind = exchange::Bind {
            destination: text(destination),
            source: text(source),
            routing_key: text(routing_key),
            ..exchange::Bind::default()
        };
        self.call::<exchange::BindOk>(channel, bind);
    }

    /// Limits unacknowledged deliveries of each consumer; also a round trip through the channel.
    pub(crate) fn try_qos(&mut self, channel: u16, prefetch_count: u16) -> Outcome<()> {
        let qos = basic::Qos {
            prefetch_count,
            ..basic::Qos::default()
        };
        self.try_call::<basic::QosOk>(channel, qos).map(drop)
    }

    // ---- publishing ----

    /// Publishes.
    #[track_caller]
    pub(crate) fn publish(
        &mut self,
        channel: u16,
        exchange: &str,
        routing_key: &str,
        message: &Message,
    ) {
        must(
            "basic.publish",
            self.try_publish(channel, exchange, routing_key, message),
        );
    }

    /// Publishes.
    pub(crate) fn try_publish(
        &mut self,
        channel: u16,
        exchange: &str,
        routing_key: &str,
        message: &Message,
    ) -> Outcome<()> {
        self.push_publish(channel, exchange, routing_key, message);
        self.flush()
    }

    /// Puts a publish into the output without sending it.
    pub(crate) fn push_publish(
        &mut self,
        channel: u16,
        exchange: &str,
        routing_key: &str,
        message: &Message,
    ) {
        let publish = basic::Publish {
            exchange: text(exchange),
            routing_key: text(routing_key),
            ..basic::Publish::default()
        };
        self.push(channel, publish);
        self.push_content(channel, message);
    }

    /// Asks for confirms.
    #[track_caller]
    pub(crate) fn confirm_select(&mut self, channel: u16) {
        must("confirm.select", self.try_confirm_select(channel));
    }

    /// Asks for confirms.
    pub(crate) fn try_confirm_select(&mut self, channel: u16) -> Outcome<()> {
        self.try_call::<confirm::SelectOk>(channel, confirm::Select::default())
            .map(drop)
    }

    /// The next confirm, which must be an ack.
    #[track_caller]
    pub(crate) fn wait_confirm(&mut self, channel: u16) -> basic::Ack {
        must("a confirm", self.try_wait_confirm(channel))
    }

    /// The next confirm, which must be an ack; deliveries stay in the inbox.
    pub(crate) fn try_wait_confirm(&mut self, channel: u16) -> Outcome<basic::Ack> {
        self.try_next_confirm_within(channel, self.read_limit)
    }

    /// The next confirm if it comes within the limit.
    pub(crate) fn try_next_confirm_within(
        &mut self,
        channel: u16,
        limit: Duration,
    ) -> Outcome<basic::Ack> {
        let is_confirm = |incoming: &super::Incoming| {
            matches!(incoming.method, Method::BasicAck(_) | Method::BasicNack(_))
        };
        match self.take_matching(channel, limit, is_confirm)?.method {
            Method::BasicAck(ack) => Ok(ack),
            other => Err(Trouble::Unexpected(format!("{other:?}"))),
        }
    }

    /// Waits until the confirms have reached this number (the first publish on a channel is 1).
    #[track_caller]
    pub(crate) fn wait_confirms_upto(&mut self, channel: u16, last: u64) {
        self.wait_confirms_upto_from(channel, 0, last);
    }

    /// The same when those up to `confirmed` have come already.
    #[track_caller]
    pub(crate) fn wait_confirms_upto_from(&mut self, channel: u16, confirmed: u64, last: u64) {
        // Acks may come singly and out of order: each one counts for itself unless it is `multiple`.
        let mut open: std::collections::BTreeSet<u64> = (confirmed + 1..=last).collect();
        while !open.is_empty() {
            let ack = self.wait_confirm(channel);
            if ack.multiple {
                open.retain(|tag| *tag > ack.delivery_tag);
            } else {
                open.remove(&ack.delivery_tag);
            }
        }
    }

    // ---- consuming ----

    /// Starts a consumer that acknowledges by hand; its tag is the caller's choice.
    #[track_caller]
    pub(crate) fn consume(&mut self, channel: u16, queue: &str, consumer_tag: &str) {
        must(
            "basic.consume",
            self.try_consume(channel, queue, consumer_tag),
        );
    }

    /// Starts a consumer that acknowledges by hand.
    pub(crate) fn try_consume(
        &mut self,
        channel: u16,
        queue: &str,
        consumer_tag: &str,
    ) -> Outcome<()> {
        let consume = basic::Consume {
            queue: text(queue),
            consumer_tag: text(consumer_tag),
            ..basic::Consume::default()
        };
        self.try_call::<basic::ConsumeOk>(channel, consume)
            .map(drop)
    }

    /// Ends a consumer. Deliveries that came before the answer are in the inbox.
    pub(crate) fn try_cancel(&mut self, channel: u16, consumer_tag: &str) -> Outcome<()> {
        let cancel = basic::Cancel {
            consumer_tag: text(consumer_tag),
            nowait: false,
        };
        self.try_call::<basic::CancelOk>(channel, cancel).map(drop)
    }

    /// The next delivery; confirms and returns stay in the inbox.
    #[track_caller]
    pub(crate) fn next_delivery(&mut self, channel: u16) -> Delivered {
        must("a delivery", self.try_next_delivery(channel))
    }

    /// The next delivery; confirms and returns stay in the inbox.
    pub(crate) fn try_next_delivery(&mut self, channel: u16) -> Outcome<Delivered> {
        let (deliver, message): (basic::Deliver, _) = self.try_expect_content(channel)?;
        Ok(Delivered::of_deliver(&deliver, content(message)?))
    }

    /// Asks for one message.
    #[track_caller]
    pub(crate) fn get(&mut self, channel: u16, queue: &str) -> Option<Delivered> {
        must("basic.get", self.try_get(channel, queue))
    }

    /// Asks for one message, to be acknowledged by hand.
    pub(crate) fn try_get(&mut self, channel: u16, queue: &str) -> Outcome<Option<Delivered>> {
        self.try_send(
            channel,
            basic::Get {
                queue: text(queue),
                ..basic::Get::default()
            },
        )?;
        let limit = self.read_limit;
        let incoming = self.take_matching(channel, limit, |incoming| !incoming.is_spontaneous())?;
        match incoming.method {
            Method::BasicGetOk(got) => {
                Ok(Some(Delivered::of_get_ok(&got, content(incoming.message)?)))
            }
            Method::BasicGetEmpty(_) => Ok(None),
            other => Err(Trouble::Unexpected(format!("{other:?}"))),
        }
    }

    /// Acknowledges one delivery.
    #[track_caller]
    pub(crate) fn ack(&mut self, channel: u16, delivery_tag: u64) {
        must("basic.ack", self.try_ack(channel, delivery_tag, false));
    }

    /// Acknowledges everything up to a delivery.
    #[track_caller]
    pub(crate) fn ack_upto(&mut self, channel: u16, delivery_tag: u64) {
        must("basic.ack", self.try_ack(channel, delivery_tag, true));
    }

    /// Acknowledges one delivery, or everything up to it.
    pub(crate) fn try_ack(
        &mut self,
        channel: u16,
        delivery_tag: u64,
        multiple: bool,
    ) -> Outcome<()> {
        self.try_send(
            channel,
            basic::Ack {
                delivery_tag,
                multiple,
            },
        )
    }

    /// Refuses one delivery.
    #[track_caller]
    pub(crate) fn nack(&mut self, channel: u16, delivery_tag: u64, requeue: bool) {
        must("basic.nack", self.try_nack(channel, delivery_tag, requeue));
    }

    /// Refuses one delivery.
    pub(crate) fn try_nack(
        &mut self,
        channel: u16,
        delivery_tag: u64,
        requeue: bool,
    ) -> Outcome<()> {
        self.try_send(
            channel,
            basic::Nack {
                delivery_tag,
                multiple: false,
                requeue,
            },
        )
    }

    // ---- transactions ----

    /// Makes the channel transactional.
    #[track_caller]
    pub(crate) fn tx_select(&mut self, channel: u16) {
        must("tx.select", self.try_tx_select(channel));
    }

    /// Makes the channel transactional.
    pub(crate) fn try_tx_select(&mut self, channel: u16) -> Outcome<()> {
        self.try_call::<tx::SelectOk>(channel, tx::Select {})
            .map(drop)
    }

    /// Commits.
    #[track_caller]
    pub(crate) fn tx_commit(&mut self, channel: u16) {
        must("tx.commit", self.try_tx_commit(channel));
    }

    /// Commits.
    pub(crate) fn try_tx_commit(&mut self, channel: u16) -> Outcome<()> {
        self.try_call::<tx::CommitOk>(channel, tx::Commit {})
            .map(drop)
    }

    /// Rolls back.
    #[track_caller]
    pub(crate) fn tx_rollback(&mut self, channel: u16) {
        must("tx.rollback", self.try_tx_rollback(channel));
    }

    /// Rolls back.
    pub(crate) fn try_tx_rollback(&mut self, channel: u16) -> Outcome<()> {
        self.try_call::<tx::RollbackOk>(channel, tx::Rollback {})
            .map(drop)
    }
}

fn content(message: Option<Message>) -> Outcome<Message> {
    message.ok_or_else(|| Trouble::Unexpected("a method without its content".into()))
}
