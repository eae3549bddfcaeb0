//! Channels come and go: open, close by either side, failures, and the frames that wait meanwhile.

use std::collections::VecDeque;

use super::channel::{AfterEnd, Awaiting, Channel, ChannelState};
use super::close::{CloseReason, Failure};
use super::event::Event;
use super::options::ChannelSlot;
use super::{Phase, Session, Work};
use crate::amqp::frame::{Frame, FrameKind};
use crate::amqp::method::{Method, MethodId, channel, tx};
use crate::amqp::reply_code::{ChannelReplyCode, ConnectionReplyCode};
use crate::broker::command::Command;

/// Room for frames that wait which a channel keeps: a burst of commands takes a hundred times as much.
const HELD_KEPT_COUNT: usize = 32;

impl Session {
    /// A frame of a channel of a running connection.
    pub(super) fn handle_channel_frame(&mut self, id: u16, frame: Frame) {
        let result = match self.channels.get_mut(&id) {
            None => self.handle_unopened(id, &frame),
            Some(channel) => match &mut channel.state {
                ChannelState::Open => self.handle_open_channel(id, frame),
                ChannelState::Held {
                    is_commit: true, ..
                } => Err(during_commit(&frame)),
                ChannelState::Waiting { .. }
                | ChannelState::Held { .. }
                | ChannelState::Ending(AfterEnd::CloseOk) => {
                    self.held_frame_count += 1;
                    self.held_bytes += frame.payload.len();
                    channel.held.push_back(frame);
                    Ok(())
                }
                ChannelState::Ending(AfterEnd::Close { .. }) | ChannelState::AwaitCloseOk => {
                    self.handle_closing(id, &frame)
                }
                ChannelState::Ending(AfterEnd::Silence) => Ok(()),
            },
        };
        if let Err(failure) = result {
            self.fail(id, failure);
        }
    }

    /// Only `channel.open` may come.
    fn handle_unopened(&mut self, id: u16, frame: &Frame) -> Result<(), Failure> {
        if frame.kind != FrameKind::Method {
            return Err(super::content::Content::Idle.interrupted());
        }
        let method = Method::decode(&frame.payload)?;
        let Method::ChannelOpen(_) = method else {
            let text = "expected 'channel.open'";
            return Err(Failure::connection(
                ConnectionReplyCode::ChannelError,
                text,
                method.id(),
            ));
        };
        let open_count = self.channels.len();
        if open_count >= usize::from(self.channel_max) {
            let text = format!(
                "number of channels opened ({open_count}) has reached the negotiated channel_max ({})",
                self.channel_max
            );
            return Err(Failure::connection(
                ConnectionReplyCode::NotAllowed,
                text,
                MethodId::NONE,
            ));
        }
        let channel = Channel {
            _slot: self.take_channel_slot()?,
            prefetch: self.options.default_prefetch,
            ..Channel::default()
        };
        self.channels.insert(id, Box::new(channel));
        let ok = Awaiting::Ok(Some(channel::OpenOk::default().into()));
        self.ask(id, channel::Open::ID, Command::OpenChannel, ok);
        Ok(())
    }

    /// A share of the channels of all sessions, if they are limited.
    fn take_channel_slot(&self) -> Result<Option<ChannelSlot>, Failure> {
        let Some(budget) = &self.options.channel_budget else {
            return Ok(None);
        };
        let refuse = || {
            let (node, max) = (&self.options.cluster_name, budget.max());
            let text = format!(
                "number of channels opened on node '{node}' has reached the maximum allowed limit of ({max})"
            );
            Failure::connection(ConnectionReplyCode::NotAllowed, text, MethodId::NONE)
        };
        budget.take().map(Some).ok_or_else(refuse)
    }

    /// After our own `channel.close` everything is ignored but the end of the closing.
    fn handle_closing(&mut self, id: u16, frame: &Frame) -> Result<(), Failure> {
        if frame.kind != FrameKind::Method {
            return Ok(());
        }
        let Some(channel) = self.channels.get_mut(&id) else {
            return Ok(());
        };
        match (Method::decode(&frame.payload), &mut channel.state) {
            (Ok(Method::ChannelOpen(_)), _) => Err(second_open()),
            (
                Ok(Method::ChannelClose(_)),
                ChannelState::Ending(AfterEnd::Close { is_crossed, .. }),
            ) => {
                *is_crossed = true;
                Ok(())
            }
            (Ok(Method::ChannelClose(_)), _) => {
                self.send(id, channel::CloseOk {});
                Ok(())
            }
            (Ok(Method::ChannelCloseOk(_)), ChannelState::AwaitCloseOk) => {
                self.channels.remove(&id);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The client closes the channel.
    pub(super) fn close_channel(&mut self, id: u16) {
        if let Some(channel) = self.channels.get_mut(&id) {
            channel.begin_end(AfterEnd::CloseOk);
            self.work.push_back(Work::CloseChannel(id));
        }
    }

    /// The server closes the channel: first in the broker, then towards the client.
    pub(super) fn fail_channel(&mut self, id: u16, reason: CloseReason<ChannelReplyCode>) {
        let Some(channel) = self.channels.get_mut(&id) else {
            return;
        };
        match channel.state {
            // The broker closes it already; its failure has been told, or nobody wants to know.
            ChannelState::Ending(_) | ChannelState::AwaitCloseOk => return,
            ChannelState::Held {
                answer: super::channel::Answer::CloseOk,
                ..
            } => return,
            _ => {}
        }
        channel.begin_end(AfterEnd::Close {
            reason,
            is_crossed: false,
        });
        self.work.push_back(Work::CloseChannel(id));
        self.replay_held(id);
    }

    /// The broker refused something of this channel: what follows on it is not asked any more.
    pub(super) fn fail_by_broker(&mut self, id: u16, failure: Failure) {
        if let Some(channel) = self.channels.get_mut(&id) {
            for work in std::mem::take(&mut self.work) {
                match work {
                    Work::Event(Event::Command {
                        channel: of,
                        command,
                    }) if of == id => channel.forget_command(command),
                    Work::Publishes(mut run) => {
                        run.retain(|publish| publish.channel != id);
                        if !run.is_empty() {
                            self.work.push_back(Work::Publishes(run));
                        }
                    }
                    work if work.is_event_of(id) => {}
                    work => self.work.push_back(work),
                }
            }
        }
        if let Phase::Running = self.phase {
            self.fail(id, failure);
        }
    }

    /// Gives the channel's held frames another try, until it is busy again.
    pub(super) fn replay_held(&mut self, id: u16) {
        let mut has_replayed = false;
        while let Some(channel) = self.channels.get_mut(&id)
            && !channel.is_busy()
            && !matches!(channel.state, ChannelState::Ending(AfterEnd::CloseOk))
            && let Some(frame) = channel.held.pop_front()
        {
            has_replayed = true;
            self.forget_held(&frame);
            self.handle_channel_frame(id, frame);
        }
        if has_replayed
            && let Some(channel) = self.channels.get_mut(&id)
            && channel.held.is_empty()
            && channel.held.capacity() > HELD_KEPT_COUNT
        {
            channel.held = VecDeque::new();
        }
    }

    /// The channel is gone. Frames that the client sent without waiting for close-ok come next.
    pub(super) fn remove_channel(&mut self, id: u16) {
        let held: VecDeque<Frame> = match self.channels.remove(&id) {
            Some(channel) => channel.held,
            None => return,
        };
        for frame in held {
            self.forget_held(&frame);
            if let Phase::Running = self.phase {
                self.handle_channel_frame(id, frame);
            }
        }
    }

    pub(super) fn forget_held(&mut self, frame: &Frame) {
        self.held_frame_count = self.held_frame_count.saturating_sub(1);
        self.held_bytes = self.held_bytes.saturating_sub(frame.payload.len());
    }

    /// Asks the broker; the channel waits for the answer.
    pub(super) fn ask(&mut self, id: u16, method: MethodId, command: Command, awaiting: Awaiting) {
        if let Some(channel) = self.channels.get_mut(&id) {
            channel.state = ChannelState::Waiting { method, awaiting };
            self.work.push_back(Work::Event(Event::Command {
                channel: id,
                command,
            }));
        }
    }
}

impl Work {
    fn is_event_of(&self, id: u16) -> bool {
        match self {
            Self::Event(Event::Command { channel, .. }) => *channel == id,
            Self::Event(Event::Publish(publish) | Event::TxPublish(publish)) => {
                publish.channel == id
            }
            Self::CloseChannel(_)
            | Self::Publishes(_)
            | Self::Event(Event::Login(_) | Event::Open { .. } | Event::Ended) => false,
        }
    }
}

/// `channel.open` on a channel that is there.
pub(super) fn second_open() -> Failure {
    let text = "second 'channel.open' seen";
    Failure::connection(ConnectionReplyCode::ChannelError, text, channel::Open::ID)
}

fn during_commit(frame: &Frame) -> Failure {
    let method = match frame.kind {
        FrameKind::Method => {
            Method::decode(&frame.payload).map_or(MethodId::NONE, |method| method.id())
        }
        _ => tx::Commit::ID,
    };
    let text = "unexpected command while processing 'tx.commit'";
    Failure::connection(ConnectionReplyCode::ChannelError, text, method)
}
