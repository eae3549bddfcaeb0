//! Messages that do not stay where they were published: they expire, are pushed out, fail too often, are rejected, or wait first.
//!
//! ```text
//!  fading-*  (time to live)   --expired---------.
//!  narrow    (at most 5)      --maxlen-----------+--> grave
//!  counted   (quorum, 3 fails)--delivery_limit---+
//!  ruled     (what its policy says, if any)------'
//!  retry     (classic)  --rejected--> pause (time to live) --expired--> retry, again and again
//!  delayed exchange  ...due...> arrivals
//! ```
//! Every move is one atomic group, so after any crash a confirmed message is in exactly one of these queues, with the history that
//! tells how it came there. [`terms`] says what a queue does to a message, [`ledger`] what is known of each message, [`judge`] what
//! may be seen; [`sighting`] is what is seen. [`work`] makes them move, [`look`] looks for them after a restart, [`policies`]
//! changes the rules of the queue `ruled`.

pub(crate) mod judge;
pub(crate) mod ledger;
mod look;
mod policies;
pub(crate) mod sighting;
pub(crate) mod terms;
mod work;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::history::MessageId;
use crate::support::raw::now;
use ledger::{Ledger, Step};
use policies::Rule;

/// The ledger, shared, with its clock; see the module.
pub(super) struct Moving {
    book: Mutex<Book>,
    began: Instant,
}

/// What changes with time.
struct Book {
    ledger: Ledger,
    last_id: MessageId,
    /// What rules the queue `ruled` at present.
    rule: Rule,
}

impl Moving {
    /// Nothing has moved yet, and there is no policy.
    pub(super) fn new() -> Self {
        Self {
            book: Mutex::new(Book {
                ledger: Ledger::default(),
                last_id: 0,
                rule: Rule::default(),
            }),
            began: now(),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // A thread that panicked fails the test anyhow.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Milliseconds on a clock of its own.
    fn now_ms(&self) -> u64 {
        u64::try_from((now() - self.began).as_millis()).unwrap_or(u64::MAX)
    }

    fn note(&self, step: Step) {
        self.book().ledger.note(self.now_ms(), step);
    }

    /// Steps so far.
    pub(super) fn step_count(&self) -> usize {
        self.book().ledger.step_count()
    }

    /// What was seen, in a few words.
    pub(super) fn census(&self) -> String {
        format!("{:?}", self.book().ledger.census())
    }

    /// The broker is gone.
    pub(super) fn ended(&self, was_killed: bool) {
        self.note(if was_killed {
            Step::Killed
        } else {
            Step::Stopped
        });
    }
}
