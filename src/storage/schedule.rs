//! When the commit thread writes, syncs, marks or sleeps: one pure function.
//!
//! | policy | something waited for | only lazy traffic |
//! |---|---|---|
//! | always | written and synced at once (after the commit delay) | written within 5 ms, synced within the ack limit |
//! | interval | written at once, synced an interval after the last sync | the same, but not before the interval |
//! | never | written at once | written within 5 ms |
//!
//! A forced sync (checkpoint, stop) and a full buffer override all of it.

use super::append::Pending;
use super::options::FsyncPolicy;

/// Lazy traffic is written within this time: what kill -9 can lose of it.
pub(crate) const LAZY_WRITE_NS: u64 = 5_000_000;
/// After this time without anything to do, the watermark is marked in the log.
pub(crate) const MARK_AFTER_NS: u64 = 1_000_000_000;
/// Nanoseconds of a millisecond.
pub(crate) const MS: u64 = 1_000_000;

/// Since when the oldest lazy and the oldest waited part of something exist, as the commit thread saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Since {
    pub(crate) lazy_ns: Option<u64>,
    pub(crate) waited_ns: Option<u64>,
}

impl Since {
    pub(crate) fn is_none(&self) -> bool {
        self.lazy_ns.is_none() && self.waited_ns.is_none()
    }

    /// Takes note of what is pending at `now_ns`; what is new of it may have been there since `lazy_from_ns`, if nobody
    /// waits for it.
    pub(crate) fn observe(&mut self, pending: Pending, lazy_from_ns: u64, now_ns: u64) {
        let keep =
            |since: Option<u64>, exists: bool, from_ns| exists.then(|| since.unwrap_or(from_ns));
        self.waited_ns = keep(self.waited_ns, pending.is_waited, now_ns);
        self.lazy_ns = keep(self.lazy_ns, pending.is_any, lazy_from_ns);
    }

    /// The older of both.
    pub(crate) fn merge(&mut self, other: Self) {
        self.lazy_ns = earliest(self.lazy_ns, other.lazy_ns);
        self.waited_ns = earliest(self.waited_ns, other.waited_ns);
    }
}

/// What the decision depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Situation {
    pub(crate) now_ns: u64,
    pub(crate) policy: FsyncPolicy,
    /// Commits are held open that long.
    pub(crate) delay_ns: u64,
    /// But not when this much is pending.
    pub(crate) batch_max_bytes: u64,
    /// Lazy traffic is synced within this time.
    pub(crate) lazy_sync_ns: u64,
    /// Bytes not written yet.
    pub(crate) pending_bytes: u64,
    /// Not written yet.
    pub(crate) pending: Since,
    /// Written, not synced yet.
    pub(crate) unsynced: Since,
    /// When the last sync ended.
    pub(crate) last_sync_ns: u64,
    /// A checkpoint or a stop waits for a sync.
    pub(crate) is_forced: bool,
    /// Somebody waits until less is un-durable.
    pub(crate) is_full: bool,
    /// When the watermark is to be marked if nothing happens until then.
    pub(crate) mark_at_ns: Option<u64>,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Write what is pending, or sync what is written, or first one and then the other.
    Commit { is_write: bool, is_sync: bool },
    /// Write and sync a mark.
    Mark,
    /// Nothing before that time, or (`None`) before something is pushed.
    Sleep { until_ns: Option<u64> },
}

fn earliest(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (only, None) | (None, only) => only,
    }
}

/// Decides what to do in a situation.
pub(crate) fn decide(at: &Situation) -> Plan {
    let has_pending = !at.pending.is_none();
    if at.is_forced {
        return Plan::Commit {
            is_write: has_pending,
            is_sync: true,
        };
    }
    let write_at = write_due(at);
    let sync_at = sync_due(at);
    let is_due = |due: Option<u64>| due.is_some_and(|due| due <= at.now_ns);
    let is_sync = is_due(sync_at);
    let is_write = is_due(write_at) || (is_sync && has_pending);
    if is_write || is_sync {
        return Plan::Commit { is_write, is_sync };
    }
    let is_idle = !has_pending && (at.unsynced.is_none() || at.policy == FsyncPolicy::Never);
    let mark_at = at.mark_at_ns.filter(|_| is_idle);
    if is_due(mark_at) {
        return Plan::Mark;
    }
    Plan::Sleep {
        until_ns: earliest(earliest(write_at, sync_at), mark_at),
    }
}

/// When something that is waited for shall be on its way.
fn waited_write_due(at: &Situation) -> Option<u64> {
    let since = at
        .pending
        .waited_ns
        .or(at.pending.lazy_ns.filter(|_| at.is_full))?;
    let is_delayed = at.pending_bytes < at.batch_max_bytes && !at.is_full;
    Some(if is_delayed {
        since.saturating_add(at.delay_ns)
    } else {
        since
    })
}

/// Since when only lazy traffic is pending. Together with something that is waited for it goes when that goes, else a
/// commit delay longer than the lazy limits would end with them.
fn only_lazy_ns(at: &Situation) -> Option<u64> {
    at.pending
        .lazy_ns
        .filter(|_| at.pending.waited_ns.is_none())
}

fn write_due(at: &Situation) -> Option<u64> {
    let lazy = only_lazy_ns(at).map(|since| since.saturating_add(LAZY_WRITE_NS));
    earliest(waited_write_due(at), lazy)
}

fn sync_due(at: &Situation) -> Option<u64> {
    let waited = earliest(waited_write_due(at), at.unsynced.waited_ns);
    let waited = if at.is_full {
        earliest(waited, at.unsynced.lazy_ns)
    } else {
        waited
    };
    let lazy = earliest(only_lazy_ns(at), at.unsynced.lazy_ns)
        .map(|since| since.saturating_add(at.lazy_sync_ns));
    let due = earliest(waited, lazy);
    match at.policy {
        FsyncPolicy::Always => due,
        // What is pending stands in somebody's way.
        FsyncPolicy::Interval { .. } if at.is_full => due,
        FsyncPolicy::Interval { ms } => {
            let earliest_sync = at.last_sync_ns.saturating_add(ms.saturating_mul(MS));
            due.map(|due| due.max(earliest_sync))
        }
        FsyncPolicy::Never => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALWAYS: FsyncPolicy = FsyncPolicy::Always;
    const INTERVAL: FsyncPolicy = FsyncPolicy::Interval { ms: 10 };
    const NEVER: FsyncPolicy = FsyncPolicy::Never;
    const NOW: u64 = 1_000 * MS;

    fn at(policy: FsyncPolicy) -> Situation {
        Situation {
            now_ns: NOW,
            policy,
            delay_ns: 0,
            batch_max_bytes: 1000,
            lazy_sync_ns: 50 * MS,
            pending_bytes: 10,
            pending: Since::default(),
            unsynced: Since::default(),
            last_sync_ns: NOW - 4 * MS,
            is_forced: false,
            is_full: false,
            mark_at_ns: None,
        }
    }

    fn waited(ms_ago: u64) -> Since {
        Since {
            lazy_ns: Some(NOW - ms_ago * MS),
            waited_ns: Some(NOW - ms_ago * MS),
        }
    }

    fn lazy(ms_ago: u64) -> Since {
        Since {
            lazy_ns: Some(NOW - ms_ago * MS),
            waited_ns: None,
        }
    }

    const WRITE: Plan = Plan::Commit {
        is_write: true,
        is_sync: false,
    };
    const SYNC: Plan = Plan::Commit {
        is_write: false,
        is_sync: true,
    };
    const BOTH: Plan = Plan::Commit {
        is_write: true,
        is_sync: true,
    };

    fn sleep(ms_ahead: u64) -> Plan {
        Plan::Sleep {
            until_ns: Some(NOW + ms_ahead * MS),
        }
    }

    #[track_caller]
    fn check(situation: Situation, expected: Plan) {
        assert_eq!(decide(&situation), expected, "in {situation:?}");
    }

    #[test]
    fn idle_thread_sleeps_until_something_is_pushed() {
        for policy in [ALWAYS, INTERVAL, NEVER] {
            check(at(policy), Plan::Sleep { until_ns: None });
        }
    }

    #[test]
    fn waited_traffic_is_synced_by_policy() {
        check(
            Situation {
                pending: waited(0),
                ..at(ALWAYS)
            },
            BOTH,
        );
        check(
            Situation {
                pending: waited(0),
                ..at(INTERVAL)
            },
            WRITE,
        );
        check(
            Situation {
                unsynced: waited(0),
                ..at(INTERVAL)
            },
            sleep(6),
        );
        check(
            Situation {
                unsynced: waited(9),
                last_sync_ns: NOW - 10 * MS,
                ..at(INTERVAL)
            },
            SYNC,
        );
        check(
            Situation {
                pending: waited(0),
                ..at(NEVER)
            },
            WRITE,
        );
        check(
            Situation {
                unsynced: waited(0),
                ..at(NEVER)
            },
            Plan::Sleep { until_ns: None },
        );
    }

    #[test]
    fn lazy_traffic_is_written_within_5_ms_and_synced_within_the_limit() {
        check(
            Situation {
                pending: lazy(0),
                ..at(ALWAYS)
            },
            sleep(5),
        );
        check(
            Situation {
                pending: lazy(5),
                ..at(ALWAYS)
            },
            WRITE,
        );
        check(
            Situation {
                unsynced: lazy(20),
                ..at(ALWAYS)
            },
            sleep(30),
        );
        check(
            Situation {
                pending: lazy(1),
                unsynced: lazy(50),
                ..at(ALWAYS)
            },
            BOTH,
        );
        check(
            Situation {
                pending: waited(0),
                unsynced: lazy(1),
                ..at(ALWAYS)
            },
            BOTH,
        );
        check(
            Situation {
                unsynced: lazy(50),
                ..at(INTERVAL)
            },
            sleep(6),
        );
        check(
            Situation {
                pending: lazy(5),
                ..at(NEVER)
            },
            WRITE,
        );
    }

    #[test]
    fn ack_limit_of_zero_syncs_with_every_commit() {
        check(
            Situation {
                pending: lazy(0),
                lazy_sync_ns: 0,
                ..at(ALWAYS)
            },
            BOTH,
        );
    }

    #[test]
    fn commit_delay_holds_a_commit_open_but_not_a_full_batch() {
        let held = Situation {
            pending: waited(1),
            delay_ns: 3 * MS,
            ..at(ALWAYS)
        };
        check(held, sleep(2));
        // Longer than the limits of lazy traffic, which goes along.
        let long = Situation {
            delay_ns: 300 * MS,
            pending: waited(100),
            ..held
        };
        check(long, sleep(200));
        check(
            Situation {
                pending_bytes: 1000,
                ..held
            },
            BOTH,
        );
        check(
            Situation {
                is_full: true,
                ..held
            },
            BOTH,
        );
        check(
            Situation {
                pending: waited(3),
                ..held
            },
            BOTH,
        );
    }

    #[test]
    fn full_buffer_is_committed_although_nobody_waits() {
        check(
            Situation {
                pending: lazy(0),
                is_full: true,
                ..at(ALWAYS)
            },
            BOTH,
        );
        check(
            Situation {
                unsynced: lazy(0),
                is_full: true,
                ..at(ALWAYS)
            },
            SYNC,
        );
        check(
            Situation {
                unsynced: waited(0),
                is_full: true,
                ..at(INTERVAL)
            },
            SYNC,
        );
    }

    #[test]
    fn forced_sync_happens_in_every_mode() {
        for policy in [ALWAYS, INTERVAL, NEVER] {
            check(
                Situation {
                    is_forced: true,
                    ..at(policy)
                },
                SYNC,
            );
            check(
                Situation {
                    is_forced: true,
                    pending: lazy(0),
                    ..at(policy)
                },
                BOTH,
            );
        }
    }

    #[test]
    fn mark_waits_for_idleness() {
        let marked = Situation {
            mark_at_ns: Some(NOW),
            ..at(ALWAYS)
        };
        check(marked, Plan::Mark);
        check(
            Situation {
                mark_at_ns: Some(NOW + 7 * MS),
                ..marked
            },
            sleep(7),
        );
        check(
            Situation {
                pending: lazy(0),
                ..marked
            },
            sleep(5),
        );
        check(
            Situation {
                unsynced: lazy(0),
                ..marked
            },
            sleep(50),
        );
    }
}
