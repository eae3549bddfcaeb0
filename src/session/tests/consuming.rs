//! Consumers, get and acknowledgements (CO, QS, GT, AK).

use bytes::Bytes;

use super::support::*;
use crate::amqp::method::{Method, basic, channel, connection};
use crate::broker::command::{ConsumerId, Delivery, ReplyBody, Seq};
use crate::broker::outbox::{OutboxItem, OutboxItems, OutboxPlace};

/// Channel 1 with consumer 1, tag `c`.
fn consuming() -> Peer {
    let mut peer = Peer::with_channel();
    peer.method(1, consume("c")).serve();
    peer.expect(
        1,
        basic::ConsumeOk {
            consumer_tag: short("c"),
        },
    );
    peer.log.clear();
    peer
}

/// The same, with messages 1 to `count` delivered and not settled.
fn holding(count: u64) -> Peer {
    let mut peer = consuming();
    (1..=count).for_each(|seq| sent(peer.deliver(delivery(1, Some(1), seq))));
    peer.frames();
    peer
}

fn consume(tag: &str) -> basic::Consume {
    basic::Consume {
        queue: short("q"),
        consumer_tag: short(tag),
        ..Default::default()
    }
}

fn deliver(delivery_tag: u64) -> basic::Deliver {
    basic::Deliver {
        consumer_tag: short("c"),
        delivery_tag,
        redelivered: false,
        exchange: short("x"),
        routing_key: short("key"),
    }
}

fn ack(delivery_tag: u64, multiple: bool) -> Method {
    basic::Ack {
        delivery_tag,
        multiple,
    }
    .into()
}

#[test]
fn deliveries_are_numbered_over_all_consumers_and_gets_of_a_channel() {
    let mut peer = consuming();
    peer.deliver(delivery(1, Some(1), 5));
    peer.expect_content(1, deliver(1), b"hello");
    peer.deliver(Delivery {
        is_settled: true,
        ..delivery(1, Some(1), 6)
    });
    peer.expect_content(1, deliver(2), b"hello");
    let body = ReplyBody::Got {
        delivery: delivery(1, None, 7),
        remaining: 4,
    };
    peer.answers.push(reply(body, None));
    peer.method(
        1,
        basic::Get {
            queue: short("q"),
            ..Default::default()
        },
    )
    .serve();
    let get_ok = basic::GetOk {
        delivery_tag: 3,
        redelivered: false,
        exchange: short("x"),
        routing_key: short("key"),
        message_count: 4,
    };
    peer.expect_content(1, get_ok, b"hello");
    peer.method(1, ack(0, true)).serve();
    assert_eq!(peer.settled, [("Ack".into(), vec![5, 7])]);
}

#[test]
fn a_full_output_stops_a_run_of_deliveries_anywhere() {
    // Messages are looked at sixteen at a time.
    const COUNT: u64 = 40;
    let first = delivery(1, Some(1), 1);
    let run = (1..=COUNT).map(|seq| Delivery {
        seq: Seq(seq),
        ..first.clone()
    });
    let items = OutboxItems::of_deliveries(run);
    assert_eq!(items.list().len(), 1);
    for at_a_time in [1, 2, 15, 16, 17, 40] {
        let mut peer = consuming();
        let mut one = consuming();
        one.deliver(first.clone());
        let one_bytes = one.session.output_len();
        let mut done = OutboxPlace::default();
        let mut delivered_count = 0;
        while done.item == 0 {
            let max_bytes = peer.session.output_len() + (at_a_time - 1) * one_bytes + 1;
            let count = peer.session.handle_items(&items, &mut done, max_bytes);
            delivered_count += count;
            assert!(count == at_a_time as u64 || done.item == 1);
            assert_eq!(done.message as u64, delivered_count);
        }
        assert_eq!(delivered_count, COUNT);
        let frames = peer.frames();
        let heads: Vec<_> = frames.into_iter().step_by(3).collect();
        let expected = (1..=COUNT).map(|tag| (1, Method::from(deliver(tag))));
        assert!(methods(&heads).into_iter().eq(expected));
        peer.method(1, ack(COUNT - 1, true)).serve();
        assert_eq!(peer.settled, [("Ack".into(), (1..COUNT).collect())]);
    }
}

#[test]
fn large_bodies_are_cut_into_frames_without_a_copy() {
    let mut peer = consuming();
    let body = Bytes::from(vec![7; 200_000]);
    let message = crate::broker::message::Message::new(
        short("x"),
        short("key"),
        message(b"").properties().clone(),
        vec![body.clone()],
    );
    peer.deliver(Delivery {
        message: message.into(),
        ..delivery(1, Some(1), 1)
    });
    let frames = peer.frames();
    let sizes: Vec<usize> = frames
        .iter()
        .skip(2)
        .map(|frame| frame.payload.len())
        .collect();
    assert_eq!(sizes, [131_064, 68_936]);
}

#[test]
fn generated_tags_look_like_rabbitmqs_and_differ() {
    let mut peer = Peer::with_channel();
    peer.method(1, consume("")).method(1, consume("")).serve();
    let tags: Vec<String> = methods(&peer.frames())
        .into_iter()
        .map(|(_, method)| match method {
            Method::BasicConsumeOk(ok) => ok.consumer_tag.to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_ne!(tags[0], tags[1]);
    assert!(
        tags.iter()
            .all(|tag| tag.starts_with("amq.ctag-") && tag.len() == 9 + 22)
    );
}

#[test]
fn prefetch_counts_for_consumers_started_later() {
    let mut peer = Peer::with_channel();
    let qos = |prefetch_count, global| basic::Qos {
        prefetch_size: 0,
        prefetch_count,
        global,
    };
    peer.method(1, consume("a"))
        .method(1, qos(5, false))
        .method(1, consume("b"));
    peer.method(1, qos(9, true)).method(1, consume("c")).serve();
    peer.expect_log(&[
        "1 consume 'q' 'a' prefetch 0",
        "1 consume 'q' 'b' prefetch 5",
        "1 prefetch 9",
        "1 consume 'q' 'c' prefetch 5",
    ]);
    assert_eq!(peer.frames().len(), 5);
}

/// With deliveries 1 to 4 outstanding, `sent` settles these.
#[track_caller]
fn check_settled(methods: &[Method], expected: &[(&str, &[u64])]) {
    let mut peer = holding(4);
    methods
        .iter()
        .for_each(|method| sent(peer.method(1, method.clone())));
    peer.serve();
    let settled: Vec<(&str, &[u64])> = peer
        .settled
        .iter()
        .map(|(outcome, seqs)| (outcome.as_str(), &seqs[..]))
        .collect();
    assert_eq!(settled, expected);
    assert!(peer.frames().is_empty());
}

#[test]
fn acknowledgements_settle_what_they_name() {
    let nack = |delivery_tag, multiple, requeue| {
        basic::Nack {
            delivery_tag,
            multiple,
            requeue,
        }
        .into()
    };
    let reject = |delivery_tag, requeue| {
        basic::Reject {
            delivery_tag,
            requeue,
        }
        .into()
    };
    check_settled(&[ack(1, false)], &[("Ack", &[1])]);
    check_settled(&[ack(3, false), ack(1, false)], &[("Ack", &[3, 1])]);
    check_settled(&[ack(3, true)], &[("Ack", &[1, 2, 3])]);
    check_settled(&[ack(2, false), ack(3, true)], &[("Ack", &[2, 1, 3])]);
    check_settled(&[ack(0, true)], &[("Ack", &[1, 2, 3, 4])]);
    check_settled(&[ack(0, true), ack(0, true)], &[("Ack", &[1, 2, 3, 4])]);
    check_settled(&[nack(2, true, true)], &[("Return", &[1, 2])]);
    check_settled(&[nack(2, false, false)], &[("Reject", &[2])]);
    check_settled(
        &[reject(4, false), ack(2, true)],
        &[("Reject", &[4]), ("Ack", &[1, 2])],
    );
    check_settled(&[reject(4, true)], &[("Requeue", &[4])]);
    check_settled(
        &[basic::RecoverAsync { requeue: true }.into()],
        &[("Return", &[1, 2, 3, 4])],
    );
}

#[test]
fn recover_requeues_all_and_is_answered() {
    let mut peer = holding(2);
    peer.method(1, basic::Recover { requeue: true }).serve();
    assert_eq!(peer.settled, [("Return".into(), vec![1, 2])]);
    peer.expect(1, basic::RecoverOk {});
}

#[test]
fn unknown_delivery_tags_close_the_channel_and_the_rest_is_requeued() {
    #[track_caller]
    fn check(methods: &[Method], tag: u64, requeued: &[u64]) {
        let mut peer = holding(3);
        methods
            .iter()
            .for_each(|method| sent(peer.method(1, method.clone())));
        peer.serve();
        let text = format!("PRECONDITION_FAILED - unknown delivery tag {tag}");
        peer.expect_channel_close(1, 406, &text, methods[methods.len() - 1].id());
        assert_eq!(
            peer.settled.last(),
            Some(&("Close".to_owned(), requeued.to_vec()))
        );
    }
    check(&[ack(0, false)], 0, &[1, 2, 3]);
    check(&[ack(4, false)], 4, &[1, 2, 3]);
    check(&[ack(4, true)], 4, &[1, 2, 3]);
    check(&[ack(2, false), ack(2, false)], 2, &[1, 3]);
    check(&[ack(2, false), ack(2, true)], 2, &[1, 3]);
    check(&[ack(2, true), ack(1, true)], 1, &[3]);
    check(
        &[basic::Reject {
            delivery_tag: 9,
            requeue: true,
        }
        .into()],
        9,
        &[1, 2, 3],
    );
}

#[test]
fn tags_are_valid_on_their_own_channel_only() {
    let mut peer = holding(1);
    peer.open(2);
    peer.method(2, ack(1, false)).serve();
    peer.expect_channel_close(
        2,
        406,
        "PRECONDITION_FAILED - unknown delivery tag 1",
        basic::Ack::ID,
    );
}

#[test]
fn deliveries_taken_without_acknowledgement_cannot_be_acknowledged() {
    let mut peer = consuming();
    peer.deliver(Delivery {
        is_settled: true,
        ..delivery(1, Some(1), 1)
    });
    peer.frames();
    peer.method(1, ack(1, false)).serve();
    peer.expect_channel_close(
        1,
        406,
        "PRECONDITION_FAILED - unknown delivery tag 1",
        basic::Ack::ID,
    );
}

#[test]
fn a_cancelled_consumer_keeps_what_it_has_and_later_deliveries_go_back() {
    let mut peer = holding(1);
    peer.method(
        1,
        basic::Cancel {
            consumer_tag: short("c"),
            nowait: false,
        },
    )
    .serve();
    peer.expect_log(&["1 cancel 1"]);
    peer.expect(
        1,
        basic::CancelOk {
            consumer_tag: short("c"),
        },
    );
    peer.deliver(delivery(1, Some(1), 2)).serve();
    peer.expect_nothing();
    peer.method(1, ack(1, false)).serve();
    assert_eq!(
        peer.settled,
        [("Return".into(), vec![2]), ("Ack".into(), vec![1])]
    );
    peer.method(1, consume("c")).serve();
    peer.expect(
        1,
        basic::ConsumeOk {
            consumer_tag: short("c"),
        },
    );
}

#[test]
fn cancelling_an_unknown_tag_is_answered() {
    let mut peer = Peer::with_channel();
    peer.method(
        1,
        basic::Cancel {
            consumer_tag: short("z"),
            nowait: false,
        },
    )
    .serve();
    peer.expect(
        1,
        basic::CancelOk {
            consumer_tag: short("z"),
        },
    );
    peer.expect_log(&[]);
}

#[test]
fn a_consumer_cancelled_by_the_broker_is_told_if_it_can_hear_it() {
    let cancelled = || {
        OutboxItems::of_item(OutboxItem::ConsumerCancelled {
            channel: 1,
            consumer: ConsumerId(1),
        })
    };
    let mut peer = consuming();
    peer.hand(&cancelled());
    peer.expect(
        1,
        basic::Cancel {
            consumer_tag: short("c"),
            nowait: true,
        },
    );
    peer.method(
        1,
        basic::CancelOk {
            consumer_tag: short("c"),
        },
    )
    .serve();
    assert!(peer.session.is_running());
    let mut deaf = Peer::connected_with(crate::session::SessionOptions::default(), &[]);
    deaf.open(1);
    deaf.method(1, consume("c")).serve();
    deaf.frames();
    deaf.hand(&cancelled());
    deaf.expect_nothing();
}

#[test]
fn what_a_closing_channel_or_connection_holds_goes_back() {
    let mut peer = holding(2);
    peer.method(1, channel::Close::default());
    peer.session.receive(&mut peer.input, 0);
    peer.deliver(delivery(1, Some(1), 3)).serve();
    assert_eq!(peer.settled, [("Close".into(), vec![1, 2, 3])]);
    peer.deliver(delivery(1, Some(1), 4)).serve();
    assert_eq!(peer.settled.last(), Some(&("Return".into(), vec![4])));

    // Told no more, the client has not seen the third: it has not failed.
    let mut peer = holding(2);
    peer.session.begin_shutdown("end");
    peer.deliver(delivery(1, Some(1), 3)).serve();
    let closed = ("Close".into(), vec![1, 2]);
    assert_eq!(peer.settled, [closed, ("Return".into(), vec![3])]);

    let mut peer = holding(2);
    peer.method(0, connection::Close::default());
    peer.session.receive(&mut peer.input, 0);
    let _close = peer.session.poll_event();
    peer.deliver(delivery(1, Some(1), 3)).serve();
    assert_eq!(peer.settled, [("Return".into(), vec![3])]);
    peer.expect_log(&["0 settle 1 Return", "ended"]);
}

#[test]
fn a_get_from_disk_holds_its_channel_until_the_message_comes() {
    let mut peer = Peer::with_channel();
    peer.answers.push(reply(ReplyBody::GetPending, None));
    peer.method(
        1,
        basic::Get {
            queue: short("q"),
            ..Default::default()
        },
    );
    peer.method(1, basic::Qos::default()).serve();
    peer.expect_nothing();
    let got = Some(Box::new((delivery(1, None, 1), 0)));
    let item = OutboxItem::GetReady { channel: 1, got };
    peer.hand(&OutboxItems::of_item(item));
    let names: Vec<u16> = peer.frames().iter().map(|frame| frame.channel).collect();
    assert_eq!(names.len(), 4, "get-ok, header, body, qos-ok");
    peer.answers.push(reply(ReplyBody::GetPending, None));
    peer.method(
        1,
        basic::Get {
            queue: short("q"),
            ..Default::default()
        },
    )
    .serve();
    let item = OutboxItem::GetReady {
        channel: 1,
        got: None,
    };
    peer.hand(&OutboxItems::of_item(item));
    peer.expect(1, basic::GetEmpty::default());
}

#[test]
fn a_get_that_comes_too_late_goes_back() {
    let mut peer = Peer::with_channel();
    peer.answers.push(reply(ReplyBody::GetPending, None));
    peer.method(
        1,
        basic::Get {
            queue: short("q"),
            ..Default::default()
        },
    )
    .serve();
    peer.session.handle_eof();
    let got = Some(Box::new((delivery(1, None, 1), 0)));
    let item = OutboxItem::GetReady { channel: 1, got };
    peer.hand(&OutboxItems::of_item(item));
    peer.serve();
    // The client has not seen it: that is no failure.
    let returned = ("Return".into(), vec![1]);
    assert_eq!(peer.settled, [("Close".into(), vec![]), returned]);
}

#[test]
fn a_message_got_for_a_connection_that_fails_meanwhile_is_given_back() {
    let mut peer = Peer::with_channel();
    let body = ReplyBody::Got {
        delivery: delivery(1, None, 1),
        remaining: 0,
    };
    peer.answers.push(reply(body, None));
    peer.method(
        1,
        basic::Get {
            queue: short("q"),
            ..Default::default()
        },
    );
    peer.frame(9, 0, b"").serve();
    peer.expect_log(&[
        "1 get 'q' false",
        "1 close, 0 unacked",
        "0 settle 1 Return",
        "ended",
    ]);
}

#[test]
fn the_broker_may_force_the_end() {
    let mut peer = consuming();
    peer.session.begin_shutdown("vhost 'v' is deleted");
    peer.serve();
    peer.expect_connection_close(320, "CONNECTION_FORCED - vhost 'v' is deleted", (0, 0));
}

#[test]
fn whatever_the_broker_has_not_been_told_of_is_there_when_the_session_is_abandoned() {
    let mut peer = holding(5);
    peer.open(2);
    // Settled by the client, but the events were never taken.
    peer.method(1, ack(2, false)).method(1, ack(4, false));
    peer.session.receive(&mut peer.input, 0);
    let last = delivery(2, Some(9), 6);
    assert!(!peer.session.holds_last(&last));
    let mut held: Vec<u64> = {
        let held = peer.session.abandon();
        let ranges = held.iter().map(|one| one.seqs);
        ranges.flat_map(|seqs| seqs.first.0..=seqs.last.0).collect()
    };
    held.sort_unstable();
    assert_eq!(held, [1, 2, 3, 4, 5]);
    assert!(peer.session.abandon().is_empty());

    // After an orderly end there is nothing.
    let mut peer = holding(5);
    let last = delivery(1, Some(1), 6);
    peer.deliver(last.clone());
    assert!(peer.session.holds_last(&last));
    peer.session.handle_eof();
    peer.serve();
    assert_eq!(peer.settled, [("Close".into(), vec![1, 2, 3, 4, 5, 6])]);
    assert!(peer.session.abandon().is_empty());
}
