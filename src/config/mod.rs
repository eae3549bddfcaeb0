//! What was typed ([`args::Args`]) and what it means ([`Config`]).
//!
//! Flags win over environment variables (`STRATAMQ_...`), which win over the configuration file, which wins over
//! defaults. Everything is checked here, once; inside the broker no limit is optional and no text is compared.

pub mod access;
pub mod args;
pub mod commands;
mod file;
mod memory;
mod net_threads;
mod port;
mod size;

use std::net::IpAddr;
use std::path::PathBuf;

use access::{AccessConfig, TlsConfig};
pub use args::Args;
pub use commands::Command;
pub use memory::{MEMORY_LIMIT_MIN_BYTES, MemoryLimit};
pub use net_threads::NetThreads;
pub use port::Port;
pub use size::ByteSize;

/// When a commit is synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsyncMode {
    /// As soon as the previous sync ended.
    Always,
    /// At most once in so many milliseconds; confirms wait for it.
    Interval {
        /// Milliseconds between syncs.
        every_ms: u64,
    },
    /// Never for confirms: they survive a killed process, not a power cut.
    Never,
}

/// The validated configuration of a broker.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of the log, the checkpoints and the admin socket.
    pub data_dir: PathBuf,
    /// Address to listen on.
    pub bind: IpAddr,
    /// Port for AMQP in the clear.
    pub amqp_port: Port,
    /// AMQP over TLS.
    pub tls: Option<TlsConfig>,
    /// Logins and the limits of connections.
    pub access: AccessConfig,
    /// Commit policy.
    pub fsync: FsyncMode,
    /// Microseconds a commit is held open to gather more.
    pub commit_delay_us: u64,
    /// Soft cap of a batch.
    pub commit_max_bytes: u64,
    /// Milliseconds within which acknowledgements alone are synced.
    pub ack_fsync_ms: u64,
    /// Size of a segment file.
    pub segment_size_bytes: u64,
    /// Publishers are blocked while less is free; 0 for never.
    pub disk_free_limit_bytes: u64,
    /// What the process may take of the machine's memory.
    pub memory_limit: MemoryLimit,
    /// Threads that serve sockets.
    pub net_threads: NetThreads,
    /// Unsettled messages from which on a queue has an index file; 0 for every durable queue.
    pub queue_index_min_messages: u64,
    /// What to do about damaged data at the start.
    pub on_corruption: args::OnCorruptionArg,
    /// Whether messages get the time of their arrival.
    pub stamp_time: args::StampArg,
    /// Whether messages get the name of this broker.
    pub stamp_node: args::StampArg,
    /// Bytes a second that are read again in the background; 0 for none.
    pub scrub_rate_bytes: u64,
}

/// Smallest segment a user may ask for.
pub const SEGMENT_SIZE_MIN_BYTES: u64 = 1 << 20;
/// Largest segment: LSN offsets have 30 bits.
pub const SEGMENT_SIZE_MAX_BYTES: u64 = 1 << 30;
/// Longest sync interval: beyond a minute no client waits for its confirms.
pub const FSYNC_INTERVAL_MAX_MS: u64 = 60_000;
/// Longest a commit may be held open.
pub const COMMIT_DELAY_MAX_US: u64 = 1_000_000;
/// Smallest soft cap of a batch: one block.
pub const COMMIT_MAX_MIN_BYTES: u64 = 4096;
/// Largest soft cap of a batch: larger ones only add latency.
pub const COMMIT_MAX_MAX_BYTES: u64 = 64 << 20;

/// A value that cannot be used; the text is one line for the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

impl args::ServerArgs {
    /// Checks every flag by itself.
    pub(crate) fn check_each(&self) -> Result<(), ConfigError> {
        let segment_size_bytes = self.segment_size.0;
        check_range(
            "--segment-size",
            segment_size_bytes,
            SEGMENT_SIZE_MIN_BYTES,
            SEGMENT_SIZE_MAX_BYTES,
            "1MiB to 1GiB",
        )?;
        if !segment_size_bytes.is_multiple_of(4096) {
            return Err(ConfigError(format!(
                "invalid value '{segment_size_bytes}' for --segment-size: must be a multiple of 4KiB"
            )));
        }
        check_range(
            "--commit-delay-us",
            self.commit_delay_us,
            0,
            COMMIT_DELAY_MAX_US,
            "0 to 1000000",
        )?;
        check_range(
            "--commit-max-bytes",
            self.commit_max_bytes.0,
            COMMIT_MAX_MIN_BYTES,
            COMMIT_MAX_MAX_BYTES,
            "4KiB to 64MiB",
        )?;
        check_range(
            "--fsync-interval-ms",
            self.fsync_interval_ms,
            1,
            FSYNC_INTERVAL_MAX_MS,
            "1 to 60000",
        )?;
        check_range(
            "--ack-fsync-ms",
            self.ack_fsync_ms,
            0,
            FSYNC_INTERVAL_MAX_MS,
            "0 to 60000",
        )?;
        if let MemoryLimit::Bytes(bytes) = self.memory_limit
            && bytes < MEMORY_LIMIT_MIN_BYTES
        {
            let min = ByteSize(MEMORY_LIMIT_MIN_BYTES);
            return Err(ConfigError(format!(
                "invalid value '{bytes}' for --memory-limit: at least {min} is needed for buffers alone"
            )));
        }
        self.tls.check_each()?;
        AccessConfig::from_args(&self.access).map(drop)
    }
}

impl Config {
    /// Checks what was typed.
    ///
    /// # Errors
    /// One line that names the flag, the value and what is allowed.
    pub fn from_args(args: &args::ServerArgs, data_dir: PathBuf) -> Result<Self, ConfigError> {
        args.check_each()?;
        let access = AccessConfig::from_args(&args.access)?;
        access.check_with_segments(args.segment_size.0)?;
        let tls = args.tls.listener()?;
        access.check_with_tls(tls.as_ref())?;
        if args.amqp_port == Port::Off && tls.is_none() {
            let text = "--amqp-port and --tls-port are both off: nobody could connect";
            return Err(ConfigError(text.to_owned()));
        }
        let fsync = match args.fsync {
            args::FsyncArg::Always => FsyncMode::Always,
            args::FsyncArg::Interval => FsyncMode::Interval {
                every_ms: args.fsync_interval_ms,
            },
            args::FsyncArg::Never => FsyncMode::Never,
        };
        Ok(Self {
            data_dir,
            bind: args.bind,
            amqp_port: args.amqp_port,
            tls,
            access,
            fsync,
            commit_delay_us: args.commit_delay_us,
            commit_max_bytes: args.commit_max_bytes.0,
            ack_fsync_ms: args.ack_fsync_ms,
            segment_size_bytes: args.segment_size.0,
            disk_free_limit_bytes: args.disk_free_limit.0,
            memory_limit: args.memory_limit,
            net_threads: args.net_threads,
            queue_index_min_messages: args.queue_index_min_messages,
            on_corruption: args.on_corruption,
            stamp_time: args.stamp_time,
            stamp_node: args.stamp_node,
            scrub_rate_bytes: args.scrub_rate.0,
        })
    }
}

fn check_range(
    flag: &str,
    value: u64,
    min: u64,
    max: u64,
    allowed: &str,
) -> Result<(), ConfigError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(ConfigError(format!(
        "invalid value '{value}' for {flag}: allowed is {allowed}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[track_caller]
    fn check(flags: &[&str], expected: Result<(), &str>) {
        let args = Args::try_parse_from([&["stratamq"], flags].concat()).unwrap();
        let outcome = Config::from_args(&args.server, PathBuf::from("d"));
        assert_eq!(
            outcome.map(|_| ()).map_err(|e| e.0),
            expected.map_err(str::to_owned)
        );
    }

    #[test]
    fn limits_are_named_when_a_value_is_outside() {
        check(&[], Ok(()));
        check(
            &[
                "--segment-size",
                "1MiB",
                "--fsync",
                "interval",
                "--fsync-interval-ms",
                "50",
            ],
            Ok(()),
        );
        check(
            &["--segment-size", "64KiB"],
            Err("invalid value '65536' for --segment-size: allowed is 1MiB to 1GiB"),
        );
        check(
            &["--segment-size", "1048577"],
            Err("invalid value '1048577' for --segment-size: must be a multiple of 4KiB"),
        );
        check(
            &["--fsync-interval-ms", "0"],
            Err("invalid value '0' for --fsync-interval-ms: allowed is 1 to 60000"),
        );
        check(
            &["--commit-max-bytes", "1"],
            Err("invalid value '1' for --commit-max-bytes: allowed is 4KiB to 64MiB"),
        );
        check(
            &["--memory-limit", "1MiB"],
            Err(
                "invalid value '1048576' for --memory-limit: at least 64MiB is needed for buffers alone",
            ),
        );
        check(
            &["--frame-max", "4096"],
            Err("invalid value '4096' for --frame-max: allowed is 8KiB to 16MiB"),
        );
        check(
            &["--channel-max", "0"],
            Err("invalid value '0' for --channel-max: allowed is 1 to 65535"),
        );
    }

    #[test]
    fn flags_that_need_each_other_are_named() {
        check(
            &["--amqp-port", "off"],
            Err("--amqp-port and --tls-port are both off: nobody could connect"),
        );
        check(
            &["--tls-port", "5671", "--tls-key", "k"],
            Err("--tls-cert is missing: --tls-port needs it"),
        );
        check(
            &["--tls-port", "5671", "--tls-cert", "c"],
            Err("--tls-key is missing: --tls-port needs it"),
        );
        let listener = ["--tls-port", "5671", "--tls-cert", "c", "--tls-key", "k"];
        check(&listener, Ok(()));
        check(
            &[&listener[..], &["--tls-verify", "require"]].concat(),
            Err("--tls-ca is missing: --tls-verify optional and require need it"),
        );
        check(
            &["--max-message-size", "64MiB", "--segment-size", "256MiB"],
            Ok(()),
        );
        check(
            &["--max-message-size", "64MiB"],
            Err(
                "invalid value '64MiB' for --max-message-size: a message is at most a quarter of --segment-size, 16MiB",
            ),
        );
        check(&["--segment-size", "1MiB"], Ok(()));
        check(
            &[&listener[..], &["--auth-mechanisms", "PLAIN,EXTERNAL"]].concat(),
            Err(
                "EXTERNAL in --auth-mechanisms needs --tls-port, and --tls-verify optional or require",
            ),
        );
    }
}
