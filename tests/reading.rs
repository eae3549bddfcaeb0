//! However the stream of a client is cut into frames, writes and reads: the messages are the same.
//!
//! ```text
//!   bodies   [0][16][65 kB][1 MiB][4 kB] ..       in an order of chance
//!   frames   of the size the connection agreed on
//!   writes   [1 byte][a frame and 7 bytes][300 kB] ..
//! ```
//! The broker reads narrow, wide, or a large frame into a buffer of its own, and goes from each way to each other in mid-frame.

mod support;

use support::raw::{Client, Login, Message, durable};
use support::{Builder, TestBroker};

const CHANNEL: u16 = 1;
const QUEUE: &str = "read";
/// Around what is copied, what a narrow read brings, frames of 128 KiB, and many frames.
const BODIES_BYTES: [usize; 12] = [
    0, 16, 1_024, 1_025, 30_000, 65_520, 65_536, 120_000, 131_064, 131_065, 262_136, 1_048_576,
];
/// Writes: within a frame's header, about a frame, about a narrow and a wide read, and more than all of them.
const PIECES_BYTES: [usize; 11] = [
    1, 6, 7, 8, 700, 4_096, 65_536, 131_072, 131_079, 229_376, 600_000,
];
const ROUNDS: u64 = 3;

/// Choices that a seed repeats.
struct Choices(u64);

impl Choices {
    fn one_of(&mut self, all: &[usize]) -> usize {
        // Knuth's MMIX generator; its high bits are the better ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
        let index = (self.0 >> 33) % all.len() as u64;
        all[usize::try_from(index).expect("an index")]
    }
}

/// Bytes that tell where they are, so that nothing can be shifted.
fn body(number: u64, len: usize) -> Vec<u8> {
    let position = 0_u64..;
    let words = position.map(|word| (word + number).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut bytes: Vec<u8> = words.take(len / 8 + 1).flat_map(u64::to_le_bytes).collect();
    bytes.truncate(len);
    bytes
}

fn login(broker: &TestBroker, frame_max: u32) -> Client {
    let login = Login {
        frame_max,
        ..Login::default()
    };
    let mut client = Client::login(broker.address(), &login);
    client.open_channel(CHANNEL);
    client
}

/// Publishes bodies in pieces and takes them out again.
#[track_caller]
fn check(builder: Builder, frame_max: u32) {
    let broker = builder.start();
    let mut client = login(&broker, frame_max);
    client.queue_declare(CHANNEL, QUEUE, durable());
    client.confirm_select(CHANNEL);
    let mut confirmed = 0;
    for seed in 0..ROUNDS {
        let mut choices = Choices(seed);
        let lens: Vec<usize> = (0..40).map(|_| choices.one_of(&BODIES_BYTES)).collect();
        for (number, len) in (0..).zip(&lens) {
            let message = Message::persistent(body(number, *len));
            client.push_publish(CHANNEL, "", QUEUE, &message);
        }
        let pieces = std::iter::from_fn(|| Some(choices.one_of(&PIECES_BYTES)));
        client.flush_in_pieces(pieces).expect("the broker reads");
        confirmed += lens.len() as u64;
        client.wait_confirms_upto(CHANNEL, confirmed);
        for (number, len) in (0..).zip(&lens) {
            let got = client.get(CHANNEL, QUEUE).expect("one for each publish");
            let is_same = got.message.body == body(number, *len);
            assert!(is_same, "seed {seed}: message {number} of {len} bytes");
        }
        assert!(client.get(CHANNEL, QUEUE).is_none());
    }
}

#[test]
fn frames_of_the_usual_size_are_read_as_they_come() {
    check(TestBroker::builder(), 131_072);
}

#[test]
fn small_frames_are_read_as_they_come() {
    check(TestBroker::builder(), 4_096);
}

#[test]
fn frames_a_little_larger_than_a_read_are_read_as_they_come() {
    check(TestBroker::builder(), 65_545);
}

#[test]
fn frames_as_large_as_a_buffer_are_read_as_they_come() {
    check(TestBroker::builder().arg("--frame-max=1MiB"), 262_144);
}

#[test]
fn frames_larger_than_any_buffer_are_read_as_they_come() {
    check(TestBroker::builder().arg("--frame-max=1MiB"), 1_048_576);
}
