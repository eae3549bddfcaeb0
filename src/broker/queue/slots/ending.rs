//! Entries end one by one or as those of a range that are held; with its last entry a run ends, and with its last run an empty
//! queue rests.

use std::ops::RangeInclusive;

use super::run::{Body, Run};
use super::{IDLE_MAX_SLOTS, Place, Slot, Slots, Status};
use crate::storage::run::{FiledRun, RUN_SEQS};
use crate::storage::types::{Seq, SeqRange};

impl Slots {
    /// Ends the entry `seq` and hands it out.
    pub(in crate::broker::queue) fn remove(&mut self, seq: Seq) -> Option<Slot> {
        let place = self.place_of(seq)?;
        self.remove_at(place)
    }

    /// Ends the entry at `place` and hands it out.
    #[inline]
    pub(in crate::broker::queue) fn remove_at(&mut self, place: Place) -> Option<Slot> {
        let index = place.run;
        let run = self.runs.get_mut(index)?;
        let resident = run.resident_mut()?;
        let slot = std::mem::replace(&mut resident.slots[place.at], Slot::EMPTY);
        resident.content_count -= u16::from(slot.message.is_some());
        run.live_count -= 1;
        run.ready_count -= u16::from(slot.status == Status::Ready);
        let is_empty = run.live_count == 0;
        self.pass_ready(place.seq);
        self.forget(&slot);
        if is_empty {
            self.end_run(index);
        }
        Some(slot)
    }

    /// Ends the entry `seq` and hands it out if it is held.
    #[inline]
    pub(in crate::broker::queue) fn end_one_held(&mut self, seq: Seq) -> Option<Slot> {
        let place = self.place_of(seq)?;
        match self.at(place).status {
            Status::Unacked => self.remove_at(place),
            _ => None,
        }
    }

    /// Ends the entries of `range` that are held and hands them out, ascending; others stay.
    pub(in crate::broker::queue) fn end_held(
        &mut self,
        range: SeqRange,
        mut ended: impl FnMut(Seq, Slot),
    ) {
        let mut next = Some(range.first.0);
        while let Some(from) = next.filter(|from| *from <= range.last.0) {
            let number = from / RUN_SEQS;
            let last = range.last.0.min(number * RUN_SEQS + (RUN_SEQS - 1));
            if let Ok(index) = self.find_run(number) {
                self.end_held_of_run(index, from..=last, &mut ended);
            }
            next = last.checked_add(1);
        }
    }

    fn end_held_of_run(
        &mut self,
        index: usize,
        seqs: RangeInclusive<u64>,
        ended: &mut impl FnMut(Seq, Slot),
    ) {
        let Some(run) = self.runs.get_mut(index) else {
            return;
        };
        let Body::Resident(resident) = &mut run.body else {
            return;
        };
        let first = resident.first.max(*seqs.start());
        let skip = usize::try_from(first - resident.first).unwrap_or(usize::MAX);
        let slots = resident.slots.iter_mut().skip(skip);
        for (seq, slot) in (first..=*seqs.end()).zip(slots) {
            if slot.status != Status::Unacked {
                continue;
            }
            let slot = std::mem::replace(slot, Slot::EMPTY);
            resident.content_count -= u16::from(slot.message.is_some());
            run.live_count -= 1;
            self.sums.unacked_count -= 1;
            self.sums.resident_bytes -= slot.resident_bytes();
            self.absent_count -= u64::from(slot.message.is_none());
            if self.ready_from == seq {
                self.ready_from = seq.saturating_add(1);
            }
            ended(Seq(seq), slot);
        }
        if run.live_count == 0 {
            self.end_run(index);
        }
    }

    /// Takes an entry out of the sums.
    pub(super) fn forget(&mut self, slot: &Slot) {
        self.sums.subtract(slot.status, slot.body_bytes());
        self.sums.resident_bytes -= slot.resident_bytes();
        self.absent_count -= u64::from(slot.message.is_none());
    }

    /// A run in memory has no entries left: forgets it, unless the next entry belongs to it.
    fn end_run(&mut self, index: usize) {
        let number = self.runs[index].number;
        if number != self.tails.run_beside(number)
            && let Some(Run {
                body: Body::Resident(mut resident),
                ..
            }) = self.runs.remove(index)
        {
            self.slot_count -= resident.slots.len() as u64;
            resident.slots.clear();
            self.spare = Some(resident);
        }
        if self.sums.total_count() == 0 {
            self.rest();
        }
    }

    /// The queue is empty: an idle queue costs little memory.
    pub(super) fn rest(&mut self) {
        self.may_expire = false;
        if self.spare.is_some() {
            self.spare = None;
        }
        if self.runs.capacity() > 1 {
            self.runs.shrink_to(1);
        }
        for index in 0..self.runs.len() {
            self.rest_run(index);
        }
    }

    /// A run of an empty queue waits for the next entry.
    fn rest_run(&mut self, index: usize) {
        let run = &mut self.runs[index];
        let next_seq = self.tails.next(FiledRun::rank_of(run.number));
        let Some(resident) = run.resident_mut() else {
            return;
        };
        self.slot_count -= resident.slots.len() as u64;
        resident.slots.clear();
        if resident.slots.capacity() > IDLE_MAX_SLOTS {
            resident.slots = Vec::new();
        }
        resident.first = next_seq.0;
    }
}
