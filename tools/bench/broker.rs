//! A StrataMQ of our own: started on a fresh directory, killed, started again, looked at.

use crate::clock::Clock;
use crate::connection::Connection;
use crate::error::BenchError;
use crate::process::Process;
use crate::raw::RawDisk;
use crate::url::Url;
use clap::Parser;
use rustix::fs::{Advice, fadvise};
use serde::Serialize;
use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;
use stratamq::config::{self, Config};
use stratamq::server::admin::{self, Request};
use stratamq::server::status::Status;
use tempfile::TempDir;

/// How often a broker that starts is tried.
const TRY_EVERY: Duration = Duration::from_millis(1);
/// A broker that does not accept after this is given up.
const START_MAX_SECS: u64 = 600;

/// Flags of every command that starts a broker of its own.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct OwnArgs {
    /// The broker's binary. Without it: the `stratamq` beside this program.
    #[arg(long, env = "STRATA_BENCH_BROKER")]
    broker: Option<PathBuf>,
    /// Where the data directories are made, and removed at the end; choose the disk to be measured.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    directory: PathBuf,
    /// Print one JSON object in place of the table.
    #[arg(long)]
    pub(crate) json: bool,
    /// Arguments for the broker, behind `--`.
    #[arg(last = true)]
    broker_arguments: Vec<OsString>,
}

impl OwnArgs {
    /// A directory that is removed when it is dropped.
    pub(crate) fn fresh_directory(&self) -> Result<TempDir, BenchError> {
        let what = || format!("making a directory in {}", self.directory.display());
        let mut builder = tempfile::Builder::new();
        let made = builder.prefix("strata-bench-").tempdir_in(&self.directory);
        made.map_err(BenchError::io(what()))
    }

    fn binary(&self) -> PathBuf {
        let beside = || {
            let own = std::env::current_exe().unwrap_or_default();
            own.with_file_name("stratamq")
        };
        self.broker.clone().unwrap_or_else(beside)
    }
}

/// A broker process and its data.
pub(crate) struct Broker {
    arguments: OwnArgs,
    directory: TempDir,
    port: u16,
    child: Option<Child>,
}

impl Broker {
    /// A broker that accepts connections, on a fresh directory, and what the disk can do.
    pub(crate) fn start(arguments: &OwnArgs) -> Result<(Self, RawDisk), BenchError> {
        let directory = arguments.fresh_directory()?;
        let raw = RawDisk::measure(directory.path())?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| listener.local_addr())
            .map_err(BenchError::io("looking for a free port"))?
            .port();
        let mut broker = Self {
            arguments: arguments.clone(),
            directory,
            port,
            child: None,
        };
        broker.spawn()?;
        broker.connect(Clock::start())?.close();
        Ok((broker, raw))
    }

    /// Starts the process; it may not accept yet.
    pub(crate) fn spawn(&mut self) -> Result<(), BenchError> {
        let binary = self.arguments.binary();
        let child = Command::new(&binary)
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(["--amqp-port", &self.port.to_string(), "--log", "warn"])
            .args(&self.arguments.broker_arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(BenchError::io(format!("starting {}", binary.display())))?;
        self.child = Some(child);
        Ok(())
    }

    /// The first connection that the process accepts, with a channel open.
    pub(crate) fn connect(&mut self, clock: Clock) -> Result<Connection, BenchError> {
        let give_up_ns = clock.now_ns() + START_MAX_SECS * 1_000_000_000;
        let url = self.url();
        loop {
            match Connection::open(&url) {
                Err(BenchError::Io { .. }) if clock.now_ns() < give_up_ns => {
                    self.check_running()?;
                    thread::sleep(TRY_EVERY);
                }
                opened => return opened,
            }
        }
    }

    fn check_running(&mut self) -> Result<(), BenchError> {
        let ended = self.child.as_mut().map(Child::try_wait);
        match ended {
            Some(Ok(Some(status))) => {
                let text = format!("the broker ended: {status}");
                Err(BenchError::Protocol(text))
            }
            _ => Ok(()),
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) -> Result<(), BenchError> {
        if let Some(mut child) = self.child.take() {
            child
                .kill()
                .and_then(|()| child.wait())
                .map_err(BenchError::io("killing the broker"))?;
        }
        Ok(())
    }

    pub(crate) fn url(&self) -> Url {
        let address = format!("amqp://127.0.0.1:{}", self.port);
        address.parse().expect("the address is well-formed")
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// The directory around the data: the same disk.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The process, for its use of the machine.
    pub(crate) fn process(&self) -> Process {
        Process::new(self.pid().unwrap_or(0))
    }

    /// What the broker says of itself.
    pub(crate) fn status(&self) -> Result<Status, BenchError> {
        status(&self.data_dir())
    }

    /// Files and bytes in the data directory.
    pub(crate) fn files(&self) -> Result<Files, BenchError> {
        let what = || format!("looking into {}", self.data_dir().display());
        let mut files = Files::default();
        files
            .count(&self.data_dir())
            .map_err(BenchError::io(what()))?;
        Ok(files)
    }

    /// Lets the kernel forget what it has read or written of the data, so that the next start reads the disk.
    pub(crate) fn drop_cache(&self) -> Result<(), BenchError> {
        drop_cache(&self.data_dir()).map_err(BenchError::io("dropping the page cache"))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // The directory goes with it; nobody is left to be told of a failure.
        let _ = self.kill();
    }
}

/// What lies in a directory, at any depth.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Files {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
}

impl Files {
    fn count(&mut self, directory: &Path) -> std::io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => self.count(&entry.path())?,
                Ok(metadata) => {
                    self.count += 1;
                    self.bytes += metadata.len();
                }
                // Removed meanwhile.
                Err(_) => {}
            }
        }
        Ok(())
    }
}

fn drop_cache(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            drop_cache(&entry.path())?;
        } else if kind.is_file() {
            let file = File::open(entry.path())?;
            // Only what is on the disk can be dropped.
            file.sync_all()?;
            fadvise(&file, 0, None, Advice::DontNeed)?;
        }
    }
    Ok(())
}

/// Counters of a broker's log.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct LogCounters {
    pub(crate) fdatasync_count: u64,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

impl LogCounters {
    /// What happened since `start`.
    pub(crate) fn since(self, start: Self) -> Self {
        Self {
            fdatasync_count: self.fdatasync_count.saturating_sub(start.fdatasync_count),
            messages: self.messages.saturating_sub(start.messages),
            bytes: self.bytes.saturating_sub(start.bytes),
        }
    }
}

/// The counters of the broker that runs on `data_dir`.
pub(crate) fn log_counters(data_dir: &Path) -> Result<LogCounters, BenchError> {
    let log = status(data_dir)?.log;
    Ok(LogCounters {
        fdatasync_count: log.fdatasync_count,
        messages: log.messages,
        bytes: log.bytes,
    })
}

fn status(data_dir: &Path) -> Result<Status, BenchError> {
    let refuse = |text: String| BenchError::Protocol(format!("its status: {text}"));
    let defaults = config::Args::parse_from(["stratamq"]);
    let config = Config::from_args(&defaults.server, data_dir.to_owned())
        .map_err(|error| refuse(error.to_string()))?;
    let answer = admin::run_command(&config, Request::Status);
    let answer = answer.map_err(|error| refuse(error.to_string()))?;
    serde_json::from_value(answer).map_err(|error| refuse(error.to_string()))
}
