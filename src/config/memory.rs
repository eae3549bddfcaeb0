//! The memory limit as people write it: a size, or a share of what there is.

use std::fmt;
use std::str::FromStr;

use super::ByteSize;

/// Bytes, or per cent of the memory that the process may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryLimit {
    /// So many bytes.
    Bytes(u64),
    /// A share of the machine's or the control group's memory.
    Percent(u8),
}

/// Below this a broker spends its memory on itself.
pub const MEMORY_LIMIT_MIN_BYTES: u64 = 64 << 20;
/// What is taken for the machine's memory when the system does not say.
const MEMORY_UNKNOWN_BYTES: u64 = 1 << 30;

impl MemoryLimit {
    /// The limit on a machine where the process may use `usable_bytes`.
    #[must_use]
    pub fn resolve(self, usable_bytes: Option<u64>) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => {
                let usable_bytes = usable_bytes.unwrap_or(MEMORY_UNKNOWN_BYTES);
                (usable_bytes / 100 * u64::from(percent)).max(MEMORY_LIMIT_MIN_BYTES)
            }
        }
    }
}

impl FromStr for MemoryLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = || {
            "expected bytes, a number followed by KiB, MiB or GiB, or a share such as 60%"
                .to_owned()
        };
        if let Some(percent) = text.strip_suffix('%') {
            let percent = percent.trim_end().parse().map_err(|_| expected())?;
            return match percent {
                1..=100 => Ok(Self::Percent(percent)),
                _ => Err("a share is 1% to 100%".to_owned()),
            };
        }
        let size: ByteSize = text.parse().map_err(|_| expected())?;
        Ok(Self::Bytes(size.0))
    }
}

impl fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => ByteSize(*bytes).fmt(f),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_size_or_a_share() {
        for (text, limit) in [
            ("128MiB", MemoryLimit::Bytes(128 << 20)),
            ("1000000000", MemoryLimit::Bytes(1_000_000_000)),
            ("60%", MemoryLimit::Percent(60)),
            ("5 %", MemoryLimit::Percent(5)),
        ] {
            assert_eq!(text.parse(), Ok(limit), "{text}");
        }
        for text in ["", "%", "0%", "101%", "-1%", "much", "1.5%"] {
            assert!(text.parse::<MemoryLimit>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_share_is_taken_of_what_there_is() {
        let share = MemoryLimit::Percent(60);
        assert_eq!(share.resolve(Some(1000 << 20)), 600 << 20);
        assert_eq!(share.resolve(Some(1 << 20)), MEMORY_LIMIT_MIN_BYTES);
        assert_eq!(MemoryLimit::Bytes(77).resolve(Some(1 << 40)), 77);
    }
}
