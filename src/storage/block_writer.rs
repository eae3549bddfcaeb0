//! How a batch gets into its segment file: in whole blocks, past the system's cache, into blocks that were written before.
//!
//! ```text
//!   file     [ .. batch n-1 | batch n |0]   0   0   0   0   0 | never written
//!                  '- tail -'- header, records -'- ahead: zeros -'
//!   writes         [block][block][block ]  with the first batch that needs blocks nobody wrote before
//! ```
//! What is written to the log is read again only by a backlog that left memory, and for what consumers give back. So the cache of the system is of no use
//! here: a page that has to be found, filled, written back and thrown out costs several times as much as the transfer. And
//! a sync after a write into blocks that have never been written has to wait for the file system's own journal, which
//! notes them: about half of its time. Small commits therefore write zeros ahead, so that the next ones find blocks that
//! only have to be overwritten. Recycled files consist of such blocks, unless they were freed before they were full.
//!
//! 1. Whole blocks are written. The last, partly filled one is kept as the tail and written again, with the same bytes
//!    in its first part, by the next batch.
//! 2. What lies behind the last batch of a segment that is not recycled is zeros, written or not: nobody can see the
//!    difference after a crash.
//! 3. A write without room for what it takes ahead is repeated without that, and nothing is taken ahead in that segment any
//!    more: the log never waits for zeros.
//! 4. A large batch that has to be gathered is written in several pieces one after the other. Nothing is told about any of them before the sync.
//! 5. A direct write takes blocks of memory. Records that lie right for it (see [`BlockBuffer`](super::block_buffer)) are
//!    written from where they are; what has parts elsewhere is gathered in a buffer first.

use std::io::{self, IoSlice};
use std::sync::Arc;

use super::format::BLOCK_BYTES;
use super::options::{FsyncPolicy, Options};
use super::reserve::is_full;
use super::segment::{FIRST_BATCH_OFFSET, SegmentHeader};
use crate::disk::{DIRECT_ALIGN_BYTES, DiskFile, LARGE_PAGE_BYTES, LargePage};

/// [`BLOCK_BYTES`] as a length in memory.
const BLOCK_LEN: usize = FIRST_BATCH_OFFSET as usize;
const _: () = assert!(BLOCK_LEN as u64 == BLOCK_BYTES && BLOCK_LEN == DIRECT_ALIGN_BYTES);

/// Zeros written ahead at most.
const AHEAD_MAX_BYTES: u64 = 1 << 20;
/// Writes from this length on take nothing ahead: they would write most of their bytes twice, for a wait that is short
/// beside their own.
const AHEAD_WRITE_MAX_BYTES: u64 = 256 << 10;
/// Bytes that are gathered and written at once.
const GATHER_MAX_LEN: usize = LARGE_PAGE_BYTES;
/// From here on they are gathered in a large page: the kernel looks each page up that it writes from.
const LARGE_MIN_LEN: usize = 512 << 10;
/// Records that fill so much of blocks are written from where they are: for less, one buffer is simpler for the kernel.
const IN_PLACE_MIN_LEN: usize = 16 << 10;
/// The buffer grows by doubling, and from here on in steps of this.
const GATHER_STEP_LEN: usize = 256 << 10;

/// Zeros where a direct write may take them from.
#[repr(align(4096))]
struct Zeros([u8; 64 << 10]);
static ZEROS: Zeros = Zeros([0; 64 << 10]);

/// See the module.
pub(crate) struct BlockWriter {
    file: Option<Arc<dyn DiskFile>>,
    /// Confirms wait for the disk, so every write is on its way there at once.
    wants_direct: bool,
    is_direct: bool,
    /// Bytes of the last block behind its last whole one, which the next write begins with.
    tail: Vec<u8>,
    /// The one before it: its room is used again.
    old_tail: Vec<u8>,
    gathered: Gathered,
    /// Where blocks begin that nobody has written yet.
    fresh_from: u64,
    /// The segment's file had no room for zeros.
    has_no_room_ahead: bool,
    /// End of what a segment takes.
    segment_limit: u64,
    /// Zeros written ahead since somebody asked.
    ahead_bytes: u64,
}

impl BlockWriter {
    /// A writer without a file: [`BlockWriter::enter`] comes first.
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            file: None,
            wants_direct: options.fsync == FsyncPolicy::Always,
            is_direct: false,
            tail: Vec::new(),
            old_tail: Vec::new(),
            gathered: Gathered::default(),
            fresh_from: 0,
            has_no_room_ahead: false,
            segment_limit: options.segment_size_bytes,
            ahead_bytes: 0,
        }
    }

    /// Goes on in another segment, which has `first_batch` in it already.
    pub(crate) fn enter(
        &mut self,
        file: Arc<dyn DiskFile>,
        header: &SegmentHeader,
        first_batch: &[u8],
    ) {
        self.is_direct = self.wants_direct && file.bypass_cache();
        self.has_no_room_ahead = false;
        self.file = Some(file);
        let whole_len = first_batch.len() / BLOCK_LEN * BLOCK_LEN;
        self.tail.clear();
        self.tail.extend_from_slice(&first_batch[whole_len..]);
        let begun = first_batch.len().next_multiple_of(BLOCK_LEN) as u64;
        self.fresh_from = match header.is_recycled {
            true => u64::MAX,
            false => u64::from(FIRST_BATCH_OFFSET) + begun,
        };
    }

    /// Nobody writes: gives memory back.
    pub(crate) fn rest(&mut self) {
        self.gathered = Gathered::default();
    }

    /// The segment's file.
    pub(crate) fn file(&self) -> &Arc<dyn DiskFile> {
        self.file.as_ref().expect("a segment was entered")
    }

    /// True when a write is on its way to the device at once. Then an error of it is one of the device, which may still carry
    /// the write out later: nothing may be written there again.
    pub(crate) fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// Bytes written ahead since the last call.
    pub(crate) fn take_ahead_bytes(&mut self) -> u64 {
        std::mem::take(&mut self.ahead_bytes)
    }

    /// Writes a batch, which begins at `offset`, and zeros up to the end of its last block. After an error it may be called
    /// again with the same batch.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn write<'a>(
        &mut self,
        header: &'a [u8],
        records: impl Iterator<Item = &'a [u8]>,
        offset: u32,
        may_take_ahead: bool,
    ) -> io::Result<()> {
        std::mem::swap(&mut self.tail, &mut self.old_tail);
        let mut pieces: Vec<&[u8]> = vec![&self.old_tail, header];
        // Not `extend`: all of them live longer than the tail.
        for record in records {
            pieces.push(record);
        }
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        let blocks_len = len.next_multiple_of(BLOCK_LEN);
        let start = u64::from(offset) - self.old_tail.len() as u64;
        let end = start + blocks_len as u64;
        let file = self.file.as_ref().expect("a segment was entered");
        let ahead = match may_take_ahead {
            true => self.ahead_of(end, end - start),
            false => 0,
        };
        let mut write = |ahead| match self.is_direct {
            true => {
                let gathered = &mut self.gathered;
                match InPlace::of(&pieces) {
                    Some(in_place) => in_place.write(gathered, &**file, start, ahead),
                    None => gathered.write(&**file, &pieces, blocks_len, start, ahead),
                }
            }
            // Which takes nothing ahead.
            false => write_through_cache(&**file, &pieces, blocks_len - len, start),
        };
        let (written, ahead) = match write(ahead) {
            Err(error) if ahead > 0 && has_no_room(&error) => {
                let written = write(0);
                self.has_no_room_ahead = true;
                (written, 0)
            }
            written => (written, ahead),
        };
        self.is_direct = self.is_direct && file.bypasses_cache();
        if written.is_ok() {
            keep_last_partial_block(&pieces, len, &mut self.tail);
            self.fresh_from = self.fresh_from.max(end + ahead);
            self.ahead_bytes += ahead;
        } else {
            std::mem::swap(&mut self.tail, &mut self.old_tail);
        }
        written
    }

    /// Zeros to write behind `end` together with `len` bytes: as much again as the segment has already, so that one that
    /// hardly grows stays small.
    fn ahead_of(&self, end: u64, len: u64) -> u64 {
        if !self.is_direct
            || self.has_no_room_ahead
            || end <= self.fresh_from
            || len >= AHEAD_WRITE_MAX_BYTES
        {
            return 0;
        }
        let left = self.segment_limit.saturating_sub(end);
        end.min(AHEAD_MAX_BYTES).min(left) / BLOCK_BYTES * BLOCK_BYTES
    }
}

/// The disk is full, or the file as long as it may be.
fn has_no_room(error: &io::Error) -> bool {
    is_full(error) || error.kind() == io::ErrorKind::FileTooLarge
}

/// A buffer that direct writes are made from.
#[derive(Default)]
struct Gathered {
    /// Longer than needed, so that it can begin at a block of memory.
    room: Vec<u8>,
    /// For long parts.
    large: Option<LargePage>,
}

impl Gathered {
    /// Writes `pieces` at `start`, zeros to the end of their blocks, which are `blocks_len` long, and `ahead` bytes of zeros.
    fn write(
        &mut self,
        file: &dyn DiskFile,
        pieces: &[&[u8]],
        blocks_len: usize,
        start: u64,
        ahead: u64,
    ) -> io::Result<()> {
        let mut left = blocks_len;
        let mut at = start;
        let mut bytes = pieces.iter().copied();
        let mut piece: &[u8] = &[];
        while left > 0 {
            let part_len = next_part_len(left);
            let buffer = self.buffer(part_len);
            let mut filled = 0;
            while filled < buffer.len() {
                if piece.is_empty() {
                    let Some(next) = bytes.next() else {
                        buffer[filled..].fill(0);
                        break;
                    };
                    piece = next;
                }
                let (part, rest) = piece.split_at(piece.len().min(buffer.len() - filled));
                buffer[filled..filled + part.len()].copy_from_slice(part);
                filled += part.len();
                piece = rest;
            }
            left -= buffer.len();
            let mut slices = vec![IoSlice::new(buffer)];
            if left == 0 {
                slices.extend(zeros(ahead));
            }
            let written = buffer.len() as u64;
            file.write_at(&slices, at)?;
            at += written;
        }
        Ok(())
    }

    /// Room for `len` bytes that begins at a block of memory.
    fn buffer(&mut self, len: usize) -> &mut [u8] {
        if len >= LARGE_MIN_LEN && self.large.is_none() {
            self.large = LargePage::new().ok();
        }
        if let Some(page) = self.large.as_mut().filter(|_| len >= LARGE_MIN_LEN) {
            return &mut page.as_mut()[..len];
        }
        if self.room.len() < len + BLOCK_LEN {
            let step = len.next_power_of_two().min(GATHER_STEP_LEN);
            // First the old one goes.
            self.room = Vec::new();
            self.room = vec![0; len.next_multiple_of(step) + BLOCK_LEN];
        }
        let at = self.room.as_ptr().addr();
        let skipped = at.next_multiple_of(BLOCK_LEN) - at;
        &mut self.room[skipped..skipped + len]
    }
}

/// A batch whose records lie in memory as they will lie in the file: all but the first and the last block of it is written
/// from where it is.
struct InPlace<'a> {
    tail: &'a [u8],
    header: &'a [u8],
    /// Of the records, what belongs to the blocks of tail and header.
    first: &'a [u8],
    blocks: &'a [u8],
    /// What does not fill a block.
    last: &'a [u8],
}

impl<'a> InPlace<'a> {
    /// `None` when they lie otherwise, or are too few to be worth it.
    fn of(pieces: &[&'a [u8]]) -> Option<Self> {
        let &[tail, header, records] = pieces else {
            return None;
        };
        let before_len = tail.len() + header.len();
        let first_len = before_len.next_multiple_of(BLOCK_LEN) - before_len;
        let (first, rest) = records.split_at_checked(first_len)?;
        let (blocks, last) = rest.split_at(rest.len() / BLOCK_LEN * BLOCK_LEN);
        let is_in_place = blocks.as_ptr().addr().is_multiple_of(BLOCK_LEN);
        (is_in_place && blocks.len() >= IN_PLACE_MIN_LEN).then_some(Self {
            tail,
            header,
            first,
            blocks,
            last,
        })
    }

    /// Writes all of it at `start`, zeros to the end of its last block, and `ahead` bytes of zeros.
    fn write(
        &self,
        gathered: &mut Gathered,
        file: &dyn DiskFile,
        start: u64,
        ahead: u64,
    ) -> io::Result<()> {
        let first_len = self.tail.len() + self.header.len() + self.first.len();
        let last_len = self.last.len().next_multiple_of(BLOCK_LEN);
        let edges = gathered.buffer(first_len + last_len);
        let (first, last) = edges.split_at_mut(first_len);
        copy_pieces(&[self.tail, self.header, self.first], first);
        copy_pieces(&[self.last], last);
        let mut slices = vec![IoSlice::new(first), IoSlice::new(self.blocks)];
        if !last.is_empty() {
            slices.push(IoSlice::new(last));
        }
        slices.extend(zeros(ahead));
        file.write_at(&slices, start)
    }
}

/// Copies `pieces` one behind the other, and zeros behind them, into `buffer`, in which there is room for them.
fn copy_pieces(pieces: &[&[u8]], buffer: &mut [u8]) {
    let mut left = buffer;
    for piece in pieces {
        let (room, rest) = left.split_at_mut(piece.len());
        room.copy_from_slice(piece);
        left = rest;
    }
    left.fill(0);
}

/// How much of `left` bytes, which are whole blocks, is written next: parts of about the same length.
fn next_part_len(left: usize) -> usize {
    let count = left.div_ceil(GATHER_MAX_LEN);
    left.div_ceil(count.max(1)).next_multiple_of(BLOCK_LEN)
}

/// Writes `pieces` at `start`, and zeros of `padding_len` behind them, without a copy of our own.
fn write_through_cache(
    file: &dyn DiskFile,
    pieces: &[&[u8]],
    padding_len: usize,
    start: u64,
) -> io::Result<()> {
    let padding = &ZEROS.0[..padding_len];
    let slices: Vec<IoSlice<'_>> = pieces
        .iter()
        .copied()
        .chain(std::iter::once(padding))
        .filter(|piece| !piece.is_empty())
        .map(IoSlice::new)
        .collect();
    file.write_at(&slices, start)
}

/// `len` zeros.
fn zeros<'a>(len: u64) -> impl Iterator<Item = IoSlice<'a>> {
    let mut left = len;
    std::iter::from_fn(move || {
        let part = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(ZEROS.0.len());
        left -= part as u64;
        (part > 0).then(|| IoSlice::new(&ZEROS.0[..part]))
    })
}

/// Bytes of the whole blocks that a batch lies in: what writing it costs the disk.
pub(crate) fn block_span(offset: u32, len_bytes: u64) -> u64 {
    let start = u64::from(offset) / BLOCK_BYTES * BLOCK_BYTES;
    (u64::from(offset) + len_bytes).next_multiple_of(BLOCK_BYTES) - start
}

/// What `pieces`, which begin at the start of a block and are `len` long, leave in their last block if they do not fill it.
fn keep_last_partial_block(pieces: &[&[u8]], len: usize, tail: &mut Vec<u8>) {
    tail.clear();
    let mut wanted = len % BLOCK_LEN;
    // From behind, so that a batch of many pieces costs no more than one of few.
    let mut first = pieces.len();
    let mut skipped = 0;
    while wanted > 0 && first > 0 {
        first -= 1;
        let part = wanted.min(pieces[first].len());
        skipped = pieces[first].len() - part;
        wanted -= part;
    }
    for piece in &pieces[first..] {
        tail.extend_from_slice(&piece[skipped..]);
        skipped = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::SimDisk;
    use crate::disk::{Disk, OpenMode};
    use crate::storage::block_buffer::BlockBuffer;
    use crate::storage::format::StoreId;
    use crate::storage::types::SegmentId;
    use std::path::Path;

    #[test]
    fn last_partial_block_is_what_does_not_fill_a_block() {
        #[track_caller]
        fn check(pieces: &[&[u8]], expected: &[u8]) {
            let len = pieces.iter().map(|piece| piece.len()).sum();
            let mut tail = vec![1, 2, 3];
            keep_last_partial_block(pieces, len, &mut tail);
            assert_eq!(tail, expected);
        }
        let long: Vec<u8> = (0..=255).cycle().take(9000).collect();
        let (a, b) = long.split_at(100);
        check(&[a, b], &long[8192..]);
        check(&[a], a);
        check(&[&long[..4096], &[]], &[]);
        check(&[], &[]);
        let (b, c) = b.split_at(8500);
        check(&[a, b, &[], c], &long[8192..]);
    }

    #[test]
    fn long_writes_are_cut_into_parts_of_about_the_same_length() {
        assert_eq!(next_part_len(BLOCK_LEN), BLOCK_LEN);
        assert_eq!(next_part_len(GATHER_MAX_LEN), GATHER_MAX_LEN);
        for blocks in [1, 2, 257, 528, 529, 1057, 5000] {
            let mut left = blocks * BLOCK_LEN;
            let first = next_part_len(left);
            while left > 0 {
                let part = next_part_len(left);
                assert!(part <= GATHER_MAX_LEN && part.is_multiple_of(BLOCK_LEN));
                assert!(
                    first - part <= 2 * BLOCK_LEN,
                    "{part} of {blocks} blocks, first {first}"
                );
                left -= part;
            }
        }
    }

    struct Rig {
        reader: Arc<dyn DiskFile>,
        writer: BlockWriter,
        expected: Vec<u8>,
    }

    impl Rig {
        fn new(is_direct: bool, is_recycled: bool) -> Self {
            let disk = SimDisk::new(1);
            disk.set_bypass_supported(is_direct);
            let file = disk.open(Path::new("s"), OpenMode::CreateNew).expect("new");
            let mut writer = BlockWriter::new(&Options::default());
            let header = SegmentHeader {
                store: StoreId([1; 16]),
                segment: SegmentId(1),
                epoch: 1,
                created_at_ms: 0,
                is_recycled,
            };
            let open = vec![9; BLOCK_LEN + 300];
            let mut expected = vec![0; BLOCK_LEN];
            expected.extend_from_slice(&open);
            file.write_at(&[IoSlice::new(&expected)], 0).expect("room");
            let reader = disk.open(Path::new("s"), OpenMode::Read).expect("there");
            writer.enter(file, &header, &open);
            Self {
                reader,
                writer,
                expected,
            }
        }

        fn write(&mut self, len: usize, may_take_ahead: bool) {
            let fill = self.expected.len();
            let bytes: Vec<u8> = (1..=251).cycle().skip(fill % 251).take(len).collect();
            let (header, records) = bytes.split_at(len.min(64));
            let (first, rest) = records.split_at(records.len() / 3);
            let pieces = [first, &[], rest];
            let offset = u32::try_from(self.expected.len()).expect("short");
            self.writer
                .write(header, pieces.into_iter(), offset, may_take_ahead)
                .expect("room");
            self.expected.extend_from_slice(&bytes);
        }

        /// Writes a batch whose records are in one piece, `skew` bytes behind the place at which they are written from
        /// where they are; true when they are.
        fn write_one_piece(&mut self, len: usize, skew: u64) -> bool {
            let header = [7; 64];
            let offset = self.expected.len() as u64;
            let mut records = BlockBuffer::new(offset + 64 + skew);
            let bytes: Vec<u8> = (1..=251).cycle().take(len).collect();
            records.append(&bytes);
            let tail = vec![0; self.expected.len() % BLOCK_LEN];
            let is_in_place = InPlace::of(&[&tail, &header, records.bytes()]).is_some();
            let offset = u32::try_from(offset).expect("short");
            self.writer
                .write(&header, std::iter::once(records.bytes()), offset, true)
                .expect("room");
            self.expected.extend_from_slice(&header);
            self.expected.extend_from_slice(records.bytes());
            is_in_place
        }

        /// Checks the file: all that was written, then nothing but zeros; its length in blocks.
        #[track_caller]
        fn check(&self) -> u64 {
            let len = self.reader.len().expect("open");
            let mut bytes = vec![0; usize::try_from(len).expect("short")];
            self.reader.read_at(&mut bytes, 0).expect("open");
            assert!(bytes.starts_with(&self.expected));
            assert!(bytes[self.expected.len()..].iter().all(|byte| *byte == 0));
            assert_eq!(len % BLOCK_BYTES, 0);
            len / BLOCK_BYTES
        }
    }

    const LENS: [usize; 9] = [64, 1, 3667, 5000, 4096, 70_000, 300_000, 3 << 20, 100];

    #[test]
    fn both_ways_write_the_same() {
        for is_direct in [false, true] {
            let mut rig = Rig::new(is_direct, false);
            for len in LENS {
                rig.write(len, true);
                rig.check();
            }
        }
    }

    #[test]
    fn records_are_written_from_where_they_are_as_they_are_otherwise() {
        for is_direct in [false, true] {
            let mut rig = Rig::new(is_direct, false);
            let lens = [20_480, 1, 30_000, 24_536, 40_960, 8000, 100_001, 65_536];
            // Every place of a header in a block, the last ones of it among them.
            let steps = (1..300).map(|step| 20_480 + step * 40);
            for len in lens.into_iter().chain(steps) {
                let is_in_place = rig.write_one_piece(len, 0);
                assert_eq!(is_in_place, len >= IN_PLACE_MIN_LEN + BLOCK_LEN, "{len}");
                assert!(!rig.write_one_piece(len, 8));
            }
            rig.check();
        }
    }

    #[test]
    fn small_writes_take_zeros_ahead_and_then_none_until_those_are_used() {
        let mut rig = Rig::new(true, false);
        rig.write(64, true);
        assert_eq!(rig.check(), 3, "the block was there");
        rig.write(8000, true);
        assert_eq!(rig.check(), 10, "as much again as there is");
        assert_eq!(rig.writer.take_ahead_bytes(), 5 * BLOCK_BYTES);
        rig.write(4 * BLOCK_LEN, true);
        assert_eq!(rig.check(), 10);
        assert_eq!(rig.writer.take_ahead_bytes(), 0);
        rig.write(3 << 20, true);
        assert_eq!(rig.writer.take_ahead_bytes(), 0, "large");
        rig.write(BLOCK_LEN, false);
        assert_eq!(rig.writer.take_ahead_bytes(), 0, "it must not");
        rig.write(BLOCK_LEN, true);
        assert_eq!(rig.writer.take_ahead_bytes(), AHEAD_MAX_BYTES);
        rig.check();
    }

    #[test]
    fn nothing_is_taken_ahead_in_recycled_files_and_through_the_cache() {
        for (is_direct, is_recycled) in [(true, true), (false, false)] {
            let mut rig = Rig::new(is_direct, is_recycled);
            for len in LENS {
                rig.write(len, true);
            }
            assert_eq!(rig.writer.take_ahead_bytes(), 0);
            rig.check();
        }
    }
}
