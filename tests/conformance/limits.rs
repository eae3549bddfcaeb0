//! Sections 26 to 28: limits of vhosts and users, topic permissions, what is said about vhosts and users.

use stratamq::amqp::field_table::FieldValue;
use stratamq::amqp::method::{channel, exchange, queue};

use super::elsewhere::skipped_elsewhere;
use super::policies::cli_refused;
use super::stage::*;
use super::users::{add_vhost_for_guest, connected, login, open_refused};
use crate::support::raw::{Login, Message, text};

/// A user with all permissions in `/`.
fn add_user(name: &str) {
    cli(&["user", "add", name]);
    cli(&["permission", "set", name, ".*", ".*", ".*"]);
}

/// CN-38, LM-4, LM-9, VH-6: connections to a vhost. The limit leaves those alone that are there.
#[test]
fn connections_to_a_vhost_are_limited() {
    if skipped_elsewhere("users and limits are set by our own commands") {
        return;
    }
    add_vhost_for_guest("lm4");
    let guest = Login {
        vhost: "lm4".into(),
        ..Login::default()
    };
    let limit = |value: &str| {
        cli(&["limit", "set", "--vhost", "lm4", "max-connections", value]);
    };
    let mut first = connected(&guest);
    limit("0");
    let refused = |count: u32| {
        format!(
            "NOT_ALLOWED - access to vhost 'lm4' refused for user 'guest': connection limit ({count}) is reached"
        )
    };
    open_refused(&guest, &refused(0));
    settle(&mut first, 1);
    limit("2");
    let second = connected(&guest);
    open_refused(&guest, &refused(2));
    second.close();
    connected(&guest).close();
    limit("-1");
    let third = connected(&guest);
    connected(&guest).close();
    limit("1");
    cli(&["limit", "clear", "--vhost", "lm4", "max-connections"]);
    connected(&guest).close();
    third.close();
    first.close();
    cli(&["vhost", "delete", "lm4"]);
}

/// CN-39, LM-5, LM-9: connections of a user.
#[test]
fn connections_of_a_user_are_limited() {
    if skipped_elsewhere("users and limits are set by our own commands") {
        return;
    }
    add_user("lm5");
    let user = login("lm5", "/");
    cli(&["limit", "set", "--user", "lm5", "max-connections", "1"]);
    let mut first = connected(&user);
    let text =
        "NOT_ALLOWED - connection refused for user 'lm5': user connection limit (1) is reached";
    open_refused(&user, text);
    cli(&["limit", "set", "--user", "lm5", "max-connections", "0"]);
    settle(&mut first, 1);
    first.close();
    open_refused(&user, &text.replace("(1)", "(0)"));
    let listed = cli(&["limit", "list"]);
    assert!(
        listed.contains("user 'lm5'\tmax-connections\t0"),
        "{listed}"
    );
    cli(&["limit", "clear", "--user", "lm5", "max-connections"]);
    connected(&user).close();
    cli(&["user", "delete", "lm5"]);
}

/// LM-5: channels of a user, over all its connections.
#[test]
fn channels_of_a_user_are_limited() {
    if skipped_elsewhere("users and limits are set by our own commands") {
        return;
    }
    add_user("lm5c");
    let user = login("lm5c", "/");
    cli(&["limit", "set", "--user", "lm5c", "max-channels", "2"]);
    let mut first = connected(&user);
    let mut second = connected(&user);
    second.send(2, channel::Open::default());
    let text = "NOT_ALLOWED - number of channels opened for user 'lm5c' has reached the maximum allowed user limit of 2";
    connection_closed(&mut second, 530, text, channel::Open::ID);
    drop(second);
    // What a closed channel or connection had is free again.
    first.open_channel(2);
    first.close_channel(2);
    first.open_channel(3);
    first.send(4, channel::Open::default());
    connection_closed(&mut first, 530, text, channel::Open::ID);
    let said = cli_refused(&["limit", "set", "--user", "lm5c", "max-queues", "2"]);
    assert!(said.contains("unknown limit 'max-queues'"), "{said}");
    cli(&["user", "delete", "lm5c"]);
}

/// QU-7, LM-4, LM-9: queues of a vhost; what is there may be declared again at the limit.
#[test]
fn queues_of_a_vhost_are_limited() {
    if skipped_elsewhere("users and limits are set by our own commands") {
        return;
    }
    add_vhost_for_guest("qu7");
    let mut c = connected(&Login {
        vhost: "qu7".into(),
        ..Login::default()
    });
    c.call::<queue::DeclareOk>(1, q("one"));
    cli(&["limit", "set", "--vhost", "qu7", "max-queues", "2"]);
    c.call::<queue::DeclareOk>(1, q("two"));
    c.call::<queue::DeclareOk>(1, q("one"));
    let text = "PRECONDITION_FAILED - cannot declare queue 'three': queue limit in vhost 'qu7' (2) is reached";
    refused(&mut c, q("three"), 406, text);
    c.queue_delete(1, "one");
    c.call::<queue::DeclareOk>(1, q("three"));
    cli(&["limit", "set", "--vhost", "qu7", "max-queues", "0"]);
    let text = "PRECONDITION_FAILED - cannot declare queue 'one': queue limit in vhost 'qu7' (0) is reached";
    refused(&mut c, q("one"), 406, text);
    c.call::<queue::DeclareOk>(1, q("three"));
    c.close();
    cli(&["vhost", "delete", "qu7"]);
}

/// AZ-2, CC-5: write on every publish, CC and BCC included, read on bind and unbind; other exchanges and types are free.
#[test]
fn topic_permissions_are_about_keys_of_topic_exchanges() {
    if skipped_elsewhere("users and limits are set by our own commands") {
        return;
    }
    add_user("az.2");
    let mut c = connected(&login("az.2", "/"));
    for (name, kind) in [
        ("az2.topic", "topic"),
        ("az2.other", "topic"),
        ("az2.direct", "direct"),
    ] {
        c.call::<exchange::DeclareOk>(1, x(name, kind));
    }
    c.call::<queue::DeclareOk>(1, q("az2"));
    let set = |exchange: &str| {
        let words = ["topic-permission", "set", "az.2", exchange];
        cli(&[&words[..], &["^{username}\\.", "^in\\.{vhost}"]].concat());
    };
    set("az2.topic");
    set("az2.direct");
    let no = |operation: &str, key: &str| {
        format!(
            "ACCESS_REFUSED - {operation} access to topic '{key}' in exchange 'az2.topic' in vhost '/' refused for user 'az.2'"
        )
    };
    let plain = Message::plain("m");
    publish_refused(
        &mut c,
        publish("az2.topic", "x"),
        &plain,
        403,
        &no("write", "x"),
    );
    // The names are no patterns: a dot is a dot.
    let text = no("write", "azx2.k");
    publish_refused(&mut c, publish("az2.topic", "azx2.k"), &plain, 403, &text);
    for header in ["CC", "BCC"] {
        let further = Message::with("m", |properties| {
            properties.set_header(
                header,
                FieldValue::Array(vec![string("az.2.ok"), string("no")]),
            );
        });
        let refused = no("write", "no");
        publish_refused(
            &mut c,
            publish("az2.topic", "az.2.k"),
            &further,
            403,
            &refused,
        );
    }
    refused(
        &mut c,
        bind("az2", "az2.topic", "out"),
        403,
        &no("read", "out"),
    );
    refused(
        &mut c,
        unbind("az2", "az2.topic", "out"),
        403,
        &no("read", "out"),
    );
    c.call::<queue::BindOk>(1, bind("az2", "az2.topic", "in./.#"));
    for free in ["az2.other", "az2.direct"] {
        c.call::<queue::BindOk>(1, bind("az2", free, "any"));
        send(&mut c, 1, publish(free, "any"), &plain);
    }
    send(&mut c, 1, publish("az2.topic", "az.2.k"), &plain);
    settle(&mut c, 1);
    assert_eq!(counts(&mut c, "az2").0, 2);
    let listed = cli(&["topic-permission", "list"]);
    assert!(
        listed.contains("az.2\taz2.topic\twrite '^{username}\\.'"),
        "{listed}"
    );
    cli(&["topic-permission", "clear", "az.2", "az2.topic"]);
    send(&mut c, 1, publish("az2.topic", "x"), &plain);
    settle(&mut c, 1);
    set("az2.topic");
    cli(&["topic-permission", "clear", "az.2"]);
    send(&mut c, 1, publish("az2.topic", "x"), &plain);
    settle(&mut c, 1);
    cli(&["user", "delete", "az.2"]);
}

/// AZ-3: decisions are kept only as long as no permission changes: what was allowed a moment ago, on this channel with this key, is
/// refused when the permission has gone. RabbitMQ's channels may go on for a while; nobody can rely on that.
#[test]
fn what_was_allowed_is_refused_when_the_permission_has_gone() {
    if skipped_elsewhere("users and limits are set by our own commands") {
        return;
    }
    add_user("az3");
    let mut c = connected(&login("az3", "/"));
    c.call::<exchange::DeclareOk>(1, x("az3.x", "topic"));
    for key in ["k", "k", "other"] {
        send(&mut c, 1, publish("az3.x", key), &Message::plain("m"));
    }
    settle(&mut c, 1);
    cli(&["topic-permission", "set", "az3", "az3.x", "^other$", ""]);
    send(&mut c, 1, publish("az3.x", "other"), &Message::plain("m"));
    settle(&mut c, 1);
    let text = "ACCESS_REFUSED - write access to topic 'k' in exchange 'az3.x' in vhost '/' refused for user 'az3'";
    publish_refused(
        &mut c,
        publish("az3.x", "k"),
        &Message::plain("m"),
        403,
        text,
    );
    cli(&["permission", "set", "az3", ".*", "^nothing", ".*"]);
    let text =
        "ACCESS_REFUSED - write access to exchange 'az3.x' in vhost '/' refused for user 'az3'";
    publish_refused(
        &mut c,
        publish("az3.x", "other"),
        &Message::plain("m"),
        403,
        text,
    );
    cli(&["user", "delete", "az3"]);
}

/// AZ-4: a pattern that does not compile is refused when it is set, and what was set before goes on; one that comes from elsewhere
/// denies (see the tests of the broker's `access`).
#[test]
fn broken_patterns_are_not_set() {
    if skipped_elsewhere("users and limits are set by our own commands") {
        return;
    }
    add_user("az4");
    for words in [
        ["permission", "set", "az4", "(", ".*", ".*"],
        ["topic-permission", "set", "az4", "amq.topic", "(", ".*"],
    ] {
        let said = cli_refused(&words);
        assert!(said.contains("invalid pattern '('"), "{said}");
    }
    let mut c = connected(&login("az4", "/"));
    c.call::<queue::DeclareOk>(1, q("az4"));
    cli(&["permission", "set", "az4", "^(?!az4)", ".*", ".*"]);
    let text =
        "ACCESS_REFUSED - configure access to queue 'az4' in vhost '/' refused for user 'az4'";
    refused(&mut c, q("az4"), 403, text);
    cli(&["user", "delete", "az4"]);
}

/// AZ-5: neither dead-lettering nor an alternate exchange asks again for permissions.
#[test]
fn messages_that_are_on_their_way_need_no_permission() {
    if skipped_elsewhere("users and limits are set by our own commands") {
        return;
    }
    add_user("az5");
    let mut c = connected(&login("az5", "/"));
    c.call::<exchange::DeclareOk>(1, x("az5.end", "topic"));
    let main = exchange::Declare {
        arguments: table([("alternate-exchange", string("az5.end"))]),
        ..x("az5.main", "direct")
    };
    c.call::<exchange::DeclareOk>(1, main);
    c.call::<queue::DeclareOk>(1, q("az5.q"));
    c.call::<queue::BindOk>(1, bind("az5.q", "az5.end", "#"));
    let dying = [
        ("x-message-ttl", int(0)),
        ("x-dead-letter-exchange", string("az5.end")),
    ];
    c.call::<queue::DeclareOk>(1, q_with("az5.dying", dying));
    cli(&["topic-permission", "set", "az5", "az5.end", "", ""]);
    cli(&[
        "permission",
        "set",
        "az5",
        ".*",
        "^(az5\\.main|amq\\.default)$",
        ".*",
    ]);
    send(&mut c, 1, publish("", "az5.dying"), &Message::plain("dead"));
    send(
        &mut c,
        1,
        publish("az5.main", "nowhere"),
        &Message::plain("alternate"),
    );
    settle(&mut c, 1);
    wait_ready(&mut c, "az5.q", 2);
    let mut arrived = drain(&mut c, "az5.q");
    arrived.sort_unstable();
    assert_eq!(arrived, ["alternate", "dead"]);
    cli(&["user", "delete", "az5"]);
}

/// AU-5: tags are free words and allow nothing, but `impersonator` publishing under another name; a protected user stays.
#[test]
fn tags_allow_nothing_but_to_impersonate() {
    if skipped_elsewhere("users and limits are set by our own commands") {
        return;
    }
    let name = "au5";
    cli(&[
        "user",
        "add",
        name,
        "--tag",
        "administrator",
        "--tag",
        "my own",
    ]);
    let no_access = "NOT_ALLOWED - access to vhost '/' refused for user 'au5'";
    open_refused(&login(name, "/"), no_access);
    cli(&["permission", "set", name, ".*", ".*", ".*"]);
    let foreign = Message::with("m", |properties| {
        properties.set_user_id(Some(text("guest")));
    });
    let mut c = connected(&login(name, "/"));
    let refused =
        "PRECONDITION_FAILED - user_id property set to 'guest' but authenticated user was 'au5'";
    publish_refused(&mut c, publish("", "au5"), &foreign, 406, refused);
    cli(&["user", "set-tags", name, "impersonator", "protected"]);
    let mut c = connected(&login(name, "/"));
    c.call::<queue::DeclareOk>(1, q("au5"));
    send(&mut c, 1, publish("", "au5"), &foreign);
    settle(&mut c, 1);
    assert_eq!(counts(&mut c, "au5").0, 1);
    let said = cli_refused(&["user", "delete", name]);
    assert!(
        said.contains("user 'au5' is protected from deletion"),
        "{said}"
    );
    cli(&["user", "set-tags", name]);
    cli(&["user", "delete", name]);
}

/// VH-4: description, tags, default queue type, protection. (Tracing is a row of its own.)
#[test]
fn vhosts_are_described_and_protected() {
    if skipped_elsewhere("users and limits are set by our own commands") {
        return;
    }
    cli(&["vhost", "add", "vh4"]);
    let words = [
        "vhost",
        "set",
        "vh4",
        "--description",
        "for tests",
        "--tag",
        "one",
    ];
    let more = ["--default-queue-type", "classic", "--protected", "true"];
    cli(&[&words[..], &more].concat());
    let listed = cli(&["vhost", "describe"]);
    let line = "vh4\t'for tests'\t[one]\tdefault queue type classic\tprotected";
    assert!(listed.contains(line), "{listed}");
    let said = cli_refused(&["vhost", "delete", "vh4"]);
    assert!(
        said.contains("vhost 'vh4' is protected from deletion"),
        "{said}"
    );
    let said = cli_refused(&["vhost", "set", "vh4", "--default-queue-type", "stream"]);
    assert!(said.contains("unsupported queue type 'stream'"), "{said}");
    cli(&["vhost", "set", "vh4", "--protected", "false"]);
    let listed = cli(&["vhost", "describe"]);
    assert!(
        listed.contains("vh4\t'for tests'\t[one]"),
        "what is not named stays: {listed}"
    );
    cli(&["vhost", "delete", "vh4"]);
}

/// VH-4, QU-14: the default type of a vhost is that of queues which name none; what it does not fit is classic.
#[test]
fn default_queue_type_is_that_of_the_vhost() {
    if skipped_elsewhere("vhosts are set by our own commands") {
        return;
    }
    cli(&["vhost", "add", "vh4q"]);
    cli(&["vhost", "set", "vh4q", "--default-queue-type", "quorum"]);
    let words = ["permission", "set", "guest", ".*", ".*", ".*"];
    cli(&[&words[..], &["--vhost", "vh4q"]].concat());
    let mut c = connected(&Login {
        vhost: "vh4q".into(),
        ..Login::default()
    });
    let durable = |kind: Option<&str>| queue::Declare {
        durable: true,
        arguments: kind.map_or_else(|| table([]), |kind| table([("x-queue-type", string(kind))])),
        ..q("vh4q.durable")
    };
    c.call::<queue::DeclareOk>(1, durable(None));
    c.call::<queue::DeclareOk>(1, durable(Some("quorum")));
    c.call::<queue::DeclareOk>(1, durable(None));
    let text = "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'vh4q.durable' in vhost 'vh4q': \
                received 'classic' but current is 'quorum'";
    refused(&mut c, durable(Some("classic")), 406, text);
    c.call::<queue::DeclareOk>(1, q("vh4q.transient"));
    let classic = q_with("vh4q.transient", [("x-queue-type", string("classic"))]);
    c.call::<queue::DeclareOk>(1, classic);
    c.close();
    cli(&["vhost", "delete", "vh4q"]);
}
