//! Messages whose records were copied to another segment.
//!
//! An entry in memory takes its new place, and a block of the index file that says the old one is forgotten: the run
//! is offered for filing again. A run that is in the file only is replaced as a whole, or not at all.

use std::collections::BTreeSet;

use super::Slots;
use super::run::{Body, Paging};
use crate::storage::run::FiledRun;
use crate::storage::types::{ImageEntry, Move, SegmentId};

impl Slots {
    /// Entries in memory whose records lie in these segments, ascending, and filed runs that have some there.
    pub(in crate::broker::queue) fn refs_in(
        &self,
        segments: &BTreeSet<SegmentId>,
    ) -> (Vec<ImageEntry>, Vec<FiledRun>) {
        let mut entries = Vec::new();
        let mut runs = Vec::new();
        for run in self.runs.iter().filter(|run| run.live_count > 0) {
            match &run.body {
                Body::Resident(resident) => {
                    let there = resident.iter().filter(|(_, slot)| {
                        slot.is_logged && segments.contains(&slot.position().lsn.segment())
                    });
                    entries.extend(there.map(|(seq, slot)| slot.image_entry(seq)));
                }
                Body::Filed(filed) => {
                    let mut used = filed.run.segments.iter();
                    if used.any(|used| segments.contains(&used.segment)) {
                        runs.push(filed.run.clone());
                    }
                }
            }
        }
        (entries, runs)
    }

    /// Entries have other places, if they still have the old ones.
    pub(in crate::broker::queue) fn relocate(&mut self, moves: &[Move]) {
        for moved in moves {
            let Some((index, at)) = self.locate(moved.seq) else {
                continue;
            };
            let Some(resident) = self.runs[index].resident_mut() else {
                continue;
            };
            let slot = &mut resident.slots[at];
            if slot.is_logged && slot.position() == moved.from {
                slot.set_position(moved.to);
                resident.block = None;
                resident.is_offered = false;
            }
        }
    }

    /// A filed run is described by `new` from now on, if it still is `old` and nobody is reading its block.
    pub(in crate::broker::queue) fn refile(&mut self, old: &FiledRun, new: FiledRun) {
        let Ok(index) = self.find_run(old.number) else {
            return;
        };
        if let Body::Filed(filed) = &mut self.runs[index].body
            && filed.paging == Paging::Idle
            && filed.run == *old
            && new.live == old.live
        {
            filed.run = new;
        }
    }
}
