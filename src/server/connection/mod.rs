//! One client connection: a task that owns the socket, the session and the domain's side of it.
//!
//! ```text
//!          +-------------------- Connection task --------------------+
//!  socket -> input -> Session --Event--> broker::Connection          |
//!  socket <- output <- Session <-Reply--       |  Effects -> Hub     |
//!          |             ^---- Outbox <--- queues of all connections |
//!          +---------------------------------------------------------+
//! ```
//! Every wake-up (socket, outbox, watermark, timer, shutdown) runs the same round: take in, act, give out.
//! A panic in it closes this connection with 541 and hurts nobody else.

mod buffers;
mod publishing;
mod reading;
mod round;
mod transport;

use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::Interest;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::clients::Place;
use super::hub::Hub;
use crate::broker::Connection as BrokerConnection;
use crate::broker::User;
use crate::broker::command::{Command, Publish, Published, Unacked};
use crate::broker::effects::Effects;
use crate::broker::outbox::{Outbox, OutboxItems, OutboxPlace, Wake};
use crate::session::{Event, Login, OUTPUT_HIGH_BYTES, Session, SessionOptions};
use crate::storage::types::Lsn;
use crate::telemetry::Counters;
use reading::Reading;
pub(super) use transport::Transport;

/// Who published within this time counts as a publisher when memory is scarce, as in RabbitMQ.
const PUBLISHER_MS: u64 = 5_000;
/// How often a blocked connection is looked at whose client may be gone: its socket is not read, so nothing says so.
const BLOCKED_POLL: Duration = Duration::from_secs(1);
/// Without anything to do for this long, a connection that moved messages, or much else, gives its buffers back: a busy one
/// goes on with what it has. Any other connection gives them back before it waits, as thousands may log in at a time.
const REST_AFTER: Duration = Duration::from_millis(200);
/// How long a finished socket may take nothing of the last bytes.
const FINAL_WRITE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long it may take to swallow all of them.
const FINAL_WRITE_MAX: Duration = Duration::from_secs(60);

/// Wakes a connection's task.
#[derive(Debug)]
struct TaskWake(Arc<Notify>);

impl Wake for TaskWake {
    fn wake(&self) {
        self.0.notify_one();
    }
}

/// What a look at the socket ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Socket {
    /// It has nothing now.
    Drained,
    /// It may have more.
    HasMore,
    /// It has ended.
    Ended,
}

/// Everything a connection's task owns but the socket.
struct ConnectionTask {
    hub: Arc<Hub>,
    peer: SocketAddr,
    session: Session,
    input: BytesMut,
    reading: Reading,
    notify: Arc<Notify>,
    outbox: Arc<Outbox>,
    /// Version of TLS; `None` in the clear.
    tls_version: Option<&'static str>,
    /// The user, between login and open, and how it logged in.
    user: Option<(User, Login)>,
    /// Its place among the connections that may be open, from open to the end.
    place: Option<Place>,
    /// The domain's side, from open to the end.
    domain: Option<BrokerConnection>,
    /// What is registered with the watermark.
    waits_for: Option<Lsn>,
    effects: Effects,
    /// From the outbox.
    items: OutboxItems,
    /// So far they were given to the session.
    items_done: OutboxPlace,
    /// The next of them is being given to the session.
    is_item_in_hand: bool,
    /// The command that the domain is carrying out.
    command_in_hand: Option<Command>,
    /// What a panic dropped: to be given back.
    dropped: Vec<Unacked>,
    batch: Vec<Publish>,
    /// What comes behind `batch` and waits with it.
    held_event: Option<Event>,
    published: Vec<Published>,
    /// Messages have come or gone, or a buffer of the thread was read into, since the last rest: more may follow soon. The
    /// capacities of the lists do not say it, since full ones are swapped for others.
    is_busy: bool,
    /// It has published, and what that brought about is not carried out yet.
    has_published: bool,
    /// Something was read since publishers were last looked at.
    has_read: bool,
    /// When the client last published, Unix milliseconds; 0 for never.
    published_at_ms: u64,
    /// Its socket is not read until then, Unix milliseconds: it publishes while memory is scarce.
    paused_until_ms: u64,
}

/// Serves `transport` until it ends. `shutdown` turns true when the broker stops.
pub(super) async fn serve(
    hub: Arc<Hub>,
    mut transport: Transport,
    peer: SocketAddr,
    options: SessionOptions,
    mut shutdown: watch::Receiver<bool>,
) {
    Counters::add(&hub.counters.connections_opened, 1);
    let mut task = ConnectionTask::new(Arc::clone(&hub), peer, options);
    task.tls_version = transport.tls_version();
    let outcome = task.run(&mut transport, &mut shutdown).await;
    match outcome {
        Ok(()) => tracing::debug!(%peer, "connection ended"),
        Err(error) => tracing::info!(%peer, %error, "connection lost"),
    }
    task.wait_for_room().await;
    task.end();
    finish_writing(&mut transport, &mut task.session).await;
    Counters::add(&hub.counters.connections_closed, 1);
}

/// Gives the last bytes (a close frame, close-ok) a bounded time to leave.
async fn finish_writing(transport: &mut Transport, session: &mut Session) {
    let write = async {
        loop {
            if transport.write(session.output()).is_err() {
                return;
            }
            if session.output().is_empty() {
                // Only here is it sure that nothing follows.
                transport.say_goodbye();
            }
            let is_done = session.output().is_empty() && !transport.has_unwritten();
            let ready = transport.ready(Interest::WRITABLE);
            if is_done
                || !matches!(
                    tokio::time::timeout(FINAL_WRITE_TIMEOUT, ready).await,
                    Ok(Ok(_))
                )
            {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(FINAL_WRITE_MAX, write).await;
}

impl ConnectionTask {
    fn new(hub: Arc<Hub>, peer: SocketAddr, options: SessionOptions) -> Self {
        let notify = Arc::new(Notify::new());
        let now_ms = hub.now_ms();
        let outbox_limit = Arc::clone(hub.memory.outbox_limit());
        Self {
            hub,
            peer,
            session: Session::new(options, now_ms),
            input: BytesMut::new(),
            reading: Reading::default(),
            outbox: Arc::new(Outbox::within(
                Box::new(TaskWake(Arc::clone(&notify))),
                outbox_limit,
            )),
            notify,
            tls_version: None,
            user: None,
            place: None,
            domain: None,
            waits_for: None,
            effects: Effects::default(),
            items: OutboxItems::default(),
            items_done: OutboxPlace::default(),
            is_item_in_hand: false,
            command_in_hand: None,
            dropped: Vec::new(),
            batch: Vec::new(),
            held_event: None,
            published: Vec::new(),
            is_busy: false,
            has_published: false,
            has_read: false,
            published_at_ms: 0,
            paused_until_ms: 0,
        }
    }

    async fn run(
        &mut self,
        transport: &mut Transport,
        shutdown: &mut watch::Receiver<bool>,
    ) -> io::Result<()> {
        let mut is_shutting_down = false;
        let mut timer = std::pin::pin!(tokio::time::sleep(self.sleep_duration()));
        let mut alarm = self.hub.alarms.subscribe();
        self.session.set_alarm(self.hub.alarms.reason());
        loop {
            let socket = self.read_some(transport)?;
            if std::mem::take(&mut self.has_read) {
                self.pause_publisher();
            }
            let is_eof = socket == Socket::Ended;
            if is_eof {
                self.session.handle_eof();
            }
            self.guarded(Self::round);
            let written = transport.write(self.session.output());
            buffers::take_back(self.session.output());
            written?;
            let is_written = self.session.output().is_empty() && !transport.has_unwritten();
            if is_eof || self.session.is_finished() {
                // What is left is written for as long as the client takes it.
                return Ok(());
            }
            let has_unread = socket == Socket::HasMore && self.wants_input();
            let is_told = !is_shutting_down && shutdown.has_changed().unwrap_or(true);
            if (has_unread || self.has_more_to_do()) && !is_told {
                // Others first: the connections just woken wait behind this task on the same thread.
                tokio::task::yield_now().await;
                continue;
            }
            let mut timeout = self.sleep_duration();
            if self.session.is_blocked_unfinished() {
                if transport.is_closed_by_peer().await {
                    return Ok(());
                }
                timeout = timeout.min(BLOCKED_POLL);
            }
            let is_resting_soon = self.is_busy && self.has_spare();
            if is_resting_soon {
                timeout = timeout.min(REST_AFTER);
            } else if !self.is_busy {
                self.rest();
            }
            let interest = self.interest(is_written);
            let due_at = Instant::now() + timeout;
            // It is set only to an earlier time: when it rings too early, this loop looks again and sets it anew. So a
            // connection that is never idle for long hardly ever touches the timers that all share.
            if timer.is_elapsed() || due_at < timer.deadline() {
                timer.as_mut().reset(due_at);
            }
            tokio::select! {
                ready = transport.ready(interest.unwrap_or(Interest::WRITABLE)), if interest.is_some() => { ready?; }
                () = self.notify.notified() => {}
                () = timer.as_mut() => {
                    if is_resting_soon && Instant::now() >= due_at {
                        self.rest();
                    }
                }
                Ok(()) = alarm.changed() => {
                    let reason = *alarm.borrow_and_update();
                    self.session.set_alarm(reason);
                }
                changed = shutdown.changed(), if !is_shutting_down => {
                    // A closed channel means the server is gone: the same as a shutdown.
                    let _ = changed;
                    is_shutting_down = true;
                    self.session.begin_shutdown("broker forced connection closure with reason 'shutdown'");
                }
            }
        }
    }

    /// True when [`rest`](Self::rest) would give something back.
    fn has_spare(&self) -> bool {
        let spare = |len: usize, capacity: usize| len == 0 && capacity > 0;
        self.session.has_spare()
            || self.items.is_spare()
            || spare(self.batch.len(), self.batch.capacity())
            || self.published.capacity() > 0
            || self.effects.has_spare()
            || (self.is_busy && buffers::is_any())
    }

    /// Gives back the memory that only a busy connection needs.
    fn rest(&mut self) {
        self.session.rest();
        self.effects.rest();
        if !std::mem::take(&mut self.is_busy) {
            return;
        }
        self.outbox.rest();
        buffers::rest();
        if self.items.is_empty() {
            self.items = OutboxItems::default();
        }
        if self.batch.is_empty() {
            self.batch = Vec::new();
        }
        self.published = Vec::new();
    }

    /// What to wait for on the socket; `None` for nothing.
    fn interest(&self, is_written: bool) -> Option<Interest> {
        match (self.wants_input(), is_written) {
            (true, true) => Some(Interest::READABLE),
            (true, false) => Some(Interest::READABLE | Interest::WRITABLE),
            (false, false) => Some(Interest::WRITABLE),
            (false, true) => None,
        }
    }

    /// Reads while the session takes input and the client takes output: a client that does not read
    /// its deliveries and answers is not read either.
    fn wants_input(&self) -> bool {
        self.session.wants_input()
            && self.session.output_len() < OUTPUT_HIGH_BYTES
            && !self.is_paused()
    }

    fn is_paused(&self) -> bool {
        self.paused_until_ms != 0 && self.hub.now_ms() < self.paused_until_ms
    }

    /// A client that publishes while memory is scarce is read again after a pause.
    fn pause_publisher(&mut self) {
        self.paused_until_ms = 0;
        let pause = self.hub.publisher_pause();
        if pause.is_zero() {
            return;
        }
        let now_ms = self.hub.now_ms();
        if self.published_at_ms + PUBLISHER_MS > now_ms {
            let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
            self.paused_until_ms = now_ms.saturating_add(pause_ms);
        }
    }

    fn sleep_duration(&self) -> Duration {
        let now_ms = self.hub.now_ms();
        let mut due_at_ms = self.session.poll_timeout().unwrap_or(now_ms + 60_000);
        if self.paused_until_ms > now_ms {
            due_at_ms = due_at_ms.min(self.paused_until_ms);
        }
        Duration::from_millis(due_at_ms.saturating_sub(now_ms))
    }

    /// True when the session left input in the buffer that it would take now, or the outbox held more
    /// than fitted.
    fn has_more_to_do(&self) -> bool {
        (!self.items.is_empty() && self.takes_deliveries())
            || (self.session.has_stalled_input() && self.wants_input())
    }

    /// The output is short enough for more of the outbox: less of it when memory is scarce.
    fn takes_deliveries(&self) -> bool {
        self.session.output_len() < self.deliveries_max_bytes()
    }

    /// How long the output may become by deliveries.
    fn deliveries_max_bytes(&self) -> usize {
        let outbox_bytes = self.hub.memory.outbox_limit().max_bytes();
        OUTPUT_HIGH_BYTES.min(2 * outbox_bytes)
    }

    /// Runs a part of this connection's own code; a panic in it becomes the end of this connection.
    fn guarded(&mut self, part: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| part(self))).is_err() {
            tracing::error!(peer = %self.peer, "a panic in the code of this connection; closing it");
            Counters::add(&self.hub.counters.connection_panics, 1);
            self.drop_in_hand();
            self.session.fail_internally();
        }
    }

    /// After a panic: what was in hand is not tried again, but given back when the connection ends.
    fn drop_in_hand(&mut self) {
        self.batch.clear();
        if let Some(command) = self.command_in_hand.take() {
            self.dropped.extend(command.into_unacked());
        }
        let is_item_in_hand = std::mem::take(&mut self.is_item_in_hand);
        self.items.drop_done(&mut self.items_done);
        if is_item_in_hand
            && let Some(delivery) = self.items.take_first()
            && !delivery.is_settled
            && !self.session.holds_last(&delivery)
        {
            self.dropped.push(delivery.unacked());
        }
    }
}

/// A task that is dropped before its end (at shutdown, or by a panic outside of what is guarded) must not leave
/// consumers behind that nobody serves.
impl Drop for ConnectionTask {
    fn drop(&mut self) {
        self.close_domain();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of what a function that makes a future makes.
    fn future_bytes<A, B, C, D, E, F>(_: fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_task_fits_into_four_kibibytes() {
        // The allocator's next size is 5 KiB, and the runtime adds up to 128 bytes.
        let bytes = future_bytes(serve);
        assert!(bytes <= 3968 - 256, "{bytes}");
    }
}
