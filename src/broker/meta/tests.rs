//! Golden bytes of every record kind, and what damaged ones are answered with.

use super::*;

fn binding() -> BindingV1 {
    BindingV1 {
        vhost: "v".into(),
        is_to_queue: true,
        destination: "q".into(),
        source: "x".into(),
        routing_key: "k".into(),
        arguments: vec![0, 0, 0, 0],
    }
}

/// One of every kind with the bytes that were written once and must be readable for ever.
fn golden() -> Vec<(Change, u16, &'static str)> {
    let vhost = || VhostV1 { name: "v".into() };
    let name = |vhost: &str, user: &str| PermissionsNameV1 {
        vhost: vhost.into(),
        user: user.into(),
    };
    vec![
        (Change::VhostAdded(vhost()), 1, "1 v"),
        (Change::VhostDeleted(vhost()), 2, "1 v"),
        (
            Change::UserSet(UserV1 {
                name: "u".into(),
                password_hash: "h".into(),
                tags: vec!["t".into()],
            }),
            3,
            "1 u 1 h 1 1 t",
        ),
        (
            Change::UserDeleted(UserNameV1 { name: "u".into() }),
            4,
            "1 u",
        ),
        (
            Change::PermissionsSet(PermissionsV1 {
                vhost: "v".into(),
                user: "u".into(),
                configure: "c".into(),
                write: "w".into(),
                read: "r".into(),
            }),
            5,
            "1 v 1 u 1 c 1 w 1 r",
        ),
        (Change::PermissionsCleared(name("v", "u")), 6, "1 v 1 u"),
        (
            Change::ExchangeDeclared(ExchangeV1 {
                vhost: "v".into(),
                name: "x".into(),
                kind: "f".into(),
                is_auto_delete: true,
                is_internal: false,
                arguments: vec![0, 0, 0, 0],
            }),
            7,
            "1 v 1 x 1 f =01 =00 4 =00 =00 =00 =00",
        ),
        (
            Change::ExchangeDeleted(ExchangeNameV1 {
                vhost: "v".into(),
                name: "x".into(),
            }),
            8,
            "1 v 1 x",
        ),
        (
            Change::QueueDeclared(QueueV1 {
                id: 7,
                vhost: "v".into(),
                name: "q".into(),
                is_auto_delete: false,
                arguments: vec![0, 0, 0, 0],
            }),
            9,
            "7 1 v 1 q =00 4 =00 =00 =00 =00",
        ),
        (Change::QueueDeleted(QueueIdV1 { id: 7 }), 10, "7"),
        (
            Change::BindingAdded(binding()),
            11,
            "1 v =01 1 q 1 x 1 k 4 =00 =00 =00 =00",
        ),
        (
            Change::BindingRemoved(binding()),
            12,
            "1 v =01 1 q 1 x 1 k 4 =00 =00 =00 =00",
        ),
        (
            Change::PolicySet(PolicyV1 {
                vhost: "v".into(),
                is_operator: true,
                name: "n".into(),
                pattern: "p".into(),
                apply_to: "a".into(),
                priority: 7,
                definition: "d".into(),
            }),
            13,
            "1 v =01 1 n 1 p 1 a 7 1 d",
        ),
        (
            Change::PolicyCleared(PolicyNameV1 {
                vhost: "v".into(),
                is_operator: true,
                name: "n".into(),
            }),
            14,
            "1 v =01 1 n",
        ),
        (
            Change::TopicPermissionsSet(TopicPermissionsV1 {
                vhost: "v".into(),
                user: "u".into(),
                exchange: "x".into(),
                write: "w".into(),
                read: "r".into(),
            }),
            15,
            "1 v 1 u 1 x 1 w 1 r",
        ),
        (
            Change::TopicPermissionsCleared(TopicPermissionsNameV1 {
                vhost: "v".into(),
                user: "u".into(),
                exchange: "x".into(),
            }),
            16,
            "1 v 1 u 1 x",
        ),
        (
            Change::LimitSet(LimitV1 {
                is_of_user: true,
                owner: "u".into(),
                name: "n".into(),
                value: -1,
            }),
            17,
            "=01 1 u 1 n =ff =ff =ff =ff =ff =ff =ff =ff",
        ),
        (
            Change::LimitCleared(LimitNameV1 {
                is_of_user: true,
                owner: "u".into(),
                name: "n".into(),
            }),
            18,
            "=01 1 u 1 n",
        ),
        (
            Change::VhostSettingsSet(VhostSettingsV1 {
                name: "v".into(),
                description: "d".into(),
                tags: vec!["t".into()],
                default_queue_type: "q".into(),
                is_protected: false,
            }),
            19,
            "1 v 1 d 1 1 t 1 q =00",
        ),
    ]
}

/// Numbers are u64 little endian, `=` marks a byte in hex, everything else is text.
fn bytes(picture: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in picture.split(' ') {
        if let Some(hex) = part.strip_prefix('=') {
            bytes.push(u8::from_str_radix(hex, 16).expect("two hex digits"));
        } else if let Ok(number) = part.parse::<u64>() {
            bytes.extend_from_slice(&number.to_le_bytes());
        } else {
            bytes.extend_from_slice(part.as_bytes());
        }
    }
    bytes
}

#[test]
fn records_are_the_bytes_that_were_agreed() {
    for (change, kind, picture) in golden() {
        assert_eq!(change.kind_and_version(), (kind, 1), "{change:?}");
        assert_eq!(change.encode(), bytes(picture), "{change:?}");
        assert_eq!(Change::decode(kind, 1, &bytes(picture)), Ok(change));
    }
}

#[test]
fn newer_records_are_refused() {
    for (_, kind, picture) in golden() {
        let newer = Change::decode(kind, 2, &bytes(picture));
        assert_eq!(
            newer,
            Err(RestoreError::UnknownVersion { kind, version: 2 })
        );
    }
    assert_eq!(
        Change::decode(20, 1, &[]),
        Err(RestoreError::UnknownKind { kind: 20 })
    );
    assert_eq!(
        Change::decode(0, 1, &[]),
        Err(RestoreError::UnknownKind { kind: 0 })
    );
}

#[test]
fn bodies_are_used_to_the_last_byte_and_no_length_is_believed() {
    for (_, kind, picture) in golden() {
        let whole = bytes(picture);
        for length in 0..whole.len() {
            let cut = Change::decode(kind, 1, &whole[..length]);
            assert!(
                matches!(cut, Err(RestoreError::Malformed { .. })),
                "{kind} cut at {length}"
            );
        }
        let longer = [&whole[..], &[0]].concat();
        let refused = Change::decode(kind, 1, &longer);
        assert!(
            matches!(refused, Err(RestoreError::Malformed { .. })),
            "{kind} with a byte more"
        );
    }
    let huge = u64::MAX.to_le_bytes();
    assert!(Change::decode(1, 1, &huge).is_err());
    let texts_without_end = [1u64.to_le_bytes(), u64::MAX.to_le_bytes()].concat();
    assert!(Change::decode(3, 1, &texts_without_end).is_err());
}

fn everything() -> MetaState {
    let mut state = MetaState::new();
    let additions = golden().into_iter().filter(|(change, _, _)| {
        !matches!(
            change,
            Change::VhostDeleted(_)
                | Change::UserDeleted(_)
                | Change::PermissionsCleared(_)
                | Change::ExchangeDeleted(_)
                | Change::QueueDeleted(_)
                | Change::BindingRemoved(_)
                | Change::PolicyCleared(_)
                | Change::TopicPermissionsCleared(_)
                | Change::LimitCleared(_)
        )
    });
    for (change, _, _) in additions {
        state.apply(change);
    }
    state
}

#[test]
fn snapshot_comes_back_and_its_envelope_is_checked() {
    let state = everything();
    assert_eq!(state.next_queue_id, 8, "above the highest id");
    let encoded = state.clone().encode();
    assert_eq!(encoded[..4], [0, 0, 2, 0], "kind and version");
    assert_eq!(MetaState::decode(&encoded), Ok(state));
    let edited = |at: usize, value: u8| {
        let mut bytes = encoded.clone();
        bytes[at] = value;
        MetaState::decode(&bytes)
    };
    assert_eq!(edited(0, 5), Err(RestoreError::UnknownKind { kind: 5 }));
    assert_eq!(
        edited(2, 9),
        Err(RestoreError::UnknownVersion {
            kind: 0,
            version: 9
        })
    );
    assert!(matches!(edited(4, 0), Err(RestoreError::Malformed { .. })));
    for length in 0..encoded.len() {
        assert!(
            MetaState::decode(&encoded[..length]).is_err(),
            "cut at {length}"
        );
    }
}

#[test]
fn applying_twice_is_applying_once() {
    for (change, _, _) in golden() {
        let mut once = everything();
        once.apply(change.clone());
        let mut twice = once.clone();
        twice.apply(change);
        assert_eq!(once, twice);
    }
}

#[test]
fn bindings_go_with_their_ends() {
    for (change, _, _) in golden() {
        let mut state = everything();
        let takes_it = matches!(
            change,
            Change::VhostDeleted(_)
                | Change::ExchangeDeleted(_)
                | Change::QueueDeleted(_)
                | Change::BindingRemoved(_)
        );
        let shown = format!("{change:?}");
        state.apply(change);
        assert_eq!(state.bindings.is_empty(), takes_it, "{shown}");
    }
}

/// A directory that was written before there were policies has the shorter snapshot.
#[test]
fn snapshot_of_version_1_is_read() {
    let state = everything();
    let body = encode::<SNAPSHOT_MAX_BYTES>(&SnapshotV1 {
        next_queue_id: state.next_queue_id,
        users: state.users.values().cloned().collect(),
        vhosts: vec![VhostV1 { name: "v".into() }],
        ..SnapshotV1::default()
    });
    let length = u32::try_from(body.len())
        .expect("a few bytes")
        .to_le_bytes();
    let envelope = [&[0, 0, 1, 0], &length[..], &body].concat();
    let read = MetaState::decode(&envelope).expect("known for ever");
    assert_eq!(read.users, state.users);
    assert!(read.vhosts.contains("v") && read.policies.is_empty());
}

#[test]
fn rules_go_with_the_vhost_and_the_user_they_are_about() {
    let mut state = everything();
    state.apply(Change::UserDeleted(UserNameV1 { name: "u".into() }));
    assert!(state.limits.is_empty() && state.topic_permissions.is_empty());
    assert!(!state.policies.is_empty() && !state.vhost_settings.is_empty());
    let mut state = everything();
    state.apply(Change::VhostDeleted(VhostV1 { name: "v".into() }));
    assert!(state.policies.is_empty() && state.topic_permissions.is_empty());
    assert!(state.vhost_settings.is_empty());
    assert_eq!(state.limits.len(), 1, "the limit of the user");
}
