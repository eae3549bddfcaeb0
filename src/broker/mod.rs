//! The domain: vhosts, exchanges, bindings, queues, consumers, users. No socket, no clock, no file, no tokio.
//!
//! ```text
//!   server --> Broker -- login, connect, admin, continuations --> Shared { meta, vhosts, access }
//!          --> Connection -- execute, publish, close ----------->   |
//!                declare  bind  publish                             v
//!                   '------'------'--> vhost { exchanges, bindings, queues } --> queue
//! ```
//!
//! Calls never block; what is to be done after the locks are released comes back in `Effects`.

pub mod access;
pub mod admin;
pub mod arguments;
mod bind;
mod binding;
pub mod command;
pub mod confirm_runs;
mod connection;
pub mod consumer;
pub mod dead_letter;
mod declare;
mod delayed;
pub mod effects;
mod equivalence;
pub mod error;
pub mod exchange;
mod facade;
pub mod fuzz;
pub mod journal;
mod limits;
pub mod memory;
pub mod message;
pub mod meta;
mod meta_log;
mod operator;
pub mod outbox;
mod pattern;
mod policy;
mod publish;
pub mod queue;
mod records;
mod refusal;
mod reply_to;
mod restore;
mod route_cache;
mod routing;
mod rules;
mod salvage;
pub mod stamp;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod vhost;

pub use access::{LoginError, User};
pub use connection::Connection;
pub use facade::{Broker, BrokerOptions};
pub use meta::RestoreError;
