//! The domain: vhosts, exchanges, bindings, queues, consumers, users. No socket, no clock, no file, no tokio.

pub mod arguments;
pub mod command;
pub mod consumer;
pub mod dead_letter;
pub mod effects;
pub mod error;
pub mod journal;
pub mod message;
pub mod outbox;
pub mod queue;
