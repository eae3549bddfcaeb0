//! One AMQP 0-9-1 connection as a state machine without IO: bytes, results and time go in, bytes and
//! [`Event`]s come out.
//!
//! ```text
//!   socket bytes --receive--> +---------+ --poll_event--> Login, Open, Command, Publish, Ended
//!                             | Session |                              |  server calls the broker
//!   socket <------output----- +---------+ <--login_result, command_result, publish_results, ...
//!                              ^       ^
//!             handle_timeout --+       +-- handle_items, handle_durable, set_alarm, begin_shutdown
//! ```
//!
//! # How the server drives it
//!
//! After every wake-up, in this order:
//! 1. [`receive`](Session::receive) while [`wants_input`](Session::wants_input); it may leave bytes in the
//!    buffer, to be offered again when `wants_input` is true again;
//! 2. move the outbox in with [`handle_items`](Session::handle_items), as long as the output is short;
//! 3. [`poll_event`](Session::poll_event) until `None`, answering each event at once.
//!    Between executing a `Cancel` or `CloseChannel` and answering it, drain the outbox into the session
//!    once more: what the broker had handed over before is then delivered, or given back, and nothing of
//!    a cancelled consumer follows the answer. A `Consume` is answered *before* the outbox is drained, so
//!    that consume-ok precedes the first delivery;
//! 4. [`handle_durable`](Session::handle_durable), [`handle_timeout`](Session::handle_timeout);
//! 5. write [`output`](Session::output); arm a timer for [`poll_timeout`](Session::poll_timeout);
//!    ask to be woken at [`first_pending_lsn`](Session::first_pending_lsn);
//! 6. start again at once while [`has_stalled_input`](Session::has_stalled_input) (answers unlock input);
//!    close the socket when [`is_finished`](Session::is_finished) and the output is empty.
//!
//! # Invariants
//!
//! 1. Events come in the order of the frames that caused them, on each channel.
//! 2. A channel that waits for the broker or for durability holds its further frames; others go on.
//! 3. What belongs to a channel that failed never reaches the broker, except the one `CloseChannel` with
//!    everything that is unacked there.
//! 4. A delivery that reaches a channel or consumer that is gone, or of which the client can be told no more, is given back
//!    as not tried, so none is lost and none counts as failed. (One that is settled already, taken without acknowledgement,
//!    is gone: at most once is what was asked for.)
//! 5. Memory is bounded: held frames by [`HELD_FRAMES_MAX`] and [`HELD_BYTES_MAX`], output by
//!    [`OUTPUT_HIGH_BYTES`], an assembled body by the message limit, a transaction by its own, and both over all
//!    channels by [`SessionOptions::unfinished_max_bytes`]. At a bound nothing more is read, or the publish is refused.
//! 6. No clock, no randomness, no IO: the same calls give the same bytes.

mod acks;
mod answers;
mod basic;
mod channel;
mod close;
mod confirms;
mod connection;
mod content;
mod deliveries;
mod dispatch;
pub mod event;
mod fitting;
pub mod fuzz;
mod handshake;
mod heartbeat;
mod lifecycle;
mod modes;
mod number_map;
pub mod options;
pub mod output;
mod overdue;
mod publishes;
mod sasl;
mod slices;
mod topology;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf, BytesMut};

pub use event::{Event, Login, LoginRefused, Mechanism, Proof};
pub use options::{ChannelBudget, External, Mechanisms, SessionOptions};
pub use output::Output;
pub use publishes::PUBLISH_RUN_MAX;
pub use slices::SLICED_BODY_MIN_BYTES;

use crate::amqp::content::FrameSink;
use crate::amqp::frame;
use crate::amqp::limits::FRAME_MAX_BEFORE_TUNE;
use crate::amqp::method::{Method, MethodId};
use crate::amqp::reply_code::ConnectionReplyCode;
use crate::amqp::short_string::ShortString;
use crate::broker::command::{Command, Lsn, Publish};
use channel::Channel;
use close::{CloseReason, Failure};
use handshake::ClientCapabilities;
use heartbeat::Heartbeat;
use overdue::Watch;

/// Output above which nothing is read, and a server should stop moving its outbox into the session.
pub const OUTPUT_HIGH_BYTES: usize = 1024 * 1024;
/// Frames held back on all channels above which nothing is read.
pub const HELD_FRAMES_MAX: usize = 4096;
/// Bytes in those frames above which nothing is read.
pub const HELD_BYTES_MAX: usize = 1024 * 1024;
/// Payloads up to this are copied out of a buffer that is not to be shared. A buffer of at most twice as much that begins
/// with a larger one may be: what keeps it alive is half of it.
pub const COPIED_FRAME_MAX_BYTES: u32 = 112 * 1024;

/// The server's side of one connection. See the module.
#[derive(Debug)]
pub struct Session {
    options: SessionOptions,
    /// Time of the last call that told it, Unix milliseconds.
    now_ms: u64,
    phase: Phase,
    client: ClientCapabilities,
    /// Largest frame, both ways; before tune-ok what a stranger may send.
    frame_max_bytes: u32,
    /// Channels that may be open at a time.
    channel_max: u16,
    /// In boxes: a node of the map has room for eleven, of which most connections use one.
    channels: BTreeMap<u16, Box<Channel>>,
    /// What the server has not polled yet.
    work: VecDeque<Work>,
    output: Output,
    /// Frames and bytes in the `held` of all channels.
    held_frame_count: usize,
    held_bytes: usize,
    /// At least the bytes of contents that are unfinished, over all channels.
    unfinished_bytes: u64,
    heartbeat: Option<Heartbeat>,
    /// Looks for deliveries that are not acknowledged; none while no consumer has a timeout.
    watch: Option<Watch>,
    /// Heartbeats sent; they do not count as something written.
    beat_count: u64,
    /// Bytes ever received, and those of them that still lie in the caller's buffer.
    received_total: u64,
    input_left: usize,
    /// Input was left that may hold complete frames.
    is_input_stalled: bool,
    /// The watermark as last heard.
    durable: Lsn,
    /// Channels whose confirms have changed since they were last looked at.
    unconfirmed: Vec<u16>,
    alarm: Alarm,
    has_room: bool,
    /// What the client has published waits until the store takes it.
    awaits_room: bool,
    /// Why the connection is being given up, until the server has taken it.
    complaint: Option<String>,
    /// When a handshake must be over.
    handshake_deadline_ms: u64,
    /// Consumer tags generated.
    tag_count: u128,
}

/// Where the connection is in its life.
#[derive(Debug)]
enum Phase {
    AwaitHeader,
    AwaitStartOk,
    LoggingIn(Mechanism),
    AwaitTuneOk,
    AwaitOpen,
    Opening,
    Running,
    /// The broker is told to close everything.
    Ending(Ending),
    /// The server has sent `connection.close`.
    AwaitCloseOk {
        until_ms: u64,
    },
    /// Nothing that comes is looked at; the socket stays open so that what was sent is not lost.
    Lingering {
        until_ms: u64,
    },
    Finished,
}

/// A connection that is being closed in the broker.
#[derive(Debug)]
struct Ending {
    after: AfterEnding,
    /// The broker has answered [`Event::Ended`].
    is_ended: bool,
    /// What has to be durable first.
    lsn: Option<Lsn>,
}

/// What follows when the broker has closed everything.
#[derive(Debug)]
enum AfterEnding {
    /// `connection.close-ok`.
    CloseOk,
    /// `connection.close`, then wait for close-ok.
    Close(CloseReason<ConnectionReplyCode>),
    /// `connection.close`, after which no byte of the client makes sense any more.
    CloseAndLinger(CloseReason<ConnectionReplyCode>),
    /// Nothing: nobody listens.
    Silence,
}

/// One entry of the list of things to poll.
#[derive(Debug)]
enum Work {
    Event(Event),
    /// [`Event::Publish`]es, never none.
    Publishes(VecDeque<Publish>),
    /// Becomes the command when it is polled, since deliveries may arrive until then.
    CloseChannel(u16),
}

/// The state of `connection.blocked`.
#[derive(Debug, Default)]
struct Alarm {
    /// An alarm is on, with this reason.
    reason: Option<ShortString>,
    /// This connection has published meanwhile, is not read, and was told if it can hear it.
    is_blocking: bool,
}

impl Session {
    /// A connection just accepted.
    #[must_use]
    pub fn new(options: SessionOptions, now_ms: u64) -> Self {
        let deadline_ms = now_ms + options.handshake_timeout_ms;
        let timeout_ms = options.consumer_timeout_ms;
        let watch = (timeout_ms > 0).then(|| Watch::new(timeout_ms, now_ms));
        Self {
            channel_max: options.channel_max,
            options,
            now_ms,
            handshake_deadline_ms: deadline_ms,
            phase: Phase::AwaitHeader,
            client: ClientCapabilities::default(),
            frame_max_bytes: FRAME_MAX_BEFORE_TUNE,
            channels: BTreeMap::new(),
            work: VecDeque::new(),
            output: Output::default(),
            held_frame_count: 0,
            held_bytes: 0,
            unfinished_bytes: 0,
            heartbeat: None,
            watch,
            beat_count: 0,
            received_total: 0,
            input_left: 0,
            is_input_stalled: false,
            durable: Lsn::default(),
            unconfirmed: Vec::new(),
            alarm: Alarm::default(),
            has_room: true,
            awaits_room: false,
            complaint: None,
            tag_count: 0,
        }
    }

    /// Takes complete frames from `input`; the start of an incomplete one stays in it, and so does
    /// everything from the moment when [`wants_input`](Self::wants_input) turned false. `input` must hold
    /// what was left the last time, with new bytes added at its end.
    pub fn receive(&mut self, input: &mut BytesMut, now_ms: u64) {
        self.count_input(input, now_ms);
        while self.wants_input() && (self.receive_publishes(input) || self.receive_one(input)) {}
        self.input_left = input.len();
        self.is_input_stalled = !input.is_empty() && !self.wants_input();
    }

    /// Does the same as [`receive`](Self::receive) as long as frames are small; afterwards nothing shares the memory of `input`,
    /// so what is left may move to another buffer. To be followed by `receive` with that.
    pub fn receive_copied(&mut self, input: &mut BytesMut, now_ms: u64) {
        self.count_input(input, now_ms);
        while self.is_running()
            && self.wants_input()
            && (self.receive_publishes(input) || self.receive_copy(input))
        {}
        self.input_left = input.len();
    }

    /// Does the same as [`receive_copied`](Self::receive_copied), but messages with bodies from [`SLICED_BODY_MIN_BYTES`] on stay
    /// where they are: afterwards nothing but messages shares the memory of `input`, which stays until the last of them is gone.
    pub fn receive_sliced(&mut self, input: &mut BytesMut, now_ms: u64) {
        self.count_input(input, now_ms);
        while self.is_running()
            && self.wants_input()
            && (self.receive_slices(input)
                || self.receive_publishes(input)
                || self.receive_copy(input))
        {}
        self.input_left = input.len();
    }

    fn count_input(&mut self, input: &BytesMut, now_ms: u64) {
        self.now_ms = now_ms;
        self.received_total += input.len().saturating_sub(self.input_left) as u64;
    }

    /// The agreed length of the longest frame, its eight bytes of overhead included.
    #[must_use]
    pub fn frame_max_bytes(&self) -> usize {
        usize::try_from(self.frame_max_bytes).unwrap_or(usize::MAX)
    }

    /// Bytes of the frame that `input` begins with, as its header says; `None` as long as that is not there. While
    /// the session [runs](Self::is_running), what [`receive`](Self::receive) has left is within the agreed size.
    #[must_use]
    pub fn announced_frame_bytes(input: &[u8]) -> Option<usize> {
        frame::announced_len(input)
    }

    /// Takes a copy of the frame at the front of `input`, unless it is large or not as it should be.
    fn receive_copy(&mut self, input: &mut BytesMut) -> bool {
        let Some(len) = frame::front_len(input, COPIED_FRAME_MAX_BYTES) else {
            return false;
        };
        let mut copy = BytesMut::from(&input[..len]);
        input.advance(len);
        self.receive_one(&mut copy)
    }

    /// True when [`receive`](Self::receive) left frames that it can take now: call it again without waiting
    /// for the socket.
    #[must_use]
    pub fn has_stalled_input(&self) -> bool {
        self.is_input_stalled && self.wants_input()
    }

    /// Takes one frame; false when there is none.
    fn receive_one(&mut self, input: &mut BytesMut) -> bool {
        match self.phase {
            Phase::AwaitHeader => return self.handle_protocol_header(input),
            Phase::Lingering { .. } | Phase::Finished => {
                input.clear();
                return false;
            }
            _ => {}
        }
        match frame::decode(input, self.frame_max_bytes) {
            Ok(None) => return false,
            Ok(Some(frame)) => self.handle_frame(frame),
            Err(error) => self.handle_frame_error(error),
        }
        true
    }

    /// The next thing for the server to do.
    pub fn poll_event(&mut self) -> Option<Event> {
        loop {
            if let Some(publish) = self.poll_publish() {
                return Some(publish);
            }
            match self.work.pop_front() {
                Some(Work::Event(event)) => return Some(event),
                // Taken above.
                Some(Work::Publishes(_)) => {}
                Some(Work::CloseChannel(id)) => {
                    if let Some(channel) = self.channels.get_mut(&id) {
                        let unacked = channel.collect_unacked();
                        let unsent = std::mem::take(&mut channel.unsent);
                        // Behind the end of its consumers, on the channel of which no answer is awaited.
                        self.return_next(0, unsent);
                        return Some(Event::Command {
                            channel: id,
                            command: Command::CloseChannel { unacked },
                        });
                    }
                }
                None => {
                    self.send_confirms();
                    return None;
                }
            }
        }
    }

    /// Bytes to write. `Output` is a `Buf`: write it vectored, or chunk by chunk.
    pub fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    /// True when [`rest`](Self::rest) would give something back.
    #[must_use]
    pub fn has_spare(&self) -> bool {
        self.output.has_spare() || (self.work.is_empty() && self.work.capacity() > 0)
    }

    /// Gives back what only a busy connection needs; to be called when nothing has happened for a while.
    pub fn rest(&mut self) {
        self.output.rest();
        if self.work.is_empty() {
            self.work = VecDeque::new();
        }
    }

    /// True while publishers are stopped, this one as soon as it publishes.
    #[must_use]
    pub fn is_alarmed(&self) -> bool {
        self.alarm.reason.is_some()
    }

    /// Bytes waiting in the output.
    #[must_use]
    pub fn output_len(&self) -> usize {
        self.output.len()
    }

    /// Whether the store can take more publishes; while it cannot, nothing is read.
    pub fn set_has_room(&mut self, has_room: bool) {
        self.has_room = has_room;
    }

    /// Whether something that was polled from the session waits for the store; while it does, nothing is read, and during an
    /// alarm the client is told why.
    pub fn set_awaits_room(&mut self, awaits_room: bool) {
        self.awaits_room = awaits_room;
        if awaits_room && self.is_running() {
            self.check_alarm();
        }
    }

    /// What was told last by [`set_awaits_room`](Self::set_awaits_room).
    #[must_use]
    pub fn awaits_room(&self) -> bool {
        self.awaits_room
    }

    /// False while the socket must not be read.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        match self.phase {
            Phase::LoggingIn(_) | Phase::Opening | Phase::Ending(_) => false,
            Phase::Running => self.is_reading() && self.output.len() < OUTPUT_HIGH_BYTES,
            _ => true,
        }
    }

    /// The server itself is not the one who stopped the client.
    fn is_reading(&self) -> bool {
        self.has_room
            && !self.awaits_room
            && !self.alarm.is_blocking
            && self.held_frame_count < HELD_FRAMES_MAX
            && self.held_bytes < HELD_BYTES_MAX
    }

    /// True when this connection is not read, because of an alarm while it holds contents that it has not finished, or because
    /// the store has no room for what it published: should the client be gone, nothing else would say so.
    #[must_use]
    pub fn is_blocked_unfinished(&self) -> bool {
        let mut channels = self.channels.values();
        self.awaits_room
            || (self.alarm.is_blocking && channels.any(|channel| channel.unfinished_bytes() > 0))
    }

    /// Why the connection is being given up, for the log; the client may know nothing of it. Once.
    #[must_use]
    pub fn take_complaint(&mut self) -> Option<String> {
        self.complaint.take()
    }

    fn complain(&mut self, text: impl Into<String>) {
        self.complaint.get_or_insert_with(|| text.into());
    }

    /// True when the socket is to be closed as soon as the output is written.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Finished)
    }

    /// The connection was opened and is not being closed.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running)
    }

    /// The connection is being closed, and not because the client asked for it.
    #[must_use]
    pub fn is_given_up(&self) -> bool {
        matches!(&self.phase, Phase::Ending(ending) if !matches!(ending.after, AfterEnding::CloseOk))
    }

    fn send(&mut self, channel: u16, method: impl Into<Method>) {
        method.into().encode(self.output.buffer(), channel);
    }

    fn fail(&mut self, channel: u16, failure: Failure) {
        match failure {
            Failure::Channel(reason) => self.fail_channel(channel, reason),
            Failure::Connection(reason) => {
                self.complain(reason.reply_text().to_string());
                self.fail_connection(AfterEnding::Close(reason));
            }
        }
    }
}

/// The errors that are the server's own fault.
fn internal_error(text: &str) -> Failure {
    Failure::connection(ConnectionReplyCode::InternalError, text, MethodId::NONE)
}
