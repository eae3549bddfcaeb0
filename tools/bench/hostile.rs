//! Clients that mean harm or do not know better, and what they do to a healthy one and to the broker's memory.
//!
//! ```text
//!  quiet --+-- idle      many connections that say nothing more     -- healthy client: confirmed publish and delivery, one
//!          +-- channels  many channels on one connection                at a time, for so many seconds in each case
//!          +-- ...                                                   -- RSS of the broker
//! ```
//!
//! One broker plays all cases one after the other, each after a quiet measurement of its own, so that a factor compares two times a few
//! seconds apart on the same machine. A round trip is a persistent publish, its confirm and its delivery. Nothing is asserted:
//! the report says how many times slower the healthy client's median and its slowest hundredth were, and what memory was held.

use crate::broker::{Broker, OwnArgs};
use crate::clock::Clock;
use crate::connection::{Connection, check_harmless};
use crate::error::BenchError;
use crate::histogram::Histogram;
use crate::input::Event;
use crate::message::{ContentFrames, STAMP_BYTES, Stamp, Template};
use crate::restart;
use crate::table::{Grid, Table, mebibytes};
use serde::Serialize;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use stratamq::amqp::method::{Method, basic, channel, confirm, queue};
use stratamq::amqp::properties::PropertiesBuilder;
use stratamq::amqp::short_string::ShortString;

const HEALTHY: &str = "strata-hostile-healthy";
const VICTIM: &str = "strata-hostile-victim";
/// Messages that are sent to a consumer that does not read or does not acknowledge, and their bodies: 64 MiB.
const FLOOD_MESSAGES: u64 = 4096;
const FLOOD_BODY_BYTES: usize = 16 * 1024;
/// Pause between two bytes of a slow handshake.
const DRIP_EVERY: Duration = Duration::from_millis(200);
/// How often the broker is looked at after a case, and for how long at most.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const CLEAR_MAX_NS: u64 = 20_000_000_000;

/// How hostile.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct HostileArgs {
    /// Idle connections; half-open ones and slow handshakes are a tenth of it. Needs as many open files (`ulimit -n`).
    #[arg(long, default_value = "10k", value_parser = restart::count)]
    connections: u64,
    /// Channels on one connection.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u16).range(1..2048))]
    channels: u16,
    /// Seconds for which the healthy client measures each case, and the quiet before it.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Plays only the cases whose name contains this.
    #[arg(long, default_value = "")]
    case: String,
    #[command(flatten)]
    pub(crate) own: OwnArgs,
}

/// All that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct HostileReport {
    rss_before_bytes: u64,
    cases: Vec<Case>,
}

/// One kind of client.
#[derive(Debug, Serialize)]
struct Case {
    name: &'static str,
    quiet: Latency,
    disturbed: Latency,
    /// Medians, disturbed by quiet.
    factor: f64,
    rss_bytes: u64,
    rss_after_bytes: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Latency {
    round_trips: u64,
    median_ns: u64,
    p99_ns: u64,
}

/// What a case keeps open while the healthy client measures.
#[derive(Default)]
struct Crowd {
    connections: Vec<Connection>,
    sockets: Vec<TcpStream>,
    busy: Option<Busy>,
}

impl Crowd {
    /// All of them go, without a goodbye.
    fn leave(self) {
        drop((self.busy, self.sockets, self.connections));
    }
}

/// A thread that goes on until it is dropped.
struct Busy {
    is_over: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Busy {
    /// Calls `step` until it fails or the value is dropped.
    fn start(mut step: impl FnMut() -> Result<(), BenchError> + Send + 'static) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&is_over);
        let thread =
            thread::spawn(move || while !seen.load(Ordering::Relaxed) && step().is_ok() {});
        Self {
            is_over,
            thread: Some(thread),
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What it has measured does not depend on how it ended.
            let _ = thread.join();
        }
    }
}

type Provoke = fn(&mut Stage<'_>) -> Result<Crowd, BenchError>;

const CASES: [(&str, Provoke); 9] = [
    ("idle connections", |stage| stage.idle()),
    ("channels on one connection", |stage| stage.channels()),
    ("silent before the handshake", |stage| stage.half_open()),
    ("handshake by single bytes", |stage| stage.slow_handshakes()),
    ("consumer that does not read", |stage| stage.slow_reader()),
    ("consumer that does not ack", |stage| stage.never_acks()),
    ("connections come and go", |stage| stage.connection_churn()),
    ("channels come and go", |stage| stage.channel_churn()),
    ("queues come and go", |stage| stage.queue_churn()),
];

pub(crate) fn run(args: &HostileArgs) -> Result<HostileReport, BenchError> {
    let (mut broker, _) = Broker::start(&args.own)?;
    let clock = Clock::start();
    let mut healthy = Healthy::new(broker.connect(clock)?, clock)?;
    let rss = |broker: &Broker| broker.process().rss_bytes().unwrap_or(0);
    let rss_before_bytes = rss(&broker);
    let mut cases = Vec::new();
    for (name, provoke) in CASES {
        if !name.contains(&args.case) {
            continue;
        }
        let quiet = healthy.measure(args.seconds)?;
        let mut stage = Stage {
            broker: &broker,
            args,
            open_files_before: broker.process().open_files_count().unwrap_or(0),
        };
        let crowd = provoke(&mut stage)?;
        let disturbed = healthy.measure(args.seconds)?;
        let rss_bytes = rss(&broker);
        crowd.leave();
        stage.clear()?;
        cases.push(Case {
            name,
            quiet,
            disturbed,
            factor: ratio(disturbed.median_ns, quiet.median_ns),
            rss_bytes,
            rss_after_bytes: rss(&broker),
        });
    }
    healthy.connection.close();
    Ok(HostileReport {
        rss_before_bytes,
        cases,
    })
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds of a few seconds")]
fn ratio(disturbed: u64, quiet: u64) -> f64 {
    disturbed as f64 / quiet.max(1) as f64
}

/// One message at a time: published, confirmed, delivered.
struct Healthy {
    connection: Connection,
    clock: Clock,
    template: Template,
    sent: u64,
}

impl Healthy {
    fn new(mut connection: Connection, clock: Clock) -> Result<Self, BenchError> {
        connection.call(confirm::Select { nowait: false }, |method| {
            matches!(method, Method::ConfirmSelectOk(_))
        })?;
        declare(&mut connection, HEALTHY)?;
        let consume = basic::Consume {
            queue: ShortString::from_static(HEALTHY),
            no_ack: true,
            ..basic::Consume::default()
        };
        connection.call(consume, |method| {
            matches!(method, Method::BasicConsumeOk(_))
        })?;
        let template = template(HEALTHY, STAMP_BYTES, connection.frame_max);
        Ok(Self {
            connection,
            clock,
            template,
            sent: 0,
        })
    }

    fn measure(&mut self, seconds: u64) -> Result<Latency, BenchError> {
        let mut histogram = Histogram::new();
        let end_ns = self.clock.now_ns() + seconds * 1_000_000_000;
        while self.clock.now_ns() < end_ns {
            let begun_ns = self.clock.now_ns();
            self.round_trip()?;
            histogram.record(self.clock.now_ns() - begun_ns, 1);
        }
        Ok(Latency {
            round_trips: histogram.count(),
            median_ns: histogram.percentile_ns(500),
            p99_ns: histogram.percentile_ns(990),
        })
    }

    fn round_trip(&mut self) -> Result<(), BenchError> {
        put(&mut self.connection, &self.template, self.sent);
        self.sent += 1;
        self.connection.send(&mut || true)?;
        let (mut is_confirmed, mut is_delivered) = (false, false);
        while !(is_confirmed && is_delivered) {
            while let Some(event) = self.connection.input.next()? {
                match event {
                    Event::Confirm { is_ack: true, .. } => is_confirmed = true,
                    Event::Confirm { .. } => {
                        return Err(BenchError::Protocol("a message was refused".to_owned()));
                    }
                    Event::Body(_) => is_delivered = true,
                    other => check_harmless(&other)?,
                }
            }
            if !(is_confirmed && is_delivered) {
                self.connection.fill()?;
            }
        }
        Ok(())
    }
}

/// Where a case happens.
struct Stage<'a> {
    broker: &'a Broker,
    args: &'a HostileArgs,
    /// Descriptors of the broker before the case.
    open_files_before: u64,
}

impl Stage<'_> {
    fn connect(&self) -> Result<Connection, BenchError> {
        Connection::open(&self.broker.url())
    }

    /// Logged in, one channel open, silent.
    fn idle(&mut self) -> Result<Crowd, BenchError> {
        let connections = (0..self.args.connections).map(|_| self.connect());
        Ok(Crowd {
            connections: connections.collect::<Result<_, _>>()?,
            ..Crowd::default()
        })
    }

    fn channels(&mut self) -> Result<Crowd, BenchError> {
        let mut connection = self.connect()?;
        for number in 2..=self.args.channels {
            connection.put(channel::Open::default(), number);
        }
        connection.send(&mut || true)?;
        // Answers of other channels come before the one of this channel.
        connection.tell_all(std::iter::empty::<Method>())?;
        Ok(Crowd {
            connections: vec![connection],
            ..Crowd::default()
        })
    }

    fn sockets(&self) -> Result<Vec<TcpStream>, BenchError> {
        let url = self.broker.url();
        (0..self.args.connections / 10)
            .map(|_| TcpStream::connect((url.host.as_str(), url.port)))
            .collect::<Result<_, _>>()
            .map_err(BenchError::io("connecting"))
    }

    /// Sockets that never say a word.
    fn half_open(&mut self) -> Result<Crowd, BenchError> {
        Ok(Crowd {
            sockets: self.sockets()?,
            ..Crowd::default()
        })
    }

    /// Sockets that send the greeting byte by byte, and begin anew when the broker has had enough.
    fn slow_handshakes(&mut self) -> Result<Crowd, BenchError> {
        let mut sockets = self.sockets()?;
        let greeting = b"AMQP\x00\x00\x09\x01\x01\x00\x00\x00\x00\x20\x00";
        let mut bytes = greeting.iter().copied().cycle();
        Ok(Crowd {
            busy: Some(Busy::start(move || {
                let byte = [bytes.next().unwrap_or(0)];
                // One that the broker has closed is of no use any more.
                sockets.retain_mut(|socket| socket.write_all(&byte).is_ok());
                thread::sleep(DRIP_EVERY);
                Ok(())
            })),
            ..Crowd::default()
        })
    }

    /// A consumer whose messages pile up in its socket, or unacknowledged.
    fn consumer(&self, no_ack: bool) -> Result<Connection, BenchError> {
        let mut connection = self.connect()?;
        declare(&mut connection, VICTIM)?;
        let consume = basic::Consume {
            queue: ShortString::from_static(VICTIM),
            no_ack,
            ..basic::Consume::default()
        };
        connection.call(consume, |method| {
            matches!(method, Method::BasicConsumeOk(_))
        })?;
        let mut publisher = self.connect()?;
        let template = template(VICTIM, FLOOD_BODY_BYTES, publisher.frame_max);
        for seq in 0..FLOOD_MESSAGES {
            put(&mut publisher, &template, seq);
            publisher.send(&mut || true)?;
        }
        publisher.close_channel()?;
        publisher.close();
        Ok(connection)
    }

    fn slow_reader(&mut self) -> Result<Crowd, BenchError> {
        Ok(Crowd {
            connections: vec![self.consumer(true)?],
            ..Crowd::default()
        })
    }

    /// Reads all there is and acknowledges nothing.
    fn never_acks(&mut self) -> Result<Crowd, BenchError> {
        let mut connection = self.consumer(false)?;
        Ok(Crowd {
            busy: Some(Busy::start(move || {
                connection.fill()?;
                while let Some(event) = connection.input.next()? {
                    check_harmless(&event)?;
                }
                Ok(())
            })),
            ..Crowd::default()
        })
    }

    fn connection_churn(&mut self) -> Result<Crowd, BenchError> {
        let url = self.broker.url();
        Ok(Crowd {
            busy: Some(Busy::start(move || {
                Connection::open(&url)?.close();
                Ok(())
            })),
            ..Crowd::default()
        })
    }

    fn channel_churn(&mut self) -> Result<Crowd, BenchError> {
        let mut connection = self.connect()?;
        Ok(Crowd {
            busy: Some(Busy::start(move || {
                connection.close_channel()?;
                connection.call(channel::Open::default(), |method| {
                    matches!(method, Method::ChannelOpenOk(_))
                })?;
                Ok(())
            })),
            ..Crowd::default()
        })
    }

    /// Durable queues, so that every one of them is written down twice.
    fn queue_churn(&mut self) -> Result<Crowd, BenchError> {
        let mut connection = self.connect()?;
        Ok(Crowd {
            busy: Some(Busy::start(move || {
                declare(&mut connection, VICTIM)?;
                delete(&mut connection)
            })),
            ..Crowd::default()
        })
    }

    /// Removes what a case has left, and waits until the broker has let go of its sockets.
    fn clear(&self) -> Result<(), BenchError> {
        let mut connection = self.connect()?;
        delete(&mut connection)?;
        connection.close();
        let clock = Clock::start();
        let open = || self.broker.process().open_files_count().unwrap_or(0);
        while open() > self.open_files_before && clock.now_ns() < CLEAR_MAX_NS {
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }
}

fn declare(connection: &mut Connection, name: &'static str) -> Result<(), BenchError> {
    let declare = queue::Declare {
        queue: ShortString::from_static(name),
        durable: true,
        ..queue::Declare::default()
    };
    let is_answer = |method: &Method| matches!(method, Method::QueueDeclareOk(_));
    connection.call(declare, is_answer).map(|_| ())
}

fn delete(connection: &mut Connection) -> Result<(), BenchError> {
    let delete = queue::Delete {
        queue: ShortString::from_static(VICTIM),
        ..queue::Delete::default()
    };
    let is_answer = |method: &Method| matches!(method, Method::QueueDeleteOk(_));
    connection.call(delete, is_answer).map(|_| ())
}

/// Persistent messages to a queue.
fn template(queue: &'static str, body_bytes: usize, frame_max: u32) -> Template {
    let mut properties = PropertiesBuilder::new();
    properties.set_delivery_mode(Some(2));
    let content = ContentFrames::new(&properties.build(), body_bytes, frame_max);
    let (exchange, key) = (
        ShortString::from_static(""),
        ShortString::from_static(queue),
    );
    Template::new(&exchange, &key, &Arc::new(content))
}

fn put(connection: &mut Connection, template: &Template, seq: u64) {
    let stamp = Stamp {
        run: 0,
        publisher: 0,
        seq,
        sent_ns: 0,
    };
    template.put(&mut connection.output, stamp);
}

impl Table for HostileReport {
    fn table(&self) -> String {
        let mut grid = Grid::new(&[
            "beside a healthy client",
            "quiet p50 / p99",
            "then p50 / p99",
            "factor",
            "RSS",
            "RSS after",
        ]);
        for case in &self.cases {
            grid.row(vec![
                case.name.to_owned(),
                case.quiet.text(),
                case.disturbed.text(),
                format!("{:.2}", case.factor),
                mebibytes(case.rss_bytes),
                mebibytes(case.rss_after_bytes),
            ]);
        }
        format!(
            "RSS before all: {}\n{}",
            mebibytes(self.rss_before_bytes),
            grid.text()
        )
    }
}

impl Latency {
    fn text(self) -> String {
        let micros = |ns: u64| ns / 1000;
        format!("{} / {} us", micros(self.median_ns), micros(self.p99_ns))
    }
}
