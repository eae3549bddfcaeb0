//! One AMQP 0-9-1 connection as a state machine without IO: bytes, results and time go in, bytes and
//! [`Event`]s come out.
//!
//! ```text
//!   socket bytes --receive--> +---------+ --poll_event--> Login, Open, Command, Publish, Ended
//!                             | Session |                              |  server calls the broker
//!   socket <------output----- +---------+ <--login_result, command_result, publish_results, ...
//!                              ^       ^
//!             handle_timeout --+       +-- handle_outbox, handle_durable, set_alarm, begin_shutdown
//! ```
//!
//! # How the server drives it
//!
//! After every wake-up, in this order:
//! 1. [`receive`](Session::receive) while [`wants_input`](Session::wants_input); it may leave bytes in the
//!    buffer, to be offered again when `wants_input` is true again;
//! 2. move the outbox in with [`handle_outbox`](Session::handle_outbox), as long as the output is short;
//! 3. [`poll_event`](Session::poll_event) until `None`, answering each event at once.
//!    Before a `CloseChannel` or `Cancel` command is *answered*, drain the outbox into the session, so that
//!    what the broker had handed over is known here: it is delivered, or given back;
//! 4. [`handle_durable`](Session::handle_durable), [`handle_timeout`](Session::handle_timeout);
//! 5. write [`output`](Session::output); arm a timer for [`poll_timeout`](Session::poll_timeout);
//!    ask to be woken at [`first_pending_lsn`](Session::first_pending_lsn);
//! 6. close the socket when [`is_finished`](Session::is_finished) and the output is empty.

pub mod event;
pub mod options;
pub mod output;

use bytes::BytesMut;

pub use event::{Event, Login, LoginRefused, Mechanism};
pub use options::SessionOptions;
pub use output::Output;

use crate::broker::command::{Lsn, Publish, Published, Reply};
use crate::broker::error::BrokerError;
use crate::broker::outbox::OutboxItem;

/// Output above which a server should stop moving its outbox into the session.
pub const OUTPUT_HIGH_BYTES: usize = 1024 * 1024;

/// The server's side of one connection. See the module.
#[derive(Debug)]
pub struct Session {
    options: SessionOptions,
    output: Output,
    events: std::collections::VecDeque<Event>,
    now_ms: u64,
}

impl Session {
    /// A connection just accepted.
    #[must_use]
    pub fn new(options: SessionOptions, now_ms: u64) -> Self {
        Self {
            options,
            output: Output::default(),
            events: std::collections::VecDeque::new(),
            now_ms,
        }
    }

    /// Takes complete frames from `input`; the start of an incomplete one stays in it, and so does
    /// everything from the moment when [`wants_input`](Self::wants_input) turned false.
    pub fn receive(&mut self, input: &mut BytesMut, now_ms: u64) {
        self.now_ms = now_ms;
        input.clear();
    }

    /// The client closed its side or the socket failed: nothing more is written or read.
    pub fn handle_eof(&mut self) {
        self.events.push_back(Event::Ended);
    }

    /// The next thing for the server to do.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Answers [`Event::Login`].
    pub fn login_result(&mut self, _result: Result<(), LoginRefused>) {}

    /// Answers [`Event::Open`].
    pub fn open_result(&mut self, _result: Result<(), BrokerError>) {}

    /// Answers the last [`Event::Command`] of `channel`.
    pub fn command_result(&mut self, _channel: u16, _result: Result<Reply, BrokerError>) {}

    /// Answers [`Event::Publish`]es: `published[i]` is the outcome of `publishes[i]`.
    pub fn publish_results(&mut self, _publishes: &[Publish], _published: &[Published]) {}

    /// The broker refused an [`Event::Publish`] or [`Event::CheckPublish`] of `channel`. What the server
    /// still holds of this channel must be dropped: see [`is_open_channel`](Self::is_open_channel).
    pub fn publish_refused(&mut self, _channel: u16, _error: BrokerError) {}

    /// False when publishes of `channel` that the server has gathered must be dropped.
    #[must_use]
    pub fn is_open_channel(&self, _channel: u16) -> bool {
        true
    }

    /// Answers [`Event::Ended`].
    pub fn ended(&mut self) {}

    /// One thing from the outbox: assigns the delivery tag and encodes, or gives a late one back.
    pub fn handle_outbox(&mut self, _item: OutboxItem) {}

    /// Everything below `confirm_lsn` is durable: sends confirms and held replies.
    pub fn handle_durable(&mut self, _confirm_lsn: Lsn) {}

    /// The lowest LSN whose durability this session waits for.
    #[must_use]
    pub fn first_pending_lsn(&self) -> Option<Lsn> {
        None
    }

    /// Bytes to write. `Output` is a `Buf`: write it vectored, or chunk by chunk.
    pub fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    /// Bytes waiting in the output.
    #[must_use]
    pub fn output_len(&self) -> usize {
        self.output.len()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due, Unix milliseconds.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<u64> {
        Some(self.now_ms + self.options.handshake_timeout_ms)
    }

    /// Heartbeats, handshake and close timeouts.
    pub fn handle_timeout(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
    }

    /// Memory or disk alarm: with a reason, the next publisher is blocked; `None` when it is over.
    pub fn set_alarm(&mut self, _reason: Option<&str>) {}

    /// Whether the store can take more publishes; while not, nothing is read.
    pub fn set_has_room(&mut self, _has_room: bool) {}

    /// Closes the connection with 320 CONNECTION_FORCED and `text`.
    pub fn begin_shutdown(&mut self, _text: &str) {}

    /// False while the socket must not be read.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        true
    }

    /// True when the socket is to be closed as soon as the output is written.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        false
    }
}
