//! How fast bytes become values and back: publishes in, deliveries out, tables both ways.
//!
//! `cargo bench --bench codec`. Each iteration handles a whole read buffer of messages, so that the cost of
//! the buffer itself is spread as it is in a connection.

#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use stratamq::amqp::content::{
    Content, ContentHeader, DeliverHead, FrameSink, Lane, RawContent, encode_content,
    encode_deliver,
};
use stratamq::amqp::field_table::FieldTable;
use stratamq::amqp::frame::{self, FrameKind};
use stratamq::amqp::limits::FRAME_MAX_DEFAULT;
use stratamq::amqp::method::{Method, basic};
use stratamq::amqp::properties::{Properties, PropertiesBuilder};
use stratamq::amqp::short_string::ShortString;

/// Messages in one read buffer.
const MESSAGE_COUNT: u64 = 64;

fn properties() -> Properties {
    PropertiesBuilder::new()
        .set_delivery_mode(Some(2))
        .set_content_type(Some(ShortString::from_static("application/json")))
        .build()
}

/// What a publisher of persistent messages sends.
fn publishes(body_bytes: usize) -> BytesMut {
    let lane = Lane::new(1, FRAME_MAX_DEFAULT);
    let publish = Method::from(basic::Publish {
        exchange: ShortString::from_static("orders"),
        routing_key: ShortString::from_static("orders.created.eu"),
        ..basic::Publish::default()
    });
    let body = [Bytes::from(vec![b'x'; body_bytes])];
    let content = Content {
        properties: &properties(),
        body: &body,
    };
    let mut out = BytesMut::new();
    for _ in 0..MESSAGE_COUNT {
        publish.encode(&mut out, 1);
        encode_content(&mut out, lane, &content);
    }
    out
}

fn decode_all(mut input: BytesMut) -> usize {
    let mut count = 0;
    while let Ok(Some(frame)) = frame::decode(&mut input, FRAME_MAX_DEFAULT) {
        match frame.kind {
            FrameKind::Method => drop(black_box(Method::decode(&frame.payload))),
            FrameKind::Header => drop(black_box(ContentHeader::decode(&frame.payload))),
            FrameKind::Body | FrameKind::Heartbeat => drop(black_box(frame)),
        }
        count += 1;
    }
    count
}

fn decode_publish(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode publish");
    group.throughput(Throughput::Elements(MESSAGE_COUNT));
    for body_bytes in [16, 1024] {
        let input = publishes(body_bytes);
        group.bench_with_input(
            BenchmarkId::from_parameter(format!("{body_bytes} B")),
            &input,
            |bencher, input| {
                bencher.iter_batched(|| input.clone(), decode_all, BatchSize::SmallInput);
            },
        );
    }
    group.finish();
}

/// Keeps large parts aside as the socket's writer does.
#[derive(Default)]
struct Sink {
    buffer: BytesMut,
    chunks: Vec<Bytes>,
}

impl FrameSink for Sink {
    fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }
    fn chunk(&mut self, chunk: Bytes) {
        self.chunks.push(chunk);
    }
}

fn encode_delivery(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode deliver");
    group.throughput(Throughput::Elements(MESSAGE_COUNT));
    let consumer_tag = ShortString::from_static("amq.ctag-XBdOM4hBl2vNQmUqQ8q0AA");
    let properties = properties();
    for body_bytes in [16, 1024, 64 * 1024] {
        let body = [Bytes::from(vec![b'x'; body_bytes])];
        let content = Content {
            properties: &properties,
            body: &body,
        };
        let mut sink = Sink::default();
        group.bench_function(
            BenchmarkId::from_parameter(format!("{body_bytes} B")),
            |bencher| {
                bencher.iter(|| {
                    sink.buffer.clear();
                    sink.chunks.clear();
                    for delivery_tag in 1..=MESSAGE_COUNT {
                        let head = DeliverHead {
                            consumer_tag: consumer_tag.as_bytes(),
                            delivery_tag,
                            is_redelivered: false,
                            names: b"\x06orders\x11orders.created.eu",
                        };
                        let lane = Lane::new(1, FRAME_MAX_DEFAULT);
                        encode_deliver(
                            &mut sink,
                            lane,
                            black_box(&head),
                            &RawContent::from(&content),
                        );
                    }
                    black_box(sink.buffer.len())
                });
            },
        );
    }
    group.finish();
}

fn field_table(criterion: &mut Criterion) {
    let table = FieldTable::new()
        .with("x-queue-type", "classic")
        .with("x-message-ttl", 60_000)
        .with("x-max-length", 1_000_000_i64)
        .with("x-dead-letter-exchange", "dead")
        .with("capabilities", FieldTable::new().with("basic.nack", true));
    let bytes = table.to_bytes();
    let mut group = criterion.benchmark_group("field table, 5 entries");
    group.throughput(Throughput::Bytes(
        u64::try_from(bytes.len()).expect("a short table"),
    ));
    group.bench_function("decode", |bencher| {
        bencher.iter(|| FieldTable::decode(black_box(&bytes)));
    });
    let mut out = BytesMut::new();
    group.bench_function("encode", |bencher| {
        bencher.iter(|| {
            out.clear();
            black_box(&table).encode(&mut out);
        });
    });
    group.finish();
}

criterion_group!(benches, decode_publish, encode_delivery, field_table);
criterion_main!(benches);
