//! Runs leave memory and come back; what a checkpoint takes, and what a purge ends, run by run.
//!
//! ```text
//!   offer ---------> [ storage writes blocks ] ---------> accept --shed--> Filed
//!   take_loads ----> [ a reader thread reads a block ] -> page_in
//! ```
//! In between anything may happen to the run. An answer that does not fit any more is dropped: a block that nobody
//! names is free, and a block that was read says nothing that it will not say again.

use super::run::{Block, Body, Filed, Paging, Resident, Run, revive};
use super::{Slot, Slots, Status};
use crate::storage::image::Entries;
use crate::storage::run::{FiledRun, RUN_LEN, RUN_SEQS};
use crate::storage::types::{ImageEntry, Position, Seq, SeqRange};

/// What may leave the memory of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::broker::queue) struct Policy {
    /// The last run goes to the index file too: it is closed, and the next message starts a new one.
    pub(in crate::broker::queue) closes_tail: bool,
    /// Runs from the first ready message on that stay in memory.
    pub(in crate::broker::queue) hot_runs: usize,
    /// Nothing leaves: memory alone knows the sizes of bodies.
    pub(in crate::broker::queue) keeps_all: bool,
}

/// What became of a block that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::broker::queue) enum PagedIn {
    /// The run is not what it was when the block was asked for.
    Stale,
    /// Its entries are in memory.
    Done,
    /// The block lacks a message of the run.
    Incomplete,
}

/// What a purge ended.
#[derive(Debug, Default)]
pub(in crate::broker::queue) struct PurgedRuns {
    /// Entries.
    pub(in crate::broker::queue) count: u64,
    /// Those that are logged; ascending, naming no entry that stays.
    pub(in crate::broker::queue) ranges: Vec<SeqRange>,
    /// Bytes of the reads that are on their way for them.
    pub(in crate::broker::queue) fetching_bytes: u64,
    /// Their places in spill files.
    pub(in crate::broker::queue) spilled: Vec<Position>,
    /// To be dropped outside the lock.
    garbage: Vec<Run>,
    open: Option<SeqRange>,
}

/// Entries that left memory, to be dropped outside the lock.
#[derive(Debug, Default)]
pub(in crate::broker::queue) struct Shed {
    garbage: Vec<Vec<Slot>>,
}

impl Shed {
    /// True when nothing left.
    pub(in crate::broker::queue) fn is_empty(&self) -> bool {
        self.garbage.is_empty()
    }
}

/// The unsettled, logged entries of a queue as a checkpoint takes them.
#[derive(Debug, Default)]
pub(in crate::broker::queue) struct Picture {
    pub(in crate::broker::queue) entries: Entries,
    pub(in crate::broker::queue) runs: Vec<FiledRun>,
}

impl Slots {
    /// Puts back what an image holds, below `next_seq`. What is below `redelivered_below` may have been delivered.
    pub(in crate::broker::queue) fn restore(
        &mut self,
        entries: Entries,
        runs: Vec<FiledRun>,
        redelivered_below: Seq,
    ) {
        self.redelivered_below = redelivered_below.0;
        self.runs.reserve(runs.len());
        let mut runs = runs.into_iter().peekable();
        for entry in entries {
            let number = FiledRun::number_of(entry.seq);
            while let Some(run) = runs.next_if(|run| run.number < number) {
                self.restore_run(run);
            }
            let mut slot = Slot::restored(&entry);
            slot.is_redelivered |= entry.seq.is_within(redelivered_below);
            self.append(entry.seq.0, slot);
        }
        for run in runs {
            self.restore_run(run);
        }
        self.runs.shrink_to_fit();
        // A run with a block gets no more entries.
        for run in self.runs.iter().filter(|run| run.has_block()) {
            self.tails.close(run.number);
        }
    }

    fn restore_run(&mut self, mut run: FiledRun) {
        // Some of them may have been settled since the sum was taken.
        run.content_bytes = 0;
        let has_expiry = run.expiry_base_ms != 0;
        let run = Run::filed(run);
        self.sums.ready_count += u64::from(run.ready_count);
        self.filed_count += 1;
        self.may_expire |= has_expiry;
        self.runs.push_back(run);
    }

    /// True when entries are in the index file only.
    pub(in crate::broker::queue) fn has_filed(&self) -> bool {
        self.filed_count > 0
    }

    /// Runs that are in the index file only.
    pub(in crate::broker::queue) fn filed_count(&self) -> u32 {
        self.filed_count
    }

    /// Slots in memory.
    pub(in crate::broker::queue) fn slot_count(&self) -> u64 {
        self.slot_count
    }

    /// The filed runs, among the next `count` runs with ready entries from `from` on, that nobody has asked for; they
    /// count as asked for now. Also the number above the last run that was looked at.
    pub(in crate::broker::queue) fn take_loads(
        &mut self,
        from: Seq,
        count: usize,
    ) -> (Vec<FiledRun>, u64) {
        let start = self.find_run(from.0 / RUN_SEQS).unwrap_or_else(|at| at);
        let mut upto = from.0 / RUN_SEQS + 1;
        let mut wanted = Vec::new();
        let ready = self.runs.range_mut(start..);
        for run in ready.filter(|run| run.ready_count > 0).take(count) {
            upto = run.number + 1;
            if let Body::Filed(filed) = &mut run.body
                && filed.paging == Paging::Idle
            {
                filed.paging = Paging::Loading;
                wanted.push(filed.run.clone());
            }
        }
        (wanted, upto)
    }

    /// The filed run at `seq`, which the head of the queue lies in.
    pub(in crate::broker::queue) fn filed_run(&self, seq: Seq) -> Option<&FiledRun> {
        let index = self.find_run(seq.0 / RUN_SEQS).ok()?;
        match &self.runs.get(index)?.body {
            Body::Filed(filed) => Some(&filed.run),
            Body::Resident(_) => None,
        }
    }

    /// Index of the run that `asked` was when its block was asked for.
    fn find_loading(&self, asked: &FiledRun) -> Option<usize> {
        let index = self.find_run(asked.number).ok()?;
        match &self.runs.get(index)?.body {
            Body::Filed(filed)
                if filed.paging == Paging::Loading && Block::of(&filed.run) == Block::of(asked) =>
            {
                Some(index)
            }
            _ => None,
        }
    }

    /// The block of a run was read.
    pub(in crate::broker::queue) fn page_in(
        &mut self,
        asked: &FiledRun,
        entries: &[ImageEntry],
    ) -> PagedIn {
        match self.find_loading(asked) {
            Some(index) => self.revive_at(index, entries),
            None => PagedIn::Stale,
        }
    }

    /// The block of a run was read that nobody needs to have asked for.
    pub(in crate::broker::queue) fn page_in_found(
        &mut self,
        found: &FiledRun,
        entries: &[ImageEntry],
    ) -> PagedIn {
        let index = self.find_run(found.number).ok();
        let is_same = |index: &usize| match &self.runs[*index].body {
            Body::Filed(filed) => {
                filed.paging != Paging::Lost && Block::of(&filed.run) == Block::of(found)
            }
            Body::Resident(_) => false,
        };
        match index.filter(is_same) {
            Some(index) => self.revive_at(index, entries),
            None => PagedIn::Stale,
        }
    }

    fn revive_at(&mut self, index: usize, entries: &[ImageEntry]) -> PagedIn {
        let run = &mut self.runs[index];
        let Body::Filed(filed) = &run.body else {
            return PagedIn::Stale;
        };
        let Some(resident) = revive(&filed.run, entries, self.redelivered_below) else {
            return PagedIn::Incomplete;
        };
        let content_bytes = filed.run.content_bytes;
        self.sums.ready_bytes -= content_bytes;
        for (_, slot) in resident.iter() {
            self.sums.ready_bytes += u64::from(slot.body_bytes());
        }
        self.absent_count += u64::from(run.live_count);
        self.slot_count += resident.slots.len() as u64;
        self.filed_count -= 1;
        run.body = Body::Resident(Box::new(resident));
        PagedIn::Done
    }

    /// The block of a run cannot be read: its messages stay, quarantined. Their number; `None` when the run is not
    /// what it was.
    pub(in crate::broker::queue) fn lose(&mut self, asked: &FiledRun) -> Option<u64> {
        let index = self.find_loading(asked)?;
        let run = &mut self.runs[index];
        let Body::Filed(filed) = &mut run.body else {
            return None;
        };
        filed.paging = Paging::Lost;
        let count = u64::from(run.ready_count);
        run.ready_count = 0;
        self.sums.ready_count -= count;
        self.sums.ready_bytes -= filed.run.content_bytes;
        self.sums
            .change_others(|others| others.quarantined_count += count);
        filed.run.content_bytes = 0;
        Some(count)
    }

    /// Up to `max_count` filed runs, from number `from` on, the sum of whose sizes is not known.
    pub(in crate::broker::queue) fn unsized_runs(
        &self,
        from: u64,
        max_count: usize,
    ) -> Vec<FiledRun> {
        let start = self.find_run(from).unwrap_or_else(|at| at);
        let filed = self.runs.range(start..).filter_map(|run| match &run.body {
            Body::Filed(filed) if filed.paging != Paging::Lost => Some(&filed.run),
            _ => None,
        });
        let unknown = filed.filter(|run| run.content_bytes == 0);
        unknown.take(max_count).cloned().collect()
    }

    /// Sets the sum of the sizes of a filed run, if it still is what was `measured`.
    pub(in crate::broker::queue) fn set_content_bytes(
        &mut self,
        measured: &FiledRun,
        content_bytes: u64,
    ) {
        let Ok(index) = self.find_run(measured.number) else {
            return;
        };
        if let Some(Body::Filed(filed)) = self.runs.get_mut(index).map(|run| &mut run.body)
            && filed.paging != Paging::Lost
            && filed.run.content_bytes == 0
            && filed.run.live == measured.live
            && Block::of(&filed.run) == Block::of(measured)
        {
            filed.run.content_bytes = content_bytes;
            self.sums.ready_bytes += content_bytes;
        }
    }

    /// Up to `max_count` runs that should get a block.
    pub(in crate::broker::queue) fn offer(
        &mut self,
        policy: Policy,
        max_count: usize,
    ) -> Vec<Vec<ImageEntry>> {
        let mut offered = Vec::new();
        for index in self.resident_indexes() {
            let run = &mut self.runs[index];
            let is_complete = policy.closes_tail || run.number < self.tails.run_beside(run.number);
            if offered.len() == max_count || !is_complete || run.live_count == 0 {
                continue;
            }
            let resident = run.resident_mut();
            if let Some(resident) =
                resident.filter(|resident| resident.block.is_none() && resident.can_be_filed())
            {
                resident.is_offered = true;
                offered.push(resident.entries());
            }
        }
        offered
    }

    /// Where the runs in memory stand, ascending. They are mostly at both ends, however many there are in between.
    fn resident_indexes(&self) -> Vec<usize> {
        let filed_count = usize::try_from(self.filed_count).unwrap_or(usize::MAX);
        let count = self.runs.len().saturating_sub(filed_count);
        let is_resident = |index: &usize| self.runs[*index].resident().is_some();
        let mut indexes: Vec<usize> = (0..self.runs.len()).take_while(is_resident).collect();
        let behind = (indexes.len()..self.runs.len()).rev().filter(is_resident);
        let rest = count - indexes.len();
        indexes.extend(behind.take(rest));
        indexes.sort_unstable();
        indexes
    }

    /// A run that was offered is in a block now; false when it is not what it was.
    pub(in crate::broker::queue) fn accept(&mut self, filed: &FiledRun) -> bool {
        let Ok(index) = self.find_run(filed.number) else {
            return false;
        };
        let run = &mut self.runs[index];
        let has_entries = run.live_count > 0;
        let Some(resident) = run.resident_mut() else {
            return false;
        };
        let is_same = has_entries
            && resident.is_offered
            && resident.block.is_none()
            && resident
                .iter()
                .all(|(seq, _)| filed.live.contains(FiledRun::index_of(seq)));
        if is_same {
            resident.is_offered = false;
            resident.block = Some(Block::of(filed));
            self.tails.close(filed.number);
        }
        is_same
    }

    /// Lets go of the entries of runs with a block that nobody will want soon.
    pub(in crate::broker::queue) fn shed(&mut self, policy: Policy) -> Shed {
        let mut shed = Shed::default();
        if policy.keeps_all {
            return shed;
        }
        let head = self
            .find_run(self.ready_from / RUN_SEQS)
            .unwrap_or_else(|at| at);
        let hot = head..head.saturating_add(policy.hot_runs);
        for index in self.resident_indexes() {
            if !hot.contains(&index) {
                shed.garbage.extend(self.page_out(index));
            }
        }
        shed
    }

    /// Lets go of the entries of one run, if memory alone knows nothing about them.
    fn page_out(&mut self, index: usize) -> Option<Vec<Slot>> {
        let run = self.runs.get_mut(index)?;
        if run.ready_count == 0 || run.ready_count != run.live_count {
            return None;
        }
        let resident = run.resident().filter(|resident| resident.can_leave())?;
        let described = resident.describe(self.redelivered_below, false)?;
        let content_bytes = described.content_bytes;
        let filed = Body::Filed(Filed {
            run: described,
            paging: Paging::Idle,
        });
        let Body::Resident(resident) = std::mem::replace(&mut run.body, filed) else {
            return None;
        };
        self.filed_count += 1;
        self.slot_count -= resident.slots.len() as u64;
        self.sums.ready_bytes += content_bytes;
        for (_, slot) in resident.iter() {
            self.sums.ready_bytes -= u64::from(slot.body_bytes());
            self.sums.resident_bytes -= slot.resident_bytes();
            self.absent_count -= u64::from(slot.message.is_none());
        }
        Some(resident.slots)
    }

    /// What a checkpoint takes: runs by their block where they have one, else their entries. `is_stopped`: nothing is
    /// delivered any more, so what is unacked counts as redelivered.
    pub(in crate::broker::queue) fn picture(&self, is_stopped: bool) -> Picture {
        let mut picture = Picture::default();
        for run in self.runs.iter().filter(|run| run.live_count > 0) {
            let resident = match &run.body {
                Body::Filed(filed) => {
                    picture.runs.push(filed.run.clone());
                    continue;
                }
                Body::Resident(resident) => resident,
            };
            if let Some(described) = resident.describe(self.redelivered_below, is_stopped) {
                picture.runs.push(described);
                continue;
            }
            for (seq, slot) in resident.iter().filter(|(_, slot)| slot.is_logged) {
                let mut entry = slot.image_entry(seq);
                entry.is_redelivered |= is_stopped && slot.status == Status::Unacked;
                picture.entries.insert(entry);
            }
        }
        picture
    }

    /// Ends all ready entries, and those that cannot be read; the cost is that of the runs, and of the entries in memory.
    pub(in crate::broker::queue) fn purge(&mut self) -> PurgedRuns {
        let mut purged = PurgedRuns::default();
        for mut run in std::mem::take(&mut self.runs) {
            match &mut run.body {
                Body::Filed(filed) => {
                    purged.extend_run(&filed.run);
                    if filed.paging == Paging::Lost {
                        let count = u64::from(run.live_count);
                        let sums = &mut self.sums;
                        sums.change_others(|others| others.quarantined_count -= count);
                    }
                    self.sums.ready_count -= u64::from(run.ready_count);
                    self.sums.ready_bytes -= filed.run.content_bytes;
                    self.filed_count -= 1;
                    purged.garbage.push(run);
                    continue;
                }
                Body::Resident(resident) => {
                    for at in 0..resident.slots.len() {
                        let seq = Seq(resident.first + at as u64);
                        match resident.slots[at].status {
                            Status::Empty => {}
                            Status::Ready | Status::Quarantined => {
                                let slot = std::mem::replace(&mut resident.slots[at], Slot::EMPTY);
                                resident.content_count -= u16::from(slot.message.is_some());
                                run.live_count -= 1;
                                self.forget(&slot);
                                purged.add(seq, &slot);
                            }
                            // An entry that stays ends the range; gaps do not.
                            _ => purged.close(),
                        }
                    }
                    run.ready_count = 0;
                    if run.live_count == 0 {
                        self.slot_count -= resident.slots.len() as u64;
                        continue;
                    }
                }
            }
            self.runs.push_back(run);
        }
        purged.close();
        self.ready_from = u64::MAX;
        if self.sums.total_count() == 0 {
            self.rest();
        }
        purged
    }

    /// Room for a new run, at index `at`, of a queue that is deep already.
    pub(super) fn fresh_run(&mut self, at: usize) -> Box<Resident> {
        let before = at.checked_sub(1).and_then(|before| self.runs.get(before));
        let is_deep = before.is_some_and(|run| usize::from(run.live_count) > RUN_LEN / 2);
        self.spare.take().unwrap_or_else(|| {
            let capacity = if is_deep { RUN_LEN } else { 0 };
            Box::new(Resident {
                slots: Vec::with_capacity(capacity),
                ..Resident::default()
            })
        })
    }
}

impl PurgedRuns {
    fn add(&mut self, seq: Seq, slot: &Slot) {
        self.count += 1;
        if slot.is_fetching {
            self.fetching_bytes += u64::from(slot.position().len_bytes);
        }
        if slot.is_spilled() {
            self.spilled.push(slot.position());
        }
        if slot.is_logged {
            self.extend(SeqRange {
                first: seq,
                last: seq,
            });
        }
    }

    fn extend_run(&mut self, run: &FiledRun) {
        self.count += u64::from(run.live.len());
        if let Some(range) = run.live_range() {
            self.extend(range);
        }
    }

    fn extend(&mut self, range: SeqRange) {
        // Between two levels there are seqs that are yet to be given.
        if (self.open).is_some_and(|open| open.first.rank() != range.first.rank()) {
            self.close();
        }
        let open = self.open.get_or_insert(range);
        open.last = range.last;
    }

    fn close(&mut self) {
        self.ranges.extend(self.open.take());
    }
}

#[cfg(test)]
impl Slots {
    /// What runs and slots take.
    pub(in crate::broker::queue) fn heap_bytes(&self) -> usize {
        let residents = self.runs.iter().filter_map(Run::resident);
        let slots: usize = residents
            .map(|resident| {
                size_of::<super::run::Resident>() + resident.slots.capacity() * size_of::<Slot>()
            })
            .sum();
        self.runs.capacity() * size_of::<Run>() + slots
    }

    /// Compares every sum with what the entries say.
    pub(in crate::broker::queue) fn check(&self) {
        let mut sums = super::Sums::default();
        let (mut absent_count, mut slot_count, mut filed_count) = (0, 0, 0);
        for run in &self.runs {
            match &run.body {
                Body::Filed(filed) => {
                    filed_count += 1;
                    assert_eq!(u32::from(run.live_count), filed.run.live.len());
                    if filed.paging == Paging::Lost {
                        let count = u64::from(run.live_count);
                        sums.change_others(|others| others.quarantined_count += count);
                    } else {
                        sums.ready_count += u64::from(run.live_count);
                        sums.ready_bytes += filed.run.content_bytes;
                    }
                }
                Body::Resident(resident) => {
                    slot_count += resident.slots.len() as u64;
                    assert_eq!(usize::from(run.live_count), resident.iter().count());
                    let ready = resident
                        .iter()
                        .filter(|(_, slot)| slot.status == Status::Ready)
                        .count();
                    assert_eq!(usize::from(run.ready_count), ready);
                    let contents = resident.iter().filter(|(_, slot)| slot.message.is_some());
                    assert_eq!(usize::from(resident.content_count), contents.count());
                    for (seq, slot) in resident.iter() {
                        assert_eq!(FiledRun::number_of(seq), run.number);
                        sums.add(slot.status, slot.body_bytes());
                        sums.resident_bytes += slot.resident_bytes();
                        absent_count += u64::from(slot.message.is_none());
                    }
                }
            }
        }
        assert_eq!(sums, self.sums, "counters are sums over the entries");
        assert_eq!(absent_count, self.absent_count);
        assert_eq!(slot_count, self.slot_count);
        assert_eq!(filed_count, self.filed_count);
    }
}
