//! The running broker: listener, connection tasks, the threads behind them, start and stop.
//!
//! ```text
//!  tokio threads     connection tasks, accept loop, admin socket
//!  stratamq-commit   (storage) writes and syncs batches          -> Signals -> tasks, worker
//!  stratamq-worker   timers of queues, continuations on durability
//!  stratamq-read-N   message bodies from disk
//!  stratamq-ckpt     checkpoints
//!  stratamq-disk     a look at the free disk space every now and then
//!  stratamq-memory   messages out of memory, when they take too much of it
//!  stratamq-space    (storage) the next segment, and the reserve
//!  stratamq-scrub    reads the store again, to find damage early
//! ```
//! Start: recover, then listen. Stop: stop accepting, close connections with 320, commit, checkpoint.
//! A clean stop is only a checkpoint at the end: the next start takes the same path as after a crash.

pub mod admin;
mod alarms;
mod checkpointer;
mod connection;
mod hub;
mod journal;
mod memory;
mod readers;
mod scrubber;
mod signals;
mod start;
pub mod status;
mod worker;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};

use crate::config::Config;
use crate::session::SessionOptions;
use checkpointer::Checkpointer;
use hub::Hub;
pub use start::StartError;

/// Connections get this long to answer 320 before their sockets are closed.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(4);
/// Tasks that are still there get this long to come to a point where they can be dropped.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after a failed accept (out of file descriptors): wait for some to be closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Contents that a connection has not finished may take at most this part of the memory limit: one in so many.
const UNFINISHED_SHARE: u64 = 8;
/// Connections waiting to be accepted, as RabbitMQ has it.
const LISTEN_BACKLOG: u32 = 128;

/// Runs a broker until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start; nothing listens then.
pub fn run(config: &Config) -> Result<(), StartError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("stratamq-net")
        .build()
        .map_err(|error| StartError::Failed(format!("cannot start network threads: {error}")))?;
    let address = SocketAddr::new(config.bind, config.amqp_port);
    // Before recovery: a port that is taken is known at once and changes nothing on disk. The socket
    // listens only after recovery.
    let socket = runtime
        .block_on(async { bind(address) })
        .map_err(|error| StartError::Failed(format!("cannot listen on {address}: {error}")))?;
    let hub = start::start(config)?;
    let threads = spawn_threads(&hub)?;
    let mut checkpointer = Checkpointer::spawn(&hub, config.scrub_rate_bytes)
        .map_err(|error| StartError::Failed(format!("cannot start a thread: {error}")))?;
    let outcome = runtime.block_on(serve(config, &hub, socket));
    // A checkpoint may be waiting for room.
    hub.storage.stop_waiting_for_room();
    checkpointer.stop();
    hub.stop_threads();
    for thread in threads {
        // A panic there has already been reported; stopping goes on.
        let _ = thread.join();
    }
    // Connections that did not answer in time end here: one that went on would deliver messages behind the back
    // of the last images, and the next start would hand them out again unmarked.
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    // From here on images of queues carry their exact delivery state.
    hub.broker.stop();
    let closed = hub.storage.close(&hub.broker);
    outcome.map_err(|error| StartError::Failed(format!("cannot serve: {error}")))?;
    closed.map_err(StartError::Storage)?;
    tracing::info!("stopped");
    Ok(())
}

fn bind(address: SocketAddr) -> io::Result<tokio::net::TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

fn spawn_threads(hub: &Arc<Hub>) -> Result<Vec<JoinHandle<()>>, StartError> {
    let failed = |error: io::Error| StartError::Failed(format!("cannot start a thread: {error}"));
    let mut threads = Vec::new();
    let worker_hub = Arc::clone(hub);
    threads
        .push(named("stratamq-worker".into(), move || worker::run(&worker_hub)).map_err(failed)?);
    threads.push(memory::spawn(hub).map_err(failed)?);
    for number in 0..readers::READER_THREADS {
        let reader_hub = Arc::clone(hub);
        let name = format!("stratamq-read-{number}");
        threads.push(named(name, move || readers::run(&reader_hub)).map_err(failed)?);
    }
    Ok(threads)
}

/// A thread that runs domain code. A panic in it would leave work undone for ever: so it aborts.
fn named(name: String, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name).spawn(move || {
        let body = std::panic::AssertUnwindSafe(body);
        if std::panic::catch_unwind(body).is_err() {
            tracing::error!("a panic in a thread of the broker; aborting, the next start recovers");
            std::process::abort();
        }
    })
}

/// Listens, prints that the broker is up, serves until a signal, then drains.
async fn serve(config: &Config, hub: &Arc<Hub>, socket: tokio::net::TcpSocket) -> io::Result<()> {
    let listener = socket.listen(LISTEN_BACKLOG)?;
    let admin = admin::listen(&config.data_dir, Arc::clone(hub))?;
    let mut signals = StopSignals::new()?;
    start::print_banner(config, hub, listener.local_addr()?);
    let (stop, stopped) = watch::channel(false);
    let live = Arc::new(LiveConnections::default());
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => spawn_connection(hub, stream, peer, stopped.clone(), Arc::clone(&live)),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            () = signals.wait() => break,
        }
    }
    drop(listener);
    tracing::info!(connections = live.count(), "stopping");
    // Receivers may all be gone: then there is nobody to tell.
    let _ = stop.send(true);
    if tokio::time::timeout(DRAIN_TIMEOUT, live.wait_until_none())
        .await
        .is_err()
    {
        tracing::warn!(
            connections = live.count(),
            "connections did not answer the close in time"
        );
    }
    admin.abort();
    Ok(())
}

fn spawn_connection(
    hub: &Arc<Hub>,
    stream: TcpStream,
    peer: SocketAddr,
    stopped: watch::Receiver<bool>,
    live: Arc<LiveConnections>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "cannot set TCP_NODELAY");
    }
    let mut seed = [0; 16];
    if let Err(error) = getrandom::fill(&mut seed) {
        tracing::error!(%error, "no randomness; refusing a connection");
        return;
    }
    let group_max_bytes = hub.storage.group_max_bytes();
    let defaults = SessionOptions::default();
    let message_max_bytes = defaults.message_max_bytes.min(group_max_bytes);
    let share_bytes = hub.memory.limit_bytes() / UNFINISHED_SHARE;
    let options = SessionOptions {
        tag_seed: u128::from_le_bytes(seed),
        message_max_bytes,
        unfinished_max_bytes: defaults
            .unfinished_max_bytes
            .min(share_bytes)
            .max(message_max_bytes * 2),
        tx_max_bytes: defaults.tx_max_bytes.min(group_max_bytes),
        ..defaults
    };
    let guard = live.enter();
    let hub = Arc::clone(hub);
    tokio::spawn(async move {
        let _guard = guard;
        let transport = connection::Transport::plain(stream);
        connection::serve(hub, transport, peer, options, stopped).await;
    });
}

/// Counts connection tasks, so that a stop can wait for them.
#[derive(Default)]
struct LiveConnections {
    count: AtomicUsize,
    changed: Notify,
}

impl LiveConnections {
    fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    fn enter(self: &Arc<Self>) -> LiveGuard {
        self.count.fetch_add(1, Ordering::SeqCst);
        LiveGuard(Arc::clone(self))
    }

    async fn wait_until_none(&self) {
        loop {
            let changed = self.changed.notified();
            if self.count() == 0 {
                return;
            }
            changed.await;
        }
    }
}

/// Leaves the count when the task ends, however it ends.
struct LiveGuard(Arc<LiveConnections>);

impl Drop for LiveGuard {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }
}

/// SIGTERM and SIGINT.
struct StopSignals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl StopSignals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
