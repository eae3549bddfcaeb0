//! The domain as a client sees it: one file a section of the behaviour reference.

mod access;
mod bindings;
mod exchanges;
mod histories;
mod operator;
mod publishing;
mod queues;
mod restart;
mod support;

use super::command::{Command, ExchangeDeclare, QueueDeclare, ReplyBody};
use support::{Outcome, TestConnection};

/// The refusal of a command; the empty text when it was not refused.
fn refusal(outcome: Outcome) -> String {
    outcome.err().unwrap_or_default()
}

/// Declares a queue.
fn declare_queue(client: &mut TestConnection, declare: QueueDeclare) -> Outcome {
    client.run(Command::QueueDeclare(declare))
}

/// Declares an exchange.
fn declare_exchange(client: &mut TestConnection, declare: ExchangeDeclare) -> Outcome {
    client.run(Command::ExchangeDeclare(declare))
}

/// The name in a declare-ok.
fn declared_name(outcome: Outcome) -> String {
    match outcome {
        Ok(ReplyBody::QueueDeclared { queue, .. }) => queue.as_str().to_owned(),
        other => panic!("{other:?}"),
    }
}
