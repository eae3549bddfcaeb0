//! Clients that only connect take no file descriptor that the store needs.

mod support;

use std::io::Read;
use std::net::TcpStream;

use support::TestBroker;
use support::raw::{Client, Login, Message, durable, passive};
use support::wait::wait_until_ok;

const CHANNEL: u16 = 1;
/// What the process may have open; a quarter of it is for sockets.
const DESCRIPTORS: usize = 400;

#[test]
fn sockets_do_not_take_the_descriptors_of_the_store() {
    let limit = format!("--nofile={DESCRIPTORS}:{DESCRIPTORS}");
    let broker = TestBroker::builder()
        .arg("--segment-size=1MiB")
        .wrapper(&["prlimit", &limit])
        .start();
    let mut client = broker.client(CHANNEL);
    client.queue_declare(CHANNEL, "q", durable());
    client.confirm_select(CHANNEL);
    let mut strangers: Vec<TcpStream> = (0..DESCRIPTORS / 2)
        .map(|_| TcpStream::connect(broker.address()).expect("the system takes it"))
        .collect();
    broker.wait_for_line("too many sockets for the limit of open files");
    // Segment after segment is made.
    for number in 1..=100 {
        let message = Message::persistent(vec![b'x'; 100_000]);
        client.publish(CHANNEL, "", "q", &message);
        client.wait_confirms_upto_from(CHANNEL, number - 1, number);
    }
    // The last stranger is sent away.
    let last = strangers.last_mut().expect("there are some");
    assert!(matches!(last.read(&mut [0; 8]), Ok(0) | Err(_)));
    drop(strangers);
    // The broker hears of that a little later.
    let login = || Client::try_login(broker.address(), &Login::default());
    let mut another = wait_until_ok("somebody gets in again", login);
    another.open_channel(CHANNEL);
    assert!(another.get(CHANNEL, "q").is_some());
}

/// Without a descriptor there is no next segment: publishers wait for one as they do for room on the disk, and what they
/// published is kept.
#[test]
fn a_store_without_descriptors_waits() {
    const MESSAGES: u64 = 100;
    let broker = TestBroker::builder().arg("--segment-size=1MiB").start();
    let mut client = broker.client(CHANNEL);
    client.queue_declare(CHANNEL, "q", durable());
    client.confirm_select(CHANNEL);
    let limit = |soft: usize| {
        let pid = broker.pid().to_string();
        let limit = format!("--nofile={soft}:");
        let status = std::process::Command::new("prlimit")
            .args(["--pid", &pid, &limit])
            .status();
        assert!(status.is_ok_and(|status| status.success()));
    };
    // What is open stays.
    limit(3);
    let message = Message::persistent(vec![b'x'; 100_000]);
    for _ in 0..MESSAGES {
        client.push_publish(CHANNEL, "", "q", &message);
    }
    // The broker may stop reading in the middle.
    client.stream().set_write_timeout(None).expect("a socket");
    let publisher = std::thread::spawn(move || {
        client.flush().expect("the broker reads in the end");
        client.wait_confirms_upto(CHANNEL, MESSAGES);
        client
    });
    broker.wait_for_line("out of file descriptors");
    broker.wait_for_line("out of file descriptors; commits wait for one");
    limit(DESCRIPTORS);
    let mut client = publisher.join().expect("all of it is confirmed");
    let found = client.queue_declare(CHANNEL, "q", passive());
    assert_eq!(u64::from(found.message_count), MESSAGES);
}
