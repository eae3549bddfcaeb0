//! What the disk itself can do, measured in the directory and in the run whose figures it stands beside.
//!
//! | figure | how |
//! |---|---|
//! | sequential write | writes of 1 MiB into a new file and one fdatasync at the end |
//! | fdatasync, append | 4 KiB behind the end of a file, then fdatasync, again and again: the file grows each time |
//! | fdatasync, overwrite | the same into blocks that were written before |

use crate::clock::{Clock, secs};
use crate::error::BenchError;
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
