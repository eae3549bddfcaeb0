//! What a quorum queue adds to a durable one: it counts failed deliveries, ends a message that had too many, says so in
//! its headers, and serves first what came back.
//!
//! ```text
//!   reject, channel lost   + 1 failure --- above x-delivery-limit ---> dies (delivery_limit)
//!   nack, recover          no failure  \\
//!                                       `--> returned: before all others, in the order of their return
//! ```
//! Failures stand in the log (REQUEUE) and survive a crash. Other returns only count for `x-acquired-count`.

use std::sync::Arc;

use super::QueueHandle;
use super::batch::Batch;
use super::slots::{Head, Status};
use super::state::QueueState;
use crate::broker::dead_letter::DeathReason;
use crate::broker::message::{Message, MessageParts};
use crate::storage::types::Seq;

/// Header with the number of failed deliveries.
const DELIVERY_COUNT: &str = "x-delivery-count";
/// Header with the number of earlier deliveries.
const ACQUIRED_COUNT: &str = "x-acquired-count";

impl QueueState {
    /// The message that leaves next.
    pub(super) fn next_ready(&mut self) -> Head {
        while let Some(rare) = &mut self.rare
            && let Some(&seq) = rare.returned.front()
        {
            let slot = self.slots.get(seq);
            if slot.is_some_and(|slot| slot.status == Status::Ready) {
                return Head::Entry(seq);
            }
            rare.returned.pop_front();
        }
        self.slots.first_ready()
    }

    /// The message leaves for a consumer.
    pub(super) fn note_taken(&mut self, seq: Seq) {
        if let Some(rare) = &mut self.rare
            && rare.returned.front() == Some(&seq)
        {
            rare.returned.pop_front();
        }
    }

    /// A message of a quorum queue is about to come back: counts it; false when it dies of that.
    pub(super) fn count_return(
        &mut self,
        queue: &QueueHandle,
        batch: &mut Batch,
        seq: Seq,
        is_failure: bool,
    ) -> bool {
        if !is_failure {
            let rare = self.rare.get_or_insert_default();
            *rare.unfailed.entry(seq).or_default() += 1;
            rare.returned.push_back(seq);
            return true;
        }
        let failed_count = self.slots.get(seq).map_or(0, |slot| slot.delivery_count);
        let limit = self.settings.delivery_limit;
        if limit.is_some_and(|limit| u64::from(failed_count) >= limit) {
            self.let_die(queue, batch, seq, DeathReason::DeliveryLimit);
            return false;
        }
        self.rare.get_or_insert_default().returned.push_back(seq);
        true
    }

    /// The message as a consumer of a quorum queue gets it: from its second delivery on its headers say so.
    pub(super) fn with_counts(&self, seq: Seq, message: Arc<Message>) -> Arc<Message> {
        let failed_count = self.slots.get(seq).map_or(0, |slot| slot.delivery_count);
        let unfailed = self.rare.as_ref().and_then(|rare| rare.unfailed.get(&seq));
        let acquired_count = u32::from(failed_count).saturating_add(*unfailed.unwrap_or(&0));
        if acquired_count == 0 {
            return message;
        }
        let parts = message.to_parts();
        let mut properties = parts.properties.edit();
        let headers = properties.headers_mut();
        headers.set(ACQUIRED_COUNT, i64::from(acquired_count));
        if failed_count > 0 {
            headers.set(DELIVERY_COUNT, i64::from(failed_count));
        }
        Arc::new(Message::from_parts(&MessageParts {
            properties: properties.build(),
            ..parts
        }))
    }
}
