//! Wake-ups that are put off until everybody who is ready has run.
//!
//! ```text
//!   at once    P1 -> commit, C1..C10   P2 -> commit, C1..C10   P3 ...    each sends what one publisher brought, or less
//!   put off    P1   P2   P3 ...  nobody is ready -> commit, C1..C10      each sends what all of them brought
//! ```
//! A wake-up has its price whatever there is to do then: a commit of few messages, a send of few deliveries that wakes the
//! client. While several publishers are read in turn, each of them would have it paid again for the same connections, and the
//! runtime runs the one that was woken last before everybody else. So a round leaves its wake-ups here, and a task that yields
//! until nothing else is ready carries out all of them.
//!
//! 1. What is put off is carried out: who puts the first thing off wakes the task, which lives as long as connections do. With
//!    many who are always ready it would come late, so a round in [`ROUNDS_MAX`] does its work.
//!    At the runtime's end nobody is left to be woken, and closing the store looks for what is pending by itself.
//! 2. Who is alone does not wait: that would be another look at all sockets for nothing. When several times in a row only one
//!    round had come to the task, the next wake-ups are done at once, all but one in [`PROBE_EVERY`], which shows whether
//!    somebody else has come.

use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use crate::broker::effects::Effects;
use crate::broker::outbox::Outbox;
use crate::storage::Storage;
use crate::sync::lock;

/// When so many rounds have passed, the next one does not wait any longer for the others: what was put off is carried out
/// with its own wake-ups, whoever is still ready. Each round may be some hundred kilobytes.
const ROUNDS_MAX: u32 = 16;
/// So many times the task is tried before it is taken as useless.
const TRIES: u8 = 8;
/// While it is useless, one round in so many puts its wake-ups off. A prime: otherwise it could be the last one of its turn
/// each time, which nobody follows.
const PROBE_EVERY: u8 = 17;

/// See the module.
#[derive(Default)]
pub(super) struct Wakes {
    gathered: Mutex<Gathered>,
    /// Something was put off.
    is_due: Notify,
}

#[derive(Default)]
struct Gathered {
    outboxes: Vec<Arc<Outbox>>,
    wakes_commit: bool,
    /// Rounds since something was put off, that one included; 0 when nothing is.
    rounds: u32,
    /// Times that the task may still find one round only.
    tries: u8,
    /// Rounds that did not put off, since the last one that did.
    direct: u8,
}

impl Gathered {
    /// Puts off what `effects` wants woken, or leaves it there; true when the task has to be told.
    fn put_off(&mut self, effects: &mut Effects) -> bool {
        if self.rounds > 0 {
            self.rounds += 1;
        }
        if self.rounds > ROUNDS_MAX {
            effects.wakes_commit |= self.take(&mut effects.wakes);
            return false;
        }
        if effects.wakes.is_empty() && !effects.wakes_commit {
            return false;
        }
        if self.rounds == 0 && self.tries == 0 {
            self.direct += 1;
            if self.direct < PROBE_EVERY {
                return false;
            }
        }
        self.direct = 0;
        self.outboxes.append(&mut effects.wakes);
        self.wakes_commit |= std::mem::take(&mut effects.wakes_commit);
        let is_first = self.rounds == 0;
        self.rounds = self.rounds.max(1);
        is_first
    }

    /// Hands out what was put off: the outboxes behind `outboxes`, and whether there is something to commit.
    fn take(&mut self, outboxes: &mut Vec<Arc<Outbox>>) -> bool {
        self.tries = match self.rounds {
            // Somebody else has carried it out.
            0 => self.tries,
            1 => self.tries.saturating_sub(1),
            _ => TRIES,
        };
        self.rounds = 0;
        outboxes.append(&mut self.outboxes);
        std::mem::take(&mut self.wakes_commit)
    }
}

impl Wakes {
    /// At the end of a round that has published, or has somebody to wake: puts that off, or leaves it in `effects` to be done
    /// at once.
    pub(super) fn put_off(&self, effects: &mut Effects) {
        if lock(&self.gathered).put_off(effects) {
            self.is_due.notify_one();
        }
    }

    /// The task.
    pub(super) async fn run(&self, storage: &Storage) {
        let mut outboxes = Vec::new();
        loop {
            self.is_due.notified().await;
            // The runtime runs everybody who is ready and looks at the sockets before it comes back.
            tokio::task::yield_now().await;
            if lock(&self.gathered).take(&mut outboxes) {
                storage.wake();
            }
            for outbox in outboxes.drain(..) {
                outbox.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::outbox::Wake;

    #[derive(Debug)]
    struct Nobody;

    impl Wake for Nobody {
        fn wake(&self) {}
    }

    fn outbox() -> Arc<Outbox> {
        Arc::new(Outbox::new(Box::new(Nobody)))
    }

    fn waking(outboxes: &[&Arc<Outbox>], wakes_commit: bool) -> Effects {
        Effects {
            wakes: outboxes.iter().map(|outbox| Arc::clone(outbox)).collect(),
            wakes_commit,
            ..Effects::default()
        }
    }

    /// Several rounds were ready the last time.
    fn useful() -> Gathered {
        Gathered {
            tries: TRIES,
            ..Gathered::default()
        }
    }

    /// So many rounds, and the task; true when something was put off.
    fn turn(gathered: &mut Gathered, rounds: u32) -> bool {
        let outbox = outbox();
        let mut was_put_off = false;
        for _ in 0..rounds {
            let mut effects = waking(&[&outbox], false);
            was_put_off |= gathered.put_off(&mut effects);
            assert_eq!(effects.wakes.is_empty(), was_put_off);
        }
        if was_put_off {
            gathered.take(&mut Vec::new());
        }
        was_put_off
    }

    #[test]
    fn wakes_of_several_rounds_are_carried_out_together() {
        let mut gathered = useful();
        let (first, second) = (outbox(), outbox());
        let mut effects = waking(&[&first], false);
        assert!(gathered.put_off(&mut effects), "the task is told");
        let mut commit = waking(&[], true);
        assert!(!gathered.put_off(&mut commit), "once");
        let mut more = waking(&[&second], false);
        assert!(!gathered.put_off(&mut more));
        assert!(effects.wakes.is_empty() && more.wakes.is_empty() && !commit.wakes_commit);
        let mut due = Vec::new();
        assert!(gathered.take(&mut due));
        assert!(matches!(&due[..], [a, b] if Arc::ptr_eq(a, &first) && Arc::ptr_eq(b, &second)));
        let mut none = Vec::new();
        assert!(!gathered.take(&mut none) && none.is_empty());
    }

    #[test]
    fn who_is_alone_does_not_wait_and_is_looked_after() {
        let mut gathered = Gathered::default();
        let turns: Vec<bool> = (0..40).map(|_| turn(&mut gathered, 1)).collect();
        let probes = turns.iter().filter(|was_put_off| **was_put_off).count();
        assert_eq!(probes, 40 / usize::from(PROBE_EVERY));
        // Two come: a probe sees both, and from then on everything is put off.
        for _ in 0..2 * PROBE_EVERY {
            turn(&mut gathered, 2);
        }
        assert!((0..40).all(|_| turn(&mut gathered, 2)));
        // One of them leaves.
        let tries = (0..40).take_while(|_| turn(&mut gathered, 1)).count();
        assert_eq!(tries, usize::from(TRIES));
    }

    #[test]
    fn nobody_waits_for_more_than_so_many_rounds() {
        let mut gathered = useful();
        let (first, last) = (outbox(), outbox());
        assert!(gathered.put_off(&mut waking(&[&first], true)));
        for _ in 1..ROUNDS_MAX {
            let mut none = Effects::default();
            assert!(!gathered.put_off(&mut none));
            assert!(none.wakes.is_empty() && !none.wakes_commit);
        }
        let mut effects = waking(&[&last], false);
        assert!(!gathered.put_off(&mut effects));
        let [own, put_off] = &effects.wakes[..] else {
            panic!("what was put off comes with its own");
        };
        assert!(Arc::ptr_eq(own, &last) && Arc::ptr_eq(put_off, &first));
        assert!(effects.wakes_commit);
        // The task comes in vain, and is no less useful for it.
        let mut nothing = Vec::new();
        assert!(!gathered.take(&mut nothing) && nothing.is_empty());
        assert_eq!(gathered.tries, TRIES);
    }

    #[test]
    fn rounds_that_wake_nobody_count_when_something_waits() {
        let mut gathered = Gathered::default();
        assert!(!gathered.put_off(&mut Effects::default()));
        while !gathered.put_off(&mut waking(&[&outbox()], false)) {}
        // It publishes to the same connection, which is about to be woken.
        gathered.put_off(&mut Effects::default());
        gathered.take(&mut Vec::new());
        assert_eq!(gathered.tries, TRIES);
    }
}
