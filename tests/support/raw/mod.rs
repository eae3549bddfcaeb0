//! A blocking AMQP 0-9-1 client for tests: frames and methods, nothing clever.
//!
//! ```no_run
//! let mut client = Client::connect(broker.address());
//! client.open_channel(1);
//! client.queue_declare(1, "q", durable());
//! client.confirm_select(1);
//! client.publish(1, "", "q", &Message::persistent("hello"));
//! client.wait_confirm(1);
//! client.ack(1, 99);
//! client.expect_channel_close(1, 406, "PRECONDITION_FAILED - unknown delivery tag 99");
//! ```
//!
//! 1. Nothing happens behind the test's back: no thread, no reconnect, no automatic acknowledgement; a heartbeat is only sent when
//!    the test sends one. The one exception: a `channel.close` or `connection.close` of the broker is answered when it is read.
//! 2. Every read has a limit ([`READ_LIMIT`] unless [`Client::set_read_limit`] says otherwise), so no test hangs.
//! 3. What arrives is sorted into an inbox per channel, in order. A request takes its answer out of the inbox and leaves deliveries,
//!    returns and confirms where they are, for `next_*`.
//! 4. The `try_` calls tell what went wrong ([`Trouble`]); the others panic with it at the test's line.
//!
//! The encoding is that of `stratamq::amqp`; that the codec is right is shown elsewhere, by foreign clients. Bytes that no codec
//! writes go out with [`Client::send_bytes`].

mod calls;
mod login;
mod message;
mod reply;

pub(crate) use calls::{Delivered, auto_delete, durable, exclusive, passive, transient};
pub(crate) use login::Login;
pub(crate) use message::{Message, text};
pub(crate) use reply::Reply;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use stratamq::amqp::content::{Content, ContentHeader, Lane, encode_content};
use stratamq::amqp::frame::{self, Frame, FrameKind};
use stratamq::amqp::method::{Method, channel, connection};
use stratamq::amqp::properties::Properties;
use stratamq::amqp::protocol_header::AMQP_0_9_1;
use stratamq::amqp::short_string::ShortString;

/// How long a read waits: far longer than any sound broker needs, even on a busy machine.
pub(crate) const READ_LIMIT: Duration = Duration::from_secs(30);
/// `frame_max` this client asks for.
const FRAME_MAX: u32 = 131_072;
/// Bytes taken from the socket at once.
const READ_BYTES: usize = 64 << 10;

/// The time; tests of real processes have no other.
#[expect(
    clippy::disallowed_methods,
    reason = "the limits of real sockets are real time"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The peer closed or reset the connection, or never took it.
    Gone(io::ErrorKind),
    /// Nothing came within the limit.
    Silent,
    /// The broker closed the channel.
    ChannelClosed(channel::Close),
    /// The broker closed the connection.
    ConnectionClosed(connection::Close),
    /// Something else came, or bytes that are no frame.
    Unexpected(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone(kind) => write!(f, "the connection is gone: {kind}"),
            Self::Silent => f.write_str("the broker is silent"),
            Self::ChannelClosed(close) => {
                write!(
                    f,
                    "channel closed: {} {}",
                    close.reply_code, close.reply_text
                )
            }
            Self::ConnectionClosed(close) => {
                write!(
                    f,
                    "connection closed: {} {}",
                    close.reply_code, close.reply_text
                )
            }
            Self::Unexpected(what) => write!(f, "unexpected: {what}"),
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Silent,
            kind => Self::Gone(kind),
        }
    }
}

/// A result of the `try_` calls.
pub(crate) type Outcome<T> = Result<T, Trouble>;

/// A method with the message that came with it.
#[derive(Clone, Debug)]
pub(crate) struct Incoming {
    /// The method.
    pub(crate) method: Method,
    /// The content of a deliver, get-ok or return.
    pub(crate) message: Option<Message>,
}

impl Incoming {
    /// True for what arrives without having been asked for.
    fn is_spontaneous(&self) -> bool {
        matches!(
            self.method,
            Method::BasicDeliver(_)
                | Method::BasicReturn(_)
                | Method::BasicAck(_)
                | Method::BasicNack(_)
                | Method::BasicCancel(_)
                | Method::ConnectionBlocked(_)
                | Method::ConnectionUnblocked(_)
        )
    }
}

/// A content that is still arriving.
struct Partial {
    method: Method,
    header: Option<ContentHeader>,
    body: BytesMut,
}

/// A connection.
pub(crate) struct Client {
    stream: TcpStream,
    /// TLS on it, if any.
    tls: Option<Box<rustls::ClientConnection>>,
    input: BytesMut,
    output: BytesMut,
    frame_max: u32,
    read_limit: Duration,
    inboxes: BTreeMap<u16, VecDeque<Incoming>>,
    partial: BTreeMap<u16, Partial>,
    closed: Option<connection::Close>,
}

impl Client {
    /// Connects and logs in as guest to vhost `/`.
    #[track_caller]
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::login(address, &Login::default())
    }

    /// Connects and logs in.
    #[track_caller]
    pub(crate) fn login(address: SocketAddr, login: &Login) -> Self {
        must("login", Self::try_login(address, login))
    }

    /// Connects and logs in, or says why not.
    pub(crate) fn try_login(address: SocketAddr, login: &Login) -> Outcome<Self> {
        let mut client = Self::try_connect_tcp(address)?;
        client.send_bytes(&AMQP_0_9_1)?;
        client.try_handshake(login)?;
        Ok(client)
    }

    /// Connects with TLS and logs in, or says why not.
    pub(crate) fn try_login_tls(
        address: SocketAddr,
        tls: rustls::ClientConnection,
        login: &Login,
    ) -> Outcome<Self> {
        let mut client = Self::try_connect_tcp(address)?;
        client.tls = Some(Box::new(tls));
        client.send_bytes(&AMQP_0_9_1)?;
        client.try_handshake(login)?;
        Ok(client)
    }

    /// The TLS side of the connection.
    #[track_caller]
    pub(crate) fn tls(&self) -> &rustls::ClientConnection {
        self.tls.as_ref().expect("a TLS connection")
    }

    /// True when the peer has ended its stream in TLS's own words, and not just the socket.
    #[track_caller]
    pub(crate) fn has_tls_ended(&mut self) -> bool {
        let tls = self.tls.as_mut().expect("a TLS connection");
        let state = tls.process_new_packets().expect("a sound stream");
        state.peer_has_closed()
    }

    /// A socket, and nothing sent yet.
    #[track_caller]
    pub(crate) fn connect_tcp(address: SocketAddr) -> Self {
        must("connect", Self::try_connect_tcp(address))
    }

    fn try_connect_tcp(address: SocketAddr) -> Outcome<Self> {
        let stream = TcpStream::connect_timeout(&address, READ_LIMIT)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(READ_LIMIT))?;
        Ok(Self {
            stream,
            tls: None,
            input: BytesMut::new(),
            output: BytesMut::new(),
            frame_max: FRAME_MAX,
            read_limit: READ_LIMIT,
            inboxes: BTreeMap::new(),
            partial: BTreeMap::new(),
            closed: None,
        })
    }

    /// Everything from `connection.start` to `connection.open-ok`.
    fn try_handshake(&mut self, login: &Login) -> Outcome<()> {
        self.try_expect::<connection::Start>(0)?;
        self.try_send(
            0,
            connection::StartOk {
                client_properties: login.client_properties(),
                mechanism: text(login.mechanism),
                response: login.response(),
                locale: text("en_US"),
            },
        )?;
        let tune: connection::Tune = self.try_expect(0)?;
        self.try_send(
            0,
            connection::TuneOk {
                channel_max: tune.channel_max,
                frame_max: login.frame_max,
                heartbeat: login.heartbeat_secs,
            },
        )?;
        self.frame_max = login.frame_max;
        let open = connection::Open {
            virtual_host: text(&login.vhost),
            capabilities: ShortString::default(),
            insist: false,
        };
        self.try_call::<connection::OpenOk>(0, open).map(drop)
    }

    /// Changes how long reads wait.
    pub(crate) fn set_read_limit(&mut self, limit: Duration) {
        self.read_limit = limit;
    }

    /// The socket, to look at its ports or to shut half of it down.
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    // ---- sending ----

    /// Sends bytes as they are, at once.
    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) -> Outcome<()> {
        self.output.extend_from_slice(bytes);
        self.flush()
    }

    /// Sends a frame with any payload.
    #[track_caller]
    pub(crate) fn send_frame(&mut self, kind: FrameKind, channel: u16, payload: &[u8]) {
        frame::encode(&mut self.output, kind, channel, |out| {
            out.extend_from_slice(payload);
        });
        must("send a frame", self.flush());
    }

    /// Sends a method.
    #[track_caller]
    pub(crate) fn send(&mut self, channel: u16, method: impl Into<Method>) {
        must("send", self.try_send(channel, method));
    }

    /// Sends a method.
    pub(crate) fn try_send(&mut self, channel: u16, method: impl Into<Method>) -> Outcome<()> {
        self.push(channel, method);
        self.flush()
    }

    /// Puts a method into the output without sending it, so that several leave in one write.
    pub(crate) fn push(&mut self, channel: u16, method: impl Into<Method>) {
        method.into().encode(&mut self.output, channel);
    }

    /// Puts a content header and body into the output; see [`push`](Self::push).
    pub(crate) fn push_content(&mut self, channel: u16, message: &Message) {
        let lane = Lane::new(channel, self.frame_max);
        let content = Content {
            properties: &message.properties,
            body: std::slice::from_ref(&message.body),
        };
        encode_content(&mut self.output, lane, &content);
    }

    /// Sends what was pushed.
    pub(crate) fn flush(&mut self) -> Outcome<()> {
        let output = self.output.split();
        let Some(tls) = &mut self.tls else {
            return Ok(self.stream.write_all(&output)?);
        };
        let mut stream = rustls::Stream::new(&mut **tls, &mut self.stream);
        stream.write_all(&output)?;
        Ok(stream.flush()?)
    }

    /// Sends what was pushed in writes of these sizes; the last one takes what is left.
    pub(crate) fn flush_in_pieces(
        &mut self,
        mut sizes: impl Iterator<Item = usize>,
    ) -> Outcome<()> {
        let mut rest = self.output.split();
        while !rest.is_empty() {
            let size = sizes.next().unwrap_or(rest.len()).clamp(1, rest.len());
            self.send_bytes(&rest.split_to(size))?;
        }
        Ok(())
    }

    // ---- receiving ----

    /// Reads until the peer closes; the bytes. For peers that answer with something else than frames.
    pub(crate) fn read_to_end(&mut self) -> Outcome<Vec<u8>> {
        let deadline = now() + self.read_limit;
        loop {
            match self.fill(deadline) {
                Ok(true) => {}
                // A reset is an end too: the peer closed with bytes of ours unread.
                Ok(false) | Err(Trouble::Gone(_)) => return Ok(self.input.split().to_vec()),
                Err(trouble) => return Err(trouble),
            }
        }
    }

    /// The next frame, of whatever channel. Frames taken here are in no inbox.
    pub(crate) fn try_next_frame(&mut self) -> Outcome<Frame> {
        self.frame_before(now() + self.read_limit)
    }

    /// The next thing on a channel, in the order of arrival.
    #[track_caller]
    pub(crate) fn next(&mut self, channel: u16) -> Incoming {
        must("next", self.try_next(channel))
    }

    /// The next thing on a channel.
    pub(crate) fn try_next(&mut self, channel: u16) -> Outcome<Incoming> {
        self.try_next_within(channel, self.read_limit)
    }

    /// The next thing on a channel if it comes within the limit; [`Trouble::Silent`] otherwise.
    pub(crate) fn try_next_within(&mut self, channel: u16, limit: Duration) -> Outcome<Incoming> {
        self.take_matching(channel, limit, |_| true)
    }

    /// The next method that answers something, which must be an `R`; deliveries, returns and confirms stay in the inbox.
    pub(crate) fn try_expect<R: Reply>(&mut self, channel: u16) -> Outcome<R> {
        self.try_expect_content::<R>(channel)
            .map(|(reply, _)| reply)
    }

    /// Like [`try_expect`](Self::try_expect), with the content that came with it.
    pub(crate) fn try_expect_content<R: Reply>(
        &mut self,
        channel: u16,
    ) -> Outcome<(R, Option<Message>)> {
        let limit = self.read_limit;
        // A spontaneous method can be waited for by name.
        let is_wanted =
            |incoming: &Incoming| !incoming.is_spontaneous() || incoming.method.id() == R::ID;
        let Incoming { method, message } = self.take_matching(channel, limit, is_wanted)?;
        match R::from_method(method) {
            Ok(reply) => Ok((reply, message)),
            Err(other) => Err(Trouble::Unexpected(format!("{other:?}"))),
        }
    }

    /// See [`try_expect`](Self::try_expect).
    #[track_caller]
    pub(crate) fn expect<R: Reply>(&mut self, channel: u16) -> R {
        must(R::NAME, self.try_expect(channel))
    }

    /// Sends a method and waits for its answer.
    pub(crate) fn try_call<R: Reply>(
        &mut self,
        channel: u16,
        method: impl Into<Method>,
    ) -> Outcome<R> {
        self.try_send(channel, method)?;
        self.try_expect(channel)
    }

    /// Sends a method and waits for its answer.
    #[track_caller]
    pub(crate) fn call<R: Reply>(&mut self, channel: u16, method: impl Into<Method>) -> R {
        let method = method.into();
        let name = method.name();
        must(name, self.try_call(channel, method))
    }

    /// Takes the first thing of the inbox that is wanted, reading until there is one. Closes end the wait.
    fn take_matching(
        &mut self,
        channel: u16,
        limit: Duration,
        is_wanted: impl Fn(&Incoming) -> bool,
    ) -> Outcome<Incoming> {
        let deadline = now() + limit;
        loop {
            let inbox = self.inboxes.entry(channel).or_default();
            let is_close = |incoming: &Incoming| matches!(incoming.method, Method::ChannelClose(_));
            let found = inbox
                .iter()
                .position(|incoming| is_wanted(incoming) || is_close(incoming));
            if let Some(incoming) = found.and_then(|index| inbox.remove(index)) {
                return match incoming.method {
                    Method::ChannelClose(close) => Err(Trouble::ChannelClosed(close)),
                    _ => Ok(incoming),
                };
            }
            if let Some(close) = &self.closed {
                return Err(Trouble::ConnectionClosed(close.clone()));
            }
            let frame = self.frame_before(deadline)?;
            self.sort(frame)?;
        }
    }

    /// Puts a frame where it belongs.
    fn sort(&mut self, frame: Frame) -> Outcome<()> {
        let channel = frame.channel;
        match frame.kind {
            FrameKind::Heartbeat => {}
            FrameKind::Method => {
                let method = Method::decode(&frame.payload).map_err(|error| nonsense(&error))?;
                if method.carries_content() {
                    let partial = Partial {
                        method,
                        header: None,
                        body: BytesMut::new(),
                    };
                    self.partial.insert(channel, partial);
                } else {
                    self.accept(channel, method)?;
                }
            }
            FrameKind::Header => {
                let header =
                    ContentHeader::decode(&frame.payload).map_err(|error| nonsense(&error))?;
                let partial = self.partial.get_mut(&channel);
                partial
                    .ok_or_else(|| nonsense("a content header without a method"))?
                    .header = Some(header);
                self.complete(channel);
            }
            FrameKind::Body => {
                let partial = self.partial.get_mut(&channel);
                let partial = partial.ok_or_else(|| nonsense("a body without a method"))?;
                partial.body.extend_from_slice(&frame.payload);
                self.complete(channel);
            }
        }
        Ok(())
    }

    /// Takes a method without content; answers closes.
    fn accept(&mut self, channel: u16, method: Method) -> Outcome<()> {
        match &method {
            Method::ConnectionClose(close) => {
                self.closed = Some(close.clone());
                // The broker may have gone already.
                let _ = self.try_send(0, connection::CloseOk {});
                return Ok(());
            }
            Method::ChannelClose(_) => self.try_send(channel, channel::CloseOk {})?,
            _ => {}
        }
        let inbox = self.inboxes.entry(channel).or_default();
        inbox.push_back(Incoming {
            method,
            message: None,
        });
        Ok(())
    }

    /// Moves a content whose body is complete into the inbox.
    fn complete(&mut self, channel: u16) {
        let is_complete = self.partial.get(&channel).is_some_and(|partial| {
            let length = u64::try_from(partial.body.len()).unwrap_or(u64::MAX);
            partial
                .header
                .as_ref()
                .is_some_and(|header| header.body_size_bytes <= length)
        });
        if !is_complete {
            return;
        }
        let Some(partial) = self.partial.remove(&channel) else {
            return;
        };
        let properties = partial
            .header
            .map_or_else(Properties::default, |header| header.properties);
        let message = Message {
            properties,
            body: partial.body.freeze(),
        };
        let incoming = Incoming {
            method: partial.method,
            message: Some(message),
        };
        self.inboxes.entry(channel).or_default().push_back(incoming);
    }

    fn frame_before(&mut self, deadline: Instant) -> Outcome<Frame> {
        loop {
            match frame::decode(&mut self.input, self.frame_max) {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => {}
                Err(error) => return Err(nonsense(&error)),
            }
            if !self.fill(deadline)? {
                return Err(Trouble::Gone(io::ErrorKind::UnexpectedEof));
            }
        }
    }

    /// Reads more bytes; false at the end of the stream.
    fn fill(&mut self, deadline: Instant) -> Outcome<bool> {
        let limit = deadline.saturating_duration_since(now());
        // The socket takes no limit of zero; a millisecond still finds what has arrived already.
        self.stream
            .set_read_timeout(Some(limit.max(Duration::from_millis(1))))?;
        let mut chunk = vec![0; READ_BYTES];
        let count = match &mut self.tls {
            None => self.stream.read(&mut chunk)?,
            Some(tls) => rustls::Stream::new(&mut **tls, &mut self.stream).read(&mut chunk)?,
        };
        self.input.extend_from_slice(&chunk[..count]);
        Ok(count > 0)
    }

    // ---- closes ----

    /// Waits for the broker to close the channel, and checks code and text.
    #[track_caller]
    pub(crate) fn expect_channel_close(&mut self, channel: u16, code: u16, reply_text: &str) {
        let limit = self.read_limit;
        match self.take_matching(channel, limit, |incoming| !incoming.is_spontaneous()) {
            Err(Trouble::ChannelClosed(close)) => {
                assert_eq!(
                    (close.reply_code, close.reply_text.as_str()),
                    (code, reply_text)
                );
            }
            other => {
                panic!("channel {channel} should be closed with {code} {reply_text}: {other:?}")
            }
        }
    }

    /// Waits for the broker to close the connection, checks code and text, and waits for the end of the stream.
    #[track_caller]
    pub(crate) fn expect_connection_close(&mut self, code: u16, reply_text: &str) {
        let close = self.wait_connection_close();
        assert_eq!(
            (close.reply_code, close.reply_text.as_str()),
            (code, reply_text)
        );
        self.expect_end();
    }

    /// Waits for the broker to close the connection.
    #[track_caller]
    pub(crate) fn wait_connection_close(&mut self) -> connection::Close {
        let limit = self.read_limit;
        // No inbox of that number is ever filled: only closes end this wait.
        match self.take_matching(u16::MAX, limit, |_| false) {
            Err(Trouble::ConnectionClosed(close)) => close,
            other => panic!("the connection should be closed: {other:?}"),
        }
    }

    /// Waits for the end of the stream; a reset counts as one.
    #[track_caller]
    pub(crate) fn expect_end(&mut self) {
        match self.try_next_frame() {
            Err(Trouble::Gone(_)) => {}
            other => panic!("the stream should have ended: {other:?}"),
        }
    }
}

fn nonsense(what: &(impl fmt::Display + ?Sized)) -> Trouble {
    Trouble::Unexpected(what.to_string())
}

/// The value, or a panic at the test's line.
#[track_caller]
fn must<T>(what: &str, outcome: Outcome<T>) -> T {
    match outcome {
        Ok(value) => value,
        Err(trouble) => panic!("{what}: {trouble}"),
    }
}
