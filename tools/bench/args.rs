//! The command line.

use crate::churn::ChurnArgs;
use crate::flatness::FlatnessArgs;
use crate::goals::GoalsArgs;
use crate::hostile::HostileArgs;
use crate::limit::LimitArgs;
use crate::message::{PUBLISHERS_MAX, STAMP_BYTES};
use crate::recycle::RecycleArgs;
use crate::restart::RestartArgs;
use crate::stand_in::StandInArgs;
use crate::sweep::SweepArgs;
use crate::url::Url;
use clap::{Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use stratamq::amqp::field_table::{FieldTable, FieldValue};

/// Generates load on an AMQP 0-9-1 broker and reports rates, latencies, loss and duplicates.
///
/// Example: 4 publishers, each with up to 100 unconfirmed persistent messages of 1 KiB, to 2 queues with 2 consumers for 10 seconds:
///
///     strata-bench --publishers 4 --queues 2 --consumers 2 --body-size 1024 --window 100 --duration 10
///
/// A backlog and how fast it is read back:
///
///     strata-bench --consumers 0 --count 1000000 --keep && strata-bench --publishers 0
///
/// The commands start brokers of their own, each on a fresh directory, and print the disk's raw figures of the same run.
#[derive(Debug, Clone, Parser)]
#[command(
    version,
    name = "strata-bench",
    verbatim_doc_comment,
    args_conflicts_with_subcommands = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) load: Args,
}

/// What to measure on a broker of its own.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Command {
    /// Kills a broker with a backlog and measures how soon the next one accepts and delivers, and its memory.
    Restart(RestartArgs),
    /// Measures durable confirmed throughput, syncs and bytes written against the number of queues.
    Queues(FlatnessArgs),
    /// Measures what an fdatasync costs in segments that are used again, against fresh ones; on the engine alone.
    Recycle(RecycleArgs),
    /// Declares, binds, uses and deletes many queues, again and again, and looks for what does not come back.
    Churn(ChurnArgs),
    /// Measures loads beside their limits: a stand-in that only moves the same bytes, and the disk's bare commits.
    Limit(LimitArgs),
    /// Measures all that the broker's speed is judged by, in interleaved rounds, and says which goals are reached.
    Goals(GoalsArgs),
    /// Measures what a message costs against the number of connections, queues, bindings, messages waiting, and the body's size.
    Sweep(SweepArgs),
    /// Serves as the stand-in of other commands.
    #[command(hide = true)]
    StandIn(StandInArgs),
    /// Measures a healthy client's latency and the broker's memory beside idle, slow, silent and restless clients.
    Hostile(HostileArgs),
}

/// The load of a run without a command.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// The broker: amqp://USER:PASSWORD@HOST:PORT/VHOST.
    #[arg(
        long,
        env = "AMQP_URL",
        hide_env_values = true,
        default_value = "amqp://guest:guest@127.0.0.1:5672/%2f"
    )]
    pub(crate) url: Url,
    /// Publishing connections. 0 only consumes what an earlier run has left in the queues with --keep.
    #[arg(long, default_value_t = 1)]
    pub(crate) publishers: u32,
    /// Consuming connections. 0 only publishes; the queues' lengths then show what was lost.
    #[arg(long, default_value_t = 1)]
    pub(crate) consumers: u32,
    /// Queues. Every publisher goes round them message by message, unless --own-queues; each consumer reads its share of them.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) queues: u32,
    /// Every publisher keeps to its share of the queues, those that the consumer of the same number reads, and does not go round all
    /// of them.
    #[arg(long, conflicts_with = "fanout")]
    pub(crate) own_queues: bool,
    /// Publish every message to all queues, through a fanout exchange of the queues' prefix. Counts and rates of what is
    /// consumed are deliveries then.
    #[arg(long)]
    pub(crate) fanout: bool,
    /// Bytes of a message's body; the first 16 are the generator's stamp.
    #[arg(long, default_value_t = 100)]
    pub(crate) body_size: usize,
    /// Messages a publisher may have unconfirmed. 0 publishes without confirms, as fast as the broker reads.
    #[arg(long, default_value_t = 100)]
    pub(crate) window: usize,
    /// How consumers acknowledge.
    #[arg(long, value_enum, default_value_t = AckMode::Manual)]
    pub(crate) ack: AckMode,
    /// Unacknowledged messages a consumer may have (basic.qos); 0 is no limit.
    #[arg(long, default_value_t = 500)]
    pub(crate) prefetch: u16,
    /// Publish persistent messages (delivery mode 2). This is the default.
    #[arg(long, conflicts_with = "transient")]
    pub(crate) persistent: bool,
    /// Publish transient messages (delivery mode 1).
    #[arg(long)]
    pub(crate) transient: bool,
    /// Whether the queues are durable.
    #[arg(long, default_value_t = true, default_missing_value = "true", num_args = 0..=1, require_equals = true,
          action = clap::ArgAction::Set)]
    pub(crate) durable: bool,
    /// Seconds to publish for. Without this and --count: 10.
    #[arg(long)]
    pub(crate) duration: Option<u64>,
    /// Messages to publish, over all publishers. With --duration: whatever is reached first.
    #[arg(long)]
    pub(crate) count: Option<u64>,
    /// The broker's process, for CPU seconds and resident memory from /proc.
    #[arg(long)]
    pub(crate) pid: Option<u32>,
    /// The data directory of a running StrataMQ, for its syncs and the bytes it writes.
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Queues are called PREFIX-0, PREFIX-1 and so on. They are deleted and declared anew, unless --publishers is 0.
    #[arg(long, default_value = "strata-bench")]
    pub(crate) queue_prefix: String,
    /// An argument of the queues, such as x-queue-type=quorum; numbers are sent as numbers. May be repeated.
    #[arg(long = "queue-argument", value_name = "NAME=VALUE", value_parser = queue_argument)]
    pub(crate) queue_arguments: Vec<(String, String)>,
    /// Leave the queues and what is in them.
    #[arg(long)]
    pub(crate) keep: bool,
    /// Seconds without any progress after which missing confirms and deliveries are given up.
    #[arg(long, default_value_t = 30)]
    pub(crate) patience: u64,
    /// Print one JSON object in place of the table.
    #[arg(long)]
    pub(crate) json: bool,
    /// Publish through a topic exchange of the queues' prefix that has so many bindings, with changing keys; 0 for none.
    #[arg(skip)]
    pub(crate) topic_bindings: u32,
    /// The other side is the stand-in, whose deliveries are all alike: they are counted, not told apart.
    #[arg(skip)]
    pub(crate) takes_any_delivery: bool,
}

/// Keys of a publisher to a topic exchange: more than a connection's cache of routes holds.
const TOPIC_KEYS: u32 = 20_000;

/// Keys and patterns as applications have them: mostly literal words, some `*`, a few `#`.
pub(crate) mod topic {
    /// The key of a message.
    pub(crate) fn key(index: u32) -> String {
        format!("region{}.host{index}.error", index % 50)
    }

    /// The pattern of a binding; every message matches the first one.
    pub(crate) fn pattern(index: u32) -> String {
        let region = index % 50;
        match index % 10 {
            _ if index == 0 => "#".to_owned(),
            0 => format!("region{region}.*.warning{index}"),
            1 => format!("#.host{index}.error"),
            _ => format!("region{region}.host{index}.error"),
        }
    }
}

/// How consumers acknowledge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AckMode {
    /// One basic.ack with multiple=true for all that a read from the socket brought.
    Manual,
    /// One basic.ack for every message.
    Each,
    /// No acknowledgements (no_ack).
    Auto,
}

/// Which of the queues belong to client `index` of `clients`: each has one, and each client at least one.
fn shares_of(queues: u32, clients: u32, index: u32) -> impl Iterator<Item = u32> {
    let step = clients.clamp(1, queues);
    (index % step..queues).step_by(step as usize)
}

fn queue_argument(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl Args {
    /// The defaults of all flags, for a broker at `url`.
    pub(crate) fn defaults(url: Url) -> Self {
        Self {
            url,
            ..Cli::parse_from(["strata-bench"]).load
        }
    }

    /// What is wrong with flags that parse each by itself.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.body_size < STAMP_BYTES {
            return Err(format!(
                "--body-size is at least {STAMP_BYTES}, the size of the stamp"
            ));
        }
        if self.publishers == 0 && self.consumers == 0 {
            return Err("--publishers and --consumers are both 0: nothing to do".to_owned());
        }
        if self.publishers > PUBLISHERS_MAX {
            return Err(format!("--publishers is at most {PUBLISHERS_MAX}"));
        }
        if self.queue_prefix.len() > 200 {
            return Err("--queue-prefix is too long for a queue's name".to_owned());
        }
        Ok(())
    }

    /// Delivery mode of the messages.
    pub(crate) fn is_persistent(&self) -> bool {
        !self.transient
    }

    /// Seconds to publish for, if that limits the run.
    pub(crate) fn duration_secs(&self) -> Option<u64> {
        match (self.duration, self.count) {
            (None, None) => Some(10),
            (duration, _) => duration,
        }
    }

    /// How many messages publisher `index` sends, if that limits the run; the first ones take the remainder.
    pub(crate) fn count_of(&self, index: u32) -> Option<u64> {
        let publishers = u64::from(self.publishers);
        let share =
            |count: u64| count / publishers + u64::from(u64::from(index) < count % publishers);
        self.count.map(share)
    }

    /// The name of a queue.
    pub(crate) fn queue_name(&self, index: u32) -> String {
        format!("{}-{index}", self.queue_prefix)
    }

    /// An exchange of our own is declared.
    pub(crate) fn has_exchange(&self) -> bool {
        self.fanout || self.topic_bindings > 0
    }

    /// The fanout or topic exchange, or the default one.
    pub(crate) fn exchange_name(&self) -> &str {
        if self.has_exchange() {
            &self.queue_prefix
        } else {
            ""
        }
    }

    /// The routing keys that publisher `index` goes round.
    pub(crate) fn routing_keys(&self, index: u32) -> Vec<String> {
        if self.topic_bindings > 0 {
            return (0..TOPIC_KEYS).map(topic::key).collect();
        }
        if self.own_queues {
            let own = shares_of(self.queues, self.publishers, index);
            return own.map(|queue| self.queue_name(queue)).collect();
        }
        // With fan-out the routing key means nothing.
        let count = self.queues / self.copies();
        (0..count).map(|queue| self.queue_name(queue)).collect()
    }

    /// How many queues get a message.
    pub(crate) fn copies(&self) -> u32 {
        if self.fanout { self.queues } else { 1 }
    }

    /// The queues consumer `index` reads: every queue has a consumer if there is one at all, every consumer a queue.
    pub(crate) fn queues_of(&self, index: u32) -> Vec<u32> {
        shares_of(self.queues, self.consumers, index).collect()
    }

    /// Whether the order of a queue's messages can be judged: it has one consumer.
    pub(crate) fn is_order_known(&self) -> bool {
        self.consumers <= self.queues
    }

    /// The arguments of a queue's declaration.
    pub(crate) fn declare_arguments(&self) -> FieldTable {
        let mut table = FieldTable::default();
        for (name, value) in &self.queue_arguments {
            let value = match value.parse() {
                Ok(number) => FieldValue::Long(number),
                Err(_) => FieldValue::text(value),
            };
            table.set(name, value);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[track_caller]
    fn check(line: &str, expected: &str) {
        let words = std::iter::once("strata-bench").chain(line.split_whitespace());
        let args = Cli::try_parse_from(words).expect("the flags parse").load;
        let shares: Vec<_> = (0..args.publishers)
            .map(|index| args.count_of(index))
            .collect();
        let queues: Vec<_> = (0..args.consumers)
            .map(|index| args.queues_of(index))
            .collect();
        let shown = format!(
            "{:?} {shares:?} {queues:?} {}",
            args.duration_secs(),
            args.durable
        );
        assert_eq!(shown, expected);
    }

    #[test]
    fn flags_that_do_not_fit_are_refused() {
        for (line, complaint) in [
            (
                "--body-size 15",
                "--body-size is at least 16, the size of the stamp",
            ),
            ("--publishers 65536", "--publishers is at most 65535"),
            (
                "--publishers 0 --consumers 0",
                "--publishers and --consumers are both 0: nothing to do",
            ),
        ] {
            let words = std::iter::once("strata-bench").chain(line.split_whitespace());
            let args = Cli::try_parse_from(words).expect("the flags parse").load;
            assert_eq!(args.check(), Err(complaint.to_owned()));
        }
        for line in [
            "limit --rounds 0",
            "goals --seconds 61",
            "goals --backlog 0",
        ] {
            let words = std::iter::once("strata-bench").chain(line.split_whitespace());
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }

    #[test]
    fn work_is_shared_without_a_rest() {
        check("", "Some(10) [None] [[0]] true");
        check(
            "--publishers 3 --count 10",
            "None [Some(4), Some(3), Some(3)] [[0]] true",
        );
        check(
            "--consumers 2 --queues 3 --duration 5 --count 1",
            "Some(5) [Some(1)] [[0, 2], [1]] true",
        );
        check(
            "--consumers 3 --queues 2 --durable=false",
            "Some(10) [None] [[0], [1], [0]] false",
        );
    }

    #[track_caller]
    fn check_keys(line: &str, expected: &[&[&str]]) {
        let words = std::iter::once("strata-bench").chain(line.split_whitespace());
        let args = Cli::try_parse_from(words).expect("the flags parse").load;
        let keys: Vec<_> = (0..args.publishers)
            .map(|index| args.routing_keys(index))
            .collect();
        assert_eq!(keys, expected);
    }

    #[test]
    fn publishers_go_round_all_queues_or_their_own() {
        let all: &[&str] = &["q-0", "q-1", "q-2"];
        check_keys("--queue-prefix q --publishers 2 --queues 3", &[all, all]);
        check_keys(
            "--queue-prefix q --publishers 2 --queues 3 --own-queues",
            &[&["q-0", "q-2"], &["q-1"]],
        );
        check_keys(
            "--queue-prefix q --publishers 3 --queues 2 --own-queues",
            &[&["q-0"], &["q-1"], &["q-0"]],
        );
        check_keys(
            "--queue-prefix q --publishers 2 --queues 3 --fanout",
            &[&["q-0"], &["q-0"]],
        );
    }
}
