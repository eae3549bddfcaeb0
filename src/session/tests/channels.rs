//! The life of channels, their commands and the frames they hold back (CH-1 to CH-12).

use super::support::*;
use crate::amqp::method::{access, basic, channel, exchange, queue};
use crate::amqp::reply_code::{ChannelReplyCode, ConnectionReplyCode};
use crate::broker::command::{Lsn, ReplyBody};
use crate::broker::error::BrokerError;
use crate::session::SessionOptions;

fn not_found() -> BrokerError {
    BrokerError::channel(ChannelReplyCode::NotFound, "no queue 'q' in vhost '/'")
}

fn declare(name: &str) -> queue::Declare {
    queue::Declare {
        queue: short(name),
        ..Default::default()
    }
}

fn declare_ok(name: &str) -> queue::DeclareOk {
    queue::DeclareOk {
        queue: short(name),
        message_count: 0,
        consumer_count: 0,
    }
}

#[test]
fn a_closed_channel_number_may_be_used_again_at_once() {
    let mut peer = Peer::with_channel();
    peer.method(1, channel::Close::default())
        .method(1, channel::Open::default())
        .serve();
    peer.expect_all(&[
        (1, channel::CloseOk {}.into()),
        (1, channel::OpenOk::default().into()),
    ]);
    peer.expect_log(&["1 close, 0 unacked"]);
}

#[test]
fn a_failed_channel_ignores_everything_until_close_ok() {
    let mut peer = Peer::with_channel();
    peer.answers.push(Err(not_found()));
    peer.method(
        1,
        queue::Purge {
            queue: short("q"),
            ..Default::default()
        },
    );
    peer.publish(1, false, b"late")
        .method(1, declare("late"))
        .serve();
    peer.expect_channel_close(
        1,
        404,
        "NOT_FOUND - no queue 'q' in vhost '/'",
        queue::Purge::ID,
    );
    peer.expect_log(&["1 queue.purge 'q'", "1 close, 0 unacked"]);
    peer.publish(1, false, b"later")
        .method(1, declare("later"))
        .frame(1, 1, &[0, 0])
        .serve();
    peer.expect_log(&[]);
    peer.expect_nothing();
    peer.method(1, channel::Close::default()).serve();
    peer.expect(1, channel::CloseOk {});
    peer.method(1, channel::CloseOk {})
        .method(1, channel::Open::default())
        .serve();
    peer.expect(1, channel::OpenOk::default());
}

#[test]
fn opening_a_channel_that_awaits_close_ok_is_fatal() {
    let mut peer = Peer::with_channel();
    peer.method(1, queue::Purge::default()).serve();
    let text = "NOT_FOUND - no previously declared queue";
    peer.expect_channel_close(1, 404, text, queue::Purge::ID);
    peer.method(1, channel::Open::default()).serve();
    peer.expect_connection_close(504, "CHANNEL_ERROR - second 'channel.open' seen", (20, 10));
}

#[test]
fn channel_closes_may_cross_in_one_burst() {
    let mut peer = Peer::with_channel();
    peer.method(
        1,
        basic::Ack {
            delivery_tag: 1,
            multiple: false,
        },
    );
    peer.method(1, channel::Close::default()).serve();
    let text = "PRECONDITION_FAILED - unknown delivery tag 1";
    let close = channel_close(406, text, basic::Ack::ID);
    peer.expect_all(&[(1, close.into()), (1, channel::CloseOk {}.into())]);
    peer.method(1, channel::CloseOk {})
        .method(1, channel::Open::default())
        .serve();
    peer.expect(1, channel::OpenOk::default());
}

#[test]
fn other_channels_live_on_when_one_fails() {
    let mut peer = Peer::with_channel();
    peer.open(2);
    peer.method(1, queue::Purge::default())
        .method(2, declare("q"))
        .serve();
    let close = channel_close(
        404,
        "NOT_FOUND - no previously declared queue",
        queue::Purge::ID,
    );
    peer.expect_all(&[(1, close.into()), (2, declare_ok("q").into())]);
}

#[test]
fn a_connection_error_of_the_broker_closes_the_connection() {
    let mut peer = Peer::with_channel();
    peer.open(2);
    let error = BrokerError::connection(ConnectionReplyCode::NotImplemented, "nobody has it");
    peer.answers.push(Err(error));
    peer.method(1, declare("q")).serve();
    peer.expect_connection_close(540, "NOT_IMPLEMENTED - nobody has it", (50, 10));
    peer.expect_log(&[
        "1 queue.declare 'q'",
        "1 close, 0 unacked",
        "2 close, 0 unacked",
        "ended",
    ]);
}

#[test]
fn an_empty_queue_name_is_the_one_declared_last_on_this_channel() {
    let mut peer = Peer::with_channel();
    peer.method(1, declare("")).method(
        1,
        queue::Bind {
            exchange: short("x"),
            ..Default::default()
        },
    );
    peer.method(
        1,
        queue::Bind {
            exchange: short("x"),
            routing_key: short("k"),
            ..Default::default()
        },
    );
    peer.method(
        1,
        queue::Bind {
            queue: short("r"),
            exchange: short("x"),
            ..Default::default()
        },
    );
    peer.method(
        1,
        queue::Unbind {
            exchange: short("x"),
            ..Default::default()
        },
    );
    peer.method(1, declare("q"))
        .method(1, queue::Purge::default())
        .method(1, basic::Get::default());
    peer.method(1, queue::Delete::default()).serve();
    peer.expect_log(&[
        "1 queue.declare ''",
        "1 bind 'amq.gen-1' 'x' 'amq.gen-1'",
        "1 bind 'amq.gen-1' 'x' 'k'",
        "1 bind 'r' 'x' ''",
        "1 unbind 'amq.gen-1' 'x' 'amq.gen-1'",
        "1 queue.declare 'q'",
        "1 queue.purge 'q'",
        "1 get 'q' false",
        "1 queue.delete 'q'",
    ]);
    peer.expect_all(&[
        (1, declare_ok("amq.gen-1").into()),
        (1, queue::BindOk {}.into()),
        (1, queue::BindOk {}.into()),
        (1, queue::BindOk {}.into()),
        (1, queue::UnbindOk {}.into()),
        (1, declare_ok("q").into()),
        (1, queue::PurgeOk { message_count: 3 }.into()),
        (1, basic::GetEmpty::default().into()),
        (1, queue::DeleteOk { message_count: 3 }.into()),
    ]);
}

#[test]
fn nowait_is_not_answered_but_errors_are() {
    let mut peer = Peer::with_channel();
    let queue = short("q");
    peer.method(
        1,
        queue::Declare {
            nowait: true,
            ..declare("q")
        },
    );
    peer.method(
        1,
        queue::Bind {
            nowait: true,
            ..Default::default()
        },
    );
    peer.method(
        1,
        queue::Purge {
            nowait: true,
            ..Default::default()
        },
    );
    peer.method(
        1,
        queue::Delete {
            nowait: true,
            ..Default::default()
        },
    );
    peer.method(
        1,
        exchange::Declare {
            nowait: true,
            ..Default::default()
        },
    );
    peer.method(
        1,
        exchange::Delete {
            nowait: true,
            ..Default::default()
        },
    );
    peer.method(
        1,
        exchange::Bind {
            nowait: true,
            ..Default::default()
        },
    );
    peer.method(
        1,
        exchange::Unbind {
            nowait: true,
            ..Default::default()
        },
    );
    peer.method(
        1,
        basic::Consume {
            nowait: true,
            consumer_tag: short("c"),
            ..Default::default()
        },
    );
    peer.method(
        1,
        basic::Cancel {
            nowait: true,
            consumer_tag: short("c"),
        },
    );
    peer.method(
        1,
        basic::Cancel {
            nowait: true,
            consumer_tag: short("unknown"),
        },
    )
    .serve();
    peer.expect_nothing();
    assert_eq!(peer.log.len(), 10);
    peer.answers.push(Err(not_found()));
    peer.method(
        1,
        queue::Purge {
            queue,
            nowait: true,
            ..Default::default()
        },
    )
    .serve();
    peer.expect_channel_close(
        1,
        404,
        "NOT_FOUND - no queue 'q' in vhost '/'",
        queue::Purge::ID,
    );
}

#[test]
fn exchanges_are_answered() {
    let mut peer = Peer::with_channel();
    peer.method(1, exchange::Declare::default())
        .method(1, exchange::Bind::default());
    peer.method(1, exchange::Unbind::default())
        .method(1, exchange::Delete::default())
        .serve();
    peer.expect_all(&[
        (1, exchange::DeclareOk {}.into()),
        (1, exchange::BindOk {}.into()),
        (1, exchange::UnbindOk {}.into()),
        (1, exchange::DeleteOk {}.into()),
    ]);
}

#[test]
fn flow_and_access_are_answered() {
    let mut peer = Peer::with_channel();
    peer.method(1, channel::Flow { active: true })
        .method(1, access::Request::default())
        .serve();
    peer.expect_all(&[
        (1, channel::FlowOk { active: true }.into()),
        (1, access::RequestOk { ticket: 1 }.into()),
    ]);
}

#[test]
fn a_reply_waits_for_the_disk_and_holds_its_channel_only() {
    let mut peer = Peer::with_channel();
    peer.open(2);
    let body = ReplyBody::QueueDeclared {
        queue: short("q"),
        messages: 0,
        consumers: 0,
    };
    peer.answers.push(reply(body, Some(10)));
    peer.method(1, declare("q"))
        .method(1, queue::Purge::default())
        .method(2, declare("r"))
        .serve();
    peer.expect(2, declare_ok("r"));
    assert_eq!(peer.session.first_pending_lsn(), Some(Lsn(10)));
    peer.session.handle_durable(Lsn(9));
    peer.serve().expect_nothing();
    peer.session.handle_durable(Lsn(10));
    peer.serve();
    peer.expect_all(&[
        (1, declare_ok("q").into()),
        (1, queue::PurgeOk { message_count: 3 }.into()),
    ]);
    assert_eq!(peer.session.first_pending_lsn(), None);
}

#[test]
fn too_much_held_back_stops_the_reading() {
    let mut peer = Peer::with_channel();
    peer.answers.push(reply(ReplyBody::Done, Some(10)));
    peer.method(1, exchange::Declare::default());
    for _ in 0..super::super::HELD_FRAMES_MAX + 10 {
        peer.method(1, channel::Flow { active: true });
    }
    peer.serve();
    assert!(!peer.session.wants_input() && !peer.input.is_empty());
    peer.session.handle_durable(Lsn(10));
    assert!(peer.session.has_stalled_input());
    peer.serve();
    assert_eq!(peer.frames().len(), super::super::HELD_FRAMES_MAX + 11);
    assert!(peer.input.is_empty());
}

#[test]
fn a_client_that_takes_no_answers_is_not_read() {
    let mut peer = Peer::with_channel();
    for _ in 0..100_000 {
        peer.method(1, channel::Flow { active: true });
    }
    peer.serve();
    assert!(!peer.session.wants_input() && !peer.input.is_empty());
    assert!(peer.session.output_len() < super::super::OUTPUT_HIGH_BYTES + 100);
    let mut count = 0;
    while !peer.input.is_empty() {
        count += peer.frames().len();
        peer.serve();
    }
    assert_eq!(count + peer.frames().len(), 100_000);
}

#[test]
fn without_room_nothing_is_read() {
    let mut peer = Peer::with_channel();
    peer.session.set_has_room(false);
    peer.method(1, channel::Flow { active: true }).serve();
    peer.expect_nothing();
    peer.session.set_has_room(true);
    peer.serve();
    peer.expect(1, channel::FlowOk { active: true });
}

#[test]
fn contents_of_channels_may_be_interleaved_and_empty_frames_are_skipped() {
    let mut peer = Peer::with_channel();
    peer.open(2);
    peer.method(1, basic::Publish::default())
        .method(2, basic::Publish::default());
    peer.header(1, 60, 4).header(2, 60, 2);
    peer.frame(3, 1, b"ab")
        .frame(3, 1, b"")
        .frame(3, 2, b"xy")
        .frame(3, 1, b"cd")
        .serve();
    peer.expect_log(&["2 publish xy", "1 publish abcd"]);
    peer.publish(1, false, b"").serve();
    peer.expect_log(&["1 publish "]);
}

#[test]
fn a_large_message_is_refused_after_it_has_arrived() {
    let options = SessionOptions {
        message_max_bytes: 3,
        ..SessionOptions::default()
    };
    let mut peer = Peer::connected_with(options, &[]);
    peer.open(1);
    peer.publish(1, false, b"abc").serve();
    peer.expect_log(&["1 publish abc"]);
    peer.method(1, basic::Publish::default())
        .header(1, 60, 4)
        .frame(3, 1, b"ab")
        .serve();
    peer.expect_nothing();
    peer.frame(3, 1, b"cd").serve();
    let text = "PRECONDITION_FAILED - message size 4 is larger than configured max size 3";
    peer.expect_channel_close(1, 406, text, basic::Publish::ID);
}

#[test]
fn a_session_at_rest_holds_no_buffers_and_goes_on() {
    let mut peer = Peer::with_channel();
    peer.publish(1, false, b"abc").serve();
    peer.expect_log(&["1 publish abc"]);
    peer.output_bytes();
    assert!(peer.session.has_spare());
    peer.session.rest();
    assert!(!peer.session.has_spare());
    peer.method(1, channel::Flow { active: true }).serve();
    peer.expect(1, channel::FlowOk { active: true });
}

#[test]
fn a_burst_of_commands_leaves_no_room_behind_that_nobody_needs() {
    let mut peer = Peer::with_channel();
    for _ in 0..1000 {
        peer.method(
            1,
            queue::Declare {
                nowait: true,
                ..queue::Declare::default()
            },
        );
    }
    peer.serve();
    let held = peer.session.channels[&1].held.capacity();
    assert!(held <= 32, "{held}");
}
