//! Section 22: direct reply-to.

use stratamq::amqp::method::{Method, basic, queue};

use super::elsewhere::skipped_elsewhere;
use super::stage::*;
use crate::support::raw::{Client, Delivered, Message, passive, text};

const REPLY_TO: &str = "amq.rabbitmq.reply-to";

fn consume_replies(tag: &str) -> basic::Consume {
    basic::Consume {
        no_ack: true,
        ..consume(REPLY_TO, tag)
    }
}

fn request(reply_to: &str) -> Message {
    Message::with("request", |properties| {
        properties.set_reply_to(Some(text(reply_to)));
    })
}

fn reply_to_of(delivered: &Delivered) -> String {
    let reply_to = delivered.message.properties.reply_to();
    String::from_utf8_lossy(reply_to.expect("a request")).into_owned()
}

/// A requester on channel 1 and a queue that has its request: the name it goes by.
fn requester(queue: &str) -> (Client, String) {
    let mut c = client();
    c.call::<basic::ConsumeOk>(1, consume_replies("replies"));
    c.queue_declare(1, queue, q(""));
    c.publish(1, "", queue, &request(REPLY_TO));
    let mut responder = client();
    wait_ready(&mut responder, queue, 1);
    let delivered = responder.get(1, queue).expect("the request");
    responder.ack(1, delivered.tag);
    (c, reply_to_of(&delivered))
}

/// DR-1, DR-2 and the rows of 4.4: one requester a channel, without acknowledgements.
#[test]
fn what_a_requester_must_not_do_is_refused() {
    let mut c = client();
    refused(
        &mut c,
        consume(REPLY_TO, "acks"),
        406,
        "PRECONDITION_FAILED - reply consumer cannot acknowledge",
    );
    publish_refused(
        &mut c,
        publish("", "dr2"),
        &request(REPLY_TO),
        406,
        "PRECONDITION_FAILED - fast reply consumer does not exist",
    );
    // The flag means nothing here.
    let exclusive = basic::Consume {
        exclusive: true,
        ..consume_replies("one")
    };
    c.call::<basic::ConsumeOk>(1, exclusive);
    // Each channel has its own.
    c.open_channel(2);
    c.call::<basic::ConsumeOk>(2, consume_replies("one"));
    c.send(2, consume_replies("two"));
    channel_closed(
        &mut c,
        2,
        406,
        "PRECONDITION_FAILED - reply consumer already set",
        basic::Consume::ID,
    );
    // DR-11: the second name of another broker is a queue like any other, and not there.
    let other = basic::Consume {
        no_ack: true,
        ..consume("amq.direct.reply-to", "")
    };
    refused(
        &mut c,
        other,
        404,
        "NOT_FOUND - no queue 'amq.direct.reply-to' in vhost '/'",
    );
}

/// DR-3, DR-4, DR-10: there and back; the answer is confirmed at once.
#[test]
fn a_reply_reaches_the_channel_that_asked() {
    let (mut c, name) = requester("dr4");
    let opaque = name.strip_prefix("amq.rabbitmq.reply-to.").expect(&name);
    assert_eq!(opaque.split('.').count(), 2, "{name}");
    assert!(name.len() <= 255 && opaque.len() > 16, "{name}");
    let mut responder = client();
    responder.confirm_select(1);
    let answer = Message::with("answer", |properties| {
        properties
            .set_delivery_mode(Some(2))
            .set_correlation_id(Some(text("7")));
    });
    responder.publish(1, "", &name, &answer);
    assert_eq!(responder.wait_confirm(1).delivery_tag, 1);
    let delivered = c.next_delivery(1);
    assert_eq!(delivered.consumer_tag, "replies");
    let head = (delivered.tag, delivered.is_redelivered);
    assert_eq!(head, (1, false));
    assert_eq!(
        (delivered.exchange.as_str(), &delivered.routing_key),
        ("", &name)
    );
    assert_eq!(delivered.message, answer);
    // The tags are those of the channel, and there is nothing to acknowledge.
    c.push_publish(1, "", "dr4", &Message::plain("x"));
    c.flush().expect("the broker reads");
    settle(&mut c, 1);
    assert_eq!(c.get(1, "dr4").expect("a message").tag, 2);
    let ack = basic::Ack {
        delivery_tag: 1,
        multiple: false,
    };
    c.send(1, ack);
    channel_closed(
        &mut c,
        1,
        406,
        "PRECONDITION_FAILED - unknown delivery tag 1",
        basic::Ack::ID,
    );
}

/// A request by way of a transaction, and an answer that is seen when its own is committed (TX-3).
#[test]
fn replies_wait_for_their_transaction() {
    let (mut c, name) = requester("dr.tx");
    let mut responder = client();
    responder.tx_select(1);
    responder.publish(1, "", &name, &Message::plain("dropped"));
    responder.tx_rollback(1);
    let gone = format!("{name}x");
    send(
        &mut responder,
        1,
        mandatory("", &gone),
        &Message::plain("lost"),
    );
    responder.publish(1, "", &name, &Message::plain("kept"));
    settle(&mut responder, 1);
    silent(&mut c, 1);
    responder.tx_commit(1);
    assert_eq!(c.next_delivery(1).message.body_text(), "kept");
}

/// DR-5, PB-7, VD-12: nothing is stored for who is gone, and a mandatory answer does not come back, as since 4.2.
#[test]
fn a_reply_to_nobody_is_dropped_without_a_return() {
    let (mut c, name) = requester("dr5");
    c.open_channel(2);
    c.close_channel(1);
    let mut responder = client();
    responder.confirm_select(1);
    send(
        &mut responder,
        1,
        mandatory("", &name),
        &Message::plain("late"),
    );
    assert!(matches!(responder.next(1).method, Method::BasicAck(_)));
    // Two answers at once, one to somebody and one to a queue, by CC.
    let (mut other, name) = requester("dr5.other");
    let both = Message::with("both", |properties| {
        let cc = stratamq::amqp::field_table::FieldValue::Array(vec![string(&name)]);
        properties.set_header("CC", cc);
    });
    send(&mut responder, 1, mandatory("", "dr5.other"), &both);
    assert!(matches!(responder.next(1).method, Method::BasicAck(_)));
    assert_eq!(other.next_delivery(1).message.body_text(), "both");
    assert_eq!(drain(&mut responder, "dr5.other"), ["both"]);
}

/// DR-6, DR-7, VD-17: a declare asks whether the requester lives; nothing can be bound or deleted.
#[test]
fn declaring_the_name_asks_whether_somebody_waits() {
    let (mut c, name) = requester("dr6");
    let mut o = client();
    let told = |declared: queue::DeclareOk| {
        let counts = (declared.message_count, declared.consumer_count);
        (declared.queue.to_string(), counts)
    };
    for declare in [q(""), passive()] {
        assert_eq!(
            told(o.queue_declare(1, &name, declare)),
            (name.clone(), (0, 1))
        );
    }
    let bare = o.queue_declare(1, REPLY_TO, passive());
    assert_eq!(told(bare), (REPLY_TO.to_owned(), (0, 1)));
    for queue in [REPLY_TO, name.as_str()] {
        assert_eq!(o.queue_delete(1, queue), 0);
        let text = "ACCESS_REFUSED - cannot bind or unbind to a volatile (direct reply-to) queue";
        refused(&mut o, bind(queue, "amq.direct", "k"), 403, text);
        refused(&mut o, unbind(queue, "amq.direct", "k"), 403, text);
    }
    c.try_cancel(1, "replies").expect("it is there");
    let gone = format!("NOT_FOUND - no queue '{name}' in vhost '/'");
    refused(&mut o, q(&name), 404, &gone);
}

/// DR-9: a channel may consume again, under a new name; what comes for the old one is dropped.
#[test]
fn a_cancelled_requester_may_come_back_under_another_name() {
    let (mut c, old) = requester("dr9");
    c.try_cancel(1, "replies").expect("it is there");
    c.call::<basic::ConsumeOk>(1, consume_replies("again"));
    c.publish(1, "", "dr9", &request(REPLY_TO));
    settle(&mut c, 1);
    let new = reply_to_of(&c.get(1, "dr9").expect("the request"));
    assert_ne!(old, new);
    c.publish(1, "", &old, &Message::plain("old"));
    c.publish(1, "", &new, &Message::plain("new"));
    let delivered = c.next_delivery(1);
    assert_eq!(delivered.consumer_tag, "again");
    assert_eq!(delivered.message.body_text(), "new");
    silent(&mut c, 1);
}

/// DR-8, DR-1: write on the default exchange is all a responder needs, and a requester needs nothing for the replies.
#[test]
fn replying_needs_write_on_the_default_exchange_only() {
    if skipped_elsewhere("users and permissions are set by our own commands") {
        return;
    }
    let (mut c, name) = requester("dr8");
    let mut responder = super::users::user("dr8", "nothing", "^amq\\.default$", "nothing");
    responder.publish(1, "", &name, &Message::plain("allowed"));
    assert_eq!(c.next_delivery(1).message.body_text(), "allowed");
    responder.call::<basic::ConsumeOk>(1, consume_replies(""));
    let mut nobody = super::users::user("dr8.nobody", "nothing", "nothing", "nothing");
    publish_refused(
        &mut nobody,
        publish("", &name),
        &Message::plain("m"),
        403,
        "ACCESS_REFUSED - write access to exchange 'amq.default' in vhost '/' refused for user 'dr8.nobody'",
    );
}

/// CC-7: nobody here passes messages on from another broker, so nobody clears or trusts their user-id; what a message says
/// was checked when it was published and stays through dead-lettering. An ordinary `reply_to` is not touched (DR-3).
#[test]
fn user_id_and_an_ordinary_reply_to_stay_as_they_were_published() {
    let mut c = client();
    c.queue_declare(1, "cc7.dead", q(""));
    let dying = [
        ("x-message-ttl", int(0)),
        ("x-dead-letter-exchange", string("")),
        ("x-dead-letter-routing-key", string("cc7.dead")),
    ];
    c.queue_declare(1, "cc7", q_with("", dying));
    let message = Message::with("m", |properties| {
        properties
            .set_user_id(Some(text("guest")))
            .set_reply_to(Some(text("somewhere")));
    });
    c.publish(1, "", "cc7", &message);
    wait_ready(&mut c, "cc7.dead", 1);
    let delivered = c.get(1, "cc7.dead").expect("it died");
    let properties = &delivered.message.properties;
    assert_eq!(properties.user_id(), Some(&b"guest"[..]));
    assert_eq!(properties.reply_to(), Some(&b"somewhere"[..]));
}
