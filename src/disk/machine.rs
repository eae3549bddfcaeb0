//! What the system says about memory, in its own files outside of the data directory.
//!
//! Control groups bound what a process may use long before the machine's memory ends (containers, systemd units). Both
//! versions are understood: in version 2 every group above this process may have a limit of its own, and the smallest
//! counts; in version 1 the `memory` hierarchy says it for the group itself. A file that is not there says nothing.

use std::fs;
use std::path::{Path, PathBuf};

/// Where control groups are mounted.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Bytes of memory that this process may use: the machine's, or less when a control group says so; `None` when the
/// system says neither.
#[must_use]
pub fn usable_memory_bytes() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = limit_files(&groups, Path::new(CGROUP_ROOT))
        .into_iter()
        .filter_map(|path| parse_limit(&fs::read_to_string(path).ok()?));
    let machine = fs::read_to_string("/proc/meminfo").ok();
    let machine = machine.and_then(|text| parse_kib(&text, "MemTotal:"));
    limits.chain(machine).min()
}

/// Bytes of memory that this process uses now; `None` when the system does not say.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    parse_kib(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// The files that may limit a process of these groups (`/proc/self/cgroup`).
fn limit_files(groups: &str, root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else {
            continue;
        };
        let group = group.trim_start_matches('/');
        if controllers.is_empty() {
            let above = Path::new(group).ancestors();
            files.extend(above.map(|group| root.join(group).join("memory.max")));
        } else if controllers.split(',').any(|name| name == "memory") {
            // In a container the group's own path may not be visible: then the root is the group.
            for group in [group, ""] {
                files.push(
                    root.join("memory")
                        .join(group)
                        .join("memory.limit_in_bytes"),
                );
            }
        }
    }
    files
}

/// A limit as control groups write it; `max` is none.
fn parse_limit(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The value in bytes of a line such as `VmRSS:   1234 kB`.
fn parse_kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    number.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(groups: &str, expected: &[&str]) {
        let files = limit_files(groups, Path::new("/c"));
        let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
        assert_eq!(files, expected);
    }

    #[test]
    fn limits_of_both_versions_of_control_groups_are_found() {
        check("", &[]);
        check("0::/\n", &["/c/memory.max"]);
        check(
            "0::/system.slice/broker.service\n",
            &[
                "/c/system.slice/broker.service/memory.max",
                "/c/system.slice/memory.max",
                "/c/memory.max",
            ],
        );
        check(
            "5:cpu,memory:/docker/abc\n4:cpuset:/x\n",
            &[
                "/c/memory/docker/abc/memory.limit_in_bytes",
                "/c/memory/memory.limit_in_bytes",
            ],
        );
        check("nonsense", &[]);
    }

    #[test]
    fn figures_are_read_as_the_system_writes_them() {
        assert_eq!(parse_limit("536870912\n"), Some(536_870_912));
        assert_eq!(parse_limit("max\n"), None);
        let status = "Name:\tx\nVmRSS:\t    2048 kB\n";
        assert_eq!(parse_kib(status, "VmRSS:"), Some(2048 * 1024));
        assert_eq!(parse_kib(status, "VmSwap:"), None);
        assert_eq!(parse_kib("VmRSS: 1 MB", "VmRSS:"), None);
    }

    #[test]
    fn this_process_uses_less_than_there_is() {
        let used = resident_bytes().expect("Linux says it");
        assert!(used < usable_memory_bytes().expect("Linux says it"));
    }
}
