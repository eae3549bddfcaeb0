//! One connection of the stand-in: the words before a run, and the bytes of it.

use super::deliveries::Sample;
use super::desk::{Desk, Recipients};
use crate::error::BenchError;
use crate::input::Input;
use bytes::{Bytes, BytesMut};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use stratamq::amqp::frame::FrameKind;
use stratamq::amqp::limits::FRAME_MAX_DEFAULT;
use stratamq::amqp::method::{
    Method, MethodId, basic, channel, confirm, connection, exchange, queue,
};
use stratamq::amqp::protocol_header::PROTOCOL_HEADER_BYTES;
use stratamq::amqp::short_string::ShortString;

const ACK: [u8; 4] = wire_id(basic::Ack::ID);
const PUBLISH: [u8; 4] = wire_id(basic::Publish::ID);

/// Class and method as they stand in front of a method's arguments.
const fn wire_id(id: MethodId) -> [u8; 4] {
    let [class_0, class_1] = id.class_id.to_be_bytes();
    let [method_0, method_1] = id.method_id.to_be_bytes();
    [class_0, class_1, method_0, method_1]
}

fn method_id(payload: &[u8]) -> Option<[u8; 4]> {
    payload.first_chunk().copied()
}

/// A connection and what it has said.
struct Talk<'a> {
    desk: &'a Desk,
    stream: TcpStream,
    /// What is written at the end of a read.
    output: BytesMut,
    consumer_tags: Vec<ShortString>,
    confirms: bool,
    /// Of the first message, until its body is there.
    publish: Option<basic::Publish>,
    header: Option<Bytes>,
    body_bytes: usize,
    recipients: Option<Recipients>,
    /// Of the message whose frames are coming.
    left_bytes: usize,
    message_count: u64,
    is_closing: bool,
}

/// Serves until the client goes.
pub(super) fn serve(stream: TcpStream, desk: &Desk) {
    let mut talk = Talk {
        desk,
        stream,
        output: BytesMut::new(),
        consumer_tags: Vec::new(),
        confirms: false,
        publish: None,
        header: None,
        body_bytes: 0,
        recipients: None,
        left_bytes: 0,
        message_count: 0,
        is_closing: false,
    };
    // The generator goes when it has what it wants, and complains when it has not.
    let _ = talk.run();
}

impl Talk<'_> {
    fn run(&mut self) -> Result<(), BenchError> {
        let what = || BenchError::io("serving a connection");
        super::set_up(&self.stream).map_err(what())?;
        let mut greeting = [0; PROTOCOL_HEADER_BYTES];
        self.stream.read_exact(&mut greeting).map_err(what())?;
        self.put(
            connection::Start {
                version_major: 0,
                version_minor: 9,
                mechanisms: Bytes::from_static(b"PLAIN"),
                locales: Bytes::from_static(b"en_US"),
                ..connection::Start::default()
            },
            0,
        );
        self.flush().map_err(what())?;
        let mut input = Input::new();
        let mut reader = self.stream.try_clone().map_err(what())?;
        while !self.is_closing {
            input.fill(&mut reader)?;
            let mut arrived = 0;
            while let Some((kind, payload)) = input.next_frame()? {
                arrived += usize::from(self.handle(kind, payload)?);
            }
            if !self.consumer_tags.is_empty() {
                let tags = std::mem::take(&mut self.consumer_tags);
                self.desk.subscribe(&self.stream, tags).map_err(what())?;
            }
            self.deliver(arrived).map_err(what())?;
            self.flush().map_err(what())?;
        }
        Ok(())
    }

    fn put(&mut self, method: impl Into<Method>, channel: u16) {
        method.into().encode(&mut self.output, channel);
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if !self.output.is_empty() {
            self.stream.write_all(&self.output)?;
            self.output.clear();
        }
        Ok(())
    }

    /// Takes a frame; true when a message is complete with it.
    fn handle(&mut self, kind: u8, payload: &[u8]) -> Result<bool, BenchError> {
        match FrameKind::from_octet(kind) {
            Some(FrameKind::Method) => {
                let is_first = self.publish.is_none() && self.recipients.is_none();
                match method_id(payload) {
                    Some(ACK) => {}
                    Some(PUBLISH) if !is_first => {}
                    _ => self.answer(payload)?,
                }
                Ok(false)
            }
            Some(FrameKind::Header) => {
                let size = payload.get(4..12).and_then(|bytes| bytes.try_into().ok());
                let size = size.map_or(0, u64::from_be_bytes);
                self.left_bytes = usize::try_from(size).unwrap_or(usize::MAX);
                if self.recipients.is_none() {
                    self.header = Some(Bytes::copy_from_slice(payload));
                    self.body_bytes = self.left_bytes;
                }
                Ok(self.left_bytes == 0)
            }
            Some(FrameKind::Body) => {
                self.left_bytes = self.left_bytes.saturating_sub(payload.len());
                Ok(self.left_bytes == 0)
            }
            Some(FrameKind::Heartbeat) | None => Ok(false),
        }
    }

    /// Writes what `count` messages bring, and their confirm.
    fn deliver(&mut self, count: usize) -> std::io::Result<()> {
        if count == 0 {
            return Ok(());
        }
        if let Some((publish, header)) = self.publish.take().zip(self.header.take()) {
            let sample = Sample {
                publish,
                header,
                body_bytes: self.body_bytes,
            };
            self.recipients = Some(self.desk.await_subscribers(&sample));
        }
        self.message_count += count as u64;
        if self.confirms {
            let ack = basic::Ack {
                delivery_tag: self.message_count,
                multiple: true,
            };
            self.put(ack, 1);
        }
        match &self.recipients {
            Some(recipients) => self.desk.deliver(recipients, count),
            None => Ok(()),
        }
    }

    /// What a broker would say to it.
    fn answer(&mut self, payload: &[u8]) -> Result<(), BenchError> {
        let method = Method::decode(&Bytes::copy_from_slice(payload));
        match method.map_err(|error| BenchError::Protocol(error.to_string()))? {
            Method::ConnectionStartOk(_) => self.put(
                connection::Tune {
                    channel_max: 2047,
                    frame_max: FRAME_MAX_DEFAULT,
                    heartbeat: 0,
                },
                0,
            ),
            Method::ConnectionOpen(_) => self.put(connection::OpenOk::default(), 0),
            Method::ConnectionClose(_) => {
                self.put(connection::CloseOk::default(), 0);
                self.is_closing = true;
            }
            Method::ChannelOpen(_) => self.put(channel::OpenOk::default(), 1),
            Method::ChannelClose(_) => self.put(channel::CloseOk::default(), 1),
            Method::BasicQos(_) => self.put(basic::QosOk::default(), 1),
            Method::ConfirmSelect(_) => {
                self.confirms = true;
                self.put(confirm::SelectOk::default(), 1);
            }
            Method::ExchangeDeclare(_) => self.put(exchange::DeclareOk::default(), 1),
            Method::ExchangeDelete(_) => self.put(exchange::DeleteOk::default(), 1),
            Method::QueueDeclare(declare) if !declare.nowait => {
                let message_count = self.desk.message_count.load(Ordering::Relaxed);
                let message_count = u32::try_from(message_count).unwrap_or(u32::MAX);
                self.put(
                    queue::DeclareOk {
                        queue: declare.queue,
                        message_count,
                        consumer_count: 0,
                    },
                    1,
                );
            }
            Method::BasicConsume(consume) => self.consumer_tags.push(consume.consumer_tag),
            Method::BasicPublish(publish) => self.publish = Some(publish),
            _ => {}
        }
        Ok(())
    }
}
