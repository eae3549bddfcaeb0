//! A list that most queues never have anything in: one word while it is empty.
//!
//! A queue has several of those. Their headers would be a good part of the memory of an idle queue, and stand
//! between the fields that every message changes: a message to a queue that is not in the processor's cache waits for
//! each line of 64 bytes it touches.

use std::collections::VecDeque;

/// See the module. `None` when, and only when, it is empty: to look whether it is touches nothing else.
#[derive(Debug)]
#[expect(
    clippy::box_collection,
    reason = "one word instead of four is the point"
)]
pub(super) struct Seldom<T>(Option<Box<VecDeque<T>>>);

impl<T> Default for Seldom<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Seldom<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(super) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |list| list.len())
    }

    pub(super) fn front(&self) -> Option<&T> {
        self.0.as_ref()?.front()
    }

    pub(super) fn push_back(&mut self, item: T) {
        self.0.get_or_insert_default().push_back(item);
    }

    pub(super) fn push_front(&mut self, item: T) {
        self.0.get_or_insert_default().push_front(item);
    }

    pub(super) fn extend(&mut self, items: impl IntoIterator<Item = T>) {
        for item in items {
            self.push_back(item);
        }
    }

    pub(super) fn pop_front(&mut self) -> Option<T> {
        let list = self.0.as_mut()?;
        let first = list.pop_front();
        if list.is_empty() {
            self.0 = None;
        }
        first
    }

    pub(super) fn retain(&mut self, is_kept: impl FnMut(&T) -> bool) {
        if let Some(list) = &mut self.0 {
            list.retain(is_kept);
            if list.is_empty() {
                self.0 = None;
            }
        }
    }

    /// Empties it.
    pub(super) fn take(&mut self) -> impl Iterator<Item = T> + use<T> {
        self.0.take().into_iter().flat_map(|list| *list)
    }

    pub(super) fn clear(&mut self) {
        self.0 = None;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flat_map(|list| list.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_is_one_word_and_behaves_like_a_queue() {
        assert_eq!(size_of::<Seldom<[u64; 9]>>(), size_of::<usize>());
        let mut list = Seldom::default();
        list.extend([1, 2, 3]);
        list.push_back(4);
        assert_eq!((list.len(), list.front()), (4, Some(&1)));
        assert_eq!(list.pop_front(), Some(1));
        list.retain(|item| *item != 3);
        assert!(list.iter().eq(&[2, 4]));
        assert!(list.take().eq([2, 4]));
        assert!(list.is_empty() && list.pop_front().is_none());
        // However it becomes empty, it says so.
        list.push_back(5);
        list.pop_front();
        assert!(list.is_empty());
        list.push_back(6);
        list.retain(|_| false);
        assert!(list.is_empty());
        list.push_back(7);
        list.clear();
        assert!(list.is_empty());
    }
}
