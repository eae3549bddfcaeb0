//! Publishes that are taken together are what they are frame by frame.
//!
//! A session that is given its input byte by byte never sees a whole publish. Every other one must do and say the same,
//! however the bytes come.

use bytes::{Buf, BytesMut};
use proptest::prelude::*;

use super::super::fuzz::{answer_event, opening};
use super::fuzz::any_method;
use super::support::*;
use crate::amqp::content::{Content, Lane, encode_content};
use crate::amqp::method::{Method, basic, channel, confirm, tx};
use crate::amqp::properties::{Properties, PropertiesBuilder};
use crate::broker::command::Lsn;
use crate::session::{Event, PUBLISH_RUN_MAX, SLICED_BODY_MIN_BYTES, Session, SessionOptions};

/// Bytes of the largest message, and of all that are unfinished.
const MESSAGE_MAX_BYTES: u64 = 40_000;
const UNFINISHED_MAX_BYTES: u64 = 90_000;

/// Where reads go.
#[derive(Clone, Copy, PartialEq)]
enum Buffer {
    Own,
    /// One that is taken away afterwards.
    Lent,
    /// One that messages may keep, and nothing else.
    Shared,
}

/// One of the sessions that hear the same, and all that came of it.
struct Twin {
    session: Session,
    input: BytesMut,
    now_ms: u64,
    event_count: u64,
    /// Publishes are polled so many at a time; 0 for one after the other.
    batch_max: usize,
    buffer: Buffer,
    log: Vec<String>,
    output: Vec<u8>,
}

impl Twin {
    /// Channels 1 to 4 are open; the third one confirms, the fourth one has a transaction.
    fn new(batch_max: usize) -> Self {
        let options = SessionOptions {
            message_max_bytes: MESSAGE_MAX_BYTES,
            unfinished_max_bytes: UNFINISHED_MAX_BYTES,
            tx_max_bytes: 2_000,
            ..SessionOptions::default()
        };
        let mut twin = Self {
            session: Session::new(options, 0),
            input: BytesMut::new(),
            now_ms: 0,
            event_count: 0,
            batch_max,
            buffer: Buffer::Own,
            log: Vec::new(),
            output: Vec::new(),
        };
        twin.hear(&opening(), |_| usize::MAX);
        twin.act();
        let mut tell = |id, method: Method| {
            let mut bytes = BytesMut::new();
            method.encode(&mut bytes, id);
            twin.hear(&bytes, |_| usize::MAX);
            // The first answer is neither late nor a refusal.
            twin.event_count = 0;
            twin.act();
        };
        for id in 2..=4 {
            tell(id, channel::Open::default().into());
        }
        tell(3, confirm::Select::default().into());
        tell(4, tx::Select {}.into());
        assert!((1..=4).all(|id| twin.session.is_open_channel(id)));
        twin
    }

    /// Takes bytes as they come: the first read is of `read_bytes(0)` bytes, and so on.
    fn hear(&mut self, mut bytes: &[u8], read_bytes: impl Fn(usize) -> usize) {
        for index in 0.. {
            if bytes.is_empty() {
                return;
            }
            let (read, rest) = bytes.split_at(read_bytes(index).clamp(1, bytes.len()));
            self.input.extend_from_slice(read);
            bytes = rest;
            if self.buffer != Buffer::Own {
                let mut buffer = std::mem::take(&mut self.input);
                match self.buffer {
                    Buffer::Shared => self.session.receive_sliced(&mut buffer, self.now_ms),
                    _ => self.session.receive_copied(&mut buffer, self.now_ms),
                }
                self.input = BytesMut::from(&buffer[..]);
                let is_unique = buffer.freeze().is_unique();
                assert!(
                    is_unique || self.buffer == Buffer::Shared,
                    "something is still there"
                );
            }
            self.session.receive(&mut self.input, self.now_ms);
        }
    }

    /// Answers everything, and takes down what the session does.
    fn act(&mut self) {
        self.now_ms += 1;
        loop {
            let mut batch = Vec::new();
            self.session.poll_publishes(&mut batch, self.batch_max);
            let mut events: Vec<Event> = batch.into_iter().map(Event::Publish).collect();
            if events.is_empty() {
                events.extend(self.session.poll_event());
            }
            if events.is_empty() && !self.session.has_stalled_input() {
                break;
            }
            for event in events {
                self.log.push(format!("{event:?}"));
                self.event_count += 1;
                // A refusal drops what is behind it on its channel, as the server does with what it holds.
                let is_dropped = matches!(&event, Event::Publish(publish)
                    if !self.session.is_open_channel(publish.channel));
                if !is_dropped {
                    answer_event(&mut self.session, event, self.now_ms, self.event_count);
                }
            }
            if self.session.has_stalled_input() {
                self.session.receive(&mut self.input, self.now_ms);
            }
        }
        self.session.handle_durable(Lsn(self.now_ms));
        let output = self.session.output();
        while output.has_remaining() {
            self.output.extend_from_slice(output.chunk());
            output.advance(output.chunk().len());
        }
        self.log.extend(self.session.take_complaint());
    }
}

#[track_caller]
fn check(parts: &[Vec<u8>], read_bytes: &dyn Fn(usize) -> usize, alarm_at: usize) {
    let mut by_byte = Twin::new(0);
    let mut together = Twin::new(3);
    let mut copied = Twin::new(3);
    copied.buffer = Buffer::Lent;
    let mut sliced = Twin::new(3);
    sliced.buffer = Buffer::Shared;
    for (index, part) in parts.iter().enumerate() {
        for twin in [&mut by_byte, &mut together, &mut copied, &mut sliced] {
            twin.session
                .set_alarm((index == alarm_at).then_some("low on memory"));
        }
        by_byte.hear(part, |_| 1);
        by_byte.act();
        for twin in [&mut together, &mut copied, &mut sliced] {
            twin.hear(part, read_bytes);
            twin.act();
            assert_eq!(twin.log, by_byte.log);
            assert_eq!(twin.output, by_byte.output);
            assert_eq!(twin.input, by_byte.input);
        }
    }
}

/// A publish, some times over with another body each: what varies is what the path for many looks at.
fn any_publishes() -> impl Strategy<Value = Vec<u8>> {
    let key = prop_oneof![
        Just(short("key")),
        Just(short("yek")),
        Just(short("another.key")),
        Just(short(""))
    ];
    let properties = (0u8..6).prop_map(|choice| {
        let mut properties = PropertiesBuilder::new();
        match choice {
            0 => return Properties::default(),
            1 => properties.set_delivery_mode(Some(2)),
            2 => properties.set_header("CC", 1),
            3 => properties.set_reply_to(Some(short("amq.rabbitmq.reply-to"))),
            4 => properties.set_expiration(Some(short("1000"))),
            _ => properties.set_priority(Some(5)).set_header("x", 1),
        };
        properties.build()
    });
    let size = prop_oneof![
        4 => 0usize..20,
        1 => 0usize..3000,
        1 => 32_760usize..32_780,
        1 => 39_990usize..40_010
    ];
    let frame_max = prop_oneof![4 => Just(131_072u32), 1 => 4096u32..5000];
    let flags = (0u8..100).prop_map(|choice| (choice % 2 == 1, choice == 99));
    let sizes = (size, frame_max, b'b'..b'g');
    (1u16..5, key, flags, properties, sizes).prop_map(
        |(channel, routing_key, (mandatory, immediate), properties, (size, frame_max, end))| {
            let mut bytes = BytesMut::new();
            let publish = Method::from(basic::Publish {
                exchange: short("x"),
                routing_key,
                mandatory,
                immediate,
                ..Default::default()
            });
            for letter in b'a'..end {
                publish.encode(&mut bytes, channel);
                let body = [vec![letter; size].into()];
                let content = Content {
                    properties: &properties,
                    body: &body,
                };
                encode_content(&mut bytes, Lane::new(channel, frame_max), &content);
            }
            bytes.to_vec()
        },
    )
}

/// Methods that leave the connection open as a rule.
fn any_other() -> impl Strategy<Value = Vec<u8>> {
    let method = prop_oneof![
        2 => Just(Method::from(channel::Open::default())),
        1 => Just(confirm::Select::default().into()),
        1 => Just(tx::Select {}.into()),
        1 => Just(tx::Commit {}.into()),
        1 => Just(channel::Close::default().into()),
        1 => any_method(),
    ];
    (1u16..5, method).prop_map(|(channel, method)| {
        let mut bytes = BytesMut::new();
        method.encode(&mut bytes, channel);
        bytes.to_vec()
    })
}

/// What a client sends before it waits.
fn any_part() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![12 => any_publishes(), 1 => any_other()];
    let damage = prop_oneof![
        9 => Just(None),
        1 => (any::<prop::sample::Index>(), any::<u8>()).prop_map(Some)
    ];
    (prop::collection::vec(piece, 0..12), damage).prop_map(|(pieces, damage)| {
        let mut bytes = pieces.concat();
        if let Some((at, value)) = damage
            && !bytes.is_empty()
        {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes
    })
}

proptest! {
    // Every byte of up to 40,000 is a read of its own.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn reads_of_any_size_are_heard_as_single_bytes_are(
        parts in prop::collection::vec(any_part(), 1..5),
        reads in prop::collection::vec(1usize..20_000, 1..8),
        alarm_at in 0usize..12,
    ) {
        check(&parts, &|index| reads[index % reads.len()], alarm_at);
    }
}

/// Two channels, empty and other bodies, repetitions.
fn mixed_publishes() -> Vec<u8> {
    let mut peer = Peer::new(SessionOptions::default());
    peer.publish(1, false, b"one")
        .publish(1, true, b"")
        .publish(3, true, b"two")
        .publish(1, false, b"one")
        .publish(1, false, b"six");
    peer.input.to_vec()
}

#[track_caller]
fn check_whole(parts: &[&[u8]]) {
    let parts: Vec<Vec<u8>> = parts.iter().map(|part| part.to_vec()).collect();
    check(&parts, &|_| usize::MAX, usize::MAX);
}

#[test]
fn a_read_may_end_anywhere() {
    let bytes = mixed_publishes();
    for at in 1..bytes.len() {
        let (first, second) = bytes.split_at(at);
        check_whole(&[first, second]);
        let reads = |index| if index == 0 { at } else { usize::MAX };
        check(std::slice::from_ref(&bytes), &reads, usize::MAX);
    }
}

#[test]
fn every_damaged_byte_is_found_by_both() {
    let bytes = mixed_publishes();
    for at in 0..bytes.len() {
        for flip in [1, 0x80, 0xFF] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            check_whole(&[&damaged]);
        }
    }
}

#[test]
fn every_damaged_byte_around_a_long_body_is_found() {
    let mut peer = Peer::new(SessionOptions::default());
    for letter in *b"abc" {
        peer.publish(1, true, &[letter; SLICED_BODY_MIN_BYTES]);
    }
    let publish_len = peer.input.len() / 3;
    let body = publish_len - 1 - SLICED_BODY_MIN_BYTES..publish_len - 1;
    for at in (0..2 * publish_len).filter(|at| !body.contains(&(at % publish_len))) {
        let mut damaged = peer.input.to_vec();
        damaged[at] ^= 1;
        check_whole(&[&damaged]);
    }
}

/// Publishes that go round keys, of one length and others, with bodies of one length.
fn publishes_round_keys(body_bytes: usize) -> Vec<u8> {
    let mut peer = Peer::new(SessionOptions::default());
    let keys = [
        "key.1",
        "key.2",
        "key.2",
        "k\u{e9}y3",
        "key.1",
        "key",
        "yek",
        "",
        "",
        "key",
    ];
    for (key, letter) in keys.into_iter().zip(b'a'..) {
        peer.publish_to_key(key, 1, false, &vec![letter; body_bytes]);
    }
    peer.publish_to_key("yek", 3, false, &vec![b'z'; body_bytes])
        .publish_to_key("key", 3, true, &vec![b'z'; body_bytes]);
    peer.input.to_vec()
}

#[test]
fn publishes_with_keys_of_their_own_are_what_they_are_frame_by_frame() {
    for body_bytes in [0, 3, SLICED_BODY_MIN_BYTES] {
        check_whole(&[&publishes_round_keys(body_bytes)]);
    }
}

#[test]
fn every_damaged_byte_of_publishes_round_keys_is_found_by_both() {
    let bytes = publishes_round_keys(2);
    for at in 0..bytes.len() {
        for flip in [1, 0x80] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            check_whole(&[&damaged]);
        }
    }
}

#[test]
fn messages_keep_a_buffer_that_they_may_share() {
    let stays = |size: usize, count: usize| {
        let mut peer = Peer::new(SessionOptions::default());
        for _ in 0..count {
            peer.publish(1, true, &vec![b'x'; size]);
        }
        let mut twin = Twin::new(count);
        let mut buffer = BytesMut::from(&peer.input[..]);
        twin.session.receive_sliced(&mut buffer, 0);
        assert!(buffer.is_empty());
        let mut batch = Vec::new();
        twin.session.poll_publishes(&mut batch, count);
        assert_eq!(batch.len(), count);
        let memory = peer.input.len();
        let is_shared = !buffer.try_reclaim(memory);
        drop(batch);
        assert!(buffer.try_reclaim(memory), "it is free again");
        is_shared
    };
    for count in [1, 3, 700] {
        assert!(stays(SLICED_BODY_MIN_BYTES, count));
    }
    assert!(!stays(SLICED_BODY_MIN_BYTES - 1, 3));
}

#[test]
fn bodies_of_every_size_are_kept_or_refused_alike() {
    for size in [0, 1, 32_767, 32_768, 32_769, 40_000, 40_001] {
        for id in 1..=4 {
            let mut peer = Peer::new(SessionOptions::default());
            peer.publish(id, true, &vec![b'x'; size]);
            check_whole(&[&peer.input, &peer.input]);
        }
    }
}

#[test]
fn what_others_have_not_finished_counts_for_a_whole_publish() {
    let mut unfinished = Peer::new(SessionOptions::default());
    for id in [1, 2] {
        let mut peer = Peer::new(SessionOptions::default());
        peer.publish(id, false, &[b'x'; 40_000]);
        // Method and header only; the body frame that follows holds less than they announce.
        let header_end = peer.input.len() - (7 + 40_000 + 1);
        unfinished.bytes(&peer.input[..header_end]);
        unfinished.frame(3, id, &[b'x'; 39_000]);
    }
    for size in [12_000, 12_001, 30_000] {
        let mut peer = Peer::new(SessionOptions::default());
        peer.publish(3, false, &vec![b'x'; size]);
        check_whole(&[&unfinished.input, &peer.input, &peer.input]);
    }
}

#[test]
fn publishes_that_come_together_are_taken_together() {
    let mut twin = Twin::new(usize::MAX);
    let mut peer = Peer::new(SessionOptions::default());
    for _ in 0..5 {
        peer.publish(1, false, b"body");
    }
    twin.hear(&peer.input, |_| usize::MAX);
    let mut batch = Vec::new();
    twin.session.poll_publishes(&mut batch, 2);
    assert_eq!(batch.len(), 2);
    twin.session.poll_publishes(&mut batch, 9);
    assert_eq!(batch.len(), 5);
    assert!(twin.session.poll_event().is_none());
    assert!(batch.iter().all(|publish| publish.message.body_len() == 4));
}

#[test]
fn any_number_of_publishes_is_polled_in_order() {
    let count = 2 * PUBLISH_RUN_MAX + 3;
    let bodies: Vec<String> = (0..count).map(|index| format!("{index:06}")).collect();
    let mut peer = Peer::new(SessionOptions::default());
    for body in &bodies {
        peer.publish(1, false, body.as_bytes());
    }
    for (reads, batch_max) in [
        (usize::MAX, PUBLISH_RUN_MAX),
        (20_000, PUBLISH_RUN_MAX),
        (7_000, 300),
        (usize::MAX, usize::MAX),
    ] {
        let mut twin = Twin::new(batch_max);
        twin.hear(&peer.input, |_| reads);
        let mut polled = Vec::new();
        loop {
            let mut batch = Vec::new();
            twin.session.poll_publishes(&mut batch, batch_max);
            if batch.is_empty() {
                break;
            }
            assert!(batch.len() <= batch_max);
            polled.extend(batch.iter().map(|publish| publish.message.body().concat()));
        }
        assert!(polled.iter().eq(bodies.iter().map(String::as_bytes)));
    }
}
