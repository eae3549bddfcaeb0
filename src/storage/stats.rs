//! Counters of the engine and the latency histogram of its syncs.

/// Sub-buckets per power of two: percentiles are exact within a quarter of their value.
const SUB_BUCKETS_BITS: u32 = 2;
/// Buckets of a histogram of `u64` values.
const BUCKET_COUNT: usize = 64 << SUB_BUCKETS_BITS;

/// A histogram of durations with logarithmic buckets.
#[derive(Clone, Debug)]
pub struct Histogram {
    /// Number of values per bucket.
    buckets: Box<[u64; BUCKET_COUNT]>,
    count: u64,
    max: u64,
    sum: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: Box::new([0; BUCKET_COUNT]),
            count: 0,
            max: 0,
            sum: 0,
        }
    }
}

impl Histogram {
    /// Counts one value.
    pub fn record(&mut self, value: u64) {
        if let Some(bucket) = self.buckets.get_mut(Self::bucket_of(value)) {
            *bucket += 1;
        }
        self.count += 1;
        self.max = self.max.max(value);
        self.sum = self.sum.saturating_add(value);
    }

    /// Number of values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Largest value; 0 when there is none.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.max
    }

    /// Sum of all values.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// The value that `permille` of 1000 values do not exceed, rounded up to its bucket's upper end;
    /// 0 when there is no value.
    #[must_use]
    pub fn percentile(&self, permille: u64) -> u64 {
        let wanted = (self.count * permille).div_ceil(1000).max(1);
        let mut seen = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            seen += bucket;
            if seen >= wanted {
                return Self::upper_end_of(index).min(self.max);
            }
        }
        self.max
    }

    fn bucket_of(value: u64) -> usize {
        let small = 1 << SUB_BUCKETS_BITS;
        if value < small {
            return usize::try_from(value).expect("a value below the sub-bucket count fits");
        }
        let power = value.ilog2();
        let sub = (value >> (power - SUB_BUCKETS_BITS)) - small;
        let group = u64::from(power - SUB_BUCKETS_BITS + 1);
        usize::try_from((group << SUB_BUCKETS_BITS) + sub).expect("there are 256 buckets")
    }

    fn upper_end_of(index: usize) -> u64 {
        let small = 1usize << SUB_BUCKETS_BITS;
        if index < small {
            return index as u64;
        }
        let group = index >> SUB_BUCKETS_BITS;
        let sub = (index & (small - 1)) as u64;
        let width = 1u64 << (group - 1);
        ((small as u64 + sub) * width).saturating_add(width - 1)
    }
}

/// What the engine has done since it was opened.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Calls of fdatasync on log segments.
    pub sync_count: u64,
    /// How long they took, nanoseconds.
    pub sync_ns: Histogram,
    /// Batches written (a commit writes one, seldom more).
    pub batch_count: u64,
    /// Commits: writes that carried something, whether or not a sync followed.
    pub commit_count: u64,
    /// Records written, of all kinds.
    pub record_count: u64,
    /// PUBLISH records written.
    pub message_count: u64,
    /// Bytes of batches, headers included.
    pub batch_bytes: u64,
    /// Bytes handed to the disk for the log: batches, the padding to whole blocks, and zeros ahead.
    pub written_bytes: u64,
    /// Bytes pushed and not yet confirmed.
    pub undurable_bytes: u64,
    /// Segment files that exist.
    pub segment_count: u64,
    /// Segments that the log went on to since start.
    pub entered_segment_count: u64,
    /// Those of them that were made ready ahead, so that entering them cost no sync.
    pub prepared_segment_count: u64,
    /// Those of them that are freed files used again.
    pub recycled_segment_count: u64,
    /// Record bytes of unsettled messages, as the newest checkpoint since start counts them; one in many queues counts as
    /// often, unless compaction counted its segment.
    pub live_bytes: u64,
    /// Bytes of segment files, cold ones among them.
    pub segment_bytes: u64,
    /// Segments of messages that were moved out of the log.
    pub cold_segment_count: u64,
    /// Bytes of records that were moved.
    pub compacted_bytes: u64,
    /// Segments they were moved out of.
    pub compacted_segment_count: u64,
    /// Bytes put aside for a full disk.
    pub reserve_bytes: u64,
    /// Freed files that are kept to be used again.
    pub spare_count: u64,
    /// Segments freed since start.
    pub freed_segment_count: u64,
    /// Checkpoints written since start.
    pub checkpoint_count: u64,
    /// Runs whose positions went to index files since start.
    pub filed_run_count: u64,
    /// Runs whose positions were looked up in the log, at start and later, because their block was lost or damaged.
    pub rebuilt_run_count: u64,
    /// When the newest checkpoint was begun, Unix milliseconds; 0 when there is none since start.
    pub last_checkpoint_at_ms: u64,
    /// How long it took, milliseconds.
    pub last_checkpoint_ms: u64,
    /// Its size.
    pub last_checkpoint_bytes: u64,
    /// Log bytes since it was begun: what a restart would replay.
    pub replay_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentile_is_within_a_quarter_above_the_value() {
        for value in [
            0,
            1,
            3,
            4,
            5,
            7,
            8,
            100,
            1_000,
            123_456,
            u64::MAX / 3,
            u64::MAX,
        ] {
            let mut histogram = Histogram::default();
            histogram.record(value);
            histogram.record(u64::MAX);
            let found = histogram.percentile(500);
            assert!(found >= value, "{found} < {value}");
            assert!(found - value <= value / 4, "{found} is far above {value}");
        }
    }

    #[test]
    fn percentiles_walk_the_distribution() {
        let mut histogram = Histogram::default();
        for value in 1..=1000 {
            histogram.record(value);
        }
        assert_eq!(histogram.count(), 1000);
        assert_eq!(histogram.max(), 1000);
        assert!((500..=640).contains(&histogram.percentile(500)));
        assert!((990..=1000).contains(&histogram.percentile(990)));
        assert_eq!(Histogram::default().percentile(500), 0);
    }
}
