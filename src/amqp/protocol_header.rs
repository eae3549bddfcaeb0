//! The eight bytes a client opens with, and what to answer (AMQP 0-9-1 section 4.2.2).
//!
//! ```text
//!  "AMQP"  0  0  9  1     AMQP 0-9-1
//!  "AMQP"  1  1  0  9     AMQP 0-9, spoken the same way
//!  anything else          answered with our header, then the connection ends
//! ```
//!
//! RabbitMQ 4 answers some foreign headers with that of AMQP 1.0, which it speaks; we do not.

/// Bytes of a protocol header.
pub const PROTOCOL_HEADER_BYTES: usize = 8;

/// The header of AMQP 0-9-1: what clients send, and the answer to every other one.
pub const AMQP_0_9_1: [u8; PROTOCOL_HEADER_BYTES] = *b"AMQP\x00\x00\x09\x01";

/// The header of AMQP 0-9, taken as 0-9-1.
pub const AMQP_0_9: [u8; PROTOCOL_HEADER_BYTES] = *b"AMQP\x01\x01\x00\x09";

/// What to do with a client that opened with some header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// Send `connection.start`.
    Start,
    /// Send these bytes and nothing else, then close.
    Refuse {
        /// The protocol we speak.
        answer: [u8; PROTOCOL_HEADER_BYTES],
    },
}

impl Greeting {
    /// Judges a header.
    #[must_use]
    pub fn of(header: [u8; PROTOCOL_HEADER_BYTES]) -> Self {
        match header {
            AMQP_0_9_1 | AMQP_0_9 => Self::Start,
            _ => Self::Refuse { answer: AMQP_0_9_1 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(header: &[u8; 8], is_served: bool) {
        let expected = if is_served {
            Greeting::Start
        } else {
            Greeting::Refuse {
                answer: *b"AMQP\x00\x00\x09\x01",
            }
        };
        assert_eq!(Greeting::of(*header), expected, "{header:?}");
    }

    #[test]
    fn only_amqp_0_9_and_0_9_1_are_served() {
        check(b"AMQP\x00\x00\x09\x01", true);
        check(b"AMQP\x01\x01\x00\x09", true);
        check(b"AMQP\x00\x00\x09\x00", false);
        check(b"AMQP\x00\x00\x0a\x00", false);
        check(b"AMQP\x00\x00\x08\x00", false);
        check(b"AMQP\x01\x01\x08\x00", false);
        check(b"AMQP\x03\x01\x00\x00", false);
        check(b"AMQP\x00\x01\x00\x00", false);
        check(b"GET / HT", false);
        check(b"\x16\x03\x01\x02\x00\x01\x00\x01", false);
    }
}
