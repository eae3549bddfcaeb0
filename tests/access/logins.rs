//! Mechanisms, users and where they come from.

use stratamq::amqp::method::connection;

use super::support::raw::{Client, Login, Trouble, text};
use super::{broker, cli, login, refusal};

const HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";

fn offered(address: std::net::SocketAddr) -> Vec<String> {
    let mut c = Client::connect_tcp(address);
    c.send_bytes(HEADER).expect("sent");
    let start: connection::Start = c.expect(0);
    let offer = String::from_utf8_lossy(&start.mechanisms).into_owned();
    let mut names: Vec<String> = offer.split(' ').map(str::to_owned).collect();
    names.sort();
    names
}

/// CN-11, CN-19, CN-22: whoever asks for ANONYMOUS is the configured user; what is not enabled is as unknown as anything else.
#[test]
fn anonymous_is_the_user_of_the_flag() {
    let broker = broker(&[
        "--auth-mechanisms",
        "PLAIN,ANONYMOUS",
        "--anonymous-user",
        "visitor",
        "--login-delay-ms",
        "50",
    ]);
    assert_eq!(offered(broker.address()), ["ANONYMOUS", "PLAIN"]);
    let anonymous = Login {
        mechanism: "ANONYMOUS",
        ..Login::default()
    };
    // There is no such user yet.
    let (code, text) = refusal(Client::try_login(broker.address(), &anonymous));
    let told = "ACCESS_REFUSED - Login was refused using authentication mechanism ANONYMOUS. For details see the broker logfile.";
    assert_eq!((code, text.as_str()), (403, told));
    cli(
        &broker,
        &["user", "add", "visitor", "--password", "unguessable"],
    );
    cli(&broker, &["permission", "set", "visitor", "", "", ".*"]);
    let mut c = Client::login(broker.address(), &anonymous);
    c.open_channel(1);
    let wish = stratamq::amqp::method::queue::Declare {
        queue: super::support::raw::text("q"),
        ..Default::default()
    };
    c.send(1, wish);
    c.expect_channel_close(
        1,
        403,
        "ACCESS_REFUSED - configure access to queue 'q' in vhost '/' refused for user 'visitor'",
    );
    let not_enabled = Login {
        mechanism: "AMQPLAIN",
        ..Login::default()
    };
    match Client::try_login(broker.address(), &not_enabled) {
        Err(Trouble::Gone(_)) => {}
        other => panic!("{:?}", other.map(drop)),
    }
}

/// VD-22, CN-24: unless somebody enables it, ANONYMOUS does not exist, and the demonstration of challenges never does.
#[test]
fn nothing_lets_anybody_in_by_default() {
    let broker = broker(&["--login-delay-ms", "50"]);
    assert_eq!(offered(broker.address()), ["AMQPLAIN", "PLAIN"]);
    for mechanism in ["ANONYMOUS", "RABBIT-CR-DEMO", "EXTERNAL"] {
        let login = Login {
            mechanism,
            ..Login::default()
        };
        match Client::try_login(broker.address(), &login) {
            Err(Trouble::Gone(_)) => {}
            other => panic!("{mechanism}: {:?}", other.map(drop)),
        }
    }
}

/// CN-28: an empty password in the store logs nobody in.
#[test]
fn a_user_without_a_password_has_no_password_login() {
    let broker = broker(&[]);
    cli(&broker, &["user", "add", "mute", "--password", ""]);
    cli(&broker, &["permission", "set", "mute", ".*", ".*", ".*"]);
    for password in ["", "mute"] {
        let (code, text) = refusal(Client::try_login(
            broker.address(),
            &login("mute", password),
        ));
        assert_eq!(code, 403, "{text}");
    }
}

/// CN-27, AU-2: the flag names who is kept to this machine, and the log says it as RabbitMQ does. Needs an address of this machine
/// that is not a loopback one.
#[test]
fn loopback_users_are_those_of_the_flag() {
    let Some(outside) = outside_address() else {
        eprintln!("this machine has the loopback interface only");
        return;
    };
    let free = broker(&["--bind", "0.0.0.0", "--loopback-users", ""]);
    let elsewhere = std::net::SocketAddr::from((outside, free.address().port()));
    Client::login(elsewhere, &Login::default()).close();
    let kept = broker(&["--bind", "0.0.0.0", "--loopback-users", "alice,guest"]);
    let elsewhere = std::net::SocketAddr::from((outside, kept.address().port()));
    let (code, text) = refusal(Client::try_login(elsewhere, &Login::default()));
    assert_eq!(code, 403, "{text}");
    kept.wait_for_line("user 'guest' can only connect via localhost");
    Client::connect(kept.address()).close();
}

/// The address this machine would use towards others; no packet is sent.
fn outside_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback()).then_some(address)
}

/// AU-1: what a blank broker knows.
#[test]
fn a_blank_broker_has_guest_and_one_vhost() {
    let broker = broker(&[]);
    assert_eq!(cli(&broker, &["vhost", "list"]), "/\n");
    assert_eq!(cli(&broker, &["user", "list"]), "guest\t[administrator]\n");
    assert_eq!(
        cli(&broker, &["permission", "list"]),
        "/\tguest\tconfigure '.*'\twrite '.*'\tread '.*'\n"
    );
}

/// CN-15: what applications look at can be set.
#[test]
fn product_and_version_are_those_of_the_flags() {
    let said = |flags: &[&str]| {
        let broker = broker(flags);
        let mut c = Client::connect_tcp(broker.address());
        c.send_bytes(HEADER).expect("sent");
        let start: connection::Start = c.expect(0);
        let of = |name| start.server_properties.get_text(name).map(str::to_owned);
        (of("product"), of("version"))
    };
    let (product, version) = said(&[]);
    assert_eq!(product.as_deref(), Some("RabbitMQ"));
    let version = version.expect("a version");
    let major = version.split('.').next().and_then(|part| part.parse().ok());
    assert!(major >= Some(4), "{version}");
    let told = said(&["--product", "StrataMQ", "--product-version", "3.13.7"]);
    assert_eq!(told, (Some("StrataMQ".into()), Some("3.13.7".into())));
}

/// CN-17: the name that a client gives its connection stands in the log.
#[test]
fn the_name_of_a_connection_is_shown() {
    let broker = broker(&[]);
    let mut c = Client::connect_tcp(broker.address());
    c.send_bytes(HEADER).expect("sent");
    c.expect::<connection::Start>(0);
    let properties = Login::default().client_properties();
    c.send(
        0,
        connection::StartOk {
            client_properties: properties.with("connection_name", "orders-importer"),
            mechanism: text("PLAIN"),
            response: Login::default().plain_response(),
            locale: text("en_US"),
        },
    );
    c.expect::<connection::Tune>(0);
    let line = broker.wait_for_line("orders-importer");
    assert!(line.contains("guest"), "{line}");
}

/// CN-19, CN-20, CN-25, CN-31, CN-44, CN-47: what a client is not told stands in the log, in one line that it cannot forge.
#[test]
fn the_log_says_why_nobody_got_in() {
    let broker = broker(&["--login-delay-ms", "50", "--handshake-timeout-ms", "5000"]);
    let started = || {
        let mut c = Client::connect_tcp(broker.address());
        c.send_bytes(HEADER).expect("sent");
        c.expect::<connection::Start>(0);
        c
    };
    let login = |mechanism: &str, response: &'static [u8]| {
        let mut c = started();
        c.send(
            0,
            connection::StartOk {
                client_properties: Login::default().client_properties(),
                mechanism: text(mechanism),
                response: response.into(),
                locale: text("en_US"),
            },
        );
        c
    };
    let _unknown = login("KERBEROS\n", b"");
    broker.wait_for_line("login refused: there is no mechanism 'KERBEROS\\n'");
    let _malformed = login("PLAIN", b"nonsense");
    broker.wait_for_line("login refused: PLAIN response malformed");
    let _wrong = login("PLAIN", b"\0ev\nil\0guess");
    broker.wait_for_line("login refused: user 'ev\\nil' has given invalid credentials");
    let mut early = started();
    early.send(0, connection::Open::default());
    broker.wait_for_line("handshake refused: connection.open out of order");
    let mut tuned = login("PLAIN", b"\0guest\0guest");
    tuned.expect::<connection::Tune>(0);
    tuned.send(
        0,
        connection::TuneOk {
            channel_max: 1,
            frame_max: 100,
            heartbeat: 0,
        },
    );
    broker.wait_for_line(
        "handshake refused: negotiated frame_max = 100 is lower than the minimum allowed value (4096)",
    );
    let mut fatal = Client::connect(broker.address());
    fatal.send(7, stratamq::amqp::method::tx::Select {});
    broker.wait_for_line("CHANNEL_ERROR - expected 'channel.open'");
    let _silent = Client::login(
        broker.address(),
        &Login {
            heartbeat_secs: 1,
            ..Login::default()
        },
    );
    broker.wait_for_line("missed heartbeats from client, timeout: 1s");
}
