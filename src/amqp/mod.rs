//! The AMQP 0-9-1 wire format: bytes to values and back. A leaf: it uses no other room.

pub mod field_table;
pub mod properties;
pub mod reply_code;
pub mod short_string;
