//! A histogram of durations with a bounded relative error and a fixed size.
//!
//! ```text
//!  value (ns)   0 .. 127        one bucket each
//!               128 .. 255      64 buckets of 2
//!               256 .. 511      64 buckets of 4         ... and so on: the first bits of a value choose its bucket
//! ```
//!
//! A bucket is at most 1/64 as wide as its values, so a percentile is at most 1.6 % too high. All of u64 fits into 3,776 buckets.

const SUB_BITS: u32 = 6;
const SUB_COUNT: usize = 1 << SUB_BITS;
const BUCKET_COUNT: usize = (64 - SUB_BITS as usize + 1) * SUB_COUNT;

/// Counts of durations in nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    count: u64,
    sum: u128,
    max: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self {
            counts: vec![0; BUCKET_COUNT],
            count: 0,
            sum: 0,
            max: 0,
        }
    }

    /// Counts `times` values of `value_ns`.
    pub(crate) fn record(&mut self, value_ns: u64, times: u64) {
        if let Some(bucket) = self.counts.get_mut(bucket_of(value_ns)) {
            *bucket += times;
        }
        self.count += times;
        self.sum += u128::from(value_ns) * u128::from(times);
        self.max = self.max.max(value_ns);
    }

    /// Adds what another thread has counted.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.count += other.count;
        self.sum += other.sum;
        self.max = self.max.max(other.max);
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn max_ns(&self) -> u64 {
        self.max
    }

    /// The average; 0 when nothing was counted.
    pub(crate) fn mean_ns(&self) -> u64 {
        let mean = self.sum.checked_div(u128::from(self.count));
        mean.and_then(|mean| u64::try_from(mean).ok()).unwrap_or(0)
    }

    /// The value that `per_mille` thousandths of all values do not exceed; 0 when nothing was counted.
    pub(crate) fn percentile_ns(&self, per_mille: u64) -> u64 {
        let rank = u128::from(self.count) * u128::from(per_mille);
        let rank = rank.div_ceil(1000).max(1);
        let mut seen = 0_u128;
        for (index, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count);
            if seen >= rank {
                return highest_in(index).min(self.max);
            }
        }
        self.max
    }
}

/// The bucket of a value.
fn bucket_of(value: u64) -> usize {
    // How many low bits the bucket ignores: none up to 127.
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(SUB_BITS + 1);
    let mantissa = usize::try_from(value >> shift).unwrap_or(usize::MAX);
    SUB_COUNT * shift as usize + mantissa
}

/// The highest value of a bucket.
fn highest_in(index: usize) -> u64 {
    let shift = (index / SUB_COUNT).saturating_sub(1);
    let mantissa = index - SUB_COUNT * shift;
    let next = (mantissa as u128 + 1) << shift;
    u64::try_from(next - 1).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_a_bucket_that_is_narrow() {
        let edges = (0..64).flat_map(|bit| {
            let power = 1_u64 << bit;
            [power - 1, power, power + 1, power + power / 3]
        });
        let mut before = 0;
        for value in edges.chain([u64::MAX - 1, u64::MAX]) {
            let bucket = bucket_of(value);
            assert!(bucket < BUCKET_COUNT, "bucket {bucket} of {value}");
            let highest = highest_in(bucket);
            assert!(highest >= value, "{value} above its bucket's {highest}");
            assert!(highest - value <= value / 64, "{value} far below {highest}");
            assert_eq!(
                bucket_of(highest),
                bucket,
                "the highest of {value}'s bucket"
            );
            before = before.max(bucket);
        }
        assert_eq!(
            before,
            BUCKET_COUNT - 1,
            "the last bucket holds the last value"
        );
    }

    #[track_caller]
    fn check(values: &[u64], per_mille: u64, expected: u64) {
        let mut left = Histogram::new();
        let mut right = Histogram::new();
        for (index, value) in values.iter().enumerate() {
            let half = if index % 2 == 0 {
                &mut left
            } else {
                &mut right
            };
            half.record(*value, 1);
        }
        left.merge(&right);
        assert_eq!(left.percentile_ns(per_mille), expected);
    }

    #[test]
    fn percentiles_are_of_all_threads() {
        let hundred: Vec<u64> = (1..=100).collect();
        check(&[], 500, 0);
        check(&hundred, 500, 50);
        check(&hundred, 990, 99);
        check(&hundred, 999, 100);
        check(&hundred, 1000, 100);
        // No percentile above the largest value, whatever its bucket.
        check(&[1_000_001], 500, 1_000_001);
    }
}
