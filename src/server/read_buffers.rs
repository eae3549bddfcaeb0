//! Buffers that are read into, and that the messages in them share.
//!
//! ```text
//!   take --> read --> [ m1 m2 m3 .. ] --> give --> pool -- m1, m2 and m3 have gone --> taken again
//!                       |   '--> queue, log, outbox
//!                       '--> queue ..
//! ```
//! A message of a busy publisher lives for some milliseconds: to leave it where it was read costs less than a copy and a block of
//! memory of its own. The pool keeps hold of each buffer, also while it is shared, so it knows how many there are.
//!
//! 1. One message keeps a whole buffer, though it says it takes no more than its own bytes. So there are few: [`COUNT_MAX`], and no
//!    more than a part of the memory limit. When all of them are held, by messages that wait, messages are copied out of other
//!    buffers, as short ones are.
//! 2. The buffer that was used last comes first: the caches know it best.
//! 3. What is free does not stay: when nothing was read for a while, it goes. Who holds the others does not give them back here, so
//!    somebody has to look.

use std::sync::Mutex;

use bytes::BytesMut;

use crate::sync::lock;

/// Bytes of a buffer: of these, and of those that belong to a thread (`connection::buffers`).
pub(super) const BUFFER_BYTES: usize = 256 * 1024;
/// Buffers at most, 16 MiB: more than what ten publishers have under way, each with a window of a thousand messages of 1 KiB.
const COUNT_MAX: usize = 64;
/// They take at most this part of the memory limit.
const LIMIT_SHARE: u64 = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct ReadBuffers {
    count_max: usize,
    pool: Mutex<Pool>,
}

#[derive(Debug, Default)]
struct Pool {
    /// Those that are not being read into, the last one used last.
    given: Vec<BytesMut>,
    /// How many are being read into.
    taken_count: usize,
    /// One was taken since the pool was last swept.
    is_used: bool,
}

impl ReadBuffers {
    /// None yet, for a process that may take `memory_limit_bytes`.
    pub(super) fn new(memory_limit_bytes: u64) -> Self {
        let share = usize::try_from(memory_limit_bytes / LIMIT_SHARE).unwrap_or(usize::MAX);
        Self {
            count_max: COUNT_MAX.min(share / BUFFER_BYTES),
            pool: Mutex::default(),
        }
    }

    /// An empty buffer, to be [given](Self::give) back; `None` when there are too many that somebody holds.
    pub(super) fn take(&self) -> Option<BytesMut> {
        let mut pool = lock(&self.pool);
        pool.is_used = true;
        let mut free = None;
        for (index, buffer) in pool.given.iter_mut().enumerate().rev() {
            if is_free(buffer) {
                free = Some(index);
                break;
            }
        }
        let buffer = match free {
            Some(index) => pool.given.remove(index),
            None if pool.given.len() + pool.taken_count < self.count_max => {
                BytesMut::with_capacity(BUFFER_BYTES)
            }
            None => return None,
        };
        pool.taken_count += 1;
        Some(buffer)
    }

    /// Takes a buffer back, whoever shares it.
    pub(super) fn give(&self, mut buffer: BytesMut) {
        buffer.clear();
        let mut pool = lock(&self.pool);
        pool.taken_count -= 1;
        pool.given.push(buffer);
    }

    /// Frees what nobody holds, if nothing was read since the last time; to be called now and then.
    pub(super) fn sweep(&self) {
        let mut pool = lock(&self.pool);
        if !std::mem::take(&mut pool.is_used) {
            pool.given.retain_mut(|buffer| !is_free(buffer));
            if pool.given.is_empty() {
                pool.given = Vec::new();
            }
        }
    }
}

/// True when nobody shares an empty buffer, all of which is there again then.
fn is_free(buffer: &mut BytesMut) -> bool {
    buffer.try_reclaim(BUFFER_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT_BYTES: u64 = 1 << 30;

    /// Reads something into a buffer and holds a part of it.
    fn hold(buffers: &ReadBuffers) -> Option<BytesMut> {
        let mut buffer = buffers.take()?;
        buffer.extend_from_slice(&[7; 1000]);
        let held = buffer.split_to(500);
        buffers.give(buffer);
        Some(held)
    }

    #[test]
    fn a_buffer_is_used_again_when_nobody_holds_any_of_it() {
        let buffers = ReadBuffers::new(LIMIT_BYTES);
        let first = hold(&buffers).expect("the first one");
        let second = hold(&buffers).expect("another one");
        let (first_at, second_at) = (first.as_ptr(), second.as_ptr());
        assert_ne!(first_at, second_at);
        drop(first);
        let again = hold(&buffers).expect("the first one");
        assert_eq!(again.as_ptr(), first_at);
        drop((again, second));
        let last = buffers.take().expect("one of the two");
        assert_eq!(last.as_ptr(), first_at, "the one used last");
        assert!(last.is_empty() && last.capacity() >= BUFFER_BYTES);
    }

    #[test]
    fn there_are_so_many_and_no_more() {
        let share = |limit_bytes: u64| {
            let buffers = ReadBuffers::new(limit_bytes);
            let held: Vec<_> = std::iter::from_fn(|| hold(&buffers)).collect();
            assert_eq!(lock(&buffers.pool).given.len(), held.len());
            drop(held);
            assert!(buffers.take().is_some() || buffers.count_max == 0);
            buffers.count_max
        };
        assert_eq!(share(u64::MAX), COUNT_MAX);
        assert_eq!(share(LIMIT_BYTES), COUNT_MAX);
        assert_eq!(share(256 << 20), COUNT_MAX / 4);
        assert_eq!(share(1 << 20), 0);
        // Those that are being read into count.
        let buffers = ReadBuffers::new(LIMIT_BYTES);
        let taken: Vec<_> = std::iter::from_fn(|| buffers.take()).collect();
        assert_eq!(taken.len(), COUNT_MAX);
    }

    #[test]
    fn what_is_free_goes_when_nothing_is_read() {
        let buffers = ReadBuffers::new(LIMIT_BYTES);
        let given_count = || lock(&buffers.pool).given.len();
        let held = hold(&buffers);
        let other = hold(&buffers);
        drop(other);
        buffers.sweep();
        assert_eq!(given_count(), 2, "they were used a moment ago");
        buffers.sweep();
        assert_eq!(given_count(), 1, "the one that is held");
        drop(held);
        buffers.sweep();
        assert_eq!(given_count(), 0);
    }
}
