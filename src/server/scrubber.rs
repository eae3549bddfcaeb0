//! The scrubber thread: has the store read again at a bounded rate, reports what does not verify, and has the messages
//! that it hits kept aside before a consumer asks for them.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::checkpointer::Stop;
use super::hub::Hub;
use crate::broker::effects::Effects;
use crate::broker::queue::{FetchFailure, Unreadable};
use crate::storage::scrub::{Rot, Step};
use crate::storage::types::{ImageEntry, Lsn, Position, QueueId, Seq};
use crate::storage::{CheckpointSource, ReadError};

/// Reads are made in steps of this part of a second: short enough to stop soon, long enough to cost no wake-ups.
const STEPS_PER_SECOND: u64 = 4;
/// Pause between two rounds: a small store is not read without end.
const ROUND_PAUSE: Duration = Duration::from_secs(60);
/// Places that are remembered, so that each is reported once; damage beyond that is reported in every round.
const REPORTED_MAX: usize = 10_000;

/// How fast it reads.
#[derive(Clone, Copy)]
struct Pace {
    /// A second; not 0.
    rate_bytes: u64,
}

impl Pace {
    /// Bytes of one step, about: a batch is read whole.
    fn budget_bytes(self) -> u64 {
        (self.rate_bytes / STEPS_PER_SECOND).max(1)
    }

    /// What was read at once beyond the budget is waited for. `None`: it failed, which it may do without end.
    fn pause_after(self, step: Option<&Step>) -> Duration {
        let Some(step) = step else {
            return ROUND_PAUSE;
        };
        let share_ms = step.read_bytes.saturating_mul(1000) / self.rate_bytes;
        let pause = Duration::from_millis(share_ms.max(1000 / STEPS_PER_SECOND));
        if step.is_round_over {
            return pause.max(ROUND_PAUSE);
        }
        pause
    }
}

/// Places that were reported.
#[derive(Default)]
struct Reported(BTreeSet<(String, u64)>);

impl Reported {
    /// True when a place was not reported before, as far as is remembered.
    fn is_news(&mut self, rot: &Rot) -> bool {
        let place = (rot.path.clone(), rot.offset);
        if self.0.contains(&place) {
            return false;
        }
        if self.0.len() < REPORTED_MAX {
            self.0.insert(place);
        }
        true
    }
}

/// A thread's body; `rate_bytes` a second are read, not 0.
pub(super) fn run(hub: &Hub, stop: &Stop, rate_bytes: u64) {
    let mut scrubber = hub.storage.scrubber();
    let mut reported = Reported::default();
    let pace = Pace { rate_bytes };
    let mut pause = Duration::ZERO;
    while !stop.is_raised_within(pause) {
        let step = scrubber.step(&hub.broker, pace.budget_bytes());
        pause = pace.pause_after(step.as_ref().ok());
        match step {
            Ok(step) => {
                let scrubbed = &hub.counters.scrubbed_bytes;
                scrubbed.fetch_add(step.read_bytes, Ordering::Relaxed);
                for rot in &step.found {
                    report(hub, rot, &mut reported);
                }
            }
            Err(error) => tracing::error!(%error, "the scrubber cannot read"),
        }
    }
}

fn report(hub: &Hub, rot: &Rot, reported: &mut Reported) {
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
    let is_news = reported.is_news(rot);
    if is_news || kept_aside_count > 0 {
        hub.counters
            .scrub_found
            .fetch_add(u64::from(is_news), Ordering::Relaxed);
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

/// True when the damage may hit a record that lies there.
fn touches(position: Position, range: (Lsn, Lsn)) -> bool {
    let lsn = position.lsn;
    let end = Lsn(lsn.0 + u64::from(position.len_bytes));
    // At 0 lies what is nowhere: its index block is lost, and its batch too.
    lsn.segment() == range.0.segment() && (lsn.offset() == 0 || lsn < range.1 && range.0 < end)
}

fn find_unreadable(
    hub: &Hub,
    queue: QueueId,
    range: (Lsn, Lsn),
    entries: &[ImageEntry],
) -> Vec<(Seq, Position, FetchFailure)> {
    let in_range = entries
        .iter()
        .filter(|entry| touches(entry.position, range));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn step(read_bytes: u64, is_round_over: bool) -> Step {
        Step {
            read_bytes,
            is_round_over,
            ..Step::default()
        }
    }

    #[test]
    fn no_more_is_read_in_the_long_run_than_the_rate_allows() {
        for rate_bytes in [1, 3, 1000, 4 << 20, 1 << 30, 1 << 40] {
            let pace = Pace { rate_bytes };
            let budget_bytes = pace.budget_bytes();
            assert!((1..=rate_bytes.div_ceil(STEPS_PER_SECOND)).contains(&budget_bytes));
            // Steps as long as they may be, and some that had to read more at once.
            for read_bytes in [budget_bytes, budget_bytes.saturating_mul(7), 16 << 20] {
                let pause_ms = pace.pause_after(Some(&step(read_bytes, false))).as_millis();
                let allowed = u128::from(rate_bytes) * (pause_ms + 1) / 1000;
                assert!(
                    u128::from(read_bytes) <= allowed,
                    "{read_bytes} at {rate_bytes}"
                );
            }
        }
    }

    #[test]
    fn the_thread_wakes_four_times_a_second_and_rests_between_rounds() {
        let pace = Pace {
            rate_bytes: 4 << 20,
        };
        let budget_bytes = pace.budget_bytes();
        assert_eq!(budget_bytes, 1 << 20);
        let quarter = Duration::from_millis(250);
        let pause = |read_bytes, is_over| pace.pause_after(Some(&step(read_bytes, is_over)));
        assert_eq!(pause(0, false), quarter);
        assert_eq!(pause(budget_bytes, false), quarter);
        assert_eq!(pause(budget_bytes * 8, false), quarter * 8);
        assert_eq!(pause(0, true), ROUND_PAUSE);
        let long = pause(budget_bytes * 1000, true);
        assert_eq!(long, quarter * 1000, "longer than the rest");
        assert_eq!(pace.pause_after(None), ROUND_PAUSE);
    }

    #[test]
    fn damage_touches_the_records_that_reach_into_it_and_those_that_are_nowhere() {
        use crate::storage::types::SegmentId;
        let at = |segment: u64, offset: u32| Lsn::new(SegmentId(segment), offset);
        let range = (at(3, 5000), at(3, 6000));
        for (lsn, is_touched) in [
            (at(3, 4900), false),
            (at(3, 4904), true),
            (at(3, 5500), true),
            (at(3, 5992), true),
            (at(3, 6000), false),
            (at(2, 5500), false),
            (at(4, 5500), false),
            (at(3, 0), true),
            (at(2, 0), false),
        ] {
            let len_bytes = 100;
            assert_eq!(
                touches(Position { lsn, len_bytes }, range),
                is_touched,
                "{lsn}"
            );
        }
    }

    #[test]
    fn a_place_is_news_once_and_few_enough_are_remembered() {
        let rot = |path: &str, offset: u64| Rot {
            path: path.into(),
            offset,
            detail: "rot".into(),
            range: None,
            run: None,
        };
        let mut reported = Reported::default();
        assert!(reported.is_news(&rot("a", 1)));
        assert!(reported.is_news(&rot("a", 2)));
        assert!(reported.is_news(&rot("b", 1)));
        assert!(!reported.is_news(&rot("a", 1)));
        for offset in 0..2 * REPORTED_MAX as u64 {
            reported.is_news(&rot("c", offset));
        }
        assert_eq!(reported.0.len(), REPORTED_MAX);
        assert!(!reported.is_news(&rot("b", 1)), "the first are remembered");
    }
}
