//! The allocator of all programs, and the one thing that is asked of it beside memory.
//!
//! Messages are made by network threads and freed by others. The system's allocator keeps what was freed for the thread
//! that made it: after a flood was drained a broker was a third larger than what it used, and stayed so. This one
//! shares it, and gives it back to the system a moment later, but only when somebody asks it for memory again: in a
//! process that has come to rest nobody does. So who watches the size of the process calls [`give_back`].
//!
//! Asked for memory of an alignment it takes a long way, through blocks that are a little larger than wanted, unless the
//! size is a power of two. Nearly all that is asked for needs no more than any block has: that goes the short way.

use std::alloc::{GlobalAlloc, Layout};

use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: Plain = Plain;

/// An alignment that every block has.
const PLAIN_ALIGN: usize = size_of::<*const u8>();

/// [`MiMalloc`], with a short way for what needs no alignment of its own.
struct Plain;

#[expect(
    unsafe_code,
    reason = "an allocator is unsafe; a message costs several hundred instructions less this way"
)]
// SAFETY: blocks come from mimalloc on both ways, and `mi_free` and `mi_realloc_aligned` take blocks of either. A block
// of `mi_malloc` and `mi_zalloc` is as large as asked for, or null, and aligned to a word at least: its size classes are
// multiples of a word, in pages that begin at a multiple of it. So it serves every layout of at most that alignment.
unsafe impl GlobalAlloc for Plain {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() <= PLAIN_ALIGN {
            // SAFETY: no precondition; see above for what it answers.
            return unsafe { libmimalloc_sys::mi_malloc(layout.size()) }.cast();
        }
        // SAFETY: the caller's promise is what that asks for.
        unsafe { MiMalloc.alloc(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.align() <= PLAIN_ALIGN {
            // SAFETY: as for `mi_malloc`.
            return unsafe { libmimalloc_sys::mi_zalloc(layout.size()) }.cast();
        }
        // SAFETY: the caller's promise is what that asks for.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block is one of mimalloc's, in use until now.
        unsafe { MiMalloc.dealloc(block, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the block is one of mimalloc's; it keeps the alignment.
        unsafe { MiMalloc.realloc(block, layout, new_size) }
    }
}

/// Gives memory that nobody uses back to the system. Takes some milliseconds when there is much.
#[expect(
    unsafe_code,
    reason = "a function of a C library; without it publishers stay blocked for memory that is free"
)]
pub fn give_back() {
    // SAFETY: `mi_collect` has no precondition: it may be called from any thread at any time, touches no memory that
    // is in use, and takes its flag by value.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block of each way, grown, is aligned, keeps what was written and, where that was asked for, begins as zeros.
    #[test]
    #[expect(unsafe_code, reason = "an allocator is called by unsafe functions")]
    fn blocks_of_every_size_and_alignment_are_aligned_and_keep_their_bytes() {
        for align in [1, 2, 4, 8, 16, 64, 4096] {
            for size in
                (1..80).chain([111, 112, 119, 1023, 1024, 1025, 1061, 9000, 70_000, 3 << 20])
            {
                let layout = Layout::from_size_align(size, align).expect("a layout");
                for is_zeroed in [false, true] {
                    // SAFETY: the layouts are not empty; each block is used within its size and freed once, with the
                    // layout that it has at that time.
                    unsafe {
                        let block = match is_zeroed {
                            true => Plain.alloc_zeroed(layout),
                            false => Plain.alloc(layout),
                        };
                        assert!(!block.is_null() && block.addr().is_multiple_of(align));
                        let bytes = std::slice::from_raw_parts_mut(block, size);
                        assert!(!is_zeroed || bytes.iter().all(|byte| *byte == 0));
                        bytes.fill(0xa5);
                        let block = Plain.realloc(block, layout, 2 * size);
                        assert!(!block.is_null() && block.addr().is_multiple_of(align));
                        let bytes = std::slice::from_raw_parts_mut(block, 2 * size);
                        assert!(bytes[..size].iter().all(|byte| *byte == 0xa5));
                        let grown = Layout::from_size_align(2 * size, align).expect("a layout");
                        Plain.dealloc(block, grown);
                    }
                }
            }
        }
    }
}
