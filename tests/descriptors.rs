//! Clients that only connect take no file descriptor that the store needs.

mod support;

use std::io::Read;
use std::net::TcpStream;

use support::TestBroker;
use support::raw::{Message, durable};

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
    let mut another = broker.client(CHANNEL);
    assert!(another.get(CHANNEL, "q").is_some());
}
