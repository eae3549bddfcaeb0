//! Limits and time-outs, each small enough to be reached.

use std::time::Duration;

use stratamq::amqp::frame::FrameKind;
use stratamq::amqp::method::{Method, basic, channel, connection};

use super::support::TestBroker;
use super::support::raw::{Client, Login, Message, text, transient};
use super::support::wait::wait_until_ok;
use super::{broker, refusal};

/// CN-36, LM-6: the limit of the node comes first, and is one of connections that are open.
#[test]
fn connections_are_limited() {
    let broker = broker(&["--max-connections", "2"]);
    let nowhere = Login {
        vhost: "none".into(),
        ..Login::default()
    };
    let first = Client::connect(broker.address());
    // A connection that does not get in takes no place.
    for _ in 0..3 {
        let (code, text) = refusal(Client::try_login(broker.address(), &nowhere));
        assert_eq!(
            (code, text.as_str()),
            (530, "NOT_ALLOWED - vhost none not found")
        );
    }
    let second = Client::connect(broker.address());
    for login in [&Login::default(), &nowhere] {
        let (code, text) = refusal(Client::try_login(broker.address(), login));
        let told = "NOT_ALLOWED - connection refused: node connection limit (2) is reached";
        assert_eq!((code, text.as_str()), (530, told));
    }
    first.close();
    Client::connect(broker.address()).close();
    second.close();
}

/// LM-6: channels of all connections together.
#[test]
fn channels_of_the_node_are_limited() {
    let broker = broker(&["--max-channels", "3"]);
    let mut first = Client::connect(broker.address());
    first.open_channel(1);
    first.open_channel(2);
    let mut second = Client::connect(broker.address());
    second.open_channel(1);
    let mut third = Client::connect(broker.address());
    third.send(1, channel::Open::default());
    third.expect_connection_close(
        530,
        "NOT_ALLOWED - number of channels opened on node 'stratamq' has reached the maximum allowed limit of (3)",
    );
    // A closed channel makes room, and so does a closed connection.
    first.close_channel(2);
    second.open_channel(2);
    first.close();
    second.open_channel(3);
    second.close();
}

/// LM-7: consumers of one channel.
#[test]
fn consumers_of_a_channel_are_limited() {
    let broker = broker(&["--max-consumers-per-channel", "2"]);
    let mut c = Client::connect(broker.address());
    let consume = |tag: &str| basic::Consume {
        queue: text("q"),
        consumer_tag: text(tag),
        ..basic::Consume::default()
    };
    for number in [1, 2] {
        c.open_channel(number);
        c.queue_declare(number, "q", transient());
        c.call::<basic::ConsumeOk>(number, consume("a"));
        c.call::<basic::ConsumeOk>(number, consume("b"));
    }
    let cancel = basic::Cancel {
        consumer_tag: text("a"),
        nowait: false,
    };
    c.call::<basic::CancelOk>(1, cancel);
    c.call::<basic::ConsumeOk>(1, consume("c"));
    c.send(1, consume("d"));
    let close = c.wait_connection_close();
    let told = (close.reply_code, close.reply_text.as_str());
    assert_eq!(
        told,
        (
            530,
            "NOT_ALLOWED - reached maximum (2) of consumers per channel"
        )
    );
    let id = basic::Consume::ID;
    assert_eq!(
        (close.class_id, close.method_id),
        (id.class_id, id.method_id)
    );
}

/// LM-1 to LM-3, FR-4, VD-2: what is offered is what the flags say, and what is more is refused. Unlimited frames are not offered
/// and, asked for, refused: a frame is held in memory as a whole.
#[test]
fn tune_offers_what_the_flags_say() {
    let broker = broker(&[
        "--channel-max",
        "2",
        "--frame-max",
        "8KiB",
        "--heartbeat",
        "7",
        "--max-message-size",
        "20000",
        "--login-delay-ms",
        "50",
    ]);
    let tuned = |channel_max: u16, frame_max: u32| {
        let mut c = Client::connect_tcp(broker.address());
        c.send_bytes(b"AMQP\x00\x00\x09\x01").expect("sent");
        c.expect::<connection::Start>(0);
        c.send(
            0,
            connection::StartOk {
                client_properties: Login::default().client_properties(),
                mechanism: text("PLAIN"),
                response: Login::default().plain_response(),
                locale: text("en_US"),
            },
        );
        let tune: connection::Tune = c.expect(0);
        assert_eq!(
            (tune.channel_max, tune.frame_max, tune.heartbeat),
            (2, 8192, 7)
        );
        c.send(
            0,
            connection::TuneOk {
                channel_max,
                frame_max,
                heartbeat: 0,
            },
        );
        c.send(
            0,
            connection::Open {
                virtual_host: text("/"),
                ..connection::Open::default()
            },
        );
        c
    };
    for (channel_max, frame_max, named) in [
        (3, 8192, "channel_max"),
        (0, 8192, "channel_max"),
        (2, 8193, "frame_max"),
        (2, 0, "frame_max"),
    ] {
        let close = tuned(channel_max, frame_max).wait_connection_close();
        assert_eq!(close.reply_code, 530);
        let told = close.reply_text.as_str();
        assert!(
            told.starts_with(&format!("NOT_ALLOWED - negotiated {named} = ")),
            "{told}"
        );
    }
    let mut c = tuned(2, 8192);
    c.expect::<connection::OpenOk>(0);
    c.open_channel(1);
    c.open_channel(2);
    c.send(3, channel::Open::default());
    let close = c.wait_connection_close();
    assert_eq!(close.reply_code, 530);
    let told = close.reply_text.as_str();
    assert!(
        told.starts_with("NOT_ALLOWED - number of channels opened (2)"),
        "{told}"
    );
    assert_eq!((close.class_id, close.method_id), (0, 0));

    let login = Login {
        frame_max: 8192,
        ..Login::default()
    };
    let mut c = Client::login(broker.address(), &login);
    c.open_channel(1);
    c.queue_declare(1, "q", transient());
    let body = |len: usize| Message::plain(vec![b'x'; len]);
    c.publish(1, "", "q", &body(20_000));
    let got = c.get(1, "q").expect("the message");
    assert_eq!(got.message.body.len(), 20_000);
    c.publish(1, "", "q", &body(20_001));
    c.expect_channel_close(
        1,
        406,
        "PRECONDITION_FAILED - message size 20001 is larger than configured max size 20000",
    );
    c.open_channel(2);
    c.send_frame(FrameKind::Body, 2, &[0; 8193]);
    let close = c.wait_connection_close();
    assert_eq!(close.reply_code, 501);
}

/// LM-3, VD-2: more than RabbitMQ's default is possible.
#[test]
fn a_message_may_be_larger_than_the_default() {
    let broker = broker(&["--max-message-size", "20MiB", "--segment-size", "80MiB"]);
    let mut c = Client::connect(broker.address());
    c.open_channel(1);
    c.queue_declare(1, "q", super::support::raw::durable());
    c.confirm_select(1);
    let body = vec![b'x'; 20 << 20];
    c.publish(1, "", "q", &Message::persistent(body));
    c.wait_confirm(1);
    let got = c.get(1, "q").expect("the message");
    assert_eq!(got.message.body.len(), 20 << 20);
}

/// CN-9, LM-12: a client that does not get through the handshake is gone without a byte more.
#[test]
fn a_slow_handshake_ends() {
    let broker = broker(&["--handshake-timeout-ms", "1000"]);
    let mut silent = Client::connect_tcp(broker.address());
    let mut slow = Client::connect_tcp(broker.address());
    slow.send_bytes(b"AMQP").expect("sent");
    // On a busy machine the time may be over before a client has come so far.
    let mut later = wait_until_ok("a handshake begins", || {
        let mut c = Client::connect_tcp(broker.address());
        c.send_bytes(b"AMQP\x00\x00\x09\x01")?;
        c.try_expect::<connection::Start>(0)?;
        Ok(c)
    });
    for c in [&mut silent, &mut slow, &mut later] {
        assert_eq!(c.read_to_end().expect("an end"), b"");
    }
    let login = || Client::try_login(broker.address(), &Login::default());
    wait_until_ok("a login in time", login).close();
}

/// Makes the broker close the connection; its close frame has arrived and is not answered.
fn provoked(broker: &TestBroker) -> Client {
    let mut c = Client::connect(broker.address());
    c.open_channel(1);
    c.send(1, channel::Open::default());
    loop {
        let frame = c.try_next_frame().expect("a close frame");
        if frame.kind == FrameKind::Method
            && let Ok(Method::ConnectionClose(close)) = Method::decode(&frame.payload)
        {
            assert_eq!(close.reply_code, 504);
            return c;
        }
    }
}

/// CN-52 to CN-54: a close that is not answered ends after its time, one that is answered at once; meanwhile only `close` is heard.
#[test]
fn a_close_waits_for_its_answer() {
    let hasty = broker(&["--close-timeout-ms", "300"]);
    let mut c = provoked(&hasty);
    // Less than the time that is usual.
    c.set_read_limit(Duration::from_secs(20));
    assert_eq!(c.read_to_end().expect("an end"), b"");
    // Longer than the client waits: an end within its limit comes from the answer.
    let patient = broker(&["--close-timeout-ms", "600000"]);
    let mut c = provoked(&patient);
    c.send(0, connection::CloseOk {});
    assert_eq!(c.read_to_end().expect("an end"), b"");
    let mut c = provoked(&patient);
    c.send(2, channel::Open::default());
    c.send_frame(FrameKind::Body, 1, b"nobody listens");
    let close = connection::Close {
        reply_code: 200,
        reply_text: text("bye"),
        class_id: 0,
        method_id: 0,
    };
    c.send(0, close);
    let frame = c.try_next_frame().expect("an answer");
    let method = Method::decode(&frame.payload).expect("a method");
    assert!(matches!(method, Method::ConnectionCloseOk(_)), "{method:?}");
    c.send(0, connection::CloseOk {});
    c.expect_end();
}

/// CN-55, CN-62: after bytes that are no frames the close frame arrives although the client goes on sending, and the socket ends
/// by itself. RabbitMQ resets its sockets; ours end in order, which no client can hold against us.
#[test]
fn the_close_frame_survives_what_is_not_read() {
    let broker = broker(&["--login-delay-ms", "300"]);
    let mut c = Client::connect(broker.address());
    c.open_channel(1);
    c.send_bytes(&[1, 0, 1, 0, 0, 0, 0, 0xff]).expect("sent");
    for _ in 0..100 {
        if c.send_bytes(&[0xaa; 8192]).is_err() {
            break;
        }
    }
    c.expect_connection_close(
        501,
        "FRAME_ERROR - type 1, all octets = <<>>: {invalid_frame_end_marker,255}",
    );
}

/// LM-13: without descriptors nobody new gets in, nobody is thrown out, and it passes.
#[test]
fn running_out_of_descriptors_hurts_nobody_who_is_in() {
    // Enough for the broker's own files and some clients.
    let script = "ulimit -n 96; \"$@\"; exit $?";
    let broker = TestBroker::builder()
        .wrapper(&["sh", "-c", script, "sh"])
        .start();
    let mut first = Client::connect(broker.address());
    first.open_channel(1);
    let mut waiting = Vec::new();
    let mut is_refused = false;
    for _ in 0..100 {
        let mut c = Client::connect_tcp(broker.address());
        let is_sent = c.send_bytes(b"AMQP\x00\x00\x09\x01").is_ok();
        is_refused = !is_sent || c.try_expect::<connection::Start>(0).is_err();
        waiting.push(c);
        if is_refused {
            break;
        }
    }
    assert!(is_refused, "the limit was not reached");
    broker.wait_for_line("too many sockets for the limit of open files");
    first.queue_declare(1, "q", transient());
    first.publish(1, "", "q", &Message::plain("still here"));
    assert!(first.get(1, "q").is_some());
    drop(waiting);
    // The broker hears of that a little later.
    let login = || Client::try_login(broker.address(), &Login::default());
    wait_until_ok("somebody gets in again", login).close();
}
