//! The tool beside a broker process under load from a real client, and what broker and tool say about one directory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

use crate::command::{copy_of, strata_dump};
use crate::support::TestBroker;

/// Runs of `verify` while the publishers work.
const ROUNDS: usize = 25;
/// Publishers, each with a queue of its own.
const PUBLISHERS: usize = 3;

/// Publishes persistent messages with confirms and takes every second one away again, until told to stop.
async fn work(
    channel: Channel,
    queue: String,
    is_over: Arc<AtomicBool>,
    published: Arc<AtomicU64>,
) {
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare(queue.as_str().into(), durable, FieldTable::default())
        .await
        .expect("declared");
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await
        .expect("selected");
    let persistent = BasicProperties::default().with_delivery_mode(2);
    let body = vec![b'x'; 4_000];
    while !is_over.load(Ordering::Relaxed) {
        let options = BasicPublishOptions::default();
        let sent = channel.basic_publish(
            "".into(),
            queue.as_str().into(),
            options,
            &body,
            persistent.clone(),
        );
        sent.await.expect("published").await.expect("confirmed");
        published.fetch_add(1, Ordering::Relaxed);
        let got = channel.basic_get(queue.as_str().into(), BasicGetOptions::default());
        if let Some(message) = got.await.expect("got") {
            message
                .ack(BasicAckOptions::default())
                .await
                .expect("acked");
        }
    }
}

#[test]
fn verify_is_clean_beside_a_broker_under_load() {
    // Small segments, so that they are closed and freed while the tool looks.
    let mut broker = TestBroker::builder()
        .arg("--segment-size")
        .arg("1MiB")
        .start();
    let directory = broker.data_dir().to_str().expect("a plain path").to_owned();
    let is_over = Arc::new(AtomicBool::new(false));
    let published = Arc::new(AtomicU64::new(0));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let url = broker.url();
    let connection = runtime
        .block_on(Connection::connect(&url, ConnectionProperties::default()))
        .expect("connected");
    let publishers: Vec<_> = (0..PUBLISHERS)
        .map(|number| {
            let channel = runtime
                .block_on(connection.create_channel())
                .expect("opened");
            let queue = format!("load-{number}");
            runtime.spawn(work(
                channel,
                queue,
                Arc::clone(&is_over),
                Arc::clone(&published),
            ))
        })
        .collect();
    let mut failure = None;
    for round in 0..ROUNDS {
        let output = strata_dump(&["verify", &directory]);
        if output.status.code() != Some(0) {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            failure = Some((
                round,
                text,
                String::from_utf8_lossy(&output.stderr).into_owned(),
            ));
            break;
        }
    }
    is_over.store(true, Ordering::Relaxed);
    for publisher in publishers {
        runtime.block_on(publisher).expect("no publisher failed");
    }
    assert_eq!(
        failure,
        None,
        "after {} messages",
        published.load(Ordering::Relaxed)
    );
    assert!(published.load(Ordering::Relaxed) > 0, "there was load");
    drop(connection);
    assert!(broker.terminate().success());
    let output = strata_dump(&["verify", &directory]);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
fn broker_refuses_a_damaged_directory_with_exit_code_3() {
    let copy = copy_of("damaged");
    let output = TestBroker::builder().data_dir(copy.path()).run_to_end();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{errors}");
    assert!(
        errors.contains("000000000005.segment at offset 6040"),
        "{errors}"
    );
    assert!(errors.contains("strata-dump verify"), "{errors}");
}
