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
//!
//! With priorities the runs of each level stand behind those of the higher ones, and entries arrive at the end of each
//! level (`tails`): so the order of seqs is the order of delivery there too.
//!
//! The runs of a deep queue leave memory for the queue's index file and come back when they are wanted (`run`,
//! `paging`). An entry of a filed run is counted in the sums but cannot be looked up: it is ready, and nobody knows
//! its seq by name.

mod ending;
mod holding;
mod moving;
mod paging;
mod run;
mod slot;
mod sums;
mod tails;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use self::run::{Body, Resident, Run};
use self::tails::Tails;
use crate::broker::message::Message;
use crate::cache_line::TOUCHED_TOGETHER;
use crate::storage::run::RUN_SEQS;
use crate::storage::types::{Position, Seq};

pub(super) use self::paging::{PagedIn, Policy, Shed};
pub(super) use self::slot::{SLOT_BYTES, Slot, Status};
pub(super) use self::sums::Sums;

/// Slots that an empty queue keeps for the next entries.
const IDLE_MAX_SLOTS: usize = 8;

/// The next ready entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// There is none.
    None,
    /// In memory.
    Entry(Seq),
    /// In the index file; the first it may be.
    Filed(Seq),
}

impl Head {
    /// The entry, when it is in memory.
    pub(super) fn entry(self) -> Option<Seq> {
        match self {
            Self::Entry(seq) => Some(seq),
            Self::None | Self::Filed(_) => None,
        }
    }
}

/// Where an entry in memory stands; good until an entry arrives or ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) seq: Seq,
    run: usize,
    at: usize,
}

/// See the module. In the order of [`Queue`](crate::broker::queue::Queue).
#[derive(Debug)]
#[repr(C)]
pub(super) struct Slots {
    tails: Tails,
    /// No entry below this is ready.
    ready_from: u64,
    /// Ascending by number, not necessarily dense.
    runs: VecDeque<Run>,
    sums: Sums,
    /// Entries in memory whose content is not.
    absent_count: u64,
    /// Slots of the runs in memory, used or not.
    slot_count: u64,
    /// Runs that are in the index file only: what memory holds of them sets their number a limit far below this one.
    filed_count: u32,
    /// An entry had a time to live since the queue was last empty.
    may_expire: bool,
    /// Times to live mean nothing here.
    never_expires: bool,
    /// What is below may have been delivered before the start.
    redelivered_below: u64,
    /// A run that ended, for the next one.
    spare: Option<Box<Resident>>,
}

impl Slots {
    /// Entries from `next_seq` on, in this many ranks; 0 for a queue without priorities.
    pub(super) fn new(next_seq: Seq, rank_count: u16) -> Self {
        Self::with_tails(Tails::new(next_seq, rank_count))
    }

    fn with_tails(tails: Tails) -> Self {
        Self {
            tails,
            runs: VecDeque::new(),
            spare: None,
            ready_from: 0,
            absent_count: 0,
            slot_count: 0,
            filed_count: 0,
            may_expire: false,
            never_expires: false,
            redelivered_below: 0,
            sums: Sums::default(),
        }
    }

    /// Reads a word of each part that an entry at the end, and one near the head, is changed in.
    pub(super) fn warm(&self) -> u64 {
        let last = self.runs.back().and_then(Run::resident);
        let slot = last.and_then(|resident| resident.slots.last());
        let seen = slot.map_or(0, |slot| u64::from(slot.body_bytes()));
        seen ^ self.sums.resident_bytes ^ self.slot_count
    }

    /// False when no entry has a time to live, or when that means nothing.
    pub(super) fn may_expire(&self) -> bool {
        self.may_expire && !self.never_expires
    }

    /// From now on no entry expires, whatever stands in it.
    pub(super) fn keep_expired(&mut self) {
        self.never_expires = true;
    }

    /// False when every entry in memory, delivered ones too, has its content in memory: there is nothing to read ahead.
    pub(super) fn has_absent(&self) -> bool {
        self.absent_count > 0
    }

    pub(super) fn sums(&self) -> &Sums {
        &self.sums
    }

    /// Above the count of every seq that was given.
    pub(super) fn next_seq(&self) -> Seq {
        self.tails.bound()
    }

    /// The seq that the next entry of `rank` gets.
    pub(super) fn next_seq_in(&self, rank: u16) -> Seq {
        self.tails.next(rank)
    }

    /// True when the order of delivery is that of priorities.
    pub(super) fn has_ranks(&self) -> bool {
        self.tails.has_ranks()
    }

    /// What is below counts as redelivered anyway.
    pub(super) fn redelivered_below(&self) -> Seq {
        Seq(self.redelivered_below)
    }

    /// Appends an entry to those of its rank.
    pub(super) fn push(&mut self, rank: u16, slot: Slot) -> Seq {
        let seq = self.tails.take(rank);
        self.append(seq.0, slot);
        seq
    }

    /// Gives away the seq of an entry that ends as it arrives, in a queue without ranks: [`Slots::push`] and
    /// [`Slots::remove`] without an entry.
    pub(super) fn pass(&mut self) -> Seq {
        debug_assert!(!self.has_ranks(), "an entry passes in its rank");
        let seq = self.tails.take(0);
        if seq.0 % RUN_SEQS == RUN_SEQS - 1 {
            self.end_tail(seq.0 / RUN_SEQS);
        }
        seq
    }

    /// The run `number` gets no more entries: it goes if it has none, as the last of them would have seen to.
    fn end_tail(&mut self, number: u64) {
        let is_over = |run: &Run| run.number == number && run.live_count == 0;
        if self.runs.back().is_some_and(is_over)
            && let Some(run) = self.runs.pop_back()
            && let Some(resident) = run.resident()
        {
            self.slot_count -= resident.slots.len() as u64;
        }
    }

    fn append(&mut self, seq: u64, slot: Slot) {
        let number = seq / RUN_SEQS;
        let index = match self.runs.back() {
            Some(run) if run.number == number => self.runs.len() - 1,
            _ => self.run_for(seq),
        };
        let run = &mut self.runs[index];
        let is_first = run.live_count == 0;
        run.live_count += 1;
        if slot.status == Status::Ready {
            run.ready_count += 1;
            self.ready_from = self.ready_from.min(seq);
        }
        self.sums.add(slot.status, slot.body_bytes());
        self.sums.resident_bytes += slot.resident_bytes();
        self.absent_count += u64::from(slot.message.is_none());
        self.may_expire |= slot.expires_at_ms != 0;
        let resident = run.resident_mut().expect(
            "a run with a block gets no more entries: the next seq of its rank is above it",
        );
        debug_assert_eq!(resident.block, None, "a run with a block is complete");
        resident.is_offered = false;
        let before = resident.slots.len();
        if is_first {
            resident.slots.clear();
            resident.first = seq;
        }
        while resident.first + (resident.slots.len() as u64) < seq {
            resident.slots.push(Slot::EMPTY);
        }
        resident.content_count += u16::from(slot.message.is_some());
        resident.slots.push(slot);
        self.slot_count = self.slot_count + resident.slots.len() as u64 - before as u64;
    }

    /// Index of the run that the entry `seq`, which arrives, belongs to; it is made if need be.
    fn run_for(&mut self, seq: u64) -> usize {
        let found = self.find_run(seq / RUN_SEQS);
        found.unwrap_or_else(|at| {
            if self.runs.capacity() == 0 {
                // Most queues never have a second one.
                self.runs.reserve_exact(1);
            }
            let place = self.fresh_run(at);
            self.runs.insert(at, Run::new(seq, place));
            at
        })
    }

    /// Index of the run that holds `number`, or where it would stand.
    #[inline]
    fn find_run(&self, number: u64) -> Result<usize, usize> {
        let Some(front) = self.runs.front() else {
            return Err(0);
        };
        if front.number == number {
            return Ok(0);
        }
        let guess = number.wrapping_sub(front.number);
        if let Ok(index) = usize::try_from(guess)
            && self.runs.get(index).is_some_and(|run| run.number == number)
        {
            return Ok(index);
        }
        self.search_run(number)
    }

    #[cold]
    fn search_run(&self, number: u64) -> Result<usize, usize> {
        // Behind a straggler, which leaves a hole, they are mostly dense again.
        if let Some(back) = self.runs.back()
            && let Ok(behind) = usize::try_from(back.number.wrapping_sub(number))
            && let Some(index) = (self.runs.len() - 1).checked_sub(behind)
            && self.runs[index].number == number
        {
            return Ok(index);
        }
        self.runs.binary_search_by_key(&number, |run| run.number)
    }

    /// The run in memory that holds the entry `seq`, and where in it.
    #[inline]
    fn locate(&self, seq: Seq) -> Option<(usize, usize)> {
        let index = self.find_run(seq.0 / RUN_SEQS).ok()?;
        let at = self.runs.get(index)?.resident()?.index_of(seq)?;
        Some((index, at))
    }

    /// Where the entry `seq` stands, if it is in memory.
    #[inline]
    pub(super) fn place_of(&self, seq: Seq) -> Option<Place> {
        let (run, at) = self.locate(seq)?;
        Some(Place { seq, run, at })
    }

    /// Where the first ready entry stands, if that is in memory.
    #[inline]
    pub(super) fn first_ready_place(&mut self) -> Option<Place> {
        if self.sums.ready_count == 0 {
            return None;
        }
        // Nearly always the one behind the last that was taken.
        let near = Seq(self.ready_from);
        if let Some(place) = self.place_of(near)
            && self.at(place).status == Status::Ready
        {
            return Some(place);
        }
        let seq = self.first_ready().entry()?;
        self.place_of(seq)
    }

    /// Looks at the messages of some entries from `place` on, which are served next: the thread that has read them may have
    /// them in its cache, and they are fetched side by side that way.
    pub(super) fn warm_from(&self, place: Place) {
        let resident = self.runs.get(place.run).and_then(Run::resident);
        let slots = resident.and_then(|resident| resident.slots.get(place.at..));
        let next = slots.unwrap_or_default().iter().take(TOUCHED_TOGETHER);
        let messages = next.filter_map(|slot| slot.message.as_ref());
        let seen = messages.map(|message| Arc::strong_count(message) ^ message.payload_len());
        std::hint::black_box(seen.fold(0, |seen, word| seen ^ word));
    }

    /// The entry at `place`.
    #[inline]
    pub(super) fn at(&self, place: Place) -> &Slot {
        let resident = self.runs[place.run].resident();
        &resident.expect("a place is in memory").slots[place.at]
    }

    /// The entry `seq`, if it is in memory.
    #[inline]
    pub(super) fn get(&self, seq: Seq) -> Option<&Slot> {
        let index = self.find_run(seq.0 / RUN_SEQS).ok()?;
        let resident = self.runs.get(index)?.resident()?;
        resident.slots.get(resident.index_of(seq)?)
    }

    /// Changes fields of the entry `seq` that no sum depends on.
    pub(super) fn update(&mut self, seq: Seq, change: impl FnOnce(&mut Slot)) -> bool {
        let Some(place) = self.place_of(seq) else {
            return false;
        };
        self.update_at(place, change);
        true
    }

    /// As [`Slots::update`], of the entry at `place`.
    pub(super) fn update_at(&mut self, place: Place, change: impl FnOnce(&mut Slot)) {
        let Some(resident) = self.runs[place.run].resident_mut() else {
            return;
        };
        let slot = &mut resident.slots[place.at];
        let before = (slot.status, slot.body_bytes(), slot.message.is_some());
        change(slot);
        debug_assert_eq!(
            before,
            (slot.status, slot.body_bytes(), slot.message.is_some()),
            "status, size and content have their own methods"
        );
    }

    /// The message of the entry `seq` was written, to the log or to a spill file, in a record at `position`.
    pub(super) fn set_position(&mut self, seq: Seq, position: Position) {
        if let Some((index, at)) = self.locate(seq)
            && let Some(resident) = self.runs[index].resident_mut()
        {
            debug_assert_eq!(resident.block, None, "a run with a block is complete");
            resident.is_offered = false;
            resident.slots[at].set_position(position);
        }
    }

    /// Moves the entry `seq` to another status; false when there is none.
    pub(super) fn set_status(&mut self, seq: Seq, status: Status) -> bool {
        debug_assert_ne!(status, Status::Empty, "entries end by `remove`");
        let Some(place) = self.place_of(seq) else {
            return false;
        };
        self.set_status_at(place, status);
        true
    }

    /// Moves the entry at `place` to another status.
    #[inline]
    pub(super) fn set_status_at(&mut self, place: Place, status: Status) {
        let run = &mut self.runs[place.run];
        let Body::Resident(resident) = &mut run.body else {
            return;
        };
        let slot = &mut resident.slots[place.at];
        let ready_count = &mut run.ready_count;
        let before = slot.status;
        let body_bytes = slot.body_bytes();
        slot.status = status;
        *ready_count -= u16::from(before == Status::Ready);
        *ready_count += u16::from(status == Status::Ready);
        self.sums.subtract(before, body_bytes);
        self.sums.add(status, body_bytes);
        if status == Status::Ready {
            self.ready_from = self.ready_from.min(place.seq.0);
        } else {
            self.pass_ready(place.seq);
        }
    }

    /// The entry `seq` is not ready any more: whoever looks for the first that is begins behind it.
    #[inline]
    fn pass_ready(&mut self, seq: Seq) {
        if self.ready_from == seq.0 {
            self.ready_from = seq.0.saturating_add(1);
        }
    }

    /// Sets the size of the body of the entry `seq`, whose message is not here.
    pub(super) fn set_body_bytes(&mut self, seq: Seq, body_bytes: u32) {
        let Some((index, at)) = self.locate(seq) else {
            return;
        };
        let Some(resident) = self.runs[index].resident_mut() else {
            return;
        };
        let slot = &mut resident.slots[at];
        if slot.message.is_some() {
            return;
        }
        let before = slot.body_bytes();
        slot.set_body_bytes(body_bytes);
        self.sums.subtract(slot.status, before);
        self.sums.add(slot.status, slot.body_bytes());
    }

    /// Sets or drops the content of the entry `seq`.
    pub(super) fn set_message(&mut self, seq: Seq, message: Option<Arc<Message>>) {
        if let Some(place) = self.place_of(seq) {
            self.set_message_at(place, message);
        }
    }

    /// Sets or drops the content of the entry at `place`.
    pub(super) fn set_message_at(&mut self, place: Place, message: Option<Arc<Message>>) {
        let Some(resident) = self.runs[place.run].resident_mut() else {
            return;
        };
        let slot = &mut resident.slots[place.at];
        resident.content_count -= u16::from(slot.message.is_some());
        resident.content_count += u16::from(message.is_some());
        let status = slot.status;
        let before = (
            slot.body_bytes(),
            slot.resident_bytes(),
            slot.message.is_none(),
        );
        if let Some(message) = &message {
            slot.set_body_bytes(u32::try_from(message.body_len()).unwrap_or(u32::MAX));
        }
        slot.message = message;
        let after = (
            slot.body_bytes(),
            slot.resident_bytes(),
            slot.message.is_none(),
        );
        self.sums.subtract(status, before.0);
        self.sums.add(status, after.0);
        self.sums.resident_bytes = self.sums.resident_bytes - before.1 + after.1;
        self.absent_count = self.absent_count - u64::from(before.2) + u64::from(after.2);
    }

    /// The content of the entry `seq`, which was asked for, is here: the bytes of its record. `None` when nobody waits for it.
    pub(super) fn arrive(&mut self, seq: Seq, message: Arc<Message>) -> Option<u32> {
        let place = self.place_of(seq)?;
        let resident = self.runs.get_mut(place.run)?.resident_mut()?;
        let slot = resident.slots.get_mut(place.at)?;
        if !slot.is_fetching {
            return None;
        }
        slot.is_fetching = false;
        slot.has_failed = false;
        let len_bytes = slot.position().len_bytes;
        let before_bytes = slot.body_bytes();
        resident.content_count += u16::from(slot.message.is_none());
        self.absent_count -= u64::from(slot.message.is_none());
        self.sums.resident_bytes -= slot.resident_bytes();
        self.sums.resident_bytes += message.size_bytes() as u64;
        slot.set_body_bytes(u32::try_from(message.body_len()).unwrap_or(u32::MAX));
        let (status, body_bytes) = (slot.status, slot.body_bytes());
        slot.message = Some(message);
        if body_bytes != before_bytes {
            self.sums.subtract(status, before_bytes);
            self.sums.add(status, body_bytes);
        }
        Some(len_bytes)
    }

    /// The first ready entry.
    pub(super) fn first_ready(&mut self) -> Head {
        let found = self.ready_at_or_after(Seq(self.ready_from));
        self.ready_from = match found {
            Head::None => u64::MAX,
            Head::Entry(seq) | Head::Filed(seq) => seq.0,
        };
        found
    }

    /// The first ready entry of each rank, in order.
    pub(super) fn heads(&mut self) -> SmallVec<[Head; 1]> {
        if !self.has_ranks() {
            return smallvec![self.first_ready()];
        }
        let mut heads = SmallVec::new();
        let mut head = self.first_ready();
        while let Head::Entry(seq) | Head::Filed(seq) = head {
            heads.push(head);
            let Some(rank) = seq.rank().checked_add(1) else {
                break;
            };
            head = self.ready_at_or_after(Seq::new(rank, 0));
        }
        heads
    }

    /// The first ready entry in memory of the rank of `seq`, which was it until now.
    pub(super) fn head_after(&mut self, seq: Seq) -> Option<Seq> {
        if !self.has_ranks() {
            return self.first_ready().entry();
        }
        let head = self.ready_at_or_after(seq).entry();
        head.filter(|head| head.rank() == seq.rank())
    }

    /// The first ready entry that is not below `from`.
    pub(super) fn ready_at_or_after(&self, from: Seq) -> Head {
        if self.sums.ready_count == 0 {
            return Head::None;
        }
        let start = self.find_run(from.0 / RUN_SEQS).unwrap_or_else(|at| at);
        for run in self.runs.range(start..) {
            if run.ready_count == 0 {
                continue;
            }
            let resident = match &run.body {
                Body::Resident(resident) => resident,
                Body::Filed(filed) => match filed.run.live_seqs().find(|seq| *seq >= from) {
                    Some(seq) => return Head::Filed(seq),
                    None => continue,
                },
            };
            let skip = usize::try_from(from.0.saturating_sub(resident.first)).unwrap_or(usize::MAX);
            let found = resident
                .slots
                .iter()
                .enumerate()
                .skip(skip)
                .find(|(_, slot)| slot.status == Status::Ready);
            if let Some((at, _)) = found {
                return Head::Entry(Seq(resident.first + at as u64));
            }
        }
        Head::None
    }

    /// Visits the ready entries from `from` on, ascending, until `visit` has enough or the next one is in the index file. It
    /// may change fields that no sum depends on.
    pub(super) fn visit_ready(
        &mut self,
        from: Seq,
        mut visit: impl FnMut(Seq, &mut Slot) -> ControlFlow<()>,
    ) {
        let start = self.find_run(from.0 / RUN_SEQS).unwrap_or_else(|at| at);
        let runs = self.runs.range_mut(start..);
        for run in runs.filter(|run| run.ready_count > 0) {
            let Some(resident) = run.resident_mut() else {
                return;
            };
            let first = resident.first;
            let skip = usize::try_from(from.0.saturating_sub(first)).unwrap_or(usize::MAX);
            let slots = (first..).zip(&mut resident.slots).skip(skip);
            for (seq, slot) in slots.filter(|(_, slot)| slot.status == Status::Ready) {
                if visit(Seq(seq), slot).is_break() {
                    return;
                }
            }
        }
    }

    /// Visits the entries whose content is in memory, the last one first, until `visit` has enough and says false.
    pub(super) fn contents_from_end(&self, mut visit: impl FnMut(Seq, &Slot) -> bool) {
        let residents = self.runs.iter().rev().filter_map(Run::resident);
        for resident in residents.filter(|resident| resident.content_count > 0) {
            for (at, slot) in resident.slots.iter().enumerate().rev() {
                if slot.message.is_some() && !visit(Seq(resident.first + at as u64), slot) {
                    return;
                }
            }
        }
    }

    /// Places of entries in spill files.
    pub(super) fn spilled(&self) -> impl Iterator<Item = Position> {
        let residents = self.runs.iter().filter_map(Run::resident);
        let slots = residents.flat_map(|resident| &resident.slots);
        slots.filter(|slot| slot.is_spilled()).map(Slot::position)
    }

    /// All entries in memory, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Seq, &Slot)> {
        self.runs
            .iter()
            .filter(|run| run.live_count > 0)
            .filter_map(Run::resident)
            .flat_map(run::Resident::iter)
    }

    /// Runs, in memory or filed.
    #[cfg(test)]
    pub(super) fn run_count(&self) -> usize {
        self.runs.len()
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::with_tails(self.tails.anew());
    }
}
