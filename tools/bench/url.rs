//! `amqp://USER:PASSWORD@HOST:PORT/VHOST`, as RabbitMQ defines it: every part may be percent-encoded and left out.

use std::str::FromStr;

/// Where the broker is and who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) vhost: String,
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text
            .strip_prefix("amqp://")
            .ok_or("the address begins with amqp://")?;
        let (authority, vhost) = match rest.split_once('/') {
            // Nothing after the slash is the empty vhost by the letter; everybody means the default one.
            Some((authority, "")) => (authority, "/".to_owned()),
            Some((authority, vhost)) => (authority, decode(vhost)?),
            None => (rest, "/".to_owned()),
        };
        let (user, address) = authority
            .rsplit_once('@')
            .unwrap_or(("guest:guest", authority));
        let (user, password) = user.split_once(':').unwrap_or((user, ""));
        // The colons of an IPv6 address are inside brackets.
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (
                host,
                port.parse().map_err(|_| format!("{port} is no port"))?,
            ),
            _ => (address, 5672),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err("the address names no host".to_owned());
        }
        Ok(Self {
            user: decode(user)?,
            password: decode(password)?,
            host: host.to_owned(),
            port,
            vhost,
        })
    }
}

fn decode(text: &str) -> Result<String, String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let value = digit().zip(digit()).map(|(high, low)| high * 16 + low);
        let byte = value.and_then(|value| u8::try_from(value).ok());
        decoded.push(byte.ok_or_else(|| format!("a percent sign without two digits in {text}"))?);
    }
    String::from_utf8(decoded).map_err(|_| format!("{text} is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<(&str, &str, &str, u16, &str), &str>) {
        let parsed = text.parse::<Url>();
        let shown = parsed.as_ref().map(|url| {
            (
                &*url.user,
                &*url.password,
                &*url.host,
                url.port,
                &*url.vhost,
            )
        });
        assert_eq!(shown.map_err(String::as_str), expected);
    }

    #[test]
    fn parts_may_be_left_out_and_encoded() {
        check("amqp://h", Ok(("guest", "guest", "h", 5672, "/")));
        check("amqp://u:p@h:1/v", Ok(("u", "p", "h", 1, "v")));
        check("amqp://u%40x:p%2f@h/%2f", Ok(("u@x", "p/", "h", 5672, "/")));
        check("amqp://[::1]:7/", Ok(("guest", "guest", "::1", 7, "/")));
        check("amqp://[::1]", Ok(("guest", "guest", "::1", 5672, "/")));
        check("http://h", Err("the address begins with amqp://"));
        check("amqp://h:x", Err("x is no port"));
        check("amqp://", Err("the address names no host"));
        check(
            "amqp://h/%2",
            Err("a percent sign without two digits in %2"),
        );
    }
}
