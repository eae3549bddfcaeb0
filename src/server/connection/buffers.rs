//! Large buffers that the connections of a network thread use in turn.
//!
//! A buffer is taken, filled, emptied and given back, mostly within one call: so a thread has a few of them however many
//! connections are busy on it, and what is written into them is still in the processor's cache. A buffer that is to wait
//! for a slow client is kept by its connection meanwhile, and what is in it counts as its output. A thread keeps at most
//! [`SPARE_MAX`] of them, 1.5 MiB, until a connection that was busy rests on it: memory that is freed between two writes comes
//! back with pages to be cleared.

use std::cell::RefCell;

use bytes::BytesMut;

pub(super) use crate::server::read_buffers::BUFFER_BYTES;
use crate::session::{OUTPUT_HIGH_BYTES, Output};

/// Buffers that a thread keeps: one to read, as many as the output of a connection may fill, and one that it has begun beyond.
const SPARE_MAX: usize = OUTPUT_HIGH_BYTES.div_ceil(BUFFER_BYTES) + 2;

thread_local! {
    /// Empty, and each of [`BUFFER_BYTES`].
    static SPARE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer.
pub(super) fn take() -> BytesMut {
    let spare = SPARE.with_borrow_mut(Vec::pop);
    spare.unwrap_or_else(|| BytesMut::with_capacity(BUFFER_BYTES))
}

/// Takes a buffer back. One that shares its memory with somebody is left to them.
pub(super) fn give(mut buffer: BytesMut) {
    buffer.clear();
    if buffer.try_reclaim(BUFFER_BYTES) {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < SPARE_MAX {
                spare.push(buffer);
            }
        });
    }
}

/// Takes back those that `output` was lent and has emptied.
pub(super) fn take_back(output: &mut Output) {
    while let Some(buffer) = output.take_back() {
        give(buffer);
    }
}

/// True when the thread keeps any.
pub(super) fn is_any() -> bool {
    SPARE.with_borrow(|spare| !spare.is_empty())
}

/// Frees what the thread keeps: somebody who was busy is not any more.
pub(super) fn rest() {
    SPARE.with_borrow_mut(|spare| *spare = Vec::new());
}
