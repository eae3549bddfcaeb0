//! What the stand-in's connections share: who consumes, and the deliveries that were made for each.

use super::deliveries::{Deliveries, Sample, deal};
use std::io;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stratamq::amqp::short_string::ShortString;

/// Consumers that have not subscribed after this do not come.
const SUBSCRIBE_MAX: Duration = Duration::from_secs(30);

/// A connection that consumes.
struct Subscriber {
    stream: TcpStream,
    consumer_tags: Vec<ShortString>,
    /// Made for the first message.
    deliveries: Option<Arc<Deliveries>>,
}

/// See the module.
pub(super) struct Desk {
    expected_count: usize,
    subscribers: Mutex<Vec<Arc<Mutex<Subscriber>>>>,
    changed: Condvar,
    /// Messages that came, of all publishers.
    pub(super) message_count: AtomicUsize,
    /// Who gets the next message that does not go to all.
    next: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Desk {
    pub(super) fn new(expected_count: usize) -> Self {
        Self {
            expected_count,
            subscribers: Mutex::default(),
            changed: Condvar::new(),
            message_count: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
        }
    }

    /// Enters the consumers of a connection.
    pub(super) fn subscribe(
        &self,
        stream: &TcpStream,
        consumer_tags: Vec<ShortString>,
    ) -> io::Result<()> {
        let subscriber = Subscriber {
            stream: stream.try_clone()?,
            consumer_tags,
            deliveries: None,
        };
        lock(&self.subscribers).push(Arc::new(Mutex::new(subscriber)));
        self.changed.notify_all();
        Ok(())
    }

    /// Waits until all consumers are there; what the connections of a publisher write to from then on.
    pub(super) fn await_subscribers(&self, sample: &Sample) -> Recipients {
        let is_short = |subscribers: &mut Vec<Arc<Mutex<Subscriber>>>| {
            let tags = subscribers
                .iter()
                .map(|each| lock(each).consumer_tags.len());
            tags.sum::<usize>() < self.expected_count
        };
        let subscribers = lock(&self.subscribers);
        let waited = self
            .changed
            .wait_timeout_while(subscribers, SUBSCRIBE_MAX, is_short);
        let (subscribers, _) = waited.unwrap_or_else(PoisonError::into_inner);
        for subscriber in subscribers.iter() {
            let mut subscriber = lock(subscriber);
            if subscriber.deliveries.is_none() {
                let deliveries = Deliveries::new(&subscriber.consumer_tags, sample);
                subscriber.deliveries = Some(Arc::new(deliveries));
            }
        }
        Recipients {
            subscribers: subscribers.clone(),
            is_fanout: !sample.publish.exchange.as_bytes().is_empty(),
        }
    }

    /// Writes what `count` messages bring to everybody.
    pub(super) fn deliver(&self, recipients: &Recipients, count: usize) -> io::Result<()> {
        self.message_count.fetch_add(count, Ordering::Relaxed);
        let consumers = recipients.subscribers.len();
        let (shares, next) = match recipients.is_fanout {
            true => (vec![count; consumers], 0),
            false => deal(count, consumers, self.next.load(Ordering::Relaxed)),
        };
        self.next.store(next, Ordering::Relaxed);
        for (subscriber, share) in recipients.subscribers.iter().zip(shares) {
            let mut subscriber = lock(subscriber);
            let copies = match recipients.is_fanout {
                true => subscriber.consumer_tags.len(),
                false => 1,
            };
            if let Some(deliveries) = subscriber.deliveries.clone() {
                deliveries.write(share * copies, &mut subscriber.stream)?;
            }
        }
        Ok(())
    }
}

/// Who gets the messages of a publisher.
pub(super) struct Recipients {
    subscribers: Vec<Arc<Mutex<Subscriber>>>,
    is_fanout: bool,
}
