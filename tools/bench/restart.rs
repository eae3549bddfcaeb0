//! How soon a broker with a backlog is back after SIGKILL, and what it then needs of memory.
//!
//! ```text
//!  publish N, confirmed -> kill -9 -> start -> accepts -> first delivery -> kill -9 -> start -> ...
//!                                     |<- accept ->|
//!                                     |<------- first delivery ------>|
//! ```
//! Times are from the start of the process to the end of the first successful AMQP handshake, and to the first message of a
//! consumer of the first queue. At the end every message must still be counted by the broker.

use crate::args::Args;
use crate::broker::{Broker, Files, OwnArgs};
use crate::clock::{Clock, secs};
use crate::connection::{Connection, check_harmless};
use crate::error::BenchError;
use crate::input::Event;
use crate::raw::RawDisk;
use crate::run;
use crate::table::{Grid, Table, mebibytes, median};
use serde::Serialize;
use stratamq::amqp::method::basic;
use stratamq::amqp::short_string::ShortString;

/// A first delivery that takes longer is given up.
const DELIVERY_MAX_SECS: u64 = 600;

/// What to restart.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RestartArgs {
    /// Sizes of the backlog; `1M` is a million, `10k` ten thousand.
    #[arg(long, value_delimiter = ',', default_value = "1M", value_parser = count)]
    messages: Vec<u64>,
    /// Numbers of durable queues that hold it.
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = count)]
    queues: Vec<u64>,
    /// Bytes of a body; 16 is the least.
    #[arg(long, default_value_t = 24)]
    body_size: usize,
    /// How often each is killed and started.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Drop the page cache before each start, so that it reads the disk.
    #[arg(long)]
    cold: bool,
    #[command(flatten)]
    pub(crate) own: OwnArgs,
}

/// A number with an optional `k` or `M`.
pub(crate) fn count(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1000),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1_000_000),
        _ => (text, 1),
    };
    let number = digits.parse().ok();
    let number = number.and_then(|number: u64| number.checked_mul(unit));
    number
        .filter(|number| *number > 0)
        .ok_or_else(|| "expected a number such as 1000, 10k or 1M".to_owned())
}

/// All that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct RestartReport {
    is_cold: bool,
    backlogs: Vec<Backlog>,
}

#[derive(Debug, Serialize)]
struct Backlog {
    messages: u64,
    queues: u64,
    body_bytes: usize,
    raw: RawDisk,
    confirmed_per_sec: f64,
    /// The broker that published, before it was killed.
    published_rss_bytes: u64,
    files: Files,
    restarts: Vec<Restart>,
}

#[derive(Debug, Serialize)]
struct Restart {
    accept_ms: f64,
    first_delivery_ms: f64,
    accept_rss_bytes: u64,
    delivery_rss_bytes: u64,
    peak_rss_bytes: u64,
    recovery: String,
}

pub(crate) fn run(args: &RestartArgs) -> Result<RestartReport, BenchError> {
    let mut backlogs = Vec::new();
    for queues in &args.queues {
        for messages in &args.messages {
            backlogs.push(measure(args, *messages, *queues)?);
        }
    }
    Ok(RestartReport {
        is_cold: args.cold,
        backlogs,
    })
}

fn measure(args: &RestartArgs, messages: u64, queues: u64) -> Result<Backlog, BenchError> {
    let (mut broker, raw) = Broker::start(&args.own)?;
    let load = Args {
        publishers: 2,
        consumers: 0,
        queues: u32::try_from(queues).unwrap_or(u32::MAX),
        count: Some(messages),
        window: 2000,
        body_size: args.body_size,
        keep: true,
        ..Args::defaults(broker.url())
    };
    load.check().map_err(BenchError::Protocol)?;
    let published = run::run(&load)?;
    if let Some(failure) = published.failures().first() {
        return Err(BenchError::Protocol(failure.clone()));
    }
    let published_rss_bytes = broker.process().rss_bytes().unwrap_or(0);
    let files = broker.files()?;
    let mut restarts = Vec::new();
    for _ in 0..args.repeats {
        restarts.push(restart(&mut broker, &load, args.cold)?);
    }
    check_nothing_lost(&mut broker, &load, messages)?;
    Ok(Backlog {
        messages,
        queues,
        body_bytes: args.body_size,
        raw,
        confirmed_per_sec: published.confirmed_per_sec,
        published_rss_bytes,
        files,
        restarts,
    })
}

fn restart(broker: &mut Broker, load: &Args, is_cold: bool) -> Result<Restart, BenchError> {
    broker.kill()?;
    if is_cold {
        broker.drop_cache()?;
    }
    let clock = Clock::start();
    broker.spawn()?;
    let mut connection = broker.connect(clock)?;
    let accept_ns = clock.now_ns();
    let accept_rss_bytes = broker.process().rss_bytes().unwrap_or(0);
    await_delivery(&mut connection, load, clock)?;
    let delivery_ns = clock.now_ns();
    let process = broker.process();
    Ok(Restart {
        accept_ms: secs(accept_ns) * 1e3,
        first_delivery_ms: secs(delivery_ns) * 1e3,
        accept_rss_bytes,
        delivery_rss_bytes: process.rss_bytes().unwrap_or(0),
        peak_rss_bytes: process.rss_peak_bytes().unwrap_or(0),
        recovery: broker.status()?.recovery,
    })
}

/// Subscribes to the first queue and waits for its first message.
fn await_delivery(
    connection: &mut Connection,
    load: &Args,
    clock: Clock,
) -> Result<(), BenchError> {
    let qos = basic::Qos {
        prefetch_count: 1,
        ..basic::Qos::default()
    };
    connection.put(qos, 1);
    let consume = basic::Consume {
        queue: ShortString::from_text_cut(&load.queue_name(0)),
        ..basic::Consume::default()
    };
    connection.put(consume, 1);
    connection.send(&mut || true)?;
    let give_up_ns = clock.now_ns() + DELIVERY_MAX_SECS * 1_000_000_000;
    while clock.now_ns() < give_up_ns {
        while let Some(event) = connection.input.next()? {
            match event {
                Event::Deliver { .. } => return Ok(()),
                other => check_harmless(&other)?,
            }
        }
        connection.fill()?;
    }
    Err(BenchError::Stalled {
        doing: "waiting for a first delivery",
        secs: DELIVERY_MAX_SECS,
    })
}

/// A last start, with nothing delivered: all messages are ready.
fn check_nothing_lost(broker: &mut Broker, load: &Args, messages: u64) -> Result<(), BenchError> {
    broker.kill()?;
    broker.spawn()?;
    broker.connect(Clock::start())?.close();
    let found = run::queued_now(load)?;
    if found == messages {
        return Ok(());
    }
    let text = format!("{found} of {messages} messages are in the queues after the restarts");
    Err(BenchError::Protocol(text))
}

impl Table for RestartReport {
    fn table(&self) -> String {
        let mut grid = Grid::new(&[
            "messages",
            "queues",
            "data",
            "RSS before",
            "accept ms",
            "first delivery ms",
            "RSS accept",
            "RSS delivery",
            "RSS peak",
        ]);
        let mut notes = String::new();
        for backlog in &self.backlogs {
            let restarts = &backlog.restarts;
            let most = |of: fn(&Restart) -> u64| {
                mebibytes(restarts.iter().map(of).max().unwrap_or_default())
            };
            let middle =
                |of: fn(&Restart) -> f64| format!("{:.0}", median(restarts.iter().map(of)));
            grid.row(vec![
                backlog.messages.to_string(),
                backlog.queues.to_string(),
                mebibytes(backlog.files.bytes),
                mebibytes(backlog.published_rss_bytes),
                middle(|restart| restart.accept_ms),
                middle(|restart| restart.first_delivery_ms),
                most(|restart| restart.accept_rss_bytes),
                most(|restart| restart.delivery_rss_bytes),
                most(|restart| restart.peak_rss_bytes),
            ]);
            notes += &backlog.raw.line();
            for restart in restarts {
                notes += &format!("recovered: {}\n", restart.recovery);
            }
        }
        format!("{}{notes}", grid.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_may_have_a_unit() {
        for (text, expected) in [
            ("7", Some(7)),
            ("10k", Some(10_000)),
            ("1M", Some(1_000_000)),
            ("0", None),
            ("k", None),
            ("", None),
            ("1.5M", None),
        ] {
            assert_eq!(count(text).ok(), expected, "{text}");
        }
    }
}
