//! The command line, as typed: what a broker is told, and how flags, environment and file are brought together. The
//! doc comments are the `--help`.

use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, ValueEnum};

use super::access::{AccessArgs, TlsArgs};
use super::commands::Command;
use super::{ByteSize, MemoryLimit, NetThreads, Port, file};

/// A durable AMQP 0-9-1 message broker.
///
/// Without a command it runs the broker. The commands talk to the broker that runs on the data directory,
/// or, when none does, change the stopped data directory itself.
#[derive(Debug, Parser)]
#[command(name = "stratamq", version, max_term_width = 100)]
pub struct Args {
    /// Directory that holds the log, the checkpoints and the admin socket
    #[arg(
        long,
        global = true,
        env = "STRATAMQ_DATA_DIR",
        default_value = "./stratamq-data",
        value_name = "DIR"
    )]
    pub data_dir: PathBuf,

    /// TOML file whose keys are the names of these flags; flags and environment variables win over it
    #[arg(long, global = true, env = "STRATAMQ_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Print the configuration that flags, environment and file give, as such a file, and exit
    #[arg(long)]
    pub print_config: bool,

    /// How a broker runs.
    #[command(flatten)]
    pub server: ServerArgs,

    /// What to do instead of running a broker.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// What `--print-config` prints; empty until [`parse`] is done.
    #[arg(skip)]
    pub effective: String,
}

/// Flags of a running broker.
#[derive(Debug, clap::Args)]
pub struct ServerArgs {
    /// Address to listen on
    #[arg(
        long,
        env = "STRATAMQ_BIND",
        default_value = "127.0.0.1",
        value_name = "ADDRESS"
    )]
    pub bind: IpAddr,

    /// Port for AMQP, or `off` when only --tls-port is to be used
    #[arg(
        long,
        env = "STRATAMQ_AMQP_PORT",
        default_value = "5672",
        value_name = "PORT"
    )]
    pub amqp_port: Port,

    /// When a commit reaches stable storage: `always` syncs as soon as the last sync ended, `interval` at
    /// most once every --fsync-interval-ms (confirms wait for it), `never` confirms after write(2):
    /// survives a killed broker, not a power cut
    #[arg(
        long,
        env = "STRATAMQ_FSYNC",
        default_value = "always",
        value_name = "MODE"
    )]
    pub fsync: FsyncArg,

    /// Milliseconds between syncs with `--fsync interval`
    #[arg(
        long,
        env = "STRATAMQ_FSYNC_INTERVAL_MS",
        default_value_t = 10,
        value_name = "MS"
    )]
    pub fsync_interval_ms: u64,

    /// Microseconds to hold a commit open so that it gathers more
    #[arg(
        long,
        env = "STRATAMQ_COMMIT_DELAY_US",
        default_value_t = 0,
        value_name = "US"
    )]
    pub commit_delay_us: u64,

    /// Soft cap of one commit (large bodies may be four times as much), in bytes or with KiB, MiB, GiB
    #[arg(
        long,
        env = "STRATAMQ_COMMIT_MAX_BYTES",
        default_value = "1MiB",
        value_name = "SIZE"
    )]
    pub commit_max_bytes: ByteSize,

    /// Milliseconds within which acknowledgements alone are synced; whatever somebody waits for syncs at once
    #[arg(
        long,
        env = "STRATAMQ_ACK_FSYNC_MS",
        default_value_t = 50,
        value_name = "MS"
    )]
    pub ack_fsync_ms: u64,

    /// Size of a log segment, 1MiB to 1GiB; a message is at most a quarter of it
    #[arg(
        long,
        env = "STRATAMQ_SEGMENT_SIZE",
        default_value = "64MiB",
        value_name = "SIZE"
    )]
    pub segment_size: ByteSize,

    /// Publishers are blocked (`connection.blocked`) while less disk space than this is free; 0 for never
    #[arg(
        long,
        env = "STRATAMQ_DISK_FREE_LIMIT",
        default_value = "128MiB",
        value_name = "SIZE"
    )]
    pub disk_free_limit: ByteSize,

    /// Memory the broker may take, in bytes or with KiB, MiB, GiB, or as a share of the machine's or the control
    /// group's memory; messages leave memory for the disk first, then publishers are slowed down and blocked
    #[arg(
        long,
        env = "STRATAMQ_MEMORY_LIMIT",
        default_value = "60%",
        value_name = "SIZE"
    )]
    pub memory_limit: MemoryLimit,

    /// Threads that serve sockets, or `auto`: half of the processors, because messages that stay on one thread stay in one
    /// cache, and the store has threads of its own
    #[arg(
        long,
        env = "STRATAMQ_NET_THREADS",
        default_value = "auto",
        value_name = "N"
    )]
    pub net_threads: NetThreads,

    /// Messages from which on a queue keeps their positions in an index file instead of in memory; 0 gives every
    /// durable queue a file
    #[arg(
        long,
        env = "STRATAMQ_QUEUE_INDEX_MIN_MESSAGES",
        default_value_t = 1024,
        value_name = "N"
    )]
    pub queue_index_min_messages: u64,

    /// What to do when data that was on stable storage is found damaged at the start: `refuse` to start, or start
    /// with all that can be verified, keep the rest in `quarantine/` and report what is lost
    #[arg(
        long,
        env = "STRATAMQ_ON_CORRUPTION",
        default_value = "refuse",
        value_name = "WHAT"
    )]
    pub on_corruption: OnCorruptionArg,

    /// Writes the time of arrival into messages, as header `timestamp_in_ms` and property `timestamp`: into none, those
    /// without one, or all
    #[arg(
        long,
        env = "STRATAMQ_STAMP_TIME",
        default_value = "off",
        value_name = "WHEN"
    )]
    pub stamp_time: StampArg,

    /// Writes the name of this broker into messages, as header `x-routed-by`: into none, those without one, or all
    #[arg(
        long,
        env = "STRATAMQ_STAMP_NODE",
        default_value = "off",
        value_name = "WHEN"
    )]
    pub stamp_node: StampArg,

    /// Bytes a second that are read again in the background, to find damage before a consumer needs the data; 0
    /// for none
    #[arg(
        long,
        env = "STRATAMQ_SCRUB_RATE",
        default_value = "4MiB",
        value_name = "SIZE"
    )]
    pub scrub_rate: ByteSize,

    /// What to log to standard error: error, warn, info, debug, trace, or a filter such as
    /// `stratamq::server=debug,info`
    #[arg(
        long,
        env = "STRATAMQ_LOG",
        default_value = "info",
        value_name = "FILTER"
    )]
    pub log: String,

    /// Who may connect, and how much one client may take.
    #[command(flatten)]
    pub access: AccessArgs,

    /// The TLS listener.
    #[command(flatten)]
    pub tls: TlsArgs,
}

/// Values of `--fsync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FsyncArg {
    /// Sync every commit.
    Always,
    /// Sync at intervals.
    Interval,
    /// Leave it to the operating system.
    Never,
}

/// Values of `--stamp-time` and `--stamp-node`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StampArg {
    /// Leave messages as they are.
    Off,
    /// Where a message has none.
    Fill,
    /// Always.
    Overwrite,
}

/// Values of `--on-corruption`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnCorruptionArg {
    /// Do not start, change nothing.
    Refuse,
    /// Start with what is readable.
    Quarantine,
}

/// Parses the process's command line, and the configuration file that it names; `read` gives the file's text.
///
/// # Errors
/// One line that says what is wrong and what is allowed. Help and version are printed and end the process.
pub fn parse(read: impl Fn(&Path) -> io::Result<String>) -> Result<Args, String> {
    let words: Vec<_> = std::env::args_os().collect();
    parse_from(&words, read)
}

fn parse_from(
    words: &[OsString],
    read: impl Fn(&Path) -> io::Result<String>,
) -> Result<Args, String> {
    let matches = matches(Args::command(), words)?;
    let Some(path) = matches.get_one::<PathBuf>("config") else {
        return args_of(&matches);
    };
    let name = path.display().to_string();
    let text = read(path).map_err(|error| format!("cannot read {name}: {error}"))?;
    let defaults = file::parse(&name, &text)?;
    let with_file = defaults
        .into_iter()
        .fold(Args::command(), |command, (key, value)| {
            command.mut_arg(key.replace('-', "_"), |flag| flag.default_value(value))
        });
    args_of(&self::matches(with_file, words)?)
}

fn args_of(matches: &ArgMatches) -> Result<Args, String> {
    let mut args = Args::from_arg_matches(matches).map_err(|error| one_line(&error.to_string()))?;
    args.effective = effective(matches);
    Ok(args)
}

fn matches(command: clap::Command, words: &[OsString]) -> Result<ArgMatches, String> {
    command
        .try_get_matches_from(words)
        .map_err(|error| match error.kind() {
            clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion => {
                error.exit()
            }
            clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => error.exit(),
            _ => one_line(&error.to_string()),
        })
}

/// All flags with their values, as lines of a configuration file, and where each was set unless in the file or nowhere.
fn effective(matches: &ArgMatches) -> String {
    let mut text = String::new();
    for key in file::keys() {
        let id = key.replace('-', "_");
        let Some(values) = matches.get_raw(&id) else {
            text.push_str(&format!("# {key} is not set\n"));
            continue;
        };
        let values: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
        let value = file::written(&values.join(","));
        let from = match matches.value_source(&id) {
            Some(ValueSource::CommandLine) => "  # flag",
            Some(ValueSource::EnvVariable) => "  # environment",
            _ => "",
        };
        text.push_str(&format!("{key} = {value}{from}\n"));
    }
    text
}

/// Clap explains in paragraphs; an operator's log wants one line. Usage and the pointer to `--help` go.
pub(super) fn one_line(text: &str) -> String {
    text.split("\n\n")
        .filter(|paragraph| {
            !paragraph.starts_with("Usage:") && !paragraph.starts_with("For more information")
        })
        .flat_map(str::lines)
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
        .trim_start_matches("error: ")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_server_flag_has_help_and_a_variable_of_the_same_name() {
        let command = Args::command();
        command.clone().debug_assert();
        for argument in command
            .get_arguments()
            .filter(|a| !["help", "version", "print_config"].contains(&a.get_id().as_str()))
        {
            let flag = argument.get_long().expect("server flags are long");
            let variable = format!("STRATAMQ_{}", flag.to_uppercase().replace('-', "_"));
            assert_eq!(
                argument.get_env().and_then(|v| v.to_str()),
                Some(variable.as_str()),
                "--{flag}"
            );
            assert!(argument.get_help().is_some(), "--{flag} has no help");
        }
    }

    #[test]
    fn a_bad_flag_is_answered_in_one_line_that_says_what_is_allowed() {
        for (flags, wanted) in [
            (
                vec!["--fsync", "sometimes"],
                "invalid value 'sometimes' for '--fsync <MODE>' [possible values: always, interval, never]",
            ),
            (
                vec!["--amqp-port", "70000"],
                "invalid value '70000' for '--amqp-port <PORT>': expected 0 to 65535, or off",
            ),
            (
                vec!["--segment-size", "big"],
                "invalid value 'big' for '--segment-size <SIZE>': expected bytes, or a number followed by KiB, MiB or GiB",
            ),
            (vec!["--xyzzy"], "unexpected argument '--xyzzy' found"),
        ] {
            let error =
                Args::try_parse_from(["stratamq"].iter().copied().chain(flags)).unwrap_err();
            assert_eq!(one_line(&error.to_string()), wanted);
        }
    }

    fn parsed(words: &[&str], file: &str) -> Result<Args, String> {
        let words = ["stratamq"].iter().chain(words);
        let words: Vec<OsString> = words.map(OsString::from).collect();
        parse_from(&words, |path| match path.to_str() {
            Some("there.toml") => Ok(file.to_owned()),
            _ => Err(io::ErrorKind::NotFound.into()),
        })
    }

    #[test]
    fn a_file_is_between_defaults_and_flags() {
        let file = "heartbeat = 7\namqp-port = 'off'\nlog = 'debug'\ndata-dir = 'elsewhere'";
        let args = parsed(&["--config", "there.toml", "--heartbeat", "9"], file).unwrap();
        assert_eq!(args.server.access.heartbeat, 9);
        assert_eq!(args.server.amqp_port, Port::Off);
        assert_eq!(args.server.log, "debug");
        assert_eq!(args.server.access.channel_max, 2047);
        assert_eq!(args.data_dir, Path::new("elsewhere"));
        // Commands find the data directory in it, too.
        let args = parsed(&["status", "--config", "there.toml"], file).unwrap();
        assert_eq!(args.data_dir, Path::new("elsewhere"));
        assert_eq!(
            parsed(&["--config", "gone.toml"], "").map(|_| ()),
            Err("cannot read gone.toml: entity not found".into())
        );
        assert!(parsed(&["--config", "there.toml"], "heartbeat = -1").is_err());
    }

    #[test]
    fn what_is_printed_can_be_used_as_the_file() {
        let file = "heartbeat = 7\nloopback-users = ['a', 'b']\ntls-cert = '/c \"x\"'";
        let words = ["--config", "there.toml", "--memory-limit", "70%"];
        let first = parsed(&words, file).unwrap().effective;
        for line in [
            "heartbeat = 7",
            "loopback-users = \"a,b\"",
            "memory-limit = \"70%\"  # flag",
            "# tls-key is not set",
        ] {
            assert!(first.lines().any(|found| found == line), "{line}: {first}");
        }
        let second = parsed(&words[..2], &first).unwrap().effective;
        assert_eq!(second, first.replace("  # flag", ""));
    }
}
