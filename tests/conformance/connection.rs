//! Section 3: from the protocol header to the close.

use std::time::Duration;

use bytes::Bytes;
use stratamq::amqp::field_table::{FieldTable, FieldValue};
use stratamq::amqp::frame::FrameKind;
use stratamq::amqp::method::{MethodId, connection, tx};

use super::stage::*;
use crate::support::raw::{Client, Login, Message, Trouble, now, text};

const HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";

fn start_ok(
    mechanism: &str,
    response: impl Into<Bytes>,
    client_properties: FieldTable,
) -> connection::StartOk {
    connection::StartOk {
        client_properties,
        mechanism: text(mechanism),
        response: response.into(),
        locale: text("en_US"),
    }
}

/// A socket that has seen `connection.start`.
fn started() -> (Client, connection::Start) {
    let mut c = Client::connect_tcp(address());
    c.send_bytes(HEADER).expect("sent");
    let start = c.expect(0);
    (c, start)
}

/// A socket that has seen `connection.tune`.
fn logged_in() -> (Client, connection::Tune) {
    let (mut c, _) = started();
    let login = Login::default();
    c.send(
        0,
        start_ok("PLAIN", login.plain_response(), login.client_properties()),
    );
    let tune = c.expect(0);
    (c, tune)
}

/// CN-1, CN-2.
#[test]
fn both_headers_of_the_version_are_taken() {
    for header in [HEADER, b"AMQP\x01\x01\x00\x09"] {
        let mut c = Client::connect_tcp(address());
        c.send_bytes(header).expect("sent");
        let start: connection::Start = c.expect(0);
        assert_eq!((start.version_major, start.version_minor), (0, 9));
    }
}

/// CN-3 to CN-7, VD-19: AMQP 1.0 is not spoken, so nobody is sent there.
#[test]
fn every_other_header_is_told_ours_and_nothing_else() {
    let others: [&[u8]; 8] = [
        b"AMQP\x00\x00\x09\x00",
        b"AMQP\x00\x00\x0a\x00",
        b"AMQP\x00\x00\x08\x00",
        b"AMQP\x01\x01\x08\x00",
        b"AMQP\x03\x01\x00\x00",
        b"AMQP\x00\x01\x00\x00",
        b"GET / HT",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
    ];
    for header in others {
        let mut c = Client::connect_tcp(address());
        c.send_bytes(header).expect("sent");
        assert_eq!(c.read_to_end().expect("an end"), HEADER, "{header:?}");
    }
}

/// CN-10 to CN-14; VD-22: ANONYMOUS is not offered unless somebody has asked for it.
#[test]
fn start_offers_all_that_clients_gate_on() {
    let (_c, start) = started();
    let mechanisms = String::from_utf8_lossy(&start.mechanisms).into_owned();
    let mut mechanisms: Vec<&str> = mechanisms.split(' ').collect();
    mechanisms.sort_unstable();
    assert_eq!(mechanisms, ["AMQPLAIN", "PLAIN"]);
    assert_eq!(&start.locales[..], b"en_US");
    for key in [
        "cluster_name",
        "copyright",
        "information",
        "platform",
        "product",
        "version",
    ] {
        assert!(start.server_properties.get_text(key).is_some(), "{key}");
    }
    let capabilities = start
        .server_properties
        .get_table("capabilities")
        .expect("a table");
    for capability in CAPABILITIES {
        assert_eq!(
            capabilities.get_bool(capability),
            Some(true),
            "{capability}"
        );
    }
}

/// CN-20, CN-21, CN-30: both mechanisms, and what tune offers.
#[test]
fn plain_and_amqplain_log_in() {
    let mut table = bytes::BytesMut::new();
    FieldTable::new()
        .with("LOGIN", "guest")
        .with("PASSWORD", "guest")
        .encode(&mut table);
    let amqplain = table.freeze().slice(4..);
    for (mechanism, response) in [
        ("PLAIN", Bytes::from_static(b"\0guest\0guest")),
        ("AMQPLAIN", amqplain),
    ] {
        let (mut c, _) = started();
        c.send(0, start_ok(mechanism, response, FieldTable::new()));
        let tune: connection::Tune = c.expect(0);
        assert_eq!(
            (tune.channel_max, tune.frame_max, tune.heartbeat),
            (2047, 131_072, 60)
        );
    }
}

/// CN-25: told at once, and never which of both was wrong.
#[test]
fn a_wrong_login_is_told_to_clients_that_can_hear_it() {
    let cases: [(&str, &'static [u8]); 3] = [
        ("PLAIN", b"\0guest\0wrong"),
        ("PLAIN", b"\0nobody\0guest"),
        ("PLAIN", b"\0guest\0"),
    ];
    for (mechanism, response) in cases {
        let (mut c, _) = started();
        c.send(
            0,
            start_ok(mechanism, response, Login::default().client_properties()),
        );
        let text = format!(
            "ACCESS_REFUSED - Login was refused using authentication mechanism {mechanism}. For details see the broker logfile."
        );
        connection_closed(&mut c, 403, &text, MethodId::NONE);
    }
}

/// CN-19, CN-20, CN-26, CN-31 to CN-33, CN-43, CN-44: these handshakes end without or with a word, but they end, and later than at
/// once; others get in meanwhile (CN-29).
#[test]
fn refused_handshakes_end_late_and_hurt_nobody() {
    type Provoke = fn() -> Client;
    let cases: [(&str, Provoke); 9] = [
        ("an authorization id", || plain(b"other\0guest\0guest")),
        ("a response that is none", || plain(b"nonsense")),
        ("a wrong login without the capability", || {
            let (mut c, _) = started();
            c.send(
                0,
                start_ok("PLAIN", &b"\0guest\0wrong"[..], FieldTable::new()),
            );
            c
        }),
        ("an unknown mechanism", || {
            let (mut c, _) = started();
            c.send(
                0,
                start_ok("EXTERNAL", &b""[..], Login::default().client_properties()),
            );
            c
        }),
        ("a frame_max below 4096", || tuned(2047, 4095)),
        ("a frame_max above the offer", || tuned(2047, 131_073)),
        ("no frame_max", || tuned(2047, 0)),
        ("no channel_max", || tuned(0, 131_072)),
        ("a method out of order", || {
            let (mut c, _) = started();
            c.send(
                0,
                connection::Open {
                    virtual_host: text("/"),
                    ..connection::Open::default()
                },
            );
            c
        }),
    ];
    let begin = now();
    let mut waiting: Vec<(&str, Client)> = cases
        .into_iter()
        .map(|(what, provoke)| (what, provoke()))
        .collect();
    Client::connect(address()).close();
    for (what, c) in &mut waiting {
        // A close frame before the end is allowed (CN-35).
        let end = c.try_next(0);
        assert!(
            matches!(end, Err(Trouble::Gone(_) | Trouble::ConnectionClosed(_))),
            "{what}: {end:?}"
        );
        if matches!(end, Err(Trouble::ConnectionClosed(_))) {
            c.expect_end();
        }
    }
    assert!(
        now() - begin > Duration::from_secs(1),
        "password guessing is damped"
    );
}

/// Logs in like that, with the capability to hear of a failure.
fn plain(response: &'static [u8]) -> Client {
    let (mut c, _) = started();
    c.send(
        0,
        start_ok("PLAIN", response, Login::default().client_properties()),
    );
    c
}

fn tuned(channel_max: u16, frame_max: u32) -> Client {
    let (mut c, _) = logged_in();
    c.send(
        0,
        connection::TuneOk {
            channel_max,
            frame_max,
            heartbeat: 0,
        },
    );
    // A tune that was taken would be followed by open-ok.
    c.send(
        0,
        connection::Open {
            virtual_host: text("/"),
            ..connection::Open::default()
        },
    );
    c
}

/// CN-31, VD-1: the specification's smallest frame is taken, as RabbitMQ did until 4.1; that needs 8 KiB, which we allow before tune.
#[test]
fn the_smallest_frame_is_4096_bytes() {
    Client::login(
        address(),
        &Login {
            frame_max: 4096,
            ..Login::default()
        },
    )
    .close();
}

/// CN-34: the client's heartbeat counts, whatever was offered.
#[test]
fn the_client_decides_about_heartbeats() {
    for heartbeat_secs in [0, 1, 59, 61, 600, u16::MAX] {
        let login = Login {
            heartbeat_secs,
            ..Login::default()
        };
        Client::login(address(), &login).close();
    }
}

/// CN-18: any locale, and none.
#[test]
fn the_locale_is_ignored() {
    for locale in ["", "tlh_QO", "en_US de_DE"] {
        let (mut c, _) = started();
        let login = Login::default();
        let mut start_ok = start_ok("PLAIN", login.plain_response(), login.client_properties());
        start_ok.locale = text(locale);
        c.send(0, start_ok);
        c.expect::<connection::Tune>(0);
    }
}

/// CN-16: only a bool that is true makes a capability. Whoever says it in another way is told nothing.
#[test]
fn a_capability_is_a_bool_that_is_true() {
    let claims = [
        FieldValue::Bool(false),
        FieldValue::text("true"),
        FieldValue::SignedInt(1),
    ];
    let mut waiting: Vec<Client> = claims
        .into_iter()
        .map(|claim| {
            let capabilities = table([("authentication_failure_close", claim)]);
            let properties = table([("capabilities", FieldValue::Table(capabilities))]);
            let (mut c, _) = started();
            c.send(0, start_ok("PLAIN", &b"\0guest\0wrong"[..], properties));
            c
        })
        .collect();
    for c in &mut waiting {
        assert_eq!(c.read_to_end().expect("an end"), b"");
    }
}

/// CN-42: open-ok says nothing more than that.
#[test]
fn open_ok_names_no_hosts() {
    let (mut c, tune) = logged_in();
    c.send(
        0,
        connection::TuneOk {
            channel_max: tune.channel_max,
            frame_max: tune.frame_max,
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
    let frame = c.try_next_frame().expect("open-ok");
    assert_eq!((frame.kind, frame.channel), (FrameKind::Method, 0));
    assert_eq!(&frame.payload[..], [0, 10, 0, 41, 0]);
}

/// LM-10: names of 255 bytes work, consumer tags too; a longer one cannot be said.
#[test]
fn names_have_up_to_255_bytes() {
    let name = format!("lm10.{}", "n".repeat(250));
    assert_eq!(name.len(), 255);
    let mut c = client();
    c.queue_declare(1, &name, q(""));
    c.publish(1, "", &name, &Message::plain("m"));
    assert_eq!(drain(&mut c, &name), ["m"]);
    let tag = "t".repeat(255);
    let ok: stratamq::amqp::method::basic::ConsumeOk = c.call(1, consume(&name, &tag));
    assert_eq!(ok.consumer_tag.as_str(), tag);
}

/// CN-43.
#[test]
fn the_handshake_may_come_in_one_burst() {
    let login = Login::default();
    let mut c = Client::connect_tcp(address());
    // Nothing is sent before the flush but the header, and nothing is read before all of it is sent.
    c.send_bytes(HEADER).expect("sent");
    c.push(
        0,
        start_ok("PLAIN", login.plain_response(), login.client_properties()),
    );
    c.push(
        0,
        connection::TuneOk {
            channel_max: 2047,
            frame_max: 131_072,
            heartbeat: 0,
        },
    );
    c.push(
        0,
        connection::Open {
            virtual_host: text("/"),
            ..connection::Open::default()
        },
    );
    c.push(1, stratamq::amqp::method::channel::Open::default());
    c.push(1, q("cn43"));
    c.flush().expect("sent");
    c.expect::<connection::Start>(0);
    c.expect::<connection::Tune>(0);
    c.expect::<connection::OpenOk>(0);
    c.expect::<stratamq::amqp::method::channel::OpenOk>(1);
    c.expect::<stratamq::amqp::method::queue::DeclareOk>(1);
}

/// CN-44.
#[test]
fn methods_out_of_order_end_a_running_connection() {
    let text = "CHANNEL_ERROR - unexpected method in connection state running";
    let mut c = client();
    c.send(
        0,
        connection::Open {
            virtual_host: self::text("/"),
            ..connection::Open::default()
        },
    );
    connection_closed(&mut c, 504, text, connection::Open::ID);
    let mut c = client();
    c.send(0, tx::Select {});
    connection_closed(&mut c, 504, text, tx::Select::ID);
    let mut c = client();
    c.send(0, start_ok("PLAIN", &b""[..], FieldTable::new()));
    connection_closed(&mut c, 504, text, connection::StartOk::ID);
}

/// CN-45, CN-49: one heartbeat each half interval; none when off.
#[test]
fn the_server_sends_heartbeats() {
    let mut c = Client::login(
        address(),
        &Login {
            heartbeat_secs: 1,
            ..Login::default()
        },
    );
    c.set_read_limit(Duration::from_secs(10));
    for _ in 0..2 {
        let frame = c.try_next_frame().expect("a heartbeat");
        assert_eq!(
            (frame.kind, frame.channel, frame.payload.len()),
            (FrameKind::Heartbeat, 0, 0)
        );
        c.send_frame(FrameKind::Heartbeat, 0, b"");
    }
    let mut quiet = client();
    silent(&mut quiet, 1);
}

/// CN-46, CN-47: a silent client is dropped without a word after two to three intervals.
#[test]
fn a_silent_client_is_dropped() {
    let begin = now();
    let mut c = Client::login(
        address(),
        &Login {
            heartbeat_secs: 1,
            ..Login::default()
        },
    );
    loop {
        match c.try_next_frame() {
            Ok(frame) => assert_eq!(frame.kind, FrameKind::Heartbeat, "no close frame"),
            Err(Trouble::Gone(_)) => break,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(
        now() - begin > Duration::from_millis(1900),
        "not before two intervals"
    );
}

/// CN-51, CN-58.
#[test]
fn close_and_update_secret_are_answered() {
    let mut c = client();
    let update = connection::UpdateSecret {
        new_secret: Bytes::from_static(b"s"),
        reason: text("r"),
    };
    c.call::<connection::UpdateSecretOk>(0, update);
    c.close();
}

/// CN-8: a probe that says nothing is no reason to say anything.
#[test]
fn a_probe_is_ignored() {
    let mut c = Client::connect_tcp(address());
    c.stream()
        .shutdown(std::net::Shutdown::Write)
        .expect("shut down");
    assert!(c.read_to_end().expect("an end").is_empty());
}

/// CN-27, AU-2: guest from elsewhere. Needs an address of this machine that is not a loopback one.
#[test]
fn guest_logs_in_from_this_machine_only() {
    let Some(outside) = outside_address() else {
        eprintln!(
            "this machine has the loopback interface only; the broker's own tests check the rule"
        );
        return;
    };
    let broker = crate::support::TestBroker::builder()
        .arg("--bind")
        .arg("0.0.0.0")
        .start();
    let elsewhere = std::net::SocketAddr::from((outside, broker.address().port()));
    match Client::try_login(elsewhere, &Login::default()) {
        Err(Trouble::ConnectionClosed(close)) => assert_eq!(close.reply_code, 403),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("guest got in from {outside}"),
    }
    Client::connect(broker.address()).close();
}

/// The address this machine would use towards others; no packet is sent.
fn outside_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback()).then_some(address)
}
