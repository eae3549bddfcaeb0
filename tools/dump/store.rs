//! A data directory being looked at, and patience with a broker that works on it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use stratamq::storage::superblock::{self, Copy, Superblock};

use crate::error::DumpError;
use crate::view::View;

/// Looks at a directory that changes under our hands before we give up: a checkpoint takes at least some
/// milliseconds, so a hundred in a row that each overtake us are not a busy broker.
const LOOKS_MAX: u32 = 100;
/// Looks that must agree before an error counts on a running broker although its superblock stays the same: both
/// copies may have been caught in the middle of being rewritten.
const EQUAL_LOOKS_MAX: u32 = 3;
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// See the module.
pub(crate) struct Store {
    /// Its files.
    pub(crate) view: View,
    root: PathBuf,
}

impl Store {
    /// Looks at the data directory `root`, which must exist.
    pub(crate) fn open(root: &Path) -> Result<Self, DumpError> {
        let view = View::open(root.to_owned()).map_err(DumpError::Directory)?;
        Ok(Self {
            view,
            root: root.to_owned(),
        })
    }

    /// The directory, for messages.
    pub(crate) fn name(&self) -> String {
        self.root.display().to_string()
    }

    /// Both copies of the superblock, and the one that counts.
    pub(crate) fn superblock(&self) -> Result<([Copy; 2], Superblock), DumpError> {
        let copies = superblock::read_copies(&self.view)?;
        match superblock::choose(&self.view, &copies)? {
            Some(superblock) => Ok((copies, superblock)),
            None => Err(DumpError::NotADataDirectory { path: self.name() }),
        }
    }

    /// Does what `look` does with the superblock that counts. When it fails because a broker published a newer
    /// checkpoint meanwhile, and removed what the older one needed, it is done again with the newer superblock.
    ///
    /// ```text
    /// t1 we read superblock 7, t2 the broker publishes 8 and frees a segment, t3 we miss the segment
    /// t4 we read superblock 8, which needs no such segment
    /// ```
    pub(crate) fn look<T>(
        &self,
        mut look: impl FnMut(&[Copy; 2], Superblock) -> Result<T, DumpError>,
    ) -> Result<T, DumpError> {
        let mut equal_looks = 0;
        let mut last_sequence = None;
        for _ in 1..LOOKS_MAX {
            let superblock = self.superblock();
            let sequence = superblock
                .as_ref()
                .ok()
                .map(|(_, superblock)| superblock.sequence);
            let error = match superblock.and_then(|(copies, superblock)| look(&copies, superblock))
            {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            equal_looks = if sequence == last_sequence {
                equal_looks + 1
            } else {
                1
            };
            last_sequence = sequence;
            if !self.is_worth_another_look(&error, sequence, equal_looks) {
                return Err(error);
            }
            self.view.forget();
            if self.view.is_running() {
                std::thread::sleep(PAUSE);
            }
        }
        let (copies, superblock) = self.superblock()?;
        look(&copies, superblock)
    }

    fn is_worth_another_look(
        &self,
        error: &DumpError,
        sequence: Option<u64>,
        equal_looks: u32,
    ) -> bool {
        let may_be_stale = error.exit_code() == 3 || error.is_missing_file();
        if !may_be_stale {
            return false;
        }
        // A broker may also have begun to run after we looked at the lock.
        let now = self
            .superblock()
            .ok()
            .map(|(_, superblock)| superblock.sequence);
        now != sequence || (self.view.is_running() && equal_looks < EQUAL_LOOKS_MAX)
    }
}
