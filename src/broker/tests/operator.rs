//! Users and vhosts as an operator changes them (section 26 of the behaviour reference).

use super::access::{add_user, allow};
use super::support::TestBroker;
use crate::broker::admin::{AdminCommand, AdminReplyBody};
use crate::broker::effects::Effects;
use crate::broker::meta::MetaState;
use crate::broker::{Broker, BrokerOptions};
use crate::storage::CheckpointSource;

fn admin(broker: &mut TestBroker, command: AdminCommand) -> Result<AdminReplyBody, String> {
    let reply = broker.broker.admin(command, 0, &mut broker.effects);
    broker.journal.commit();
    reply
        .map(|reply| reply.body)
        .map_err(|error| error.to_string())
}

fn vhosts(broker: &mut TestBroker) -> Vec<String> {
    match admin(broker, AdminCommand::ListVhosts) {
        Ok(AdminReplyBody::Vhosts(names)) => names,
        other => panic!("{other:?}"),
    }
}

#[test]
fn refused_commands_change_nothing() {
    let mut broker = TestBroker::new();
    let add = |name: &str| AdminCommand::AddUser {
        name: name.into(),
        password: vec![],
        tags: vec![],
    };
    let permit = |user: &str, vhost: &str, read: &str| AdminCommand::SetPermissions {
        user: user.into(),
        vhost: vhost.into(),
        configure: String::new(),
        write: String::new(),
        read: read.into(),
    };
    let logged = broker.journal.logged().metas;
    for (command, expected) in [
        (add("guest"), "user 'guest' already exists"),
        (add(""), "a name must have 1 to 255 bytes"),
        (
            AdminCommand::DeleteUser { name: "bob".into() },
            "user 'bob' does not exist",
        ),
        (
            AdminCommand::SetPassword {
                name: "bob".into(),
                password: vec![],
            },
            "user 'bob' does not exist",
        ),
        (
            AdminCommand::SetTags {
                name: "bob".into(),
                tags: vec![],
            },
            "user 'bob' does not exist",
        ),
        (permit("bob", "/", ""), "user 'bob' does not exist"),
        (permit("guest", "none", ""), "vhost 'none' does not exist"),
        (
            AdminCommand::AddVhost { name: "/".into() },
            "vhost '/' already exists",
        ),
        (
            AdminCommand::AddVhost {
                name: "v".repeat(256),
            },
            "a name must have 1 to 255 bytes",
        ),
        (
            AdminCommand::DeleteVhost {
                name: "none".into(),
            },
            "vhost 'none' does not exist",
        ),
        (
            AdminCommand::ListPermissions {
                vhost: Some("none".into()),
            },
            "vhost 'none' does not exist",
        ),
    ] {
        assert_eq!(admin(&mut broker, command).expect_err(expected), expected);
    }
    let broken = admin(&mut broker, permit("guest", "/", "(")).expect_err("no pattern");
    assert!(broken.starts_with("invalid pattern '('"), "{broken}");
    assert_eq!(broker.journal.logged().metas, logged);
}

#[test]
fn new_password_counts_at_once() {
    let mut broker = TestBroker::new();
    let change = AdminCommand::SetPassword {
        name: "guest".into(),
        password: b"new".to_vec(),
    };
    admin(&mut broker, change).expect("sets");
    assert!(broker.broker.login("guest", b"guest", true).is_err());
    assert!(broker.broker.login("guest", b"new", true).is_ok());
}

#[test]
fn deleting_a_user_closes_its_connections() {
    let mut broker = TestBroker::new();
    add_user(&mut broker, "bob");
    allow(&mut broker, "bob", ".*", ".*", ".*");
    let mut bob = broker.connect_as("bob", "/").expect("bob has permissions");
    let guest = broker.connect();
    let user = broker.broker.login("bob", b"bob", true).expect("logs in");
    admin(&mut broker, AdminCommand::DeleteUser { name: "bob".into() }).expect("deletes");
    assert_eq!(bob.outbox.forced_close(), Some("user 'bob' is deleted"));
    assert_eq!(broker.effects.wakes.len(), 1);
    assert_eq!(guest.outbox.forced_close(), None);
    assert!(!bob.has_queue("any"), "its permissions went");
    let outbox = std::sync::Arc::clone(&guest.outbox);
    assert!(
        broker.broker.connect(&user, "/", outbox).is_err(),
        "between login and open"
    );
}

#[test]
fn deleting_a_vhost_deletes_everything_in_it() {
    let mut broker = TestBroker::new();
    admin(&mut broker, AdminCommand::AddVhost { name: "v".into() }).expect("adds");
    assert_eq!(vhosts(&mut broker), ["/", "v"]);
    let permit = AdminCommand::SetPermissions {
        user: "guest".into(),
        vhost: "v".into(),
        configure: ".*".into(),
        write: ".*".into(),
        read: ".*".into(),
    };
    admin(&mut broker, permit).expect("permits");
    let mut client = broker.connect_as("guest", "v").expect("opens");
    client.queue("q");
    client.bind("q", "amq.topic", "#");
    client.publish("amq.topic", "k").expect("publishes");
    admin(&mut broker, AdminCommand::DeleteVhost { name: "v".into() }).expect("deletes");
    assert_eq!(client.outbox.forced_close(), Some("vhost 'v' is deleted"));
    assert!(!client.has_queue("q"));
    assert!(client.publish("amq.topic", "k").is_err());
    client.close();
    assert!(
        broker.journal.logged().images.is_empty(),
        "the engine was told"
    );
    admin(&mut broker, AdminCommand::AddVhost { name: "v".into() }).expect("adds again");
    assert!(
        broker.connect_as("guest", "v").is_err(),
        "permissions went with it"
    );
    assert_eq!(vhosts(&mut broker.restart()), ["/", "v"]);
}

#[test]
fn crash_in_the_deletion_of_a_vhost_leaves_all_of_it_or_nothing() {
    let mut broker = TestBroker::new();
    admin(&mut broker, AdminCommand::AddVhost { name: "v".into() }).expect("adds");
    let permit = AdminCommand::SetPermissions {
        user: "guest".into(),
        vhost: "v".into(),
        configure: ".*".into(),
        write: ".*".into(),
        read: ".*".into(),
    };
    admin(&mut broker, permit).expect("permits");
    let mut client = broker.connect_as("guest", "v").expect("opens");
    for name in ["a", "b", "c"] {
        client.queue(name);
        client.bind(name, "amq.topic", "#");
    }
    client.publish("amq.topic", "k").expect("publishes");
    let before = broker.journal.logged();
    admin(&mut broker, AdminCommand::DeleteVhost { name: "v".into() }).expect("deletes");
    let metas = broker.journal.logged().metas;
    assert!(metas.len() > before.metas.len() + 1, "one record a queue");
    for cut in before.metas.len()..=metas.len() {
        let records: Vec<(u16, u16, &[u8])> = metas[..cut]
            .iter()
            .map(|(kind, version, body)| (*kind, *version, &body[..]))
            .collect();
        // The records of the engine's queues may be missing as well.
        let images = before.images.values().cloned().collect();
        let restored = Broker::restore(
            std::sync::Arc::clone(&broker.journal) as _,
            BrokerOptions::default(),
            None,
            &records,
            images,
            0,
            &mut Effects::default(),
        )
        .expect("restores");
        let state = MetaState::decode(&restored.meta().0).expect("a snapshot decodes");
        let found = (state.vhosts.len(), state.queues.len(), state.bindings.len());
        let is_untouched = cut == before.metas.len();
        let expected = if is_untouched { (2, 3, 3) } else { (1, 0, 0) };
        assert_eq!(found, expected, "after {cut} of {} records", metas.len());
        assert_eq!(restored.queue_ids().len(), expected.1);
    }
}

#[test]
fn queues_are_listed_with_their_counts() {
    let mut broker = TestBroker::new();
    let mut client = broker.connect();
    client.queue("b");
    client.queue("a");
    client.publish("", "b").expect("publishes");
    client.consume("a").expect("consumes");
    let rows = match admin(&mut broker, AdminCommand::ListQueues) {
        Ok(AdminReplyBody::Queues(rows)) => rows,
        other => panic!("{other:?}"),
    };
    let counts: Vec<_> = rows
        .iter()
        .map(|row| {
            (
                &*row.name,
                row.ready_count,
                row.unacked_count,
                row.consumer_count,
            )
        })
        .collect();
    assert_eq!(counts, [("a", 0, 0, 1), ("b", 1, 0, 0)]);
}
