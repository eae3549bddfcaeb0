//! What is measured in a round.

use super::GoalsArgs;
use super::figures::Figures;
use crate::args::{AckMode, Args};
use crate::broker::Broker;
use crate::clock::{Clock, secs};
use crate::connection::Connection;
use crate::error::BenchError;
use crate::histogram::Histogram;
use crate::raw::RawDisk;
use crate::report::{count, rate};
use crate::rpc::{self, Replies};
use crate::workload::{self, LARGE_BODY_BYTES, Measured, WORKLOADS, Workload};
use std::thread;
use std::time::Duration;
use stratamq::amqp::method::queue;
use stratamq::amqp::short_string::ShortString;

/// Messages of 1 KiB that show what one more queue costs.
const FANOUT_MESSAGES: u64 = 10_000;
const FANOUT_BODY_BYTES: usize = 1024;
/// Numbers of queues that are compared.
const FANOUT_QUEUES: (u32, u32) = (5, 100);
/// Durable queues that show what an idle one takes.
const IDLE_QUEUES: u32 = 10_000;
/// What a broker may still have to do after it was given something: its store gives memory back after a second without work.
const SETTLE: Duration = Duration::from_secs(2);

/// Something that is measured once a round.
pub(super) enum Probe {
    /// A load, the stand-in, and the disk.
    Load(Workload),
    /// One message to few and to many queues, without consumers.
    Fanout,
    /// Published, and drained by a broker that has just started, from the disk.
    Backlog,
    /// Ping-pong.
    Rpc,
    /// What takes memory and time although nothing happens.
    Idle,
}

impl Probe {
    /// Those whose name contains `text`.
    pub(super) fn chosen(text: &str) -> Vec<Self> {
        let loads = WORKLOADS.into_iter().map(Self::Load);
        let others = [Self::Fanout, Self::Backlog, Self::Rpc, Self::Idle];
        let all = loads.chain(others);
        all.filter(|probe| probe.name().contains(text)).collect()
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Load(load) => load.name,
            Self::Fanout => "cost of fan-out",
            Self::Backlog => "backlog",
            Self::Rpc => "RPC",
            Self::Idle => "idle",
        }
    }

    /// What its figures are called.
    #[cfg(test)]
    pub(super) fn figure_names(&self) -> Vec<String> {
        let names: &[&str] = match self {
            Self::Load(_) => &[
                "per second",
                "per CPU",
                "of sockets",
                "of sockets' CPU",
                "of disk",
                "confirm p50",
                "confirm p99",
                "fdatasync p50",
                "fdatasync p99",
                "sequential",
            ],
            Self::Fanout => &["ns of a queue", "memory of a queue", "disk of a queue"],
            Self::Backlog => &["publish per CPU", "drain per CPU"],
            Self::Rpc => &["direct p50", "queue p50", "echo p50"],
            Self::Idle => &[
                "bytes of a connection",
                "bytes of a queue",
                "CPU",
                "empty MB",
            ],
        };
        let named = names.iter().map(|name| format!("{}/{name}", self.name()));
        named.collect()
    }

    /// Measures it once; `broker` is the round's.
    pub(super) fn measure(&self, args: &GoalsArgs, broker: &Broker) -> Result<Figures, BenchError> {
        let figures = match self {
            Self::Load(load) => measure_load(load, broker, args.seconds)?,
            Self::Fanout => measure_fanout(args)?,
            Self::Backlog => measure_backlog(args)?,
            Self::Rpc => measure_rpc(broker, args.seconds)?,
            Self::Idle => measure_idle(args)?,
        };
        let named = figures
            .into_iter()
            .map(|(name, figure)| (format!("{}/{name}", self.name()), figure));
        Ok(named.collect())
    }
}

type Named = Vec<(&'static str, f64)>;

fn measure_load(load: &Workload, broker: &Broker, secs: u64) -> Result<Named, BenchError> {
    let measured = Measured::of(load, broker, secs)?;
    let figures = measured.broker;
    let socket = measured.limits.socket;
    let mut named = vec![
        ("per second", figures.per_sec),
        ("per CPU", figures.per_cpu_sec),
        ("of sockets", socket.per_sec / figures.per_sec),
        ("of sockets' CPU", socket.per_cpu_sec / figures.per_cpu_sec),
        ("confirm p50", figures.confirm_p50_us),
        ("confirm p99", figures.confirm_p99_us),
    ];
    if let Some(disk) = measured.limits.disk {
        let allowed = measured.disk_per_sec(load.copies()).unwrap_or(0.0);
        named.extend([
            ("of disk", allowed / figures.per_sec),
            ("fdatasync p50", disk.p50_us),
            ("fdatasync p99", disk.p99_us),
        ]);
    }
    if load.body_bytes() == LARGE_BODY_BYTES {
        let raw = RawDisk::measure(broker.directory())?;
        let body_bytes = count(LARGE_BODY_BYTES as u64);
        named.push((
            "sequential",
            raw.sequential_write_bytes_per_sec / body_bytes,
        ));
    }
    Ok(named)
}

/// Messages that stay in the queues they were published to, and what they took.
struct Kept {
    cpu_ns_per_message: f64,
    rss_bytes_per_message: f64,
    log_bytes_per_message: f64,
}

fn publish_and_keep(args: &GoalsArgs, queues: u32, is_durable: bool) -> Result<Kept, BenchError> {
    // What another run left in the allocator would hide what this one takes.
    let (broker, _) = Broker::start(&args.own)?;
    let before = broker.process().rss_bytes().unwrap_or(0);
    let load = Args {
        consumers: 0,
        fanout: true,
        queues,
        body_size: FANOUT_BODY_BYTES,
        transient: !is_durable,
        durable: is_durable,
        count: Some(FANOUT_MESSAGES),
        keep: true,
        pid: broker.pid(),
        data_dir: Some(broker.data_dir()),
        ..Args::defaults(broker.url())
    };
    let figures = workload::run(&load)?;
    let after = broker.process().rss_bytes().unwrap_or(0);
    Ok(Kept {
        cpu_ns_per_message: 1e9 / figures.per_cpu_sec.max(f64::MIN_POSITIVE),
        rss_bytes_per_message: rate(after.saturating_sub(before), count(FANOUT_MESSAGES)),
        log_bytes_per_message: figures.bytes_per_message,
    })
}

fn measure_fanout(args: &GoalsArgs) -> Result<Named, BenchError> {
    let (few, many) = FANOUT_QUEUES;
    let few_kept = publish_and_keep(args, few, false)?;
    let many_kept = publish_and_keep(args, many, false)?;
    let few_written = publish_and_keep(args, few, true)?;
    let many_written = publish_and_keep(args, many, true)?;
    let of_a_queue =
        |few_figure: f64, many_figure: f64| (many_figure - few_figure) / f64::from(many - few);
    Ok(vec![
        (
            "ns of a queue",
            of_a_queue(few_kept.cpu_ns_per_message, many_kept.cpu_ns_per_message),
        ),
        (
            "memory of a queue",
            of_a_queue(
                few_kept.rss_bytes_per_message,
                many_kept.rss_bytes_per_message,
            ),
        ),
        (
            "disk of a queue",
            of_a_queue(
                few_written.log_bytes_per_message,
                many_written.log_bytes_per_message,
            ),
        ),
    ])
}

fn measure_backlog(args: &GoalsArgs) -> Result<Named, BenchError> {
    let (mut broker, _) = Broker::start(&args.own)?;
    let load = Args {
        consumers: 0,
        count: Some(args.backlog),
        window: 1000,
        body_size: 1024,
        keep: true,
        pid: broker.pid(),
        data_dir: Some(broker.data_dir()),
        ..Args::defaults(broker.url())
    };
    let published = workload::run(&load)?;
    broker.kill()?;
    broker.spawn()?;
    broker.connect(Clock::start())?.close();
    broker.drop_cache()?;
    let drain = Args {
        publishers: 0,
        consumers: 1,
        prefetch: 2000,
        ack: AckMode::Manual,
        pid: broker.pid(),
        count: None,
        ..load
    };
    let drained = workload::run(&drain)?;
    Ok(vec![
        ("publish per second", published.per_sec),
        ("publish per CPU", published.per_cpu_sec),
        ("drain per second", drained.per_sec),
        ("drain per CPU", drained.per_cpu_sec),
    ])
}

fn measure_rpc(broker: &Broker, duration_secs: u64) -> Result<Named, BenchError> {
    let p50_us = |taken: Histogram| secs(taken.percentile_ns(500)) * 1e6;
    Ok(vec![
        (
            "direct p50",
            p50_us(rpc::ping_pong(broker, Replies::Direct, duration_secs)?),
        ),
        ("echo p50", p50_us(rpc::echo(duration_secs)?)),
        (
            "queue p50",
            p50_us(rpc::ping_pong(broker, Replies::Queue, duration_secs)?),
        ),
    ])
}

fn measure_idle(args: &GoalsArgs) -> Result<Named, BenchError> {
    let (broker, _) = Broker::start(&args.own)?;
    let process = broker.process();
    let rss = || {
        thread::sleep(SETTLE);
        process.rss_bytes().unwrap_or(0)
    };
    let empty_bytes = rss();
    let connections = (0..args.idle_connections).map(|_| Connection::open(&broker.url()));
    let connections: Vec<Connection> = connections.collect::<Result<_, _>>()?;
    let connected_bytes = rss();
    let mut control = Connection::open(&broker.url())?;
    let before_queues_bytes = rss();
    control.tell_all((0..IDLE_QUEUES).map(|index| queue::Declare {
        queue: ShortString::from_text_cut(&format!("strata-bench-idle-{index}")),
        durable: true,
        nowait: true,
        ..queue::Declare::default()
    }))?;
    let with_queues_bytes = rss();
    let clock = Clock::start();
    let cpu_before = process.cpu_time();
    thread::sleep(Duration::from_secs(args.seconds));
    let cpu_now = process.cpu_time();
    let idle_secs = secs(clock.now_ns());
    let cpu_secs = cpu_now
        .zip(cpu_before)
        .map_or(0.0, |(now, before)| now.secs_since(&before));
    drop((connections, control));
    let growth =
        |before: u64, after: u64, things: u64| rate(after.saturating_sub(before), count(things));
    Ok(vec![
        ("empty MB", count(empty_bytes) / 1e6),
        (
            "bytes of a connection",
            growth(empty_bytes, connected_bytes, args.idle_connections),
        ),
        (
            "bytes of a queue",
            growth(
                before_queues_bytes,
                with_queues_bytes,
                u64::from(IDLE_QUEUES),
            ),
        ),
        ("CPU", cpu_secs / idle_secs),
    ])
}
