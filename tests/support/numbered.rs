//! Messages that are known by a number, with which their bodies begin.

use std::ops::Range;

use super::raw::{Client, Message};

/// The body of message `number`, of `len` bytes.
pub(crate) fn body(number: usize, len: usize) -> Vec<u8> {
    let mut bytes = format!("{number:08}").into_bytes();
    bytes.resize(len, b'.');
    bytes
}

/// The number of the message that has this body.
#[track_caller]
pub(crate) fn number_of(body: &[u8]) -> usize {
    let digits = String::from_utf8_lossy(body.get(..8).unwrap_or_default()).into_owned();
    digits.parse().expect("a body begins with its number")
}

/// Sends persistent messages of these numbers to a queue and waits for nothing.
#[track_caller]
pub(crate) fn push(
    client: &mut Client,
    channel: u16,
    queue: &str,
    numbers: Range<usize>,
    len: usize,
) {
    for number in numbers {
        let message = Message::persistent(body(number, len));
        client.push_publish(channel, "", queue, &message);
    }
    client.flush().expect("the broker reads");
}

/// Publishes messages 0 to `count` on a channel that has published nothing, and waits for their confirms.
#[track_caller]
pub(crate) fn publish(client: &mut Client, channel: u16, queue: &str, count: usize, len: usize) {
    client.confirm_select(channel);
    push(client, channel, queue, 0..count, len);
    client.wait_confirms_upto(channel, u64::try_from(count).expect("a count"));
}
