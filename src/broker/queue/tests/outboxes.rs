//! Many outboxes in one critical section: each keeps its bound.

use std::sync::Arc;

use super::{Rig, transient};
use crate::broker::command::SettleOutcome;
use crate::broker::message::Message;
use crate::broker::outbox::{Outbox, OutboxLimit, SCARCE_OUTBOX_MAX_BYTES, Wake, delivery_bytes};
use crate::broker::queue::QueueHandle;
use crate::broker::testing;

/// More than are looked through for the one that gets an item.
const OUTBOX_COUNT: usize = 20;

#[derive(Debug)]
struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

fn consume_all(rig: &mut Rig, queue: &QueueHandle) -> Vec<Arc<Outbox>> {
    let limit = Arc::new(OutboxLimit::default());
    limit.set_scarce(true);
    let outbox = || Arc::new(Outbox::within(Box::new(NoWake), Arc::clone(&limit)));
    let outboxes: Vec<_> = (0..OUTBOX_COUNT).map(|_| outbox()).collect();
    for outbox in &outboxes {
        rig.consume(queue, |spec| spec.outbox = Arc::clone(outbox));
    }
    outboxes
}

#[test]
fn requeued_messages_overfill_none_of_many_outboxes() {
    let mut rig = Rig::new();
    let queue = rig.queue("q");
    let one_bytes = delivery_bytes(&transient("m"));
    let fitting_count = OUTBOX_COUNT * SCARCE_OUTBOX_MAX_BYTES.div_ceil(one_bytes);
    let count = 2 * fitting_count;
    rig.publish_all(std::slice::from_ref(&queue), messages(count));
    let held: Vec<_> = (0..count).filter_map(|_| rig.get(&queue)).collect();
    assert_eq!(held.len(), count);
    let outboxes = consume_all(&mut rig, &queue);
    rig.settle(&held, SettleOutcome::Requeue);
    // A box takes the delivery that makes it full, and none behind it.
    for outbox in &outboxes {
        let size_bytes = outbox.size_bytes();
        assert!(size_bytes >= SCARCE_OUTBOX_MAX_BYTES, "{size_bytes}");
        assert!(
            size_bytes < SCARCE_OUTBOX_MAX_BYTES + one_bytes,
            "{size_bytes}"
        );
    }
    let got = outboxes
        .iter()
        .map(|outbox| testing::drain(outbox).deliveries_count());
    assert_eq!(got.sum::<usize>(), fitting_count);
    assert_eq!(queue.stats().ready_count, (count - fitting_count) as u64);
}

#[test]
fn outboxes_of_a_fan_out_keep_no_room_that_others_need() {
    const BATCH_COUNT: usize = 10;
    let mut rig = Rig::new();
    let queues: Vec<_> = (0..100).map(|_| rig.queue("q")).collect();
    let consume = |queue| rig.consume(queue, |_| {});
    let consumers: Vec<_> = queues.iter().map(consume).collect();
    rig.publish_all(&queues, messages(BATCH_COUNT));
    for consumer in consumers {
        let items = testing::drain(&consumer.outbox);
        assert_eq!(items.deliveries_count(), BATCH_COUNT);
        assert!(items.capacity() <= 4 * BATCH_COUNT, "{}", items.capacity());
    }
}

fn messages(count: usize) -> Vec<Message> {
    (0..count).map(|_| transient("m")).collect()
}
