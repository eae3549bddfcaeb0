//! Queues.

use std::sync::Arc;

/// A queue. State behind one short mutex.
#[derive(Debug)]
pub struct Queue {}

/// A shared handle to a queue.
pub type QueueHandle = Arc<Queue>;
