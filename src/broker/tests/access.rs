//! Permissions (section 27 of the behaviour reference) and opening (section 3.5).

use super::refusal;
use super::support::{TestBroker, TestConnection, bind, bind_exchange, exchange, queue, short};
use crate::amqp::field_table::FieldTable;
use crate::broker::LoginError;
use crate::broker::admin::AdminCommand;
use crate::broker::command::{Command, ExchangeDeclare, QueueDeclare};

pub(super) fn add_user(broker: &mut TestBroker, name: &str) {
    let command = AdminCommand::AddUser {
        name: name.to_owned(),
        password: name.as_bytes().to_vec(),
        tags: vec![],
    };
    broker
        .broker
        .admin(command, 0, &mut broker.effects)
        .expect("adds the user");
    broker.journal.commit();
}

pub(super) fn allow(broker: &mut TestBroker, name: &str, configure: &str, write: &str, read: &str) {
    let command = AdminCommand::SetPermissions {
        user: name.to_owned(),
        vhost: "/".to_owned(),
        configure: configure.to_owned(),
        write: write.to_owned(),
        read: read.to_owned(),
    };
    broker
        .broker
        .admin(command, 0, &mut broker.effects)
        .expect("sets permissions");
    broker.journal.commit();
}

#[test]
fn guest_may_only_log_in_from_this_machine() {
    let broker = TestBroker::new().broker;
    assert!(broker.login("guest", b"guest", true).is_ok());
    assert_eq!(
        broker.login("guest", b"guest", false),
        Err(LoginError::NotLoopback)
    );
    assert_eq!(
        broker.login("guest", b"wrong", false),
        Err(LoginError::InvalidCredentials)
    );
}

#[test]
fn opening_needs_a_vhost_and_permissions() {
    let mut broker = TestBroker::new();
    add_user(&mut broker, "bob");
    for (user, vhost, expected) in [
        ("guest", "/", ""),
        ("guest", "nosuch", "NOT_ALLOWED: vhost nosuch not found"),
        ("guest", "", "NOT_ALLOWED: vhost  not found"),
        (
            "bob",
            "/",
            "NOT_ALLOWED: access to vhost '/' refused for user 'bob'",
        ),
    ] {
        let refusal = broker
            .connect_as(user, vhost)
            .err()
            .map(|error| error.to_string());
        assert_eq!(refusal.unwrap_or_default(), expected);
    }
    assert_eq!(
        broker.broker.connection_count(),
        1,
        "refused ones are forgotten"
    );
}

/// The operations of the table with what each needs, as `(command, rights)`.
fn operations() -> Vec<(Command, &'static str)> {
    let dead_letters = QueueDeclare {
        arguments: FieldTable::new().with("x-dead-letter-exchange", "dlx"),
        ..queue("new")
    };
    let alternate = ExchangeDeclare {
        arguments: FieldTable::new().with("alternate-exchange", "ae"),
        ..exchange("new", "fanout")
    };
    vec![
        (
            Command::ExchangeDeclare(exchange("new", "fanout")),
            "configure exchange new",
        ),
        (
            Command::ExchangeDeclare(alternate.clone()),
            "read exchange new",
        ),
        (Command::ExchangeDeclare(alternate), "write exchange ae"),
        (
            Command::ExchangeDelete {
                exchange: short("x"),
                if_unused: false,
            },
            "configure exchange x",
        ),
        (Command::QueueDeclare(queue("new")), "configure queue new"),
        (
            Command::QueueDeclare(dead_letters.clone()),
            "read queue new",
        ),
        (Command::QueueDeclare(dead_letters), "write exchange dlx"),
        (
            Command::QueueDelete {
                queue: short("q"),
                if_unused: false,
                if_empty: false,
            },
            "configure queue q",
        ),
        (Command::QueuePurge { queue: short("q") }, "read queue q"),
        (
            Command::Get {
                queue: short("q"),
                is_no_ack: true,
            },
            "read queue q",
        ),
        (Command::Bind(bind("q", "x", "")), "write queue q"),
        (Command::Bind(bind("q", "x", "")), "read exchange x"),
        (Command::Unbind(bind("q", "x", "")), "write queue q"),
        (Command::Unbind(bind("q", "x", "")), "read exchange x"),
        (
            Command::Bind(bind_exchange("y", "x", "")),
            "write exchange y",
        ),
        (
            Command::Bind(bind_exchange("y", "x", "")),
            "read exchange x",
        ),
        // Before existence.
        (
            Command::QueuePurge {
                queue: short("none"),
            },
            "read queue none",
        ),
    ]
}

#[test]
fn every_operation_needs_its_rights() {
    for (command, needs) in operations() {
        let mut broker = TestBroker::new();
        let mut admin = broker.connect();
        for name in ["x", "y", "ae", "dlx"] {
            admin.exchange(name, "fanout");
        }
        admin.queue("q");
        let (operation, thing) = needs.split_once(' ').expect("operation and thing");
        let (kind, name) = thing.split_once(' ').expect("kind and name");
        // Everything but this one right.
        let others = match name {
            "new" => "^(x|y|q|ae|dlx)$".to_owned(),
            name => ["x", "y", "q", "ae", "dlx", "new"]
                .into_iter()
                .filter(|other| *other != name)
                .collect::<Vec<_>>()
                .join("|"),
        };
        let others = format!("^({})$", others.trim_matches(['^', '(', ')', '$']));
        let right = |of: &str| {
            if of == operation {
                others.clone()
            } else {
                ".*".to_owned()
            }
        };
        add_user(&mut broker, "bob");
        allow(
            &mut broker,
            "bob",
            &right("configure"),
            &right("write"),
            &right("read"),
        );
        let mut bob = broker.connect_as("bob", "/").expect("bob has permissions");
        assert_eq!(
            refusal(bob.run(command.clone())),
            format!(
                "403 ACCESS_REFUSED - {operation} access to {kind} '{name}' in vhost '/' refused for user 'bob'"
            ),
            "{command:?}"
        );
        let everything = refusal(broker.connect().run(command));
        assert!(!everything.starts_with("403"), "{everything}");
    }
}

#[test]
fn publishing_needs_write_and_the_default_exchange_has_a_name() {
    let mut broker = TestBroker::new();
    broker.connect().queue("q");
    add_user(&mut broker, "bob");
    allow(&mut broker, "bob", "", "^amq\\.default$", "");
    let mut bob = broker.connect_as("bob", "/").expect("bob has permissions");
    assert!(bob.publish("", "q").is_ok());
    assert_eq!(
        bob.publish("missing", "q").expect_err("no right"),
        "403 ACCESS_REFUSED - write access to exchange 'missing' in vhost '/' refused for user 'bob'"
    );
    // Passive declares need any one of the three.
    assert!(!bob.has_queue("q"));
    allow(&mut broker, "bob", "", "^q$", "");
    assert!(bob.has_queue("q"), "permissions are effective at once");
    assert_eq!(
        bob.publish("", "q")
            .expect_err("no right any more, cached or not"),
        "403 ACCESS_REFUSED - write access to exchange 'amq.default' in vhost '/' refused for user 'bob'"
    );
}

#[test]
fn impersonator_may_use_any_user_id() {
    let mut broker = TestBroker::new();
    let command = AdminCommand::SetTags {
        name: "guest".into(),
        tags: vec!["impersonator".into()],
    };
    broker
        .broker
        .admin(command, 0, &mut broker.effects)
        .expect("sets tags");
    let mut client: TestConnection = broker.connect();
    let mut builder = crate::amqp::properties::PropertiesBuilder::new();
    builder.set_user_id(Some(short("bob")));
    assert!(client.publish_with("", "q", &builder.build()).is_ok());
}
