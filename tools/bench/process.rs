//! CPU time and memory of a process, from /proc (Linux).

use std::fs;

/// The unit of the times in /proc/PID/stat: `USER_HZ`, which is 100 on every architecture Linux has today.
const TICKS_PER_SECOND: f64 = 100.0;

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

    /// Seconds of CPU used so far, by all threads, in user and kernel mode; `None` when there is no such process.
    pub(crate) fn cpu_secs(&self) -> Option<f64> {
        let stat = fs::read_to_string(format!("{}/stat", self.directory)).ok()?;
        cpu_secs(&stat)
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

fn cpu_secs(stat: &str) -> Option<f64> {
    // The second field is the program's name in parentheses and may contain anything, so counting begins behind it.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11);
    let user: u32 = times.next()?.parse().ok()?;
    let system: u32 = times.next()?.parse().ok()?;
    Some((f64::from(user) + f64::from(system)) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let stat = "1 (a) b) S 0 1 1 0 -1 4194560 1 2 3 4 150 50 7 8 20 0 1 0";
        assert_eq!(cpu_secs(stat), Some(2.0));
        assert_eq!(cpu_secs("1 (a) S 0"), None);
    }

    #[test]
    fn this_process_uses_memory() {
        assert!(
            Process::own()
                .rss_bytes()
                .is_some_and(|bytes| bytes > 100_000)
        );
        assert!(Process::own().cpu_secs().is_some());
        assert!(Process::new(0).cpu_secs().is_none());
    }
}
