//! Many queues are declared, bound, used and deleted, round after round; what a broker keeps of them is a leak.
//!
//! Each queue is durable, bound to a direct, a topic and a fanout exchange, gets a persistent message through the direct one, which
//! is confirmed, consumed and acknowledged. Requests are sent with `nowait`, so the rates show what they cost the broker rather than
//! how often it can sync; the last one of each kind is waited for. After each round the broker is given time for a checkpoint, which frees the log. File
//! descriptors, files of the data directory and resident memory are then compared with those before the first round.

use crate::broker::{Broker, OwnArgs};
use crate::clock::{Clock, secs};
use crate::connection::{Connection, check_harmless};
use crate::error::BenchError;
use crate::input::Event;
use crate::message::{ContentFrames, STAMP_BYTES, Stamp, Template};
use crate::raw::RawDisk;
use crate::report::rate;
use crate::restart;
use crate::table::{Grid, Table, mebibytes};
use serde::Serialize;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use stratamq::amqp::method::{Method, basic, confirm, exchange, queue};
use stratamq::amqp::properties::PropertiesBuilder;
use stratamq::amqp::short_string::ShortString;

/// The exchanges each queue is bound to, and their types.
const EXCHANGES: [(&str, &str); 3] = [
    ("strata-churn-direct", "direct"),
    ("strata-churn-topic", "topic"),
    ("strata-churn-fanout", "fanout"),
];
/// Files that a directory has more after its first checkpoint, at some time of the run, than before: that one.
const CHECKPOINT_FILES: u64 = 1;
/// How often the files are counted while a checkpoint is awaited.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What to churn.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ChurnArgs {
    /// Queues that exist at once.
    #[arg(long, default_value = "10k", value_parser = restart::count)]
    queues: u64,
    /// How often they come and go.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds that a round's files may take to go: checkpoints are made every 30 seconds at the latest.
    #[arg(long, default_value_t = 40)]
    settle_secs: u64,
    #[command(flatten)]
    pub(crate) own: OwnArgs,
}

/// All that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct ChurnReport {
    queues: u64,
    raw: RawDisk,
    before: Held,
    rounds: Vec<Round>,
}

/// What a broker holds of the machine.
#[derive(Clone, Copy, Debug, Serialize)]
struct Held {
    open_files: u64,
    data_files: u64,
    data_bytes: u64,
    rss_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Round {
    declared_per_sec: f64,
    bound_per_sec: f64,
    published_per_sec: f64,
    consumed_per_sec: f64,
    deleted_per_sec: f64,
    /// While all queues were there.
    full: Held,
    /// When all were gone and the log was freed.
    after: Held,
    /// The files have come back; a first checkpoint may stay.
    is_back: bool,
}

pub(crate) fn run(args: &ChurnArgs) -> Result<ChurnReport, BenchError> {
    let (mut broker, raw) = Broker::start(&args.own)?;
    let clock = Clock::start();
    let mut connection = broker.connect(clock)?;
    connection.call(confirm::Select { nowait: false }, |method| {
        matches!(method, Method::ConfirmSelectOk(_))
    })?;
    let mut churn = Churn {
        connection,
        clock,
        queues: args.queues,
        published_count: 0,
    };
    churn.declare_exchanges()?;
    let before = held(&broker)?;
    let mut rounds = Vec::new();
    for _ in 0..args.rounds {
        let [
            declared_per_sec,
            bound_per_sec,
            published_per_sec,
            consumed_per_sec,
        ] = [
            churn.timed(Churn::declare)?,
            churn.timed(Churn::bind)?,
            churn.timed(Churn::publish)?,
            churn.timed(Churn::consume)?,
        ];
        let full = held(&broker)?;
        let deleted_per_sec = churn.timed(Churn::delete)?;
        let after = settled(&broker, before, args.settle_secs)?;
        rounds.push(Round {
            declared_per_sec,
            bound_per_sec,
            published_per_sec,
            consumed_per_sec,
            deleted_per_sec,
            full,
            after,
            is_back: after.is_no_more_than(before),
        });
    }
    churn.connection.close();
    Ok(ChurnReport {
        queues: args.queues,
        raw,
        before,
        rounds,
    })
}

fn held(broker: &Broker) -> Result<Held, BenchError> {
    let files = broker.files()?;
    let process = broker.process();
    Ok(Held {
        open_files: process.open_files_count().unwrap_or(0),
        data_files: files.count,
        data_bytes: files.bytes,
        rss_bytes: process.rss_bytes().unwrap_or(0),
    })
}

impl Held {
    /// Whether all files have come back.
    fn is_no_more_than(&self, before: Self) -> bool {
        self.open_files <= before.open_files
            && self.data_files <= before.data_files + CHECKPOINT_FILES
    }
}

/// What is held once the files are as few as `before`, or patience ends.
fn settled(broker: &Broker, before: Held, max_secs: u64) -> Result<Held, BenchError> {
    let clock = Clock::start();
    loop {
        let now = held(broker)?;
        let is_back = now.is_no_more_than(before);
        if is_back || clock.now_ns() >= max_secs * 1_000_000_000 {
            return Ok(now);
        }
        thread::sleep(LOOK_EVERY);
    }
}

struct Churn {
    connection: Connection,
    clock: Clock,
    queues: u64,
    /// Messages published, and so the last one's tag.
    published_count: u64,
}

impl Churn {
    /// Does one thing to all queues; queues for each second.
    fn timed(&mut self, step: fn(&mut Self) -> Result<(), BenchError>) -> Result<f64, BenchError> {
        let begun_ns = self.clock.now_ns();
        step(self)?;
        Ok(rate(self.queues, secs(self.clock.now_ns() - begun_ns)))
    }

    fn declare_exchanges(&mut self) -> Result<(), BenchError> {
        let declares = EXCHANGES.map(|(name, kind)| exchange::Declare {
            exchange: ShortString::from_static(name),
            kind: ShortString::from_static(kind),
            durable: true,
            ..exchange::Declare::default()
        });
        self.connection.call_all(
            declares,
            |method| matches!(method, Method::ExchangeDeclareOk(_)),
            |_| {},
        )
    }

    fn declare(&mut self) -> Result<(), BenchError> {
        let name_of = |index| queue::Declare {
            queue: name(index),
            durable: true,
            nowait: index < self.queues - 1,
            ..queue::Declare::default()
        };
        let mut declares = (0..self.queues).map(name_of);
        let last = declares.next_back();
        self.connection.tell_all(declares)?;
        self.connection.call_all(
            last,
            |method| matches!(method, Method::QueueDeclareOk(_)),
            |_| {},
        )
    }

    fn bind(&mut self) -> Result<(), BenchError> {
        self.connection.tell_all((0..self.queues).flat_map(|index| {
            EXCHANGES.map(|(exchange, _)| queue::Bind {
                queue: name(index),
                exchange: ShortString::from_static(exchange),
                routing_key: name(index),
                nowait: true,
                ..queue::Bind::default()
            })
        }))
    }

    fn publish(&mut self) -> Result<(), BenchError> {
        let mut properties = PropertiesBuilder::new();
        properties.set_delivery_mode(Some(2));
        let properties = properties.build();
        let exchange = ShortString::from_static(EXCHANGES[0].0);
        let frame_max = self.connection.frame_max;
        let content = Arc::new(ContentFrames::new(&properties, STAMP_BYTES, frame_max));
        for index in 0..self.queues {
            let template = Template::new(&exchange, &name(index), &content);
            let stamp = Stamp {
                run: 0,
                publisher: 0,
                seq: index,
                sent_ns: 0,
            };
            template.put(&mut self.connection.output, stamp);
        }
        self.connection.send(&mut || true)?;
        self.published_count += self.queues;
        self.await_confirms()
    }

    /// Reads until the last message is confirmed, and so all the others: confirms of this broker come in order.
    fn await_confirms(&mut self) -> Result<(), BenchError> {
        let mut confirmed_count = 0;
        while confirmed_count < self.published_count {
            while let Some(event) = self.connection.input.next()? {
                match event {
                    Event::Confirm {
                        tag, is_ack: true, ..
                    } => confirmed_count = tag,
                    Event::Confirm { .. } => {
                        return Err(BenchError::Protocol("a message was refused".to_owned()));
                    }
                    other => check_harmless(&other)?,
                }
            }
            if confirmed_count < self.published_count {
                self.connection.fill()?;
            }
        }
        Ok(())
    }

    /// Consumes the message of each queue and acknowledges it.
    fn consume(&mut self) -> Result<(), BenchError> {
        let consumes = (0..self.queues).map(|index| basic::Consume {
            queue: name(index),
            consumer_tag: name(index),
            nowait: true,
            ..basic::Consume::default()
        });
        for consume in consumes {
            self.connection.put(consume, 1);
        }
        self.connection.send(&mut || true)?;
        let mut got_count = 0;
        while got_count < self.queues {
            while let Some(event) = self.connection.input.next()? {
                match event {
                    Event::Deliver { .. } => got_count += 1,
                    other => check_harmless(&other)?,
                }
            }
            if got_count < self.queues {
                self.connection.fill()?;
            }
        }
        let ack = basic::Ack {
            delivery_tag: 0,
            multiple: true,
        };
        self.connection.put(ack, 1);
        self.connection.send(&mut || true)
    }

    fn delete(&mut self) -> Result<(), BenchError> {
        self.connection
            .tell_all((0..self.queues).map(|index| queue::Delete {
                queue: name(index),
                nowait: true,
                ..queue::Delete::default()
            }))
    }
}

fn name(index: u64) -> ShortString {
    ShortString::from_text_cut(&format!("strata-churn.{index}"))
}

impl Table for ChurnReport {
    fn table(&self) -> String {
        let mut grid = Grid::new(&[
            "round",
            "declared/s",
            "bound/s",
            "published/s",
            "consumed/s",
            "deleted/s",
            "open files",
            "data files",
            "data",
            "RSS full",
            "RSS after",
        ]);
        let dash = || "-".to_owned();
        grid.row(vec![
            "before".to_owned(),
            dash(),
            dash(),
            dash(),
            dash(),
            dash(),
            self.before.open_files.to_string(),
            self.before.data_files.to_string(),
            mebibytes(self.before.data_bytes),
            dash(),
            mebibytes(self.before.rss_bytes),
        ]);
        for (number, round) in (1..).zip(&self.rounds) {
            let per_sec = |value: f64| format!("{value:.0}");
            grid.row(vec![
                format!("{number}"),
                per_sec(round.declared_per_sec),
                per_sec(round.bound_per_sec),
                per_sec(round.published_per_sec),
                per_sec(round.consumed_per_sec),
                per_sec(round.deleted_per_sec),
                round.after.open_files.to_string(),
                round.after.data_files.to_string(),
                mebibytes(round.after.data_bytes),
                mebibytes(round.full.rss_bytes),
                mebibytes(round.after.rss_bytes),
            ]);
        }
        format!(
            "{} queues, each bound to {} exchanges\n{}{}",
            self.queues,
            EXCHANGES.len(),
            grid.text(),
            self.raw.line()
        )
    }
}
