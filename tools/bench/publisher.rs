//! A publisher: keeps its window of unconfirmed messages full until the deadline or the count is reached.

use crate::args::Args;
use crate::clock::{Clock, secs};
use crate::connection::{Connection, check_harmless};
use crate::error::BenchError;
use crate::histogram::Histogram;
use crate::input::Event;
use crate::message::{ContentFrames, Stamp, Template};
use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use stratamq::amqp::method::{Method, confirm};
use stratamq::amqp::properties::{Properties, PropertiesBuilder};
use stratamq::amqp::short_string::ShortString;

/// Bytes of messages that go into one write at most: enough to make the system call cheap, little enough for a cache.
const BATCH_MAX_BYTES: usize = 128 * 1024;
/// Marks a settled message in the window.
const SETTLED: u64 = u64::MAX;

/// What a publisher has done.
pub(crate) struct Published {
    /// Sequence numbers 0 to this one, exclusively, were sent.
    pub(crate) count: u64,
    /// Those that the broker refused.
    pub(crate) nacked: Vec<u64>,
    /// Those that it said nothing about.
    pub(crate) unconfirmed: Vec<u64>,
    /// From the write to the confirm.
    pub(crate) confirm_latency: Histogram,
    /// When the last message was sent.
    pub(crate) last_publish_ns: u64,
    /// When the last confirm came; without confirms, when the channel was closed behind the last message.
    pub(crate) last_confirm_ns: u64,
    /// Why it ended early.
    pub(crate) error: Option<BenchError>,
}

/// The messages on their way, oldest first.
#[derive(Default)]
struct Window {
    /// When each was sent, or [`SETTLED`].
    sent_ns: VecDeque<u64>,
    /// The sequence number of the first one. Delivery tags are one more than sequence numbers.
    first_seq: u64,
    /// How many are not settled.
    open_count: usize,
}

impl Window {
    fn push(&mut self, sent_ns: u64) {
        self.sent_ns.push_back(sent_ns);
        self.open_count += 1;
    }

    /// Settles one message or all up to it; hands each one's sequence number and time to `settled`. False for a tag that is not open.
    fn settle(&mut self, tag: u64, is_multiple: bool, mut settled: impl FnMut(u64, u64)) -> bool {
        let past_last = self.first_seq + self.sent_ns.len() as u64;
        // The broker may say "all so far" with tag 0.
        let last_seq = match tag {
            0 if is_multiple => past_last,
            _ => tag,
        };
        let Some(last_index) = last_seq.checked_sub(self.first_seq + 1) else {
            return false;
        };
        let last_index = usize::try_from(last_index).unwrap_or(usize::MAX);
        let first_index = if is_multiple { 0 } else { last_index };
        if last_index >= self.sent_ns.len() {
            return false;
        }
        for (seq, sent_ns) in (self.first_seq..)
            .zip(self.sent_ns.iter_mut())
            .take(last_index + 1)
            .skip(first_index)
        {
            if *sent_ns != SETTLED {
                settled(seq, mem::replace(sent_ns, SETTLED));
                self.open_count -= 1;
            } else if !is_multiple {
                return false;
            }
        }
        while self.sent_ns.front() == Some(&SETTLED) {
            self.sent_ns.pop_front();
            self.first_seq += 1;
        }
        true
    }

    /// The sequence numbers of the messages that are not settled.
    fn open(&self) -> Vec<u64> {
        let numbered = (self.first_seq..).zip(&self.sent_ns);
        numbered
            .filter(|(_, sent_ns)| **sent_ns != SETTLED)
            .map(|(seq, _)| seq)
            .collect()
    }
}

/// A connected publisher, ready to start.
pub(crate) struct Publisher {
    connection: Connection,
    templates: Vec<Template>,
    index: u32,
    run: u32,
    /// 0: no confirms.
    window_max: usize,
    count_max: u64,
    patience_secs: u64,
    window: Window,
    published: Published,
}

impl Publisher {
    pub(crate) fn connect(args: &Args, index: u32, run: u32) -> Result<Self, BenchError> {
        let mut connection = Connection::open(&args.url)?;
        if args.window > 0 {
            connection.call(confirm::Select { nowait: false }, |method| {
                matches!(method, Method::ConfirmSelectOk(_))
            })?;
        }
        let properties = properties(args.is_persistent());
        let frame_max = connection.frame_max;
        let content = Arc::new(ContentFrames::new(&properties, args.body_size, frame_max));
        let exchange = ShortString::from_text_cut(args.exchange_name());
        let template = |key: &String| {
            let key = ShortString::from_text_cut(key);
            Template::new(&exchange, &key, &content)
        };
        Ok(Self {
            templates: args.routing_keys(index).iter().map(template).collect(),
            connection,
            index,
            run,
            window_max: args.window,
            count_max: args.count_of(index).unwrap_or(u64::MAX),
            patience_secs: args.patience,
            window: Window::default(),
            published: Published {
                count: 0,
                nacked: Vec::new(),
                unconfirmed: Vec::new(),
                confirm_latency: Histogram::new(),
                last_publish_ns: 0,
                last_confirm_ns: 0,
                error: None,
            },
        })
    }

    /// Publishes until `deadline_ns` or the count is reached, and waits for the confirms.
    pub(crate) fn publish(mut self, clock: Clock, deadline_ns: u64) -> Published {
        let ended = self
            .fill_window(clock, deadline_ns)
            .and_then(|()| self.finish(clock));
        self.published.error = ended.err();
        self.published.unconfirmed = self.window.open();
        self.connection.close();
        self.published
    }

    fn fill_window(&mut self, clock: Clock, deadline_ns: u64) -> Result<(), BenchError> {
        let give_up_ns = deadline_ns.saturating_add(self.patience_secs * 1_000_000_000);
        loop {
            let now_ns = clock.now_ns();
            if now_ns >= deadline_ns || self.published.count >= self.count_max {
                return Ok(());
            }
            self.put_batch(now_ns);
            // Past the deadline a broker that takes nothing more gets as much patience as one that confirms nothing more.
            self.connection.send(&mut || clock.now_ns() < give_up_ns)?;
            self.published.last_publish_ns = clock.now_ns();
            while self.window_max > 0 && self.window.open_count >= self.window_max {
                self.await_confirms(clock)?;
            }
        }
    }

    /// Appends as many messages as the window, the count and the size of a batch allow.
    fn put_batch(&mut self, now_ns: u64) {
        let queue_count = self.templates.len() as u64;
        while self.connection.output.len() < BATCH_MAX_BYTES
            && self.published.count < self.count_max
        {
            if self.window_max > 0 {
                if self.window.open_count >= self.window_max {
                    return;
                }
                self.window.push(now_ns);
            }
            let seq = self.published.count;
            let queue = (u64::from(self.index) + seq) % queue_count;
            let stamp = Stamp {
                run: self.run,
                publisher: self.index,
                seq,
                sent_ns: now_ns,
            };
            let template = usize::try_from(queue)
                .ok()
                .and_then(|queue| self.templates.get(queue));
            let template = template.expect("a remainder is less than its divisor");
            self.connection.output.reserve(template.len());
            template.put(&mut self.connection.output, stamp);
            self.published.count += 1;
        }
    }

    /// Reads until at least one confirm has come.
    fn await_confirms(&mut self, clock: Clock) -> Result<(), BenchError> {
        let waiting_since_ns = clock.now_ns();
        let open_count = self.window.open_count;
        while self.window.open_count == open_count {
            let waited_secs = secs(clock.now_ns() - waiting_since_ns);
            if !self.connection.fill()? && waited_secs > secs(self.patience_secs * 1_000_000_000) {
                let secs = self.patience_secs;
                return Err(BenchError::Stalled {
                    doing: "waiting for confirms",
                    secs,
                });
            }
            self.take_confirms(clock.now_ns())?;
        }
        Ok(())
    }

    fn take_confirms(&mut self, now_ns: u64) -> Result<(), BenchError> {
        while let Some(event) = self.connection.input.next()? {
            let Event::Confirm {
                tag,
                is_multiple,
                is_ack,
            } = event
            else {
                check_harmless(&event)?;
                continue;
            };
            let published = &mut self.published;
            let is_open = self.window.settle(tag, is_multiple, |seq, sent_ns| {
                if is_ack {
                    published
                        .confirm_latency
                        .record(now_ns.saturating_sub(sent_ns), 1);
                } else {
                    published.nacked.push(seq);
                }
            });
            if !is_open {
                return Err(BenchError::Protocol(format!(
                    "a confirm of {tag}, which is not unconfirmed"
                )));
            }
            published.last_confirm_ns = now_ns;
        }
        Ok(())
    }

    fn finish(&mut self, clock: Clock) -> Result<(), BenchError> {
        while self.window.open_count > 0 {
            self.await_confirms(clock)?;
        }
        self.connection.close_channel()?;
        if self.window_max == 0 {
            self.published.last_confirm_ns = clock.now_ns();
        }
        Ok(())
    }
}

fn properties(is_persistent: bool) -> Properties {
    let mut builder = PropertiesBuilder::new();
    builder.set_delivery_mode(Some(if is_persistent { 2 } else { 1 }));
    builder.build()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends `count` messages and settles them by (tag, multiple); says what each confirm settled and what is left.
    #[track_caller]
    fn check(count: u64, confirms: &[(u64, bool)], expected: &str) {
        let mut window = Window::default();
        for sent_ns in 0..count {
            window.push(100 + sent_ns);
        }
        let mut said = String::new();
        for (tag, is_multiple) in confirms {
            let is_open = window.settle(*tag, *is_multiple, |seq, sent_ns| {
                assert_eq!(sent_ns, 100 + seq);
                said += &format!("{seq} ");
            });
            said += if is_open { "| " } else { "? " };
        }
        let open = window.open();
        assert_eq!(open.len(), window.open_count);
        assert_eq!(format!("{said}{open:?}"), expected);
    }

    #[test]
    fn confirms_settle_each_message_once_in_any_order() {
        check(3, &[], "[0, 1, 2]");
        check(3, &[(1, false), (2, false), (3, false)], "0 | 1 | 2 | []");
        check(3, &[(3, false), (1, false)], "2 | 0 | [1]");
        check(5, &[(2, false), (4, true), (5, true)], "1 | 0 2 3 | 4 | []");
        check(3, &[(0, true)], "0 1 2 | []");
        check(3, &[(0, false), (4, false), (4, true)], "? ? ? [0, 1, 2]");
        check(
            3,
            &[(1, false), (1, false), (2, false), (2, false)],
            "0 | ? 1 | ? [2]",
        );
    }
}
