//! What a power failure leaves.
//!
//! Everything between the last sync and the crash is a list of *units*: written sectors, lengths, directory
//! entries. A crash keeps any subset of them, applied in their order. That one rule contains reordering (a later
//! unit kept, an earlier one lost), torn writes (some sectors of one write), lengths without data and data without
//! length, lost names and names that came back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::content::{Change, Content, Inode, Sector};
use super::random::Random;
use super::state::{EntryChange, InodeId, Node, State};

/// Up to this many units all subsets are tried; 2^12 recoveries of a small log take seconds.
pub const EXHAUSTIVE_UNIT_COUNT_MAX: usize = 12;

/// One change that is not durable; a crash keeps or loses it as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unsynced {
    /// A sector of 512 bytes.
    Sector {
        /// The file.
        path: PathBuf,
        /// Number of the sector in the file.
        index: u64,
    },
    /// A length.
    Length {
        /// The file.
        path: PathBuf,
        /// The new length.
        len_bytes: u64,
    },
    /// A new name of a file or directory.
    Created(PathBuf),
    /// A changed name.
    Renamed {
        /// The old name.
        from: PathBuf,
        /// The new name.
        to: PathBuf,
    },
    /// A removed name.
    Removed(PathBuf),
}

/// Which unsynced units survive. `Debug` prints what is needed to repeat the crash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrashChoice {
    keep: Keep,
    /// Seed of the foreign bytes that appear in lengths without data; `None` means zeros.
    stale_seed: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Keep {
    Nothing,
    Everything,
    /// Bit i is unit i of `SimDisk::unsynced`.
    Mask(u64),
    /// The first units in order, none of the others.
    Prefix(usize),
    Sampled(u64),
}

impl CrashChoice {
    /// Only what was synced survives.
    #[must_use]
    pub const fn keep_nothing() -> Self {
        Self {
            keep: Keep::Nothing,
            stale_seed: None,
        }
    }

    /// Everything survives, as when only the process is killed.
    #[must_use]
    pub const fn keep_everything() -> Self {
        Self {
            keep: Keep::Everything,
            stale_seed: None,
        }
    }

    /// Unit i of [`SimDisk::unsynced`](super::SimDisk::unsynced) survives when bit i is set.
    #[must_use]
    pub const fn keep_mask(mask: u64) -> Self {
        Self {
            keep: Keep::Mask(mask),
            stale_seed: None,
        }
    }

    /// The first `count` units survive: a device that writes in order.
    #[must_use]
    pub const fn keep_prefix(count: usize) -> Self {
        Self {
            keep: Keep::Prefix(count),
            stale_seed: None,
        }
    }

    /// A seeded choice: an ordered prefix, or each unit by itself with a low, an even or a high chance.
    /// Every other seed also shows stale bytes where a length survived without its data.
    #[must_use]
    pub const fn sampled(seed: u64) -> Self {
        let stale_seed = if seed.is_multiple_of(2) {
            None
        } else {
            Some(seed)
        };
        Self {
            keep: Keep::Sampled(seed),
            stale_seed,
        }
    }

    /// Lengths that survive without their data show bytes of other files instead of zeros.
    #[must_use]
    pub const fn with_stale_blocks(mut self, seed: u64) -> Self {
        self.stale_seed = Some(seed);
        self
    }

    /// Whether each of `count` units survives.
    fn decide(&self, count: usize) -> Vec<bool> {
        let by_mask = |mask: u64, i: usize| i < 64 && mask >> i & 1 == 1;
        match &self.keep {
            Keep::Nothing => vec![false; count],
            Keep::Everything => vec![true; count],
            Keep::Mask(mask) => (0..count).map(|i| by_mask(*mask, i)).collect(),
            Keep::Prefix(kept) => (0..count).map(|i| i < *kept).collect(),
            Keep::Sampled(seed) => sample(count, &mut Random::new(*seed)),
        }
    }
}

fn sample(count: usize, random: &mut Random) -> Vec<bool> {
    let percent = match random.below(4) {
        0 => {
            let kept = random.index(count + 1);
            return (0..count).map(|i| i < kept).collect();
        }
        1 => 15,
        2 => 50,
        _ => 85,
    };
    (0..count).map(|_| random.chance(percent)).collect()
}

/// Choices worth trying for `unit_count` units: all subsets when they are at most `count_max`, otherwise nothing,
/// everything and seeded samples.
pub(super) fn choices(unit_count: usize, count_max: usize, seed: u64) -> Vec<CrashChoice> {
    if unit_count <= EXHAUSTIVE_UNIT_COUNT_MAX && 1 << unit_count <= count_max {
        return (0..1_u64 << unit_count)
            .map(CrashChoice::keep_mask)
            .collect();
    }
    let mut random = Random::new(seed);
    let mut choices = vec![CrashChoice::keep_nothing(), CrashChoice::keep_everything()];
    choices.extend((2..count_max).map(|_| CrashChoice::sampled(random.next_u64())));
    choices
}

impl State {
    /// The unsynced units in the order in which they were made.
    pub(super) fn units(&self) -> Vec<(u64, Unsynced)> {
        let mut units = Vec::new();
        for inode in self
            .reachable()
            .into_iter()
            .filter_map(|id| self.inodes.get(&id))
        {
            for pending in &inode.pending {
                let path = inode.name.clone();
                let unit = match pending.change {
                    Change::Sector { index, .. } => Unsynced::Sector { path, index },
                    Change::Length(len_bytes) => Unsynced::Length { path, len_bytes },
                };
                units.push((pending.seq, unit));
            }
        }
        for entry in &self.pending_entries {
            let unit = match &entry.change {
                EntryChange::Create { path, .. } => Unsynced::Created(path.clone()),
                EntryChange::Remove { path, .. } => Unsynced::Removed(path.clone()),
                EntryChange::Rename { from, to, .. } => Unsynced::Renamed {
                    from: from.clone(),
                    to: to.clone(),
                },
            };
            units.push((entry.seq, unit));
        }
        units.sort_unstable_by_key(|(seq, _)| *seq);
        units
    }

    /// Files that may have a name after a crash.
    fn reachable(&self) -> BTreeSet<InodeId> {
        let pending = self.pending_entries.iter().map(|entry| match entry.change {
            EntryChange::Create { node, .. } => node,
            EntryChange::Rename { inode, .. } | EntryChange::Remove { inode, .. } => {
                Node::File(inode)
            }
        });
        let nodes = self.durable.values().copied().chain(pending);
        nodes.filter_map(Node::inode).collect()
    }

    /// The disk as it is when the power comes back.
    pub(super) fn survivor(&self, choice: &CrashChoice) -> State {
        let units = self.units();
        let decisions = choice.decide(units.len());
        let kept: BTreeSet<u64> = units
            .iter()
            .zip(decisions)
            .filter_map(|((seq, _), is_kept)| is_kept.then_some(*seq))
            .collect();
        let names = self.surviving_names(&kept);
        let inodes = self.surviving_files(&names, &kept, choice.stale_seed);
        State::reborn(self, names, inodes)
    }

    fn surviving_names(&self, kept: &BTreeSet<u64>) -> BTreeMap<PathBuf, Node> {
        let mut names = self.durable.clone();
        for entry in self
            .pending_entries
            .iter()
            .filter(|entry| kept.contains(&entry.seq))
        {
            entry.change.apply(&mut names);
        }
        // A directory takes all that is below it along. Parents sort before their children.
        let mut directories = BTreeSet::from([PathBuf::new()]);
        names.retain(|path, node| {
            let is_there = directories.contains(path.parent().unwrap_or(Path::new("")));
            if is_there && *node == Node::Directory {
                directories.insert(path.clone());
            }
            is_there
        });
        names
    }

    fn surviving_files(
        &self,
        names: &BTreeMap<PathBuf, Node>,
        kept: &BTreeSet<u64>,
        stale_seed: Option<u64>,
    ) -> BTreeMap<InodeId, Inode> {
        let mut stale = stale_seed.map(|seed| (self.stale_pool(), Random::new(seed)));
        let mut inodes = BTreeMap::new();
        for (path, id) in names
            .iter()
            .filter_map(|(path, node)| Some((path, node.inode()?)))
        {
            let inode = self
                .inodes
                .get(&id)
                .expect("a file lives while a name may lead to it");
            let mut content: Content = inode.surviving(|seq| kept.contains(&seq));
            if let Some((pool, random)) = &mut stale {
                content.fill_holes(inode.media.len_bytes, pool, random);
            }
            let mut reborn = inode.reborn(content);
            reborn.name = path.clone();
            inodes.insert(id, reborn);
        }
        inodes
    }

    /// Sectors that lie around on the medium and may turn up in other files.
    fn stale_pool(&self) -> Vec<Sector> {
        self.inodes
            .values()
            .flat_map(|inode| inode.media.sectors.values().cloned())
            .collect()
    }
}
