//! The disk alarm on the real binary: publishers are told and stopped, everybody else goes on.

mod support;

use stratamq::amqp::method::connection;
use support::TestBroker;
use support::raw::{Client, Message, Trouble, durable, transient};
use support::status::Status;

/// AL-2, AL-3, AL-4: the message itself is not read; logins and consumers go on.
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

/// AL-7, AL-9: what the broker moves by itself is not stopped, and no publish is answered with an error.
#[test]
fn dead_letters_move_while_publishers_are_stopped() {
    let home = tempfile::tempdir().expect("a directory");
    let start = |limit: &str| {
        let builder = TestBroker::builder().data_dir(home.path().join("data"));
        builder.arg("--disk-free-limit").arg(limit).start()
    };
    let mut broker = start("0");
    let mut c = Client::connect(broker.address());
    c.open_channel(1);
    let mut dying = durable();
    dying.arguments.set("x-dead-letter-exchange", "");
    dying.arguments.set("x-dead-letter-routing-key", "dead");
    c.queue_declare(1, "dying", dying);
    c.queue_declare(1, "dead", durable());
    c.confirm_select(1);
    c.publish(1, "", "dying", &Message::persistent("m"));
    c.wait_confirms_upto(1, 1);
    assert!(broker.terminate().success());
    drop(broker);
    // No disk has that much.
    let broker = start("1000000GiB");
    let mut publisher = Client::connect(broker.address());
    publisher.open_channel(1);
    publisher.publish(1, "", "dying", &Message::plain("stopped"));
    let _: connection::Blocked = publisher.expect(0);
    let mut c = Client::connect(broker.address());
    c.open_channel(1);
    let delivered = c.get(1, "dying").expect("it is there");
    c.nack(1, delivered.tag, true);
    let again = c.get(1, "dying").expect("it came back");
    assert!(again.is_redelivered);
    c.nack(1, again.tag, false);
    c.try_qos(1, 0).expect("a round trip");
    let dead = c.get(1, "dead").expect("it moved");
    assert_eq!(dead.message.body_text(), "m");
    for channel in [0, 1] {
        match publisher.try_next_within(channel, std::time::Duration::from_millis(100)) {
            Err(Trouble::Silent) => {}
            other => panic!("a blocked publisher hears nothing more: {other:?}"),
        }
    }
}

#[test]
fn a_limit_of_zero_means_no_alarm() {
    let broker = TestBroker::builder()
        .arg("--disk-free-limit")
        .arg("0")
        .start();
    assert!(Status::of(&broker).alarms().is_empty());
}
