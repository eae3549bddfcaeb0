//! File descriptors: what the process may have, and how many of them are for sockets.
//!
//! A store without descriptors cannot make its next segment, and ends. So sockets never take the last ones: clients that
//! only connect, logged in or not, cannot end the broker. The limit that the system lets a process raise is raised.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are not for sockets: segments that are read and written, index files, spill files, the admin socket.
const RESERVED: u64 = 512;
/// Share of a small limit that is for sockets in any case.
const SMALL_SHARE: u64 = 4;

/// Raises the limit of this process as far as it may; the number of sockets that leaves.
pub(super) fn sockets_max() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let current = match setrlimit(Resource::Nofile, wanted) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::debug!(%error, "the limit of open files stays");
            limit.current
        }
    };
    share(current)
}

/// `None` for no limit.
fn share(descriptors: Option<u64>) -> usize {
    let for_sockets = descriptors.map_or(u64::MAX, |count| {
        count.saturating_sub(RESERVED).max(count / SMALL_SHARE)
    });
    usize::try_from(for_sockets).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_leave_descriptors_for_the_store() {
        for (descriptors, sockets) in [(400, 100), (1024, 512), (20_000, 19_488)] {
            assert_eq!(share(Some(descriptors)), sockets);
        }
        assert_eq!(share(None), usize::MAX);
    }
}
