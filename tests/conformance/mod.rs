//! The sections, and the stage they play on.

mod acks;
mod bindings;
mod channels;
mod clients;
mod confirms;
mod connection;
mod consumers;
mod dead_letter;
mod delayed;
mod elsewhere;
mod exchange_types;
mod exchanges;
mod expiry;
mod hostile;
mod length;
mod priorities;
mod publish;
mod queues;
mod quorum;
mod reply_to;
mod routing;
mod single_active;
pub(crate) mod stage;
mod tables;
mod tx;
mod users;
