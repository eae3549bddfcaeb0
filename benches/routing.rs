//! Look-up in the tables of direct, topic and headers exchanges, by number of bindings.
//!
//! The routes of a connection are cached in front of these, so this is the cost of a message that is the
//! first with its key, of one with CC, and of every one through a headers exchange.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use stratamq::amqp::field_table::FieldTable;
use stratamq::broker::exchange::direct::DirectTable;
use stratamq::broker::exchange::headers::{HeadersPattern, HeadersTable};
use stratamq::broker::exchange::topic::TopicTable;

const BINDINGS_COUNTS: [usize; 4] = [10, 100, 1_000, 10_000];

fn direct(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route/direct");
    for count in BINDINGS_COUNTS {
        let mut table = DirectTable::default();
        for index in 0..count {
            table.insert(Bytes::from(format!("orders.{index}")), index);
        }
        let key = format!("orders.{}", count / 2);
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| table.route(black_box(key.as_bytes()), |item| _ = black_box(item)));
        });
    }
    group.finish();
}

/// A mix as applications have it: mostly literal words, some `*`, a few `#`.
fn topic(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route/topic");
    for count in BINDINGS_COUNTS {
        let mut table = TopicTable::default();
        for index in 0..count {
            let region = index % 50;
            let pattern = match index % 10 {
                0 => format!("region{region}.*.error{index}"),
                1 => format!("#.host{index}.error"),
                2 => format!("region{region}.#"),
                _ => format!("region{region}.host{index}.error"),
            };
            table.insert(&Bytes::from(pattern), index);
        }
        let key = "region3.host43.error";
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| table.route(black_box(key.as_bytes()), |item| _ = black_box(item)));
        });
    }
    group.finish();
}

fn headers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route/headers");
    for count in BINDINGS_COUNTS {
        let mut table = HeadersTable::default();
        for index in 0..count {
            let wanted = i64::try_from(index).expect("small");
            let arguments = FieldTable::new()
                .with("kind", "order")
                .with("shard", wanted);
            table.insert(HeadersPattern::parse(&arguments).expect("valid"), index);
        }
        let headers = FieldTable::new()
            .with("kind", "order")
            .with("shard", 5i64)
            .with("x", 1);
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| table.route(black_box(&headers), |item| _ = black_box(item)));
        });
    }
    group.finish();
}

criterion_group!(benches, direct, topic, headers);
criterion_main!(benches);
