//! Ping-pong through a broker, and the bare echo through one hop that it is compared with.
//!
//! ```text
//!  requester --request--> broker --> responder            client A --bytes--> relay --> client B
//!            <---reply--- broker <--                               <-- bytes- relay <--
//! ```
//! One request is on its way at a time; requester and responder are connections and threads of their own. Nothing is
//! acknowledged, persistent or confirmed.

use crate::broker::Broker;
use crate::clock::Clock;
use crate::connection::{Connection, check_harmless};
use crate::error::BenchError;
use crate::histogram::Histogram;
use crate::input::Event;
use crate::stand_in::StandIn;
use bytes::{Bytes, BytesMut};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use stratamq::amqp::content::{Content, Lane, encode_content};
use stratamq::amqp::limits::FRAME_MAX_DEFAULT;
use stratamq::amqp::method::{Method, basic, queue};
use stratamq::amqp::properties::{Properties, PropertiesBuilder};
use stratamq::amqp::short_string::ShortString;

const REQUESTS: &str = "strata-bench-requests";
const REPLIES: &str = "strata-bench-replies";
/// What stands for the requester's own queue, which is none.
const DIRECT: &str = "amq.rabbitmq.reply-to";
const BODY: &[u8] = b"sixteen bytes...";
/// Bytes of an echo: about as many as a request has.
const ECHO_BYTES: usize = 128;
/// Round trips that do not count.
const WARM_UP: u64 = 100;

/// Where replies go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replies {
    /// Straight to the requester's channel.
    Direct,
    /// Through a queue.
    Queue,
}

/// Round trips through the broker, for `secs`.
pub(crate) fn ping_pong(
    broker: &Broker,
    replies: Replies,
    secs: u64,
) -> Result<Histogram, BenchError> {
    let mut requester = Connection::open(&broker.url())?;
    let mut responder = Connection::open(&broker.url())?;
    declare(&mut responder, REQUESTS)?;
    let reply_to = match replies {
        Replies::Direct => DIRECT,
        Replies::Queue => {
            declare(&mut requester, REPLIES)?;
            REPLIES
        }
    };
    consume(&mut responder, REQUESTS)?;
    consume(&mut requester, reply_to)?;
    let mut builder = PropertiesBuilder::new();
    builder.set_reply_to(Some(ShortString::from_static(reply_to)));
    let request = message(&ShortString::from_static(REQUESTS), &builder.build());
    let is_over = AtomicBool::new(false);
    let round_trips = thread::scope(|scope| {
        let served = scope.spawn(|| respond(&mut responder, &is_over));
        let asked = ask(&mut requester, &request, secs);
        is_over.store(true, Ordering::Relaxed);
        let served = served
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        served.and(asked)
    });
    for queue in [REQUESTS, REPLIES] {
        requester.put(
            queue::Delete {
                queue: ShortString::from_static(queue),
                nowait: true,
                ..queue::Delete::default()
            },
            1,
        );
    }
    requester.send(&mut || true)?;
    requester.close();
    responder.close();
    round_trips
}

fn declare(connection: &mut Connection, name: &'static str) -> Result<(), BenchError> {
    let declare = queue::Declare {
        queue: ShortString::from_static(name),
        ..queue::Declare::default()
    };
    connection.call(declare, |method| {
        matches!(method, Method::QueueDeclareOk(_))
    })?;
    Ok(())
}

fn consume(connection: &mut Connection, queue: &'static str) -> Result<(), BenchError> {
    let consume = basic::Consume {
        queue: ShortString::from_static(queue),
        no_ack: true,
        ..basic::Consume::default()
    };
    connection.call(consume, |method| {
        matches!(method, Method::BasicConsumeOk(_))
    })?;
    Ok(())
}

/// The frames of a message to a queue.
fn message(queue: &ShortString, properties: &Properties) -> BytesMut {
    let publish = basic::Publish {
        routing_key: queue.clone(),
        ..basic::Publish::default()
    };
    let mut frames = BytesMut::new();
    Method::from(publish).encode(&mut frames, 1);
    let body = [Bytes::from_static(BODY)];
    let content = Content {
        properties,
        body: &body,
    };
    encode_content(&mut frames, Lane::new(1, FRAME_MAX_DEFAULT), &content);
    frames
}

/// Asks, waits for the reply, and asks again.
fn ask(requester: &mut Connection, request: &BytesMut, secs: u64) -> Result<Histogram, BenchError> {
    let clock = Clock::start();
    let mut taken = Histogram::new();
    let mut now_ns = clock.now_ns();
    let mut count = 0;
    while now_ns < secs * 1_000_000_000 {
        let begun_ns = now_ns;
        requester.output.extend_from_slice(request);
        requester.send(&mut || true)?;
        while !await_message(requester, |_| ())? {
            if clock.now_ns() - begun_ns > 10_000_000_000 {
                let doing = "waiting for a reply";
                return Err(BenchError::Stalled { doing, secs: 10 });
            }
        }
        now_ns = clock.now_ns();
        count += 1;
        if count > WARM_UP {
            taken.record(now_ns - begun_ns, 1);
        }
    }
    Ok(taken)
}

/// Reads once; true when a whole message came. `take` sees its properties.
fn await_message(
    connection: &mut Connection,
    mut take: impl FnMut(&[u8]),
) -> Result<bool, BenchError> {
    let mut is_complete = false;
    connection.fill()?;
    while let Some(event) = connection.input.next()? {
        match event {
            Event::Header { properties, .. } => take(properties),
            Event::Body(_) => is_complete = true,
            Event::Deliver { .. } => {}
            other => check_harmless(&other)?,
        }
    }
    Ok(is_complete)
}

/// Answers every request until the requester has enough.
fn respond(responder: &mut Connection, is_over: &AtomicBool) -> Result<(), BenchError> {
    let mut asked = Bytes::new();
    let mut reply = BytesMut::new();
    while !is_over.load(Ordering::Relaxed) {
        let mut changed = None;
        let is_complete = await_message(responder, |properties| {
            if properties != asked {
                changed = Some(Bytes::copy_from_slice(properties));
            }
        })?;
        if let Some(properties) = changed {
            // Only the first request says something new.
            reply = reply_to(&properties)?;
            asked = properties;
        }
        if is_complete {
            responder.output.extend_from_slice(&reply);
            responder.send(&mut || true)?;
        }
    }
    Ok(())
}

fn reply_to(properties: &Bytes) -> Result<BytesMut, BenchError> {
    let refuse = || BenchError::Protocol("a request without reply-to".to_owned());
    let properties = Properties::decode(properties.clone()).map_err(|_| refuse())?;
    let name = properties.reply_to().map(Bytes::copy_from_slice);
    let name = name.and_then(|name| std::str::from_utf8(&name).ok().map(str::to_owned));
    let name = ShortString::from_text(&name.ok_or_else(refuse)?);
    Ok(message(
        &name.ok_or_else(refuse)?,
        &PropertiesBuilder::new().build(),
    ))
}

/// Round trips of bare bytes through a relay, for `secs`.
pub(crate) fn echo(secs: u64) -> Result<Histogram, BenchError> {
    let relay = StandIn::relay()?;
    let near = relay.connect()?;
    let far = relay.connect()?;
    thread::scope(|scope| {
        // Ends when the near side closes and the relay with it.
        scope.spawn(|| send_back(&far));
        let taken = send_round(&near, secs);
        let _ = near.shutdown(std::net::Shutdown::Both);
        taken.map_err(BenchError::io("sending bytes round"))
    })
}

fn send_back(mut stream: &TcpStream) {
    let mut bytes = [0; ECHO_BYTES];
    while stream.read_exact(&mut bytes).is_ok() && stream.write_all(&bytes).is_ok() {}
}

fn send_round(mut stream: &TcpStream, secs: u64) -> std::io::Result<Histogram> {
    let clock = Clock::start();
    let mut bytes = [0x5a; ECHO_BYTES];
    let mut taken = Histogram::new();
    let mut now_ns = clock.now_ns();
    while now_ns < secs * 1_000_000_000 {
        let begun_ns = now_ns;
        stream.write_all(&bytes)?;
        stream.read_exact(&mut bytes)?;
        now_ns = clock.now_ns();
        taken.record(now_ns - begun_ns, 1);
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_goes_where_the_request_says() {
        let mut builder = PropertiesBuilder::new();
        builder.set_reply_to(Some(ShortString::from_static("here")));
        let frames = reply_to(builder.build().raw()).expect("it says where");
        let there = message(
            &ShortString::from_static("here"),
            &PropertiesBuilder::new().build(),
        );
        assert_eq!(frames, there);
        assert!(reply_to(PropertiesBuilder::new().build().raw()).is_err());
    }
}
