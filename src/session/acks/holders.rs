//! Who holds the deliveries of a channel.
//!
//! A holder is known while it has deliveries; as many that have none are remembered as the channel has consumers, because they
//! will come back.

use std::sync::Arc;

use super::Taken;
use crate::broker::command::{ConsumerId, SeqRange};
use crate::broker::queue::QueueHandle;
use crate::session::number_map::NumberMap;

/// Number of a holder, from 1; 0 where there is no delivery.
pub(in crate::session) type HolderNumber = u32;
pub(super) const NOBODY: HolderNumber = 0;
/// Holders without deliveries that are remembered at least.
const IDLE_HOLDERS_MIN: usize = 16;

/// Who holds deliveries: a consumer of a queue, or `basic.get` on it.
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) queue: QueueHandle,
    pub(super) consumer: Option<ConsumerId>,
    pub(super) count: u32,
}

/// A holder by what it is. Its queue cannot go while the holder is known, so the address names it.
type HolderKey = (usize, Option<ConsumerId>);

fn key_of(queue: &QueueHandle, consumer: Option<ConsumerId>) -> HolderKey {
    (Arc::as_ptr(queue).addr(), consumer)
}

/// The holders of one channel, numbered from 1.
#[derive(Debug)]
pub(super) struct Holders {
    known: Vec<Option<Holder>>,
    by_key: NumberMap<HolderKey, HolderNumber>,
    free: Vec<HolderNumber>,
    /// The one that was added to last.
    newest: HolderNumber,
    /// Known ones without deliveries.
    idle_count: usize,
    /// How many of these there may be.
    idle_max: usize,
}

impl Default for Holders {
    fn default() -> Self {
        Self {
            known: Vec::new(),
            by_key: NumberMap::default(),
            free: Vec::new(),
            newest: NOBODY,
            idle_count: 0,
            idle_max: IDLE_HOLDERS_MIN,
        }
    }
}

impl Holders {
    /// The holder of a number.
    pub(super) fn get(&self, number: HolderNumber) -> Option<&Holder> {
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        self.known.get(index)?.as_ref()
    }

    /// The one that was added to last.
    pub(super) fn newest(&self) -> HolderNumber {
        self.newest
    }

    /// So few that the caches know them all.
    pub(super) fn are_few(&self) -> bool {
        self.known.len() <= IDLE_HOLDERS_MIN
    }

    /// The channel has so many consumers.
    pub(super) fn expect(&mut self, consumers_count: usize) {
        self.idle_max = consumers_count.max(IDLE_HOLDERS_MIN);
        self.limit_idle();
    }

    fn get_mut(&mut self, number: HolderNumber) -> Option<&mut Holder> {
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        self.known.get_mut(index)?.as_mut()
    }

    /// Counts deliveries, one at least; the number of who holds them, which is probably `guess`.
    pub(super) fn add(
        &mut self,
        guess: HolderNumber,
        queue: &QueueHandle,
        consumer: Option<ConsumerId>,
        count: usize,
    ) -> HolderNumber {
        let is_it = self
            .get(guess)
            .is_some_and(|holder| holder.consumer == consumer && Arc::ptr_eq(&holder.queue, queue));
        let number = if is_it {
            guess
        } else {
            self.number_of(queue, consumer)
        };
        self.newest = number;
        let count = u32::try_from(count).expect("a channel holds fewer than 2^32 deliveries");
        if let Some(holder) = self.get_mut(number) {
            let was_idle = holder.count == 0;
            holder.count += count;
            if was_idle {
                self.idle_count -= 1;
            }
        }
        number
    }

    fn number_of(&mut self, queue: &QueueHandle, consumer: Option<ConsumerId>) -> HolderNumber {
        let key = key_of(queue, consumer);
        if let Some(&number) = self.by_key.get(&key) {
            return number;
        }
        let holder = Some(Holder {
            queue: Arc::clone(queue),
            consumer,
            count: 0,
        });
        let number = self.free.pop().unwrap_or_else(|| {
            self.known.push(None);
            HolderNumber::try_from(self.known.len()).expect("a channel has fewer than 2^32 holders")
        });
        if let Some(place) = usize::try_from(number)
            .ok()
            .and_then(|number| self.known.get_mut(number - 1))
        {
            *place = holder;
        }
        self.by_key.insert(key, number);
        self.idle_count += 1;
        number
    }

    /// Deliveries end, of which `first` is the first tag.
    pub(super) fn release(
        &mut self,
        number: HolderNumber,
        first: u64,
        count: u32,
        seqs: SeqRange,
        settle: &mut impl FnMut(Taken<'_>),
    ) {
        let holder = self
            .get_mut(number)
            .expect("a holder is known while it has deliveries");
        holder.count -= count;
        let is_idle = holder.count == 0;
        settle(Taken {
            first,
            queue: &holder.queue,
            consumer: holder.consumer,
            seqs,
        });
        if is_idle {
            self.idle_count += 1;
            self.limit_idle();
        }
    }

    /// Forgets those without deliveries when they are too many.
    fn limit_idle(&mut self) {
        if self.idle_count <= self.idle_max {
            return;
        }
        for (number, place) in (1..).zip(&mut self.known) {
            if let Some(holder) = place.take_if(|holder| holder.count == 0) {
                self.by_key.remove(&key_of(&holder.queue, holder.consumer));
                self.free.push(number);
            }
        }
        self.idle_count = 0;
    }

    /// What is known is what has deliveries, so many in all, and few others.
    #[cfg(test)]
    pub(super) fn check(&self, held_count: usize) {
        let known = || self.known.iter().flatten();
        let held: u32 = known().map(|holder| holder.count).sum();
        assert_eq!(held as usize, held_count);
        assert_eq!(self.by_key.len(), known().count());
        let idle = known().filter(|holder| holder.count == 0);
        assert_eq!(idle.count(), self.idle_count);
        let idle_max = IDLE_HOLDERS_MIN.max(self.known.len() * 3 / 4 + 1);
        assert!(self.idle_count <= idle_max);
    }
}
