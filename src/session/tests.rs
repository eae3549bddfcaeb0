//! The session seen from both sides: a client's bytes go in, a broker's answers go in, frames come out.

mod channels;
mod confirms;
mod consuming;
mod errors;
mod fuzz;
mod handshake;
mod publishes;
mod support;
mod transactions;

pub(in crate::session) use support::queue;
