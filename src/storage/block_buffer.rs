//! The records of a batch, in memory that lies as they will lie in the file.
//!
//! ```text
//!   memory   | block            | block        | block        | ..
//!                       [ records .......................... ]
//!   file     | batch n-1 [header][ records ................. ]| ..
//! ```
//! A direct write takes whole blocks of memory and makes whole blocks of the file of them. Records that begin as far behind
//! a block of memory as behind one of the file can be written from where they are: only their first and their last
//! block, which other bytes share, have to be put together.
//!
//! 1. The first byte lies at its place in a block, however much the room grows.
//! 2. A long batch lies in one large page, which the kernel pins and hands to the device as one piece: of small pages each
//!    costs by itself. A short one does not, so that a store that hardly writes stays small; nor do those of a log that the disk
//!    does not keep up with.

use super::format::BLOCK_BYTES;
use crate::disk::{LARGE_PAGE_BYTES, LargePage};

/// [`BLOCK_BYTES`] as a length in memory.
const BLOCK_LEN: usize = crate::disk::DIRECT_ALIGN_BYTES;
const _: () = assert!(BLOCK_LEN as u64 == BLOCK_BYTES);

/// Room from this length on is a large page, up to the length of one.
const LARGE_MIN_LEN: usize = 48 * 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct BlockBuffer {
    room: Room,
    /// What is not used at first, so that the place is right.
    start: usize,
    /// Where the next byte comes.
    end: usize,
    /// Where in a block the first byte belongs.
    place: usize,
    may_take_page: bool,
}

/// Memory, all of which may be written.
#[derive(Debug)]
enum Room {
    Small(Vec<u8>),
    Large(LargePage),
}

impl Room {
    /// Room for at least `needed` bytes, and rather for `wanted`.
    fn new(needed: usize, wanted: usize, may_be_page: bool) -> Self {
        if may_be_page
            && (LARGE_MIN_LEN..=LARGE_PAGE_BYTES).contains(&needed)
            && let Ok(page) = LargePage::new()
        {
            return Self::Large(page);
        }
        Self::Small(vec![0; wanted])
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Small(bytes) => bytes,
            Self::Large(page) => page.as_ref(),
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Small(bytes) => bytes,
            Self::Large(page) => page.as_mut(),
        }
    }
}

impl BlockBuffer {
    /// An empty buffer, whose first byte comes to `offset` in a file.
    pub(super) fn new(offset: u64) -> Self {
        Self {
            room: Room::Small(Vec::new()),
            start: 0,
            end: 0,
            place: place_of(offset),
            may_take_page: true,
        }
    }

    /// Takes no large page from now on.
    pub(super) fn leave_pages(&mut self) {
        self.may_take_page = false;
    }

    pub(super) fn may_take_page(&self) -> bool {
        self.may_take_page
    }

    #[cfg(test)]
    pub(super) fn is_in_page(&self) -> bool {
        matches!(self.room, Room::Large(_))
    }

    /// Empties the buffer for bytes that come to `offset`; it keeps its room.
    pub(super) fn reset(&mut self, offset: u64) {
        self.place = place_of(offset);
        self.empty();
    }

    /// Keeps (1) for the next byte.
    fn empty(&mut self) {
        let room = self.room.bytes();
        let at = room.as_ptr().addr() % BLOCK_LEN;
        self.start = match room.len() > BLOCK_LEN {
            true => (self.place + BLOCK_LEN - at) % BLOCK_LEN,
            false => room.len(),
        };
        self.end = self.start;
    }

    /// Appends bytes.
    #[inline]
    pub(super) fn append(&mut self, bytes: &[u8]) {
        if self.capacity() - self.end < bytes.len() {
            self.grow(bytes.len());
        }
        let end = self.end + bytes.len();
        self.room.bytes_mut()[self.end..end].copy_from_slice(bytes);
        self.end = end;
    }

    /// Makes room for `len` more bytes.
    #[cold]
    fn grow(&mut self, len: usize) {
        let room_for = |len: usize| len.next_multiple_of(BLOCK_LEN) + BLOCK_LEN;
        let needed = self.len() + len;
        let wanted = needed.max(2 * self.len());
        let room = Room::new(room_for(needed), room_for(wanted), self.may_take_page);
        let old = std::mem::replace(&mut self.room, room);
        let kept = self.start..self.end;
        self.empty();
        self.append(&old.bytes()[kept]);
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.room.bytes()[self.start..self.end]
    }

    pub(super) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(super) fn capacity(&self) -> usize {
        self.room.bytes().len()
    }
}

/// Where in a block an offset is.
fn place_of(offset: u64) -> usize {
    usize::try_from(offset % BLOCK_BYTES).expect("less than a block")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(buffer: &BlockBuffer, expected: &[u8], offset: u64) {
        assert_eq!(buffer.bytes(), expected);
        assert_eq!(buffer.len(), expected.len());
        if !expected.is_empty() {
            let at = buffer.bytes().as_ptr().addr();
            assert_eq!(at % BLOCK_LEN, place_of(offset));
        }
    }

    proptest! {
        #[test]
        fn bytes_stay_and_lie_where_they_belong(
            batches in prop::collection::vec(
                (0u64..20_000, prop::collection::vec(0usize..9000, 0..20)),
                1..6,
            ),
        ) {
            let mut buffer = BlockBuffer::new(17);
            for (offset, lens) in batches {
                buffer.reset(offset);
                let mut expected = Vec::new();
                for (index, len) in lens.into_iter().enumerate() {
                    let part = vec![u8::try_from(index).expect("few"); len];
                    buffer.append(&part);
                    expected.extend(part);
                    check(&buffer, &expected, offset);
                }
            }
        }
    }

    #[test]
    fn only_what_is_long_and_fits_lies_in_a_large_page() {
        let mut buffer = BlockBuffer::new(100);
        let mut expected = Vec::new();
        let part = [7; 1000];
        let mut append_upto = |len: usize| {
            while expected.len() < len {
                buffer.append(&part);
                expected.extend(part);
            }
            check(&buffer, &expected, 100);
            buffer.is_in_page()
        };
        assert!(!append_upto(1000));
        assert!(!append_upto(LARGE_MIN_LEN / 2));
        assert!(append_upto(2 * LARGE_MIN_LEN));
        assert!(append_upto(LARGE_PAGE_BYTES - 2 * BLOCK_LEN));
        assert!(!append_upto(LARGE_PAGE_BYTES));
        assert!(!append_upto(3 * LARGE_PAGE_BYTES));
    }
}
