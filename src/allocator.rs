//! The allocator of all programs, and the one thing that is asked of it beside memory.
//!
//! Messages are made by network threads and freed by others. The system's allocator keeps what was freed for the thread
//! that made it: after a flood was drained a broker was a third larger than what it used, and stayed so. This one
//! shares it, and gives it back to the system a moment later, but only when somebody asks it for memory again: in a
//! process that has come to rest nobody does. So who watches the size of the process calls [`give_back`].

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
