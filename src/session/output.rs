//! Bytes on their way to the socket.
//!
//! ```text
//!  chunks: [segment, full][large body][part of a segment][large body]   tail: segment, still growing
//!              ^ `taken`: the socket goes on here                           ^ frames are encoded here
//! ```
//! Small things are copied into segments; large parts of bodies are queued as shared [`Bytes`] and never copied.
//! Implements [`Buf`], so a vectored write takes several chunks at once.
//!
//! 1. What was encoded stays where it is: a segment that is full is followed by another one instead of growing.
//! 2. Whoever sends little has one small segment. Large ones follow when that is full; the last two are kept for what comes
//!    next, until [`Output::rest`].
//! 3. Whoever has much to send is lent segments larger than these ([`Output::lend`]), for as long as it takes the socket to
//!    take them: a write of few long parts costs the kernel, and wakes the client, less often than one of many. They are used
//!    again and again, so that their memory is there and nobody clears it.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

use crate::amqp::content::FrameSink;

/// The first segment.
const FIRST_BYTES: usize = 4 * 1024;
/// Those behind it: as much as is read at a time stays in the processor's cache.
const SEGMENT_BYTES: usize = 64 * 1024;
/// Room for a method, unless it has long texts.
const METHOD_ROOM_BYTES: usize = 1024;

/// Gives out empty buffers of one size, larger than the segments here.
pub type Lender = fn() -> BytesMut;

/// What is finished.
#[derive(Debug)]
enum Chunk {
    /// A segment or a part of one.
    Copied(BytesMut),
    /// Part of a body.
    Shared(Bytes),
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Copied(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Output {
    /// None is empty.
    chunks: VecDeque<Chunk>,
    /// Bytes in `chunks`.
    chunks_len: usize,
    tail: BytesMut,
    /// Bytes that have left of the first chunk, or of the tail when there is none: fewer than it has, if it has any.
    taken: usize,
    /// A segment for what comes next.
    spare: Option<BytesMut>,
    /// Bytes of each segment that was lent; 0 when there is none here.
    lent_bytes: usize,
    /// Where further ones come from, while there is much to send.
    lender: Option<Lender>,
    /// Those of which all has left.
    returned: Vec<BytesMut>,
    /// Bytes ever taken out, for heartbeats.
    written_total: u64,
}

impl Output {
    /// Bytes waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chunks_len + self.tail.len() - self.taken
    }
    /// True when nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Bytes the socket has taken so far.
    #[must_use]
    pub fn written_total(&self) -> u64 {
        self.written_total
    }

    /// True when there are buffers with nothing in them.
    pub(super) fn has_spare(&self) -> bool {
        let has_buffers = self.tail.capacity() + self.chunks.capacity() > 0 || self.spare.is_some();
        self.is_empty() && has_buffers
    }

    /// Gives them back.
    pub(super) fn rest(&mut self) {
        if self.has_spare() {
            self.tail = BytesMut::new();
            self.chunks = VecDeque::new();
            self.spare = None;
        }
    }

    /// Until [`end_lending`](Self::end_lending) new segments come from `lender`, the next one at once unless there is one here.
    pub fn lend(&mut self, lender: Lender) {
        self.lender = Some(lender);
        if self.lent_bytes > 0 {
            return;
        }
        let lent = lender();
        self.lent_bytes = lent.capacity();
        let before = std::mem::replace(&mut self.tail, lent);
        match before.is_empty() {
            true => self.recycle(Chunk::Copied(before)),
            false => self.push(Chunk::Copied(before)),
        }
    }

    /// What comes next needs no large segments.
    pub fn end_lending(&mut self) {
        self.lender = None;
    }

    /// One that was lent, as soon as all that was written there has left; to be asked for until there is none. The last one is
    /// the tail, whatever it is by then: lent, of our own, or cut off behind a part that somebody still holds.
    pub fn take_back(&mut self) -> Option<BytesMut> {
        if self.lent_bytes == 0 {
            return None;
        }
        if let Some(returned) = self.returned.pop() {
            return Some(returned);
        }
        if !self.is_empty() {
            return None;
        }
        self.lent_bytes = 0;
        self.returned = Vec::new();
        Some(std::mem::take(&mut self.tail))
    }

    fn push(&mut self, chunk: Chunk) {
        self.chunks_len += chunk.bytes().len();
        self.chunks.push_back(chunk);
    }

    /// Makes the tail one with room for so many bytes.
    #[cold]
    fn next_segment(&mut self, bytes: usize) {
        let segment_bytes = match self.is_empty() && self.tail.capacity() < FIRST_BYTES {
            true => FIRST_BYTES,
            false => SEGMENT_BYTES,
        };
        let next = match self.lender {
            Some(lender) if bytes <= self.lent_bytes => lender(),
            _ => {
                let spare = self.spare.take();
                let spare = spare.filter(|spare| spare.capacity() >= bytes.max(segment_bytes));
                spare.unwrap_or_else(|| BytesMut::with_capacity(bytes.max(segment_bytes)))
            }
        };
        let full = std::mem::replace(&mut self.tail, next);
        if !full.is_empty() {
            self.push(Chunk::Copied(full));
        }
    }

    /// Keeps a segment that has left. Larger ones, and what is left of those that were cut, are given back.
    fn recycle(&mut self, chunk: Chunk) {
        let Chunk::Copied(mut segment) = chunk else {
            return;
        };
        segment.clear();
        match segment.capacity() {
            SEGMENT_BYTES => self.spare = Some(segment),
            bytes if bytes == self.lent_bytes => self.returned.push(segment),
            _ => {}
        }
    }
}

impl FrameSink for Output {
    fn buffer(&mut self) -> &mut BytesMut {
        self.room(METHOD_ROOM_BYTES)
    }

    #[inline]
    fn room(&mut self, bytes: usize) -> &mut BytesMut {
        if self.tail.capacity() - self.tail.len() < bytes {
            self.next_segment(bytes);
        }
        &mut self.tail
    }

    fn chunk(&mut self, chunk: Bytes) {
        if !self.tail.is_empty() {
            let part = self.tail.split();
            self.push(Chunk::Copied(part));
        }
        self.push(Chunk::Shared(chunk));
    }
}

impl Buf for Output {
    fn remaining(&self) -> usize {
        self.len()
    }

    fn chunk(&self) -> &[u8] {
        let first = self.chunks.front().map_or(&self.tail[..], Chunk::bytes);
        first.get(self.taken..).unwrap_or_default()
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let parts = self.chunks.iter().map(Chunk::bytes);
        let tail = (!self.tail.is_empty()).then_some(&self.tail[..]);
        let mut skip = self.taken;
        let mut count = 0;
        for (slice, part) in slices.iter_mut().zip(parts.chain(tail)) {
            let part = part.get(std::mem::take(&mut skip)..);
            *slice = IoSlice::new(part.unwrap_or_default());
            count += 1;
        }
        count
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.len(), "advanced past the output");
        self.written_total += count as u64;
        self.taken += count;
        while let Some(front) = self.chunks.front() {
            let len = front.bytes().len();
            if self.taken < len {
                return;
            }
            self.taken -= len;
            self.chunks_len -= len;
            if let Some(front) = self.chunks.pop_front() {
                self.recycle(front);
            }
        }
        if self.taken == self.tail.len() {
            self.tail.clear();
            self.taken = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::limits::CHUNK_MIN_BYTES;
    use proptest::prelude::*;
    use std::cell::Cell;

    #[derive(Clone, Debug)]
    enum Step {
        /// A method.
        Method(usize),
        /// What asked for room before.
        Room(usize),
        Body(usize),
        /// So many per mille of what waits leave.
        Take(usize),
        /// Segments are lent, and later asked for.
        Lend,
        EndLending,
        TakeBack,
        Rest,
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..3000_usize).prop_map(Step::Method),
            (0..5000_usize).prop_map(Step::Room),
            (60_000..140_000_usize).prop_map(Step::Room),
            (CHUNK_MIN_BYTES..9000_usize).prop_map(Step::Body),
            (0..1001_usize).prop_map(Step::Take),
            Just(Step::Take(1000)),
            Just(Step::Lend),
            Just(Step::EndLending),
            Just(Step::TakeBack),
            Just(Step::Rest),
        ]
    }

    const LENT_BYTES: usize = 100_000;

    thread_local! {
        static LENT_COUNT: Cell<usize> = const { Cell::new(0) };
    }

    fn lender() -> BytesMut {
        LENT_COUNT.set(LENT_COUNT.get() + 1);
        BytesMut::with_capacity(LENT_BYTES)
    }

    /// Segments that were lent since this was called.
    fn take_lent_count() -> usize {
        LENT_COUNT.take()
    }

    /// What waits, as a vectored write sees it.
    fn seen(output: &Output) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); 64];
        let count = output.chunks_vectored(&mut slices);
        let seen: Vec<u8> = slices[..count]
            .iter()
            .flat_map(|slice| slice.to_vec())
            .collect();
        assert!(seen.starts_with(output.chunk()));
        assert!(output.is_empty() || !output.chunk().is_empty());
        seen
    }

    proptest! {
        #[test]
        fn bytes_leave_in_the_order_they_came_however_they_are_taken(
            steps in prop::collection::vec(any_step(), 0..60),
        ) {
            let mut output = Output::default();
            let (mut waiting, mut fill, mut written) = (VecDeque::new(), 0_u8, 0_u64);
            for step in steps {
                let bytes = |fill: &mut u8, len: usize| {
                    *fill = fill.wrapping_add(1);
                    vec![*fill; len]
                };
                match step {
                    Step::Method(len) => {
                        let bytes = bytes(&mut fill, len);
                        output.buffer().extend_from_slice(&bytes);
                        waiting.extend(bytes);
                    }
                    Step::Room(len) => {
                        let bytes = bytes(&mut fill, len);
                        let room = output.room(len);
                        let place = room.as_ptr();
                        room.extend_from_slice(&bytes);
                        prop_assert_eq!(room.as_ptr(), place, "nothing moves");
                        waiting.extend(bytes);
                    }
                    Step::Body(len) => {
                        let bytes = bytes(&mut fill, len);
                        FrameSink::chunk(&mut output, Bytes::from(bytes.clone()));
                        waiting.extend(bytes);
                    }
                    Step::Take(per_mille) => {
                        let count = output.len() * per_mille / 1000;
                        output.advance(count);
                        waiting.drain(..count);
                        written += count as u64;
                    }
                    Step::Lend => output.lend(lender),
                    Step::EndLending => output.end_lending(),
                    Step::TakeBack => {
                        while let Some(lent) = output.take_back() {
                            prop_assert!(lent.is_empty());
                        }
                        prop_assert!(output.returned.is_empty());
                        prop_assert!(output.lent_bytes == 0 || !output.is_empty());
                    }
                    Step::Rest => {
                        output.rest();
                        prop_assert!(!output.has_spare());
                    }
                }
                prop_assert_eq!(output.len(), waiting.len());
                prop_assert_eq!(output.written_total(), written);
                if output.chunks.len() < 60 {
                    prop_assert!(seen(&output).iter().eq(waiting.iter()));
                }
            }
        }
    }

    #[test]
    fn a_lent_segment_is_used_first_and_comes_back_when_it_is_empty() {
        let mut output = Output::default();
        for _ in 0..2 {
            take_lent_count();
            output.buffer().extend_from_slice(b"method");
            output.lend(lender);
            output.lend(lender);
            assert_eq!(take_lent_count(), 1);
            let room = output.room(LENT_BYTES);
            assert_eq!(room.capacity(), LENT_BYTES);
            room.extend_from_slice(&[7; LENT_BYTES]);
            assert!(output.take_back().is_none(), "it is not written");
            output.end_lending();
            output.room(10).extend_from_slice(&[8; 10]);
            assert_eq!(take_lent_count(), 0);
            output.advance(6 + LENT_BYTES - 1);
            assert!(output.take_back().is_none(), "a byte of it is not written");
            output.advance(1);
            let lent = output.take_back().expect("all of it is written");
            assert_eq!((lent.len(), lent.capacity()), (0, LENT_BYTES));
            assert!(output.take_back().is_none(), "more waits");
            output.advance(10);
            let last = output.take_back().expect("what follows goes with it");
            assert!(last.capacity() < LENT_BYTES && output.take_back().is_none());
        }
    }

    #[test]
    fn while_it_is_lent_segments_each_one_that_is_needed_is_lent() {
        let mut output = Output::default();
        take_lent_count();
        output.lend(lender);
        for _ in 0..5 {
            output.room(LENT_BYTES).extend_from_slice(&[7; LENT_BYTES]);
        }
        output.room(LENT_BYTES + 1).extend_from_slice(b"long");
        output.end_lending();
        assert_eq!(take_lent_count(), 5, "what is longer has its own");
        output.advance(4 * LENT_BYTES);
        let returned: Vec<_> = std::iter::from_fn(|| output.take_back()).collect();
        assert_eq!(returned.len(), 4, "one still waits");
        assert!(returned.iter().all(|one| one.capacity() == LENT_BYTES));
        output.advance(output.len());
        assert_eq!(
            output.take_back().map(|one| one.capacity()),
            Some(LENT_BYTES)
        );
    }

    #[test]
    fn a_busy_output_keeps_two_segments_and_an_idle_one_none() {
        let mut output = Output::default();
        for _ in 0..3 {
            for _ in 0..400 {
                output.room(1000).extend_from_slice(&[7; 1000]);
            }
            output.advance(output.len());
        }
        assert_eq!(output.tail.capacity(), SEGMENT_BYTES);
        let spare = output.spare.as_ref().map(BytesMut::capacity);
        assert_eq!(spare, Some(SEGMENT_BYTES));
        assert!(output.has_spare());
        output.rest();
        assert!(!output.has_spare() && output.tail.capacity() == 0);
        output.buffer().extend_from_slice(b"d");
        assert!(
            output.tail.capacity() < 2 * FIRST_BYTES,
            "little needs little"
        );
        output.rest();
        assert_eq!(Buf::chunk(&output), b"d", "what waits stays");
    }
}
