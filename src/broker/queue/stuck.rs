//! Dead letters that nobody took, in a queue that keeps them until somebody does (DL-24).
//!
//! ```text
//!   bury --nobody takes it--> Stuck: in the log alone, counted for the length of the queue
//!            ^                   |  once a second a look, which reads nothing
//!            |                   |
//!            '------- some ------'  after a pause, which doubles while nobody takes any; at each look until all had
//!                                   their try when the topology changed, or what the queue obeys
//! ```
//! A try reads bodies and writes headers: all of a million letters each second would be all that the broker does. While
//! some of the last ones tried were taken, the next ones are tried at once: so a new binding, or a target that was full,
//! gets as much as it takes. They are tried in the order of their deaths, over and over.
//!
//! 1. A letter stands in the list while it is `Stuck`, also while it is tried. Whoever ends it in another way need not
//!    know of the list: a letter there without such an entry means nothing.
//! 2. Something is to be tried only after a look, and a look is never earlier than `look_at_ms`: so there is always a
//!    timer, or a body on its way, or a commit to wait for.

use std::collections::BTreeMap;

use super::slots::Status;
use super::state::QueueState;
use crate::broker::dead_letter::DeathReason;
use crate::storage::types::Seq;

/// Letters of a try, unless somebody takes them.
const TRY_MAX_COUNT: usize = 64;
/// The same when the topology changed.
const PASS_MAX_COUNT: usize = 256;
/// Between two looks.
const LOOK_MS: u64 = 1_000;
/// Between two tries.
const PAUSE_MIN_MS: u64 = 1_000;
const PAUSE_MAX_MS: u64 = 16_000;

/// Where a letter stands among those that are stuck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(u64);

/// A dead letter that nobody took.
#[derive(Clone, Copy, Debug)]
struct Letter {
    seq: Seq,
    reason: DeathReason,
    body_bytes: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Stuck {
    /// In the order of their deaths.
    letters: BTreeMap<Place, Letter>,
    /// Of their bodies.
    bytes: u64,
    next_place: u64,
    /// Those from here on are tried next.
    cursor: u64,
    /// Letters that may be tried now.
    tries_left: usize,
    /// Letters that are to be tried at the next looks, because the topology changed.
    pass_left: usize,
    look_at_ms: u64,
    try_at_ms: u64,
    pause_ms: u64,
    /// Of the topology at the last look, or earlier.
    version: u64,
    /// What the queue obeys has changed since the last look.
    is_changed: bool,
}

impl Stuck {
    /// A letter was routed by the topology of `version`, and nobody took it.
    fn add(&mut self, letter: Letter, now_ms: u64, version: u64) {
        if self.letters.is_empty() {
            self.version = version;
            self.look_at_ms = now_ms + LOOK_MS;
            (self.tries_left, self.pass_left) = (0, 0);
            self.pause(now_ms);
        }
        self.bytes += u64::from(letter.body_bytes);
        self.letters.insert(Place(self.next_place), letter);
        self.next_place += 1;
    }

    fn pause(&mut self, now_ms: u64) {
        self.pause_ms = PAUSE_MIN_MS;
        self.try_at_ms = now_ms + PAUSE_MIN_MS;
    }

    /// What the queue obeys has changed: the next look is now.
    pub(super) fn start_anew(&mut self) {
        self.is_changed = true;
        self.look_at_ms = 0;
    }

    /// Bytes of the bodies of all letters.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// True when some may be tried, or a look may find that.
    pub(super) fn is_due(&self, now_ms: u64) -> bool {
        !self.letters.is_empty() && (self.tries_left > 0 || self.look_at_ms <= now_ms)
    }

    /// True when some may be tried.
    pub(super) fn has_tries(&self) -> bool {
        self.tries_left > 0
    }

    /// When the next look is due; 0 for not by time.
    pub(super) fn due_at_ms(&self, now_ms: u64) -> u64 {
        match self.letters.is_empty() || self.is_due(now_ms) {
            true => 0,
            false => self.look_at_ms,
        }
    }

    /// Finds out whether some are to be tried.
    pub(super) fn look(&mut self, now_ms: u64, version: u64) {
        if self.tries_left > 0 || !self.is_due(now_ms) {
            return;
        }
        self.look_at_ms = now_ms + LOOK_MS;
        if self.version != version || self.is_changed {
            (self.version, self.is_changed) = (version, false);
            if self.pass_left == 0 {
                // Otherwise those behind the cursor would wait for a vhost in which nothing changes.
                self.cursor = 0;
            }
            self.pass_left = self.letters.len();
            self.pause(now_ms);
        }
        if self.pass_left > 0 {
            self.pass_left = self.pass_left.min(self.letters.len());
            self.tries_left = PASS_MAX_COUNT.min(self.pass_left);
            self.pass_left -= self.tries_left;
        } else if self.try_at_ms <= now_ms {
            self.tries_left = TRY_MAX_COUNT.min(self.letters.len());
            self.try_at_ms = now_ms + self.pause_ms;
            self.pause_ms = (self.pause_ms * 2).min(PAUSE_MAX_MS);
        }
    }

    /// The letters that may be tried now, in their order.
    fn to_try(&self) -> impl Iterator<Item = (Place, Letter)> {
        let behind = self.letters.range(Place(self.cursor)..);
        let before = self.letters.range(..Place(self.cursor));
        let letters = behind.chain(before).take(self.tries_left);
        letters.map(|(place, letter)| (*place, *letter))
    }

    /// This one, which is the first of those to try, is tried.
    fn advance(&mut self, place: Place) {
        self.cursor = place.0 + 1;
        self.tries_left = self.tries_left.saturating_sub(1);
    }

    /// This one, the last that was tried, was not tried after all.
    pub(super) fn give_back(&mut self, place: Place) {
        self.cursor = place.0;
        self.tries_left += 1;
    }

    /// Somebody took this one: more may follow.
    pub(super) fn taken(&mut self, place: Place, now_ms: u64) {
        self.forget(place);
        self.pause(now_ms);
        self.tries_left = self.tries_left.max(TRY_MAX_COUNT).min(self.letters.len());
    }

    /// This one is no dead letter any more.
    fn forget(&mut self, place: Place) {
        let gone = self.letters.remove(&place);
        self.bytes -= gone.map_or(0, |letter| u64::from(letter.body_bytes));
        self.tries_left = self.tries_left.min(self.letters.len());
    }
}

impl QueueState {
    /// Nobody took this letter: it waits, in the log alone.
    pub(super) fn keep_letter(&mut self, seq: Seq, reason: DeathReason, now_ms: u64, version: u64) {
        if !self.slots.set_status(seq, Status::Stuck) {
            // The queue was deleted meanwhile.
            return;
        }
        let body_bytes = self.slots.get(seq).map_or(0, |slot| slot.body_bytes());
        self.evict(seq);
        let letter = Letter {
            seq,
            reason,
            body_bytes,
        };
        let rare = self.rare.get_or_insert_default();
        rare.stuck.add(letter, now_ms, version);
    }

    /// The next letter that may be tried, if its body is in memory.
    pub(super) fn next_stuck(&mut self) -> Option<(Place, Seq, DeathReason)> {
        let Self { rare, slots, .. } = self;
        let stuck = &mut rare.as_mut()?.stuck;
        loop {
            let (place, Letter { seq, reason, .. }) = stuck.to_try().next()?;
            match slots.get(seq).filter(|slot| slot.status == Status::Stuck) {
                None => stuck.forget(place),
                Some(slot) if slot.message.is_none() => return None,
                Some(_) => {
                    stuck.advance(place);
                    return Some((place, seq, reason));
                }
            }
        }
    }

    /// Letters that will be tried next.
    pub(super) fn stuck_to_try(&self, max_count: usize) -> Vec<Seq> {
        let to_try = self.rare.iter().flat_map(|rare| rare.stuck.to_try());
        to_try
            .take(max_count)
            .map(|(_, letter)| letter.seq)
            .collect()
    }

    /// Where letters that nobody took are kept, if the queue ever had any.
    pub(super) fn stuck(&mut self) -> Option<&mut Stuck> {
        self.rare.as_mut().map(|rare| &mut rare.stuck)
    }
}
