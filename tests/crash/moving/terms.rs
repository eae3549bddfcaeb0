//! What a queue does to a message, and the queues themselves.

use stratamq::amqp::field_table::{FieldTable, FieldValue};
use stratamq::amqp::method::{exchange, queue};

use crate::crash::random::Random;
use crate::support::raw::{Client, durable, text};

/// Where the dead go.
pub(crate) const GRAVE: &str = "grave";
/// Quorum; messages are taken, fail and come back.
pub(crate) const COUNTED: &str = "counted";
/// Messages are rejected, pause, and come back.
pub(crate) const RETRY: &str = "retry";
/// Where they pause.
pub(crate) const PAUSE: &str = "pause";
/// Behind the delayed exchange.
pub(crate) const ARRIVALS: &str = "arrivals";
/// Ruled by policies.
pub(crate) const RULED: &str = "ruled";
/// The delayed exchange.
pub(super) const DELAYED_EXCHANGE: &str = "crash.delayed";
const NARROW: &str = "narrow";
/// A time to live that is over before the next look, one about as long as a round, one of several rounds.
const FADING: [(&str, u64); 3] = [("fading-0", 30), ("fading-1", 800), ("fading-2", 3000)];
/// Delays, likewise.
const DELAYS_MS: [u64; 4] = [20, 300, 1200, 4000];
/// More push the oldest out.
const LENGTH_MAX: usize = 5;
/// More kill a message of the quorum queue.
const FAILURES_MAX: u32 = 3;
/// A rejected message pauses so long.
const PAUSE_MS: u64 = 15;

/// What becomes of a message published to a queue; see the fields. The default is a queue where it just stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Terms {
    /// The queue where it is to be found, as long as it lives.
    pub(crate) queue: &'static str,
    /// It comes there so much later.
    pub(crate) delay_ms: Option<u64>,
    /// It expires so long after it came.
    pub(crate) ttl_ms: Option<u64>,
    /// It is pushed out when there are more.
    pub(crate) length_max: Option<usize>,
    /// It dies when it fails more often.
    pub(crate) failures_max: Option<u32>,
    /// A rejected one comes back by way of [`PAUSE`].
    pub(crate) is_retried: bool,
    /// A dead one goes into [`GRAVE`]; else it is gone.
    pub(crate) has_letters: bool,
}

impl Terms {
    /// Of a queue where a message just stays.
    pub(crate) fn staying_in(queue: &'static str) -> Self {
        Self {
            queue,
            ..Self::default()
        }
    }

    /// Exchange and routing key of the publish.
    pub(super) fn route(&self) -> (&'static str, &'static str) {
        let is_delayed = self.delay_ms.is_some();
        (if is_delayed { DELAYED_EXCHANGE } else { "" }, self.queue)
    }
}

/// Those of a new message, but for the queue `ruled`.
pub(super) fn pick(random: &mut Random) -> Terms {
    match random.below(100) {
        0..35 => {
            let (queue, ttl_ms) = *random.pick(&FADING);
            Terms {
                ttl_ms: Some(ttl_ms),
                has_letters: true,
                ..Terms::staying_in(queue)
            }
        }
        35..45 => Terms {
            length_max: Some(LENGTH_MAX),
            has_letters: true,
            ..Terms::staying_in(NARROW)
        },
        45..65 => Terms {
            failures_max: Some(FAILURES_MAX),
            has_letters: true,
            ..Terms::staying_in(COUNTED)
        },
        65..80 => retried(),
        _ => Terms {
            delay_ms: Some(*random.pick(&DELAYS_MS)),
            ..Terms::staying_in(ARRIVALS)
        },
    }
}

/// Those of the queue [`RETRY`].
pub(crate) fn retried() -> Terms {
    Terms {
        is_retried: true,
        ..Terms::staying_in(RETRY)
    }
}

/// The queues that are looked into.
pub(super) fn all_queues() -> impl Iterator<Item = &'static str> {
    let fading = FADING.into_iter().map(|(queue, _)| queue);
    fading.chain([NARROW, COUNTED, RETRY, ARRIVALS, RULED, GRAVE])
}

fn number(value: u64) -> FieldValue {
    FieldValue::Long(i64::try_from(value).unwrap_or(i64::MAX))
}

fn dies_into(target: &str) -> FieldTable {
    FieldTable::new()
        .with("x-dead-letter-exchange", "")
        .with("x-dead-letter-routing-key", target)
}

fn arguments(queue: &str) -> FieldTable {
    if let Some((_, ttl_ms)) = FADING.into_iter().find(|(name, _)| *name == queue) {
        return dies_into(GRAVE).with("x-message-ttl", number(ttl_ms));
    }
    match queue {
        NARROW => dies_into(GRAVE).with("x-max-length", number(LENGTH_MAX as u64)),
        COUNTED => dies_into(GRAVE)
            .with("x-queue-type", "quorum")
            .with("x-delivery-limit", number(FAILURES_MAX.into())),
        RETRY => dies_into(PAUSE),
        PAUSE => dies_into(RETRY).with("x-message-ttl", number(PAUSE_MS)),
        _ => FieldTable::new(),
    }
}

/// Declares the queues and the exchange; a second time it checks that they are as they were.
pub(super) fn declare(client: &mut Client, channel: u16) {
    for queue in all_queues().chain([PAUSE]) {
        let options = queue::Declare {
            arguments: arguments(queue),
            ..durable()
        };
        client.queue_declare(channel, queue, options);
    }
    let delayed = exchange::Declare {
        exchange: text(DELAYED_EXCHANGE),
        kind: text("x-delayed-message"),
        durable: true,
        arguments: FieldTable::new().with("x-delayed-type", "direct"),
        ..exchange::Declare::default()
    };
    client.call::<exchange::DeclareOk>(channel, delayed);
}

/// Binds; only once, so that later rounds see what a restart has kept.
pub(super) fn bind(client: &mut Client, channel: u16) {
    client.bind(channel, ARRIVALS, DELAYED_EXCHANGE, ARRIVALS);
}
