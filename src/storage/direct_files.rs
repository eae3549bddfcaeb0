//! Segment files that are read past the cache of the system: which ones, and the handles for it.
//!
//! A handle that goes past the cache reads whole blocks only, so there are two of a file that is also read record by record.
//!
//! 1. Only what was written past the cache is read past it. Else pages that are still to be written would have to be, before
//!    the read, and those that are there already would be of no use.
//! 2. Few segments are read at a time: of a backlog those at its head. The handle that was not used for longest goes.
//! 3. A file in which several queues have messages is left to the cache, where the second one finds what the first one has
//!    read. That is known only after a read, and remembered as long as the segment exists.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use super::types::SegmentId;
use crate::disk::DiskFile;
use crate::sync::lock;

/// Handles: each is a file descriptor.
pub(super) const HANDLES_MAX: usize = 16;
/// Segments that are remembered as left to the cache, 8 bytes and a share of a node each.
const LEFT_TO_CACHE_MAX: usize = 16 * 1024;

/// See the module.
pub(super) struct DirectFiles {
    /// The log is written past the cache.
    is_wanted: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The one that was used last at the end.
    handles: Vec<(SegmentId, Arc<dyn DiskFile>)>,
    left_to_cache: BTreeSet<SegmentId>,
}

impl DirectFiles {
    /// None yet; none ever when they are not wanted.
    pub(super) fn new(is_wanted: bool) -> Self {
        Self {
            is_wanted,
            state: Mutex::default(),
        }
    }

    /// The handle of a segment, made with `open` if there is none; `None` when it is read through the cache.
    pub(super) fn get(
        &self,
        segment: SegmentId,
        open: impl FnOnce() -> io::Result<Arc<dyn DiskFile>>,
    ) -> Option<Arc<dyn DiskFile>> {
        if !self.is_wanted {
            return None;
        }
        let state = &mut *lock(&self.state);
        if state.left_to_cache.contains(&segment) {
            return None;
        }
        let known = state.handles.iter().position(|(of, _)| *of == segment);
        if let Some(at) = known {
            let last = state.handles.len() - 1;
            state.handles[at..=last].rotate_left(1);
            return Some(Arc::clone(&state.handles[last].1));
        }
        // An error is met again by whoever reads through the cache now, and told by him; it may have passed at the next read.
        let file = open().ok()?;
        if !file.bypass_cache() {
            state.leave_to_cache(segment);
            return None;
        }
        if state.handles.len() >= HANDLES_MAX {
            state.handles.remove(0);
        }
        state.handles.push((segment, Arc::clone(&file)));
        Some(file)
    }

    /// The segment is read through the cache from now on.
    pub(super) fn leave_to_cache(&self, segment: SegmentId) {
        lock(&self.state).leave_to_cache(segment);
    }

    /// There is no such segment any more.
    pub(super) fn forget(&self, segment: SegmentId) {
        let mut state = lock(&self.state);
        state.close(segment);
        state.left_to_cache.remove(&segment);
    }
}

impl State {
    fn close(&mut self, segment: SegmentId) {
        self.handles.retain(|(of, _)| *of != segment);
    }

    fn leave_to_cache(&mut self, segment: SegmentId) {
        self.close(segment);
        self.left_to_cache.insert(segment);
        if self.left_to_cache.len() > LEFT_TO_CACHE_MAX {
            // The oldest one will be freed first.
            self.left_to_cache.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::disk::sim::SimDisk;
    use crate::disk::{Disk, OpenMode};

    /// Direct files of a disk, and how often a file was opened.
    struct Rig {
        disk: SimDisk,
        files: DirectFiles,
        opened_count: usize,
    }

    impl Rig {
        fn new(is_wanted: bool) -> Self {
            let disk = SimDisk::new(1);
            disk.set_bypass_supported(true);
            let made = disk.open(Path::new("file"), OpenMode::CreateNew);
            drop(made.expect("an empty disk takes a file"));
            Self {
                disk,
                files: DirectFiles::new(is_wanted),
                opened_count: 0,
            }
        }

        /// Whether the segment is read past the cache.
        fn is_direct(&mut self, segment: usize) -> bool {
            let file = self.files.get(id(segment), || {
                self.opened_count += 1;
                self.disk.open(Path::new("file"), OpenMode::Read)
            });
            file.is_some()
        }
    }

    fn id(number: usize) -> SegmentId {
        SegmentId(number as u64)
    }

    #[test]
    fn the_handle_that_was_not_used_for_longest_goes() {
        let mut rig = Rig::new(true);
        for segment in 0..HANDLES_MAX {
            assert!(rig.is_direct(segment));
        }
        // The oldest segment is in use.
        assert!(rig.is_direct(0) && rig.is_direct(HANDLES_MAX));
        assert_eq!(rig.opened_count, HANDLES_MAX + 1);
        assert!(rig.is_direct(0));
        assert_eq!(rig.opened_count, HANDLES_MAX + 1, "it has its handle");
        assert!(rig.is_direct(1));
        assert_eq!(rig.opened_count, HANDLES_MAX + 2, "it had gone");
    }

    #[test]
    fn what_was_left_to_the_cache_stays_there_until_the_segment_is_gone() {
        let mut rig = Rig::new(true);
        assert!(rig.is_direct(7));
        rig.files.leave_to_cache(id(7));
        for segment in 8..8 + 2 * HANDLES_MAX {
            assert!(rig.is_direct(segment));
        }
        assert!(!rig.is_direct(7));
        rig.files.forget(id(7));
        assert!(rig.is_direct(7));
    }

    #[test]
    fn a_file_that_cannot_be_opened_now_may_be_later() {
        let mut rig = Rig::new(true);
        let refused = rig.files.get(id(3), || Err(io::ErrorKind::Other.into()));
        assert!(refused.is_none() && rig.is_direct(3));
    }

    #[test]
    fn nothing_is_read_past_the_cache_that_was_not_written_so() {
        let mut rig = Rig::new(false);
        assert!(!rig.is_direct(1));
        assert_eq!(rig.opened_count, 0);
    }

    #[test]
    fn a_system_that_cannot_is_asked_once() {
        let mut rig = Rig::new(true);
        rig.disk.set_bypass_supported(false);
        assert!(!rig.is_direct(1) && !rig.is_direct(1));
        assert_eq!(rig.opened_count, 1);
    }
}
