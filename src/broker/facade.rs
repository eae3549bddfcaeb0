//! The broker as the server sees it: logins, connections, continuations.
//!
//! Lock order, enforced by convention in this room and by types where that is possible:
//! `meta` -> `vhosts`, `access`, `connections`, `reply_consumers` (leaves among themselves, held for a look-up) -> topology of
//! a vhost -> queues in ascending id -> outboxes. What exchanges remember is a leaf, see `exchange::history`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use super::access::{Access, Account, LoginError, PasswordHash, Permissions, User};
use super::command::ConsumerId;
use super::connection::Connection;
use super::dead_letter::{DeadLetterRouter, LetterRoute};
use super::effects::Effects;
use super::error::BrokerError;
use super::exchange::Histories;
use super::journal::Journal;
use super::limits::{MAX_CHANNELS, MAX_CONNECTIONS, Of};
use super::message::Message;
use super::meta::{Change, VhostV1};
use super::meta_log::MetaLog;
use super::outbox::Outbox;
use super::queue::{
    self, Aftermath, ConnectionId, DeleteCondition, DeleteRefusal, FetchFailure, IndexLimits,
    QueueHandle, QueueShared, Turn,
};
use super::records;
use super::reply_to::ReplyConsumers;
use super::stamp::Stamps;
use super::vhost::{Removed, Vhost};
use crate::amqp::reply_code::ConnectionReplyCode;
use crate::amqp::short_string::ShortString;
use crate::storage::run::FiledRun;
use crate::storage::types::{ImageEntry, Lsn, QueueId, Seq};
use crate::sync::{lock, read, write};

/// The vhost of a blank broker.
pub(crate) const DEFAULT_VHOST: &str = "/";
/// User and password of a blank broker.
pub(crate) const DEFAULT_USER: &str = "guest";
/// Its tag.
pub(crate) const ADMINISTRATOR_TAG: &str = "administrator";

/// How a broker behaves, beyond what clients declare.
#[derive(Clone, Debug)]
pub struct BrokerOptions {
    /// Users that may only log in from this machine.
    pub loopback_users: Vec<String>,
    /// Messages that are on disk as well may take about this much memory.
    pub resident_max_bytes: u64,
    /// When queues use index files.
    pub index: IndexLimits,
    /// Vhosts there may be; `None` for any number.
    pub vhost_max_count: Option<u64>,
    /// Queues there may be in all vhosts together.
    pub queue_max_count: Option<u64>,
    /// Exchanges there may be in all vhosts together, predeclared ones included.
    pub exchange_max_count: Option<u64>,
    /// What it writes into messages.
    pub stamps: Stamps,
    /// A part of the log is lost: what the messages that are left need is made again.
    pub is_salvaged: bool,
}

impl Default for BrokerOptions {
    fn default() -> Self {
        Self {
            loopback_users: vec![DEFAULT_USER.to_owned()],
            resident_max_bytes: 128 << 20,
            index: IndexLimits::default(),
            stamps: Stamps::default(),
            is_salvaged: false,
            vhost_max_count: None,
            queue_max_count: None,
            exchange_max_count: None,
        }
    }
}

/// The domain. Cheap to clone: all clones are the same broker.
#[derive(Clone)]
pub struct Broker {
    pub(crate) shared: Arc<Shared>,
}

/// One open connection, for those who must close it.
#[derive(Debug)]
pub(crate) struct Registration {
    user: Arc<str>,
    vhost: Arc<str>,
    outbox: Arc<Outbox>,
}

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) options: BrokerOptions,
    /// The log and the budget of the queues.
    pub(crate) queues: QueueShared,
    /// First in the lock order; see `meta_log`.
    pub(crate) meta: Mutex<MetaLog>,
    pub(crate) vhosts: RwLock<HashMap<Arc<str>, Arc<Vhost>>>,
    pub(crate) access: RwLock<Access>,
    /// Who waits for direct replies.
    pub(crate) reply_consumers: ReplyConsumers,
    /// What exchanges remember for those who are bound to them later.
    pub(crate) histories: Arc<Histories>,
    /// Rises with every change of `access`, before its lock is released; for caches.
    access_version: AtomicU64,
    connections: Mutex<HashMap<ConnectionId, Registration>>,
    /// Open channels by user, where there are any.
    channels: Mutex<HashMap<Arc<str>, u64>>,
    next_connection: AtomicU64,
    next_consumer: AtomicU64,
    /// End of the newest META record, for who must not take `meta`.
    newest_meta: AtomicU64,
    /// Nothing is delivered any more: snapshots may be exact about deliveries.
    pub(crate) is_stopped: AtomicBool,
}

impl Broker {
    /// The broker of a blank data directory: vhost `/` and user `guest`, logged as one group.
    #[must_use]
    pub fn new(journal: Arc<dyn Journal>, options: BrokerOptions) -> Self {
        let shared = Shared::new(journal, options, 1);
        let account = Account {
            password: PasswordHash::new(DEFAULT_USER.as_bytes()),
            tags: vec![ADMINISTRATOR_TAG.to_owned()],
        };
        let permissions = Permissions::all();
        let changes = [
            Change::VhostAdded(VhostV1 {
                name: DEFAULT_VHOST.to_owned(),
            }),
            Change::UserSet(records::user(DEFAULT_USER, &account)),
            Change::PermissionsSet(records::permissions(
                DEFAULT_VHOST,
                DEFAULT_USER,
                &permissions,
            )),
        ];
        {
            let mut meta = lock(&shared.meta);
            shared.add_vhost(DEFAULT_VHOST);
            let mut access = write(&shared.access);
            access.accounts.insert(DEFAULT_USER.to_owned(), account);
            let key = (DEFAULT_VHOST.to_owned(), DEFAULT_USER.to_owned());
            access.permissions.insert(key, Arc::new(permissions));
            shared.push_unwoken(&mut meta, &changes);
        }
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Checks a name and a password.
    ///
    /// # Errors
    /// For the log; the client is told nothing of it.
    pub fn login(
        &self,
        user: &str,
        password: &[u8],
        is_peer_loopback: bool,
    ) -> Result<User, LoginError> {
        let logged_in = read(&self.shared.access).login(user, password)?;
        self.check_loopback(logged_in, is_peer_loopback)
    }

    /// Logs a user in without a password: the caller has other proof that it is this user.
    ///
    /// # Errors
    /// As for [`login`](Self::login).
    pub fn login_vouched(&self, user: &str, is_peer_loopback: bool) -> Result<User, LoginError> {
        let logged_in = read(&self.shared.access).login_vouched(user)?;
        self.check_loopback(logged_in, is_peer_loopback)
    }

    fn check_loopback(&self, user: User, is_peer_loopback: bool) -> Result<User, LoginError> {
        let loopback_users = &self.shared.options.loopback_users;
        if !is_peer_loopback && loopback_users.iter().any(|name| name == user.name()) {
            return Err(LoginError::NotLoopback);
        }
        Ok(user)
    }

    /// Opens a vhost for a user.
    ///
    /// # Errors
    /// 530 `NOT_ALLOWED` when there is no such vhost or the user has no permissions in it.
    pub fn connect(
        &self,
        user: &User,
        vhost: &str,
        outbox: Arc<Outbox>,
    ) -> Result<Connection, BrokerError> {
        let id = ConnectionId(self.shared.next_connection.fetch_add(1, Ordering::Relaxed));
        // Registered first: whoever deletes the user or the vhost from here on finds it, and whoever did
        // before is seen by the checks.
        let registration = Registration {
            user: user.name().into(),
            vhost: vhost.into(),
            outbox: Arc::clone(&outbox),
        };
        lock(&self.shared.connections).insert(id, registration);
        let opened = self.shared.open(user, vhost);
        if opened.is_err() {
            lock(&self.shared.connections).remove(&id);
        }
        let (vhost, permissions) = opened?;
        let shared = Arc::clone(&self.shared);
        Ok(Connection::new(
            shared,
            id,
            user.clone(),
            vhost,
            permissions,
            outbox,
        ))
    }

    /// A delivery reservation of `queue` is durable.
    pub fn redispatch(&self, queue: &QueueHandle, now_ms: u64, effects: &mut Effects) {
        queue::dispatch(&mut self.shared.turn(now_ms, effects), queue);
    }

    /// Publishes of transactions in `queue` are durable.
    pub fn reveal(&self, queue: &QueueHandle, now_ms: u64, effects: &mut Effects) {
        queue::reveal(&mut self.shared.turn(now_ms, effects), queue);
    }

    /// A timer of `queue` is due.
    pub fn timer_due(&self, queue: &QueueHandle, now_ms: u64, effects: &mut Effects) {
        let aftermath = queue::timer_due(&mut self.shared.turn(now_ms, effects), queue);
        self.shared
            .settle_aftermath(queue, aftermath, now_ms, effects);
    }

    /// Bodies that `queue` asked for, each by [`queue::decode_body`], or why they could not be read.
    pub fn fetched(
        &self,
        queue: &QueueHandle,
        messages: Vec<(Seq, Result<Arc<Message>, FetchFailure>)>,
        now_ms: u64,
        effects: &mut Effects,
    ) {
        queue::fetched(&mut self.shared.turn(now_ms, effects), queue, messages);
    }

    /// The durable queues, of which some may have to know [sizes] that they do not know.
    ///
    /// [sizes]: queue::Queue::unsized_entries
    #[must_use]
    pub fn durable_queues(&self) -> Vec<QueueHandle> {
        let meta = lock(&self.shared.meta);
        meta.durable_queues.values().cloned().collect()
    }

    /// Sizes of bodies of a queue.
    pub fn sized(
        &self,
        queue: &QueueHandle,
        sizes: &queue::Sizes,
        now_ms: u64,
        effects: &mut Effects,
    ) {
        queue::sized(&mut self.shared.turn(now_ms, effects), queue, sizes);
    }

    /// Keeps messages of a durable queue aside that are known to be unreadable; gives their number.
    pub fn quarantine(
        &self,
        queue: QueueId,
        unreadable: queue::Unreadable,
        now_ms: u64,
        effects: &mut Effects,
    ) -> u64 {
        let queue = lock(&self.shared.meta).durable_queues.get(&queue).cloned();
        queue.map_or(0, |queue| {
            queue::quarantine(&mut self.shared.turn(now_ms, effects), &queue, unreadable)
        })
    }

    /// Runs that `queue` asked for, or why they could not be read.
    pub fn run_loaded(
        &self,
        queue: &QueueHandle,
        results: Vec<(FiledRun, Result<Vec<ImageEntry>, FetchFailure>)>,
        now_ms: u64,
        effects: &mut Effects,
    ) {
        queue::run_loaded(&mut self.shared.turn(now_ms, effects), queue, results);
    }

    /// What the queues' entries take in memory and in index files, and whether runs should be filed.
    #[must_use]
    pub fn queues(&self) -> &QueueShared {
        &self.shared.queues
    }

    /// The outbox of `connection`, which was full, has been emptied: serves the queues that it turned away.
    pub fn outbox_drained(&self, connection: &Connection, now_ms: u64, effects: &mut Effects) {
        let turn = &mut self.shared.turn(now_ms, effects);
        queue::outbox_drained(turn, connection.outbox());
    }

    /// Messages that could not be read since the start; they are kept aside, never delivered.
    #[must_use]
    pub fn quarantined_count(&self) -> u64 {
        self.shared.queues.quarantined_count()
    }

    /// Number of open connections.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        lock(&self.shared.connections).len()
    }
}

impl Shared {
    pub(crate) fn new(
        journal: Arc<dyn Journal>,
        options: BrokerOptions,
        next_queue_id: u64,
    ) -> Self {
        let histories = Histories::new(options.resident_max_bytes);
        Self {
            queues: QueueShared::new(journal, options.resident_max_bytes)
                .with_index_limits(options.index)
                .with_remembered(Arc::clone(histories.size_bytes())),
            histories,
            options,
            meta: Mutex::new(MetaLog::new(next_queue_id)),
            vhosts: RwLock::default(),
            access: RwLock::default(),
            reply_consumers: ReplyConsumers::default(),
            access_version: AtomicU64::new(0),
            connections: Mutex::default(),
            channels: Mutex::default(),
            next_connection: AtomicU64::new(1),
            next_consumer: AtomicU64::new(1),
            newest_meta: AtomicU64::new(0),
            is_stopped: AtomicBool::new(false),
        }
    }

    /// A call into a queue.
    pub(crate) fn turn<'a>(&'a self, now_ms: u64, effects: &'a mut Effects) -> Turn<'a> {
        Turn::new(&self.queues, self, now_ms, effects)
    }

    pub(crate) fn issue_consumer_id(&self) -> ConsumerId {
        ConsumerId(self.next_consumer.fetch_add(1, Ordering::Relaxed))
    }

    /// `lsn` if somebody must wait for it.
    pub(crate) fn unless_durable(&self, lsn: Option<Lsn>) -> Option<Lsn> {
        lsn.filter(|lsn| *lsn > self.confirm_lsn())
    }

    /// Everything up to here is durable.
    pub(crate) fn confirm_lsn(&self) -> Lsn {
        self.queues.journal().confirm_lsn()
    }

    /// Logs `changes`; `None` when nobody must wait for them.
    pub(crate) fn push(
        &self,
        meta: &mut MetaLog,
        changes: &[Change],
        effects: &mut Effects,
    ) -> Option<Lsn> {
        let lsn = self.push_unwoken(meta, changes)?;
        effects.wakes_commit = true;
        self.unless_durable(Some(lsn))
    }

    /// Logs `changes`; the caller sees to it that the commit thread is woken.
    fn push_unwoken(&self, meta: &mut MetaLog, changes: &[Change]) -> Option<Lsn> {
        let lsn = meta.push(self.queues.journal(), changes)?;
        self.newest_meta.store(lsn.0, Ordering::Release);
        Some(lsn)
    }

    /// End of the newest META record. Everything visible in a topology is in the log below it: the
    /// record is pushed before the topology's lock is released.
    pub(crate) fn newest_meta(&self) -> Lsn {
        Lsn(self.newest_meta.load(Ordering::Acquire))
    }

    /// Puts a vhost with the predeclared exchanges in place; called under `meta`.
    pub(crate) fn add_vhost(&self, name: &str) -> Arc<Vhost> {
        let vhost = Arc::new(Vhost::new(name, &self.histories));
        write(&self.vhosts).insert(name.into(), Arc::clone(&vhost));
        vhost
    }

    pub(crate) fn vhost(&self, name: &str) -> Option<Arc<Vhost>> {
        read(&self.vhosts).get(name).cloned()
    }

    /// Changes with every change of users and permissions.
    pub(crate) fn access_version(&self) -> u64 {
        self.access_version.load(Ordering::Acquire)
    }

    /// Changes users or permissions; called under `meta`.
    pub(crate) fn change_access<T>(&self, change: impl FnOnce(&mut Access) -> T) -> T {
        let mut access = write(&self.access);
        let result = change(&mut access);
        self.access_version.fetch_add(1, Ordering::AcqRel);
        result
    }

    /// The checks of an open, in RabbitMQ's order (reference section 3.5). The connection is registered already, so it
    /// counts itself.
    fn open(&self, user: &User, name: &str) -> Result<(Arc<Vhost>, Arc<Permissions>), BrokerError> {
        let refuse = |text: String| BrokerError::connection(ConnectionReplyCode::NotAllowed, text);
        let vhost = self.vhost(name);
        let vhost = vhost.ok_or_else(|| refuse(format!("vhost {name} not found")))?;
        self.check_connection_limits(user.name(), name)?;
        let access = read(&self.access);
        // The user may have been deleted between login and open.
        let permissions = access
            .accounts
            .contains_key(user.name())
            .then(|| access.permissions_of(user.name(), name))
            .flatten();
        let permissions = permissions.ok_or_else(|| {
            let user = user.name();
            refuse(format!(
                "access to vhost '{name}' refused for user '{user}'"
            ))
        })?;
        Ok((vhost, permissions))
    }

    fn check_connection_limits(&self, user: &str, vhost: &str) -> Result<(), BrokerError> {
        let refuse = |text: String| {
            Err(BrokerError::connection(
                ConnectionReplyCode::NotAllowed,
                text,
            ))
        };
        let (of_vhost, of_user) = {
            let limits = &read(&self.access).limits;
            (
                limits.get(Of::Vhost, vhost, MAX_CONNECTIONS),
                limits.get(Of::User, user, MAX_CONNECTIONS),
            )
        };
        if let Some(max_count) = of_vhost
            && self.count_connections(|one| &*one.vhost == vhost) > max_count
        {
            return refuse(format!(
                "access to vhost '{vhost}' refused for user '{user}': connection limit \
                 ({max_count}) is reached"
            ));
        }
        if let Some(max_count) = of_user
            && self.count_connections(|one| &*one.user == user) > max_count
        {
            return refuse(format!(
                "connection refused for user '{user}': user connection limit ({max_count}) is reached"
            ));
        }
        Ok(())
    }

    fn count_connections(&self, is_meant: impl Fn(&Registration) -> bool) -> u64 {
        let connections = lock(&self.connections);
        connections.values().filter(|one| is_meant(one)).count() as u64
    }

    /// A user opens one more channel.
    ///
    /// # Errors
    /// The limit of its channels, over all its connections, when that is reached.
    pub(crate) fn open_channel(&self, user: &Arc<str>) -> Result<(), u64> {
        let max_count = read(&self.access).limits.get(Of::User, user, MAX_CHANNELS);
        let mut channels = lock(&self.channels);
        let count = channels.entry(Arc::clone(user)).or_default();
        if let Some(max_count) = max_count
            && *count >= max_count
        {
            return Err(max_count);
        }
        *count += 1;
        Ok(())
    }

    /// A channel of a user is gone.
    pub(crate) fn close_channel(&self, user: &str) {
        let mut channels = lock(&self.channels);
        if let Some(count) = channels.get_mut(user) {
            *count -= 1;
            if *count == 0 {
                channels.remove(user);
            }
        }
    }

    /// A connection ended.
    pub(crate) fn unregister(&self, id: ConnectionId) {
        lock(&self.connections).remove(&id);
    }

    /// Closes the connections of a user.
    pub(crate) fn close_user(&self, user: &str, text: &str, effects: &mut Effects) {
        self.close_where(text, effects, |registration| &*registration.user == user);
    }

    /// Closes the connections to a vhost.
    pub(crate) fn close_vhost(&self, vhost: &str, text: &str, effects: &mut Effects) {
        self.close_where(text, effects, |registration| &*registration.vhost == vhost);
    }

    fn close_where(
        &self,
        text: &str,
        effects: &mut Effects,
        is_meant: impl Fn(&Registration) -> bool,
    ) {
        for registration in lock(&self.connections).values() {
            if is_meant(registration) {
                registration.outbox.force_close(text);
                effects.wakes.push(Arc::clone(&registration.outbox));
            }
        }
    }

    /// Deletes a queue that nobody uses any more.
    pub(crate) fn settle_aftermath(
        &self,
        queue: &QueueHandle,
        aftermath: Aftermath,
        now_ms: u64,
        effects: &mut Effects,
    ) {
        if aftermath == Aftermath::Stays {
            return;
        }
        let condition = DeleteCondition {
            if_unused: true,
            if_empty: false,
        };
        // Refused when somebody came back to it or was faster: both are fine.
        let _ = self.delete_queue(queue, condition, now_ms, effects);
    }

    /// Deletes a queue with its bindings and the auto-delete exchanges that hang on them; the ready
    /// messages removed and what to wait for.
    pub(crate) fn delete_queue(
        &self,
        queue: &QueueHandle,
        condition: DeleteCondition,
        now_ms: u64,
        effects: &mut Effects,
    ) -> Result<(u32, Option<Lsn>), DeleteRefusal> {
        let Some(vhost) = self.vhost(&queue.spec().vhost) else {
            return Err(DeleteRefusal::AlreadyDeleted);
        };
        let mut meta = lock(&self.meta);
        let mut topology = vhost.write();
        let mut durable_at = None;
        let mut removed = Removed::default();
        let ready_count = queue::delete(&mut self.turn(now_ms, effects), queue, condition, || {
            removed = topology.remove_queue(&queue.spec().name);
            let changes = records::queue_deleted(queue, &removed);
            durable_at = self.push_unwoken(&mut meta, &changes);
            meta.durable_queues.remove(&queue.id());
        })?;
        effects.wakes_commit |= durable_at.is_some();
        let dropped = self.drop_delay_queues(&mut meta, &removed, now_ms, effects);
        let durable_at = dropped.or(durable_at);
        Ok((ready_count, self.unless_durable(durable_at)))
    }
}

impl DeadLetterRouter for Shared {
    fn route(
        &self,
        vhost: &str,
        exchange: &ShortString,
        routing_keys: &[ShortString],
        message: &Arc<Message>,
    ) -> Option<LetterRoute> {
        let vhost = self.vhost(vhost)?;
        let properties = message.properties();
        let route = vhost.read().route(exchange, routing_keys, &properties)?;
        Some(LetterRoute {
            targets: route.targets.into_vec(),
            histories: route.histories,
        })
    }

    fn version(&self, vhost: &str) -> u64 {
        // A new queue makes a difference too: to the default exchange.
        let version = |vhost: Arc<Vhost>| vhost.version().wrapping_add(vhost.queues_version());
        self.vhost(vhost).map_or(0, version)
    }
}
