//! The log-structured persistence engine. It has never heard of AMQP.

pub mod types;
