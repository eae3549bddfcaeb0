//! The connection as a whole: channel 0, its end in all its ways, heartbeats and other timeouts.
//!
//! ```text
//!  client's close ----+
//!  error, shutdown ---+--> Ending: CloseChannel for each channel, Ended --ended, durable--> close-ok: Finished
//!  end of input ------+                                                               \--> close: AwaitCloseOk
//! ```
//! The broker has closed everything *before* the client is told, so that a client that reconnects finds
//! its exclusive queues gone.

use super::channel::{AfterEnd, ChannelState};
use super::close::{CloseReason, Failure};
use super::event::Event;
use super::heartbeat::Beat;
use super::overdue::Watch;
use super::{AfterEnding, Alarm, Ending, OUTPUT_HIGH_BYTES, Phase, Session, Work};
use crate::amqp::content::FrameSink;
use crate::amqp::frame::{self, Frame, FrameError, FrameKind};
use crate::amqp::method::{Method, MethodId, connection};
use crate::amqp::reply_code::ConnectionReplyCode;
use crate::amqp::short_string::ShortString;
use crate::broker::command::Lsn;

/// Bytes of a heartbeat frame.
const HEARTBEAT_BYTES: u64 = 8;

impl Session {
    pub(super) fn handle_frame(&mut self, frame: Frame) {
        match self.phase {
            Phase::Running if frame.channel == 0 => {
                if let Err(failure) = self.handle_connection_frame(&frame) {
                    self.fail(0, failure);
                }
            }
            Phase::Running => self.handle_channel_frame(frame.channel, frame),
            Phase::AwaitCloseOk { .. } => self.handle_frame_while_closing(&frame),
            _ => self.handle_handshake_frame(&frame),
        }
    }

    /// The stream of frames is broken: nothing that follows can be understood.
    pub(super) fn handle_frame_error(&mut self, error: FrameError) {
        let Phase::Running = self.phase else {
            return self.refuse(format!("handshake refused: {error}"));
        };
        if let Failure::Connection(reason) = Failure::from(error) {
            self.complain(reason.reply_text().to_string());
            self.fail_connection(AfterEnding::CloseAndLinger(reason));
        }
    }

    fn handle_connection_frame(&mut self, frame: &Frame) -> Result<(), Failure> {
        match frame.kind {
            FrameKind::Heartbeat => return Ok(()),
            FrameKind::Method => {}
            FrameKind::Header | FrameKind::Body => {
                return Err(FrameError::unexpected(frame.kind, &frame.payload).into());
            }
        }
        match Method::decode(&frame.payload)? {
            Method::ConnectionClose(_) => {
                self.fail_connection(AfterEnding::CloseOk);
                Ok(())
            }
            Method::ConnectionUpdateSecret(_) => {
                // Passwords are checked at login only: a new one changes nothing for this connection.
                self.send(0, connection::UpdateSecretOk {});
                Ok(())
            }
            method => {
                let text = "unexpected method in connection state running";
                Err(Failure::connection(
                    ConnectionReplyCode::ChannelError,
                    text,
                    method.id(),
                ))
            }
        }
    }

    /// After our own close only the end of the closing is of interest.
    fn handle_frame_while_closing(&mut self, frame: &Frame) {
        if frame.kind != FrameKind::Method || frame.channel != 0 {
            return;
        }
        match Method::decode(&frame.payload) {
            Ok(Method::ConnectionClose(_)) => self.send(0, connection::CloseOk {}),
            Ok(Method::ConnectionCloseOk(_)) => self.phase = Phase::Finished,
            _ => {}
        }
    }

    /// Ends the connection in the broker first, then as `after` says.
    pub(super) fn fail_connection(&mut self, after: AfterEnding) {
        for (id, channel) in &mut self.channels {
            let is_ending = matches!(channel.state, ChannelState::Ending(_));
            let is_closed = match channel.state {
                ChannelState::AwaitCloseOk => true,
                _ => channel.is_collected,
            };
            if !is_ending && !is_closed {
                self.work.push_back(Work::CloseChannel(*id));
            }
            if !is_closed {
                channel.begin_end(AfterEnd::Silence);
            }
            channel.held.clear();
        }
        self.held_frame_count = 0;
        self.held_bytes = 0;
        self.work.push_back(Work::Event(Event::Ended));
        self.phase = Phase::Ending(Ending {
            after,
            is_ended: false,
            lsn: None,
        });
    }

    /// Answers [`Event::Ended`].
    pub fn ended(&mut self) {
        if let Phase::Ending(ending) = &mut self.phase {
            ending.is_ended = true;
            self.finish_ending();
        }
    }

    /// Tells the client, when all is done and durable.
    pub(super) fn finish_ending(&mut self) {
        let durable = self.durable;
        let Phase::Ending(ending) = &mut self.phase else {
            return;
        };
        let is_heard = !matches!(ending.after, AfterEnding::Silence);
        let must_wait = is_heard && ending.lsn.is_some_and(|lsn| lsn > durable);
        if !ending.is_ended || must_wait {
            return;
        }
        self.channels.clear();
        self.unconfirmed.clear();
        match std::mem::replace(&mut ending.after, AfterEnding::Silence) {
            AfterEnding::Silence => self.phase = Phase::Finished,
            AfterEnding::CloseOk => {
                self.send(0, connection::CloseOk {});
                self.phase = Phase::Finished;
            }
            AfterEnding::Close(reason) => {
                self.send(0, reason.close());
                self.await_close_ok();
            }
            AfterEnding::CloseAndLinger(reason) => {
                self.send(0, reason.close());
                self.linger();
            }
        }
    }

    /// The client closed its side of the socket, or the socket failed: cleans up in the broker.
    pub fn handle_eof(&mut self) {
        match &mut self.phase {
            Phase::Running => self.fail_connection(AfterEnding::Silence),
            Phase::Ending(ending) => {
                ending.after = AfterEnding::Silence;
                self.finish_ending();
            }
            // The broker may be about to open the virtual host: what it opens must be closed again.
            Phase::Opening => {
                self.work.clear();
                self.fail_connection(AfterEnding::Silence);
            }
            _ => self.phase = Phase::Finished,
        }
    }

    /// Closes the connection with 320 CONNECTION_FORCED and `text`.
    pub fn begin_shutdown(&mut self, text: &str) {
        match self.phase {
            Phase::Running => {
                self.fail_connection(AfterEnding::Close(CloseReason {
                    code: ConnectionReplyCode::ConnectionForced,
                    text: text.to_owned(),
                    method: MethodId::NONE,
                }));
            }
            Phase::Ending(_) | Phase::AwaitCloseOk { .. } => {}
            _ => self.handle_eof(),
        }
    }

    /// The server's own code failed: closes the connection with 541 INTERNAL_ERROR.
    pub fn fail_internally(&mut self) {
        match self.phase {
            Phase::Running => self.fail(0, super::internal_error("internal error")),
            Phase::Ending(_) | Phase::AwaitCloseOk { .. } => {}
            _ => self.handle_eof(),
        }
    }

    /// Memory or disk alarm: with a reason, the next publisher is blocked; `None` when it is over.
    pub fn set_alarm(&mut self, reason: Option<&str>) {
        match reason {
            Some(reason) => {
                self.alarm.reason = Some(ShortString::from_text_cut(reason));
                self.set_awaits_room(self.awaits_room);
            }
            None => {
                let before = std::mem::take(&mut self.alarm);
                if before.is_blocking && self.client.hears_blocked && self.is_running() {
                    self.send(0, connection::Unblocked {});
                }
            }
        }
    }

    /// A content header arrived, or a publish waits: a publisher is stopped here while there is an alarm.
    pub(super) fn check_alarm(&mut self) {
        if let Alarm {
            reason: Some(reason),
            is_blocking: false,
        } = &self.alarm
        {
            let reason = reason.clone();
            self.alarm.is_blocking = true;
            if self.client.hears_blocked {
                self.send(0, connection::Blocked { reason });
            }
        }
    }

    /// Gives the connection up, in silence.
    pub(super) fn refuse(&mut self, complaint: impl Into<String>) {
        self.complain(complaint);
        self.linger();
    }

    pub(super) fn linger(&mut self) {
        let until_ms = self.now_ms + self.options.linger_ms;
        self.phase = Phase::Lingering { until_ms };
    }

    pub(super) fn await_close_ok(&mut self) {
        let heartbeat_ms = self
            .heartbeat
            .as_ref()
            .map_or(u64::MAX, |heartbeat| heartbeat.interval_ms());
        let until_ms = self.now_ms + self.options.close_timeout_ms.min(heartbeat_ms);
        self.phase = Phase::AwaitCloseOk { until_ms };
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due, Unix milliseconds.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<u64> {
        let heartbeat = || {
            self.heartbeat
                .as_ref()
                .map(|heartbeat| heartbeat.due_at_ms())
        };
        match self.phase {
            Phase::Lingering { until_ms } | Phase::AwaitCloseOk { until_ms } => Some(until_ms),
            Phase::Running => {
                let watch = self.watch.as_ref().map(Watch::due_at_ms);
                heartbeat().into_iter().chain(watch).min()
            }
            Phase::Ending(_) | Phase::Finished => None,
            _ => Some(self.handshake_deadline_ms),
        }
    }

    /// Heartbeats, handshake and close timeouts.
    pub fn handle_timeout(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        match self.phase {
            Phase::Lingering { until_ms } | Phase::AwaitCloseOk { until_ms }
                if now_ms >= until_ms =>
            {
                self.phase = Phase::Finished;
            }
            Phase::Lingering { .. } | Phase::AwaitCloseOk { .. } => {}
            Phase::Running => {
                self.check_heartbeat();
                if matches!(self.phase, Phase::Running) {
                    self.check_overdue();
                }
            }
            Phase::Ending(_) | Phase::Finished => {}
            _ if now_ms >= self.handshake_deadline_ms => {
                let limit_ms = self.options.handshake_timeout_ms;
                self.complain(format!("handshake not done in {limit_ms} ms"));
                self.handle_eof();
            }
            _ => {}
        }
    }

    fn check_heartbeat(&mut self) {
        let queued = self.output.written_total() + self.output.len() as u64;
        let written = queued - self.beat_count * HEARTBEAT_BYTES;
        // A client that does not take its answers is not read either: then what it takes is its pulse.
        let is_clogged = self.output.len() >= OUTPUT_HIGH_BYTES;
        let pulse = match is_clogged {
            true => self.received_total + self.output.written_total(),
            false => self.received_total,
        };
        let reads = self.is_reading();
        let Some(heartbeat) = &mut self.heartbeat else {
            return;
        };
        match heartbeat.check(self.now_ms, written, pulse, reads) {
            Beat::None => {}
            Beat::Send => {
                frame::encode_heartbeat(self.output.buffer());
                self.beat_count += 1;
            }
            Beat::Missed => {
                let timeout_secs = heartbeat.interval_ms() / 1000;
                self.complain(format!(
                    "missed heartbeats from client, timeout: {timeout_secs}s"
                ));
                self.fail_connection(AfterEnding::Silence);
            }
        }
    }

    /// A channel has ended in the broker while the connection ends.
    pub(super) fn wait_for(&mut self, lsn: Option<Lsn>) {
        if let Phase::Ending(ending) = &mut self.phase {
            ending.lsn = ending.lsn.max(lsn);
        }
    }
}
