//! Publishing: runs of messages with one set of targets, and transactions. Messages that each have their own: `group`.

use std::sync::Arc;
use std::vec::Drain;

use super::batch::Batch;
use super::slots::Status;
use super::state::{Locked, QueueState, lock_queues};
use super::{Committed, GroupTooLarge, QueueHandle, RoutedPublish, TargetDeleted, Turn};
use crate::broker::command::{ConfirmAt, SettleOutcome, Unacked};
use crate::broker::confirm_runs::ConfirmRuns;
use crate::broker::effects::AfterDurable;
use crate::broker::message::Message;
use crate::storage::types::{Lsn, Receipt, Seq};

/// Puts messages that share one set of targets into all of them, and takes those from `messages`; one outcome per message
/// is appended to `out`. `targets` ascending by id, distinct; with no targets every outcome is `Now`.
///
/// # Errors
/// [`TargetDeleted`]; the messages left in `messages` were not published.
pub fn publish(
    turn: &mut Turn<'_>,
    targets: &[QueueHandle],
    messages: &mut Vec<Arc<Message>>,
    out: &mut ConfirmRuns,
) -> Result<(), TargetDeleted> {
    let mut result = Ok(());
    while !messages.is_empty() && result.is_ok() {
        result = publish_run(turn, targets, messages, out);
    }
    turn.finish();
    result
}

/// Bytes of a message's place in one queue, in its record: a fan-out to very many queues is mostly these.
const REF_MAX_BYTES: usize = 24;
/// Bytes of its record besides its payload and its places.
const HEAD_MAX_BYTES: usize = 64;

/// What of a message's queues matters for its room in the log.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoggedTargets {
    durable_count: usize,
    quorum_count: usize,
    /// Queues that may refuse it, and make a dead letter of it then.
    limited_count: usize,
}

impl LoggedTargets {
    /// Those of `targets`.
    pub fn of(targets: &[QueueHandle]) -> Self {
        let mut counts = Self::default();
        for queue in targets {
            counts.durable_count += usize::from(queue.traits.is_durable);
            counts.quorum_count += usize::from(queue.traits.is_durable && queue.traits.is_quorum);
            counts.limited_count += usize::from(queue.seems_limited());
        }
        counts
    }

    /// What the record of a message to them takes in the log, and those of the dead letters that it may become at once,
    /// about; 0 when it has none.
    pub fn record_bytes(self, message: &Message) -> u64 {
        let count = match message.is_persistent() {
            true => self.durable_count,
            false => self.quorum_count,
        };
        if count + self.limited_count == 0 {
            return 0;
        }
        let copies_count = usize::from(count > 0) + self.limited_count;
        (copies_count * (message.payload_len() + HEAD_MAX_BYTES) + count * REF_MAX_BYTES) as u64
    }
}

/// What the records of a transaction's publishes take in the log, about; 0 when they are too large for one anyway.
pub fn commit_bytes(publishes: &[RoutedPublish], max_bytes: u64) -> u64 {
    let bytes = publishes
        .iter()
        .map(|publish| LoggedTargets::of(&publish.targets).record_bytes(&publish.message));
    let bytes = bytes.sum();
    match size_bytes(publishes) > max_bytes {
        true => 0,
        false => bytes,
    }
}

/// Messages from the front of `messages` that one push takes when a publish and what it drops are to be one atomic
/// group, which a run may not outgrow.
fn group_len(turn: &Turn<'_>, targets: &[QueueHandle], messages: &[Arc<Message>]) -> usize {
    let max_bytes = turn.shared.journal().group_max_bytes();
    let refs_bytes = targets.len() * REF_MAX_BYTES;
    let mut sum_bytes = 0;
    let fitting = messages.iter().take_while(|message| {
        sum_bytes += (message.payload_len() + refs_bytes) as u64;
        sum_bytes <= max_bytes
    });
    fitting.count().max(1)
}

/// Publishes as many of `messages`, at least one, as one push takes, and takes them from there.
fn publish_run(
    turn: &mut Turn<'_>,
    targets: &[QueueHandle],
    messages: &mut Vec<Arc<Message>>,
    out: &mut ConfirmRuns,
) -> Result<(), TargetDeleted> {
    let (locked, batch) = lock_targets(targets)?;
    let count = match locked.has_limited() {
        true => group_len(turn, targets, messages),
        // Without a limit the size does not matter.
        false => messages.len(),
    };
    publish_locked(turn, locked, batch, messages.drain(..count), out);
    Ok(())
}

/// The locks of the queues that messages go to, and what is to gather what becomes of that.
pub(super) fn lock_targets(targets: &[QueueHandle]) -> Result<(Locked<'_>, Batch), TargetDeleted> {
    let locked = lock_queues(targets);
    if locked.has_deleted() {
        return Err(TargetDeleted);
    }
    let mut batch = Batch::default();
    if locked.has_limited() {
        // The publish and the drops are one.
        batch.set_atomic();
    }
    Ok((locked, batch))
}

/// Publishes messages to all queues that are locked.
pub(super) fn publish_locked(
    turn: &mut Turn<'_>,
    mut locked: Locked<'_>,
    mut batch: Batch,
    messages: Drain<'_, Arc<Message>>,
    out: &mut ConfirmRuns,
) {
    let queues = locked.iter_mut();
    let consumed_count = queues
        .filter(|(_, state)| !state.consumers.is_empty())
        .count();
    batch.expect(messages.len(), consumed_count * messages.len());
    if let Some((queue, state)) = locked.only() {
        let tell = |is_refused, is_logged| out.push_unpushed(is_refused, is_logged);
        publish_all_to_one(turn, &mut batch, queue, state, messages, tell);
    } else {
        for message in messages {
            let (is_refused, is_logged) = publish_to_all(turn, &mut batch, &mut locked, message);
            out.push_unpushed(is_refused, is_logged);
        }
    }
    if let Some(receipt) = locked.conclude(turn, batch) {
        out.set_receipt(receipt);
    }
}

/// Publishes messages to their only queue. For each, `tell` hears whether the queue refuses it, and whether the log gets it.
pub(super) fn publish_all_to_one(
    turn: &mut Turn<'_>,
    batch: &mut Batch,
    queue: &QueueHandle,
    state: &mut QueueState,
    mut messages: Drain<'_, Arc<Message>>,
    mut tell: impl FnMut(bool, bool),
) {
    loop {
        if messages.len() > 1 {
            let mut tell = |is_logged| tell(false, is_logged);
            if state.hand_over_run(queue, turn, batch, &mut messages, &mut tell) > 0 {
                continue;
            }
        }
        let Some(message) = messages.next() else {
            break;
        };
        let (is_refused, is_logged) = publish_to_one(turn, batch, queue, state, message);
        tell(is_refused, is_logged);
    }
}

/// Whether the only queue of a message refuses it, and whether the log gets it. The message goes where it goes without
/// another reference to it, unless it is needed for the log.
fn publish_to_one(
    turn: &mut Turn<'_>,
    batch: &mut Batch,
    queue: &QueueHandle,
    state: &mut QueueState,
    message: Arc<Message>,
) -> (bool, bool) {
    let for_log = queue.logs(&message).then(|| Arc::clone(&message));
    let is_refused = !state.enqueue(queue, turn, batch, message);
    let is_logged = for_log.is_some_and(|message| batch.end_publication(message));
    (is_refused, is_logged)
}

/// Whether a queue refuses the message, and whether the log gets it.
fn publish_to_all(
    turn: &mut Turn<'_>,
    batch: &mut Batch,
    locked: &mut Locked<'_>,
    message: Arc<Message>,
) -> (bool, bool) {
    let mut is_refused = false;
    for (queue, state) in locked.iter_mut() {
        is_refused |= !state.enqueue(queue, turn, batch, Arc::clone(&message));
    }
    (is_refused, batch.end_publication(message))
}

/// What counts for the size of a transaction.
fn size_bytes(publishes: &[RoutedPublish]) -> u64 {
    let sizes = publishes
        .iter()
        .map(|publish| publish.message.payload_len() + publish.targets.len() * REF_MAX_BYTES);
    sizes.sum::<usize>() as u64
}

/// Publishes and settlements of a transaction as one atomic group. Deleted targets are skipped. Its places in
/// queues count for its size: a fan-out may be far larger in the log than what the client sent.
///
/// # Errors
/// [`GroupTooLarge`] before anything was done.
pub fn commit(
    turn: &mut Turn<'_>,
    publishes: &[RoutedPublish],
    settlements: &[(SettleOutcome, Vec<Unacked>)],
) -> Result<Committed, GroupTooLarge> {
    let size_bytes = size_bytes(publishes);
    let max_bytes = turn.shared.journal().group_max_bytes();
    if size_bytes > max_bytes {
        return Err(GroupTooLarge {
            size_bytes,
            max_bytes,
        });
    }
    let queues = queues_of(publishes, settlements);
    let mut locked = lock_queues(&queues);
    let mut batch = Batch::default();
    batch.set_atomic();
    let mut arrived: Vec<(QueueHandle, Seq)> = Vec::new();
    let mut published = Vec::with_capacity(publishes.len());
    for publish in publishes {
        let is_refused = hide(turn, &mut locked, &mut batch, publish, &mut arrived);
        let is_logged = batch.end_publication(Arc::clone(&publish.message));
        published.push((is_refused, is_logged));
    }
    for (outcome, items) in settlements {
        super::settle::settle_in(turn, &mut locked, &mut batch, items, *outcome);
    }
    for (queue, state) in locked.iter_mut() {
        state.dispatch(queue, turn, &mut batch, None);
    }
    batch.set_waited();
    Ok(conclude_commit(turn, locked, batch, arrived, published))
}

/// Every queue of a transaction, ascending, each once.
fn queues_of(
    publishes: &[RoutedPublish],
    settlements: &[(SettleOutcome, Vec<Unacked>)],
) -> Vec<QueueHandle> {
    let targets = publishes.iter().flat_map(|publish| &publish.targets);
    let sources = settlements
        .iter()
        .flat_map(|(_, items)| items.iter().map(|item| &item.queue));
    let mut queues: Vec<QueueHandle> = targets.chain(sources).cloned().collect();
    queues.sort_by_key(|queue| queue.id());
    queues.dedup_by_key(|queue| queue.id());
    queues
}

/// Gives a transaction's message its places, not yet to be seen; true when a queue refuses it.
fn hide(
    turn: &mut Turn<'_>,
    locked: &mut Locked<'_>,
    batch: &mut Batch,
    publish: &RoutedPublish,
    arrived: &mut Vec<(QueueHandle, Seq)>,
) -> bool {
    let mut is_refused = false;
    for target in &publish.targets {
        let (queue, state) = locked.entry_of(target.id());
        if state.is_deleted {
            continue;
        }
        match state.admit(
            queue,
            turn,
            batch,
            Arc::clone(&publish.message),
            Status::Hidden,
        ) {
            Some(seq) => arrived.push((Arc::clone(queue), seq)),
            None => is_refused = true,
        }
        state.enforce_limits(queue, batch);
    }
    is_refused
}

fn conclude_commit(
    turn: &mut Turn<'_>,
    mut locked: Locked<'_>,
    batch: Batch,
    mut arrived: Vec<(QueueHandle, Seq)>,
    published: Vec<(bool, bool)>,
) -> Committed {
    let receipt = batch.carry_out(turn, &mut locked);
    // Without a record there is nothing to wait for: visible from the beginning of time.
    let visible_at = receipt.map_or(Lsn(0), |receipt| receipt.end);
    arrived.sort_by_key(|(queue, seq)| (queue.id(), *seq));
    for same_queue in arrived.chunk_by(|a, b| a.0.id() == b.0.id()) {
        let (queue, state) = locked.entry_of(same_queue[0].0.id());
        let seqs = same_queue.iter().map(|(_, seq)| *seq).collect();
        state.hidden.push_back((visible_at, seqs));
        if receipt.is_some() {
            let reveal = AfterDurable::Reveal(Arc::clone(queue));
            turn.effects.after_durable.push((visible_at, reveal));
        }
    }
    locked.conclude(turn, Batch::default());
    if receipt.is_none() {
        for same_queue in arrived.chunk_by(|a, b| a.0.id() == b.0.id()) {
            reveal_one(turn, &same_queue[0].0);
        }
    }
    turn.finish();
    let receipt = Receipt { end: visible_at };
    Committed {
        published: published
            .into_iter()
            .map(|(is_refused, is_logged)| ConfirmAt::of(is_refused, is_logged, receipt))
            .collect(),
        durable_at: (visible_at.0 != 0).then_some(visible_at),
    }
}

/// The publishes of transactions that are durable now become visible (`AfterDurable::Reveal`).
pub fn reveal(turn: &mut Turn<'_>, queue: &QueueHandle) {
    reveal_one(turn, queue);
    turn.finish();
}

fn reveal_one(turn: &mut Turn<'_>, queue: &QueueHandle) {
    let mut locked = Locked::one(queue);
    let mut batch = Batch::default();
    let (_, state) = locked.first();
    let confirm_lsn = turn.shared.journal().confirm_lsn();
    while state
        .hidden
        .front()
        .is_some_and(|(lsn, _)| *lsn <= confirm_lsn)
    {
        for seq in state
            .hidden
            .pop_front()
            .into_iter()
            .flat_map(|(_, seqs)| seqs)
        {
            state.slots.set_status(seq, Status::Ready);
        }
    }
    state.dispatch(queue, turn, &mut batch, None);
    state.expire_heads(queue, turn.now_ms, &mut batch);
    state.enforce_limits(queue, &mut batch);
    locked.conclude(turn, batch);
}
