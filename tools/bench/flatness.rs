//! Durable confirmed throughput against the number of queues: one log and one fdatasync a commit serve all of them, so neither the
//! rate, nor the syncs, nor the bytes written for a message should depend on it.
//!
//! The numbers are measured in turn, and all of them again in every repetition, there and back: a shared machine changes its speed
//! from minute to minute, and only what was measured side by side may be divided; going back the other way, a drift that lasts
//! favours neither. Before all that, one measurement warms up broker, log and disk and does not count: it would always be one of
//! the number that the others are divided by.

use crate::args::{AckMode, Args};
use crate::broker::{Broker, OwnArgs};
use crate::error::BenchError;
use crate::raw::RawDisk;
use crate::report::{Report, count, rate};
use crate::restart;
use crate::run;
use crate::table::{Grid, Table, median};
use serde::Serialize;

/// What to compare.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct FlatnessArgs {
    /// Numbers of durable queues; the others are compared with the first.
    #[arg(long, value_delimiter = ',', default_value = "1,10,100,1000", value_parser = restart::count)]
    counts: Vec<u64>,
    /// Publishing connections.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    publishers: u32,
    /// Consuming connections; 0 only publishes.
    #[arg(long, default_value_t = 1)]
    consumers: u32,
    /// Messages that may be unconfirmed, all publishers together.
    #[arg(long, default_value_t = 1000)]
    window: usize,
    /// Bytes of a body.
    #[arg(long, default_value_t = 1024)]
    body_size: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2)]
    duration: u64,
    /// Messages of each measurement, in place of a duration.
    #[arg(long, value_parser = restart::count)]
    messages: Option<u64>,
    /// How often all of it is repeated; medians are shown.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    #[command(flatten)]
    pub(crate) own: OwnArgs,
}

/// All that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct FlatnessReport {
    raw: RawDisk,
    publishers: u32,
    consumers: u32,
    window: usize,
    body_bytes: usize,
    counts: Vec<Measured>,
}

/// Medians over the repetitions.
#[derive(Debug, Serialize)]
struct Measured {
    queues: u64,
    confirmed_per_sec: f64,
    /// Of the first number of queues, in the same repetition.
    confirmed_ratio: f64,
    /// The smallest and the largest of these ratios.
    confirmed_ratio_range: (f64, f64),
    messages_per_broker_cpu_sec: f64,
    cpu_ratio: f64,
    cpu_ratio_range: (f64, f64),
    fdatasync_per_sec: f64,
    messages_per_fdatasync: f64,
    bytes_per_message: f64,
    bytes_ratio: f64,
    samples: Vec<Sample>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Sample {
    confirmed_per_sec: f64,
    messages_per_broker_cpu_sec: f64,
    fdatasync_per_sec: f64,
    messages_per_fdatasync: f64,
    bytes_per_message: f64,
}

pub(crate) fn run(args: &FlatnessArgs) -> Result<FlatnessReport, BenchError> {
    let (broker, raw) = Broker::start(&args.own)?;
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); args.counts.len()];
    if let Some(first) = args.counts.first() {
        measure(args, &broker, *first)?;
    }
    for repeat in 0..args.repeats {
        let mut round: Vec<(&u64, &mut Vec<Sample>)> =
            args.counts.iter().zip(&mut samples).collect();
        if repeat % 2 == 1 {
            round.reverse();
        }
        for (queues, samples) in round {
            samples.push(measure(args, &broker, *queues)?);
        }
    }
    let first = samples.first().cloned().unwrap_or_default();
    let counts = args.counts.iter().zip(samples);
    Ok(FlatnessReport {
        raw,
        publishers: args.publishers,
        consumers: args.consumers,
        window: args.window,
        body_bytes: args.body_size,
        counts: counts
            .map(|(queues, samples)| Measured::new(*queues, samples, &first))
            .collect(),
    })
}

fn measure(args: &FlatnessArgs, broker: &Broker, queues: u64) -> Result<Sample, BenchError> {
    let load = Args {
        publishers: args.publishers,
        consumers: args.consumers,
        queues: u32::try_from(queues).unwrap_or(u32::MAX),
        window: (args.window / args.publishers as usize).max(1),
        body_size: args.body_size,
        duration: args.messages.is_none().then_some(args.duration),
        count: args.messages,
        ack: AckMode::Manual,
        pid: broker.pid(),
        data_dir: Some(broker.data_dir()),
        ..Args::defaults(broker.url())
    };
    load.check().map_err(BenchError::Protocol)?;
    let report = run::run(&load)?;
    match report.failures().first() {
        None => Ok(Sample::of(&report)),
        Some(failure) => Err(BenchError::Protocol(failure.clone())),
    }
}

impl Sample {
    fn of(report: &Report) -> Self {
        let log = report.log;
        let syncs = log.map_or(0, |log| log.fdatasync_count);
        let messages = log.map_or(0, |log| log.messages);
        let bytes = log.map_or(0, |log| log.bytes);
        let secs = count(report.confirmed_count) / report.confirmed_per_sec.max(1.0);
        Self {
            confirmed_per_sec: report.confirmed_per_sec,
            messages_per_broker_cpu_sec: report.messages_per_broker_cpu_sec.unwrap_or(0.0),
            fdatasync_per_sec: rate(syncs, secs),
            messages_per_fdatasync: rate(messages, count(syncs)),
            bytes_per_message: rate(bytes, count(messages)),
        }
    }
}

impl Measured {
    fn new(queues: u64, samples: Vec<Sample>, first: &[Sample]) -> Self {
        let middle = |of: fn(&Sample) -> f64| median(samples.iter().map(of));
        // Neighbours in time are divided, not medians of different minutes.
        let ratios = |of: fn(&Sample) -> f64| {
            let pairs = samples.iter().zip(first);
            pairs.map(move |(sample, first)| of(sample) / of(first).max(f64::MIN_POSITIVE))
        };
        let ratio = |of: fn(&Sample) -> f64| median(ratios(of));
        let range = |of: fn(&Sample) -> f64| {
            let all = ratios(of);
            all.fold((f64::MAX, 0.0_f64), |(min, max), ratio| {
                (min.min(ratio), max.max(ratio))
            })
        };
        Self {
            queues,
            confirmed_per_sec: middle(|sample| sample.confirmed_per_sec),
            confirmed_ratio: ratio(|sample| sample.confirmed_per_sec),
            confirmed_ratio_range: range(|sample| sample.confirmed_per_sec),
            messages_per_broker_cpu_sec: middle(|sample| sample.messages_per_broker_cpu_sec),
            cpu_ratio: ratio(|sample| sample.messages_per_broker_cpu_sec),
            cpu_ratio_range: range(|sample| sample.messages_per_broker_cpu_sec),
            fdatasync_per_sec: middle(|sample| sample.fdatasync_per_sec),
            messages_per_fdatasync: middle(|sample| sample.messages_per_fdatasync),
            bytes_per_message: middle(|sample| sample.bytes_per_message),
            bytes_ratio: ratio(|sample| sample.bytes_per_message),
            samples,
        }
    }
}

/// The median, and what it lies between.
fn spread(middle: f64, (min, max): (f64, f64)) -> String {
    format!("{middle:.2} ({min:.2}-{max:.2})")
}

impl Table for FlatnessReport {
    fn table(&self) -> String {
        let mut grid = Grid::new(&[
            "queues",
            "confirmed/s",
            "ratio",
            "messages/CPU s",
            "ratio",
            "fdatasync/s",
            "of raw appends",
            "messages/fdatasync",
            "bytes/message",
            "ratio",
            "of raw write",
        ]);
        let raw_per_sec = 1e6 / self.raw.fdatasync_append_p50_us.max(f64::MIN_POSITIVE);
        let raw_write = self.raw.sequential_write_bytes_per_sec.max(1.0);
        for each in &self.counts {
            let written = each.confirmed_per_sec * each.bytes_per_message;
            grid.row(vec![
                each.queues.to_string(),
                format!("{:.0}", each.confirmed_per_sec),
                spread(each.confirmed_ratio, each.confirmed_ratio_range),
                format!("{:.0}", each.messages_per_broker_cpu_sec),
                spread(each.cpu_ratio, each.cpu_ratio_range),
                format!("{:.0}", each.fdatasync_per_sec),
                format!("{:.2}", each.fdatasync_per_sec / raw_per_sec),
                format!("{:.1}", each.messages_per_fdatasync),
                format!("{:.0}", each.bytes_per_message),
                format!("{:.3}", each.bytes_ratio),
                format!("{:.2}", written / raw_write),
            ]);
        }
        format!(
            "{} publishers, {} consumers, window {} in all, {} B\n{}{}",
            self.publishers,
            self.consumers,
            self.window,
            self.body_bytes,
            grid.text(),
            self.raw.line()
        )
    }
}
