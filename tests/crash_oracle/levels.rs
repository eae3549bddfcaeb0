//! Doctored orders of a queue with priorities.

use crate::crash::history::Event;
use crate::crash::oracle::Kind;
use crate::{Story, look};

/// Queue `q` has levels 0 to 5; message n of the list has its id and priority.
fn published(messages: &[(u64, u8)]) -> Story {
    let mut story = Story::new();
    story.oracle.has_levels("q", 5);
    publish(story, messages)
}

fn publish(story: Story, messages: &[(u64, u8)]) -> Story {
    messages.iter().fold(story, |story, (id, priority)| {
        let publish = Event::Publish {
            id: *id,
            publisher: 1,
            tx: None,
            is_persistent: true,
            priority: *priority,
            targets: vec!["q".into()],
            fingerprint: look(*id),
        };
        story.event(publish).confirm(&[*id])
    })
}

/// All of them flagged.
fn found(story: Story, ids: &[u64]) -> Story {
    let contents: Vec<(u64, bool)> = ids.iter().map(|id| (*id, true)).collect();
    story.killed().found("q", &contents)
}

/// Levels 0, 5, 2, 5, 5: what is above the highest level counts as that.
const FIVE: [(u64, u8); 5] = [(1, 0), (2, 9), (3, 2), (4, 5), (5, 7)];

#[test]
fn higher_levels_come_first_and_each_keeps_its_order() {
    found(published(&FIVE), &[2, 4, 5, 3, 1]).check(&[]);
    // As if the queue had no priorities.
    found(published(&FIVE), &[1, 2, 3, 4, 5]).check(&[
        (Kind::Reordered, 2),
        (Kind::Reordered, 3),
        (Kind::Reordered, 4),
        (Kind::Reordered, 5),
    ]);
    // A level behind a lower one, and two of one level the wrong way round.
    found(published(&FIVE), &[2, 4, 5, 1, 3]).check(&[(Kind::Reordered, 3)]);
    found(published(&FIVE), &[2, 5, 4, 3, 1]).check(&[(Kind::Reordered, 4)]);
    // Without levels the same messages come as they were published.
    let plain = publish(Story::new(), &FIVE);
    found(plain, &[1, 2, 3, 4, 5]).check(&[]);
    let plain = publish(Story::new(), &FIVE);
    found(plain, &[2, 4, 5, 3, 1]).check(&[(Kind::Reordered, 3), (Kind::Reordered, 1)]);
}

#[test]
fn new_messages_come_behind_the_old_ones_of_their_level() {
    let story = || {
        let first = found(published(&FIVE), &[2, 4, 5, 3, 1]).round();
        publish(first, &[(6, 5), (7, 0), (8, 3)])
    };
    found(story(), &[2, 4, 5, 6, 8, 3, 1, 7]).check(&[]);
    found(story(), &[2, 4, 6, 5, 8, 3, 1, 7]).check(&[(Kind::Reordered, 5)]);
    found(story(), &[2, 4, 5, 6, 8, 3, 7, 1]).check(&[(Kind::Reordered, 1)]);
    // A level that was forgotten: its messages are with the lowest.
    found(story(), &[2, 4, 5, 6, 3, 1, 7, 8]).check(&[(Kind::Reordered, 8)]);
}
