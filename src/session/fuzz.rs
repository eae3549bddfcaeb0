//! Any bytes from a client: no panic, bounded memory.

use bytes::{Buf, BytesMut};

use super::{Event, HELD_BYTES_MAX, HELD_FRAMES_MAX, OUTPUT_HIGH_BYTES, Session, SessionOptions};
use crate::amqp::protocol_header::AMQP_0_9_1;
use crate::broker::command::{Command, ConfirmAt, Lsn, Published, PublishedRun, Reply, ReplyBody};
use crate::broker::error::BrokerError;

/// Largest step of time between two reads.
const STEP_MS: u64 = 1000;

/// Feeds `data` to a session in reads of varying size; a small server answers what it asks.
///
/// The first byte chooses whether the handshake is done already, so that short inputs reach the channels.
///
/// # Panics
/// When the session keeps more than its limits allow, or does not come to rest.
pub fn fuzz_session(data: &[u8]) {
    let Some((&choice, data)) = data.split_first() else {
        return;
    };
    let mut session = Session::new(SessionOptions::default(), 0);
    let mut input = BytesMut::new();
    if choice & 1 == 1 {
        input.extend_from_slice(&opening());
    }
    let mut now_ms = 0;
    let mut rest = data;
    let mut read_bytes = usize::from(choice) + 1;
    loop {
        session.receive(&mut input, now_ms);
        serve(&mut session, now_ms);
        while session.has_stalled_input() {
            session.receive(&mut input, now_ms);
            serve(&mut session, now_ms);
        }
        check_limits(&session, read_bytes + input.len());
        let waiting = session.output_len();
        session.output().advance(waiting);
        if rest.is_empty() || session.is_finished() {
            break;
        }
        let (read, left) = rest.split_at(read_bytes.min(rest.len()));
        input.extend_from_slice(read);
        rest = left;
        read_bytes = read_bytes % 997 + 31;
        now_ms += u64::from(read.first().copied().unwrap_or(0)) % STEP_MS;
        session.handle_timeout(now_ms);
        session.handle_durable(Lsn(now_ms));
    }
    session.handle_eof();
    serve(&mut session, now_ms);
    session.handle_durable(Lsn(u64::MAX));
    assert!(
        session.is_finished(),
        "the session does not end with its input"
    );
}

/// The client's side of a handshake, and channel 1.
pub(super) fn opening() -> BytesMut {
    use crate::amqp::method::{Method, channel, connection};
    use crate::amqp::short_string::ShortString;
    let mut bytes = BytesMut::from(&AMQP_0_9_1[..]);
    let start_ok = connection::StartOk {
        mechanism: ShortString::from_static("PLAIN"),
        response: bytes::Bytes::from_static(b"\0guest\0guest"),
        ..Default::default()
    };
    let tune_ok = connection::TuneOk {
        channel_max: 2047,
        frame_max: 131_072,
        heartbeat: 1,
    };
    Method::from(start_ok).encode(&mut bytes, 0);
    Method::from(tune_ok).encode(&mut bytes, 0);
    Method::from(connection::Open::default()).encode(&mut bytes, 0);
    Method::from(channel::Open::default()).encode(&mut bytes, 1);
    bytes
}

fn check_limits(session: &Session, read_bytes: usize) {
    assert!(session.held_bytes < HELD_BYTES_MAX + 131_072 + 8);
    assert!(session.held_frame_count <= HELD_FRAMES_MAX);
    // One frame in, at most one short answer out; a returned message is at most what came in.
    assert!(session.output_len() < 2 * OUTPUT_HIGH_BYTES + 16 * read_bytes);
}

/// Answers every event, some with a refusal, some with what becomes durable later.
fn serve(session: &mut Session, now_ms: u64) {
    let mut count = 0;
    while let Some(event) = session.poll_event() {
        count += 1;
        answer_event(session, event, now_ms, count);
    }
}

/// Answers the event that is the `count`th one.
pub(super) fn answer_event(session: &mut Session, event: Event, now_ms: u64, count: u64) {
    match event {
        Event::Login(_) => session.login_result(Ok(())),
        Event::Open { .. } => session.open_result(Ok(())),
        Event::Command { channel, command } => {
            session.command_result(channel, answer(command, now_ms, count));
        }
        Event::Publish(publish) => {
            let is_returned = publish.is_mandatory && count.is_multiple_of(2);
            session.publish_results(&[PublishedRun {
                channel: publish.channel,
                count: 1,
                confirm: match count % 3 {
                    0 => ConfirmAt::Nack,
                    1 => ConfirmAt::Now,
                    _ => ConfirmAt::Durable(Lsn(now_ms + 5)),
                },
                returned: is_returned.then_some(publish.message).into_iter().collect(),
            }]);
        }
        Event::TxPublish(publish) => {
            if count.is_multiple_of(7) {
                session.publish_refused(publish.channel, refusal());
            }
        }
        Event::Ended => session.ended(),
    }
}

fn answer(command: Command, now_ms: u64, count: u64) -> Result<Reply, BrokerError> {
    let body = match command {
        Command::QueueDeclare(declare) => ReplyBody::QueueDeclared {
            queue: declare.queue,
            messages: 0,
            consumers: 0,
        },
        Command::QueueDelete { .. } | Command::QueuePurge { .. } => {
            ReplyBody::Removed { messages: 1 }
        }
        Command::Get { .. } => ReplyBody::GotNothing,

        Command::TxCommit { publish_count, .. } => ReplyBody::Committed {
            published: vec![
                Published {
                    confirm: ConfirmAt::Now,
                    is_unroutable: true,
                };
                publish_count
            ],
        },
        Command::CloseChannel { .. } => ReplyBody::Done,
        _ if count.is_multiple_of(5) => return Err(refusal()),
        _ => ReplyBody::Done,
    };
    let durable_at = (count.is_multiple_of(2)).then_some(Lsn(now_ms + 3));
    Ok(Reply { body, durable_at })
}

fn refusal() -> BrokerError {
    use crate::amqp::reply_code::ChannelReplyCode;
    BrokerError::channel(ChannelReplyCode::NotFound, "no queue")
}
