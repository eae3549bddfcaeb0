//! The bytes of many deliveries, made once and written again and again.

use bytes::{Bytes, BytesMut};
use std::io::{self, Write};
use std::net::TcpStream;
use stratamq::amqp::frame::{self, FrameKind};
use stratamq::amqp::limits::{FRAME_MAX_DEFAULT, FRAME_OVERHEAD_BYTES};
use stratamq::amqp::method::{Method, basic};
use stratamq::amqp::short_string::ShortString;

/// Bytes of deliveries that are made at least, so that they go out in few writes.
const STREAM_BYTES: usize = 128 * 1024;

/// A message as it was first seen.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) publish: basic::Publish,
    /// The payload of its header frame.
    pub(super) header: Bytes,
    pub(super) body_bytes: usize,
}

/// Deliveries to one connection, in turn to each of its consumers.
pub(super) struct Deliveries {
    bytes: BytesMut,
    /// Where each delivery ends.
    ends: Vec<usize>,
}

impl Deliveries {
    pub(super) fn new(consumer_tags: &[ShortString], sample: &Sample) -> Self {
        let mut this = Self {
            bytes: BytesMut::new(),
            ends: Vec::new(),
        };
        while this.bytes.len() < STREAM_BYTES {
            for consumer_tag in consumer_tags {
                this.put(consumer_tag, sample);
            }
            if consumer_tags.is_empty() {
                break;
            }
        }
        this
    }

    fn put(&mut self, consumer_tag: &ShortString, sample: &Sample) {
        let deliver = basic::Deliver {
            consumer_tag: consumer_tag.clone(),
            delivery_tag: 1,
            exchange: sample.publish.exchange.clone(),
            routing_key: sample.publish.routing_key.clone(),
            ..basic::Deliver::default()
        };
        let out = &mut self.bytes;
        Method::from(deliver).encode(out, 1);
        frame::encode(out, FrameKind::Header, 1, |out| {
            out.extend_from_slice(&sample.header);
        });
        let part_max = (FRAME_MAX_DEFAULT - FRAME_OVERHEAD_BYTES) as usize;
        let mut left = sample.body_bytes;
        while left > 0 {
            let part = left.min(part_max);
            frame::encode(out, FrameKind::Body, 1, |out| {
                out.resize(out.len() + part, 0)
            });
            left -= part;
        }
        self.ends.push(out.len());
    }

    /// Writes as many deliveries.
    pub(super) fn write(&self, mut count: usize, stream: &mut TcpStream) -> io::Result<()> {
        while count > 0 && !self.ends.is_empty() {
            let part = count.min(self.ends.len());
            let end = self.ends.get(part - 1).copied().unwrap_or_default();
            stream.write_all(self.bytes.get(..end).unwrap_or_default())?;
            count -= part;
        }
        Ok(())
    }
}

/// How many of `count` messages each of `consumers` gets, when the last one stopped at `next`; and where this one stops.
pub(super) fn deal(count: usize, consumers: usize, next: usize) -> (Vec<usize>, usize) {
    let Some(share) = count.checked_div(consumers) else {
        return (Vec::new(), 0);
    };
    let rest = count % consumers;
    let gets_one_more = |index: usize| (index + consumers - next % consumers) % consumers < rest;
    let shares = (0..consumers).map(|index| share + usize::from(gets_one_more(index)));
    (shares.collect(), (next + rest) % consumers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::{Event, Input};

    #[track_caller]
    fn check(count: usize, consumers: usize, next: usize, expected: (&[usize], usize)) {
        let (shares, after) = deal(count, consumers, next);
        assert_eq!((shares.as_slice(), after), expected);
        assert!(consumers == 0 || shares.iter().sum::<usize>() == count);
    }

    #[test]
    fn messages_are_dealt_evenly_and_the_rest_in_turn() {
        check(6, 3, 0, (&[2, 2, 2], 0));
        check(7, 3, 0, (&[3, 2, 2], 1));
        check(7, 3, 2, (&[2, 2, 3], 0));
        check(2, 3, 2, (&[1, 0, 1], 1));
        check(5, 0, 4, (&[], 0));
    }

    #[test]
    fn the_bytes_are_whole_deliveries_to_each_consumer_in_turn() {
        let sample = Sample {
            publish: basic::Publish::default(),
            header: Bytes::from_static(&[0, 60, 0, 0, 0, 0, 0, 0, 0, 2, 0x49, 0x40, 0, 0]),
            body_bytes: 200_000,
        };
        let tags = [ShortString::from_static("0"), ShortString::from_static("1")];
        let deliveries = Deliveries::new(&tags, &sample);
        let mut input = Input::new();
        let mut seen = Vec::new();
        let mut body_bytes = 0;
        for mut part in deliveries.bytes.chunks(50_000) {
            input.fill(&mut part).expect("a slice can be read");
            while let Some(event) = input.next().expect("the frames are well-formed") {
                match event {
                    Event::Deliver { consumer_tag, .. } => seen.push(consumer_tag.to_vec()),
                    Event::Body(part) => body_bytes += part.len(),
                    _ => {}
                }
            }
        }
        assert_eq!(seen, [b"0", b"1"]);
        assert_eq!(deliveries.ends.len(), 2);
        assert_eq!(body_bytes, 2 * sample.body_bytes);
    }
}
