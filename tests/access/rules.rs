//! Policies, limits and what is said about vhosts over a crash, on a stopped directory, and limits of the whole broker.

use std::process::{Command, Stdio};

use stratamq::amqp::method::exchange;

use super::support::TestBroker;
use super::support::raw::{Client, Login, Message, durable, text, transient};
use super::support::wait::wait_until;
use super::{broker, cli, refusal};

/// `stratamq WORDS` on the directory is refused; the line it says.
#[track_caller]
fn cli_refused(broker: &TestBroker, words: &[&str]) -> String {
    let output = Command::new(broker.binary())
        .args(words)
        .env("STRATAMQ_DATA_DIR", broker.data_dir())
        .stdin(Stdio::null())
        .output()
        .expect("the broker's binary can be executed");
    assert!(!output.status.success(), "{words:?} should be refused");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const POLICY: &str = r#"{"max-length": 2, "alternate-exchange": "ae"}"#;

fn check_all_is_there(broker: &TestBroker, kept: &str) {
    for (listing, expected) in [
        ("policy", r#"{"alternate-exchange":"ae","max-length":2}"#),
        ("operator-policy", r#"{"max-length":1}"#),
        ("topic-permission", "guest\tt\twrite '^a'\tread '^b'"),
        ("limit", "vhost '/'\tmax-queues\t2"),
        ("limit", "user 'guest'\tmax-connections\t3"),
    ] {
        let listed = cli(broker, &[listing, "list"]);
        assert!(listed.contains(expected), "{expected}: {listed}");
    }
    let listed = cli(broker, &["vhost", "describe"]);
    assert!(listed.contains("/\t'the one'\t[a]"), "{listed}");
    let mut c = broker.client(1);
    c.confirm_select(1);
    for number in 1..=3 {
        c.publish(1, "", "q", &Message::persistent(format!("{kept}{number}")));
    }
    c.wait_confirms_upto(1, 3);
    assert_eq!(c.message_count(1, "q"), 1);
    // Not routed: the alternate exchange of the policy gets it.
    c.publish(1, "x", "nowhere", &Message::persistent("over"));
    c.wait_confirm(1);
    assert_eq!(c.message_count(1, "over"), 1);
    c.try_purge(1, "over").expect("it may be purged");
    let full = c.try_queue_declare(1, "third", transient());
    assert!(full.is_err(), "the limit of queues holds");
    c.close();
}

/// PO-9, VH-4, LM-4: all of it survives `kill -9` and a clean stop, from records and from a checkpoint, and is changed on a stopped
/// directory by the same words.
#[test]
fn what_operators_said_survives_a_crash_and_a_stop() {
    let mut broker = broker(&[]);
    let mut c = broker.client(1);
    let fanout = exchange::Declare {
        durable: true,
        kind: text("fanout"),
        exchange: text("ae"),
        ..exchange::Declare::default()
    };
    c.call::<exchange::DeclareOk>(1, fanout.clone());
    let direct = exchange::Declare {
        kind: text("direct"),
        exchange: text("x"),
        ..fanout
    };
    c.call::<exchange::DeclareOk>(1, direct);
    c.queue_declare(1, "q", durable());
    c.queue_declare(1, "over", durable());
    c.bind(1, "over", "ae", "");
    c.close();
    cli(&broker, &["policy", "set", "p", "^[qx]$", POLICY]);
    let operator = ["operator-policy", "set", "o", "^q$", r#"{"max-length": 1}"#];
    cli(&broker, &[&operator[..], &["--priority", "-1"]].concat());
    cli(
        &broker,
        &["topic-permission", "set", "guest", "t", "^a", "^b"],
    );
    cli(
        &broker,
        &["limit", "set", "--vhost", "/", "max-queues", "2"],
    );
    cli(
        &broker,
        &["limit", "set", "--user", "guest", "max-connections", "3"],
    );
    let describe = [
        "vhost",
        "set",
        "/",
        "--description",
        "the one",
        "--tag",
        "a",
    ];
    cli(&broker, &describe);
    check_all_is_there(&broker, "a");
    broker.kill();
    broker.restart();
    check_all_is_there(&broker, "b");
    assert!(broker.terminate().success());
    // From the checkpoint, by a broker that only lists; then changed there.
    let listed = cli(&broker, &["limit", "list", "--json"]);
    assert!(listed.contains("max-queues"), "{listed}");
    cli(&broker, &["policy", "set", "p", "^nothing$", POLICY]);
    cli(&broker, &["operator-policy", "clear", "o"]);
    cli(&broker, &["limit", "clear", "--vhost", "/", "max-queues"]);
    let refused = cli_refused(&broker, &["policy", "set", "p", "(", POLICY]);
    assert!(
        refused.contains("should be regular expression"),
        "{refused}"
    );
    broker.restart();
    let mut c = broker.client(1);
    for _ in 0..3 {
        c.publish(1, "", "q", &Message::persistent("m"));
    }
    c.queue_declare(1, "third", transient());
    assert_eq!(c.message_count(1, "q"), 4);
    c.close();
}

/// A policy that came while messages were queued is as if it had always been, for what a restart finds too much.
#[test]
fn limit_of_a_policy_holds_after_a_restart() {
    let mut broker = broker(&[]);
    let mut c = broker.client(1);
    c.queue_declare(1, "q", durable());
    c.queue_declare(1, "dead", durable());
    c.confirm_select(1);
    for body in ["a", "b", "c"] {
        c.publish(1, "", "q", &Message::persistent(body));
    }
    c.wait_confirms_upto(1, 3);
    assert!(broker.terminate().success());
    let definition =
        r#"{"max-length": 1, "dead-letter-exchange": "", "dead-letter-routing-key": "dead"}"#;
    cli(&broker, &["policy", "set", "p", "^q$", definition]);
    broker.restart();
    let mut c = broker.client(1);
    assert_eq!(c.message_count(1, "q"), 1);
    wait_until("both are dead letters", || c.message_count(1, "dead") == 2);
    let dead: Vec<String> = std::iter::from_fn(|| c.get(1, "dead"))
        .map(|got| got.message.body_text())
        .collect();
    assert_eq!(dead, ["a", "b"]);
}

/// EX-9, QU-7, LM-8: limits of the whole broker; what is there may be declared again.
#[test]
fn vhosts_queues_and_exchanges_are_limited() {
    // Six predeclared ones and the default exchange in each of two vhosts, and one more.
    let flags = [
        "--max-vhosts",
        "2",
        "--max-queues",
        "2",
        "--max-exchanges",
        "15",
    ];
    let broker = broker(&flags);
    cli(&broker, &["vhost", "add", "two"]);
    let said = cli_refused(&broker, &["vhost", "add", "three"]);
    assert!(
        said.contains("cannot create vhost 'three': vhost limit of 2 is reached"),
        "{said}"
    );
    let permissions = [
        "permission",
        "set",
        "guest",
        ".*",
        ".*",
        ".*",
        "--vhost",
        "two",
    ];
    cli(&broker, &permissions);
    let mut c = broker.client(1);
    let mut other = Client::login(
        broker.address(),
        &Login {
            vhost: "two".into(),
            ..Login::default()
        },
    );
    other.open_channel(1);
    other.queue_declare(1, "a", transient());
    c.queue_declare(1, "b", transient());
    c.queue_declare(1, "b", transient());
    c.open_channel(2);
    let refused = c.try_queue_declare(2, "c", transient());
    let told = refused.expect_err("it is one too many").to_string();
    let expected =
        "PRECONDITION_FAILED - cannot declare queue 'c': queue limit in cluster (2) is reached";
    assert!(told.contains(expected), "{told}");
    let declare = |name: &str| exchange::Declare {
        exchange: text(name),
        kind: text("fanout"),
        ..exchange::Declare::default()
    };
    c.call::<exchange::DeclareOk>(1, declare("x"));
    c.call::<exchange::DeclareOk>(1, declare("x"));
    c.open_channel(3);
    let refused = c.try_call::<exchange::DeclareOk>(3, declare("y"));
    let told = refused.expect_err("it is one too many").to_string();
    let expected = "PRECONDITION_FAILED - cannot declare exchange 'y' in vhost '/': exchange limit of 15 is reached";
    assert!(told.contains(expected), "{told}");
    let missing = Login {
        vhost: "three".into(),
        ..Login::default()
    };
    assert_eq!(
        refusal(Client::try_login(broker.address(), &missing)).0,
        530
    );
}
