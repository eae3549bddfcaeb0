//! Section 25: policies and operator policies, and what of sections 7, 16 and 34 depends on them.

use std::process::{Command, Stdio};

use stratamq::amqp::method::{basic, exchange, queue};

use super::elsewhere::skipped_elsewhere;
use super::stage::*;
use crate::support::raw::{Client, Message, durable, passive};
use crate::support::wait::wait_until;

/// `stratamq WORDS` is refused; the line it says.
#[track_caller]
pub(crate) fn cli_refused(words: &[&str]) -> String {
    let output = Command::new(crate::support::broker_binary())
        .args(words)
        .env("STRATAMQ_DATA_DIR", broker().data_dir())
        .stdin(Stdio::null())
        .output()
        .expect("the broker's binary can be executed");
    assert!(!output.status.success(), "{words:?} should be refused");
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

/// Sets a policy of `/` whose pattern is its own name, so that it is about nobody else's objects.
fn policy(name: &str, definition: &str) {
    cli(&["policy", "set", name, name, definition]);
}

/// The bodies that are left of `abcd`.
fn left_of_four(c: &mut Client, queue: &str) -> String {
    fill(c, queue, &["a", "b", "c", "d"]);
    drain(c, queue).concat()
}

/// PO-1, PO-2, PO-10: a policy matches anywhere in the name, has a priority of 0 unless it says otherwise, and holds for what
/// is declared later. Of policies with the same priority we take the first by name (the reference leaves it open).
#[test]
fn one_policy_holds_that_of_the_highest_priority() {
    if skipped_elsewhere("policies are set by our own commands") {
        return;
    }
    let mut c = client();
    let set = |name: &str, definition: &str, priority: &str| {
        let words = ["policy", "set", name, "po1", definition];
        cli(&[&words[..], &["--priority", priority]].concat());
    };
    set("po1-b", r#"{"max-length": 2}"#, "5");
    set("po1-a", r#"{"max-length": 3}"#, "5");
    set("po1-c", r#"{"max-length": 1, "max-length-bytes": 1}"#, "-5");
    c.call::<queue::DeclareOk>(1, q("my.po1.queue"));
    assert_eq!(left_of_four(&mut c, "my.po1.queue"), "bcd");
    cli(&["policy", "clear", "po1-a"]);
    assert_eq!(left_of_four(&mut c, "my.po1.queue"), "cd");
    cli(&["policy", "clear", "po1-b"]);
    assert_eq!(left_of_four(&mut c, "my.po1.queue"), "d");
    cli(&["policy", "clear", "po1-c"]);
    assert_eq!(left_of_four(&mut c, "my.po1.queue"), "abcd");
    let said = cli_refused(&["policy", "clear", "po1-c"]);
    assert!(said.contains("policy 'po1-c' does not exist"), "{said}");
}

/// PO-1: what kind of objects it is for, and patterns that look around.
#[test]
fn policies_choose_by_kind_and_by_pattern() {
    if skipped_elsewhere("policies are set by our own commands") {
        return;
    }
    let mut c = client();
    let one = r#"{"max-length": 1}"#;
    let words = ["policy", "set", "kinds1", "^(?!kinds1\\.not)kinds1", one];
    cli(&[&words[..], &["--apply-to", "classic_queues"]].concat());
    for (name, left) in [
        ("kinds1.yes", "d"),
        ("kinds1.not", "abcd"),
        ("x.kinds1", "abcd"),
    ] {
        c.call::<queue::DeclareOk>(1, q(name));
        assert_eq!(left_of_four(&mut c, name), left, "{name}");
    }
    for apply_to in ["exchanges", "streams", "quorum_queues"] {
        cli(&[&words[..], &["--apply-to", apply_to]].concat());
        assert_eq!(left_of_four(&mut c, "kinds1.yes"), "abcd", "{apply_to}");
    }
    for apply_to in ["queues", "all"] {
        cli(&[&words[..], &["--apply-to", apply_to]].concat());
        assert_eq!(left_of_four(&mut c, "kinds1.yes"), "d", "{apply_to}");
    }
    cli(&["policy", "clear", "kinds1"]);
    let said = cli_refused(&[&words[..], &["--apply-to", "things"]].concat());
    assert!(said.contains("apply-to 'things' unrecognised"), "{said}");
}

/// PO-3, PO-4: the operator's policy is merged key by key: the lower number, its own word.
#[test]
fn operator_policy_limits_the_policy() {
    if skipped_elsewhere("policies are set by our own commands") {
        return;
    }
    let mut c = client();
    c.call::<queue::DeclareOk>(1, q("po3"));
    policy("po3", r#"{"max-length": 3, "overflow": "reject-publish"}"#);
    assert_eq!(left_of_four(&mut c, "po3"), "abc");
    let operator = |definition: &str| cli(&["operator-policy", "set", "po3", "po3", definition]);
    operator(r#"{"max-length": 2}"#);
    assert_eq!(left_of_four(&mut c, "po3"), "ab");
    operator(r#"{"max-length": 9, "overflow": "drop-head"}"#);
    assert_eq!(left_of_four(&mut c, "po3"), "bcd");
    // Keys of the operator hold where the policy has none.
    operator(r#"{"max-length-bytes": 1}"#);
    assert_eq!(left_of_four(&mut c, "po3"), "a");
    cli(&["policy", "clear", "po3"]);
    assert_eq!(left_of_four(&mut c, "po3"), "d");
    let listed = cli(&["operator-policy", "list"]);
    assert!(listed.contains(r#"{"max-length-bytes":1}"#), "{listed}");
    cli(&["operator-policy", "clear", "po3"]);
    assert_eq!(left_of_four(&mut c, "po3"), "abcd");
}

/// PO-5, PO-11, PO-12: the keys of each kind, and what is said about wrong ones.
#[test]
fn keys_and_values_are_checked() {
    if skipped_elsewhere("policies are set by our own commands") {
        return;
    }
    for (definition, expected) in [
        (r#"{"max-length": -1}"#, "-1 is not a valid maximum length"),
        (r#"{"expires": 0}"#, "0 is not a valid queue expiry"),
        (r#"{"foo": 1}"#, "[foo] are not recognised policy settings"),
        ("{}", "no policy provided"),
        ("max", "the definition must be a JSON object"),
    ] {
        let said = cli_refused(&["policy", "set", "po5", "po5", definition]);
        let expected = format!("Validation failed: {expected}");
        assert!(said.contains(&expected), "{said}");
    }
    let said = cli_refused(&["policy", "set", "po5", "(", r#"{"max-length": 1}"#]);
    assert!(
        said.contains("( should be regular expression, error:"),
        "{said}"
    );
    for key in ["dead-letter-exchange", "alternate-exchange", "queue-mode"] {
        let definition = format!(r#"{{"{key}": "x"}}"#);
        let said = cli_refused(&["operator-policy", "set", "po5", "po5", &definition]);
        let expected = format!("[{key}] are not recognised operator policy settings");
        assert!(said.contains(&expected), "{said}");
    }
    let of_operators = r#"{"expires": 1, "message-ttl": 0, "max-length": 0, "max-length-bytes": 0,
        "max-in-memory-length": 0, "max-in-memory-bytes": 0, "delivery-limit": -1, "queue-version": 2,
        "overflow": "drop-head", "target-group-size": 3, "queue-master-locator": "min-masters"}"#;
    cli(&["operator-policy", "set", "po5", "po5", of_operators]);
    cli(&["operator-policy", "clear", "po5"]);
    let of_users = r#"{"alternate-exchange": "a", "consumer-disconnected-timeout": 1, "consumer-timeout": 1,
        "dead-letter-exchange": "", "dead-letter-routing-key": "k", "dead-letter-strategy": "at-least-once",
        "message-ttl": 1, "expires": 1, "max-length": 1, "max-length-bytes": 1, "queue-mode": "lazy",
        "overflow": "reject-publish-dlx", "delivery-limit": 5, "delayed-retry-type": "disabled", "max-age": "1D",
        "stream-max-segment-size-bytes": 1, "stream-filter-size-bytes": 16, "queue-leader-locator": "balanced",
        "initial-cluster-size": 3, "federation-upstream": "u", "federation-upstream-set": "all"}"#;
    // Nothing would wait between attempts, as with the argument.
    let said = cli_refused(&[
        "policy",
        "set",
        "po5",
        "po5",
        r#"{"delayed-retry-type": "all"}"#,
    ]);
    assert!(
        said.contains("Validation failed: delayed retry is not supported"),
        "{said}"
    );
    cli(&["policy", "set", "po5", "po5", of_users]);
    cli(&["policy", "clear", "po5"]);
}

/// PO-6: of numbers the lower one holds, of the rest the argument.
#[test]
fn arguments_and_policy_are_merged() {
    if skipped_elsewhere("policies are set by our own commands") {
        return;
    }
    let mut c = client();
    policy(
        "po6",
        r#"{"max-length": 2, "overflow": "reject-publish",
            "dead-letter-exchange": "", "dead-letter-routing-key": "grave6-by-policy"}"#,
    );
    let queues = [
        q_with("po6-low", [("x-max-length", int(1))]),
        q_with("po6-high", [("x-max-length", int(3))]),
        q_with("po6-drop", [("x-overflow", string("drop-head"))]),
        q_with(
            "po6-key",
            [
                ("x-overflow", string("drop-head")),
                ("x-dead-letter-exchange", string("")),
                ("x-dead-letter-routing-key", string("grave6-by-argument")),
            ],
        ),
    ];
    for declare in queues {
        c.call::<queue::DeclareOk>(1, declare);
    }
    for grave in ["grave6-by-policy", "grave6-by-argument"] {
        c.call::<queue::DeclareOk>(1, q(grave));
    }
    assert_eq!(left_of_four(&mut c, "po6-low"), "a");
    assert_eq!(left_of_four(&mut c, "po6-high"), "ab");
    assert_eq!(left_of_four(&mut c, "po6-drop"), "cd");
    assert_eq!(drain(&mut c, "grave6-by-policy"), ["a", "b"]);
    assert_eq!(left_of_four(&mut c, "po6-key"), "cd");
    assert_eq!(drain(&mut c, "grave6-by-argument"), ["a", "b"]);
    cli(&["policy", "clear", "po6"]);
}

/// PO-7, PO-9: the alternate exchange of a policy, also for an exchange that is there; the argument wins.
#[test]
fn alternate_exchange_comes_from_a_policy() {
    if skipped_elsewhere("policies are set by our own commands") {
        return;
    }
    let mut c = client();
    for (name, bound) in [("po7.by.policy", "po7.q1"), ("po7.by.argument", "po7.q2")] {
        c.call::<exchange::DeclareOk>(1, x(name, "fanout"));
        c.call::<queue::DeclareOk>(1, q(bound));
        c.call::<queue::BindOk>(1, bind(bound, name, ""));
    }
    let declare = exchange::Declare {
        arguments: table([("alternate-exchange", string("po7.by.argument"))]),
        ..x("po7.main.argument", "direct")
    };
    c.call::<exchange::DeclareOk>(1, declare);
    c.call::<exchange::DeclareOk>(1, x("po7.main.plain", "direct"));
    let send_both = |c: &mut Client| {
        for name in ["po7.main.argument", "po7.main.plain"] {
            send(c, 1, publish(name, "nowhere"), &Message::plain(name));
        }
        settle(c, 1);
        [drain(c, "po7.q1"), drain(c, "po7.q2")]
    };
    let nothing: Vec<String> = Vec::new();
    let by_argument = vec!["po7.main.argument".to_owned()];
    assert_eq!(send_both(&mut c), [nothing.clone(), by_argument.clone()]);
    let definition = r#"{"alternate-exchange": "po7.by.policy"}"#;
    cli(&["policy", "set", "po7", "po7.main", definition]);
    let by_policy = vec!["po7.main.plain".to_owned()];
    assert_eq!(send_both(&mut c), [by_policy, by_argument.clone()]);
    cli(&["policy", "clear", "po7"]);
    assert_eq!(send_both(&mut c), [nothing, by_argument]);
}

/// PO-8: a key that a type of queue does not know keeps the whole policy from it.
#[test]
fn policy_with_a_foreign_key_does_not_match() {
    if skipped_elsewhere("policies are set by our own commands") {
        return;
    }
    let mut c = client();
    c.call::<queue::DeclareOk>(1, q("po8"));
    policy("po8", r#"{"max-length": 1, "delivery-limit": 3}"#);
    assert_eq!(left_of_four(&mut c, "po8"), "abcd");
    policy("po8", r#"{"max-length": 1}"#);
    assert_eq!(left_of_four(&mut c, "po8"), "d");
    cli(&["policy", "clear", "po8"]);
}

/// PO-9, LL-8: a limit drops the heads at once, into the dead-letter exchange; one that rejects drops nothing.
#[test]
fn new_limit_holds_for_what_is_queued() {
    if skipped_elsewhere("policies are set by our own commands") {
        return;
    }
    let mut c = client();
    for name in ["po9", "grave-of-nine"] {
        c.call::<queue::DeclareOk>(1, q(name));
    }
    fill(&mut c, "po9", &["a", "b", "c", "d"]);
    policy("po9", r#"{"max-length": 1, "overflow": "reject-publish"}"#);
    assert_eq!(counts(&mut c, "po9").0, 4);
    policy(
        "po9",
        r#"{"max-length": 1, "dead-letter-exchange": "", "dead-letter-routing-key": "grave-of-nine"}"#,
    );
    assert_eq!(drain(&mut c, "grave-of-nine"), ["a", "b", "c"]);
    assert_eq!(drain(&mut c, "po9"), ["d"]);
    cli(&["policy", "clear", "po9"]);
}

/// PO-9: the lease of a queue that is there starts with the policy.
#[test]
fn expires_of_a_policy_ends_an_unused_queue() {
    if skipped_elsewhere("policies are set by our own commands") {
        return;
    }
    let mut c = client();
    c.call::<queue::DeclareOk>(1, q("lease9"));
    policy("lease9", r#"{"expires": 100}"#);
    wait_until("the queue is gone", || {
        // To look whether it is there is to use it: not before it may have gone.
        std::thread::sleep(SILENCE * 3);
        let mut c = client();
        c.try_queue_declare(1, "lease9", passive()).is_err()
    });
    cli(&["policy", "clear", "lease9"]);
}

/// TT-3, TT-4: a time to live that comes later is for messages that come later; what is queued keeps its own, and one that
/// expired behind it stays counted. (LavinMQ does it the other way, counting from the publish.)
#[test]
fn time_to_live_of_a_policy_is_for_messages_that_come_later() {
    if skipped_elsewhere("policies are set by our own commands") {
        return;
    }
    let mut c = client();
    c.call::<queue::DeclareOk>(1, q("tt3"));
    fill(&mut c, "tt3", &["old"]);
    policy("tt3", r#"{"message-ttl": 20}"#);
    fill(&mut c, "tt3", &["new"]);
    std::thread::sleep(SILENCE);
    assert_eq!(counts(&mut c, "tt3").0, 2);
    assert_eq!(drain(&mut c, "tt3"), ["old"]);
    cli(&["policy", "clear", "tt3"]);
}

/// QU-15: a queue under a policy is redeclared with the arguments it was declared with.
#[test]
fn policies_are_no_part_of_equivalence() {
    if skipped_elsewhere("policies are set by our own commands") {
        return;
    }
    let mut c = client();
    policy("qu15", r#"{"max-length": 1, "message-ttl": 60000}"#);
    c.call::<queue::DeclareOk>(1, q("qu15"));
    c.call::<queue::DeclareOk>(1, q("qu15"));
    let with_argument = q_with("qu15", [("x-max-length", int(1))]);
    let text = "PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'qu15' in vhost '/': \
                received the value '1' of type 'signedint' but current is none";
    refused(&mut c, with_argument, 406, text);
    cli(&["policy", "clear", "qu15"]);
}

/// VD-21: policies for mirrored queues, which RabbitMQ does not have any more, are accepted and mean nothing.
#[test]
fn policies_of_mirrored_queues_are_accepted() {
    if skipped_elsewhere("policies are set by our own commands") {
        return;
    }
    let mut c = client();
    policy(
        "vd21",
        r#"{"ha-mode": "exactly", "ha-params": 2, "ha-sync-mode": "automatic", "max-length": 1}"#,
    );
    c.call::<queue::DeclareOk>(1, q("vd21"));
    assert_eq!(left_of_four(&mut c, "vd21"), "d");
    cli(&["policy", "clear", "vd21"]);
}

/// A policy of one vhost is nothing to another, and confirms come under a limit that a policy set.
#[test]
fn policies_are_of_their_vhost() {
    if skipped_elsewhere("policies are set by our own commands") {
        return;
    }
    let mut c = client();
    cli(&["vhost", "add", "po-vhost"]);
    let words = [
        "policy",
        "set",
        "po-vhost",
        "po-vhost",
        r#"{"max-length": 0}"#,
    ];
    cli(&[&words[..], &["--vhost", "po-vhost"]].concat());
    c.queue_declare(1, "po-vhost", durable());
    assert_eq!(left_of_four(&mut c, "po-vhost"), "abcd");
    policy(
        "po-vhost",
        r#"{"max-length": 1, "overflow": "reject-publish"}"#,
    );
    c.confirm_select(1);
    c.publish(1, "", "po-vhost", &Message::persistent("1"));
    c.wait_confirm(1);
    c.publish(1, "", "po-vhost", &Message::persistent("2"));
    assert_eq!(c.expect::<basic::Nack>(1).delivery_tag, 2);
    cli(&["policy", "clear", "po-vhost"]);
    cli(&["vhost", "delete", "po-vhost"]);
    let json = cli(&["policy", "list", "--json"]);
    assert!(!json.contains("po-vhost"), "{json}");
}
