//! How many threads serve sockets, as people write it: a number, or `auto`.
//!
//! `auto` is half of the processors. What a message costs is mostly memory that moves: between threads on two processors it
//! goes through both of their caches, and each wake-up across is a system call; on one thread it is a hot line and a flag.
//! On two processors one thread carries a third to a half more messages a CPU second than two, and the other processor is
//! free for the commit thread and the readers, which every durable message needs as well.

use std::fmt;
use std::str::FromStr;

/// Threads that serve sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetThreads {
    /// Half of the processors that the process may use, at least one.
    Auto,
    /// So many.
    Number(u16),
}

/// The most that may be asked for: beyond it threads only wait for each other.
const NET_THREADS_MAX: u16 = 1024;

impl NetThreads {
    /// The number on a machine where the process may use `processors`.
    #[must_use]
    pub fn resolve(self, processors: usize) -> usize {
        match self {
            Self::Auto => (processors / 2).clamp(1, NET_THREADS_MAX.into()),
            Self::Number(number) => number.into(),
        }
    }
}

impl FromStr for NetThreads {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        match text.parse() {
            Ok(number) if (1..=NET_THREADS_MAX).contains(&number) => Ok(Self::Number(number)),
            _ => Err(format!("expected 1 to {NET_THREADS_MAX}, or auto")),
        }
    }
}

impl fmt::Display for NetThreads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Number(number) => number.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_a_number_or_auto() {
        for (text, count) in [
            ("auto", NetThreads::Auto),
            ("1", NetThreads::Number(1)),
            ("1024", NetThreads::Number(1024)),
        ] {
            assert_eq!(text.parse(), Ok(count));
            assert_eq!(count.to_string(), text);
        }
        for text in ["", "0", "1025", "65537", "-1", "many", "1.5"] {
            let error = text.parse::<NetThreads>();
            assert_eq!(
                error,
                Err("expected 1 to 1024, or auto".to_owned()),
                "{text}"
            );
        }
    }

    #[test]
    fn half_of_the_processors_serve_sockets_and_never_none() {
        let auto = |processors| NetThreads::Auto.resolve(processors);
        assert_eq!([0, 1, 2, 3, 4, 64].map(auto), [1, 1, 1, 1, 2, 32]);
        assert_eq!(auto(1 << 20), 1024);
        assert_eq!(NetThreads::Number(7).resolve(2), 7);
    }
}
