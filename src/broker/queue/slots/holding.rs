//! Entries go from those that are ready to those that a consumer holds, one by one or side by side.

use std::sync::Arc;

use super::run::{Body, Run};
use super::{Place, Slot, Slots, Status};
use crate::broker::message::Message;
use crate::storage::types::Seq;

impl Slots {
    /// The entry at `place`, and those that follow it in its run, seq by seq, as long as they are ready.
    pub(in crate::broker::queue) fn ready_from(
        &self,
        place: Place,
    ) -> impl Iterator<Item = (Seq, &Slot)> {
        let resident = self.runs.get(place.run).and_then(Run::resident);
        let slots = resident.and_then(|resident| resident.slots.get(place.at..));
        let slots = slots.unwrap_or_default().iter();
        let ready = slots.take_while(|slot| slot.status == Status::Ready);
        (place.seq.0..).map(Seq).zip(ready)
    }

    /// A consumer holds `count` entries from `place` on, which are ready and in one run, as with [`hold_at`](Self::hold_at) for
    /// each. Their contents, which are in memory, are added to `messages`.
    pub(in crate::broker::queue) fn hold_run(
        &mut self,
        place: Place,
        count: usize,
        mut gives_away: impl FnMut(&Slot) -> bool,
        messages: &mut impl Extend<Arc<Message>>,
    ) {
        let run = &mut self.runs[place.run];
        let Body::Resident(resident) = &mut run.body else {
            return;
        };
        let slots = &mut resident.slots[place.at..place.at + count];
        let (mut body_bytes, mut left_count, mut left_bytes) = (0, 0, 0);
        messages.extend(slots.iter_mut().filter_map(|slot| {
            debug_assert_eq!(slot.status, Status::Ready);
            slot.status = Status::Unacked;
            body_bytes += u64::from(slot.body_bytes());
            if !gives_away(slot) {
                return slot.message.clone();
            }
            left_bytes += slot.resident_bytes();
            left_count += u16::from(slot.message.is_some());
            slot.message.take()
        }));
        resident.content_count -= left_count;
        run.ready_count -= u16::try_from(count).expect("a run has 256 entries");
        self.absent_count += u64::from(left_count);
        self.sums.hold(count as u64, body_bytes);
        self.sums.resident_bytes -= left_bytes;
        if self.ready_from == place.seq.0 {
            self.ready_from = place.seq.0.saturating_add(count as u64);
        }
    }

    /// A consumer holds the entry at `place` from now on. Gives out its content, all of it when the entry `gives_away` its share.
    #[inline]
    pub(in crate::broker::queue) fn hold_at(
        &mut self,
        place: Place,
        gives_away: impl FnOnce(&Slot) -> bool,
    ) -> Option<Arc<Message>> {
        let slot = self.at(place);
        let message = match gives_away(slot) {
            true => self.take_message_at(place),
            false => self.at(place).message.clone(),
        };
        self.set_status_at(place, Status::Unacked);
        message
    }

    /// Takes the content out of the entry at `place`, which is in a file as well.
    #[inline]
    fn take_message_at(&mut self, place: Place) -> Option<Arc<Message>> {
        let resident = self.runs[place.run].resident_mut()?;
        let slot = &mut resident.slots[place.at];
        let resident_bytes = slot.resident_bytes();
        let message = slot.message.take()?;
        resident.content_count -= 1;
        self.sums.resident_bytes -= resident_bytes;
        self.absent_count += 1;
        Some(message)
    }
}
