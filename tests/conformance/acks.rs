//! Section 14: acknowledgements, requeue and order.

use stratamq::amqp::method::{MethodId, basic};

use super::stage::*;
use crate::support::raw::{Client, durable};

/// A client with a queue of messages m0, m1, ...
fn stage(queue: &str, count: usize) -> Client {
    let mut c = client();
    c.queue_declare(1, queue, q(""));
    let bodies: Vec<String> = (0..count).map(|number| format!("m{number}")).collect();
    let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
    fill(&mut c, queue, &bodies);
    c
}

/// Takes so many, unacknowledged: their tags.
fn take(c: &mut Client, queue: &str, count: usize) -> Vec<u64> {
    (0..count)
        .map(|_| c.get(1, queue).expect("a message").tag)
        .collect()
}

/// What is ready, with a star on what is redelivered.
fn ready(c: &mut Client, queue: &str) -> Vec<String> {
    drain_all(c, queue)
        .iter()
        .map(|got| {
            format!(
                "{}{}",
                got.message.body_text(),
                if got.is_redelivered { "*" } else { "" }
            )
        })
        .collect()
}

#[track_caller]
fn unknown_tag(c: &mut Client, tag: u64, id: MethodId) {
    channel_closed(
        c,
        1,
        406,
        &format!("PRECONDITION_FAILED - unknown delivery tag {tag}"),
        id,
    );
    c.open_channel(1);
}

/// AK-1 to AK-4.
#[test]
fn tags_that_are_not_outstanding_close_the_channel() {
    let queue = "ak4";
    let mut c = stage(queue, 4);
    let ack = |delivery_tag, multiple| basic::Ack {
        delivery_tag,
        multiple,
    };
    // Everything of nothing is nothing.
    c.send(1, ack(0, true));
    c.send(
        1,
        basic::Nack {
            delivery_tag: 0,
            multiple: true,
            requeue: true,
        },
    );
    settle(&mut c, 1);
    c.send(1, ack(0, false));
    unknown_tag(&mut c, 0, basic::Ack::ID);
    c.send(1, ack(1, false));
    unknown_tag(&mut c, 1, basic::Ack::ID);
    c.send(
        1,
        basic::Reject {
            delivery_tag: 1,
            requeue: true,
        },
    );
    unknown_tag(&mut c, 1, basic::Reject::ID);
    c.send(
        1,
        basic::Nack {
            delivery_tag: 7,
            multiple: true,
            requeue: true,
        },
    );
    unknown_tag(&mut c, 7, basic::Nack::ID);
    // Tags belong to their channel.
    c.open_channel(2);
    let elsewhere = c.get(2, queue).expect("m0");
    c.ack(1, elsewhere.tag);
    unknown_tag(&mut c, 1, basic::Ack::ID);
    // Twice is once too often.
    let tags = take(&mut c, queue, 2);
    c.ack(1, tags[0]);
    c.ack(1, tags[0]);
    unknown_tag(&mut c, tags[0], basic::Ack::ID);
    // Up to an unknown tag is an error although smaller ones are outstanding.
    let tags = take(&mut c, queue, 2);
    c.send(1, ack(tags[1] + 1, true));
    unknown_tag(&mut c, tags[1] + 1, basic::Ack::ID);
    // m0 is held by channel 2, m1 was acknowledged.
    assert_eq!(ready(&mut c, queue), ["m2*", "m3*"]);
}

/// AK-2, AK-3.
#[test]
fn multiple_settles_everything_up_to_the_tag() {
    let mut c = stage("ak3", 6);
    let tags = take(&mut c, "ak3", 5);
    c.ack(1, tags[1]);
    c.ack_upto(1, tags[2]);
    settle(&mut c, 1);
    c.send(
        1,
        basic::Nack {
            delivery_tag: tags[3],
            multiple: true,
            requeue: true,
        },
    );
    settle(&mut c, 1);
    assert_eq!(counts(&mut c, "ak3").0, 2);
    c.send(
        1,
        basic::Nack {
            delivery_tag: 0,
            multiple: true,
            requeue: true,
        },
    );
    assert_eq!(ready(&mut c, "ak3"), ["m3*", "m4*", "m5"]);
}

/// AK-6.
#[test]
fn rejected_without_requeue_is_dropped() {
    let mut c = stage("ak6", 4);
    let tags = take(&mut c, "ak6", 3);
    c.send(
        1,
        basic::Reject {
            delivery_tag: tags[0],
            requeue: false,
        },
    );
    c.send(
        1,
        basic::Nack {
            delivery_tag: tags[2],
            multiple: true,
            requeue: false,
        },
    );
    assert_eq!(ready(&mut c, "ak6"), ["m3"]);
}

/// AK-7, AK-8, AK-18.
#[test]
fn requeued_messages_return_to_their_places_in_any_order_of_requeue() {
    let orders: [&[usize]; 4] = [&[1, 0], &[0, 1], &[2, 0, 1], &[0]];
    for (round, order) in orders.into_iter().enumerate() {
        let queue = format!("ak8.{round}");
        let mut c = stage(&queue, 5);
        let tags = take(&mut c, &queue, 3);
        for (at, index) in order.iter().enumerate() {
            match at % 2 {
                0 => c.nack(1, tags[*index], true),
                _ => c.send(
                    1,
                    basic::Reject {
                        delivery_tag: tags[*index],
                        requeue: true,
                    },
                ),
            }
        }
        let mut expected: Vec<String> = (0..3)
            .filter(|index| order.contains(index))
            .map(|index| format!("m{index}*"))
            .collect();
        expected.extend(["m3".to_owned(), "m4".to_owned()]);
        assert_eq!(ready(&mut c, &queue), expected, "{order:?}");
    }
}

/// AK-9: a consumer of the requeued message sees it although it has seen later ones.
#[test]
fn a_requeued_message_overtakes_what_was_behind_it() {
    let mut c = stage("ak9", 3);
    let tags = take(&mut c, "ak9", 1);
    c.try_qos(1, 1).expect("qos");
    c.consume(1, "ak9", "t");
    let m1 = c.next_delivery(1);
    c.nack(1, tags[0], true);
    c.ack(1, m1.tag);
    let again = c.next_delivery(1);
    assert_eq!(
        (again.message.body_text().as_str(), again.is_redelivered),
        ("m0", true)
    );
    c.ack(1, again.tag);
    assert_eq!(c.next_delivery(1).message.body_text(), "m2");
}

/// AK-10.
#[test]
fn recover_gives_everything_of_the_channel_back() {
    let mut c = stage("ak10", 4);
    c.try_qos(1, 2).expect("qos");
    take(&mut c, "ak10", 1);
    c.consume(1, "ak10", "t");
    let bodies = |c: &mut Client| {
        let two = [c.next_delivery(1), c.next_delivery(1)];
        two.map(|got| (got.message.body_text(), got.is_redelivered))
    };
    assert_eq!(
        bodies(&mut c),
        [("m1".to_owned(), false), ("m2".to_owned(), false)]
    );
    let again = [("m0".to_owned(), true), ("m1".to_owned(), true)];
    c.call::<basic::RecoverOk>(1, basic::Recover { requeue: true });
    assert_eq!(bodies(&mut c), again);
    c.send(1, basic::RecoverAsync { requeue: true });
    assert_eq!(bodies(&mut c), again);
    c.call::<basic::RecoverOk>(1, basic::Recover { requeue: true });
}

/// AK-11.
#[test]
fn the_end_of_a_connection_requeues() {
    for (queue, is_clean) in [("ak11.clean", true), ("ak11.broken", false)] {
        let mut c = client();
        c.queue_declare(1, queue, durable());
        fill(&mut c, queue, &["m0", "m1"]);
        take(&mut c, queue, 2);
        match is_clean {
            true => c.close(),
            false => drop(c),
        }
        let mut c = client();
        wait_ready(&mut c, queue, 2);
        assert_eq!(ready(&mut c, queue), ["m0*", "m1*"]);
        c.queue_delete(1, queue);
    }
}

/// AK-15, LL-8: requeue over the limit drops from the head, which may be the requeued one.
#[test]
fn requeue_over_the_limit_drops_from_the_head() {
    let mut c = client();
    c.call::<stratamq::amqp::method::queue::DeclareOk>(
        1,
        q_with("ak15", [("x-max-length", int(2))]),
    );
    fill(&mut c, "ak15", &["m0", "m1"]);
    let tags = take(&mut c, "ak15", 1);
    fill(&mut c, "ak15", &["m2"]);
    c.nack(1, tags[0], true);
    assert_eq!(ready(&mut c, "ak15"), ["m1", "m2"]);
}
