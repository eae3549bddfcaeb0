//! A run from the declaration of the queues to the report.

use crate::args::{Args, topic};
use crate::broker::{self, LogCounters};
use crate::clock::{Clock, secs};
use crate::connection::Connection;
use crate::consumer::{Consumed, Consumer, Progress, copy_of};
use crate::error::BenchError;
use crate::histogram::Histogram;
use crate::ledger::Ledger;
use crate::process::{CpuTime, Process};
use crate::publisher::{Published, Publisher};
use crate::report::Report;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;
use stratamq::amqp::method::{Method, exchange, queue};
use stratamq::amqp::short_string::ShortString;

/// How often the main thread looks at the progress and at the broker's memory.
const SAMPLE_EVERY: Duration = Duration::from_millis(20);
const NANOS_PER_SEC: u64 = 1_000_000_000;

/// Runs the load that the arguments describe.
pub(crate) fn run(args: &Args) -> Result<Report, BenchError> {
    let mut control = Connection::open(&args.url)?;
    let backlog_count = declare_queues(&mut control, args)?;
    let run = (args.publishers > 0).then(run_id).transpose()?;
    let connect = |index| Publisher::connect(args, index, run.unwrap_or_default());
    let publishers: Vec<_> = (0..args.publishers)
        .map(connect)
        .collect::<Result<_, _>>()?;
    let connect = |index| Consumer::connect(args, index, run);
    let consumers: Vec<_> = (0..args.consumers).map(connect).collect::<Result<_, _>>()?;

    let mut meter = Meter::start(args)?;
    let clock = Clock::start();
    let deadline_ns = args
        .duration_secs()
        .map_or(u64::MAX, |secs| secs.saturating_mul(NANOS_PER_SEC));
    let progress = Progress::default();
    let (published, consumed, left_count) = thread::scope(|scope| {
        let consumers: Vec<_> = consumers
            .into_iter()
            .map(|consumer| scope.spawn(|| consumer.consume(clock, &progress)))
            .collect();
        let publishers: Vec<_> = publishers
            .into_iter()
            .map(|publisher| scope.spawn(move || publisher.publish(clock, deadline_ns)))
            .collect();
        let published = join_publishers(publishers, &mut meter);
        let expected_count = if args.publishers == 0 {
            backlog_count
        } else {
            arriving_count(args, &published)
        };
        let left_count = if args.consumers == 0 {
            queued_count(&mut control, args, expected_count, clock).map(Some)
        } else {
            drain(
                &progress,
                &consumers,
                expected_count,
                args,
                clock,
                &mut meter,
            );
            Ok(None)
        };
        meter.stop();
        progress.is_over.store(true, Ordering::Relaxed);
        let consumed = consumers.into_iter().map(join).collect::<Vec<_>>();
        left_count.map(|left_count| (published, consumed, left_count))
    })?;
    if !args.keep {
        delete_queues(&mut control, args)?;
    }
    control.close();
    let consumed = Total::of(consumed);
    let lost_count = match left_count {
        Some(left_count) => arriving_count(args, &published).saturating_sub(left_count),
        None if args.publishers == 0 => backlog_count.saturating_sub(consumed.ledger.unique_count),
        None => count_lost(args, &published, &consumed.ledger),
    };
    Ok(Report::new(args, published, consumed, lost_count, &meter))
}

/// A number that tells this run's messages from those of others.
fn run_id() -> Result<u32, BenchError> {
    getrandom::u32().map_err(|error| {
        BenchError::io("drawing a run's number")(std::io::Error::other(error.to_string()))
    })
}

fn queue_name(args: &Args, index: u32) -> ShortString {
    ShortString::from_text_cut(&args.queue_name(index))
}

/// Declares the queues, empty if there are publishers, and says how many messages are in them.
fn declare_queues(control: &mut Connection, args: &Args) -> Result<u64, BenchError> {
    let is_fresh = args.publishers > 0;
    if is_fresh {
        delete_queues(control, args)?;
        control.tell_all((0..args.queues).map(|index| queue::Declare {
            nowait: true,
            ..declare(args, index)
        }))?;
        if args.has_exchange() {
            bind_queues(control, args)?;
        }
    }
    queued_count_by(control, args)
}

/// Makes the fanout or topic exchange and binds all queues to it.
fn bind_queues(control: &mut Connection, args: &Args) -> Result<(), BenchError> {
    let exchange = ShortString::from_text_cut(args.exchange_name());
    let declare = exchange::Declare {
        exchange: exchange.clone(),
        kind: ShortString::from_static(if args.fanout { "fanout" } else { "topic" }),
        durable: args.durable,
        ..exchange::Declare::default()
    };
    control.call(declare, |method| {
        matches!(method, Method::ExchangeDeclareOk(_))
    })?;
    let bind = |index, key: &str| queue::Bind {
        queue: queue_name(args, index),
        exchange: exchange.clone(),
        routing_key: ShortString::from_text_cut(key),
        nowait: true,
        ..queue::Bind::default()
    };
    if args.fanout {
        return control.tell_all((0..args.queues).map(|index| bind(index, "")));
    }
    control.tell_all((0..args.topic_bindings).map(|index| bind(0, &topic::pattern(index))))
}

fn declare(args: &Args, index: u32) -> queue::Declare {
    queue::Declare {
        queue: queue_name(args, index),
        durable: args.durable,
        arguments: args.declare_arguments(),
        ..queue::Declare::default()
    }
}

/// How many messages are in the queues, which must be there.
fn queued_count_by(control: &mut Connection, args: &Args) -> Result<u64, BenchError> {
    let mut count = 0;
    control.call_all(
        (0..args.queues).map(|index| queue::Declare {
            passive: true,
            ..declare(args, index)
        }),
        |method| matches!(method, Method::QueueDeclareOk(_)),
        |answer| {
            if let Method::QueueDeclareOk(ok) = answer {
                count += u64::from(ok.message_count);
            }
        },
    )?;
    Ok(count)
}

fn delete_queues(control: &mut Connection, args: &Args) -> Result<(), BenchError> {
    if args.has_exchange() {
        let delete = exchange::Delete {
            exchange: ShortString::from_text_cut(args.exchange_name()),
            ..exchange::Delete::default()
        };
        control.call(delete, |method| {
            matches!(method, Method::ExchangeDeleteOk(_))
        })?;
    }
    control.tell_all((0..args.queues).map(|index| queue::Delete {
        queue: queue_name(args, index),
        nowait: true,
        ..queue::Delete::default()
    }))
}

/// Messages in the queues of a run that kept them.
pub(crate) fn queued_now(args: &Args) -> Result<u64, BenchError> {
    let mut control = Connection::open(&args.url)?;
    let count = queued_count_by(&mut control, args)?;
    control.close();
    Ok(count)
}

/// Waits until the queues hold what they must hold, or patience ends; says what they hold.
fn queued_count(
    control: &mut Connection,
    args: &Args,
    expected: u64,
    clock: Clock,
) -> Result<u64, BenchError> {
    let mut patience = Patience::new(args, clock);
    loop {
        let count = queued_count_by(control, args)?;
        if count >= expected || patience.is_over(count, clock) {
            return Ok(count);
        }
        thread::sleep(SAMPLE_EVERY);
    }
}

/// Waits until the consumers have received everything, or patience ends, or none of them is left.
fn drain(
    progress: &Progress,
    consumers: &[ScopedJoinHandle<'_, Consumed>],
    expected: u64,
    args: &Args,
    clock: Clock,
    meter: &mut Meter,
) {
    let mut patience = Patience::new(args, clock);
    loop {
        let received = progress.received_count.load(Ordering::Relaxed);
        let is_anyone_left = !consumers.iter().all(ScopedJoinHandle::is_finished);
        if received >= expected || !is_anyone_left || patience.is_over(received, clock) {
            return;
        }
        thread::sleep(SAMPLE_EVERY);
        meter.sample();
    }
}

/// Ends a wait in which a count does not change any more.
struct Patience {
    max_ns: u64,
    count: u64,
    changed_ns: u64,
}

impl Patience {
    fn new(args: &Args, clock: Clock) -> Self {
        Self {
            max_ns: args.patience.saturating_mul(NANOS_PER_SEC),
            count: 0,
            changed_ns: clock.now_ns(),
        }
    }

    fn is_over(&mut self, count: u64, clock: Clock) -> bool {
        let now_ns = clock.now_ns();
        if count != self.count {
            (self.count, self.changed_ns) = (count, now_ns);
        }
        now_ns - self.changed_ns > self.max_ns
    }
}

fn join_publishers(
    publishers: Vec<ScopedJoinHandle<'_, Published>>,
    meter: &mut Meter,
) -> Vec<Published> {
    while !publishers.iter().all(ScopedJoinHandle::is_finished) {
        thread::sleep(SAMPLE_EVERY);
        meter.sample();
    }
    publishers.into_iter().map(join).collect()
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// How many messages, or copies of messages, must arrive.
fn arriving_count(args: &Args, published: &[Published]) -> u64 {
    let messages: u64 = published.iter().map(Published::arriving_count).sum();
    messages * u64::from(args.copies())
}

/// Messages, or copies of messages, that must have arrived and have not.
fn count_lost(args: &Args, published: &[Published], ledger: &Ledger) -> u64 {
    if args.takes_any_delivery {
        return arriving_count(args, published).saturating_sub(ledger.unique_count);
    }
    (0..args.copies() as usize)
        .map(|queue| count_lost_copies(args, published, queue, ledger))
        .sum()
}

fn count_lost_copies(args: &Args, published: &[Published], queue: usize, ledger: &Ledger) -> u64 {
    let mut lost = 0;
    for (index, published) in (0..).zip(published) {
        let copy = copy_of(index, queue, args.copies());
        let missing = (0..published.count).filter(|seq| !ledger.has(copy, *seq));
        // Nobody promised the others.
        lost += missing
            .filter(|seq| published.nacked.binary_search(seq).is_err())
            .filter(|seq| published.unconfirmed.binary_search(seq).is_err())
            .count() as u64;
    }
    lost
}

impl Published {
    /// How many messages must arrive.
    fn arriving_count(&self) -> u64 {
        self.count - self.nacked.len() as u64 - self.unconfirmed.len() as u64
    }
}

/// What all consumers have received.
pub(crate) struct Total {
    pub(crate) ledger: Ledger,
    pub(crate) latency: Histogram,
    pub(crate) redelivered_count: u64,
    pub(crate) out_of_order_count: u64,
    /// From the first delivery to the last one.
    pub(crate) secs: f64,
    pub(crate) errors: Vec<String>,
}

impl Total {
    fn of(consumers: Vec<Consumed>) -> Self {
        let mut total = Self {
            ledger: Ledger::default(),
            latency: Histogram::new(),
            redelivered_count: 0,
            out_of_order_count: 0,
            secs: 0.0,
            errors: Vec::new(),
        };
        let first_ns = consumers.iter().filter_map(|each| each.first_ns).min();
        let last_ns = consumers.iter().map(|each| each.last_ns).max().unwrap_or(0);
        total.secs = secs(last_ns.saturating_sub(first_ns.unwrap_or(last_ns)));
        for each in consumers {
            total.ledger.merge(&each.ledger);
            total.latency.merge(&each.latency);
            total.redelivered_count += each.redelivered_count;
            total.out_of_order_count += each.out_of_order_count;
            total
                .errors
                .extend(each.error.map(|error| format!("a consumer: {error}")));
        }
        total
    }
}

/// The machine's view of broker and generator during a run.
pub(crate) struct Meter {
    broker: Option<Process>,
    broker_start: Option<CpuTime>,
    own_start: Option<CpuTime>,
    /// CPU seconds of the broker, if it was named.
    pub(crate) broker_cpu_secs: Option<f64>,
    /// CPU seconds of the generator.
    pub(crate) own_cpu_secs: f64,
    /// The most resident memory the broker was seen with.
    pub(crate) rss_max_bytes: Option<u64>,
    /// The broker's resident memory at the end.
    pub(crate) rss_end_bytes: Option<u64>,
    log_at_start: Option<LogCounters>,
    data_dir: Option<PathBuf>,
    /// What the broker's log did, if its directory was named.
    pub(crate) log: Option<LogCounters>,
}

impl Meter {
    fn start(args: &Args) -> Result<Self, BenchError> {
        let broker = args.pid.map(Process::new);
        let broker_start = broker.as_ref().and_then(Process::cpu_time);
        if broker.is_some() && broker_start.is_none() {
            let what = format!("looking at process {}", args.pid.unwrap_or_default());
            return Err(BenchError::io(what)(std::io::ErrorKind::NotFound.into()));
        }
        Ok(Self {
            broker,
            broker_start,
            own_start: Process::own().cpu_time(),
            broker_cpu_secs: None,
            own_cpu_secs: 0.0,
            rss_max_bytes: None,
            rss_end_bytes: None,
            log_at_start: args
                .data_dir
                .as_deref()
                .map(broker::log_counters)
                .transpose()?,
            data_dir: args.data_dir.clone(),
            log: None,
        })
    }

    fn sample(&mut self) {
        self.rss_end_bytes = self.broker.as_ref().and_then(Process::rss_bytes);
        self.rss_max_bytes = self.rss_max_bytes.max(self.rss_end_bytes);
    }

    fn stop(&mut self) {
        self.sample();
        let since = |process: &Process, start: &Option<CpuTime>| {
            Some(process.cpu_time()?.secs_since(start.as_ref()?))
        };
        let broker = self.broker.as_ref();
        self.broker_cpu_secs = broker.and_then(|broker| since(broker, &self.broker_start));
        self.own_cpu_secs = since(&Process::own(), &self.own_start).unwrap_or(0.0);
        // A broker that is gone by now has been reported by those who lost their connection.
        let now = self.data_dir.as_deref().map(broker::log_counters);
        let now = now.and_then(Result::ok);
        self.log = now
            .zip(self.log_at_start)
            .map(|(now, start)| now.since(start));
    }
}
