//! The scrubber thread: has the store read again at a bounded rate, reports what does not verify, and has the messages
//! that it hits kept aside before a consumer asks for them.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::checkpointer::Stop;
use super::hub::Hub;
use crate::broker::effects::Effects;
use crate::broker::queue::{FetchFailure, Unreadable};
use crate::storage::scrub::Rot;
use crate::storage::types::{ImageEntry, Lsn, Position, QueueId, Seq};
use crate::storage::{CheckpointSource, ReadError};

/// Reads are made in steps of this part of a second: short enough to stop soon, long enough to cost no wake-ups.
const STEPS_PER_SECOND: u64 = 4;
/// Pause between two rounds: a small store is not read without end.
const ROUND_PAUSE: Duration = Duration::from_secs(60);
/// Places that are remembered, so that each is reported once; damage beyond that is reported in every round.
const REPORTED_MAX: usize = 10_000;

/// A thread's body; `rate_bytes` a second are read, not 0.
pub(super) fn run(hub: &Hub, stop: &Stop, rate_bytes: u64) {
    let mut scrubber = hub.storage.scrubber();
    let mut reported = BTreeSet::new();
    let budget_bytes = (rate_bytes / STEPS_PER_SECOND).max(1);
    let mut pause = Duration::ZERO;
    while !stop.is_raised_within(pause) {
        match scrubber.step(&hub.broker, budget_bytes) {
            Ok(step) => {
                let scrubbed = &hub.counters.scrubbed_bytes;
                scrubbed.fetch_add(step.read_bytes, Ordering::Relaxed);
                for rot in &step.found {
                    report(hub, rot, &mut reported);
                }
                // What was read at once beyond the budget is waited for.
                let share = step.read_bytes.saturating_mul(1000) / rate_bytes;
                pause = Duration::from_millis(share.max(1000 / STEPS_PER_SECOND));
                if step.is_round_over {
                    pause = pause.max(ROUND_PAUSE);
                }
            }
            Err(error) => {
                tracing::error!(%error, "the scrubber cannot read");
                pause = ROUND_PAUSE;
            }
        }
    }
}

fn report(hub: &Hub, rot: &Rot, reported: &mut BTreeSet<(String, u64)>) {
    let hit = rot
        .range
        .map_or_else(Vec::new, |range| find_hit(hub, range));
    let (mut message_count, mut kept_aside_count) = (0, 0);
    for (queue, unreadable) in hit {
        message_count += unreadable.messages.len();
        let mut effects = Effects::default();
        kept_aside_count += hub
            .broker
            .quarantine(queue, unreadable, hub.now_ms(), &mut effects);
        hub.carry_out(&mut effects);
    }
    let is_known = reported.contains(&(rot.path.clone(), rot.offset));
    if !is_known || kept_aside_count > 0 {
        if !is_known {
            hub.counters.scrub_found.fetch_add(1, Ordering::Relaxed);
            if reported.len() < REPORTED_MAX {
                reported.insert((rot.path.clone(), rot.offset));
            }
        }
        tracing::error!(
            file = rot.path,
            offset = rot.offset,
            detail = rot.detail,
            unreadable_messages = message_count,
            kept_aside = kept_aside_count,
            "the scrubber found damaged data; `strata-dump verify` shows all of it"
        );
    }
    if let Some((queue, run)) = rot.run {
        rewrite(hub, rot, queue, run);
    }
}

/// A block of an index file is derived, so it is written again.
fn rewrite(hub: &Hub, rot: &Rot, queue: QueueId, run: u64) {
    match hub.storage.rewrite_run(&hub.broker, queue, run) {
        Ok(true) => tracing::info!(
            file = rot.path,
            offset = rot.offset,
            "wrote a damaged index block again, from the log"
        ),
        Ok(false) => {}
        Err(error) => {
            tracing::warn!(%error, file = rot.path, offset = rot.offset, "cannot write an index block again");
        }
    }
}

/// The unsettled messages in `range` that cannot be read. All queues are gone through: that is slow, and rare.
fn find_hit(hub: &Hub, range: (Lsn, Lsn)) -> Vec<(QueueId, Unreadable)> {
    let segments = BTreeSet::from([range.0.segment()]);
    let mut hit = Vec::new();
    for id in hub.broker.queue_ids() {
        let (entries, runs) = hub.broker.refs_in(id, &segments);
        let mut unreadable = Unreadable {
            messages: find_unreadable(hub, id, range, &entries),
            runs: Vec::new(),
        };
        for run in runs {
            match hub.storage.read_run(id, &run) {
                Ok(of_run) => {
                    let found = find_unreadable(hub, id, range, &of_run);
                    if !found.is_empty() {
                        unreadable.messages.extend(found);
                        unreadable.runs.push((run, of_run));
                    }
                }
                // Found out when the run is needed.
                Err(error) => tracing::warn!(%error, queue = %id, "cannot look at a run"),
            }
        }
        if !unreadable.messages.is_empty() {
            hit.push((id, unreadable));
        }
    }
    hit
}

fn find_unreadable(
    hub: &Hub,
    queue: QueueId,
    range: (Lsn, Lsn),
    entries: &[ImageEntry],
) -> Vec<(Seq, Position, FetchFailure)> {
    let of_segment = entries
        .iter()
        .filter(|entry| entry.position.lsn.segment() == range.0.segment());
    let in_range = of_segment.filter(|entry| {
        let lsn = entry.position.lsn;
        let end = Lsn(lsn.0 + u64::from(entry.position.len_bytes));
        // At 0 lies what is nowhere: its index block is lost, and its batch too.
        lsn.offset() == 0 || lsn < range.1 && range.0 < end
    });
    let unreadable =
        in_range.filter_map(
            |entry| match hub.storage.read(queue, entry.seq, entry.position) {
                Err(error @ ReadError::Damaged { .. }) => {
                    let reason = error.to_string();
                    Some((entry.seq, entry.position, FetchFailure { reason }))
                }
                _ => None,
            },
        );
    unreadable.collect()
}
