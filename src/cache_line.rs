//! Fetching bytes into the processor's cache before they are copied.
//!
//! Bodies pass through memory faster than the caches can keep them: between a message's way in and its copies into the log and
//! into the output lie hundreds of others. The processor fetches ahead within a long stretch of memory, but a body of a kilobyte
//! is over before that begins, and so a copy waits for each line of it. Reading one byte of every line of several bodies beforehand
//! lets it wait for all of them side by side.

/// What processors fetch at a time, about. With longer lines some are looked at twice.
const CACHE_LINE_BYTES: usize = 64;
/// Things that are worth fetching together: as many bodies of this length as fit into the nearest cache.
pub const TOUCHED_TOGETHER: usize = 16;
/// The part of longer bytes that is looked at. Behind it the processor fetches ahead by itself.
const TOUCHED_MAX_BYTES: usize = 2048;

/// Looks at every line of the first part of `bytes`. What it returns means nothing and is to go through
/// [`std::hint::black_box`]: or the compiler drops it all.
#[inline]
#[must_use]
pub fn touch(bytes: &[u8]) -> u8 {
    let first_part = &bytes[..bytes.len().min(TOUCHED_MAX_BYTES)];
    let lines = first_part.chunks(CACHE_LINE_BYTES);
    lines.fold(0, |seen, line| seen ^ line[0])
}
