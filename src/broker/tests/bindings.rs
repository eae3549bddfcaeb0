//! Bindings: identity, idempotence, refusals (section 8 of the behaviour reference).

use super::refusal;
use super::support::{TestBroker, bind, bind_exchange};
use crate::amqp::field_table::FieldTable;
use crate::broker::command::{Bind, Command};

fn with(bind: Bind, arguments: FieldTable) -> Bind {
    Bind { arguments, ..bind }
}

#[test]
fn same_binding_twice_is_one_and_arguments_count() {
    let mut client = TestBroker::new().connect();
    client.queue("q");
    client.exchange("x", "direct");
    let ab = FieldTable::new().with("a", 1).with("b", 2);
    let ba = FieldTable::new().with("b", 2).with("a", 1);
    for arguments in [FieldTable::new(), ab.clone(), ba] {
        client
            .run(Command::Bind(with(bind("q", "x", "k"), arguments)))
            .expect("binds");
    }
    client.publish("x", "k").expect("publishes");
    assert_eq!(client.ready_count("q"), 1, "a queue gets a message once");
    client
        .run(Command::Unbind(bind("q", "x", "k")))
        .expect("unbinds");
    client.publish("x", "k").expect("publishes");
    assert_eq!(
        client.ready_count("q"),
        2,
        "the one with arguments is still there"
    );
    client
        .run(Command::Unbind(with(bind("q", "x", "k"), ab)))
        .expect("unbinds");
    assert!(client.publish("x", "k").expect("publishes").is_unroutable);
}

#[test]
fn refused_bindings() {
    let mut client = TestBroker::new().connect();
    client.queue("q");
    client.exchange("h", "headers");
    let no_default = "403 ACCESS_REFUSED - operation not permitted on the default exchange";
    let x_match = |value: &str| FieldTable::new().with("x-match", value);
    for (bind, expected) in [
        (
            bind("q", "none", ""),
            "404 NOT_FOUND - no exchange 'none' in vhost '/'",
        ),
        (
            bind("none", "amq.direct", ""),
            "404 NOT_FOUND - no queue 'none' in vhost '/'",
        ),
        (
            bind("none", "missing", ""),
            "404 NOT_FOUND - no exchange 'missing' in vhost '/'",
        ),
        (
            bind_exchange("none", "amq.direct", ""),
            "404 NOT_FOUND - no exchange 'none' in vhost '/'",
        ),
        (bind("q", "", ""), no_default),
        (bind_exchange("", "amq.direct", ""), no_default),
        (bind_exchange("amq.fanout", "amq.direct", "k"), ""),
        (bind("q\r\n", "amq.direct\n", "k"), ""),
        (
            with(bind("q", "h", ""), x_match("foo")),
            "406 PRECONDITION_FAILED - Invalid x-match field value <<\"foo\">>; expected all, any, all-with-x, or any-with-x",
        ),
        (with(bind("q", "amq.direct", ""), x_match("foo")), ""),
        (
            bind("amq.rabbitmq.reply-to", "amq.direct", ""),
            "403 ACCESS_REFUSED - cannot bind or unbind to a volatile (direct reply-to) queue",
        ),
    ] {
        let shown = format!("{bind:?}");
        assert_eq!(
            refusal(client.run(Command::Bind(bind))),
            expected,
            "{shown}"
        );
    }
}

#[test]
fn unbinding_what_is_not_there_is_fine() {
    let mut client = TestBroker::new().connect();
    client.queue("q");
    for bind in [
        bind("q", "amq.direct", "never"),
        bind("none", "amq.direct", ""),
        bind("q", "none", ""),
        bind_exchange("none", "none", ""),
    ] {
        assert_eq!(refusal(client.run(Command::Unbind(bind))), "");
    }
    let default = client.run(Command::Unbind(bind("q", "", "q")));
    assert_eq!(
        refusal(default),
        "403 ACCESS_REFUSED - operation not permitted on the default exchange"
    );
}
