//! Section 32: what client libraries take for granted, each shown by the frames the library sends.
//!
//! The libraries themselves play on the broker in tests/foreign_clients.rs and tests/lapin_client.rs.

use bytes::Bytes;
use stratamq::amqp::field_table::{FieldTable, FieldValue};
use stratamq::amqp::method::{Method, basic, channel, connection, exchange, queue};

use super::stage::*;
use crate::support::raw::{Client, Login, Message, Trouble, exclusive, passive, text};

/// Logs in with the capabilities that a library says it has.
fn with_capabilities(capabilities: &[&'static str]) -> Client {
    let login = Login {
        capabilities: capabilities.to_vec(),
        ..Login::default()
    };
    let mut c = Client::login(address(), &login);
    c.open_channel(1);
    c
}

/// The first thing a broker says.
fn start() -> connection::Start {
    let mut c = Client::connect_tcp(address());
    c.send_bytes(b"AMQP\x00\x00\x09\x01").expect("sent");
    c.expect(0)
}

/// CL-1, CL-5: pika and rabbitmq-c refuse every version but 0-9; pika, before it uses confirms, nack or exchange bindings,
/// looks for the capability.
#[test]
fn the_version_and_the_capabilities_are_those_clients_look_for() {
    let start = start();
    assert_eq!((start.version_major, start.version_minor), (0, 9));
    let offered = start.server_properties.get_table("capabilities");
    let offered = offered.expect("a table");
    for name in [
        "basic.nack",
        "publisher_confirms",
        "exchange_exchange_bindings",
    ] {
        assert_eq!(offered.get_bool(name), Some(true), "{name}");
    }
}

/// CL-1: what pika has sent on a channel before it read that the channel is closed is tolerated, contents too.
#[test]
fn frames_of_a_closed_channel_are_tolerated() {
    let mut c = client();
    c.push(1, get("cl1.none"));
    for _ in 0..3 {
        c.push_publish(1, "", "cl1", &Message::plain("late"));
        c.push(
            1,
            basic::Ack {
                delivery_tag: 1,
                multiple: true,
            },
        );
    }
    c.flush().expect("sent");
    c.expect_channel_close(1, 404, "NOT_FOUND - no queue 'cl1.none' in vhost '/'");
    c.open_channel(1);
    settle(&mut c, 1);
}

/// CL-2: the Java client takes the smaller one of two limits, where 0 from the broker would be no limit; and its tests read the
/// version as numbers.
#[test]
fn limits_and_version_are_numbers_the_java_client_can_work_with() {
    let version = start();
    let version = version.server_properties.get_text("version");
    let version = version.expect("a version").to_owned();
    let mut numbers = version.split('.').map(str::parse::<u32>);
    assert!(numbers.all(|number| number.is_ok()), "{version}");
    let mut c = Client::connect_tcp(address());
    c.send_bytes(b"AMQP\x00\x00\x09\x01").expect("sent");
    c.expect::<connection::Start>(0);
    let login = Login::default();
    c.send(
        0,
        connection::StartOk {
            client_properties: login.client_properties(),
            mechanism: text("PLAIN"),
            response: login.plain_response(),
            locale: text("en_US"),
        },
    );
    let tune: connection::Tune = c.expect(0);
    assert!(tune.frame_max >= 8192 && tune.channel_max > 0, "{tune:?}");
}

/// CL-3: amqplib's `checkQueue` and `checkExchange` close the channel with 404 when there is nothing; it opens the next one.
#[test]
fn a_failed_check_costs_a_channel_and_no_more() {
    let mut c = client();
    for round in 0..3 {
        let checked = c.try_queue_declare(1, "cl3.none", passive());
        let Err(Trouble::ChannelClosed(close)) = checked else {
            panic!("round {round}: {checked:?}");
        };
        assert_eq!(close.reply_code, 404);
        c.open_channel(1);
    }
    let declare = exchange::Declare {
        passive: true,
        ..x("cl3.none", "direct")
    };
    let text = "NOT_FOUND - no exchange 'cl3.none' in vhost '/'";
    refused(&mut c, declare, 404, text);
}

/// CL-4: amqp091-go prints code and text as they come, and log pipelines look for them; it sends heartbeats at half the interval.
#[test]
fn go_clients_print_the_text_that_pipelines_match() {
    let mut c = Client::login(
        address(),
        &Login {
            heartbeat_secs: 2,
            ..Login::default()
        },
    );
    c.open_channel(1);
    let text = "NOT_FOUND - no queue 'cl4.none' in vhost '/'";
    refused(&mut c, consume("cl4.none", ""), 404, text);
    for _ in 0..6 {
        std::thread::sleep(std::time::Duration::from_millis(1000));
        c.send_bytes(b"\x08\x00\x00\x00\x00\x00\x00\xce")
            .expect("the connection lives");
    }
    settle(&mut c, 1);
}

/// CL-5, CL-2: rabbitmq-c and the Java client do not answer `basic.cancel`.
#[test]
fn nobody_waits_for_the_answer_to_a_cancel() {
    let mut c = with_capabilities(&["consumer_cancel_notify"]);
    c.queue_declare(1, "cl5", q(""));
    c.consume(1, "cl5", "t");
    c.queue_delete(1, "cl5");
    let told: basic::Cancel = c.expect(1);
    assert_eq!((told.consumer_tag.as_str(), told.nowait), ("t", true));
    // The tag is free again, and the channel as good as new.
    c.queue_declare(1, "cl5", q(""));
    c.consume(1, "cl5", "t");
    c.publish(1, "", "cl5", &Message::plain("m"));
    assert_eq!(c.next_delivery(1).message.body_text(), "m");
}

/// CL-6, CL-9: the capabilities that php-amqplib and lapin send are taken, known or not.
#[test]
fn every_set_of_capabilities_is_taken() {
    for capabilities in [
        &[
            "authentication_failure_close",
            "publisher_confirms",
            "consumer_cancel_notify",
            "exchange_exchange_bindings",
            "basic.nack",
            "connection.blocked",
        ][..],
        &CAPABILITIES,
        &["a.capability.nobody.knows"],
        &[],
    ] {
        let mut c = with_capabilities(capabilities);
        c.confirm_select(1);
        c.publish(1, "", "cl6.none", &Message::plain("m"));
        c.wait_confirm(1);
        c.close();
    }
}

/// CL-7: Celery counts with passive declares and sets these arguments; it takes the broker's product into account.
#[test]
fn queues_of_celery_can_be_declared_and_counted() {
    let mut c = client();
    let arguments = [
        ("x-expires", FieldValue::Long(60_000)),
        ("x-message-ttl", FieldValue::Long(60_000)),
    ];
    c.call::<queue::DeclareOk>(1, q_with("cl7", arguments));
    fill(&mut c, "cl7", &["a", "b"]);
    wait_ready(&mut c, "cl7", 2);
    c.consume(1, "cl7", "t");
    c.next_delivery(1);
    c.next_delivery(1);
    assert_eq!(counts(&mut c, "cl7"), (0, 1));
}

/// Everything an application has, declared the way recovery does it after every reconnect.
#[track_caller]
fn recover(c: &mut Client) -> String {
    c.open_channel(1);
    c.call::<exchange::DeclareOk>(1, x("cl8.x", "topic"));
    c.queue_declare(1, "cl8.shared", q(""));
    c.queue_declare(1, "cl8.mine", exclusive());
    let named = c.queue_declare(1, "", exclusive()).queue.to_string();
    for queue in ["cl8.shared", "cl8.mine", &named] {
        c.bind(1, queue, "cl8.x", "k.#");
    }
    for (queue, tag) in [
        ("cl8.shared", "one"),
        ("cl8.mine", "two"),
        (&named, "three"),
    ] {
        c.consume(1, queue, tag);
    }
    named
}

/// CL-8, CL-9: after 320 or a broken socket Bunny, amqplib, lapin and the Java client declare everything again, server-named
/// queues by an empty name, and start consumers under their old tags; an exclusive queue of the dead connection is gone soon.
#[test]
fn a_topology_can_be_recovered_at_once_and_again() {
    let mut names = std::collections::BTreeSet::new();
    let mut c = Client::connect(address());
    for round in 0..5 {
        names.insert(recover(&mut c));
        c.publish(1, "cl8.x", "k.1", &Message::plain("m"));
        let mut tags: Vec<String> = (0..3).map(|_| c.next_delivery(1).consumer_tag).collect();
        tags.sort_unstable();
        assert_eq!(tags, ["one", "three", "two"], "round {round}");
        c.ack_upto(1, 0);
        settle(&mut c, 1);
        c.close();
        c = Client::connect(address());
    }
    assert_eq!(names.len(), 5, "every name is new");
}

/// CL-9: what lapin recovers from is told by its code: a channel that is closed with 404 or 406 may be opened again.
#[test]
fn recoverable_errors_leave_a_channel_that_opens_again() {
    let mut c = client();
    c.send(1, get("cl9.none"));
    c.expect_channel_close(1, 404, "NOT_FOUND - no queue 'cl9.none' in vhost '/'");
    c.call::<channel::OpenOk>(1, channel::Open::default());
    c.ack(1, 7);
    c.expect_channel_close(1, 406, "PRECONDITION_FAILED - unknown delivery tag 7");
    c.call::<channel::OpenOk>(1, channel::Open::default());
    settle(&mut c, 1);
}

/// CL-10: .NET, MassTransit and Spring tie a return to the confirm behind it by a header, declare queues passively and name the
/// queue type.
#[test]
fn returns_come_before_the_confirm_they_belong_to() {
    let mut c = client();
    let classic = q_with("cl10", [("x-queue-type", string("classic"))]);
    c.call::<queue::DeclareOk>(1, classic);
    c.queue_declare(1, "cl10", passive());
    c.confirm_select(1);
    for (number, key) in [(1, "cl10"), (2, "cl10.none"), (3, "cl10"), (4, "cl10.none")] {
        let message = Message::with(Bytes::from_static(b"m"), |properties| {
            properties.set_headers(Some(
                FieldTable::new().with("publishSequenceNumber", number),
            ));
        });
        send(&mut c, 1, mandatory("", key), &message);
    }
    let (mut returned, mut answered) = (Vec::new(), Vec::new());
    while answered.last() != Some(&4) || answered.len() < 4 {
        let incoming = c.next(1);
        match incoming.method {
            Method::BasicReturn(told) => {
                assert_eq!(
                    (told.reply_code, told.reply_text.as_str()),
                    (312, "NO_ROUTE")
                );
                let message = incoming.message.expect("its content");
                let number = message.properties.header("publishSequenceNumber");
                let number = number.and_then(|number| number.as_integer());
                returned.push(number.expect("the header"));
            }
            Method::BasicAck(ack) => {
                let first = if ack.multiple { 1 } else { ack.delivery_tag };
                let numbers = (first..=ack.delivery_tag).filter(|tag| !answered.contains(tag));
                let numbers: Vec<u64> = numbers.collect();
                for number in [2, 4].iter().filter(|number| numbers.contains(number)) {
                    let sent: Vec<u64> = returned.iter().map(|tag| tag.unsigned_abs()).collect();
                    assert!(sent.contains(number), "{number} is confirmed first");
                }
                answered.extend(numbers);
            }
            other => panic!("{other:?}"),
        }
        answered.sort_unstable();
    }
    assert_eq!(returned, [2, 4]);
}
