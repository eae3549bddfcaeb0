//! The entries of a queue, in order of their seqs, with the sums over them.
//!
//! ```text
//!   seq      1 ... 255 | 256 ... 511 | (512 .. 1023 all settled: no run) | 1024 ...  <- next_seq
//!   runs     [ run 0 ]   [ run 1 ]                                         [ run 4 ]
//!                ^ one unacked straggler keeps 256 slots, not all that came after it
//! ```
//!
//! A run is dropped when nothing in it is left. While the queue is empty the last run restarts at
//! `next_seq`, so a queue that never gets deep touches the same few slots over and over.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::broker::message::Message;
use crate::storage::types::{Lsn, Position, Seq};

/// Seqs of one run.
const RUN_SEQS: u64 = 256;

/// What an entry is doing. Exactly one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// Nothing here: settled, or never used.
    Empty,
    /// Waits for a consumer.
    Ready,
    /// Delivered, not settled.
    Unacked,
    /// On its way to the dead-letter exchange: not deliverable, not counted, not settled.
    Leaving,
    /// Published by a transaction that is not durable yet: not deliverable, counted for limits.
    Hidden,
    /// Could not be read: kept, never delivered, never settled.
    Quarantined,
}

/// One entry.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) status: Status,
    /// It is in the log.
    pub(super) is_logged: bool,
    /// It may have been delivered before.
    pub(super) is_redelivered: bool,
    /// A reservation above it precedes its PUBLISH in the log (invariant 4).
    pub(super) is_covered: bool,
    /// A read of its body is on its way.
    pub(super) is_fetching: bool,
    /// A read of its body failed once.
    pub(super) has_failed: bool,
    pub(super) delivery_count: u32,
    /// Bytes of the body; 0 after a restart, until the body was read: a length limit must not drop a message for
    /// bytes it may not have.
    pub(super) body_bytes: u32,
    pub(super) position: Position,
    /// Unix milliseconds; 0 for never.
    pub(super) expires_at_ms: u64,
    /// The content, while it is in memory.
    pub(super) message: Option<Arc<Message>>,
}

impl Slot {
    const EMPTY: Self = Self {
        status: Status::Empty,
        is_logged: false,
        is_redelivered: false,
        is_covered: false,
        is_fetching: false,
        has_failed: false,
        delivery_count: 0,
        body_bytes: 0,
        position: Position {
            lsn: Lsn(0),
            len_bytes: 0,
        },
        expires_at_ms: 0,
        message: None,
    };

    /// An entry that just arrived.
    pub(super) fn arrived(status: Status, message: Arc<Message>, expires_at_ms: u64) -> Self {
        Self {
            status,
            body_bytes: u32::try_from(message.body_len()).unwrap_or(u32::MAX),
            expires_at_ms,
            message: Some(message),
            ..Self::EMPTY
        }
    }

    /// An entry known by its position only.
    pub(super) fn restored(position: Position, expires_at_ms: u64) -> Self {
        Self {
            status: Status::Ready,
            is_logged: true,
            position,
            expires_at_ms,
            ..Self::EMPTY
        }
    }

    fn resident_bytes(&self) -> u64 {
        self.message
            .as_ref()
            .map_or(0, |message| message.size_bytes() as u64)
    }
}

#[derive(Debug)]
struct Run {
    /// `seq / RUN_SEQS` of all its seqs.
    number: u64,
    /// Seq of `slots[0]`.
    first: u64,
    /// Slots that are not `Empty`.
    live_count: u32,
    /// Slots that are `Ready`.
    ready_count: u32,
    /// Slots whose content is in memory.
    content_count: u32,
    slots: Vec<Slot>,
}

/// Sums over the entries (invariant 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) ready_count: u64,
    pub(super) ready_bytes: u64,
    pub(super) unacked_count: u64,
    pub(super) leaving_count: u64,
    pub(super) hidden_count: u64,
    pub(super) hidden_bytes: u64,
    pub(super) quarantined_count: u64,
    /// Bytes of messages in memory.
    pub(super) resident_bytes: u64,
}

impl Sums {
    fn add(&mut self, status: Status, body_bytes: u32) {
        match status {
            Status::Empty => {}
            Status::Ready => {
                self.ready_count += 1;
                self.ready_bytes += u64::from(body_bytes);
            }
            Status::Unacked => self.unacked_count += 1,
            Status::Leaving => self.leaving_count += 1,
            Status::Hidden => {
                self.hidden_count += 1;
                self.hidden_bytes += u64::from(body_bytes);
            }
            Status::Quarantined => self.quarantined_count += 1,
        }
    }

    fn subtract(&mut self, status: Status, body_bytes: u32) {
        match status {
            Status::Empty => {}
            Status::Ready => {
                self.ready_count -= 1;
                self.ready_bytes -= u64::from(body_bytes);
            }
            Status::Unacked => self.unacked_count -= 1,
            Status::Leaving => self.leaving_count -= 1,
            Status::Hidden => {
                self.hidden_count -= 1;
                self.hidden_bytes -= u64::from(body_bytes);
            }
            Status::Quarantined => self.quarantined_count -= 1,
        }
    }

    /// Entries of any kind.
    pub(super) fn total_count(&self) -> u64 {
        self.ready_count
            + self.unacked_count
            + self.leaving_count
            + self.hidden_count
            + self.quarantined_count
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Slots {
    /// Ascending by number, not necessarily dense.
    runs: VecDeque<Run>,
    /// The slots of a run that ended, for the next one.
    spare: Option<Vec<Slot>>,
    next_seq: u64,
    /// No entry below this is ready.
    ready_from: u64,
    /// Entries whose content is not in memory.
    absent_count: u64,
    sums: Sums,
}

impl Slots {
    pub(super) fn new(next_seq: Seq) -> Self {
        Self {
            runs: VecDeque::new(),
            spare: None,
            next_seq: next_seq.0,
            ready_from: 0,
            absent_count: 0,
            sums: Sums::default(),
        }
    }

    /// False when every entry has its content in memory: there is nothing to read ahead.
    pub(super) fn has_absent(&self) -> bool {
        self.absent_count > 0
    }

    pub(super) fn sums(&self) -> &Sums {
        &self.sums
    }

    /// The seq that the next entry gets.
    pub(super) fn next_seq(&self) -> Seq {
        Seq(self.next_seq)
    }

    /// Appends an entry.
    pub(super) fn push(&mut self, slot: Slot) -> Seq {
        let seq = self.next_seq;
        self.next_seq += 1;
        self.append(seq, slot);
        Seq(seq)
    }

    /// Puts back an entry of an image; seqs must come in ascending order, below `next_seq`.
    pub(super) fn restore(&mut self, seq: Seq, slot: Slot) {
        debug_assert!(
            seq.0 < self.next_seq,
            "an image names no seq from its future"
        );
        self.append(seq.0, slot);
    }

    fn append(&mut self, seq: u64, slot: Slot) {
        let number = seq / RUN_SEQS;
        if self.runs.back().is_none_or(|run| run.number != number) {
            let slots = self.spare.take().unwrap_or_default();
            self.runs.push_back(Run {
                number,
                first: seq,
                live_count: 0,
                ready_count: 0,
                content_count: 0,
                slots,
            });
        }
        let run = self.runs.back_mut().expect("pushed above when missing");
        if run.live_count == 0 {
            run.slots.clear();
            run.first = seq;
        }
        while run.first + (run.slots.len() as u64) < seq {
            run.slots.push(Slot::EMPTY);
        }
        run.live_count += 1;
        run.content_count += u32::from(slot.message.is_some());
        if slot.status == Status::Ready {
            run.ready_count += 1;
            self.ready_from = self.ready_from.min(seq);
        }
        self.sums.add(slot.status, slot.body_bytes);
        self.sums.resident_bytes += slot.resident_bytes();
        self.absent_count += u64::from(slot.message.is_none());
        run.slots.push(slot);
    }

    /// Index of the run that holds `number`, or where it would stand.
    fn find_run(&self, number: u64) -> Result<usize, usize> {
        let Some(front) = self.runs.front() else {
            return Err(0);
        };
        let guess = number.wrapping_sub(front.number);
        if let Ok(index) = usize::try_from(guess)
            && self.runs.get(index).is_some_and(|run| run.number == number)
        {
            return Ok(index);
        }
        self.runs.binary_search_by_key(&number, |run| run.number)
    }

    fn locate(&self, seq: Seq) -> Option<(usize, usize)> {
        let index = self.find_run(seq.0 / RUN_SEQS).ok()?;
        let run = &self.runs[index];
        let at = usize::try_from(seq.0.checked_sub(run.first)?).ok()?;
        (run.slots.get(at)?.status != Status::Empty).then_some((index, at))
    }

    /// The entry `seq`.
    pub(super) fn get(&self, seq: Seq) -> Option<&Slot> {
        let (run, at) = self.locate(seq)?;
        Some(&self.runs[run].slots[at])
    }

    /// Changes fields of the entry `seq` that no sum depends on.
    pub(super) fn update(&mut self, seq: Seq, change: impl FnOnce(&mut Slot)) -> bool {
        let Some((run, at)) = self.locate(seq) else {
            return false;
        };
        let slot = &mut self.runs[run].slots[at];
        let before = (slot.status, slot.body_bytes, slot.message.is_some());
        change(slot);
        debug_assert_eq!(
            before,
            (slot.status, slot.body_bytes, slot.message.is_some()),
            "status, size and content have their own methods"
        );
        true
    }

    /// Moves the entry `seq` to another status; false when there is none.
    pub(super) fn set_status(&mut self, seq: Seq, status: Status) -> bool {
        debug_assert_ne!(status, Status::Empty, "entries end by `remove`");
        let Some((run, at)) = self.locate(seq) else {
            return false;
        };
        let run = &mut self.runs[run];
        let slot = &mut run.slots[at];
        if slot.status == Status::Ready {
            run.ready_count -= 1;
        }
        self.sums.subtract(slot.status, slot.body_bytes);
        slot.status = status;
        self.sums.add(slot.status, slot.body_bytes);
        if status == Status::Ready {
            run.ready_count += 1;
            self.ready_from = self.ready_from.min(seq.0);
        }
        true
    }

    /// Sets or drops the content of the entry `seq`.
    pub(super) fn set_message(&mut self, seq: Seq, message: Option<Arc<Message>>) {
        if let Some((run, at)) = self.locate(seq) {
            let run = &mut self.runs[run];
            let slot = &mut run.slots[at];
            run.content_count -= u32::from(slot.message.is_some());
            run.content_count += u32::from(message.is_some());
            self.sums.resident_bytes -= slot.resident_bytes();
            self.absent_count -= u64::from(slot.message.is_none());
            if let Some(message) = &message {
                self.sums.subtract(slot.status, slot.body_bytes);
                slot.body_bytes = u32::try_from(message.body_len()).unwrap_or(u32::MAX);
                self.sums.add(slot.status, slot.body_bytes);
            }
            slot.message = message;
            self.absent_count += u64::from(slot.message.is_none());
            self.sums.resident_bytes += slot.resident_bytes();
        }
    }

    /// Ends the entry `seq` and hands it out.
    pub(super) fn remove(&mut self, seq: Seq) -> Option<Slot> {
        let (index, at) = self.locate(seq)?;
        let run = &mut self.runs[index];
        let slot = std::mem::replace(&mut run.slots[at], Slot::EMPTY);
        self.sums.subtract(slot.status, slot.body_bytes);
        self.sums.resident_bytes -= slot.resident_bytes();
        self.absent_count -= u64::from(slot.message.is_none());
        run.live_count -= 1;
        run.content_count -= u32::from(slot.message.is_some());
        if slot.status == Status::Ready {
            run.ready_count -= 1;
        }
        if run.live_count == 0 {
            self.end_run(index);
        }
        Some(slot)
    }

    /// A run has no entries left: forgets it, unless the next entry belongs to it.
    fn end_run(&mut self, index: usize) {
        if self.runs[index].number == self.next_seq / RUN_SEQS {
            return;
        }
        if let Some(mut run) = self.runs.remove(index) {
            run.slots.clear();
            self.spare = (!self.runs.is_empty()).then_some(run.slots);
        }
    }

    /// The first ready entry.
    pub(super) fn first_ready(&mut self) -> Option<Seq> {
        let found = self.ready_at_or_after(Seq(self.ready_from));
        self.ready_from = found.map_or(self.next_seq, |seq| seq.0);
        found
    }

    /// The first ready entry that is not below `from`.
    pub(super) fn ready_at_or_after(&self, from: Seq) -> Option<Seq> {
        if self.sums.ready_count == 0 {
            return None;
        }
        let start = self.find_run(from.0 / RUN_SEQS).unwrap_or_else(|at| at);
        for run in self.runs.range(start..) {
            if run.ready_count == 0 {
                continue;
            }
            let skip = usize::try_from(from.0.saturating_sub(run.first)).unwrap_or(usize::MAX);
            let found = run
                .slots
                .iter()
                .enumerate()
                .skip(skip)
                .find(|(_, slot)| slot.status == Status::Ready);
            if let Some((at, _)) = found {
                return Some(Seq(run.first + at as u64));
            }
        }
        None
    }

    /// All entries, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Seq, &Slot)> {
        self.runs.iter().flat_map(|run| {
            run.slots
                .iter()
                .enumerate()
                .filter(|(_, slot)| slot.status != Status::Empty)
                .map(|(at, slot)| (Seq(run.first + at as u64), slot))
        })
    }

    /// Visits the entries whose content is in memory, the last one first, until `visit` has enough and says false.
    pub(super) fn contents_from_end(&self, mut visit: impl FnMut(Seq, &Slot) -> bool) {
        for run in self.runs.iter().rev().filter(|run| run.content_count > 0) {
            for (at, slot) in run.slots.iter().enumerate().rev() {
                if slot.message.is_some() && !visit(Seq(run.first + at as u64), slot) {
                    return;
                }
            }
        }
    }

    /// Runs in memory.
    #[cfg(test)]
    pub(super) fn run_count(&self) -> usize {
        self.runs.len()
    }

    /// Forgets everything and hands it out.
    pub(super) fn clear(&mut self) -> impl Iterator<Item = Slot> + use<> {
        let next_seq = Seq(self.next_seq);
        let cleared = std::mem::replace(self, Self::new(next_seq));
        let slots = cleared.runs.into_iter().flat_map(|run| run.slots);
        slots.filter(|slot| slot.status != Status::Empty)
    }
}
