//! Sections 26 and 27: users, permissions, virtual hosts.

use stratamq::amqp::method::{MethodId, basic, exchange, queue};

use super::elsewhere::skipped_elsewhere;
use super::stage::*;
use crate::support::raw::{Client, Login, Message, Trouble, exclusive, text};

pub(super) fn login(user: &str, vhost: &str) -> Login {
    Login {
        user: user.into(),
        password: "secret".into(),
        vhost: vhost.into(),
        ..Login::default()
    }
}

/// A user with these permissions in `/`.
pub(super) fn user(name: &str, configure: &str, write: &str, read: &str) -> Client {
    cli(&["user", "add", name]);
    cli(&["permission", "set", name, configure, write, read]);
    connected(&login(name, "/"))
}

#[track_caller]
pub(super) fn connected(login: &Login) -> Client {
    let mut c = Client::login(address(), login);
    c.open_channel(1);
    c
}

/// The open is answered by 530 with that text, and `connection.open` is blamed.
#[track_caller]
pub(super) fn open_refused(login: &Login, reply_text: &str) {
    match Client::try_login(address(), login) {
        Err(Trouble::ConnectionClosed(close)) => {
            let blamed = (close.class_id, close.method_id);
            let told = (close.reply_code, close.reply_text.as_str(), blamed);
            assert_eq!(told, (530, reply_text, (10, 40)));
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("{login:?} should be refused"),
    }
}

/// A new vhost in which guest may do everything.
pub(super) fn add_vhost_for_guest(name: &str) {
    cli(&["vhost", "add", name]);
    let all = ".*";
    cli(&["permission", "set", "guest", all, all, all, "--vhost", name]);
}

/// Section 27: the table, operation by operation.
#[test]
fn every_operation_wants_its_permission() {
    if skipped_elsewhere("users and permissions are set by our own commands") {
        return;
    }
    let mut admin = client();
    for name in ["az.x", "az.dlx"] {
        admin.call::<exchange::DeclareOk>(1, x(name, "direct"));
    }
    admin.queue_declare(1, "az.q", q(""));
    let denied = |operation: &str, thing: &str, user: &str| {
        format!(
            "ACCESS_REFUSED - {operation} access to {thing} in vhost '/' refused for user '{user}'"
        )
    };
    // Nothing but names that start with mine.
    let name = "az.user";
    let mut c = user(name, "^mine", "^mine", "^mine");
    let no = |operation: &str, thing: &str| denied(operation, thing, name);
    let mut refuse =
        |method: stratamq::amqp::method::Method, text: String| refused(&mut c, method, 403, &text);
    refuse(
        x("az.new", "direct").into(),
        no("configure", "exchange 'az.new'"),
    );
    refuse(x_delete("az.x").into(), no("configure", "exchange 'az.x'"));
    refuse(q("az.new").into(), no("configure", "queue 'az.new'"));
    refuse(q_delete("az.q").into(), no("configure", "queue 'az.q'"));
    refuse(
        queue::Purge {
            queue: text("az.q"),
            ..queue::Purge::default()
        }
        .into(),
        no("read", "queue 'az.q'"),
    );
    refuse(get("az.q").into(), no("read", "queue 'az.q'"));
    refuse(consume("az.q", "").into(), no("read", "queue 'az.q'"));
    refuse(
        queue::Declare {
            passive: true,
            ..q("az.q")
        }
        .into(),
        no("configure", "queue 'az.q'"),
    );
    refuse(
        exchange::Declare {
            passive: true,
            ..x("az.x", "")
        }
        .into(),
        no("configure", "exchange 'az.x'"),
    );
    refuse(
        bind("az.q", "az.x", "k").into(),
        no("write", "queue 'az.q'"),
    );
    refuse(
        bind("mine.q", "az.x", "k").into(),
        no("read", "exchange 'az.x'"),
    );
    refuse(
        unbind("az.q", "az.x", "k").into(),
        no("write", "queue 'az.q'"),
    );
    refuse(
        x_bind("az.x", "mine.x", "k").into(),
        no("write", "exchange 'az.x'"),
    );
    refuse(
        x_bind("mine.x", "az.x", "k").into(),
        no("read", "exchange 'az.x'"),
    );
    refuse(
        x_unbind("az.x", "mine.x", "k").into(),
        no("write", "exchange 'az.x'"),
    );
    // EX-4, DL-7.
    let alternate = exchange::Declare {
        arguments: table([("alternate-exchange", string("az.x"))]),
        ..x("mine.ax", "direct")
    };
    refuse(alternate.into(), no("write", "exchange 'az.x'"));
    refuse(
        q_with("mine.dlq", [("x-dead-letter-exchange", string("az.dlx"))]).into(),
        no("write", "exchange 'az.dlx'"),
    );
    // AZ-1: before existence.
    refuse(get("az.none").into(), no("read", "queue 'az.none'"));
    // Server-named queues are checked like others.
    c.send(1, exclusive());
    match c.try_next(1) {
        Err(Trouble::ChannelClosed(close)) => {
            let text = close.reply_text.to_string();
            assert!(
                close.reply_code == 403
                    && text.starts_with("ACCESS_REFUSED - configure access to queue 'amq.gen-"),
                "{text}"
            );
        }
        other => panic!("{other:?}"),
    }
    for (exchange, shown) in [
        ("az.x", "az.x"),
        ("", "amq.default"),
        ("az.none", "az.none"),
    ] {
        let text = no("write", &format!("exchange '{shown}'"));
        publish_refused(
            &mut c,
            publish(exchange, "k"),
            &Message::plain("m"),
            403,
            &text,
        );
    }
    // And what is allowed works.
    c.open_channel(1);
    c.call::<exchange::DeclareOk>(1, x("mine.x", "fanout"));
    c.queue_declare(1, "mine.q", q(""));
    c.bind(1, "mine.q", "mine.x", "");
    c.publish(1, "mine.x", "", &Message::plain("m"));
    assert_eq!(drain(&mut c, "mine.q"), ["m"]);
}

/// EX-8, QU-18, VD-9: a passive declare wants any of the three.
#[test]
fn any_permission_allows_a_look() {
    if skipped_elsewhere("users and permissions are set by our own commands") {
        return;
    }
    let mut admin = client();
    admin.queue_declare(1, "az8.q", q(""));
    admin.call::<exchange::DeclareOk>(1, x("az8.x", "direct"));
    for (name, permissions) in [
        ("az8.r", ["", "", "az8"]),
        ("az8.w", ["", "az8", ""]),
        ("az8.c", ["az8", "", ""]),
    ] {
        let [configure, write, read] = permissions;
        let mut c = user(name, configure, write, read);
        assert_eq!(counts(&mut c, "az8.q"), (0, 0));
        c.call::<exchange::DeclareOk>(
            1,
            exchange::Declare {
                passive: true,
                ..x("az8.x", "")
            },
        );
    }
}

/// AU-6: revoked permissions hit a running channel.
#[test]
fn revoked_permissions_hit_running_channels() {
    if skipped_elsewhere("users and permissions are set by our own commands") {
        return;
    }
    let mut c = user("au6.p", ".*", ".*", ".*");
    c.queue_declare(1, "au6.p", q(""));
    c.publish(1, "", "au6.p", &Message::plain("m"));
    assert!(c.get(1, "au6.p").is_some());
    cli(&["permission", "set", "au6.p", ".*", "nothing", "nothing"]);
    let text = |operation: &str, thing: &str| {
        format!(
            "ACCESS_REFUSED - {operation} access to {thing} in vhost '/' refused for user 'au6.p'"
        )
    };
    refused(&mut c, get("au6.p"), 403, &text("read", "queue 'au6.p'"));
    send(&mut c, 1, publish("", "au6.p"), &Message::plain("m"));
    channel_closed(
        &mut c,
        1,
        403,
        &text("write", "exchange 'amq.default'"),
        basic::Publish::ID,
    );
}

/// CN-37, CN-40, VH-1, VH-2, VH-3.
#[test]
fn a_vhost_wants_to_exist_and_to_be_allowed() {
    if skipped_elsewhere("users and permissions are set by our own commands") {
        return;
    }
    open_refused(
        &Login {
            vhost: "cn37".into(),
            ..Login::default()
        },
        "NOT_ALLOWED - vhost cn37 not found",
    );
    open_refused(
        &Login {
            vhost: String::new(),
            ..Login::default()
        },
        "NOT_ALLOWED - vhost  not found",
    );
    cli(&["vhost", "add", "vh1"]);
    cli(&["user", "add", "cn40"]);
    let mine = login("cn40", "vh1");
    open_refused(
        &mine,
        "NOT_ALLOWED - access to vhost 'vh1' refused for user 'cn40'",
    );
    cli(&[
        "permission",
        "set",
        "cn40",
        ".*",
        ".*",
        ".*",
        "--vhost",
        "vh1",
    ]);
    let mut inside = connected(&mine);
    for (name, kind) in [
        ("amq.direct", "direct"),
        ("amq.topic", "topic"),
        ("amq.match", "headers"),
    ] {
        inside.call::<exchange::DeclareOk>(
            1,
            exchange::Declare {
                durable: true,
                ..x(name, kind)
            },
        );
    }
    // Same names, other things.
    let mut outside = client();
    outside.queue_declare(1, "vh1.q", q(""));
    refused(
        &mut inside,
        get("vh1.q"),
        404,
        "NOT_FOUND - no queue 'vh1.q' in vhost 'vh1'",
    );
}

/// A client in a new vhost.
fn client_of_new_vhost(vhost: &str) -> Client {
    add_vhost_for_guest(vhost);
    connected(&Login {
        vhost: vhost.into(),
        ..Login::default()
    })
}

/// AU-6, VH-5, CN-57.
#[test]
fn deleting_user_or_vhost_closes_the_connections() {
    if skipped_elsewhere("users and permissions are set by our own commands") {
        return;
    }
    let mut c = user("au6.u", ".*", ".*", ".*");
    let mut other = client();
    cli(&["user", "delete", "au6.u"]);
    connection_closed(
        &mut c,
        320,
        "CONNECTION_FORCED - user 'au6.u' is deleted",
        MethodId::NONE,
    );
    match Client::try_login(address(), &login("au6.u", "/")) {
        Err(Trouble::ConnectionClosed(close)) => assert_eq!(close.reply_code, 403),
        _ => panic!("the user is gone"),
    }
    let mut c = client_of_new_vhost("vh5");
    c.queue_declare(1, "vh5.q", crate::support::raw::durable());
    cli(&["vhost", "delete", "vh5"]);
    connection_closed(
        &mut c,
        320,
        "CONNECTION_FORCED - vhost 'vh5' is deleted",
        MethodId::NONE,
    );
    settle(&mut other, 1);
    // A new vhost of that name is empty.
    let mut c = client_of_new_vhost("vh5");
    refused(
        &mut c,
        get("vh5.q"),
        404,
        "NOT_FOUND - no queue 'vh5.q' in vhost 'vh5'",
    );
}

/// AU-4: passwords are checked anew after a change.
#[test]
fn a_new_password_replaces_the_old() {
    if skipped_elsewhere("users and permissions are set by our own commands") {
        return;
    }
    cli(&["user", "add", "au4", "--password", "first"]);
    cli(&["permission", "set", "au4", ".*", ".*", ".*"]);
    let with = |password: &str| Login {
        password: password.into(),
        ..login("au4", "/")
    };
    assert!(Client::try_login(address(), &with("first")).is_ok());
    cli(&["user", "set-password", "au4"]);
    assert!(Client::try_login(address(), &with("secret")).is_ok());
    assert!(Client::try_login(address(), &with("first")).is_err());
}
