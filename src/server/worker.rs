//! The worker thread: continuations on durability and timers of queues.
//!
//! ```text
//!  Effects.after_durable --> [heap by LSN ] --watermark--> Broker::redispatch / reveal
//!  Effects.timers        --> [heap by time] --clock------> Broker::timer_due
//! ```
//! One thread, because the work is short and a condition variable with a time-out serves both heaps.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::hub::Hub;
use crate::broker::effects::{AfterDurable, Effects, Timer};
use crate::broker::queue::QueueHandle;
use crate::storage::types::Lsn;
use crate::sync::{lock, wait_within};

/// Longest sleep; a bound for the case that the clock is stepped.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// Fewer timers are not worth a sweep.
const SWEEP_MIN_COUNT: usize = 1024;

/// Something ordered by a key only.
struct Due<K, T> {
    key: K,
    item: T,
}

impl<K: Ord, T> PartialEq for Due<K, T> {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}
impl<K: Ord, T> Eq for Due<K, T> {}
impl<K: Ord, T> PartialOrd for Due<K, T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<K: Ord, T> Ord for Due<K, T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}

type Heap<K, T> = BinaryHeap<Reverse<Due<K, T>>>;

fn push<K: Ord, T>(heap: &mut Heap<K, T>, key: K, item: T) {
    heap.push(Reverse(Due { key, item }));
}

/// Takes everything whose key is at most `now`.
fn take_due<K: Ord, T>(heap: &mut Heap<K, T>, now: &K, into: &mut Vec<T>) {
    while heap.peek().is_some_and(|Reverse(due)| due.key <= *now) {
        into.extend(heap.pop().map(|Reverse(due)| due.item));
    }
}

#[derive(Default)]
struct State {
    /// The watermark, as last published.
    confirm_lsn: Lsn,
    /// Bounded by the domain: at most one redispatch and one reveal per queue and push.
    continuations: Heap<Lsn, AfterDurable>,
    /// A queue re-arms only for an earlier time. A deleted one stays until its time comes or the heap is swept.
    timers: Heap<u64, QueueHandle>,
    /// Length of `timers` at which deleted queues are swept out.
    sweep_at: usize,
    is_stopping: bool,
}

impl State {
    /// Forgets deleted queues once they may be half of the heap: with long times to live and many short-lived
    /// queues they would pile up.
    fn sweep_timers(&mut self) {
        if self.timers.len() >= self.sweep_at.max(SWEEP_MIN_COUNT) {
            self.timers
                .retain(|Reverse(timer)| !timer.item.is_deleted());
            self.sweep_at = self.timers.len() * 2;
        }
    }
}

/// What the worker has to do; filled by all threads.
#[derive(Default)]
pub(super) struct WorkerQueue {
    state: Mutex<State>,
    wakes: Condvar,
}

impl WorkerQueue {
    /// The watermark passed `confirm_lsn`; called on the commit thread.
    pub(super) fn committed(&self, confirm_lsn: Lsn) {
        let mut state = lock(&self.state);
        state.confirm_lsn = state.confirm_lsn.max(confirm_lsn);
        if state
            .continuations
            .peek()
            .is_some_and(|Reverse(due)| due.key <= confirm_lsn)
        {
            self.wakes.notify_one();
        }
    }

    /// Takes over the continuations and timers of a call into the domain.
    pub(super) fn add(
        &self,
        continuations: &mut Vec<(Lsn, AfterDurable)>,
        timers: &mut Vec<Timer>,
        confirm_lsn: Lsn,
    ) {
        let mut state = lock(&self.state);
        // The commit thread may have published before these came in.
        state.confirm_lsn = state.confirm_lsn.max(confirm_lsn);
        for (lsn, continuation) in continuations.drain(..) {
            push(&mut state.continuations, lsn, continuation);
        }
        for timer in timers.drain(..) {
            push(&mut state.timers, timer.due_at_ms, timer.queue);
        }
        state.sweep_timers();
        self.wakes.notify_one();
    }

    /// Ends the thread.
    pub(super) fn stop(&self) {
        lock(&self.state).is_stopping = true;
        self.wakes.notify_one();
    }

    /// Sleeps until something is due; `None` when the thread is to end.
    fn wait(&self, hub: &Hub, due: &mut DueWork) -> Option<()> {
        let mut state = lock(&self.state);
        loop {
            if state.is_stopping {
                return None;
            }
            let now_ms = hub.now_ms();
            let confirm_lsn = state.confirm_lsn;
            take_due(
                &mut state.continuations,
                &confirm_lsn,
                &mut due.continuations,
            );
            take_due(&mut state.timers, &now_ms, &mut due.timers);
            if !due.is_empty() {
                return Some(());
            }
            let sleep = state.timers.peek().map_or(SLEEP_MAX, |Reverse(timer)| {
                Duration::from_millis(timer.key.saturating_sub(now_ms)).min(SLEEP_MAX)
            });
            state = wait_within(&self.wakes, state, sleep);
        }
    }
}

/// What one round has to do.
#[derive(Default)]
struct DueWork {
    continuations: Vec<AfterDurable>,
    timers: Vec<QueueHandle>,
}

impl DueWork {
    fn is_empty(&self) -> bool {
        self.continuations.is_empty() && self.timers.is_empty()
    }
}

/// The thread's body; ends after [`WorkerQueue::stop`].
pub(super) fn run(hub: &Arc<Hub>) {
    let mut due = DueWork::default();
    let mut effects = Effects::default();
    while hub.worker().wait(hub, &mut due).is_some() {
        let now_ms = hub.now_ms();
        for continuation in due.continuations.drain(..) {
            match continuation {
                AfterDurable::Redispatch(queue) => {
                    hub.broker.redispatch(&queue, now_ms, &mut effects)
                }
                AfterDurable::Reveal(queue) => hub.broker.reveal(&queue, now_ms, &mut effects),
            }
            hub.carry_out(&mut effects);
        }
        for queue in due.timers.drain(..) {
            hub.broker.timer_due(&queue, now_ms, &mut effects);
            hub.carry_out(&mut effects);
        }
    }
}
