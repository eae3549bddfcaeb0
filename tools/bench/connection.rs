//! One connection with one channel: handshake, requests with an answer, and the way for many bytes at once.
//!
//! Reads and writes time out every `TICK`, so that a thread can look up from its socket; nobody waits on a flag.

use crate::error::BenchError;
use crate::input::{Event, Input, is_timeout};
use crate::url::Url;
use bytes::{Bytes, BytesMut};
use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::time::Duration;
use stratamq::amqp::field_table::{FieldTable, FieldValue};
use stratamq::amqp::method::{Method, basic, channel, connection};
use stratamq::amqp::short_string::ShortString;

/// The greeting of AMQP 0-9-1.
const PROTOCOL_HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";
/// How often a waiting thread looks up.
const TICK: Duration = Duration::from_millis(50);
/// Ticks an answer to a request may take.
const ANSWER_TICKS_MAX: u32 = 1200;
/// Requests that [`Connection::call_all`] sends before it waits for answers.
const CALLS_AT_ONCE: usize = 500;
/// Bytes of requests without an answer that go into one write.
const TELL_BYTES: usize = 64 * 1024;
/// Ticks a close may take; nothing depends on it any more.
const CLOSE_TICKS_MAX: u32 = 100;

/// A connection with channel 1 open.
pub(crate) struct Connection {
    stream: TcpStream,
    pub(crate) input: Input,
    /// What the next [`Connection::send`] writes.
    pub(crate) output: BytesMut,
    /// The negotiated size of a whole frame.
    pub(crate) frame_max: u32,
}

impl Connection {
    /// Connects, logs in and opens the channel.
    pub(crate) fn open(url: &Url) -> Result<Self, BenchError> {
        let what = || format!("connecting to {}:{}", url.host, url.port);
        let stream =
            TcpStream::connect((url.host.as_str(), url.port)).map_err(BenchError::io(what()))?;
        stream
            .set_nodelay(true)
            .and_then(|()| stream.set_read_timeout(Some(TICK)))
            .and_then(|()| stream.set_write_timeout(Some(TICK)))
            .map_err(BenchError::io(what()))?;
        let mut connection = Self {
            stream,
            input: Input::new(),
            output: BytesMut::from(PROTOCOL_HEADER),
            frame_max: 0,
        };
        connection.log_in(url)?;
        Ok(connection)
    }

    fn log_in(&mut self, url: &Url) -> Result<(), BenchError> {
        self.send(&mut || true)?;
        self.expect(
            |method| matches!(method, Method::ConnectionStart(_)),
            "connection.start",
        )?;
        let capabilities = FieldTable::default()
            // Asks for a close with the reason when the login is refused; without it the socket just ends.
            .with("authentication_failure_close", FieldValue::Bool(true))
            .with("publisher_confirms", FieldValue::Bool(true))
            .with("basic.nack", FieldValue::Bool(true));
        let properties = FieldTable::default()
            .with("product", FieldValue::text("strata-bench"))
            .with("version", FieldValue::text(env!("CARGO_PKG_VERSION")))
            .with("capabilities", FieldValue::Table(capabilities));
        self.put(
            connection::StartOk {
                client_properties: properties,
                mechanism: ShortString::from_static("PLAIN"),
                response: Bytes::from(format!("\0{}\0{}", url.user, url.password)),
                locale: ShortString::from_static("en_US"),
            },
            0,
        );
        self.send(&mut || true)?;
        let tune = self.expect(
            |method| matches!(method, Method::ConnectionTune(_)),
            "connection.tune",
        )?;
        let Method::ConnectionTune(tune) = tune else {
            unreachable!("expect() has looked");
        };
        self.frame_max = tune.frame_max;
        // No heartbeats: a generator that is busy publishing would have to remember them.
        self.put(
            connection::TuneOk {
                channel_max: tune.channel_max,
                frame_max: tune.frame_max,
                heartbeat: 0,
            },
            0,
        );
        let vhost = ShortString::from_text(&url.vhost);
        self.put(
            connection::Open {
                virtual_host: vhost.ok_or_else(|| {
                    BenchError::Protocol("the vhost's name is too long".to_owned())
                })?,
                ..connection::Open::default()
            },
            0,
        );
        self.send(&mut || true)?;
        self.expect(
            |method| matches!(method, Method::ConnectionOpenOk(_)),
            "connection.open-ok",
        )?;
        self.call(channel::Open::default(), |method| {
            matches!(method, Method::ChannelOpenOk(_))
        })?;
        Ok(())
    }

    /// Appends a method to the output.
    pub(crate) fn put(&mut self, method: impl Into<Method>, channel: u16) {
        method.into().encode(&mut self.output, channel);
    }

    /// Sends a request on the channel and waits for its answer.
    pub(crate) fn call(
        &mut self,
        request: impl Into<Method>,
        is_answer: impl Fn(&Method) -> bool,
    ) -> Result<Method, BenchError> {
        let request = request.into();
        let name = request.name();
        self.put(request, 1);
        self.send(&mut || true)?;
        self.expect(is_answer, name)
    }

    /// Sends requests, many at once, and waits for one answer each; `take` gets the answers in order.
    pub(crate) fn call_all<R: Into<Method>>(
        &mut self,
        requests: impl IntoIterator<Item = R>,
        is_answer: impl Fn(&Method) -> bool,
        mut take: impl FnMut(Method),
    ) -> Result<(), BenchError> {
        let mut requests = requests.into_iter().map(Into::into).peekable();
        while requests.peek().is_some() {
            let mut names = Vec::with_capacity(CALLS_AT_ONCE);
            for request in requests.by_ref().take(CALLS_AT_ONCE) {
                names.push(request.name());
                self.put(request, 1);
            }
            self.send(&mut || true)?;
            for name in names {
                take(self.expect(&is_answer, name)?);
            }
        }
        Ok(())
    }

    /// Sends requests that ask for no answer (`nowait`), and then makes sure that all of them were carried out: of a refused one the
    /// broker speaks before it answers what comes behind.
    pub(crate) fn tell_all<R: Into<Method>>(
        &mut self,
        requests: impl IntoIterator<Item = R>,
    ) -> Result<(), BenchError> {
        for request in requests {
            self.put(request, 1);
            if self.output.len() >= TELL_BYTES {
                self.send(&mut || true)?;
            }
        }
        let qos = basic::Qos {
            global: true,
            ..basic::Qos::default()
        };
        self.call(qos, |method| matches!(method, Method::BasicQosOk(_)))?;
        Ok(())
    }

    fn expect(
        &mut self,
        is_answer: impl Fn(&Method) -> bool,
        what: &'static str,
    ) -> Result<Method, BenchError> {
        for _ in 0..ANSWER_TICKS_MAX {
            while let Some(event) = self.input.next()? {
                match event {
                    Event::Method(method) if is_answer(&method) => return Ok(method),
                    other => check_harmless(&other)?,
                }
            }
            self.input.fill(&mut self.stream)?;
        }
        let secs = (TICK * ANSWER_TICKS_MAX).as_secs();
        Err(BenchError::Stalled { doing: what, secs })
    }

    /// Reads once; false when nothing came for a tick.
    pub(crate) fn fill(&mut self) -> Result<bool, BenchError> {
        self.input.fill(&mut self.stream)
    }

    /// Writes all of the output. While the broker does not take it, what the broker sends is read, since it may be waiting for just
    /// that, and `goes_on` is asked every tick; when it says no the rest of the output is dropped.
    pub(crate) fn send(&mut self, goes_on: &mut dyn FnMut() -> bool) -> Result<(), BenchError> {
        let mut written = 0;
        while let Some(rest) = self.output.get(written..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(0) => {
                    return Err(BenchError::io("writing to the broker")(
                        ErrorKind::WriteZero.into(),
                    ));
                }
                Ok(count) => written += count,
                Err(error) if is_timeout(error.kind()) => {
                    if !goes_on() {
                        let text = "writing: the broker does not read";
                        return Err(BenchError::Stalled {
                            doing: text,
                            secs: 0,
                        });
                    }
                    self.fill()?;
                }
                Err(error) => return Err(self.reason_of(error)),
            }
        }
        self.output.clear();
        Ok(())
    }

    /// A broken pipe usually has a close in front of it that says why.
    fn reason_of(&mut self, error: std::io::Error) -> BenchError {
        while let Ok(true) = self.fill() {}
        while let Ok(Some(event)) = self.input.next() {
            if let Err(reason) = check_harmless(&event) {
                return reason;
            }
        }
        BenchError::io("writing to the broker")(error)
    }

    /// Closes the channel and waits for the answer: all that was sent before has been handled then.
    pub(crate) fn close_channel(&mut self) -> Result<(), BenchError> {
        let close = channel::Close {
            reply_code: 200,
            ..channel::Close::default()
        };
        self.call(close, |method| matches!(method, Method::ChannelCloseOk(_)))?;
        Ok(())
    }

    /// Says goodbye; acknowledgements sent before are handled. Errors are of no interest any more.
    pub(crate) fn close(mut self) {
        let close = connection::Close {
            reply_code: 200,
            ..connection::Close::default()
        };
        self.output.clear();
        self.put(close, 0);
        let mut ticks = 0;
        let mut is_patient = || {
            ticks += 1;
            ticks < CLOSE_TICKS_MAX
        };
        if self.send(&mut is_patient).is_err() {
            return;
        }
        let mut ticks = 0;
        while ticks < CLOSE_TICKS_MAX {
            while let Ok(Some(event)) = self.input.next() {
                if matches!(event, Event::Method(Method::ConnectionCloseOk(_))) {
                    return;
                }
            }
            match self.fill() {
                Ok(true) => {}
                Ok(false) => ticks += 1,
                Err(_) => return,
            }
        }
    }
}

/// Lets pass what may come at any time, and turns a close into its reason.
pub(crate) fn check_harmless(event: &Event<'_>) -> Result<(), BenchError> {
    let closed = |scope, code, text: &ShortString| {
        let text = text.as_str().to_owned();
        Err(BenchError::Closed { scope, code, text })
    };
    match event {
        Event::Method(Method::ConnectionClose(close)) => {
            closed("connection", close.reply_code, &close.reply_text)
        }
        Event::Method(Method::ChannelClose(close)) => {
            closed("channel", close.reply_code, &close.reply_text)
        }
        Event::Method(Method::BasicCancel(_)) => Err(BenchError::Protocol(
            "the consumer was cancelled: its queue is gone".to_owned(),
        )),
        _ => Ok(()),
    }
}
