//! The running broker: listener, connection tasks, the threads behind them, start and stop.
//!
//! ```text
//!  stratamq-net      (tokio) connection tasks, admin socket; what may take long there is done on a thread of tokio's
//!                    blocking pool, for one such thread may serve everybody; whom a connection wakes may wait for the
//!                    others that are ready (`wakes`)
//!  main              accept loop
//!  stratamq-commit   (storage) writes and syncs batches          -> Signals -> tasks, worker
//!  stratamq-worker   timers of queues, continuations on durability
//!  stratamq-read-N   message bodies from disk
//!  stratamq-ckpt     checkpoints
//!  stratamq-disk     a look at the free disk space every now and then
//!  stratamq-memory   messages out of memory, when they take too much of it
//!  stratamq-space    (storage) the next segment, and the reserve
//!  stratamq-sizes    sizes of messages that a limit begins to count
//!  stratamq-scrub    reads the store again, to find damage early
//! ```
//! Start: recover, then listen. Stop: stop accepting, close connections with 320, commit, checkpoint.
//! A clean stop is only a checkpoint at the end: the next start takes the same path as after a crash.

pub mod admin;
mod alarms;
mod checkpointer;
pub mod clients;
mod connection;
mod descriptors;
mod hub;
mod journal;
mod length_limits;
mod listeners;
mod memory;
pub mod pacing;
mod read_buffers;
mod readers;
mod scrubber;
mod signals;
mod start;
pub mod status;
mod tls;
mod wakes;
mod worker;

use std::io;
use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::{Notify, watch};

use crate::config::Config;
use crate::config::access::MechanismArg;
use crate::session::{ChannelBudget, External, Mechanisms, SessionOptions};
use checkpointer::Checkpointer;
use connection::Transport;
use hub::Hub;
pub use journal::StorageJournal;
use listeners::{Accepted, Sockets};
pub use start::StartError;
use tls::Tls;

/// Connections get this long to answer 320 before their sockets are closed.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(4);
/// Tasks that are still there get this long to come to a point where they can be dropped.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after a failed accept (out of file descriptors): wait for some to be closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Pause after a connection for which there is no file descriptor to spare.
const REFUSE_PAUSE: Duration = Duration::from_millis(10);
/// Contents that a connection has not finished may take at most this part of the memory limit: one in so many.
const UNFINISHED_SHARE: u64 = 8;

/// Runs a broker until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start; nothing listens then.
pub fn run(config: &Config) -> Result<(), StartError> {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(config.net_threads.resolve(processors))
        .thread_name("stratamq-net")
        .build()
        .map_err(|error| StartError::Failed(format!("cannot start network threads: {error}")))?;
    // Before recovery: a port that is taken and a certificate that is none are known at once and change nothing on
    // disk. The sockets listen only after recovery.
    let tls = config.tls.clone().map(Tls::new).transpose()?;
    let tls = tls.map(Arc::new);
    let sockets = runtime.block_on(async { Sockets::bind(config) })?;
    if let Some(tls) = &tls {
        let reloads = runtime.block_on(async { reload_on_hangup(Arc::clone(tls)) });
        reloads.map_err(|error| StartError::Failed(format!("cannot await SIGHUP: {error}")))?;
    }
    let hub = start::start(config)?;
    let threads = spawn_threads(&hub)?;
    let mut checkpointer = Checkpointer::spawn(&hub, config.scrub_rate_bytes)
        .map_err(|error| StartError::Failed(format!("cannot start a thread: {error}")))?;
    let gate = admin::Gate::default();
    let outcome = runtime.block_on(serve(config, &hub, sockets, tls, Arc::clone(&gate)));
    // A checkpoint may be waiting for room.
    hub.storage.stop_waiting_for_room();
    checkpointer.stop();
    hub.stop_threads();
    for thread in threads {
        // A panic there has already been reported; stopping goes on.
        let _ = thread.join();
    }
    // Requests of operators end before the store does, and no more begin. They wait for nothing but locks.
    let _no_requests = runtime.block_on(gate.write());
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

fn spawn_threads(hub: &Arc<Hub>) -> Result<Vec<JoinHandle<()>>, StartError> {
    let failed = |error: io::Error| StartError::Failed(format!("cannot start a thread: {error}"));
    let mut threads = Vec::new();
    let worker_hub = Arc::clone(hub);
    threads
        .push(named("stratamq-worker".into(), move || worker::run(&worker_hub)).map_err(failed)?);
    threads.push(memory::spawn(hub).map_err(failed)?);
    let sizes_hub = Arc::clone(hub);
    let measure = move || length_limits::run(&sizes_hub);
    threads.push(named("stratamq-sizes".into(), measure).map_err(failed)?);
    // What is in index files was not measured by the start.
    hub.measuring().request();
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
async fn serve(
    config: &Config,
    hub: &Arc<Hub>,
    sockets: Sockets,
    tls: Option<Arc<Tls>>,
    gate: admin::Gate,
) -> io::Result<()> {
    let listeners = sockets.listen(tls)?;
    let admin = admin::listen(&config.data_dir, Arc::clone(hub), gate)?;
    let mut signals = Signals::new()?;
    start::print_banner(config, hub, &listeners)?;
    let waking = Arc::clone(hub);
    tokio::spawn(async move { waking.wakes.run(&waking.storage).await });
    let (stop, stopped) = watch::channel(false);
    let live = Arc::new(LiveConnections::default());
    let sockets_max = descriptors::sockets_max();
    let options = session_options(config, hub);
    loop {
        tokio::select! {
            accepted = listeners.accept() => match accepted {
                Ok(accepted) if live.count() >= sockets_max => {
                    tracing::warn!(peer = %accepted.peer, sockets_max, "too many sockets for the limit of open files; one is closed");
                    drop(accepted);
                    // Whoever connects without end is not answered without end.
                    tokio::time::sleep(REFUSE_PAUSE).await;
                }
                Ok(accepted) => accept(hub, config, &options, accepted, stopped.clone(), &live),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            () = signals.wait() => break,
        }
    }
    drop(listeners);
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

/// What all sessions are told.
fn session_options(config: &Config, hub: &Hub) -> SessionOptions {
    let access = &config.access;
    let has = |mechanism| access.mechanisms.contains(&mechanism);
    let group_max_bytes = hub.storage.group_max_bytes();
    let message_max_bytes = access.message_max_bytes.min(group_max_bytes);
    let share_bytes = hub.memory.limit_bytes() / UNFINISHED_SHARE;
    let defaults = SessionOptions::default();
    let channels_max = access.channels_max;
    SessionOptions {
        product: access.product.clone(),
        version: access.product_version.clone(),
        mechanisms: Mechanisms {
            is_plain: has(MechanismArg::Plain),
            is_amqplain: has(MechanismArg::AmqPlain),
            anonymous_user: has(MechanismArg::Anonymous).then(|| access.anonymous_user.clone()),
            external: External::Off,
        },
        channel_budget: channels_max.map(|max| Arc::new(ChannelBudget::new(max))),
        channel_consumers_max: access.channel_consumers_max,
        consumer_timeout_ms: access.consumer_timeout_ms,
        default_prefetch: access.default_prefetch,
        channel_max: access.channel_max,
        frame_max_bytes: access.frame_max_bytes,
        heartbeat_secs: access.heartbeat_secs,
        message_max_bytes,
        unfinished_max_bytes: defaults
            .unfinished_max_bytes
            .min(share_bytes)
            .max(message_max_bytes * 2),
        tx_max_bytes: defaults.tx_max_bytes.min(group_max_bytes),
        handshake_timeout_ms: access.handshake_timeout_ms,
        linger_ms: access.login_delay_ms,
        close_timeout_ms: access.close_timeout_ms,
        ..defaults
    }
}

/// Starts the task of a connection.
fn accept(
    hub: &Arc<Hub>,
    config: &Config,
    options: &SessionOptions,
    accepted: Accepted,
    mut stopped: watch::Receiver<bool>,
    live: &Arc<LiveConnections>,
) {
    let Accepted { stream, peer, tls } = accepted;
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "cannot set TCP_NODELAY");
    }
    let local = stream.local_addr();
    let spared = local.and_then(|local| pacing::spare(SockRef::from(&stream), local, peer));
    if let Err(error) = spared {
        tracing::debug!(%peer, %error, "cannot set TCP_CONGESTION");
    }
    let mut seed = [0; 16];
    if let Err(error) = getrandom::fill(&mut seed) {
        tracing::error!(%error, "no randomness; refusing a connection");
        return;
    }
    let mut options = SessionOptions {
        tag_seed: u128::from_le_bytes(seed),
        ..options.clone()
    };
    let is_external = config.access.mechanisms.contains(&MechanismArg::External);
    let guard = live.enter();
    let hub = Arc::clone(hub);
    tokio::spawn(async move {
        let _guard = guard;
        let transport = match tls {
            None => Transport::plain(stream),
            Some(tls) => {
                let Some(transport) = secure(&tls, stream, peer, &mut stopped).await else {
                    return;
                };
                if is_external {
                    options.mechanisms.external = tls.owner_of(transport.peer_certificate());
                }
                transport
            }
        };
        connection::serve(hub, transport, peer, options, stopped).await;
    });
}

/// The TLS handshake, within its time; `None` when there is nobody to serve afterwards.
async fn secure(
    tls: &Tls,
    stream: TcpStream,
    peer: SocketAddr,
    stopped: &mut watch::Receiver<bool>,
) -> Option<Transport> {
    let connection = tls.accept();
    let connection = connection
        .inspect_err(|error| tracing::error!(%error, "cannot begin a TLS handshake"))
        .ok()?;
    let mut transport = Transport::tls(stream, connection);
    let limit = Duration::from_millis(tls.settings().handshake_timeout_ms);
    let outcome = tokio::select! {
        outcome = tokio::time::timeout(limit, transport.shake_hands()) => outcome,
        _ = stopped.changed() => return None,
    };
    match outcome {
        Ok(Ok(())) => return Some(transport),
        // A probe of a load balancer, mostly.
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            tracing::debug!(%peer, "gone before the end of the TLS handshake");
        }
        Ok(Err(error)) => tracing::info!(%peer, %error, "TLS handshake failed"),
        Err(_) => tracing::info!(%peer, ?limit, "TLS handshake not done in time"),
    }
    None
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

/// SIGTERM and SIGINT. Before the broker serves they end the process at once: a recovery may take long, and one that is cut off
/// is taken up by the next start.
struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: unix::signal(SignalKind::terminate())?,
            interrupt: unix::signal(SignalKind::interrupt())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Has certificates read again at every SIGHUP from now on, also before the broker serves; without certificates that signal
/// ends the process as it does others. To be called within the runtime.
fn reload_on_hangup(tls: Arc<Tls>) -> io::Result<()> {
    let mut hangup = unix::signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        // Signals that come while files are read make one more reading.
        while hangup.recv().await.is_some() {
            let tls = Arc::clone(&tls);
            // The files may lie on a file system that takes its time.
            let reload = tokio::task::spawn_blocking(move || tls.reload());
            if reload.await.is_err() {
                tracing::error!("a panic while TLS certificates were read again");
            }
        }
    });
    Ok(())
}
