//! A run of 256 seqs: its entries in memory, or what is known of them while they are in the index file.
//!
//! ```text
//!              offered, block written               nobody wants it soon
//!   Resident ------------------------> Resident ---------------------------> Filed
//!   no block                           with a block <----------------------- (read again)
//! ```
//! 1. A block says where messages lie and when they expire. It holds as long as no message of the run moves and none
//!    joins it: so a run gets a block only when all its seqs have been given.
//! 2. What changes while a block holds (who is settled, who was delivered) is told by the resident entries, and by
//!    the `FiledRun` once they left.
//! 3. A filed run has logged, ready messages only.

use super::slot::{Slot, Status};
use crate::storage::run::{FiledRun, RUN_LEN, RunMarks, RunSet, RunUses, count_use};
use crate::storage::types::{ImageEntry, Seq, SeqRange};

/// Entry fields count expiry in 32 bits of milliseconds from the earliest one.
const EXPIRY_SPREAD_MAX_MS: u64 = u32::MAX as u64 - 1;
/// A longer record has no place in an index entry.
const RECORD_MAX_BYTES: u32 = (1 << 27) - 8;

#[derive(Debug)]
pub(super) struct Run {
    /// `seq / 256` of all its seqs.
    pub(super) number: u64,
    /// Entries.
    pub(super) live_count: u16,
    /// Entries that are `Ready`.
    pub(super) ready_count: u16,
    pub(super) body: Body,
}

#[derive(Debug)]
pub(super) enum Body {
    Resident(Box<Resident>),
    Filed(Filed),
}

/// The entries of a run, in memory.
#[derive(Debug, Default)]
pub(super) struct Resident {
    /// Seq of `slots[0]`.
    pub(super) first: u64,
    pub(super) slots: Vec<Slot>,
    /// Slots whose content is in memory.
    pub(super) content_count: u16,
    /// Where the index file has it too.
    pub(super) block: Option<Block>,
    /// It was given away to be written into a block, and neither moved nor grew since.
    pub(super) is_offered: bool,
}

/// A block of the index file that holds what the run's entries say of positions and expiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    number: u32,
    crc: u32,
    expiry_base_ms: u64,
}

impl Block {
    pub(super) fn of(run: &FiledRun) -> Self {
        Self {
            number: run.block,
            crc: run.crc,
            expiry_base_ms: run.expiry_base_ms,
        }
    }
}

/// How a filed run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paging {
    /// In the file.
    Idle,
    /// A read of its block is on its way.
    Loading,
    /// Its block cannot be read: the messages are kept, quarantined.
    Lost,
}

#[derive(Debug)]
pub(super) struct Filed {
    pub(super) run: FiledRun,
    pub(super) paging: Paging,
}

/// A filed run has this, and no more unless messages of it were settled or delivered.
const _: () = assert!(size_of::<Run>() <= 96);

impl Run {
    /// A run that begins with an entry at `first`, in the memory of another.
    pub(super) fn new(first: u64, mut place: Box<Resident>) -> Self {
        place.renew(first);
        Self {
            number: FiledRun::number_of(Seq(first)),
            live_count: 0,
            ready_count: 0,
            body: Body::Resident(place),
        }
    }

    /// A run whose entries are in the index file.
    pub(super) fn filed(run: FiledRun) -> Self {
        // A set of 256 holds at most that many.
        let count = u16::try_from(run.live.len()).unwrap_or(u16::MAX);
        Self {
            number: run.number,
            live_count: count,
            ready_count: count,
            body: Body::Filed(Filed {
                run,
                paging: Paging::Idle,
            }),
        }
    }

    #[inline]
    pub(super) fn resident(&self) -> Option<&Resident> {
        match &self.body {
            Body::Resident(resident) => Some(resident),
            Body::Filed(_) => None,
        }
    }

    pub(super) fn resident_mut(&mut self) -> Option<&mut Resident> {
        match &mut self.body {
            Body::Resident(resident) => Some(resident),
            Body::Filed(_) => None,
        }
    }

    pub(super) fn has_block(&self) -> bool {
        match &self.body {
            Body::Resident(resident) => resident.block.is_some(),
            Body::Filed(_) => true,
        }
    }
}

impl Resident {
    /// Begins anew, without entries.
    pub(super) fn renew(&mut self, first: u64) {
        let mut slots = std::mem::take(&mut self.slots);
        slots.clear();
        *self = Self {
            first,
            slots,
            ..Self::default()
        };
    }

    /// Index in `slots` of the entry `seq`.
    #[inline]
    pub(super) fn index_of(&self, seq: Seq) -> Option<usize> {
        let at = usize::try_from(seq.0.checked_sub(self.first)?).ok()?;
        (self.slots.get(at)?.status != Status::Empty).then_some(at)
    }

    /// Its entries, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Seq, &Slot)> {
        (self.first..)
            .map(Seq)
            .zip(&self.slots)
            .filter(|(_, slot)| slot.status != Status::Empty)
    }

    /// True when its entries may be written into a block.
    pub(super) fn can_be_filed(&self) -> bool {
        let mut earliest_ms = u64::MAX;
        let mut latest_ms = 0;
        for (_, slot) in self.iter() {
            let fits = slot.is_logged
                && slot.status != Status::Hidden
                && slot.position().len_bytes <= RECORD_MAX_BYTES
                && slot.delivery_count <= u16::from(u8::MAX);
            if !fits {
                return false;
            }
            if slot.expires_at_ms != 0 {
                earliest_ms = earliest_ms.min(slot.expires_at_ms);
                latest_ms = latest_ms.max(slot.expires_at_ms);
            }
        }
        latest_ms.saturating_sub(earliest_ms) <= EXPIRY_SPREAD_MAX_MS
    }

    /// What goes into the block.
    pub(super) fn entries(&self) -> Vec<ImageEntry> {
        self.iter()
            .map(|(seq, slot)| slot.image_entry(seq))
            .collect()
    }

    /// True when nothing about its entries is known to memory alone, so that they may leave it.
    pub(super) fn can_leave(&self) -> bool {
        self.block.is_some()
            && self.iter().all(|(_, slot)| {
                slot.status == Status::Ready
                    && !slot.is_fetching
                    && slot.delivery_count <= u16::from(u8::MAX)
            })
    }

    /// The run as memory and checkpoints keep it: with those settled left out, and deliveries marked. `None` without
    /// a block, or when a delivery count does not fit.
    ///
    /// `redelivered_below`: what is below counts as redelivered anyway. `marks_unacked`: so does what is unacked.
    pub(super) fn describe(&self, redelivered_below: u64, marks_unacked: bool) -> Option<FiledRun> {
        let block = self.block?;
        let mut live = RunSet::default();
        let mut marks: Option<Box<RunMarks>> = None;
        let mut segments = RunUses::new();
        let mut content_bytes = 0;
        let mut is_sized = true;
        for (seq, slot) in self.iter() {
            let index = FiledRun::index_of(seq);
            live.insert(index);
            content_bytes += u64::from(slot.body_bytes());
            is_sized &= slot.is_sized();
            count_use(&mut segments, slot.position());
            let count = u8::try_from(slot.delivery_count).ok()?;
            let is_redelivered = (slot.is_redelivered && seq.count() >= redelivered_below)
                || (marks_unacked && slot.status == Status::Unacked);
            if count > 0 || is_redelivered {
                let marks = marks.get_or_insert_with(no_marks);
                marks.delivery_counts[usize::from(index)] = count;
                if is_redelivered {
                    marks.redelivered.insert(index);
                }
            }
        }
        Some(FiledRun {
            number: FiledRun::number_of(Seq(self.first)),
            block: block.number,
            crc: block.crc,
            expiry_base_ms: block.expiry_base_ms,
            live: live.into(),
            marks,
            segments,
            // The sum of some would pass for that of all.
            content_bytes: if is_sized { content_bytes } else { 0 },
        })
    }
}

fn no_marks() -> Box<RunMarks> {
    Box::new(RunMarks {
        redelivered: RunSet::default(),
        delivery_counts: [0; RUN_LEN],
    })
}

/// The entries of a filed run, from its block. `None` when the block lacks one of them.
///
/// `redelivered_below` as for [`Resident::describe`].
pub(super) fn revive(
    filed: &FiledRun,
    entries: &[ImageEntry],
    redelivered_below: u64,
) -> Option<Resident> {
    let SeqRange { first, last } = filed.live_range()?;
    let mut revived = Resident {
        first: first.0,
        block: Some(Block::of(filed)),
        ..Resident::default()
    };
    let mut shares = Shares::new(filed.content_bytes, filed.live.len());
    let mut entries = entries.iter();
    let len = usize::try_from(last.0 - first.0 + 1).ok()?;
    revived.slots.reserve_exact(len);
    for seq in filed.live_seqs() {
        let entry = entries.find(|entry| entry.seq >= seq)?;
        if entry.seq != seq {
            return None;
        }
        while revived.first + (revived.slots.len() as u64) < seq.0 {
            revived.slots.push(Slot::EMPTY);
        }
        let mut slot = Slot::restored(entry);
        let index = FiledRun::index_of(seq);
        let marks = filed.marks.as_deref();
        slot.delivery_count = marks.map_or(0, |marks| {
            u16::from(marks.delivery_counts[usize::from(index)])
        });
        slot.is_redelivered = seq.count() < redelivered_below
            || marks.is_some_and(|marks| marks.redelivered.contains(index));
        if filed.content_bytes > 0 {
            slot.set_body_bytes(shares.next());
        }
        revived.slots.push(slot);
    }
    Some(revived)
}

/// Spreads a sum over its parts, so that the parts add up to it.
struct Shares {
    rest: u64,
    count: u64,
}

impl Shares {
    fn new(sum: u64, count: u32) -> Self {
        Self {
            rest: sum,
            count: u64::from(count),
        }
    }

    fn next(&mut self) -> u32 {
        let share = self.rest.checked_div(self.count).unwrap_or(0);
        self.rest -= share;
        self.count = self.count.saturating_sub(1);
        // The sum of 256 sizes of 32 bits, divided by their number.
        u32::try_from(share).unwrap_or(u32::MAX)
    }
}
