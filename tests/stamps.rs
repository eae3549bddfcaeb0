//! The broker's stamps on messages.

mod support;

use stratamq::amqp::field_table::FieldValue;
use support::TestBroker;
use support::raw::{Client, Message, transient};

/// The message as it is delivered, and what a broker with this value of both flags makes of one with stamps of its own.
fn stamped(when: &str) -> (Message, Message) {
    let broker = TestBroker::builder()
        .arg("--stamp-time")
        .arg(when)
        .arg("--stamp-node")
        .arg(when)
        .start();
    let mut c = Client::connect(broker.address());
    c.open_channel(1);
    c.queue_declare(1, "q", transient());
    let own = Message::with("m", |properties| {
        properties
            .set_timestamp(Some(7))
            .set_header("timestamp_in_ms", 7)
            .set_header("x-routed-by", "me")
            .set_header("BCC", FieldValue::Array(vec![]));
    });
    for message in [Message::plain("m"), own] {
        c.push_publish(1, "", "q", &message);
    }
    c.flush().expect("the broker reads");
    c.try_qos(1, 0).expect("a round trip");
    let mut next = || c.get(1, "q").expect("it is there").message;
    (next(), next())
}

/// CC-8: off, where there is none, or always; the rest of the message stays, but for its BCC.
#[test]
fn messages_are_stamped_as_the_operator_wants() {
    let own = |message: &Message| {
        let properties = &message.properties;
        assert_eq!(properties.header("BCC"), None);
        assert_eq!(message.body_text(), "m");
        let name = properties.header("x-routed-by");
        (properties.timestamp() == Some(7), name == Some("me".into()))
    };
    let check_stamp = |message: &Message| {
        let properties = &message.properties;
        let secs = properties.timestamp().expect("stamped");
        let millis = properties.header("timestamp_in_ms");
        let millis = millis.and_then(|millis| millis.as_integer());
        let millis = millis.expect("stamped");
        assert_eq!(i64::try_from(secs).expect("small"), millis / 1000);
        assert!(secs > 1_500_000_000);
        let name = properties.header("x-routed-by");
        assert_eq!(name, Some("stratamq".into()));
    };
    let (plain, marked) = stamped("off");
    assert_eq!((plain, own(&marked)), (Message::plain("m"), (true, true)));
    let (plain, marked) = stamped("fill");
    check_stamp(&plain);
    assert_eq!(own(&marked), (true, true));
    let (plain, marked) = stamped("overwrite");
    check_stamp(&plain);
    check_stamp(&marked);
    assert_eq!(own(&marked), (false, false));
}
