//! A port as people write it: a number, or `off`.

use std::fmt;
use std::str::FromStr;

/// Where a listener listens, if at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// There is no such listener.
    Off,
    /// On that port; 0 for one that the system chooses.
    Number(u16),
}

impl Port {
    /// The port; `None` when there is no listener.
    #[must_use]
    pub fn number(self) -> Option<u16> {
        match self {
            Self::Off => None,
            Self::Number(number) => Some(number),
        }
    }
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let number = text.parse().map(Self::Number);
        number.map_err(|_| "expected 0 to 65535, or off".to_owned())
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Number(number) => number.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_a_number_or_off() {
        for (text, port) in [
            ("off", Port::Off),
            ("0", Port::Number(0)),
            ("65535", Port::Number(65_535)),
        ] {
            assert_eq!(text.parse(), Ok(port));
            assert_eq!(port.to_string(), text);
        }
        for text in ["", "65536", "-1", "on", "amqp"] {
            assert!(text.parse::<Port>().is_err(), "{text}");
        }
    }
}
