//! StrataMQ: a durable AMQP 0-9-1 message broker whose heart is one shared log.

pub mod allocator;
pub mod amqp;
pub mod broker;
pub mod cache_line;
pub mod config;
pub mod costs;
pub mod disk;
pub mod server;
pub mod session;
pub mod storage;
pub mod sync;
pub mod telemetry;
