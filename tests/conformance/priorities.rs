//! Section 19: priorities.

use std::time::Duration;

use stratamq::amqp::field_table::FieldValue;
use stratamq::amqp::method::queue;

use super::stage::*;
use crate::support::raw::{Client, Message, text};

/// A message that says its priority.
fn urgent(body: &str, priority: u8) -> Message {
    Message::with(body.as_bytes().to_vec(), |properties| {
        properties.set_priority(Some(priority));
    })
}

/// A queue of levels 0 to `levels`.
fn levels(c: &mut Client, name: &str, levels: i32) {
    let declare = q_with(name, [("x-max-priority", int(levels))]);
    c.call::<queue::DeclareOk>(1, declare);
}

/// Publishes bodies that are their priorities, each with a letter behind it.
fn fill_urgent(c: &mut Client, queue: &str, messages: &[(&str, u8)]) {
    for (body, priority) in messages {
        c.publish(1, "", queue, &urgent(body, *priority));
    }
    settle(c, 1);
}

/// PR-1: the range of the argument, and that it cannot change.
#[test]
fn the_number_of_levels_is_fixed_at_declaration() {
    let mut c = client();
    for (value, reason) in [
        (300, "{max_value_exceeded,300}"),
        (-1, "{value_negative,-1}"),
    ] {
        let text = format!(
            "PRECONDITION_FAILED - invalid arg 'x-max-priority' for queue 'pr1' in vhost '/': {reason}"
        );
        let declare = q_with("pr1", [("x-max-priority", int(value))]);
        refused(&mut c, declare, 406, &text);
    }
    levels(&mut c, "pr1", 255);
    let other = q_with("pr1", [("x-max-priority", int(5))]);
    refused(
        &mut c,
        other,
        406,
        "PRECONDITION_FAILED - inequivalent arg 'x-max-priority' for queue 'pr1' in vhost '/': received '5' but current is '255'",
    );
    // 0 behaves as 1.
    levels(&mut c, "pr1.zero", 0);
    fill_urgent(&mut c, "pr1.zero", &[("a", 0), ("b", 1), ("c", 7)]);
    assert_eq!(drain(&mut c, "pr1.zero"), ["b", "c", "a"]);
}

/// PR-2, PR-3: higher levels first, each in its order; none is level 0, and more than there are is the highest.
#[test]
fn higher_levels_leave_first() {
    let mut c = client();
    levels(&mut c, "pr2", 5);
    fill(&mut c, "pr2", &["none"]);
    fill_urgent(
        &mut c,
        "pr2",
        &[
            ("5a", 5),
            ("9", 9),
            ("3a", 3),
            ("5b", 5),
            ("3b", 3),
            ("0", 0),
        ],
    );
    assert_eq!(
        drain(&mut c, "pr2"),
        ["5a", "9", "5b", "3a", "3b", "none", "0"]
    );
}

/// PR-3: what a consumer holds is not overtaken, and one that waits gets messages as they come.
#[test]
fn what_was_delivered_is_not_overtaken() {
    let mut c = client();
    levels(&mut c, "pr3", 9);
    c.try_qos(1, 1).expect("qos");
    c.consume(1, "pr3", "t");
    fill_urgent(&mut c, "pr3", &[("low", 1), ("lower", 0), ("high", 9)]);
    for body in ["low", "high", "lower"] {
        let delivered = c.next_delivery(1);
        assert_eq!(delivered.message.body_text(), body);
        c.ack(1, delivered.tag);
    }
}

/// PR-4: the property stays as it was sent.
#[test]
fn the_property_is_delivered_unchanged() {
    let mut c = client();
    levels(&mut c, "pr4", 5);
    fill_urgent(&mut c, "pr4", &[("m", 255)]);
    let got = c.get(1, "pr4").expect("m");
    assert_eq!(got.message.properties.priority(), Some(255));
}

/// PR-5: a requeued message goes back to its place inside its level.
#[test]
fn requeued_messages_go_back_to_their_place_in_their_level() {
    let mut c = client();
    levels(&mut c, "pr5", 5);
    fill_urgent(&mut c, "pr5", &[("2a", 2), ("2b", 2), ("1", 1), ("2c", 2)]);
    let first = c.get(1, "pr5").expect("2a");
    let second = c.get(1, "pr5").expect("2b");
    fill_urgent(&mut c, "pr5", &[("4", 4)]);
    c.nack(1, second.tag, true);
    c.nack(1, first.tag, true);
    assert_eq!(drain(&mut c, "pr5"), ["4", "2a", "2b", "2c", "1"]);
}

/// PR-6, TT-6: the head of each level expires by itself.
#[test]
fn the_head_of_each_level_expires() {
    let mut c = client();
    levels(&mut c, "pr6", 5);
    let expiring = |body: &str, priority: u8| {
        Message::with(body.as_bytes().to_vec(), |properties| {
            properties.set_priority(Some(priority));
            properties.set_expiration(Some(text("40")));
        })
    };
    fill_urgent(&mut c, "pr6", &[("5", 5)]);
    c.publish(1, "", "pr6", &expiring("3", 3));
    fill_urgent(&mut c, "pr6", &[("1", 1)]);
    c.publish(1, "", "pr6", &expiring("1, behind another", 1));
    c.publish(1, "", "pr6", &expiring("0", 0));
    wait_ready(&mut c, "pr6", 3);
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!(counts(&mut c, "pr6").0, 3, "only heads are looked at");
    assert_eq!(drain(&mut c, "pr6"), ["5", "1"]);
}

/// LL-9, PR-6: what is dropped is the head of the highest level.
#[test]
fn the_highest_level_is_dropped_first() {
    let mut c = client();
    let arguments: [(&str, FieldValue); 2] = [("x-max-priority", int(5)), ("x-max-length", int(2))];
    c.call::<queue::DeclareOk>(1, q_with("ll9", arguments));
    fill_urgent(&mut c, "ll9", &[("1", 1), ("3", 3), ("2", 2)]);
    assert_eq!(drain(&mut c, "ll9"), ["2", "1"]);
}

/// PR-3, QU-29: a purge takes all levels.
#[test]
fn a_purge_takes_all_levels() {
    let mut c = client();
    levels(&mut c, "pr.purge", 5);
    fill_urgent(&mut c, "pr.purge", &[("1", 1), ("3", 3), ("2", 2)]);
    let held = c.get(1, "pr.purge").expect("3");
    assert_eq!(c.try_purge(1, "pr.purge").expect("purge-ok"), 2);
    fill_urgent(&mut c, "pr.purge", &[("later", 2)]);
    c.nack(1, held.tag, true);
    assert_eq!(drain(&mut c, "pr.purge"), ["3", "later"]);
}
