//! Heartbeats in both directions, as RabbitMQ times them.
//!
//! - Every half interval: send one unless something was written since the last look; the first look
//!   always sends.
//! - Every interval: look whether any byte came. Two looks without one end the connection, so between two
//!   and three intervals after the last byte. While the server itself does not read, nothing is missed.

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beat {
    /// Nothing.
    None,
    /// Send a heartbeat.
    Send,
    /// The client is gone.
    Missed,
}

/// The negotiated heartbeats of a running connection.
#[derive(Debug)]
pub(super) struct Heartbeat {
    interval_ms: u64,
    send_check_at_ms: u64,
    receive_check_at_ms: u64,
    /// Bytes written at the last look; `None` before the first one.
    written: Option<u64>,
    received: u64,
    missed_count: u8,
}

/// Looks without a byte that end the connection.
const MISSED_MAX: u8 = 2;

impl Heartbeat {
    /// Heartbeats every `interval_secs` from now on; `None` when that is 0.
    pub(super) fn new(interval_secs: u16, now_ms: u64) -> Option<Self> {
        let interval_ms = u64::from(interval_secs) * 1000;
        (interval_ms > 0).then_some(Self {
            interval_ms,
            send_check_at_ms: now_ms + interval_ms / 2,
            receive_check_at_ms: now_ms + interval_ms,
            written: None,
            received: 0,
            missed_count: 0,
        })
    }

    /// The interval.
    pub(super) fn interval_ms(&self) -> u64 {
        self.interval_ms
    }

    /// When the next look is due.
    pub(super) fn due_at_ms(&self) -> u64 {
        self.send_check_at_ms.min(self.receive_check_at_ms)
    }

    /// Looks at the totals of bytes written and received.
    pub(super) fn check(&mut self, now_ms: u64, written: u64, received: u64, reads: bool) -> Beat {
        if now_ms >= self.receive_check_at_ms {
            self.receive_check_at_ms = now_ms + self.interval_ms;
            let is_silent = received == self.received && reads;
            self.received = received;
            self.missed_count = if is_silent { self.missed_count + 1 } else { 0 };
            if self.missed_count >= MISSED_MAX {
                return Beat::Missed;
            }
        }
        if now_ms >= self.send_check_at_ms {
            self.send_check_at_ms = now_ms + self.interval_ms / 2;
            if self
                .written
                .replace(written)
                .is_none_or(|before| before == written)
            {
                return Beat::Send;
            }
        }
        Beat::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_server_sends_one_every_half_interval() {
        let mut heartbeat = Heartbeat::new(2, 0).expect("on");
        let sent: Vec<u64> = (0..=4000)
            .filter(|now| heartbeat.check(*now, 0, *now, true) == Beat::Send)
            .collect();
        assert_eq!(sent, [1000, 2000, 3000, 4000]);
    }

    #[test]
    fn what_was_written_replaces_a_heartbeat_but_not_the_first() {
        let mut heartbeat = Heartbeat::new(2, 0).expect("on");
        assert_eq!(heartbeat.check(1000, 10, 1, true), Beat::Send);
        assert_eq!(heartbeat.check(2000, 20, 2, true), Beat::None);
        assert_eq!(heartbeat.check(3000, 20, 3, true), Beat::Send);
    }

    #[test]
    fn a_silent_client_is_dropped_after_two_looks_unless_we_did_not_read() {
        let first_missed = |reads: bool| {
            let mut heartbeat = Heartbeat::new(2, 0).expect("on");
            (0..=20_000).find(|now| {
                let received = (*now).min(1500);
                heartbeat.check(*now, *now, received, reads) == Beat::Missed
            })
        };
        assert_eq!(first_missed(true), Some(6000));
        assert_eq!(first_missed(false), None);
    }

    #[test]
    fn zero_turns_them_off() {
        assert!(Heartbeat::new(0, 0).is_none());
    }
}
