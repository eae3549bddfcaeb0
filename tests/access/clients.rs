//! The operator's list of connections.

use serde_json::Value;

use super::support::TestBroker;
use super::support::raw::{Client, Login};
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
