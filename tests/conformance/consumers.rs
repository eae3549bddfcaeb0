//! Section 13: consumers, prefetch, get.

use stratamq::amqp::method::{Method, basic};

use super::stage::*;
use crate::support::raw::{Client, Message, Trouble, text};

fn prefetch(c: &mut Client, channel: u16, prefetch_count: u16, global: bool) {
    c.call::<basic::QosOk>(
        channel,
        basic::Qos {
            prefetch_count,
            global,
            ..basic::Qos::default()
        },
    );
}

/// What has been delivered by now: (consumer tag, body).
fn delivered(c: &mut Client, channel: u16) -> Vec<(String, String, u64)> {
    let mut seen = Vec::new();
    loop {
        match c.try_next_within(channel, SILENCE) {
            Ok(incoming) => {
                let Method::BasicDeliver(deliver) = incoming.method else {
                    panic!("{incoming:?}");
                };
                let body = incoming
                    .message
                    .expect("a delivery has content")
                    .body_text();
                seen.push((deliver.consumer_tag.to_string(), body, deliver.delivery_tag));
            }
            Err(Trouble::Silent) => return seen,
            Err(trouble) => panic!("{trouble}"),
        }
    }
}

/// CO-1, CO-5 and the rows of 4.4 and 4.5.
#[test]
fn bad_consumes_are_refused() {
    let mut c = client();
    c.queue_declare(1, "co1", q(""));
    refused(
        &mut c,
        consume("co1.none", ""),
        404,
        "NOT_FOUND - no queue 'co1.none' in vhost '/'",
    );
    for argument in ["x-stream-offset", "x-stream-filter"] {
        let text = format!(
            "PRECONDITION_FAILED - invalid arg '{argument}' for queue 'co1' in vhost '/' of queue type rabbit_classic_queue"
        );
        let with = basic::Consume {
            arguments: table([(argument, string("first"))]),
            ..consume("co1", "")
        };
        refused(&mut c, with, 406, &text);
    }
    c.consume(1, "co1", "same");
    c.open_channel(2);
    c.consume(2, "co1", "same");
    c.send(1, consume("co1", "same"));
    connection_closed(
        &mut c,
        530,
        "NOT_ALLOWED - attempt to reuse consumer tag 'same'",
        basic::Consume::ID,
    );
}

/// CO-2, CO-3, QU-11.
#[test]
fn consume_ok_precedes_the_first_delivery() {
    let mut c = client();
    c.queue_declare(1, "co3", q(""));
    fill(&mut c, "co3", &["a", "b"]);
    c.send(1, consume("co3", ""));
    let Method::BasicConsumeOk(ok) = c.next(1).method else {
        panic!("consume-ok comes first");
    };
    let tag = ok.consumer_tag.to_string();
    assert!(tag.starts_with("amq.ctag-") && tag.len() == 31, "{tag}");
    assert_eq!(c.next_delivery(1).consumer_tag, tag);
    // With nowait the client learns it from the delivery.
    c.open_channel(2);
    c.queue_declare(2, "co3.nowait", q(""));
    fill(&mut c, "co3.nowait", &["c"]);
    c.send(
        2,
        basic::Consume {
            nowait: true,
            ..consume("co3.nowait", "")
        },
    );
    assert!(c.next_delivery(2).consumer_tag.starts_with("amq.ctag-"));
}

/// CO-8, CO-10: equal consumers take turns.
#[test]
fn equal_consumers_take_turns() {
    let mut c = client();
    c.queue_declare(1, "co8", q(""));
    for tag in ["one", "two", "three"] {
        c.consume(1, "co8", tag);
    }
    fill(
        &mut c,
        "co8",
        &["0", "1", "2", "3", "4", "5", "6", "7", "8"],
    );
    let seen = delivered(&mut c, 1);
    assert_eq!(seen.len(), 9);
    for tag in ["one", "two", "three"] {
        let bodies: Vec<u32> = seen
            .iter()
            .filter(|(consumer, ..)| consumer == tag)
            .map(|(_, body, _)| body.parse().expect("a number"))
            .collect();
        assert_eq!(bodies.len(), 3, "{tag}: {seen:?}");
        assert!(
            bodies.windows(2).all(|pair| pair[1] == pair[0] + 3),
            "{tag}: {bodies:?}"
        );
    }
}

/// CO-6, AK-5, GT-7.
#[test]
fn no_ack_takes_a_tag_but_leaves_nothing_to_acknowledge() {
    let mut c = client();
    c.queue_declare(1, "co6", q(""));
    fill(&mut c, "co6", &["a", "b", "c"]);
    prefetch(&mut c, 1, 1, false);
    c.call::<basic::ConsumeOk>(
        1,
        basic::Consume {
            no_ack: true,
            ..consume("co6", "t")
        },
    );
    let tags: Vec<u64> = (0..3).map(|_| c.next_delivery(1).tag).collect();
    assert_eq!(tags, [1, 2, 3]);
    c.ack(1, 2);
    channel_closed(
        &mut c,
        1,
        406,
        "PRECONDITION_FAILED - unknown delivery tag 2",
        basic::Ack::ID,
    );
    c.open_channel(1);
    assert_eq!(counts(&mut c, "co6").0, 0);
}

/// CO-13 to CO-16.
#[test]
fn cancel_stops_deliveries_and_keeps_what_is_unacked() {
    let mut c = client();
    c.queue_declare(1, "co15", q(""));
    let unknown: basic::CancelOk = c.call(
        1,
        basic::Cancel {
            consumer_tag: text("nobody"),
            nowait: false,
        },
    );
    assert_eq!(unknown.consumer_tag.as_str(), "nobody");
    c.send(
        1,
        basic::Cancel {
            consumer_tag: text("nobody"),
            nowait: true,
        },
    );
    c.consume(1, "co15", "t");
    fill(&mut c, "co15", &["a"]);
    let a = c.next_delivery(1);
    c.try_cancel(1, "t").expect("cancel-ok");
    fill(&mut c, "co15", &["b"]);
    silent(&mut c, 1);
    assert_eq!(counts(&mut c, "co15"), (1, 0));
    c.nack(1, a.tag, true);
    assert_eq!(drain(&mut c, "co15"), ["a", "b"]);
    // Its tag is free again.
    c.consume(1, "co15", "t");
}

/// CO-19.
#[test]
fn an_exclusive_consumer_is_alone() {
    let (mut c, mut other) = (client(), client());
    c.queue_declare(1, "co19", q(""));
    let alone = || basic::Consume {
        exclusive: true,
        ..consume("co19", "t")
    };
    let text = "ACCESS_REFUSED - queue 'co19' in vhost '/' in exclusive use";
    c.call::<basic::ConsumeOk>(1, alone());
    refused(&mut other, consume("co19", ""), 403, text);
    refused(&mut other, alone(), 403, text);
    assert!(other.get(1, "co19").is_none(), "get is allowed");
    c.try_cancel(1, "t").expect("cancel-ok");
    other.consume(1, "co19", "t");
    refused(&mut c, alone(), 403, text);
}

/// QS-2, QS-7: the limit is that of consumers started later; everything that settles frees a place.
#[test]
fn prefetch_limits_each_consumer_started_after_it() {
    let mut c = client();
    c.queue_declare(1, "qs2", q(""));
    fill(&mut c, "qs2", &["a", "b", "c", "d", "e", "f", "g", "h"]);
    prefetch(&mut c, 1, 2, false);
    c.consume(1, "qs2", "two");
    prefetch(&mut c, 1, 1, false);
    c.consume(1, "qs2", "one");
    let held = delivered(&mut c, 1);
    let of = |tag: &str| held.iter().filter(|(consumer, ..)| consumer == tag).count();
    assert_eq!((of("two"), of("one")), (2, 1));
    let mine = |held: &[(String, String, u64)]| {
        held.iter()
            .find(|(consumer, ..)| consumer == "one")
            .expect("one has one")
            .2
    };
    let tag = mine(&held);
    c.ack(1, tag);
    let next = delivered(&mut c, 1);
    assert_eq!(next.len(), 1);
    c.nack(1, mine(&next), false);
    let next = delivered(&mut c, 1);
    assert_eq!(next.len(), 1);
    c.send(
        1,
        basic::Reject {
            delivery_tag: mine(&next),
            requeue: true,
        },
    );
    assert_eq!(delivered(&mut c, 1).len(), 1);
    // QS-6: what is got does not count.
    c.get(1, "qs2").expect("a message");
    c.ack_upto(1, 0);
    assert_eq!(delivered(&mut c, 1).len(), 2);
}

/// QS-3, QS-9, VD-6.
#[test]
fn global_prefetch_limits_the_channel_at_once() {
    let mut c = client();
    c.queue_declare(1, "qs3", q(""));
    prefetch(&mut c, 1, 3, true);
    prefetch(&mut c, 1, 2, false);
    c.consume(1, "qs3", "a");
    c.consume(1, "qs3", "b");
    fill(&mut c, "qs3", &["1", "2", "3", "4", "5", "6", "7"]);
    assert_eq!(delivered(&mut c, 1).len(), 3, "both limits hold");
    prefetch(&mut c, 1, 4, true);
    assert_eq!(delivered(&mut c, 1).len(), 1, "raising it resumes at once");
    prefetch(&mut c, 1, 0, true);
    assert!(delivered(&mut c, 1).is_empty(), "each has its two");
}

/// GT-1 to GT-3.
#[test]
fn get_tells_how_many_are_left() {
    let mut c = client();
    c.queue_declare(1, "gt1", q(""));
    fill(&mut c, "gt1", &["a", "b", "c"]);
    for left in [2, 1, 0] {
        c.send(1, get("gt1"));
        assert_eq!(c.expect::<basic::GetOk>(1).message_count, left);
    }
    c.send(1, get("gt1"));
    assert!(c.expect::<basic::GetEmpty>(1).cluster_id.is_empty());
    refused(
        &mut c,
        get("gt1.none"),
        404,
        "NOT_FOUND - no queue 'gt1.none' in vhost '/'",
    );
}

/// CO-11.
#[test]
fn deliveries_name_exchange_and_key_of_the_publish() {
    let mut c = client();
    c.queue_declare(1, "co11", q(""));
    c.bind(1, "co11", "amq.topic", "co11.#");
    c.consume(1, "co11", "t");
    c.publish(1, "amq.topic", "co11.x", &Message::plain("m"));
    c.publish(1, "", "co11", &Message::plain("m"));
    let (first, second) = (c.next_delivery(1), c.next_delivery(1));
    assert_eq!(
        (first.exchange.as_str(), first.routing_key.as_str()),
        ("amq.topic", "co11.x")
    );
    assert_eq!(
        (second.exchange.as_str(), second.routing_key.as_str()),
        ("", "co11")
    );
}

/// CO-4: a consumer gets what its own connection published, whatever it asked for.
#[test]
fn no_local_means_nothing() {
    let mut c = client();
    c.queue_declare(1, "co4", q(""));
    c.call::<basic::ConsumeOk>(
        1,
        basic::Consume {
            no_local: true,
            ..consume("co4", "t")
        },
    );
    c.publish(1, "", "co4", &Message::plain("own"));
    assert_eq!(c.next_delivery(1).message.body_text(), "own");
}

/// CO-7: a channel may have many consumers, several of them on one queue.
#[test]
fn a_channel_has_as_many_consumers_as_it_likes() {
    let mut c = client();
    c.queue_declare(1, "co7", q(""));
    c.queue_declare(1, "co7.other", q(""));
    for number in 0..60 {
        c.consume(1, "co7", &format!("t{number}"));
    }
    c.consume(1, "co7.other", "other");
    assert_eq!(counts(&mut c, "co7"), (0, 60));
    fill(&mut c, "co7.other", &["x"]);
    assert_eq!(c.next_delivery(1).consumer_tag, "other");
}

/// CO-9: a consumer of a lower priority gets what all higher ones have no room for.
#[test]
fn lower_priorities_get_what_higher_ones_cannot_take() {
    let mut c = client();
    c.queue_declare(1, "co9", q(""));
    let mut start = |channel: u16, tag: &str, priority: i32, limit: u16| {
        if channel != 1 {
            c.open_channel(channel);
        }
        prefetch(&mut c, channel, limit, false);
        c.call::<basic::ConsumeOk>(
            channel,
            basic::Consume {
                arguments: table([("x-priority", int(priority))]),
                ..consume("co9", tag)
            },
        );
    };
    start(1, "low", -1, 0);
    start(2, "high", 10, 2);
    start(3, "higher", 20, 1);
    fill(&mut c, "co9", &["a", "b", "c", "d"]);
    let bodies = |seen: Vec<(String, String, u64)>| -> Vec<String> {
        seen.into_iter().map(|(_, body, _)| body).collect()
    };
    let higher = delivered(&mut c, 3);
    assert_eq!(higher[0].1, "a");
    let tag = higher[0].2;
    assert_eq!(bodies(higher), ["a"]);
    assert_eq!(bodies(delivered(&mut c, 2)), ["b", "c"]);
    assert_eq!(bodies(delivered(&mut c, 1)), ["d"]);
    c.ack(3, tag);
    fill(&mut c, "co9", &["e"]);
    assert_eq!(bodies(delivered(&mut c, 3)), ["e"]);
}

/// CO-12: frames of one delivery come one behind the other, whatever else goes on on the channel.
#[test]
fn frames_of_a_delivery_are_contiguous() {
    let mut c = client();
    c.queue_declare(1, "co12", q(""));
    c.confirm_select(1);
    c.consume(1, "co12", "one");
    c.consume(1, "co12", "two");
    // Each takes three frames; the client accepts no other frame of a channel in between.
    let body = |number: u8| vec![number; 300_000];
    for number in 0..20 {
        c.publish(1, "", "co12", &Message::plain(body(number)));
    }
    for number in 0..20 {
        assert_eq!(c.next_delivery(1).message.body, body(number));
    }
    c.wait_confirms_upto(1, 20);
}

/// QS-4, VD-6: the global flag means one limit for all consumers of the channel, as it did up to 4.2.
#[test]
fn the_global_flag_is_honoured() {
    let mut c = client();
    c.queue_declare(1, "qs4", q(""));
    prefetch(&mut c, 1, 2, true);
    c.consume(1, "qs4", "one");
    c.consume(1, "qs4", "two");
    fill(&mut c, "qs4", &["a", "b", "c", "d"]);
    assert_eq!(delivered(&mut c, 1).len(), 2);
    assert_eq!(counts(&mut c, "qs4").0, 2);
}
