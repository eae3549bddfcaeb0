//! The end of the engine: in order, by [`Storage::close`], or at once, when its last handle goes.
//!
//! ```text
//!   room            commit, checkpoint, end
//!   full, reserve   the same, on the reserve
//!   full, stalled   one more attempt to write, then the end: the log ends before what was not committed
//! ```
//! Whoever stops a broker waits for it, and a full disk may stay full. So nothing waits for room once the end has begun:
//! what could not be committed was promised to nobody, and the next start begins without it, as after a crash.

use super::CheckpointSource;
use super::engine::{Committing, Inner, Storage};
use super::error::StorageError;
use super::shared::Stop;
use crate::sync::lock;

impl Storage {
    /// Nothing waits for room on a full disk from now on, checkpoints that do so already among it. To be called before
    /// waiting for a thread that may be in one; the engine is to be closed then.
    pub fn stop_waiting_for_room(&self) {
        self.inner.shared.set_closing();
    }

    /// Commits everything, writes a last checkpoint, stops the commit thread and gives up the lock. Whatever is
    /// pushed while it runs may or may not be kept.
    ///
    /// # Errors
    /// Those of [`Storage::checkpoint`]; the log is complete up to the last commit all the same. `ClosedFull` when there
    /// was no room for that.
    pub fn close(&self, source: &dyn CheckpointSource) -> Result<(), StorageError> {
        self.stop_waiting_for_room();
        // First the log: a checkpoint that begins in a batch nobody waited for would have it replayed at the start.
        let end = lock(&self.inner.shared.append).end();
        let checkpointed = self.sync_to(end).and_then(|()| self.checkpoint(source));
        self.inner.end(Stop::Drain);
        checkpointed.map(|_| ())
    }
}

impl Inner {
    /// Ends the commit thread and releases the lock; a second call does nothing.
    fn end(&self, stop: Stop) {
        self.shared.request_stop(stop);
        self.shared.space.pool.stop();
        let committing = std::mem::replace(&mut *lock(&self.committing), Committing::Ended);
        let is_drained = stop == Stop::Drain;
        match committing {
            Committing::Threads(commit, pool) => {
                for thread in [commit, pool] {
                    // The last handle may be dropped by the listener, on the commit thread itself.
                    if thread.thread().id() != std::thread::current().id() {
                        // A panic in it has aborted the process already.
                        let _ = thread.join();
                    }
                }
            }
            Committing::ByHand(mut committer) if is_drained => {
                while let Ok(true) = Storage::step_by_hand(&mut committer, &self.shared) {}
            }
            Committing::ByHand(_) | Committing::Ended => return self.release(),
        }
        if is_drained {
            self.shared.space.pool.put_away();
        }
        self.release();
    }

    fn release(&self) {
        lock(&self.lock).take();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.end(Stop::Abandon);
    }
}
