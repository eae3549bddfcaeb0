//! What a run has shown, as a table for people and as JSON for machines.

use crate::args::Args;
use crate::broker::LogCounters;
use crate::clock::secs;
use crate::histogram::Histogram;
use crate::publisher::Published;
use crate::run::{Meter, Total};
use serde::Serialize;
use std::fmt::Write;

/// Everything measured. Field names are the keys of the JSON object.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    workload: Workload,
    pub(crate) published_count: u64,
    pub(crate) published_per_sec: f64,
    /// 0 without confirms.
    pub(crate) confirmed_count: u64,
    pub(crate) confirmed_per_sec: f64,
    nacked_count: u64,
    unconfirmed_count: u64,
    pub(crate) consumed_count: u64,
    pub(crate) consumed_per_sec: f64,
    /// Confirmed (without confirms: published) messages that no consumer received, or that are not in the queues.
    pub(crate) lost_count: u64,
    duplicate_count: u64,
    out_of_order_count: u64,
    redelivered_count: u64,
    /// Deliveries of messages that this run has not published.
    foreign_count: u64,
    pub(crate) confirm_latency: Option<Latency>,
    end_to_end_latency: Option<Latency>,
    pub(crate) broker_cpu_secs: Option<f64>,
    /// Messages that went all the way, for each CPU second of the broker.
    pub(crate) messages_per_broker_cpu_sec: Option<f64>,
    broker_rss_max_bytes: Option<u64>,
    pub(crate) broker_rss_end_bytes: Option<u64>,
    pub(crate) generator_cpu_secs: f64,
    /// What the log did meanwhile, of a StrataMQ whose directory was named.
    pub(crate) log: Option<LogCounters>,
    log_bytes_per_message: Option<f64>,
    errors: Vec<String>,
}

/// The arguments that a result depends on.
#[derive(Debug, Serialize)]
struct Workload {
    publishers: u32,
    consumers: u32,
    queues: u32,
    is_fanout: bool,
    body_bytes: usize,
    confirm_window: usize,
    ack: String,
    prefetch: u16,
    is_persistent: bool,
    is_durable: bool,
}

/// Percentiles in milliseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Latency {
    mean_ms: f64,
    pub(crate) p50_ms: f64,
    p90_ms: f64,
    pub(crate) p99_ms: f64,
    p999_ms: f64,
    max_ms: f64,
}

impl Latency {
    fn of(histogram: &Histogram) -> Option<Self> {
        let percentile = |per_mille| secs(histogram.percentile_ns(per_mille)) * 1e3;
        (histogram.count() > 0).then(|| Self {
            mean_ms: secs(histogram.mean_ns()) * 1e3,
            p50_ms: percentile(500),
            p90_ms: percentile(900),
            p99_ms: percentile(990),
            p999_ms: percentile(999),
            max_ms: secs(histogram.max_ns()) * 1e3,
        })
    }
}

impl Report {
    pub(crate) fn new(
        args: &Args,
        publishers: Vec<Published>,
        consumed: Total,
        lost_count: u64,
        meter: &Meter,
    ) -> Self {
        let mut confirm_latency = Histogram::new();
        let (mut published_count, mut nacked_count, mut unconfirmed_count) = (0, 0, 0);
        let (mut last_publish_ns, mut last_confirm_ns) = (0, 0);
        let mut errors = consumed.errors;
        for publisher in publishers {
            confirm_latency.merge(&publisher.confirm_latency);
            published_count += publisher.count;
            nacked_count += publisher.nacked.len() as u64;
            unconfirmed_count += publisher.unconfirmed.len() as u64;
            last_publish_ns = publisher.last_publish_ns.max(last_publish_ns);
            last_confirm_ns = publisher.last_confirm_ns.max(last_confirm_ns);
            errors.extend(publisher.error.map(|error| format!("a publisher: {error}")));
        }
        let consumed_count = consumed.ledger.unique_count;
        let done_count = if args.consumers > 0 {
            consumed_count
        } else {
            published_count
        };
        Self {
            workload: Workload {
                publishers: args.publishers,
                consumers: args.consumers,
                queues: args.queues,
                is_fanout: args.fanout,
                body_bytes: args.body_size,
                confirm_window: args.window,
                ack: format!("{:?}", args.ack).to_lowercase(),
                prefetch: args.prefetch,
                is_persistent: args.is_persistent(),
                is_durable: args.durable,
            },
            published_count,
            published_per_sec: rate(published_count, secs(last_publish_ns)),
            confirmed_count: confirm_latency.count(),
            confirmed_per_sec: rate(confirm_latency.count(), secs(last_confirm_ns)),
            nacked_count,
            unconfirmed_count,
            consumed_count,
            consumed_per_sec: rate(consumed_count, consumed.secs),
            lost_count,
            duplicate_count: consumed.ledger.duplicate_count,
            out_of_order_count: consumed.out_of_order_count,
            redelivered_count: consumed.redelivered_count,
            foreign_count: consumed.ledger.foreign_count,
            confirm_latency: Latency::of(&confirm_latency),
            end_to_end_latency: Latency::of(&consumed.latency),
            broker_cpu_secs: meter.broker_cpu_secs,
            messages_per_broker_cpu_sec: meter.broker_cpu_secs.map(|secs| rate(done_count, secs)),
            broker_rss_max_bytes: meter.rss_max_bytes,
            broker_rss_end_bytes: meter.rss_end_bytes,
            generator_cpu_secs: meter.own_cpu_secs,
            log: meter.log,
            log_bytes_per_message: meter.log.map(|log| rate(log.bytes, count(log.messages))),
            errors,
        }
    }

    /// What makes the run a failed one, a line each.
    pub(crate) fn failures(&self) -> Vec<String> {
        let counts = [
            (self.lost_count, "messages were lost"),
            (self.duplicate_count, "messages arrived more than once"),
            (self.out_of_order_count, "messages arrived out of order"),
            (self.unconfirmed_count, "messages were never confirmed"),
        ];
        let counted = counts.iter().filter(|(count, _)| *count > 0);
        let counted = counted.map(|(count, what)| format!("{count} {what}"));
        counted.chain(self.errors.iter().cloned()).collect()
    }

    pub(crate) fn json(&self) -> String {
        serde_json::to_string(self).expect("numbers and texts are JSON")
    }

    pub(crate) fn table(&self) -> String {
        let mut table = self.workload.line();
        let mut row = |name: &str, value: String| {
            // Writing to a String does not fail.
            let _ = writeln!(table, "{name:<20}{value}");
        };
        row(
            "published",
            counted(self.published_count, self.published_per_sec),
        );
        if self.workload.confirm_window > 0 {
            let refused = format!(
                ", {} nacked, {} unconfirmed",
                self.nacked_count, self.unconfirmed_count
            );
            row(
                "confirmed",
                counted(self.confirmed_count, self.confirmed_per_sec) + &refused,
            );
        }
        row(
            "consumed",
            counted(self.consumed_count, self.consumed_per_sec),
        );
        if let Some(latency) = &self.confirm_latency {
            row("confirm latency", latency.line());
        }
        if let Some(latency) = &self.end_to_end_latency {
            row("end-to-end latency", latency.line());
        }
        row(
            "messages",
            format!(
                "{} lost, {} duplicates, {} out of order, {} redelivered, {} foreign",
                self.lost_count,
                self.duplicate_count,
                self.out_of_order_count,
                self.redelivered_count,
                self.foreign_count
            ),
        );
        if let Some((cpu, rate)) = self.broker_cpu_secs.zip(self.messages_per_broker_cpu_sec) {
            let rss = self.broker_rss_max_bytes.zip(self.broker_rss_end_bytes);
            let rss = rss.map(|(max, end)| {
                format!("; memory {} max, {} end", mebibytes(max), mebibytes(end))
            });
            row(
                "broker",
                format!(
                    "{cpu:.2} CPU s, {rate:.0} messages/CPU s{}",
                    rss.unwrap_or_default()
                ),
            );
        }
        if let Some((log, bytes)) = self.log.zip(self.log_bytes_per_message) {
            row(
                "log",
                format!(
                    "{} fdatasync, {} messages, {bytes:.0} bytes each",
                    log.fdatasync_count, log.messages
                ),
            );
        }
        row("generator", format!("{:.2} CPU s", self.generator_cpu_secs));
        table
    }
}

impl Workload {
    fn line(&self) -> String {
        format!(
            "{} publishers, {}{} queues, {} consumers; {} B {} messages, {} queues; window {}, ack {}, prefetch {}\n",
            self.publishers,
            if self.is_fanout { "fan-out to " } else { "" },
            self.queues,
            self.consumers,
            self.body_bytes,
            if self.is_persistent {
                "persistent"
            } else {
                "transient"
            },
            if self.is_durable {
                "durable"
            } else {
                "transient"
            },
            self.confirm_window,
            self.ack,
            self.prefetch
        )
    }
}

impl Latency {
    fn line(&self) -> String {
        format!(
            "p50 {:.3} ms, p90 {:.3}, p99 {:.3}, p99.9 {:.3}, max {:.3}, mean {:.3}",
            self.p50_ms, self.p90_ms, self.p99_ms, self.p999_ms, self.max_ms, self.mean_ms
        )
    }
}

fn counted(count: u64, per_sec: f64) -> String {
    format!("{count}, {per_sec:.0}/s")
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes / (1024 * 1024))
}

/// Events for each second; 0 when no time has passed.
#[expect(clippy::cast_precision_loss, reason = "reports round anyway")]
pub(crate) fn rate(count: u64, secs: f64) -> f64 {
    if secs > 0.0 { count as f64 / secs } else { 0.0 }
}

/// A count, for ratios.
#[expect(clippy::cast_precision_loss, reason = "reports round anyway")]
pub(crate) fn count(count: u64) -> f64 {
    count as f64
}
