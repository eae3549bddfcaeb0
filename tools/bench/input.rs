//! What the broker sends, parsed in place: the hot path allocates nothing.
//!
//! Deliveries and confirms are read here by hand; every other method goes through the library's decoder.

use crate::error::BenchError;
use bytes::Bytes;
use std::io::{ErrorKind, Read};
use stratamq::amqp::frame::{FRAME_END, FrameKind};
use stratamq::amqp::limits::FRAME_HEADER_BYTES;
use stratamq::amqp::method::{Method, basic};

/// Bytes a read from the socket may bring.
const READ_BYTES: usize = 256 * 1024;
/// More unparsed bytes than any sane frame has; a broker that announces a larger one is refused.
const BUFFER_MAX_BYTES: usize = 64 * 1024 * 1024;

/// What a frame says, as far as the generator cares.
#[derive(Debug, PartialEq)]
pub(crate) enum Event<'a> {
    /// basic.ack or basic.nack of publishes.
    Confirm {
        tag: u64,
        is_multiple: bool,
        is_ack: bool,
    },
    /// basic.deliver; a header and bodies follow.
    Deliver {
        consumer_tag: &'a [u8],
        tag: u64,
        is_redelivered: bool,
    },
    /// The size of the body that follows, and the properties as they were sent.
    Header {
        body_size_bytes: u64,
        properties: &'a [u8],
    },
    /// A part of a body.
    Body(&'a [u8]),
    /// Nothing but life.
    Heartbeat,
    /// Any other method.
    Method(Method),
}

/// The bytes of a connection that were read and not yet parsed.
pub(crate) struct Input {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    pub(crate) fn new() -> Self {
        Self {
            buffer: vec![0; READ_BYTES],
            start: 0,
            end: 0,
        }
    }

    /// Reads once; false when nothing came within the stream's read timeout.
    pub(crate) fn fill(&mut self, stream: &mut impl Read) -> Result<bool, BenchError> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.end < READ_BYTES / 2 {
            // Makes room at the end: the rest of a frame moves to the front.
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            if self.buffer.len() - self.end < READ_BYTES / 2 {
                if self.buffer.len() >= BUFFER_MAX_BYTES {
                    let complaint = format!("more than {BUFFER_MAX_BYTES} bytes in one go");
                    return Err(BenchError::Protocol(complaint));
                }
                self.buffer.resize(self.buffer.len() * 2, 0);
            }
        }
        match stream.read(&mut self.buffer[self.end..]) {
            Ok(0) => Err(BenchError::io("reading from the broker")(
                ErrorKind::UnexpectedEof.into(),
            )),
            Ok(count) => {
                self.end += count;
                Ok(true)
            }
            Err(error) if is_timeout(error.kind()) => Ok(false),
            Err(error) => Err(BenchError::io("reading from the broker")(error)),
        }
    }

    /// The next complete frame; `None` when more must be read first.
    pub(crate) fn next(&mut self) -> Result<Option<Event<'_>>, BenchError> {
        match self.next_frame()? {
            Some((kind, payload)) => parse(kind, payload).map(Some),
            None => Ok(None),
        }
    }

    /// The next complete frame as it is: its type and its payload.
    pub(crate) fn next_frame(&mut self) -> Result<Option<(u8, &[u8])>, BenchError> {
        let unparsed = &self.buffer[self.start..self.end];
        let Some(&[kind, _, _, size_0, size_1, size_2, size_3]) =
            unparsed.first_chunk::<FRAME_HEADER_BYTES>()
        else {
            return Ok(None);
        };
        let size = u32::from_be_bytes([size_0, size_1, size_2, size_3]) as usize;
        let Some(&end) = unparsed.get(size.saturating_add(FRAME_HEADER_BYTES)) else {
            return Ok(None);
        };
        if end != FRAME_END {
            return Err(BenchError::Protocol(format!(
                "a frame ends with {end:#04x}"
            )));
        }
        let payload_at = self.start + FRAME_HEADER_BYTES;
        self.start = payload_at + size + 1;
        Ok(Some((kind, &self.buffer[payload_at..payload_at + size])))
    }
}

/// The two faces of "nothing yet" on a socket with a timeout, and the harmless one.
pub(crate) fn is_timeout(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

fn parse(kind: u8, payload: &[u8]) -> Result<Event<'_>, BenchError> {
    match FrameKind::from_octet(kind) {
        Some(FrameKind::Body) => Ok(Event::Body(payload)),
        Some(FrameKind::Heartbeat) => Ok(Event::Heartbeat),
        Some(FrameKind::Method) => parse_method(payload),
        Some(FrameKind::Header) => {
            let size = payload.get(4..12).and_then(|bytes| bytes.try_into().ok());
            let size = size.map(u64::from_be_bytes);
            let body_size_bytes =
                size.ok_or_else(|| BenchError::Protocol("a short header".to_owned()))?;
            Ok(Event::Header {
                body_size_bytes,
                properties: payload.get(12..).unwrap_or_default(),
            })
        }
        None => Err(BenchError::Protocol(format!("a frame of type {kind}"))),
    }
}

fn parse_method(payload: &[u8]) -> Result<Event<'_>, BenchError> {
    if let Some(event) = parse_hot_method(payload) {
        return Ok(event);
    }
    Method::decode(&Bytes::copy_from_slice(payload))
        .map(Event::Method)
        .map_err(|error| BenchError::Protocol(error.to_string()))
}

/// The three methods a run consists of; `None` for all others and for damaged ones, which the decoder shall name.
fn parse_hot_method(payload: &[u8]) -> Option<Event<'_>> {
    let (&[class_0, class_1, method_0, method_1], rest) = payload.split_first_chunk()?;
    if u16::from_be_bytes([class_0, class_1]) != basic::CLASS_ID {
        return None;
    }
    let method_id = u16::from_be_bytes([method_0, method_1]);
    if method_id == basic::Deliver::ID.method_id {
        let (length, rest) = rest.split_first()?;
        let (consumer_tag, rest) = rest.split_at_checked(usize::from(*length))?;
        let (tag, rest) = rest.split_first_chunk()?;
        return Some(Event::Deliver {
            consumer_tag,
            tag: u64::from_be_bytes(*tag),
            is_redelivered: rest.first()? & 1 != 0,
        });
    }
    let is_ack = method_id == basic::Ack::ID.method_id;
    if is_ack || method_id == basic::Nack::ID.method_id {
        let (tag, rest) = rest.split_first_chunk()?;
        return Some(Event::Confirm {
            tag: u64::from_be_bytes(*tag),
            is_multiple: rest.first()? & 1 != 0,
            is_ack,
        });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use stratamq::amqp::frame;
    use stratamq::amqp::short_string::ShortString;

    /// Parses a stream that arrives in pieces of `piece` bytes.
    fn parse_all(stream: &[u8], piece: usize) -> Vec<String> {
        let mut input = Input::new();
        let mut events = Vec::new();
        for mut part in stream.chunks(piece) {
            assert!(input.fill(&mut part).expect("a slice can be read"));
            while let Some(event) = input.next().expect("the stream is well-formed") {
                events.push(format!("{event:?}"));
            }
        }
        events
    }

    #[test]
    fn frames_are_found_wherever_the_reads_cut_them() {
        let mut stream = BytesMut::new();
        let deliver = basic::Deliver {
            consumer_tag: ShortString::from_static("t"),
            delivery_tag: 300,
            redelivered: true,
            ..basic::Deliver::default()
        };
        let ack = basic::Ack {
            delivery_tag: 5,
            multiple: true,
        };
        let nack = basic::Nack {
            delivery_tag: 6,
            multiple: false,
            requeue: true,
        };
        let method = Method::from(basic::QosOk {});
        let methods = [deliver.into(), ack.into(), nack.into(), method.clone()];
        for method in methods {
            Method::encode(&method, &mut stream, 1);
        }
        frame::encode(&mut stream, FrameKind::Body, 1, |out| {
            out.extend_from_slice(b"xyz")
        });
        let expected = [
            Event::Deliver {
                consumer_tag: b"t",
                tag: 300,
                is_redelivered: true,
            },
            Event::Confirm {
                tag: 5,
                is_multiple: true,
                is_ack: true,
            },
            Event::Confirm {
                tag: 6,
                is_multiple: false,
                is_ack: false,
            },
            Event::Method(method),
            Event::Body(b"xyz"),
        ]
        .map(|event| format!("{event:?}"));
        for piece in [1, 7, 30, stream.len()] {
            assert_eq!(parse_all(&stream, piece), expected, "in pieces of {piece}");
        }
    }

    #[test]
    fn a_frame_larger_than_the_buffer_makes_it_grow() {
        let mut stream = BytesMut::new();
        frame::encode(&mut stream, FrameKind::Body, 1, |out| {
            out.resize(out.len() + 3 * READ_BYTES, 7)
        });
        let events = parse_all(&stream, 100_000);
        assert_eq!(events.len(), 1);
    }

    #[test]
    fn a_wrong_frame_end_is_reported() {
        let mut input = Input::new();
        input
            .fill(&mut &[8, 0, 0, 0, 0, 0, 0, 0][..])
            .expect("a slice can be read");
        assert!(matches!(input.next(), Err(BenchError::Protocol(_))));
    }
}
