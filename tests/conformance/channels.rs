//! Section 5 and 4.5: channels, and what ends the whole connection.

use stratamq::amqp::method::{access, basic, channel, connection, exchange, queue, tx};

use super::stage::*;
use crate::support::raw::{Client, Login, Message, Trouble, text};

/// CH-1, CH-2.
#[test]
fn any_channel_number_may_be_opened() {
    let mut c = client();
    for number in [2, 2047, 2048, 65535] {
        c.send(number, channel::Open::default());
        let open_ok: channel::OpenOk = c.expect(number);
        assert!(open_ok.channel_id.is_empty());
    }
}

/// Section 4.5: channel methods that end the connection.
#[test]
fn misuse_of_channels_ends_the_connection() {
    fatal(
        channel::Open::default(),
        504,
        "CHANNEL_ERROR - second 'channel.open' seen",
    );
    fatal(
        channel::Flow { active: false },
        540,
        "NOT_IMPLEMENTED - active=false",
    );
    fatal(
        basic::Recover { requeue: false },
        540,
        "NOT_IMPLEMENTED - requeue=false",
    );
    fatal(
        basic::RecoverAsync { requeue: false },
        540,
        "NOT_IMPLEMENTED - requeue=false",
    );
    // QS-1.
    let qos = basic::Qos {
        prefetch_size: 1,
        ..basic::Qos::default()
    };
    fatal(qos, 540, "NOT_IMPLEMENTED - prefetch_size!=0 (1)");
}

/// Section 4.5: a method on a channel that was never opened, close-ok included.
#[test]
fn an_unopened_channel_takes_nothing_but_open() {
    let text = "CHANNEL_ERROR - expected 'channel.open'";
    let mut c = client();
    c.send(7, get("x"));
    connection_closed(&mut c, 504, text, basic::Get::ID);
    let mut c = client();
    c.send(7, channel::CloseOk {});
    connection_closed(&mut c, 504, text, channel::CloseOk::ID);
}

/// CH-1, section 4.5: the number of open channels counts, not their numbers.
#[test]
fn channel_max_limits_how_many_are_open() {
    let mut c = tuned(2);
    c.open_channel(7);
    c.open_channel(9);
    c.close_channel(9);
    c.open_channel(3);
    c.send(4, channel::Open::default());
    let close = c.wait_connection_close();
    assert_eq!(
        (close.reply_code, close.reply_text.as_str(), close.class_id),
        (
            530,
            "NOT_ALLOWED - number of channels opened (2) has reached the negotiated channel_max (2)",
            0
        )
    );
}

/// A connection with that channel_max.
fn tuned(channel_max: u16) -> Client {
    let mut c = Client::connect_tcp(address());
    let login = Login::default();
    c.send_bytes(b"AMQP\x00\x00\x09\x01").expect("sent");
    c.expect::<connection::Start>(0);
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
    c.send(
        0,
        connection::TuneOk {
            channel_max,
            frame_max: tune.frame_max,
            heartbeat: 0,
        },
    );
    let open = connection::Open {
        virtual_host: text("/"),
        ..connection::Open::default()
    };
    c.call::<connection::OpenOk>(0, open);
    c
}

/// CH-3, AK-11: close gives everything back, then answers, then the number is free.
#[test]
fn closing_a_channel_requeues_what_it_held() {
    let mut c = client();
    c.queue_declare(1, "ch3", q(""));
    fill(&mut c, "ch3", &["a", "b", "c"]);
    c.open_channel(2);
    c.try_qos(2, 2).expect("qos");
    c.consume(2, "ch3", "t");
    c.next_delivery(2);
    c.next_delivery(2);
    c.tx_select(1);
    c.publish(1, "", "ch3", &Message::plain("never committed"));
    c.close_channel(2);
    c.close_channel(1);
    c.open_channel(1);
    assert_eq!(counts(&mut c, "ch3"), (3, 0));
    c.open_channel(2);
    let got = drain_all(&mut c, "ch3");
    let seen: Vec<_> = got
        .iter()
        .map(|got| (got.message.body_text(), got.is_redelivered))
        .collect();
    assert_eq!(
        seen,
        [
            ("a".to_owned(), true),
            ("b".to_owned(), true),
            ("c".to_owned(), false)
        ]
    );
}

/// CH-4: after its own close the server ignores everything but close and close-ok.
#[test]
fn a_closed_channel_ignores_everything_until_close_ok() {
    let mut c = client();
    c.queue_declare(1, "ch4", q(""));
    c.open_channel(2);
    // All in one burst: the error, then what must be ignored.
    c.push(2, get("ch4.none"));
    c.push_publish(2, "", "ch4", &Message::plain("ignored"));
    c.push(2, q("ch4.new"));
    c.push(
        2,
        basic::Ack {
            delivery_tag: 77,
            multiple: false,
        },
    );
    c.flush().expect("sent");
    channel_closed(
        &mut c,
        2,
        404,
        "NOT_FOUND - no queue 'ch4.none' in vhost '/'",
        basic::Get::ID,
    );
    // The client has answered with close-ok, so the number is free again.
    c.open_channel(2);
    assert_eq!(counts(&mut c, "ch4"), (0, 0));
    refused(
        &mut c,
        queue::Declare {
            passive: true,
            ..q("ch4.new")
        },
        404,
        "NOT_FOUND - no queue 'ch4.new' in vhost '/'",
    );
}

/// CH-4: crossing closes.
#[test]
fn a_close_that_crosses_the_servers_is_answered() {
    let mut c = client();
    c.open_channel(2);
    c.push(2, get("ch4.none"));
    c.push(
        2,
        channel::Close {
            reply_code: 200,
            ..channel::Close::default()
        },
    );
    c.flush().expect("sent");
    channel_closed(
        &mut c,
        2,
        404,
        "NOT_FOUND - no queue 'ch4.none' in vhost '/'",
        basic::Get::ID,
    );
    c.expect::<channel::CloseOk>(2);
    c.open_channel(2);
}

/// CH-6.
#[test]
fn flow_is_echoed() {
    let mut c = client();
    let flow_ok: channel::FlowOk = c.call(1, channel::Flow { active: true });
    assert!(flow_ok.active);
    fatal(
        channel::FlowOk { active: true },
        503,
        "COMMAND_INVALID - unimplemented method",
    );
}

/// Section 2.2.
#[test]
fn access_request_gets_a_ticket() {
    let mut c = client();
    c.send(1, access::Request::default());
    let incoming = c.next(1);
    let stratamq::amqp::method::Method::AccessRequestOk(ok) = incoming.method else {
        panic!("{incoming:?}");
    };
    assert_eq!(ok.ticket, 1);
}

/// CH-7, CH-9: pipelined requests are answered in order, and get and deliver share the tags.
#[test]
fn requests_of_a_channel_are_answered_in_order() {
    let mut c = client();
    c.push(1, q("ch7"));
    for body in ["a", "b", "c"] {
        c.push_publish(1, "", "ch7", &Message::plain(body));
    }
    c.push(
        1,
        basic::Get {
            no_ack: true,
            ..get("ch7")
        },
    );
    c.push(1, consume("ch7", "t"));
    c.push(1, tx::Select {});
    c.flush().expect("sent");
    c.expect::<queue::DeclareOk>(1);
    assert_eq!(c.expect::<basic::GetOk>(1).delivery_tag, 1);
    c.expect::<basic::ConsumeOk>(1);
    c.expect::<tx::SelectOk>(1);
    let tags: Vec<u64> = (0..2).map(|_| c.next_delivery(1).tag).collect();
    assert_eq!(tags, [2, 3]);
}

/// FR-10: contents of two channels, interleaved frame by frame.
#[test]
fn channels_interleave_their_contents() {
    use stratamq::amqp::frame::FrameKind;
    let mut c = client();
    c.open_channel(2);
    c.queue_declare(1, "fr10", q(""));
    c.push(1, publish("", "fr10"));
    c.push(2, publish("", "fr10"));
    c.flush().expect("sent");
    let header = b"\x00\x3c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00";
    for channel in [1, 2] {
        c.send_frame(FrameKind::Header, channel, header);
    }
    for (channel, part) in [(2, b"B-"), (1, b"A-"), (1, b"ok"), (2, b"ok")] {
        c.send_frame(FrameKind::Body, channel, part);
    }
    settle(&mut c, 1);
    settle(&mut c, 2);
    let mut bodies = drain(&mut c, "fr10");
    bodies.sort();
    assert_eq!(bodies, ["A-ok", "B-ok"]);
}

/// ER-3, ER-5: an error closes its channel only.
#[test]
fn an_error_on_one_channel_leaves_the_others_alone() {
    let mut c = client();
    c.queue_declare(1, "er5", q(""));
    fill(&mut c, "er5", &["m"]);
    c.open_channel(2);
    c.consume(2, "er5", "t");
    c.next_delivery(2);
    c.ack(2, 9);
    match c.try_next(2) {
        Err(Trouble::ChannelClosed(close)) => assert_eq!(
            close.reply_text.as_str(),
            "PRECONDITION_FAILED - unknown delivery tag 9"
        ),
        other => panic!("{other:?}"),
    }
    // Requeued before the close was sent.
    assert_eq!(counts(&mut c, "er5"), (1, 0));
    assert!(c.get(1, "er5").expect("requeued").is_redelivered);
}

/// CH-5: a channel that was closed by the broker may be opened again only after the client has said close-ok.
#[test]
fn a_channel_that_awaits_close_ok_cannot_be_opened() {
    let mut c = client();
    c.push(1, get("ch5.none"));
    c.push(
        1,
        channel::Open {
            ..channel::Open::default()
        },
    );
    c.flush().expect("the broker reads");
    connection_closed(
        &mut c,
        504,
        "CHANNEL_ERROR - second 'channel.open' seen",
        channel::Open::ID,
    );
}

/// CH-8: what one channel publishes to one queue comes out in that order, by whichever exchange it came.
#[test]
fn publishes_of_a_channel_keep_their_order() {
    let mut c = client();
    c.queue_declare(1, "ch8", q(""));
    c.bind(1, "ch8", "amq.direct", "ch8.direct");
    c.bind(1, "ch8", "amq.topic", "ch8.topic.*");
    let ways = [
        ("", "ch8"),
        ("amq.direct", "ch8.direct"),
        ("amq.topic", "ch8.topic.a"),
    ];
    let bodies: Vec<String> = (0..300).map(|number| number.to_string()).collect();
    for (body, (exchange, key)) in bodies.iter().zip(ways.iter().cycle()) {
        c.push_publish(1, exchange, key, &Message::plain(body.clone()));
    }
    c.flush().expect("the broker reads");
    settle(&mut c, 1);
    assert_eq!(drain(&mut c, "ch8"), bodies);
}

/// ER-1: a text is at most 255 bytes; what is longer ends in dots.
#[test]
fn long_texts_are_cut() {
    let mut c = client();
    let name = "e".repeat(255);
    c.send(1, get(&name));
    let close = match c.try_next(1) {
        Err(Trouble::ChannelClosed(close)) => close,
        other => panic!("{other:?}"),
    };
    let said = close.reply_text.as_str();
    assert_eq!((close.reply_code, said.len()), (404, 255));
    assert!(
        said.starts_with("NOT_FOUND - no queue 'eee") && said.ends_with("e..."),
        "{said}"
    );
}

/// ER-2, ER-4: what asks for no answer is refused all the same, and the method is named.
#[test]
fn methods_without_an_answer_are_refused_aloud() {
    let mut c = client();
    let nowait = queue::Bind {
        nowait: true,
        ..bind("er4.none", "amq.direct", "")
    };
    refused(
        &mut c,
        nowait,
        404,
        "NOT_FOUND - no queue 'er4.none' in vhost '/'",
    );
    let delete = exchange::Delete {
        nowait: true,
        ..x_delete("amq.direct")
    };
    refused(
        &mut c,
        delete,
        403,
        "ACCESS_REFUSED - deletion of system exchange 'amq.direct' in vhost '/' not allowed",
    );
    let ack = basic::Ack {
        delivery_tag: 1,
        multiple: false,
    };
    refused(
        &mut c,
        ack,
        406,
        "PRECONDITION_FAILED - unknown delivery tag 1",
    );
}
