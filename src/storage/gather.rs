//! Reading many messages at once, for a backlog that is drained: few large reads instead of many small ones.
//!
//! ```text
//!   wanted, by place   [r1][r2]....[r3]                 [r4 ........... 200 KiB]   [r5]
//!   reads              '---- one ----'  (gap < 16 KiB)   '--- its own buffer ---'   '-one-'
//!                      r1, r2, r3 are copied out, or slices      sliced
//! ```
//! 1. Every record is checked as if it had been read alone: length, place, ref and CRC (see [`check_record`](super::read::check_record)).
//! 2. Of a long read that brings little else, messages are slices of what was read: their bytes move from the disk to the
//!    socket without a copy here. One that stays (unacked, or in the outbox of a slow consumer) keeps a whole page in memory, so
//!    there are few of those altogether (see [`read_pages`](super::read_pages)). Without one, and of shorter reads, messages are
//!    copied out of a buffer that the thread uses again, and keep no other bytes than their own.
//! 3. Long reads of what one queue alone has go past the cache of the system, into the buffer itself: no page is looked
//!    for, filled, copied and given back (see [`direct_files`](super::direct_files)). Where that is not possible, in the
//!    segment that is written and in cold ones they go through the cache, and what was read leaves it (see [`read_behind`]).
//!    What several queues have is kept there for the others.
//! 4. A read that fails is repeated record by record, so that each one gets the error that is its own.
//!
//! [`read_behind`]: super::read_behind

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::error::ReadError;
use super::read::check_shared;
use super::read_pages::{ReadPages, TakenPage};
use super::types::{Lsn, Position, QueueId, SegmentId, Seq};
use crate::cache_line::{TOUCHED_TOGETHER, touch};
use crate::disk::{DIRECT_ALIGN_BYTES, DiskFile, LARGE_PAGE_BYTES};

/// Bytes that one read brings at most: with the rest of the blocks at both ends it fits into a large page.
const EXTENT_MAX_BYTES: usize = LARGE_PAGE_BYTES - 2 * DIRECT_ALIGN_BYTES;
/// Records up to this are read together with their neighbours; a longer one is worth a read and a buffer of its own.
const GATHERED_MAX_BYTES: u32 = 64 * 1024;
/// Bytes nobody asked for that are read along rather than begin another read: a random read of a few KiB costs as much
/// as this in a sequential one.
const GAP_MAX_BYTES: u32 = 16 * 1024;

/// Extents from this length on, when most of their bytes were wanted and no other queue has a share in them, will not be
/// read again.
const BEHIND_MIN_BYTES: usize = 32 * 1024;
/// Extents from this length on are read past the cache. Shorter ones, as a broker short of memory asks for, are left to the
/// system, which reads ahead for them.
const DIRECT_MIN_BYTES: usize = 128 * 1024;

/// Extents from this length on, when most of their bytes are wanted, are read into a page that their messages keep.
const SHARED_MIN_BYTES: usize = LARGE_PAGE_BYTES / 4;

/// What reads of one thread read into, one after the other.
#[derive(Debug, Default)]
pub struct ReadBuffer {
    own: Vec<u8>,
    pages: Option<ReadPages>,
}

impl ReadBuffer {
    /// One that gives messages of long reads a page of `pages` to keep, while there is one.
    #[must_use]
    pub fn with_pages(pages: ReadPages) -> Self {
        Self {
            own: Vec::new(),
            pages: Some(pages),
        }
    }

    /// Nobody reads: gives memory back, that of the pages too.
    pub fn rest(&mut self) {
        self.own = Vec::new();
        if let Some(pages) = &self.pages {
            pages.rest();
        }
    }

    /// `len` bytes that begin where a read past the cache may begin.
    fn aligned(&mut self, len: usize) -> &mut [u8] {
        let room = len + DIRECT_ALIGN_BYTES;
        if self.own.len() < room {
            self.own.resize(room, 0);
        }
        let start = self.own.as_ptr().addr();
        let skip = start.next_multiple_of(DIRECT_ALIGN_BYTES) - start;
        &mut self.own[skip..skip + len]
    }

    /// A page for the messages of `extent`, if it is worth one and there is one.
    fn page_for(&self, extent: &Extent) -> Option<TakenPage> {
        let is_dense = extent.wanted_bytes >= extent.len_bytes / 4 * 3;
        let is_worth_it = extent.len_bytes >= SHARED_MIN_BYTES && is_dense;
        self.pages.as_ref().filter(|_| is_worth_it)?.take()
    }
}

/// Files of records: the log's, or those of messages that are in no log.
pub(crate) trait Source {
    /// What is below is in files.
    fn end(&self) -> Lsn;
    /// The file of this number.
    fn file(&self, number: SegmentId) -> io::Result<Arc<dyn DiskFile>>;
    /// The file's name, for people.
    fn name(&self, number: SegmentId) -> String;
    /// The payload of one message, wherever it is.
    fn read_alone(&self, queue: QueueId, seq: Seq, position: Position) -> Result<Bytes, ReadError>;
    /// The file of this number for reads past the cache of the system, if it is one of a single queue as far as anybody
    /// knows, nobody writes it, and the system can.
    fn direct_file(&self, _number: SegmentId) -> Option<Arc<dyn DiskFile>> {
        None
    }
    /// Reads of this file are better made through the cache from now on: a long one brought much that was not this queue's, or
    /// failed.
    fn leave_to_cache(&self, _number: SegmentId) {}
    /// These bytes of a file were read, through the cache, for the only queue that has messages there.
    fn read_behind(&self, _number: SegmentId, _bytes: Range<u32>) {}
}

/// Wanted records that one read brings.
struct Extent {
    /// Where it begins.
    start: Position,
    len_bytes: usize,
    /// Of its records; those that are named twice count twice.
    wanted_bytes: usize,
    /// Its records are `order[from..to]`.
    from: usize,
    to: usize,
}

/// Reads the payloads of messages of one queue; the results are in the order of `wanted`.
pub(crate) fn read_many(
    source: &impl Source,
    queue: QueueId,
    wanted: &[(Seq, Position)],
    buffer: &mut ReadBuffer,
) -> Vec<Result<Bytes, ReadError>> {
    let mut results: Vec<_> = wanted.iter().map(|_| None).collect();
    read_each(source, queue, wanted, buffer, |index, result| {
        results[index] = Some(result);
    });
    let each = results.into_iter();
    each.map(|result| result.expect("each of them was read"))
        .collect()
}

/// Reads the payloads of messages of one queue, in any order: `take` gets the index in `wanted` of each.
pub(crate) fn read_each(
    source: &impl Source,
    queue: QueueId,
    wanted: &[(Seq, Position)],
    buffer: &mut ReadBuffer,
    mut take: impl FnMut(usize, Result<Bytes, ReadError>),
) {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by_key(|&index| wanted[index].1.lsn);
    let read_alone = |index: usize| {
        let (seq, position) = wanted[index];
        source.read_alone(queue, seq, position)
    };
    let mut done = 0;
    for extent in extents(source.end(), wanted, &order) {
        for &index in &order[done..extent.from] {
            take(index, read_alone(index));
        }
        done = extent.to;
        let number = extent.start.lsn.segment();
        let page = buffer.page_for(&extent);
        let read = read_extent(source, &extent, buffer, page);
        let mut own_bytes = 0;
        let mut warmed_upto = extent.from;
        for at in extent.from..extent.to {
            if at == warmed_upto {
                warmed_upto = extent.to.min(at + TOUCHED_TOGETHER);
                let next = order[at..warmed_upto].iter();
                let places = next.map(|&index| wanted[index].1);
                warm(read.bytes.as_slice(), extent.start, places);
            }
            let index = order[at];
            let (seq, position) = wanted[index];
            let gathered = slice_of(read.bytes.as_slice(), extent.start, position);
            let payload =
                gathered.and_then(|record| check_shared(record, queue, seq, position).ok());
            let result = match payload {
                Some((payload, is_shared)) => {
                    own_bytes += position.len_bytes as usize * usize::from(!is_shared);
                    Ok(read.bytes.keep(payload))
                }
                None => read_alone(index),
            };
            take(index, result);
        }
        if extent.is_long() {
            let is_own = own_bytes >= extent.len_bytes / 4 * 3;
            match (is_own, read.is_direct) {
                (true, false) => source.read_behind(number, extent.bytes()),
                (false, true) => source.leave_to_cache(number),
                (true, true) | (false, false) => {}
            }
        }
    }
    for &index in &order[done..] {
        take(index, read_alone(index));
    }
}

/// Groups what lies in files and close together. Long records and those that are not in a file yet are in no group.
fn extents(written_lsn: Lsn, wanted: &[(Seq, Position)], order: &[usize]) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    for (at, &index) in order.iter().enumerate() {
        let position = wanted[index].1;
        if position.len_bytes > GATHERED_MAX_BYTES
            || (position.lsn >= written_lsn && !position.lsn.segment().is_cold())
        {
            continue;
        }
        let last = extents.last_mut().filter(|extent| extent.to == at);
        match last.and_then(|extent| Some((extent.reach(position)?, extent))) {
            Some((len_bytes, extent)) => {
                extent.len_bytes = len_bytes;
                extent.wanted_bytes += position.len_bytes as usize;
                extent.to = at + 1;
            }
            None => extents.push(Extent {
                start: position,
                len_bytes: position.len_bytes as usize,
                wanted_bytes: position.len_bytes as usize,
                from: at,
                to: at + 1,
            }),
        }
    }
    extents
}

impl Extent {
    /// See [`BEHIND_MIN_BYTES`].
    fn is_long(&self) -> bool {
        self.len_bytes >= BEHIND_MIN_BYTES
    }

    /// Where it lies in its file.
    fn bytes(&self) -> Range<u32> {
        let start = self.start.lsn.offset();
        let len_bytes = u32::try_from(self.len_bytes).unwrap_or(u32::MAX);
        start..start.saturating_add(len_bytes)
    }

    /// Bytes of the blocks that it lies in.
    fn blocks_len(&self) -> usize {
        let skip = self.start.lsn.offset() as usize % DIRECT_ALIGN_BYTES;
        (skip + self.len_bytes).next_multiple_of(DIRECT_ALIGN_BYTES)
    }

    /// Length of this extent with `position`, which is not below its last record; `None` when that belongs to another.
    fn reach(&self, position: Position) -> Option<usize> {
        let (start, next) = (self.start.lsn, position.lsn);
        if start.segment() != next.segment() {
            return None;
        }
        let offset = (next.offset() - start.offset()) as usize;
        let end = offset + position.len_bytes as usize;
        let is_near = offset <= self.len_bytes + GAP_MAX_BYTES as usize;
        (is_near && end <= EXTENT_MAX_BYTES).then(|| end.max(self.len_bytes))
    }
}

/// What a read of an extent brought.
struct Read<'a> {
    bytes: Brought<'a>,
    /// They came past the cache.
    is_direct: bool,
}

/// The bytes of an extent: fewer at the end of the file, none when they cannot be read.
enum Brought<'a> {
    /// Where the next read will be.
    Borrowed(&'a [u8]),
    /// In a page that goes with the last slice of it.
    Shared(Bytes),
}

impl Brought<'_> {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }

    /// A part of the bytes, for as long as anybody wants it.
    fn keep(&self, part: &[u8]) -> Bytes {
        match self {
            Self::Borrowed(_) => Bytes::copy_from_slice(part),
            Self::Shared(bytes) => bytes.slice_ref(part),
        }
    }
}

/// Looks at some records in the bytes that begin at `start`. The processor fetches them side by side that way; the checksums behind
/// it would wait for each line that the device has just written.
fn warm(bytes: &[u8], start: Position, places: impl Iterator<Item = Position>) {
    let seen = places.fold(0, |seen, position| {
        seen ^ touch(slice_of(bytes, start, position).unwrap_or_default())
    });
    std::hint::black_box(seen);
}

/// Reads an extent: into `page` if there is one, and else into the buffer.
fn read_extent<'a>(
    source: &impl Source,
    extent: &Extent,
    buffer: &'a mut ReadBuffer,
    page: Option<TakenPage>,
) -> Read<'a> {
    let Some(mut page) = page else {
        let room = buffer.aligned(extent.blocks_len());
        let (within, is_direct) = read_into(source, extent, room);
        let bytes = room.get(within).unwrap_or_default();
        return Read {
            bytes: Brought::Borrowed(bytes),
            is_direct,
        };
    };
    let (within, is_direct) = read_into(source, extent, page.bytes_mut());
    Read {
        bytes: Brought::Shared(page.share().slice(within)),
        is_direct,
    }
}

/// Reads an extent into a room of at least its blocks: a long one past the cache, where that can be. Where in the room it is,
/// and whether it came past the cache.
fn read_into(source: &impl Source, extent: &Extent, room: &mut [u8]) -> (Range<usize>, bool) {
    let number = extent.start.lsn.segment();
    let direct = match extent.len_bytes >= DIRECT_MIN_BYTES {
        true => source.direct_file(number),
        false => None,
    };
    if let Some(file) = direct {
        match read_direct(&*file, extent, room) {
            Ok(within) => return (within, true),
            Err(error) => {
                let path = source.name(number);
                tracing::debug!(%error, path, "reads go through the cache of the system");
                source.leave_to_cache(number);
            }
        }
    }
    let offset = u64::from(extent.start.lsn.offset());
    let read = source
        .file(number)
        .and_then(|file| file.read_at(&mut room[..extent.len_bytes], offset));
    let len = read.unwrap_or_else(|error| {
        let path = source.name(number);
        tracing::debug!(%error, path, "a read of many records failed; each is read alone");
        0
    });
    (0..len, false)
}

/// Reads the blocks that an extent lies in to the start of the room; where in it the extent is, or as much of it as the
/// file has.
fn read_direct(file: &dyn DiskFile, extent: &Extent, room: &mut [u8]) -> io::Result<Range<usize>> {
    let offset = extent.start.lsn.offset() as usize;
    let skip = offset % DIRECT_ALIGN_BYTES;
    let end = skip + extent.len_bytes;
    let len = file.read_at(&mut room[..extent.blocks_len()], (offset - skip) as u64)?;
    Ok(skip.min(len)..end.min(len))
}

/// The bytes at `position`, fewer at the end of the file.
///
/// # Errors
/// `NotYetWritten`, `Freed` and `Io`.
pub(crate) fn read_record(source: &impl Source, position: Position) -> Result<Vec<u8>, ReadError> {
    let lsn = position.lsn;
    // What was moved to a cold segment was in the file before anybody heard of the place.
    if lsn >= source.end() && !lsn.segment().is_cold() {
        return Err(ReadError::NotYetWritten { lsn });
    }
    let error = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => ReadError::Freed { lsn },
        io::ErrorKind::InvalidData => ReadError::Damaged {
            path: source.name(lsn.segment()),
            offset: 0,
            detail: error.to_string(),
        },
        _ => ReadError::Io {
            path: source.name(lsn.segment()),
            source: error,
        },
    };
    let file = source.file(lsn.segment()).map_err(error)?;
    let mut record = vec![0; position.len_bytes as usize];
    let read = file
        .read_at(&mut record, u64::from(lsn.offset()))
        .map_err(error)?;
    record.truncate(read);
    Ok(record)
}

/// The record at `position` in the bytes that begin at `start`; `None` when they end before it does.
fn slice_of(bytes: &[u8], start: Position, position: Position) -> Option<&[u8]> {
    let from = (position.lsn.offset() - start.lsn.offset()) as usize;
    bytes.get(from..)?.get(..position.len_bytes as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::{SimClock, SimDisk};
    use crate::storage::Options;
    use crate::storage::shared::Shared;
    use crate::storage::testing::{LiveStore, numbered_payload};
    use crate::sync::lock;
    use std::sync::Mutex;

    /// Extents of records given as (segment, offset, length); the log ends in segment 9.
    #[track_caller]
    fn check(records: &[(u64, u32, u32)], expected: &[(usize, usize, usize)]) {
        let wanted: Vec<(Seq, Position)> = records
            .iter()
            .map(|&(segment, offset, len_bytes)| {
                let lsn = Lsn::new(SegmentId(segment), offset);
                (Seq(1), Position { lsn, len_bytes })
            })
            .collect();
        let order: Vec<usize> = (0..wanted.len()).collect();
        let found: Vec<_> = extents(Lsn::new(SegmentId(9), 0), &wanted, &order)
            .iter()
            .map(|extent| (extent.from, extent.to, extent.len_bytes))
            .collect();
        assert_eq!(found, expected);
    }

    /// The store's files, and what was said to be read for good.
    struct Watched<'a> {
        shared: &'a Shared,
        behind: Mutex<Vec<(SegmentId, Range<u32>)>>,
        /// Reads past the cache may be tried.
        is_direct: bool,
        /// Reads past the cache that were tried, and messages that were read alone.
        counts: Mutex<(u32, u32)>,
    }

    impl Source for Watched<'_> {
        fn end(&self) -> Lsn {
            self.shared.end()
        }
        fn file(&self, number: SegmentId) -> io::Result<Arc<dyn DiskFile>> {
            self.shared.file(number)
        }
        fn name(&self, number: SegmentId) -> String {
            self.shared.name(number)
        }
        fn read_alone(
            &self,
            queue: QueueId,
            seq: Seq,
            position: Position,
        ) -> Result<Bytes, ReadError> {
            lock(&self.counts).1 += 1;
            self.shared.read_alone(queue, seq, position)
        }
        fn direct_file(&self, number: SegmentId) -> Option<Arc<dyn DiskFile>> {
            let file = self.shared.direct_file(number).filter(|_| self.is_direct)?;
            lock(&self.counts).0 += 1;
            Some(file)
        }
        fn leave_to_cache(&self, number: SegmentId) {
            self.shared.leave_to_cache(number);
        }
        fn read_behind(&self, number: SegmentId, bytes: Range<u32>) {
            lock(&self.behind).push((number, bytes));
        }
    }

    /// Bytes that are read for good when `is_wanted` chooses among a hundred messages of 1 KiB.
    fn behind(queues: &[u64], is_wanted: impl Fn(usize) -> bool) -> Vec<u32> {
        let disk = Arc::new(SimDisk::new(1));
        let options = Options::default();
        let opened = LiveStore::open_by_hand(disk, Arc::new(SimClock::new(1)), options);
        let (store, _) = opened.expect("a fresh store opens");
        for queue in queues {
            store.create_queue(*queue);
        }
        for number in 0..100 {
            store.publish(queues, &numbered_payload(number, 1024), 0);
        }
        store.commit().expect("it is written");
        let image = store.images().remove(0);
        let entries = image.entries.iter().enumerate();
        let wanted: Vec<_> = entries
            .filter(|(at, _)| is_wanted(*at))
            .map(|(_, entry)| (entry.seq, entry.position))
            .collect();
        let watched = Watched {
            shared: &store.storage.inner.shared,
            behind: Mutex::default(),
            is_direct: false,
            counts: Mutex::default(),
        };
        let results = read_many(&watched, image.id, &wanted, &mut ReadBuffer::default());
        assert!(results.iter().all(Result::is_ok));
        let behind = watched.behind.into_inner().expect("nobody panicked");
        let first = wanted[0].1.lsn;
        for (number, bytes) in &behind {
            assert_eq!((*number, bytes.start), (first.segment(), first.offset()));
        }
        behind
            .into_iter()
            .map(|(_, bytes)| bytes.end - bytes.start)
            .collect()
    }

    #[test]
    fn what_one_queue_alone_has_and_is_read_in_one_piece_is_not_read_again() {
        let all = behind(&[1], |_| true);
        assert!(matches!(all[..], [len] if len >= 100 * 1024));
        assert_eq!(behind(&[1], |at| at % 5 != 0).len(), 1, "most of it");
        assert_eq!(behind(&[1], |at| at % 2 == 0).len(), 0, "half is left");
        assert_eq!(behind(&[1], |at| at < 20).len(), 0, "too little");
        assert_eq!(behind(&[1, 2], |_| true).len(), 0, "two queues have it");
    }

    /// Reads past the cache that were tried, and messages that were read alone, while the messages of the first of
    /// `queues` were read twice.
    fn direct_reads(queues: &[u64]) -> (u32, u32) {
        let disk = SimDisk::new(1);
        disk.set_bypass_supported(true);
        let options = Options {
            segment_size_bytes: 256 * 1024,
            ..Options::default()
        };
        let opened = LiveStore::open_by_hand(Arc::new(disk), Arc::new(SimClock::new(1)), options);
        let (store, _) = opened.expect("a fresh store opens");
        for queue in queues {
            store.create_queue(*queue);
        }
        for number in 0..1000 {
            store.publish(queues, &numbered_payload(number, 1024), 0);
            if number % 50 == 0 {
                store.commit().expect("it is written");
            }
        }
        store.commit().expect("it is written");
        let image = store.images().remove(0);
        let entries = image.entries.iter();
        let wanted: Vec<_> = entries.map(|entry| (entry.seq, entry.position)).collect();
        let watched = Watched {
            shared: &store.storage.inner.shared,
            behind: Mutex::default(),
            is_direct: true,
            counts: Mutex::default(),
        };
        let mut buffer = ReadBuffer::default();
        for _ in 0..2 {
            let results = read_many(&watched, image.id, &wanted, &mut buffer);
            assert!(results.iter().all(Result::is_ok));
        }
        watched.counts.into_inner().expect("nobody panicked")
    }

    #[test]
    fn what_one_queue_has_is_read_past_the_cache_and_what_others_have_only_once() {
        let (direct, alone) = direct_reads(&[1]);
        assert_eq!(alone, 0, "the bytes are those of the extent");
        let (shared, alone) = direct_reads(&[1, 2]);
        assert_eq!(alone, 0, "the bytes are those of the extent");
        assert!(direct >= 6 && direct == 2 * shared, "{direct} {shared}");
    }

    #[test]
    fn neighbours_share_a_read_and_others_do_not() {
        let gap = GAP_MAX_BYTES;
        check(&[], &[]);
        check(&[(1, 4096, 100), (1, 4200, 96)], &[(0, 2, 200)]);
        check(&[(1, 0, 96), (1, 96 + gap, 104)], &[(0, 2, 16584)]);
        check(&[(1, 0, 96), (1, 104 + gap, 8)], &[(0, 1, 96), (1, 2, 8)]);
        check(&[(1, 0, 96), (2, 96, 96)], &[(0, 1, 96), (1, 2, 96)]);
        // Twice the same place, as two names of one message.
        check(&[(1, 0, 96), (1, 0, 96), (1, 96, 8)], &[(0, 3, 104)]);
    }

    #[test]
    fn long_records_and_those_in_no_file_are_read_alone() {
        let long = GATHERED_MAX_BYTES + 8;
        let records = [(1, 0, 96), (1, 96, long), (1, 96 + long, 8), (9, 0, 8)];
        check(&records, &[(0, 1, 96), (2, 3, 8)]);
    }

    #[test]
    fn an_extent_is_no_longer_than_a_read() {
        let len = GATHERED_MAX_BYTES;
        let records: Vec<_> = (0..40).map(|n| (1, n * len, len)).collect();
        // Thirty-two would leave no room for the blocks' rest.
        let len = len as usize;
        check(&records, &[(0, 31, 31 * len), (31, 40, 9 * len)]);
    }
}
