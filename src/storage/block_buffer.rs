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
//! 1. Memory moves when it grows, and may end up elsewhere within a block. Who [reserves](BlockBuffer::reserve) before it
//!    appends keeps the place; who does not loses it until the next [reset](BlockBuffer::reset), and no byte with it.
//!    So whoever writes looks where the bytes are.

use super::format::BLOCK_BYTES;

/// [`BLOCK_BYTES`] as a length in memory.
const BLOCK_LEN: usize = crate::disk::DIRECT_ALIGN_BYTES;
const _: () = assert!(BLOCK_LEN as u64 == BLOCK_BYTES);

/// See the module.
#[derive(Debug)]
pub(super) struct BlockBuffer {
    /// What is not used at first, so that the place is right; then the bytes.
    room: Vec<u8>,
    skipped_len: usize,
    /// Where in a block the first byte belongs.
    place: usize,
}

impl BlockBuffer {
    /// An empty buffer, whose first byte comes to `offset` in a file.
    pub(super) fn new(offset: u64) -> Self {
        Self {
            room: Vec::new(),
            skipped_len: 0,
            place: place_of(offset),
        }
    }

    /// Empties the buffer for bytes that come to `offset`; it keeps its room.
    pub(super) fn reset(&mut self, offset: u64) {
        self.place = place_of(offset);
        self.skipped_len = 0;
        match self.room.capacity() > BLOCK_LEN {
            true => self.skip(),
            false => self.room = Vec::new(),
        }
    }

    /// Leaves out what lies before the place in a room that is longer than a block, and empties the rest.
    fn skip(&mut self) {
        let at = self.room.as_ptr().addr() % BLOCK_LEN;
        self.skipped_len = (self.place + BLOCK_LEN - at) % BLOCK_LEN;
        // What the last batch left there is as good as zeros.
        self.room.truncate(self.skipped_len);
        self.room.resize(self.skipped_len, 0);
    }

    /// Makes room for `len` more bytes at the right place.
    pub(super) fn reserve(&mut self, len: usize) {
        if self.room.capacity() - self.room.len() < len {
            self.grow(len);
        }
    }

    #[cold]
    fn grow(&mut self, len: usize) {
        let wanted = (self.len() + len).max(2 * self.len());
        let room = Vec::with_capacity(wanted.next_multiple_of(BLOCK_LEN) + BLOCK_LEN);
        let old = std::mem::replace(&mut self.room, room);
        let old_skipped_len = self.skipped_len;
        self.skip();
        self.room.extend_from_slice(&old[old_skipped_len..]);
    }

    /// The bytes, behind which others may be appended. Nothing may be taken away.
    pub(super) fn end(&mut self) -> &mut Vec<u8> {
        &mut self.room
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.room[self.skipped_len..]
    }

    pub(super) fn len(&self) -> usize {
        self.room.len() - self.skipped_len
    }

    pub(super) fn capacity(&self) -> usize {
        self.room.capacity()
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
                    buffer.reserve(len);
                    buffer.end().extend_from_slice(&part);
                    expected.extend(part);
                    check(&buffer, &expected, offset);
                }
            }
        }

        #[test]
        fn what_was_not_reserved_is_kept_and_the_next_batch_lies_right(len in 0usize..100_000) {
            let mut buffer = BlockBuffer::new(17);
            buffer.reserve(10);
            buffer.end().extend_from_slice(&[1; 10]);
            buffer.end().extend_from_slice(&vec![2; len]);
            buffer.reserve(5);
            buffer.end().extend_from_slice(&[3; 5]);
            prop_assert_eq!(buffer.bytes(), [vec![1; 10], vec![2; len], vec![3; 5]].concat());
            buffer.reset(4095);
            buffer.reserve(3);
            buffer.end().extend_from_slice(&[4; 3]);
            check(&buffer, &[4; 3], 4095);
        }
    }
}
