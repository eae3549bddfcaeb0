//! The operator's list of connections.

use serde_json::Value;

use super::support::TestBroker;
use super::support::raw::{Client, Login, Message, durable};
use super::support::wait::wait_until;
use super::{broker, cli};

fn list(broker: &TestBroker) -> Vec<Value> {
    let text = cli(broker, &["connection", "list", "--json"]);
    serde_json::from_str(&text).expect("JSON")
}

/// CN-17, CN-57: an operator sees who is there, closes one, and its client is told why; the others stay.
#[test]
fn an_operator_sees_connections_and_closes_one() {
    let broker = broker(&[]);
    assert_eq!(list(&broker), [] as [Value; 0]);
    let mut first = Client::connect(broker.address());
    let mut second = Client::connect(broker.address());
    let listed = list(&broker);
    let peers: Vec<String> = [&first, &second]
        .map(|c| c.stream().local_addr().expect("an address").to_string())
        .into();
    let shown: Vec<&str> = listed.iter().filter_map(|it| it["peer"].as_str()).collect();
    assert_eq!(shown, peers);
    for entry in &listed {
        assert_eq!(entry["user"], "guest");
        assert_eq!(entry["vhost"], "/");
        assert_eq!(entry["mechanism"], "PLAIN");
        assert_eq!(entry["client"], "stratamq raw test client");
        assert_eq!(entry["tls"], Value::Null);
    }
    let id = listed[0]["id"].to_string();
    cli(
        &broker,
        &["connection", "close", &id, "maintenance at noon"],
    );
    first.expect_connection_close(320, "CONNECTION_FORCED - maintenance at noon");
    second.open_channel(1);
    let left = list(&broker);
    assert_eq!(left, listed[1..]);
    let line = cli(&broker, &["connection", "list"]);
    let start = format!("{}\t{}\tguest\t/\tPLAIN\t-\t", left[0]["id"], peers[1]);
    assert!(line.starts_with(&start), "{line}");
    second.close();
    // A login that gets nowhere leaves nothing behind.
    let nowhere = Login {
        vhost: "none".into(),
        ..Login::default()
    };
    assert!(Client::try_login(broker.address(), &nowhere).is_err());
    assert_eq!(list(&broker), [] as [Value; 0]);
}

/// AK-11, CN-57: a connection whose client does not read is closed like any other: what it holds and what waits for it goes
/// back at once, whoever closes it.
#[test]
fn a_client_that_does_not_read_is_closed_all_the_same() {
    const MESSAGES: u32 = 200;
    let broker = broker(&[]);
    let mut c = Client::connect(broker.address());
    c.open_channel(1);
    c.confirm_select(1);
    c.queue_declare(1, "q", durable());
    for _ in 0..MESSAGES {
        c.publish(1, "", "q", &Message::persistent(vec![b'x'; 64 << 10]));
    }
    c.wait_confirms_upto(1, u64::from(MESSAGES));
    let mut ready = || c.message_count(1, "q");
    cli(&broker, &["user", "add", "idler", "--password", "secret"]);
    cli(&broker, &["permission", "set", "idler", ".*", ".*", ".*"]);
    for close in [&["connection", "close"][..], &["user", "delete", "idler"]] {
        let mut idler = Client::login(broker.address(), &super::login("idler", "secret"));
        idler.open_channel(1);
        idler.consume(1, "q", "t");
        // Until the socket, the output and the outbox are full.
        let mut seen = MESSAGES;
        wait_until("no more is delivered", || {
            let before = std::mem::replace(&mut seen, ready());
            seen < MESSAGES && seen == before
        });
        assert!(seen > 0, "all of it was delivered");
        let listed = list(&broker);
        let of_idler = listed.iter().find(|entry| entry["user"] == "idler");
        let id = of_idler.expect("it is connected")["id"].to_string();
        let words = match close {
            ["user", ..] => close.to_vec(),
            _ => [close, &[&id]].concat(),
        };
        cli(&broker, &words);
        wait_until("everything has come back", || ready() == MESSAGES);
        let close = idler.wait_connection_close();
        assert_eq!(close.reply_code, 320);
    }
}
