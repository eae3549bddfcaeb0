//! Matching, merging, and what is refused.

use super::*;
use crate::broker::arguments::Overflow;

fn policy(name: &str, pattern: &str, priority: i64, definition: &str) -> Policy {
    Policy {
        name: name.to_owned(),
        is_operator: false,
        pattern: NamePattern::new(pattern).expect("a pattern"),
        apply_to: ApplyTo::All,
        priority,
        definition: Definition::parse(definition, false).expect("a definition"),
    }
}

fn operator(name: &str, pattern: &str, priority: i64, definition: &str) -> Policy {
    Policy {
        is_operator: true,
        definition: Definition::parse(definition, true).expect("a definition"),
        ..policy(name, pattern, priority, definition)
    }
}

fn policies(all: impl IntoIterator<Item = Policy>) -> Policies {
    let mut policies = Policies::default();
    for policy in all {
        policies.insert(Arc::new(policy));
    }
    policies
}

fn settings_of(policies: &Policies, queue: &str, arguments: &FieldTable) -> QueueArguments {
    let declared = QueueArguments::parse(arguments, queue, "/").expect("good arguments");
    let name = ShortString::from_text(queue).expect("a name");
    QueueArguments::clone(&policies.queue_settings(&name, arguments, declared))
}

#[test]
fn one_policy_applies_the_first_of_the_highest_priority() {
    let policies = policies([
        policy("low", "q", 1, r#"{"max-length": 1, "expires": 5}"#),
        policy("b", "q", 2, r#"{"max-length": 2}"#),
        policy("a", "q", 2, r#"{"max-length": 3}"#),
        policy("other", "^x", 9, r#"{"max-length": 4}"#),
    ]);
    let settings = settings_of(&policies, "my.q", &FieldTable::new());
    assert_eq!((settings.max_length, settings.expires_ms), (Some(3), None));
    let settings = settings_of(&policies, "z", &FieldTable::new());
    assert_eq!(settings, QueueArguments::default());
}

#[test]
fn operator_policy_and_arguments_are_merged_key_by_key() {
    let policies = policies([
        policy(
            "user",
            "",
            0,
            r#"{"max-length": 10, "message-ttl": 500, "overflow": "reject-publish",
                "dead-letter-exchange": "dlx", "dead-letter-routing-key": "k"}"#,
        ),
        operator(
            "operator",
            "",
            0,
            r#"{"max-length": 20, "message-ttl": 100, "max-length-bytes": 7, "overflow": "drop-head"}"#,
        ),
    ]);
    let settings = settings_of(&policies, "q", &FieldTable::new());
    let expected = QueueArguments {
        max_length: Some(10),
        max_length_bytes: Some(7),
        message_ttl_ms: Some(100),
        overflow: Overflow::DropHead,
        dead_letter: Some(DeadLetterTarget {
            exchange: ShortString::from_static("dlx"),
            routing_key: Some(ShortString::from_static("k")),
        }),
        ..QueueArguments::default()
    };
    assert_eq!(settings, expected);
    let arguments = FieldTable::new()
        .with("x-max-length", 5)
        .with("x-message-ttl", 900)
        .with("x-overflow", "reject-publish-dlx")
        .with("x-dead-letter-exchange", "own");
    let expected = QueueArguments {
        max_length: Some(5),
        overflow: Overflow::RejectPublishDlx,
        dead_letter: Some(DeadLetterTarget {
            exchange: ShortString::from_static("own"),
            routing_key: Some(ShortString::from_static("k")),
        }),
        ..expected
    };
    assert_eq!(settings_of(&policies, "q", &arguments), expected);
}

#[test]
fn delivery_limits_are_merged_with_care_for_negative_ones() {
    for (one, other, expected) in [(3, 5, 3), (-1, 5, 5), (5, -1, 5), (-2, -1, -1)] {
        let merged = definition::stricter_limit(Some(one), Some(other));
        assert_eq!(merged, Some(expected), "{one} {other}");
    }
    assert_eq!(definition::stricter_limit(None, Some(2)), Some(2));
}

#[test]
fn policy_with_a_foreign_key_does_not_match_at_all() {
    let quorum_only = policy("p", "", 5, r#"{"delivery-limit": 3, "max-length": 1}"#);
    let policies = policies([quorum_only, policy("w", "", 1, r#"{"max-length": 9}"#)]);
    let settings = settings_of(&policies, "q", &FieldTable::new());
    assert_eq!(settings.max_length, Some(9));
    let quorum = policies.settings_of("q", ObjectKind::QuorumQueue);
    assert_eq!(
        (quorum.max_length, quorum.delivery_limit),
        (Some(1), Some(3))
    );
}

/// QQ-2, PO-4: arguments, policies and the default of a delivery limit.
#[test]
fn stricter_delivery_limit_holds_for_a_quorum_queue() {
    let quorum = FieldTable::new().with("x-queue-type", "quorum");
    let limit = |policy_of: i64, arguments: &FieldTable| {
        let definition = format!(r#"{{"delivery-limit": {policy_of}}}"#);
        let policies = policies([policy("p", "", 0, &definition)]);
        settings_of(&policies, "q", arguments).delivery_limit
    };
    assert_eq!(limit(3, &quorum), Some(3));
    assert_eq!(
        limit(30, &quorum),
        Some(30),
        "the default of 20 is none of both"
    );
    assert_eq!(limit(-1, &quorum), None);
    let five = quorum.with("x-delivery-limit", 5);
    assert_eq!(limit(3, &five), Some(3));
    assert_eq!(limit(30, &five), Some(5));
    assert_eq!(limit(-1, &five), Some(5));
    assert_eq!(
        limit(3, &FieldTable::new()),
        None,
        "a classic queue has none"
    );
}

#[test]
fn policies_apply_to_what_they_say() {
    let mut only = policy(
        "p",
        "",
        0,
        r#"{"alternate-exchange": "ae", "max-length": 1}"#,
    );
    let name = ShortString::from_static("n");
    for (apply_to, is_for_exchanges, is_for_queues) in [
        ("all", true, true),
        ("exchanges", true, false),
        ("queues", false, true),
        ("classic_queues", false, true),
        ("quorum_queues", false, false),
        ("streams", false, false),
    ] {
        only.apply_to = ApplyTo::from_name(apply_to).expect("a kind of object");
        assert_eq!(only.apply_to.name(), apply_to);
        let policies = policies([Policy {
            pattern: only.pattern.clone(),
            definition: only.definition.clone(),
            name: only.name.clone(),
            ..only
        }]);
        let settings = settings_of(&policies, "n", &FieldTable::new());
        assert_eq!(settings.max_length.is_some(), is_for_queues, "{apply_to}");
        let alternate = policies.alternate_exchange(&name);
        assert_eq!(alternate.is_some(), is_for_exchanges, "{apply_to}");
    }
}

#[test]
fn bad_definitions_are_refused_in_words() {
    for (definition, is_operator, expected) in [
        (
            r#"{"max-length": -1}"#,
            false,
            "-1 is not a valid maximum length",
        ),
        (r#"{"expires": 0}"#, false, "0 is not a valid queue expiry"),
        (
            r#"{"overflow": "x"}"#,
            true,
            "x is not a valid overflow value",
        ),
        (
            r#"{"message-ttl": "5"}"#,
            false,
            "5 is not a valid message TTL",
        ),
        (
            r#"{"message-ttl": 315360000001}"#,
            false,
            "315360000001 is not a valid message TTL",
        ),
        (
            r#"{"a": 1, "b": 2}"#,
            false,
            "[a, b] are not recognised policy settings",
        ),
        (
            r#"{"dead-letter-exchange": "x"}"#,
            true,
            "[dead-letter-exchange] are not recognised operator policy settings",
        ),
        ("{}", false, "no policy provided"),
    ] {
        let refused = Definition::parse(definition, is_operator).map(|_| ());
        assert_eq!(refused, Err(expected.to_owned()), "{definition}");
    }
    let no_object = Definition::parse("[1]", false).map(|_| ());
    assert!(no_object.is_err_and(|text| text.starts_with("the definition must be a JSON object")));
}

#[test]
fn no_policy_takes_anything_from_a_queue_whose_declaration_was_lost() {
    let limits = r#"{"max-length": 1, "max-length-bytes": 2, "message-ttl": 3, "expires": 4}"#;
    let policies = policies([
        policy(
            "user",
            "",
            0,
            r#"{"max-length": 1, "dead-letter-exchange": "dlx"}"#,
        ),
        operator("operator", "", 0, limits),
    ]);
    let lost = FieldTable::new().with("x-recovered", true);
    let settings = settings_of(&policies, "recovered.7", &lost);
    assert_eq!(
        (settings.max_length, settings.max_length_bytes),
        (None, None)
    );
    assert_eq!((settings.message_ttl_ms, settings.expires_ms), (None, None));
    assert!(settings.dead_letter.is_some(), "the rest holds");
    // The name alone says nothing.
    let settings = settings_of(&policies, "recovered.7", &FieldTable::new());
    assert_eq!(settings.max_length, Some(1));
}
