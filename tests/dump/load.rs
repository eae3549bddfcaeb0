//! The tool beside an engine that works: segments come and go, checkpoints replace each other, batches are written
//! while they are read. Nothing of that is damage.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use stratamq::amqp::field_table::FieldTable;
use stratamq::broker::meta::{Change, QueueV1};
use stratamq::disk::RealClock;
use stratamq::storage::types::SettleCause;

use crate::command::strata_dump;
use crate::scripted::{Scripted, arguments, message};

/// Rounds of each command.
const ROUNDS: usize = 15;
/// Messages that stay in each queue.
const BACKLOG: u64 = 40;

/// Publishes to two queues and settles all but the newest messages, until told to stop. A checkpoint every so often
/// frees what is behind.
fn work(store: &Scripted, is_over: &AtomicBool) {
    let body = vec![b'x'; 700];
    let mut number = 0u64;
    while !is_over.load(Ordering::Relaxed) {
        number += 1;
        store.publish(
            &message("", "load", body.clone()),
            &[(1, 0), (2, 0)],
            0,
            number,
        );
        if number > BACKLOG {
            let seq = number - BACKLOG;
            store.settle(1, SettleCause::Acked, &[(seq, seq)]);
            store.settle(2, SettleCause::Acked, &[(seq, seq)]);
        }
        store.storage.wake();
        if number.is_multiple_of(300) {
            store.storage.checkpoint(store).expect("a checkpoint");
        }
        while !store.storage.has_room() {
            std::thread::yield_now();
        }
    }
}

#[test]
fn verify_is_clean_beside_a_working_engine() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let root = place.path().join("data");
    let (store, _) =
        Scripted::threaded(&root, Arc::new(RealClock::new())).expect("the store opens");
    for id in [1, 2] {
        let arguments = arguments(&FieldTable::default());
        let (vhost, name) = ("/".to_owned(), format!("load-{id}"));
        store.change(Change::QueueDeclared(QueueV1 {
            id,
            vhost,
            name,
            is_auto_delete: false,
            arguments,
        }));
    }
    store.storage.wake();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| work(&store, &is_over));
        let directory = root.to_str().expect("a plain path");
        let commands: [&[&str]; 4] = [
            &["verify", directory],
            &["segments", directory],
            &["index", "load-1", directory],
            &["records", directory, "--type", "settle", "--json"],
        ];
        for round in 0..ROUNDS {
            for words in commands {
                let output = strata_dump(words);
                let code = output.status.code();
                if code != Some(0) {
                    is_over.store(true, Ordering::Relaxed);
                    let (out, err) = (
                        String::from_utf8_lossy(&output.stdout),
                        String::from_utf8_lossy(&output.stderr),
                    );
                    panic!("round {round}, {words:?}: exit code {code:?}\n{out}{err}");
                }
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    store.storage.close(&store).expect("a clean stop");
    drop(store);
    let output = strata_dump(&["verify", root.to_str().expect("a plain path")]);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}
