//! Doctored histories of transactions.

use crate::Story;
use crate::crash::history::Event;
use crate::crash::oracle::Kind;

#[test]
fn a_transient_message_acked_in_a_transaction_says_nothing_after_a_restart() {
    let one = Story::new()
        .publish_as(1, &["q"], false, None)
        .deliver(1, false);
    let tx = one
        .publish_as(2, &["q"], true, Some(4))
        .ack(1, Some(4))
        .event(Event::Commit { tx: 4 });
    tx.killed().found("q", &[]).check(&[]);
    let alone = Story::new()
        .publish_as(1, &["q"], false, None)
        .deliver(1, false);
    let tx = alone.ack(1, Some(4)).event(Event::Commit { tx: 4 });
    tx.killed().found("q", &[]).check(&[]);
}

#[test]
fn a_transaction_happens_as_a_whole_or_not_at_all() {
    let begun = || {
        let one = Story::new().publish(&[1]).confirm(&[1]).deliver(1, false);
        let publishes =
            one.publish_as(2, &["q"], true, Some(4))
                .publish_as(3, &["q"], true, Some(4));
        publishes.ack(1, Some(4))
    };
    let all = [(2, false), (3, false)];
    begun().killed().found("q", &[(1, true)]).check(&[]);
    begun().killed().found("q", &all).check(&[
        (Kind::CameBack, 2),
        (Kind::CameBack, 3),
        (Kind::Lost, 1),
    ]);

    let commit = || begun().event(Event::Commit { tx: 4 });
    commit().killed().found("q", &[(1, true)]).check(&[]);
    commit().killed().found("q", &all).check(&[]);
    commit()
        .killed()
        .found("q", &[(2, false)])
        .check(&[(Kind::TornTx, 2), (Kind::Lost, 3)]);
    commit()
        .killed()
        .found("q", &[(1, true), (2, false), (3, false)])
        .check(&[(Kind::TornTx, 2)]);
    commit()
        .killed()
        .found("q", &[])
        .check(&[(Kind::TornTx, 1), (Kind::Lost, 2), (Kind::Lost, 3)]);

    let committed = || commit().event(Event::Committed { tx: 4 });
    committed().killed().found("q", &all).check(&[]);
    committed()
        .killed()
        .found("q", &[(1, true), (2, false), (3, false)])
        .check(&[(Kind::CameBack, 1)]);
    committed()
        .killed()
        .found("q", &[(3, false)])
        .check(&[(Kind::Lost, 2)]);

    let rolled_back = || begun().event(Event::RolledBack { tx: 4 });
    rolled_back().killed().found("q", &[(1, true)]).check(&[]);
    rolled_back()
        .killed()
        .found("q", &[(1, true), (2, false)])
        .check(&[(Kind::CameBack, 2)]);
    rolled_back()
        .killed()
        .found("q", &[])
        .check(&[(Kind::Lost, 1)]);

    // Seen by a consumer: then it was committed, answered or not.
    let seen = commit().deliver(2, false).killed();
    seen.found("q", &[(1, true)])
        .check(&[(Kind::CameBack, 1), (Kind::Lost, 2), (Kind::Lost, 3)]);
}
