//! Section 20: single active consumer.

use stratamq::amqp::method::{basic, queue};

use super::stage::*;
use crate::support::raw::Client;

/// A queue with a single active consumer.
fn single(c: &mut Client, name: &str, kind: &str) {
    let mut declare = q_with(
        name,
        [
            ("x-single-active-consumer", true.into()),
            ("x-queue-type", string(kind)),
        ],
    );
    declare.durable = kind == "quorum";
    c.call::<queue::DeclareOk>(1, declare);
}

fn consume_at(c: &mut Client, channel: u16, queue: &str, tag: &str, priority: i32) {
    let with = basic::Consume {
        arguments: table([("x-priority", int(priority))]),
        ..consume(queue, tag)
    };
    c.call::<basic::ConsumeOk>(channel, with);
}

/// The next delivery comes on this channel.
#[track_caller]
fn delivered(c: &mut Client, channel: u16, body: &str) -> u64 {
    let delivered = c.next_delivery(channel);
    assert_eq!(delivered.message.body_text(), body);
    delivered.tag
}

/// SA-1, SA-2, SA-6: all register, one is served; its successor is the first in order, and what a cancelled one holds
/// stays with it. Nobody is told.
#[test]
fn one_consumer_is_served_until_it_goes() {
    let mut c = client();
    single(&mut c, "sa1", "classic");
    for (channel, priority) in [(2, 0), (3, 0), (4, 5)] {
        c.open_channel(channel);
        consume_at(&mut c, channel, "sa1", &format!("t{channel}"), priority);
    }
    assert_eq!(counts(&mut c, "sa1").1, 3);
    fill(&mut c, "sa1", &["a", "b"]);
    delivered(&mut c, 2, "a");
    let b = delivered(&mut c, 2, "b");
    // Cancelled: it keeps what it holds. The next is the one of the highest priority.
    c.try_cancel(2, "t2").expect("cancel-ok");
    fill(&mut c, "sa1", &["c"]);
    delivered(&mut c, 4, "c");
    c.ack(2, b);
    // Its channel ends: what it held comes first to the next.
    c.close_channel(4);
    let again = c.next_delivery(3);
    assert!(again.is_redelivered && again.message.body_text() == "c");
    fill(&mut c, "sa1", &["d"]);
    delivered(&mut c, 3, "d");
    silent(&mut c, 2);
}

/// SA-1: the argument is a boolean.
#[test]
fn the_argument_is_a_boolean() {
    let mut c = client();
    let declare = q_with("sa1.bad", [("x-single-active-consumer", int(1))]);
    refused(
        &mut c,
        declare,
        406,
        "PRECONDITION_FAILED - invalid arg 'x-single-active-consumer' for queue 'sa1.bad' in vhost '/': {unacceptable_type,signedint}",
    );
}

/// SA-3: one of higher priority takes over on a quorum queue once the active one holds nothing; not on a classic one.
#[test]
fn higher_priority_takes_over_on_quorum_queues() {
    for kind in ["classic", "quorum"] {
        let name = format!("sa3.{kind}");
        let mut c = client();
        single(&mut c, &name, kind);
        c.open_channel(2);
        c.open_channel(3);
        consume_at(&mut c, 2, &name, "old", 0);
        fill(&mut c, &name, &["a"]);
        let held = delivered(&mut c, 2, "a");
        consume_at(&mut c, 3, &name, "new", 5);
        fill(&mut c, &name, &["b"]);
        if kind == "classic" {
            delivered(&mut c, 2, "b");
            continue;
        }
        silent(&mut c, 2);
        silent(&mut c, 3);
        c.ack(2, held);
        delivered(&mut c, 3, "b");
    }
}

/// SA-4: a full one does not make way.
#[test]
fn a_full_one_stays_active() {
    let mut c = client();
    single(&mut c, "sa4", "classic");
    c.open_channel(2);
    c.open_channel(3);
    c.try_qos(2, 1).expect("qos");
    c.consume(2, "sa4", "active");
    c.consume(3, "sa4", "waiting");
    fill(&mut c, "sa4", &["a", "b"]);
    let a = delivered(&mut c, 2, "a");
    silent(&mut c, 3);
    c.ack(2, a);
    delivered(&mut c, 2, "b");
}

/// SA-5, CO-20, GT-5: exclusive consumers are refused; get is fine on a classic queue and refused on a quorum queue.
#[test]
fn exclusive_consumers_and_get_beside_the_active_one() {
    let mut c = client();
    single(&mut c, "sa5", "classic");
    let exclusive = basic::Consume {
        exclusive: true,
        ..consume("sa5", "t")
    };
    refused(
        &mut c,
        exclusive,
        403,
        "ACCESS_REFUSED - queue 'sa5' in vhost '/' in exclusive use",
    );
    fill(&mut c, "sa5", &["m"]);
    assert!(c.get(1, "sa5").is_some());
    single(&mut c, "sa5.quorum", "quorum");
    refused(
        &mut c,
        get("sa5.quorum"),
        405,
        "RESOURCE_LOCKED - cannot obtain access to locked queue 'sa5.quorum' in vhost '/'. basic.get operations are not supported by <<\"quorum\">> queues with single active consumer",
    );
}
