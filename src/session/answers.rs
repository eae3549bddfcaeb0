//! Answers of the broker, and of the disk: what was asked becomes what is told.

use super::channel::{AfterEnd, Answer, Awaiting, ChannelState, Mode, PendingCommit};
use super::close::Failure;
use super::{Phase, Session};
use crate::amqp::method::{MethodId, basic, channel, queue, tx};
use crate::amqp::reply_code::ChannelReplyCode;
use crate::broker::command::{ConfirmAt, Lsn, Publish, Published, PublishedRun, Reply, ReplyBody};
use crate::broker::error::BrokerError;

impl Session {
    /// Answers the last [`Event::Command`](super::Event::Command) of `channel`.
    pub fn command_result(&mut self, channel: u16, result: Result<Reply, BrokerError>) {
        let Some(entry) = self.channels.get_mut(&channel) else {
            return;
        };
        if entry.unneeded_answer_count > 0 {
            entry.unneeded_answer_count -= 1;
            match result {
                Ok(reply) => self.absorb(channel, reply.body),
                Err(error) => self.fail_by_broker(channel, Failure::broker(error, MethodId::NONE)),
            }
            return;
        }
        match std::mem::take(&mut entry.state) {
            ChannelState::Waiting { method, awaiting } => match result {
                Ok(reply) => self.answered(channel, method, awaiting, reply),
                Err(error) => self.refused(channel, method, awaiting, error),
            },
            ChannelState::Ending(after) => {
                let durable_at = result.ok().and_then(|reply| reply.durable_at);
                self.channel_ended(channel, after, durable_at);
            }
            state => entry.state = state,
        }
    }

    /// An answer that the client does not wait for. A message in it must not be lost.
    fn absorb(&mut self, id: u16, body: ReplyBody) {
        if let ReplyBody::Got { delivery, .. } = body {
            self.keep_unsent(id, delivery.unsettled());
        }
    }

    fn refused(&mut self, id: u16, method: MethodId, awaiting: Awaiting, error: BrokerError) {
        if let (Awaiting::Commit(pending), Some(channel)) = (awaiting, self.channels.get_mut(&id)) {
            channel.tags.restore(pending.settled);
        }
        self.fail_by_broker(id, Failure::broker(error, method));
    }

    fn answered(&mut self, id: u16, method: MethodId, awaiting: Awaiting, reply: Reply) {
        let is_commit = matches!(awaiting, Awaiting::Commit(_));
        match self.answer(id, method, awaiting, reply.body) {
            Ok(Some(answer)) => self.hold_or_send(id, answer, reply.durable_at, is_commit),
            Ok(None) => {}
            Err(failure) => self.fail_by_broker(id, failure),
        }
    }

    /// What to tell the client; `None` while the broker still has the word.
    fn answer(
        &mut self,
        id: u16,
        method: MethodId,
        awaiting: Awaiting,
        body: ReplyBody,
    ) -> Result<Option<Answer>, Failure> {
        let channel = self.channel(id)?;
        let answer = match (awaiting, body) {
            (Awaiting::Ok(ok), ReplyBody::Done) => ok.map_or(Answer::Nothing, Answer::Method),
            (
                Awaiting::QueueDeclare { is_nowait },
                ReplyBody::QueueDeclared {
                    queue,
                    messages,
                    consumers,
                },
            ) => {
                channel.last_queue = Some(queue.clone());
                told(
                    is_nowait,
                    queue::DeclareOk {
                        queue,
                        message_count: messages,
                        consumer_count: consumers,
                    },
                )
            }
            (Awaiting::QueueDelete { is_nowait }, ReplyBody::Removed { messages }) => told(
                is_nowait,
                queue::DeleteOk {
                    message_count: messages,
                },
            ),
            (Awaiting::QueuePurge { is_nowait }, ReplyBody::Removed { messages }) => told(
                is_nowait,
                queue::PurgeOk {
                    message_count: messages,
                },
            ),
            (
                Awaiting::Consume { tag, is_nowait },
                ReplyBody::Consuming {
                    consumer,
                    timeout_ms,
                },
            ) => {
                if let Some(timeout_ms) = timeout_ms {
                    self.set_timeout(id, consumer, timeout_ms);
                }
                let channel = self.channel(id)?;
                channel.consumers.insert(tag.clone(), consumer);
                channel.tags.expect_holders(channel.consumers.count());
                told(is_nowait, basic::ConsumeOk { consumer_tag: tag })
            }
            (
                Awaiting::Cancel {
                    consumer,
                    tag,
                    is_nowait,
                },
                ReplyBody::Done,
            ) => {
                channel.consumers.remove(consumer);
                channel.tags.expect_holders(channel.consumers.count());
                told(is_nowait, basic::CancelOk { consumer_tag: tag })
            }
            (
                Awaiting::Get,
                ReplyBody::Got {
                    delivery,
                    remaining,
                },
            ) => Answer::Got(Box::new(delivery), remaining),
            (Awaiting::Get, ReplyBody::GotNothing) => {
                Answer::Method(basic::GetEmpty::default().into())
            }
            (Awaiting::Get, ReplyBody::GetPending) => {
                let awaiting = Awaiting::GetReady;
                channel.state = ChannelState::Waiting { method, awaiting };
                return Ok(None);
            }
            (Awaiting::Commit(pending), ReplyBody::Committed { published }) => {
                let returns = returns(pending, &published);
                if has_refusal(&published) {
                    // What was accepted stays (TX-7), and so does what was not to be lost unseen (TX-6).
                    self.send_returns(&returns);
                    return Err(partial_completion());
                }
                Answer::Committed(returns)
            }
            _ => return Err(super::internal_error("the answer does not fit the command")),
        };
        Ok(Some(answer))
    }

    fn hold_or_send(&mut self, id: u16, answer: Answer, durable_at: Option<Lsn>, is_commit: bool) {
        // Who asked for no answer waits for nothing: a thousand declarations with nowait share one commit.
        // What follows on the channel is in the log behind them.
        let is_told = !matches!(answer, Answer::Nothing);
        let held_lsn = durable_at.filter(|lsn| is_told && *lsn > self.durable);
        let Some(lsn) = held_lsn else {
            return self.send_answer(id, answer);
        };
        let Some(channel) = self.channels.get_mut(&id) else {
            return;
        };
        channel.state = ChannelState::Held {
            lsn,
            answer,
            is_commit,
        };
        if is_commit && let Some(frame) = channel.held.pop_front() {
            self.forget_held(&frame);
            self.handle_channel_frame(id, frame);
        }
    }

    /// Tells the client and lets the channel go on.
    fn send_answer(&mut self, id: u16, answer: Answer) {
        match answer {
            Answer::Nothing => {}
            Answer::Method(method) => self.send(id, method),
            Answer::Got(delivery, remaining) => self.send_get_ok(id, &delivery, remaining),
            Answer::Committed(returns) => {
                self.send_returns(&returns);
                self.send(id, tx::CommitOk {});
            }
            Answer::CloseOk => {
                self.send(id, channel::CloseOk {});
                return self.remove_channel(id);
            }
        }
        self.replay_held(id);
    }

    fn send_returns(&mut self, publishes: &[Publish]) {
        for publish in publishes {
            self.send_return(publish.channel, &publish.message);
        }
    }

    /// The broker has closed its side of the channel.
    fn channel_ended(&mut self, id: u16, after: AfterEnd, durable_at: Option<Lsn>) {
        let is_running = matches!(self.phase, Phase::Running);
        match after {
            _ if !is_running => {
                self.wait_for(durable_at);
                self.channels.remove(&id);
            }
            AfterEnd::Silence => self.remove_channel(id),
            AfterEnd::CloseOk => {
                self.send_confirms();
                self.hold_or_send(id, Answer::CloseOk, durable_at, false);
            }
            AfterEnd::Close { reason, is_crossed } => {
                self.send(id, reason.close());
                if is_crossed {
                    self.send(id, channel::CloseOk {});
                }
                if let Some(channel) = self.channels.get_mut(&id) {
                    channel.state = ChannelState::AwaitCloseOk;
                }
                self.replay_held(id);
            }
        }
    }

    /// Answers [`Event::Publish`](super::Event::Publish)es, in their order.
    pub fn publish_results(&mut self, published: &[PublishedRun]) {
        for run in published {
            self.publish_results_of(run);
        }
    }

    /// The same for publishes of one channel.
    fn publish_results_of(&mut self, published: &PublishedRun) {
        let id = published.channel;
        let Some(channel) = self.channels.get_mut(&id) else {
            return;
        };
        let unanswered = &mut channel.unanswered_publish_count;
        *unanswered = unanswered.saturating_sub(published.count);
        if !channel.is_live() {
            return;
        }
        if let Mode::Confirm(confirms) = &mut channel.mode {
            confirms.push(published.confirm, published.count);
            if self.unconfirmed.last() != Some(&id) {
                self.unconfirmed.push(id);
            }
        }
        // Confirms are sent later, so the return precedes its own.
        for message in &published.returned {
            self.send_return(id, message);
        }
    }

    /// The broker refused an [`Event::Publish`](super::Event::Publish) or
    /// [`Event::TxPublish`](super::Event::TxPublish) of `channel`. What the server still holds of
    /// this channel must be dropped: see [`is_open_channel`](Self::is_open_channel).
    pub fn publish_refused(&mut self, channel: u16, error: BrokerError) {
        self.fail_by_broker(channel, Failure::broker(error, basic::Publish::ID));
    }

    /// False when publishes of `channel` that the server has gathered must be dropped.
    #[must_use]
    pub fn is_open_channel(&self, channel: u16) -> bool {
        self.channels
            .get(&channel)
            .is_some_and(|channel| channel.is_live())
    }

    /// Everything below `confirm_lsn` is durable: sends confirms and held replies.
    pub fn handle_durable(&mut self, confirm_lsn: Lsn) {
        self.send_confirms();
        if confirm_lsn <= self.durable {
            return;
        }
        self.durable = confirm_lsn;
        self.finish_ending();
        if !self.is_running() {
            return;
        }
        let pending: Vec<u16> = self.pending_channels().collect();
        for id in pending {
            self.send_confirms_of(id);
            self.release(id);
        }
    }

    fn pending_channels(&self) -> impl Iterator<Item = u16> {
        let channels = self.channels.iter();
        channels
            .filter(|(_, channel)| match (&channel.state, &channel.mode) {
                (ChannelState::Held { .. }, _) => true,
                (_, Mode::Confirm(confirms)) => !confirms.is_empty(),
                _ => false,
            })
            .map(|(id, _)| *id)
    }

    fn release(&mut self, id: u16) {
        let durable = self.durable;
        let Some(channel) = self.channels.get_mut(&id) else {
            return;
        };
        match std::mem::take(&mut channel.state) {
            ChannelState::Held { lsn, answer, .. } if lsn <= durable => {
                self.send_answer(id, answer)
            }
            state => channel.state = state,
        }
    }

    /// Sends the confirms that can be sent of all channels that had outcomes lately. [`poll_event`](Self::poll_event) does it when
    /// there is nothing left to poll.
    pub fn send_confirms(&mut self) {
        let mut ids = std::mem::take(&mut self.unconfirmed);
        ids.drain(..).for_each(|id| self.send_confirms_of(id));
        self.unconfirmed = ids;
    }

    fn send_confirms_of(&mut self, id: u16) {
        let durable = self.durable;
        while let Some(channel) = self.channels.get_mut(&id)
            && channel.is_live()
            && let Mode::Confirm(confirms) = &mut channel.mode
            && let Some(confirm) = confirms.take(durable)
        {
            let (delivery_tag, multiple) = (confirm.tag, confirm.is_multiple);
            match confirm.is_ack {
                true => self.send(
                    id,
                    basic::Ack {
                        delivery_tag,
                        multiple,
                    },
                ),
                // The requeue bit means nothing to publishers; RabbitMQ sets it.
                false => self.send(
                    id,
                    basic::Nack {
                        delivery_tag,
                        multiple,
                        requeue: true,
                    },
                ),
            }
        }
    }

    /// The lowest LSN whose durability this session waits for.
    #[must_use]
    pub fn first_pending_lsn(&self) -> Option<Lsn> {
        match &self.phase {
            Phase::Running => {
                let channels = self.channels.values();
                channels
                    .filter_map(|channel| channel.first_pending_lsn())
                    .min()
            }
            Phase::Ending(ending) => ending.lsn.filter(|lsn| *lsn > self.durable),
            _ => None,
        }
    }
}

fn told(is_nowait: bool, ok: impl Into<crate::amqp::method::Method>) -> Answer {
    match is_nowait {
        true => Answer::Nothing,
        false => Answer::Method(ok.into()),
    }
}

/// A queue refused a publish of the transaction.
fn has_refusal(published: &[Published]) -> bool {
    let mut all = published.iter();
    all.any(|published| published.confirm == ConfirmAt::Nack)
}

fn partial_completion() -> Failure {
    let code = ChannelReplyCode::PreconditionFailed;
    Failure::channel(code, "partial tx completion", tx::Commit::ID)
}

/// The mandatory messages of a transaction that have no queue.
fn returns(pending: PendingCommit, published: &[Published]) -> Vec<Publish> {
    let is_unroutable = |index: usize| published.get(index).is_some_and(|p| p.is_unroutable);
    let mandatory = pending.mandatory.into_iter();
    mandatory
        .filter(|(index, _)| is_unroutable(*index))
        .map(|(_, publish)| publish)
        .collect()
}
