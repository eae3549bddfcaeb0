//! Invariants of the engine that no other test states by itself. The list is that of `tests/invariants.rs`.

use proptest::prelude::*;

use super::*;
use crate::storage::testing::{as_recovered, numbered_payload};
use crate::storage::types::{
    ImageEntry, Lsn, Position, QueueId, Ref, Request, Seq, SeqRange, SettleCause, Urgency,
};
use crate::storage::{QueueImage, Recovered};

fn published(seq: u64) -> ImageEntry {
    ImageEntry {
        seq: Seq(seq),
        position: Position {
            lsn: Lsn(8 * seq),
            len_bytes: 64,
        },
        expires_at_ms: 0,
        priority: 0,
        delivery_count: 0,
        is_redelivered: false,
    }
}

/// Seqs that were never logged (transient messages took them) are gaps, and settling them is legal.
#[test]
fn i17_gaps_in_the_seqs_are_legal_and_stay_gaps() {
    let rig = Rig::new(options());
    let (store, _) = rig.open();
    store.create_queue(1);
    let queue = QueueId(1);
    let payload = numbered_payload(7, 40);
    for seq in [5, 9, 300, 301] {
        let refs = [Ref {
            queue,
            seq: Seq(seq),
            expires_at_ms: 0,
        }];
        let request = Request::Publish {
            refs: &refs,
            priority: 0,
            time_ms: 1,
            payload: (&payload).into(),
            payload_crc: crc32fast::hash(&payload),
        };
        let waited = Urgency::Waited;
        store
            .storage
            .push(&[request], false, waited, &mut Vec::new());
    }
    let ranges = [SeqRange {
        first: Seq(2),
        last: Seq(7),
    }];
    let settle = Request::Settle {
        queue,
        cause: SettleCause::Acked,
        ranges: &ranges,
    };
    store
        .storage
        .push(&[settle], false, Urgency::Waited, &mut Vec::new());
    store.commit().unwrap();
    let (again, recovered) = rig.after_power_loss().open();
    let image = &recovered.queues[0];
    let seqs: Vec<u64> = image.entries.iter().map(|entry| entry.seq.0).collect();
    assert_eq!((seqs, image.next_seq), (vec![9, 300, 301], Seq(302)));
    for entry in image.entries.iter() {
        let read = again.storage.read(queue, entry.seq, entry.position);
        assert_eq!(read.unwrap(), payload);
    }
}

/// One record of a queue's history.
#[derive(Clone, Debug)]
enum Step {
    Publish,
    Settle(u64, u64),
    Requeue(u64, u32),
    Reserve(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Publish),
        2 => (1u64..40, 0u64..6).prop_map(|(first, more)| Step::Settle(first, first + more)),
        1 => (1u64..40, 0u32..4).prop_map(|(seq, count)| Step::Requeue(seq, count)),
        1 => (1u64..50).prop_map(Step::Reserve),
    ]
}

/// Applies record number `index` of the history, which lies at `100 * index`.
fn apply(image: &mut QueueImage, index: usize, step: &Step, seq: u64) {
    let start = Lsn(100 * (index as u64 + 1));
    let end = Lsn(start.0 + 100);
    match *step {
        Step::Publish => image.apply_publish(published(seq), start, end),
        Step::Settle(first, last) => {
            let range = SeqRange {
                first: Seq(first),
                last: Seq(last),
            };
            image.apply_settle([range], start, end);
        }
        Step::Requeue(seq, count) => image.apply_requeue(Seq(seq), count, start, end),
        Step::Reserve(upto) => image.apply_reserve(Seq(upto), start, end),
    }
}

/// Applies records `from..` of a history whose n-th PUBLISH has seq n.
fn replay(image: &mut QueueImage, steps: &[Step], from: usize) {
    let mut seq = 0;
    for (index, step) in steps.iter().enumerate() {
        seq += u64::from(matches!(step, Step::Publish));
        if index >= from {
            apply(image, index, step, seq);
        }
    }
}

proptest! {
    /// Applying records that a queue contains already changes nothing, so replay may begin anywhere before a snapshot;
    /// settling twice, or what never was, is settling once.
    #[test]
    fn i18_settling_is_idempotent_and_commutes_with_replay(
        steps in prop::collection::vec(step(), 1..60),
        cut in 0usize..60,
        from in 0usize..60,
    ) {
        let cut = cut.min(steps.len());
        let mut whole = QueueImage::new(QueueId(1), Lsn(0));
        replay(&mut whole, &steps, 0);
        // A snapshot taken after `cut` records, replayed from a record before that.
        let mut snapshot = QueueImage::new(QueueId(1), Lsn(0));
        replay(&mut snapshot, &steps[..cut], 0);
        replay(&mut snapshot, &steps, from.min(cut));
        prop_assert_eq!(&snapshot, &whole);
        replay(&mut whole, &steps, 0);
        prop_assert_eq!(snapshot, whole);
    }
}

/// The number of syncs is that of the commits, not of the queues.
#[test]
fn i38_syncs_and_bytes_do_not_depend_on_the_number_of_queues() {
    let cost = |queue_count: u64| {
        let rig = Rig::new(options());
        let (store, _) = rig.open();
        for id in 1..=queue_count {
            store.create_queue(id);
        }
        store.commit().unwrap();
        let before = store.storage.stats();
        for round in 0..5 {
            for number in 0..200 {
                let queue = 1 + number % queue_count;
                store.publish(&[queue], &numbered_payload(1000 * round + number, 100), 0);
            }
            store.commit().unwrap();
        }
        let after = store.storage.stats();
        (
            after.sync_count - before.sync_count,
            after.batch_bytes - before.batch_bytes,
        )
    };
    let one = cost(1);
    for queue_count in [10, 100] {
        assert_eq!(cost(queue_count), one, "{queue_count} queues");
    }
}

/// What is in the queues, without the places where it lies.
type Replicable = Vec<(u64, u64, Vec<(u64, u64, u32, bool, bytes::Bytes)>)>;

fn replicable(store: &LiveStore, recovered: &Recovered) -> Replicable {
    let queues = as_recovered(recovered.queues.clone());
    let entries = |image: &QueueImage| {
        let entries = image.entries.iter().map(|entry| {
            let read = store.storage.read(image.id, entry.seq, entry.position);
            let (redelivered, count) = (entry.is_redelivered, entry.delivery_count);
            let payload = read.expect("it is readable");
            (
                entry.seq.0,
                entry.expires_at_ms,
                count,
                redelivered,
                payload,
            )
        });
        entries.collect::<Vec<_>>()
    };
    queues
        .iter()
        .map(|image| (image.id.0, image.reserved_upto.0, entries(image)))
        .collect()
}

/// The same requests give the same state, wherever the log puts them.
#[test]
fn i43_state_does_not_depend_on_where_the_log_puts_it() {
    let run = |segment_size_bytes: u64, commit_every: u64| {
        let rig = Rig::new(Options {
            segment_size_bytes,
            ..options()
        });
        let (store, _) = rig.open();
        store.create_queue(1);
        store.create_queue(2);
        for number in 0..120_u64 {
            let queues: &[u64] = if number % 4 == 0 { &[1, 2] } else { &[1] };
            store.publish(queues, &numbered_payload(number, 700), number % 5 * 1000);
            match number % 7 {
                3 => drop(store.settle(1, number / 2, number / 2 + 1)),
                4 => drop(store.requeue(1, number, 2)),
                5 => drop(store.reserve(1, number)),
                _ => {}
            }
            if number % commit_every == 0 {
                store.commit().unwrap();
            }
            if number == 60 {
                store.storage.checkpoint(&store).unwrap();
            }
        }
        store.commit().unwrap();
        let (again, recovered) = rig.after_power_loss().open();
        let state = replicable(&again, &recovered);
        (state, again.metas())
    };
    let expected = run(64 << 10, 1);
    assert!(expected.0[0].2.len() > 50);
    for (segment_size_bytes, commit_every) in [(16 << 10, 1), (1 << 20, 9), (32 << 10, 50)] {
        assert!(run(segment_size_bytes, commit_every) == expected);
    }
}
