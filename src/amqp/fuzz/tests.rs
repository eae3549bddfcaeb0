//! Drives the targets from a seed: `STRATAMQ_FUZZ_CASES` sets how often (default 2000 for each target),
//! `STRATAMQ_FUZZ_SEED` where to begin. A failure names the seed of its case.

use super::*;
use crate::amqp::content::{Content, Lane, encode_content};
use crate::amqp::field_table::FieldTable;
use crate::amqp::method;
use crate::amqp::properties::PropertiesBuilder;
use crate::amqp::samples::{Random, Sample};
use crate::amqp::short_string::ShortString;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect(name))
}

/// Calls `target` with well-formed inputs after some damage, and with pure noise.
fn drive(target: fn(&[u8]), corpus: fn(&mut Random) -> Vec<u8>) {
    let first = setting("STRATAMQ_FUZZ_SEED", 0);
    for seed in first..first + setting("STRATAMQ_FUZZ_CASES", 2000) {
        let mut random = Random::new(seed);
        let mut data = match random.below(8) {
            0 => {
                let count = random.below(100);
                random.bytes(count)
            }
            _ => corpus(&mut random),
        };
        damage(&mut data, &mut random);
        let outcome = std::panic::catch_unwind(|| target(&data));
        assert!(outcome.is_ok(), "STRATAMQ_FUZZ_SEED={seed} gives {data:?}");
    }
}

fn damage(data: &mut Vec<u8>, random: &mut Random) {
    const TEMPTING: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, 0xce, b'F', b'A'];
    for _ in 0..random.below(4) {
        if data.is_empty() {
            return;
        }
        let at = random.below(data.len());
        match random.below(4) {
            0 => data[at] = u8::sample(random),
            1 => data[at] = TEMPTING[random.below(TEMPTING.len())],
            2 => data.truncate(at),
            _ => data.insert(at, u8::sample(random)),
        }
    }
}

fn a_method(random: &mut Random) -> BytesMut {
    let methods = method::samples(random);
    let mut out = BytesMut::new();
    methods[random.below(methods.len())].encode(&mut out, u16::sample(random));
    out
}

fn a_method_payload(random: &mut Random) -> Vec<u8> {
    let frame = a_method(random);
    frame[7..frame.len() - 1].to_vec()
}

fn a_table(random: &mut Random) -> Vec<u8> {
    FieldTable::sample(random).to_bytes().to_vec()
}

fn a_builder(random: &mut Random) -> PropertiesBuilder {
    let mut builder = PropertiesBuilder::new();
    let mut text = || bool::sample(random).then(|| ShortString::sample(random));
    builder
        .set_content_type(text())
        .set_reply_to(text())
        .set_expiration(text())
        .set_user_id(text())
        .set_message_id(text());
    if bool::sample(random) {
        let bcc = ["BCC", "CC", "x"][random.below(3)];
        builder.set_headers(Some(FieldTable::sample(random).with(bcc, true)));
    }
    builder.set_priority(bool::sample(random).then_some(3));
    builder.set_timestamp(bool::sample(random).then_some(4));
    builder
}

fn some_properties(random: &mut Random) -> Vec<u8> {
    a_builder(random).build().raw().to_vec()
}

fn a_content_header(random: &mut Random) -> Vec<u8> {
    let mut data = b"\x00\x3c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x05".to_vec();
    data.extend(some_properties(random));
    data
}

fn some_frames(random: &mut Random) -> Vec<u8> {
    let mut out = a_method(random);
    let body = [Bytes::sample(random)];
    let content = Content {
        properties: &a_builder(random).build(),
        body: &body,
    };
    encode_content(&mut out, Lane::new(1, 4096), &content);
    frame::encode_heartbeat(&mut out);
    out.to_vec()
}

#[test]
fn any_bytes_are_safe_as_frames() {
    drive(fuzz_frame, some_frames);
}

#[test]
fn any_bytes_are_safe_as_a_method() {
    drive(fuzz_method, a_method_payload);
}

#[test]
fn any_bytes_are_safe_as_a_content_header() {
    drive(fuzz_content_header, a_content_header);
}

#[test]
fn any_bytes_are_safe_as_a_field_table() {
    drive(fuzz_field_table, a_table);
}

#[test]
fn any_bytes_are_safe_as_properties() {
    drive(fuzz_properties, some_properties);
}
