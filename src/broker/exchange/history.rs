//! The last messages of `x-recent-history` exchanges, for whoever is bound to them next.
//!
//! They are kept in memory only. A message is remembered when it has been routed, also when nothing is bound: not before its
//! transaction commits, not while it waits in a delayed exchange or for somebody who takes it as a dead letter.
//!
//! ```text
//!   exchange a   [ 3 ]   [ 5 ] [ 6 ]          each: x-recent-history-length messages, 16 MiB
//!   exchange b [ 2 ]   [ 4 ]         [ 7 ]
//!                ^ the oldest of all goes first when all together are too large
//! ```
//! What all exchanges of a broker remember is behind one lock, and counts for the memory that messages may take.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::amqp::field_table::{FieldTable, FieldValue};
use crate::broker::message::Message;
use crate::sync::lock;

/// Argument: how many messages are kept.
const LENGTH: &str = "x-recent-history-length";
/// Header of messages that are not kept.
const NO_STORE: &str = "x-recent-history-no-store";
/// Messages that are kept unless the exchange says otherwise.
const DEFAULT_LENGTH: usize = 20;
/// Bytes that one exchange keeps, but for the last message: protects from a large length and large messages.
const HISTORY_MAX_BYTES: u64 = 16 << 20;
/// Bytes that all exchanges of a broker keep ..
const ALL_MAX_BYTES: u64 = 64 << 20;
/// .. and the part of the memory for messages that this may be at most.
const ALL_PART: u64 = 8;
/// What a message takes beside its own bytes: its places in the lists.
const PLACE_BYTES: u64 = 96;

/// What all such exchanges of a broker remember.
#[derive(Debug)]
pub(crate) struct Histories {
    max_bytes: u64,
    /// What they take, for who counts memory.
    size_bytes: Arc<AtomicU64>,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    next_stamp: u64,
    next_id: u64,
    /// By the order of their routing.
    messages: BTreeMap<u64, Remembered>,
    by_exchange: HashMap<u64, OfExchange>,
    size_bytes: u64,
}

#[derive(Debug)]
struct Remembered {
    exchange: u64,
    message: Arc<Message>,
}

#[derive(Debug, Default)]
struct OfExchange {
    /// The oldest first.
    stamps: VecDeque<u64>,
    size_bytes: u64,
}

/// The part of one exchange; with it goes what it remembers.
#[derive(Debug)]
pub(crate) struct History {
    id: u64,
    length: usize,
    all: Arc<Histories>,
}

/// The argument of the exchange.
///
/// # Errors
/// The text of the refusal (406).
pub(crate) fn parse_length(arguments: &FieldTable) -> Result<usize, String> {
    let Some(value) = arguments.get(LENGTH) else {
        return Ok(DEFAULT_LENGTH);
    };
    let length = value.as_integer().filter(|length| *length > 0);
    let length = length.and_then(|length| usize::try_from(length).ok());
    length.ok_or_else(|| format!("Invalid argument, '{LENGTH}' must be a positive integer"))
}

fn size_of_kept(message: &Message) -> u64 {
    message.size_bytes() as u64 + PLACE_BYTES
}

impl Histories {
    /// With so much memory for messages altogether.
    pub(crate) fn new(resident_max_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            max_bytes: ALL_MAX_BYTES.min(resident_max_bytes / ALL_PART),
            size_bytes: Arc::default(),
            kept: Mutex::default(),
        })
    }

    /// Bytes that are remembered, as they change.
    pub(crate) fn size_bytes(&self) -> &Arc<AtomicU64> {
        &self.size_bytes
    }

    /// Changes what is kept; what is forgotten is freed when nobody waits for that.
    fn change<T>(&self, work: impl FnOnce(&mut Kept, &mut Vec<Arc<Message>>) -> T) -> T {
        let mut forgotten = Vec::new();
        let mut kept = lock(&self.kept);
        let result = work(&mut kept, &mut forgotten);
        self.size_bytes.store(kept.size_bytes, Ordering::Relaxed);
        drop(kept);
        result
    }
}

impl Kept {
    fn add(&mut self, exchange: u64, message: Arc<Message>) {
        let stamp = self.next_stamp;
        self.next_stamp += 1;
        let size_bytes = size_of_kept(&message);
        let of_exchange = self.by_exchange.entry(exchange).or_default();
        of_exchange.stamps.push_back(stamp);
        of_exchange.size_bytes += size_bytes;
        self.size_bytes += size_bytes;
        self.messages
            .insert(stamp, Remembered { exchange, message });
    }

    /// Forgets the oldest message of an exchange.
    fn forget_oldest_of(&mut self, exchange: u64) -> Option<Arc<Message>> {
        let of_exchange = self.by_exchange.get_mut(&exchange)?;
        let stamp = of_exchange.stamps.pop_front()?;
        let message = self.messages.remove(&stamp)?.message;
        let size_bytes = size_of_kept(&message);
        of_exchange.size_bytes -= size_bytes;
        if of_exchange.stamps.is_empty() {
            self.by_exchange.remove(&exchange);
        }
        self.size_bytes -= size_bytes;
        Some(message)
    }

    /// Forgets the oldest message of all.
    fn forget_oldest(&mut self) -> Option<Arc<Message>> {
        let (_, oldest) = self.messages.first_key_value()?;
        // It is the oldest of its own exchange too.
        self.forget_oldest_of(oldest.exchange)
    }

    /// True when an exchange has more than it may.
    fn is_too_much(&self, exchange: u64, length: usize) -> bool {
        self.by_exchange.get(&exchange).is_some_and(|of_exchange| {
            let count = of_exchange.stamps.len();
            count > length || (of_exchange.size_bytes > HISTORY_MAX_BYTES && count > 1)
        })
    }
}

impl History {
    /// The history of a new exchange, of so many messages.
    pub(crate) fn new(length: usize, all: &Arc<Histories>) -> Self {
        let mut kept = lock(&all.kept);
        let id = kept.next_id;
        kept.next_id += 1;
        Self {
            id,
            length,
            all: Arc::clone(all),
        }
    }

    /// Keeps a message, unless it says that it does not want to. One that is larger than all histories may be is not kept.
    pub(crate) fn remember(&self, message: &Arc<Message>) {
        let no_store = message.properties().header(NO_STORE);
        let size_bytes = size_of_kept(message);
        if no_store == Some(FieldValue::Bool(true)) || size_bytes > self.all.max_bytes {
            return;
        }
        self.all.change(|kept, forgotten| {
            kept.add(self.id, Arc::clone(message));
            while kept.is_too_much(self.id, self.length) {
                forgotten.extend(kept.forget_oldest_of(self.id));
            }
            while kept.size_bytes > self.all.max_bytes {
                forgotten.extend(kept.forget_oldest());
            }
        });
    }

    /// What is kept, the oldest first.
    pub(crate) fn messages(&self) -> Vec<Arc<Message>> {
        let kept = lock(&self.all.kept);
        let stamps = kept.by_exchange.get(&self.id);
        let stamps = stamps.into_iter().flat_map(|of| &of.stamps);
        let remembered = stamps.filter_map(|stamp| kept.messages.get(stamp));
        remembered.map(|one| Arc::clone(&one.message)).collect()
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.all.change(|kept, forgotten| {
            while let Some(message) = kept.forget_oldest_of(self.id) {
                forgotten.push(message);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::amqp::properties::Properties;
    use crate::amqp::short_string::ShortString;

    fn message(body: usize) -> Arc<Message> {
        let key = ShortString::from_static("k");
        let body = vec![Bytes::from(vec![b'.'; body])];
        Arc::new(Message::new(key.clone(), key, Properties::default(), body))
    }

    fn sizes(history: &History) -> Vec<usize> {
        let messages = history.messages();
        messages.iter().map(|message| message.body_len()).collect()
    }

    #[test]
    fn all_exchanges_together_keep_within_one_budget_and_the_oldest_go_first() {
        const KIB: usize = 1024;
        // An eighth of it: 128 KiB.
        let all = Histories::new(1 << 20);
        let size = || all.size_bytes().load(Ordering::Relaxed);
        let (a, b) = (History::new(1000, &all), History::new(3, &all));
        a.remember(&message(30 * KIB));
        b.remember(&message(31 * KIB));
        a.remember(&message(32 * KIB));
        assert_eq!(
            (sizes(&a), sizes(&b)),
            (vec![30 * KIB, 32 * KIB], vec![31 * KIB])
        );
        assert!(size() > 93 * KIB as u64 && size() < 96 * KIB as u64);
        a.remember(&message(60 * KIB));
        assert_eq!(
            (sizes(&a), sizes(&b)),
            (vec![32 * KIB, 60 * KIB], vec![31 * KIB])
        );
        // Small ones count for more than their bodies: a long history of nothing is no way around.
        for _ in 0..10_000 {
            a.remember(&message(0));
            assert!(size() <= 128 * KIB as u64);
        }
        assert_eq!(sizes(&b), [0; 0]);
        assert!(sizes(&a).len() < 1000, "fewer than it asked for");
        let before = sizes(&a);
        b.remember(&message(128 * KIB));
        assert_eq!(
            (sizes(&a), sizes(&b)),
            (before, vec![]),
            "larger than everything"
        );
        for body in 1..=4 {
            b.remember(&message(body));
        }
        assert_eq!(sizes(&b), [2, 3, 4]);
        drop(a);
        assert_eq!(sizes(&b), [2, 3, 4]);
        drop(b);
        assert_eq!(size(), 0, "what is gone takes nothing");
        let kept = lock(&all.kept);
        assert!(kept.messages.is_empty() && kept.by_exchange.is_empty());
    }
}
