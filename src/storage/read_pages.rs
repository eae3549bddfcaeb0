//! Memory of long reads that the messages in it keep, instead of copies of them.
//!
//! ```text
//!   spare --take--> a read --share--> Bytes, of which each message has a slice --last slice goes--> spare
//!     ^ a few, until `rest`                                                                          (or freed)
//! ```
//! 1. There are never more than `max_count` pages, whoever holds a slice and for how long: one message that stays keeps a
//!    whole page, and no budget of the queues counts that. Whoever gets none copies the messages out of memory of its own.
//! 2. Pages are used again, hot or at least mapped. `rest` gives back those that are spare, and those that come back
//!    until the next one is taken.

use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::disk::{LARGE_PAGE_BYTES, LargePage};
use crate::sync::lock;

/// Pages of all reads together, at most.
const PAGES_MAX: u64 = 8;
/// Part of the memory that a process may use which these pages may take.
const MEMORY_SHARE: u64 = 64;

/// See the module. Clones are the same pages.
#[derive(Clone, Debug)]
pub struct ReadPages(Arc<Pages>);

#[derive(Debug)]
struct Pages {
    max_count: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    spare: Vec<LargePage>,
    /// Pages that are not spare.
    taken_count: u64,
    is_resting: bool,
}

/// A page that is not spare; it comes back by itself.
#[derive(Debug)]
pub(crate) struct TakenPage {
    /// Until it goes.
    page: Option<LargePage>,
    pages: Arc<Pages>,
}

impl ReadPages {
    /// As many as are fit for a process that may use this much memory; possibly none.
    #[must_use]
    pub fn within(memory_limit_bytes: u64) -> Self {
        let share = memory_limit_bytes / MEMORY_SHARE / LARGE_PAGE_BYTES as u64;
        Self(Arc::new(Pages {
            max_count: share.min(PAGES_MAX),
            state: Mutex::default(),
        }))
    }

    /// A page, unless too many are in use or there is no room for another.
    pub(crate) fn take(&self) -> Option<TakenPage> {
        let mut state = lock(&self.0.state);
        if state.taken_count >= self.0.max_count {
            return None;
        }
        state.is_resting = false;
        let page = state.spare.pop().or_else(|| LargePage::new().ok())?;
        state.taken_count += 1;
        Some(TakenPage {
            page: Some(page),
            pages: Arc::clone(&self.0),
        })
    }

    /// Nobody reads: gives memory back.
    pub fn rest(&self) {
        let mut state = lock(&self.0.state);
        state.is_resting = true;
        let spare = std::mem::take(&mut state.spare);
        drop(state);
        drop(spare);
    }
}

impl TakenPage {
    /// All of it, to be read into.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.page
            .as_mut()
            .map(LargePage::as_mut)
            .unwrap_or_default()
    }

    /// All of it, to be sliced. It comes back when the last slice is gone.
    pub(crate) fn share(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for TakenPage {
    fn as_ref(&self) -> &[u8] {
        self.page
            .as_ref()
            .map(LargePage::as_ref)
            .unwrap_or_default()
    }
}

impl Drop for TakenPage {
    fn drop(&mut self) {
        let mut state = lock(&self.pages.state);
        state.taken_count -= 1;
        if !state.is_resting {
            state.spare.extend(self.page.take());
        }
        // Else it is unmapped behind the lock.
        drop(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLENTY: u64 = 1 << 40;

    fn counts(pages: &ReadPages) -> (usize, u64) {
        let state = lock(&pages.0.state);
        (state.spare.len(), state.taken_count)
    }

    #[test]
    fn a_page_comes_back_with_its_last_slice() {
        let pages = ReadPages::within(PLENTY);
        let mut page = pages.take().expect("the first one");
        page.bytes_mut()[7] = 9;
        let shared = page.share();
        let slices = [shared.slice(..7), shared.slice(7..8)];
        drop(shared);
        assert_eq!(counts(&pages), (0, 1));
        let [other, slice] = slices;
        drop(other);
        assert_eq!((&slice[..], counts(&pages)), (&[9][..], (0, 1)));
        drop(slice);
        assert_eq!(counts(&pages), (1, 0));
        drop(pages.take());
        assert_eq!(counts(&pages), (1, 0), "it was used again");
    }

    #[test]
    fn there_are_never_more_than_so_many() {
        let pages = ReadPages::within(PLENTY);
        let taken: Vec<_> = std::iter::from_fn(|| pages.take()).collect();
        assert_eq!(taken.len() as u64, PAGES_MAX);
        drop(taken);
        assert!(pages.take().is_some());
        let few = ReadPages::within(3 * MEMORY_SHARE * LARGE_PAGE_BYTES as u64);
        let taken = [few.take(), few.take(), few.take(), few.take()];
        assert_eq!(taken.iter().flatten().count(), 3);
        assert!(ReadPages::within(100 << 20).take().is_none());
    }

    #[test]
    fn what_is_spare_goes_at_rest_and_what_comes_back_then() {
        let pages = ReadPages::within(PLENTY);
        let (first, second) = (pages.take(), pages.take());
        drop(first);
        assert_eq!(counts(&pages), (1, 1));
        pages.rest();
        assert_eq!(counts(&pages), (0, 1));
        drop(second);
        assert_eq!(counts(&pages), (0, 0));
        drop(pages.take());
        assert_eq!(counts(&pages), (1, 0), "it is busy again");
    }
}
