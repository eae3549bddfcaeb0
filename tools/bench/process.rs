//! CPU time and memory of a process, from /proc (Linux).
//!
//! The CPU time of a process is told in ticks of 10 ms, in which a fast broker handles thousands of messages. That of a thread is
//! told in nanoseconds, but goes with the thread. So both are looked at: the threads are added up, unless the ticks say that some
//! of them ended meanwhile with time that counts.

use std::collections::BTreeMap;
use std::fs;

/// The unit of the times in /proc/PID/stat: `USER_HZ`, which is 100 on every architecture Linux has today.
const TICKS_PER_SECOND: f64 = 100.0;
/// User and system time are each cut to ticks, so that a difference may be this far from the truth.
const ERROR_TICKS: f64 = 2.0;

/// CPU time that a process had used at some moment, in user and kernel mode.
pub(crate) struct CpuTime {
    /// Of all threads there ever were.
    ticks: u64,
    /// Nanoseconds of each thread there is, by its id.
    threads_ns: BTreeMap<u64, u64>,
}

impl CpuTime {
    /// Seconds of CPU used between the two moments.
    #[expect(clippy::cast_precision_loss, reason = "reports round anyway")]
    pub(crate) fn secs_since(&self, start: &Self) -> f64 {
        let of_thread = |(id, ns): (&u64, &u64)| {
            // A thread that was not there has used all of it since.
            let before = start.threads_ns.get(id).copied().unwrap_or(0);
            ns.saturating_sub(before)
        };
        let threads_secs = self.threads_ns.iter().map(of_thread).sum::<u64>() as f64 / 1e9;
        let ticks_secs = self.ticks.saturating_sub(start.ticks) as f64 / TICKS_PER_SECOND;
        if ticks_secs - threads_secs > ERROR_TICKS / TICKS_PER_SECOND {
            ticks_secs
        } else {
            threads_secs
        }
    }
}

/// A process whose use of the machine is measured.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    directory: String,
}

impl Process {
    pub(crate) fn new(pid: u32) -> Self {
        Self {
            directory: format!("/proc/{pid}"),
        }
    }

    /// The generator itself.
    pub(crate) fn own() -> Self {
        Self::new(std::process::id())
    }

    /// CPU time used so far, by all threads; `None` when there is no such process.
    pub(crate) fn cpu_time(&self) -> Option<CpuTime> {
        let stat = fs::read_to_string(format!("{}/stat", self.directory)).ok()?;
        let tasks = fs::read_dir(format!("{}/task", self.directory)).ok()?;
        // A thread may end between the two looks.
        let thread = |task: fs::DirEntry| {
            let id = task.file_name().to_str()?.parse().ok()?;
            let schedstat = fs::read_to_string(task.path().join("schedstat")).ok()?;
            Some((id, schedstat.split_whitespace().next()?.parse().ok()?))
        };
        Some(CpuTime {
            ticks: ticks(&stat)?,
            threads_ns: tasks.flatten().filter_map(thread).collect(),
        })
    }

    /// Bytes of resident memory.
    pub(crate) fn rss_bytes(&self) -> Option<u64> {
        self.status_bytes("VmRSS:")
    }

    /// The most resident memory there was since its start.
    pub(crate) fn rss_peak_bytes(&self) -> Option<u64> {
        self.status_bytes("VmHWM:")
    }

    fn status_bytes(&self, name: &str) -> Option<u64> {
        let status = fs::read_to_string(format!("{}/status", self.directory)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kibibytes * 1024)
    }

    /// Open file descriptors.
    pub(crate) fn open_files_count(&self) -> Option<u64> {
        Some(fs::read_dir(format!("{}/fd", self.directory)).ok()?.count() as u64)
    }
}

fn ticks(stat: &str) -> Option<u64> {
    // The second field is the program's name in parentheses and may contain anything, so counting begins behind it.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11);
    let user: u64 = times.next()?.parse().ok()?;
    let system: u64 = times.next()?.parse().ok()?;
    user.checked_add(system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let stat = "1 (a) b) S 0 1 1 0 -1 4194560 1 2 3 4 150 50 7 8 20 0 1 0";
        assert_eq!(ticks(stat), Some(200));
        assert_eq!(ticks("1 (a) S 0"), None);
    }

    fn time(ticks: u64, threads_ms: &[(u64, u64)]) -> CpuTime {
        let threads = threads_ms.iter().map(|&(id, ms)| (id, ms * 1_000_000));
        CpuTime {
            ticks,
            threads_ns: threads.collect(),
        }
    }

    #[test]
    fn less_than_a_tick_counts() {
        let start = time(10, &[(1, 70), (2, 39)]);
        let end = time(10, &[(1, 71), (2, 41), (3, 1)]);
        assert_eq!(end.secs_since(&start), 0.004);
        // A thread that ended had next to nothing.
        let end = time(12, &[(1, 75)]);
        assert_eq!(end.secs_since(&start), 0.005);
    }

    #[test]
    fn threads_that_ended_are_counted_in_ticks() {
        let start = time(10, &[(1, 70), (2, 39)]);
        let end = time(60, &[(1, 71)]);
        assert_eq!(end.secs_since(&start), 0.5);
        // Nor does it need the times of threads, which a system may keep to itself.
        assert_eq!(time(60, &[]).secs_since(&time(10, &[])), 0.5);
    }

    #[test]
    fn time_of_this_process_grows_with_its_work() {
        let own = Process::own();
        let start = own.cpu_time().expect("this process is there");
        // Every look is some work.
        let mut looks = (0..1_000_000).filter_map(|_| own.cpu_time());
        assert!(looks.any(|time| time.secs_since(&start) > 0.0));
    }

    #[test]
    fn this_process_uses_memory() {
        assert!(
            Process::own()
                .rss_bytes()
                .is_some_and(|bytes| bytes > 100_000)
        );
        assert!(Process::new(0).cpu_time().is_none());
    }
}
