//! A broker in a process of its own, for tests that look at it from outside: real sockets, real files, real signals.
//!
//! ```no_run
//! let mut broker = TestBroker::builder().arg("--fsync").arg("always").start();
//! publish_to(&broker.url());
//! broker.kill();                       // SIGKILL
//! broker.restart();                    // the same data directory and port
//! assert!(broker.terminate().success());
//! ```
//!
//! 1. A broker has a data directory and a port of its own, so tests run side by side.
//! 2. `start` returns when the broker has said `Server startup complete`; a broker that ends or is silent before that panics with
//!    everything it said.
//! 3. Whatever happens, the process is gone when the value is dropped, and a panicking test prints the broker's output.
//!
//! The binary is `STRATAMQ_TEST_BINARY` if that is set (`tests/run` names the release binary), else the one cargo built for the test.

#![allow(
    dead_code,
    unused_imports,
    reason = "each test binary includes this module and uses its own part of it"
)]

pub(crate) mod files;
pub(crate) mod numbered;
pub(crate) mod raw;
pub(crate) mod small_disk;
pub(crate) mod status;
pub(crate) mod wait;

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a broker may take to start, and to end after SIGTERM; generous, because test machines are busy.
pub(crate) const PROCESS_LIMIT: Duration = Duration::from_secs(60);
/// What the broker says when it takes connections.
const READY_LINE: &str = "Server startup complete";
/// How often a port that somebody else was quicker to take is replaced by another.
const PORT_ATTEMPTS_MAX: usize = 5;

/// The broker's executable.
pub(crate) fn broker_binary() -> PathBuf {
    std::env::var_os("STRATAMQ_TEST_BINARY").map_or_else(
        || PathBuf::from(env!("CARGO_BIN_EXE_stratamq")),
        PathBuf::from,
    )
}

/// A port nobody listens on at this moment.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("the loopback interface has a free port")
        .port()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the limits of real processes are real time"
)]
fn now() -> Instant {
    Instant::now()
}

/// What a broker will be started with.
pub(crate) struct Builder {
    wrapper: Vec<OsString>,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    data_dir: Option<PathBuf>,
    port: Option<u16>,
    binary: PathBuf,
}

impl Builder {
    /// Starts another executable than [`broker_binary`].
    pub(crate) fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary = path.into();
        self
    }

    /// Adds an argument of the broker.
    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Sets a variable in the broker's environment.
    pub(crate) fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let variable = (name.as_ref().to_owned(), value.as_ref().to_owned());
        self.environment.push(variable);
        self
    }

    /// Puts words before the broker's command line, such as `strace -f -o FILE`. Signals go to the wrapper's process: see
    /// [`TestBroker::broker_pid`] for the broker's own.
    pub(crate) fn wrapper<Word: AsRef<OsStr>>(mut self, words: &[Word]) -> Self {
        self.wrapper = words.iter().map(|word| word.as_ref().to_owned()).collect();
        self
    }

    /// Uses this directory, which outlives the broker, in place of a temporary one.
    pub(crate) fn data_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(path.into());
        self
    }

    /// Listens on this port in place of one chosen by the system.
    pub(crate) fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Starts the broker and waits until it takes connections.
    #[track_caller]
    pub(crate) fn start(self) -> TestBroker {
        match self.try_start() {
            Ok(broker) => broker,
            Err(complaint) => panic!("the broker did not start: {complaint}"),
        }
    }

    /// Starts the broker and waits until it takes connections; how it ended and what it said, if it does not.
    pub(crate) fn try_start(self) -> Result<TestBroker, String> {
        let temporary = tempfile::tempdir().expect("a temporary directory can be made");
        let data_dir = self
            .data_dir
            .clone()
            .unwrap_or_else(|| temporary.path().join("data"));
        let is_port_fixed = self.port.is_some();
        let mut broker = TestBroker {
            port: self.port.unwrap_or_else(free_port),
            settings: self,
            data_dir,
            _temporary: temporary,
            process: None,
            log: Arc::default(),
        };
        for _ in 0..PORT_ATTEMPTS_MAX {
            match broker.try_start() {
                Ok(()) => return Ok(broker),
                Err(StartError::PortTaken) if !is_port_fixed => broker.port = free_port(),
                Err(error) => return Err(format!("{error:?}\n{}", broker.log())),
            }
        }
        Err(format!("no free port in {PORT_ATTEMPTS_MAX} attempts"))
    }

    /// Runs a broker that is expected to end by itself (bad flags, locked or damaged directory), with its output.
    pub(crate) fn run_to_end(self) -> std::process::Output {
        let data_dir = self.data_dir.clone().expect("run_to_end names a data_dir");
        let port = self.port.unwrap_or_else(free_port);
        let mut process = self
            .command(&data_dir, port)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the broker's binary can be executed");
        // One that should have refused to start would run for ever.
        let end = now() + PROCESS_LIMIT;
        while process.try_wait().expect("it is ours").is_none() {
            if now() > end {
                process.kill().expect("it is ours");
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        process.wait_with_output().expect("it has ended")
    }

    fn command(&self, data_dir: &Path, port: u16) -> Command {
        let mut words = self.wrapper.clone();
        words.push(self.binary.clone().into_os_string());
        words.extend(["--data-dir".into(), data_dir.as_os_str().to_owned()]);
        words.extend(["--amqp-port".into(), port.to_string().into()]);
        words.extend(self.arguments.iter().cloned());
        let (program, arguments) = words.split_first().expect("the binary is always there");
        let mut command = Command::new(program);
        command
            .args(arguments)
            .envs(self.environment.iter().cloned());
        command
    }
}

#[derive(Debug)]
enum StartError {
    /// The port was taken between its choice and the broker's bind.
    PortTaken,
    /// The broker ended.
    Ended(ExitStatus),
    /// The broker runs but did not say that it is ready.
    Silent,
}

/// Lines of both output streams, in the order they were read.
#[derive(Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    arrived: Condvar,
}

impl Log {
    fn lines(&self) -> MutexGuard<'_, Vec<String>> {
        // The lines stay readable when a reader thread has panicked.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(self: Arc<Self>, stream: impl Read + Send + 'static) -> JoinHandle<()> {
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n') {
                // A stream that breaks ends like one that is closed.
                let Ok(line) = line else { return };
                self.lines()
                    .push(String::from_utf8_lossy(&line).into_owned());
                self.arrived.notify_all();
            }
        })
    }
}

struct Process {
    child: Child,
    readers: [JoinHandle<()>; 2],
    /// Where this process's lines begin in the log of all restarts.
    first_line: usize,
}

/// A broker, running or stopped; its data directory lives as long as this value.
pub(crate) struct TestBroker {
    settings: Builder,
    port: u16,
    data_dir: PathBuf,
    _temporary: tempfile::TempDir,
    process: Option<Process>,
    log: Arc<Log>,
}

impl TestBroker {
    /// A broker with default flags.
    #[track_caller]
    pub(crate) fn start() -> Self {
        Self::builder().start()
    }

    /// What to start, step by step.
    pub(crate) fn builder() -> Builder {
        Builder {
            wrapper: Vec::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
            data_dir: None,
            port: None,
            binary: broker_binary(),
        }
    }

    /// The executable.
    pub(crate) fn binary(&self) -> &Path {
        &self.settings.binary
    }

    /// The address for clients: user guest, vhost `/`.
    pub(crate) fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// A client with one channel open.
    #[track_caller]
    pub(crate) fn client(&self, channel: u16) -> raw::Client {
        let mut client = raw::Client::connect(self.address());
        client.open_channel(channel);
        client
    }

    /// The listener's address.
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// The directory the broker keeps its data in.
    pub(crate) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The started process: the broker, or its wrapper.
    #[track_caller]
    pub(crate) fn pid(&self) -> u32 {
        let process = self.process.as_ref().expect("the broker was started");
        process.child.id()
    }

    /// The broker's own process also when a wrapper started it (Linux: the wrapper's only child, or what it became).
    #[track_caller]
    pub(crate) fn broker_pid(&self) -> u32 {
        let pid = self.pid();
        if self.settings.wrapper.is_empty() {
            return pid;
        }
        let path = format!("/proc/{pid}/task/{pid}/children");
        let children = std::fs::read_to_string(path).expect("the wrapper runs");
        let mut words = children.split_whitespace();
        let child = words.next().and_then(|word| word.parse().ok());
        child.unwrap_or(pid)
    }

    /// All that the broker has said, over all restarts.
    pub(crate) fn log(&self) -> String {
        self.log.lines().join("\n")
    }

    /// Waits until the running process has said a line that contains `text`, and returns that line.
    #[track_caller]
    pub(crate) fn wait_for_line(&self, text: &str) -> String {
        let process = self.process.as_ref().expect("the broker was started");
        let from = process.first_line;
        match self.find_line(from, text, || false) {
            Some(line) => line,
            None => panic!("the broker did not say {text:?}:\n{}", self.log()),
        }
    }

    /// The first line from `from` on with `text` in it, as soon as there is one; `None` after the limit or when `gave_up`.
    fn find_line(&self, from: usize, text: &str, gave_up: impl Fn() -> bool) -> Option<String> {
        let deadline = now() + PROCESS_LIMIT;
        let mut lines = self.log.lines();
        loop {
            if let Some(line) = lines.iter().skip(from).find(|line| line.contains(text)) {
                return Some(line.clone());
            }
            if gave_up() || now() > deadline {
                return None;
            }
            // Short waits, since the end of the output is not announced.
            let waited = self
                .log
                .arrived
                .wait_timeout(lines, Duration::from_millis(20));
            lines = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sends SIGKILL to the broker and reaps it. Its data stays; see [`TestBroker::restart`].
    pub(crate) fn kill(&mut self) {
        let Some(mut process) = self.process.take() else {
            return;
        };
        if !self.settings.wrapper.is_empty() && matches!(process.child.try_wait(), Ok(None)) {
            self.process = Some(process);
            let broker = self.broker_pid();
            signal("KILL", broker);
            process = self.process.take().expect("put there three lines above");
        }
        // An error says that the process has ended already.
        let _ = process.child.kill();
        let _ = process.child.wait();
        for reader in process.readers {
            let _ = reader.join();
        }
    }

    /// Sends SIGTERM to the broker and waits for its end.
    #[track_caller]
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        signal("TERM", self.broker_pid());
        self.wait_for_exit()
    }

    /// Waits until the broker ends by itself.
    #[track_caller]
    pub(crate) fn wait_for_exit(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("the broker was started");
        let deadline = now() + PROCESS_LIMIT;
        loop {
            if let Some(status) = process.child.try_wait().expect("a child can be waited for") {
                for reader in process.readers {
                    let _ = reader.join();
                }
                return status;
            }
            if now() > deadline {
                self.process = Some(process);
                panic!(
                    "the broker did not end in {PROCESS_LIMIT:?}:\n{}",
                    self.log()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts the broker again on the same data and port; a broker that still runs is killed first.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.kill();
        if let Err(error) = self.try_start() {
            panic!("the broker did not restart: {error:?}\n{}", self.log());
        }
    }

    /// Starts the broker again and kills it after a while, wherever it is by then.
    pub(crate) fn restart_interrupted(&mut self, after: Duration) {
        self.kill();
        self.spawn();
        // No event to wait for: a moment in the middle of the start is the point.
        std::thread::sleep(after);
        self.kill();
    }

    /// Starts the broker again and waits for nothing.
    pub(crate) fn begin_restart(&mut self) {
        self.kill();
        self.spawn();
    }

    fn try_start(&mut self) -> Result<(), StartError> {
        let first_line = self.spawn();
        let process = self.process.as_ref().expect("put there just now");
        let has_ended = || process.readers.iter().all(JoinHandle::is_finished);
        if self.find_line(first_line, READY_LINE, has_ended).is_some() {
            return Ok(());
        }
        if !has_ended() {
            return Err(StartError::Silent);
        }
        let status = self.wait_for_exit();
        let lines = self.log.lines();
        let is_port_taken = lines
            .iter()
            .skip(first_line)
            .any(|line| line.contains("in use") && line.contains(&self.port.to_string()));
        Err(if is_port_taken {
            StartError::PortTaken
        } else {
            StartError::Ended(status)
        })
    }

    /// Starts the process and does not wait; where its lines begin in the log.
    fn spawn(&mut self) -> usize {
        let first_line = self.log.lines().len();
        let mut command = self.settings.command(&self.data_dir, self.port);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot execute {command:?}: {error}"));
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = child.stderr.take().expect("stderr is piped");
        let readers = [
            Arc::clone(&self.log).follow(stdout),
            Arc::clone(&self.log).follow(stderr),
        ];
        self.process = Some(Process {
            child,
            readers,
            first_line,
        });
        first_line
    }
}

impl Drop for TestBroker {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("---- the broker said:\n{}", self.log());
        }
    }
}

/// Sends a signal by name; the shell's own tool spares the tests an unsafe call.
#[track_caller]
pub(crate) fn signal(name: &str, pid: u32) {
    let mut command = Command::new("kill");
    let status = command
        .arg(format!("-{name}"))
        .arg(pid.to_string())
        .status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "cannot send {name} to process {pid}"
    );
}
