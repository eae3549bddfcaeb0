//! The disk alarm on the real binary: publishers are told and stopped, everybody else goes on.

mod support;

use stratamq::amqp::method::connection;
use support::TestBroker;
use support::raw::{Client, Message, transient};
use support::status::Status;

#[test]
fn low_disk_stops_publishers_and_nobody_else() {
    // No disk has that much: the alarm is on from the start.
    let broker = TestBroker::builder()
        .arg("--disk-free-limit")
        .arg("1000000GiB")
        .start();
    assert_eq!(Status::of(&broker).alarms(), ["low on disk"]);
    let mut publisher = Client::connect(broker.address());
    publisher.open_channel(1);
    publisher.queue_declare(1, "q", transient());
    publisher.publish(1, "", "q", &Message::plain("stopped"));
    let blocked: connection::Blocked = publisher.expect(0);
    assert_eq!(blocked.reason.as_str(), "low on disk");
    let mut consumer = Client::connect(broker.address());
    consumer.open_channel(1);
    assert!(
        consumer.get(1, "q").is_none(),
        "the message is not read while the alarm is on"
    );
}

#[test]
fn a_limit_of_zero_means_no_alarm() {
    let broker = TestBroker::builder()
        .arg("--disk-free-limit")
        .arg("0")
        .start();
    assert!(Status::of(&broker).alarms().is_empty());
}
