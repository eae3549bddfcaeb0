//! The hot paths with a fixed amount of work, to be counted in instructions: `tools/compare-instructions`.
//!
//! ```text
//!  bytes -> Session -> Broker -> queue -> Outbox -> Session -> bytes        without sockets, threads and the kernel
//!                        \-> Storage, stepped by hand, on a real file
//! ```
//! `instructions CASE COUNT` does the work of about COUNT messages and ends. Counted twice, with two counts, the difference is the
//! cost of the messages alone: neither the start of the process nor the handshakes are in it. Without arguments it lists the cases.
//!
//! Everything happens on one thread in a fixed order, so the counts of two runs differ by what the allocator and the file system
//! say, which is far below a percent.

#![allow(missing_docs, reason = "a bench has no users")]
#![allow(clippy::print_stdout, reason = "it lists its cases")]

#[path = "instructions/pipe.rs"]
mod pipe;

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use pipe::{Load, Pipe};
use stratamq::amqp::content::{
    Content, DeliverHead, FrameSink, Lane, RawContent, encode_content, encode_deliver,
};
use stratamq::amqp::frame::{self, FrameKind};
use stratamq::amqp::limits::FRAME_MAX_DEFAULT;
use stratamq::amqp::method::{Method, basic};
use stratamq::amqp::properties::PropertiesBuilder;
use stratamq::amqp::short_string::ShortString;
use stratamq::broker::exchange::topic::TopicTable;
use stratamq::disk::{Clock, Disk, RealClock, RealDisk};
use stratamq::storage::format::StoreId;
use stratamq::storage::testing::Heard;
use stratamq::storage::types::{QueueId, Ref, Request, Seq, Urgency};
use stratamq::storage::{CommitListener, Options, Storage};

/// Messages that are handled together.
const BATCH: usize = 64;

type Case = (&'static str, fn(usize));

const CASES: &[Case] = &[
    ("decode-1k", decode),
    ("encode-1k", encode),
    ("route-topic-1000", route_topic),
    ("append-1k", append),
    ("transient-16", |count| pipe(Load::transient(16), count)),
    ("transient-1k", |count| pipe(Load::transient(1024), count)),
    ("transient-fanout-5", |count| {
        pipe(Load::transient(1024).to_queues(5), count);
    }),
    ("durable-16", |count| pipe(Load::durable(16), count)),
    ("durable-1k", |count| pipe(Load::durable(1024), count)),
    ("durable-1k-of-1", |count| {
        pipe(Load::durable(1024).in_turn_to(1), count);
    }),
    ("durable-1k-of-1000", |count| {
        pipe(Load::durable(1024).in_turn_to(1000), count);
    }),
    ("durable-1k-single", |count| {
        pipe(Load::durable(1024).in_batches_of(1), count);
    }),
    ("backlog-1k", |count| {
        pile_up(Load::durable(1024).as_backlog(), count)
    }),
    // With their publishes.
    ("drain-1k", |count| {
        pile_up(Load::durable(1024).drained(), count)
    }),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, count] = arguments.as_slice() else {
        // `cargo bench` and `cargo test --benches` only want to know that it starts.
        for (name, _) in CASES {
            println!("{name}");
        }
        return ExitCode::SUCCESS;
    };
    let case = CASES.iter().find(|(case, _)| case == name);
    match case.zip(count.parse().ok()) {
        Some(((_, work), count)) => {
            work(count);
            ExitCode::SUCCESS
        }
        None => {
            println!("usage: instructions CASE COUNT");
            ExitCode::from(2)
        }
    }
}

fn pipe(load: Load, count: usize) {
    let mut pipe = Pipe::new(load);
    pipe.carry(count);
}

fn pile_up(load: Load, count: usize) {
    let mut pipe = Pipe::new(load);
    pipe.pile_up(count);
}

fn publishes(body_bytes: usize) -> BytesMut {
    let publish = Method::from(basic::Publish {
        exchange: ShortString::from_static("orders"),
        routing_key: ShortString::from_static("orders.created.eu"),
        ..basic::Publish::default()
    });
    let properties = PropertiesBuilder::new()
        .set_delivery_mode(Some(2))
        .set_content_type(Some(ShortString::from_static("application/json")))
        .build();
    let body = [Bytes::from(vec![b'x'; body_bytes])];
    let content = Content {
        properties: &properties,
        body: &body,
    };
    let mut out = BytesMut::new();
    for _ in 0..BATCH {
        publish.encode(&mut out, 1);
        encode_content(&mut out, Lane::new(1, FRAME_MAX_DEFAULT), &content);
    }
    out
}

fn decode(count: usize) {
    let stream = publishes(1024);
    for _ in 0..count.div_ceil(BATCH) {
        let mut input = stream.clone();
        while let Ok(Some(frame)) = frame::decode(&mut input, FRAME_MAX_DEFAULT) {
            match frame.kind {
                FrameKind::Method => drop(black_box(Method::decode(&frame.payload))),
                _ => drop(black_box(frame)),
            }
        }
    }
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

fn encode(count: usize) {
    let properties = PropertiesBuilder::new().set_delivery_mode(Some(2)).build();
    let body = [Bytes::from(vec![b'x'; 1024])];
    let content = Content {
        properties: &properties,
        body: &body,
    };
    let mut sink = Sink::default();
    for delivery_tag in 1..=count {
        if delivery_tag % BATCH == 0 {
            sink.buffer.clear();
            sink.chunks.clear();
        }
        let head = DeliverHead {
            consumer_tag: b"amq.ctag-XBdOM4hBl2vNQmUqQ8q0AA",
            delivery_tag: delivery_tag as u64,
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
    black_box(sink.buffer.len());
}

/// A mix as applications have it: mostly literal words, some `*`, a few `#`.
fn route_topic(count: usize) {
    let mut table = TopicTable::default();
    for index in 0..1000 {
        let region = index % 50;
        let pattern = match index % 10 {
            0 => format!("region{region}.*.error{index}"),
            1 => format!("#.host{index}.error"),
            2 => format!("region{region}.#"),
            _ => format!("region{region}.host{index}.error"),
        };
        table.insert(&Bytes::from(pattern), index);
    }
    for _ in 0..count {
        table.route(black_box(b"region3.host43.error"), |item| {
            _ = black_box(item)
        });
    }
}

/// Records of messages, up to the copy into the batch and its write into a file.
fn append(count: usize) {
    let directory = pipe::directory();
    let disk = RealDisk::new(directory.path().to_owned()).expect("it is there");
    let disk: Arc<dyn Disk> = Arc::new(disk);
    let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
    let listener: Arc<dyn CommitListener> = Arc::new(Heard::default());
    let store = StoreId([7; 16]);
    let opened = Storage::open_by_hand(disk, clock, Options::default(), listener, store);
    let (storage, _) = opened.expect("a fresh directory opens");
    let payload = [Bytes::from(vec![b'x'; 1024])];
    let payload_crc = crc32fast::hash(&payload[0]);
    let mut positions = Vec::new();
    for batch in 0..count.div_ceil(BATCH) {
        let seqs = (batch * BATCH..(batch + 1) * BATCH).map(|seq| Seq(1 + seq as u64));
        let refs: Vec<[Ref; 1]> = seqs
            .map(|seq| {
                [Ref {
                    queue: QueueId(1),
                    seq,
                    expires_at_ms: 0,
                }]
            })
            .collect();
        let requests: Vec<Request<'_>> = refs
            .iter()
            .map(|refs| Request::Publish {
                refs,
                priority: 0,
                time_ms: 1,
                payload: (&payload[..]).into(),
                payload_crc,
            })
            .collect();
        positions.clear();
        storage.push(&requests, false, Urgency::Waited, &mut positions);
        storage.step().expect("the disk works");
    }
}
