//! Transactions (TX).

use super::support::*;
use crate::amqp::method::{Method, basic, channel, confirm, tx};
use crate::amqp::reply_code::ChannelReplyCode;
use crate::broker::command::{ConfirmAt, Lsn, Published, ReplyBody};
use crate::broker::error::BrokerError;

/// A transactional channel 1 with consumer 1 and deliveries 1 to 3.
fn transactional() -> Peer {
    let mut peer = Peer::with_channel();
    peer.method(1, tx::Select {});
    peer.method(
        1,
        basic::Consume {
            queue: short("q"),
            consumer_tag: short("c"),
            ..Default::default()
        },
    );
    peer.serve();
    (1..=3).for_each(|seq| sent(peer.deliver(delivery(1, Some(1), seq))));
    peer.frames();
    peer.log.clear();
    peer
}

fn ack(delivery_tag: u64) -> Method {
    basic::Ack {
        delivery_tag,
        multiple: false,
    }
    .into()
}

#[test]
fn commit_hands_over_publishes_and_settlements_in_order() {
    let mut peer = transactional();
    peer.publish(1, false, b"a")
        .method(1, ack(2))
        .publish(1, false, b"b");
    peer.method(
        1,
        basic::Reject {
            delivery_tag: 1,
            requeue: true,
        },
    )
    .serve();
    peer.expect_log(&["1 check", "1 check"]);
    peer.method(1, tx::Commit {}).serve();
    peer.expect_log(&["1 commit 2 publishes, 2 settlements"]);
    assert_eq!(
        peer.settled,
        [("TxAck".into(), vec![2]), ("TxRequeue".into(), vec![1])]
    );
    peer.expect(1, tx::CommitOk {});
    peer.method(1, tx::Commit {}).serve();
    peer.expect_log(&["1 commit 0 publishes, 0 settlements"]);
}

#[test]
fn rollback_drops_publishes_and_brings_the_tags_back() {
    let mut peer = transactional();
    peer.publish(1, false, b"a")
        .method(1, ack(2))
        .method(1, ack(1))
        .method(1, tx::Rollback {})
        .serve();
    peer.expect(1, tx::RollbackOk {});
    peer.method(
        1,
        basic::Ack {
            delivery_tag: 2,
            multiple: true,
        },
    )
    .method(1, tx::Commit {})
    .serve();
    assert_eq!(peer.settled, [("TxAck".into(), vec![1, 2])]);
    peer.expect(1, tx::CommitOk {});
}

#[test]
fn unknown_tags_fail_at_once_and_what_was_acked_is_requeued() {
    let mut peer = transactional();
    peer.method(1, ack(2)).method(1, ack(2)).serve();
    let text = "PRECONDITION_FAILED - unknown delivery tag 2";
    peer.expect_channel_close(1, 406, text, basic::Ack::ID);
    assert_eq!(peer.settled, [("Close".into(), vec![1, 2, 3])]);
}

#[test]
fn closing_rolls_back() {
    let mut peer = transactional();
    peer.publish(1, false, b"a")
        .method(1, ack(1))
        .method(1, channel::Close::default())
        .serve();
    peer.expect_log(&["1 check", "1 close, 3 unacked"]);
}

#[test]
fn commit_ok_waits_for_the_disk_and_comes_after_the_returns() {
    let mut peer = transactional();
    let unroutable = Published {
        confirm: ConfirmAt::Now,
        is_unroutable: true,
    };
    let body = ReplyBody::Committed {
        published: vec![unroutable, unroutable],
    };
    peer.answers.push(reply(body, Some(8)));
    peer.publish(1, false, b"a")
        .publish(1, true, b"b")
        .method(1, tx::Commit {})
        .serve();
    peer.expect_nothing();
    peer.session.handle_durable(Lsn(8));
    let frames = peer.frames();
    assert_eq!(frames.len(), 4, "return, header, body, commit-ok");
    assert_eq!(&frames[2].payload[..], b"b");
    assert_eq!(methods(&frames[3..]), [(1, tx::CommitOk {}.into())]);
}

#[test]
fn a_queue_that_refuses_a_publish_fails_the_commit() {
    let mut peer = transactional();
    let body = ReplyBody::Committed {
        published: vec![published(ConfirmAt::Nack)],
    };
    peer.answers.push(reply(body, None));
    peer.publish(1, false, b"a")
        .method(1, ack(1))
        .method(1, tx::Commit {})
        .serve();
    let text = "PRECONDITION_FAILED - partial tx completion";
    peer.expect_channel_close(1, 406, text, tx::Commit::ID);
    assert_eq!(peer.settled.last(), Some(&("Close".into(), vec![2, 3])));
}

#[test]
fn a_commit_that_the_broker_refuses_settles_nothing() {
    let mut peer = transactional();
    let error = BrokerError::channel(ChannelReplyCode::PreconditionFailed, "too large");
    peer.answers.push(Err(error));
    peer.method(1, ack(1)).method(1, tx::Commit {}).serve();
    peer.expect_channel_close(1, 406, "PRECONDITION_FAILED - too large", tx::Commit::ID);
    assert_eq!(peer.settled.last(), Some(&("Close".into(), vec![1, 2, 3])));
}

#[test]
fn a_publish_is_checked_when_it_comes() {
    let mut peer = transactional();
    let error = BrokerError::channel(ChannelReplyCode::NotFound, "no exchange 'x' in vhost '/'");
    peer.publish_refusal = Some(error);
    peer.publish(1, false, b"a").publish(1, false, b"b").serve();
    let text = "NOT_FOUND - no exchange 'x' in vhost '/'";
    peer.expect_channel_close(1, 404, text, basic::Publish::ID);
    peer.expect_log(&["1 check", "1 close, 3 unacked"]);
}

#[test]
fn a_commit_behind_a_refused_publish_gives_back_what_it_would_have_settled() {
    // The commit is in the list of things to do when the publish before it fails the channel.
    let mut peer = transactional();
    let error = BrokerError::channel(ChannelReplyCode::NotFound, "no exchange 'x' in vhost '/'");
    peer.publish_refusal = Some(error);
    peer.method(1, ack(1))
        .publish(1, false, b"a")
        .method(1, tx::Commit {})
        .serve();
    let text = "NOT_FOUND - no exchange 'x' in vhost '/'";
    peer.expect_channel_close(1, 404, text, basic::Publish::ID);
    let (outcome, mut seqs) = peer.settled.pop().expect("the channel is closed");
    seqs.sort_unstable();
    assert_eq!((outcome.as_str(), seqs), ("Close", vec![1, 2, 3]));
}

#[test]
fn misuse_closes_the_channel() {
    let check = |first: Option<Method>, second: Method, text: &str| {
        let mut peer = Peer::with_channel();
        first
            .into_iter()
            .for_each(|method| sent(peer.method(1, method)));
        peer.serve();
        peer.frames();
        let id = second.id();
        peer.method(1, second).serve();
        peer.expect_channel_close(1, 406, &format!("PRECONDITION_FAILED - {text}"), id);
    };
    check(None, tx::Commit {}.into(), "channel is not transactional");
    check(None, tx::Rollback {}.into(), "channel is not transactional");
    let confirm = confirm::Select { nowait: false };
    check(
        Some(tx::Select {}.into()),
        confirm.into(),
        "cannot switch from tx to confirm mode",
    );
}

#[test]
fn a_transaction_is_limited() {
    let options = crate::session::SessionOptions {
        tx_max_bytes: 100,
        ..Default::default()
    };
    let mut peer = Peer::connected_with(options, &[]);
    peer.open(1);
    peer.method(1, tx::Select {}).serve();
    peer.frames();
    peer.publish(1, false, &[b'x'; 90])
        .publish(1, false, &[b'x'; 90])
        .serve();
    let text = "PRECONDITION_FAILED - transaction is larger than 100 bytes";
    peer.expect_channel_close(1, 406, text, basic::Publish::ID);
}
