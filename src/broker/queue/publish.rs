//! Publishing: runs of messages with one set of targets, and transactions.

use std::sync::Arc;
use std::vec::Drain;

use smallvec::SmallVec;

use super::batch::Batch;
use super::slots::Status;
use super::state::{Locked, QueueState, lock_queues};
use super::{Committed, GroupTooLarge, QueueHandle, RoutedPublish, TargetDeleted, Turn};
use crate::broker::command::{ConfirmAt, SettleOutcome, Unacked};
use crate::broker::confirm_runs::ConfirmRuns;
use crate::broker::effects::AfterDurable;
use crate::broker::message::Message;
use crate::storage::types::{Lsn, QueueId, Receipt, Seq};

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

/// Queues that one critical section publishes to at most: others wait for them meanwhile.
pub const GROUP_QUEUES_MAX: usize = 64;

/// As [`publish`], for messages that each have targets of their own: together at most about [`GROUP_QUEUES_MAX`]. One lock set and
/// one push for all of them, so that a message costs no more in a thousand queues than in one; each queue sees its messages in the
/// given order.
///
/// # Errors
/// [`TargetDeleted`]; the messages without an outcome in `out` were not published.
pub fn publish_group(
    turn: &mut Turn<'_>,
    publishes: &[(Arc<Message>, Arc<[QueueHandle]>)],
    out: &mut ConfirmRuns,
) -> Result<(), TargetDeleted> {
    let is_limited =
        |(_, targets): &(_, Arc<[QueueHandle]>)| targets.iter().any(|queue| queue.seems_limited());
    if !publishes.iter().any(is_limited) {
        let result = publish_unlimited(turn, publishes, out);
        turn.finish();
        return result;
    }
    let mut result = Ok(());
    for run in publishes.chunk_by(|a, b| is_limited(a) == is_limited(b)) {
        result = match run {
            // A publish and what it drops are one atomic group, which shall be no larger than it must.
            limited if limited.first().is_some_and(is_limited) => {
                publish_limited(turn, limited, out)
            }
            unlimited => publish_unlimited(turn, unlimited, out),
        };
        if result.is_err() {
            break;
        }
    }
    turn.finish();
    result
}

/// Publishes to queues of which some have a limit of their length.
fn publish_limited(
    turn: &mut Turn<'_>,
    publishes: &[(Arc<Message>, Arc<[QueueHandle]>)],
    out: &mut ConfirmRuns,
) -> Result<(), TargetDeleted> {
    let mut one = Vec::with_capacity(1);
    publishes.iter().try_for_each(|(message, targets)| {
        let (locked, batch) = lock_targets(targets)?;
        one.push(Arc::clone(message));
        publish_locked(turn, locked, batch, one.drain(..), out);
        Ok(())
    })
}

/// Publishes to queues without a limit of their length.
fn publish_unlimited(
    turn: &mut Turn<'_>,
    publishes: &[(Arc<Message>, Arc<[QueueHandle]>)],
    out: &mut ConfirmRuns,
) -> Result<(), TargetDeleted> {
    // The ids stand in the list: each queue is looked at once, independently of the others, so that the processor
    // fetches many of them at a time.
    let mut queues: SmallVec<[(QueueId, &QueueHandle); GROUP_QUEUES_MAX]> = SmallVec::new();
    for (_, targets) in publishes {
        for queue in targets.iter() {
            queues.push((queue.id(), queue));
        }
    }
    if !queues.is_sorted_by_key(|(id, _)| id) {
        queues.sort_unstable_by_key(|(id, _)| *id);
    }
    queues.dedup_by_key(|(id, _)| *id);
    let mut locked = lock_queues(queues.into_iter().map(|(_, queue)| queue));
    locked.warm();
    if locked.has_deleted() {
        return Err(TargetDeleted);
    }
    if locked.has_limited() {
        // A policy has limited one of them since.
        drop(locked);
        return publish_limited(turn, publishes, out);
    }
    let mut batch = Batch::default();
    batch.expect(publishes.len(), publishes.len());
    batch.expect_queues(locked.count());
    for (message, targets) in publishes {
        let mut is_refused = false;
        for target in targets.iter() {
            let (queue, state) = locked.entry_of(target.id());
            is_refused |= !state.enqueue(queue, turn, &mut batch, Arc::clone(message));
        }
        let is_logged = batch.end_publication(message);
        out.push_unpushed(is_refused, is_logged);
    }
    if let Some(receipt) = locked.conclude(turn, batch) {
        out.set_receipt(receipt);
    }
    Ok(())
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
fn lock_targets(targets: &[QueueHandle]) -> Result<(Locked<'_>, Batch), TargetDeleted> {
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
fn publish_locked(
    turn: &mut Turn<'_>,
    mut locked: Locked<'_>,
    mut batch: Batch,
    mut messages: Drain<'_, Arc<Message>>,
    out: &mut ConfirmRuns,
) {
    let queues = locked.iter_mut();
    let consumed_count = queues
        .filter(|(_, state)| !state.consumers.is_empty())
        .count();
    batch.expect(messages.len(), consumed_count * messages.len());
    loop {
        if messages.len() > 1
            && let Some((queue, state)) = locked.only()
        {
            let mut tell = |is_logged| out.push_unpushed(false, is_logged);
            if state.hand_over_run(queue, turn, &mut batch, &mut messages, &mut tell) > 0 {
                continue;
            }
        }
        let Some(message) = messages.next() else {
            break;
        };
        let (is_refused, is_logged) = match locked.only() {
            Some((queue, state)) => publish_to_one(turn, &mut batch, queue, state, message),
            None => publish_to_all(turn, &mut batch, &mut locked, &message),
        };
        out.push_unpushed(is_refused, is_logged);
    }
    if let Some(receipt) = locked.conclude(turn, batch) {
        out.set_receipt(receipt);
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
    let is_logged = for_log.is_some_and(|message| batch.end_publication(&message));
    (is_refused, is_logged)
}

/// Whether a queue refuses the message, and whether the log gets it.
fn publish_to_all(
    turn: &mut Turn<'_>,
    batch: &mut Batch,
    locked: &mut Locked<'_>,
    message: &Arc<Message>,
) -> (bool, bool) {
    let mut is_refused = false;
    for (queue, state) in locked.iter_mut() {
        is_refused |= !state.enqueue(queue, turn, batch, Arc::clone(message));
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
        let is_logged = batch.end_publication(&publish.message);
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
