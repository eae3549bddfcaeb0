//! From the first byte to open-ok, and how it ends (CN-1 to CN-63).

use bytes::Bytes;

use super::support::*;
use crate::amqp::method::{Method, channel, connection, queue, tx};
use crate::amqp::protocol_header::AMQP_0_9_1;
use crate::amqp::reply_code::ConnectionReplyCode;
use crate::broker::error::BrokerError;
use crate::session::SessionOptions;

#[test]
fn a_foreign_protocol_header_is_answered_with_ours_and_the_end() {
    for header in [
        b"AMQP\x00\x00\x08\x00",
        b"AMQP\x03\x01\x00\x00",
        b"GET / HT",
    ] {
        let mut peer = Peer::new(SessionOptions::default());
        peer.bytes(header).serve();
        assert_eq!(&peer.output_bytes()[..], AMQP_0_9_1);
        assert!(peer.session.is_finished());
    }
}

#[test]
fn start_offers_two_mechanisms_and_nine_capabilities() {
    let mut peer = Peer::new(SessionOptions::default());
    peer.bytes(&AMQP_0_9_1[..5]).serve();
    peer.expect_nothing();
    peer.bytes(&AMQP_0_9_1[5..]).serve();
    let frames = peer.frames();
    let [(0, Method::ConnectionStart(start))] = &methods(&frames)[..] else {
        panic!("no start: {frames:?}");
    };
    assert_eq!((start.version_major, start.version_minor), (0, 9));
    assert_eq!(&start.mechanisms[..], b"AMQPLAIN PLAIN");
    assert_eq!(&start.locales[..], b"en_US");
    let properties = &start.server_properties;
    assert_eq!(properties.get_text("product"), Some("RabbitMQ"));
    let capabilities = properties.get_table("capabilities").expect("a table");
    assert_eq!(capabilities.len(), 9);
    assert!(
        capabilities
            .iter()
            .all(|(_, value)| value.as_bool() == Some(true))
    );
}

#[test]
fn a_handshake_in_one_burst_is_answered_in_order() {
    let mut peer = Peer::new(SessionOptions::default());
    peer.bytes(&AMQP_0_9_1)
        .method(0, start_ok(&[]))
        .method(0, tune_ok());
    peer.method(
        0,
        connection::Open {
            virtual_host: short("v"),
            ..Default::default()
        },
    );
    peer.method(1, channel::Open::default());
    peer.method(
        1,
        queue::Declare {
            queue: short("q"),
            ..Default::default()
        },
    );
    peer.serve();
    peer.expect_log(&["login PLAIN guest", "open v", "1 queue.declare 'q'"]);
    let names: Vec<&str> = methods(&peer.frames())
        .iter()
        .map(|(_, method)| method.name())
        .collect();
    assert_eq!(
        names,
        [
            "connection.start",
            "connection.tune",
            "connection.open-ok",
            "channel.open-ok",
            "queue.declare-ok",
        ]
    );
}

/// A client that has received `connection.start`.
fn started() -> Peer {
    let mut peer = Peer::new(SessionOptions::default());
    peer.bytes(&AMQP_0_9_1).serve();
    peer.frames();
    peer
}

#[test]
fn a_refused_login_is_told_only_to_those_who_can_hear_it() {
    let refused = |capabilities: &[&str]| {
        let mut peer = started();
        let response = Bytes::from_static(b"\0guest\0wrong");
        peer.method(
            0,
            connection::StartOk {
                response,
                ..start_ok(capabilities)
            },
        )
        .serve();
        peer
    };
    let mut peer = refused(&["authentication_failure_close"]);
    peer.expect_connection_close(
        403,
        "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. \
         For details see the broker logfile.",
        (0, 0),
    );
    expect_linger(peer);
    let mut peer = refused(&[]);
    peer.expect_nothing();
    expect_linger(peer);
}

/// Nothing more is said or heard, and the socket closes after three seconds.
#[track_caller]
fn expect_linger(mut peer: Peer) {
    peer.method(0, connection::CloseOk {})
        .method(0, tune_ok())
        .serve();
    peer.expect_nothing();
    assert_eq!(peer.session.poll_timeout(), Some(3000));
    assert!(!peer.at(2999).session.is_finished());
    assert!(peer.at(3000).session.is_finished());
    peer.expect_nothing();
}

#[test]
fn what_does_not_belong_in_a_handshake_ends_it_in_silence() {
    let check = |send: &dyn Fn(&mut Peer)| {
        let mut peer = started();
        send(&mut peer);
        peer.serve();
        peer.expect_nothing();
        expect_linger(peer);
    };
    check(&|peer| {
        sent(peer.method(
            0,
            connection::StartOk {
                mechanism: short("EXTERNAL"),
                ..start_ok(&[])
            },
        ))
    });
    check(&|peer| {
        let response = Bytes::from_static(b"guest");
        peer.method(
            0,
            connection::StartOk {
                response,
                ..start_ok(&[])
            },
        );
    });
    check(&|peer| sent(peer.method(0, tune_ok())));
    check(&|peer| sent(peer.method(0, connection::SecureOk::default())));
    check(&|peer| sent(peer.method(1, channel::Open::default())));
    check(&|peer| sent(peer.frame(8, 0, b"")));
    check(&|peer| sent(peer.frame(9, 0, b"")));
    check(&|peer| sent(peer.bytes(&[1, 0, 0, 0, 0, 0x20, 1])));
    check(&|peer| sent(peer.frame(1, 0, &[0, 10, 0, 99])));
}

#[test]
fn amqplain_logs_in() {
    let mut peer = started();
    let response = Bytes::from_static(b"\x05LOGINS\0\0\0\x05guest\x08PASSWORDS\0\0\0\x05guest");
    peer.method(
        0,
        connection::StartOk {
            mechanism: short("AMQPLAIN"),
            response,
            ..start_ok(&[])
        },
    );
    peer.serve();
    peer.expect_log(&["login AMQPLAIN guest"]);
    peer.expect(
        0,
        connection::Tune {
            channel_max: 2047,
            frame_max: 131_072,
            heartbeat: 60,
        },
    );
}

#[test]
fn tune_ok_may_lower_the_offer_but_not_lift_it() {
    #[track_caller]
    fn check(tune_ok: connection::TuneOk, refusal: Option<&str>) {
        let mut peer = started();
        peer.method(0, start_ok(&[])).serve();
        peer.frames();
        peer.method(0, tune_ok).serve();
        match refusal {
            None => {
                peer.method(0, connection::Open::default()).serve();
                peer.expect(0, connection::OpenOk::default());
            }
            Some(text) => {
                peer.expect_connection_close(530, &format!("NOT_ALLOWED - {text}"), (10, 31));
                expect_linger(peer);
            }
        }
    }
    let with = |channel_max, frame_max, heartbeat| connection::TuneOk {
        channel_max,
        frame_max,
        heartbeat,
    };
    check(with(2047, 131_072, 60), None);
    check(with(1, 4096, 0), None);
    check(with(1, 8192, 65535), None);
    check(
        with(1, 4095, 0),
        Some("negotiated frame_max = 4095 is lower than the minimum allowed value (4096)"),
    );
    check(
        with(1, 0, 0),
        Some("negotiated frame_max = 0 is higher than the maximum allowed value (131072)"),
    );
    check(
        with(1, 131_073, 0),
        Some("negotiated frame_max = 131073 is higher than the maximum allowed value (131072)"),
    );
    check(
        with(0, 4096, 0),
        Some("negotiated channel_max = 0 is higher than the maximum allowed value (2047)"),
    );
    check(
        with(2048, 4096, 0),
        Some("negotiated channel_max = 2048 is higher than the maximum allowed value (2047)"),
    );
}

#[test]
fn a_refused_virtual_host_waits_for_close_ok() {
    let mut peer = started();
    peer.answers.push(Err(BrokerError::connection(
        ConnectionReplyCode::NotAllowed,
        "vhost v not found",
    )));
    peer.method(0, start_ok(&[])).method(0, tune_ok()).serve();
    peer.frames();
    peer.method(
        0,
        connection::Open {
            virtual_host: short("v"),
            ..Default::default()
        },
    )
    .serve();
    peer.expect_connection_close(530, "NOT_ALLOWED - vhost v not found", (10, 40));
    peer.method(0, connection::CloseOk {}).serve();
    assert!(peer.session.is_finished());
}

#[test]
fn a_slow_handshake_ends_without_a_word() {
    let mut peer = started();
    assert_eq!(peer.session.poll_timeout(), Some(10_000));
    assert!(!peer.at(9_999).session.is_finished());
    assert!(peer.at(10_000).session.is_finished());
    peer.expect_nothing();
}

#[test]
fn a_silent_connection_beats_every_half_interval_and_dies_after_three() {
    let mut peer = Peer::connected();
    let mut beats = 0;
    for now_ms in (30_000..180_000).step_by(30_000) {
        assert_eq!(peer.session.poll_timeout(), Some(now_ms));
        peer.at(now_ms).serve();
        beats += peer.frames().len();
    }
    assert_eq!(beats, 5);
    peer.at(180_000).serve();
    assert!(peer.session.is_finished());
    peer.expect_log(&["ended"]);
    peer.expect_nothing();
}

#[test]
fn any_byte_keeps_a_connection_alive() {
    let mut peer = Peer::connected();
    for now_ms in (60_000..600_000).step_by(60_000) {
        peer.at(now_ms)
            .bytes(&[8, 0, 0, 0, 0, 0, 0, 0xCE][..1])
            .serve();
        peer.input.clear();
        peer.session.receive(&mut peer.input, now_ms);
    }
    assert!(peer.session.is_running());
}

#[test]
fn the_client_closes_and_everything_is_gone_before_close_ok() {
    let mut peer = Peer::with_channel();
    peer.open(7);
    peer.method(
        0,
        connection::Close {
            reply_code: 200,
            ..Default::default()
        },
    )
    .serve();
    peer.expect_log(&["1 close, 0 unacked", "7 close, 0 unacked", "ended"]);
    peer.expect(0, connection::CloseOk {});
    assert!(peer.session.is_finished());
}

#[test]
fn closes_may_cross() {
    let mut peer = Peer::with_channel();
    peer.session
        .begin_shutdown("broker forced connection closure with reason 'shutdown'");
    peer.serve();
    peer.expect_connection_close(
        320,
        "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'",
        (0, 0),
    );
    peer.method(1, tx::Select {})
        .method(0, connection::Close::default())
        .serve();
    peer.expect(0, connection::CloseOk {});
    peer.method(0, connection::CloseOk {}).serve();
    assert!(peer.session.is_finished());
}

#[test]
fn close_ok_is_awaited_for_a_heartbeat_and_at_most_thirty_seconds() {
    let mut peer = Peer::connected();
    peer.at(5).session.begin_shutdown("x");
    peer.serve();
    assert_eq!(peer.session.poll_timeout(), Some(30_005));
    assert!(peer.at(30_005).session.is_finished());
}

#[test]
fn the_end_of_input_ends_the_connection() {
    let mut peer = Peer::with_channel();
    peer.session.handle_eof();
    peer.serve();
    peer.expect_log(&["1 close, 0 unacked", "ended"]);
    peer.expect_nothing();
    assert!(peer.session.is_finished());
}

#[test]
fn a_new_secret_is_accepted() {
    let mut peer = Peer::connected();
    peer.method(0, connection::UpdateSecret::default()).serve();
    peer.expect(0, connection::UpdateSecretOk {});
}

#[track_caller]
fn expect_if(peer: &mut Peer, is_told: bool, method: impl Into<Method>) {
    match is_told {
        true => peer.expect(0, method),
        false => peer.expect_nothing(),
    }
}

/// AL-5: a further reason is not told, and the end only when the last one is gone.
#[test]
fn a_publisher_is_blocked_at_its_first_header_and_told_once() {
    for hears in [true, false] {
        let capabilities: &[&str] = if hears { &["connection.blocked"] } else { &[] };
        let mut peer = Peer::connected_with(SessionOptions::default(), capabilities);
        peer.open(1);
        peer.session.set_alarm(Some("low on disk"));
        peer.method(1, channel::Flow { active: true }).serve();
        peer.expect(1, channel::FlowOk { active: true });
        peer.publish(1, false, b"x").publish(1, false, b"y").serve();
        let blocked = connection::Blocked {
            reason: short("low on disk"),
        };
        expect_if(&mut peer, hears, blocked);
        assert!(!peer.session.wants_input());
        peer.expect_log(&[]);
        peer.session.set_alarm(Some("low on disk & memory"));
        peer.serve().expect_nothing();
        peer.session.set_alarm(None);
        peer.serve();
        peer.expect_log(&["1 publish x", "1 publish y"]);
        let unblocked = connection::Unblocked {};
        expect_if(&mut peer, hears, unblocked);
    }
}
