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

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};

use super::hub::Hub;
use crate::broker::Connection as BrokerConnection;
use crate::broker::User;
use crate::broker::command::{Command, Publish, Published, Unacked};
use crate::broker::effects::Effects;
use crate::broker::outbox::{Outbox, OutboxItem, Wake};
use crate::session::{Event, Login, LoginRefused, OUTPUT_HIGH_BYTES, Session, SessionOptions};
use crate::storage::types::Lsn;
use crate::telemetry::Counters;

/// Publishes gathered before they go to the domain; bounds what one call holds.
const PUBLISH_BATCH_MAX: usize = 512;
/// First read buffer of a busy spell; an idle connection holds none.
const INPUT_MIN_BYTES: usize = 4 * 1024;
/// Read buffer of a busy connection: more is only latency for the others.
const INPUT_MAX_BYTES: usize = 128 * 1024;
/// Deliveries whose channel and queue are fetched into the processor's cache together.
const WARM_ITEMS: usize = 16;
/// Reads in one round, so that a fast publisher leaves room for its own deliveries.
const READS_PER_ROUND: usize = 4;
/// Who published within this time counts as a publisher when memory is scarce, as in RabbitMQ.
const PUBLISHER_MS: u64 = 5_000;
/// How often a blocked connection is looked at whose client may be gone: its socket is not read, so nothing says so.
const BLOCKED_POLL: Duration = Duration::from_secs(1);
/// Chunks of one vectored write.
const WRITE_SLICES: usize = 64;
/// How long a finished socket may take to swallow the last bytes.
const FINAL_WRITE_TIMEOUT: Duration = Duration::from_secs(3);

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
    input_target_bytes: usize,
    notify: Arc<Notify>,
    outbox: Arc<Outbox>,
    /// The user, between login and open.
    user: Option<User>,
    /// The domain's side, from open to the end.
    domain: Option<BrokerConnection>,
    /// What is registered with the watermark.
    waits_for: Option<Lsn>,
    effects: Effects,
    /// From the outbox, to be taken from the end.
    items: Vec<OutboxItem>,
    /// The last of `items` is being given to the session.
    is_item_in_hand: bool,
    /// The command that the domain is carrying out.
    command_in_hand: Option<Command>,
    /// What a panic dropped: to be given back.
    dropped: Vec<Unacked>,
    batch: Vec<Publish>,
    published: Vec<Published>,
    /// Something was read since publishers were last looked at.
    has_read: bool,
    /// When the client last published, Unix milliseconds; 0 for never.
    published_at_ms: u64,
    /// Its socket is not read until then, Unix milliseconds: it publishes while memory is scarce.
    paused_until_ms: u64,
}

/// Serves `stream` until it ends. `shutdown` turns true when the broker stops.
pub(super) async fn serve(
    hub: Arc<Hub>,
    stream: TcpStream,
    peer: SocketAddr,
    options: SessionOptions,
    mut shutdown: watch::Receiver<bool>,
) {
    Counters::add(&hub.counters.connections_opened, 1);
    let mut task = ConnectionTask::new(Arc::clone(&hub), peer, options);
    let outcome = task.run(&stream, &mut shutdown).await;
    match outcome {
        Ok(()) => tracing::debug!(%peer, "connection ended"),
        Err(error) => tracing::info!(%peer, %error, "connection lost"),
    }
    task.end();
    finish_writing(&stream, &mut task.session).await;
    Counters::add(&hub.counters.connections_closed, 1);
}

/// True when the client has closed its side, or all of the connection, whatever it sent before and was not read.
async fn is_closed_by_peer(stream: &TcpStream) -> bool {
    tokio::select! {
        biased;
        ready = stream.ready(Interest::READABLE | Interest::ERROR) => {
            ready.is_ok_and(|ready| ready.is_read_closed() || ready.is_error())
        }
        () = std::future::ready(()) => false,
    }
}

/// Gives the last bytes (a close frame, close-ok) a bounded time to leave.
async fn finish_writing(stream: &TcpStream, session: &mut Session) {
    let write = async {
        while !session.output().is_empty() {
            if stream.writable().await.is_err() || write_some(stream, session).is_err() {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(FINAL_WRITE_TIMEOUT, write).await;
}

/// Writes what the socket takes without waiting.
fn write_some(stream: &TcpStream, session: &mut Session) -> io::Result<()> {
    let output = session.output();
    while output.has_remaining() {
        let mut slices = [IoSlice::new(&[]); WRITE_SLICES];
        let count = output.chunks_vectored(&mut slices);
        match stream.try_write_vectored(slices.get(..count).unwrap_or_default()) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => output.advance(written),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
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
            input_target_bytes: INPUT_MIN_BYTES,
            outbox: Arc::new(Outbox::within(
                Box::new(TaskWake(Arc::clone(&notify))),
                outbox_limit,
            )),
            notify,
            user: None,
            domain: None,
            waits_for: None,
            effects: Effects::default(),
            items: Vec::new(),
            is_item_in_hand: false,
            command_in_hand: None,
            dropped: Vec::new(),
            batch: Vec::new(),
            published: Vec::new(),
            has_read: false,
            published_at_ms: 0,
            paused_until_ms: 0,
        }
    }

    async fn run(
        &mut self,
        stream: &TcpStream,
        shutdown: &mut watch::Receiver<bool>,
    ) -> io::Result<()> {
        let mut is_shutting_down = false;
        let mut alarm = self.hub.alarms.subscribe();
        self.session.set_alarm(self.hub.alarms.reason());
        loop {
            let socket = self.read_some(stream)?;
            if std::mem::take(&mut self.has_read) {
                self.pause_publisher();
            }
            let is_eof = socket == Socket::Ended;
            if is_eof {
                self.session.handle_eof();
            }
            self.guarded(Self::round);
            write_some(stream, &mut self.session)?;
            if is_eof || (self.session.is_finished() && self.session.output().is_empty()) {
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
                if is_closed_by_peer(stream).await {
                    return Ok(());
                }
                timeout = timeout.min(BLOCKED_POLL);
            }
            let interest = self.interest();
            tokio::select! {
                ready = stream.ready(interest), if self.wants_socket() => { ready?; }
                () = self.notify.notified() => {}
                () = tokio::time::sleep(timeout) => {}
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

    fn wants_socket(&mut self) -> bool {
        self.wants_input() || !self.session.output().is_empty()
    }

    fn interest(&mut self) -> Interest {
        match (self.wants_input(), self.session.output().is_empty()) {
            (true, true) => Interest::READABLE,
            (true, false) => Interest::READABLE | Interest::WRITABLE,
            (false, _) => Interest::WRITABLE,
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

    /// Reads what the socket has, within bounds. It is read until it has nothing: only that arms its
    /// readiness again.
    fn read_some(&mut self, stream: &TcpStream) -> io::Result<Socket> {
        for _ in 0..READS_PER_ROUND {
            if !self.wants_input() {
                return Ok(Socket::HasMore);
            }
            // Others may have filled the store since the last round. The round that follows asks again and
            // registers for the time when there is room.
            if self.session.is_running() && !self.hub.storage.has_room() {
                return Ok(Socket::HasMore);
            }
            self.input.reserve(self.input_target_bytes);
            match stream.try_read_buf(&mut self.input) {
                Ok(0) => return Ok(Socket::Ended),
                Ok(count) => {
                    self.has_read = true;
                    self.adapt_input(count);
                    let now_ms = self.hub.now_ms();
                    self.guarded(|task| task.session.receive(&mut task.input, now_ms));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.input.is_empty() {
                        // An idle connection holds no buffer.
                        self.input = BytesMut::new();
                    }
                    return Ok(Socket::Drained);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Socket::HasMore)
    }

    fn adapt_input(&mut self, count: usize) {
        if count >= self.input_target_bytes {
            self.input_target_bytes = (self.input_target_bytes * 2).min(INPUT_MAX_BYTES);
        } else if count < self.input_target_bytes / 4 {
            self.input_target_bytes = (self.input_target_bytes / 2).max(INPUT_MIN_BYTES);
        }
    }

    /// True when the session left input in the buffer that it would take now, or the outbox held more
    /// than fitted.
    fn has_more_to_do(&self) -> bool {
        (!self.items.is_empty() && self.takes_deliveries())
            || (self.session.has_stalled_input() && self.wants_input())
    }

    /// The output is short enough for more of the outbox: less of it when memory is scarce.
    fn takes_deliveries(&self) -> bool {
        let outbox_bytes = self.hub.memory.outbox_limit().max_bytes();
        self.session.output_len() < OUTPUT_HIGH_BYTES.min(2 * outbox_bytes)
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
        if let Some(command) = self.command_in_hand.take() {
            self.dropped.extend(command.into_unacked());
        }
        if std::mem::take(&mut self.is_item_in_hand)
            && let Some(delivery) = self.items.pop().and_then(OutboxItem::into_delivery)
            && !delivery.is_settled
            && !self.session.holds_last(&delivery)
        {
            self.dropped.push(delivery.unacked());
        }
    }

    fn round(&mut self) {
        let now_ms = self.hub.now_ms();
        if !self.input.is_empty() && self.session.wants_input() {
            self.session.receive(&mut self.input, now_ms);
        }
        self.session.handle_timeout(now_ms);
        self.take_outbox(false);
        self.handle_events();
        self.hub.carry_out(&mut self.effects);
        self.handle_durability();
        self.check_room();
    }

    /// Moves the outbox into the session: all of it when `is_whole`, else as long as the output is short.
    fn take_outbox(&mut self, is_whole: bool) {
        loop {
            if self.items.is_empty() {
                let turned_somebody_away = self.outbox.drain(&mut self.items);
                // Popped from the end below.
                self.items.reverse();
                if turned_somebody_away && let Some(domain) = &mut self.domain {
                    let now_ms = self.hub.now_ms();
                    self.hub
                        .broker
                        .outbox_drained(domain, now_ms, &mut self.effects);
                }
            }
            if self.items.is_empty() {
                return;
            }
            let mut delivered_count = 0;
            let mut warm_count = 0;
            while is_whole || self.takes_deliveries() {
                if warm_count == 0 {
                    let next = self.items.iter().rev().take(WARM_ITEMS);
                    warm_count = next.len();
                    self.session.warm(next);
                }
                warm_count = warm_count.saturating_sub(1);
                let Some(item) = self.items.last() else { break };
                delivered_count += u64::from(matches!(item, OutboxItem::Deliver(_)));
                self.is_item_in_hand = true;
                self.session.handle_outbox(item);
                self.is_item_in_hand = false;
                self.items.pop();
            }
            Counters::add(&self.hub.counters.messages_delivered, delivered_count);
            if !self.items.is_empty() {
                return;
            }
        }
    }

    fn handle_events(&mut self) {
        while let Some(event) = self.session.poll_event() {
            if let Event::Publish(publish) = event {
                self.batch.push(publish);
                if self.batch.len() >= PUBLISH_BATCH_MAX {
                    self.flush_publishes();
                }
                continue;
            }
            // Order within a channel: what was published before comes first.
            self.flush_publishes();
            match event {
                Event::Publish(_) => {}
                Event::Login(login) => self.login(&login),
                Event::Open { vhost } => self.open(vhost.as_str()),
                Event::Command { channel, command } => self.execute(channel, command),
                Event::TxPublish(publish) => self.tx_publish(&publish),
                Event::Ended => {
                    self.close_domain();
                    self.session.ended();
                }
            }
        }
        self.flush_publishes();
    }

    fn login(&mut self, login: &Login) {
        let is_loopback = self.peer.ip().to_canonical().is_loopback();
        let result = self
            .hub
            .broker
            .login(&login.user, &login.password, is_loopback);
        match result {
            Ok(user) => {
                tracing::info!(peer = %self.peer, user = login.user, client = login.client,
                    name = login.connection_name, "logged in");
                self.user = Some(user);
                self.session.login_result(Ok(()));
            }
            Err(error) => {
                tracing::info!(peer = %self.peer, user = login.user, %error, "login refused");
                self.session.login_result(Err(LoginRefused));
            }
        }
    }

    fn open(&mut self, vhost: &str) {
        let Some(user) = self.user.take() else { return };
        let result = self
            .hub
            .broker
            .connect(&user, vhost, Arc::clone(&self.outbox));
        let answer = match result {
            Ok(domain) => {
                self.domain = Some(domain);
                Ok(())
            }
            Err(error) => Err(error),
        };
        self.session.open_result(answer);
    }

    fn execute(&mut self, channel: u16, command: Command) {
        let must_drain = matches!(
            command,
            Command::CloseChannel { .. } | Command::Cancel { .. }
        );
        let Some(domain) = &mut self.domain else {
            return;
        };
        let now_ms = self.hub.now_ms();
        let command = self.command_in_hand.insert(command);
        let result = domain.execute(channel, command, now_ms, &mut self.effects);
        self.command_in_hand = None;
        if must_drain {
            // What the domain handed over before it forgot the consumer is in the outbox now.
            self.take_outbox(true);
        }
        self.session.command_result(channel, result);
    }

    fn tx_publish(&mut self, publish: &Publish) {
        let Some(domain) = &mut self.domain else {
            return;
        };
        self.published_at_ms = self.hub.now_ms();
        if let Err(error) = domain.tx_publish(publish) {
            self.session.publish_refused(publish.channel, error);
        }
    }

    /// Gives the gathered publishes to the domain. One that is refused closes its channel; later ones of
    /// that channel are dropped, those of other channels go on.
    fn flush_publishes(&mut self) {
        let now_ms = self.hub.now_ms();
        while !self.batch.is_empty() {
            let Some(domain) = &mut self.domain else {
                self.batch.clear();
                return;
            };
            self.published.clear();
            let result =
                domain.publish(&self.batch, now_ms, &mut self.effects, &mut self.published);
            let done = self.published.len().min(self.batch.len());
            let (answered, _) = self.batch.split_at(done);
            self.session.publish_results(answered, &self.published);
            Counters::add(&self.hub.counters.messages_published, done as u64);
            self.published_at_ms = now_ms;
            match result {
                Ok(()) => self.batch.clear(),
                Err((failed, error)) => {
                    let channel = self.batch.get(failed).map(|publish| publish.channel);
                    self.batch.drain(..(failed + 1).min(self.batch.len()));
                    if let Some(channel) = channel {
                        self.session.publish_refused(channel, error);
                    }
                    let session = &self.session;
                    self.batch
                        .retain(|publish| session.is_open_channel(publish.channel));
                }
            }
        }
    }

    /// Tells the session what is durable and asks to be woken for the rest.
    fn handle_durability(&mut self) {
        loop {
            let confirm_lsn = self.hub.storage.confirm_lsn();
            if let Some(domain) = &mut self.domain {
                domain.reveal_committed(self.hub.now_ms(), &mut self.effects);
            }
            self.session.handle_durable(confirm_lsn);
            // A released channel goes on with what it held.
            self.handle_events();
            self.hub.carry_out(&mut self.effects);
            let Some(lsn) = self.session.first_pending_lsn() else {
                self.waits_for = None;
                return;
            };
            if self.waits_for != Some(lsn) {
                self.hub.signals.wake_at(lsn, &self.notify);
                self.waits_for = Some(lsn);
            }
            // Registered first, looked afterwards: see `Signals`.
            if self.hub.storage.confirm_lsn() < lsn {
                return;
            }
        }
    }

    /// Stops reading while too much is not durable yet.
    fn check_room(&mut self) {
        let mut has_room = self.hub.storage.has_room();
        if !has_room {
            self.hub.signals.wake_at_room(&self.notify);
            has_room = self.hub.storage.has_room();
            if has_room {
                self.hub.signals.wake_room_waiters();
            }
        }
        self.session.set_has_room(has_room);
    }

    fn close_domain(&mut self) {
        if let Some(mut domain) = self.domain.take() {
            let now_ms = self.hub.now_ms();
            domain.close(now_ms, &mut self.effects);
            let mut held = self.collect_held();
            if !held.is_empty() {
                domain.requeue(&mut held, now_ms, &mut self.effects);
            }
            self.hub.carry_out(&mut self.effects);
        }
    }

    /// What nobody has given back: nothing, after an orderly end.
    fn collect_held(&mut self) -> Vec<Unacked> {
        let mut held = std::mem::take(&mut self.dropped);
        held.append(&mut self.session.abandon());
        self.outbox.drain(&mut self.items);
        let undelivered = self.items.drain(..).filter_map(OutboxItem::into_delivery);
        let unsettled = undelivered.filter(|delivery| !delivery.is_settled);
        held.extend(unsettled.map(|delivery| delivery.unacked()));
        held
    }

    /// After the socket is done: gives back what the connection held.
    fn end(&mut self) {
        self.guarded(|task| {
            task.session.handle_eof();
            task.take_outbox(true);
        });
        self.guarded(Self::round);
        self.close_domain();
    }
}

/// A task that is dropped before its end (at shutdown, or by a panic outside of what is guarded) must not leave
/// consumers behind that nobody serves.
impl Drop for ConnectionTask {
    fn drop(&mut self) {
        self.close_domain();
    }
}
