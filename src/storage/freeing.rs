//! What a checkpoint leaves behind goes: segments that nothing needs any more, and older checkpoints.

use std::path::Path;

use super::checkpoint;
use super::engine::Storage;
use super::error::StorageError;
use super::file::io_error;
use super::format::{CHECKPOINT_DIR, LOG_DIR, segment_path};
use super::types::SegmentId;
use crate::sync::lock;

impl Storage {
    /// Removes segments that the checkpoint just published does not need, and older checkpoints. A segment is
    /// needed when replay reads it or an entry of the checkpoint lies in it; zero live refs now would not do,
    /// because a crash goes back to the checkpoint.
    pub(super) fn free(
        &self,
        begin: SegmentId,
        filling: Option<SegmentId>,
        written: &checkpoint::Written,
        generation: u64,
    ) -> Result<Vec<SegmentId>, StorageError> {
        let shared = &self.inner.shared;
        let existing = lock(&shared.segments).clone();
        let freed: Vec<SegmentId> = existing
            .range(..begin)
            .chain(existing.range(SegmentId::FIRST_COLD..))
            .filter(|segment| filling != Some(**segment) && !written.segments.contains_key(segment))
            .copied()
            .collect();
        shared.space.pool.begin_round(shared.space.is_short());
        let spares = self.retire(&freed)?;
        for leftover in checkpoint::leftovers(&*shared.disk, generation)? {
            self.remove(&leftover)?;
        }
        for dir in [LOG_DIR, CHECKPOINT_DIR] {
            let path = Path::new(dir);
            shared.disk.sync_dir(path).map_err(io_error(
                &*shared.disk,
                "sync the directory",
                path,
            ))?;
        }
        shared.space.pool.add(spares);
        shared
            .space
            .pool
            .trim()
            .map_err(io_error(&*shared.disk, "trim", Path::new(LOG_DIR)))?;
        if !freed.is_empty() {
            tracing::info!(count = freed.len(), %begin, generation, "freed segments");
        }
        Ok(freed)
    }

    /// Takes the files of freed segments out of the log; those that become spares once the directory is synced.
    fn retire(&self, freed: &[SegmentId]) -> Result<Vec<SegmentId>, StorageError> {
        let shared = &self.inner.shared;
        let mut spares = Vec::new();
        for segment in freed {
            // First from the list: a reader that finds other bytes in the file looks there.
            lock(&shared.segments).remove(segment);
            let retired = shared.space.pool.retire(*segment, spares.len());
            let is_spare = retired.map_err(|error| {
                lock(&shared.segments).insert(*segment);
                io_error(&*shared.disk, "free", &segment_path(*segment))(error)
            })?;
            spares.extend(is_spare.then_some(*segment));
            shared.files.forget(*segment);
        }
        Ok(spares)
    }

    fn remove(&self, path: &Path) -> Result<(), StorageError> {
        let disk = &*self.inner.shared.disk;
        match disk.remove(path) {
            // A file that came back after a crash of an earlier removal, or went already, is gone either way.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(io_error(disk, "remove", path)),
        }
    }
}
