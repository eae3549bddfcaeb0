//! Writing dead letters: the targets' PUBLISH and the source's settle in one atomic group.
//!
//! ```text
//!  t1  under the source's lock     entry Leaving, (seq, reason) noted
//!  t2  no lock                     body at hand (or read, then again), headers written, routed
//!  t3  under all locks             { PUBLISH targets, settle source } pushed as one group
//!      crash before t3 is durable  -> the entry is unsettled in every snapshot: it dies again
//! ```
//!
//! One thread at a time writes the dead letters of a queue, so they keep their order (DL-10). It stops while too
//! many of them are not durable: a large backlog that expires at once is read faster than it can be committed,
//! and nobody but the queue itself can be made to wait. It stops too while the log has no room for them: on a full disk
//! they must not take what settles need.

use std::sync::Arc;

use super::batch::Batch;
use super::slots::Status;
use super::state::{Locked, QueueState, lock_queues};
use super::stuck::Place;
use super::{LoggedTargets, QueueHandle, Refused, Turn};
use crate::broker::arguments::QueueArguments;
use crate::broker::dead_letter::{DeadLetter, DeathReason, plan_dead_letter};
use crate::broker::delayed::plan_release;
use crate::broker::effects::{AfterDurable, Timer};
use crate::broker::message::Message;
use crate::storage::types::{Pusher, Seq, SettleCause};

/// Entries of one atomic group.
const GROUP_MAX_COUNT: usize = 256;
/// Bodies read at a time for messages that leave.
const READ_MAX_COUNT: usize = 64;
/// Bytes of those, but for the last one.
const READ_MAX_BYTES: u64 = 1 << 20;

/// Bytes of a queue's dead letters that may be on their way to the disk.
const LETTERS_MAX_BYTES: u64 = 1 << 20;
/// Pause before letters for which the log had no room are tried again.
const NO_ROOM_MS: u64 = 50;
/// By how much a letter that is a group of its own may exceed the size of a group: a message of the largest size
/// does, because of the headers that tell of its deaths. The log takes it, in a segment longer than usual.
const LETTER_EXCESS_MAX_BYTES: u64 = 16 << 20;

/// A message about to be buried.
struct Dying {
    seq: Seq,
    reason: DeathReason,
    message: Arc<Message>,
    /// It has been stuck until now.
    place: Option<Place>,
}

/// Writes the dead letters of `source`, as far as their bodies are at hand.
pub(super) fn bury(turn: &mut Turn<'_>, source: &QueueHandle) {
    {
        let mut locked = Locked::one(source);
        let (_, state) = locked.first();
        if state.is_dead_lettering {
            return;
        }
        state.is_dead_lettering = true;
    }
    loop {
        // Read before anything is routed, and not under the lock of a queue.
        let version = turn.router.version(&source.spec.vhost);
        let (dying, settings) = take_dying(turn, source, version);
        if dying.is_empty() {
            return;
        }
        let buried_count = bury_group(turn, source, &settings, &dying, version);
        if let Some(rest) = dying.get(buried_count..).filter(|rest| !rest.is_empty()) {
            return wait_for_room(turn, source, rest);
        }
    }
}

/// The log has no room for the letters: they are tried again after a while, and die in the same order.
fn wait_for_room(turn: &mut Turn<'_>, source: &QueueHandle, dying: &[Dying]) {
    let mut locked = Locked::one(source);
    let (_, state) = locked.first();
    if state.is_deleted {
        // It has nothing left that could be tried again.
        return;
    }
    for one in dying.iter().rev() {
        match (one.place, state.stuck()) {
            (Some(place), Some(stuck)) => stuck.give_back(place),
            _ => state.leaving.push_front((one.seq, one.reason)),
        }
    }
    state.is_dead_lettering = false;
    let due_at_ms = turn.now_ms + NO_ROOM_MS;
    state.rare.get_or_insert_default().letters.no_room_until_ms = due_at_ms;
    let queue = QueueHandle::clone(source);
    turn.effects.timers.push(Timer { due_at_ms, queue });
}

/// The next entries to bury, and what the queue obeys. When there are none the caller is not burying any more: that is said under
/// the same lock, so that whoever adds one afterwards starts anew.
fn take_dying(
    turn: &mut Turn<'_>,
    source: &QueueHandle,
    version: u64,
) -> (Vec<Dying>, Arc<QueueArguments>) {
    let max_bytes = turn.shared.journal().group_max_bytes();
    let mut locked = Locked::one(source);
    let (_, state) = locked.first();
    let settings = Arc::clone(&state.settings);
    let mut taken = Vec::new();
    if source.traits.is_delay {
        state.take_due(turn.now_ms);
    }
    if state.leaving.is_empty()
        && let Some(stuck) = state.stuck()
    {
        stuck.look(turn.now_ms, version);
    }
    if must_wait(turn, source, state) {
        state.is_dead_lettering = false;
        return (taken, settings);
    }
    let mut sum_bytes = 0;
    // With the last one it may be more than a group: what is pushed is measured once more, with its headers.
    while taken.len() < GROUP_MAX_COUNT
        && sum_bytes < max_bytes / 2
        && let Some(one) = next_dying(state)
    {
        sum_bytes += one.message.payload_len() as u64;
        taken.push(one);
    }
    if taken.is_empty() {
        state.is_dead_lettering = false;
        let wanted: Vec<Seq> = match state.leaving.is_empty() {
            true => state.stuck_to_try(READ_MAX_COUNT),
            false => {
                let leaving = state.leaving.iter().take(READ_MAX_COUNT);
                leaving.map(|&(seq, _)| seq).collect()
            }
        };
        for (index, seq) in wanted.into_iter().enumerate() {
            // The first one always: without it nothing goes on.
            if index > 0 && state.fetching_bytes >= READ_MAX_BYTES {
                break;
            }
            state.fetch(source, turn, seq);
        }
        state.arm_timer(source, turn.now_ms, turn.effects);
    }
    (taken, settings)
}

/// The next one, if its body is at hand: those that were stuck after all others.
fn next_dying(state: &mut QueueState) -> Option<Dying> {
    while let Some(&(seq, reason)) = state.leaving.front() {
        if let Some(slot) = state.slots.get(seq) {
            let message = slot.message.clone()?;
            state.leaving.pop_front();
            return Some(Dying {
                seq,
                reason,
                message,
                place: None,
            });
        }
        state.leaving.pop_front();
    }
    let (place, seq, reason) = state.next_stuck()?;
    let message = state.slots.get(seq)?.message.clone()?;
    Some(Dying {
        seq,
        reason,
        message,
        place: Some(place),
    })
}

/// True when enough dead letters of the queue are on their way; then it is called again.
fn must_wait(turn: &mut Turn<'_>, source: &QueueHandle, state: &mut QueueState) -> bool {
    let Some(rare) = &mut state.rare else {
        return false;
    };
    let has_none = state.leaving.is_empty() && !rare.stuck.has_tries();
    let letters = &mut rare.letters;
    if turn.now_ms < letters.no_room_until_ms {
        return true;
    }
    if letters.bytes < LETTERS_MAX_BYTES || has_none {
        return false;
    }
    if turn.shared.journal().confirm_lsn() >= letters.end {
        letters.bytes = 0;
        state.awaits_letters = false;
        return false;
    }
    if !state.awaits_letters {
        state.awaits_letters = true;
        let again = AfterDurable::Redispatch(QueueHandle::clone(source));
        turn.effects.after_durable.push((letters.end, again));
    }
    true
}

/// Gives the number of those that are buried: the others have to wait for room in the log.
fn bury_group(
    turn: &mut Turn<'_>,
    source: &QueueHandle,
    settings: &QueueArguments,
    dying: &[Dying],
    version: u64,
) -> usize {
    let delays_for = source.traits.is_delay.then(|| source.spec.delays_for());
    let delays_for = delays_for.flatten();
    let letters: Vec<Option<DeadLetter>> = dying
        .iter()
        .map(|one| {
            if let Some(exchange) = &delays_for {
                return plan_release(turn.router, source, exchange, &one.message);
            }
            // None when a policy took the exchange away meanwhile: the message ends here.
            let target = settings.dead_letter.as_ref()?;
            let message = &one.message;
            plan_dead_letter(
                turn.router,
                source,
                target,
                message,
                one.reason,
                turn.now_ms,
            )
        })
        .collect();
    let max_bytes = turn.shared.journal().group_max_bytes();
    let mut start = 0;
    // Headers grow: what was planned as one group may have become too large for one.
    while start < dying.len() {
        if letter_bytes(letters[start].as_ref()) > max_bytes + LETTER_EXCESS_MAX_BYTES {
            keep_unburied(turn, source, &dying[start]);
            start += 1;
            continue;
        }
        let mut sum_bytes = 0;
        let fitting = letters[start..]
            .iter()
            .take_while(|letter| {
                sum_bytes += letter_bytes(letter.as_ref());
                sum_bytes <= max_bytes
            })
            .count();
        let end = start + fitting.max(1);
        let (dying, letters) = (&dying[start..end], &letters[start..end]);
        let Some(_admitted) = turn.shared.admit(log_bytes(letters), Pusher::DeadLetters) else {
            break;
        };
        push_group(turn, source, settings, dying, letters, version);
        start = end;
    }
    start
}

/// What letters take in the log, about. Those that go nowhere take nothing, and free what they leave.
fn log_bytes(letters: &[Option<DeadLetter>]) -> u64 {
    let bytes = letters
        .iter()
        .flatten()
        .map(|letter| LoggedTargets::of(&letter.targets).record_bytes(&letter.message));
    bytes.sum()
}

fn letter_bytes(letter: Option<&DeadLetter>) -> u64 {
    letter.map_or(0, |letter| letter.message.payload_len() as u64)
}

/// A dead letter that is larger than the log takes: kept aside rather than lost.
fn keep_unburied(turn: &mut Turn<'_>, source: &QueueHandle, dying: &Dying) {
    let seq = dying.seq;
    tracing::error!(
        queue = %source.spec.name,
        vhost = %source.spec.vhost,
        %seq,
        "dead letter is larger than the log takes; the message is quarantined: kept, not delivered"
    );
    let mut locked = Locked::one(source);
    let (_, state) = locked.first();
    state.slots.set_status(seq, Status::Quarantined);
    if let (Some(place), Some(stuck)) = (dying.place, state.stuck()) {
        stuck.forget(place);
    }
    turn.shared.count_quarantined(1);
}

fn push_group(
    turn: &mut Turn<'_>,
    source: &QueueHandle,
    settings: &QueueArguments,
    dying: &[Dying],
    letters: &[Option<DeadLetter>],
    version: u64,
) {
    let targets = letters.iter().flatten().flat_map(|letter| &letter.targets);
    let mut queues: Vec<QueueHandle> = targets.chain([source]).cloned().collect();
    queues.sort_by_key(|queue| queue.id());
    queues.dedup_by_key(|queue| queue.id());
    let mut locked = lock_queues(&queues);
    let mut batch = Batch::default();
    batch.set_atomic();
    let mut remembered = Vec::new();
    let letters_bytes: u64 = letters
        .iter()
        .map(|letter| letter_bytes(letter.as_ref()))
        .sum();
    for (one, letter) in dying.iter().zip(letters) {
        let is_kept = settings.keeps_letters() && settings.dead_letter.is_some();
        let welcome = match is_kept {
            true => welcome(&mut locked, source, letter.as_ref()),
            // It goes whatever they say.
            false => Welcome::Wanted,
        };
        if welcome != Welcome::Wanted {
            let state = locked.state_of(source.id());
            match one.place {
                Some(_) => state.evict(one.seq),
                None => state.keep_letter(one.seq, one.reason, turn.now_ms, version),
            }
            if let (Welcome::Refused, Some(stuck)) = (welcome, state.stuck()) {
                stuck.refused(turn.now_ms);
            }
            continue;
        }
        // The source first: what a self dead-lettering queue drops must not be what it just got.
        let (queue, state) = locked.entry_of(source.id());
        state.end(queue, &mut batch, one.seq, SettleCause::DeadLettered);
        if let (Some(place), Some(stuck)) = (one.place, state.stuck()) {
            stuck.taken(place, turn.now_ms);
        }
        if let Some(letter) = letter {
            put(turn, &mut locked, &mut batch, letter, is_kept);
            if !letter.histories.is_empty() {
                remembered.push(letter);
            }
        }
    }
    if let Some(receipt) = batch.carry_out(turn, &mut locked) {
        let rare = &mut locked.state_of(source.id()).rare;
        let letters = &mut rare.get_or_insert_default().letters;
        letters.bytes += letters_bytes;
        letters.end = receipt.end;
    }
    locked.conclude(turn, Batch::default());
    remembered.into_iter().for_each(DeadLetter::remember);
}

/// What the queues say to a dead letter that is to be kept until they take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Welcome {
    /// There is one, and none of them refuses it.
    Wanted,
    /// One of them is full.
    Refused,
    /// There is none.
    Nobody,
}

fn welcome(locked: &mut Locked<'_>, source: &QueueHandle, letter: Option<&DeadLetter>) -> Welcome {
    let mut welcome = Welcome::Nobody;
    for target in letter.iter().flat_map(|letter| &letter.targets) {
        let state = locked.state_of(target.id());
        if state.is_deleted {
            continue;
        }
        let is_own = target.id() == source.id();
        if letter.is_some_and(|letter| state.refuses_letter(&letter.message, is_own)) {
            return Welcome::Refused;
        }
        welcome = Welcome::Wanted;
    }
    welcome
}

/// Puts a dead letter into its targets. Their limits hold; a refusal is silent (LL-11), unless all of them have been
/// asked whether they want it (`welcome`).
fn put(
    turn: &mut Turn<'_>,
    locked: &mut Locked<'_>,
    batch: &mut Batch,
    letter: &DeadLetter,
    is_wanted: bool,
) {
    for target in &letter.targets {
        let (queue, state) = locked.entry_of(target.id());
        if state.is_deleted {
            continue;
        }
        match is_wanted {
            true => state.enqueue_letter(queue, turn, batch, &letter.message),
            false => {
                state.enqueue(queue, turn, batch, Arc::clone(&letter.message));
            }
        }
    }
    batch.end_publication(Arc::clone(&letter.message));
}

/// Dead-letters a message that a queue refused (`reject-publish-dlx`): it has no entry there.
pub(super) fn bury_refused(turn: &mut Turn<'_>, refused: &Refused) {
    let source = &refused.queue;
    let planned = refused.settings.dead_letter.as_ref().and_then(|target| {
        let reason = DeathReason::MaxLength;
        plan_dead_letter(
            turn.router,
            source,
            target,
            &refused.message,
            reason,
            turn.now_ms,
        )
    });
    let Some(letter) = planned else {
        return;
    };
    let max_bytes = turn.shared.journal().group_max_bytes() + LETTER_EXCESS_MAX_BYTES;
    if letter_bytes(Some(&letter)) > max_bytes {
        tracing::error!(
            queue = %source.spec.name,
            vhost = %source.spec.vhost,
            "dead letter of a refused message is larger than the log takes and is dropped"
        );
        return;
    }
    let mut locked = lock_queues(&letter.targets);
    let mut batch = Batch::default();
    batch.set_atomic();
    put(turn, &mut locked, &mut batch, &letter, false);
    locked.conclude(turn, batch);
    letter.remember();
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Rig, persistent};
    use super::super::{DeleteCondition, delete};
    use super::*;

    #[test]
    fn letters_of_a_queue_that_was_deleted_meanwhile_are_not_given_back() {
        let mut rig = Rig::new();
        let queue = rig.queue("q");
        let dying = Dying {
            seq: Seq(1),
            reason: DeathReason::Rejected,
            message: Arc::new(persistent("x")),
            place: None,
        };
        rig.turn(|turn| {
            delete(turn, &queue, DeleteCondition::default(), || ()).expect("nothing is in its way");
            wait_for_room(turn, &queue, &[dying]);
        });
        let mut locked = Locked::one(&queue);
        let (_, state) = locked.first();
        assert!(state.leaving.is_empty() && state.rare.is_none());
        assert!(rig.effects.timers.is_empty());
    }
}
