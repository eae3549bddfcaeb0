//! One simulated file: what reads see, what the medium holds, and what lies between the two.
//!
//! ```text
//!   write ----> cache (reads see this)
//!      \------> pending: sector and length changes in order ----sync----> media (survives a crash)
//! ```
//!
//! 1. Without faults, cache = media + pending.
//! 2. A pending sector is a picture of all its 512 bytes after the write, since a device writes whole sectors:
//!    of two writes into one sector a crash keeps the first, the second (which contains the first), or none. A write
//!    that changes no byte of a sector is not pending.
//! 3. A failed sync takes changes out of `pending` without bringing them to the media. The cache goes on showing
//!    them, as Linux does, until the cache is dropped.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::random::Random;

/// What a device writes at once; the grain of torn writes.
pub(super) const SECTOR_BYTES: usize = 512;
const SECTOR_BYTES_U64: u64 = SECTOR_BYTES as u64;

/// The bytes of one sector; shared, so that surviving disks of many crash choices cost little.
pub(super) type Sector = Arc<[u8; SECTOR_BYTES]>;

/// The bytes of a file, sparse: a missing sector reads as zeros.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pub(super) len_bytes: u64,
    /// By number of the sector. May hold sectors beyond the length when a crash kept data without length.
    pub(super) sectors: BTreeMap<u64, Sector>,
}

impl Content {
    /// Copies bytes from `offset` on; answers how many there were.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> usize {
        let left = usize::try_from(self.len_bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = buffer.len().min(left);
        let mut done = 0;
        for piece in pieces(offset, count) {
            let target = &mut buffer[done..done + piece.len];
            match self.sectors.get(&piece.sector) {
                Some(data) => target.copy_from_slice(&data[piece.start..piece.start + piece.len]),
                None => target.fill(0),
            }
            done += piece.len;
        }
        count
    }

    /// Sets the length. What is cut off reads as zeros when the file grows again.
    pub(super) fn set_len(&mut self, len_bytes: u64) {
        if len_bytes < self.len_bytes {
            self.cut(len_bytes);
        }
        self.len_bytes = len_bytes;
    }

    /// Forgets all bytes from `len_bytes` on.
    pub(super) fn cut(&mut self, len_bytes: u64) {
        self.sectors
            .split_off(&len_bytes.div_ceil(SECTOR_BYTES_U64));
        let (last, used) = (len_bytes / SECTOR_BYTES_U64, len_bytes % SECTOR_BYTES_U64);
        if let Some(data) = self.sectors.get_mut(&last) {
            let used = usize::try_from(used).expect("below 512");
            Arc::make_mut(data)[used..].fill(0);
        }
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Sector { index, data } => drop(self.sectors.insert(*index, data.clone())),
            Change::Length(len_bytes) => self.set_len(*len_bytes),
        }
    }

    /// Writes `bytes` at `offset`; answers the numbers of the sectors that changed.
    fn write(&mut self, bytes: &[u8], offset: u64) -> Vec<u64> {
        let mut done = 0;
        let mut changed = Vec::new();
        for piece in pieces(offset, bytes.len()) {
            let data = self
                .sectors
                .entry(piece.sector)
                .or_insert_with(|| [0; SECTOR_BYTES].into());
            Arc::make_mut(data)[piece.start..piece.start + piece.len]
                .copy_from_slice(&bytes[done..done + piece.len]);
            done += piece.len;
            changed.push(piece.sector);
        }
        changed
    }

    /// Fills holes from byte `from` to the end with foreign sectors, as a file system does that journals
    /// lengths but not data.
    pub(super) fn fill_holes(&mut self, from: u64, pool: &[Sector], random: &mut Random) {
        for index in from.div_ceil(SECTOR_BYTES_U64)..self.len_bytes.div_ceil(SECTOR_BYTES_U64) {
            let stale = || match pool.get(random.index(pool.len())) {
                Some(sector) => sector.clone(),
                None => noise(random),
            };
            self.sectors.entry(index).or_insert_with(stale);
        }
        self.cut(self.len_bytes);
    }
}

fn noise(random: &mut Random) -> Sector {
    let mut data = [0; SECTOR_BYTES];
    for part in data.chunks_exact_mut(8) {
        part.copy_from_slice(&random.next_u64().to_le_bytes());
    }
    Arc::new(data)
}

/// The part of a byte range that lies in one sector.
struct Piece {
    sector: u64,
    start: usize,
    len: usize,
}

/// Cuts `count` bytes at `offset` at the borders of sectors.
fn pieces(offset: u64, count: usize) -> impl Iterator<Item = Piece> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == count {
            return None;
        }
        let at = offset + done as u64;
        let start = usize::try_from(at % SECTOR_BYTES_U64).expect("below 512");
        let len = (SECTOR_BYTES - start).min(count - done);
        done += len;
        Some(Piece {
            sector: at / SECTOR_BYTES_U64,
            start,
            len,
        })
    })
}

/// A change of a file that a crash keeps or loses as a whole.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// Sector `index` has these bytes.
    Sector { index: u64, data: Sector },
    /// The file has this length.
    Length(u64),
}

/// A change that is not on the medium yet.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    /// Order of all changes of the disk.
    pub(super) seq: u64,
    pub(super) change: Change,
}

/// One simulated file, with or without a name.
#[derive(Clone, Debug, Default)]
pub(super) struct Inode {
    /// The name it has now; for the journal.
    pub(super) name: PathBuf,
    pub(super) cache: Content,
    pub(super) media: Content,
    pub(super) pending: Vec<Pending>,
    /// Sectors from the start of the file that were allocated ahead.
    reserved_sectors: u64,
    /// Names in the live directory tree; 0 or 1.
    pub(super) is_linked: bool,
    pub(super) handle_count: usize,
    /// It existed when the power came back the last time.
    pub(super) is_inherited: bool,
}

impl Inode {
    /// An empty file.
    pub(super) fn new(name: PathBuf) -> Self {
        Self {
            name,
            ..Self::default()
        }
    }

    /// Bytes of the disk that it takes.
    pub(super) fn used_bytes(&self) -> u64 {
        if !self.is_linked && self.handle_count == 0 {
            return 0;
        }
        let beyond = self.cache.sectors.range(self.reserved_sectors..).count() as u64;
        (self.reserved_sectors + beyond) * SECTOR_BYTES_U64
    }

    /// How many of `count` bytes at `offset` fit when `free_bytes` of the disk are free.
    pub(super) fn fitting(&self, offset: u64, count: usize, mut free_bytes: u64) -> usize {
        let mut fitting = 0;
        for piece in pieces(offset, count) {
            let is_owned = piece.sector < self.reserved_sectors
                || self.cache.sectors.contains_key(&piece.sector);
            if !is_owned {
                match free_bytes.checked_sub(SECTOR_BYTES_U64) {
                    Some(left) => free_bytes = left,
                    None => break,
                }
            }
            fitting += piece.len;
        }
        fitting
    }

    /// Writes into the cache and notes what is unsynced.
    pub(super) fn write(&mut self, bytes: &[u8], offset: u64, seq: &mut u64) {
        for index in self.cache.write(bytes, offset) {
            let data = self.cache.sectors[&index].clone();
            if !self.is_without_effect(index, &data) {
                note(&mut self.pending, Change::Sector { index, data }, seq);
            }
        }
        let end = offset + bytes.len() as u64;
        if !bytes.is_empty() && end > self.cache.len_bytes {
            self.set_len(end, seq);
        }
    }

    /// True when a crash that loses this write leaves the same bytes as one that keeps it: the medium, or the last
    /// unsynced change of the sector, has them already. Without such units all subsets of the others can be tried.
    fn is_without_effect(&self, index: u64, data: &Sector) -> bool {
        let end = (index + 1) * SECTOR_BYTES_U64;
        for pending in self.pending.iter().rev() {
            match &pending.change {
                Change::Length(len_bytes) if *len_bytes < end => return false,
                Change::Sector {
                    index: other,
                    data: last,
                } if *other == index => {
                    return last == data;
                }
                _ => {}
            }
        }
        match self.media.sectors.get(&index) {
            Some(durable) => durable == data,
            None => end <= self.media.len_bytes && data.iter().all(|byte| *byte == 0),
        }
    }

    /// Changes what is in the cache and on the medium at once.
    pub(super) fn overwrite(&mut self, bytes: &[u8], offset: u64) {
        let end = offset + bytes.len() as u64;
        for content in [&mut self.cache, &mut self.media] {
            content.write(bytes, offset);
            content.len_bytes = content.len_bytes.max(end);
        }
    }

    pub(super) fn set_len(&mut self, len_bytes: u64, seq: &mut u64) {
        self.reserved_sectors = self
            .reserved_sectors
            .min(len_bytes.div_ceil(SECTOR_BYTES_U64));
        self.cache.set_len(len_bytes);
        note(&mut self.pending, Change::Length(len_bytes), seq);
    }

    /// Bytes that allocating `len_bytes` would take from the disk.
    pub(super) fn missing_bytes(&self, len_bytes: u64) -> u64 {
        let wanted = len_bytes
            .div_ceil(SECTOR_BYTES_U64)
            .saturating_sub(self.reserved_sectors);
        let end = self.reserved_sectors + wanted;
        let owned = self.cache.sectors.range(self.reserved_sectors..end).count() as u64;
        (wanted - owned) * SECTOR_BYTES_U64
    }

    pub(super) fn allocate(&mut self, len_bytes: u64, seq: &mut u64) {
        if len_bytes > self.cache.len_bytes {
            self.set_len(len_bytes, seq);
        }
        self.reserved_sectors = self
            .reserved_sectors
            .max(len_bytes.div_ceil(SECTOR_BYTES_U64));
    }

    /// Brings the changes up to `seq` to the medium.
    pub(super) fn sync(&mut self, seq: u64) {
        for pending in self.pending.extract_if(.., |pending| pending.seq <= seq) {
            self.media.apply(&pending.change);
        }
    }

    /// A sync that failed: of the changes up to `seq` only some reach the medium, and none is remembered as
    /// dirty (rule 3). At least the first sector is lost, or the fault would be none.
    pub(super) fn fail_sync(&mut self, seq: u64, random: &mut Random) {
        let mut has_lost = false;
        for pending in self.pending.extract_if(.., |pending| pending.seq <= seq) {
            let is_data = matches!(pending.change, Change::Sector { .. });
            if (is_data && !has_lost) || random.chance(50) {
                has_lost |= is_data;
            } else {
                self.media.apply(&pending.change);
            }
        }
    }

    /// Reads see the medium again, and what is still to be written to it.
    pub(super) fn drop_cache(&mut self) {
        self.cache = self.surviving(|_| true);
    }

    /// The medium plus the pending changes that `is_kept` chooses by their seq.
    pub(super) fn surviving(&self, is_kept: impl Fn(u64) -> bool) -> Content {
        let mut content = self.media.clone();
        for pending in self.pending.iter().filter(|pending| is_kept(pending.seq)) {
            content.apply(&pending.change);
        }
        content
    }

    /// The file after a power cycle, when the medium holds `content`.
    pub(super) fn reborn(&self, mut content: Content) -> Self {
        content.cut(content.len_bytes);
        let sector_count = content.len_bytes.div_ceil(SECTOR_BYTES_U64);
        Self {
            name: self.name.clone(),
            cache: content.clone(),
            media: content,
            pending: Vec::new(),
            reserved_sectors: self.reserved_sectors.min(sector_count),
            is_linked: true,
            handle_count: 0,
            is_inherited: true,
        }
    }
}

fn note(pending: &mut Vec<Pending>, change: Change, seq: &mut u64) {
    *seq += 1;
    pending.push(Pending { seq: *seq, change });
}
