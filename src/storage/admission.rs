//! Admission: who may push how much that is not durable yet.
//!
//! ```text
//!   commits' part of the reserve
//!   |<---- publishers, while nothing was refused ---->|<-- dead letters -->|<-- settles, META -->|
//!   0                                                1/2                  3/4                    1
//! ```
//! What a commit finds no room for on a full disk is written into what was put aside for it (see `reserve`), and so there may
//! never be more of it than fits there. Whoever publishes therefore asks first, with the bytes of his records, and pushes
//! only what he was admitted with; those who were refused wait until something became durable. Records that free space,
//! and those of the topology, are small and need not ask.
//!
//! 1. `admitted + undurable` counts a record from before it is pushed until it is durable, at times twice, never less
//!    than once.
//! 2. Publishers are refused while the disk is short, whatever is left; dead letters take of what is left down to the part
//!    of the settles.
//! 3. A record that is larger than all of its part, as on a store whose reserve is still small, is admitted alone, when
//!    the disk says that it has room for it. It claims that: smaller ones, which would always be faster, wait as long as it
//!    asks.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::reserve::Space;
use super::schedule::MS;
use super::types::Pusher;

/// Part of the reserve for commits that is not for publishers.
const PUBLISHERS_KEEP: u64 = 2;
/// Part of it that is not for dead letters.
const DEAD_LETTERS_KEEP: u64 = 4;
/// With no more than this pending, and than this part of the reserve for commits, a record is as good as alone.
const ALONE_MAX_BYTES: u64 = 64 << 10;
const ALONE_SHARE: u64 = 8;
/// How long a claim to be alone stands: whoever waits asks again with every commit, unless he is gone.
const CLAIM_NS: u64 = 500 * MS;

/// See the module.
pub(crate) struct Admission {
    /// Bounds memory, and what a crash can lose of unconfirmed work.
    undurable_max_bytes: u64,
    /// Admitted and not known to be pushed.
    admitted_bytes: AtomicU64,
    /// Record bytes pushed and not confirmed.
    undurable_bytes: AtomicU64,
    /// Somebody was refused, or told that there is no room, and waits to be told otherwise.
    has_waiting: AtomicBool,
    /// The record that wants to be alone, and until when (`monotonic_ns`) it counts; 0 for none.
    claimed_bytes: AtomicU64,
    claimed_until_ns: AtomicU64,
    /// Of the reserve, for commits: when it is whole, and now.
    reserve_whole_bytes: AtomicU64,
    reserve_left_bytes: AtomicU64,
}

impl Admission {
    pub(crate) fn new(undurable_max_bytes: u64) -> Self {
        Self {
            undurable_max_bytes,
            admitted_bytes: AtomicU64::new(0),
            undurable_bytes: AtomicU64::new(0),
            has_waiting: AtomicBool::new(false),
            claimed_bytes: AtomicU64::new(0),
            claimed_until_ns: AtomicU64::new(0),
            reserve_whole_bytes: AtomicU64::new(0),
            reserve_left_bytes: AtomicU64::new(0),
        }
    }

    /// What is put aside for commits: when it is whole, and now.
    pub(crate) fn set_reserve(&self, whole_bytes: u64, left_bytes: u64) {
        self.reserve_whole_bytes
            .store(whole_bytes, Ordering::SeqCst);
        self.reserve_left_bytes.store(left_bytes, Ordering::SeqCst);
    }

    /// Record bytes pushed and not confirmed.
    pub(crate) fn undurable_bytes(&self) -> u64 {
        self.undurable_bytes.load(Ordering::SeqCst)
    }

    /// All that has to find room, see (1).
    pub(crate) fn pending_bytes(&self) -> u64 {
        self.admitted_bytes.load(Ordering::SeqCst) + self.undurable_bytes()
    }

    /// Records were pushed. Under the lock of the append side, so that they are counted before they can be durable.
    pub(crate) fn pushed(&self, bytes: u64) {
        self.undurable_bytes.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Records are durable.
    pub(crate) fn confirmed(&self, bytes: u64) {
        self.undurable_bytes.fetch_sub(bytes, Ordering::SeqCst);
    }

    /// So much is un-durable that nothing more should be read.
    pub(crate) fn is_full(&self) -> bool {
        self.undurable_bytes() >= self.undurable_max_bytes
    }

    /// The opposite. A caller who is told `false` is among those who wait.
    pub(crate) fn has_room(&self) -> bool {
        if !self.is_full() {
            return true;
        }
        // First the note, then the second look: a commit in between sees the note, or this look sees its room.
        self.has_waiting.store(true, Ordering::SeqCst);
        !self.is_full()
    }

    /// True once after somebody was refused, when there may be room again.
    pub(crate) fn take_waiting(&self) -> bool {
        self.has_waiting.load(Ordering::SeqCst)
            && !self.is_full()
            && self.has_waiting.swap(false, Ordering::SeqCst)
    }

    /// Somebody was refused and could go on if less were pending.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.has_waiting.load(Ordering::SeqCst)
    }

    /// Whether `pusher` may push records of `bytes`; if so, [`Admission::release`] must follow when they are pushed. If not,
    /// the caller is among those who wait.
    pub(crate) fn admit(&self, bytes: u64, pusher: Pusher, space: &Space, now_ns: u64) -> bool {
        self.admitted_bytes.fetch_add(bytes, Ordering::SeqCst);
        let is_first = self.is_first(bytes, now_ns);
        if is_first && self.pending_bytes() <= self.limit_bytes(pusher, space) {
            return true;
        }
        self.has_waiting.store(true, Ordering::SeqCst);
        let limit_bytes = self.limit_bytes(pusher, space);
        if is_first
            && (self.pending_bytes() <= limit_bytes
                || (bytes > limit_bytes && self.fits_alone(bytes, space, now_ns)))
        {
            return true;
        }
        self.admitted_bytes.fetch_sub(bytes, Ordering::SeqCst);
        space.want_large_reserve();
        false
    }

    /// False while a larger record waits to be alone.
    fn is_first(&self, bytes: u64, now_ns: u64) -> bool {
        bytes >= self.claimed_bytes.load(Ordering::SeqCst)
            || now_ns >= self.claimed_until_ns.load(Ordering::SeqCst)
    }

    /// What was admitted is pushed, or will not be.
    pub(crate) fn release(&self, bytes: u64) {
        self.admitted_bytes.fetch_sub(bytes, Ordering::SeqCst);
    }

    /// How much may be pending, with what `pusher` asks for.
    fn limit_bytes(&self, pusher: Pusher, space: &Space) -> u64 {
        let whole_bytes = self.reserve_whole_bytes.load(Ordering::SeqCst);
        let left_bytes = self.reserve_left_bytes.load(Ordering::SeqCst);
        match pusher {
            Pusher::Publisher if space.is_short() => 0,
            Pusher::Publisher => left_bytes
                .saturating_sub(whole_bytes / PUBLISHERS_KEEP)
                .min(self.undurable_max_bytes),
            Pusher::DeadLetters => left_bytes.saturating_sub(whole_bytes / DEAD_LETTERS_KEEP),
        }
    }

    /// See (3). Without room on the disk it waits, and nobody for it.
    fn fits_alone(&self, bytes: u64, space: &Space, now_ns: u64) -> bool {
        if space.is_short() || !space.has_free(bytes.saturating_mul(2)) {
            return false;
        }
        space.want_large_reserve();
        let others_bytes = self.pending_bytes().saturating_sub(bytes);
        let whole_bytes = self.reserve_whole_bytes.load(Ordering::SeqCst);
        let is_alone = others_bytes <= ALONE_MAX_BYTES.min(whole_bytes / ALONE_SHARE);
        let until_ns = if is_alone {
            0
        } else {
            now_ns.saturating_add(CLAIM_NS)
        };
        self.claimed_bytes.store(bytes, Ordering::SeqCst);
        self.claimed_until_ns.store(until_ns, Ordering::SeqCst);
        is_alone
    }
}
