//! What the engine is told when it is opened.

/// When a confirm may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsyncPolicy {
    /// After an fdatasync, which starts as soon as the last one ended.
    Always,
    /// After an fdatasync, of which there is at most one per interval, unless somebody waits for room meanwhile.
    Interval {
        /// The interval in milliseconds.
        ms: u64,
    },
    /// After write(2): survives the death of the process, not of the machine.
    Never,
}

/// What to do about data that was proven durable and does not verify.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnCorruption {
    /// Refuse to open, and change nothing.
    #[default]
    Refuse,
    /// Open with all that can be verified, keep a copy of the rest in `quarantine/`, and report what is lost.
    Quarantine,
}

/// Settings of the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// When a confirm may be sent.
    pub fsync: FsyncPolicy,
    /// How long a commit is held open to gather more, microseconds; 0 is best unless syncs are slow.
    pub commit_delay_us: u64,
    /// Soft cap of a batch: it is closed once it is at least this long. Large bodies (64 KiB) may make it four times as long.
    pub commit_max_bytes: u64,
    /// Traffic that nobody waits for is synced within this many milliseconds.
    pub ack_fsync_ms: u64,
    /// A segment that would grow beyond this is closed. 16 KiB (tests) to 1 GiB.
    pub segment_size_bytes: u64,
    /// Bytes that may be pushed and not yet confirmed before publishers must wait: bounds memory, and
    /// what a crash can lose of unconfirmed work.
    pub undurable_max_bytes: u64,
    /// What to do about damage in the part of the log that recovery replays, and in what leads to it.
    pub on_corruption: OnCorruption,
    /// Unsettled messages from which on a queue's positions go to an index file. Which ones is the owner's choice, see
    /// [`unfiled_runs`](super::CheckpointSource::unfiled_runs); with 0 the engine gives every queue a file.
    pub index_min_messages: u64,
    /// Freed segments that are kept to be used again.
    pub spare_count_max: usize,
}

impl Options {
    /// Smallest segment.
    pub const SEGMENT_SIZE_MIN_BYTES: u64 = 16 * 1024;
    /// Largest segment: an LSN has 30 bits for the offset, and the end of a segment must still fit.
    pub const SEGMENT_SIZE_MAX_BYTES: u64 = 1 << 30;
}

impl Default for Options {
    fn default() -> Self {
        Self {
            fsync: FsyncPolicy::Always,
            commit_delay_us: 0,
            commit_max_bytes: 1 << 20,
            ack_fsync_ms: 50,
            segment_size_bytes: 64 << 20,
            undurable_max_bytes: 32 << 20,
            on_corruption: OnCorruption::Refuse,
            index_min_messages: 1024,
            spare_count_max: 4,
        }
    }
}
