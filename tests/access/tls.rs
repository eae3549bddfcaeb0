//! The TLS listener, with certificates made for each test and a client that is not ours underneath (rustls).

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rustls::version::{TLS12, TLS13};
use stratamq::amqp::method::{basic, connection};

use super::authorities::{Authority, Files, Identity, client_of};
use super::support::raw::{Client, Login, Message, Outcome, Trouble, durable, text};
use super::support::wait::{wait_until, wait_until_ok};
use super::support::{TestBroker, free_port, signal};
use super::{cli, login, refusal};

/// A broker with a TLS listener, and who signs for both sides.
struct Stage {
    servers: Authority,
    clients: Authority,
    files: Files,
    broker: TestBroker,
    port: u16,
}

impl Stage {
    #[track_caller]
    fn new(flags: &[&str]) -> Self {
        let (servers, clients) = (Authority::new("Servers"), Authority::new("Clients"));
        let files = Files::new(&servers.server("first"), &clients);
        let (broker, port) = files.start(flags);
        Self {
            servers,
            clients,
            files,
            broker,
            port,
        }
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    fn try_login(&self, identity: Option<&Identity>, login: &Login) -> Outcome<Client> {
        let tls = client_of(&self.servers, identity, &[&TLS13, &TLS12]);
        Client::try_login_tls(self.address(), tls, login)
    }

    #[track_caller]
    fn login(&self, identity: Option<&Identity>, login: &Login) -> Client {
        match self.try_login(identity, login) {
            Ok(client) => client,
            Err(trouble) => panic!("{trouble}"),
        }
    }
}

fn external() -> Login {
    Login {
        mechanism: "EXTERNAL",
        ..Login::default()
    }
}

/// Messages of all sizes go both ways, over TLS and beside it.
#[test]
fn tls_carries_the_same_protocol() {
    let stage = Stage::new(&[]);
    let mut secret = stage.login(None, &Login::default());
    let mut plain = Client::connect(stage.broker.address());
    for c in [&mut secret, &mut plain] {
        c.open_channel(1);
        c.confirm_select(1);
    }
    secret.queue_declare(1, "q", durable());
    for size in [0, 1, 1000, 16_384, 200_000, 5_000_000] {
        let body: Vec<u8> = (0..size)
            .map(|at: u32| at.to_le_bytes()[0] ^ at.to_le_bytes()[1])
            .collect();
        secret.publish(1, "", "q", &Message::persistent(body.clone()));
        secret.wait_confirm(1);
        let got = plain.get(1, "q").expect("the message");
        assert!(got.message.body == body, "{size} bytes from TLS");
        plain.ack(1, got.tag);
        plain.publish(1, "", "q", &Message::persistent(body.clone()));
        plain.wait_confirm(1);
        let got = secret.get(1, "q").expect("the message");
        assert!(got.message.body == body, "{size} bytes to TLS");
        secret.ack(1, got.tag);
    }
    // Many small ones in one go, consumed.
    for _ in 0..2000 {
        secret.push_publish(1, "", "q", &Message::plain("small"));
    }
    secret.flush().expect("sent");
    let consume = basic::Consume {
        queue: text("q"),
        no_ack: true,
        ..basic::Consume::default()
    };
    secret.call::<basic::ConsumeOk>(1, consume);
    for _ in 0..2000 {
        assert_eq!(secret.next_delivery(1).message.body_text(), "small");
    }
    secret.close();
}

/// CN-11, CN-23: the owner of a valid certificate needs no password; whom it names has to exist and to be allowed in.
#[test]
fn a_certificate_logs_in_as_whom_it_names() {
    let stage = Stage::new(&[
        "--tls-verify",
        "optional",
        "--auth-mechanisms",
        "PLAIN,EXTERNAL",
        "--login-delay-ms",
        "50",
    ]);
    cli(&stage.broker, &["user", "add", "alice", "--password", ""]);
    cli(
        &stage.broker,
        &["permission", "set", "alice", ".*", ".*", ".*"],
    );
    let alice = stage.clients.client("alice");
    let mut c = stage.login(Some(&alice), &external());
    c.open_channel(1);
    c.queue_declare(1, "q", durable());
    // user-id shows who it is.
    let mallory = Message::with("m", |properties| {
        properties.set_user_id(Some(text("mallory")));
    });
    c.publish(1, "", "q", &mallory);
    c.expect_channel_close(
        1,
        406,
        "PRECONDITION_FAILED - user_id property set to 'mallory' but authenticated user was 'alice'",
    );
    let told = "ACCESS_REFUSED - Login was refused using authentication mechanism EXTERNAL. For details see the broker logfile.";
    let bob = stage.clients.client("bob");
    for identity in [Some(&bob), None] {
        let (code, text) = refusal(stage.try_login(identity, &external()));
        assert_eq!((code, text.as_str()), (403, told));
    }
    // A certificate does not stand in the way of a password, and is nothing on the other listener.
    stage.login(Some(&alice), &Login::default()).close();
    stage.login(None, &Login::default()).close();
    match Client::try_login(stage.broker.address(), &external()) {
        Err(Trouble::Gone(_)) => {}
        other => panic!("{:?}", other.map(drop)),
    }
    let mut c = Client::connect_tcp(stage.broker.address());
    c.send_bytes(b"AMQP\x00\x00\x09\x01").expect("sent");
    let start: connection::Start = c.expect(0);
    assert_eq!(&start.mechanisms[..], b"PLAIN");
}

/// Nobody gets to say a word whose certificate is missing or signed by a stranger.
#[test]
fn certificates_can_be_required() {
    let stage = Stage::new(&["--tls-verify", "require"]);
    let friend = stage.clients.client("friend");
    stage.login(Some(&friend), &Login::default()).close();
    let stranger = Authority::new("Clients").client("friend");
    for identity in [None, Some(&stranger)] {
        match stage.try_login(identity, &Login::default()) {
            Err(Trouble::Gone(_)) => {}
            other => panic!("{:?}", other.map(drop)),
        }
    }
    stage.broker.wait_for_line("TLS handshake failed");
    stage.login(Some(&friend), &Login::default()).close();
}

/// With `optional`, a certificate of a stranger is worse than none.
#[test]
fn a_wrong_certificate_is_refused_where_none_is_fine() {
    let stage = Stage::new(&["--tls-verify", "optional"]);
    let stranger = Authority::new("Clients").client("friend");
    assert!(stage.try_login(Some(&stranger), &Login::default()).is_err());
    stage.login(None, &Login::default()).close();
}

#[test]
fn old_versions_can_be_shut_out() {
    let stage = Stage::new(&["--tls-min-version", "1.3"]);
    let old = client_of(&stage.servers, None, &[&TLS12]);
    assert!(Client::try_login_tls(stage.address(), old, &Login::default()).is_err());
    stage.login(None, &Login::default()).close();
    let usual = Stage::new(&[]);
    let old = client_of(&usual.servers, None, &[&TLS12]);
    let client = Client::try_login_tls(usual.address(), old, &Login::default());
    client.unwrap_or_else(|trouble| panic!("{trouble}")).close();
}

/// SIGHUP: new connections see the new certificate, old ones go on; files that are wrong change nothing.
#[test]
fn certificates_are_read_again_while_connections_go_on() {
    let stage = Stage::new(&[]);
    let certificate = |c: &Client| {
        let chain = c.tls().peer_certificates().expect("a server shows one");
        chain.first().expect("at least one").to_vec()
    };
    let mut old = stage.login(None, &Login::default());
    old.open_channel(1);
    let first = certificate(&old);
    let pid = stage.broker.pid();

    stage.files.put(&stage.servers.server("second"));
    signal("HUP", pid);
    stage.broker.wait_for_line("TLS certificates read again");
    let new = stage.login(None, &Login::default());
    let second = certificate(&new);
    assert!(first != second, "the new one is shown");

    // A certificate without its key; the complaint is one line.
    stage
        .files
        .write("server.pem", &stage.servers.server("third").cert);
    signal("HUP", pid);
    let line = stage
        .broker
        .wait_for_line("TLS certificates not read again");
    assert!(
        line.contains("server.pem") && line.contains("the old ones stay"),
        "{line}"
    );
    stage.files.write("server.key", "no key");
    signal("HUP", pid);
    stage.broker.wait_for_line("server.key holds no usable key");
    assert!(
        certificate(&stage.login(None, &Login::default())) == second,
        "the old one stays"
    );

    old.queue_declare(1, "q", durable());
    old.close();
}

/// A SIGHUP that comes while the broker recovers is heeded, and ends nothing.
#[test]
fn certificates_are_read_again_during_recovery() {
    let mut stage = Stage::new(&[]);
    stage.broker.terminate();
    // Whoever opens it waits until somebody writes to it.
    let superblock = stage.broker.data_dir().join("superblock.0");
    std::fs::remove_file(&superblock).expect("it is there");
    let made = std::process::Command::new("mkfifo")
        .arg(&superblock)
        .status();
    assert!(made.is_ok_and(|status| status.success()));
    stage.broker.begin_restart();
    let pid = stage.broker.pid();
    wait_until("the data directory is locked", || {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs");
        let mut paths = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        paths.any(|path| path.ends_with("LOCK"))
    });
    signal("HUP", pid);
    stage.broker.wait_for_line("TLS certificates read again");
}

/// LM-12: a client that does not get on with the TLS handshake is gone; so is one that speaks AMQP to that port, and a probe.
#[test]
fn a_slow_tls_handshake_ends() {
    let stage = Stage::new(&["--tls-handshake-timeout-ms", "1000"]);
    let mut silent = Client::connect_tcp(stage.address());
    let mut slow = Client::connect_tcp(stage.address());
    slow.send_bytes(b"\x16\x03\x01\x02\x00\x01\x00")
        .expect("sent");
    for c in [&mut silent, &mut slow] {
        assert_eq!(c.read_to_end().expect("an end"), b"");
    }
    stage.broker.wait_for_line("TLS handshake not done in time");
    // An alert of TLS, and nothing of AMQP; on a busy machine the time may be over before.
    wait_until("an alert", || {
        let mut plain = Client::connect_tcp(stage.address());
        plain.send_bytes(b"AMQP\x00\x00\x09\x01").expect("sent");
        let answer = plain.read_to_end().expect("an end");
        assert!([None, Some(&0x15)].contains(&answer.first()), "{answer:?}");
        !answer.is_empty()
    });
    drop(Client::connect_tcp(stage.address()));
    let login = || stage.try_login(None, &Login::default());
    wait_until_ok("a login in time", login).close();
}

/// CN-57: a stop is told over TLS as well, and the stream ends in order: not as if it had been cut.
#[test]
fn a_stop_is_told_over_tls() {
    let mut stage = Stage::new(&[]);
    let mut c = stage.login(None, &Login::default());
    signal("TERM", stage.broker.pid());
    let close = c.wait_connection_close();
    assert_eq!(close.reply_code, 320);
    assert_eq!(c.read_to_end().expect("an end"), b"");
    assert!(c.has_tls_ended(), "TLS has a goodbye of its own");
    assert!(stage.broker.wait_for_exit().success());
}

/// The other listener can be shut.
#[test]
fn tls_can_be_the_only_way_in() {
    let (servers, clients) = (Authority::new("Servers"), Authority::new("Clients"));
    let files = Files::new(&servers.server("only"), &clients);
    let port = free_port();
    let directory = tempfile::tempdir().expect("a directory");
    let config = directory.path().join("c.toml");
    let text = |name: &str| format!("{:?}", files.path(name));
    let (cert, key) = (text("server.pem"), text("server.key"));
    std::fs::write(
        &config,
        format!("tls-port = {port}\ntls-cert = {cert}\ntls-key = {key}\n"),
    )
    .expect("written");
    let mut broker = std::process::Command::new(super::support::broker_binary())
        .arg("--data-dir")
        .arg(directory.path().join("data"))
        .args(["--amqp-port", "off", "--config"])
        .arg(&config)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the broker's binary can be executed");
    let stdout = broker.stdout.take().expect("piped");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stdout));
    let listening: Vec<String> = lines
        .by_ref()
        .map_while(Result::ok)
        .take_while(|line| !line.contains("Server startup complete"))
        .filter(|line| line.starts_with("listening on"))
        .collect();
    assert_eq!(
        listening,
        [format!("listening on    127.0.0.1:{port} (TLS)")]
    );
    let tls = client_of(&servers, None, &[&TLS13]);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let client = Client::try_login_tls(address, tls, &Login::default());
    client.unwrap_or_else(|trouble| panic!("{trouble}")).close();
    signal("TERM", broker.id());
    assert!(broker.wait().expect("it ends").success());
}

/// Files that cannot be used are named in one line, before anything is done.
#[test]
fn unusable_certificates_end_the_start() {
    let (servers, clients) = (Authority::new("Servers"), Authority::new("Clients"));
    let files = Files::new(&servers.server("fine"), &clients);
    let foreign = servers.server("other").key;
    let data = files.path("data");
    let check = |wanted: &str| {
        let builder = TestBroker::builder()
            .data_dir(&data)
            .arg("--tls-verify")
            .arg("require");
        let builder = files
            .flags(free_port())
            .into_iter()
            .fold(builder, super::support::Builder::arg);
        let output = builder.run_to_end();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        let last = said.lines().last().expect("a line");
        assert!(
            last.starts_with("stratamq: TLS: ") && last.contains(wanted),
            "{said}"
        );
        assert!(!data.join("superblock").exists(), "nothing was done");
    };
    files.write("server.key", &foreign);
    check("server.pem holds no usable certificate for the key");
    files.write("server.key", "nothing");
    check("server.key holds no usable key");
    std::fs::remove_file(files.path("server.key")).expect("removed");
    check("server.key: No such file");
    files.put(&servers.server("fine"));
    files.write("ca.pem", "");
    check("ca.pem holds no usable certificate");
}

/// A client that stops reading over TLS is held by its own buffers, and nobody else.
#[test]
fn a_client_that_does_not_read_hurts_nobody() {
    let stage = Stage::new(&[]);
    let mut lazy = stage.login(None, &Login::default());
    lazy.open_channel(1);
    lazy.queue_declare(1, "q", durable());
    let consume = basic::Consume {
        queue: text("q"),
        no_ack: false,
        ..basic::Consume::default()
    };
    lazy.call::<basic::ConsumeOk>(1, consume);
    let mut busy = stage.login(None, &Login::default());
    busy.open_channel(1);
    busy.confirm_select(1);
    for _ in 0..40 {
        busy.publish(1, "", "q", &Message::plain(vec![7; 1 << 20]));
        busy.wait_confirm(1);
    }
    // And what it did not read comes when it does.
    lazy.set_read_limit(Duration::from_secs(60));
    for _ in 0..40 {
        let delivery = lazy.next_delivery(1);
        assert_eq!(delivery.message.body.len(), 1 << 20);
        lazy.ack(1, delivery.tag);
    }
    let other = login("guest", "guest");
    stage.login(None, &other).close();
}
