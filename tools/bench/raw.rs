//! What the disk itself can do, measured in the directory and in the run whose figures it stands beside.
//!
//! | figure | how |
//! |---|---|
//! | sequential write | writes of 1 MiB into a new file and one fdatasync at the end |
//! | fdatasync, append | 4 KiB behind the end of a file, then fdatasync, again and again: the file grows each time |
//! | fdatasync, overwrite | the same into blocks that were written before |
//!
//! [`CommitLoop`] is the same with appends as large as the commits of a run: the rate it allows is the limit of every broker that
//! has a commit on the disk before it confirms what is in it.

use crate::clock::{Clock, secs};
use crate::error::BenchError;
use crate::histogram::Histogram;
use crate::report::rate;
use crate::table::median;
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes written for the rate of sequential writes.
const SEQUENTIAL_BYTES: u64 = 256 << 20;
/// Of one write.
const CHUNK_BYTES: usize = 1 << 20;
/// Of a write that is synced.
const BLOCK_BYTES: usize = 4096;
/// Syncs of each kind.
const SYNC_COUNT: u64 = 200;
/// Bytes that a commit loop writes at most.
const LOOP_MAX_BYTES: u64 = 2 << 30;
/// The file that is written and removed.
const FILE_NAME: &str = "strata-bench-raw";

/// The disk's own figures.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct RawDisk {
    pub(crate) sequential_write_bytes_per_sec: f64,
    pub(crate) fdatasync_append_p50_us: f64,
    pub(crate) fdatasync_overwrite_p50_us: f64,
}

impl RawDisk {
    /// Measures the disk of `directory`; leaves nothing there.
    pub(crate) fn measure(directory: &Path) -> Result<Self, BenchError> {
        let path = directory.join(FILE_NAME);
        let measured = Self::measure_in(&path);
        let removed = fs::remove_file(&path);
        let measured = measured.and_then(|raw| removed.map(|()| raw));
        measured.map_err(BenchError::io(format!("measuring {}", directory.display())))
    }

    fn measure_in(path: &Path) -> std::io::Result<Self> {
        let clock = Clock::start();
        let create = || {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).open(path)
        };
        let file = create()?;
        let chunk = vec![0x5a; CHUNK_BYTES];
        let begun_ns = clock.now_ns();
        for offset in (0..SEQUENTIAL_BYTES).step_by(CHUNK_BYTES) {
            file.write_all_at(&chunk, offset)?;
        }
        file.sync_data()?;
        let sequential_secs = secs(clock.now_ns() - begun_ns);
        let file = create()?;
        Ok(Self {
            sequential_write_bytes_per_sec: rate(SEQUENTIAL_BYTES, sequential_secs),
            fdatasync_append_p50_us: synced_writes_p50_us(&file, clock)?,
            // The same blocks once more.
            fdatasync_overwrite_p50_us: synced_writes_p50_us(&file, clock)?,
        })
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        format!(
            "raw disk: sequential write {:.0} MB/s, write and fdatasync of 4 KiB p50 {:.0} us appending, {:.0} us overwriting\n",
            self.sequential_write_bytes_per_sec / 1e6,
            self.fdatasync_append_p50_us,
            self.fdatasync_overwrite_p50_us
        )
    }
}

/// Appends of one size, each with an fdatasync, one after the other.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct CommitLoop {
    pub(crate) batch_bytes: u64,
    pub(crate) commits_per_sec: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

impl CommitLoop {
    /// Measures the disk of `directory` for about `secs`; leaves nothing there.
    pub(crate) fn measure(
        directory: &Path,
        batch_bytes: u64,
        secs: u64,
    ) -> Result<Self, BenchError> {
        let path = directory.join(FILE_NAME);
        let measured = Self::measure_in(&path, batch_bytes.clamp(1, LOOP_MAX_BYTES), secs);
        let removed = fs::remove_file(&path);
        let measured = measured.and_then(|measured| removed.map(|()| measured));
        measured.map_err(BenchError::io(format!("measuring {}", directory.display())))
    }

    fn measure_in(path: &Path, batch_bytes: u64, secs: u64) -> std::io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).open(path)?;
        let batch = vec![0x5a; usize::try_from(batch_bytes).unwrap_or(usize::MAX)];
        let clock = Clock::start();
        let end_ns = secs.saturating_mul(1_000_000_000);
        let mut taken = Histogram::new();
        let mut now_ns = clock.now_ns();
        while taken.count() == 0
            || (now_ns < end_ns && taken.count() * batch_bytes < LOOP_MAX_BYTES)
        {
            let begun_ns = now_ns;
            file.write_all_at(&batch, taken.count() * batch_bytes)?;
            file.sync_data()?;
            now_ns = clock.now_ns();
            taken.record(now_ns - begun_ns, 1);
        }
        Ok(Self {
            batch_bytes,
            commits_per_sec: rate(taken.count(), crate::clock::secs(now_ns)),
            p50_us: crate::clock::secs(taken.percentile_ns(500)) * 1e6,
            p99_us: crate::clock::secs(taken.percentile_ns(990)) * 1e6,
        })
    }
}

fn synced_writes_p50_us(file: &File, clock: Clock) -> std::io::Result<f64> {
    let block = [0x5a; BLOCK_BYTES];
    let mut taken_us = Vec::new();
    for index in 0..SYNC_COUNT {
        let begun_ns = clock.now_ns();
        file.write_all_at(&block, index * BLOCK_BYTES as u64)?;
        file.sync_data()?;
        taken_us.push(secs(clock.now_ns() - begun_ns) * 1e6);
    }
    Ok(median(taken_us))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_loop_commits_and_leaves_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let measured = CommitLoop::measure(directory.path(), 5000, 0).expect("it is writable");
        assert_eq!(measured.batch_bytes, 5000);
        assert!(measured.commits_per_sec > 0.0 && measured.p50_us <= measured.p99_us);
        let left = fs::read_dir(directory.path()).expect("it is there").count();
        assert_eq!(left, 0);
    }
}
