//! RabbitMQ's tutorials and publisher confirms with lapin, a Rust client that shares no code with the broker.
//!
//! Each scenario is a test with a broker of its own. `STRATAMQ_TEST_URL` plays them against another broker instead.

mod support;

use futures_lite::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions,
    BasicQosOptions, ConfirmSelectOptions, ExchangeDeclareOptions, ExchangeDeleteOptions,
    QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer,
    ExchangeKind, PublisherConfirm,
};
use std::collections::BTreeMap;
use std::future::Future;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use support::TestBroker;

/// No scenario takes as long on the slowest machine.
const SCENARIO_LIMIT: Duration = Duration::from_secs(60);
/// Tells the test binary that it was started as a worker, and where it shall work.
const WORKER_URL: &str = "LAPIN_WORKER_URL";
const TASK_QUEUE: &str = "lapin.task_queue";
const PERSISTENT: u8 = 2;

/// Plays a scenario on a broker of its own, within the limit.
#[track_caller]
fn play<Scenario: Future<Output = ()>>(scenario: impl FnOnce(String) -> Scenario) {
    let outside = std::env::var("STRATAMQ_TEST_URL");
    let broker = outside.is_err().then(TestBroker::start);
    let url = broker.as_ref().map_or_else(
        || outside.expect("without a broker of our own there is another"),
        TestBroker::url,
    );
    block_on(scenario(url));
}

fn block_on(scenario: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be built")
        .block_on(async {
            tokio::time::timeout(SCENARIO_LIMIT, scenario)
                .await
                .expect("the scenario ends within its limit");
        });
}

async fn connect(url: &str) -> (Connection, Channel) {
    let connection = Connection::connect(url, ConnectionProperties::default())
        .await
        .expect("connect");
    let channel = connection.create_channel().await.expect("open a channel");
    (connection, channel)
}

async fn close(connection: Connection) {
    let closed = connection.close(200, "done".into()).await;
    closed.expect("close the connection");
}

async fn fresh_queue(channel: &Channel, name: &str, options: QueueDeclareOptions) {
    drop_queue(channel, name).await;
    let queue = channel
        .queue_declare(name.into(), options, FieldTable::default())
        .await
        .expect("declare");
    assert_eq!(
        (
            queue.name().as_str(),
            queue.message_count(),
            queue.consumer_count()
        ),
        (name, 0, 0)
    );
}

/// Declares a server-named exclusive queue.
async fn exclusive_queue(channel: &Channel) -> ShortString {
    let options = QueueDeclareOptions {
        exclusive: true,
        ..QueueDeclareOptions::default()
    };
    let queue = channel
        .queue_declare("".into(), options, FieldTable::default())
        .await
        .expect("declare");
    queue.name().clone()
}

/// Deletes a queue and says how many messages it held.
async fn drop_queue(channel: &Channel, name: &str) -> u32 {
    channel
        .queue_delete(name.into(), QueueDeleteOptions::default())
        .await
        .expect("delete a queue")
}

async fn fresh_exchange(channel: &Channel, name: &str, kind: ExchangeKind) {
    drop_exchange(channel, name).await;
    channel
        .exchange_declare(
            name.into(),
            kind,
            ExchangeDeclareOptions::default(),
            FieldTable::default(),
        )
        .await
        .expect("declare an exchange");
}

async fn drop_exchange(channel: &Channel, name: &str) {
    channel
        .exchange_delete(name.into(), ExchangeDeleteOptions::default())
        .await
        .expect("delete an exchange");
}

async fn bind(channel: &Channel, queue: &ShortString, exchange: &str, key: &str) {
    channel
        .queue_bind(
            queue.clone(),
            exchange.into(),
            key.into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .expect("bind");
}

/// What a passive declaration says: ready messages and consumers.
async fn state(channel: &Channel, queue: &str) -> (u32, u32) {
    let options = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let state = channel
        .queue_declare(queue.into(), options, FieldTable::default())
        .await
        .expect("look at a queue");
    (state.message_count(), state.consumer_count())
}

/// Publishes; the confirm is awaited, which is over at once on a channel without confirms.
async fn publish(channel: &Channel, exchange: &str, key: &str, body: &str, with: BasicProperties) {
    let published = channel
        .basic_publish(
            exchange.into(),
            key.into(),
            BasicPublishOptions::default(),
            body.as_bytes(),
            with,
        )
        .await
        .expect("publish");
    let confirmation = published.await.expect("a channel that stays open");
    assert_eq!(confirmation, Confirmation::NotRequested);
}

fn persistent() -> BasicProperties {
    BasicProperties::default().with_delivery_mode(PERSISTENT)
}

async fn consume(channel: &Channel, queue: &str, no_ack: bool) -> Consumer {
    let options = BasicConsumeOptions {
        no_ack,
        ..BasicConsumeOptions::default()
    };
    channel
        .basic_consume(queue.into(), "".into(), options, FieldTable::default())
        .await
        .expect("consume")
}

async fn next(consumer: &mut Consumer) -> Delivery {
    let delivery = consumer.next().await.expect("the consumer goes on");
    delivery.expect("a delivery")
}

/// Consumes and acks `count` messages and stops; a message too many that was on its way fails.
async fn receive(channel: &Channel, queue: &str, count: usize) -> Vec<Delivery> {
    let mut consumer = consume(channel, queue, false).await;
    let mut received = Vec::new();
    while received.len() < count {
        let delivery = next(&mut consumer).await;
        let acked = delivery.ack(BasicAckOptions::default()).await;
        assert!(acked.expect("ack"), "the channel took the ack");
        received.push(delivery);
    }
    let cancelled = channel
        .basic_cancel(consumer.tag(), BasicCancelOptions::default())
        .await;
    cancelled.expect("cancel");
    assert!(
        consumer.next().await.is_none(),
        "a message too many in {queue}"
    );
    received
}

fn text(delivery: &Delivery) -> &str {
    std::str::from_utf8(&delivery.data).expect("bodies are text")
}

fn bodies(deliveries: &[Delivery]) -> Vec<String> {
    deliveries
        .iter()
        .map(|each| text(each).to_owned())
        .collect()
}

fn numbered(count: usize) -> Vec<String> {
    (0..count)
        .map(|number| format!("message {number}"))
        .collect()
}

#[test]
fn hello_world() {
    play(async |url: String| {
        let queue = "lapin.hello";
        let (sender, channel) = connect(&url).await;
        fresh_queue(&channel, queue, QueueDeclareOptions::default()).await;
        publish(
            &channel,
            "",
            queue,
            "Hello World!",
            BasicProperties::default(),
        )
        .await;
        close(sender).await;

        let (receiver, channel) = connect(&url).await;
        assert_eq!(state(&channel, queue).await, (1, 0));
        let received = receive(&channel, queue, 1).await;
        let [delivery] = &received[..] else {
            panic!("one message, not {received:?}")
        };
        assert_eq!(text(delivery), "Hello World!");
        assert_eq!(
            (delivery.exchange.as_str(), delivery.routing_key.as_str()),
            ("", queue)
        );
        assert_eq!((delivery.delivery_tag, delivery.redelivered), (1, false));
        assert_eq!(delivery.properties, BasicProperties::default());
        assert_eq!(drop_queue(&channel, queue).await, 0);
        close(receiver).await;
    });
}

/// A worker in a process of its own: this test binary again, at the one test below.
struct Worker {
    process: Child,
    lines: tokio::sync::mpsc::Receiver<String>,
}

impl Worker {
    async fn start(url: &str) -> Self {
        let binary = std::env::current_exe().expect("the test binary has a path");
        let mut process = Command::new(binary)
            .args(["--exact", "worker_process", "--nocapture"])
            .env(WORKER_URL, url)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the test binary can be executed");
        let stderr = process.stderr.take().expect("stderr is piped");
        let (sender, lines) = tokio::sync::mpsc::channel(16);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.blocking_send(line).is_err() {
                    return;
                }
            }
        });
        let mut worker = Self { process, lines };
        worker.expect("ready").await;
        worker
    }

    async fn expect(&mut self, line: &str) {
        assert_eq!(self.lines.recv().await.as_deref(), Some(line));
    }

    /// Sends SIGKILL and waits for the end.
    fn kill(&mut self) {
        self.process.kill().expect("kill the worker");
        self.process.wait().expect("reap the worker");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Errors say that it is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Not a test by itself: takes one task at a time, says so and acks it, except a new `stall`, which it holds until it is killed.
#[test]
fn worker_process() {
    let Ok(url) = std::env::var(WORKER_URL) else {
        return;
    };
    block_on(async {
        let (_connection, channel) = connect(&url).await;
        let limited = channel.basic_qos(1, BasicQosOptions::default()).await;
        limited.expect("qos");
        let mut tasks = consume(&channel, TASK_QUEUE, false).await;
        eprintln!("ready");
        loop {
            let task = next(&mut tasks).await;
            let mode = task.properties.delivery_mode().unwrap_or_default();
            eprintln!("got {} {} {mode}", text(&task), task.redelivered);
            if text(&task) != "stall" || task.redelivered {
                task.ack(BasicAckOptions::default()).await.expect("ack");
            }
        }
    });
}

#[test]
fn killed_worker_leaves_its_task_to_another() {
    play(async |url: String| {
        let (connection, channel) = connect(&url).await;
        fresh_queue(&channel, TASK_QUEUE, QueueDeclareOptions::durable()).await;
        let submit = async |task: &str| publish(&channel, "", TASK_QUEUE, task, persistent()).await;
        let mut first = Worker::start(&url).await;
        submit("stall").await;
        first.expect("got stall false 2").await;
        let mut second = Worker::start(&url).await;
        for task in ["task 1", "task 2", "task 3"] {
            // Prefetch 1 keeps them away from the busy worker, where plain round robin would give it every other one.
            submit(task).await;
            second.expect(&format!("got {task} false 2")).await;
        }
        assert_eq!(state(&channel, TASK_QUEUE).await, (0, 2));
        first.kill();
        second.expect("got stall true 2").await;
        submit("task 4").await;
        second.expect("got task 4 false 2").await;
        second.kill();
        while state(&channel, TASK_QUEUE).await.1 > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Task 4 was perhaps acked before the second kill, perhaps not; nothing else may be left.
        let taken = channel
            .basic_get(TASK_QUEUE.into(), BasicGetOptions { no_ack: true })
            .await;
        if let Some(left) = taken.expect("get") {
            assert_eq!(
                (text(&left.delivery), left.delivery.redelivered),
                ("task 4", true)
            );
        }
        assert_eq!(drop_queue(&channel, TASK_QUEUE).await, 0);
        close(connection).await;
    });
}

/// The reply code with which the broker refuses to show a queue on a new channel.
async fn refusal(connection: &Connection, queue: &ShortString) -> u16 {
    let channel = connection.create_channel().await.expect("open a channel");
    let options = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let refused = channel
        .queue_declare(queue.clone(), options, FieldTable::default())
        .await
        .expect_err("the broker refuses");
    match refused.kind() {
        lapin::ErrorKind::ProtocolError(error) => error.get_id(),
        other => panic!("not a refusal: {other:?}"),
    }
}

#[test]
fn publish_subscribe() {
    play(async |url: String| {
        let exchange = "lapin.logs";
        let (connection, channel) = connect(&url).await;
        fresh_exchange(&channel, exchange, ExchangeKind::Fanout).await;
        publish(
            &channel,
            exchange,
            "",
            "before anybody",
            BasicProperties::default(),
        )
        .await;
        let mut subscribers = Vec::new();
        for _ in 0..2 {
            let (own, listening) = connect(&url).await;
            let queue = exclusive_queue(&listening).await;
            assert!(
                queue.as_str().starts_with("amq.gen-"),
                "generated name {queue}"
            );
            bind(&listening, &queue, exchange, "").await;
            subscribers.push((own, listening, queue));
        }
        assert_ne!(subscribers[0].2, subscribers[1].2);
        let lines = numbered(20);
        for line in &lines {
            let ignored = format!("ignored.{line}");
            publish(
                &channel,
                exchange,
                &ignored,
                line,
                BasicProperties::default(),
            )
            .await;
        }
        for (_, listening, queue) in &subscribers {
            let received = receive(listening, queue.as_str(), lines.len()).await;
            assert_eq!(bodies(&received), lines);
            assert!(received.iter().all(|each| !each.redelivered));
        }
        let queue = subscribers[0].2.clone();
        assert_eq!(
            refusal(&connection, &queue).await,
            405,
            "seen by another connection"
        );
        for (own, _, _) in subscribers {
            close(own).await;
        }
        assert_eq!(
            refusal(&connection, &queue).await,
            404,
            "after its connection"
        );
        drop_exchange(&channel, exchange).await;
        close(connection).await;
    });
}

#[test]
fn topics() {
    let keys = [
        "kern.critical",
        "kern.info",
        "auth.critical",
        "kern",
        "kern.disk.critical",
        "NYSE",
    ];
    let expected: &[(&[&str], &[&str])] = &[
        (&["#"], &keys),
        (&["kern.*"], &["kern.critical", "kern.info"]),
        // Two binding keys of one queue match kern.critical: it gets one copy.
        (
            &["kern.*", "*.critical"],
            &["kern.critical", "kern.info", "auth.critical"],
        ),
        (
            &["kern.#"],
            &["kern.critical", "kern.info", "kern", "kern.disk.critical"],
        ),
        (&["*"], &["kern", "NYSE"]),
        (&["NYSE"], &["NYSE"]),
    ];
    play(async |url: String| {
        let exchange = "lapin.topic_logs";
        let (connection, channel) = connect(&url).await;
        fresh_exchange(&channel, exchange, ExchangeKind::Topic).await;
        let mut queues = Vec::new();
        for (binding_keys, _) in expected {
            let queue = exclusive_queue(&channel).await;
            for key in *binding_keys {
                bind(&channel, &queue, exchange, key).await;
            }
            queues.push(queue);
        }
        for key in keys {
            let mut headers = FieldTable::default();
            headers.insert("key".into(), AMQPValue::LongString(key.into()));
            let properties = BasicProperties::default().with_headers(headers);
            publish(&channel, exchange, key, &format!("about {key}"), properties).await;
        }
        for (queue, (_, matching)) in queues.iter().zip(expected) {
            let received = receive(&channel, queue.as_str(), matching.len()).await;
            for (delivery, key) in received.iter().zip(*matching) {
                assert_eq!(delivery.routing_key.as_str(), *key);
                assert_eq!(text(delivery), format!("about {key}"));
                let headers = delivery.properties.headers().as_ref().expect("headers");
                let expected = AMQPValue::LongString((*key).into());
                assert_eq!(headers.inner().get("key"), Some(&expected));
            }
            assert_eq!(drop_queue(&channel, queue.as_str()).await, 0);
        }
        drop_exchange(&channel, exchange).await;
        close(connection).await;
    });
}

fn fibonacci(number: u64) -> u64 {
    (0..number)
        .fold((0, 1), |(before, now), _| (now, before + now))
        .0
}

/// Answers `count` requests and says which numbers were asked for.
async fn serve(channel: Channel, queue: &'static str, count: usize) -> Vec<u64> {
    let mut requests = consume(&channel, queue, false).await;
    let mut served = Vec::new();
    while served.len() < count {
        let request = next(&mut requests).await;
        let number = text(&request).parse().expect("a number");
        let asked = &request.properties;
        let reply_to = asked.reply_to().clone().expect("reply_to");
        let correlation_id = asked.correlation_id().clone().expect("correlation_id");
        let with = BasicProperties::default().with_correlation_id(correlation_id);
        publish(
            &channel,
            "",
            reply_to.as_str(),
            &fibonacci(number).to_string(),
            with,
        )
        .await;
        request.ack(BasicAckOptions::default()).await.expect("ack");
        served.push(number);
    }
    served
}

#[test]
fn rpc() {
    play(async |url: String| {
        let queue = "lapin.rpc_queue";
        let (server, serving) = connect(&url).await;
        fresh_queue(&serving, queue, QueueDeclareOptions::default()).await;
        let limited = serving.basic_qos(1, BasicQosOptions::default()).await;
        limited.expect("qos");
        let numbers: Vec<u64> = std::iter::once(30).chain(0..20).collect();
        let server_task = tokio::spawn(serve(serving, queue, numbers.len()));

        let (client, channel) = connect(&url).await;
        let callback = exclusive_queue(&channel).await;
        let mut replies = consume(&channel, callback.as_str(), true).await;
        for number in &numbers {
            let with = BasicProperties::default()
                .with_reply_to(callback.clone())
                .with_correlation_id(format!("call-{number}").into());
            publish(&channel, "", queue, &number.to_string(), with).await;
        }
        let mut answers = BTreeMap::new();
        for _ in &numbers {
            let reply = next(&mut replies).await;
            let call = reply.properties.correlation_id().clone();
            let call = call.expect("correlation_id").as_str().to_owned();
            let earlier = answers.insert(call, text(&reply).to_owned());
            assert_eq!(earlier, None, "one reply a call");
        }
        let expected = numbers
            .iter()
            .map(|number| (format!("call-{number}"), fibonacci(*number).to_string()))
            .collect();
        assert_eq!(answers, expected);
        assert_eq!(server_task.await.expect("the server ends"), numbers);
        let (other, channel) = connect(&url).await;
        assert_eq!(drop_queue(&channel, queue).await, 0);
        for connection in [client, server, other] {
            close(connection).await;
        }
    });
}

/// Publishes a persistent message on a channel with confirms; the confirm is the caller's to await.
async fn submit(channel: &Channel, key: &str, body: &str, mandatory: bool) -> PublisherConfirm {
    let options = BasicPublishOptions {
        mandatory,
        ..BasicPublishOptions::default()
    };
    channel
        .basic_publish(
            "".into(),
            key.into(),
            options,
            body.as_bytes(),
            persistent(),
        )
        .await
        .expect("publish")
}

#[test]
fn confirms() {
    play(async |url: String| {
        let queue = "lapin.confirms";
        let (connection, channel) = connect(&url).await;
        fresh_queue(&channel, queue, QueueDeclareOptions::durable()).await;
        let selected = channel
            .confirm_select(ConfirmSelectOptions::default())
            .await;
        selected.expect("confirm.select");
        let expected = numbered(500);
        // One by one, in batches of a hundred, and the rest as one stream: each publish gets its own ack.
        let (singles, rest) = expected.split_at(20);
        let (batches, stream) = rest.split_at(200);
        let runs = singles.chunks(1).chain(batches.chunks(100)).chain([stream]);
        let mut confirmed_count = 0;
        for run in runs {
            let mut pending = Vec::new();
            for body in run {
                pending.push(submit(&channel, queue, body, false).await);
            }
            for confirm in pending {
                assert_eq!(confirm.await.expect("a confirm"), Confirmation::Ack(None));
                confirmed_count += 1;
            }
            assert_eq!(state(&channel, queue).await.0, confirmed_count);
        }
        // Unroutable and mandatory: confirmed, with the returned message.
        let confirm = submit(&channel, "lapin.no.such.queue", "lost", true).await;
        let returned = confirm.await.expect("a confirm").take_message();
        let returned = returned.expect("the message came back");
        assert_eq!(
            (returned.reply_code, returned.delivery.data.as_slice()),
            (312, &b"lost"[..])
        );

        let received = receive(&channel, queue, expected.len()).await;
        assert_eq!(bodies(&received), expected);
        let modes = received.iter().map(|each| *each.properties.delivery_mode());
        assert!(modes.into_iter().all(|mode| mode == Some(PERSISTENT)));
        assert_eq!(drop_queue(&channel, queue).await, 0);
        close(connection).await;
    });
}
