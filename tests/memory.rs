//! The memory limit on the real binary: a publisher that never stops and consumers that do not help.
//!
//! ```text
//!   flood thread --publish, publish, ..--> broker --memory-limit 128MiB        VmHWM <= 110 %
//!                                            |
//!   drain afterwards <-----------------------'  every message, in order, byte for byte
//! ```

mod support;

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::BytesMut;
use stratamq::amqp::method::{Method, basic, connection, queue};
use stratamq::amqp::short_string::ShortString;
use support::raw::{self, Client, durable, exclusive, transient};
use support::status::Status;
use support::{PROCESS_LIMIT, TestBroker};

const LIMIT: &str = "128MiB";
const LIMIT_BYTES: u64 = 128 << 20;
/// What the process may reach at its worst moment.
const PEAK_MAX_BYTES: u64 = LIMIT_BYTES / 10 * 11;
/// A flood is long enough when it has sent this much.
const FLOOD_BYTES: u64 = 2 * LIMIT_BYTES;
/// Or when it has made no progress for so long: it is blocked.
const STALLED: Duration = Duration::from_secs(3);
/// And never longer than this; what was sent by then counts. A busy machine makes the flood shorter, not the test fail.
const FLOOD_LIMIT: Duration = Duration::from_secs(20);
/// Connections with one channel each, at rest.
const IDLE_CONNECTIONS: usize = 400;
/// What one of them may take.
const IDLE_CONNECTION_MAX_BYTES: u64 = 12 * 1024;
/// Body bytes of one frame.
const FRAME_BODY_BYTES: usize = 131_072 - 8;

/// What a flood is made of.
#[derive(Clone, Copy)]
struct Load {
    body_bytes: usize,
    is_persistent: bool,
}

fn start() -> TestBroker {
    TestBroker::builder()
        .arg("--memory-limit")
        .arg(LIMIT)
        .arg("--log")
        .arg("info")
        .start()
}

/// The most memory the broker has taken so far.
fn peak_bytes(broker: &TestBroker) -> u64 {
    process_bytes(broker, "VmHWM:")
}

/// What the system says of the broker's memory under this name.
fn process_bytes(broker: &TestBroker, name: &str) -> u64 {
    let path = format!("/proc/{}/status", broker.broker_pid());
    let text = std::fs::read_to_string(path).expect("the broker runs");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.parse::<u64>().ok())
        .expect("Linux says it")
        * 1024
}

#[track_caller]
fn check_peak(broker: &TestBroker) {
    let peak_bytes = peak_bytes(broker);
    assert!(
        peak_bytes <= PEAK_MAX_BYTES,
        "{} MiB of {LIMIT}\n{}",
        peak_bytes >> 20,
        broker.log()
    );
}

/// The body of message `number`.
fn body(number: u64, len: usize) -> Vec<u8> {
    let pattern = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1).to_le_bytes();
    let mut body = number.to_le_bytes().to_vec();
    body.extend(pattern.repeat(len / 8));
    body.truncate(len);
    body
}

fn put_frame(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    let len = u32::try_from(payload.len()).expect("a frame");
    out.push(kind);
    out.extend(1u16.to_be_bytes());
    out.extend(len.to_be_bytes());
    out.extend(payload);
    out.push(0xce);
}

/// A publish with its content, as frames of channel 1.
fn put_publish(out: &mut Vec<u8>, publish: &[u8], load: Load, number: u64) {
    out.extend(publish);
    let mode = if load.is_persistent { 2 } else { 1 };
    let mut header = vec![0, 60, 0, 0];
    header.extend((load.body_bytes as u64).to_be_bytes());
    header.extend([0x10, 0, mode]);
    put_frame(out, 2, &header);
    for part in body(number, load.body_bytes).chunks(FRAME_BODY_BYTES) {
        put_frame(out, 3, part);
    }
}

/// A connection that publishes for ever.
struct Flood {
    /// Keeps the connection, of which the thread has the socket.
    _client: Client,
    stream: TcpStream,
    sent_bytes: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Flood {
    fn start(client: Client, queue: &str, load: Load) -> Self {
        let mut publish = BytesMut::new();
        let method = basic::Publish {
            exchange: ShortString::from_static(""),
            routing_key: ShortString::from_text_cut(queue),
            ..basic::Publish::default()
        };
        Method::from(method).encode(&mut publish, 1);
        let stream = client.stream().try_clone().expect("sockets can be cloned");
        let mut writer = client.stream().try_clone().expect("sockets can be cloned");
        let sent_bytes = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&sent_bytes);
        let thread = std::thread::spawn(move || {
            let per_write = (64 * 1024 / (load.body_bytes + 64)).max(1) as u64;
            let mut number = 0;
            loop {
                let mut out = Vec::new();
                for _ in 0..per_write {
                    put_publish(&mut out, &publish, load, number);
                    number += 1;
                }
                if writer.write_all(&out).is_err() {
                    return;
                }
                counter.fetch_add(out.len() as u64, Ordering::Relaxed);
            }
        });
        Self {
            _client: client,
            stream,
            sent_bytes,
            thread,
        }
    }

    fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// Waits until enough was sent or nothing moves any more.
    fn run(&self) {
        let begun = raw::now();
        let (mut last_bytes, mut moved_at) = (0, begun);
        while self.sent_bytes() < FLOOD_BYTES && begun.elapsed() < FLOOD_LIMIT {
            std::thread::sleep(Duration::from_millis(50));
            if self.sent_bytes() != last_bytes {
                (last_bytes, moved_at) = (self.sent_bytes(), raw::now());
            } else if moved_at.elapsed() > STALLED {
                return;
            }
        }
    }

    fn stop(self) {
        // Gone already is fine.
        let _ = self.stream.shutdown(Shutdown::Both);
        self.thread.join().expect("the flood ends with its socket");
    }
}

/// Takes everything out of the queue and checks it: numbers from 0 on, in order; how many there were.
fn drain(client: &mut Client, queue: &str, load: Load) -> u64 {
    client.open_channel(7);
    client.try_qos(7, 1000).expect("a prefetch");
    client.consume(7, queue, "drain");
    client.set_read_limit(Duration::from_secs(2));
    let mut next = 0;
    loop {
        match client.try_next_delivery(7) {
            Ok(delivered) => {
                let expected = body(next, load.body_bytes);
                assert!(delivered.message.body == expected, "message {next}");
                next += 1;
                if next % 100 == 0 {
                    client.ack_upto(7, delivered.tag);
                }
            }
            // A busy machine may be silent for long: only the queue itself knows that it is empty.
            Err(raw::Trouble::Silent) if client.message_count(7, queue) == 0 => return next,
            Err(raw::Trouble::Silent) => {}
            Err(trouble) => panic!("{trouble} after {next} messages"),
        }
    }
}

/// Floods a queue that nobody reads, then reads it.
#[track_caller]
fn check_flood(load: Load, declare: queue::Declare) {
    let broker = start();
    let mut client = Client::connect(broker.address());
    client.open_channel(1);
    client.queue_declare(1, "q", declare);
    let flood = Flood::start(client, "q", load);
    flood.run();
    check_peak(&broker);
    let sent_bytes = flood.sent_bytes();
    flood.stop();
    // Method, header and body frames of a small message.
    let wire_bytes = (load.body_bytes + 60) as u64;
    let mut consumer = Client::connect(broker.address());
    let count = drain(&mut consumer, "q", load);
    check_peak(&broker);
    assert!(
        count * wire_bytes > sent_bytes / 2,
        "{count} of {sent_bytes} bytes"
    );
    let status = Status::of(&broker);
    assert_eq!(status.counter("/messages/quarantined"), 0);
}

#[test]
fn flood_of_persistent_messages_stays_within_the_limit() {
    let load = Load {
        body_bytes: 1024,
        is_persistent: true,
    };
    check_flood(load, durable());
}

#[test]
fn flood_of_transient_messages_stays_within_the_limit() {
    let load = Load {
        body_bytes: 1024,
        is_persistent: false,
    };
    check_flood(load, durable());
    check_flood(load, transient());
}

#[test]
fn flood_of_large_messages_stays_within_the_limit() {
    for is_persistent in [false, true] {
        let load = Load {
            body_bytes: 1 << 20,
            is_persistent,
        };
        check_flood(load, durable());
    }
}

#[test]
fn flood_of_tiny_messages_stays_within_the_limit() {
    for is_persistent in [false, true] {
        let load = Load {
            body_bytes: 8,
            is_persistent,
        };
        check_flood(load, durable());
    }
}

#[test]
fn flood_of_an_exclusive_queue_stays_within_the_limit() {
    let broker = start();
    let mut client = Client::connect(broker.address());
    client.open_channel(1);
    client.queue_declare(1, "q", exclusive());
    let load = Load {
        body_bytes: 4096,
        is_persistent: true,
    };
    let flood = Flood::start(client, "q", load);
    flood.run();
    // Which goes on.
    Status::wait_for(&broker, "what is in no log is spilled", |status| {
        status.counter("/memory/spilled_bytes") > LIMIT_BYTES
    });
    check_peak(&broker);
    // The queue goes with its connection, and what was spilled with the queue.
    flood.stop();
    Status::wait_for(&broker, "the files are closed", |status| {
        status.counter("/memory/spill_file_bytes") == 0
    });
}

/// A consumer that takes messages and never acknowledges, while a publisher never stops.
#[track_caller]
fn check_hoarder(load: Load) {
    let broker = start();
    let mut hoarder = Client::connect(broker.address());
    hoarder.open_channel(1);
    hoarder.queue_declare(1, "q", durable());
    hoarder.consume(1, "q", "hoarder");
    let mut client = Client::connect(broker.address());
    client.open_channel(1);
    let flood = Flood::start(client, "q", load);
    hoarder.set_read_limit(STALLED);
    let (mut taken_bytes, mut taken_at) = (0, raw::now());
    while taken_bytes < FLOOD_BYTES {
        match hoarder.try_next_delivery(1) {
            Ok(delivered) => {
                taken_bytes += delivered.message.body.len() as u64;
                taken_at = raw::now();
            }
            // A busy machine may be silent for long.
            Err(raw::Trouble::Silent) if taken_bytes > LIMIT_BYTES => break,
            Err(raw::Trouble::Silent) if taken_at.elapsed() < PROCESS_LIMIT => {}
            Err(raw::Trouble::Silent) => break,
            Err(trouble) => panic!("{trouble}"),
        }
    }
    check_peak(&broker);
    assert!(taken_bytes > LIMIT_BYTES, "{taken_bytes} bytes were taken");
    flood.stop();
    // All of it comes back, in order, when the hoarder is gone, and the broker knows it.
    drop(hoarder);
    Status::wait_for(&broker, "the hoarder is gone", |status| {
        status.counter("/queues/0/unacked") == 0 && status.counter("/queues/0/consumers") == 0
    });
    let mut consumer = Client::connect(broker.address());
    let count = drain(&mut consumer, "q", load);
    assert!(count * load.body_bytes as u64 >= taken_bytes);
    check_peak(&broker);
}

#[test]
fn bodies_of_unacked_persistent_messages_leave_memory() {
    check_hoarder(Load {
        body_bytes: 16 * 1024,
        is_persistent: true,
    });
}

#[test]
fn bodies_of_unacked_transient_messages_leave_memory() {
    check_hoarder(Load {
        body_bytes: 16 * 1024,
        is_persistent: false,
    });
}

/// MD-1, MD-4: the alarm of memory is raised and cleared, and who does not publish goes on meanwhile.
#[test]
fn publishers_are_told_when_memory_is_low_and_when_it_is_not() {
    let broker = TestBroker::builder()
        .arg("--memory-limit")
        .arg("64MiB")
        .start();
    let mut publisher = Client::connect(broker.address());
    publisher.open_channel(1);
    publisher.queue_declare(1, "q", durable());
    // What a transaction holds cannot leave memory.
    let hoarders: Vec<(TcpStream, JoinHandle<Client>)> = (0..5)
        .map(|_| {
            let mut hoarder = Client::connect(broker.address());
            hoarder.open_channel(1);
            hoarder.tx_select(1);
            let stream = hoarder.stream().try_clone().expect("a socket");
            // The last ones may not be read any more.
            stream.set_write_timeout(None).expect("a socket");
            let thread = std::thread::spawn(move || {
                let message = raw::Message::persistent(vec![7; 1 << 20]);
                for _ in 0..14 {
                    hoarder.push_publish(1, "", "q", &message);
                    if hoarder.flush().is_err() {
                        break;
                    }
                }
                hoarder
            });
            (stream, thread)
        })
        .collect();
    Status::wait_for(&broker, "the alarm is raised", |status| {
        status.alarms() == ["low on memory"]
    });
    publisher.publish(1, "", "q", &raw::Message::plain("stopped"));
    let blocked: connection::Blocked = publisher.expect(0);
    assert_eq!(blocked.reason.as_str(), "low on memory");
    // Whoever does not publish goes on.
    let mut reader = Client::connect(broker.address());
    reader.open_channel(1);
    assert!(reader.get(1, "q").is_none());
    for (stream, thread) in hoarders {
        // Gone already is fine.
        let _ = stream.shutdown(Shutdown::Both);
        drop(thread.join().expect("a write ends with its socket"));
    }
    let _: connection::Unblocked = publisher.expect(0);
    Status::wait_for(&broker, "the alarm is cleared", |status| {
        status.alarms().is_empty()
    });
    Status::wait_for(&broker, "the message arrives", |status| {
        status.counter("/messages/published") > 0
    });
    assert_eq!(
        reader.get(1, "q").expect("it").message.body_text(),
        "stopped"
    );
}

/// Transient messages for queue `q`, from this client, until some are in the spill file; the flood goes on.
#[track_caller]
fn flood_until_spilled(broker: &TestBroker, client: Client) -> Flood {
    let load = Load {
        body_bytes: 16 * 1024,
        is_persistent: false,
    };
    let flood = Flood::start(client, "q", load);
    Status::wait_for(broker, "messages are spilled", |status| {
        status.counter("/memory/spilled_bytes") > 0
    });
    flood
}

/// Proves I41.
#[test]
fn spilled_messages_do_not_reappear_after_a_kill() {
    let mut broker = TestBroker::builder()
        .arg("--memory-limit")
        .arg("64MiB")
        .start();
    let mut client = Client::connect(broker.address());
    client.open_channel(1);
    client.queue_declare(1, "q", durable());
    client.confirm_select(1);
    client.publish(1, "", "q", &raw::Message::persistent("kept"));
    client.wait_confirm(1);
    let flood = flood_until_spilled(&broker, client);
    broker.kill();
    flood.stop();
    broker.restart();
    let mut client = Client::connect(broker.address());
    client.open_channel(1);
    let declared = client.queue_declare(1, "q", raw::passive());
    assert_eq!(declared.message_count, 1);
    assert_eq!(client.get(1, "q").expect("it").message.body_text(), "kept");
    assert_eq!(Status::of(&broker).counter("/memory/spill_file_bytes"), 0);
}

/// Proves I41.
#[test]
fn spilled_messages_hold_no_segment_of_the_log() {
    // A checkpoint between a round's publishes and its purge may find a message of the crowd alone in its segment, and move it.
    let moved = (0..5).map(|_| bytes_moved_beside_spilled_messages());
    let telling = moved
        .into_iter()
        .find(|bytes| *bytes < CROWD_BODY_BYTES as u64);
    assert_eq!(telling, Some(0), "nothing had to move");
}

/// Body bytes of a message that takes much of a segment of 1 MiB.
const CROWD_BODY_BYTES: usize = 100_000;

/// Bytes that compaction moved while segments were filled beside a queue that is spilled.
#[track_caller]
fn bytes_moved_beside_spilled_messages() -> u64 {
    const ROUNDS: u64 = 24;
    let broker = TestBroker::builder()
        .arg("--memory-limit")
        .arg("64MiB")
        .arg("--segment-size=1MiB")
        .start();
    let mut client = Client::connect(broker.address());
    client.open_channel(1);
    client.queue_declare(1, "q", durable());
    client.queue_declare(1, "crowd", durable());
    let flood = flood_until_spilled(&broker, client);
    flood.stop();
    let mut client = Client::connect(broker.address());
    client.open_channel(1);
    client.confirm_select(1);
    // Each round is a segment, and a transient message comes between its messages.
    for round in 0..ROUNDS {
        for _ in 0..10 {
            let message = raw::Message::persistent(vec![b'x'; CROWD_BODY_BYTES]);
            client.push_publish(1, "", "crowd", &message);
            client.push_publish(1, "", "q", &raw::Message::plain("between"));
        }
        client.flush().expect("the broker reads");
        client.wait_confirms_upto_from(1, 20 * round, 20 * (round + 1));
        client.try_purge(1, "crowd").expect("purged");
    }
    Status::wait_for(&broker, "the segments are freed", |status| {
        status.counter("/log/segments") < ROUNDS / 2
    });
    let status = Status::of(&broker);
    assert!(status.counter("/memory/spill_file_bytes") > 0);
    status.counter("/log/compacted_bytes")
}

/// AL-8, MD-6. Proves I40: the publisher is stopped, not what it sent is kept; no alarm is needed for it, so nobody is told
/// `connection.blocked`.
#[test]
fn what_is_not_durable_is_bounded_when_the_disk_is_slow() {
    // An eighth of the memory limit; above that what had been read from the socket when it was reached.
    const MOST_BYTES: u64 = (8 << 20) + (2 << 20);
    let slow = "strace -f -qq --seccomp-bpf -o /dev/null -e trace=fdatasync -e inject=fdatasync:delay_exit=1000000";
    let words: Vec<&str> = slow.split(' ').collect();
    let broker = TestBroker::builder()
        .arg("--memory-limit")
        .arg("64MiB")
        .wrapper(&words)
        .start();
    let mut client = Client::connect(broker.address());
    client.open_channel(1);
    client.queue_declare(1, "q", durable());
    let flood = Flood::start(
        client,
        "q",
        Load {
            body_bytes: 16 * 1024,
            is_persistent: true,
        },
    );
    let mut most_bytes = 0;
    while flood.sent_bytes() < 2 * MOST_BYTES {
        let status = Status::of(&broker);
        assert!(status.alarms().is_empty(), "{:?}", status.alarms());
        let bytes = status.counter("/log/undurable_bytes");
        assert!(bytes <= MOST_BYTES, "{bytes} bytes are not durable");
        most_bytes = most_bytes.max(bytes);
    }
    flood.stop();
    assert!(
        most_bytes > MOST_BYTES / 2,
        "the publisher was never stopped: {most_bytes}"
    );
}

#[test]
fn idle_connections_take_little_memory() {
    let broker = start();
    let open = |count: usize| -> Vec<Client> { (0..count).map(|_| broker.client(1)).collect() };
    // What the first ones bring along is there for all.
    let first = open(20);
    let before = process_bytes(&broker, "VmRSS:");
    let others = open(IDLE_CONNECTIONS);
    let bytes = process_bytes(&broker, "VmRSS:").saturating_sub(before) / IDLE_CONNECTIONS as u64;
    assert!(bytes <= IDLE_CONNECTION_MAX_BYTES, "{bytes}");
    drop((first, others));
}

#[test]
fn limit_that_is_too_small_is_refused_in_one_line() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let output = TestBroker::builder()
        .data_dir(directory.path().join("data"))
        .arg("--memory-limit")
        .arg("1MiB")
        .run_to_end();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr).trim(),
        "stratamq: invalid value '1048576' for --memory-limit: at least 64MiB is needed for buffers alone"
    );
}
