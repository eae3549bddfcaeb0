//! Bytes on their way to the socket.
//!
//! ```text
//!  chunks: [frozen][large body][frozen][large body]   tail: BytesMut, still growing
//!          ^ the socket takes from here                     ^ frames are encoded here
//! ```
//! Small things are copied into the tail; large parts of bodies are queued as shared [`Bytes`] and never
//! copied. Implements [`Buf`], so a vectored write takes several chunks at once.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

use crate::amqp::content::FrameSink;

/// What the tail is given when it has to grow from nothing.
const TAIL_BYTES: usize = 8 * 1024;

/// See the module.
#[derive(Debug, Default)]
pub struct Output {
    chunks: VecDeque<Bytes>,
    /// Bytes in `chunks`.
    chunks_len: usize,
    tail: BytesMut,
    /// Bytes ever taken out, for heartbeats.
    written_total: u64,
}

impl Output {
    /// Bytes waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chunks_len + self.tail.len()
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
        self.is_empty() && self.tail.capacity() + self.chunks.capacity() > 0
    }

    /// Gives them back.
    pub(super) fn rest(&mut self) {
        if self.has_spare() {
            self.tail = BytesMut::new();
            self.chunks = VecDeque::new();
        }
    }

    fn freeze_tail(&mut self) {
        if !self.tail.is_empty() {
            let frozen = self.tail.split().freeze();
            self.chunks_len += frozen.len();
            self.chunks.push_back(frozen);
        }
    }
}

impl FrameSink for Output {
    fn buffer(&mut self) -> &mut BytesMut {
        if self.tail.capacity() == 0 {
            self.tail.reserve(TAIL_BYTES);
        }
        &mut self.tail
    }

    fn chunk(&mut self, chunk: Bytes) {
        self.freeze_tail();
        self.chunks_len += chunk.len();
        self.chunks.push_back(chunk);
    }
}

impl Buf for Output {
    fn remaining(&self) -> usize {
        self.len()
    }

    fn chunk(&self) -> &[u8] {
        self.chunks.front().map_or(&self.tail[..], |chunk| chunk)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let parts = self.chunks.iter().map(|chunk| &chunk[..]);
        let tail = (!self.tail.is_empty()).then_some(&self.tail[..]);
        let mut count = 0;
        for (slice, part) in slices.iter_mut().zip(parts.chain(tail)) {
            *slice = IoSlice::new(part);
            count += 1;
        }
        count
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.len(), "advanced past the output");
        self.written_total += count as u64;
        while count > 0 {
            let Some(front) = self.chunks.front_mut() else {
                self.tail.advance(count);
                return;
            };
            let taken = count.min(front.len());
            front.advance(taken);
            if front.is_empty() {
                self.chunks.pop_front();
            }
            self.chunks_len -= taken;
            count -= taken;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::limits::CHUNK_MIN_BYTES;

    #[test]
    fn bytes_leave_in_the_order_they_came_however_they_are_taken() {
        let large = Bytes::from(vec![7; CHUNK_MIN_BYTES]);
        for step in [1, 3, 100, 5000, 100_000] {
            let mut output = Output::default();
            output.buffer().extend_from_slice(b"head");
            FrameSink::chunk(&mut output, large.clone());
            output.buffer().extend_from_slice(b"small");
            FrameSink::chunk(&mut output, large.clone());
            output.buffer().extend_from_slice(b"end");
            let expected = [b"head", &large[..], b"small", &large[..], b"end"].concat();
            assert_eq!(output.len(), expected.len());
            let mut taken = Vec::new();
            while output.has_remaining() {
                let mut slices = [IoSlice::new(&[]); 3];
                let filled = output.chunks_vectored(&mut slices);
                let gathered: Vec<u8> = slices[..filled].iter().flat_map(|s| s.to_vec()).collect();
                let count = step.min(gathered.len());
                taken.extend_from_slice(&gathered[..count]);
                output.advance(count);
            }
            assert_eq!(taken, expected);
            assert_eq!(output.written_total(), expected.len() as u64);
        }
    }

    #[test]
    fn buffers_are_given_back_when_nothing_waits() {
        let mut output = Output::default();
        output.buffer().extend_from_slice(b"abc");
        output.rest();
        assert_eq!(output.chunk(), b"abc");
        output.advance(3);
        assert!(output.has_spare());
        output.rest();
        assert!(!output.has_spare());
        output.buffer().extend_from_slice(b"d");
        assert_eq!(output.chunk(), b"d");
        assert_eq!(output.written_total(), 3);
    }
}
